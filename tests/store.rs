//! What every store must do, tried on memory, a local folder and a real S3 server; and a server that breaks the rules.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod support;

use std::time::{Duration, Instant};

use bytes::Bytes;
use lifeboat::error::Kind;
use lifeboat::store::faults::{self, Faults};
use lifeboat::store::{Created, Credential, Probe, Store, StoreConfig, Verb};
use support::azure::Azurite;
use support::s3::{Bucket, Rclone, SECRET_KEY, SeaweedFs};

/// All rules, on an empty store.
async fn rules(store: Store) {
    an_empty_store(&store).await;
    create_and_read(&store).await;
    create_never_replaces(&store).await;
    ranges(&store).await;
    listing(&store).await;
    deleting(&store).await;
    empty_and_large_objects(&store).await;
    races_have_one_winner(&store).await;
    identical_racers_all_succeed(&store).await;
    let probe = store.probe().await.unwrap();
    let expected = Probe {
        conditional_create: true,
        read_after_write: true,
        list_after_write: true,
        range_reads: true,
        delete: true,
        delete_refusal: None,
        create_took: probe.create_took,
    };
    assert_eq!(probe, expected, "{probe}");
    assert!(store.list("probe").await.unwrap().is_empty(), "the probe cleans up");
}

async fn an_empty_store(store: &Store) {
    assert!(store.list("").await.unwrap().is_empty());
    assert!(store.list("packs/").await.unwrap().is_empty());
    assert_eq!(store.head("packs/a").await.unwrap(), None);
    assert_eq!(store.get("packs/a").await.unwrap_err().kind(), Kind::NotFound);
    assert_eq!(store.get_range("packs/a", 0..1).await.unwrap_err().kind(), Kind::NotFound);
    store.delete("packs/a").await.unwrap();
}

async fn create_and_read(store: &Store) {
    let before = store.metrics();
    assert_eq!(store.create("format", "v1".into()).await.unwrap(), Created::New);
    assert_eq!(store.get("format").await.unwrap(), "v1");
    let info = store.head("format").await.unwrap().unwrap();
    assert_eq!((info.key.as_str(), info.size), ("format", 2));
    let age = chrono::Utc::now() - info.modified;
    assert!(age.num_seconds().abs() < 120, "{age}");
    let after = store.metrics();
    assert_eq!(after.uploaded_bytes() - before.uploaded_bytes(), 2);
    assert_eq!(after.downloaded_bytes() - before.downloaded_bytes(), 2);
    assert_eq!(after.verb(Verb::Get).requests - before.verb(Verb::Get).requests, 1);
}

async fn create_never_replaces(store: &Store) {
    let key = "keys/a";
    assert_eq!(store.create(key, "one".into()).await.unwrap(), Created::New);
    assert_eq!(store.create(key, "one".into()).await.unwrap(), Created::Same);
    for other in ["two", "longer", ""] {
        let error = store.create(key, other.into()).await.unwrap_err();
        assert_eq!(error.kind(), Kind::AlreadyExists);
        assert!(error.to_string().contains(key) && error.to_string().contains(store.describe()), "{error}");
    }
    assert_eq!(store.get(key).await.unwrap(), "one");
    store.delete(key).await.unwrap();
    assert_eq!(store.create(key, "two".into()).await.unwrap(), Created::New);
    assert_eq!(store.get(key).await.unwrap(), "two");
}

async fn ranges(store: &Store) {
    let key = "ranges/a";
    store.create(key, "0123456789".into()).await.unwrap();
    assert_eq!(store.get_range(key, 0..10).await.unwrap(), "0123456789");
    assert_eq!(store.get_range(key, 3..5).await.unwrap(), "34");
    assert_eq!(store.get_range(key, 9..10).await.unwrap(), "9");
    assert_eq!(store.get_range(key, 4..4).await.unwrap(), "");
    for beyond in [5..11, 10..11, 100..200] {
        assert_eq!(store.get_range(key, beyond.clone()).await.unwrap_err().kind(), Kind::Damaged, "{beyond:?}");
    }
}

async fn listing(store: &Store) {
    let mut keys: Vec<String> = ["l/b", "l/a/2", "l/a/1", "l/a.x", "l/a-x", "l/ab/1", "lx/1", "l/A", "l/_"].map(str::to_owned).to_vec();
    // More than S3 gives in one answer (1,000) is checked by `a_listing_of_many_pages_is_complete`.
    keys.extend((0..40).map(|number| format!("l/many/{number:04}")));
    for key in &keys {
        store.create(key, key.clone().into()).await.unwrap();
    }
    keys.sort();
    let list = async |prefix: &str| store.list(prefix).await.unwrap().into_iter().map(|info| info.key).collect::<Vec<_>>();
    let below = |prefix: &str| keys.iter().filter(|key| key.starts_with(prefix)).cloned().collect::<Vec<_>>();
    assert_eq!(list("l").await, below("l/"));
    assert_eq!(list("l/").await, below("l/"));
    assert_eq!(list("l/a").await, ["l/a/1", "l/a/2"]);
    assert!(list("l/b").await.is_empty(), "an object is not a folder");
    let all = list("").await;
    assert!(all.is_sorted() && below("l").iter().all(|key| all.contains(key)));
    let info = &store.list("l/ab").await.unwrap()[0];
    assert_eq!(store.head("l/ab/1").await.unwrap().unwrap().size, info.size);
}

async fn deleting(store: &Store) {
    store.create("d/a", "x".into()).await.unwrap();
    store.create("d/b", "x".into()).await.unwrap();
    store.delete("d/a").await.unwrap();
    store.delete("d/a").await.unwrap();
    assert_eq!(store.head("d/a").await.unwrap(), None);
    assert_eq!(store.list("d").await.unwrap().len(), 1);
}

async fn empty_and_large_objects(store: &Store) {
    assert_eq!(store.create("size/empty", Bytes::new()).await.unwrap(), Created::New);
    assert_eq!(store.get("size/empty").await.unwrap(), "");
    assert_eq!(store.head("size/empty").await.unwrap().unwrap().size, 0);
    let mut pack = vec![0; 33 << 20];
    blake3::Hasher::new().update(b"pack").finalize_xof().fill(&mut pack);
    let pack = Bytes::from(pack);
    store.create("size/pack", pack.clone()).await.unwrap();
    assert!(store.get("size/pack").await.unwrap() == pack, "a pack comes back as it was");
    let middle = store.get_range("size/pack", 20_000_001..20_600_000).await.unwrap();
    assert!(middle == pack.slice(20_000_001..20_600_000));
}

async fn races_have_one_winner(store: &Store) {
    for round in 0..5 {
        let key = format!("race/{round}");
        let contents: Vec<Bytes> = (0..16).map(|racer| Bytes::from(format!("racer {racer}"))).collect();
        let tasks: Vec<_> = contents
            .iter()
            .map(|bytes| {
                let (store, key, bytes) = (store.clone(), key.clone(), bytes.clone());
                tokio::spawn(async move { store.create(&key, bytes).await })
            })
            .collect();
        let mut winners = Vec::new();
        for (task, bytes) in tasks.into_iter().zip(&contents) {
            match task.await.unwrap() {
                Ok(Created::New) => winners.push(bytes.clone()),
                Ok(Created::Same) => panic!("contents differ"),
                Err(error) => assert_eq!(error.kind(), Kind::AlreadyExists, "{error:?}"),
            }
        }
        assert_eq!(winners.len(), 1, "round {round}");
        assert_eq!(store.get(&key).await.unwrap(), winners[0]);
    }
}

async fn identical_racers_all_succeed(store: &Store) {
    let tasks: Vec<_> = (0..16)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move { store.create("race/same", "same".into()).await })
        })
        .collect();
    let mut new = 0;
    for task in tasks {
        new += usize::from(task.await.unwrap().unwrap() == Created::New);
    }
    assert_eq!(new, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_keeps_the_rules() {
    rules(Store::in_memory()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_folder_keeps_the_rules() {
    let base = tempfile::tempdir().unwrap();
    // Characters that URLs and object_store treat in special ways, in the root only.
    let root = base.path().join("new folder/r#oot %41");
    let url = url::Url::from_file_path(&root).unwrap();
    let store = Store::open(&StoreConfig::at(url.as_str())).unwrap();
    assert!(store.list("").await.unwrap().is_empty());
    assert!(!root.exists(), "only a create makes the root");
    rules(store.clone()).await;
    let mut leftovers = walk(&root);
    leftovers.retain(|path| path.file_name().unwrap().to_string_lossy().contains('#'));
    assert!(leftovers.is_empty(), "{leftovers:?}");
}

fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(walk(&path)) } else { found.push(path) }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_with_a_faultless_wrapper_keeps_the_rules() {
    rules(Store::with_faults(Store::in_memory(), Faults::new())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_s3_server_keeps_the_rules() {
    rules(Store::open(&SeaweedFs::shared().bucket().fresh()).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_azure_server_keeps_the_rules() {
    let azurite = Azurite::start();
    rules(Store::open(&azurite.at("root/of-it")).unwrap()).await;
    let wrong = StoreConfig { secret_key: Some(Credential::new("V1JPTkdTRUNSRVQ=")), ..azurite.at("x") };
    let error = Store::open(&wrong).unwrap().get("a").await.unwrap_err();
    assert_eq!(error.kind(), Kind::Failed, "{error:?}");
    assert!(error.hint_text().is_some() && !format!("{error:?}").contains("V1JPTkdTRUNSRVQ="), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_whose_answer_is_cut_off_on_the_wire_is_found_out() {
    let mut config = SeaweedFs::shared().bucket().fresh();
    let proxy = support::proxy::Proxy::start(config.endpoint.as_deref().unwrap()).await;
    let direct = Store::open(&config).unwrap();
    config.endpoint = Some(proxy.endpoint());
    let store = Store::open(&config).unwrap();

    proxy.cut_answers("PUT ", 1);
    assert_eq!(store.create("a", "mine".into()).await.unwrap(), Created::Same);
    assert_eq!(direct.get("a").await.unwrap(), "mine");

    // Somebody else's object under a lost answer is still somebody else's.
    direct.create("b", "theirs".into()).await.unwrap();
    proxy.cut_answers("PUT ", 1);
    assert_eq!(store.create("b", "mine".into()).await.unwrap_err().kind(), Kind::AlreadyExists);

    proxy.cut_answers("GET ", 1);
    assert_eq!(store.get("a").await.unwrap(), "mine");
    assert_eq!(proxy.cuts(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_of_many_pages_is_complete() {
    let store = Store::open(&SeaweedFs::shared().bucket().fresh()).unwrap();
    let keys: Vec<String> = (0..2100).map(|number| format!("m/{:02}/{number:05}", number % 7)).collect();
    let creates = keys.iter().map(|key| store.create(key, Bytes::new()));
    for created in futures::future::join_all(creates).await {
        created.unwrap();
    }
    let mut listed: Vec<String> = store.list("m").await.unwrap().into_iter().map(|info| info.key).collect();
    assert!(listed.is_sorted());
    let mut expected = keys;
    expected.sort();
    listed.dedup();
    assert_eq!(listed, expected);
}

/// macOS puts `Icon\r` into folders; the client takes it for no key and gives no listing that has it.
#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_keeps_a_folder_from_being_listed_is_named_with_advice() {
    let bucket = SeaweedFs::shared().bucket();
    let config = bucket.fresh();
    let store = Store::open(&config).unwrap();
    store.create("packs/a", "abc".into()).await.unwrap();
    let path = format!("{}/packs/Icon%0D", config.url.strip_prefix("s3://").unwrap());
    let call = |method: &str| bucket.signed((method, &path, ""), &[], "x", Bucket::keys());
    assert_eq!(call("PUT").0, 200);
    let error = store.list("packs/").await.unwrap_err();
    let hint = error.hint_text().unwrap();
    assert!(hint.contains("packs/Icon\\r") && hint.contains("take it out"), "{error:?}");
    assert_eq!(call("DELETE").0, 204);
    assert_eq!(store.list("packs/").await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_object_on_s3_can_be_made_for_tests() {
    let store = Store::open(&SeaweedFs::shared().bucket().fresh()).unwrap();
    store.create("a", "abc".into()).await.unwrap();
    faults::truncate(&store, "a", 1).await.unwrap();
    assert_eq!(store.get("a").await.unwrap(), "a");
    faults::remove(&store, "a").await.unwrap();
    assert_eq!(store.head("a").await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_s3_keys_are_told_with_advice_and_without_the_keys() {
    let config = StoreConfig { secret_key: Some(Credential::new("WRONGSECRET")), ..SeaweedFs::shared().bucket().fresh() };
    let store = Store::open(&config).unwrap();
    for error in [
        store.create("a", "x".into()).await.unwrap_err(),
        store.get("a").await.unwrap_err(),
        store.head("a").await.unwrap_err(),
        store.list("").await.unwrap_err(),
        store.delete("a").await.unwrap_err(),
        store.probe().await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), Kind::Failed, "{error:?}");
        assert!(error.hint_text().is_some_and(|hint| hint.contains("access key")), "{error:?}");
        let text = format!("{error:?}");
        assert!(!text.contains("WRONGSECRET") && !text.contains("Signature=") && !text.contains(SECRET_KEY), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_is_not_there_is_told() {
    let mut config = SeaweedFs::shared().bucket().fresh();
    config.url = "s3://no-such-bucket/x".to_owned();
    let store = Store::open(&config).unwrap();
    for error in [store.get("a").await.unwrap_err(), store.list("").await.unwrap_err()] {
        assert_eq!(error.kind(), Kind::Failed, "{error:?}");
        assert!(error.hint_text().is_some_and(|hint| hint.contains("create the bucket")), "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_away_is_unavailable_within_a_minute() {
    let config = StoreConfig {
        endpoint: Some(format!("http://127.0.0.1:{}", support::free_port())),
        access_key: Some(Credential::new("a")),
        secret_key: Some(Credential::new("b")),
        ..StoreConfig::at("s3://bucket/x")
    };
    let store = Store::open(&config).unwrap();
    let start = Instant::now();
    let (get, create) = tokio::join!(store.get("a"), store.create("a", "x".into()));
    for error in [get.unwrap_err(), create.unwrap_err()] {
        assert_eq!(error.kind(), Kind::Unavailable, "{error:?}");
        assert!(format!("{error:?}").contains("refused"), "{error:?}");
    }
    assert!(start.elapsed() < Duration::from_secs(90), "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_probe_reports_a_server_that_ignores_conditions_and_single_writer_mode_works_there() {
    let rclone = Rclone::start();
    let config = rclone.bucket().fresh();
    let probe = Store::open(&config).unwrap().probe().await.unwrap();
    assert!(!probe.conditional_create && !probe.is_safe(), "{probe}");
    // rclone 1.75 also answers 200 instead of 206 to every range.
    assert!(probe.read_after_write && !probe.range_reads && probe.delete, "{probe}");
    assert!(probe.to_string().contains("create only if absent: NO"), "{probe}");

    let single = Store::open(&StoreConfig { single_writer: true, ..config }).unwrap();
    create_never_replaces(&single).await;
}

/// A full disk, in a mount namespace of its own: this test calls itself there.
#[test]
fn a_full_disk_is_told_apart_and_leaves_nothing_behind() {
    const INSIDE: &str = "LIFEBOAT_TEST_FULL_DISK";
    if let Some(folder) = std::env::var_os(INSIDE) {
        return full_disk(std::path::Path::new(&folder));
    }
    let folder = tempfile::tempdir().unwrap();
    let mount = format!("mount -t tmpfs -o size=1m none '{0}' || exit 77; exec \"$@\"", folder.path().display());
    let myself = std::env::current_exe().unwrap();
    let name = "a_full_disk_is_told_apart_and_leaves_nothing_behind";
    let mut refusals = String::new();
    // As root, else in a user namespace where the system allows one.
    for options in [["-m", "--"].as_slice(), ["-r", "-m", "--"].as_slice()] {
        let mut unshare = std::process::Command::new("unshare");
        unshare.args(options).args(["sh", "-c", &mount, "sh"]).arg(&myself).args(["--exact", name, "--nocapture"]);
        let output = unshare.env(INSIDE, folder.path()).output().unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        match output.status.code() {
            Some(0) => {
                assert!(text.contains("1 passed"), "{text}");
                return;
            }
            Some(101) => panic!("{text}"),
            _ => refusals += &text,
        }
    }
    panic!("mount a small file system (root, or a system that allows user namespaces): {refusals}");
}

fn full_disk(folder: &std::path::Path) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let store = Store::open(&StoreConfig::at(format!("file://{}/root", folder.display()))).unwrap();
        store.create("a", Bytes::from(vec![1; 600_000])).await.unwrap();
        let error = store.create("b", Bytes::from(vec![2; 600_000])).await.unwrap_err();
        assert_eq!(error.kind(), Kind::NoSpace, "{error:?}");
        assert!(error.hint_text().unwrap().contains("free space") && error.to_string().contains('b'), "{error:?}");
        assert_eq!(walk(folder).len(), 1, "no half-written file is left");
        assert_eq!(store.list("").await.unwrap().len(), 1);
        store.delete("a").await.unwrap();
        store.create("b", Bytes::from(vec![2; 600_000])).await.unwrap();
    });
}

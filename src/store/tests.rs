//! The façade under injected faults, and what `open` accepts. What every store must do is `tests/store.rs`.

use super::*;
use crate::store::faults::{Effect, Rule, When};
use std::time::Duration;

fn faulty() -> (Store, Faults) {
    let faults = Faults::new();
    (Store::with_faults(Store::in_memory(), faults.clone()), faults)
}

const KEY: &str = "packs/ab/cd";

fn bytes(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

#[tokio::test(start_paused = true)]
async fn a_create_whose_answer_got_lost_is_found_out() {
    for lost in [Kind::Unavailable, Kind::AlreadyExists] {
        let (store, faults) = faulty();
        faults.add(Rule::on(Verb::Create).then(Effect::FailAfter(lost)));
        assert_eq!(store.create(KEY, bytes("a")).await.unwrap(), Created::Same, "{lost:?}");
        assert_eq!(store.get(KEY).await.unwrap(), "a");
    }
}

#[tokio::test(start_paused = true)]
async fn already_exists_where_nothing_landed_is_tried_again() {
    let (store, faults) = faulty();
    faults.add(Rule::on(Verb::Create).then(Effect::Fail(Kind::AlreadyExists)));
    assert_eq!(store.create(KEY, bytes("a")).await.unwrap(), Created::New);
    assert_eq!(store.metrics().retries, 1);
    faults.add(Rule::on(Verb::Create).always().then(Effect::Fail(Kind::AlreadyExists)));
    assert_eq!(store.create("other", bytes("a")).await.unwrap_err().kind(), Kind::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_never_hides_that_somebody_else_was_first() {
    let (store, faults) = faulty();
    faults::replace(&store, KEY, bytes("b")).await.unwrap();
    faults.add(Rule::on(Verb::Create).then(Effect::Fail(Kind::Unavailable)));
    assert_eq!(store.create(KEY, bytes("a")).await.unwrap_err().kind(), Kind::AlreadyExists);
    assert_eq!(store.get(KEY).await.unwrap(), "b");
}

#[tokio::test(start_paused = true)]
async fn a_create_that_cannot_be_looked_at_is_unavailable_not_a_success() {
    let (store, faults) = faulty();
    faults.add(Rule::any().always().then(Effect::FailAfter(Kind::Unavailable)));
    assert_eq!(store.create(KEY, bytes("a")).await.unwrap_err().kind(), Kind::Unavailable);
    faults.clear();
    assert_eq!(store.create(KEY, bytes("a")).await.unwrap(), Created::Same);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_lies_about_success_is_noticed() {
    for lie in [Effect::Lie, Effect::StoreOnly(1)] {
        let (store, faults) = faulty();
        faults.add(Rule::on(Verb::Create).then(lie));
        let error = store.create(KEY, bytes("abc")).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Failed);
        assert!(error.to_string().contains(KEY) && error.hint_text().is_some(), "{error:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn reads_are_repeated_when_they_may_pass() {
    let (store, faults) = faulty();
    store.create(KEY, bytes("abc")).await.unwrap();
    for verb in [Verb::Get, Verb::GetRange, Verb::Head, Verb::List, Verb::Delete] {
        faults.add(Rule::on(verb).then(Effect::Fail(Kind::Unavailable)));
    }
    assert_eq!(store.get(KEY).await.unwrap(), "abc");
    assert_eq!(store.get_range(KEY, 1..2).await.unwrap(), "b");
    assert_eq!(store.head(KEY).await.unwrap().unwrap().size, 3);
    assert_eq!(store.list("packs").await.unwrap().len(), 1);
    store.delete(KEY).await.unwrap();
    assert_eq!(store.metrics().retries, 5);
    faults.add(Rule::on(Verb::Get).always().then(Effect::Fail(Kind::Unavailable)));
    assert_eq!(store.get(KEY).await.unwrap_err().kind(), Kind::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn damage_in_answers_reaches_the_caller_and_short_ranges_are_damage() {
    let (store, faults) = faulty();
    store.create(KEY, bytes("abc")).await.unwrap();
    faults.add(Rule::on(Verb::Get).nth(1).then(Effect::Cut(1)));
    faults.add(Rule::on(Verb::Get).nth(2).then(Effect::Flip(4)));
    faults.add(Rule::on(Verb::GetRange).then(Effect::Cut(1)));
    faults.add(Rule::on(Verb::Head).then(Effect::Hide));
    faults.add(Rule::on(Verb::List).below("packs/a").then(Effect::Hide));
    assert_eq!(store.get(KEY).await.unwrap(), "ab");
    assert_eq!(store.get(KEY).await.unwrap().as_ref(), [b'a', !b'b', b'c']);
    assert_eq!(store.get_range(KEY, 0..3).await.unwrap_err().kind(), Kind::Damaged);
    assert_eq!(store.head(KEY).await.unwrap(), None);
    assert!(store.list("packs").await.unwrap().is_empty());
    assert_eq!(store.list("packs").await.unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_crash_stops_everything_at_the_chosen_write() {
    for (when, there) in [(When::Before, false), (When::After, true)] {
        let inner = Store::in_memory();
        let faults = Faults::new();
        let store = Store::with_faults(inner.clone(), faults.clone());
        faults.crash_at_write(2, when);
        store.create("a", bytes("1")).await.unwrap();
        assert!(!faults.crashed());
        assert_eq!(store.create("b", bytes("2")).await.unwrap_err().kind(), Kind::Failed);
        assert!(faults.crashed());
        assert!(store.get("a").await.is_err() && store.list("").await.is_err());
        assert_eq!(inner.head("b").await.unwrap().is_some(), there);
        faults.clear();
        assert_eq!(store.create("b", bytes("2")).await.unwrap(), if there { Created::Same } else { Created::New });
        assert_eq!(faults.keys(Verb::Create), if there { vec!["a"] } else { vec!["a", "b"] });
    }
}

#[tokio::test(start_paused = true)]
async fn stored_objects_can_be_damaged_past_rules_and_log() {
    let (store, faults) = faulty();
    store.create(KEY, bytes("abc")).await.unwrap();
    let calls = faults.calls().len();
    faults.add(Rule::any().always().then(Effect::Fail(Kind::Failed)));
    faults::flip_byte(&store, KEY, 0).await.unwrap();
    faults::truncate(&store, KEY, 2).await.unwrap();
    faults.clear();
    assert_eq!(faults.calls().len(), calls);
    assert_eq!(store.get(KEY).await.unwrap().as_ref(), [!b'a', b'b']);
    faults::remove(&store, KEY).await.unwrap();
    assert_eq!(faults::remove(&store, KEY).await.unwrap_err().kind(), Kind::NotFound);
}

#[tokio::test(start_paused = true)]
async fn the_probe_sees_what_a_store_cannot_do() {
    let probe = |effects: Vec<(Verb, Effect)>| async move {
        let (store, faults) = faulty();
        for (verb, effect) in effects {
            faults.add(Rule::on(verb).below("probe/").always().then(effect));
        }
        store.probe().await
    };
    let good = probe(vec![]).await.unwrap();
    assert!(good.is_safe() && good.delete && good.delete_refusal.is_none(), "{good}");
    let ignores = probe(vec![(Verb::Create, Effect::IgnoreCondition)]).await.unwrap();
    assert!(!ignores.conditional_create && !ignores.is_safe() && ignores.read_after_write, "{ignores}");
    let locked = probe(vec![(Verb::Delete, Effect::Fail(Kind::Failed))]).await.unwrap();
    assert!(locked.is_safe() && !locked.delete && locked.delete_refusal.is_some(), "{locked}");
    let undead = probe(vec![(Verb::Delete, Effect::Lie)]).await.unwrap();
    assert!(undead.is_safe() && !undead.delete, "{undead}");
    let lies = probe(vec![(Verb::Create, Effect::Lie)]).await.unwrap();
    assert!(!lies.read_after_write && !lies.is_safe(), "{lies}");
    let blind = probe(vec![(Verb::List, Effect::Hide)]).await.unwrap();
    assert!(!blind.list_after_write && !blind.is_safe(), "{blind}");
    let short = probe(vec![(Verb::GetRange, Effect::Cut(1))]).await.unwrap();
    assert!(!short.range_reads && !short.is_safe(), "{short}");
    let away = probe(vec![(Verb::Create, Effect::Fail(Kind::Unavailable))]).await.unwrap_err();
    assert_eq!(away.kind(), Kind::Unavailable);
    // An answer lost once is no reason to refuse a store.
    let (store, faults) = faulty();
    faults.add(Rule::on(Verb::Create).then(Effect::FailAfter(Kind::Unavailable)));
    assert!(store.probe().await.unwrap().is_safe());
}

#[tokio::test]
async fn single_writer_mode_keeps_the_rules_on_a_store_without_conditions() {
    let faults = Faults::new();
    let mut plain = Store::with_faults(Store::in_memory(), faults.clone());
    Arc::get_mut(&mut plain.0).unwrap().single_writer = true;
    faults.add(Rule::on(Verb::Create).always().then(Effect::IgnoreCondition));
    assert_eq!(plain.create(KEY, bytes("a")).await.unwrap(), Created::New);
    assert_eq!(plain.create(KEY, bytes("a")).await.unwrap(), Created::Same);
    assert_eq!(plain.create(KEY, bytes("b")).await.unwrap_err().kind(), Kind::AlreadyExists);
    assert_eq!(plain.get(KEY).await.unwrap(), "a");
}

/// Two processes of one host that see the same place: of two that create one object one is told, and nothing is overwritten.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_processes_of_one_host_one_creates_on_a_store_without_conditions() {
    let (place, folder) = (Store::in_memory(), tempfile::tempdir().unwrap());
    let process = || {
        let faults = Faults::new();
        let mut store = Store::with_faults(place.clone(), faults.clone());
        let inner = Arc::get_mut(&mut store.0).unwrap();
        (inner.single_writer, inner.alone) = (true, Some(folder.path().join("alone")));
        // Between the look and the write, which has no condition, there is time.
        faults.add(Rule::on(Verb::Create).then(Effect::Delay(Duration::from_millis(300))));
        store
    };
    let (one, other) = (process(), process());
    let (one, other) = tokio::join!(one.create(KEY, bytes("one")), other.create(KEY, bytes("other")));
    let there = place.get(KEY).await.unwrap();
    match (one, other) {
        (Ok(Created::New), Err(error)) => assert!(error.kind() == Kind::AlreadyExists && there == "one", "{error:?}"),
        (Err(error), Ok(Created::New)) => assert!(error.kind() == Kind::AlreadyExists && there == "other", "{error:?}"),
        both => panic!("{both:?}"),
    }
}

#[tokio::test]
async fn keys_that_could_leave_the_root_never_reach_the_place() {
    let (store, faults) = faulty();
    let long = "a".repeat(201);
    for key in ["", "/", "/a", "a/", "a//b", "..", "a/../b", ".", "a#1", "a b", "ä", "a\\b", "a\0", "%2e", long.as_str()] {
        assert_eq!(store.create(key, Bytes::new()).await.unwrap_err().kind(), Kind::Bug, "{key:?}");
        assert_eq!(store.delete(key).await.unwrap_err().kind(), Kind::Bug, "{key:?}");
    }
    assert_eq!(store.list("../x").await.unwrap_err().kind(), Kind::Bug);
    assert!(faults.calls().is_empty());
}

#[tokio::test(start_paused = true)]
async fn requests_in_flight_and_bytes_per_second_are_limited() {
    let faults = Faults::new();
    let mut store = Store::with_faults(Store::in_memory(), faults.clone());
    Arc::get_mut(&mut store.0).unwrap().limits = Limits::new(2, Some(1000), None);
    faults.add(Rule::on(Verb::Head).always().then(Effect::Delay(Duration::from_secs(1))));
    let start = tokio::time::Instant::now();
    futures::future::join_all((0..6).map(|_| store.head(KEY))).await;
    assert_eq!(start.elapsed().as_secs(), 3);
    faults.clear();
    let start = tokio::time::Instant::now();
    for number in 0..6 {
        store.create(&format!("k{number}"), Bytes::from(vec![0; 1000])).await.unwrap();
    }
    assert!((4..=5).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    assert_eq!(store.metrics().uploaded_bytes(), 6000);
}

#[test]
fn urls_are_checked_before_anything_is_contacted() {
    let open = |url: &str| Store::open(&StoreConfig::at(url));
    for bad in
        ["", "/var/backup", "backup", "ftp://host/x", "s3://", "s3:///x", "s3://b:9000/x", "s3://b/a//b", "file://host/x", "s3://b/a b"]
    {
        assert_eq!(open(bad).unwrap_err().kind(), Kind::Usage, "{bad}");
    }
    for secret in ["s3://user:hunter2@bucket/x", "s3://bucket/x?sig=hunter2", "s3://hunter2@bucket", "hunter2"] {
        let error = open(secret).unwrap_err();
        let text = format!("{error:?} {:?}", error.hint_text());
        assert!(error.kind() == Kind::Usage && !text.contains("hunter2"), "{text}");
    }
    let local = open("file:///var/lib/with%20space").unwrap();
    assert!(local.is_local());
    assert_eq!(local.describe(), "file:///var/lib/with space");
}

fn keyed(url: &str, endpoint: Option<&str>) -> StoreConfig {
    StoreConfig {
        endpoint: endpoint.map(str::to_owned),
        access_key: Some(Credential::new("account")),
        secret_key: Some(Credential::new("c2VjcmV0")),
        ..StoreConfig::at(url)
    }
}

#[test]
fn plain_http_goes_to_this_machine_only_unless_allowed_in_so_many_words() {
    for url in ["s3://bucket/x", "az://bucket/x"] {
        for fine in ["https://example.org", "http://localhost:1", "http://127.0.0.1:1", "http://[::1]:1"] {
            Store::open(&keyed(url, Some(fine))).unwrap();
        }
        for bad in ["http://example.org", "http://10.0.0.1", "http://localhost.example.org", "ftp://x", "example.org", "https://u:p@x"] {
            assert_eq!(Store::open(&keyed(url, Some(bad))).unwrap_err().kind(), Kind::Usage, "{url} {bad}");
        }
        let allowed = StoreConfig { allow_http: true, ..keyed(url, Some("http://example.org")) };
        Store::open(&allowed).unwrap();
    }
}

#[test]
fn stores_describe_themselves_without_secrets() {
    let store = Store::open(&keyed("s3://bucket/pre/fix/", Some("https://s3.example.org/"))).unwrap();
    assert_eq!(store.describe(), "s3://bucket/pre/fix at https://s3.example.org");
    assert!(!store.is_local());
    assert!(!format!("{store:?}").contains("account"));
    assert_eq!(Store::open(&keyed("az://box/x", None)).unwrap().describe(), "az://box/x");
}

#[test]
fn half_of_the_keys_is_refused() {
    for url in ["s3://bucket", "az://bucket"] {
        let half = StoreConfig { secret_key: None, ..keyed(url, None) };
        assert_eq!(Store::open(&half).unwrap_err().kind(), Kind::Usage, "{url}");
    }
    let token = StoreConfig { session_token: Some(Credential::new("t")), ..StoreConfig::at("s3://bucket") };
    assert_eq!(Store::open(&token).unwrap_err().kind(), Kind::Usage);
}

#[test]
fn google_stores_open_with_a_service_account_file_and_say_what_is_wrong_with_it() {
    let at = |path: &std::path::Path| StoreConfig {
        access_key: Some(Credential::new(path.to_str().unwrap())),
        ..StoreConfig::at("gs://bucket/x")
    };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("account.json");
    let error = Store::open(&at(&file)).unwrap_err();
    assert_eq!(error.kind(), Kind::Usage, "{error:?}");
    let account = r#"{"private_key":"","private_key_id":"","client_email":"","gcs_base_url":"https://localhost:1","disable_oauth":true}"#;
    std::fs::write(&file, account).unwrap();
    assert_eq!(Store::open(&at(&file)).unwrap().describe(), "gs://bucket/x");
    let both = StoreConfig { secret_key: Some(Credential::new("x")), ..at(&file) };
    assert_eq!(Store::open(&both).unwrap_err().kind(), Kind::Usage);
}

#[tokio::test]
async fn many_deletes_are_answered_in_their_order() {
    let base = tempfile::tempdir().unwrap();
    let local = Store::open(&StoreConfig { url: format!("file://{}", base.path().display()), ..StoreConfig::default() }).unwrap();
    for store in [local, Store::in_memory()] {
        let keys: Vec<String> = (0..300).map(|number| format!("packs/{:02}/{number}", number % 40)).collect();
        for key in &keys {
            store.create(key, Bytes::from_static(b"x")).await.unwrap();
        }
        store.create("packs/00/stays", Bytes::new()).await.unwrap();
        let mut asked = keys.clone();
        asked.insert(7, "packs/01/never-there".to_owned());
        asked.insert(9, "../outside".to_owned());
        let answers = store.delete_all(&asked).await;
        assert_eq!(answers.len(), asked.len());
        for (key, answer) in asked.iter().zip(&answers) {
            assert_eq!(answer.is_err(), key.starts_with(".."), "{key}: {answer:?}");
        }
        let left: Vec<String> = store.list("").await.unwrap().into_iter().map(|info| info.key).collect();
        assert_eq!(left, ["packs/00/stays"]);
        assert_eq!(store.metrics().verb(Verb::Delete).requests, 301);
    }
}

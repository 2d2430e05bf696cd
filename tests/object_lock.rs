//! Object Lock on a real server: what is committed outlives the credentials that wrote it.
#![expect(clippy::unwrap_used, reason = "a test fails by it; clippy knows only functions marked as tests")]
#![expect(clippy::format_push_string, reason = "texts of a test, made once")]

mod support;
#[path = "support/workspace.rs"]
mod workspace;

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use lifeboat::error::Kind;
use lifeboat::event::{Cancel, Silent};
use lifeboat::id::Name;
use lifeboat::repo::{OpenOptions, Passphrase, Repository, Role, UNLOCKED, object_lock};
use lifeboat::store::{Credential, LockMode, ObjectLock, Store, StoreConfig, Version};
use support::s3::{Bucket, LOCKED, Rclone, SeaweedFs};
use workspace::{Workspace, text};

fn server() -> &'static Bucket {
    static SHARED: OnceLock<SeaweedFs> = OnceLock::new();
    SHARED.get_or_init(SeaweedFs::start_locked).bucket()
}

const LOCK: ObjectLock = object_lock(LockMode::Governance, days(30), days(30), days(30));

const fn days(days: u64) -> Duration {
    Duration::from_hours(days * 24)
}

/// A store at `prefix` of the locked bucket, by an identity of the server.
fn config(prefix: &str, identity: &str) -> StoreConfig {
    StoreConfig {
        url: format!("s3://{LOCKED}/{prefix}"),
        access_key: Some(Credential::new(identity)),
        secret_key: Some(Credential::new(Bucket::secret_of(identity))),
        object_lock: Some(LOCK),
        ..server().at("")
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// A workspace whose repository is in `bucket` at `prefix`; `lock` stands as it is.
fn plan(workspace: &Workspace, bucket: &str, prefix: &str, lock: &str) {
    let file = workspace.path("plans/crm.toml");
    workspace.write_plan("keep = { last = 1 }");
    let own = std::fs::read_to_string(&file).unwrap();
    let url = format!("url = \"file://{}/repository\"", workspace.folder.path().display());
    assert!(own.contains(&url));
    let place = format!(
        "url = \"s3://{bucket}/{prefix}\"\nendpoint = \"{}\"\nregion = \"us-east-1\"\n\
         access_key = {{ env = \"STORE_KEY\" }}\nsecret_key = {{ env = \"STORE_SECRET\" }}\n{lock}",
        server().endpoint()
    );
    std::fs::write(&file, own.replace(&url, &place)).unwrap();
}

const GOVERNED: &str = "object_lock = { mode = \"governance\", retain = \"30d\" }";

/// Runs the program with the keys of an identity: exit code and document.
fn run(workspace: &Workspace, identity: &str, words: &[&str]) -> (i32, serde_json::Value) {
    let secret = if identity == Bucket::keys().0 { Bucket::keys().1.to_owned() } else { Bucket::secret_of(identity) };
    let mut command = workspace.command(words);
    let output = command.arg("--json").env("STORE_KEY", identity).env("STORE_SECRET", secret).output().unwrap();
    let document = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{words:?}: {error}: {}\n{}", text(&output.stdout), text(&output.stderr)));
    (output.status.code().unwrap(), document)
}

/// The same, which must end with `code`.
fn expect(workspace: &Workspace, identity: &str, code: i32, words: &[&str]) -> serde_json::Value {
    let (found, document) = run(workspace, identity, words);
    assert_eq!(found, code, "{words:?}: {document:#}");
    document
}

fn versions(prefix: &str) -> Vec<Version> {
    let store = Store::open(&config(prefix, "careless")).unwrap();
    runtime().block_on(store.versions("")).unwrap()
}

/// That no version can be destroyed, and no date brought nearer: with the writer's credentials, and with those of one who was given every right on objects.
fn cannot_be_destroyed(prefix: &str, committed: &[Version]) {
    let until = (Utc::now() + TimeDelta::seconds(30)).format("%Y-%m-%dT%H:%M:%SZ");
    let sooner = format!("<Retention><Mode>GOVERNANCE</Mode><RetainUntilDate>{until}</RetainUntilDate></Retention>");
    let bypass = [("x-amz-bypass-governance-retention", "true")];
    assert!(!committed.is_empty());
    for identity in ["writer", "careless"] {
        let secret = Bucket::secret_of(identity);
        for version in committed {
            let (path, query) = (format!("{LOCKED}/{prefix}/{}", version.key), format!("versionId={}", version.version));
            for headers in [&[][..], &bypass] {
                let keys = (identity, secret.as_str());
                assert_eq!(server().signed(("DELETE", &path, &query), headers, "", keys).0, 403, "{identity} {path}");
                let retention = format!("retention=&{query}");
                assert_eq!(server().signed(("PUT", &path, &retention), headers, &sooner, keys).0, 403, "{identity} {path}");
            }
        }
    }
}

fn wait_until_after(moment: DateTime<Utc>) {
    let bound = Instant::now() + Duration::from_secs(10);
    while Utc::now() <= moment {
        assert!(Instant::now() < bound);
        std::thread::yield_now();
    }
}

#[test]
fn nothing_committed_is_destroyed_and_everything_comes_back() {
    let (prefix, admin) = ("main1", Bucket::keys().0);
    let workspace = Workspace::new("");
    plan(&workspace, LOCKED, prefix, GOVERNED);
    // A writer makes no key slots.
    expect(&workspace, admin, 0, &["repo", "init", "main"]);
    let doctor = expect(&workspace, "writer", 0, &["doctor", "crm"]);
    assert!(doctor.to_string().contains("a locked version cannot be destroyed with these credentials"), "{doctor:#}");
    expect(&workspace, "writer", 0, &["backup", "crm"]);
    let second = expect(&workspace, "writer", 0, &["backup", "crm"]);
    assert!(second.get("locks").is_none(), "looked at a moment ago: {second:#}");

    // Every object of it is locked for at least what was asked for, from its first moment.
    let committed: Vec<Version> =
        versions(prefix).into_iter().filter(|version| !version.marker && LOCK.of(&version.key).is_some()).collect();
    let promised = Utc::now() + TimeDelta::days(30);
    let store = Store::open(&config(prefix, "writer")).unwrap();
    let runtime = runtime();
    for version in &committed {
        let (mode, until) = runtime.block_on(store.lock_of(&version.key, &version.version)).unwrap().unwrap();
        assert!(mode == LockMode::Governance && until > promised, "{}: {until}", version.key);
    }
    assert!(["format", "keys/", "packs/", "index/", "snapshots/"].iter().all(|of| committed.iter().any(|v| v.key.starts_with(of))));

    let moment = committed.iter().map(|version| version.modified).max().unwrap();
    wait_until_after(moment + TimeDelta::seconds(2));
    cannot_be_destroyed(prefix, &committed);
    for identity in ["writer", "careless"] {
        let keys = (identity, &*Bucket::secret_of(identity));
        let versioning = "<VersioningConfiguration><Status>Suspended</Status></VersioningConfiguration>";
        assert_eq!(server().signed(("PUT", LOCKED, "versioning="), &[], versioning, keys).0, 403);
    }
    // The writer cannot even hide anything; who can hides and overwrites.
    let writer = Bucket::secret_of("writer");
    let careless = Bucket::secret_of("careless");
    for (at, version) in committed.iter().enumerate() {
        let path = format!("{LOCKED}/{prefix}/{}", version.key);
        assert_eq!(server().signed(("DELETE", &path, ""), &[], "", ("writer", &writer)).0, 403, "{path}");
        let keys = ("careless", careless.as_str());
        let (status, body) = match at % 2 {
            0 => server().signed(("PUT", &path, ""), &[], "all your base", keys),
            _ => server().signed(("DELETE", &path, ""), &[], "", keys),
        };
        assert!((200..300).contains(&status), "{path}: {status} {body}");
    }
    let (code, document) = run(&workspace, "writer", &["backup", "crm"]);
    assert!(code != 0 && code != 3, "{document:#}");

    // Back, as it was.
    let at = (moment + TimeDelta::seconds(1)).to_rfc3339();
    let shown = expect(&workspace, admin, 0, &["repo", "undelete", "main", "--at", &at, "--dry-run"]);
    assert_eq!(shown["deleted"].as_array().unwrap().len() + shown["overwritten"].as_array().unwrap().len(), committed.len(), "{shown:#}");
    assert_eq!(shown["brought_back"], 0);
    let done = expect(&workspace, admin, 0, &["repo", "undelete", "main", "--at", &at]);
    assert_eq!(done["brought_back"], committed.len());
    let again = expect(&workspace, admin, 0, &["repo", "undelete", "main", "--at", &at]);
    assert_eq!((&again["brought_back"], &again["objects"]), (&0.into(), &done["objects"]));
    expect(&workspace, "writer", 0, &["verify", "main", "--data"]);
    let target = workspace.path("back");
    expect(&workspace, "reader", 0, &["restore", "crm", "--latest", "--to", target.to_str().unwrap(), "--yes"]);
    assert_eq!(std::fs::read_to_string(target.join("attachments/marked.txt")).unwrap(), workspace::MARKER);

    // And on it goes: the same bytes in two versions are no alarm.
    std::fs::write(workspace.made.attachments.join("new.txt"), "new").unwrap();
    std::fs::remove_dir_all(workspace.path("state")).unwrap();
    let after = expect(&workspace, "writer", 0, &["backup", "crm"]);
    assert!(after["locks"]["objects"].as_u64().unwrap() > committed.len() as u64, "{after:#}");
    // A store that refuses to delete is told, and not fatal.
    let refused = expect(&workspace, "writer", 1, &["prune", "crm"]);
    assert!(refused.to_string().contains("retention/"), "a writer removes nothing from the ledger's view: {refused:#}");
    let pruned = expect(&workspace, "keeper", 0, &["prune", "crm"]);
    assert!(pruned["snapshots_removed"].as_u64().unwrap() > 0 && pruned["collection"]["refused"].as_u64().unwrap() > 0, "{pruned:#}");
    let pruned = expect(&workspace, "maintainer", 0, &["prune", "crm"]);
    assert_eq!(pruned["collection"]["refused"], 0, "{pruned:#}");
    // What these roles are not for.
    for (identity, job) in [("reader", "backup"), ("auditor", "backup")] {
        std::fs::write(workspace.made.attachments.join("new.txt"), format!("{identity} {job}")).unwrap();
        let (code, document) = run(&workspace, identity, &[job, "crm"]);
        assert_eq!(code, 1, "{identity} {job}: {document:#}");
    }
}

#[test]
fn dates_move_on_while_they_are_needed_and_tampering_is_told() {
    let runtime = runtime();
    let folder = tempfile::tempdir().unwrap();
    let open = |identity: &str| Store::open(&config("main2", identity)).unwrap();
    let options = || OpenOptions { cache: Some(folder.path().join("cache")), workers: 1 };
    let passphrase = Passphrase::new("correct horse battery staple");
    let start = Utc::now();
    let (repository, _) = Repository::init(open("maintainer"), runtime.handle().clone(), &passphrase, &options(), start).unwrap();
    let keep = |now: DateTime<Utc>, always: bool| repository.keep_locked(now, always, &Silent, &Cancel::default());

    let first = keep(start, false).unwrap().unwrap();
    assert_eq!((first.objects, first.asked, first.extended), (4, 4, 0), "the format, two key slots and their event: {first:?}");
    assert_eq!(keep(start, false).unwrap(), None, "not again so soon");
    let known = keep(start, true).unwrap().unwrap();
    assert_eq!((known.objects, known.asked, known.extended), (4, 0, 0), "{known:?}");
    let later = start + TimeDelta::days(6);
    let moved = keep(later, false).unwrap().unwrap();
    assert_eq!((moved.objects, moved.extended), (4, 4), "{moved:?}");
    for version in versions("main2").iter().filter(|version| LOCK.of(&version.key).is_some()) {
        let (_, until) = runtime.block_on(open("reader").lock_of(&version.key, &version.version)).unwrap().unwrap();
        assert!(until >= later + TimeDelta::days(37), "{}: {until}", version.key);
    }
    // Another machine, which knows nothing, asks.
    std::fs::remove_dir_all(folder.path().join("cache")).unwrap();
    std::fs::create_dir_all(folder.path().join("cache").join(repository.id().to_string())).unwrap();
    let asked = keep(later, false).unwrap().unwrap();
    assert_eq!((asked.asked, asked.extended), (4, 0), "{asked:?}");

    // Who reads only cannot keep anything locked, and says so.
    let mut reading = config("main2", "reader");
    reading.object_lock = Some(object_lock(LockMode::Governance, days(90), days(90), days(90)));
    let other = Repository::open(Store::open(&reading).unwrap(), runtime.handle().clone(), &passphrase, &options()).unwrap();
    assert_eq!(other.keep_locked(later, true, &Silent, &Cancel::default()).unwrap_err().kind(), Kind::Failed);

    // Somebody writes over the format object: told by each run, not only by the first.
    let keys = ("careless", &*Bucket::secret_of("careless"));
    let path = format!("{LOCKED}/main2/format");
    assert_eq!(server().signed(("PUT", &path, ""), &[], "all your base", keys).0, 200);
    let later = later + TimeDelta::days(1);
    for _ in 0..2 {
        let told = keep(later, false).unwrap().unwrap();
        assert!(told.alarms.iter().any(|alarm| alarm.starts_with("format was overwritten by somebody else")), "{told:?}");
    }
    assert_eq!(server().signed(("DELETE", &path, ""), &[], "", keys).0, 204);
    let told = keep(later, false).unwrap().unwrap();
    assert!(told.alarms.iter().any(|alarm| alarm.starts_with("format was deleted by somebody else")), "{told:?}");
}

/// The usual way to have it: backups to a place nearby, copies to a bucket that nobody can empty.
#[test]
fn copies_are_locked_too() {
    let (prefix, admin) = ("main4", Bucket::keys().0);
    let mut more = String::from("[[plan.crm.copy]]\nto = \"vault\"\n[repository.vault]\npassphrase = { env = \"CRM_PASSPHRASE\" }\n");
    more += &format!("url = \"s3://{LOCKED}/{prefix}\"\nendpoint = \"{}\"\nregion = \"us-east-1\"\n", server().endpoint());
    more += "access_key = { env = \"STORE_KEY\" }\nsecret_key = { env = \"STORE_SECRET\" }\n";
    let workspace = Workspace::ready(&format!("{more}{GOVERNED}\n"));
    expect(&workspace, admin, 0, &["repo", "init", "vault"]);
    expect(&workspace, "writer", 0, &["backup", "crm"]);
    let copied = expect(&workspace, "writer", 0, &["copy", "crm", "--to", "vault"]);
    assert_eq!(copied["snapshots"].as_array().unwrap().len(), 1, "{copied:#}");

    let promised = Utc::now() + TimeDelta::days(30);
    let store = Store::open(&config(prefix, "reader")).unwrap();
    let committed: Vec<Version> =
        versions(prefix).into_iter().filter(|version| !version.marker && LOCK.of(&version.key).is_some()).collect();
    assert!(["packs/", "index/", "snapshots/"].iter().all(|of| committed.iter().any(|version| version.key.starts_with(of))));
    let careless = Bucket::secret_of("careless");
    for version in &committed {
        let (_, until) = runtime().block_on(store.lock_of(&version.key, &version.version)).unwrap().unwrap();
        assert!(until > promised, "{}: {until}", version.key);
        let (path, query) = (format!("{LOCKED}/{prefix}/{}", version.key), format!("versionId={}", version.version));
        let bypass = [("x-amz-bypass-governance-retention", "true")];
        assert_eq!(server().signed(("DELETE", &path, &query), &bypass, "", ("careless", &careless)).0, 403, "{path}");
    }
    // A copy that somebody wrote over is no success, in whatever way the next one notices.
    let snapshot = committed.iter().find(|version| version.key.starts_with("snapshots/")).unwrap();
    let path = format!("{LOCKED}/{prefix}/{}", snapshot.key);
    assert_eq!(server().signed(("DELETE", &path, ""), &[], "", ("careless", &careless)).0, 204);
    std::fs::remove_dir_all(workspace.path("state")).unwrap();
    expect(&workspace, "writer", 0, &["backup", "crm"]);
    let (code, told) = run(&workspace, "writer", &["copy", "crm", "--to", "vault"]);
    assert_eq!(code, 20, "{told:#}");
    assert!(told.to_string().contains("was deleted by somebody else"), "{told:#}");
    let at = (Utc::now() + TimeDelta::hours(1)).to_rfc3339();
    assert_eq!(run(&workspace, admin, &["repo", "undelete", "vault", "--at", &at]).0, 2, "a moment to come");
}

#[test]
fn a_bucket_that_does_not_enforce_it_is_never_green() {
    // No Object Lock in the bucket.
    let workspace = Workspace::new("");
    let admin = Bucket::keys().0;
    let prefix = format!("unlocked-{}", std::process::id());
    plan(&workspace, "lifeboat", &prefix, GOVERNED);
    let refused = expect(&workspace, admin, 1, &["repo", "init", "main"]);
    assert!(refused.to_string().contains("Object Lock"), "{refused:#}");
    plan(&workspace, "lifeboat", &format!("{prefix}b"), "");
    expect(&workspace, admin, 0, &["repo", "init", "main"]);
    expect(&workspace, admin, 0, &["backup", "crm"]);
    plan(&workspace, "lifeboat", &format!("{prefix}b"), GOVERNED);
    let refused = expect(&workspace, admin, 1, &["backup", "crm"]);
    assert!(refused.to_string().contains("does not enforce it"), "{refused:#}");
    assert_eq!(expect(&workspace, admin, 0, &["snapshots", "crm"])["snapshots"].as_array().unwrap().len(), 1);
    let (code, doctor) = run(&workspace, admin, &["doctor", "crm"]);
    assert!(code == 2 && doctor.to_string().contains("it does not lock objects"), "{doctor:#}");

    // Object Lock, and credentials that may undo it.
    plan(&workspace, LOCKED, "main3", GOVERNED);
    expect(&workspace, admin, 0, &["repo", "init", "main"]);
    let told = expect(&workspace, admin, 3, &["backup", "crm"]);
    assert!(told["incomplete"] == true && told["warnings"].to_string().contains("which may bypass it"), "{told:#}");
    assert_eq!(run(&workspace, admin, &["doctor", "crm"]).0, 2);
    // Repository and snapshot are whole all the same, and were locked by the bucket.
    expect(&workspace, admin, 0, &["verify", "main", "--data"]);

    // A server that takes the wish and forgets it.
    let rclone = Rclone::start();
    let config = StoreConfig { object_lock: Some(LOCK), single_writer: true, ..rclone.bucket().fresh() };
    let store = Store::open(&config).unwrap();
    let error = runtime().block_on(store.create("packs/x", "x".into())).unwrap_err();
    assert!(error.kind() == Kind::Failed && error.to_string().contains("keeps no versions"), "{error:?}");
    let probe = runtime().block_on(store.probe_lock()).unwrap();
    assert!(!probe.keeps && !probe.enforces(LockMode::Compliance), "{probe}");
    let free = Store::open(&StoreConfig { object_lock: None, ..config }).unwrap();
    runtime().block_on(free.create("packs/y", "y".into())).unwrap();
}

/// Credentials that may only read say nothing of the bucket, and are in order where nothing writes by itself.
#[test]
fn a_machine_that_only_restores_is_told_apart_from_a_bad_bucket() {
    let (prefix, admin) = ("main11", Bucket::keys().0);
    let workspace = Workspace::new("");
    plan(&workspace, LOCKED, prefix, GOVERNED);
    expect(&workspace, admin, 0, &["repo", "init", "main"]);
    expect(&workspace, "writer", 0, &["backup", "crm"]);
    for identity in ["reader", "auditor"] {
        let doctor = expect(&workspace, identity, 0, &["doctor", "crm"]);
        let checks = doctor["checks"].as_array().unwrap();
        let store = checks.iter().find(|check| check["name"] == "store").unwrap();
        assert!(store["ok"] == true && store["message"].as_str().unwrap().contains("these credentials may not write there"), "{store:#}");
        // Its dates can be read; what the bucket enforces cannot be tried.
        assert!(checks.iter().any(|check| check["name"] == "locked objects" && check["ok"] == true), "{doctor:#}");
        assert!(checks.iter().all(|check| check["name"] != "object lock"), "{doctor:#}");
    }
    let file = workspace.path("plans/crm.toml");
    let plan = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, plan.replace("[plan.crm]\n", "[plan.crm]\nschedule = \"15 2 * * *\"\n")).unwrap();
    let doctor = expect(&workspace, "reader", 1, &["doctor", "crm"]);
    assert!(doctor.to_string().contains("the plan has a schedule for what must write (backup)"), "{doctor:#}");
    expect(&workspace, "writer", 0, &["doctor", "crm"]);
    // Credentials that are wrong may not read either.
    let mut command = workspace.command(&["doctor", "crm"]);
    let output = command.env("STORE_KEY", "reader").env("STORE_SECRET", "another").output().unwrap();
    assert!(text(&output.stdout).contains("FAILED store: "), "{}", text(&output.stdout));
}

/// Dates are moved on by runs, and by nothing else.
#[test]
fn locks_that_end_between_runs_are_told() {
    let (prefix, admin) = ("main7", Bucket::keys().0);
    let workspace = Workspace::new("");
    plan(&workspace, LOCKED, prefix, "");
    expect(&workspace, admin, 0, &["repo", "init", "main"]);
    expect(&workspace, admin, 0, &["backup", "crm"]);
    // It was asked for later, and no run has locked anything yet.
    plan(&workspace, LOCKED, prefix, GOVERNED);
    let doctor = expect(&workspace, "writer", 1, &["doctor", "crm"]);
    let of_locked = |doctor: &serde_json::Value| {
        let checks = doctor["checks"].as_array().unwrap();
        checks.iter().find(|check| check["name"] == "locked objects").unwrap_or_else(|| panic!("{doctor:#}")).clone()
    };
    assert!(of_locked(&doctor)["message"].as_str().unwrap().contains("is not locked"), "{doctor:#}");
    expect(&workspace, "writer", 0, &["backup", "crm"]);
    let doctor = expect(&workspace, "writer", 0, &["doctor", "crm"]);
    let told = of_locked(&doctor);
    assert!(told["ok"] == true && told["message"].as_str().unwrap().contains("objects, locked until "), "{doctor:#}");
    let (_, status) = run(&workspace, "reader", &["status"]);
    assert!(!status.to_string().contains("lock-lapsed"), "{status:#}");

    let runtime = runtime();
    let (folder, passphrase) = (tempfile::tempdir().unwrap(), Passphrase::new(workspace::PASSPHRASE));
    let options = OpenOptions { cache: Some(folder.path().to_owned()), workers: 1 };
    let store = Store::open(&config(prefix, "reader")).unwrap();
    let repository = Repository::open(store, runtime.handle().clone(), &passphrase, &options).unwrap();
    let manifests = repository.manifests(None).unwrap();
    let manifests: Vec<_> = manifests.iter().collect();
    let now = Utc::now();
    let sample = |deep: bool, days: i64| repository.sample_locks(&manifests, deep, now + TimeDelta::days(days)).unwrap().unwrap();
    // Two manifests, the format, and packs of nodes and of content.
    let (first, at_the_end) = (sample(true, 0), sample(true, 29));
    assert!(first.looked >= 5 && first.lapsed.is_empty() && first.until["retain"] > now + TimeDelta::days(30), "{first:?}");
    assert_eq!(at_the_end, first, "whoever runs once in `retain` is told nothing");
    for deep in [true, false] {
        let late = sample(deep, 37);
        assert!(late.lapsed.len() == late.looked && late.is_certain(), "{late:?}");
        assert!(late.told().unwrap().contains("no backup, copy or prune has moved dates on"), "{late:?}");
    }
    assert_eq!(sample(false, 0).looked, 2);
}

/// Snapshots and what they consist of, continuous log, and what both need, each with dates of its own.
#[test]
fn each_class_is_locked_for_its_own_time() {
    let (prefix, admin) = ("main9", Bucket::keys().0);
    let workspace = Workspace::new("");
    // Log that outlasts the snapshots that it goes on from would be worth nothing, and so would snapshots that outlast their keys.
    for (classes, why) in [
        ("snapshots = \"40d\"", "`snapshots` of `object_lock` is longer than `retain`, which is 30d"),
        ("logs = \"40d\"", "`logs` of `object_lock` is longer than `retain`, which is 30d"),
        ("snapshots = \"10d\", logs = \"20d\"", "`logs` of `object_lock` is longer than `snapshots`, which is 10d"),
    ] {
        plan(&workspace, LOCKED, prefix, &format!("object_lock = {{ mode = \"governance\", retain = \"30d\", {classes} }}"));
        for words in [&["plan", "check"][..], &["backup", "crm"]] {
            let refused = expect(&workspace, admin, 2, words);
            assert!(refused.to_string().contains(why), "{refused:#}");
        }
    }
    assert_eq!(versions(prefix), []);

    plan(&workspace, LOCKED, prefix, "object_lock = { mode = \"governance\", retain = \"30d\", snapshots = \"20d\", logs = \"10d\" }");
    expect(&workspace, admin, 0, &["repo", "init", "main"]);
    expect(&workspace, "writer", 0, &["backup", "crm"]);
    let runtime = runtime();
    let folder = tempfile::tempdir().unwrap();
    let options = OpenOptions { cache: Some(folder.path().to_owned()), workers: 1 };
    let lock = object_lock(LockMode::Governance, days(30), days(20), days(10));
    let store = Store::open(&StoreConfig { object_lock: Some(lock), ..config(prefix, "writer") }).unwrap();
    let passphrase = Passphrase::new(workspace::PASSPHRASE);
    let repository = Repository::open(store.clone(), runtime.handle().clone(), &passphrase, &options).unwrap();
    let name = |text: &str| Name::new(text).unwrap();
    let log = repository.log(&name("crm"), &name("database"));
    log.append(1, 0, 5, &serde_json::json!({}), b"first").unwrap();
    log.append(1, 5, 9, &serde_json::json!({}), b"next").unwrap();
    log.put_side(&name("00000002.history"), b"history").unwrap();

    let all = versions(prefix);
    let unlocked: Vec<&Version> = all.iter().filter(|version| version.key.starts_with("sessions/") && !version.marker).collect();
    assert!(!unlocked.is_empty());
    for version in unlocked {
        assert_eq!(runtime.block_on(store.lock_of(&version.key, &version.version)).unwrap(), None, "{}", version.key);
    }
    let is_unlocked = |key: &str| UNLOCKED.iter().any(|folder| key.starts_with(folder));
    let committed: Vec<Version> = all.into_iter().filter(|version| !version.marker && !is_unlocked(&version.key)).collect();
    let days_of = |key: &str| match key.split('/').next().unwrap() {
        "packs" | "index" | "snapshots" => 20,
        "logs" => 10,
        "format" | "keys" | "key-events" | "retention" => 30,
        other => panic!("{other}"),
    };
    for of in ["packs/", "index/", "snapshots/", "logs/", "format", "keys/"] {
        assert!(committed.iter().any(|version| version.key.starts_with(of)), "{of}");
    }
    // Each date is between what was asked for and a quarter more after `now`, which is of what `moved` says for its class.
    let dated = |moved: &dyn Fn(i64) -> DateTime<Utc>| {
        for version in &committed {
            let (_, until) = runtime.block_on(store.lock_of(&version.key, &version.version)).unwrap().unwrap();
            let of = days_of(&version.key);
            let from = moved(of);
            let range = from + TimeDelta::days(of)..=from + TimeDelta::hours(of * 30) + TimeDelta::minutes(5);
            assert!(range.contains(&until), "{}: {until} is not in {range:?}", version.key);
        }
    };
    let start = Utc::now();
    dated(&|_| start);
    cannot_be_destroyed(prefix, &committed);

    // Dates of log come nearer sooner, and are moved on alone; then those of snapshots, and of all.
    let of_class = |days: i64| committed.iter().filter(|version| days_of(&version.key) == days).count() as u64;
    let keep = |now: DateTime<Utc>| repository.keep_locked(now, false, &Silent, &Cancel::default()).unwrap();
    let at = |days: i64| start + TimeDelta::days(days);
    let first = keep(start).unwrap();
    assert_eq!((first.objects, first.extended), (committed.len() as u64, 0), "{first:?}");
    assert_eq!(keep(start + TimeDelta::hours(7)), None);
    let logs = keep(at(2)).unwrap();
    assert_eq!((logs.extended, &logs.alarms), (of_class(10), &vec![]), "{logs:?}");
    dated(&|days| if days == 10 { at(2) } else { start });
    let snapshots = keep(at(4)).unwrap();
    assert_eq!(snapshots.extended, of_class(10) + of_class(20), "{snapshots:?}");
    dated(&|days| if days == 30 { start } else { at(4) });
    let rest = keep(at(6)).unwrap();
    assert_eq!(rest.extended, of_class(10) + of_class(30), "{rest:?}");
    dated(&|days| if days == 20 { at(4) } else { at(6) });
    cannot_be_destroyed(prefix, &committed);

    // What ends first is told, by its own name.
    let doctor = expect(&workspace, "writer", 0, &["doctor", "crm"]);
    let checks = doctor["checks"].as_array().unwrap();
    let told = checks.iter().find(|check| check["name"] == "locked objects").unwrap()["message"].as_str().unwrap();
    assert!(["(logs)", "(retain)", "(snapshots)"].iter().all(|class| told.contains(class)), "{told}");
    let manifests = repository.manifests(None).unwrap();
    let manifests: Vec<_> = manifests.iter().collect();
    for deep in [true, false] {
        let sample = |days: i64| repository.sample_locks(&manifests, deep, at(days)).unwrap().unwrap();
        assert!(sample(15).lapsed.is_empty(), "{:?}", sample(15));
        let late = sample(19);
        assert!(late.lapsed.len() == 2 && late.lapsed.iter().all(|lapsed| lapsed.key.starts_with("logs/")), "{late:?}");
        assert!(late.is_certain() && late.told().unwrap().contains("for longer than `logs`"), "{late:?}");
        let later = sample(30);
        assert!(later.lapsed.iter().any(|lapsed| lapsed.class == "snapshots"), "{later:?}");
        assert_eq!(later.until.len(), usize::from(deep), "only the format: {later:?}");
    }
}

/// A repair deletes the piece that rots, and stores it anew under the same name.
#[test]
fn a_piece_of_log_that_was_repaired_is_no_alarm() {
    let runtime = runtime();
    let folder = tempfile::tempdir().unwrap();
    let open = |identity: &str| Store::open(&config("main8", identity)).unwrap();
    let options = OpenOptions { cache: Some(folder.path().to_owned()), workers: 1 };
    let passphrase = Passphrase::new("correct horse battery staple");
    let now = Utc::now();
    let (repository, _) = Repository::init(open("maintainer"), runtime.handle().clone(), &passphrase, &options, now).unwrap();
    let alarms = || repository.keep_locked(now, true, &Silent, &Cancel::default()).unwrap().unwrap().alarms;
    let name = |text: &str| Name::new(text).unwrap();
    let log = repository.log(&name("crm"), &name("db"));
    let facts = serde_json::json!({});
    log.append(1, 0, 5, &facts, b"first").unwrap();
    log.put_side(&name("00000002.history"), b"history").unwrap();
    assert_eq!(alarms(), Vec::<String>::new());
    let careless = Bucket::secret_of("careless");
    let request = |method: &str, key: &str, body: &str| {
        let path = format!("{LOCKED}/main8/{key}");
        let (status, answer) = server().signed((method, &path, ""), &[], body, ("careless", &careless));
        assert!((200..300).contains(&status), "{method} {key}: {status} {answer}");
    };
    // What others put there is not locked, and may go.
    for method in ["PUT", "DELETE"] {
        for key in ["packs/Thumbs.db", "logs/desktop.ini"] {
            request(method, key, "");
        }
        assert_eq!(alarms(), Vec::<String>::new(), "{method}");
    }
    let key_of = |folder: &str| versions("main8").into_iter().map(|version| version.key).find(|key| key.contains(folder)).unwrap();
    // What was committed is rotten, was deleted by the repair, and is there anew.
    let (piece, side) = (key_of("/pieces/"), key_of("/history/"));
    let rotten =
        [piece.replace("0000000000000000-0000000000000005", "0000000000000005-0000000000000009"), side.replace("00000002", "00000003")];
    for key in &rotten {
        request("PUT", key, "rotten");
        request("DELETE", key, "");
    }
    log.append(1, 5, 9, &facts, b"next").unwrap();
    log.put_side(&name("00000003.history"), b"history").unwrap();
    assert_eq!(alarms(), Vec::<String>::new());
    assert_eq!(versions("main8").iter().filter(|version| rotten.contains(&version.key)).count(), 6);
    // What was sound and is rotten now was no repair, and neither was what is rotten in another way.
    for key in [&piece, &side, &rotten[0]] {
        request("PUT", key, "evil");
    }
    let told = alarms();
    for key in [&piece, &side, &rotten[0]] {
        assert!(told.iter().any(|alarm| alarm.starts_with(&format!("{key} was overwritten by somebody else"))), "{told:?}");
    }
}

/// A copy brings log again that a prune of it had removed: sealed anew, of the same content.
#[test]
fn log_that_comes_again_after_a_prune_is_no_alarm_and_what_somebody_put_there_is_one() {
    let runtime = runtime();
    let folder = tempfile::tempdir().unwrap();
    let open = |identity: &str| Store::open(&config("main10", identity)).unwrap();
    let options = OpenOptions { cache: Some(folder.path().to_owned()), workers: 1 };
    let passphrase = Passphrase::new("correct horse battery staple");
    let now = Utc::now();
    let (repository, _) = Repository::init(open("maintainer"), runtime.handle().clone(), &passphrase, &options, now).unwrap();
    let keep = || repository.keep_locked(now, true, &Silent, &Cancel::default()).unwrap().unwrap();
    let name = |text: &str| Name::new(text).unwrap();
    let log = repository.log(&name("crm"), &name("db"));
    let facts = serde_json::json!({});
    let bytes = |piece: u64| vec![u8::try_from(piece).unwrap(); 3000];
    let store = |piece: u64| log.append(1, piece * 3000, piece * 3000 + 3000, &facts, &bytes(piece)).unwrap().piece;
    let pieces: Vec<_> = (0..3).map(store).collect();
    assert_eq!(keep().alarms, Vec::<String>::new());
    let (gone, refusal) = log.remove(&pieces).unwrap();
    assert!(gone.len() == 3 && refusal.is_none());
    let given_up = keep();
    for piece in 0..3 {
        store(piece);
    }
    let first = keep();
    assert_eq!((&first.alarms, first.objects), (&vec![], given_up.objects + 3), "{first:?}");
    let objects = versions("main10");
    let of_log: Vec<&Version> = objects.iter().filter(|version| version.key.contains("/pieces/")).collect();
    assert_eq!(of_log.iter().map(|version| version.marker).collect::<Vec<_>>(), [false, true, false].repeat(3));
    // What is there now is locked for itself, what was removed as long as it was.
    let later = now + TimeDelta::days(12);
    let moved = repository.keep_locked(later, true, &Silent, &Cancel::default()).unwrap().unwrap();
    assert_eq!((&moved.alarms, moved.objects), (&vec![], first.objects), "{moved:?}");
    for version in of_log.iter().filter(|version| !version.marker) {
        let (_, until) = runtime.block_on(open("reader").lock_of(&version.key, &version.version)).unwrap().unwrap();
        assert_eq!(until >= later + TimeDelta::days(30), version.latest, "{until} {version:?}");
    }
    // Again, by a machine that knows nothing, and by one that remembers.
    let keep = || repository.keep_locked(later, true, &Silent, &Cancel::default()).unwrap().unwrap().alarms;
    let cache = folder.path().join(repository.id().to_string()).join("locks");
    std::fs::remove_file(&cache).unwrap();
    assert_eq!((keep(), keep()), (vec![], vec![]));
    // Removed and brought again twice is the same; what is put there by somebody without keys is told, by each run, whether it was hidden before or not, and
    // also where it ends as what was there.
    log.remove(&pieces[..1]).unwrap();
    store(0);
    assert_eq!(keep(), Vec::<String>::new());
    let careless = Bucket::secret_of("careless");
    let request = |method: &str, key: &str, body: &str| {
        let path = format!("{LOCKED}/main10/{key}");
        let (status, answer) = server().signed((method, &path, ""), &[], body, ("careless", &careless));
        assert!((200..300).contains(&status), "{method} {key}: {status} {answer}");
    };
    let mut keys: Vec<&String> = of_log.iter().map(|version| &version.key).collect();
    keys.dedup();
    let mut forged = runtime.block_on(open("reader").get(keys[1])).unwrap().to_vec();
    forged[100] ^= 1;
    request("DELETE", keys[0], "");
    request("PUT", keys[0], "evil");
    request("DELETE", keys[1], "");
    runtime.block_on(open("careless").create(keys[1], forged.into())).unwrap();
    request("PUT", keys[2], "evil");
    for _ in 0..2 {
        let told = keep();
        for key in &keys {
            assert!(told.iter().any(|alarm| alarm.starts_with(&format!("{key} was overwritten by somebody else"))), "{told:?}");
        }
    }
    // Whatever of it can be brought back stays.
    let much_later = later + TimeDelta::days(12);
    repository.keep_locked(much_later, true, &Silent, &Cancel::default()).unwrap().unwrap();
    for key in keys {
        let all = versions("main10");
        let first = all.iter().rfind(|version| version.key == *key).unwrap();
        let (_, until) = runtime.block_on(open("reader").lock_of(key, &first.version)).unwrap().unwrap();
        assert!(until >= much_later + TimeDelta::days(30), "{key}: {until}");
    }
}

/// A thief of the maintainer's key prunes by rules of its own: the snapshots come back, and not only their objects.
#[test]
fn what_a_stolen_key_decided_is_told_and_taken_back() {
    let (prefix, admin) = ("main5", Bucket::keys().0);
    let workspace = Workspace::new("");
    plan(&workspace, LOCKED, prefix, GOVERNED);
    expect(&workspace, admin, 0, &["repo", "init", "main"]);
    let file = workspace.made.attachments.join("note.txt");
    let ids: Vec<String> = (0..3)
        .map(|round| {
            std::fs::write(&file, format!("round {round}")).unwrap();
            expect(&workspace, "writer", 0, &["backup", "crm"])["snapshot"].as_str().unwrap().to_owned()
        })
        .collect();
    expect(&workspace, "maintainer", 0, &["snapshots", "hold", &ids[0], "--reason", "audit"]);
    let moment = versions(prefix).iter().map(|version| version.modified).max().unwrap();
    wait_until_after(moment + TimeDelta::seconds(2));
    let at = (moment + TimeDelta::seconds(1)).to_rfc3339();
    let nothing = expect(&workspace, "maintainer", 0, &["repo", "undelete", "main", "--at", &at]);
    assert!(nothing["decisions"].is_null() && nothing["brought_back"] == 0, "{nothing:#}");

    expect(&workspace, "maintainer", 0, &["snapshots", "release", &ids[0], "--reason", "mine now"]);
    let pruned = expect(&workspace, "maintainer", 0, &["prune", "crm"]);
    assert!(pruned["snapshots_removed"] == 2 && pruned["collection"]["packs_deleted"].as_u64().unwrap() > 0, "{pruned:#}");

    let listed = || expect(&workspace, "reader", 0, &["snapshots", "crm"])["snapshots"].as_array().unwrap().len();
    let shown = expect(&workspace, "maintainer", 3, &["repo", "undelete", "main", "--at", &at, "--with-decisions", "--dry-run"]);
    let removed = |report: &serde_json::Value| {
        let mut removed: Vec<String> =
            report["decisions"]["removed"].as_array().unwrap().iter().map(|id| id.as_str().unwrap().to_owned()).collect();
        removed.sort();
        (removed, report["decisions"]["unheld"].clone(), report["decisions"]["taken_back"].clone())
    };
    assert_eq!(removed(&shown), (ids[..2].to_vec(), serde_json::json!([ids[0]]), false.into()), "{shown:#}");
    assert!(shown["decisions"]["decided"][1]["what"].as_str().unwrap().starts_with("removed 2 snapshots"), "{shown:#}");
    // All objects are there again, and yet the snapshots are not.
    let back = expect(&workspace, "maintainer", 3, &["repo", "undelete", "main", "--at", &at]);
    assert!(back["brought_back"].as_u64().unwrap() > 2 && back["failed"].as_array().unwrap().is_empty(), "{back:#}");
    assert_eq!((removed(&back), listed()), (removed(&shown), 1));
    let taken = expect(&workspace, "maintainer", 0, &["repo", "undelete", "main", "--at", &at, "--with-decisions"]);
    assert_eq!((taken["decisions"]["taken_back"].clone(), listed()), (true.into(), 3), "{taken:#}");
    let again = expect(&workspace, "maintainer", 0, &["repo", "undelete", "main", "--at", &at, "--with-decisions"]);
    assert_eq!(removed(&again), (Vec::new(), serde_json::json!([]), false.into()), "{again:#}");
    expect(&workspace, "writer", 0, &["verify", "main", "--data"]);
    let target = workspace.path("oldest");
    let words = ["restore", "crm", "--snapshot", &ids[0], "--to", target.to_str().unwrap(), "--yes"];
    expect(&workspace, "reader", 0, &words);
    assert_eq!(std::fs::read_to_string(target.join("attachments/note.txt")).unwrap(), "round 0");
    // It is held again; and the collection that comes next knows that all of it is needed.
    let pruned = expect(&workspace, "maintainer", 0, &["prune", "crm"]);
    assert_eq!(pruned["snapshots_removed"], 1, "{pruned:#}");
    assert_eq!((pruned["locks"]["alarms"].as_array().unwrap().len(), listed()), (0, 2), "{pruned:#}");
}

/// The newest entry of the ledger is what nothing misses, and so are key slots.
#[test]
fn entries_of_the_ledger_and_keys_that_somebody_deletes_are_told() {
    let runtime = runtime();
    let folder = tempfile::tempdir().unwrap();
    let open = |identity: &str| Store::open(&config("main6", identity)).unwrap();
    let passphrase = Passphrase::new("correct horse battery staple");
    let options = |name: &str| OpenOptions { cache: Some(folder.path().join(name)), workers: 1 };
    let now = Utc::now();
    let (repository, _) = Repository::init(open("maintainer"), runtime.handle().clone(), &passphrase, &options("here"), now).unwrap();
    let on = |cache: &str| Repository::open(open("maintainer"), runtime.handle().clone(), &passphrase, &options(cache)).unwrap();
    let alarms = |repository: &Repository| repository.keep_locked(now, true, &Silent, &Cancel::default()).unwrap().unwrap().alarms;
    let careless = Bucket::secret_of("careless");
    let hide = |key: &str| {
        let path = format!("{LOCKED}/main6/{key}");
        assert_eq!(server().signed(("DELETE", &path, ""), &[], "", ("careless", &careless)).0, 204, "{key}");
    };
    let there = |folder: &str| -> Vec<Version> {
        versions("main6").into_iter().filter(|version| version.key.starts_with(folder) && version.latest && !version.marker).collect()
    };

    // What the program removes itself is no alarm: slots by command and by a rotation, with their updates, and entries before a base.
    let first = repository.add_key("first", Role::Writer, &Passphrase::new("another one, and long"), now).unwrap();
    let second = repository.add_key("second", Role::Writer, &Passphrase::new("yet another one, and long"), now).unwrap();
    let third = repository.add_key("third", Role::Writer, &Passphrase::new("the last one, and long too"), now).unwrap();
    repository.remove_key(&first.id, None, now).unwrap();
    repository.rotate(&passphrase, &[second.id], false, now).unwrap();
    let repository = on("here");
    repository.rotate(&passphrase, &[], false, now).unwrap();
    let repository = on("here");
    for _ in 0..66 {
        repository.pass_in_ledger("a test", now).unwrap();
    }
    assert_eq!(there("retention/").len(), 3);
    assert_eq!(alarms(&repository), Vec::<String>::new());

    // A slot, by somebody; then it is said that it was meant.
    hide(&format!("keys/{}", third.id));
    let told = alarms(&repository);
    assert!(told.iter().any(|alarm| alarm.starts_with(&format!("keys/{} was deleted by somebody else", third.id))), "{told:?}");
    repository.remove_key(&third.id, None, now).unwrap();
    assert_eq!(alarms(&repository), Vec::<String>::new());
    hide("keys/generation-2");
    assert!(alarms(&repository).iter().any(|alarm| alarm.starts_with("keys/generation-2 was deleted by somebody else")));
    let marker = versions("main6").into_iter().find(|version| version.key == "keys/generation-2" && !version.marker).unwrap();
    runtime.block_on(open("maintainer").bring_back(&marker)).unwrap();
    assert_eq!(alarms(&repository), Vec::<String>::new());

    // The newest entry: told where it was never seen, and not believed where it was.
    let then = there("retention/");
    let newest = then.last().unwrap();
    hide(&newest.key);
    let told = alarms(&on("elsewhere"));
    assert!(told.iter().any(|alarm| alarm.starts_with(&format!("{} was deleted by somebody else", newest.key))), "{told:?}");
    assert_eq!(repository.ledger().unwrap_err().kind(), Kind::Damaged);
    let told = alarms(&repository);
    assert!(told.iter().any(|alarm| alarm.contains("has seen its entry")), "{told:?}");
    // Whoever had not seen it decides something in its place, and more after that.
    let thief = on("elsewhere");
    thief.pass_in_ledger("in its place", now).unwrap();
    thief.pass_in_ledger("and more", now).unwrap();
    let told = alarms(&thief);
    assert!(told.iter().any(|alarm| alarm.starts_with(&format!("{} was overwritten by somebody else", newest.key))), "{told:?}");
    runtime.block_on(open("maintainer").bring_back(newest)).unwrap();
    assert_eq!(repository.ledger().unwrap_err().kind(), Kind::Damaged, "what came later goes on from another one");
    repository.put_ledger_back(&then).unwrap();
    repository.ledger().unwrap();
    assert_eq!(alarms(&repository), Vec::<String>::new());
    // And on it goes, over what was put away.
    for _ in 0..3 {
        repository.pass_in_ledger("on it goes", now).unwrap();
        assert_eq!(alarms(&on("a third")), Vec::<String>::new());
    }
}

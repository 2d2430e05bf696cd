//! Copies in repositories of other kinds with other keys, and what is brought back from them when the first is away or damaged.
#![expect(clippy::unwrap_used, reason = "a test fails by it; clippy knows only functions marked as tests")]
#![expect(clippy::format_push_string, reason = "texts of a test, made once")]

#[path = "support/postgres_world.rs"]
mod postgres_world;
mod support;
#[path = "support/workspace.rs"]
mod workspace;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use lifeboat::entry::{Entry, EntryKind, Layout, Order};
use lifeboat::event::{Cancel, Silent};
use lifeboat::id::Name;
use lifeboat::ops::stats::{UNCHANGED_DELETES, UNCHANGED_LISTS, UNCHANGED_READS, UNCHANGED_WRITES};
use lifeboat::repo::{Added, OpenOptions, Passphrase, Repository};
use lifeboat::store::{Store, Verb};
use postgres_world::World;
use serde_json::Value;
use support::azure::Azurite;
use support::postgres::{Options, distribution_version};
use support::s3::{Bucket, SeaweedFs};
use workspace::{MARKER, Workspace, bare, damage, files, text};

const OTHER: &str = "another-planted-passphrase";

/// A workspace whose plan has copies; `repositories` and `copies` are parts of the plan file.
struct Copies {
    workspace: Workspace,
    bucket: Bucket,
    azure: Option<Azurite>,
}

impl Copies {
    /// A copy in S3, and one in Azure.
    fn with_azure() -> Self {
        Self::make(Some(Azurite::start()))
    }

    /// A copy in S3.
    fn new() -> Self {
        Self::make(None)
    }

    fn make(azure: Option<Azurite>) -> Self {
        let bucket = SeaweedFs::shared().bucket().clone();
        let prefix = bucket.fresh().url;
        let mut more = String::from("[[plan.crm.copy]]\nto = \"offsite\"\n");
        if azure.is_some() {
            more += "[[plan.crm.copy]]\nto = \"cloud\"\n";
        }
        more += &format!(
            "[repository.offsite]\nurl = \"{prefix}\"\nendpoint = \"{}\"\nregion = \"us-east-1\"\npassphrase = {{ env = \"OTHER_PASSPHRASE\" }}\n",
            bucket.endpoint()
        );
        if let Some(azure) = &azure {
            let at = azure.at("crm");
            more += &format!(
                "[repository.cloud]\nurl = \"{}\"\nendpoint = \"{}\"\npassphrase = {{ env = \"OTHER_PASSPHRASE\" }}\n",
                at.url,
                at.endpoint.unwrap()
            );
        }
        let copies = Self { workspace: Workspace::ready(&more), bucket, azure };
        copies.json(&["repo", "init", "offsite"], 0);
        if copies.azure.is_some() {
            copies.json(&["repo", "init", "cloud"], 0);
        }
        copies
    }

    /// Adds keys to the plan and to its first copy.
    fn change_plan(&self, of_plan: &str, of_copy: &str) {
        let path = self.path("plans/crm.toml");
        let plan = fs::read_to_string(&path).unwrap();
        let plan = plan.replacen("[plan.crm]\n", &format!("[plan.crm]\n{of_plan}"), 1);
        fs::write(path, plan.replacen("to = \"offsite\"\n", &format!("to = \"offsite\"\n{of_copy}\n"), 1)).unwrap();
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = self.workspace.command(words);
        let (access, secret) = Bucket::keys();
        command.env("OTHER_PASSPHRASE", OTHER).env("AWS_ACCESS_KEY_ID", access).env("AWS_SECRET_ACCESS_KEY", secret);
        command.env("AZURE_STORAGE_ACCOUNT_NAME", support::azure::ACCOUNT).env("AZURE_STORAGE_ACCOUNT_KEY", support::azure::KEY);
        command
    }

    fn output(&self, words: &[&str]) -> Output {
        self.command(words).arg("--json").output().unwrap()
    }

    fn json(&self, words: &[&str], code: i32) -> Value {
        let output = self.output(words);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {}\n{}", text(&output.stdout), text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{words:?}: {error}: {}", text(&output.stdout)))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.workspace.path(name)
    }

    /// Backs up, after a change.
    fn backup(&self, note: &str) -> Value {
        fs::write(self.path("crm/attachments/note.txt"), note).unwrap();
        self.json(&["backup", "crm"], 0)
    }

    /// Restores with these words to a new folder; what the note says there.
    fn restored(&self, name: &str, words: &[&str], code: i32) -> (Value, String) {
        let target = self.path(name);
        let report = self.json(&[&["restore", "crm", "--to", target.to_str().unwrap(), "--yes"], words].concat(), code);
        assert_eq!(fs::read_to_string(target.join("attachments/marked.txt")).unwrap(), MARKER);
        (report, fs::read_to_string(target.join("attachments/note.txt")).unwrap())
    }

    fn away<T>(&self, work: impl FnOnce() -> T) -> T {
        fs::rename(self.path("repository"), self.path("away")).unwrap();
        let done = work();
        fs::rename(self.path("away"), self.path("repository")).unwrap();
        done
    }
}

fn original(report: &Value) -> String {
    report["snapshot"].as_str().unwrap().to_owned()
}

/// Each repository by its own rules; a copy that cannot be pruned is told, and keeps nothing else from being done.
#[test]
fn a_copy_keeps_what_its_own_rules_say() {
    let copies = Copies::new();
    for note in ["one", "two", "three", "four"] {
        copies.backup(note);
    }
    copies.json(&["copy", "crm", "--to", "offsite"], 0);
    copies.change_plan("keep = { last = 1 }\n", "keep = { last = 2 }");
    let count = |words: &[&str]| copies.json(words, 0)["snapshots"].as_array().unwrap().len();
    let listed = || (count(&["snapshots", "crm"]), count(&["snapshots", "crm", "--repository", "offsite"]));
    let planned = copies.json(&["prune", "crm", "--dry-run"], 0);
    assert_eq!(listed(), (4, 4));
    let done = copies.json(&["prune", "crm"], 0);
    assert_eq!(done["snapshots"], planned["snapshots"]);
    assert_eq!((done["snapshots_removed"].as_u64(), done["copies"][0]["report"]["snapshots_removed"].as_u64()), (Some(3), Some(2)));
    assert_eq!(listed(), (1, 2));
    for repository in ["main", "offsite"] {
        copies.json(&["verify", repository, "--data"], 0);
    }
    // What the copy has given up is not copied again, and it goes on.
    copies.backup("five");
    let copied = copies.json(&["copy", "crm", "--to", "offsite"], 0);
    assert_eq!(copied["snapshots"].as_array().unwrap().len(), 1);
    let (_, note) = copies.away(|| copies.restored("from-pruned-copy", &[], 0));
    assert_eq!(note, "five");
    // By its own name: with the rules that plans have for it.
    assert_eq!(copies.json(&["prune", "offsite"], 0)["snapshots_removed"], 1);
    copies.backup("six");
    let output = copies.command(&["prune", "crm", "--json"]).env("OTHER_PASSPHRASE", "wrong").output().unwrap();
    let done: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), done["snapshots_removed"].as_u64()), (Some(12), Some(2)), "{done}");
    assert_eq!(done["copies"][0]["error"]["kind"], "wrong-key");
}

#[test]
fn copies_with_other_vendors_bring_everything_back_and_say_so() {
    let copies = Copies::with_azure();
    let first = copies.backup("one");
    copies.backup("two");
    let report = copies.json(&["copy", "crm", "--to", "offsite"], 0);
    assert_eq!((report["schema"].as_str(), report["snapshots"].as_array().unwrap().len()), (Some("lifeboat.copy/1"), 2));
    assert_eq!((&report["behind_ms"], report["repository"].as_str()), (&Value::from(0), Some("offsite")));
    let second = &report["snapshots"][1];
    assert!(second["bytes_read"].as_u64().unwrap() < 100_000, "only what changed is read: {second}");
    let again = copies.json(&["copy", "crm", "--to", "offsite"], 0);
    assert_eq!((again["snapshots"].as_array().unwrap().len(), &again["already"]), (0, &Value::from(2)));
    assert_eq!(again["bytes_read"], 0);
    // The newest alone goes to the third vendor; what is older than it is left out from then on.
    let cloud = copies.json(&["copy", "crm", "--to", "cloud", "--last", "1"], 0);
    assert_eq!((cloud["snapshots"].as_array().unwrap().len(), &cloud["left_out"]), (1, &Value::from(1)));
    let cloud = copies.json(&["copy", "crm", "--to", "cloud"], 0);
    assert_eq!((cloud["snapshots"].as_array().unwrap().len(), &cloud["left_out"]), (0, &Value::from(1)));
    for repository in ["offsite", "cloud"] {
        assert_eq!(copies.json(&["verify", repository, "--data"], 0)["findings"].as_array().unwrap().len(), 0);
    }
    assert!(copies.json(&["doctor", "crm"], 0)["checks"].as_array().unwrap().iter().any(|check| check["name"] == "copy to offsite"));
    // What it costs, and everything out without plan files.
    let stats = copies.json(&["repo", "stats", "offsite"], 0);
    assert_eq!((stats["schema"].as_str(), &stats["plans"][0]["snapshots"]), (Some("lifeboat.stats/1"), &Value::from(2)));
    assert!(stats["deduplication_ratio"].as_f64().unwrap() > 1.5, "two snapshots of nearly the same: {stats}");
    assert!(stats["compression_ratio"].as_f64().unwrap() > 1.0 && stats["classes"]["packs"]["objects"].as_u64().unwrap() > 1, "{stats}");
    assert!(copies.json(&["repo", "stats", "main"], 0)["runs"].as_array().unwrap().is_empty(), "the plan has no schedule");
    for _ in 0..2 {
        let report = copies.json(&["repo", "extract", "offsite", "--to", copies.path("out").to_str().unwrap()], 0);
        assert_eq!(report["snapshots"].as_array().unwrap().len(), 2);
        let folder = PathBuf::from(report["snapshots"][1]["folder"].as_str().unwrap());
        assert_eq!(fs::read_to_string(folder.join("attachments/note.txt")).unwrap(), "two");
        let database = rusqlite::Connection::open(folder.join("database/crm.sqlite")).unwrap();
        assert_eq!(database.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0)).unwrap(), "ok");
    }
    copies.json(&["repo", "extract", "offsite", "--plan", "nobody", "--to", copies.path("none").to_str().unwrap()], 13);
    // A drill of the copy compares content by the original's fingerprints.
    let drill = copies.json(&["drill", "run", "crm", "--repository", "offsite"], 0);
    let compared = drill["checks"].as_array().unwrap().iter().filter(|check| check["outcome"] == "passed").count();
    assert!(drill["verdict"] == "passed" && compared > 5, "{drill}");

    // The first repository is away.
    let (report, note) = copies.away(|| {
        let listed = copies.json(&["snapshots", "crm"], 3);
        assert_eq!(listed["snapshots"].as_array().unwrap().len(), 2);
        let problems = copies.json(&["status"], 0)["plans"][0]["problems"].clone();
        assert!(problems.to_string().contains("repository-unreachable"), "{problems}");
        let told = copies.output(&["restore", "crm", "--to", copies.path("dry").to_str().unwrap(), "--dry-run"]);
        assert!(text(&told.stdout).contains("FROM THE COPY offsite"), "{}", text(&told.stdout));
        copies.restored("from-copy", &[], 0)
    });
    assert_eq!((note.as_str(), report["fallback"]["repository"].as_str()), ("two", Some("offsite")));
    assert!(report["warnings"].to_string().contains("FROM THE COPY offsite"), "{report}");
    // By the name that it has in the first repository, which is older on purpose.
    let (report, note) = copies.away(|| copies.restored("by-id", &["--snapshot", &original(&first)], 0));
    assert_eq!((note.as_str(), &report["fallback"]["older"]), ("one", &Value::Null));

    // What the copy lacks is told.
    copies.backup("three");
    let status = copies.json(&["status"], 0);
    assert!(status["plans"][0]["copies"][0]["behind_ms"].as_u64().unwrap() > 0, "{status}");
    let (report, note) = copies.away(|| copies.restored("older", &[], 3));
    assert_eq!(note, "two");
    assert!(report["fallback"]["older"].as_str().unwrap().contains("a later backup made snapshot"), "{report}");
    let (report, note) = copies.restored("own", &[], 0);
    assert_eq!((note.as_str(), &report["fallback"]), ("three", &Value::Null));
}

#[test]
fn damage_in_the_first_is_noticed_never_copied_and_gone_around() {
    let copies = Copies::new();
    copies.backup("one");
    copies.json(&["copy", "crm", "--to", "offsite"], 0);
    let packs = || files(&copies.path("repository/packs"));
    let whole: Vec<(PathBuf, Vec<u8>)> = packs().into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect();
    packs().iter().for_each(|pack| damage(pack));
    // The copy has the very snapshot: all is well, and it is told where it is from.
    let (report, note) = copies.restored("same", &[], 0);
    assert_eq!(
        (note.as_str(), report["fallback"]["repository"].as_str(), &report["fallback"]["older"]),
        ("one", Some("offsite"), &Value::Null)
    );
    for (path, bytes) in whole {
        fs::remove_file(&path).unwrap();
        fs::write(path, bytes).unwrap();
    }
    copies.backup("two");
    // The data of both snapshots.
    packs().iter().for_each(|pack| damage(pack));
    let report = copies.json(&["copy", "crm", "--to", "offsite"], 20);
    assert_eq!(report["snapshots"].as_array().unwrap().len(), 0);
    assert_eq!(report["findings"].as_array().unwrap().len(), 1, "{report}");
    assert_eq!(copies.json(&["verify", "offsite", "--data"], 0)["findings"].as_array().unwrap().len(), 0);
    // The newest cannot be restored, and the copy has an older one: told, and done.
    let (report, note) = copies.restored("restored", &[], 3);
    assert_eq!((note.as_str(), report["fallback"]["repository"].as_str()), ("one", Some("offsite")));
    assert!(report["fallback"]["older"].is_string(), "{report}");
    // With that repository alone asked for, it is what was asked for.
    let (report, _) = copies.restored("chosen", &["--repository", "offsite"], 0);
    assert_eq!(report["fallback"], Value::Null);
    // And the other way: no copy is used when the first alone is wanted.
    let target = copies.path("never");
    copies.json(&["restore", "crm", "--to", target.to_str().unwrap(), "--yes", "--repository", "main"], 20);
    assert!(!target.exists());
}

#[test]
fn a_wrong_key_a_store_that_is_away_a_full_one_and_a_killed_copy_harm_nothing() {
    let copies = Copies::new();
    copies.backup("one");
    let offsite = |key: &str| copies.command(&["copy", "crm", "--to", "offsite", "--json"]).env("OTHER_PASSPHRASE", key).output().unwrap();
    assert_eq!(offsite("a wrong passphrase").status.code(), Some(12));
    let plan = copies.path("plans/crm.toml");
    let right = fs::read_to_string(&plan).unwrap();
    // Nobody listens there.
    let port = support::free_port();
    fs::write(&plan, right.replace(&copies.bucket.endpoint(), &format!("http://127.0.0.1:{port}"))).unwrap();
    assert_eq!(offsite(OTHER).status.code(), Some(1));
    fs::write(&plan, &right).unwrap();

    // A small file system that fills up.
    let small = copies.path("small");
    fs::create_dir(&small).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"]).arg(&small).output().unwrap();
    if mounted.status.success() {
        let more = format!(
            "{right}[repository.small]\nurl = \"file://{}/repository\"\npassphrase = {{ env = \"OTHER_PASSPHRASE\" }}\n",
            small.display()
        );
        fs::write(&plan, more).unwrap();
        copies.json(&["repo", "init", "small"], 0);
        let full = copies.output(&["copy", "crm", "--to", "small"]);
        let left = files(&small).into_iter().filter(|path| path.to_string_lossy().contains("/snapshots/")).count();
        assert!(Command::new("umount").arg("-l").arg(&small).status().unwrap().success());
        assert_eq!((full.status.code(), left), (Some(1), 0), "{}", text(&full.stdout));
        assert!(text(&full.stdout).contains("no-space"), "{}", text(&full.stdout));
    } else {
        panic!("mount a small file system (root, and a container that may): {}", text(&mounted.stderr));
    }

    // Killed while it sends its first pack, slowly; beside it a backup is made.
    fs::write(&plan, right.replace("[repository.offsite]", "[repository.offsite]\nupload_limit = \"64KiB/s\"")).unwrap();
    let mut slow = copies.command(&["copy", "crm", "--to", "offsite"]);
    let mut slow = slow.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
    let running = || copies.json(&["run", "history", "--plan", "crm"], 0).to_string().contains("\"running\"");
    let begun = Instant::now();
    while !running() {
        assert!(begun.elapsed() < Duration::from_mins(1) && slow.try_wait().unwrap().is_none(), "the copy did not run");
    }
    fs::write(&plan, &right).unwrap();
    copies.backup("two");
    slow.kill().unwrap();
    slow.wait().unwrap();
    let report = copies.json(&["copy", "crm", "--to", "offsite"], 0);
    assert_eq!(report["snapshots"].as_array().unwrap().len(), 2, "{report}");
    assert_eq!(copies.json(&["verify", "offsite", "--data"], 0)["findings"].as_array().unwrap().len(), 0);
    let (_, note) = copies.restored("restored", &["--repository", "offsite"], 0);
    assert_eq!(note, "two");
}

#[test]
fn a_copied_log_recovers_to_a_moment_from_the_copy_alone() {
    let cluster = Options::new(distribution_version()).start();
    cluster.sql("CREATE TABLE ledger(id int)");
    let world = World::new(&cluster, "crm", "log = \"stream\"");
    world.say_secret("other", OTHER);
    let copy = format!(
        "[[plan.crm.copy]]\nto = \"offsite\"\n[repository.offsite]\nurl = \"file://{0}/offsite\"\npassphrase = {{ file = \"{0}/other\" }}\n",
        world.path("").display()
    );
    world.say_plan("crm", "log = \"stream\"", &copy);
    world.json(&["repo", "init", "offsite"], 0);
    let stream = world.stream();
    cluster.sql("INSERT INTO ledger SELECT generate_series(1, 100)");
    world.json(&["backup", "crm"], 0);
    cluster.sql("INSERT INTO ledger SELECT generate_series(101, 200)");
    std::thread::sleep(Duration::from_millis(20));
    let moment = cluster.value("SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')");
    std::thread::sleep(Duration::from_millis(20));
    cluster.sql("DELETE FROM ledger");
    world.wait_for_log(
        cluster.value("SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')").parse().unwrap(),
    );
    let report = world.json(&["copy", "crm", "--to", "offsite"], 0);
    assert!(report["logs"][0]["pieces"].as_u64().unwrap() > 0 && report["snapshots"].as_array().unwrap().len() == 1, "{report}");
    // Small pieces go when a segment replaces them: a second copy follows.
    cluster.sql("SELECT pg_switch_wal()");
    world.wait_for_log(
        cluster.value("SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')").parse().unwrap(),
    );
    world.json(&["copy", "crm", "--to", "offsite"], 0);
    stream.stop();
    assert_eq!(world.json(&["verify", "offsite", "--data"], 0)["findings"].as_array().unwrap().len(), 0);
    fs::rename(world.path("repository"), world.path("gone")).unwrap();
    let restored = world.restored("moment", &["--at", &moment]);
    assert_eq!(restored.value("SELECT count(*) FROM ledger"), "200");
    assert_eq!(restored.report["fallback"]["repository"], "offsite");
    assert_eq!(restored.report["fallback"]["older"], Value::Null);
    let drill = world.json(&["drill", "run", "crm", "--repository", "offsite"], 0);
    assert_eq!(drill["verdict"], "passed", "{drill}");
    let out = world.json(&["repo", "extract", "offsite", "--to", world.path("out").to_str().unwrap()], 0);
    let folder = PathBuf::from(out["snapshots"][0]["folder"].as_str().unwrap());
    assert!(fs::read_to_string(folder.join("crm/PG_VERSION")).unwrap().starts_with(&distribution_version().to_string()));
    let segments = files(&PathBuf::from(out["logs"][0]["folder"].as_str().unwrap()));
    assert!(segments.iter().all(|path| fs::metadata(path).unwrap().len() == 16 << 20), "{segments:?}");
    assert_eq!(Value::from(segments.len()), out["logs"][0]["segments"]);
    // Server and log in one: a file of the log comes from the copy.
    let list = world.json(&["snapshots", "crm", "--repository", "offsite"], 0);
    assert!(list["recovery_ranges"].as_array().unwrap().iter().any(|range| range["continuous"] == true), "{list}");
    let fetch = |name: &str, words: &[&str], code: i32| {
        world.json(&[&["log", "fetch", "crm", name, world.path("fetched").to_str().unwrap()], words].concat(), code)
    };
    let segment = segments[0].file_name().unwrap().to_str().unwrap();
    assert_eq!(fetch(segment, &[], 0)["copy"][0], "offsite");
    // A timeline that the copy has not heard of may be in the repository that is away; whoever names the copy takes its word.
    let history = "00000002.history";
    assert_eq!(fetch(history, &[], 150)["error"]["kind"], "no-repository");
    assert_eq!(fetch(history, &["--repository", "offsite"], 1)["found"], false);
    // Another repository in its place is no log that ends.
    let mut init = bare(&["repo", "init", "main", "--json", "--plans", world.path("plans").to_str().unwrap()]);
    assert!(init.arg("--state").arg(world.path("elsewhere")).output().unwrap().status.success());
    assert_eq!(fetch(segment, &[], 0)["copy"][0], "offsite");
    assert_eq!(fetch("0000000100000000000000F0", &[], 150)["error"]["kind"], "damaged");
    assert_eq!(fetch(history, &[], 150)["error"]["kind"], "damaged");
}

/// A snapshot of one file.
fn commit(repository: &Repository, bytes: &[u8]) {
    let name = Name::new("crm").unwrap();
    let mut writer = repository.begin(&name, chrono::Utc::now(), &Cancel::default()).unwrap();
    let mut tree = writer.tree(&name, "files", Order::Tree).unwrap();
    let kind = EntryKind::File { size: Some(bytes.len() as u64), layout: Layout::Content };
    let entry = Entry { path: b"file".to_vec(), kind, mode: 0o600, uid: 0, gid: 0, mtime_ns: 0, stamp: vec![], xattrs: vec![] };
    if tree.add(entry).unwrap() == Added::NeedsContent {
        tree.content(&mut &bytes[..]).unwrap();
    }
    let record = tree.finish(serde_json::json!({})).unwrap();
    writer.commit(vec![record], chrono::Utc::now(), vec![], &Silent).unwrap();
}

#[test]
fn an_unchanged_backup_and_a_listing_ask_the_store_for_little() {
    let config = SeaweedFs::shared().bucket().fresh();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let cache = tempfile::tempdir().unwrap();
    let options = OpenOptions { cache: Some(cache.path().to_owned()), workers: 2 };
    let passphrase = Passphrase::new("a passphrase of this test");
    let open = || Repository::open(Store::open(&config).unwrap(), runtime.handle().clone(), &passphrase, &options).unwrap();
    Repository::init(Store::open(&config).unwrap(), runtime.handle().clone(), &passphrase, &options, chrono::Utc::now()).unwrap();
    let bytes: Vec<u8> = (0..2_000_000u32).flat_map(u32::to_le_bytes).collect();
    let count = |repository: &Repository, verb| repository.store().metrics().verb(verb).requests;
    for _ in 0..3 {
        commit(&open(), &bytes);
    }
    let repository = open();
    commit(&repository, &bytes);
    let (writes, deletes) = (count(&repository, Verb::Create), count(&repository, Verb::Delete));
    let reads = count(&repository, Verb::Get) + count(&repository, Verb::GetRange) + count(&repository, Verb::Head);
    let lists = count(&repository, Verb::List);
    assert!(
        writes <= UNCHANGED_WRITES && deletes <= UNCHANGED_DELETES && lists <= UNCHANGED_LISTS && reads <= UNCHANGED_READS,
        "{writes} writes, {deletes} deletes, {lists} lists, {reads} reads"
    );
    // Every manifest is fetched once by this machine.
    for (fetched, round) in [(4, "first"), (0, "second")] {
        let repository = open();
        let before = count(&repository, Verb::Get) + count(&repository, Verb::GetRange);
        assert_eq!(repository.manifests(None).unwrap().len(), 4);
        assert_eq!(count(&repository, Verb::Get) + count(&repository, Verb::GetRange) - before, fetched, "{round}");
    }
    // What is kept is opened like any object: one that was changed is fetched again.
    for path in files(&cache.path().join(open().id().to_string()).join("objects")) {
        damage(&path);
    }
    assert_eq!(open().manifests(None).unwrap().len(), 4);
}

#[test]
fn a_scheduled_copy_is_made_by_the_daemon_and_status_tells_when_it_is_behind() {
    let hour = chrono::Timelike::hour(&(chrono::Utc::now() + chrono::TimeDelta::hours(12)));
    let schedule = format!("7 {hour} * * *");
    let workspace = Workspace::new("");
    let more = format!(
        "[[plan.crm.copy]]\nto = \"second\"\nschedule = \"{schedule}\"\n[repository.second]\nurl = \"file://{}/second\"\npassphrase = {{ env = \"CRM_PASSPHRASE\" }}\n",
        workspace.folder.path().display()
    );
    workspace.write_plan(&more);
    workspace.json(&["repo", "init", "main"], 0);
    workspace.json(&["repo", "init", "second"], 0);
    let backed_up = workspace.backup();
    let now = chrono::Utc::now();
    let journal = lifeboat::daemon::journal::Journal::open(&workspace.path("state"), now).unwrap();
    let (plan, job) = (Name::new("crm").unwrap(), lifeboat::daemon::journal::Job::Copy);
    journal.schedule_since(&plan, job, &format!("{schedule} Asia/Shanghai"), now - chrono::TimeDelta::days(3)).unwrap();
    drop(journal);
    let mut daemon = workspace.command(&["serve"]).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    let run = loop {
        let runs = workspace.json(&["run", "history"], 0)["runs"].as_array().unwrap().clone();
        if let Some(run) = runs.into_iter().find(|run| run["job"] == "copy" && run["state"] != "running") {
            break run;
        }
        assert!(begun.elapsed() < Duration::from_mins(2), "no copy was made");
        std::thread::park_timeout(Duration::from_millis(100));
    };
    rustix::process::kill_process(rustix::process::Pid::from_raw(daemon.id().try_into().unwrap()).unwrap(), rustix::process::Signal::TERM)
        .unwrap();
    daemon.wait().unwrap();
    assert_eq!(
        (&run["state"], &run["trigger"], &run["snapshot"]),
        (&"succeeded".into(), &"catch-up".into(), &backed_up["snapshot"]),
        "{run}"
    );
    let status = workspace.json(&["status"], 0)["plans"][0].clone();
    assert_eq!((&status["copies"][0]["repository"], &status["copies"][0]["behind_ms"]), (&"second".into(), &Value::from(0)));
    assert!(!status["problems"].to_string().contains("copy-"), "{status}");
    // One that cannot be asked is a problem, and so for `status --check`.
    fs::rename(workspace.path("second"), workspace.path("away")).unwrap();
    let status = workspace.json(&["status"], 0)["plans"][0].clone();
    assert!(status["problems"].to_string().contains("copy-unreachable"), "{status}");
    let check = workspace.run(&["status", "--check"]);
    assert!(text(&check.stdout).contains("copy in second: has NOT REACHABLE"), "{}", text(&check.stdout));
    assert!(!check.status.success());
}

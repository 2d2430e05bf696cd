//! Copies in repositories of other kinds with other keys, and what is brought back from them when the first is away or damaged.
#![expect(clippy::unwrap_used, reason = "a test fails by it; clippy knows only functions marked as tests")]

#[path = "support/postgres_world.rs"]
mod postgres_world;
mod support;
#[path = "support/workspace.rs"]
mod workspace;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use postgres_world::World;
use serde_json::Value;
use support::azure::Azurite;
use support::postgres::{NEWEST, Options};
use support::s3::{Bucket, SeaweedFs};
use workspace::{MARKER, Workspace, damage, files, text};

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
    copies.backup("two");
    // The data of both snapshots.
    let packs: Vec<PathBuf> =
        files(&copies.path("repository/packs")).into_iter().filter(|path| fs::metadata(path).unwrap().len() > 0).collect();
    packs.iter().for_each(|pack| damage(pack));
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
        println!("a full store was not tested: {}", text(&mounted.stderr));
    }

    // Killed while it sends its first pack, slowly; beside it a backup is made.
    fs::write(&plan, right.replace("[repository.offsite]", "[repository.offsite]\nupload_limit = \"64KiB/s\"")).unwrap();
    let mut slow = copies.command(&["copy", "crm", "--to", "offsite"]);
    let mut slow = slow.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
    let running = || copies.json(&["run", "history", "--plan", "crm"], 0).to_string().contains("\"running\"");
    let begun = Instant::now();
    while !running() {
        assert!(begun.elapsed() < Duration::from_secs(60) && slow.try_wait().unwrap().is_none(), "the copy did not run");
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
    let cluster = Options::new(NEWEST).start();
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
    // Server and log in one: a file of the log comes from the copy.
    let list = world.json(&["snapshots", "crm", "--repository", "offsite"], 0);
    assert!(list["recovery_ranges"].as_array().unwrap().iter().any(|range| range["continuous"] == true), "{list}");
}

//! What an operator meets on a bad day: a machine without plans, a repository without its plain objects, words that must help.
#![expect(clippy::unwrap_used, reason = "a test fails by it; clippy knows only functions marked as tests")]

mod support;
#[path = "support/workspace.rs"]
mod workspace;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use lifeboat::daemon::journal::{Filter, Job, Journal, NewRun, State};
use lifeboat::id::Name;
use lifeboat::repo::{OpenOptions, Passphrase, Repository, share_covers};
use lifeboat::store::{Store, StoreConfig};
use serde_json::Value;
use support::s3::{Bucket, SeaweedFs};
use workspace::{MARKER, PASSPHRASE, Workspace, bare, damage, files, text};

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn hint(document: &Value) -> &str {
    document["error"]["hint"].as_str().unwrap_or_else(|| panic!("no hint: {document}"))
}

fn message(document: &Value) -> &str {
    document["error"]["message"].as_str().unwrap()
}

/// Runs without plans, by address.
fn by_address(workspace: &Workspace, words: &[&str]) -> Command {
    let mut command = bare(words);
    command.arg("--from").arg(format!("file://{}", workspace.path("repository").display()));
    command.arg("--state").arg(workspace.path("other-machine")).env("LIFEBOAT_PASSPHRASE", PASSPHRASE);
    command
}

fn document(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", text(&output.stdout)))
}

fn rewrite(path: &Path, change: impl FnOnce(Vec<u8>) -> Vec<u8>) -> Vec<u8> {
    let before = std::fs::read(path).unwrap();
    std::fs::remove_file(path).unwrap();
    std::fs::write(path, change(before.clone())).unwrap();
    before
}

/// With one bit of the first occurrence of `at` flipped, `offset` bytes in.
fn flipped(mut bytes: Vec<u8>, at: &str, offset: usize) -> Vec<u8> {
    let found = bytes.windows(at.len()).position(|window| window == at.as_bytes()).unwrap();
    bytes[found + offset] ^= 1;
    bytes
}

#[test]
fn a_plan_file_that_is_wrong_stands_in_nobody_elses_way() {
    let workspace = Workspace::ready("");
    let made = workspace.backup();
    std::fs::write(
        workspace.path("plans/other.toml"),
        "version = 1\n[plan.other]\nsource = \"crm\"\nrepository = \"mian\"\nschedul = \"x\"\n",
    )
    .unwrap();

    let status = workspace.json(&["status"], 0);
    assert_eq!(status["plans"][0]["name"], "crm", "{status}");
    let broken = status["problems"].as_array().unwrap().iter().find(|problem| problem["kind"] == "plans-broken").unwrap();
    assert!(broken["message"].as_str().unwrap().contains("errors in plan files"), "{status}");
    let listed = workspace.json(&["snapshots", "crm"], 0);
    assert_eq!(listed["snapshots"][0]["id"], made["snapshot"], "{listed}");
    let to = workspace.path("restored");
    let restored = workspace.run(&["restore", "crm", "--to", to.to_str().unwrap()]);
    assert_eq!(code(&restored), 0, "{}", text(&restored.stderr));
    assert!(text(&restored.stderr).contains("warning: these plan files are wrong") && text(&restored.stderr).contains("other.toml"));
    assert_eq!(std::fs::read_to_string(to.join("attachments/marked.txt")).unwrap(), MARKER);

    // A journal that a wrong file may speak of is not guessed at: the restore goes on, and says that it is not recorded.
    let other = std::fs::read_to_string(workspace.path("plans/other.toml")).unwrap();
    std::fs::write(workspace.path("plans/other.toml"), format!("{other}[journal]\nurl = {{ env = \"JOURNAL\" }}\n")).unwrap();
    let unrecorded = workspace.run(&["restore", "crm", "--to", workspace.path("again").to_str().unwrap()]);
    assert_eq!(code(&unrecorded), 0, "{}", text(&unrecorded.stderr));
    assert!(text(&unrecorded.stderr).contains("this restore is not recorded"), "{}", text(&unrecorded.stderr));
    // A plan that a wrong file defines in another way of writing.
    std::fs::write(workspace.path("plans/other.toml"), "version = 1\n[ plan ]\ncrm = { source = \"nosuch\" }\n").unwrap();
    assert_eq!(code(&workspace.run(&["restore", "crm", "--to", workspace.path("no").to_str().unwrap()])), 2);

    // What is made by all files together is not made by some of them; and what is wrong is not guessed at.
    assert_eq!(code(&workspace.run(&["backup", "crm"])), 2);
    assert_eq!(code(&workspace.run(&["restore", "other", "--to", workspace.path("no").to_str().unwrap()])), 2);
    let twice = "version = 1\n[plan.crm]\nsource = \"crm\"\nrepository = \"main\"\n";
    std::fs::write(workspace.path("plans/twice.toml"), twice).unwrap();
    let refused = workspace.run(&["restore", "crm", "--to", workspace.path("no").to_str().unwrap()]);
    assert_eq!(code(&refused), 2, "which of both is meant is not guessed: {}", text(&refused.stdout));
    assert!(text(&refused.stderr).contains("twice.toml"), "{}", text(&refused.stderr));
    std::fs::write(workspace.path("plans/crm.toml"), "nonsense").unwrap();
    assert_eq!(code(&workspace.run(&["status"])), 2, "nothing is left to show");
}

/// What the problems of the one plan are called.
fn problems(workspace: &Workspace) -> Vec<String> {
    let status = workspace.json(&["status", "crm"], 0);
    status["plans"][0]["problems"].as_array().unwrap().iter().map(|problem| problem["kind"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_repository_that_was_made_anew_is_not_green_until_somebody_accepts_it() {
    let workspace = Workspace::ready("");
    let first = workspace.backup();
    let (repository, aside) = (workspace.path("repository"), workspace.path("aside"));
    std::fs::rename(&repository, &aside).unwrap();
    let made = workspace.json(&["repo", "init", "main"], 0);
    assert!(made["warnings"].to_string().contains("another repository is at"), "{made}");
    let second = workspace.backup();
    assert_ne!(first["snapshot"], second["snapshot"]);
    assert!(problems(&workspace).contains(&"repository-changed".to_owned()), "what the first backup made is gone");
    assert_eq!(code(&workspace.run(&["status", "--check"])), 20);
    let restored = workspace.run(&["restore", "crm", "--to", workspace.path("restored").to_str().unwrap()]);
    assert!(text(&restored.stderr).contains("another repository is at"), "{}", text(&restored.stderr));

    let doctor = workspace.run(&["doctor", "crm"]);
    assert!(code(&doctor) != 0 && text(&doctor.stdout).contains("another repository is at"), "{}", text(&doctor.stdout));
    let verified = workspace.run(&["verify", "main"]);
    assert_eq!(code(&verified), 20, "{}", text(&verified.stderr));
    for words in [&["backup", "crm"][..], &["snapshots", "crm"], &["drill", "history", "crm"], &["key", "list", "main"]] {
        let told = text(&workspace.run(words).stderr);
        assert_eq!(told.matches("warning: another repository is at").count(), 1, "{words:?}: {told}");
    }

    // The first one is back: then the other one's snapshot is what is gone, and nothing is to be accepted.
    let other = workspace.path("other");
    std::fs::rename(&repository, &other).unwrap();
    std::fs::rename(&aside, &repository).unwrap();
    assert!(!problems(&workspace).contains(&"repository-changed".to_owned()));
    std::fs::rename(&repository, &aside).unwrap();
    std::fs::rename(&other, &repository).unwrap();
    assert!(problems(&workspace).contains(&"repository-changed".to_owned()));
    let accepted = workspace.json(&["repo", "accept", "crm"], 0);
    assert!(accepted["before"].is_string() && accepted["repository"].is_string(), "{accepted}");
    assert!(!problems(&workspace).contains(&"repository-changed".to_owned()));
    let again = workspace.run(&["repo", "accept", "main"]);
    assert!(text(&again.stdout).contains("belongs at file://") && !text(&again.stdout).contains("instead of"), "{}", text(&again.stdout));
}

/// Whoever may delete in the store undoes a hold by deleting the newest entry of the ledger. The machine that has seen it prunes nothing.
#[test]
fn a_hold_whose_entry_was_deleted_still_holds_here() {
    let workspace = Workspace::ready("keep = { last = 1 }");
    let first = workspace.json(&["backup", "crm"], 0)["snapshot"].as_str().unwrap().to_owned();
    workspace.json(&["backup", "crm"], 0);
    workspace.json(&["snapshots", "hold", &first, "--reason", "audit"], 0);
    let entry = workspace.path("repository/retention/0000000000000001");
    let bytes = std::fs::read(&entry).unwrap();
    std::fs::remove_file(&entry).unwrap();
    for words in [&["prune", "crm"][..], &["verify", "main"], &["snapshots", "hold", &first, "--reason", "again"]] {
        let output = workspace.run(words);
        let told = format!("{}{}", text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(20), "{words:?}: {told}");
        assert!(told.contains("has seen its entry retention/0000000000000001, and there is none now"), "{words:?}: {told}");
    }
    // What is there can be restored, and backups go on.
    workspace.json(&["backup", "crm"], 0);
    workspace.json(&["restore", "crm", "--snapshot", &first, "--to", workspace.path("back").to_str().unwrap(), "--yes"], 0);
    std::fs::write(&entry, &bytes).unwrap();
    let pruned = workspace.json(&["prune", "crm"], 0);
    assert_eq!(pruned["snapshots_removed"], 1, "the second; the first is held: {pruned}");
    // Put back on purpose, somebody says: then it is as the store has it.
    std::fs::remove_file(workspace.path("repository/retention/0000000000000002")).unwrap();
    std::fs::remove_file(&entry).unwrap();
    assert_eq!(workspace.run(&["prune", "crm"]).status.code(), Some(20));
    let accepted = workspace.json(&["repo", "accept", "main"], 0);
    assert_eq!((&accepted["ledger_forgotten"], &accepted["before"]), (&2.into(), &serde_json::Value::Null));
    assert_eq!(workspace.json(&["prune", "crm"], 0)["snapshots_removed"], 1, "nothing holds it any more");
}

#[test]
fn a_restore_of_the_latest_says_that_later_ones_are_gone() {
    let workspace = Workspace::ready("");
    let first = workspace.backup();
    let old = workspace.path("old");
    assert!(Command::new("cp").arg("-a").arg(workspace.path("repository")).arg(&old).status().unwrap().success());
    std::fs::write(workspace.path("crm/attachments/new.txt"), "later").unwrap();
    let second = workspace.backup();
    let restore = |to: &str, more: &[&str], exit: i32| {
        let to = workspace.path(to);
        let words = [&["restore", "crm", "--to", to.to_str().unwrap()], more].concat();
        workspace.json(&words, exit)
    };
    assert_eq!(restore("whole", &[], 0)["snapshot"], second["snapshot"]);
    // The storage was put back to how it was before the second one.
    std::fs::remove_dir_all(workspace.path("repository")).unwrap();
    std::fs::rename(&old, workspace.path("repository")).unwrap();
    let restored = restore("older", &["--latest"], 3);
    assert_eq!((&restored["snapshot"], &restored["newer_unread"][0]), (&first["snapshot"], &second["snapshot"]), "{restored}");
    assert!(restored["warnings"].to_string().contains("not in the repository any more"), "{restored}");
    let now = chrono::Utc::now().to_rfc3339();
    assert_eq!(restore("then", &["--at", &now], 3)["newer_unread"][0], second["snapshot"]);
    assert_eq!(restore("named", &["--snapshot", first["snapshot"].as_str().unwrap()], 0)["snapshot"], first["snapshot"]);
}

/// A store that takes connections and never answers.
struct Silent(std::net::TcpListener);

impl Silent {
    fn open() -> Self {
        Self(std::net::TcpListener::bind("127.0.0.1:0").unwrap())
    }

    /// A repository there, for a plan file; its secrets are in `ACCESS`.
    fn repository(&self, name: &str) -> String {
        format!(
            "[repository.{name}]\nurl = \"s3://nowhere/{name}\"\nendpoint = \"http://{}\"\nregion = \"us-east-1\"\nallow_http = true\n\
             access_key = {{ env = \"ACCESS\" }}\nsecret_key = {{ env = \"ACCESS\" }}\npassphrase = {{ env = \"ACCESS\" }}\n",
            self.0.local_addr().unwrap()
        )
    }
}

#[test]
fn a_copy_that_gives_no_sign_is_a_problem_of_the_plans_that_copy_there_alone() {
    let store = Silent::open();
    let workspace = Workspace::ready("");
    let copy = |plan: &str| format!("[[plan.{plan}.copy]]\nto = \"far\"\n");
    let plan = |name: &str, repository: &str| format!("[plan.{name}]\nsource = \"attachments\"\nrepository = \"{repository}\"\n");
    workspace.write_plan(
        &[copy("crm"), plan("plain", "main"), plan("lost", "away"), copy("lost"), store.repository("far"), store.repository("away")]
            .concat(),
    );
    let run = |words: &[&str]| workspace.command(words).env("ACCESS", "x").output().unwrap();
    for plan in ["crm", "plain"] {
        let output = run(&["backup", plan]);
        assert_eq!(code(&output), 0, "{}", text(&output.stderr));
    }
    let began = std::time::Instant::now();
    let told = run(&["status", "--json"]);
    assert_eq!(code(&told), 0, "{}", text(&told.stderr));
    assert!(began.elapsed() < std::time::Duration::from_mins(2), "{:?}", began.elapsed());
    let status = document(&told);
    let of = |name: &str| status["plans"].as_array().unwrap().iter().find(|plan| plan["name"] == name).unwrap().clone();
    let kinds = |name: &str| -> Vec<String> {
        of(name)["problems"].as_array().unwrap().iter().map(|problem| problem["kind"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(kinds("crm"), ["never-proven", "copy-unreachable"], "{status}");
    assert_eq!(kinds("plain"), ["never-proven"], "{status}");
    assert!(of("crm")["problems"].to_string().contains("the copy in far could not be asked: there was no answer for 60 s"), "{status}");
    assert_eq!((&of("crm")["repository_reachable"], &of("crm")["copies"][0]["reachable"]), (&Value::Bool(true), &Value::Bool(false)));
    // Where neither can be asked, both are told.
    let lost = kinds("lost");
    assert!(lost.contains(&"repository-unreachable".to_owned()) && lost.contains(&"copy-unreachable".to_owned()), "{status}");
}

#[test]
fn status_does_not_wait_for_a_store_that_gives_no_sign_and_ends_when_it_is_asked_to() {
    let store = Silent::open();
    let workspace = Workspace::ready("");
    // More than are asked at once, all before the sound one.
    let hanging: Vec<String> = (0..9)
        .map(|number| {
            let name = format!("hanging{number}");
            format!("{}[plan.{name}]\nsource = \"attachments\"\nrepository = \"{name}\"\n", store.repository(&name))
        })
        .collect();
    std::fs::write(workspace.path("plans/hanging.toml"), format!("version = 1\n{}", hanging.concat())).unwrap();
    let mut command = workspace.command(&["status", "--json"]);
    command.env("ACCESS", "x");
    let began = std::time::Instant::now();
    let told = command.output().unwrap();
    assert_eq!(code(&told), 0, "{}", text(&told.stderr));
    assert!(began.elapsed() < std::time::Duration::from_mins(2), "{:?}", began.elapsed());
    let status = document(&told);
    let of = |name: &str| status["plans"].as_array().unwrap().iter().find(|plan| plan["name"] == name).unwrap().clone();
    assert_eq!(of("crm")["repository_reachable"], true, "{status}");
    for number in 0..9 {
        let hanging = of(&format!("hanging{number}"));
        assert_eq!(hanging["repository_reachable"], false);
        assert!(hanging["problems"].to_string().contains("there was no answer for 60 s"), "{status}");
    }

    let mut command = workspace.command(&["status"]);
    let mut asking = command.env("ACCESS", "x").stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert!(asking.try_wait().unwrap().is_none(), "it waits for the store");
    let began = std::time::Instant::now();
    rustix::process::kill_process(rustix::process::Pid::from_raw(asking.id().try_into().unwrap()).unwrap(), rustix::process::Signal::TERM)
        .unwrap();
    assert_eq!(asking.wait().unwrap().code(), Some(130), "interrupted");
    assert!(began.elapsed() < std::time::Duration::from_secs(20), "{:?}", began.elapsed());
}

#[test]
fn a_restore_from_a_copy_waits_for_nothing_of_a_repository_that_gives_no_sign() {
    let workspace = Workspace::new("");
    let far = format!(
        "[repository.far]\nurl = \"file://{}\"\npassphrase = {{ env = \"CRM_PASSPHRASE\" }}\n[[plan.crm.copy]]\nto = \"far\"\n",
        workspace.path("far").display()
    );
    workspace.write_plan(&far);
    for repository in ["main", "far"] {
        workspace.json(&["repo", "init", repository], 0);
    }
    let made = workspace.backup();
    workspace.json(&["copy", "crm", "--to", "far"], 0);
    // A backup was killed right before its commit, and now its repository hangs.
    {
        let now = chrono::Utc::now();
        let journal = Journal::open(&workspace.path("state"), now).unwrap();
        let run = NewRun::manual(&Name::new("crm").unwrap(), Job::Backup, "tester", now);
        let claim = journal.begin(&run, now).unwrap();
        assert!(journal.announce(claim, "01arz3ndektsv4rrffq69g5fav", now).unwrap());
    }
    let store = Silent::open();
    let plan = std::fs::read_to_string(workspace.path("plans/crm.toml")).unwrap();
    let (before, after) = plan.split_once("[repository.main]").unwrap();
    let (_, after) = after.split_once("[source.database]").unwrap();
    std::fs::write(workspace.path("plans/crm.toml"), format!("{before}{}[source.database]{after}", store.repository("main"))).unwrap();
    let to = workspace.path("restored");
    let mut command = workspace.command(&["restore", "crm", "--repository", "far", "--to", to.to_str().unwrap(), "--json"]);
    let began = std::time::Instant::now();
    let restored = command.env("ACCESS", "x").output().unwrap();
    assert_eq!(code(&restored), 0, "{}", text(&restored.stderr));
    assert!(began.elapsed() < std::time::Duration::from_secs(50), "{:?}: it waited for what hangs", began.elapsed());
    assert_eq!(std::fs::read_to_string(to.join("attachments/marked.txt")).unwrap(), MARKER);
    let journal = Journal::open(&workspace.path("state"), chrono::Utc::now()).unwrap();
    let states: Vec<_> = journal.runs(&Filter::default()).unwrap().into_iter().map(|run| (run.job, run.state)).collect();
    assert_eq!(
        states[..2],
        [(Job::Restore, State::Succeeded), (Job::Backup, State::Running)],
        "recorded, and the other one is left: {made}"
    );
}

#[test]
fn the_command_that_init_prints_runs_on_a_machine_without_plans() {
    let bucket = SeaweedFs::shared().bucket();
    let workspace = Workspace::new("");
    let plan = workspace.path("plans/crm.toml");
    let (access, secret) = Bucket::keys();
    let url = format!("s3://lifeboat/by-address-{}", std::process::id());
    let changed = std::fs::read_to_string(&plan).unwrap().replace(
        &format!("url = \"file://{}/repository\"", workspace.folder.path().display()),
        &format!("url = \"{url}\"\nendpoint = \"{}\"\nregion = \"us-east-1\"", bucket.endpoint()),
    );
    assert!(changed.contains("endpoint"));
    std::fs::write(&plan, changed).unwrap();
    let with_keys = |mut command: Command| command.env("AWS_ACCESS_KEY_ID", access).env("AWS_SECRET_ACCESS_KEY", secret).output().unwrap();
    let init = with_keys(workspace.command(&["repo", "init", "main"]));
    let said = text(&init.stdout);
    assert_eq!(code(&init), 0, "{said}{}", text(&init.stderr));
    let key = said.lines().map(str::trim).find(|line| line.starts_with("LBRK1-")).unwrap();
    let line = said.lines().map(str::trim).find(|line| line.contains("lifeboat restore")).unwrap();
    assert!(line.starts_with(&format!("AWS_ENDPOINT_URL_S3={} AWS_REGION=us-east-1 ", bucket.endpoint())), "{line}");
    let backup = with_keys(workspace.command(&["backup", "crm"]));
    assert_eq!(code(&backup), 0, "{}", text(&backup.stderr));
    // Word by word what was printed, with the names filled in.
    let program = env!("CARGO_BIN_EXE_lifeboat");
    let line = line
        .replace("…the key…", key)
        .replace("lifeboat restore", &format!("{program} restore --state state-of-another-machine"))
        .replace("PLAN", "crm")
        .replace("TARGET", "restored");
    let mut shell = Command::new("sh");
    shell.args(["-c", &line]).current_dir(workspace.folder.path()).env_remove("AWS_ENDPOINT_URL_S3").env_remove("AWS_REGION");
    let restored = with_keys(shell);
    assert_eq!(code(&restored), 0, "{line}\n{}", text(&restored.stderr));
    assert_eq!(std::fs::read_to_string(workspace.path("restored/attachments/marked.txt")).unwrap(), MARKER);
}

#[test]
fn plain_http_by_address_needs_a_word() {
    let refused = |allow: Option<&str>| {
        let folder = tempfile::tempdir().unwrap();
        let mut command = bare(&["snapshots", "--from", "s3://nowhere/main", "--state"]);
        command.arg(folder.path()).env("LIFEBOAT_PASSPHRASE", PASSPHRASE);
        // A name that is never resolved: refusing comes before asking.
        command.env("AWS_ENDPOINT_URL_S3", "http://lifeboat.invalid:9").env("AWS_ACCESS_KEY_ID", "x").env("AWS_SECRET_ACCESS_KEY", "x");
        command.envs(allow.map(|value| ("LIFEBOAT_ALLOW_HTTP", value)));
        text(&command.output().unwrap().stderr)
    };
    let said = refused(None);
    assert!(said.contains("plain http to lifeboat.invalid is refused") && said.contains("LIFEBOAT_ALLOW_HTTP"), "{said}");
    assert!(!refused(Some("true")).contains("is refused"));
}

#[test]
fn a_lost_format_object_is_damage_and_can_be_written_again() {
    let workspace = Workspace::ready("");
    workspace.backup();
    let format = workspace.path("repository/format");
    let before: Value = serde_json::from_slice(&std::fs::read(&format).unwrap()).unwrap();
    std::fs::remove_file(&format).unwrap();
    for words in [["backup", "crm"], ["snapshots", "crm"], ["verify", "main"]] {
        let told = workspace.json(&words, 20);
        assert_eq!(told["error"]["kind"], "damaged");
        assert!(message(&told).contains("without its format object"), "{told}");
        assert!(hint(&told).contains("back from the store's versions or a copy") && hint(&told).contains("do not make a new"), "{told}");
    }
    let doctor = workspace.json(&["doctor", "crm"], 20);
    assert!(doctor["checks"].to_string().contains("without its format object"), "{doctor}");
    let incident = by_address(&workspace, &["snapshots"]).output().unwrap();
    assert_eq!(code(&incident), 20, "{}", text(&incident.stderr));
    let init = workspace.json(&["repo", "init", "main"], 1);
    assert!(hint(&init).contains("do not make a new repository there") && !hint(&init).contains("use it as it is"), "{init}");
    // As the guide says: from the id alone.
    std::fs::write(
        &format,
        format!(r#"{{ "format": "lifeboat repository", "version": 1, "id": {}, "created": "2026-01-01T00:00:00Z" }}"#, before["id"]),
    )
    .unwrap();
    assert_eq!(workspace.json(&["verify", "main"], 0)["findings"], serde_json::json!([]));
}

#[test]
fn a_place_without_a_repository_is_told_with_its_own_name() {
    let workspace = Workspace::new("");
    let told = workspace.json(&["backup", "crm"], 10);
    assert!(hint(&told).contains("`lifeboat repo init main`"), "{told}");
    let incident = by_address(&workspace, &["restore", "crm", "--to", "x"]).arg("--json").output().unwrap();
    assert_eq!(code(&incident), 10);
    assert!(!hint(&document(&incident)).contains("repo init"), "nothing is to be made in an incident: {}", text(&incident.stdout));
    // What an interrupted init leaves.
    let folder = workspace.path("repository/keys");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("0011223344556677"), "{}").unwrap();
    let told = workspace.json(&["repo", "init", "main"], 1);
    assert!(hint(&told).contains("delete what is below keys/"), "{told}");
}

type Change = fn(Vec<u8>) -> Vec<u8>;

#[test]
fn damage_in_what_is_plain_is_told_from_a_wrong_passphrase() {
    let workspace = Workspace::ready("");
    let format = workspace.path("repository/format");
    let wrong = |words: &[&str]| {
        let output = workspace.command(words).arg("--json").env("CRM_PASSPHRASE", "quite another one").output().unwrap();
        (code(&output), document(&output))
    };
    let open = ["snapshots", "crm"];

    // The format object: cut, its word, its version, its id.
    let changes: [(&str, Change); 5] = [
        ("cannot be decoded", |bytes| bytes[..bytes.len() / 2].to_vec()),
        ("cannot be decoded", |_| Vec::new()),
        ("does not say that this is a lifeboat repository", |bytes| flipped(bytes, "lifeboat repository", 3)),
        ("has version", |bytes| flipped(bytes, "\"version\": 1", 11)),
        ("do not belong together", |bytes| {
            let at = text(&bytes).find("\"id\": \"").unwrap() + 7;
            let mut bytes = bytes;
            bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
            bytes
        }),
    ];
    for (wanted, change) in changes {
        let before = rewrite(&format, change);
        let told = workspace.json(&open, 20);
        assert!(message(&told).contains(wanted), "{wanted}: {told}");
        assert!(hint(&told).contains("bring the object `format`") && hint(&told).contains("repository"), "{wanted}: {told}");
        rewrite(&format, |_| before);
    }
    let (code, told) = wrong(&open);
    assert_eq!((code, hint(&told).contains("damaged")), (12, false), "a wrong passphrase and nothing else: {told}");

    // The slots: of the passphrase and of the recovery key.
    let slots = files(&workspace.path("repository/keys"));
    assert_eq!(slots.len(), 2);
    let labelled = |label: &str| -> PathBuf {
        slots.iter().find(|slot| text(&std::fs::read(slot).unwrap()).contains(&format!("\"label\": {label}"))).unwrap().clone()
    };
    let (own, recovery) = (labelled("\"passphrase\""), labelled("\"recovery key\""));
    let sealed = |bytes: Vec<u8>| {
        let at = text(&bytes).find("\"sealed\": \"").unwrap() + 11;
        let mut bytes = bytes;
        bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
        bytes
    };
    let before = rewrite(&own, sealed);
    let told = workspace.json(&open, 20);
    assert!(message(&told).contains("the passphrase is right, but its key slot"), "{told}");
    assert_eq!(wrong(&open).0, 12, "of a wrong one that is not known");
    // Whose slot it is cannot be told any more: perhaps this passphrase's.
    rewrite(&own, |_| b"{".to_vec());
    let told = workspace.json(&open, 12);
    assert!(hint(&told).contains("if it is right, the damaged slot is its own"), "{told}");
    // No passphrase can help.
    let other = rewrite(&recovery, |_| b"{".to_vec());
    assert!(message(&workspace.json(&open, 20)).contains("every key slot"));
    std::fs::remove_file(&own).unwrap();
    std::fs::remove_file(&recovery).unwrap();
    assert!(message(&workspace.json(&open, 20)).contains("has no key slots"));
    std::fs::write(&recovery, other).unwrap();
    // What is not sealed does not lock anybody out; `verify` tells it.
    std::fs::write(&own, flipped(before, "\"label\": \"passphrase\"", 12)).unwrap();
    assert_eq!(workspace.json(&open, 0)["damaged"], serde_json::json!([]));
    let found = workspace.json(&["verify", "main"], 20);
    assert_eq!(found["findings"].as_array().unwrap().len(), 1, "{found}");
}

#[test]
fn recovery_points_are_listed_by_address() {
    let workspace = Workspace::ready("");
    let snapshot = workspace.backup()["snapshot"].as_str().unwrap().to_owned();
    for words in [vec!["snapshots"], vec!["snapshots", "crm"]] {
        let output = by_address(&workspace, &words).arg("--json").output().unwrap();
        assert_eq!(code(&output), 0, "{}", text(&output.stderr));
        assert_eq!(document(&output)["snapshots"][0]["id"], snapshot.as_str());
    }
    let shown = text(&by_address(&workspace, &["snapshots"]).output().unwrap().stdout);
    assert!(shown.contains(&snapshot) && shown.contains("UTC"), "{shown}");
    let nobody = by_address(&workspace, &["snapshots", "nobody"]).arg("--json").output().unwrap();
    assert_eq!(code(&nobody), 13);
    assert!(hint(&document(&nobody)).contains("crm"));
    let unset = by_address(&workspace, &["snapshots"]).env_remove("LIFEBOAT_PASSPHRASE").output().unwrap();
    assert_eq!(code(&unset), 2);
    assert!(text(&unset.stderr).contains("LIFEBOAT_PASSPHRASE"));
}

#[test]
fn one_damaged_pack_is_one_finding() {
    let workspace = Workspace::ready("");
    workspace.backup();
    let packs = files(&workspace.path("repository/packs"));
    let largest = packs.iter().max_by_key(|pack| pack.metadata().unwrap().len()).unwrap();
    rewrite(largest, |bytes| bytes[..bytes.len() - 1000].to_vec());
    let found = workspace.json(&["verify", "main", "--data"], 20);
    let findings = found["findings"].as_array().unwrap();
    assert_eq!(findings.len(), 1, "{found}");
    assert_eq!(findings[0]["kind"], "size");
    assert_eq!(findings[0]["snapshots"].as_array().unwrap().len(), 1);
    let status = workspace.json(&["status"], 0);
    assert!(status["plans"][0]["problems"].to_string().contains("damage in 1 place "), "{status}");
}

#[test]
fn a_share_without_a_pack_says_so() {
    let workspace = Workspace::ready("");
    workspace.backup();
    let (mut none, mut some) = (0, 0);
    for _ in 0..10 {
        let output = workspace.run(&["verify", "crm", "--data", "10"]);
        assert_eq!(code(&output), 0, "{}", text(&output.stderr));
        let said = text(&output.stdout);
        if said.contains("was due this time") { none += 1 } else { some += 1 }
    }
    assert!(none > 0 && some > 0, "few packs in ten shares: {none} and {some}");
    let due = |document: &Value| document["packs_due"].as_u64().unwrap();
    let runs: Vec<Value> = (0..10).map(|_| workspace.json(&["verify", "crm", "--data", "10"], 0)).collect();
    assert_eq!(runs.iter().map(due).sum::<u64>(), runs[0]["packs"].as_u64().unwrap(), "each once in ten runs");
    assert_eq!(runs.iter().filter(|run| due(run) == 0).count(), none);
}

/// What only reading shows is taken back by nothing but reading these bytes again.
#[test]
fn damage_in_a_piece_of_a_log_is_told_until_the_piece_is_read_again_or_gone() {
    const PIECE: u64 = 64 << 10;
    let workspace = Workspace::ready("");
    workspace.backup();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let store = Store::open(&StoreConfig::at(format!("file://{}", workspace.path("repository").display()))).unwrap();
    let repository = Repository::open(store, runtime.handle().clone(), &Passphrase::new(PASSPHRASE), &OpenOptions::default()).unwrap();
    let log = repository.log(&Name::new("crm").unwrap(), &Name::new("database").unwrap());
    let mut noise = blake3::Hasher::new().update(b"log").finalize_xof();
    let keys = || -> Vec<String> {
        let root = workspace.path("repository");
        let key = |path: PathBuf| path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
        files(&root.join("logs")).into_iter().map(key).collect()
    };
    // So many that each tenth has some.
    let covered = |run| keys().iter().any(|key| share_covers(key, 10, run));
    let mut pieces = Vec::new();
    while pieces.is_empty() || !(0..10).all(covered) {
        let start = pieces.len() as u64 * PIECE;
        let mut bytes = vec![0; usize::try_from(PIECE).unwrap()];
        noise.fill(&mut bytes);
        pieces.push(log.append(1, start, start + PIECE, &serde_json::json!({}), &bytes).unwrap().piece);
    }
    let without_packs: Vec<String> = (0..10)
        .map(|_| text(&workspace.run(&["verify", "main", "--data", "10"]).stdout))
        .filter(|said| said.contains("was due this time"))
        .collect();
    assert!(!without_packs.is_empty(), "few packs in ten shares");
    assert!(without_packs.iter().all(|said| said.contains("only log was read") && !said.contains("no stored byte")), "{without_packs:?}");

    let told = || workspace.json(&["status"], 0)["plans"][0]["problems"].to_string().contains("damage in 1 place");
    assert!(!told());
    let key = &keys()[0];
    damage(&workspace.path("repository").join(key));
    let found = workspace.json(&["verify", "main", "--data"], 20);
    assert_eq!(found["findings"][0]["object"], key.as_str(), "{found}");
    workspace.json(&["verify", "main"], 0);
    assert!(told(), "the structure says nothing of it");
    let shares: Vec<i32> = (0..4).map(|_| code(&workspace.run(&["verify", "main", "--data", "25"]))).collect();
    assert_eq!(shares.iter().filter(|code| **code == 20).count(), 1, "{shares:?}");
    assert!(told() && shares.iter().all(|code| [0, 20].contains(code)), "{shares:?}");
    // It is put back as it was, and read in its turn.
    damage(&workspace.path("repository").join(key));
    assert!(told());
    workspace.json(&["verify", "main", "--data"], 0);
    assert!(!told());
    // It is too old, and retention takes it.
    damage(&workspace.path("repository").join(key));
    workspace.json(&["verify", "main", "--data"], 20);
    assert!(told());
    log.remove(&pieces).unwrap();
    assert!(!told());
    workspace.json(&["verify", "main"], 0);
}

#[test]
fn words_help() {
    let workspace = Workspace::ready("");
    let unknown = workspace.json(&["verify", "foo"], 2);
    assert!(hint(&unknown).contains("plans: crm") && hint(&unknown).contains("repositories: main"), "{unknown}");
    let empty = workspace.command(&["backup", "crm", "--json"]).env("CRM_PASSPHRASE", "").output().unwrap();
    assert!(hint(&document(&empty)).contains("set CRM_PASSPHRASE"), "{}", text(&empty.stdout));
    let report = workspace.json(&["drill", "report", "01aaaaaaaaaaaaaaaaaaaaaaaa"], 1);
    assert!(hint(&report).contains("lifeboat run show"), "{report}");
    let status = text(&workspace.run(&["status"]).stdout);
    assert!(!status.contains("everything of") && !status.contains("yet of"), "{status}");
    let backup = text(&workspace.run(&["backup", "crm"]).stdout);
    assert!(!backup.contains('{') && backup.contains("database: one moment of the database"), "{backup}");
}

#[test]
fn an_error_is_told_once_and_kept_with_its_cause() {
    let workspace =
        Workspace::ready("[source.dump]\nkind = \"command\"\ndump = [\"true\"]\n[plan.silent]\nsource = \"dump\"\nrepository = \"main\"\n");
    let failed = workspace.run(&["backup", "silent", "-q"]);
    assert_eq!(code(&failed), 1);
    let said = text(&failed.stderr);
    assert_eq!(said.matches("wrote nothing").count(), 1, "{said}");
    let history = text(&workspace.run(&["run", "history"]).stdout);
    assert!(history.contains("wrote nothing"), "{history}");
    let status = workspace.json(&["status"], 0);
    let problems = status["plans"].as_array().unwrap().iter().find(|plan| plan["name"] == "silent").unwrap()["problems"].to_string();
    assert!(problems.contains("wrote nothing"), "{problems}");
}

#[test]
fn doctor_sees_what_a_backup_would_miss() {
    let workspace = Workspace::ready("");
    workspace.backup();
    let failed = |code: i32| -> Vec<String> {
        let report = workspace.json(&["doctor", "crm"], code);
        let checks = report["checks"].as_array().unwrap().iter().filter(|check| check["ok"] == false);
        checks.map(|check| format!("{}: {}", check["name"].as_str().unwrap(), check["message"].as_str().unwrap())).collect()
    };
    assert_eq!(failed(0), Vec::<String>::new());
    // Root reads everything, but nobody backs up a socket.
    let socket = std::os::unix::net::UnixListener::bind(workspace.made.attachments.join("socket")).unwrap();
    let found = failed(2);
    assert!(found.len() == 1 && found[0].starts_with("source attachments: content: socket"), "{found:?}");
    drop(socket);
    std::fs::remove_file(workspace.made.attachments.join("socket")).unwrap();
    // Pages of 0xFF in the middle of the database.
    let mut bytes = std::fs::read(&workspace.made.database).unwrap();
    let middle = bytes.len() / 2 / 4096 * 4096;
    bytes[middle..middle + 8192].fill(0xff);
    std::fs::write(&workspace.made.database, bytes).unwrap();
    let found = failed(2);
    assert!(found.len() == 1 && found[0].starts_with("source database: database content"), "{found:?}");
    // An empty file is told once.
    std::fs::write(&workspace.made.database, b"").unwrap();
    let shown = text(&workspace.run(&["doctor", "crm"]).stdout);
    assert!(!shown.contains("0 bytes"), "{shown}");

    let mut add = workspace.command(&["key", "add", "main", "--label", "host", "--role", "writer"]);
    assert!(add.env("LIFEBOAT_NEW_PASSPHRASE", "for-writing-only").output().unwrap().status.success());
    let writer = workspace.command(&["doctor", "crm"]).env("CRM_PASSPHRASE", "for-writing-only").output().unwrap();
    assert!(text(&writer.stdout).contains("room for a drill: not looked at"), "{}", text(&writer.stdout));
}

#[test]
fn a_time_without_a_zone_is_told_as_utc() {
    let workspace = Workspace::new("[plan.plain]\nsource = \"attachments\"\nrepository = \"main\"\n");
    assert!(workspace.run(&["repo", "init", "main"]).status.success());
    assert!(workspace.run(&["backup", "plain"]).status.success());
    let to = workspace.path("restored");
    let words = ["restore", "plain", "--at", "2099-01-01 08:00", "--dry-run", "--to", to.to_str().unwrap()];
    let said = text(&workspace.run(&words).stderr);
    assert!(said.contains("2099-01-01 08:00:00 UTC (2099-01-01T08:00:00Z)"), "{said}");
}

#[test]
fn the_examples_are_valid_as_one_folder() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let output = bare(&["plan", "check", "--json"]).current_dir(folder).output().unwrap();
    let checked = document(&output);
    assert_eq!(code(&output), 0, "{checked}");
    assert_eq!(checked["files"].as_array().unwrap().len(), 8);
    assert!(!checked["warnings"].to_string().contains("driver"), "{checked}");
}

#[test]
fn a_plan_that_is_gone_is_answered_with_the_way_to_its_snapshots() {
    let workspace = Workspace::ready("");
    let snapshot = workspace.backup()["snapshot"].as_str().unwrap().to_owned();
    let file = workspace.path("plans/crm.toml");
    let other = std::fs::read_to_string(&file).unwrap().replace("[plan.crm]", "[plan.successor]");
    std::fs::write(&file, other).unwrap();
    let to = workspace.path("restored");
    let url = format!("file://{}", workspace.path("repository").display());
    for words in [vec!["snapshots", "crm"], vec!["restore", "crm", "--to", to.to_str().unwrap()], vec!["status", "crm"]] {
        let refused = workspace.json(&words, 2);
        assert!(message(&refused).contains("plan crm is in no plan file any more; its last backup was of"), "{refused}");
        assert!(hint(&refused).contains(&url) && hint(&refused).contains("restore crm --from URL"), "{refused}");
    }
    assert!(!to.exists());
    // What the hint says works.
    let listed = by_address(&workspace, &["snapshots", "crm", "--json"]).output().unwrap();
    assert_eq!(document(&listed)["snapshots"][0]["id"], snapshot.as_str());
    let restored = by_address(&workspace, &["restore", "crm", "--to", to.to_str().unwrap()]).output().unwrap();
    assert_eq!(code(&restored), 0, "{}", text(&restored.stderr));
    assert!(to.join("attachments").is_dir());
    // A name that never was is only unknown.
    let unknown = workspace.json(&["snapshots", "never"], 2);
    assert!(message(&unknown).contains("unknown plan"), "{unknown}");
}

//! The command line as a contract: exit codes, documents, what is said where, and what is never said.

#![expect(clippy::unwrap_used, reason = "a test fails by it; clippy knows only functions marked as tests")]

#[path = "support/workspace.rs"]
mod workspace;

use std::collections::BTreeSet;
use std::io::Read;
use std::path::PathBuf;
use std::process::Stdio;

use serde_json::Value;
use workspace::{MARKER, PASSPHRASE, Workspace, bare, damage, files, text};

fn fields(document: &Value) -> BTreeSet<&str> {
    document.as_object().unwrap_or_else(|| panic!("not an object: {document}")).keys().map(String::as_str).collect()
}

/// Every field of the contract is there (more may be).
fn has(document: &Value, schema: &str, wanted: &[&str]) {
    assert_eq!(document["schema"], schema, "{document}");
    let found = fields(document);
    for field in wanted {
        assert!(found.contains(field), "{schema} has no {field}: {found:?}");
    }
}

fn kind(document: &Value) -> &str {
    assert_eq!(document["schema"], "lifeboat.error/1");
    assert_eq!(fields(&document["error"]), BTreeSet::from(["causes", "hint", "kind", "message"]));
    document["error"]["kind"].as_str().unwrap()
}

#[test]
fn help_of_every_command_has_an_example() {
    let commands = [
        "",
        "demo",
        "plan",
        "plan check",
        "plan show",
        "plan explain",
        "plan schema",
        "doctor",
        "repo",
        "repo init",
        "repo stats",
        "repo extract",
        "repo accept",
        "backup",
        "copy",
        "snapshots",
        "snapshots hold",
        "snapshots release",
        "prune",
        "restore",
        "verify",
        "drill",
        "drill run",
        "drill history",
        "drill report",
        "key",
        "log",
        "log push",
        "log fetch",
        "key list",
        "key add",
        "key remove",
        "key generate",
        "key rotate",
        "key export",
        "key import",
        "key combine",
        "key own",
        "key erase",
        "serve",
        "status",
        "run",
        "run history",
        "run show",
        "completions",
        "man",
    ];
    for command in commands {
        let words: Vec<&str> = command.split_whitespace().chain(["--help"]).collect();
        let output = bare(&words).output().unwrap();
        assert!(output.status.success(), "{command}");
        let help = text(&output.stdout);
        assert!(help.contains("Example"), "no example in `lifeboat {command} --help`:\n{help}");
        assert!(output.stderr.is_empty());
    }
}

#[test]
fn commands_of_later_releases_are_unknown_words() {
    for command in ["repair", "recover", "audit", "report"] {
        let output = bare(&[command, "crm"]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{command}");
    }
}

#[test]
fn a_plan_without_postgres_has_no_log_and_a_fetch_never_ends_as_if_the_log_did() {
    let workspace = Workspace::ready("");
    let segment = "000000010000000000000001";
    assert_eq!(kind(&workspace.json(&["log", "push", "crm", segment], 2)), "usage");
    let target = workspace.path("target");
    for words in [
        vec!["crm", segment, target.to_str().unwrap()],
        vec!["nope", segment, "x"],
        vec!["crm", segment],
        vec!["crm", segment, "x", "--jobs", "0"],
    ] {
        let document = workspace.json(&[&["log", "fetch"][..], &words[..]].concat(), 150);
        assert_eq!(kind(&document), "usage", "{words:?}");
    }
    assert!(!target.exists());
}

#[test]
fn usage_errors_are_exit_2_also_as_a_document() {
    assert_eq!(bare(&["backup"]).output().unwrap().status.code(), Some(2));
    let output = bare(&["backup", "--json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(kind(&serde_json::from_slice(&output.stdout).unwrap()), "usage");
    let workspace = Workspace::new("");
    assert_eq!(kind(&workspace.json(&["backup", "crn"], 2)), "usage");
    let output = workspace.run(&["backup", "crn"]);
    assert!(text(&output.stderr).contains("hint: did you mean `crm`?"), "{}", text(&output.stderr));
    assert!(output.stdout.is_empty());
}

#[test]
fn plans_are_checked_shown_and_explained() {
    let workspace = Workspace::new("schedule = \"15 2 * * *\"");
    assert!(workspace.run(&["plan", "check"]).status.success());
    assert!(text(&workspace.run(&["plan", "explain", "crm"]).stdout).contains("02:15"));
    assert!(text(&workspace.run(&["plan", "show", "crm"]).stdout).contains("Asia/Shanghai"));
    let schema: Value = serde_json::from_slice(&bare(&["plan", "schema"]).output().unwrap().stdout).unwrap();
    assert!(schema["properties"]["plan"].is_object());
    workspace.write_plan("keep = { last = 1 }\nnotify = [\"ops\"]\n[notify.ops]\nkind = \"webhook\"\nurl = { env = \"HOOK\" }");
    let checked = workspace.json(&["plan", "check"], 0);
    assert_eq!(checked["warnings"].as_array().unwrap().len(), 0, "{checked}");
    let said = text(&workspace.run(&["plan", "explain", "crm"]).stdout);
    assert!(said.contains("keep: the newest 1") && said.contains("notify: ops"), "{said}");
    workspace.write_plan("shedule = \"15 2 * * *\"\nretry = { attempts = 0 }");
    let output = workspace.run(&["plan", "check"]);
    assert_eq!(output.status.code(), Some(2));
    let said = text(&output.stderr);
    assert!(said.contains("crm.toml:15:1") && said.contains("did you mean `schedule`?") && said.contains("crm.toml:16:"), "{said}");
    let document = workspace.json(&["plan", "check"], 2);
    assert_eq!(document["errors"].as_array().unwrap().len(), 2, "{document}");
    assert_eq!(workspace.run(&["backup", "crm"]).status.code(), Some(2), "nothing runs on a broken plan");
}

#[test]
fn a_backup_is_listed_restored_verified_and_drilled() {
    let workspace = Workspace::ready("");
    let backup = workspace.backup();
    has(
        &backup,
        "lifeboat.backup/1",
        &["plan", "snapshot", "time", "bytes_read", "bytes_stored", "duration_ms", "consistency", "warnings"],
    );
    let snapshot = backup["snapshot"].as_str().unwrap().to_owned();

    let drill = workspace.json(&["drill", "run", "crm"], 0);
    let wanted =
        ["id", "plan", "snapshot", "verdict", "recovery_time_ms", "data_loss_ms", "phases", "checks", "objectives", "skipped", "cleanup"];
    has(&drill, "lifeboat.drill/1", &wanted);
    assert_eq!(drill["verdict"], "passed");
    has(&workspace.json(&["verify", "crm"], 0), "lifeboat.verify/1", &["findings", "bytes_checked", "objects_checked"]);
    assert!(workspace.json(&["verify", "main", "--data"], 0)["bytes_checked"].as_u64().unwrap() > 0);

    let list = workspace.json(&["snapshots", "crm"], 0);
    has(&list, "lifeboat.snapshots/1", &["snapshots", "recovery_ranges"]);
    let listed = &list["snapshots"][0];
    for field in ["id", "time", "plan", "sources", "bytes_source", "bytes_stored", "verified_at", "proven_at"] {
        assert!(fields(listed).contains(field), "{field}");
    }
    assert_eq!(listed["id"], snapshot.as_str());
    assert!(listed["verified_at"].is_string() && listed["proven_at"].is_string(), "{listed}");
    assert_eq!(list["recovery_ranges"].as_array().unwrap().len(), 2);

    let to = workspace.path("restored");
    let restored = workspace.json(&["restore", "crm", "--snapshot", &snapshot[..20], "--to", to.to_str().unwrap()], 0);
    has(&restored, "lifeboat.restore/1", &["plan", "snapshot", "target", "at", "bytes_restored", "duration_ms", "phases"]);
    assert_eq!(std::fs::read_to_string(to.join("attachments/marked.txt")).unwrap(), MARKER);

    let id = drill["id"].as_str().unwrap();
    assert_eq!(workspace.json(&["drill", "report", id], 0)["id"], id);
    assert_eq!(workspace.json(&["drill", "history", "crm"], 0)["drills"][0]["id"], id);
    assert!(text(&workspace.run(&["drill", "history"]).stdout).contains("passed"));
    assert_eq!(kind(&workspace.json(&["drill", "report", "00000000000000000000000000"], 1)), "not-found");

    let status = workspace.json(&["status"], 0);
    has(&status, "lifeboat.status/1", &["plans"]);
    for field in ["name", "last_success", "next_run", "proven_at", "data_loss_ms", "recovery_time_ms", "problems"] {
        assert!(fields(&status["plans"][0]).contains(field), "{field}");
    }
    assert_eq!(status["plans"][0]["problems"].as_array().unwrap().len(), 0, "{status}");
    assert!(text(&workspace.run(&["status"]).stdout).contains("crm  OK"));

    let runs = workspace.json(&["run", "history"], 0);
    let jobs: Vec<&str> = runs["runs"].as_array().unwrap().iter().map(|run| run["job"].as_str().unwrap()).collect();
    assert_eq!(jobs, ["restore", "verify", "verify", "drill", "backup"]);
    let run = workspace.json(&["run", "show", runs["runs"][4]["id"].as_str().unwrap()], 0);
    assert_eq!(
        (run["schema"].as_str(), run["state"].as_str(), run["snapshot"].as_str()),
        (Some("lifeboat.run/1"), Some("succeeded"), Some(snapshot.as_str()))
    );
    assert!(!run["phases"].as_array().unwrap().is_empty());

    assert!(text(&workspace.run(&["snapshots"]).stdout).contains(&snapshot));
    let doctor = workspace.json(&["doctor", "crm"], 0);
    has(&doctor, "lifeboat.doctor/1", &["checks", "ok"]);
    assert!(workspace.run(&["doctor"]).status.success());
}

#[test]
fn the_recovery_key_is_shown_once_and_opens_the_repository_by_url() {
    let workspace = Workspace::new("");
    let init = workspace.json(&["repo", "init", "main"], 0);
    let key = init["recovery_key"].as_str().unwrap().to_owned();
    let touched = || std::fs::metadata(workspace.path("repository")).unwrap().modified().unwrap();
    let before = touched();
    assert_eq!(kind(&workspace.json(&["repo", "init", "main"], 1)), "already-exists");
    assert_eq!(touched(), before, "nothing is written where a repository is");
    workspace.backup();
    let url = format!("file://{}", workspace.path("repository").display());
    let other_state = workspace.path("other-machine");
    let restore = |plan: &str, passphrase: &str, to: &str| {
        let mut command = bare(&["restore", plan, "--from", &url, "--to"]);
        command.arg(workspace.path(to)).arg("--state").arg(&other_state).arg("--json").env("LIFEBOAT_PASSPHRASE", passphrase);
        let output = command.output().unwrap();
        (output.status.code(), serde_json::from_slice::<Value>(&output.stdout).unwrap(), text(&output.stderr))
    };
    let (code, document, said) = restore("crm", &key, "by-key");
    assert_eq!(code, Some(0), "{document} {said}");
    assert_eq!(std::fs::read_to_string(workspace.path("by-key/attachments/marked.txt")).unwrap(), MARKER);
    let (code, document, _) = restore("nobody", PASSPHRASE, "x");
    assert_eq!((code, kind(&document)), (Some(13), "no-recovery-point"));
    assert!(document["error"]["hint"].as_str().unwrap().contains("crm"), "{document}");
    let (code, document, _) = restore("crm", "wrong", "x");
    assert_eq!((code, kind(&document)), (Some(12), "wrong-key"));
    let output = bare(&["restore", "crm", "--from", &url, "--to", "x"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("LIFEBOAT_PASSPHRASE"));
}

#[test]
fn keys_have_roles() {
    let workspace = Workspace::ready("");
    let mut add = workspace.command(&["key", "add", "main", "--label", "backup-host", "--role", "writer", "--json"]);
    let output = add.env("LIFEBOAT_NEW_PASSPHRASE", "for-writing-only").output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let keys = workspace.json(&["key", "list", "main"], 0);
    let slot = keys["keys"].as_array().unwrap().iter().find(|key| key["label"] == "backup-host").unwrap_or_else(|| panic!("{keys}"));
    assert_eq!(slot["role"], "writer");
    let as_writer = |words: &[&str]| workspace.command(words).env("CRM_PASSPHRASE", "for-writing-only").output().unwrap().status.code();
    assert_eq!(as_writer(&["backup", "crm"]), Some(0));
    assert_eq!(as_writer(&["restore", "crm", "--to", workspace.path("r").to_str().unwrap()]), Some(12), "a writer cannot read");
    assert_eq!(as_writer(&["drill", "run", "crm"]), Some(12));
    assert!(workspace.run(&["key", "remove", "main", slot["id"].as_str().unwrap()]).status.success());
    assert_eq!(as_writer(&["backup", "crm"]), Some(12));
    let unset = workspace.run(&["key", "add", "main", "--label", "x", "--role", "reader", "--passphrase-env", "NOT_SET_AT_ALL"]);
    assert_eq!(unset.status.code(), Some(2));
    std::fs::write(workspace.path("repository/keys/0123456789abcdef"), "rotten").unwrap();
    let keys = workspace.json(&["key", "list", "main"], 20);
    assert!(keys["keys"].as_array().unwrap().len() == 2 && keys["damaged"][0].as_str().unwrap().contains("0123456789abcdef"), "{keys}");
}

#[test]
fn keys_are_rotated_shared_exported_and_destroyed() {
    use std::os::unix::fs::PermissionsExt as _;
    let workspace = Workspace::ready("");
    let path = |name: &str| workspace.path(name).to_str().unwrap().to_owned();
    let with = |key: &str, words: &[&str]| workspace.command(words).env("CRM_PASSPHRASE", key).output().unwrap();
    let read = |name: &str| std::fs::read_to_string(workspace.path(name)).unwrap().trim().to_owned();
    assert!(workspace.run(&["backup", "crm"]).status.success());

    // A recipient: made on the host, added with its public key; no secret travels.
    let made = workspace.json(&["key", "generate", "--out", &path("web1.key")], 0);
    assert_eq!(std::fs::metadata(workspace.path("web1.key")).unwrap().permissions().mode() & 0o777, 0o600);
    let public = made["recipient"].as_str().unwrap();
    assert!(public.starts_with("LBPK1-") && !made.to_string().contains(&read("web1.key")));
    assert_eq!(workspace.run(&["key", "generate", "--out", &path("web1.key")]).status.code(), Some(1), "nothing is overwritten");
    let added = workspace.json(&["key", "add", "main", "--label", "web1", "--role", "writer", "--recipient", public], 0);
    assert_eq!((added["key"]["kind"].as_str(), added["key"]["generation"].as_u64()), (Some("recipient"), Some(1)));
    assert!(with(&read("web1.key"), &["backup", "crm"]).status.success());
    assert_eq!(with(&read("web1.key"), &["restore", "crm", "--to", &path("r")]).status.code(), Some(12));
    let typo = read("web1.key").replace("LBSK1-", "LBSK1-0");
    assert_eq!(with(&typo, &["backup", "crm"]).status.code(), Some(12));

    // Shares: any two of three; one is not enough; a mistyped one is told.
    let shared = workspace.json(&["key", "export", "main", "--shares", "2-of-3", "--out", &path("shares")], 0);
    assert_eq!((shared["files"].as_array().unwrap().len(), shared.get("shares")), (3, None));
    let share = |n: u8| path(&format!("shares/share-{n}-of-3.txt"));
    let page = read("shares/share-3-of-3.txt");
    assert!(page.contains("SHARE 3 OF 3") && page.contains("any 2 together") && page.contains("file://"), "{page}");
    assert_eq!(workspace.json(&["key", "combine", &share(2), "--out", &path("no.key")], 2)["error"]["kind"], "usage");
    let bent = page.replacen('7', "8", usize::MAX);
    std::fs::write(workspace.path("bent.txt"), &bent).unwrap();
    if bent.split("LBSH1").nth(1) != page.split("LBSH1").nth(1) {
        let told = workspace.json(&["key", "combine", &path("bent.txt"), &share(1), "--out", &path("no.key")], 2);
        assert!(told["error"]["message"].as_str().unwrap().contains("bent.txt"), "{told}");
    }
    workspace.json(&["key", "combine", &share(3), &share(1), "--out", &path("recovered.key")], 0);
    assert!(with(&read("recovered.key"), &["restore", "crm", "--to", &path("from-shares"), "--yes"]).status.success());
    let both = std::fs::read_to_string(share(1)).unwrap() + &page;
    assert!(with(&both, &["snapshots", "crm"]).status.success(), "the pages themselves, one after the other");

    // As a tired person types it, the prefix too.
    std::fs::write(workspace.path("typed.txt"), std::fs::read_to_string(share(1)).unwrap().replace("LBSH1-", "lbshl-")).unwrap();
    workspace.json(&["key", "combine", &path("typed.txt"), &share(2), "--out", &path("typed.key")], 0);

    let paper = workspace.json(&["key", "export", "main", "--paper"], 0);
    let key = paper["recovery_key"].as_str().unwrap();
    for typed in [key.to_owned(), key.replacen('1', "I", 1), key.to_lowercase().replacen('1', "l", 1)] {
        assert!(with(&typed, &["snapshots", "crm"]).status.success());
    }
    workspace.json(&["key", "remove", "main", paper["key"]["id"].as_str().unwrap()], 0);

    // A rotation that shuts somebody out: the others go on with what they have.
    let mut add = workspace.command(&["key", "add", "main", "--label", "leaver", "--role", "reader", "--json"]);
    let leaver: serde_json::Value =
        serde_json::from_slice(&add.env("LIFEBOAT_NEW_PASSPHRASE", "words of the leaver").output().unwrap().stdout).unwrap();
    let rotated = workspace.json(&["key", "rotate", "main", "--without", &leaver["key"]["id"].as_str().unwrap()[..8]], 0);
    let rotation = &rotated["rotation"];
    assert_eq!((rotation["generation"].as_u64(), rotation["removed"][0]["label"].as_str()), (Some(2), Some("leaver")));
    assert_eq!((rotation["carried"].as_array().unwrap().len(), rotation["left_behind"].as_array().unwrap().len()), (4, 0));
    assert_eq!(with("words of the leaver", &["snapshots"]).status.code(), Some(12));
    assert!(with(&read("web1.key"), &["backup", "crm"]).status.success());
    assert!(with(&read("recovered.key"), &["restore", "crm", "--to", &path("after"), "--yes"]).status.success());
    let status = workspace.json(&["key", "rotate", "main", "--status"], 0);
    let (old, total) = (status["bytes_old"].as_u64().unwrap(), status["bytes_stored"].as_u64().unwrap());
    assert!(0 < old && old < total && status["generation"] == 2, "{status}");
    assert!(text(&workspace.run(&["key", "rotate", "main", "--status"]).stdout).contains("under generations before 2"));

    // The slot in use and the last reader's need their id said again.
    let keys = workspace.json(&["key", "list", "main", "--events"], 0);
    let own = keys["keys"].as_array().unwrap().iter().find(|key| key["current"] == true).unwrap()["id"].as_str().unwrap().to_owned();
    let refused = workspace.json(&["key", "remove", "main", &own], 2);
    assert!(refused["error"]["hint"].as_str().unwrap().contains(&format!("--confirm {own}")), "{refused}");
    let mut events: Vec<&str> = keys["events"].as_array().unwrap().iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!((events[0], events[events.len() - 1]), ("init", "rotate"));
    // What one command does has one time.
    events.sort_unstable();
    assert_eq!(events, ["add", "add", "add", "add", "export", "export", "init", "remove", "rotate"]);
    assert!(keys["events"].as_array().unwrap().iter().all(|event| event["signed"] == true));

    // An escrow file brings the repository back when all slots are lost.
    let escrow = workspace.json(&["key", "generate", "--out", &path("escrow.key")], 0);
    let to = escrow["recipient"].as_str().unwrap();
    workspace.json(&["key", "export", "main", "--recipient", to, "--label", "escrow", "--out", &path("escrow.json")], 0);
    assert_eq!(std::fs::metadata(workspace.path("escrow.json")).unwrap().permissions().mode() & 0o777, 0o600);
    let slots: Vec<PathBuf> = files(&workspace.path("repository/keys"));
    let saved: Vec<(PathBuf, Vec<u8>)> = slots.iter().map(|slot| (slot.clone(), std::fs::read(slot).unwrap())).collect();
    slots.iter().filter(|slot| !slot.to_str().unwrap().contains("generation-")).for_each(|slot| std::fs::remove_file(slot).unwrap());
    assert_eq!(workspace.run(&["snapshots"]).status.code(), Some(20));
    assert!(with(&read("escrow.key"), &["key", "import", "main", &path("escrow.json")]).status.success());
    assert!(with(&read("escrow.key"), &["restore", "crm", "--to", &path("from-escrow"), "--yes"]).status.success());
    saved.iter().for_each(|(slot, bytes)| std::fs::write(slot, bytes).unwrap());

    // A plan's own key, and its end.
    workspace.json(&["key", "own", "main", "--plan", "crm"], 0);
    let backup = workspace.json(&["backup", "crm"], 0);
    assert!(workspace.run(&["restore", "crm", "--to", &path("own"), "--yes"]).status.success());
    let unconfirmed = workspace.json(&["key", "erase", "main", "--plan", "crm", "--confirm", "cmr"], 2);
    assert!(unconfirmed["error"]["message"].as_str().unwrap().contains("nothing was touched"));
    let erased = workspace.json(&["key", "erase", "main", "--plan", "crm", "--confirm", "crm"], 0);
    assert_eq!(erased["keys"].as_array().unwrap().len(), 1);
    let snapshot = backup["snapshot"].as_str().unwrap();
    let told = workspace.json(&["restore", "crm", "--snapshot", snapshot, "--to", &path("gone"), "--yes"], 13);
    assert!(told.to_string().contains("was destroyed"), "{told}");
    assert_eq!(workspace.run(&["backup", "crm"]).status.code(), Some(12));
    // Not damage; but not all was opened, and that is said.
    assert_eq!(workspace.json(&["verify", "main", "--data"], 3)["findings"], serde_json::json!([]));
    assert!(text(&workspace.run(&["key", "list", "main"]).stdout).contains("DESTROYED"));
}

#[test]
fn snapshots_whose_key_was_destroyed_restore_nothing_and_everybody_says_so() {
    let workspace = Workspace::new("");
    workspace.write_plan(&format!(
        "keep = {{ last = 1 }}\n[[plan.crm.copy]]\nto = \"second\"\n[repository.second]\nurl = \"file://{}\"\npassphrase = {{ env = \"CRM_PASSPHRASE\" }}",
        workspace.path("second").display()
    ));
    for repository in ["main", "second"] {
        workspace.json(&["repo", "init", repository], 0);
    }
    let path = |name: &str| workspace.path(name).to_str().unwrap().to_owned();
    let id = |report: &Value| report["snapshot"].as_str().unwrap().to_owned();
    let backup = |note: &str| {
        std::fs::write(workspace.path("crm/attachments/note.txt"), note).unwrap();
        id(&workspace.backup())
    };
    let first = backup("before it had a key of its own");
    workspace.json(&["key", "own", "main", "--plan", "crm"], 0);
    let second = backup("under its own key");
    workspace.json(&["key", "erase", "main", "--plan", "crm", "--confirm", "crm"], 0);

    let list = workspace.json(&["snapshots", "crm"], 0);
    let listed = list["snapshots"].as_array().unwrap();
    let destroyed: Vec<(&str, bool)> = listed.iter().map(|one| (one["id"].as_str().unwrap(), one["destroyed_at"].is_string())).collect();
    assert_eq!(destroyed, [(first.as_str(), false), (second.as_str(), true)]);
    for range in list["recovery_ranges"].as_array().unwrap() {
        assert_eq!((&range["to"], range["points"].as_u64()), (&listed[0]["time"], Some(1)), "{list}");
    }
    assert!(text(&workspace.run(&["snapshots", "crm"]).stdout).contains(&format!("DESTROYED: snapshot {second}")));
    let problem = |status: &Value| {
        let problems = status["plans"][0]["problems"].as_array().unwrap();
        problems.iter().find(|problem| problem["kind"] == "key-destroyed").map(|problem| problem["message"].to_string())
    };
    let status = workspace.json(&["status"], 0);
    let plan = &status["plans"][0];
    assert_eq!((&plan["restorable_to"], &plan["whole_snapshot"]), (&listed[0]["time"], &Value::from(first.as_str())), "{status}");
    assert!(problem(&status).unwrap().contains(&second), "{status}");
    assert_eq!(workspace.run(&["doctor", "crm"]).status.code(), Some(12), "the next backup is refused");

    // What there is comes back, and is not what was asked for.
    let dry = workspace.json(&["restore", "crm", "--to", &path("back"), "--dry-run"], 3);
    assert_eq!((dry["snapshot"].as_str(), &dry["newer_unread"]), (Some(first.as_str()), &serde_json::json!([second])), "{dry}");
    assert!(dry["warnings"].to_string().contains("their key was destroyed at"), "{dry}");
    let report = workspace.json(&["restore", "crm", "--to", &path("back"), "--yes"], 3);
    assert_eq!((id(&report), &report["newer_unread"]), (first.clone(), &dry["newer_unread"]), "{report}");
    let gone = path("gone");
    for words in [&["--dry-run"][..], &["--yes"]] {
        let named = [&["restore", "crm", "--snapshot", &second[..20], "--to", &gone], words].concat();
        assert!(workspace.json(&named, 13).to_string().contains("the key of plan crm's data was destroyed"));
    }
    assert!(!workspace.path(".gone.lifeboat-partial").exists());
    let drill = workspace.json(&["drill", "run", "crm"], 0);
    assert!(id(&drill) == first && drill["warnings"].to_string().contains(&second), "{drill}");

    // It takes no place of what can be read, is copied by nobody, and goes with the next backup.
    let fates = |report: &Value| -> Vec<(String, bool, String)> {
        let fates = report["snapshots"].as_array().unwrap().iter();
        fates.map(|fate| (fate["id"].as_str().unwrap().to_owned(), fate["kept"] == true, fate["reasons"].to_string())).collect()
    };
    let planned = fates(&workspace.json(&["prune", "crm", "--dry-run"], 0));
    assert!(planned[0].1 && planned[0].2.contains("the newest whole one") && planned[0].2.contains("one of the last 1"), "{planned:?}");
    assert_eq!((planned[1].1, planned[1].2.as_str()), (true, "[\"the last that was committed\"]"));
    let copied = workspace.json(&["copy", "crm", "--to", "second"], 0);
    assert_eq!((copied["snapshots"].as_array().unwrap().len(), &copied["snapshots"][0]["original"]), (1, &Value::from(first.as_str())));
    assert!(copied["behind_ms"] == 0 && copied["warnings"].to_string().contains(&second), "{copied}");
    assert_eq!(kind(&workspace.json(&["copy", "crm", "--to", "second", "--snapshot", &second], 13)), "no-recovery-point");

    workspace.json(&["key", "own", "main", "--plan", "crm"], 0);
    let third = backup("under a new key");
    assert_eq!(problem(&workspace.json(&["status"], 0)), None);
    let pruned = fates(&workspace.json(&["prune", "crm"], 0));
    assert_eq!(
        pruned.iter().map(|(id, kept, _)| (id.as_str(), *kept)).collect::<Vec<_>>(),
        [(&*first, true), (&*second, false), (&*third, true)]
    );
    assert!(pruned[0].2.contains("a drill has proven") && pruned[1].2.contains("the key of its content was destroyed at"), "{pruned:?}");
    assert_eq!(id(&workspace.json(&["restore", "crm", "--to", &path("new"), "--yes"], 0)), third);
}

#[test]
fn exit_codes_tell_what_is_wrong() {
    let workspace = Workspace::new("");
    assert_eq!(kind(&workspace.json(&["backup", "crm"], 10)), "no-repository");
    assert!(workspace.run(&["repo", "init", "main"]).status.success());
    let to = workspace.path("restored");
    let to = to.to_str().unwrap();
    assert_eq!(kind(&workspace.json(&["restore", "crm", "--to", to], 13)), "no-recovery-point");
    let missing = workspace.command(&["backup", "crm"]).env_remove("CRM_PASSPHRASE").output().unwrap();
    assert_eq!(missing.status.code(), Some(2), "{}", text(&missing.stderr));
    let wrong = workspace.command(&["backup", "crm"]).env("CRM_PASSPHRASE", "wrong").output().unwrap();
    assert_eq!(wrong.status.code(), Some(12), "{}", text(&wrong.stderr));
    workspace.backup();
    assert_eq!(kind(&workspace.json(&["restore", "crm", "--at", "2020-01-01 00:00", "--to", to], 13)), "no-recovery-point");
    assert_eq!(kind(&workspace.json(&["restore", "crm", "--at", "yesterday", "--to", to], 2)), "usage");
    assert_eq!(kind(&workspace.json(&["restore", "crm", "--latest-proven", "--to", to], 13)), "no-recovery-point");
    std::fs::rename(&workspace.made.database, workspace.path("gone")).unwrap();
    let gone = workspace.run(&["backup", "crm"]);
    assert_eq!(gone.status.code(), Some(1), "{}", text(&gone.stderr));
    assert_eq!(workspace.json(&["snapshots"], 0)["snapshots"].as_array().unwrap().len(), 1, "nothing half-done was committed");
    let status = workspace.json(&["status"], 0);
    let problems: BTreeSet<&str> = status["plans"][0]["problems"].as_array().unwrap().iter().map(|p| p["kind"].as_str().unwrap()).collect();
    assert_eq!(problems, BTreeSet::from(["failed", "never-proven"]), "{status}");
}

#[test]
fn damage_is_exit_20_and_a_missed_objective_22() {
    let workspace = Workspace::ready("objectives = { data_loss = \"1s\" }");
    workspace.backup();
    let report = loop {
        // The data-loss objective of one second passes by itself; the condition is the clock, not this machine's speed.
        let output = workspace.command(&["drill", "run", "crm", "--json"]).output().unwrap();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        if report["data_loss_ms"].as_u64().unwrap() > 1000 {
            assert_eq!(output.status.code(), Some(22), "{report}");
            break report;
        }
    };
    assert_eq!(report["verdict"], "passed", "recovery itself worked: {report}");
    let pack = files(&workspace.path("repository/packs")).into_iter().max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    damage(&pack);
    let verify = workspace.json(&["verify", "main", "--data"], 20);
    assert!(!verify["findings"].as_array().unwrap().is_empty());
    let drill = workspace.json(&["drill", "run", "crm"], 20);
    assert_eq!(drill["verdict"], "failed");
    let status = workspace.json(&["status"], 0);
    let problems: BTreeSet<&str> = status["plans"][0]["problems"].as_array().unwrap().iter().map(|p| p["kind"].as_str().unwrap()).collect();
    for kind in ["drill-failed", "damaged", "data-loss-objective"] {
        assert!(problems.contains(kind), "{kind}: {status}");
    }
    workspace.json(&["verify", "main"], 0);
    let status = workspace.json(&["status", "--check"], 20);
    assert!(status["plans"][0]["problems"].to_string().contains("\"damaged\""), "the structure says nothing of it: {status}");
}

#[test]
fn status_with_check_is_exit_0_only_without_any_problem() {
    let workspace = Workspace::ready("");
    let told = |words: &[&str], code| workspace.json(words, code)["plans"][0]["problems"].to_string();
    assert!(told(&["status", "--check"], 22).contains("never-backed-up"));
    workspace.backup();
    assert!(told(&["status", "--check"], 20).contains("never-proven"));
    workspace.json(&["drill", "run", "crm"], 0);
    assert_eq!(told(&["status", "--check"], 0), "[]");
    std::os::unix::net::UnixListener::bind(workspace.made.attachments.join("socket")).unwrap();
    workspace.json(&["backup", "crm"], 3);
    assert!(told(&["status", "--check"], 3).contains("socket"));
    assert!(told(&["status"], 0).contains("socket"));
    let help = text(&workspace.run(&["status", "--help"]).stdout);
    assert!(help.contains("--check") && help.contains("the exit code is 0 also with problems"), "{help}");
}

#[test]
fn a_drill_without_a_stored_report_is_in_the_history() {
    use lifeboat::daemon::journal::{Ending, Job, Journal, NewRun, State};
    let workspace = Workspace::ready("");
    workspace.backup();
    let drilled = workspace.json(&["drill", "run", "crm"], 0);
    let now = chrono::Utc::now();
    let journal = Journal::open(&workspace.path("state"), now).unwrap();
    let run = NewRun::manual(&lifeboat::id::Name::new("crm").unwrap(), Job::Drill, "tester", now);
    let claim = journal.begin(&run, now).unwrap();
    let ending = Ending { report: Some(lifeboat::id::ReportId::generate(now).to_string()), ..Ending::new(State::Failed) };
    journal.close(claim, &ending, now).unwrap();
    drop(journal);
    let history = workspace.json(&["drill", "history", "crm"], 0);
    assert_eq!((history["drills"].as_array().unwrap().len(), history["drills"][0]["id"].clone()), (1, drilled["id"].clone()));
    let unstored = history["unstored"].as_array().unwrap();
    assert!(unstored.len() == 1 && unstored[0].as_str().unwrap().contains(&claim.id.to_string()), "{history}");
    assert!(text(&workspace.run(&["drill", "history"]).stdout).contains("WITHOUT A STORED REPORT"));
    assert!(workspace.json(&["status", "--check"], 20)["plans"][0]["problems"].to_string().contains("drill-failed"));
}

#[test]
fn what_stands_at_the_target_is_only_replaced_by_name() {
    let workspace = Workspace::ready("");
    workspace.backup();
    let to = workspace.path("place");
    std::fs::create_dir(&to).unwrap();
    std::fs::write(to.join("precious"), "mine").unwrap();
    let to_text = to.to_str().unwrap();
    for words in [vec![], vec!["--yes"], vec!["--overwrite", "other"]] {
        let words: Vec<&str> = ["restore", "crm", "--to", to_text].into_iter().chain(words).collect();
        let output = workspace.run(&words);
        assert_eq!(output.status.code(), Some(2), "{words:?}");
        assert!(text(&output.stderr).contains("--overwrite place"), "{}", text(&output.stderr));
        assert_eq!(std::fs::read_to_string(to.join("precious")).unwrap(), "mine");
    }
    let dry = workspace.json(&["restore", "crm", "--to", to_text, "--dry-run"], 0);
    assert_eq!((dry["schema"].as_str(), dry["confirmation"].as_str()), (Some("lifeboat.restore-plan/1"), Some("place")));
    let done = workspace.json(&["restore", "crm", "--to", to_text, "--overwrite", "place"], 0);
    let aside = done["moved_aside"][0]["moved_to"].as_str().unwrap();
    assert_eq!(std::fs::read_to_string(std::path::Path::new(aside).join("precious")).unwrap(), "mine");
    assert!(to.join("attachments/marked.txt").exists());
}

#[test]
fn a_quiet_restore_still_says_what_changes_its_result() {
    let workspace = Workspace::ready("");
    workspace.backup();
    let second = workspace.backup();
    let id = second["snapshot"].as_str().unwrap();
    let manifest = files(&workspace.path("repository")).into_iter().find(|path| path.ends_with(id)).unwrap();
    damage(&manifest);
    let words = |to: &str| {
        ["-q", "restore", "crm", "--yes", "--to"].map(String::from).into_iter().chain([workspace.path(to).display().to_string()])
    };
    let output = workspace.command(&[]).args(words("r")).output().unwrap();
    let (out, said) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(3), "not what was asked for: {said}");
    assert!(said.contains("warning: a manifest cannot be read") && !said.contains("will take"), "{said}");
    assert!(out.contains("warning: a manifest cannot be read"), "{out}");
    let output = workspace.command(&["--json"]).args(words("s")).output().unwrap();
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(document["warnings"].to_string().contains("a manifest cannot be read"), "{document}");
}

#[test]
fn a_restore_says_what_it_will_do_and_echoes_times_in_both_zones() {
    let workspace = Workspace::ready("");
    workspace.backup();
    let output = workspace.run(&["restore", "crm", "--at", "2099-01-01 08:00", "--to", workspace.path("r").to_str().unwrap()]);
    let said = text(&output.stderr);
    if output.status.success() {
        assert!(said.contains("will take") && said.contains("overwrites"), "{said}");
    } else {
        assert_eq!(output.status.code(), Some(13), "the future is no recovery point: {said}");
    }
    assert!(said.contains("2099-01-01 08:00:00 +08:00 (2099-01-01T00:00:00Z)"), "{said}");
}

#[test]
fn an_incomplete_backup_prints_its_result_and_exits_3() {
    let workspace = Workspace::ready("");
    // A file that cannot be read: for root only one that is not a plain file, so a socket serves both.
    let _socket = std::os::unix::net::UnixListener::bind(workspace.made.attachments.join("socket")).unwrap();
    let report = workspace.json(&["backup", "crm"], 3);
    assert_eq!(report["incomplete"], true);
    assert!(report["snapshot"].is_string());
    let output = workspace.run(&["backup", "crm"]);
    assert!(text(&output.stdout).contains("INCOMPLETE"), "{}", text(&output.stdout));
    assert_eq!(workspace.json(&["run", "history"], 0)["runs"][0]["state"], "incomplete");
}

#[test]
fn progress_as_json_lines_starts_at_once_and_stays_off_stdout() {
    let workspace = Workspace::ready("");
    let output = workspace.run(&["backup", "crm", "--progress", "json", "--json"]);
    serde_json::from_slice::<Value>(&output.stdout).unwrap();
    let lines: Vec<Value> =
        text(&output.stderr).lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect();
    assert_eq!(lines[0]["event"], "start");
    assert_eq!(lines.last().unwrap()["event"], "end");
    assert!(lines.iter().any(|line| line["event"] == "phase") && lines.iter().any(|line| line["bytes"].as_u64() > Some(0)));
    let silent = workspace.run(&["backup", "crm", "--progress", "none"]);
    assert!(silent.stderr.is_empty(), "{}", text(&silent.stderr));
    let lines = text(&workspace.run(&["backup", "crm"]).stderr);
    assert!(lines.starts_with("backup: starting\n") && !lines.contains('\u{1b}'), "{lines}");
}

#[test]
fn a_reader_that_goes_away_ends_output_quietly() {
    let mut child = bare(&["completions", "bash"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(said, "");
}

#[test]
fn completions_and_manual_pages_are_written() {
    for shell in ["bash", "zsh", "fish"] {
        assert!(text(&bare(&["completions", shell]).output().unwrap().stdout).contains("lifeboat"), "{shell}");
    }
    assert!(text(&bare(&["man"]).output().unwrap().stdout).contains(".TH lifeboat"));
    let folder = tempfile::tempdir().unwrap();
    assert!(bare(&["man", "--dir"]).arg(folder.path()).output().unwrap().status.success());
    for page in ["lifeboat.1", "lifeboat-drill-run.1", "lifeboat-key-add.1"] {
        assert!(folder.path().join(page).exists(), "{page}: {:?}", files(folder.path()));
    }
}

#[test]
fn a_restore_needs_no_secret_and_no_driver_that_its_snapshot_does_not() {
    let workspace = Workspace::ready("");
    workspace.backup();
    // Since then the plan has grown: by a database without a driver here, and by dumps whose secrets this machine does not have.
    let file = workspace.path("plans/crm.toml");
    let plan = std::fs::read_to_string(&file).unwrap();
    let more = r#"[source.orders]
kind = "mysql"
url = { env = "NO_SUCH_URL" }
[source.dumped]
kind = "command"
dump = ["true"]
environment = { TOKEN = { env = "NO_SUCH_TOKEN" } }
[plan.crm]
sources = ["database", "attachments", "orders", "dumped"]
"#;
    let plan = plan.replace("[plan.crm]\nsources = [\"database\", \"attachments\"]\n", more);
    std::fs::write(&file, &plan).unwrap();
    workspace.json(&["backup", "crm"], 2);
    let to = workspace.path("back");
    let restored = workspace.json(&["restore", "crm", "--yes", "--to", to.to_str().unwrap()], 0);
    assert_eq!(restored["incomplete"], false);
    assert!(to.join("attachments/marked.txt").exists());

    // What the snapshot does need is missed before anything is fetched.
    let command = |secret: &str, restore: &str| {
        let start = plan.find("[source.orders]").unwrap();
        let end = plan.find("repository = \"main\"").unwrap();
        let sources = format!(
            "[source.dumped]\nkind = \"command\"\ndump = [\"echo\", \"x\"]\n{restore}environment = {{ TOKEN = {{ env = \"{secret}\" }} }}\n"
        );
        std::fs::write(&file, format!("{}{sources}[plan.crm]\nsources = [\"dumped\"]\n{}", &plan[..start], &plan[end..])).unwrap();
    };
    command("CRM_PASSPHRASE", "");
    workspace.backup();
    let (dump, folder) = (workspace.path("dump"), workspace.path("loaded"));
    command("NO_SUCH_TOKEN", "");
    workspace.json(&["restore", "crm", "--yes", "--to", dump.to_str().unwrap()], 0);
    assert_eq!(std::fs::read_to_string(&dump).unwrap(), "x\n");
    command("NO_SUCH_TOKEN", "restore = [\"true\"]\n");
    let missing = workspace.run(&["restore", "crm", "--yes", "--to", folder.to_str().unwrap()]);
    assert_eq!(missing.status.code(), Some(2));
    assert!(text(&missing.stderr).contains("NO_SUCH_TOKEN"), "{}", text(&missing.stderr));
    assert!(!workspace.path(".loaded.lifeboat-partial").exists());
}

#[test]
fn a_damaged_journal_stops_backups_with_a_way_out_but_never_a_restore() {
    let workspace = Workspace::ready("");
    workspace.backup();
    for file in files(&workspace.path("state")).iter().filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("journal")) {
        std::fs::write(file, vec![b'x'; 9000]).unwrap();
    }
    let refused = workspace.run(&["backup", "crm"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("lifeboat run rebuild"), "{}", text(&refused.stderr));
    let restored = workspace.run(&["restore", "crm", "--to", workspace.path("restored").to_str().unwrap()]);
    assert!(restored.status.success(), "{}", text(&restored.stderr));
    assert!(text(&restored.stderr).contains("not recorded"));
}

#[test]
fn a_journal_that_refuses_every_write_neither_stops_nor_fails_a_restore() {
    let workspace = Workspace::ready("");
    workspace.backup();
    let journal = || {
        let journals = files(&workspace.path("state"));
        let path = journals.iter().find(|path| path.file_name().unwrap().to_string_lossy().starts_with("journal")).unwrap();
        rusqlite::Connection::open(path).unwrap()
    };
    let restored = |to: &str| {
        let output = workspace.run(&["restore", "crm", "--to", workspace.path(to).to_str().unwrap()]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains("not recorded"), "{}", text(&output.stderr));
        assert_eq!(std::fs::read_to_string(workspace.path(to).join("attachments/marked.txt")).unwrap(), MARKER);
    };
    journal().execute_batch("CREATE TRIGGER no_end BEFORE UPDATE ON runs BEGIN SELECT RAISE(FAIL, 'planted'); END").unwrap();
    restored("no-end");
    // That run was left open: the next one would have to settle it first.
    restored("no-settling");
    journal().execute_batch("CREATE TRIGGER no_begin BEFORE INSERT ON runs BEGIN SELECT RAISE(FAIL, 'planted'); END").unwrap();
    restored("no-begin");
}

#[test]
fn secrets_and_content_are_nowhere_but_where_they_belong() {
    let workspace = Workspace::ready("");
    let mut said = Vec::new();
    let target = workspace.path("restored");
    for words in [
        vec!["backup", "crm", "-vvv"],
        vec!["backup", "crm", "--json", "-vvv", "--log-format", "json", "--progress", "json"],
        vec!["drill", "run", "crm", "-vvv"],
        vec!["verify", "main", "--data", "-vvv"],
        vec!["plan", "show", "crm"],
        vec!["doctor", "crm", "-vvv"],
        vec!["status", "-vvv"],
        vec!["run", "history", "--json"],
        vec!["drill", "history", "--json"],
        vec!["restore", "crm", "-vvv", "--to", target.to_str().unwrap()],
    ] {
        let output = workspace.run(&words);
        assert!(output.status.success(), "{words:?}: {}", text(&output.stderr));
        said.push((words.join(" "), [output.stdout, output.stderr].concat()));
    }
    for folder in ["state", "repository"] {
        said.extend(files(&workspace.path(folder)).into_iter().map(|path| (path.display().to_string(), std::fs::read(path).unwrap())));
    }
    assert!(said.len() > 15);
    for (place, bytes) in said {
        for secret in [PASSPHRASE, MARKER] {
            assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()), "{secret} is in {place}");
        }
    }
    let restored = files(&target).into_iter().any(|path| {
        let bytes = std::fs::read(path).unwrap();
        bytes.windows(MARKER.len()).any(|window| window == MARKER.as_bytes())
    });
    assert!(restored, "the marker is found where it belongs, so the search works");
}

#[test]
fn rows_that_a_check_yields_or_a_command_prints_are_kept_nowhere() {
    let place = Workspace::new("");
    let marked = place.made.attachments.join("marked.txt");
    // Quotes a row and fails, as loading a dump does where a key is there already.
    let quote = format!("cat '{}' >&2; exit 4", marked.display());
    let check = |name: &str, sql: &str, expect: &str| {
        format!("[[plan.crm.drill.check]]\nname = \"{name}\"\nsource = \"database\"\nsql = \"{sql}\"\nexpect = \"{expect}\"\n")
    };
    let first = "FROM accounts WHERE id = (SELECT min(id) FROM accounts)";
    place.write_plan(&format!(
        "[plan.crm.drill]\nkeep_target_on_failure = \"0s\"\n{}{}{}
[source.broken]\nkind = \"command\"\ndump = [\"sh\", \"-c\", \"{quote}\"]
[plan.broken]\nsource = \"broken\"\nrepository = \"main\"
[source.loads]\nkind = \"command\"\ndump = [\"echo\", \"x\"]\nrestore = [\"sh\", \"-c\", \"{quote}\"]
[plan.loads]\nsource = \"loads\"\nrepository = \"main\"",
        check("wrong text", &format!("SELECT name {first}"), "= 'nobody'"),
        check("right text", &format!("SELECT name {first}"), "is not null"),
        check("quoting function", &format!("SELECT json_extract('{{}}', name) {first}"), "= 1"),
    ));
    let mut said: Vec<(String, Vec<u8>)> = Vec::new();
    let mut run = |words: &[&str], code: i32| {
        let output = place.run(words);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {}", text(&output.stderr));
        let (quoted, kept): (Vec<String>, Vec<String>) =
            text(&output.stderr).lines().map(str::to_owned).partition(|line| line.contains(MARKER));
        assert!(quoted.iter().all(|line| line.starts_with("  it said: ")), "only to whoever is there: {quoted:?}");
        said.push((words.join(" "), [output.stdout.clone(), kept.join("\n").into_bytes()].concat()));
        (text(&output.stdout), quoted.len())
    };
    run(&["repo", "init", "main"], 0);
    run(&["backup", "crm"], 0);
    run(&["backup", "loads"], 0);
    let (report, _) = run(&["drill", "run", "crm", "-vvv"], 20);
    let length = format!("expected = 'nobody', found text of {} bytes", MARKER.len());
    assert!(report.contains(&length) && report.contains("quoting function: expected = 1, found"), "{report}");
    let (document, _) = run(&["drill", "run", "crm", "--json", "-vvv", "--log-format", "json"], 20);
    let id = serde_json::from_str::<Value>(&document).unwrap()["id"].as_str().unwrap().to_owned();
    run(&["drill", "report", &id], 0);
    let page = place.path("state/report.html");
    run(&["drill", "report", &id, "--html", page.to_str().unwrap()], 0);
    assert_eq!(run(&["backup", "broken", "-vvv"], 1).1, 1, "the operator sees what the command said");
    assert_eq!(run(&["backup", "broken", "--json", "-vvv", "--log-format", "json"], 1).1, 1);
    assert_eq!(run(&["drill", "run", "loads", "-vvv"], 1).1, 1, "also when it is the restore command of a drill");
    for words in [["run", "history", "--json"], ["drill", "history", "--json"], ["status", "--json", "-vvv"]] {
        run(&words, 0);
    }
    let runs = place.json(&["run", "history"], 0);
    for run in runs["runs"].as_array().unwrap() {
        said.push(("run show".into(), run.to_string().into_bytes()));
    }
    assert!(runs.to_string().contains("exited with 4"), "{runs}");
    for folder in ["state", "repository"] {
        said.extend(files(&place.path(folder)).into_iter().map(|path| (path.display().to_string(), std::fs::read(path).unwrap())));
    }
    for (place, bytes) in said {
        assert!(!bytes.windows(MARKER.len()).any(|window| window == MARKER.as_bytes()), "a row is in {place}");
    }
}

#[test]
fn an_interrupted_backup_says_what_was_kept_and_the_next_one_succeeds() {
    let workspace = Workspace::ready("");
    let pipe = workspace.path("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let plan = format!(
        "[source.slow]\nkind = \"command\"\ndump = [\"cat\", \"{}\"]\n[plan.slow]\nsource = \"slow\"\nrepository = \"main\"",
        pipe.display()
    );
    workspace.write_plan(&plan);
    let mut child = workspace
        .command(&["backup", "slow", "--json", "--progress", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Opening the other end succeeds once the program reads; it gets some bytes and then waits for more.
    let mut writer = std::fs::OpenOptions::new().write(true).open(&pipe).unwrap();
    std::io::Write::write_all(&mut writer, b"half a dump").unwrap();
    let pid = rustix::process::Pid::from_raw(child.id().try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output = {
        let mut stdout = String::new();
        child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
        let mut stderr = String::new();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        (child.wait().unwrap().code(), stdout, stderr)
    };
    drop(writer);
    assert_eq!(output.0, Some(130), "{output:?}");
    let document: Value = serde_json::from_str(&output.1).unwrap();
    assert_eq!(kind(&document), "interrupted");
    assert!(output.2.contains("stopping cleanly"), "{}", output.2);
    assert!(!document["error"]["hint"].is_null(), "{document}");
    assert_eq!(workspace.json(&["run", "history"], 0)["runs"][0]["state"], "interrupted");
    workspace.backup();
}

#[test]
fn a_damaged_report_or_manifest_hides_nothing_else() {
    let workspace = Workspace::ready("[plan.files]\nsources = [\"attachments\"]\nrepository = \"main\"");
    let first = workspace.backup();
    let other = workspace.json(&["backup", "files"], 0);
    let lost = workspace.json(&["drill", "run", "crm"], 0);
    let kept = workspace.json(&["drill", "run", "crm"], 0);
    damage(&workspace.path("repository/reports").join(lost["id"].as_str().unwrap()));
    let history = workspace.json(&["drill", "history", "crm"], 20);
    assert_eq!((history["drills"].as_array().unwrap().len(), history["damaged"].as_array().unwrap().len()), (1, 1), "{history}");
    assert_eq!(kind(&workspace.json(&["drill", "report", lost["id"].as_str().unwrap()], 20)), "damaged");
    assert_eq!(workspace.json(&["drill", "report", kept["id"].as_str().unwrap()], 0)["id"], kept["id"]);
    let page = workspace.path("report.html");
    workspace.json(&["drill", "report", kept["id"].as_str().unwrap(), "--html", page.to_str().unwrap()], 0);
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.contains("Recovery drill of crm: PASSED") && page.contains("<svg"), "{page}");
    let list = workspace.json(&["snapshots", "crm"], 20);
    assert_eq!(list["snapshots"][0]["proven_at"], kept["time"], "{list}");
    let to = workspace.path("restored");
    let proven = workspace.run(&["restore", "crm", "--latest-proven", "--to", to.to_str().unwrap()]);
    assert!(proven.status.success(), "{}", text(&proven.stderr));
    assert!(text(&proven.stderr).contains("a report cannot be read"), "{}", text(&proven.stderr));
    let again = workspace.json(&["drill", "run", "crm"], 0);
    assert!(again["warnings"].to_string().contains("a report cannot be read"), "{again}");

    let manifests = files(&workspace.path("repository/snapshots"));
    damage(manifests.iter().find(|path| path.ends_with(other["snapshot"].as_str().unwrap())).unwrap());
    let status = workspace.json(&["status"], 0);
    for plan in status["plans"].as_array().unwrap() {
        assert_eq!(plan["repository_reachable"], true, "{plan}");
        assert!(plan["problems"].as_array().unwrap().iter().any(|problem| problem["kind"] == "damaged"), "{plan}");
    }
    assert_eq!(status["plans"][0]["recovery_point"], first["time"], "{status}");
    let url = format!("file://{}", workspace.path("repository").display());
    let words = ["restore", "crm", "--from", &url, "--snapshot", first["snapshot"].as_str().unwrap(), "--to"];
    let by_url = |to: &str| {
        let mut command = bare(&words);
        command.arg(workspace.path(to)).arg("--state").arg(workspace.path("other-state")).env("LIFEBOAT_PASSPHRASE", PASSPHRASE);
        command.output().unwrap()
    };
    let restored = by_url("by-url");
    assert!(restored.status.success(), "{}", text(&restored.stderr));
    assert!(text(&restored.stderr).contains("warning: a manifest cannot be read"), "{}", text(&restored.stderr));
    let listed = text(&workspace.run(&["snapshots", "crm"]).stdout);
    assert!(listed.contains("can be recovered to 1 moment: "), "{listed}");
}

#[test]
fn a_wrong_passphrase_is_no_unreachable_repository() {
    let workspace = Workspace::ready("");
    let output = workspace.command(&["status", "--json"]).env("CRM_PASSPHRASE", "wrong").output().unwrap();
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    let problems = status["plans"][0]["problems"].to_string();
    assert!(problems.contains("\"wrong-key\"") && !problems.contains("repository-unreachable"), "{status}");
}

#[test]
fn prune_says_why_and_then_does_exactly_that() {
    let workspace = Workspace::ready("keep = { last = 1 }");
    let ids: Vec<String> = (0..4)
        .map(|round| {
            std::fs::write(workspace.made.attachments.join("round.bin"), vec![round; 300_000 + usize::from(round)]).unwrap();
            workspace.backup()["snapshot"].as_str().unwrap().to_owned()
        })
        .collect();
    let held = workspace.json(&["snapshots", "hold", &ids[1], "--reason", "audit"], 0);
    assert_eq!((held["schema"].as_str(), held["held"].as_bool()), (Some("lifeboat.hold/1"), Some(true)));
    assert_eq!(kind(&workspace.json(&["snapshots", "hold", &ids[1], "--until", "2020-01-01", "--reason", "x"], 2)), "usage");
    let before = files(&workspace.path("repository"));
    let planned = workspace.json(&["prune", "crm", "--dry-run"], 0);
    assert_eq!(files(&workspace.path("repository")), before, "a dry run writes nothing");
    let fates: Vec<bool> = planned["snapshots"].as_array().unwrap().iter().map(|s| s["kept"].as_bool().unwrap()).collect();
    assert_eq!(fates, [false, true, false, true]);
    let shown = text(&workspace.run(&["prune", "crm", "--dry-run"]).stdout);
    assert!(shown.contains("held: audit") && shown.contains("no rule keeps it") && shown.contains("would remove 2 snapshots"), "{shown}");
    let done = workspace.json(&["prune", "crm"], 0);
    assert_eq!(done["snapshots"], planned["snapshots"]);
    assert!(done["collection"]["packs_deleted"].as_u64().unwrap() > 0, "{done}");
    let left = workspace.json(&["snapshots", "crm"], 0);
    let left: Vec<&str> = left["snapshots"].as_array().unwrap().iter().map(|s| s["id"].as_str().unwrap()).collect();
    assert_eq!(left, [ids[1].as_str(), ids[3].as_str()]);
    assert_eq!(
        kind(&workspace.json(&["restore", "crm", "--snapshot", &ids[0], "--to", workspace.path("to").to_str().unwrap(), "--yes"], 13)),
        "no-recovery-point"
    );
    workspace.json(&["verify", "crm", "--data"], 0);
    workspace.json(&["restore", "crm", "--latest", "--to", workspace.path("to").to_str().unwrap(), "--yes"], 0);
    // Released, it goes with the next one; the run stands in the journal.
    workspace.json(&["snapshots", "release", &ids[1]], 0);
    assert_eq!(kind(&workspace.json(&["snapshots", "release", &ids[1]], 2)), "usage");
    assert_eq!(workspace.json(&["prune", "main"], 0)["snapshots_removed"], 1);
    let history = text(&workspace.run(&["run", "history", "--plan", "crm"]).stdout);
    assert!(history.contains("prune"), "{history}");
    // What cannot be read stands in the way, and says so.
    workspace.backup();
    let manifest = files(&workspace.path("repository/snapshots")).pop().unwrap();
    damage(&manifest);
    let blocked = workspace.json(&["prune", "crm"], 20);
    assert_eq!(blocked["snapshots_removed"], 0);
    assert!(blocked["blocked"][0].as_str().unwrap().contains("snapshots/"), "{blocked}");
}

//! What an operator meets on a bad day: a machine without plans, a repository without its plain objects, words that must help.
#![expect(clippy::unwrap_used, reason = "a test fails by it; clippy knows only functions marked as tests")]

mod support;
#[path = "support/workspace.rs"]
mod workspace;

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use lifeboat::daemon::journal::{Filter, Job, Journal, NewRun, State};
use lifeboat::id::Name;
use lifeboat::repo::{Gap, OpenOptions, Passphrase, Repository, share_covers};
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
    let second = workspace.json(&["backup", "crm"], 0)["snapshot"].as_str().unwrap().to_owned();
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
    // That the second one was removed is forgotten, too: so it is gone although nobody removed it, until somebody says that it is.
    let blocked = workspace.json(&["prune", "crm"], 20);
    assert!(blocked["collection"]["blocked"].to_string().contains("is gone although nobody removed it"), "{blocked}");
    workspace.json(&["repair", "main", "--yes", "--accept-loss", &second, "--reason", "it was removed"], 0);
    workspace.json(&["prune", "crm"], 0);
    let left = workspace.json(&["snapshots", "crm"], 0);
    assert_eq!(left["snapshots"].as_array().unwrap().len(), 1, "nothing holds the first any more: {left}");
}

/// Who cannot see a manifest does not know what it leads to.
#[test]
fn a_manifest_that_is_gone_or_has_another_name_keeps_prune_from_deleting() {
    let workspace = Workspace::ready("keep = { last = 4 }");
    let mut ids = Vec::new();
    for n in 0..3 {
        std::fs::write(workspace.path("crm/attachments/new.txt"), vec![n; 300_000]).unwrap();
        ids.push(workspace.backup()["snapshot"].as_str().unwrap().to_owned());
    }
    let all = files(&workspace.path("repository/snapshots"));
    let manifest = |id: &str| all.iter().find(|path| path.ends_with(id)).unwrap().clone();
    let chain = manifest(&ids[0]).parent().unwrap().to_owned();
    let packs = files(&workspace.path("repository/packs"));
    let renamed = |path: &Path, name: &str| path.with_file_name(name);
    let (middle, newest) = (manifest(&ids[1]), manifest(&ids[2]));
    for (what, from, to) in [
        ("away", middle.clone(), workspace.path("away")),
        ("in conflict", middle.clone(), renamed(&middle, &format!("{} (conflict)", ids[1]))),
        ("in capitals", newest.clone(), renamed(&newest, &ids[2].to_uppercase())),
        ("in a folder of another name", chain.clone(), renamed(&chain, &format!("{} (1)", chain.file_name().unwrap().to_str().unwrap()))),
    ] {
        std::fs::rename(&from, &to).unwrap();
        let blocked = workspace.json(&["prune", "crm"], 20);
        assert!(!blocked["collection"]["blocked"].as_array().unwrap().is_empty(), "{what}: {blocked}");
        assert_eq!(files(&workspace.path("repository/packs")), packs, "{what}");
        std::fs::rename(&to, &from).unwrap();
    }
    // What others copied or left there stands in nobody's way.
    std::fs::copy(&middle, renamed(&middle, &format!("{}~", ids[1]))).unwrap();
    std::fs::copy(&middle, renamed(&middle, &format!("._{}", ids[1]))).unwrap();
    std::fs::write(chain.join(".DS_Store"), "x").unwrap();
    workspace.json(&["prune", "crm"], 0);
    workspace.json(&["verify", "main", "--data"], 0);
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

/// Files that a NAS, a file manager or NFS puts into every folder that it sees are nobody's objects, and stop nothing.
#[test]
fn files_of_others_in_the_repository_are_passed_over() {
    let workspace = Workspace::ready("keep = { last = 2 }");
    workspace.backup();
    workspace.json(&["drill", "run", "crm"], 0);
    workspace.json(&["key", "own", "main", "--plan", "crm"], 0);
    let first = workspace.backup();
    workspace.json(&["snapshots", "hold", first["snapshot"].as_str().unwrap(), "--reason", "audit"], 0);
    workspace.json(&["prune", "crm"], 0);
    let repository = workspace.path("repository");
    for folder in ["sessions", "gc/tombstones", "gc/waits", "gc/moved", "retention/ids"] {
        std::fs::create_dir_all(repository.join(folder)).unwrap();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let store = Store::open(&StoreConfig::at(format!("file://{}", repository.display()))).unwrap();
    let opened = Repository::open(store, runtime.handle().clone(), &Passphrase::new(PASSPHRASE), &OpenOptions::default()).unwrap();
    let log = opened.log(&Name::new("other").unwrap(), &Name::new("database").unwrap());
    for piece in 0..2 {
        log.append(1, piece * 10, piece * 10 + 5, &serde_json::json!({}), b"bytes").unwrap();
    }
    log.record_gap(&Gap { stream: 1, from: 5, to: 10, reason: "a test".into(), noticed_at: chrono::Utc::now(), unreadable: false })
        .unwrap();
    log.put_side(&Name::new("00000002.history").unwrap(), b"1\t0/1\tpromoted\n").unwrap();
    let mut folders = vec![repository.clone()];
    let mut at = 0;
    while at < folders.len() {
        let inside = std::fs::read_dir(&folders[at]).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
        folders.extend(inside.collect::<Vec<_>>());
        at += 1;
    }
    assert!(folders.len() > 15, "{folders:?}");
    for folder in &folders {
        for name in ["x~", "copy of x (1)", ".DS_Store", ".nfs000000000123ab", "Thumbs.db", "desktop.ini"] {
            std::fs::write(folder.join(name), "not an object").unwrap();
        }
        std::fs::write(folder.join(std::ffi::OsStr::from_bytes(b"no text \xff")), "").unwrap();
        std::fs::create_dir(folder.join("@eaDir")).unwrap();
        std::fs::write(folder.join("@eaDir/format@SynoEAStream"), "").unwrap();
    }
    let second = workspace.backup();
    assert_eq!(workspace.json(&["snapshots", "crm"], 0)["snapshots"].as_array().unwrap().len(), 3);
    let to = workspace.path("back");
    assert_eq!(workspace.json(&["restore", "crm", "--to", to.to_str().unwrap(), "--yes"], 0)["snapshot"], second["snapshot"]);
    for words in [&["verify", "main", "--data"][..], &["verify", "main"]] {
        let verified = workspace.json(words, 0);
        assert!(verified["warnings"].to_string().contains("cannot be objects of it by their names"), "{verified}");
    }
    let keyless = workspace.json(&["verify", "--keyless", &format!("file://{}", repository.display())], 0);
    assert!(keyless["warnings"].to_string().contains("cannot be objects of it by their names"), "{keyless}");
    for words in [
        &["prune", "crm"][..],
        &["drill", "run", "crm"],
        &["key", "list", "main", "--events"],
        &["repo", "stats", "main"],
        &["doctor", "crm"],
    ] {
        workspace.json(words, 0);
    }
    workspace.json(&["key", "rotate", "main"], 0);
    workspace.json(&["key", "rotate", "main", "--repack"], 0);
    workspace.backup();
    assert!(problems(&workspace).is_empty(), "{:?}", problems(&workspace));
    // Nobody took them away.
    assert!(folders.iter().filter(|folder| folder.exists()).all(|folder| folder.join("Thumbs.db").exists()));
}

/// The newest snapshot cannot be had from the plan's own repository, and a copy has it.
#[test]
fn a_restore_of_the_latest_takes_it_from_the_copy_that_has_it() {
    let workspace = Workspace::new("");
    workspace.write_plan(&format!(
        "[[plan.crm.copy]]\nto = \"second\"\n[repository.second]\nurl = \"file://{}\"\npassphrase = {{ env = \"CRM_PASSPHRASE\" }}",
        workspace.path("second").display()
    ));
    for repository in ["main", "second"] {
        workspace.json(&["repo", "init", repository], 0);
    }
    let first = workspace.backup();
    let keep = |name: &str| {
        assert!(Command::new("cp").arg("-a").arg(workspace.path("repository")).arg(workspace.path(name)).status().unwrap().success());
    };
    keep("old");
    std::fs::write(workspace.path("crm/attachments/new.txt"), "later").unwrap();
    let second = workspace.backup();
    let restore = |to: &str, more: &[&str], exit: i32| {
        let to = workspace.path(to);
        workspace.json(&[&["restore", "crm", "--to", to.to_str().unwrap(), "--yes"], more].concat(), exit)
    };
    let manifest = files(&workspace.path("repository/snapshots"))
        .into_iter()
        .find(|path| path.ends_with(second["snapshot"].as_str().unwrap()))
        .unwrap();
    let whole = std::fs::read(&manifest).unwrap();
    damage(&manifest);
    // No copy has it yet: that they were looked at is said.
    workspace.json(&["copy", "crm", "--to", "second"], 20);
    let older = restore("older", &[], 3);
    assert_eq!((&older["snapshot"], &older["newer_unread"][0]), (&first["snapshot"], &second["snapshot"]));
    assert!(older["warnings"].to_string().contains("no copy has anything newer either (second)"), "{older}");
    std::fs::remove_file(&manifest).unwrap();
    std::fs::write(&manifest, whole).unwrap();
    workspace.json(&["copy", "crm", "--to", "second"], 0);

    let is_whole = |report: &serde_json::Value, to: &str| {
        assert_eq!(
            (report["fallback"]["repository"].as_str(), &report["fallback"]["older"]),
            (Some("second"), &serde_json::Value::Null),
            "{report}"
        );
        assert_eq!(std::fs::read_to_string(workspace.path(to).join("attachments/new.txt")).unwrap(), "later");
    };
    damage(&manifest);
    is_whole(&restore("unread", &[], 0), "unread");
    // Asked for alone, it says what it lacks.
    assert_eq!(restore("alone", &["--repository", "main"], 3)["newer_unread"][0], second["snapshot"]);
    std::fs::remove_dir_all(workspace.path("repository")).unwrap();
    std::fs::rename(workspace.path("old"), workspace.path("repository")).unwrap();
    is_whole(&restore("put-back", &[], 0), "put-back");
    let alone = restore("alone-again", &["--repository", "main"], 3);
    assert_eq!((&alone["snapshot"], &alone["newer_unread"][0]), (&first["snapshot"], &second["snapshot"]), "{alone}");
    // A later backup that no copy has is told.
    std::fs::write(workspace.path("crm/attachments/new.txt"), "later still").unwrap();
    keep("older");
    let third = workspace.backup();
    std::fs::remove_dir_all(workspace.path("repository")).unwrap();
    std::fs::rename(workspace.path("older"), workspace.path("repository")).unwrap();
    let report = restore("between", &[], 3);
    assert!(report["fallback"]["older"].as_str().unwrap().contains(third["snapshot"].as_str().unwrap()), "{report}");
}

/// Several copies have something newer than the plan's own repository: the newest is taken, and where it turns out to be damaged what comes next, down to what the
/// own one has.
#[test]
fn a_restore_of_the_latest_takes_the_newest_copy_and_where_that_is_damaged_the_next() {
    let workspace = Workspace::new("");
    let repository = |name: &str| {
        format!(
            "[[plan.crm.copy]]\nto = \"{name}\"\n[repository.{name}]\nurl = \"file://{}\"\npassphrase = {{ env = \"CRM_PASSPHRASE\" }}\n",
            workspace.path(name).display()
        )
    };
    workspace.write_plan(&[repository("second"), repository("third")].concat());
    for repository in ["main", "second", "third"] {
        workspace.json(&["repo", "init", repository], 0);
    }
    let keep = |from: &str, to: &str| {
        assert!(Command::new("cp").arg("-a").arg(workspace.path(from)).arg(workspace.path(to)).status().unwrap().success());
    };
    let mut snapshots = vec![workspace.backup()["snapshot"].clone()];
    keep("repository", "old");
    for (seed, copy) in [(1u8, "second"), (2, "third")] {
        let mut bytes = vec![0; 300_000];
        blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
        std::fs::write(workspace.path("crm/attachments/new.bin"), bytes).unwrap();
        snapshots.push(workspace.backup()["snapshot"].clone());
        workspace.json(&["copy", "crm", "--to", copy], 0);
    }
    std::fs::remove_dir_all(workspace.path("repository")).unwrap();
    keep("old", "repository");
    let restore = |to: &str, exit: i32| {
        let to = workspace.path(to);
        workspace.json(&["restore", "crm", "--to", to.to_str().unwrap(), "--yes"], exit)
    };
    let from = |report: &Value| report["fallback"]["repository"].as_str().map(str::to_owned);
    // The first copy has something newer, too.
    let newest = restore("newest", 0);
    assert_eq!((from(&newest).as_deref(), &newest["fallback"]["older"]), (Some("third"), &Value::Null), "{newest}");
    assert_eq!(std::fs::metadata(workspace.path("newest/attachments/new.bin")).unwrap().len(), 300_000);
    let damage_data = |repository: &str, more_than: u64| {
        let packs = files(&workspace.path(repository).join("packs"));
        let data: Vec<_> = packs.into_iter().filter(|path| std::fs::metadata(path).unwrap().len() > more_than).collect();
        assert!(!data.is_empty());
        data.iter().for_each(|path| damage(path));
    };
    damage_data("third", 100_000);
    let next = restore("next", 3);
    assert_eq!(from(&next).as_deref(), Some("second"), "{next}");
    assert!(next["fallback"]["older"].as_str().unwrap().contains(snapshots[2].as_str().unwrap()), "{next}");
    assert!(next["warnings"].to_string().contains("could not be restored from the copy third"), "{next}");
    damage_data("second", 100_000);
    let own = restore("own", 3);
    assert_eq!((from(&own), &own["snapshot"], &own["newer_unread"][1]), (None, &snapshots[0], &snapshots[2]), "{own}");
    for copy in ["second", "third"] {
        assert!(own["warnings"].to_string().contains(&format!("could not be restored from the copy {copy}")), "{own}");
    }
    damage_data("repository", 0);
    assert!(restore("none", 20)["error"]["message"].is_string());
}

/// The newest snapshot is gone for good, and that was accepted: nobody asks for it any more.
#[test]
fn an_accepted_loss_of_the_newest_snapshot_is_told_no_more() {
    let workspace = Workspace::ready("");
    let first = workspace.backup();
    let second = workspace.backup()["snapshot"].as_str().unwrap().to_owned();
    let manifest = files(&workspace.path("repository/snapshots")).into_iter().find(|path| path.ends_with(&second)).unwrap();
    std::fs::remove_file(manifest).unwrap();
    let restore = |to: &str, exit: i32| {
        let to = workspace.path(to);
        workspace.json(&["restore", "crm", "--to", to.to_str().unwrap(), "--yes"], exit)
    };
    assert_eq!(restore("before", 3)["newer_unread"][0], second.as_str());
    let refused = code(&workspace.run(&["repair", "main", "--yes"]));
    assert_eq!(refused, 20, "it is lost, and nobody has accepted that");
    workspace.json(&["repair", "main", "--yes", "--accept-loss", &second, "--reason", "no copy yet"], 0);
    assert_eq!(restore("after", 0)["snapshot"], first["snapshot"]);
    assert!(!problems(&workspace).contains(&"damaged".to_owned()), "{:?}", problems(&workspace));
    workspace.json(&["verify", "main", "--data"], 0);
}

/// A folder of manifests that somebody copied beside the other one, or moved, is nobody's: what is in there harms no snapshot and stops nothing.
#[test]
fn copied_manifests_are_passed_over() {
    let workspace = Workspace::ready("keep = { last = 1 }");
    workspace.backup();
    let chain = files(&workspace.path("repository/snapshots")).pop().unwrap().parent().unwrap().to_owned();
    for beside in [format!("{}.bak", chain.display()), workspace.path("repository/snapshots/old").display().to_string()] {
        assert!(Command::new("cp").arg("-a").arg(&chain).arg(&beside).status().unwrap().success());
    }
    workspace.backup();
    let verified = workspace.json(&["verify", "main"], 0);
    assert!(verified["warnings"].to_string().contains("cannot be objects of it by their names"), "{verified}");
    assert_eq!(workspace.json(&["prune", "crm"], 0)["snapshots_removed"], 1);
    assert_eq!(workspace.json(&["verify", "main", "--data"], 0)["findings"].as_array().unwrap().len(), 0);
    assert!(!problems(&workspace).contains(&"damaged".to_owned()));
}

/// Nobody has seen the new generation but the command that made it: what is there was put back, and that is told by everything that looks.
#[test]
fn keys_that_were_put_back_are_told_at_once_and_by_all_that_look() {
    let workspace = Workspace::ready("");
    workspace.backup();
    let repository = workspace.path("repository");
    assert!(Command::new("cp").arg("-a").arg(&repository).arg(workspace.path("old")).status().unwrap().success());
    assert!(!problems(&workspace).contains(&"repository-changed".to_owned()));
    workspace.json(&["key", "rotate", "main"], 0);
    std::fs::remove_dir_all(&repository).unwrap();
    assert!(Command::new("cp").arg("-a").arg(workspace.path("old")).arg(&repository).status().unwrap().success());
    for words in [&["verify", "main"][..], &["verify", "main", "--data"]] {
        let verified = workspace.json(words, 20);
        let finding = &verified["findings"][0];
        assert_eq!((&finding["object"], &finding["kind"]), (&"keys/generation-2".into(), &"missing".into()), "{verified}");
        assert!(finding["message"].as_str().unwrap().contains("has seen the repository at key generation 2"), "{verified}");
    }
    assert!(problems(&workspace).contains(&"repository-changed".to_owned()), "{:?}", problems(&workspace));
    assert_eq!(code(&workspace.run(&["status", "--check"])), 20);
    workspace.json(&["backup", "crm"], 12);
    // Its own slot is damaged, too: nothing is accepted that does not open, and what was seen is not forgotten for it.
    let slots: Vec<PathBuf> = files(&repository.join("keys"));
    let before: Vec<Vec<u8>> = slots.iter().map(|slot| rewrite(slot, |bytes| flipped(bytes, "\"sealed\"", 20))).collect();
    let refused = workspace.run(&["repo", "accept", "main"]);
    assert!(!refused.status.success(), "{}", text(&refused.stdout));
    for (slot, before) in slots.iter().zip(before) {
        rewrite(slot, |_| before);
    }
    workspace.json(&["backup", "crm"], 12);
    assert_eq!(workspace.json(&["repo", "accept", "main"], 0)["generation_forgotten"], 2);
    workspace.json(&["verify", "main"], 0);
    assert!(!problems(&workspace).contains(&"repository-changed".to_owned()));
    workspace.backup();
}

/// The storage was put back to how it was before a rotation of the keys. Whoever has seen that writes nothing there, until somebody says that it is meant.
#[test]
fn a_repository_from_before_a_rotation_is_written_again_once_it_is_accepted() {
    let workspace = Workspace::ready("");
    workspace.backup();
    let keep = |name: &str| {
        assert!(Command::new("cp").arg("-a").arg(workspace.path("repository")).arg(workspace.path(name)).status().unwrap().success());
    };
    keep("old");
    workspace.json(&["key", "rotate", "main"], 0);
    workspace.backup();
    std::fs::remove_dir_all(workspace.path("repository")).unwrap();
    std::fs::rename(workspace.path("old"), workspace.path("repository")).unwrap();
    for words in [&["backup", "crm"][..], &["key", "rotate", "main"]] {
        let refused = workspace.json(words, 12).to_string();
        assert!(
            refused.contains("has seen the repository at key generation 2, and it is at 1 now") && refused.contains("repo accept"),
            "{refused}"
        );
    }
    let doctor = workspace.run(&["doctor", "crm"]);
    assert!(code(&doctor) == 12 && text(&doctor.stdout).contains("repo accept"), "{}", text(&doctor.stdout));
    let keys = workspace.json(&["key", "list", "main"], 0);
    assert!(keys["generation"] == 1 && keys["warnings"].to_string().contains("key generation 2, which is nowhere"), "{keys}");
    let accepted = workspace.json(&["repo", "accept", "main"], 0);
    assert_eq!(accepted["generation_forgotten"], 2, "{accepted}");
    workspace.backup();
    assert_eq!(workspace.json(&["repo", "accept", "main"], 0)["generation_forgotten"], serde_json::Value::Null);

    // Another generation of the same number, made by a machine that never saw the first: the same here.
    keep("old");
    workspace.json(&["key", "rotate", "main"], 0);
    workspace.json(&["key", "list", "main"], 0);
    std::fs::remove_dir_all(workspace.path("repository")).unwrap();
    std::fs::rename(workspace.path("old"), workspace.path("repository")).unwrap();
    let elsewhere = workspace.path("elsewhere");
    let mut rotate = bare(&["key", "rotate", "main"]);
    rotate.arg("--plans").arg(workspace.path("plans")).arg("--state").arg(&elsewhere).env("CRM_PASSPHRASE", PASSPHRASE);
    let rotated = rotate.output().unwrap();
    assert!(rotated.status.success(), "{}", text(&rotated.stderr));
    let refused = workspace.json(&["backup", "crm"], 20).to_string();
    assert!(refused.contains("another one than this machine has known") && refused.contains("repo accept"), "{refused}");
    assert_eq!(workspace.json(&["repo", "accept", "main"], 0)["generation_forgotten"], 2);
    workspace.backup();
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

/// Backs up after a change; the snapshot.
fn backup_with(workspace: &Workspace, note: &str) -> String {
    std::fs::write(workspace.path("crm/attachments/note.txt"), note).unwrap();
    workspace.backup()["snapshot"].as_str().unwrap().to_owned()
}

fn manifest_of(workspace: &Workspace, repository: &str, id: &str) -> PathBuf {
    files(&workspace.path(repository).join("snapshots")).into_iter().find(|path| path.ends_with(id)).unwrap()
}

/// No copy, and one manifest that rots: what is told, what is refused, and how it ends.
#[test]
fn a_loss_that_cannot_be_repaired_is_accepted_by_name() {
    let workspace = Workspace::ready("keep = { last = 2 }");
    let ids: Vec<String> = ["one", "two", "three"].iter().map(|note| backup_with(&workspace, note)).collect();
    workspace.json(&["snapshots", "hold", &ids[0], "--reason", "audit"], 0);
    rewrite(&manifest_of(&workspace, "repository", &ids[0]), |bytes| bytes[..50].to_vec());
    let told = |words: &[&str], code: i32| {
        let output = workspace.run(words);
        let told = format!("{}{}", text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{words:?}: {told}");
        told
    };
    let way = format!("--accept-loss {}", ids[0]);
    assert!(told(&["prune", "crm"], 20).contains("`lifeboat repair`"));
    assert!(told(&["repair", "main", "--yes"], 20).contains(&way));
    assert!(problems(&workspace).contains(&"damaged".to_owned()));
    let accept = |id: &str, code: i32| told(&["repair", "main", "--accept-loss", id, "--reason", "disk of June", "--yes"], code);
    told(&["repair", "main", "--accept-loss", &ids[0], "--yes"], 2);
    assert!(accept(&ids[2], 2).contains(&format!("lost are: {}", ids[0])));
    assert!(accept(&ids[0], 2).contains(&format!("lifeboat snapshots release {}", ids[0])));
    told(&["snapshots", "release", &ids[0]], 0);
    let dry = told(&["repair", "main", "--accept-loss", &ids[0][..20], "--reason", "disk of June", "--dry-run"], 20);
    assert!(dry.contains("to do: accept") && dry.contains("disk of June"), "{dry}");
    assert!(accept(&ids[0][..20], 0).contains("done: accept"));
    assert!(!problems(&workspace).contains(&"damaged".to_owned()));
    told(&["prune", "crm"], 0);
    told(&["verify", "main", "--data"], 0);
    told(&["snapshots", "crm"], 0);
    let gone = workspace.json(&["restore", "crm", "--snapshot", &ids[0], "--to", workspace.path("gone").to_str().unwrap(), "--yes"], 13);
    assert!(message(&gone).contains("lost, and that was accepted: disk of June"), "{gone}");

    // A pack that rots takes a part: it is told until that is accepted, and no longer.
    let largest = files(&workspace.path("repository/packs")).into_iter().max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    workspace::damage(&largest);
    told(&["verify", "main", "--data"], 20);
    assert!(problems(&workspace).contains(&"damaged".to_owned()));
    let lost: Vec<String> = {
        let report = workspace.json(&["repair", "main", "--dry-run"], 20);
        report["lost"].as_array().unwrap().iter().map(|lost| lost["snapshot"].as_str().unwrap().to_owned()).collect()
    };
    assert!(!lost.is_empty());
    for id in &lost {
        accept(id, if Some(id) == lost.last() { 0 } else { 20 });
    }
    assert!(!problems(&workspace).contains(&"damaged".to_owned()));
    assert!(told(&["verify", "main", "--data"], 0).contains("accepted: damaged"));
    assert!(told(&["snapshots", "crm"], 0).contains("this loss was accepted: disk of June"));
    let fresh = backup_with(&workspace, "four");
    told(&["verify", "main", "--data"], 0);
    assert_eq!(
        workspace.json(&["restore", "crm", "--to", workspace.path("fresh").to_str().unwrap(), "--yes"], 0)["snapshot"],
        fresh.as_str()
    );
}

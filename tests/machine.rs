//! The real program on a machine that is not kind: as a user without privileges, and with file systems that are full. Both need root to be
//! arranged; without it these tests fail: what was not looked at is not green.

#![expect(clippy::unwrap_used, reason = "a test fails by it; clippy knows only functions marked as tests")]

#[path = "support/http.rs"]
mod http;
#[path = "support/workspace.rs"]
mod workspace;

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, lchown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use http::{Daemon, until};
use rusqlite::{Connection, OpenFlags};
use serde_json::Value;
use workspace::{MARKER, PASSPHRASE, Workspace, copy_program, files, text};

/// `nobody`, on most systems.
const NOBODY: u32 = 65_534;

fn needs_root() {
    let root = rustix::process::geteuid().is_root();
    assert!(root, "only root can make files of another user and mount a small file system: run `sudo -E cargo test --test machine`");
}

/// A workspace that belongs to a user without privileges, with a copy of the program that this user may run.
struct Unprivileged(Workspace);

impl Unprivileged {
    fn new(workspace: Workspace) -> Self {
        let root = workspace.folder.path();
        copy_program(&root.join("lifeboat"));
        for folder in ["home", "tmp"] {
            fs::create_dir(root.join(folder)).unwrap();
        }
        let mut all = vec![root.to_owned()];
        while let Some(path) = all.pop() {
            lchown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
            if path.is_dir() && !path.is_symlink() {
                all.extend(fs::read_dir(path).unwrap().map(|item| item.unwrap().path()));
            }
        }
        Self(workspace)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(self.0.path("lifeboat"));
        // Setting the user as root also drops all groups.
        command.uid(NOBODY).gid(NOBODY).args(words).env_clear().env("PATH", "/usr/bin:/bin").current_dir("/");
        command.env("HOME", self.0.path("home")).env("TMPDIR", self.0.path("tmp")).env("CRM_PASSPHRASE", PASSPHRASE);
        command
    }

    fn run(&self, words: &[&str], code: i32) -> Output {
        let output = self.command(words).arg("--plans").arg(self.0.path("plans")).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{words:?}: {}\n{}", text(&output.stdout), text(&output.stderr));
        output
    }

    fn json(&self, words: &[&str], code: i32) -> Value {
        let words: Vec<&str> = words.iter().copied().chain(["--json"]).collect();
        serde_json::from_slice(&self.run(&words, code).stdout).unwrap()
    }
}

#[test]
fn without_privileges_everything_works_and_what_may_not_be_read_is_named() {
    needs_root();
    let user = Unprivileged::new(Workspace::new(""));
    let (workspace, attachments) = (&user.0, &user.0.made.attachments);
    let (secret, closed) = (attachments.join("secret.txt"), attachments.join("closed"));
    fs::write(&secret, "for root only").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    // Readable, but of another owner: that owner cannot be given back.
    let foreign = attachments.join("foreign.txt");
    fs::write(&foreign, "of another user").unwrap();
    fs::set_permissions(&foreign, fs::Permissions::from_mode(0o4755)).unwrap();

    user.json(&["repo", "init", "main"], 0);
    let made = user.json(&["backup", "crm"], 3);
    let mut problems: Vec<(&str, &str)> =
        made["problems"].as_array().unwrap().iter().map(|p| (p["object"].as_str().unwrap(), p["kind"].as_str().unwrap())).collect();
    problems.sort_unstable();
    assert_eq!(problems, [("closed", "unreadable"), ("secret.txt", "unreadable")], "{made}");
    let told = user.run(&["backup", "crm"], 3);
    assert!(text(&told.stderr).contains("secret.txt") || text(&told.stdout).contains("secret.txt"), "{told:?}");

    let examined = user.json(&["doctor", "crm"], 2);
    let named = "closed unreadable: Permission denied (os error 13) and 1 more";
    assert!(examined["checks"].to_string().contains(named), "{examined}");
    let drilled = user.json(&["drill", "run", "crm"], 3);
    assert_eq!((&drilled["verdict"], &drilled["missing"][0]["kind"]), (&"incomplete".into(), &"unreadable".into()), "{drilled}");
    let to = workspace.path("home/restored");
    let restored = user.json(&["restore", "crm", "--to", to.to_str().unwrap()], 3);
    assert_eq!(restored["missing"].as_array().unwrap().len(), 2, "{restored}");
    assert_eq!(fs::read_to_string(to.join("attachments/marked.txt")).unwrap(), MARKER);
    assert!(!to.join("attachments/secret.txt").exists());
    let mode = fs::metadata(to.join("attachments/foreign.txt")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o755, "what runs as its owner must not do so as another one");

    // What can be read is whole.
    chown(&secret, Some(NOBODY), Some(NOBODY)).unwrap();
    chown(&closed, Some(NOBODY), Some(NOBODY)).unwrap();
    user.json(&["backup", "crm"], 0);
    let drilled = user.json(&["drill", "run", "crm"], 3);
    assert!(drilled["reasons"].to_string().contains("foreign.txt"), "an owner that was not given back is not a pass: {drilled}");
    fs::remove_file(&foreign).unwrap();
    user.json(&["backup", "crm"], 0);
    let drilled = user.json(&["drill", "run", "crm"], 0);
    assert_eq!(drilled["verdict"], "passed", "{drilled}");
    user.json(&["verify", "main", "--data"], 0);
    let examined = user.json(&["doctor", "crm"], 0);
    assert_eq!(examined["ok"], true, "{examined}");
    assert!(files(&workspace.path("tmp")).is_empty());
}

#[test]
fn the_demo_needs_no_privileges() {
    needs_root();
    let user = Unprivileged::new(Workspace::new(""));
    let kept = user.0.path("home/kept");
    let output = user.command(&["demo", "--keep", kept.to_str().unwrap()]).output().unwrap();
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
    assert!(text(&output.stdout).contains("exit 20, damaged"));
}

/// A small file system in memory, gone with its last user.
struct Small(PathBuf);

impl Small {
    fn mount(at: &Path, mib: u32) -> Self {
        fs::create_dir_all(at).unwrap();
        let output =
            Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={mib}m,mode=0700"), "tmpfs"]).arg(at).output().unwrap();
        assert!(output.status.success(), "mount a small file system (a container must be allowed to): {}", text(&output.stderr));
        Self(at.to_owned())
    }

    /// Leaves room for so many KiB.
    fn fill(&self, but_kib: u64) {
        let found = rustix::fs::statvfs(&self.0).unwrap();
        let len = (found.f_bavail * found.f_frsize).saturating_sub(but_kib * 1024);
        let written = fs::write(self.0.join("filler"), vec![1; usize::try_from(len).unwrap()]);
        // A daemon may have been quicker: then it is full all the same.
        assert!(written.is_ok() || written.is_err_and(|error| error.kind() == std::io::ErrorKind::StorageFull && but_kib == 0));
    }

    fn remount(&self, option: &str) {
        assert!(Command::new("mount").args(["-o", &format!("remount,{option}")]).arg(&self.0).status().unwrap().success());
    }

    fn free(&self) {
        fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Fails for want of room, with a message that says what to do.
fn refused(workspace: &Workspace, words: &[&str]) -> Value {
    let document = workspace.json(words, 1);
    assert_eq!(document["error"]["kind"], "no-space", "{words:?}: {document}");
    assert!(document["error"]["hint"].as_str().is_some_and(|hint| hint.contains("free space")), "{words:?}: {document}");
    document
}

fn noise(seed: u8, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
    bytes
}

fn no_leftovers(workspace: &Workspace) {
    let left: Vec<_> = fs::read_dir(workspace.path("state/work/crm"))
        .unwrap()
        .map(|item| item.unwrap().path())
        .filter(|path| path.extension().is_none_or(|extension| extension != "lock"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_full_repository_loses_nothing_and_takes_the_next_backup_when_there_is_room() {
    needs_root();
    let workspace = Workspace::new("");
    let small = Small::mount(&workspace.path("disk"), 24);
    let plan = fs::read_to_string(workspace.path("plans/crm.toml")).unwrap();
    fs::write(workspace.path("plans/crm.toml"), plan.replace("/repository\"", "/disk/repository\"")).unwrap();
    workspace.json(&["repo", "init", "main"], 0);
    let first = workspace.backup();
    fs::write(workspace.made.attachments.join("large"), noise(1, 6_000_000)).unwrap();
    for room_kib in [0, 64, 2_000] {
        small.fill(room_kib);
        refused(&workspace, &["backup", "crm"]);
        small.free();
    }
    small.fill(0);
    // Reading needs no room there; only that it was verified cannot be kept.
    let verified = workspace.json(&["verify", "main", "--data"], 0);
    assert!(verified["warnings"].to_string().contains("could not be recorded"), "{verified}");
    let drilled = workspace.json(&["drill", "run", "crm"], 3);
    assert!(drilled["skipped"].to_string().contains("could not be stored"), "{drilled}");
    let to = workspace.path("restored");
    workspace.json(&["restore", "crm", "--to", to.to_str().unwrap()], 0);
    assert_eq!(fs::read_to_string(to.join("attachments/marked.txt")).unwrap(), MARKER);
    small.free();
    let second = workspace.backup();
    assert_ne!(first["snapshot"], second["snapshot"]);
    workspace.json(&["verify", "main", "--data"], 0);
    assert_eq!(workspace.json(&["drill", "run", "crm"], 0)["verdict"], "passed");
    assert_eq!(workspace.json(&["snapshots", "crm"], 0)["snapshots"].as_array().unwrap().len(), 2);
    no_leftovers(&workspace);
}

#[test]
fn a_full_state_folder_stops_backups_and_drills_but_no_restore() {
    needs_root();
    let workspace = Workspace::ready("");
    workspace.backup();
    fs::remove_dir_all(workspace.path("state")).unwrap();
    let small = Small::mount(&workspace.path("state"), 24);
    workspace.backup();
    // Room for the journal and its like, not for a copy of the database.
    small.fill(300);
    refused(&workspace, &["backup", "crm"]);
    let drilled = workspace.json(&["drill", "run", "crm"], 1);
    assert_eq!((&drilled["failure"]["kind"], &drilled["cleanup"]["removed"]), (&"no-space".into(), &true.into()), "{drilled}");
    no_leftovers(&workspace);
    small.free();
    // No room at all.
    small.fill(0);
    refused(&workspace, &["backup", "crm"]);
    let to = workspace.path("restored");
    let restored = workspace.run(&["restore", "crm", "--to", to.to_str().unwrap()]);
    assert!(restored.status.success(), "{}", text(&restored.stderr));
    assert_eq!(fs::read_to_string(to.join("attachments/marked.txt")).unwrap(), MARKER);
    small.free();
    workspace.backup();
    assert_eq!(workspace.json(&["drill", "run", "crm"], 0)["verdict"], "passed");
    for run in workspace.json(&["run", "history"], 0)["runs"].as_array().unwrap() {
        assert_ne!(run["state"], "running", "{run}");
    }
    no_leftovers(&workspace);
}

#[test]
fn a_daemon_that_cannot_write_its_state_says_so_everywhere_and_takes_no_request_that_it_could_lose() {
    needs_root();
    let workspace = Workspace::ready("");
    workspace.backup();
    let told = workspace.path("told");
    fs::create_dir(&told).unwrap();
    let notifier = format!("version = 1\n[notify.file]\nkind = \"command\"\nrun = [\"sh\", \"-c\", \"cat > {}/$$\"]\n", told.display());
    fs::write(workspace.path("plans/notify.toml"), notifier).unwrap();
    fs::remove_dir_all(workspace.path("state")).unwrap();
    let small = Small::mount(&workspace.path("state"), 24);
    let daemon = Daemon::start(&workspace);
    until("it looked at the plans", || (daemon.ask("GET", "/api/v1/status", None).status == 200).then_some(()));
    let was_told = |words: &str| files(&told).iter().any(|file| fs::read_to_string(file).unwrap().contains(words)).then_some(());

    small.fill(0);
    let request = r#"{"plan": "crm", "job": "backup"}"#;
    let refused = daemon.ask("POST", "/api/v1/runs", Some(request));
    assert_eq!((refused.status, refused.kind().as_str()), (503, "unavailable"), "{refused:?}");
    let status = workspace.json(&["status"], 0);
    let is_told = |status: &Value| status["problems"].as_array().unwrap().iter().any(|problem| problem["kind"] == "journal-unavailable");
    assert!(is_told(&status), "{status}");
    until("the notifier hears of it", || was_told("the state folder cannot be written"));
    let scraped = || daemon.ask("GET", "/metrics", None);
    until("a scrape tells it", || String::from_utf8_lossy(&scraped().body).contains("kind=\"journal-unavailable\"} 1").then_some(()));
    until("the API tells it", || is_told(&daemon.get("/api/v1/status")).then_some(()));
    let failures = daemon.log().matches("it is told from memory").count();
    assert_eq!(failures, 1, "said once, not each second");

    small.free();
    until("the notifier hears of the end", || was_told("over: the state folder cannot be written"));
    let taken = daemon.ask("POST", "/api/v1/runs", Some(request));
    assert_eq!(taken.status, 202, "{taken:?}");
    let target = format!("/api/v1/runs/{}", taken.json()["id"].as_str().unwrap());
    until("the run succeeded", || (daemon.ask("GET", &target, None).json()["state"] == "succeeded").then_some(()));
    assert!(!is_told(&workspace.json(&["status"], 0)));
    // A plan without copies has none to make.
    let nothing = daemon.ask("POST", "/api/v1/runs", Some(r#"{"plan": "crm", "job": "copy"}"#));
    assert_eq!((nothing.status, nothing.kind().as_str()), (400, "usage"), "{nothing:?}");
    assert_eq!(daemon.stop(), Some(0));
}

#[test]
fn a_full_target_is_told_before_or_while_it_is_written_and_the_restore_goes_on_later() {
    needs_root();
    let workspace = Workspace::ready("");
    fs::write(workspace.made.attachments.join("large"), noise(2, 6_000_000)).unwrap();
    for number in 0..60 {
        fs::write(workspace.made.attachments.join(format!("note {number}")), noise(number, 10_000)).unwrap();
    }
    workspace.backup();
    let small = Small::mount(&workspace.path("disk"), 40);
    let to = workspace.path("disk/restored");
    let words = ["restore", "crm", "--to", to.to_str().unwrap()];
    small.fill(1_000);
    let error = refused(&workspace, &words)["error"].to_string();
    assert!(error.contains("bytes are needed there"), "{error}");
    assert!(!to.exists());
    assert_eq!(fs::read_dir(workspace.path("disk")).unwrap().count(), 1, "nothing was written");
    small.free();
    // Room for all bytes and not for all files: that shows only on the way.
    small.remount("nr_inodes=40");
    let error = refused(&workspace, &words);
    assert!(!to.exists() && workspace.path("disk/.restored.lifeboat-partial").exists(), "{error}");
    small.remount("nr_inodes=1000");
    let resume: Vec<&str> = words.iter().copied().chain(["--resume"]).collect();
    let restored = workspace.json(&resume, 0);
    assert!(restored["bytes_resumed"].as_u64().is_some_and(|bytes| bytes > 0), "{restored}");
    for number in 0..60 {
        assert_eq!(fs::read(to.join(format!("attachments/note {number}"))).unwrap(), noise(number, 10_000));
    }
    let database = Connection::open_with_flags(to.join("database"), OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let found: String = database.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(found, "ok");
    drop(database);
}

//! A small CRM with a plan, a repository and a state folder of its own, and the program to run on them.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use lifeboat::cli::demo::crm;
use serde_json::Value;
use tempfile::TempDir;

/// The passphrase of every workspace: must never be seen in anything that the program writes.
pub const PASSPHRASE: &str = "correct-horse-planted-passphrase";
/// Stands in the CRM: must never be seen outside the CRM and what was restored.
pub const MARKER: &str = "planted-marker-7f3a9c";

pub struct Workspace {
    pub folder: TempDir,
    pub made: crm::CrmSummary,
}

impl Workspace {
    /// Plan `crm` (SQLite and files, repository `main`); `more` is added to the plan file as it is.
    pub fn new(more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let made = crm::generate(&folder.path().join("crm"), 7, 0.02).unwrap();
        let database = rusqlite::Connection::open(&made.database).unwrap();
        database.execute("UPDATE accounts SET name = ?1 WHERE id = (SELECT min(id) FROM accounts)", [MARKER]).unwrap();
        std::fs::write(made.attachments.join("marked.txt"), MARKER).unwrap();
        let workspace = Self { folder, made };
        std::fs::create_dir(workspace.path("plans")).unwrap();
        workspace.write_plan(more);
        workspace
    }

    /// Like [`Workspace::new`] with the repository made.
    pub fn ready(more: &str) -> Self {
        let workspace = Self::new(more);
        let output = workspace.run(&["repo", "init", "main", "--json"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        workspace
    }

    pub fn write_plan(&self, more: &str) {
        let plan = format!(
            r#"version = 1
[repository.main]
url = "file://{0}/repository"
passphrase = {{ env = "CRM_PASSPHRASE" }}
[source.database]
kind = "sqlite"
path = "{0}/crm/crm.sqlite"
[source.attachments]
kind = "files"
path = "{0}/crm/attachments"
[plan.crm]
sources = ["database", "attachments"]
repository = "main"
timezone = "Asia/Shanghai"
{more}
"#,
            self.folder.path().display()
        );
        std::fs::write(self.path("plans/crm.toml"), plan).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The program with this workspace's folders, not yet started.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = bare(words);
        command.arg("--plans").arg(self.path("plans")).arg("--state").arg(self.path("state")).env("CRM_PASSPHRASE", PASSPHRASE);
        command
    }

    pub fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    /// Runs with `--json`, which must exit with `code`, and reads the document.
    pub fn json(&self, words: &[&str], code: i32) -> Value {
        let output = self.command(words).arg("--json").output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{words:?}: {}\n{}", text(&output.stdout), text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{words:?}: {error}: {}", text(&output.stdout)))
    }

    pub fn backup(&self) -> Value {
        self.json(&["backup", "crm"], 0)
    }
}

/// The program without any folders of this machine's user.
pub fn bare(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lifeboat"));
    command
        .args(words)
        .env_remove("LIFEBOAT_PASSPHRASE")
        .env_remove("STATE_DIRECTORY")
        .env_remove("LIFEBOAT_LOG")
        .stdin(std::process::Stdio::null());
    command
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Every regular file below a folder.
pub fn files(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.is_symlink() {
                folders.push(path);
            } else if path.is_file() {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Replaces one byte in the middle of a file.
pub fn damage(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    std::fs::remove_file(path).unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// Copies the program for a user who may not be let in where it was built. Not with `fs::copy`: a process that another thread starts meanwhile would
/// inherit the open file, and running the copy would fail as "text file busy".
pub fn copy_program(to: &Path) {
    let status = Command::new("cp").arg(env!("CARGO_BIN_EXE_lifeboat")).arg(to).status().unwrap();
    assert!(status.success(), "cp to {}", to.display());
}

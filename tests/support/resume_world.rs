//! A plan, a repository and a state folder for one PostgreSQL server.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::postgres::{Cluster, bin_directory};

pub struct World {
    folder: TempDir,
}

impl World {
    /// `local`: the data folder is read, else the server is asked for it.
    pub fn new(cluster: &Cluster, local: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o711)).unwrap();
        let world = Self { folder };
        for name in ["plans", "state"] {
            fs::create_dir(world.path(name)).unwrap();
        }
        fs::set_permissions(world.path("state"), fs::Permissions::from_mode(0o711)).unwrap();
        let url = format!("host={} port={} user=postgres dbname=postgres", cluster.folder().display(), cluster.port);
        fs::write(world.path("url"), url).unwrap();
        fs::set_permissions(world.path("url"), fs::Permissions::from_mode(0o600)).unwrap();
        let data = if local { format!("data_directory = \"{}\"", cluster.data().display()) } else { String::new() };
        let plan = format!(
            r#"version = 1
[repository.main]
url = "file://{0}/repository"
passphrase = {{ env = "CRM_PASSPHRASE" }}
[source.crm]
kind = "postgres"
url = {{ file = "{0}/url" }}
bin_directory = "{1}"
{data}
[plan.crm]
source = "crm"
repository = "main"
"#,
            world.folder.path().display(),
            bin_directory(cluster.version).display(),
        );
        fs::write(world.path("plans/crm.toml"), plan).unwrap();
        world.json(&["repo", "init", "main"], 0);
        world
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lifeboat"));
        command.args(words).env_remove("LIFEBOAT_PASSPHRASE").env_remove("STATE_DIRECTORY").env_remove("LIFEBOAT_LOG");
        command.arg("--plans").arg(self.path("plans")).arg("--state").arg(self.path("state")).arg("--json");
        command.env("CRM_PASSPHRASE", "correct horse battery staple").stdin(std::process::Stdio::null());
        command
    }

    /// Runs it; it must end with `code`.
    pub fn json(&self, words: &[&str], code: i32) -> Value {
        let output = self.command(words).output().unwrap();
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert_eq!(output.status.code(), Some(code), "{words:?}: {}\n{}", said(&output.stdout), said(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{words:?}: {error}: {}", said(&output.stdout)))
    }

    /// Bytes of whole packs in the repository.
    pub fn packs(&self) -> u64 {
        bytes_below(&self.path("repository/packs"))
    }
}

fn bytes_below(folder: &Path) -> u64 {
    let items = fs::read_dir(folder).into_iter().flatten().flatten();
    let bytes = |item: fs::DirEntry| match item.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_below(&item.path()),
        // Others are being written.
        Ok(metadata) if !item.file_name().to_string_lossy().contains('#') => metadata.len(),
        _ => 0,
    };
    items.map(bytes).sum()
}

/// Gives a folder and all below to a user.
pub fn give(folder: &Path, user: u32, group: u32) {
    std::os::unix::fs::lchown(folder, Some(user), Some(group)).unwrap();
    if folder.is_dir() && !folder.is_symlink() {
        for item in fs::read_dir(folder).unwrap() {
            give(&item.unwrap().path(), user, group);
        }
    }
}

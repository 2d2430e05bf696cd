//! A plan of several PostgreSQL servers and a folder, whose logs are archived by hand.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::postgres::{Cluster, as_server_user, bin_directory, server_user, wait_until};
use lifeboat::event::Cancel;
use lifeboat::source::postgres::client::{Connection, Mode};
use lifeboat::source::postgres::conninfo::Settings;

pub struct World {
    folder: TempDir,
}

impl World {
    /// Sources by name, and `attachments`.
    pub fn new(servers: &[(&str, &Cluster)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o711)).unwrap();
        let world = Self { folder };
        for name in ["plans", "state", "attachments"] {
            fs::create_dir(world.path(name)).unwrap();
        }
        fs::set_permissions(world.path("state"), fs::Permissions::from_mode(0o711)).unwrap();
        let root = world.folder.path().display().to_string();
        let mut plan = format!(
            "version = 1\n[repository.main]\nurl = \"file://{root}/repository\"\npassphrase = {{ env = \"CRM_PASSPHRASE\" }}\n\
             [source.attachments]\nkind = \"files\"\npath = \"{root}/attachments\"\n"
        );
        for (name, cluster) in servers {
            let url = format!("host={} port={} user=postgres dbname=postgres", cluster.folder().display(), cluster.port);
            let file = world.path(&format!("url-{name}"));
            fs::write(&file, url).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
            let bin = bin_directory(cluster.version);
            write!(
                plan,
                "[source.{name}]\nkind = \"postgres\"\nurl = {{ file = \"{}\" }}\nbin_directory = \"{}\"\n",
                file.display(),
                bin.display()
            )
            .unwrap();
        }
        let names: Vec<String> = servers.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        write!(plan, "[plan.shop]\nsources = [{}, \"attachments\"]\nrepository = \"main\"\n", names.join(", ")).unwrap();
        fs::write(world.path("plans/shop.toml"), plan).unwrap();
        world.json(&["repo", "init", "main"], 0);
        world
    }

    /// Ends the segment that a server is writing, and archives all that it has.
    pub fn archive(&self, source: &str, cluster: &Cluster) {
        let last = cluster.value("SELECT pg_walfile_name(pg_switch_wal())");
        let folder = cluster.data().join("pg_wal");
        let mut names: Vec<String> = fs::read_dir(&folder).unwrap().map(|item| item.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| name.len() == 24 && *name <= last);
        names.sort();
        for name in names {
            self.json(&["log", "push", "shop", "--source", source, folder.join(name).to_str().unwrap()], 0);
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lifeboat"));
        command.args(words).env_remove("LIFEBOAT_PASSPHRASE").env_remove("STATE_DIRECTORY").env_remove("LIFEBOAT_LOG");
        command.arg("--plans").arg(self.path("plans")).arg("--state").arg(self.path("state")).arg("--json");
        command.env("CRM_PASSPHRASE", "correct horse battery staple").stdin(Stdio::null());
        command
    }

    /// Runs it; it must end with `code`.
    pub fn json(&self, words: &[&str], code: i32) -> Value {
        let output = self.command(words).output().unwrap();
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert_eq!(output.status.code(), Some(code), "{words:?}: {}\n{}", said(&output.stdout), said(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{words:?}: {error}: {}", said(&output.stdout)))
    }
}

/// What a restored server says when it has recovered.
pub fn started(data: &Path, like: &Cluster, sql: &str) -> String {
    let socket = like.folder().join(format!("s-{}", data.file_name().unwrap().to_str().unwrap()));
    assert!(as_server_user("mkdir").arg(&socket).status().unwrap().success());
    let hba = socket.join("hba");
    like.write(&hba, "local all all trust\n");
    if let Some((user, group)) = server_user() {
        give(data, user, group);
        // The folders on the way to it.
        for parent in data.ancestors().skip(1).take(1) {
            fs::set_permissions(parent, fs::Permissions::from_mode(0o711)).unwrap();
        }
    }
    let options =
        format!("-c unix_socket_directories={} -c port=5432 -c listen_addresses= -c hba_file={}", socket.display(), hba.display());
    let pg_ctl = || as_server_user(bin_directory(like.version).join("pg_ctl"));
    let log = socket.join("log");
    let status = pg_ctl()
        .args(["-D", data.to_str().unwrap(), "-l", log.to_str().unwrap(), "-o", &options, "-w", "start"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "{}", fs::read_to_string(&log).unwrap_or_default());
    let settings = Settings::parse(&format!("host={} user=postgres dbname=postgres", socket.display())).unwrap();
    let value = |sql: &str| Connection::connect(&settings, Mode::Sql { database: None }, &Cancel::default()).unwrap().value(sql).unwrap();
    wait_until("the restored server is promoted", || value("SELECT pg_is_in_recovery()").as_deref() == Some("f"));
    let said = value(sql).unwrap();
    assert!(
        pg_ctl().args(["-D", data.to_str().unwrap(), "-m", "immediate", "-w", "stop"]).stdout(Stdio::null()).status().unwrap().success()
    );
    said
}

/// Gives a folder and all below to a user.
fn give(folder: &Path, user: u32, group: u32) {
    std::os::unix::fs::lchown(folder, Some(user), Some(group)).unwrap();
    if folder.is_dir() && !folder.is_symlink() {
        for item in fs::read_dir(folder).unwrap() {
            give(&item.unwrap().path(), user, group);
        }
    }
}

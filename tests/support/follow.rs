//! A streamed PostgreSQL source with its plan, and servers restored from it; everything is run by, and belongs to, the server's user, as where
//! a server's own `restore_command` runs the program.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use lifeboat::event::Cancel;
use lifeboat::source::postgres::client::{Connection, Mode};
use lifeboat::source::postgres::conninfo::Settings;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::postgres::{Cluster, as_server_user, bin_directory, server_user, wait_until};
use crate::workspace::{copy_program, text};

pub struct World {
    pub folder: TempDir,
    pub version: u32,
}

impl World {
    /// Plan `crm` of source `db`; `source` and `plan` are added to these as they are.
    pub fn new(cluster: &Cluster, source: &str, plan: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("lbfol-").tempdir_in("/tmp").unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let world = Self { folder, version: cluster.version };
        for name in ["plans", "state"] {
            fs::create_dir(world.path(name)).unwrap();
        }
        // The server's user may not be let in where it was built.
        copy_program(&world.path("lifeboat"));
        cluster.write(&world.path("passphrase"), "correct horse battery staple");
        world.lead_to(cluster, "postgres");
        let text = format!(
            "version = 1\n[repository.main]\nurl = \"file://{0}/repository\"\npassphrase = {{ file = \"{0}/passphrase\" }}\n\
             [source.db]\nkind = \"postgres\"\nurl = {{ file = \"{0}/url\" }}\nbin_directory = \"{1}\"\n{source}\n\
             [plan.crm]\nsource = \"db\"\nrepository = \"main\"\n{plan}\n",
            world.folder.path().display(),
            bin_directory(cluster.version).display(),
        );
        fs::write(world.path("plans/crm.toml"), text).unwrap();
        if let Some((user, group)) = server_user() {
            for path in [world.folder.path().to_owned(), world.path("plans"), world.path("state"), world.path("plans/crm.toml")] {
                std::os::unix::fs::chown(path, Some(user), Some(group)).unwrap();
            }
        }
        world.json(&["repo", "init", "main"], 0);
        world
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The source is behind this socket from now on.
    pub fn lead_to(&self, cluster: &Cluster, user: &str) {
        cluster.write(&self.path("url"), &format!("host={} port={} user={user} dbname=postgres", cluster.folder().display(), cluster.port));
    }

    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = as_server_user(self.path("lifeboat"));
        command.args(words).arg("--plans").arg(self.path("plans")).arg("--state").arg(self.path("state")).arg("--json");
        command.env_remove("STATE_DIRECTORY").env_remove("LIFEBOAT_LOG");
        command
    }

    pub fn json(&self, words: &[&str], code: i32) -> Value {
        let output: Output = self.command(words).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{words:?}: {}\n{}", text(&output.stdout), text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{words:?}: {error}: {}", text(&output.stdout)))
    }

    pub fn spawn(&self, words: &[&str]) -> Running {
        let log = self.path("running.log");
        let file = fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
        Running { child: self.command(words).stdout(Stdio::null()).stderr(file).spawn().unwrap(), log }
    }

    /// What the stream of the log says of itself.
    pub fn streamed(&self) -> Value {
        serde_json::from_slice(&fs::read(self.path("state/work/crm/log-db.json")).unwrap_or_default()).unwrap_or_default()
    }

    /// Waits until the repository has all that the server has written.
    pub fn wait_for_log(&self, flushed: &str) {
        use lifeboat::source::postgres::lsn::Lsn;
        let wanted: Lsn = flushed.parse().unwrap();
        wait_until(&format!("the log up to {wanted}: {}", self.streamed()), || {
            self.streamed()["durable_to"].as_str().and_then(|text| text.parse::<Lsn>().ok()).is_some_and(|to| to >= wanted)
        });
    }

    /// Starts a restored folder with the command that the restore printed.
    pub fn start(&self, target: &Path, report: &Value) -> Restored {
        let note = report["notes"].as_array().unwrap().iter().find_map(|note| note.as_str()?.split_once("(never root): ")).unwrap().1;
        let mut printed = note.split_once(" start;").unwrap().0.split(' ');
        let program = printed.next().unwrap();
        let socket = target.with_extension("socket");
        assert!(as_server_user("mkdir").arg(&socket).status().unwrap().success());
        let options = format!(
            "-c unix_socket_directories={} -c port=5432 -c listen_addresses= -c wal_retrieve_retry_interval=200ms",
            socket.display()
        );
        let log = target.with_extension("log");
        let printed: Vec<String> = printed.map(|word| word.replace("/tmp/postgres.log", log.to_str().unwrap())).collect();
        let status = as_server_user(program)
            .args(printed)
            .args(["-o", &options, "-w", "-t", "240", "start"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        let restored = Restored { data: target.to_owned(), bin: bin_directory(self.version), socket, log };
        assert!(status.success(), "{note}: {}", restored.told());
        restored
    }
}

/// The program, running.
pub struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    pub fn told(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn stop(self) {
        self.stop_with(0);
    }

    pub fn stop_with(mut self, code: i32) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        let status = self.child.wait().unwrap();
        assert_eq!(status.code(), Some(code), "{}", self.told());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A restored server.
pub struct Restored {
    pub data: PathBuf,
    bin: PathBuf,
    pub socket: PathBuf,
    log: PathBuf,
}

impl Restored {
    pub fn connect(&self) -> Connection {
        let settings = Settings::parse(&format!("host={} user=postgres dbname=postgres", self.socket.display())).unwrap();
        Connection::connect(&settings, Mode::Sql { database: None }, &Cancel::default()).unwrap()
    }

    pub fn value(&self, sql: &str) -> String {
        self.connect().value(sql).unwrap().unwrap_or_default()
    }

    pub fn told(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn promote(&self) {
        let data = self.data.to_str().unwrap();
        let status = as_server_user(self.bin.join("pg_ctl")).args(["-D", data, "-w", "promote"]).stdout(Stdio::null()).status().unwrap();
        assert!(status.success(), "{}", self.told());
    }

    fn stop(&self) {
        let data = self.data.to_str().unwrap();
        drop(as_server_user(self.bin.join("pg_ctl")).args(["-D", data, "-m", "immediate", "-w", "stop"]).output());
    }
}

impl Drop for Restored {
    fn drop(&mut self) {
        self.stop();
    }
}

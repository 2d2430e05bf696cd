//! A real server in a private folder for the tests of this module, run by an unprivileged user and removed on drop.
//!
//! Its programs are those of PostgreSQL 15 on Debian; `LIFEBOAT_TEST_PG_BIN` names another `bin` folder.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};

pub struct TestServer {
    folder: tempfile::TempDir,
    data: PathBuf,
    running: bool,
}

impl TestServer {
    /// A new cluster with these options of initdb and lines of configuration, started.
    pub fn start(initdb: &[&str], configuration: &str) -> Self {
        let mut server = Self::create(initdb, configuration);
        server.resume();
        server
    }

    /// A folder for a cluster, empty.
    pub fn empty() -> Self {
        let folder = tempfile::Builder::new().prefix("lbpg").tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let data = folder.path().join("data");
        let server = Self { data, folder, running: false };
        Self::own(server.folder.path());
        server
    }

    pub fn create(initdb: &[&str], configuration: &str) -> Self {
        let server = Self::empty();
        let data = server.data.to_str().unwrap().to_owned();
        let mut arguments = vec!["-D", &data, "-U", "postgres", "-A", "trust", "-N", "-E", "UTF8", "--locale=C"];
        arguments.extend(initdb);
        server.tool("initdb", &arguments);
        server.configure(configuration);
        server
    }

    /// Adds lines to the configuration; they hold from the next start.
    pub fn configure(&self, lines: &str) {
        let path = self.data.join("postgresql.conf");
        let text = fs::read_to_string(&path).unwrap_or_default();
        let socket = self.folder.path().display();
        let settings = "fsync = off\nmax_connections = 20";
        let text = format!("{text}\nlisten_addresses = ''\nunix_socket_directories = '{socket}'\n{settings}\n{lines}\n");
        fs::write(&path, text).unwrap();
    }

    pub fn resume(&mut self) {
        let log = self.folder.path().join("server.log");
        let (data, log_name) = (self.data.to_str().unwrap().to_owned(), log.to_str().unwrap().to_owned());
        // A server that inherits a pipe would keep whoever reads it waiting.
        let status = self
            .command("pg_ctl", &["-D", &data, "-l", &log_name, "-w", "-t", "60", "start"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success(), "server does not start:\n{}", fs::read_to_string(log).unwrap_or_default());
        self.running = true;
    }

    /// `fast` or `immediate`.
    pub fn stop(&mut self, mode: &str) {
        if self.running {
            let data = self.data.to_str().unwrap().to_owned();
            self.tool("pg_ctl", &["-D", &data, "-m", mode, "-w", "-t", "60", "stop"]);
            self.running = false;
        }
    }

    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The private folder that the data folder is in.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn major(&self) -> u32 {
        fs::read_to_string(self.data.join("PG_VERSION")).unwrap().trim().parse().unwrap()
    }

    /// Runs statements one by one; what they print, without headers.
    pub fn sql(&self, statements: &str) -> String {
        let socket = self.folder.path().to_str().unwrap();
        let arguments =
            ["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", socket, "-U", "postgres", "-d", "postgres", "-c", statements];
        self.tool("psql", &arguments).trim_end().to_owned()
    }

    /// A session that stays.
    pub fn session(&self) -> Session {
        let socket = self.folder.path().to_str().unwrap();
        let arguments = ["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", socket, "-U", "postgres", "-d", "postgres"];
        let mut child = self.command("psql", &arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Session { child, output }
    }

    /// What a program prints; it must succeed.
    pub fn tool(&self, name: &str, arguments: &[&str]) -> String {
        let output = self.run(name, arguments);
        assert!(output.status.success(), "{name} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn run(&self, name: &str, arguments: &[&str]) -> Output {
        self.command(name, arguments).output().unwrap()
    }

    /// A program of the server (or of the system, where it has none of that name), as the owner of the cluster.
    pub fn command(&self, name: &str, arguments: &[&str]) -> Command {
        let bin = std::env::var_os("LIFEBOAT_TEST_PG_BIN").map_or_else(|| "/usr/lib/postgresql/15/bin".into(), PathBuf::from);
        let own = bin.join(name);
        assert!(bin.join("postgres").exists(), "no PostgreSQL server in {}: install postgresql-15", bin.display());
        let mut command = Command::new(if own.exists() { own } else { name.into() });
        command.args(arguments).stdin(Stdio::null()).env("LC_ALL", "C").env("TZ", "UTC").current_dir(self.folder.path());
        if let Some((uid, gid)) = unprivileged() {
            command.uid(uid).gid(gid);
        }
        command
    }

    /// Gives a path to the owner of the cluster.
    pub fn own(path: &Path) {
        if let Some((uid, gid)) = unprivileged() {
            chown(path, Some(uid), Some(gid)).unwrap();
        }
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        if self.running {
            let data = self.data.to_str().unwrap().to_owned();
            let _ = self.run("pg_ctl", &["-D", &data, "-m", "immediate", "-w", "-t", "60", "stop"]);
        }
    }
}

/// See [`TestServer::session`].
pub struct Session {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Session {
    /// Runs statements; what they print.
    pub fn sql(&mut self, statements: &str) -> String {
        let input = self.child.stdin.as_mut().unwrap();
        writeln!(input, "{statements};\n\\echo =====").unwrap();
        let mut text = String::new();
        while !text.ends_with("=====\n") {
            assert!(self.output.read_line(&mut text).unwrap() > 0, "{statements}: {text}");
        }
        text.trim_end_matches("=====\n").trim_end().to_owned()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// Who runs the server when the tests run as root, which a server refuses.
fn unprivileged() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let line = users.lines().find(|line| line.starts_with("postgres:")).unwrap_or("nobody:x:65534:65534");
    let mut fields = line.split(':').skip(2).map(|field| field.parse().unwrap());
    Some((fields.next().unwrap(), fields.next().unwrap()))
}

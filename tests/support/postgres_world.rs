//! A plan for a PostgreSQL server with a repository and a state folder of its own, the program to run on them, and the servers that start on what was restored.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use chrono::{DateTime, Utc};
use lifeboat::event::Cancel;
use lifeboat::source::postgres::client::{Connection, Mode};
use lifeboat::source::postgres::conninfo::Settings;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::postgres::{Cluster, as_server_user, bin_directory, server_user, wait_until};
use crate::workspace::{bare, copy_program, files, text};

/// The server's clock.
pub const NOW: &str = "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";
/// The passphrase of every world.
pub const PASSPHRASE: &str = "correct horse battery staple";

/// Plan `crm` with one source. It knows no cluster: the file `url` says which one is meant.
pub struct World {
    folder: TempDir,
    version: u32,
    /// A copy of the program that the server's user runs, to whom everything belongs then.
    program: Option<PathBuf>,
}

impl World {
    /// For a cluster over its socket, by root as an operator would; `keys` are more lines of the source.
    pub fn new(cluster: &Cluster, source: &str, keys: &str) -> Self {
        Self::make(cluster, source, keys, false)
    }

    /// Everything belongs to the server's user, as for `archive_command`.
    pub fn of_the_server(cluster: &Cluster, source: &str, keys: &str) -> Self {
        Self::make(cluster, source, keys, true)
    }

    fn make(cluster: &Cluster, source: &str, keys: &str, of_the_server: bool) -> Self {
        // Short: the path of a socket may have 107 bytes.
        let folder = tempfile::Builder::new().prefix("lbw-").tempdir_in("/tmp").unwrap();
        let mut world = Self { folder, version: cluster.version, program: None };
        for (name, mode) in [("", 0o711), ("plans", 0o755), ("state", 0o711)] {
            fs::create_dir_all(world.path(name)).unwrap();
            fs::set_permissions(world.path(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        world.say_secret("passphrase", PASSPHRASE);
        world.say_url(&socket_url(cluster));
        world.say_plan(source, keys, "");
        if of_the_server {
            // The server's user may not be let in where it was built.
            let program = world.path("lifeboat");
            copy_program(&program);
            for name in ["", "plans", "state", "plans/crm.toml", "url", "passphrase"] {
                give_to_server(&world.path(name));
            }
            world.program = Some(program);
        }
        world.json(&["repo", "init", "main"], 0);
        world
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn say_url(&self, url: &str) {
        self.say_secret("url", url);
    }

    /// A file that only its owner reads.
    pub fn say_secret(&self, name: &str, secret: &str) {
        fs::write(self.path(name), secret).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// `keys` are more lines of the source, `rest` of the plan.
    pub fn say_plan(&self, source: &str, keys: &str, rest: &str) {
        let plan = format!(
            r#"version = 1
[repository.main]
url = "file://{0}/repository"
passphrase = {{ file = "{0}/passphrase" }}
[source.{source}]
kind = "postgres"
url = {{ file = "{0}/url" }}
bin_directory = "{1}"
{keys}
[plan.crm]
source = "{source}"
repository = "main"
{rest}
"#,
            self.folder.path().display(),
            bin_directory(self.version).display(),
        );
        fs::write(self.path("plans/crm.toml"), plan).unwrap();
    }

    /// The program with this world's folders, not yet started.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = self.program.as_ref().map_or_else(
            || bare(words),
            |program| {
                let mut command = as_server_user(program);
                command.args(words).env_remove("STATE_DIRECTORY").env_remove("LIFEBOAT_LOG");
                command
            },
        );
        // A relative path, as an operator may give it.
        command.current_dir(self.path("")).arg("--plans").arg(self.path("plans")).args(["--state", "state", "--json"]);
        command.env("PGPASSFILE", self.path("pgpass"));
        command
    }

    pub fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    /// Runs, must exit with `code`, and reads the document.
    pub fn json(&self, words: &[&str], code: i32) -> Value {
        let output = self.run(words);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {}\n{}", text(&output.stdout), text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{words:?}: {error}: {}", text(&output.stdout)))
    }

    /// Runs in the background.
    pub fn spawn(&self, words: &[&str]) -> Spawned {
        let log = self.path("spawned.log");
        let file = fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
        let child = self.command(words).stdout(Stdio::null()).stderr(file).spawn().unwrap();
        Spawned { child, log }
    }

    /// Streams the log until it is dropped.
    pub fn stream(&self) -> Spawned {
        self.spawn(&["log", "stream", "crm", "-v"])
    }

    /// From where to where can be recovered without a hole, to the newest moment that there is.
    pub fn continuous(&self) -> Option<(DateTime<Utc>, DateTime<Utc>)> {
        let list = self.json(&["snapshots", "crm"], 0);
        let moment = |range: &Value, key: &str| range[key].as_str().unwrap().parse().unwrap();
        let ranges = list["recovery_ranges"].as_array().unwrap().iter().filter(|range| range["continuous"] == true);
        ranges.map(|range| (moment(range, "from"), moment(range, "to"))).max_by_key(|(_, to): &(_, DateTime<Utc>)| *to)
    }

    /// Waits until the log vouches for a moment of the server's clock.
    pub fn wait_for_log(&self, moment: DateTime<Utc>) {
        wait_until("the log to reach the moment", || self.continuous().is_some_and(|(_, to)| to >= moment));
    }

    /// A setting as the operator's page has it, but for where things are in this test.
    pub fn documented(&self, setting: &str) -> String {
        let page = include_str!("../../docs/postgresql.md");
        let line = page.lines().find_map(|line| line.strip_prefix(&format!("{setting} = '"))?.strip_suffix('\''));
        let folder = self.folder.path().display();
        let words = line.unwrap().strip_prefix("lifeboat ").unwrap().replace("crm-archive", "crm");
        format!("{folder}/lifeboat --plans {folder}/plans --state {folder}/state {words}")
    }

    /// Restores with these words to a new folder, and starts a server there with the printed command.
    pub fn restored(&self, name: &str, words: &[&str]) -> Restored {
        let target = self.path(name);
        let report = self.json(&[&["restore", "crm", "--to", target.to_str().unwrap(), "--yes"], words].concat(), 0);
        let notes: Vec<&str> = report["notes"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        let command = notes.iter().find_map(|note| Some(note.split_once("(never root): ")?.1.split_once(" start;")?.0));
        let command = command.unwrap_or_else(|| panic!("no word of how it is started: {report}")).to_owned();
        let (up, mut restored) = self.try_start(name, &target, &command);
        assert!(up, "{words:?}: {}", restored.log());
        restored.report = report;
        restored.wait_until_promoted();
        restored
    }

    /// Starts a server on a folder and waits until it is a primary.
    pub fn start(&self, name: &str, target: &Path) -> Restored {
        let (up, restored) = self.try_start(name, target, &self.start_command(target));
        assert!(up, "{}", restored.log());
        restored.wait_until_promoted();
        restored
    }

    /// What starts a server on a folder, but for the word `start`.
    pub fn start_command(&self, target: &Path) -> String {
        format!("{}/pg_ctl -D {} -l /tmp/postgres.log -t 240", bin_directory(self.version).display(), target.display())
    }

    /// Whether it came up. Its socket is beside the one that is still running.
    pub fn try_start(&self, name: &str, target: &Path, command: &str) -> (bool, Restored) {
        let socket = self.path(&format!("s-{name}"));
        fs::create_dir(&socket).unwrap();
        give_to_server(&socket);
        let restored = Restored { data: target.to_owned(), bin: bin_directory(self.version), socket, report: Value::Null };
        let (hba, log) = (restored.socket.join("hba"), restored.socket.join("log"));
        fs::write(&hba, "local all all trust\nlocal replication all trust\n").unwrap();
        let options = format!(
            "-c unix_socket_directories={} -c port=5432 -c listen_addresses= -c hba_file={}",
            restored.socket.display(),
            hba.display()
        );
        let mut words = command.split(' ').map(|word| word.replace("/tmp/postgres.log", log.to_str().unwrap()));
        let mut start = as_server_user(words.next().unwrap());
        start.args(words).args(["-o", &options, "-w", "start"]).stdout(Stdio::null()).stderr(Stdio::null());
        (start.status().unwrap().success(), restored)
    }
}

/// What a source with a data folder on this host has in its plan.
pub fn data_key(cluster: &Cluster, local: bool) -> String {
    if local { format!("data_directory = \"{}\"", cluster.data().display()) } else { String::new() }
}

pub fn socket_url(cluster: &Cluster) -> String {
    format!("host={} port={} user=postgres dbname=postgres", cluster.folder().display(), cluster.port)
}

pub fn give_to_server(path: &Path) {
    if let Some((user, group)) = server_user() {
        std::os::unix::fs::chown(path, Some(user), Some(group)).unwrap();
    }
}

/// Name and outcome of each check of a drill.
pub fn checks(drill: &Value) -> Vec<(String, String)> {
    let word = |check: &Value, key: &str| check[key].as_str().unwrap().to_owned();
    drill["checks"].as_array().unwrap().iter().map(|check| (word(check, "name"), word(check, "outcome"))).collect()
}

/// No byte of a folder says it.
pub fn assert_nowhere(folder: &Path, marker: &str) {
    for path in files(folder) {
        let bytes = fs::read(&path).unwrap();
        assert!(!bytes.windows(marker.len()).any(|window| window == marker.as_bytes()), "{} holds {marker}", path.display());
    }
}

/// A server on a restored folder, until it is dropped.
pub struct Restored {
    pub data: PathBuf,
    bin: PathBuf,
    socket: PathBuf,
    /// What the restore said.
    pub report: Value,
}

impl Restored {
    /// As a plan names it.
    pub fn url(&self) -> String {
        self.url_of("postgres")
    }

    fn url_of(&self, database: &str) -> String {
        format!("host={} user=postgres dbname={database}", self.socket.display())
    }

    pub fn connect(&self) -> Connection {
        self.connect_to("postgres")
    }

    pub fn connect_to(&self, database: &str) -> Connection {
        let settings = Settings::parse(&self.url_of(database)).unwrap();
        Connection::connect(&settings, Mode::Sql { database: None }, &Cancel::default()).unwrap()
    }

    pub fn value(&self, sql: &str) -> String {
        self.connect().value(sql).unwrap().unwrap_or_default()
    }

    /// What the server wrote to its log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.socket.join("log")).unwrap_or_default()
    }

    pub fn wait_until_promoted(&self) {
        wait_until("the restored server is promoted", || self.value("SELECT pg_is_in_recovery()") == "f");
    }
}

impl Drop for Restored {
    fn drop(&mut self) {
        let data = self.data.to_str().unwrap();
        drop(as_server_user(self.bin.join("pg_ctl")).args(["-D", data, "-m", "immediate", "-w", "stop"]).output());
    }
}

/// The program in the background; killed when it is dropped.
pub struct Spawned {
    child: Child,
    log: PathBuf,
}

impl Spawned {
    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Asks it to end, which it does in good order.
    pub fn stop(self) {
        self.stop_with(0);
    }

    pub fn stop_with(mut self, code: i32) {
        self.signal(rustix::process::Signal::INT);
        let status = self.child.wait().unwrap();
        assert_eq!(status.code(), Some(code), "{}", self.told());
    }

    pub fn kill(mut self) {
        self.signal(rustix::process::Signal::KILL);
        self.child.wait().unwrap();
    }

    /// What all that ran in the background wrote to standard error.
    pub fn told(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Spawned {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Statements, one after the other, until dropped.
pub struct Load {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<u64>>,
}

impl Load {
    pub fn start(cluster: &Arc<Cluster>, statement: impl Fn(u64) -> String + Send + 'static) -> Self {
        let (cluster, stop) = (Arc::clone(cluster), Arc::new(AtomicBool::new(false)));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut connection = cluster.connect();
            let mut done = 0;
            while !stopped.load(Ordering::Relaxed) {
                connection.execute(&statement(done)).unwrap();
                done += 1;
            }
            done
        });
        Self { stop, thread: Some(thread) }
    }

    /// How many there were.
    pub fn end(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(ended.is_none_or(|ended| ended.is_ok()) || std::thread::panicking(), "the load failed");
    }
}

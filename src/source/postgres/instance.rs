//! A private PostgreSQL server on a restored data folder: to be asked, then stopped and removed, whatever happens.
//!
//! Owns one folder for each server; the data folder is the caller's. Invariants:
//!
//! - The server runs as who owns its data, never as root, and has nothing of this process: no environment, no groups, no descriptors.
//! - It listens on one socket in a folder that only that user may enter; no archiving, no replication, no background worker of its own or of a library.
//! - Where this process may do so (root with `CAP_SYS_ADMIN`), the server is in a network namespace in which there is nothing ([`Instance::is_apart`]). Elsewhere it
//!   could connect to others if SQL in its databases asked for it (a foreign table, `dblink`): who asks it must not make it do that.
//! - No setting of the source is in force: its configuration files are not read ([`crate::source::postgres::recover`] moves
//!   `postgresql.auto.conf` away), libraries that it preloads are only loaded when asked for, and whoever connects has to switch off what
//!   roles and databases have as their own settings ([`Instance::neutral_options`]).
//! - It is written down before it starts, so that [`sweep`] finds and removes what a kill -9 of this process left.
//!
//! ```text
//! <folder>/instance.json     who runs on what, for `sweep`
//! <folder>/server.log        everything that it said
//! <folder>/postgresql.conf, hba.conf, ident.conf
//! <folder>/s/                the socket, unless the path is too long for one: then it is below the system's folder for temporary files
//! ```
//!
//! What lifeboat reads and writes as root is never in a folder in which the server's user could have put a link.

mod fate;
mod process;
mod tools;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, waitid};
use rustix::thread::UnshareFlags;
use serde::{Deserialize, Serialize};

pub use self::fate::{Fate, advice, is_lost};
pub(in crate::source::postgres) use self::fate::{from_outside, lost};
pub use self::process::{FolderId, Identity};
pub use self::tools::{Account, Control, Tools, major_of};
use crate::error::{Context, Error, IoContext, Kind, Result};
use crate::event::Cancel;
use crate::source::postgres::little_room;

/// Only names the socket: there is no network.
pub const PORT: u16 = 5432;
/// unix(7): `sun_path` has 108 bytes, one of them the terminator.
const MOST_SOCKET_PATH_BYTES: usize = 107;
/// So many replication origins have a place where the log is replayed: of each subscription one, and of each of its tables that is copied. A server that may
/// not keep one that a commit names ends its recovery. Takes some MiB.
const MOST_ORIGINS: u32 = 10_000;
/// Begins the name of a socket folder outside of the instance's own.
const SOCKET_FOLDER_PREFIX: &str = "lifeboat-pg-";
/// How much of the end of the log is looked at for a message.
const LOG_TAIL_BYTES: u64 = 16 * 1024;
/// How long each of an immediate shutdown and a kill may take.
const END_PATIENCE: Duration = Duration::from_secs(10);
/// A server that has lost one of its processes ends within this.
pub const END_WORD: Duration = Duration::from_secs(5);

/// What to start.
pub struct Launch<'a> {
    pub tools: &'a Tools,
    pub account: Account,
    /// A data folder that nobody else uses.
    pub data: &'a Path,
    /// Where the instance keeps its own files: made by [`Instance::start`], must not exist.
    pub folder: &'a Path,
    /// Written after the instance's own settings, so that they win.
    pub settings: &'a [(String, String)],
    /// Libraries to preload, in order; all of them must be installed ([`Tools::libraries`]).
    pub preload: &'a [String],
    /// For so long it may take until it answers, replay included.
    pub limit: Duration,
}

/// How a server is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// With a checkpoint, so that the folder is clean; an immediate shutdown when that takes longer than this.
    Fast(Duration),
    /// Without one: for what is thrown away.
    Immediate,
}

/// What is written down of a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// For a person who looks.
    data: PathBuf,
    data_id: FolderId,
    socket_folder: PathBuf,
    /// `None` before it was started.
    server: Option<Identity>,
}

/// A server that answers. Dropping it stops it at once and removes its folder.
#[derive(Debug)]
pub struct Instance {
    child: Child,
    folder: PathBuf,
    record: Record,
    major: u32,
    started_in: Duration,
    apart: bool,
    gone: bool,
}

impl Instance {
    /// Starts a server and waits until it answers.
    ///
    /// # Errors
    /// With the last lines of the server's log when it ends instead, and as [`is_lost`] where something else ended it; `Unavailable` at the limit; `Interrupted`. Nothing is left
    /// behind.
    pub fn start(launch: &Launch<'_>, cancel: &Cancel) -> Result<Self> {
        let begun = Instant::now();
        let data = fs::canonicalize(launch.data).io_context(|| format!("resolve {}", launch.data.display()))?;
        let major = major_of(&data)?;
        if major != launch.tools.major() {
            return Err(Error::new(
                Kind::Usage,
                format!("start PostgreSQL {} on {}: it was written by version {major}", launch.tools.major(), data.display()),
            )
            .hint(format!("install the server of version {major}")));
        }
        let data_id = FolderId::of(&data).io_context(|| format!("look at {}", data.display()))?;
        let running = process::members(data_id, None).io_context(|| "look for running servers".into())?;
        if let Some(member) = running.first() {
            return Err(Error::new(Kind::Busy, format!("start PostgreSQL on {}: process {} runs on it", data.display(), member.pid)));
        }
        // First, so that a folder that keeps the server's user out is not taken for one whose control file cannot be read.
        launch.account.can_reach(&data)?;
        let control = launch.tools.control(&data, launch.account)?;

        make_folder(launch.folder, if launch.account.is_other() { 0o711 } else { 0o700 })?;
        let folder = fs::canonicalize(launch.folder).io_context(|| format!("resolve {}", launch.folder.display()))?;
        let socket_folder = socket_folder(&folder)?;
        let record = Record { data, data_id, socket_folder, server: None };
        // From here on whatever fails is cleaned up by what was written down.
        let started = write_record(&folder, &record).and_then(|()| spawn(launch, &folder, &record, &control));
        let (child, apart) = match started {
            Ok(started) => started,
            Err(error) => {
                remove_folders(&folder, &record);
                return Err(error);
            }
        };
        let mut instance = Self { child, folder, record, major, started_in: Duration::ZERO, apart, gone: false };
        instance.record.server = i32::try_from(instance.child.id()).ok().and_then(Identity::of);
        write_record(&instance.folder, &instance.record)?;
        instance.wait_until_ready(begun + launch.limit, cancel)?;
        instance.started_in = begun.elapsed();
        Ok(instance)
    }

    /// The folder with its socket: the host to connect to, at [`PORT`].
    #[must_use]
    pub fn socket_folder(&self) -> &Path {
        &self.record.socket_folder
    }

    /// Its data folder.
    #[must_use]
    pub fn data(&self) -> &Path {
        &self.record.data
    }

    /// Everything that it said so far is in this file.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.folder.join("server.log")
    }

    /// The major version that runs.
    #[must_use]
    pub fn major(&self) -> u32 {
        self.major
    }

    /// From the call of [`Instance::start`] until it answered, replay included.
    #[must_use]
    pub fn started_in(&self) -> Duration {
        self.started_in
    }

    /// Whether it has no network at all, so that nothing that it runs can reach another server.
    #[must_use]
    pub fn is_apart(&self) -> bool {
        self.apart
    }

    /// The process id of the server.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Start-up options (libpq's `options`) that every connection must send: they win over what the source's roles and databases have as
    /// their own settings (`ALTER ROLE … SET`), so that nothing that the source chose runs when somebody connects, and that values look and
    /// transactions are as everywhere. Sessions only read. What only costs time (`work_mem`, `enable_seqscan`), and settings that only the source's own SQL
    /// knows, stay as they are.
    #[must_use]
    pub fn neutral_options(&self) -> String {
        let mut options = vec![
            "session_preload_libraries=",
            "local_preload_libraries=",
            // Triggers stay silent, and event triggers but for those that are enabled for replicas or always.
            "session_replication_role=replica",
            "row_security=off",
            "role=none",
            r#"search_path="$user",public"#,
            "zero_damaged_pages=off",
            "ignore_checksum_failure=off",
            "default_transaction_read_only=on",
            // amcheck looks at no index that is younger than its snapshot.
            r"default_transaction_isolation=read\ committed",
            "default_transaction_deferrable=off",
            "statement_timeout=0",
            "exit_on_error=off",
            "temp_file_limit=-1",
            "temp_tablespaces=",
            // How values look, and what SQL means.
            "timezone=UTC",
            "datestyle=ISO,MDY",
            "intervalstyle=postgres",
            "bytea_output=hex",
            "extra_float_digits=1",
            "lc_monetary=C",
            "lc_numeric=C",
            "lc_time=C",
            "xmlbinary=base64",
            "xmloption=content",
            "standard_conforming_strings=on",
            "backslash_quote=safe_encoding",
            "transform_null_equals=off",
            "default_text_search_config=pg_catalog.simple",
            "array_nulls=on",
            "quote_all_identifiers=off",
            "log_statement=none",
            "log_min_error_statement=panic",
            // What it says is read.
            "lc_messages=C",
        ];
        if self.major >= 17 {
            // Login triggers would run before anything else.
            options.push("event_triggers=off");
        }
        options.iter().map(|option| format!("-c {option}")).collect::<Vec<_>>().join(" ")
    }

    /// Stops it, makes sure that none of its processes is left, and removes its folders (not the data folder).
    ///
    /// # Errors
    /// When a process or folder could not be removed, or a fast stop ended without a clean folder ([`is_lost`]: because something else ended the server).
    pub fn stop(mut self, stop: Stop) -> Result<()> {
        let mut unclean = None;
        if let Stop::Fast(limit) = stop {
            unclean = self.stop_cleanly(limit)?;
        }
        self.end()?;
        unclean.map_or(Ok(()), Err)
    }

    /// How it stands. What has just happened to one of its processes is waited for so long: it ends with each of them that is lost.
    #[must_use]
    pub fn fate(&self, patience: Duration) -> Fate {
        let deadline = Instant::now() + patience;
        let status = loop {
            match self.peek() {
                Some(status) => break status,
                None if Instant::now() >= deadline => return Fate::Runs,
                None => std::thread::park_timeout(Duration::from_millis(20)),
            }
        };
        match fate::loss(status, &tail(&self.log()), false) {
            Some(why) => Fate::Lost(why),
            None => Fate::Fell(how_it_fell(status, &self.log())),
        }
    }

    /// An error of who used it, as one that [`is_lost`] where something else ended it meanwhile.
    #[must_use]
    pub fn explain(&self, error: Error) -> Error {
        if !matches!(error.kind(), Kind::Failed | Kind::Unavailable) || is_lost(&error) {
            return error;
        }
        match self.fate(END_WORD) {
            Fate::Lost(why) => {
                lost(error.to_string(), format!("the private server was ended: {why}")).saying(error.said().map(str::to_owned))
            }
            Fate::Runs | Fate::Fell(_) => error,
        }
    }

    /// How its first process ended, which stays to be waited for. `None`: it has not.
    fn peek(&self) -> Option<ExitStatus> {
        let ended =
            waitid(WaitId::Pid(Pid::from_child(&self.child)), WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT);
        let ended = ended.ok().flatten()?;
        // As wait(2) has it.
        Some(ExitStatus::from_raw(ended.terminating_signal().unwrap_or_else(|| ended.exit_status().unwrap_or_default() << 8)))
    }

    fn stop_cleanly(&mut self, limit: Duration) -> Result<Option<Error>> {
        let failed = || format!("stop PostgreSQL on {}", self.record.data.display());
        let members = process::members(self.record.data_id, self.record.server.as_ref()).io_context(failed)?;
        let Some(server) = members.iter().find(|member| u32::try_from(member.pid) == Ok(self.child.id())) else {
            let what = format!("{}: it had ended before", failed());
            let status = self.child.wait().io_context(failed)?;
            return Ok(Some(explain_end(&what, status, &self.log(), false)));
        };
        server.signal(Signal::INT).io_context(failed)?;
        if !server.has_ended(limit) {
            return Ok(Some(Error::new(Kind::Failed, format!("{}: no clean shutdown within {} s", failed(), limit.as_secs()))));
        }
        let status = self.child.wait().io_context(failed)?;
        Ok((!status.success()).then(|| explain_end(&failed(), status, &self.log(), false)))
    }

    /// Ends every process and removes the folders.
    fn end(&mut self) -> Result<()> {
        let failed = || format!("end PostgreSQL on {}", self.record.data.display());
        let left = process::end(self.record.data_id, self.record.server.as_ref(), END_PATIENCE).io_context(failed)?;
        // Reaps it: a process that has ended, or one that is not there to be waited for.
        self.child.try_wait().io_context(failed)?;
        if !left.is_empty() {
            return Err(Error::new(Kind::Failed, format!("{}: processes {left:?} do not end", failed())));
        }
        remove_folders(&self.folder, &self.record);
        self.gone = true;
        for folder in [&self.folder, &self.record.socket_folder] {
            if fs::symlink_metadata(folder).is_ok() {
                return Err(Error::new(Kind::Failed, format!("remove {}: it is still there", folder.display())));
            }
        }
        Ok(())
    }

    fn wait_until_ready(&mut self, deadline: Instant, cancel: &Cancel) -> Result<()> {
        let what = format!("start PostgreSQL on {}", self.record.data.display());
        let mut pause = Duration::from_millis(5);
        loop {
            cancel.check()?;
            if let Some(status) = self.child.try_wait().io_context(|| what.clone())? {
                return Err(explain_end(&what, status, &self.log(), true));
            }
            if is_ready(&self.record.data, self.child.id()) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(Error::new(Kind::Unavailable, format!("{what}: it does not answer within the limit{}", self.last_words()))
                    .hint("raise the time limit if the log was long, otherwise look at the lines of the server's log above"));
            }
            std::thread::park_timeout(pause);
            pause = (pause * 2).min(Duration::from_millis(100));
        }
    }

    fn last_words(&self) -> String {
        last_words(&self.log())
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if !self.gone
            && let Err(error) = self.end()
        {
            tracing::warn!(%error, causes = ?error.causes(), "a private server could not be removed");
        }
    }
}

/// Refuses a folder on which a server runs, or which holds the data folder of one or is in it, or leads to a tablespace of one; a file there, or what is
/// not there yet; and anything in a data folder.
///
/// # Errors
/// `Usage` says which process, or which data folder.
pub fn refuse_running(folder: &Path) -> Result<()> {
    let found = process::user_of(folder).io_context(|| format!("look whether a server runs in {}", folder.display()))?;
    let Some(pid) = found else {
        let above = process::data_folder_above(folder).io_context(|| format!("look above {}", folder.display()))?;
        let Some(above) = above else { return Ok(()) };
        return Err(Error::new(
            Kind::Usage,
            format!("restore to {}: it is in {}, the data folder of a PostgreSQL", folder.display(), above.display()),
        )
        .hint("restore to another place"));
    };
    Err(Error::new(Kind::Usage, format!("restore to {}: a PostgreSQL server runs there (process {pid})", folder.display()))
        .hint("restore to another place, or stop that server first: pg_ctl stop, or systemctl stop postgresql"))
}

/// Ends and removes what an instance in `folder` left when its process was killed. Nothing there is fine; the data folder stays.
///
/// The folder may have been renamed or moved within its file system since. Must not be called for a folder whose owner lives.
///
/// # Errors
/// When a process does not end, or the folder cannot be removed.
pub fn sweep(folder: &Path) -> Result<()> {
    let path = folder.join("instance.json");
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // Killed before anything was written down, so nothing was started.
            return remove_tree(folder);
        }
        Err(error) => return Err(Error::io(format!("read {}", path.display()), error)),
    };
    let record: Record = serde_json::from_slice(&text).context(Kind::Failed, || format!("read {}", path.display()))?;
    let failed = || format!("end the PostgreSQL that was left on {}", record.data.display());
    let left = process::end(record.data_id, record.server.as_ref(), END_PATIENCE).io_context(failed)?;
    if !left.is_empty() {
        return Err(Error::new(Kind::Failed, format!("{}: processes {left:?} do not end", failed())));
    }
    remove_folders(folder, &record);
    remove_tree(folder)
}

/// The instance folders directly below `parent`.
///
/// # Errors
/// When it cannot be listed.
pub fn left_below(parent: &Path) -> Result<Vec<PathBuf>> {
    let items = match fs::read_dir(parent) {
        Ok(items) => items,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io(format!("list {}", parent.display()), error)),
    };
    let mut found = Vec::new();
    for item in items {
        let path = item.io_context(|| format!("list {}", parent.display()))?.path();
        if fs::symlink_metadata(path.join("instance.json")).is_ok() {
            found.push(path);
        }
    }
    Ok(found)
}

fn make_folder(path: &Path, mode: u32) -> Result<()> {
    let made = fs::DirBuilder::new().mode(mode).create(path);
    // Whatever the umask took away or left.
    made.and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode))).io_context(|| format!("make folder {}", path.display()))
}

fn fits(folder: &Path) -> bool {
    folder.as_os_str().len() + format!("/.s.PGSQL.{PORT}").len() <= MOST_SOCKET_PATH_BYTES
}

/// Chooses a folder for the socket; it is made later.
fn socket_folder(folder: &Path) -> Result<PathBuf> {
    let own = folder.join("s");
    // A comma would begin another folder.
    if fits(&own) && own.to_str().is_some_and(|path| !path.contains([',', '"'])) {
        return Ok(own);
    }
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(|error| Error::new(Kind::Failed, "draw a random number").because(error.to_string()))?;
    let place = std::env::temp_dir();
    let short =
        [place, PathBuf::from("/tmp")].into_iter().map(|place| place.join(format!("{SOCKET_FOLDER_PREFIX}{}", hex::encode(random))));
    short.into_iter().find(|path| fits(path)).ok_or_else(|| Error::new(Kind::Bug, "choose a folder for a socket: all paths are too long"))
}

fn write_record(folder: &Path, record: &Record) -> Result<()> {
    let text = serde_json::to_vec_pretty(record).context(Kind::Bug, || "write down a private server".into())?;
    let (path, new) = (folder.join("instance.json"), folder.join("instance.new"));
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&new, &path)
    };
    write().io_context(|| format!("write {}", path.display()))
}

/// Writes the configuration and starts the server, without waiting for it. Also whether it is [apart](Instance::is_apart).
fn spawn(launch: &Launch<'_>, folder: &Path, record: &Record, control: &Control) -> Result<(Child, bool)> {
    let account = launch.account;
    make_folder(&record.socket_folder, 0o700)?;
    let failed = |path: &Path| format!("give {} to user {}", path.display(), account.uid);
    let give = |path: &Path| -> Result<()> {
        if account.is_other() {
            std::os::unix::fs::lchown(path, Some(account.uid), Some(account.gid)).io_context(|| failed(path))?;
        }
        Ok(())
    };
    give(&record.socket_folder)?;
    account.can_reach(&record.socket_folder)?;
    let files = [
        // Whoever may enter the socket's folder may connect: the server's user and root.
        ("hba.conf", "local all all trust\n".to_owned()),
        ("ident.conf", String::new()),
        ("postgresql.conf", configuration(launch, folder, record, control)?),
    ];
    for (name, text) in files {
        let path = folder.join(name);
        let write = || OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?.write_all(text.as_bytes());
        write().io_context(|| format!("write {}", path.display()))?;
        give(&path)?;
    }
    let path = folder.join("server.log");
    let open = || OpenOptions::new().append(true).create_new(true).mode(0o600).open(&path);
    let log = open().io_context(|| format!("make {}", path.display()))?;
    let errors = log.try_clone().io_context(|| format!("open {}", path.display()))?;
    let mut command = launch.tools.command("postgres", account)?;
    command.arg("-D").arg(&record.data).arg("-c").arg(setting_argument("config_file", &folder.join("postgresql.conf"))?);
    command.stdout(log).stderr(errors);
    spawn_apart(command).io_context(|| format!("run postgres of PostgreSQL {}", launch.tools.major()))
}

/// Starts a program without a network, where this process may do that, and says whether it did.
fn spawn_apart(mut command: Command) -> io::Result<(Child, bool)> {
    // A namespace is of a thread, which hands it on to what it starts: so of one that ends with this.
    let start = move || {
        #[expect(deprecated, reason = "its safe form: this flag alone shares or unshares neither memory nor descriptors")]
        let apart = rustix::thread::unshare(UnshareFlags::NEWNET);
        if let Err(error) = apart {
            tracing::debug!(%error, "a private server keeps the network of its host");
        }
        command.spawn().map(|child| (child, apart.is_ok()))
    };
    let thread = std::thread::Builder::new().name("private-server".into()).spawn(start)?;
    thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that starts it panicked")))
}

fn setting_argument(name: &str, path: &Path) -> Result<String> {
    Ok(format!("{name}={}", text_of(path)?))
}

fn text_of(path: &Path) -> Result<&str> {
    path.to_str().filter(|path| !path.contains(['\n', '\r'])).ok_or_else(|| {
        Error::new(Kind::Usage, format!("start PostgreSQL in {}: the path is not plain text", path.display()))
            .hint("choose a work folder with --state DIR whose name is text")
    })
}

/// The whole configuration of a private server.
fn configuration(launch: &Launch<'_>, folder: &Path, record: &Record, control: &Control) -> Result<String> {
    let major = launch.tools.major();
    let mut settings: Vec<(&str, String)> = vec![
        ("hba_file", text_of(&folder.join("hba.conf"))?.into()),
        ("ident_file", text_of(&folder.join("ident.conf"))?.into()),
        ("listen_addresses", String::new()),
        ("port", PORT.to_string()),
        ("unix_socket_directories", format!("\"{}\"", text_of(&record.socket_folder)?)),
        ("unix_socket_permissions", "0700".into()),
        ("bonjour", "off".into()),
        ("ssl", "off".into()),
        // Nothing goes out.
        ("archive_mode", "off".into()),
        ("archive_command", String::new()),
        ("primary_conninfo", String::new()),
        ("primary_slot_name", String::new()),
        ("max_wal_senders", "0".into()),
        ("max_logical_replication_workers", "0".into()),
        // Nothing changes behind the back of the checks.
        ("autovacuum", "off".into()),
        ("restart_after_crash", "off".into()),
        // Not before recovery has ended: then no setting needs to be as large as on the source, even when that changed it meanwhile.
        ("hot_standby", "off".into()),
        ("max_connections", "40".into()),
        ("superuser_reserved_connections", "0".into()),
        // No library's worker starts, whatever it would do in the databases or beyond. A server that answers nothing before it has recovered needs none of the
        // source's; statements then run in one process each.
        ("max_worker_processes", "0".into()),
        ("max_parallel_workers_per_gather", "0".into()),
        ("max_parallel_maintenance_workers", "0".into()),
        // Transactions that are prepared when recovery ends must all have a place.
        ("max_prepared_transactions", control.count("max_prepared_xacts").max(128).to_string()),
        ("max_locks_per_transaction", control.count("max_locks_per_xact").max(256).to_string()),
        ("wal_level", "replica".into()),
        ("track_commit_timestamp", control.setting("track_commit_timestamp").unwrap_or("off").into()),
        // A copy that is thrown away: what a crash of the machine would do to it does not matter.
        ("fsync", "off".into()),
        ("synchronous_commit", "off".into()),
        ("full_page_writes", "off".into()),
        ("checkpoint_timeout", "1h".into()),
        ("max_wal_size", "4GB".into()),
        // The file cache of the machine does the rest; a drill is to get along with little memory.
        ("shared_buffers", "32MB".into()),
        // Nothing in /dev/shm that a kill would leave.
        ("dynamic_shared_memory_type", "mmap".into()),
        ("huge_pages", "off".into()),
        ("jit", "off".into()),
        ("shared_preload_libraries", launch.preload.join(",")),
        ("session_preload_libraries", String::new()),
        ("local_preload_libraries", String::new()),
        // Extended messages quote rows and statements.
        ("log_error_verbosity", "terse".into()),
        ("log_min_error_statement", "panic".into()),
        ("log_statement", "none".into()),
        ("log_destination", "stderr".into()),
        ("logging_collector", "off".into()),
        ("log_line_prefix", "%m [%p] ".into()),
        ("log_timezone", "UTC".into()),
        ("timezone", "UTC".into()),
        ("datestyle", "ISO, MDY".into()),
        ("lc_messages", "C".into()),
        ("cluster_name", "lifeboat".into()),
    ];
    settings.push(room_for_origins(major));
    if major >= 18 {
        settings.push(("max_replication_slots", "0".into()));
    }
    if major >= 15 {
        settings.push(("archive_library", String::new()));
        settings.push(("log_startup_progress_interval", "0".into()));
    }
    if major >= 17 {
        settings.push(("event_triggers", "off".into()));
        settings.push(("summarize_wal", "off".into()));
        settings.push(("sync_replication_slots", "off".into()));
    }
    let mut text = String::from("# Of a private server of lifeboat; removed with it.\n");
    for (name, value) in settings.into_iter().chain(launch.settings.iter().map(|(name, value)| (name.as_str(), value.clone()))) {
        text.push_str(&setting_line(name, &value)?);
    }
    Ok(text)
}

/// The setting by which a server of this major version replays the log of one that subscribes to others, however many these are.
#[must_use]
pub fn room_for_origins(major: u32) -> (&'static str, String) {
    // Before 18 slots and origins had one number.
    let name = if major >= 18 { "max_active_replication_origins" } else { "max_replication_slots" };
    (name, MOST_ORIGINS.to_string())
}

/// One line of a configuration file.
///
/// # Errors
/// `Usage` when the value has a line break or the name is none.
pub fn setting_line(name: &str, value: &str) -> Result<String> {
    let is_name = !name.is_empty() && name.chars().all(|letter| letter.is_ascii_alphanumeric() || matches!(letter, '_' | '.'));
    if !is_name || value.contains(['\n', '\r', '\0']) {
        return Err(Error::new(
            Kind::Usage,
            format!("write the setting {}: it has characters that a setting cannot have", name.escape_debug()),
        ));
    }
    Ok(format!("{name} = '{}'\n", value.replace('\\', "\\\\").replace('\'', "''")))
}

/// PostgreSQL writes its state into line 8 of `postmaster.pid` (`PM_STATUS_READY` in `utils/pidfile.h`), which `pg_ctl -w` reads too.
fn is_ready(data: &Path, pid: u32) -> bool {
    let text = fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
    let mut lines = text.lines();
    lines.next().and_then(|line| line.trim().parse().ok()) == Some(pid) && lines.nth(6).is_some_and(|line| line.trim() == "ready")
}

/// `before_ready`: it had not answered yet.
fn explain_end(what: &str, status: ExitStatus, log: &Path, before_ready: bool) -> Error {
    let text = tail(log);
    let loss = fate::loss(status, &text, before_ready);
    let is_silent = || status.code().is_some_and(|code| code != 0) && loss.as_ref() == Some(&fate::ended(status));
    let full = if text.contains("No space left on device") {
        Some("no space left".to_owned())
    } else if is_silent() {
        // It may not have had the room to say so: its log lies beside its data.
        let room = log.parent().and_then(|folder| little_room(folder).ok().flatten());
        room.map(|bytes| format!("only {bytes} bytes are free there"))
    } else {
        None
    };
    if let Some(full) = full {
        let error = Error::new(Kind::NoSpace, format!("{what}: {full}: {}{}", fate::ended(status), last_words(log)));
        return error.hint("free space on that file system, then run the same command again");
    }
    match loss {
        Some(why) => lost(what, format!("the private server was ended: {why}{}", last_words(log))),
        None => Error::new(Kind::Failed, format!("{what}: {}", how_it_fell(status, log))),
    }
}

fn how_it_fell(status: ExitStatus, log: &Path) -> String {
    let fell = fate::fall(&tail(log)).map(|line| format!(" ({line})")).unwrap_or_default();
    format!("{}{fell}{}", fate::ended(status), last_words(log))
}

/// The end of a server's log.
fn tail(log: &Path) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
        let mut text = Vec::new();
        file.take(LOG_TAIL_BYTES).read_to_end(&mut text)?;
        Ok(text)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}

/// What it said last, and why it ended, for a message.
fn last_words(log: &Path) -> String {
    let text = tail(log);
    // `2026-01-01 00:00:00.000 UTC [1] LOG:  …`
    let said = |line: &str| line.split_once("] ").map_or(line, |(_, said)| said).trim().to_owned();
    let grave = |line: &str| ["FATAL:", "PANIC:", "ERROR:"].iter().any(|word| line.contains(word));
    let count = text.lines().count();
    // Reasons may stand just before it gave up.
    let lines: Vec<String> =
        text.lines().enumerate().filter(|(number, line)| grave(line) || number + 3 >= count).map(|(_, line)| said(line)).collect();
    let last = lines.get(lines.len().saturating_sub(5)..).unwrap_or_default().join("; ");
    if last.is_empty() { String::new() } else { format!(", its log ends with: {last}") }
}

/// The folders of an instance, not its data. What cannot be removed is told by who looks for it afterwards.
fn remove_folders(folder: &Path, record: &Record) {
    let socket = &record.socket_folder;
    let is_ours = socket.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(SOCKET_FOLDER_PREFIX));
    if is_ours {
        drop(remove_tree(socket));
    }
    drop(remove_tree(folder));
}

fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io(format!("remove {}", path.display()), error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;

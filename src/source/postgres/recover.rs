//! Recovery of a restored data folder: to which moment, along which timeline, with which log; and what came of it.
//!
//! A restored folder is dangerous until it was prepared: `tablespace_map` would make the server replace its tablespaces with links to the places
//! that they had at the source, which may be those of a live server on this very host, and without `backup_label` the server would
//! start from the wrong checkpoint and call a torn copy consistent. [`prepare`] sees to both before anything may start.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use chrono::{DateTime, SecondsFormat, SubsecRound, Utc};
use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, IoContext, Kind, Result};
use crate::event::Cancel;
use crate::source::postgres::control::Room;
use crate::source::postgres::instance::{self, Account, Instance, Launch};
use crate::source::postgres::layout::CONFIGURATION_FOLDER;
use crate::source::postgres::lsn::Lsn;
use crate::source::postgres::tablespaces;
use crate::source::postgres::wal::{Meaning, Record, SegmentSize, WalName, WalReader};

/// `MAXFNAMELEN` is 64 with the terminator (`access/xlog_internal.h`).
const MOST_NAME_BYTES: usize = 63;
/// All parameters that choose a target: at most one may be set, so the others are written empty.
const TARGETS: [&str; 5] =
    ["recovery_target", "recovery_target_name", "recovery_target_time", "recovery_target_xid", "recovery_target_lsn"];
/// What a server has in its data folder, and lifeboat beside it. It looks for nothing else there that no setting or library names.
const OF_THE_SERVER: [&str; 22] = [
    "PG_VERSION",
    "backup_label",
    "base",
    "global",
    "pg_commit_ts",
    "pg_dynshmem",
    "pg_logical",
    "pg_multixact",
    "pg_notify",
    "pg_replslot",
    "pg_serial",
    "pg_snapshots",
    "pg_stat",
    "pg_stat_tmp",
    "pg_subtrans",
    "pg_tblspc",
    "pg_twophase",
    "pg_wal",
    "pg_xact",
    "tablespace_map",
    "lifeboat_conf",
    tablespaces::INSIDE,
];
/// Around what lifeboat wrote into `postgresql.auto.conf`: for the time of the recovery ([`FORGET`] names these too), and to stay.
const DURING: [&str; 2] = ["# lifeboat: recovery begins", "# lifeboat: recovery ends"];
const AFTER: [&str; 2] = ["# lifeboat: settings begin", "# lifeboat: settings end"];
/// `recovery_end_command` of a server that an operator starts: takes the settings of the recovery out of `postgresql.auto.conf` in its data folder. Were they left,
/// a standby that is made of this server (`pg_basebackup -R`) would end at the same target, and become a second primary. A failure must not keep the
/// server from opening, which it is told by an exit code above 125.
const FORGET: &str = "sed -e '/^# lifeboat: recovery begins$/,/^# lifeboat: recovery ends$/d' -e '/^recovery_target/d' postgresql.auto.conf \
     > postgresql.auto.conf.promoted && { sync postgresql.auto.conf.promoted || sync; } && mv -f postgresql.auto.conf.promoted postgresql.auto.conf || true";
/// Where [`prepare`] puts `postgresql.auto.conf` of the source.
pub const AUTO_CONF_ASIDE: &str = "postgresql.auto.conf.of-the-source";
/// Folders that a server needs and that a backup has without content, or not at all.
const EMPTY_FOLDERS: [&str; 14] = [
    "pg_commit_ts",
    "pg_dynshmem",
    "pg_logical",
    "pg_logical/mappings",
    "pg_logical/snapshots",
    "pg_notify",
    "pg_replslot",
    "pg_serial",
    "pg_snapshots",
    "pg_stat_tmp",
    "pg_subtrans",
    "pg_tblspc",
    "pg_twophase",
    "pg_wal",
];
/// Of a server that ran on the folder at the source, or of an earlier recovery.
const LEFTOVERS: [&str; 6] = ["postmaster.pid", "postmaster.opts", "recovery.signal", "standby.signal", "recovery.conf", "recovery.done"];

/// The moment to recover to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// As soon as the folder is consistent: the end of the base backup.
    Immediate,
    /// All the log there is.
    Latest,
    /// The last commit at or before this moment (microseconds; finer is cut off).
    Time(DateTime<Utc>),
    /// Exclusive: before the first record that begins at or after this position. Inclusive: after that record.
    Lsn { lsn: Lsn, inclusive: bool },
    /// Just after (inclusive) or just before the commit of this transaction.
    Xid { xid: u64, inclusive: bool },
    /// A named restore point (`pg_create_restore_point`).
    Name(String),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Immediate => f.write_str("the end of the base backup"),
            Self::Latest => f.write_str("the end of the log"),
            Self::Time(time) => write!(f, "the last commit at or before {}", time.to_rfc3339_opts(SecondsFormat::AutoSi, true)),
            Self::Lsn { lsn, inclusive: false } => write!(f, "what was written before log position {lsn}"),
            Self::Lsn { lsn, inclusive: true } => write!(f, "log position {lsn}, its record included"),
            Self::Xid { xid, inclusive: true } => write!(f, "transaction {xid}, it included"),
            Self::Xid { xid, inclusive: false } => write!(f, "what came before transaction {xid}"),
            Self::Name(name) => write!(f, "the restore point {name:?}"),
        }
    }
}

/// The timeline to follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Timeline {
    /// The newest there is.
    Latest,
    /// That of the base backup.
    Current,
    Number(u32),
}

/// In the folder of configuration: what a restored folder is to be recovered to instead of its snapshot's own moment, as [`Request`].
pub const REQUEST_FILE: &str = "recovery-request.json";

/// What was asked for of a restored folder, all log for which is in its `pg_wal`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    pub target: Target,
    pub timeline: Timeline,
    /// Where replay must come to at least. A server that is to go to the end of its log calls any end the end.
    pub reaches: Option<Lsn>,
    /// Where replay stops for a target that is a time: before the first record that begins at or behind this position. `None`: as the server understands the target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stops_before: Option<Lsn>,
}

impl Request {
    fn path(data: &Path) -> PathBuf {
        data.join(std::str::from_utf8(CONFIGURATION_FOLDER).unwrap_or_default()).join(REQUEST_FILE)
    }

    /// Puts it into a restored folder.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, data: &Path) -> Result<()> {
        let path = Self::path(data);
        let text = serde_json::to_vec_pretty(self).context(Kind::Bug, || "write down what to recover to".into())?;
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::io(format!("replace {}", path.display()), error)),
            _ => {}
        }
        write_new(&path, &text, owner_of(data)?)
    }

    /// That of a restored folder; `None`: its snapshot's own moment.
    ///
    /// # Errors
    /// `Damaged` when it is not understood.
    pub fn read(data: &Path) -> Result<Option<Self>> {
        let path = Self::path(data);
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).context(Kind::Damaged, || format!("understand {}", path.display())).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io(format!("read {}", path.display()), error)),
        }
    }
}

/// What the server does at the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Becomes a server of its own, on a new timeline.
    Promote,
    /// Answers, reads only, and waits for `pg_wal_replay_resume()`.
    Pause,
    Shutdown,
}

/// A recovery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    pub target: Target,
    pub timeline: Timeline,
    /// Brings a log file: `%f` is its name, `%p` where it belongs. `None`: all the log is in `pg_wal` already.
    pub restore_command: Option<String>,
    pub action: Action,
}

impl Recovery {
    /// The settings that ask a server for it, all targets but one empty.
    ///
    /// # Errors
    /// `Usage` when the target cannot be asked for.
    pub fn settings(&self) -> Result<Vec<(String, String)>> {
        let (parameter, value, inclusive) = match &self.target {
            Target::Latest => ("", String::new(), true),
            Target::Immediate => ("recovery_target", "immediate".to_owned(), true),
            Target::Time(time) => ("recovery_target_time", time.trunc_subsecs(6).format("%Y-%m-%d %H:%M:%S%.6f+00").to_string(), true),
            Target::Lsn { lsn, inclusive } => ("recovery_target_lsn", lsn.to_string(), *inclusive),
            Target::Xid { xid, inclusive } => ("recovery_target_xid", xid.to_string(), *inclusive),
            Target::Name(name) => {
                if name.is_empty() || name.len() > MOST_NAME_BYTES || name.contains(char::is_control) {
                    return Err(Error::new(
                        Kind::Usage,
                        format!("recover to the restore point {name:?}: no restore point can have this name"),
                    )
                    .hint(format!("a name has 1 to {MOST_NAME_BYTES} bytes, as it was given to pg_create_restore_point()")));
                }
                ("recovery_target_name", name.clone(), true)
            }
        };
        let timeline = match self.timeline {
            Timeline::Latest => "latest".to_owned(),
            Timeline::Current => "current".to_owned(),
            Timeline::Number(number) => number.to_string(),
        };
        let action = match self.action {
            Action::Promote => "promote",
            Action::Pause => "pause",
            Action::Shutdown => "shutdown",
        };
        // The empty ones first: a server takes even an empty one that comes after a target for a second target.
        let mut settings: Vec<(String, String)> =
            TARGETS.iter().filter(|name| **name != parameter).map(|name| ((*name).to_owned(), String::new())).collect();
        if !parameter.is_empty() {
            settings.push((parameter.to_owned(), value));
        }
        let mut set = |name: &str, value: &str| settings.push((name.to_owned(), value.to_owned()));
        set("recovery_target_inclusive", if inclusive { "on" } else { "off" });
        set("recovery_target_timeline", &timeline);
        set("recovery_target_action", action);
        // The server insists on one; this one never has anything.
        set("restore_command", self.restore_command.as_deref().unwrap_or("false"));
        set("recovery_end_command", "");
        set("archive_cleanup_command", "");
        Ok(settings)
    }
}

/// Makes a restored data folder that nobody else uses safe to start in a private instance: to be recovered by the settings of its configuration.
/// Tablespaces are placed as in every restore; everything is given to `account`.
///
/// # Errors
/// `Damaged` when it is not a whole base backup; `Failed` for a link that would lead the server out of the folder (others are removed).
pub fn prepare(data: &Path, account: Account) -> Result<()> {
    instance::major_of(data)?;
    if !exists(&data.join("backup_label"))? {
        return Err(Error::new(Kind::Damaged, format!("recover {}: it has no backup_label", data.display()))
            .hint("restore the whole snapshot again; a server would start this one from the wrong place in the log"));
    }
    settle_links(data)?;
    clear(data)?;
    let auto = data.join("postgresql.auto.conf");
    if exists(&auto)? {
        fs::rename(&auto, data.join(AUTO_CONF_ASIDE)).io_context(|| format!("move {} aside", auto.display()))?;
    }
    tablespaces::keep_inside(data)?;
    write_new(&data.join("recovery.signal"), b"", account)?;
    fs::set_permissions(data, fs::Permissions::from_mode(0o700)).io_context(|| format!("make {} private", data.display()))?;
    if account.is_other() {
        give(data, account)?;
    }
    Ok(())
}

/// Removes what a server left at the source and what would mislead the next one, and makes the empty folders that it needs.
///
/// # Errors
/// When that is not possible.
pub fn clear(data: &Path) -> Result<()> {
    for name in LEFTOVERS.iter().chain(&["tablespace_map"]) {
        let path = data.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::io(format!("remove {}", path.display()), error)),
            _ => {}
        }
    }
    let owner = owner_of(data)?;
    for name in EMPTY_FOLDERS {
        let path = data.join(name);
        if !exists(&path)? {
            fs::DirBuilder::new().mode(0o700).create(&path).io_context(|| format!("make folder {}", path.display()))?;
            own(&path, owner)?;
        }
    }
    Ok(())
}

/// The timelines of the segments in a data folder's log.
///
/// # Errors
/// As the system says.
pub fn timelines_in_log(data: &Path) -> Result<BTreeSet<u32>> {
    let folder = data.join("pg_wal");
    let failed = || format!("list {}", folder.display());
    let mut timelines = BTreeSet::new();
    for item in fs::read_dir(&folder).io_context(failed)? {
        let name = item.io_context(failed)?.file_name();
        let segment = name.to_str().filter(|name| name.len() == 24 && name.bytes().all(|byte| byte.is_ascii_hexdigit()));
        timelines.extend(segment.and_then(|name| u32::from_str_radix(&name[..8], 16).ok()));
    }
    Ok(timelines)
}

impl Target {
    /// Whether a server certainly replays nothing behind this record: where that is not known by the record alone, it may.
    fn ends_at(&self, record: &Record) -> bool {
        match (self, &record.meaning) {
            // As it will stand in the settings, in microseconds.
            (Self::Time(wanted), Meaning::Commit { time, .. } | Meaning::Abort { time, .. }) => *time > wanted.trunc_subsecs(6),
            (Self::Lsn { lsn, inclusive: false }, _) => record.start >= *lsn,
            (Self::Name(wanted), Meaning::RestorePoint { name, .. }) => name == wanted,
            _ => false,
        }
    }
}

/// What a replay of log would do, as far as that must be known before it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Ahead {
    /// The tablespaces that it would create: oid and folder. A server that replays one takes that folder for its own, whoever uses it on this host, and
    /// before PostgreSQL 15 even empties it.
    pub tablespaces: BTreeSet<(u32, String)>,
    /// Databases whose files it would remove without that their removal was committed: nobody can connect to them then. Their numbers.
    pub half_dropped: BTreeSet<u32>,
    /// Where the server began to run with `wal_level = minimal`, which no replay gets past.
    pub minimal: Option<Lsn>,
    /// The most that the settings of the source were raised to. Zeros: they were not changed.
    pub room: Room,
    /// Of the valid log.
    pub end: Lsn,
}

impl Ahead {
    /// The tablespaces, in words.
    #[must_use]
    pub fn created(&self) -> Vec<String> {
        self.tablespaces.iter().map(|(oid, location)| format!("{oid} at {location}")).collect()
    }

    /// That no replay gets to the target, in words.
    #[must_use]
    pub fn impassable(&self) -> Option<String> {
        let at = self.minimal?;
        Some(format!(
            "at {at}, on the way, the server began to run with wal_level = minimal: a server that recovers refuses to go on there, and does not start; choose an earlier moment, or a later snapshot"
        ))
    }

    /// The databases without files, in words.
    #[must_use]
    pub fn without_files(&self) -> Vec<String> {
        let without = |oid| {
            format!("the database with number {oid} was being dropped at this moment: its files are gone, and an earlier moment has it")
        };
        self.half_dropped.iter().map(without).collect()
    }
}

/// Reads the log of one timeline in `pg_wal` from `start` on to a target.
///
/// # Errors
/// `Damaged` when the log is not whole files.
pub fn look_ahead(data: &Path, system_identifier: u64, timeline: u32, start: Lsn, target: &Target) -> Result<Ahead> {
    let folder = data.join("pg_wal");
    let failed = || format!("look through the log in {}", folder.display());
    let strange = |what: &str| Error::new(Kind::Damaged, format!("{}: {what}", failed()));
    let mut files = BTreeMap::new();
    let mut size = None;
    for item in fs::read_dir(&folder).io_context(failed)? {
        let item = item.io_context(failed)?;
        let (name, metadata) = (item.file_name(), item.metadata().io_context(failed)?);
        if !metadata.is_file() {
            continue;
        }
        let Ok(of_file) = SegmentSize::new(metadata.len()) else { continue };
        if let Some(WalName::Segment { timeline: of, number }) = name.to_str().and_then(|name| WalName::parse(name, of_file))
            && of == timeline
        {
            if size.is_some_and(|size| size != of_file) {
                return Err(strange("its files have several sizes"));
            }
            size = Some(of_file);
            files.insert(number, item.path());
        }
    }
    let Some(size) = size else { return Err(strange("there is none")) };
    // A later timeline begins behind `start`.
    let first = files.range(size.number(start)..).next().map_or(size.number(start), |(number, _)| *number);
    let mut reader = WalReader::new(size.start(first), size, Some(system_identifier))?;
    let (mut ahead, mut ended) = (Ahead::default(), false);
    let mut buffer = vec![0; 1 << 20];
    // By the transactions that drop them.
    let mut dropping: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
    for (_, path) in (first..).zip(files.range(first..)).take_while(|(number, (of, _))| number == *of).map(|(_, file)| file) {
        let mut file = File::open(path).io_context(failed)?;
        loop {
            let read = file.read(&mut buffer).io_context(failed)?;
            if read == 0 || reader.end().is_some() {
                break;
            }
            reader.push(&buffer[..read], |record| {
                if record.start < start {
                    return;
                }
                ended |= target.ends_at(&record);
                match record.meaning {
                    _ if ended => {}
                    // Inside the data folder where it has none.
                    Meaning::CreateTablespace { oid, location } if !location.is_empty() => {
                        ahead.tablespaces.insert((oid, location));
                    }
                    Meaning::ParameterChange { room, wal_level } => {
                        ahead.room = ahead.room.with(room);
                        if wal_level == 0 {
                            ahead.minimal.get_or_insert(record.start);
                        }
                    }
                    // One that moved to another tablespace loses its old folder outside of a transaction.
                    Meaning::DropDatabase { database } if record.xid != 0 => {
                        dropping.entry(record.xid).or_default().insert(database);
                    }
                    Meaning::Commit { xid, .. } => {
                        dropping.remove(&xid);
                    }
                    _ => {}
                }
            });
        }
    }
    ahead.half_dropped = dropping.into_values().flatten().collect();
    ahead.end = reader.valid_end();
    Ok(ahead)
}

/// The oids of the tablespaces that a restored folder has, as folders `pg_tblspc/<oid>`.
///
/// # Errors
/// When they cannot be listed.
pub fn tablespaces_of(data: &Path) -> Result<Vec<u32>> {
    let folder = data.join("pg_tblspc");
    let mut oids = Vec::new();
    for item in fs::read_dir(&folder).io_context(|| format!("list {}", folder.display()))? {
        let name = item.io_context(|| format!("list {}", folder.display()))?.file_name();
        oids.extend(name.to_str().and_then(|name| name.parse::<u32>().ok()));
    }
    oids.sort_unstable();
    Ok(oids)
}

/// Makes a restored folder recover when an operator starts its server: settings in `postgresql.auto.conf` between marks (earlier blocks of
/// lifeboat are replaced), then `recovery.signal`, or `standby.signal` for a server that is to follow. `more` are further settings, such as
/// `primary_conninfo`, which stay; those of the recovery are gone once a server of its own is promoted.
///
/// # Errors
/// `Usage` for a target or setting that cannot be written.
pub fn write_for_operator(data: &Path, recovery: &Recovery, standby: bool, more: &[(String, String)]) -> Result<()> {
    let owner = owner_of(data)?;
    let path = data.join("postgresql.auto.conf");
    let text = match read_no_link(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(Error::io(format!("read {}", path.display()), error)),
    };
    let mut during = recovery.settings()?;
    if !standby {
        during.retain(|(name, _)| name != "recovery_end_command");
        // What a delayed standby has for itself would hold up this recovery.
        during
            .extend([("recovery_end_command", FORGET), ("recovery_min_apply_delay", "0")].map(|(name, value)| (name.into(), value.into())));
    }
    let lines = |settings: &[(String, String)]| {
        settings.iter().map(|(name, value)| instance::setting_line(name, value)).collect::<Result<String>>()
    };
    let text = with_block(&without_blocks(&text), DURING, &lines(&during)?);
    let text = if more.is_empty() { text } else { with_block(&text, AFTER, &lines(more)?) };
    replace(data, "postgresql.auto.conf", &text)?;
    let (signal, other) = if standby { ("standby.signal", "recovery.signal") } else { ("recovery.signal", "standby.signal") };
    for name in [signal, other] {
        drop(fs::remove_file(data.join(name)));
    }
    write_new(&data.join(signal), b"", owner)?;
    File::open(data).and_then(|folder| folder.sync_all()).io_context(|| format!("sync {}", data.display()))
}

/// The text of a `postgresql.auto.conf` without what lifeboat wrote into it.
pub(super) fn without_blocks(text: &[u8]) -> Vec<u8> {
    without_block(&without_block(text, DURING), AFTER)
}

/// Puts lines between two marks at the end of a text, in place of an earlier block with these marks.
pub(super) fn with_block(text: &[u8], marks: [&str; 2], lines: &str) -> Vec<u8> {
    let mut kept = without_block(text, marks);
    if !kept.is_empty() && !kept.ends_with(b"\n") {
        kept.push(b'\n');
    }
    let [begin, end] = marks;
    [&kept[..], begin.as_bytes(), b"\n", lines.as_bytes(), end.as_bytes(), b"\n"].concat()
}

fn without_block(text: &[u8], [begin, end]: [&str; 2]) -> Vec<u8> {
    let mut kept: Vec<u8> = Vec::new();
    let mut rest: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').rev().collect();
    while let Some(line) = rest.pop() {
        let is = |line: &[u8], mark: &str| line.trim_ascii_end() == mark.as_bytes();
        // What has no end is not ours any more.
        match rest.iter().rposition(|line| is(line, end)).filter(|_| is(line, begin)) {
            Some(last) => rest.truncate(last),
            None => kept.extend_from_slice(line),
        }
    }
    kept
}

/// Puts a file of a restored folder into the place of one that is there, or of a link, with its mode, owned like the folder.
pub(super) fn replace(data: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let (path, new) = (data.join(name), data.join(format!("{name}.new")));
    let mode = fs::symlink_metadata(&path).ok().filter(fs::Metadata::is_file).map_or(0o600, |found| found.mode() & 0o777);
    drop(fs::remove_file(&new));
    write_new_with(&new, bytes, owner_of(data)?, mode)?;
    fs::rename(&new, &path).io_context(|| format!("rename {}", new.display()))
}

/// How a recovery ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The timeline that the recovered server began.
    pub timeline: u32,
    /// The one that it came from.
    pub parent: u32,
    /// The end of the log that was replayed.
    pub end: Lsn,
    /// Why it ended there, in the server's words: `at restore point "x"`, `before 2026-…`, `no recovery target specified`.
    pub reason: String,
    /// When the last replayed transaction committed or aborted, by the source's clock. `None`: there was none.
    pub last_transaction: Option<DateTime<Utc>>,
    /// Log files that the restore command brought.
    pub files_restored: u64,
}

/// Starts a private instance on a prepared folder and recovers it. `launch.settings` come on top of those of the recovery.
///
/// # Errors
/// `NoRecoveryPoint` when the log that there is does not reach the target; `Damaged` when it does not even make the backup consistent; as
/// [`Instance::start`]. Nothing is left running.
pub fn recover(launch: &Launch<'_>, recovery: &Recovery, cancel: &Cancel) -> Result<(Instance, Outcome)> {
    let mut settings = recovery.settings()?;
    settings.extend(launch.settings.iter().cloned());
    let instance = Instance::start(&Launch { settings: &settings, ..*launch }, cancel).map_err(|error| explain(error, recovery))?;
    let outcome = Outcome::read(&instance.log(), instance.data())?;
    outcome.check(&recovery.target)?;
    Ok((instance, outcome))
}

impl Outcome {
    /// Reads it from the log of a server that was promoted, and the history file that it wrote.
    ///
    /// # Errors
    /// When these do not say that a recovery ended.
    pub fn read(log: &Path, data: &Path) -> Result<Self> {
        let unclear = |what: &str| Error::new(Kind::Failed, format!("find out how the recovery of {} ended: {what}", data.display()));
        let file = File::open(log).io_context(|| format!("read {}", log.display()))?;
        let (mut timeline, mut last_transaction, mut files_restored) = (None, None, 0);
        for line in BufReader::new(file).split(b'\n') {
            let line = line.io_context(|| format!("read {}", log.display()))?;
            let line = String::from_utf8_lossy(&line);
            let Some((_, said)) = line.split_once("LOG:  ") else { continue };
            if let Some(number) = said.strip_prefix("selected new timeline ID: ") {
                timeline = number.trim().parse::<u32>().ok();
            } else if let Some(time) = said.strip_prefix("last completed transaction was at log time ") {
                last_transaction = DateTime::parse_from_str(time.trim(), "%Y-%m-%d %H:%M:%S%.f%#z").ok().map(|time| time.to_utc());
            } else if said.starts_with("restored log file ") {
                files_restored += 1;
            }
        }
        let timeline = timeline.ok_or_else(|| unclear("the server did not begin a new timeline"))?;
        let path = data.join("pg_wal").join(format!("{timeline:08X}.history"));
        let history = fs::read_to_string(&path).io_context(|| format!("read {}", path.display()))?;
        let line = history.lines().rfind(|line| !line.trim().is_empty() && !line.starts_with('#'));
        let mut fields = line.unwrap_or_default().splitn(3, '\t');
        let (parent, end, reason) = (fields.next(), fields.next(), fields.next());
        let parent = parent.and_then(|number| number.trim().parse().ok()).ok_or_else(|| unclear("its history file is not understood"))?;
        let end = end.and_then(|lsn| lsn.trim().parse().ok()).ok_or_else(|| unclear("its history file is not understood"))?;
        Ok(Self { timeline, parent, end, reason: reason.unwrap_or_default().trim().to_owned(), last_transaction, files_restored })
    }

    /// Whether the server really stopped for this target: a recovery that ended for another reason proves nothing about it.
    ///
    /// # Errors
    /// `NoRecoveryPoint` when not.
    pub fn check(&self, target: &Target) -> Result<()> {
        let reason = self.reason.as_str();
        let is_time = |text: &str| text.starts_with(|digit: char| digit.is_ascii_digit());
        let side = reason.strip_prefix("before ").or_else(|| reason.strip_prefix("after "));
        let reached = match target {
            Target::Latest => reason == "no recovery target specified",
            Target::Immediate => reason == "reached consistency",
            Target::Name(name) => reason == format!("at restore point \"{name}\""),
            Target::Time(_) => side.is_some_and(is_time),
            Target::Lsn { .. } => side.is_some_and(|what| what.starts_with("LSN ")),
            // Stopping for a transaction that begins or ends elsewhere is told with its number too.
            Target::Xid { xid, .. } => side == Some(&format!("transaction {}", xid & 0xFFFF_FFFF)),
        };
        if reached {
            return Ok(());
        }
        Err(Error::new(
            Kind::NoRecoveryPoint,
            format!("recover to {target:?}: the server stopped at {} for another reason: {reason}", self.end),
        ))
    }
}

/// What a server that ended instead of recovering means for who asked.
fn explain(error: Error, recovery: &Recovery) -> Error {
    if instance::is_lost(&error) {
        return error;
    }
    let text = error.to_string();
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    let target = format!("recover to {:?}", recovery.target);
    if says(&["recovery ended before configured recovery target was reached"]) {
        let hint = "the log that there is ends before this target; choose an earlier one, or the latest";
        return Error::new(Kind::NoRecoveryPoint, target).because(error).hint(hint);
    }
    if says(&["requested recovery stop point is before consistent recovery point"]) {
        let hint = "the base backup was not finished at this target; choose an older snapshot or a later target";
        return Error::new(Kind::NoRecoveryPoint, target).because(error).hint(hint);
    }
    if says(&["is not a child of this server's history", "recovery target timeline"]) {
        let hint = "this timeline does not go through the base backup; choose another timeline or another snapshot";
        return Error::new(Kind::NoRecoveryPoint, target).because(error).hint(hint);
    }
    let incomplete = [
        "WAL ends before end of online backup",
        "WAL ends before consistent recovery point",
        "could not locate required checkpoint record",
        "could not find redo location",
        "could not locate a valid checkpoint record",
    ];
    if says(&incomplete) {
        let hint = "log that the base backup needs is missing or damaged: `lifeboat verify --data`, then drill another snapshot";
        return Error::new(Kind::Damaged, target).because(error).hint(hint);
    }
    if says(&[
        "incorrect checksum in control file",
        "invalid data in file \"backup_label\"",
        "invalid page",
        "invalid magic number",
        "PANIC:",
    ]) {
        return Error::new(Kind::Damaged, target).because(error);
    }
    error
}

fn exists(path: &Path) -> Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io(format!("look at {}", path.display()), error)),
    }
}

/// No link in a restored folder may lead a server elsewhere: perhaps into the data of a live one. Links that no private server follows (`postgresql.conf`, `server.crt`, `pg_log`, in
/// `log`) are removed: they came from the source, and a library would follow them.
fn settle_links(data: &Path) -> Result<()> {
    walk(data, &mut |path, metadata| {
        if metadata.is_dir() || metadata.is_file() {
            return Ok(());
        }
        let first = path.strip_prefix(data).ok().and_then(|inside| inside.iter().next());
        if metadata.is_symlink() && first.is_some_and(|name| OF_THE_SERVER.iter().all(|known| name != *known)) {
            return fs::remove_file(path).io_context(|| format!("remove the link {}", path.display()));
        }
        Err(Error::new(Kind::Failed, format!("recover {}: {} is not a file or folder", data.display(), path.display()))
            .hint("a link could lead the server into the data of another one; restore the snapshot again into an empty folder"))
    })
}

/// Takes links out of the server's own part of a restored folder, but for those of tablespaces: they are the source's, and would lead the server into the files
/// that this one still works in. What each was and where it led.
///
/// # Errors
/// As the system says.
pub fn cut_links(data: &Path) -> Result<Vec<String>> {
    let mut cut = Vec::new();
    walk(data, &mut |path, metadata| {
        let inside = path.strip_prefix(data).unwrap_or(path);
        let is_of_the_server = inside.iter().next().is_some_and(|name| OF_THE_SERVER.iter().any(|known| name == *known));
        let is_tablespace = inside.parent().is_some_and(|parent| parent == Path::new("pg_tblspc"));
        if metadata.is_symlink() && is_of_the_server && !is_tablespace {
            let to = fs::read_link(path).io_context(|| format!("read the link {}", path.display()))?;
            fs::remove_file(path).io_context(|| format!("remove the link {}", path.display()))?;
            cut.push(format!("{} (to {})", inside.display(), to.display()));
        }
        Ok(())
    })?;
    cut.sort_unstable();
    Ok(cut)
}

fn walk(root: &Path, each: &mut dyn FnMut(&Path, &fs::Metadata) -> Result<()>) -> Result<()> {
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let failed = || format!("list {}", folder.display());
        for item in fs::read_dir(&folder).io_context(failed)? {
            let item = item.io_context(failed)?;
            let (path, metadata) = (item.path(), item.metadata().io_context(failed)?);
            each(&path, &metadata)?;
            if metadata.is_dir() {
                folders.push(path);
            }
        }
    }
    Ok(())
}

/// Gives a tree to an account. Links are given, not followed.
fn give(root: &Path, account: Account) -> Result<()> {
    own(root, account)?;
    walk(root, &mut |path, metadata| if metadata.uid() == account.uid { Ok(()) } else { own(path, account) })
}

fn own(path: &Path, account: Account) -> Result<()> {
    if !account.is_other() {
        return Ok(());
    }
    std::os::unix::fs::lchown(path, Some(account.uid), Some(account.gid))
        .io_context(|| format!("give {} to user {}", path.display(), account.uid))
}

fn owner_of(data: &Path) -> Result<Account> {
    let metadata = fs::metadata(data).io_context(|| format!("look at {}", data.display()))?;
    Ok(Account { uid: metadata.uid(), gid: metadata.gid() })
}

fn read_no_link(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let no_follow = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    OpenOptions::new().read(true).custom_flags(no_follow).open(path)?.read_to_end(&mut text)?;
    Ok(text)
}

/// Puts a file of the log into the `pg_wal` of a restored folder, in place of one that is there, owned like the folder.
///
/// # Errors
/// When it cannot be written.
pub fn place_log_file(data: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let path = data.join("pg_wal").join(name);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::io(format!("replace {}", path.display()), error)),
        _ => {}
    }
    write_new(&path, bytes, owner_of(data)?)
}

/// Makes a new file: one that is there, also a link, is an error.
fn write_new(path: &Path, bytes: &[u8], account: Account) -> Result<()> {
    write_new_with(path, bytes, account, 0o600)
}

fn write_new_with(path: &Path, bytes: &[u8], account: Account, mode: u32) -> Result<()> {
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(bytes)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()
    };
    write().io_context(|| format!("write {}", path.display()))?;
    own(path, account)
}

#[cfg(test)]
mod tests;

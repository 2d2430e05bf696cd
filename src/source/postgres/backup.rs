//! A base backup as a snapshot: the files, then everything that makes them one moment.
//!
//! Steps: a temporary slot holds the log → the files are read (streamed by the server, or from its data folder), and between them each segment of the
//! log that has become whole since the backup's start is put into `pg_wal/` → fingerprints are taken at one exact position behind the backup's end → the rest of
//! the log up to that position follows. So a snapshot needs nothing but itself, nothing is staged on this host's disks, and the server has to keep no more of its log
//! than it writes while one file is read.
//!
//! A standby begins a backup at its last restartpoint, which may be on the timeline that its primary was on before a failover. Its log then goes through
//! several timelines, and the history of the last one comes with it.

mod log;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io::{self, Cursor, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use bytes::{Buf, Bytes};
use chrono::Utc;
use crossbeam_channel::{Receiver, bounded};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::entry::{Entry, EntryKind, Layout, Order};
use crate::error::{Context, Error, Kind, Result};
use crate::event::Cancel;
use crate::source::postgres::PostgresSource;
use crate::source::postgres::backup::log::{BackupLog, LONGEST_PAGE_HEADER, Spoiled, Waited, other_server};
use crate::source::postgres::client::{Connection, Mode, quote_literal, sqlstate};
use crate::source::postgres::configuration::Configuration;
use crate::source::postgres::conninfo::Settings;
use crate::source::postgres::control::{Control, State};
use crate::source::postgres::findings::BAD_PAGE;
use crate::source::postgres::fingerprint::{self, Position, Taken};
use crate::source::postgres::layout::{self, CONFIGURATION_FOLDER, RelationFile};
use crate::source::postgres::local::{LocalReader, LocalSettings};
use crate::source::postgres::lsn::Lsn;
use crate::source::postgres::recover::Target;
use crate::source::postgres::remote::{Archive, ArchiveReader, Cluster, Finished, kept_inside, links_left_out, warned_of};
use crate::source::postgres::replication::{
    self, BackupEnd, BackupPart, BaseBackupOptions, LogPosition, Tablespace, base_backup, create_physical_slot, identify_system,
};
use crate::source::postgres::stream;
use crate::source::postgres::throttle::Throttle;
use crate::source::postgres::wal::{SegmentSize, TimelineHistory};
use crate::source::{Closed, Finish, Problem, SourceContext, SourceSnapshot};

/// Oldest and newest major versions.
pub const MAJORS: std::ops::RangeInclusive<u32> = 14..=18;
/// In [`CONFIGURATION_FOLDER`]: what a recovery of the folder needs to know, as [`Point`].
pub const POINT_FILE: &str = "recovery-point.json";
/// OIDs of the two tablespaces that every cluster has.
const PG_DEFAULT: u32 = 1663;
const PG_GLOBAL: u32 = 1664;
/// So many files with damaged pages are told with the names of their relations.
const NAMED_RELATIONS: usize = 16;
/// Tells clusters apart, in what a snapshot says of itself.
pub(super) const SYSTEM_IDENTIFIER: &str = "system_identifier";
/// Tables that are in use when they are to be locked are tried again so often, with this pause.
const FINGERPRINT_TRIES: u32 = 5;
const FINGERPRINT_PAUSE: Duration = Duration::from_millis(700);
/// Messages of the server that wait to be read, of up to 64 KiB or so each.
const WAITING_MESSAGES: usize = 64;
/// After so long without the log that is waited for, the server is asked to finish the segment. An idle server writes the end of its log to disk, and sends
/// it, only seconds later.
const SWITCH_AFTER: Duration = Duration::from_millis(400);
/// How long the log that a backup needs is waited for.
const LOG_PATIENCE: Duration = Duration::from_mins(2);
/// How often a standby is asked how far it has replayed while that is waited for.
const REPLAYED_EVERY: Duration = Duration::from_millis(500);
/// A server that has just been promoted may say so before its control file does.
pub(super) const STATE_TRIES: u32 = 20;
pub(super) const STATE_PAUSE: Duration = Duration::from_millis(50);
/// What to do about a data folder that is not the server's.
pub(super) const OTHER_FOLDER: &str = "`data_directory` must be the very folder that the server behind `url` works in, not another copy of its cluster (an old one, a standby's, a snapshot): SHOW data_directory tells its path on the server's host; at a failover the url may lead to another node than this one";

/// What a snapshot says of itself to whoever recovers it: `lifeboat_conf/recovery-point.json` in the tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// Of the cluster; a string, because it does not fit a JSON number.
    pub system_identifier: String,
    /// `server_version_num`.
    pub server_version: u32,
    /// Of its moment.
    pub timeline: u32,
    /// Of `start`, where that is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_timeline: Option<u32>,
    /// Replay begins here.
    pub start: Lsn,
    /// Behind this the files are consistent.
    pub stop: Lsn,
    /// Where the fingerprints are of: the moment of this snapshot.
    pub position: Position,
    /// The superuser that a private server is asked as: of those that may log in the first, which is the owner of the catalogue unless it may not. That one
    /// also where none may.
    pub superuser: String,
    pub preload: Vec<String>,
    /// Of the source, as its server says. `None`: the role may not know; snapshots of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_directory: Option<PathBuf>,
    pub tablespaces: Vec<TablespacePlace>,
    /// Tables without a fingerprint, and why.
    pub left_out: Vec<Problem>,
}

impl Point {
    /// What a server must be recovered to for this snapshot's own moment. Without a restore point it is the end of the log, which is cut
    /// there: a position would need a record behind it.
    #[must_use]
    pub fn target(&self) -> Target {
        match &self.position.restore_point {
            Some(name) => Target::Name(name.clone()),
            None => Target::Latest,
        }
    }

    /// Whether a recovery that ended here brought everything.
    #[must_use]
    pub fn is_reached(&self, end: Lsn) -> bool {
        // The position may be told behind the header of a page that no record has touched yet.
        end.0 + LONGEST_PAGE_HEADER >= self.position.lsn.0
    }
}

/// Where a tablespace was on the source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TablespacePlace {
    pub oid: u32,
    pub location: Option<String>,
}

/// What is asked of the server before anything is read.
pub(super) struct Facts {
    pub(super) version: u32,
    pub(super) in_recovery: bool,
    pub(super) superuser: String,
    /// Whether it may: no other does where it may not.
    pub(super) superuser_logs_in: bool,
    pub(super) preload: Vec<String>,
    pub(super) segment: SegmentSize,
    pub(super) wal_level: String,
    block_bytes: u32,
    segment_blocks: u32,
    pub(super) checksums: bool,
    data_mode: u32,
}

impl Facts {
    pub(super) fn read(sql: &mut Connection) -> Result<Self> {
        let version = sql.server_version();
        let major = version / 10_000;
        if !MAJORS.contains(&major) {
            return Err(Error::new(
                Kind::Usage,
                format!("this server is PostgreSQL {major}; versions {} to {} can be backed up", MAJORS.start(), MAJORS.end()),
            )
            .hint("a command source with pg_dump covers other versions"));
        }
        let settings = sql.query(
            "SELECT name, setting FROM pg_catalog.pg_settings WHERE name IN ('wal_segment_size', 'block_size', 'segment_size', 'data_checksums', \
             'data_directory_mode', 'wal_level', 'shared_preload_libraries')",
        )?;
        let setting = |name: &str| settings.iter().find(|row| row.named("name") == Some(name)).and_then(|row| row.named("setting"));
        let number = |name: &str| -> Result<u64> {
            setting(name)
                .and_then(|text| text.parse().ok())
                .ok_or_else(|| Error::new(Kind::Failed, format!("the server does not tell its {name}")))
        };
        let small = |name: &str| -> Result<u32> {
            number(name).and_then(|value| u32::try_from(value).context(Kind::Failed, || format!("the server's {name} is {value}")))
        };
        let (segment, block_bytes, segment_blocks) =
            (SegmentSize::new(number("wal_segment_size")?)?, small("block_size")?, small("segment_size")?);
        let data_mode = setting("data_directory_mode").and_then(|text| u32::from_str_radix(text, 8).ok()).unwrap_or(0o700);
        let preload = setting("shared_preload_libraries").unwrap_or_default();
        let preload = preload.split(',').map(|name| name.trim().trim_matches('"').to_owned()).filter(|name| !name.is_empty()).collect();
        let (checksums, wal_level) = (setting("data_checksums") == Some("on"), setting("wal_level").unwrap_or_default().to_owned());
        let roles = sql.query(
            "SELECT pg_catalog.pg_is_in_recovery(), r.rolname, r.rolsuper AND r.rolcanlogin FROM pg_catalog.pg_roles r WHERE r.rolsuper OR r.oid = 10 \
             ORDER BY r.rolsuper AND r.rolcanlogin DESC, r.oid <> 10, r.oid LIMIT 1",
        )?;
        let role = roles.first().ok_or_else(|| Error::new(Kind::Failed, "the server does not answer"))?;
        Ok(Self {
            version,
            in_recovery: role.get(0) == Some("t"),
            superuser: role.get(1).unwrap_or("postgres").to_owned(),
            superuser_logs_in: role.get(2) == Some("t"),
            preload,
            segment,
            wal_level,
            block_bytes,
            segment_blocks,
            checksums,
            data_mode,
        })
    }
}

/// A base backup under way.
pub(super) struct BaseSnapshot {
    settings: Settings,
    key: [u8; 32],
    cancel: Cancel,
    facts: Facts,
    system_identifier: u64,
    /// Of `start`.
    timeline: u32,
    /// Has the slot.
    log: BackupLog,
    slot: String,
    fingerprint_budget: fingerprint::Budget,
    refuses_damaged_pages: bool,
    /// Of what is read here: files of a local folder, and rows for fingerprints.
    throttle: Option<Throttle>,
    /// A permanent one that must be there before anything is read, until it is.
    log_slot: Option<String>,
    /// Asks for the end of a local backup, for restore points and segment switches.
    sql: Connection,
    files: Files,
    estimate: Option<(u64, u64)>,
    start: Lsn,
    tablespaces: Vec<TablespacePlace>,
    /// As the server says it.
    data_directory: Option<PathBuf>,
    /// Owner of the data folder; before that is known, of the first entry.
    owner: Option<(u32, u32)>,
    /// Whether [`CONFIGURATION_FOLDER`] was yielded.
    has_folder: bool,
    /// What comes after the files, with its bytes.
    extra: VecDeque<(Entry, Bytes)>,
    contents: HashMap<Vec<u8>, Bytes>,
    /// A standby has replayed its log at least up to here, asked for at this time.
    replayed: (Lsn, Option<Instant>),
    /// All files were read, and up to here the server had written (a standby: replayed) its log by then.
    caught_up: Option<Lsn>,
    done: Option<Done>,
    /// What an operator should know although nothing is wrong.
    warnings: Vec<String>,
}

/// Where the files come from.
enum Files {
    Remote(Remote),
    Local(Box<LocalReader>),
    Read,
}

/// After all files were read.
struct Done {
    stop: Lsn,
    /// Of its moment.
    timeline: u32,
    taken: Taken,
    problems: Vec<Problem>,
}

impl BaseSnapshot {
    pub(super) fn begin(source: &PostgresSource, context: &SourceContext) -> Result<Self> {
        let settings = source.settings()?;
        let cancel = context.cancel.clone();
        let mut sql = Connection::connect(settings, Mode::Sql { database: None }, &cancel)?;
        let facts = Facts::read(&mut sql)?;
        if facts.wal_level == "minimal" {
            return Err(Error::new(Kind::Usage, "back up PostgreSQL: wal_level is minimal, its log does not make a copy whole")
                .hint("set wal_level = replica in postgresql.conf and restart the server"));
        }
        let mut log = Connection::connect(settings, Mode::Replication, &cancel)?;
        let identity = identify_system(&mut log)?;
        let label = label()?;
        let slot = format!("lifeboat_{label}");
        // Before the backup begins: from here on the server keeps the log that it will need.
        create_physical_slot(&mut log, &slot, true)?;
        let here = LogPosition { lsn: identity.position, timeline: identity.timeline };
        // A standby begins behind what it has replayed.
        let log = BackupLog::hold(log, slot.clone(), here, !facts.in_recovery, facts.segment, cancel.clone())?;
        let label = format!("lifeboat {label}");
        let mut snapshot = Self {
            settings: settings.clone(),
            key: context.fingerprint_key,
            throttle: source.read_limit_bytes_per_sec.map(|rate| Throttle::new(rate, cancel.clone())),
            cancel,
            system_identifier: identity.system_identifier,
            timeline: identity.timeline,
            log,
            slot,
            fingerprint_budget: source.fingerprint_budget,
            refuses_damaged_pages: source.refuses_damaged_pages,
            log_slot: source.log_slot.clone(),
            sql,
            files: Files::Read,
            estimate: None,
            start: Lsn(0),
            tablespaces: Vec::new(),
            data_directory: None,
            owner: None,
            has_folder: false,
            extra: VecDeque::new(),
            contents: HashMap::new(),
            replayed: (Lsn(0), None),
            caught_up: None,
            done: None,
            warnings: Vec::new(),
            facts,
        };
        let configuration = Configuration::read(&mut snapshot.sql)?;
        snapshot.data_directory.clone_from(&configuration.data_directory);
        if let Some(folder) = &source.data_directory {
            snapshot.begin_local(folder.clone(), source, &configuration, &label)?;
        } else {
            snapshot.warnings.extend(not_captured(&configuration));
            snapshot.begin_remote(&label, source.read_limit_bytes_per_sec)?;
        }
        snapshot.log.begin(LogPosition { lsn: snapshot.start, timeline: snapshot.timeline }, snapshot.system_identifier, label)?;
        Ok(snapshot)
    }

    fn begin_local(&mut self, data_directory: PathBuf, source: &PostgresSource, configuration: &Configuration, label: &str) -> Result<()> {
        let called = SystemTime::now();
        // The checkpoint may take a while.
        let patience = self.sql.timeout();
        self.sql.set_timeout(Duration::from_hours(1));
        let call = if self.facts.version >= 150_000 { "pg_backup_start('LABEL', true)" } else { "pg_start_backup('LABEL', true, false)" };
        let start = self.sql.value(&format!("SELECT pg_catalog.{}", call.replace("LABEL", label)))?;
        self.sql.set_timeout(patience);
        self.start = start.unwrap_or_default().parse()?;
        if self.facts.in_recovery {
            // The label will say it at the end.
            let start = self.start;
            self.timeline = self.ask(move |log| {
                let now = identify_system(log)?.timeline;
                Ok(history_of(log, now)?.map_or(now, |(history, _)| history.timeline_at(start)))
            })?;
        }
        let local = LocalReader::begin(LocalSettings {
            configuration: configuration.with_included(&data_directory),
            data_directory: data_directory.clone(),
            start: self.start,
            called,
            full: source.read_unchanged,
            throttle: self.throttle.clone(),
            cancel: self.cancel.clone(),
        })?;
        self.is_the_servers(&local, &data_directory)?;
        self.estimate = Some(local.estimate()?);
        self.files = Files::Local(Box::new(local));
        Ok(())
    }

    /// Refuses a data folder that is not the one in which the server works that answers: what is read there would be made one by the log of another.
    fn is_the_servers(&mut self, local: &LocalReader, folder: &Path) -> Result<()> {
        if local.control().system_identifier != self.system_identifier {
            return Err(Error::new(
                Kind::Usage,
                "back up PostgreSQL: the data folder belongs to another cluster than the server that answers",
            )
            .hint("`data_directory` and `url` must be of one server: SHOW data_directory tells its folder"));
        }
        let refused = |why: String| {
            let what = format!("back up PostgreSQL: {} is not the folder in which the server works that answers", folder.display());
            Error::new(Kind::Usage, what).because(why).hint(OTHER_FOLDER)
        };
        if !local.has_slot(&self.slot)? {
            return Err(refused(format!("replication slot {}, which was just made on the server, is not in it", self.slot)));
        }
        let control = local.control_now()?;
        if control.redo < self.start {
            let what = format!("its last checkpoint begins at {}, that of the server at {}", control.redo, self.start);
            return Err(refused(what));
        }
        let mut tries = 0;
        loop {
            let is_standby = self.sql.value("SELECT pg_catalog.pg_is_in_recovery()")?.as_deref() == Some("t");
            match state_differs(&local.control_now()?, is_standby) {
                None => return Ok(()),
                Some(why) if tries == STATE_TRIES => return Err(refused(why)),
                Some(_) => tries += 1,
            }
            self.cancel.check()?;
            std::thread::sleep(STATE_PAUSE);
        }
    }

    fn begin_remote(&mut self, label: &str, read_limit_bytes_per_sec: Option<u64>) -> Result<()> {
        let connection = Connection::connect(&self.settings, Mode::Replication, &self.cancel)?;
        let (remote, begun) = Remote::begin(connection, label, read_limit_bytes_per_sec)?;
        self.start = begun.start.lsn;
        self.timeline = begun.start.timeline;
        let bytes = begun.tablespaces.iter().filter_map(|tablespace| tablespace.bytes).sum();
        self.estimate = Some((bytes, 0));
        let place = |tablespace: &Tablespace| tablespace.oid.map(|oid| TablespacePlace { oid, location: tablespace.location.clone() });
        self.tablespaces = begun.tablespaces.iter().filter_map(place).collect();
        self.files = Files::Remote(remote);
        Ok(())
    }

    /// The next entry of the files, or `None` after the last one.
    fn next_file(&mut self) -> Result<Option<Entry>> {
        match &mut self.files {
            Files::Local(local) => local.next_entry(),
            Files::Remote(remote) => {
                let cluster = Cluster {
                    block_bytes: self.facts.block_bytes,
                    segment_blocks: self.facts.segment_blocks,
                    check_from: self.facts.checksums.then_some(self.start),
                };
                remote.next_entry(cluster, self.facts.data_mode)
            }
            Files::Read => Ok(None),
        }
    }

    /// After the files: ends the backup, takes the fingerprints, and queues what makes the folder recoverable.
    fn end_files(&mut self) -> Result<()> {
        let (stop, mut problems, is_certain) = match std::mem::replace(&mut self.files, Files::Read) {
            Files::Local(local) => {
                let call = if self.facts.version >= 150_000 { "pg_backup_stop(false)" } else { "pg_stop_backup(false, false)" };
                let rows = self.sql.query(&format!("SELECT lsn, labelfile, spcmapfile FROM pg_catalog.{call}"))?;
                let row = rows.first().ok_or_else(|| Error::new(Kind::Failed, "the server does not tell where the backup ended"))?;
                let stop: Lsn = row.required("lsn")?.parse()?;
                let (label, map) = (row.required("labelfile")?.to_owned(), row.named("spcmapfile").unwrap_or_default().to_owned());
                let timeline = start_timeline(&label)
                    .ok_or_else(|| Error::new(Kind::Failed, "the backup label does not tell its timeline").because(label.clone()))?;
                if timeline != self.timeline {
                    let what = format!("this backup began on timeline {timeline}, its log was streamed from timeline {}", self.timeline);
                    return Err(Error::new(Kind::Failed, what).hint("back up again"));
                }
                self.queue(b"backup_label".to_vec(), label.into_bytes());
                if !map.is_empty() {
                    self.queue(b"tablespace_map".to_vec(), map.into_bytes());
                }
                let location = |place: &Option<Vec<u8>>| place.as_ref().map(|path| String::from_utf8_lossy(path).into_owned());
                self.tablespaces =
                    local.tablespaces().iter().map(|link| TablespacePlace { oid: link.oid, location: location(&link.location) }).collect();
                (stop, local.finish(stop)?, true)
            }
            Files::Remote(remote) => {
                let (BackupEnd { position, damaged_pages, warnings }, finished) = remote.finish()?;
                let mut problems: Vec<Problem> = finished.iter().flat_map(|archive| archive.problems(position.lsn)).collect();
                let is_certain = damaged_pages.is_some();
                if let Some(error) = damaged_pages.filter(|_| problems.iter().all(|problem| problem.kind != BAD_PAGE)) {
                    return Err(error.within("the server found damaged pages that did not arrive as such"));
                }
                problems.extend(warned_of(&warnings, is_certain));
                self.warnings.extend(links_left_out(&warnings));
                (position.lsn, problems, is_certain)
            }
            Files::Read => return Err(Error::new(Kind::Bug, "the files of a base backup ended twice")),
        };
        self.damaged_pages(&mut problems, is_certain)?;
        let name = format!("lifeboat {}", self.slot.trim_start_matches("lifeboat_"));
        let options = fingerprint::Options { budget: self.fingerprint_budget, ..fingerprint::Options::default() };
        let of_tables = |error: Error| error.within("take the fingerprints of the tables");
        let snapshot = self.fingerprints(&name, &options).map_err(of_tables)?;
        let position = snapshot.position().clone();
        let end = stop.max(position.lsn);
        if position.restore_point.is_none() {
            self.is_the_same_server()?;
        }
        // Before the rows are read, which takes a while: nothing more is asked of the server's log after that.
        let way = self.way(end)?;
        let timeline = way.timeline();
        self.log.lead_to(way, end)?;
        let taken = snapshot.read(&self.key, self.throttle.as_ref(), &self.cancel).map_err(of_tables)?;
        let point = Point {
            system_identifier: self.system_identifier.to_string(),
            server_version: self.facts.version,
            timeline,
            start_timeline: (self.timeline != timeline).then_some(self.timeline),
            start: self.start,
            stop,
            position: taken.position.clone(),
            superuser: self.facts.superuser.clone(),
            preload: self.facts.preload.clone(),
            data_directory: self.data_directory.clone(),
            tablespaces: self.tablespaces.clone(),
            left_out: taken.left_out.clone(),
        };
        // What the server itself cannot read is damaged or gone.
        problems.extend(taken.left_out.iter().filter(|left_out| left_out.kind == fingerprint::UNREADABLE).cloned());
        let point = serde_json::to_vec_pretty(&point).context(Kind::Bug, || "write down the recovery point".into())?;
        if !self.has_folder {
            let folder = self.entry(CONFIGURATION_FOLDER.to_vec(), EntryKind::Directory, 0o700);
            self.extra.push_back((folder, Bytes::new()));
        }
        self.queue([CONFIGURATION_FOLDER, b"/", POINT_FILE.as_bytes()].concat(), point);
        self.done = Some(Done { stop, timeline, taken, problems });
        Ok(())
    }

    /// Names the relations of damaged pages. `is_certain`: they were read again. A page that the server sent while it was being written (it reads again only
    /// what has a header) may be such a one, which replay writes anew: that is told, and ends no backup.
    ///
    /// # Errors
    /// [`Kind::Failed`] when there are any and they are to end the backup: what is stored is sound.
    fn damaged_pages(&self, problems: &mut [Problem], is_certain: bool) -> Result<()> {
        let mut damaged: Vec<&mut Problem> = problems.iter_mut().filter(|problem| problem.kind == BAD_PAGE).collect();
        if damaged.is_empty() {
            return Ok(());
        }
        for problem in damaged.iter_mut().take(NAMED_RELATIONS) {
            // Only a help for whoever reads it: with the catalogue damaged, the path of the file must do.
            if let Some(name) = self.relation_name(&problem.object) {
                problem.message = format!("{name}: {}", problem.message);
            }
        }
        if !self.refuses_damaged_pages || !is_certain {
            return Ok(());
        }
        let told = damaged.iter().take(NAMED_RELATIONS).map(|problem| format!("{}: {}", problem.object, problem.message));
        let more = damaged.len().saturating_sub(NAMED_RELATIONS);
        let more = if more > 0 { format!("; and {more} more files") } else { String::new() };
        Err(Error::new(Kind::Failed, "back up PostgreSQL: pages on the server are damaged, and nothing was committed")
            .because(told.collect::<Vec<_>>().join("; ") + &more)
            .hint(
                "find out how far the damage goes (pg_amcheck) and restore what it hit from an older snapshot (restore --only); with \
                 damaged_pages = \"report\" in the source there are backups meanwhile, each of which tells of them with exit code 3",
            ))
    }

    /// `DATABASE.RELATION` of a file, as far as the server says it.
    fn relation_name(&self, path: &str) -> Option<String> {
        let file = RelationFile::parse(path.as_bytes())?;
        let tablespace = match file.tablespace {
            layout::Tablespace::Default => PG_DEFAULT,
            layout::Tablespace::Global => PG_GLOBAL,
            layout::Tablespace::Oid(oid) => oid,
        };
        let relation = format!(
            "SELECT n.nspname || '.' || c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
             WHERE c.oid = pg_catalog.pg_filenode_relation({tablespace}, {})",
            file.filenode
        );
        let ask = |database: Option<&str>, question: &str| {
            let connected = Connection::connect(&self.settings, Mode::Sql { database }, &self.cancel);
            connected.and_then(|mut connection| connection.value(question)).ok().flatten()
        };
        if file.database == 0 {
            return ask(None, &relation);
        }
        let database = ask(None, &format!("SELECT datname FROM pg_catalog.pg_database WHERE oid = {}", file.database))?;
        Some(format!("{database}.{}", ask(Some(&database), &relation)?))
    }

    /// Fingerprints are taken through connections of their own. A restore point in the log proves that they led to its server; without one, it must answer
    /// there still.
    fn is_the_same_server(&mut self) -> Result<()> {
        let before = self.ask(identify_system)?;
        let there = identify_system(&mut Connection::connect(&self.settings, Mode::Replication, &self.cancel)?)?;
        // A standby may go on to another timeline meanwhile.
        let after = self.ask(identify_system)?;
        if there.system_identifier == before.system_identifier && (before.timeline..=after.timeline).contains(&there.timeline) {
            return Ok(());
        }
        Err(other_server(&format!(
            "its log is of the cluster with system identifier {} on timeline {}, and the server that answers now of {} on timeline {}",
            before.system_identifier, after.timeline, there.system_identifier, there.timeline
        )))
    }

    /// The way of the log from `start` to `end`, as the history of the timeline that it ends on; where that is not the one that it begins on, its file is
    /// queued: without it no server finds this way.
    fn way(&mut self, end: Lsn) -> Result<TimelineHistory> {
        let from = LogPosition { lsn: self.start, timeline: self.timeline };
        let (way, file) = self.ask(move |log| way_of(log, from, end))?;
        if let Some(file) = file {
            self.queue(format!("pg_wal/{}", file.file_name).into_bytes(), file.content.to_vec());
        }
        Ok(way)
    }

    /// Asks on the connection of the log.
    fn ask<T: Send + 'static>(&mut self, question: impl FnOnce(&mut Connection) -> Result<T> + Send + 'static) -> Result<T> {
        match self.log.ask(question) {
            Err(error) if self.log.is_over() => Err(self.log_lost(error)),
            answered => answered,
        }
    }

    /// What ended the stream of the log, as far as the server tells it by SQL: to the stream itself it only says that it is ended.
    fn log_lost(&mut self, error: Error) -> Error {
        let may_be_the_slot = matches!(sqlstate(&error), Some("57P01" | "58P01" | "55000" | "42704")) || error.kind() == Kind::Unavailable;
        if !may_be_the_slot {
            return error;
        }
        let slot = quote_literal(&self.slot);
        let asked = self.sql.query(&format!(
            "SELECT pg_catalog.current_setting('max_slot_wal_keep_size') AS kept, pg_catalog.current_setting('idle_replication_slot_timeout', \
             true) AS idle, s.slot_name, s.wal_status, pg_catalog.to_jsonb(s) ->> 'invalidation_reason' AS reason FROM (SELECT 1) one LEFT JOIN \
             pg_catalog.pg_replication_slots s ON s.slot_name = {slot}"
        ));
        // Where it does not answer either, it was not the slot.
        let Ok([row]) = asked.as_deref() else { return error };
        let reason = row.named("reason").or_else(|| row.named("wal_status").filter(|status| *status == "lost"));
        let what = match (row.named("slot_name"), reason) {
            (None, _) => format!("its replication slot {} is gone", self.slot),
            (Some(_), Some(reason)) => format!("its replication slot {} was invalidated ({reason})", self.slot),
            (Some(_), None) => format!("its replication slot {} is there", self.slot),
        };
        let limits: Vec<String> = [("max_slot_wal_keep_size", "kept", "-1"), ("idle_replication_slot_timeout", "idle", "0")]
            .into_iter()
            .filter_map(|(name, column, none)| Some((name, row.named(column).filter(|value| *value != none)?)))
            .map(|(name, value)| format!("{name} = {value}"))
            .collect();
        let hint = if limits.is_empty() {
            "no limit for slots is set on this server, so somebody ended the session (pg_terminate_backend), or it failed: the server's own log says which; then back up again".to_owned()
        } else {
            format!(
                "the server has {}, by which it ends the session of a slot that holds back more of its log, or longer; its own log says \"terminating process … to release replication slot\" \
                 then. Set the limit above what the server writes while this backup reads one file (1 GiB at most) and takes its fingerprints, then back up again",
                limits.join(" and ")
            )
        };
        let what = format!("the server ended the stream of this backup's log, which had come to {}; {what}", self.log.received());
        Error::new(Kind::Unavailable, what).because(error).hint(hint)
    }

    /// Why this backup is not one of a database.
    fn not_brought_back(&mut self, spoiled: Spoiled) -> Error {
        let names = self.sql.query("SELECT oid, datname FROM pg_catalog.pg_database").unwrap_or_default();
        let name = |oid: u32| {
            let row = names.iter().find(|row| row.named("oid") == Some(oid.to_string().as_str()));
            row.and_then(|row| row.named("datname")).map_or_else(|| format!("{oid} (which is gone)"), str::to_owned)
        };
        let what = match spoiled {
            Spoiled::Moved { database } => format!(
                "database {} was moved to another tablespace while the backup ran: its log copies files that the backup need not have",
                name(database)
            ),
            Spoiled::Copied { database, source } => format!(
                "database {} was created as a copy of the files of {} while the backup ran, and {1} was changed or dropped after that: a restore would copy what it became",
                name(database),
                name(source)
            ),
        };
        Error::new(Kind::Failed, what).hint("nothing was committed; back up again, at a time at which this is not done")
    }

    /// Tablespaces that were created while the backup ran, also those that are gone again: a replay creates them where the source has them.
    fn tablespaces_created(&mut self, created: &[(u32, String)]) -> Result<Vec<Problem>> {
        if created.is_empty() {
            return Ok(Vec::new());
        }
        let rows = self.sql.query("SELECT oid, spcname FROM pg_catalog.pg_tablespace")?;
        let name = |oid: u32| {
            let row = rows.iter().find(|row| row.named("oid") == Some(oid.to_string().as_str()));
            row.and_then(|row| row.named("spcname")).map_or_else(|| oid.to_string(), str::to_owned)
        };
        let problem = |(oid, place): &(u32, String)| Problem {
            object: format!("tablespace {}", name(*oid)),
            kind: "tablespace-created".into(),
            message: format!(
                "created in {place} while the backup ran: on this host a drill would not replay that, and is incomplete; back up again"
            ),
        };
        Ok(created.iter().map(problem).collect())
    }

    /// Somebody may hold a table for a moment (vacuum, a long transaction): such a one gets a few more chances, each at a point of its own.
    fn fingerprints(&self, name: &str, options: &fingerprint::Options) -> Result<fingerprint::Snapshot> {
        let mut attempt = 1;
        loop {
            match fingerprint::Snapshot::take(&self.settings, &format!("{name} {attempt}"), options, &self.cancel) {
                // Another backup pauses the same standby.
                Err(error) if error.kind() == Kind::Busy && attempt < FINGERPRINT_TRIES => {}
                Err(error) => return Err(error),
                Ok(snapshot) if snapshot.left_out().is_empty() || attempt == FINGERPRINT_TRIES => return Ok(snapshot),
                Ok(_) => {}
            }
            attempt += 1;
            self.cancel.check()?;
            std::thread::sleep(FINGERPRINT_PAUSE);
        }
    }

    fn entry(&self, path: Vec<u8>, kind: EntryKind, mode: u32) -> Entry {
        let mtime_ns = Utc::now().timestamp_nanos_opt().unwrap_or(0);
        let (uid, gid) = self.owner.unwrap_or_default();
        Entry { path, kind, mode, uid, gid, mtime_ns, stamp: Vec::new(), xattrs: Vec::new() }
    }

    fn queue(&mut self, path: Vec<u8>, content: Vec<u8>) {
        let kind = EntryKind::File { size: Some(content.len() as u64), layout: Layout::Content };
        let entry = self.entry(path, kind, 0o600);
        self.extra.push_back((entry, content.into()));
    }

    /// The segment of the log that was said to be there.
    fn segment(&mut self) -> Result<Entry> {
        let (name, bytes) = self.log.take()?;
        let kind = EntryKind::File { size: Some(bytes.len() as u64), layout: Layout::Content };
        let entry = self.entry(format!("pg_wal/{}", name.text(self.facts.segment)).into_bytes(), kind, 0o600);
        self.contents.insert(entry.path.clone(), bytes);
        Ok(entry)
    }

    /// While files are read: the next segment of the log that is whole, if all of it is before the end of this backup, which is not known yet.
    fn whole_segment(&mut self) -> Result<Option<Entry>> {
        match self.log.whole()? {
            Some(end) if self.is_before_end(end)? => self.segment().map(Some),
            _ => Ok(None),
        }
    }

    /// A primary ends the backup behind all that it has sent. A standby sends what it has received, and the backup ends where it has replayed to.
    fn is_before_end(&mut self, lsn: Lsn) -> Result<bool> {
        if !self.facts.in_recovery || self.replayed.0 >= lsn {
            return Ok(true);
        }
        if self.replayed.1.is_some_and(|asked| asked.elapsed() < REPLAYED_EVERY) {
            return Ok(false);
        }
        self.replayed = (self.log_end()?, Some(Instant::now()));
        Ok(self.replayed.0 >= lsn)
    }

    /// Up to where the log is written; on a standby, replayed.
    fn log_end(&mut self) -> Result<Lsn> {
        let function = if self.facts.in_recovery { "pg_last_wal_replay_lsn" } else { "pg_current_wal_flush_lsn" };
        self.sql.value(&format!("SELECT pg_catalog.{function}()"))?.unwrap_or_default().parse()
    }

    /// After the files: the next whole segment of what was written meanwhile, so that little is left to come while fingerprints are taken.
    fn catch_up(&mut self) -> Result<Option<Entry>> {
        let target = match self.caught_up {
            Some(target) => target,
            None => self.log_end()?,
        };
        self.caught_up = Some(target);
        if self.facts.in_recovery {
            self.replayed.0 = target;
        }
        while self.log.next_end() <= target {
            if let Some(entry) = self.whole_segment()? {
                return Ok(Some(entry));
            }
            self.pull(target)?;
        }
        Ok(None)
    }

    /// The next segment of the log up to the end of this backup, or `None` after the last one.
    fn next_segment(&mut self, end: Lsn) -> Result<Option<Entry>> {
        if self.log.is_complete() {
            return Ok(None);
        }
        while !self.log.has_next()? {
            self.pull(end)?;
        }
        self.segment().map(Some)
    }

    /// Waits until the server has sent some of the log that is still missing up to `end`.
    fn pull(&mut self, end: Lsn) -> Result<()> {
        let begun = Instant::now();
        let mut switched = false;
        loop {
            self.cancel.check()?;
            match self.log.wait(Duration::from_millis(200)) {
                Waited::Log => return Ok(()),
                Waited::Over(error) => return Err(self.log_lost(error)),
                Waited::Nothing => {}
            }
            if begun.elapsed() >= SWITCH_AFTER && !switched && !self.facts.in_recovery {
                switched = true;
                match self.sql.execute("SELECT pg_catalog.pg_switch_wal()") {
                    // Not permitted: the server flushes by itself, only later.
                    Err(error) if sqlstate(&error) == Some("42501") => tracing::debug!(%error, "the segment was not switched"),
                    other => other?,
                }
            }
            if begun.elapsed() >= LOG_PATIENCE {
                return Err(Error::new(Kind::Unavailable, format!("the server does not send its log up to {end}"))
                    .hint("allow lifeboat's role to call pg_switch_wal(), or look whether the server is overloaded; then back up again"));
            }
        }
    }
}

/// That configuration is not in a backup that the server streams, which has the data folder only.
pub(super) fn not_captured(configuration: &Configuration) -> Option<String> {
    let Some(outside) = configuration.outside() else {
        return Some("whether there is configuration outside the data folder, which is not in this backup, cannot be told: GRANT pg_read_all_settings TO its role".into());
    };
    let paths: Vec<String> = outside.iter().map(|path| path.display().to_string()).collect();
    (!paths.is_empty()).then(|| {
        format!(
            "configuration outside the data folder is not in this backup: {}; on the server's host `data_directory` takes it too, or a `files` source does",
            paths.join(", ")
        )
    })
}

/// A short name that no other backup has.
fn label() -> Result<String> {
    let mut bytes = [0u8; 8];
    getrandom::fill(&mut bytes).map_err(|error| Error::new(Kind::Failed, "draw a random number").because(error.to_string()))?;
    Ok(hex::encode(bytes))
}

impl SourceSnapshot for BaseSnapshot {
    fn estimate(&self) -> Option<(u64, u64)> {
        self.estimate
    }

    fn belongs(&self) -> Option<(&'static str, String)> {
        Some((SYSTEM_IDENTIFIER, self.system_identifier.to_string()))
    }

    fn log_position(&self) -> Option<(u32, u64)> {
        Some((self.timeline, self.start.0))
    }

    fn order(&self) -> Order {
        Order::Any
    }

    fn next_entry(&mut self) -> Result<Option<Entry>> {
        self.cancel.check()?;
        // Not before it is known that this is the right cluster.
        if let Some(slot) = self.log_slot.take() {
            stream::ensure_slot(&self.settings, &slot, &self.cancel)?;
        }
        if self.done.is_none() {
            if let Some(error) = self.log.failure() {
                return Err(self.log_lost(error));
            }
            if self.caught_up.is_none() {
                // The first entry tells who owns the files.
                if self.owner.is_some()
                    && let Some(segment) = self.whole_segment()?
                {
                    return Ok(Some(segment));
                }
                if let Some(entry) = self.next_file()? {
                    if entry.path.is_empty() || self.owner.is_none() {
                        self.owner = Some((entry.uid, entry.gid));
                    }
                    self.has_folder |= entry.path == CONFIGURATION_FOLDER;
                    return Ok(Some(entry));
                }
            }
            if let Some(segment) = self.catch_up()? {
                return Ok(Some(segment));
            }
            self.end_files()?;
        }
        if let Some((entry, content)) = self.extra.pop_front() {
            self.contents.insert(entry.path.clone(), content);
            return Ok(Some(entry));
        }
        let Some(end) = self.done.as_ref().map(|done| done.stop.max(done.taken.position.lsn)) else { return Ok(None) };
        self.next_segment(end)
    }

    fn open(&mut self, entry: &Entry) -> Result<Option<Box<dyn Read + Send>>> {
        if let Some(content) = self.contents.remove(&entry.path) {
            return Ok(Some(Box::new(Cursor::new(content))));
        }
        match &mut self.files {
            Files::Local(local) => local.open(entry),
            Files::Remote(remote) => remote.open().map(Some),
            Files::Read => Err(Error::new(Kind::Bug, "a file of a base backup was opened after its end")),
        }
    }

    fn close(&mut self, entry: &Entry, _bytes_read: u64) -> Result<Closed> {
        match &mut self.files {
            Files::Local(local) if local.is_open(entry) => local.close(entry),
            _ => Ok(Closed::SOUND),
        }
    }

    fn unread(&mut self, _entry: &Entry, error: Error) -> Result<()> {
        // A base backup without one of its files is none.
        Err(error)
    }

    fn finish(mut self: Box<Self>) -> Result<Finish> {
        let Some(Done { stop, timeline, taken, mut problems }) = self.done.take() else {
            return Err(Error::new(Kind::Bug, "a base backup was finished before its end"));
        };
        if !self.extra.is_empty() {
            return Err(Error::new(Kind::Bug, "a base backup was finished before its end"));
        }
        let (created, spoiled) = self.log.finish(&taken.position)?;
        let created = created.to_vec();
        if let Some(spoiled) = spoiled {
            return Err(self.not_brought_back(spoiled));
        }
        problems.extend(self.tablespaces_created(&created)?);
        let (rows, bytes, milliseconds) =
            taken.cost.iter().fold((0, 0, 0), |sum, one| (sum.0 + one.rows, sum.1 + one.bytes, sum.2 + one.duration_ms));
        let mut consistency = json!({
            SYSTEM_IDENTIFIER: self.system_identifier.to_string(),
            "server_version": self.facts.version,
            "timeline": timeline,
            "start_lsn": self.start,
            "stop_lsn": stop,
            "lsn": taken.position.lsn,
            "restore_point": taken.position.restore_point,
            "moment": self.log.moment(),
            "standby": self.facts.in_recovery,
            "data_checksums": self.facts.checksums,
            "tablespaces": self.tablespaces,
            "warnings": self.warnings,
            "fingerprints": {
                "tables": taken.tables.len(), "left_out": taken.left_out, "rows": rows, "bytes": bytes, "duration_ms": milliseconds,
                "locked_ms": taken.locked_ms,
            },
        });
        if timeline != self.timeline {
            consistency["start_timeline"] = self.timeline.into();
        }
        Ok(Finish { consistency, fingerprints: taken.tables, problems })
    }
}

/// What the thread that reads from the server says.
enum Sent {
    Begun(Begun),
    Part(BackupPart),
    Ended(Result<BackupEnd>),
}

struct Begun {
    start: LogPosition,
    tablespaces: Vec<Tablespace>,
}

/// A base backup that the server streams, read by a thread of its own.
struct Remote {
    inbox: Inbox,
    thread: Option<JoinHandle<()>>,
    /// Tablespaces that come with the data folder.
    inside: BTreeSet<u32>,
    archive: Option<Arc<Mutex<ArchiveReader<Inbox>>>>,
    finished: Vec<Finished>,
    end: Option<BackupEnd>,
}

/// What arrives, shared between the archive's reader and whoever looks for the next archive.
#[derive(Clone)]
struct Inbox(Arc<Mutex<Arriving>>);

struct Arriving {
    receiver: Receiver<Sent>,
    /// Looked at and not for the archive's reader.
    ahead: Option<Sent>,
    bytes: Bytes,
}

impl Arriving {
    fn next(&mut self) -> Result<Sent> {
        match self.ahead.take() {
            Some(sent) => Ok(sent),
            None => self.receiver.recv().context(Kind::Failed, || "the base backup ended without a word".into()),
        }
    }
}

impl Inbox {
    fn next(&self) -> Result<Sent> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).next()
    }
}

impl Read for Inbox {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut arriving = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while arriving.bytes.is_empty() {
            match arriving.next().map_err(io::Error::other)? {
                Sent::Part(BackupPart::Data(bytes)) => arriving.bytes = bytes,
                Sent::Part(BackupPart::Progress(_)) => {}
                Sent::Ended(Err(error)) => return Err(io::Error::other(error)),
                other => {
                    arriving.ahead = Some(other);
                    return Ok(0);
                }
            }
        }
        let count = buffer.len().min(arriving.bytes.len());
        arriving.bytes.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

impl Remote {
    /// Starts the backup and waits for the server to say where it begins.
    fn begin(connection: Connection, label: &str, read_limit_bytes_per_sec: Option<u64>) -> Result<(Self, Begun)> {
        let (sender, receiver) = bounded(WAITING_MESSAGES);
        let max_rate_kib = read_limit_bytes_per_sec.map(|rate| u32::try_from(rate >> 10).unwrap_or(u32::MAX).clamp(32, 1 << 20));
        let options = BaseBackupOptions { max_rate_kib, ..BaseBackupOptions::new(label) };
        let work = move || {
            let mut connection = connection;
            let mut run = || -> Result<BackupEnd> {
                let mut backup = base_backup(&mut connection, &options)?;
                let begun = Begun { start: backup.start(), tablespaces: backup.tablespaces().to_vec() };
                let gone = || Error::new(Kind::Interrupted, "nobody reads the base backup any more");
                sender.send(Sent::Begun(begun)).map_err(|_| gone())?;
                while let Some(part) = backup.next()? {
                    sender.send(Sent::Part(part)).map_err(|_| gone())?;
                }
                backup.finish()
            };
            let ended = run();
            // Whoever gave up does not listen.
            drop(sender.send(Sent::Ended(ended)));
        };
        let thread = std::thread::Builder::new().name("base-backup".into()).spawn(work).map_err(|e| Error::io("start a thread", e))?;
        let inbox = Inbox(Arc::new(Mutex::new(Arriving { receiver, ahead: None, bytes: Bytes::new() })));
        let mut remote = Self { inbox, thread: Some(thread), inside: BTreeSet::new(), archive: None, finished: Vec::new(), end: None };
        match remote.inbox.next()? {
            Sent::Begun(begun) => {
                for (oid, location) in
                    begun.tablespaces.iter().filter_map(|tablespace| Some((tablespace.oid?, tablespace.location.as_deref()?)))
                {
                    if kept_inside(oid, location)? {
                        remote.inside.insert(oid);
                    }
                }
                Ok((remote, begun))
            }
            Sent::Ended(Err(error)) => Err(error),
            _ => Err(Error::new(Kind::Bug, "a base backup began with its end")),
        }
    }

    fn next_entry(&mut self, cluster: Cluster, mode: u32) -> Result<Option<Entry>> {
        loop {
            if let Some(archive) = &self.archive {
                if let Some(entry) = archive.lock().unwrap_or_else(PoisonError::into_inner).next_entry()? {
                    return Ok(Some(entry));
                }
                self.close_archive()?;
            }
            match self.inbox.next()? {
                Sent::Part(BackupPart::Archive(tablespace)) => {
                    let kind = tablespace.oid.map_or(Archive::Base { mode }, Archive::Tablespace);
                    let mut reader = ArchiveReader::new(self.inbox.clone(), kind, cluster);
                    if tablespace.oid.is_none() {
                        reader = reader.with_inside(self.inside.clone());
                    }
                    self.archive = Some(Arc::new(Mutex::new(reader)));
                }
                // Padding behind an archive's end mark.
                Sent::Part(BackupPart::Data(_) | BackupPart::Progress(_) | BackupPart::Manifest) => {}
                Sent::Ended(Ok(end)) => {
                    self.end = Some(end);
                    return Ok(None);
                }
                Sent::Ended(Err(error)) => return Err(error),
                Sent::Begun(_) => return Err(Error::new(Kind::Bug, "a base backup began twice")),
            }
        }
    }

    fn close_archive(&mut self) -> Result<()> {
        let Some(archive) = self.archive.take() else { return Ok(()) };
        let archive = Arc::try_unwrap(archive).map_err(|_| Error::new(Kind::Bug, "a file of an archive is still being read at its end"))?;
        self.finished.push(archive.into_inner().unwrap_or_else(PoisonError::into_inner).finish()?);
        Ok(())
    }

    fn open(&mut self) -> Result<Box<dyn Read + Send>> {
        match &self.archive {
            Some(archive) => Ok(Box::new(Current(Arc::clone(archive)))),
            None => Err(Error::new(Kind::Bug, "a file was opened between two archives")),
        }
    }

    fn finish(mut self) -> Result<(BackupEnd, Vec<Finished>)> {
        let end = self.end.take().ok_or_else(|| Error::new(Kind::Bug, "a base backup was finished before its end"))?;
        Ok((end, std::mem::take(&mut self.finished)))
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        // Without a receiver the thread cannot send any more, and ends.
        self.archive = None;
        let (_, nobody) = bounded(0);
        self.inbox.0.lock().unwrap_or_else(PoisonError::into_inner).receiver = nobody;
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// The bytes of the archive's present file.
struct Current(Arc<Mutex<ArchiveReader<Inbox>>>);

impl Read for Current {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).read(buffer)
    }
}

/// The history of a timeline, and its file. `None`: the first one has none, nor has a log that was begun anew by hand.
fn history_of(log: &mut Connection, timeline: u32) -> Result<Option<(TimelineHistory, replication::TimelineHistory)>> {
    if timeline == 1 {
        return Ok(None);
    }
    let file = match replication::timeline_history(log, timeline) {
        Ok(file) => file,
        Err(error) if sqlstate(&error) == Some("58P01") => return Ok(None),
        Err(error) => return Err(error),
    };
    let history = TimelineHistory::parse(timeline, &String::from_utf8_lossy(&file.content))?;
    Ok(Some((history, file)))
}

/// As a `backup_label` tells it.
fn start_timeline(label: &str) -> Option<u32> {
    label.lines().find_map(|line| line.strip_prefix("START TIMELINE: ")?.trim().parse().ok())
}

/// The way of the log from `from` to `end`, as the history of the timeline that it ends on, with that one's file where it is not the one that it begins on.
fn way_of(log: &mut Connection, from: LogPosition, end: Lsn) -> Result<(TimelineHistory, Option<replication::TimelineHistory>)> {
    let now = identify_system(log)?.timeline;
    if now == from.timeline {
        return Ok((TimelineHistory::first(now), None));
    }
    let history = history_of(log, now)?.map(|(history, _)| history).filter(|history| history.contains(from.timeline, from.lsn));
    let history = history.ok_or_else(|| {
        let what = format!(
            "the server is on timeline {now}, whose history does not go through {} of timeline {}, where this backup begins",
            from.lsn, from.timeline
        );
        Error::new(Kind::Failed, what).hint("back up again")
    })?;
    // Since then it may have gone further.
    let last = history.timeline_at(Lsn(end.0.saturating_sub(1)));
    if last == from.timeline {
        return Ok((TimelineHistory::first(last), None));
    }
    let (way, file) = history_of(log, last)?.ok_or_else(|| {
        Error::new(Kind::Failed, format!("the server does not have the history of timeline {last}")).hint("back up again")
    })?;
    Ok((way, Some(file)))
}

/// How the state that a control file tells differs from what the server says of itself.
pub(super) fn state_differs(control: &Control, is_standby: bool) -> Option<String> {
    let expected = if is_standby { State::InArchiveRecovery } else { State::InProduction };
    let server = if is_standby { "a standby" } else { "a primary" };
    (control.state != expected).then(|| format!("its control file says {}, the server is {server}", control.state.told()))
}

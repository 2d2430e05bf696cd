//! A logical backup under way: in each database one transaction whose snapshot all others share, and streams that read ahead side by side.
//!
//! The leading transaction locks every table against being altered (`ACCESS SHARE`), so what its snapshot sees can be read until the end, and is
//! asked at the end whether it is still there. Nothing goes to this host's disks.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use bytes::{Buf as _, Bytes};
use crossbeam_channel::{Receiver, RecvTimeoutError, SendTimeoutError, Sender, bounded};
use serde_json::json;

use crate::entry::{Entry, EntryKind, Layout, Order};
use crate::error::{Context, Error, Kind, Result};
use crate::event::Cancel;
use crate::source::postgres::backup::MAJORS;
use crate::source::postgres::client::{Connection, Mode, quote_literal, sqlstate};
use crate::source::postgres::conninfo::Settings;
use crate::source::postgres::fingerprint::TableName;
use crate::source::postgres::instance::Tools;
use crate::source::postgres::logical::LogicalSource;
use crate::source::postgres::logical::catalog::{self, Found};
use crate::source::postgres::logical::contents::{Contents, Database, MANIFEST, Table};
use crate::source::postgres::logical::programs::{self, Dump, LOCK_TIMEOUT_MS, Section};
use crate::source::postgres::logical::rows;
use crate::source::postgres::throttle::{Throttle, Throttled};
use crate::source::{Closed, Finish, Problem, SourceContext, SourceSnapshot, TableFingerprint};

pub(super) const SYSTEM_IDENTIFIER: &str = "system_identifier";
/// Streams at a time.
const STREAMS: usize = 4;
/// How often a wait looks whether it is still wanted.
const LOOK: Duration = Duration::from_millis(100);
/// Pieces of one stream that wait to be read, and streams that were begun and wait.
const WAITING_PIECES: usize = 16;
const WAITING_STREAMS: usize = 4;
/// Tables locked by one statement.
const BATCH_TABLES: usize = 64;
/// A table that is truncated while the snapshot is taken makes it be taken again.
const TRIES: u32 = 5;

/// What a stream is of: a database by its number, and what in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Definitions(Section),
    Table(usize),
    LargeObject(usize),
}

struct Job {
    path: String,
    database: usize,
    what: What,
}

/// A database with the transaction that keeps its snapshot.
struct Leader {
    connection: Connection,
    snapshot: String,
    record: Database,
}

/// What all streams share.
struct Shared {
    settings: Settings,
    tools: Tools,
    key: [u8; 32],
    scratch: PathBuf,
    /// Of the run, and of this snapshot alone: it is dropped with it.
    cancel: Cancel,
    stop: Cancel,
    databases: Vec<Exported>,
    jobs: Vec<Job>,
    tables: Vec<Vec<Table>>,
    objects: Vec<Vec<u32>>,
    next: AtomicUsize,
    done: Mutex<HashMap<usize, rows::Read>>,
    /// What `pg_dump` said although it ended well, each once.
    told: Mutex<Vec<String>>,
}

/// What a stream must know of its database.
struct Exported {
    name: String,
    snapshot: String,
    /// As [`Database::rows_encoding`].
    rows_encoding: Option<String>,
}

enum Piece {
    Bytes(Bytes),
    Failed(Error),
    End,
}

type Begun = (usize, Receiver<Piece>);

/// A logical backup.
pub(super) struct LogicalSnapshot {
    shared: Arc<Shared>,
    leaders: Vec<Leader>,
    contents: Contents,
    system_identifier: Option<String>,
    warnings: Vec<String>,
    problems: Vec<Problem>,
    begun: Receiver<Begun>,
    early: HashMap<usize, Receiver<Piece>>,
    workers: Vec<JoinHandle<()>>,
    queue: VecDeque<Entry>,
    numbers: HashMap<Vec<u8>, usize>,
    manifest: Option<Bytes>,
    has_manifest: bool,
    failure: Arc<Mutex<Option<Error>>>,
    throttle: Option<Throttle>,
    bytes: u64,
}

/// Of the cluster, where the role may ask.
pub(super) fn system_identifier(sql: &mut Connection) -> Option<String> {
    sql.value("SELECT system_identifier::text FROM pg_catalog.pg_control_system()").ok().flatten()
}

impl LogicalSnapshot {
    pub(super) fn begin(source: &LogicalSource, context: &SourceContext) -> Result<Self> {
        let (settings, cancel) = (source.settings()?, &context.cancel);
        let mut sql = Connection::connect(settings, Mode::Sql { database: None }, cancel)?;
        let version = supported(&sql)?;
        let tools = programs::find(version / 10_000, version / 10_000, source.bin_directory.as_deref())?;
        let catalog::Chosen { names, mut warnings, mut problems } = catalog::choose_databases(&mut sql, &source.databases)?;
        let (roles, with_passwords) = catalog::roles(&mut sql)?;
        if !with_passwords {
            warnings.push("the passwords of roles are not in the backup: its role may not read pg_authid".into());
        }
        let mut contents = Contents {
            format: Contents::format_of(&[]),
            server_version: version,
            dump_major: tools.major(),
            superuser: sql.value("SELECT rolname FROM pg_catalog.pg_roles WHERE oid = 10")?.unwrap_or_default(),
            roles,
            memberships: catalog::memberships(&mut sql)?,
            settings: catalog::settings(&mut sql, 0)?,
            databases: Vec::new(),
        };
        let system_identifier = system_identifier(&mut sql);
        drop(sql);
        let (mut leaders, mut shared) = (Vec::new(), Shared::new(settings, tools, context));
        for name in &names {
            let (mut leader, found) = lead(settings, name, cancel, &mut warnings)?;
            problems.extend(catalog::hidden(&mut leader.connection, name)?);
            shared.add(&leader, found);
            leaders.push(leader);
        }
        contents.databases = Vec::with_capacity(leaders.len());
        let bytes = shared.estimate;
        let shared = Arc::new(shared.shared);
        let (sender, begun) = bounded(WAITING_STREAMS);
        let mut workers = Vec::new();
        for number in 0..STREAMS.min(shared.jobs.len()) {
            let (shared, sender) = (Arc::clone(&shared), sender.clone());
            let spawned = std::thread::Builder::new().name(format!("logical-{number}")).spawn(move || shared.work(number, &sender));
            workers.push(spawned.map_err(|error| Error::io("start a thread", error))?);
        }
        let mut snapshot = Self {
            shared,
            leaders,
            contents,
            system_identifier,
            warnings,
            problems,
            begun,
            early: HashMap::new(),
            workers,
            queue: VecDeque::new(),
            numbers: HashMap::new(),
            manifest: None,
            has_manifest: false,
            failure: Arc::default(),
            throttle: source.read_limit_bytes_per_sec.map(|rate| Throttle::new(rate, cancel.clone())),
            bytes,
        };
        snapshot.list();
        Ok(snapshot)
    }

    fn list(&mut self) {
        for leader in &self.leaders {
            let folder = &leader.record.folder;
            for path in [folder.clone(), format!("{folder}/data"), format!("{folder}/large-objects")] {
                self.queue.push_back(entry(path.into_bytes(), EntryKind::Directory, 0o700));
            }
        }
        for (number, job) in self.shared.jobs.iter().enumerate() {
            let path = job.path.clone().into_bytes();
            self.numbers.insert(path.clone(), number);
            self.queue.push_back(entry(path, EntryKind::File { size: None, layout: Layout::Content }, 0o600));
        }
    }

    /// After everything was read: what only then is known.
    fn conclude(&mut self) -> Result<Bytes> {
        let done = std::mem::take(&mut *self.shared.done.lock().unwrap_or_else(PoisonError::into_inner));
        let of = |number: usize| done.get(&number).ok_or_else(|| Error::new(Kind::Bug, "a stream was not read to its end"));
        let mut records: Vec<Database> = Vec::with_capacity(self.leaders.len());
        for leader in &mut self.leaders {
            let (sequences, told) = catalog::sequences(&mut leader.connection)?;
            leader.record.sequences = sequences;
            self.warnings.extend(told);
            records.push(leader.record.clone());
        }
        for (number, job) in self.shared.jobs.iter().enumerate() {
            let read = of(number)?;
            let record = &mut records[job.database];
            match job.what {
                What::Definitions(_) => {}
                What::Table(index) => {
                    let table = &self.shared.tables[job.database][index];
                    let rows::Read { rows, bytes, digest } = read.clone();
                    record.tables.push(Table { rows, bytes, digest, ..table.clone() });
                }
                What::LargeObject(index) => {
                    let object = &mut record.large_objects[index];
                    (object.bytes, object.digest) = (read.bytes, read.digest.clone());
                }
            }
        }
        self.contents.format = Contents::format_of(&records);
        self.contents.databases = records;
        let text = serde_json::to_vec_pretty(&self.contents).context(Kind::Bug, || "write the manifest of the databases".into())?;
        Ok(text.into())
    }

    fn stream(&mut self, number: usize) -> Result<Receiver<Piece>> {
        loop {
            if let Some(found) = self.early.remove(&number) {
                return Ok(found);
            }
            self.shared.cancel.check()?;
            match self.begun.recv_timeout(LOOK) {
                Ok((begun, receiver)) => drop(self.early.insert(begun, receiver)),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(Error::new(Kind::Bug, "the streams ended too early")),
            }
        }
    }
}

/// The version of a server that can be backed up.
pub(super) fn supported(sql: &Connection) -> Result<u32> {
    let version = sql.server_version();
    if MAJORS.contains(&(version / 10_000)) {
        return Ok(version);
    }
    Err(Error::new(
        Kind::Usage,
        format!("this server is PostgreSQL {}; versions {} to {} can be backed up", version / 10_000, MAJORS.start(), MAJORS.end()),
    )
    .hint("a command source with pg_dump covers other versions"))
}

fn entry(path: Vec<u8>, kind: EntryKind, mode: u32) -> Entry {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Entry {
        path,
        kind,
        mode,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        mtime_ns: i64::try_from(now.as_nanos()).unwrap_or(i64::MAX),
        stamp: Vec::new(),
        xattrs: Vec::new(),
    }
}

/// Begins the leading transaction of a database, with everything locked that will be read.
fn lead(settings: &Settings, name: &str, cancel: &Cancel, warnings: &mut Vec<String>) -> Result<(Leader, Vec<Found>)> {
    let what = || format!("read database {name}");
    let mut connection = rows::open(settings, name, cancel).map_err(|error| error.within(what()))?;
    connection.execute(&format!("SET lock_timeout = {LOCK_TIMEOUT_MS}"))?;
    let mut changed = Vec::new();
    for _ in 0..TRIES {
        cancel.check()?;
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")?;
        let snapshot = connection.value("SELECT pg_export_snapshot()")?.unwrap_or_default();
        catalog::must_be_readable(&mut connection, name)?;
        let mut record = catalog::database(&mut connection, name)?;
        let (tables, told) = catalog::tables(&mut connection, &record.folder)?;
        match lock(&mut connection, &tables, cancel) {
            Ok(()) => changed = catalog::replaced(&mut connection, &tables)?,
            // Dropped since: the next snapshot does not know it.
            Err(error) if matches!(sqlstate(&error), Some("42P01" | "3F000")) => changed = vec![what()],
            Err(error) => {
                let hint = match sqlstate(&error) {
                    Some("53200") => "raise max_locks_per_transaction and restart the server: every table is locked against being altered",
                    _ => "run it again when nobody alters tables: TRUNCATE, ALTER and VACUUM FULL keep them from being read",
                };
                return Err(error.within(format!("{}: lock its tables", what())).hint(hint));
            }
        }
        if changed.is_empty() {
            record.large_objects = catalog::large_objects(&mut connection, &record.folder)?;
            warnings.extend(told);
            if record.tablespace != "pg_default" {
                warnings.push(format!("database {name} is in tablespace {}: it comes back in the default one", record.tablespace));
            }
            return Ok((Leader { connection, snapshot, record }, tables));
        }
        connection.execute("ROLLBACK")?;
    }
    Err(Error::new(Kind::Busy, format!("{}: {} changed in every one of {TRIES} tries to take a snapshot", what(), catalog::told(&changed)))
        .hint("run it again when nobody truncates or rebuilds these tables"))
}

fn lock(connection: &mut Connection, tables: &[Found], cancel: &Cancel) -> Result<()> {
    for batch in tables.chunks(BATCH_TABLES) {
        cancel.check()?;
        let names: Vec<String> = batch.iter().map(|found| format!("ONLY {}", found.sql())).collect();
        connection.execute(&format!("LOCK TABLE {} IN ACCESS SHARE MODE", names.join(", ")))?;
    }
    Ok(())
}

/// [`Shared`] while it is put together.
struct Making {
    shared: Shared,
    estimate: u64,
}

impl Shared {
    #[expect(clippy::new_ret_no_self, reason = "it is filled before it is shared")]
    fn new(settings: &Settings, tools: Tools, context: &SourceContext) -> Making {
        Making {
            shared: Self {
                settings: settings.clone(),
                tools,
                key: context.fingerprint_key,
                scratch: context.scratch.clone(),
                cancel: context.cancel.clone(),
                stop: Cancel::default(),
                databases: Vec::new(),
                jobs: Vec::new(),
                tables: Vec::new(),
                objects: Vec::new(),
                next: AtomicUsize::new(0),
                done: Mutex::default(),
                told: Mutex::default(),
            },
            estimate: 0,
        }
    }

    fn check(&self) -> Result<()> {
        self.cancel.check()?;
        self.stop.check()
    }

    /// Waits for room, as long as somebody wants it: a receiver that is not looked at any more may live on in the queue of streams.
    fn send<T>(&self, sender: &Sender<T>, mut what: T) -> Result<()> {
        loop {
            self.check()?;
            match sender.send_timeout(what, LOOK) {
                Ok(()) => return Ok(()),
                Err(SendTimeoutError::Timeout(back)) => what = back,
                Err(SendTimeoutError::Disconnected(_)) => return Err(Error::new(Kind::Interrupted, "interrupted")),
            }
        }
    }

    /// Takes one stream after the other, in their order: so the one that is waited for is always under way.
    fn work(&self, number: usize, begun: &Sender<Begun>) {
        let mut at: Option<(usize, Connection)> = None;
        while !self.stop.is_cancelled() {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(job) = self.jobs.get(index) else { return };
            let (sender, receiver) = bounded(WAITING_PIECES);
            if self.send(begun, (index, receiver)).is_err() {
                return;
            }
            let end = match self.read(job, number, &mut at, &sender) {
                Ok(read) => {
                    self.done.lock().unwrap_or_else(PoisonError::into_inner).insert(index, read);
                    Piece::End
                }
                Err(error) => {
                    at = None;
                    Piece::Failed(error)
                }
            };
            // Nobody listens any more when the snapshot was given up.
            let _ = self.send(&sender, end);
        }
    }

    fn read(&self, job: &Job, number: usize, at: &mut Option<(usize, Connection)>, sender: &Sender<Piece>) -> Result<rows::Read> {
        let mut take = |bytes: Bytes| -> Result<()> {
            self.check()?;
            self.send(sender, Piece::Bytes(bytes))
        };
        let Exported { name, snapshot, rows_encoding } = &self.databases[job.database];
        if let What::Definitions(section) = job.what {
            let said = self.scratch.join(format!("said-{number}"));
            let dump = Dump { tools: &self.tools, settings: &self.settings, database: name, snapshot, section, said: &said };
            let mut bytes = 0;
            let told = dump.run(&self.stop, &mut |piece: Bytes| {
                bytes += piece.len() as u64;
                take(piece)
            })?;
            let mut all = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            for line in told.into_iter().map(|line| format!("pg_dump of database {name}: {line}")) {
                // Both halves of the definitions say the same.
                if !all.contains(&line) {
                    all.push(line);
                }
            }
            return Ok(rows::Read { bytes, ..rows::Read::default() });
        }
        if at.as_ref().is_none_or(|(database, _)| *database != job.database) {
            *at = Some((job.database, self.connect(name, snapshot)?));
        }
        let Some((_, connection)) = at else { return Err(Error::new(Kind::Bug, "no connection")) };
        let within = |error: Error| error.within(format!("read {} of database {name}", job.path));
        match job.what {
            What::Table(index) => {
                let (table, encoding) = (&self.tables[job.database][index], rows_encoding.as_deref());
                rows::table(connection, table, encoding, &self.key, &self.cancel, &mut take).map_err(within)
            }
            What::LargeObject(index) => {
                rows::large_object(connection, self.objects[job.database][index], &self.key, &self.cancel, &mut take).map_err(within)
            }
            What::Definitions(_) => Err(Error::new(Kind::Bug, "definitions are read by pg_dump")),
        }
    }

    fn connect(&self, name: &str, snapshot: &str) -> Result<Connection> {
        let mut connection = rows::open(&self.settings, name, &self.cancel)?;
        connection.execute(&format!("SET lock_timeout = {LOCK_TIMEOUT_MS}"))?;
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")?;
        connection.execute(&format!("SET TRANSACTION SNAPSHOT {}", quote_literal(snapshot)))?;
        Ok(connection)
    }
}

impl Making {
    fn add(&mut self, leader: &Leader, found: Vec<Found>) {
        let (database, folder) = (self.shared.databases.len(), &leader.record.folder);
        let mut job = |path: String, what: What| self.shared.jobs.push(Job { path, database, what });
        for section in [Section::Before, Section::After] {
            job(format!("{folder}/{}.dump", section.word()), What::Definitions(section));
        }
        for (index, found) in found.iter().enumerate() {
            job(found.table.path.clone(), What::Table(index));
            self.estimate += found.bytes;
        }
        for (index, object) in leader.record.large_objects.iter().enumerate() {
            job(object.path.clone(), What::LargeObject(index));
        }
        self.shared.objects.push(leader.record.large_objects.iter().map(|object| object.oid).collect());
        self.shared.tables.push(found.into_iter().map(|found| found.table).collect());
        self.shared.databases.push(Exported {
            name: leader.record.name.clone(),
            snapshot: leader.snapshot.clone(),
            rows_encoding: leader.record.rows_encoding.clone(),
        });
    }
}

/// One stream as bytes. It ends only where the server said that it does.
struct Pieces {
    receiver: Receiver<Piece>,
    now: Bytes,
    ended: bool,
    failure: Arc<Mutex<Option<Error>>>,
    cancel: Cancel,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.now.is_empty() && !self.ended {
            match self.receiver.recv_timeout(LOOK) {
                Ok(Piece::Bytes(bytes)) => self.now = bytes,
                Ok(Piece::End) => self.ended = true,
                Ok(Piece::Failed(error)) => {
                    let told = io::Error::other(error.to_string());
                    self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                    return Err(told);
                }
                Err(RecvTimeoutError::Timeout) => self.cancel.check().map_err(io::Error::other)?,
                Err(RecvTimeoutError::Disconnected) => return Err(io::Error::other("the stream ended before its end")),
            }
        }
        let count = buffer.len().min(self.now.len());
        self.now.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

impl SourceSnapshot for LogicalSnapshot {
    fn estimate(&self) -> Option<(u64, u64)> {
        Some((self.bytes, self.queue.len() as u64 + 1))
    }

    fn belongs(&self) -> Option<(&'static str, String)> {
        self.system_identifier.clone().map(|identifier| (SYSTEM_IDENTIFIER, identifier))
    }

    fn order(&self) -> Order {
        Order::Any
    }

    fn next_entry(&mut self) -> Result<Option<Entry>> {
        if let Some(entry) = self.queue.pop_front() {
            return Ok(Some(entry));
        }
        if std::mem::replace(&mut self.has_manifest, true) {
            return Ok(None);
        }
        let text = self.conclude()?;
        let kind = EntryKind::File { size: Some(text.len() as u64), layout: Layout::Content };
        self.manifest = Some(text);
        Ok(Some(entry(MANIFEST.into(), kind, 0o600)))
    }

    fn open(&mut self, entry: &Entry) -> Result<Option<Box<dyn Read + Send>>> {
        if entry.path == MANIFEST.as_bytes() {
            let text = self.manifest.take().ok_or_else(|| Error::new(Kind::Bug, "the manifest was opened twice"))?;
            return Ok(Some(Box::new(text.reader())));
        }
        let number = self.numbers.get(&entry.path).copied();
        let number = number.ok_or_else(|| Error::new(Kind::Bug, format!("{} is no stream", entry.display_path())))?;
        let receiver = self.stream(number)?;
        let pieces =
            Pieces { receiver, now: Bytes::new(), ended: false, failure: Arc::clone(&self.failure), cancel: self.shared.cancel.clone() };
        Ok(Some(match &self.throttle {
            Some(throttle) => Box::new(Throttled::new(pieces, throttle.clone())),
            None => Box::new(pieces),
        }))
    }

    fn close(&mut self, entry: &Entry, bytes_read: u64) -> Result<Closed> {
        if let Some(number) = self.numbers.get(&entry.path) {
            let done = self.shared.done.lock().unwrap_or_else(PoisonError::into_inner);
            if done.get(number).is_none_or(|read| read.bytes != bytes_read) {
                return Err(Error::new(Kind::Bug, format!("{} was not read as it was sent", entry.display_path())));
            }
        }
        Ok(Closed::SOUND)
    }

    fn unread(&mut self, _entry: &Entry, error: Error) -> Result<()> {
        // Without one of its tables a database is worth nothing.
        Err(self.failure.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or(error))
    }

    fn finish(mut self: Box<Self>) -> Result<Finish> {
        for worker in self.workers.drain(..) {
            worker.join().map_err(|_| Error::new(Kind::Bug, "a stream's thread panicked"))?;
        }
        for leader in &mut self.leaders {
            // Lost meanwhile, it did not keep tables from being altered.
            leader
                .connection
                .execute("SELECT 1; COMMIT")
                .map_err(|error| error.within(format!("end the snapshot of database {}", leader.record.name)))?;
        }
        let (mut fingerprints, mut databases) = (Vec::new(), serde_json::Map::new());
        for database in &self.contents.databases {
            for table in &database.tables {
                fingerprints.push(TableFingerprint {
                    table: table_name(&database.name, table),
                    rows: table.rows,
                    digest: table.digest.clone(),
                });
            }
            let told = json!({
                "snapshot": database.snapshot, "lsn": database.lsn, "time": database.time, "tables": database.tables.len(),
                "rows": database.tables.iter().map(|table| table.rows).sum::<u64>(), "large_objects": database.large_objects.len(),
            });
            databases.insert(database.name.clone(), told);
        }
        self.warnings.append(&mut self.shared.told.lock().unwrap_or_else(PoisonError::into_inner));
        let consistency = json!({
            "method": "logical", "server_version": self.contents.server_version, "system_identifier": self.system_identifier,
            "databases": databases, "warnings": self.warnings,
        });
        Ok(Finish { consistency, fingerprints, problems: std::mem::take(&mut self.problems) })
    }
}

pub(super) fn table_name(database: &str, table: &Table) -> String {
    TableName { database: database.to_owned(), schema: table.schema.clone(), table: table.name.clone(), encoding: None, sample: None }
        .to_string()
}

impl Drop for LogicalSnapshot {
    fn drop(&mut self) {
        self.shared.stop.cancel();
        self.early.clear();
        for worker in self.workers.drain(..) {
            // What it had to say does not matter any more.
            let _ = worker.join();
        }
    }
}

//! A logical backup under way: in each database one transaction whose snapshot all others share, and streams that read ahead side by side.
//!
//! The leading transaction locks every table against being altered (`ACCESS SHARE`), so what its snapshot sees can be read until the end, and is
//! asked at the end whether it is still there. Nothing goes to this host's disks.
//!
//! Names are the weak place: locks and streams go by them, and not all that a snapshot sees can be locked. So what was locked is compared with what the snapshot
//! calls so; each stream asks before and after it whose name it read; and what `pg_dump`, or the text of a row, takes from the catalogue as it is now must not have
//! changed since the snapshot.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
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
use crate::source::postgres::logical::catalog::{self, Found, Watch};
use crate::source::postgres::logical::contents::{Contents, Database, MANIFEST, Membership, Role, Setting, Table};
use crate::source::postgres::logical::programs::{self, Dump, LOCK_TIMEOUT_MS, MoneyFinder, Section};
use crate::source::postgres::logical::rows;
use crate::source::postgres::throttle::{Throttle, Throttled};
use crate::source::{Closed, Finish, Problem, SourceContext, SourceSnapshot, TableFingerprint};

pub(super) const SYSTEM_IDENTIFIER: &str = "system_identifier";
/// Streams at a time.
const STREAMS: usize = 4;
/// Sessions in one database at a time: beside the streams the one that leads, and one that looks what has changed. In a server, one leads for each database.
pub(super) const SESSIONS: usize = STREAMS + 2;
/// A stream that waits for a lock for so long leaves its table to the leading transaction, which has it.
const STREAM_LOCK_TIMEOUT_MS: u32 = 2_000;
/// How often a wait looks whether it is still wanted.
const LOOK: Duration = Duration::from_millis(100);
/// Pieces of one stream that wait to be read, and streams that were begun and wait.
const WAITING_PIECES: usize = 16;
const WAITING_STREAMS: usize = 4;
/// Tables locked by one statement.
const BATCH_TABLES: usize = 64;
const SHARED_SNAPSHOT: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
/// What is altered while the snapshot is taken makes it be taken again.
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
    tables: Vec<Found>,
}

/// What of the server, beside its databases, a snapshot sees.
#[derive(Default)]
struct Globals {
    roles: Vec<Role>,
    memberships: Vec<Membership>,
    settings: Vec<Setting>,
    with_passwords: bool,
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
    /// Of each database; a stream may only wait for it when all before it have ended.
    leaders: Vec<Mutex<Connection>>,
    jobs: Vec<Job>,
    tables: Vec<Vec<Found>>,
    objects: Vec<Vec<u32>>,
    next: AtomicUsize,
    done: Mutex<HashMap<usize, rows::Read>>,
    /// What `pg_dump` said although it ended well, each once.
    told: Mutex<Vec<String>>,
    /// Databases whose definitions may hold amounts of money.
    money: Mutex<BTreeSet<usize>>,
}

/// What a stream must know of its database.
struct Exported {
    name: String,
    snapshot: String,
    /// As [`Database::rows_encoding`].
    rows_encoding: Option<String>,
    /// Its own.
    encoding: String,
    takes_options: bool,
    /// Of the sessions of `pg_dump`.
    lc_monetary: String,
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
    records: Vec<Database>,
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
        let everybody = catalog::settings_of_everybody(&mut sql)?;
        if !everybody.is_empty() {
            warnings.push(format!("settings of all roles (ALTER ROLE ALL SET) are not in the backup: {}", catalog::told(&everybody)));
        }
        let mut contents = Contents {
            format: Contents::format_of(&[]),
            server_version: version,
            dump_major: tools.major(),
            superuser: sql.value("SELECT rolname FROM pg_catalog.pg_roles WHERE oid = 10")?.unwrap_or_default(),
            roles: Vec::new(),
            memberships: Vec::new(),
            settings: Vec::new(),
            databases: Vec::new(),
        };
        let system_identifier = system_identifier(&mut sql);
        drop(sql);
        let (mut globals, mut making) = (Globals::default(), Making::new(settings, tools, context));
        for name in &names {
            let mut leader = lead(settings, name, cancel, &mut warnings)?;
            problems.extend(catalog::hidden(&mut leader.connection, name)?);
            globals = globals.then(Globals::read(&mut leader.connection)?);
            making.add(leader)?;
        }
        if !globals.with_passwords {
            warnings.push("the passwords of roles are not in the backup: its role may not read pg_authid".into());
        }
        (contents.roles, contents.memberships, contents.settings) = (globals.roles, globals.memberships, globals.settings);
        let bytes = making.estimate;
        let (shared, records) = making.done();
        let shared = Arc::new(shared);
        let (sender, begun) = bounded(WAITING_STREAMS);
        let mut workers = Vec::new();
        for number in 0..STREAMS.min(shared.jobs.len()) {
            let (shared, sender) = (Arc::clone(&shared), sender.clone());
            let spawned = std::thread::Builder::new().name(format!("logical-{number}")).spawn(move || shared.work(number, &sender));
            workers.push(spawned.map_err(|error| Error::io("start a thread", error))?);
        }
        let mut snapshot = Self {
            shared,
            records,
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
        for record in &self.records {
            let folder = &record.folder;
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
        for database in 0..self.records.len() {
            self.shared.is_unaltered(database, Watch::Rows)?;
        }
        let mut records = self.records.clone();
        for database in &*self.shared.money.lock().unwrap_or_else(PoisonError::into_inner) {
            records[*database].lc_monetary = Some(self.shared.databases[*database].lc_monetary.clone());
        }
        for (number, job) in self.shared.jobs.iter().enumerate() {
            let read = of(number)?;
            let record = &mut records[job.database];
            match job.what {
                What::Definitions(_) => {}
                What::Table(index) => {
                    let table = &self.shared.tables[job.database][index].table;
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

impl Globals {
    fn read(sql: &mut Connection) -> Result<Self> {
        let (roles, with_passwords) = catalog::roles(sql)?;
        Ok(Self { roles, memberships: catalog::memberships(sql)?, settings: catalog::settings(sql, 0)?, with_passwords })
    }

    /// What a later snapshot sees; and the roles that only the earlier one did: its database may have something of theirs.
    fn then(self, mut later: Self) -> Self {
        let known: HashSet<String> = later.roles.iter().map(|role| role.name.clone()).collect();
        later.roles.extend(self.roles.into_iter().filter(|role| !known.contains(&role.name)));
        later
    }
}

/// Begins the leading transaction of a database, with everything locked that will be read.
fn lead(settings: &Settings, name: &str, cancel: &Cancel, warnings: &mut Vec<String>) -> Result<Leader> {
    let what = || format!("read database {name}");
    let mut connection = rows::open(settings, name, cancel).map_err(|error| error.within(what()))?;
    connection.execute(&format!("SET lock_timeout = {LOCK_TIMEOUT_MS}"))?;
    let mut changed = Vec::new();
    for _ in 0..TRIES {
        cancel.check()?;
        connection.execute(SHARED_SNAPSHOT)?;
        let snapshot = connection.value("SELECT pg_export_snapshot()")?.unwrap_or_default();
        match hold(&mut connection, settings, name, cancel) {
            Ok(Held { mut record, tables, told, changed: none }) if none.is_empty() => {
                record.large_objects = catalog::large_objects(&mut connection, &record.folder)?;
                warnings.extend(told);
                if record.tablespace != "pg_default" {
                    warnings.push(format!("database {name} is in tablespace {}: it comes back in the default one", record.tablespace));
                }
                return Ok(Leader { connection, snapshot, record, tables });
            }
            Ok(held) => changed = held.changed,
            // Dropped since: the next snapshot does not know it.
            Err(error) if matches!(sqlstate(&error), Some("42P01" | "3F000")) => changed = vec![what()],
            Err(error) => {
                let hint = match sqlstate(&error) {
                    Some("53200") => "raise max_locks_per_transaction and restart the server: every table is locked against being altered",
                    Some("55P03" | "40P01") => {
                        "run it again when nobody alters tables: TRUNCATE, ALTER and VACUUM FULL keep them from being read"
                    }
                    _ => return Err(error),
                };
                return Err(error.within(format!("{}: lock its tables", what())).hint(hint));
            }
        }
        connection.execute("ROLLBACK")?;
    }
    Err(Error::new(Kind::Busy, format!("{}: {} changed in every one of {TRIES} tries to take a snapshot", what(), catalog::told(&changed)))
        .hint("run it again when nobody truncates, rebuilds, renames or alters these"))
}

/// What a leading transaction found, and what of it is not as its snapshot sees it.
struct Held {
    record: Database,
    tables: Vec<Found>,
    told: Vec<String>,
    changed: Vec<String>,
}

/// Finds what there is, and locks it.
fn hold(connection: &mut Connection, settings: &Settings, name: &str, cancel: &Cancel) -> Result<Held> {
    catalog::must_be_readable(connection, name)?;
    let mut record = catalog::database(connection, name)?;
    let (tables, mut told) = catalog::tables(connection, &record.folder)?;
    lock(connection, &tables, cancel)?;
    // Their values are known then: whoever alters one need not wait for the end, as with tables.
    connection.execute("SAVEPOINT sequences")?;
    let (sequences, unreadable) = catalog::sequences(connection)?;
    connection.execute("ROLLBACK TO SAVEPOINT sequences; RELEASE SAVEPOINT sequences")?;
    record.sequences = sequences;
    told.extend(unreadable);
    let mut changed = catalog::replaced(connection, &tables)?;
    if changed.is_empty() {
        changed = catalog::altered(connection, Watch::Definitions, || rows::open(settings, name, cancel))?;
    }
    Ok(Held { record, tables, told, changed })
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
    records: Vec<Database>,
    /// What comes behind the definitions of all databases: these take little time, in which what they refer to must not be altered.
    later: Vec<Job>,
    estimate: u64,
}

impl Shared {
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
            if index >= self.jobs.len() {
                return;
            }
            let (sender, receiver) = bounded(WAITING_PIECES);
            if self.send(begun, (index, receiver)).is_err() {
                return;
            }
            let end = match self.read(index, number, &mut at, &sender) {
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

    fn read(&self, index: usize, number: usize, at: &mut Option<(usize, Connection)>, sender: &Sender<Piece>) -> Result<rows::Read> {
        let job = &self.jobs[index];
        let mut take = |bytes: Bytes| -> Result<()> {
            self.check()?;
            self.send(sender, Piece::Bytes(bytes))
        };
        if let What::Definitions(section) = job.what {
            return self.definitions(job.database, section, number, &mut take);
        }
        if at.as_ref().is_none_or(|(database, _)| *database != job.database) {
            *at = Some((job.database, self.connect(job.database)?));
        }
        let Some((_, connection)) = at else { return Err(Error::new(Kind::Bug, "no connection")) };
        let within = |error: Error| error.within(format!("read {} of database {}", job.path, self.databases[job.database].name));
        // Each in a transaction of its own: it sees its table's name as it is now, and keeps no lock for those behind it.
        let begin = format!("{SHARED_SNAPSHOT}; SET TRANSACTION SNAPSHOT {}", quote_literal(&self.databases[job.database].snapshot));
        match job.what {
            What::Table(table) => {
                let found = &self.tables[job.database][table];
                let asks = [format!("{begin}; {}", catalog::who_is(found)), format!("{}; COMMIT", catalog::who_is(found))];
                match self.table(connection, job.database, found, asks, &mut take) {
                    // Somebody waits to alter it, behind the leading transaction: a lock that this one has already waits for nobody.
                    Err(error) if sqlstate(&error) == Some("55P03") => {
                        *at = None;
                        self.wait_for_those_before(index)?;
                        let mut leader = self.leaders[job.database].lock().unwrap_or_else(PoisonError::into_inner);
                        self.table(&mut leader, job.database, found, [catalog::who_is(found), catalog::who_is(found)], &mut take)
                    }
                    read => read,
                }
                .map_err(within)
            }
            What::LargeObject(object) => {
                connection.execute(&begin).map_err(within)?;
                let read = rows::large_object(connection, self.objects[job.database][object], &self.key, &self.cancel, &mut take);
                let read = read.map_err(within)?;
                connection.execute("COMMIT").map_err(within)?;
                Ok(read)
            }
            What::Definitions(_) => Err(Error::new(Kind::Bug, "definitions are read by pg_dump")),
        }
    }

    /// `asks` whose name the table's is, before and after it is read.
    fn table(
        &self,
        connection: &mut Connection,
        database: usize,
        found: &Found,
        asks: [String; 2],
        take: &mut dyn FnMut(Bytes) -> Result<()>,
    ) -> Result<rows::Read> {
        let [before, after] = asks;
        catalog::is_named(found, &connection.query(&before)?)?;
        let encoding = self.databases[database].rows_encoding.as_deref();
        let read = rows::table(connection, &found.table, encoding, &self.key, &self.cancel, take)?;
        catalog::is_named(found, &connection.query(&after)?)?;
        Ok(read)
    }

    fn definitions(
        &self,
        database: usize,
        section: Section,
        number: usize,
        take: &mut dyn FnMut(Bytes) -> Result<()>,
    ) -> Result<rows::Read> {
        let said = self.scratch.join(format!("said-{number}"));
        let Exported { name, snapshot, encoding, takes_options, lc_monetary, .. } = &self.databases[database];
        let (tools, settings, takes_options) = (&self.tools, &self.settings, *takes_options);
        let dump = Dump { tools, settings, database: name, snapshot, section, encoding, takes_options, lc_monetary, said: &said };
        let (mut bytes, mut money) = (0, MoneyFinder::default());
        let told = dump.run(&self.stop, &mut |piece: Bytes| {
            bytes += piece.len() as u64;
            money.add(&piece);
            take(piece)
        })?;
        self.is_unaltered(database, Watch::Definitions)?;
        if money.found {
            self.money.lock().unwrap_or_else(PoisonError::into_inner).insert(database);
        }
        let mut all = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        for line in told.into_iter().map(|line| format!("pg_dump of database {name}: {line}")) {
            // Both halves of the definitions say the same.
            if !all.contains(&line) {
                all.push(line);
            }
        }
        Ok(rows::Read { bytes, ..rows::Read::default() })
    }

    /// Fails when something was altered since the snapshot that what was read then does not fit to.
    fn is_unaltered(&self, database: usize, watch: Watch) -> Result<()> {
        let name = &self.databases[database].name;
        let mut leader = self.leaders[database].lock().unwrap_or_else(PoisonError::into_inner);
        let changed = catalog::altered(&mut leader, watch, || rows::open(&self.settings, name, &self.cancel))?;
        if changed.is_empty() {
            return Ok(());
        }
        let read = if watch == Watch::Rows { "rows" } else { "definitions" };
        Err(Error::new(Kind::Busy, format!("read database {name}: {} changed while its {read} were read", catalog::told(&changed)))
            .hint("run it again when nobody alters these: a backup of both moments would be none"))
    }

    /// So that the one that is waited for never waits for one behind it.
    fn wait_for_those_before(&self, index: usize) -> Result<()> {
        loop {
            self.check()?;
            let done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
            if (0..index).all(|before| done.contains_key(&before)) {
                return Ok(());
            }
            drop(done);
            std::thread::park_timeout(LOOK);
        }
    }

    fn connect(&self, database: usize) -> Result<Connection> {
        let mut connection = rows::open(&self.settings, &self.databases[database].name, &self.cancel)?;
        connection.execute(&format!("SET lock_timeout = {STREAM_LOCK_TIMEOUT_MS}"))?;
        Ok(connection)
    }
}

impl Making {
    fn new(settings: &Settings, tools: Tools, context: &SourceContext) -> Self {
        let shared = Shared {
            settings: settings.clone(),
            tools,
            key: context.fingerprint_key,
            scratch: context.scratch.clone(),
            cancel: context.cancel.clone(),
            stop: Cancel::default(),
            databases: Vec::new(),
            leaders: Vec::new(),
            jobs: Vec::new(),
            tables: Vec::new(),
            objects: Vec::new(),
            next: AtomicUsize::new(0),
            done: Mutex::default(),
            told: Mutex::default(),
            money: Mutex::default(),
        };
        Self { shared, records: Vec::new(), later: Vec::new(), estimate: 0 }
    }

    fn add(&mut self, leader: Leader) -> Result<()> {
        let Leader { mut connection, snapshot, record, tables } = leader;
        let (database, folder) = (self.records.len(), &record.folder);
        for section in [Section::Before, Section::After] {
            let path = format!("{folder}/{}.dump", section.word());
            self.shared.jobs.push(Job { path, database, what: What::Definitions(section) });
        }
        for (index, found) in tables.iter().enumerate() {
            self.later.push(Job { path: found.table.path.clone(), database, what: What::Table(index) });
            self.estimate += found.bytes;
        }
        for (index, object) in record.large_objects.iter().enumerate() {
            self.later.push(Job { path: object.path.clone(), database, what: What::LargeObject(index) });
        }
        let takes_options = connection.takes_options();
        self.shared.databases.push(Exported {
            name: record.name.clone(),
            snapshot,
            rows_encoding: record.rows_encoding.clone(),
            encoding: record.encoding.clone(),
            takes_options,
            lc_monetary: if takes_options { "C".to_owned() } else { catalog::lc_monetary(&mut connection)? },
        });
        self.shared.objects.push(record.large_objects.iter().map(|object| object.oid).collect());
        self.shared.tables.push(tables);
        self.shared.leaders.push(Mutex::new(connection));
        self.records.push(record);
        Ok(())
    }

    fn done(mut self) -> (Shared, Vec<Database>) {
        self.shared.jobs.append(&mut self.later);
        (self.shared, self.records)
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
        for (leader, record) in self.shared.leaders.iter().zip(&self.records) {
            // Lost meanwhile, it did not keep tables from being altered.
            let mut leader = leader.lock().unwrap_or_else(PoisonError::into_inner);
            leader.execute("SELECT 1; COMMIT").map_err(|error| error.within(format!("end the snapshot of database {}", record.name)))?;
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

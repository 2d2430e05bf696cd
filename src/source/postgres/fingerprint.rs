//! Fingerprints of tables: taken on a source at one exact position of its log, and again in a server that was recovered to it.
//!
//! # How a position and a snapshot become one
//! In every database one transaction (repeatable read) first locks its tables in `ACCESS SHARE` mode, so that nothing can truncate or alter
//! them before they are read, then, below a savepoint, in `SHARE` mode: that waits until every transaction that wrote to a table has ended, and
//! lets no other begin to write. Only then snapshots are taken, and a restore point is written. Whatever is committed in these tables is before it, and
//! whatever is not, is not: a server that is recovered to the restore point shows the same rows. The savepoint is rolled back at once,
//! which lets writers in again, and the snapshot is read at leisure. On a standby replay is paused instead.
//!
//! An application's transaction looks for a deadlock when it has waited for `deadlock_timeout`, and ends itself when it finds one. So nothing is
//! waited for any more when locks have been held for most of that time: it is always lifeboat that gives up, and names the table.
//!
//! # Rows
//! A row is its columns' text by `COPY … TO STDOUT` under fixed settings, in the order of the columns; encoded as
//! [`crate::source::fingerprint`] says, every value as text or null. These settings are part of the fingerprint: they may never change. Text is in UTF-8, or
//! in the encoding that the table's name says ([`TableName::encoding`]).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use postgres_protocol::message::backend::Message;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::event::Cancel;
use crate::source::fingerprint::{Accumulator, LongRow, RowEncoder};
use crate::source::postgres::client::{Connection, Incoming, Mode, Piece, Row, quote_identifier, quote_literal, sqlstate};
use crate::source::postgres::conninfo::Settings;
use crate::source::postgres::lsn::Lsn;
use crate::source::postgres::recover::Target;
use crate::source::postgres::throttle::Throttle;
use crate::source::{Problem, TableFingerprint};

/// What decides how values look as text, beside the encoding.
pub(super) const SESSION: &str = "SET TimeZone = 'UTC'; SET DateStyle = 'ISO, MDY'; SET IntervalStyle = 'postgres'; \
    SET bytea_output = 'hex'; SET extra_float_digits = 3; SET lc_monetary = 'C'; SET xmlbinary = 'base64'; SET search_path = pg_catalog; \
    SET quote_all_identifiers = off; SET row_security = off; SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0";
/// The kind of what the server itself cannot read.
pub const UNREADABLE: &str = "unreadable";
/// Tables locked by one statement while nobody is in the way.
const BATCH_TABLES: usize = 64;
/// A sample is made of runs of at most so many pages: a megabyte, which disks read at full speed. A small sample has some runs all the same.
const RUN_PAGES: u64 = 128;
const RUNS_LEAST: u64 = 8;
/// However many tables there are, so much of each is read.
const SAMPLE_LEAST: u64 = 64 << 10;
/// `pg_wal_replay_pause` only asks; for so long the answer is waited for.
const PAUSE_PATIENCE: Duration = Duration::from_secs(10);
/// A session that holds up writers and hears nothing from here for so long is ended by the server: this program was stopped, or its host is gone.
const ABANDONED_AFTER: Duration = Duration::from_secs(3);
/// Held as long as replay is to be paused: "lifeboat" in ASCII.
const PAUSE_LOCK: i64 = 0x6c69_6665_626f_6174;
const RESUME_TRIES: u32 = 5;
const RESUME_PAUSE: Duration = Duration::from_secs(1);

/// How far taking fingerprints may go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// For so long one table is waited for, and writers that come after wait too.
    pub lock_timeout: Duration,
    /// For so long locks are waited for altogether, and never longer than most of the server's `deadlock_timeout`: tables that come
    /// later are locked only when nobody is in the way.
    pub lock_limit: Duration,
    /// About so much is read altogether. Small tables are read whole, of the others each gives a sample of the same size.
    pub budget: Budget,
    /// Only these databases.
    pub databases: Option<Vec<String>>,
}

impl Default for Options {
    fn default() -> Self {
        Self { lock_timeout: Duration::from_millis(400), lock_limit: Duration::from_millis(800), budget: Budget::All, databases: None }
    }
}

/// How much of the tables is read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Budget {
    /// A 64th of what the tables hold, and never less than 16 MiB nor more than 256 MiB: a small part of what a backup costs, however large the server.
    #[default]
    Share,
    Bytes(u64),
    /// Every row of every table.
    All,
}

impl Budget {
    const SHARE_LEAST: u64 = 16 << 20;
    const SHARE_MOST: u64 = 256 << 20;

    /// In bytes, of tables that hold so many; `None`: all of them.
    fn bytes(self, held: u64) -> Option<u64> {
        match self {
            Self::Share => Some((held / 64).clamp(Self::SHARE_LEAST, Self::SHARE_MOST)),
            Self::Bytes(bytes) => Some(bytes),
            Self::All => None,
        }
    }
}

/// Where in the log the fingerprints are of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The restore point that was written there; `None` where that is not permitted, and on a standby.
    pub restore_point: Option<String>,
    /// Everything that ends at or before here belongs to it.
    pub lsn: Lsn,
}

impl Position {
    /// What a server must be recovered to for its tables to be the same.
    #[must_use]
    pub fn target(&self) -> Target {
        match &self.restore_point {
            Some(name) => Target::Name(name.clone()),
            None => Target::Lsn { lsn: self.lsn, inclusive: false },
        }
    }
}

/// What reading one table cost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    pub table: String,
    pub rows: u64,
    /// Of the rows' text.
    pub bytes: u64,
    pub duration_ms: u64,
}

/// Fingerprints, and what they cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    pub position: Position,
    /// By name.
    pub tables: Vec<TableFingerprint>,
    /// Tables without one, and why.
    pub left_out: Vec<Problem>,
    pub cost: Vec<Cost>,
    /// How long writers may have had to wait.
    pub locked_ms: u64,
}

/// Some pages of a table. Written `[64 of 1000 pages, 7]` behind its name; the last number chooses them, zero is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sample {
    pub read: u64,
    pub all: u64,
    /// Another one for each backup, so that every page has its turn.
    pub seed: u32,
}

/// A table's name, as fingerprints have it: `database.schema.table`, each part quoted unless it is lower-case letters, digits and `_`; then, where it is not
/// UTF-8, the encoding of its text as `(WIN1252)`, and the sample.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableName {
    pub database: String,
    pub schema: String,
    pub table: String,
    /// That of the database, which is then that of the rows that are digested: not every character has an equivalent in UTF-8. `None`: rows are read as UTF-8,
    /// or as they are where the database says nothing of its encoding (`SQL_ASCII`).
    pub encoding: Option<String>,
    /// Only these pages were read.
    pub sample: Option<Sample>,
}

impl TableName {
    /// Reads a name as [`std::fmt::Display`] writes it.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (database, rest) = part(text)?;
        let (schema, rest) = part(rest.strip_prefix('.')?)?;
        let (table, rest) = part(rest.strip_prefix('.')?)?;
        let (encoding, rest) = match rest.strip_prefix(" (") {
            Some(rest) => rest.split_once(')').map(|(name, rest)| (Some(name.to_owned()), rest))?,
            None => (None, rest),
        };
        let sample = match rest {
            "" => None,
            rest => {
                let (read, rest) = rest.strip_prefix(" [")?.strip_suffix(']')?.split_once(" of ")?;
                let (all, seed) = rest.split_once(" pages")?;
                let seed = if seed.is_empty() { 0 } else { seed.strip_prefix(", ")?.parse().ok()? };
                Some(Sample { read: read.parse().ok()?, all: all.parse().ok()?, seed })
            }
        };
        Some(Self { database, schema, table, encoding, sample })
    }

    /// For SQL in its database.
    fn sql(&self) -> String {
        format!("{}.{}", quote_identifier(&self.schema), quote_identifier(&self.table))
    }
}

impl std::fmt::Display for TableName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", shown(&self.database), shown(&self.schema), shown(&self.table))?;
        if let Some(encoding) = &self.encoding {
            write!(f, " ({encoding})")?;
        }
        match self.sample {
            Some(Sample { read, all, seed: 0 }) => write!(f, " [{read} of {all} pages]"),
            Some(Sample { read, all, seed }) => write!(f, " [{read} of {all} pages, {seed}]"),
            None => Ok(()),
        }
    }
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_'
}

/// Not the server's own quoting, which depends on the key words of its version.
fn shown(name: &str) -> String {
    let plain = !name.is_empty() && name.bytes().all(is_plain) && !name.starts_with(|first: char| first.is_ascii_digit());
    if plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

/// One part of a name, and what follows it.
fn part(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.bytes().position(|byte| !is_plain(byte)).unwrap_or(text.len());
        return (end > 0).then(|| (text[..end].to_owned(), &text[end..]));
    };
    let mut name = String::new();
    let mut rest = quoted;
    loop {
        let end = rest.find('"')?;
        name.push_str(&rest[..end]);
        rest = &rest[end + 1..];
        match rest.strip_prefix('"') {
            Some(more) => {
                name.push('"');
                rest = more;
            }
            None => return Some((name, rest)),
        }
    }
}

/// One database with its snapshot.
struct Database {
    name: String,
    connection: Connection,
    tables: Vec<TableName>,
}

/// Snapshots of all databases at one position. Holds back vacuum on the source until it is read or dropped.
pub struct Snapshot {
    databases: Vec<Database>,
    position: Position,
    left_out: Vec<Problem>,
    /// What another try would not change.
    beyond: Beyond,
    locked: Duration,
    options: Options,
}

/// Tables that were passed over because there are too many, and what takes no connections.
#[derive(Default)]
struct Beyond {
    names: BTreeSet<String>,
    told: Vec<Problem>,
}

/// The connectable databases of a server, by name.
///
/// # Errors
/// As the server says.
pub fn databases(settings: &Settings, cancel: &Cancel) -> Result<Vec<String>> {
    let mut connection =
        Connection::connect(settings, Mode::Sql { database: Some(settings.database.as_deref().unwrap_or("postgres")) }, cancel)?;
    // −2 marks one whose removal was interrupted.
    let rows = connection.query("SELECT datname FROM pg_catalog.pg_database WHERE datallowconn AND datconnlimit <> -2 ORDER BY datname")?;
    rows.iter().map(|row| row.required("datname").map(str::to_owned)).collect()
}

/// Databases of a server that take no connections, by name: nobody can look into them. `template0` is none: it is as it was made.
///
/// # Errors
/// As the server says.
pub fn closed_databases(settings: &Settings, cancel: &Cancel) -> Result<Vec<String>> {
    let mut connection =
        Connection::connect(settings, Mode::Sql { database: Some(settings.database.as_deref().unwrap_or("postgres")) }, cancel)?;
    let rows = connection.query(
        "SELECT datname FROM pg_catalog.pg_database WHERE NOT datallowconn AND datconnlimit <> -2 AND datname <> 'template0' ORDER BY datname",
    )?;
    rows.iter().map(|row| row.required("datname").map(str::to_owned)).collect()
}

impl Snapshot {
    /// Takes the snapshots and the position. Writers wait meanwhile, within the limits of `options`. `name` becomes the restore point.
    ///
    /// # Errors
    /// When no position can be had. A table or database that cannot be locked is left out and named, not an error.
    pub fn take(settings: &Settings, name: &str, options: &Options, cancel: &Cancel) -> Result<Self> {
        let mut left_out = Vec::new();
        let mut opened = Vec::new();
        for database in databases(settings, cancel)? {
            if options.databases.as_ref().is_some_and(|wanted| !wanted.contains(&database)) {
                continue;
            }
            match open(settings, &database, cancel) {
                Ok(connection) => opened.push((database, connection)),
                Err(error) if error.kind() == Kind::Interrupted => return Err(error),
                Err(error) => left_out.push(problem(&shown(&database), &error)),
            }
        }
        // Functions are granted in one database: that of the settings writes the restore point.
        opened.sort_by_key(|(database, _)| settings.database.as_ref() != Some(database));
        let Some((_, first)) = opened.first_mut() else {
            return Err(Error::new(Kind::Failed, format!("take fingerprints at {settings}: no database lets lifeboat in"))
                .hint("GRANT CONNECT on the databases to the role that lifeboat uses"));
        };
        let standby = first.value("SELECT pg_is_in_recovery()")?.as_deref() == Some("t");
        let mut budget = lock_budget(first)?;
        // Here, because a query in one of the transactions would take its snapshot before the locks.
        let options = &Options { lock_limit: options.lock_limit.min(deadlock_patience(first)?), ..options.clone() };
        let mut databases = Vec::new();
        let mut beyond = Beyond::default();
        for database in closed_databases(settings, cancel)? {
            if options.databases.as_ref().is_none_or(|wanted| wanted.contains(&database)) {
                let message = format!("it takes no connections: {}", opening(&database));
                beyond.told.push(Problem { object: format!("database {}", shown(&database)), kind: "no-fingerprint".into(), message });
            }
        }
        for (database, mut connection) in opened {
            let mut tables = match tables_of(&mut connection, &database) {
                Ok(tables) => tables,
                Err(error) => {
                    left_out.push(problem(&shown(&database), &error));
                    continue;
                }
            };
            if tables.len() > budget {
                choose_at_random(&database, &mut tables, budget, &mut beyond)?;
            }
            budget -= tables.len();
            connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")?;
            let tables = lock(&mut connection, tables, "ACCESS SHARE", options.lock_timeout, None, &mut left_out, cancel)?;
            databases.push(Database { name: database, connection, tables });
        }
        let mut snapshot = Self {
            databases,
            beyond,
            position: Position { restore_point: None, lsn: Lsn(0) },
            left_out,
            locked: Duration::ZERO,
            options: options.clone(),
        };
        if standby {
            snapshot.pause(settings, cancel)?;
        } else {
            snapshot.hold(name, cancel)?;
        }
        snapshot.name_newcomers()?;
        Ok(snapshot)
    }

    /// Tables that were listed before and do not exist at the position are none of its; those that exist there and were not listed, because
    /// they were created or renamed meanwhile, are named: nothing of them was locked.
    fn name_newcomers(&mut self) -> Result<()> {
        for Database { name, connection, tables } in &mut self.databases {
            let there: BTreeSet<String> = tables_of(connection, name)?.iter().map(ToString::to_string).collect();
            let prefix = format!("{}.", shown(name));
            self.left_out.retain(|problem| !problem.object.starts_with(&prefix) || there.contains(&problem.object));
            let mut known: BTreeSet<String> = tables.iter().map(ToString::to_string).collect();
            known.extend(self.left_out.iter().map(|problem| problem.object.clone()));
            for table in there.iter().filter(|table| !known.contains(*table) && !self.beyond.names.contains(*table)) {
                let message = "it was created or renamed while fingerprints were prepared".to_owned();
                self.left_out.push(Problem { object: table.clone(), kind: "no-fingerprint".into(), message });
            }
        }
        Ok(())
    }

    /// Locks against writers, takes snapshots and position, lets go.
    fn hold(&mut self, name: &str, cancel: &Cancel) -> Result<()> {
        let mut begun = None;
        let taken = self.hold_locks(name, &mut begun, cancel);
        // Whatever happened: first of all the writers.
        let mut released = Ok(());
        for database in &mut self.databases {
            if let Err(error) = database.connection.execute("ROLLBACK TO SAVEPOINT writers") {
                released = Err(error);
            }
        }
        self.locked = begun.map_or(Duration::ZERO, |begun: Instant| begun.elapsed());
        match taken.and_then(|position| released.map(|()| position)) {
            Err(error) if self.locked >= ABANDONED_AFTER => {
                let what =
                    format!("take fingerprints: this program stood still for {} ms while writers waited for it", self.locked.as_millis());
                Err(Error::new(Kind::Busy, what).because(error).hint("the server ended the session, for its writers' sake; try again"))
            }
            taken => {
                self.position = taken?;
                Ok(())
            }
        }
    }

    fn hold_locks(&mut self, name: &str, begun: &mut Option<Instant>, cancel: &Cancel) -> Result<Position> {
        for database in &mut self.databases {
            // The rollback to it takes the limit back, too.
            let limit = format!("SAVEPOINT writers; SET LOCAL idle_in_transaction_session_timeout = {}", ABANDONED_AFTER.as_millis());
            database.connection.execute(&limit)?;
        }
        let until = *begun.insert(Instant::now()) + self.options.lock_limit;
        for database in &mut self.databases {
            let tables = std::mem::take(&mut database.tables);
            let (timeout, left_out) = (self.options.lock_timeout, &mut self.left_out);
            database.tables = lock(&mut database.connection, tables, "SHARE", timeout, Some(until), left_out, cancel)?;
        }
        for database in &mut self.databases {
            // The first statement with a result takes the transaction's snapshot.
            database.connection.value("SELECT 1")?;
        }
        let Some(database) = self.databases.first_mut() else {
            return Err(Error::new(Kind::Failed, "take fingerprints: no database can be read"));
        };
        let connection = &mut database.connection;
        connection.execute("SAVEPOINT position")?;
        let lsn = |text: Option<String>| text.unwrap_or_default().parse::<Lsn>();
        match connection.value(&format!("SELECT pg_create_restore_point({})", quote_literal(name))) {
            Ok(text) => Ok(Position { restore_point: Some(name.to_owned()), lsn: lsn(text)? }),
            Err(error) if sqlstate(&error).is_none() => Err(error),
            // Not permitted, or too little in the log for it.
            Err(_) => {
                connection.execute("ROLLBACK TO SAVEPOINT position")?;
                Ok(Position { restore_point: None, lsn: lsn(connection.value("SELECT pg_current_wal_insert_lsn()")?)? })
            }
        }
    }

    /// On a standby: replay is paused, snapshots and position are taken, replay goes on.
    fn pause(&mut self, settings: &Settings, cancel: &Cancel) -> Result<()> {
        let mut pause = Pause::ask(settings, cancel)?;
        let taken = self.pause_and_look(&mut pause, cancel);
        let resumed = pause.end(settings);
        self.position = match (taken, resumed) {
            (Ok(lsn), Ok(())) => Position { restore_point: None, lsn },
            // Of the two this one needs somebody.
            (_, Err(error)) | (Err(error), Ok(())) => return Err(error),
        };
        Ok(())
    }

    fn pause_and_look(&mut self, pause: &mut Pause, cancel: &Cancel) -> Result<Lsn> {
        let deadline = Instant::now() + PAUSE_PATIENCE;
        while !pause.holds()? {
            cancel.check()?;
            if Instant::now() > deadline {
                return Err(Error::new(Kind::Busy, "take fingerprints on a standby: its replay does not pause"));
            }
            pause.wait(Duration::from_millis(20))?;
        }
        let before = pause.position()?;
        for database in &mut self.databases {
            database.connection.value("SELECT 1")?;
        }
        // Snapshots of different moments would be taken for damage by a later drill.
        if !pause.holds()? || pause.position()? != before {
            return Err(Error::new(Kind::Busy, "take fingerprints on a standby: somebody resumed its replay while snapshots were taken")
                .hint("is another backup of it running at the same time? Try again when it has ended"));
        }
        Ok(before)
    }

    /// Where in the log it is.
    #[must_use]
    pub fn position(&self) -> &Position {
        &self.position
    }

    /// Tables that are not in it and may be in the next one, and why.
    #[must_use]
    pub fn left_out(&self) -> &[Problem] {
        &self.left_out
    }

    /// How long writers may have had to wait.
    #[must_use]
    pub fn locked(&self) -> Duration {
        self.locked
    }

    /// Reads all tables, no faster than `throttle` allows. A table that cannot be read is left out and named.
    ///
    /// # Errors
    /// `Interrupted`, or when a connection was lost.
    pub fn read(self, key: &[u8; 32], throttle: Option<&Throttle>, cancel: &Cancel) -> Result<Taken> {
        let Self { mut databases, position, mut left_out, beyond, locked, options } = self;
        left_out.extend(beyond.told);
        choose_samples(&mut databases, options.budget)?;
        let (mut tables, mut cost) = (Vec::new(), Vec::new());
        for Database { mut connection, tables: names, .. } in databases {
            let labels = enum_labels(&mut connection)?;
            for name in names.clone() {
                cancel.check()?;
                connection.execute("SAVEPOINT reading")?;
                match read_table(&mut connection, &name, key, throttle, cancel) {
                    Ok((table, spent)) => {
                        connection.execute("RELEASE SAVEPOINT reading")?;
                        tables.push(table);
                        cost.push(spent);
                    }
                    Err(error) if sqlstate(&error).is_none() => return Err(error),
                    Err(error) => {
                        left_out.push(problem(&name.to_string(), &error));
                        connection.execute("ROLLBACK TO SAVEPOINT reading")?;
                    }
                }
            }
            connection.execute("COMMIT")?;
            for name in renamed_meanwhile(&mut connection, &labels, &names)? {
                tables.retain(|table: &TableFingerprint| table.table != name);
                let message = "a value of one of its enumerated types was renamed while it was read".to_owned();
                left_out.push(Problem { object: name, kind: "no-fingerprint".into(), message });
            }
        }
        tables.sort_by(|one, other| one.table.cmp(&other.table));
        let locked_ms = u64::try_from(locked.as_millis()).unwrap_or(u64::MAX);
        Ok(Taken { position, tables, left_out, cost, locked_ms })
    }
}

/// The replay of a standby, paused. The pause is the server's: it would outlive lifeboat. So the session that pauses it (`keeper`) is told
/// in the same breath to wait for a lock that another one (`holder`) has, and then to resume: whatever ends lifeboat, or its way to the server, ends the
/// `holder`, and the server resumes by itself.
struct Pause {
    holder: Connection,
    keeper: Connection,
    /// The keeper failed: it does not resume any more.
    lost: bool,
}

impl Pause {
    /// Asks for it. Nothing is paused yet: [`Pause::holds`] tells.
    fn ask(settings: &Settings, cancel: &Cancel) -> Result<Self> {
        let connect = |cancel: &Cancel| -> Result<Connection> {
            let place = settings.database.as_deref().unwrap_or("postgres");
            let mut connection = Connection::connect(settings, Mode::Sql { database: Some(place) }, cancel)?;
            // A host that is gone without a word is noticed within half a minute.
            connection.execute(SESSION)?;
            connection.execute(
                "SET lock_timeout = 0; SET client_connection_check_interval = 0; \
                 SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 4",
            )?;
            Ok(connection)
        };
        let busy = |who| {
            Error::new(Kind::Busy, format!("take fingerprints at {settings}: {who} has paused its replay"))
                .hint("SELECT pg_wal_replay_resume() when nobody needs it paused any more")
        };
        let mut holder = connect(cancel)?;
        if holder.value("SELECT pg_is_wal_replay_paused()")?.as_deref() == Some("t") {
            return Err(busy("somebody"));
        }
        let may = "SELECT has_function_privilege('pg_wal_replay_pause()', 'EXECUTE') AND has_function_privilege('pg_wal_replay_resume()', 'EXECUTE')";
        if holder.value(may)?.as_deref() != Some("t") {
            return Err(Error::new(Kind::Usage, format!("take fingerprints at {settings}: the role may not pause and resume its replay"))
                .hint("GRANT EXECUTE ON FUNCTION pg_wal_replay_pause(), pg_wal_replay_resume() to the role that lifeboat uses"));
        }
        if holder.value(&format!("SELECT pg_try_advisory_lock({PAUSE_LOCK})"))?.as_deref() != Some("t") {
            return Err(busy("another backup"));
        }
        // A connection that an interruption reaches would have the server cancel what is to resume.
        let mut keeper = connect(&Cancel::default())?;
        keeper.set_timeout(PAUSE_PATIENCE);
        keeper.begin(&format!("SELECT pg_wal_replay_pause(); SELECT pg_advisory_lock({PAUSE_LOCK}); SELECT pg_wal_replay_resume()"))?;
        Ok(Self { holder, keeper, lost: false })
    }

    /// Whether replay stands still.
    fn holds(&mut self) -> Result<bool> {
        Ok(self.holder.value("SELECT pg_get_wal_replay_pause_state()")?.as_deref() == Some("paused"))
    }

    /// Up to where the log is replayed.
    fn position(&mut self) -> Result<Lsn> {
        self.holder.value("SELECT pg_last_wal_replay_lsn()")?.unwrap_or_default().parse()
    }

    /// Waits a little; fails when the server ends the pause by itself.
    fn wait(&mut self, time: Duration) -> Result<()> {
        match self.keeper.next_until(Instant::now() + time)? {
            None => Ok(()),
            Some(Incoming::Message(Message::ErrorResponse(body))) => {
                self.lost = true;
                Err(self.keeper.server_error(&body))
            }
            Some(_) => Err(Error::new(Kind::Busy, "take fingerprints on a standby: the pause of its replay has ended too early")),
        }
    }

    /// Resumes, also after an interruption.
    ///
    /// # Errors
    /// When that cannot be done: the replay stays paused until somebody resumes it.
    fn end(self, settings: &Settings) -> Result<()> {
        let Self { holder, mut keeper, lost } = self;
        drop(holder);
        if !lost && read_to_end(&mut keeper).is_ok() {
            return Ok(());
        }
        // By another connection, then.
        drop(keeper);
        let mut tried = 1;
        let error = loop {
            match resume(settings) {
                Ok(()) => return Ok(()),
                Err(error) if tried == RESUME_TRIES => break error,
                Err(_) => tried += 1,
            }
            std::thread::sleep(RESUME_PAUSE);
        };
        let what = format!("resume the replay of the standby at {settings}, which lifeboat has paused");
        tracing::error!(%error, "{what}: it may stay paused; SELECT pg_wal_replay_resume() there");
        Err(error
            .within(what)
            .hint("it may stay paused, and then falls behind for good: SELECT pg_wal_replay_resume() there, as soon as it can be reached"))
    }
}

/// The rest of an answer.
fn read_to_end(connection: &mut Connection) -> Result<()> {
    let mut failed = None;
    while connection.next_of_answer(&mut failed)?.is_some() {}
    Ok(())
}

/// By a connection of its own, whatever became of the others.
fn resume(settings: &Settings) -> Result<()> {
    let place = settings.database.as_deref().unwrap_or("postgres");
    let mut connection = Connection::connect(settings, Mode::Sql { database: Some(place) }, &Cancel::default())?;
    // One that was promoted meanwhile replays nothing.
    connection.execute("SELECT CASE WHEN pg_is_in_recovery() THEN pg_wal_replay_resume() END")
}

fn open(settings: &Settings, database: &str, cancel: &Cancel) -> Result<Connection> {
    let mut connection = Connection::connect(settings, Mode::Sql { database: Some(database) }, cancel)?;
    connection.execute(SESSION)?;
    Ok(connection)
}

/// What lets one look into a database.
pub(super) fn opening(database: &str) -> String {
    format!("ALTER DATABASE {} ALLOW_CONNECTIONS true", quote_identifier(database))
}

fn problem(object: &str, error: &Error) -> Problem {
    let cause = error.causes().pop().unwrap_or_else(|| error.to_string());
    // A file that is missing or cannot be read; damaged pages and indexes.
    if sqlstate(error).is_some_and(|state| state.starts_with("58") || matches!(state, "XX001" | "XX002")) {
        let message = format!("the server cannot read it, so its own files are damaged or gone: {cause}");
        return Problem { object: object.to_owned(), kind: UNREADABLE.into(), message };
    }
    Problem { object: object.to_owned(), kind: "no-fingerprint".into(), message: cause }
}

/// A quarter of the places for locks that the server has: an application must never find none because of lifeboat.
fn lock_budget(connection: &mut Connection) -> Result<usize> {
    let places = connection.value(
        "SELECT current_setting('max_locks_per_transaction')::bigint * (current_setting('max_connections')::bigint + current_setting('max_prepared_transactions')::bigint)",
    )?;
    Ok(places.and_then(|places| places.parse::<usize>().ok()).unwrap_or(0) / 4)
}

/// Most of the time after which an application that waits looks for a deadlock.
fn deadlock_patience(connection: &mut Connection) -> Result<Duration> {
    let timeout = connection.value("SELECT setting FROM pg_settings WHERE name = 'deadlock_timeout'")?;
    let timeout_ms = timeout.and_then(|timeout| timeout.parse::<u64>().ok()).unwrap_or(0);
    Ok(Duration::from_millis(timeout_ms * 4 / 5))
}

/// Tables whose content a recovery must bring back, those that are written least first: the others are then locked for the shortest time. Of extensions those
/// that they name as the user's.
fn tables_of(connection: &mut Connection, database: &str) -> Result<Vec<TableName>> {
    let rows = connection.query(
        "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         LEFT JOIN pg_stat_all_tables s ON s.relid = c.oid \
         WHERE c.relkind = 'r' AND c.relpersistence = 'p' \
         AND (n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_(toast|temp_)' \
              OR c.oid = 'pg_largeobject'::regclass AND pg_relation_size(c.oid) > 0) \
         AND (NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e') \
              OR c.oid IN (SELECT unnest(extconfig) FROM pg_extension)) \
         ORDER BY coalesce(s.n_tup_ins + s.n_tup_upd + s.n_tup_del, 0), c.oid",
    )?;
    let encoding = connection.other_encoding().map(str::to_owned);
    let table = |row: &Row| -> Result<TableName> {
        Ok(TableName {
            database: database.to_owned(),
            schema: row.required("nspname")?.to_owned(),
            table: row.required("relname")?.to_owned(),
            encoding: encoding.clone(),
            sample: None,
        })
    };
    rows.iter().map(table).collect()
}

/// Keeps `count` tables, others each time, in their order.
fn choose_at_random(database: &str, tables: &mut Vec<TableName>, count: usize, beyond: &mut Beyond) -> Result<()> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|error| Error::new(Kind::Failed, "draw a random number").because(error.to_string()))?;
    let rank = |table: &TableName| *blake3::keyed_hash(&seed, table.to_string().as_bytes()).as_bytes();
    let mut ranked: Vec<_> = tables.iter().map(|table| (rank(table), table.clone())).collect();
    ranked.sort();
    let kept: BTreeSet<TableName> = ranked.into_iter().take(count).map(|(_, table)| table).collect();
    let (keep, drop): (Vec<_>, Vec<_>) = std::mem::take(tables).into_iter().partition(|table| kept.contains(table));
    // One sentence: nobody reads thousands.
    beyond.told.push(Problem {
        object: format!("{} of {} tables of database {}", drop.len(), drop.len() + keep.len(), shown(database)),
        kind: "no-fingerprint".into(),
        message: format!(
            "lifeboat takes no more than a quarter of the server's places for locks, {count} here; others are chosen each time; raise max_locks_per_transaction for all"
        ),
    });
    beyond.names.extend(drop.iter().map(ToString::to_string));
    *tables = keep;
    Ok(())
}

/// Every table of a server that a fingerprint can be of.
///
/// # Errors
/// As the server says.
pub fn tables(settings: &Settings, cancel: &Cancel) -> Result<Vec<TableName>> {
    let mut found = Vec::new();
    for database in databases(settings, cancel)? {
        found.extend(tables_of(&mut open(settings, &database, cancel)?, &database)?);
    }
    Ok(found)
}

/// Locks tables and yields those that are locked. After `until` only those that are free.
fn lock(
    connection: &mut Connection,
    tables: Vec<TableName>,
    mode: &str,
    timeout: Duration,
    until: Option<Instant>,
    left_out: &mut Vec<Problem>,
    cancel: &Cancel,
) -> Result<Vec<TableName>> {
    let mut locked = Vec::with_capacity(tables.len());
    for batch in tables.chunks(BATCH_TABLES) {
        cancel.check()?;
        if try_lock(connection, batch, mode, "NOWAIT")?.is_ok() {
            locked.extend_from_slice(batch);
            continue;
        }
        for table in batch {
            cancel.check()?;
            let left = until.map_or(timeout, |until| timeout.min(until.saturating_duration_since(Instant::now())));
            let wait = if left.as_millis() == 0 { "NOWAIT" } else { "" };
            connection.execute(&format!("SET LOCAL lock_timeout = {}", left.as_millis()))?;
            match try_lock(connection, std::slice::from_ref(table), mode, wait)? {
                Ok(()) => locked.push(table.clone()),
                Err(error) => left_out.push(problem(&table.to_string(), &error)),
            }
        }
    }
    Ok(locked)
}

/// Locks all of these or none.
fn try_lock(connection: &mut Connection, tables: &[TableName], mode: &str, wait: &str) -> Result<Result<()>> {
    let names: Vec<String> = tables.iter().map(|table| format!("ONLY {}", table.sql())).collect();
    let statement = format!("SAVEPOINT locks; LOCK TABLE {} IN {mode} MODE {wait}; RELEASE SAVEPOINT locks", names.join(", "));
    match connection.execute(&statement) {
        Ok(()) => Ok(Ok(())),
        // Not the server's word: the connection is lost.
        Err(error) if sqlstate(&error).is_none() => Err(error),
        Err(error) => {
            connection.execute("ROLLBACK TO SAVEPOINT locks; RELEASE SAVEPOINT locks")?;
            Ok(Err(error))
        }
    }
}

/// Decides which tables are read by a sample. A table that is not there any more is left for whoever reads it.
fn choose_samples(databases: &mut [Database], budget: Budget) -> Result<()> {
    if budget == Budget::All {
        return Ok(());
    }
    let mut seed = [0; 4];
    getrandom::fill(&mut seed).map_err(|error| Error::new(Kind::Failed, "draw a random number").because(error.to_string()))?;
    let seed = u32::from_le_bytes(seed).max(1);
    let mut sizes = Vec::new();
    for database in &mut *databases {
        sizes.push(sizes_of(&mut database.connection, &database.tables)?);
    }
    let held: Vec<u64> = sizes.iter().flatten().map(|(bytes, _)| *bytes).collect();
    let Some(budget) = budget.bytes(held.iter().sum()) else { return Ok(()) };
    let share = share_of_each(held, budget);
    for (database, sizes) in databases.iter_mut().zip(sizes) {
        for (name, (bytes, pages)) in database.tables.iter_mut().zip(sizes) {
            // What is kept outside of the table's own pages (TOAST) is read with the rows that are on them.
            let read = (u128::from(pages) * u128::from(share) / u128::from(bytes.max(1))).max(1);
            let read = u64::try_from(read).unwrap_or(u64::MAX);
            name.sample = (bytes > share && read < pages).then_some(Sample { read, all: pages, seed });
        }
    }
    Ok(())
}

/// Bytes with everything that belongs to it, and pages, of each of these tables. They must be locked: asking for the size of one that somebody
/// alters waits for him.
fn sizes_of(connection: &mut Connection, tables: &[TableName]) -> Result<Vec<(u64, u64)>> {
    let mut known = HashMap::new();
    for some in tables.chunks(BATCH_TABLES) {
        let names: Vec<String> = some.iter().map(|name| format!("{}::regclass", quote_literal(&name.sql()))).collect();
        let rows = connection.query(&format!(
            "SELECT n.nspname, c.relname, pg_table_size(c.oid), pg_relation_size(c.oid) / current_setting('block_size')::bigint \
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = ANY (ARRAY[{}]::regclass[])",
            names.join(", ")
        ))?;
        let number = |row: &Row, index: usize| row.get(index).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        for row in rows {
            let name = (row.required("nspname")?.to_owned(), row.required("relname")?.to_owned());
            known.insert(name, (number(&row, 2), number(&row, 3)));
        }
    }
    Ok(tables.iter().map(|name| known.get(&(name.schema.clone(), name.table.clone())).copied().unwrap_or((0, 0))).collect())
}

/// How much of each table is read, at most, so that all together are within the budget. Pure.
fn share_of_each(mut sizes: Vec<u64>, budget: u64) -> u64 {
    sizes.sort_unstable();
    let (mut left, mut count) = (budget, sizes.len() as u64);
    for size in sizes {
        let share = left / count.max(1);
        if size > share {
            return share.max(SAMPLE_LEAST);
        }
        left -= size;
        count -= 1;
    }
    u64::MAX
}

/// The pages of a sample, [start, end), spread over the table. A physical copy has the same rows on the same pages.
fn runs(sample: Sample) -> Vec<(u64, u64)> {
    let Sample { read, all, seed } = sample;
    // Samples without a seed are of the first version, which had only long runs.
    let longest = if seed == 0 { RUN_PAGES } else { RUN_PAGES.min(read.div_ceil(RUNS_LEAST)) };
    let length = longest.min(read).max(1);
    let count = (read / length).max(1);
    let stride = all / count;
    (0..count)
        .map(|number| {
            let mut text = [read, all, number].map(u64::to_le_bytes).concat();
            if seed > 0 {
                text.extend_from_slice(&seed.to_le_bytes());
            }
            let hash = blake3::hash(&text);
            let random = u64::from_le_bytes(hash.as_bytes().first_chunk().copied().unwrap_or_default());
            let start = number * stride + random % stride.saturating_sub(length).max(1);
            (start, start + length)
        })
        .collect()
}

/// Fingerprints one table, as its name says.
fn read_table(
    connection: &mut Connection,
    name: &TableName,
    key: &[u8; 32],
    throttle: Option<&Throttle>,
    cancel: &Cancel,
) -> Result<(TableFingerprint, Cost)> {
    let begun = Instant::now();
    // Virtual generated columns are not stored: they are computed by whatever the source defined.
    let rows = connection.query(&format!(
        "SELECT attname FROM pg_attribute WHERE attrelid = {}::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated <> 'v' ORDER BY attnum",
        quote_literal(&name.sql())
    ))?;
    let columns: Vec<String> = rows.iter().map(|row| row.required("attname").map(quote_identifier)).collect::<Result<_>>()?;
    let mut query = format!("SELECT {} FROM ONLY {}", columns.join(", "), name.sql());
    let (mut lines, in_encoding) = (Lines::new(key, columns.len()), in_encoding(name.encoding.as_deref()));
    let parts = match name.sample {
        None => vec![String::new()],
        Some(sample) => {
            runs(sample).into_iter().map(|(start, end)| format!(" WHERE ctid >= '({start},0)' AND ctid < '({end},0)'")).collect()
        }
    };
    let whole = query.len();
    for part in parts {
        query.truncate(whole);
        query.push_str(&part);
        let mut copy = connection.copy_out(&format!("COPY ({query}) TO STDOUT{in_encoding}"))?;
        while let Some(piece) = copy.next()? {
            lines.add(&piece)?;
            if let Some(throttle) = throttle {
                throttle.pace(piece.bytes.len());
            }
            if throttle.is_some() || !piece.ends || lines.sum.rows().is_multiple_of(4096) {
                cancel.check()?;
            }
        }
    }
    let (table, bytes) = lines.finish(name.to_string())?;
    let duration_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok((table.clone(), Cost { table: table.table, rows: table.rows, bytes, duration_ms }))
}

/// The labels of enumerated types, by the ids of the type and of the label: in a transaction those of its snapshot, while `COPY` writes those of now.
fn enum_labels(connection: &mut Connection) -> Result<BTreeMap<(String, String), String>> {
    let rows = connection.query("SELECT enumtypid, oid, enumlabel FROM pg_enum")?;
    rows.iter()
        .map(|row| {
            let column = |name| row.required(name).map(str::to_owned);
            Ok(((column("enumtypid")?, column("oid")?), column("enumlabel")?))
        })
        .collect()
}

/// Of tables that were read, those that may hold a value whose label is another one than in their snapshot; names as fingerprints have them. Asks outside of that.
fn renamed_meanwhile(connection: &mut Connection, before: &BTreeMap<(String, String), String>, names: &[TableName]) -> Result<Vec<String>> {
    if before.is_empty() {
        return Ok(Vec::new());
    }
    let now = enum_labels(connection)?;
    let changed: BTreeSet<&str> =
        before.iter().filter(|(id, label)| now.get(*id) != Some(*label)).map(|((of, _), _)| of.as_str()).collect();
    if changed.is_empty() {
        return Ok(Vec::new());
    }
    let changed = changed.into_iter().collect::<Vec<_>>().join(", ");
    let rows = connection.query(&format!(
        "WITH RECURSIVE uses(oid) AS (SELECT t.oid FROM pg_type t WHERE t.oid IN ({changed}) UNION SELECT t.oid FROM uses u JOIN pg_type t \
         ON t.typelem = u.oid OR t.typbasetype = u.oid OR EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = t.typrelid AND a.atttypid = u.oid) \
         OR EXISTS (SELECT FROM pg_range r WHERE r.rngsubtype = u.oid AND r.rngtypid = t.oid)) \
         SELECT DISTINCT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         JOIN pg_attribute a ON a.attrelid = c.oid JOIN uses ON uses.oid = a.atttypid"
    ))?;
    let mut found = BTreeSet::new();
    for row in &rows {
        found.insert((row.required("nspname")?, row.required("relname")?));
    }
    Ok(names.iter().filter(|name| found.contains(&(name.schema.as_str(), name.table.as_str()))).map(ToString::to_string).collect())
}

/// What `COPY` is told of the encoding of its lines, or nothing.
pub(super) fn in_encoding(name: Option<&str>) -> String {
    name.map_or_else(String::new, |name| format!(" (ENCODING {})", quote_literal(name)))
}

fn strange() -> Error {
    Error::new(Kind::Failed, "read rows from PostgreSQL: a line of COPY is not as it should be")
}

/// Digests rows in COPY's text format (PostgreSQL manual, COPY, "Text Format") as they arrive.
pub(super) struct Lines {
    key: [u8; 32],
    columns: usize,
    sum: Accumulator,
    bytes: u64,
    encoder: RowEncoder,
    scratch: Vec<u8>,
    /// A line that comes in pieces.
    long: Option<LongLine>,
}

impl Lines {
    pub(super) fn new(key: &[u8; 32], columns: usize) -> Self {
        Self { key: *key, columns, sum: Accumulator::new(key), bytes: 0, encoder: RowEncoder::default(), scratch: Vec::new(), long: None }
    }

    /// # Errors
    /// `Failed` when that is no line of so many columns.
    pub(super) fn add(&mut self, piece: &Piece) -> Result<()> {
        self.bytes += piece.bytes.len() as u64;
        if piece.ends && self.long.is_none() {
            encode(&piece.bytes, self.columns, &mut self.encoder, &mut self.scratch)?;
            self.sum.add(&self.encoder);
            return Ok(());
        }
        let mut line = match self.long.take() {
            Some(line) => line,
            None => LongLine::new(&self.key, self.columns)?,
        };
        if piece.ends {
            line.add(piece.bytes.strip_suffix(b"\n").ok_or_else(strange)?)?;
            self.sum.add_long(line.finish()?);
        } else {
            line.add(&piece.bytes)?;
            self.long = Some(line);
        }
        Ok(())
    }

    /// The fingerprint under this name, and how many bytes the lines had.
    ///
    /// # Errors
    /// `Failed` when the last line has no end.
    pub(super) fn finish(self, name: String) -> Result<(TableFingerprint, u64)> {
        if self.long.is_some() {
            return Err(strange());
        }
        Ok((self.sum.finish(name), self.bytes))
    }
}

/// A line that comes in pieces: the same as [`encode`], without ever having all of it.
struct LongLine {
    row: LongRow,
    columns: usize,
    /// Those that ended.
    fields: usize,
    field: Field,
    /// The last byte was a backslash.
    escaped: bool,
}

/// What is known of a field whose end was not seen.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Field {
    Empty,
    Text,
    Null,
}

impl LongLine {
    fn new(key: &[u8; 32], columns: usize) -> Result<Self> {
        let values = u32::try_from(columns).map_err(|_| strange())?;
        Ok(Self { row: LongRow::new(key, values), columns, fields: 0, field: Field::Empty, escaped: false })
    }

    fn add(&mut self, mut bytes: &[u8]) -> Result<()> {
        while let Some(first) = bytes.first() {
            if std::mem::take(&mut self.escaped) {
                if *first == b'N' && self.field == Field::Empty {
                    self.field = Field::Null;
                } else {
                    self.text(&[unescaped(*first)])?;
                }
                bytes = &bytes[1..];
                continue;
            }
            let is_plain = !bytes.contains(&b'\t') && !bytes.contains(&b'\\');
            let end = if is_plain { None } else { bytes.iter().position(|byte| matches!(byte, b'\t' | b'\\')) };
            let (text, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
            if !text.is_empty() {
                self.text(text)?;
            }
            match rest.first() {
                Some(b'\t') => self.end_field(),
                Some(_) => self.escaped = true,
                None => {}
            }
            bytes = rest.get(1..).unwrap_or_default();
        }
        Ok(())
    }

    fn text(&mut self, part: &[u8]) -> Result<()> {
        match self.field {
            Field::Empty => self.row.begin_text(),
            Field::Text => {}
            Field::Null => return Err(strange()),
        }
        self.field = Field::Text;
        self.row.text(part);
        Ok(())
    }

    fn end_field(&mut self) {
        match std::mem::replace(&mut self.field, Field::Empty) {
            Field::Empty => {
                self.row.begin_text();
                self.row.end_text();
            }
            Field::Text => self.row.end_text(),
            Field::Null => self.row.null(),
        }
        self.fields += 1;
    }

    fn finish(mut self) -> Result<LongRow> {
        self.end_field();
        if self.escaped || self.fields != self.columns { Err(strange()) } else { Ok(self.row) }
    }
}

/// What a letter behind a backslash stands for.
fn unescaped(letter: u8) -> u8 {
    match letter {
        b'b' => 8,
        b't' => b'\t',
        b'n' => b'\n',
        b'v' => 11,
        b'f' => 12,
        b'r' => b'\r',
        other => other,
    }
}

/// One line to a row of text values.
fn encode(line: &[u8], columns: usize, encoder: &mut RowEncoder, scratch: &mut Vec<u8>) -> Result<()> {
    let line = line.strip_suffix(b"\n").ok_or_else(strange)?;
    encoder.start(u32::try_from(columns).map_err(|_| strange())?);
    if columns == 0 {
        return if line.is_empty() { Ok(()) } else { Err(strange()) };
    }
    let mut count = 0;
    for field in line.split(|byte| *byte == b'\t') {
        count += 1;
        if field == b"\\N" {
            encoder.null();
        } else if field.contains(&b'\\') {
            scratch.clear();
            let mut bytes = field.iter();
            while let Some(byte) = bytes.next() {
                scratch.push(match byte {
                    b'\\' => unescaped(*bytes.next().ok_or_else(strange)?),
                    other => *other,
                });
            }
            encoder.text(scratch);
        } else {
            encoder.text(field);
        }
    }
    if count == columns { Ok(()) } else { Err(strange()) }
}

/// In a private server nobody changes anything: who waits for a lock there waits for a transaction that was prepared at the source, for ever.
pub(super) const PREPARED_PATIENCE: Duration = Duration::from_secs(5);

/// For a session of a private server, after its login: that it does not wait for what will not end.
pub(super) fn lock_limit() -> String {
    format!("SET lock_timeout = {}", PREPARED_PATIENCE.as_millis())
}

/// What became of one table that was to be read again.
pub type Again = Result<(TableFingerprint, Cost)>;

/// Fingerprints these tables in a recovered server, on so many connections; in the order of `names`.
///
/// # Errors
/// `Interrupted`. Whatever else goes wrong is the result of that table.
pub fn again(settings: &Settings, names: &[&str], key: &[u8; 32], threads: usize, cancel: &Cancel) -> Result<Vec<Again>> {
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<Option<Again>>> = Mutex::new(names.iter().map(|_| None).collect());
    let work = || {
        let mut at: Option<(String, Connection)> = None;
        while let Some((number, text)) = Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|number| Some((number, names.get(number)?))) {
            let result = if cancel.is_cancelled() {
                Err(Error::new(Kind::Interrupted, "interrupted"))
            } else {
                one_again(settings, text, key, &mut at, cancel)
            };
            if result.is_err() {
                // It may have been left in the middle of an answer.
                at = None;
            }
            if let Some(place) = results.lock().unwrap_or_else(PoisonError::into_inner).get_mut(number) {
                *place = Some(result);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, names.len().max(1)) {
            scope.spawn(work);
        }
    });
    cancel.check()?;
    let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(results.into_iter().map(|result| result.unwrap_or_else(|| Err(Error::new(Kind::Bug, "a table was forgotten")))).collect())
}

fn one_again(settings: &Settings, text: &str, key: &[u8; 32], at: &mut Option<(String, Connection)>, cancel: &Cancel) -> Again {
    let name = TableName::parse(text)
        .ok_or_else(|| Error::new(Kind::Damaged, format!("read the fingerprint of {text}: it is no table's name")))?;
    if at.as_ref().is_none_or(|(database, _)| *database != name.database) {
        let mut connection = open(settings, &name.database, cancel)?;
        connection.execute(&lock_limit())?;
        *at = Some((name.database.clone(), connection));
    }
    let Some((_, connection)) = at else { return Err(Error::new(Kind::Bug, "no connection")) };
    read_table(connection, &name, key, None, cancel)
}

/// The parts of a server's error that may be shown: what was done, and the server's message and hint.
#[must_use]
pub fn described(error: &Error) -> String {
    let mut text = error.causes().first().cloned().unwrap_or_else(|| error.to_string());
    if let Some(hint) = error.hint_text() {
        let _ = write!(text, " ({hint})");
    }
    text
}

#[cfg(test)]
mod tests;

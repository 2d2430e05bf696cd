//! The shared journal: a schema `lifeboat` in a PostgreSQL database that any number of nodes use.
//!
//! One connection a process, made when it is needed and again after it was lost. What may be repeated (reads, and writes that do the same twice) is
//! sent again once when a connection that had been idle turns out to be gone; a claim never is: one whose answer was lost belongs to nobody
//! and is found broken. Leases are measured by the database's clock alone, so that no node's clock matters.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::TimeDelta;

use crate::daemon::journal::database::{Database, Purpose, Row, Statement, Value};
use crate::daemon::journal::sqlite::newer;
use crate::error::{Error, Kind, Result};
use crate::event::Cancel;
use crate::source::postgres::client::{Connection, Mode, sqlstate};
use crate::source::postgres::conninfo::Settings;

/// Migrations in order; the first has number 1. The table `migrations` holds those that were applied.
const MIGRATIONS: [&str; 1] = [include_str!("postgres_1.sql")];

/// Held while tables are brought up to date (any number that nothing else in the database uses: "lifeboat" in ASCII).
const MIGRATION_LOCK: i64 = 0x6c69_6665_626f_6174;

/// How long an answer may take. All statements here take milliseconds.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);

/// How long it may take to connect: whoever waits holds up a run's heartbeat.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// After a connection could not be made, nobody tries again for so long.
const PAUSE: Duration = Duration::from_secs(1);

/// So often what a deadlock with another node undid is done again.
const ROLLED_BACK_TRIES: u32 = 3;

/// A connection that was idle for so long is tried before something is sent that must not be repeated.
const IDLE: Duration = Duration::from_secs(2);

/// A database to keep the journal in.
pub(super) struct Postgres {
    settings: Settings,
    /// For how long others could not be heard of after an outage: see [`Database::has_settled`].
    grace: Duration,
    session: Mutex<Session>,
}

#[derive(Default)]
struct Session {
    connection: Option<Connection>,
    used: Option<Instant>,
    /// When the last attempt to connect failed.
    failed: Option<Instant>,
    /// When the present connection was made after an outage that this process saw.
    returned: Option<Instant>,
}

impl Postgres {
    /// Connects and brings the tables up to date. `lease`: of runs.
    ///
    /// # Errors
    /// `Usage` when the login or a privilege is not as it must be, `Unavailable`, `Failed` when the tables are of a later version.
    pub(super) fn open(settings: Settings, lease: TimeDelta) -> Result<Self> {
        let mut settings = settings;
        settings.timeout = ANSWER_LIMIT;
        settings.connect_timeout = settings.connect_timeout.min(CONNECT_LIMIT);
        let grace = lease.to_std().unwrap_or_default() / 2;
        let journal = Self { settings, grace, session: Mutex::default() };
        journal.migrate()?;
        Ok(journal)
    }

    fn lock(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn migrate(&self) -> Result<()> {
        let mut session = self.lock();
        let place = self.place();
        let connection = self.connected(&mut session).map_err(|error| self.within("open", error))?;
        let mut apply = || -> Result<()> {
            connection.execute(&format!("BEGIN; SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"))?;
            let known = connection.value("SELECT to_regclass('lifeboat.migrations') IS NOT NULL")?;
            let found = if known.as_deref() == Some("t") {
                let found = connection.value("SELECT coalesce(max(version), 0) FROM lifeboat.migrations")?;
                found.and_then(|text| text.parse::<usize>().ok()).unwrap_or(0)
            } else {
                0
            };
            if found > MIGRATIONS.len() {
                return Err(newer(&place, i64::try_from(found).unwrap_or(i64::MAX)));
            }
            for (step, script) in MIGRATIONS.iter().enumerate().skip(found) {
                connection.execute(script)?;
                let (version, program) = ((step + 1).to_string(), env!("CARGO_PKG_VERSION"));
                let note = "INSERT INTO lifeboat.migrations (version, applied, program) VALUES ($1, now(), $2)";
                connection.query_with(note, &[Some(&version), Some(program)])?;
            }
            connection.execute("COMMIT")
        };
        let applied = apply();
        if applied.is_err() {
            // The transaction ends with its connection.
            session.connection = None;
        }
        applied.map_err(|error| self.within("bring up to date", error))
    }

    /// The present connection, or a new one.
    fn connected<'a>(&self, session: &'a mut Session) -> Result<&'a mut Connection> {
        if session.connection.is_none() {
            if let Some(failed) = session.failed.filter(|failed| failed.elapsed() < PAUSE) {
                return Err(Error::new(Kind::Unavailable, format!("connect to PostgreSQL at {}", self.settings))
                    .because(format!("it could not be reached {} ms ago", failed.elapsed().as_millis())));
            }
            let made = Connection::connect(&self.settings, Mode::Sql { database: None }, &Cancel::default()).and_then(|mut made| {
                // A node that is paused in a statement must not hold up the others; and no statement here is worth compiling, which takes 0.2 s.
                made.execute("SET search_path = lifeboat, pg_catalog; SET jit = off; SET lock_timeout = '10s'; SET idle_in_transaction_session_timeout = '15s'; SET synchronous_commit = on")?;
                Ok(made)
            });
            let made = made.inspect_err(|_| session.failed = Some(Instant::now()))?;
            if session.failed.take().is_some() || session.used.is_some() {
                session.returned = Some(Instant::now());
            }
            session.connection = Some(made);
        }
        session.used = Some(Instant::now());
        session.connection.as_mut().ok_or_else(|| Error::new(Kind::Bug, "a connection that was just made is gone"))
    }

    fn within(&self, operation: &str, error: Error) -> Error {
        let message = format!("{operation} the journal {}", self.place());
        let state = sqlstate(&error).map(str::to_owned);
        let kind = match state.as_deref() {
            Some("23505") => Kind::AlreadyExists,
            // A lock or a transaction that waited too long, a standby that is being promoted.
            Some("55P03" | "25P03" | "40001" | "40P01" | "25006") => Kind::Unavailable,
            _ => error.kind(),
        };
        let error = Error::new(kind, message).because(error);
        match state.as_deref() {
            Some("42501") => {
                error.hint("the journal's role must own the schema lifeboat, or be allowed to create it (GRANT CREATE ON DATABASE …)")
            }
            Some("25006") => error.hint("the server is read-only: it is a standby; name the primary in the url of [journal]"),
            Some("XX001" | "XX002") => {
                error.hint("PostgreSQL found damage: restore that database; what the repositories hold is not touched")
            }
            _ => error,
        }
    }

    fn send(&self, session: &mut Session, statements: &[Statement]) -> Result<Vec<Row>> {
        let connection = self.connected(session)?;
        let outcome = match statements {
            [statement] => answer(connection, statement),
            statements => all(connection, statements),
        };
        if outcome.as_ref().is_err_and(|error| sqlstate(error).is_none_or(|state| state.starts_with("57P") || state == "25P03")) {
            // Not an answer of the server, or its last one.
            session.connection = None;
        }
        outcome
    }
}

fn all(connection: &mut Connection, statements: &[Statement]) -> Result<Vec<Row>> {
    connection.execute("BEGIN")?;
    let mut rows = Vec::new();
    for statement in statements {
        match answer(connection, statement) {
            Ok(found) => rows = found,
            Err(error) => {
                // A connection that is gone has rolled back by itself.
                let _ = connection.execute("ROLLBACK");
                return Err(error);
            }
        }
    }
    connection.execute("COMMIT")?;
    Ok(rows)
}

fn answer(connection: &mut Connection, statement: &Statement) -> Result<Vec<Row>> {
    let values: Vec<Option<String>> = statement
        .values
        .iter()
        .map(|value| match value {
            Value::Null => None,
            Value::Int(number) => Some(number.to_string()),
            // PostgreSQL's text holds no NUL.
            Value::Text(text) => Some(text.replace('\0', "\u{fffd}")),
        })
        .collect();
    let values: Vec<Option<&str>> = values.iter().map(Option::as_deref).collect();
    let rows = connection.query_with(&statement.sql, &values)?;
    let read = |column: Option<&str>| column.map_or(Value::Null, Value::from);
    Ok(rows.iter().map(|row| Row((0..row.len()).map(|column| read(row.get(column))).collect())).collect())
}

impl Database for Postgres {
    fn run(&self, purpose: Purpose, statements: &[Statement]) -> Result<Vec<Row>> {
        let mut session = self.lock();
        let idle = session.used.is_none_or(|used| used.elapsed() > IDLE);
        if purpose == Purpose::WriteOnce && idle && session.connection.is_some() {
            // A connection that is gone is noticed here, where nothing was asked for yet.
            let _ = self.send(&mut session, &[Statement::new("SELECT 1", Vec::new())]);
        }
        let had = session.connection.is_some();
        let mut outcome = self.send(&mut session, statements);
        if had && purpose != Purpose::WriteOnce && session.connection.is_none() {
            outcome = self.send(&mut session, statements);
        }
        for _ in 0..ROLLED_BACK_TRIES {
            // The server has undone all of it, so that others can go on: nothing can happen twice.
            if !outcome.as_ref().is_err_and(|error| matches!(sqlstate(error), Some("40P01" | "40001"))) {
                break;
            }
            outcome = self.send(&mut session, statements);
        }
        outcome.map_err(|error| self.within(purpose.word(), error))
    }

    fn clock(&self, _now_ms: i64) -> String {
        "floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint".to_owned()
    }

    fn before_fence(&self) -> Option<Statement> {
        None
    }

    fn fence(&self) -> &'static str {
        "nextval('fence')"
    }

    fn slot_conflicts(&self) -> &'static [&'static str] {
        // Only one can be named, and no other one is looked at before it.
        &["plan, job, scheduled_ms"]
    }

    fn each(&self) -> &'static str {
        "json_array_elements(CAST($1 AS json)) AS element (value)"
    }

    fn greatest(&self) -> &'static str {
        "greatest"
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn lease_is_over(&self) -> &'static str {
        // Nobody could renew while the server was down: what ran out then gets a moment after its start.
        "(CASE WHEN lease_until_ms < floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint
            AND pg_postmaster_start_time() < clock_timestamp() - interval '10 seconds' THEN 1 ELSE 0 END)"
    }

    fn has_settled(&self) -> bool {
        self.lock().returned.is_none_or(|returned| returned.elapsed() >= self.grace)
    }

    fn place(&self) -> String {
        format!("in PostgreSQL at {}", self.settings)
    }

    #[cfg(test)]
    fn pragma(&self, _name: &str, _value: i64) {}
}

//! The embedded journal: one SQLite file in the state folder, for one machine.
//!
//! Durable in the order of calls (WAL, `synchronous = FULL`). Migrations are numbered from 1 and never edited once released; a frozen file
//! of each version is in `tests/frozen`.

use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use rusqlite::config::DbConfig;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags, TransactionBehavior, params, params_from_iter};

use crate::daemon::journal::database::{Database, Purpose, Row, Statement, Value};
use crate::daemon::owner;
use crate::error::{Error, IoContext, Kind, Result};

/// Name of the file below the state folder.
pub const FILE: &str = "journal.sqlite";

/// How long a writer waits for another process's transaction. All transactions here take milliseconds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(15);

/// Migrations in order; the first has number 1. `PRAGMA user_version` holds the last one applied.
const MIGRATIONS: [&str; 3] = [include_str!("sqlite_1.sql"), include_str!("sqlite_2.sql"), include_str!("sqlite_3.sql")];

/// An open file.
pub(super) struct Sqlite {
    path: PathBuf,
    /// Device and inode.
    file: (u64, u64),
    connection: Mutex<Connection>,
}

impl Sqlite {
    /// Opens the journal of a state folder, making both when missing, and brings its tables up to date.
    pub(super) fn open(state: &Path, now: DateTime<Utc>) -> Result<Self> {
        crate::daemon::private_folder(state)?;
        let path = state.join(FILE);
        let is_new = std::fs::metadata(&path).map_or(true, |about| about.len() == 0);
        if is_new && owner::known_place(state).is_some() {
            tracing::warn!(
                journal = %path.display(),
                "the journal is gone, though runs were recorded in this state folder before: a new one is begun. \
                 `lifeboat run rebuild` brings its history back from the repositories"
            );
        }
        // SQLite gives its side files the mode of the main one, so making that first is enough.
        std::fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .io_context(|| format!("open the journal {}", path.display()))?;
        let connect = || -> rusqlite::Result<Connection> {
            let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let connection = Connection::open_with_flags(&path, flags)?;
            connection.busy_timeout(BUSY_TIMEOUT)?;
            connection.pragma_update(None, "journal_mode", "wal")?;
            connection.pragma_update(None, "synchronous", "full")?;
            connection.pragma_update(None, "foreign_keys", true)?;
            // Else SQLite compiles a kept statement anew for each value that is bound, to look for a better plan.
            connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
            Ok(connection)
        };
        let mut connection = connect().map_err(|error| failure("open", &path, error))?;
        migrate(&mut connection, &path, now)?;
        let file = std::fs::metadata(&path)
            .map(|about| (about.dev(), about.ino()))
            .io_context(|| format!("look at the journal {}", path.display()))?;
        Ok(Self { path, file, connection: Mutex::new(connection) })
    }

    /// Whoever has a file open that was removed would write to nobody: others begin a second journal beside it.
    fn is_there(&self) -> Result<()> {
        if std::fs::metadata(&self.path).is_ok_and(|about| (about.dev(), about.ino()) == self.file) {
            return Ok(());
        }
        Err(Error::new(
            Kind::Failed,
            format!("use the journal {}: it was removed or replaced while this program had it open", self.path.display()),
        )
        .hint("put it back, or stop the daemon, run `lifeboat run rebuild` and start it again"))
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn migrate(connection: &mut Connection, path: &Path, now: DateTime<Utc>) -> Result<()> {
    let version = |connection: &Connection| connection.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0));
    let known = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
    let found = version(connection).map_err(|error| failure("read", path, error))?;
    if found == known {
        return Ok(());
    }
    if found > known {
        return Err(newer(&path.display().to_string(), found));
    }
    let mut apply = || -> rusqlite::Result<()> {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        // Another process may have been quicker.
        let found = version(&transaction)?;
        for number in found..known {
            let step = usize::try_from(number).unwrap_or(usize::MAX);
            if let Some(script) = MIGRATIONS.get(step) {
                transaction.execute_batch(script)?;
                transaction.execute(
                    "INSERT INTO migrations (version, applied_ms, program) VALUES (?1, ?2, ?3)",
                    params![number + 1, now.timestamp_millis(), env!("CARGO_PKG_VERSION")],
                )?;
                transaction.pragma_update(None, "user_version", number + 1)?;
            }
        }
        transaction.commit()
    };
    apply().map_err(|error| failure("bring up to date", path, error))
}

/// A journal of a later program.
pub(super) fn newer(place: &str, found: i64) -> Error {
    Error::new(Kind::Failed, format!("open the journal {place}: version {found} is newer than this program"))
        .hint("use the lifeboat that wrote it, or a later one; or give this one a state folder of its own with --state DIR")
}

impl Database for Sqlite {
    fn run(&self, purpose: Purpose, statements: &[Statement]) -> Result<Vec<Row>> {
        self.is_there()?;
        let mut connection = self.lock();
        let mut run = || -> rusqlite::Result<Vec<Row>> {
            if let [statement] = statements {
                return answer(&connection, statement);
            }
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let mut rows = Vec::new();
            for statement in statements {
                rows = answer(&transaction, statement)?;
            }
            transaction.commit()?;
            Ok(rows)
        };
        run().map_err(|error| failure(purpose.word(), &self.path, error))
    }

    fn clock(&self, now_ms: i64) -> String {
        now_ms.to_string()
    }

    fn before_fence(&self) -> Option<Statement> {
        Some(Statement::new("UPDATE counters SET value = value + 1 WHERE name = 'fence'", Vec::new()))
    }

    fn fence(&self) -> &'static str {
        "(SELECT value FROM counters WHERE name = 'fence')"
    }

    fn slot_conflicts(&self) -> &'static [&'static str] {
        &["id", "plan, job, scheduled_ms"]
    }

    fn each(&self) -> &'static str {
        "json_each($1)"
    }

    fn greatest(&self) -> &'static str {
        "max"
    }

    fn is_shared(&self) -> bool {
        false
    }

    fn lease_is_over(&self) -> &'static str {
        // A lock file tells better who is alive.
        "0"
    }

    fn has_settled(&self) -> bool {
        true
    }

    fn place(&self) -> String {
        self.path.display().to_string()
    }

    #[cfg(test)]
    fn pragma(&self, name: &str, value: i64) {
        self.lock().pragma_update(None, name, value).unwrap();
    }
}

fn answer(connection: &Connection, statement: &Statement) -> rusqlite::Result<Vec<Row>> {
    let mut prepared = connection.prepare_cached(&statement.sql)?;
    let values = statement.values.iter().map(|value| match value {
        Value::Null => rusqlite::types::Value::Null,
        Value::Int(number) => rusqlite::types::Value::Integer(*number),
        Value::Text(text) => rusqlite::types::Value::Text(text.clone()),
    });
    let columns = prepared.column_count();
    let mut found = prepared.query(params_from_iter(values))?;
    let mut rows = Vec::new();
    while let Some(row) = found.next()? {
        let mut read = Vec::with_capacity(columns);
        for column in 0..columns {
            read.push(match row.get_ref(column)? {
                ValueRef::Integer(number) => Value::Int(number),
                ValueRef::Text(text) => Value::Text(String::from_utf8_lossy(text).into_owned()),
                ValueRef::Null | ValueRef::Real(_) | ValueRef::Blob(_) => Value::Null,
            });
        }
        rows.push(Row(read));
    }
    Ok(rows)
}

/// An error of SQLite by what can be done about it.
fn failure(operation: &str, path: &Path, error: rusqlite::Error) -> Error {
    use rusqlite::ErrorCode as Code;
    let path_text = path.display();
    let message = format!("{operation} the journal {path_text}");
    match error.sqlite_error_code() {
        Some(Code::DatabaseCorrupt | Code::NotADatabase) => {
            Error::new(Kind::Failed, format!("{message}: the file is damaged")).because(error).hint(REBUILD)
        }
        code if code == Some(Code::DiskFull) || crate::source::sqlite::no_room_for_index(&error) => Error::new(Kind::NoSpace, message)
            .because(error)
            .hint(format!("free space on the file system of {path_text}, then run the same command again")),
        Some(Code::DatabaseBusy | Code::DatabaseLocked) => Error::new(Kind::Busy, message)
            .because(error)
            .hint("another process holds the journal for unusually long; try again, or find it with `fuser`"),
        Some(Code::ReadOnly | Code::PermissionDenied | Code::CannotOpen) => Error::new(Kind::Failed, message)
            .because(error)
            .hint("the state folder must be writable for this user; choose another with --state DIR"),
        Some(Code::ConstraintViolation) => Error::new(Kind::AlreadyExists, message).because(error),
        _ => Error::new(Kind::Failed, message).because(error),
    }
}

/// What to do about a damaged file.
const REBUILD: &str = "stop the daemon, then run `lifeboat run rebuild`: it keeps this file aside and makes a new one from what the repositories prove; snapshots and reports are not touched";

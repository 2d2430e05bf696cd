//! A row of its own that is written every few seconds: what a recovered server has of it tells what a disaster would have lost, whatever the log
//! says of itself. One row for each plan and source, changed in place; never a transaction that stays open.

use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::error::{Error, Kind, Result};
use crate::event::Cancel;
use crate::source::postgres::client::{Connection, Mode, quote_literal, sqlstate};
use crate::source::postgres::conninfo::Settings;

/// What a role that may not create it has to be given.
const MAKE: &str = "CREATE SCHEMA IF NOT EXISTS lifeboat; \
    CREATE TABLE IF NOT EXISTS lifeboat.lifeboat_canary (name text PRIMARY KEY, written_at timestamptz NOT NULL)";
/// For everything that is asked of the server.
const LIMIT: Duration = Duration::from_secs(5);

/// What came of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// By the server's clock.
    At(DateTime<Utc>),
    /// A standby has what its primary has.
    Standby,
}

/// A session that waits for nothing for long: not for a lock, and not for a synchronous standby.
///
/// # Errors
/// As connecting.
pub fn connect(settings: &Settings, cancel: &Cancel) -> Result<Connection> {
    let mut connection = Connection::connect(settings, Mode::Sql { database: None }, cancel)?;
    connection.set_timeout(LIMIT);
    connection.execute(
        "SET statement_timeout = '3s'; SET lock_timeout = '1s'; SET idle_in_transaction_session_timeout = '3s'; SET synchronous_commit = local; \
         SET search_path = pg_catalog",
    )?;
    Ok(connection)
}

/// Writes the row `name`; where there is no table, makes it, if that is permitted.
///
/// # Errors
/// `Usage` where a privilege is missing, with what to do; as the server says.
pub fn write(connection: &mut Connection, name: &str) -> Result<Written> {
    const LOOK: &str = "SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN 'standby' \
        WHEN pg_catalog.to_regclass('lifeboat.lifeboat_canary') IS NULL THEN 'missing' END";
    // Not by a failed write: that would end a transaction around it.
    match connection.value(LOOK).map_err(refused)?.as_deref() {
        Some("standby") => return Ok(Written::Standby),
        Some(_) => connection.execute(MAKE).map_err(refused)?,
        None => {}
    }
    let upsert = format!(
        "INSERT INTO lifeboat.lifeboat_canary AS c (name, written_at) VALUES ({}, pg_catalog.clock_timestamp()) \
         ON CONFLICT (name) DO UPDATE SET written_at = EXCLUDED.written_at RETURNING {MILLIS}",
        quote_literal(name)
    );
    let millis = connection.value(&upsert).map_err(refused)?.and_then(|text| text.parse().ok()).and_then(DateTime::from_timestamp_millis);
    millis.map(Written::At).ok_or_else(|| Error::new(Kind::Failed, "write the canary row: the server's answer is not understood"))
}

/// The same, taken back at once: nobody sees any of it.
///
/// # Errors
/// As [`write()`].
pub fn try_out(connection: &mut Connection, name: &str) -> Result<Written> {
    connection.execute("BEGIN")?;
    let tried = write(connection, name);
    let taken_back = connection.execute("ROLLBACK");
    let tried = tried?;
    taken_back?;
    Ok(tried)
}

/// Milliseconds since 1970.
const MILLIS: &str = "pg_catalog.floor(EXTRACT(epoch FROM written_at) * 1000)::bigint";

/// Asks a recovered server when the row was written.
#[must_use]
pub fn question(name: &str) -> String {
    format!("SELECT {MILLIS} FROM lifeboat.lifeboat_canary WHERE name = {}", quote_literal(name))
}

fn refused(error: Error) -> Error {
    if sqlstate(&error) != Some("42501") {
        return error.within("write the canary row");
    }
    Error::new(Kind::Usage, "write the canary row: the role may not").because(error).hint(
        "as a superuser, in the database that the url names: CREATE SCHEMA lifeboat; CREATE TABLE lifeboat.lifeboat_canary (name text PRIMARY KEY, \
         written_at timestamptz NOT NULL); GRANT USAGE ON SCHEMA lifeboat TO lifeboat; GRANT SELECT, INSERT, UPDATE ON lifeboat.lifeboat_canary TO lifeboat",
    )
}

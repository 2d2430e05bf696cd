//! Rows of one table and bytes of one large object, in pieces; counted and digested on the way, the same in the source and in what was restored.

use bytes::{Bytes, BytesMut};

use crate::error::{Error, Kind, Result};
use crate::event::Cancel;
use crate::source::postgres::client::{Connection, Mode, quote_identifier};
use crate::source::postgres::conninfo::Settings;
use crate::source::postgres::fingerprint::{Lines, SESSION, in_encoding};
use crate::source::postgres::logical::catalog::qualified;
use crate::source::postgres::logical::contents::Table;

/// Pieces of about this size are passed on.
const PIECE: usize = 64 * 1024;
/// Of a large object.
const LARGE_PIECE: usize = 512 * 1024;
/// For the next row so many times as long as for another answer (an hour) is waited: there may be many dead ones before it. A server that is silent for longer hangs.
const PATIENCE: u32 = 12;

/// What was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Read {
    pub(super) rows: u64,
    pub(super) bytes: u64,
    pub(super) digest: String,
}

/// A session in which values look as in the snapshot.
pub(super) fn open(settings: &Settings, database: &str, cancel: &Cancel) -> Result<Connection> {
    let mut connection = Connection::connect(settings, Mode::Sql { database: Some(database) }, cancel)?;
    connection.execute(SESSION)?;
    connection.execute("SET xmloption = content; SET array_nulls = on; SET idle_session_timeout = 0")?;
    if connection.server_version() >= 170_000 {
        connection.execute("SET transaction_timeout = 0")?;
    }
    Ok(connection)
}

/// ` (a, b)`, or nothing for a table without columns.
pub(super) fn columns(table: &Table) -> String {
    let names: Vec<String> = table.columns.iter().map(|name| quote_identifier(name)).collect();
    if names.is_empty() { String::new() } else { format!(" ({})", names.join(", ")) }
}

/// Reads a table; `take` gets its rows as `COPY` writes them, in this encoding (see [`super::contents::Database::rows_encoding`]).
///
/// # Errors
/// The server's; `Unavailable` when it says nothing for too long.
pub(super) fn table(
    connection: &mut Connection,
    table: &Table,
    encoding: Option<&str>,
    key: &[u8; 32],
    cancel: &Cancel,
    take: &mut dyn FnMut(Bytes) -> Result<()>,
) -> Result<Read> {
    let name = qualified(&table.schema, &table.name);
    let what = match table.extension_condition.as_deref() {
        Some(condition) if !condition.is_empty() => {
            let names: Vec<String> = table.columns.iter().map(|name| quote_identifier(name)).collect();
            format!("(SELECT {} FROM ONLY {name} {condition})", names.join(", "))
        }
        _ => format!("{name}{}", columns(table)),
    };
    let mut lines = Lines::new(key, table.columns.len());
    let mut pending = BytesMut::with_capacity(PIECE);
    let usual = connection.timeout();
    connection.set_timeout(usual * PATIENCE);
    let mut copy = connection.copy_out(&format!("COPY {what} TO STDOUT{}", in_encoding(encoding)))?;
    while let Some(piece) = copy.next()? {
        lines.add(&piece)?;
        if pending.len() + piece.bytes.len() > PIECE && !pending.is_empty() {
            cancel.check()?;
            take(pending.split().freeze())?;
        }
        pending.extend_from_slice(&piece.bytes);
    }
    connection.set_timeout(usual);
    if !pending.is_empty() {
        take(pending.freeze())?;
    }
    let (sum, bytes) = lines.finish(String::new())?;
    Ok(Read { rows: sum.rows, bytes, digest: sum.digest })
}

/// Reads a large object.
pub(super) fn large_object(
    connection: &mut Connection,
    oid: u32,
    key: &[u8; 32],
    cancel: &Cancel,
    take: &mut dyn FnMut(Bytes) -> Result<()>,
) -> Result<Read> {
    let mut hasher = blake3::Hasher::new_keyed(key);
    let mut bytes = 0_u64;
    loop {
        cancel.check()?;
        let text = connection.value(&format!("SELECT lo_get({oid}, {bytes}, {LARGE_PIECE})"))?.unwrap_or_default();
        let piece = text.strip_prefix("\\x").and_then(|text| hex::decode(text).ok());
        let piece = piece.ok_or_else(|| Error::new(Kind::Failed, format!("read large object {oid}: it is not in hex")))?;
        let count = piece.len();
        bytes += count as u64;
        hasher.update(&piece);
        if count > 0 {
            take(piece.into())?;
        }
        if count < LARGE_PIECE {
            return Ok(Read { rows: 1, bytes, digest: hex::encode(hasher.finalize().as_bytes()) });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::source::postgres::conninfo::Host;
    use crate::source::postgres::test_server::TestServer;

    #[test]
    fn a_server_that_hangs_behind_a_socket_ends_the_reading_of_a_table() {
        let server = TestServer::start(&[], "");
        server.sql("CREATE TABLE t(v text)");
        server.sql("INSERT INTO t SELECT repeat('x', 1000) FROM generate_series(1, 20000)");
        let mut settings = Settings::new(Host::Socket(server.folder().to_owned()), 5432, "postgres");
        settings.timeout = Duration::from_millis(100);
        let cancel = Cancel::default();
        let mut sql = open(&settings, "postgres", &cancel).unwrap();
        let table = Table {
            schema: "public".into(),
            name: "t".into(),
            path: String::new(),
            columns: vec!["v".into()],
            extension_condition: None,
            root: None,
            rows: 0,
            bytes: 0,
            digest: String::new(),
        };
        let process = rustix::process::Pid::from_raw(sql.backend_process()).unwrap();
        let signal = |signal| rustix::process::kill_process(process, signal).unwrap();
        let (mut begun, mut bytes) = (None, 0);
        let read = super::table(&mut sql, &table, None, &[0; 32], &cancel, &mut |piece| {
            bytes += piece.len();
            if begun.is_none() {
                signal(rustix::process::Signal::STOP);
                begun = Some(Instant::now());
            }
            Ok(())
        });
        signal(rustix::process::Signal::CONT);
        assert_eq!(read.unwrap_err().kind(), Kind::Unavailable);
        let waited = begun.unwrap().elapsed();
        assert!(
            waited >= settings.timeout * PATIENCE && waited < Duration::from_mins(1) && bytes < 20_000_000,
            "{waited:?}, {bytes} bytes"
        );
    }
}

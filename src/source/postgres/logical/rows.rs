//! Rows of one table and bytes of one large object, in pieces; counted and digested on the way, the same in the source and in what was restored.

use bytes::{Bytes, BytesMut};

use crate::error::{Error, Kind, Result};
use crate::event::Cancel;
use crate::source::fingerprint::{Accumulator, RowEncoder};
use crate::source::postgres::ANSWER_LIMIT;
use crate::source::postgres::client::{Connection, Mode, quote_identifier};
use crate::source::postgres::conninfo::Settings;
use crate::source::postgres::fingerprint::{SESSION, encode};
use crate::source::postgres::logical::catalog::qualified;
use crate::source::postgres::logical::contents::Table;

/// Pieces of about this size are passed on.
const PIECE: usize = 64 * 1024;
/// Of a large object.
const LARGE_PIECE: usize = 512 * 1024;

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
    // Bytes that are in no encoding stay as they are.
    connection.execute(
        "SELECT set_config('client_encoding', CASE getdatabaseencoding() WHEN 'SQL_ASCII' THEN 'SQL_ASCII' ELSE 'UTF8' END, false)",
    )?;
    connection.execute("SET xmloption = content; SET idle_session_timeout = 0")?;
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

/// Reads a table; `take` gets its rows as `COPY` writes them.
pub(super) fn table(
    connection: &mut Connection,
    table: &Table,
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
    let (mut sum, mut encoder, mut scratch, mut bytes) = (Accumulator::new(key), RowEncoder::default(), Vec::new(), 0);
    let mut pending = BytesMut::with_capacity(PIECE);
    // The first row of a large table may come late.
    let patience = connection.timeout();
    connection.set_timeout(Some(ANSWER_LIMIT));
    let mut copy = connection.copy_out(&format!("COPY {what} TO STDOUT"))?;
    while let Some(line) = copy.next()? {
        bytes += line.len() as u64;
        encode(&line, table.columns.len(), &mut encoder, &mut scratch)?;
        sum.add(&encoder);
        if pending.len() + line.len() > PIECE && !pending.is_empty() {
            cancel.check()?;
            take(pending.split().freeze())?;
        }
        pending.extend_from_slice(&line);
    }
    connection.set_timeout(patience);
    if !pending.is_empty() {
        take(pending.freeze())?;
    }
    let sum = sum.finish("");
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

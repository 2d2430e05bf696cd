//! Fingerprints of a private copy: of every table, and of what is not in a table.
//!
//! # What is digested (part of `docs/format.md`)
//!
//! A table's rows are encoded as `source::fingerprint` says. For a table with a rowid that can be named (`rowid`, `_rowid_` or `oid`,
//! the first of these that is not a column), the rowid comes first, as an integer; then every column that is stored, in the order of
//! the table's declaration (so generated columns that are `STORED`, not those that are `VIRTUAL`: they follow from the others and may need
//! functions of the application). Values are as stored, text as UTF-8 bytes (a database in UTF-16 is converted by SQLite). Every table that has pages
//! of its own is covered, so also the shadow tables of virtual tables, `sqlite_sequence` and `sqlite_stat1`; virtual tables
//! themselves and views have no content of their own.
//!
//! Beside them stand three pseudo tables:
//!
//! | name                       | rows                 | digested                                                                   |
//! |----------------------------|----------------------|----------------------------------------------------------------------------|
//! | `(header)`                 | the count of *pages* | one row: page size, page count, encoding number, user version, application id |
//! | `(schema)`                 | schema objects       | type, name, tbl_name, sql of each row of `sqlite_schema`                   |
//! | `(foreign-key-violations)` | violations           | the four columns of each row of `PRAGMA foreign_key_check`                 |
//!
//! A real table whose name begins with `(` or `"` is kept under its quoted name, so no table can pass for a pseudo table.

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row};

use crate::source::TableFingerprint;
use crate::source::fingerprint::{Accumulator, RowEncoder};
use crate::source::sqlite::open::{Header, open_copy};

/// Pseudo tables.
pub const HEADER: &str = "(header)";
pub const SCHEMA: &str = "(schema)";
pub const VIOLATIONS: &str = "(foreign-key-violations)";

/// The most threads that read one copy.
const MOST_READERS: usize = 4;
/// Tables whose rowids span less than this are not worth splitting.
const SPLIT_SPAN: i128 = 20_000;
/// Virtual-machine steps between two looks at the stop signal.
const STEPS_PER_LOOK: i32 = 20_000;

/// Asks a long statement to stop: true means stop.
pub type Stop = Arc<dyn Fn() -> bool + Send + Sync>;

/// Lets a connection keep up to 48 MiB of pages: checks jump between the trees of a database, while a scan reads each page once.
pub fn widen_cache(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch("PRAGMA cache_size = -49152")
}

/// One table, or what SQLite said instead.
pub struct TableContent {
    /// As in [`TableFingerprint::table`].
    pub table: String,
    pub content: rusqlite::Result<TableFingerprint>,
}

/// Opens a private copy whose statements end early once `stop` says so.
pub fn open_stoppable(copy: &Path, stop: &Stop) -> rusqlite::Result<Connection> {
    let mut connection = open_copy(copy)?;
    let stop = Arc::clone(stop);
    connection.progress_handler(STEPS_PER_LOOK, Some(move || stop()))?;
    Ok(connection)
}

/// An SQL identifier.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The name under which a table's fingerprint is kept.
fn kept_name(name: &str) -> String {
    if name.starts_with(['(', '"']) { quoted(name) } else { name.to_owned() }
}

struct Table {
    kept: String,
    columns: String,
    from: String,
    rowid: Option<&'static str>,
    values: u32,
}

/// The content of tables, in the order of their names. `wanted`: only those; else all.
///
/// # Errors
/// When the schema cannot be read. What goes wrong with one table is with that table.
pub fn tables(copy: &Path, key: &[u8; 32], wanted: Option<&HashSet<&str>>, stop: &Stop) -> rusqlite::Result<Vec<TableContent>> {
    let connection = open_stoppable(copy, stop)?;
    let mut found: Vec<(String, rusqlite::Result<Table>)> = Vec::new();
    let mut names = connection.prepare("SELECT name FROM sqlite_schema WHERE type = 'table' AND rootpage > 0 ORDER BY name")?;
    let mut rows = names.query([])?;
    while let Some(row) = rows.next()? {
        let name = String::from_utf8_lossy(row.get_ref(0)?.as_bytes().unwrap_or_default()).into_owned();
        let kept = kept_name(&name);
        if wanted.is_none_or(|wanted| wanted.contains(kept.as_str())) {
            found.push((kept, describe(&connection, &name)));
        }
    }
    drop(rows);
    let readers = std::thread::available_parallelism().map_or(1, usize::from).min(MOST_READERS);
    let mut parts = Vec::new();
    for (index, (_, table)) in found.iter().enumerate() {
        if let Ok(table) = table {
            parts.extend(split(&connection, table, readers * 2).into_iter().map(|range| (index, range)));
        }
    }
    let sums: Vec<Mutex<Option<rusqlite::Result<Accumulator>>>> = parts.iter().map(|_| Mutex::new(None)).collect();
    let next = AtomicUsize::new(0);
    let work = || {
        let connection = open_stoppable(copy, stop);
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(((index, range), slot)) = parts.get(at).zip(sums.get(at)) else { return };
            let sum = match (&connection, &found[*index].1) {
                (Ok(connection), Ok(table)) => sum_part(connection, table, *range, key),
                _ => Err(rusqlite::Error::InvalidQuery),
            };
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(sum);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..readers.min(parts.len()) {
            scope.spawn(work);
        }
        work();
    });
    let mut totals: Vec<rusqlite::Result<Accumulator>> = found.iter().map(|_| Ok(Accumulator::new(key))).collect();
    for ((index, _), slot) in parts.iter().zip(sums) {
        let sum = slot.into_inner().unwrap_or_else(PoisonError::into_inner).unwrap_or(Err(rusqlite::Error::InvalidQuery));
        match (&mut totals[*index], sum) {
            (Ok(total), Ok(sum)) => total.merge(&sum),
            (total @ Ok(_), Err(error)) => *total = Err(error),
            (Err(_), _) => {}
        }
    }
    let finish = |((kept, table), total): ((String, rusqlite::Result<Table>), rusqlite::Result<Accumulator>)| {
        let content = table.and(total).map(|total| total.finish(kept.clone()));
        TableContent { table: kept, content }
    };
    Ok(found.into_iter().zip(totals).map(finish).collect())
}

/// Reads how a table is to be selected.
fn describe(connection: &Connection, name: &str) -> rusqlite::Result<Table> {
    let mut all = Vec::new();
    let mut stored = Vec::new();
    let mut columns = connection.prepare("SELECT name, hidden FROM pragma_table_xinfo(?1)")?;
    let mut rows = columns.query([name])?;
    while let Some(row) = rows.next()? {
        let column: String = row.get(0)?;
        // 0: ordinary, 2: generated and virtual, 3: generated and stored.
        if matches!(row.get(1)?, 0 | 3) {
            stored.push(quoted(&column));
        }
        all.push(column.to_ascii_lowercase());
    }
    drop(rows);
    let without_rowid: bool =
        connection.query_row("SELECT wr FROM pragma_table_list(?1) WHERE schema = 'main'", [name], |row| row.get(0)).unwrap_or(false);
    let rowid = ["rowid", "_rowid_", "oid"].into_iter().find(|alias| !without_rowid && all.iter().all(|column| column != alias));
    let mut selected = stored;
    if let Some(alias) = rowid {
        selected.insert(0, alias.to_owned());
    }
    let values = u32::try_from(selected.len()).unwrap_or(u32::MAX);
    Ok(Table { kept: kept_name(name), columns: selected.join(","), from: format!("main.{}", quoted(name)), rowid, values })
}

/// Ranges of rowids, both ends inclusive, that together are the table; `None` is all of it.
fn split(connection: &Connection, table: &Table, pieces: usize) -> Vec<Option<(i64, i64)>> {
    let Some(rowid) = table.rowid else { return vec![None] };
    // Two statements: SQLite seeks for a lone min() or max() but scans for both together.
    let end =
        |which: &str| connection.query_row(&format!("SELECT {which}({rowid}) FROM {}", table.from), [], |row| row.get::<_, Option<i64>>(0));
    let (Ok(Some(low)), Ok(Some(high))) = (end("min"), end("max")) else { return vec![None] };
    let span = i128::from(high) - i128::from(low) + 1;
    if span < SPLIT_SPAN || pieces < 2 {
        return vec![None];
    }
    let pieces = pieces as i128;
    let at = |piece: i128| i128::from(low) + span * piece / pieces;
    // A rowid outside of the table's own ends exists only in a damaged tree; the outer ranges are open so that it is still counted.
    let bound = |value: i128| i64::try_from(value).unwrap_or(i64::MAX);
    (0..pieces)
        .map(|piece| {
            let first = if piece == 0 { i64::MIN } else { bound(at(piece)) };
            let last = if piece == pieces - 1 { i64::MAX } else { bound(at(piece + 1) - 1) };
            Some((first, last))
        })
        .collect()
}

fn sum_part(connection: &Connection, table: &Table, range: Option<(i64, i64)>, key: &[u8; 32]) -> rusqlite::Result<Accumulator> {
    let mut sum = Accumulator::new(key);
    let mut encoder = RowEncoder::default();
    let only = match (range, table.rowid) {
        (Some((first, last)), Some(rowid)) => format!(" WHERE {rowid} BETWEEN {first} AND {last}"),
        _ => String::new(),
    };
    let sql = format!("SELECT {} FROM {}{only}", table.columns, table.from);
    let mut statement = connection.prepare(&sql)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        encode(row, table.values, &mut encoder)?;
        sum.add(&encoder);
    }
    tracing::trace!(table = %table.kept, rows = sum.rows(), "fingerprint of a part");
    Ok(sum)
}

fn encode(row: &Row<'_>, values: u32, encoder: &mut RowEncoder) -> rusqlite::Result<()> {
    encoder.start(values);
    for index in 0..values as usize {
        match row.get_ref(index)? {
            ValueRef::Null => encoder.null(),
            ValueRef::Integer(value) => encoder.integer(value),
            ValueRef::Real(value) => encoder.real(value),
            ValueRef::Text(value) => encoder.text(value),
            ValueRef::Blob(value) => encoder.bytes(value),
        }
    }
    Ok(())
}

/// The digest of what a statement yields.
fn of_statement(connection: &Connection, sql: &str, key: &[u8; 32], table: &str) -> rusqlite::Result<TableFingerprint> {
    let mut sum = Accumulator::new(key);
    let mut encoder = RowEncoder::default();
    let mut statement = connection.prepare(sql)?;
    let values = u32::try_from(statement.column_count()).unwrap_or(u32::MAX);
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        encode(row, values, &mut encoder)?;
        sum.add(&encoder);
    }
    Ok(sum.finish(table))
}

/// The pseudo table [`SCHEMA`].
pub fn schema(connection: &Connection, key: &[u8; 32]) -> rusqlite::Result<TableFingerprint> {
    of_statement(connection, "SELECT type, name, tbl_name, sql FROM main.sqlite_schema", key, SCHEMA)
}

/// The pseudo table [`VIOLATIONS`].
pub fn violations(connection: &Connection, key: &[u8; 32]) -> rusqlite::Result<TableFingerprint> {
    of_statement(connection, "PRAGMA main.foreign_key_check", key, VIOLATIONS)
}

/// The pseudo table [`HEADER`].
pub fn header(header: &Header, key: &[u8; 32]) -> TableFingerprint {
    let mut encoder = RowEncoder::default();
    encoder.start(5);
    for value in [header.page_size, header.page_count, header.encoding, header.user_version, header.application_id] {
        encoder.integer(i64::from(value));
    }
    let mut sum = Accumulator::new(key);
    sum.add(&encoder);
    TableFingerprint { rows: u64::from(header.page_count), ..sum.finish(HEADER) }
}

/// The findings of `PRAGMA integrity_check` or `quick_check`, none when all is well; at most 100.
pub fn findings(connection: &Connection, pragma: &str) -> rusqlite::Result<Vec<String>> {
    let mut statement = connection.prepare(&format!("PRAGMA main.{pragma}(100)"))?;
    let found = statement.query_map([], |row| Ok(String::from_utf8_lossy(row.get_ref(0)?.as_bytes().unwrap_or_default()).into_owned()))?;
    let found: Vec<String> = found.collect::<rusqlite::Result<_>>()?;
    Ok(if found == ["ok"] { Vec::new() } else { found })
}

/// Whether an error only says that this database needs something of its application that lifeboat does not have (a collation, a function, a
/// module, a tokenizer): then a check was not possible, which is not damage.
pub fn needs_application(error: &rusqlite::Error) -> bool {
    let text = error.to_string();
    ["no such collation sequence", "no such function", "no such module", "no such tokenizer", "unknown tokenizer", "unknown function"]
        .iter()
        .any(|phrase| text.contains(phrase))
}

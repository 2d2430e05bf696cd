//! Proving a restored database: it is opened strictly for reading and never changed.
//!
//! Results go into reports (which every role can read), the journal and logs, so no content of a row leaves this module but numbers: a text
//! or blob that an assertion yields is described by its length, unless it is one that the plan itself names.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::types::ValueRef;

use crate::error::Result;
use crate::source::expect::row_text;
use crate::source::fingerprint;
use crate::source::sqlite::content::{self, Stop, TableContent};
use crate::source::sqlite::open::{Header, beside, open_copy};
use crate::source::{CheckResult, Outcome, ProveRequest, SourceContext, SqlCheck, TableFingerprint};

/// Virtual-machine steps between two looks at the clock: a few milliseconds at most.
const STEPS_PER_LOOK: i32 = 4_000;

/// All checks that `request` asks for, in a fixed order: the file, the engine, content, the plan's SQL.
pub fn prove(database: &Path, request: &ProveRequest, context: &SourceContext) -> Result<Vec<CheckResult>> {
    let cancel = context.cancel.clone();
    let stop: Stop = Arc::new(move || cancel.is_cancelled());
    let known: HashMap<&str, &TableFingerprint> = request.fingerprints.iter().map(|known| (known.table.as_str(), known)).collect();
    let key = &context.fingerprint_key;
    let mut results = vec![check_file(database, &known, key)];
    match content::open_stoppable(database, &stop) {
        Ok(connection) => {
            // Only speed depends on it.
            let _ = content::widen_cache(&connection);
            results.push(check_integrity(&connection));
            context.cancel.check()?;
            results.push(check_foreign_keys(&connection, &known, key));
            results.push(check_schema(&connection, &known, key));
        }
        Err(error) => results.push(result("integrity_check", Outcome::Failed, "ok", format!("open: {error}"))),
    }
    context.cancel.check()?;
    results.extend(check_content(database, request, key, &stop));
    context.cancel.check()?;
    for check in &request.checks {
        results.push(check_sql(database, check, &stop));
        context.cancel.check()?;
    }
    Ok(results)
}

fn result(name: &str, outcome: Outcome, expected: impl Into<String>, actual: impl Into<String>) -> CheckResult {
    CheckResult { name: name.into(), outcome, expected: expected.into(), actual: actual.into() }
}

fn shown(content: &TableFingerprint) -> String {
    format!("{} rows, {}", content.rows, content.digest.get(..16).unwrap_or(&content.digest))
}

/// The header, the length of the file, and that nothing beside it would change what an application sees.
fn check_file(database: &Path, known: &HashMap<&str, &TableFingerprint>, key: &[u8; 32]) -> CheckResult {
    const NAME: &str = "database file";
    let header = match Header::read(database) {
        Ok(header) => header,
        Err(error) => {
            let cause = error.causes().first().map(|cause| format!(": {cause}")).unwrap_or_default();
            return result(NAME, Outcome::Failed, "an SQLite header", format!("{error}{cause}"));
        }
    };
    let length = std::fs::metadata(database).map_or(0, |metadata| metadata.len());
    let wanted = u64::from(header.page_size) * u64::from(header.page_count);
    if length != wanted {
        return result(NAME, Outcome::Failed, format!("{wanted} bytes by its header"), format!("{length} bytes"));
    }
    for suffix in ["-wal", "-journal"] {
        if std::fs::metadata(beside(database, suffix)).is_ok_and(|file| file.len() > 0) {
            return result(NAME, Outcome::Failed, "one file", format!("a {suffix} file beside it"));
        }
    }
    let actual = content::header(&header, key);
    match known.get(content::HEADER) {
        None => result(NAME, Outcome::Passed, "an SQLite header", format!("{} pages of {} bytes", header.page_count, header.page_size)),
        Some(&expected) if *expected == actual => {
            result(NAME, Outcome::Passed, format!("{} pages", expected.rows), format!("{} pages", actual.rows))
        }
        Some(expected) => result(NAME, Outcome::Differs, shown_pages(expected), shown_pages(&actual)),
    }
}

fn shown_pages(header: &TableFingerprint) -> String {
    format!("{} pages, header {}", header.rows, header.digest.get(..16).unwrap_or(&header.digest))
}

fn check_integrity(connection: &Connection) -> CheckResult {
    const NAME: &str = "integrity_check";
    match content::findings(connection, "integrity_check") {
        Ok(found) if found.is_empty() => result(NAME, Outcome::Passed, "ok", "ok"),
        Ok(found) => {
            let first: Vec<&str> = found.iter().take(3).map(String::as_str).collect();
            result(NAME, Outcome::Failed, "ok", format!("{} findings: {}", found.len(), first.join("; ")))
        }
        Err(error) if content::needs_application(&error) => result(NAME, Outcome::Skipped, "ok", format!("not possible here: {error}")),
        Err(error) => result(NAME, Outcome::Failed, "ok", error.to_string()),
    }
}

/// Violations that the source already had are its application's affair; more of them are damage.
fn check_foreign_keys(connection: &Connection, known: &HashMap<&str, &TableFingerprint>, key: &[u8; 32]) -> CheckResult {
    const NAME: &str = "foreign_key_check";
    let expected = known.get(content::VIOLATIONS);
    let wanted = match expected {
        Some(expected) => format!("{} violations, as at the source", expected.rows),
        None => "as at the source, which could not be checked".to_owned(),
    };
    match (content::violations(connection, key), expected) {
        (Ok(actual), Some(&expected)) if actual == *expected => {
            result(NAME, Outcome::Passed, wanted, format!("{} violations", actual.rows))
        }
        (Ok(actual), Some(expected)) => {
            let outcome = if actual.rows > expected.rows { Outcome::Failed } else { Outcome::Differs };
            result(NAME, outcome, wanted, format!("{} violations{}", actual.rows, first_violations(connection)))
        }
        (Ok(actual), None) if actual.rows == 0 => result(NAME, Outcome::Passed, "0 violations", "0 violations"),
        (Ok(actual), None) => result(NAME, Outcome::Skipped, wanted, format!("{} violations{}", actual.rows, first_violations(connection))),
        (Err(error), None) => result(NAME, Outcome::Skipped, wanted, format!("not possible: {error}")),
        (Err(error), Some(_)) if content::needs_application(&error) => {
            result(NAME, Outcome::Skipped, wanted, format!("not possible here: {error}"))
        }
        (Err(error), Some(_)) => result(NAME, Outcome::Failed, wanted, error.to_string()),
    }
}

fn first_violations(connection: &Connection) -> String {
    let read = || -> rusqlite::Result<Vec<String>> {
        let mut statement = connection.prepare("PRAGMA main.foreign_key_check")?;
        let mut rows = statement.query([])?;
        let mut found = Vec::new();
        while let (true, Some(row)) = (found.len() < 3, rows.next()?) {
            let text = |index| row.get_ref(index).map(|value| show_value(value).unwrap_or_else(|| "NULL".into()));
            found.push(format!("{} row {} has no parent in {}", text(0)?, text(1)?, text(2)?));
        }
        Ok(found)
    };
    read().ok().filter(|found| !found.is_empty()).map(|found| format!(": {}", found.join("; "))).unwrap_or_default()
}

fn check_schema(connection: &Connection, known: &HashMap<&str, &TableFingerprint>, key: &[u8; 32]) -> CheckResult {
    const NAME: &str = "schema";
    match (content::schema(connection, key), known.get(content::SCHEMA)) {
        (Err(error), _) => result(NAME, Outcome::Failed, "readable", error.to_string()),
        (Ok(_), None) => result(NAME, Outcome::Skipped, "as at the source", "the snapshot has no fingerprint of its schema"),
        (Ok(actual), Some(&expected)) => {
            let outcome = if actual == *expected { Outcome::Passed } else { Outcome::Differs };
            result(NAME, outcome, shown(expected), shown(&actual))
        }
    }
}

/// Compares tables with their fingerprints.
fn check_content(database: &Path, request: &ProveRequest, key: &[u8; 32], stop: &Stop) -> Vec<CheckResult> {
    if request.compare_percent == 0 {
        // Not asked for, so not missing.
        return Vec::new();
    }
    let chosen = fingerprint::choose(&request.fingerprints, request.compare_percent);
    if chosen.is_empty() {
        if !request.fingerprints.is_empty() {
            // The source had no tables, and the schema says whether it still has none.
            return Vec::new();
        }
        return vec![result("fingerprint sample", Outcome::Skipped, "content as backed up", "the snapshot has no fingerprints")];
    }
    let wanted: HashSet<&str> = chosen.iter().map(|known| known.table.as_str()).collect();
    let mut failure = None;
    let found = content::tables(database, key, Some(&wanted), stop).unwrap_or_else(|error| {
        failure = Some(error.to_string());
        Vec::new()
    });
    let found: HashMap<String, TableContent> = found.into_iter().map(|table| (table.table.clone(), table)).collect();
    chosen
        .into_iter()
        .map(|expected| {
            let name = format!("content of {}", expected.table);
            match (found.get(&expected.table).map(|table| &table.content), &failure) {
                (Some(Ok(actual)), _) => {
                    let outcome = if actual == expected { Outcome::Passed } else { Outcome::Differs };
                    result(&name, outcome, shown(expected), shown(actual))
                }
                (Some(Err(error)), _) => result(&name, Outcome::Failed, shown(expected), error.to_string()),
                (None, Some(failure)) => result(&name, Outcome::Failed, shown(expected), failure.as_str()),
                (None, None) => result(&name, Outcome::Differs, shown(expected), "no such table"),
            }
        })
        .collect()
}

/// One SQL assertion, on a connection of its own.
fn check_sql(database: &Path, check: &SqlCheck, stop: &Stop) -> CheckResult {
    let limit = check.timeout;
    let expected = check.expect.to_string();
    let timed_out = Arc::new(AtomicBool::new(false));
    let outcome = open_limited(database, limit, stop, &timed_out)
        .map_err(|error| error.to_string())
        .and_then(|connection| ask(&connection, &check.sql));
    match outcome {
        Ok(Answer { row, described }) => {
            let outcome = if check.expect.holds_row(&row) { Outcome::Passed } else { Outcome::Failed };
            let named = row_text(&row).filter(|value| check.expect.names(value));
            result(&check.name, outcome, expected, named.unwrap_or(described))
        }
        Err(_) if timed_out.load(Ordering::Relaxed) => {
            result(&check.name, Outcome::Failed, expected, format!("took longer than its limit of {} s", limit.as_secs_f64()))
        }
        Err(message) => result(&check.name, Outcome::Failed, expected, message),
    }
}

/// A connection for the plan's SQL: reads only, and is interrupted at its time limit.
fn open_limited(database: &Path, limit: Duration, stop: &Stop, timed_out: &Arc<AtomicBool>) -> rusqlite::Result<Connection> {
    let mut connection = open_copy(database)?;
    connect_virtual_tables(&connection);
    connection.authorizer(Some(authorize))?;
    let (deadline, stop, timed_out) = (Instant::now() + limit, Arc::clone(stop), Arc::clone(timed_out));
    connection.progress_handler(
        STEPS_PER_LOOK,
        Some(move || {
            if Instant::now() >= deadline {
                timed_out.store(true, Ordering::Relaxed);
            }
            timed_out.load(Ordering::Relaxed) || stop()
        }),
    )?;
    Ok(connection)
}

/// Some virtual tables (R-Tree) prepare statements that write as soon as they are connected, though they may never run. Connecting them
/// here, before the authorizer, makes them usable; the connection cannot write anyway.
fn connect_virtual_tables(connection: &Connection) {
    let connect = || -> rusqlite::Result<()> {
        let mut names = connection.prepare("SELECT name FROM sqlite_schema WHERE type = 'table' AND rootpage = 0")?;
        let mut rows = names.query([])?;
        while let Some(row) = rows.next()? {
            let name: String = row.get(0)?;
            // One whose module is missing fails again, and is then explained, if an assertion asks for it.
            let _ = connection.prepare(&format!("SELECT 1 FROM {}", content::quoted(&name)));
        }
        Ok(())
    };
    // A schema that cannot be read fails the assertion itself with the better message.
    let _ = connect();
}

/// Lets an assertion read and nothing else: no write, no transaction, no attached file, no setting, no extension.
fn authorize(context: AuthContext<'_>) -> Authorization {
    const READING_PRAGMAS: [&str; 22] = [
        "application_id",
        "collation_list",
        "compile_options",
        "data_version",
        "encoding",
        "foreign_key_check",
        "foreign_key_list",
        "freelist_count",
        "function_list",
        "index_info",
        "index_list",
        "index_xinfo",
        "integrity_check",
        "journal_mode",
        "module_list",
        "page_count",
        "page_size",
        "quick_check",
        "schema_version",
        "table_info",
        "table_list",
        "table_xinfo",
    ];
    // With a value these would set something; the others take the name of a table or a count.
    const NO_VALUE: [&str; 6] = ["application_id", "encoding", "journal_mode", "page_size", "schema_version", "user_version"];
    match context.action {
        AuthAction::Select | AuthAction::Read { .. } | AuthAction::Recursive => Authorization::Allow,
        AuthAction::Function { function_name } if !matches!(function_name, "load_extension" | "fts3_tokenizer") => Authorization::Allow,
        AuthAction::Pragma { pragma_name, pragma_value } => {
            let name = pragma_name.to_ascii_lowercase();
            let reads = READING_PRAGMAS.contains(&name.as_str()) || name == "user_version";
            if reads && (pragma_value.is_none() || !NO_VALUE.contains(&name.as_str())) { Authorization::Allow } else { Authorization::Deny }
        }
        _ => Authorization::Deny,
    }
}

/// What an assertion yields.
struct Answer {
    /// To compare. NULL is `None`.
    row: Vec<Option<String>>,
    /// To show.
    described: String,
}

/// Runs one statement that yields one row.
fn ask(connection: &Connection, sql: &str) -> Result<Answer, String> {
    // Preparing knows the plan's SQL and the schema; running it meets rows, which some functions quote when they fail.
    let mut statement = connection.prepare(sql).map_err(|error| error.to_string())?;
    let text = |error: rusqlite::Error| match error {
        rusqlite::Error::SqliteFailure(code, _) => code.to_string(),
        error => error.to_string(),
    };
    let columns = statement.column_count();
    if columns == 0 {
        return Err("the statement yields no value".into());
    }
    let mut rows = statement.query([]).map_err(text)?;
    let Some(row) = rows.next().map_err(text)? else { return Err("the statement yields no row".into()) };
    let refs: Vec<ValueRef<'_>> = (0..columns).map(|index| row.get_ref(index)).collect::<rusqlite::Result<_>>().map_err(text)?;
    let described = refs.iter().map(|value| describe_value(*value)).collect::<Vec<_>>().join("|");
    let values: Vec<Option<String>> = refs.into_iter().map(show_value).collect();
    if rows.next().map_err(text)?.is_some() {
        return Err("the statement yields more than one row".into());
    }
    Ok(Answer { row: values, described })
}

/// A value as it may be kept: numbers as they are, of everything else only its kind and length.
fn describe_value(value: ValueRef<'_>) -> String {
    let length = |bytes: &[u8]| if bytes.len() == 1 { "1 byte".to_owned() } else { format!("{} bytes", bytes.len()) };
    match value {
        ValueRef::Text(text) => format!("text of {}", length(text)),
        ValueRef::Blob(blob) => format!("blob of {}", length(blob)),
        number => show_value(number).unwrap_or_else(|| "NULL".into()),
    }
}

fn show_value(value: ValueRef<'_>) -> Option<String> {
    match value {
        ValueRef::Null => None,
        ValueRef::Integer(value) => Some(value.to_string()),
        // With a point or an exponent, as SQLite shows it.
        ValueRef::Real(value) => Some(format!("{value:?}")),
        ValueRef::Text(value) => Some(String::from_utf8_lossy(value).into_owned()),
        ValueRef::Blob(value) => Some(format!("x'{}'", hex::encode(value))),
    }
}

#[cfg(test)]
mod tests;

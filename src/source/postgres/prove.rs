//! Proving a recovered server: every database and its catalogue, extensions, tables against their fingerprints, heap and indexes
//! by `amcheck`, the plan's SQL, and, once it is stopped, every page's checksum.
//!
//! The server must be a private one that was promoted, because `amcheck` has to be installed where the source has not: that is the only change,
//! made after the fingerprints were compared, and undone. Damage is a result, never an error.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::error::{Error, IoContext, Kind, Result};
use crate::event::Cancel;
use crate::source::expect::row_text;
use crate::source::postgres::client::{Connection, LONG_SILENCE, Mode, Row, quote_identifier, server_error, sqlstate};
use crate::source::postgres::conninfo::{Host, Settings};
use crate::source::postgres::fingerprint::{self, described};
use crate::source::postgres::instance::{Account, Instance, PORT, Stop, Tools};
use crate::source::{CheckResult, Outcome, ProveRequest, SourceContext, SqlCheck, TableFingerprint};

/// Where `amcheck` is installed for the time of the checks.
const OWN_SCHEMA: &str = "lifeboat_amcheck";
/// So many findings are told in full.
const TOLD: usize = 3;
/// How long a clean stop may take: the checkpoint writes everything that was replayed.
const STOP_LIMIT: Duration = Duration::from_mins(10);
/// After its own time limit a server has so long to say so.
const GRACE: Duration = Duration::from_secs(10);

/// How thoroughly heap and indexes are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Amcheck {
    Off,
    /// B-tree indexes: their order, and that every row is in them.
    Indexes,
    /// Tables and TOAST too.
    Full,
}

/// How a server is proven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// A superuser of the cluster; no password is asked.
    pub user: String,
    pub amcheck: Amcheck,
    /// Stops the server cleanly and checks every page, where the cluster has checksums.
    pub pages: bool,
    /// Connections at a time.
    pub threads: usize,
    /// `shared_preload_libraries` of the source that are not on this host ([`Tools::libraries`]).
    pub missing_libraries: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self { user: "postgres".into(), amcheck: Amcheck::Full, pages: true, threads: 2, missing_libraries: Vec::new() }
    }
}

/// How to connect to a private server so that nothing of the source runs.
#[must_use]
pub fn settings(instance: &Instance, user: &str) -> Settings {
    let mut settings = Settings::new(Host::Socket(instance.socket_folder().to_owned()), PORT, user);
    settings.options = Some(instance.neutral_options());
    settings
}

/// All checks that are asked for, in a fixed order; then the server is stopped and its pages are checked. It and its folder are gone afterwards.
///
/// # Errors
/// `Interrupted`; when the server could not be removed.
pub fn prove(
    instance: Instance,
    tools: &Tools,
    account: Account,
    request: &ProveRequest,
    options: &Options,
    context: &SourceContext,
) -> Result<Vec<CheckResult>> {
    let mut results = ask(&instance, request, options, context)?;
    if !options.pages {
        instance.stop(Stop::Immediate)?;
        return Ok(results);
    }
    let data = instance.data().to_owned();
    match instance.stop(Stop::Fast(STOP_LIMIT)) {
        Ok(()) => results.extend(check_pages(tools, account, &data)?),
        Err(error) => results.push(result(PAGES, Outcome::Failed, "a clean shutdown", error.to_string())),
    }
    context.cancel.check()?;
    Ok(results)
}

/// The checks of a running server.
///
/// # Errors
/// `Interrupted`.
pub fn ask(instance: &Instance, request: &ProveRequest, options: &Options, context: &SourceContext) -> Result<Vec<CheckResult>> {
    let cancel = &context.cancel;
    let settings = settings(instance, &options.user);
    let databases = match fingerprint::databases(&settings, cancel) {
        Ok(databases) => databases,
        Err(error) => {
            cancel.check()?;
            return Ok(vec![result("databases", Outcome::Failed, "a server that answers", described(&error))]);
        }
    };
    let mut results = check_databases(&settings, &databases, cancel)?;
    results.extend(check_closed(&settings, cancel)?);
    results.push(check_extensions(&settings, &databases, &options.missing_libraries, cancel)?);
    // Before anything is installed.
    results.extend(check_content(&settings, request, options.threads, context)?);
    for check in &request.checks {
        results.push(check_sql(&settings, check, cancel));
        cancel.check()?;
    }
    if options.amcheck != Amcheck::Off {
        for database in &databases {
            results.push(check_structure(&settings, database, options, cancel)?);
        }
    }
    Ok(results)
}

fn result(name: &str, outcome: Outcome, expected: impl Into<String>, actual: impl Into<String>) -> CheckResult {
    CheckResult { name: name.into(), outcome, expected: expected.into(), actual: actual.into() }
}

fn told(findings: &[String]) -> String {
    let more = findings.len().saturating_sub(TOLD);
    let first = findings.iter().take(TOLD).cloned().collect::<Vec<_>>().join("; ");
    if more == 0 { first } else { format!("{first}; and {more} more") }
}

fn connect(settings: &Settings, database: &str, cancel: &Cancel) -> Result<Connection> {
    Connection::connect(settings, Mode::Sql { database: Some(database) }, cancel)
}

/// Every database lets one in, its catalogue can be read, and the files that it names are there.
fn check_databases(settings: &Settings, databases: &[String], cancel: &Cancel) -> Result<Vec<CheckResult>> {
    const LOOK: &str = "SELECT c.oid::pg_catalog.regclass::text AS name, c.relkind IN ('i') AND NOT i.indisvalid AS invalid, \
        c.relpersistence <> 't' AND pg_catalog.pg_relation_filepath(c.oid) IS NOT NULL \
        AND (pg_catalog.pg_stat_file(pg_catalog.pg_relation_filepath(c.oid), true)).size IS NULL AS missing \
        FROM pg_catalog.pg_class c LEFT JOIN pg_catalog.pg_index i ON i.indexrelid = c.oid";
    const READ: &str = "SELECT (SELECT count(*) FROM pg_catalog.pg_attribute), (SELECT count(*) FROM pg_catalog.pg_proc), \
        (SELECT count(*) FROM pg_catalog.pg_constraint), (SELECT count(*) FROM pg_catalog.pg_type), (SELECT count(*) FROM pg_catalog.pg_depend)";
    let (mut relations, mut failed, mut invalid) = (0, Vec::new(), Vec::new());
    for database in databases {
        cancel.check()?;
        let look = || -> Result<Vec<Row>> {
            let mut connection = connect(settings, database, cancel)?;
            connection.execute(READ)?;
            connection.query(LOOK)
        };
        match look() {
            Ok(rows) => {
                relations += rows.len();
                let named = |row: &&Row| format!("{database}: {}", row.named("name").unwrap_or("?"));
                failed
                    .extend(rows.iter().filter(|row| row.named("missing") == Some("t")).map(|row| format!("{} has no file", named(&row))));
                invalid.extend(rows.iter().filter(|row| row.named("invalid") == Some("t")).map(|row| named(&row)));
            }
            Err(error) => failed.push(format!("{database}: {}", described(&error))),
        }
    }
    cancel.check()?;
    let expected = format!("{} databases with their files", databases.len());
    let mut actual = format!("{} databases, {relations} relations", databases.len());
    if !invalid.is_empty() {
        // They were at the source: recovery makes none.
        actual = format!("{actual}; indexes that the source had marked invalid: {}", told(&invalid));
    }
    Ok(vec![if failed.is_empty() {
        result("databases", Outcome::Passed, expected, actual)
    } else {
        result("databases", Outcome::Failed, expected, told(&failed))
    }])
}

/// Databases that take no connections are no proof of anything.
fn check_closed(settings: &Settings, cancel: &Cancel) -> Result<Vec<CheckResult>> {
    const OPENS: &str = "a database that can be looked into";
    let closed = match fingerprint::closed_databases(settings, cancel) {
        Ok(closed) => closed,
        Err(error) => {
            cancel.check()?;
            return Ok(vec![result("databases without connections", Outcome::Failed, "a server that answers", described(&error))]);
        }
    };
    let skipped = |name: &String| {
        let why = format!("it takes no connections, so nothing in it was checked; at the source: {}", fingerprint::opening(name));
        result(&format!("database {name}"), Outcome::Skipped, OPENS, why)
    };
    Ok(closed.iter().map(skipped).collect())
}

/// Libraries that functions and the source's configuration name: without them what uses them cannot be checked here.
fn check_extensions(settings: &Settings, databases: &[String], preloaded: &[String], cancel: &Cancel) -> Result<CheckResult> {
    const NAME: &str = "extensions";
    // Only asks for files: nothing is loaded.
    const LOOK: &str = "SELECT DISTINCT p.probin, coalesce(e.extname, '') AS extension FROM pg_catalog.pg_proc p \
        LEFT JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass AND d.objid = p.oid AND d.deptype = 'e' \
        LEFT JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid \
        WHERE p.probin IS NOT NULL AND (pg_catalog.pg_stat_file(\
          replace(CASE WHEN p.probin ~ '/' THEN p.probin ELSE '$libdir/' || p.probin END, '$libdir', \
            (SELECT setting FROM pg_catalog.pg_config WHERE name = 'PKGLIBDIR')) \
          || CASE WHEN p.probin ~ '[.]so$' THEN '' ELSE '.so' END, true)).size IS NULL";
    const INSTALLED: &str = "SELECT extname FROM pg_catalog.pg_extension";
    let (mut installed, mut missing, mut failed) = (BTreeSet::new(), BTreeMap::new(), Vec::new());
    for database in databases {
        cancel.check()?;
        let mut look = || -> Result<()> {
            let mut connection = connect(settings, database, cancel)?;
            installed.extend(connection.query(INSTALLED)?.iter().filter_map(|row| row.get(0).map(str::to_owned)));
            for row in connection.query(LOOK)? {
                let library = row.required("probin")?.to_owned();
                let extension = row.named("extension").filter(|name| !name.is_empty()).map(|name| format!(" of {name}"));
                missing.entry(format!("{library}{}", extension.unwrap_or_default())).or_insert_with(|| database.clone());
            }
            Ok(())
        };
        if let Err(error) = look() {
            failed.push(format!("{database}: {}", described(&error)));
        }
    }
    cancel.check()?;
    let expected = "every library that the source uses";
    if !failed.is_empty() {
        return Ok(result(NAME, Outcome::Failed, expected, told(&failed)));
    }
    let mut lacking: Vec<String> = preloaded.iter().map(|name| format!("{name} (preloaded)")).collect();
    lacking.extend(missing.into_iter().map(|(library, database)| format!("{library} (in {database})")));
    if !lacking.is_empty() {
        return Ok(result(NAME, Outcome::Skipped, expected, format!("not installed on this host: {}", lacking.join(", "))));
    }
    Ok(result(NAME, Outcome::Passed, expected, installed.into_iter().collect::<Vec<_>>().join(", ")))
}

fn shown(content: &TableFingerprint) -> String {
    format!("{} rows, {}", content.rows, content.digest.get(..16).unwrap_or(&content.digest))
}

/// The check of a snapshot without fingerprints.
const SAMPLE: &str = "fingerprint sample";

/// Tables against their fingerprints.
fn check_content(settings: &Settings, request: &ProveRequest, threads: usize, context: &SourceContext) -> Result<Vec<CheckResult>> {
    if request.compare_percent == 0 {
        return Ok(Vec::new());
    }
    let chosen = crate::source::fingerprint::choose(&request.fingerprints, request.compare_percent);
    if chosen.is_empty() {
        // An empty cluster is proven by being empty.
        let tables = fingerprint::tables(settings, &context.cancel)?;
        return Ok(vec![match tables.first() {
            None => result(SAMPLE, Outcome::Passed, "no tables", "no tables"),
            Some(first) => {
                let found = format!("the snapshot has no fingerprints, and there are {} tables, {first} among them", tables.len());
                result(SAMPLE, Outcome::Skipped, "content as backed up", found)
            }
        }]);
    }
    let names: Vec<&str> = chosen.iter().map(|known| known.table.as_str()).collect();
    let found = fingerprint::again(settings, &names, &context.fingerprint_key, threads, &context.cancel)?;
    let judge = |(expected, found): (&TableFingerprint, fingerprint::Again)| {
        let name = format!("content of {}", expected.table);
        match found {
            Ok((actual, _)) if actual == *expected => result(&name, Outcome::Passed, shown(expected), shown(&actual)),
            Ok((actual, _)) => result(&name, Outcome::Differs, shown(expected), shown(&actual)),
            // No such table, schema, database or column.
            Err(error) if matches!(sqlstate(&error), Some("42P01" | "3F000" | "3D000" | "42703")) => {
                result(&name, Outcome::Differs, shown(expected), "no such table")
            }
            Err(error) if lacks_a_library(&error) => result(&name, Outcome::Skipped, shown(expected), described(&error)),
            Err(error) => result(&name, Outcome::Failed, shown(expected), described(&error)),
        }
    };
    Ok(chosen.into_iter().zip(found).map(judge).collect())
}

/// A library that this host does not have, or a function that it does not have.
fn lacks_a_library(error: &Error) -> bool {
    sqlstate(error) == Some("42883") || lacks_an_installed_file(error)
}

/// What belongs to a server's programs is not there (`undefined_file`). The same code is of files of the data too, whose absence is damage: only the words tell, and private servers
/// speak English ([`Instance::neutral_options`]).
fn lacks_an_installed_file(error: &Error) -> bool {
    let ways = ["could not access file ", "could not load library ", "could not open extension control file "];
    server_error(error).is_some_and(|said| said.sqlstate == "58P01" && ways.iter().any(|way| said.message.starts_with(way)))
}

/// One SQL assertion, on a connection of its own that only reads.
fn check_sql(settings: &Settings, check: &SqlCheck, cancel: &Cancel) -> CheckResult {
    let limit = check.timeout;
    let expected = check.expect.to_string();
    let Some(database) = check.database.as_deref() else {
        // An answer of another database would prove nothing.
        let why = "which database to ask is not known: the source's URL, which names it, cannot be read here; give the check a database";
        return result(&check.name, Outcome::Skipped, expected, why);
    };
    let answer = || -> Result<(Vec<Row>, u64)> {
        let mut connection = connect(settings, database, cancel)?;
        connection.set_timeout(limit + GRACE);
        connection.execute(&format!("BEGIN READ ONLY; SET LOCAL statement_timeout = {}", limit.as_millis().max(1)))?;
        connection.query_at_most(&check.sql, 1)
    };
    let failed = |why: String| result(&check.name, Outcome::Failed, expected.clone(), why);
    match answer() {
        Ok((rows, count)) => {
            let ([row], 1) = (rows.as_slice(), count) else {
                return failed(format!("the statement yields {count} rows, not one"));
            };
            if row.is_empty() {
                return failed("the statement yields no value".into());
            }
            let values: Vec<Option<String>> = (0..row.len()).map(|column| row.get(column).map(str::to_owned)).collect();
            let outcome = if check.expect.holds_row(&values) { Outcome::Passed } else { Outcome::Failed };
            let named = row_text(&values).filter(|text| check.expect.names(text));
            let shown = || values.iter().map(|value| shown_value(value.as_deref())).collect::<Vec<_>>().join("|");
            result(&check.name, outcome, expected.clone(), named.unwrap_or_else(shown))
        }
        Err(error) if sqlstate(&error) == Some("57014") => failed(format!("took longer than its limit of {} s", limit.as_secs_f64())),
        // What a statement says when it meets a row may quote the row; before it runs it knows only the plan's SQL and the catalogue.
        Err(error) => match sqlstate(&error) {
            Some(state) if !state.starts_with("42") && !state.starts_with("25") => {
                failed(format!("the server refuses it: SQLSTATE {state}"))
            }
            _ => failed(described(&error)),
        },
    }
}

/// A value as it may be kept: numbers and truth values as they are, of everything else only its length.
fn shown_value(value: Option<&str>) -> String {
    let Some(text) = value else { return "NULL".into() };
    let is_number = !text.is_empty() && text.len() <= 40 && text.bytes().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte));
    if is_number || matches!(text, "t" | "f") {
        return text.to_owned();
    }
    format!("text of {} byte{}", text.len(), if text.len() == 1 { "" } else { "s" })
}

/// `amcheck` on one database.
fn check_structure(settings: &Settings, database: &str, options: &Options, cancel: &Cancel) -> Result<CheckResult> {
    let name = format!("amcheck of {database}");
    let expected = match options.amcheck {
        Amcheck::Full => "sound tables and indexes",
        _ => "sound indexes",
    };
    let installed = connect(settings, database, cancel).and_then(|mut connection| {
        connection.execute("SET default_transaction_read_only = off")?;
        let found = connection.query(
            "SELECT n.nspname FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'amcheck'",
        )?;
        if let Some(row) = found.first() {
            return Ok((row.required("nspname")?.to_owned(), None, connection));
        }
        connection.execute(&format!("CREATE SCHEMA {OWN_SCHEMA}; CREATE EXTENSION amcheck WITH SCHEMA {OWN_SCHEMA}"))?;
        Ok((OWN_SCHEMA.to_owned(), Some(()), connection))
    });
    let (schema, own, mut connection) = match installed {
        Ok(installed) => installed,
        Err(error) => {
            cancel.check()?;
            // Not there, or not for this version: said by these.
            let missing = matches!(sqlstate(&error), Some("0A000" | "22023" | "42704")) || lacks_an_installed_file(&error);
            let outcome = if missing { Outcome::Skipped } else { Outcome::Failed };
            return Ok(result(&name, outcome, expected, format!("amcheck cannot be installed: {}", described(&error))));
        }
    };
    let report = match relations(&mut connection, &schema, options.amcheck) {
        Ok(relations) => look_at_all(settings, database, &relations, options.threads, cancel)?,
        Err(error) => Report { failed: vec![described(&error)], ..Report::default() },
    };
    if own.is_some()
        && let Err(error) = connection.execute(&format!("DROP SCHEMA {OWN_SCHEMA} CASCADE"))
    {
        cancel.check()?;
        return Ok(result(&name, Outcome::Failed, expected, format!("amcheck cannot be removed: {}", described(&error))));
    }
    let checked = format!("{} checked", report.checked);
    Ok(if !report.failed.is_empty() {
        result(&name, Outcome::Failed, expected, told(&report.failed))
    } else if report.skipped.is_empty() {
        result(&name, Outcome::Passed, expected, checked)
    } else {
        result(&name, Outcome::Skipped, expected, format!("{checked}; not possible here: {}", told(&report.skipped)))
    })
}

#[derive(Default)]
struct Report {
    checked: usize,
    failed: Vec<String>,
    skipped: Vec<String>,
}

/// A relation to be looked at.
struct Look {
    name: String,
    query: String,
    /// Every row is a finding; otherwise findings are errors.
    rows_are_findings: bool,
}

/// What is to be looked at, the largest first.
fn relations(connection: &mut Connection, schema: &str, amcheck: Amcheck) -> Result<Vec<Look>> {
    let schema = quote_identifier(schema);
    let rows = connection.query(
        "SELECT c.oid, n.nspname || '.' || c.relname AS name, c.relkind FROM pg_catalog.pg_class c \
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace JOIN pg_catalog.pg_am a ON a.oid = c.relam \
         LEFT JOIN pg_catalog.pg_index i ON i.indexrelid = c.oid \
         WHERE c.relpersistence = 'p' AND (c.relkind = 'i' AND a.amname = 'btree' AND i.indisvalid AND i.indisready \
           OR c.relkind IN ('r', 'm', 't') AND a.amname = 'heap') \
         ORDER BY c.relpages DESC, c.oid",
    )?;
    let mut found = Vec::new();
    for row in &rows {
        let (oid, name) = (row.required("oid")?, row.required("name")?.to_owned());
        if row.required("relkind")? == "i" {
            let query =
                format!("SELECT {schema}.bt_index_check(index => {oid}::pg_catalog.oid::pg_catalog.regclass, heapallindexed => true)");
            found.push(Look { name, query, rows_are_findings: false });
        } else if amcheck == Amcheck::Full {
            let query = format!(
                "SELECT blkno, offnum, msg FROM {schema}.verify_heapam(relation => {oid}::pg_catalog.oid::pg_catalog.regclass, check_toast => true)"
            );
            found.push(Look { name, query, rows_are_findings: true });
        }
    }
    Ok(found)
}

fn look_at_all(settings: &Settings, database: &str, relations: &[Look], threads: usize, cancel: &Cancel) -> Result<Report> {
    let next = AtomicUsize::new(0);
    let report = Mutex::new(Report::default());
    let work = || {
        let mut at = None;
        while let Some(look) = relations.get(next.fetch_add(1, Ordering::Relaxed)) {
            if cancel.is_cancelled() {
                return;
            }
            let name = &look.name;
            let found = look_at(settings, database, look, &mut at, cancel);
            let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
            match found {
                Ok(None) => report.checked += 1,
                Ok(Some(finding)) => report.failed.push(format!("{name}: {finding}")),
                Err(error) if lacks_a_library(&error) => report.skipped.push(format!("{name}: {}", described(&error))),
                Err(error) => {
                    report.failed.push(format!("{name}: {}", described(&error)));
                    at = None;
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, relations.len().max(1)) {
            scope.spawn(work);
        }
    });
    cancel.check()?;
    let mut report = report.into_inner().unwrap_or_else(PoisonError::into_inner);
    report.failed.sort();
    report.skipped.sort();
    Ok(report)
}

/// The first finding in a relation.
fn look_at(settings: &Settings, database: &str, look: &Look, at: &mut Option<Connection>, cancel: &Cancel) -> Result<Option<String>> {
    if at.is_none() {
        let connection = at.insert(connect(settings, database, cancel)?);
        // Checking a large index says nothing for long.
        connection.set_timeout(LONG_SILENCE);
    }
    let Some(connection) = at else { return Ok(None) };
    // A damaged table may yield one for each of its rows.
    let (rows, count) = connection.query_at_most(&look.query, 1)?;
    if !look.rows_are_findings {
        return Ok(None);
    }
    let field = |row: &Row, name: &str| row.named(name).unwrap_or("?").to_owned();
    Ok(rows.first().map(|row| {
        let more = if count > 1 { format!(" (and {} more)", count - 1) } else { String::new() };
        format!("block {}, item {}: {}{more}", field(row, "blkno"), field(row, "offnum"), field(row, "msg"))
    }))
}

const PAGES: &str = "page checksums";

/// Every page of a cluster that was shut down cleanly; `None` where it has no checksums.
///
/// # Errors
/// When the server's own tool cannot be run.
pub fn check_pages(tools: &Tools, account: Account, data: &Path) -> Result<Option<CheckResult>> {
    if !tools.control(data, account)?.checksums {
        return Ok(None);
    }
    let mut command = tools.command("pg_checksums", account)?;
    let output = command.arg("--check").arg("-D").arg(data).output().io_context(|| "run pg_checksums".into())?;
    let (text, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let number = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map_or("?", str::trim).to_owned();
    let expected = "0 bad pages";
    if output.status.success() && number("Bad checksums:") == "0" {
        return Ok(Some(result(
            PAGES,
            Outcome::Passed,
            expected,
            format!("{} pages in {} files", number("Blocks scanned:"), number("Files scanned:")),
        )));
    }
    let place = format!("{}/", data.display());
    let lines: Vec<String> = said
        .lines()
        .map(|line| line.trim_start_matches("pg_checksums: error: ").replace(&place, ""))
        .filter(|line| !line.is_empty())
        .collect();
    if lines.is_empty() {
        return Err(Error::new(Kind::Failed, "run pg_checksums: it failed without a word"));
    }
    Ok(Some(result(PAGES, Outcome::Failed, expected, told(&lines))))
}

#[cfg(test)]
mod tests;

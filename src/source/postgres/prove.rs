//! Proving a recovered server: every database and its catalogue, sequences, extensions, tables against their fingerprints, heap and indexes
//! by `amcheck`, the plan's SQL, and, once it is stopped, every page and what leads to it (`pages`).
//!
//! The server must be a private one that was promoted, because `amcheck` has to be installed where the source has not: that is the only change,
//! made after the fingerprints were compared, and undone. Damage is a result, never an error. What the drill's host lacks or does otherwise, and what
//! the source has arranged so that nobody can look ([`not_here`]), is no damage: it is skipped, with what to do about it. So is what could not be looked at because something else
//! ended the server, or had no room for it; a server that falls by itself is a finding ([`until_the_end`]).

mod pages;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::error::{Context, Error, Kind, Result};
use crate::event::Cancel;
use crate::source::expect::row_text;
use crate::source::postgres::client::{Connection, LONG_SILENCE, Mode, Row, is_broken, quote_identifier, server_error, sqlstate};
use crate::source::postgres::conninfo::{Host, Settings};
use crate::source::postgres::fingerprint::{self, TableName, described};
use crate::source::postgres::instance::{self, END_WORD, Fate, Instance, PORT, Stop};
use crate::source::postgres::told as in_full;
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
    /// Stops the server cleanly and checks every page.
    pub pages: bool,
    /// Connections at a time.
    pub threads: usize,
    /// `shared_preload_libraries` of the source that are not on this host ([`libraries`](crate::source::postgres::instance::Tools::libraries)).
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

/// Settings that lead into a database of a private server in which its catalogue can be read: `postgres` or `template1`, neither of which a cluster must have, or
/// else one of those that are known.
///
/// # Errors
/// `Incomplete` where that is no damage; `NotFound`, without a [`sqlstate`], when none of these databases is there; the server's own error.
pub(super) fn enter(instance: &Instance, user: &str, known: &BTreeSet<String>, cancel: &Cancel) -> Result<Settings> {
    const USUAL: [&str; 2] = ["postgres", "template1"];
    let mut settings = settings(instance, user);
    let others = known.iter().map(String::as_str).filter(|name| !USUAL.contains(name));
    let (mut absent, mut closed) = (Vec::new(), None);
    for database in USUAL.into_iter().chain(others) {
        let Err(error) = connect(&settings, database, cancel) else {
            settings.database = Some(database.to_owned());
            return Ok(settings);
        };
        match (sqlstate(&error), not_here(&error)) {
            (_, Some(why)) => closed = closed.or(Some(why)),
            (Some("3D000"), None) => absent.push(database.to_owned()),
            // ALLOW_CONNECTIONS false.
            (Some("55000"), None) => {
                closed = closed.or_else(|| Some(format!("{}; at the source: {}", described(&error), fingerprint::opening(database))));
            }
            _ => return Err(error),
        }
    }
    Err(match closed {
        Some(why) => Error::new(Kind::Incomplete, format!("no database of the recovered server can be looked into: {why}")),
        None => Error::new(Kind::NotFound, format!("the recovered server has no database {}", absent.join(", "))),
    })
}

/// What the host of a private server lacks or has otherwise than the source's, or what the source itself has arranged, in words that say what to do about it. `None`:
/// the error may be damage. By their words, because PostgreSQL has no codes for these; private servers speak English ([`Instance::neutral_options`]).
pub(super) fn not_here(error: &Error) -> Option<String> {
    let said = server_error(error)?;
    let message = said.message.as_str();
    let advice = match said.sqlstate.as_str() {
        "XX000" if message == "database locale is incompatible with operating system" => {
            "install the locale here (locales-all, glibc-langpack-…); at the source SELECT datcollate, datctype FROM pg_database names it"
        }
        "22023" if message.starts_with("could not create locale ") => "install the locale here (locales-all, glibc-langpack-…)",
        "22023" if message.starts_with("could not open collator for locale ") => "use a PostgreSQL here whose ICU has that locale",
        "0A000" if message.starts_with("ICU is not supported") => "use a PostgreSQL here that was built with ICU",
        "0A000" if message.starts_with("compression method ") && message.ends_with(" not supported") => {
            "use a PostgreSQL here that was built with it"
        }
        "XX000" if message.ends_with("has no actual version, but a version was recorded") => {
            "drill on a host whose C library has versions of collations, as the source's has"
        }
        "28000" if message.ends_with("is not permitted to log in") => {
            "no superuser of the cluster may log in: at the source ALTER ROLE … LOGIN for one (pg_hba.conf can keep it out all the same), then back up again"
        }
        "55P03" => {
            "a transaction that was prepared at the source holds it: SELECT * FROM pg_prepared_xacts there, COMMIT PREPARED or ROLLBACK PREPARED, then back up again"
        }
        _ if lacks_an_installed_file(error) => "install it here",
        _ => return None,
    };
    Some(format!("{said}: {advice}"))
}

/// Begins what is told of a check that the server did not live to answer.
const LOST: &str = "the private server, or its session, was lost";
/// The check that it did not end before it was stopped.
const TO_THE_END: &str = "server to the end";

/// Whether the server, or the session, was lost: that it ends, that another of its processes crashed, or that somebody ended the session.
fn is_lost(error: &Error) -> bool {
    server_error(error).map_or_else(|| is_broken(error), |said| matches!(said.sqlstate.as_str(), "57P01" | "57P02" | "57P03"))
}

/// What an error means for a check, and what is told of it. Why a server was lost, [`until_the_end`] tells.
pub(super) fn judged(error: &Error) -> (Outcome, String) {
    if let Some(why) = not_here(error) {
        (Outcome::Skipped, why)
    } else if is_lost(error) {
        (Outcome::Skipped, format!("{LOST}: {}", in_full(error)))
    } else if sqlstate(error).is_some_and(|state| state.starts_with("53")) {
        (Outcome::Skipped, format!("this host, or the private server, has no room for it: {}", described(error)))
    } else {
        (Outcome::Failed, described(error))
    }
}

/// Puts before these results that the server is gone, where it is: a finding where it fell by itself, and skipped where something else ended it.
pub(super) fn until_the_end(instance: &Instance, results: &mut Vec<CheckResult>) {
    let is_lost = results.iter().any(|result| result.actual.contains(LOST));
    if results.iter().any(|result| result.name == TO_THE_END) {
        return;
    }
    let (outcome, actual) = match instance.fate(if is_lost { END_WORD } else { Duration::ZERO }) {
        Fate::Runs => return,
        Fate::Fell(why) => (Outcome::Failed, why),
        Fate::Lost(why) => (Outcome::Skipped, format!("it was ended: {why}; {}", instance::advice())),
    };
    results.insert(0, result(TO_THE_END, outcome, "it runs until it is stopped", actual));
}

/// All checks that are asked for, in a fixed order; then the server is stopped and its pages are checked. It and its folder are gone afterwards. What was found
/// stands, whatever cannot be looked at after it.
///
/// # Errors
/// `Interrupted`.
pub fn prove(instance: Instance, request: &ProveRequest, options: &Options, context: &SourceContext) -> Result<Vec<CheckResult>> {
    const CLEAN: &str = "a clean shutdown";
    let cancel = &context.cancel;
    let mut results = ask(&instance, request, options, context)?;
    if !options.pages {
        if let Err(error) = instance.stop(Stop::Immediate) {
            results.push(result("shutdown", Outcome::Skipped, "a server that ends", described(&error)));
        }
        return Ok(results);
    }
    // Where nobody gets in, that has been told.
    let catalogue = match enter(&instance, &options.user, &known(request), cancel) {
        Ok(settings) => pages::Catalogue::read(&settings, cancel)?,
        Err(_) => pages::Catalogue::unknown(),
    };
    let data = instance.data().to_owned();
    match instance.stop(Stop::Fast(STOP_LIMIT)) {
        Ok(()) => match pages::check(&data, &catalogue, cancel) {
            Ok(found) => results.extend(found),
            Err(error) => {
                cancel.check()?;
                results.push(result(pages::CHECKSUMS, Outcome::Skipped, "0 bad pages", in_full(&error)));
            }
        },
        Err(error) if instance::is_lost(&error) => {
            results.push(result("shutdown", Outcome::Skipped, CLEAN, format!("{}; {}", in_full(&error), instance::advice())));
        }
        Err(error) => results.push(result("shutdown", Outcome::Failed, CLEAN, error.to_string())),
    }
    cancel.check()?;
    Ok(results)
}

/// Databases of which there are fingerprints.
fn known(request: &ProveRequest) -> BTreeSet<String> {
    request.fingerprints.iter().filter_map(|known| TableName::parse(&known.table)).map(|name| name.database).collect()
}

/// The checks of a running server.
///
/// # Errors
/// `Interrupted`.
pub fn ask(instance: &Instance, request: &ProveRequest, options: &Options, context: &SourceContext) -> Result<Vec<CheckResult>> {
    let mut results = ask_all(instance, request, options, context)?;
    until_the_end(instance, &mut results);
    Ok(results)
}

fn ask_all(instance: &Instance, request: &ProveRequest, options: &Options, context: &SourceContext) -> Result<Vec<CheckResult>> {
    let cancel = &context.cancel;
    let known = known(request);
    let entered = enter(instance, &options.user, &known, cancel);
    let (settings, databases) =
        match entered.and_then(|settings| fingerprint::databases(&settings, cancel).map(|databases| (settings, databases))) {
            Ok(entered) => entered,
            Err(error) => {
                cancel.check()?;
                // Those with fingerprints must be there; that the cluster had the usual ones nobody knows.
                let is_absent = known.is_empty() && error.kind() == Kind::NotFound && sqlstate(&error).is_none();
                let (outcome, actual) = match error.kind() {
                    Kind::Incomplete => (Outcome::Skipped, error.to_string()),
                    _ if is_absent => {
                        (Outcome::Skipped, format!("{error}, and which others it has is not known: at the source CREATE DATABASE postgres"))
                    }
                    _ => judged(&error),
                };
                return Ok(vec![result("databases", outcome, "a server that answers", actual)]);
            }
        };
    let mut results = check_databases(&settings, &databases, cancel)?;
    results.extend(check_closed(&settings, cancel)?);
    let (collations, other_collations) = check_collations(&settings, &databases, cancel)?;
    results.push(collations);
    results.push(check_extensions(&settings, &databases, &options.missing_libraries, cancel)?);
    results.push(check_sequences(&settings, &databases, cancel)?);
    // Before anything is installed.
    results.extend(check_content(&settings, request, options.threads, context)?);
    for check in &request.checks {
        results.push(check_sql(&settings, check, cancel));
        cancel.check()?;
    }
    if options.amcheck != Amcheck::Off {
        let none = BTreeSet::new();
        for database in &databases {
            let others = other_collations.get(database).unwrap_or(&none);
            results.push(check_structure(&settings, database, others, options, cancel)?);
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

/// A session in which nothing waits for a lock for long.
pub(super) fn connect(settings: &Settings, database: &str, cancel: &Cancel) -> Result<Connection> {
    let mut connection = Connection::connect(settings, Mode::Sql { database: Some(database) }, cancel)?;
    connection.execute(&fingerprint::lock_limit())?;
    Ok(connection)
}

/// What was found in several places: what failed counts before what was not to be looked at here.
#[derive(Default)]
struct Found {
    failed: Vec<String>,
    skipped: Vec<String>,
}

impl Found {
    fn add(&mut self, place: &str, error: &Error) {
        let (outcome, why) = judged(error);
        if outcome == Outcome::Failed { &mut self.failed } else { &mut self.skipped }.push(format!("{place}: {why}"));
    }

    fn result(&self, name: &str, expected: String, actual: String) -> CheckResult {
        if !self.failed.is_empty() {
            result(name, Outcome::Failed, expected, told(&self.failed))
        } else if self.skipped.is_empty() {
            result(name, Outcome::Passed, expected, actual)
        } else {
            result(name, Outcome::Skipped, expected, told(&self.skipped))
        }
    }
}

/// Every database lets one in, its catalogue can be read, and the files that it names are there.
fn check_databases(settings: &Settings, databases: &[String], cancel: &Cancel) -> Result<Vec<CheckResult>> {
    const LOOK: &str = "SELECT c.oid::pg_catalog.regclass::text AS name, c.relkind IN ('i') AND NOT i.indisvalid AS invalid, \
        c.relpersistence <> 't' AND pg_catalog.pg_relation_filepath(c.oid) IS NOT NULL \
        AND (pg_catalog.pg_stat_file(pg_catalog.pg_relation_filepath(c.oid), true)).size IS NULL AS missing \
        FROM pg_catalog.pg_class c LEFT JOIN pg_catalog.pg_index i ON i.indexrelid = c.oid";
    const READ: &str = "SELECT (SELECT count(*) FROM pg_catalog.pg_attribute), (SELECT count(*) FROM pg_catalog.pg_proc), \
        (SELECT count(*) FROM pg_catalog.pg_constraint), (SELECT count(*) FROM pg_catalog.pg_type), (SELECT count(*) FROM pg_catalog.pg_depend)";
    let (mut relations, mut found, mut invalid) = (0, Found::default(), Vec::new());
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
                let missing = rows.iter().filter(|row| row.named("missing") == Some("t"));
                found.failed.extend(missing.map(|row| format!("{} has no file", named(&row))));
                invalid.extend(rows.iter().filter(|row| row.named("invalid") == Some("t")).map(|row| named(&row)));
            }
            Err(error) => found.add(database, &error),
        }
    }
    cancel.check()?;
    let expected = format!("{} databases with their files", databases.len());
    let mut actual = format!("{} databases, {relations} relations", databases.len());
    if !invalid.is_empty() {
        // They were at the source: recovery makes none.
        actual = format!("{actual}; indexes that the source had marked invalid: {}", told(&invalid));
    }
    Ok(vec![found.result("databases", expected, actual)])
}

/// The name of the check of collations. It passes also where they differ, because that is no matter of the snapshot; whoever reports it warns then, by `actual`, which
/// is not as `expected`.
pub const COLLATIONS: &str = "versions of collations";

/// Collations by which something in a database is sorted and whose version is recorded (14: the database's own by those of the C library, which its catalogue got
/// them with; 100 is its number everywhere), each with the statement that asks for its version here. `C` and `POSIX` have none.
fn collations(connection: &mut Connection) -> Result<Vec<Collation>> {
    const USED: &str = "SELECT c.oid, 'collation ' || n.nspname || '.' || c.collname AS name, c.collversion AS version, c.oid AS asked \
        FROM pg_catalog.pg_collation c JOIN pg_catalog.pg_namespace n ON n.oid = c.collnamespace WHERE c.collversion IS NOT NULL \
        AND (c.oid IN (SELECT pg_catalog.unnest(i.indcollation) FROM pg_catalog.pg_index i) OR EXISTS (SELECT FROM pg_catalog.pg_depend d \
          WHERE d.refclassid = 'pg_catalog.pg_collation'::pg_catalog.regclass AND d.refobjid = c.oid)) ORDER BY c.oid";
    const DEFAULT: &str = "SELECT 100 AS oid, 'its own' AS name, d.datcollversion AS version, d.oid AS asked FROM pg_catalog.pg_database d \
        WHERE d.datname = pg_catalog.current_database() AND d.datcollversion IS NOT NULL";
    const DEFAULT_OF_14: &str = "SELECT 100 AS oid, 'its own' AS name, c.collversion AS version, c.oid AS asked FROM pg_catalog.pg_collation c \
        WHERE c.collprovider = 'c' AND c.collversion IS NOT NULL AND NOT EXISTS (SELECT FROM pg_catalog.pg_database d \
          WHERE d.datname = pg_catalog.current_database() AND d.datcollate ~* '^(C|POSIX)([.]|$)') ORDER BY c.oid LIMIT 1";
    let (default, ask_default) = if connection.server_version() >= 150_000 {
        (DEFAULT, "pg_catalog.pg_database_collation_actual_version")
    } else {
        (DEFAULT_OF_14, "pg_catalog.pg_collation_actual_version")
    };
    let mut found = Vec::new();
    for (query, ask) in [(default, ask_default), (USED, "pg_catalog.pg_collation_actual_version")] {
        for row in connection.query(query)? {
            let oid = row.required("oid")?;
            found.push(Collation {
                oid: oid.parse().context(Kind::Failed, || format!("understand the collation {oid}"))?,
                name: row.required("name")?.to_owned(),
                version: row.required("version")?.to_owned(),
                ask: format!("SELECT {ask}({})", row.required("asked")?),
            });
        }
    }
    Ok(found)
}

struct Collation {
    oid: u32,
    name: String,
    version: String,
    ask: String,
}

/// Whether text is sorted here as at the source, and the collations of which that is not known, by database: an index may be in order there and in none here.
fn check_collations(settings: &Settings, databases: &[String], cancel: &Cancel) -> Result<(CheckResult, BTreeMap<String, BTreeSet<u32>>)> {
    let (mut others, mut differing, mut found) = (BTreeMap::new(), Vec::new(), Found::default());
    for database in databases {
        cancel.check()?;
        let mut look = || -> Result<()> {
            let mut connection = connect(settings, database, cancel)?;
            for collation in collations(&mut connection)? {
                let here = match connection.value(&collation.ask) {
                    Ok(version) if version.as_deref() == Some(collation.version.as_str()) => continue,
                    Ok(version) => version.unwrap_or_else(|| "none".to_owned()),
                    // Not even open here.
                    Err(error) if sqlstate(&error).is_some() && !is_lost(&error) => format!("none ({})", described(&error)),
                    Err(error) => return Err(error),
                };
                differing
                    .push(format!("database {database}, {}: version {} at the source, {here} here", collation.name, collation.version));
                others.entry(database.clone()).or_insert_with(BTreeSet::new).insert(collation.oid);
            }
            Ok(())
        };
        if let Err(error) = look() {
            found.add(database, &error);
        }
    }
    cancel.check()?;
    let expected = "as they were recorded at the source".to_owned();
    if differing.is_empty() {
        return Ok((found.result(COLLATIONS, expected.clone(), expected), others));
    }
    let actual = format!(
        "{}: text may sort otherwise here, and an index on it miss rows; where such a copy is to be used on a host like this one, REINDEX what depends on it, then \
         ALTER DATABASE … REFRESH COLLATION VERSION or ALTER COLLATION … REFRESH VERSION",
        told(&differing)
    );
    if !found.skipped.is_empty() {
        found.skipped.push(actual.clone());
    }
    Ok((found.result(COLLATIONS, expected, actual), others))
}

/// Databases that take no connections are no proof of anything.
fn check_closed(settings: &Settings, cancel: &Cancel) -> Result<Vec<CheckResult>> {
    const OPENS: &str = "a database that can be looked into";
    let closed = match fingerprint::closed_databases(settings, cancel) {
        Ok(closed) => closed,
        Err(error) => {
            cancel.check()?;
            let (outcome, actual) = judged(&error);
            return Ok(vec![result("databases without connections", outcome, "a server that answers", actual)]);
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
    let (mut installed, mut missing, mut found) = (BTreeSet::new(), BTreeMap::new(), Found::default());
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
            found.add(database, &error);
        }
    }
    cancel.check()?;
    let expected = "every library that the source uses";
    let mut lacking: Vec<String> = preloaded.iter().map(|name| format!("{name} (preloaded)")).collect();
    lacking.extend(missing.into_iter().map(|(library, database)| format!("{library} (in {database})")));
    if !lacking.is_empty() {
        found.skipped.insert(0, format!("not installed on this host: {}", lacking.join(", ")));
    }
    Ok(found.result(NAME, expected.to_owned(), installed.into_iter().collect::<Vec<_>>().join(", ")))
}

/// Every sequence answers as it does for `nextval`: its page is there, is one of a sequence, and has its one row.
fn check_sequences(settings: &Settings, databases: &[String], cancel: &Cancel) -> Result<CheckResult> {
    const SEQUENCES: &str = "SELECT c.oid, n.nspname, c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
        WHERE c.relkind = 'S' AND c.relpersistence <> 't' ORDER BY c.oid";
    let (mut count, mut found) = (0, Found::default());
    for database in databases {
        cancel.check()?;
        let mut look = || -> Result<()> {
            let mut connection = connect(settings, database, cancel)?;
            for row in connection.query(SEQUENCES)? {
                cancel.check()?;
                let (oid, schema, sequence) = (row.required("oid")?, row.required("nspname")?, row.required("relname")?);
                let name = format!("{database}: {schema}.{sequence}");
                let question = format!(
                    "SELECT last_value, is_called, pg_catalog.pg_sequence_last_value({oid}::pg_catalog.oid::pg_catalog.regclass) FROM {}.{}",
                    quote_identifier(schema),
                    quote_identifier(sequence)
                );
                count += 1;
                match connection.query_at_most(&question, 1) {
                    Ok((_, 1)) => {}
                    Ok((_, rows)) => found.failed.push(format!("{name}: it has {rows} rows instead of one")),
                    // Not the server's word: the connection is lost.
                    Err(error) if sqlstate(&error).is_none() => return Err(error),
                    Err(error) => found.add(&name, &error),
                }
            }
            Ok(())
        };
        if let Err(error) = look() {
            found.add(database, &error);
        }
    }
    cancel.check()?;
    Ok(found.result("sequences", "every sequence answers".into(), format!("{count} sequences")))
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
            Err(error) => {
                let (outcome, actual) = judged(&error);
                result(&name, outcome, shown(expected), actual)
            }
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
    let answer = || -> Result<Option<(Vec<Row>, u64)>> {
        let mut connection = connect(settings, database, cancel)?;
        connection.set_timeout(limit + GRACE);
        // Before its time is over, so that a lock is told as one.
        let lock_limit = (limit / 2).min(fingerprint::PREPARED_PATIENCE);
        connection.execute(&format!(
            "BEGIN READ ONLY; SET LOCAL statement_timeout = {}; SET LOCAL lock_timeout = {}",
            limit.as_millis().max(1),
            lock_limit.as_millis().max(1)
        ))?;
        if !connection.is_query(&check.sql)? {
            return Ok(None);
        }
        connection.query_at_most(&check.sql, 1).map(Some)
    };
    let failed = |why: String| result(&check.name, Outcome::Failed, expected.clone(), why);
    match answer() {
        Ok(None) => failed("the statement was not run: it is no query, and yields no rows".into()),
        Ok(Some((rows, count))) => {
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
        Err(error) if judged(&error).0 == Outcome::Skipped => result(&check.name, Outcome::Skipped, expected, judged(&error).1),
        Err(error) if server_error(&error).is_some_and(|said| said.message.starts_with("cannot insert multiple commands")) => {
            failed("it was not run: a check is one statement, and these are several".into())
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

/// The source's event triggers that fire in every session, and how to enable them again: before 17 no start-up option stops those that are enabled for replicas or
/// always, and they would run its code wherever something is made or removed.
fn loud_event_triggers(connection: &mut Connection) -> Result<Vec<(String, &'static str)>> {
    if connection.server_version() >= 170_000 {
        return Ok(Vec::new());
    }
    let rows =
        connection.query("SELECT evtname, evtenabled FROM pg_catalog.pg_event_trigger WHERE evtenabled IN ('A', 'R') ORDER BY oid")?;
    let enabled = |row: &Row| if row.named("evtenabled") == Some("A") { "ENABLE ALWAYS" } else { "ENABLE REPLICA" };
    rows.iter().map(|row| Ok((quote_identifier(row.required("evtname")?), enabled(row)))).collect()
}

/// Statements, to be run as one transaction, between which these event triggers do not fire, and which leaves them as they are.
fn silently(statements: &str, loud: &[(String, &'static str)]) -> String {
    let alter = |state: &dyn Fn(&'static str) -> &'static str| -> String {
        let each = loud.iter().map(|(name, enabled)| format!("ALTER EVENT TRIGGER {name} {}; ", state(enabled)));
        each.collect::<Vec<_>>().concat()
    };
    format!("{}{statements}; {}", alter(&|_| "DISABLE"), alter(&|enabled| enabled))
}

/// `amcheck` on one database. `others` are collations of which it is not known that they sort here as at the source.
fn check_structure(settings: &Settings, database: &str, others: &BTreeSet<u32>, options: &Options, cancel: &Cancel) -> Result<CheckResult> {
    let name = format!("amcheck of {database}");
    let expected = match options.amcheck {
        Amcheck::Full => "sound tables and indexes",
        _ => "sound indexes",
    };
    let installed = connect(settings, database, cancel).and_then(|mut connection| {
        connection.execute("SET default_transaction_read_only = off")?;
        let found = connection.query(
            "SELECT n.nspname, e.extversion IS DISTINCT FROM a.default_version AS old FROM pg_catalog.pg_extension e \
             JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace LEFT JOIN pg_catalog.pg_available_extensions a ON a.name = e.extname \
             WHERE e.extname = 'amcheck'",
        )?;
        let loud = loud_event_triggers(&mut connection)?;
        if let Some(row) = found.first() {
            // Of a cluster that was upgraded: an old one has not all functions.
            if row.required("old")? == "t" {
                connection.execute(&silently("ALTER EXTENSION amcheck UPDATE", &loud))?;
            }
            return Ok((row.required("nspname")?.to_owned(), None, connection));
        }
        connection.execute(&silently(&format!("CREATE SCHEMA {OWN_SCHEMA}; CREATE EXTENSION amcheck WITH SCHEMA {OWN_SCHEMA}"), &loud))?;
        Ok((OWN_SCHEMA.to_owned(), Some(loud), connection))
    });
    let (schema, own, mut connection) = match installed {
        Ok(installed) => installed,
        Err(error) => {
            cancel.check()?;
            // Not there, or not for this version: said by these.
            let missing = matches!(sqlstate(&error), Some("0A000" | "22023" | "42704"));
            let (outcome, why) = if missing { (Outcome::Skipped, described(&error)) } else { judged(&error) };
            return Ok(result(&name, outcome, expected, format!("amcheck cannot be installed: {why}")));
        }
    };
    let report = match relations(&mut connection, &schema, options.amcheck) {
        Ok(relations) => look_at_all(settings, database, &relations, others, options.threads, cancel)?,
        Err(error) => {
            let (outcome, why) = judged(&error);
            let (failed, skipped) = if outcome == Outcome::Failed { (vec![why], Vec::new()) } else { (Vec::new(), vec![why]) };
            Report { failed, skipped, ..Report::default() }
        }
    };
    if let Some(loud) = own
        && let Err(error) = connection.execute(&silently(&format!("DROP SCHEMA {OWN_SCHEMA} CASCADE"), &loud))
    {
        cancel.check()?;
        let (outcome, why) = judged(&error);
        // What was found before is not passed over for it.
        if outcome == Outcome::Failed || report.failed.is_empty() {
            return Ok(result(&name, outcome, expected, format!("amcheck cannot be removed: {why}")));
        }
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
    /// Those that an index sorts by.
    collations: Vec<u32>,
}

impl Look {
    /// Whether an error says that the entries of an index are in another order than its collation has here, where that may be another one than at the source. What else
    /// can be wrong with an index does not depend on that.
    fn is_sorted_elsewhere(&self, error: &Error, others: &BTreeSet<u32>) -> bool {
        let is_order = server_error(error).is_some_and(|said| said.sqlstate == "XX002" && said.message.contains("invariant violated"));
        is_order && self.collations.iter().any(|oid| others.contains(oid))
    }
}

/// What is to be looked at, the largest first.
fn relations(connection: &mut Connection, schema: &str, amcheck: Amcheck) -> Result<Vec<Look>> {
    let schema = quote_identifier(schema);
    let rows = connection.query(
        "SELECT c.oid, n.nspname || '.' || c.relname AS name, c.relkind, coalesce(i.indcollation::text, '') AS collations FROM pg_catalog.pg_class c \
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
            let collations = row.required("collations")?.split(' ').filter_map(|oid| oid.parse().ok()).collect();
            found.push(Look { name, query, rows_are_findings: false, collations });
        } else if amcheck == Amcheck::Full {
            let query = format!(
                "SELECT blkno, offnum, msg FROM {schema}.verify_heapam(relation => {oid}::pg_catalog.oid::pg_catalog.regclass, check_toast => true)"
            );
            found.push(Look { name, query, rows_are_findings: true, collations: Vec::new() });
        }
    }
    Ok(found)
}

fn look_at_all(
    settings: &Settings,
    database: &str,
    relations: &[Look],
    others: &BTreeSet<u32>,
    threads: usize,
    cancel: &Cancel,
) -> Result<Report> {
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
                Err(error) if look.is_sorted_elsewhere(&error, others) => {
                    let why = "which may be right at the source, whose collation has another version";
                    report.skipped.push(format!("{name}: {}, {why}", described(&error)));
                }
                Err(error) => {
                    let (outcome, why) = judged(&error);
                    if outcome == Outcome::Failed { &mut report.failed } else { &mut report.skipped }.push(format!("{name}: {why}"));
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

#[cfg(test)]
mod tests;

//! Proof of a logical snapshot: loaded into a new private server, asked, compared row by row, removed.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use crate::error::{Error, IoContext, Kind, Result};
use crate::event::Cancel;
use crate::source::fingerprint::together;
use crate::source::postgres::backup::MAJORS;
use crate::source::postgres::instance::{Account, Instance, Launch, Stop, Tools, is_lost};
use crate::source::postgres::logical::catalog;
use crate::source::postgres::logical::contents::{Contents, Database, Table};
use crate::source::postgres::logical::load::{self, Loaded, Target};
use crate::source::postgres::logical::programs;
use crate::source::postgres::logical::rows;
use crate::source::postgres::logical::snapshot::table_name;
use crate::source::postgres::{apart, prove, told};
use crate::source::{CheckResult, Outcome, ProveRequest, SourceContext};

const START_LIMIT: Duration = Duration::from_mins(5);
/// An empty cluster is made in seconds.
const MAKE_LIMIT: Duration = Duration::from_mins(5);
const LOOK: Duration = Duration::from_millis(20);
/// So many differences are told.
const SERVER: &str = "server";
const LOADED: &str = "everything loaded";

fn result(name: impl Into<String>, outcome: Outcome, expected: impl Into<String>, actual: impl Into<String>) -> CheckResult {
    CheckResult { name: name.into(), outcome, expected: expected.into(), actual: actual.into() }
}

/// A private, empty cluster. The folders are in the run's scratch, which goes with it.
fn make_cluster(tools: &Tools, account: Account, superuser: &str, data: &Path, scratch: &Path, cancel: &Cancel) -> Result<()> {
    fs::DirBuilder::new().mode(0o700).create(data).io_context(|| format!("make folder {}", data.display()))?;
    if account.is_other() {
        chown(data, Some(account.uid), Some(account.gid)).io_context(|| format!("give {} to its user", data.display()))?;
    }
    account.can_reach(data)?;
    let said = scratch.join("initdb");
    let file =
        fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&said).io_context(|| format!("make {}", said.display()))?;
    let mut command = tools.command("initdb", account)?;
    command.args(["--no-sync", "--auth=trust", "--encoding=UTF8", "--locale=C"]).arg(format!("--username={superuser}"));
    command.arg("-D").arg(data).stdout(Stdio::null()).stderr(file);
    let mut child = command.spawn().io_context(|| "run initdb".into())?;
    let until = std::time::Instant::now() + MAKE_LIMIT;
    let status = loop {
        if let Some(status) = child.try_wait().io_context(|| "wait for initdb".into())? {
            break status;
        }
        let stop = cancel.check().err().or_else(|| {
            (std::time::Instant::now() > until).then(|| Error::new(Kind::Failed, "make a private cluster: initdb does not end"))
        });
        if let Some(error) = stop {
            child.kill().and_then(|()| child.wait()).io_context(|| "end initdb".into())?;
            return Err(error);
        }
        std::thread::park_timeout(LOOK);
    };
    if status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&fs::read(&said).unwrap_or_default()).into_owned();
    Err(Error::new(Kind::Failed, format!("make a private cluster: initdb ended with {status}")).saying(Some(text)))
}

/// A server of the source's version, or a newer one.
pub(super) fn server(major: u32, bin_directory: Option<&Path>) -> Result<Tools> {
    let mut first = None;
    for version in major..=*MAJORS.end() {
        for place in bin_directory.map(Some).into_iter().chain([None]) {
            match Tools::find(version, place) {
                Ok(tools) if tools.program("initdb").is_some() => return Ok(tools),
                Ok(_) => {}
                Err(error) => first = first.or(Some(error)),
            }
        }
    }
    Err(first.unwrap_or_else(|| Error::new(Kind::Usage, format!("find initdb of PostgreSQL {major}: not on this host"))))
}

/// See [`crate::source::Source::prove`].
pub(super) fn prove(
    tree: &Path,
    bin_directory: Option<&Path>,
    request: &ProveRequest,
    context: &SourceContext,
    usable: &mut dyn FnMut(),
) -> Result<Vec<CheckResult>> {
    let contents = match Contents::read(tree) {
        Ok(contents) => contents,
        Err(error) if error.kind() == Kind::Damaged => {
            return Ok(vec![result(LOADED, Outcome::Failed, "a manifest", told(&error))]);
        }
        Err(error) => return Err(error),
    };
    // Not the backup's fault, and no proof either.
    let skipped = |error: &Error| Ok(vec![result(SERVER, Outcome::Skipped, "a private server that starts", told(error))]);
    let tools = match server(contents.server_version / 10_000, bin_directory) {
        Ok(tools) => tools,
        Err(error) => return skipped(&error),
    };
    let (data, folder) = (context.scratch.join("cluster"), context.scratch.join("server"));
    let account = Account::choose(&context.scratch)?;
    make_cluster(&tools, account, &contents.superuser, &data, &context.scratch, &context.cancel)?;
    let launch = Launch { tools: &tools, account, data: &data, folder: &folder, settings: &[], preload: &[], limit: START_LIMIT };
    let instance = match Instance::start(&launch, &context.cancel) {
        Err(error) if is_lost(&error) => {
            return Ok(vec![result(SERVER, Outcome::Skipped, "a private server that starts", told_with_hint(&error))]);
        }
        started => started?,
    };
    let results = load(tree, &contents, &instance, bin_directory, context).and_then(|loaded| {
        let loaded = match loaded {
            Ok(loaded) => loaded,
            Err(failed) => return Ok(vec![failed]),
        };
        usable();
        let mut results = vec![count(&contents, &loaded, &instance, &tools)];
        results.extend(ask(&contents, &instance, request, context)?);
        Ok(results)
    });
    // Also when that failed: by dropping it.
    let results = results?;
    instance.stop(Stop::Immediate)?;
    remove(&data)?;
    Ok(results)
}

fn remove(data: &PathBuf) -> Result<()> {
    fs::remove_dir_all(data).io_context(|| format!("remove {}", data.display()))
}

/// Tables and rows that are to be there.
fn numbers(contents: &Contents) -> (usize, u64) {
    let tables = || contents.databases.iter().flat_map(|database| &database.tables);
    (tables().count(), tables().map(|table| table.rows).sum())
}

fn expected(contents: &Contents) -> String {
    let (tables, rows) = numbers(contents);
    format!("{} databases, {tables} tables, {rows} rows", contents.databases.len())
}

/// Everything into the private server, or the check that failed.
fn load(
    tree: &Path,
    contents: &Contents,
    instance: &Instance,
    bin_directory: Option<&Path>,
    context: &SourceContext,
) -> Result<std::result::Result<Loaded, CheckResult>> {
    let mut settings = prove::settings(instance, &contents.superuser);
    // Loading writes. What the server says is read.
    let options = [
        "lc_messages=C",
        "session_preload_libraries=",
        "local_preload_libraries=",
        "statement_timeout=0",
        "log_statement=none",
        "log_min_error_statement=panic",
    ];
    settings.options = Some(options.map(|option| format!("-c {option}")).join(" "));
    match load::load(tree, &Target::new(settings), bin_directory, context) {
        Ok(loaded) => Ok(Ok(loaded)),
        Err(error) if matches!(error.kind(), Kind::Interrupted | Kind::NoSpace) => Err(error),
        Err(error) => {
            let error = instance.explain(error);
            Ok(Err(result(LOADED, failure(&error), expected(contents), told_with_hint(&error))))
        }
    }
}

/// What was loaded against what is to be there.
fn count(contents: &Contents, loaded: &Loaded, instance: &Instance, tools: &Tools) -> CheckResult {
    let expected = expected(contents);
    let there: u64 = loaded.tables.iter().map(|table| table.rows).sum();
    let actual =
        format!("{expected} in PostgreSQL {} (started in {} ms{})", tools.version(), instance.started_in().as_millis(), apart(instance));
    if loaded.lacking.is_empty() && (loaded.tables.len(), there) == numbers(contents) {
        result(LOADED, Outcome::Passed, expected, actual)
    } else if (loaded.tables.len(), there) == numbers(contents) {
        // As in a restore, which is incomplete then: a view over another server is empty, a setting of an extension is not known here.
        result(LOADED, Outcome::Skipped, expected, catalog::told(&loaded.lacking))
    } else {
        result(LOADED, Outcome::Failed, expected, format!("{} tables, {there} rows", loaded.tables.len()))
    }
}

/// The plan's checks, and every row that is to be compared.
fn ask(contents: &Contents, instance: &Instance, request: &ProveRequest, context: &SourceContext) -> Result<Vec<CheckResult>> {
    let questions = ProveRequest { fingerprints: Vec::new(), compare_percent: 0, checks: request.checks.clone() };
    let options =
        prove::Options { user: contents.superuser.clone(), amcheck: prove::Amcheck::Off, pages: false, ..prove::Options::default() };
    let mut results = prove::ask(instance, &questions, &options, context)?;
    if request.compare_percent > 0 {
        let chosen = crate::source::fingerprint::choose(&request.fingerprints, request.compare_percent);
        let chosen: BTreeSet<&str> = chosen.iter().map(|known| known.table.as_str()).collect();
        let settings = prove::settings(instance, &contents.superuser);
        for database in &contents.databases {
            let opened = rows::open(&settings, &database.name, &context.cancel);
            match opened.and_then(|mut sql| compare(&mut sql, database, &chosen, context)) {
                Ok(compared) => results.extend(compared),
                Err(error) => {
                    context.cancel.check()?;
                    let (outcome, actual) = prove::judged(&error);
                    results.push(result(format!("content of {}", database.name), outcome, "as backed up", actual));
                }
            }
        }
        prove::until_the_end(instance, &mut results);
    }
    Ok(results)
}

fn failure(error: &Error) -> Outcome {
    match error.kind() {
        Kind::Differs => Outcome::Differs,
        // Not the backup's fault, and no proof either: programs, or what the server needs, are not on this host.
        Kind::Usage => Outcome::Skipped,
        _ if programs::is_lack(error) || is_lost(error) => Outcome::Skipped,
        _ => Outcome::Failed,
    }
}

fn told_with_hint(error: &Error) -> String {
    let text = told(error);
    error.hint_text().map_or(text.clone(), |hint| format!("{text} ({hint})"))
}

/// What is compared as one: a table; or all partitions whose rows find their partition anew by a hash, which depends on the server, when one of them is chosen.
fn compared<'a>(database: &'a Database, chosen: &BTreeSet<&str>) -> Vec<(String, Vec<&'a Table>)> {
    let is_chosen = |table: &Table| chosen.contains(table_name(&database.name, table).as_str());
    let mut all: Vec<(String, Vec<&Table>)> = Vec::new();
    let mut roots = BTreeSet::new();
    for table in database.tables.iter().filter(|table| is_chosen(table)) {
        let Some(root) = &table.root else {
            all.push((table_name(&database.name, table), vec![table]));
            continue;
        };
        if roots.insert(root) {
            let parts: Vec<&Table> = database.tables.iter().filter(|table| table.root.as_ref() == Some(root)).collect();
            let named = Table { schema: root.0.clone(), name: root.1.clone(), ..table.clone() };
            all.push((table_name(&database.name, &named), parts));
        }
    }
    all
}

/// Rows and large objects against what was read in the source's snapshot.
fn compare(
    sql: &mut crate::source::postgres::client::Connection,
    database: &Database,
    chosen: &BTreeSet<&str>,
    context: &SourceContext,
) -> Result<Vec<CheckResult>> {
    let mut results = Vec::new();
    let shown = |rows: u64, digest: &str| format!("{rows} rows, {}", digest.get(..16).unwrap_or(digest));
    for (name, tables) in compared(database, chosen) {
        context.cancel.check()?;
        let check = format!("content of {name}");
        let sum = |parts: &[(u64, String)]| {
            together(parts.iter().map(|(rows, digest)| (*rows, digest.as_str())))
                .ok_or_else(|| Error::new(Kind::Damaged, format!("{check}: a digest in the backup is none")))
        };
        let (rows, digest) = sum(&tables.iter().map(|table| (table.rows, table.digest.clone())).collect::<Vec<_>>())?;
        let expected = shown(rows, &digest);
        let mut read = |table: &&Table| {
            let encoding = database.rows_encoding.as_deref();
            rows::table(sql, table, encoding, &context.fingerprint_key, &context.cancel, &mut |_| Ok(()))
                .map(|read| (read.rows, read.digest))
        };
        match tables.iter().map(&mut read).collect::<Result<Vec<_>>>() {
            Ok(read) => {
                let read = sum(&read)?;
                let shown = shown(read.0, &read.1);
                let (outcome, actual) = if read == (rows, digest) {
                    (Outcome::Passed, shown)
                } else if read.0 == rows && tables.iter().any(|table| table.columns != tables[0].columns) {
                    (
                        Outcome::Skipped,
                        format!("{shown}: rows went to other partitions, whose columns are in another order; they were only counted"),
                    )
                } else {
                    (Outcome::Differs, shown)
                };
                results.push(result(check, outcome, expected, actual));
            }
            Err(error) => {
                context.cancel.check()?;
                let (outcome, actual) = prove::judged(&error);
                results.push(result(check, outcome, expected, actual));
            }
        }
    }
    if !database.large_objects.is_empty() {
        let mut differing = Vec::new();
        for object in &database.large_objects {
            let read = rows::large_object(sql, object.oid, &context.fingerprint_key, &context.cancel, &mut |_| Ok(()))?;
            if (read.bytes, &read.digest) != (object.bytes, &object.digest) {
                differing.push(object.oid.to_string());
            }
        }
        let expected = format!("{} as backed up", database.large_objects.len());
        let outcome = if differing.is_empty() { Outcome::Passed } else { Outcome::Differs };
        let actual = if differing.is_empty() { expected.clone() } else { format!("{} differ", catalog::told(&differing)) };
        results.push(result(format!("large objects of {}", database.name), outcome, expected, actual));
    }
    Ok(results)
}

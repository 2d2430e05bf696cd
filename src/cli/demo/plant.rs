//! The hands of the demo: damage that it plants, and the comparison it makes without asking the program's own checks.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags};

use crate::cli::App;
use crate::cli::demo::crm::CrmSummary;
use crate::error::{Context, Error, IoContext, Kind, Result};
use crate::event::Silent;
use crate::ops::resolve;
use crate::source::{Finish, Outcome, ProveRequest, SourceContext};

/// What was compared.
pub(super) struct Compared {
    pub tables: u64,
    pub rows: u64,
    pub files: u64,
}

/// Changes one attachment and adds one.
pub(super) fn work_on_attachments(folder: &Path) -> Result<()> {
    let first = files(folder)?.into_keys().next().ok_or_else(|| Error::new(Kind::Bug, "the demo's CRM has no attachments"))?;
    let changed = folder.join(first);
    let mut bytes = fs::read(&changed).io_context(|| format!("read {}", changed.display()))?;
    bytes.extend_from_slice(b"signed by both parties\n");
    fs::write(&changed, bytes).io_context(|| format!("write {}", changed.display()))?;
    let added = folder.join("offer of today.txt");
    fs::write(&added, b"An offer that was written today.\n").io_context(|| format!("write {}", added.display()))
}

/// Copies folders and regular files.
pub(super) fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    crate::daemon::private_folder(to)?;
    for entry in fs::read_dir(from).io_context(|| format!("read {}", from.display()))? {
        let path = entry.io_context(|| format!("read {}", from.display()))?.path();
        let target = to.join(path.file_name().unwrap_or_default());
        if path.is_dir() {
            copy_tree(&path, &target)?;
        } else {
            fs::copy(&path, &target).io_context(|| format!("copy {}", path.display()))?;
        }
    }
    Ok(())
}

/// Flips one bit in the middle of the largest pack.
pub(super) fn flip_a_byte_of_a_pack(repository: &Path) -> Result<String> {
    let packs = files(&repository.join("packs"))?;
    let (name, size) =
        packs.into_iter().max_by_key(|(_, size)| *size).ok_or_else(|| Error::new(Kind::Bug, "the repository has no packs"))?;
    let path = repository.join("packs").join(&name);
    let mut bytes = fs::read(&path).io_context(|| format!("read {}", path.display()))?;
    let at = bytes.len() / 2;
    if let Some(byte) = bytes.get_mut(at) {
        *byte ^= 0x10;
    }
    // Objects are read-only files in some stores; a new file in its place is what a bad disk or hand would leave.
    fs::remove_file(&path).io_context(|| format!("replace {}", path.display()))?;
    fs::write(&path, bytes).io_context(|| format!("write {}", path.display()))?;
    Ok(format!("one bit of byte {at} of {size} in packs/{}", name.display()))
}

/// The SQLite file below a restored application set.
pub(super) fn database_in(restored: &Path) -> Result<PathBuf> {
    let database = restored.join("database");
    let inside = database.join("crm.sqlite");
    let found = if database.is_dir() { inside } else { database };
    if found.is_file() {
        Ok(found)
    } else {
        Err(Error::new(Kind::Bug, format!("find the restored database: {} is not there", found.display())))
    }
}

/// Changes one amount, as valid SQL.
pub(super) fn change_a_row(database: &Path) -> Result<String> {
    let change = || -> rusqlite::Result<i64> {
        let connection = Connection::open(database)?;
        let id = connection.query_row("SELECT id FROM accounts ORDER BY id LIMIT 1 OFFSET 100", [], |row| row.get(0))?;
        connection.execute("UPDATE accounts SET annual_revenue_cents = coalesce(annual_revenue_cents, 0) + 1 WHERE id = ?1", [id])?;
        // Into the main file, so that what is proven is what was changed.
        connection.pragma_update(None, "journal_mode", "delete")?;
        Ok(id)
    };
    let id = change().context(Kind::Failed, || format!("change {}", database.display()))?;
    Ok(format!("the revenue of account {id}, one cent more"))
}

/// Asks the source of the plan to prove a restored database by the fingerprints of the newest snapshot, as a drill does.
pub(super) fn prove(app: &App, plan: &str, database: &Path) -> Result<(Vec<String>, Option<Kind>)> {
    let plan = app.plan(plan)?;
    let job = resolve::plan(&plan)?.open(&app.surroundings(Arc::new(Silent))?)?;
    let manifest =
        job.repository.manifests(Some(&job.plan))?.pop().ok_or_else(|| Error::new(Kind::Bug, "the repository has no snapshot"))?;
    let record = manifest
        .sources
        .iter()
        .find(|record| record.kind == "sqlite")
        .ok_or_else(|| Error::new(Kind::Bug, "the snapshot has no database"))?;
    let finish: Finish = serde_json::from_value(record.finish.clone()).context(Kind::Damaged, || "read the fingerprints".to_owned())?;
    let source =
        job.sources.iter().find(|source| source.name == record.name).ok_or_else(|| Error::new(Kind::Bug, "the plan has no database"))?;
    let scratch = job.work.join("demo-proof");
    crate::daemon::private_folder(&scratch)?;
    let context = SourceContext {
        scratch: scratch.clone(),
        fingerprint_key: job.repository.fingerprint_key(),
        progress: Arc::new(Silent),
        cancel: app.cancel.clone(),
    };
    let request = ProveRequest { fingerprints: finish.fingerprints, compare_percent: 100, checks: Vec::new() };
    let results = source.source.prove(database, &request, &context, &mut || {});
    fs::remove_dir_all(&scratch).io_context(|| format!("remove {}", scratch.display()))?;
    let results = results?;
    let worst = |outcome| results.iter().any(|check| check.outcome == outcome);
    let kind = if worst(Outcome::Failed) {
        Some(Kind::Damaged)
    } else if worst(Outcome::Differs) {
        Some(Kind::Differs)
    } else {
        None
    };
    let lines = results
        .iter()
        .filter(|check| check.outcome != Outcome::Passed)
        .map(|check| format!("{}: expected {}, found {}", check.name, check.expected, check.actual))
        .collect();
    Ok((lines, kind))
}

/// Compares the living CRM with a restored one, every row and every byte.
pub(super) fn compare(made: &CrmSummary, restored: &Path) -> Result<Compared> {
    let (tables, rows) = compare_databases(&made.database, &database_in(restored)?)?;
    let (living, back) = (files(&made.attachments)?, files(&restored.join("attachments"))?);
    if living != back {
        return Err(Error::new(Kind::Differs, "compare the attachments: the lists of files differ"));
    }
    for name in living.keys() {
        let read = |folder: &Path| fs::read(folder.join(name)).io_context(|| format!("read {}", folder.join(name).display()));
        if read(&made.attachments)? != read(&restored.join("attachments"))? {
            return Err(Error::new(Kind::Differs, format!("compare the attachments: {} differs", name.display())));
        }
    }
    Ok(Compared { tables, rows, files: u64::try_from(living.len()).unwrap_or(u64::MAX) })
}

fn compare_databases(living: &Path, restored: &Path) -> Result<(u64, u64)> {
    let mut rows = 0;
    let mut different = None;
    let mut compare = || -> rusqlite::Result<u64> {
        let open = |path: &Path| Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY);
        // A restored database in WAL mode needs its side files while it is open, so it may be written beside.
        let (living, restored) = (open(living)?, Connection::open(restored)?);
        let schema = "SELECT name, sql FROM sqlite_schema ORDER BY type, name";
        if table_rows(&living, schema)? != table_rows(&restored, schema)? {
            different = Some("the schema".to_owned());
        }
        let mut names = living.prepare("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name")?;
        let names: Vec<String> = names.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
        for name in &names {
            let query = format!("SELECT * FROM \"{name}\" ORDER BY 1, 2");
            let (mut ours, mut theirs) = (living.prepare(&query)?, restored.prepare(&query)?);
            let columns = ours.column_count();
            let (mut ours, mut theirs) = (ours.query([])?, theirs.query([])?);
            loop {
                match (ours.next()?, theirs.next()?) {
                    (None, None) => break,
                    (Some(one), Some(other)) => {
                        for column in 0..columns {
                            if one.get_ref(column)? != other.get_ref(column)? {
                                different = Some(format!("table {name}"));
                            }
                        }
                        rows += 1;
                    }
                    _ => {
                        different = Some(format!("the number of rows of table {name}"));
                        break;
                    }
                }
            }
        }
        Ok(u64::try_from(names.len()).unwrap_or(u64::MAX))
    };
    let tables = compare().context(Kind::Failed, || "compare the databases".to_owned())?;
    match different {
        Some(what) => Err(Error::new(Kind::Differs, format!("compare the databases: {what} differs"))),
        None => Ok((tables, rows)),
    }
}

fn table_rows(connection: &Connection, query: &str) -> rusqlite::Result<Vec<Vec<Value>>> {
    let mut statement = connection.prepare(query)?;
    let columns = statement.column_count();
    let rows = statement.query_map([], |row| (0..columns).map(|column| row.get(column)).collect())?;
    rows.collect()
}

/// Regular files below a folder with their sizes, by relative path.
fn files(root: &Path) -> Result<BTreeMap<PathBuf, u64>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).io_context(|| format!("read {}", folder.display()))? {
            let path = entry.io_context(|| format!("read {}", folder.display()))?.path();
            let metadata = fs::symlink_metadata(&path).io_context(|| format!("look at {}", path.display()))?;
            if metadata.is_dir() {
                folders.push(path);
            } else if metadata.is_file() {
                found.insert(path.strip_prefix(root).unwrap_or(&path).to_owned(), metadata.len());
            }
        }
    }
    Ok(found)
}

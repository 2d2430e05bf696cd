//! Taking a consistent copy of a live database, and looking at that copy while it is being backed up.
//!
//! Concurrency: one read transaction on the live database is held from before the first page is copied until after the last, so
//! the backup API sees one state however many steps it takes. (With no transaction of ours it would start again whenever
//! somebody writes.) In WAL mode writers go on meanwhile; in rollback mode they wait for the copy. The copy is then read
//! by two parties, neither of which writes: whoever reads the entry, and a thread of ours that checks and fingerprints it.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, ErrorCode};
use serde_json::json;

use crate::entry::{Entry, EntryKind, Layout};
use crate::error::{Error, IoContext, Kind, Result};
use crate::event::Event;
use crate::source::sqlite::content::{self, Stop};
use crate::source::sqlite::open::{Header, check_room, classify, look, open_live};
use crate::source::{Closed, Finish, Problem, SourceContext, SourceSnapshot, TableFingerprint};

/// How long a lock of somebody else is waited for before the run is told that the database is busy.
const LOCK_WAIT: Duration = Duration::from_secs(10);
/// Pages copied between two looks at the cancel signal.
const PAGES_PER_STEP: i32 = 2048;

/// A staged copy, its entry, and the thread that inspects it.
pub struct SqliteSnapshot {
    shown: String,
    staged: Staged,
    header: Header,
    schema_version: i64,
    entry: Entry,
    bytes: u64,
    listed: bool,
    problems: Vec<Problem>,
    stop: Arc<AtomicBool>,
    inspection: Option<JoinHandle<Result<Inspection>>>,
}

/// The private copy; removed when dropped.
struct Staged(PathBuf);

impl Drop for Staged {
    fn drop(&mut self) {
        // The caller removes the whole scratch folder anyway; nothing is lost when this does not work.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// What the inspecting thread found.
struct Inspection {
    integrity: String,
    foreign_key_violations: Option<u64>,
    fingerprints: Vec<TableFingerprint>,
    problems: Vec<Problem>,
}

impl SqliteSnapshot {
    pub fn begin(path: &Path, name: Vec<u8>, context: &SourceContext) -> Result<Self> {
        Self::begin_waiting(path, name, context, LOCK_WAIT)
    }

    fn begin_waiting(path: &Path, name: Vec<u8>, context: &SourceContext, wait: Duration) -> Result<Self> {
        let shown = path.display().to_string();
        let metadata = look(path)?;
        check_room(path, &context.scratch)?;
        let (staged, schema_version) = stage(path, context, wait)?;
        let header = Header::read(&staged.0)?;
        let bytes = std::fs::metadata(&staged.0).io_context(|| format!("look at {}", staged.0.display()))?.len();
        let mut problems = Vec::new();
        if metadata.len() == 0 && header.page_count <= 1 {
            let message = "the database file is empty; check that this is the file the application uses".to_owned();
            problems.push(Problem { object: shown.clone(), kind: "empty-database".into(), message });
        }
        let entry = Entry {
            path: name,
            kind: EntryKind::File { size: Some(bytes), layout: Layout::Pages(header.page_size) },
            mode: metadata.mode() & 0o7777,
            uid: metadata.uid(),
            gid: metadata.gid(),
            mtime_ns: metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec()),
            // Neither size nor time of the file tell that nothing changed: in WAL mode, content changes without touching it.
            stamp: Vec::new(),
            xattrs: Vec::new(),
        };
        let stop = Arc::new(AtomicBool::new(false));
        let asked: Stop = {
            let (stop, cancel) = (Arc::clone(&stop), context.cancel.clone());
            Arc::new(move || stop.load(Ordering::Relaxed) || cancel.is_cancelled())
        };
        let (copy, key, object) = (staged.0.clone(), context.fingerprint_key, shown.clone());
        let inspection = std::thread::Builder::new()
            .name("sqlite-inspect".into())
            .spawn(move || inspect(&copy, &object, &header, &key, &asked))
            .io_context(|| format!("start the thread that checks the copy of {shown}"))?;
        Ok(Self { shown, staged, header, schema_version, entry, bytes, listed: false, problems, stop, inspection: Some(inspection) })
    }

    fn end_inspection(&mut self) -> Result<Option<Inspection>> {
        let Some(thread) = self.inspection.take() else { return Ok(None) };
        thread.join().map_err(|_| Error::new(Kind::Bug, format!("the thread that checks the copy of {} panicked", self.shown)))?.map(Some)
    }
}

impl SourceSnapshot for SqliteSnapshot {
    fn estimate(&self) -> Option<(u64, u64)> {
        Some((self.bytes, 1))
    }

    fn next_entry(&mut self) -> Result<Option<Entry>> {
        Ok((!std::mem::replace(&mut self.listed, true)).then(|| self.entry.clone()))
    }

    fn open(&mut self, _entry: &Entry) -> Result<Option<Box<dyn Read + Send>>> {
        let file = File::open(&self.staged.0).io_context(|| format!("open the copy of {}", self.shown))?;
        Ok(Some(Box::new(file)))
    }

    fn close(&mut self, _entry: &Entry, bytes_read: u64) -> Result<Closed> {
        if bytes_read == self.bytes {
            return Ok(Closed::SOUND);
        }
        let message = format!("read {bytes_read} of the {} bytes in the copy of {}", self.bytes, self.shown);
        Err(Error::new(Kind::Failed, message).hint("something else touches lifeboat's state folder; run the backup again"))
    }

    fn unread(&mut self, _entry: &Entry, error: Error) -> Result<()> {
        Err(error)
    }

    fn finish(mut self: Box<Self>) -> Result<Finish> {
        let Some(inspection) = self.end_inspection()? else {
            return Err(Error::new(Kind::Bug, format!("snapshot of {} has no inspection", self.shown)));
        };
        let mut problems = std::mem::take(&mut self.problems);
        problems.extend(inspection.problems);
        let header = &self.header;
        let consistency = json!({
            "journal_mode": if header.wal { "wal" } else { "rollback" },
            "page_size": header.page_size,
            "page_count": header.page_count,
            "schema_version": self.schema_version,
            "encoding": header.encoding_name(),
            "auto_vacuum": header.auto_vacuum,
            "user_version": header.user_version,
            "application_id": header.application_id,
            "sqlite_version": rusqlite::version(),
            "integrity": inspection.integrity,
            "foreign_key_violations": inspection.foreign_key_violations,
        });
        Ok(Finish { consistency, fingerprints: inspection.fingerprints, problems })
    }
}

impl Drop for SqliteSnapshot {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.inspection.take() {
            // Its result is of no use to anybody any more; only its end is, before the copy is removed.
            let _ = thread.join();
        }
    }
}

/// Copies the live database; also yields its schema version, which the backup API does not preserve.
fn stage(path: &Path, context: &SourceContext, wait: Duration) -> Result<(Staged, i64)> {
    let shown = path.display();
    context.progress.event(Event::Phase { name: "snapshot", detail: format!("{shown}") });
    let failed = |source| classify(source, format!("take a snapshot of database {shown}"));
    let live = open_live(path)?;
    let schema_version =
        begin_reading(&live, context, wait).map_err(|error| error.within(format!("take a snapshot of database {shown}")))?;
    let staged = new_staging_file(&context.scratch)?;
    let mut copy = Connection::open(&staged.0).map_err(|source| classify(source, format!("open {}", staged.0.display())))?;
    // A copy that does not come to its end is thrown away, so it needs neither journal nor flushes.
    copy.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA locking_mode = EXCLUSIVE").map_err(failed)?;
    {
        let backup = Backup::new(&live, &mut copy).map_err(failed)?;
        let deadline = Instant::now() + wait;
        let mut done_pages = 0;
        loop {
            context.cancel.check()?;
            let step = backup.step(PAGES_PER_STEP).map_err(failed)?;
            let progress = backup.progress();
            let pages = u64::try_from(progress.pagecount - progress.remaining).unwrap_or(0);
            if done_pages == 0 {
                context.progress.event(Event::Total { bytes: 0, items: u64::try_from(progress.pagecount).unwrap_or(0) });
            }
            context.progress.event(Event::Advance { bytes: 0, items: pages.saturating_sub(done_pages) });
            done_pages = pages;
            match step {
                StepResult::Done => break,
                StepResult::More => {}
                // Not expected with a read transaction at hand; still never waited for without end.
                _ if Instant::now() >= deadline => return Err(busy(path)),
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }
    copy.close().map_err(|(_, source)| failed(source))?;
    live.execute_batch("COMMIT").map_err(failed)?;
    live.close().map_err(|(_, source)| failed(source))?;
    // The backup API writes the source's journal mode into the copy but nothing else is left to be done for it.
    Ok((staged, schema_version))
}

/// Begins the read transaction: from here on the state of the database is fixed.
fn begin_reading(live: &Connection, context: &SourceContext, wait: Duration) -> Result<i64> {
    let deadline = Instant::now() + wait;
    let explain = |source| classify(source, "begin a read transaction".into());
    live.execute_batch("BEGIN").map_err(explain)?;
    loop {
        context.cancel.check()?;
        // Asking anything of the file takes the lock; this asks without needing a readable schema.
        match live.query_row("PRAGMA schema_version", [], |row| row.get(0)) {
            Ok(version) => return Ok(version),
            Err(error) if is_busy(&error) && Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            Err(error) => return Err(explain(error)),
        }
    }
}

fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

fn busy(path: &Path) -> Error {
    Error::new(Kind::Busy, format!("database {} stayed locked", path.display())).hint("try again when the other process is done")
}

/// An empty file (0600) of a name that nobody has.
fn new_staging_file(scratch: &Path) -> Result<Staged> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    loop {
        let path = scratch.join(format!("sqlite-{}-{}.db", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
        match File::options().write(true).create_new(true).mode(0o600).open(&path) {
            Ok(_) => return Ok(Staged(path)),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Error::io(format!("create {}", path.display()), error)),
        }
    }
}

/// Checks and fingerprints the copy. Damage is a problem of the snapshot, not an error: operators need the bytes all the same.
fn inspect(copy: &Path, object: &str, header: &Header, key: &[u8; 32], stop: &Stop) -> Result<Inspection> {
    // The checks keep one processor busy, jumping about; the tables are scanned beside them.
    let (checked, tables) = std::thread::scope(|scope| {
        let tables = scope.spawn(|| content::tables(copy, key, None, stop));
        (check(copy, object, header, key, stop), tables.join())
    });
    let mut inspection = checked?;
    let mut lost = |object: &str, message: String| {
        inspection.problems.push(Problem { object: object.to_owned(), kind: "no-fingerprint".into(), message });
    };
    match tables.map_err(|_| Error::new(Kind::Bug, format!("a thread that reads the copy of {object} panicked")))? {
        Ok(tables) => {
            for table in tables {
                match table.content {
                    Ok(fingerprint) => inspection.fingerprints.push(fingerprint),
                    Err(error) => lost(&table.table, format!("read table {}: {error}", table.table)),
                }
            }
        }
        Err(error) => lost(object, format!("list the tables: {error}")),
    }
    if stop() { Err(Error::new(Kind::Interrupted, "interrupted")) } else { Ok(inspection) }
}

/// The engine's checks, and the fingerprints of what is not in a table.
fn check(copy: &Path, object: &str, header: &Header, key: &[u8; 32], stop: &Stop) -> Result<Inspection> {
    let mut problems = Vec::new();
    let mut problem = |kind: &str, message: String| problems.push(Problem { object: object.to_owned(), kind: kind.into(), message });
    let connection = content::open_stoppable(copy, stop).and_then(|connection| {
        content::widen_cache(&connection)?;
        Ok(connection)
    });
    let connection = connection.map_err(|source| classify(source, format!("open the copy of {object}")))?;
    let integrity = match content::findings(&connection, "quick_check") {
        Ok(found) if found.is_empty() => "ok".to_owned(),
        Ok(found) => {
            let message = format!("{} findings of PRAGMA quick_check, first: {}", found.len(), found[0]);
            problem("integrity", message.clone());
            message
        }
        Err(error) if content::needs_application(&error) => format!("not checked: {error}"),
        Err(error) => {
            problem("integrity", format!("PRAGMA quick_check: {error}"));
            error.to_string()
        }
    };
    let mut fingerprints = vec![content::header(header, key)];
    match content::schema(&connection, key) {
        Ok(fingerprint) => fingerprints.push(fingerprint),
        Err(error) => problem("no-fingerprint", format!("read the schema: {error}")),
    }
    // An error here (a parent table without a unique index, say) is the application's own; the drill then says that it did not check.
    let violations = content::violations(&connection, key).ok();
    let foreign_key_violations = violations.as_ref().map(|violations| violations.rows);
    fingerprints.extend(violations);
    Ok(Inspection { integrity, foreign_key_violations, fingerprints, problems })
}

#[cfg(test)]
mod tests;

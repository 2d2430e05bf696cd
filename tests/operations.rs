//! The operations together with the real repository, a local store and the real sources.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use chrono::{DateTime, Utc};
use lifeboat::clock::{Clock, ManualClock};
use lifeboat::entry::{Entry, Order};
use lifeboat::error::{Error, Kind, Result};
use lifeboat::event::{Cancel, Event, Progress, Silent};
use lifeboat::id::Name;
use lifeboat::ops::CommitGate;
use lifeboat::ops::backup::{self, BackupReport};
use lifeboat::ops::drill::{self, DrillReport, DrillRequest};
use lifeboat::ops::resolve::{RepositorySettings, Resolved, Surroundings};
use lifeboat::ops::restore::{self, RestoreReport, RestoreRequest};
use lifeboat::ops::select::Choice;
use lifeboat::ops::verify::{self, Depth, VerifyReport};
use lifeboat::ops::{Job, NamedSource, PlannedCheck, Verdict, doctor, init, report, snapshots};
use lifeboat::repo::{OpenOptions, Passphrase, ReportKind, ReportRecord, Repository, Role};
use lifeboat::source::command::CommandSource;
use lifeboat::source::files::FilesSource;
use lifeboat::source::sqlite::SqliteSource;
use lifeboat::source::{
    CheckResult, Closed, Diagnosis, Expectation, Finish, LOAD, Outcome, Problem, ProveRequest, Source, SourceContext, SourceSnapshot,
    SqlCheck,
};
use lifeboat::store::faults::{Effect, Faults, Rule};
use lifeboat::store::{Store, Verb};
use rusqlite::Connection;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// A state folder, a repository and sources, all below one temporary folder.
struct World {
    folder: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
    clock: ManualClock,
    resolved: Resolved,
    /// Opened once: deriving a key from a passphrase takes its time on purpose.
    repository: Repository,
}

impl World {
    fn new(sources: impl FnOnce(&Path) -> Vec<NamedSource>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let start = DateTime::from_timestamp(1_790_000_000, 0).unwrap();
        let url = format!("file://{}", folder.path().join("repository").display());
        let settings = RepositorySettings::at(&url, Passphrase::new("correct horse battery staple")).unwrap();
        let resolved = Resolved { sources: sources(folder.path()), ..Resolved::bare(name("crm"), settings) };
        let clock = ManualClock::new(start);
        let surroundings = surroundings(folder.path(), &runtime, &clock);
        let (report, _) = init::run(&resolved.repository, &surroundings).unwrap();
        assert_eq!(report.schema, "lifeboat.init/1");
        let repository = resolved.repository.open(&surroundings).unwrap();
        Self { folder, runtime, clock, resolved, repository }
    }

    fn sqlite() -> Self {
        Self::new(|folder| {
            make_database(&folder.join("live.db"), 2000);
            vec![sqlite("crm", &folder.join("live.db"))]
        })
    }

    fn files() -> Self {
        Self::new(|folder| {
            make_tree(&folder.join("live"));
            vec![files("attachments", &folder.join("live"))]
        })
    }

    fn surroundings(&self) -> Surroundings {
        surroundings(self.folder.path(), &self.runtime, &self.clock)
    }

    fn path(&self, below: &str) -> PathBuf {
        self.folder.path().join(below)
    }

    fn job(&self) -> Job {
        let surroundings = self.surroundings();
        Job {
            plan: self.resolved.plan.clone(),
            tags: self.resolved.tags.clone(),
            sources: self.resolved.sources.clone(),
            repository: self.repository.clone(),
            work: self.resolved.work(&surroundings),
            host: "test".into(),
            objectives: self.resolved.objectives,
            drill: self.resolved.drill.clone(),
            clock: surroundings.clock,
            progress: surroundings.progress,
            cancel: surroundings.cancel,
            gate: surroundings.gate,
        }
    }

    fn pass(&self, secs: i64) {
        self.clock.set(self.clock.now() + chrono::Duration::seconds(secs));
    }

    fn backup(&self) -> BackupReport {
        self.pass(60);
        let report = backup::run(&self.job()).unwrap();
        self.pass(60);
        report
    }

    fn restore(&self, choice: Choice, to: &str) -> Result<RestoreReport> {
        restore_by(&self.job(), choice, &self.path(to), None)
    }

    fn drill(&self) -> DrillReport {
        drill::run(&self.job(), &DrillRequest::default()).unwrap()
    }

    /// Nothing of any run is left in the state folder.
    fn assert_clean(&self) {
        let names: Vec<String> =
            fs::read_dir(self.path("state/work/crm")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        assert!(names.iter().all(|n| n.contains(".lock")), "left over: {names:?}");
    }
}

fn surroundings(folder: &Path, runtime: &tokio::runtime::Runtime, clock: &ManualClock) -> Surroundings {
    Surroundings {
        state: folder.join("state"),
        runtime: runtime.handle().clone(),
        clock: Arc::new(clock.clone()),
        progress: Arc::new(Silent),
        cancel: Cancel::default(),
        gate: CommitGate::default(),
    }
}

fn restore_by(job: &Job, choice: Choice, to: &Path, confirmed: Option<&str>) -> Result<RestoreReport> {
    let plan = restore::plan(job, &RestoreRequest { choice, to: to.to_owned(), sources: Vec::new(), only: Vec::new(), resume: false })?;
    restore::apply(job, &plan, confirmed)
}

fn sqlite(name_: &str, path: &Path) -> NamedSource {
    NamedSource { name: name(name_), source: Arc::new(SqliteSource { path: path.to_owned() }), restores_folder: false }
}

fn files(name_: &str, path: &Path) -> NamedSource {
    let source = FilesSource { path: path.to_owned(), exclude: Vec::new(), page_size: None };
    NamedSource { name: name(name_), source: Arc::new(source), restores_folder: false }
}

fn make_database(path: &Path, rows: u32) {
    let mut database = Connection::open(path).unwrap();
    database
        .execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE customer(id INTEGER PRIMARY KEY, name TEXT); CREATE TABLE note(t TEXT)")
        .unwrap();
    let transaction = database.transaction().unwrap();
    for row in 0..rows {
        transaction.execute("INSERT INTO customer(name) VALUES (?1)", [format!("customer {row} {}", "x".repeat(100))]).unwrap();
    }
    transaction.execute("INSERT INTO note VALUES ('hello')", []).unwrap();
    transaction.commit().unwrap();
}

fn rows(path: &Path) -> Vec<(i64, String)> {
    let database = Connection::open_with_flags(path, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let mut statement = database.prepare("SELECT id, name FROM customer ORDER BY id").unwrap();
    statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap().map(|row| row.unwrap()).collect()
}

/// Bytes that do not compress and never repeat.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn make_tree(root: &Path) {
    fs::create_dir_all(root.join("deep/er")).unwrap();
    fs::create_dir(root.join("empty")).unwrap();
    for number in 0..40 {
        fs::write(root.join(format!("deep/file {number}")), noise(number, 3000 + 17 * usize::try_from(number).unwrap())).unwrap();
    }
    fs::write(root.join("deep/er/big"), noise(1000, 6_000_000)).unwrap();
    fs::write(root.join("nothing"), "").unwrap();
    fs::write(root.join(std::ffi::OsStr::from_bytes(b"not\xffutf8")), "odd").unwrap();
    symlink("deep/er/big", root.join("link")).unwrap();
    symlink("/nowhere/at all", root.join("dangling")).unwrap();
    fs::hard_link(root.join("deep/file 1"), root.join("hard")).unwrap();
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    sparse.set_len(3_000_000).unwrap();
    fs::set_permissions(root.join("nothing"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::set_permissions(root.join("empty"), fs::Permissions::from_mode(0o500)).unwrap();
}

/// Everything there is to know of a tree: by path, mode, time, content or link target.
fn census(root: &Path) -> BTreeMap<Vec<u8>, String> {
    let mut all = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for item in fs::read_dir(&folder).unwrap() {
            let path = item.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            let content = if metadata.is_dir() {
                folders.push(path.clone());
                "folder".into()
            } else if metadata.is_symlink() {
                format!("-> {}", fs::read_link(&path).unwrap().display())
            } else {
                format!("{} {} links", blake3::hash(&fs::read(&path).unwrap()), metadata.nlink())
            };
            let times = if metadata.is_symlink() {
                String::new()
            } else {
                format!("{:o} {}.{}", metadata.mode(), metadata.mtime(), metadata.mtime_nsec())
            };
            all.insert(path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec(), format!("{times} {content}"));
        }
    }
    all
}

/// What a test does to a source on its way.
type Hook<T> = Box<dyn Fn(&T) + Send + Sync>;

/// A real source with something planted in it.
struct Planted {
    inner: Arc<dyn Source>,
    at_begin: Option<Hook<SourceContext>>,
    after_adopt: Option<Hook<PathBuf>>,
    problem: Option<Problem>,
    /// Changes every entry on its way into the repository.
    edit: fn(&mut Entry),
    fail_at_finish: bool,
    /// Reading these files fails after so many bytes, as on a bad sector.
    unreadable: Vec<(&'static str, u64)>,
    /// Yields everything backwards: what is in a folder before the folder, other names before their file.
    backwards: bool,
    /// What is done before the restored thing can be used; is given what says that it can be.
    finish: Option<fn(&mut dyn FnMut())>,
}

impl Planted {
    fn over(source: &NamedSource) -> Self {
        Self {
            inner: Arc::clone(&source.source),
            at_begin: None,
            after_adopt: None,
            problem: None,
            edit: |_| (),
            fail_at_finish: false,
            unreadable: Vec::new(),
            backwards: false,
            finish: None,
        }
    }

    fn named(self, name_: &str) -> NamedSource {
        NamedSource { name: name(name_), source: Arc::new(self), restores_folder: false }
    }
}

impl Source for Planted {
    fn kind(&self) -> &'static str {
        self.inner.kind()
    }
    fn diagnose(&self) -> Vec<Diagnosis> {
        self.inner.diagnose()
    }
    fn begin(&self, context: &SourceContext) -> Result<Box<dyn SourceSnapshot>> {
        if let Some(hook) = &self.at_begin {
            hook(context);
        }
        let mut inner = self.inner.begin(context)?;
        let mut backwards = self.backwards.then(Vec::new);
        if let Some(entries) = &mut backwards {
            while let Some(entry) = inner.next_entry()? {
                entries.push(entry);
            }
        }
        let (problem, unreadable) = (self.problem.clone(), self.unreadable.clone());
        Ok(Box::new(PlantedSnapshot { inner, problem, edit: self.edit, fail: self.fail_at_finish, unreadable, backwards }))
    }
    fn adopt(&self, restored: &Path, context: &SourceContext) -> Result<PathBuf> {
        let usable = self.inner.adopt(restored, context)?;
        if let Some(hook) = &self.after_adopt {
            hook(&usable);
        }
        Ok(usable)
    }
    fn unfinished(&self) -> Option<&'static str> {
        self.finish.map(|_| LOAD)
    }
    fn prove(
        &self,
        restored: &Path,
        request: &ProveRequest,
        context: &SourceContext,
        usable: &mut dyn FnMut(),
    ) -> Result<Vec<CheckResult>> {
        if let Some(finish) = self.finish {
            finish(usable);
        }
        self.inner.prove(restored, request, context, &mut || {})
    }
}

struct PlantedSnapshot {
    inner: Box<dyn SourceSnapshot>,
    problem: Option<Problem>,
    edit: fn(&mut Entry),
    fail: bool,
    unreadable: Vec<(&'static str, u64)>,
    backwards: Option<Vec<Entry>>,
}

/// A reader that meets a bad sector.
struct BadSector(Box<dyn Read + Send>, u64);

impl Read for BadSector {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.1 == 0 {
            return Err(std::io::Error::from_raw_os_error(5));
        }
        let most = buffer.len().min(usize::try_from(self.1).unwrap());
        let read = self.0.read(&mut buffer[..most])?;
        self.1 -= read as u64;
        Ok(read)
    }
}

impl SourceSnapshot for PlantedSnapshot {
    fn estimate(&self) -> Option<(u64, u64)> {
        self.inner.estimate()
    }
    fn order(&self) -> Order {
        if self.backwards.is_some() { Order::Any } else { self.inner.order() }
    }
    fn next_entry(&mut self) -> Result<Option<Entry>> {
        let next = match &mut self.backwards {
            Some(entries) => entries.pop(),
            None => self.inner.next_entry()?,
        };
        Ok(next.map(|mut entry| {
            (self.edit)(&mut entry);
            entry
        }))
    }
    fn open(&mut self, entry: &Entry) -> Result<Option<Box<dyn Read + Send>>> {
        let bad = self.unreadable.iter().find(|(path, _)| path.as_bytes() == entry.path).map(|(_, after)| *after);
        let reader = self.inner.open(entry)?;
        Ok(reader.map(|reader| match bad {
            Some(after) => Box::new(BadSector(reader, after)) as Box<dyn Read + Send>,
            None => reader,
        }))
    }
    fn unread(&mut self, entry: &Entry, error: Error) -> Result<()> {
        self.inner.unread(entry, error)
    }
    fn close(&mut self, entry: &Entry, bytes_read: u64) -> Result<Closed> {
        self.inner.close(entry, bytes_read)
    }
    fn finish(self: Box<Self>) -> Result<Finish> {
        if self.fail {
            return Err(Error::new(Kind::Failed, "planted failure"));
        }
        let mut finish = self.inner.finish()?;
        finish.problems.extend(self.problem);
        Ok(finish)
    }
}

/// Cancels once this many bytes were restored.
struct CancelAfter(Cancel, AtomicU64, u64);

impl Progress for CancelAfter {
    fn event(&self, event: Event) {
        if let Event::Advance { bytes, .. } = event
            && self.1.fetch_add(bytes, Ordering::SeqCst) + bytes >= self.2
        {
            self.0.cancel();
        }
    }
}

fn flip(path: &Path, at: u64) {
    use std::os::unix::fs::FileExt;
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

#[test]
fn a_database_comes_back_row_by_row() {
    let world = World::sqlite();
    let first = world.backup();
    assert_eq!((first.exit(), first.warnings.len()), (None, 0), "{first:?}");
    let before = rows(&world.path("live.db"));
    Connection::open(world.path("live.db")).unwrap().execute_batch("DELETE FROM customer WHERE id BETWEEN 700 AND 750").unwrap();
    let second = world.backup();
    assert!(second.bytes_stored < first.bytes_stored);

    let report = world.restore(Choice::Latest, "latest.db").unwrap();
    assert_eq!(report.snapshot, second.snapshot);
    assert_eq!(report.exit(), None);
    assert_eq!(report.bytes_restored, second.bytes_source);
    assert_eq!(rows(&world.path("latest.db")), rows(&world.path("live.db")));
    world.restore(Choice::At(first.time), "first.db").unwrap();
    assert_eq!(rows(&world.path("first.db")), before);
    world.restore(Choice::Snapshot(first.snapshot.to_string()), "by-id.db").unwrap();
    assert_eq!(rows(&world.path("by-id.db")), before);
    for file in fs::read_dir(world.folder.path()).unwrap() {
        let file = file.unwrap().file_name().into_string().unwrap();
        assert!(!file.contains("partial"), "left over: {file}");
    }
    world.assert_clean();
}

#[test]
fn a_tree_comes_back_byte_by_byte() {
    let world = World::files();
    world.backup();
    let report = world.restore(Choice::Latest, "back").unwrap();
    assert_eq!(census(&world.path("back")), census(&world.path("live")));
    assert_eq!(report.entries_restored, world.job().repository.manifests(None).unwrap()[0].sources[0].entries);
    let sparse = fs::metadata(world.path("back/sparse")).unwrap();
    assert!(sparse.blocks() * 512 < 1_000_000, "holes stay holes: {} blocks", sparse.blocks());
    // An empty folder is a place too.
    fs::create_dir(world.path("empty")).unwrap();
    world.restore(Choice::Latest, "empty").unwrap();
    assert_eq!(census(&world.path("empty")), census(&world.path("live")));
}

#[test]
fn a_command_comes_back_as_output_or_through_its_restore_command() {
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let world = World::new(|folder| {
        fs::write(folder.join("dump"), noise(5, 100_000)).unwrap();
        let dump = words(&format!("cat {}", folder.join("dump").display()));
        let source = CommandSource { dump, restore: None, environment: Vec::new(), allow_empty: false };
        vec![NamedSource { name: name("legacy"), source: Arc::new(source), restores_folder: false }]
    });
    world.backup();
    world.restore(Choice::Latest, "output").unwrap();
    assert_eq!(fs::read(world.path("output")).unwrap(), noise(5, 100_000));
    assert_eq!(world.drill().verdict, Verdict::Passed);

    let mut job = world.job();
    let restore = vec!["sh".into(), "-c".into(), "cat > {target}/loaded".into()];
    let source = CommandSource { dump: words("true"), restore: Some(restore), environment: Vec::new(), allow_empty: false };
    job.sources = vec![NamedSource { name: name("legacy"), source: Arc::new(source), restores_folder: true }];
    restore_by(&job, Choice::Latest, &world.path("loaded"), None).unwrap();
    assert_eq!(fs::read(world.path("loaded/loaded")).unwrap(), noise(5, 100_000));
    let drilled = drill::run(&job, &DrillRequest::default()).unwrap();
    assert_eq!(drilled.verdict, Verdict::Passed, "{}", report::text(&drilled));
}

fn application() -> World {
    World::new(|folder| {
        make_database(&folder.join("live.db"), 300);
        make_tree(&folder.join("live"));
        vec![sqlite("db", &folder.join("live.db")), files("attachments", &folder.join("live"))]
    })
}

#[test]
fn an_application_set_comes_back_together() {
    let world = application();
    let made = world.backup();
    assert_eq!(made.consistency.len(), 2);
    world.restore(Choice::Latest, "set").unwrap();
    assert_eq!(rows(&world.path("set/db")), rows(&world.path("live.db")));
    assert_eq!(census(&world.path("set/attachments")), census(&world.path("live")));
    fs::create_dir(world.path("new")).unwrap();
    let mode = |path: &str| fs::metadata(world.path(path)).unwrap().mode();
    assert_eq!(mode("set"), mode("new"), "as the umask wants any new folder");
    let drilled = world.drill();
    assert_eq!(drilled.verdict, Verdict::Passed, "{}", report::text(&drilled));
    for source in ["db", "attachments"] {
        assert!(drilled.checks.iter().any(|c| c.source == source && c.name == "content equal" && c.outcome == Outcome::Passed));
    }
}

#[test]
fn a_source_that_cannot_choose_its_order_is_backed_up_all_the_same() {
    let mut world = World::files();
    let ordered = world.resolved.sources[0].clone();
    world.resolved.sources[0] = Planted { backwards: true, ..Planted::over(&ordered) }.named("attachments");
    let first = world.backup();
    assert_eq!((first.exit(), first.warnings.len()), (None, 0), "{first:?}");
    world.resolved.sources[0] = ordered;
    let second = world.backup();
    assert!(second.bytes_stored < first.bytes_stored / 10, "{} of {}", second.bytes_stored, first.bytes_stored);
    for (snapshot, to) in [(first.snapshot, "first"), (second.snapshot, "second")] {
        assert_eq!(world.restore(Choice::Snapshot(snapshot.to_string()), to).unwrap().exit(), None);
        assert_eq!(census(&world.path(to)), census(&world.path("live")));
    }
    assert_eq!(world.drill().verdict, Verdict::Passed);
}

#[test]
fn what_one_source_cannot_give_keeps_the_whole_set_from_being_committed() {
    let mut world = application();
    let failing = Planted { fail_at_finish: true, ..Planted::over(&world.resolved.sources[1]) };
    world.resolved.sources[1] = failing.named("attachments");
    let error = backup::run(&world.job()).unwrap_err();
    assert_eq!(error.kind(), Kind::Failed);
    assert!(world.job().repository.manifests(None).unwrap().is_empty());
    world.assert_clean();
}

#[test]
fn a_problem_is_committed_recorded_and_never_passes() {
    let mut world = World::files();
    let problem = Problem { object: "deep/gone".into(), kind: "vanished".into(), message: "it was there a moment ago".into() };
    world.resolved.sources[0] = Planted { problem: Some(problem), ..Planted::over(&world.resolved.sources[0]) }.named("attachments");
    let made = world.backup();
    assert_eq!(made.exit(), Some(Kind::Incomplete));
    assert_eq!(made.problems[0].object, "deep/gone");
    let restored = world.restore(Choice::Latest, "back").unwrap();
    assert_eq!(restored.exit(), Some(Kind::Incomplete));
    assert!(restored.warnings.iter().any(|w| w.contains("deep/gone")), "{restored:?}");
    let drilled = world.drill();
    assert_eq!((drilled.verdict, drilled.exit()), (Verdict::Incomplete, Some(Kind::Incomplete)));
    assert_eq!(snapshots::run(&world.job().repository, None, world.clock.now()).unwrap().snapshots[0].problems, 1);
}

#[test]
fn a_bad_sector_costs_one_file_and_not_the_backup() {
    let mut world = World::files();
    let live = world.path("live");
    fs::write(live.join("a-small"), noise(3, 9_000)).unwrap();
    fs::write(live.join("m-zeros"), vec![0; 7_000_000]).unwrap();
    fs::write(live.join("n-large"), noise(4, 9_000_000)).unwrap();
    fs::hard_link(live.join("n-large"), live.join("o-other-name")).unwrap();
    fs::write(live.join("z-last"), noise(5, 3_000_000)).unwrap();
    let bad = ["a-small", "m-zeros", "n-large", "o-other-name"];
    // A time in the future proves nothing: they are read each time.
    let future = std::time::SystemTime::now() + Duration::from_hours(24);
    for path in bad {
        fs::File::options().write(true).open(live.join(path)).unwrap().set_times(fs::FileTimes::new().set_modified(future)).unwrap();
    }
    // The second time their chunks are known already, so that records of them are written before the sector is met.
    for (round, known) in [false, true].into_iter().enumerate() {
        if known {
            world.backup();
        }
        let honest = world.resolved.sources[0].source.clone();
        let source = NamedSource { source: honest.clone(), ..files("attachments", &live) };
        let unreadable = vec![("a-small", 4_096), ("m-zeros", 5_500_000), ("n-large", 6_000_000), ("o-other-name", 0)];
        world.resolved.sources[0] = Planted { unreadable, ..Planted::over(&source) }.named("attachments");
        let made = world.backup();
        world.resolved.sources[0] = source;
        assert_eq!(made.exit(), Some(Kind::Incomplete), "{made:?}");
        let named: Vec<(&str, &str)> = made.problems.iter().map(|p| (p.object.as_str(), p.kind.as_str())).collect();
        let mut wanted = bad.map(|path| (path, "unreadable")).to_vec();
        wanted.sort_unstable();
        let mut sorted = named.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, wanted);
        assert!(made.problems.iter().any(|p| p.message.contains("os error 5")), "{made:?}");

        let target = format!("back-{round}");
        assert_eq!(world.restore(Choice::Latest, &target).unwrap().exit(), Some(Kind::Incomplete));
        let mut whole = census(&live);
        for path in bad {
            whole.remove(path.as_bytes());
        }
        assert_eq!(census(&world.path(&target)), whole);
        let job = world.job();
        let verified =
            verify::run(&job.repository, None, verify::Depth::Data { percent: 100 }, &*job.clock, &*job.progress, &job.cancel).unwrap();
        assert!(verified.findings.is_empty(), "{verified:?}");
    }
    // What can be read again is backed up again.
    assert_eq!(world.backup().exit(), None);
}

#[test]
fn what_stands_at_the_target_is_refused_and_moved_aside_when_confirmed() {
    let world = World::sqlite();
    world.backup();
    let target = world.path("live.db");
    // A log that belongs to the database that stands there.
    let open = Connection::open(&target).unwrap();
    open.execute_batch("PRAGMA wal_autocheckpoint = 0; INSERT INTO customer(name) VALUES ('after the backup')").unwrap();
    let log = world.path("live.db-wal");
    assert!(log.exists());
    let held = fs::read(&target).unwrap();

    let refused = restore_by(&world.job(), Choice::Latest, &target, None).unwrap_err();
    assert_eq!(refused.kind(), Kind::Usage);
    assert!(refused.to_string().contains("live.db-wal"), "{refused}");
    assert_eq!(restore_by(&world.job(), Choice::Latest, &target, Some("yes")).unwrap_err().kind(), Kind::Usage);
    assert_eq!(fs::read(&target).unwrap(), held);
    assert!(!world.path(".live.db.lifeboat-partial").exists());

    let report = restore_by(&world.job(), Choice::Latest, &target, Some("live.db")).unwrap();
    assert!(!log.exists() && !world.path("live.db-shm").exists());
    assert_eq!(rows(&target).len(), 2000);
    let aside = PathBuf::from(&report.moved_aside[0].moved_to);
    assert_eq!(fs::read(&aside).unwrap(), held);
    drop(open);
    assert_eq!(rows(&aside).len(), 2001, "the old database keeps its log");
}

#[test]
fn an_interrupted_restore_is_continued_and_never_looks_whole() {
    let world = World::files();
    let first = world.backup();
    let target = world.path("back");
    let mut job = world.job();
    job.progress = Arc::new(CancelAfter(job.cancel.clone(), AtomicU64::new(0), 2_000_000));
    let interrupted = restore_by(&job, Choice::Latest, &target, None).unwrap_err();
    assert_eq!(interrupted.kind(), Kind::Interrupted);
    assert!(interrupted.hint_text().unwrap().contains("--resume"));
    assert!(!target.exists());
    let partial = world.path(".back.lifeboat-partial");
    assert_eq!(fs::metadata(&partial).unwrap().mode() & 0o777, 0o700);

    // What was left is damaged meanwhile: the resumed restore notices.
    let big = partial.join("tree/attachments/deep/er/big");
    if big.exists() {
        flip(&big, 10);
    }
    fs::write(world.path("live/new"), "x").unwrap();
    let second = world.backup();
    let other = restore_by(&world.job(), Choice::Latest, &target, None).unwrap_err();
    assert_eq!(other.kind(), Kind::Usage, "another snapshot");
    assert!(other.hint_text().unwrap().contains("--resume"));

    let job = world.job();
    let named = RestoreRequest {
        choice: Choice::Snapshot(second.snapshot.to_string()),
        to: target.clone(),
        sources: Vec::new(),
        only: Vec::new(),
        resume: true,
    };
    let differs = restore::plan(&job, &named).unwrap_err();
    assert_eq!(differs.kind(), Kind::Usage);
    assert!([first.snapshot, second.snapshot].iter().all(|id| differs.to_string().contains(&id.to_string())), "{differs}");
    let only = RestoreRequest { choice: Choice::Latest, only: vec!["t".into()], ..named };
    assert_eq!(restore::plan(&job, &only).unwrap_err().kind(), Kind::Usage);
    let plan = restore::plan(
        &job,
        &RestoreRequest { choice: Choice::Latest, to: target.clone(), sources: Vec::new(), only: Vec::new(), resume: true },
    )
    .unwrap();
    assert!(plan.resumes && plan.snapshot == first.snapshot);
    let report = restore::apply(&job, &plan, None).unwrap();
    assert!(report.bytes_resumed > 0, "{report:?}");
    fs::remove_file(world.path("live/new")).unwrap();
    fs::File::open(world.path("live"))
        .unwrap()
        .set_times(fs::FileTimes::new().set_modified(fs::metadata(&target).unwrap().modified().unwrap()))
        .unwrap();
    assert_eq!(census(&target), census(&world.path("live")));
    assert!(!partial.exists());
    let nothing =
        restore::plan(&job, &RestoreRequest { choice: Choice::Latest, to: target, sources: Vec::new(), only: Vec::new(), resume: true })
            .unwrap_err();
    assert_eq!(nothing.kind(), Kind::Usage);
    assert_ne!(first.snapshot, second.snapshot);
}

/// A restore that can never be completed, because its key was destroyed meanwhile, keeps no other from its target.
#[test]
fn a_restore_whose_key_was_destroyed_stands_in_nobodys_way() {
    let mut world = World::files();
    let first = world.backup();
    let reopen = |world: &mut World| world.repository = world.resolved.repository.open(&world.surroundings()).unwrap();
    world.repository.make_plan_key(&name("crm"), world.clock.now()).unwrap();
    reopen(&mut world);
    let second = world.backup();
    // One is interrupted before, one is planned before and finds out when it reads.
    let interrupted = Job { progress: Arc::new(CrashAt("adopt")), ..world.job() };
    let plan = restore::plan(&interrupted, &resume_free(&world.path("left"))).unwrap();
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| restore::apply(&interrupted, &plan, None))).is_err());
    let planned = restore::plan(&world.job(), &resume_free(&world.path("late"))).unwrap();
    assert_eq!((plan.snapshot, planned.snapshot), (second.snapshot, second.snapshot));
    world.repository.erase_plan(&name("crm"), world.clock.now()).unwrap();
    reopen(&mut world);
    let late = restore::apply(&world.job(), &planned, None).unwrap_err();
    assert_eq!(late.kind(), Kind::NoRecoveryPoint, "{late:?}");
    assert!(late.hint_text().unwrap().contains("to the same target too, without --resume"), "{late:?}");
    assert!(world.path(".late.lifeboat-partial").exists() && world.path(".left.lifeboat-partial").exists());
    let resumed = restore::plan(&world.job(), &resume(&world.path("left"))).unwrap_err();
    assert_eq!(resumed.kind(), Kind::NoRecoveryPoint, "{resumed:?}");
    assert!(resumed.hint_text().unwrap().contains("without --resume"), "{resumed:?}");
    for target in ["left", "late"] {
        let report = world.restore(Choice::Latest, target).unwrap();
        assert_eq!(
            (report.snapshot, report.exit(), &report.newer_unread),
            (first.snapshot, Some(Kind::Incomplete), &vec![second.snapshot])
        );
        assert_eq!(census(&world.path(target)), census(&world.path("live")));
        assert!(!world.path(&format!(".{target}.lifeboat-partial")).exists());
    }
}

#[test]
fn what_is_not_of_the_snapshot_does_not_survive_a_resumed_restore() {
    let world = World::files();
    world.backup();
    let target = world.path("back");
    let mut job = world.job();
    job.progress = Arc::new(CancelAfter(job.cancel.clone(), AtomicU64::new(0), 2_000_000));
    assert_eq!(restore_by(&job, Choice::Latest, &target, None).unwrap_err().kind(), Kind::Interrupted);
    let tree = world.path(".back.lifeboat-partial/tree/attachments");
    fs::write(tree.join("deep/zz"), "stray").unwrap();
    fs::create_dir_all(tree.join("deep/file 1.d/below")).unwrap();
    fs::write(tree.join("deep/file 1.d/below/x"), "stray").unwrap();
    fs::set_permissions(tree.join("deep/file 1.d"), fs::Permissions::from_mode(0o000)).unwrap();
    symlink(world.path("live"), tree.join("a link")).unwrap();
    let report = restore::apply(&world.job(), &restore::plan(&world.job(), &resume(&target)).unwrap(), None).unwrap();
    assert_eq!(census(&target), census(&world.path("live")), "and nothing was removed through the link");
    assert!(report.warnings.iter().any(|w| w.contains("3 that the snapshot does not hold") && w.contains("a link")), "{report:?}");
}

#[test]
fn a_delta_restore_makes_the_folder_the_snapshot_and_fetches_only_what_differs() {
    let world = World::files();
    for number in 0..4 {
        fs::write(world.path("live").join(format!("more {number}")), format!("content {number} ").repeat(9000)).unwrap();
    }
    world.backup();
    let target = world.path("back");
    restore_by(&world.job(), Choice::Latest, &target, None).unwrap();
    let wanted = census(&world.path("live"));
    let request = || RestoreRequest { resume: false, ..resume(&target) };
    let spoil = || {
        let outside = world.path("outside");
        let _ = fs::remove_file(&outside);
        let mut files: Vec<PathBuf> = census(&target)
            .into_keys()
            .map(|path| target.join(std::ffi::OsStr::from_bytes(&path)))
            .filter(|path| {
                fs::symlink_metadata(path).is_ok_and(|file| file.is_file() && file.len() > 10 && !path.starts_with(target.join("deep")))
            })
            .collect();
        files.sort();
        fs::write(&files[0], "short").unwrap();
        fs::hard_link(&files[1], &outside).unwrap();
        fs::write(&outside, "what another name holds").unwrap();
        fs::remove_file(&files[2]).unwrap();
        fs::create_dir(&files[2]).unwrap();
        fs::write(files[2].join("below"), "x").unwrap();
        fs::remove_dir_all(target.join("deep")).unwrap();
        symlink(world.path("live"), target.join("deep")).unwrap();
        fs::write(target.join("stray"), "x").unwrap();
        outside
    };
    let outside = spoil();
    let mut plan = restore::plan(&world.job(), &request()).unwrap();
    plan.reuse_target().unwrap();
    assert!(plan.delta);
    assert_eq!(restore::apply(&world.job(), &plan, None).unwrap_err().kind(), Kind::Usage, "only when confirmed");
    assert!(target.join("stray").exists());
    let report = restore::apply(&world.job(), &plan, Some("back")).unwrap();
    assert_eq!(census(&target), wanted);
    assert_eq!(census(&world.path("live")), wanted, "nothing was touched through the link");
    assert_eq!(fs::read_to_string(outside).unwrap(), "what another name holds");
    assert!(report.moved_aside.is_empty() && report.bytes_resumed > 0, "{report:?}");

    // A crash leaves no target, and is continued.
    spoil();
    let job = Job { progress: Arc::new(CrashAt("adopt")), ..world.job() };
    let mut plan = restore::plan(&job, &request()).unwrap();
    plan.reuse_target().unwrap();
    let died = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| restore::apply(&job, &plan, Some("back"))));
    assert!(died.is_err() && !target.exists());
    let job = world.job();
    restore::apply(&job, &restore::plan(&job, &resume(&target)).unwrap(), None).unwrap();
    assert_eq!(census(&target), wanted);
    // Where nothing stands there is nothing to change; a database file is no folder.
    let mut elsewhere = restore::plan(&job, &RestoreRequest { to: world.path("new"), ..request() }).unwrap();
    elsewhere.reuse_target().unwrap();
    assert!(!elsewhere.delta);
    let sqlite = World::sqlite();
    sqlite.backup();
    let mut file = restore::plan(&sqlite.job(), &resume_free(&sqlite.path("live.db"))).unwrap();
    assert_eq!(file.reuse_target().unwrap_err().kind(), Kind::Usage);
}

fn resume_free(to: &Path) -> RestoreRequest {
    RestoreRequest { resume: false, ..resume(to) }
}

fn resume(to: &Path) -> RestoreRequest {
    RestoreRequest { choice: Choice::Latest, to: to.to_owned(), sources: Vec::new(), only: Vec::new(), resume: true }
}

/// Dies when this phase begins.
struct CrashAt(&'static str);

impl Progress for CrashAt {
    fn event(&self, event: Event) {
        if let Event::Phase { name, .. } = event {
            assert_ne!(name, self.0, "planted crash");
        }
    }
}

/// A restore that dies when a phase begins: nothing of it is tidied up.
fn crash_at(phase: &'static str, world: &World, request: RestoreRequest, confirmed: Option<&str>) {
    let job = Job { progress: Arc::new(CrashAt(phase)), ..world.job() };
    let plan = restore::plan(&job, &request).unwrap();
    let died = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| restore::apply(&job, &plan, confirmed)));
    assert!(died.is_err(), "it has not come to {phase}");
}

#[test]
fn a_restore_that_died_after_its_content_was_in_place_is_only_ended() {
    let world = World::sqlite();
    world.backup();
    let target = world.path("live.db");
    let latest =
        |resume| RestoreRequest { choice: Choice::Latest, to: world.path("live.db"), sources: Vec::new(), only: Vec::new(), resume };
    for resume in [false, true] {
        let before = fs::read(&target).unwrap();
        crash_at("clean up", &world, latest(false), Some("live.db"));
        assert!(world.path(".live.db.lifeboat-partial").exists());
        let plan = restore::plan(&world.job(), &latest(resume)).unwrap();
        assert!(plan.resumes && plan.overwrites.is_empty() && plan.confirmation.is_none(), "{plan:?}");
        let report = restore::apply(&world.job(), &plan, None).unwrap();
        assert_eq!(report.bytes_resumed, report.bytes_restored);
        assert_eq!(fs::read(&report.moved_aside[0].moved_to).unwrap(), before, "what was moved aside is not forgotten");
        assert_eq!(rows(&target).len(), 2000);
        assert!(!world.path(".live.db.lifeboat-partial").exists());
    }

    // What has changed since is never taken for what was restored, nor overwritten.
    crash_at("clean up", &world, latest(false), Some("live.db"));
    Connection::open(&target).unwrap().execute_batch("PRAGMA journal_mode = DELETE; DELETE FROM customer WHERE id > 5").unwrap();
    for resume in [false, true] {
        let plan = restore::plan(&world.job(), &latest(resume)).unwrap();
        let changed = restore::apply(&world.job(), &plan, None).unwrap_err();
        assert_eq!(changed.kind(), Kind::Usage);
        assert!(changed.to_string().contains("changed since") && changed.hint_text().unwrap().contains("remove"), "{changed:?}");
        assert_eq!(rows(&target).len(), 5);
    }
    // Nor is anything else that stands there by now.
    fs::rename(&target, world.path("elsewhere.db")).unwrap();
    make_database(&target, 7);
    let plan = restore::plan(&world.job(), &latest(false)).unwrap();
    assert_eq!(plan.overwrites[0].path, target.display().to_string(), "{plan:?}");
    let report = restore::apply(&world.job(), &plan, Some("live.db")).unwrap();
    let databases = report.moved_aside.iter().filter(|m| m.path == target.display().to_string());
    let aside: Vec<usize> = databases.map(|m| rows(Path::new(&m.moved_to)).len()).collect();
    assert_eq!((rows(&target).len(), aside), (2000, vec![2000, 7]), "under two names: {report:?}");
}

#[test]
fn what_cannot_be_compared_again_is_ended_only_when_asked_to() {
    let world = World::sqlite();
    world.backup();
    let part = world.path("part.db");
    let only =
        RestoreRequest { choice: Choice::Latest, to: part.clone(), sources: Vec::new(), only: vec!["customer".into()], resume: false };
    crash_at("clean up", &world, only.clone(), None);
    let refused = restore::apply(&world.job(), &restore::plan(&world.job(), &only).unwrap(), None).unwrap_err();
    assert_eq!(refused.kind(), Kind::Usage);
    assert!(refused.hint_text().unwrap().contains("--resume"), "{refused:?}");
    let report = restore::apply(&world.job(), &restore::plan(&world.job(), &resume(&part)).unwrap(), None).unwrap();
    assert!(report.warnings.iter().any(|w| w.contains("cannot be compared")), "{report:?}");
    assert_eq!(rows(&part).len(), 2000);
    assert!(!world.path(".part.db.lifeboat-partial").exists());
}

#[test]
fn what_was_moved_aside_before_a_crash_is_reported_after_it() {
    let world = World::files();
    world.backup();
    let target = world.path("back");
    fs::create_dir(&target).unwrap();
    fs::write(target.join("precious"), "x").unwrap();
    let latest = RestoreRequest { resume: false, ..resume(&target) };
    crash_at("place", &world, latest, Some("back"));
    // As if it had died a little later: recorded and moved, but nothing in its place yet.
    let record = world.path(".back.lifeboat-partial/restore.json");
    let mut document: serde_json::Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    let aside = world.path(&format!("back.before-restore-{}", document["id"].as_str().unwrap()));
    let moved = serde_json::json!([{ "path": target, "what": "a folder with 1 entry", "moved_to": aside }]);
    document["placing"] = serde_json::json!({ "inode": 1, "moved_aside": moved });
    fs::write(&record, document.to_string()).unwrap();
    fs::rename(&target, &aside).unwrap();
    let report = restore::apply(&world.job(), &restore::plan(&world.job(), &resume(&target)).unwrap(), None).unwrap();
    assert_eq!(serde_json::to_value(&report.moved_aside).unwrap(), moved);
    assert_eq!(census(&target), census(&world.path("live")));
}

#[test]
fn a_second_backup_of_the_same_plan_is_busy() {
    let mut world = World::sqlite();
    let inner = world.job();
    let seen: Arc<std::sync::Mutex<Option<Kind>>> = Arc::default();
    let result = Arc::clone(&seen);
    let planted = Planted {
        at_begin: Some(Box::new(move |_| *result.lock().unwrap() = backup::run(&inner).err().map(|e| e.kind()))),
        ..Planted::over(&world.resolved.sources[0])
    };
    world.resolved.sources[0] = planted.named("crm");
    backup::run(&world.job()).unwrap();
    assert_eq!(*seen.lock().unwrap(), Some(Kind::Busy));
    assert_eq!(world.job().repository.manifests(None).unwrap().len(), 1);
}

#[test]
fn a_clock_that_goes_backwards_is_told_and_harms_nothing() {
    let world = World::sqlite();
    let first = world.backup();
    world.pass(-7200);
    Connection::open(world.path("live.db")).unwrap().execute_batch("DELETE FROM customer").unwrap();
    let second = backup::run(&world.job()).unwrap();
    assert!(second.time < first.time);
    assert!(second.warnings.iter().any(|w| w.contains("clock")), "{second:?}");
    let restored = world.restore(Choice::Latest, "back.db").unwrap();
    assert_eq!(restored.snapshot, second.snapshot, "the latest is what was committed last");
    assert!(rows(&world.path("back.db")).is_empty());
}

#[test]
fn a_snapshot_of_the_future_has_no_data_loss_of_0() {
    let mut world = World::sqlite();
    world.backup();
    world.pass(-7200);
    let drilled = world.drill();
    assert_eq!((drilled.verdict, drilled.data_loss_ms), (Verdict::Passed, None), "{}", report::text(&drilled));
    assert!(drilled.warnings.iter().any(|warning| warning.contains("a clock is wrong")), "{drilled:?}");
    assert!(report::text(&drilled).contains("not known"));
    world.resolved.objectives.data_loss = Some(Duration::from_mins(1));
    let drilled = world.drill();
    assert_eq!((drilled.verdict, drilled.exit()), (Verdict::Incomplete, Some(Kind::Incomplete)), "{}", report::text(&drilled));
    assert!(!drilled.objectives[0].met && drilled.skipped[0].contains("a clock is wrong"), "{drilled:?}");
}

#[test]
fn a_drill_proves_and_leaves_nothing() {
    let mut world = World::sqlite();
    let check = |name_: &str, sql: &str, expect: &str| PlannedCheck {
        source: name("crm"),
        check: SqlCheck {
            name: name_.into(),
            sql: sql.into(),
            expect: Expectation::parse(expect).unwrap(),
            database: None,
            timeout: Duration::from_secs(10),
        },
    };
    world.resolved.drill.checks = vec![check("customers", "select count(*) from customer", "= 2000")];
    world.resolved.objectives.recovery_time = Some(Duration::from_mins(10));
    let made = world.backup();
    let drilled = world.drill();
    assert_eq!((drilled.verdict, drilled.exit()), (Verdict::Passed, None), "{}", report::text(&drilled));
    assert_eq!(drilled.snapshot, made.snapshot);
    assert_eq!(drilled.data_loss_ms, Some(60_000));
    assert!(drilled.objectives[0].met && drilled.cleanup.removed);
    assert_eq!(
        drilled.phases.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(),
        ["select", "fetch", "adopt", "place", "check", "compare", "cleanup"]
    );
    let sum: u64 = drilled.phases.iter().map(|p| p.duration_ms).sum();
    assert!(sum <= drilled.duration_ms && drilled.duration_ms - sum <= 100, "phases count each moment once: {:?}", drilled.phases);
    assert!(drilled.checks.iter().any(|c| c.name == "customers" && c.outcome == Outcome::Passed), "{:?}", drilled.checks);
    world.assert_clean();

    let job = world.job();
    let (past, damaged) = drill::history(&job.repository, Some(&job.plan)).unwrap();
    assert!(damaged.is_empty());
    assert_eq!(past, std::slice::from_ref(&drilled));
    assert_eq!(drill::find(&job.repository, &drilled.id.to_string()[..20]).unwrap(), drilled);
    let list = snapshots::run(&job.repository, None, Utc::now()).unwrap();
    assert_eq!(list.snapshots[0].proven_at, Some(drilled.time));
    let request =
        RestoreRequest { choice: Choice::LatestProven, to: world.path("x.db"), sources: Vec::new(), only: Vec::new(), resume: false };
    let plan = restore::plan(&job, &request).unwrap();
    assert_eq!(plan.estimate.basis, "from the last drill of this plan");

    // The same with an assertion that does not hold: exit 20.
    world.resolved.drill.checks.push(check("too many", "select count(*) from customer", "> 5000"));
    let failed = world.drill();
    assert_eq!((failed.verdict, failed.exit()), (Verdict::Failed, Some(Kind::Damaged)));
    // With one for a source that is not there: incomplete.
    world.resolved.drill.checks = vec![PlannedCheck { source: name("other"), ..check("x", "select 1", "= 1") }];
    let incomplete = world.drill();
    assert_eq!((incomplete.verdict, incomplete.exit()), (Verdict::Incomplete, Some(Kind::Incomplete)));
}

#[test]
fn what_is_left_to_do_before_something_can_be_used_is_recovery_time_and_checks_are_not() {
    const REST: Duration = Duration::from_millis(1500);
    let mut world = World::sqlite();
    world.resolved.objectives.recovery_time = Some(REST);
    world.backup();
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap();
    let honest = world.resolved.sources[0].clone();
    let mut drilled_with = |finish: fn(&mut dyn FnMut())| {
        world.resolved.sources[0] = Planted { finish: Some(finish), ..Planted::over(&honest) }.named("crm");
        world.drill()
    };

    let slow = drilled_with(|usable| {
        std::thread::sleep(REST + Duration::from_millis(1));
        usable();
        std::thread::sleep(REST);
    });
    let names: Vec<_> = slow.phases.iter().map(|phase| phase.name.as_str()).collect();
    assert_eq!(names, ["select", "fetch", "adopt", "place", "load", "check", "compare", "cleanup"]);
    let took = |name: &str| slow.phases.iter().find(|phase| phase.name == name).unwrap().duration_ms;
    assert!(took("load") > ms(REST) && took("check") >= ms(REST), "{:?}", slow.phases);
    let recovery = slow.recovery_time_ms.unwrap();
    let sum: u64 = slow.phases[..5].iter().map(|phase| phase.duration_ms).sum();
    assert!(sum <= recovery && recovery - sum <= 100, "{recovery} {:?}", slow.phases);
    assert!(recovery + ms(REST) <= slow.duration_ms, "checks come after it");
    assert_eq!((slow.verdict, slow.exit()), (Verdict::Passed, Some(Kind::ObjectiveMissed)), "{}", report::text(&slow));
    assert_eq!(slow.objectives[0].actual_ms, Some(recovery));

    let never = drilled_with(|_| ());
    assert_eq!((never.recovery_time_ms, never.objectives[0].met), (None, false), "{}", report::text(&never));
    assert!(never.phases.iter().any(|phase| phase.name == "load"), "{:?}", never.phases);
}

#[test]
fn a_drill_notices_what_was_planted_in_the_restored_copy() {
    type Plant = fn(&Path);
    let plants: [(&str, Plant); 8] = [
        ("a flipped byte", |root| {
            let time = fs::metadata(root.join("deep/er/big")).unwrap().modified().unwrap();
            flip(&root.join("deep/er/big"), 4_000_000);
            fs::File::open(root.join("deep/er/big")).unwrap().set_times(fs::FileTimes::new().set_modified(time)).unwrap();
        }),
        ("a byte in a hole", |root| flip(&root.join("sparse"), 2_500_000)),
        ("a missing file", |root| fs::remove_file(root.join("deep/file 7")).unwrap()),
        ("a file too many", |root| fs::write(root.join("deep/extra"), "x").unwrap()),
        ("another link", |root| {
            fs::remove_file(root.join("link")).unwrap();
            symlink("elsewhere", root.join("link")).unwrap();
        }),
        ("an attribute too many", |root| {
            rustix::fs::setxattr(root.join("nothing"), "user.planted", b"x", rustix::fs::XattrFlags::empty()).unwrap();
        }),
        ("another time of a link", |root| {
            let time = rustix::fs::Timespec { tv_sec: 1, tv_nsec: 0 };
            let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
            rustix::fs::utimensat(rustix::fs::CWD, root.join("link"), &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
        }),
        ("other rights", |root| fs::set_permissions(root.join("nothing"), fs::Permissions::from_mode(0o666)).unwrap()),
    ];
    let mut world = World::files();
    world.backup();
    let honest = world.resolved.sources[0].clone();
    for (what, plant) in plants {
        let planted = Planted { after_adopt: Some(Box::new(move |usable: &PathBuf| plant(usable))), ..Planted::over(&honest) };
        world.resolved.sources[0] = planted.named("attachments");
        let drilled = world.drill();
        assert_eq!((drilled.verdict, drilled.exit()), (Verdict::Failed, Some(Kind::Differs)), "{what}: {}", report::text(&drilled));
        world.assert_clean();
    }
    world.resolved.sources[0] = honest;
    assert_eq!(world.drill().verdict, Verdict::Passed);
}

#[test]
fn a_drill_compares_owners_and_attributes() {
    let mut world = World::files();
    rustix::fs::setxattr(world.path("live/nothing"), "user.note", b"kept", rustix::fs::XattrFlags::empty()).unwrap();
    world.backup();
    let equal = world.drill();
    assert_eq!(equal.verdict, Verdict::Passed, "{}", report::text(&equal));
    assert!(equal.checks.iter().any(|c| c.name == "owners and attributes" && c.outcome == Outcome::Passed), "{equal:?}");
    let honest = world.resolved.sources[0].clone();
    let differs = |world: &mut World, plant: fn(&Path)| {
        let planted = Planted { after_adopt: Some(Box::new(move |usable: &PathBuf| plant(usable))), ..Planted::over(&honest) };
        world.resolved.sources[0] = planted.named("attachments");
        let drilled = world.drill();
        assert_eq!((drilled.verdict, drilled.exit()), (Verdict::Failed, Some(Kind::Differs)), "{}", report::text(&drilled));
        assert!(drilled.reasons.iter().any(|reason| reason.contains("owners and attributes")), "{:?}", drilled.reasons);
    };
    differs(&mut world, |root| {
        rustix::fs::setxattr(root.join("nothing"), "user.note", b"lost", rustix::fs::XattrFlags::empty()).unwrap();
    });
    if rustix::process::geteuid().is_root() {
        differs(&mut world, |root| std::os::unix::fs::lchown(root.join("link"), Some(12_345), None).unwrap());
    }
}

#[test]
fn lost_attributes_make_a_restore_incomplete_and_a_drill_says_what_it_could_not_compare() {
    let mut world = World::files();
    let edit = |entry: &mut Entry| {
        if entry.path == b"nothing" {
            // The kernel refuses a name without an end.
            entry.xattrs.push((b"user.".to_vec(), b"x".to_vec()));
        }
    };
    world.resolved.sources[0] = Planted { edit, ..Planted::over(&world.resolved.sources[0]) }.named("attachments");
    world.backup();
    let restored = world.restore(Choice::Latest, "back").unwrap();
    assert_eq!((restored.exit(), restored.lost), (Some(Kind::Incomplete), 1), "{restored:?}");
    assert!(restored.warnings.iter().any(|warning| warning.contains("attributes were not restored")), "{restored:?}");
    let drilled = world.drill();
    assert_eq!((drilled.verdict, drilled.exit()), (Verdict::Incomplete, Some(Kind::Incomplete)), "{}", report::text(&drilled));
    let skipped = drilled.checks.iter().find(|check| check.outcome == Outcome::Skipped).unwrap();
    assert!(skipped.name == "owners and attributes" && skipped.actual.contains("nothing: attribute user."), "{skipped:?}");
}

#[test]
fn a_drill_notices_a_changed_row() {
    let mut world = World::sqlite();
    world.backup();
    let change = |usable: &PathBuf| {
        Connection::open(usable)
            .unwrap()
            .execute_batch("PRAGMA journal_mode = DELETE; UPDATE customer SET name = 'somebody else' WHERE id = 42")
            .unwrap();
    };
    world.resolved.sources[0] = Planted { after_adopt: Some(Box::new(change)), ..Planted::over(&world.resolved.sources[0]) }.named("crm");
    let drilled = world.drill();
    assert_eq!((drilled.verdict, drilled.exit()), (Verdict::Failed, Some(Kind::Differs)), "{}", report::text(&drilled));
    assert!(drilled.reasons.iter().any(|r| r.contains("customer")), "{:?}", drilled.reasons);
    assert_eq!(snapshots::run(&world.job().repository, None, world.clock.now()).unwrap().snapshots[0].proven_at, None);
}

fn packs(world: &World) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![world.path("repository/packs")];
    while let Some(folder) = folders.pop() {
        for item in fs::read_dir(&folder).unwrap() {
            let path = item.unwrap().path();
            if path.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    found.sort_by_key(|p| fs::metadata(p).unwrap().len());
    found
}

fn verify_all(world: &World, depth: Depth) -> VerifyReport {
    let job = world.job();
    verify::run(&job.repository, Some(&job.plan), depth, &world.clock, &Silent, &Cancel::default()).unwrap()
}

#[test]
fn damage_in_the_repository_fails_drill_restore_and_verify() {
    let world = World::files();
    let made = world.backup();
    let good = verify_all(&world, Depth::Data { percent: 100 });
    assert_eq!((good.exit(), good.findings.len()), (None, 0), "{good:?}");
    assert!(good.bytes_checked > 6_000_000);
    world.pass(1);
    assert_eq!(world.drill().exit(), None);
    let listed = |world: &World| snapshots::run(&world.job().repository, None, world.clock.now()).unwrap().snapshots[0].clone();
    assert!(listed(&world).verified_at.is_some() && listed(&world).proven_at.is_some());

    let pack = packs(&world).pop().unwrap();
    fs::set_permissions(&pack, fs::Permissions::from_mode(0o600)).unwrap();
    flip(&pack, fs::metadata(&pack).unwrap().len() / 2);
    world.pass(1);
    let drilled = world.drill();
    assert_eq!((drilled.verdict, drilled.exit()), (Verdict::Failed, Some(Kind::Damaged)), "{}", report::text(&drilled));
    assert!(drilled.recovery_time_ms.is_none());
    assert_eq!(listed(&world).proven_at, None, "a later drill disproved it");
    world.assert_clean();

    let error = world.restore(Choice::Latest, "back").unwrap_err();
    assert_eq!(error.kind(), Kind::Damaged, "{error:?}");
    assert!(!world.path("back").exists());

    world.pass(1);
    let bad = verify_all(&world, Depth::Data { percent: 100 });
    assert_eq!(bad.exit(), Some(Kind::Damaged));
    assert!(bad.findings.iter().any(|f| f.snapshots.contains(&made.snapshot)), "{bad:?}");
    assert_eq!(listed(&world).verified_at, None);
    assert_eq!(listed(&world).damaged.map(|known| (known.found_by, known.time)), Some(("verify".into(), bad.time)));
}

/// One host's clock stood ten years ahead once, and another one's is an hour behind.
#[test]
fn a_report_by_a_wrong_clock_silences_nothing_that_is_found_later() {
    const YEARS: i64 = 3653 * 86_400;
    let world = World::files();
    let made = world.backup();
    let listed = || snapshots::run(&world.job().repository, None, world.clock.now()).unwrap().snapshots[0].clone();
    let all = Depth::Data { percent: 100 };
    world.pass(YEARS);
    assert_eq!((verify_all(&world, all).exit(), world.drill().exit()), (None, None));
    assert!(listed().verified_at.is_some() && listed().proven_at.is_some());
    world.pass(-YEARS);
    assert_eq!((listed().verified_at, listed().proven_at), (None, None), "when that was nobody knows");
    assert!(world.restore(Choice::LatestProven, "back").is_err());
    let (sound, proven) = (verify_all(&world, all), world.drill());
    assert_eq!((listed().verified_at, listed().proven_at), (Some(sound.time), Some(proven.time)));

    let pack = packs(&world).pop().unwrap();
    fs::set_permissions(&pack, fs::Permissions::from_mode(0o600)).unwrap();
    flip(&pack, fs::metadata(&pack).unwrap().len() / 2);
    world.pass(-3600);
    let bad = verify_all(&world, all);
    assert_eq!((bad.exit(), bad.time < sound.time, bad.id > proven.id), (Some(Kind::Damaged), true, true));
    for passed in [0, 3660, YEARS, YEARS] {
        world.pass(passed);
        let listed = listed();
        assert_eq!((listed.verified_at, listed.proven_at), (None, None));
        assert_eq!(listed.damaged.map(|known| (known.report, known.time)), Some((bad.id, bad.time)));
    }
    world.pass(-2 * YEARS - 3660);
    flip(&pack, fs::metadata(&pack).unwrap().len() / 2);
    assert_eq!(verify_all(&world, all).exit(), None);
    let listed = listed();
    assert_eq!((listed.damaged, listed.id), (None, made.snapshot), "a later one took it back, by whatever clock");
}

#[test]
fn damage_that_is_known_is_told_before_and_after_a_restore() {
    let world = World::files();
    let first = world.backup();
    let old = packs(&world);
    fs::write(world.path("live/new"), noise(77, 2_000_000)).unwrap();
    let second = world.backup();
    let list = || snapshots::run(&world.job().repository, None, world.clock.now()).unwrap();
    assert_eq!((list().recovery_ranges[0].points, list().exit()), (2, None));
    let pack = packs(&world).into_iter().rfind(|pack| !old.contains(pack)).unwrap();
    fs::set_permissions(&pack, fs::Permissions::from_mode(0o600)).unwrap();
    flip(&pack, fs::metadata(&pack).unwrap().len() / 2);
    let drilled = world.drill();
    assert_eq!(drilled.exit(), Some(Kind::Damaged));
    assert!(drilled.warnings.iter().any(|w| w.contains("1 damaged pack is marked")), "{:?}", drilled.warnings);

    let found = list();
    assert_eq!((found.recovery_ranges[0].points, found.recovery_ranges[0].to), (1, first.time), "what is damaged cannot be recovered");
    assert!(found.snapshots[0].damaged.is_none());
    assert_eq!(found.snapshots[1].damaged.as_ref().map(|d| (d.found_by.as_str(), d.report)), Some(("drill", drilled.id)));
    assert_eq!(found.exit(), Some(Kind::Damaged));
    for choice in [Choice::Latest, Choice::Snapshot(second.snapshot.to_string())] {
        let request = RestoreRequest { choice, to: world.path("back"), sources: Vec::new(), only: Vec::new(), resume: false };
        let plan = restore::plan(&world.job(), &request).unwrap();
        assert!(plan.warnings.iter().any(|w| w.contains("known to be damaged")), "{:?}", plan.warnings);
    }
    let latest = RestoreRequest { choice: Choice::Latest, to: world.path("back"), sources: Vec::new(), only: Vec::new(), resume: false };
    let plan = restore::plan(&world.job(), &latest).unwrap();
    assert!(plan.warnings.iter().any(|w| w.contains(&format!("without known damage is {}", first.snapshot))), "{:?}", plan.warnings);
    let sound = restore::plan(&world.job(), &RestoreRequest { choice: Choice::Snapshot(first.snapshot.to_string()), ..latest }).unwrap();
    assert!(sound.warnings.is_empty(), "{:?}", sound.warnings);
}

/// After a pack went bad and `find` met it, the next backup must not lean on it.
fn is_stored_again_after(find: impl Fn(&World)) {
    let world = World::files();
    world.backup();
    let pack = packs(&world).pop().unwrap();
    fs::set_permissions(&pack, fs::Permissions::from_mode(0o600)).unwrap();
    flip(&pack, fs::metadata(&pack).unwrap().len() / 2);
    find(&world);
    let again = world.backup();
    assert!(again.bytes_stored > 1_000_000, "{again:?}");
    world.restore(Choice::Latest, "back").unwrap();
    assert_eq!(census(&world.path("live")), census(&world.path("back")));
}

#[test]
fn a_pack_that_a_drill_or_restore_found_damaged_is_stored_again() {
    is_stored_again_after(|world| assert_eq!(world.drill().exit(), Some(Kind::Damaged)));
    is_stored_again_after(|world| {
        assert_eq!(world.restore(Choice::Latest, "bad").unwrap_err().kind(), Kind::Damaged);
    });
}

#[test]
fn a_repository_that_takes_no_mark_fails_no_restore_otherwise() {
    let world = World::files();
    world.backup();
    let pack = packs(&world).pop().unwrap();
    fs::set_permissions(&pack, fs::Permissions::from_mode(0o600)).unwrap();
    flip(&pack, fs::metadata(&pack).unwrap().len() / 2);
    // Where the marks belong stands a file.
    fs::write(world.path("repository/gc"), "").unwrap();
    let error = world.restore(Choice::Latest, "bad").unwrap_err();
    assert_eq!(error.kind(), Kind::Damaged, "{error:?}");
    let drilled = world.drill();
    assert_eq!(drilled.exit(), Some(Kind::Damaged));
    assert!(drilled.warnings.iter().any(|w| w.contains("could not be marked")), "{:?}", drilled.warnings);
}

#[test]
fn a_damaged_manifest_does_not_hide_the_others() {
    let world = World::sqlite();
    let first = world.backup();
    let second = world.backup();
    let chain = fs::read_dir(world.path("repository/snapshots")).unwrap().next().unwrap().unwrap().path();
    let manifest = chain.join(second.snapshot.to_string());
    fs::set_permissions(&manifest, fs::Permissions::from_mode(0o600)).unwrap();
    flip(&manifest, fs::metadata(&manifest).unwrap().len() / 2);
    // Opened anew, as another process would.
    let job = world.resolved.open(&world.surroundings()).unwrap();
    let list = snapshots::run(&job.repository, None, Utc::now()).unwrap();
    assert_eq!((list.snapshots.len(), list.damaged.len(), list.exit()), (1, 1, Some(Kind::Damaged)));
    let request =
        RestoreRequest { choice: Choice::Latest, to: world.path("back.db"), sources: Vec::new(), only: Vec::new(), resume: false };
    let plan = restore::plan(&job, &request).unwrap();
    assert_eq!(plan.snapshot, first.snapshot);
    assert!(plan.warnings.iter().any(|w| w.contains("cannot be read")), "{:?}", plan.warnings);
    assert_eq!(plan.newer_unread, [second.snapshot]);
    let told = |warnings: &[String]| warnings.iter().any(|w| w.starts_with("a newer snapshot cannot be read; this is 2 min 0 s older"));
    let done = restore::apply(&job, &plan, None).unwrap();
    assert_eq!((done.exit(), done.incomplete), (Some(Kind::Incomplete), false), "not what was asked for");
    assert!(told(&done.warnings), "{:?}", done.warnings);
    assert!(done.warnings.iter().any(|w| w.contains("its snapshot cannot be chosen")), "an older one came back: {done:?}");
    assert_eq!(rows(&world.path("back.db")).len(), 2000);
    let by = |choice| restore_by(&job, choice, &world.path("again.db"), None).map(|done| (done.exit(), told(&done.warnings)));
    let at = |time| {
        let back = by(Choice::At(time)).unwrap();
        fs::remove_file(world.path("again.db")).unwrap();
        back
    };
    assert_eq!(at(world.clock.now()), (Some(Kind::Incomplete), true));
    assert_eq!(at(first.time), (None, false), "the damaged one is later than that");
    assert_eq!(by(Choice::Snapshot(first.snapshot.to_string())).unwrap(), (None, false), "it was named");
    let named = RestoreRequest { choice: Choice::Snapshot(second.snapshot.to_string()), ..request };
    assert_eq!(restore::plan(&job, &named).unwrap_err().kind(), Kind::Damaged);
    let drilled = drill::run(&job, &DrillRequest::default()).unwrap();
    assert_eq!((drilled.verdict, drilled.exit()), (Verdict::Incomplete, Some(Kind::Incomplete)));
    assert_eq!(doctor::run(&world.resolved, &[], &world.surroundings()).exit(), Some(Kind::Damaged));
    assert_eq!(verify_all(&world, Depth::Structure).exit(), Some(Kind::Damaged));
    let third = backup::run(&job).unwrap();
    assert!(third.warnings.iter().any(|w| w.contains("cannot be read")), "{:?}", third.warnings);
}

#[test]
fn a_rotating_verification_covers_everything_in_its_runs() {
    let world = World::files();
    world.backup();
    let mut bytes = 0;
    for run in 0..2 {
        world.pass(1);
        let report = verify_all(&world, Depth::Data { percent: 50 });
        assert_eq!((report.run, report.percent, report.exit()), (Some(run), Some(50), None));
        bytes += report.bytes_checked;
    }
    assert!(bytes >= 6_000_000, "{bytes}");
    assert!(snapshots::run(&world.job().repository, None, world.clock.now()).unwrap().snapshots[0].verified_at.is_some());
}

/// Else whoever may write, or may not be written by, has the same share verified for ever.
#[test]
fn the_share_that_comes_next_is_counted_by_readers_and_remembered() {
    let world = World::files();
    world.backup();
    let next = |repository: &Repository| {
        world.pass(1);
        verify::run(repository, None, Depth::Data { percent: 50 }, &world.clock, &Silent, &Cancel::default()).unwrap()
    };
    assert_eq!(next(&world.repository).run, Some(0));
    let words = Passphrase::new("words of a writer");
    world.repository.add_key("writer", Role::Writer, &words, world.clock.now()).unwrap();
    let open = |store: &Store, words: &Passphrase, cache: Option<&str>| {
        let options = OpenOptions { cache: cache.map(|folder| world.path(folder)), workers: 2 };
        Repository::open(store.clone(), world.runtime.handle().clone(), words, &options).unwrap()
    };
    let store = world.repository.store();
    let time = world.clock.now();
    let forged = ReportRecord {
        id: lifeboat::id::ReportId::generate(time + chrono::Duration::days(1)),
        kind: ReportKind::Verify,
        time: time + chrono::Duration::days(1),
        plan: None,
        snapshots: Vec::new(),
        passed: true,
        document: serde_json::json!({"percent": 50, "run": u64::MAX}),
    };
    open(store, &words, None).put_report(&forged).unwrap();
    assert_eq!((next(&world.repository).run, next(&world.repository).run), (Some(1), Some(2)));
    // By the reports where nothing is remembered; as it is remembered where reports cannot be stored, or are taken away.
    let reader = Passphrase::new("correct horse battery staple");
    let refusing = Faults::new();
    let store = Store::with_faults(store.clone(), refusing.clone());
    let apart = open(&store, &reader, Some("apart"));
    assert_eq!(next(&apart).run, Some(3));
    refusing.add(Rule::on(Verb::Create).below("reports/").always().then(Effect::Fail(Kind::Failed)));
    let refused = (next(&apart), next(&apart));
    assert_eq!((refused.0.run, refused.1.run, refused.1.exit()), (Some(4), Some(5), None), "{refused:?}");
    // Neither the one nor the other: what was not read never will be, and that is no success.
    let forgetful = next(&open(&store, &reader, None));
    assert_eq!(forgetful.exit(), Some(Kind::Incomplete), "{forgetful:?}");
    assert!(forgetful.skipped[0].contains("reads the same ones"), "{:?}", forgetful.skipped);
}

#[test]
fn a_drill_keeps_to_its_limits() {
    let mut world = World::files();
    world.backup();
    world.resolved.drill.disk_limit_bytes = Some(1_000_000);
    let large = world.drill();
    assert_eq!((large.verdict, large.exit()), (Verdict::Failed, Some(Kind::NoSpace)));
    world.resolved.drill.disk_limit_bytes = None;
    world.resolved.drill.time_limit = Some(Duration::ZERO);
    // The limit is looked at every 50 ms: something must take longer than that.
    let slow = |_: &PathBuf| std::thread::sleep(Duration::from_millis(400));
    world.resolved.sources[0] =
        Planted { after_adopt: Some(Box::new(slow)), ..Planted::over(&world.resolved.sources[0]) }.named("attachments");
    let late = world.drill();
    assert_eq!((late.verdict, late.exit()), (Verdict::Failed, Some(Kind::Failed)), "{}", report::text(&late));
    assert!(late.reasons[0].contains("time limit"), "{:?}", late.reasons);
    assert!(late.cleanup.removed);
    world.assert_clean();
}

#[test]
fn an_objective_that_is_missed_is_exit_22_and_no_damage() {
    let mut world = World::sqlite();
    world.backup();
    world.resolved.objectives.data_loss = Some(Duration::from_secs(30));
    let drilled = world.drill();
    assert_eq!((drilled.verdict, drilled.exit()), (Verdict::Passed, Some(Kind::ObjectiveMissed)), "{}", report::text(&drilled));
    assert!(report::text(&drilled).contains("MISSED"));
    assert!(snapshots::run(&world.job().repository, None, world.clock.now()).unwrap().snapshots[0].proven_at.is_some());
}

#[test]
fn a_kept_target_stays_until_its_time_is_over() {
    let world = World::sqlite();
    world.backup();
    let request = DrillRequest { keep_target: Some(Duration::from_hours(1)), ..DrillRequest::default() };
    let drilled = drill::run(&world.job(), &request).unwrap();
    assert!(drilled.cleanup.removed);
    let kept = PathBuf::from(drilled.cleanup.kept.unwrap());
    assert_eq!(rows(&kept).len(), 2000);
    world.pass(3000);
    world.backup();
    assert!(kept.exists());
    world.pass(600);
    world.backup();
    assert!(!kept.exists());
    world.assert_clean();
}

#[test]
fn a_random_drill_records_its_seed() {
    let mut world = World::sqlite();
    for _ in 0..3 {
        world.backup();
    }
    world.resolved.drill.random = true;
    let drilled = world.drill();
    let again = DrillRequest { choice: Some(Choice::Random { seed: drilled.seed.unwrap(), window: None }), keep_target: None };
    assert_eq!(drill::run(&world.job(), &again).unwrap().snapshot, drilled.snapshot);
}

#[test]
fn without_a_snapshot_or_the_key_nothing_begins() {
    let mut world = World::sqlite();
    assert_eq!(drill::run(&world.job(), &DrillRequest::default()).unwrap_err().kind(), Kind::NoRecoveryPoint);
    assert_eq!(world.restore(Choice::Latest, "x").unwrap_err().kind(), Kind::NoRecoveryPoint);
    let again = init::run(&world.resolved.repository, &world.surroundings()).err().unwrap();
    assert_eq!(again.kind(), Kind::AlreadyExists);
    world.backup();
    let future = world.clock.now() + chrono::Duration::days(1);
    assert_eq!(world.restore(Choice::At(future), "x").unwrap_err().kind(), Kind::NoRecoveryPoint);
    assert_eq!(world.restore(Choice::At(DateTime::<Utc>::UNIX_EPOCH), "x").unwrap_err().kind(), Kind::NoRecoveryPoint);
    world.resolved.repository.passphrase = Passphrase::new("something else altogether");
    assert_eq!(world.resolved.open(&world.surroundings()).err().unwrap().kind(), Kind::WrongKey);
    let doctor = doctor::run(&world.resolved, &[], &world.surroundings());
    assert_eq!(doctor.exit(), Some(Kind::WrongKey));
}

#[test]
fn doctor_looks_at_everything() {
    let world = World::sqlite();
    world.backup();
    let healthy = doctor::run(&world.resolved, &[], &world.surroundings());
    assert!(healthy.ok, "{healthy:?}");
    for wanted in ["state folder", "store", "repository", "key", "clock", "room for a drill"] {
        assert!(healthy.checks.iter().any(|c| c.name == wanted), "{wanted}: {healthy:?}");
    }
    assert!(healthy.checks.iter().any(|c| c.name.starts_with("source crm")));
    fs::remove_file(world.path("live.db")).unwrap();
    world.pass(-86_400);
    let ill = doctor::run(&world.resolved, &[], &world.surroundings());
    assert_eq!(ill.exit(), Some(Kind::Usage));
    let wrong: Vec<&str> = ill.checks.iter().filter(|c| !c.ok).map(|c| c.name.as_str()).collect();
    assert!(wrong.contains(&"clock") && wrong.iter().any(|n| n.starts_with("source crm")), "{wrong:?}");
}

#[test]
fn single_tables_come_back_alone() {
    let world = World::sqlite();
    fs::set_permissions(world.path("live.db"), fs::Permissions::from_mode(0o600)).unwrap();
    world.backup();
    let job = world.job();
    let request = |tables: &[&str]| RestoreRequest {
        choice: Choice::Latest,
        to: world.path("part.db"),
        sources: Vec::new(),
        only: tables.iter().map(|t| (*t).to_owned()).collect(),
        resume: false,
    };
    let unknown = restore::apply(&job, &restore::plan(&job, &request(&["nope"])).unwrap(), None).unwrap_err();
    assert_eq!(unknown.kind(), Kind::Usage);
    assert!(!world.path(".part.db.lifeboat-partial").exists());
    restore::apply(&job, &restore::plan(&job, &request(&["customer"])).unwrap(), None).unwrap();
    assert_eq!(rows(&world.path("part.db")), rows(&world.path("live.db")));
    assert_eq!(fs::metadata(world.path("part.db")).unwrap().mode() & 0o777, 0o600, "as the database, whatever the umask");
    assert!(Connection::open(world.path("part.db")).unwrap().prepare("SELECT * FROM note").is_err());
}

/// A CRM as the demo's: tables that refer to one another.
fn make_crm(path: &Path) {
    let made = "
        CREATE TABLE accounts (id INTEGER PRIMARY KEY, name TEXT NOT NULL, custom TEXT NOT NULL CHECK (json_valid(custom))) STRICT;
        CREATE TABLE contacts (id INTEGER PRIMARY KEY, account_id INTEGER NOT NULL REFERENCES accounts (id), name TEXT NOT NULL) STRICT;
        CREATE TABLE orders (id INTEGER PRIMARY KEY, account_id INTEGER NOT NULL REFERENCES accounts (id), number TEXT NOT NULL UNIQUE) STRICT;
        CREATE TABLE order_lines (order_id INTEGER NOT NULL REFERENCES orders (id), line INTEGER NOT NULL, quantity INTEGER NOT NULL,
            total INTEGER GENERATED ALWAYS AS (quantity * 3) STORED, PRIMARY KEY (order_id, line)) WITHOUT ROWID, STRICT;
        CREATE INDEX orders_by_account ON orders (account_id);
        INSERT INTO accounts VALUES (1, 'a', '{}'), (2, 'b', '{}'); INSERT INTO contacts VALUES (1, 2, 'c');
        INSERT INTO orders VALUES (7, 1, 'n7'), (8, 2, 'n8'); INSERT INTO order_lines(order_id, line, quantity) VALUES (7, 1, 5), (8, 1, 6)";
    Connection::open(path).unwrap().execute_batch(made).unwrap();
}

#[test]
fn tables_that_refer_to_others_come_back_alone_and_together() {
    let world = World::new(|folder| {
        make_crm(&folder.join("live.db"));
        vec![sqlite("crm", &folder.join("live.db"))]
    });
    world.backup();
    let job = world.job();
    let dump = |path: &Path, table: &str| -> Vec<String> {
        let database = Connection::open(path).unwrap();
        let mut statement = database.prepare(&format!("SELECT * FROM {table}")).unwrap();
        let columns = statement.column_count();
        let read =
            |row: &rusqlite::Row<'_>| (0..columns).map(|at| Ok(format!("{:?}", row.get_ref(at)?))).collect::<rusqlite::Result<String>>();
        statement.query_map([], read).unwrap().map(Result::unwrap).collect()
    };
    let all = ["order_lines", "orders", "contacts", "accounts"];
    let alone = all.iter().map(|table| vec![*table]);
    for (number, tables) in alone.chain([vec!["contacts", "orders"], all.to_vec()]).enumerate() {
        let to = world.path(&format!("part{number}.db"));
        let only = tables.iter().map(|table| (*table).to_owned()).collect();
        let request = RestoreRequest { choice: Choice::Latest, to: to.clone(), sources: Vec::new(), only, resume: false };
        let report = restore::apply(&job, &restore::plan(&job, &request).unwrap(), None).unwrap();
        for table in &tables {
            assert_eq!(dump(&to, table), dump(&world.path("live.db"), table), "{tables:?}: {table}");
        }
        let told = report.warnings.iter().any(|w| w.contains("not in the new database"));
        assert_eq!(told, !tables.contains(&"accounts"), "{tables:?}: {report:?}");
    }
}

#[test]
fn tables_that_cannot_be_taken_alone_leave_nothing_in_the_way() {
    let world = World::new(|folder| {
        let database = Connection::open(folder.join("live.db")).unwrap();
        database.create_scalar_function("ours", 1, rusqlite::functions::FunctionFlags::SQLITE_DETERMINISTIC, |_| Ok(7)).unwrap();
        database.execute_batch("CREATE TABLE t(a); CREATE INDEX i ON t(ours(a)); INSERT INTO t VALUES (1)").unwrap();
        vec![sqlite("crm", &folder.join("live.db"))]
    });
    world.backup();
    let request =
        RestoreRequest { choice: Choice::Latest, to: world.path("part.db"), sources: Vec::new(), only: vec!["t".into()], resume: false };
    let error = restore::apply(&world.job(), &restore::plan(&world.job(), &request).unwrap(), None).unwrap_err();
    let hint = error.hint_text().unwrap();
    assert!(hint.contains("whole database") && !hint.contains("--resume"), "{hint}");
    assert!(!world.path(".part.db.lifeboat-partial").exists());

    // One that was interrupted before keeps what it has for the next command, whatever that asks for.
    crash_at("adopt", &world, request.clone(), None);
    let error = restore::apply(&world.job(), &restore::plan(&world.job(), &resume(&request.to)).unwrap(), None).unwrap_err();
    assert!(error.hint_text().unwrap().contains("without --resume"), "{error:?}");
    let report = world.restore(Choice::Latest, "part.db").unwrap();
    assert_eq!(report.bytes_resumed, report.bytes_restored);
    assert!(!world.path(".part.db.lifeboat-partial").exists());
}

/// An application whose newest snapshot has damaged attachments; the older one is whole.
fn damaged_application() -> (World, BackupReport, BackupReport) {
    let world = application();
    let first = world.backup();
    let before = packs(&world);
    fs::write(world.path("live/late"), noise(77, 3_000_000)).unwrap();
    let second = world.backup();
    let new = packs(&world).into_iter().filter(|pack| !before.contains(pack));
    let pack = new.max_by_key(|pack| fs::metadata(pack).unwrap().len()).unwrap();
    fs::set_permissions(&pack, fs::Permissions::from_mode(0o600)).unwrap();
    flip(&pack, fs::metadata(&pack).unwrap().len() / 2);
    (world, first, second)
}

#[test]
fn one_damaged_source_does_not_keep_the_others_from_coming_back() {
    let (world, first, second) = damaged_application();
    let target = world.path("back");
    let error = world.restore(Choice::Latest, "back").unwrap_err();
    assert_eq!(error.kind(), Kind::Damaged, "{error:?}");
    let hint = error.hint_text().unwrap();
    assert!(hint.contains("--source db") && hint.contains("--snapshot") && !hint.contains("--source attachments"), "{hint}");
    assert!(!target.exists());

    // The same again is told to have failed.
    let all = RestoreRequest { resume: false, ..resume(&target) };
    let again = restore::plan(&world.job(), &all).unwrap();
    assert!(again.resumes && again.failed_before.is_some(), "{again:?}");
    assert!(again.warnings.iter().any(|w| w.contains("failed") && w.contains("--source")), "{again:?}");

    // What is whole comes to the same target, and what was fetched of it is used.
    let db = RestoreRequest { sources: vec!["db".into()], ..all.clone() };
    let plan = restore::plan(&world.job(), &db).unwrap();
    assert!(!plan.resumes && plan.sources.len() == 1 && plan.bytes == plan.sources[0].bytes && plan.bytes < again.bytes, "{plan:?}");
    assert!(plan.warnings.iter().any(|w| w.contains("replaced")), "{plan:?}");
    let report = restore::apply(&world.job(), &plan, None).unwrap();
    assert_eq!((report.snapshot, report.sources_left_out.as_slice()), (second.snapshot, &["attachments".to_owned()][..]));
    assert_eq!((rows(&target), report.bytes_resumed), (rows(&world.path("live.db")), plan.bytes));
    assert!(report.notes.iter().any(|note| note.contains("-wal")), "{report:?}");
    assert!(!world.path(".back.lifeboat-partial").exists());

    // Another snapshot comes to the same target after that failure, too; one that is asked for with --resume does not.
    assert_eq!(world.restore(Choice::Latest, "set").unwrap_err().kind(), Kind::Damaged);
    let older = Choice::Snapshot(first.snapshot.to_string());
    let resumed = RestoreRequest { choice: older.clone(), ..resume(&world.path("set")) };
    let refused = restore::plan(&world.job(), &resumed).unwrap_err();
    assert!(refused.hint_text().unwrap().contains("without --resume"), "{refused:?}");
    world.restore(older, "set").unwrap();
    assert_eq!(rows(&world.path("set/db")), rows(&world.path("live.db")));
    assert!(world.path("set/attachments/deep").exists() && !world.path("set/attachments/late").exists());
    assert!(!world.path(".set.lifeboat-partial").exists());
}

#[test]
fn sources_are_restored_one_by_one_in_their_own_shape() {
    let world = application();
    world.backup();
    let request = |sources: &[&str], to: &str| RestoreRequest {
        choice: Choice::Latest,
        to: world.path(to),
        sources: sources.iter().map(|s| (*s).to_owned()).collect(),
        only: Vec::new(),
        resume: false,
    };
    let apply = |request: &RestoreRequest| restore::apply(&world.job(), &restore::plan(&world.job(), request).unwrap(), None);
    let unknown = restore::plan(&world.job(), &request(&["nope"], "x")).unwrap_err();
    assert_eq!((unknown.kind(), unknown.hint_text()), (Kind::Usage, Some("it has db, attachments")));
    apply(&request(&["attachments"], "files")).unwrap();
    assert_eq!(census(&world.path("files")), census(&world.path("live")));
    apply(&request(&["attachments", "db"], "set")).unwrap();
    assert_eq!(rows(&world.path("set/db")), rows(&world.path("live.db")));

    let tables = RestoreRequest { only: vec!["customer".into()], ..request(&[], "part.db") };
    let several = restore::plan(&world.job(), &tables).unwrap_err();
    assert!(several.hint_text().unwrap().contains("--source db --only customer"), "{several:?}");
    apply(&RestoreRequest { sources: vec!["db".into()], ..tables }).unwrap();
    assert_eq!(rows(&world.path("part.db")), rows(&world.path("live.db")));

    // Into the place of a whole folder: what else is in there goes aside, and that is said.
    fs::write(world.path("set/else"), "x").unwrap();
    let inplace = restore::plan(&world.job(), &request(&[], "set")).unwrap();
    assert!(inplace.warnings.iter().any(|w| w.contains("db, attachments") && w.contains("--source")), "{inplace:?}");

    // Only the same sources go on.
    crash_at("adopt", &world, request(&["db"], "one.db"), None);
    for sources in [&["attachments"][..], &[], &["db", "attachments"]] {
        let refused = restore::plan(&world.job(), &request(sources, "one.db")).unwrap_err();
        assert_eq!(refused.kind(), Kind::Usage, "{sources:?}");
        if !sources.is_empty() {
            let resumed = RestoreRequest { resume: true, ..request(sources, "one.db") };
            assert_eq!(restore::plan(&world.job(), &resumed).unwrap_err().kind(), Kind::Usage, "{sources:?}");
        }
    }
    let plan = restore::plan(&world.job(), &resume(&world.path("one.db"))).unwrap();
    restore::apply(&world.job(), &plan, None).unwrap();
    assert_eq!(rows(&world.path("one.db")), rows(&world.path("live.db")));
}

#[test]
fn a_machine_without_plans_restores_by_repository_alone() {
    let mut world = application();
    world.backup();
    world.resolved = Resolved::bare(name("crm"), world.resolved.repository.clone());
    world.restore(Choice::Latest, "set").unwrap();
    assert_eq!(rows(&world.path("set/db")), rows(&world.path("live.db")));
    assert_eq!(world.drill().verdict, Verdict::Passed);
}

/// A file system of a few megabytes.
struct Small(PathBuf);

impl Small {
    fn mount(at: PathBuf, bytes: u64) -> Self {
        fs::create_dir(&at).unwrap();
        let output =
            std::process::Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"]).arg(&at).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "mount a small file system (root, and a container that may): {said}");
        Self(at)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        drop(std::process::Command::new("umount").arg("-l").arg(&self.0).status());
    }
}

#[test]
fn a_full_disk_is_told_before_anything_is_written() {
    let world = World::files();
    world.backup();
    let small = Small::mount(world.path("small"), 4_000_000);
    let job = world.job();
    let to = small.0.join("back");
    let plan = restore::plan(
        &job,
        &RestoreRequest { choice: Choice::Latest, to: to.clone(), sources: Vec::new(), only: Vec::new(), resume: false },
    )
    .unwrap();
    assert!(plan.warnings.iter().any(|w| w.contains("no room")), "{:?}", plan.warnings);
    let error = restore::apply(&job, &plan, None).unwrap_err();
    assert_eq!(error.kind(), Kind::NoSpace);
    assert!(error.hint_text().is_some());
    assert_eq!(fs::read_dir(&small.0).unwrap().count(), 0, "nothing is left");
    // A mount point itself cannot be replaced at once.
    let error = restore::plan(
        &job,
        &RestoreRequest { choice: Choice::Latest, to: small.0.clone(), sources: Vec::new(), only: Vec::new(), resume: false },
    )
    .unwrap_err();
    assert_eq!(error.kind(), Kind::Usage);
}

#[test]
fn a_state_folder_that_is_full_fails_the_backup_and_the_next_succeeds() {
    let mut world = World::sqlite();
    make_database(&world.path("large.db"), 40_000);
    world.resolved.sources = vec![sqlite("crm", &world.path("large.db"))];
    let small = Small::mount(world.path("small"), 2_000_000);
    let surroundings = Surroundings { state: small.0.clone(), ..world.surroundings() };
    let job = world.resolved.open(&surroundings).unwrap();
    let error = backup::run(&job).unwrap_err();
    assert_eq!(error.kind(), Kind::NoSpace, "{error:?}");
    assert!(world.job().repository.manifests(None).unwrap().is_empty());
    assert_eq!(world.backup().exit(), None);
}

#[test]
fn nothing_of_the_data_is_in_documents() {
    let world = World::sqlite();
    Connection::open(world.path("live.db")).unwrap().execute_batch("INSERT INTO customer(name) VALUES ('MARKER-5f1e')").unwrap();
    let made = world.backup();
    let mut all = serde_json::to_string(&made).unwrap();
    all += &serde_json::to_string(&world.drill()).unwrap();
    all += &serde_json::to_string(&snapshots::run(&world.job().repository, None, world.clock.now()).unwrap()).unwrap();
    all += &serde_json::to_string(&world.restore(Choice::Latest, "back.db").unwrap()).unwrap();
    std::io::sink().write_all(all.as_bytes()).unwrap();
    assert!(!all.contains("MARKER-5f1e"));
}

#[test]
fn a_record_that_cannot_be_read_never_passes_a_drill() {
    let world = World::sqlite();
    let made = world.backup();
    let manifest = world.repository.manifest(made.snapshot).unwrap();
    let recommit = |finish: serde_json::Value| {
        let mut record = manifest.sources[0].clone();
        record.finish = finish;
        world.pass(60);
        let writer = world.repository.begin(&name("crm"), world.clock.now(), &Cancel::default()).unwrap();
        writer.commit(vec![record], world.clock.now(), Vec::new(), &Silent).unwrap();
        world.pass(60);
    };
    for finish in [serde_json::json!({ "fingerprints": 7 }), serde_json::json!(null)] {
        recommit(finish);
        let drilled = world.drill();
        assert_eq!((drilled.verdict, drilled.exit()), (Verdict::Incomplete, Some(Kind::Incomplete)), "{}", report::text(&drilled));
        let unread = |c: &lifeboat::ops::CheckRecord| c.outcome == Outcome::Skipped && c.actual.contains("cannot be read by this version");
        assert!(drilled.checks.iter().any(unread), "{:?}", drilled.checks);
        let list = snapshots::run(&world.repository, None, world.clock.now()).unwrap();
        assert_eq!(list.snapshots.last().unwrap().problems, 1, "not known to be complete");
    }
    let mut finish = manifest.sources[0].finish.clone();
    finish["fingerprints"] = serde_json::json!([]);
    recommit(finish);
    let drilled = world.drill();
    assert_eq!(drilled.verdict, Verdict::Incomplete, "{}", report::text(&drilled));
    assert!(drilled.checks.iter().any(|c| c.outcome == Outcome::Skipped && c.actual.contains("no fingerprints")), "{:?}", drilled.checks);
}

#[test]
fn a_key_that_cannot_do_it_does_not_begin_and_proves_nothing() {
    static BEGUN: AtomicU64 = AtomicU64::new(0);
    let mut world = World::new(|folder| {
        make_database(&folder.join("live.db"), 10);
        let hook = |_: &SourceContext| {
            BEGUN.fetch_add(1, Ordering::Relaxed);
        };
        vec![Planted { at_begin: Some(Box::new(hook)), ..Planted::over(&sqlite("crm", &folder.join("live.db"))) }.named("crm")]
    });
    world.resolved.tags = vec!["nightly".into()];
    let made = world.backup();
    assert_eq!(world.repository.manifest(made.snapshot).unwrap().tags, ["nightly"]);
    let open = |role: Role, passphrase: &str| {
        let passphrase = Passphrase::new(passphrase);
        world.repository.add_key("other", role, &passphrase, world.clock.now()).unwrap();
        let repository = RepositorySettings { passphrase, ..world.resolved.repository.clone() };
        Job { repository: repository.open(&world.surroundings()).unwrap(), ..world.job() }
    };
    let writer = open(Role::Writer, "for writing only");
    let all = Depth::Data { percent: 100 };
    let looked = verify::run(&writer.repository, None, all, &world.clock, &Silent, &Cancel::default()).unwrap();
    assert_eq!(looked.exit(), Some(Kind::Incomplete));
    assert_eq!(snapshots::run(&world.repository, None, world.clock.now()).unwrap().snapshots[0].verified_at, None, "nothing was opened");
    world.pass(60);
    let looked = verify_all(&world, all);
    assert_eq!(snapshots::run(&world.repository, None, world.clock.now()).unwrap().snapshots[0].verified_at, Some(looked.time));

    let maintainer = open(Role::Maintainer, "for maintenance only");
    let before = BEGUN.load(Ordering::Relaxed);
    assert_eq!(backup::run(&maintainer).unwrap_err().kind(), Kind::WrongKey);
    assert_eq!(BEGUN.load(Ordering::Relaxed), before, "no source was touched");
}

#[test]
fn an_empty_folder_and_a_source_that_is_not_there_are_incomplete() {
    let mut world = World::new(|folder| {
        fs::create_dir(folder.join("live")).unwrap();
        vec![files("attachments", &folder.join("live"))]
    });
    let made = world.backup();
    assert_eq!((made.exit(), made.problems[0].kind.as_str()), (Some(Kind::Incomplete), "empty-folder"));
    assert!(!doctor::run(&world.resolved, &[], &world.surroundings()).ok);
    fs::write(world.path("live/x"), "x").unwrap();
    let honest = world.resolved.sources.clone();
    let source = Arc::new(FilesSource { path: world.path("live"), exclude: vec!["*".into()], page_size: None });
    world.resolved.sources = vec![NamedSource { name: name("attachments"), source, restores_folder: false }];
    let made = world.backup();
    assert_eq!((made.exit(), made.problems[0].kind.as_str()), (Some(Kind::Incomplete), "all-excluded"), "{made:?}");
    assert!(made.problems[0].message.contains("exclude") && !made.problems[0].message.contains("mounted"), "{made:?}");
    let checked = doctor::run(&world.resolved, &[], &world.surroundings());
    assert!(!checked.ok && checked.checks.iter().any(|check| check.message.contains("`exclude` leaves nothing")), "{checked:?}");
    world.resolved.sources = honest;
    assert_eq!(world.backup().exit(), None);
    make_database(&world.path("live.db"), 10);
    world.resolved.sources.push(sqlite("later", &world.path("live.db")));
    world.resolved.drill.compare_percent = 50;
    let drilled = world.drill();
    assert_eq!(drilled.verdict, Verdict::Incomplete);
    assert!(drilled.skipped.iter().any(|s| s.contains("later")), "{drilled:?}");
    let again = world.drill();
    assert!(drilled.seed.is_some() && drilled.seed != again.seed);
    // Compare off: nothing was asked for, nothing is missing.
    assert_eq!(world.backup().exit(), None);
    world.resolved.drill.compare_percent = 0;
    assert_eq!(world.drill().verdict, Verdict::Passed);
}

#[test]
fn a_database_that_was_emptied_is_loud_and_what_it_held_is_named() {
    let world = World::sqlite();
    let whole = world.backup();
    assert_eq!(whole.exit(), None);
    fs::write(world.path("live.db"), "").unwrap();
    let empty = world.backup();
    assert_eq!((empty.exit(), empty.problems[0].kind.as_str()), (Some(Kind::Incomplete), "empty-database"));
    let named = |warnings: &[String], what: &str| warnings.iter().any(|w| w.contains(what) && w.contains(&whole.snapshot.to_string()));
    assert!(named(&empty.warnings, "is empty now and had content in snapshot"), "{:?}", empty.warnings);
    assert!(named(&world.backup().warnings, "is empty now"), "also the next time");
    let restored = world.restore(Choice::Latest, "back.db").unwrap();
    assert_eq!(restored.exit(), Some(Kind::Incomplete));
    assert!(named(&restored.warnings, "the newest complete one is"), "{:?}", restored.warnings);
    let named_one = world.restore(Choice::Snapshot(whole.snapshot.to_string()), "whole.db").unwrap();
    assert_eq!((named_one.exit(), named_one.warnings.len()), (None, 0));
}

#[test]
fn a_snapshot_claims_no_later_moment_than_its_begin_and_dumps_are_read_first() {
    let mut world = World::sqlite();
    let clock = world.clock.clone();
    let late = Planted {
        at_begin: Some(Box::new(move |_| clock.set(clock.now() + chrono::Duration::seconds(30)))),
        ..Planted::over(&world.resolved.sources[0])
    };
    let words = ["/bin/sh", "-c", "echo dump"].map(String::from).to_vec();
    let dump = CommandSource { dump: words, restore: None, environment: Vec::new(), allow_empty: false };
    world.resolved.sources = vec![NamedSource { name: name("dump"), source: Arc::new(dump), restores_folder: false }, late.named("crm")];
    let before = world.clock.now() + chrono::Duration::seconds(60);
    let made = world.backup();
    assert_eq!(made.time, before);
    let job = world.job();
    let manifest = job.repository.manifest(made.snapshot).unwrap();
    let names: Vec<&str> = manifest.sources.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["dump", "crm"], "the manifest keeps the plan's order");
    assert_eq!(world.drill().verdict, Verdict::Passed);
}

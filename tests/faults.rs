//! A store that fails: every single request of every operation once, in turn, and a real S3 server behind a proxy that misbehaves at random.
//!
//! Whatever happens, an operation fails loudly or has truly succeeded; and once the store is well again, the next run succeeds and nothing
//! is found wrong.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/chaos.rs"]
mod chaos;
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use chaos::ChaosProxy;
use chrono::{DateTime, Utc};
use lifeboat::clock::{Clock, ManualClock};
use lifeboat::error::{Error, Kind, Result};
use lifeboat::event::{Cancel, Silent};
use lifeboat::id::{Name, SnapshotId};
use lifeboat::ops::copy::{self, CopyRequest};
use lifeboat::ops::drill::{self, DrillRequest};
use lifeboat::ops::prune::{self, PlanRules};
use lifeboat::ops::repair::{self, Acceptance, Other, RepairReport, RepairRequest};
use lifeboat::ops::restore::{self, RestoreRequest};
use lifeboat::ops::retention::Rules;
use lifeboat::ops::select::Choice;
use lifeboat::ops::stats;
use lifeboat::ops::verify::{self, Depth};
use lifeboat::ops::{CommitGate, DrillSettings, Job, NamedSource, Objectives, Verdict, backup, keyless, snapshots as ops_snapshots};
use lifeboat::repo::{CollectOptions, LostFormat, OpenOptions, Passphrase, Repository, Role};
use lifeboat::source::files::FilesSource;
use lifeboat::source::sqlite::SqliteSource;
use lifeboat::store::faults::{Effect, Faults, Rule, When};
use lifeboat::store::{Store, Verb};
use support::s3::SeaweedFs;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn passphrase() -> Passphrase {
    Passphrase::new("correct horse battery staple")
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// Whether everything is tried, not a sample: `LIFEBOAT_DAMAGE=all` (many minutes).
fn is_all() -> bool {
    std::env::var("LIFEBOAT_DAMAGE").is_ok_and(|what| what == "all")
}

/// Where samples begin, and what chance does: `LIFEBOAT_SEED`, else the same every time.
fn seed() -> u64 {
    std::env::var("LIFEBOAT_SEED").map_or(1, |seed| seed.parse().unwrap())
}

/// What a run by hand shows (`--nocapture`).
#[expect(clippy::print_stdout, reason = "figures for whoever runs it by hand")]
fn say(what: &str) {
    println!("{what}");
}

/// Which of `1..=count` are tried: one of `stride`, and at least one.
fn sample(count: u64, stride: u64) -> impl Iterator<Item = u64> {
    let (all, first) = (is_all(), seed() % stride.min(count).max(1));
    (1..=count).filter(move |number| all || (number - 1) % stride == first)
}

/// Objects of a store, by key.
type Objects = BTreeMap<String, Bytes>;

/// A repository in a place that can be put back to what it held.
struct Place {
    /// Without faults.
    store: Store,
    faults: Faults,
    /// Through the faults.
    faulty: Repository,
    /// Past them.
    sound: Repository,
    base: Objects,
    /// Where both have their caches.
    cache: PathBuf,
}

impl Place {
    fn new(runtime: &tokio::runtime::Runtime, folder: &Path, what: &str) -> Self {
        let (store, faults, cache) = (Store::in_memory(), Faults::new(), folder.join(format!("cache-{what}")));
        // Before anything is backed up to it.
        let made = DateTime::from_timestamp(1_789_999_000, 0).unwrap();
        Repository::init(store.clone(), runtime.handle().clone(), &passphrase(), &OpenOptions::default(), made).unwrap();
        let [sound, faulty] = Self::open(&store, &faults, runtime, &cache);
        Self { store, faults, faulty, sound, base: Objects::new(), cache }
    }

    /// Past the faults, and through them.
    fn open(store: &Store, faults: &Faults, runtime: &tokio::runtime::Runtime, cache: &Path) -> [Repository; 2] {
        [("sound", store.clone()), ("faulty", Store::with_faults(store.clone(), faults.clone()))].map(|(kind, store)| {
            let options = OpenOptions { cache: Some(cache.join(kind)), workers: 2 };
            Repository::open(store, runtime.handle().clone(), &passphrase(), &options).unwrap()
        })
    }

    /// As another machine would open it.
    fn reopen(&mut self, runtime: &tokio::runtime::Runtime, folder: &Path) {
        self.cache = tempfile::tempdir_in(folder).unwrap().keep();
        self.restart(runtime);
    }

    /// As another process of the same machine would open it.
    fn restart(&mut self, runtime: &tokio::runtime::Runtime) {
        [self.sound, self.faulty] = Self::open(&self.store, &self.faults, runtime, &self.cache);
    }

    fn objects(&self, runtime: &tokio::runtime::Runtime) -> Objects {
        runtime.block_on(async {
            let mut objects = Objects::new();
            for object in self.store.list("").await.unwrap() {
                objects.insert(object.key.clone(), self.store.get(&object.key).await.unwrap());
            }
            objects
        })
    }

    fn keep(&mut self, runtime: &tokio::runtime::Runtime) {
        self.base = self.objects(runtime);
    }

    /// As it was kept.
    fn put_back(&self, runtime: &tokio::runtime::Runtime) {
        self.faults.clear();
        // On purpose: what this machine has seen of the ledger since counts for nothing.
        for repository in [&self.sound, &self.faulty] {
            repository.forget_ledger().unwrap();
        }
        let now = self.objects(runtime);
        runtime.block_on(async {
            for key in now.keys().filter(|key| !self.base.contains_key(*key)) {
                self.store.delete(key).await.unwrap();
            }
            for (key, bytes) in self.base.iter().filter(|(key, bytes)| now.get(*key) != Some(*bytes)) {
                lifeboat::store::faults::replace(&self.store, key, bytes.clone()).await.unwrap();
            }
        });
    }
}

/// A plan with a database and a tree, its repository, and a second one for copies.
struct World {
    folder: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
    clock: ManualClock,
    own: Place,
    copy: Place,
}

impl World {
    /// With one snapshot, and changes since.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let own = Place::new(&runtime, folder.path(), "own");
        let copy = Place::new(&runtime, folder.path(), "copy");
        let clock = ManualClock::new(DateTime::from_timestamp(1_790_000_000, 0).unwrap());
        let mut world = Self { folder, runtime, clock, own, copy };
        let live = world.folder.path().join("live");
        fs::create_dir_all(live.join("tree/deep")).unwrap();
        fs::write(live.join("tree/deep/big"), noise(1, 300_000)).unwrap();
        fs::write(live.join("tree/small"), noise(2, 3000)).unwrap();
        let database = rusqlite::Connection::open(live.join("crm.db")).unwrap();
        database.execute_batch("CREATE TABLE customer(id INTEGER PRIMARY KEY, name TEXT)").unwrap();
        for row in 0..50 {
            database.execute("INSERT INTO customer(name) VALUES (?1)", [format!("customer {row}")]).unwrap();
        }
        drop(database);
        world.back_up(&world.own.sound).unwrap();
        fs::write(live.join("tree/more"), noise(3, 40_000)).unwrap();
        fs::write(live.join("tree/small"), noise(4, 3000)).unwrap();
        world.own.keep(&world.runtime);
        world.copy.keep(&world.runtime);
        world
    }

    fn job(&self, repository: &Repository) -> Job {
        let live = self.folder.path().join("live");
        let files = FilesSource { path: live.join("tree"), exclude: Vec::new(), page_size: None };
        Job {
            plan: name("crm"),
            tags: Vec::new(),
            sources: vec![
                NamedSource { name: name("db"), source: Arc::new(SqliteSource { path: live.join("crm.db") }), restores_folder: false },
                NamedSource { name: name("tree"), source: Arc::new(files), restores_folder: false },
            ],
            repository: repository.clone(),
            work: self.folder.path().join("work"),
            host: "test".into(),
            objectives: Objectives::default(),
            drill: DrillSettings::default(),
            clock: Arc::new(self.clock.clone()),
            progress: Arc::new(Silent),
            cancel: Cancel::default(),
            gate: CommitGate::default(),
        }
    }

    fn back_up(&self, repository: &Repository) -> Result<SnapshotId> {
        self.clock.set(self.clock.now() + chrono::Duration::seconds(60));
        let report = backup::run(&self.job(repository))?;
        match report.exit() {
            None => Ok(report.snapshot),
            Some(kind) => Err(Error::new(kind, "the backup says that it is not whole")),
        }
    }

    /// Restores a snapshot; what is there afterwards.
    fn restored(&self, repository: &Repository, id: SnapshotId) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
        let to = tempfile::tempdir_in(self.folder.path()).unwrap();
        let to = to.path().join("target");
        let job = self.job(repository);
        let request = RestoreRequest {
            choice: Choice::Snapshot(id.to_string()),
            to: to.clone(),
            sources: Vec::new(),
            only: Vec::new(),
            resume: false,
        };
        let plan = restore::plan(&job, &request)?;
        let report = restore::apply(&job, &plan, None)?;
        match report.exit() {
            None => Ok(census(&to)),
            Some(kind) => Err(Error::new(kind, "the restore says that it is not whole")),
        }
    }

    /// A snapshot that was said to be committed is there, and is what was backed up.
    fn assert_snapshot(&self, repository: &Repository, id: SnapshotId, what: &str) {
        let restored = self.restored(repository, id).unwrap_or_else(|error| panic!("{what}: snapshot {id} does not come back: {error:?}"));
        assert!(trees(&restored) == census(&self.folder.path().join("live/tree")), "{what}: snapshot {id} comes back as something else");
    }

    fn assert_sound(&self, place: &Place, what: &str) {
        let depth = Depth::Data { percent: 100 };
        // Of two verifications of one moment none is the later one.
        let pass = || self.clock.set(self.clock.now() + chrono::Duration::seconds(1));
        pass();
        let report = verify::run(&place.sound, None, depth, &self.clock, &Silent, &Cancel::default()).unwrap();
        pass();
        assert_eq!(report.exit(), None, "{what}: {:?} {:?}", report.findings, report.skipped);
    }

    fn first(&self) -> SnapshotId {
        self.own.sound.manifests(None).unwrap()[0].id
    }

    fn copy_all(&self, from: &Repository, to: &Repository) -> Result<()> {
        let request = CopyRequest {
            name: name("offsite"),
            to: to.clone(),
            last: None,
            tags: Vec::new(),
            snapshot: None,
            all: false,
            rules: Rules::default(),
        };
        let report = copy::run(&self.job(from), &request)?;
        report.exit().map_or(Ok(()), |kind| Err(Error::new(kind, "the copy found damage")))
    }
}

fn census(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut all, mut folders) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for item in fs::read_dir(&folder).unwrap() {
            let path = item.unwrap().path();
            let below = path.strip_prefix(root).unwrap().to_owned();
            if path.is_dir() {
                all.insert(below, Vec::new());
                folders.push(path);
            } else {
                all.insert(below, fs::read(&path).unwrap());
            }
        }
    }
    all
}

/// How one request goes wrong.
#[derive(Debug, Clone, Copy)]
enum Fault {
    /// It is refused for good.
    Refused,
    /// A write is carried out, and its answer is an error for good.
    LostForGood,
    /// A write is carried out, and its answer is lost: a repetition will find it.
    Lost,
    /// A passing trouble.
    Passing,
    /// One byte of what is read is wrong.
    Wrong,
}

impl Fault {
    fn verbs(self) -> &'static [Verb] {
        match self {
            Self::Refused | Self::Passing => &[Verb::Create, Verb::Get, Verb::GetRange, Verb::Head, Verb::List, Verb::Delete],
            Self::LostForGood | Self::Lost => &[Verb::Create, Verb::Delete],
            Self::Wrong => &[Verb::Get, Verb::GetRange],
        }
    }

    fn effect(self) -> Effect {
        match self {
            Self::Refused => Effect::Fail(Kind::Failed),
            Self::LostForGood => Effect::FailAfter(Kind::Failed),
            Self::Lost => Effect::FailAfter(Kind::Unavailable),
            Self::Passing => Effect::Fail(Kind::Unavailable),
            Self::Wrong => Effect::Flip(100),
        }
    }

    /// Whether nobody may notice it.
    fn passes(self) -> bool {
        matches!(self, Self::Lost | Self::Passing)
    }
}

const FAULTS: [Fault; 5] = [Fault::Refused, Fault::LostForGood, Fault::Lost, Fault::Passing, Fault::Wrong];

/// Fails each single request of an operation once, in turn. `act` runs it through the faults, and asserts by itself that what it says is true;
/// `place`: whose store fails; `stride`: see [`sample`]; what passes unnoticed is tried more seldom.
fn sweep(world: &World, what: &str, place: &Place, stride: u64, act: impl Fn(&World) -> Result<()>) {
    let reset = || {
        world.own.put_back(&world.runtime);
        world.copy.put_back(&world.runtime);
    };
    reset();
    place.faults.forget_calls();
    act(world).unwrap_or_else(|error| panic!("{what} without a fault: {error:?}"));
    let calls = place.faults.calls();
    assert!(!calls.is_empty(), "{what} asks nothing of the store");
    let (mut tried, mut survived) = (0, 0);
    for fault in FAULTS {
        for verb in fault.verbs() {
            // A few more than were counted: their number depends a little on what threads do.
            let count = calls.iter().filter(|call| call.verb == *verb).count() as u64;
            for number in sample(count, if fault.passes() { 3 * stride } else { stride }) {
                reset();
                place.faults.add(Rule::on(*verb).nth(number).then(fault.effect()));
                let at = format!("{what}, {fault:?} at {} {number} of {count}", verb.word());
                let outcome = act(world);
                place.faults.clear();
                tried += 1;
                match &outcome {
                    Ok(()) => survived += 1,
                    Err(error) => {
                        assert!(!fault.passes(), "{at}: nobody should have noticed it: {error:?}");
                        assert!(!matches!(error.kind(), Kind::Bug), "{at}: {error:?}");
                    }
                }
                act(world).unwrap_or_else(|error| panic!("{at}: the next run: {error:?} (the first: {outcome:?})"));
                world.assert_sound(place, &at);
            }
        }
    }
    say(&format!("{what}: {tried} requests failed, {survived} were survived"));
    assert!(survived < tried, "no fault of {what} was ever noticed");
}

#[test]
fn a_backup_is_committed_or_fails() {
    let world = World::new();
    sweep(&world, "backup", &world.own, 5, |world| {
        let id = world.back_up(&world.own.faulty)?;
        world.assert_snapshot(&world.own.sound, id, "backup");
        Ok(())
    });
}

#[test]
fn a_verification_a_restore_and_a_drill_say_what_is_true() {
    let world = World::new();
    sweep(&world, "verify", &world.own, 16, |world| {
        let depth = Depth::Data { percent: 100 };
        let report = verify::run(&world.own.faulty, None, depth, &world.clock, &Silent, &Cancel::default())?;
        match report.exit() {
            None if report.snapshots_sound.is_empty() => panic!("nothing was verified"),
            None if !report.warnings.is_empty() => Err(Error::new(Kind::Incomplete, report.warnings.join("; "))),
            None => Ok(()),
            Some(kind) => Err(Error::new(kind, format!("{:?} {:?}", report.findings, report.skipped))),
        }
    });
    let first = world.first();
    let whole = world.restored(&world.own.sound, first).unwrap();
    sweep(&world, "restore", &world.own, 2, |world| {
        assert!(world.restored(&world.own.faulty, first)? == whole, "a restore that says it is whole and is not");
        Ok(())
    });
    sweep(&world, "drill", &world.own, 2, |world| {
        let report = drill::run(&world.job(&world.own.faulty), &DrillRequest::default())?;
        if report.verdict == Verdict::Passed {
            return Ok(());
        }
        Err(Error::new(report.exit().unwrap_or(Kind::Failed), format!("{:?} {:?}", report.verdict, report.reasons)))
    });
}

#[test]
fn a_copy_is_whole_or_fails_on_either_side() {
    let world = World::new();
    let act = |world: &World, from: &Repository, to: &Repository| {
        world.copy_all(from, to)?;
        let copies = world.copy.sound.manifests(None).unwrap();
        assert_eq!(copies.len(), 1, "copied once");
        let whole = world.restored(&world.own.sound, world.first()).unwrap();
        assert!(world.restored(&world.copy.sound, copies[0].id).unwrap() == whole, "the copy is another");
        Ok(())
    };
    sweep(&world, "copy, first side", &world.own, 6, |world| act(world, &world.own.faulty, &world.copy.sound));
    sweep(&world, "copy, second side", &world.copy, 6, |world| act(world, &world.own.sound, &world.copy.faulty));
}

#[test]
fn a_log_has_what_was_confirmed() {
    let world = World::new();
    let bytes = noise(9, 50_000);
    sweep(&world, "log", &world.own, 1, |world| {
        let (plan, source) = (name("crm"), name("db"));
        let log = world.own.faulty.log(&plan, &source);
        log.append(1, 0, 50_000, &serde_json::json!({ "timeline": 1 }), &bytes)?;
        log.append(1, 50_000, 60_000, &serde_json::json!({}), &bytes[..10_000])?;
        log.put_side(&name("00000002.history"), b"1\t0/1\tpromoted\n")?;
        let sound = world.own.sound.log(&plan, &source);
        let pieces = sound.pieces()?;
        assert_eq!(pieces.iter().map(|piece| (piece.start, piece.end)).collect::<Vec<_>>(), [(0, 50_000), (50_000, 60_000)]);
        assert!(sound.read(&pieces[0])? == bytes && sound.read(&pieces[1])? == bytes[..10_000]);
        assert!(log.read_span(&pieces, 1, 100..55_000)? == [&bytes[100..], &bytes[..5000]].concat());
        Ok(())
    });
}

#[test]
fn keys_open_once_they_are_said_to_be_there() {
    let world = World::new();
    let other = Passphrase::new("another passphrase that is long");
    let now = Utc::now();
    let opens = |passphrase: &Passphrase| {
        let store = Store::with_faults(world.own.store.clone(), world.own.faults.clone());
        Repository::open(store, world.runtime.handle().clone(), passphrase, &OpenOptions::default())
    };
    sweep(&world, "key add", &world.own, 20, |world| {
        // A run before may have added it.
        if world.own.faulty.key_slots()?.iter().any(|slot| slot.label == "second") && opens(&other).is_ok() {
            return Ok(());
        }
        world.own.faulty.add_key("second", Role::Writer, &other, now)?;
        assert_eq!(opens(&other)?.role(), Role::Writer);
        Ok(())
    });
}

#[test]
fn a_repository_is_made_or_is_not() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let init = |store: &Store, faults: &Faults| {
        let store = Store::with_faults(store.clone(), faults.clone());
        let options = OpenOptions::default();
        Repository::init(store, runtime.handle().clone(), &passphrase(), &options, Utc::now()).map(|(_, recovery)| recovery)
    };
    let faults = Faults::new();
    init(&Store::in_memory(), &faults).unwrap();
    let calls = faults.calls();
    for fault in [Fault::Refused, Fault::LostForGood, Fault::Lost] {
        for verb in fault.verbs() {
            let count = calls.iter().filter(|call| call.verb == *verb).count() as u64;
            for number in sample(count, 4) {
                let (store, faults) = (Store::in_memory(), Faults::new());
                faults.add(Rule::on(*verb).nth(number).then(fault.effect()));
                let at = format!("init, {fault:?} at {} {number} of {count}", verb.word());
                let outcome = init(&store, &faults);
                faults.clear();
                let open = |passphrase: &Passphrase| {
                    Repository::open(store.clone(), runtime.handle().clone(), passphrase, &OpenOptions::default())
                };
                match outcome {
                    Ok(recovery) => {
                        open(recovery.passphrase()).unwrap_or_else(|error| panic!("{at}: the recovery key opens nothing: {error:?}"));
                    }
                    Err(error) => {
                        assert!(!fault.passes(), "{at}: {error:?}");
                        // The next run makes it, or the first did although nobody heard of it.
                        if let Err(again) = init(&store, &faults) {
                            assert_eq!(again.kind(), Kind::AlreadyExists, "{at}: {again:?}");
                        }
                    }
                }
                open(&passphrase()).unwrap_or_else(|error| panic!("{at}: does not open: {error:?}"));
            }
        }
    }
}

/// A real S3 server behind a proxy that answers 503, resets, is slow, cuts bodies, loses answers after the fact, holds listings back, and
/// changes bytes.
#[test]
fn a_server_that_misbehaves_loses_nothing_that_was_committed() {
    let seed = seed();
    let rounds = std::env::var("LIFEBOAT_ROUNDS").map_or(4, |rounds| rounds.parse().unwrap());
    let world = World::new();
    let config = SeaweedFs::shared().bucket().fresh();
    let proxy = world.runtime.block_on(ChaosProxy::start(config.endpoint.as_deref().unwrap(), seed));
    let behind = lifeboat::store::StoreConfig { endpoint: Some(proxy.endpoint()), ..config.clone() };
    let options = |kind: &str| OpenOptions { cache: Some(world.folder.path().join(format!("cache-s3-{kind}"))), workers: 2 };
    let open = |config: &lifeboat::store::StoreConfig, kind: &str| {
        Repository::open(Store::open(config).unwrap(), world.runtime.handle().clone(), &passphrase(), &options(kind)).unwrap()
    };
    Repository::init(Store::open(&config).unwrap(), world.runtime.handle().clone(), &passphrase(), &options("sound"), Utc::now()).unwrap();
    let (sound, shaken) = (open(&config, "sound"), open(&behind, "shaken"));
    let (mut committed, mut heard) = (Vec::new(), 0);
    let bytes = noise(5, 30_000);
    for round in 0..rounds {
        fs::write(world.folder.path().join("live/tree/small"), noise(100 + round, 5000)).unwrap();
        fs::write(world.folder.path().join("live/tree/deep/more"), noise(200 + round, 200_000)).unwrap();
        proxy.misbehave(8);
        match world.back_up(&shaken) {
            Ok(id) => committed.push((id, census(&world.folder.path().join("live/tree")))),
            Err(_) => heard += 1,
        }
        let (start, end) = (round * 30_000, (round + 1) * 30_000);
        let appended = shaken.log(&name("crm"), &name("db")).append(1, start, end, &serde_json::json!({}), &bytes);
        if let Some((id, tree)) = committed.last() {
            match world.restored(&shaken, *id) {
                Ok(restored) => assert!(trees(&restored) == *tree, "seed {seed}, round {round}: restored something else"),
                Err(_) => heard += 1,
            }
        }
        let depth = Depth::Data { percent: 100 };
        match verify::run(&shaken, None, depth, &world.clock, &Silent, &Cancel::default()) {
            Ok(report) if report.exit().is_none() => {}
            _ => heard += 1,
        }
        let drilled = drill::run(&world.job(&shaken), &DrillRequest::default());
        heard += u64::from(!drilled.is_ok_and(|report| report.verdict == Verdict::Passed));
        if world.copy_all(&shaken, &world.copy.sound).is_err() {
            heard += 1;
        }
        proxy.behave();
        // What was said to be stored is.
        if appended.is_ok() {
            let log = sound.log(&name("crm"), &name("db"));
            let piece = log.pieces().unwrap().into_iter().find(|piece| piece.start == start).unwrap();
            assert!(log.read(&piece).unwrap() == bytes, "seed {seed}, round {round}");
        }
        for (id, tree) in &committed {
            let restored = world.restored(&sound, *id).unwrap_or_else(|error| panic!("seed {seed}, round {round}: {id}: {error:?}"));
            assert!(trees(&restored) == *tree, "seed {seed}, round {round}: {id} comes back as something else");
        }
    }
    let last = world.back_up(&shaken).unwrap();
    world.assert_snapshot(&sound, last, "at last");
    let report = verify::run(&sound, None, Depth::Data { percent: 100 }, &world.clock, &Silent, &Cancel::default()).unwrap();
    // Holes that a lost piece left in the log are told; nothing else is wrong.
    let wrong: Vec<_> = report.findings.iter().filter(|finding| !finding.object.starts_with("logs/")).collect();
    assert!(wrong.is_empty(), "seed {seed}: {wrong:?}");
    say(&format!(
        "seed {seed}: {} faults in {rounds} rounds, {} snapshots committed, {heard} operations failed",
        proxy.faults(),
        committed.len()
    ));
    assert!(proxy.faults() > 10, "seed {seed}: the server hardly misbehaved");
}

fn trees(restored: &BTreeMap<PathBuf, Vec<u8>>) -> BTreeMap<PathBuf, Vec<u8>> {
    let below = |(path, bytes): (&PathBuf, &Vec<u8>)| Some((path.strip_prefix("tree").ok()?.to_owned(), bytes.clone()));
    restored.iter().filter_map(below).filter(|(path, _)| !path.as_os_str().is_empty()).collect()
}

/// What an object suffers.
#[derive(Debug, Clone)]
enum Harm {
    Flipped(usize),
    Cut(usize),
    Missing,
    /// The bytes of another object of the same folder.
    Swapped(String),
    /// Bytes of something else altogether.
    Foreign,
}

impl Harm {
    fn all(key: &str, objects: &Objects) -> Vec<Self> {
        let len = objects[key].len();
        let folder = key.split('/').next().unwrap();
        let mut all =
            vec![Self::Missing, Self::Foreign, Self::Cut(len / 2), Self::Flipped(len / 2), Self::Flipped(len - 1), Self::Flipped(len - 50)];
        all.extend(objects.keys().find(|other| *other != key && other.starts_with(folder)).cloned().map(Self::Swapped));
        all
    }

    fn inflict(&self, world: &World, key: &str) {
        use lifeboat::store::faults::{flip_byte, remove, replace, truncate};
        let store = &world.own.store;
        world.runtime.block_on(async {
            match self {
                Self::Flipped(at) => flip_byte(store, key, *at).await.unwrap(),
                Self::Cut(len) => truncate(store, key, *len).await.unwrap(),
                Self::Missing => remove(store, key).await.unwrap(),
                Self::Swapped(other) => replace(store, key, world.own.base[other].clone()).await.unwrap(),
                Self::Foreign => replace(store, key, Bytes::from(noise(77, 1000))).await.unwrap(),
            }
        });
    }
}

/// A world whose repository has everything: two snapshots and one that was removed between them, a log, a report, tombstones, entries of the ledger, a key
/// event; snapshots and log are in the copy too.
fn everything() -> (World, Vec<(SnapshotId, BTreeMap<PathBuf, Vec<u8>>)>) {
    let mut world = World::new();
    let log = world.own.sound.log(&name("crm"), &name("db"));
    for piece in 0..3u64 {
        log.append(1, piece * 5000, (piece + 1) * 5000, &serde_json::json!({}), &noise(piece, 5000)).unwrap();
    }
    log.put_side(&name("00000002.history"), b"1\t0/1\tpromoted\n").unwrap();
    let first = world.first();
    let between = world.back_up(&world.own.sound).unwrap();
    world.back_up(&world.own.sound).unwrap();
    // Three entries of the ledger, and nothing is held afterwards.
    let now = world.clock.now();
    prune::hold(&world.own.sound, first, None, "audit", "a test", now).unwrap();
    prune(&world, &world.own.sound, 1).unwrap();
    assert!(world.own.sound.removed(between).is_some());
    prune::release(&world.own.sound, first, "done", "a test", now).unwrap();
    world.own.sound.note_key_event("export", "nothing, for a test", now).unwrap();
    world.copy_all(&world.own.sound, &world.copy.sound).unwrap();
    // A copy takes the logs of databases that have one; this is the same by hand.
    let copied = world.copy.sound.log(&name("crm"), &name("db"));
    for piece in log.pieces().unwrap() {
        log.copy_piece(&piece, &copied).unwrap();
    }
    copied.put_side(&name("00000002.history"), b"1\t0/1\tpromoted\n").unwrap();
    world.assert_sound(&world.own, "before");
    let snapshots: Vec<_> =
        world.own.sound.manifests(None).unwrap().iter().map(|m| (m.id, world.restored(&world.own.sound, m.id).unwrap())).collect();
    assert_eq!((snapshots.len(), world.copy.sound.manifests(None).unwrap().len()), (2, 2));
    // Tombstones, of a pack that was damaged for a while.
    let objects = world.own.objects(&world.runtime);
    let pack = objects.keys().find(|key| key.starts_with("packs/")).unwrap();
    world.runtime.block_on(lifeboat::store::faults::flip_byte(&world.own.store, pack, 100)).unwrap();
    verify::run(&world.own.sound, None, Depth::Data { percent: 100 }, &world.clock, &Silent, &Cancel::default()).unwrap();
    world.runtime.block_on(lifeboat::store::faults::replace(&world.own.store, pack, objects[pack].clone())).unwrap();
    world.assert_sound(&world.own, "the pack is whole again");
    world.own.keep(&world.runtime);
    world.copy.keep(&world.runtime);
    (world, snapshots)
}

fn request(world: &World, others: bool, dry_run: bool) -> RepairRequest {
    let other = Other { name: name("offsite"), repository: world.copy.sound.clone() };
    RepairRequest {
        repository: world.own.faulty.clone(),
        others: if others { vec![other] } else { Vec::new() },
        unreachable: Vec::new(),
        committed: Vec::new(),
        dry_run,
        gate: CommitGate::default(),
        accept: None,
    }
}

fn repair(world: &World, others: bool) -> Result<RepairReport> {
    // Later than what was verified before.
    world.clock.set(world.clock.now() + chrono::Duration::seconds(60));
    let (request, cancel) = (request(world, others, false), Cancel::default());
    let planned = repair::plan(&request, &world.clock, &Silent, &cancel)?;
    repair::apply(planned, &request, &world.clock, &Silent, &cancel)
}

/// Where the content of a snapshot is now: in itself, or in what stands in its place.
fn stands_for(world: &World, id: SnapshotId) -> SnapshotId {
    let (manifests, _) = world.own.sound.sound_manifests(None).unwrap();
    manifests.iter().find(|manifest| manifest.replaces() == Some(id)).map_or(id, |manifest| manifest.id)
}

/// Every kind of object × every kind of damage: what a copy has comes back, nothing else gets worse, and backups go on.
#[test]
fn what_is_damaged_is_put_right_from_a_copy() {
    let (mut world, snapshots) = everything();
    // A backup that was killed, and a collection that had to wait for it.
    world.own.faults.add(Rule::on(Verb::Delete).below("sessions/").always().then(Effect::Fail(Kind::Failed)));
    drop(world.own.faulty.begin(&name("crm"), world.clock.now(), &Cancel::default()).unwrap());
    world.own.faults.clear();
    let waits = world.own.sound.collect(&CollectOptions::default(), world.clock.now(), &Silent, &Cancel::default()).unwrap();
    assert!(waits.blocked.is_empty(), "{waits:?}");
    world.own.keep(&world.runtime);
    let base = world.own.base.clone();
    assert!(base.keys().any(|key| key.starts_with("gc/waits/")), "no collection waits");
    let mut tried = BTreeMap::new();
    // One kind of damage for each object, the next one for the next.
    let all = is_all();
    for (key, position) in base.keys().filter(|key| !key.starts_with("keys/") && *key != "format").zip(usize::try_from(seed()).unwrap()..) {
        let folder = key.split('/').next().unwrap();
        let newest = key.starts_with("snapshots/") && key.ends_with(&snapshots[1].0.to_string());
        let at_an_end = key.contains("-0000000000000000-") || key.ends_with("-0000000000003a98");
        let comes_and_goes = ["reports", "gc", "sessions", "key-events"].contains(&folder);
        let nobody_knows = newest || comes_and_goes || key.contains("/history/") || at_an_end;
        let mut harms = Harm::all(key, &base);
        // What is left without these is whole, and smaller: nobody can know.
        harms.retain(|harm| !nobody_knows || !matches!(harm, Harm::Missing));
        let chosen = position % harms.len();
        for (_, harm) in harms.into_iter().enumerate().filter(|(number, _)| all || *number == chosen) {
            let at = format!("{key} {harm:?}");
            world.own.put_back(&world.runtime);
            world.copy.put_back(&world.runtime);
            // Both have seen the ledger: that its newest entry is gone is known here.
            for repository in [&world.own.sound, &world.own.faulty] {
                repository.ledger().unwrap();
            }
            harm.inflict(&world, key);
            if folder == "retention" {
                // What a process has read of it stays in its memory.
                world.own.restart(&world.runtime);
            }
            if folder == "key-events" {
                let events = world.own.sound.key_events().unwrap();
                assert_eq!(events.iter().filter(|event| event.is_err()).count(), 1, "{at}: {events:?}");
            }
            // A dry run changes nothing but what a verification writes.
            let before = world.own.objects(&world.runtime);
            let dry = repair::plan(&request(&world, true, true), &world.clock, &Silent, &Cancel::default())
                .unwrap_or_else(|error| panic!("{at}: {error:?}"))
                .report;
            let mut after = world.own.objects(&world.runtime);
            after.retain(|key, _| before.contains_key(key) || !(key.starts_with("reports/") || key.starts_with("gc/")));
            assert!(after == before, "{at}: a dry run changed something");
            assert_eq!(dry.exit(), Some(Kind::Damaged), "{at}: not found");
            let report = repair(&world, true).unwrap_or_else(|error| panic!("{at}: {error:?}"));
            let told = format!("{at}: {report:#?}");
            assert!(report.actions.iter().all(|action| action.done), "{told}");
            assert!(report.lost.is_empty() && report.remaining.is_empty(), "{told}");
            let left_alone = ["key-events", "reports", "retention", "sessions"].contains(&folder) || key.starts_with("gc/waits/");
            assert_eq!(report.left.is_empty(), !left_alone, "{told}");
            if folder == "retention" {
                assert!(report.left.iter().any(|left| left.advice.contains("repo undelete")), "{told}");
                let nothing = prune(&world, &world.own.sound, 1).unwrap_err();
                assert!(nothing.kind() == Kind::Damaged && nothing.to_string().contains("retention"), "{at}: {nothing:?}");
            }
            // Nothing that was sound is gone, and the copy is as it was.
            assert_eq!(world.copy.objects(&world.runtime).keys().filter(|key| key.starts_with("snapshots/")).count(), 2);
            for (id, content) in &snapshots {
                let id = stands_for(&world, *id);
                let restored = world.restored(&world.own.sound, id).unwrap_or_else(|error| panic!("{told}: {id} {error:?}"));
                assert!(restored == *content, "{at}: {id} comes back as something else");
            }
            let log = world.own.sound.log(&name("crm"), &name("db"));
            let pieces = log.pieces().unwrap();
            assert!(log.read_span(&pieces, 1, 0..15_000).unwrap() == [noise(0, 5000), noise(1, 5000), noise(2, 5000)].concat(), "{told}");
            assert!(log.side(&name("00000002.history")).unwrap().is_some(), "{told}");
            // The next backup is whole; a second repair has nothing more to do; a verification is content.
            let id = world.back_up(&world.own.sound).unwrap_or_else(|error| panic!("{told}: {error:?}"));
            world.assert_snapshot(&world.own.sound, id, &told);
            let again = repair(&world, true).unwrap();
            assert!(again.actions.is_empty(), "{told} and then {again:#?}");
            if !left_alone {
                world.assert_sound(&world.own, &told);
                assert_eq!(again.exit(), None, "{told} and then {again:#?}");
                assert_eq!(ops_snapshots::run(&world.own.sound, None, world.clock.now()).unwrap().exit(), None, "{told}");
            }
            *tried.entry(folder).or_insert(0) += 1;
        }
    }
    say(&format!("{tried:?}"));
    assert_eq!(
        tried.keys().copied().collect::<Vec<_>>(),
        ["gc", "index", "key-events", "logs", "packs", "reports", "retention", "sessions", "snapshots"]
    );
}

#[test]
fn without_a_copy_what_is_lost_is_named_and_what_is_not_stays() {
    let (world, snapshots) = everything();
    let packs: Vec<String> = world.own.base.keys().filter(|key| key.starts_with("packs/")).cloned().collect();
    let (mut by_file, mut by_tree) = (0, 0);
    for key in &packs {
        for harm in [Harm::Missing, Harm::Flipped(world.own.base[key].len() / 2)] {
            world.own.put_back(&world.runtime);
            harm.inflict(&world, key);
            let report = repair(&world, false).unwrap();
            assert_eq!(report.exit(), Some(Kind::Damaged));
            let lost: Vec<SnapshotId> = report.lost.iter().map(|lost| lost.snapshot).collect();
            assert!(!lost.is_empty() && report.actions.iter().all(|action| action.what == "index"), "{report:#?}");
            for (id, content) in &snapshots {
                match world.restored(&world.own.sound, *id) {
                    Ok(restored) => assert!(restored == *content),
                    Err(error) => {
                        assert_eq!(error.kind(), Kind::Damaged);
                        let lost = report.lost.iter().find(|lost| lost.snapshot == *id).unwrap();
                        assert!(lost.files_count > 0 || !lost.unread.is_empty(), "{lost:?}");
                        by_file += usize::from(lost.files_count > 0);
                        by_tree += usize::from(!lost.unread.is_empty());
                    }
                }
            }
            // What the source still has is stored again, whole.
            let id = world.back_up(&world.own.sound).unwrap();
            world.assert_snapshot(&world.own.sound, id, key);
        }
    }
    assert!(by_file > 0 && by_tree > 0, "{by_file} {by_tree}");
}

/// A backup that began before a repair knows nothing of its marks: what it commits meanwhile is told.
#[test]
fn a_backup_that_leans_on_damage_while_a_repair_is_at_work_is_told() {
    let (world, _) = everything();
    let data = world.own.base.keys().filter(|key| key.starts_with("packs/")).max_by_key(|key| world.own.base[*key].len()).unwrap();
    let job = world.job(&world.own.sound);
    let mut writer = Some(world.own.sound.begin(&job.plan, world.clock.now(), &Cancel::default()).unwrap());
    Harm::Flipped(300).inflict(&world, data);
    let (request, cancel) = (request(&world, true, false), Cancel::default());
    let planned = repair::plan(&request, &world.clock, &Silent, &cancel).unwrap();
    // It names again, unread, what stood there when it began.
    let newest = world.own.sound.manifests(None).unwrap().pop().unwrap();
    writer.take().unwrap().commit(newest.sources, newest.time, Vec::new(), &Silent).unwrap();
    let report = repair::apply(planned, &request, &world.clock, &Silent, &cancel).unwrap();
    assert_eq!(report.exit(), Some(Kind::Damaged), "{report:#?}");
    assert!(report.remaining.iter().any(|one| one.message.contains("committed meanwhile")), "{report:#?}");
    // Repaired again, it finds no other repository that has it, and says so; the earlier ones stand.
    let again = repair(&world, true).unwrap();
    assert_eq!(again.lost.len(), 1, "{again:#?}");
}

/// A damaged snapshot whose content is elsewhere does not keep retention from its work for ever.
#[test]
fn what_was_brought_back_lets_retention_go_on() {
    let (world, snapshots) = everything();
    let manifest = world.own.base.keys().find(|key| key.ends_with(&snapshots[0].0.to_string())).unwrap();
    let nodes = world.own.base.keys().filter(|key| key.starts_with("packs/")).min_by_key(|key| world.own.base[*key].len()).unwrap();
    for (key, harm) in [(manifest, Harm::Cut(30)), (manifest, Harm::Missing), (nodes, Harm::Missing), (nodes, Harm::Cut(30))] {
        world.own.put_back(&world.runtime);
        world.copy.put_back(&world.runtime);
        harm.inflict(&world, key);
        let at = format!("{key} {harm:?}");
        repair(&world, true).unwrap();
        let (manifests, _) = world.own.sound.sound_manifests(None).unwrap();
        let replaced: Vec<SnapshotId> = manifests.iter().filter_map(lifeboat::repo::Manifest::replaces).collect();
        assert!(!replaced.is_empty(), "{at}");
        let stand: Vec<_> = snapshots.iter().map(|(id, content)| (stands_for(&world, *id), content)).collect();
        prune(&world, &world.own.sound, 2).unwrap_or_else(|error| panic!("{at}: {error:?}"));
        for id in replaced {
            assert!(world.own.sound.removed(id).is_some(), "{at}: {id}");
            assert!(!world.own.objects(&world.runtime).keys().any(|key| key.ends_with(&id.to_string())), "{at}: {id} is there");
        }
        for (id, content) in stand {
            assert!(world.restored(&world.own.sound, id).unwrap() == *content, "{at}");
        }
        world.assert_sound(&world.own, &at);
    }
    // That a snapshot says that it stands for another one is not enough: a sound one stays.
    world.own.put_back(&world.runtime);
    let (manifests, _) = world.copy.sound.sound_manifests(None).unwrap();
    let newest = manifests.iter().max_by_key(|manifest| manifest.time).unwrap();
    let (now, cancel) = (world.clock.now(), Cancel::default());
    world.own.sound.bring_back(&world.copy.sound, newest, snapshots[1].0, None, now, &Silent, &cancel, |_| Ok(())).unwrap();
    prune(&world, &world.own.sound, 3).unwrap();
    assert!(world.own.sound.removed(snapshots[1].0).is_none());
}

/// A half of what the ledger knows of snapshots removed long ago, where the store keeps no versions and there is no copy of the bucket.
#[test]
fn a_harmed_volume_of_removed_snapshots_is_made_anew_or_given_up() {
    let (mut world, snapshots) = everything();
    let own = world.own.sound.clone();
    (0..70).for_each(|_| own.pass_in_ledger("a test", world.clock.now()).unwrap());
    world.own.keep(&world.runtime);
    let gone: Vec<SnapshotId> = own.ledger().unwrap().removed_ids().collect();
    assert!(!gone.is_empty());
    for (folder, harm) in [
        ("retention/removed/", Harm::Flipped(90)),
        ("retention/removed/", Harm::Missing),
        ("retention/ids/", Harm::Flipped(90)),
        ("retention/ids/", Harm::Missing),
    ] {
        world.own.put_back(&world.runtime);
        let key = world.own.base.keys().find(|key| key.starts_with(folder)).unwrap().clone();
        let at = format!("{key} {harm:?}");
        harm.inflict(&world, &key);
        let (dry, cancel) = (request(&world, false, true), Cancel::default());
        let planned = repair::plan(&dry, &world.clock, &Silent, &cancel).unwrap().report;
        let told: Vec<_> = planned.actions.iter().filter(|action| action.what == "ledger").collect();
        assert!(told.len() == 1 && told[0].detail.contains(&key) && !told[0].done, "{at}: {planned:#?}");
        repair(&world, false).unwrap();
        // What was asked of the ledger before it could be read is asked again.
        let again = repair(&world, false).unwrap();
        assert!(again.exit().is_none() && again.actions.is_empty(), "{at}: {again:#?}");
        assert_eq!(own.ledger().unwrap().removed_ids().collect::<Vec<_>>(), gone, "{at}");
        prune::hold(&own, snapshots[1].0, None, "audit", "a test", world.clock.now()).unwrap();
        prune(&world, &own, 1).unwrap_or_else(|error| panic!("{at}: {error:?}"));
        world.assert_snapshot(&own, snapshots[1].0, &at);
    }
}

/// A hold is of a content: what was brought back is held as long as the damaged one is, whatever of that can be read.
#[test]
fn what_was_brought_back_is_held_like_the_damaged_one() {
    let (world, snapshots) = everything();
    let (held, content) = &snapshots[0];
    let manifest = world.own.base.keys().find(|key| key.ends_with(&held.to_string())).unwrap();
    let data = world.own.base.keys().filter(|key| key.starts_with("packs/")).max_by_key(|key| world.own.base[*key].len()).unwrap();
    let nodes = world.own.base.keys().filter(|key| key.starts_with("packs/")).min_by_key(|key| world.own.base[*key].len()).unwrap();
    let listed = |id: SnapshotId| {
        let list = ops_snapshots::run(&world.own.sound, None, world.clock.now()).unwrap();
        list.snapshots.into_iter().find(|one| one.id == id).unwrap()
    };
    for (key, harm) in [(manifest, Harm::Cut(30)), (manifest, Harm::Missing), (nodes, Harm::Cut(30)), (data, Harm::Flipped(300))] {
        world.own.put_back(&world.runtime);
        world.copy.put_back(&world.runtime);
        let at = format!("{key} {harm:?}");
        prune::hold(&world.own.sound, *held, None, "audit", "a test", world.clock.now()).unwrap();
        harm.inflict(&world, key);
        assert_eq!(repair(&world, true).unwrap().exit(), None, "{at}");
        let back = stands_for(&world, *held);
        assert_ne!(back, *held, "{at}");
        let shown = listed(back).held.unwrap();
        assert!(shown.contains("audit") && shown.contains(&held.to_string()), "{at}: {shown}");
        world.back_up(&world.own.sound).unwrap();
        prune(&world, &world.own.sound, 1).unwrap_or_else(|error| panic!("{at}: {error:?}"));
        assert!(world.own.sound.removed(back).is_none(), "{at}");
        assert!(world.restored(&world.own.sound, back).unwrap() == *content, "{at}");
        world.assert_sound(&world.own, &at);
        // It is the damaged one that is held, and released.
        let now = world.clock.now();
        let refused = prune::release(&world.own.sound, back, "done", "a test", now).unwrap_err();
        assert!(refused.hint_text().unwrap().contains(&held.to_string()), "{at}: {refused:?}");
        prune::release(&world.own.sound, *held, "done", "a test", now).unwrap();
        prune(&world, &world.own.sound, 1).unwrap();
        assert!(world.own.sound.removed(back).is_some() && world.own.sound.removed(*held).is_some(), "{at}");
        world.assert_sound(&world.own, &at);
    }
}

/// Nothing removes the damaged snapshot of a plan that keeps everything, or is in no file any more: it must not stand in the way of the others.
#[test]
fn what_was_brought_back_blocks_no_collection_of_a_plan_without_rules() {
    let (world, snapshots) = everything();
    let manifest = world.own.base.keys().find(|key| key.ends_with(&snapshots[0].0.to_string())).unwrap();
    let nodes = world.own.base.keys().filter(|key| key.starts_with("packs/")).min_by_key(|key| world.own.base[*key].len()).unwrap();
    for (key, harm) in [(manifest, Harm::Cut(30)), (nodes, Harm::Cut(30))] {
        world.own.put_back(&world.runtime);
        world.copy.put_back(&world.runtime);
        let at = format!("{key} {harm:?}");
        harm.inflict(&world, key);
        let collect =
            |options: &CollectOptions<'_>| world.own.sound.collect(options, world.clock.now(), &Silent, &Cancel::default()).unwrap();
        assert!(!collect(&CollectOptions::default()).blocked.is_empty(), "{at}: what nobody brought back may lead to anything");
        assert_eq!(repair(&world, true).unwrap().exit(), None, "{at}");
        // Everything is put together anew, so that all that is alive must be known as such.
        let done = collect(&CollectOptions { rewrite: &|_| true, ..CollectOptions::default() });
        assert_eq!(done.blocked, Vec::<String>::new(), "{at}");
        for plan in ["crm", "other"] {
            let plans = [PlanRules { plan: name(plan), rules: Rules::default(), zone: chrono_tz::UTC, logs: Vec::new() }];
            let report = prune::run(&world.own.sound, &plans, false, &world.clock, &Silent, &Cancel::default(), &|| Ok(())).unwrap();
            assert_eq!((report.exit(), report.snapshots_removed), (None, 0), "{at}: {report:?}");
        }
        for (id, content) in &snapshots {
            assert!(world.restored(&world.own.sound, stands_for(&world, *id)).unwrap() == *content, "{at}: {id}");
        }
        world.assert_sound(&world.own, &at);
    }
}

#[test]
fn who_asks_for_a_damaged_snapshot_hears_what_stands_in_its_place() {
    let (world, snapshots) = everything();
    let id = snapshots[0].0;
    let manifest = world.own.base.keys().find(|key| key.ends_with(&id.to_string())).unwrap();
    let data = world.own.base.keys().filter(|key| key.starts_with("packs/")).max_by_key(|key| world.own.base[*key].len()).unwrap();
    let request = RestoreRequest {
        choice: Choice::Snapshot(id.to_string()),
        to: world.folder.path().join("never"),
        sources: Vec::new(),
        only: Vec::new(),
        resume: false,
    };
    for (key, harm) in [(data, Harm::Flipped(300)), (manifest, Harm::Cut(30))] {
        world.own.put_back(&world.runtime);
        world.copy.put_back(&world.runtime);
        harm.inflict(&world, key);
        assert_eq!(repair(&world, true).unwrap().exit(), None, "{key}");
        let back = stands_for(&world, id).to_string();
        let told = match restore::plan(&world.job(&world.own.sound), &request) {
            Ok(plan) => plan.warnings.join("; "),
            Err(error) => error.hint_text().unwrap().to_owned(),
        };
        assert!(told.contains("stands in its place") && told.contains(&back), "{key}: {told}");
    }
}

fn accept(world: &World, others: bool, ids: &[SnapshotId]) -> Result<RepairReport> {
    world.clock.set(world.clock.now() + chrono::Duration::seconds(60));
    let accept = Acceptance {
        snapshots: ids.iter().map(ToString::to_string).collect(),
        reason: "a disk of June".into(),
        by: "a test".into(),
        plans: vec![name("crm")],
    };
    let (request, cancel) = (RepairRequest { accept: Some(accept), ..request(world, others, false) }, Cancel::default());
    let planned = repair::plan(&request, &world.clock, &Silent, &cancel)?;
    repair::apply(planned, &request, &world.clock, &Silent, &cancel)
}

/// A snapshot of which nothing can be reached and that nobody has: until a person says so by name, nothing is collected, and every verification tells it.
#[test]
fn a_loss_of_all_of_a_snapshot_ends_when_somebody_accepts_it() {
    let (world, snapshots) = everything();
    let (lost, kept) = (snapshots[0].0, snapshots[1].0);
    let key = world.own.base.keys().find(|key| key.ends_with(&lost.to_string())).unwrap();
    for harm in [Harm::Cut(30), Harm::Missing] {
        world.own.put_back(&world.runtime);
        world.copy.put_back(&world.runtime);
        let at = format!("{harm:?}");
        // What is sound, and what another repository has, is not lost.
        let sound = accept(&world, false, &[lost]).unwrap_err();
        assert_eq!(sound.kind(), Kind::Usage, "{at}: {sound:?}");
        harm.inflict(&world, key);
        let before = world.own.objects(&world.runtime);
        let elsewhere = accept(&world, true, &[lost]).unwrap_err();
        assert!(elsewhere.kind() == Kind::Usage && elsewhere.to_string().contains("another repository has it"), "{at}: {elsewhere:?}");
        let other = accept(&world, false, &[kept]).unwrap_err();
        assert!(other.hint_text().unwrap().contains(&lost.to_string()), "{at}: {other:?}");
        let unasked = RepairRequest {
            unreachable: vec![(name("offsite"), "it is away".into())],
            accept: Some(Acceptance { snapshots: vec![lost.to_string()], reason: "x".into(), by: "t".into(), plans: Vec::new() }),
            ..request(&world, false, false)
        };
        let unasked = repair::plan(&unasked, &world.clock, &Silent, &Cancel::default()).map(drop).unwrap_err();
        assert!(unasked.kind() == Kind::Unavailable && unasked.to_string().contains("offsite"), "{at}: {unasked:?}");
        let mut after = world.own.objects(&world.runtime);
        after.retain(|key, _| !(key.starts_with("reports/") || key.starts_with("gc/")));
        assert!(after.iter().all(|(key, bytes)| before.get(key) == Some(bytes)), "{at}: what was refused changed something");
        let blocked = prune(&world, &world.own.sound, 2);
        assert_eq!(blocked.is_err(), matches!(harm, Harm::Cut(_)), "{at}: {blocked:?}");
        assert_eq!(repair(&world, false).unwrap().exit(), Some(Kind::Damaged), "{at}");

        let done = accept(&world, false, &[lost]).unwrap();
        assert_eq!(done.exit(), None, "{at}: {done:#?}");
        let told = world.own.sound.removed(lost).unwrap().to_string();
        assert!(told.contains("lost, and that was accepted: a disk of June (by a test)"), "{at}: {told}");
        world.assert_sound(&world.own, &at);
        assert_eq!(repair(&world, false).unwrap().exit(), None, "{at}");
        assert_eq!(ops_snapshots::run(&world.own.sound, None, world.clock.now()).unwrap().exit(), None, "{at}");
        assert!(world.restored(&world.own.sound, kept).unwrap() == snapshots[1].1, "{at}");
        // Retention goes on, also when none of those that came after it is left.
        world.back_up(&world.own.sound).unwrap();
        prune(&world, &world.own.sound, 1).unwrap_or_else(|error| panic!("{at}: {error:?}"));
        assert!(!world.own.objects(&world.runtime).keys().any(|key| key.ends_with(&lost.to_string())), "{at}");
        world.assert_sound(&world.own, &at);
    }
}

/// What came before a snapshot whose loss was accepted is missed as before, when it vanishes.
#[test]
fn what_came_before_an_accepted_loss_does_not_vanish_unseen() {
    let world = World::new();
    let first = world.first();
    let lost = world.back_up(&world.own.sound).unwrap();
    world.back_up(&world.own.sound).unwrap();
    let key_of = |id: SnapshotId| world.own.sound.snapshot_key(&name("crm"), id);
    Harm::Cut(30).inflict(&world, &key_of(lost));
    assert_eq!(accept(&world, false, &[lost]).unwrap().exit(), None);
    world.assert_sound(&world.own, "accepted");
    Harm::Missing.inflict(&world, &key_of(first));
    let report = verify::run(&world.own.sound, None, Depth::Structure, &world.clock, &Silent, &Cancel::default()).unwrap();
    assert!(report.findings.iter().any(|finding| finding.object == key_of(first) && finding.kind == "chain-broken"), "{report:#?}");
}

/// Of a snapshot that lost some of its content the rest stays, as long as the rules say; what else is lost of it is told.
#[test]
fn a_loss_of_a_part_of_a_snapshot_that_was_accepted_is_told_no_more_and_takes_nothing_else() {
    let mut world = World::new();
    let first = world.first();
    let packs: Vec<String> = world.own.base.keys().filter(|key| key.starts_with("packs/")).cloned().collect();
    world.copy.keep(&world.runtime);
    let (nodes, data): (Vec<&String>, Vec<&String>) = packs.iter().partition(|key| world.own.base[*key].len() < 20_000);
    assert!(!nodes.is_empty() && !data.is_empty(), "{packs:?}");
    for (key, harm) in [
        (data[0], Harm::Flipped(300)),
        (nodes[0], Harm::Flipped(60)),
        (nodes[0], Harm::Cut(60)),
        (data[0], Harm::Missing),
        (nodes[0], Harm::Missing),
    ] {
        world.own.put_back(&world.runtime);
        world.copy.put_back(&world.runtime);
        world.own.restart(&world.runtime);
        let at = format!("{key} {harm:?}");
        harm.inflict(&world, key);
        let report = repair(&world, false).unwrap();
        assert_eq!(report.lost.iter().map(|lost| lost.snapshot).collect::<Vec<_>>(), [first], "{at}");
        let second = world.back_up(&world.own.sound).unwrap();
        assert!(world.copy_all(&world.own.sound, &world.copy.sound).is_err(), "{at}: it owes the first");
        assert_eq!(ops_snapshots::run(&world.own.sound, None, world.clock.now()).unwrap().exit(), Some(Kind::Damaged), "{at}");
        let done = accept(&world, false, &[first]).unwrap();
        assert_eq!(done.exit(), None, "{at}: {done:#?}");
        world.assert_sound(&world.own, &at);
        let again = verify::run(&world.own.sound, None, Depth::Data { percent: 100 }, &world.clock, &Silent, &Cancel::default()).unwrap();
        assert!(again.accepted.iter().any(|finding| finding.object == *key) && !again.snapshots_sound.contains(&first), "{at}: {again:#?}");
        let list = ops_snapshots::run(&world.own.sound, None, world.clock.now()).unwrap();
        let shown = list.snapshots.iter().find(|one| one.id == first).unwrap();
        assert!(shown.damaged.is_some() && shown.loss_accepted.as_ref().unwrap().contains("a disk of June"), "{at}: {shown:?}");
        assert_eq!(list.exit(), None, "{at}");
        assert_eq!(repair(&world, false).unwrap().exit(), None, "{at}");
        world.copy_all(&world.own.sound, &world.copy.sound).unwrap();
        // The rules keep two: it is one of them, and takes no other one's place.
        prune(&world, &world.own.sound, 2).unwrap_or_else(|error| panic!("{at}: {error:?}"));
        assert!(world.own.sound.removed(first).is_none(), "{at}");
        let (here, collected) = (world.own.objects(&world.runtime), &world.own.base);
        if data.contains(&key) {
            assert!(packs.iter().all(|pack| pack == key || here.get(pack) == collected.get(pack)), "{at}: something of the rest is gone");
        }
        // Another loss is another one.
        let other = packs.iter().filter(|pack| *pack != key).filter_map(|pack| Some((here.get(pack)?.len(), pack))).min().unwrap().1;
        Harm::Flipped(here[other].len() / 2).inflict(&world, other);
        world.clock.set(world.clock.now() + chrono::Duration::seconds(60));
        let report = verify::run(&world.own.sound, None, Depth::Data { percent: 100 }, &world.clock, &Silent, &Cancel::default()).unwrap();
        assert_eq!(report.exit(), Some(Kind::Damaged), "{at}: {other}");
        assert_eq!(ops_snapshots::run(&world.own.sound, None, world.clock.now()).unwrap().exit(), Some(Kind::Damaged), "{at}");
        // It keeps the snapshot, and all that is alive below what cannot be read.
        let blocked = prune(&world, &world.own.sound, 1);
        assert!(world.own.sound.removed(first).is_none(), "{at}: {blocked:?}");
        let left = world.own.objects(&world.runtime);
        assert!(here.keys().filter(|key| key.starts_with("packs/")).all(|pack| left.contains_key(pack)), "{at}: {blocked:?}");
        world.runtime.block_on(lifeboat::store::faults::replace(&world.own.store, other, here[other].clone())).unwrap();
        world.assert_sound(&world.own, &at);
        prune(&world, &world.own.sound, 1).unwrap_or_else(|error| panic!("{at}: {error:?}"));
        let told = world.own.sound.removed(first).unwrap().to_string();
        assert!(told.contains("that it is not whole was accepted: a disk of June"), "{at}: {told}");
        world.assert_snapshot(&world.own.sound, second, &at);
        world.assert_sound(&world.own, &at);
    }
}

fn verified(world: &World, depth: Depth) -> verify::VerifyReport {
    world.clock.set(world.clock.now() + chrono::Duration::seconds(1));
    verify::run(&world.own.sound, None, depth, &world.clock, &Silent, &Cancel::default()).unwrap()
}

const ALL: Depth = Depth::Data { percent: 100 };

/// Packs of a repository as it was kept: of nodes, and of data.
fn packs_of(place: &Place) -> (Vec<String>, Vec<String>) {
    let packs = place.base.keys().filter(|key| key.starts_with("packs/")).cloned();
    packs.partition(|key| place.base[key].len() < 20_000)
}

/// What is found of a tree that cannot be read names the manifest too. When that is gone itself, everything is lost, and nobody has accepted that.
#[test]
fn who_accepts_that_a_part_is_lost_has_not_accepted_that_all_of_it_is() {
    let mut world = World::new();
    let first = world.first();
    let key = world.own.sound.snapshot_key(&name("crm"), first);
    packs_of(&world.own).0.iter().for_each(|pack| Harm::Foreign.inflict(&world, pack));
    assert_eq!(repair(&world, false).unwrap().exit(), Some(Kind::Damaged));
    world.back_up(&world.own.sound).unwrap();
    let done = accept(&world, false, &[first]).unwrap();
    assert!(done.actions.iter().all(|action| action.done) && done.lost.len() == 1 && done.remaining.is_empty(), "{done:#?}");
    assert!(verified(&world, ALL).accepted.iter().any(|finding| finding.object == key), "the tree of it is not read");
    world.own.keep(&world.runtime);
    for harm in [Harm::Cut(30), Harm::Missing] {
        world.own.put_back(&world.runtime);
        world.own.restart(&world.runtime);
        let at = format!("{harm:?}");
        prune::hold(&world.own.sound, first, None, "audit", "a test", world.clock.now()).unwrap();
        harm.inflict(&world, &key);
        let report = verified(&world, ALL);
        assert!(report.exit() == Some(Kind::Damaged) && report.findings.iter().any(|f| f.object == key), "{at}: {report:#?}");
        let told = repair(&world, false).unwrap();
        assert_eq!((told.exit(), told.lost.len()), (Some(Kind::Damaged), 1), "{at}: {told:#?}");
        let held = accept(&world, false, &[first]).unwrap_err();
        assert!(held.kind() == Kind::Usage && held.to_string().contains("it is held"), "{at}: {held:?}");
        prune::release(&world.own.sound, first, "done", "a test", world.clock.now()).unwrap();
        let done = accept(&world, false, &[first]).unwrap();
        assert!(done.actions.iter().all(|action| action.done) && done.remaining.is_empty(), "{at}: {done:#?}");
        assert!(world.own.sound.removed(first).is_some(), "{at}");
        // The damaged pack, which nothing needs any more, goes with it.
        prune(&world, &world.own.sound, 1).unwrap_or_else(|error| panic!("{at}: {error:?}"));
        world.assert_sound(&world.own, &at);
        assert_eq!(repair(&world, false).unwrap().exit(), None, "{at}");
    }
}

/// A copy that lost what its original lost, or whose key was destroyed, brings nothing back: it is lost, and somebody can accept that.
#[test]
fn what_no_repository_has_whole_is_lost_and_can_be_accepted() {
    for destroyed in [false, true] {
        let mut world = World::new();
        let (first, folder) = (world.first(), world.folder.path().to_owned());
        if destroyed {
            world.copy.sound.make_plan_key(&name("crm"), world.clock.now()).unwrap();
            world.copy.reopen(&world.runtime, &folder);
        }
        world.copy_all(&world.own.sound, &world.copy.sound).unwrap();
        world.copy.keep(&world.runtime);
        let (_, of_copy) = packs_of(&world.copy);
        if destroyed {
            world.copy.sound.erase_plan(&name("crm"), world.clock.now()).unwrap();
            world.copy.reopen(&world.runtime, &folder);
        } else {
            for pack in &of_copy {
                world.runtime.block_on(lifeboat::store::faults::truncate(&world.copy.store, pack, 100)).unwrap();
            }
        }
        let (_, data) = packs_of(&world.own);
        Harm::Missing.inflict(&world, &data[0]);
        let at = format!("destroyed: {destroyed}");
        let told = repair(&world, true).unwrap();
        assert_eq!(told.exit(), Some(Kind::Damaged), "{at}: {told:#?}");
        let [lost] = &told.lost[..] else { panic!("{at}: {told:#?}") };
        assert!(lost.snapshot == first && !lost.files.is_empty(), "{at}: {told:#?}");
        let done = accept(&world, true, &[first]).unwrap();
        assert_eq!(done.exit(), None, "{at}: {done:#?}");
        assert_eq!(verified(&world, ALL).findings, [], "{at}");
        let again = repair(&world, true).unwrap();
        assert_eq!((again.exit(), again.actions.len()), (None, 0), "{at}: {again:#?}");
        if destroyed {
            continue;
        }
        // The copy is whole again: what was given up comes back all the same.
        world.copy.put_back(&world.runtime);
        assert_eq!(repair(&world, true).unwrap().exit(), None, "{at}");
        assert_ne!(stands_for(&world, first), first, "{at}");
        world.assert_sound(&world.own, &at);
    }
}

/// What was destroyed on purpose is missed by nobody: what its packs lose is no damage, stands in no way, and comes back from no copy.
#[test]
fn what_was_destroyed_on_purpose_is_neither_damaged_nor_brought_back() {
    let mut world = World::new();
    let folder = world.folder.path().to_owned();
    world.own.sound.make_plan_key(&name("crm"), world.clock.now()).unwrap();
    world.own.reopen(&world.runtime, &folder);
    let before = packs_of(&world.own);
    let second = world.back_up(&world.own.sound).unwrap();
    world.copy_all(&world.own.sound, &world.copy.sound).unwrap();
    world.own.keep(&world.runtime);
    world.own.sound.erase_plan(&name("crm"), world.clock.now()).unwrap();
    world.own.reopen(&world.runtime, &folder);
    world.own.sound.make_plan_key(&name("crm"), world.clock.now()).unwrap();
    world.own.reopen(&world.runtime, &folder);
    let manifest = world.own.sound.manifest(second).unwrap();
    assert!(world.own.sound.destroyed_at(&manifest).is_some());
    let fresh = |now: Vec<String>, before: &[String]| now.into_iter().find(|pack| !before.contains(pack)).unwrap();
    let now = packs_of(&world.own);
    let (nodes, data) = (fresh(now.0, &before.0), fresh(now.1, &before.1));
    let sound = verified(&world, ALL);
    // That not all was opened is said, and says nothing of what was.
    assert_eq!((sound.exit(), &sound.findings[..], sound.skipped.len()), (Some(Kind::Incomplete), &[][..], 1), "{sound:#?}");
    let list = ops_snapshots::run(&world.own.sound, None, world.clock.now()).unwrap();
    assert!(list.snapshots.iter().all(|snapshot| snapshot.verified_at.is_some() == (snapshot.id != second)), "{list:#?}");
    let nothing = repair(&world, true).unwrap();
    assert_eq!((nothing.exit(), nothing.left.len()), (None, 0), "{nothing:#?}");
    assert!(nothing.warnings.iter().any(|warning| warning.contains("can never be")), "{nothing:#?}");
    world.own.keep(&world.runtime);
    for (key, harm) in [(&data, Harm::Missing), (&data, Harm::Flipped(300)), (&nodes, Harm::Missing)] {
        world.own.put_back(&world.runtime);
        world.own.restart(&world.runtime);
        let at = format!("{key} {harm:?}");
        harm.inflict(&world, key);
        let report = verified(&world, ALL);
        assert!(report.findings.is_empty() && report.accepted.iter().any(|finding| finding.object == *key), "{at}: {report:#?}");
        let repaired = repair(&world, true).unwrap();
        assert_eq!((repaired.exit(), stands_for(&world, second)), (None, second), "{at}: {repaired:#?}");
        assert!(!repaired.actions.iter().any(|action| action.what == "snapshot"), "{at}: {repaired:#?}");
        let collected = world.own.sound.collect(&CollectOptions::default(), world.clock.now(), &Silent, &Cancel::default()).unwrap();
        assert_eq!(collected.blocked, Vec::<String>::new(), "{at}");
        let third = world.back_up(&world.own.sound).unwrap();
        world.assert_snapshot(&world.own.sound, third, &at);
        prune(&world, &world.own.sound, 1).unwrap_or_else(|error| panic!("{at}: {error:?}"));
        assert!(world.own.sound.removed(second).is_some(), "{at}");
        world.assert_sound(&world.own, &at);
    }
}

#[test]
fn what_was_brought_back_stands_where_the_damaged_one_stood() {
    let (world, snapshots) = everything();
    let key = |id: SnapshotId| world.own.base.keys().find(|key| key.ends_with(&id.to_string())).unwrap().clone();
    // The older one is lost: the newer stays the latest, although the older one was committed after it now.
    Harm::Flipped(70).inflict(&world, &key(snapshots[0].0));
    repair(&world, true).unwrap();
    let latest = |world: &World| {
        let (manifests, _) = world.own.sound.sound_manifests(None).unwrap();
        lifeboat::ops::select::latest(&manifests).unwrap().id
    };
    assert_eq!(latest(&world), snapshots[1].0);
    assert_ne!(stands_for(&world, snapshots[0].0), snapshots[0].0);
    // It is in the copy already, and is not copied there as another one.
    world.copy_all(&world.own.sound, &world.copy.sound).unwrap();
    assert_eq!(world.copy.sound.manifests(None).unwrap().len(), 2);
    let next = world.back_up(&world.own.sound).unwrap();
    assert_eq!(latest(&world), next);
    // The newest is lost: what was brought back is the latest.
    world.own.put_back(&world.runtime);
    Harm::Cut(60).inflict(&world, &key(snapshots[1].0));
    repair(&world, true).unwrap();
    let back = stands_for(&world, snapshots[1].0);
    assert_eq!(latest(&world), back);
    let shown = ops_snapshots::run(&world.own.sound, None, world.clock.now()).unwrap();
    assert!(shown.snapshots.iter().any(|one| one.id == back && one.damaged.is_none()));
}

#[test]
fn without_a_key_every_change_of_a_pack_or_index_object_is_found() {
    let (world, _) = everything();
    let check = |world: &World| keyless::run(&world.own.store, world.runtime.handle(), &world.clock, &Silent, &Cancel::default()).unwrap();
    let whole = check(&world);
    assert_eq!(whole.findings, []);
    let compared = world.own.base.keys().filter(|key| key.starts_with("packs/") || key.starts_with("index/")).count() as u64;
    assert_eq!((whole.objects_compared, whole.objects_shaped), (compared, world.own.base.len() as u64 - 1 - compared));
    for key in world.own.base.clone().keys() {
        let by_name = key.starts_with("packs/") || key.starts_with("index/");
        let len = world.own.base[key].len();
        for harm in [Harm::Flipped(0), Harm::Flipped(len / 2), Harm::Flipped(len - 1), Harm::Cut(len / 2), Harm::Foreign, Harm::Missing] {
            world.own.put_back(&world.runtime);
            harm.inflict(&world, key);
            if matches!(harm, Harm::Missing) && key == "format" {
                continue;
            }
            let found = check(&world).findings;
            assert!(found.iter().all(|finding| finding.object == *key), "{key} {harm:?}: {found:?}");
            match harm {
                // Nobody can know.
                Harm::Missing => assert!(found.is_empty()),
                Harm::Foreign => assert!(!found.is_empty(), "{key} {harm:?}"),
                _ if by_name => assert!(!found.is_empty(), "{key} {harm:?}"),
                _ => {}
            }
        }
    }
}

/// Without its `format` object nothing opens; what it held is written in every other object too.
#[test]
fn a_lost_format_object_is_made_anew() {
    let (world, snapshots) = everything();
    let handle = world.runtime.handle();
    let find = |passphrase: &Passphrase| LostFormat::find(&world.own.store, handle, passphrase);
    assert!(find(&passphrase()).unwrap().is_none(), "nothing is wrong");
    let another: String =
        String::from_utf8(world.own.base["format"].to_vec()).unwrap().replace(&world.own.sound.id().to_string(), &"ab".repeat(16));
    let replace = |bytes: Bytes| world.runtime.block_on(lifeboat::store::faults::replace(&world.own.store, "format", bytes)).unwrap();
    for harm in [Some(Harm::Missing), Some(Harm::Cut(20)), Some(Harm::Foreign), None] {
        world.own.put_back(&world.runtime);
        match &harm {
            Some(harm) => harm.inflict(&world, "format"),
            None => replace(another.clone().into()),
        }
        let open = || Repository::open(world.own.store.clone(), handle.clone(), &passphrase(), &OpenOptions::default());
        assert_eq!(open().unwrap_err().kind(), Kind::Damaged, "{harm:?}");
        assert!(find(&Passphrase::new("not the passphrase")).unwrap().is_none(), "{harm:?}: without proof nothing is believed");
        let lost = find(&passphrase()).unwrap().unwrap();
        assert_eq!(lost.id(), world.own.sound.id());
        lost.put(&world.own.store, handle).unwrap();
        assert!(world.restored(&open().unwrap(), snapshots[1].0).unwrap() == snapshots[1].1);
    }
}

fn prune(world: &World, repository: &Repository, last: u32) -> Result<()> {
    let rules = Rules { last, ..Rules::default() };
    let plans = [PlanRules { plan: name("crm"), rules, zone: chrono_tz::UTC, logs: Vec::new() }];
    let report = prune::run(repository, &plans, false, &world.clock, &Silent, &Cancel::default(), &|| Ok(()))?;
    report.exit().map_or(Ok(()), |kind| Err(Error::new(kind, report.failure().unwrap_or_default())))
}

/// One of several snapshots is left, and its packs are rewritten.
#[test]
fn a_prune_removes_what_it_says_and_nothing_else() {
    let mut world = World::new();
    let live = world.folder.path().join("live");
    fs::write(live.join("tree/passing"), noise(20, 400_000)).unwrap();
    fs::write(live.join("tree/staying"), noise(21, 100_000)).unwrap();
    world.back_up(&world.own.sound).unwrap();
    fs::remove_file(live.join("tree/passing")).unwrap();
    let newest = world.back_up(&world.own.sound).unwrap();
    world.own.keep(&world.runtime);
    let act = |world: &World| {
        prune(world, &world.own.faulty, 1)?;
        // And what is left put together anew.
        let options = CollectOptions { rewrite: &|_| true, ..CollectOptions::default() };
        let done = world.own.faulty.collect(&options, world.clock.now(), &Silent, &Cancel::default())?;
        if !done.blocked.is_empty() {
            return Err(Error::new(Kind::Damaged, done.blocked.join("; ")));
        }
        // The store was put back, which it never is below an open repository: this reads anew where rewritten packs have gone.
        world.assert_sound(&world.own, "after a prune");
        let left = world.own.sound.manifests(None)?;
        assert_eq!(left.iter().map(|manifest| manifest.id).collect::<Vec<_>>(), [newest]);
        world.assert_snapshot(&world.own.sound, newest, "after a prune");
        Ok(())
    };
    sweep(&world, "prune", &world.own, 50, act);
    killed_at_any_write(&world, "prune", 30, act);
    let moved = world.own.faults.calls().iter().any(|call| call.key.starts_with("gc/moved/") && call.verb == Verb::Create);
    assert!(moved, "nothing was rewritten");
}

/// Ends an operation at one of its writes, before or after it is carried out, as a kill would; the next run goes on.
fn killed_at_any_write(world: &World, what: &str, stride: u64, act: impl Fn(&World) -> Result<()>) {
    let place = &world.own;
    place.put_back(&world.runtime);
    place.faults.forget_calls();
    act(world).unwrap_or_else(|error| panic!("{what} without a fault: {error:?}"));
    let writes = place.faults.calls().iter().filter(|call| matches!(call.verb, Verb::Create | Verb::Delete)).count() as u64;
    let mut tried = 0;
    for number in sample(writes, stride) {
        for when in [When::Before, When::After] {
            place.put_back(&world.runtime);
            let at = format!("{what} killed {when:?} write {number} of {writes}");
            place.faults.crash_at_write(number, when);
            let outcome = act(world);
            place.faults.clear();
            tried += 1;
            act(world).unwrap_or_else(|error| panic!("{at}: the next run: {error:?} (the first: {outcome:?})"));
            world.assert_sound(place, &at);
        }
    }
    say(&format!("{what}: killed {tried} times"));
}

/// A repair itself meets a store that fails, or answers with wrong bytes.
#[test]
fn a_repair_that_fails_anywhere_is_told_and_the_next_one_goes_on() {
    let (mut world, snapshots) = everything();
    // Data that both snapshots need, an index object, a piece of the log.
    let of =
        |begin: &str| world.own.base.keys().filter(|key| key.contains(begin)).max_by_key(|key| world.own.base[*key].len()).unwrap().clone();
    for key in [of("packs/"), of("index/"), of("/pieces/")] {
        Harm::Flipped(300).inflict(&world, &key);
    }
    world.own.keep(&world.runtime);
    let act = |world: &World| {
        let report = repair(world, true)?;
        if let Some(kind) = report.exit() {
            return Err(Error::new(kind, format!("{report:?}")));
        }
        for (id, content) in &snapshots {
            assert!(world.restored(&world.own.sound, stands_for(world, *id))? == *content);
        }
        Ok(())
    };
    sweep(&world, "repair", &world.own, 90, act);
    killed_at_any_write(&world, "repair", 24, act);
}

/// A credential that may not delete, or a store that locks: what is replaced stays, and that is told.
#[test]
fn a_store_that_refuses_to_delete_keeps_no_repair_from_its_work() {
    let (world, snapshots) = everything();
    let refuse = || world.own.faults.add(Rule::on(Verb::Delete).always().then(Effect::Fail(Kind::Failed)));
    let harm = |folder: &str| {
        let keys: Vec<String> = world.own.base.keys().filter(|key| key.starts_with(folder)).cloned().collect();
        keys.iter().for_each(|key| Harm::Flipped(world.own.base[key].len() / 2).inflict(&world, key));
        keys
    };
    // Two at once: one refusal does not keep the next from being tried. What stays of them harms nothing.
    let index = harm("index/");
    assert!(index.len() > 1, "{index:?}");
    for _ in 0..2 {
        refuse();
        let report = repair(&world, false).unwrap();
        world.own.faults.clear();
        assert!(report.actions.iter().all(|action| action.done) && report.actions.len() == 1, "{report:#?}");
        assert_eq!((report.exit(), report.left.len(), report.remaining.len()), (None, 0, 0), "{report:#?}");
        for key in &index {
            assert!(
                report
                    .warnings
                    .iter()
                    .any(|warning| warning.starts_with(&format!("{key} was replaced, and the store refuses to delete it")))
            );
        }
        assert!(index.iter().all(|key| world.own.objects(&world.runtime).contains_key(key)));
        let id = world.back_up(&world.own.sound).unwrap();
        world.assert_snapshot(&world.own.sound, id, "what it lists is listed anew");
    }
    let report = repair(&world, false).unwrap();
    assert!(report.exit().is_none() && report.warnings.is_empty(), "{report:#?}");
    assert!(!index.iter().any(|key| world.own.objects(&world.runtime).contains_key(key)));
    world.assert_sound(&world.own, "the store deletes again");
    // Tombstones that cannot be read and stay fail every backup: no success.
    world.own.put_back(&world.runtime);
    let tombstones = harm("gc/tombstones/");
    refuse();
    let report = repair(&world, false).unwrap();
    world.own.faults.clear();
    assert!(report.actions.iter().all(|action| action.done), "{report:#?}");
    assert_eq!(report.exit(), Some(Kind::Damaged));
    assert!(report.remaining.iter().all(|finding| tombstones.contains(&finding.object)) && !report.remaining.is_empty(), "{report:#?}");
    assert_eq!(world.back_up(&world.own.sound).unwrap_err().kind(), Kind::Damaged);
    assert_eq!(repair(&world, false).unwrap().exit(), None);
    let id = world.back_up(&world.own.sound).unwrap();
    world.assert_snapshot(&world.own.sound, id, "tombstones");
    for (id, content) in &snapshots {
        assert!(world.restored(&world.own.sound, *id).unwrap() == *content);
    }
}

/// Packs that retention, or a rotation of the keys, has put together anew, and the records of where things have gone: damaged then.
#[test]
fn what_was_rewritten_is_put_right_too() {
    for rotated in [false, true] {
        let (mut world, snapshots) = everything();
        if rotated {
            world.own.sound.rotate(&passphrase(), &[], false, Utc::now()).unwrap();
            world.own.reopen(&world.runtime, world.folder.path());
            let (done, unread) = world.own.sound.retire_generations(world.clock.now(), &Silent, &Cancel::default()).unwrap();
            assert!(done.packs_rewritten > 0 && unread == 0, "{done:?}");
        } else {
            let options = CollectOptions { rewrite: &|_| true, ..CollectOptions::default() };
            let done = world.own.sound.collect(&options, world.clock.now(), &Silent, &Cancel::default()).unwrap();
            assert!(done.packs_rewritten > 0 && done.packs_deleted > 0, "{done:?}");
        }
        world.assert_sound(&world.own, "rewritten");
        world.own.keep(&world.runtime);
        let keys: Vec<String> =
            world.own.base.keys().filter(|key| key.starts_with("packs/") || key.starts_with("gc/moved/")).cloned().collect();
        assert!(keys.iter().any(|key| key.starts_with("gc/moved/")));
        let mut named = 0;
        // Names are other ones each time. What files hold is in the largest pack: that one is gone, with a copy and without, also in a sample.
        let largest = keys.iter().filter(|key| key.starts_with("packs/")).max_by_key(|key| world.own.base[*key].len()).unwrap();
        for (key, position) in keys.iter().zip(usize::try_from(seed()).unwrap()..) {
            let harms = Harm::all(key, &world.own.base);
            let chosen = if key == largest { 0 } else { position % harms.len() };
            for (_, harm) in harms.into_iter().enumerate().filter(|(number, _)| is_all() || *number == chosen) {
                let both = is_all() || key == largest;
                for with_copy in [false, true].into_iter().filter(|with| both || *with == (position % 2 == 0)) {
                    world.own.put_back(&world.runtime);
                    world.copy.put_back(&world.runtime);
                    harm.inflict(&world, key);
                    // Nothing of it from before the damage.
                    world.own.reopen(&world.runtime, world.folder.path());
                    let report = repair(&world, with_copy).unwrap_or_else(|error| panic!("{key} {harm:?}: {error:?}"));
                    let told = format!("rotated {rotated}, {key} {harm:?}: {report:#?}");
                    assert!(!report.findings.is_empty() && report.actions.iter().all(|action| action.done), "{told}");
                    for (id, content) in &snapshots {
                        match world.restored(&world.own.sound, stands_for(&world, *id)) {
                            Ok(restored) => assert!(restored == *content, "{told}"),
                            Err(error) => {
                                assert!(!with_copy && error.kind() == Kind::Damaged, "{told} {error:?}");
                                let lost = report.lost.iter().find(|lost| lost.snapshot == *id).unwrap_or_else(|| panic!("{id}: {told}"));
                                assert!(lost.files_count > 0 || !lost.unread.is_empty(), "{told}");
                                named += lost.files_count;
                            }
                        }
                    }
                    if with_copy {
                        assert!(report.lost.is_empty() && report.remaining.is_empty(), "{told}");
                        let id = world.back_up(&world.own.sound).unwrap_or_else(|error| panic!("{told}: {error:?}"));
                        world.assert_snapshot(&world.own.sound, id, &told);
                    }
                }
            }
        }
        assert!(named > 0, "no file was ever named");
    }
}

/// A record of moved packs that cannot be read: what it led to is brought back, and when nothing leads through it any more, a repair clears it away and
/// garbage is collected again. Not before, and not while a collection may be at work that could still read it.
#[test]
fn a_damaged_record_of_moved_packs_does_not_block_for_ever() {
    let (mut world, snapshots) = everything();
    let options = CollectOptions { rewrite: &|_| true, ..CollectOptions::default() };
    let done = world.own.sound.collect(&options, world.clock.now(), &Silent, &Cancel::default()).unwrap();
    assert!(done.packs_rewritten > 0 && done.packs_deleted > 0, "{done:?}");
    world.own.keep(&world.runtime);
    let records: Vec<String> = world.own.base.keys().filter(|key| key.starts_with("gc/moved/")).cloned().collect();
    records.iter().for_each(|key| Harm::Flipped(100).inflict(&world, key));
    world.own.reopen(&world.runtime, world.folder.path());
    // Needed: it stays, however old it is, and what it led to comes back from the copy.
    world.clock.set(Utc::now() + chrono::Duration::days(8));
    let report = repair(&world, true).unwrap();
    assert!(report.actions.iter().all(|action| action.done && action.what != "moved"), "{report:#?}");
    assert!(report.lost.is_empty() && records.iter().all(|key| report.left.iter().any(|left| left.object == *key)), "{report:#?}");
    // By a right clock: with one that is ahead, nothing is pruned.
    let ahead = world.clock.now();
    world.clock.set(Utc::now());
    let blocked = prune(&world, &world.own.sound, 9).unwrap_err();
    assert_eq!(blocked.kind(), Kind::Damaged);
    assert!(blocked.to_string().contains("gc/moved/"), "{blocked}");
    world.clock.set(ahead);
    // Now the snapshots that leant on it are removed, and only the record itself stands in the way.
    world.own.reopen(&world.runtime, world.folder.path());
    let now = world.clock.now();
    world.clock.set(Utc::now() + chrono::Duration::days(2));
    let young = repair::plan(&request(&world, true, true), &world.clock, &Silent, &Cancel::default()).unwrap().report;
    assert!(young.actions.iter().all(|action| action.what != "moved"), "{young:#?}");
    world.clock.set(now);
    let packs = |world: &World| world.own.objects(&world.runtime).keys().filter(|key| key.starts_with("packs/")).count();
    let report = repair(&world, true).unwrap();
    assert!(report.actions.iter().any(|action| action.what == "moved" && action.done), "{report:#?}");
    assert_eq!(report.exit(), None, "{report:#?}");
    assert!(!world.own.objects(&world.runtime).keys().any(|key| key.starts_with("gc/moved/")));
    let before = packs(&world);
    world.clock.set(Utc::now());
    prune(&world, &world.own.sound, 9).unwrap();
    assert!(packs(&world) < before, "nothing was collected");
    world.assert_sound(&world.own, "a record was cleared away");
    for (id, content) in &snapshots {
        let (manifests, _) = world.own.sound.sound_manifests(None).unwrap();
        let stands = manifests.iter().find(|manifest| manifest.replaces() == Some(*id)).unwrap();
        assert!(world.restored(&world.own.sound, stands.id).unwrap() == *content);
    }
}

/// Whoever can delete objects can make the newest snapshot vanish so that nothing in the repository tells of it. The journal does.
#[test]
fn a_snapshot_that_the_journal_knows_does_not_vanish() {
    let (world, snapshots) = everything();
    let (older, newest) = (snapshots[0].0, snapshots[1].0);
    let committed: Vec<_> = snapshots.iter().map(|(id, _)| (name("crm"), *id)).collect();
    let check = |committed: &[(Name, SnapshotId)]| {
        verify::run_against(&world.own.sound, None, Depth::Structure, committed, &world.clock, &Silent, &Cancel::default()).unwrap()
    };
    assert_eq!(check(&committed).exit(), None);
    // Of another repository, before the plan came to this one.
    let long_ago = SnapshotId::generate(DateTime::from_timestamp(1_000_000_000, 0).unwrap());
    assert_eq!(check(&[(name("crm"), long_ago)]).exit(), None);
    let key = world.own.base.keys().find(|key| key.ends_with(&newest.to_string())).unwrap();
    Harm::Missing.inflict(&world, key);
    assert_eq!(check(&[]).exit(), None, "the repository alone does not know");
    let found = check(&committed);
    assert_eq!(found.exit(), Some(Kind::Damaged));
    assert_eq!(
        found.findings.iter().map(|one| (one.kind.as_str(), &one.object, &one.snapshots)).collect::<Vec<_>>(),
        [("missing", key, &vec![newest])]
    );
    // It comes back from the copy.
    let request = RepairRequest { committed: committed.clone(), ..request(&world, true, false) };
    let planned = repair::plan(&request, &world.clock, &Silent, &Cancel::default()).unwrap();
    let report = repair::apply(planned, &request, &world.clock, &Silent, &Cancel::default()).unwrap();
    assert_eq!(report.exit(), None, "{report:#?}");
    assert!(world.restored(&world.own.sound, stands_for(&world, newest)).unwrap() == snapshots[1].1);
    assert_eq!(check(&committed).exit(), None);
    // What retention removed is gone for a reason.
    world.own.put_back(&world.runtime);
    prune(&world, &world.own.sound, 1).unwrap();
    assert!(world.own.sound.removed(older).is_some());
    assert_eq!(check(&committed).exit(), None);
}

fn check_against(world: &World, committed: &[(Name, SnapshotId)]) -> verify::VerifyReport {
    verify::run_against(&world.own.sound, None, Depth::Structure, committed, &world.clock, &Silent, &Cancel::default()).unwrap()
}

/// Whoever can delete objects takes several snapshots, of which the chain tells one. The copy has them all, also where no journal is at hand.
#[test]
fn what_a_copy_has_and_nobody_removed_is_not_forgotten() {
    let mut world = World::new();
    let small = world.folder.path().join("live/tree/small");
    for round in 0..5 {
        fs::write(&small, noise(100 + round, 3000)).unwrap();
        world.back_up(&world.own.sound).unwrap();
    }
    world.copy_all(&world.own.sound, &world.copy.sound).unwrap();
    let snapshots: Vec<_> =
        world.own.sound.manifests(None).unwrap().iter().map(|m| (m.id, world.restored(&world.own.sound, m.id).unwrap())).collect();
    let committed: Vec<_> = snapshots.iter().map(|(id, _)| (name("crm"), *id)).collect();
    world.own.keep(&world.runtime);
    world.copy.keep(&world.runtime);
    // Nothing is wrong, and nothing is brought back.
    let nothing = repair(&world, true).unwrap();
    assert!(!nothing.has_work() && nothing.exit().is_none(), "{nothing:#?}");
    for stolen in [1..4, 0..4, 3..6] {
        world.own.put_back(&world.runtime);
        world.copy.put_back(&world.runtime);
        for (id, _) in &snapshots[stolen.clone()] {
            let key = world.own.base.keys().find(|key| key.ends_with(&id.to_string())).unwrap();
            Harm::Missing.inflict(&world, key);
        }
        // A journal tells each of them.
        let told: Vec<SnapshotId> =
            check_against(&world, &committed).findings.iter().flat_map(|finding| finding.snapshots.clone()).collect();
        for (id, _) in &snapshots[stolen.clone()] {
            assert!(told.contains(id), "{stolen:?}: {id} of {told:?}");
        }
        let report = repair(&world, true).unwrap();
        assert_eq!(report.exit(), None, "{stolen:?}: {report:#?}");
        assert_eq!(report.actions.iter().filter(|action| action.what == "snapshot").count(), stolen.len(), "{stolen:?}: {report:#?}");
        for (id, content) in &snapshots {
            assert!(world.restored(&world.own.sound, stands_for(&world, *id)).unwrap() == *content, "{stolen:?}: {id}");
        }
        assert_eq!(check_against(&world, &committed).exit(), None, "{stolen:?}");
        let again = repair(&world, true).unwrap();
        assert!(!again.has_work() && again.exit().is_none(), "{stolen:?}: {again:#?}");
        // What retention removes stays removed, whatever the copy keeps.
        prune(&world, &world.own.sound, 2).unwrap();
        let again = repair(&world, true).unwrap();
        assert!(!again.has_work() && again.exit().is_none(), "{stolen:?}: {again:#?}");
        assert_eq!(check_against(&world, &committed).exit(), None, "{stolen:?}");
    }
}

/// Nothing proves what the `format` object says: what it says of its age must not hide what vanished.
#[test]
fn a_format_object_that_says_another_age_hides_no_snapshot() {
    let (world, snapshots) = everything();
    let committed: Vec<_> = snapshots.iter().map(|(id, _)| (name("crm"), *id)).collect();
    let newest = snapshots[1].0;
    let key = world.own.base.keys().find(|key| key.ends_with(&newest.to_string())).unwrap();
    let created = || {
        let bytes = world.runtime.block_on(world.own.store.get("format")).unwrap();
        let format: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        format["created"].as_str().unwrap().parse::<DateTime<Utc>>().unwrap()
    };
    let mut forged: serde_json::Value = serde_json::from_slice(&world.own.base["format"]).unwrap();
    forged["created"] = "2099-01-01T00:00:00Z".into();
    let forged = Bytes::from(serde_json::to_vec(&forged).unwrap());
    world.runtime.block_on(lifeboat::store::faults::replace(&world.own.store, "format", forged)).unwrap();
    assert_eq!(check_against(&world, &committed).exit(), None);
    Harm::Missing.inflict(&world, key);
    assert_eq!(check_against(&world, &committed).exit(), Some(Kind::Damaged));
    // Made anew with a slot that was added yesterday.
    world.own.put_back(&world.runtime);
    let late = Passphrase::new("words of a late reader");
    world.own.sound.add_key("late", Role::Reader, &late, world.clock.now() + chrono::Duration::days(400)).unwrap();
    Harm::Missing.inflict(&world, "format");
    LostFormat::find(&world.own.store, world.runtime.handle(), &late)
        .unwrap()
        .unwrap()
        .put(&world.own.store, world.runtime.handle())
        .unwrap();
    assert!(snapshots[0].0.generated().unwrap() >= created(), "{} is too late", created());
    Harm::Missing.inflict(&world, key);
    assert_eq!(check_against(&world, &committed).exit(), Some(Kind::Damaged));
}

/// What was brought back from one copy stands in its old place in all the others.
#[test]
fn what_was_brought_back_is_no_newer_in_another_copy() {
    let (world, snapshots) = everything();
    let places = ["second", "third"].map(|what| Place::new(&world.runtime, world.folder.path(), what));
    let [second, third] = &places;
    world.copy_all(&world.own.sound, &second.sound).unwrap();
    let key = world.own.base.keys().find(|key| key.ends_with(&snapshots[0].0.to_string())).unwrap();
    Harm::Flipped(70).inflict(&world, key);
    assert_eq!(repair(&world, true).unwrap().exit(), None);
    let stands = stands_for(&world, snapshots[0].0);
    assert!(stands > snapshots[1].0);
    // Where the older one is, it is not copied again; where nothing is, it comes before the newer one.
    for (place, count) in [(second, 2), (third, 2)] {
        for _ in 0..2 {
            world.copy_all(&world.own.sound, &place.sound).unwrap();
            let manifests = place.sound.manifests(None).unwrap();
            assert_eq!(manifests.len(), count);
            let latest = lifeboat::ops::select::latest(&manifests).unwrap();
            assert_eq!(latest.copied_from.as_ref().unwrap().snapshot, snapshots[1].0);
            assert!(world.restored(&place.sound, latest.id).unwrap() == snapshots[1].1);
        }
        world.assert_sound(place, "a copy");
    }
    let copied: Vec<_> = third.sound.manifests(None).unwrap().into_iter().filter_map(|m| m.copied_from).collect();
    assert!(copied.iter().any(|from| (from.snapshot, from.stands_for) == (stands, Some(snapshots[0].0))), "{copied:?}");
    // Also one that loses its own copy of it finds it in the first under its new name.
    let manifests = second.sound.manifests(None).unwrap();
    let old = manifests.iter().find(|m| m.copied_from.as_ref().unwrap().snapshot == snapshots[0].0).unwrap();
    let objects = second.objects(&world.runtime);
    let data = objects.keys().filter(|key| key.starts_with("packs/")).max_by_key(|key| objects[*key].len()).unwrap();
    world.runtime.block_on(lifeboat::store::faults::flip_byte(&second.store, data, 300)).unwrap();
    let other = Other { name: name("main"), repository: world.own.sound.clone() };
    let request = RepairRequest { repository: second.sound.clone(), others: vec![other], ..request(&world, false, false) };
    let planned = repair::plan(&request, &world.clock, &Silent, &Cancel::default()).unwrap();
    let report = repair::apply(planned, &request, &world.clock, &Silent, &Cancel::default()).unwrap();
    assert!(
        report.lost.is_empty() && report.actions.iter().any(|action| action.object == old.id.to_string() && action.done),
        "{report:#?}"
    );
    let manifests = second.sound.manifests(None).unwrap();
    let back = manifests.iter().find(|manifest| manifest.replaces() == Some(old.id)).unwrap();
    assert_eq!(back.copied_from.as_ref().unwrap().place(), snapshots[0].0);
    let latest = lifeboat::ops::select::latest(&manifests).unwrap();
    assert_eq!(latest.copied_from.as_ref().unwrap().place(), snapshots[1].0);
}

/// What could not be copied is tried again, also when later ones were copied meanwhile; and so is what was committed late.
#[test]
fn what_a_copy_left_out_against_its_will_comes_later() {
    let world = World::new();
    let live = world.folder.path().join("live/tree");
    let packs = || -> Vec<String> { world.own.objects(&world.runtime).into_keys().filter(|key| key.starts_with("packs/")).collect() };
    // What changed since the first one is in no pack of the second.
    world.back_up(&world.own.sound).unwrap();
    let before = packs();
    fs::write(live.join("passing"), noise(20, 200_000)).unwrap();
    let second = world.back_up(&world.own.sound).unwrap();
    let objects = world.own.objects(&world.runtime);
    let data = packs().into_iter().filter(|key| !before.contains(key)).max_by_key(|key| objects[key].len()).unwrap();
    fs::remove_file(live.join("passing")).unwrap();
    fs::write(live.join("other"), noise(21, 100_000)).unwrap();
    world.back_up(&world.own.sound).unwrap();
    let origins = || -> Vec<SnapshotId> {
        world.copy.sound.manifests(None).unwrap().into_iter().filter_map(|manifest| Some(manifest.copied_from?.snapshot)).collect()
    };
    let harm = |bytes: Option<&Bytes>| {
        world.runtime.block_on(async {
            match bytes {
                Some(bytes) => lifeboat::store::faults::replace(&world.own.store, &data, bytes.clone()).await.unwrap(),
                None => lifeboat::store::faults::flip_byte(&world.own.store, &data, 5000).await.unwrap(),
            }
        });
    };
    harm(None);
    for _ in 0..3 {
        let told = world.copy_all(&world.own.sound, &world.copy.sound).unwrap_err();
        assert_eq!(told.kind(), Kind::Damaged);
        assert!(origins().len() == 3 && !origins().contains(&second), "{:?}", origins());
    }
    // Also when another one is copied meanwhile, the manifest of the one in question is gone for a while, and only some are asked for.
    fs::write(live.join("other"), noise(22, 100_000)).unwrap();
    world.back_up(&world.own.sound).unwrap();
    assert_eq!(world.copy_all(&world.own.sound, &world.copy.sound).unwrap_err().kind(), Kind::Damaged);
    let manifest = objects.keys().find(|key| key.ends_with(&second.to_string())).unwrap();
    harm(Some(&objects[&data]));
    Harm::Flipped(70).inflict(&world, manifest);
    fs::write(live.join("other"), noise(23, 100_000)).unwrap();
    world.back_up(&world.own.sound).unwrap();
    assert_eq!(world.copy_all(&world.own.sound, &world.copy.sound).unwrap_err().kind(), Kind::Damaged);
    assert_eq!(origins().len(), 5);
    world.runtime.block_on(lifeboat::store::faults::replace(&world.own.store, manifest, objects[manifest].clone())).unwrap();
    for _ in 0..2 {
        world.copy_all(&world.own.sound, &world.copy.sound).unwrap();
        assert!(origins().len() == 6 && origins().contains(&second), "{:?}", origins());
    }
    // Begun before one that is copied, and committed after it.
    let job = world.job(&world.own.sound);
    let slow = world.own.sound.begin(&job.plan, world.clock.now(), &Cancel::default()).unwrap();
    fs::write(live.join("other"), noise(24, 100_000)).unwrap();
    let quick = world.back_up(&world.own.sound).unwrap();
    world.copy_all(&world.own.sound, &world.copy.sound).unwrap();
    let newest = world.own.sound.manifests(None).unwrap().pop().unwrap();
    assert_eq!(newest.id, quick);
    let late = slow.commit(newest.sources, newest.time - chrono::Duration::seconds(30), Vec::new(), &Silent).unwrap().manifest.id;
    assert!(late < quick);
    for _ in 0..2 {
        world.copy_all(&world.own.sound, &world.copy.sound).unwrap();
        assert!(origins().len() == 8 && origins().contains(&late), "{:?}", origins());
    }
    // What the copy's own retention gave up does not come again, once a later one was copied.
    world.back_up(&world.own.sound).unwrap();
    world.copy_all(&world.own.sound, &world.copy.sound).unwrap();
    prune(&world, &world.copy.sound, 1).unwrap();
    for _ in 0..2 {
        world.copy_all(&world.own.sound, &world.copy.sound).unwrap();
        assert_eq!(origins().len(), 1);
    }
    world.assert_sound(&world.copy, "the copy");
}

/// A copy whose manifest is gone said itself what it was a copy of: where only one snapshot can be that, it is brought back, and else it is not called lost.
#[test]
fn a_lost_copy_is_brought_back_from_its_original() {
    let mut world = World::new();
    for round in 0..3 {
        fs::write(world.folder.path().join("live/tree/small"), noise(40 + round, 3000)).unwrap();
        world.back_up(&world.own.sound).unwrap();
        world.copy_all(&world.own.sound, &world.copy.sound).unwrap();
        // The clock of one is that of the other: what was copied came after it.
        world.clock.set(world.clock.now() + chrono::Duration::seconds(60));
    }
    world.copy.keep(&world.runtime);
    let copies = world.copy.sound.manifests(None).unwrap();
    assert_eq!(copies.len(), 4);
    let mend = |world: &World| {
        let other = Other { name: name("main"), repository: world.own.sound.clone() };
        let request = RepairRequest { repository: world.copy.sound.clone(), others: vec![other], ..request(world, false, false) };
        let planned = repair::plan(&request, &world.clock, &Silent, &Cancel::default()).unwrap();
        repair::apply(planned, &request, &world.clock, &Silent, &Cancel::default()).unwrap()
    };
    for lost in [vec![1], vec![1, 2]] {
        world.copy.put_back(&world.runtime);
        for number in &lost {
            let key = world.copy.sound.manifest_key(&copies[*number]);
            world.runtime.block_on(lifeboat::store::faults::flip_byte(&world.copy.store, &key, 70)).unwrap();
        }
        let report = mend(&world);
        assert_eq!(report.exit(), None, "{report:#?}");
        for number in lost {
            let (manifests, _) = world.copy.sound.sound_manifests(None).unwrap();
            let back = manifests.iter().find(|manifest| manifest.replaces() == Some(copies[number].id)).unwrap();
            let original = copies[number].copied_from.as_ref().unwrap().snapshot;
            assert_eq!(back.copied_from.as_ref().unwrap().snapshot, original);
        }
        prune(&world, &world.copy.sound, 1).unwrap();
        world.assert_sound(&world.copy, "a copy that was mended");
    }
    // Another one was given up by the copy: which of the two the damaged one was, nobody knows.
    world.copy.put_back(&world.runtime);
    prune(&world, &world.copy.sound, 3).unwrap();
    let key = world.copy.sound.manifest_key(&copies[2]);
    world.runtime.block_on(lifeboat::store::faults::flip_byte(&world.copy.store, &key, 70)).unwrap();
    let report = mend(&world);
    assert_eq!((report.exit(), report.lost.len()), (Some(Kind::Damaged), 1), "{report:#?}");
    assert!(report.lost[0].unknown.as_ref().unwrap().contains("2 snapshots"), "{report:#?}");
    world.own.keep(&world.runtime);
}

/// One thing that cannot be had keeps nothing else from being taken out, and nothing that is not there is passed over in silence.
#[test]
fn an_extraction_goes_on_and_says_what_is_not_there() {
    use lifeboat::ops::extract::{self, ExtractRequest};
    let (world, _) = everything();
    let hr = Job { plan: name("hr"), ..world.job(&world.own.sound) };
    world.own.sound.make_plan_key(&name("hr"), world.clock.now()).unwrap();
    let mut count = 0;
    let mut take = |world: &World, latest: bool| {
        count += 1;
        let to = world.folder.path().join(format!("out-{count}"));
        let request = ExtractRequest { to, plans: Vec::new(), snapshots: Vec::new(), latest, logs: true };
        extract::run(&world.own.sound, &request, &Silent, &Cancel::default()).unwrap()
    };
    let whole = take(&world, false);
    assert_eq!((whole.snapshots.len(), whole.exit()), (2, None), "{whole:?}");
    let options = OpenOptions { cache: None, workers: 2 };
    let again = || Repository::open(world.own.store.clone(), world.runtime.handle().clone(), &passphrase(), &options).unwrap();
    backup::run(&Job { repository: again(), ..hr }).unwrap();
    again().erase_plan(&name("hr"), world.clock.now()).unwrap();
    let mut world = world;
    let folder = world.folder.path().to_owned();
    world.own.reopen(&world.runtime, &folder);
    let erased = take(&world, false);
    assert_eq!((erased.snapshots.len(), erased.missing.len(), erased.exit()), (2, 1, Some(Kind::Incomplete)), "{erased:?}");
    assert!(erased.missing[0].contains("hr") && erased.failed.is_empty(), "{erased:?}");
}

/// Of a plan whose newest snapshots were destroyed the newest that can be read is taken, and the others are named.
#[test]
fn an_extraction_of_the_latest_takes_the_newest_that_can_be_read() {
    use lifeboat::ops::extract::{self, ExtractRequest};
    let mut world = World::new();
    let (first, folder) = (world.first(), world.folder.path().to_owned());
    world.own.sound.make_plan_key(&name("crm"), world.clock.now()).unwrap();
    world.own.reopen(&world.runtime, &folder);
    let destroyed = [world.back_up(&world.own.sound).unwrap(), world.back_up(&world.own.sound).unwrap()];
    world.own.sound.erase_plan(&name("crm"), world.clock.now()).unwrap();
    world.own.reopen(&world.runtime, &folder);
    let request =
        ExtractRequest { to: world.folder.path().join("out"), plans: Vec::new(), snapshots: Vec::new(), latest: true, logs: true };
    let report = extract::run(&world.own.sound, &request, &Silent, &Cancel::default()).unwrap();
    assert_eq!(report.snapshots.iter().map(|done| done.snapshot).collect::<Vec<_>>(), [first], "{report:?}");
    let [missing] = &report.missing[..] else { panic!("{report:?}") };
    assert!(missing.contains(&destroyed[1].to_string()) && missing.contains("was destroyed"), "{report:?}");
    assert_eq!(report.exit(), Some(Kind::Incomplete));
}

/// After a repair that lost nothing an extraction has everything, and is none that failed; it says under which ids.
#[test]
fn what_came_whole_under_another_id_is_extracted_without_an_alarm() {
    use lifeboat::ops::extract::{self, ExtractRequest};
    let (world, snapshots) = everything();
    let data = world.own.base.keys().filter(|key| key.starts_with("packs/")).max_by_key(|key| world.own.base[*key].len()).unwrap();
    Harm::Missing.inflict(&world, data);
    let take = |what: &str, snapshots: Vec<String>| {
        let request = ExtractRequest { to: world.folder.path().join(what), plans: Vec::new(), snapshots, latest: false, logs: true };
        extract::run(&world.own.sound, &request, &Silent, &Cancel::default()).unwrap()
    };
    let before = take("before", Vec::new());
    assert_eq!((before.exit(), before.warnings.len()), (Some(Kind::Damaged), 0), "{before:?}");
    assert!(repair(&world, true).unwrap().lost.is_empty());
    let after = take("after", Vec::new());
    let replaced: Vec<SnapshotId> = snapshots.iter().map(|(id, _)| *id).filter(|id| stands_for(&world, *id) != *id).collect();
    assert!(!replaced.is_empty() && after.exit().is_none() && after.failed.is_empty(), "{after:?}");
    assert_eq!(after.warnings.len(), replaced.len(), "{after:?}");
    for (id, content) in &snapshots {
        let other = stands_for(&world, *id);
        let folder = PathBuf::from(&after.snapshots.iter().find(|done| done.snapshot == other).unwrap().folder);
        assert!(trees(&census(&folder)) == trees(content), "{id}: {after:?}");
        let is_told = after.warnings.iter().any(|warning| warning.contains(&id.to_string()) && warning.contains(&other.to_string()));
        assert_eq!(is_told, replaced.contains(id), "{after:?}");
    }
    // Alone, nothing of it is there, but it is said where it is.
    let alone = take("alone", vec![replaced[0].to_string()]);
    assert_eq!((alone.exit(), alone.failed.len(), alone.snapshots.len()), (Some(Kind::Damaged), 1, 0), "{alone:?}");
    assert!(alone.failed[0].contains(&stands_for(&world, replaced[0]).to_string()), "{alone:?}");
}

/// What an operation asks of a store: requests by verb, and bytes in both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Asked {
    lists: u64,
    creates: u64,
    /// Looks at size and time.
    heads: u64,
    reads: u64,
    deletes: u64,
    bytes_written: u64,
    bytes_read: u64,
}

impl Asked {
    fn of(faults: &Faults) -> Self {
        let mut asked = Self::default();
        for call in faults.calls() {
            match call.verb {
                Verb::List => asked.lists += 1,
                Verb::Create => (asked.creates, asked.bytes_written) = (asked.creates + 1, asked.bytes_written + call.bytes),
                Verb::Head | Verb::Lock => asked.heads += 1,
                Verb::Get | Verb::GetRange => (asked.reads, asked.bytes_read) = (asked.reads + 1, asked.bytes_read + call.bytes),
                Verb::Delete => asked.deletes += 1,
            }
        }
        asked
    }
}

/// What an operation may ask: requests are exact, bytes at the most.
struct Bound {
    what: &'static str,
    lists: u64,
    /// Each is looked at once to confirm it.
    creates: u64,
    reads: u64,
    deletes: u64,
    bytes_written: u64,
    bytes_read: u64,
}

/// 343,000 bytes that do not compress, in three files, and a database of 12 KiB that does.
const CONTENT: u64 = 343_000;

const BOUNDS: [Bound; 10] = [
    // Lists `keys/`; reads `format` and two slots (1.5 KB each).
    Bound { what: "open", lists: 1, creates: 0, reads: 3, deletes: 0, bytes_written: 0, bytes_read: 3_200 },
    // Lists what is there before it begins and again before it commits (manifests of the plan three times, the ledger twice, `keys/`), sessions, tombstones,
    // moved packs, index, packs. Writes session, a pack of data and one of nodes for each source (their chunks do not come at one time), index, manifest; deletes
    // the session. 4 KB beside the content.
    Bound { what: "full backup", lists: 11, creates: 7, reads: 0, deletes: 1, bytes_written: CONTENT + 4_000, bytes_read: 0 },
    // The same lists. Reads the manifest before it (for the sources, and again to go on from it), the index object, and directory and node of the tree of each
    // source. Writes session and manifest.
    Bound { what: "unchanged backup", lists: 11, creates: 2, reads: 7, deletes: 1, bytes_written: 1_300, bytes_read: 3_300 },
    // Lists reports, manifests and ledger. Reads the manifest and of each of four packs the directory and one range of frames.
    Bound { what: "restore", lists: 3, creates: 0, reads: 9, deletes: 0, bytes_written: 0, bytes_read: CONTENT + 4_000 },
    // Lists thirteen folders (of reports the names, behind which its own comes), tombstones and the ledger twice more. Reads both slots and the event that notes them, both manifests, the index object, the directory of each pack and each
    // node for each snapshot and way through it. Writes its report.
    Bound { what: "verify", lists: 17, creates: 1, reads: 16, deletes: 0, bytes_written: 600, bytes_read: 9_000 },
    // As before, and the reports (to know what share is due) with the one that is there; reads each pack whole, and its trailer.
    Bound { what: "verify --data", lists: 19, creates: 1, reads: 26, deletes: 0, bytes_written: 600, bytes_read: CONTENT + 12_000 },
    // As a restore, of the plan's manifests, with both reports, and the names of reports once more, behind which its own comes; and the trees once more, to compare with what is on disk. Writes its report.
    Bound { what: "drill", lists: 4, creates: 1, reads: 14, deletes: 0, bytes_written: 1_300, bytes_read: CONTENT + 7_000 },
    // Of two snapshots of one content: manifests, reports, and each byte of content once.
    Bound { what: "copy, from", lists: 3, creates: 0, reads: 17, deletes: 0, bytes_written: 0, bytes_read: CONTENT + 9_000 },
    // Two backups, the second of which stores its manifest only; the trees are read back before each commit.
    Bound { what: "copy, to", lists: 20, creates: 9, reads: 7, deletes: 2, bytes_written: CONTENT + 6_000, bytes_read: 2_700 },
    // Of two snapshots that share nothing but the database: decides (manifests, reports, sessions, ledger), marks (manifests again, directory and node of the
    // tree of each source), reads both index objects and one again to write it anew. Writes the ledger's entry, tombstones, the index object; deletes the old
    // one, two packs (343 KB) and the manifest. Of the content not a byte is read.
    Bound { what: "prune", lists: 21, creates: 3, reads: 13, deletes: 4, bytes_written: 750, bytes_read: 7_000 },
];

/// By a process that has just opened the repository, on a machine that knows nothing of it. Opening it is counted by itself.
#[test]
fn what_each_operation_asks_of_the_store() {
    let mut world = World::new();
    let folder = world.folder.path().to_owned();
    let mut table: Vec<(&str, Asked)> = Vec::new();
    let fresh = |place: &mut Place, runtime: &tokio::runtime::Runtime| {
        place.reopen(runtime, &folder);
        place.faults.forget_calls();
    };
    world.own.faults.forget_calls();
    world.own.reopen(&world.runtime, &folder);
    table.push(("open", Asked::of(&world.own.faults)));
    // A repository of its own, with nothing in it. What changed in the two seconds before a backup is not taken for unchanged by the next one.
    let files = ["big", "small", "more"].map(|name| folder.join("live/tree").join(if name == "big" { "deep/big" } else { name }));
    let is_settled =
        |path: &PathBuf| fs::metadata(path).unwrap().modified().unwrap().elapsed().is_ok_and(|age| age > std::time::Duration::from_secs(2));
    while !files.iter().all(is_settled) {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let mut place = Place::new(&world.runtime, &folder, "asked");
    fresh(&mut place, &world.runtime);
    world.back_up(&place.faulty).unwrap();
    table.push(("full backup", Asked::of(&place.faults)));
    fresh(&mut place, &world.runtime);
    let newest = world.back_up(&place.faulty).unwrap();
    table.push(("unchanged backup", Asked::of(&place.faults)));
    fresh(&mut place, &world.runtime);
    world.restored(&place.faulty, newest).unwrap();
    table.push(("restore", Asked::of(&place.faults)));
    for (what, depth) in [("verify", Depth::Structure), ("verify --data", Depth::Data { percent: 100 })] {
        fresh(&mut place, &world.runtime);
        assert_eq!(verify::run(&place.faulty, None, depth, &world.clock, &Silent, &Cancel::default()).unwrap().exit(), None);
        table.push((what, Asked::of(&place.faults)));
    }
    fresh(&mut place, &world.runtime);
    assert_eq!(drill::run(&world.job(&place.faulty), &DrillRequest::default()).unwrap().verdict, Verdict::Passed);
    table.push(("drill", Asked::of(&place.faults)));
    let mut to = Place::new(&world.runtime, &folder, "asked-copy");
    fresh(&mut place, &world.runtime);
    fresh(&mut to, &world.runtime);
    world.copy_all(&place.faulty, &to.faulty).unwrap();
    table.extend([("copy, from", Asked::of(&place.faults)), ("copy, to", Asked::of(&to.faults))]);
    // The large file goes, and with the first snapshot all that was in it.
    fs::remove_file(world.folder.path().join("live/tree/deep/big")).unwrap();
    world.back_up(&world.own.sound).unwrap();
    fresh(&mut world.own, &world.runtime);
    prune(&world, &world.own.faulty, 1).unwrap();
    table.push(("prune", Asked::of(&world.own.faults)));

    for (what, asked) in &table {
        say(&format!("{what}: {asked:?}"));
    }
    assert_eq!(table.len(), BOUNDS.len());
    // What `repo stats` reckons with.
    let of = |what: &str| table.iter().find(|(known, _)| *known == what).unwrap().1;
    assert_eq!(of("unchanged backup").lists, stats::UNCHANGED_LISTS);
    assert_eq!(of("verify --data").lists, stats::VERIFY_LISTS);
    assert_eq!((of("prune").lists, of("prune").creates), (stats::PRUNE_LISTS, stats::PRUNE_WRITES));
    for (bound, (what, asked)) in BOUNDS.iter().zip(&table) {
        assert_eq!(bound.what, *what);
        let requests = |creates: u64| (bound.lists, bound.creates, creates, bound.reads, bound.deletes);
        assert_eq!((asked.lists, asked.creates, asked.heads, asked.reads, asked.deletes), requests(bound.creates), "{what}: {asked:?}");
        for (bytes, most) in [(asked.bytes_written, bound.bytes_written), (asked.bytes_read, bound.bytes_read)] {
            assert!(bytes <= most && bytes >= most - most / 5, "{what}: at most {most} bytes, and not far less: {asked:?}");
        }
    }
}

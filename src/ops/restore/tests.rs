//! Which snapshot and log a choice leads to, through a repository in memory: pages of 8 KiB are written one a second, each with a commit and a restore point of that second.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::json;

use super::*;
use crate::clock::ManualClock;
use crate::entry::{Entry, EntryKind};
use crate::event::{Cancel, Silent};
use crate::id::Name;
use crate::ops::select::Wanted;
use crate::ops::{CommitGate, DrillSettings, NamedSource, Objectives, backup};
use crate::repo::{Gap, Log, OpenOptions, Passphrase, PieceInfo, Repository};
use crate::source::postgres::lsn::Lsn;
use crate::source::postgres::recover::Target;
use crate::source::postgres::wal::{PieceFacts, RestorePoint};
use crate::source::{CheckResult, Closed, Diagnosis, Finish, ProveRequest, Source, SourceContext, SourceSnapshot};
use crate::store::Store;

const PAGE: u64 = 8192;
const CLUSTER: &str = "7234567890123456789";

fn time(second: u64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_790_000_000 + i64::try_from(second).unwrap(), 0).unwrap()
}

/// What is an empty folder; with a timeline and a page a server that has written up to there.
#[derive(Clone, Copy)]
struct Empty {
    server: Option<(u32, u64)>,
}

impl Source for Empty {
    fn kind(&self) -> &'static str {
        if self.server.is_some() { "postgres" } else { "files" }
    }
    fn diagnose(&self) -> Vec<Diagnosis> {
        Vec::new()
    }
    fn begin(&self, _context: &SourceContext) -> Result<Box<dyn SourceSnapshot>> {
        Ok(Box::new(Reading { of: *self, read: false }))
    }
    fn adopt(&self, _restored: &Path, _context: &SourceContext) -> Result<PathBuf> {
        Err(Error::new(Kind::Bug, "not restored"))
    }
    fn prove(
        &self,
        _restored: &Path,
        _request: &ProveRequest,
        _context: &SourceContext,
        _usable: &mut dyn FnMut(),
    ) -> Result<Vec<CheckResult>> {
        Err(Error::new(Kind::Bug, "not proven"))
    }
}

struct Reading {
    of: Empty,
    read: bool,
}

impl SourceSnapshot for Reading {
    fn estimate(&self) -> Option<(u64, u64)> {
        None
    }
    fn next_entry(&mut self) -> Result<Option<Entry>> {
        if std::mem::replace(&mut self.read, true) {
            return Ok(None);
        }
        let (path, stamp, xattrs) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Some(Entry { path, kind: EntryKind::Directory, mode: 0o700, uid: 0, gid: 0, mtime_ns: 0, stamp, xattrs }))
    }
    fn open(&mut self, _entry: &Entry) -> Result<Option<Box<dyn std::io::Read + Send>>> {
        Ok(None)
    }
    fn close(&mut self, _entry: &Entry, _bytes_read: u64) -> Result<Closed> {
        Ok(Closed::SOUND)
    }
    fn unread(&mut self, _entry: &Entry, error: Error) -> Result<()> {
        Err(error)
    }
    fn finish(self: Box<Self>) -> Result<Finish> {
        let Some((timeline, page)) = self.of.server else { return Ok(Finish::default()) };
        let (start, end) = (Lsn(page * PAGE - 64), Lsn(page * PAGE));
        let consistency = json!({
            "system_identifier": CLUSTER, "timeline": timeline, "start_timeline": timeline, "start_lsn": start, "stop_lsn": end, "lsn": end,
            "restore_point": format!("page {page}"),
        });
        Ok(Finish { consistency, ..Finish::default() })
    }
}

struct Bench {
    runtime: tokio::runtime::Runtime,
    store: Store,
    repository: Repository,
    folder: tempfile::TempDir,
    clock: ManualClock,
}

impl Bench {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (store, passphrase) = (Store::in_memory(), Passphrase::new("correct horse battery staple"));
        let options = OpenOptions { cache: None, workers: 1 };
        Repository::init(store.clone(), runtime.handle().clone(), &passphrase, &options, time(0)).unwrap();
        let repository = Repository::open(store.clone(), runtime.handle().clone(), &passphrase, &options).unwrap();
        Self { runtime, store, repository, folder: tempfile::tempdir().unwrap(), clock: ManualClock::new(time(0)) }
    }

    /// Of a plan with these sources; those whose name begins with `files` have no log.
    fn job(&self, sources: &[&str], timeline: u32, page: u64) -> Job {
        let source = |name: &&str| NamedSource {
            name: Name::new(*name).unwrap(),
            source: Arc::new(Empty { server: (!name.starts_with("files")).then_some((timeline, page)) }),
            restores_folder: false,
        };
        Job {
            plan: Name::new("crm").unwrap(),
            tags: Vec::new(),
            sources: sources.iter().map(source).collect(),
            repository: self.repository.clone(),
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

    /// A snapshot of these sources at a page, which is its second.
    fn back_up(&self, page: u64, sources: &[&str]) -> SnapshotId {
        self.clock.set(time(page));
        backup::run(&self.job(sources, 1, page)).unwrap().snapshot
    }

    fn log(&self, source: &str) -> Log {
        self.repository.log(&Name::new("crm").unwrap(), &Name::new(source).unwrap())
    }

    fn append(&self, source: &str, timeline: u32, from: u64, to: u64) -> PieceInfo {
        let point = |page: u64| RestorePoint { name: format!("page {page}"), lsn: Lsn(page * PAGE), time: time(page) };
        let facts = PieceFacts {
            system_identifier: CLUSTER.into(),
            timeline,
            segment_bytes: 16 << 20,
            first_commit: Some(time(from)),
            last_commit: Some(time(to - 1)),
            restore_points: (from..to).map(point).collect(),
            server_clock: Some(time(to - 1)),
            valid_to: Lsn(to * PAGE),
        };
        let bytes = vec![7; usize::try_from((to - from) * PAGE).unwrap()];
        let facts = serde_json::to_value(facts).unwrap();
        self.log(source).append(u64::from(timeline), from * PAGE, to * PAGE, &facts, &bytes).unwrap().piece
    }

    /// Timeline 2 left timeline 1 at a page.
    fn failed_over(&self, source: &str, page: u64) {
        let history = format!("1\t{}\tno recovery target specified\n", Lsn(page * PAGE));
        self.log(source).put_side(&Name::new("00000002.history").unwrap(), history.as_bytes()).unwrap();
    }

    /// What is said of a piece cannot be read any more.
    fn damage(&self, source: &str, piece: PieceInfo) {
        let name = format!("{:016x}-{:016x}-{:016x}", piece.stream, piece.start, piece.end);
        let found = self.runtime.block_on(self.store.list("logs/")).unwrap();
        let key = found.into_iter().find(|object| object.key.ends_with(&name)).unwrap().key;
        let mut bytes = self.runtime.block_on(self.store.get(&key)).unwrap().to_vec();
        let at = bytes.len() - 150;
        bytes[at] ^= 1;
        self.runtime.block_on(self.store.delete(&key)).unwrap();
        self.runtime.block_on(self.store.create(&key, Bytes::from(bytes))).unwrap();
        assert_eq!(self.log(source).facts(&piece).unwrap_err().kind(), Kind::Damaged);
    }

    /// By a plan with these sources now.
    fn planned(&self, now: &[&str], choice: Choice, asked: &[&str]) -> Result<RestorePlan> {
        self.clock.set(time(1000));
        let request = RestoreRequest {
            choice,
            to: self.folder.path().join("target"),
            sources: asked.iter().map(|name| (*name).to_owned()).collect(),
            only: Vec::new(),
            resume: false,
        };
        plan(&self.job(now, 1, 1000), &request)
    }

    fn latest(&self) -> Result<RestorePlan> {
        self.planned(&["db"], Choice::Latest, &[])
    }
}

fn at(second: u64) -> Choice {
    Choice::At(time(second))
}

fn names(plan: &RestorePlan) -> Vec<&str> {
    plan.sources.iter().map(|source| source.name.as_str()).collect()
}

/// Through the log to exactly that second.
fn assert_exact(plan: &RestorePlan, source: &str, second: u64) {
    assert_eq!((names(plan), plan.at), (vec![source], time(second)), "{plan:?}");
    let recovery = plan.recovery.as_ref().unwrap_or_else(|| panic!("{plan:?}"));
    assert_eq!((recovery.source.as_str(), &recovery.target), (source, &Target::Time(time(second))));
    assert_eq!(plan.exit(), None, "{:?}", plan.warnings);
}

#[test]
fn a_moment_before_a_source_came_to_the_plan_is_looked_for_in_the_log() {
    let bench = Bench::new();
    let first = bench.back_up(5, &["db"]);
    bench.append("db", 1, 0, 40);
    bench.back_up(20, &["db", "files"]);
    let plan = bench.planned(&["db", "files"], at(12), &[]).unwrap();
    assert_exact(&plan, "db", 12);
    assert_eq!(plan.snapshot, first);
    // From then on it is one of the set.
    let plan = bench.planned(&["db", "files"], at(30), &[]).unwrap();
    assert_eq!((plan.moments.len(), plan.recovery), (2, None), "{:?}", plan.moments);
}

#[test]
fn a_source_that_was_renamed_or_removed_is_still_recovered_to_a_moment_of_its_log() {
    let bench = Bench::new();
    bench.back_up(5, &["old"]);
    bench.append("old", 1, 0, 20);
    for (page, now) in [(30, ["new"]), (50, ["files"])] {
        bench.back_up(page, &now);
        for asked in [&["old"][..], &[]] {
            assert_exact(&bench.planned(&now, at(12), asked).unwrap(), "old", 12);
        }
        for late in [25, 60] {
            let error = bench.planned(&now, at(late), &["old"]).unwrap_err();
            assert_eq!(error.kind(), Kind::NoRecoveryPoint);
            assert!(error.hint_text().unwrap().contains("what can be recovered: 2026-"), "{error:?}");
        }
        let plan = bench.planned(&now, Choice::Along { wanted: Wanted::Lsn(Lsn(10 * PAGE)), timeline: None }, &["old"]);
        // Found in the log; that these bytes are no log is said when they are read.
        assert_eq!(plan.unwrap_err().kind(), Kind::Damaged);
        assert_eq!(bench.planned(&now, Choice::Latest, &["old"]).unwrap_err().kind(), Kind::Usage);
    }
}

#[test]
fn the_log_is_looked_for_although_the_plan_has_no_server_any_more() {
    let bench = Bench::new();
    bench.back_up(5, &["db"]);
    bench.append("db", 1, 0, 20);
    let plan = bench.planned(&["files"], Choice::Latest, &[]).unwrap();
    assert_eq!((plan.recovery.unwrap().target, plan.at), (Target::Latest, time(19)));
}

#[test]
fn what_a_snapshot_has_beside_the_source_of_the_log_is_not_taken_for_its_moment() {
    let bench = Bench::new();
    let first = bench.back_up(5, &["db", "files"]);
    bench.append("db", 1, 0, 40);
    bench.back_up(20, &["db"]);
    let plan = bench.planned(&["db"], at(12), &[]).unwrap();
    let moments: Vec<_> = plan.moments.iter().map(|one| (one.source.as_str(), one.at, one.exact)).collect();
    assert_eq!(moments, [("db", time(12), true), ("files", time(5), false)]);
    assert_eq!((plan.snapshot, plan.at), (first, time(5)));
    assert!(plan.warnings.iter().any(|warning| warning.contains("not all of one moment")), "{:?}", plan.warnings);
    // Of the newest snapshot's source, from a snapshot that has more.
    let wanted = Wanted::RestorePoint("page 12".into());
    let plan = bench.planned(&["db"], Choice::Along { wanted, timeline: None }, &[]).unwrap();
    assert_eq!((plan.snapshot, names(&plan), plan.at), (first, vec!["db"], time(12)));
    assert_eq!(plan.sources_left_out, ["files"]);
    assert_exact(&bench.planned(&["db"], at(25), &[]).unwrap(), "db", 25);
}

#[test]
fn a_source_that_was_dropped_keeps_no_other_from_its_moment() {
    let bench = Bench::new();
    bench.back_up(5, &["db", "gone"]);
    bench.append("db", 1, 0, 40);
    let log = bench.append("gone", 1, 0, 8);
    for later in [false, true] {
        if later {
            bench.back_up(20, &["db"]);
        }
        let plan = bench.planned(&["db"], at(12), &[]).unwrap();
        let moments: Vec<_> = plan.moments.iter().map(|one| (one.source.as_str(), one.at)).collect();
        assert_eq!(moments, [("db", time(12)), ("gone", time(5))]);
        assert!(plan.warnings.iter().any(|said| said.contains("source gone is not backed up any more")), "{:?}", plan.warnings);
        // While its log leads there, it is brought there.
        let plan = bench.planned(&["db"], at(7), &[]).unwrap();
        assert!(plan.moments.iter().all(|one| one.exact), "{:?}", plan.moments);
        // A plan that still has it means it.
        assert_eq!(bench.planned(&["db", "gone"], at(12), &[]).unwrap_err().kind(), Kind::NoRecoveryPoint);
        assert_eq!(bench.planned(&["db"], at(12), &["gone"]).unwrap_err().kind(), Kind::NoRecoveryPoint);
        assert_exact(&bench.planned(&["db"], at(12), &["db"]).unwrap(), "db", 12);
    }
    // Where its log may lead is not known.
    bench.damage("gone", log);
    assert_eq!(bench.planned(&["db"], at(12), &[]).unwrap_err().kind(), Kind::Damaged);
}

#[test]
fn the_end_of_a_log_whose_last_piece_cannot_be_read_is_damage() {
    let bench = Bench::new();
    bench.back_up(5, &["db"]);
    bench.append("db", 1, 0, 10);
    let last = bench.append("db", 1, 10, 12);
    assert_eq!(bench.latest().unwrap().at, time(11));
    bench.damage("db", last);
    let error = bench.latest().unwrap_err();
    assert_eq!(error.kind(), Kind::Damaged, "{error:?}");
    let hint = error.hint_text().unwrap();
    assert!(hint.contains("--at 2026-") && hint.contains("what can be recovered"), "{hint}");
    // What comes before it can be had, and what is behind it cannot.
    assert_exact(&bench.planned(&["db"], at(7), &[]).unwrap(), "db", 7);
    assert_eq!(bench.planned(&["db"], at(9), &[]).unwrap().at, time(9), "as the hint says");
    assert_eq!(bench.planned(&["db"], at(11), &[]).unwrap_err().kind(), Kind::Damaged);
    assert_eq!(bench.planned(&["db"], at(2), &[]).unwrap_err().kind(), Kind::NoRecoveryPoint, "no damage is to blame for that");
    // Another piece has the same.
    bench.append("db", 1, 8, 12);
    let plan = bench.latest().unwrap();
    assert_eq!((plan.at, plan.exit()), (time(11), None));
}

#[test]
fn a_log_of_which_nothing_can_be_read_is_damage_and_not_no_log() {
    let bench = Bench::new();
    let snapshot = bench.back_up(5, &["db"]);
    let only = bench.append("db", 1, 0, 10);
    bench.damage("db", only);
    let error = bench.latest().unwrap_err();
    assert_eq!(error.kind(), Kind::Damaged, "{error:?}");
    assert!(error.hint_text().unwrap().contains(&format!("--snapshot {snapshot}")), "{error:?}");
    for choice in [at(8), at(500), Choice::Along { wanted: Wanted::Lsn(Lsn(8 * PAGE)), timeline: None }] {
        assert_eq!(bench.planned(&["db"], choice, &[]).unwrap_err().kind(), Kind::Damaged);
    }
    // A set that it is one of, too.
    bench.back_up(6, &["db", "files"]);
    assert_eq!(bench.planned(&["db", "files"], at(8), &[]).unwrap_err().kind(), Kind::Damaged);
    // A snapshot behind it does not need it.
    let newest = bench.back_up(30, &["db"]);
    let plan = bench.latest().unwrap();
    assert_eq!((plan.snapshot, plan.recovery, plan.log_hole), (newest, None, None));
}

#[test]
fn damage_behind_a_hole_is_log_behind_a_hole() {
    let bench = Bench::new();
    bench.back_up(5, &["db"]);
    bench.append("db", 1, 0, 10);
    let behind = bench.append("db", 1, 14, 16);
    bench.damage("db", behind);
    let plan = bench.latest().unwrap();
    assert_eq!((plan.at, plan.exit()), (time(9), Some(Kind::Incomplete)));
    assert!(plan.log_hole.unwrap().contains("the log has a hole at"));
}

#[test]
fn log_of_the_next_timeline_that_the_way_does_not_come_to_is_behind_a_hole() {
    let bench = Bench::new();
    // Nobody streamed before the failover.
    bench.back_up(5, &["db"]);
    bench.failed_over("db", 8);
    bench.append("db", 2, 8, 20);
    let plan = bench.latest().unwrap();
    assert_eq!((plan.at, &plan.recovery, plan.exit()), (time(5), &None, Some(Kind::Incomplete)), "{plan:?}");
    assert!(plan.log_hole.unwrap().contains(&Lsn(20 * PAGE).to_string()));
    // A part of the first timeline's, and of the second that its history tells of nothing.
    for second in [true, false] {
        let bench = Bench::new();
        bench.back_up(5, &["db"]);
        bench.append("db", 1, 0, 7);
        bench.failed_over("db", 12);
        if second {
            bench.append("db", 2, 12, 20);
        }
        let plan = bench.latest().unwrap();
        assert_eq!((plan.at, plan.exit()), (time(6), Some(Kind::Incomplete)), "{second}: {:?}", plan.warnings);
    }
}

#[test]
fn log_of_a_timeline_without_its_history_is_told_unless_another_one_is_named() {
    let bench = Bench::new();
    bench.back_up(5, &["db"]);
    bench.append("db", 1, 0, 10);
    bench.append("db", 2, 8, 20);
    let plan = bench.latest().unwrap();
    assert_eq!((plan.at, plan.exit()), (time(9), Some(Kind::Incomplete)));
    assert!(plan.log_hole.unwrap().contains("00000002.history is not stored"));
    let one = bench.planned(&["db"], Choice::Along { wanted: Wanted::Latest, timeline: Some(1) }, &[]).unwrap();
    assert_eq!((one.at, one.exit()), (time(9), None));
    bench.failed_over("db", 8);
    let plan = bench.latest().unwrap();
    assert_eq!((plan.at, plan.exit()), (time(19), None));
}

#[test]
fn log_on_record_as_missing_at_the_end_is_a_hole_until_a_snapshot_goes_beyond_it() {
    let bench = Bench::new();
    bench.back_up(5, &["db"]);
    bench.append("db", 1, 0, 10);
    let gap =
        Gap { stream: 1, from: 10 * PAGE, to: 14 * PAGE, reason: "the slot was lost".into(), noticed_at: time(14), unreadable: false };
    bench.log("db").record_gap(&gap).unwrap();
    let plan = bench.latest().unwrap();
    assert_eq!((plan.at, plan.exit()), (time(9), Some(Kind::Incomplete)), "{:?}", plan.warnings);
    assert_exact(&bench.planned(&["db"], at(7), &[]).unwrap(), "db", 7);
    bench.back_up(14, &["db"]);
    let plan = bench.latest().unwrap();
    assert_eq!((plan.at, plan.exit()), (time(14), None), "{:?}", plan.warnings);
}

#[test]
fn whoever_cannot_read_what_is_missing_does_not_know_that_nothing_is() {
    let bench = Bench::new();
    bench.back_up(5, &["db"]);
    bench.append("db", 1, 0, 10);
    // What it says is no alarm: it was filled.
    let gap = Gap { stream: 1, from: 5 * PAGE, to: 6 * PAGE, reason: "lost".into(), noticed_at: time(6), unreadable: false };
    bench.log("db").record_gap(&gap).unwrap();
    assert_eq!(bench.latest().unwrap().exit(), None);
    let listed = bench.runtime.block_on(bench.store.list("logs/")).unwrap();
    let key = &listed.iter().find(|object| object.key.contains("/gaps/")).unwrap().key;
    bench.runtime.block_on(bench.store.delete(key)).unwrap();
    bench.runtime.block_on(bench.store.create(key, bytes::Bytes::from_static(b"rotten"))).unwrap();
    let plan = bench.latest().unwrap();
    assert_eq!((plan.at, plan.exit()), (time(9), Some(Kind::Incomplete)), "{:?}", plan.warnings);
    assert!(plan.log_hole.unwrap().contains("this may not be all of it"));
    assert_exact(&bench.planned(&["db"], at(7), &[]).unwrap(), "db", 7);
}

#[test]
fn a_log_without_a_hole_is_no_alarm() {
    let whole = |bench: &Bench, newest: u64| {
        let plan = bench.latest().unwrap();
        assert_eq!((plan.at, plan.exit(), plan.log_hole.as_ref()), (time(newest), None, None), "{:?}", plan.warnings);
    };
    let bench = Bench::new();
    bench.back_up(5, &["db"]);
    whole(&bench, 5);
    // It has not come to the snapshot yet.
    bench.append("db", 1, 0, 4);
    whole(&bench, 5);
    bench.append("db", 1, 4, 8);
    whole(&bench, 7);
    // A failover, of which the new timeline has nothing yet, and then some.
    bench.failed_over("db", 8);
    whole(&bench, 7);
    bench.append("db", 2, 8, 12);
    whole(&bench, 11);
    // The old primary went on.
    bench.append("db", 1, 8, 30);
    whole(&bench, 11);
    // A gap that was filled.
    let gap = Gap { stream: 1, from: 5 * PAGE, to: 6 * PAGE, reason: "lost".into(), noticed_at: time(6), unreadable: false };
    bench.log("db").record_gap(&gap).unwrap();
    whole(&bench, 11);
}

/// Log that was stored while the plan had a key which was destroyed: no way goes through it, and nobody takes what lies before it for all there is.
#[test]
fn log_whose_key_was_destroyed_ends_the_way_before_it() {
    let mut bench = Bench::new();
    let plan = Name::new("crm").unwrap();
    let reopen = |bench: &mut Bench| {
        let options = OpenOptions { cache: None, workers: 1 };
        let passphrase = Passphrase::new("correct horse battery staple");
        bench.repository = Repository::open(bench.store.clone(), bench.runtime.handle().clone(), &passphrase, &options).unwrap();
    };
    let first = bench.back_up(5, &["db"]);
    bench.append("db", 1, 0, 10);
    bench.repository.make_plan_key(&plan, time(10)).unwrap();
    reopen(&mut bench);
    bench.append("db", 1, 10, 14);
    assert_eq!((bench.latest().unwrap().at, bench.latest().unwrap().exit()), (time(13), None));
    bench.repository.erase_plan(&plan, time(14)).unwrap();
    reopen(&mut bench);
    let ends_before = |bench: &Bench| {
        let latest = bench.latest().unwrap();
        assert_eq!((latest.snapshot, latest.at, latest.exit()), (first, time(9), Some(Kind::Incomplete)), "{latest:?}");
        assert!(latest.log_hole.unwrap().contains("the log has a hole at"));
        assert_exact(&bench.planned(&["db"], at(7), &[]).unwrap(), "db", 7);
        assert_eq!(bench.planned(&["db"], at(12), &[]).unwrap_err().kind(), Kind::NoRecoveryPoint);
        let list = crate::ops::snapshots::run(&bench.repository, None, time(1000)).unwrap();
        assert_eq!(list.recovery_ranges[0].to, time(9));
        let log = bench.log("db");
        let snapshot = bench.repository.manifest(first).unwrap();
        let reach = crate::ops::log::reach::reach(&log, &Name::new("db").unwrap(), &snapshot).unwrap().unwrap();
        assert_eq!((reach.end, reach.behind, reach.destroyed, reach.moment), (Lsn(10 * PAGE), Some(Lsn(10 * PAGE)), true, Some(time(9))));
    };
    ends_before(&bench);
    // Log that came later, under a new key, does not lead there; a snapshot that it goes on from does.
    bench.repository.make_plan_key(&plan, time(14)).unwrap();
    reopen(&mut bench);
    bench.append("db", 1, 14, 20);
    ends_before(&bench);
    let second = bench.back_up(16, &["db"]);
    let latest = bench.latest().unwrap();
    assert_eq!((latest.snapshot, latest.at, latest.exit()), (second, time(19), None), "{latest:?}");
    assert_eq!(bench.planned(&["db"], at(12), &[]).unwrap_err().kind(), Kind::NoRecoveryPoint);
}

/// All of the log is gone: the snapshot alone is not the end of it.
#[test]
fn a_snapshot_before_log_whose_key_was_destroyed_is_not_the_newest_moment() {
    let mut bench = Bench::new();
    let plan = Name::new("crm").unwrap();
    let options = OpenOptions { cache: None, workers: 1 };
    let open = |bench: &Bench| {
        let passphrase = Passphrase::new("correct horse battery staple");
        Repository::open(bench.store.clone(), bench.runtime.handle().clone(), &passphrase, &options).unwrap()
    };
    bench.back_up(5, &["db"]);
    bench.repository.make_plan_key(&plan, time(6)).unwrap();
    bench.repository = open(&bench);
    bench.append("db", 1, 0, 10);
    bench.repository.erase_plan(&plan, time(14)).unwrap();
    bench.repository = open(&bench);
    let latest = bench.latest().unwrap();
    assert_eq!((latest.recovery.is_none(), latest.exit()), (true, Some(Kind::Incomplete)), "{latest:?}");
}

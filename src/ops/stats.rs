//! What a repository holds and what it costs: objects, bytes, ratios, and the requests that schedules, logs and locks make in a month. An operator
//! multiplies them by the prices of the store.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::error::{Kind, Result};
use crate::event::{Cancel, Progress};
use crate::id::Name;
use crate::ops::{damaged_warning, select};
use crate::plan::{Plan, Schedule, SourceKind};
use crate::repo::{Manifest, Repository};

/// Objects of one class of names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassStats {
    pub objects: u64,
    pub bytes: u64,
}

/// One plan in the repository.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlanStats {
    pub plan: String,
    pub snapshots: u64,
    pub newest: Option<DateTime<Utc>>,
    /// Plain bytes of all files of the newest snapshot, and of all snapshots together.
    pub bytes_newest: u64,
    pub bytes_source: u64,
    /// Sealed bytes that its backups added.
    pub bytes_stored: u64,
    /// Of its continuous logs.
    pub log_pieces: u64,
    pub log_bytes: u64,
}

/// What one kind of run asks of the store, and how often it runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunCost {
    /// `None`: of the repository, whoever's snapshots it keeps.
    pub plan: Option<String>,
    /// A job, or `log` (a piece of a continuous log) or `lock` (a look at what is under Object Lock).
    pub job: String,
    /// In the next 30 days.
    pub runs: u64,
    /// Writes, lists, reads and deletes of one run: about. A write is looked at afterwards, which is among the reads.
    pub writes: u64,
    pub lists: u64,
    pub reads: u64,
    pub deletes: u64,
    /// Sealed bytes that leave the store in one run.
    pub bytes_read: u64,
}

/// Requests of 30 days.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MonthlyRequests {
    pub writes: u64,
    pub lists: u64,
    pub reads: u64,
    pub deletes: u64,
    pub bytes_read: u64,
}

/// `lifeboat.stats/1`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StatsReport {
    pub schema: String,
    pub url: String,
    pub objects: u64,
    pub bytes: u64,
    /// By the first part of their names.
    pub classes: BTreeMap<String, ClassStats>,
    /// Plain bytes of all files of all snapshots; of all chunks that are stored; and sealed bytes of these.
    pub bytes_source: u64,
    pub bytes_unique: u64,
    pub bytes_data: u64,
    /// `bytes_source` / `bytes_unique`, `bytes_unique` / `bytes_data`. `None`: there is no data.
    pub deduplication_ratio: Option<f64>,
    pub compression_ratio: Option<f64>,
    pub plans: Vec<PlanStats>,
    /// Of the plans that are configured here.
    pub runs: Vec<RunCost>,
    pub monthly: MonthlyRequests,
    /// Requests that counting made itself.
    pub requests: u64,
    /// What could not be read and is not counted.
    pub unread: Vec<String>,
}

impl StatsReport {
    /// How the process should end: `None` is exit 0.
    #[must_use]
    pub fn exit(&self) -> Option<Kind> {
        (!self.unread.is_empty()).then_some(Kind::Damaged)
    }
}

/// Requests of a backup that finds nothing new, on a remote store: session, index, packs, previous manifest and tree, manifest. Tests hold
/// it (`tests/copies.rs`).
pub const UNCHANGED_WRITES: u64 = 2;
pub const UNCHANGED_DELETES: u64 = 1;
pub const UNCHANGED_LISTS: u64 = 11;
pub const UNCHANGED_READS: u64 = 40;
/// Lists of a verification and of a prune. Tests hold them (`tests/faults.rs`).
pub const VERIFY_LISTS: u64 = 19;
pub const PRUNE_LISTS: u64 = 21;
/// Writes of a prune that removes something and rewrites nothing: the ledger's entry, tombstones, an index object.
pub const PRUNE_WRITES: u64 = 3;
/// Sealed bytes that one request of a restore or a verification brings.
const BYTES_A_READ: u64 = 4 << 20;
const MONTH: Duration = Duration::from_hours(30 * 24);
/// Objects that one page of a list of versions shows.
const VERSIONS_A_PAGE: u64 = 1000;
/// Requests that try what a bucket enforces.
const PROBE_REQUESTS: u64 = 8;

/// Counts. `plans`: those that are configured here and use this repository, for the requests of their schedules.
///
/// # Errors
/// When the store cannot be asked.
pub fn run(repository: &Repository, plans: &[&Plan], now: DateTime<Utc>, progress: &dyn Progress, cancel: &Cancel) -> Result<StatsReport> {
    let before = repository.store().metrics().requests();
    let totals = repository.totals(progress, cancel)?;
    let (manifests, lost) = repository.sound_manifests(None)?;
    let mut unread = totals.unread.clone();
    unread.extend(damaged_warning(&lost));
    let mut by_plan: BTreeMap<Name, Vec<&Manifest>> = BTreeMap::new();
    for manifest in &manifests {
        by_plan.entry(manifest.plan.clone()).or_default().push(manifest);
    }
    let mut stats = Vec::new();
    let mut pieces: BTreeMap<&Name, u64> = BTreeMap::new();
    for (plan, manifests) in &by_plan {
        let (of_plan, recent) = plan_stats(repository, plan, manifests, now)?;
        stats.push(of_plan);
        pieces.insert(plan, recent);
    }
    let bytes_source: u64 = manifests.iter().map(|manifest| manifest.stats.bytes_source).sum();
    let sum = |of: fn(&crate::repo::ObjectTotals) -> u64| totals.objects.values().map(of).sum();
    let data_bytes = totals.data_packs.bytes;
    let mut costs: Vec<RunCost> = Vec::new();
    for plan in plans {
        let stored = Stored {
            manifests: by_plan.get(&plan.name).map(Vec::as_slice).unwrap_or_default(),
            log_pieces: pieces.get(&plan.name).copied().unwrap_or_default(),
            data_bytes,
            node_bytes: totals.node_packs.bytes,
        };
        costs.extend(of_plan(plan, &stored, now));
    }
    let lock = repository.store().object_lock();
    costs.extend(lock.and_then(|lock| of_locks(lock.shortest().retain, &totals.locked, &costs)));
    let monthly = costs.iter().fold(MonthlyRequests::default(), |sum, run| MonthlyRequests {
        writes: sum.writes + run.runs * run.writes,
        lists: sum.lists + run.runs * run.lists,
        reads: sum.reads + run.runs * run.reads,
        deletes: sum.deletes + run.runs * run.deletes,
        bytes_read: sum.bytes_read + run.runs * run.bytes_read,
    });
    Ok(StatsReport {
        schema: "lifeboat.stats/1".into(),
        url: repository.store().describe().to_owned(),
        objects: sum(|class| class.objects),
        bytes: sum(|class| class.bytes),
        classes: totals.objects.iter().map(|(name, of)| (name.clone(), ClassStats { objects: of.objects, bytes: of.bytes })).collect(),
        bytes_source,
        bytes_unique: totals.bytes_plain,
        bytes_data: data_bytes,
        deduplication_ratio: ratio(bytes_source, totals.bytes_plain),
        compression_ratio: ratio(totals.bytes_plain, data_bytes),
        plans: stats,
        runs: costs,
        monthly,
        requests: repository.store().metrics().requests() - before,
        unread,
    })
}

#[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
fn ratio(of: u64, to: u64) -> Option<f64> {
    (to > 0).then(|| (of as f64 / to as f64 * 100.0).round() / 100.0)
}

/// And how many pieces of log would be stored in 30 days, if it goes on as in those before.
fn plan_stats(repository: &Repository, plan: &Name, manifests: &[&Manifest], now: DateTime<Utc>) -> Result<(PlanStats, u64)> {
    let owned: Vec<Manifest> = manifests.iter().map(|manifest| (*manifest).clone()).collect();
    let newest = select::latest(&owned);
    let mut sources: Vec<&Name> = manifests.iter().flat_map(|manifest| manifest.sources.iter().map(|record| &record.name)).collect();
    sources.sort();
    sources.dedup();
    let (mut log_pieces, mut log_bytes, mut a_month) = (0, 0, 0);
    for source in sources {
        let pieces = repository.log(plan, source).listed()?;
        log_pieces += pieces.len() as u64;
        log_bytes += pieces.iter().map(|piece| piece.piece.size).sum::<u64>();
        a_month += in_a_month(pieces.iter().map(|piece| piece.modified), now);
    }
    let stats = PlanStats {
        plan: plan.to_string(),
        snapshots: manifests.len() as u64,
        newest: newest.map(|manifest| manifest.time),
        bytes_newest: newest.map_or(0, |manifest| manifest.stats.bytes_source),
        bytes_source: manifests.iter().map(|manifest| manifest.stats.bytes_source).sum(),
        bytes_stored: manifests.iter().map(|manifest| manifest.stats.bytes_stored).sum(),
        log_pieces,
        log_bytes,
    };
    Ok((stats, a_month))
}

/// How often something happens in 30 days that happened at these times. Pure.
fn in_a_month(times: impl Iterator<Item = DateTime<Utc>>, now: DateTime<Utc>) -> u64 {
    // A clock that is behind the store's makes nothing older or younger.
    let ages = times.map(|time| (now - time).to_std().unwrap_or_default());
    let recent: Vec<Duration> = ages.filter(|age| *age < MONTH).collect();
    let Some(oldest) = recent.iter().max() else { return 0 };
    // A log that began yesterday goes on as on its first day; of less than an hour nothing follows for a month.
    recent.len() as u64 * MONTH.as_secs() / oldest.as_secs().max(3600)
}

/// What is stored of a plan, and of all in the repository.
struct Stored<'a> {
    manifests: &'a [&'a Manifest],
    /// Pieces of its logs in 30 days.
    log_pieces: u64,
    data_bytes: u64,
    node_bytes: u64,
}

/// What the runs of a plan's schedules, and its logs, ask of its repository. Pure.
fn of_plan(plan: &Plan, stored: &Stored<'_>, now: DateTime<Utc>) -> Vec<RunCost> {
    let Stored { manifests, data_bytes, node_bytes, .. } = *stored;
    let until = now + MONTH;
    let runs = |schedule: &Schedule| {
        std::iter::successors(schedule.next_after(now), |at| schedule.next_after(*at)).take_while(|at| *at < until).count() as u64
    };
    let recent = manifests.iter().rev().take(10);
    let average = |of: fn(&Manifest) -> u64| recent.clone().map(|m| of(m)).sum::<u64>().div_ceil(recent.len().max(1) as u64);
    let newest_stored = manifests.last().map_or(0, |m| m.stats.bytes_source);
    let run = |job: &str, runs: u64| RunCost {
        plan: Some(plan.name.to_string()),
        job: job.to_owned(),
        runs,
        writes: 1,
        lists: UNCHANGED_LISTS,
        reads: UNCHANGED_READS,
        deletes: 0,
        bytes_read: 0,
    };
    let reading = |job: &str, schedule: &Schedule, bytes: u64| {
        let run = run(job, runs(schedule));
        RunCost { reads: run.reads + bytes.div_ceil(BYTES_A_READ), bytes_read: bytes, ..run }
    };
    let mut costs = Vec::new();
    let packs = average(|manifest| manifest.stats.packs);
    let backups = plan.schedule.as_ref().map_or(0, runs);
    if plan.schedule.is_some() {
        // Each pack is written, and looked at once to confirm it; the session goes.
        let writes = UNCHANGED_WRITES + packs + packs.div_ceil(16);
        costs.push(RunCost { writes, reads: UNCHANGED_READS + packs, deletes: UNCHANGED_DELETES, ..run("backup", backups) });
    }
    let log = log_cost(plan, stored.log_pieces, &run);
    let log_pieces = log.as_ref().map_or(0, |log| log.runs);
    costs.extend(log);
    costs.extend(plan.drill.schedule.as_ref().map(|schedule| reading("drill", schedule, newest_stored.min(data_bytes))));
    let share = data_bytes / 100 * u64::from(plan.verify.data.percent());
    let verify = plan.verify.schedule.as_ref().map(|schedule| reading("verify", schedule, share));
    costs.extend(verify.map(|verify| RunCost { lists: VERIFY_LISTS, ..verify }));
    costs.extend(plan.prune.schedule.as_ref().map(|schedule| {
        // A prune follows all trees; what it rewrites is bounded by what becomes free, and not counted. In the long run as much goes as comes: the packs,
        // manifests and pieces of log that were stored since the last one.
        let prune = reading("prune", schedule, node_bytes);
        let gone = |came: u64| came.div_ceil(prune.runs.max(1));
        let deletes = if plan.keep.is_everything() { 0 } else { 1 + gone(backups * (packs + 1)) + gone(log_pieces) };
        RunCost { lists: PRUNE_LISTS, writes: PRUNE_WRITES, reads: prune.reads + PRUNE_WRITES, deletes, ..prune }
    }));
    let new_bytes = average(|manifest| manifest.stats.bytes_stored);
    // What it writes it writes to the other repository.
    let copies = plan.copies.iter().filter_map(|copy| copy.schedule.as_ref());
    costs.extend(copies.map(|schedule| RunCost { writes: 0, ..reading("copy", schedule, new_bytes) }));
    costs
}

/// A piece of log is a write and a look. Who pushes opens the repository each time; a stream goes on, and its one look at the keys a minute is left out.
fn log_cost(plan: &Plan, shown: u64, run: &dyn Fn(&str, u64) -> RunCost) -> Option<RunCost> {
    let kinds = || plan.sources.iter().map(|source| &source.kind).filter(|kind| kind.keeps_log());
    // A canary row makes a piece even where nothing else is written.
    let canaries = kinds().filter(|kind| kind.streams_log()).filter_map(SourceKind::canary);
    let least: u64 = canaries.map(|every| MONTH.as_secs() / every.as_secs().max(1)).sum();
    let pieces = if shown > 0 { shown } else { least };
    if kinds().next().is_none() || pieces == 0 {
        return None;
    }
    let is_pushed = kinds().any(|kind| !kind.streams_log());
    let (lists, reads) = if is_pushed { (3, 5) } else { (0, 1) };
    Some(RunCost { writes: 1, lists, reads, deletes: 0, bytes_read: 0, ..run("log", pieces) })
}

/// Looks at what is locked, by one machine, and the dates that they move on: `shortest` is the shortest time that objects are locked, `locked` how many are by
/// time, `runs` all others in the repository. Pure.
fn of_locks(shortest: Duration, locked: &BTreeMap<Duration, u64>, runs: &[RunCost]) -> Option<RunCost> {
    let month = MONTH.as_secs();
    let of = |jobs: &[&str]| runs.iter().filter(|run| jobs.contains(&run.job.as_str())).map(|run| run.runs).sum::<u64>();
    // By backups and copies at most once in an eighth of the spare time, by every prune.
    let looks = of(&["backup", "copy"]).min((month * 32).div_ceil(shortest.as_secs().max(1))) + of(&["prune"]);
    if looks == 0 {
        return None;
    }
    let objects: u64 = locked.values().sum();
    // Of each object every three quarters of the spare time, which is a quarter of what is asked for.
    let dates: u64 = locked.iter().map(|(retain, objects)| (objects * month * 16 / 3).div_ceil(retain.as_secs().max(1))).sum();
    let extended = dates.div_ceil(looks);
    Some(RunCost {
        plan: None,
        job: "lock".into(),
        runs: looks,
        writes: extended + PROBE_REQUESTS / 2,
        lists: objects.div_ceil(VERSIONS_A_PAGE).max(1),
        // What date it has, before and afterwards.
        reads: 2 * extended + PROBE_REQUESTS / 2,
        deletes: 1,
        bytes_read: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::SnapshotId;
    use crate::plan::Plans;

    fn now() -> DateTime<Utc> {
        "2026-11-01T00:00:00Z".parse().unwrap()
    }

    fn plan(more: &str) -> Plan {
        let text = format!(
            "version = 1\n[repository.main]\nurl = \"s3://bucket/main\"\npassphrase = {{ env = \"P\" }}\n\
             [source.db]\nkind = \"postgres\"\nurl = {{ env = \"URL\" }}\n{more}\n"
        );
        let plans = Plans::from_text(&text).unwrap_or_else(|errors| panic!("{errors}"));
        Plan::clone(plans.plans.values().next().unwrap())
    }

    fn manifest(packs: u64, bytes_stored: u64, bytes_source: u64) -> Manifest {
        let name = Name::new("crm").unwrap();
        Manifest {
            id: SnapshotId::generate(now()),
            plan: name,
            host: "host".into(),
            started: now(),
            time: now(),
            parents: vec![],
            sources: vec![],
            stats: crate::repo::Stats { bytes_source, bytes_stored, packs, ..crate::repo::Stats::default() },
            tags: vec![],
            program: "0".into(),
            copied_from: None,
        }
    }

    #[test]
    fn each_schedule_costs_what_its_runs_ask() {
        let plan = plan(
            "[repository.far]\nurl = \"s3://bucket/far\"\npassphrase = { env = \"P\" }\n[plan.crm]\nsource = \"db\"\nrepository = \"main\"\n\
             timezone = \"UTC\"\nschedule = \"0 2 * * *\"\nkeep = { last = 7 }\n[plan.crm.drill]\nschedule = \"0 5 * * sun\"\n\
             [plan.crm.verify]\nschedule = \"0 6 * * sat\"\ndata = \"10%\"\n[plan.crm.prune]\nschedule = \"0 7 * * mon\"\n\
             [[plan.crm.copy]]\nto = \"far\"\nschedule = \"0 8 * * *\"",
        );
        // The mean of them: 20 packs, 200 MiB.
        let manifests = [manifest(10, 100 << 20, 1 << 30), manifest(30, 300 << 20, 2 << 30)];
        let manifests: Vec<&Manifest> = manifests.iter().collect();
        let stored = Stored { manifests: &manifests, log_pieces: 0, data_bytes: 1000 << 20, node_bytes: 8 << 20 };
        let cost = |job: &str, runs, [writes, lists, reads, deletes]: [u64; 4], bytes_read| {
            let (plan, job) = (Some("crm".to_owned()), job.to_owned());
            RunCost { plan, job, runs, writes, lists, reads, deletes, bytes_read }
        };
        let expected = [
            // Session and manifest, the packs, two index objects; each pack is looked at.
            cost("backup", 30, [2 + 20 + 2, 11, 40 + 20, 1], 0),
            // All of the newest snapshot that is stored: 1000 MiB by 4 MiB. Writes its report.
            cost("drill", 5, [1, 11, 40 + 250, 0], 1000 << 20),
            cost("verify", 4, [1, 19, 40 + 25, 0], 100 << 20),
            // Between two of five prunes there are six backups, each of 20 packs and a manifest: these go, and an index object.
            cost("prune", 5, [3, 21, 40 + 2 + 3, 1 + 6 * 21], 8 << 20),
            cost("copy", 30, [0, 11, 40 + 50, 0], 200 << 20),
        ];
        let costs = of_plan(&plan, &stored, now());
        let by_job = |job: &str| costs.iter().find(|cost| cost.job == job).unwrap().clone();
        for cost in expected {
            assert_eq!(by_job(&cost.job), cost);
        }
        assert_eq!(costs.len(), 5, "no log: {costs:?}");
        // Nothing is stored yet, and nothing is ever removed.
        let none = Stored { manifests: &[], log_pieces: 0, data_bytes: 0, node_bytes: 0 };
        let mut plan = plan.clone();
        plan.keep = crate::plan::Keep::default();
        let costs = of_plan(&plan, &none, now());
        assert!(costs.iter().all(|cost| cost.bytes_read == 0 && cost.job != "prune" || cost.deletes == 0), "{costs:?}");
        plan.schedule = None;
        assert!(of_plan(&plan, &none, now()).iter().all(|cost| cost.job != "backup"));
    }

    #[test]
    fn a_log_costs_a_write_a_piece() {
        let log = |settings: &str, log_pieces| {
            let plan = plan(&format!("{settings}\n[plan.crm]\nsource = \"db\"\nrepository = \"main\"\n"));
            let stored = Stored { manifests: &[], log_pieces, data_bytes: 0, node_bytes: 0 };
            let costs = of_plan(&plan, &stored, now());
            costs.into_iter().find(|cost| cost.job == "log").map(|cost| (cost.runs, cost.writes, cost.lists, cost.reads))
        };
        let stream = "log = \"stream\"";
        assert_eq!(log(stream, 500_000), Some((500_000, 1, 0, 1)));
        assert_eq!(log(stream, 0), None, "nobody can tell");
        assert_eq!(log("log = \"stream\"\ncanary = \"30s\"", 0), Some((86_400, 1, 0, 1)), "a row every 30 seconds, and its piece");
        // Each push is a process of its own: it opens the repository, and looks at what is there.
        assert_eq!(log("log = \"push\"", 9_000), Some((9_000, 1, 3, 5)));
        assert_eq!(log("", 9_000), None, "it was stored once, and is not any more");
    }

    #[test]
    fn what_happened_is_taken_for_a_month() {
        let ago = |hours: i64| now() - chrono::TimeDelta::hours(hours);
        let month = |ages: &[i64]| in_a_month(ages.iter().map(|hours| ago(*hours)), now());
        assert_eq!(month(&[]), 0);
        assert_eq!(month(&[24, 12, 1]), 3 * 30, "it began a day ago");
        assert_eq!(month(&[719, 400, 800, 9000]), 2, "older ones are of another month");
        assert_eq!(month(&[0, 0]), 2 * 720, "it has just begun: as in an hour");
        assert_eq!(month(&[-5]), 720, "by a clock that is ahead");
    }

    #[test]
    fn locks_cost_looks_and_dates_that_move_on() {
        let days = |days: u64| Duration::from_hours(days * 24);
        let of = |retain: u64, objects: u64, runs: &[RunCost]| of_locks(days(retain), &BTreeMap::from([(days(retain), objects)]), runs);
        let run = |job: &str, runs| RunCost {
            plan: Some("crm".into()),
            job: job.into(),
            runs,
            writes: 0,
            lists: 0,
            reads: 0,
            deletes: 0,
            bytes_read: 0,
        };
        assert_eq!(of(30, 1_000_000, &[run("drill", 4), run("verify", 4)]), None, "who reads moves no dates on");
        // For 30 days: a look every 22.5 hours at the most, 32 in a month, and one by each prune; each date moves on 5.33 times.
        let cost = of(30, 30_000, &[run("backup", 720), run("prune", 8)]).unwrap();
        assert_eq!((cost.runs, cost.writes, cost.lists, cost.reads, cost.plan), (40, 4000 + 4, 30, 8000 + 4, None));
        let seldom = of(30, 30_000, &[run("backup", 4), run("copy", 4)]).unwrap();
        assert_eq!((seldom.runs, seldom.writes), (8, 20_000 + 4), "the same dates by fewer looks");
        let long = of(300, 30_000, &[run("backup", 720)]).unwrap();
        assert_eq!((long.runs, long.writes), (4, 4000 + 4), "ten times as long, a tenth of both");
        let both = BTreeMap::from([(days(300), 30_000), (days(30), 3000)]);
        let apart = of_locks(days(30), &both, &[run("backup", 720)]).unwrap();
        assert_eq!(
            (apart.runs, apart.writes, apart.lists),
            (32, 1000 + 4, 33),
            "16,000 dates of each by as many looks as the shorter time asks"
        );
    }
}

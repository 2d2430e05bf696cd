//! What a repository holds and what it costs: objects, bytes, ratios, and the requests that the schedules make in a month. An operator
//! multiplies them by the prices of the store.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::error::{Kind, Result};
use crate::event::{Cancel, Progress};
use crate::id::Name;
use crate::ops::{damaged_warning, select};
use crate::plan::{Plan, Schedule};
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
    pub plan: String,
    pub job: String,
    /// In the next 30 days.
    pub runs: u64,
    /// Writes, lists and reads of one run: about.
    pub writes: u64,
    pub lists: u64,
    pub reads: u64,
    /// Sealed bytes that leave the store in one run.
    pub bytes_read: u64,
}

/// Requests of 30 days.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MonthlyRequests {
    pub writes: u64,
    pub lists: u64,
    pub reads: u64,
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
pub const UNCHANGED_WRITES: u64 = 3;
pub const UNCHANGED_LISTS: u64 = 10;
pub const UNCHANGED_READS: u64 = 40;
/// Sealed bytes that one request of a restore or a verification brings.
const BYTES_A_READ: u64 = 4 << 20;
const MONTH_DAYS: i64 = 30;

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
    for (plan, manifests) in &by_plan {
        stats.push(plan_stats(repository, plan, manifests)?);
    }
    let bytes_source: u64 = manifests.iter().map(|manifest| manifest.stats.bytes_source).sum();
    let sum = |of: fn(&crate::repo::ObjectTotals) -> u64| totals.objects.values().map(of).sum();
    let data_bytes = totals.data_packs.bytes;
    let costs: Vec<RunCost> = plans
        .iter()
        .flat_map(|plan| {
            let known = by_plan.get(&plan.name).map(Vec::as_slice).unwrap_or_default();
            costs(plan, known, data_bytes, totals.node_packs.bytes, now)
        })
        .collect();
    let monthly = costs.iter().fold(MonthlyRequests::default(), |sum, run| MonthlyRequests {
        writes: sum.writes + run.runs * run.writes,
        lists: sum.lists + run.runs * run.lists,
        reads: sum.reads + run.runs * run.reads,
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

fn plan_stats(repository: &Repository, plan: &Name, manifests: &[&Manifest]) -> Result<PlanStats> {
    let owned: Vec<Manifest> = manifests.iter().map(|manifest| (*manifest).clone()).collect();
    let newest = select::latest(&owned);
    let mut sources: Vec<&Name> = manifests.iter().flat_map(|manifest| manifest.sources.iter().map(|record| &record.name)).collect();
    sources.sort();
    sources.dedup();
    let (mut log_pieces, mut log_bytes) = (0, 0);
    for source in sources {
        let pieces = repository.log(plan, source).pieces()?;
        log_pieces += pieces.len() as u64;
        log_bytes += pieces.iter().map(|piece| piece.size).sum::<u64>();
    }
    Ok(PlanStats {
        plan: plan.to_string(),
        snapshots: manifests.len() as u64,
        newest: newest.map(|manifest| manifest.time),
        bytes_newest: newest.map_or(0, |manifest| manifest.stats.bytes_source),
        bytes_source: manifests.iter().map(|manifest| manifest.stats.bytes_source).sum(),
        bytes_stored: manifests.iter().map(|manifest| manifest.stats.bytes_stored).sum(),
        log_pieces,
        log_bytes,
    })
}

/// What the runs of a plan's schedules ask of its repository. Pure.
fn costs(plan: &Plan, manifests: &[&Manifest], data_bytes: u64, node_bytes: u64, now: DateTime<Utc>) -> Vec<RunCost> {
    let until = now + chrono::TimeDelta::days(MONTH_DAYS);
    let runs = |schedule: &Schedule| {
        std::iter::successors(schedule.next_after(now), |at| schedule.next_after(*at)).take_while(|at| *at < until).count() as u64
    };
    let recent = manifests.iter().rev().take(10);
    let average = |of: fn(&Manifest) -> u64| recent.clone().map(|m| of(m)).sum::<u64>().div_ceil(recent.len().max(1) as u64);
    let newest_stored = manifests.last().map_or(0, |m| m.stats.bytes_source);
    let name = plan.name.to_string();
    let mut costs = Vec::new();
    if let Some(schedule) = &plan.schedule {
        let packs = average(|manifest| manifest.stats.packs);
        costs.push(RunCost {
            plan: name.clone(),
            job: "backup".into(),
            runs: runs(schedule),
            // Each pack is written, and looked at once to confirm it.
            writes: UNCHANGED_WRITES + packs + packs.div_ceil(16),
            lists: UNCHANGED_LISTS,
            reads: UNCHANGED_READS + packs,
            bytes_read: 0,
        });
    }
    let reading = |job: &str, schedule: &Schedule, bytes: u64| RunCost {
        plan: name.clone(),
        job: job.to_owned(),
        runs: runs(schedule),
        writes: 2,
        lists: UNCHANGED_LISTS,
        reads: UNCHANGED_READS + bytes.div_ceil(BYTES_A_READ),
        bytes_read: bytes,
    };
    costs.extend(plan.drill.schedule.as_ref().map(|schedule| reading("drill", schedule, newest_stored.min(data_bytes))));
    let share = data_bytes / 100 * u64::from(plan.verify.data.percent());
    costs.extend(plan.verify.schedule.as_ref().map(|schedule| reading("verify", schedule, share)));
    // A prune follows all trees; what it rewrites is bounded by what becomes free, and not counted.
    costs.extend(plan.prune.schedule.as_ref().map(|schedule| reading("prune", schedule, node_bytes)));
    let new_bytes = average(|manifest| manifest.stats.bytes_stored);
    costs.extend(plan.copies.iter().filter_map(|copy| copy.schedule.as_ref()).map(|schedule| reading("copy", schedule, new_bytes)));
    costs
}

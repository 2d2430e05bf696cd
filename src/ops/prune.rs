//! Prune: what retention plans is shown and applied, then garbage is collected. Everything here may be interrupted and run again.
//!
//! Order: removal through the retention ledger (which decides, and from then on the snapshots are gone) → logs that no kept snapshot
//! needs → collection.

use std::collections::BTreeMap;
use std::time::Instant;

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};

use crate::clock::Clock;
use crate::error::{Error, Kind, Result};
use crate::event::{Cancel, Event, Progress};
use crate::id::{Name, SnapshotId};
use crate::ops::log::{replay, retain};
use crate::ops::retention::{self, Candidate, Fate, Rules};
use crate::ops::verdict::millis;
use crate::ops::{backup, damage, explain, select};
use crate::repo::{CollectOptions, Collection, Decision, Hold, Ledger, Manifest, ReportRecord, Repository, Role};

/// Whose snapshots are looked at, and by which rules.
#[derive(Debug, Clone)]
pub struct PlanRules {
    pub plan: Name,
    pub rules: Rules,
    pub zone: Tz,
}

/// A snapshot's fate as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotFate {
    pub plan: String,
    pub id: SnapshotId,
    pub time: DateTime<Utc>,
    pub kept: bool,
    /// Why; never empty.
    pub reasons: Vec<String>,
}

/// Log that no kept snapshot needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogFate {
    pub plan: String,
    pub source: String,
    /// Pieces that lie before this position go; `None`: none do.
    pub before: Option<String>,
    /// Why.
    pub reason: String,
    pub pieces: u64,
    pub bytes: u64,
}

/// `lifeboat.prune/1`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PruneReport {
    pub schema: String,
    /// The plans whose snapshots were looked at.
    pub plans: Vec<String>,
    pub time: DateTime<Utc>,
    pub dry_run: bool,
    /// By plan, oldest first.
    pub snapshots: Vec<SnapshotFate>,
    /// How many were removed, or would be.
    pub snapshots_removed: u64,
    pub logs: Vec<LogFate>,
    /// Stored bytes throughout.
    pub collection: Collection,
    /// Why retention removed nothing; sentences.
    pub blocked: Vec<String>,
    pub warnings: Vec<String>,
    pub duration_ms: u64,
}

impl PruneReport {
    /// How the process should end: `None` is exit 0. What stands in the way of pruning is damage, or something that cannot be read.
    #[must_use]
    pub fn exit(&self) -> Option<Kind> {
        (!self.blocked.is_empty() || !self.collection.blocked.is_empty()).then_some(Kind::Damaged)
    }
}

/// Prunes: applies the rules to the snapshots of these plans, and collects the garbage of the whole repository.
///
/// # Errors
/// When the store or the ledger cannot be worked with. What is damaged is told in the report, and nothing is removed then.
pub fn run(
    repository: &Repository,
    plans: &[PlanRules],
    dry_run: bool,
    clock: &dyn Clock,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<PruneReport> {
    if !dry_run && repository.role() == Role::Writer {
        return Err(Error::new(Kind::WrongKey, "prune: the passphrase is a writer key, which backs up and removes nothing")
            .hint("use a maintainer's or a reader's passphrase, best on another machine than the one that backs up"));
    }
    let started = Instant::now();
    let now = clock.now();
    progress.event(Event::Phase { name: "retention", detail: String::new() });
    let mut planned = Planned::default();
    // Decided upon what is there after the ledger was read, so that nobody else's decision is passed by.
    if dry_run {
        planned = decide(repository, &repository.ledger()?, plans, now)?;
    } else {
        repository.decide(now, |ledger| {
            cancel.check()?;
            planned = decide(repository, ledger, plans, now)?;
            let removed: Vec<_> =
                planned.removed().map(|(manifest, reason)| repository.removal_of(manifest, reason, now)).collect::<Result<_>>()?;
            Ok((!removed.is_empty()).then_some(Decision::Remove { snapshots: removed }))
        })?;
    }
    let mut logs = Vec::new();
    for plan in plans {
        logs.extend(prune_logs(repository, plan, &planned, now, dry_run, cancel)?);
    }
    let without = if dry_run { planned.removed().map(|(manifest, _)| manifest.id).collect() } else { std::collections::BTreeSet::new() };
    let options = CollectOptions { dry_run, without, ..CollectOptions::default() };
    let mut collection = repository.collect(&options, now, progress, cancel)?;
    let mut warnings = planned.warnings.clone();
    warnings.append(&mut collection.warnings);
    for message in &warnings {
        progress.event(Event::Warning { message: message.clone() });
    }
    Ok(PruneReport {
        schema: "lifeboat.prune/1".into(),
        plans: plans.iter().map(|plan| plan.plan.to_string()).collect(),
        time: now,
        dry_run,
        snapshots_removed: planned.removed().count() as u64,
        snapshots: planned.shown(),
        logs,
        collection,
        blocked: planned.blocked,
        warnings,
        duration_ms: millis(started.elapsed()),
    })
}

/// The fates of all snapshots of the plans.
#[derive(Default)]
struct Planned {
    by_plan: Vec<(Name, Vec<Candidate>, Vec<Fate>)>,
    manifests: BTreeMap<SnapshotId, Manifest>,
    blocked: Vec<String>,
    warnings: Vec<String>,
}

impl Planned {
    fn fates(&self) -> impl Iterator<Item = (&Name, &Fate)> {
        self.by_plan.iter().flat_map(|(plan, _, fates)| fates.iter().map(move |fate| (plan, fate)))
    }

    fn removed(&self) -> impl Iterator<Item = (&Manifest, &str)> {
        self.fates()
            .filter(|(_, fate)| !fate.kept)
            .filter_map(|(_, fate)| Some((self.manifests.get(&fate.id)?, fate.reasons.first()?.as_str())))
    }

    fn shown(&self) -> Vec<SnapshotFate> {
        let shown = |(plan, fate): (&Name, &Fate)| SnapshotFate {
            plan: plan.to_string(),
            id: fate.id,
            time: fate.time,
            kept: fate.kept,
            reasons: fate.reasons.clone(),
        };
        self.fates().map(shown).collect()
    }
}

fn decide(repository: &Repository, ledger: &Ledger, plans: &[PlanRules], now: DateTime<Utc>) -> Result<Planned> {
    let mut planned = Planned::default();
    let (manifests, damaged) = repository.sound_manifests(None)?;
    let (reports, damaged_reports) = repository.sound_reports(None)?;
    for error in damaged.iter().map(|lost| &lost.error).chain(&damaged_reports) {
        planned.blocked.push(explain(error));
    }
    let open = match repository.open_commits() {
        Ok(open) => open,
        Err(error) if error.kind() == Kind::Damaged => {
            planned.blocked.push(explain(&error));
            Vec::new()
        }
        Err(error) => return Err(error),
    };
    for PlanRules { plan, rules, zone } in plans {
        let of_plan = manifests.iter().filter(|manifest| manifest.plan == *plan);
        let candidates: Vec<Candidate> = of_plan.map(|manifest| candidate(manifest, ledger, &reports, &open, now)).collect();
        let mut fates = retention::plan(rules, &candidates, *zone, now);
        if !planned.blocked.is_empty() {
            for fate in fates.iter_mut().filter(|fate| !fate.kept) {
                fate.kept = true;
                fate.reasons = vec!["no rule keeps it, but retention is blocked".to_owned()];
            }
        }
        for hold in ledger.holds().values().filter(|hold| ledger.hold(hold.snapshot, now).is_none()) {
            if candidates.iter().any(|candidate| candidate.id == hold.snapshot) {
                planned.warnings.push(format!("the hold of snapshot {} ({}) is over", hold.snapshot, hold.reason));
            }
        }
        planned.by_plan.push((plan.clone(), candidates, fates));
    }
    planned.manifests = manifests.into_iter().map(|manifest| (manifest.id, manifest)).collect();
    Ok(planned)
}

fn candidate(manifest: &Manifest, ledger: &Ledger, reports: &[ReportRecord], open: &[SnapshotId], now: DateTime<Utc>) -> Candidate {
    let standing = damage::standing(reports, None);
    let held = ledger.hold(manifest.id, now).map(|hold| {
        let until = hold.until.map_or_else(String::new, |until| format!(" until {}", select::moment(until)));
        format!("{} (by {}{until})", hold.reason, hold.by)
    });
    Candidate {
        id: manifest.id,
        time: manifest.time,
        tags: manifest.tags.clone(),
        whole: backup::missing(&manifest.sources).is_empty(),
        proven_at: select::proven_at(reports, manifest.id),
        damaged: damage::of_snapshot(reports, &standing, manifest.id).map(|known| known.describe()),
        held,
        unended: open.contains(&manifest.id),
        has_log: manifest.sources.iter().any(replay::can_have_log),
    }
}

/// Removes what no kept snapshot of the plan needs of its logs.
fn prune_logs(
    repository: &Repository,
    plan: &PlanRules,
    planned: &Planned,
    now: DateTime<Utc>,
    dry_run: bool,
    cancel: &Cancel,
) -> Result<Vec<LogFate>> {
    let Some((_, candidates, fates)) = planned.by_plan.iter().find(|(name, ..)| *name == plan.plan) else { return Ok(Vec::new()) };
    let manifests: Vec<&Manifest> = planned.manifests.values().filter(|manifest| manifest.plan == plan.plan).collect();
    let mut sources: Vec<&Name> = manifests.iter().flat_map(|m| &m.sources).filter(|s| replay::can_have_log(s)).map(|s| &s.name).collect();
    sources.sort_unstable();
    sources.dedup();
    let needed: Vec<&Manifest> = retention::log_needed_by(&plan.rules, candidates, fates, now)
        .into_iter()
        .filter_map(|candidate| planned.manifests.get(&candidate.id))
        .collect();
    let mut logs = Vec::new();
    for source in sources {
        cancel.check()?;
        let whole = |reason: &str| LogFate {
            plan: plan.plan.to_string(),
            source: source.to_string(),
            before: None,
            reason: reason.to_owned(),
            pieces: 0,
            bytes: 0,
        };
        if plan.rules == Rules::default() {
            logs.push(whole("the plan has no keep rules: nothing is removed"));
        } else if !planned.blocked.is_empty() {
            logs.push(whole("retention is blocked"));
        } else if repository.has_open_commit(&plan.plan)? {
            logs.push(whole("a backup of the plan is at work"));
        } else {
            logs.push(retain::prune(repository, &plan.plan, source, &needed, dry_run)?);
        }
    }
    Ok(logs)
}

/// `lifeboat.hold/1`: what a hold or release did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldReport {
    pub schema: String,
    pub snapshot: SnapshotId,
    pub plan: String,
    /// `false`: released.
    pub held: bool,
    pub until: Option<DateTime<Utc>>,
    pub reason: String,
    pub by: String,
}

/// Holds a snapshot: no retention removes it before `until`, or before it is released. A hold that is there is replaced.
///
/// # Errors
/// `NoRecoveryPoint` when there is no such snapshot (any more).
pub fn hold(
    repository: &Repository,
    id: SnapshotId,
    until: Option<DateTime<Utc>>,
    reason: &str,
    by: &str,
    now: DateTime<Utc>,
) -> Result<HoldReport> {
    if let Some(until) = until
        && until <= now
    {
        return Err(Error::new(Kind::Usage, format!("hold a snapshot until {}: that is over", select::moment(until))));
    }
    let hold = Hold { snapshot: id, until, reason: reason.to_owned(), by: by.to_owned(), held_at: now };
    let mut plan = String::new();
    repository.decide(now, |ledger| {
        if let Some(removed) = ledger.removed(id) {
            return Err(removed.error());
        }
        plan = repository.manifest(id)?.plan.to_string();
        Ok(Some(Decision::Hold { hold: hold.clone() }))
    })?;
    Ok(HoldReport { schema: "lifeboat.hold/1".into(), snapshot: id, plan, held: true, until, reason: hold.reason, by: hold.by })
}

/// Releases a snapshot that is held.
///
/// # Errors
/// `Usage` when it is not held.
pub fn release(repository: &Repository, id: SnapshotId, reason: &str, by: &str, now: DateTime<Utc>) -> Result<HoldReport> {
    repository.decide(now, |ledger| {
        if !ledger.holds().contains_key(&id) {
            return Err(Error::new(Kind::Usage, format!("release snapshot {id}: it is not held")));
        }
        Ok(Some(Decision::Release { snapshot: id, by: by.to_owned(), reason: reason.to_owned() }))
    })?;
    let plan = repository.manifest(id).map(|manifest| manifest.plan.to_string()).unwrap_or_default();
    Ok(HoldReport {
        schema: "lifeboat.hold/1".into(),
        snapshot: id,
        plan,
        held: false,
        until: None,
        reason: reason.to_owned(),
        by: by.to_owned(),
    })
}

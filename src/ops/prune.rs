//! Prune: what retention plans is shown and applied, then garbage is collected. Everything here may be interrupted and run again.
//!
//! Order: removal through the retention ledger (which decides, and from then on the snapshots are gone) → logs that no kept snapshot
//! needs → reports that nobody needs ([`judged`](crate::ops::judged)) → collection.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};

use crate::clock::Clock;
use crate::error::{Error, Kind, Result};
use crate::event::{Cancel, Event, Progress};
use crate::id::{Name, ReportId, SnapshotId};
use crate::ops::judged::{Existing, Judged, Judgement};
use crate::ops::log::way::Way;
use crate::ops::log::{replay, retain};
use crate::ops::restore::fallback::original;
use crate::ops::retention::{self, Candidate, Fate, Rules};
use crate::ops::verdict::millis;
use crate::ops::{backup, explain, select};
use crate::repo::{CollectOptions, Collection, Decision, Hold, Ledger, Locks, Manifest, Repository, Role, beside, replacements};

/// Whose snapshots are looked at, and by which rules.
#[derive(Debug, Clone)]
pub struct PlanRules {
    pub plan: Name,
    pub rules: Rules,
    pub zone: Tz,
    /// Its sources whose log is kept in the repository, as the plan is now.
    pub logs: Vec<Name>,
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
    /// That were removed, or would be.
    pub pieces: u64,
    pub bytes: u64,
    /// Pieces that nobody needs and that are still there because the store refused.
    #[serde(default)]
    pub refused: u64,
}

impl LogFate {
    /// Nothing of it goes, for no reason yet.
    pub(in crate::ops) fn of(plan: &Name, source: &Name) -> Self {
        let (plan, source) = (plan.to_string(), source.to_string());
        Self { plan, source, before: None, reason: String::new(), pieces: 0, bytes: 0, refused: 0 }
    }
}

/// What became of the reports of drills and verifications.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportsPruned {
    /// That are there afterwards.
    pub kept: u64,
    /// That nobody needs any more and that were removed, or would be.
    pub removed: u64,
    /// Of these, that are still there because the store refused.
    pub refused: u64,
}

/// What became of a copy that has rules of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyPruned {
    /// Name of the repository.
    pub name: String,
    /// `None`: it could not be pruned.
    pub report: Option<Box<PruneReport>>,
    pub error: Option<CopyError>,
}

/// Why a copy could not be pruned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyError {
    /// The word of its [`Kind`].
    pub kind: String,
    pub message: String,
}

impl CopyPruned {
    fn exit(&self) -> Option<Kind> {
        match (&self.report, &self.error) {
            (Some(report), None) => report.exit(),
            (_, error) => Some(error.as_ref().and_then(|error| Kind::from_word(&error.kind)).unwrap_or(Kind::Failed)),
        }
    }
}

/// `lifeboat.prune/1`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PruneReport {
    pub schema: String,
    /// URL.
    pub repository: String,
    /// The plans whose snapshots were looked at.
    pub plans: Vec<String>,
    pub time: DateTime<Utc>,
    pub dry_run: bool,
    /// By plan, oldest first.
    pub snapshots: Vec<SnapshotFate>,
    /// How many were removed, or would be.
    pub snapshots_removed: u64,
    pub logs: Vec<LogFate>,
    #[serde(default)]
    pub reports: ReportsPruned,
    /// Stored bytes throughout.
    pub collection: Collection,
    /// Why retention removed nothing; sentences.
    pub blocked: Vec<String>,
    pub warnings: Vec<String>,
    pub duration_ms: u64,
    /// What was seen of Object Lock, where the plan asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locks: Option<Locks>,
    /// The plan's copies that have rules of their own, in the order of the plan file.
    #[serde(default)]
    pub copies: Vec<CopyPruned>,
}

impl PruneReport {
    /// How the process should end: `None` is exit 0. What stands in the way of pruning is damage, or something that cannot be read.
    #[must_use]
    pub fn exit(&self) -> Option<Kind> {
        let blocked = !self.blocked.is_empty() || !self.collection.blocked.is_empty() || self.alarm().is_some();
        if blocked { Some(Kind::Damaged) } else { self.copies.iter().find_map(CopyPruned::exit) }
    }

    fn alarm(&self) -> Option<&String> {
        self.locks.as_ref()?.alarms.first()
    }

    /// What kept it, or the pruning of a copy, from being done, or what is wrong with locks; a sentence.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        let of_copy = |copy: &CopyPruned| {
            let failure = match (&copy.report, &copy.error) {
                (Some(report), None) => report.failure()?,
                (_, error) => error.as_ref().map_or_else(|| "it was not pruned".to_owned(), |error| error.message.clone()),
            };
            Some(format!("copy in {}: {failure}", copy.name))
        };
        let blocked = self.blocked.iter().chain(&self.collection.blocked).next();
        blocked
            .map(|why| format!("nothing is deleted: {why}"))
            .or_else(|| self.alarm().cloned())
            .or_else(|| self.copies.iter().find_map(of_copy))
    }
}

/// How far this machine's clock may be ahead of the store's where times decide what goes.
const CLOCK_AHEAD: TimeDelta = TimeDelta::hours(1);
/// How long prunes warn of snapshots of a clock that was behind; longer, what is shown of each says it.
const WARNED: TimeDelta = TimeDelta::days(30);

/// By a clock that is ahead, what `within` keeps, holds and the windows of logs are over too early, and that cannot be taken back. What listings showed tells
/// mostly enough; where nothing was written for long, the store is asked.
fn refuse_wrong_clock(repository: &Repository, now: DateTime<Utc>) -> Result<()> {
    if repository.store().newest_seen().is_some_and(|newest| now - newest <= CLOCK_AHEAD) {
        return Ok(());
    }
    match repository.store_clock(now)?.filter(|there| now - *there > CLOCK_AHEAD) {
        None => Ok(()),
        Some(there) => Err(Error::new(
            Kind::Failed,
            format!(
                "prune: this machine's clock says {}, the store's {}: nothing is removed by a clock that is ahead",
                select::moment(now),
                select::moment(there)
            ),
        )
        .hint("set the clock of the one that is wrong (NTP), then prune again")),
    }
}

/// Prunes: applies the rules to the snapshots of these plans, and collects the garbage of the whole repository. `may` is asked right before
/// snapshots are removed; an error means that none may be.
///
/// # Errors
/// What `may` says. `Failed` when this machine's clock is far ahead of the store's. When the store or the ledger cannot be worked with. What is damaged is told in the report, and nothing is removed then.
pub fn run(
    repository: &Repository,
    plans: &[PlanRules],
    dry_run: bool,
    clock: &dyn Clock,
    progress: &dyn Progress,
    cancel: &Cancel,
    may: &dyn Fn() -> Result<()>,
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
        repository.amend_ledger(now, |ledger| {
            cancel.check()?;
            planned = decide(repository, ledger, plans, now)?;
            let read = planned.removed().filter_map(|(_, id, reason)| Some((planned.manifests.get(&id)?, reason)));
            let mut removed = repository.removals_of(&read.collect::<Vec<_>>(), now)?;
            for snapshot in &mut removed {
                // What is left of a log after its last snapshot is found by this.
                let sources = planned.manifests.get(&snapshot.id).into_iter().flat_map(|manifest| &manifest.sources);
                snapshot.logs = sources.filter(|source| replay::can_have_log(source)).map(|source| source.name.clone()).collect();
            }
            for (plan, id, reason) in planned.removed().filter(|(_, id, _)| !planned.manifests.contains_key(id)) {
                removed.push(repository.removal_of_unread(plan, id, planned.manifests.values(), reason, now));
            }
            if removed.is_empty() {
                return Ok(None);
            }
            refuse_wrong_clock(repository, now)?;
            // Right before the entry: whoever takes this run over from here on takes the entry's number first.
            may()?;
            Ok(Some(Decision::Remove { snapshots: removed }))
        })?;
    }
    let mut logs = Vec::new();
    if !dry_run && plans.iter().any(|plan| plan.rules.log.is_some()) {
        refuse_wrong_clock(repository, now)?;
    }
    for plan in plans {
        logs.extend(prune_logs(repository, plan, &planned, now, dry_run, cancel)?);
    }
    let reports = prune_reports(repository, &mut planned, now, dry_run, cancel)?;
    let without = if dry_run { planned.removed().map(|(_, id, _)| id).collect() } else { BTreeSet::new() };
    let options = CollectOptions { dry_run, without, ..CollectOptions::default() };
    let mut collection = repository.collect(&options, now, progress, cancel)?;
    let mut warnings = planned.warnings.clone();
    for log in logs.iter().filter(|log| log.refused > 0) {
        collection.refused += log.refused;
        warnings.push(format!("log of {} {}: {}; the next prune tries again", log.plan, log.source, log.reason));
    }
    collection.refused += reports.refused;
    warnings.append(&mut collection.warnings);
    // Last: what is given up by now need not stay locked.
    let locks = if dry_run { None } else { repository.keep_locked(now, true, progress, cancel)? };
    warnings.extend(locks.iter().flat_map(|locks| locks.alarms.iter().cloned()));
    for message in &warnings {
        progress.event(Event::Warning { message: message.clone() });
    }
    Ok(PruneReport {
        schema: "lifeboat.prune/1".into(),
        repository: repository.store().describe().to_owned(),
        copies: Vec::new(),
        locks,
        plans: plans.iter().map(|plan| plan.plan.to_string()).collect(),
        time: now,
        dry_run,
        snapshots_removed: planned.removed().count() as u64,
        snapshots: planned.shown(),
        logs,
        reports,
        collection,
        blocked: planned.blocked,
        warnings,
        duration_ms: millis(started.elapsed()),
    })
}

/// The fates of the snapshots of one plan, and by which rules.
struct PlannedOf {
    plan: Name,
    rules: Rules,
    candidates: Vec<Candidate>,
    fates: Vec<Fate>,
}

/// The fates of all snapshots of the plans.
#[derive(Default)]
struct Planned {
    by_plan: Vec<PlannedOf>,
    manifests: BTreeMap<SnapshotId, Manifest>,
    /// Of plans and their sources whose log went back to the past, the snapshot that the window begins with along its newest timeline.
    begins: BTreeMap<(Name, Name), SnapshotId>,
    /// Plans and their sources whose log snapshots continued that are removed already.
    logs_before: BTreeSet<(Name, Name)>,
    /// How many reports there are, and those that nobody needs any more.
    reports: u64,
    reports_over: Vec<ReportId>,
    blocked: Vec<String>,
    warnings: Vec<String>,
}

impl Planned {
    fn fates(&self) -> impl Iterator<Item = (&Name, &Fate)> {
        self.by_plan.iter().flat_map(|of| of.fates.iter().map(move |fate| (&of.plan, fate)))
    }

    /// Keeps what the newest timelines of the logs of a plan go on from, whatever is newer than that by time: nothing else leads to what was written on them.
    /// `snapshots`: of the plan.
    fn keep_ways(
        &mut self,
        (plan, rules): (&Name, &Rules),
        ways: &[Way],
        snapshots: &[(&Candidate, &Manifest)],
        fates: &mut [Fate],
        now: DateTime<Utc>,
    ) {
        for way in ways {
            let beginnings = way.beginnings(rules, snapshots, now);
            for (id, why) in beginnings.reasons(way.timeline()) {
                for fate in fates.iter_mut().filter(|fate| fate.id == id && !fate.kept) {
                    fate.kept = true;
                    fate.reasons = vec![why.clone()];
                }
            }
            self.begins.extend(beginnings.window.map(|id| ((plan.clone(), way.source().clone()), id)));
        }
    }

    /// What is removed: plan, snapshot and why.
    fn removed(&self) -> impl Iterator<Item = (&Name, SnapshotId, &str)> {
        self.fates().filter(|(_, fate)| !fate.kept).filter_map(|(plan, fate)| Some((plan, fate.id, fate.reasons.last()?.as_str())))
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
    // Far away each answer takes its time. Sessions are listed after manifests: one that is not there any more has ended.
    let (manifests, damaged) = repository.sound_manifests(None)?;
    // Of reports only what they say of these is held.
    let existing = Existing::new(&manifests, &damaged);
    let (open, judged) = beside(|| Judged::read(repository, &existing, now), || repository.open_commits());
    let (judged, damaged_reports) = judged?;
    for error in damaged.iter().map(|lost| &lost.error).chain(&damaged_reports) {
        planned.blocked.push(explain(error));
    }
    let open = match open {
        Ok(open) => open,
        Err(error) if error.kind() == Kind::Damaged => {
            planned.blocked.push(explain(&error));
            Vec::new()
        }
        Err(error) => return Err(error),
    };
    let replaces = replacements(&manifests);
    let superseded = superseded(&manifests, &replaces, &judged, ledger, &open, now);
    let ways = ways(repository, plans, &manifests, &mut planned.blocked)?;
    for PlanRules { plan, rules, zone, logs } in plans {
        // Without rules nothing is ever removed.
        let goes = |id: &SnapshotId| !rules.is_everything() && superseded.contains_key(id);
        let of_plan: Vec<&Manifest> = manifests.iter().filter(|manifest| manifest.plan == *plan && !goes(&manifest.id)).collect();
        let candidates = candidates(repository, &of_plan, ledger, &judged, &open, now);
        planned.warnings.extend(of_the_future(plan, &candidates, &manifests, now));
        planned.warnings.extend(of_a_clock_behind(plan, &candidates, &manifests, now).filter(|_| !rules.is_everything()));
        let mut rules = rules.clone();
        if logs.is_empty()
            && !rules.is_everything()
            && let Some(window) = rules.log
            && is_log_over(repository, ledger, plan, window, &candidates, now)?
        {
            rules.log = None;
        }
        let mut fates = retention::plan(&rules, &candidates, *zone, now);
        let accepted = |id: &SnapshotId| judged.accepted(*id, ledger);
        if candidates.iter().any(|candidate| accepted(&candidate.id).is_some()) {
            // A snapshot whose loss was accepted takes no other one's place, and stays as long as it would if it were whole.
            let is_whole = |candidate: &Candidate| match accepted(&candidate.id) {
                Some(_) => Candidate { damaged: None, ..candidate.clone() },
                None => candidate.clone(),
            };
            let whole = retention::plan(&rules, &candidates.iter().map(is_whole).collect::<Vec<_>>(), *zone, now);
            for (fate, whole) in fates.iter_mut().zip(whole) {
                if let Some(loss) = accepted(&fate.id) {
                    let why = format!("that it is not whole was accepted: {} (by {})", loss.reason, loss.by);
                    *fate = Fate { reasons: whole.reasons.iter().cloned().chain([why]).collect(), ..whole };
                }
            }
        }
        let snapshots: Vec<(&Candidate, &Manifest)> = candidates.iter().zip(of_plan).collect();
        planned.keep_ways((plan, &rules), ways.get(plan).map_or(&[], Vec::as_slice), &snapshots, &mut fates, now);
        for (id, by) in superseded.iter().filter(|(id, by)| by.plan == *plan && goes(id)) {
            let reasons = vec![format!("it was damaged, and its content was brought back as snapshot {}", by.id)];
            fates.push(Fate { id: *id, time: by.time, kept: false, reasons });
        }
        if !planned.blocked.is_empty() {
            for fate in fates.iter_mut().filter(|fate| !fate.kept) {
                fate.kept = true;
                fate.reasons = vec!["no rule keeps it, but retention is blocked".to_owned()];
            }
        }
        for hold in ledger.holds().values().filter(|hold| ledger.hold(hold.snapshot, now).is_none()) {
            let is_of = |id: SnapshotId| id == hold.snapshot || replaces.get(&id) == Some(&hold.snapshot);
            if candidates.iter().any(|candidate| is_of(candidate.id)) {
                planned.warnings.push(format!("the hold of snapshot {} ({}) is over", hold.snapshot, hold.reason));
            }
        }
        planned.by_plan.push(PlannedOf { plan: plan.clone(), rules, candidates, fates });
    }
    planned.logs_before = ledger.logs_of_removed().map(|(plan, source)| (plan.clone(), source.clone())).collect();
    planned.manifests = manifests.into_iter().map(|manifest| (manifest.id, manifest)).collect();
    let with_rules = plans.iter().filter(|plan| !plan.rules.is_everything()).map(|plan| plan.plan.as_str()).collect::<BTreeSet<_>>();
    planned.reports = judged.reports;
    if planned.blocked.is_empty() && !with_rules.is_empty() {
        planned.reports_over = judged.over(&with_rules);
    }
    Ok(planned)
}

/// The ways of the logs of these plans' sources, where retention removes anything at all. A history that cannot be read is damage that stands in its way: what
/// is needed is not known then.
fn ways<'a>(
    repository: &Repository,
    plans: &'a [PlanRules],
    manifests: &[Manifest],
    blocked: &mut Vec<String>,
) -> Result<BTreeMap<&'a Name, Vec<Way>>> {
    let mut ways: BTreeMap<&Name, Vec<Way>> = BTreeMap::new();
    for PlanRules { plan, .. } in plans.iter().filter(|plan| !plan.rules.is_everything()) {
        let records = manifests.iter().filter(|manifest| manifest.plan == *plan).flat_map(|manifest| &manifest.sources);
        let sources: BTreeSet<&Name> = records.filter(|record| replay::can_have_log(record)).map(|record| &record.name).collect();
        for source in sources {
            match Way::of(&repository.log(plan, source), source) {
                Ok(way) => ways.entry(plan).or_default().extend(way),
                Err(error) if error.kind() == Kind::Damaged => {
                    blocked.push(explain(&error.within(format!("see where the log of source {source} of plan {plan} goes on"))));
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok(ways)
}

/// A warning where snapshots are dated in the future.
fn of_the_future(plan: &Name, candidates: &[Candidate], manifests: &[Manifest], now: DateTime<Utc>) -> Option<String> {
    let future: Vec<&Candidate> = candidates.iter().filter(|candidate| select::is_to_come(candidate.time, now)).collect();
    let last = future.iter().max_by_key(|candidate| (candidate.time, candidate.id))?;
    let host = manifests.iter().find(|manifest| manifest.id == last.id).map_or("", |manifest| manifest.host.as_str());
    Some(format!(
        "{} of plan {plan} {} dated in the future, the last of them {} of {}, made by {host}: that host's clock was wrong, or this one's is. Until then no \
         rule counts them and none of them goes",
        match future.len() {
            1 => "a snapshot".to_owned(),
            count => format!("{count} snapshots"),
        },
        if future.len() == 1 { "is" } else { "are" },
        last.id,
        select::moment(last.time),
    ))
}

/// A warning where the clock of a host was behind when it made snapshots, as long as that may be news.
fn of_a_clock_behind(plan: &Name, candidates: &[Candidate], manifests: &[Manifest], now: DateTime<Utc>) -> Option<String> {
    let behind: Vec<&Candidate> = candidates.iter().filter(|candidate| candidate.behind).collect();
    let last = behind.iter().max_by_key(|candidate| candidate.place)?;
    if last.place.generated().is_some_and(|at_least| now - at_least > WARNED) {
        return None;
    }
    let host = manifests.iter().find(|manifest| manifest.id == last.id).map_or("", |manifest| manifest.host.as_str());
    Some(format!(
        "{} of plan {plan} {} dated before others that were committed earlier, the last of them {} of {}, made by {host}: that host's clock was behind, or that of \
         another one ahead. No rule counts them, and they stay while a rule reaches back to when they may be of",
        match behind.len() {
            1 => "a snapshot".to_owned(),
            count => format!("{count} snapshots"),
        },
        if behind.len() == 1 { "is" } else { "are" },
        last.id,
        select::moment(last.time),
    ))
}

/// Of a plan that keeps no log any more, whether all there may be of it is older than the window: a snapshot is that came later and has none, also one that is
/// removed by now. Else the last snapshot with a log, and that log, would stay for ever, as the beginning of a window in which nothing is.
fn is_log_over(
    repository: &Repository,
    ledger: &Ledger,
    plan: &Name,
    window: Duration,
    candidates: &[Candidate],
    now: DateTime<Utc>,
) -> Result<bool> {
    let last = candidates.iter().filter(|candidate| candidate.has_log).map(|candidate| candidate.place).max();
    let earliest = TimeDelta::from_std(window).ok().and_then(|window| now.checked_sub_signed(window));
    let (Some(last), Some(earliest)) = (last, earliest) else { return Ok(false) };
    let ended = |place: SnapshotId, time: DateTime<Utc>| place > last && time <= earliest;
    let mut is_over = candidates.iter().any(|candidate| !candidate.has_log && !candidate.behind && ended(candidate.place, candidate.time));
    if !is_over {
        repository.removals(ledger, |removed| {
            let time = removed.id.generated();
            is_over |= removed.plan == *plan && removed.logs.is_empty() && time.is_some_and(|time| ended(removed.id, time));
        })?;
    }
    Ok(is_over)
}

/// Damaged snapshots whose content stands in another one, which is not known to be damaged itself. They would stand in the way of everything as long
/// as they are there: what they lead to cannot be told. One that is held stays, and one whose writer may not have heard of its commit.
fn superseded<'a>(
    manifests: &'a [Manifest],
    replaces: &BTreeMap<SnapshotId, SnapshotId>,
    judged: &Judged,
    ledger: &Ledger,
    open: &[SnapshotId],
    now: DateTime<Utc>,
) -> BTreeMap<SnapshotId, &'a Manifest> {
    let is_damaged = |id: SnapshotId| judged.is_damaged(id);
    let is_read = |id: SnapshotId| manifests.iter().any(|manifest| manifest.id == id);
    // That it says so is not enough: a writer's key must not be able to have a sound one removed.
    manifests
        .iter()
        .filter(|manifest| !is_damaged(manifest.id))
        .filter_map(|manifest| Some((manifest.replaces()?, manifest)))
        .filter(|(id, _)| is_damaged(*id) || !is_read(*id))
        .filter(|(id, _)| !ledger.is_removed(*id) && ledger.hold_in_place(*id, replaces, now).is_none() && !open.contains(id))
        .collect()
}

/// Snapshots of one plan as retention sees them.
fn candidates(
    repository: &Repository,
    manifests: &[&Manifest],
    ledger: &Ledger,
    judged: &Judged,
    open: &[SnapshotId],
    now: DateTime<Utc>,
) -> Vec<Candidate> {
    let (behind, replaces) = (behind(manifests, now), replacements(manifests.iter().copied()));
    let of = |manifest: &&Manifest| Candidate {
        behind: behind.contains(&manifest.id),
        ..candidate(repository, manifest, &replaces, ledger, judged, open, now)
    };
    manifests.iter().map(of).collect()
}

/// Those that were made while the clock of their host was behind: of a snapshot its id tells ([`select::clock_was_behind`]), of a copy that its original was begun
/// before one that was committed earlier. Of what was brought back nothing tells it.
fn behind(manifests: &[&Manifest], now: DateTime<Utc>) -> BTreeSet<SnapshotId> {
    let mut behind: BTreeSet<SnapshotId> =
        manifests.iter().filter(|manifest| select::clock_was_behind(manifest, now).is_some()).map(|manifest| manifest.id).collect();
    let mut copies: BTreeMap<&str, Vec<(SnapshotId, &Manifest)>> = BTreeMap::new();
    for manifest in manifests.iter().filter(|manifest| manifest.replaces().is_none()) {
        if let Some(from) = &manifest.copied_from {
            copies.entry(&from.repository).or_default().push((from.place(), manifest));
        }
    }
    for mut of_one in copies.into_values() {
        of_one.sort_by_key(|(place, _)| *place);
        let mut latest = DateTime::<Utc>::MIN_UTC;
        for (_, copy) in of_one.into_iter().filter(|(_, copy)| !select::is_to_come(copy.started, now)) {
            if select::is_to_come(latest, copy.started) {
                behind.insert(copy.id);
            }
            latest = latest.max(copy.started);
        }
    }
    behind
}

/// Says of a hold that it is of another snapshot, in whose place this one stands.
pub(in crate::ops) fn in_place_of(hold: &Hold, id: SnapshotId) -> String {
    if hold.snapshot == id { String::new() } else { format!(", as what stands in the place of snapshot {}", hold.snapshot) }
}

fn candidate(
    repository: &Repository,
    manifest: &Manifest,
    replaces: &BTreeMap<SnapshotId, SnapshotId>,
    ledger: &Ledger,
    judged: &Judged,
    open: &[SnapshotId],
    now: DateTime<Utc>,
) -> Candidate {
    let destroyed = repository.destroyed_at(manifest);
    let Judgement { proven_at, damaged, .. } = judged.of(manifest.id);
    let held = ledger.hold_in_place(manifest.id, replaces, now).map(|hold| {
        let until = hold.until.map_or_else(String::new, |until| format!(" until {}", select::moment(until)));
        format!("{} (by {}{until}){}", hold.reason, hold.by, in_place_of(hold, manifest.id))
    });
    Candidate {
        id: manifest.id,
        time: manifest.time,
        tags: manifest.tags.clone(),
        whole: backup::missing(&manifest.sources).is_empty(),
        proven_at,
        damaged: damaged.map(|known| known.describe()),
        destroyed,
        held,
        unended: open.contains(&manifest.id),
        has_log: destroyed.is_none() && manifest.sources.iter().any(replay::can_have_log),
        place: manifest.replaces().unwrap_or_else(|| original(manifest)),
        behind: false,
    }
}

/// Snapshots of one plan as a prune by rules with a window would see them.
pub(in crate::ops) struct Retained<'a> {
    rules: &'a Rules,
    manifests: &'a [&'a Manifest],
    /// One for each of them.
    candidates: Vec<Candidate>,
    now: DateTime<Utc>,
}

impl<'a> Retained<'a> {
    /// `None`: there is no window, and each needs its log.
    ///
    /// # Errors
    /// When the store cannot be asked.
    pub(in crate::ops) fn read(
        repository: &Repository,
        rules: &'a Rules,
        manifests: &'a [&'a Manifest],
        now: DateTime<Utc>,
    ) -> Result<Option<Self>> {
        if rules.log.is_none() {
            return Ok(None);
        }
        let existing = Existing::new(manifests.iter().copied(), &[]);
        let (judged, _) = Judged::read(repository, &existing, now)?;
        let ledger = repository.ledger()?;
        let candidates = candidates(repository, manifests, &ledger, &judged, &[], now);
        Ok(Some(Self { rules, manifests, candidates, now }))
    }

    /// Those whose log it would leave. `way`: of the source in question.
    pub(in crate::ops) fn needing_log(&self, way: Option<&Way>) -> Vec<&'a Manifest> {
        let mut needing: BTreeSet<SnapshotId> =
            retention::needing_log(self.rules, &self.candidates, self.now).iter().map(|candidate| candidate.id).collect();
        let snapshots: Vec<(&Candidate, &Manifest)> = self.candidates.iter().zip(self.manifests.iter().copied()).collect();
        needing.extend(way.and_then(|way| way.beginnings(self.rules, &snapshots, self.now).window));
        self.manifests.iter().copied().filter(|manifest| needing.contains(&manifest.id)).collect()
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
    let Some(PlannedOf { rules, candidates, fates, .. }) = planned.by_plan.iter().find(|of| of.plan == plan.plan) else {
        return Ok(Vec::new());
    };
    let manifests: Vec<&Manifest> = planned.manifests.values().filter(|manifest| manifest.plan == plan.plan).collect();
    let mut sources: Vec<&Name> = manifests.iter().flat_map(|m| &m.sources).filter(|s| replay::can_have_log(s)).map(|s| &s.name).collect();
    // With those whose last snapshot is gone, and their log is not: this was interrupted, or the store had refused.
    sources.extend(
        planned.logs_before.iter().filter(|(of, source)| *of == plan.plan && !plan.logs.contains(source)).map(|(_, source)| source),
    );
    sources.sort_unstable();
    sources.dedup();
    let kept: BTreeSet<SnapshotId> = fates.iter().filter(|fate| fate.kept).map(|fate| fate.id).collect();
    let kept: Vec<&Manifest> = manifests.iter().copied().filter(|manifest| kept.contains(&manifest.id)).collect();
    let is_kept = |source: &Name| kept.iter().flat_map(|m| &m.sources).any(|s| s.name == *source && replay::can_have_log(s));
    let needed: Vec<&Manifest> = retention::log_needed_by(rules, candidates, fates, now)
        .into_iter()
        .filter_map(|candidate| planned.manifests.get(&candidate.id))
        .collect();
    let mut logs = Vec::new();
    for source in sources {
        cancel.check()?;
        let whole = |reason: &str| LogFate { reason: reason.to_owned(), ..LogFate::of(&plan.plan, source) };
        let orphaned = !plan.rules.is_everything() && !plan.logs.contains(source) && !is_kept(source);
        if plan.rules == Rules::default() {
            logs.push(whole("the plan has no keep rules: nothing is removed"));
        } else if !planned.blocked.is_empty() {
            logs.push(whole("retention is blocked"));
        } else {
            let stands_in_the_way = || {
                if repository.has_open_commit(&plan.plan)? {
                    return Ok(Some("a backup of the plan is at work: all of it stays"));
                }
                let known = |manifest: &Manifest| planned.manifests.contains_key(&manifest.id);
                let is_settled = repository.manifests(Some(&plan.plan))?.iter().all(known);
                Ok((!is_settled).then_some("a backup of the plan was committed meanwhile: all of it stays"))
            };
            let begins = planned.begins.get(&(plan.plan.clone(), source.clone())).and_then(|id| planned.manifests.get(id));
            let needed: Vec<&Manifest> = needed.iter().copied().chain(begins).collect();
            logs.push(retain::prune(repository, &plan.plan, source, &needed, orphaned, dry_run, &stands_in_the_way)?);
        }
    }
    Ok(logs)
}

/// Removes the reports that nobody needs any more. After the snapshots: a prune that was fenced before these removed nothing at all.
fn prune_reports(
    repository: &Repository,
    planned: &mut Planned,
    now: DateTime<Utc>,
    dry_run: bool,
    cancel: &Cancel,
) -> Result<ReportsPruned> {
    let over = std::mem::take(&mut planned.reports_over);
    if dry_run || over.is_empty() {
        return Ok(ReportsPruned { kept: planned.reports - over.len() as u64, removed: over.len() as u64, refused: 0 });
    }
    refuse_wrong_clock(repository, now)?;
    let (removed, refused, refusal) = repository.delete_reports(&over, cancel)?;
    if let Some(refusal) = refusal {
        planned.warnings.push(format!(
            "the store refused to delete {refused} reports that nobody needs any more; the next prune tries again: {}",
            explain(&refusal)
        ));
    }
    Ok(ReportsPruned { kept: planned.reports - removed, removed, refused })
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
    repository.amend_ledger(now, |ledger| {
        if ledger.is_removed(id) {
            return Err(repository.removed_error(ledger, id));
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
    repository.amend_ledger(now, |ledger| {
        if !ledger.holds().contains_key(&id) {
            let error = Error::new(Kind::Usage, format!("release snapshot {id}: it is not held"));
            let replaces = replacements(&repository.sound_manifests(None)?.0);
            return Err(match ledger.hold_in_place(id, &replaces, now) {
                Some(hold) => error
                    .hint(format!("it is kept as what stands in the place of snapshot {}, which is held: release that one", hold.snapshot)),
                None => error,
            });
        }
        Ok(Some(Decision::Release { snapshot: id, by: by.to_owned(), reason: reason.to_owned() }))
    })?;
    // One that is held may be damaged, or gone.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;
    use crate::entry::Order;
    use crate::event::Silent;
    use crate::repo::{OpenOptions, Passphrase, ReportKind, ReportRecord};
    use crate::source::Finish;
    use crate::source::postgres::lsn::Lsn;
    use crate::store::Store;

    const SEGMENT: u64 = 1 << 20;
    const SEGMENT_BYTES: usize = 1 << 20;

    struct World {
        runtime: tokio::runtime::Runtime,
        store: Store,
        start: DateTime<Utc>,
        /// Sources whose log the plan keeps.
        logs: Vec<Name>,
    }

    fn key(role: &str) -> Passphrase {
        Passphrase::new(format!("the passphrase of a {role}"))
    }

    fn crm() -> Name {
        Name::new("crm").unwrap()
    }

    impl World {
        fn new() -> Self {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            let world = Self { runtime, store: Store::in_memory(), start: "2026-01-01T02:00:00Z".parse().unwrap(), logs: vec![crm()] };
            let options = OpenOptions { cache: None, workers: 1 };
            let (repository, _) =
                Repository::init(world.store.clone(), world.runtime.handle().clone(), &key("reader"), &options, world.start).unwrap();
            for (role, name) in [(Role::Writer, "writer"), (Role::Maintainer, "maintainer")] {
                repository.add_key(name, role, &key(name), world.start).unwrap();
            }
            world
        }

        fn open(&self, role: &str) -> Repository {
            Repository::open(self.store.clone(), self.runtime.handle().clone(), &key(role), &OpenOptions { cache: None, workers: 1 })
                .unwrap()
        }

        fn day(&self, day: i64) -> DateTime<Utc> {
            self.start + chrono::Duration::days(day)
        }

        /// A base backup that began in segment `day * 10` and ended in the next one, and the log of the day.
        fn back_up(&self, day: i64) -> Manifest {
            self.back_up_on(1, u64::try_from(day).unwrap() * 10, day)
        }

        /// The same on any timeline, from any segment on.
        fn back_up_on(&self, timeline: u32, first: u64, day: i64) -> Manifest {
            self.back_up_of(timeline, first, self.day(day))
        }

        /// The same by a clock that says `now`.
        fn back_up_at(&self, day: i64, now: DateTime<Utc>) -> Manifest {
            self.back_up_of(1, u64::try_from(day).unwrap() * 10, now)
        }

        fn back_up_of(&self, timeline: u32, first: u64, now: DateTime<Utc>) -> Manifest {
            let repository = self.open("reader");
            self.write_log(timeline, first..first + 10);
            let mut writer = repository.begin(&crm(), now, &Cancel::default()).unwrap();
            let tree = writer.tree(&crm(), "postgres", Order::Tree).unwrap();
            let at = |segment: u64, offset: u64| Lsn((first + segment) * SEGMENT + offset);
            let consistency = serde_json::json!({ "system_identifier": "7", "timeline": timeline, "start_lsn": at(0, 40), "stop_lsn": at(1, 80), "lsn": at(1, 80) });
            let finish = Finish { consistency, fingerprints: vec![], problems: vec![] };
            let record = tree.finish(serde_json::to_value(finish).unwrap()).unwrap();
            writer.commit(vec![record], now, vec![], &Silent).unwrap().manifest
        }

        fn write_log(&self, timeline: u32, segments: std::ops::Range<u64>) {
            let log = self.open("reader").log(&crm(), &crm());
            for segment in segments {
                let (start, end) = (segment * SEGMENT, (segment + 1) * SEGMENT);
                let facts =
                    serde_json::json!({ "system_identifier": "7", "timeline": timeline, "segment_bytes": SEGMENT, "valid_to": Lsn(end) });
                log.append(u64::from(timeline), start, end, &facts, &vec![1; SEGMENT_BYTES]).unwrap();
            }
        }

        /// A server was recovered in place to the moment of the snapshot that began in this segment, and goes on as timeline 2.
        fn went_back_to(&self, first: u64) {
            let history = format!("1\t{}\tno recovery target specified\n", Lsn((first + 1) * SEGMENT + 80));
            self.open("reader").log(&crm(), &crm()).put_side(&Name::new("00000002.history").unwrap(), history.as_bytes()).unwrap();
        }

        /// Segments of a timeline that are stored.
        fn segments_of(&self, timeline: u64) -> Vec<u64> {
            let pieces = self.open("reader").log(&crm(), &crm()).pieces().unwrap();
            pieces.iter().filter(|piece| piece.stream == timeline).map(|piece| piece.start / SEGMENT).collect()
        }

        fn left(&self) -> Vec<SnapshotId> {
            self.open("reader").manifests(None).unwrap().iter().map(|manifest| manifest.id).collect()
        }

        fn prune(&self, role: &str, rules: &Rules, day: i64, dry_run: bool) -> Result<PruneReport> {
            let plans = [PlanRules { plan: crm(), rules: rules.clone(), zone: Tz::UTC, logs: self.logs.clone() }];
            run(&self.open(role), &plans, dry_run, &ManualClock::new(self.day(day)), &Silent, &Cancel::default(), &|| Ok(()))
        }

        fn segments(&self) -> Vec<u64> {
            self.open("reader").log(&crm(), &crm()).pieces().unwrap().iter().map(|piece| piece.start / SEGMENT).collect()
        }
    }

    #[test]
    fn log_goes_as_far_as_no_kept_snapshot_and_no_window_needs_it() {
        let world = World::new();
        let snapshots: Vec<Manifest> = (0..6).map(|day| world.back_up(day)).collect();
        let rules = Rules { last: 3, ..Rules::default() };
        let planned = world.prune("maintainer", &rules, 6, true).unwrap();
        assert_eq!((planned.logs[0].pieces, planned.snapshots_removed), (30, 3), "{planned:?}");
        assert_eq!(world.segments().len(), 60);
        let done = world.prune("maintainer", &rules, 6, false).unwrap();
        assert_eq!((&done.snapshots, &done.logs, done.exit()), (&planned.snapshots, &planned.logs, None));
        assert_eq!(world.segments(), (30..60).collect::<Vec<_>>());
        // A window: the log of the last day and a half only, though three snapshots are kept.
        let window = Rules { log: Some(Duration::from_hours(36)), ..rules };
        let done = world.prune("maintainer", &window, 6, false).unwrap();
        assert_eq!(world.segments(), (40..60).collect::<Vec<_>>(), "{done:?}");
        assert_eq!(done.logs[0].before.as_deref(), Some(Lsn(40 * SEGMENT).to_string().as_str()));
        let left: Vec<SnapshotId> = world.open("reader").manifests(None).unwrap().iter().map(|m| m.id).collect();
        assert_eq!(left, snapshots[3..].iter().map(|m| m.id).collect::<Vec<_>>());
        let found =
            world.open("reader").verify(crate::repo::VerifyDepth::Data { percent: 100, run: 0 }, &Silent, &Cancel::default()).unwrap();
        assert_eq!(found.findings, vec![]);
    }

    /// The positions of the new timeline are lower than those of all snapshots of the window, and nothing else holds what is written on it.
    #[test]
    fn after_a_recovery_in_place_the_new_timeline_and_what_it_goes_on_from_stay() {
        let world = World::new();
        let snapshots: Vec<Manifest> = (0..6).map(|day| world.back_up(day)).collect();
        // Nothing keeps the oldest but that the server went back to it.
        let rules = Rules { last: 1, log: Some(Duration::from_hours(36)), ..Rules::default() };
        world.went_back_to(0);
        world.write_log(2, 1..5);
        for (day, dry_run) in [(7, true), (7, false), (9, false)] {
            let done = world.prune("maintainer", &rules, day, dry_run).unwrap();
            assert_eq!((world.segments_of(2), done.logs[0].pieces, done.exit()), (vec![1, 2, 3, 4], 0, None), "{done:?}");
            let why = &done.snapshots[0].reasons[0];
            assert!(done.snapshots[0].kept && why == "recovery along timeline 2 begins with it", "{why}");
        }
        assert_eq!(world.left(), [snapshots[0].id, snapshots[5].id]);
        // A backup of the new timeline: its log before that is in the window for as long as no snapshot on the way is as old.
        let next = world.back_up_on(2, 5, 10);
        world.prune("maintainer", &rules, 11, false).unwrap();
        assert_eq!((world.left(), world.segments_of(2)), (vec![snapshots[0].id, snapshots[5].id, next.id], (1..15).collect()));
        let done = world.prune("maintainer", &rules, 12, false).unwrap();
        assert_eq!((world.left(), world.segments_of(2)), (vec![next.id], (5..15).collect()), "{done:?}");
        assert_eq!(done.logs[0].before, Some(Lsn(5 * SEGMENT).to_string()));
    }

    /// Its history is not stored (yet), or the snapshot that it goes on from is gone.
    #[test]
    fn log_of_a_timeline_that_no_snapshot_is_of_stays_whatever_its_positions_are() {
        let world = World::new();
        let snapshots: Vec<Manifest> = (0..6).map(|day| world.back_up(day)).collect();
        world.write_log(2, 1..5);
        let rules = Rules { last: 1, log: Some(Duration::from_hours(36)), ..Rules::default() };
        let done = world.prune("maintainer", &rules, 7, false).unwrap();
        assert_eq!(
            (world.left(), world.segments_of(2), world.segments_of(1)),
            (vec![snapshots[5].id], vec![1, 2, 3, 4], (50..60).collect())
        );
        assert!(done.logs[0].pieces == 50 && done.logs[0].reason.contains("log of timelines after 1 stays"), "{done:?}");
        // As soon as there is one, it is like any other log.
        world.went_back_to(0);
        world.back_up_on(2, 5, 8);
        let done = world.prune("maintainer", &rules, 9, false).unwrap();
        assert_eq!((world.segments_of(2), done.logs[0].pieces), ((5..15).collect(), 4), "{done:?}");
    }

    /// A failover goes on from the newest snapshot, and holds nothing back.
    #[test]
    fn after_a_failover_log_goes_as_before() {
        let world = World::new();
        let mut snapshots: Vec<Manifest> = (0..4).map(|day| world.back_up(day)).collect();
        let history = format!("1\t{}\tno recovery target specified\n", Lsn(40 * SEGMENT));
        world.open("reader").log(&crm(), &crm()).put_side(&Name::new("00000002.history").unwrap(), history.as_bytes()).unwrap();
        snapshots.extend((4..6).map(|day| world.back_up_on(2, u64::try_from(day).unwrap() * 10, day)));
        let rules = Rules { last: 3, log: Some(Duration::from_hours(36)), ..Rules::default() };
        world.prune("maintainer", &rules, 6, false).unwrap();
        assert_eq!(world.left(), snapshots[3..].iter().map(|manifest| manifest.id).collect::<Vec<_>>());
        assert_eq!((world.segments_of(1), world.segments_of(2)), (vec![], (40..60).collect()));
    }

    #[test]
    fn a_history_that_cannot_be_read_stands_in_the_way_of_retention() {
        let world = World::new();
        (0..3).for_each(|day| drop(world.back_up(day)));
        world.went_back_to(0);
        let key = world.runtime.block_on(world.store.list("logs/")).unwrap().into_iter().find(|object| object.key.contains("/history/"));
        world.runtime.block_on(crate::store::faults::flip_byte(&world.store, &key.unwrap().key, 80)).unwrap();
        let done = world.prune("maintainer", &Rules { last: 1, ..Rules::default() }, 3, false).unwrap();
        assert_eq!((done.snapshots_removed, done.exit(), world.left().len(), world.segments().len()), (0, Some(Kind::Damaged), 3, 30));
        assert!(done.blocked[0].contains("see where the log of source crm of plan crm goes on"), "{done:?}");
    }

    /// After a recovery to the past, what a backup at work needs lies before what older snapshots need.
    #[test]
    fn no_log_goes_while_a_backup_is_at_work() {
        let world = World::new();
        (1..4).for_each(|day| drop(world.back_up(day)));
        let repository = world.open("reader");
        let writer = repository.begin(&crm(), world.day(4), &Cancel::default()).unwrap();
        let rules = Rules { last: 1, ..Rules::default() };
        let done = world.prune("maintainer", &rules, 4, false).unwrap();
        assert_eq!((done.snapshots_removed, done.logs[0].pieces), (2, 0), "{done:?}");
        assert!(done.logs[0].reason.contains("at work") && world.segments().len() == 30, "{done:?}");
        drop(writer);
        let fenced = CollectOptions { fence_after: Duration::ZERO, ..CollectOptions::default() };
        repository.collect(&fenced, world.day(4), &Silent, &Cancel::default()).unwrap();
        assert_eq!(world.prune("maintainer", &rules, 4, false).unwrap().logs[0].pieces, 20);
    }

    /// Committed between the plan and the removal: it was not asked what it needs.
    #[test]
    fn no_log_goes_when_a_snapshot_came_after_the_plan_was_made() {
        let world = World::new();
        (1..4).for_each(|day| drop(world.back_up(day)));
        let repository = world.open("maintainer");
        let plan = PlanRules { plan: crm(), rules: Rules { last: 1, ..Rules::default() }, zone: Tz::UTC, logs: vec![crm()] };
        let planned = decide(&repository, &repository.ledger().unwrap(), std::slice::from_ref(&plan), world.day(4)).unwrap();
        world.back_up(4);
        let logs = prune_logs(&repository, &plan, &planned, world.day(4), false, &Cancel::default()).unwrap();
        assert!(logs[0].pieces == 0 && logs[0].reason.contains("meanwhile"), "{logs:?}");
        assert_eq!(world.segments().len(), 40);
    }

    /// By a clock that is ten years ahead all holds and windows would be over.
    #[test]
    fn nothing_goes_by_a_clock_that_is_far_ahead_of_the_stores() {
        let world = World::new();
        let snapshots: Vec<Manifest> = (0..3).map(|day| world.back_up(day)).collect();
        hold(&world.open("reader"), snapshots[0].id, Some(world.day(30)), "audit", "t", world.day(2)).unwrap();
        let before = world.runtime.block_on(world.store.list("")).unwrap();
        let ahead = (Utc::now() - world.start).num_days() + 3650;
        for rules in [Rules { last: 1, ..Rules::default() }, Rules { last: 9, log: Some(Duration::from_hours(1)), ..Rules::default() }] {
            let refused = world.prune("maintainer", &rules, ahead, false).unwrap_err();
            assert!(refused.kind() == Kind::Failed && refused.to_string().contains("clock"), "{refused:?}");
        }
        assert_eq!(world.runtime.block_on(world.store.list("")).unwrap(), before);
        // Where nothing would go, it does not matter; and what was written long ago is no reason.
        assert_eq!(world.prune("maintainer", &Rules { last: 9, ..Rules::default() }, ahead, false).unwrap().snapshots_removed, 0);
        let now = (Utc::now() - world.start).num_days();
        assert_eq!(world.prune("maintainer", &Rules { last: 1, ..Rules::default() }, now, false).unwrap().snapshots_removed, 2);
    }

    /// Of a host whose clock was at 2036 for a while, and was put right.
    #[test]
    fn snapshots_of_the_future_are_told_and_push_no_real_one_out() {
        let world = World::new();
        let mut snapshots: Vec<Manifest> = (0..3).map(|day| world.back_up(day)).collect();
        (3653..3656).for_each(|day| drop(world.back_up(day)));
        snapshots.extend((6..9).map(|day| world.back_up(day)));
        let rules = Rules { last: 3, daily: 2, ..Rules::default() };
        for dry_run in [true, false] {
            let done = world.prune("maintainer", &rules, 9, dry_run).unwrap();
            let gone: Vec<SnapshotId> = done.snapshots.iter().filter(|fate| !fate.kept).map(|fate| fate.id).collect();
            assert_eq!(gone, snapshots[..3].iter().map(|m| m.id).collect::<Vec<_>>(), "{done:?}");
            let future = done.snapshots.iter().filter(|fate| fate.reasons.iter().any(|why| why.contains("has not been yet")));
            assert_eq!(future.count(), 3);
            assert!(done.warnings.iter().any(|why| why.starts_with("3 snapshots of plan crm are dated in the future")), "{done:?}");
        }
    }

    /// Of a host that lost the battery of its clock and stood at 2020 for two weeks.
    #[test]
    fn snapshots_of_a_clock_that_was_behind_are_told_and_do_not_go_first() {
        let world = World::new();
        (0..5).for_each(|day| drop(world.back_up(day)));
        let wrong: Vec<SnapshotId> = (5..19).map(|day| world.back_up_at(day, world.day(day - 2200)).id).collect();
        world.back_up(19);
        let gone = |rules: &Rules, day: i64, dry_run: bool| {
            let done = world.prune("maintainer", rules, day, dry_run).unwrap();
            let gone = done.snapshots.iter().filter(|fate| !fate.kept).map(|fate| fate.id).collect::<Vec<_>>();
            (gone, done.warnings)
        };
        for rules in [
            Rules { last: 3, within: Some(Duration::from_hours(24 * 30)), ..Rules::default() },
            Rules { daily: 14, ..Rules::default() },
            Rules { last: 3, ..Rules::default() },
        ] {
            let (gone, warnings) = gone(&rules, 20, true);
            assert!(wrong.iter().all(|id| !gone.contains(id)), "{gone:?}");
            assert!(warnings.iter().any(|why| why.starts_with("14 snapshots of plan crm are dated before others")), "{warnings:?}");
        }
        // Their log stays with them, and both go in their time.
        let (last, window) = (Rules { last: 3, ..Rules::default() }, Some(Duration::from_hours(24)));
        gone(&Rules { log: window, ..last.clone() }, 20, false);
        assert!(world.segments().contains(&50), "{:?}", world.segments());
        (40..43).for_each(|day| drop(world.back_up(day)));
        let (all, warnings) = gone(&Rules { log: window, ..last }, 60, false);
        assert!(wrong.iter().all(|id| all.contains(id)), "{all:?}");
        assert!(!warnings.iter().any(|why| why.contains("dated before")), "{warnings:?}");
        assert_eq!(world.segments(), (420..430).collect::<Vec<_>>());
    }

    #[test]
    fn a_copy_of_a_snapshot_by_a_clock_that_was_behind_is_told_by_the_others() {
        let world = World::new();
        let right = [world.back_up(0), world.back_up(1)];
        let wrong = world.back_up_at(2, world.day(-2200));
        let last = world.back_up(3);
        let copied = |manifest: &Manifest, day: i64, repository: &str| {
            let from = crate::repo::CopiedFrom {
                repository: repository.into(),
                snapshot: manifest.id,
                copied_at: world.day(day),
                fingerprint_key: String::new(),
                stands_for: None,
                owed: vec![],
                beside: vec![],
                proven_at: None,
                replaces: None,
                replaces_signature: None,
                unproven: None,
            };
            Manifest { id: SnapshotId::generate(world.day(day)), copied_from: Some(from), ..manifest.clone() }
        };
        let told = |all: &[Manifest]| behind(&all.iter().collect::<Vec<_>>(), world.day(9));
        assert_eq!(told(&[right[0].clone(), right[1].clone(), wrong.clone(), last.clone()]), BTreeSet::from([wrong.id]));
        // Days later, in any order.
        let mut copies = vec![copied(&last, 6, "a"), copied(&right[0], 7, "a"), copied(&wrong, 8, "a")];
        assert_eq!(told(&copies), BTreeSet::from([copies[2].id]));
        assert_eq!(told(&[copied(&last, 6, "b"), copies[2].clone()]), BTreeSet::new(), "places of other repositories say nothing");
        // What was brought back is dated as it is, and one of the future makes nobody late.
        copies[2].copied_from.as_mut().unwrap().replaces = Some(wrong.id);
        let future = world.back_up(4000);
        assert_eq!(told(&[copies[0].clone(), copies[2].clone(), copied(&future, 9, "a"), world.back_up(5)]), BTreeSet::new());
    }

    /// No other rule reaches as far as the window: what it is to begin with stays until it is as old, and so does the log.
    #[test]
    fn a_window_grows_to_its_length_where_other_rules_keep_less() {
        let world = World::new();
        let rules = Rules { last: 2, log: Some(Duration::from_hours(24 * 4)), ..Rules::default() };
        for day in 0..30 {
            world.back_up(day);
            let done = world.prune("maintainer", &rules, day, false).unwrap();
            let first = u64::try_from((day - 4).max(0)).unwrap() * 10;
            let oldest = u64::try_from((day - 9).max(0)).unwrap() * 10;
            let segments = world.segments();
            assert!(segments[0] <= first && segments[0] >= oldest, "day {day}: {segments:?}: {done:?}");
            assert!(world.open("reader").manifests(None).unwrap().len() <= 4);
        }
        // A source that the plan gives up: its last snapshot and its log stay until all of it is older than the window.
        let mut world = world;
        world.logs.clear();
        for day in 30..40 {
            let mut writer = world.open("reader").begin(&crm(), world.day(day), &Cancel::default()).unwrap();
            let tree = writer.tree(&Name::new("new").unwrap(), "files", Order::Tree).unwrap();
            let finish = Finish { consistency: serde_json::json!({}), fingerprints: vec![], problems: vec![] };
            let record = tree.finish(serde_json::to_value(finish).unwrap()).unwrap();
            writer.commit(vec![record], world.day(day), vec![], &Silent).unwrap();
            world.prune("maintainer", &rules, day, false).unwrap();
            assert_eq!(world.segments().is_empty(), day >= 34, "day {day}: {:?}", world.segments());
        }
    }

    #[test]
    fn log_that_the_store_refuses_to_remove_is_told_and_counted() {
        use crate::store::Verb;
        use crate::store::faults::{Effect, Faults, Rule};
        let mut world = World::new();
        (0..3).for_each(|day| drop(world.back_up(day)));
        let (faults, sound) = (Faults::new(), world.store.clone());
        world.store = Store::with_faults(sound, faults.clone());
        faults.add(Rule::on(Verb::Delete).below("logs/").from(6).then(Effect::Fail(Kind::Failed)));
        let rules = Rules { last: 1, ..Rules::default() };
        let done = world.prune("maintainer", &rules, 3, false).unwrap();
        let left = world.segments().len() as u64;
        let log = &done.logs[0];
        assert_eq!((log.pieces, log.refused, left), (5, 15, 25), "{done:?}");
        assert!(
            done.collection.refused >= 15 && done.warnings.iter().any(|why| why.contains("log of crm crm: the store refused")),
            "{done:?}"
        );
        faults.clear();
        let done = world.prune("maintainer", &rules, 3, false).unwrap();
        assert_eq!((done.logs[0].pieces, done.logs[0].refused, done.warnings.len(), world.segments().len()), (15, 0, 0, 10), "{done:?}");
    }

    /// A source that has another name since an upgrade, say: its log goes with its last snapshot, or as soon as the store lets it.
    #[test]
    fn log_of_a_source_that_is_gone_goes_with_its_last_snapshot() {
        use crate::store::Verb;
        use crate::store::faults::{Effect, Faults, Rule};
        let rules = Rules { last: 1, ..Rules::default() };
        for refused in [false, true] {
            let mut world = World::new();
            (0..2).for_each(|day| drop(world.back_up(day)));
            let faults = Faults::new();
            world.store = Store::with_faults(world.store.clone(), faults.clone());
            let other = || {
                let mut writer = world.open("reader").begin(&crm(), world.day(2), &Cancel::default()).unwrap();
                let tree = writer.tree(&Name::new("new").unwrap(), "files", Order::Tree).unwrap();
                let finish = Finish { consistency: serde_json::json!({}), fingerprints: vec![], problems: vec![] };
                let record = tree.finish(serde_json::to_value(finish).unwrap()).unwrap();
                writer.commit(vec![record], world.day(2), vec![], &Silent).unwrap();
            };
            other();
            // The plan has it: a stream may have stored log before its first backup.
            let done = world.prune("maintainer", &rules, 3, false).unwrap();
            assert_eq!((done.snapshots_removed, done.logs[0].pieces, world.segments().len()), (2, 0, 20), "{done:?}");
            assert_eq!(world.prune("maintainer", &rules, 3, false).unwrap().logs, vec![]);
            world.logs.clear();
            if refused {
                faults.add(Rule::on(Verb::Delete).below("logs/").always().then(Effect::Fail(Kind::Failed)));
                let done = world.prune("maintainer", &rules, 3, false).unwrap();
                assert_eq!((done.logs[0].pieces, done.logs[0].refused), (0, 20), "{done:?}");
                faults.clear();
            }
            for dry_run in [true, false] {
                let done = world.prune("maintainer", &rules, 3, dry_run).unwrap();
                assert_eq!((done.logs[0].pieces, done.logs[0].before.as_deref()), (20, None), "{done:?}");
                assert!(done.logs[0].reason.contains("all of it goes"), "{done:?}");
            }
            assert_eq!(world.segments(), Vec::<u64>::new());
        }
    }

    #[test]
    fn a_writer_prunes_nothing_and_without_rules_nobody_does() {
        let world = World::new();
        (0..3).for_each(|day| drop(world.back_up(day)));
        let before = world.runtime.block_on(world.store.list("")).unwrap();
        assert_eq!(world.prune("writer", &Rules { last: 1, ..Rules::default() }, 9, false).unwrap_err().kind(), Kind::WrongKey);
        let done = world.prune("maintainer", &Rules::default(), 9999, false).unwrap();
        assert_eq!((done.snapshots_removed, done.logs[0].pieces, done.collection.packs_deleted), (0, 0, 0));
        assert_eq!(world.runtime.block_on(world.store.list("")).unwrap(), before);
    }

    #[test]
    fn what_a_drill_proved_stays_until_a_newer_one_is_proven() {
        let world = World::new();
        let snapshots: Vec<Manifest> = (0..4).map(|day| world.back_up(day)).collect();
        let prove = |manifest: &Manifest, day: i64| {
            let time = world.day(day);
            let record = ReportRecord {
                id: ReportId::generate(time),
                kind: ReportKind::Drill,
                time,
                plan: Some("crm".into()),
                snapshots: vec![manifest.id],
                passed: true,
                document: serde_json::json!({}),
            };
            world.open("reader").put_report(&record).unwrap();
        };
        let rules = Rules { last: 1, ..Rules::default() };
        let left = || world.open("reader").manifests(None).unwrap().iter().map(|m| m.id).collect::<Vec<_>>();
        prove(&snapshots[1], 5);
        world.prune("maintainer", &rules, 6, false).unwrap();
        assert_eq!(left(), [snapshots[1].id, snapshots[3].id]);
        prove(&snapshots[3], 7);
        world.prune("maintainer", &rules, 8, false).unwrap();
        assert_eq!(left(), [snapshots[3].id]);
    }

    /// A report of each day, the store's clock on its side: what is old and proves nothing that is there goes, and what a store refuses is told.
    #[test]
    fn reports_go_after_thirteen_months_unless_something_rests_on_them() {
        use crate::store::Verb;
        use crate::store::faults::{Effect, Faults, Rule};
        let mut world = World::new();
        let now = (Utc::now() - world.start).num_days();
        let snapshots: Vec<Manifest> = (0..2).map(|day| world.back_up(day)).collect();
        let put_in = |world: &World, kind: ReportKind, plan: &str, day: i64, of: &[SnapshotId], passed: bool| {
            let time = world.day(now - day);
            let (id, snapshots) = (ReportId::generate(time), of.to_vec());
            let document = match kind {
                ReportKind::Drill => serde_json::json!({}),
                ReportKind::Verify => serde_json::json!({
                    "schema": "lifeboat.verify/1", "id": id, "plan": plan, "time": time, "depth": "data", "percent": 100, "run": 1000 - day, "findings": [],
                    "bytes_checked": 1, "objects_checked": 1, "snapshots_sound": of, "skipped": [], "duration_ms": 1, "warnings": [],
                }),
            };
            let record = ReportRecord { id, kind, time, plan: Some(plan.into()), snapshots, passed, document };
            world.open("reader").put_report(&record).unwrap();
            id
        };
        let put = |kind, plan, day, of: &[SnapshotId], passed| put_in(&world, kind, plan, day, of, passed);
        let gone = SnapshotId::generate(world.start);
        let proof = put(ReportKind::Drill, "crm", 700, &[snapshots[0].id], true);
        let mut left = vec![proof];
        let mut over = Vec::new();
        for day in [900, 800, 700, 600, 500, 401] {
            over.push(put(ReportKind::Verify, "crm", day, &[snapshots[0].id], true));
            // Of a plan that is not pruned.
            left.push(put(ReportKind::Drill, "other", day, &[gone], true));
        }
        over.extend((500..505).map(|day| put(ReportKind::Drill, "crm", day, &[gone], true)));
        left.extend((480..490).map(|day| put(ReportKind::Drill, "crm", day, &[gone], true)));
        left.push(put(ReportKind::Drill, "crm", 600, &[gone], false));
        left.push(put(ReportKind::Verify, "crm", 399, &[snapshots[0].id], true));
        let there = |world: &World| {
            let listed = world.runtime.block_on(world.store.list("reports/")).unwrap();
            listed.into_iter().map(|object| object.key["reports/".len()..].parse().unwrap()).collect::<BTreeSet<ReportId>>()
        };
        let all: BTreeSet<ReportId> = left.iter().chain(&over).copied().collect();
        let keep = Rules { last: 9, ..Rules::default() };
        let all_of = |report: &PruneReport| (report.reports.kept, report.reports.removed, report.reports.refused);
        assert_eq!(all_of(&world.prune("maintainer", &Rules::default(), now, false).unwrap()).1, 0, "without rules nothing goes");
        let planned = world.prune("maintainer", &keep, now, true).unwrap();
        assert_eq!(all_of(&planned), (left.len() as u64, over.len() as u64, 0));
        assert_eq!(there(&world), all);
        // By a clock that is ten years ahead all of them would be old.
        let ahead = world.prune("maintainer", &keep, now + 3650, false).unwrap_err();
        assert!(ahead.to_string().contains("clock"), "{ahead:?}");
        let faults = Faults::new();
        let sound = std::mem::replace(&mut world.store, Store::in_memory());
        world.store = Store::with_faults(sound, faults.clone());
        faults.add(Rule::on(Verb::Delete).below("reports/").from(3).then(Effect::Fail(Kind::Failed)));
        let done = world.prune("maintainer", &keep, now, false).unwrap();
        assert_eq!(all_of(&done), (all.len() as u64 - 2, 2, over.len() as u64 - 2), "{done:?}");
        assert!(done.warnings.iter().any(|why| why.contains("refused to delete")) && done.exit().is_none(), "{done:?}");
        faults.clear();
        let done = world.prune("maintainer", &keep, now, false).unwrap();
        assert_eq!(all_of(&done), (left.len() as u64, over.len() as u64 - 2, 0));
        assert_eq!(there(&world), left.iter().copied().collect());
        assert_eq!(world.prune("maintainer", &keep, now, false).unwrap().reports.removed, 0);
        // What cannot be read may be what takes a proof back.
        put_in(&world, ReportKind::Verify, "crm", 950, &[], true);
        let first = format!("reports/{}", left[0]);
        world.runtime.block_on(crate::store::faults::flip_byte(&world.store, &first, 80)).unwrap();
        let done = world.prune("maintainer", &keep, now, false).unwrap();
        assert!(done.reports.removed == 0 && !done.blocked.is_empty(), "{done:?}");
    }

    #[test]
    fn a_hold_keeps_a_snapshot_until_its_time_is_over() {
        let world = World::new();
        let snapshots: Vec<Manifest> = (0..2).map(|day| world.back_up(day)).collect();
        let rules = Rules { last: 1, ..Rules::default() };
        let repository = world.open("reader");
        assert_eq!(hold(&repository, snapshots[0].id, Some(world.day(1)), "x", "t", world.day(2)).unwrap_err().kind(), Kind::Usage);
        hold(&repository, snapshots[0].id, Some(world.day(10)), "audit", "t", world.day(2)).unwrap();
        assert_eq!(world.prune("reader", &rules, 9, false).unwrap().snapshots_removed, 0);
        let done = world.prune("reader", &rules, 10, false).unwrap();
        assert_eq!(done.snapshots_removed, 1);
        assert!(done.warnings[0].contains("hold"), "{done:?}");
        let late = hold(&world.open("reader"), snapshots[0].id, None, "too late", "t", world.day(11)).unwrap_err();
        assert_eq!(late.kind(), Kind::NoRecoveryPoint);
    }
}

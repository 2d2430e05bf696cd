//! How each plan stands: what can be restored, how old it is, when that was last proven, and what is wrong. Pure, but for
//! [`gather`], which asks the journal and the repositories.

mod copies;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

pub use copies::CopyStatus;

use crate::daemon::job::{expression, rules, schedules};
use crate::daemon::journal::{ErrorRecord, Job, Journal, Run, State};
use crate::daemon::scheduler::{self, PastSlot, Situation, Slots};
use crate::error::{Kind, Result};
use crate::id::{Name, SnapshotId};
use crate::ops::drill::DrillReport;
use crate::ops::log::canary::{self, CanaryStatus};
use crate::ops::log::reach::{Reach, reach};
use crate::ops::log::stream::{self, LogStatus};
use crate::ops::resolve::{self, Surroundings};
use crate::ops::{Missing, backup, damage, damaged_reports_warning, damaged_warning, explain, select};
use crate::plan::{Plan, Plans, Schedule, Source};
use crate::repo::{Manifest, ReportKind, ReportRecord};

/// `lifeboat.status/1`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub schema: String,
    /// The moment that all of this is of.
    pub time: DateTime<Utc>,
    /// Whether a daemon runs on this state folder now.
    pub daemon: bool,
    pub plans: Vec<PlanStatus>,
}

impl Status {
    /// How `status --check` ends: `None` (exit 0) only when no plan has a problem. The most telling wins: 20 (it is in doubt whether a
    /// recovery works), 22 (the plan's promises are not kept), 1, 3 (the newest snapshot is incomplete and nothing else is wrong).
    #[must_use]
    pub fn check(&self) -> Option<Kind> {
        let order = [Kind::Damaged, Kind::ObjectiveMissed, Kind::Failed, Kind::Incomplete];
        let problems = || self.plans.iter().flat_map(|plan| &plan.problems);
        order.into_iter().find(|kind| problems().any(|problem| problem.exit() == *kind))
    }
}

/// One plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanStatus {
    pub name: String,
    /// End of the last backup that committed a snapshot without a gap, from the repository or the journal, whichever is later.
    pub last_success: Option<DateTime<Utc>>,
    /// The newest snapshot in the repository, and the moment its content is of.
    pub snapshot: Option<String>,
    pub recovery_point: Option<DateTime<Utc>>,
    /// The newest snapshot that lacks no content and is not known to be damaged, and the moment its content is of.
    #[serde(default)]
    pub whole_snapshot: Option<String>,
    #[serde(default)]
    pub whole_point: Option<DateTime<Utc>>,
    pub snapshots: u64,
    /// What a disaster now would lose: the age of `whole_point`. `None`: there is none (`recovery_point` tells whether there is any snapshot),
    /// or a clock is wrong (`clock`) and it is not known.
    pub data_loss_ms: Option<u64>,
    pub data_loss_objective_ms: Option<u64>,
    /// As measured by the last drill that got so far.
    pub recovery_time_ms: Option<u64>,
    pub recovery_time_objective_ms: Option<u64>,
    /// Of the newest snapshot that is proven, the one that `restore --latest-proven` takes: when a drill last passed on it, and the moment
    /// that it is of.
    pub proven_at: Option<DateTime<Utc>>,
    pub proven_point: Option<DateTime<Utc>>,
    /// The nearest run of any schedule of the plan.
    pub next_run: Option<DateTime<Utc>>,
    pub next_job: Option<String>,
    /// Runs that go on now.
    pub running: Vec<String>,
    /// Whether the repository could be asked; if not, what is above is from the journal only.
    pub repository_reachable: bool,
    /// Continuous logs, as their streams on this host say.
    #[serde(default)]
    pub logs: Vec<LogStatus>,
    /// In further repositories.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub copies: Vec<CopyStatus>,
    pub problems: Vec<Problem>,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// `never-backed-up`, `overdue`, `failed`, `incomplete`, `interrupted`, `missed`, `never-proven`, `drill-failed`, `damaged`, `clock`,
    /// `data-loss-objective`, `recovery-time-objective`, `repository-unreachable`, `wrong-key`, `log-not-streamed`, `log-slot`, `log-gap`, `canary-not-written`, `copy-behind`, `copy-unreachable`.
    pub kind: String,
    /// The job that a run did (`backup`, `drill`, `verify`), where the problem is about one.
    pub job: Option<String>,
    pub message: String,
}

impl Problem {
    /// What it alone makes of `status --check`.
    fn exit(&self) -> Kind {
        let proving = self.job.as_deref().is_some_and(|job| job == Job::Drill.word() || job == Job::Verify.word());
        match self.kind.as_str() {
            "damaged" | "drill-failed" | "never-proven" => Kind::Damaged,
            "failed" | "incomplete" | "interrupted" if proving => Kind::Damaged,
            "never-backed-up"
            | "overdue"
            | "missed"
            | "data-loss-objective"
            | "recovery-time-objective"
            | "log-not-streamed"
            | "log-slot"
            | "log-gap"
            | "canary-not-written"
            | "copy-behind" => Kind::ObjectiveMissed,
            "incomplete" => Kind::Incomplete,
            _ => Kind::Failed,
        }
    }
}

/// What is known of a plan.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Of each job: the newest closed run, whatever its result.
    pub last: Vec<Run>,
    /// The newest backup that succeeded or was incomplete.
    pub last_backup: Option<Run>,
    /// The newest backup that succeeded.
    pub last_whole_backup: Option<Run>,
    /// The newest drill that failed or was incomplete, unless one succeeded since.
    pub failed_drill: Option<Run>,
    pub running: Vec<Run>,
    /// The next step of each schedule.
    pub next: Vec<(Job, DateTime<Utc>)>,
    /// Slots that are due since this moment and did not start.
    pub overdue: Vec<(Job, DateTime<Utc>)>,
    /// `Err`: why the repository could not be asked.
    pub repository: Option<std::result::Result<Stored, Unasked>>,
}

/// Why a repository could not be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unasked {
    pub kind: Kind,
    pub message: String,
}

/// What the repository knows of a plan.
#[derive(Debug, Clone, Default)]
pub struct Stored {
    /// Of the plan, oldest first.
    pub manifests: Vec<Manifest>,
    /// Of the whole repository, oldest first: a verification is of all plans, whichever asked for it.
    pub reports: Vec<ReportRecord>,
    /// Every snapshot of the repository; `None`: not all could be read.
    pub existing: Option<BTreeSet<SnapshotId>>,
    /// Manifests and reports that cannot be read; sentences. All else here is of those that can.
    pub damaged: Vec<String>,
    /// How far the stored log leads from the newest whole snapshot, by source; only of sources whose log is to be kept.
    pub reaches: BTreeMap<Name, Reach>,
}

/// A schedule's next run is this late before it is called overdue: jitter and a busy plan are not yet a problem.
const OVERDUE: chrono::TimeDelta = chrono::TimeDelta::minutes(15);

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn problem(kind: &str, message: impl Into<String>) -> Problem {
    Problem { kind: kind.to_owned(), job: None, message: message.into() }
}

fn problem_of(kind: &str, job: Job, message: impl Into<String>) -> Problem {
    Problem { job: Some(job.word().to_owned()), ..problem(kind, message) }
}

/// Judges one plan.
#[must_use]
pub fn assess(plan: &Plan, facts: &Facts, now: DateTime<Utc>) -> PlanStatus {
    let mut problems = Vec::new();
    let stored = match &facts.repository {
        Some(Ok(stored)) => Some(stored),
        Some(Err(why)) => {
            problems.push(match why.kind {
                Kind::WrongKey => problem("wrong-key", format!("the passphrase does not open the repository: {}", why.message)),
                _ => problem("repository-unreachable", format!("the repository could not be asked: {}", why.message)),
            });
            None
        }
        None => None,
    };
    let newest = stored.and_then(|stored| select::latest(&stored.manifests));
    let journal_backup = facts.last_backup.as_ref();
    let recovery_point = if stored.is_some() { newest.map(|manifest| manifest.time) } else { journal_backup.map(|run| run.started) };
    let whole_run = facts.last_whole_backup.as_ref();
    let without_gap = stored.and_then(|stored| stored.manifests.iter().filter(|m| gaps(plan, m).is_empty()).map(|m| m.time).max());
    let last_success = without_gap.max(whole_run.and_then(|run| run.ended));
    let whole = stored.and_then(|stored| newest_whole(plan, stored));
    let whole_point = if stored.is_some() { whole.map(|manifest| manifest.time) } else { whole_run.map(|run| run.started) };
    let data_loss_ms = whole_point.and_then(|point| select::age_ms(point, now));
    let drills = stored.map(|stored| drills(plan, stored)).unwrap_or_default();
    let recovery_time_ms = drills.iter().rev().find_map(|(_, drill)| drill.as_ref()?.recovery_time_ms);
    let proven = stored.and_then(|stored| select::latest_proven(&stored.manifests, &stored.reports));

    if recovery_point.is_none() && stored.is_some() {
        problems.push(problem("never-backed-up", "there is no snapshot: nothing can be restored"));
    }
    problems.extend(newest.and_then(|newest| incomplete(plan, newest)));
    problems.extend(clock(stored.map_or(&[], |stored| &stored.manifests), recovery_point, now));
    problems.extend(facts.overdue.iter().map(|(job, due)| overdue(*job, *due, &facts.running)));
    // The newest snapshot says itself what it lacks.
    let told = newest.map(|newest| newest.id.to_string());
    problems.extend(facts.last.iter().filter_map(|run| of_run(run, told.as_deref())));
    problems.extend(objectives(plan, data_loss_ms, recovery_time_ms));
    if let (Some(_), None, Some(limit)) = (recovery_point, whole_point, plan.objectives.data_loss) {
        let limit = limit.as_secs();
        problems.push(problem(
            "data-loss-objective",
            format!("no snapshot is whole: a disaster now would lose what each of them lacks, {limit} s of work are allowed"),
        ));
    }
    problems.extend(drill_problems(facts, stored, &drills));
    if stored.is_some() && proven.is_none() && recovery_point.is_some() {
        let was = drills.iter().any(|(record, _)| record.passed);
        problems.push(problem(
            "never-proven",
            if was {
                "no snapshot that is there is proven: what drills proved is gone, or a later drill or verification took it back"
            } else {
                "no drill has ever passed: recovery is not proven"
            },
        ));
    }
    problems.extend(stored.and_then(standing_damage));
    problems.extend(stored.into_iter().flat_map(|stored| &stored.damaged).map(|lost| problem("damaged", lost.clone())));
    let next = facts.next.iter().min_by_key(|(_, at)| *at);
    PlanStatus {
        name: plan.name.to_string(),
        last_success,
        snapshot: newest
            .map(|manifest| manifest.id.to_string())
            .or_else(|| journal_backup.and_then(|run| run.snapshot.clone()).filter(|_| stored.is_none())),
        recovery_point,
        whole_snapshot: whole
            .map(|manifest| manifest.id.to_string())
            .or_else(|| whole_run.and_then(|run| run.snapshot.clone()).filter(|_| stored.is_none())),
        whole_point,
        snapshots: stored.map_or(0, |stored| u64::try_from(stored.manifests.len()).unwrap_or(u64::MAX)),
        data_loss_ms,
        data_loss_objective_ms: plan.objectives.data_loss.map(ms),
        recovery_time_ms,
        recovery_time_objective_ms: plan.objectives.recovery_time.map(ms),
        proven_at: proven.map(|(_, at)| at),
        proven_point: proven.map(|(manifest, _)| manifest.time),
        next_run: next.map(|(_, at)| *at),
        next_job: next.map(|(job, _)| job.word().to_owned()),
        running: facts.running.iter().map(|run| run.id.to_string()).collect(),
        repository_reachable: stored.is_some(),
        logs: Vec::new(),
        copies: Vec::new(),
        problems,
    }
}

/// The drills of the plan, oldest first; the document is `None` where it is of a later version than this program can read.
fn drills<'a>(plan: &Plan, stored: &'a Stored) -> Vec<(&'a ReportRecord, Option<DrillReport>)> {
    let own = |record: &&ReportRecord| record.kind == ReportKind::Drill && record.plan.as_deref() == Some(plan.name.as_str());
    stored.reports.iter().filter(own).map(|record| (record, serde_json::from_value(record.document.clone()).ok())).collect()
}

/// Sources of the plan that a snapshot has nothing of.
fn without<'a>(plan: &'a Plan, manifest: &'a Manifest) -> impl Iterator<Item = &'a Name> {
    plan.sources.iter().map(|source| &source.name).filter(|name| manifest.sources.iter().all(|record| record.name != **name))
}

/// What a snapshot lacks, as its own manifest tells: known on every machine, without the journal of the one that made it.
fn gaps(plan: &Plan, manifest: &Manifest) -> Vec<String> {
    let say = |missing: Missing| format!("{}: {} {} ({})", missing.source, missing.object, missing.kind, missing.message);
    let absent = without(plan, manifest).map(|name| format!("all of source {name}"));
    absent.chain(backup::missing(&manifest.sources).into_iter().map(say)).collect()
}

/// The newest that lacks no content and is not known to be damaged. A source that the plan got after the last whole one counts: there is no
/// snapshot that has it.
fn newest_whole<'a>(plan: &Plan, stored: &'a Stored) -> Option<&'a Manifest> {
    let standing = damage::standing(&stored.reports, stored.existing.as_ref());
    let whole = |manifest: &&Manifest| {
        !backup::lacks_content(&manifest.sources)
            && without(plan, manifest).next().is_none()
            && damage::of_snapshot(&stored.reports, &standing, manifest.id).is_none()
    };
    let newest = select::latest(&stored.manifests).filter(whole);
    newest.or_else(|| stored.manifests.iter().filter(whole).max_by_key(|manifest| (manifest.time, manifest.id)))
}

fn incomplete(plan: &Plan, newest: &Manifest) -> Option<Problem> {
    const NAMED: usize = 3;
    let mut lacks = gaps(plan, newest);
    let more = lacks.len().saturating_sub(NAMED);
    lacks.truncate(NAMED);
    let others = if more == 0 { String::new() } else { format!("; and {more} more") };
    let message = format!("the newest snapshot ({}) is incomplete, it lacks: {}{others}", newest.id, lacks.join("; "));
    (!lacks.is_empty()).then(|| problem_of("incomplete", Job::Backup, message))
}

/// A snapshot of a moment that has not been yet.
fn clock(manifests: &[Manifest], recovery_point: Option<DateTime<Utc>>, now: DateTime<Utc>) -> Option<Problem> {
    let latest = manifests.iter().max_by_key(|manifest| manifest.time);
    let moment = latest.map(|manifest| manifest.time).max(recovery_point).filter(|moment| select::age_ms(*moment, now).is_none())?;
    let whose =
        latest.map_or_else(|| "this host's clock was".to_owned(), |m| format!("this host's clock, or that of {} that made it,", m.host));
    let loss = recovery_point.is_some_and(|point| select::age_ms(point, now).is_none());
    let unknown = if loss { "; what would be lost now is not known" } else { "" };
    Some(problem(
        "clock",
        format!("a snapshot is of {}, and now is {}: {whose} wrong{unknown}", select::moment(moment), select::moment(now)),
    ))
}

/// A run in the way does not excuse what did not start: it may hang.
fn overdue(job: Job, due: DateTime<Utc>, running: &[Run]) -> Problem {
    let in_the_way = running.iter().find(|run| run.job == job).or_else(|| running.first());
    let why = in_the_way.map_or_else(String::new, |run| {
        format!("; a {} run has been going since {} (run {})", run.job.word(), select::moment(run.started), run.id)
    });
    problem_of("overdue", job, format!("a {} was due at {} and did not start{why}", job.word(), due.format("%Y-%m-%d %H:%M:%S UTC")))
}

fn why(run: &Run) -> String {
    run.error.as_ref().map(ErrorRecord::line).or_else(|| run.story.clone()).unwrap_or_default()
}

/// What the newest run of a job says. `told`: a snapshot whose gaps are told already.
fn of_run(run: &Run, told: Option<&str>) -> Option<Problem> {
    let (job, id, why) = (run.job.word(), run.id, why(run));
    match run.state {
        // Told by the drill's report, or where that is not to be had as a drill without one.
        State::Failed | State::Incomplete if run.job == Job::Drill && run.report.is_some() => None,
        State::Failed if run.job == Job::Drill => {
            Some(problem_of("failed", run.job, format!("the last drill could not be done: {why} (run {id})")))
        }
        State::Failed => Some(problem_of("failed", run.job, format!("the last {job} failed: {why} (run {id})"))),
        State::Incomplete if told.is_some() && run.snapshot.as_deref() == told => None,
        State::Incomplete => Some(problem_of("incomplete", run.job, format!("the last {job} was incomplete: {why} (run {id})"))),
        State::Interrupted => Some(problem_of("interrupted", run.job, format!("the last {job} was interrupted: {why} (run {id})"))),
        State::Missed => Some(problem_of("missed", run.job, format!("the last {job} was not run: {why}"))),
        State::Running | State::Succeeded => None,
    }
}

fn objectives(plan: &Plan, data_loss_ms: Option<u64>, recovery_time_ms: Option<u64>) -> Vec<Problem> {
    let mut problems = Vec::new();
    if let (Some(loss), Some(limit)) = (data_loss_ms, plan.objectives.data_loss.map(ms))
        && loss > limit
    {
        problems.push(problem(
            "data-loss-objective",
            format!("a disaster now would lose {} s of work, {} s are allowed", loss / 1000, limit / 1000),
        ));
    }
    if let (Some(time), Some(limit)) = (recovery_time_ms, plan.objectives.recovery_time.map(ms))
        && time > limit
    {
        problems.push(problem(
            "recovery-time-objective",
            format!("the last measured recovery took {} s, {} s are allowed", time / 1000, limit / 1000),
        ));
    }
    problems
}

/// The last stored drill, and a later one of this host whose report is not in the repository: nothing but the journal knows of it.
fn drill_problems(facts: &Facts, stored: Option<&Stored>, drills: &[(&ReportRecord, Option<DrillReport>)]) -> Vec<Problem> {
    let mut problems = Vec::new();
    if let Some((record, drill)) = drills.last().filter(|(record, _)| !record.passed) {
        let (verdict, why) = match drill {
            Some(drill) => (drill.verdict.word(), drill.reasons.first().cloned().unwrap_or_default()),
            None => ("not passed", "its report is of a later version of the program".to_owned()),
        };
        problems.push(problem_of("drill-failed", Job::Drill, format!("the last drill ended {verdict}: {why} (report {})", record.id)));
    }
    if let Some(run) = &facts.failed_drill
        && let Some(report) = &run.report
        && drills.iter().all(|(record, _)| record.id.to_string() != *report && !(record.passed && record.time > run.started))
    {
        let where_ = if stored.is_some() {
            "its report is not in the repository, or cannot be read there"
        } else {
            "its report could not be looked for"
        };
        problems.push(problem_of(
            "drill-failed",
            Job::Drill,
            format!("a drill here ended {} and {where_}: {} (run {})", run.state.word(), why(run), run.id),
        ));
    }
    problems
}

fn standing_damage(stored: &Stored) -> Option<Problem> {
    let standing = damage::standing(&stored.reports, stored.existing.as_ref());
    let last = standing.iter().max_by_key(|damage| (damage.time, damage.report))?;
    let own = stored.manifests.iter().filter(|m| standing.iter().any(|damage| damage.finding.snapshots.contains(&m.id))).count();
    let message = format!(
        "verification found damage in {} that none as deep has found sound since; harmed snapshots of this plan: {own}; {} is {} (report {} of {})",
        crate::ops::counted(standing.len(), "place"),
        last.finding.object,
        last.finding.kind,
        last.report,
        select::moment(last.time)
    );
    Some(problem_of("damaged", Job::Verify, message))
}

/// A stream that says nothing for so long does not run.
const LOG_SILENCE: chrono::TimeDelta = chrono::TimeDelta::minutes(1);

/// What is wrong with what is stored of a log. `None`: there is no whole snapshot that it could go on from. Pure.
fn stored_log_problems(source: &Name, reach: Option<&Reach>) -> Vec<Problem> {
    match reach {
        None | Some(Reach { has_log: true, behind: None, .. }) => Vec::new(),
        Some(Reach { has_log: false, .. }) => {
            vec![problem("log-not-streamed", format!("nothing of the log of source {source} is stored: only snapshots can be recovered"))]
        }
        Some(Reach { behind: Some(behind), end, point, .. }) if end == point => vec![problem(
            "log-gap",
            format!(
                "the log of source {source} does not go on from the newest whole snapshot, which ends at {point}: log from {behind} on is there and cannot be used before the next backup"
            ),
        )],
        Some(Reach { behind: Some(behind), end, .. }) => vec![problem(
            "log-gap",
            format!("the log of source {source} has a hole from {end} to {behind}: nothing behind can be recovered before the next backup"),
        )],
    }
}

/// What is wrong with a stream. A gap is told until a snapshot is whole that was made after it. Pure.
fn stream_problems(
    source: &str,
    log: Result<Option<LogStatus>>,
    whole_point: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
) -> (Option<LogStatus>, Vec<Problem>) {
    let log = match log {
        Ok(Some(log)) => log,
        Ok(None) => {
            let message = format!("the log of source {source} was never streamed here: `lifeboat serve` does it");
            return (None, vec![problem("log-not-streamed", message)]);
        }
        Err(error) => {
            return (None, vec![problem("log-not-streamed", format!("how the log of source {source} stands is not known: {error:?}"))]);
        }
    };
    let mut problems = Vec::new();
    let until = log.server_clock.or(log.newest_commit).map_or_else(|| "no known moment".to_owned(), select::moment);
    if now - log.time > LOG_SILENCE {
        let last = select::moment(log.time);
        problems.push(problem(
            "log-not-streamed",
            format!("the log of source {source} is not streamed since {last}; it is stored until {until}"),
        ));
    } else if !log.connected {
        let why = log.error.as_deref().unwrap_or("it connects");
        problems
            .push(problem("log-not-streamed", format!("the log of source {source} does not come now: {why}; it is stored until {until}")));
    }
    if let Some(state @ ("lost" | "unreserved")) = log.wal_status.as_deref() {
        problems.push(problem(
            "log-slot",
            format!("the replication slot {} of source {source} is {state}: log is about to be missing", log.slot),
        ));
    }
    let new = log.gaps.iter().filter(|gap| whole_point.is_none_or(|point| point <= gap.noticed_at)).count();
    if new > 0 {
        let what = crate::ops::counted(new, "gap");
        problems.push(problem(
            "log-gap",
            format!("the log of source {source} has {what} since the last whole snapshot: nothing behind can be recovered before the next backup"),
        ));
    }
    (Some(log), problems)
}

/// What is wrong with the writer of a canary row. Pure.
fn canary_problem(source: &str, every: Duration, noted: Result<Option<CanaryStatus>>, now: DateTime<Utc>) -> Option<Problem> {
    let why = match noted {
        Ok(None) => "it was never written here: `lifeboat serve` does it".to_owned(),
        Ok(Some(CanaryStatus { error: Some(error), .. })) => error,
        Ok(Some(noted)) if now - noted.time > canary::slack(every) + LOG_SILENCE => {
            format!("its writer has said nothing since {}: is `lifeboat serve` running?", select::moment(noted.time))
        }
        Ok(Some(_)) => return None,
        Err(error) => explain(&error),
    };
    Some(problem("canary-not-written", format!("the canary row of source {source} is not written, drills cannot measure data loss: {why}")))
}

/// The moment up to which everything is stored, where the logs of all sources go on without a gap from the newest whole snapshot.
fn covered(plan: &Plan, stored: &Stored, status: &PlanStatus) -> Option<DateTime<Utc>> {
    let whole = status.whole_point?;
    let moment = |source: &Arc<Source>| {
        let reach = stored.reaches.get(&source.name).filter(|reach| reach.behind.is_none())?;
        // A stream knows more than what it stored last: that nothing has been written since.
        let log = status.logs.iter().find(|log| log.source == source.name.as_str());
        let joined = log.filter(|log| reach.timeline == log.timeline && reach.end >= log.durable_to);
        joined.and_then(|log| log.server_clock).max(reach.moment)
    };
    let moments: Option<Vec<DateTime<Utc>>> = plan.sources.iter().map(moment).collect();
    moments?.into_iter().min().filter(|covered| *covered > whole)
}

/// Asks the journal (`None`: nothing was ever run here) and the repositories, and judges every plan.
///
/// # Errors
/// When the journal cannot be read. A repository that cannot be asked is a problem of its plans.
pub fn gather(plans: &Plans, journal: Option<&Journal>, surroundings: &Surroundings, daemon: bool) -> Result<Status> {
    let now = surroundings.clock.now();
    let broken = journal.map_or_else(|| Ok(Vec::new()), Journal::broken)?;
    let mut statuses = Vec::new();
    for plan in plans.plans.values() {
        let mut facts = journal.map_or_else(|| Ok(Facts::default()), |journal| journal_facts(plan, journal, &broken, now))?;
        if journal.is_none() {
            facts.next = schedules(plan).into_iter().filter_map(|(job, schedule)| Some((job, schedule.next_after(now)?))).collect();
        }
        facts.repository = Some(stored(plan, surroundings).map_err(|error| Unasked { kind: error.kind(), message: format!("{error:?}") }));
        let mut status = assess(plan, &facts, now);
        for run in broken.iter().filter(|run| run.plan == plan.name) {
            status.problems.push(problem_of(
                "interrupted",
                run.job,
                format!("the process of run {} ({}) is gone; the next run settles it", run.id, run.job.word()),
            ));
        }
        for source in plan.sources.iter().filter(|source| source.kind.streams_log()) {
            let work = surroundings.state.join("work").join(plan.name.as_str());
            let (log, problems) = stream_problems(source.name.as_str(), stream::status(&work, &source.name), status.whole_point, now);
            status.logs.extend(log);
            status.problems.extend(problems);
        }
        let stored = facts.repository.as_ref().and_then(|stored| stored.as_ref().ok());
        let (copies, problems) = copies::gather(plan, stored.map(|stored| stored.manifests.as_slice()), surroundings);
        status.copies = copies;
        status.problems.extend(problems);
        for source in plan.sources.iter().filter(|source| stored.is_some() && source.kind.keeps_log()) {
            let problems = stored_log_problems(&source.name, stored.and_then(|stored| stored.reaches.get(&source.name)));
            // A stream tells of what it could not get itself.
            let named = format!("source {} ", source.name);
            let told = |kind: &str| status.problems.iter().any(|known| known.kind == kind && known.message.contains(&named));
            let problems: Vec<Problem> = problems.into_iter().filter(|problem| !told(&problem.kind)).collect();
            status.problems.extend(problems);
        }
        for source in &plan.sources {
            let Some(every) = source.kind.canary() else { continue };
            let work = surroundings.state.join("work").join(plan.name.as_str());
            status.problems.extend(canary_problem(source.name.as_str(), every, canary::status(&work, &source.name), now));
        }
        if let Some(covered) = stored.and_then(|stored| covered(plan, stored, &status)) {
            // More than the newest snapshot can be brought back.
            status.data_loss_ms = select::age_ms(covered, now);
            status.problems.retain(|problem| problem.kind != "data-loss-objective");
            status.problems.extend(objectives(plan, status.data_loss_ms, None));
        }
        statuses.push(status);
    }
    Ok(Status { schema: "lifeboat.status/1".to_owned(), time: now, daemon, plans: statuses })
}

fn journal_facts(plan: &Plan, journal: &Journal, broken: &[Run], now: DateTime<Utc>) -> Result<Facts> {
    let mut facts = Facts::default();
    // A command that somebody mistyped says nothing of the plan, and must not hide what the run before it said.
    let newest = |job, state| match state {
        State::Failed => journal.last_failed(&plan.name, job),
        state => journal.last_in(&plan.name, job, state),
    };
    facts.last_whole_backup = newest(Job::Backup, State::Succeeded)?;
    facts.last_backup =
        facts.last_whole_backup.iter().cloned().chain(newest(Job::Backup, State::Incomplete)?).max_by_key(|run| run.started);
    for job in Job::ALL.into_iter().filter(|job| job.is_exclusive()) {
        let mut closed = Vec::new();
        for state in [State::Succeeded, State::Incomplete, State::Failed, State::Interrupted, State::Missed] {
            closed.extend(newest(job, state)?);
        }
        facts.last.extend(closed.into_iter().max_by_key(|run| run.started));
    }
    let ended_ill = newest(Job::Drill, State::Failed)?.into_iter().chain(newest(Job::Drill, State::Incomplete)?);
    let passed = newest(Job::Drill, State::Succeeded)?;
    facts.failed_drill =
        ended_ill.max_by_key(|run| run.started).filter(|run| passed.as_ref().is_none_or(|passed| passed.started < run.started));
    for job in Job::ALL {
        facts.running.extend(newest(job, State::Running)?.filter(|run| broken.iter().all(|broken| broken.id != run.id)));
    }
    let rules = rules(plan);
    for (job, schedule) in schedules(plan) {
        let situation = Situation {
            now,
            since: followed_since(&plan.name, job, schedule, journal, &facts, now)?,
            last: journal.last_slot(&plan.name, job, now)?.as_ref().and_then(PastSlot::of_run),
            free_since: now,
        };
        facts.next.extend(scheduler::next_run(&plan.name, schedule, &rules, &situation).map(|at| (job, at)));
        let done = situation.last.map_or(situation.since, |last| last.slot.max(situation.since));
        let waits = Slots::next_after(schedule, done)
            .filter(|slot| *slot + chrono::TimeDelta::from_std(plan.jitter).unwrap_or_default() + OVERDUE < now);
        facts.overdue.extend(waits.map(|slot| (job, slot)));
    }
    Ok(facts)
}

/// Since when slots of a schedule count. Where no daemon ever followed it, the last backup is what the next one is expected after: that
/// nobody runs it at all must be seen too.
fn followed_since(
    plan: &Name,
    job: Job,
    schedule: &Schedule,
    journal: &Journal,
    facts: &Facts,
    now: DateTime<Utc>,
) -> Result<DateTime<Utc>> {
    if let Some(since) = journal.schedule_known(plan, job, &expression(schedule))? {
        return Ok(since);
    }
    Ok(facts.last_backup.as_ref().filter(|_| job == Job::Backup).map_or(now, |run| run.started))
}

fn stored(plan: &Plan, surroundings: &Surroundings) -> Result<Stored> {
    let repository = resolve::repository(&plan.repository)?.open(surroundings)?;
    let (manifests, damaged) = repository.sound_manifests(Some(&plan.name))?;
    let (reports, damaged_reports) = repository.sound_reports(None)?;
    // What other plans have matters only where something was found.
    let existing = if damage::standing(&reports, None).is_empty() {
        None
    } else {
        let (all, damaged) = repository.sound_manifests(None)?;
        damaged.is_empty().then(|| all.into_iter().map(|manifest| manifest.id).collect())
    };
    let damaged = damaged_warning(&damaged).into_iter().chain(damaged_reports_warning(&damaged_reports)).collect();
    let mut stored = Stored { manifests, reports, existing, damaged, reaches: BTreeMap::new() };
    for source in plan.sources.iter().filter(|source| source.kind.keeps_log()) {
        let Some(whole) = newest_whole(plan, &stored) else { break };
        match reach(&repository.log(&plan.name, &source.name), &source.name, whole) {
            Ok(found) => stored.reaches.extend(found.map(|reach| (source.name.clone(), reach))),
            Err(error) if error.kind() == Kind::Damaged => stored.damaged.push(format!("the log of source {}: {error:?}", source.name)),
            Err(error) => return Err(error),
        }
    }
    Ok(stored)
}

#[cfg(test)]
mod tests;

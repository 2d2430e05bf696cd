//! How each plan stands: what can be restored, how old it is, when that was last proven, and what is wrong. Pure, but for
//! [`gather`], which asks the journal and the repositories.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::daemon::journal::{ErrorRecord, Job, Journal, Run, State};
use crate::daemon::scheduler::{self, MissedSlots, PastSlot, Rules, Situation, Slots};
use crate::error::{Kind, Result};
use crate::id::Name;
use crate::ops::drill::{self, DrillReport};
use crate::ops::resolve::{self, Surroundings};
use crate::ops::verify::VerifyReport;
use crate::ops::{Verdict, damaged_reports_warning, damaged_warning};
use crate::plan::{Missed, Plan, Plans, Schedule};
use crate::repo::{Manifest, ReportKind};

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

/// One plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanStatus {
    pub name: String,
    /// End of the last successful backup, from the repository or the journal, whichever is later.
    pub last_success: Option<DateTime<Utc>>,
    /// The newest snapshot in the repository, and the moment its content is of.
    pub snapshot: Option<String>,
    pub recovery_point: Option<DateTime<Utc>>,
    pub snapshots: u64,
    /// What a disaster now would lose. `None`: nothing was ever backed up.
    pub data_loss_ms: Option<u64>,
    pub data_loss_objective_ms: Option<u64>,
    /// As measured by the last drill that got so far.
    pub recovery_time_ms: Option<u64>,
    pub recovery_time_objective_ms: Option<u64>,
    /// When a drill last passed, and the recovery point it proved.
    pub proven_at: Option<DateTime<Utc>>,
    pub proven_point: Option<DateTime<Utc>>,
    /// The nearest run of any schedule of the plan.
    pub next_run: Option<DateTime<Utc>>,
    pub next_job: Option<String>,
    /// Runs that go on now.
    pub running: Vec<String>,
    /// Whether the repository could be asked; if not, what is above is from the journal only.
    pub repository_reachable: bool,
    pub problems: Vec<Problem>,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// `never-backed-up`, `overdue`, `failed`, `incomplete`, `interrupted`, `missed`, `never-proven`, `drill-failed`, `damaged`,
    /// `data-loss-objective`, `recovery-time-objective`, `repository-unreachable`, `wrong-key`.
    pub kind: String,
    pub message: String,
}

/// What is known of a plan.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Of each job: the newest closed run, whatever its result.
    pub last: Vec<Run>,
    /// The newest backup that succeeded or was incomplete.
    pub last_backup: Option<Run>,
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
    /// Oldest first.
    pub manifests: Vec<Manifest>,
    /// Oldest first.
    pub drills: Vec<DrillReport>,
    pub last_verify: Option<VerifyReport>,
    /// Manifests and reports that cannot be read; sentences. All else here is of those that can.
    pub damaged: Vec<String>,
}

/// A schedule's next run is this late before it is called overdue: jitter and a busy plan are not yet a problem.
const OVERDUE: chrono::TimeDelta = chrono::TimeDelta::minutes(15);

/// The schedules of a plan with their jobs.
#[must_use]
pub fn schedules(plan: &Plan) -> Vec<(Job, &Schedule)> {
    let all =
        [(Job::Backup, plan.schedule.as_ref()), (Job::Drill, plan.drill.schedule.as_ref()), (Job::Verify, plan.verify.schedule.as_ref())];
    all.into_iter().filter_map(|(job, schedule)| Some((job, schedule?))).collect()
}

/// How the scheduler treats a plan's slots.
#[must_use]
pub fn rules(plan: &Plan) -> Rules {
    Rules {
        jitter: plan.jitter,
        missed: match plan.missed {
            Missed::RunOnce => MissedSlots::RunOnce,
            Missed::Skip => MissedSlots::Skip,
        },
        attempts: plan.retry.attempts,
        delay: plan.retry.delay,
    }
}

/// The text under which a schedule is remembered in the journal.
#[must_use]
pub fn expression(schedule: &Schedule) -> String {
    format!("{} {}", schedule.text(), schedule.zone())
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn since_ms(then: DateTime<Utc>, now: DateTime<Utc>) -> u64 {
    u64::try_from((now - then).num_milliseconds()).unwrap_or(0)
}

fn problem(kind: &str, message: impl Into<String>) -> Problem {
    Problem { kind: kind.to_owned(), message: message.into() }
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
    let newest = stored.and_then(|stored| stored.manifests.last());
    let journal_backup = facts.last_backup.as_ref();
    let recovery_point = if stored.is_some() { newest.map(|manifest| manifest.time) } else { journal_backup.map(|run| run.started) };
    let last_success = newest.map(|manifest| manifest.time).max(journal_backup.and_then(|run| run.ended));
    let data_loss_ms = recovery_point.map(|point| since_ms(point, now));
    let drills = stored.map(|stored| stored.drills.as_slice()).unwrap_or_default();
    let passed = drills.iter().rev().find(|drill| drill.verdict == Verdict::Passed);
    let recovery_time_ms = drills.iter().rev().find_map(|drill| drill.recovery_time_ms);

    if recovery_point.is_none() && facts.repository.is_some() {
        problems.push(problem("never-backed-up", "there is no snapshot: nothing can be restored"));
    }
    for (job, due) in &facts.overdue {
        problems.push(problem("overdue", format!("a {} was due at {} and did not start", job.word(), due.format("%Y-%m-%d %H:%M:%S UTC"))));
    }
    for run in &facts.last {
        let (job, id) = (run.job.word(), run.id);
        let why = run.error.as_ref().map(ErrorRecord::line).or_else(|| run.story.clone()).unwrap_or_default();
        match run.state {
            State::Failed if run.job == Job::Drill => {} // told by the drill's own report, or below when there is none
            State::Failed => problems.push(problem("failed", format!("the last {job} failed: {why} (run {id})"))),
            State::Incomplete => problems.push(problem("incomplete", format!("the last {job} was incomplete: {why} (run {id})"))),
            State::Interrupted => problems.push(problem("interrupted", format!("the last {job} was interrupted: {why} (run {id})"))),
            State::Missed => problems.push(problem("missed", format!("the last {job} was not run: {why}"))),
            State::Running | State::Succeeded => {}
        }
        if run.job == Job::Drill && run.state == State::Failed && run.report.is_none() {
            problems.push(problem("failed", format!("the last drill could not be done: {why} (run {id})")));
        }
    }
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
    if let Some(drill) = drills.last().filter(|drill| drill.verdict != Verdict::Passed) {
        let why = drill.reasons.first().cloned().unwrap_or_default();
        problems.push(problem("drill-failed", format!("the last drill ended {}: {why} (report {})", drill.verdict.word(), drill.id)));
    }
    if stored.is_some() && passed.is_none() && recovery_point.is_some() {
        problems.push(problem("never-proven", "no drill has ever passed: recovery is not proven"));
    }
    if let Some(verify) = stored.and_then(|stored| stored.last_verify.as_ref()).filter(|verify| !verify.findings.is_empty()) {
        problems.push(problem(
            "damaged",
            format!("the last verification found damage in {} (report {})", crate::ops::counted(verify.findings.len(), "place"), verify.id),
        ));
    }
    problems.extend(stored.into_iter().flat_map(|stored| &stored.damaged).map(|lost| problem("damaged", lost.clone())));
    let next = facts.next.iter().min_by_key(|(_, at)| *at);
    PlanStatus {
        name: plan.name.to_string(),
        last_success,
        snapshot: newest
            .map(|manifest| manifest.id.to_string())
            .or_else(|| journal_backup.and_then(|run| run.snapshot.clone()).filter(|_| stored.is_none())),
        recovery_point,
        snapshots: stored.map_or(0, |stored| u64::try_from(stored.manifests.len()).unwrap_or(u64::MAX)),
        data_loss_ms,
        data_loss_objective_ms: plan.objectives.data_loss.map(ms),
        recovery_time_ms,
        recovery_time_objective_ms: plan.objectives.recovery_time.map(ms),
        proven_at: passed.map(|drill| drill.time),
        proven_point: passed.map(|drill| drill.snapshot_time),
        next_run: next.map(|(_, at)| *at),
        next_job: next.map(|(job, _)| job.word().to_owned()),
        running: facts.running.iter().map(|run| run.id.to_string()).collect(),
        repository_reachable: stored.is_some(),
        problems,
    }
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
            status.problems.push(problem(
                "interrupted",
                format!("the process of run {} ({}) is gone; the next run settles it", run.id, run.job.word()),
            ));
        }
        statuses.push(status);
    }
    Ok(Status { schema: "lifeboat.status/1".to_owned(), time: now, daemon, plans: statuses })
}

fn journal_facts(plan: &Plan, journal: &Journal, broken: &[Run], now: DateTime<Utc>) -> Result<Facts> {
    let mut facts = Facts::default();
    let newest = |job, state| journal.last_in(&plan.name, job, state);
    facts.last_backup =
        newest(Job::Backup, State::Succeeded)?.into_iter().chain(newest(Job::Backup, State::Incomplete)?).max_by_key(|run| run.started);
    for job in [Job::Backup, Job::Drill, Job::Verify] {
        let mut closed = Vec::new();
        for state in [State::Succeeded, State::Incomplete, State::Failed, State::Interrupted, State::Missed] {
            closed.extend(newest(job, state)?);
        }
        facts.last.extend(closed.into_iter().max_by_key(|run| run.started));
    }
    for job in [Job::Backup, Job::Drill, Job::Verify, Job::Restore] {
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
        let is_running = facts.running.iter().any(|run| run.job == job);
        let done = situation.last.map_or(situation.since, |last| last.slot.max(situation.since));
        let waits = Slots::next_after(schedule, done)
            .filter(|slot| *slot + chrono::TimeDelta::from_std(plan.jitter).unwrap_or_default() + OVERDUE < now);
        facts.overdue.extend(waits.filter(|_| !is_running).map(|slot| (job, slot)));
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
    let (drills, _) = drill::history(&repository, Some(&plan.name))?;
    // A verification is of the whole repository, whichever plan asked for it.
    let (verifications, damaged_reports) = repository.sound_reports(Some(ReportKind::Verify))?;
    let last_verify = verifications.into_iter().next_back().and_then(|record| serde_json::from_value(record.document).ok());
    let damaged = damaged_warning(&damaged).into_iter().chain(damaged_reports_warning(&damaged_reports)).collect();
    Ok(Stored { manifests, drills, last_verify, damaged })
}

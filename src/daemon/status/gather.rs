//! Asks the journal and the repositories.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::daemon::job::{rules, schedules};
use crate::daemon::journal::{Job, Journal, Known, State, Trigger};
use crate::daemon::owner::DaemonLock;
use crate::daemon::scheduler::{self, Situation, Slots};
use crate::daemon::status::ask::{Asked, ask_all};
use crate::daemon::status::assess::objectives;
use crate::daemon::status::{Facts, Heard, OVERDUE, PlanStatus, Problem, ProblemKind, Status, Stored, assess, logs};
use crate::daemon::{alarms, gone, notify};
use crate::error::Result;
use crate::id::Name;
use crate::ops::log::canary;
use crate::ops::log::stream;
use crate::ops::resolve::Surroundings;
use crate::ops::select;
use crate::plan::{Plan, Plans, Schedule};
use crate::repo::ReportKind;

/// With less than this on its disk the state folder cannot be written for long.
const LEAST_ROOM: u64 = 256 << 10;

/// The daemon looks at what is due at least each half minute.
pub const STUCK: Duration = Duration::from_mins(2);

/// Asks the journal (`None`: nothing was ever run here) and the repositories, and judges every plan.
///
/// # Errors
/// When the journal cannot be read, and `Interrupted`. A repository that cannot be asked is a problem of its plans.
pub fn gather(plans: &Plans, journal: Option<&Journal>, surroundings: &Surroundings, daemon: bool) -> Result<Status> {
    let of_all: Vec<Arc<Plan>> = plans.plans.values().cloned().collect();
    let mut answers = ask_all(&of_all, surroundings)?;
    // That may have taken minutes.
    let now = surroundings.clock.now();
    let all: Vec<&Plan> = of_all.iter().map(AsRef::as_ref).collect();
    let heard = journal.map(|journal| Heard::ask(&all, journal, now)).transpose()?;
    let mut statuses: Vec<PlanStatus> = Vec::new();
    for plan in all {
        let asked = answers.of(plan, surroundings);
        let mut status = view(plan, heard.as_ref(), Some(asked), surroundings, now);
        if !status.repository_reachable {
            // Now a copy is what counts.
            let (copies, problems) = answers.copies(plan, None, surroundings);
            status.copies = copies;
            status.problems.extend(problems);
        }
        statuses.push(status);
    }
    let position: BTreeMap<String, usize> = statuses.iter().enumerate().map(|(at, status)| (status.name.clone(), at)).collect();
    let mut problems = Vec::new();
    for (key, alarm) in alarms::standing_by_key(&surroundings.state)? {
        if !gone::still_holds(plans, &key, &alarm) {
            continue;
        }
        let problem = Problem { kind: alarm.kind.clone(), job: None, message: alarm.message };
        match &alarm.plan {
            Some(_) if alarm.kind == gone::GONE => problems.push(problem),
            // Of a plan that is gone, or was not asked about, it says nothing here.
            Some(plan) => {
                if let Some(status) = position.get(plan).and_then(|at| statuses.get_mut(*at)) {
                    status.problems.push(problem);
                }
            }
            None => problems.push(problem),
        }
    }
    let (notifiers, failing) = notify::standing(plans, &surroundings.state)?;
    problems.extend(failing);
    problems.extend(no_room(&surroundings.state));
    // Where the daemon's watch still works, it says so itself.
    if daemon && problems.iter().all(|problem| problem.kind != "daemon-stuck") && DaemonLock::is_held(&surroundings.state) {
        problems.extend(stuck(DaemonLock::silent_for(&surroundings.state)));
    }
    Ok(Status { schema: "lifeboat.status/1".to_owned(), time: now, daemon, plans: statuses, notifiers, problems })
}

/// A daemon that cannot write tells nobody by itself, and could leave no alarm here.
fn no_room(state: &std::path::Path) -> Option<Problem> {
    let about = rustix::fs::statvfs(state).ok()?;
    let free = about.f_bavail.saturating_mul(about.f_frsize);
    (free < LEAST_ROOM).then(|| {
        let message = format!(
            "the disk of the state folder {} is full ({free} bytes are free): no run can be recorded, so none starts; make room",
            state.display()
        );
        Problem::new(ProblemKind::JournalUnavailable, message)
    })
}

/// A daemon that is there and does nothing: stopped, hung, or waiting for a disk.
fn stuck(silent_for: Option<Duration>) -> Option<Problem> {
    let silent = silent_for.filter(|silent| *silent >= STUCK)?;
    let message = format!(
        "the daemon is there and has not looked at what is due for {} s: nothing is started and nobody is told; see its log, restart it",
        silent.as_secs()
    );
    Some(Problem::new(ProblemKind::DaemonStuck, message))
}

/// Judges one plan by the journal (`None`: nothing was ever run here), by what streams on this host say, and by what its repository said (`None`:
/// it was not asked).
#[must_use]
pub fn view(plan: &Plan, heard: Option<&Heard>, asked: Option<Asked>, surroundings: &Surroundings, now: DateTime<Utc>) -> PlanStatus {
    let stored = asked.as_ref().and_then(|asked| asked.as_ref().ok()).map(Arc::as_ref);
    let mut facts = heard.map_or_else(|| without_journal(plan, stored, now), |heard| journal_facts(plan, heard, stored, now));
    facts.repository = asked;
    let mut status = assess(plan, &facts, now);
    for run in heard.into_iter().flat_map(|heard| &heard.broken).filter(|run| run.plan == plan.name) {
        status.problems.push(Problem::of(
            ProblemKind::Interrupted,
            run.job,
            format!("the process of run {} ({}) is gone; the next run settles it", run.id, run.job.word()),
        ));
    }
    let stored = facts.repository.as_ref().and_then(|stored| stored.as_ref().ok());
    let work = surroundings.state.join("work").join(plan.name.as_str());
    let elsewhere = |kind: &str, source: &Name| heard.is_some_and(|heard| heard.is_elsewhere(kind, &plan.name, source));
    for source in plan.sources.iter().filter(|source| source.kind.streams_log() && !elsewhere("log", &source.name)) {
        let reach = stored.and_then(|stored| stored.reaches.get(&source.name));
        let noted = stream::status(&work, &source.name);
        let (log, problems) = logs::stream_problems(source.name.as_str(), noted, status.whole_point, reach, now);
        status.logs.extend(log);
        status.problems.extend(problems);
    }
    if let Some(stored) = stored {
        status.copies.clone_from(&stored.copies);
        status.problems.extend(stored.copy_problems.iter().cloned());
    }
    for source in plan.sources.iter().filter(|source| stored.is_some() && source.kind.keeps_log()) {
        let reach = stored.and_then(|stored| stored.reaches.get(&source.name));
        let problems = logs::stored_log_problems(&source.name, reach, status.whole_point, now);
        // A stream tells of what it could not get itself.
        let named = format!("source {} ", source.name);
        let told = |kind: &str| status.problems.iter().any(|known| known.kind == kind && known.message.contains(&named));
        let problems: Vec<Problem> = problems.into_iter().filter(|problem| !told(&problem.kind)).collect();
        status.problems.extend(problems);
    }
    for source in &plan.sources {
        let Some(every) = source.kind.canary().filter(|_| !elsewhere("canary", &source.name)) else { continue };
        status.problems.extend(logs::canary_problem(source.name.as_str(), every, canary::status(&work, &source.name), now));
    }
    if let Some(covered) = stored.and_then(|stored| logs::covered(plan, stored, &status)) {
        // More than the newest snapshot can be brought back.
        status.restorable_to = Some(covered);
        status.data_loss_ms = select::age_ms(covered, now);
        status.problems.retain(|problem| !matches!(problem.kind.as_str(), "data-loss-objective" | "data-loss-forecast"));
        status.problems.extend(objectives(plan, status.data_loss_ms, None));
    }
    status
}

pub(in crate::daemon::status) fn without_journal(plan: &Plan, stored: Option<&Stored>, now: DateTime<Utc>) -> Facts {
    let mut facts = Facts::default();
    for (job, schedule) in schedules(plan) {
        facts.next.extend(schedule.next_after(now).map(|at| (job, at)));
        let since = stored.and_then(|stored| last_stored(job, stored, now));
        facts.overdue.extend(since.and_then(|since| waits(plan, schedule, since, now)).map(|slot| (job, slot)));
    }
    facts
}

/// The first slot after `since`, if it should have begun by now.
fn waits(plan: &Plan, schedule: &Schedule, since: DateTime<Utc>, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let jitter = chrono::TimeDelta::from_std(plan.jitter).unwrap_or_default();
    Slots::next_after(schedule, since).filter(|slot| *slot + jitter + OVERDUE < now)
}

/// When the repository says that such a job was last done for the plan, of moments that have been.
fn last_stored(job: Job, stored: &Stored, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let has_been = |time: &DateTime<Utc>| !select::is_to_come(*time, now);
    let report = |kind| stored.reports.iter().filter(|report| report.kind == kind).map(|report| report.time).filter(has_been).max();
    match job {
        Job::Backup => stored.there().map(|manifest| manifest.time).filter(has_been).max(),
        Job::Drill => report(ReportKind::Drill),
        Job::Verify => report(ReportKind::Verify),
        _ => None,
    }
}

/// What the journal says of one plan. Pure.
pub(in crate::daemon::status) fn journal_facts(plan: &Plan, heard: &Heard, stored: Option<&Stored>, now: DateTime<Utc>) -> Facts {
    let mut facts = Facts::default();
    let newest = |job, state| heard.newest.of(&plan.name, job, state);
    facts.last_whole_backup = newest(Job::Backup, State::Succeeded).cloned();
    facts.last_backup = heard.last_backup(&plan.name).cloned();
    for job in Job::ALL.into_iter().filter(|job| job.is_exclusive()) {
        let closed = [State::Succeeded, State::Incomplete, State::Failed, State::Interrupted, State::Missed];
        facts.last.extend(closed.into_iter().filter_map(|state| newest(job, state)).max_by_key(|run| run.started).cloned());
    }
    let ended_ill = newest(Job::Drill, State::Failed).into_iter().chain(newest(Job::Drill, State::Incomplete));
    let passed = newest(Job::Drill, State::Succeeded);
    facts.failed_drill =
        ended_ill.max_by_key(|run| run.started).filter(|run| passed.is_none_or(|passed| passed.started < run.started)).cloned();
    for job in Job::ALL {
        let running = newest(job, State::Running).filter(|run| heard.broken.iter().all(|broken| broken.id != run.id));
        facts.running.extend(running.cloned());
        // Of what was made anew from the repository only a moment is known.
        let done = [State::Succeeded, State::Incomplete].into_iter().filter_map(|state| newest(job, state));
        let took = done.filter(|run| run.trigger != Trigger::Rebuilt).filter_map(|run| Some(run.ended? - run.started));
        facts.usual.extend(took.min().map(|took| (job, took)));
    }
    let rules = rules(plan);
    for (job, known) in heard.schedules(&plan.name) {
        let Some(schedule) = job.schedule(plan) else { continue };
        let situation = Situation { now, since: followed_since(*job, known, &facts, stored, now), last: known.last, free_since: now };
        facts.next.extend(scheduler::next_run(&plan.name, schedule, &rules, &situation).map(|at| (*job, at)));
        let done = situation.last.map_or(situation.since, |last| last.slot.max(situation.since));
        facts.overdue.extend(waits(plan, schedule, done, now).map(|slot| (*job, slot)));
    }
    facts
}

/// Since when slots of a schedule count. Where no daemon ever followed it, what was done last is what the next is expected after, by the journal or (also where
/// that was lost) by the repository: that nobody runs it at all must be seen too.
fn followed_since(job: Job, known: &Known, facts: &Facts, stored: Option<&Stored>, now: DateTime<Utc>) -> DateTime<Utc> {
    let last_backup = || facts.last_backup.as_ref().filter(|_| job == Job::Backup).map(|run| run.started);
    known.since.or_else(last_backup).or_else(|| stored.and_then(|stored| last_stored(job, stored, now))).unwrap_or(now)
}

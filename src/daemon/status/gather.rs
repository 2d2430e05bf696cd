//! Asks the journal and the repositories.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::daemon::job::{expression, rules, schedules};
use crate::daemon::journal::{Job, Journal, Run, State};
use crate::daemon::owner::DaemonLock;
use crate::daemon::scheduler::{self, PastSlot, Situation, Slots};
use crate::daemon::status::assess::{newest_whole, objectives};
use crate::daemon::status::{Facts, OVERDUE, PlanStatus, Problem, Status, Stored, Unasked, assess, copies, logs};
use crate::daemon::{alarms, gone, nodes, notify};
use crate::error::{Error, Kind, Result};
use crate::id::Name;
use crate::ops::log::canary;
use crate::ops::log::reach::reach;
use crate::ops::log::stream;
use crate::ops::resolve::{self, Surroundings};
use crate::ops::{damage, damaged_reports_warning, damaged_warning, select};
use crate::plan::{Plan, Plans, Schedule};
use crate::repo::{ReportRecord, Repository};

/// With less than this on its disk the state folder cannot be written for long.
const LEAST_ROOM: u64 = 256 << 10;

/// The daemon looks at what is due at least each half minute.
const STUCK: Duration = Duration::from_mins(2);

/// What a repository said of one plan.
pub type Asked = std::result::Result<Arc<Stored>, Unasked>;

/// Asks the journal (`None`: nothing was ever run here) and the repositories, and judges every plan.
///
/// # Errors
/// When the journal cannot be read. A repository that cannot be asked is a problem of its plans.
pub fn gather(plans: &Plans, journal: Option<&Journal>, surroundings: &Surroundings, daemon: bool) -> Result<Status> {
    let now = surroundings.clock.now();
    let broken = journal.map_or_else(|| Ok(Vec::new()), Journal::broken)?;
    let asked = ask_all(plans.plans.values(), surroundings);
    let of = |plan: &Arc<Plan>| view(plan, journal, &broken, asked.get(&plan.name).cloned(), surroundings, now);
    let mut statuses = plans.plans.values().map(of).collect::<Result<Vec<PlanStatus>>>()?;
    for (plan, status) in plans.plans.values().zip(&mut statuses).filter(|(_, status)| !status.repository_reachable) {
        // Now a copy is what counts.
        let (copies, problems) = copies::gather(plan, None, surroundings);
        status.copies = copies;
        status.problems.extend(problems);
    }
    let mut problems = Vec::new();
    for alarm in alarms::standing(&surroundings.state)? {
        let problem = Problem::new(&alarm.kind, alarm.message);
        match &alarm.plan {
            Some(gone) if alarm.kind == gone::GONE => {
                if !plans.plans.contains_key(gone.as_str()) {
                    problems.push(problem);
                }
            }
            // Of a plan that is gone, or was not asked about, it says nothing here.
            Some(plan) => {
                statuses.iter_mut().filter(|status| status.name == *plan).for_each(|status| status.problems.push(problem.clone()));
            }
            None => problems.push(problem),
        }
    }
    let (notifiers, failing) = notify::standing(plans, &surroundings.state)?;
    problems.extend(failing);
    problems.extend(no_room(&surroundings.state));
    if daemon && DaemonLock::is_held(&surroundings.state) {
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
        Problem::new("journal-unavailable", message)
    })
}

/// A daemon that is there and does nothing: stopped, hung, or waiting for a disk.
fn stuck(silent_for: Option<Duration>) -> Option<Problem> {
    let silent = silent_for.filter(|silent| *silent >= STUCK)?;
    let message = format!(
        "the daemon is there and has not looked at what is due for {} s: nothing is started and nobody is told; see its log, restart it",
        silent.as_secs()
    );
    Some(Problem::new("daemon-stuck", message))
}

/// Judges one plan by the journal, by what streams on this host say, and by what its repository said (`None`: it was not asked).
///
/// # Errors
/// When the journal cannot be read.
pub fn view(
    plan: &Plan,
    journal: Option<&Journal>,
    broken: &[Run],
    asked: Option<Asked>,
    surroundings: &Surroundings,
    now: DateTime<Utc>,
) -> Result<PlanStatus> {
    let mut facts = journal.map_or_else(|| Ok(Facts::default()), |journal| journal_facts(plan, journal, broken, now))?;
    if journal.is_none() {
        facts.next = schedules(plan).into_iter().filter_map(|(job, schedule)| Some((job, schedule.next_after(now)?))).collect();
    }
    facts.repository = asked;
    let mut status = assess(plan, &facts, now);
    for run in broken.iter().filter(|run| run.plan == plan.name) {
        status.problems.push(Problem::of(
            "interrupted",
            run.job,
            format!("the process of run {} ({}) is gone; the next run settles it", run.id, run.job.word()),
        ));
    }
    let work = surroundings.state.join("work").join(plan.name.as_str());
    // The node that does it knows how it stands.
    let elsewhere = |kind: &str, source: &Name| {
        let lease = nodes::stream_lease(kind, &plan.name, source);
        journal.filter(|journal| journal.is_shared()).is_some_and(|journal| matches!(journal.is_held_here(&lease, now), Ok(Some(false))))
    };
    for source in plan.sources.iter().filter(|source| source.kind.streams_log() && !elsewhere("log", &source.name)) {
        let (log, problems) = logs::stream_problems(source.name.as_str(), stream::status(&work, &source.name), status.whole_point, now);
        status.logs.extend(log);
        status.problems.extend(problems);
    }
    let stored = facts.repository.as_ref().and_then(|stored| stored.as_ref().ok());
    if let Some(stored) = stored {
        status.copies.clone_from(&stored.copies);
        status.problems.extend(stored.copy_problems.iter().cloned());
    }
    for source in plan.sources.iter().filter(|source| stored.is_some() && source.kind.keeps_log()) {
        let problems = logs::stored_log_problems(&source.name, stored.and_then(|stored| stored.reaches.get(&source.name)));
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
    Ok(status)
}

/// Asks the repositories of these plans, those of several repositories beside each other.
fn ask_all<'a>(plans: impl Iterator<Item = &'a Arc<Plan>>, surroundings: &Surroundings) -> BTreeMap<Name, Asked> {
    let mut of_repository: BTreeMap<&Name, Vec<&Plan>> = BTreeMap::new();
    for plan in plans {
        of_repository.entry(&plan.repository.name).or_default().push(plan);
    }
    std::thread::scope(|scope| {
        let threads: Vec<_> = of_repository.values().map(|plans| (plans, scope.spawn(|| ask(plans, surroundings)))).collect();
        let panicked = |plans: &[&Plan]| {
            let why = || Unasked { kind: Kind::Bug, message: "asking it panicked; please report this".to_owned(), secret: false };
            plans.iter().map(|plan| (plan.name.clone(), Err(why()))).collect()
        };
        threads.into_iter().flat_map(|(plans, thread)| thread.join().unwrap_or_else(|_| panicked(plans))).collect()
    })
}

fn with_copies(plan: &Plan, stored: Stored, surroundings: &Surroundings) -> Stored {
    let (copies, copy_problems) = copies::gather(plan, Some(&stored.manifests), surroundings);
    Stored { copies, copy_problems, ..stored }
}

/// Asks the one repository of all these plans, and their copies.
#[must_use]
pub fn ask(plans: &[&Plan], surroundings: &Surroundings) -> Vec<(Name, Asked)> {
    let unasked = |error: &Error| Unasked { kind: error.kind(), message: format!("{error:?}"), secret: false };
    let Some(first) = plans.first() else { return Vec::new() };
    let settings = match resolve::repository(&first.repository) {
        Ok(settings) => settings,
        // All that it does is to get secrets.
        Err(error) => return plans.iter().map(|plan| (plan.name.clone(), Err(Unasked { secret: true, ..unasked(&error) }))).collect(),
    };
    let reports = settings.open(surroundings).and_then(|repository| {
        let (reports, damaged) = repository.sound_reports(None)?;
        Ok((repository, Arc::new(reports), damaged_reports_warning(&damaged)))
    });
    match reports {
        Ok((repository, reports, damaged)) => plans
            .iter()
            .map(|plan| {
                let stored =
                    stored(plan, &repository, Arc::clone(&reports), damaged.clone()).map(|stored| with_copies(plan, stored, surroundings));
                (plan.name.clone(), stored.map(Arc::new).map_err(|error| unasked(&error)))
            })
            .collect(),
        Err(error) => plans.iter().map(|plan| (plan.name.clone(), Err(unasked(&error)))).collect(),
    }
}

pub(in crate::daemon::status) fn journal_facts(plan: &Plan, journal: &Journal, broken: &[Run], now: DateTime<Utc>) -> Result<Facts> {
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

fn stored(plan: &Plan, repository: &Repository, reports: Arc<Vec<ReportRecord>>, damaged_reports: Option<String>) -> Result<Stored> {
    let (manifests, damaged) = repository.sound_manifests(Some(&plan.name))?;
    // What other plans have matters only where something was found.
    let existing = if damage::standing(&reports, None).is_empty() {
        None
    } else {
        let (all, damaged) = repository.sound_manifests(None)?;
        damaged.is_empty().then(|| all.into_iter().map(|manifest| manifest.id).collect())
    };
    let damaged = damaged_warning(&damaged).into_iter().chain(damaged_reports).collect();
    let mut stored = Stored { manifests, reports, existing, damaged, ..Stored::default() };
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

//! Looks at everything now and then: runs that began or ended, whoever ran them, and how each plan stands. What follows goes into the outbox.
//!
//! Runs are found by when they began: from the newest that was seen, a little back, since clocks of hosts differ and a clock may be set
//! back; what was seen is remembered by run and attempt. A run that was going on is asked for by its id until it ended.
//!
//! Of several nodes one tells of a plan ([`Teller`]). The others remember a run only when it has been over for two leases: whoever begins to tell then
//! tells of all that the one before may have left untold, and of everything that stands. So a node that dies costs a second message, and no silence.
//! What only the state folder of a node knows, that node tells itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};

use crate::daemon::alarms::{self, Alarm};
use crate::daemon::control::{Control, Phase, Trouble};
use crate::daemon::gone;
use crate::daemon::journal::{Filter, Journal, Run, State};
use crate::daemon::notify::Latest;
use crate::daemon::notify::ask::{Answer, Asker};
use crate::daemon::notify::outbox::{Found, Outbox, SeenRun};
use crate::daemon::notify::step::{self, Noticed, Observed, Seen, Standing};
use crate::daemon::notify::teller::Teller;
use crate::daemon::scheduler::PastSlot;
use crate::daemon::status::{self, Heard, PlanStatus, Problem, ProblemKind, Status};
use crate::error::Result;
use crate::id::{Name, RunId};
use crate::ops::resolve::Surroundings;
use crate::plan::{Notifier, NotifierKind, Plan, Plans};

/// How far back runs are looked for.
const BACK: TimeDelta = TimeDelta::minutes(10);

/// How often all plans are judged at least; seldom where judging takes long.
const JUDGE: Duration = Duration::from_secs(15);
const JUDGE_SHARE: u32 = 20;

/// Deliveries that failed so often in a row are a problem.
const FAILING: u64 = 2;

/// The kinds of problem that depend on what this host has seen before; others may see nothing wrong.
const OF_THIS_HOST: [&str; 2] = ["repository-changed", "repository-unknown"];

/// Runs asked for at a time, at first.
const PAGE: u32 = 64;

/// The one who looks.
pub(super) struct Watch {
    pub plans: Plans,
    pub control: Control,
    pub journal: Arc<Journal>,
    pub surroundings: Surroundings,
    pub outbox: Arc<Outbox>,
    pub teller: Teller,
    /// Runs that ended and are left to another node to tell of, with their attempts.
    pub left: BTreeSet<(RunId, u32)>,
    pub asker: Asker,
    pub latest: Latest,
    pub judged: Option<(Instant, Duration)>,
    /// How each plan stood when it was last judged.
    pub statuses: BTreeMap<Name, PlanStatus>,
    /// Problems of the last look that nobody but the log was told of.
    pub logged: BTreeSet<String>,
}

impl Watch {
    /// Looks once; how many events that made.
    ///
    /// # Errors
    /// When the journal, an alarm or the outbox cannot be read or written: then nothing was taken notice of.
    pub(super) fn look(&mut self) -> Result<usize> {
        let now = self.surroundings.clock.now();
        let (runs, seen, looked_until) = self.runs(now)?;
        for run in runs.iter().filter(|run| run.state != State::Running) {
            self.asker.outdated(&run.plan);
        }
        let all = self.judged.is_none_or(|(at, took)| at.elapsed() >= JUDGE.max(took * JUDGE_SHARE));
        if seen.is_empty() && !all {
            return Ok(0);
        }
        let before = self.outbox.standing()?;
        let mut observed = self.observed(&runs, &before, all, now)?;
        observed.plans = self.plans.plans.keys().map(ToString::to_string).collect();
        let mut standing = before.clone();
        let plans = &self.plans;
        let audience = |plan: Option<&str>| -> Vec<&Notifier> { audience(plans, plan) };
        let events = step::step(&mut standing, &observed, &audience, now);
        if seen.is_empty() && events.is_empty() && standing == before {
            self.hand_over(now);
            return Ok(0);
        }
        let keep_from = looked_until.min(now) - self.back() * 2;
        let found = Found { runs: &seen, keep_from, looked_until, before: &before, standing: &standing, events: &events };
        self.outbox.commit(&found)?;
        self.log(&before, &standing);
        if all {
            self.hand_over(now);
        }
        Ok(events.len())
    }

    /// Where the journal cannot be read: tells what the daemon itself knows to be wrong. Of runs and plans nothing is known, and what stands of them
    /// goes on to stand.
    ///
    /// # Errors
    /// When an alarm or the outbox cannot be read or written.
    pub(super) fn look_blindly(&mut self) -> Result<usize> {
        let now = self.surroundings.clock.now();
        self.daemons_own()?;
        let alarms = alarms::standing_by_key(&self.surroundings.state)?;
        let before = self.outbox.standing()?;
        let mut observed = Observed { plans: self.plans.plans.keys().map(ToString::to_string).collect(), ..Observed::default() };
        of_no_plan(&mut observed, &alarms);
        let mut standing = before.clone();
        let plans = &self.plans;
        let events = step::step(&mut standing, &observed, &|plan: Option<&str>| audience(plans, plan), now);
        if events.is_empty() && standing == before {
            return Ok(0);
        }
        let (looked_until, _) = self.outbox.looked_until(now)?;
        let keep_from = looked_until.min(now) - self.back() * 2;
        self.outbox.commit(&Found { runs: &[], keep_from, looked_until, before: &before, standing: &standing, events: &events })?;
        self.log(&before, &standing);
        Ok(events.len())
    }

    /// Runs that began or ended since the last look, oldest first; what to remember of them; and from when on to look next time.
    fn runs(&mut self, now: DateTime<Utc>) -> Result<(Vec<Run>, Vec<SeenRun>, DateTime<Utc>)> {
        let (looked_until, first) = self.outbox.looked_until(now)?;
        let from = looked_until.min(now) - self.back();
        let known: BTreeMap<(String, u32), bool> =
            self.outbox.runs()?.into_iter().map(|run| ((run.run, run.attempt), run.closed)).collect();
        let mut limit = PAGE;
        let mut found = loop {
            let page = self.journal.runs(&Filter { limit, ..Filter::default() })?;
            if page.len() < limit as usize || page.last().is_none_or(|run| run.started < from) {
                break page;
            }
            limit = limit.saturating_mul(4);
        };
        found.retain(|run| run.started >= from);
        // Those that go on, or went on when they were last seen, however long ago they began.
        let going = self.journal.runs(&Filter { state: Some(State::Running), ..Filter::default() })?;
        let ended =
            known.iter().filter(|(_, closed)| !**closed).filter_map(|((id, _), _)| self.journal.run(id.parse::<RunId>().ok()?).ok());
        for run in going.into_iter().chain(ended) {
            if found.iter().all(|known| known.id != run.id) {
                found.push(run);
            }
        }
        found.retain(|run| run.ended.is_none_or(|ended| ended >= first));
        let is_new = |run: &Run| match known.get(&(run.id.to_string(), run.attempt)) {
            None => true,
            Some(closed) => !closed && run.state != State::Running,
        };
        found.retain(is_new);
        self.leave_to_the_teller(&mut found, now)?;
        found.sort_by_key(|run| (run.ended.unwrap_or(run.started), run.id));
        let mut seen: Vec<SeenRun> = found
            .iter()
            .map(|run| SeenRun { run: run.id.to_string(), attempt: run.attempt, closed: run.state != State::Running, started: run.started })
            .collect();
        // An attempt that was going on and has a later one by now ended unseen.
        for ((id, attempt), _) in known.iter().filter(|(_, closed)| !**closed) {
            if let Some(run) = found.iter().find(|run| run.id.to_string() == *id && run.attempt > *attempt) {
                seen.push(SeenRun { run: id.clone(), attempt: *attempt, closed: true, started: run.started });
            }
        }
        // A start in the future is no reason to miss what begins before it.
        let newest = found.iter().map(|run| run.started).filter(|started| *started <= now).max();
        Ok((found, seen, newest.map_or(looked_until, |newest| newest.max(looked_until)).min(now.max(looked_until))))
    }

    /// How far back runs are looked for.
    fn back(&self) -> TimeDelta {
        if self.journal.is_shared() { BACK.max(self.journal.lease() * 3) } else { BACK }
    }

    /// Takes out what ended so short a time ago that another node may die before it has told of it.
    fn leave_to_the_teller(&mut self, found: &mut Vec<Run>, now: DateTime<Utc>) -> Result<()> {
        let told = now - self.journal.lease() * 2;
        let mut left = BTreeSet::new();
        for run in found.iter().filter(|run| run.ended.is_some_and(|ended| ended > told)) {
            if let Some(plan) = self.plans.plans.get(&run.plan)
                && !self.teller.tells(plan, now)?
            {
                left.insert((run.id, run.attempt));
                if !self.left.contains(&(run.id, run.attempt)) {
                    self.asker.outdated(&run.plan);
                }
            }
        }
        self.left = left;
        found.retain(|run| !self.left.contains(&(run.id, run.attempt)));
        Ok(())
    }

    fn observed(&mut self, runs: &[Run], before: &BTreeMap<String, Standing>, all: bool, now: DateTime<Utc>) -> Result<Observed> {
        let mut observed = Observed::default();
        for run in runs {
            // Of a plan that is gone nobody is to be told.
            if let Some(plan) = self.plans.plans.get(&run.plan)
                && self.teller.tells(plan, now)?
            {
                let retried = PastSlot::of_run(run).is_some_and(|slot| step::is_retried(plan, &slot, now));
                observed.runs.push(Noticed { run: run.clone(), retried });
            }
        }
        let began = Instant::now();
        if all {
            self.daemons_own()?;
            gone::look(&self.plans, &self.journal, &self.surroundings.state, now)?;
        }
        let alarms = alarms::standing_by_key(&self.surroundings.state)?;
        let mut of_plans: BTreeMap<&str, Vec<(Problem, Seen)>> = BTreeMap::new();
        for (key, alarm) in alarms.iter().filter(|(_, alarm)| alarm.kind != gone::GONE) {
            if let Some(plan) = &alarm.plan {
                of_plans.entry(plan).or_default().push(of_alarm(Some(plan), key, alarm));
            }
        }
        let of_runs: BTreeSet<&Name> = runs.iter().map(|run| &run.plan).collect();
        let wanted = self.plans.plans.values().filter(|plan| all || of_runs.contains(&plan.name));
        let answers: Vec<Answer> = self.asker.answers(wanted);
        // Later than the repositories: what they had to say of a run is there.
        let answered: Vec<&Plan> = answers.iter().map(|answer| answer.plan.as_ref()).collect();
        let heard = Heard::ask(&answered, &self.journal, now)?;
        for Answer { plan, asked, current } in answers {
            // What only the repository knows is not over because it cannot be asked, or has not been asked since the last run.
            let whole = asked.is_ok() && current;
            let mut status = status::view(&plan, Some(&heard), Some(asked), &self.surroundings, now);
            let mut seen = step::seen_of_status(&status, &retried(&plan, &heard, now));
            if !self.teller.tells(&plan, now)? {
                seen.retain(|seen| OF_THIS_HOST.contains(&seen.kind.as_str()) || before.contains_key(&seen.key));
            }
            observed.problems.extend(seen);
            // What only this host knows it tells itself, and the end of what it told of.
            for (problem, seen) in of_plans.remove(plan.name.as_str()).unwrap_or_default() {
                observed.problems.push(seen);
                status.problems.push(problem);
            }
            if whole {
                observed.judged.insert(Some(status.name.clone()));
            }
            self.statuses.insert(plan.name.clone(), status);
        }
        if all {
            self.globally(&mut observed, &alarms, now)?;
            self.judged = Some((Instant::now(), began.elapsed()));
        }
        Ok(observed)
    }

    /// Why nothing is started although the daemon is there: its loop does not turn, which it cannot say itself.
    pub(super) fn hung(&self) -> Option<String> {
        hung(self.control.phase(), self.control.loop_age())
    }

    /// What is wrong with the daemon itself becomes alarms, so that other processes know it too, until it is over or another daemon starts.
    fn daemons_own(&self) -> Result<()> {
        let state = &self.surroundings.state;
        let mut troubles = self.control.problems();
        if let Some(message) = self.hung() {
            troubles.push(Trouble { kind: ProblemKind::DaemonStuck.word().to_owned(), message, since: self.surroundings.clock.now() });
        }
        let key = |kind: &str| format!("daemon-{}", kind.to_ascii_lowercase());
        for trouble in &troubles {
            let alarm = Alarm { kind: trouble.kind.clone(), plan: None, message: trouble.message.clone(), since: trouble.since };
            alarms::raise(state, &key(&trouble.kind), &alarm)?;
        }
        for gone in alarms::keys(state)? {
            if gone.starts_with("daemon-") && troubles.iter().all(|trouble| key(&trouble.kind) != gone) {
                alarms::clear(state, &gone)?;
            }
        }
        Ok(())
    }

    /// What is of no plan alone.
    fn globally(&mut self, observed: &mut Observed, alarms: &[(String, Alarm)], now: DateTime<Utc>) -> Result<()> {
        let mut problems = of_no_plan(observed, alarms);
        let notifiers = statuses_of(&self.plans, &self.outbox)?;
        for (notifier, status) in self.plans.notifiers.values().zip(&notifiers) {
            let Some(problem) = failing(status) else { continue };
            let after = TimeDelta::from_std(notifier.escalate_after).unwrap_or_default();
            if status.failing_since.is_some_and(|since| now - since >= after) {
                let key = format!("/notifier-failing/{}", notifier.name);
                let only = notifier.escalate.as_ref().map(ToString::to_string);
                observed.problems.push(Seen { key, only, ..step::seen_of_problem(None, &problem, &BTreeSet::new()) });
            }
            problems.push(problem);
        }
        observed.judged.insert(None);
        // Until all plans were judged once there is no whole picture.
        if self.plans.plans.keys().all(|plan| self.statuses.contains_key(plan)) {
            let plans = self.plans.plans.keys().filter_map(|plan| self.statuses.get(plan).cloned()).collect();
            let status = Status { schema: "lifeboat.status/1".to_owned(), time: now, daemon: true, plans, notifiers, problems };
            self.latest.set(Some(Arc::new(status)));
        }
        Ok(())
    }

    /// Copies of what waits for a notifier that fails go to the one that stands in for it.
    fn hand_over(&self, now: DateTime<Utc>) {
        for notifier in self.plans.notifiers.values() {
            let Some(other) = &notifier.escalate else { continue };
            let after = TimeDelta::from_std(notifier.escalate_after).unwrap_or_default();
            let handed = self.outbox.delivery(notifier.name.as_str()).and_then(|delivery| {
                if delivery.failing_since.is_none_or(|since| now - since < after) {
                    return Ok(0);
                }
                self.outbox.hand_over(notifier.name.as_str(), &[other.to_string()])
            });
            match handed {
                Ok(0) => {}
                Ok(events) => {
                    tracing::warn!(notifier = %notifier.name, to = %other, events, "a notifier reaches nobody: what waits is handed over");
                }
                Err(error) => tracing::error!(notifier = %notifier.name, error = ?error, "what waits could not be handed over"),
            }
        }
    }

    /// The log has everything, whoever else is told.
    fn log(&mut self, before: &BTreeMap<String, Standing>, standing: &BTreeMap<String, Standing>) {
        for (key, problem) in standing.iter().filter(|(key, _)| !before.contains_key(*key)) {
            if self.logged.insert(key.clone()) {
                tracing::warn!(plan = problem.plan, problem = problem.kind, "{}", problem.message);
            }
        }
        for (key, problem) in before.iter().filter(|(key, _)| !standing.contains_key(*key)) {
            self.logged.remove(key);
            tracing::info!(plan = problem.plan, problem = problem.kind, "over: {}", problem.message);
        }
    }
}

/// Jobs of a plan whose last slot failed and is tried again soon.
fn retried(plan: &Plan, heard: &Heard, now: DateTime<Utc>) -> BTreeSet<String> {
    let again = |last: &PastSlot| step::is_retried(plan, last, now);
    heard
        .schedules(&plan.name)
        .iter()
        .filter(|(_, known)| known.last.as_ref().is_some_and(again))
        .map(|(job, _)| job.word().to_owned())
        .collect()
}

/// An alarm as a problem. Each has a key of its own: a second certificate that ends is news while the first one stands.
fn of_alarm(plan: Option<&str>, key: &str, alarm: &Alarm) -> (Problem, Seen) {
    let problem = Problem { kind: alarm.kind.clone(), job: None, message: alarm.message.clone() };
    let seen = step::seen_of_problem(plan, &problem, &BTreeSet::new());
    (problem, Seen { key: format!("{}/{key}", seen.key), ..seen })
}

/// Alarms that are of no plan that there is.
/// Says nothing of how long, so that what stands does not change all the time.
fn hung(phase: Phase, loop_age: Duration) -> Option<String> {
    (phase == Phase::Serving && loop_age >= status::STUCK).then(|| {
        format!(
            "the daemon has not looked at what is due for more than {} minutes: nothing is started; see its log, restart it",
            status::STUCK.as_secs() / 60
        )
    })
}

fn of_no_plan(observed: &mut Observed, alarms: &[(String, Alarm)]) -> Vec<Problem> {
    let of_none = alarms.iter().filter(|(_, alarm)| alarm.plan.is_none() || alarm.kind == gone::GONE);
    let mut problems = Vec::new();
    for (key, alarm) in of_none {
        let (problem, seen) = of_alarm(None, key, alarm);
        observed.problems.push(seen);
        problems.push(problem);
    }
    problems
}

/// Who is told of a plan's events; of what is of no plan, all that are no heartbeat.
fn audience<'a>(plans: &'a Plans, plan: Option<&str>) -> Vec<&'a Notifier> {
    match plan {
        Some(plan) => plans
            .plans
            .iter()
            .find(|(name, _)| name.as_str() == plan)
            .map(|(_, plan)| plan.notify.iter().map(AsRef::as_ref).collect())
            .unwrap_or_default(),
        None => plans
            .notifiers
            .values()
            .map(AsRef::as_ref)
            .filter(|notifier| !matches!(notifier.kind, NotifierKind::Heartbeat { .. }))
            .collect(),
    }
}

/// How the deliveries of all notifiers stand, in the order of the plan files' names.
///
/// # Errors
/// When the outbox cannot be read.
pub(super) fn statuses_of(plans: &Plans, outbox: &Outbox) -> Result<Vec<status::NotifierStatus>> {
    plans
        .notifiers
        .values()
        .map(|notifier| {
            let delivery = outbox.delivery(notifier.name.as_str())?;
            Ok(status::NotifierStatus {
                name: notifier.name.to_string(),
                kind: notifier.kind.word().to_owned(),
                last_delivered: delivery.delivered,
                waiting: delivery.waiting + delivery.unlisted,
                failing_since: delivery.failing_since,
                failures: delivery.failures,
                error: delivery.error,
            })
        })
        .collect()
}

/// What is wrong with a notifier.
pub(super) fn failing(status: &status::NotifierStatus) -> Option<Problem> {
    let since = status.failing_since.filter(|_| status.failures >= FAILING)?;
    let message = format!(
        "notifier {} has reached nobody since {}, {} wait: {}",
        status.name,
        crate::ops::select::moment(since),
        crate::ops::counted(usize::try_from(status.waiting).unwrap_or(usize::MAX), "event"),
        status.error.as_deref().unwrap_or("no reason is known")
    );
    Some(Problem::new(ProblemKind::NotifierFailing, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_hangs_is_told_by_others_while_it_should_turn() {
        assert_eq!(hung(Phase::Serving, Duration::from_secs(119)), None);
        assert!(hung(Phase::Serving, status::STUCK).unwrap().contains("nothing is started"));
        assert_eq!(hung(Phase::Draining, status::STUCK * 2), None, "it waits for runs to end");
    }
}

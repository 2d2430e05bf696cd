//! What is to be told, from what stands and what is seen. Pure.
//!
//! A problem has a key. As long as it is seen under that key it is told once to each notifier that wants its occasion, told again after the
//! notifier's `remind`, and its end is told to those who were told of it. What runs say and what the status says of the same job share one
//! key, so that a failed backup is one message.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};

use crate::daemon::journal::{Job, Run, State, Trigger};
use crate::daemon::notify::event::{Change, Event, occasion_of};
use crate::daemon::scheduler::PastSlot;
use crate::daemon::status::{OVERDUE, PlanStatus, Problem};
use crate::error::Kind;
use crate::id::RunId;
use crate::plan::{HeartbeatStyle, Notifier, NotifierKind, Occasion, Plan};

/// A problem as it is seen now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub key: String,
    pub plan: Option<String>,
    pub job: Option<String>,
    pub kind: String,
    pub run: Option<String>,
    pub message: String,
    /// It is told only once it has stood for so long: what comes and goes by itself is nobody's night.
    pub patience: TimeDelta,
    /// Only this notifier is told, whatever it asks for.
    pub only: Option<String>,
}

/// A problem that stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    pub plan: Option<String>,
    pub job: Option<String>,
    pub kind: String,
    pub run: Option<String>,
    pub message: String,
    pub since: DateTime<Utc>,
    /// When each notifier was last told of it, and as what.
    pub told: BTreeMap<String, (DateTime<Utc>, String)>,
}

/// A run that began or ended since the last look; oldest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Noticed {
    pub run: Run,
    /// Whether a further attempt will be made soon: its failure is not told yet.
    pub retried: bool,
}

/// What was seen.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    pub runs: Vec<Noticed>,
    pub problems: Vec<Seen>,
    /// The plans that were judged (`None`: what is of no plan): what stands of them and is not among `problems` is over.
    pub judged: BTreeSet<Option<String>>,
    /// All plans there are: what stands of others is dropped without a word.
    pub plans: BTreeSet<String>,
}

/// Who is told of a plan's events.
pub type Audience<'a> = &'a dyn Fn(Option<&str>) -> Vec<&'a Notifier>;

/// Takes `standing` one look further; yields the events for each notifier, by its name.
pub fn step(
    standing: &mut BTreeMap<String, Standing>,
    observed: &Observed,
    audience: Audience<'_>,
    now: DateTime<Utc>,
) -> Vec<(String, Event)> {
    let mut events = Vec::new();
    for noticed in &observed.runs {
        of_run(standing, noticed, audience, &mut events, now);
    }
    let seen: BTreeSet<&str> = observed.problems.iter().map(|seen| seen.key.as_str()).collect();
    let over: Vec<String> = standing
        .iter()
        .filter(|(key, stood)| observed.judged.contains(&stood.plan) && !seen.contains(key.as_str()))
        .map(|(key, _)| key.clone())
        .collect();
    for key in over {
        end(standing, &key, audience, &mut events, now);
    }
    standing.retain(|_, stood| stood.plan.as_ref().is_none_or(|plan| observed.plans.contains(plan)));
    for seen in &observed.problems {
        raise(standing, seen, audience, &mut events, now);
    }
    events
}

/// A run that began, succeeded or failed.
fn of_run(
    standing: &mut BTreeMap<String, Standing>,
    noticed: &Noticed,
    audience: Audience<'_>,
    events: &mut Vec<(String, Event)>,
    now: DateTime<Utc>,
) {
    let run = &noticed.run;
    let (plan, job) = (run.plan.to_string(), run.job.word());
    let happened = |occasion: Occasion, message: String, time: DateTime<Utc>| Event {
        id: RunId::generate(now).to_string(),
        time,
        occasion: occasion.word().to_owned(),
        change: Change::Happened,
        plan: Some(plan.clone()),
        job: Some(job.to_owned()),
        problem: None,
        since: None,
        run: Some(run.id.to_string()),
        message,
    };
    let mut tell = |occasion: Occasion, event: Event| {
        let told = audience(Some(&plan)).into_iter().filter(|notifier| wants(notifier, occasion) && hears_of_run(notifier, job));
        told.for_each(|notifier| events.push((notifier.name.to_string(), event.clone())));
    };
    match run.state {
        State::Running => tell(Occasion::Start, happened(Occasion::Start, format!("a {job} began ({})", run.id), run.started)),
        State::Succeeded => {
            let message = match &run.error {
                Some(missed) => format!("the {job} succeeded and missed an objective: {} ({})", missed.line(), run.id),
                None => format!("the {job} succeeded ({})", run.id),
            };
            tell(Occasion::Success, happened(Occasion::Success, message, run.ended.unwrap_or(now)));
            end(standing, &run_key(&plan, job), audience, events, now);
        }
        State::Failed | State::Incomplete | State::Interrupted | State::Missed if noticed.retried || is_a_mistake(run) => {}
        State::Failed | State::Incomplete | State::Interrupted | State::Missed => {
            raise(standing, &seen_of_run(run), audience, events, now);
        }
    }
}

/// What failed by how it was asked for says nothing of the plan, as in [`Journal::newest`](crate::daemon::journal::Journal::newest).
fn is_a_mistake(run: &Run) -> bool {
    let mistake = |kind: &str| {
        [Kind::NoRecoveryPoint, Kind::WrongKey].iter().any(|k| k.word() == kind) || (kind == Kind::Usage.word() && run.job != Job::Backup)
    };
    run.trigger == Trigger::Manual && run.state == State::Failed && run.kind.as_deref().is_some_and(mistake)
}

fn seen_of_run(run: &Run) -> Seen {
    let (job, plan) = (run.job.word(), run.plan.to_string());
    let why = run.error.as_ref().map(crate::daemon::journal::ErrorRecord::line).or_else(|| run.story.clone()).unwrap_or_default();
    let how = match run.state {
        State::Failed => "failed",
        State::Incomplete => "was incomplete",
        State::Interrupted => "was interrupted",
        _ => "was not run",
    };
    Seen {
        key: run_key(&plan, job),
        plan: Some(plan),
        job: Some(job.to_owned()),
        kind: run.state.word().to_owned(),
        run: Some(run.id.to_string()),
        message: format!("the last {job} {how}: {why} (run {})", run.id),
        patience: TimeDelta::zero(),
        only: None,
    }
}

/// What the last run of a job says, whoever says it.
fn run_key(plan: &str, job: &str) -> String {
    format!("{plan}/run/{job}")
}

/// From the worst to the least; others come last.
const RUN_KINDS: [&str; 5] = ["drill-failed", "failed", "interrupted", "missed", "incomplete"];

/// The problems of a plan's status, each key once.
#[must_use]
pub fn seen_of_status(status: &PlanStatus, retried: &BTreeSet<String>) -> Vec<Seen> {
    let mut of_key: BTreeMap<String, Seen> = BTreeMap::new();
    for problem in &status.problems {
        let seen = seen_of_problem(Some(&status.name), problem, retried);
        match of_key.get_mut(&seen.key) {
            None => {
                of_key.insert(seen.key.clone(), seen);
            }
            Some(known) => {
                let rank = |kind: &str| RUN_KINDS.iter().position(|known| *known == kind).unwrap_or(RUN_KINDS.len());
                if rank(&seen.kind) < rank(&known.kind) {
                    known.kind.clone_from(&seen.kind);
                }
                known.patience = known.patience.min(seen.patience);
                if known.message.len() < 2000 {
                    known.message = format!("{}; {}", known.message, seen.message);
                }
            }
        }
    }
    of_key.into_values().collect()
}

/// `retried`: jobs of the plan whose last run failed and is tried again soon.
#[must_use]
pub fn seen_of_problem(plan: Option<&str>, problem: &Problem, retried: &BTreeSet<String>) -> Seen {
    let job = problem.job.as_deref();
    let scope = plan.unwrap_or("");
    let key = match (job, problem.kind.as_str()) {
        (Some(job), kind) if RUN_KINDS.contains(&kind) => run_key(scope, job),
        (Some(job), kind) => format!("{scope}/{kind}/{job}"),
        (None, kind) => format!("{scope}/{kind}"),
    };
    let patience = match problem.kind.as_str() {
        "repository-unreachable" | "log-not-streamed" | "canary-not-written" => TimeDelta::minutes(2),
        // A server of a journal that is started anew is back by then.
        "journal-unavailable" => TimeDelta::seconds(30),
        // A daemon that has just started settles it, or tries it again.
        "interrupted" => TimeDelta::minutes(5),
        "failed" if job.is_some_and(|job| retried.contains(job)) => TimeDelta::hours(24),
        "never-backed-up" => TimeDelta::hours(1),
        "never-proven" => TimeDelta::days(7),
        _ => TimeDelta::zero(),
    };
    Seen {
        key,
        plan: plan.map(str::to_owned),
        job: job.map(str::to_owned),
        kind: problem.kind.clone(),
        run: None,
        message: problem.message.clone(),
        patience,
        only: None,
    }
}

/// Whether a slot whose run ended is tried again soon, so that its failure is not told before the last attempt: only where the scheduler will
/// (an error that may pass, attempts left), and only until it should have begun.
#[must_use]
pub fn is_retried(plan: &Plan, slot: &PastSlot, now: DateTime<Utc>) -> bool {
    let again = match slot.state {
        State::Failed => slot.may_pass && slot.attempt < plan.retry.attempts,
        State::Interrupted => slot.attempt < plan.retry.attempts,
        _ => false,
    };
    let (Some(ended), true) = (slot.ended, again) else { return false };
    let doubled = plan.retry.delay.saturating_mul(1u32.checked_shl(slot.attempt.saturating_sub(1)).unwrap_or(u32::MAX));
    let begins = TimeDelta::from_std(doubled).ok().and_then(|delay| ended.checked_add_signed(delay));
    begins.is_some_and(|begins| now < begins + OVERDUE && begins - ended < TimeDelta::hours(24))
}

pub(super) fn wants(notifier: &Notifier, occasion: Occasion) -> bool {
    // A plain heartbeat has one word only.
    let plain = matches!(notifier.kind, NotifierKind::Heartbeat { style: HeartbeatStyle::Plain, .. });
    notifier.on.contains(&occasion) && (!plain || occasion == Occasion::Success)
}

/// A heartbeat hears of the jobs that it names; everybody else of all.
fn hears_of_run(notifier: &Notifier, job: &str) -> bool {
    match &notifier.kind {
        NotifierKind::Heartbeat { jobs, every, .. } => every.is_none() && jobs.contains(&job),
        _ => true,
    }
}

/// A heartbeat knows runs that failed or did not begin, and no other problem.
fn hears_of_problem(notifier: &Notifier, problem: &Standing) -> bool {
    if !matches!(notifier.kind, NotifierKind::Heartbeat { .. }) {
        return true;
    }
    let of_runs = RUN_KINDS.contains(&problem.kind.as_str()) || problem.kind == "overdue";
    of_runs && problem.job.as_deref().is_some_and(|job| hears_of_run(notifier, job))
}

fn event_of(problem: &Standing, occasion: Occasion, change: Change, message: String, now: DateTime<Utc>) -> Event {
    Event {
        id: RunId::generate(now).to_string(),
        time: now,
        occasion: occasion.word().to_owned(),
        change,
        plan: problem.plan.clone(),
        job: problem.job.clone(),
        problem: Some(problem.kind.clone()),
        since: Some(problem.since),
        run: problem.run.clone(),
        message,
    }
}

fn raise(
    standing: &mut BTreeMap<String, Standing>,
    seen: &Seen,
    audience: Audience<'_>,
    events: &mut Vec<(String, Event)>,
    now: DateTime<Utc>,
) {
    let stands = standing.entry(seen.key.clone()).or_insert_with(|| Standing {
        plan: seen.plan.clone(),
        job: seen.job.clone(),
        kind: seen.kind.clone(),
        run: seen.run.clone(),
        message: seen.message.clone(),
        since: now,
        told: BTreeMap::new(),
    });
    stands.kind.clone_from(&seen.kind);
    stands.message.clone_from(&seen.message);
    stands.run = seen.run.clone().or(stands.run.take());
    // A clock that was set back must not make what stands young for ever.
    stands.since = stands.since.min(now);
    let ripe = now - stands.since >= seen.patience;
    let occasion = occasion_of(&seen.kind, seen.job.as_deref());
    for notifier in audience(seen.plan.as_deref()) {
        // Nobody is told through a notifier that this notifier fails.
        let own = seen.kind == "notifier-failing" && seen.key.ends_with(&format!("/{}", notifier.name));
        let wanted = seen.only.as_ref().map_or_else(|| wants(notifier, occasion), |only| notifier.name.as_str() == only);
        if own || !wanted || !hears_of_problem(notifier, stands) {
            continue;
        }
        let change = match stands.told.get(notifier.name.as_str()) {
            // Another occasion under the same key is news.
            None => Change::Raised,
            Some((_, told)) if told != occasion.word() => Change::Raised,
            Some((at, _)) if is_to_be_reminded(notifier, *at, now) => Change::Reminded,
            Some(_) => continue,
        };
        if change == Change::Raised && !ripe {
            continue;
        }
        stands.told.insert(notifier.name.to_string(), (now, occasion.word().to_owned()));
        events.push((notifier.name.to_string(), event_of(stands, occasion, change, stands.message.clone(), now)));
    }
}

fn is_to_be_reminded(notifier: &Notifier, told: DateTime<Utc>, now: DateTime<Utc>) -> bool {
    let after = notifier.remind.and_then(|remind| TimeDelta::from_std(remind).ok());
    // Told in the future: the clock was wrong then.
    !matches!(notifier.kind, NotifierKind::Heartbeat { .. }) && after.is_some_and(|after| now - told >= after || told - now > after)
}

fn end(
    standing: &mut BTreeMap<String, Standing>,
    key: &str,
    audience: Audience<'_>,
    events: &mut Vec<(String, Event)>,
    now: DateTime<Utc>,
) {
    let Some(stood) = standing.remove(key) else { return };
    for notifier in audience(stood.plan.as_deref()) {
        // A heartbeat is told by the success itself.
        if stood.told.contains_key(notifier.name.as_str())
            && (wants(notifier, Occasion::Recovered) || stood.kind == "notifier-failing")
            && !matches!(notifier.kind, NotifierKind::Heartbeat { .. })
        {
            let message = format!("over: {}", stood.message);
            events.push((notifier.name.to_string(), event_of(&stood, Occasion::Recovered, Change::Over, message, now)));
        }
    }
}

#[cfg(test)]
mod tests;

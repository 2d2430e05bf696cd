//! The daemon: starts what is due, settles what a crash left, stops cleanly.
//!
//! Who runs beside whom: one daemon on a state folder (`serve.lock`); within it at most [`MAX_RUNS`] runs, and one per plan. Manual
//! runs of other processes are kept apart by the journal. The loop itself never works: runs have threads of their own, so that a
//! hanging store holds up its own plan only.
//!
//! A clean stop: the shared [`Cancel`](crate::event::Cancel) is set by the signal, runs end as `interrupted` at their next check and close their rows. A
//! run that does not end within [`STOP_DEADLINE`] is left as it is; the next start settles it like one that was killed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};

use crate::daemon::journal::{Job, Journal, NewRun, Run};
use crate::daemon::logs::Logs;
use crate::daemon::owner::DaemonLock;
use crate::daemon::scheduler::{self, PastSlot, Situation, Step};
use crate::daemon::{runner, status};
use crate::error::{Error, Kind, Result};
use crate::id::{Name, RunId};
use crate::ops::resolve::{self, Surroundings};
use crate::plan::{Plan, Plans};

/// Greatest number of runs at once.
const MAX_RUNS: usize = 4;

/// The loop looks at the clock at least this often, so that a clock that is set is noticed.
const LONGEST_SLEEP: Duration = Duration::from_secs(20);

/// How soon a signal is noticed.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(200);

/// After this a run that was asked to stop is left behind.
const STOP_DEADLINE: Duration = Duration::from_mins(1);

/// A plan that was busy, or a journal that failed, is looked at again after this.
const TRY_AGAIN: chrono::TimeDelta = chrono::TimeDelta::seconds(10);

/// How often what runs left is swept: kept drill targets whose time is over, above all.
const SWEEP_INTERVAL: Duration = Duration::from_mins(10);

/// A run's thread says that it ended.
struct Ended {
    plan: Name,
    result: Result<RunId>,
}

/// Sends [`Ended`] when it is dropped, also by a panic: a plan must not be held up by a run that is no more.
struct Ending {
    sender: Sender<Ended>,
    plan: Name,
    result: Option<Result<RunId>>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        let result = self.result.take().unwrap_or_else(|| {
            Err(Error::new(Kind::Bug, format!("the thread of a run of plan {} panicked", self.plan))
                .hint("please report this, with the lines above"))
        });
        // The receiver is gone only when the daemon gave up waiting.
        let _ = self.sender.send(Ended { plan: self.plan.clone(), result });
    }
}

struct Daemon<'a> {
    plans: &'a Plans,
    journal: Arc<Journal>,
    surroundings: &'a Surroundings,
    /// Plans that have a run now.
    running: BTreeMap<Name, Job>,
    /// Since when a plan has been free; starts with the daemon.
    free_since: BTreeMap<Name, DateTime<Utc>>,
    /// Since when there has been room for another run.
    room_since: DateTime<Utc>,
    /// Plans to leave alone until then.
    paused: BTreeMap<Name, DateTime<Utc>>,
    sender: Sender<Ended>,
    /// The last sweep and when it began.
    sweep: Option<(Instant, JoinHandle<()>)>,
}

/// Runs until `surroundings.cancel` is set. `ready` is called once everything is in place.
///
/// # Errors
/// `Busy` when another daemon is there; what the journal says at the start. Failures of runs are recorded, not returned.
pub fn run(plans: &Plans, surroundings: &Surroundings, ready: impl FnOnce()) -> Result<()> {
    let _lock = DaemonLock::take(&surroundings.state)?;
    let now = surroundings.clock.now();
    let journal = Arc::new(Journal::of(plans, &surroundings.state, None, now)?);
    let open = |run: &Run| match plans.plan(run.plan.as_str()) {
        Ok(plan) => resolve::repository(&plan.repository)?.open(surroundings).map(Some),
        Err(_) => Ok(None),
    };
    runner::settle(&journal, |_| true, open, surroundings.clock.now())?;
    let (sender, receiver) = channel();
    let mut daemon = Daemon {
        plans,
        journal,
        surroundings,
        running: BTreeMap::new(),
        free_since: BTreeMap::new(),
        room_since: DateTime::<Utc>::MIN_UTC,
        paused: BTreeMap::new(),
        sender,
        sweep: None,
    };
    let schedules: usize = plans.plans.values().map(|plan| status::schedules(plan).len()).sum();
    let logs = Logs::start(plans, surroundings);
    if schedules == 0 && logs.len() == 0 {
        tracing::warn!("no plan has a schedule: there is nothing to do");
    }
    tracing::info!(plans = plans.plans.len(), schedules, logs = logs.len(), state = %surroundings.state.display(), "serving");
    ready();
    while !surroundings.cancel.is_cancelled() {
        daemon.sweep();
        let wake = daemon.start_due();
        daemon.wait(&receiver, wake);
    }
    let deadline = Instant::now() + STOP_DEADLINE;
    daemon.stop(&receiver);
    logs.stop(deadline);
    Ok(())
}

/// What killed processes left of this plan: they would be in the way of its next run.
fn settle(plan: &Plan, journal: &Journal, surroundings: &Surroundings) -> Result<()> {
    let open = |_: &Run| resolve::repository(&plan.repository)?.open(surroundings).map(Some);
    runner::settle(journal, |run| run.plan == plan.name, open, surroundings.clock.now()).map(|_| ())
}

impl Daemon<'_> {
    /// Sweeps now and then, in a thread of its own: a target may be large. Plans that have no schedule, or are gone, have no other chance.
    fn sweep(&mut self) {
        if self.sweep.as_ref().is_some_and(|(began, thread)| began.elapsed() < SWEEP_INTERVAL || !thread.is_finished()) {
            return;
        }
        let (state, clock) = (self.surroundings.state.clone(), Arc::clone(&self.surroundings.clock));
        match std::thread::Builder::new().name("sweep".into()).spawn(move || crate::ops::sweep(&state, clock.now())) {
            Ok(thread) => self.sweep = Some((Instant::now(), thread)),
            Err(error) => tracing::error!(%error, "no thread to remove what runs left"),
        }
    }

    /// Starts every run that is due and for which there is room; returns when to look again.
    fn start_due(&mut self) -> DateTime<Utc> {
        match self.journal.finish_unfinished() {
            Ok(0) => {}
            Ok(runs) => tracing::info!(runs, "the ends of runs that could not be recorded before are recorded now"),
            Err(error) => tracing::error!(error = ?error, hint = error.hint_text(), "the ends of runs still cannot be recorded"),
        }
        let now = self.surroundings.clock.now();
        let mut wake = now + chrono::TimeDelta::from_std(LONGEST_SLEEP).unwrap_or_default();
        let plans = self.plans;
        for plan in plans.plans.values() {
            if self.running.contains_key(&plan.name) {
                continue;
            }
            if let Some(until) = self.paused.get(&plan.name).copied() {
                if until > now {
                    wake = wake.min(until);
                    continue;
                }
                self.paused.remove(&plan.name);
            }
            match self.start_plan(plan, now) {
                Ok(Some(next)) => wake = wake.min(next),
                Ok(None) => {}
                Err(error) => {
                    tracing::error!(plan = %plan.name, error = ?error, hint = error.hint_text(), "the plan could not be scheduled");
                    self.paused.insert(plan.name.clone(), now + TRY_AGAIN);
                    wake = wake.min(now + TRY_AGAIN);
                }
            }
        }
        wake
    }

    /// Backups come before drills, drills before verifications. Returns when the nearest schedule of the plan is due.
    fn start_plan(&mut self, plan: &Arc<Plan>, now: DateTime<Utc>) -> Result<Option<DateTime<Utc>>> {
        let rules = status::rules(plan);
        let mut nearest: Option<DateTime<Utc>> = None;
        for (job, schedule) in status::schedules(plan) {
            let since = self.journal.schedule_since(&plan.name, job, &status::expression(schedule), now)?;
            loop {
                let situation = Situation {
                    now,
                    since,
                    last: self.journal.last_slot(&plan.name, job, now)?.as_ref().and_then(PastSlot::of_run),
                    free_since: self.free_since.get(&plan.name).copied().unwrap_or(DateTime::<Utc>::MIN_UTC).max(self.room_since),
                };
                match scheduler::next_step(&plan.name, schedule, &rules, &situation) {
                    Step::Wait(until) => {
                        nearest = nearest.into_iter().chain(until).min();
                        break;
                    }
                    Step::Missed { slot, count, first } => {
                        let story = missed_story(job, count, first, slot);
                        tracing::warn!(plan = %plan.name, job = job.word(), count, first = %first, last = %slot, "slots were missed and are skipped");
                        self.journal.missed(&plan.name, job, slot, &story, now)?;
                    }
                    Step::Run { slot, trigger, covers, first } => {
                        if self.running.len() >= MAX_RUNS {
                            return Ok(None);
                        }
                        let story = (covers > 0).then(|| format!("stands for {} missed since {first}", counted(covers)));
                        self.start(plan, NewRun::of_slot(&plan.name, job, trigger, slot, RunId::generate(now)), story);
                        return Ok(None);
                    }
                }
            }
        }
        Ok(nearest)
    }

    fn start(&mut self, plan: &Arc<Plan>, run: NewRun, story: Option<String>) {
        self.running.insert(plan.name.clone(), run.job);
        let (journal, surroundings, plan, sender) =
            (Arc::clone(&self.journal), self.surroundings.clone(), Arc::clone(plan), self.sender.clone());
        let name = plan.name.clone();
        let work = move || {
            let mut ending = Ending { sender, plan: plan.name.clone(), result: None };
            let result = settle(&plan, &journal, &surroundings).and_then(|()| runner::run_job(&journal, &plan, &run, story, &surroundings));
            if result.is_err() {
                // A claim whose answer was lost is in no one's hands.
                if let Err(error) = settle(&plan, &journal, &surroundings) {
                    tracing::error!(plan = %plan.name, error = ?error, "what the run left could not be settled");
                }
            }
            ending.result = Some(result);
        };
        if let Err(error) = std::thread::Builder::new().name(format!("run-{name}")).spawn(work) {
            tracing::error!(plan = %name, %error, "no thread for the run");
            self.running.remove(&name);
            self.paused.insert(name, self.surroundings.clock.now() + TRY_AGAIN);
        }
    }

    /// Until a run ends, a signal comes, or it is time.
    fn wait(&mut self, receiver: &Receiver<Ended>, wake: DateTime<Utc>) {
        loop {
            if let Ok(ended) = receiver.recv_timeout(SIGNAL_INTERVAL) {
                self.ended(ended);
                return;
            }
            if self.surroundings.cancel.is_cancelled() || self.surroundings.clock.now() >= wake {
                return;
            }
        }
    }

    fn ended(&mut self, ended: Ended) {
        let now = self.surroundings.clock.now();
        self.running.remove(&ended.plan);
        self.free_since.insert(ended.plan.clone(), now);
        self.room_since = now;
        if let Err(error) = ended.result {
            match error.kind() {
                // A manual run was quicker: look again when it may be over.
                Kind::Busy => {
                    tracing::info!(plan = %ended.plan, error = ?error, "the plan is busy");
                    self.paused.insert(ended.plan, now + TRY_AGAIN);
                }
                Kind::Bug => {
                    tracing::error!(plan = %ended.plan, error = ?error, "a run ended by a bug");
                    self.paused.insert(ended.plan, now + TRY_AGAIN);
                }
                // Also where it could not even be recorded: then nothing else keeps it from being tried again at once.
                _ => {
                    tracing::error!(plan = %ended.plan, error = ?error, hint = error.hint_text(), "run failed");
                    self.paused.insert(ended.plan, now + TRY_AGAIN);
                }
            }
        }
    }

    fn stop(&mut self, receiver: &Receiver<Ended>) {
        let deadline = Instant::now() + STOP_DEADLINE;
        if !self.running.is_empty() {
            tracing::info!(runs = self.running.len(), "stopping: runs are asked to end");
        }
        while !self.running.is_empty() {
            let Ok(ended) = receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) else {
                let _ = self.journal.finish_unfinished();
                tracing::error!(runs = self.running.len(), "runs did not end in time and are left behind; the next start settles them");
                return;
            };
            self.ended(ended);
        }
        if let Err(error) = self.journal.finish_unfinished() {
            tracing::error!(error = ?error, "the ends of runs could not be recorded; the next start settles them");
        }
        tracing::info!("stopped");
    }
}

fn counted(count: u32) -> String {
    match count {
        1 => "a slot".to_owned(),
        count if count + 1 >= Step::COUNTED => format!("more than {count} slots"),
        count => format!("{count} slots"),
    }
}

fn missed_story(job: Job, count: u32, first: DateTime<Utc>, last: DateTime<Utc>) -> String {
    let word = job.word();
    if count == 1 {
        format!("the {word} of {last} was missed; the plan says to skip")
    } else {
        format!("{} from {first} to {last} were missed; the plan says to skip", counted(count))
    }
}

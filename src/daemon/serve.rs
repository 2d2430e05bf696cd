//! The daemon: starts what is due, settles what a crash left, stops cleanly.
//!
//! Who runs beside whom: one daemon on a state folder (`serve.lock`); within it at most `max_runs` runs, and one per plan. Manual
//! runs of other processes are kept apart by the journal. The loop itself never works: runs have threads of their own, so that a
//! hanging store holds up its own plan only.
//!
//! A clean stop: the shared [`Cancel`](crate::event::Cancel) is set by the signal, runs end as `interrupted` at their next check and close their rows. A
//! run that does not end within [`STOP_DEADLINE`] is left as it is; the next start settles it like one that was killed.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};

use crate::daemon::companion::{Companion, Companions, Context};
use crate::daemon::control::{Control, Hold, Inbox, LONGEST_TURN, Message, Phase, Requested};
use crate::daemon::job::{self, Job};
use crate::daemon::journal::{Journal, NewRun};
use crate::daemon::logs::Logs;
use crate::daemon::owner::DaemonLock;
use crate::daemon::runner;
use crate::daemon::scheduler::{self, PastSlot, Situation, Step};
use crate::error::{Error, Kind, Result};
use crate::event::{Progress, Reason};
use crate::id::{Name, RunId};
use crate::ops::resolve::{self, Surroundings};
use crate::plan::{Plan, Plans};

/// How soon a signal is noticed.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(200);

/// After this a run that was asked to stop is left behind.
const STOP_DEADLINE: Duration = Duration::from_mins(1);

/// What lives beside the runs has at least so long to finish, after the last of them.
const COMPANIONS_DEADLINE: Duration = Duration::from_secs(10);

/// A plan that was busy, or a journal that failed, is looked at again after this.
const TRY_AGAIN: chrono::TimeDelta = chrono::TimeDelta::seconds(10);

/// How often what runs left is swept: kept drill targets whose time is over, above all.
const SWEEP_INTERVAL: Duration = Duration::from_mins(10);

/// What a daemon is started with.
pub struct Setup {
    /// The plan files, or folders of them.
    pub paths: Vec<PathBuf>,
    /// `cancel` stops the daemon; runs and companions get their own.
    pub surroundings: Surroundings,
    /// What lives beside the runs, in the order of its start.
    pub companions: Vec<Box<dyn Companion>>,
}

/// Sends [`Message::Ended`] when it is dropped, also by a panic: a plan must not be held up by a run that is no more.
struct Ending {
    control: Control,
    hold: Arc<Hold>,
    result: Option<Result<RunId>>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        let result = self.result.take().unwrap_or_else(|| {
            Err(Error::new(Kind::Bug, format!("the thread of a run of plan {} panicked", self.hold.run.plan))
                .hint("please report this, with the lines above"))
        });
        // The receiver is gone only when the daemon gave up waiting.
        let _ = self.control.sender().send(Message::Ended { id: self.hold.run.id, result });
    }
}

struct Daemon<'a> {
    control: Control,
    journal: Arc<Journal>,
    surroundings: &'a Surroundings,
    /// Plans that have a run now.
    running: BTreeMap<Name, RunId>,
    /// Since when a plan has been free; starts with the daemon.
    free_since: BTreeMap<Name, DateTime<Utc>>,
    /// Since when there has been room for another run.
    room_since: DateTime<Utc>,
    /// Plans to leave alone until then.
    paused: BTreeMap<Name, DateTime<Utc>>,
    /// The last sweep and when it began.
    sweep: Option<(Instant, JoinHandle<()>)>,
}

/// Runs until `surroundings.cancel` is set. `ready` is called once everything is in place.
///
/// # Errors
/// `Usage` with everything that is wrong in the plan files; `Busy` when another daemon is there; what the journal or a companion says at the
/// start. Failures of runs are recorded, not returned.
pub fn run(setup: Setup, ready: impl FnOnce(&Control)) -> Result<()> {
    let surroundings = &setup.surroundings;
    let plans = Arc::new(Plans::load(&setup.paths)?);
    let _lock = DaemonLock::take(&surroundings.state)?;
    let journal = Arc::new(Journal::open(&surroundings.state, surroundings.clock.now())?);
    let (control, inbox) = Control::new(Arc::clone(&plans), Arc::clone(&surroundings.clock));
    let context = Context { control: control.clone(), journal: Arc::clone(&journal), surroundings: surroundings.clone() };
    let mut companions = Companions::start(setup.companions, &context)?;
    let served = serve(control.clone(), &inbox, &plans, journal, surroundings, ready);
    control.set_phase(Phase::Stopping);
    companions.stop(Instant::now() + COMPANIONS_DEADLINE);
    served
}

/// From the first look at what a crash left to the end of the last run.
fn serve(
    control: Control,
    inbox: &Inbox,
    plans: &Plans,
    journal: Arc<Journal>,
    surroundings: &Surroundings,
    ready: impl FnOnce(&Control),
) -> Result<()> {
    let open = |run: &crate::daemon::journal::Run| resolve::repository(&plans.plan(run.plan.as_str())?.repository)?.open(surroundings);
    runner::settle(&journal, |_| true, open, surroundings.clock.now())?;
    let mut daemon = Daemon {
        control: control.clone(),
        journal,
        surroundings,
        running: BTreeMap::new(),
        free_since: BTreeMap::new(),
        room_since: DateTime::<Utc>::MIN_UTC,
        paused: BTreeMap::new(),
        sweep: None,
    };
    let schedules: usize = plans.plans.values().map(|plan| job::schedules(plan).len()).sum();
    let logs = Logs::start(plans, surroundings);
    if schedules == 0 && logs.len() == 0 {
        tracing::warn!("no plan has a schedule: there is nothing to do");
    }
    tracing::info!(plans = plans.plans.len(), schedules, logs = logs.len(), state = %surroundings.state.display(), "serving");
    control.set_phase(Phase::Serving);
    ready(&control);
    while !surroundings.cancel.is_cancelled() {
        control.turned();
        daemon.sweep();
        let wake = daemon.start_due();
        daemon.wait(inbox, wake);
    }
    control.set_phase(Phase::Draining);
    let deadline = Instant::now() + STOP_DEADLINE;
    daemon.stop(inbox);
    logs.stop(deadline);
    Ok(())
}

/// What killed processes left of this plan: they would be in the way of its next run.
fn settle(plan: &Plan, journal: &Journal, surroundings: &Surroundings) -> Result<()> {
    let open = |_: &crate::daemon::journal::Run| resolve::repository(&plan.repository)?.open(surroundings);
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
        let mut wake = now + chrono::TimeDelta::from_std(LONGEST_TURN).unwrap_or_default();
        let plans = self.control.plans();
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

    fn has_room(&self) -> bool {
        self.running.len() < usize::from(self.control.plans().serve.max_runs.get())
    }

    /// Backups come before drills, drills before verifications. Returns when the nearest schedule of the plan is due.
    fn start_plan(&mut self, plan: &Arc<Plan>, now: DateTime<Utc>) -> Result<Option<DateTime<Utc>>> {
        let rules = job::rules(plan);
        let mut nearest: Option<DateTime<Utc>> = None;
        for (job, schedule) in job::schedules(plan) {
            let since = self.journal.schedule_since(&plan.name, job, &job::expression(schedule), now)?;
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
                        if !self.has_room() {
                            return Ok(None);
                        }
                        let story = (covers > 0).then(|| format!("stands for {} missed since {first}", counted(covers)));
                        let id = situation.last.filter(|last| last.slot == slot).map_or_else(|| RunId::generate(now), |last| last.run);
                        self.start(plan, NewRun::of_slot(&plan.name, job, trigger, slot, id), story)?;
                        return Ok(None);
                    }
                }
            }
        }
        Ok(nearest)
    }

    fn start(&mut self, plan: &Arc<Plan>, run: NewRun, story: Option<String>) -> Result<()> {
        let hold = Arc::new(Hold::new(run, self.surroundings.clock.now()));
        let (journal, plan) = (Arc::clone(&self.journal), Arc::clone(plan));
        let surroundings =
            Surroundings { cancel: hold.cancel.clone(), progress: Arc::clone(&hold) as Arc<dyn Progress>, ..self.surroundings.clone() };
        let (control, kept, name) = (self.control.clone(), Arc::clone(&hold), plan.name.clone());
        let work = move || {
            let mut ending = Ending { control, hold: Arc::clone(&kept), result: None };
            let result =
                settle(&plan, &journal, &surroundings).and_then(|()| runner::run_job(&journal, &plan, &kept.run, story, &surroundings));
            if result.is_err() {
                // A claim whose answer was lost is in no one's hands.
                if let Err(error) = settle(&plan, &journal, &surroundings) {
                    tracing::error!(plan = %plan.name, error = ?error, "what the run left could not be settled");
                }
            }
            ending.result = Some(result);
        };
        let thread = std::thread::Builder::new().name(format!("run-{name}")).spawn(work);
        thread.map_err(|error| Error::io(format!("start the thread of a run of plan {name}"), error))?;
        self.running.insert(name, hold.run.id);
        self.control.started(hold);
        Ok(())
    }

    /// Until a run ends, somebody asks for something, a signal comes, or it is time.
    fn wait(&mut self, inbox: &Inbox, wake: DateTime<Utc>) {
        loop {
            if let Ok(message) = inbox.0.recv_timeout(SIGNAL_INTERVAL) {
                self.take(message);
                return;
            }
            if self.surroundings.cancel.is_cancelled() || self.surroundings.clock.now() >= wake {
                return;
            }
        }
    }

    fn take(&mut self, message: Message) {
        // Whoever asked and went away is not told.
        match message {
            Message::Ended { id, result } => self.ended(id, result),
            Message::Request { run, reply } => {
                let _ = reply.send(self.requested(run));
            }
            Message::Cancel { id, by, reply } => {
                let hold = self.control.holds().into_iter().find(|hold| hold.run.id == id);
                let none = || Error::new(Kind::NotFound, format!("cancel run {id}: no run of this daemon that goes on has this id"));
                let _ = reply.send(hold.map(|hold| hold.cancel.cancel_because(Reason::Cancelled(by))).ok_or_else(none));
            }
        }
    }

    fn requested(&mut self, run: NewRun) -> Result<Requested> {
        let busy = |why: &str| {
            Error::new(Kind::Busy, format!("start {} of plan {}: {why}", run.job.word(), run.plan)).hint("ask again when it is over")
        };
        if self.surroundings.cancel.is_cancelled() {
            return Err(busy("the daemon is stopping"));
        }
        if let Some(id) = self.running.get(&run.plan) {
            return Err(busy(&format!("run {id} of the plan goes on")));
        }
        if !self.has_room() {
            return Err(busy("as many runs as may go on at once"));
        }
        let plans = self.control.plans();
        let (plan, id) = (plans.plan(run.plan.as_str())?, run.id);
        self.start(plan, run, None)?;
        Ok(Requested { id, waits_for: None })
    }

    fn ended(&mut self, id: RunId, result: Result<RunId>) {
        let now = self.surroundings.clock.now();
        let Some(hold) = self.control.ended(id) else { return };
        let plan = hold.run.plan.clone();
        self.running.remove(&plan);
        self.free_since.insert(plan.clone(), now);
        self.room_since = now;
        if let Err(error) = result {
            match error.kind() {
                // A manual run was quicker: look again when it may be over.
                Kind::Busy => tracing::info!(plan = %plan, error = ?error, "the plan is busy"),
                Kind::Bug => tracing::error!(plan = %plan, error = ?error, "a run ended by a bug"),
                // Also where it could not even be recorded: then nothing else keeps it from being tried again at once.
                _ => tracing::error!(plan = %plan, error = ?error, hint = error.hint_text(), "run failed"),
            }
            self.paused.insert(plan, now + TRY_AGAIN);
        }
    }

    fn stop(&mut self, inbox: &Inbox) {
        let deadline = Instant::now() + STOP_DEADLINE;
        if !self.running.is_empty() {
            tracing::info!(runs = self.running.len(), "stopping: runs are asked to end");
        }
        for hold in self.control.holds() {
            hold.cancel.cancel_because(Reason::DaemonEnds);
        }
        while !self.running.is_empty() {
            let Ok(message) = inbox.0.recv_timeout(deadline.saturating_duration_since(Instant::now())) else {
                let _ = self.journal.finish_unfinished();
                tracing::error!(runs = self.running.len(), "runs did not end in time and are left behind; the next start settles them");
                return;
            };
            self.take(message);
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

//! The daemon: starts what is due, settles what a crash left, follows changes of its plans, stops cleanly.
//!
//! Who runs beside whom: one daemon on a state folder (`serve.lock`); within it what [`places`](crate::daemon::places) allows. Manual runs of other
//! processes, and other nodes ([`nodes`]), are kept apart by the journal. The loop itself never works: runs have threads of their own, so that a hanging store holds up
//! its own plan only; plan files are read by another; only the loop changes the [`Agenda`].
//!
//! A clean stop: the first signal lets runs go on until the plan files' `drain` is over and starts nothing new; then, or with the second
//! signal, they are cancelled, end as `interrupted` at their next check and close their rows. A run that does not end within
//! [`STOP_DEADLINE`] after that is left as it is; the next start settles it like one that was killed.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};

use crate::daemon::agenda::{Agenda, Restore, Start};
use crate::daemon::cancel;
use crate::daemon::companion::{Companion, Companions, Context, Threaded};
use crate::daemon::control::{Control, Hold, Inbox, LONGEST_TURN, Message, PATIENCE, Phase, Requested, Signals};
use crate::daemon::job::Job;
use crate::daemon::journal::{self, Filter, Journal, NewRun, State};
use crate::daemon::logs::Logs;
use crate::daemon::nodes::{self, Membership};
use crate::daemon::owner::{self, DaemonLock};
use crate::daemon::places::OTHERS_FIRST;
use crate::daemon::reload::{self, Print};
use crate::daemon::requests::Requests;
use crate::daemon::runner;
use crate::daemon::scheduler::Step;
use crate::daemon::settler::{self, Settler};
use crate::error::{Error, Kind, Result};
use crate::event::{Cancel, Progress, Reason};
use crate::id::RunId;
use crate::ops::resolve::Surroundings;
use crate::plan::{Plans, Sound};

/// How soon a signal is noticed.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(200);

/// After this a run that was asked to stop is left behind.
const STOP_DEADLINE: Duration = Duration::from_mins(1);

/// What lives beside the runs has at least so long to finish, after the last of them.
const COMPANIONS_DEADLINE: Duration = Duration::from_secs(10);

/// How often restores of other processes are looked for, while something would give way to them.
const RESTORE_INTERVAL: Duration = Duration::from_secs(2);

/// How often a journal that machines share is asked about all schedules, whatever this node believes of them.
const ASK_INTERVAL: Duration = Duration::from_mins(1);

/// How often what runs left is swept: kept drill targets whose time is over, above all.
const SWEEP_INTERVAL: Duration = Duration::from_mins(10);

/// What a daemon is started with.
pub struct Setup {
    /// The plan files, or folders of them.
    pub paths: Vec<PathBuf>,
    /// `cancel` cancels what runs and stops the daemon; runs and companions get their own.
    pub surroundings: Surroundings,
    pub signals: Signals,
    /// What lives beside the runs, in the order of its start.
    pub companions: Vec<Box<dyn Companion>>,
    /// The name of this node on a journal that machines share; `None`: the machine's.
    pub node: Option<String>,
    /// What this node is, for plans that say where they may run.
    pub labels: Vec<String>,
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
    membership: Membership,
    settler: Settler,
    surroundings: &'a Surroundings,
    signals: &'a Signals,
    lock: &'a DaemonLock,
    agenda: Agenda,
    logs: Logs,
    requests: Requests,
    /// Requests of plans that no file knows while some files are wrong.
    unknown: Vec<NewRun>,
    /// When the journal was last asked about everything.
    asked: Instant,
    /// When restores were looked for last.
    restores_seen: Option<Instant>,
    /// The last sweep and when it began.
    sweep: Option<(Instant, JoinHandle<()>)>,
}

/// Runs until it is asked to stop. `ready` is called once everything is in place. Plan files that are wrong are left out and told of: after a
/// restart of the machine one mistake must not keep all other plans from being backed up.
///
/// # Errors
/// `Usage` with everything that is wrong in the plan files, where no plan is left or the journal's settings may be in one that is wrong; `Busy` when another daemon is there; what the journal or a companion says at the
/// start. Failures of runs are recorded, not returned.
pub fn run(setup: Setup, ready: impl FnOnce(&Control)) -> Result<()> {
    let surroundings = &setup.surroundings;
    // Before they are read: a change in between is seen at the next look.
    let print = Print::of(&setup.paths);
    let sound = Sound::load(&setup.paths)?;
    let wrong = sound.errors.clone().map(Error::from);
    let plans = Arc::new(sound.with_their_journal()?);
    // A service that is up and does nothing would look well.
    if plans.plans.is_empty()
        && let Some(error) = wrong
    {
        return Err(error);
    }
    let lock = DaemonLock::take(&surroundings.state)?;
    let journal = Arc::new(Journal::of(&plans, &surroundings.state, setup.node.as_deref(), surroundings.clock.now())?);
    let membership = Membership::new(journal.node(), &setup.labels, journal.is_shared());
    // Before anything is claimed: two nodes of one name would take each other's runs for their own.
    journal.check_in(&setup.labels, surroundings.clock.now())?;
    let (control, inbox) = Control::new(Arc::clone(&plans), Arc::clone(&surroundings.clock));
    if let Some(error) = &wrong {
        left_out(&control, error);
    }
    let context = Context { control: control.clone(), journal: Arc::clone(&journal), surroundings: surroundings.clone() };
    let settler = settler_of(&context);
    let (own, shared) = (membership.clone(), settler.clone());
    let node: Box<dyn Companion> = Box::new(Threaded::new("node", move |context: Context| nodes::run(&context, &own, &shared)));
    let companions = std::iter::once(node).chain(setup.companions).collect();
    let mut companions = Companions::start(companions, &context)?;
    let watch = Cancel::default();
    let watcher = reload::watch(setup.paths, print, wrong.as_ref(), setup.signals.clone(), &control, watch.clone());
    let served = watcher.map(|_| serve(&context, &inbox, settler, membership, &setup.signals, &lock, ready));
    watch.cancel();
    control.set_phase(Phase::Stopping);
    companions.stop(Instant::now() + COMPANIONS_DEADLINE);
    served
}

/// From the first turn of the loop to the end of the last run.
fn serve(
    context: &Context,
    inbox: &Inbox,
    settler: Settler,
    membership: Membership,
    signals: &Signals,
    lock: &DaemonLock,
    ready: impl FnOnce(&Control),
) {
    let (control, journal, surroundings) = (context.control.clone(), Arc::clone(&context.journal), &context.surroundings);
    let plans = control.plans();
    let agenda = Agenda::of_node(Arc::clone(&plans), membership.clone(), surroundings.clock.now());
    let mut daemon = Daemon {
        control: control.clone(),
        journal,
        membership,
        settler,
        surroundings,
        signals,
        lock,
        agenda,
        logs: Logs::new(),
        requests: Requests::of(&surroundings.state),
        unknown: Vec::new(),
        asked: Instant::now(),
        restores_seen: None,
        sweep: None,
    };
    daemon.logs.follow(&plans, &daemon.journal, &daemon.membership, surroundings);
    daemon.take_up_requests();
    let (schedules, logs) = (daemon.agenda.len(), daemon.logs.len());
    if schedules == 0 && logs == 0 {
        tracing::warn!("no plan has a schedule that this node may run: there is nothing to do but what is asked for");
    }
    tracing::info!(plans = plans.plans.len(), schedules, logs, state = %surroundings.state.display(), "serving");
    control.set_phase(Phase::Serving);
    ready(&control);
    while !daemon.is_stopping() {
        daemon.turned();
        daemon.sweep();
        daemon.finish_unfinished();
        let wake = daemon.start_due();
        daemon.keep_requests();
        daemon.wait(inbox, wake);
    }
    daemon.stop(inbox);
}

/// What settles for a daemon: its loop looks at the plan again then.
fn settler_of(context: &Context) -> Settler {
    let (control, told) = (context.control.clone(), context.control.clone());
    let journal = Journal::clone(&context.journal);
    Settler::new(journal, context.surroundings.clone(), move || Ok(control.plans()), move |plan| told.look(plan))
}

/// Some plan files are wrong at the start: what is in them does not run, which must not be silent.
fn left_out(control: &Control, error: &Error) {
    tracing::error!(error = ?error, hint = error.hint_text(), "plan files are wrong and are left out: nothing in them runs");
    let why = crate::ops::explain(error);
    control.set_problem(reload::BROKEN, Some(format!("{LEFT_OUT}: {why}")));
}

/// What is told of plan files that were wrong at the start, until all of them are right.
const LEFT_OUT: &str = "plan files are wrong and were left out at the start, nothing in them runs";

/// Whether a running daemon can go over to these plans.
fn suits(old: &Plans, new: &Plans) -> Result<()> {
    journal::check(new)?;
    if (&old.journal.url, old.journal.lease) == (&new.journal.url, new.journal.lease) {
        return Ok(());
    }
    Err(Error::new(Kind::Usage, "[journal] url or lease has changed: a daemon stays with the journal that it was started with")
        .hint("start the daemon anew, or take the change back"))
}

impl Daemon<'_> {
    fn is_stopping(&self) -> bool {
        self.signals.drain.is_cancelled() || self.surroundings.cancel.is_cancelled()
    }

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

    /// Puts in line again what waited when the last daemon ended.
    fn take_up_requests(&mut self) {
        let kept = match self.requests.read() {
            Ok(kept) => kept,
            Err(error) => {
                tracing::error!(error = ?error, hint = error.hint_text(), "requests that waited when the daemon ended are lost");
                return;
            }
        };
        let plans = self.control.plans();
        for run in kept {
            // It began, and the journal tells how that ended. Where the journal cannot be asked, it has the last word when the run begins.
            if self.journal.run(run.id).is_ok() {
                continue;
            }
            match plans.plans.get(&run.plan) {
                Some(plan) => {
                    tracing::info!(run = %run.id, plan = %run.plan, by = run.by, "a request that waited when the daemon ended waits again");
                    self.agenda.request(plan, run);
                }
                // It may be in a file that is wrong.
                None if plans.is_partial => self.unknown.push(run),
                None => self.drop_request(&run),
            }
        }
        self.keep_requests();
    }

    /// A request whose plan is gone: the journal says so to whoever asked.
    fn drop_request(&self, run: &NewRun) {
        tracing::warn!(run = %run.id, plan = %run.plan, "a request that waited is dropped: its plan is gone");
        let story = "it waited for its turn and never began: its plan is gone";
        if let Err(error) = self.journal.dropped(run, story, self.surroundings.clock.now()) {
            tracing::error!(run = %run.id, error = ?error, "that a request was dropped could not be recorded");
        }
    }

    /// Keeps what was asked for and is not known to the journal as ended: so nothing is lost between its place in line and its row.
    fn write_requests(&mut self) -> Result<()> {
        let begun: Vec<_> = self.control.holds().into_iter().filter(|hold| hold.run.scheduled.is_none()).collect();
        let all: Vec<&NewRun> = begun.iter().map(|hold| &hold.run).chain(self.agenda.waiting_requests()).chain(&self.unknown).collect();
        self.requests.keep(&all)
    }

    fn keep_requests(&mut self) {
        if let Err(error) = self.write_requests() {
            tracing::error!(error = ?error, hint = error.hint_text(), "the requests that wait could not be kept for the next start");
        }
    }

    /// Whoever watches this daemon, in its process or another, sees that it goes on.
    fn turned(&self) {
        self.control.turned();
        self.lock.alive();
    }

    fn finish_unfinished(&self) {
        match self.journal.finish_unfinished() {
            Ok(0) => {}
            Ok(runs) => tracing::info!(runs, "the ends of runs that could not be recorded before are recorded now"),
            Err(error) => tracing::error!(error = ?error, hint = error.hint_text(), "the ends of runs still cannot be recorded"),
        }
    }

    /// Starts every run that is due and has a place; returns when to look again.
    fn start_due(&mut self) -> DateTime<Utc> {
        let now = self.surroundings.clock.now();
        if self.journal.is_shared() && self.asked.elapsed() >= ASK_INTERVAL {
            self.asked = Instant::now();
            self.agenda.ask_all();
        }
        self.agenda.advance(now);
        self.look_for_restores();
        self.learn(now);
        // Each pass writes what was missed and learns what the journal makes of it; a schedule is in it once or twice.
        for passed in self.agenda.take_passed() {
            let story = missed_story(passed.job, passed.count, passed.first, passed.slot);
            tracing::warn!(plan = %passed.plan, job = passed.job.word(), count = passed.count, first = %passed.first, last = %passed.slot, "slots were missed and are skipped");
            let written = self.journal.missed(&passed.plan, passed.job, passed.slot, &story, now);
            if let Err(error) = &written {
                tracing::error!(plan = %passed.plan, error = ?error, hint = error.hint_text(), "missed slots could not be recorded");
            }
            self.agenda.recorded(&passed, written.is_ok());
        }
        self.learn(now);
        self.agenda.set_unsettled(self.settler.unsettled_backups());
        while let Some(start) = self.agenda.next_start() {
            self.start(start, now);
        }
        for (id, to) in self.agenda.yields() {
            tracing::warn!(run = %id, to, "the run is asked to give way");
            if let Some(hold) = self.control.hold(id) {
                hold.cancel.cancel_because(Reason::GivesWay(to));
            }
        }
        let latest = now + TimeDelta::from_std(LONGEST_TURN).unwrap_or_default();
        self.agenda.wake().map_or(latest, |wake| wake.min(latest))
    }

    /// Asks the journal about the schedules that need it, all in one go.
    fn learn(&mut self, now: DateTime<Utc>) {
        let (entries, keys) = self.agenda.to_ask();
        if keys.is_empty() {
            return;
        }
        match self.journal.follow(&keys, now) {
            Ok(known) => {
                for (entry, known) in entries.into_iter().zip(known) {
                    self.agenda.learn(entry, known);
                }
            }
            Err(error) => {
                tracing::error!(schedules = keys.len(), error = ?error, hint = error.hint_text(), "the journal could not be asked what is due");
                self.agenda.not_learnt();
            }
        }
    }

    /// What other processes restore now. Where that cannot be seen, what was seen last stands.
    fn look_for_restores(&mut self) {
        if !self.agenda.minds_restores() || self.restores_seen.is_some_and(|seen| seen.elapsed() < RESTORE_INTERVAL) {
            return;
        }
        self.restores_seen = Some(Instant::now());
        let filter = Filter { job: Some(Job::Restore), state: Some(State::Running), ..Filter::default() };
        let found = self.journal.runs(&filter).and_then(|runs| {
            if runs.is_empty() {
                return Ok(runs);
            }
            let broken = self.journal.broken()?;
            Ok(runs.into_iter().filter(|run| broken.iter().all(|broken| broken.id != run.id)).collect())
        });
        let host = owner::host();
        match found {
            Ok(runs) => {
                let restores = runs.into_iter().map(|run| Restore { run: run.id, here: run.process.host == host, plan: run.plan });
                self.agenda.set_restores(restores.collect());
            }
            Err(error) => tracing::warn!(error = ?error, "which restores go on could not be seen"),
        }
    }

    fn start(&mut self, start: Start, now: DateTime<Utc>) {
        let Start { plan, mut run, covers } = start;
        run.story = covers.map(|(covers, first)| format!("stands for {} missed since {first}", counted(covers)));
        let hold = Arc::new(Hold::new(run, now));
        let (journal, plans, settler) = (Arc::clone(&self.journal), self.control.plans(), self.settler.clone());
        let surroundings =
            Surroundings { cancel: hold.cancel.clone(), progress: Arc::clone(&hold) as Arc<dyn Progress>, ..self.surroundings.clone() };
        let (control, kept, name) = (self.control.clone(), Arc::clone(&hold), plan.name.clone());
        let work = move || {
            let mut ending = Ending { control, hold: Arc::clone(&kept), result: None };
            let run = || runner::run_job(&journal, &plans, &plan, &kept.run, &surroundings);
            // A claim whose answer was lost is in no one's hands: it is settled as what a killed process left.
            let result = settler
                .make_way(&plan.name, kept.run.job, &kept.cancel, Some(settler::PATIENCE))
                .and_then(|()| nodes::alone_with_sources(&journal, &plan, kept.run.job, &*surroundings.clock, run));
            ending.result = Some(result);
        };
        let id = hold.run.id;
        self.control.started(hold);
        if let Err(error) = std::thread::Builder::new().name(format!("run-{name}")).spawn(work) {
            let error = Error::io(format!("start the thread of a run of plan {name}"), error);
            self.ended(id, Err(error));
        }
    }

    /// Until a run ends, somebody asks for something, a signal comes, or it is time.
    fn wait(&mut self, inbox: &Inbox, wake: DateTime<Utc>) {
        let began = Instant::now();
        loop {
            let now = self.surroundings.clock.now();
            if self.is_stopping() || now >= wake || now + TimeDelta::seconds(1) < self.agenda.now() {
                return;
            }
            let restores = self.agenda.minds_restores() && began.elapsed() >= RESTORE_INTERVAL;
            if restores || began.elapsed() >= LONGEST_TURN {
                return;
            }
            self.cancel_as_asked();
            if let Ok(message) = inbox.0.recv_timeout(SIGNAL_INTERVAL) {
                self.take(message);
                // What ended in the same moment is looked at together.
                while let Ok(message) = inbox.0.try_recv() {
                    self.take(message);
                }
                return;
            }
        }
    }

    fn take(&mut self, message: Message) {
        // Whoever asked and went away is not told.
        match message {
            Message::Ended { id, result } => self.ended(id, result),
            Message::Look { plan } => self.agenda.look(&plan),
            Message::Request { run, asked, .. } if asked.elapsed() >= PATIENCE => {
                tracing::warn!(plan = %run.plan, job = run.job.word(), by = run.by, "a run was asked for that nobody waits for any more: it is not started");
            }
            Message::Request { run, reply, .. } => {
                let _ = reply.send(self.requested(run));
            }
            Message::Waiting { id, reply } => {
                let waits = self.agenda.waiting_request(id).map(|(run, why)| (run.clone(), Some(why)));
                let _ = reply.send(Ok(waits.or_else(|| self.control.hold(id).map(|hold| (hold.run.clone(), None)))));
            }
            Message::Cancel { id, by, reply } => {
                let _ = reply.send(self.cancel(id, by));
            }
            Message::PlansRead(read) => self.plans_read(read),
        }
    }

    fn requested(&mut self, run: NewRun) -> Result<Requested> {
        let busy = |why: &str| {
            Error::new(Kind::Busy, format!("start {} of plan {}: {why}", run.job.word(), run.plan)).hint("ask again when it is over")
        };
        if self.is_stopping() {
            return Err(busy("the daemon is stopping"));
        }
        if let Some(id) = self.agenda.same(&run.plan, run.job) {
            return Err(busy(&format!("run {id} does that, or waits to")));
        }
        let plans = self.control.plans();
        let (plan, id, who) = (plans.plan(run.plan.as_str())?, run.id, run.by.clone());
        tracing::info!(run = %id, plan = %plan.name, job = run.job.word(), by = who, "a run was asked for");
        let waits_for = self.agenda.request(plan, run);
        // Before anything starts: whoever is told that it was taken finds it again, whatever happens.
        if let Err(error) = self.write_requests() {
            self.agenda.withdraw(id);
            return Err(Error::new(Kind::Unavailable, "keep the request until its turn comes").because(crate::ops::explain(&error)));
        }
        self.start_due();
        let started = self.control.hold(id).is_some();
        Ok(Requested { id, waits_for: if started { None } else { Some(waits_for.unwrap_or_else(|| OTHERS_FIRST.to_owned())) } })
    }

    /// What other processes asked for.
    fn cancel_as_asked(&mut self) {
        let state = &self.surroundings.state;
        let asked = cancel::asked(state).unwrap_or_else(|error| {
            tracing::error!(error = ?error, "which runs are to be cancelled could not be read");
            Vec::new()
        });
        for (id, by) in asked {
            if let Err(error) = self.cancel(id, by) {
                tracing::warn!(run = %id, error = ?error, "the run cannot be cancelled");
            }
            if let Err(error) = cancel::done(state, id) {
                tracing::error!(run = %id, error = ?error, "that the run was cancelled could not be answered");
            }
        }
    }

    fn cancel(&mut self, id: RunId, by: String) -> Result<()> {
        if let Some(hold) = self.control.hold(id) {
            tracing::warn!(run = %id, by, "the run is cancelled");
            hold.cancel.cancel_because(Reason::Cancelled(by));
            return Ok(());
        }
        match self.agenda.withdraw(id) {
            Some(run) => self.taken_back(&run, &by),
            None => Err(Error::new(Kind::NotFound, format!("cancel run {id}: no run of this daemon that goes on or waits has this id"))),
        }
    }

    /// A request that never began, and will not: the journal says so.
    fn taken_back(&self, run: &NewRun, by: &str) -> Result<()> {
        tracing::info!(run = %run.id, plan = %run.plan, by, "a request for a run was taken back");
        let story = format!("{by} took it back before it began");
        self.journal.dropped(run, &story, self.surroundings.clock.now()).map_err(|error| error.within("record that it was taken back"))
    }

    fn ended(&mut self, id: RunId, result: Result<RunId>) {
        self.agenda.ended(id);
        let Some(hold) = self.control.ended(id) else { return };
        let plan = &hold.run.plan;
        if let Err(error) = result {
            let recorded = || self.journal.run(id).ok().filter(|run| run.started.timestamp_millis() >= hold.started.timestamp_millis());
            match error.kind() {
                // A manual run was quicker, or a process holds the journal: it is looked at again when that may be over.
                Kind::Busy => tracing::warn!(%plan, error = ?error, hint = error.hint_text(), "the run did not begin now"),
                // It waited for what a killed run left.
                Kind::Interrupted if recorded().is_none() => {
                    tracing::warn!(%plan, error = ?error, "the run ended before it began");
                    self.slot_cancelled(&hold);
                }
                // One outside the work itself nobody has told of yet.
                Kind::Bug if recorded().is_none_or(|run| run.kind.as_deref() != Some(Kind::Bug.word())) => {
                    tracing::error!(%plan, error = ?error, "a run ended by a bug");
                }
                // An attempt that the journal has was told of where it ended.
                _ if recorded().is_some() => tracing::debug!(%plan, error = ?error, "run failed"),
                _ => tracing::error!(%plan, error = ?error, hint = error.hint_text(), "the run could not be begun"),
            }
            // One that was asked for and never got into the journal is not forgotten; a claim whose answer was lost is refused the second time.
            let asked_for = hold.run.scheduled.is_none() && error.kind() != Kind::Bug && !self.is_stopping();
            if asked_for && self.journal.run(id).is_err() {
                if let Some(Reason::Cancelled(by)) = hold.cancel.reason() {
                    if let Err(error) = self.taken_back(&hold.run, by) {
                        tracing::error!(run = %id, error = ?error, hint = error.hint_text(), "a cancelled request is not in the journal");
                    }
                    return;
                }
                let plans = self.control.plans();
                match plans.plans.get(plan) {
                    Some(plan) if self.agenda.same(&plan.name, hold.run.job).is_none() => self.agenda.request_again(plan, hold.run.clone()),
                    _ => self.drop_request(&hold.run),
                }
            }
        }
    }

    /// The journal says so of a slot whose run was cancelled before it began: else it would start again.
    fn slot_cancelled(&self, hold: &Hold) {
        let Some(Reason::Cancelled(by)) = hold.cancel.reason().filter(|_| hold.run.scheduled.is_some()) else { return };
        if let Err(error) = self.journal.slot_cancelled(&hold.run, by, self.surroundings.clock.now()) {
            tracing::error!(run = %hold.run.id, error = ?error, hint = error.hint_text(), "that a slot was cancelled is not in the journal");
        }
    }

    /// Another set of plans, or why there is none: then the old one stays.
    fn plans_read(&mut self, read: Result<Arc<Plans>>) {
        let read = read.and_then(|new| suits(&self.control.plans(), &new).map(|()| new));
        let new = match read {
            Ok(new) => new,
            Err(error) => {
                tracing::error!(error = ?error, hint = error.hint_text(), "the plan files are wrong: the plans read before stay in force");
                let why = crate::ops::explain(&error);
                let what = if self.control.plans().is_partial {
                    LEFT_OUT
                } else {
                    "the plan files are wrong, and the plans read before stay in force"
                };
                self.control.set_problem(reload::BROKEN, Some(format!("{what}: {why}")));
                return;
            }
        };
        let old = self.control.plans();
        let changes = reload::difference(&old, &new);
        tracing::info!(changes = changes.len(), "the plan files were read anew and are in force");
        for change in &changes {
            tracing::info!(change, "plans");
        }
        self.control.set_problem(reload::BROKEN, None);
        self.agenda.advance(self.surroundings.clock.now());
        for run in self.agenda.reload(Arc::clone(&new)) {
            self.drop_request(&run);
        }
        for run in std::mem::take(&mut self.unknown) {
            match new.plans.get(&run.plan) {
                Some(plan) => drop(self.agenda.request(plan, run)),
                None => self.drop_request(&run),
            }
        }
        self.keep_requests();
        self.logs.follow(&new, &self.journal, &self.membership, self.surroundings);
        self.control.set_plans(new);
    }

    fn stop(mut self, inbox: &Inbox) {
        self.control.set_phase(Phase::Draining);
        for run in self.agenda.waiting_requests() {
            tracing::info!(run = %run.id, plan = %run.plan, "a request that waits is kept for the next start");
        }
        let drain = self.control.plans().serve.drain;
        let running = |daemon: &Self| daemon.control.holds().len();
        if running(&self) > 0 {
            tracing::info!(runs = running(&self), seconds = drain.as_secs(), "stopping: nothing new starts, runs may go on for so long");
        }
        let until = Instant::now() + drain;
        while running(&self) > 0 && Instant::now() < until && !self.surroundings.cancel.is_cancelled() {
            self.turned();
            if let Ok(message) = inbox.0.recv_timeout(SIGNAL_INTERVAL) {
                self.take(message);
            }
        }
        let deadline = Instant::now() + STOP_DEADLINE;
        for hold in self.control.holds() {
            tracing::warn!(run = %hold.run.id, plan = %hold.run.plan, "the run is asked to end: the daemon stops");
            hold.cancel.cancel_because(Reason::DaemonEnds);
        }
        while running(&self) > 0 {
            self.turned();
            if Instant::now() >= deadline {
                tracing::error!(runs = running(&self), "runs did not end in time and are left behind; the next start settles them");
                break;
            }
            if let Ok(message) = inbox.0.recv_timeout(SIGNAL_INTERVAL) {
                self.take(message);
            }
        }
        if let Err(error) = self.journal.finish_unfinished() {
            tracing::error!(error = ?error, "the ends of runs could not be recorded; the next start settles them");
        }
        self.logs.stop(deadline.max(Instant::now() + Duration::from_secs(5)));
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

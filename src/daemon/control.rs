//! The handle on a running daemon for what lives beside its runs: the plans in force, the runs that go on, and requests to start or cancel one.
//!
//! The serve loop alone decides what starts. A request goes to it and through the same checks as a slot of a schedule, so that a manual
//! run never doubles a scheduled one. All methods return at once but [`Control::request_run`], which waits for the loop's answer; none
//! may be called from an async task but those that say so.
//!
//! What is told here is of this process. What other processes do (a restore on the command line, another node) is in the journal.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use tokio::sync::{broadcast, watch};

use crate::clock::Clock;
use crate::daemon::job::{Job, Trigger};
use crate::daemon::journal::NewRun;
use crate::daemon::status::ProblemKind;
use crate::error::{Error, Kind, Result};
use crate::event::{Cancel, Event, Progress};
use crate::id::{Name, RunId};
use crate::plan::Plans;

/// A loop that does not answer for so long is stuck.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Happenings kept for a listener that is slow; one that missed some is told so by its channel.
const HAPPENINGS_KEPT: usize = 4096;

/// Where the daemon stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Nothing runs yet.
    Starting,
    Serving,
    /// Told to stop: nothing new starts, runs go on until their time is over.
    Draining,
    /// No run goes on; what lives beside them is being stopped.
    Stopping,
}

/// Something that happened in this daemon. The journal has the facts; this says when to look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Happening {
    RunStarted {
        id: RunId,
        plan: Name,
        job: Job,
    },
    /// Its row is closed, or the journal could not be written and closes it later.
    RunEnded {
        id: RunId,
        plan: Name,
        job: Job,
    },
    /// Another set of plans is in force.
    PlansChanged,
    /// [`Control::problems`] changed.
    ProblemsChanged,
}

/// A run of this daemon that goes on.
#[derive(Debug, Clone)]
pub struct Running {
    pub id: RunId,
    pub plan: Name,
    pub job: Job,
    pub trigger: Trigger,
    pub by: String,
    pub scheduled: Option<DateTime<Utc>>,
    pub started: DateTime<Utc>,
    /// The name of the phase that it is in.
    pub phase: Option<String>,
    /// Plain bytes that it moved so far, of all phases.
    pub bytes: u64,
    /// Why it was asked to stop.
    pub stopping: Option<String>,
}

/// The answer to a request for a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requested {
    /// The id under which the run is, or will be, in the journal.
    pub id: RunId,
    /// What it waits for; `None`: it has started. A request that waits is kept for the next start of the daemon.
    pub waits_for: Option<String>,
}

/// Something that is wrong with the daemon itself, until it is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// `plans-broken`, …: as the kinds of problems in `lifeboat.status/1`.
    pub kind: String,
    pub message: String,
    pub since: DateTime<Utc>,
}

/// The handle; clones are of the same daemon.
#[derive(Clone)]
pub struct Control(Arc<Shared>);

struct Shared {
    plans: watch::Sender<Arc<Plans>>,
    phase: watch::Sender<Phase>,
    happenings: broadcast::Sender<Happening>,
    inbox: Sender<Message>,
    running: Mutex<BTreeMap<RunId, Arc<Hold>>>,
    troubles: Mutex<BTreeMap<String, Trouble>>,
    turned: Mutex<Instant>,
    clock: Arc<dyn Clock>,
}

/// What the loop is told.
pub(super) enum Message {
    Ended {
        id: RunId,
        result: Result<RunId>,
    },
    Request {
        run: NewRun,
        /// Whoever asked is told that the loop does not answer when [`PATIENCE`] is over: nothing must be started then.
        asked: Instant,
        reply: SyncSender<Result<Requested>>,
    },
    /// A request that is not in the journal yet.
    Waiting {
        id: RunId,
        reply: SyncSender<Result<Option<(NewRun, Option<String>)>>>,
    },
    Cancel {
        id: RunId,
        by: String,
        reply: SyncSender<Result<()>>,
    },
    /// The journal says something else about this plan's runs than before: one that another process had was settled.
    Look {
        plan: Name,
    },
    /// The plan files were read anew.
    PlansRead(Result<Arc<Plans>>),
}

/// What the daemon's process is asked by signals.
#[derive(Debug, Clone, Default)]
pub struct Signals {
    /// Set by the first request to stop: nothing new starts, and runs go on until the plan files' `drain` is over. The second one sets the
    /// `cancel` of the surroundings: runs are cancelled.
    pub drain: Cancel,
    reloads: Arc<AtomicU64>,
}

impl Signals {
    /// Asks for the plan files to be read anew.
    pub fn reload(&self) {
        self.reloads.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn reloads(&self) -> u64 {
        self.reloads.load(Ordering::SeqCst)
    }
}

/// The loop's end of a [`Control`].
pub struct Inbox(pub(super) Receiver<Message>);

impl Control {
    /// A handle on a daemon that follows `plans`, and the inbox of its loop. Requests fail once the inbox is gone.
    #[must_use]
    pub fn new(plans: Arc<Plans>, clock: Arc<dyn Clock>) -> (Self, Inbox) {
        let (inbox, messages) = channel();
        let shared = Shared {
            plans: watch::Sender::new(plans),
            phase: watch::Sender::new(Phase::Starting),
            happenings: broadcast::Sender::new(HAPPENINGS_KEPT),
            inbox,
            running: Mutex::default(),
            troubles: Mutex::default(),
            turned: Mutex::new(Instant::now()),
            clock,
        };
        (Self(Arc::new(shared)), Inbox(messages))
    }

    /// The plans in force. They are swapped whole: take them once for each piece of work.
    #[must_use]
    pub fn plans(&self) -> Arc<Plans> {
        Arc::clone(&self.0.plans.borrow())
    }

    /// Tells of each swap of the plans: `changed().await` in a task, `has_changed()` in a thread.
    #[must_use]
    pub fn plans_watch(&self) -> watch::Receiver<Arc<Plans>> {
        self.0.plans.subscribe()
    }

    /// Where the daemon stands.
    #[must_use]
    pub fn phase(&self) -> Phase {
        *self.0.phase.borrow()
    }

    /// Tells of each change of [`Control::phase`].
    #[must_use]
    pub fn phase_watch(&self) -> watch::Receiver<Phase> {
        self.0.phase.subscribe()
    }

    /// Tells of what happens from now on. A listener that is slow loses the oldest and is told how many.
    #[must_use]
    pub fn happenings(&self) -> broadcast::Receiver<Happening> {
        self.0.happenings.subscribe()
    }

    /// The runs of this daemon that go on, oldest first.
    #[must_use]
    pub fn running(&self) -> Vec<Running> {
        guard(&self.0.running).values().map(|hold| hold.running()).collect()
    }

    /// What is wrong with the daemon itself, by kind.
    #[must_use]
    pub fn problems(&self) -> Vec<Trouble> {
        guard(&self.0.troubles).values().cloned().collect()
    }

    /// Makes the loop ask the journal about a plan's runs: one that another process had was settled here.
    pub(super) fn look(&self, plan: &Name) {
        // A loop that is gone has nothing to look at.
        let _ = self.0.inbox.send(Message::Look { plan: plan.clone() });
    }

    /// How long ago the loop last looked at what is due. It does so at least every [`LONGEST_TURN`]; far more means that it is stuck.
    #[must_use]
    pub fn loop_age(&self) -> Duration {
        guard(&self.0.turned).elapsed()
    }

    /// Asks for a run of `job` now; `who` asks, for people. Waits for the loop's answer: call it by `spawn_blocking` from a task.
    ///
    /// # Errors
    /// `Usage` when there is no such plan, or nobody can ask for such a job; `Busy` when the same job of the plan goes on or waits already, or the
    /// daemon is stopping; `Unavailable` when the loop does not answer.
    pub fn request_run(&self, plan: &Name, job: Job, who: &str) -> Result<Requested> {
        let plans = self.plans();
        let name = &plans.plan(plan.as_str())?.name;
        if !job.may_be_requested() {
            return Err(Error::new(Kind::Usage, format!("start {} of plan {name}: a daemon does not do that by itself", job.word()))
                .hint(format!("run `lifeboat {} {name}`", job.word())));
        }
        if job == Job::Copy && plans.plan(plan.as_str())?.copies.is_empty() {
            return Err(Error::new(Kind::Usage, format!("start copy of plan {name}: it has no [[plan.{name}.copy]]"))
                .hint("add one to its plan file: where to, and when"));
        }
        self.ask(|reply| Message::Request { run: NewRun::manual(name, job, who, self.0.clock.now()), asked: Instant::now(), reply })
    }

    /// A run that was asked for and that the journal does not know yet, and what it waits for (`None`: it is starting).
    ///
    /// # Errors
    /// `Unavailable` when the loop does not answer.
    pub fn requested_run(&self, id: RunId) -> Result<Option<(NewRun, Option<String>)>> {
        self.ask(|reply| Message::Waiting { id, reply })
    }

    /// Asks a run of this daemon to stop, or takes back a request that waits; `who` asks, for people. It ends as `interrupted`, at its next check.
    ///
    /// # Errors
    /// `NotFound` when no run of this daemon has this id; `Unavailable` when the loop does not answer.
    pub fn cancel_run(&self, id: RunId, who: &str) -> Result<()> {
        self.ask(|reply| Message::Cancel { id, by: who.to_owned(), reply })
    }

    fn ask<T>(&self, message: impl FnOnce(SyncSender<Result<T>>) -> Message) -> Result<T> {
        let (reply, answer) = sync_channel(1);
        let silent = || Error::new(Kind::Unavailable, "ask the daemon: its loop does not answer").hint("see its log; it may be stopping");
        self.0.inbox.send(message(reply)).map_err(|_| silent())?;
        answer.recv_timeout(PATIENCE).map_err(|_| silent())?
    }

    /// Says that something is wrong with the daemon itself, or (`None`) that it is over. For the daemon and what lives beside its runs.
    pub fn set_problem(&self, kind: ProblemKind, message: Option<String>) {
        let kind = kind.word();
        let mut troubles = guard(&self.0.troubles);
        let changed = match message {
            None => troubles.remove(kind).is_some(),
            Some(message) => match troubles.get_mut(kind) {
                Some(known) if known.message == message => false,
                Some(known) => {
                    known.message = message;
                    true
                }
                None => troubles.insert(kind.to_owned(), Trouble { kind: kind.to_owned(), message, since: self.0.clock.now() }).is_none(),
            },
        };
        drop(troubles);
        if changed {
            self.tell(Happening::ProblemsChanged);
        }
    }

    pub(super) fn set_plans(&self, plans: Arc<Plans>) {
        self.0.plans.send_replace(plans);
        self.tell(Happening::PlansChanged);
    }

    pub(super) fn set_phase(&self, phase: Phase) {
        self.0.phase.send_replace(phase);
    }

    pub(super) fn turned(&self) {
        *guard(&self.0.turned) = Instant::now();
    }

    pub(super) fn sender(&self) -> Sender<Message> {
        self.0.inbox.clone()
    }

    pub(super) fn started(&self, hold: Arc<Hold>) {
        let (id, plan, job) = (hold.run.id, hold.run.plan.clone(), hold.run.job);
        guard(&self.0.running).insert(id, hold);
        self.tell(Happening::RunStarted { id, plan, job });
    }

    pub(super) fn ended(&self, id: RunId) -> Option<Arc<Hold>> {
        let hold = guard(&self.0.running).remove(&id)?;
        self.tell(Happening::RunEnded { id, plan: hold.run.plan.clone(), job: hold.run.job });
        Some(hold)
    }

    pub(super) fn holds(&self) -> Vec<Arc<Hold>> {
        guard(&self.0.running).values().cloned().collect()
    }

    pub(super) fn hold(&self, id: RunId) -> Option<Arc<Hold>> {
        guard(&self.0.running).get(&id).cloned()
    }

    fn tell(&self, happening: Happening) {
        // Nobody may be listening.
        let _ = self.0.happenings.send(happening);
    }
}

/// The loop turns at least this often while it serves.
pub const LONGEST_TURN: Duration = Duration::from_secs(20);

/// The daemon's hold on one of its runs: hears how it gets on, and can ask it to stop.
pub(super) struct Hold {
    pub run: NewRun,
    pub started: DateTime<Utc>,
    pub cancel: Cancel,
    seen: Mutex<(Option<String>, u64)>,
}

impl Hold {
    pub(super) fn new(run: NewRun, started: DateTime<Utc>) -> Self {
        Self { run, started, cancel: Cancel::default(), seen: Mutex::default() }
    }

    fn running(&self) -> Running {
        let (phase, bytes) = guard(&self.seen).clone();
        let asked = || self.cancel.reason().map_or_else(|| "the daemon stops".to_owned(), ToString::to_string);
        Running {
            id: self.run.id,
            plan: self.run.plan.clone(),
            job: self.run.job,
            trigger: self.run.trigger,
            by: self.run.by.clone(),
            scheduled: self.run.scheduled,
            started: self.started,
            phase,
            bytes,
            stopping: self.cancel.is_cancelled().then(asked),
        }
    }
}

impl Progress for Hold {
    fn event(&self, event: Event) {
        let mut seen = guard(&self.seen);
        match event {
            Event::Phase { name, .. } => seen.0 = Some(name.to_owned()),
            Event::Advance { bytes, .. } => seen.1 += bytes,
            Event::Total { .. } | Event::Warning { .. } => {}
        }
    }
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

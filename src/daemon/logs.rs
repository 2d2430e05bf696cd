//! The streams of continuous logs and the writers of canary rows that the daemon keeps running, each in a thread of its own.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::daemon::journal::Journal;
use crate::daemon::nodes::Membership;
use crate::error::{Error, Kind, Result};
use crate::event::Cancel;
use crate::ops::log::canary;
use crate::ops::log::stream::{self, Persistence};
use crate::ops::resolve::Surroundings;
use crate::plan::{Plan, Plans, Source};

/// Pauses before a stream that could not even begin is started again.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_mins(5);

/// The streams of all plans.
pub(super) struct Logs(Vec<JoinHandle<()>>);

impl Logs {
    /// Starts a stream for every source that the plans say so of.
    /// On a shared journal only for plans that this node may run, and each on one of the nodes at a time.
    pub(super) fn start(plans: &Plans, journal: &Journal, membership: &Membership, surroundings: &Surroundings) -> Self {
        let mut threads = Vec::new();
        let turn = |plan: &Plan, source: &Source, what: &str| {
            journal.is_shared().then(|| Turn { journal: journal.clone(), name: format!("{what}/{}/{}", plan.name, source.name) })
        };
        for plan in plans.plans.values().filter(|plan| membership.may_run(plan)) {
            for source in plan.sources.iter().filter(|source| source.kind.streams_log()) {
                let (kept_plan, kept_source, kept) = (Arc::clone(plan), Arc::clone(source), surroundings.clone());
                let turn = turn(plan, source, "log");
                let thread = std::thread::Builder::new().name(format!("log-{}", source.name));
                match thread.spawn(move || in_turn(&kept_plan, &kept_source, &kept, turn.as_ref(), stream_log)) {
                    Ok(thread) => threads.push(thread),
                    Err(error) => tracing::error!(plan = %plan.name, source = %source.name, %error, "no thread for the stream of the log"),
                }
            }
            for source in plan.sources.iter().filter(|source| source.kind.canary().is_some()) {
                let (kept_plan, kept_source, kept) = (Arc::clone(plan), Arc::clone(source), surroundings.clone());
                let turn = turn(plan, source, "canary");
                let thread = std::thread::Builder::new().name(format!("canary-{}", source.name));
                match thread.spawn(move || in_turn(&kept_plan, &kept_source, &kept, turn.as_ref(), canary::run)) {
                    Ok(thread) => threads.push(thread),
                    Err(error) => tracing::error!(plan = %plan.name, source = %source.name, %error, "no thread for the canary row"),
                }
            }
        }
        Self(threads)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Waits until all have ended, after they were asked to.
    pub(super) fn stop(self, deadline: Instant) {
        while self.0.iter().any(|thread| !thread.is_finished()) {
            if Instant::now() >= deadline {
                tracing::error!("a stream of a log did not end in time and is left behind; what it did not confirm comes again");
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

type Work = fn(&Plan, &Source, &Surroundings) -> Result<()>;

fn stream_log(plan: &Plan, source: &Source, surroundings: &Surroundings) -> Result<()> {
    stream::run(plan, source, Persistence::Daemon, surroundings).map(|_| ())
}

/// What only one node is to do at a time.
struct Turn {
    journal: Journal,
    /// Of the lease on the journal.
    name: String,
}

/// Keeps one stream or writer running while this node holds its lease; on the embedded journal always.
fn in_turn(plan: &Plan, source: &Source, surroundings: &Surroundings, turn: Option<&Turn>, work: Work) {
    let Some(turn) = turn else { return supervise(plan, source, surroundings, work) };
    let ttl = turn.journal.lease();
    let every = ttl.to_std().unwrap_or_default() / 4;
    let hold = || turn.journal.hold(&turn.name, ttl, surroundings.clock.now());
    let pause = |until: Instant, over: &dyn Fn() -> bool| {
        while Instant::now() < until && !surroundings.cancel.is_cancelled() && !over() {
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    while !surroundings.cancel.is_cancelled() {
        if !hold().unwrap_or(false) {
            pause(Instant::now() + every, &|| false);
            continue;
        }
        tracing::info!(plan = %plan.name, source = %source.name, lease = turn.name, "this node does it");
        let own = Surroundings { cancel: Cancel::default(), ..surroundings.clone() };
        std::thread::scope(|scope| {
            let supervised = scope.spawn(|| supervise(plan, source, &own, work));
            let mut renewed = Instant::now();
            while !supervised.is_finished() {
                pause(Instant::now() + every, &|| supervised.is_finished());
                match hold() {
                    Ok(true) => renewed = Instant::now(),
                    // Whoever has it now must not find two at work.
                    Ok(false) => own.cancel.cancel(),
                    Err(_) if renewed.elapsed() + every >= ttl.to_std().unwrap_or_default() => own.cancel.cancel(),
                    Err(_) => {}
                }
                if surroundings.cancel.is_cancelled() {
                    own.cancel.cancel();
                }
                if own.cancel.is_cancelled() {
                    break;
                }
            }
        });
        // The next one need not wait; where the journal is away it does.
        let _ = turn.journal.let_go(&turn.name, surroundings.clock.now());
    }
}

/// Keeps one stream or writer running until the daemon stops, whatever ends it.
fn supervise(plan: &Plan, source: &Source, surroundings: &Surroundings, work: Work) {
    let mut pause = FIRST_PAUSE;
    while !surroundings.cancel.is_cancelled() {
        let began = Instant::now();
        match attempt(plan, source, surroundings, work) {
            Ok(()) => return,
            Err(error) => {
                tracing::error!(plan = %plan.name, source = %source.name, error = ?error, hint = error.hint_text(), "the log is not streamed, or the canary row not written");
            }
        }
        if began.elapsed() > LONGEST_PAUSE {
            pause = FIRST_PAUSE;
        }
        let until = Instant::now() + pause;
        while Instant::now() < until && !surroundings.cancel.is_cancelled() {
            std::thread::sleep(Duration::from_millis(100));
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// In a thread of its own, so that a panic ends only that one.
fn attempt(plan: &Plan, source: &Source, surroundings: &Surroundings, work: Work) -> Result<()> {
    std::thread::scope(|scope| {
        let work = scope.spawn(|| work(plan, source, surroundings));
        work.join().unwrap_or_else(|_| {
            Err(Error::new(Kind::Bug, "the thread of a stream panicked").hint("please report this, with the lines above"))
        })
    })
}

//! The work that never ends: streams of continuous logs and writers of canary rows, each in a thread of its own, kept running.
//!
//! One that ends for any reason but a stop begins again, after a pause that grows. When the plans change, those that are gone are
//! stopped, those whose settings changed begin again with the new ones (after the old one has let go), and the others are left alone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::daemon::journal::Journal;
use crate::daemon::nodes::{self, Membership};
use crate::error::{Error, Kind, Result};
use crate::event::{Cancel, Reason};
use crate::id::Name;
use crate::ops::log::canary;
use crate::ops::log::stream::{self, Persistence};
use crate::ops::resolve::Surroundings;
use crate::plan::{Plan, Plans, Source, source_text};

/// Pauses before a stream that could not even begin is started again.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_mins(5);

type Work = fn(&Plan, &Source, &Surroundings) -> Result<()>;

/// Kinds of endless work: a name for threads and logs, which sources have it, and what does it.
const KINDS: [(&str, fn(&Source) -> bool, Work); 2] =
    [("log", |source| source.kind.streams_log(), stream_log), ("canary", |source| source.kind.canary().is_some(), canary::run)];

/// The endless work of all plans, by plan, source and kind.
pub(super) struct Logs(BTreeMap<(Name, Name, &'static str), Stream>);

struct Stream {
    /// All settings that it depends on.
    settings: String,
    cancel: Cancel,
    thread: JoinHandle<()>,
}

impl Logs {
    pub(super) fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// Makes what runs what the plans say. Does not wait for what it stops. On a shared journal only for plans that this node may run, and each
    /// on one of the nodes at a time.
    pub(super) fn follow(&mut self, plans: &Plans, journal: &Journal, membership: &Membership, surroundings: &Surroundings) {
        let mut wanted = BTreeMap::new();
        for plan in plans.plans.values().filter(|plan| membership.may_run(plan)) {
            for source in &plan.sources {
                for (kind, _, work) in KINDS.into_iter().filter(|(_, has, _)| has(source)) {
                    wanted.insert((plan.name.clone(), source.name.clone(), kind), (plan, source, work));
                }
            }
        }
        let mut old = std::mem::take(&mut self.0);
        for (key, (plan, source, work)) in wanted {
            let settings = source_text(plan, source);
            let before = old.remove(&key);
            let before = match before {
                Some(stream) if stream.settings == settings && !stream.thread.is_finished() => {
                    self.0.insert(key, stream);
                    continue;
                }
                before => before,
            };
            if let Some(stream) = &before {
                tracing::info!(plan = %plan.name, source = %source.name, kind = key.2, "begins again with other settings");
                stream.cancel.cancel_because(Reason::DaemonEnds);
            }
            let cancel = Cancel::default();
            let own = Surroundings { cancel: cancel.clone(), ..surroundings.clone() };
            let (kept_plan, kept_source) = (Arc::clone(plan), Arc::clone(source));
            let name = nodes::stream_lease(key.2, &plan.name, &source.name);
            let turn = journal.is_shared().then(|| Turn { journal: journal.clone(), name });
            let thread = std::thread::Builder::new().name(format!("{}-{}", key.2, source.name)).spawn(move || {
                // Two at once would be in each other's way.
                if before.is_some_and(|before| before.thread.join().is_err()) {
                    tracing::error!(source = %kept_source.name, "the work before panicked: please report this, with the lines above");
                }
                in_turn(&kept_plan, &kept_source, &own, turn.as_ref(), work);
            });
            match thread {
                Ok(thread) => {
                    self.0.insert(key, Stream { settings, cancel, thread });
                }
                Err(error) => tracing::error!(plan = %plan.name, source = %source.name, kind = key.2, %error, "no thread for endless work"),
            }
        }
        for ((plan, source, kind), stream) in old {
            tracing::info!(%plan, %source, kind, "stops: the plans do not ask for it any more");
            stream.cancel.cancel_because(Reason::DaemonEnds);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Asks all to end and waits for it.
    pub(super) fn stop(self, deadline: Instant) {
        for stream in self.0.values() {
            stream.cancel.cancel_because(Reason::DaemonEnds);
        }
        while self.0.values().any(|stream| !stream.thread.is_finished()) {
            if Instant::now() >= deadline {
                tracing::error!("a stream of a log did not end in time and is left behind; what it did not confirm comes again");
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

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
        // Where the journal cannot be asked, somebody else may have it.
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
                    match surroundings.cancel.reason() {
                        Some(why) => own.cancel.cancel_because(why.clone()),
                        None => own.cancel.cancel(),
                    }
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

/// Keeps one running until it is asked to stop, whatever ends it.
fn supervise(plan: &Plan, source: &Source, surroundings: &Surroundings, work: Work) {
    let mut pause = FIRST_PAUSE;
    while !surroundings.cancel.is_cancelled() {
        let began = Instant::now();
        match attempt(plan, source, surroundings, work) {
            _ if surroundings.cancel.is_cancelled() => return,
            Ok(()) => tracing::warn!(plan = %plan.name, source = %source.name, "the work ended by itself and begins again"),
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

//! The streams of continuous logs and the writers of canary rows that the daemon keeps running, each in a thread of its own.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::error::{Error, Kind, Result};
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
    pub(super) fn start(plans: &Plans, surroundings: &Surroundings) -> Self {
        let mut threads = Vec::new();
        for plan in plans.plans.values() {
            for source in plan.sources.iter().filter(|source| source.kind.streams_log()) {
                let (kept_plan, kept_source, kept) = (Arc::clone(plan), Arc::clone(source), surroundings.clone());
                let thread = std::thread::Builder::new().name(format!("log-{}", source.name));
                match thread.spawn(move || supervise(&kept_plan, &kept_source, &kept, stream_log)) {
                    Ok(thread) => threads.push(thread),
                    Err(error) => tracing::error!(plan = %plan.name, source = %source.name, %error, "no thread for the stream of the log"),
                }
            }
            for source in plan.sources.iter().filter(|source| source.kind.canary().is_some()) {
                let (kept_plan, kept_source, kept) = (Arc::clone(plan), Arc::clone(source), surroundings.clone());
                let thread = std::thread::Builder::new().name(format!("canary-{}", source.name));
                match thread.spawn(move || supervise(&kept_plan, &kept_source, &kept, canary::run)) {
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

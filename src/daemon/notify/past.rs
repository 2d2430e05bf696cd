//! Telling past the outbox, from memory: where the state folder cannot be written (its disk is full), nothing else could tell that nothing works.
//!
//! While that lasts a thread for each notifier tells of it after [`PATIENCE`], again each [`AGAIN`], and of its end. What it told is forgotten with
//! the process: told twice rather than never.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::daemon::notify::event::{Change, Event, Notice};
use crate::daemon::notify::send::{self, Parcel};
use crate::daemon::notify::{deliver::Bell, pace, step};
use crate::daemon::owner;
use crate::id::RunId;
use crate::ops::resolve::Surroundings;
use crate::plan::{Notifier, Occasion};

/// What is over sooner is told to nobody: somebody makes room, a journal is restored.
const PATIENCE: Duration = Duration::from_secs(15);

/// How often it is told while it lasts.
const AGAIN: Duration = Duration::from_hours(1);

/// It is over when nothing failed for so long; everything is judged within that time.
const QUIET: Duration = Duration::from_secs(30);

const TICK: Duration = Duration::from_millis(200);

/// The kind of the problem that it is.
const KIND: &str = "journal-unavailable";

/// What lasts, and who tells of it.
#[derive(Default)]
pub(super) struct Past {
    lasts: Option<Lasting>,
    threads: Vec<JoinHandle<()>>,
}

struct Lasting {
    last_failure: Instant,
    over: Arc<AtomicBool>,
}

impl Past {
    /// Nothing can be written, because of `why`. Whether that is news.
    pub(super) fn troubled(&mut self, why: &str, notifiers: &[&Arc<Notifier>], surroundings: &Surroundings, bell: &Arc<Bell>) -> bool {
        if let Some(lasting) = &mut self.lasts {
            lasting.last_failure = Instant::now();
            return false;
        }
        let over = Arc::new(AtomicBool::new(false));
        self.lasts = Some(Lasting { last_failure: Instant::now(), over: Arc::clone(&over) });
        self.threads.retain(|thread| !thread.is_finished());
        let message = format!("the state folder cannot be written, so nothing new starts and of nothing else anybody is told: {why}");
        for notifier in notifiers.iter().filter(|notifier| step::wants(notifier, Occasion::Failure)) {
            let telling = Telling {
                notifier: Arc::clone(notifier),
                surroundings: surroundings.clone(),
                bell: Arc::clone(bell),
                over: Arc::clone(&over),
                message: message.clone(),
            };
            match crate::daemon::notify::thread(format!("past-{}", notifier.name), move || telling.run()) {
                Ok(thread) => self.threads.push(thread),
                Err(error) => tracing::error!(notifier = %notifier.name, error = ?error, "nobody can be told of anything"),
            }
        }
        true
    }

    /// Everything was looked at and could be written.
    pub(super) fn well(&mut self) {
        if self.lasts.as_ref().is_some_and(|lasting| lasting.last_failure.elapsed() >= QUIET)
            && let Some(lasting) = self.lasts.take()
        {
            lasting.over.store(true, Ordering::Relaxed);
        }
    }

    /// The threads, for whoever ends them all.
    pub(super) fn into_threads(self) -> Vec<JoinHandle<()>> {
        self.threads
    }
}

/// One notifier's.
struct Telling {
    notifier: Arc<Notifier>,
    surroundings: Surroundings,
    bell: Arc<Bell>,
    over: Arc<AtomicBool>,
    message: String,
}

impl Telling {
    fn run(&self) {
        let since = self.surroundings.clock.now();
        let mut told = false;
        let mut pause = PATIENCE;
        let mut failures = 0;
        loop {
            let is_over = self.wait(pause, failures == 0);
            if self.bell.is_stopping() || (is_over && !told) {
                return;
            }
            if is_over && !step::wants(&self.notifier, Occasion::Recovered) {
                return;
            }
            let (change, occasion) = match (is_over, told) {
                (true, _) => (Change::Over, Occasion::Recovered),
                (false, true) => (Change::Reminded, Occasion::Failure),
                (false, false) => (Change::Raised, Occasion::Failure),
            };
            let now = self.surroundings.clock.now();
            let event = Event {
                id: RunId::generate(now).to_string(),
                time: now,
                occasion: occasion.word().to_owned(),
                change,
                plan: None,
                job: None,
                problem: Some(KIND.to_owned()),
                since: Some(since),
                run: None,
                message: if is_over { format!("over: {}", self.message) } else { self.message.clone() },
            };
            let notice = Notice::new(self.notifier.name.as_str(), &owner::host(), &[event], 0, now);
            match send::deliver(&self.notifier, &Parcel::Notice(&notice), &self.surroundings.runtime, now) {
                Ok(_) if is_over => return,
                Ok(_) => {
                    (told, failures, pause) = (true, 0, AGAIN);
                }
                Err(error) => {
                    failures += 1;
                    pause = (pace::retry_at(failures, now) - now).to_std().unwrap_or(PATIENCE);
                    tracing::error!(notifier = %self.notifier.name, error = ?error, "that the state folder cannot be written could not be told");
                }
            }
        }
    }

    /// Until the time is over, the end is asked for, or (`minds_end`) it does not last any more; whether it does not.
    fn wait(&self, longest: Duration, minds_end: bool) -> bool {
        let until = Instant::now() + longest;
        while Instant::now() < until && !self.bell.is_stopping() {
            if minds_end && self.over.load(Ordering::Relaxed) {
                return true;
            }
            std::thread::sleep(TICK);
        }
        self.over.load(Ordering::Relaxed)
    }
}

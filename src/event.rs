//! Progress as events. Operations emit them; the terminal, JSON lines, the journal and tests listen. Nothing below the command
//! line prints.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::error::{Error, Kind, Result};

/// One thing that happened in an operation. Byte counts are plain (before compression and encryption) unless named otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A phase begins (`"connect"`, `"snapshot"`, `"read"`, `"upload"`, `"commit"`, `"restore"`, `"check"`, …).
    Phase { name: &'static str, detail: String },
    /// How much the current phase will handle, when that is known; may be corrected later.
    Total { bytes: u64, items: u64 },
    /// Progress of the current phase since the last such event.
    Advance { bytes: u64, items: u64 },
    /// Something the operator should see in the end result too.
    Warning { message: String },
}

/// Listens to events. Called from several threads; must return quickly.
pub trait Progress: Send + Sync {
    /// Takes one event.
    fn event(&self, event: Event);
}

/// Ignores all events.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn event(&self, _event: Event) {}
}

/// Signs of life of work that may take long, for whoever takes silence for hanging. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Pulse(Arc<AtomicU64>);

impl Pulse {
    /// It goes on: something was answered, looked at, or is waited for that is sure to come.
    pub fn beat(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// How often it went on so far.
    #[must_use]
    pub fn beats(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How long a [`Pulse`] has been silent, for one who looks at it now and then.
#[derive(Debug)]
pub struct Silence {
    pulse: Pulse,
    beats: u64,
    since: Instant,
}

impl Silence {
    /// Begins now.
    #[must_use]
    pub fn of(pulse: &Pulse) -> Self {
        Self { pulse: pulse.clone(), beats: pulse.beats(), since: Instant::now() }
    }

    /// Since the last look that found it beating.
    pub fn lasts(&mut self) -> Duration {
        let beats = self.pulse.beats();
        if beats != self.beats {
            (self.beats, self.since) = (beats, Instant::now());
        }
        self.since.elapsed()
    }
}

/// A request to stop, shared by all threads of an operation.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<Asked>);

#[derive(Debug, Default)]
struct Asked {
    set: AtomicBool,
    why: OnceLock<Reason>,
}

/// Why something was asked to stop, where that is more than a signal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// The daemon ends; the work is taken up again by the next one.
    DaemonEnds,
    /// Somebody does not want it, and it is not to be taken up again: who.
    Cancelled(String),
    /// Something more urgent needs its place; the work is taken up again after it: what.
    GivesWay(String),
}

impl Reason {
    /// The word used for `error.kind` of a run that stopped for this.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::DaemonEnds => Kind::Interrupted.word(),
            Self::Cancelled(_) => "cancelled",
            Self::GivesWay(_) => "gave-way",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DaemonEnds => f.write_str("the daemon was told to stop"),
            Self::Cancelled(who) => write!(f, "cancelled by {who}"),
            Self::GivesWay(to) => write!(f, "gave way to {to}"),
        }
    }
}

impl Cancel {
    /// Asks everything that holds a clone to stop at its next check.
    pub fn cancel(&self) {
        self.0.set.store(true, Ordering::SeqCst);
    }

    /// The same, saying why. The first reason stays.
    pub fn cancel_because(&self, why: Reason) {
        let _ = self.0.why.set(why);
        self.cancel();
    }

    /// Whether somebody asked to stop.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.set.load(Ordering::SeqCst)
    }

    /// Why, where somebody said so.
    #[must_use]
    pub fn reason(&self) -> Option<&Reason> {
        self.0.why.get()
    }

    /// # Errors
    /// [`Kind::Interrupted`] once cancelled.
    pub fn check(&self) -> Result<()> {
        if !self.is_cancelled() {
            return Ok(());
        }
        Err(Error::new(Kind::Interrupted, self.reason().map_or_else(|| "interrupted".to_owned(), |why| format!("interrupted: {why}"))))
    }
}

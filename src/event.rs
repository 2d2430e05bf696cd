//! Progress as events. Operations emit them; the terminal, JSON lines, the journal and tests listen. Nothing below the command
//! line prints.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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

/// A request to stop, shared by all threads of an operation.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Asks everything that holds a clone to stop at its next check.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether somebody asked to stop.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// # Errors
    /// [`Kind::Interrupted`] once cancelled.
    pub fn check(&self) -> Result<()> {
        if self.is_cancelled() { Err(Error::new(Kind::Interrupted, "interrupted")) } else { Ok(()) }
    }
}

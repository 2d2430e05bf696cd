//! A journal that fails, or whose process dies, on command: around one of its transactions, before or after it took effect. And that counts what it
//! is asked. For tests of everything above.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::daemon::journal::database::{Database, Purpose, Row, Statement};
use crate::error::{Error, Kind, Result};

/// What happens to a transaction that writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It is not carried out, and fails.
    Fail(Kind),
    /// It is carried out, and then fails: the answer got lost.
    FailAfter(Kind),
    /// The process is killed (SIGKILL) before it is carried out.
    Kill,
    /// The process is killed after it was carried out.
    KillAfter,
}

/// Which transactions are hit: one of them by its number, or from one number on.
#[derive(Debug, Default)]
struct Programme {
    rule: Mutex<Option<(u64, bool, Effect)>>,
    writes: AtomicU64,
    reads: AtomicU64,
}

/// Says what goes wrong; clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Faults(Arc<Programme>);

impl Faults {
    /// Hits the `n`-th transaction that writes, counted from 1 from the start.
    pub fn at(&self, n: u64, effect: Effect) {
        *self.0.rule.lock().unwrap_or_else(PoisonError::into_inner) = Some((n, false, effect));
    }

    /// Hits all that write from now on.
    pub fn always(&self, effect: Effect) {
        *self.0.rule.lock().unwrap_or_else(PoisonError::into_inner) = Some((0, true, effect));
    }

    /// Nothing goes wrong any more.
    pub fn clear(&self) {
        *self.0.rule.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// How many transactions wrote so far.
    #[must_use]
    pub fn writes(&self) -> u64 {
        self.0.writes.load(Ordering::SeqCst)
    }

    /// How many questions were asked so far.
    #[must_use]
    pub fn reads(&self) -> u64 {
        self.0.reads.load(Ordering::SeqCst)
    }

    fn next(&self) -> Option<Effect> {
        let n = self.0.writes.fetch_add(1, Ordering::SeqCst) + 1;
        let rule = *self.0.rule.lock().unwrap_or_else(PoisonError::into_inner);
        rule.filter(|(first, on, _)| *first == n || (*on && n >= *first)).map(|(.., effect)| effect)
    }
}

/// A database with faults.
pub(super) struct Faulty {
    pub(super) inner: Box<dyn Database>,
    pub(super) faults: Faults,
}

fn die() -> Error {
    // Not to be caught, and nothing is cleaned up: as a crash is.
    let killed = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    Error::new(Kind::Bug, "this process should be dead").because(format!("{killed:?}"))
}

impl Database for Faulty {
    fn run(&self, purpose: Purpose, statements: &[Statement]) -> Result<Vec<Row>> {
        if purpose == Purpose::Read {
            self.faults.0.reads.fetch_add(1, Ordering::SeqCst);
            return self.inner.run(purpose, statements);
        }
        let injected = |kind| Error::new(kind, "write the journal: an injected fault");
        match self.faults.next() {
            None => self.inner.run(purpose, statements),
            Some(Effect::Fail(kind)) => Err(injected(kind)),
            Some(Effect::FailAfter(kind)) => self.inner.run(purpose, statements).and_then(|_| Err(injected(kind))),
            Some(Effect::Kill) => Err(die()),
            Some(Effect::KillAfter) => self.inner.run(purpose, statements).and_then(|_| Err(die())),
        }
    }

    fn clock(&self, now_ms: i64) -> String {
        self.inner.clock(now_ms)
    }

    fn before_fence(&self) -> Option<Statement> {
        self.inner.before_fence()
    }

    fn fence(&self) -> &'static str {
        self.inner.fence()
    }

    fn slot_conflicts(&self) -> &'static [&'static str] {
        self.inner.slot_conflicts()
    }

    fn each(&self) -> &'static str {
        self.inner.each()
    }

    fn greatest(&self) -> &'static str {
        self.inner.greatest()
    }

    fn is_shared(&self) -> bool {
        self.inner.is_shared()
    }

    fn lease_is_over(&self) -> &'static str {
        self.inner.lease_is_over()
    }

    fn has_settled(&self) -> bool {
        self.inner.has_settled()
    }

    fn place(&self) -> String {
        self.inner.place()
    }

    #[cfg(test)]
    fn pragma(&self, name: &str, value: i64) {
        self.inner.pragma(name, value);
    }
}

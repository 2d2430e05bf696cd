//! Counts of what a store was asked, for tests, `doctor` and cost estimates.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Kind, Result};

/// The verbs of a store, as they reach the place: one create may cost several of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verb {
    /// Write a new object.
    Create,
    /// Read a whole object.
    Get,
    /// Read a part of an object.
    GetRange,
    /// Look at size and time.
    Head,
    /// List a folder.
    List,
    /// Remove an object.
    Delete,
    /// Lock an object, or for longer.
    Lock,
}

impl Verb {
    /// All of them.
    pub const ALL: [Self; 7] = [Self::Create, Self::Get, Self::GetRange, Self::Head, Self::List, Self::Delete, Self::Lock];

    /// A stable lower-case word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Get => "get",
            Self::GetRange => "get-range",
            Self::Head => "head",
            Self::List => "list",
            Self::Delete => "delete",
            Self::Lock => "lock",
        }
    }
}

/// What one verb cost so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VerbMetrics {
    /// Requests, repeated ones included; a listing of many pages counts once.
    pub requests: u64,
    /// Requests that ended in an error, "not found" included.
    pub failures: u64,
    /// Those of the failures that say that something is wrong: neither "not found" nor "exists already".
    pub errors: u64,
    /// Bytes of objects sent or received by successful requests.
    pub bytes: u64,
}

/// A snapshot of a store's counters since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Metrics {
    verbs: [VerbMetrics; Verb::ALL.len()],
    /// Repetitions by this crate, above those inside the HTTP client.
    pub retries: u64,
}

impl Metrics {
    /// The counters of one verb.
    #[must_use]
    pub fn verb(&self, verb: Verb) -> VerbMetrics {
        self.verbs[verb as usize]
    }

    /// Requests of all verbs.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.verbs.iter().map(|verb| verb.requests).sum()
    }

    /// Bytes of objects sent.
    #[must_use]
    pub fn uploaded_bytes(&self) -> u64 {
        self.verb(Verb::Create).bytes
    }

    /// Bytes of objects received.
    #[must_use]
    pub fn downloaded_bytes(&self) -> u64 {
        self.verb(Verb::Get).bytes + self.verb(Verb::GetRange).bytes
    }
}

#[derive(Debug, Default)]
struct Counter {
    requests: AtomicU64,
    failures: AtomicU64,
    errors: AtomicU64,
    bytes: AtomicU64,
}

/// The live counters.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    verbs: [Counter; Verb::ALL.len()],
    retries: AtomicU64,
}

/// Of all stores of this process.
static PROCESS: LazyLock<Counters> = LazyLock::new(Counters::default);

/// What was asked of all stores since this process began.
#[must_use]
pub fn process() -> Metrics {
    PROCESS.snapshot()
}

impl Counters {
    /// Counts one request: the bytes that it moved, or how it failed.
    pub fn request(&self, verb: Verb, outcome: Result<u64, Kind>) {
        self.add(verb, outcome);
        PROCESS.add(verb, outcome);
    }

    fn add(&self, verb: Verb, outcome: Result<u64, Kind>) {
        let counter = &self.verbs[verb as usize];
        counter.requests.fetch_add(1, Ordering::Relaxed);
        match outcome {
            Ok(bytes) => counter.bytes.fetch_add(bytes, Ordering::Relaxed),
            Err(kind) => {
                if !matches!(kind, Kind::NotFound | Kind::AlreadyExists) {
                    counter.errors.fetch_add(1, Ordering::Relaxed);
                }
                counter.failures.fetch_add(1, Ordering::Relaxed)
            }
        };
    }

    /// Counts one repetition.
    pub fn retry(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
        PROCESS.retries.fetch_add(1, Ordering::Relaxed);
    }

    /// The counts at this moment.
    pub fn snapshot(&self) -> Metrics {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Metrics {
            verbs: Verb::ALL.map(|verb| {
                let counter = &self.verbs[verb as usize];
                VerbMetrics {
                    requests: read(&counter.requests),
                    failures: read(&counter.failures),
                    errors: read(&counter.errors),
                    bytes: read(&counter.bytes),
                }
            }),
            retries: read(&self.retries),
        }
    }
}

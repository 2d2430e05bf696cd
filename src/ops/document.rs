//! Pieces that several result documents share. Field names carry units; times are RFC 3339 in UTC.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::verdict::millis;
use crate::source::Outcome;

/// One timed step of an operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phase {
    pub name: String,
    pub duration_ms: u64,
}

/// An object of the source that the backup could not read: it is not in the snapshot, or not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    pub source: String,
    /// Path or table, printable.
    pub object: String,
    /// `vanished`, `changed-while-read`, `unreadable`, …
    pub kind: String,
    pub message: String,
}

/// Something that stands where a restore wants to go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Existing {
    pub path: String,
    /// In words: `a file of 123 bytes`, `a folder with 17 entries`.
    pub what: String,
    /// Where it will be (or was) moved when the restore is confirmed.
    pub moved_to: String,
}

/// One check of a drill, with the source it was asked of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckRecord {
    /// Empty when the check concerns the whole drill.
    pub source: String,
    pub name: String,
    pub outcome: Outcome,
    pub expected: String,
    pub actual: String,
}

/// A limit of the plan and what was measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Objective {
    /// `recovery_time` or `data_loss`.
    pub name: String,
    pub limit_ms: u64,
    /// `None`: could not be measured (the recovery failed).
    pub actual_ms: Option<u64>,
    pub met: bool,
}

/// How a drill ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Restored, and everything that was asked for was checked and is right.
    Passed,
    /// Could not be restored in time, is damaged, or differs.
    Failed,
    /// Nothing wrong was found, but something that was asked for could not be checked.
    Incomplete,
}

impl Verdict {
    /// The word of the document.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::Incomplete => "incomplete",
        }
    }
}

/// Times the phases of an operation. Each phase lasts until the next begins.
#[derive(Debug)]
pub(crate) struct Stopwatch {
    began: Instant,
    phases: Vec<Phase>,
    current: Option<(&'static str, Instant)>,
}

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self { began: Instant::now(), phases: Vec::new(), current: None }
    }

    /// Ends the phase before and begins this one; the same goes on.
    pub(crate) fn phase(&mut self, name: &'static str) {
        if self.current.is_some_and(|(current, _)| current == name) {
            return;
        }
        self.end();
        self.current = Some((name, Instant::now()));
    }

    /// Ends the present phase.
    pub(crate) fn end(&mut self) {
        if let Some((name, began)) = self.current.take() {
            self.phases.push(Phase { name: name.into(), duration_ms: millis(began.elapsed()) });
        }
    }

    /// Takes over phases that were timed elsewhere.
    pub(crate) fn take(&mut self, phases: &[Phase]) {
        self.end();
        self.phases.extend_from_slice(phases);
    }

    /// Since the start.
    pub(crate) fn elapsed_ms(&self) -> u64 {
        millis(self.began.elapsed())
    }

    /// All phases, and the whole.
    pub(crate) fn stop(mut self) -> (Vec<Phase>, u64) {
        self.end();
        let elapsed = self.elapsed_ms();
        (self.phases, elapsed)
    }
}

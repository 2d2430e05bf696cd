//! Pieces that several result documents share. Field names carry units; times are RFC 3339 in UTC.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::ops::verdict::millis;
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

/// Times the phases of an operation. Each phase lasts until the next begins; one that begins again goes on.
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
        let now = Instant::now();
        self.end(now);
        self.current = Some((name, now));
    }

    fn end(&mut self, now: Instant) {
        let Some((name, began)) = self.current.take() else { return };
        let duration_ms = millis(now - began);
        match self.phases.iter_mut().find(|phase| phase.name == name) {
            Some(phase) => phase.duration_ms += duration_ms,
            None => self.phases.push(Phase { name: name.into(), duration_ms }),
        }
    }

    /// Ends the present phase, which goes on from none before, and begins `next`. Where `parts` tell what the present one consisted of, they stand in its place, and what
    /// they leave of its time is the first one's: no moment counts twice.
    pub(crate) fn split(&mut self, parts: &[Phase], next: &'static str) {
        self.phase(next);
        if parts.is_empty() {
            return;
        }
        let whole = self.phases.pop().map_or(0, |phase| phase.duration_ms);
        let rest = whole.saturating_sub(parts.iter().map(|part| part.duration_ms).sum());
        let from = self.phases.len();
        self.phases.extend_from_slice(parts);
        self.phases[from].duration_ms += rest;
    }

    /// Since the start.
    pub(crate) fn elapsed_ms(&self) -> u64 {
        millis(self.began.elapsed())
    }

    /// All phases, and the whole.
    pub(crate) fn stop(mut self) -> (Vec<Phase>, u64) {
        self.end(Instant::now());
        let elapsed = self.elapsed_ms();
        (self.phases, elapsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_disjoint_and_add_up() {
        let part = |name: &str, duration_ms| Phase { name: name.into(), duration_ms };
        let mut watch = Stopwatch::start();
        watch.phase("select");
        watch.phase("fetch");
        std::thread::sleep(std::time::Duration::from_millis(30));
        watch.split(&[part("fetch", 5), part("adopt", 7)], "check");
        watch.phase("cleanup");
        watch.phase("cleanup");
        let (phases, whole) = watch.stop();
        assert_eq!(phases.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), ["select", "fetch", "adopt", "check", "cleanup"]);
        assert_eq!(phases[2].duration_ms, 7);
        assert!(phases[1].duration_ms >= 23, "{phases:?}");
        let sum: u64 = phases.iter().map(|p| p.duration_ms).sum();
        assert!(sum <= whole && whole - sum <= 6, "{sum} of {whole}");
    }

    #[test]
    fn a_phase_that_begins_again_goes_on() {
        let mut watch = Stopwatch::start();
        for _ in 0..2 {
            watch.phase("replay");
            std::thread::sleep(std::time::Duration::from_millis(5));
            watch.phase("check");
        }
        let (phases, _) = watch.stop();
        assert_eq!(phases.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), ["replay", "check"]);
        assert!(phases[0].duration_ms >= 10, "{phases:?}");
    }
}

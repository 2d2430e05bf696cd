//! Verify: the repository's own check, with a stored report. A finding is never exit 0.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::clock::Clock;
use crate::error::{Kind, Result};
use crate::event::{Cancel, Progress};
use crate::id::{Name, ReportId, SnapshotId};
use crate::repo::{Finding, Repository};

/// How deep to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    Structure,
    /// Also this share of the stored bytes, 1–100 percent; below 100 it rotates, so that ⌈100/percent⌉ runs in a row cover everything.
    Data { percent: u8 },
}

/// `lifeboat.verify/1`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyReport {
    pub schema: String,
    pub id: ReportId,
    pub plan: Option<String>,
    pub time: DateTime<Utc>,
    /// `structure` or `data`.
    pub depth: String,
    /// For `data`: the share that was read and the number of this run in the rotation.
    pub percent: Option<u8>,
    pub run: Option<u64>,
    pub findings: Vec<Finding>,
    pub bytes_checked: u64,
    pub objects_checked: u64,
    /// Snapshots all of whose objects were looked at, at this depth, without a finding.
    pub snapshots_sound: Vec<SnapshotId>,
    /// What this key's role could not check.
    pub skipped: Vec<String>,
    pub duration_ms: u64,
    pub warnings: Vec<String>,
}

impl VerifyReport {
    /// How the process should end: `None` is exit 0.
    #[must_use]
    pub fn exit(&self) -> Option<Kind> {
        if !self.findings.is_empty() {
            Some(Kind::Damaged)
        } else if !self.skipped.is_empty() {
            Some(Kind::Incomplete)
        } else {
            None
        }
    }
}

/// Checks the whole repository (`plan` is only recorded in the report).
///
/// # Errors
/// When checking itself was not possible; damage is a finding, not an error.
pub fn run(
    _repository: &Repository,
    _plan: Option<&Name>,
    _depth: Depth,
    _clock: &dyn Clock,
    _progress: &dyn Progress,
    _cancel: &Cancel,
) -> Result<VerifyReport> {
    todo!()
}

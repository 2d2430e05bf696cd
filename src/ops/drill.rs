//! Drill: a restore into a private folder by the very code of an incident restore, then proof, verdict, report and clean-up.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::select::Choice;
use super::{CheckRecord, Job, Missing, Objective, Phase, Verdict};
use crate::error::{Kind, Result};
use crate::id::{Name, ReportId, SnapshotId};
use crate::repo::Repository;

/// What is asked for beyond the plan's drill settings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DrillRequest {
    /// `None`: as the plan says (latest, or random with a fresh seed).
    pub choice: Option<Choice>,
    /// Keep the restored target this long, whatever the verdict.
    pub keep_target: Option<Duration>,
}

/// What became of the private target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cleanup {
    /// The folder was looked for after removal and is gone.
    pub removed: bool,
    /// Where it is kept, and until when.
    pub kept: Option<String>,
    pub kept_until: Option<DateTime<Utc>>,
    pub message: String,
}

/// `lifeboat.drill/1`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DrillReport {
    pub schema: String,
    pub id: ReportId,
    pub plan: String,
    pub host: String,
    pub snapshot: SnapshotId,
    /// The moment that the restored content is of.
    pub snapshot_time: DateTime<Utc>,
    /// When the drill began.
    pub time: DateTime<Utc>,
    pub verdict: Verdict,
    /// Why it is not `passed`; sentences.
    pub reasons: Vec<String>,
    /// From the choice of the snapshot until the content was usable (checks and clean-up not included). `None`: never usable.
    pub recovery_time_ms: Option<u64>,
    /// What a disaster at the start of this drill would have lost by restoring this snapshot: start of the drill − snapshot time, 0
    /// when the clock says less. For a chosen older snapshot this is the age of that choice, not of the newest backup.
    pub data_loss_ms: u64,
    pub duration_ms: u64,
    pub bytes_restored: u64,
    pub entries_restored: u64,
    pub phases: Vec<Phase>,
    pub checks: Vec<CheckRecord>,
    pub objectives: Vec<Objective>,
    /// What was asked for and could not be checked; sentences.
    pub skipped: Vec<String>,
    /// What the backup itself could not read.
    pub missing: Vec<Missing>,
    pub cleanup: Cleanup,
    /// The seed of a random choice, to repeat it.
    pub seed: Option<u64>,
    /// The exit kind's word (`damaged`, `differs`, `objective-missed`, …); `None` when the exit is 0.
    pub exit: Option<String>,
    /// Version of the program that drilled.
    pub program: String,
}

impl DrillReport {
    /// How the process should end: `None` is exit 0.
    #[must_use]
    pub fn exit(&self) -> Option<Kind> {
        todo!()
    }
}

/// One drill now. A drill that fails is a result (stored in the repository like one that passes), not an error.
///
/// # Errors
/// `NoRecoveryPoint` without a snapshot, `WrongKey` without the reader role, `Interrupted`; `Unavailable` when the report could not be stored.
pub fn run(_job: &Job, _request: &DrillRequest) -> Result<DrillReport> {
    todo!()
}

/// Past drills of one plan, or of all, oldest first.
///
/// # Errors
/// What the repository says.
pub fn history(_repository: &Repository, _plan: Option<&Name>) -> Result<Vec<DrillReport>> {
    todo!()
}

/// One past drill by id or a unique beginning of it.
///
/// # Errors
/// `NotFound`; `Usage` when ambiguous.
pub fn find(_repository: &Repository, _id: &str) -> Result<DrillReport> {
    todo!()
}

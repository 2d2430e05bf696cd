//! Backup: one snapshot of all sources of a plan, taken together and committed as a whole or not at all.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{Job, Missing};
use crate::error::{Kind, Result};
use crate::id::SnapshotId;

/// `lifeboat.backup/1`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BackupReport {
    pub schema: String,
    pub plan: String,
    pub snapshot: SnapshotId,
    /// The moment that the content is of.
    pub time: DateTime<Utc>,
    /// Plain bytes read from the sources.
    pub bytes_read: u64,
    /// Plain bytes of all files in the snapshot.
    pub bytes_source: u64,
    /// Sealed bytes that this backup added to the repository.
    pub bytes_stored: u64,
    pub entries: u64,
    pub duration_ms: u64,
    /// By source name: the consistency point as the source tells it.
    pub consistency: BTreeMap<String, serde_json::Value>,
    /// Sentences for the operator.
    pub warnings: Vec<String>,
    /// What the sources could not read; not empty means incomplete.
    pub problems: Vec<Missing>,
    /// Whether the snapshot lacks something (it was committed all the same, and its manifest records what).
    pub incomplete: bool,
}

impl BackupReport {
    /// How the process should end: `None` is exit 0.
    #[must_use]
    pub fn exit(&self) -> Option<Kind> {
        self.incomplete.then_some(Kind::Incomplete)
    }
}

/// One backup now.
///
/// # Errors
/// `Busy` when another backup of this plan runs on this host; whatever a source or the store says: nothing was committed then.
///
/// # Cancellation
/// By `job.cancel`: `Interrupted`, nothing committed, what was uploaded is reused by the next run.
pub fn run(_job: &Job) -> Result<BackupReport> {
    todo!()
}

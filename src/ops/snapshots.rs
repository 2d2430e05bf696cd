//! Snapshots: what can be restored, and what was verified and proven.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::id::{Name, SnapshotId};
use crate::repo::Repository;

/// One source of a listed snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedSource {
    pub name: String,
    pub kind: String,
    pub bytes: u64,
    pub entries: u64,
}

/// One snapshot of the list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedSnapshot {
    pub id: SnapshotId,
    pub time: DateTime<Utc>,
    pub plan: String,
    pub host: String,
    pub sources: Vec<ListedSource>,
    pub bytes_source: u64,
    pub bytes_read: u64,
    pub bytes_stored: u64,
    /// Objects that the backup could not read; 0 is complete.
    pub problems: u64,
    /// The last verification that found all its stored bytes sound (structure alone does not count).
    pub verified_at: Option<DateTime<Utc>>,
    /// The last drill that passed on it.
    pub proven_at: Option<DateTime<Utc>>,
}

/// What moments a source can be recovered to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveryRange {
    pub plan: String,
    pub source: String,
    /// Oldest moment.
    pub from: DateTime<Utc>,
    /// Newest moment.
    pub to: DateTime<Utc>,
    /// `false`: only the moments of the snapshots between the two, not everything between.
    pub continuous: bool,
    /// How many moments those are.
    pub points: u64,
}

/// `lifeboat.snapshots/1`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotList {
    pub schema: String,
    /// Oldest first.
    pub snapshots: Vec<ListedSnapshot>,
    pub recovery_ranges: Vec<RecoveryRange>,
}

/// Lists the snapshots of one plan, or of all.
///
/// # Errors
/// What the repository says.
pub fn run(_repository: &Repository, _plan: Option<&Name>) -> Result<SnapshotList> {
    todo!()
}

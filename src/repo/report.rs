//! Reports kept in the repository, sealed: drills and verifications.
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::id::{ReportId, SnapshotId};

/// What a report is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReportKind {
    Drill,
    Verify,
}

/// A stored report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReportRecord {
    pub id: ReportId,
    pub kind: ReportKind,
    pub time: DateTime<Utc>,
    pub plan: Option<String>,
    /// Snapshots it speaks of.
    pub snapshots: Vec<SnapshotId>,
    pub passed: bool,
    /// The full document (`lifeboat.drill/1`, `lifeboat.verify/1`).
    pub document: serde_json::Value,
}

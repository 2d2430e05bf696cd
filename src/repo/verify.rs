//! Verification.
use serde::{Deserialize, Serialize};

use crate::id::SnapshotId;

/// How deep to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VerifyDepth {
    /// Every object's presence, seals, chain, index and trees; no pack data.
    Structure,
    /// Also every byte of this share of packs; `run` is a counter so that 100/percent consecutive runs cover everything.
    Data { percent: u8, run: u64 },
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Key of the object.
    pub object: String,
    /// `missing`, `damaged`, `foreign`, `chain-broken`, `unreadable`, …
    pub kind: String,
    pub message: String,
    /// Snapshots that it harms.
    pub snapshots: Vec<SnapshotId>,
}

/// What a verification found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verification {
    pub findings: Vec<Finding>,
    pub objects_checked: u64,
    /// Stored bytes read and checked.
    pub bytes_checked: u64,
    /// Snapshots all of whose objects were looked at without a finding (at the depth asked for).
    pub snapshots_sound: Vec<SnapshotId>,
    /// What could not be checked with this key's role, in words.
    pub skipped: Vec<String>,
}

//! Snapshot manifests: the commit.
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::id::{Name, SnapshotId};

/// An earlier manifest of the same plan, by id and hash of its sealed bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    pub id: SnapshotId,
    /// Hex BLAKE3 of the stored object.
    pub hash: String,
}

/// What one backup moved. Bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Plain bytes read from sources.
    pub bytes_read: u64,
    /// Plain bytes of all files in the snapshot.
    pub bytes_source: u64,
    /// Sealed bytes that this backup added to the repository, everything included.
    pub bytes_stored: u64,
    pub entries: u64,
    pub chunks_new: u64,
    pub chunks_reused: u64,
    pub packs: u64,
}

/// One source in a snapshot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SourceRecord {
    pub name: Name,
    /// `sqlite`, `files`, `command`, …
    pub kind: String,
    pub entries: u64,
    /// Plain bytes of all its files.
    pub bytes: u64,
    /// [`crate::source::Finish`] as JSON: consistency, fingerprints, problems. Opaque here.
    pub finish: serde_json::Value,
    /// Locator of the tree's root, opaque outside `repo`.
    pub tree: serde_json::Value,
}

/// A committed snapshot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    pub id: SnapshotId,
    pub plan: Name,
    pub host: String,
    /// When the run began.
    pub started: DateTime<Utc>,
    /// The moment that the content is of: what `--at` compares with.
    pub time: DateTime<Utc>,
    pub parents: Vec<Parent>,
    pub sources: Vec<SourceRecord>,
    pub stats: Stats,
    pub tags: Vec<String>,
    /// Version of the program that wrote it.
    pub program: String,
}

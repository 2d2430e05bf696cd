//! The check of a repository without a key, as a document.

use std::time::Instant;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::clock::Clock;
use crate::error::{Kind, Result};
use crate::event::{Cancel, Progress};
use crate::ops::verdict::millis;
use crate::ops::verify::strange_warning;
use crate::repo::{Finding, check_keyless};
use crate::store::Store;

/// `lifeboat.keyless/1`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeylessReport {
    pub schema: String,
    /// URL.
    pub repository: String,
    pub time: DateTime<Utc>,
    pub findings: Vec<Finding>,
    /// Packs and index objects: every byte was compared with their names.
    pub objects_compared: u64,
    pub bytes_compared: u64,
    /// Others, of which only the shape can be looked at.
    pub objects_shaped: u64,
    /// What nobody can see without a key, in words; the same always.
    pub not_checked: Vec<String>,
    pub duration_ms: u64,
    #[serde(default)]
    pub warnings: Vec<String>,
}

impl KeylessReport {
    /// How the process should end: `None` is exit 0.
    #[must_use]
    pub fn exit(&self) -> Option<Kind> {
        (!self.findings.is_empty()).then_some(Kind::Damaged)
    }
}

const NOT_CHECKED: [&str; 3] = [
    "whether anything is missing or was put back to an older state: what should be there is written in sealed objects",
    "the bytes of manifests, reports and logs beyond their shape: their names do not say what is in them",
    "whether what is stored can be opened and restored: that takes a key (`lifeboat verify --data`) and a drill",
];

/// Checks a place.
///
/// # Errors
/// As [`check_keyless`].
pub fn run(
    store: &Store,
    runtime: &tokio::runtime::Handle,
    clock: &dyn Clock,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<KeylessReport> {
    let (began, time) = (Instant::now(), clock.now());
    let check = check_keyless(store, runtime, progress, cancel)?;
    Ok(KeylessReport {
        schema: "lifeboat.keyless/1".into(),
        repository: store.describe().to_owned(),
        time,
        findings: check.findings,
        objects_compared: check.objects_compared,
        bytes_compared: check.bytes_compared,
        objects_shaped: check.objects_shaped,
        not_checked: NOT_CHECKED.map(str::to_owned).to_vec(),
        duration_ms: millis(began.elapsed()),
        warnings: strange_warning(&check.strange).into_iter().collect(),
    })
}

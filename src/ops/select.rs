//! Choosing a snapshot. Pure: manifests and reports in, one manifest or a reason out.

use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::error::Result;
use crate::repo::{Manifest, ReportRecord};

/// Which snapshot is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// The newest by content time.
    Latest,
    /// By id or a unique beginning of one (any case).
    Snapshot(String),
    /// The newest whose content is not later than this.
    At(DateTime<Utc>),
    /// The newest that a drill proved.
    LatestProven,
    /// One of those within `window` before now, each equally likely; the same seed chooses the same of the same list.
    Random { seed: u64, window: Option<Duration> },
}

/// Chooses among the manifests of one plan (in any order). `reports` are all drill reports; `now` bounds what exists.
///
/// # Errors
/// `NoRecoveryPoint` lists the nearest that are available; `Usage` when a beginning of an id is ambiguous or not an id at all.
pub fn choose<'a>(_manifests: &'a [Manifest], _reports: &[ReportRecord], _choice: &Choice, _now: DateTime<Utc>) -> Result<&'a Manifest> {
    todo!()
}

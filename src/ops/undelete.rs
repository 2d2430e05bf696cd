//! Undelete: what was deleted or overwritten in a versioned bucket is brought back as it was at a moment. Needs no key of the repository.
//!
//! Lifeboat writes each object once, so the version that was there at a moment is what was committed. It is copied within the store to be the newest
//! version again, under the lock of the configuration; nothing is removed, so this can be repeated, and undone. Packs are named by their content
//! and everything else is sealed: `verify --data` afterwards proves it.

use chrono::{DateTime, Utc};
use futures::StreamExt as _;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::event::{Event, Progress};
use crate::ops::explain;
use crate::ops::resolve::{RepositorySettings, Surroundings};
use crate::repo::UNLOCKED;
use crate::store::Version;

/// Copies at a time.
const COPIES: usize = 16;

/// `lifeboat.undelete/1`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UndeleteReport {
    pub schema: String,
    pub repository: String,
    /// The moment as which the store is brought back, by the store's clock.
    pub at: DateTime<Utc>,
    pub dry_run: bool,
    /// Objects that were there at that moment.
    pub objects: u64,
    /// Those of them that were deleted since.
    pub deleted: Vec<String>,
    /// Those of them that were overwritten since.
    pub overwritten: Vec<String>,
    /// Stored bytes of both.
    pub bytes: u64,
    /// How many were brought back.
    pub brought_back: u64,
    /// What could not be, and why; sentences.
    pub failed: Vec<String>,
}

impl UndeleteReport {
    /// How the process should end: `None` is exit 0.
    #[must_use]
    pub fn exit(&self) -> Option<Kind> {
        (!self.failed.is_empty()).then_some(Kind::Incomplete)
    }
}

/// What is to be brought back, and whether it was deleted. `versions`: by key, each key's newest first. Pure.
fn plan(versions: &[Version], at: DateTime<Utc>) -> (u64, Vec<(&Version, bool)>) {
    let mut objects = 0;
    let mut back = Vec::new();
    for of_key in versions.chunk_by(|a, b| a.key == b.key) {
        if UNLOCKED.iter().any(|folder| of_key[0].key.starts_with(folder) && !folder.starts_with("gc/")) {
            continue;
        }
        // As it was then: of several of one second, the newest.
        let Some(then) = of_key.iter().find(|version| version.modified <= at).filter(|version| !version.marker) else { continue };
        objects += 1;
        let now = of_key.iter().find(|version| version.latest).unwrap_or(&of_key[0]);
        let same = now.version == then.version || !now.marker && !then.etag.is_empty() && (&now.etag, now.size) == (&then.etag, then.size);
        if !same {
            back.push((then, now.marker));
        }
    }
    (objects, back)
}

/// Brings everything back that was there at `at`. What came later stays.
///
/// # Errors
/// `Usage` where the store keeps no versions; when it cannot be listed.
pub fn run(settings: &RepositorySettings, at: DateTime<Utc>, dry_run: bool, surroundings: &Surroundings) -> Result<UndeleteReport> {
    let store = settings.open_store()?;
    let progress: &dyn Progress = &*surroundings.progress;
    progress.event(Event::Phase { name: "list", detail: "versions".into() });
    let versions = surroundings.runtime.block_on(store.versions(""))?;
    let (objects, back) = plan(&versions, at);
    if objects == 0 {
        return Err(Error::new(Kind::NoRepository, format!("there was nothing at {} at {}", store.describe(), at.to_rfc3339()))
            .hint("check the address and the time; without versioning nothing that was deleted is left"));
    }
    let of = |deleted: bool| back.iter().filter(|(_, was)| *was == deleted).map(|(version, _)| version.key.clone()).collect();
    let mut report = UndeleteReport {
        schema: "lifeboat.undelete/1".into(),
        repository: store.describe().to_owned(),
        at,
        dry_run,
        objects,
        deleted: of(true),
        overwritten: of(false),
        bytes: back.iter().map(|(version, _)| version.size).sum(),
        brought_back: 0,
        failed: Vec::new(),
    };
    if dry_run {
        return Ok(report);
    }
    progress.event(Event::Phase { name: "bring back", detail: format!("{} objects", back.len()) });
    progress.event(Event::Total { bytes: report.bytes, items: back.len() as u64 });
    for some in back.chunks(COPIES * 8) {
        surroundings.cancel.check()?;
        let results: Vec<(&Version, Result<()>)> = surroundings.runtime.block_on(
            futures::stream::iter(some).map(async |(version, _)| (*version, store.bring_back(version).await)).buffered(COPIES).collect(),
        );
        for (version, result) in results {
            match result {
                Ok(()) => report.brought_back += 1,
                Err(error) => report.failed.push(explain(&error)),
            }
            progress.event(Event::Advance { bytes: version.size, items: 1 });
        }
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(key: &str, name: &str, second: i64, latest: bool, content: Option<&str>) -> Version {
        Version {
            key: key.into(),
            version: name.into(),
            latest,
            marker: content.is_none(),
            size: content.map_or(0, |content| content.len() as u64),
            etag: content.unwrap_or_default().into(),
            modified: DateTime::from_timestamp(second, 0).unwrap(),
        }
    }

    #[test]
    fn what_was_there_at_the_moment_and_is_not_now_comes_back() {
        let versions = [
            version("back-already", "3", 30, true, Some("a")),
            version("back-already", "2", 25, false, None),
            version("back-already", "1", 10, false, Some("a")),
            version("deleted", "2", 25, true, None),
            version("deleted", "1", 10, false, Some("b")),
            version("deleted-before", "2", 15, true, None),
            version("deleted-before", "1", 10, false, Some("c")),
            version("later", "1", 25, true, Some("d")),
            version("overwritten-twice", "3", 26, true, None),
            version("overwritten-twice", "2", 25, false, Some("evil")),
            version("overwritten-twice", "1", 10, false, Some("e")),
            version("overwritten", "2", 25, true, Some("evil")),
            version("overwritten", "1", 10, false, Some("f")),
            version("sessions/x", "2", 25, true, None),
            version("sessions/x", "1", 10, false, Some("g")),
            version("untouched", "1", 10, true, Some("h")),
        ];
        let (objects, back) = plan(&versions, DateTime::from_timestamp(20, 0).unwrap());
        assert_eq!(objects, 5);
        let back: Vec<_> = back.iter().map(|(version, deleted)| (version.key.as_str(), version.version.as_str(), *deleted)).collect();
        assert_eq!(back, [("deleted", "1", true), ("overwritten-twice", "1", true), ("overwritten", "1", false)]);
    }
}

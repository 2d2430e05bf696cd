//! Undelete: what was deleted or overwritten in a versioned bucket is brought back as it was at a moment. Needs no key of the repository.
//!
//! Lifeboat writes each object once, so the version that was there at a moment is what was committed. It is copied within the store to be the newest
//! version again, under the lock of the configuration; nothing is removed, so this can be repeated, and undone. Packs are named by their content
//! and everything else is sealed: `verify --data` afterwards proves it.
//!
//! What the retention ledger decided since stays, as anything that came later: a snapshot that somebody had removed by a stolen key stays removed, although
//! all of its objects are back, and the next prune deletes them again. So this is told, and taken back by a further decision where that is asked for.
//! Both need a key of the repository.

use chrono::{DateTime, Utc};
use futures::StreamExt as _;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::event::{Event, Progress};
use crate::id::SnapshotId;
use crate::ops::explain;
use crate::ops::resolve::{RepositorySettings, Surroundings};
use crate::repo::{LaterDecision, UNLOCKED, is_volume_key};
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
    /// What the retention ledger decided since. `None`: nothing.
    pub decisions: Option<Decisions>,
}

/// Decisions of the retention ledger that came later.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decisions {
    /// The objects of their entries.
    pub entries: Vec<String>,
    /// What they say, as far as it could be read.
    pub decided: Vec<LaterDecision>,
    /// Snapshots that they removed.
    pub removed: Vec<SnapshotId>,
    /// Snapshots whose holds they ended or replaced.
    pub unheld: Vec<SnapshotId>,
    /// Whether that was taken back.
    pub taken_back: bool,
    /// Why it is not known what they say, or why it could not be taken back; a sentence.
    pub failed: Option<String>,
}

impl Decisions {
    /// Whether something that was kept then is not kept now, as far as anybody knows.
    #[must_use]
    pub fn stand(&self) -> bool {
        let takes_away = !self.removed.is_empty() || !self.unheld.is_empty();
        self.failed.is_some() || takes_away && !self.taken_back
    }
}

impl UndeleteReport {
    /// How the process should end: `None` is exit 0.
    #[must_use]
    pub fn exit(&self) -> Option<Kind> {
        let stand = self.decisions.as_ref().is_some_and(Decisions::stand);
        (!self.failed.is_empty() || stand).then_some(Kind::Incomplete)
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

/// The ledger's entries that came since, and those that were there, as they were. Pure.
fn ledger(versions: &[Version], at: DateTime<Utc>) -> (Vec<String>, Vec<Version>) {
    let (mut since, mut then) = (Vec::new(), Vec::new());
    for of_key in versions.chunk_by(|a, b| a.key == b.key).filter(|of_key| of_key[0].key.starts_with("retention/")) {
        let is_there = of_key.iter().any(|version| version.latest && !version.marker);
        match of_key.iter().find(|version| version.modified <= at).filter(|version| !version.marker) {
            Some(version) => then.push(version.clone()),
            // A volume comes with an entry.
            None if is_there && !is_volume_key(&of_key[0].key) => since.push(of_key[0].key.clone()),
            None => {}
        }
    }
    (since, then)
}

/// Tells what was decided since, and takes it back where `request` asks for that and everything that was there is there again.
fn decisions(
    settings: &RepositorySettings,
    versions: &[Version],
    request: &UndeleteRequest,
    is_back: bool,
    surroundings: &Surroundings,
) -> Option<Decisions> {
    let (entries, then) = ledger(versions, request.at);
    if entries.is_empty() {
        return None;
    }
    let mut decisions = Decisions { entries, ..Decisions::default() };
    let mut look = || -> Result<()> {
        let repository = settings.open(surroundings)?;
        let may = request.with_decisions && !request.dry_run;
        let since = match repository.decided_since(&then) {
            // What came since goes on from entries that somebody had put in the place of those that are back.
            Err(error) if error.kind() == Kind::Damaged && may && is_back => {
                repository.put_ledger_back(&then)?;
                decisions.taken_back = true;
                repository.decided_since(&then)?
            }
            since => since?,
        };
        decisions.removed.clone_from(&since.removed);
        decisions.unheld = since.holds.iter().map(|hold| hold.snapshot).collect();
        let takes_away = since.takes_away();
        decisions.decided = since.decisions;
        if !may || !takes_away {
            return Ok(());
        }
        if !is_back {
            return Err(Error::new(Kind::Incomplete, "not everything could be brought back: what was decided since was not taken back"));
        }
        let reason = format!("undelete to {}", request.at.to_rfc3339());
        repository.reinstate(&then, &request.by, &reason, surroundings.clock.now())?;
        decisions.taken_back = true;
        Ok(())
    };
    decisions.failed = look().err().map(|error| explain(&error));
    Some(decisions)
}

/// What to bring back.
#[derive(Debug, Clone)]
pub struct UndeleteRequest {
    /// The moment, by the store's clock.
    pub at: DateTime<Utc>,
    pub dry_run: bool,
    /// Whether removals and releases that the retention ledger decided since are taken back.
    pub with_decisions: bool,
    /// Who asks, for the ledger.
    pub by: String,
}

/// Brings everything back that was there at that moment. What came later stays.
///
/// # Errors
/// `Usage` where the store keeps no versions; when it cannot be listed.
pub fn run(settings: &RepositorySettings, request: &UndeleteRequest, surroundings: &Surroundings) -> Result<UndeleteReport> {
    let (at, dry_run) = (request.at, request.dry_run);
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
        decisions: None,
    };
    if dry_run {
        report.decisions = decisions(settings, &versions, request, false, surroundings);
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
    report.decisions = decisions(settings, &versions, request, report.failed.is_empty(), surroundings);
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

    #[test]
    fn entries_of_the_ledger_are_those_of_the_moment_or_came_since() {
        let versions = [
            version("packs/x", "1", 25, true, Some("p")),
            version("retention/1", "2", 30, true, None),
            version("retention/1", "1", 10, false, Some("cleared away since")),
            version("retention/2", "1", 11, true, Some("there")),
            version("retention/3", "3", 31, true, Some("brought back")),
            version("retention/3", "2", 25, false, None),
            version("retention/3", "1", 12, false, Some("there")),
            version("retention/4", "2", 26, true, None),
            version("retention/4", "1", 24, false, Some("came and went")),
            version("retention/5", "1", 24, true, Some("came since")),
        ];
        let (since, then) = ledger(&versions, DateTime::from_timestamp(20, 0).unwrap());
        assert_eq!(since, ["retention/5"]);
        let then: Vec<_> = then.iter().map(|version| (version.key.as_str(), version.version.as_str())).collect();
        assert_eq!(then, [("retention/1", "1"), ("retention/2", "1"), ("retention/3", "1")]);
    }

    #[test]
    fn what_stands_or_is_not_known_is_no_success() {
        let none = Decisions::default();
        let removed = Decisions { removed: vec![SnapshotId::generate(DateTime::from_timestamp(1, 0).unwrap())], ..none.clone() };
        assert!(!none.stand() && removed.stand());
        assert!(!Decisions { taken_back: true, ..removed.clone() }.stand());
        assert!(Decisions { failed: Some("no key".into()), taken_back: true, ..removed }.stand());
    }
}

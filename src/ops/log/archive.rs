//! What archive and restore commands share: which log, and a private folder of this host for what waits between two of their runs.
//!
//! ```text
//! <work>/log/acks/<segment>    stored already by an earlier push: cluster and hash of the content
//! <work>/log/ahead/<segment>   brought already by an earlier fetch, behind a hash of it
//! ```
//!
//! Both are only short-cuts: what is old, torn or of another log is passed over and removed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::error::{Error, Kind, Result};
use crate::id::Name;
use crate::ops::resolve::{CopyPlace, RepositorySettings, Surroundings};
use crate::ops::work::{make_private, read_private, write_private};
use crate::repo::Log;
use crate::source::postgres::wal::{SegmentSize, WalName};

/// What was kept longer is not believed: the repository may be another one by then.
const KEPT: Duration = Duration::from_mins(10);
/// How many segments are looked ahead.
pub(super) const AHEAD: usize = 8;
/// Bytes of segments in memory at once, sealed ones beside them.
const MEMORY: usize = 128 << 20;

/// The log of one source, not opened yet.
pub struct Archive {
    pub plan: Name,
    pub source: Name,
    pub repository: RepositorySettings,
    /// Where log is fetched from when the repository cannot give it.
    pub copies: Vec<CopyPlace>,
    folder: PathBuf,
}

impl Archive {
    /// Of a plan's source on this host.
    #[must_use]
    pub fn new(plan: Name, source: Name, repository: RepositorySettings, surroundings: &Surroundings) -> Self {
        let folder = surroundings.state.join("work").join(plan.as_str()).join("log");
        Self { plan, source, repository, copies: Vec::new(), folder }
    }

    /// The same with places to fall back to.
    #[must_use]
    pub fn with_copies(self, copies: Vec<CopyPlace>) -> Self {
        Self { copies, ..self }
    }

    /// Which log it is, as a text for comparison.
    pub(super) fn place(&self) -> String {
        let text = format!("{}\n{}\n{}", self.repository.store.url, self.plan, self.source);
        blake3::hash(text.as_bytes()).to_hex().to_string()
    }

    /// A folder for short-cuts, made when missing.
    ///
    /// # Errors
    /// `Usage` when somebody else may write there.
    pub(super) fn folder(&self, name: &str) -> Result<Shelf> {
        make_private(&self.folder)?;
        let folder = self.folder.join(name);
        make_private(&folder)?;
        Ok(Shelf(folder))
    }
}

/// A private folder of small things by name.
pub(super) struct Shelf(PathBuf);

impl Shelf {
    /// What was put there a short while ago. It stays.
    pub(super) fn get(&self, name: &str) -> Option<Vec<u8>> {
        let path = self.0.join(name);
        is_young(&path).then(|| read_private(&path).ok()).flatten()
    }

    pub(super) fn put(&self, name: &str, bytes: &[u8]) -> Result<()> {
        write_private(&self.0.join(name), bytes)
    }

    pub(super) fn remove(&self, name: &str) {
        drop(fs::remove_file(self.0.join(name)));
    }

    /// Removes what is old, or everything.
    pub(super) fn clear(&self, everything: bool) {
        for item in fs::read_dir(&self.0).into_iter().flatten().flatten() {
            if everything || !is_young(&item.path()) {
                drop(fs::remove_file(item.path()));
            }
        }
    }
}

fn is_young(path: &Path) -> bool {
    let written = fs::symlink_metadata(path).and_then(|metadata| metadata.modified());
    // What was written in the future was written by another clock.
    written.is_ok_and(|written| SystemTime::now().duration_since(written).is_ok_and(|age| age < KEPT))
}

/// How many work at once on segments of this size.
pub(super) fn workers(jobs: usize, segment: SegmentSize) -> usize {
    let bytes = usize::try_from(segment.bytes()).unwrap_or(usize::MAX);
    jobs.clamp(1, (MEMORY / bytes).max(1))
}

/// Reads a name when the size of segments is not known: history and label files do not depend on it.
pub(super) fn parse_any(name: &str) -> Option<WalName> {
    (20..=30).find_map(|power| WalName::parse(name, SegmentSize::new(1 << power).ok()?))
}

/// The side file that a timeline's history is kept as.
pub(super) fn history_name(timeline: u32) -> Result<Name> {
    Name::new(format!("{timeline:08X}.history"))
}

/// The history of a timeline: stored, or, of one that a younger one came from, as that one's tells it. A server that looks for the newest timeline asks for one
/// after the other, and takes the first that is not there for the end.
pub(super) fn history_of(log: &Log, timeline: u32) -> Result<Option<String>> {
    if let Some(text) = stored_history(log, timeline)? {
        return Ok(Some(text));
    }
    for name in log.sides()? {
        if let Some(WalName::History { timeline: younger }) = parse_any(name.as_str())
            && younger > timeline
            && let Some(text) = stored_history(log, younger)?
            && let Some(before) = before_ancestor(&text, timeline)
        {
            return Ok(Some(before));
        }
    }
    Ok(None)
}

/// What a history says of the ancestors of one of its ancestors, which is that one's own. Pure.
fn before_ancestor(text: &str, ancestor: u32) -> Option<String> {
    let is_it = |line: &&str| line.split_whitespace().next().is_some_and(|number| number.parse() == Ok(ancestor));
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let at = lines.iter().position(is_it)?;
    Some(lines[..at].concat())
}

/// A stored history.
pub(super) fn stored_history(log: &Log, timeline: u32) -> Result<Option<String>> {
    let text = |content| {
        String::from_utf8(content)
            .map_err(|_| Error::new(Kind::Damaged, format!("the history of timeline {timeline} that is stored is no text")))
    };
    log.side(&history_name(timeline)?)?.map(text).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_tells_those_of_its_ancestors() {
        let five = "1\t0/3000108\tbefore 2026\n\n2\t0/5000000\tno recovery target specified\n4\t0/700A0B8\tno recovery target specified\n";
        let four = "1\t0/3000108\tbefore 2026\n\n2\t0/5000000\tno recovery target specified\n";
        assert_eq!(before_ancestor(five, 4).as_deref(), Some(four));
        assert_eq!(before_ancestor(five, 2).as_deref(), Some("1\t0/3000108\tbefore 2026\n\n"));
        assert_eq!(before_ancestor(five, 3), None, "it does not go through that one");
    }
}

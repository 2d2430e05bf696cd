//! Since when packs may be there that a run of a plan stored and did not commit: only for telling how much of an earlier run's work the next one
//! takes over. It decides nothing: what may be reused is decided by session, tombstones and index alone.
//!
//! A run that was killed leaves its session. One that ended in order without a commit removes it, and leaves a note in the cache folder of its machine; where
//! that is gone, or the next run is another machine's, the work is taken over all the same and not told of.

use std::path::PathBuf;

use chrono::{DateTime, Utc};

use crate::error::{Context as _, Kind, Result};
use crate::repo::{Inner, make_private_folder};

/// The note of one chain.
pub(super) struct Leftover {
    path: PathBuf,
    /// By the store's clock; `None`: nothing was left.
    since: Option<DateTime<Utc>>,
}

impl Leftover {
    /// Reads the note. `last`: the chain's last commit, which took over what was there before; `sessions`: since when runs of the chain did not
    /// end at all.
    pub(super) fn of(inner: &Inner, chain: &str, last: Option<DateTime<Utc>>, sessions: Option<DateTime<Utc>>) -> Self {
        let path = inner.cache.path.join("unfinished").join(chain);
        // What cannot be read says nothing.
        let noted = std::fs::read_to_string(&path).ok().and_then(|text| text.parse::<DateTime<Utc>>().ok());
        let noted = noted.filter(|since| last.is_none_or(|last| *since >= last));
        Self { path, since: noted.into_iter().chain(sessions).min() }
    }

    /// Since when packs may have been left.
    pub(super) fn since(&self) -> Option<DateTime<Utc>> {
        self.since
    }

    /// A run that began `began` ends without a commit.
    pub(super) fn note(&self, began: DateTime<Utc>) {
        let note = || -> Result<()> {
            if let Some(folder) = self.path.parent() {
                make_private_folder(folder)?;
            }
            let since = self.since.map_or(began, |since| since.min(began));
            std::fs::write(&self.path, since.to_rfc3339()).context(Kind::Failed, || format!("write {}", self.path.display()))
        };
        if let Err(error) = note() {
            tracing::debug!(?error, "the next backup will not tell what it takes over of this one");
        }
    }

    /// It was committed: nothing is left.
    pub(super) fn forget(&self) {
        // There is none, or it is older than this commit and says nothing any more.
        let _ = std::fs::remove_file(&self.path);
    }
}

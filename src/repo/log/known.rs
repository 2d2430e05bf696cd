//! What was read of pieces before, kept in the cache folder: a piece never changes, so its facts need not be fetched twice.
//!
//! Never a witness of existence: only pieces that a listing shows are looked up, and only what is known of an object of the same key, size
//! and time counts. What is kept was authenticated when it was read; the file is sealed like an object of this repository, so nobody without
//! its keys can put anything into it. It is safe to delete, and one that does not open counts as none. Bytes of a piece are always read
//! and checked whole.

use std::collections::HashMap;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::error::{Error, IoContext as _, Kind, Result};
use crate::repo::Inner;
use crate::repo::format::ObjectKind;
use crate::repo::log::{Listed, Said};

/// Facts that are kept of one log: some hundred bytes each.
const KEPT_MAX: usize = 200_000;
/// As sealed, far above what [`KEPT_MAX`] usual ones take.
const FILE_MAX: u64 = 128 << 20;

/// One that is kept.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::repo) struct Kept {
    stretch: (u64, u64, u64),
    size: u64,
    modified: DateTime<Utc>,
    /// The generation, or the number of a plan's own key, that its bytes are sealed to.
    sealed_to: u16,
    /// JSON: a text takes less memory than a tree.
    facts: Box<str>,
}

/// What is kept of one log.
pub struct Known {
    path: PathBuf,
    /// Part of what the file is sealed to.
    place: String,
    kept: HashMap<(u64, u64, u64), Kept>,
    added: usize,
}

impl Known {
    /// Reads what is there. Never fails: what cannot be used is fetched again.
    pub fn open(inner: &Inner, folder: &str) -> Self {
        // No key of the store: such a file in the store would open as nothing, and no object of the store opens here.
        let place = format!("local/{folder}/facts");
        let path = inner.cache.path.join(format!("{}.facts", folder.replace('/', "-")));
        let kept = read(inner, &place, &path).unwrap_or_else(|error| {
            tracing::debug!(path = %path.display(), ?error, "kept facts of a log are not used");
            Vec::new()
        });
        Self { path, place, kept: kept.into_iter().map(|kept| (kept.stretch, kept)).collect(), added: 0 }
    }

    pub fn get(&self, listed: &Listed) -> Option<Said> {
        let kept = self.kept.get(&stretch(listed))?;
        let is_same = kept.size == listed.piece.size && kept.modified == listed.modified;
        let facts = is_same.then(|| serde_json::from_str(&kept.facts).ok()).flatten()?;
        Some(Said { facts, sealed_to: kept.sealed_to })
    }

    pub fn put(&mut self, listed: &Listed, said: &Said) {
        if self.kept.len() < KEPT_MAX {
            let (facts, sealed_to) = (said.facts.to_string().into_boxed_str(), said.sealed_to);
            let kept = Kept { stretch: stretch(listed), size: listed.piece.size, modified: listed.modified, sealed_to, facts };
            self.kept.insert(kept.stretch, kept);
            self.added += 1;
        }
    }

    /// Writes it when enough is new to be worth it, without what is not listed any more. Best effort.
    pub fn save(mut self, inner: &Inner, listed: &[Listed]) {
        if self.added == 0 || self.added < listed.len() / 100 {
            return;
        }
        let there: std::collections::HashSet<(u64, u64, u64)> = listed.iter().map(stretch).collect();
        self.kept.retain(|stretch, _| there.contains(stretch));
        if let Err(error) = self.write(inner) {
            tracing::debug!(path = %self.path.display(), ?error, "facts of a log could not be kept");
        }
    }

    fn write(&self, inner: &Inner) -> Result<()> {
        let kept: Vec<&Kept> = self.kept.values().collect();
        let content = serde_json::to_vec(&kept).map_err(|e| Error::new(Kind::Bug, "encode facts of a log").because(e))?;
        let sealed = inner.seal_object(ObjectKind::LogSide, &self.place, &content)?;
        let io = || format!("write {}", self.path.display());
        // Private from its first moment, whole or not there. Two at once write two files: one of them stays.
        let beside = self.path.with_extension(format!("{}.new", ulid::Ulid::generate()));
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside).io_context(io)?;
        let written = file.write_all(&sealed).and_then(|()| std::fs::rename(&beside, &self.path));
        if written.is_err() {
            // Only what would be written again anyway.
            let _ = std::fs::remove_file(&beside);
        }
        written.io_context(io)
    }
}

fn stretch(listed: &Listed) -> (u64, u64, u64) {
    (listed.piece.stream, listed.piece.start, listed.piece.end)
}

fn read(inner: &Inner, place: &str, path: &Path) -> Result<Vec<Kept>> {
    let io = || format!("read {}", path.display());
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.len() > FILE_MAX => return Err(Error::new(Kind::Damaged, "it is too large")),
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).io_context(io),
    }
    let bytes = std::fs::read(path).io_context(io)?;
    let content = crate::repo::seal::open(&inner.keys, inner.id, ObjectKind::LogSide, place, &bytes)?;
    decode(&content).map_err(|e| Error::new(Kind::Damaged, "it cannot be decoded").because(e))
}

/// What is kept, as it stands below the file's seal.
pub(in crate::repo) fn decode(content: &[u8]) -> serde_json::Result<Vec<Kept>> {
    serde_json::from_slice(content)
}

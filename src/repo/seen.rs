//! What this machine has seen of a repository, in its cache folder: a store (or whoever holds its credentials) that serves an older state is
//! found out by it. Whoever deletes it, or has no cache folder, believes the first answer again.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use chrono::Utc;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Context as _, Error, IoContext as _, Kind, Result};
use crate::id::SessionId;
use crate::repo::Repository;
use crate::repo::ledger::{Ledger, key_of};

/// The file of the newest key generation.
pub const GENERATION: &str = "generation.json";
/// The file of the newest entry of the retention ledger.
const LEDGER: &str = "ledger.json";

/// What a file says; nothing where it is not there or says nothing.
pub fn read<T: DeserializeOwned>(cache: &Path, file: &str) -> Option<T> {
    fs::read(cache.join(file)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok())
}

/// Whole or not at all: two processes may do this at once. `what` is remembered, for the log, where it cannot be.
pub fn write<T: Serialize>(cache: &Path, file: &str, value: &T, what: &str) -> Result<()> {
    let json = serde_json::to_vec(value).context(Kind::Bug, || format!("encode {what}"))?;
    let new = cache.join(format!("{file}.{}", SessionId::generate(Utc::now())));
    if let Err(error) = fs::write(&new, json).and_then(|()| fs::rename(&new, cache.join(file))) {
        tracing::warn!(%error, "{what} was not remembered on this machine");
    }
    Ok(())
}

/// # Errors
/// When the file cannot be removed.
pub fn forget(cache: &Path, file: &str) -> Result<()> {
    let file: PathBuf = cache.join(file);
    match fs::remove_file(&file) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).io_context(|| format!("remove {}", file.display())),
        _ => Ok(()),
    }
}

/// The newest entry of the retention ledger that was seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenLedger {
    pub number: u64,
    /// Hex BLAKE3 of the stored entry.
    pub hash: String,
}

impl SeenLedger {
    pub fn read(cache: &Path) -> Option<Self> {
        read(cache, LEDGER)
    }

    /// # Errors
    /// `Damaged` when the ledger, which was listed after this was read, does not go on from it.
    pub fn check(&self, ledger: &Ledger, cache: &Path) -> Result<()> {
        let key = key_of(self.number);
        let what = match ledger.newest() {
            None => "there is none".to_owned(),
            Some((newest, _)) if newest < self.number => format!("it ends with {}", key_of(newest)),
            Some(_) if ledger.contradicts(self) => "another one is in its place".to_owned(),
            Some(_) => return Ok(()),
        };
        Err(Error::new(Kind::Damaged, format!("the retention ledger: this machine has seen its entry {key}, and {what} now")).hint(format!(
            "somebody deleted or replaced what was decided, or the store was put back to an older state: find out first, and bring it back \
             (the store's versions, `lifeboat repo undelete`, a copy of the bucket). Nothing is removed until then. If it was put back on purpose, \
             `lifeboat repo accept` says so on each machine ({})",
            cache.join(LEDGER).display()
        )))
    }

    /// Takes notice of what is newer.
    pub fn note(cache: &Path, ledger: &Ledger) -> Result<()> {
        let Some((number, hash)) = ledger.newest() else { return Ok(()) };
        Self { number, hash: hash.to_owned() }.write(cache)
    }

    /// Remembers it, if it is newer than what is remembered.
    pub fn write(&self, cache: &Path) -> Result<()> {
        // Read again: another process may have seen more meanwhile.
        if Self::read(cache).is_some_and(|seen| seen.number >= self.number) {
            return Ok(());
        }
        write(cache, LEDGER, self, "the newest entry of the retention ledger")
    }
}

impl Repository {
    /// Forgets which entry of the retention ledger this machine has seen last, so that a ledger which was put back to an older state is believed:
    /// its number, if one was remembered.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn forget_ledger(&self) -> Result<Option<u64>> {
        let cache = &self.inner.cache.path;
        let seen = SeenLedger::read(cache);
        forget(cache, LEDGER)?;
        Ok(seen.map(|seen| seen.number))
    }
}

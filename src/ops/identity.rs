//! Which repository is at a place: the first one that this state folder saw there, until somebody says that another one is meant.
//!
//! A repository that was deleted and made anew, or a bucket that was exchanged, opens with the same passphrase and takes the next backup: everything looks
//! well, and what was backed up before is not there. So each place has a small file below `repositories/` in the state folder with the id that
//! belongs there. A state folder that cannot be written keeps nothing from working: then nothing is known.

use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::ops::select::moment;
use crate::ops::work::{make_private, read_private, write_private};
use crate::repo::RepositoryId;

/// What is known of a place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    /// For whoever reads the file: without credentials.
    url: String,
    /// The repository that belongs there.
    repository: RepositoryId,
    since: DateTime<Utc>,
    /// Another one that was found there at the last look.
    other: Option<Other>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Other {
    repository: RepositoryId,
    since: DateTime<Utc>,
}

/// `lifeboat.repo-accept/1`: what belongs at a place from now on, and what did before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceptReport {
    pub schema: String,
    pub url: String,
    pub repository: RepositoryId,
    /// The one that belonged there before; `None`: this one, or none was known.
    pub before: Option<RepositoryId>,
    pub time: DateTime<Utc>,
}

/// Takes notice of the repository that was opened at `url`. That it is another one than before is told by [`changed`], and in the log.
pub(crate) fn note(state: &Path, url: &str, id: RepositoryId, now: DateTime<Utc>) {
    let known = match read(state, url) {
        Ok(known) => known,
        Err(error) => return tracing::debug!(%error, "which repository belongs at {url} cannot be read"),
    };
    let next = match known {
        None => Known { url: url.to_owned(), repository: id, since: now, other: None },
        Some(known) if known.repository == id => Known { other: None, ..known },
        Some(known) if known.other.as_ref().is_some_and(|other| other.repository == id) => known,
        Some(known) => {
            let next = Known { other: Some(Other { repository: id, since: now }), ..known };
            tracing::error!("{}", sentence(&next).unwrap_or_default());
            next
        }
    };
    if let Err(error) = write_if_new(state, url, &next) {
        tracing::debug!(error = ?error, "which repository belongs at {url} cannot be kept");
    }
}

/// That another repository is at `url` than belongs there, in a sentence that says what to do.
#[must_use]
pub fn changed(state: &Path, url: &str) -> Option<String> {
    read(state, url).ok().flatten().as_ref().and_then(sentence)
}

/// From now on this repository belongs there.
///
/// # Errors
/// When the state folder cannot be written.
pub fn accept(state: &Path, url: &str, id: RepositoryId, now: DateTime<Utc>) -> Result<AcceptReport> {
    // What cannot be read is replaced.
    let known = read(state, url).ok().flatten();
    let before = known.as_ref().map(|known| known.repository).filter(|before| *before != id);
    let since = known.filter(|_| before.is_none()).map_or(now, |known| known.since);
    write_if_new(state, url, &Known { url: url.to_owned(), repository: id, since, other: None })?;
    Ok(AcceptReport { schema: "lifeboat.repo-accept/1".to_owned(), url: url.to_owned(), repository: id, before, time: now })
}

fn sentence(known: &Known) -> Option<String> {
    let other = known.other.as_ref()?;
    Some(format!(
        "another repository is at {} since {} ({}) than the one that belongs there ({}, known since {}): what was backed up to that one is not here. Find out \
         who exchanged it and bring it back; if it is meant, `lifeboat repo accept` says so",
        known.url,
        moment(other.since),
        other.repository,
        known.repository,
        moment(known.since)
    ))
}

fn file(state: &Path, url: &str) -> PathBuf {
    state.join("repositories").join(&blake3::hash(url.as_bytes()).to_hex()[..16]).with_extension("json")
}

fn read(state: &Path, url: &str) -> std::io::Result<Option<Known>> {
    match read_private(&file(state, url)) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn write_if_new(state: &Path, url: &str, known: &Known) -> Result<()> {
    if read(state, url).is_ok_and(|stands| stands.as_ref() == Some(known)) {
        return Ok(());
    }
    let path = file(state, url);
    make_private(&state.join("repositories"))?;
    let text =
        serde_json::to_vec_pretty(known).map_err(|error| crate::error::Error::new(crate::error::Kind::Bug, "write JSON").because(error))?;
    write_private(&path, &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_repository_at_a_place_is_told_until_it_is_accepted_or_the_old_one_is_back() {
        let folder = tempfile::tempdir().unwrap();
        let (state, url, other_url) = (folder.path(), "s3://crm-dr/main", "s3://crm-dr/second");
        let now = "2026-11-20T03:00:00Z".parse().unwrap();
        let (old, new) = (RepositoryId([1; 16]), RepositoryId([2; 16]));
        assert_eq!(changed(state, url), None);
        note(state, url, old, now);
        note(state, other_url, new, now);
        assert_eq!((changed(state, url), changed(state, other_url)), (None, None));
        note(state, url, new, now);
        note(state, url, new, now + chrono::TimeDelta::hours(1));
        let told = changed(state, url).unwrap();
        assert!(told.contains("s3://crm-dr/main since 2026-11-20T03:00") && told.contains("repo accept"), "{told}");
        assert_eq!(changed(state, other_url), None);
        note(state, url, old, now);
        assert_eq!(changed(state, url), None, "the old one is back");
        note(state, url, new, now);
        let accepted = accept(state, url, new, now).unwrap();
        assert_eq!((accepted.before, accepted.repository), (Some(old), new));
        assert_eq!(changed(state, url), None);
        note(state, url, new, now);
        assert_eq!(changed(state, url), None);
        note(state, url, old, now);
        assert!(changed(state, url).is_some(), "now that one is the other");
    }

    #[test]
    fn a_state_folder_that_cannot_be_used_stops_nothing() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("repositories"), "").unwrap();
        let now = "2026-11-20T03:00:00Z".parse().unwrap();
        note(folder.path(), "file:///r", RepositoryId([1; 16]), now);
        assert_eq!(changed(folder.path(), "file:///r"), None);
        assert!(accept(folder.path(), "file:///r", RepositoryId([1; 16]), now).is_err());
    }
}

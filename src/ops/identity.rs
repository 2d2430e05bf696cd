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
    /// The newest entry of its retention ledger that this machine had seen, which is forgotten: the ledger is believed as it is now. `None`: none was.
    pub ledger_forgotten: Option<u64>,
    pub time: DateTime<Utc>,
}

/// How a place is known: the address without what only its spelling makes different, and the server that it is on. Two servers may both have a bucket of one name.
#[must_use]
pub fn place(url: &str, endpoint: Option<&str>) -> String {
    let (scheme, path) = url.split_once("://").unwrap_or(("", url));
    let absolute = if path.starts_with('/') { "/" } else { "" };
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    let server = endpoint.map_or_else(String::new, |endpoint| format!(" at {}", endpoint.trim_end_matches('/')));
    format!("{scheme}://{absolute}{}{server}", parts.join("/"))
}

/// Takes notice of the repository that was opened at a place. That it is another one than before is in the log, and told by [`changed`].
pub(crate) fn note(state: &Path, place: &str, id: RepositoryId, now: DateTime<Utc>) {
    // What cannot be read is told by `changed`; only `accept` writes it anew.
    let Ok(known) = read(state, place) else { return };
    let next = match &known {
        None => Known { url: place.to_owned(), repository: id, since: now, other: None },
        Some(known) if known.repository == id => Known { other: None, ..known.clone() },
        Some(known) if known.other.as_ref().is_some_and(|other| other.repository == id) => return,
        Some(known) => Known { other: Some(Other { repository: id, since: now }), ..known.clone() },
    };
    if known.as_ref() == Some(&next) {
        return;
    }
    if next.other.is_some() {
        tracing::error!("{}", sentence(&next, id).unwrap_or_default());
    }
    if let Err(error) = write(state, place, &next) {
        tracing::warn!(error = ?error, "which repository belongs at {place} cannot be kept");
    }
}

/// That another repository (`id`) is at a place than belongs there, or that nobody can say which does; a sentence that says what to do.
#[must_use]
pub fn changed(state: &Path, place: &str, id: RepositoryId) -> Option<String> {
    match read(state, place) {
        Ok(known) => known.and_then(|known| sentence(&known, id)),
        Err(error) => Some(format!(
            "which repository belongs at {place} is not known any more ({}: {error}); if {id} is the right one, `lifeboat repo accept` says so",
            file(state, place).display()
        )),
    }
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
    write(state, url, &Known { url: url.to_owned(), repository: id, since, other: None })?;
    Ok(AcceptReport {
        schema: "lifeboat.repo-accept/1".to_owned(),
        url: url.to_owned(),
        repository: id,
        before,
        ledger_forgotten: None,
        time: now,
    })
}

fn sentence(known: &Known, id: RepositoryId) -> Option<String> {
    if known.repository == id {
        return None;
    }
    let since = known
        .other
        .as_ref()
        .filter(|other| other.repository == id)
        .map_or_else(String::new, |other| format!(" since {}", moment(other.since)));
    Some(format!(
        "another repository is at {}{since} ({id}) than the one that belongs there ({}, known since {}): what was backed up to that one is not here. Find out \
         who exchanged it and bring it back; if it is meant, `lifeboat repo accept` says so",
        known.url,
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

fn write(state: &Path, url: &str, known: &Known) -> Result<()> {
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
        let (state, here, there) = (folder.path(), place("s3://crm-dr/main", None), place("s3://crm-dr/main", Some("https://s3.example")));
        let now = "2026-11-20T03:00:00Z".parse().unwrap();
        let (old, new) = (RepositoryId([1; 16]), RepositoryId([2; 16]));
        assert_eq!(changed(state, &here, old), None);
        note(state, &here, old, now);
        note(state, &there, new, now);
        assert_eq!((changed(state, &here, old), changed(state, &there, new)), (None, None), "a bucket of the same name elsewhere");
        // Known whether or not it could be kept.
        assert!(changed(state, &here, new).unwrap().contains("another repository is at s3://crm-dr/main (0202"));
        note(state, &here, new, now);
        note(state, &here, new, now + chrono::TimeDelta::hours(1));
        let told = changed(state, &here, new).unwrap();
        assert!(told.contains("s3://crm-dr/main since 2026-11-20T03:00") && told.contains("repo accept"), "{told}");
        note(state, &here, old, now);
        assert_eq!(changed(state, &here, old), None, "the old one is back");
        note(state, &here, new, now);
        let accepted = accept(state, &here, new, now).unwrap();
        assert_eq!((accepted.before, accepted.repository), (Some(old), new));
        assert_eq!(changed(state, &here, new), None);
        note(state, &here, old, now);
        assert!(changed(state, &here, old).is_some(), "now that one is the other");
        // A file that says nothing is no all-clear.
        std::fs::write(file(state, &here), "").unwrap();
        note(state, &here, old, now);
        assert!(changed(state, &here, old).unwrap().contains("is not known any more"));
        accept(state, &here, old, now).unwrap();
        assert_eq!(changed(state, &here, old), None);
    }

    #[test]
    fn one_place_is_one_however_it_is_written() {
        for same in ["file:///srv/main", "file:///srv/main/", "file:///srv//main", "file:///srv/./main"] {
            assert_eq!(place(same, None), "file:///srv/main");
        }
        assert_eq!(place("s3://bucket/a/", Some("http://x:9000/")), "s3://bucket/a at http://x:9000");
        assert_ne!(place("s3://bucket/a", Some("http://x")), place("s3://bucket/a", Some("http://y")));
    }

    #[test]
    fn a_state_folder_that_cannot_be_used_stops_nothing_and_is_no_all_clear() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("repositories"), "").unwrap();
        let now = "2026-11-20T03:00:00Z".parse().unwrap();
        let here = place("file:///r", None);
        note(folder.path(), &here, RepositoryId([1; 16]), now);
        assert!(changed(folder.path(), &here, RepositoryId([1; 16])).is_some());
        assert!(accept(folder.path(), &here, RepositoryId([1; 16]), now).is_err());
    }
}

//! Which repository is at a place: the first one that this state folder saw there, until somebody says that another one is meant.
//!
//! A repository that was deleted and made anew, or a bucket that was exchanged, opens with the same passphrase and takes the next backup: everything looks
//! well, and what was backed up before is not there. So each place has a small file below `repositories/` in the state folder with the id that
//! belongs there. A state folder that cannot be written keeps nothing from working: then nothing is known. One that cannot be read is no all-clear, and
//! no exchanged repository either: it is told as what it is.

use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::error::{Context as _, Error, Kind, Result};
use crate::ops::select::moment;
use crate::ops::work::{FileLock, make_private, read_private, write_private};
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
    /// The key generation that this machine had seen, where the repository has none as new or another one of that number: it is forgotten, and the keys are
    /// believed as they are now. `None`: what was seen is there.
    #[serde(default)]
    pub generation_forgotten: Option<u16>,
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

/// Takes notice of the repository that was opened at a place. That it is another one than before is in the log, and told by [`check`].
pub(crate) fn note(state: &Path, place: &str, id: RepositoryId, now: DateTime<Utc>) {
    let next = |known: Option<&Known>| match known {
        None => Some(Known { url: place.to_owned(), repository: id, since: now, other: None }),
        Some(known) if known.repository == id => known.other.as_ref().map(|_| Known { other: None, ..known.clone() }),
        Some(known) if known.other.as_ref().is_some_and(|other| other.repository == id) => None,
        Some(known) => Some(Known { other: Some(Other { repository: id, since: now }), ..known.clone() }),
    };
    // What cannot be read is told by `check`; only `accept` writes it anew.
    let Ok(known) = read(state, place) else { return };
    if next(known.as_ref()).is_none() {
        return;
    }
    let noted = lock(state).and_then(|_lock| {
        // Somebody may have been quicker.
        let Some(next) = read(state, place).ok().and_then(|known| next(known.as_ref())) else { return Ok(()) };
        if next.other.is_some() {
            tracing::error!("{}", sentence(&next, id).unwrap_or_default());
        }
        write(state, place, &next)
    });
    if let Err(error) = noted {
        tracing::warn!(error = ?error, "which repository belongs at {place} cannot be kept");
    }
}

/// That the repository `id` belongs at a place, as far as is known.
///
/// # Errors
/// `Damaged` when another one belongs there; `Failed` when nobody can say which does. Both say what to do.
pub fn check(state: &Path, place: &str, id: RepositoryId) -> Result<()> {
    let file = file(state, place);
    let known = read(state, place).context(Kind::Failed, || format!("look which repository belongs at {place}: read {}", file.display()));
    let known = known.map_err(|error| {
        error.hint(format!(
            "whether {id}, which is there now, is the right one is not known; have {} readable for the user that runs lifeboat, or put it back; if that one \
             is the right one, `lifeboat repo accept` says so",
            file.display()
        ))
    })?;
    known.and_then(|known| sentence(&known, id)).map_or(Ok(()), |sentence| Err(Error::new(Kind::Damaged, sentence)))
}

/// From now on this repository belongs there.
///
/// # Errors
/// When the state folder cannot be written.
pub fn accept(state: &Path, url: &str, id: RepositoryId, now: DateTime<Utc>) -> Result<AcceptReport> {
    let _lock = lock(state)?;
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
        generation_forgotten: None,
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

/// One writes at a time: what was read is what is written anew.
fn lock(state: &Path) -> Result<FileLock> {
    let folder = state.join("repositories");
    make_private(&folder)?;
    FileLock::wait(&folder.join("lock"))
}

fn write(state: &Path, url: &str, known: &Known) -> Result<()> {
    let text = serde_json::to_vec_pretty(known).context(Kind::Bug, || "write JSON".to_owned())?;
    write_private(&file(state, url), &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is told.
    fn changed(state: &Path, place: &str, id: RepositoryId) -> Option<String> {
        check(state, place, id).err().map(|error| {
            assert_eq!(error.kind(), Kind::Damaged, "{error:?}");
            error.to_string()
        })
    }

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
        // A file that says nothing is no all-clear, and no other repository.
        std::fs::write(file(state, &here), "").unwrap();
        note(state, &here, old, now);
        for id in [old, new] {
            let told = check(state, &here, id).unwrap_err();
            assert!(told.kind() == Kind::Failed && told.hint_text().unwrap().contains("repo accept"), "{told:?}");
        }
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
        assert_eq!(check(folder.path(), &here, RepositoryId([1; 16])).unwrap_err().kind(), Kind::Failed);
        assert!(accept(folder.path(), &here, RepositoryId([1; 16]), now).is_err());
    }
    #[test]
    fn of_many_that_see_a_place_first_each_finds_it_whole() {
        let folder = tempfile::tempdir().unwrap();
        let (state, now) = (folder.path(), "2026-11-20T03:00:00Z".parse().unwrap());
        let id = RepositoryId([1; 16]);
        for round in 0..20 {
            let here = place(&format!("file:///r{round}"), None);
            std::thread::scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|| {
                        note(state, &here, id, now);
                        check(state, &here, id).unwrap();
                        assert!(changed(state, &here, RepositoryId([2; 16])).is_some());
                    });
                }
            });
        }
        let left = std::fs::read_dir(state.join("repositories")).unwrap().count();
        assert_eq!(left, 21, "one of each, and the lock");
    }

    #[test]
    fn root_reads_what_a_services_user_keeps() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let (state, now) = (folder.path(), "2026-11-20T03:00:00Z".parse().unwrap());
        let (here, id) = (place("file:///r", None), RepositoryId([1; 16]));
        note(state, &here, id, now);
        for path in [state.to_owned(), state.join("repositories"), file(state, &here)] {
            std::os::unix::fs::chown(path, Some(65534), None).unwrap();
        }
        check(state, &here, id).unwrap();
        assert!(changed(state, &here, RepositoryId([2; 16])).unwrap().contains("another repository"));
        // Somebody else's is nobody's word.
        std::os::unix::fs::chown(file(state, &here), Some(65533), None).unwrap();
        assert_eq!(check(state, &here, id).unwrap_err().kind(), Kind::Failed);
    }
}

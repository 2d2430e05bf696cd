//! Alarms that stand: what is wrong and is in no journal row and no repository. A plan file that is broken, a notifier that reaches nobody,
//! retention that is blocked, a certificate that is about to expire.
//!
//! Each is one small file below `alarms/` in the state folder, named by its key, so that every process on it (the daemon, `status`, a
//! command by hand) raises, clears and sees the same. Raising what stands keeps the moment since when.

use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::daemon::status::ProblemKind;
use crate::error::{Context, Error, IoContext, Kind, Result};

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alarm {
    /// The kind of problem that it is in `lifeboat.status/1`.
    pub kind: String,
    /// `None`: of no plan alone.
    pub plan: Option<String>,
    /// A sentence; nothing secret.
    pub message: String,
    pub since: DateTime<Utc>,
}

/// Raises an alarm, or changes what one that stands says; nothing is written when it says that already. `key`: lower-case letters, digits, `-`, `_` and `.`, at most 200.
///
/// # Errors
/// When the state folder cannot be written.
pub fn raise(state: &Path, key: &str, alarm: &Alarm) -> Result<()> {
    let path = path(state, key)?;
    // One that stands and cannot be read must not keep others from being told.
    let stands = read(&path).unwrap_or_else(|error| {
        tracing::warn!(key, error = ?error, "an alarm that stands cannot be read and is written anew: since when it stands is lost");
        None
    });
    let since = match &stands {
        Some(stands) if stands.kind == alarm.kind => stands.since.min(alarm.since),
        _ => alarm.since,
    };
    let alarm = Alarm { since, ..alarm.clone() };
    if stands.as_ref() == Some(&alarm) {
        return Ok(());
    }
    crate::daemon::private_folder(&folder(state))?;
    let text = serde_json::to_vec_pretty(&alarm).context(Kind::Bug, || "write an alarm as JSON".to_owned())?;
    crate::daemon::write_private(&path, &text)
}

/// Ends an alarm; whether one stood.
///
/// # Errors
/// When the state folder cannot be written.
pub fn clear(state: &Path, key: &str) -> Result<bool> {
    let path = path(state, key)?;
    match std::fs::remove_file(&path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io(format!("remove {}", path.display()), error)),
    }
}

/// The keys of all that stand, sorted.
///
/// # Errors
/// When the folder cannot be read.
pub fn keys(state: &Path) -> Result<Vec<String>> {
    let folder = folder(state);
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io(format!("read folder {}", folder.display()), error)),
    };
    let mut keys = Vec::new();
    for entry in entries {
        let name = entry.io_context(|| format!("read folder {}", folder.display()))?.file_name();
        keys.extend(name.to_str().and_then(|name| name.strip_suffix(".json")).map(str::to_owned));
    }
    keys.sort();
    Ok(keys)
}

/// A name as a part of a key, each its own; at most 64 long.
#[must_use]
pub fn key_of(name: &str) -> String {
    let key = name.bytes().fold(String::new(), |out, b| {
        if b.is_ascii_lowercase() || b.is_ascii_digit() { format!("{out}{}", char::from(b)) } else { format!("{out}.{b:02x}") }
    });
    if key.len() > 64 { format!("h.{}", &blake3::hash(name.as_bytes()).to_hex()[..32]) } else { key }
}

/// All that stand, in the order of their keys. One that cannot be read is an alarm itself.
///
/// # Errors
/// When the folder cannot be read.
pub fn standing(state: &Path) -> Result<Vec<Alarm>> {
    Ok(standing_by_key(state)?.into_iter().map(|(_, alarm)| alarm).collect())
}

/// The same, each with its key.
///
/// # Errors
/// When the folder cannot be read.
pub fn standing_by_key(state: &Path) -> Result<Vec<(String, Alarm)>> {
    let mut alarms = Vec::new();
    for key in keys(state)? {
        let alarm = read(&folder(state).join(format!("{key}.json"))).unwrap_or_else(|error| {
            Some(Alarm {
                kind: ProblemKind::Failed.word().to_owned(),
                plan: None,
                message: format!("an alarm stands and cannot be read: {error:?}"),
                since: DateTime::UNIX_EPOCH,
            })
        });
        alarms.extend(alarm.map(|alarm| (key, alarm)));
    }
    Ok(alarms)
}

fn folder(state: &Path) -> PathBuf {
    state.join("alarms")
}

fn path(state: &Path, key: &str) -> Result<PathBuf> {
    let valid = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"-_.".contains(&c);
    if key.is_empty() || key.len() > 200 || key.starts_with('.') || !key.bytes().all(valid) {
        return Err(Error::new(Kind::Bug, format!("not a key of an alarm: {key:?}")));
    }
    Ok(folder(state).join(format!("{key}.json")))
}

/// `None`: it has gone.
fn read(path: &Path) -> Result<Option<Alarm>> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).context(Kind::Failed, || format!("read the alarm {}", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(format!("read {}", path.display()), error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(hour: u32) -> DateTime<Utc> {
        format!("2026-11-20T{hour:02}:00:00Z").parse().unwrap()
    }

    fn alarm(message: &str, hour: u32) -> Alarm {
        Alarm { kind: "plans-broken".into(), plan: None, message: message.into(), since: at(hour) }
    }

    #[test]
    fn an_alarm_stands_until_it_is_cleared_and_keeps_its_beginning() {
        let state = tempfile::tempdir().unwrap();
        assert_eq!(standing(state.path()).unwrap(), []);
        raise(state.path(), "plan-files", &alarm("first", 1)).unwrap();
        raise(state.path(), "plan-files", &alarm("second", 2)).unwrap();
        raise(state.path(), "expiring-a.b", &alarm("other", 3)).unwrap();
        let found = standing(state.path()).unwrap();
        assert_eq!(found.iter().map(|a| (a.message.as_str(), a.since)).collect::<Vec<_>>(), [("other", at(3)), ("second", at(1))]);
        assert!(clear(state.path(), "plan-files").unwrap() && !clear(state.path(), "plan-files").unwrap());
        assert_eq!(standing(state.path()).unwrap().len(), 1);
    }

    #[test]
    fn every_name_has_a_key_of_its_own() {
        let state = tempfile::tempdir().unwrap();
        let long = ["A".repeat(64), format!("{}B", "A".repeat(63)), "a.b-c_D".to_owned()];
        for name in &long {
            raise(state.path(), &format!("expiring-tls-server-{}-{}", key_of(name), key_of(name)), &alarm(name, 1)).unwrap();
        }
        assert_eq!(standing(state.path()).unwrap().len(), long.len());
        assert_eq!((key_of("crm1").as_str(), key_of("a-b").as_str()), ("crm1", "a.2db"));
    }

    #[test]
    fn an_alarm_that_cannot_be_read_is_not_silence() {
        let state = tempfile::tempdir().unwrap();
        raise(state.path(), "a", &alarm("x", 1)).unwrap();
        std::fs::write(state.path().join("alarms/a.json"), "{").unwrap();
        let found = standing(state.path()).unwrap();
        assert!(found.len() == 1 && found[0].message.contains("cannot be read"), "{found:?}");
        raise(state.path(), "a", &alarm("y", 2)).unwrap();
        assert_eq!(standing(state.path()).unwrap(), [alarm("y", 2)], "whoever raises it writes it anew");
    }

    #[test]
    fn an_alarm_that_says_nothing_new_is_not_written() {
        use std::os::unix::fs::MetadataExt as _;
        let state = tempfile::tempdir().unwrap();
        let inode = || std::fs::metadata(state.path().join("alarms/a.json")).unwrap().ino();
        raise(state.path(), "a", &alarm("x", 1)).unwrap();
        // Kept open, so that its number is not given to another file.
        let _first = std::fs::File::open(state.path().join("alarms/a.json")).unwrap();
        let first = inode();
        raise(state.path(), "a", &alarm("x", 2)).unwrap();
        assert_eq!(inode(), first);
        raise(state.path(), "a", &alarm("y", 2)).unwrap();
        assert_ne!(inode(), first);
    }

    #[test]
    fn a_key_is_no_path() {
        let state = tempfile::tempdir().unwrap();
        for key in ["", "../x", "a/b", ".x", "A"] {
            assert!(raise(state.path(), key, &alarm("x", 1)).is_err(), "{key}");
        }
    }
}

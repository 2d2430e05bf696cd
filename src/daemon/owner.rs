//! Who holds a run, and whether they still live.
//!
//! The proof of life is an advisory lock (flock(2)) on a small file that the owning process keeps open: the kernel releases it
//! when the process ends, however it ends, and it means the same in every PID namespace. Host, process id, boot id and start time
//! are kept beside it for the story that a broken run is closed with, and decide nothing.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{Error, IoContext, Kind, Result};
use crate::id::RunId;

/// What identifies a process for a person who reads the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    pub host: String,
    pub pid: u32,
    /// Changes with every boot of the machine; empty where the system does not say (proc(5), `/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
    /// Start of the process in clock ticks since boot (proc(5), field 22 of `/proc/self/stat`); 0 where the system does not say.
    pub start_ticks: u64,
}

impl Process {
    /// This process.
    #[must_use]
    pub fn this() -> Self {
        Self { host: host(), pid: std::process::id(), boot_id: boot_id(), start_ticks: start_ticks("self").unwrap_or(0) }
    }

    /// Whether the process with this id on this host is still this one, and no later one that got its number. Where the system does not say: no.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.host == host() && self.boot_id == boot_id() && start_ticks(&self.pid.to_string()) == Some(self.start_ticks)
    }
}

/// Start of a process in clock ticks since boot; `None`: there is none.
fn start_ticks(process: &str) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The second field is the program's name in parentheses and may hold anything, so count from the last one.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// Changes with every boot; empty where the system does not say (proc(5)).
fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// Since the boot, whatever anybody does to the clock; `None` where the system does not say (proc(5)).
fn uptime() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/uptime").ok()?;
    Duration::try_from_secs_f64(text.split_whitespace().next()?.parse().ok()?).ok()
}

/// The machine's name as the kernel has it.
#[must_use]
pub fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// A held lock file of this process. Dropping it lets go.
#[derive(Debug)]
pub struct Owner {
    id: String,
    path: PathBuf,
    _lock: File,
}

impl Owner {
    /// Takes a fresh lock file `owners/<id>` below the state folder.
    ///
    /// # Errors
    /// When the file cannot be made or locked.
    pub fn claim(state: &Path, id: String) -> Result<Self> {
        let folder = state.join("owners");
        crate::daemon::private_folder(&folder)?;
        let path = folder.join(&id);
        let mut lock = open(&path, true)?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => Error::new(Kind::Bug, format!("lock {}: already locked", path.display())),
            TryLockError::Error(error) => Error::io(format!("lock {}", path.display()), error),
        })?;
        // For a person who looks into the folder; a failure to write it changes nothing.
        let _ = writeln!(lock, "{}", std::process::id());
        Ok(Self { id, path, _lock: lock })
    }

    /// The name under which runs refer to this owner.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Whether the owner with this id still lives. A missing file means it is gone; the empty id is nobody's.
///
/// # Errors
/// When the lock cannot be asked for; then nothing may be concluded.
pub fn is_alive(state: &Path, id: &str) -> Result<bool> {
    if id.is_empty() {
        return Ok(false);
    }
    let path = state.join("owners").join(id);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(Error::io(format!("open {}", path.display()), error)),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(Error::io(format!("lock {}", path.display()), error)),
    }
}

/// The lock file of an owner that still lives, if there is one.
///
/// # Errors
/// When the folder or a lock cannot be asked.
pub fn any_alive(state: &Path) -> Result<Option<PathBuf>> {
    let folder = state.join("owners");
    let items = match std::fs::read_dir(&folder) {
        Ok(items) => items,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(format!("read {}", folder.display()), error)),
    };
    for item in items {
        let item = item.io_context(|| format!("read {}", folder.display()))?;
        if is_alive(state, &item.file_name().to_string_lossy())? {
            return Ok(Some(item.path()));
        }
    }
    Ok(None)
}

/// Removes the lock file of an owner that is gone.
pub fn forget(state: &Path, id: &str) {
    if id.is_empty() {
        return;
    }
    let _ = std::fs::remove_file(state.join("owners").join(id));
}

/// The random name of a state folder, made when it has none: on a journal that machines share, it tells whose owners this one can ask for.
///
/// # Errors
/// When it cannot be written.
pub fn place(state: &Path, now: chrono::DateTime<chrono::Utc>) -> Result<String> {
    if let Some(place) = known_place(state) {
        return Ok(place);
    }
    let path = state.join("place");
    let fresh = state.join(format!("place.{}", std::process::id()));
    let name = RunId::generate(now).to_string();
    let mut file = open(&fresh, true)?;
    file.write_all(name.as_bytes()).and_then(|()| file.sync_all()).io_context(|| format!("write {}", fresh.display()))?;
    // Of two processes that make it at once, the first one's stays.
    let linked = std::fs::hard_link(&fresh, &path);
    let _ = std::fs::remove_file(&fresh);
    match linked {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(Error::io(format!("make {}", path.display()), error)),
        _ => known_place(state).ok_or_else(|| {
            Error::new(Kind::Failed, format!("{} holds no name", path.display())).hint("remove it; the next start makes a new one")
        }),
    }
}

/// The name of a state folder, if it has one.
#[must_use]
pub fn known_place(state: &Path) -> Option<String> {
    let text = std::fs::read_to_string(state.join("place")).ok()?;
    text.trim().parse::<RunId>().ok().map(|id| id.to_string())
}

/// For so long a daemon tries to take its lock: [`DaemonLock::is_held`] of another process holds it for a moment too.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// The lock of the daemon: at most one on a state folder. The file stays; only the lock matters. It holds the process, and when that was last seen at work:
///
/// ```text
/// 4711
/// 0f7c2a53-8d3e-4b5e-9d1c-2b6f0a7e41c8 00000000000012345670
/// ```
///
/// the id of the boot, and milliseconds since then: a clock that is set changes neither.
#[derive(Debug)]
pub struct DaemonLock {
    file: File,
    boot_id: String,
}

impl DaemonLock {
    /// # Errors
    /// [`Kind::Busy`] when another daemon holds it.
    pub fn take(state: &Path) -> Result<Self> {
        crate::daemon::private_folder(state)?;
        let path = state.join("serve.lock");
        let file = open(&path, false)?;
        let deadline = Instant::now() + LOCK_PATIENCE;
        let locked = loop {
            match file.try_lock() {
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::park_timeout(Duration::from_millis(50)),
                locked => break locked,
            }
        };
        match locked {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let holder = std::fs::read_to_string(&path).unwrap_or_default();
                let holder = holder.lines().next().unwrap_or_default();
                let message = if holder.is_empty() {
                    format!("another daemon uses the state folder {}", state.display())
                } else {
                    format!("another daemon (process {holder}) uses the state folder {}", state.display())
                };
                return Err(
                    Error::new(Kind::Busy, message).hint("stop it first, or give this one a state folder of its own with --state DIR")
                );
            }
            Err(TryLockError::Error(error)) => return Err(Error::io(format!("lock {}", path.display()), error)),
        }
        let lock = Self { file, boot_id: boot_id() };
        lock.file.set_len(0).and_then(|()| lock.note()).io_context(|| format!("write {}", path.display()))?;
        Ok(lock)
    }

    /// Says that the daemon is at work: whoever asks sees how long ago that was.
    pub fn alive(&self) {
        if let Err(error) = self.note() {
            tracing::debug!(%error, "that the daemon is at work could not be noted");
        }
    }

    /// In place, and always as long: that takes no room on a disk that is full.
    fn note(&self) -> std::io::Result<()> {
        let seen = uptime().map_or_else(|| "-".repeat(20), |uptime| format!("{:020}", uptime.as_millis()));
        self.file.write_all_at(format!("{}\n{} {seen}\n", std::process::id(), self.boot_id).as_bytes(), 0)
    }

    /// How long ago whoever holds the lock last looked at what is due. `None`: that cannot be told; it is of an older version, or on another machine.
    #[must_use]
    pub fn silent_for(state: &Path) -> Option<Duration> {
        let text = std::fs::read_to_string(state.join("serve.lock")).ok()?;
        let (boot, seen) = text.lines().nth(1)?.split_once(' ')?;
        if boot.is_empty() || boot != boot_id() {
            return None;
        }
        uptime()?.checked_sub(Duration::from_millis(seen.parse().ok()?))
    }

    /// The process of the daemon that holds the lock.
    #[must_use]
    pub fn holder(state: &Path) -> Option<u32> {
        let text = Self::is_held(state).then(|| std::fs::read_to_string(state.join("serve.lock")).ok()).flatten()?;
        text.lines().next()?.parse().ok()
    }

    /// Whether a daemon holds the lock now.
    #[must_use]
    pub fn is_held(state: &Path) -> bool {
        File::open(state.join("serve.lock")).is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }
}

fn open(path: &Path, truncate: bool) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .truncate(truncate)
        .write(true)
        .mode(0o600)
        .open(path)
        .io_context(|| format!("create {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_lives_until_it_is_dropped() {
        let state = tempfile::tempdir().unwrap();
        let owner = Owner::claim(state.path(), "a".into()).unwrap();
        assert!(is_alive(state.path(), "a").unwrap());
        assert!(!is_alive(state.path(), "b").unwrap());
        drop(owner);
        assert!(!is_alive(state.path(), "a").unwrap());
    }

    #[test]
    fn a_left_over_file_without_a_lock_is_a_dead_owner() {
        let state = tempfile::tempdir().unwrap();
        std::fs::create_dir(state.path().join("owners")).unwrap();
        std::fs::write(state.path().join("owners/x"), "1").unwrap();
        assert!(!is_alive(state.path(), "x").unwrap());
    }

    #[test]
    fn only_one_daemon_on_a_state_folder() {
        let state = tempfile::tempdir().unwrap();
        let first = DaemonLock::take(state.path()).unwrap();
        assert!(DaemonLock::is_held(state.path()));
        let second = DaemonLock::take(state.path()).unwrap_err();
        assert_eq!(second.kind(), Kind::Busy);
        assert!(second.to_string().contains(&std::process::id().to_string()));
        drop(first);
        assert!(!DaemonLock::is_held(state.path()));
        DaemonLock::take(state.path()).unwrap();
    }

    #[test]
    fn how_long_a_daemon_has_been_silent_is_told_whatever_the_clock_says() {
        let state = tempfile::tempdir().unwrap();
        let path = state.path().join("serve.lock");
        let lock = DaemonLock::take(state.path()).unwrap();
        assert_eq!(DaemonLock::holder(state.path()), Some(std::process::id()));
        assert!(DaemonLock::silent_for(state.path()).unwrap() < Duration::from_mins(1));
        let text = std::fs::read_to_string(&path).unwrap();
        let (head, seen) = text.trim_end().rsplit_once(' ').unwrap();
        let write = |text: String| lock.file.write_all_at(text.as_bytes(), 0).unwrap();
        // As if it had been silent since the boot, and a clock had been set back since.
        write(format!("{head} {:020}\n", 0));
        lock.file.set_modified(std::time::SystemTime::now() + Duration::from_hours(1)).unwrap();
        assert!(DaemonLock::silent_for(state.path()).unwrap() >= Duration::from_millis(seen.parse().unwrap()));
        assert_eq!(DaemonLock::holder(state.path()), Some(std::process::id()));
        lock.alive();
        assert!(DaemonLock::silent_for(state.path()).unwrap() < Duration::from_mins(1));
        assert_eq!(std::fs::read_to_string(&path).unwrap().len(), text.len());
        // Of another boot or machine, and of an older version.
        write(text.replace(&lock.boot_id, &"0".repeat(lock.boot_id.len())));
        assert_eq!(DaemonLock::silent_for(state.path()), None);
        lock.file.set_len(0).unwrap();
        write("4711\n".to_owned());
        assert_eq!((DaemonLock::silent_for(state.path()), DaemonLock::holder(state.path())), (None, Some(4711)));
    }

    #[test]
    fn somebody_who_asks_for_the_lock_does_not_keep_a_daemon_from_starting() {
        let state = tempfile::tempdir().unwrap();
        drop(DaemonLock::take(state.path()).unwrap());
        let asking = File::open(state.path().join("serve.lock")).unwrap();
        asking.try_lock_shared().unwrap();
        let asker = std::thread::spawn(move || {
            std::thread::park_timeout(Duration::from_millis(300));
            drop(asking);
        });
        DaemonLock::take(state.path()).unwrap();
        asker.join().unwrap();
    }
}

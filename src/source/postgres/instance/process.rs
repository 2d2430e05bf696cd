//! Finding and ending the processes of one private server, and nobody else's.
//!
//! A process belongs to a server when it is called `postgres` and works in the server's data folder (by device and inode, so that a
//! rename of a folder above changes nothing), or when it is the very process that was started: process id, start time and boot are
//! those that were written down. Signals go through pidfds that were opened before the check, so a number that was given to somebody
//! else meanwhile is never hit.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// A folder, whatever it is called now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FolderId {
    pub device: u64,
    pub inode: u64,
}

impl FolderId {
    pub fn of(path: &Path) -> io::Result<Self> {
        fs::metadata(path).map(|metadata| Self { device: metadata.dev(), inode: metadata.ino() })
    }
}

/// One process of one boot of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub pid: i32,
    /// Clock ticks since boot (proc(5), field 22 of stat).
    pub start_ticks: u64,
    pub boot_id: String,
}

impl Identity {
    /// Of a process that lives.
    pub fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in parentheses may hold anything, so count from the last one.
        let (_, rest) = stat.rsplit_once(')')?;
        let mut fields = rest.split_whitespace();
        // A zombie has ended; only its parent has not looked yet.
        if fields.next()? == "Z" {
            return None;
        }
        let start_ticks = fields.nth(18)?.parse().ok()?;
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
        Some(Self { pid, start_ticks, boot_id })
    }
}

/// A process that was checked to belong to the server.
pub struct Member {
    pub pid: i32,
    handle: OwnedFd,
}

impl Member {
    /// One that has ended meanwhile is as good.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.handle, signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Whether it has ended within the limit.
    pub fn has_ended(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let wait = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: i64::from(left.subsec_nanos()) };
            match poll(&mut [PollFd::new(&self.handle, PollFlags::IN)], Some(&wait)) {
                Err(Errno::INTR) => {}
                Ok(0) | Err(_) => return false,
                Ok(_) => return true,
            }
        }
    }
}

/// Every living process of the server that works in `folder`; the one that was `started` first, where it lives.
pub fn members(folder: FolderId, started: Option<&Identity>) -> io::Result<Vec<Member>> {
    let mut found = Vec::new();
    for item in fs::read_dir("/proc")? {
        let Some(pid) = item?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let Some(handle) = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else { continue };
        let is_started = started.is_some_and(|started| started.pid == pid && Identity::of(pid).as_ref() == Some(started));
        let works_there = || {
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim_end() == "postgres")
                && FolderId::of(Path::new(&format!("/proc/{pid}/cwd"))).is_ok_and(|cwd| cwd == folder)
                && Identity::of(pid).is_some()
        };
        if is_started {
            found.insert(0, Member { pid, handle });
        } else if works_there() {
            found.push(Member { pid, handle });
        }
    }
    Ok(found)
}

/// A server that something at `folder` (which need not be a folder, nor be there) would be taken from, or be put between the files of: its data folder is
/// `folder`, below it or above it, or one of its tablespaces (or its log) is. What belongs to another user can only be told by the `postmaster.pid` of `folder` itself or of a folder above: then the process that it names must be a
/// PostgreSQL.
pub fn user_of(folder: &Path) -> io::Result<Option<i32>> {
    let Some(path) = resolved(folder)? else { return Ok(None) };
    let own = FolderId::of(&path).ok();
    let written: Vec<i32> = path.ancestors().filter_map(written_in).collect();
    let mut looked_at = HashSet::new();
    for item in fs::read_dir("/proc")? {
        let Some(pid) = item?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let is_server =
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| matches!(name.trim_end(), "postgres" | "postmaster"));
        if !is_server || Identity::of(pid).is_none() {
            continue;
        }
        let cwd = PathBuf::from(format!("/proc/{pid}/cwd"));
        let is_there = match FolderId::of(&cwd) {
            Ok(id) => Some(id) == own || (looked_at.insert(id) && holds(&cwd, &path)),
            Err(_) => written.contains(&pid),
        };
        if is_there {
            let named = fs::read_link(&cwd).ok().and_then(|cwd| written_in(&cwd));
            return Ok(Some(named.or(written.first().copied()).unwrap_or(pid)));
        }
    }
    Ok(None)
}

/// Whether the server that works in `cwd` has something at `path`, above it, or below it.
fn holds(cwd: &Path, path: &Path) -> bool {
    // A process of that name elsewhere is no server.
    if !cwd.join("PG_VERSION").exists() {
        return fs::read_link(cwd).is_ok_and(|cwd| cwd.starts_with(path));
    }
    let links = fs::read_dir(cwd.join("pg_tblspc")).into_iter().flatten().filter_map(|item| Some(item.ok()?.path()));
    let places = links.chain([cwd.to_owned(), cwd.join("pg_wal")]).filter_map(|place| fs::canonicalize(place).ok());
    places.into_iter().any(|place| place.starts_with(path) || path.starts_with(&place))
}

/// The process that the `postmaster.pid` of a folder names.
fn written_in(folder: &Path) -> Option<i32> {
    fs::read_to_string(folder.join("postmaster.pid")).ok()?.lines().next()?.trim().parse::<i32>().ok().map(i32::abs)
}

/// Without links; where nothing is there, as it will be. `None`: there is no place for it either.
fn resolved(path: &Path) -> io::Result<Option<PathBuf>> {
    let found = |path: &Path| match fs::canonicalize(path) {
        Ok(path) => Ok(Some(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    };
    match (found(path)?, path.parent(), path.file_name()) {
        (None, Some(parent), Some(name)) => Ok(found(parent)?.map(|parent| parent.join(name))),
        (there, ..) => Ok(there),
    }
}

/// A data folder that `folder` is in, whether a server runs on it or not.
pub fn data_folder_above(folder: &Path) -> io::Result<Option<PathBuf>> {
    let Some(path) = resolved(folder)? else { return Ok(None) };
    Ok(path.ancestors().skip(1).find(|above| above.join("PG_VERSION").exists()).map(Path::to_owned))
}

/// Ends them all: an immediate shutdown, which lets the server remove its shared memory, then by force. Yields who is still there.
pub fn end(folder: FolderId, started: Option<&Identity>, patience: Duration) -> io::Result<Vec<i32>> {
    for (signal, limit) in [(Signal::QUIT, patience), (Signal::KILL, patience)] {
        let deadline = Instant::now() + limit;
        // New processes may have appeared between two looks.
        loop {
            let members = members(folder, started)?;
            if members.is_empty() {
                return Ok(Vec::new());
            }
            if Instant::now() >= deadline {
                break;
            }
            for member in &members {
                member.signal(signal)?;
            }
            for member in &members {
                member.has_ended(deadline.saturating_duration_since(Instant::now()).min(Duration::from_millis(500)));
            }
        }
    }
    Ok(members(folder, started)?.iter().map(|member| member.pid).collect())
}

//! A plan's private folder on this host: the backup lock, a scratch folder for every run, and drill targets that are kept a while.
//!
//! ```text
//! <work>/backup.lock       held (flock) while a backup runs; its text says by whom
//! <work>/copy-<name>.lock  the same of a copy to the repository of that name
//! <work>/folders.lock      held for moments while run folders are made or swept
//! <work>/run-<id>/owner    held while the run lives: an unheld one is what a killed run left, and is removed by the next
//! <work>/dead-<id>…        a left folder on its way out
//! <work>/kept-<id>/        a kept drill target, with kept.json beside it (`kept-<id>.json`) that says until when
//! ```
//!
//! Locks are the kernel's: they end with the process, however it ends, so nothing here can go stale.
//!
//! lifeboat often runs as root beside users it must not trust. So a private folder that exists already is used only when it is ours
//! alone, and files in it are never opened through a link.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::{DateTime, Utc};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::error::{Error, IoContext, Kind, Result};
use crate::id::{Name, RunId};
use crate::ops::verdict::{duration_text, millis};
use crate::source::postgres::instance;

/// A kernel lock on a file, held until dropped.
#[derive(Debug)]
pub(crate) struct FileLock(#[expect(dead_code, reason = "the lock lives as long as the open file")] File);

impl FileLock {
    /// Takes the lock at once and writes who holds it; `Ok(Err(text))` is what the present holder wrote.
    pub(crate) fn try_take(path: &Path, now: DateTime<Utc>) -> Result<Result<Self, String>> {
        let mut file = open_lock(path)?;
        match file.try_lock() {
            Ok(()) => {
                let text = format!("process {} since {}\n", std::process::id(), now.to_rfc3339());
                let written = file.set_len(0).and_then(|()| file.seek(SeekFrom::Start(0))).and_then(|_| file.write_all(text.as_bytes()));
                written.io_context(|| format!("write lock file {}", path.display()))?;
                Ok(Ok(Self(file)))
            }
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                // Who it is is only for the message.
                drop(Read::by_ref(&mut file).take(200).read_to_string(&mut text));
                let text = text.trim();
                Ok(Err(if text.is_empty() { "another process".into() } else { text.to_owned() }))
            }
            Err(TryLockError::Error(source)) => Err(Error::io(format!("lock {}", path.display()), source)),
        }
    }

    /// Takes the lock, waiting for whoever has it. For what is held for moments.
    pub(crate) fn wait(path: &Path) -> Result<Self> {
        let file = open_lock(path)?;
        file.lock().io_context(|| format!("lock {}", path.display()))?;
        Ok(Self(file))
    }
}

fn open_lock(path: &Path) -> Result<File> {
    open_ours(path, OFlags::RDWR | OFlags::CREATE).map_err(|source| Error::io(format!("open lock file {}", path.display()), source))
}

/// Opens a regular file of ours, never through a link.
fn open_ours(path: &Path, flags: OFlags) -> io::Result<File> {
    open_of(path, flags, |owner| owner == rustix::process::geteuid().as_raw())
}

fn open_of(path: &Path, flags: OFlags, is_owner: impl Fn(u32) -> bool) -> io::Result<File> {
    // Without waiting for who would write to a pipe.
    let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?);
    let metadata = file.metadata()?;
    if metadata.is_file() && is_owner(metadata.uid()) {
        return Ok(file);
    }
    Err(io::Error::other("it is not a regular file of the user that runs lifeboat"))
}

/// Makes a folder and its parents, private (0700). One that exists is somebody's and stays as it is: `--state` may name any folder.
pub(crate) fn make_missing(path: &Path) -> Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).io_context(|| format!("make folder {}", path.display()))
}

/// Makes a private folder (0700) and its parents. One that exists must be ours alone (see [`own_private`]) and is made private.
///
/// # Errors
/// `Usage` when what is there is not ours alone.
pub(crate) fn make_private(path: &Path) -> Result<()> {
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        make_missing(parent)?;
    }
    match rustix::fs::mkdir(path, Mode::RWXU) {
        Ok(()) => Ok(()),
        Err(Errno::EXIST) => {
            let folder = own_private(path)?;
            // Others may have been let through, never in: see `let_through`.
            let through = folder.metadata().map_or(0, |metadata| if metadata.mode() & 0o777 == 0o711 { 0o011 } else { 0 });
            folder
                .set_permissions(fs::Permissions::from_mode(0o700 | through))
                .io_context(|| format!("make folder {} private", path.display()))
        }
        Err(errno) => Err(Error::io(format!("make folder {}", path.display()), errno.into())),
    }
}

/// Opens a folder that nobody else can have put anything into: a folder and no link to one, of this user, writable by no other.
///
/// # Errors
/// `Usage` when it is not.
pub(crate) fn own_private(path: &Path) -> Result<File> {
    let refuse = |why: String| {
        Err(Error::new(Kind::Usage, format!("use private folder {}: {why}", path.display()))
            .hint("run lifeboat as the user that it belongs to; or look at what it is, and remove or rename it"))
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(folder) => File::from(folder),
        Err(Errno::NOTDIR | Errno::LOOP) => return refuse("it is a link or a file, not a folder".into()),
        Err(errno) => return Err(Error::io(format!("open private folder {}", path.display()), errno.into())),
    };
    let metadata = folder.metadata().io_context(|| format!("look at {}", path.display()))?;
    let user = rustix::process::geteuid().as_raw();
    if metadata.uid() != user {
        return refuse(format!("it belongs to user {}, and lifeboat runs as user {user}", metadata.uid()));
    }
    if metadata.mode() & 0o022 != 0 {
        return refuse(format!("others may write to it (mode {:o})", metadata.mode() & 0o7777));
    }
    Ok(folder)
}

/// Takes the lock that makes backups of one plan on one host exclude each other.
///
/// # Errors
/// `Busy` says who holds it.
pub(crate) fn lock_backup(work: &Path, plan: &str, now: DateTime<Utc>) -> Result<FileLock> {
    make_private(work)?;
    FileLock::try_take(&work.join("backup.lock"), now)?.map_err(|holder| {
        Error::new(Kind::Busy, format!("back up {plan}: another backup of this plan is running here ({holder})"))
            .hint("wait until it has ended, then try again; nothing is wrong")
    })
}

/// Takes the lock that makes copies of one plan to one repository on one host exclude each other.
///
/// # Errors
/// `Busy` says who holds it.
pub(crate) fn lock_copy(work: &Path, to: &Name, now: DateTime<Utc>) -> Result<FileLock> {
    make_private(work)?;
    FileLock::try_take(&work.join(format!("copy-{to}.lock")), now)?.map_err(|holder| {
        Error::new(Kind::Busy, format!("copy to {to}: another copy of this plan to it is running here ({holder})"))
            .hint("wait until it has ended, then try again; nothing is wrong")
    })
}

/// Removes what killed runs left and kept drill targets whose time is over, in the work folders of all plans below this state folder, also
/// of those that no plan file knows any more. What cannot be removed is logged, and told by nothing else.
pub fn sweep(state: &Path, now: DateTime<Utc>) {
    let Ok(plans) = fs::read_dir(state.join("work")) else { return };
    for plan in plans.flatten().filter(|item| item.file_type().is_ok_and(|kind| kind.is_dir())) {
        told(sweep_plan(&plan.path(), now));
    }
}

/// Removes a folder of a run that was killed, with the private servers that still run in it.
fn remove_dead(path: &Path) -> Result<()> {
    for item in fs::read_dir(path).into_iter().flatten().flatten() {
        if item.file_type().is_ok_and(|kind| kind.is_dir()) {
            for server in instance::left_below(&item.path())? {
                instance::sweep(&server)?;
            }
        }
    }
    remove_tree(path)
}

/// Lets the user that a private server runs as pass through these folders of ours, as far as they are ours alone: it may not list them.
pub(crate) fn let_through(folders: &[&Path]) -> Result<()> {
    for folder in folders {
        let opened = own_private(folder)?;
        let mode = opened.metadata().io_context(|| format!("look at {}", folder.display()))?.mode() & 0o777;
        opened
            .set_permissions(fs::Permissions::from_mode(mode | 0o011))
            .io_context(|| format!("let a server through {}", folder.display()))?;
    }
    Ok(())
}

fn sweep_plan(work: &Path, now: DateTime<Utc>) -> Result<()> {
    let dead = {
        let _moment = FileLock::wait(&work.join("folders.lock"))?;
        bury(work, now)?
    };
    for path in dead {
        told(remove_dead(&path));
    }
    Ok(())
}

/// A run's private scratch folder. Removed when dropped; [`RunFolder::remove`] also proves it.
#[derive(Debug)]
pub(crate) struct RunFolder {
    path: PathBuf,
    _owner: FileLock,
}

impl RunFolder {
    /// Makes one, after removing what killed runs left and kept targets whose time is over.
    pub(crate) fn create(work: &Path, now: DateTime<Utc>) -> Result<Self> {
        make_private(work)?;
        let (folder, dead) = {
            // Between making a folder and holding its owner file nobody may sweep.
            let _moment = FileLock::wait(&work.join("folders.lock"))?;
            let dead = bury(work, now)?;
            let path = work.join(format!("run-{}", RunId::generate(now)));
            make_private(&path)?;
            let owner = FileLock::try_take(&path.join("owner"), now)?
                .map_err(|holder| Error::new(Kind::Bug, format!("own new folder {}: it is held by {holder}", path.display())))?;
            (Self { path, _owner: owner }, dead)
        };
        for path in dead {
            told(remove_dead(&path));
        }
        Ok(folder)
    }

    /// The folder.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Like [`RunFolder::remove`], but waits no longer than this. What is left then is removed all the same if this process lives long
    /// enough, and otherwise swept by the next run or the daemon.
    ///
    /// # Errors
    /// When something is left.
    pub(crate) fn remove_within(self, limit: Option<Duration>) -> Result<()> {
        let Some(limit) = limit else { return self.remove() };
        let (path, (sender, receiver)) = (self.path.clone(), std::sync::mpsc::channel());
        std::thread::Builder::new()
            .name("cleanup".into())
            // Whoever gave up waiting does not listen.
            .spawn(move || drop(sender.send(self.remove())))
            .io_context(|| format!("start the removal of {}", path.display()))?;
        receiver.recv_timeout(limit).unwrap_or_else(|_| {
            let limit = duration_text(millis(limit));
            Err(Error::new(
                Kind::Failed,
                format!("remove folder {}: not done after {limit}, the next run removes what is left", path.display()),
            ))
        })
    }

    /// Removes it and looks whether it is gone.
    ///
    /// # Errors
    /// When something is left.
    pub(crate) fn remove(self) -> Result<()> {
        remove_tree(&self.path)?;
        if exists(&self.path)? {
            return Err(Error::new(Kind::Failed, format!("remove folder {}: it is still there", self.path.display())));
        }
        Ok(())
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        // What cannot be removed now is swept by the next run.
        drop(remove_tree(&self.path));
    }
}

/// Until when a kept target stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    pub(crate) until: DateTime<Utc>,
    pub(crate) drill: String,
    pub(crate) snapshot: String,
}

impl Kept {
    /// Whether its time is over. A clock that went backwards keeps it longer, never removes it sooner.
    pub(crate) fn expired(&self, now: DateTime<Utc>) -> bool {
        self.until <= now
    }
}

/// Moves a restored target out of a run folder to where it is kept; yields its new path.
pub(crate) fn keep(work: &Path, target: &Path, kept: &Kept) -> Result<PathBuf> {
    let name = target.file_name().ok_or_else(|| Error::new(Kind::Bug, format!("keep {}: it has no name", target.display())))?;
    let folder = work.join(format!("kept-{}", kept.drill));
    // The expiry first: a folder without one is removed by the next run.
    let text =
        serde_json::to_vec_pretty(kept).map_err(|source| Error::new(Kind::Bug, "write the expiry of a kept target").because(source))?;
    let note = work.join(format!("kept-{}.json", kept.drill));
    write_private(&note, &text)?;
    make_private(&folder)?;
    let place = folder.join(name);
    movable(target, || fs::rename(target, &place)).io_context(|| format!("move {} to {}", target.display(), place.display()))?;
    Ok(place)
}

/// Runs what moves a folder of ours into another one. The kernel then writes into the moved folder itself (its `..`), so a restored one
/// that its owner may not write is writable for that moment.
pub(crate) fn movable(from: &Path, rename: impl Fn() -> io::Result<()>) -> io::Result<()> {
    let refused = match rename() {
        Err(source) if source.kind() == io::ErrorKind::PermissionDenied => source,
        other => return other,
    };
    let metadata = fs::symlink_metadata(from)?;
    if !metadata.is_dir() || metadata.mode() & 0o700 == 0o700 {
        return Err(refused);
    }
    fs::set_permissions(from, fs::Permissions::from_mode(metadata.mode() | 0o700))?;
    // By its handle it is the same folder before and after.
    let folder = File::open(from)?;
    let moved = rename();
    folder.set_permissions(metadata.permissions())?;
    moved
}

/// Writes a small private file whole or not at all.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = path.with_extension("new");
    let write = || -> io::Result<()> {
        match fs::remove_file(&temporary) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(source),
            _ => {}
        }
        // Exclusively: what stands there is neither followed nor overwritten.
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().io_context(|| format!("write {}", path.display()))
}

/// Reads what [`write_private`] wrote. Root reads also what the owner of the folder wrote: it looks at the state folder of a service's user.
pub(crate) fn read_private(path: &Path) -> io::Result<Vec<u8>> {
    let user = rustix::process::geteuid();
    let of_folder = |owner: u32| path.parent().is_some_and(|folder| fs::metadata(folder).is_ok_and(|folder| folder.uid() == owner));
    let mut bytes = Vec::new();
    open_of(path, OFlags::RDONLY, |owner| owner == user.as_raw() || (user.is_root() && of_folder(owner)))?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// What an earlier run left and cannot be removed must not keep a new one from running.
fn told<T>(result: Result<T>) -> Option<T> {
    result.map_err(|error| tracing::warn!(%error, causes = ?error.causes(), "what an earlier run left could not be removed")).ok()
}

/// Renames what is dead (under the folders lock), so that removing it needs no lock.
fn bury(work: &Path, now: DateTime<Utc>) -> Result<Vec<PathBuf>> {
    let mut dead = Vec::new();
    for item in fs::read_dir(work).io_context(|| format!("list {}", work.display()))? {
        let item = item.io_context(|| format!("list {}", work.display()))?;
        let (path, name) = (item.path(), item.file_name());
        let Some(name) = name.to_str() else { continue };
        if name.starts_with("dead-") {
            dead.push(path);
        } else if name.starts_with("run-") && item.file_type().is_ok_and(|t| t.is_dir()) {
            if let Some(Ok(_)) = told(FileLock::try_take(&path.join("owner"), now)) {
                let grave = work.join(format!("dead-{name}"));
                if told(fs::rename(&path, &grave).io_context(|| format!("rename {}", path.display()))).is_some() {
                    dead.push(grave);
                }
            }
        } else if let Some(drill) = name.strip_prefix("kept-").filter(|name| Path::new(name).extension().is_none()) {
            let note = work.join(format!("kept-{drill}.json"));
            if !stays(&note, now) {
                let grave = work.join(format!("dead-{name}"));
                fs::rename(&path, &grave).io_context(|| format!("rename {}", path.display()))?;
                dead.push(grave);
                drop(fs::remove_file(&note));
            }
        } else if let Some(drill) = name.strip_prefix("kept-").and_then(|name| name.strip_suffix(".json"))
            && !stays(&path, now)
            // One without a folder may be of a drill that is about to make it: that one's time is not over.
            && !exists(&work.join(format!("kept-{drill}")))?
        {
            told(fs::remove_file(&path).io_context(|| format!("remove {}", path.display())));
        }
    }
    Ok(dead)
}

/// Whether what this note is beside may still stay.
fn stays(note: &Path, now: DateTime<Utc>) -> bool {
    read_private(note).ok().and_then(|text| serde_json::from_slice::<Kept>(&text).ok()).is_some_and(|kept| !kept.expired(now))
}

/// Whether anything (a dangling link too) is at this path.
pub(crate) fn exists(path: &Path) -> Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(Error::io(format!("look at {}", path.display()), source)),
    }
}

/// Removes whatever is at a path, folders that forbid it included. Nothing there is fine. Never follows links.
pub(crate) fn remove_tree(path: &Path) -> Result<()> {
    let result = match fs::symlink_metadata(path) {
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => Err(source),
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path).or_else(|_| {
            unlock(path);
            fs::remove_dir_all(path)
        }),
        Ok(_) => fs::remove_file(path),
    };
    match result {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::io(format!("remove {}", path.display()), source)),
        _ => Ok(()),
    }
}

/// A restored tree may hold folders that their owner may not write; removing what is in them needs that.
fn unlock(folder: &Path) {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        drop(fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)));
        let Ok(items) = fs::read_dir(&folder) else { continue };
        folders.extend(items.flatten().filter(|item| item.file_type().is_ok_and(|t| t.is_dir())).map(|item| item.path()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(secs: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_790_000_000 + secs, 0).unwrap()
    }

    #[test]
    fn a_second_backup_is_told_who_runs() {
        let work = tempfile::tempdir().unwrap();
        let first = lock_backup(work.path(), "crm", time(0)).unwrap();
        let busy = lock_backup(work.path(), "crm", time(1)).unwrap_err();
        assert_eq!(busy.kind(), Kind::Busy);
        assert!(busy.to_string().contains(&std::process::id().to_string()), "{busy}");
        drop(first);
        lock_backup(work.path(), "crm", time(2)).unwrap();
    }

    #[test]
    fn what_a_killed_run_left_goes_and_a_live_run_stays() {
        let work = tempfile::tempdir().unwrap();
        let live = RunFolder::create(work.path(), time(0)).unwrap();
        let left = work.path().join("run-left");
        fs::create_dir_all(left.join("locked")).unwrap();
        fs::write(left.join("owner"), "process 1").unwrap();
        fs::write(left.join("locked/data"), "x").unwrap();
        fs::set_permissions(left.join("locked"), fs::Permissions::from_mode(0o500)).unwrap();
        let second = RunFolder::create(work.path(), time(1)).unwrap();
        assert!(live.path().is_dir() && second.path().is_dir());
        assert!(!left.exists());
        let path = second.path().to_owned();
        second.remove().unwrap();
        assert!(!path.exists());
        let names: Vec<_> = fs::read_dir(work.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(names.iter().all(|n| !n.to_string_lossy().starts_with("dead-")), "{names:?}");
    }

    #[test]
    fn what_others_planted_is_refused_and_never_followed() {
        let outer = tempfile::tempdir().unwrap();
        let victim = outer.path().join("victim");
        fs::create_dir(&victim).unwrap();
        fs::write(victim.join("file"), "precious").unwrap();
        fs::set_permissions(&victim, fs::Permissions::from_mode(0o755)).unwrap();

        let folder = outer.path().join("folder");
        let refused = |why: &str| {
            let error = make_private(&folder).unwrap_err();
            assert_eq!(error.kind(), Kind::Usage);
            assert!(error.to_string().contains(why) && error.hint_text().is_some(), "{error:?}");
        };
        std::os::unix::fs::symlink(&victim, &folder).unwrap();
        refused("link");
        assert_eq!(fs::metadata(&victim).unwrap().mode() & 0o777, 0o755, "nothing was changed through the link");
        fs::remove_file(&folder).unwrap();
        fs::write(&folder, "").unwrap();
        refused("file");
        fs::remove_file(&folder).unwrap();
        fs::create_dir(&folder).unwrap();
        for mode in [0o777, 0o1777, 0o770, 0o702] {
            fs::set_permissions(&folder, fs::Permissions::from_mode(mode)).unwrap();
            refused("others may write");
        }
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
        make_private(&folder).unwrap();
        assert_eq!(fs::metadata(&folder).unwrap().mode() & 0o7777, 0o700);
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&folder, Some(65534), None).unwrap();
            refused("belongs to user 65534");
            std::os::unix::fs::chown(&folder, Some(0), None).unwrap();
        }

        // In a folder of ours: neither lock nor small files go through a link.
        for (name, to) in [("backup.lock", "file"), ("folders.lock", "new"), ("note.json", "file"), ("note.new", "file")] {
            std::os::unix::fs::symlink(victim.join(to), folder.join(name)).unwrap();
        }
        assert!(lock_backup(&folder, "crm", time(0)).is_err());
        assert!(RunFolder::create(&folder, time(0)).is_err());
        assert!(read_private(&folder.join("note.json")).is_err());
        write_private(&folder.join("note.json"), b"ours").unwrap();
        assert_eq!(read_private(&folder.join("note.json")).unwrap(), b"ours");
        assert_eq!(fs::read_to_string(victim.join("file")).unwrap(), "precious");
        assert_eq!(fs::read_dir(&victim).unwrap().count(), 1);
    }

    #[test]
    fn what_cannot_be_removed_stops_no_run() {
        let work = tempfile::tempdir().unwrap();
        // A lock file that cannot be opened, whoever asks.
        fs::create_dir_all(work.path().join("run-left/owner")).unwrap();
        drop(RunFolder::create(work.path(), time(0)).unwrap());
    }

    #[test]
    fn a_sweep_reaches_every_plan_there_ever_was() {
        let state = tempfile::tempdir().unwrap();
        sweep(state.path(), time(0));
        let work = state.path().join("work/gone");
        let run = RunFolder::create(&work, time(0)).unwrap();
        let kept = |drill: &str, until| {
            let target = run.path().join("crm.sqlite");
            fs::write(&target, "x").unwrap();
            keep(&work, &target, &Kept { until: time(until), drill: drill.into(), snapshot: "01".into() }).unwrap()
        };
        let (short, long) = (kept("01short", 10), kept("01long", 20));
        sweep(state.path(), time(9));
        assert!(short.exists() && long.exists() && run.path().is_dir());
        sweep(state.path(), time(10));
        assert!(!short.exists() && long.exists() && run.path().is_dir(), "a live run and what may stay, stay");
        assert!(!work.join("kept-01short.json").exists());
        fs::create_dir_all(work.join("run-left")).unwrap();
        sweep(state.path(), time(11));
        assert!(!work.join("run-left").exists(), "what a killed run left");
    }

    #[test]
    fn removal_is_waited_for_no_longer_than_its_limit() {
        let work = tempfile::tempdir().unwrap();
        let run = RunFolder::create(work.path(), time(0)).unwrap();
        let path = run.path().to_owned();
        run.remove_within(Some(Duration::from_mins(5))).unwrap();
        assert!(!path.exists());
        let run = RunFolder::create(work.path(), time(0)).unwrap();
        for number in 0..2000 {
            fs::write(run.path().join(number.to_string()), "x").unwrap();
        }
        let late = run.remove_within(Some(Duration::ZERO)).unwrap_err();
        assert!(late.to_string().contains("not done after 0 ms"), "{late}");
    }

    #[test]
    fn a_kept_target_goes_when_its_time_is_over() {
        let work = tempfile::tempdir().unwrap();
        let run = RunFolder::create(work.path(), time(0)).unwrap();
        let target = run.path().join("crm.sqlite");
        fs::write(&target, "x").unwrap();
        let place = keep(work.path(), &target, &Kept { until: time(10), drill: "01abc".into(), snapshot: "01".into() }).unwrap();
        drop(run);
        drop(RunFolder::create(work.path(), time(9)).unwrap());
        assert!(place.exists());
        drop(RunFolder::create(work.path(), time(10)).unwrap());
        assert!(!place.exists());
        assert!(!work.path().join("kept-01abc.json").exists());
        let note = |name: &str, until| {
            let kept = Kept { until: time(until), drill: name.into(), snapshot: "01".into() };
            write_private(&work.path().join(format!("kept-{name}.json")), &serde_json::to_vec(&kept).unwrap()).unwrap();
        };
        note("01over", 10);
        note("01soon", 20);
        drop(RunFolder::create(work.path(), time(11)).unwrap());
        assert!(!work.path().join("kept-01over.json").exists(), "a note without a folder goes too");
        assert!(work.path().join("kept-01soon.json").exists(), "its drill may be about to make the folder");
    }
}

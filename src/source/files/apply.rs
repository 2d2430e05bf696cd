//! Making a tree of entries in a private folder, the other way of a walk.
//!
//! Paths and link targets come from a repository that might be hostile. So nothing is ever made or opened through a symbolic link: every
//! path is resolved below the root by `openat2` with `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS` (or name by name where the kernel has no such call), and every
//! name is created exclusively.
//!
//! Order: [`TreeTarget::make`] in tree order (from one thread or several, as long as a parent is made before its children and a file
//! before its links), content at any time after, [`TreeTarget::seal`] after a file's content, [`TreeTarget::finish`] last. Until then folders are
//! `0700` and files `0600`, so a half-made tree shows nothing to others. Owner goes before mode, because the kernel clears set-id bits
//! when the owner changes; times go last.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use crate::entry::{Entry, EntryKind, display_path, is_valid_path, tree_order};
use crate::error::{Error, IoContext, Kind, Result};
use crate::source::files::beneath;
use crate::source::files::walk::proc_path;

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY);

/// A folder that a tree is being made in.
pub struct TreeTarget {
    root: OwnedFd,
    shown: PathBuf,
    /// Whether what is there already may be replaced.
    resumed: bool,
    /// The folder used last: entries come folder by folder.
    parent: Mutex<Option<(Vec<u8>, Arc<OwnedFd>)>>,
    folders: Mutex<Vec<Entry>>,
    warnings: Mutex<BTreeMap<&'static str, (u64, String)>>,
    lost: Mutex<Lost>,
}

/// What became of a finished tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Metadata that this user or this file system does not allow to set; one line for each kind, with a count and an example.
    pub warnings: Vec<String>,
    pub lost: Lost,
}

/// How much metadata could not be set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lost {
    /// Entries whose owner or group is another one.
    pub owners: u64,
    /// Attributes of entries.
    pub attributes: u64,
    /// Of these all, what a restore must not call whole without: attributes that hold what somebody put there (`user.…`, ACLs in `system.…`),
    /// and whatever root, who may set anything, could not set. An owner that is not root cannot give away what it restores, nor set what the
    /// kernel keeps for root.
    pub content: u64,
}

const OWNERS: &str = "owners were not restored: only root may do that";
const ATTRIBUTES: &str = "extended attributes were not restored: not allowed here";

impl TreeTarget {
    /// Begins a tree in a new folder (made `0700`; its parent must exist) or an empty one.
    ///
    /// # Errors
    /// [`Kind::AlreadyExists`] when something is in it; otherwise as the system says.
    pub fn create(root: &Path) -> Result<Self> {
        let target = Self::resume(root)?;
        let mut entries = std::fs::read_dir(root).io_context(|| format!("list {}", root.display()))?;
        if entries.next().is_some() {
            let message = format!("folder {} is not empty", root.display());
            return Err(Error::new(Kind::AlreadyExists, message).hint("choose a new or empty folder"));
        }
        Ok(Self { resumed: false, ..target })
    }

    /// Goes on with a tree that an earlier run did not finish: folders are kept and made writable again where that run had already given
    /// them their mode, anything else that is made again is replaced.
    ///
    /// # Errors
    /// When the root cannot be made or is not a folder.
    pub fn resume(root: &Path) -> Result<Self> {
        match rustix::fs::mkdir(root, Mode::RWXU) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                reopen(rustix::fs::CWD, root.as_os_str())
                    .map_err(|errno| Error::io(format!("open folder {}", root.display()), errno.into()))?;
            }
            Err(errno) => return Err(Error::io(format!("create folder {}", root.display()), errno.into())),
        }
        let flags = FOLDER | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root_fd = rustix::fs::open(root, flags, Mode::empty())
            .map_err(|errno| Error::io(format!("open folder {}", root.display()), errno.into()))?;
        Ok(Self {
            root: root_fd,
            shown: root.to_owned(),
            resumed: true,
            parent: Mutex::new(None),
            folders: Mutex::new(Vec::new()),
            warnings: Mutex::new(BTreeMap::new()),
            lost: Mutex::default(),
        })
    }

    /// Makes one entry. A regular file is returned open for reading and writing, empty or (size known) with that many zeros.
    ///
    /// Symbolic links and pipes get their metadata here, folders in [`finish`](Self::finish), files in [`seal`](Self::seal). Missing parents are made.
    ///
    /// # Errors
    /// [`Kind::Damaged`] for an entry that no source yields; [`Kind::AlreadyExists`]; [`Kind::NotFound`] for a link to a file that is not there.
    pub fn make(&self, entry: &Entry) -> Result<Option<File>> {
        if !is_valid_path(&entry.path) || (entry.path.is_empty() && entry.kind != EntryKind::Directory) {
            return Err(Error::new(Kind::Damaged, format!("snapshot holds an entry that no source yields: {:?}", entry.display_path())));
        }
        if entry.path.is_empty() {
            self.later(entry);
            return Ok(None);
        }
        let (parents, name) = beneath::split(&entry.path);
        let parent = self.parent(parents)?;
        let name = OsStr::from_bytes(name);
        let failed = |errno: Errno| self.failed("create", entry, errno);
        match &entry.kind {
            EntryKind::File { size, .. } => {
                let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let open = || rustix::fs::openat(&parent, name, flags, Mode::RUSR | Mode::WUSR);
                let file = File::from(self.afresh(&parent, name, open).map_err(failed)?);
                if let Some(size) = *size {
                    file.set_len(size).io_context(|| format!("make room for {size} bytes in {}", entry.display_path()))?;
                }
                return Ok(Some(file));
            }
            EntryKind::Directory => {
                match rustix::fs::mkdirat(&parent, name, Mode::RWXU) {
                    Ok(()) => {}
                    // Made for a child before, or by the run that this one resumes; opening shows that it is a folder and no link.
                    Err(Errno::EXIST) => reopen(&parent, name).map_err(failed)?,
                    Err(errno) => return Err(failed(errno)),
                }
                self.later(entry);
            }
            EntryKind::Symlink { target } => {
                if target.is_empty() || target.contains(&0) {
                    return Err(Error::new(Kind::Damaged, format!("symbolic link {} has an impossible target", entry.display_path())));
                }
                self.afresh(&parent, name, || rustix::fs::symlinkat(OsStr::from_bytes(target), &parent, name)).map_err(failed)?;
                self.settle_link(&parent, name, entry)?;
            }
            EntryKind::Hardlink { target } => self.link(&parent, name, entry, target)?,
            EntryKind::Fifo => {
                let make = || rustix::fs::mknodat(&parent, name, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0);
                self.afresh(&parent, name, make).map_err(failed)?;
                self.settle_fifo(&parent, name, entry)?;
            }
        }
        Ok(None)
    }

    /// Opens a regular file that is there already, for reading and writing, so that a resumed restore may keep its content. `None`: there is
    /// none.
    ///
    /// # Errors
    /// When something else is there or the system refuses.
    pub fn existing(&self, entry: &Entry) -> Result<Option<File>> {
        if !is_valid_path(&entry.path) {
            return Err(Error::new(Kind::Damaged, format!("snapshot holds an entry that no source yields: {:?}", entry.display_path())));
        }
        let open = || beneath::open(&self.root, &entry.path, OFlags::RDWR | OFlags::NONBLOCK);
        let opened = match open() {
            // It has its mode already.
            Err(Errno::ACCESS) => beneath::open(&self.root, &entry.path, OFlags::PATH)
                .and_then(|file| allow(&file, FileType::RegularFile, Mode::RUSR | Mode::WUSR))
                .and_then(|()| open()),
            other => other,
        };
        match opened {
            Ok(file) => {
                let stat = rustix::fs::fstat(&file).map_err(|errno| self.failed("look at", entry, errno))?;
                Ok((FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile).then(|| File::from(file)))
            }
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(self.failed("open", entry, errno)),
        }
    }

    /// Sets a file's metadata after its content was written. Nothing is flushed to disk yet: [`finish`](Self::finish) does that for all.
    ///
    /// # Errors
    /// When the system refuses something that it should not.
    pub fn seal(&self, entry: &Entry, file: &File) -> Result<()> {
        self.settle(file, entry)
    }

    /// Sets the metadata of all folders, deepest first, and flushes the whole file system to disk.
    ///
    /// # Errors
    /// When the system refuses something that it should not, or the flush fails: then nothing of the tree may be trusted.
    pub fn finish(self) -> Result<Applied> {
        let mut folders = std::mem::take(&mut *self.folders.lock().unwrap_or_else(PoisonError::into_inner));
        folders.sort_by(|a, b| tree_order(&b.path, &a.path));
        for entry in &folders {
            let folder = beneath::open(&self.root, &entry.path, FOLDER).map_err(|errno| self.failed("open", entry, errno))?;
            self.settle(&folder, entry)?;
        }
        rustix::fs::syncfs(&self.root).map_err(|errno| Error::io(format!("flush {} to disk", self.shown.display()), errno.into()))?;
        let warnings = self.warnings.into_inner().unwrap_or_else(PoisonError::into_inner);
        let lines = warnings.into_iter().map(|(what, (count, example))| format!("{what} ({count} times, for example {example})"));
        Ok(Applied { warnings: lines.collect(), lost: self.lost.into_inner().unwrap_or_else(PoisonError::into_inner) })
    }

    fn later(&self, entry: &Entry) {
        self.folders.lock().unwrap_or_else(PoisonError::into_inner).push(entry.clone());
    }

    fn failed(&self, doing: &str, entry: &Entry, errno: Errno) -> Error {
        let message = format!("{doing} {} in {}", entry.display_path(), self.shown.display());
        match errno {
            Errno::EXIST => Error::new(Kind::AlreadyExists, message).because(std::io::Error::from(errno)),
            _ => Error::io(message, errno.into()),
        }
    }

    fn warn(&self, what: &'static str, entry: &Entry, errno: Errno) {
        let mut warnings = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        let line = warnings.entry(what).or_insert_with(|| (0, format!("{}: {}", entry.display_path(), std::io::Error::from(errno))));
        line.0 += 1;
    }

    /// Runs what creates a name; in a resumed tree, again after taking away what stands there.
    fn afresh<T>(&self, parent: &OwnedFd, name: &OsStr, create: impl Fn() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
        match create() {
            Err(Errno::EXIST) if self.resumed => {
                rustix::fs::unlinkat(parent, name, AtFlags::empty())?;
                create()
            }
            other => other,
        }
    }

    /// The folder of this path, made where it is missing.
    fn parent(&self, path: &[u8]) -> Result<Arc<OwnedFd>> {
        let mut last = self.parent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, folder)) = last.as_ref()
            && known == path
        {
            return Ok(Arc::clone(folder));
        }
        let failed = |errno: Errno| Error::io(format!("open folder {} in {}", display_path(path), self.shown.display()), errno.into());
        let folder = match beneath::open(&self.root, path, FOLDER) {
            Err(Errno::NOENT) => self.make_parents(path).map_err(failed)?,
            other => other.map_err(failed)?,
        };
        let folder = Arc::new(folder);
        *last = Some((path.to_vec(), Arc::clone(&folder)));
        Ok(folder)
    }

    fn make_parents(&self, path: &[u8]) -> rustix::io::Result<OwnedFd> {
        let mut at = beneath::open(&self.root, b"", FOLDER)?;
        for part in path.split(|&byte| byte == b'/') {
            let part = OsStr::from_bytes(part);
            match rustix::fs::mkdirat(&at, part, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
            at = rustix::fs::openat(&at, part, FOLDER | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        }
        Ok(at)
    }

    fn link(&self, parent: &OwnedFd, name: &OsStr, entry: &Entry, target: &[u8]) -> Result<()> {
        let damaged = |why: &str| {
            Error::new(Kind::Damaged, format!("hard link {} has a target that {why}: {:?}", entry.display_path(), display_path(target)))
        };
        if target.is_empty() || !is_valid_path(target) {
            return Err(damaged("no source yields"));
        }
        let failed = |errno: Errno| self.failed("link", entry, errno);
        let (parents, target_name) = beneath::split(target);
        let (folder, target_name) = (beneath::open(&self.root, parents, FOLDER).map_err(failed)?, OsStr::from_bytes(target_name));
        let stat = rustix::fs::statat(&folder, target_name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(damaged("is not a regular file"));
        }
        // Without AT_SYMLINK_FOLLOW a link is made to the very name, whatever it has become.
        self.afresh(parent, name, || rustix::fs::linkat(&folder, target_name, parent, name, AtFlags::empty())).map_err(failed)
    }

    /// Owner, attributes, mode, times of an open file or folder.
    fn settle(&self, file: impl AsFd, entry: &Entry) -> Result<()> {
        let failed = |errno: Errno| self.failed("set the metadata of", entry, errno);
        let stat = rustix::fs::fstat(&file).map_err(failed)?;
        let mut mode = entry.mode & 0o7777;
        if (stat.st_uid, stat.st_gid) != (entry.uid, entry.gid) {
            let owner = (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)));
            if let Err(errno) = rustix::fs::fchown(&file, owner.0, owner.1) {
                self.owner_refused(entry, errno)?;
                // A set-id bit under another owner would give that owner's rights away.
                mode &= 0o1777;
            }
        }
        for (name, value) in &entry.xattrs {
            if let Err(errno) = rustix::fs::fsetxattr(&file, OsStr::from_bytes(name), value, XattrFlags::empty()) {
                let mut there = vec![0; value.len() + 1];
                let length = rustix::fs::fgetxattr(&file, OsStr::from_bytes(name), &mut there[..]);
                if length.is_ok_and(|length| there[..length] == **value) {
                    continue;
                }
                self.attribute_refused(entry, name, errno)?;
            }
        }
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode)).map_err(failed)?;
        rustix::fs::futimens(&file, &times(entry)).map_err(failed)
    }

    fn settle_link(&self, parent: &OwnedFd, name: &OsStr, entry: &Entry) -> Result<()> {
        self.own_by_name(parent, name, entry)?;
        for (attribute, value) in &entry.xattrs {
            let path = proc_path(parent, name.as_bytes());
            if let Err(errno) = rustix::fs::lsetxattr(&path, OsStr::from_bytes(attribute), value, XattrFlags::empty()) {
                self.attribute_refused(entry, attribute, errno)?;
            }
        }
        self.time_by_name(parent, name, entry)
    }

    fn settle_fifo(&self, parent: &OwnedFd, name: &OsStr, entry: &Entry) -> Result<()> {
        self.own_by_name(parent, name, entry)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let failed = |errno: Errno| self.failed("set the metadata of", entry, errno);
        // Opening only its path does not wait for a writer; by way of /proc that is as good as the file itself.
        let pipe = rustix::fs::openat(parent, name, flags, Mode::empty()).map_err(failed)?;
        let path = format!("/proc/self/fd/{}", pipe.as_raw_fd());
        rustix::fs::chmod(&path, Mode::from_raw_mode(entry.mode & 0o777)).map_err(failed)?;
        self.time_by_name(parent, name, entry)
    }

    fn own_by_name(&self, parent: &OwnedFd, name: &OsStr, entry: &Entry) -> Result<()> {
        let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).map_err(|errno| self.failed("look at", entry, errno))?;
        if (stat.st_uid, stat.st_gid) == (entry.uid, entry.gid) {
            return Ok(());
        }
        let owner = (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)));
        match rustix::fs::chownat(parent, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(()) => Ok(()),
            Err(errno) => self.owner_refused(entry, errno),
        }
    }

    fn time_by_name(&self, parent: &OwnedFd, name: &OsStr, entry: &Entry) -> Result<()> {
        rustix::fs::utimensat(parent, name, &times(entry), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| self.failed("set the times of", entry, errno))
    }

    fn owner_refused(&self, entry: &Entry, errno: Errno) -> Result<()> {
        match errno {
            Errno::PERM | Errno::INVAL | Errno::OPNOTSUPP => {
                self.warn(OWNERS, entry, errno);
                let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
                lost.owners += 1;
                lost.content += u64::from(rustix::process::geteuid().is_root());
                Ok(())
            }
            other => Err(self.failed("set the owner of", entry, other)),
        }
    }

    fn attribute_refused(&self, entry: &Entry, name: &[u8], errno: Errno) -> Result<()> {
        match errno {
            Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP | Errno::INVAL => {
                self.warn(ATTRIBUTES, entry, errno);
                let of_content = name.starts_with(b"user.") || name.starts_with(b"system.") || rustix::process::geteuid().is_root();
                let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
                lost.attributes += 1;
                lost.content += u64::from(of_content);
                Ok(())
            }
            other => Err(self.failed("set an extended attribute of", entry, other)),
        }
    }
}

/// Looks that a name is a folder and no link, and lets its owner work in it: it may have got its mode already.
fn reopen(parent: impl AsFd, name: &OsStr) -> rustix::io::Result<()> {
    let folder = rustix::fs::openat(parent, name, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    allow(&folder, FileType::Directory, Mode::RWXU)
}

/// Gives the owner these rights, and nobody else any, where they are missing. `file` may be open as a path only.
fn allow(file: &OwnedFd, kind: FileType, rights: Mode) -> rustix::io::Result<()> {
    let stat = rustix::fs::fstat(file)?;
    if FileType::from_raw_mode(stat.st_mode) != kind || Mode::from_raw_mode(stat.st_mode).contains(rights) {
        return Ok(());
    }
    // Opening may be what the mode forbids; by way of /proc a path is as good as the file itself.
    rustix::fs::chmod(format!("/proc/self/fd/{}", file.as_raw_fd()), rights)
}

/// Access time is set like the modification time: there is no better one.
fn times(entry: &Entry) -> Timestamps {
    let time = Timespec { tv_sec: entry.mtime_ns.div_euclid(1_000_000_000), tv_nsec: entry.mtime_ns.rem_euclid(1_000_000_000) };
    Timestamps { last_access: time, last_modification: time }
}

#[cfg(test)]
pub(crate) mod tests;

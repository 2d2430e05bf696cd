//! The walk over a data folder: what a backup keeps, in tree order, links to tablespaces followed.

use std::collections::HashSet;
use std::ffi::{CString, OsStr};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::entry::display_path;
use crate::error::{Error, Result};
use crate::source::Problem;
use crate::source::postgres::control;
use crate::source::postgres::layout::{self, Keep, OWN_FOLDERS, TABLESPACE_FOLDER};
use crate::source::postgres::remote::TablespaceLink;

/// Something that a backup keeps.
pub struct Found {
    pub path: Vec<u8>,
    pub kind: FoundKind,
    pub stat: Stat,
}

pub enum FoundKind {
    File,
    Folder,
    Link(Vec<u8>),
}

/// A folder whose names are being gone through.
struct Level {
    folder: Arc<OwnedFd>,
    path: Vec<u8>,
    /// In reverse order: the next is the last.
    names: Vec<CString>,
    /// Names of init forks here.
    inits: HashSet<Vec<u8>>,
}

/// Goes through a data folder.
pub struct Walk {
    root: Option<Arc<OwnedFd>>,
    /// `PG_15_202209061`: the only name in a tablespace that is of this cluster's version.
    version_folder: Vec<u8>,
    levels: Vec<Level>,
    /// Device and inode of the version folders of the tablespaces, which are taken as these and nowhere else: they may be in the data folder too.
    in_tablespaces: HashSet<(u64, u64)>,
    /// Folders that links led to, by path in the tree: files below are opened through them.
    pub followed: Vec<(Vec<u8>, Arc<OwnedFd>)>,
    pub tablespaces: Vec<TablespaceLink>,
    pub problems: Vec<Problem>,
}

impl Walk {
    pub fn new(root: Arc<OwnedFd>, version_folder: Vec<u8>) -> Self {
        Self {
            root: Some(root),
            version_folder,
            levels: Vec::new(),
            in_tablespaces: HashSet::new(),
            followed: Vec::new(),
            tablespaces: Vec::new(),
            problems: Vec::new(),
        }
    }

    /// The next thing in tree order; first the root itself. The control file is never among them. What vanishes meanwhile was dropped.
    pub fn next(&mut self) -> Result<Option<Found>> {
        if let Some(root) = self.root.take() {
            let stat = rustix::fs::fstat(&*root).map_err(|errno| failed(b"", errno))?;
            let names = list(&root).map_err(|errno| failed(b"", errno))?;
            self.in_tablespaces = self.version_folders(&root).map_err(|errno| failed(TABLESPACE_FOLDER, errno))?;
            self.levels.push(Level { folder: root, path: Vec::new(), names, inits: HashSet::new() });
            return Ok(Some(Found { path: Vec::new(), kind: FoundKind::Folder, stat }));
        }
        while let Some(level) = self.levels.last_mut() {
            let Some(name) = level.names.pop() else {
                self.levels.pop();
                continue;
            };
            if let Some(found) = self.look(&name)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// A tablespace that is made later is told by the log.
    fn version_folders(&self, root: &OwnedFd) -> std::result::Result<HashSet<(u64, u64)>, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = match rustix::fs::openat(root, TABLESPACE_FOLDER, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(HashSet::new()),
            opened => opened?,
        };
        let mut found = HashSet::new();
        for name in list(&folder)?.iter().filter(|name| layout::oid(name.to_bytes()).is_some()) {
            match rustix::fs::statat(&folder, [name.to_bytes(), b"/", &self.version_folder].concat(), AtFlags::empty()) {
                Ok(stat) => found.insert((stat.st_dev, stat.st_ino)),
                // Told when it is entered.
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(errno),
            };
        }
        Ok(found)
    }

    /// Looks at one name of the innermost folder. `None`: left out or gone.
    fn look(&mut self, name: &CString) -> Result<Option<Found>> {
        let Some(level) = self.levels.last() else { return Ok(None) };
        let folder = Arc::clone(&level.folder);
        let path = if level.path.is_empty() { name.to_bytes().to_vec() } else { [&level.path, &b"/"[..], name.to_bytes()].concat() };
        let keep = layout::keep(&path);
        if keep == Keep::No || path == control::PATH || layout::is_unlogged(&path, |init| level.inits.contains(init)) {
            return Ok(None);
        }
        let stat = match rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(failed(&path, errno)),
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Ok(Some(Found { path, kind: FoundKind::File, stat })),
            FileType::Directory => self.enter(&folder, name, path, keep, false),
            FileType::Symlink => self.look_at_link(&folder, name, path, keep, stat),
            // Sockets are made anew by whoever listens.
            FileType::Socket => Ok(None),
            _ => {
                self.problem(
                    &path,
                    "skipped-special",
                    "is a pipe or a device, which no server needs in its data folder; it is not backed up",
                );
                Ok(None)
            }
        }
    }

    fn look_at_link(&mut self, folder: &OwnedFd, name: &CString, path: Vec<u8>, keep: Keep, stat: Stat) -> Result<Option<Found>> {
        let in_tablespaces = path.strip_prefix(TABLESPACE_FOLDER).and_then(|rest| rest.strip_prefix(b"/"));
        if keep == Keep::Empty || OWN_FOLDERS.contains(&&path[..]) || in_tablespaces.is_some_and(|oid| layout::oid(oid).is_some()) {
            return self.enter(folder, name, path, keep, true);
        }
        let target = match rustix::fs::readlinkat(folder, name, Vec::new()) {
            Ok(target) => target.into_bytes(),
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(failed(&path, errno)),
        };
        if path.contains(&b'/') && !path.starts_with(b"log/") {
            self.problem(
                &path,
                "link-not-followed",
                "is a symbolic link where no server makes one: what it leads to is not backed up, and a restore is not whole; move it back, or into a tablespace",
            );
        }
        Ok(Some(Found { path, kind: FoundKind::Link(target), stat }))
    }

    fn enter(&mut self, parent: &OwnedFd, name: &CString, path: Vec<u8>, keep: Keep, is_link: bool) -> Result<Option<Found>> {
        let mut flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        if !is_link {
            flags |= OFlags::NOFOLLOW;
        }
        let oid = path.strip_prefix(TABLESPACE_FOLDER).and_then(|rest| rest.strip_prefix(b"/")).and_then(layout::oid);
        let opened = rustix::fs::openat(parent, name, flags, Mode::empty());
        let opened = match opened.and_then(|opened| Ok((list(&opened)?, rustix::fs::fstat(&opened)?, Arc::new(opened)))) {
            Ok(opened) => opened,
            // A dropped database, unless it is a link: then what it leads to is missing.
            Err(Errno::NOENT) if !is_link => return Ok(None),
            Err(Errno::NOENT) if oid.is_some() => {
                if rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
                    self.problem(
                        &path,
                        "tablespace-missing",
                        "the tablespace leads nowhere: nothing of it is in this backup; is its file system mounted?",
                    );
                }
                return Ok(None);
            }
            Err(errno) => return Err(failed(&path, errno)),
        };
        let (mut names, stat, folder) = opened;
        let is_of_tablespaces = path.strip_prefix(TABLESPACE_FOLDER).is_some_and(|rest| rest.starts_with(b"/"));
        if !is_of_tablespaces && self.in_tablespaces.contains(&(stat.st_dev, stat.st_ino)) {
            return Ok(None);
        }
        if is_link {
            self.followed.push((path.clone(), Arc::clone(&folder)));
        }
        if let Some(oid) = oid {
            names.retain(|name| name.to_bytes() == self.version_folder);
            if names.is_empty() {
                let message = format!(
                    "the tablespace has no folder {}: nothing of it is in this backup; is its file system mounted?",
                    display_path(&self.version_folder)
                );
                self.problem(&path, "tablespace-missing", &message);
            }
            let location =
                if is_link { Some(rustix::fs::readlinkat(parent, name, Vec::new()).map_err(|errno| failed(&path, errno))?) } else { None };
            self.tablespaces.push(TablespaceLink { oid, location: location.map(CString::into_bytes) });
        }
        if keep == Keep::Empty {
            let kept = layout::kept_in_empty(&path);
            names.retain(|name| kept.contains(&&[&path, &b"/"[..], name.to_bytes()].concat()[..]));
        }
        let inits = names.iter().map(|name| name.to_bytes()).filter(|name| name.ends_with(b"_init")).map(<[u8]>::to_vec).collect();
        self.levels.push(Level { folder, path: path.clone(), names, inits });
        Ok(Some(Found { path, kind: FoundKind::Folder, stat }))
    }

    fn problem(&mut self, path: &[u8], kind: &str, message: &str) {
        self.problems.push(Problem { object: display_path(path), kind: kind.into(), message: message.into() });
    }
}

/// A base backup without something that it could not read cannot be trusted at all, so this ends the run.
pub fn failed(path: &[u8], errno: Errno) -> Error {
    let error = Error::io(format!("read {} of the data folder", display_path(path)), errno.into());
    match errno {
        Errno::ACCESS | Errno::PERM => error.hint("run lifeboat as the user that owns the data folder (or as root)"),
        Errno::IO => error.hint("the disk or file system fails: look at the kernel's log"),
        Errno::MFILE | Errno::NFILE | Errno::NOMEM => error.hint("raise the limits of the lifeboat process (open files, memory)"),
        _ => error,
    }
}

/// The names in a folder, last one first.
fn list(folder: &OwnedFd) -> std::result::Result<Vec<CString>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    names.sort_unstable_by(|a, b| b.to_bytes().cmp(a.to_bytes()));
    names.dedup();
    Ok(names)
}

/// Metadata of a file outside the data folder.
pub fn stat_of(path: &[u8]) -> std::result::Result<Stat, Errno> {
    rustix::fs::stat(OsStr::from_bytes(path))
}

//! The walk over a tree: names in tree order, one folder's names in memory at a time for each level.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::entry::display_path;
use crate::error::{Error, Result};
use crate::source::Problem;
use crate::source::files::exclude::Exclude;
use crate::source::files::{beneath, xattr};

/// How folders are opened: the last flag spares an access-time update and is only allowed to the owner.
const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Something found, as `lstat` shows it.
pub struct Found {
    pub path: Vec<u8>,
    pub stat: Stat,
    /// Of a symbolic link.
    pub target: Vec<u8>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A folder whose names are being gone through.
struct Level {
    folder: OwnedFd,
    path: Vec<u8>,
    /// In reverse order: the next is the last.
    names: Vec<CString>,
}

/// Goes through a tree. A folder is listed when it is yielded, so a folder that cannot be listed is a problem right then.
pub struct Walk {
    root: Option<OwnedFd>,
    levels: Vec<Level>,
    exclude: Exclude,
    /// How many were left out because of `exclude`; what is in a folder that was left out is not counted.
    pub excluded: u64,
    pub problems: Vec<Problem>,
}

impl Walk {
    pub fn new(root: OwnedFd, exclude: Exclude) -> Self {
        Self { root: Some(root), levels: Vec::new(), exclude, excluded: 0, problems: Vec::new() }
    }

    /// The next thing in tree order; first the root itself.
    pub fn next(&mut self) -> Result<Option<Found>> {
        if let Some(root) = self.root.take() {
            return self.enter_root(root).map(Some);
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

    fn enter_root(&mut self, root: OwnedFd) -> Result<Found> {
        let failed = |errno: Errno| Error::io("list the root folder", errno.into());
        let stat = rustix::fs::fstat(&root).map_err(failed)?;
        let mut xattrs = Vec::new();
        match xattr::read_all(&proc_path(&root, b".")) {
            Ok(read) => xattrs = read,
            Err(errno) => note(&mut self.problems, b"", "unreadable-attribute", errno),
        }
        let names = list(&root).map_err(failed)?;
        self.levels.push(Level { folder: root, path: Vec::new(), names });
        Ok(Found { path: Vec::new(), stat, target: Vec::new(), xattrs })
    }

    /// Looks at one name of the innermost folder. `None`: left out, or a problem by now.
    fn look(&mut self, name: &CString) -> Result<Option<Found>> {
        let Some(level) = self.levels.last() else { return Ok(None) };
        let mut path = level.path.clone();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name.to_bytes());
        let stat = match rustix::fs::statat(&level.folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(errno) => {
                // What cannot even be looked at is a problem unless its name is left out anyway.
                if self.exclude.matches(&path, name.to_bytes(), false) {
                    self.excluded += 1;
                } else {
                    lost(&mut self.problems, &path, errno)?;
                }
                return Ok(None);
            }
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        if self.exclude.matches(&path, name.to_bytes(), kind == FileType::Directory) {
            self.excluded += 1;
            return Ok(None);
        }
        let mut found = Found { path, stat, target: Vec::new(), xattrs: Vec::new() };
        let mut inner = None;
        match kind {
            FileType::RegularFile | FileType::Fifo => {}
            FileType::Symlink => match rustix::fs::readlinkat(&level.folder, name, Vec::new()) {
                Ok(target) => found.target = target.into_bytes(),
                Err(errno) => {
                    lost(&mut self.problems, &found.path, errno)?;
                    return Ok(None);
                }
            },
            FileType::Directory => match enter(&level.folder, name, &stat) {
                Ok((folder, names)) => inner = Some(Level { folder, path: found.path.clone(), names }),
                Err(errno) => {
                    lost(&mut self.problems, &found.path, errno)?;
                    // A folder that exists but may not be listed is kept as an empty one, beside the problem.
                    if matches!(errno, Errno::NOENT | Errno::NOTDIR | Errno::LOOP) {
                        return Ok(None);
                    }
                }
            },
            other => {
                let what = match other {
                    FileType::Socket => "a socket",
                    FileType::BlockDevice | FileType::CharacterDevice => "a device",
                    _ => "of an unknown kind",
                };
                self.problems.push(Problem {
                    object: display_path(&found.path),
                    kind: "skipped-special".into(),
                    message: format!("is {what}, which is not backed up; exclude it to say that this is intended"),
                });
                return Ok(None);
            }
        }
        match xattr::read_all(&proc_path(&level.folder, name.to_bytes())) {
            Ok(read) => found.xattrs = read,
            // Gone again, which opening it will tell, or changed into something else.
            Err(Errno::NOENT) => {}
            Err(errno) => note(&mut self.problems, &found.path, "unreadable-attribute", errno),
        }
        self.levels.extend(inner);
        Ok(Some(found))
    }
}

/// Keeps what could not be reached as a problem; an error of this process itself ends the walk.
fn lost(problems: &mut Vec<Problem>, path: &[u8], errno: Errno) -> Result<()> {
    if is_ours(errno) {
        return Err(Error::io(format!("walk to {}", display_path(path)), errno.into())
            .hint("raise the limits of the lifeboat process (open files, memory)"));
    }
    note(problems, path, problem_kind(errno), errno);
    Ok(())
}

fn note(problems: &mut Vec<Problem>, path: &[u8], kind: &str, errno: Errno) {
    let message = std::io::Error::from(errno).to_string();
    problems.push(Problem { object: display_path(path), kind: kind.into(), message });
}

/// Whether an error is about this process and not about the file.
pub fn is_ours(errno: Errno) -> bool {
    matches!(errno, Errno::MFILE | Errno::NFILE | Errno::NOMEM)
}

/// The word for a file that could not be reached.
pub fn problem_kind(errno: Errno) -> &'static str {
    match errno {
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP => "vanished",
        _ => "unreadable",
    }
}

/// Opens a folder that was just looked at, and lists it.
fn enter(parent: &OwnedFd, name: &CString, seen: &Stat) -> Result<(OwnedFd, Vec<CString>), Errno> {
    let open = |flags| rustix::fs::openat(parent, name, flags, Mode::empty());
    let folder = open(FOLDER | OFlags::NOATIME).or_else(|errno| if errno == Errno::PERM { open(FOLDER) } else { Err(errno) })?;
    let now = rustix::fs::fstat(&folder)?;
    if (now.st_dev, now.st_ino) != (seen.st_dev, seen.st_ino) && now.st_dev == seen.st_dev {
        // Another folder of that name by now: the metadata at hand would not be its own.
        return Err(Errno::NOENT);
    }
    let names = list(&folder)?;
    Ok((folder, names))
}

/// The names in a folder, last one first.
fn list(folder: &OwnedFd) -> Result<Vec<CString>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if !matches!(name.to_bytes(), b"." | b"..") {
            names.push(name.to_owned());
        }
    }
    names.sort_unstable_by(|a, b| b.to_bytes().cmp(a.to_bytes()));
    // A name that is listed twice (a folder changed while it was listed) is one entry.
    names.dedup();
    Ok(names)
}

/// A path by which calls that take no descriptor of a folder reach a name in it, and nothing else.
pub fn proc_path(folder: &OwnedFd, name: &[u8]) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(OsStr::from_bytes(name))
}

/// Opens a regular file for reading. Never blocks, follows no link, leaves the access time where allowed.
pub fn open_file(root: &OwnedFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    match beneath::open(root, path, flags | OFlags::NOATIME) {
        Err(Errno::PERM) => beneath::open(root, path, flags),
        other => other,
    }
}

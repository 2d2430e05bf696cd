//! Turning what the walk finds into entries, and reading files such that a change meanwhile is noticed.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::{Advice, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use serde_json::json;

use crate::entry::{Entry, EntryKind, Layout, display_path};
use crate::error::{Error, Kind, Result};
use crate::event::Cancel;
use crate::source::files::exclude::Exclude;
use crate::source::files::walk::{Found, Walk, is_ours, open_file, problem_kind};
use crate::source::{Closed, Finish, Problem, SourceSnapshot};

/// Times nearer to the beginning than this do not prove that a file did not change (see the module documentation of `files`).
const RACY_NS: i128 = 2_000_000_000;
/// Files from this size on are announced to the kernel as read in order.
const ANNOUNCE_BYTES: i64 = 1 << 20;

/// An empty tree is what a missing mount looks like.
pub const EMPTY: &str = "there is nothing in this folder to back up: is the file system mounted?";
/// The folder holds something, and the plan leaves all of it out.
pub const ALL_EXCLUDED: &str = "`exclude` leaves nothing of this folder to back up: look at its patterns";

/// A tree being walked and read.
pub struct FilesSnapshot {
    root: Arc<OwnedFd>,
    walk: Walk,
    page_size: Option<u32>,
    began_ns: i128,
    cancel: Cancel,
    /// The first path of each file that has several, and those that were yielded as links to it.
    linked: HashMap<(u64, u64), Linked>,
    /// Files between `open` and `close`, by path.
    opened: HashMap<Vec<u8>, Opened>,
    problems: Vec<Problem>,
    counts: Counts,
}

struct Linked {
    first: Vec<u8>,
    others: Vec<Vec<u8>>,
}

struct Opened {
    file: Arc<File>,
    before: Stat,
}

/// How many entries of each kind.
#[derive(Debug, Default, Clone, Copy)]
pub struct Counts {
    files: u64,
    folders: u64,
    symlinks: u64,
    hardlinks: u64,
    fifos: u64,
}

impl Counts {
    /// Whether there is nothing but the root itself.
    pub fn is_empty(&self) -> bool {
        self.folders <= 1 && self.files + self.symlinks + self.hardlinks + self.fifos == 0
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { files, folders, symlinks, hardlinks, fifos } = self;
        write!(f, "{files} files, {folders} folders, {symlinks} symbolic links, {hardlinks} hard links, {fifos} pipes")
    }
}

/// Opens the root folder, following a link to it once; also yields what it resolved to.
pub fn open_root(path: &Path) -> Result<(OwnedFd, PathBuf)> {
    let failed = |source: std::io::Error| {
        let error = Error::io(format!("open folder {}", path.display()), source);
        match error.kind() {
            Kind::NotFound => error.hint("check `path` in the plan: there is no such folder"),
            _ => error.hint("`path` must be a folder that the user that runs lifeboat may list"),
        }
    };
    let resolved = path.canonicalize().map_err(failed)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = rustix::fs::open(&resolved, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?;
    Ok((root, resolved))
}

impl FilesSnapshot {
    pub fn begin(path: &Path, exclude: Exclude, page_size: Option<u32>, cancel: Cancel) -> Result<Self> {
        let (root, _) = open_root(path)?;
        let began_ns =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i128::try_from(since.as_nanos()).unwrap_or(i128::MAX));
        let walked = root.try_clone().map_err(|source| Error::io(format!("open folder {}", path.display()), source))?;
        let mut problems = Vec::new();
        if !Path::new("/proc/self/fd").exists() {
            let message = "extended attributes are not backed up: there is no /proc here".to_owned();
            problems.push(Problem { object: ".".into(), kind: "unreadable-attribute".into(), message });
        }
        Ok(Self {
            root: Arc::new(root),
            walk: Walk::new(walked, exclude),
            page_size,
            began_ns,
            cancel,
            linked: HashMap::new(),
            opened: HashMap::new(),
            problems,
            counts: Counts::default(),
        })
    }

    fn entry(&mut self, found: Found) -> Entry {
        let Found { path, stat, target, xattrs } = found;
        let (kind, stamp) = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                self.counts.folders += 1;
                (EntryKind::Directory, Vec::new())
            }
            FileType::Symlink => {
                self.counts.symlinks += 1;
                (EntryKind::Symlink { target }, Vec::new())
            }
            FileType::Fifo => {
                self.counts.fifos += 1;
                (EntryKind::Fifo, Vec::new())
            }
            _ => {
                if let Some(target) = self.earlier_name(&path, &stat) {
                    self.counts.hardlinks += 1;
                    (EntryKind::Hardlink { target }, Vec::new())
                } else {
                    self.counts.files += 1;
                    let size = u64::try_from(stat.st_size).unwrap_or(0);
                    (EntryKind::File { size: Some(size), layout: self.layout(size) }, stamp(&stat, self.began_ns))
                }
            }
        };
        Entry { path, kind, mode: stat.st_mode & 0o7777, uid: stat.st_uid, gid: stat.st_gid, mtime_ns: mtime_ns(&stat), stamp, xattrs }
    }

    fn layout(&self, size: u64) -> Layout {
        match self.page_size {
            Some(page) if size > 0 && size.is_multiple_of(u64::from(page)) => Layout::Pages(page),
            _ => Layout::Content,
        }
    }

    /// The earlier path of a file that has several names.
    fn earlier_name(&mut self, path: &[u8], stat: &Stat) -> Option<Vec<u8>> {
        if stat.st_nlink < 2 {
            return None;
        }
        let linked = self.linked.entry((stat.st_dev, stat.st_ino)).or_insert_with(|| Linked { first: Vec::new(), others: Vec::new() });
        if linked.first.is_empty() {
            linked.first = path.to_vec();
            return None;
        }
        linked.others.push(path.to_vec());
        Some(linked.first.clone())
    }

    fn problem(&mut self, path: &[u8], kind: &str, message: impl Into<String>) {
        self.problems.push(Problem { object: display_path(path), kind: kind.into(), message: message.into() });
    }

    /// A file that was listed is not there for reading. Other names of it, already yielded as links to it, are lost with it.
    fn lost(&mut self, path: &[u8], kind: &str, message: &str) {
        self.problem(path, kind, message);
        let Some(inode) = self.linked.iter().find_map(|(inode, linked)| (linked.first == path).then_some(*inode)) else { return };
        if let Some(linked) = self.linked.remove(&inode) {
            for other in linked.others {
                self.problem(&other, kind, format!("is a link to {}, which could not be read", display_path(path)));
            }
        }
    }
}

impl SourceSnapshot for FilesSnapshot {
    fn estimate(&self) -> Option<(u64, u64)> {
        None
    }

    fn next_entry(&mut self) -> Result<Option<Entry>> {
        self.cancel.check()?;
        let found = self.walk.next()?;
        Ok(found.map(|found| self.entry(found)))
    }

    fn open(&mut self, entry: &Entry) -> Result<Option<Box<dyn Read + Send>>> {
        let shown = entry.display_path();
        let opened = open_file(&self.root, &entry.path).and_then(|file| Ok((rustix::fs::fstat(&file)?, file)));
        let (before, file) = match opened {
            Ok(opened) => opened,
            Err(errno) if is_ours(errno) => {
                return Err(
                    Error::io(format!("open {shown}"), errno.into()).hint("raise the limits of the lifeboat process (open files, memory)")
                );
            }
            Err(errno) => {
                self.lost(&entry.path, problem_kind(errno), &std::io::Error::from(errno).to_string());
                return Ok(None);
            }
        };
        if FileType::from_raw_mode(before.st_mode) != FileType::RegularFile {
            self.lost(&entry.path, "vanished", "is not a regular file any more");
            return Ok(None);
        }
        if let EntryKind::File { size: Some(size), .. } = &entry.kind
            && (u64::try_from(before.st_size) != Ok(*size) || mtime_ns(&before) != entry.mtime_ns)
        {
            self.problem(&entry.path, "changed-while-read", "changed after it was listed");
        }
        if before.st_size >= ANNOUNCE_BYTES {
            // Only advice: a file system that does not know it reads all the same.
            let _ = rustix::fs::fadvise(&file, 0, None, Advice::Sequential);
        }
        let file = Arc::new(File::from(file));
        self.opened.insert(entry.path.clone(), Opened { file: Arc::clone(&file), before });
        Ok(Some(Box::new(file)))
    }

    fn close(&mut self, entry: &Entry, bytes_read: u64) -> Result<Closed> {
        let Some(Opened { file, before }) = self.opened.remove(&entry.path) else {
            return Err(Error::new(Kind::Bug, format!("{} was closed but not open", entry.display_path())));
        };
        let after = rustix::fs::fstat(&*file).map_err(|errno| Error::io(format!("look at {}", entry.display_path()), errno.into()))?;
        let times = |stat: &Stat| (stat.st_size, mtime_ns(stat), stat.st_ctime, stat.st_ctime_nsec);
        // A name given or taken while reading moves the change time of the file but not its bytes; nothing tells the two apart here.
        let mut stamp_holds = true;
        if times(&before) != times(&after) {
            stamp_holds = false;
            self.problem(
                &entry.path,
                "changed-while-read",
                "changed while it was read; what was read is kept but may be neither the old nor the new content",
            );
        } else if u64::try_from(after.st_size) != Ok(bytes_read) {
            stamp_holds = false;
            self.problem(
                &entry.path,
                "changed-while-read",
                format!("has {} bytes by its metadata, but {bytes_read} were read", after.st_size),
            );
        }
        Ok(Closed { stamp_holds })
    }

    fn unread(&mut self, entry: &Entry, error: Error) -> Result<()> {
        self.opened.remove(&entry.path);
        let io = std::error::Error::source(&error).and_then(|cause| cause.downcast_ref::<std::io::Error>());
        match io.map(|io| (Errno::from_io_error(io), io.to_string())) {
            Some((Some(errno), text)) if !is_ours(errno) => {
                self.lost(&entry.path, "unreadable", &text);
                Ok(())
            }
            _ => Err(error),
        }
    }

    fn finish(mut self: Box<Self>) -> Result<Finish> {
        let mut problems = std::mem::take(&mut self.walk.problems);
        problems.append(&mut self.problems);
        let Counts { files, folders, symlinks, hardlinks, fifos } = self.counts;
        if problems.is_empty() && self.counts.is_empty() {
            let (kind, message) = if self.walk.excluded > 0 { ("all-excluded", ALL_EXCLUDED) } else { ("empty-folder", EMPTY) };
            problems.push(Problem { object: ".".into(), kind: kind.into(), message: message.into() });
        }
        let consistency = json!({ "files": files, "folders": folders, "symlinks": symlinks, "hardlinks": hardlinks, "fifos": fifos });
        Ok(Finish { consistency, fingerprints: Vec::new(), problems })
    }
}

/// Why there is nothing below the root; `None`: there is something.
pub fn nothing(mut snapshot: FilesSnapshot) -> Result<Option<&'static str>> {
    let _root = snapshot.walk.next()?;
    if snapshot.walk.next()?.is_some() || !snapshot.walk.problems.is_empty() {
        return Ok(None);
    }
    Ok(Some(if snapshot.walk.excluded > 0 { ALL_EXCLUDED } else { EMPTY }))
}

/// Lists a whole tree and opens every file in it, without reading.
pub fn count_readable(snapshot: FilesSnapshot) -> Result<(Counts, Vec<Problem>)> {
    let (counts, problems, _) = count_readable_until(snapshot, None)?;
    Ok((counts, problems))
}

/// Like [`count_readable`], until a moment; the last of the three says whether it came to the end of the tree.
pub fn count_readable_until(mut snapshot: FilesSnapshot, deadline: Option<Instant>) -> Result<(Counts, Vec<Problem>, bool)> {
    let mut whole = true;
    while let Some(entry) = snapshot.next_entry()? {
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            whole = false;
            break;
        }
        if matches!(entry.kind, EntryKind::File { .. }) && snapshot.open(&entry)?.is_some() {
            snapshot.opened.clear();
        }
    }
    let mut problems = std::mem::take(&mut snapshot.walk.problems);
    problems.append(&mut snapshot.problems);
    Ok((snapshot.counts, problems, whole))
}

fn mtime_ns(stat: &Stat) -> i64 {
    stat.st_mtime.saturating_mul(1_000_000_000).saturating_add_unsigned(stat.st_mtime_nsec)
}

/// See the module documentation of `files`.
fn stamp(stat: &Stat, began_ns: i128) -> Vec<u8> {
    let times = [(stat.st_mtime, stat.st_mtime_nsec), (stat.st_ctime, stat.st_ctime_nsec)];
    if times.iter().any(|&(secs, nanos)| i128::from(secs) * 1_000_000_000 + i128::from(nanos) > began_ns - RACY_NS) {
        return Vec::new();
    }
    let mut stamp = vec![1];
    stamp.extend_from_slice(&stat.st_size.to_le_bytes());
    for (secs, nanos) in times {
        stamp.extend_from_slice(&secs.to_le_bytes());
        stamp.extend_from_slice(&u32::try_from(nanos).unwrap_or(u32::MAX).to_le_bytes());
    }
    stamp.extend_from_slice(&stat.st_ino.to_le_bytes());
    stamp
}

#[cfg(test)]
mod tests;

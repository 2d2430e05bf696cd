//! Reading the data folder of a running server, between `pg_backup_start` and `pg_backup_stop`.
//!
//! What is read is torn and of many moments; replay of the log from the start to the end of the backup makes it one. So a file that vanishes was
//! dropped, one that shrinks was truncated, and one that grows is read up to the size that it had when it was opened, in whole blocks: replay does the rest.
//! What cannot be read at all ends the run. Symbolic links of tablespaces are followed.
//!
//! # Order
//! Entries come in tree order with two exceptions at the end: files of [`CONFIGURATION_FOLDER`], then `global/pg_control`, which must be read after all
//! others are closed: on a standby it tells up to where replay must go before what was read is consistent.
//!
//! # Stamps
//! A version byte (1), then little endian: system identifier, device, inode, size (u64 each), modification and change time (each i64 seconds, u32 nanoseconds).
//! Equal stamps mean equal bytes, because whoever changes a file changes its change time. Beware of a write that set the times, stalled, and puts its bytes
//! there after we have read: so a stamp is given only where both times lie before `pg_backup_start` was *called*. The checkpoint that it makes waits for
//! all writes that are under way, so by the time that we read, they have ended. Two seconds of margin are for clocks and coarse time stamps. A standby makes no
//! checkpoint of its own; there the margin is a minute. A file with a page that was not valid must not be vouched for either: see [`LocalReader::close`].

mod read;
mod walk;

use std::collections::{HashMap, VecDeque};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Cursor, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{Advice, AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::entry::{Entry, EntryKind, Layout, display_path, is_valid_path, tree_order};
use crate::error::{Error, Kind, Result};
use crate::event::Cancel;
use crate::source::files::walk::open_file;
use crate::source::postgres::configuration::is_outside;
use crate::source::postgres::control::{self, Control, State};
use crate::source::postgres::findings::{Findings, Judge};
use crate::source::postgres::layout::{self, CONFIGURATION_FOLDER, RelationFile};
use crate::source::postgres::local::read::{Check, FileReader};
use crate::source::postgres::local::walk::{Found, FoundKind, Walk, failed, stat_of};
use crate::source::postgres::lsn::Lsn;
use crate::source::postgres::remote::TablespaceLink;
use crate::source::postgres::throttle::{Throttle, Throttled};
use crate::source::{Closed, Problem};

const SETTLED_NS: i128 = 2_000_000_000;
const SETTLED_STANDBY_NS: i128 = 60_000_000_000;
/// Files from this size on are announced to the kernel as read in order.
const ANNOUNCE_BYTES: u64 = 1 << 20;
/// The server writes the control file at any time, so a torn one is read again this often, with this pause.
const CONTROL_TRIES: u32 = 20;
const CONTROL_PAUSE: Duration = Duration::from_millis(10);

/// How a data folder is to be read.
pub struct LocalSettings {
    pub data_directory: PathBuf,
    /// Configuration files (absolute paths); those in the data folder are taken anyway.
    pub configuration: Vec<PathBuf>,
    /// Where replay begins, as `pg_backup_start` said.
    pub start: Lsn,
    /// The moment before `pg_backup_start` was called, by this machine's clock.
    pub called: SystemTime,
    /// Gives no stamps, so that everything is read and checked.
    pub full: bool,
    pub throttle: Option<Throttle>,
    pub cancel: Cancel,
}

/// A data folder being read. Readers that it hands out may be used in several threads.
pub struct LocalReader {
    settings: LocalSettings,
    root: Arc<OwnedFd>,
    control: Control,
    version_folder: Vec<u8>,
    walk: Walk,
    tail: Option<VecDeque<Tail>>,
    opened: HashMap<Vec<u8>, Option<Arc<Mutex<Findings>>>>,
    control_bytes: Vec<u8>,
    /// The control file as it is in the backup.
    last_control: Option<Control>,
    found: Vec<Findings>,
    problems: Vec<Problem>,
}

/// What comes after the walk.
enum Tail {
    Configuration(Entry),
    Control,
}

impl LocalReader {
    /// Opens the folder. The server must run and be between start and stop of a backup: nothing here can tell.
    ///
    /// # Errors
    /// [`Kind::Usage`] when it is no data folder; [`Kind::Damaged`] for its control file; as the system says.
    pub fn begin(settings: LocalSettings) -> Result<Self> {
        let shown = settings.data_directory.display().to_string();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(&settings.data_directory, flags, Mode::empty()).map_err(|errno| {
            Error::io(format!("open data folder {shown}"), errno.into())
                .hint("`data_directory` is the server's data folder on this machine, readable for the user that runs lifeboat")
        })?;
        let version = match open_file(&root, b"PG_VERSION") {
            Ok(file) => {
                let mut text = String::new();
                File::from(file)
                    .take(64)
                    .read_to_string(&mut text)
                    .map_err(|error| Error::io(format!("read {shown}/PG_VERSION"), error))?;
                text.trim().to_owned()
            }
            Err(Errno::NOENT) => {
                return Err(Error::new(Kind::Usage, format!("{shown} is no data folder of a PostgreSQL server: it has no PG_VERSION"))
                    .hint("SHOW data_directory tells the folder"));
            }
            Err(errno) => return Err(failed(b"PG_VERSION", errno)),
        };
        let (control, _) = read_control(&root)?;
        let version_folder = format!("PG_{version}_{}", control.catalog_version).into_bytes();
        let root = Arc::new(root);
        let walk = Walk::new(Arc::clone(&root), version_folder.clone());
        Ok(Self {
            settings,
            root,
            control,
            version_folder,
            walk,
            tail: None,
            opened: HashMap::new(),
            control_bytes: Vec::new(),
            last_control: None,
            found: Vec::new(),
            problems: Vec::new(),
        })
    }

    /// The control file as it was at the beginning.
    #[must_use]
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// The control file as it is now.
    ///
    /// # Errors
    /// As [`Self::begin`].
    pub fn control_now(&self) -> Result<Control> {
        read_control(&self.root).map(|(control, _)| control)
    }

    /// Whether the server that works in this folder has a replication slot: each one has a folder there, also a temporary one. A name that nobody else has
    /// proves which server that is, also among copies of one cluster.
    ///
    /// # Errors
    /// As the system says.
    pub fn has_slot(&self, name: &str) -> Result<bool> {
        let path = format!("pg_replslot/{name}/state");
        match rustix::fs::statat(&self.root, path.as_str(), AtFlags::empty()) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(failed(path.as_bytes(), errno)),
        }
    }

    /// Whether an entry was opened and not yet closed.
    #[must_use]
    pub fn is_open(&self, entry: &Entry) -> bool {
        self.opened.contains_key(&entry.path)
    }

    /// Tablespaces passed so far; all of them after the last entry.
    #[must_use]
    pub fn tablespaces(&self) -> &[TablespaceLink] {
        &self.walk.tablespaces
    }

    /// Bytes and entries to expect, by a walk of its own that opens no file.
    ///
    /// # Errors
    /// As the system says.
    pub fn estimate(&self) -> Result<(u64, u64)> {
        let mut walk = Walk::new(Arc::clone(&self.root), self.version_folder.clone());
        let (mut bytes, mut entries) = (0u64, 0u64);
        while let Some(found) = walk.next()? {
            self.settings.cancel.check()?;
            entries += 1;
            if let FoundKind::File = found.kind {
                bytes = bytes.saturating_add(size(&found.stat));
            }
        }
        Ok((bytes, entries))
    }

    /// The next entry; see the module documentation for the order.
    ///
    /// # Errors
    /// When something cannot be listed; [`Kind::Bug`] when the control file is due while other files are still open.
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        self.settings.cancel.check()?;
        if self.tail.is_none() {
            if let Some(found) = self.walk.next()? {
                return Ok(Some(self.entry(found)));
            }
            self.problems.append(&mut self.walk.problems);
            let mut tail: VecDeque<Tail> = self.configuration()?.into_iter().map(Tail::Configuration).collect();
            tail.push_back(Tail::Control);
            self.tail = Some(tail);
        }
        match self.tail.as_mut().and_then(VecDeque::pop_front) {
            Some(Tail::Configuration(entry)) => Ok(Some(entry)),
            Some(Tail::Control) => self.control_entry().map(Some),
            None => Ok(None),
        }
    }

    /// Opens the bytes of a file entry, once. `None`: it is gone, which is no problem unless it is configuration.
    ///
    /// # Errors
    /// When it is there and cannot be read: the backup would not be one.
    pub fn open(&mut self, entry: &Entry) -> Result<Option<Box<dyn Read + Send>>> {
        if entry.path == control::PATH {
            self.opened.insert(entry.path.clone(), None);
            return Ok(Some(Box::new(Cursor::new(std::mem::take(&mut self.control_bytes)))));
        }
        let opened = match outside(&entry.path) {
            Some(path) => open_outside(path),
            None => self.open_inside(&entry.path),
        };
        let file = match opened {
            Ok(file) => File::from(file),
            Err(errno) if outside(&entry.path).is_some() => {
                self.lost_configuration(&entry.path, errno);
                return Ok(None);
            }
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(failed(&entry.path, errno)),
        };
        let stat = rustix::fs::fstat(&file).map_err(|errno| failed(&entry.path, errno))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Error::new(Kind::Failed, format!("{} of the data folder is not a file any more", entry.display_path())));
        }
        let (mut limit, mut check) = (size(&stat), None);
        let mut findings = None;
        if let Some(relation) = RelationFile::parse(&entry.path) {
            limit -= limit % u64::from(self.control.block_bytes);
            if self.control.data_checksums {
                let first_block = relation.first_block(self.control.segment_blocks).ok_or_else(|| {
                    Error::new(Kind::Failed, format!("{} of the data folder is a segment that no relation can have", entry.display_path()))
                })?;
                let judge = Judge { block_bytes: self.control.block_bytes, start: self.settings.start };
                let shared = Arc::new(Mutex::new(Findings::new(&entry.path)));
                findings = Some(Arc::clone(&shared));
                check = Some(Check { judge, first_block, findings: shared });
            }
        }
        if limit >= ANNOUNCE_BYTES {
            // Only advice: a file system that does not know it reads all the same.
            let _ = rustix::fs::fadvise(&file, 0, None, Advice::Sequential);
        }
        self.opened.insert(entry.path.clone(), findings);
        let reader = FileReader::new(Arc::new(file), limit, check, self.settings.cancel.clone());
        Ok(Some(match &self.settings.throttle {
            Some(throttle) => Box::new(Throttled::new(reader, throttle.clone())),
            None => Box::new(reader),
        }))
    }

    /// After a file was read to its end (by its reader).
    ///
    /// # Errors
    /// [`Kind::Bug`] when it was not open.
    pub fn close(&mut self, entry: &Entry) -> Result<Closed> {
        let Some(findings) = self.opened.remove(&entry.path) else {
            return Err(Error::new(Kind::Bug, format!("{} was closed but not open", entry.display_path())));
        };
        let Some(findings) = findings else { return Ok(Closed::SOUND) };
        let findings = std::mem::take(&mut *findings.lock().unwrap_or_else(PoisonError::into_inner));
        let stamp_holds = findings.is_empty();
        if !stamp_holds {
            self.found.push(findings);
        }
        Ok(Closed { stamp_holds })
    }

    /// Ends the reading; `stop`: the position that `pg_backup_stop` said. Empty: all is as it should be.
    ///
    /// # Errors
    /// [`Kind::Bug`] when not everything was read; [`Kind::Failed`] when the server that said `stop` does not work in this folder.
    pub fn finish(self, stop: Lsn) -> Result<Vec<Problem>> {
        let Some(control) = self.last_control.filter(|_| self.opened.is_empty() && self.tail.as_ref().is_some_and(VecDeque::is_empty))
        else {
            return Err(Error::new(Kind::Bug, "reading of a data folder was finished before its end"));
        };
        // A standby ends a backup where this stands by then.
        if control.state == State::InArchiveRecovery && control.min_recovery > stop {
            let what = format!("it must be replayed to {}, and the server ended the backup at {stop}", control.min_recovery);
            return Err(not_the_servers(&self.settings.data_directory, &what));
        }
        let mut problems = self.problems;
        problems.extend(self.found.iter().filter_map(|findings| findings.problem(stop)));
        Ok(problems)
    }

    fn entry(&self, found: Found) -> Entry {
        let Found { path, kind, stat } = found;
        let mut stamped = Vec::new();
        let kind = match kind {
            FoundKind::Folder => EntryKind::Directory,
            FoundKind::Link(target) => EntryKind::Symlink { target },
            FoundKind::File => {
                if !self.settings.full {
                    stamped = self.stamp(&stat);
                }
                let layout = layout::layout(&path, self.control.block_bytes);
                EntryKind::File { size: Some(size(&stat)), layout }
            }
        };
        Entry { stamp: stamped, ..bare(path, kind, &stat) }
    }

    fn stamp(&self, stat: &Stat) -> Vec<u8> {
        let margin = if self.control.state == State::InArchiveRecovery { SETTLED_STANDBY_NS } else { SETTLED_NS };
        let called = self.settings.called.duration_since(UNIX_EPOCH).map_or(0, |since| i128::try_from(since.as_nanos()).unwrap_or(0));
        stamp(self.control.system_identifier, stat, called - margin)
    }

    fn open_inside(&self, path: &[u8]) -> std::result::Result<OwnedFd, Errno> {
        let followed = self.walk.followed.iter().find_map(|(prefix, folder)| {
            path.strip_prefix(&prefix[..]).and_then(|rest| rest.strip_prefix(b"/")).map(|rest| (folder, rest))
        });
        let (root, rest) = followed.unwrap_or((&self.root, path));
        open_file(root, rest)
    }

    fn control_entry(&mut self) -> Result<Entry> {
        if !self.opened.is_empty() {
            return Err(Error::new(Kind::Bug, "the control file is due while other files are still being read"));
        }
        let (control, bytes) = read_control(&self.root)?;
        if control.system_identifier != self.control.system_identifier {
            return Err(Error::new(Kind::Failed, "another cluster took the place of the data folder during the backup"));
        }
        // Checkpoints only go on.
        if control.redo < self.control.redo {
            let what = format!(
                "the last checkpoint in its control file begins at {}, one at {} was there before",
                control.redo, self.control.redo
            );
            return Err(not_the_servers(&self.settings.data_directory, &what));
        }
        let stat = open_file(&self.root, control::PATH).and_then(rustix::fs::fstat).map_err(|errno| failed(control::PATH, errno))?;
        let kind = EntryKind::File { size: Some(bytes.len() as u64), layout: Layout::Content };
        self.control_bytes = bytes;
        self.last_control = Some(control);
        Ok(bare(control::PATH.to_vec(), kind, &stat))
    }

    /// Configuration files outside the data folder with the folders that they are in, in tree order.
    fn configuration(&mut self) -> Result<Vec<Entry>> {
        let own = std::fs::canonicalize(&self.settings.data_directory)
            .map_err(|error| Error::io(format!("open data folder {}", self.settings.data_directory.display()), error))?;
        let mut entries: Vec<Entry> = Vec::new();
        for given in self.settings.configuration.clone() {
            let resolved = match std::fs::canonicalize(&given) {
                Ok(resolved) => resolved,
                Err(error) => {
                    let message = format!("this configuration file is not in the backup: {error}");
                    self.problems.push(Problem { object: given.display().to_string(), kind: "unreadable".into(), message });
                    continue;
                }
            };
            if !is_outside(&resolved, &own) {
                continue;
            }
            // A link in the data folder is kept as one; its target is what is missing then.
            let path = if given.starts_with(&own) || given.starts_with(&self.settings.data_directory) { resolved } else { given };
            for part in path.ancestors() {
                let below = part.strip_prefix("/").unwrap_or(part).as_os_str().as_bytes();
                let tree_path = if below.is_empty() { CONFIGURATION_FOLDER.to_vec() } else { [CONFIGURATION_FOLDER, b"/", below].concat() };
                if !path.is_absolute() || !is_valid_path(&tree_path) {
                    return Err(Error::new(Kind::Usage, format!("{} is no absolute path without `.` and `..`", path.display())));
                }
                match stat_of(part.as_os_str().as_bytes()) {
                    Ok(stat) => {
                        let found = FileType::from_raw_mode(stat.st_mode);
                        if part == path && found != FileType::RegularFile {
                            let message = "this is no file, so nothing of it is in the backup".to_owned();
                            self.problems.push(Problem { object: path.display().to_string(), kind: "unreadable".into(), message });
                            break;
                        }
                        let kind = match found {
                            FileType::RegularFile => EntryKind::File { size: Some(size(&stat)), layout: Layout::Content },
                            _ => EntryKind::Directory,
                        };
                        entries.push(bare(tree_path, kind, &stat));
                    }
                    Err(errno) => self.lost_configuration(&tree_path, errno),
                }
            }
        }
        entries.sort_by(|a, b| tree_order(&a.path, &b.path));
        entries.dedup_by(|a, b| a.path == b.path);
        Ok(entries)
    }

    fn lost_configuration(&mut self, path: &[u8], errno: Errno) {
        let object = outside(path).map_or_else(|| display_path(path), |path| display_path(&path));
        let message = format!("this configuration file is not in the backup: {}", std::io::Error::from(errno));
        self.problems.push(Problem { object, kind: "unreadable".into(), message });
    }
}

/// The absolute path of a file of [`CONFIGURATION_FOLDER`].
fn outside(path: &[u8]) -> Option<Vec<u8>> {
    path.strip_prefix(CONFIGURATION_FOLDER).filter(|rest| rest.starts_with(b"/")).map(<[u8]>::to_vec)
}

fn open_outside(path: Vec<u8>) -> std::result::Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::open(Path::new(OsStr::from_bytes(&path)), flags, Mode::empty())
}

/// Reads the control file until it is whole.
fn read_control(root: &OwnedFd) -> Result<(Control, Vec<u8>)> {
    let mut tries = 0;
    loop {
        let file = File::from(open_file(root, control::PATH).map_err(|errno| failed(control::PATH, errno))?);
        let mut bytes = vec![0; control::FILE_BYTES];
        let parsed = file
            .read_exact_at(&mut bytes, 0)
            .map_err(|error| Error::io("read global/pg_control", error))
            .and_then(|()| Control::parse(&bytes));
        match parsed {
            Ok(control) => return Ok((control, bytes)),
            Err(error) if error.kind() != Kind::Damaged || tries == CONTROL_TRIES => return Err(error),
            Err(_) => {
                tries += 1;
                thread::sleep(CONTROL_PAUSE);
            }
        }
    }
}

/// The control file of a data folder.
///
/// # Errors
/// As [`LocalReader::begin`].
pub fn control_of(folder: &Path) -> Result<Control> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(folder, flags, Mode::empty())
        .map_err(|errno| Error::io(format!("open the data folder {}", folder.display()), errno.into()))?;
    read_control(&root).map(|(control, _)| control)
}

fn not_the_servers(folder: &Path, what: &str) -> Error {
    Error::new(Kind::Failed, format!("{} is not, or not any more, the folder in which the server works that answers", folder.display()))
        .because(what.to_owned())
        .hint("`data_directory` and `url` must be of one server: SHOW data_directory tells its folder; then back up again")
}

fn bare(path: Vec<u8>, kind: EntryKind, stat: &Stat) -> Entry {
    let mtime_ns = stat.st_mtime.saturating_mul(1_000_000_000).saturating_add_unsigned(stat.st_mtime_nsec);
    Entry { path, kind, mode: stat.st_mode & 0o7777, uid: stat.st_uid, gid: stat.st_gid, mtime_ns, stamp: Vec::new(), xattrs: Vec::new() }
}

fn size(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

/// See the module documentation; empty for a file that was changed at `settled_ns` (since 1970) or after.
fn stamp(system_identifier: u64, stat: &Stat, settled_ns: i128) -> Vec<u8> {
    let times = [(stat.st_mtime, stat.st_mtime_nsec), (stat.st_ctime, stat.st_ctime_nsec)];
    if times.iter().any(|&(secs, nanos)| i128::from(secs) * 1_000_000_000 + i128::from(nanos) >= settled_ns) {
        return Vec::new();
    }
    let mut stamp = vec![1];
    for number in [system_identifier, stat.st_dev, stat.st_ino, size(stat)] {
        stamp.extend_from_slice(&number.to_le_bytes());
    }
    for (secs, nanos) in times {
        stamp.extend_from_slice(&secs.to_le_bytes());
        stamp.extend_from_slice(&u32::try_from(nanos).unwrap_or(u32::MAX).to_le_bytes());
    }
    stamp
}

#[cfg(test)]
mod tests;

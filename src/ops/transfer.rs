//! Between a stored tree and a folder on disk: bringing the content back, and comparing what is on disk with what was stored.
//!
//! Both go through the tree in batches of files, bounded by open files and by bytes, so that memory and descriptors stay bounded whatever
//! the size of the source, while each batch is large enough to be fetched in pack order with many requests at once.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::entry::{Entry, EntryKind, display_path, is_valid_path, tree_order};
use crate::error::{Error, IoContext, Kind, Result};
use crate::event::{Cancel, Event, Progress};
use crate::ops::work::remove_tree;
use crate::repo::{BlockSink, Repository, SourceRecord, StoredEntry, Wanted};
use crate::source::files::apply::{Lost, TreeTarget};
use crate::source::files::xattr;

/// Plain bytes that a batch holds at most, unless a single file is larger.
const BATCH_BYTES: u64 = 256 << 20;
/// Open files that a batch holds at most.
const BATCH_FILES: u64 = 4096;
/// Of the first batch: what comes after it is prepared while it is fetched.
const FIRST_BATCH_BYTES: u64 = 64 << 20;
/// Bytes written between two early flushes.
const FLUSH_BYTES: u64 = 32 << 20;
/// How many differing places are described; the rest is counted.
const DESCRIBED: usize = 5;
/// The unit of comparing with zeros.
const PIECE: usize = 64 * 1024;

/// What the steps of a transfer share.
#[derive(Clone, Copy)]
pub(super) struct Transfer<'a> {
    pub(super) repository: &'a Repository,
    pub(super) progress: &'a dyn Progress,
    pub(super) cancel: &'a Cancel,
}

/// What came back.
#[derive(Debug, Default)]
pub(super) struct Brought {
    pub(super) entries: u64,
    pub(super) bytes: u64,
    /// Of those, bytes that were there already.
    pub(super) bytes_existing: u64,
    /// Sealed bytes read from the store.
    pub(super) bytes_fetched: u64,
    /// Metadata that could not be set, and what was there and is not of the snapshot.
    pub(super) warnings: Vec<String>,
    pub(super) lost: Lost,
}

impl Brought {
    pub(super) fn add(&mut self, other: Self) {
        self.entries += other.entries;
        self.bytes += other.bytes;
        self.bytes_existing += other.bytes_existing;
        self.bytes_fetched += other.bytes_fetched;
        self.warnings.extend(other.warnings);
        self.lost.owners += other.lost.owners;
        self.lost.attributes += other.lost.attributes;
        self.lost.content += other.lost.content;
    }
}

/// What a comparison found.
#[derive(Debug, Default)]
pub(super) struct Compared {
    pub(super) entries: u64,
    pub(super) files: u64,
    pub(super) bytes: u64,
    pub(super) differences: u64,
    /// The first of them, in words.
    pub(super) described: Vec<String>,
    /// Owners and attributes that are other ones; not counted as differences, because they may have been impossible to restore.
    pub(super) owners: Other,
    pub(super) attributes: Other,
}

/// Metadata that is not what it was: how often, and the first in words.
#[derive(Debug, Default)]
pub(super) struct Other {
    pub(super) count: u64,
    pub(super) first: Option<String>,
}

impl Other {
    fn add(&mut self, entry: &Entry, what: impl FnOnce() -> String) {
        self.count += 1;
        self.first.get_or_insert_with(|| format!("{}: {}", entry.display_path(), what()));
    }
}

/// What of an entry's metadata is compared beside kind, size and link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Metadata {
    /// A stream has none of its own.
    None,
    /// Mode, owner and attributes: a database's file has the time of its recovery.
    Rights,
    /// Also modification times.
    All,
}

impl Compared {
    fn differs(&mut self, what: String) {
        self.differences += 1;
        if self.described.len() < DESCRIBED {
            self.described.push(what);
        }
    }
}

impl Transfer<'_> {
    /// Brings the tree of one source into `folder` (new, or left by an interrupted restore of the very same tree), flushed to disk, and
    /// counts both what came and what is then on disk against the manifest. What else is in a folder that is resumed (it is our private
    /// one) is removed and told.
    ///
    /// # Errors
    /// `Damaged` when what came is not what the manifest counted; `Failed` when that is not what is on disk; whatever fetching or writing
    /// says.
    pub(super) fn bring_back(&self, record: &SourceRecord, folder: &Path, resumed: bool) -> Result<Brought> {
        let target = if resumed { TreeTarget::resume(folder)? } else { TreeTarget::create(folder)? };
        let mut brought = Brought::default();
        if resumed {
            // A thing of another kind would be in the way of what comes.
            brought.warnings.extend(self.remove_strays(record, folder)?);
        }
        let flusher = EarlyFlush::start(folder)?;
        let written = Arc::clone(&flusher.written);
        // Three batches are on their way at a time: the files of one are made, one is fetched, one is sealed.
        let (ready_in, ready) = sync_channel::<Batch>(0);
        let (filled_in, filled) = sync_channel::<Batch>(0);
        let (made, fetched, sealed) = std::thread::scope(|scope| {
            let target = &target;
            let fetching = scope.spawn(move || self.fetch_all(ready, filled_in));
            let sealing = scope.spawn(move || self.seal_all(target, filled));
            let made = self.make_all(record, target, resumed, written, ready_in);
            let panicked = |_| Error::new(Kind::Bug, "a thread of a restore has panicked");
            (made, fetching.join().map_err(panicked), sealing.join().map_err(panicked))
        });
        // From the last to the first: who finds nobody to hand a batch to says nothing.
        sealed??;
        let fetched = fetched??;
        let (made, rooted) = made?;
        brought.add(made);
        brought.add(fetched);
        if (brought.entries, brought.bytes) != (record.entries, record.bytes) {
            return Err(Error::new(
                Kind::Damaged,
                format!(
                    "count what was restored of source {}: {} entries with {} bytes came back, the manifest says {} with {}",
                    record.name, brought.entries, brought.bytes, record.entries, record.bytes
                ),
            )
            .hint("run `lifeboat verify`, and restore another snapshot meanwhile"));
        }
        let there = count_below(folder, self.cancel)? + u64::from(rooted);
        if there != brought.entries {
            return Err(Error::new(
                Kind::Failed,
                format!("count what is on disk of source {}: {there} entries are there, {} were restored", record.name, brought.entries),
            )
            .hint("either another program writes there, or that file system takes different names for the same (upper and lower case): restore to another one"));
        }
        flusher.finish()?;
        let applied = target.finish()?;
        brought.warnings.extend(applied.warnings);
        brought.lost = applied.lost;
        Ok(brought)
    }

    /// Makes everything that the tree has, without content, and hands on what is to be fetched, until nobody takes it. Also returns whether the
    /// tree has an entry of its root.
    fn make_all(
        &self,
        record: &SourceRecord,
        target: &TreeTarget,
        resumed: bool,
        written: Arc<Written>,
        ready: SyncSender<Batch>,
    ) -> Result<(Brought, bool)> {
        let mut made = Brought::default();
        let mut rooted = false;
        let mut batch = Batch::new(resumed);
        batch.bytes_limit = FIRST_BATCH_BYTES;
        batch.files_limit = (batch.files_limit / 3).max(1);
        batch.files.written = Some(written);
        for stored in self.repository.tree(record)? {
            self.cancel.check()?;
            let stored = stored?;
            made.entries += 1;
            rooted |= stored.entry.path.is_empty();
            if matches!(stored.entry.kind, EntryKind::File { .. }) {
                made.bytes += stored.size();
                let kept = if resumed { keep_existing(target, &stored)? } else { None };
                let (file, was_there) = match kept {
                    Some(file) => (file, true),
                    None => (make_file(target, &stored)?, false),
                };
                batch.push(stored, file, was_there);
                if batch.is_full() {
                    let full = batch.take();
                    batch.bytes_limit = BATCH_BYTES;
                    if ready.send(full).is_err() {
                        return Ok((made, rooted));
                    }
                }
            } else {
                target.make(&stored.entry)?;
                self.progress.event(Event::Advance { bytes: 0, items: 1 });
            }
        }
        let _ = ready.send(batch);
        Ok((made, rooted))
    }

    /// Fetches the content of each batch and hands it on, until nobody takes it.
    fn fetch_all(&self, ready: Receiver<Batch>, filled: SyncSender<Batch>) -> Result<Brought> {
        let mut brought = Brought::default();
        for batch in ready {
            let stats = self.repository.fetch(&wanted(&batch.stored), &batch.files, self.progress, self.cancel)?;
            brought.bytes_existing += stats.bytes_existing;
            brought.bytes_fetched += stats.bytes_fetched;
            if filled.send(batch).is_err() {
                break;
            }
        }
        Ok(brought)
    }

    /// Gives the files of each batch their final metadata.
    fn seal_all(&self, target: &TreeTarget, filled: Receiver<Batch>) -> Result<()> {
        for batch in filled {
            for (stored, slot) in batch.stored.iter().zip(&batch.files.slots) {
                target.seal(&stored.entry, &slot.file)?;
            }
            self.progress.event(Event::Advance { bytes: 0, items: batch.stored.len() as u64 });
        }
        Ok(())
    }

    /// Removes what is on disk and not in the tree; a warning where something was. Both are walked in tree order, side by side.
    fn remove_strays(&self, record: &SourceRecord, folder: &Path) -> Result<Option<String>> {
        let mut stored = self.repository.tree(record)?.fuse();
        let mut next: Option<StoredEntry> = None;
        let (mut count, mut first) = (0_u64, String::new());
        // Of each folder on the way, what is still to be looked at in it.
        open_up(folder);
        let mut folders = vec![children(folder, &[])?];
        while let Some(folder_left) = folders.last_mut() {
            self.cancel.check()?;
            let Some((path, is_folder)) = folder_left.pop() else {
                folders.pop();
                continue;
            };
            while next.as_ref().is_none_or(|entry| tree_order(&entry.entry.path, &path).is_lt()) {
                match stored.next() {
                    Some(entry) => next = Some(entry?),
                    None => break,
                }
            }
            let place = folder.join(std::ffi::OsStr::from_bytes(&path));
            // A folder in place of a file, or a link in place of a folder, is not what the snapshot holds either.
            let of_kind = |entry: &StoredEntry| (entry.entry.kind == EntryKind::Directory) == is_folder;
            let known = next.as_ref().is_some_and(|entry| entry.entry.path == path && of_kind(entry));
            if known && is_folder {
                open_up(&place);
                folders.push(children(&place, &path)?);
            } else if !known {
                remove_tree(&place)?;
                if count == 0 {
                    first = display_path(&path);
                }
                count += 1;
            }
        }
        Ok((count > 0).then(|| {
            format!("source {}: {count} that the snapshot does not hold were there and are removed (first: {first})", record.name)
        }))
    }

    /// Reads the content at `place` from disk and compares it with the chunk ids of the stored tree. `percent` (1–100) is the share of
    /// files whose bytes are read, chosen by `seed`, at least one; names, kinds, sizes and links of all entries are always compared, and for a folder also
    /// that nothing else is there. `metadata` adds more of all entries.
    ///
    /// # Errors
    /// `Interrupted`, `Damaged` (the repository, not the copy), `Unavailable`. A difference is a result.
    pub(super) fn compare(&self, record: &SourceRecord, place: &Path, percent: u8, seed: u64, metadata: Metadata) -> Result<Compared> {
        let folder = fs::symlink_metadata(place).io_context(|| format!("look at {}", place.display()))?.is_dir();
        let mut compared = Compared::default();
        let mut rooted = false;
        let mut batch = Batch::new(true);
        for stored in self.repository.tree(record)? {
            self.cancel.check()?;
            let stored = stored?;
            compared.entries += 1;
            rooted |= stored.entry.path.is_empty();
            let Some(path) = locate(place, folder, &stored.entry) else {
                compared.differs(format!("{}: has no place in a single file", stored.entry.display_path()));
                continue;
            };
            if let Some(difference) = metadata_difference(&path, place, &stored, metadata) {
                compared.differs(format!("{}: {difference}", stored.entry.display_path()));
                continue;
            }
            // Another name of a file that was compared by its first one.
            if metadata != Metadata::None && !matches!(stored.entry.kind, EntryKind::Hardlink { .. }) {
                compare_rights(&path, &stored.entry, &mut compared)?;
            }
            if matches!(stored.entry.kind, EntryKind::File { .. }) && (compared.files == 0 || chosen(seed, &stored.entry.path, percent)) {
                let file = open_plain(&path).io_context(|| format!("open {}", path.display()))?;
                compared.files += 1;
                compared.bytes += stored.size();
                batch.push(stored, file, true);
                if batch.is_full() {
                    self.compare_batch(&mut batch, &mut compared)?;
                }
            }
        }
        self.compare_batch(&mut batch, &mut compared)?;
        if folder && compared.differences == 0 {
            // Everything stored is there; as many entries on disk as stored means that nothing else is.
            let there = count_below(place, self.cancel)? + u64::from(rooted);
            if there != compared.entries {
                compared.differs(format!("{there} entries are there, {} were backed up", compared.entries));
            }
        }
        Ok(compared)
    }

    fn compare_batch(&self, batch: &mut Batch, compared: &mut Compared) -> Result<()> {
        let batch = batch.take();
        if batch.stored.is_empty() {
            return Ok(());
        }
        let wanted = wanted(&batch.stored);
        let sink = Comparing { stored: &batch.stored, files: &batch.files, differing: Mutex::new((HashSet::new(), Vec::new())) };
        self.repository.fetch(&wanted, &sink, self.progress, self.cancel)?;
        let (files, described) = sink.differing.into_inner().unwrap_or_else(PoisonError::into_inner);
        compared.differences += files.len() as u64;
        let room = DESCRIBED.saturating_sub(compared.described.len());
        compared.described.extend(described.into_iter().take(room));
        Ok(())
    }
}

/// Files that are fetched together.
struct Batch {
    stored: Vec<StoredEntry>,
    files: Files,
    bytes: u64,
    bytes_limit: u64,
    files_limit: usize,
    resumed: bool,
}

/// Open files by number.
struct Files {
    slots: Vec<Slot>,
    /// Told of what is written.
    written: Option<Arc<Written>>,
}

/// Counts what is written, and asks for a flush now and then.
struct Written {
    bytes: AtomicU64,
    flush: SyncSender<()>,
}

/// Flushes what was written so far while more is fetched: the disk works from the beginning on, and the last flush is short.
struct EarlyFlush {
    written: Arc<Written>,
    /// What is still asked for need not be done: the last flush covers it.
    ended: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<()>>,
    shown: PathBuf,
}

impl EarlyFlush {
    fn start(folder: &Path) -> Result<Self> {
        let file_system = File::open(folder).io_context(|| format!("open folder {}", folder.display()))?;
        let (flush, asked) = sync_channel(1);
        let ended = Arc::new(AtomicBool::new(false));
        let done = Arc::clone(&ended);
        let thread = std::thread::spawn(move || {
            for () in asked {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                rustix::fs::syncfs(&file_system)?;
            }
            Ok(())
        });
        Ok(Self { written: Arc::new(Written { bytes: AtomicU64::new(0), flush }), ended, thread, shown: folder.to_owned() })
    }

    /// Nobody may hold the counter any more: the thread would never end.
    fn finish(self) -> Result<()> {
        self.ended.store(true, Ordering::Relaxed);
        drop(self.written);
        let flushed = self.thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that flushes has panicked")));
        flushed.io_context(|| format!("flush {} to disk", self.shown.display()))
    }
}

impl Written {
    fn add(&self, bytes: u64) {
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if before / FLUSH_BYTES != (before + bytes) / FLUSH_BYTES {
            // One that is asked for already covers this too.
            let _ = self.flush.try_send(());
        }
    }
}

struct Slot {
    file: File,
    /// Whether content of an earlier run may be in it.
    was_there: bool,
}

impl Batch {
    fn new(resumed: bool) -> Self {
        Self {
            stored: Vec::new(),
            files: Files { slots: Vec::new(), written: None },
            bytes: 0,
            bytes_limit: BATCH_BYTES,
            files_limit: open_files_limit(),
            resumed,
        }
    }

    fn push(&mut self, stored: StoredEntry, file: File, was_there: bool) {
        self.bytes = self.bytes.saturating_add(stored.size());
        self.stored.push(stored);
        self.files.slots.push(Slot { file, was_there });
    }

    fn is_full(&self) -> bool {
        self.bytes >= self.bytes_limit || self.stored.len() >= self.files_limit
    }

    fn take(&mut self) -> Self {
        let mut next = Self { bytes_limit: self.bytes_limit, files_limit: self.files_limit, ..Self::new(self.resumed) };
        next.files.written.clone_from(&self.files.written);
        std::mem::replace(self, next)
    }
}

fn wanted(stored: &[StoredEntry]) -> Vec<Wanted<'_>> {
    stored.iter().enumerate().map(|(file, entry)| Wanted { file, entry }).collect()
}

/// Half of what the process may open, the rest is for the store and everything else.
fn open_files_limit() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(BATCH_FILES * 2);
    usize::try_from((limit / 2).clamp(16, BATCH_FILES)).unwrap_or(16)
}

/// A file that an interrupted restore left, cut or extended to its length. One that cannot be opened is made again.
fn keep_existing(target: &TreeTarget, stored: &StoredEntry) -> Result<Option<File>> {
    match target.existing(&stored.entry) {
        // Another name of it may be outside: that one must not change.
        Ok(Some(file)) if file.metadata().is_ok_and(|metadata| metadata.nlink() > 1) => Ok(None),
        Ok(Some(file)) => {
            file.set_len(stored.size())
                .io_context(|| format!("make room for {} bytes in {}", stored.size(), stored.entry.display_path()))?;
            Ok(Some(file))
        }
        Err(error) if error.kind() == Kind::Damaged => Err(error),
        Ok(None) | Err(_) => Ok(None),
    }
}

fn make_file(target: &TreeTarget, stored: &StoredEntry) -> Result<File> {
    let file = target.make(&stored.entry)?;
    let file = file.ok_or_else(|| Error::new(Kind::Bug, format!("make file {}: no file was made", stored.entry.display_path())))?;
    file.set_len(stored.size()).io_context(|| format!("make room for {} bytes in {}", stored.size(), stored.entry.display_path()))?;
    Ok(file)
}

impl Files {
    fn slot(&self, file: usize) -> Result<&Slot> {
        self.slots.get(file).ok_or_else(|| Error::new(Kind::Bug, format!("deliver bytes: there is no file {file} in this batch")))
    }
}

impl BlockSink for Files {
    fn write(&self, file: usize, offset: u64, data: &[u8]) -> Result<()> {
        self.slot(file)?.file.write_all_at(data, offset).io_context(|| format!("write {} restored bytes", data.len()))?;
        if let Some(written) = &self.written {
            written.add(data.len() as u64);
        }
        Ok(())
    }

    fn zero(&self, file: usize, offset: u64, len: u64) -> Result<()> {
        let slot = self.slot(file)?;
        if slot.was_there {
            // Keeps holes: only what is not zero yet is written.
            each_piece(&slot.file, offset, len, |at, piece| {
                if piece.iter().any(|&byte| byte != 0) { slot.file.write_all_at(&vec![0; piece.len()], at) } else { Ok(()) }
            })
            .io_context(|| format!("write {len} restored zeros"))?;
        }
        Ok(())
    }

    fn has_existing(&self) -> bool {
        self.slots.iter().any(|slot| slot.was_there)
    }

    fn existing(&self, file: usize, offset: u64, buffer: &mut [u8]) -> Result<bool> {
        let slot = self.slot(file)?;
        Ok(slot.was_there && slot.file.read_exact_at(buffer, offset).is_ok())
    }
}

/// A sink for which every delivery is a difference.
struct Comparing<'a> {
    stored: &'a [StoredEntry],
    files: &'a Files,
    /// Files that differ, and the first place in each in words.
    differing: Mutex<(HashSet<usize>, Vec<String>)>,
}

impl Comparing<'_> {
    fn differs(&self, file: usize, offset: u64) {
        let mut differing = self.differing.lock().unwrap_or_else(PoisonError::into_inner);
        if differing.0.insert(file) && differing.1.len() < DESCRIBED {
            let name = self.stored.get(file).map(|s| s.entry.display_path()).unwrap_or_default();
            differing.1.push(format!("{name}: differs at byte {offset}"));
        }
    }
}

impl BlockSink for Comparing<'_> {
    fn write(&self, file: usize, offset: u64, data: &[u8]) -> Result<()> {
        // The first differing byte of the delivered range; a range that is there after all is no difference.
        let mut there = vec![0; data.len()];
        let offset = match self.files.slot(file)?.file.read_exact_at(&mut there, offset) {
            Ok(()) => match there.iter().zip(data).position(|(a, b)| a != b) {
                Some(position) => offset + position as u64,
                None => return Ok(()),
            },
            Err(_) => offset,
        };
        self.differs(file, offset);
        Ok(())
    }

    fn zero(&self, file: usize, offset: u64, len: u64) -> Result<()> {
        let mut differing = None;
        let read = each_piece(&self.files.slot(file)?.file, offset, len, |at, piece| {
            if differing.is_none() {
                differing = piece.iter().position(|&byte| byte != 0).map(|position| at + position as u64);
            }
            Ok(())
        });
        if read.is_err() {
            differing = differing.or(Some(offset));
        }
        if let Some(at) = differing {
            self.differs(file, at);
        }
        Ok(())
    }

    fn has_existing(&self) -> bool {
        true
    }

    fn existing(&self, file: usize, offset: u64, buffer: &mut [u8]) -> Result<bool> {
        Ok(self.files.slot(file)?.file.read_exact_at(buffer, offset).is_ok())
    }
}

/// Reads a range in pieces.
fn each_piece(file: &File, offset: u64, len: u64, mut take: impl FnMut(u64, &[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut buffer = vec![0; PIECE];
    let mut done = 0;
    while done < len {
        let count = usize::try_from((len - done).min(PIECE as u64)).unwrap_or(PIECE);
        file.read_exact_at(&mut buffer[..count], offset + done)?;
        take(offset + done, &buffer[..count])?;
        done += count as u64;
    }
    Ok(())
}

/// Where an entry is: below the folder, or the one file of a tree that became a single file.
fn locate(place: &Path, folder: bool, entry: &Entry) -> Option<PathBuf> {
    match (folder, &entry.kind) {
        (true, _) if entry.path.is_empty() => Some(place.to_owned()),
        (true, _) => is_valid_path(&entry.path).then(|| place.join(std::ffi::OsStr::from_bytes(&entry.path))),
        (false, EntryKind::File { .. }) => Some(place.to_owned()),
        (false, _) => None,
    }
}

/// How an entry on disk is not what was stored, content apart.
fn metadata_difference(path: &Path, place: &Path, stored: &StoredEntry, compared: Metadata) -> Option<String> {
    let Ok(metadata) = fs::symlink_metadata(path) else { return Some("is not there".into()) };
    let kind = metadata.file_type();
    let entry = &stored.entry;
    let wrong = match &entry.kind {
        EntryKind::File { .. } if !kind.is_file() => Some("is not a regular file".to_owned()),
        EntryKind::File { .. } if metadata.len() != stored.size() => {
            Some(format!("has {} bytes instead of {}", metadata.len(), stored.size()))
        }
        EntryKind::Directory if !kind.is_dir() => Some("is not a folder".into()),
        EntryKind::Symlink { target } => match fs::read_link(path) {
            Ok(found) if found.as_os_str().as_bytes() == target => None,
            _ => Some("is not the symbolic link it was".into()),
        },
        EntryKind::Hardlink { target } => {
            let other = fs::symlink_metadata(place.join(std::ffi::OsStr::from_bytes(target)));
            let same = other.is_ok_and(|other| (other.dev(), other.ino()) == (metadata.dev(), metadata.ino()));
            (!same).then(|| "is not the same file as its other name".into())
        }
        EntryKind::Fifo if !std::os::unix::fs::FileTypeExt::is_fifo(&kind) => Some("is not a named pipe".into()),
        _ => None,
    };
    if wrong.is_some() || compared == Metadata::None {
        return wrong;
    }
    let mtime_ns = metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec());
    // Set-id bits are given up together with an owner that could not be set.
    let mask = if (metadata.uid(), metadata.gid()) == (entry.uid, entry.gid) { 0o7777 } else { 0o1777 };
    // A symbolic link has no mode of its own.
    if !kind.is_symlink() && metadata.mode() & mask != entry.mode & mask {
        return Some(format!("has mode {:o} instead of {:o}", metadata.mode() & mask, entry.mode & mask));
    }
    (compared == Metadata::All && mtime_ns != entry.mtime_ns).then(|| "has another modification time".into())
}

/// Owner and attributes. Attributes that only are there now are the system's (a security label), unless somebody else made them.
fn compare_rights(path: &Path, entry: &Entry, compared: &mut Compared) -> Result<()> {
    let found = fs::symlink_metadata(path).io_context(|| format!("look at {}", path.display()))?;
    if (found.uid(), found.gid()) != (entry.uid, entry.gid) {
        compared.owners.add(entry, || format!("belongs to {}:{} instead of {}:{}", found.uid(), found.gid(), entry.uid, entry.gid));
    }
    let there = match xattr::read_all(path) {
        Ok(there) => there,
        Err(errno) => {
            compared.attributes.add(entry, || format!("attributes cannot be read: {}", io::Error::from(errno)));
            return Ok(());
        }
    };
    for (name, value) in &entry.xattrs {
        if !there.iter().any(|(known, found)| known == name && found == value) {
            compared.attributes.add(entry, || format!("attribute {} is not what it was", name.escape_ascii()));
        }
    }
    for (name, _) in there.iter().filter(|(name, _)| name.starts_with(b"user.")) {
        if entry.xattrs.iter().all(|(known, _)| known != name) {
            compared.attributes.add(entry, || format!("attribute {} was not there", name.escape_ascii()));
        }
    }
    Ok(())
}

fn open_plain(path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    OpenOptions::new().read(true).custom_flags(i32::try_from(flags.bits()).unwrap_or(0)).open(path)
}

/// Whether a file belongs to the share whose bytes are read.
fn chosen(seed: u64, path: &[u8], percent: u8) -> bool {
    if percent >= 100 {
        return true;
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes()).update(path);
    let mut first = [0u8; 8];
    first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    u64::from_le_bytes(first) % 100 < u64::from(percent)
}

/// What is in a folder, with its path in the tree and whether it is a folder, the first in tree order last.
fn children(folder: &Path, path: &[u8]) -> Result<Vec<(Vec<u8>, bool)>> {
    let failed = || format!("list {}", folder.display());
    let mut all = Vec::new();
    for item in fs::read_dir(folder).io_context(failed)? {
        let item = item.io_context(failed)?;
        let mut below = path.to_vec();
        if !below.is_empty() {
            below.push(b'/');
        }
        below.extend_from_slice(item.file_name().as_bytes());
        all.push((below, item.file_type().io_context(|| format!("look at {}", item.path().display()))?.is_dir()));
    }
    all.sort_by(|(a, _), (b, _)| tree_order(b, a));
    Ok(all)
}

/// Lets its owner look into a folder, which gets its own mode at the end. Where that is not possible, listing it says so.
fn open_up(folder: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    if let Ok(metadata) = fs::symlink_metadata(folder)
        && metadata.is_dir()
        && metadata.mode() & 0o700 != 0o700
    {
        let _ = fs::set_permissions(folder, fs::Permissions::from_mode(metadata.mode() & 0o7777 | 0o700));
    }
}

/// Everything below a folder, links not followed.
fn count_below(folder: &Path, cancel: &Cancel) -> Result<u64> {
    let mut count = 0;
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        cancel.check()?;
        for item in fs::read_dir(&folder).io_context(|| format!("list {}", folder.display()))? {
            let item = item.io_context(|| format!("list {}", folder.display()))?;
            count += 1;
            if item.file_type().io_context(|| format!("look at {}", item.path().display()))?.is_dir() {
                folders.push(item.path());
            }
        }
    }
    Ok(count)
}

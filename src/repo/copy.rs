//! Copying a snapshot into another repository, with other keys: opened with the reader key of the first, sealed anew for the second.
//!
//! Every chunk is checked against its id when it is read, so damage is noticed and never copied. What the second repository has is
//! found in two ways: by position, beside the snapshot that was copied before (of a stretch whose node has the id that it had then, no
//! chunk is looked at), and by the second repository's own ids and index. A frame that is wanted whole and is new is decrypted, decoded,
//! checked and sealed again as it is: it is not compressed again.
//!
//! The order is that of every commit (packs → index → manifest; see `write`), with one step more: before the manifest is created, the new
//! tree is read back from the second repository and compared with what was to be copied. A copy that is killed leaves what a killed
//! backup leaves, and the next one takes it over.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use chrono::{DateTime, Utc};

use crate::entry::{Entry, EntryKind, Layout, Order};
use crate::error::{Error, Kind, Result};
use crate::event::{Cancel, Event, Progress};
use crate::id::SnapshotId;
use crate::repo::format::ChunkId;
use crate::repo::nodes::NodeReader;
use crate::repo::packs::PackNo;
use crate::repo::pipeline::{Foreign, Loc, Pipeline};
use crate::repo::previous::{PreviousFile, PreviousTree};
use crate::repo::read::{Counters, Item, StoredContent, StoredEntry};
use crate::repo::snapshot::{CopiedFrom, Manifest, SourceRecord};
use crate::repo::tree::{Chunk, Content, Place, Stored};
use crate::repo::write::{CopyOf, TreeWriter};
use crate::repo::{Committed, Repository};

/// A snapshot that was copied before: as it is there, and as it is here. The nearer it is, the less is read.
#[derive(Debug, Clone, Copy)]
pub struct Predecessor<'a> {
    /// In the repository that is copied from.
    pub original: &'a Manifest,
    /// In the repository that is copied to.
    pub copy: &'a Manifest,
}

/// What a copy says of its original, and of others in the repository of that, see [`CopiedFrom`].
#[derive(Debug, Clone, Default)]
pub struct CopyNotes {
    pub proven_at: Option<DateTime<Utc>>,
    pub stands_for: Option<SnapshotId>,
    pub owed: Vec<SnapshotId>,
    pub beside: Vec<SnapshotId>,
}

/// What a copy moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CopyStats {
    /// Sealed bytes of data read from the first repository.
    pub bytes_fetched: u64,
    /// Plain bytes of chunks that were read, each counted once.
    pub bytes_read: u64,
}

/// Chunks looked up at a time: about 100 bytes of memory each.
const WINDOW_CHUNKS: usize = 64_000;
/// Entries and stretches that wait for them.
const WINDOW_ITEMS: usize = 20_000;

impl Repository {
    /// Copies a snapshot of `from` into this repository, unless it is damaged. `notes`: what is known of it there. `may` is asked, with the id that it
    /// gets here, when nothing is left to do but to create its manifest.
    ///
    /// # Errors
    /// `WrongKey` without the reader role there and the writer role here; `Damaged` names the object, and nothing was committed; what the
    /// stores say; `Busy` when this run was fenced; what `may` says.
    ///
    /// # Cancellation
    /// By `cancel`: `Interrupted`, nothing committed; the next copy takes over what was sent.
    #[expect(clippy::too_many_arguments, reason = "the surroundings of one call")]
    pub fn copy_from(
        &self,
        from: &Self,
        manifest: &Manifest,
        before: Option<Predecessor<'_>>,
        notes: CopyNotes,
        now: DateTime<Utc>,
        progress: &dyn Progress,
        cancel: &Cancel,
        may: impl FnOnce(SnapshotId) -> Result<()>,
    ) -> Result<(Committed, CopyStats)> {
        self.copy_as(from, manifest, before, notes, None, now, progress, cancel, may)
    }

    /// Brings the content of a damaged snapshot of this repository back from another one: as a new snapshot, which takes its place. The damaged one
    /// stays. `harmed`: it, if its manifest can be read: what is sound of it is named again, so that only the rest is read from `from`.
    ///
    /// # Errors
    /// As [`Repository::copy_from`].
    #[expect(clippy::too_many_arguments, reason = "the surroundings of one call")]
    pub fn bring_back(
        &self,
        from: &Self,
        manifest: &Manifest,
        replaces: SnapshotId,
        harmed: Option<&Manifest>,
        now: DateTime<Utc>,
        progress: &dyn Progress,
        cancel: &Cancel,
        may: impl FnOnce(SnapshotId) -> Result<()>,
    ) -> Result<(Committed, CopyStats)> {
        // Whose word it is that the content is the same.
        self.require_reader("bring a snapshot back")?;
        let before = harmed.map(|copy| Predecessor { original: manifest, copy });
        // It keeps its place among the copies of that repository, also where the original was brought back itself.
        let origin = harmed.and_then(|harmed| harmed.copied_from.as_ref()).filter(|origin| origin.repository == from.id().to_string());
        let place = origin.map(CopiedFrom::place).or_else(|| manifest.replaces()).filter(|place| *place != manifest.id);
        let notes = CopyNotes { stands_for: place, ..CopyNotes::default() };
        self.copy_as(from, manifest, before, notes, Some(replaces), now, progress, cancel, may)
    }

    #[expect(clippy::too_many_arguments, reason = "the surroundings of one call")]
    fn copy_as(
        &self,
        from: &Self,
        manifest: &Manifest,
        before: Option<Predecessor<'_>>,
        notes: CopyNotes,
        replaces: Option<SnapshotId>,
        now: DateTime<Utc>,
        progress: &dyn Progress,
        cancel: &Cancel,
        may: impl FnOnce(SnapshotId) -> Result<()>,
    ) -> Result<(Committed, CopyStats)> {
        from.require_reader("read the data to copy")?;
        if from.id() == self.id() {
            return Err(Error::new(Kind::Usage, format!("copy to {}: it is the same repository", self.store().describe()))
                .hint("copy to a repository that was made with `lifeboat repo init` of its own"));
        }
        let key = manifest.foreign_fingerprint_key()?.unwrap_or_else(|| from.fingerprint_key());
        let mut writer = self.begin(&manifest.plan, now, cancel)?;
        writer.becomes_copy(CopyOf {
            from: CopiedFrom {
                repository: from.id().to_string(),
                snapshot: manifest.id,
                copied_at: now,
                fingerprint_key: hex::encode(key),
                stands_for: notes.stands_for,
                owed: notes.owed,
                beside: notes.beside,
                proven_at: notes.proven_at.or_else(|| manifest.copied_from.as_ref()?.proven_at),
                replaces,
                replaces_signature: None,
                unproven: None,
            },
            host: manifest.host.clone(),
            started: manifest.started,
        });
        let mut stats = CopyStats::default();
        let mut copied = Vec::new();
        for record in &manifest.sources {
            let of = |manifest: &'_ Manifest| manifest.sources.iter().find(|other| other.name == record.name).cloned();
            // Under other ids (a key was rotated, the plan has got one of its own) nothing may be named again, and nothing compares.
            let before = before.and_then(|before| Some((of(before.original)?, of(before.copy)?)));
            let ids = writer.ids_name()?;
            let before = before.filter(|(original, copy)| original.tree.ids == record.tree.ids && copy.tree.ids == ids);
            let tree = match &before {
                Some((_, copy)) => match PreviousTree::open(&self.inner, &copy.tree, Order::Tree) {
                    Ok(tree) => Some(tree),
                    // Then it is not used.
                    Err(error) if error.kind() == Kind::Damaged => None,
                    Err(error) => return Err(error),
                },
                None => None,
            };
            let original = match (&before, &tree) {
                (Some((original, _)), Some(_)) => match PreviousTree::open(&from.inner, &original.tree, Order::Tree) {
                    Ok(tree) => Some(tree),
                    Err(error) if error.kind() == Kind::Damaged => None,
                    Err(error) => return Err(error),
                },
                _ => None,
            };
            let copier = Copier {
                from,
                nodes: NodeReader::new(&from.inner)?,
                original,
                tree: writer.tree_after(&record.name, &record.kind, Order::Tree, tree)?,
                window: Window::default(),
                witness: Witness::default(),
                stats: &mut stats,
                progress,
                cancel,
            };
            copied.push(copier.run(record)?);
        }
        writer.settle()?;
        progress.event(Event::Phase { name: "compare", detail: manifest.id.to_string() });
        let mut records = Vec::new();
        for (record, original, witness) in copied {
            let counts = (record.entries, record.bytes) == (original.entries, original.bytes);
            if !counts || witness.of_stored(self, &record, cancel)? != witness.digest() {
                let what = format!("the copied tree of source {} is not what was to be copied; nothing was committed", record.name);
                return Err(Error::new(Kind::Bug, what));
            }
            records.push(record);
        }
        let committed = writer.commit_if(records, manifest.time, manifest.tags.clone(), progress, may)?;
        Ok((committed, stats))
    }
}

/// Copies the tree of one source.
struct Copier<'a> {
    from: &'a Repository,
    nodes: NodeReader,
    /// The tree that was copied before, as it is in `from`; its copy is the one that `tree` follows.
    original: Option<PreviousTree>,
    tree: TreeWriter<'a>,
    window: Window,
    witness: Witness,
    stats: &'a mut CopyStats,
    progress: &'a dyn Progress,
    cancel: &'a Cancel,
}

/// A file in both trees of the snapshot that was copied before.
struct Pair {
    original: PreviousFile,
    copy: PreviousFile,
}

/// A chunk of the source, and where it is known to be here.
type Known = (Chunk<PackNo>, Option<Chunk<PackNo>>);

/// What waits for the places of its chunks.
enum Waiting {
    /// `node`: here, its very chunks are in this node.
    Stretch {
        chunks: Vec<Known>,
        node: Option<ChunkId>,
        paged: bool,
    },
    Entry {
        entry: Entry,
        size: u64,
        chunks: Vec<Known>,
        stretches: u64,
    },
}

#[derive(Default)]
struct Window {
    waiting: Vec<Waiting>,
    chunks: usize,
}

impl Copier<'_> {
    fn run(mut self, record: &SourceRecord) -> Result<(SourceRecord, SourceRecord, Witness)> {
        self.progress.event(Event::Phase { name: "copy", detail: record.name.to_string() });
        for stored in self.from.tree(record)? {
            self.cancel.check()?;
            let StoredEntry { entry, content } = stored?;
            self.entry(entry, content)?;
        }
        self.flush()?;
        let Self { tree, witness, .. } = self;
        Ok((tree.finish(record.finish.clone())?, record.clone(), witness))
    }

    fn entry(&mut self, entry: Entry, content: StoredContent) -> Result<()> {
        let EntryKind::File { size, layout } = &entry.kind else {
            return self.wait(Waiting::Entry { entry, size: 0, chunks: Vec::new(), stretches: 0 });
        };
        let (size, layout) = (size.unwrap_or(0), *layout);
        let paged = matches!(layout, Layout::Pages(_));
        let pair = self.pair(&entry.path, layout)?;
        match content {
            StoredContent::Inline(chunks) => {
                let pair = match &pair {
                    Some(Pair { original: PreviousFile { content: Content::Inline(original), .. }, copy }) => match &copy.content {
                        Content::Inline(copy) => Some((original.as_slice(), copy.as_slice())),
                        _ => None,
                    },
                    _ => None,
                };
                let chunks = self.known(chunks, pair);
                self.wait(Waiting::Entry { entry, size, chunks, stretches: 0 })
            }
            StoredContent::Stretches(nodes) => {
                for (number, node) in nodes.iter().enumerate() {
                    let stretch = self.stretch(node, pair.as_ref(), number as u64, paged)?;
                    self.wait(stretch)?;
                }
                self.wait(Waiting::Entry { entry, size, chunks: Vec::new(), stretches: nodes.len() as u64 })
            }
        }
    }

    /// The file as it was copied before. Asked for every file, so that both walks keep step.
    fn pair(&mut self, path: &[u8], layout: Layout) -> Result<Option<Pair>> {
        let copy = self.tree.previous_file(path)?;
        let Some(tree) = &mut self.original else { return Ok(None) };
        let original = tree.find(path)?;
        // What cannot be read there is read from the snapshot itself.
        tree.damaged.clear();
        let (Some(original), Some(copy)) = (original, copy) else { return Ok(None) };
        let same_shape = match (&original.content, &copy.content) {
            (Content::Inline(a), Content::Inline(b)) => a.len() == b.len(),
            (Content::Stretches(a), Content::Stretches(b)) => a == b,
            _ => false,
        };
        let fits = same_shape && original.size == copy.size && original.layout == copy.layout && original.layout == layout;
        Ok(fits.then_some(Pair { original, copy }))
    }

    fn stretch(&mut self, node: &crate::repo::tree::NodeRef<PackNo>, pair: Option<&Pair>, number: u64, paged: bool) -> Result<Waiting> {
        let Some((Pair { original, copy }, tree)) = pair.zip(self.original.as_mut()) else {
            let chunks = self.nodes.stretch(node)?;
            return Ok(Waiting::Stretch { chunks: self.known(chunks, None), node: None, paged });
        };
        let before = match &original.content {
            Content::Stretches(count) if number < *count => tree.refs.get(original.first_node + number as usize).copied(),
            _ => None,
        };
        let here = if before.is_some() { self.tree.previous_chunks(Some(copy), number)? } else { None };
        let (Some(before), Some(here)) = (before, here) else {
            let chunks = self.nodes.stretch(node)?;
            return Ok(Waiting::Stretch { chunks: self.known(chunks, None), node: None, paged });
        };
        if before.id == node.id && here.iter().all(|chunk| self.tree.pipeline().is_usable(&chunk.stored)) {
            let node = self.tree.previous_node(copy, number);
            return Ok(Waiting::Stretch { chunks: here.into_iter().map(|chunk| (chunk, Some(chunk))).collect(), node, paged });
        }
        let there = match tree.nodes.stretch(&before) {
            Ok(chunks) => Some(chunks),
            Err(error) if error.kind() == Kind::Damaged => None,
            Err(error) => return Err(error),
        };
        let chunks = self.nodes.stretch(node)?;
        let pair = there.as_deref().map(|there| (there, here.as_slice()));
        Ok(Waiting::Stretch { chunks: self.known(chunks, pair), node: None, paged })
    }

    /// Which of these chunks are here, by those that stood at the same place: there, and here.
    fn known(&self, chunks: Vec<Chunk<PackNo>>, pair: Option<(&[Chunk<PackNo>], &[Chunk<PackNo>])>) -> Vec<Known> {
        let pipeline = self.tree.pipeline();
        let find = |at: usize, chunk: &Chunk<PackNo>| {
            let (there, here) = pair?;
            let (there, here) = (there.get(at)?, here.get(at)?);
            let same = there.id == chunk.id && there.len == chunk.len && here.len == chunk.len;
            let stored = (here.stored == Stored::Zero) == (chunk.stored == Stored::Zero) && chunk.stored != Stored::Zero;
            (same && stored && pipeline.is_usable(&here.stored)).then_some(*here)
        };
        chunks.into_iter().enumerate().map(|(at, chunk)| (chunk, find(at, &chunk))).collect()
    }

    fn wait(&mut self, waiting: Waiting) -> Result<()> {
        self.window.chunks += match &waiting {
            Waiting::Stretch { chunks, .. } | Waiting::Entry { chunks, .. } => chunks.len(),
        };
        self.window.waiting.push(waiting);
        if self.window.chunks >= WINDOW_CHUNKS || self.window.waiting.len() >= WINDOW_ITEMS { self.flush() } else { Ok(()) }
    }

    /// Copies what the window lacks, and hands it on to the tree.
    fn flush(&mut self) -> Result<()> {
        let waiting = std::mem::take(&mut self.window).waiting;
        let mut wanted: Vec<(Place<PackNo>, Item)> = Vec::new();
        let mut placed: HashMap<Place<PackNo>, Chunk<Loc>> = HashMap::new();
        for item in &waiting {
            let (chunks, paged) = match item {
                Waiting::Stretch { chunks, paged, .. } => (chunks, *paged),
                Waiting::Entry { entry, chunks, .. } => (chunks, matches!(entry.kind, EntryKind::File { layout: Layout::Pages(_), .. })),
            };
            for (chunk, _) in chunks.iter().filter(|(_, here)| here.is_none()) {
                match chunk.stored {
                    Stored::Zero => {}
                    Stored::Full(place) => wanted.push((place, Item { file: usize::from(paged), offset: 0, chunk: *chunk })),
                    Stored::Delta { patch, base } => {
                        if let std::collections::hash_map::Entry::Vacant(place) = placed.entry(patch) {
                            let bytes = self.from.delta_chunk(patch, base, chunk)?;
                            self.stats.bytes_read += bytes.len() as u64;
                            self.tree.writer().count_read(bytes.len() as u64);
                            place.insert(one(self.tree.pipeline(), &bytes, paged)?);
                        }
                    }
                }
            }
        }
        wanted.sort_unstable_by_key(|(place, _)| (place.pack, place.frame, place.slot));
        wanted.dedup_by_key(|(place, _)| *place);
        self.fetch(wanted, &mut placed)?;
        for item in waiting {
            self.hand_on(item, &placed)?;
        }
        Ok(())
    }

    /// Reads chunks, each once, and puts them into this repository's frames.
    fn fetch(&mut self, wanted: Vec<(Place<PackNo>, Item)>, placed: &mut HashMap<Place<PackNo>, Chunk<Loc>>) -> Result<()> {
        let counters = Counters::default();
        // An item knows where it was wanted: its place may be another one by the time it is read (see `moved`).
        let mut wanted = wanted;
        let places: Vec<Place<PackNo>> = wanted.iter().map(|(place, _)| *place).collect();
        wanted.iter_mut().enumerate().for_each(|(number, (_, item))| item.offset = number as u64);
        let requests = self.from.plan_requests(wanted)?;
        let found = Mutex::new(std::mem::take(placed));
        let (from, pipeline, progress) = (self.from, self.tree.pipeline(), self.progress);
        from.pump(requests, from.inner.workers, self.cancel, &counters, &|number, worker, request, bytes| {
            let pack = from.inner.packs.get(request.pack).id;
            let key = pack.key();
            let damaged = |what: String| from.inner.blame(pack, Error::new(Kind::Damaged, format!("pack {key}{what}")));
            for (ordinal, items) in &request.frames {
                self.cancel.check()?;
                let frame = &request.directory.frames[*ordinal as usize];
                let at = (frame.offset - request.start) as usize;
                let sealed = bytes.get(at..at + frame.sealed_len as usize).ok_or_else(|| damaged(": is truncated".into()))?;
                worker.decode(&key, &request.directory, frame, sealed).map_err(|error| from.inner.blame(pack, error))?;
                let lens: Vec<u32> = frame.chunks.iter().map(|chunk| chunk.len).collect();
                let mut start = 0usize;
                let mut starts = Vec::with_capacity(lens.len());
                for len in &lens {
                    starts.push(start);
                    start += *len as usize;
                }
                let mut read = 0;
                for (slot, item) in items {
                    let range = starts[*slot as usize]..starts[*slot as usize] + item.chunk.len as usize;
                    let envelope = request.directory.envelopes[frame.envelope as usize].generation;
                    let is_right = match worker.plain.get(range) {
                        Some(bytes) => from.inner.keys.chunk_has_id(envelope, bytes, item.chunk.id)?,
                        None => false,
                    };
                    if !is_right {
                        return Err(damaged(format!(", frame at {}: a chunk does not match its id", frame.offset)));
                    }
                    read += u64::from(item.chunk.len);
                }
                // In the order in which the frame has them.
                let mut slots: Vec<u32> = items.iter().map(|(slot, _)| *slot).collect();
                slots.sort_unstable();
                slots.dedup();
                let paged = items.iter().any(|(_, item)| item.file == 1);
                let foreign = Foreign { encoding: frame.encoding, encoded: &worker.encoded, plain: &worker.plain, lens: &lens };
                let chunks = pipeline.adopt(number, &foreign, &slots, paged)?;
                let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                for (slot, item) in items {
                    let chunk = slots.binary_search(slot).ok().and_then(|at| chunks.get(at));
                    let place = places.get(item.offset as usize);
                    let (Some(chunk), Some(place)) = (chunk, place) else { return Err(Error::new(Kind::Bug, "a chunk was not wanted")) };
                    found.insert(*place, *chunk);
                }
                drop(found);
                counters.delivered.fetch_add(read, std::sync::atomic::Ordering::Relaxed);
                progress.event(Event::Advance { bytes: read, items: 0 });
            }
            Ok(())
        })?;
        *placed = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        let totals = counters.totals();
        self.stats.bytes_fetched += totals.bytes_fetched;
        self.stats.bytes_read += totals.bytes_delivered;
        self.tree.writer().count_read(totals.bytes_delivered);
        Ok(())
    }

    fn hand_on(&mut self, item: Waiting, placed: &HashMap<Place<PackNo>, Chunk<Loc>>) -> Result<()> {
        let resolve = |chunks: Vec<Known>| -> Result<Vec<Chunk<Loc>>> {
            let resolve = |(chunk, here): Known| {
                if let Some(here) = here {
                    return Ok(crate::repo::pipeline::placed(here));
                }
                let found = match chunk.stored {
                    Stored::Zero => return Ok(Chunk { id: ChunkId::default(), len: chunk.len, stored: Stored::Zero }),
                    Stored::Full(place) | Stored::Delta { patch: place, .. } => placed.get(&place),
                };
                found.filter(|found| found.len == chunk.len).copied().ok_or_else(|| Error::new(Kind::Bug, "a chunk was not copied"))
            };
            chunks.into_iter().map(resolve).collect()
        };
        match item {
            Waiting::Stretch { chunks, node, .. } => {
                let chunks = resolve(chunks)?;
                self.witness.stretch(&chunks, node);
                self.tree.place_stretch(chunks)
            }
            Waiting::Entry { entry, size, chunks, stretches } => {
                let chunks = resolve(chunks)?;
                if stretches == 0 {
                    self.witness.stretch(&chunks, None);
                }
                self.witness.entry(&entry, size);
                self.tree.place_entry(entry, size, chunks, stretches)
            }
        }
    }
}

/// A chunk whose bytes are at hand.
fn one(pipeline: &Pipeline, bytes: &[u8], paged: bool) -> Result<Chunk<Loc>> {
    let lens = [bytes.len() as u32];
    let foreign = Foreign { encoding: crate::repo::frame::Encoding::Delta, encoded: &[], plain: bytes, lens: &lens };
    pipeline.adopt(0, &foreign, &[0], paged)?.pop().ok_or_else(|| Error::new(Kind::Bug, "a chunk was not taken"))
}

/// A digest of a tree: every entry with all its attributes, every chunk by id and length. Made once of what is handed to the tree, and once
/// of what is read back from the store.
#[derive(Default)]
struct Witness {
    whole: blake3::Hasher,
    /// Of nodes of stretches that were read from the store in this run: what they hold.
    seen: HashMap<ChunkId, [u8; 16]>,
}

impl Witness {
    fn stretch<P>(&mut self, chunks: &[Chunk<P>], node: Option<ChunkId>) {
        let digest = stretch_digest(chunks);
        if let Some(node) = node {
            self.seen.insert(node, digest);
        }
        self.whole.update(&digest);
    }

    fn entry(&mut self, entry: &Entry, size: u64) {
        add_entry(&mut self.whole, entry, size);
    }

    fn digest(&self) -> blake3::Hash {
        self.whole.finalize()
    }

    /// The same of the tree in the store.
    fn of_stored(&self, repository: &Repository, record: &SourceRecord, cancel: &Cancel) -> Result<blake3::Hash> {
        let mut nodes = NodeReader::new(&repository.inner)?;
        let mut whole = blake3::Hasher::new();
        for stored in repository.tree(record)? {
            cancel.check()?;
            let stored = stored?;
            match &stored.content {
                StoredContent::Inline(chunks) => {
                    whole.update(&stretch_digest(chunks));
                }
                StoredContent::Stretches(refs) => {
                    for node in refs {
                        let digest = match self.seen.get(&node.id) {
                            Some(digest) => *digest,
                            None => stretch_digest(&nodes.stretch(node)?),
                        };
                        whole.update(&digest);
                    }
                }
            }
            add_entry(&mut whole, &stored.entry, stored.size());
        }
        Ok(whole.finalize())
    }
}

fn stretch_digest<P>(chunks: &[Chunk<P>]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    for chunk in chunks {
        hasher.update(&chunk.id.0).update(&chunk.len.to_le_bytes()).update(&[u8::from(matches!(chunk.stored, Stored::Zero))]);
    }
    let mut digest = [0; 16];
    digest.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    digest
}

fn add_entry(hasher: &mut blake3::Hasher, entry: &Entry, size: u64) {
    let Entry { path, kind, mode, uid, gid, mtime_ns, stamp, xattrs } = entry;
    let mut blob = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
    };
    blob(path);
    match kind {
        EntryKind::File { layout, .. } => {
            let page = if let Layout::Pages(size) = layout { *size } else { 0 };
            blob(b"f");
            blob(&page.to_le_bytes());
        }
        EntryKind::Directory => blob(b"d"),
        EntryKind::Symlink { target } => {
            blob(b"l");
            blob(target);
        }
        EntryKind::Hardlink { target } => {
            blob(b"h");
            blob(target);
        }
        EntryKind::Fifo => blob(b"p"),
    }
    for number in [size, u64::from(*mode), u64::from(*uid), u64::from(*gid)] {
        blob(&number.to_le_bytes());
    }
    blob(&mtime_ns.to_le_bytes());
    blob(stamp);
    blob(&(xattrs.len() as u64).to_le_bytes());
    for (name, value) in xattrs {
        blob(name);
        blob(value);
    }
}

//! Writing a snapshot: what changed goes through the pipeline, what did not is named again.
//!
//! Order of a commit (see `session` for who may run beside it): session → tombstones, index, packs → packs and index written →
//! manifest created → session removed.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::Read;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use chrono::{DateTime, Utc};

use crate::entry::{Entry, EntryKind, Layout, Order, display_path, is_valid_path, tree_order};
use crate::error::{Context as _, Error, IoContext as _, Kind, Result};
use crate::event::{Cancel, Event, Progress};
use crate::id::{Name, SnapshotId};
use crate::repo::content::ContentChunker;
use crate::repo::format::{CONTENT_MAX, ChunkId, NODE_FRAME_TARGET, ObjectKind, PackId, STRETCH_CHUNKS};
use crate::repo::frame::{Encoder, Profile};
use crate::repo::index::{self, IndexedPack, LocalIndex};
use crate::repo::keys::Keys;
use crate::repo::leftover::Leftover;
use crate::repo::nodes::node_id;
use crate::repo::pack::ChunkEntry;
use crate::repo::packs::PackNo;
use crate::repo::pipeline::{Cuts, Job, Loc, Piece, PieceSlot, Pipeline, publish_index};
use crate::repo::previous::{PreviousFile, PreviousTree};
use crate::repo::session::{LISTINGS, Session, read_tombstones};
use crate::repo::snapshot::{CopiedFrom, Manifest, Parent, SourceRecord, Stats, TreeRoot, host_name, id_of};
use crate::repo::tree::{Chunk, Content, NodeEncoder, NodeRef, PackedChunks, Place, Record, Stored, encode_list, ends_list, ends_node};
use crate::repo::{Inner, Repository};

/// What [`TreeWriter::add`] says about an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Added {
    /// Taken whole: not a file, or unchanged since the previous snapshot by its stamp.
    Complete,
    /// Its bytes are needed now: call [`TreeWriter::content`], or [`TreeWriter::leave_out`].
    NeedsContent,
}

/// A committed snapshot.
#[derive(Debug)]
pub struct Committed {
    pub manifest: Manifest,
    /// What the operator should hear of the repository's state; sentences.
    pub warnings: Vec<String>,
    /// Plain bytes that were in packs which an earlier run of the plan had stored and did not come to commit.
    pub bytes_resumed: u64,
}

/// A snapshot being written. Dropping it without `commit` leaves only garbage that a next run reuses.
pub struct BackupWriter {
    inner: Arc<Inner>,
    /// Data may be sealed to a key of the plan's own.
    keys: Keys,
    plan: Name,
    id: SnapshotId,
    key: String,
    started: DateTime<Utc>,
    /// Until the commit.
    session: Option<Session>,
    /// What is noted when this one does not commit, and when it began, by the store's clock.
    leftover: (Leftover, DateTime<Utc>),
    committed: bool,
    parents: Vec<Parent>,
    previous: Option<Manifest>,
    pipeline: Pipeline,
    cancel: Cancel,
    bytes_read: u64,
    warnings: Vec<String>,
    /// Of a copy: where it is from, and what its manifest says in place of this host and run.
    copy_of: Option<CopyOf>,
}

/// What a copied snapshot keeps of the one that it is a copy of.
pub(super) struct CopyOf {
    pub from: CopiedFrom,
    pub host: String,
    pub started: DateTime<Utc>,
}

/// Greatest bytes of one entry's path and extended attributes, well below the limit of a node.
const ENTRY_MAX: usize = 1 << 20;
/// Bytes of a file in one stretch of content-defined chunks.
const STRETCH_BYTES: usize = 1 << 20;
/// Bytes of small files that go to the workers together.
const JOB_BYTES: usize = 1 << 20;
const JOB_PIECES: usize = 128;
/// Records that may wait for the names of packs before open packs are closed for their sake.
const PENDING_MAX: usize = 20_000;
/// Node references that a manifest holds itself; more go into list nodes.
const ROOT_MAX: usize = 1024;
/// Packs that nothing lists, looked at at a time.
const ADOPTERS: usize = 8;
/// Nodes of the previous tree around the present place that can be named again.
const KNOWN_NODES: usize = 16_384;

impl Repository {
    /// Begins a snapshot: publishes the session, reads tombstones and index, finds the previous snapshot of the plan, takes in packs
    /// that an interrupted run left.
    ///
    /// # Errors
    /// `WrongKey` for the maintainer role, from a slot that a rotation left behind, and when the plan's own key was destroyed; `Damaged`,
    /// `Unavailable`.
    pub fn begin(&self, plan: &Name, now: DateTime<Utc>, cancel: &Cancel) -> Result<BackupWriter> {
        let inner = &self.inner;
        inner.keys.chunk_id_key()?;
        inner.keys.require_current()?;
        let keys = inner.keys.for_plan(plan.as_str())?;
        let chain = inner.keys.chain_name(plan.as_str());
        let folder = format!("snapshots/{chain}/");
        // Ids sort in the order of commits even when the clock went backwards.
        let listed = inner.block_on(inner.store.list(&folder))?;
        let newest = listed.iter().filter_map(|object| id_of(&object.key)).max();
        let id = SnapshotId::generate_after(now, newest);
        let key = format!("{folder}{id}");
        let last = listed.iter().map(|object| object.modified).max();
        let session = Session::publish(inner, &key, &host_name(), now)?;
        let mut warnings = Vec::new();
        let begun = (|| {
            let (began, unfinished) = session.beside(inner, &folder, last)?;
            let leftover = Leftover::of(inner, &chain, last, unfinished);
            let tombstones = read_tombstones(inner)?;
            inner.load_moved()?;
            let index = self.refresh_index(&mut warnings)?;
            let (usable, left) = self.usable_packs(&index, &tombstones, leftover.since(), &mut warnings)?;
            let (parents, previous) = self.heads(&folder, &mut warnings)?;
            let ids = previous.iter().flat_map(|manifest| &manifest.sources).filter_map(|source| source.tree.ids.as_deref());
            keys.require_own_of(plan.as_str(), ids)?;
            Ok((parents, previous, Pipeline::start(inner, &keys, index, usable, left, cancel)?, (leftover, began)))
        })();
        let (parents, previous, pipeline, leftover) = match begun {
            Ok(begun) => begun,
            Err(error) => {
                session.end(inner);
                return Err(error);
            }
        };
        Ok(BackupWriter {
            inner: Arc::clone(inner),
            keys,
            plan: plan.clone(),
            id,
            key,
            started: now,
            session: Some(session),
            leftover,
            committed: false,
            parents,
            previous,
            pipeline,
            cancel: cancel.clone(),
            bytes_read: 0,
            warnings,
            copy_of: None,
        })
    }

    /// Brings the local index up to the index objects of the repository.
    pub(super) fn refresh_index(&self, warnings: &mut Vec<String>) -> Result<LocalIndex> {
        let inner = &self.inner;
        let index = LocalIndex::open(&inner.cache.path.join("index"))?;
        for listing in 1..=LISTINGS {
            match self.take_in_index(&index, warnings) {
                // A collector has put others in its place since the listing.
                Err(e) if e.kind() == Kind::NotFound && listing < LISTINGS => {}
                taken => return taken.map(|()| index),
            }
        }
        Ok(index)
    }

    fn take_in_index(&self, index: &LocalIndex, warnings: &mut Vec<String>) -> Result<()> {
        let inner = &self.inner;
        let objects = inner.block_on(inner.store.list("index/"))?;
        let names: Vec<String> = objects.iter().map(|o| o.key["index/".len()..].to_owned()).collect();
        for name in index.retain(&names)? {
            match self.read_index_object(&name) {
                Ok(packs) => index.cover(&name, &packs)?,
                // Without it some chunks are stored again; nothing is lost. `verify` tells of it.
                Err(e) if e.kind() == Kind::Damaged => {
                    warnings.push(format!("an index object is damaged and was not used: {e}. Run `lifeboat verify`"));
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    pub(super) fn read_index_object(&self, name: &str) -> Result<Vec<IndexedPack>> {
        let key = format!("index/{name}");
        let bytes = self.inner.block_on(self.inner.store.get(&key))?;
        self.decode_index_object(&key, &bytes)
    }

    pub(super) fn decode_index_object(&self, key: &str, bytes: &[u8]) -> Result<Vec<IndexedPack>> {
        let content = self.open_index_bytes(key, bytes)?;
        index::decode(&content).map_err(|e| Error::new(Kind::Damaged, format!("object {key}: cannot be decoded")).because(e))
    }

    pub(super) fn open_index_bytes(&self, key: &str, bytes: &[u8]) -> Result<Vec<u8>> {
        if key.strip_prefix("index/") != Some(blake3::hash(bytes).to_hex().as_str()) {
            return Err(Error::new(Kind::Damaged, format!("object {key}: does not match its name")));
        }
        crate::repo::seal::open(&self.inner.keys, self.inner.id, ObjectKind::Index, key, bytes)
    }

    /// Packs that may be reused, and which of them were stored since `unfinished` (`None`: none was). Packs that no index object lists (an interrupted run left them) are listed now.
    fn usable_packs(
        &self,
        index: &LocalIndex,
        tombstones: &HashSet<PackId>,
        unfinished: Option<DateTime<Utc>>,
        warnings: &mut Vec<String>,
    ) -> Result<(HashMap<PackId, u64>, HashSet<PackId>)> {
        let inner = &self.inner;
        let mut present: HashMap<PackId, u64> = HashMap::new();
        let mut left = HashSet::new();
        for object in inner.block_on(inner.store.list("packs/"))? {
            if let Some(id) = PackId::from_key(&object.key) {
                present.insert(id, object.size);
                if unfinished.is_some_and(|since| since <= object.modified) {
                    left.insert(id);
                }
            }
        }
        let listed: HashMap<PackId, u64> = index.packs().into_iter().map(|(id, len, _)| (id, len)).collect();
        let missing = listed.iter().filter(|(id, len)| present.get(id) != Some(len) && !tombstones.contains(id)).count();
        if missing > 0 {
            warnings.push(format!(
                "{missing} packs that the repository should hold are missing or have another size; their content is stored again where the source still has it. Run `lifeboat verify` to see which snapshots are harmed"
            ));
        }
        let unlisted: Vec<(PackId, u64)> =
            present.iter().filter(|(id, _)| !listed.contains_key(id) && !tombstones.contains(id)).map(|(id, len)| (*id, *len)).collect();
        let mut adopted = Vec::new();
        for packs in unlisted.chunks(ADOPTERS) {
            // A run may have left thousands, each some round trips away.
            let looked_at: Vec<Result<IndexedPack>> = std::thread::scope(|scope| {
                let looks: Vec<_> = packs.iter().map(|(id, len)| scope.spawn(|| listing_of(inner, *id, *len))).collect();
                looks.into_iter().map(|look| look.join().unwrap_or_else(|_| Err(Error::new(Kind::Bug, "a thread panicked")))).collect()
            });
            for ((id, _), looked_at) in packs.iter().zip(looked_at) {
                match looked_at {
                    Ok(pack) => adopted.push(pack),
                    Err(e) if matches!(e.kind(), Kind::Damaged | Kind::NotFound) => {
                        tracing::warn!(pack = %id.key(), error = ?e, "a pack that nothing lists was left alone");
                    }
                    Err(e) => return Err(e),
                }
            }
        }
        for packs in adopted.chunks(256) {
            publish_index(inner, index, packs)?;
        }
        let known: HashSet<PackId> = index.packs().into_iter().map(|(id, ..)| id).collect();
        present.retain(|id, len| known.contains(id) && !tombstones.contains(id) && listed.get(id).is_none_or(|l| l == len));
        Ok((present, left))
    }
}

/// What the index says of a pack, by the pack itself: its directory is there whole and of this repository.
pub(super) fn listing_of(inner: &Inner, id: PackId, len: u64) -> Result<IndexedPack> {
    let (pack, directory) = inner.directory_of_listed(id, len)?;
    let prefixes = directory.chunks().map(|c| c.id.prefix()).collect();
    Ok(IndexedPack { id, kind: directory.kind, len, directory_len: pack.directory_len, prefixes })
}

impl BackupWriter {
    /// The snapshot's id, if it will be committed.
    pub fn id(&self) -> SnapshotId {
        self.id
    }

    /// Reuses nothing of a damaged pack any more, and tells of it.
    fn distrust(&mut self, pack: PackNo, error: &Error) {
        if self.pipeline.distrust(pack) {
            let key = self.inner.packs.get(pack).id.key();
            self.warnings.push(format!("{key} is damaged and not reused, its content was stored again: {error}. Run `lifeboat verify` to see which snapshots are harmed"));
        }
    }

    /// Begins the tree of one source (unique name within the snapshot), whose entries come in this order.
    ///
    /// # Errors
    /// When the previous tree cannot be read for another reason than damage (a damaged one is not reused).
    pub fn tree(&mut self, name: &Name, kind: &str, order: Order) -> Result<TreeWriter<'_>> {
        let mut previous = None;
        let ids = self.keys.ids_name()?;
        // Under other ids (the plan has got a key of its own, a rotation began them anew) nothing of it may be named again, not even a file
        // that did not change: it is sealed to whom it was meant to be withdrawn from.
        let before = self.previous.as_ref().and_then(|m| m.sources.iter().find(|s| s.name == *name && s.tree.ids == ids));
        if let Some(record) = before {
            match PreviousTree::open(&self.inner, &record.tree, order) {
                Ok(mut tree) => {
                    for (pack, error) in tree.damaged.drain(..) {
                        self.distrust(pack, &error);
                    }
                    previous = Some(tree);
                }
                Err(e) if e.kind() == Kind::Damaged => {
                    self.warnings.push(format!("the previous snapshot's tree of {name} is damaged, so everything is read again: {e}"));
                }
                Err(e) => return Err(e),
            }
        }
        self.tree_after(name, kind, order, previous)
    }

    /// Makes this a copy: the previous snapshot is what the caller names, tree by tree.
    pub(super) fn becomes_copy(&mut self, copy_of: CopyOf) {
        self.previous = None;
        self.copy_of = Some(copy_of);
    }

    /// Waits until everything that was written is stored and listed: the manifest alone is missing then.
    pub(super) fn settle(&mut self) -> Result<()> {
        self.pipeline.flush_nodes()?;
        self.pipeline.drain()
    }

    /// What tells the ids of this snapshot's chunks from others.
    pub(super) fn ids_name(&self) -> Result<Option<String>> {
        self.keys.ids_name()
    }

    pub(super) fn count_read(&mut self, bytes: u64) {
        self.bytes_read += bytes;
    }

    /// Begins a tree that follows this one.
    pub(super) fn tree_after(&mut self, name: &Name, kind: &str, order: Order, previous: Option<PreviousTree>) -> Result<TreeWriter<'_>> {
        let level = |e| Error::new(Kind::Failed, "start an encoder").because(e);
        Ok(TreeWriter {
            chunker: ContentChunker::new(self.keys.boundary_seed()?),
            node_id_key: self.inner.keys.node_id_key(),
            encoder: Encoder::new(Profile::Nodes).map_err(level)?,
            name: name.clone(),
            kind: kind.to_owned(),
            order,
            previous,
            last_path: None,
            current: None,
            last_read: None,
            job: self.pipeline.job(),
            pending: VecDeque::new(),
            node: NodeEncoder::new(),
            known: HashMap::new(),
            known_order: VecDeque::new(),
            frame: Vec::new(),
            frame_nodes: Vec::new(),
            frame_refs: Vec::new(),
            refs: Vec::new(),
            arrived: Vec::new(),
            entries: 0,
            bytes: 0,
            writer: self,
        })
    }

    /// Waits for all uploads, writes packs → index → manifest, ends the session. `time`: the moment that the content is of.
    ///
    /// # Errors
    /// Whatever failed; nothing is committed then. `Busy` when this run was fenced (it was paused for long): run it again. `WrongKey` when the plan's own
    /// key was destroyed since this began, or a rotation has left this slot behind.
    pub fn commit(self, sources: Vec<SourceRecord>, time: DateTime<Utc>, tags: Vec<String>, progress: &dyn Progress) -> Result<Committed> {
        self.commit_if(sources, time, tags, progress, |_| Ok(()))
    }

    /// Like [`BackupWriter::commit`], but `may` is asked, with the snapshot's id, when nothing is left to do but to create the manifest.
    ///
    /// # Errors
    /// As [`BackupWriter::commit`]; what `may` says: nothing is committed then, and never will be.
    pub fn commit_if(
        mut self,
        sources: Vec<SourceRecord>,
        time: DateTime<Utc>,
        tags: Vec<String>,
        progress: &dyn Progress,
        may: impl FnOnce(SnapshotId) -> Result<()>,
    ) -> Result<Committed> {
        progress.event(Event::Phase { name: "commit", detail: String::new() });
        self.settle()?;
        self.cancel.check()?;
        let counters = self.pipeline.counters();
        let stats = Stats {
            bytes_read: self.bytes_read,
            bytes_source: sources.iter().map(|s| s.bytes).sum(),
            bytes_stored: counters.bytes_stored.load(Ordering::Relaxed),
            entries: sources.iter().map(|s| s.entries).sum(),
            chunks_new: counters.chunks_new.load(Ordering::Relaxed),
            chunks_reused: counters.chunks_reused.load(Ordering::Relaxed),
            packs: counters.packs.load(Ordering::Relaxed),
        };
        if let Some(change) = self.inner.look_at_keys(&self.keys, self.plan.as_str()).map_err(|e| e.within("commit the snapshot"))? {
            self.warnings.push(change.of_snapshot(self.plan.as_str()));
        }
        let (host, started, copied_from) = match self.copy_of.take() {
            Some(CopyOf { from, host, started }) => (host, started, Some(from)),
            None => (host_name(), self.started, None),
        };
        let mut manifest = Manifest {
            id: self.id,
            plan: self.plan.clone(),
            host,
            started,
            time,
            parents: self.parents.clone(),
            sources,
            stats,
            tags,
            program: env!("CARGO_PKG_VERSION").into(),
            copied_from,
        };
        if let Some(replaces) = manifest.replaces() {
            let signature = self.inner.keys.sign(manifest.replacement_text(self.inner.id, replaces).as_bytes())?;
            manifest.copied_from.as_mut().map(|from| from.replaces_signature.insert(signature));
        }
        let json = serde_json::to_vec(&manifest).context(Kind::Bug, || "encode a manifest".into())?;
        let sealed = self.inner.seal_object(ObjectKind::Manifest, &self.key, &json)?;
        may(self.id)?;
        // The commit.
        match self.inner.block_on(self.inner.store.create(&self.key, Bytes::from(sealed))) {
            Ok(_) => {}
            Err(e) if e.kind() == Kind::AlreadyExists => {
                return Err(Error::new(
                    Kind::Busy,
                    "this backup was fenced by somebody who took it for dead (it had paused for long); nothing was committed",
                )
                .hint("run the backup again: what it sent is reused as far as possible")
                .because(e));
            }
            Err(e) => {
                // It may still land. The session stays, so that a collector must fence this key before it deletes anything.
                if let Some(session) = self.session.take() {
                    session.leave();
                }
                return Err(e.within("commit the snapshot"));
            }
        }
        self.committed = true;
        self.warnings.extend(self.pipeline.warnings());
        let bytes_resumed = self.pipeline.counters().bytes_resumed.load(Ordering::Relaxed);
        Ok(Committed { manifest, warnings: std::mem::take(&mut self.warnings), bytes_resumed })
    }
}

impl Drop for BackupWriter {
    /// Committed or given up: either way nothing more will be committed under this session.
    fn drop(&mut self) {
        // Nothing may be written any more once the session is gone.
        self.pipeline.stop();
        let (leftover, began) = &self.leftover;
        if self.committed {
            leftover.forget();
        } else {
            leftover.note(*began);
        }
        if let Some(session) = self.session.take() {
            session.end(&self.inner);
        }
    }
}

/// One source's tree being written.
///
/// Memory with [`Order::Any`], beside the pipeline's: an entry waits for the end with its path and attributes and, when it is one
/// stretch, its packed chunk list (17 bytes a chunk, at most about 2 KiB); a larger file with 36 bytes for each stretch (about 1 MiB of it),
/// because the stretches themselves are placed at once. The previous snapshot's files are kept the same way, and each goes when its path
/// comes up. So 100,000 relation files of 1 TiB are about 40 MB for their entries and 40 MB for their stretches, twice while they are put in order.
pub struct TreeWriter<'a> {
    writer: &'a mut BackupWriter,
    name: Name,
    kind: String,
    order: Order,
    chunker: ContentChunker,
    node_id_key: [u8; 32],
    encoder: Encoder,
    previous: Option<PreviousTree>,
    last_path: Option<Vec<u8>>,
    /// The entry whose content is awaited.
    current: Option<(Entry, Option<PreviousFile>)>,
    /// The entry that was read last: its stamp may still be forgotten.
    last_read: Option<(Entry, PendingContent)>,
    job: Job,
    pending: VecDeque<Pending>,
    node: NodeEncoder<PackNo>,
    /// Nodes of the previous tree around the present place, by id.
    known: HashMap<ChunkId, Place<Loc>>,
    known_order: VecDeque<ChunkId>,
    /// Nodes on their way into one frame, and which reference each is for.
    frame: Vec<u8>,
    frame_nodes: Vec<ChunkEntry>,
    frame_refs: Vec<usize>,
    /// In the order of the tree; with [`Order::Any`], until the end, those of stretches in the order they came.
    refs: Vec<NodeRef<Loc>>,
    /// With [`Order::Any`]: entries that wait for the end.
    arrived: Vec<Arrived>,
    entries: u64,
    bytes: u64,
}

/// An entry whose content has its places, on the way into tree order.
struct Arrived {
    entry: Entry,
    content: ArrivedContent,
}

enum ArrivedContent {
    None,
    Inline(PackedChunks<PackNo>),
    /// Its stretches among `refs`.
    Stretches {
        first: usize,
        count: usize,
    },
}

/// A record that waits for its chunks to get places.
enum Pending {
    Entry(Entry, PendingContent),
    Stretch(PieceSlot),
    Known(Vec<Chunk<PackNo>>),
}

enum PendingContent {
    None,
    Slot(PieceSlot),
    Known(Vec<Chunk<PackNo>>),
    Stretches(u64),
}

/// No ticket: a place that is filled in when the node's frame is sealed.
const UNPLACED: Place<Loc> = Place { pack: Loc::Ticket(u32::MAX), frame: 0, slot: 0 };

impl TreeWriter<'_> {
    /// Adds the next entry.
    ///
    /// # Errors
    /// `Bug` when entries are not in the order that was promised or an earlier one still needs its content; what made the pipeline fail.
    pub fn add(&mut self, entry: Entry) -> Result<Added> {
        if self.current.is_some() {
            return Err(Error::new(Kind::Bug, format!("entry {} was added while another one's bytes are awaited", entry.display_path())));
        }
        self.keep_last_read()?;
        // With any order, a path that comes twice is found at the end.
        let misplaced = self.order == Order::Tree && self.last_path.as_ref().is_some_and(|last| tree_order(last, &entry.path).is_ge());
        if misplaced || !is_valid_path(&entry.path) {
            return Err(Error::new(Kind::Bug, format!("entry {} is out of order or has an invalid path", entry.display_path())));
        }
        let attributes: usize = entry.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        if attributes + entry.path.len() > ENTRY_MAX {
            return Err(Error::new(
                Kind::Failed,
                format!("{} has {attributes} bytes of extended attributes, over the limit of {ENTRY_MAX}", entry.display_path()),
            )
            .hint("remove attributes from it, or exclude it from the source"));
        }
        if self.order == Order::Tree {
            self.last_path = Some(entry.path.clone());
        }
        // Asked for every entry, so that the walk through the previous tree keeps step.
        let previous = self.previous_file(&entry.path)?;
        let EntryKind::File { layout, .. } = entry.kind else {
            self.entries += 1;
            self.pending.push_back(Pending::Entry(entry, PendingContent::None));
            self.settle(PENDING_MAX)?;
            return Ok(Added::Complete);
        };
        if let Layout::Pages(size) = layout
            && !(size.is_power_of_two() && (512..=65_536).contains(&size))
        {
            return Err(Error::new(Kind::Usage, format!("page size {size} is not a power of two between 512 and 65536")));
        }
        if let Some(file) = &previous
            && !entry.stamp.is_empty()
            && file.stamp == entry.stamp
            && file.layout == layout
            && self.reuse(&entry, previous.as_ref())?
        {
            return Ok(Added::Complete);
        }
        // Chunks of another layout stand at other positions.
        let previous = previous.filter(|file| file.layout == layout);
        self.current = Some((entry, previous));
        Ok(Added::NeedsContent)
    }

    /// The file of this path in the previous tree; paths are asked for in the tree's order.
    pub(super) fn previous_file(&mut self, path: &[u8]) -> Result<Option<PreviousFile>> {
        let Some(tree) = &mut self.previous else { return Ok(None) };
        let found = tree.find(path)?;
        for (pack, error) in tree.damaged.drain(..) {
            self.writer.distrust(pack, &error);
        }
        Ok(found)
    }

    /// A stretch whose chunks have their places already; the entry that it belongs to follows.
    pub(super) fn place_stretch(&mut self, chunks: Vec<Chunk<Loc>>) -> Result<()> {
        self.pending.push_back(Pending::Stretch(Arc::new(OnceLock::from(chunks))));
        self.settle(PENDING_MAX)
    }

    /// An entry of `size` bytes whose content has its places already: `chunks`, or as many stretches as came before it.
    pub(super) fn place_entry(&mut self, entry: Entry, size: u64, chunks: Vec<Chunk<Loc>>, stretches: u64) -> Result<()> {
        if self.last_path.as_ref().is_some_and(|last| tree_order(last, &entry.path).is_ge()) {
            return Err(Error::new(Kind::Bug, format!("entry {} is out of order", entry.display_path())));
        }
        self.last_path = Some(entry.path.clone());
        let content = match (&entry.kind, stretches) {
            (EntryKind::File { .. }, 0) => PendingContent::Slot(Arc::new(OnceLock::from(chunks))),
            (EntryKind::File { .. }, _) => PendingContent::Stretches(stretches),
            _ => PendingContent::None,
        };
        self.entries += 1;
        self.bytes += size;
        self.pending.push_back(Pending::Entry(entry, content));
        self.settle(PENDING_MAX)
    }

    pub(super) fn pipeline(&self) -> &Pipeline {
        &self.writer.pipeline
    }

    pub(super) fn writer(&mut self) -> &mut BackupWriter {
        self.writer
    }

    /// Names the chunks of an unchanged file again. `false`: some of them cannot be reused, so the file must be read.
    fn reuse(&mut self, entry: &Entry, previous: Option<&PreviousFile>) -> Result<bool> {
        let (Some(file), Some(tree)) = (previous, &mut self.previous) else { return Ok(false) };
        let mut stretches = Vec::new();
        let mut damaged = None;
        let content = match &file.content {
            Content::None => return Ok(false),
            Content::Inline(chunks) => {
                if !chunks.iter().all(|c| self.writer.pipeline.is_usable(&c.stored)) {
                    return Ok(false);
                }
                PendingContent::Known(chunks.clone())
            }
            Content::Stretches(count) => {
                // Looked at first and named again afterwards: a file's whole list may not fit in memory.
                stretches.extend_from_slice(&tree.refs[file.first_node..file.first_node + *count as usize]);
                for node in &stretches {
                    match tree.nodes.stretch(node) {
                        Ok(chunks) if chunks.iter().all(|c| self.writer.pipeline.is_usable(&c.stored)) => {}
                        Ok(_) => return Ok(false),
                        Err(e) if e.kind() == Kind::Damaged => {
                            damaged = Some((node.place.pack, e));
                            break;
                        }
                        Err(e) => return Err(e),
                    }
                }
                PendingContent::Stretches(*count)
            }
        };
        if let Some((pack, error)) = damaged {
            self.writer.distrust(pack, &error);
            return Ok(false);
        }
        let size = file.size;
        let mut entry = entry.clone();
        if let EntryKind::File { size: new, .. } = &mut entry.kind {
            *new = Some(size);
        }
        for node in stretches {
            let Some(tree) = &mut self.previous else { return Err(Error::new(Kind::Bug, "the previous tree is gone")) };
            let chunks = tree.nodes.stretch(&node)?;
            self.remember(&node);
            self.pending.push_back(Pending::Known(chunks));
            self.settle(PENDING_MAX)?;
        }
        self.entries += 1;
        self.bytes += size;
        self.pending.push_back(Pending::Entry(entry, content));
        self.settle(PENDING_MAX)?;
        Ok(true)
    }

    /// Reads the bytes of the entry just added to their end; returns how many there were.
    ///
    /// # Errors
    /// What reading returns: the entry is left out then and the tree may go on; what made the pipeline fail.
    pub fn content(&mut self, reader: &mut dyn Read) -> Result<u64> {
        let Some((entry, previous)) = self.current.take() else {
            return Err(Error::new(Kind::Bug, "content without an entry that needs it"));
        };
        let mut stretches = 0;
        let read = self.read_content(entry, previous, reader, &mut stretches);
        if read.is_err() {
            self.withdraw(stretches);
        }
        read
    }

    /// Takes back the last `stretches` records, all of an entry that will not follow. Their chunks stay stored and are found again.
    fn withdraw(&mut self, mut stretches: usize) {
        while stretches > 0 && matches!(self.pending.back(), Some(Pending::Stretch(_))) {
            self.pending.pop_back();
            stretches -= 1;
        }
        self.job.filled = self.job.pieces.last().map_or(0, |piece| piece.end);
        // The others are nodes by now: the last ones referred to, and the last ones of the open frame unless it was closed meanwhile.
        self.refs.truncate(self.refs.len().saturating_sub(stretches));
        while self.frame_refs.last().is_some_and(|at| *at >= self.refs.len()) {
            self.frame_refs.pop();
            let len = self.frame_nodes.pop().map_or(0, |node| node.len as usize);
            self.frame.truncate(self.frame.len().saturating_sub(len));
        }
    }

    /// `stretches` counts the records of stretches that were added.
    fn read_content(&mut self, entry: Entry, previous: Option<PreviousFile>, reader: &mut dyn Read, stretches: &mut usize) -> Result<u64> {
        let EntryKind::File { layout, .. } = entry.kind else { return Err(Error::new(Kind::Bug, "content for an entry that is no file")) };
        let failed = |entry: &Entry| format!("read {}", entry.display_path());
        let stretch_len = match layout {
            Layout::Pages(size) => size as usize * (STRETCH_BYTES / size as usize).clamp(1, STRETCH_CHUNKS),
            Layout::Content => STRETCH_BYTES + CONTENT_MAX,
        };
        // One byte more than the file should have shows its end, so that many small files share a job.
        let mut want = match entry.kind {
            EntryKind::File { size: Some(size), .. } => {
                usize::try_from(size).map_or(stretch_len, |size| stretch_len.min(size.saturating_add(1)))
            }
            _ => stretch_len,
        };
        let mut total = 0u64;
        let mut count = 0u64;
        // The first stretch is held back: a file that ends with it is kept inside its entry.
        let mut first: Option<PieceSlot> = None;
        let mut carry: Vec<u8> = Vec::new();
        loop {
            if self.job.filled + want > JOB_BYTES + CONTENT_MAX || self.job.pieces.len() >= JOB_PIECES {
                self.submit()?;
            }
            let (start, held) = (self.job.filled, carry.len());
            let data = &mut self.job.data;
            if data.len() < start + want {
                data.resize(start + want, 0);
            }
            data[start..start + held].copy_from_slice(&carry);
            carry.clear();
            let read = fill(reader, &mut data[start + held..start + want]).map_err(|e| read_error(e, || failed(&entry)))?;
            self.job.filled = start + held + read;
            self.writer.bytes_read += read as u64;
            let at_end = held + read < want;
            let available = held + read;
            if available == 0 {
                break;
            }
            if !at_end && want < stretch_len {
                // It is longer than it was when it was listed: begin again with whole stretches.
                want = stretch_len;
                carry.extend_from_slice(&self.job.data[start..start + available]);
                self.job.filled = start;
                continue;
            }
            want = stretch_len;
            let (used, cuts) = match layout {
                Layout::Pages(size) => (available, Cuts::Pages(size as usize)),
                Layout::Content => {
                    let (used, lens) = self.cut(&self.job.data[start..start + available], at_end);
                    (used, Cuts::Lens(lens))
                }
            };
            if used < available {
                carry.extend_from_slice(&self.job.data[start + used..start + available]);
                self.job.filled = start + used;
            }
            let previous_chunks = self.previous_chunks(previous.as_ref(), count)?;
            let slot: PieceSlot = Arc::new(OnceLock::new());
            self.job.pieces.push(Piece { start, end: start + used, cuts, previous: previous_chunks, slot: Arc::clone(&slot) });
            total += used as u64;
            count += 1;
            if let (None, 1) = (&first, count) {
                first = Some(slot);
            } else {
                for slot in first.take().into_iter().chain([slot]) {
                    self.pending.push_back(Pending::Stretch(slot));
                    *stretches += 1;
                }
            }
            self.settle(PENDING_MAX)?;
            self.writer.cancel.check()?;
            if at_end && carry.is_empty() {
                break;
            }
        }
        let mut entry = entry;
        if let EntryKind::File { size, .. } = &mut entry.kind {
            if size.is_some_and(|declared| declared != total) {
                // It changed under the reader's eyes: its stamp vouches for nothing.
                entry.stamp.clear();
            }
            *size = Some(total);
        }
        let content = match first {
            Some(slot) => PendingContent::Slot(slot),
            None if count == 0 => PendingContent::Known(Vec::new()),
            None => PendingContent::Stretches(count),
        };
        self.entries += 1;
        self.bytes += total;
        self.last_read = Some((entry, content));
        Ok(total)
    }

    /// Keeps the entry whose content was read last without its stamp, so that the next backup reads it again.
    pub fn forget_stamp(&mut self) {
        if let Some((entry, _)) = &mut self.last_read {
            entry.stamp.clear();
        }
    }

    fn keep_last_read(&mut self) -> Result<()> {
        if let Some((entry, content)) = self.last_read.take() {
            self.pending.push_back(Pending::Entry(entry, content));
            self.settle(PENDING_MAX)?;
        }
        Ok(())
    }

    /// Cuts by content: lengths of chunks of about a stretch, and their sum.
    fn cut(&self, bytes: &[u8], at_end: bool) -> (usize, Vec<u32>) {
        let mut lens = Vec::new();
        let mut used = 0;
        while used < bytes.len() && used < STRETCH_BYTES && lens.len() < STRETCH_CHUNKS {
            let rest = &bytes[used..];
            if rest.len() < CONTENT_MAX && !at_end {
                break;
            }
            let len = self.chunker.cut(&rest[..rest.len().min(CONTENT_MAX)]);
            lens.push(len as u32);
            used += len;
        }
        (used, lens)
    }

    /// What stood at this stretch in the previous snapshot, by position.
    pub(super) fn previous_chunks(&mut self, previous: Option<&PreviousFile>, stretch: u64) -> Result<Option<Vec<Chunk<PackNo>>>> {
        let (Some(file), Some(tree)) = (previous, &mut self.previous) else { return Ok(None) };
        match &file.content {
            Content::Inline(chunks) if stretch == 0 => Ok(Some(chunks.clone())),
            Content::Stretches(count) if stretch < *count => {
                let node = tree.refs[file.first_node + stretch as usize];
                match tree.nodes.stretch(&node) {
                    Ok(chunks) => {
                        self.remember(&node);
                        Ok(Some(chunks))
                    }
                    Err(e) if e.kind() == Kind::Damaged => {
                        self.writer.distrust(node.place.pack, &e);
                        Ok(None)
                    }
                    Err(e) => Err(e),
                }
            }
            _ => Ok(None),
        }
    }

    /// The node of this stretch of a file of the previous tree.
    pub(super) fn previous_node(&self, file: &PreviousFile, stretch: u64) -> Option<ChunkId> {
        Some(self.previous.as_ref()?.refs.get(file.first_node + stretch as usize)?.id)
    }

    /// Drops the entry just added (it vanished).
    pub fn leave_out(&mut self) {
        self.current = None;
    }

    /// Ends the tree; `finish` is the source's account, kept in the manifest.
    ///
    /// # Errors
    /// What made the pipeline fail; with [`Order::Any`] also a path that came twice, or a hard link to what is no file before it in the tree.
    pub fn finish(mut self, finish: serde_json::Value) -> Result<SourceRecord> {
        if self.current.is_some() {
            return Err(Error::new(Kind::Bug, "the tree ended while an entry's bytes are awaited"));
        }
        self.keep_last_read()?;
        self.submit()?;
        self.writer.pipeline.flush()?;
        self.settle(0)?;
        if self.order == Order::Any {
            self.arrange()?;
        }
        self.close_node(false)?;
        let mut depth = 0;
        loop {
            self.close_frame()?;
            self.writer.pipeline.flush_nodes()?;
            let refs = self.resolve_refs()?;
            if refs.len() <= ROOT_MAX {
                let inner = &self.writer.inner;
                let root = encode_list(&refs, |number| inner.packs.get(number));
                let ids = self.writer.keys.ids_name()?;
                let tree = TreeRoot { depth, nodes: hex::encode(root), ids };
                return Ok(SourceRecord { name: self.name, kind: self.kind, entries: self.entries, bytes: self.bytes, finish, tree });
            }
            depth += 1;
            let mut list: Vec<NodeRef<PackNo>> = Vec::new();
            for (at, node) in refs.iter().enumerate() {
                list.push(*node);
                if ends_list(node.id, list.len()) || at + 1 == refs.len() {
                    let inner = Arc::clone(&self.writer.inner);
                    let bytes = encode_list(&list, |number| inner.packs.get(number));
                    self.place_node(bytes, false)?;
                    list.clear();
                }
            }
        }
    }

    fn resolve_refs(&mut self) -> Result<Vec<NodeRef<PackNo>>> {
        let mut refs = Vec::with_capacity(self.refs.len());
        for node in std::mem::take(&mut self.refs) {
            refs.push(NodeRef { id: node.id, stretch: node.stretch, place: self.writer.pipeline.resolve(node.place)? });
        }
        Ok(refs)
    }

    fn submit(&mut self) -> Result<()> {
        if self.job.pieces.is_empty() {
            return Ok(());
        }
        let next = self.writer.pipeline.job();
        self.writer.pipeline.submit(std::mem::replace(&mut self.job, next))
    }

    /// Turns pending records into nodes as far as their places are known. With more than `most` waiting, waits for them.
    fn settle(&mut self, most: usize) -> Result<()> {
        let mut flushed = false;
        while let Some(front) = self.pending.front() {
            let record = match front {
                Pending::Entry(entry, content) => {
                    let content = match content {
                        PendingContent::None => Some(Content::None),
                        PendingContent::Known(chunks) => Some(Content::Inline(chunks.clone())),
                        PendingContent::Stretches(count) => Some(Content::Stretches(*count)),
                        PendingContent::Slot(slot) => self.chunks(slot).map(Content::Inline),
                    };
                    content.map(|content| Record::Entry { entry: entry.clone(), content })
                }
                Pending::Stretch(slot) => self.chunks(slot).map(Record::Stretch),
                Pending::Known(chunks) => Some(Record::Stretch(chunks.clone())),
            };
            if let Some(record) = record {
                self.pending.pop_front();
                self.record(record)?;
                continue;
            }
            if self.pending.len() <= most {
                return Ok(());
            }
            if flushed {
                self.wait_for_front()?;
            } else {
                // Names are given to full packs only: close the open ones.
                self.submit()?;
                self.writer.pipeline.flush()?;
                flushed = true;
            }
        }
        Ok(())
    }

    fn wait_for_front(&self) -> Result<()> {
        let Some(Pending::Entry(_, PendingContent::Slot(slot)) | Pending::Stretch(slot)) = self.pending.front() else { return Ok(()) };
        // `flush` has waited for the jobs, so the chunks are known; what is missing are names of packs.
        let Some(chunks) = slot.get() else { return Err(Error::new(Kind::Bug, "a job ended without its chunks")) };
        for place in chunks.iter().flat_map(|c| c.stored.places().collect::<Vec<_>>()) {
            self.writer.pipeline.resolve(place)?;
        }
        Ok(())
    }

    /// The chunks of a piece with real places, if all have one by now.
    fn chunks(&self, slot: &PieceSlot) -> Option<Vec<Chunk<PackNo>>> {
        let pipeline = &self.writer.pipeline;
        slot.get()?
            .iter()
            .map(|chunk| {
                let stored = match chunk.stored {
                    Stored::Zero => Stored::Zero,
                    Stored::Full(place) => Stored::Full(pipeline.resolved(place)?),
                    Stored::Delta { patch, base } => Stored::Delta { patch: pipeline.resolved(patch)?, base: pipeline.resolved(base)? },
                };
                Some(Chunk { id: chunk.id, len: chunk.len, stored })
            })
            .collect()
    }

    /// Takes a record whose places are known.
    fn record(&mut self, record: Record<PackNo>) -> Result<()> {
        match record {
            Record::Stretch(_) => {
                self.close_node(false)?;
                self.node.record(&record);
                self.close_node(true)
            }
            Record::Entry { entry, content } if self.order == Order::Any => {
                let content = match content {
                    Content::None => ArrivedContent::None,
                    Content::Inline(chunks) => ArrivedContent::Inline(PackedChunks::new(&chunks)),
                    // They were placed just before.
                    Content::Stretches(count) => {
                        let count = count as usize;
                        ArrivedContent::Stretches { first: self.refs.len() - count, count }
                    }
                };
                self.arrived.push(Arrived { entry, content });
                Ok(())
            }
            Record::Entry { .. } => self.record_entry(&record),
        }
    }

    /// Puts an entry, which is the next one of the tree, into the open node.
    fn record_entry(&mut self, record: &Record<PackNo>) -> Result<()> {
        self.node.record(record);
        match record {
            Record::Entry { entry, .. } if ends_node(&entry.path, self.node.len()) => self.close_node(false),
            _ => Ok(()),
        }
    }

    /// Brings what came in any order into tree order: from here on nothing tells the two apart.
    fn arrange(&mut self) -> Result<()> {
        // All stretches get their places.
        self.close_frame()?;
        let stretches = std::mem::take(&mut self.refs);
        let mut arrived = std::mem::take(&mut self.arrived);
        arrived.sort_unstable_by(|a, b| tree_order(&a.entry.path, &b.entry.path));
        if let Some([twice, _]) = arrived.array_windows().find(|[a, b]| a.entry.path == b.entry.path) {
            return Err(Error::new(Kind::Failed, format!("the source yielded {} twice", twice.entry.display_path())));
        }
        for (position, Arrived { entry, .. }) in arrived.iter().enumerate() {
            let EntryKind::Hardlink { target } = &entry.kind else { continue };
            let found = arrived[..position].binary_search_by(|other| tree_order(&other.entry.path, target));
            if !found.is_ok_and(|at| matches!(arrived[at].entry.kind, EntryKind::File { .. })) {
                let message = format!("{} is another name of {}, which is no file before it", entry.display_path(), display_path(target));
                return Err(Error::new(Kind::Failed, message));
            }
        }
        for Arrived { entry, content } in arrived {
            let content = match content {
                ArrivedContent::None => Content::None,
                ArrivedContent::Inline(chunks) => Content::Inline(chunks.chunks().context(Kind::Bug, || "unpack a chunk list".into())?),
                ArrivedContent::Stretches { first, count } => {
                    self.close_node(false)?;
                    self.refs.extend_from_slice(&stretches[first..first + count]);
                    Content::Stretches(count as u64)
                }
            };
            self.record_entry(&Record::Entry { entry, content })?;
        }
        Ok(())
    }

    fn close_node(&mut self, stretch: bool) -> Result<()> {
        if self.node.is_empty() {
            return Ok(());
        }
        let inner = Arc::clone(&self.writer.inner);
        let node = std::mem::replace(&mut self.node, NodeEncoder::new());
        self.place_node(node.finish(|number| inner.packs.get(number)), stretch)
    }

    /// Refers to a node: to the one that is stored already, or puts it into the open frame.
    fn place_node(&mut self, bytes: Vec<u8>, stretch: bool) -> Result<()> {
        let id = node_id(&self.node_id_key, &bytes);
        if let Some(place) = self.known_place(id) {
            self.refs.push(NodeRef { id, stretch, place });
            return Ok(());
        }
        if !self.frame_nodes.is_empty() && self.frame.len() + bytes.len() > NODE_FRAME_TARGET {
            self.close_frame()?;
        }
        self.frame_refs.push(self.refs.len());
        self.refs.push(NodeRef { id, stretch, place: UNPLACED });
        self.frame_nodes.push(ChunkEntry { id, len: bytes.len() as u32, base: None });
        self.frame.extend_from_slice(&bytes);
        Ok(())
    }

    fn known_place(&mut self, id: ChunkId) -> Option<Place<Loc>> {
        if let Some(place) = self.known.get(&id) {
            return Some(*place);
        }
        let node = self.previous.as_ref()?.entry_nodes.get(&id).copied()?;
        self.writer.pipeline.is_usable(&Stored::Full(node)).then_some(Place {
            pack: Loc::Known(node.pack),
            frame: node.frame,
            slot: node.slot,
        })
    }

    /// A node of the previous tree near the present place: likely to be needed again.
    fn remember(&mut self, node: &NodeRef<PackNo>) {
        if !self.writer.pipeline.is_usable(&Stored::Full(node.place)) {
            return;
        }
        let place = Place { pack: Loc::Known(node.place.pack), frame: node.place.frame, slot: node.place.slot };
        if self.known.insert(node.id, place).is_none() {
            self.known_order.push_back(node.id);
        }
        if self.known_order.len() > KNOWN_NODES
            && let Some(oldest) = self.known_order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }

    fn close_frame(&mut self) -> Result<()> {
        if self.frame_nodes.is_empty() {
            return Ok(());
        }
        let (encoding, encoded) = self.encoder.encode(&self.frame).context(Kind::Failed, || "compress a frame of metadata".into())?;
        let ticket = self.writer.pipeline.push_nodes(encoding, encoded, std::mem::take(&mut self.frame_nodes))?;
        for (slot, at) in self.frame_refs.drain(..).enumerate() {
            self.refs[at].place = Place { pack: Loc::Ticket(ticket), frame: 0, slot: slot as u32 };
        }
        self.frame.clear();
        Ok(())
    }
}

/// Reads until the buffer is full or the end; how many bytes there were.
fn fill(reader: &mut dyn Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut have = 0;
    while have < buffer.len() {
        match reader.read(&mut buffer[have..]) {
            Ok(0) => break,
            Ok(read) => have += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(have)
}

/// An error of a source's reader: our own, wrapped, or an I/O error.
fn read_error(error: std::io::Error, message: impl FnOnce() -> String) -> Error {
    match error.downcast::<Error>() {
        Ok(ours) => ours,
        Err(error) => Err::<(), _>(error).io_context(message).err().unwrap_or_else(|| Error::new(Kind::Bug, "no error")),
    }
}

//! The backup pipeline: cutting and hashing, compressing and sealing, uploading run at the same time, on a bounded number of threads
//! with bounded memory.
//!
//! ```text
//! caller ──jobs──▶ workers (hash, find, compress, seal) ──full packs──▶ uploaders (name, create) ──▶ index objects
//! ```
//! A new chunk's place is known late: its frame is a *ticket* until the frame is sealed into a pack, and the pack has no name until
//! it is full. Whoever needs the name waits for it in [`Pipeline::resolve`].

use std::collections::hash_map::Entry as Slot;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded};

use crate::error::{Error, Kind, Result};
use crate::event::Cancel;
use crate::repo::Inner;
use crate::repo::format::{ChunkId, FRAME_TARGET, NODE_PACK_TARGET, ObjectKind, PACK_TARGET, PackId, PackKind};
use crate::repo::frame::{Encoder, Encoding, Profile, prove};
use crate::repo::index::{self, IndexedPack, LocalIndex};
use crate::repo::keys::Keys;
use crate::repo::nodes::chunk_id;
use crate::repo::pack::{ChunkEntry, PackBuilder};
use crate::repo::packs::PackNo;
use crate::repo::tree::{Chunk, PackRef, Place, Stored};

/// One in so many frames is decoded again and compared before it is trusted.
const SAMPLE: u64 = 32;
/// Packs after which an index object is written, so that an interrupted run is found again.
const INDEX_EVERY: usize = 16;
/// Chunks at which a pack is closed however small it is.
const PACK_CHUNKS: u32 = 1 << 18;
/// Chunks that one index object lists at most (8 MiB of prefixes): whoever reads one holds it three times in memory.
const INDEX_CHUNKS: usize = 1 << 20;
/// Packs being named and uploaded at a time.
const UPLOADERS: usize = 2;

/// Names a chunk's pack while the backup runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Loc {
    Known(PackNo),
    /// In the frame with this ticket (the `frame` of the place means nothing).
    Ticket(u32),
}

/// How a piece is cut.
pub enum Cuts {
    /// At multiples of this size.
    Pages(usize),
    /// Into chunks of these lengths.
    Lens(Vec<u32>),
}

/// The chunks of a piece, once they are known.
pub type PieceSlot = Arc<OnceLock<Vec<Chunk<Loc>>>>;

/// Part of a job: one stretch of a file, or a small file.
pub struct Piece {
    pub start: usize,
    pub end: usize,
    pub cuts: Cuts,
    /// The chunks that stood at this very position in the previous snapshot.
    pub previous: Option<Vec<Chunk<PackNo>>>,
    pub slot: PieceSlot,
}

/// Bytes for a worker.
pub struct Job {
    /// As long as it ever was: what is there already need not be zeroed before it is read into. Only `filled` bytes are of this job.
    pub data: Vec<u8>,
    pub filled: usize,
    pub pieces: Vec<Piece>,
}

/// A frame of another repository, opened and decoded.
pub struct Foreign<'a> {
    pub encoding: Encoding,
    /// Compressed as it was, not sealed any more.
    pub encoded: &'a [u8],
    pub plain: &'a [u8],
    /// Of its chunks, which are `plain` one after the other.
    pub lens: &'a [u32],
}

/// Counters of a backup.
#[derive(Default)]
pub struct Counters {
    pub bytes_stored: AtomicU64,
    pub chunks_new: AtomicU64,
    pub chunks_reused: AtomicU64,
    /// Plain bytes that a run which did not finish had stored.
    pub bytes_resumed: AtomicU64,
    pub packs: AtomicU64,
}

/// A pack of this session: sealed frames refer to it by this number until it has a name.
type Sequence = u32;

#[derive(Default)]
struct State {
    /// By ticket: pack sequence and frame, once sealed.
    tickets: Vec<Option<(Sequence, u32)>>,
    /// By sequence: the name, once full.
    named: Vec<Option<PackNo>>,
    /// Packs handed to the uploaders and not yet stored.
    uploading: usize,
    /// Jobs handed to the workers and not yet done.
    jobs: usize,
    failure: Option<Error>,
}

struct Shared {
    inner: Arc<Inner>,
    /// For what is written: data of the plan may have a key of its own.
    keys: Keys,
    index: LocalIndex,
    /// Packs that may be reused: listed in the store with this length and not tombstoned.
    usable: Mutex<HashMap<PackId, u64>>,
    /// Of those, what runs that did not finish have left.
    left: HashSet<PackId>,
    chunk_id_key: [u8; 32],
    /// Chunks put into frames by this session and not yet found through the index: ticket and slot.
    fresh: Mutex<HashMap<ChunkId, (u32, u32)>>,
    state: Mutex<State>,
    changed: Condvar,
    data: Mutex<Option<(Sequence, PackBuilder)>>,
    nodes: Mutex<Option<(Sequence, PackBuilder)>>,
    builders: Vec<Mutex<FrameBuilder>>,
    unindexed: Mutex<Vec<IndexedPack>>,
    warnings: Mutex<Vec<String>>,
    full: Sender<(Sequence, PackBuilder)>,
    buffers: PackBuffers,
    counters: Counters,
    frames: AtomicU64,
    cancel: Cancel,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// New chunks on their way into one frame.
#[derive(Default)]
struct FrameBuilder {
    plain: Vec<u8>,
    chunks: Vec<ChunkEntry>,
    ticket: Option<u32>,
    /// Plain bytes that are pages.
    paged: usize,
    pages: Option<Encoder>,
    general: Option<Encoder>,
}

/// Buffers of packs, used again: fresh memory costs a page fault every 4 KiB.
#[derive(Clone, Default)]
struct PackBuffers(Arc<Mutex<Vec<Vec<u8>>>>);

/// A pack's bytes on their way to the store; the buffer comes back when the last reference goes.
struct Lent {
    bytes: Vec<u8>,
    home: PackBuffers,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut buffer = std::mem::take(&mut self.bytes);
        buffer.clear();
        let mut spare = lock(&self.home.0);
        if spare.len() < UPLOADERS + 1 {
            spare.push(buffer);
        }
    }
}

/// The threads of one backup.
pub struct Pipeline {
    shared: Arc<Shared>,
    jobs: Option<Sender<Job>>,
    workers: Vec<JoinHandle<()>>,
    uploaders: Vec<JoinHandle<()>>,
    spare: Receiver<Vec<u8>>,
}

impl Pipeline {
    /// Starts the threads.
    pub fn start(
        inner: &Arc<Inner>,
        keys: &Keys,
        index: LocalIndex,
        usable: HashMap<PackId, u64>,
        left: HashSet<PackId>,
        cancel: &Cancel,
    ) -> Result<Self> {
        let (jobs, job_queue) = bounded::<Job>(inner.workers + 1);
        let (full, full_queue) = bounded(1);
        let (spare_in, spare) = bounded(inner.workers * 2 + 2);
        let shared = Arc::new(Shared {
            inner: Arc::clone(inner),
            index,
            usable: Mutex::new(usable),
            left,
            chunk_id_key: *keys.chunk_id_key()?,
            keys: keys.clone(),
            fresh: Mutex::default(),
            state: Mutex::default(),
            changed: Condvar::new(),
            data: Mutex::default(),
            nodes: Mutex::default(),
            builders: (0..inner.workers).map(|_| Mutex::default()).collect(),
            unindexed: Mutex::default(),
            warnings: Mutex::default(),
            full,
            buffers: PackBuffers::default(),
            counters: Counters::default(),
            frames: AtomicU64::new(0),
            cancel: cancel.clone(),
        });
        let workers = (0..inner.workers)
            .map(|number| {
                let (shared, queue, spare) = (Arc::clone(&shared), job_queue.clone(), spare_in.clone());
                std::thread::spawn(move || {
                    for job in queue {
                        let _done = Done(&shared, |state| state.jobs -= 1);
                        if let Some(data) = shared.work(number, job) {
                            let _ = spare.try_send(data);
                        }
                    }
                })
            })
            .collect();
        let uploaders = (0..UPLOADERS)
            .map(|_| {
                let (shared, queue): (_, Receiver<(Sequence, PackBuilder)>) = (Arc::clone(&shared), full_queue.clone());
                std::thread::spawn(move || {
                    // `shared` holds a sender too, so the queue never closes by itself: an empty pack ends the thread.
                    while let Ok((sequence, pack)) = queue.recv() {
                        if pack.is_empty() {
                            break;
                        }
                        let _done = Done(&shared, |state| state.uploading -= 1);
                        if let Err(error) = shared.upload(sequence, pack) {
                            shared.fail(error);
                        }
                    }
                })
            })
            .collect();
        Ok(Self { shared, jobs: Some(jobs), workers, uploaders, spare })
    }

    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// A job to fill, with a buffer that was used before if there is one.
    pub fn job(&self) -> Job {
        Job { data: self.spare.try_recv().unwrap_or_default(), filled: 0, pieces: Vec::new() }
    }

    /// Hands bytes to the workers; waits while they are busy.
    ///
    /// # Errors
    /// What made the pipeline fail earlier.
    pub fn submit(&self, job: Job) -> Result<()> {
        self.check()?;
        lock(&self.shared.state).jobs += 1;
        let sent = self.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok());
        if sent { Ok(()) } else { Err(Error::new(Kind::Bug, "the workers of the backup have ended")) }
    }

    /// # Errors
    /// What made the pipeline fail, or `Interrupted`.
    pub fn check(&self) -> Result<()> {
        self.shared.cancel.check()?;
        take_failure(&mut lock(&self.shared.state))
    }

    /// Reuses nothing of a pack any more; `true` when that is news.
    pub fn distrust(&self, pack: PackNo) -> bool {
        lock(&self.shared.usable).remove(&self.shared.inner.packs.get(pack).id).is_some()
    }

    /// What the operator should hear; sentences.
    pub fn warnings(&self) -> Vec<String> {
        std::mem::take(&mut *lock(&self.shared.warnings))
    }

    /// Whether a reused place is safe: its packs are listed, present and not tombstoned.
    pub fn is_usable(&self, stored: &Stored<PackNo>) -> bool {
        self.shared.is_usable(stored)
    }

    /// The real place, if it has a name by now.
    pub fn resolved(&self, place: Place<Loc>) -> Option<Place<PackNo>> {
        match place.pack {
            Loc::Known(pack) => Some(Place { pack, frame: place.frame, slot: place.slot }),
            Loc::Ticket(ticket) => lock(&self.shared.state).place(ticket, place.slot),
        }
    }

    /// The real place; waits until it has a name. The caller has made sure that it will get one (`flush`).
    ///
    /// # Errors
    /// What made the pipeline fail.
    pub fn resolve(&self, place: Place<Loc>) -> Result<Place<PackNo>> {
        let ticket = match place.pack {
            Loc::Known(pack) => return Ok(Place { pack, frame: place.frame, slot: place.slot }),
            Loc::Ticket(ticket) => ticket,
        };
        let mut state = lock(&self.shared.state);
        loop {
            if let Some(place) = state.place(ticket, place.slot) {
                return Ok(place);
            }
            state = self.wait(state)?;
        }
    }

    fn wait<'a>(&self, mut state: MutexGuard<'a, State>) -> Result<MutexGuard<'a, State>> {
        take_failure(&mut state)?;
        self.shared.cancel.check()?;
        // The time-out is for a cancellation, which does not notify.
        let (state, _) =
            self.shared.changed.wait_timeout(state, std::time::Duration::from_millis(200)).unwrap_or_else(PoisonError::into_inner);
        Ok(state)
    }

    /// Waits until all jobs are done, then closes the open frames and the open data pack, so that every chunk gets a name.
    ///
    /// # Errors
    /// What made the pipeline fail.
    pub fn flush(&self) -> Result<()> {
        let mut state = lock(&self.shared.state);
        while state.jobs > 0 {
            state = self.wait(state)?;
        }
        take_failure(&mut state)?;
        drop(state);
        for builder in &self.shared.builders {
            self.shared.close_frame(&mut lock(builder))?;
        }
        self.shared.close_pack(PackKind::Data)
    }

    /// Takes chunks of a frame of another repository, whose decoded bytes were checked: `encoded` decodes to `plain`, which is cut into `lens`.
    /// `wanted`: their numbers, in order. A frame that is wanted whole and of which nothing is stored yet is sealed as it is, not compressed
    /// again. `caller`: a number of the calling thread.
    ///
    /// # Errors
    /// What made the pipeline fail.
    pub fn adopt(&self, caller: usize, frame: &Foreign<'_>, wanted: &[u32], paged: bool) -> Result<Vec<Chunk<Loc>>> {
        self.check()?;
        let builders = &self.shared.builders;
        let mut builder = lock(&builders[caller % builders.len()]);
        self.shared.adopt(&mut builder, frame, wanted, paged)
    }

    /// Seals a frame of nodes; their places have the ticket returned.
    ///
    /// # Errors
    /// When sealing fails.
    pub fn push_nodes(&self, encoding: Encoding, encoded: &[u8], nodes: Vec<ChunkEntry>) -> Result<u32> {
        let ticket = self.shared.new_ticket();
        self.shared.seal_frame(PackKind::Nodes, ticket, encoding, encoded, nodes)?;
        Ok(ticket)
    }

    /// Closes the open pack of nodes, so that every node gets a name.
    ///
    /// # Errors
    /// What made the pipeline fail.
    pub fn flush_nodes(&self) -> Result<()> {
        self.shared.close_pack(PackKind::Nodes)
    }

    /// Waits for all uploads and writes the last index object.
    ///
    /// # Errors
    /// What made the pipeline fail.
    pub fn drain(&self) -> Result<()> {
        let mut state = lock(&self.shared.state);
        while state.jobs > 0 || state.uploading > 0 {
            state = self.wait(state)?;
        }
        take_failure(&mut state)?;
        drop(state);
        self.shared.write_index(1)
    }
}

impl Pipeline {
    /// Ends all threads; work that is not done yet is given up. Does nothing the second time.
    pub fn stop(&mut self) {
        self.shared.fail(Error::new(Kind::Interrupted, "the backup has ended"));
        self.jobs = None;
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
        for _ in 0..self.uploaders.len() {
            if let Ok(end) = PackBuilder::new(&self.shared.keys, self.shared.inner.id, PackKind::Nodes, Vec::new()) {
                let _ = self.shared.full.send((0, end));
            }
        }
        for uploader in self.uploaders.drain(..) {
            let _ = uploader.join();
        }
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Counts a piece of work as done when it is left, however it is left: a thread that panics must not make others wait for ever.
struct Done<'a>(&'a Shared, fn(&mut State));

impl Drop for Done<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(Error::new(Kind::Bug, "a thread of the backup panicked"));
        }
        self.1(&mut lock(&self.0.state));
        self.0.changed.notify_all();
    }
}

fn take_failure(state: &mut State) -> Result<()> {
    match &mut state.failure {
        None => Ok(()),
        Some(failure) => {
            // The first caller gets the whole error; later ones are told that it happened.
            let again = Error::new(failure.kind(), "the backup failed before");
            Err(std::mem::replace(failure, again))
        }
    }
}

impl State {
    fn place(&self, ticket: u32, slot: u32) -> Option<Place<PackNo>> {
        let (sequence, frame) = self.tickets[ticket as usize]?;
        Some(Place { pack: self.named[sequence as usize]?, frame, slot })
    }
}

impl Shared {
    fn fail(&self, error: Error) {
        let mut state = lock(&self.state);
        if state.failure.is_none() {
            state.failure = Some(error);
        }
        drop(state);
        self.changed.notify_all();
    }

    fn has_failed(&self) -> bool {
        lock(&self.state).failure.is_some() || self.cancel.is_cancelled()
    }

    /// Does a job; gives its buffer back.
    fn work(&self, number: usize, job: Job) -> Option<Vec<u8>> {
        if self.has_failed() {
            return None;
        }
        let mut builder = lock(&self.builders[number]);
        for piece in &job.pieces {
            match self.piece(&mut builder, &job.data[piece.start..piece.end], piece) {
                Ok(chunks) => {
                    let _ = piece.slot.set(chunks);
                }
                Err(error) => {
                    self.fail(error);
                    return None;
                }
            }
        }
        Some(job.data)
    }

    fn piece(&self, builder: &mut FrameBuilder, data: &[u8], piece: &Piece) -> Result<Vec<Chunk<Loc>>> {
        let previous = piece.previous.as_deref().unwrap_or_default();
        let mut chunks = Vec::new();
        match &piece.cuts {
            Cuts::Pages(size) => {
                chunks.reserve(data.len().div_ceil(*size));
                for (position, page) in data.chunks(*size).enumerate() {
                    chunks.push(self.chunk(builder, page, true, previous.get(position))?);
                }
            }
            Cuts::Lens(lens) => {
                let mut rest = data;
                for (position, len) in lens.iter().enumerate() {
                    let (bytes, tail) = rest.split_at(*len as usize);
                    rest = tail;
                    chunks.push(self.chunk(builder, bytes, false, previous.get(position))?);
                }
            }
        }
        Ok(chunks)
    }

    fn chunk(&self, builder: &mut FrameBuilder, bytes: &[u8], paged: bool, previous: Option<&Chunk<PackNo>>) -> Result<Chunk<Loc>> {
        let len = bytes.len() as u32;
        if is_zero(bytes) {
            return Ok(Chunk { id: ChunkId::default(), len, stored: Stored::Zero });
        }
        let id = chunk_id(&self.chunk_id_key, bytes);
        let found = |stored| {
            self.counters.chunks_reused.fetch_add(1, Ordering::Relaxed);
            Ok(Chunk { id, len, stored })
        };
        if let Some(previous) = previous
            && previous.id == id
            && previous.len == len
            && previous.stored != Stored::Zero
            && self.is_usable(&previous.stored)
        {
            return found(known(previous.stored));
        }
        let fresh = |(ticket, slot): (u32, u32)| Stored::Full(Place { pack: Loc::Ticket(ticket), frame: 0, slot });
        if let Some(place) = lock(&self.fresh).get(&id).copied() {
            return found(fresh(place));
        }
        if let Some(place) = self.find(id, len)? {
            if let Loc::Known(pack) = place.pack
                && !self.left.is_empty()
                && self.left.contains(&self.inner.packs.get(pack).id)
            {
                self.counters.bytes_resumed.fetch_add(u64::from(len), Ordering::Relaxed);
            }
            return found(Stored::Full(place));
        }
        if builder.plain.len() + bytes.len() > FRAME_TARGET && !builder.chunks.is_empty() {
            self.close_frame(builder)?;
        }
        let ticket = *builder.ticket.get_or_insert_with(|| self.new_ticket());
        match lock(&self.fresh).entry(id) {
            // Another worker was quicker.
            Slot::Occupied(there) => return found(fresh(*there.get())),
            Slot::Vacant(place) => {
                place.insert((ticket, builder.chunks.len() as u32));
            }
        }
        let slot = builder.chunks.len() as u32;
        builder.plain.extend_from_slice(bytes);
        builder.paged += if paged { bytes.len() } else { 0 };
        builder.chunks.push(ChunkEntry { id, len, base: None });
        self.counters.chunks_new.fetch_add(1, Ordering::Relaxed);
        Ok(Chunk { id, len, stored: fresh((ticket, slot)) })
    }

    fn adopt(&self, builder: &mut FrameBuilder, frame: &Foreign<'_>, wanted: &[u32], paged: bool) -> Result<Vec<Chunk<Loc>>> {
        let mut ranges = Vec::with_capacity(frame.lens.len());
        let mut start = 0usize;
        for len in frame.lens {
            ranges.push(start..start + *len as usize);
            start += *len as usize;
        }
        let bytes_of = |slot: u32| {
            let range = ranges.get(slot as usize).cloned();
            range.and_then(|range| frame.plain.get(range)).ok_or_else(|| Error::new(Kind::Bug, "a chunk outside its frame"))
        };
        if wanted.len() == frame.lens.len() && frame.encoding != Encoding::Delta {
            let mut chunks = Vec::with_capacity(wanted.len());
            for slot in wanted {
                let bytes = bytes_of(*slot)?;
                chunks.push(ChunkEntry { id: chunk_id(&self.chunk_id_key, bytes), len: bytes.len() as u32, base: None });
            }
            if let Some(ticket) = self.claim(&chunks)? {
                self.counters.chunks_new.fetch_add(chunks.len() as u64, Ordering::Relaxed);
                let place = |slot: usize| Stored::Full(Place { pack: Loc::Ticket(ticket), frame: 0, slot: slot as u32 });
                let placed = chunks.iter().enumerate().map(|(slot, c)| Chunk { id: c.id, len: c.len, stored: place(slot) }).collect();
                self.seal_frame(PackKind::Data, ticket, frame.encoding, frame.encoded, chunks)?;
                return Ok(placed);
            }
        }
        wanted.iter().map(|slot| self.chunk(builder, bytes_of(*slot)?, paged, None)).collect()
    }

    /// Takes these chunks for one frame, if none of them is stored or on its way.
    fn claim(&self, chunks: &[ChunkEntry]) -> Result<Option<u32>> {
        let mut ids = HashSet::new();
        for chunk in chunks {
            if !ids.insert(chunk.id) || self.find(chunk.id, chunk.len)?.is_some() {
                return Ok(None);
            }
        }
        let mut fresh = lock(&self.fresh);
        if ids.iter().any(|id| fresh.contains_key(id)) {
            return Ok(None);
        }
        let ticket = self.new_ticket();
        fresh.extend(chunks.iter().enumerate().map(|(slot, chunk)| (chunk.id, (ticket, slot as u32))));
        Ok(Some(ticket))
    }

    /// Looks a chunk up in the index and confirms it in the directory of its pack.
    fn find(&self, id: ChunkId, len: u32) -> Result<Option<Place<Loc>>> {
        for candidate in self.index.candidates(id)? {
            let pack = PackRef { id: candidate.pack, len: candidate.len, directory_len: candidate.directory_len };
            if lock(&self.usable).get(&pack.id) != Some(&pack.len) {
                continue;
            }
            let directory = match self.inner.directory(pack) {
                Ok(directory) => directory,
                // A damaged pack is not reused; `verify` tells of it.
                Err(e) if e.kind() == Kind::Damaged => {
                    if lock(&self.usable).remove(&pack.id).is_some() {
                        lock(&self.warnings).push(format!("a damaged pack is not reused, its content was stored again: {e}. Run `lifeboat verify` to see which snapshots are harmed"));
                    }
                    continue;
                }
                Err(e) => return Err(e),
            };
            let Some((frame, slot)) = directory.locate(candidate.chunk) else { continue };
            let entry = &directory.frames[frame as usize].chunks[slot as usize];
            if directory.kind == PackKind::Data && entry.id == id && entry.len == len && entry.base.is_none() {
                return Ok(Some(Place { pack: Loc::Known(self.inner.packs.intern(pack)), frame, slot }));
            }
        }
        Ok(None)
    }

    fn is_usable(&self, stored: &Stored<PackNo>) -> bool {
        let usable = lock(&self.usable);
        stored.places().all(|place| {
            let pack = self.inner.packs.get(place.pack);
            usable.get(&pack.id) == Some(&pack.len)
        })
    }

    fn new_ticket(&self) -> u32 {
        let mut state = lock(&self.state);
        state.tickets.push(None);
        (state.tickets.len() - 1) as u32
    }

    /// Compresses and seals what the builder holds.
    fn close_frame(&self, builder: &mut FrameBuilder) -> Result<()> {
        let Some(ticket) = builder.ticket.take() else { return Ok(()) };
        let failed = |e: std::io::Error| Error::new(Kind::Failed, "compress a frame").because(e);
        let (kept, profile) = if builder.paged * 2 >= builder.plain.len() {
            (&mut builder.pages, Profile::Pages)
        } else {
            (&mut builder.general, Profile::General)
        };
        let encoder = match kept {
            Some(encoder) => encoder,
            none => none.insert(Encoder::new(profile).map_err(failed)?),
        };
        builder.paged = 0;
        let (encoding, encoded) = encoder.encode(&builder.plain).map_err(failed)?;
        if self.frames.fetch_add(1, Ordering::Relaxed).is_multiple_of(SAMPLE) {
            prove(encoding, encoded, &builder.plain)?;
        }
        let sealed = self.seal_frame(PackKind::Data, ticket, encoding, encoded, std::mem::take(&mut builder.chunks));
        builder.plain.clear();
        sealed
    }

    fn seal_frame(&self, kind: PackKind, ticket: u32, encoding: Encoding, encoded: &[u8], chunks: Vec<ChunkEntry>) -> Result<()> {
        let target = if kind == PackKind::Data { PACK_TARGET } else { NODE_PACK_TARGET };
        let mut open = lock(self.open(kind));
        let (sequence, pack) = match &mut *open {
            Some((sequence, pack)) => (*sequence, pack),
            none => {
                let mut state = lock(&self.state);
                state.named.push(None);
                let sequence = (state.named.len() - 1) as Sequence;
                drop(state);
                let buffer = match kind {
                    PackKind::Data => lock(&self.buffers.0).pop().unwrap_or_else(|| Vec::with_capacity(target + 2 * FRAME_TARGET)),
                    PackKind::Nodes | PackKind::Log => Vec::new(),
                };
                let (_, pack) = none.insert((sequence, PackBuilder::new(&self.keys, self.inner.id, kind, buffer)?));
                (sequence, pack)
            }
        };
        let frame = pack.push(encoding, encoded, chunks)?;
        lock(&self.state).tickets[ticket as usize] = Some((sequence, frame));
        if pack.len() >= target || pack.chunk_count() >= PACK_CHUNKS {
            self.hand_over(&mut open);
        }
        Ok(())
    }

    fn open(&self, kind: PackKind) -> &Mutex<Option<(Sequence, PackBuilder)>> {
        match kind {
            PackKind::Data => &self.data,
            PackKind::Nodes | PackKind::Log => &self.nodes,
        }
    }

    fn close_pack(&self, kind: PackKind) -> Result<()> {
        self.hand_over(&mut lock(self.open(kind)));
        self.cancel.check()
    }

    /// Gives the open pack to the uploaders; waits, holding others up, while they are busy. That bounds memory.
    fn hand_over(&self, open: &mut Option<(Sequence, PackBuilder)>) {
        if let Some(full) = open.take_if(|(_, pack)| !pack.is_empty()) {
            lock(&self.state).uploading += 1;
            if self.full.send(full).is_err() {
                lock(&self.state).uploading -= 1;
                self.fail(Error::new(Kind::Bug, "the uploaders of the backup have ended"));
            }
        }
    }

    fn upload(&self, sequence: Sequence, pack: PackBuilder) -> Result<()> {
        if self.has_failed() {
            return Ok(());
        }
        let finished = pack.finish(&self.keys)?;
        let reference = PackRef { id: finished.id, len: finished.bytes.len() as u64, directory_len: finished.directory_len };
        let number = self.inner.packs.intern(reference);
        lock(&self.state).named[sequence as usize] = Some(number);
        self.changed.notify_all();
        let indexed = IndexedPack {
            id: finished.id,
            kind: finished.directory.kind,
            len: reference.len,
            directory_len: reference.directory_len,
            prefixes: finished.directory.chunks().map(|c| c.id.prefix()).collect(),
        };
        let bytes = match finished.directory.kind {
            PackKind::Data => Bytes::from_owner(Lent { bytes: finished.bytes, home: self.buffers.clone() }),
            PackKind::Nodes | PackKind::Log => Bytes::from(finished.bytes),
        };
        self.inner.block_on(self.inner.store.create(&finished.id.key(), bytes))?;
        self.inner.directories.put(finished.id, Arc::new(finished.directory));
        lock(&self.usable).insert(reference.id, reference.len);
        self.counters.bytes_stored.fetch_add(reference.len, Ordering::Relaxed);
        self.counters.packs.fetch_add(1, Ordering::Relaxed);
        lock(&self.unindexed).push(indexed);
        self.write_index(INDEX_EVERY)
    }

    /// Writes an index object when at least so many packs wait for one.
    fn write_index(&self, least: usize) -> Result<()> {
        let packs = {
            let mut unindexed = lock(&self.unindexed);
            if unindexed.len() < least {
                return Ok(());
            }
            std::mem::take(&mut *unindexed)
        };
        self.counters.bytes_stored.fetch_add(publish_index(&self.inner, &self.index, &packs)?, Ordering::Relaxed);
        // From here on the index finds them.
        let mut gone: HashSet<u64> = HashSet::new();
        for pack in &packs {
            gone.extend(&pack.prefixes);
        }
        lock(&self.fresh).retain(|id, _| !gone.contains(&id.prefix()));
        Ok(())
    }
}

/// Writes index objects for packs and takes them in locally. Returns their bytes.
pub fn publish_index(inner: &Inner, index: &LocalIndex, packs: &[IndexedPack]) -> Result<u64> {
    write_index_objects(inner, packs, |name, packs| index.cover(name, packs))
}

/// Writes index objects for packs; `written` gets the name of each and what it lists. Returns their bytes.
pub fn write_index_objects(inner: &Inner, packs: &[IndexedPack], written: impl Fn(&str, &[IndexedPack]) -> Result<()>) -> Result<u64> {
    let mut bytes = 0;
    let mut rest = packs;
    while !rest.is_empty() {
        let mut chunks = 0;
        let take = rest
            .iter()
            .take_while(|p| {
                chunks += p.prefixes.len();
                chunks <= INDEX_CHUNKS
            })
            .count()
            .max(1);
        let (now, later) = rest.split_at(take);
        let object = inner.seal_object(ObjectKind::Index, "index", &index::encode(now))?;
        let name = blake3::hash(&object).to_hex().to_string();
        bytes += object.len() as u64;
        inner.block_on(inner.store.create(&format!("index/{name}"), Bytes::from(object)))?;
        written(&name, now)?;
        rest = later;
    }
    Ok(bytes)
}

/// A stored chunk, as the pipeline names chunks.
pub fn placed(chunk: Chunk<PackNo>) -> Chunk<Loc> {
    Chunk { id: chunk.id, len: chunk.len, stored: known(chunk.stored) }
}

fn known(stored: Stored<PackNo>) -> Stored<Loc> {
    let at = |place: Place<PackNo>| Place { pack: Loc::Known(place.pack), frame: place.frame, slot: place.slot };
    match stored {
        Stored::Zero => Stored::Zero,
        Stored::Full(place) => Stored::Full(at(place)),
        Stored::Delta { patch, base } => Stored::Delta { patch: at(patch), base: at(base) },
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|word| *word == [0; 16]) && rest.iter().all(|byte| *byte == 0)
}

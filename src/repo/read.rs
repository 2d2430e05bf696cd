//! Reading back: trees as streams of entries, bytes in pack order, every chunk checked against its id.

use std::collections::HashMap;
use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use crossbeam_channel::{Receiver, TrySendError, bounded};

use crate::entry::{Entry, EntryKind, tree_order};
use crate::error::{Error, Kind, Result};
use crate::event::{Cancel, Event, Progress, Silent};
use crate::repo::format::PackKind;
use crate::repo::frame::{Decoder, Encoding, apply_patch};
use crate::repo::nodes::NodeReader;
use crate::repo::pack::{Directory, FrameEntry, FrameOpener};
use crate::repo::packs::{PackNo, missing_pack};
use crate::repo::snapshot::{Manifest, SourceRecord};
use crate::repo::tree::{Chunk, Content, NodeRef, PackRef, Place, Record, Stored};
use crate::repo::{Inner, Repository};

/// An entry of a stored tree; its size is what was really read.
#[derive(Debug, Clone)]
pub struct StoredEntry {
    pub entry: Entry,
    pub(super) content: StoredContent,
}

#[derive(Debug, Clone)]
pub(super) enum StoredContent {
    Inline(Vec<Chunk<PackNo>>),
    /// Nodes of stretches, in order.
    Stretches(Vec<NodeRef<PackNo>>),
}

impl StoredEntry {
    /// Plain bytes; 0 for what is not a file.
    pub fn size(&self) -> u64 {
        match self.entry.kind {
            EntryKind::File { size, .. } => size.unwrap_or(0),
            _ => 0,
        }
    }
}

/// Streams a tree's entries in tree order.
pub struct TreeReader {
    nodes: NodeReader,
    refs: Vec<NodeRef<PackNo>>,
    next: usize,
    records: std::vec::IntoIter<Record<PackNo>>,
    /// Stretch nodes passed since the last node of entries.
    stretches: Vec<NodeRef<PackNo>>,
    last_path: Option<Vec<u8>>,
    failed: bool,
}

impl TreeReader {
    fn step(&mut self) -> Result<Option<StoredEntry>> {
        let damaged = |what: &str| Error::new(Kind::Damaged, format!("a tree: {what}"));
        loop {
            if let Some(record) = self.records.next() {
                let Record::Entry { entry, content } = record else { return Err(damaged("a stretch stands among entries")) };
                if self.last_path.as_ref().is_some_and(|last| tree_order(last, &entry.path).is_ge()) {
                    return Err(damaged("entries are not in order"));
                }
                self.last_path = Some(entry.path.clone());
                let stretches = std::mem::take(&mut self.stretches);
                let content = match content {
                    Content::Stretches(count) if count == stretches.len() as u64 && count > 0 => StoredContent::Stretches(stretches),
                    Content::Stretches(_) => return Err(damaged("a file has another number of stretches than its entry says")),
                    _ if !stretches.is_empty() => return Err(damaged("stretches belong to no file")),
                    Content::Inline(chunks) => StoredContent::Inline(chunks),
                    Content::None => StoredContent::Inline(Vec::new()),
                };
                let entry = StoredEntry { entry, content };
                if let StoredContent::Inline(chunks) = &entry.content
                    && chunks.iter().map(|c| u64::from(c.len)).sum::<u64>() != entry.size()
                {
                    return Err(damaged("a file's chunks do not add up to its size"));
                }
                return Ok(Some(entry));
            }
            let Some(node) = self.refs.get(self.next).copied() else {
                return if self.stretches.is_empty() { Ok(None) } else { Err(damaged("it ends within a file")) };
            };
            self.next += 1;
            if node.stretch {
                self.stretches.push(node);
            } else {
                self.records = self.nodes.records(&node)?.into_iter();
            }
        }
    }
}

impl Iterator for TreeReader {
    type Item = Result<StoredEntry>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let step = self.step();
        self.failed = step.is_err();
        step.transpose()
    }
}

/// A file to fetch; `file` is the caller's number for it.
pub struct Wanted<'a> {
    pub file: usize,
    pub entry: &'a StoredEntry,
}

/// Takes delivered bytes. Called from several threads, in any order, never twice for one range.
pub trait BlockSink: Sync {
    /// `data` belongs at `offset` of `file`.
    ///
    /// # Errors
    /// Stops the fetch.
    fn write(&self, file: usize, offset: u64, data: &[u8]) -> Result<()>;

    /// `len` zero bytes belong at `offset`. The default does nothing: right for a file that was made with its full length just now.
    ///
    /// # Errors
    /// Stops the fetch.
    fn zero(&self, _file: usize, _offset: u64, _len: u64) -> Result<()> {
        Ok(())
    }

    /// Whether `existing` is worth asking.
    fn has_existing(&self) -> bool {
        false
    }

    /// Reads what the target holds already at `offset` (a resumed restore, a comparison); `true`: `buffer` was filled. What equals is
    /// not fetched.
    ///
    /// # Errors
    /// Stops the fetch.
    fn existing(&self, _file: usize, _offset: u64, _buffer: &mut [u8]) -> Result<bool> {
        Ok(false)
    }

    /// All bytes of `file` were delivered, or found existing.
    ///
    /// # Errors
    /// Stops the fetch.
    fn done(&self, _file: usize) -> Result<()> {
        Ok(())
    }
}

/// Takes all and keeps nothing.
struct Nowhere;

impl BlockSink for Nowhere {
    fn write(&self, _file: usize, _offset: u64, _data: &[u8]) -> Result<()> {
        Ok(())
    }
}

/// What a fetch moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FetchStats {
    /// Plain bytes delivered, zeros included.
    pub bytes_delivered: u64,
    /// Plain bytes found already there.
    pub bytes_existing: u64,
    /// Sealed bytes read from the store.
    pub bytes_fetched: u64,
}

/// A chunk wanted at a place of a file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Item {
    pub(super) file: usize,
    pub(super) offset: u64,
    pub(super) chunk: Chunk<PackNo>,
}

/// Entries of a tree that are read together where nothing is kept of them.
const BATCH_ENTRIES: usize = 10_000;
/// Chunks planned at a time: bounds memory (about 64 bytes each).
const WINDOW_ITEMS: usize = 400_000;
/// Sealed bytes asked for in one request, and the gap worth reading over.
const REQUEST_BYTES: u64 = 4 << 20;
const REQUEST_GAP: u64 = 128 << 10;
/// Requests under way.
const REQUESTS: usize = 16;

impl Repository {
    /// Entries of one source of a snapshot in tree order, streamed.
    ///
    /// # Errors
    /// `Damaged`, `Unavailable`.
    pub fn tree(&self, source: &SourceRecord) -> Result<TreeReader> {
        let mut nodes = NodeReader::new(&self.inner)?;
        let refs = nodes.leaves(&source.tree.bytes()?, source.tree.depth)?;
        Ok(TreeReader { nodes, refs, next: 0, records: Vec::new().into_iter(), stretches: Vec::new(), last_path: None, failed: false })
    }

    /// Delivers the bytes of many files, in pack order, decoded in parallel; each chunk is checked against its id before it is
    /// delivered. Needs the reader role.
    ///
    /// # Errors
    /// `Damaged` (names object and file), `Unavailable`, `Interrupted`, or what the sink returns.
    pub fn fetch(&self, wanted: &[Wanted<'_>], sink: &dyn BlockSink, progress: &dyn Progress, cancel: &Cancel) -> Result<FetchStats> {
        self.require_reader("read data")?;
        let stats = Counters::default();
        let mut nodes = NodeReader::new(&self.inner)?;
        let mut asked = 0;
        let mut window: Vec<Item> = Vec::new();
        let mut finished: Vec<usize> = Vec::new();
        for Wanted { file, entry } in wanted {
            let mut offset = 0;
            let mut take = |chunks: &[Chunk<PackNo>], window: &mut Vec<Item>| {
                for chunk in chunks {
                    window.push(Item { file: *file, offset, chunk: *chunk });
                    offset += u64::from(chunk.len);
                }
            };
            match &entry.content {
                StoredContent::Inline(chunks) => take(chunks, &mut window),
                StoredContent::Stretches(stretches) => {
                    for node in stretches {
                        match nodes.records(node)?.pop() {
                            Some(Record::Stretch(chunks)) => take(&chunks, &mut window),
                            _ => {
                                return Err(Error::new(
                                    Kind::Damaged,
                                    format!("{}: a node is not the stretch that it should be", entry.entry.display_path()),
                                ));
                            }
                        }
                        if window.len() >= WINDOW_ITEMS {
                            self.fetch_window(&mut window, wanted, sink, progress, cancel, &stats)?;
                        }
                    }
                }
            }
            if offset != entry.size() {
                return Err(Error::new(Kind::Damaged, format!("{}: its chunks do not add up to its size", entry.entry.display_path())));
            }
            asked += offset;
            finished.push(*file);
            if window.len() >= WINDOW_ITEMS {
                self.fetch_window(&mut window, wanted, sink, progress, cancel, &stats)?;
                finished.drain(..).try_for_each(|file| sink.done(file))?;
            }
        }
        self.fetch_window(&mut window, wanted, sink, progress, cancel, &stats)?;
        let totals = stats.totals();
        if totals.bytes_delivered + totals.bytes_existing != asked {
            return Err(Error::new(
                Kind::Bug,
                format!("{asked} bytes were asked for, {} arrived", totals.bytes_delivered + totals.bytes_existing),
            ));
        }
        finished.drain(..).try_for_each(|file| sink.done(file))?;
        Ok(totals)
    }

    /// Reads all of a snapshot and keeps none of it: whether it can be had. Needs the reader role.
    ///
    /// # Errors
    /// `Damaged` or `NotFound` where a part of it cannot; `NoRecoveryPoint` where its key was destroyed; as [`Self::fetch`].
    pub fn read_whole(&self, manifest: &Manifest, cancel: &Cancel) -> Result<()> {
        self.require_content(manifest)?;
        for source in &manifest.sources {
            let (mut entries, mut bytes) = (0, 0);
            let mut tree = self.tree(source)?;
            loop {
                let batch: Vec<StoredEntry> = tree.by_ref().take(BATCH_ENTRIES).collect::<Result<_>>()?;
                if batch.is_empty() {
                    break;
                }
                entries += batch.len() as u64;
                bytes += batch.iter().map(StoredEntry::size).sum::<u64>();
                let wanted: Vec<Wanted<'_>> = batch.iter().enumerate().map(|(file, entry)| Wanted { file, entry }).collect();
                self.fetch(&wanted, &Nowhere, &Silent, cancel)?;
            }
            if (entries, bytes) != (source.entries, source.bytes) {
                return Err(Error::new(Kind::Damaged, format!("source {} has other entries than its manifest says", source.name)));
            }
        }
        Ok(())
    }

    /// The bytes of one file in order (for pipes). Needs the reader role.
    ///
    /// # Errors
    /// `WrongKey`, `Damaged`. Errors while reading come as [`std::io::Error`] with ours inside.
    pub fn open_file(&self, entry: &StoredEntry, cancel: &Cancel) -> Result<Box<dyn Read + Send>> {
        self.require_reader("read data")?;
        let stretches = match &entry.content {
            StoredContent::Inline(chunks) => vec![Stretch::Chunks(chunks.clone())],
            StoredContent::Stretches(nodes) => nodes.iter().map(|n| Stretch::Node(*n)).collect(),
        };
        Ok(Box::new(FileReader {
            repository: self.clone(),
            nodes: NodeReader::new(&self.inner)?,
            cancel: cancel.clone(),
            stretches: stretches.into_iter(),
            ready: Vec::new(),
            at: 0,
            missing: entry.size(),
        }))
    }

    fn fetch_window(
        &self,
        window: &mut Vec<Item>,
        wanted: &[Wanted<'_>],
        sink: &dyn BlockSink,
        progress: &dyn Progress,
        cancel: &Cancel,
        stats: &Counters,
    ) -> Result<()> {
        let mut items = std::mem::take(window);
        if sink.has_existing() {
            items = self.drop_existing(items, sink, progress, cancel, stats)?;
        }
        let mut stored = Vec::with_capacity(items.len());
        let mut deltas = Vec::new();
        let mut zeros: Option<(usize, u64, u64)> = None;
        let flush = |zeros: &mut Option<(usize, u64, u64)>| -> Result<()> {
            if let Some((file, offset, len)) = zeros.take() {
                sink.zero(file, offset, len)?;
                stats.delivered.fetch_add(len, Ordering::Relaxed);
                progress.event(Event::Advance { bytes: len, items: 0 });
            }
            Ok(())
        };
        for item in items {
            match item.chunk.stored {
                Stored::Zero => match &mut zeros {
                    Some((file, offset, len)) if *file == item.file && *offset + *len == item.offset => *len += u64::from(item.chunk.len),
                    _ => {
                        flush(&mut zeros)?;
                        zeros = Some((item.file, item.offset, u64::from(item.chunk.len)));
                    }
                },
                Stored::Full(place) => stored.push((place, item)),
                Stored::Delta { patch, base } => deltas.push((patch, base, item)),
            }
        }
        flush(&mut zeros)?;
        let name = |file: usize| wanted.iter().find(|w| w.file == file).map_or_else(String::new, |w| w.entry.entry.display_path());
        for (patch, base, item) in deltas {
            let data = self.delta_chunk(patch, base, &item.chunk).map_err(|e| e.within(format!("restore {}", name(item.file))))?;
            sink.write(item.file, item.offset, &data)?;
            stats.delivered.fetch_add(data.len() as u64, Ordering::Relaxed);
        }
        let requests = self.plan_requests(stored)?;
        self.run_requests(requests, &name, sink, progress, cancel, stats)
    }

    /// Leaves out what the target holds already.
    fn drop_existing(
        &self,
        items: Vec<Item>,
        sink: &dyn BlockSink,
        progress: &dyn Progress,
        cancel: &Cancel,
        stats: &Counters,
    ) -> Result<Vec<Item>> {
        let keys = &self.inner.keys;
        let share = items.len().div_ceil(self.inner.workers).max(1);
        let results: Vec<Result<Vec<Item>>> = std::thread::scope(|scope| {
            let threads: Vec<_> = items
                .chunks(share)
                .map(|items| {
                    scope.spawn(move || {
                        let mut left = Vec::new();
                        let mut buffer = Vec::new();
                        for item in items {
                            cancel.check()?;
                            buffer.resize(item.chunk.len as usize, 0);
                            let equal = sink.existing(item.file, item.offset, &mut buffer)?
                                && match item.chunk.stored {
                                    Stored::Zero => buffer.iter().all(|b| *b == 0),
                                    _ => keys.is_chunk(&buffer, item.chunk.id)?,
                                };
                            if equal {
                                stats.existing.fetch_add(u64::from(item.chunk.len), Ordering::Relaxed);
                                progress.event(Event::Advance { bytes: u64::from(item.chunk.len), items: 0 });
                            } else {
                                left.push(*item);
                            }
                        }
                        Ok(left)
                    })
                })
                .collect();
            threads.into_iter().map(|t| t.join().unwrap_or_else(|_| Err(Error::new(Kind::Bug, "a comparing thread panicked")))).collect()
        });
        let mut left = Vec::new();
        for result in results {
            left.extend(result?);
        }
        Ok(left)
    }

    /// Groups wanted chunks into requests: packs in the order they are first needed, frames in the order they are stored.
    /// Packs may have been put together anew since the tree was read: then where the chunks are now.
    pub(super) fn plan_requests(&self, mut stored: Vec<(Place<PackNo>, Item)>) -> Result<Vec<Request>> {
        loop {
            let moved = self.inner.moved();
            if !moved.is_empty() {
                stored.iter_mut().for_each(|(place, _)| *place = moved.resolve(&self.inner, *place));
            }
            match self.plan_settled(&stored) {
                Err((Some(place), error)) if error.kind() == Kind::Damaged && self.inner.moved_since(place)?.is_some() => {}
                Err((place, error)) => {
                    return Err(match place {
                        Some(place) => self.inner.blame(self.inner.packs.get(place.pack).id, error),
                        None => error,
                    });
                }
                Ok(requests) => return Ok(requests),
            }
        }
    }

    /// An error comes with the place whose directory cannot be read, if that is what is wrong.
    fn plan_settled(&self, stored: &[(Place<PackNo>, Item)]) -> Result<Vec<Request>, (Option<Place<PackNo>>, Error)> {
        let mut order: HashMap<PackNo, usize> = HashMap::new();
        let mut ordered: Vec<(usize, Place<PackNo>, Item)> = Vec::with_capacity(stored.len());
        for (place, item) in stored.iter().copied() {
            let next = order.len();
            ordered.push((*order.entry(place.pack).or_insert(next), place, item));
        }
        ordered.sort_unstable_by_key(|(order, place, item)| (*order, place.frame, item.file, item.offset));
        let mut requests: Vec<Request> = Vec::new();
        let mut directory: Option<(PackNo, Arc<Directory>)> = None;
        for (_, place, item) in ordered {
            let directory = match &directory {
                Some((pack, directory)) if *pack == place.pack => Arc::clone(directory),
                _ => {
                    let pack = self.inner.packs.get(place.pack);
                    let opened = self.inner.directory(pack).map_err(|e| (Some(place), e))?;
                    directory = Some((place.pack, Arc::clone(&opened)));
                    opened
                }
            };
            let pack = self.inner.packs.get(place.pack);
            let frame = directory.frames.get(place.frame as usize);
            let slot = frame.and_then(|f| f.chunks.get(place.slot as usize));
            if directory.kind != PackKind::Data || slot.is_none_or(|s| s.id != item.chunk.id || s.len != item.chunk.len) {
                let error = Error::new(Kind::Damaged, format!("pack {}: does not hold what a snapshot says it holds", pack.id.key()));
                return Err((None, error));
            }
            let Some(frame) = frame else { continue };
            let end = frame.offset + u64::from(frame.sealed_len);
            match requests.last_mut() {
                Some(last)
                    if last.pack == place.pack
                        && frame.offset <= last.end + REQUEST_GAP
                        && end.max(last.end) - last.start <= REQUEST_BYTES.max(u64::from(frame.sealed_len)) =>
                {
                    last.end = last.end.max(end);
                    match last.frames.last_mut() {
                        Some((number, items)) if *number == place.frame => items.push((place.slot, item)),
                        _ => last.frames.push((place.frame, vec![(place.slot, item)])),
                    }
                }
                _ => requests.push(Request {
                    pack: place.pack,
                    directory: Arc::clone(&directory),
                    start: frame.offset,
                    end,
                    frames: vec![(place.frame, vec![(place.slot, item)])],
                }),
            }
        }
        Ok(requests)
    }

    fn run_requests(
        &self,
        requests: Vec<Request>,
        name: &(dyn Fn(usize) -> String + Sync),
        sink: &dyn BlockSink,
        progress: &dyn Progress,
        cancel: &Cancel,
        stats: &Counters,
    ) -> Result<()> {
        let take = |_: usize, worker: &mut DecodeWorker<'_>, request: &Request, bytes: &[u8]| {
            worker.deliver(request, bytes, name, sink, progress, cancel, stats)
        };
        // One more than there are cores: a sink that writes waits for the disk now and then.
        self.pump(requests, self.inner.workers + 1, cancel, stats, &take)
    }

    /// Fetches ahead and hands what was fetched to so many threads; `take` gets the number of the one it runs on. What a collector has moved
    /// away meanwhile is planned again: then an item comes with another place than the one that it was planned with.
    pub(super) fn pump(&self, requests: Vec<Request>, threads: usize, cancel: &Cancel, stats: &Counters, take: &Take<'_>) -> Result<()> {
        let mut missing = self.pump_once(requests, threads, cancel, stats, take)?;
        while let Some((first, error)) = missing.first().map(|(request, error)| (request.first_place(), error)) {
            if first.is_none_or(|place| !matches!(self.inner.moved_since(place), Ok(Some(_)))) {
                let pack = missing[0].0.pack;
                return Err(self.inner.blame(self.inner.packs.get(pack).id, Error::new(error.kind(), error.to_string())));
            }
            let items = missing.drain(..).flat_map(|(request, _)| request.into_items()).collect();
            let requests = self.plan_requests(items)?;
            missing = self.pump_once(requests, threads, cancel, stats, take)?;
        }
        Ok(())
    }

    /// Returns the requests whose packs are not there.
    fn pump_once(
        &self,
        requests: Vec<Request>,
        threads: usize,
        cancel: &Cancel,
        stats: &Counters,
        take: &Take<'_>,
    ) -> Result<Vec<(Request, Error)>> {
        if requests.is_empty() {
            return Ok(Vec::new());
        }
        let fetched = Fetched { missing: Mutex::default(), failure: Mutex::default(), cancel };
        if self.inner.store.reads_here() {
            self.read_here(requests, threads, &fetched, stats, take);
        } else {
            self.fetch_ahead(requests, threads, &fetched, stats, take);
        }
        cancel.check()?;
        match fetched.failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(fetched.missing.into_inner().unwrap_or_else(PoisonError::into_inner)),
        }
    }

    /// Each thread reads for itself: the bytes need not go from one core to another.
    fn read_here(&self, requests: Vec<Request>, threads: usize, fetched: &Fetched<'_>, stats: &Counters, take: &Take<'_>) {
        let requests = Mutex::new(requests.into_iter());
        let next = || requests.lock().unwrap_or_else(PoisonError::into_inner).next();
        let work = |number: usize| -> Result<()> {
            let mut worker = DecodeWorker::new(&self.inner)?;
            let mut buffer = Vec::new();
            while let Some(request) = next().filter(|_| !fetched.has_failed()) {
                let id = self.inner.packs.get(request.pack).id;
                let (key, range) = (id.key(), request.start..request.end);
                let other;
                let bytes: &[u8] = if self.inner.store.get_range_here(&key, range.clone(), &mut buffer) {
                    &buffer
                } else {
                    match self.inner.block_on(self.inner.store.get_range(&key, range)) {
                        Ok(bytes) => {
                            other = bytes;
                            &other
                        }
                        Err(error) if error.kind() == Kind::NotFound => {
                            fetched.miss(request, missing_pack(error, &key));
                            continue;
                        }
                        Err(error) => return Err(self.inner.blame(id, error)),
                    }
                };
                stats.fetched.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                take(number, &mut worker, &request, bytes)?;
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            for number in 0..threads {
                let work = &work;
                scope.spawn(move || work(number).unwrap_or_else(|error| fetched.fail(error)));
            }
        });
    }

    /// Requests run ahead on the runtime, and threads take what was fetched.
    fn fetch_ahead(&self, requests: Vec<Request>, threads: usize, fetched: &Fetched<'_>, stats: &Counters, take: &Take<'_>) {
        let (ready_in, ready) = bounded::<(Request, Bytes)>(self.inner.workers);
        std::thread::scope(|scope| {
            for number in 0..threads {
                let ready = ready.clone();
                scope.spawn(move || {
                    let mut worker = match DecodeWorker::new(&self.inner) {
                        Ok(worker) => worker,
                        Err(e) => return fetched.fail(e),
                    };
                    for (request, bytes) in ready {
                        if fetched.has_failed() {
                            continue;
                        }
                        if let Err(error) = take(number, &mut worker, &request, &bytes) {
                            fetched.fail(error);
                        }
                    }
                });
            }
            drop(ready);
            let mut unanswered = requests.len();
            // This thread hands the answers on in order.
            for answer in self.answers(requests) {
                unanswered -= 1;
                if fetched.has_failed() {
                    break;
                }
                match answer {
                    Ok((request, Err(error))) => fetched.miss(request, error),
                    Ok((request, Ok(bytes))) => {
                        stats.fetched.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                        if ready_in.send((request, bytes)).is_err() {
                            break;
                        }
                    }
                    Err(error) => {
                        fetched.fail(error);
                        break;
                    }
                }
            }
            drop(ready_in);
            if unanswered > 0 && !fetched.has_failed() {
                fetched.fail(Error::new(Kind::Bug, format!("{unanswered} requests to the store were never answered")));
            }
        });
    }

    /// What the store says to each, some at a time, in their order. An inner error: the pack is not there.
    fn answers(&self, requests: Vec<Request>) -> Receiver<Result<(Request, Result<Bytes>)>> {
        use futures::StreamExt as _;
        let (answers_in, answers) = bounded(1);
        let inner = Arc::clone(&self.inner);
        let at_a_time = if self.inner.store.is_local() { 2 } else { REQUESTS };
        self.inner.runtime.spawn(async move {
            let store = &inner.store;
            let inner = &inner;
            let mut fetches = futures::stream::iter(requests)
                .map(|request| async move {
                    let id = inner.packs.get(request.pack).id;
                    match store.get_range(&id.key(), request.start..request.end).await {
                        Err(e) if e.kind() != Kind::NotFound => Err(inner.blame(id, e)),
                        answer => Ok((request, answer.map_err(|e| missing_pack(e, &id.key())))),
                    }
                })
                .buffered(at_a_time);
            while let Some(mut answer) = fetches.next().await {
                // Never block the runtime: wait for room politely.
                loop {
                    match answers_in.try_send(answer) {
                        Ok(()) => break,
                        Err(TrySendError::Full(back)) => {
                            answer = back;
                            tokio::time::sleep(std::time::Duration::from_micros(200)).await;
                        }
                        Err(TrySendError::Disconnected(_)) => return,
                    }
                }
            }
        });
        answers
    }

    /// Reads one frame of one pack: for delta chunks and single chunks.
    fn read_frame(&self, place: &mut Place<PackNo>) -> Result<(Arc<Directory>, Vec<u8>)> {
        *place = self.inner.moved().resolve(&self.inner, *place);
        loop {
            let pack = self.inner.packs.get(place.pack);
            match self.read_frame_from(pack, *place) {
                Err(error) if error.kind() == Kind::Damaged => match self.inner.moved_since(*place)? {
                    Some(now) => *place = now,
                    None => return Err(self.inner.blame(pack.id, error)),
                },
                read => return read,
            }
        }
    }

    fn read_frame_from(&self, pack: PackRef, place: Place<PackNo>) -> Result<(Arc<Directory>, Vec<u8>)> {
        let directory = self.inner.directory(pack)?;
        let key = pack.id.key();
        let damaged = |what: &str| Error::new(Kind::Damaged, format!("pack {key}: {what}"));
        let frame = directory.frames.get(place.frame as usize).ok_or_else(|| damaged("has fewer frames than a reference to it says"))?;
        let range = frame.offset..frame.offset + u64::from(frame.sealed_len);
        let bytes = self.inner.block_on(self.inner.store.get_range(&key, range)).map_err(|e| missing_pack(e, &key))?;
        let mut worker = DecodeWorker::new(&self.inner)?;
        worker.decode(&key, &directory, frame, &bytes)?;
        Ok((Arc::clone(&directory), worker.plain))
    }

    pub(super) fn delta_chunk(&self, mut patch: Place<PackNo>, mut base: Place<PackNo>, chunk: &Chunk<PackNo>) -> Result<Vec<u8>> {
        let patched = self.inner.packs.get(patch.pack).id;
        let damaged = |what: &str| self.inner.blame(patched, Error::new(Kind::Damaged, format!("pack {}: {what}", patched.key())));
        let part = |directory: &Directory, place: Place<PackNo>, plain: &[u8]| -> Result<(crate::repo::pack::ChunkEntry, Vec<u8>)> {
            let frame = &directory.frames[place.frame as usize];
            let entry = *frame.chunks.get(place.slot as usize).ok_or_else(|| damaged("has fewer chunks than a reference to it says"))?;
            let len = |c: &crate::repo::pack::ChunkEntry| c.base.map_or(c.len, |(_, patch_len)| patch_len) as usize;
            let start: usize = frame.chunks[..place.slot as usize].iter().map(len).sum();
            Ok((entry, plain[start..start + len(&entry)].to_vec()))
        };
        let (base_directory, base_plain) = self.read_frame(&mut base)?;
        let (base_entry, base_bytes) = part(&base_directory, base, &base_plain)?;
        let (patch_directory, patch_plain) = self.read_frame(&mut patch)?;
        let (entry, patch_bytes) = part(&patch_directory, patch, &patch_plain)?;
        if base_entry.base.is_some() || entry.base.map(|(id, _)| id) != Some(base_entry.id) || entry.id != chunk.id {
            return Err(damaged("a patch does not belong to its base"));
        }
        let data =
            apply_patch(&base_bytes, &patch_bytes, chunk.len as usize).map_err(|e| damaged("a patch cannot be applied").because(e))?;
        let envelope = patch_directory.envelopes[patch_directory.frames[patch.frame as usize].envelope as usize].generation;
        if !self.inner.keys.chunk_has_id(envelope, &data, chunk.id)? {
            return Err(damaged("a chunk does not match its id"));
        }
        Ok(data)
    }
}

/// A range of a pack and what is wanted from it.
pub(super) struct Request {
    pub(super) pack: PackNo,
    pub(super) directory: Arc<Directory>,
    pub(super) start: u64,
    end: u64,
    /// Frame number, and slot and target of each chunk wanted from it.
    pub(super) frames: Vec<(u32, Vec<(u32, Item)>)>,
}

impl Request {
    fn first_place(&self) -> Option<Place<PackNo>> {
        let (frame, items) = self.frames.first()?;
        Some(Place { pack: self.pack, frame: *frame, slot: items.first()?.0 })
    }

    fn into_items(self) -> Vec<(Place<PackNo>, Item)> {
        let pack = self.pack;
        let place = |frame, slot| Place { pack, frame, slot };
        self.frames.into_iter().flat_map(|(frame, items)| items.into_iter().map(move |(slot, item)| (place(frame, slot), item))).collect()
    }
}

#[derive(Default)]
pub(super) struct Counters {
    pub(super) delivered: AtomicU64,
    existing: AtomicU64,
    fetched: AtomicU64,
}

impl Counters {
    pub(super) fn totals(&self) -> FetchStats {
        FetchStats {
            bytes_delivered: self.delivered.load(Ordering::Relaxed),
            bytes_existing: self.existing.load(Ordering::Relaxed),
            bytes_fetched: self.fetched.load(Ordering::Relaxed),
        }
    }
}

/// Gets what a request fetched, and the number of the thread that it is on.
pub(super) type Take<'t> = dyn Fn(usize, &mut DecodeWorker<'_>, &Request, &[u8]) -> Result<()> + Sync + 't;

/// What goes wrong while requests are fetched.
struct Fetched<'c> {
    /// Their packs are not there.
    missing: Mutex<Vec<(Request, Error)>>,
    /// The first one: then nothing else counts.
    failure: Mutex<Option<Error>>,
    cancel: &'c Cancel,
}

impl Fetched<'_> {
    fn fail(&self, error: Error) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    fn miss(&self, request: Request, error: Error) {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner).push((request, error));
    }

    fn has_failed(&self) -> bool {
        self.cancel.is_cancelled() || self.failure.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }
}

/// Opens, decompresses and checks frames; one a thread.
pub(super) struct DecodeWorker<'i> {
    inner: &'i Inner,
    opener: FrameOpener<'i>,
    decoder: Decoder,
    /// Of the frame that was opened last: as it was encoded.
    pub(super) encoded: Vec<u8>,
    pub(super) plain: Vec<u8>,
}

impl<'i> DecodeWorker<'i> {
    pub(super) fn new(inner: &'i Inner) -> Result<Self> {
        let decoder = Decoder::new().map_err(|e| Error::new(Kind::Failed, "start a decoder").because(e))?;
        Ok(Self { inner, opener: FrameOpener::new(&inner.keys, inner.id), decoder, encoded: Vec::new(), plain: Vec::new() })
    }

    /// Opens and decompresses a frame into `plain`.
    pub(super) fn decode(&mut self, key: &str, directory: &Directory, frame: &FrameEntry, sealed: &[u8]) -> Result<()> {
        if sealed.len() != frame.sealed_len as usize {
            return Err(Error::new(Kind::Damaged, format!("pack {key}: is truncated")));
        }
        self.opener.open(key, directory.kind, &directory.envelopes[frame.envelope as usize], frame, sealed, &mut self.encoded)?;
        self.decoder
            .decode(frame.encoding, &self.encoded, frame.plain_len as usize, &mut self.plain)
            .map_err(|e| Error::new(Kind::Damaged, format!("pack {key}, frame at {}", frame.offset)).because(e))
    }

    #[expect(clippy::too_many_arguments, reason = "the surroundings of one call")]
    fn deliver(
        &mut self,
        request: &Request,
        bytes: &[u8],
        name: &dyn Fn(usize) -> String,
        sink: &dyn BlockSink,
        progress: &dyn Progress,
        cancel: &Cancel,
        stats: &Counters,
    ) -> Result<()> {
        let pack = self.inner.packs.get(request.pack).id;
        let key = pack.key();
        for (number, items) in &request.frames {
            cancel.check()?;
            let frame = &request.directory.frames[*number as usize];
            let envelope = request.directory.envelopes[frame.envelope as usize].generation;
            let at = (frame.offset - request.start) as usize;
            let within = |e: Error| self.inner.blame(pack, e).within(format!("restore {}", name(items[0].1.file)));
            let sealed =
                bytes.get(at..at + frame.sealed_len as usize).ok_or_else(|| Error::new(Kind::Damaged, format!("pack {key}: is truncated")));
            let sealed = sealed.map_err(within)?;
            self.decode(&key, &request.directory, frame, sealed)
                .map_err(|e| self.inner.blame(pack, e).within(format!("restore {}", name(items[0].1.file))))?;
            if frame.encoding == Encoding::Delta {
                return Err(Error::new(Kind::Damaged, format!("pack {key}: a patch is referred to as a full chunk")));
            }
            let mut starts = Vec::with_capacity(frame.chunks.len());
            let mut start = 0usize;
            for chunk in &frame.chunks {
                starts.push(start);
                start += chunk.len as usize;
            }
            let mut checked = vec![false; frame.chunks.len()];
            // Chunks that lie one after the other here and there are written at once.
            let mut run: Option<(usize, u64, std::ops::Range<usize>)> = None;
            let mut delivered = 0u64;
            for (slot, item) in items {
                let slot = *slot as usize;
                let range = starts[slot]..starts[slot] + item.chunk.len as usize;
                if !checked[slot] {
                    if !self.inner.keys.chunk_has_id(envelope, &self.plain[range.clone()], item.chunk.id)? {
                        return Err(within(Error::new(
                            Kind::Damaged,
                            format!("pack {key}, frame at {}: a chunk does not match its id", frame.offset),
                        )));
                    }
                    checked[slot] = true;
                }
                delivered += range.len() as u64;
                match &mut run {
                    Some((file, offset, bytes))
                        if *file == item.file && *offset + bytes.len() as u64 == item.offset && bytes.end == range.start =>
                    {
                        bytes.end = range.end;
                    }
                    _ => {
                        if let Some((file, offset, bytes)) = run.replace((item.file, item.offset, range)) {
                            sink.write(file, offset, &self.plain[bytes])?;
                        }
                    }
                }
            }
            if let Some((file, offset, bytes)) = run {
                sink.write(file, offset, &self.plain[bytes])?;
            }
            stats.delivered.fetch_add(delivered, Ordering::Relaxed);
            progress.event(Event::Advance { bytes: delivered, items: 0 });
        }
        Ok(())
    }
}

enum Stretch {
    Chunks(Vec<Chunk<PackNo>>),
    Node(NodeRef<PackNo>),
}

/// Reads a file in order, a stretch at a time.
struct FileReader {
    repository: Repository,
    nodes: NodeReader,
    cancel: Cancel,
    stretches: std::vec::IntoIter<Stretch>,
    ready: Vec<u8>,
    at: usize,
    /// Bytes of the file that are still to come.
    missing: u64,
}

/// Collects a stretch in memory.
struct MemorySink(Mutex<Vec<u8>>);

impl BlockSink for MemorySink {
    fn write(&self, _file: usize, offset: u64, data: &[u8]) -> Result<()> {
        let start = usize::try_from(offset).map_err(|_| Error::new(Kind::Bug, "a stretch over memory"))?;
        self.0.lock().unwrap_or_else(PoisonError::into_inner)[start..start + data.len()].copy_from_slice(data);
        Ok(())
    }
}

impl FileReader {
    fn refill(&mut self) -> Result<bool> {
        let chunks = match self.stretches.next() {
            None if self.missing > 0 => {
                return Err(Error::new(Kind::Damaged, format!("a file ends {} bytes before its size", self.missing)));
            }
            None => return Ok(false),
            Some(Stretch::Chunks(chunks)) => chunks,
            Some(Stretch::Node(node)) => match self.nodes.records(&node)?.pop() {
                Some(Record::Stretch(chunks)) => chunks,
                _ => return Err(Error::new(Kind::Damaged, "a node is not the stretch that it should be")),
            },
        };
        let mut items = Vec::with_capacity(chunks.len());
        let mut offset = 0u64;
        for chunk in chunks {
            items.push(Item { file: 0, offset, chunk });
            offset += u64::from(chunk.len);
        }
        let len = usize::try_from(offset).map_err(|_| Error::new(Kind::Damaged, "a stretch is impossibly long"))?;
        let sink = MemorySink(Mutex::new(vec![0; len]));
        self.missing = self.missing.checked_sub(offset).ok_or_else(|| Error::new(Kind::Damaged, "a file has more bytes than its size"))?;
        self.repository.fetch_window(&mut items, &[], &sink, &crate::event::Silent, &self.cancel, &Counters::default())?;
        self.ready = sink.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        self.at = 0;
        Ok(true)
    }
}

impl Read for FileReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.at == self.ready.len() {
            if !self.refill().map_err(std::io::Error::other)? {
                return Ok(0);
            }
        }
        let take = buffer.len().min(self.ready.len() - self.at);
        buffer[..take].copy_from_slice(&self.ready[self.at..self.at + take]);
        self.at += take;
        Ok(take)
    }
}

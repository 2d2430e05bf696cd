//! (R) Partly dead packs put together anew. To everybody else the one who does it is a writer: its session names the record of moved packs
//! that it will create, new packs and their index objects come before that, and it may be fenced.
//!
//! A frame in which all is alive moves as it is, sealed, with its envelope and ordinal: every role can do that. Out of a frame that is
//! partly dead the living chunks are taken, where the role opens it; otherwise it moves whole. A frame of an older key generation is sealed
//! anew under the newest, where the role opens it: so rewriting retires generations.

use std::sync::Arc;
use std::thread;

use bytes::Bytes;
use chrono::{DateTime, Utc};

use crate::error::{Error, Kind, Result};
use crate::event::{Cancel, Event, Progress};
use crate::id::SessionId;
use crate::repo::collect::Collection;
use crate::repo::collect::marks::{Marks, PackMarks};
use crate::repo::format::{FRAME_TARGET, NODE_FRAME_TARGET, NODE_PACK_TARGET, ObjectKind, PACK_TARGET, PackId, PackKind};
use crate::repo::frame::{Encoder, Encoding, Profile, prove};
use crate::repo::index::{IndexedPack, PackHead};
use crate::repo::keys::{OWN_FIRST, Role};
use crate::repo::moved::{FOLDER, MovedFrame, MovedPack, MovedRecord};
use crate::repo::pack::{ChunkEntry, Directory, FrameEntry, PackBuilder, TRAILER_BYTES, open_directory};
use crate::repo::pipeline::write_index_objects;
use crate::repo::read::DecodeWorker;
use crate::repo::session::Session;
use crate::repo::snapshot::host_name;
use crate::repo::tree::PackRef;
use crate::repo::{Inner, Repository, beside};

/// Packs that one record is about, at most, and their bytes but for the last: what is done again when it is interrupted.
const BATCH: usize = 1024;
const BATCH_BYTES: u64 = 2 << 30;
/// Bytes of packs that are opened at the same time, but for a larger one.
const RUN_BYTES: u64 = 8 << 20;
/// Frames compressed at the same time, at most: each takes a few MiB.
const ENCODERS: usize = 8;

/// How a frame moves.
enum Part {
    /// As it is, or not at all.
    Sealed,
    /// Encoded as it was, to be sealed under the newest generation.
    Renewed(Vec<u8>),
    /// The plain bytes of its living chunks, one after the other.
    Living(Vec<u8>),
}

/// A pack that is whole, and what of it moves.
struct Opened {
    pack: PackRef,
    bytes: Bytes,
    directory: Directory,
    parts: Vec<Part>,
}

/// Living chunks of partly dead frames, for a frame of their own.
#[derive(Default)]
struct Gathered {
    plain: Vec<u8>,
    chunks: Vec<ChunkEntry>,
    /// Of each frame that gave some: source and frame in the record, its first slot here, its kept slots.
    origins: Vec<(usize, usize, u32, Vec<bool>)>,
}

/// New packs on their way, and where what has come.
struct Assembly<'a> {
    repository: &'a Repository,
    kind: PackKind,
    pack: Option<PackBuilder>,
    record: MovedRecord,
    indexed: Vec<IndexedPack>,
    gathered: Gathered,
    /// Those that are complete and are compressed next, each by an encoder of its own.
    full: Vec<Gathered>,
    encoders: Vec<Encoder>,
    written: u64,
}

impl Repository {
    /// Rewrites packs; returns those whose place others have taken, so that they can go. A pack that is damaged is left alone.
    pub(super) fn rewrite(
        &self,
        packs: &[PackHead],
        marks: &Marks,
        now: DateTime<Utc>,
        progress: &dyn Progress,
        cancel: &Cancel,
        out: &mut Collection,
    ) -> Result<Vec<PackId>> {
        let mut done = Vec::new();
        if packs.is_empty() {
            return Ok(done);
        }
        progress.event(Event::Phase { name: "rewrite", detail: format!("{} packs", packs.len()) });
        progress.event(Event::Total { bytes: packs.iter().map(|pack| pack.len).sum(), items: packs.len() as u64 });
        for batch in runs(packs, BATCH_BYTES, BATCH) {
            let key = format!("{FOLDER}{}", SessionId::generate(now));
            let session = Session::publish(&self.inner, &key, &host_name(), now)?;
            match self.put_together(batch, marks, progress, cancel, out) {
                Ok(record) if !record.sources.is_empty() => done.extend(self.commit_moved(session, &key, &record, out)?),
                nothing => {
                    session.end(&self.inner);
                    nothing?;
                }
            }
        }
        Ok(done)
    }

    /// Puts what is alive in some packs into new ones, which are stored and listed then; nothing leads to them before the record is there.
    fn put_together(
        &self,
        packs: &[PackHead],
        marks: &Marks,
        progress: &dyn Progress,
        cancel: &Cancel,
        out: &mut Collection,
    ) -> Result<MovedRecord> {
        let inner = &self.inner;
        let mut record = MovedRecord::default();
        let mut indexed = Vec::new();
        for kind in [PackKind::Data, PackKind::Nodes] {
            let mut assembly = Assembly::new(self, kind, std::mem::take(&mut record), std::mem::take(&mut indexed))?;
            let of_kind: Vec<PackHead> = packs.iter().filter(|pack| pack.kind == kind).copied().collect();
            let mut ahead: Option<Fetched> = None;
            let mut rest = runs(&of_kind, RUN_BYTES, usize::MAX).into_iter().peekable();
            while let Some(run) = rest.next() {
                cancel.check()?;
                let fetched = ahead.take().unwrap_or_else(|| inner.fetch(run));
                // Large packs wait for the line, not for its answers: they are not held two at a time.
                let next = rest.peek().filter(|next| next.iter().map(|pack| pack.len).sum::<u64>() <= RUN_BYTES);
                let take = || -> Result<()> {
                    for (pack, opened) in run.iter().zip(self.open_packs(run, fetched, marks)) {
                        match opened {
                            Ok(opened) => assembly.take(opened, marks)?,
                            Err(error) if error.kind() == Kind::Damaged => {
                                out.warnings.push(format!("{} is not rewritten: {error}. Run `lifeboat verify`", pack.id.key()));
                            }
                            // Another collection was quicker.
                            Err(error) if error.kind() == Kind::NotFound => {}
                            Err(error) => return Err(error),
                        }
                        progress.event(Event::Advance { bytes: pack.len, items: 1 });
                    }
                    Ok(())
                };
                match next {
                    Some(next) => {
                        let (taken, fetched) = beside(|| Ok(inner.fetch(next)), take);
                        taken?;
                        ahead = Some(fetched?);
                    }
                    None => take()?,
                }
            }
            assembly.finish()?;
            out.bytes_moved += assembly.written;
            (record, indexed) = (assembly.record, assembly.indexed);
        }
        if !record.sources.is_empty() {
            write_index_objects(inner, &indexed, |_, _| Ok(()))?;
        }
        Ok(record)
    }

    /// Opens packs: the frames of all of them at the same time. Checked is the whole of each, before anything is taken: what is moved gets a new
    /// name that vouches for it, and rot must not get one; and a damaged frame leaves nothing behind.
    fn open_packs(&self, packs: &[PackHead], fetched: Fetched, marks: &Marks) -> Vec<Result<Opened>> {
        let inner = &self.inner;
        let mut opened: Vec<Result<Opened>> = packs.iter().zip(fetched).map(|(head, bytes)| inner.open_fetched(head, bytes?)).collect();
        // The name of each pack, and its frames.
        let mut todo: Vec<(usize, Option<usize>)> = Vec::new();
        for (at, one) in opened.iter().enumerate() {
            if let Ok(one) = one {
                todo.push((at, None));
                todo.extend((0..one.directory.frames.len()).map(|number| (at, Some(number))));
            }
        }
        let threads = inner.workers.min(todo.len()).max(1);
        let (all, looked_at) = (&opened, &todo);
        let work = |first: usize| -> Vec<(usize, Result<Part>)> {
            let mut worker = None;
            let mine = looked_at.iter().enumerate().skip(first).step_by(threads);
            mine.map(|(place, (at, number))| {
                let Ok(one) = &all[*at] else { return (place, Ok(Part::Sealed)) };
                let part = match number {
                    None if *blake3::hash(&one.bytes).as_bytes() == one.pack.id.0 => Ok(Part::Sealed),
                    None => Err(Error::new(Kind::Damaged, format!("pack {}: its bytes do not match its name", one.pack.id.key()))),
                    Some(number) => self.open_part(one, *number, marks, &mut worker),
                };
                (place, part)
            })
            .collect()
        };
        let mut parts: Vec<(usize, Result<Part>)> = thread::scope(|scope| {
            let work = &work;
            let others: Vec<_> = (1..threads).map(|first| scope.spawn(move || work(first))).collect();
            let mut parts = work(0);
            for other in others {
                parts.extend(other.join().unwrap_or_else(|_| vec![(0, Err(Error::new(Kind::Bug, "a thread that opens packs panicked")))]));
            }
            parts
        });
        parts.sort_by_key(|(place, _)| *place);
        for (place, part) in parts {
            let (at, number) = todo[place];
            match (&mut opened[at], part) {
                (Ok(one), Ok(part)) if number.is_some() => one.parts.push(part),
                (Ok(_), Ok(_)) | (Err(_), _) => {}
                (one, Err(error)) => *one = Err(error),
            }
        }
        opened
    }

    /// How a frame moves. What is opened is checked.
    fn open_part<'i>(&'i self, one: &Opened, number: usize, marks: &Marks, worker: &mut Option<DecodeWorker<'i>>) -> Result<Part> {
        let inner = &*self.inner;
        let (directory, frame) = (&one.directory, &one.directory.frames[number]);
        let sealed = one.sealed(frame)?;
        if directory.kind == PackKind::Data && inner.keys.role != Role::Reader {
            return Ok(Part::Sealed);
        }
        let Some(marks) = marks.pack(inner.packs.intern(one.pack)) else { return Ok(Part::Sealed) };
        let living = (0..frame.chunks.len() as u32).filter(|slot| marks.has(number, *slot)).count();
        let envelope = directory.envelopes[frame.envelope as usize].generation;
        let patches = frame.encoding == Encoding::Delta;
        let whole = living == frame.chunks.len() || patches;
        let old = envelope < inner.keys.generation;
        if living == 0 || is_own(directory, frame) || whole && !old {
            return Ok(Part::Sealed);
        }
        let worker = match worker {
            Some(worker) => worker,
            none => none.insert(DecodeWorker::new(inner)?),
        };
        let key = one.pack.id.key();
        worker.decode(&key, directory, frame, sealed)?;
        let mut at = 0;
        let mut kept = Vec::new();
        for (slot, chunk) in frame.chunks.iter().enumerate().filter(|_| !patches) {
            let data = &worker.plain[at..at + chunk.len as usize];
            let fits = || match directory.kind {
                PackKind::Data => inner.keys.chunk_has_id(envelope, data, chunk.id),
                PackKind::Nodes | PackKind::Log => Ok(inner.keys.node_has_id(data, chunk.id)),
            };
            if marks.has(number, slot as u32) {
                if !fits()? {
                    return Err(Error::new(Kind::Damaged, format!("pack {key}: a chunk does not match its id")));
                }
                if !whole {
                    kept.extend_from_slice(data);
                }
            }
            at += chunk.len as usize;
        }
        Ok(if whole { Part::Renewed(std::mem::take(&mut worker.encoded)) } else { Part::Living(kept) })
    }

    /// The commit. Returns the packs whose place others have taken.
    fn commit_moved(&self, session: Session, key: &str, record: &MovedRecord, out: &mut Collection) -> Result<Vec<PackId>> {
        let inner = &self.inner;
        let created = inner
            .seal_object(ObjectKind::Moved, key, &record.encode())
            .and_then(|sealed| inner.block_on(inner.store.create(key, Bytes::from(sealed))));
        match created {
            Ok(_) => session.end(inner),
            Err(error) if error.kind() == Kind::AlreadyExists => {
                session.end(inner);
                out.warnings.push("another collection took this one for dead: nothing was rewritten".to_owned());
                return Ok(Vec::new());
            }
            Err(error) => {
                // Whatever the last answer was: an earlier request may still land. The session stays, so that a collector must fence this
                // name before it deletes what the record leads to.
                session.leave();
                return Err(error.within("record where rewritten packs have gone"));
            }
        }
        inner.load_moved()?;
        out.packs_rewritten += record.sources.len() as u64;
        Ok(record.sources.iter().map(|source| source.id).collect())
    }
}

/// How many chunks of a pack would move if it were rewritten by this role: what moves whole takes its dead chunks with it.
pub(super) fn chunks_to_move(role: Role, directory: &Directory, marks: &PackMarks) -> u32 {
    let of_frame = |(number, frame): (usize, &FrameEntry)| {
        let all = frame.chunks.len() as u32;
        let living = (0..all).filter(|slot| marks.has(number, *slot)).count() as u32;
        if living > 0 && moves_whole(role, directory, frame) { all } else { living }
    };
    directory.frames.iter().enumerate().map(of_frame).sum()
}

/// Whether nothing can be taken out of a frame: the role does not open it, or it must stay as it is sealed, or its chunks belong together.
fn moves_whole(role: Role, directory: &Directory, frame: &FrameEntry) -> bool {
    // A patch belongs to its base, wherever that is: a frame of them moves as one.
    directory.kind == PackKind::Data && role != Role::Reader || is_own(directory, frame) || frame.encoding == Encoding::Delta
}

/// What is sealed under a plan's own key stays so: under the repository's it would outlive that key's destruction.
fn is_own(directory: &Directory, frame: &FrameEntry) -> bool {
    directory.kind == PackKind::Data && directory.envelopes[frame.envelope as usize].generation >= OWN_FIRST
}

impl<'a> Assembly<'a> {
    fn new(repository: &'a Repository, kind: PackKind, record: MovedRecord, indexed: Vec<IndexedPack>) -> Result<Self> {
        let profile = if kind == PackKind::Data { Profile::Pages } else { Profile::Nodes };
        let failed = |e| Error::new(Kind::Failed, "start an encoder").because(e);
        let count = repository.inner.workers.clamp(1, ENCODERS);
        let encoders = (0..count).map(|_| Encoder::new(profile).map_err(failed)).collect::<Result<_>>()?;
        Ok(Self { repository, kind, pack: None, record, indexed, gathered: Gathered::default(), full: Vec::new(), encoders, written: 0 })
    }

    /// Takes over what is alive in a pack.
    ///
    /// # Errors
    /// The record is not whole then, and must not be committed.
    fn take(&mut self, mut opened: Opened, marks: &Marks) -> Result<()> {
        let parts = std::mem::take(&mut opened.parts);
        let directory = &opened.directory;
        let Some(marks) = marks.pack(self.repository.inner.packs.intern(opened.pack)) else { return Ok(()) };
        if parts.len() != directory.frames.len() {
            return Err(Error::new(Kind::Bug, "a pack was opened and not all of its frames"));
        }
        let source = self.record.sources.len();
        self.record.sources.push(MovedPack::new(opened.pack.id, directory.frames.len()));
        for ((number, frame), part) in directory.frames.iter().enumerate().zip(parts) {
            let kept: Vec<bool> = (0..frame.chunks.len() as u32).map(|slot| marks.has(number, slot)).collect();
            if !kept.contains(&true) {
                continue;
            }
            let living = match part {
                Part::Living(living) => living,
                whole => {
                    let target = self.record.targets.len() as u32;
                    let to = self.open_pack()?;
                    let frame = match whole {
                        Part::Renewed(encoded) => to.push(frame.encoding, &encoded, frame.chunks.clone())?,
                        _ => to.carry(&directory.envelopes[frame.envelope as usize], frame, opened.sealed(frame)?)?,
                    };
                    self.record.sources[source].frames[number] = MovedFrame::Whole { target, frame };
                    self.close_full_pack()?;
                    continue;
                }
            };
            let most = if self.kind == PackKind::Data { FRAME_TARGET } else { NODE_FRAME_TARGET };
            if self.gathered.plain.len() + living.len() > most {
                self.close_frame()?;
            }
            let first_slot = self.gathered.chunks.len() as u32;
            self.gathered.plain.extend_from_slice(&living);
            self.gathered.chunks.extend(frame.chunks.iter().zip(&kept).filter(|(_, kept)| **kept).map(|(chunk, _)| *chunk));
            self.gathered.origins.push((source, number, first_slot, kept));
        }
        Ok(())
    }

    fn open_pack(&mut self) -> Result<&mut PackBuilder> {
        let inner = &self.repository.inner;
        match &mut self.pack {
            Some(pack) => Ok(pack),
            none => Ok(none.insert(PackBuilder::new(&inner.keys, inner.id, self.kind, Vec::new())?)),
        }
    }

    /// The gathered chunks become a frame, as soon as there is one for each encoder.
    fn close_frame(&mut self) -> Result<()> {
        if !self.gathered.chunks.is_empty() {
            self.full.push(std::mem::take(&mut self.gathered));
        }
        if self.full.len() < self.encoders.len() { Ok(()) } else { self.compress_full() }
    }

    /// Compresses and seals the frames that are complete.
    fn compress_full(&mut self) -> Result<()> {
        let full = std::mem::take(&mut self.full);
        let encoded: Vec<Result<(Encoding, Vec<u8>)>> = thread::scope(|scope| {
            let threads =
                full.iter().zip(&mut self.encoders).map(|(frame, encoder)| scope.spawn(move || compressed(encoder, &frame.plain)));
            let threads: Vec<_> = threads.collect();
            let panicked = || Error::new(Kind::Bug, "a thread that compresses panicked");
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err(panicked()))).collect()
        });
        for (gathered, encoded) in full.into_iter().zip(encoded) {
            let (encoding, encoded) = encoded?;
            let target = self.record.targets.len() as u32;
            let frame = self.open_pack()?.push(encoding, &encoded, gathered.chunks)?;
            for (source, number, first_slot, kept) in gathered.origins {
                let source = &mut self.record.sources[source];
                source.frames[number] = source.part(target, frame, first_slot, &kept);
            }
            self.close_full_pack()?;
        }
        Ok(())
    }

    fn close_full_pack(&mut self) -> Result<()> {
        let target = if self.kind == PackKind::Data { PACK_TARGET } else { NODE_PACK_TARGET };
        if self.pack.as_ref().is_some_and(|pack| pack.len() >= target) { self.close_pack() } else { Ok(()) }
    }

    fn close_pack(&mut self) -> Result<()> {
        let Some(pack) = self.pack.take() else { return Ok(()) };
        let inner = &self.repository.inner;
        let finished = pack.finish(&inner.keys)?;
        let reference = PackRef { id: finished.id, len: finished.bytes.len() as u64, directory_len: finished.directory_len };
        self.indexed.push(IndexedPack {
            id: finished.id,
            kind: self.kind,
            len: reference.len,
            directory_len: reference.directory_len,
            prefixes: finished.directory.chunks().map(|chunk| chunk.id.prefix()).collect(),
        });
        inner.block_on(inner.store.create(&finished.id.key(), Bytes::from(finished.bytes)))?;
        inner.directories.put(finished.id, Arc::new(finished.directory));
        self.record.targets.push((reference, self.kind));
        self.written += reference.len;
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        self.close_frame()?;
        self.compress_full()?;
        self.close_pack()
    }
}

/// The bytes of packs, in their order.
type Fetched = Vec<Result<Bytes>>;

impl Inner {
    fn fetch(&self, packs: &[PackHead]) -> Fetched {
        self.get_all(packs.iter().map(|pack| pack.id.key())).into_iter().map(|(_, bytes)| bytes).collect()
    }

    /// The directory of a pack that was read as a whole.
    fn open_fetched(&self, head: &PackHead, bytes: Bytes) -> Result<Opened> {
        let pack = PackRef { id: head.id, len: head.len, directory_len: head.directory_len };
        let key = pack.id.key();
        let tail = u64::from(pack.directory_len) + TRAILER_BYTES as u64;
        if bytes.len() as u64 != pack.len || tail > pack.len {
            return Err(Error::new(Kind::Damaged, format!("pack {key}: is not as long as it should be")));
        }
        let directory = open_directory(&self.keys, self.id, &key, pack.len, &bytes[(pack.len - tail) as usize..])?;
        if directory.kind != head.kind {
            return Err(Error::new(Kind::Damaged, format!("pack {key}: is of another kind than the index says")));
        }
        Ok(Opened { pack, bytes, directory, parts: Vec::new() })
    }
}

/// Packs one after the other in groups of at most so many bytes, but for the first of a group, and so many packs.
fn runs(packs: &[PackHead], bytes: u64, count: usize) -> Vec<&[PackHead]> {
    let mut left = packs;
    let mut runs = Vec::new();
    while !left.is_empty() {
        let mut sum = 0u64;
        let fitting = left.iter().take(count).take_while(|pack| {
            sum = sum.saturating_add(pack.len);
            sum <= bytes
        });
        let (run, rest) = left.split_at(fitting.count().max(1));
        runs.push(run);
        left = rest;
    }
    runs
}

impl Opened {
    fn sealed(&self, frame: &FrameEntry) -> Result<&[u8]> {
        let start = frame.offset as usize;
        let sealed = start.checked_add(frame.sealed_len as usize).and_then(|end| self.bytes.get(start..end));
        sealed.ok_or_else(|| Error::new(Kind::Damaged, format!("pack {}: is truncated", self.pack.id.key())))
    }
}

fn compressed(encoder: &mut Encoder, plain: &[u8]) -> Result<(Encoding, Vec<u8>)> {
    let (encoding, encoded) = encoder.encode(plain).map_err(|e| Error::new(Kind::Failed, "compress a frame").because(e))?;
    prove(encoding, encoded, plain)?;
    Ok((encoding, encoded.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn runs_are_all_packs_in_their_order_and_bounded(sizes in proptest::collection::vec(1u64..40, 0..60), bytes in 1u64..60, count in 1usize..9) {
            let head = |(number, len): (usize, &u64)| PackHead { id: PackId([number as u8; 32]), kind: PackKind::Data, len: *len, directory_len: 1, chunks: 1 };
            let packs: Vec<PackHead> = sizes.iter().enumerate().map(head).collect();
            let runs = runs(&packs, bytes, count);
            prop_assert_eq!(&runs.concat(), &packs);
            for run in &runs {
                prop_assert!(!run.is_empty() && run.len() <= count);
                prop_assert!(run.len() == 1 || run.iter().map(|pack| pack.len).sum::<u64>() <= bytes);
            }
        }
    }
}

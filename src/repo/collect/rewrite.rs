//! (R) Partly dead packs put together anew. To everybody else the one who does it is a writer: its session names the record of moved packs
//! that it will create, new packs and their index objects come before that, and it may be fenced.
//!
//! A frame in which all is alive moves as it is, sealed, with its envelope and ordinal: every role can do that. Out of a frame that is
//! partly dead the living chunks are taken, where the role opens it; otherwise it moves whole. A frame of an older key generation is sealed
//! anew under the newest, where the role opens it: so rewriting retires generations.

use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, Utc};

use crate::error::{Error, Kind, Result};
use crate::event::{Cancel, Event, Progress};
use crate::id::SessionId;
use crate::repo::Repository;
use crate::repo::collect::Collection;
use crate::repo::collect::marks::{Marks, PackMarks};
use crate::repo::format::{FRAME_TARGET, NODE_FRAME_TARGET, NODE_PACK_TARGET, ObjectKind, PACK_TARGET, PackId, PackKind};
use crate::repo::frame::{Encoder, Encoding, Profile, prove};
use crate::repo::index::IndexedPack;
use crate::repo::keys::{OWN_FIRST, Role};
use crate::repo::moved::{FOLDER, MovedFrame, MovedPack, MovedRecord};
use crate::repo::pack::{ChunkEntry, Directory, PackBuilder};
use crate::repo::pipeline::write_index_objects;
use crate::repo::read::DecodeWorker;
use crate::repo::session::Session;
use crate::repo::snapshot::host_name;
use crate::repo::tree::PackRef;

/// Packs that one record is about.
const BATCH: usize = 64;

/// How a frame moves.
enum Part {
    /// As it is, or not at all.
    Sealed,
    /// Encoded as it was, to be sealed under the newest generation.
    Renewed(Vec<u8>),
    /// Its plain bytes, of which some chunks are kept.
    Plain(Vec<u8>),
}

/// New packs on their way, and where what has come.
struct Assembly<'a> {
    repository: &'a Repository,
    kind: PackKind,
    pack: Option<PackBuilder>,
    record: MovedRecord,
    indexed: Vec<IndexedPack>,
    /// Living chunks of partly dead frames, for a frame of their own.
    plain: Vec<u8>,
    chunks: Vec<ChunkEntry>,
    /// Of each frame that gave some: source and frame in the record, its first slot here, its kept slots.
    origins: Vec<(usize, usize, u32, Vec<bool>)>,
    encoder: Encoder,
    written: u64,
}

impl Repository {
    /// Rewrites packs; returns those whose place others have taken, so that they can go. A pack that is damaged is left alone.
    pub(super) fn rewrite(
        &self,
        packs: &[PackRef],
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
        for batch in packs.chunks(BATCH) {
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
        packs: &[PackRef],
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
            for pack in packs {
                cancel.check()?;
                let Some(marks) = marks.pack(inner.packs.intern(*pack)) else { continue };
                match assembly.take(pack, marks) {
                    Ok(true) => {}
                    Ok(false) => continue,
                    Err(error) if error.kind() == Kind::Damaged => {
                        out.warnings.push(format!("{} is not rewritten: {error}. Run `lifeboat verify`", pack.id.key()));
                    }
                    // Another collection was quicker.
                    Err(error) if error.kind() == Kind::NotFound => {}
                    Err(error) => return Err(error),
                }
                progress.event(Event::Advance { bytes: pack.len, items: 1 });
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

impl<'a> Assembly<'a> {
    fn new(repository: &'a Repository, kind: PackKind, record: MovedRecord, indexed: Vec<IndexedPack>) -> Result<Self> {
        let profile = if kind == PackKind::Data { Profile::Pages } else { Profile::Nodes };
        let encoder = Encoder::new(profile).map_err(|e| Error::new(Kind::Failed, "start an encoder").because(e))?;
        Ok(Self {
            repository,
            kind,
            pack: None,
            record,
            indexed,
            plain: Vec::new(),
            chunks: Vec::new(),
            origins: Vec::new(),
            encoder,
            written: 0,
        })
    }

    /// Takes over what is alive in a pack; `false`: it is of the other kind.
    ///
    /// # Errors
    /// `Damaged`: nothing of it was taken over.
    fn take(&mut self, pack: &PackRef, marks: &PackMarks) -> Result<bool> {
        let inner = &self.repository.inner;
        let directory = inner.directory(*pack).map_err(|error| match inner.block_on(inner.store.head(&pack.id.key())) {
            Ok(None) => Error::new(Kind::NotFound, "the pack is gone"),
            _ => error,
        })?;
        if directory.kind != self.kind {
            return Ok(false);
        }
        let key = pack.id.key();
        let bytes = inner.block_on(inner.store.get(&key))?;
        // What is moved gets a new name that vouches for it: rot must not get one.
        if *blake3::hash(&bytes).as_bytes() != pack.id.0 {
            return Err(Error::new(Kind::Damaged, format!("pack {key}: its bytes do not match its name")));
        }
        // Opened before anything is taken, so that a damaged frame leaves nothing behind.
        let plains = self.open_parts(&key, &directory, marks, &bytes)?;
        let source = self.record.sources.len();
        self.record.sources.push(MovedPack { id: pack.id, frames: vec![MovedFrame::Dropped; directory.frames.len()] });
        for ((number, frame), plain) in directory.frames.iter().enumerate().zip(plains) {
            let kept: Vec<bool> = (0..frame.chunks.len() as u32).map(|slot| marks.has(number, slot)).collect();
            if !kept.contains(&true) {
                continue;
            }
            if let Part::Renewed(encoded) = &plain {
                let target = self.record.targets.len() as u32;
                let renewed = self.open_pack()?.push(frame.encoding, encoded, frame.chunks.clone())?;
                self.record.sources[source].frames[number] = MovedFrame::Whole { target, frame: renewed };
                self.close_full_pack()?;
                continue;
            }
            let Part::Plain(plain) = plain else {
                let sealed = &bytes[frame.offset as usize..frame.offset as usize + frame.sealed_len as usize];
                let target = self.record.targets.len() as u32;
                let carried = self.open_pack()?.carry(&directory.envelopes[frame.envelope as usize], frame, sealed)?;
                self.record.sources[source].frames[number] = MovedFrame::Whole { target, frame: carried };
                self.close_full_pack()?;
                continue;
            };
            let mut at = 0usize;
            let living: usize = frame.chunks.iter().zip(&kept).filter(|(_, kept)| **kept).map(|(chunk, _)| chunk.len as usize).sum();
            let most = if self.kind == PackKind::Data { FRAME_TARGET } else { NODE_FRAME_TARGET };
            if self.plain.len() + living > most {
                self.close_frame()?;
            }
            let first_slot = self.chunks.len() as u32;
            for (chunk, kept) in frame.chunks.iter().zip(&kept) {
                let end = at + chunk.len as usize;
                if *kept {
                    self.plain.extend_from_slice(&plain[at..end]);
                    self.chunks.push(*chunk);
                }
                at = end;
            }
            self.origins.push((source, number, first_slot, kept));
        }
        Ok(true)
    }

    /// How each frame moves. What is opened is checked.
    fn open_parts(&self, key: &str, directory: &Directory, marks: &PackMarks, bytes: &[u8]) -> Result<Vec<Part>> {
        let inner = &self.repository.inner;
        if self.kind == PackKind::Data && inner.keys.role != Role::Reader {
            return Ok(directory.frames.iter().map(|_| Part::Sealed).collect());
        }
        let mut worker = DecodeWorker::new(inner)?;
        let mut plains = Vec::with_capacity(directory.frames.len());
        for (number, frame) in directory.frames.iter().enumerate() {
            let living = (0..frame.chunks.len() as u32).filter(|slot| marks.has(number, *slot)).count();
            let envelope = directory.envelopes[frame.envelope as usize].generation;
            // What is sealed under a plan's own key stays so: under the repository's it would outlive that key's destruction.
            let own = self.kind == PackKind::Data && envelope >= OWN_FIRST;
            // A patch belongs to its base, wherever that is: a frame of them moves as one.
            let patches = frame.encoding == Encoding::Delta;
            let whole = living == frame.chunks.len() || patches;
            let old = envelope < inner.keys.generation;
            if living == 0 || own || whole && !old {
                plains.push(Part::Sealed);
                continue;
            }
            let sealed = &bytes[frame.offset as usize..frame.offset as usize + frame.sealed_len as usize];
            worker.decode(key, directory, frame, sealed)?;
            let mut at = 0;
            for (slot, chunk) in frame.chunks.iter().enumerate().filter(|_| !patches) {
                let data = &worker.plain[at..at + chunk.len as usize];
                let fits = || match self.kind {
                    PackKind::Data => inner.keys.chunk_has_id(envelope, data, chunk.id),
                    PackKind::Nodes | PackKind::Log => Ok(inner.keys.node_has_id(data, chunk.id)),
                };
                if marks.has(number, slot as u32) && !fits()? {
                    return Err(Error::new(Kind::Damaged, format!("pack {key}: a chunk does not match its id")));
                }
                at += chunk.len as usize;
            }
            plains.push(if whole {
                Part::Renewed(std::mem::take(&mut worker.encoded))
            } else {
                Part::Plain(std::mem::take(&mut worker.plain))
            });
        }
        Ok(plains)
    }

    fn open_pack(&mut self) -> Result<&mut PackBuilder> {
        let inner = &self.repository.inner;
        match &mut self.pack {
            Some(pack) => Ok(pack),
            none => Ok(none.insert(PackBuilder::new(&inner.keys, inner.id, self.kind, Vec::new())?)),
        }
    }

    /// Compresses and seals the gathered chunks.
    fn close_frame(&mut self) -> Result<()> {
        if self.chunks.is_empty() {
            return Ok(());
        }
        let failed = |e: std::io::Error| Error::new(Kind::Failed, "compress a frame").because(e);
        let chunks = std::mem::take(&mut self.chunks);
        let plain = std::mem::take(&mut self.plain);
        let (encoding, encoded) = self.encoder.encode(&plain).map_err(failed)?;
        prove(encoding, encoded, &plain)?;
        let encoded = encoded.to_vec();
        let target = self.record.targets.len() as u32;
        let frame = self.open_pack()?.push(encoding, &encoded, chunks)?;
        for (source, number, first_slot, kept) in self.origins.drain(..) {
            self.record.sources[source].frames[number] = MovedFrame::Part { target, frame, first_slot, kept };
        }
        self.close_full_pack()
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
        self.close_pack()
    }
}

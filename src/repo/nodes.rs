//! Reading nodes of trees: from the metadata packs, with a little read-ahead, each checked against its id.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::error::{Error, Kind, Result};
use crate::repo::Inner;
use crate::repo::format::{ChunkId, PackId, PackKind};
use crate::repo::frame::Decoder;
use crate::repo::pack::{Directory, FrameOpener};
use crate::repo::packs::{PackNo, missing_pack};
use crate::repo::tree::{Content, NodeRef, PackRef, Record, decode_list, decode_records};

/// Sealed bytes fetched at once when a frame of nodes is needed.
const READ_AHEAD: u64 = 1 << 20;
/// Decoded frames kept.
const FRAMES_KEPT: usize = 48;

/// Reads nodes; keeps the frames last decoded.
pub struct NodeReader {
    inner: Arc<Inner>,
    decoder: Decoder,
    frames: VecDeque<(PackId, u32, Arc<Vec<u8>>)>,
}

impl NodeReader {
    pub fn new(inner: &Arc<Inner>) -> Result<Self> {
        let decoder = Decoder::new().map_err(|e| Error::new(Kind::Failed, "start a decoder").because(e))?;
        Ok(Self { inner: Arc::clone(inner), decoder, frames: VecDeque::new() })
    }

    /// The node's bytes, checked against its id.
    ///
    /// # Errors
    /// `Damaged` when it is not there or not what it should be.
    pub fn read(&mut self, node: &NodeRef<PackNo>) -> Result<Vec<u8>> {
        let mut node = *node;
        node.place = self.inner.moved().resolve(&self.inner, node.place);
        loop {
            let pack = self.inner.packs.get(node.place.pack);
            match self.read_from(pack, &node) {
                Ok(bytes) => return Ok(bytes),
                // A collector may have put the pack together anew since it was named.
                Err(error) if error.kind() == Kind::Damaged => match self.inner.moved_since(node.place)? {
                    Some(place) => node.place = place,
                    None => return Err(self.inner.blame(pack.id, error)),
                },
                Err(error) => return Err(error),
            }
        }
    }

    fn read_from(&mut self, pack: PackRef, node: &NodeRef<PackNo>) -> Result<Vec<u8>> {
        let directory = self.inner.directory(pack)?;
        let damaged = |what: &str| Error::new(Kind::Damaged, format!("pack {}: {what}", pack.id.key()));
        if directory.kind != PackKind::Nodes {
            return Err(damaged("is referred to as metadata and holds data"));
        }
        let frame =
            directory.frames.get(node.place.frame as usize).ok_or_else(|| damaged("has fewer frames than a reference to it says"))?;
        let chunk = frame.chunks.get(node.place.slot as usize).ok_or_else(|| damaged("has fewer nodes than a reference to it says"))?;
        if chunk.id != node.id {
            return Err(damaged("holds another node than a reference to it says"));
        }
        let start: usize = frame.chunks[..node.place.slot as usize].iter().map(|c| c.len as usize).sum();
        let plain = self.frame(pack, &directory, node.place.frame)?;
        let bytes = plain.get(start..start + chunk.len as usize).ok_or_else(|| damaged("has a node outside its frame"))?;
        if !self.inner.keys.node_has_id(bytes, node.id) {
            return Err(damaged("a node does not match its id"));
        }
        Ok(bytes.to_vec())
    }

    /// The records of a node.
    pub fn records(&mut self, node: &NodeRef<PackNo>) -> Result<Vec<Record<PackNo>>> {
        let bytes = self.read(node)?;
        let inner = Arc::clone(&self.inner);
        let damaged =
            |what: &str| Error::new(Kind::Damaged, format!("a node in pack {} {what}", inner.packs.get(node.place.pack).id.key()));
        let mut records = decode_records(&bytes, |pack| inner.packs.intern(pack)).map_err(|e| damaged("cannot be decoded").because(e))?;
        let moved = inner.moved();
        if !moved.is_empty() {
            for record in &mut records {
                if let Record::Stretch(chunks) | Record::Entry { content: Content::Inline(chunks), .. } = record {
                    moved.resolve_chunks(&inner, chunks);
                }
            }
        }
        let fits = match records.as_slice() {
            [Record::Stretch(_)] => node.stretch,
            records => !node.stretch && records.iter().all(|r| matches!(r, Record::Entry { .. })),
        };
        if fits { Ok(records) } else { Err(damaged("is not what a tree says it is")) }
    }

    /// All node references of a tree, list nodes resolved.
    pub fn leaves(&mut self, root: &[u8], depth: u32) -> Result<Vec<NodeRef<PackNo>>> {
        let mut refs = self.list(root)?;
        for _ in 0..depth {
            let mut next = Vec::new();
            for node in &refs {
                let bytes = self.read(node)?;
                next.extend(self.list(&bytes)?);
            }
            refs = next;
        }
        Ok(refs)
    }

    /// What a list of nodes leads to.
    ///
    /// # Errors
    /// `Damaged` when it is none.
    pub fn list(&self, bytes: &[u8]) -> Result<Vec<NodeRef<PackNo>>> {
        let inner = &self.inner;
        let mut refs = decode_list(bytes, |pack| inner.packs.intern(pack))
            .map_err(|e| Error::new(Kind::Damaged, "a list of nodes cannot be decoded").because(e))?;
        inner.moved().resolve_refs(inner, &mut refs);
        Ok(refs)
    }

    fn frame(&mut self, pack: PackRef, directory: &Directory, number: u32) -> Result<Arc<Vec<u8>>> {
        if let Some((.., plain)) = self.frames.iter().find(|(id, frame, _)| *id == pack.id && *frame == number) {
            return Ok(Arc::clone(plain));
        }
        let key = pack.id.key();
        let first = &directory.frames[number as usize];
        let ahead = &directory.frames[number as usize..];
        let take = ahead
            .iter()
            .take_while(|f| f.offset + u64::from(f.sealed_len) - first.offset <= READ_AHEAD)
            .take(FRAMES_KEPT / 2)
            .count()
            .max(1);
        let last = &ahead[take - 1];
        let range = first.offset..last.offset + u64::from(last.sealed_len);
        let fetched = self.inner.block_on(self.inner.store.get_range(&key, range.clone()));
        // A pack that ends early may still have the one frame that is wanted.
        let (take, bytes) = match fetched {
            Ok(bytes) => (take, bytes),
            Err(e) if e.kind() == Kind::Damaged && take > 1 => {
                let range = first.offset..first.offset + u64::from(first.sealed_len);
                (1, self.inner.block_on(self.inner.store.get_range(&key, range)).map_err(|e| missing_pack(e, &key))?)
            }
            Err(e) => return Err(missing_pack(e, &key)),
        };
        if take > 1 && bytes.len() as u64 != range.end - range.start {
            return Err(Error::new(Kind::Damaged, format!("pack {key}: is truncated")));
        }
        let inner = Arc::clone(&self.inner);
        let mut opener = FrameOpener::new(&inner.keys, inner.id);
        let mut wanted = None;
        for (step, frame) in ahead[..take].iter().enumerate() {
            let at = (frame.offset - first.offset) as usize;
            let opened = match bytes.get(at..at + frame.sealed_len as usize) {
                None => Err(Error::new(Kind::Damaged, format!("pack {key}: is truncated"))),
                Some(sealed) => {
                    let (mut encoded, mut plain) = (Vec::new(), Vec::new());
                    let envelope = &directory.envelopes[frame.envelope as usize];
                    opener.open(&key, directory.kind, envelope, frame, sealed, &mut encoded).and_then(|()| {
                        self.decoder
                            .decode(frame.encoding, &encoded, frame.plain_len as usize, &mut plain)
                            .map_err(|e| Error::new(Kind::Damaged, format!("pack {key}, frame at {}", frame.offset)).because(e))?;
                        Ok(Arc::new(plain))
                    })
                }
            };
            match opened {
                Ok(plain) => {
                    if self.frames.len() >= FRAMES_KEPT {
                        self.frames.pop_front();
                    }
                    self.frames.push_back((pack.id, number + step as u32, Arc::clone(&plain)));
                    wanted.get_or_insert(plain);
                }
                Err(error) if step == 0 => return Err(error),
                // Damage further on is told when that frame is wanted.
                Err(_) => break,
            }
        }
        wanted.ok_or_else(|| Error::new(Kind::Bug, "a frame was read and not kept"))
    }
}

/// The id of a node.
pub fn node_id(key: &[u8; 32], bytes: &[u8]) -> ChunkId {
    truncate(&blake3::keyed_hash(key, bytes))
}

/// The id of a chunk of data.
pub fn chunk_id(key: &[u8; 32], bytes: &[u8]) -> ChunkId {
    truncate(&blake3::keyed_hash(key, bytes))
}

fn truncate(hash: &blake3::Hash) -> ChunkId {
    let mut id = ChunkId::default();
    id.0.copy_from_slice(&hash.as_bytes()[..16]);
    id
}

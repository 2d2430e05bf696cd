//! Trees: how a source's entries and the places of their chunks are kept. Metadata proportional to change, no global look-up.
//!
//! A tree is a sequence of *nodes* in tree order. A node is a table of the packs that it names, then records: an *entry*, with its
//! chunk list inside when it is small, or *after* its *stretches* of at most [`STRETCH_CHUNKS`] chunks, each in a node of its own.
//! Entries are grouped into nodes by a rule that depends on the entries alone, so an insertion changes one node. An unchanged node
//! has the same bytes, so the same id, and is not stored again. The manifest names all nodes, or, when there are many, *list nodes*
//! that do.

use crate::entry::{Entry, EntryKind, Layout, is_valid_path};
use crate::repo::format::{CHUNK_MAX, ChunkId, ID_BYTES, PackId, STRETCH_CHUNKS};
use crate::repo::wire::{Reader, WireError, WireResult, put_blob, put_varint, unzigzag, zigzag};

/// A pack as nodes and manifests name it: enough to read its directory in one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PackRef {
    pub id: PackId,
    /// Bytes of the whole pack.
    pub len: u64,
    /// Sealed bytes of its directory.
    pub directory_len: u32,
}

/// Where a chunk is in the packs of one repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Place<P> {
    pub pack: P,
    pub frame: u32,
    pub slot: u32,
}

/// A chunk of a file. `P` names its pack: a [`PackRef`]'s number in some table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk<P> {
    pub id: ChunkId,
    /// Plain bytes.
    pub len: u32,
    pub stored: Stored<P>,
}

/// How a chunk's bytes are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored<P> {
    /// Not at all: only zero bytes.
    Zero,
    Full(Place<P>),
    /// As a patch of the full chunk at `base`.
    Delta {
        patch: Place<P>,
        base: Place<P>,
    },
}

impl<P: Copy> Stored<P> {
    /// Its places: none, one, or patch and base.
    pub fn places(&self) -> impl Iterator<Item = Place<P>> {
        let (a, b) = match *self {
            Self::Zero => (None, None),
            Self::Full(place) => (Some(place), None),
            Self::Delta { patch, base } => (Some(patch), Some(base)),
        };
        a.into_iter().chain(b)
    }
}

/// One record of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record<P> {
    Entry {
        entry: Entry,
        content: Content<P>,
    },
    /// The next stretch of the large file whose entry comes after its stretches.
    Stretch(Vec<Chunk<P>>),
}

/// The bytes of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content<P> {
    /// Not a regular file.
    None,
    Inline(Vec<Chunk<P>>),
    /// The stretches in this many nodes just before the entry's.
    Stretches(u64),
}

/// Where a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeRef<P> {
    pub id: ChunkId,
    /// Whether it is a stretch of a large file (and no entries).
    pub stretch: bool,
    pub place: Place<P>,
}

const TYPE_RECORDS: u8 = 1;
const TYPE_LIST: u8 = 2;

const RECORD_ENTRY: u8 = 1;
const RECORD_STRETCH: u8 = 2;

/// Bytes below which a node of entries is not closed, and at which it always is.
const NODE_MIN: usize = 4 << 10;
const NODE_MAX: usize = 64 << 10;

/// Whether a node of entries that has `bytes` bytes ends after the entry with this path.
pub fn ends_node(path: &[u8], bytes: usize) -> bool {
    bytes >= NODE_MAX || bytes >= NODE_MIN && blake3::hash(path).as_bytes()[0] < 2
}

/// Whether a list node that has `count` references ends after this one.
pub fn ends_list(id: ChunkId, count: usize) -> bool {
    count >= 1024 || count >= 64 && id.0[0] == 0
}

/// Encodes nodes; pack numbers in the input are resolved by `resolve`.
pub struct NodeEncoder<P> {
    packs: Vec<P>,
    body: Vec<u8>,
}

impl<P: Copy + PartialEq> NodeEncoder<P> {
    pub fn new() -> Self {
        Self { packs: Vec::new(), body: Vec::new() }
    }

    /// Bytes so far, without the table.
    pub fn len(&self) -> usize {
        self.body.len()
    }

    pub fn is_empty(&self) -> bool {
        self.body.is_empty()
    }

    fn pack(&mut self, pack: P) -> u64 {
        // Recently named packs are named again.
        let number = self.packs.iter().rposition(|p| *p == pack).unwrap_or_else(|| {
            self.packs.push(pack);
            self.packs.len() - 1
        });
        number as u64
    }

    pub fn record(&mut self, record: &Record<P>) {
        match record {
            Record::Entry { entry, content } => {
                self.body.push(RECORD_ENTRY);
                self.entry(entry, content);
            }
            Record::Stretch(chunks) => {
                self.body.push(RECORD_STRETCH);
                self.chunks(chunks);
            }
        }
    }

    fn entry(&mut self, entry: &Entry, content: &Content<P>) {
        let out = &mut self.body;
        put_blob(out, &entry.path);
        put_varint(out, u64::from(entry.mode));
        put_varint(out, u64::from(entry.uid));
        put_varint(out, u64::from(entry.gid));
        put_varint(out, zigzag(entry.mtime_ns));
        put_blob(out, &entry.stamp);
        put_varint(out, entry.xattrs.len() as u64);
        for (name, value) in &entry.xattrs {
            put_blob(out, name);
            put_blob(out, value);
        }
        match &entry.kind {
            EntryKind::File { size, layout } => {
                out.push(b'f');
                put_varint(out, size.unwrap_or(0));
                put_varint(
                    out,
                    match layout {
                        Layout::Content => 0,
                        Layout::Pages(size) => u64::from(*size),
                    },
                );
                match content {
                    Content::Stretches(count) => {
                        out.push(1);
                        put_varint(out, *count);
                    }
                    Content::Inline(chunks) => {
                        out.push(0);
                        self.chunks(chunks);
                    }
                    Content::None => {
                        out.push(0);
                        self.chunks(&[]);
                    }
                }
            }
            EntryKind::Directory => out.push(b'd'),
            EntryKind::Symlink { target } => {
                out.push(b'l');
                put_blob(out, target);
            }
            EntryKind::Hardlink { target } => {
                out.push(b'h');
                put_blob(out, target);
            }
            EntryKind::Fifo => out.push(b'p'),
        }
    }

    /// A chunk list: varint count; u8 lengths mode: 0 = all but the last have the first varint length, the last has the second; 1 = a varint
    /// each; then runs until the count is reached: varint (chunks << 2 | kind). Kind 0: zeros. Kind 1: stored one after the other in one
    /// frame: varint pack, frame, first slot, then 16-byte ids. Kind 2: patches one after the other, with bases one after the other: as 1, then
    /// varint base pack, base frame, first base slot.
    fn chunks(&mut self, chunks: &[Chunk<P>]) {
        put_varint(&mut self.body, chunks.len() as u64);
        let Some((last, rest)) = chunks.split_last() else { return };
        let common = rest.first().map_or(last.len, |c| c.len);
        if rest.iter().all(|c| c.len == common) {
            self.body.push(0);
            put_varint(&mut self.body, u64::from(common));
            put_varint(&mut self.body, u64::from(last.len));
        } else {
            self.body.push(1);
            chunks.iter().for_each(|c| put_varint(&mut self.body, u64::from(c.len)));
        }
        let mut at = 0;
        while at < chunks.len() {
            let first = chunks[at].stored;
            let mut end = at + 1;
            while end < chunks.len() && continues(&first, (end - at) as u32, &chunks[end].stored) {
                end += 1;
            }
            let kind = match first {
                Stored::Zero => 0,
                Stored::Full(_) => 1,
                Stored::Delta { .. } => 2,
            };
            put_varint(&mut self.body, ((end - at) as u64) << 2 | kind);
            for place in first.places() {
                let number = self.pack(place.pack);
                put_varint(&mut self.body, number);
                put_varint(&mut self.body, u64::from(place.frame));
                put_varint(&mut self.body, u64::from(place.slot));
            }
            if kind != 0 {
                chunks[at..end].iter().for_each(|c| self.body.extend_from_slice(&c.id.0));
            }
            at = end;
        }
    }

    /// The node's bytes: u8 type, the pack table (varint count; each: id 32, varint length, varint directory length), the records.
    pub fn finish(self, resolve: impl FnMut(P) -> PackRef) -> Vec<u8> {
        finish_node(TYPE_RECORDS, &self.packs, &self.body, resolve)
    }
}

fn finish_node<P: Copy>(kind: u8, packs: &[P], body: &[u8], mut resolve: impl FnMut(P) -> PackRef) -> Vec<u8> {
    let mut out = Vec::with_capacity(16 + packs.len() * 44 + body.len());
    out.push(kind);
    put_varint(&mut out, packs.len() as u64);
    for pack in packs {
        let pack = resolve(*pack);
        out.extend_from_slice(&pack.id.0);
        put_varint(&mut out, pack.len);
        put_varint(&mut out, u64::from(pack.directory_len));
    }
    out.extend_from_slice(body);
    out
}

fn continues<P: PartialEq>(first: &Stored<P>, steps: u32, next: &Stored<P>) -> bool {
    let follows = |a: &Place<P>, b: &Place<P>| a.pack == b.pack && a.frame == b.frame && a.slot.checked_add(steps) == Some(b.slot);
    match (first, next) {
        (Stored::Zero, Stored::Zero) => true,
        (Stored::Full(a), Stored::Full(b)) => follows(a, b),
        (Stored::Delta { patch: a, base: c }, Stored::Delta { patch: b, base: d }) => follows(a, b) && follows(c, d),
        _ => false,
    }
}

/// Encodes a list of node references: the body of a list node, and what a manifest holds. A varint count; per reference: id 16,
/// varint (pack << 1 | stretch), varint frame, varint slot.
pub fn encode_list<P: Copy + PartialEq>(refs: &[NodeRef<P>], resolve: impl FnMut(P) -> PackRef) -> Vec<u8> {
    let mut packs: Vec<P> = Vec::new();
    let mut body = Vec::with_capacity(refs.len() * 22);
    put_varint(&mut body, refs.len() as u64);
    for node in refs {
        let number = packs.iter().rposition(|p| *p == node.place.pack).unwrap_or_else(|| {
            packs.push(node.place.pack);
            packs.len() - 1
        });
        body.extend_from_slice(&node.id.0);
        put_varint(&mut body, (number as u64) << 1 | u64::from(node.stretch));
        put_varint(&mut body, u64::from(node.place.frame));
        put_varint(&mut body, u64::from(node.place.slot));
    }
    finish_node(TYPE_LIST, &packs, &body, resolve)
}

struct NodeDecoder<'a, P> {
    reader: Reader<'a>,
    packs: Vec<P>,
}

impl<P: Copy> NodeDecoder<'_, P> {
    fn table(&mut self, kind: u8, mut intern: impl FnMut(PackRef) -> P) -> WireResult<()> {
        if self.reader.u8()? != kind {
            return Err(WireError::Invalid("node is of another type"));
        }
        for _ in 0..self.reader.count(34)? {
            let pack = PackRef { id: PackId(self.reader.array()?), len: self.reader.varint()?, directory_len: self.reader.varint32()? };
            self.packs.push(intern(pack));
        }
        Ok(())
    }

    fn place(&mut self) -> WireResult<Place<P>> {
        let number = self.reader.varint32()?;
        self.place_in(number)
    }

    fn place_in(&mut self, number: u32) -> WireResult<Place<P>> {
        let pack = *self.packs.get(number as usize).ok_or(WireError::Invalid("node names a pack that is not in its table"))?;
        Ok(Place { pack, frame: self.reader.varint32()?, slot: self.reader.varint32()? })
    }

    fn entry(&mut self) -> WireResult<Record<P>> {
        let path = self.reader.blob()?.to_vec();
        if !is_valid_path(&path) {
            return Err(WireError::Invalid("entry has an invalid path"));
        }
        let mode = self.reader.varint32()?;
        let uid = self.reader.varint32()?;
        let gid = self.reader.varint32()?;
        let mtime_ns = unzigzag(self.reader.varint()?);
        let stamp = self.reader.blob()?.to_vec();
        let mut xattrs = Vec::new();
        for _ in 0..self.reader.count(2)? {
            xattrs.push((self.reader.blob()?.to_vec(), self.reader.blob()?.to_vec()));
        }
        let (kind, content) = match self.reader.u8()? {
            b'f' => {
                let size = Some(self.reader.varint()?);
                let layout = match self.reader.varint32()? {
                    0 => Layout::Content,
                    size if size.is_power_of_two() && size as usize <= CHUNK_MAX => Layout::Pages(size),
                    _ => return Err(WireError::Invalid("impossible page size")),
                };
                let content = match self.reader.u8()? {
                    0 => Content::Inline(self.chunks()?),
                    1 => Content::Stretches(self.reader.varint()?),
                    _ => return Err(WireError::Invalid("unknown kind of content")),
                };
                (EntryKind::File { size, layout }, content)
            }
            b'd' => (EntryKind::Directory, Content::None),
            b'l' => (EntryKind::Symlink { target: self.reader.blob()?.to_vec() }, Content::None),
            b'h' => {
                let target = self.reader.blob()?.to_vec();
                if !is_valid_path(&target) || target.is_empty() {
                    return Err(WireError::Invalid("hard link has an invalid target"));
                }
                (EntryKind::Hardlink { target }, Content::None)
            }
            b'p' => (EntryKind::Fifo, Content::None),
            _ => return Err(WireError::Invalid("unknown kind of entry")),
        };
        Ok(Record::Entry { entry: Entry { path, kind, mode, uid, gid, mtime_ns, stamp, xattrs }, content })
    }

    fn chunks(&mut self) -> WireResult<Vec<Chunk<P>>> {
        let count = usize::try_from(self.reader.varint()?).map_err(|_| WireError::Truncated)?;
        if count == 0 {
            return Ok(Vec::new());
        }
        if count > STRETCH_CHUNKS {
            return Err(WireError::Invalid("chunk list is over the limit"));
        }
        let mut chunks = vec![Chunk { id: ChunkId::default(), len: 0, stored: Stored::Zero }; count];
        match self.reader.u8()? {
            0 => {
                let (common, last) = (self.reader.varint32()?, self.reader.varint32()?);
                chunks.iter_mut().for_each(|c| c.len = common);
                chunks[count - 1].len = last;
            }
            1 => {
                for chunk in &mut chunks {
                    chunk.len = self.reader.varint32()?;
                }
            }
            _ => return Err(WireError::Invalid("unknown lengths mode")),
        }
        if chunks.iter().any(|c| c.len == 0 || c.len as usize > CHUNK_MAX) {
            return Err(WireError::Invalid("chunk has an impossible size"));
        }
        let mut at = 0;
        while at < count {
            let head = self.reader.varint()?;
            let run = usize::try_from(head >> 2)
                .ok()
                .filter(|r| (1..=count - at).contains(r))
                .ok_or(WireError::Invalid("run of chunks has an impossible length"))?;
            let stored = match head & 3 {
                0 => Stored::Zero,
                1 => Stored::Full(self.place()?),
                2 => Stored::Delta { patch: self.place()?, base: self.place()? },
                _ => return Err(WireError::Invalid("unknown kind of run")),
            };
            for (step, chunk) in chunks[at..at + run].iter_mut().enumerate() {
                let step = step as u32;
                let forward = |place: Place<P>| {
                    let slot = place.slot.checked_add(step).ok_or(WireError::Invalid("slot does not fit 32 bits"))?;
                    Ok::<_, WireError>(Place { slot, ..place })
                };
                chunk.stored = match stored {
                    Stored::Zero => Stored::Zero,
                    Stored::Full(place) => Stored::Full(forward(place)?),
                    Stored::Delta { patch, base } => Stored::Delta { patch: forward(patch)?, base: forward(base)? },
                };
                if head & 3 != 0 {
                    chunk.id = ChunkId(self.reader.bytes(ID_BYTES)?.try_into().map_err(|_| WireError::Truncated)?);
                }
            }
            at += run;
        }
        Ok(chunks)
    }
}

/// A chunk list that takes no more memory than in a node (about 17 bytes a chunk), for lists that wait in great numbers.
pub struct PackedChunks<P> {
    packs: Box<[P]>,
    body: Box<[u8]>,
}

impl<P: Copy + PartialEq> PackedChunks<P> {
    pub fn new(chunks: &[Chunk<P>]) -> Self {
        let mut encoder = NodeEncoder::new();
        encoder.chunks(chunks);
        Self { packs: encoder.packs.into_boxed_slice(), body: encoder.body.into_boxed_slice() }
    }

    /// The list again.
    ///
    /// # Errors
    /// For a list over the limits of a node only: no reader would accept it.
    pub fn chunks(&self) -> WireResult<Vec<Chunk<P>>> {
        let mut decoder = NodeDecoder { reader: Reader::new(&self.body), packs: self.packs.to_vec() };
        let chunks = decoder.chunks()?;
        decoder.reader.finish()?;
        Ok(chunks)
    }
}

/// Decodes a node of records; each pack of its table is turned into a number by `intern`.
pub fn decode_records<P: Copy>(bytes: &[u8], intern: impl FnMut(PackRef) -> P) -> WireResult<Vec<Record<P>>> {
    let mut decoder = NodeDecoder { reader: Reader::new(bytes), packs: Vec::new() };
    decoder.table(TYPE_RECORDS, intern)?;
    let mut records = Vec::new();
    while !decoder.reader.is_empty() {
        records.push(match decoder.reader.u8()? {
            RECORD_ENTRY => decoder.entry()?,
            RECORD_STRETCH => Record::Stretch(decoder.chunks()?),
            _ => return Err(WireError::Invalid("unknown record")),
        });
    }
    Ok(records)
}

/// Decodes what [`encode_list`] made.
pub fn decode_list<P: Copy>(bytes: &[u8], intern: impl FnMut(PackRef) -> P) -> WireResult<Vec<NodeRef<P>>> {
    let mut decoder = NodeDecoder { reader: Reader::new(bytes), packs: Vec::new() };
    decoder.table(TYPE_LIST, intern)?;
    let count = decoder.reader.count(ID_BYTES + 3)?;
    let mut refs = Vec::with_capacity(count);
    for _ in 0..count {
        let id = ChunkId(decoder.reader.array()?);
        let head = decoder.reader.varint32()?;
        refs.push(NodeRef { id, stretch: head & 1 == 1, place: decoder.place_in(head >> 1)? });
    }
    decoder.reader.finish()?;
    Ok(refs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pack_ref(number: u32) -> PackRef {
        PackRef { id: PackId([number as u8; 32]), len: 1000 + u64::from(number), directory_len: 10 }
    }

    fn place() -> impl Strategy<Value = Place<u32>> {
        (0u32..4, 0u32..3, 0u32..200).prop_map(|(pack, frame, slot)| Place { pack, frame, slot })
    }

    fn chunk() -> impl Strategy<Value = Chunk<u32>> {
        let stored = prop_oneof![
            Just(Stored::Zero),
            place().prop_map(Stored::Full),
            place().prop_map(Stored::Full),
            (place(), place()).prop_map(|(patch, base)| Stored::Delta { patch, base }),
        ];
        (any::<[u8; 16]>(), prop_oneof![Just(8192u32), 1u32..9000], stored).prop_map(|(id, len, stored)| {
            let id = if stored == Stored::Zero { ChunkId::default() } else { ChunkId(id) };
            Chunk { id, len, stored }
        })
    }

    fn record() -> impl Strategy<Value = Record<u32>> {
        let chunks = || proptest::collection::vec(chunk(), 0..40);
        let path = proptest::collection::vec(prop_oneof![1u8..=46, 48u8..=255], 1..30).prop_filter("valid", |p| is_valid_path(p));
        prop_oneof![
            chunks().prop_map(Record::Stretch),
            (path, any::<u32>(), any::<i64>(), chunks(), 0u8..6, any::<u64>()).prop_map(|(path, mode, mtime_ns, chunks, kind, number)| {
                let file = |layout| EntryKind::File { size: Some(number), layout };
                let (kind, content) = match kind {
                    0 => (file(Layout::Content), Content::Inline(chunks)),
                    1 => (file(Layout::Pages(8192)), Content::Stretches(number)),
                    2 => (EntryKind::Directory, Content::None),
                    3 => (EntryKind::Symlink { target: b"../\xff x".to_vec() }, Content::None),
                    4 => (EntryKind::Hardlink { target: path.clone() }, Content::None),
                    _ => (EntryKind::Fifo, Content::None),
                };
                let entry =
                    Entry { path, kind, mode, uid: mode, gid: 0, mtime_ns, stamp: vec![1, 2], xattrs: vec![(b"user.a".to_vec(), vec![0])] };
                Record::Entry { entry, content }
            }),
        ]
    }

    proptest! {
        #[test]
        fn nodes_come_back(records in proptest::collection::vec(record(), 0..8)) {
            let mut encoder = NodeEncoder::new();
            records.iter().for_each(|r| encoder.record(r));
            let bytes = encoder.finish(pack_ref);
            let back = decode_records(&bytes, |p| u32::from(p.id.0[0])).unwrap();
            prop_assert_eq!(back, records);
        }

        #[test]
        fn packed_chunks_come_back(chunks in proptest::collection::vec(chunk(), 0..60)) {
            prop_assert_eq!(PackedChunks::new(&chunks).chunks().unwrap(), chunks);
        }

        #[test]
        fn damaged_nodes_never_panic(records in proptest::collection::vec(record(), 1..4), at: prop::sample::Index, byte: u8, cut: prop::sample::Index) {
            let mut encoder = NodeEncoder::new();
            records.iter().for_each(|r| encoder.record(r));
            let mut bytes = encoder.finish(pack_ref);
            let _ = decode_records(&bytes[..cut.index(bytes.len())], |p| p.len);
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = decode_records(&bytes, |p| p.len);
            let _ = decode_list(&bytes, |p| p.len);
        }

        #[test]
        fn lists_come_back(refs in proptest::collection::vec((any::<[u8; 16]>(), place(), any::<bool>()), 0..50)) {
            let refs: Vec<_> = refs.into_iter().map(|(id, place, stretch)| NodeRef { id: ChunkId(id), stretch, place }).collect();
            prop_assert_eq!(decode_list(&encode_list(&refs, pack_ref), |p| u32::from(p.id.0[0])).unwrap(), refs);
        }
    }
}

//! Where the content of rewritten packs has gone: trees name places and are never changed, so a pack that was put together anew out of
//! partly dead ones is found through these records.
//!
//! A record (`gc/moved/ULID`) is to a rewriting collector what a manifest is to a writer: its commit, made by creating it under a name that
//! a session has announced. Content of the sealed object: varint count of *targets*, each: name 32, kind u8, varint length, varint32 *D*; varint
//! count of *sources*, each: name 32, varint count of frames, each u8 mode:
//!
//! | mode | then | means |
//! |---|---|---|
//! | 0 | | nothing of the frame was kept |
//! | 1 | varint32 target, varint32 frame | the frame as it was, slot by slot |
//! | 2 | varint32 target, varint32 frame, varint32 first slot, varint32 count, ⌈count / 8⌉ bytes | of its first `count` slots those with a bit (lowest first), one after the other from the first slot on |
//!
//! A target may be a source of another record, however often; a pack that leads back to itself is damage. Of several records with one
//! source, the one with the smallest name counts; each of them is whole, so that is a matter of agreeing only.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use chrono::{DateTime, Utc};

use crate::error::{Error, Kind, Result};
use crate::repo::format::{ObjectKind, PackId, PackKind};
use crate::repo::packs::PackNo;
use crate::repo::seal;
use crate::repo::tree::{Chunk, NodeRef, PackRef, Place, Stored};
use crate::repo::wire::{Reader, WireError, WireResult, put_varint};
use crate::repo::{Inner, Repository};

pub const FOLDER: &str = "gc/moved/";

/// What became of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MovedFrame {
    Dropped,
    Whole {
        target: u32,
        frame: u32,
    },
    Part {
        target: u32,
        frame: u32,
        first_slot: u32,
        /// By slot of the old frame.
        kept: Vec<bool>,
    },
}

/// A pack that was rewritten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MovedPack {
    pub id: PackId,
    pub frames: Vec<MovedFrame>,
}

/// One record.
#[derive(Debug, Default)]
pub struct MovedRecord {
    pub targets: Vec<(PackRef, PackKind)>,
    pub sources: Vec<MovedPack>,
    /// Whether a place led through it since it was read.
    used: AtomicBool,
}

impl MovedRecord {
    /// Whether no place led through it since it was read. A void marker is never unused: it must stay.
    pub fn is_unused(&self) -> bool {
        !self.sources.is_empty() && !self.used.load(Ordering::Relaxed)
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_varint(&mut out, self.targets.len() as u64);
        for (pack, kind) in &self.targets {
            out.extend_from_slice(&pack.id.0);
            out.push(*kind as u8);
            put_varint(&mut out, pack.len);
            put_varint(&mut out, u64::from(pack.directory_len));
        }
        put_varint(&mut out, self.sources.len() as u64);
        for source in &self.sources {
            out.extend_from_slice(&source.id.0);
            put_varint(&mut out, source.frames.len() as u64);
            for frame in &source.frames {
                match frame {
                    MovedFrame::Dropped => out.push(0),
                    MovedFrame::Whole { target, frame } => {
                        out.push(1);
                        put_varint(&mut out, u64::from(*target));
                        put_varint(&mut out, u64::from(*frame));
                    }
                    MovedFrame::Part { target, frame, first_slot, kept } => {
                        out.push(2);
                        for number in [*target, *frame, *first_slot, kept.len() as u32] {
                            put_varint(&mut out, u64::from(number));
                        }
                        out.extend(
                            kept.chunks(8).map(|bits| bits.iter().enumerate().fold(0, |byte, (at, kept)| byte | u8::from(*kept) << at)),
                        );
                    }
                }
            }
        }
        out
    }

    pub fn decode(bytes: &[u8]) -> WireResult<Self> {
        let mut reader = Reader::new(bytes);
        let mut record = Self::default();
        for _ in 0..reader.count(35)? {
            let id = PackId(reader.array()?);
            let kind = PackKind::from_byte(reader.u8()?).ok_or(WireError::Invalid("pack of an unknown kind"))?;
            record.targets.push((PackRef { id, len: reader.varint()?, directory_len: reader.varint32()? }, kind));
        }
        for _ in 0..reader.count(33)? {
            let id = PackId(reader.array()?);
            let mut frames = Vec::new();
            for _ in 0..reader.count(1)? {
                frames.push(decode_frame(&mut reader, record.targets.len())?);
            }
            record.sources.push(MovedPack { id, frames });
        }
        reader.finish()?;
        Ok(record)
    }
}

fn decode_frame(reader: &mut Reader<'_>, targets: usize) -> WireResult<MovedFrame> {
    let mode = reader.u8()?;
    if mode == 0 {
        return Ok(MovedFrame::Dropped);
    }
    let (target, frame) = (reader.varint32()?, reader.varint32()?);
    if target as usize >= targets {
        return Err(WireError::Invalid("frame has gone to a pack that is not named"));
    }
    match mode {
        1 => Ok(MovedFrame::Whole { target, frame }),
        2 => {
            let first_slot = reader.varint32()?;
            let count = reader.varint32()? as usize;
            let bits = reader.bytes(count.div_ceil(8))?;
            let kept = (0..count).map(|at| bits[at / 8] >> (at % 8) & 1 == 1).collect();
            Ok(MovedFrame::Part { target, frame, first_slot, kept })
        }
        _ => Err(WireError::Invalid("unknown fate of a frame")),
    }
}

/// All records that were read, by the names of their objects.
#[derive(Debug, Clone, Default)]
pub struct MovedTable {
    pub records: BTreeMap<String, Arc<MovedRecord>>,
    /// Of records that cannot be read, their objects and why.
    pub damaged: Vec<(String, String)>,
    by_pack: HashMap<PackId, (Arc<MovedRecord>, usize)>,
}

impl MovedTable {
    /// Records that lead in a circle, or into one, are damaged: so every place comes to an end.
    fn new(mut records: BTreeMap<String, Arc<MovedRecord>>, mut damaged: Vec<(String, String)>) -> Self {
        let mut by_pack = HashMap::new();
        for record in records.values() {
            for (number, source) in record.sources.iter().enumerate() {
                by_pack.entry(source.id).or_insert_with(|| (Arc::clone(record), number));
            }
        }
        let endless = endless(&by_pack);
        if !endless.is_empty() {
            records.retain(|key, record| {
                let is_sound = record.sources.iter().all(|source| !endless.contains(&source.id));
                if !is_sound {
                    damaged.push((key.clone(), format!("object {key}: leads in a circle")));
                }
                is_sound
            });
            by_pack.retain(|pack, _| !endless.contains(pack));
        }
        Self { records, damaged, by_pack }
    }

    pub fn is_empty(&self) -> bool {
        self.by_pack.is_empty()
    }

    /// Where the content of a place is now; the same place when it was not moved.
    pub fn resolve(&self, inner: &Inner, mut place: Place<PackNo>) -> Place<PackNo> {
        while let Some(next) = self.step(inner, place) {
            place = next;
        }
        place
    }

    fn step(&self, inner: &Inner, place: Place<PackNo>) -> Option<Place<PackNo>> {
        if self.by_pack.is_empty() {
            return None;
        }
        let (record, number) = self.by_pack.get(&inner.packs.get(place.pack).id)?;
        record.used.store(true, Ordering::Relaxed);
        let (target, frame, slot) = match record.sources[*number].frames.get(place.frame as usize)? {
            MovedFrame::Dropped => return None,
            MovedFrame::Whole { target, frame } => (*target, *frame, place.slot),
            MovedFrame::Part { target, frame, first_slot, kept } => {
                let slot = place.slot as usize;
                kept.get(slot).filter(|kept| **kept)?;
                let before = kept[..slot].iter().filter(|kept| **kept).count();
                (*target, *frame, first_slot.checked_add(before as u32)?)
            }
        };
        let pack = inner.packs.intern(record.targets.get(target as usize)?.0);
        Some(Place { pack, frame, slot })
    }

    pub fn resolve_chunks(&self, inner: &Inner, chunks: &mut [Chunk<PackNo>]) {
        for chunk in chunks {
            chunk.stored = match chunk.stored {
                Stored::Zero => Stored::Zero,
                Stored::Full(place) => Stored::Full(self.resolve(inner, place)),
                Stored::Delta { patch, base } => Stored::Delta { patch: self.resolve(inner, patch), base: self.resolve(inner, base) },
            };
        }
    }

    pub fn resolve_refs(&self, inner: &Inner, refs: &mut [NodeRef<PackNo>]) {
        for node in refs {
            node.place = self.resolve(inner, node.place);
        }
    }

    /// Whether the pack was rewritten.
    pub fn has(&self, pack: PackId) -> bool {
        self.by_pack.contains_key(&pack)
    }
}

/// Packs from which some way through the records has no end.
fn endless(by_pack: &HashMap<PackId, (Arc<MovedRecord>, usize)>) -> BTreeSet<PackId> {
    // Of each pack, how many packs that were moved on its frames have gone to; and of each of those, from where.
    let mut ways: BTreeMap<PackId, usize> = BTreeMap::new();
    let mut from: HashMap<PackId, Vec<PackId>> = HashMap::new();
    for (pack, (record, number)) in by_pack {
        let of_frame = |frame: &MovedFrame| match frame {
            MovedFrame::Dropped => None,
            MovedFrame::Whole { target, .. } | MovedFrame::Part { target, .. } => Some(record.targets.get(*target as usize)?.0.id),
        };
        let targets: BTreeSet<PackId> =
            record.sources[*number].frames.iter().filter_map(of_frame).filter(|id| by_pack.contains_key(id)).collect();
        ways.insert(*pack, targets.len());
        targets.into_iter().for_each(|target| from.entry(target).or_default().push(*pack));
    }
    let mut ended: Vec<PackId> = ways.iter().filter(|(_, ways)| **ways == 0).map(|(pack, _)| *pack).collect();
    while let Some(pack) = ended.pop() {
        ways.remove(&pack);
        for before in from.remove(&pack).unwrap_or_default() {
            if let Some(left) = ways.get_mut(&before) {
                *left -= 1;
                if *left == 0 {
                    ended.push(before);
                }
            }
        }
    }
    ways.into_keys().collect()
}

impl Inner {
    /// What is known of rewritten packs, without asking the store.
    pub(super) fn moved(&self) -> Arc<MovedTable> {
        Arc::clone(&self.moved.read().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// Reads the records that came since. Whether anything is different now.
    ///
    /// # Errors
    /// When the store cannot be asked. A damaged record is passed over and told in the table.
    pub(super) fn load_moved(&self) -> Result<bool> {
        let known = self.moved();
        let listed: Vec<String> = self.block_on(self.store.list(FOLDER))?.into_iter().map(|object| object.key).collect();
        // One that could not be read may be gone since.
        let same = known.damaged.is_empty() && listed.len() == known.records.len();
        if same && listed.iter().all(|key| known.records.contains_key(key)) {
            return Ok(false);
        }
        let fetched = self.get_all(listed.iter().filter(|key| !known.records.contains_key(*key)).cloned());
        let mut records: BTreeMap<_, _> =
            listed.iter().filter_map(|key| Some((key.clone(), Arc::clone(known.records.get(key)?)))).collect();
        let mut damaged = Vec::new();
        for (key, bytes) in fetched {
            match bytes.and_then(|bytes| decode_object(self, &key, &bytes)) {
                Ok(record) => {
                    records.insert(key, Arc::new(record));
                }
                Err(error) if error.kind() == Kind::NotFound => {}
                Err(error) if error.kind() == Kind::Damaged => {
                    tracing::warn!(object = %key, ?error, "a record of moved packs cannot be read");
                    damaged.push((key, error.to_string()));
                }
                Err(error) => return Err(error),
            }
        }
        let changed = records.keys().ne(known.records.keys());
        *self.moved.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Arc::new(MovedTable::new(records, damaged));
        Ok(changed)
    }

    /// After something could not be read: where it is now, if that is another place.
    pub(super) fn moved_since(&self, place: Place<PackNo>) -> Result<Option<Place<PackNo>>> {
        self.load_moved()?;
        let now = self.moved().resolve(self, place);
        Ok((now != place).then_some(now))
    }
}

impl Repository {
    /// Records of moved packs that cannot be read: by key, since when they are there by the store's clock.
    ///
    /// # Errors
    /// When the store cannot be asked.
    pub fn damaged_records(&self) -> Result<BTreeMap<String, DateTime<Utc>>> {
        self.inner.load_moved()?;
        let damaged: BTreeSet<String> = self.inner.moved().damaged.iter().map(|(key, _)| key.clone()).collect();
        let listed = self.inner.block_on(self.inner.store.list(FOLDER))?;
        Ok(listed.into_iter().filter(|object| damaged.contains(&object.key)).map(|object| (object.key, object.modified)).collect())
    }

    /// Removes a record that cannot be read. Only for one that nothing leads through, and that no collection at work has read when it still could be: such
    /// a collection may be about to delete packs whose content is, for all others, where they had been.
    ///
    /// # Errors
    /// `Busy` when it can be read after all; what the store says.
    pub fn remove_damaged_record(&self, key: &str) -> Result<()> {
        let inner = &self.inner;
        match inner.block_on(inner.store.get(key)).and_then(|bytes| decode_object(inner, key, &bytes)) {
            Ok(_) => Err(Error::new(Kind::Busy, format!("{key} can be read now: it stays")).hint("run the repair again")),
            Err(error) if error.kind() == Kind::NotFound => Ok(()),
            Err(error) if error.kind() == Kind::Damaged => inner.block_on(inner.store.delete(key)),
            Err(error) => Err(error),
        }
    }
}

/// A record; a void marker is one without content.
fn decode_object(inner: &Inner, key: &str, bytes: &[u8]) -> Result<MovedRecord> {
    if seal::claimed_kind(bytes) == Some(ObjectKind::Void) {
        seal::open(&inner.keys, inner.id, ObjectKind::Void, key, bytes)?;
        return Ok(MovedRecord::default());
    }
    let content = seal::open(&inner.keys, inner.id, ObjectKind::Moved, key, bytes)?;
    MovedRecord::decode(&content).map_err(|e| Error::new(Kind::Damaged, format!("object {key}: cannot be decoded")).because(e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frames() -> impl Strategy<Value = MovedFrame> {
        prop_oneof![
            Just(MovedFrame::Dropped),
            (0u32..2, any::<u32>()).prop_map(|(target, frame)| MovedFrame::Whole { target, frame }),
            (0u32..2, any::<u32>(), any::<u32>(), proptest::collection::vec(any::<bool>(), 0..40))
                .prop_map(|(target, frame, first_slot, kept)| MovedFrame::Part { target, frame, first_slot, kept }),
        ]
    }

    /// However often something was moved, it is found; what leads back to itself is damage, and no way through it has an end.
    #[test]
    fn long_ways_are_followed_and_circles_are_damage() {
        let bench = crate::repo::tests::Bench::new();
        let repository = bench.open();
        let inner = &repository.inner;
        let pack = |n: u64| PackRef { id: PackId(*blake3::hash(&n.to_le_bytes()).as_bytes()), len: 5_000_000, directory_len: 900 };
        let step = |from: u64, to: u64| {
            let frames = vec![MovedFrame::Dropped, MovedFrame::Whole { target: 0, frame: 1 }];
            let record = MovedRecord {
                targets: vec![(pack(to), PackKind::Data)],
                sources: vec![MovedPack { id: pack(from).id, frames }],
                ..MovedRecord::default()
            };
            (format!("{FOLDER}{from:05}"), Arc::new(record))
        };
        let place = |n| Place { pack: inner.packs.intern(pack(n)), frame: 1, slot: 7 };
        let long = MovedTable::new((0..5_000).map(|n| step(n, n + 1)).collect(), Vec::new());
        assert_eq!(long.resolve(inner, place(0)), place(5_000));
        assert!(long.damaged.is_empty());
        // 0 → 1 → 2 → 3 → 1, and 4 → 5 beside it.
        let circle = MovedTable::new([step(0, 1), step(1, 2), step(2, 3), step(3, 1), step(4, 5)].into(), Vec::new());
        assert_eq!(circle.damaged.len(), 4, "{:?}", circle.damaged);
        assert_eq!((circle.resolve(inner, place(0)), circle.resolve(inner, place(4))), (place(0), place(5)));
    }

    proptest! {
        #[test]
        fn records_come_back_and_garbage_is_refused(frames in proptest::collection::vec(frames(), 0..20), garbage in proptest::collection::vec(any::<u8>(), 0..200)) {
            let pack = |byte: u8| (PackRef { id: PackId([byte; 32]), len: 5_000_000, directory_len: 900 }, PackKind::Data);
            let record = MovedRecord { targets: vec![pack(1), pack(2)], sources: vec![MovedPack { id: PackId([7; 32]), frames }, MovedPack { id: PackId([8; 32]), frames: vec![] }], ..MovedRecord::default() };
            let bytes = record.encode();
            let back = MovedRecord::decode(&bytes).unwrap();
            prop_assert_eq!((&back.targets, &back.sources), (&record.targets, &record.sources));
            for cut in 0..bytes.len() {
                prop_assert!(MovedRecord::decode(&bytes[..cut]).is_err());
            }
            let _ = MovedRecord::decode(&garbage);
        }
    }
}

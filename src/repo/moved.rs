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
        /// Of the old frame, those that [`MovedPack::kept`] tells of: the first so many.
        slots: u32,
        /// Where it does: the number of the first byte.
        bits: u32,
    },
}

/// A pack that was rewritten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MovedPack {
    pub id: PackId,
    pub frames: Vec<MovedFrame>,
    /// Of all frames that are kept in part, a bit for each slot, as they are stored: there may be a hundred million.
    kept: Vec<u8>,
}

impl MovedPack {
    /// A pack of which nothing was kept yet.
    pub fn new(id: PackId, frames: usize) -> Self {
        Self { id, frames: vec![MovedFrame::Dropped; frames], kept: Vec::new() }
    }

    /// What became of a frame that is kept in part. `kept`: by slot.
    pub fn part(&mut self, target: u32, frame: u32, first_slot: u32, kept: &[bool]) -> MovedFrame {
        let bits = self.kept.len() as u32;
        self.kept.extend(kept.chunks(8).map(|bits| bits.iter().enumerate().fold(0, |byte, (at, kept)| byte | u8::from(*kept) << at)));
        MovedFrame::Part { target, frame, first_slot, slots: kept.len() as u32, bits }
    }

    fn bits(&self, slots: u32, bits: u32) -> &[u8] {
        &self.kept[bits as usize..][..slots.div_ceil(8) as usize]
    }

    /// Where a slot of a frame is now: target, frame and slot there. `None`: nowhere.
    fn find(&self, frame: u32, slot: u32) -> Option<(u32, u32, u32)> {
        match *self.frames.get(frame as usize)? {
            MovedFrame::Dropped => None,
            MovedFrame::Whole { target, frame } => Some((target, frame, slot)),
            MovedFrame::Part { target, frame, first_slot, slots, bits } => {
                let (before, here) = self.bits(slots, bits).split_at((slot / 8).min(slots.div_ceil(8)) as usize);
                let (byte, bit) = (*here.first()?, slot % 8);
                if slot >= slots || byte >> bit & 1 == 0 {
                    return None;
                }
                let before = before.iter().map(|byte| byte.count_ones()).sum::<u32>() + (byte & ((1 << bit) - 1)).count_ones();
                Some((target, frame, first_slot.checked_add(before)?))
            }
        }
    }

    /// What [`MovedPack::find`] found at this slot: the frame and slot here.
    fn origin(&self, target: u32, frame: u32, slot: u32) -> Option<(u32, u32)> {
        let of_frame = |moved: &MovedFrame| match *moved {
            MovedFrame::Whole { target: to, frame: at } if (to, at) == (target, frame) => Some(slot),
            MovedFrame::Part { target: to, frame: at, first_slot, slots, bits } if (to, at) == (target, frame) => {
                let (number, kept) = (slot.checked_sub(first_slot)?, self.bits(slots, bits));
                (0..slots).filter(|slot| kept[(slot / 8) as usize] >> (slot % 8) & 1 == 1).nth(number as usize)
            }
            _ => None,
        };
        self.frames.iter().zip(0..).find_map(|(moved, number)| Some((number, of_frame(moved)?)))
    }

    fn decode_frame(&mut self, reader: &mut Reader<'_>, targets: usize) -> WireResult<()> {
        let mode = reader.u8()?;
        if mode == 0 {
            self.frames.push(MovedFrame::Dropped);
            return Ok(());
        }
        let (target, frame) = (reader.varint32()?, reader.varint32()?);
        if target as usize >= targets {
            return Err(WireError::Invalid("frame has gone to a pack that is not named"));
        }
        self.frames.push(match mode {
            1 => MovedFrame::Whole { target, frame },
            2 => {
                let (first_slot, slots) = (reader.varint32()?, reader.varint32()?);
                let bits = self.kept.len() as u32;
                self.kept.extend_from_slice(reader.bytes(slots.div_ceil(8) as usize)?);
                MovedFrame::Part { target, frame, first_slot, slots, bits }
            }
            _ => return Err(WireError::Invalid("unknown fate of a frame")),
        });
        Ok(())
    }

    /// Bytes of memory.
    #[cfg(test)]
    fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.frames.capacity() * size_of::<MovedFrame>() + self.kept.capacity()
    }
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
                    MovedFrame::Part { target, frame, first_slot, slots, bits } => {
                        out.push(2);
                        for number in [*target, *frame, *first_slot, *slots] {
                            put_varint(&mut out, u64::from(number));
                        }
                        out.extend_from_slice(source.bits(*slots, *bits));
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
            let mut source = MovedPack::new(PackId(reader.array()?), 0);
            for _ in 0..reader.count(1)? {
                source.decode_frame(&mut reader, record.targets.len())?;
            }
            source.frames.shrink_to_fit();
            source.kept.shrink_to_fit();
            record.sources.push(source);
        }
        reader.finish()?;
        Ok(record)
    }
}

/// All records that were read, by the names of their objects.
#[derive(Debug, Clone, Default)]
pub struct MovedTable {
    pub records: BTreeMap<String, Arc<MovedRecord>>,
    /// Of records that cannot be read, their objects and why.
    pub damaged: Vec<(String, String)>,
    by_pack: HashMap<PackId, (Arc<MovedRecord>, usize)>,
    /// Records that were there once.
    earlier: BTreeMap<String, Arc<MovedRecord>>,
}

impl MovedTable {
    /// Records that lead in a circle, or into one, are damaged: so every place comes to an end.
    fn new(
        mut records: BTreeMap<String, Arc<MovedRecord>>,
        mut damaged: Vec<(String, String)>,
        earlier: BTreeMap<String, Arc<MovedRecord>>,
    ) -> Self {
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
        Self { records, damaged, by_pack, earlier }
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
        self.step_from(inner, inner.packs.get(place.pack).id, place.frame, place.slot)
    }

    fn step_from(&self, inner: &Inner, pack: PackId, frame: u32, slot: u32) -> Option<Place<PackNo>> {
        let (record, number) = self.by_pack.get(&pack)?;
        record.used.store(true, Ordering::Relaxed);
        let (target, frame, slot) = record.sources[*number].find(frame, slot)?;
        let pack = inner.packs.intern(record.targets.get(target as usize)?.0);
        Some(Place { pack, frame, slot })
    }

    /// Where else the content of a place is: of the packs that it was put together from, another record may count by now than the one that led here.
    fn elsewhere(&self, inner: &Inner, place: Place<PackNo>) -> Vec<Place<PackNo>> {
        let mut found = Vec::new();
        let mut waiting = vec![(inner.packs.get(place.pack).id, place.frame, place.slot)];
        let mut seen: BTreeSet<_> = waiting.iter().copied().collect();
        while let Some((id, frame, slot)) = waiting.pop() {
            for record in self.records.values().chain(self.earlier.values()) {
                let Some(target) = record.targets.iter().zip(0..).find_map(|((pack, _), number)| (pack.id == id).then_some(number)) else {
                    continue;
                };
                let origins = record.sources.iter().filter_map(|source| {
                    let (frame, slot) = source.origin(target, frame, slot)?;
                    Some((source.id, frame, slot))
                });
                for origin in origins.filter(|origin| seen.insert(*origin)) {
                    let now = self.step_from(inner, origin.0, origin.1, origin.2).map(|place| self.resolve(inner, place));
                    found.extend(now.filter(|now| *now != place));
                    waiting.push(origin);
                }
            }
        }
        found
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
        let before = known.earlier.iter().chain(&known.records).filter(|(key, _)| !records.contains_key(*key));
        let earlier = before.map(|(key, record)| (key.clone(), Arc::clone(record))).collect();
        *self.moved.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Arc::new(MovedTable::new(records, damaged, earlier));
        Ok(changed)
    }

    /// After something could not be read: where it is now, if that is another place.
    ///
    /// Two collectors may have moved the same packs. Then the record with the smaller name counts as soon as it is there, and where the other one had put the
    /// content goes away: whoever was on the way there finds it by where it came from.
    pub(super) fn moved_since(&self, place: Place<PackNo>) -> Result<Option<Place<PackNo>>> {
        self.load_moved()?;
        let moved = self.moved();
        let now = moved.resolve(self, place);
        if now != place {
            return Ok(Some(now));
        }
        // Only from what is not there to what is: so nobody is led in a circle.
        let is_there =
            |place: Place<PackNo>| Ok::<_, Error>(self.block_on(self.store.head(&self.packs.get(place.pack).id.key()))?.is_some());
        let others = moved.elsewhere(self, place);
        if others.is_empty() || is_there(place)? {
            return Ok(None);
        }
        for other in others {
            if is_there(other)? {
                return Ok(Some(other));
            }
        }
        Ok(None)
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

    /// Of each frame: nothing, or where it is and, of a part of it, the first slot and what was kept.
    type Fate = Option<(u32, u32, Option<(u32, Vec<bool>)>)>;

    fn fates() -> impl Strategy<Value = Vec<Fate>> {
        let part = proptest::option::of((0u32..1 << 31, proptest::collection::vec(any::<bool>(), 0..40)));
        proptest::collection::vec(proptest::option::of((0u32..2, any::<u32>(), part)), 0..20)
    }

    fn moved_pack(id: PackId, fates: &[Fate]) -> MovedPack {
        let mut pack = MovedPack::new(id, fates.len());
        for (number, fate) in fates.iter().enumerate() {
            pack.frames[number] = match fate {
                None => MovedFrame::Dropped,
                Some((target, frame, None)) => MovedFrame::Whole { target: *target, frame: *frame },
                Some((target, frame, Some((first, kept)))) => pack.part(*target, *frame, *first, kept),
            };
        }
        pack
    }

    /// A hundred million living pages that were all moved once, out of frames that were half dead.
    #[test]
    fn memory_follows_what_is_stored() {
        let kept: Vec<bool> = (0..128).map(|slot| slot % 2 == 0).collect();
        let mut pack = MovedPack::new(PackId([1; 32]), 40);
        for frame in 0..40 {
            pack.frames[frame] = pack.part(0, frame as u32 / 2, 0, &kept);
        }
        let record = MovedRecord {
            targets: vec![(PackRef { id: PackId([2; 32]), len: 9, directory_len: 9 }, PackKind::Data)],
            sources: vec![pack],
            ..MovedRecord::default()
        };
        let packs = 100_000_000 / (40 * 64);
        let bytes = packs * MovedRecord::decode(&record.encode()).unwrap().sources[0].memory_bytes();
        assert!(bytes < 70 << 20, "{} MiB", bytes >> 20);
    }

    /// However often something was moved, it is found; what leads back to itself is damage, and no way through it has an end.
    #[test]
    fn long_ways_are_followed_and_circles_are_damage() {
        let bench = crate::repo::tests::Bench::new();
        let repository = bench.open();
        let inner = &repository.inner;
        let pack = |n: u64| PackRef { id: PackId(*blake3::hash(&n.to_le_bytes()).as_bytes()), len: 5_000_000, directory_len: 900 };
        let step = |from: u64, to: u64| {
            let sources = vec![moved_pack(pack(from).id, &[None, Some((0, 1, None))])];
            let record = MovedRecord { targets: vec![(pack(to), PackKind::Data)], sources, ..MovedRecord::default() };
            (format!("{FOLDER}{from:05}"), Arc::new(record))
        };
        let place = |n| Place { pack: inner.packs.intern(pack(n)), frame: 1, slot: 7 };
        let long = MovedTable::new((0..5_000).map(|n| step(n, n + 1)).collect(), Vec::new(), BTreeMap::new());
        assert_eq!(long.resolve(inner, place(0)), place(5_000));
        assert!(long.damaged.is_empty());
        // 0 → 1 → 2 → 3 → 1, and 4 → 5 beside it.
        let circle = MovedTable::new([step(0, 1), step(1, 2), step(2, 3), step(3, 1), step(4, 5)].into(), Vec::new(), BTreeMap::new());
        assert_eq!(circle.damaged.len(), 4, "{:?}", circle.damaged);
        assert_eq!((circle.resolve(inner, place(0)), circle.resolve(inner, place(4))), (place(0), place(5)));
    }

    proptest! {
        #[test]
        fn records_come_back_and_garbage_is_refused(fates in fates(), garbage in proptest::collection::vec(any::<u8>(), 0..200)) {
            let pack = |byte: u8| (PackRef { id: PackId([byte; 32]), len: 5_000_000, directory_len: 900 }, PackKind::Data);
            let record = MovedRecord { targets: vec![pack(1), pack(2)], sources: vec![moved_pack(PackId([7; 32]), &fates), MovedPack::new(PackId([8; 32]), 0)], ..MovedRecord::default() };
            let bytes = record.encode();
            let back = MovedRecord::decode(&bytes).unwrap();
            prop_assert_eq!((&back.targets, &back.sources), (&record.targets, &record.sources));
            for cut in 0..bytes.len() {
                prop_assert!(MovedRecord::decode(&bytes[..cut]).is_err());
            }
            let _ = MovedRecord::decode(&garbage);
            // Slot by slot, by counting.
            for (number, fate) in fates.iter().enumerate() {
                for slot in 0..45 {
                    let wanted = match fate {
                        None => None,
                        Some((target, frame, None)) => Some((*target, *frame, slot)),
                        Some((target, frame, Some((first, kept)))) => {
                            let before = kept.iter().take(slot as usize).filter(|kept| **kept).count() as u32;
                            (kept.get(slot as usize) == Some(&true)).then_some((*target, *frame, first + before))
                        }
                    };
                    prop_assert_eq!(back.sources[0].find(number as u32, slot), wanted);
                }
            }
        }
    }
}

//! The content-addressed index: which chunk is where. Serves what moved or was written by an interrupted run; what stayed in its
//! place is answered by the previous snapshot's tree.
//!
//! Index *objects* (`index/<hash>`) list packs in the order of their directories with the first 8 bytes of every id. Locally each
//! becomes a *segment*: a file of sorted 16-byte records that is searched by reading a block or two (ids are uniform, so
//! interpolation finds the place), so resident memory does not grow with the number of chunks. A hit is only a candidate: the
//! caller confirms the whole id in the pack's directory.

use std::collections::{BinaryHeap, HashSet};
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock};

use serde::{Deserialize, Serialize};

use crate::error::{IoContext as _, Result};
use crate::repo::format::{ChunkId, PackId, PackKind};
use crate::repo::wire::{Reader, WireError, WireResult, put_varint};

/// One pack as an index object lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexedPack {
    pub id: PackId,
    pub kind: PackKind,
    pub len: u64,
    pub directory_len: u32,
    /// First 8 bytes of each id, big-endian, in directory order.
    pub prefixes: Vec<u64>,
}

/// Content of an index object: varint count of packs, each: id 32, kind u8, varint length, varint directory length, varint count of
/// chunks, 8 bytes a chunk.
pub fn encode(packs: &[IndexedPack]) -> Vec<u8> {
    let mut out = Vec::with_capacity(packs.iter().map(|p| 64 + p.prefixes.len() * 8).sum());
    put_varint(&mut out, packs.len() as u64);
    for pack in packs {
        out.extend_from_slice(&pack.id.0);
        out.push(pack.kind as u8);
        put_varint(&mut out, pack.len);
        put_varint(&mut out, u64::from(pack.directory_len));
        put_varint(&mut out, pack.prefixes.len() as u64);
        pack.prefixes.iter().for_each(|p| out.extend_from_slice(&p.to_be_bytes()));
    }
    out
}

/// The inverse of [`encode`].
pub fn decode(bytes: &[u8]) -> WireResult<Vec<IndexedPack>> {
    let mut reader = Reader::new(bytes);
    let mut packs = Vec::new();
    for _ in 0..reader.count(36)? {
        let id = PackId(reader.array()?);
        let kind = PackKind::from_byte(reader.u8()?).ok_or(WireError::Invalid("pack of an unknown kind"))?;
        let len = reader.varint()?;
        let directory_len = reader.varint32()?;
        let count = reader.count(8)?;
        let mut prefixes = Vec::with_capacity(count);
        for _ in 0..count {
            prefixes.push(u64::from_be_bytes(reader.array()?));
        }
        packs.push(IndexedPack { id, kind, len, directory_len, prefixes });
    }
    reader.finish()?;
    Ok(packs)
}

/// What an index object says of a pack, without the ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackHead {
    pub id: PackId,
    pub kind: PackKind,
    pub len: u64,
    pub directory_len: u32,
    pub chunks: u32,
}

/// Like [`decode`], in a fraction of the memory.
pub fn decode_heads(bytes: &[u8]) -> WireResult<Vec<PackHead>> {
    let mut reader = Reader::new(bytes);
    let mut packs = Vec::new();
    for _ in 0..reader.count(36)? {
        let id = PackId(reader.array()?);
        let kind = PackKind::from_byte(reader.u8()?).ok_or(WireError::Invalid("pack of an unknown kind"))?;
        let (len, directory_len, count) = (reader.varint()?, reader.varint32()?, reader.count(8)?);
        reader.bytes(count * 8)?;
        packs.push(PackHead { id, kind, len, directory_len, chunks: count as u32 });
    }
    reader.finish()?;
    Ok(packs)
}

/// A place where a chunk may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    pub pack: PackId,
    pub len: u64,
    pub directory_len: u32,
    /// Number of the chunk in the pack's directory.
    pub chunk: u32,
}

const RECORD_BYTES: usize = 16;
/// Records read at a time: 4 KiB.
const BLOCK_RECORDS: u64 = 256;
/// How old a file that nobody lists must be before it is removed.
const STRANGER_AGE: std::time::Duration = std::time::Duration::from_hours(24);
/// How many segments are searched before small ones are merged.
const SEGMENTS_MAX: usize = 8;

/// Which file covers which index objects.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct SegmentRecord {
    file: String,
    covers: Vec<String>,
    records: u64,
    packs: Vec<(String, u64, u32)>,
}

#[derive(Debug)]
struct Segment {
    record: SegmentRecord,
    file: File,
    packs: Vec<(PackId, u64, u32)>,
}

/// The local, searchable form of the index. Its folder can be deleted at any time: it is rebuilt from the repository.
#[derive(Debug)]
pub struct LocalIndex {
    folder: PathBuf,
    /// One at a time takes in objects and merges.
    writing: Mutex<()>,
    segments: RwLock<Vec<Arc<Segment>>>,
}

impl LocalIndex {
    /// Opens what is in `folder` (made when missing). Anything that cannot be used is dropped and rebuilt by `cover`.
    ///
    /// # Errors
    /// When the folder cannot be made or read.
    pub fn open(folder: &Path) -> Result<Self> {
        crate::repo::make_private_folder(folder)?;
        let list = folder.join("segments.json");
        let records = std::fs::read(&list).ok().and_then(|bytes| decode_segments(&bytes)).unwrap_or_default();
        let segments: Vec<_> = records.into_iter().filter_map(|record| open_segment(folder, record)).map(Arc::new).collect();
        let index = Self { folder: folder.to_owned(), writing: Mutex::default(), segments: RwLock::new(segments) };
        index.remove_strangers()?;
        Ok(index)
    }

    /// Keeps only segments that cover nothing but `objects` (names of index objects); returns those not covered yet.
    ///
    /// # Errors
    /// When the local files cannot be written.
    pub fn retain(&self, objects: &[String]) -> Result<Vec<String>> {
        let known: HashSet<&String> = objects.iter().collect();
        {
            let mut segments = self.segments.write().unwrap_or_else(std::sync::PoisonError::into_inner);
            segments.retain(|segment| segment.record.covers.iter().all(|c| known.contains(c)));
        }
        self.save()?;
        self.remove_strangers()?;
        let segments = self.snapshot();
        let covered: HashSet<&String> = segments.iter().flat_map(|s| &s.record.covers).collect();
        Ok(objects.iter().filter(|o| !covered.contains(o)).cloned().collect())
    }

    /// Takes in an index object.
    ///
    /// # Errors
    /// When the local files cannot be written.
    pub fn cover(&self, object: &str, packs: &[IndexedPack]) -> Result<()> {
        let _writing = self.writing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let table = packs.iter().map(|p| (p.id, p.len, p.directory_len)).collect();
        let mut records: Vec<(u64, u32, u32)> = Vec::with_capacity(packs.iter().map(|p| p.prefixes.len()).sum());
        for (number, pack) in packs.iter().enumerate() {
            records.extend(pack.prefixes.iter().enumerate().map(|(chunk, prefix)| (*prefix, number as u32, chunk as u32)));
        }
        records.sort_unstable();
        let segment = self.write_segment(vec![object.to_owned()], table, records.into_iter().map(Ok))?;
        self.segments.write().unwrap_or_else(std::sync::PoisonError::into_inner).push(Arc::new(segment));
        self.merge()?;
        self.save()
    }

    /// Where chunks with this id may be; usually none or one.
    ///
    /// # Errors
    /// When the local files cannot be read.
    pub fn candidates(&self, id: ChunkId) -> Result<Vec<Candidate>> {
        let mut found = Vec::new();
        for segment in self.snapshot().iter().rev() {
            segment.search(id.prefix(), &mut found).io_context(|| format!("read {}", self.folder.join(&segment.record.file).display()))?;
        }
        Ok(found)
    }

    /// All packs listed, with length and directory length.
    pub fn packs(&self) -> Vec<(PackId, u64, u32)> {
        self.snapshot().iter().flat_map(|s| s.packs.iter().copied()).collect()
    }

    /// Number of chunks listed, duplicates included.
    pub fn chunk_count(&self) -> u64 {
        self.snapshot().iter().map(|s| s.record.records).sum()
    }

    fn snapshot(&self) -> Vec<Arc<Segment>> {
        self.segments.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Merges the smaller segments when there are many: all but those larger than the rest together.
    fn merge(&self) -> Result<()> {
        let mut segments = self.snapshot();
        if segments.len() <= SEGMENTS_MAX {
            return Ok(());
        }
        segments.sort_by_key(|s| s.record.records);
        let mut sum = 0;
        let mut take = 0;
        for segment in &segments {
            if take >= 2 && segment.record.records > 2 * sum {
                break;
            }
            sum += segment.record.records;
            take += 1;
        }
        let merged = &segments[..take];
        let mut table = Vec::new();
        let mut sources = Vec::new();
        for segment in merged {
            sources.push(Records::new(segment, table.len() as u32).io_context(|| "read an index segment".into())?);
            table.extend_from_slice(&segment.packs);
        }
        let covers = merged.iter().flat_map(|s| s.record.covers.iter().cloned()).collect();
        let segment = self.write_segment(covers, table, MergedRecords::new(sources)?)?;
        let kept: HashSet<&str> = merged.iter().map(|s| s.record.file.as_str()).collect();
        let mut all = self.segments.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        all.retain(|s| !kept.contains(s.record.file.as_str()));
        all.push(Arc::new(segment));
        drop(all);
        self.save()?;
        for file in kept {
            // Whoever has it open reads on; whoever comes later rebuilds what it covered.
            let _ = std::fs::remove_file(self.folder.join(file));
        }
        Ok(())
    }

    fn write_segment(
        &self,
        covers: Vec<String>,
        packs: Vec<(PackId, u64, u32)>,
        records: impl Iterator<Item = Result<(u64, u32, u32)>>,
    ) -> Result<Segment> {
        let name = format!("{}.segment", ulid::Ulid::generate());
        let path = self.folder.join(&name);
        let failed = || format!("write {}", path.display());
        let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path).io_context(failed)?;
        let mut out = BufWriter::with_capacity(256 << 10, &file);
        let mut count = 0u64;
        for record in records {
            let (prefix, pack, chunk) = record?;
            out.write_all(&prefix.to_be_bytes()).io_context(failed)?;
            out.write_all(&pack.to_le_bytes()).io_context(failed)?;
            out.write_all(&chunk.to_le_bytes()).io_context(failed)?;
            count += 1;
        }
        out.flush().io_context(failed)?;
        drop(out);
        let listed = packs.iter().map(|(id, len, directory)| (hex::encode(id.0), *len, *directory)).collect();
        Ok(Segment { record: SegmentRecord { file: name, covers, records: count, packs: listed }, file, packs })
    }

    fn save(&self) -> Result<()> {
        let records: Vec<SegmentRecord> = self.snapshot().iter().map(|s| s.record.clone()).collect();
        let path = self.folder.join("segments.json");
        // A name of its own: other processes may save theirs at the same time. The last one wins; what it does not know of is rebuilt.
        let temporary = self.folder.join(format!("segments.{}.new", ulid::Ulid::generate()));
        let failed = || format!("write {}", path.display());
        let bytes = serde_json::to_vec(&records)
            .map_err(|e| crate::error::Error::new(crate::error::Kind::Bug, "encode the list of segments").because(e))?;
        std::fs::write(&temporary, bytes).io_context(failed)?;
        std::fs::rename(&temporary, &path).io_context(failed)
    }

    /// Removes files that nobody lists, once they are a day old: younger ones may be another process's.
    fn remove_strangers(&self) -> Result<()> {
        let segments = self.snapshot();
        let kept: HashSet<&str> = segments.iter().map(|s| s.record.file.as_str()).collect();
        let failed = || format!("read {}", self.folder.display());
        for entry in std::fs::read_dir(&self.folder).io_context(failed)? {
            let entry = entry.io_context(failed)?;
            let name = entry.file_name();
            let of_an_index = Path::new(&name).extension().is_some_and(|extension| extension == "segment" || extension == "new");
            let ours = of_an_index && name.to_str().is_some_and(|n| !kept.contains(n));
            let age = entry.metadata().and_then(|m| m.modified()).ok().and_then(|m| m.elapsed().ok()).unwrap_or_default();
            if ours && age > STRANGER_AGE {
                // Another process may be removing it too; a leftover is harmless.
                let _ = std::fs::remove_file(entry.path());
            }
        }
        Ok(())
    }
}

/// The list of segments. `None`: it cannot be read.
pub(super) fn decode_segments(bytes: &[u8]) -> Option<Vec<SegmentRecord>> {
    serde_json::from_slice(bytes).ok()
}

impl SegmentRecord {
    /// The packs that it covers, with their lengths and those of their directories. `None`: it does not say.
    pub(super) fn packs(&self) -> Option<Vec<(PackId, u64, u32)>> {
        let mut packs = Vec::with_capacity(self.packs.len());
        for (id, len, directory) in &self.packs {
            let mut bytes = [0; 32];
            hex::decode_to_slice(id, &mut bytes).ok()?;
            packs.push((PackId(bytes), *len, *directory));
        }
        Some(packs)
    }
}

fn open_segment(folder: &Path, record: SegmentRecord) -> Option<Segment> {
    if record.file.contains('/') {
        return None;
    }
    let file = File::open(folder.join(&record.file)).ok()?;
    (file.metadata().ok()?.len() == record.records.checked_mul(RECORD_BYTES as u64)?).then_some(())?;
    let packs = record.packs()?;
    Some(Segment { record, file, packs })
}

impl Segment {
    /// Finds all records with this prefix.
    fn search(&self, prefix: u64, found: &mut Vec<Candidate>) -> std::io::Result<()> {
        let count = self.record.records;
        let (mut low, mut high) = (0u64, count);
        // Keys at the bounds, for interpolation; exclusive ends stand for minus and plus infinity.
        let (mut low_key, mut high_key) = (0u64, u64::MAX);
        let mut block = [0u8; BLOCK_RECORDS as usize * RECORD_BYTES];
        let mut round = 0;
        while low < high {
            // Where it would be if keys were spread evenly; every fourth probe bisects, so that a skewed file costs a logarithm.
            let span = u128::from(high - low);
            let share = u128::from(prefix.saturating_sub(low_key)) * span / (u128::from(high_key.saturating_sub(low_key)) + 1);
            let guess = if round % 4 == 3 { span / 2 } else { share };
            round += 1;
            let middle = low + (guess as u64).min(high - low - 1);
            let start = middle.saturating_sub(BLOCK_RECORDS / 2).max(low);
            let end = (start + BLOCK_RECORDS).min(high);
            let bytes = &mut block[..(end - start) as usize * RECORD_BYTES];
            self.file.read_exact_at(bytes, start * RECORD_BYTES as u64)?;
            let (first, last) = (key_at(bytes, 0), key_at(bytes, (end - start) as usize - 1));
            if prefix < first {
                (high, high_key) = (start, first);
            } else if prefix > last {
                (low, low_key) = (end, last);
            } else {
                return self.scan(prefix, start, found);
            }
        }
        Ok(())
    }

    /// Collects the run of equal prefixes around `near`.
    fn scan(&self, prefix: u64, near: u64, found: &mut Vec<Candidate>) -> std::io::Result<()> {
        let mut at = near;
        let mut record = [0u8; RECORD_BYTES];
        while at > 0 {
            self.file.read_exact_at(&mut record, (at - 1) * RECORD_BYTES as u64)?;
            if key_at(&record, 0) < prefix {
                break;
            }
            at -= 1;
        }
        let mut block = [0u8; BLOCK_RECORDS as usize * RECORD_BYTES];
        while at < self.record.records {
            let take = BLOCK_RECORDS.min(self.record.records - at);
            let bytes = &mut block[..take as usize * RECORD_BYTES];
            self.file.read_exact_at(bytes, at * RECORD_BYTES as u64)?;
            for record in bytes.chunks_exact(RECORD_BYTES) {
                let key = key_at(record, 0);
                if key > prefix {
                    return Ok(());
                }
                if key == prefix {
                    let (_, pack, chunk) = parse(record);
                    if let Some((id, len, directory_len)) = self.packs.get(pack as usize).copied() {
                        found.push(Candidate { pack: id, len, directory_len, chunk });
                    }
                }
            }
            at += take;
        }
        Ok(())
    }
}

fn key_at(bytes: &[u8], record: usize) -> u64 {
    parse(&bytes[record * RECORD_BYTES..(record + 1) * RECORD_BYTES]).0
}

fn parse(record: &[u8]) -> (u64, u32, u32) {
    let mut prefix = [0; 8];
    let mut pack = [0; 4];
    let mut chunk = [0; 4];
    prefix.copy_from_slice(&record[..8]);
    pack.copy_from_slice(&record[8..12]);
    chunk.copy_from_slice(&record[12..16]);
    (u64::from_be_bytes(prefix), u32::from_le_bytes(pack), u32::from_le_bytes(chunk))
}

/// Streams the records of a segment, pack numbers moved up by `offset`.
struct Records {
    reader: BufReader<File>,
    left: u64,
    offset: u32,
}

impl Records {
    fn new(segment: &Segment, offset: u32) -> std::io::Result<Self> {
        use std::io::Seek as _;
        let mut file = segment.file.try_clone()?;
        file.rewind()?;
        Ok(Self { reader: BufReader::with_capacity(256 << 10, file), left: segment.record.records, offset })
    }
}

impl Iterator for Records {
    type Item = std::io::Result<(u64, u32, u32)>;
    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let mut record = [0; RECORD_BYTES];
        Some(self.reader.read_exact(&mut record).map(|()| {
            let (prefix, pack, chunk) = parse(&record);
            (prefix, pack + self.offset, chunk)
        }))
    }
}

/// Merges sorted streams of records.
struct MergedRecords {
    sources: Vec<Records>,
    heads: BinaryHeap<std::cmp::Reverse<((u64, u32, u32), usize)>>,
}

impl MergedRecords {
    fn new(mut sources: Vec<Records>) -> Result<Self> {
        let mut heads = BinaryHeap::new();
        for (number, source) in sources.iter_mut().enumerate() {
            if let Some(record) = source.next() {
                heads.push(std::cmp::Reverse((record.io_context(|| "read an index segment".into())?, number)));
            }
        }
        Ok(Self { sources, heads })
    }
}

impl Iterator for MergedRecords {
    type Item = Result<(u64, u32, u32)>;
    fn next(&mut self) -> Option<Self::Item> {
        let std::cmp::Reverse((record, number)) = self.heads.pop()?;
        match self.sources[number].next() {
            Some(Ok(next)) => self.heads.push(std::cmp::Reverse((next, number))),
            Some(Err(e)) => return Some(Err(crate::error::Error::io("read an index segment", e))),
            None => {}
        }
        Some(Ok(record))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pack(number: u8, prefixes: &[u64]) -> IndexedPack {
        IndexedPack { id: PackId([number; 32]), kind: PackKind::Data, len: 1000, directory_len: 100, prefixes: prefixes.to_vec() }
    }

    fn id(prefix: u64) -> ChunkId {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&prefix.to_be_bytes());
        ChunkId(id)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn finds_all_and_only_what_is_listed(
            objects in proptest::collection::vec(proptest::collection::vec(prop_oneof![any::<u64>(), 0u64..20, Just(u64::MAX)], 0..600), 1..14),
            probes in proptest::collection::vec(any::<u64>(), 20),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let index = LocalIndex::open(folder.path()).unwrap();
            let mut naive: Vec<(u64, u8, u32)> = Vec::new();
            let mut names = Vec::new();
            for (number, prefixes) in objects.iter().enumerate() {
                let name = format!("{number:064x}");
                index.cover(&name, &[pack(number as u8, prefixes)]).unwrap();
                names.push(name);
                naive.extend(prefixes.iter().enumerate().map(|(c, p)| (*p, number as u8, c as u32)));
            }
            for index in [index, LocalIndex::open(folder.path()).unwrap()] {
                prop_assert_eq!(index.retain(&names).unwrap(), Vec::<String>::new());
                for probe in probes.iter().chain(objects.iter().flatten().take(200)).chain(&[0, 5, u64::MAX]) {
                    let mut expected: Vec<(u8, u32)> = naive.iter().filter(|(p, ..)| p == probe).map(|(_, n, c)| (*n, *c)).collect();
                    let mut found: Vec<(u8, u32)> = index.candidates(id(*probe)).unwrap().iter().map(|c| (c.pack.0[0], c.chunk)).collect();
                    expected.sort_unstable();
                    found.sort_unstable();
                    prop_assert_eq!(found, expected);
                }
            }
        }

        #[test]
        fn objects_come_back_and_garbage_is_refused(prefixes in proptest::collection::vec(any::<u64>(), 0..50), garbage in proptest::collection::vec(any::<u8>(), 0..200)) {
            let packs = vec![pack(1, &prefixes), pack(2, &[])];
            let heads: Vec<(PackId, u32)> = decode_heads(&encode(&packs)).unwrap().iter().map(|head| (head.id, head.chunks)).collect();
            prop_assert_eq!(heads, packs.iter().map(|pack| (pack.id, pack.prefixes.len() as u32)).collect::<Vec<_>>());
            prop_assert_eq!(decode(&encode(&packs)).unwrap(), packs);
            prop_assert_eq!(decode(&garbage).is_ok(), decode_heads(&garbage).is_ok());
        }
    }

    #[test]
    fn many_processes_share_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for process in 0..8u64 {
                let folder = folder.path();
                scope.spawn(move || {
                    let index = LocalIndex::open(folder).unwrap();
                    for object in 0..12u64 {
                        index.cover(&format!("{process}-{object}"), &[pack(process as u8, &[process * 1000 + object])]).unwrap();
                        for earlier in 0..=object {
                            assert_eq!(
                                index.candidates(id(process * 1000 + earlier)).unwrap().len(),
                                1,
                                "process {process} object {earlier}"
                            );
                        }
                    }
                });
            }
        });
        LocalIndex::open(folder.path()).unwrap();
    }

    #[test]
    fn a_withdrawn_object_takes_its_segment_along() {
        let folder = tempfile::tempdir().unwrap();
        let index = LocalIndex::open(folder.path()).unwrap();
        index.cover("a", &[pack(1, &[1, 2])]).unwrap();
        index.cover("b", &[pack(2, &[3])]).unwrap();
        assert_eq!(index.retain(&["b".into(), "c".into()]).unwrap(), ["c"]);
        assert!(index.candidates(id(1)).unwrap().is_empty());
        assert_eq!(index.candidates(id(3)).unwrap().len(), 1);
    }
}

//! What the retention ledger remembers of snapshots that were removed, for ever: volumes of it, each written once.
//!
//! The ids must be known as long as there is the repository: a writer that never heard of its commit may create a manifest again, whenever that is. They are
//! what everybody asks for, and 16 bytes each. Hash and parents of a manifest, which only a verification of the chain asks for, stand beside them and are read
//! when somebody asks. So a *volume* is two objects under one name, `NUMBER-RANDOM`, where `NUMBER` is the entry for whose state it was written:
//!
//! - `retention/ids/NAME`: the ids, 16 bytes each, ascending.
//! - `retention/removed/NAME`: of each id, in the same order, a record: id ‖ blob plan ‖ hash ‖ zigzag seconds since 1970 and varint32 nanoseconds of its removal ‖
//!   blob reason ‖ varint count of parents, each id ‖ hash ‖ varint count of sources that a log continued, each blob name. A hash is u8 0 and 32 bytes, or (of
//!   what had none) u8 1 and a blob of text.
//!
//! The state names both by the hashes of what is stored. Records that were lost are given up by a repair ([`HarmedVolume`]): the state names the ids alone. Small volumes are put together into larger ones, each about twice as large as the one before, up to
//! [`VOLUME_SNAPSHOTS`]: so there are few, and what is removed is written again a few times at most.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use chrono::DateTime;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::id::{Name, SnapshotId};
use crate::repo::format::ObjectKind;
use crate::repo::ledger::RemovedSnapshot;
use crate::repo::snapshot::Parent;
use crate::repo::wire::{Reader, WireError, WireResult, put_blob, put_varint, unzigzag, zigzag};
use crate::repo::{Inner, kept, seal};
use crate::store::ObjectInfo;

/// Where the two objects of each volume are.
pub const IDS: &str = "retention/ids/";
pub const RECORDS: &str = "retention/removed/";

/// Most snapshots in a volume.
pub const VOLUME_SNAPSHOTS: usize = 16_384;
/// Plain bytes of records at which a volume is closed.
const VOLUME_BYTES: usize = 8 << 20;

/// A volume as a state lists it (JSON).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedVolume {
    /// Below both folders.
    pub name: String,
    pub snapshots: u64,
    /// Hex BLAKE3 of the two stored objects. Of records that were lost and given up, empty: there is no such object then.
    pub ids: String,
    pub removed: String,
}

impl ListedVolume {
    pub fn ids_key(&self) -> String {
        format!("{IDS}{}", self.name)
    }

    pub fn records_key(&self) -> String {
        format!("{RECORDS}{}", self.name)
    }

    /// Whether nothing is known of its snapshots but that they were removed.
    pub fn is_without_records(&self) -> bool {
        self.removed.is_empty()
    }

    /// Of its objects.
    pub fn keys(&self) -> Vec<String> {
        let records = (!self.is_without_records()).then(|| self.records_key());
        std::iter::once(self.ids_key()).chain(records).collect()
    }
}

/// What of a volume cannot be read, where the other half of it can.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HarmedVolume {
    /// The ids, which the records say too.
    Ids,
    /// The records: what was removed is known, and nothing else of it.
    Records,
}

/// Names of volumes of which one half cannot be read.
pub type HarmedVolumes = BTreeMap<String, HarmedVolume>;

/// A volume, with what everybody asks for.
#[derive(Debug, PartialEq, Eq)]
pub struct Volume {
    pub listed: ListedVolume,
    /// Ascending.
    ids: Vec<SnapshotId>,
}

impl Volume {
    pub fn has(&self, id: SnapshotId) -> bool {
        // What lies outside is most of what is asked for.
        self.ids.first().is_some_and(|first| *first <= id) && self.ids.binary_search(&id).is_ok()
    }

    pub fn ids(&self) -> &[SnapshotId] {
        &self.ids
    }

    /// Whether these are its records.
    fn is_of(&self, records: &[RemovedSnapshot]) -> bool {
        records.iter().map(|record| &record.id).eq(&self.ids)
    }
}

/// The number of the entry for whose state an object of a volume was written; `None`: it is no name of one.
pub fn volume_number(key: &str) -> Option<u64> {
    let name = key.strip_prefix(IDS).or_else(|| key.strip_prefix(RECORDS))?;
    let (number, random) = name.split_once('-')?;
    let parsed = (u64::from_str_radix(number, 16).ok()?, u64::from_str_radix(random, 16).ok()?);
    (name_of(parsed.0, parsed.1) == name).then_some(parsed.0)
}

/// Whether an object is one of a volume of the ledger, and no entry of it.
#[must_use]
pub fn is_volume_key(key: &str) -> bool {
    volume_number(key).is_some()
}

fn name_of(number: u64, random: u64) -> String {
    format!("{number:016x}-{random:016x}")
}

pub fn encode_ids(ids: &[SnapshotId]) -> Vec<u8> {
    ids.iter().flat_map(|id| id.to_bytes()).collect()
}

pub fn decode_ids(bytes: &[u8]) -> WireResult<Vec<SnapshotId>> {
    let (ids, []) = bytes.as_chunks::<16>() else { return Err(WireError::Truncated) };
    let ids: Vec<SnapshotId> = ids.iter().map(|id| SnapshotId::from_bytes(*id)).collect();
    if ids.is_sorted_by(|before, after| before < after) { Ok(ids) } else { Err(WireError::Invalid("ids are not in order")) }
}

pub fn encode_record(out: &mut Vec<u8>, snapshot: &RemovedSnapshot) {
    out.extend(snapshot.id.to_bytes());
    put_blob(out, snapshot.plan.as_str().as_bytes());
    put_hash(out, &snapshot.hash);
    put_varint(out, zigzag(snapshot.removed_at.timestamp()));
    put_varint(out, u64::from(snapshot.removed_at.timestamp_subsec_nanos()));
    put_blob(out, snapshot.reason.as_bytes());
    put_varint(out, snapshot.parents.len() as u64);
    for parent in &snapshot.parents {
        out.extend(parent.id.to_bytes());
        put_hash(out, &parent.hash);
    }
    put_varint(out, snapshot.logs.len() as u64);
    for source in &snapshot.logs {
        put_blob(out, source.as_str().as_bytes());
    }
}

/// Records, in the order of their ids.
pub fn decode_records(bytes: &[u8]) -> WireResult<Vec<RemovedSnapshot>> {
    let mut reader = Reader::new(bytes);
    let mut records: Vec<RemovedSnapshot> = Vec::new();
    while !reader.is_empty() {
        let record = decode_record(&mut reader)?;
        if records.last().is_some_and(|before| before.id >= record.id) {
            return Err(WireError::Invalid("records are not in order"));
        }
        records.push(record);
    }
    Ok(records)
}

fn decode_record(reader: &mut Reader<'_>) -> WireResult<RemovedSnapshot> {
    let id = SnapshotId::from_bytes(reader.array()?);
    let plan = take_name(reader)?;
    let hash = take_hash(reader)?;
    let (seconds, nanoseconds) = (unzigzag(reader.varint()?), reader.varint32()?);
    let removed_at = DateTime::from_timestamp(seconds, nanoseconds).ok_or(WireError::Invalid("time is no moment"))?;
    let reason = take_text(reader)?;
    // Of each at least an id and an empty hash.
    let parents = reader.count(18)?;
    let parents = (0..parents).map(|_| Ok(Parent { id: SnapshotId::from_bytes(reader.array()?), hash: take_hash(reader)? }));
    let parents = parents.collect::<WireResult<_>>()?;
    let logs = reader.count(2)?;
    let logs = (0..logs).map(|_| take_name(reader)).collect::<WireResult<_>>()?;
    Ok(RemovedSnapshot { id, plan, hash, parents, removed_at, reason, logs })
}

fn put_hash(out: &mut Vec<u8>, hash: &str) {
    let mut bytes = [0; 32];
    // Whoever commits writes what it likes into `parents`.
    if hex::decode_to_slice(hash, &mut bytes).is_ok() && hex::encode(bytes) == hash {
        out.push(0);
        out.extend(bytes);
    } else {
        out.push(1);
        put_blob(out, hash.as_bytes());
    }
}

fn take_hash(reader: &mut Reader<'_>) -> WireResult<String> {
    match reader.u8()? {
        0 => reader.array::<32>().map(hex::encode),
        1 => take_text(reader),
        _ => Err(WireError::Invalid("unknown form of a hash")),
    }
}

fn take_text(reader: &mut Reader<'_>) -> WireResult<String> {
    std::str::from_utf8(reader.blob()?).map(str::to_owned).map_err(|_| WireError::Invalid("text is not UTF-8"))
}

fn take_name(reader: &mut Reader<'_>) -> WireResult<Name> {
    Name::new(take_text(reader)?).map_err(|_| WireError::Invalid("not a valid name"))
}

/// Parts of what was removed, each for a volume: its ids, and its records encoded.
pub fn into_volumes(snapshots: &BTreeMap<SnapshotId, RemovedSnapshot>) -> Vec<(Vec<SnapshotId>, Vec<u8>)> {
    let mut volumes: Vec<(Vec<SnapshotId>, Vec<u8>)> = Vec::new();
    for (id, snapshot) in snapshots {
        if volumes.last().is_none_or(|(ids, records)| ids.len() >= VOLUME_SNAPSHOTS || records.len() >= VOLUME_BYTES) {
            volumes.push((Vec::new(), Vec::new()));
        }
        if let Some((ids, records)) = volumes.last_mut() {
            ids.push(*id);
            encode_record(records, snapshot);
        }
    }
    volumes
}

/// Writes a volume for the state of the entry with this number. `records`: `None` where they are lost.
///
/// # Errors
/// When the store takes it not.
pub fn write(inner: &Inner, number: u64, ids: &[SnapshotId], records: Option<&[u8]>) -> Result<ListedVolume> {
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(|e| Error::new(Kind::Bug, "ask for random bytes").because(e))?;
    let name = name_of(number, u64::from_le_bytes(random));
    let mut listed = ListedVolume { name, snapshots: ids.len() as u64, ids: String::new(), removed: String::new() };
    let create = |kind, key: &str, content: &[u8]| -> Result<String> {
        let sealed = inner.seal_object(kind, key, content)?;
        let hash = blake3::hash(&sealed).to_hex().to_string();
        inner.block_on(inner.store.create(key, Bytes::from(sealed))).map_err(|error| error.within("write the retention ledger"))?;
        Ok(hash)
    };
    listed.ids = create(ObjectKind::RemovedIds, &listed.ids_key(), &encode_ids(ids))?;
    if let Some(records) = records {
        listed.removed = create(ObjectKind::Removed, &listed.records_key(), records)?;
    }
    Ok(listed)
}

/// Volumes that a state lists. Of those in `known` nothing is read again. `there`: all that is below the ledger's folder.
///
/// # Errors
/// `NotFound` when an object of one is not there; `Damaged`.
pub fn load(inner: &Inner, there: &[ObjectInfo], listed: &[ListedVolume], known: &[Arc<Volume>]) -> Result<Vec<Arc<Volume>>> {
    let keys: HashSet<&str> = there.iter().map(|object| object.key.as_str()).collect();
    for key in listed.iter().flat_map(ListedVolume::keys) {
        if !keys.contains(key.as_str()) {
            return Err(Error::new(Kind::NotFound, format!("object {key} is missing")));
        }
    }
    let known: HashMap<&str, &Arc<Volume>> = known.iter().map(|volume| (volume.listed.name.as_str(), volume)).collect();
    let reused =
        |listed: &ListedVolume| known.get(listed.name.as_str()).filter(|volume| volume.listed == *listed).map(|volume| Arc::clone(volume));
    let wanted: HashMap<String, &ListedVolume> =
        listed.iter().filter(|volume| reused(volume).is_none()).map(|volume| (volume.ids_key(), volume)).collect();
    let mut read: HashMap<String, Arc<Volume>> = HashMap::new();
    if !wanted.is_empty() {
        let there: Vec<ObjectInfo> = there.iter().filter(|object| object.key.starts_with(IDS)).cloned().collect();
        let open = |key: &str, bytes: &[u8]| match wanted.get(key) {
            Some(volume) => open_volume(inner, volume, bytes),
            None => Err(Error::new(Kind::Bug, format!("{key} was not asked for"))),
        };
        for (key, volume) in kept::open_all(inner, IDS, &there, |key| wanted.contains_key(key), open) {
            read.insert(key, volume?);
        }
    }
    let volume = |listed: &ListedVolume| reused(listed).or_else(|| read.get(&listed.ids_key()).cloned());
    listed
        .iter()
        .map(|listed| volume(listed).ok_or_else(|| Error::new(Kind::Bug, format!("volume {} was not read", listed.name))))
        .collect()
}

/// The same, every byte of them read, also where one of the two objects of a volume cannot be.
///
/// # Errors
/// `Damaged` when neither of the two can be read; when the store cannot be asked.
pub fn load_harmed(inner: &Inner, listed: &[ListedVolume]) -> Result<(Vec<Arc<Volume>>, HarmedVolumes)> {
    let (mut volumes, mut harmed) = (Vec::new(), HarmedVolumes::new());
    for listed in listed {
        let stored = inner.block_on(inner.store.get(&listed.ids_key()));
        let ids = or_none(stored.and_then(|bytes| open_ids(inner, listed, &bytes)))?;
        let read = if listed.is_without_records() { None } else { or_none(open_records(inner, listed))? };
        let volume = match (ids, read) {
            (Some(ids), read) => {
                let volume = Volume { listed: listed.clone(), ids };
                if !listed.is_without_records() && read.is_none_or(|records| !volume.is_of(&records)) {
                    harmed.insert(listed.name.clone(), HarmedVolume::Records);
                }
                volume
            }
            (None, Some(records)) if records.len() as u64 == listed.snapshots => {
                harmed.insert(listed.name.clone(), HarmedVolume::Ids);
                Volume { listed: listed.clone(), ids: records.iter().map(|record| record.id).collect() }
            }
            (None, _) => {
                return Err(Error::new(Kind::Damaged, format!("the retention ledger: nothing of its volume {} can be read", listed.name)));
            }
        };
        volumes.push(Arc::new(volume));
    }
    Ok((volumes, harmed))
}

/// `None` for what is damaged or not there.
fn or_none<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.kind(), Kind::Damaged | Kind::NotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The volume whose ids these are, as they are stored.
///
/// # Errors
/// `Damaged` when they are not those that the state lists.
pub fn open_volume(inner: &Inner, listed: &ListedVolume, bytes: &[u8]) -> Result<Arc<Volume>> {
    Ok(Arc::new(Volume { listed: listed.clone(), ids: open_ids(inner, listed, bytes)? }))
}

fn open_ids(inner: &Inner, listed: &ListedVolume, bytes: &[u8]) -> Result<Vec<SnapshotId>> {
    let key = listed.ids_key();
    let ids = decode_ids(&open(inner, ObjectKind::RemovedIds, &key, &listed.ids, bytes)?).map_err(|e| cannot_be_decoded(&key, e))?;
    if ids.len() as u64 == listed.snapshots { Ok(ids) } else { Err(another(&key)) }
}

/// The records of a volume, as they are in the store now.
///
/// # Errors
/// `NotFound`; `Damaged`, also where they were lost and given up.
pub fn records(inner: &Inner, volume: &Volume) -> Result<Vec<RemovedSnapshot>> {
    if volume.listed.is_without_records() {
        return Err(Error::new(
            Kind::Damaged,
            format!("what was known of the removed snapshots of volume {} was lost, and a repair gave it up", volume.listed.name),
        ));
    }
    let records = open_records(inner, &volume.listed)?;
    if volume.is_of(&records) { Ok(records) } else { Err(another(&volume.listed.records_key())) }
}

fn open_records(inner: &Inner, listed: &ListedVolume) -> Result<Vec<RemovedSnapshot>> {
    let key = listed.records_key();
    let bytes = inner.block_on(inner.store.get(&key))?;
    let content = open(inner, ObjectKind::Removed, &key, &listed.removed, &bytes)?;
    decode_records(&content).map_err(|e| cannot_be_decoded(&key, e))
}

/// Reads the ids of a volume again as they are in the store now.
///
/// # Errors
/// `NotFound`, `Damaged`.
pub fn check_ids(inner: &Inner, volume: &Volume) -> Result<()> {
    let key = volume.listed.ids_key();
    let bytes = inner.block_on(inner.store.get(&key))?;
    if open_ids(inner, &volume.listed, &bytes)? == volume.ids { Ok(()) } else { Err(another(&key)) }
}

fn open(inner: &Inner, kind: ObjectKind, key: &str, hash: &str, bytes: &[u8]) -> Result<Vec<u8>> {
    let content = seal::open(&inner.keys, inner.id, kind, key, bytes)?;
    if blake3::hash(bytes).to_hex().as_str() == hash { Ok(content) } else { Err(another(key)) }
}

fn another(key: &str) -> Error {
    Error::new(Kind::Damaged, format!("object {key}: is another one than the retention ledger lists"))
}

fn cannot_be_decoded(key: &str, error: WireError) -> Error {
    Error::new(Kind::Damaged, format!("object {key}: cannot be decoded")).because(error)
}

/// Whether these are ids, or records, of a volume. For fuzzing.
pub fn parse(bytes: &[u8]) -> bool {
    let ids = decode_ids(bytes);
    if let Ok(ids) = &ids {
        assert_eq!(encode_ids(ids), bytes, "one form only");
    }
    let Ok(records) = decode_records(bytes) else { return ids.is_ok_and(|ids| !ids.is_empty()) };
    let mut again = Vec::new();
    records.iter().for_each(|record| encode_record(&mut again, record));
    assert_eq!(decode_records(&again).as_ref(), Ok(&records), "what was read can be written and read again");
    !records.is_empty()
}

//! Every parser of what a repository stores, under a name: for fuzzing, and for the test that reads again what fuzzing collected.
//!
//! A parser here takes any bytes. It must not panic, and must not take memory that its input does not account for; what must hold of bytes that it
//! accepts is asserted. It says whether it accepted them.

use std::sync::OnceLock;
use std::time::Duration;

use crate::event::Pulse;
use crate::repo::format::{ObjectKind, PackId, PackKind, RepositoryId};
use crate::repo::frame::{Decoder, Encoding, apply_patch};
use crate::repo::keyring::{KnownGenerations, Remembered};
use crate::repo::keys::{Credential, KeyFile, KeyObject, Keys, Marker, Passphrase, Role, Share, StoredSlot, Update, is_signed_record};
use crate::repo::locks::Known;
use crate::repo::log::{Gap, Label, decode_known, parse_name};
use crate::repo::moved::MovedRecord;
use crate::repo::pack::{Directory, decode_log_body, open_directory, open_log_directory};
use crate::repo::seen::SeenLedger;
use crate::repo::session::{SessionObject, decode_tombstones};
use crate::repo::tree::{NodeEncoder, PackRef, decode_list, decode_records, encode_list};
use crate::repo::wire::{Reader, put_blob, put_varint, unzigzag, zigzag};
use crate::repo::{FormatObject, KeyEvent, Manifest, ReportRecord, index, keyring, ledger, object_lock, removed, report, seal};
use crate::store::LockMode;

/// A name, and what reads bytes.
pub type Parser = (&'static str, fn(&[u8]) -> bool);

/// All of them.
pub const PARSERS: [Parser; 19] = [
    ("wire", wire),
    ("pack_directory", pack_directory),
    ("pack_tail", pack_tail),
    ("frame", frame),
    ("patch", patch),
    ("node", node),
    ("node_list", node_list),
    ("index", index_object),
    ("manifest", manifest),
    ("records", records),
    ("sealed", sealed),
    ("key_slot", key_slot),
    ("key_text", key_text),
    ("log_piece", log_piece),
    ("moved", moved),
    ("ledger", ledger),
    ("removed", removed::parse),
    ("collection", collection),
    ("local", local),
];

/// Where the events and reports lie whose content is read here.
const EVENT_KEY: &str = "key-events/01m3256as03x0grz41yb8mzwab";
const REPORT_KEY: &str = "reports/01m3256as03x0grz41yb8mzwab";
const REPOSITORY: RepositoryId = RepositoryId([7; 16]);
const KEY: &str = "logs/0123456789abcdef0123456789abcdef/pieces/0000000000000001-0000000000000000-0000000000000010";

fn keys() -> &'static Keys {
    static KEYS: OnceLock<Keys> = OnceLock::new();
    KEYS.get_or_init(Keys::generate)
}

/// A programme of reads; what is read whole must be what a writer of it would have written.
fn wire(bytes: &[u8]) -> bool {
    let mut reader = Reader::new(bytes);
    while !reader.is_empty() {
        let Ok(what) = reader.u8() else { return false };
        let before = reader.clone().rest();
        let mut written = Vec::new();
        let read = match what % 6 {
            0 => reader.varint().map(|value| {
                assert_eq!(zigzag(unzigzag(value)), value);
                put_varint(&mut written, value);
            }),
            1 => reader.varint32().map(|value| put_varint(&mut written, u64::from(value))),
            2 => reader.blob().map(|blob| put_blob(&mut written, blob)),
            3 => reader.u16().map(|value| written.extend(value.to_le_bytes())),
            4 => reader.array::<16>().map(|array| written.extend(array)),
            _ => {
                let least = usize::from(what);
                reader.count(least).map(|count| {
                    assert!(count * least <= before.len(), "a count that is not there");
                    put_varint(&mut written, count as u64);
                })
            }
        };
        if read.is_err() {
            return false;
        }
        assert_eq!(written, before[..before.len() - reader.clone().rest().len()]);
    }
    reader.finish().is_ok()
}

/// Kind u8, varint of the frames' length, the directory's content.
fn pack_directory(bytes: &[u8]) -> bool {
    let mut reader = Reader::new(bytes);
    let (Ok(kind), Ok(frames_len)) = (reader.u8(), reader.varint()) else { return false };
    let kind = PackKind::from_byte(kind).unwrap_or(PackKind::Log);
    let Ok(directory) = Directory::decode(kind, reader.rest(), frames_len) else { return false };
    check_directory(&directory);
    assert_eq!(Directory::decode(kind, &directory.encode(), frames_len).as_ref(), Ok(&directory));
    true
}

fn check_directory(directory: &Directory) {
    for (number, chunk) in directory.chunks().enumerate().take(1000) {
        let found = directory.locate(number as u32).map(|(frame, slot)| directory.frames[frame as usize].chunks[slot as usize]);
        assert_eq!(found.as_ref(), Some(chunk), "chunk {number}");
    }
    assert_eq!(directory.locate(u32::MAX), None);
    assert!(directory.frames.iter().all(|frame| (frame.envelope as usize) < directory.envelopes.len()));
}

/// u32 of a pack's length, then its tail.
fn pack_tail(bytes: &[u8]) -> bool {
    let mut reader = Reader::new(bytes);
    let Ok(len) = reader.array::<4>() else { return false };
    let len = u64::from(u32::from_le_bytes(len));
    let tail = reader.rest();
    // No input can hold a seal under these keys: what comes before it must cope, and the seal must refuse.
    let opened =
        open_directory(keys(), REPOSITORY, "packs/x", len, tail).is_ok() || open_log_directory(keys(), REPOSITORY, KEY, len, tail).is_ok();
    assert!(!opened, "a forged directory was opened");
    PackId::from_key(&String::from_utf8_lossy(tail)).is_some()
}

/// Encoding u8, varint of the plain length, the encoded bytes.
fn frame(bytes: &[u8]) -> bool {
    let mut reader = Reader::new(bytes);
    let (Ok(encoding), Ok(plain_len)) = (reader.u8(), reader.varint32()) else { return false };
    let (Some(encoding), Ok(mut decoder)) = (Encoding::from_byte(encoding), Decoder::new()) else { return false };
    let mut plain = Vec::new();
    let decoded = decoder.decode(encoding, reader.rest(), plain_len as usize, &mut plain).is_ok();
    assert!(!decoded || plain.len() == plain_len as usize);
    decoded
}

/// Base as a blob, varint of the chunk's length, the patch.
fn patch(bytes: &[u8]) -> bool {
    let mut reader = Reader::new(bytes);
    let (Ok(base), Ok(len)) = (reader.blob(), reader.varint32()) else { return false };
    match apply_patch(base, reader.rest(), len as usize) {
        Ok(chunk) => {
            assert_eq!(chunk.len(), len as usize);
            true
        }
        Err(_) => false,
    }
}

fn node(bytes: &[u8]) -> bool {
    let Ok(records) = decode_records(bytes, |pack| pack) else { return false };
    let mut encoder = NodeEncoder::<PackRef>::new();
    records.iter().for_each(|record| encoder.record(record));
    let again = decode_records(&encoder.finish(|pack| pack), |pack| pack);
    assert_eq!(again.as_ref(), Ok(&records));
    true
}

fn node_list(bytes: &[u8]) -> bool {
    let Ok(refs) = decode_list(bytes, |pack| pack) else { return false };
    assert_eq!(decode_list(&encode_list(&refs, |pack| pack), |pack| pack).as_ref(), Ok(&refs));
    true
}

fn index_object(bytes: &[u8]) -> bool {
    let Ok(packs) = index::decode(bytes) else { return false };
    assert_eq!(index::encode(&packs), bytes, "one form only");
    true
}

fn manifest(bytes: &[u8]) -> bool {
    let Ok(manifest) = serde_json::from_slice::<Manifest>(bytes) else { return false };
    let roots = manifest.sources.iter().all(|source| source.tree.bytes().is_ok_and(|root| decode_list(&root, |pack| pack).is_ok()));
    let key = manifest.foreign_fingerprint_key().is_ok();
    let again = serde_json::to_vec(&manifest).map(|json| serde_json::from_slice::<Manifest>(&json).is_ok());
    assert!(again.is_ok_and(|readable| readable), "what was read can be written and read again");
    roots && key
}

/// What is only JSON below its seal.
fn records(bytes: &[u8]) -> bool {
    let report = serde_json::from_slice::<ReportRecord>(bytes);
    if let Ok(report) = &report {
        let again = serde_json::to_vec(report).map(|json| serde_json::from_slice::<ReportRecord>(&json).is_ok());
        assert!(again.is_ok_and(|readable| readable));
    }
    if let Ok(event) = keyring::decode_event(keys(), EVENT_KEY, bytes) {
        let again = keyring::encode_event(keys(), &event).and_then(|content| keyring::decode_event(keys(), EVENT_KEY, &content));
        assert!(again.is_ok_and(|again| again == KeyEvent { signed: Some(true), ..event }), "what was read can be signed and read again");
        return true;
    }
    let others = [
        report::decode(keys(), REPORT_KEY, bytes).is_ok(),
        is_signed_record(bytes),
        serde_json::from_slice::<Gap>(bytes).is_ok(),
        serde_json::from_slice::<FormatObject>(bytes).is_ok(),
        serde_json::from_slice::<Marker>(bytes).is_ok(),
        serde_json::from_slice::<Update>(bytes).is_ok(),
        keys().clone().take_plan_key(REPOSITORY, 0x8000, bytes).is_ok(),
        keys().clone().take_erased(0x8000, bytes).is_ok(),
        [Role::Reader, Role::Writer, Role::Maintainer].into_iter().any(|role| Keys::from_bundle(role, bytes).is_some()),
    ];
    report.is_ok() || others.contains(&true)
}

/// Kind u8, place u16 and XOR u8 of a change, the content: sealed, changed and opened. Also as it is.
fn sealed(bytes: &[u8]) -> bool {
    let open = |kind, object: &[u8]| seal::open(keys(), REPOSITORY, kind, KEY, object);
    if let Some(kind) = seal::claimed_kind(bytes) {
        assert!(open(kind, bytes).is_err(), "a forged object was opened");
    }
    let mut reader = Reader::new(bytes);
    let (Ok(kind), Ok(at), Ok(change)) = (reader.u8(), reader.u16(), reader.u8()) else { return false };
    let (Some(kind), content) = (ObjectKind::from_byte(kind), reader.rest()) else { return false };
    let Ok(mut object) = seal::seal(keys(), REPOSITORY, kind, KEY, content) else { return false };
    let at = usize::from(at) % object.len();
    object[at] ^= change;
    match open(kind, &object) {
        Ok(opened) => assert!(change == 0 && opened == content, "byte {at} was changed and the object opened"),
        Err(error) => assert!(change != 0, "what was sealed does not open: {error}"),
    }
    change == 0
}

fn key_slot(bytes: &[u8]) -> bool {
    KeyObject::of(&String::from_utf8_lossy(bytes));
    let Ok(slot) = StoredSlot::from_json(bytes) else { return false };
    let again = slot.to_json().map(|json| StoredSlot::from_json(&json).is_ok());
    assert!(again.is_ok_and(|readable| readable));
    let _ = (slot.public_key(), slot.public(slot.generation(), false), slot.key());
    // A key file costs no derivation of a passphrase.
    let file = KeyFile::from_bytes([7; 32]);
    if let Ok(Some(opened)) = slot.answers_to(REPOSITORY, &Credential::KeyFile(file), &Pulse::default()) {
        assert!(slot.unseal(REPOSITORY, &opened).is_err(), "a forged slot was opened");
    }
    slot.is_whole()
}

/// What a person types or scans.
fn key_text(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    if let Ok(shares) = Share::find(text) {
        for share in &shares {
            assert!(Share::read(&share.reveal()).is_ok_and(|again| again.set() == share.set() && again.index() == share.index()));
        }
    }
    Passphrase::new(text).credential().is_ok()
}

/// Varint of the frames' length, the content before the seal of a piece's tail; or its name.
fn log_piece(bytes: &[u8]) -> bool {
    if let Some((stream, start, end)) = std::str::from_utf8(bytes).ok().and_then(parse_name) {
        assert!(start < end, "{stream}");
        return true;
    }
    let mut reader = Reader::new(bytes);
    let Ok(frames_len) = reader.varint() else { return false };
    let Ok((label, directory)) = decode_log_body(reader.rest(), frames_len) else { return false };
    check_directory(&directory);
    serde_json::from_slice::<Label>(&label).is_ok()
}

/// The content of a record of packs that were rewritten.
fn moved(bytes: &[u8]) -> bool {
    let Ok(record) = MovedRecord::decode(bytes) else { return false };
    let again = MovedRecord::decode(&record.encode()).map(|again| (again.targets, again.sources));
    assert_eq!(again.as_ref(), Ok(&(record.targets, record.sources)));
    true
}

/// Entries of the retention ledger, a line each.
fn ledger(bytes: &[u8]) -> bool {
    ledger::parse(bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()))
}

/// What writers and collectors leave for each other: a session, or tombstones.
fn collection(bytes: &[u8]) -> bool {
    let session = SessionObject::decode(bytes);
    if let Ok(session) = &session {
        let again = serde_json::to_vec(session).map(|json| SessionObject::decode(&json).is_ok());
        assert!(again.is_ok_and(|readable| readable));
    }
    let tombstones = decode_tombstones(bytes);
    if let Some(packs) = &tombstones {
        assert_eq!(packs.iter().flat_map(|pack| pack.0).collect::<Vec<u8>>(), bytes, "one form only");
    }
    session.is_ok() || tombstones.is_some_and(|packs| !packs.is_empty())
}

/// What this machine keeps for itself: the dates of locks, what it has seen, what packs are sealed under, the list of its index, facts of logs.
fn local(bytes: &[u8]) -> bool {
    let month = Duration::from_hours(720);
    let lock = object_lock(LockMode::Governance, month, month, month);
    let known = std::str::from_utf8(bytes).ok().and_then(|text| Known::parse(text, &lock));
    if let Some(known) = &known {
        assert_eq!(Known::parse(&known.text(&lock), &lock).as_ref(), Some(known));
    }
    let segments = index::decode_segments(bytes);
    if let Some(segments) = &segments {
        for segment in segments {
            let _ = segment.packs();
        }
        let again = serde_json::to_vec(segments).ok().and_then(|json| index::decode_segments(&json));
        assert_eq!(again.as_ref(), Some(segments));
    }
    let others = [
        serde_json::from_slice::<SeenLedger>(bytes).is_ok(),
        serde_json::from_slice::<Remembered>(bytes).is_ok(),
        serde_json::from_slice::<KnownGenerations>(bytes).is_ok(),
        decode_known(bytes).is_ok(),
    ];
    known.is_some() || segments.is_some() || others.contains(&true)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use chrono::Utc;

    use super::*;
    use crate::entry::{Entry, EntryKind, Layout};
    use crate::id::{Name, ReportId, SnapshotId};
    use crate::repo::format::ChunkId;
    use crate::repo::frame::{Encoder, Profile, make_patch};
    use crate::repo::index::IndexedPack;
    use crate::repo::keys::{Lock, split_shares};
    use crate::repo::moved::{MovedFrame, MovedPack};
    use crate::repo::pack::{ChunkEntry, PackBuilder};
    use crate::repo::snapshot::{SourceRecord, Stats, TreeRoot};
    use crate::repo::tree::{Chunk, Content, NodeRef, Place, Record, Stored};
    use crate::repo::{Decision, Hold, ReportKind, log};

    fn chunk(slot: u32) -> ChunkEntry {
        ChunkEntry { id: ChunkId([slot as u8; 16]), len: 100, base: None }
    }

    fn pack() -> PackRef {
        PackRef { id: PackId([3; 32]), len: 5000, directory_len: 300 }
    }

    fn list() -> Vec<u8> {
        let place = |frame| Place { pack: pack(), frame, slot: 1 };
        encode_list(
            &[
                NodeRef { id: ChunkId([1; 16]), stretch: false, place: place(0) },
                NodeRef { id: ChunkId([2; 16]), stretch: true, place: place(4) },
            ],
            |p| p,
        )
    }

    fn directory_of(kind: PackKind) -> Vec<u8> {
        let mut builder = PackBuilder::new(keys(), REPOSITORY, kind, Vec::new()).unwrap();
        builder.push(Encoding::Raw, &[5; 300], vec![chunk(1), chunk(2), chunk(3)]).unwrap();
        builder.push(Encoding::Zstd, &[6; 50], vec![ChunkEntry { len: 7, ..chunk(4) }, chunk(5)]).unwrap();
        let delta = ChunkEntry { base: Some((ChunkId([9; 16]), 40)), ..chunk(6) };
        builder.push(Encoding::Delta, &[6; 40], vec![delta]).unwrap();
        builder.finish(keys()).unwrap().directory.encode()
    }

    /// The frames of [`directory_of`], with their tags.
    const FRAMES: u64 = 300 + 50 + 40 + 3 * 16;

    fn a_node() -> Vec<u8> {
        let place = |slot| Place { pack: pack(), frame: 2, slot };
        let full = |slot: u32| Chunk { id: ChunkId([slot as u8; 16]), len: 8192, stored: Stored::Full(place(slot)) };
        let delta = Chunk { stored: Stored::Delta { patch: place(7), base: place(1) }, ..full(9) };
        let chunks =
            vec![full(0), full(1), Chunk { id: ChunkId::default(), len: 8192, stored: Stored::Zero }, delta, Chunk { len: 77, ..full(2) }];
        let entry = |path: &str, kind| Entry {
            path: path.into(),
            kind,
            mode: 0o644,
            uid: 1000,
            gid: 0,
            mtime_ns: -7,
            stamp: vec![1, 2, 3],
            xattrs: vec![(b"user.a".to_vec(), b"b".to_vec())],
        };
        let mut encoder = NodeEncoder::new();
        encoder.record(&Record::Entry { entry: entry("", EntryKind::Directory), content: Content::None });
        encoder.record(&Record::Stretch(chunks.clone()));
        let file = |size, layout| EntryKind::File { size: Some(size), layout };
        encoder.record(&Record::Entry { entry: entry("a", file(9, Layout::Pages(8192))), content: Content::Stretches(1) });
        encoder.record(&Record::Entry { entry: entry("b/c", file(9, Layout::Content)), content: Content::Inline(chunks) });
        encoder.record(&Record::Entry { entry: entry("d", EntryKind::Symlink { target: b"../x".to_vec() }), content: Content::None });
        encoder.record(&Record::Entry { entry: entry("e", EntryKind::Hardlink { target: b"a".to_vec() }), content: Content::None });
        encoder.record(&Record::Entry { entry: entry("f", EntryKind::Fifo), content: Content::None });
        encoder.finish(|p| p)
    }

    fn a_manifest() -> Vec<u8> {
        let name = Name::new("crm").unwrap();
        let now = chrono::DateTime::from_timestamp(1_790_000_000, 0).unwrap();
        let tree = TreeRoot { depth: 1, nodes: hex::encode(list()), ids: None };
        let source = SourceRecord {
            name: name.clone(),
            kind: "sqlite".into(),
            entries: 3,
            bytes: 99,
            finish: serde_json::json!({ "consistency": { "a": 1.5 } }),
            tree,
        };
        let copied_from = crate::repo::CopiedFrom {
            repository: REPOSITORY.to_string(),
            snapshot: SnapshotId::generate(now),
            copied_at: now,
            fingerprint_key: hex::encode([1; 32]),
            stands_for: None,
            owed: Vec::new(),
            beside: Vec::new(),
            proven_at: Some(now),
            replaces: Some(SnapshotId::generate(now)),
            replaces_signature: Some(hex::encode([2; 64])),
            unproven: None,
        };
        let manifest = Manifest {
            id: SnapshotId::generate(now),
            plan: name,
            host: "host".into(),
            started: now,
            time: now,
            parents: vec![crate::repo::Parent { id: SnapshotId::generate(now), hash: "ab".repeat(32) }],
            sources: vec![source],
            stats: Stats::default(),
            tags: vec!["t".into()],
            program: "0.1.0".into(),
            copied_from: Some(copied_from),
        };
        serde_json::to_vec(&manifest).unwrap()
    }

    fn some_records() -> Vec<Vec<u8>> {
        let now = chrono::DateTime::from_timestamp(1_790_000_000, 0).unwrap();
        let report = ReportRecord {
            id: ReportId::generate(now),
            kind: ReportKind::Verify,
            time: now,
            plan: Some("crm".into()),
            snapshots: vec![SnapshotId::generate(now)],
            passed: true,
            document: serde_json::json!({ "percent": 10 }),
        };
        let gap = log::Gap { stream: 1, from: 5, to: 9, reason: "lost".into(), noticed_at: now, unreadable: false };
        let format = FormatObject { format: "lifeboat repository".into(), version: 1, id: REPOSITORY, created: now };
        let next = keys().next_generation(2, false);
        vec![
            serde_json::to_vec(&report).unwrap(),
            serde_json::to_vec(&gap).unwrap(),
            serde_json::to_vec(&format).unwrap(),
            serde_json::to_vec(&next.marker(REPOSITORY, now).unwrap()).unwrap(),
            // Signed with keys of another run: what stands in the corpus opens without its signature only.
            report::encode(&writer(), &ReportRecord { id: REPORT_KEY["reports/".len()..].parse().unwrap(), ..report }).unwrap(),
            keyring::encode_event(&writer(), &an_event(now)).unwrap(),
            keys().create_plan_key(REPOSITORY, "crm", 0x8000, now).unwrap(),
        ]
    }

    /// Keys that sign nothing.
    fn writer() -> Keys {
        let file = KeyFile::from_bytes([9; 32]);
        let slot = StoredSlot::create(keys(), REPOSITORY, Role::Writer, "", &Lock::KeyFile(&file), Utc::now()).unwrap();
        let opened = slot.answers_to(REPOSITORY, &Credential::KeyFile(file), &crate::event::Pulse::default()).unwrap().unwrap();
        slot.unseal(REPOSITORY, &opened).unwrap()
    }

    fn an_event(now: chrono::DateTime<Utc>) -> KeyEvent {
        let text = |text: &str| text.to_owned();
        let id = text(&EVENT_KEY["key-events/".len()..]);
        let removed = vec![text("0123456789abcdef")];
        KeyEvent {
            id,
            time: now,
            event: text("remove"),
            host: text("h"),
            by: text("s"),
            detail: text("d"),
            removed,
            made: vec![text("keys/plan-8000")],
            signed: None,
        }
    }

    /// The ids of a volume of the ledger, and its records: with all that a record may have, and with as little.
    fn some_removed() -> Vec<Vec<u8>> {
        let now = chrono::DateTime::from_timestamp(1_790_000_000, 7).unwrap();
        let mut ids: Vec<SnapshotId> = (0..3).map(|_| SnapshotId::generate(now)).collect();
        ids.sort_unstable();
        let parent = |id, hash: &str| crate::repo::Parent { id, hash: hash.to_owned() };
        let whole = crate::repo::RemovedSnapshot {
            id: ids[1],
            plan: Name::new("crm").unwrap(),
            hash: "ab".repeat(32),
            parents: vec![parent(ids[0], &"cd".repeat(32)), parent(ids[0], ""), parent(ids[0], "no hash")],
            removed_at: now,
            reason: "the rules".into(),
            logs: vec![Name::new("db").unwrap()],
        };
        let least = crate::repo::RemovedSnapshot {
            id: ids[2],
            hash: String::new(),
            parents: vec![],
            logs: vec![],
            reason: String::new(),
            ..whole.clone()
        };
        let mut records = Vec::new();
        [whole, least].iter().for_each(|snapshot| removed::encode_record(&mut records, snapshot));
        vec![removed::encode_ids(&ids), records]
    }

    /// Some lines that are entries of a ledger, one after the other.
    fn some_entries() -> Vec<u8> {
        let now = chrono::DateTime::from_timestamp(1_790_000_000, 0).unwrap();
        let id = |seconds: i64| SnapshotId::generate(chrono::DateTime::from_timestamp(seconds, 0).unwrap());
        let (one, two) = (id(1_790_000_001), id(1_790_000_002));
        let hold = |snapshot| Hold { snapshot, until: Some(now), reason: "audit".into(), by: "t".into(), held_at: now };
        let removed = |id| crate::repo::RemovedSnapshot {
            id,
            plan: Name::new("crm").unwrap(),
            hash: "ab".repeat(32),
            parents: vec![crate::repo::Parent { id: two, hash: "cd".repeat(32) }],
            removed_at: now,
            reason: "the rules".into(),
            logs: vec![Name::new("db").unwrap()],
        };
        let decisions = [
            Decision::Hold { hold: hold(one) },
            Decision::Release { snapshot: one, by: "t".into(), reason: "done".into() },
            Decision::Remove { snapshots: vec![removed(one), removed(two)] },
            Decision::Reinstate { snapshots: vec![one], holds: vec![hold(one)], by: "t".into(), reason: "an attack".into() },
            Decision::Pass { reason: "taken over".into() },
        ];
        let (mut lines, mut previous) = (Vec::new(), String::new());
        for (number, decision) in (1..).zip(decisions) {
            let base = (number == 4).then(|| serde_json::json!({ "removed": [removed(one), removed(two)], "holds": [] }));
            let state = (number == 5).then(|| serde_json::json!({ "volumes": [], "logs": { "crm": ["db"] }, "holds": [hold(one)] }));
            let mut entry = serde_json::json!({ "number": number, "previous": previous, "time": now, "host": "h", "decision": decision });
            if let Some(base) = base {
                entry["base"] = base;
            }
            if let Some(state) = state {
                entry["state"] = state;
            }
            let line = entry.to_string();
            previous = blake3::hash(line.as_bytes()).to_hex().to_string();
            lines.extend(line.into_bytes());
            lines.push(b'\n');
        }
        lines
    }

    fn some_local() -> Vec<Vec<u8>> {
        let locks = "lifeboat locks 3 governance 2592000 2592000 2592000\n1790000000\n1795000000 v1 packs/00/00ab\n1795000001 v2 format\n";
        let none = "lifeboat locks 3 governance 2592000 2592000 2592000\n-\n";
        let segments = serde_json::json!([{ "file": "a", "covers": ["b"], "records": 2, "packs": [["ab".repeat(32), 9, 7]] }]);
        let facts =
            serde_json::json!([{ "stretch": [1, 0, 16], "size": 9, "modified": "2026-11-01T00:00:00Z", "sealed_to": 1, "facts": "{}" }]);
        let seen = serde_json::json!({ "number": 7, "hash": "ab".repeat(32) });
        let generation = serde_json::json!({ "generation": 2, "name": "cd" });
        let packs = serde_json::json!({ "abcd": { "1": 900, "32768": 5 } });
        let json = [segments, facts, seen, generation, packs].map(|value| value.to_string().into_bytes());
        [vec![locks.into(), none.into()], json.to_vec()].concat()
    }

    /// What writers write, for each parser: with LIFEBOAT_WRITE_SEEDS it becomes the beginning of the corpora.
    fn seeds() -> Vec<(&'static str, Vec<Vec<u8>>)> {
        let mut wire = vec![0, 0x80, 0x01, 1, 0x7f, 2, 3, 1, 2, 3, 3, 1, 1, 4];
        wire.extend([9; 16]);
        wire.extend([11, 0]);
        let directory = |kind: u8| {
            let mut bytes = vec![kind];
            put_varint(&mut bytes, FRAMES);
            bytes.extend(directory_of(if kind == 2 { PackKind::Nodes } else { PackKind::Data }));
            bytes
        };
        let text = b"a frame that repeats, a frame that repeats, a frame that repeats".repeat(4);
        let mut frame = vec![1];
        put_varint(&mut frame, text.len() as u64);
        let mut encoder = Encoder::new(Profile::General).unwrap();
        frame.extend(encoder.encode(&text).unwrap().1);
        let mut patch = Vec::new();
        put_blob(&mut patch, &text);
        put_varint(&mut patch, text.len() as u64);
        patch.extend(make_patch(&text, &text, 3).unwrap());
        let indexed = IndexedPack { id: PackId([8; 32]), kind: PackKind::Nodes, len: 700, directory_len: 90, prefixes: vec![1, u64::MAX] };
        let file = KeyFile::from_bytes([9; 32]);
        let recipient = crate::repo::Recipient::generate();
        let slot =
            |lock: &Lock<'_>| StoredSlot::create(keys(), REPOSITORY, Role::Writer, "a label", lock, Utc::now()).unwrap().to_json().unwrap();
        let shares = split_shares(&[4; 32], 2, 3).unwrap();
        let texts = [
            file.reveal().to_string(),
            recipient.reveal().to_string(),
            "just words".to_owned(),
            format!("{}\n{}", *shares[0].reveal(), *shares[2].reveal()),
        ];
        let label = Label {
            plan: Name::new("crm").unwrap(),
            source: Name::new("db").unwrap(),
            content: "ab".repeat(32),
            sealed: "cd".repeat(32),
            facts: serde_json::json!({ "timeline": 1 }),
        };
        let mut piece = Vec::new();
        put_varint(&mut piece, FRAMES);
        put_blob(&mut piece, &serde_json::to_vec(&label).unwrap());
        piece.extend(directory_of(PackKind::Log));
        let mut rewritten = MovedRecord::default();
        rewritten.targets = vec![(pack(), PackKind::Data), (PackRef { id: PackId([4; 32]), ..pack() }, PackKind::Nodes)];
        let mut moved = MovedPack::new(PackId([5; 32]), 3);
        moved.frames[1] = MovedFrame::Whole { target: 1, frame: 300 };
        moved.frames[2] = moved.part(0, 2, 130, &[true, false, true].repeat(5));
        rewritten.sources = vec![moved];
        vec![
            ("wire", vec![wire]),
            ("pack_directory", vec![directory(1), directory(2)]),
            ("pack_tail", vec![[&[0, 1, 0, 0][..], PackId([7; 32]).key().as_bytes()].concat()]),
            ("frame", vec![frame, vec![0, 3, 1, 2, 3]]),
            ("patch", vec![patch]),
            ("node", vec![a_node()]),
            ("node_list", vec![list()]),
            ("index", vec![index::encode(&[indexed])]),
            ("manifest", vec![a_manifest()]),
            ("records", some_records()),
            ("sealed", vec![[&[2, 0, 0, 0][..], &a_manifest()].concat()]),
            ("key_slot", vec![slot(&Lock::KeyFile(&file)), slot(&Lock::Recipient(&recipient.public_text()))]),
            ("key_text", texts.into_iter().map(String::into_bytes).collect()),
            ("log_piece", vec![piece, b"0000000000000001-0000000000000000-0000000000000010".to_vec()]),
            ("moved", vec![rewritten.encode(), MovedRecord::default().encode()]),
            ("ledger", vec![some_entries()]),
            ("removed", some_removed()),
            (
                "collection",
                vec![
                    br#"{"manifest":"snapshots/ab/01m3256as03x0grz41yb8mzwab","host":"h","process":7,"started":"2026-11-01T00:00:00Z"}"#
                        .to_vec(),
                    vec![7; 64],
                ],
            ),
            ("local", some_local()),
        ]
    }

    #[test]
    fn what_writers_write_is_accepted() {
        let seeds = seeds();
        assert_eq!(seeds.iter().map(|(name, _)| *name).collect::<Vec<_>>(), PARSERS.map(|(name, _)| name));
        for ((name, inputs), (_, parser)) in seeds.iter().zip(PARSERS) {
            for (number, bytes) in inputs.iter().enumerate() {
                assert!(parser(bytes), "{name} {number}");
                if std::env::var_os("LIFEBOAT_WRITE_SEEDS").is_some() {
                    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
                    std::fs::create_dir_all(&folder).unwrap();
                    std::fs::write(folder.join(format!("good-{number}")), bytes).unwrap();
                }
            }
        }
    }
}

//! Copies: the same content under other keys, little work for little change, and nothing committed that is not whole.

use super::*;
use crate::id::SnapshotId;
use crate::store::Verb;
use crate::store::faults::{Effect, Rule};

/// Two repositories with keys of their own.
struct Pair {
    from: Bench,
    to: Bench,
}

impl Pair {
    fn new() -> Self {
        Self { from: Bench::new(), to: Bench::new() }
    }

    fn copy(&self, manifest: &Manifest, before: Option<(&Manifest, &Manifest)>) -> Result<(Committed, CopyStats)> {
        self.copy_onto(&self.to.open(), manifest, before)
    }

    fn copy_onto(&self, to: &Repository, manifest: &Manifest, before: Option<(&Manifest, &Manifest)>) -> Result<(Committed, CopyStats)> {
        let before = before.map(|(original, copy)| Predecessor { original, copy });
        to.copy_from(&self.from.open(), manifest, before, CopyNotes::default(), Utc::now(), &Silent, &Cancel::default(), |_| Ok(()))
    }

    /// What the copies hold is what the originals hold, and both are sound.
    fn check(&self, original: &Manifest, copy: &Manifest) {
        assert_eq!(restore(&self.to.open(), copy).unwrap(), restore(&self.from.open(), original).unwrap());
        assert_eq!(stored_entries(&self.to.open(), copy), stored_entries(&self.from.open(), original));
    }

    fn verify(&self) {
        let found = self.to.open().verify(VerifyDepth::Data { percent: 100, run: 0 }, &Silent, &Cancel::default()).unwrap();
        let findings: Vec<_> = found.findings.iter().map(|f| (&f.object, &f.message)).collect();
        assert!(findings.is_empty(), "{findings:?}");
    }
}

#[test]
fn a_copy_is_the_same_content_under_other_keys() {
    let pair = Pair::new();
    let mut files = nested();
    let first = pair.from.backup(&files);
    let (copied, stats) = pair.copy(&first, None).unwrap();
    let copy = copied.manifest;
    pair.check(&first, &copy);
    let origin = copy.copied_from.clone().unwrap();
    assert_eq!((origin.repository, origin.snapshot), (pair.from.open().id().to_string(), first.id));
    assert_eq!(copy.foreign_fingerprint_key().unwrap(), Some(pair.from.open().fingerprint_key()));
    assert_ne!(pair.from.open().fingerprint_key(), pair.to.open().fingerprint_key());
    assert_eq!((copy.time, &copy.host, copy.started), (first.time, &first.host, first.started));
    assert_ne!(node_ids(&pair.to.open(), &copy), node_ids(&pair.from.open(), &first), "ids have keys");
    assert!(stats.bytes_read < first.sources[0].bytes, "zeros are not read, and what is there twice is read once");
    // Unchanged: no data is read, nothing is packed.
    let second = pair.from.backup(&files);
    let packs = pair.to.keys("packs/");
    let (again, stats) = pair.copy(&second, Some((&first, &copy))).unwrap();
    assert_eq!((stats, pair.to.keys("packs/")), (CopyStats::default(), packs));
    pair.check(&second, &again.manifest);
    // One page more, one page other: two pages are read.
    let file = files.iter_mut().find(|file| file.0 == "base/1/16384").unwrap();
    file.2 = b"other stamp";
    file.3[8192 * 300..8192 * 301].copy_from_slice(&noise(77, 8192));
    file.3.extend_from_slice(&noise(78, 8192));
    let third = pair.from.backup(&files);
    let (third_copy, stats) = pair.copy(&third, Some((&second, &again.manifest))).unwrap();
    assert_eq!(stats.bytes_read, 2 * 8192);
    pair.check(&third, &third_copy.manifest);
    // Without a snapshot to lean on everything is read, and nothing is stored twice.
    let before = pair.to.keys("packs/").len();
    let (alone, stats) = pair.copy(&third, None).unwrap();
    assert!(stats.bytes_read > 3_000_000);
    assert_eq!(alone.manifest.stats.chunks_new, 0);
    assert!(pair.to.keys("packs/").len() <= before + 1, "at most new nodes");
    pair.check(&third, &alone.manifest);
    pair.verify();
}

#[test]
fn frames_that_are_new_and_whole_are_not_compressed_again() {
    let pair = Pair::new();
    let first = pair.from.backup(&[("db", Layout::Pages(8192), b"", pages(5, 3000))]);
    let (copied, _) = pair.copy(&first, None).unwrap();
    let (from, to) = (first.stats.bytes_stored, copied.manifest.stats.bytes_stored);
    assert!(to.abs_diff(from) < from / 100, "{from} bytes became {to}");
    assert_eq!(copied.manifest.stats.chunks_new, first.stats.chunks_new);
}

#[test]
fn what_is_damaged_is_noticed_and_never_copied() {
    let pair = Pair::new();
    let first = pair.from.backup(&nested());
    for key in pair.from.keys("packs/") {
        let Bench { runtime, store, .. } = &pair.from;
        let whole = runtime.block_on(store.get(&key)).unwrap();
        for at in [40, whole.len() / 2, whole.len() - 200] {
            runtime.block_on(faults::flip_byte(store, &key, at)).unwrap();
            match pair.copy(&first, None) {
                Err(error) => assert_eq!(error.kind(), Kind::Damaged, "{key} at {at}: {error:?}"),
                // A byte between frames, which nobody reads.
                Ok((copied, _)) => pair.check(&first, &copied.manifest),
            }
            runtime.block_on(faults::replace(store, &key, whole.clone())).unwrap();
        }
    }
    let (copied, _) = pair.copy(&first, None).unwrap();
    pair.check(&first, &copied.manifest);
    pair.verify();
}

#[test]
fn a_copy_that_fails_anywhere_commits_nothing_and_the_next_one_converges() {
    let pair = Pair::new();
    let first = pair.from.backup(&sample());
    let mut n = 0;
    loop {
        n += 1;
        let faults = Faults::new();
        faults.add(Rule::on(Verb::Create).nth(n).then(Effect::Fail(Kind::Failed)));
        let to = pair.to.open_on(Store::with_faults(pair.to.store.clone(), faults));
        let before = pair.to.keys("snapshots/").len();
        match pair.copy_onto(&to, &first, None) {
            Ok((copied, _)) => {
                pair.check(&first, &copied.manifest);
                break;
            }
            Err(_) => assert_eq!(pair.to.keys("snapshots/").len(), before, "create {n} failed and something was committed"),
        }
        assert!(n < 100);
    }
    assert!(n > 4, "session, packs, index and manifest were all hit");
    pair.verify();
}

#[test]
fn a_tree_that_reads_back_otherwise_is_not_committed() {
    let pair = Pair::new();
    let first = pair.from.backup(&nested());
    let faults = Faults::new();
    faults.add(Rule::on(Verb::GetRange).below("packs/").always().then(Effect::Flip(33)));
    let to = pair.to.open_on(Store::with_faults(pair.to.store.clone(), faults));
    assert_eq!(pair.copy_onto(&to, &first, None).unwrap_err().kind(), Kind::Damaged);
    assert!(pair.to.keys("snapshots/").is_empty());
}

#[test]
fn copies_need_a_reader_there_and_a_writer_here() {
    let pair = Pair::new();
    let first = pair.from.backup(&nested());
    let open_as = |bench: &Bench, role: Role| {
        let key = Passphrase::new(format!("the passphrase of a {role}"));
        bench.open().add_key("host", role, &key, Utc::now()).unwrap();
        Repository::open(bench.store.clone(), bench.runtime.handle().clone(), &key, &bench.options()).unwrap()
    };
    let copy = |from: &Repository, to: &Repository| {
        to.copy_from(from, &first, None, CopyNotes::default(), Utc::now(), &Silent, &Cancel::default(), |_| Ok(()))
            .map(|(committed, _)| committed.manifest)
    };
    let writer = open_as(&pair.to, Role::Writer);
    assert_eq!(copy(&open_as(&pair.from, Role::Writer), &writer).unwrap_err().kind(), Kind::WrongKey);
    assert_eq!(copy(&pair.from.open(), &open_as(&pair.to, Role::Maintainer)).unwrap_err().kind(), Kind::WrongKey);
    assert_eq!(copy(&pair.from.open(), &pair.from.open()).unwrap_err().kind(), Kind::Usage);
    let copied = copy(&pair.from.open(), &writer).unwrap();
    pair.check(&first, &copied);
}

#[test]
fn random_histories_come_over_whole_whatever_was_copied_before() {
    let seed = u64::from_le_bytes(rand_seed());
    println!("seed {seed}");
    let random = noise(seed, 4096);
    let mut at = 0;
    let mut next = |below: usize| {
        at += 2;
        usize::from(u16::from_le_bytes([random[at], random[at + 1]])) % below
    };
    let pair = Pair::new();
    let mut files = nested();
    let mut copies: Vec<(Manifest, Manifest)> = Vec::new();
    for round in 0..8u64 {
        for _ in 0..next(4) {
            let number = next(files.len());
            let (_, _, stamp, bytes) = &mut files[number];
            *stamp = b"";
            match next(3) {
                0 => bytes.extend(noise(seed ^ round, 8192 * next(200))),
                1 => bytes.truncate(bytes.len() / 2),
                _ => {
                    let place = next(bytes.len().max(1)).min(bytes.len().saturating_sub(1));
                    if let Some(byte) = bytes.get_mut(place) {
                        *byte ^= 0x55;
                    }
                }
            }
        }
        let original = pair.from.backup(&files);
        let before = if copies.is_empty() { None } else { copies.get(next(copies.len() + 1)) };
        let (copied, _) = pair.copy(&original, before.map(|(a, b)| (a, b))).unwrap();
        pair.check(&original, &copied.manifest);
        copies.push((original, copied.manifest));
    }
    pair.verify();
}

fn rand_seed() -> [u8; 8] {
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).unwrap();
    seed
}

#[test]
fn a_log_piece_is_copied_with_its_facts() {
    let pair = Pair::new();
    let source = Name::new("database").unwrap();
    let (from, to) = (pair.from.open().log(&plan(), &source), pair.to.open().log(&plan(), &source));
    let bytes = noise(3, 2_000_000);
    let piece = from.append(1, 100, 100 + bytes.len() as u64, &serde_json::json!({ "who": "me" }), &bytes).unwrap().piece;
    assert!(from.copy_piece(&piece, &to).unwrap().new);
    assert!(!from.copy_piece(&piece, &to).unwrap().new);
    let there = to.pieces().unwrap();
    assert_eq!((to.read(&there[0]).unwrap(), to.facts(&there[0]).unwrap()), (bytes, serde_json::json!({ "who": "me" })));
}

/// Puts a manifest there as somebody does who has a writer key and another program.
fn plant(bench: &Bench, by: &Repository, manifest: &Manifest) {
    let key = by.manifest_key(manifest);
    let sealed = by.inner.seal_object(ObjectKind::Manifest, &key, &serde_json::to_vec(manifest).unwrap()).unwrap();
    bench.runtime.block_on(bench.store.create(&key, sealed.into())).unwrap();
}

#[test]
fn a_writer_cannot_say_that_its_snapshot_stands_in_the_place_of_a_damaged_one() {
    let pair = Pair::new();
    let victim = pair.from.backup(&[("db", Layout::Pages(8192), b"", noise(5, 8192 * 200))]);
    let kept = pair.copy(&victim, None).unwrap().0.manifest;
    let other = pair.from.backup(&[("junk", Layout::Content, b"", noise(6, 300_000))]);
    let words = Passphrase::new("some words of a writer");
    pair.from.open().add_key("words", Role::Writer, &words, Utc::now()).unwrap();
    let writer = Repository::open(pair.from.store.clone(), pair.from.runtime.handle().clone(), &words, &pair.from.options()).unwrap();
    let bring_back = |to: &Repository| {
        to.bring_back(&pair.to.open(), &kept, victim.id, Some(&victim), Utc::now(), &Silent, &Cancel::default(), |_| Ok(()))
    };
    assert_eq!(bring_back(&writer).unwrap_err().kind(), Kind::WrongKey);
    // Not signed, signed with nonsense.
    for signature in [None, Some("zz".to_owned()), Some(hex::encode([3; 64]))] {
        let mut forged = Manifest { id: SnapshotId::generate(Utc::now()), parents: Vec::new(), ..other.clone() };
        let mut from = kept.copied_from.clone().unwrap();
        (from.replaces, from.replaces_signature) = (Some(victim.id), signature);
        forged.copied_from = Some(from);
        plant(&pair.from, &writer, &forged);
        let read = pair.from.open().manifest(forged.id).unwrap();
        assert_eq!((read.replaces(), read.copied_from.unwrap().unproven), (None, Some(victim.id)));
    }
    let packs: Vec<String> = pair.from.keys("packs/");
    let needed = packs.iter().max_by_key(|key| pair.from.runtime.block_on(pair.from.store.get(key)).unwrap().len()).unwrap();
    pair.from.runtime.block_on(faults::flip_byte(&pair.from.store, needed, 5000)).unwrap();
    let verify = || {
        let role = pair.from.open();
        role.verify(VerifyDepth::Data { percent: 100, run: 0 }, &Silent, &Cancel::default()).unwrap()
    };
    let found = verify();
    assert!(found.findings.iter().any(|finding| finding.snapshots == [victim.id]), "{found:?}");
    assert_eq!(found.unproven.iter().map(|(_, of)| *of).collect::<Vec<_>>(), [victim.id; 3]);
    // Nor does it hide that a manifest cannot be read.
    let key = pair.from.open().manifest_key(&victim);
    let sealed = pair.from.runtime.block_on(pair.from.store.get(&key)).unwrap();
    pair.from.runtime.block_on(faults::flip_byte(&pair.from.store, &key, 90)).unwrap();
    assert_eq!(pair.from.open().manifests(None).unwrap_err().kind(), Kind::Damaged);
    assert_eq!(pair.from.open().sound_manifests(None).unwrap().1.len(), 1);
    pair.from.runtime.block_on(faults::replace(&pair.from.store, &key, sealed)).unwrap();
    // A reader who has the content in hand says it, and everybody believes it.
    let proven = bring_back(&pair.from.open()).unwrap().0.manifest;
    assert_eq!(restore(&pair.from.open(), &proven).unwrap(), restore(&pair.to.open(), &kept).unwrap());
    let words = || Repository::open(pair.from.store.clone(), pair.from.runtime.handle().clone(), &words, &pair.from.options()).unwrap();
    for repository in [pair.from.open(), words()] {
        assert_eq!(repository.manifest(proven.id).unwrap().replaces(), Some(victim.id));
    }
    // The same signature says nothing of another snapshot, nor of other content.
    for (id, sources) in [(SnapshotId::generate(Utc::now()), &proven.sources), (proven.id, &other.sources)] {
        let forged = Manifest { id, sources: sources.clone(), ..proven.clone() };
        let key = writer.manifest_key(&forged);
        pair.from.runtime.block_on(pair.from.store.delete(&key)).unwrap();
        plant(&pair.from, &writer, &forged);
        assert_eq!(pair.from.open().manifest(id).unwrap().replaces(), None);
    }
}

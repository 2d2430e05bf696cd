//! The repository as a whole: what goes in comes out, what is damaged is found, what is interrupted is reused.

use std::collections::BTreeMap;
use std::sync::Mutex;

use chrono::Utc;
use proptest::prelude::*;

use super::*;
use crate::entry::{Entry, EntryKind, Layout, Order};
use crate::event::{Cancel, Silent};
use crate::id::Name;
use crate::repo::seen::SeenLedger;
use crate::store::Verb;
use crate::store::faults::{self, Effect, Faults, Rule, When};

mod copy;
pub(super) mod keys;
mod ledger;
mod log;

pub(super) struct Bench {
    pub(super) runtime: tokio::runtime::Runtime,
    pub(super) store: Store,
    cache: tempfile::TempDir,
}

/// One file of a test tree: path, layout, stamp, bytes.
pub(super) type TestFile = (&'static str, Layout, &'static [u8], Vec<u8>);

pub(super) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// Compressible pages, some of them zero.
pub(super) fn pages(seed: u64, count: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for page in 0..count as u64 {
        if page % 7 == 3 {
            bytes.extend_from_slice(&[0; 8192]);
        } else {
            bytes.extend(noise(seed * 100_000 + page, 512).into_iter().cycle().take(8192));
        }
    }
    bytes
}

pub(super) fn passphrase() -> Passphrase {
    Passphrase::new("correct horse battery staple")
}

pub(super) fn plan() -> Name {
    Name::new("crm").unwrap()
}

pub(super) fn file_entry(path: &str, layout: Layout, stamp: &[u8], size: usize) -> Entry {
    let kind = EntryKind::File { size: Some(size as u64), layout };
    Entry { path: path.into(), kind, mode: 0o640, uid: 1, gid: 2, mtime_ns: -5, stamp: stamp.to_vec(), xattrs: vec![] }
}

impl Bench {
    pub(super) fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let bench = Self { runtime, store: Store::in_memory(), cache: tempfile::tempdir().unwrap() };
        Repository::init(bench.store.clone(), bench.runtime.handle().clone(), &passphrase(), &bench.options(), Utc::now()).unwrap();
        bench
    }

    pub(super) fn options(&self) -> OpenOptions {
        OpenOptions { cache: Some(self.cache.path().to_owned()), workers: 2 }
    }

    pub(super) fn open(&self) -> Repository {
        self.open_on(self.store.clone())
    }

    pub(super) fn open_on(&self, store: Store) -> Repository {
        let repository = Repository::open(store, self.runtime.handle().clone(), &passphrase(), &self.options()).unwrap();
        // Some tests put the store back to what it held before, on purpose.
        if self.keys("retention/").is_empty() && SeenLedger::read(&repository.inner.cache.path).is_some() {
            repository.forget_ledger().unwrap();
        }
        repository
    }

    /// Like another process on another machine: with a cache of its own.
    pub(super) fn open_apart(&self, store: Store) -> Repository {
        let options = OpenOptions { cache: None, workers: 2 };
        Repository::open(store, self.runtime.handle().clone(), &passphrase(), &options).unwrap()
    }

    pub(super) fn backup(&self, files: &[TestFile]) -> Manifest {
        backup(&self.open(), files).unwrap()
    }

    pub(super) fn keys(&self, prefix: &str) -> Vec<String> {
        self.runtime.block_on(self.store.list(prefix)).unwrap().into_iter().map(|o| o.key).collect()
    }
}

pub(super) fn backup(repository: &Repository, files: &[TestFile]) -> Result<Manifest> {
    backup_entries(repository, tree_of(files), Order::Tree)
}

/// The same in an order that the seed decides.
fn backup_shuffled(repository: &Repository, files: &[TestFile], seed: u64) -> Result<Manifest> {
    backup_entries(repository, shuffled(tree_of(files), seed), Order::Any)
}

/// Entries and their bytes in tree order: the root folder, the files, and the folders that they are in.
fn tree_of(files: &[TestFile]) -> Vec<(Entry, Vec<u8>)> {
    let folder = |path: &str| Entry { kind: EntryKind::Directory, ..file_entry(path, Layout::Content, b"", 0) };
    let mut entries = vec![(folder(""), Vec::new())];
    for (path, layout, stamp, bytes) in files {
        for (at, _) in path.match_indices('/') {
            if !entries.iter().any(|(e, _)| e.path == path.as_bytes()[..at]) {
                entries.push((folder(&path[..at]), Vec::new()));
            }
        }
        entries.push((file_entry(path, *layout, stamp, bytes.len()), bytes.clone()));
    }
    entries
}

fn shuffled<T>(mut items: Vec<T>, seed: u64) -> Vec<T> {
    let random = noise(seed, items.len() * 8);
    for at in (1..items.len()).rev() {
        let number = u64::from_le_bytes(random[at * 8..at * 8 + 8].try_into().unwrap());
        items.swap(at, number as usize % (at + 1));
    }
    items
}

fn backup_entries(repository: &Repository, entries: Vec<(Entry, Vec<u8>)>, order: Order) -> Result<Manifest> {
    Ok(commit_entries(repository, entries, order)?.manifest)
}

fn commit_entries(repository: &Repository, entries: Vec<(Entry, Vec<u8>)>, order: Order) -> Result<Committed> {
    let mut writer = repository.begin(&plan(), Utc::now(), &Cancel::default())?;
    let mut tree = writer.tree(&plan(), "files", order)?;
    for (entry, bytes) in entries {
        if tree.add(entry)? == Added::NeedsContent {
            assert_eq!(tree.content(&mut &bytes[..])?, bytes.len() as u64);
        }
    }
    let record = tree.finish(serde_json::json!({"problems": []}))?;
    writer.commit(vec![record], Utc::now(), vec![], &Silent)
}

/// Entries as they are stored, in stored order.
fn stored_entries(repository: &Repository, manifest: &Manifest) -> Vec<Entry> {
    repository.tree(&manifest.sources[0]).unwrap().map(|entry| entry.unwrap().entry).collect()
}

/// All nodes of the tree of the first source.
pub(super) fn tree_nodes(repository: &Repository, manifest: &Manifest) -> Vec<crate::repo::tree::NodeRef<crate::repo::packs::PackNo>> {
    let tree = &manifest.sources[0].tree;
    crate::repo::nodes::NodeReader::new(&repository.inner).unwrap().leaves(&tree.bytes().unwrap(), tree.depth).unwrap()
}

fn node_ids(repository: &Repository, manifest: &Manifest) -> Vec<ChunkId> {
    tree_nodes(repository, manifest).into_iter().map(|node| node.id).collect()
}

struct Collected(Mutex<BTreeMap<usize, Vec<u8>>>);

impl BlockSink for Collected {
    fn write(&self, file: usize, offset: u64, data: &[u8]) -> Result<()> {
        let mut files = self.0.lock().unwrap();
        let bytes = files.get_mut(&file).unwrap();
        let range = offset as usize..offset as usize + data.len();
        assert!(bytes[range.clone()].iter().all(|b| *b == 0), "delivered twice");
        bytes[range].copy_from_slice(data);
        Ok(())
    }
}

pub(super) fn restore(repository: &Repository, manifest: &Manifest) -> Result<BTreeMap<String, Vec<u8>>> {
    let entries: Vec<StoredEntry> = repository.tree(&manifest.sources[0])?.collect::<Result<_>>()?;
    let wanted: Vec<Wanted<'_>> = entries
        .iter()
        .enumerate()
        .filter(|(_, e)| matches!(e.entry.kind, EntryKind::File { .. }))
        .map(|(file, entry)| Wanted { file, entry })
        .collect();
    let sink = Collected(Mutex::new(wanted.iter().map(|w| (w.file, vec![0; w.entry.size() as usize])).collect()));
    let stats = repository.fetch(&wanted, &sink, &Silent, &Cancel::default())?;
    assert_eq!(stats.bytes_delivered, manifest.sources[0].bytes);
    let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for (number, bytes) in sink.0.into_inner().unwrap() {
        let entry = &entries[number];
        let mut streamed = Vec::new();
        // It may have been removed by retention since.
        let read = repository.open_file(entry, &Cancel::default())?.read_to_end(&mut streamed);
        read.map_err(|error| Error::new(Kind::Damaged, "stream a file").because(error))?;
        assert!(streamed == bytes, "{} differs between fetch and stream", entry.entry.display_path());
        files.insert(entry.entry.display_path(), bytes);
    }
    Ok(files)
}

use std::io::Read as _;

fn expected(files: &[TestFile]) -> BTreeMap<String, Vec<u8>> {
    files.iter().map(|(path, _, _, bytes)| ((*path).to_owned(), bytes.clone())).collect()
}

fn sample() -> Vec<TestFile> {
    vec![
        ("a-empty", Layout::Content, b"", vec![]),
        ("b-small", Layout::Content, b"", b"hello".to_vec()),
        ("c-noise", Layout::Content, b"", noise(1, 3_500_000)),
        ("d-pages", Layout::Pages(8192), b"", pages(2, 700)),
        ("e-odd", Layout::Pages(8192), b"", pages(3, 129)[..1_050_000].to_vec()),
        ("f-zero", Layout::Pages(8192), b"", vec![0; 2_500_000]),
        ("g-twice", Layout::Content, b"", noise(1, 3_500_000)),
    ]
}

#[test]
fn what_goes_in_comes_out_and_an_unchanged_backup_stores_nothing() {
    let bench = Bench::new();
    let files = sample();
    let first = bench.backup(&files);
    assert_eq!(restore(&bench.open(), &first).unwrap(), expected(&files));
    let packs = bench.keys("packs/");
    let second = bench.backup(&files);
    assert_eq!(bench.keys("packs/"), packs, "nothing new was packed");
    assert_eq!(second.stats.chunks_new, 0);
    assert_eq!(second.parents.len(), 1);
    assert_eq!(second.parents[0].id, first.id);
    assert_eq!(restore(&bench.open(), &second).unwrap(), expected(&files));
    assert!(bench.keys("sessions/").is_empty());
    // "c" and "g" are the same bytes: stored once.
    assert!(first.stats.bytes_stored < 3_700_000 + 1_000_000, "{}", first.stats.bytes_stored);
}

#[test]
fn a_changed_page_costs_a_page() {
    let bench = Bench::new();
    let mut files = vec![("db", Layout::Pages(8192), &b""[..], noise(9, 8192 * 4000))];
    bench.backup(&files);
    files[0].3[8192 * 1234..8192 * 1234 + 8192].copy_from_slice(&noise(10, 8192));
    files[0].3.extend_from_slice(&noise(11, 8192));
    let second = bench.backup(&files);
    assert_eq!(second.stats.chunks_new, 2);
    assert!(second.stats.bytes_stored < 3 * 8192 + 12_000, "{}", second.stats.bytes_stored);
    assert_eq!(restore(&bench.open(), &second).unwrap(), expected(&files));
}

#[test]
fn an_equal_stamp_is_not_read_again() {
    let bench = Bench::new();
    let mut files = vec![("a", Layout::Content, &b"stamp"[..], noise(1, 100)), ("b", Layout::Pages(8192), &b"stamp"[..], pages(1, 300))];
    let first = bench.backup(&files);
    files[0].3 = noise(2, 100);
    let second = bench.backup(&files);
    assert_eq!(second.stats.bytes_read, 0);
    assert_eq!(restore(&bench.open(), &second).unwrap(), restore(&bench.open(), &first).unwrap());
}

#[test]
fn the_snapshots_of_many_plans_are_found_in_one_listing_as_each_by_itself() {
    let bench = Bench::new();
    let plans: Vec<Name> = (0..20).map(|number| Name::new(format!("plan{number}")).unwrap()).collect();
    let wanted: Vec<&Name> = plans.iter().collect();
    for plan in plans.iter().take(3).chain([&Name::new("elsewhere").unwrap()]) {
        keys::backup_as(&bench.open(), plan, &[("a", Layout::Content, &b""[..], noise(1, 100))]).unwrap();
    }
    let harmed = bench.open().manifest_key(&bench.open().manifests(Some(&plans[1])).unwrap()[0]);
    bench.runtime.block_on(faults::flip_byte(&bench.store, &harmed, 90)).unwrap();
    let repository = bench.open();
    let ids = |(manifests, lost): &(Vec<Manifest>, Vec<LostManifest>)| {
        (manifests.iter().map(|manifest| manifest.id).collect::<Vec<_>>(), lost.iter().map(|lost| lost.id).collect::<Vec<_>>())
    };
    let together: Vec<_> = repository.sound_manifests_of(&wanted).unwrap().iter().map(|found| ids(found.as_ref().unwrap())).collect();
    let alone: Vec<_> = wanted.iter().map(|plan| ids(&repository.sound_manifests(Some(plan)).unwrap())).collect();
    assert_eq!(together, alone);
    assert_eq!(
        together.iter().map(|(sound, lost)| (sound.len(), lost.len())).take(4).collect::<Vec<_>>(),
        [(1, 0), (0, 1), (1, 0), (0, 0)]
    );
    let few: Vec<_> = repository.sound_manifests_of(&wanted[..2]).unwrap().iter().map(|found| ids(found.as_ref().unwrap())).collect();
    assert_eq!(few, alone[..2]);
    // What cannot be fetched is of its own plan; what cannot be listed is of all.
    let unreadable = repository.manifest_key(&repository.manifests(Some(&plans[0])).unwrap()[0]);
    for some in [&wanted[..], &wanted[..3]] {
        let faults = Faults::new();
        let store = Store::with_faults(bench.store.clone(), faults.clone());
        let away = bench.open_apart(store);
        for verb in [crate::store::Verb::Get, crate::store::Verb::GetRange] {
            faults.add(faults::Rule::on(verb).below(&unreadable).always().then(faults::Effect::Fail(Kind::Failed)));
        }
        let found = away.sound_manifests_of(some).unwrap();
        assert_eq!(found[0].as_ref().unwrap_err().kind(), Kind::Failed);
        assert_eq!(found[1..].iter().map(|found| ids(found.as_ref().unwrap())).collect::<Vec<_>>(), alone[1..some.len()]);
        faults.add(faults::Rule::on(crate::store::Verb::List).below("snapshots/").always().then(faults::Effect::Fail(Kind::Failed)));
        assert_eq!(away.sound_manifests_of(some).unwrap_err().kind(), Kind::Failed);
    }
}

#[test]
fn opening_and_listing_are_not_silent() {
    let bench = Bench::new();
    let plans: Vec<Name> = (0..20).map(|number| Name::new(format!("plan{number}")).unwrap()).collect();
    for plan in &plans {
        keys::backup_as(&bench.open(), plan, &[("a", Layout::Content, &b""[..], noise(1, 100))]).unwrap();
    }
    let pulse = crate::event::Pulse::default();
    let repository = bench.open_apart(bench.store.with_pulse(&pulse));
    let opened = pulse.beats();
    assert!(opened >= 3, "the format, the slots, the turn to derive a key: {opened}");
    let wanted: Vec<&Name> = plans.iter().collect();
    for some in [&wanted[..], &wanted[..3]] {
        let before = pulse.beats();
        assert_eq!(repository.sound_manifests_of(some).unwrap().len(), some.len());
        // Each is listed, looked for in the cache and fetched.
        let beats = usize::try_from(pulse.beats() - before).unwrap();
        assert!(beats >= 3 * some.len(), "{beats} for {}", some.len());
    }
}

/// A tree with folders, large and small files of both layouts, in tree order.
fn nested() -> Vec<TestFile> {
    let mut files: Vec<TestFile> = vec![
        ("base/1/112", Layout::Pages(8192), b"", pages(1, 40)),
        ("base/1/16384", Layout::Pages(8192), b"stamped", pages(2, 700)),
        ("base/1/16384_fsm", Layout::Pages(8192), b"", pages(3, 3)),
        ("base/1/PG_VERSION", Layout::Content, b"", b"15\n".to_vec()),
        ("base/5/112", Layout::Pages(8192), b"", pages(1, 40)),
        ("base/5/noise", Layout::Content, b"stamped", noise(4, 3_300_000)),
        ("base.old", Layout::Content, b"", vec![]),
        ("global/pg_control", Layout::Content, b"", noise(5, 8192)),
        ("zero", Layout::Pages(8192), b"", vec![0; 2_500_000]),
    ];
    // "base.old" comes after what is in "base": a comparison of whole paths would say otherwise.
    files.sort_by(|a, b| crate::entry::tree_order(a.0.as_bytes(), b.0.as_bytes()));
    files
}

#[test]
fn any_order_stores_the_same_tree_and_reuses_it_in_any_other() {
    let files = nested();
    let ordered = Bench::new();
    let reference = ordered.backup(&files);
    for seed in 0..6 {
        let bench = Bench::new();
        let first = backup_shuffled(&bench.open(), &files, seed).unwrap();
        assert_eq!(stored_entries(&bench.open(), &first), stored_entries(&ordered.open(), &reference), "seed {seed}");
        assert!(restore(&bench.open(), &first).unwrap() == expected(&files), "seed {seed}");
        assert_eq!(first.stats.entries, reference.stats.entries);
        // With one worker: of several it is their timing which chunks are compressed together, and whether two that are alike meet on their way.
        let alone = |files: &dyn Fn(&Repository) -> Manifest| {
            let bench = Bench::new();
            let options = OpenOptions { workers: 1, ..bench.options() };
            let repository = Repository::open(bench.store.clone(), bench.runtime.handle().clone(), &passphrase(), &options).unwrap();
            files(&repository).stats.bytes_stored
        };
        let stored = alone(&|repository| backup_shuffled(repository, &files, seed).unwrap());
        let reference_stored = alone(&|repository| backup(repository, &files).unwrap());
        assert!(stored < reference_stored + reference_stored / 50, "seed {seed}: {stored} bytes stored, {reference_stored} in tree order");
        let packs = bench.keys("packs/");
        // In another order, in tree order after any order, and the other way round.
        let again = [
            backup_shuffled(&bench.open(), &files, seed + 100).unwrap(),
            bench.backup(&files),
            backup_shuffled(&bench.open(), &files, seed + 200).unwrap(),
        ];
        for manifest in again {
            assert_eq!(bench.keys("packs/"), packs, "seed {seed}: nothing new was packed");
            assert_eq!(manifest.stats.chunks_new, 0);
            assert_eq!(node_ids(&bench.open(), &manifest), node_ids(&bench.open(), &first));
        }
        let found = bench.open().verify(VerifyDepth::Data { percent: 100, run: 0 }, &Silent, &Cancel::default()).unwrap();
        assert_eq!((found.findings.len(), found.snapshots_sound.len()), (0, 4));
    }
}

#[test]
fn in_any_order_equal_stamps_are_not_read_and_a_changed_page_costs_a_page() {
    let bench = Bench::new();
    let mut files = nested();
    backup_shuffled(&bench.open(), &files, 1).unwrap();
    let large = files.iter().position(|f| f.0 == "base/1/16384").unwrap();
    let before = files[large].3.clone();
    files[large].3 = pages(77, 700);
    let second = backup_shuffled(&bench.open(), &files, 2).unwrap();
    assert_eq!(second.stats.chunks_new, 0, "its stamp says that it did not change");
    files[large].3 = before;
    assert!(restore(&bench.open(), &second).unwrap() == expected(&files));
    files[large].2 = b"another";
    files[large].3[8192 * 300..8192 * 301].copy_from_slice(&noise(10, 8192));
    let third = backup_shuffled(&bench.open(), &files, 3).unwrap();
    assert_eq!(third.stats.chunks_new, 1);
    assert!(third.stats.bytes_stored < 8192 + 12_000, "{}", third.stats.bytes_stored);
    assert!(restore(&bench.open(), &third).unwrap() == expected(&files));
}

#[test]
fn many_entries_in_any_order_cost_the_metadata_of_tree_order() {
    let paths: Vec<&'static str> = (0..4000).map(|n| &*format!("base/{}/{}", n % 7, 10_000 + n * 37 % 4001).leak()).collect();
    let mut files: Vec<TestFile> = paths.iter().map(|path| (*path, Layout::Pages(8192), &b""[..], path.repeat(900).into_bytes())).collect();
    files.sort_by(|a, b| crate::entry::tree_order(a.0.as_bytes(), b.0.as_bytes()));
    let nodes_bytes = |bench: &Bench| -> u64 {
        let packs = bench.runtime.block_on(bench.store.list("packs/")).unwrap();
        packs.iter().filter(|pack| !is_data_pack(bench, &pack.key)).map(|pack| pack.size).sum()
    };
    let (ordered, any) = (Bench::new(), Bench::new());
    ordered.backup(&files);
    let first = backup_shuffled(&any.open(), &files, 1).unwrap();
    let (in_order, shuffled) = (nodes_bytes(&ordered), nodes_bytes(&any));
    assert!(shuffled < in_order * 13 / 10, "{shuffled} bytes of nodes, {in_order} in tree order");
    // One file more changes one node, wherever in the stream it comes.
    files.insert(0, ("a", Layout::Content, b"", b"one more".to_vec()));
    let second = backup_shuffled(&any.open(), &files, 2).unwrap();
    assert_eq!(second.stats.chunks_new, 1);
    assert!(nodes_bytes(&any) - shuffled < 20_000, "{}", nodes_bytes(&any) - shuffled);
    assert_eq!(second.stats.entries, first.stats.entries + 1);
    assert!(restore(&any.open(), &second).unwrap() == expected(&files));
}

#[test]
fn in_any_order_what_no_tree_may_hold_is_refused() {
    let bench = Bench::new();
    let refused = |entries: Vec<(Entry, Vec<u8>)>| {
        let error = backup_entries(&bench.open(), entries, Order::Any).unwrap_err();
        assert!(bench.keys("snapshots/").is_empty() && bench.keys("sessions/").is_empty());
        error.to_string()
    };
    let file = |path: &str| (file_entry(path, Layout::Content, b"", 3), b"abc".to_vec());
    let link = |path: &str, target: &str| {
        let kind = EntryKind::Hardlink { target: target.into() };
        (Entry { kind, ..file_entry(path, Layout::Content, b"", 0) }, Vec::new())
    };
    assert!(refused(vec![file("b"), file("a"), file("b")]).contains("yielded b twice"));
    assert!(refused(vec![file("a/../b")]).contains("invalid path"));
    for target in ["missing", "z", "b"] {
        assert!(refused(vec![link("b", target), file("z"), file("a")]).contains("no file before it"), "{target}");
    }
    // Before its target in the stream, after it in the tree.
    let manifest = backup_entries(&bench.open(), vec![link("b", "a"), file("z"), file("a")], Order::Any).unwrap();
    let paths: Vec<Vec<u8>> = stored_entries(&bench.open(), &manifest).into_iter().map(|e| e.path).collect();
    assert_eq!(paths, [b"a", b"b", b"z"]);
}

#[test]
fn a_tree_in_any_order_that_ends_in_the_middle_commits_nothing() {
    let bench = Bench::new();
    let files = nested();
    let first = backup_shuffled(&bench.open(), &files, 1).unwrap();
    let mut changed = files.clone();
    (changed[1].2, changed[1].3) = (b"", noise(99, 2_000_000));
    for (round, when) in (1..60u64).flat_map(|n| [(n, When::Before), (n, When::After)]) {
        let faults = Faults::new();
        faults.crash_at_write(round, when);
        let repository = bench.open_on(Store::with_faults(bench.store.clone(), faults.clone()));
        let outcome = backup_shuffled(&repository, &changed, round);
        if let (Ok(committed), false) = (&outcome, faults.crashed()) {
            assert!(round > 4, "the crash came at {round} writes at least");
            assert!(restore(&bench.open(), committed).unwrap() == expected(&changed));
            break;
        }
        assert!(restore(&bench.open(), &first).unwrap() == expected(&files));
        // Either all of it is there, or nothing.
        for manifest in bench.open().manifests(None).unwrap().iter().skip(1) {
            assert!(restore(&bench.open(), manifest).unwrap() == expected(&changed));
        }
        assert!(round < 59, "a round goes through without a crash");
        changed[1].3 = noise(100 + round, 2_000_000);
        for key in bench.keys("snapshots/").into_iter().skip(1) {
            bench.runtime.block_on(bench.store.delete(&key)).unwrap();
        }
    }
    // A source that fails in the middle.
    let before = (bench.keys("snapshots/"), bench.keys("sessions/"));
    let repository = bench.open();
    let mut writer = repository.begin(&plan(), Utc::now(), &Cancel::default()).unwrap();
    let mut tree = writer.tree(&plan(), "files", Order::Any).unwrap();
    for (entry, bytes) in shuffled(tree_of(&changed), 9).into_iter().take(6) {
        if tree.add(entry).unwrap() == Added::NeedsContent {
            tree.content(&mut &bytes[..]).unwrap();
        }
    }
    drop(tree);
    drop(writer);
    assert_eq!((bench.keys("snapshots/"), bench.keys("sessions/")), before);
}

#[test]
fn a_pack_that_the_disk_cannot_read_is_a_finding_and_the_others_are_checked() {
    let bench = Bench::new();
    let files = vec![("a", Layout::Content, &b""[..], noise(1, 40_000_000)), ("b", Layout::Content, &b""[..], noise(2, 30_000_000))];
    bench.backup(&files);
    let packs = bench.keys("packs/");
    assert!(packs.len() >= 3, "{packs:?}");
    let faults = Faults::new();
    let repository = bench.open_on(Store::with_faults(bench.store.clone(), faults.clone()));
    let depth = VerifyDepth::Data { percent: 100, run: 0 };
    for bad in &packs {
        faults.clear();
        // As `store::refusal` tells a read error of the disk.
        for verb in [crate::store::Verb::Get, crate::store::Verb::GetRange] {
            faults.add(faults::Rule::on(verb).below(bad).always().then(faults::Effect::Fail(Kind::Damaged)));
        }
        let verified = repository.verify(depth, &Silent, &Cancel::default()).unwrap();
        assert!(verified.findings.iter().any(|f| f.object == *bad && f.kind == "damaged"), "{bad}: {verified:?}");
        assert!(verified.findings.iter().all(|f| f.object == *bad || f.object.starts_with("snapshots/")), "{bad}: {verified:?}");
        assert!(verified.snapshots_sound.is_empty());
    }
}

#[test]
fn an_interrupted_run_is_found_again() {
    let bench = Bench::new();
    let files = vec![("db", Layout::Content, &b""[..], noise(5, 80_000_000))];
    let faults = Faults::new();
    let store = Store::with_faults(bench.store.clone(), faults.clone());
    let repository = bench.open_on(store);
    faults.add(faults::Rule::on(crate::store::Verb::Create).below("snapshots/").always().then(faults::Effect::Fail(Kind::Failed)));
    backup(&repository, &files).unwrap_err();
    assert!(bench.keys("snapshots/").is_empty());
    // Nobody lists them: the index object is gone too.
    for key in bench.keys("index/") {
        bench.runtime.block_on(bench.store.delete(&key)).unwrap();
    }
    let manifest = bench.backup(&files);
    assert_eq!(manifest.stats.chunks_new, 0, "everything sent before is reused");
    assert_eq!(restore(&bench.open(), &manifest).unwrap(), expected(&files));
}

/// Of what a dead run left, only whole packs are taken over, and how much that is, is told.
#[test]
fn a_pack_that_a_dead_run_left_cut_off_is_not_taken_over() {
    let bench = Bench::new();
    let files = vec![("db", Layout::Content, &b""[..], noise(5, 75_000_000))];
    let faults = Faults::new();
    let repository = bench.open_on(Store::with_faults(bench.store.clone(), faults.clone()));
    // No session is removed either, as when it was killed.
    faults.add(faults::Rule::on(crate::store::Verb::Create).below("packs/").from(3).then(faults::Effect::Fail(Kind::Failed)));
    faults.add(faults::Rule::on(crate::store::Verb::Create).below("index/").always().then(faults::Effect::Fail(Kind::Failed)));
    faults.add(faults::Rule::on(crate::store::Verb::Delete).always().then(faults::Effect::Fail(Kind::Failed)));
    backup(&repository, &files).unwrap_err();
    let left = bench.keys("packs/");
    assert_eq!((left.len(), bench.keys("index/").len(), bench.keys("sessions/").len()), (2, 0, 1));
    let bytes = bench.runtime.block_on(bench.store.get(&left[0])).unwrap();
    bench.runtime.block_on(bench.store.delete(&left[0])).unwrap();
    bench.runtime.block_on(bench.store.create(&left[0], bytes.slice(..bytes.len() * 2 / 3))).unwrap();
    let whole = bench.runtime.block_on(bench.store.head(&left[1])).unwrap().unwrap().size;

    // Another plan's commit in between does not make it forgotten.
    let other = Name::new("other").unwrap();
    bench.open().begin(&other, Utc::now(), &Cancel::default()).unwrap().commit(Vec::new(), Utc::now(), Vec::new(), &Silent).unwrap();
    let committed = commit_entries(&bench.open(), tree_of(&files), Order::Tree).unwrap();
    assert!(committed.bytes_resumed > whole * 9 / 10 && committed.bytes_resumed <= whole, "{} of {whole}", committed.bytes_resumed);
    assert!(committed.manifest.stats.bytes_stored > 75_000_000 - whole, "what was cut off is stored again");
    assert_eq!(restore(&bench.open(), &committed.manifest).unwrap(), expected(&files));
    let again = commit_entries(&bench.open(), tree_of(&files), Order::Tree).unwrap();
    assert_eq!((again.bytes_resumed, again.manifest.stats.chunks_new), (0, 0), "nothing is left to resume");
}

#[test]
fn a_missing_pack_is_told_and_its_content_stored_again() {
    let bench = Bench::new();
    let files = sample();
    let first = bench.backup(&files);
    let pack = bench.keys("packs/").into_iter().find(|k| is_data_pack(&bench, k)).unwrap();
    bench.runtime.block_on(bench.store.delete(&pack)).unwrap();
    let verification = bench.open().verify(VerifyDepth::Structure, &Silent, &Cancel::default()).unwrap();
    assert!(verification.findings.iter().any(|f| f.object == pack && f.kind == "missing" && f.snapshots == [first.id]), "{verification:?}");
    assert!(verification.snapshots_sound.is_empty());
    assert_eq!(restore(&bench.open(), &first).unwrap_err().kind(), Kind::Damaged);
    let second = bench.backup(&files);
    assert_eq!(restore(&bench.open(), &second).unwrap(), expected(&files));
}

/// One flipped bit in any pack: the next backup of the unchanged source must not lean on it.
#[test]
fn a_backup_after_damage_restores() {
    let files: Vec<TestFile> = vec![
        ("a", Layout::Content, b"", noise(1, 300_000)),
        ("b", Layout::Pages(8192), b"", pages(2, 300)),
        ("c", Layout::Pages(8192), b"stamped", pages(4, 300)),
        ("d", Layout::Content, b"stamped", noise(5, 1000)),
    ];
    let bench = Bench::new();
    bench.backup(&files);
    for key in bench.keys("packs/") {
        let original = bench.runtime.block_on(bench.store.get(&key)).unwrap();
        for at in [20, original.len() / 3, original.len() / 2, original.len() - 100, original.len() - 10] {
            runtime_flip(&bench, &key, at);
            let repository = bench.open();
            // Damage in data is found by a verification (a writer cannot open data); damage in metadata by the backup itself.
            let found = repository.verify(VerifyDepth::Data { percent: 100, run: 0 }, &Silent, &Cancel::default()).unwrap();
            assert!(!found.findings.is_empty());
            let manifest = bench.backup(&files);
            assert_eq!(restore(&bench.open(), &manifest).unwrap(), expected(&files), "{key} at {at}");
            bench.runtime.block_on(faults::replace(&bench.store, &key, original.clone())).unwrap();
            for tombstone in bench.keys("gc/") {
                bench.runtime.block_on(bench.store.delete(&tombstone)).unwrap();
            }
        }
    }
}

/// The same for metadata, without a verification in between.
#[test]
fn a_backup_finds_damaged_metadata_by_itself() {
    damaged_metadata_is_found(backup);
    damaged_metadata_is_found(|repository, files| backup_shuffled(repository, files, 5));
}

fn damaged_metadata_is_found(backup: impl Fn(&Repository, &[TestFile]) -> Result<Manifest>) {
    let files: Vec<TestFile> = vec![("b", Layout::Pages(8192), b"", pages(2, 300)), ("c", Layout::Pages(8192), b"stamped", pages(4, 300))];
    let bench = Bench::new();
    bench.backup(&files);
    let key = bench.keys("packs/").into_iter().find(|k| !is_data_pack(&bench, k)).unwrap();
    let original = bench.runtime.block_on(bench.store.get(&key)).unwrap();
    for at in (10..original.len()).step_by(original.len() / 12) {
        runtime_flip(&bench, &key, at);
        let manifest = backup(&bench.open(), &files).unwrap();
        assert_eq!(restore(&bench.open(), &manifest).unwrap(), expected(&files), "at {at}");
        bench.runtime.block_on(faults::replace(&bench.store, &key, original.clone())).unwrap();
        let newest = bench.keys("snapshots/").pop().unwrap();
        bench.runtime.block_on(bench.store.delete(&newest)).unwrap();
    }
}

fn runtime_flip(bench: &Bench, key: &str, at: usize) {
    bench.runtime.block_on(faults::flip_byte(&bench.store, key, at)).unwrap();
}

fn is_data_pack(bench: &Bench, key: &str) -> bool {
    bench.runtime.block_on(bench.store.get(key)).unwrap()[5] == 1
}

#[test]
fn a_writer_backs_up_and_cannot_read() {
    let bench = Bench::new();
    let writer_key = Passphrase::new("a writer's passphrase");
    bench.open().add_key("host", Role::Writer, &writer_key, Utc::now()).unwrap();
    let maintainer_key = Passphrase::new("a maintainer's passphrase");
    bench.open().add_key("janitor", Role::Maintainer, &maintainer_key, Utc::now()).unwrap();
    let open = |key| Repository::open(bench.store.clone(), bench.runtime.handle().clone(), key, &bench.options()).unwrap();
    let files = sample();
    let writer = open(&writer_key);
    backup(&writer, &files).unwrap();
    let manifest = backup(&writer, &files).unwrap();
    assert_eq!(manifest.stats.chunks_new, 0);
    assert_eq!(restore(&writer, &manifest).unwrap_err().kind(), Kind::WrongKey);
    let maintainer = open(&maintainer_key);
    assert_eq!(backup(&maintainer, &files).unwrap_err().kind(), Kind::WrongKey);
    let verification = maintainer.verify(VerifyDepth::Data { percent: 100, run: 0 }, &Silent, &Cancel::default()).unwrap();
    assert!(verification.findings.is_empty() && !verification.skipped.is_empty());
    assert_eq!(restore(&bench.open(), &manifest).unwrap(), expected(&files));
    assert_eq!(
        Repository::open(bench.store.clone(), bench.runtime.handle().clone(), &Passphrase::new("wrong horse"), &bench.options())
            .unwrap_err()
            .kind(),
        Kind::WrongKey
    );
}

#[test]
fn a_recovery_key_opens_and_the_last_reader_slot_stays() {
    let bench = Bench::new();
    let fresh = Store::in_memory();
    let (repository, recovery) =
        Repository::init(fresh.clone(), bench.runtime.handle().clone(), &passphrase(), &bench.options(), Utc::now()).unwrap();
    assert_eq!(
        Repository::init(fresh.clone(), bench.runtime.handle().clone(), &passphrase(), &bench.options(), Utc::now()).unwrap_err().kind(),
        Kind::AlreadyExists
    );
    let typed = Passphrase::new(recovery.reveal().to_lowercase());
    let opened = Repository::open(fresh, bench.runtime.handle().clone(), &typed, &bench.options()).unwrap();
    assert_eq!(opened.role(), Role::Reader);
    let slots = repository.key_slots().unwrap();
    assert_eq!(slots.len(), 2);
    let (own, recovery) = (slots.iter().find(|s| s.current).unwrap(), slots.iter().find(|s| !s.current).unwrap());
    // The slot in use, and then the last one: only with its whole id said again.
    assert_eq!(repository.remove_key(&own.id, None, Utc::now()).unwrap_err().kind(), Kind::Usage);
    repository.remove_key(&own.id, Some(&own.id), Utc::now()).unwrap();
    let last = repository.remove_key(&recovery.id, Some("other"), Utc::now()).unwrap_err();
    assert!(last.to_string().contains("last key slot that can read data"), "{last}");
    assert_eq!(bench.runtime.block_on(opened.store().list("keys/")).unwrap().len(), 1);
    repository.remove_key(&recovery.id, Some(&recovery.id), Utc::now()).unwrap();
    assert_eq!(bench.runtime.block_on(opened.store().list("keys/")).unwrap(), []);
}

/// Kind of object × kind of damage: a verification with data finds each, and a restore never returns other bytes.
#[test]
fn every_damage_is_found() {
    let bench = Bench::new();
    let files: Vec<TestFile> = vec![("a", Layout::Content, b"", noise(1, 300_000)), ("b", Layout::Pages(8192), b"", pages(2, 300))];
    let first = bench.backup(&files);
    bench.backup(&files[..1]);
    let objects = bench.keys("");
    let mut seen = std::collections::HashSet::new();
    for key in &objects {
        let folder = key.split('/').next().unwrap().to_owned();
        let original = bench.runtime.block_on(bench.store.get(key)).unwrap();
        let len = original.len();
        let other = objects.iter().find(|k| *k != key && k.starts_with(&folder)).cloned();
        let mut damages: Vec<(String, Option<Bytes>)> =
            vec![("deleted".into(), None), ("emptied".into(), Some(Bytes::new())), ("garbage".into(), Some(Bytes::from(noise(7, len))))];
        for at in [0, 5, len / 3, len / 2, len - 40.min(len), len - 1] {
            let mut flipped = original.to_vec();
            flipped[at] ^= 0x10;
            damages.push((format!("flipped at {at} of {len}"), Some(Bytes::from(flipped))));
            damages.push((format!("cut at {at} of {len}"), Some(original.slice(..at))));
        }
        if let Some(other) = other {
            damages.push((format!("swapped with {other}"), Some(bench.runtime.block_on(bench.store.get(&other)).unwrap())));
        }
        for (what, damaged) in damages {
            match damaged {
                None => bench.runtime.block_on(bench.store.delete(key)).unwrap(),
                Some(bytes) => bench.runtime.block_on(faults::replace(&bench.store, key, bytes)).unwrap(),
            }
            let opened = Repository::open(bench.store.clone(), bench.runtime.handle().clone(), &passphrase(), &bench.options());
            match opened {
                Err(e) => assert!(matches!(e.kind(), Kind::Damaged | Kind::WrongKey | Kind::NoRepository), "{key} {what}: {e:?}"),
                Ok(repository) => {
                    let verification = repository.verify(VerifyDepth::Data { percent: 100, run: 0 }, &Silent, &Cancel::default()).unwrap();
                    // A deleted key event or newest manifest leaves a whole, smaller repository.
                    let quiet = what == "deleted" && (folder == "key-events" || *key == newest_manifest(&objects));
                    assert_eq!(verification.findings.is_empty(), quiet, "{key} {what}: {verification:?}");
                    match restore(&repository, &first) {
                        Ok(restored) => assert_eq!(restored, expected(&files), "{key} {what}"),
                        Err(e) => {
                            assert_eq!(e.kind(), Kind::Damaged, "{key} {what}: {e:?}");
                            assert!(!verification.snapshots_sound.contains(&first.id), "{key} {what}");
                        }
                    }
                }
            }
            bench.runtime.block_on(faults::replace(&bench.store, key, original.clone())).unwrap();
            for tombstone in bench.keys("gc/") {
                bench.runtime.block_on(bench.store.delete(&tombstone)).unwrap();
            }
            seen.insert(folder.clone());
        }
    }
    for folder in ["format", "keys", "packs", "index", "snapshots"] {
        assert!(seen.contains(folder), "{folder} was tried");
    }
    assert!(bench.open().verify(VerifyDepth::Data { percent: 100, run: 0 }, &Silent, &Cancel::default()).unwrap().findings.is_empty());
}

fn newest_manifest(objects: &[String]) -> String {
    objects.iter().filter(|k| k.starts_with("snapshots/")).max().unwrap().clone()
}

/// A crash before or after every single write: what was committed stays whole, the next run succeeds.
#[test]
fn a_crash_at_any_write_loses_nothing() {
    let bench = Bench::new();
    let files: Vec<TestFile> = vec![("a", Layout::Content, b"", noise(1, 300_000)), ("b", Layout::Pages(8192), b"", pages(2, 300))];
    let first = bench.backup(&files);
    let mut changed = files.clone();
    for round in 1..200u64 {
        changed[0].3 = noise(round + 10, 300_000);
        let when = if round % 2 == 0 { When::Before } else { When::After };
        let faults = Faults::new();
        faults.crash_at_write(round.div_ceil(2), when);
        let repository = Repository::open(
            Store::with_faults(bench.store.clone(), faults.clone()),
            bench.runtime.handle().clone(),
            &passphrase(),
            &bench.options(),
        );
        let outcome = repository.and_then(|r| backup(&r, &changed));
        let repository = bench.open();
        let verification = repository.verify(VerifyDepth::Structure, &Silent, &Cancel::default()).unwrap();
        assert!(verification.findings.iter().all(|f| f.kind == "not-indexed"), "round {round}: {verification:?}");
        assert_eq!(restore(&repository, &first).unwrap(), expected(&files), "round {round}");
        let next = backup(&repository, &changed).unwrap();
        assert_eq!(restore(&repository, &next).unwrap(), expected(&changed), "round {round}");
        if outcome.is_ok() && !faults.crashed() {
            assert!(round > 8, "the crash came at {round} writes at least");
            return;
        }
    }
    panic!("no round went through without a crash");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    /// Random histories of files, each snapshot in its own order (0: tree order): every snapshot restores to what it was.
    #[test]
    fn random_histories_restore(history in proptest::collection::vec((0u64..3, proptest::collection::btree_map(0usize..8, (0u64..4, 0usize..1_700_000, any::<bool>()), 0..6)), 1..5)) {
        const PATHS: [&str; 8] = ["a", "b", "b.x", "c", "d", "e", "f", "g"];
        let bench = Bench::new();
        let mut snapshots = Vec::new();
        for (order, state) in &history {
            let files: Vec<TestFile> = state.iter().map(|(path, (seed, len, paged))| {
                let bytes = if *paged { pages(*seed, len / 8192 + 1)[..*len].to_vec() } else { noise(*seed, *len) };
                (PATHS[*path], if *paged { Layout::Pages(4096) } else { Layout::Content }, &b""[..], bytes)
            }).collect();
            let manifest = if *order == 0 { bench.backup(&files) } else { backup_shuffled(&bench.open(), &files, *order).unwrap() };
            snapshots.push((manifest, expected(&files)));
        }
        let repository = bench.open();
        for (manifest, files) in &snapshots {
            prop_assert_eq!(&restore(&repository, manifest).unwrap(), files);
        }
        let verification = repository.verify(VerifyDepth::Data { percent: 100, run: 3 }, &Silent, &Cancel::default()).unwrap();
        prop_assert!(verification.findings.is_empty());
        prop_assert_eq!(verification.snapshots_sound.len(), snapshots.len());
    }
}

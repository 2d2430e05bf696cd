//! Collection on real repositories: what is committed stays whole, garbage goes, whatever is interrupted.

mod model;
mod synthetic;

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::Utc;

use super::*;
use crate::entry::Layout;
use crate::event::Silent;
use crate::repo::ledger::{Decision, Hold, RemovedSnapshot};
use crate::repo::session::{Decided, Session};
use crate::repo::snapshot::Manifest;
use crate::repo::tests::keys::backup_as;
use crate::repo::tests::{Bench, TestFile, backup, noise, pages, passphrase, plan, restore};
use crate::store::Store;
use crate::store::faults::{Faults, When};

fn collect(repository: &Repository) -> Collection {
    collect_with(repository, &CollectOptions::default())
}

fn collect_with(repository: &Repository, options: &CollectOptions<'_>) -> Collection {
    repository.collect(options, Utc::now(), &Silent, &Cancel::default()).unwrap()
}

fn eager<'a>() -> CollectOptions<'a> {
    CollectOptions { fence_after: Duration::ZERO, fence_gone_after: Duration::ZERO, ..CollectOptions::default() }
}

/// Removes snapshots as retention does.
fn remove(repository: &Repository, manifests: &[&Manifest]) -> Result<bool> {
    repository.amend_ledger(Utc::now(), |ledger| {
        let there: BTreeMap<SnapshotId, (Manifest, String)> = repository
            .open_manifests("snapshots/")?
            .into_iter()
            .filter_map(|(_, opened)| opened.unwrap())
            .map(|(manifest, hash)| (manifest.id, (manifest, hash)))
            .collect();
        let snapshots: Vec<RemovedSnapshot> = manifests
            .iter()
            .filter(|m| !ledger.is_removed(m.id))
            .map(|m| {
                let (manifest, hash) = there[&m.id].clone();
                let reason = "a test".to_owned();
                RemovedSnapshot {
                    id: m.id,
                    plan: manifest.plan,
                    hash,
                    parents: manifest.parents,
                    removed_at: Utc::now(),
                    reason,
                    logs: Vec::new(),
                }
            })
            .collect();
        Ok((!snapshots.is_empty()).then_some(Decision::Remove { snapshots }))
    })
}

fn one(seed: u64, count: usize) -> Vec<TestFile> {
    vec![("db", Layout::Pages(8192), b"", pages(seed, count)), ("doc", Layout::Content, b"", noise(seed + 1, 700_000))]
}

fn content(files: &[TestFile]) -> BTreeMap<String, Vec<u8>> {
    files.iter().map(|(path, _, _, bytes)| ((*path).to_owned(), bytes.clone())).collect()
}

fn sound(repository: &Repository) {
    let found = repository.verify(crate::repo::VerifyDepth::Data { percent: 100, run: 0 }, &Silent, &Cancel::default()).unwrap();
    assert_eq!(found.findings, vec![]);
}

#[test]
fn what_no_snapshot_needs_goes_and_the_chain_stays_verifiable() {
    let bench = Bench::new();
    let (a, b) = (one(1, 900), one(50, 600));
    let first = bench.backup(&a);
    let second = bench.backup(&b);
    let third = bench.backup(&b);
    let repository = bench.open();
    let before = collect(&repository);
    assert_eq!((before.packs_dead, before.packs_deleted, &before.blocked), (0, 0, &vec![]));
    assert!(remove(&repository, &[&first, &second]).unwrap());
    // Gone at once, before any object is.
    assert_eq!(repository.manifests(None).unwrap().iter().map(|m| m.id).collect::<Vec<_>>(), [third.id]);
    assert_eq!(repository.manifest(first.id).unwrap_err().kind(), Kind::NoRecoveryPoint);
    let done = collect(&repository);
    assert!(done.packs_deleted >= 2 && done.bytes_deleted > 500_000, "{done:?}");
    assert_eq!(bench.keys("snapshots/").len(), 1);
    assert_eq!(restore(&bench.open(), &third).unwrap(), content(&b));
    sound(&bench.open());
    // And what was collected is stored again when it comes back.
    let again = bench.backup(&a);
    assert!(again.stats.chunks_new > 500);
    assert_eq!(restore(&bench.open(), &again).unwrap(), content(&a));
    sound(&bench.open());
    // A manifest that somebody takes away by force is noticed, also one that only a removed one had named.
    bench.runtime.block_on(bench.store.delete(&bench.keys("snapshots/")[0])).unwrap();
    let found = bench.open().verify(crate::repo::VerifyDepth::Structure, &Silent, &Cancel::default()).unwrap();
    assert!(found.findings.iter().any(|finding| finding.kind == "chain-broken"), "{found:?}");
}

#[test]
fn an_entry_of_the_ledger_that_is_missing_or_moved_stands_in_the_way() {
    let bench = Bench::new();
    let snapshots: Vec<Manifest> = (0..4).map(|n| bench.backup(&one(n, 20))).collect();
    for snapshot in &snapshots[..3] {
        remove(&bench.open(), &[snapshot]).unwrap();
    }
    bench.runtime.block_on(bench.store.delete("retention/0000000000000002")).unwrap();
    let repository = bench.open();
    assert_eq!(repository.ledger().unwrap_err().kind(), Kind::Damaged);
    let packs = bench.keys("packs/");
    let found = collect(&repository);
    assert!(found.blocked.iter().any(|why| why.contains("retention")), "{found:?}");
    assert_eq!(bench.keys("packs/"), packs);
    // What is there can be restored all the same.
    assert_eq!(restore(&repository, &repository.manifest(snapshots[3].id).unwrap()).unwrap(), content(&one(3, 20)));
}

#[test]
fn the_ledger_starts_anew_from_its_base() {
    let bench = Bench::new();
    let snapshot = bench.backup(&one(1, 20));
    let last = bench.backup(&one(2, 20));
    remove(&bench.open(), &[&snapshot]).unwrap();
    let repository = bench.open();
    for round in 0..140 {
        let hold = Hold { snapshot: last.id, until: None, reason: round.to_string(), by: "t".into(), held_at: Utc::now() };
        repository.amend_ledger(Utc::now(), |_| Ok(Some(Decision::Hold { hold: hold.clone() }))).unwrap();
    }
    assert!(bench.keys("retention/").len() <= 15 + 2, "{:?}", bench.keys("retention/"));
    let ledger = bench.open().ledger().unwrap();
    assert!(ledger.is_removed(snapshot.id));
    assert_eq!(ledger.hold(last.id, Utc::now()).unwrap().reason, "139");
}

#[test]
fn a_damaged_manifest_or_tree_stops_everything() {
    let bench = Bench::new();
    let first = bench.backup(&one(1, 300));
    bench.backup(&one(9, 300));
    let repository = bench.open();
    remove(&repository, &[&first]).unwrap();
    let packs = bench.keys("packs/");
    let key = bench.keys("snapshots/").into_iter().find(|key| !key.ends_with(&first.id.to_string())).unwrap();
    bench.runtime.block_on(crate::store::faults::flip_byte(&bench.store, &key, 80)).unwrap();
    let found = collect(&bench.open());
    assert_eq!(found.blocked.len(), 1, "{found:?}");
    assert_eq!(bench.keys("packs/"), packs);
}

/// Files, each in packs of its own, of which the last snapshot needs a fifth.
fn partly_dead(bench: &Bench, count: usize) -> Vec<Manifest> {
    const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
    let base = |file: usize| noise(500 + file as u64, 8192 * 200);
    let file = |file: usize, round| (NAMES[file], Layout::Pages(8192), &b""[..], generation(&base(file), round));
    let mut snapshots: Vec<Manifest> = (1..=count).map(|files| bench.backup(&(0..files).map(|f| file(f, 0)).collect::<Vec<_>>())).collect();
    snapshots.push(bench.backup(&(0..count).map(|f| file(f, 1 + f as u64)).collect::<Vec<_>>()));
    snapshots
}

#[test]
fn a_damaged_pack_is_left_alone_and_the_others_are_rewritten() {
    let bench = Bench::new();
    let snapshots = partly_dead(&bench, 6);
    let repository = bench.open();
    remove(&repository, &snapshots[..6].iter().collect::<Vec<_>>()).unwrap();
    let planned = collect_with(&repository, &CollectOptions { dry_run: true, ..CollectOptions::default() });
    assert!(planned.packs_to_rewrite >= 6, "{planned:?}");
    // The largest of them: the oldest data packs are all alike.
    let mut packs = bench.runtime.block_on(bench.store.list("packs/")).unwrap();
    packs.sort_by_key(|object| (object.modified, object.size));
    let harmed = packs.iter().find(|object| object.size > 1_000_000).unwrap().key.clone();
    bench.runtime.block_on(crate::store::faults::flip_byte(&bench.store, &harmed, 400_000)).unwrap();
    let done = collect(&bench.open());
    let told: Vec<&String> = done.warnings.iter().filter(|warning| warning.contains("is not rewritten")).collect();
    assert!(told.len() == 1 && told[0].contains(&harmed), "{done:?}");
    assert_eq!(done.packs_rewritten, planned.packs_to_rewrite - 1, "{done:?}");
    assert!(bench.keys("packs/").contains(&harmed));
    // Nothing else is harmed: each finding is about that pack, or what it takes with it.
    let repository = bench.open();
    let entries: Vec<_> = repository.tree(&snapshots[6].sources[0]).unwrap().map(Result::unwrap).collect();
    let mut lost = 0;
    for (number, name) in ["a", "b", "c", "d", "e", "f"].into_iter().enumerate() {
        let entry = entries.iter().find(|entry| entry.entry.path == name.as_bytes()).unwrap();
        let mut bytes = Vec::new();
        let read = repository
            .open_file(entry, &Cancel::default())
            .and_then(|mut file| std::io::Read::read_to_end(&mut file, &mut bytes).map_err(|e| Error::new(Kind::Damaged, "x").because(e)));
        match read {
            Ok(_) => assert!(bytes == generation(&noise(500 + number as u64, 8192 * 200), 1 + number as u64), "{name}"),
            Err(_) => lost += 1,
        }
    }
    assert_eq!(lost, 1);
}

#[test]
fn index_objects_are_read_once_unless_they_change() {
    use crate::store::Verb;
    let bench = Bench::new();
    let snapshots = partly_dead(&bench, 5);
    let before = bench.keys("index/");
    remove(&bench.open(), &[&snapshots[5]]).unwrap();
    let faults = Faults::new();
    let repository = bench.open_apart(Store::with_faults(bench.store.clone(), faults.clone()));
    let done = collect(&repository);
    assert!(done.packs_deleted >= 1, "{done:?}");
    let after = bench.keys("index/");
    let read = faults.keys(Verb::Get);
    for key in before {
        let times = read.iter().filter(|read| **read == key).count();
        assert_eq!(times, if after.contains(&key) { 1 } else { 2 }, "{key}: {done:?}");
    }
    assert!(after.len() >= 5, "{after:?}");
}

/// Half of the pages of each frame changes again and again.
fn generation(base: &[u8], round: u64) -> Vec<u8> {
    let mut bytes = base.to_vec();
    for (number, page) in bytes.chunks_mut(8192).enumerate() {
        if round > 0 && !number.is_multiple_of(5) {
            page.copy_from_slice(&noise(round * 1_000_000 + number as u64, 8192));
        }
    }
    bytes
}

#[test]
fn partly_dead_packs_are_rewritten_and_everything_still_reads() {
    let bench = Bench::new();
    let base = noise(77, 8192 * 260);
    let at = |round| vec![("db", Layout::Pages(8192), &b"s"[..], generation(&base, round))];
    let unstamped = |round| vec![("db", Layout::Pages(8192), &b""[..], generation(&base, round))];
    let repository = bench.open();
    let snapshots: Vec<Manifest> = (0..3).map(|round| backup(&repository, &unstamped(round)).unwrap()).collect();
    // A restore that has read its tree before the packs are put together anew.
    let early = bench.open();
    let entries: Vec<_> = early.tree(&snapshots[2].sources[0]).unwrap().map(Result::unwrap).collect();
    remove(&repository, &[&snapshots[0], &snapshots[1]]).unwrap();
    let done = collect(&repository);
    assert!(done.packs_rewritten >= 1 && done.packs_deleted >= 2, "{done:?}");
    assert!(done.bytes_moved <= done.bytes_deleted / 2, "{done:?}");
    let mut streamed = Vec::new();
    std::io::Read::read_to_end(&mut early.open_file(&entries[1], &Cancel::default()).unwrap(), &mut streamed).unwrap();
    assert!(streamed == generation(&base, 2));
    assert_eq!(restore(&bench.open(), &snapshots[2]).unwrap(), content(&unstamped(2)));
    sound(&bench.open());
    // What was moved is reused.
    let next = backup(&repository, &at(2)).unwrap();
    assert_eq!(next.stats.chunks_new, 0, "{:?}", next.stats);
    let stamped = backup(&repository, &at(2)).unwrap();
    assert_eq!(stamped.stats.bytes_read, 0);
    assert_eq!(restore(&repository, &stamped).unwrap(), content(&at(2)));
    // Again and again, through chains of records, until none is left that nobody needs.
    let mut last = stamped;
    for round in 3..7 {
        let new = backup(&repository, &unstamped(round)).unwrap();
        let old: Vec<Manifest> = repository.manifests(None).unwrap().into_iter().filter(|m| m.id != new.id).collect();
        remove(&repository, &old.iter().collect::<Vec<_>>()).unwrap();
        collect(&repository);
        assert_eq!(restore(&repository, &new).unwrap(), content(&unstamped(round)), "round {round}");
        sound(&repository);
        last = new;
    }
    collect(&bench.open());
    let left: u64 = bench.runtime.block_on(bench.store.list("packs/")).unwrap().iter().map(|o| o.size).sum();
    assert!(left < 8192 * 260 * 5 / 2, "{left}");
    assert!(bench.keys("gc/moved/").len() <= 8, "{:?}", bench.keys("gc/moved/"));
    assert_eq!(restore(&bench.open(), &last).unwrap(), content(&unstamped(6)));
}

/// Of every frame most pages are dead. Who opens none would move all of it, at every collection again, and free nothing.
#[test]
fn what_would_free_nothing_is_not_moved() {
    let base = noise(78, 8192 * 260);
    let files = |round| vec![("db", Layout::Pages(8192), &b""[..], generation(&base, round))];
    let key = Passphrase::new("a maintainer's passphrase");
    for own in [false, true] {
        let bench = Bench::new();
        let hr = Name::new("hr").unwrap();
        if own {
            bench.open().make_plan_key(&hr, Utc::now()).unwrap();
        }
        let snapshots: Vec<Manifest> = (0..3).map(|round| backup_as(&bench.open(), &hr, &files(round)).unwrap()).collect();
        bench.open().add_key("m", crate::repo::Role::Maintainer, &key, Utc::now()).unwrap();
        let maintainer = || Repository::open(bench.store.clone(), bench.runtime.handle().clone(), &key, &bench.options()).unwrap();
        remove(&maintainer(), &[&snapshots[0], &snapshots[1]]).unwrap();
        let mut done = collect(&maintainer());
        // Most pages of the first snapshot's packs, of which the last one needs every fifth.
        assert!(done.packs_partly_dead >= 1 && done.bytes_moved < 100_000, "{done:?}");
        for _ in 0..3 {
            done = collect(&maintainer());
            assert_eq!((done.packs_to_rewrite, done.bytes_to_free, done.bytes_moved), (0, 0, 0), "{done:?}");
        }
        // A reader takes chunks out of frames, but never out of what is sealed to a plan's own key.
        done = collect(&bench.open());
        assert_eq!(done.bytes_moved > 100_000, !own, "{done:?}");
        assert!(own || done.bytes_moved <= done.bytes_deleted, "{done:?}");
        done = collect(&bench.open());
        assert_eq!((done.packs_to_rewrite, done.bytes_moved), (0, 0), "{done:?}");
        assert_eq!(restore(&bench.open(), &snapshots[2]).unwrap(), content(&files(2)));
        sound(&bench.open());
    }
}

/// What took a pack's place is known by its record only: without that, it must not be taken for garbage.
#[test]
fn a_record_of_moved_packs_that_is_gone_stands_in_the_way() {
    let base = noise(77, 8192 * 260);
    let files = |round| vec![("db", Layout::Pages(8192), &b""[..], generation(&base, round))];
    let bench = Bench::new();
    let snapshots: Vec<Manifest> = (0..3).map(|round| bench.backup(&files(round))).collect();
    remove(&bench.open(), &[&snapshots[0], &snapshots[1]]).unwrap();
    // Without packs of nodes, whose absence is noticed because trees cannot be read.
    let of_data = CollectOptions { rewrite: &|pack| pack.kind == PackKind::Data && pack.dead_percent() > 0, ..CollectOptions::default() };
    assert!(collect_with(&bench.open(), &of_data).packs_rewritten >= 1);
    let records = bench.keys("gc/moved/");
    let taken: Vec<_> = records.iter().map(|key| (key, bench.runtime.block_on(bench.store.get(key)).unwrap())).collect();
    records.iter().for_each(|key| bench.runtime.block_on(bench.store.delete(key)).unwrap());
    let packs = bench.keys("packs/");
    let done = collect(&bench.open());
    assert!(matches!(done.blocked.as_slice(), [why] if why.contains("gc/moved/")), "{done:?}");
    assert_eq!(bench.keys("packs/"), packs);
    for (key, bytes) in taken {
        bench.runtime.block_on(bench.store.create(key, bytes)).unwrap();
    }
    assert_eq!(collect(&bench.open()).blocked, Vec::<String>::new());
    assert_eq!(restore(&bench.open(), &snapshots[2]).unwrap(), content(&files(2)));
    sound(&bench.open());
}

/// What one writer says of places must not take the memory of whoever prunes: 34 GB for the first of these.
#[test]
fn places_that_no_pack_has_are_refused_before_they_are_marked() {
    for (frame, slot) in [(u32::MAX - 1, 0), (0, u32::MAX), (100_000, 3)] {
        let bench = Bench::new();
        let first = bench.backup(&one(1, 50));
        let repository = bench.open();
        let inner = &repository.inner;
        let mut source = first.sources[0].clone();
        let root = source.tree.bytes().unwrap();
        let mut refs = crate::repo::tree::decode_list(&root, |pack| inner.packs.intern(pack)).unwrap();
        (refs[0].place.frame, refs[0].place.slot) = (frame, slot);
        source.tree.nodes = hex::encode(crate::repo::tree::encode_list(&refs, |pack| inner.packs.get(pack)));
        repository.begin(&plan(), Utc::now(), &Cancel::default()).unwrap().commit(vec![source], Utc::now(), vec![], &Silent).unwrap();
        let found = collect(&bench.open());
        assert!(matches!(found.blocked.as_slice(), [why] if why.contains("fewer chunks than a reference to it says")), "{found:?}");
    }
}

/// A place far behind that the pack has: the last of thousands of small files in a frame.
#[test]
fn a_place_far_behind_in_a_pack_is_marked() {
    use crate::repo::tree::{Content, Record};
    let bench = Bench::new();
    let name = |number: u32| -> &'static str { Box::leak(format!("{number:06}").into_boxed_str()) };
    let file = |number: u32| (name(number), Layout::Content, &b""[..], number.to_le_bytes().repeat(3));
    let first = bench.backup(&(0..24_000).map(file).collect::<Vec<_>>());
    let repository = bench.open();
    let mut nodes = crate::repo::nodes::NodeReader::new(&repository.inner).unwrap();
    let tree = &first.sources[0].tree;
    let leaves = nodes.leaves(&tree.bytes().unwrap(), tree.depth).unwrap();
    let records: Vec<_> = leaves.iter().flat_map(|leaf| nodes.records(leaf).unwrap()).collect();
    let place = |record: &Record<PackNo>| match record {
        Record::Entry { entry, content: Content::Inline(chunks) } => Some((chunks.first()?.stored.places().next()?, entry.path.clone())),
        _ => None,
    };
    let (place, path) = records.iter().filter_map(place).max_by_key(|(place, _)| place.slot).unwrap();
    assert!(!marks::Marks::default().is_cheap(place), "{place:?}");
    let files = [file(String::from_utf8(path).unwrap().parse().unwrap())];
    let second = bench.backup(&files);
    assert_eq!(second.stats.chunks_new, 0, "{:?}", second.stats);
    remove(&bench.open(), &[&first]).unwrap();
    let done = collect(&bench.open());
    assert!(done.blocked.is_empty() && done.packs_rewritten >= 1, "{done:?}");
    assert_eq!(restore(&bench.open(), &second).unwrap(), content(&files));
    sound(&bench.open());
}

/// Does something once, right after the first manifest was followed.
struct AfterTheFirst<F>(std::sync::Mutex<Option<F>>);

impl<F: FnOnce() + Send> Progress for AfterTheFirst<F> {
    fn event(&self, event: Event) {
        if event == (Event::Advance { bytes: 0, items: 1 })
            && let Some(act) = self.0.lock().unwrap().take()
        {
            act();
        }
    }
}

/// Two collections at once. One has put packs together anew before the other lists packs, and commits that while the other one marks: which then misses
/// a pack, reads the record, and so has marked some of what was moved where it had been and some where it is now.
#[test]
fn what_is_moved_while_it_is_marked_is_not_rewritten() {
    let bench = Bench::new();
    let base = noise(84, 8192 * 260);
    let files = |round| vec![("db", Layout::Pages(8192), &b""[..], generation(&base, round))];
    // The second one needs a fifth of what the first one needs.
    let snapshots: Vec<Manifest> = (0..2).map(|round| bench.backup(&files(round))).collect();
    let take = |folder: &str| -> Vec<(String, Bytes)> {
        bench.keys(folder).into_iter().map(|key| (key.clone(), bench.runtime.block_on(bench.store.get(&key)).unwrap())).collect()
    };
    let put = |objects: &[(String, Bytes)]| {
        for (key, bytes) in objects {
            bench.runtime.block_on(bench.store.create(key, bytes.clone())).unwrap();
        }
    };
    let delete = |objects: &[(String, Bytes)]| objects.iter().for_each(|(key, _)| bench.runtime.block_on(bench.store.delete(key)).unwrap());
    let moved = take("packs/");
    let done = collect_with(&bench.open(), &CollectOptions { rewrite: &|_| true, ..CollectOptions::default() });
    assert_eq!((done.packs_rewritten, bench.keys("gc/moved/").len()), (moved.len() as u64, 1), "{done:?}");
    // As it is right before that record is created.
    let record = take("gc/moved/");
    delete(&record);
    put(&moved);
    let commit = || {
        put(&record);
        delete(&moved);
    };
    let options = CollectOptions { rewrite: &|pack| pack.dead_percent() > 0, ..CollectOptions::default() };
    let commit = AfterTheFirst(std::sync::Mutex::new(Some(commit)));
    let done = bench.open().collect(&options, Utc::now(), &commit, &Cancel::default()).unwrap();
    assert!(commit.0.lock().unwrap().is_none() && done.packs_to_rewrite >= 1 && done.blocked.is_empty(), "{done:?}");
    for (snapshot, round) in snapshots.iter().zip(0..) {
        assert_eq!(restore(&bench.open(), snapshot).unwrap(), content(&files(round)), "{done:?}");
    }
    sound(&bench.open());
    // The next one marks with the record, and sees that all of it lives.
    assert_eq!(collect_with(&bench.open(), &options).packs_rewritten, 0);
}

/// Two collections have put the same packs together anew. Whoever has read where the first one put them finds them where the second one did, when that counts.
#[test]
fn who_was_on_the_way_to_moved_content_finds_it_when_another_record_counts() {
    let bench = Bench::new();
    let base = noise(84, 8192 * 260);
    let files = |round| vec![("db", Layout::Pages(8192), &b""[..], generation(&base, round))];
    let snapshots: Vec<Manifest> = (0..2).map(|round| bench.backup(&files(round))).collect();
    let take = |folder: &str| -> Vec<(String, Bytes)> {
        bench.keys(folder).into_iter().map(|key| (key.clone(), bench.runtime.block_on(bench.store.get(&key)).unwrap())).collect()
    };
    let put = |objects: &[(String, Bytes)]| {
        for (key, bytes) in objects {
            bench.runtime.block_on(bench.store.create(key, bytes.clone())).unwrap();
        }
    };
    let delete = |objects: &[(String, Bytes)]| objects.iter().for_each(|(key, _)| bench.runtime.block_on(bench.store.delete(key)).unwrap());
    let all = CollectOptions { rewrite: &|_| true, ..CollectOptions::default() };
    let (before, sources) = (take(""), take("packs/"));
    // The one whose record has the smaller name is committed last.
    let mut ways: Vec<[Vec<(String, Bytes)>; 2]> = Vec::new();
    for _ in 0..2 {
        let done = collect_with(&bench.open(), &all);
        assert_eq!((done.packs_rewritten, bench.keys("gc/moved/").len()), (sources.len() as u64, 1), "{done:?}");
        ways.push([take("packs/"), take("gc/moved/")]);
        delete(&take(""));
        put(&before);
    }
    let [first, second] = ways.as_slice() else { unreachable!() };
    assert!(first[1][0].0 < second[1][0].0 && first[0].iter().all(|pack| !second[0].contains(pack)));
    delete(&sources);
    second.iter().for_each(|objects| put(objects));
    let reader = bench.open_apart(bench.store.clone());
    reader.inner.load_moved().unwrap();
    let mut nodes = crate::repo::nodes::NodeReader::new(&reader.inner).unwrap();
    let trees: Vec<_> = snapshots.iter().map(|snapshot| crate::repo::tests::tree_nodes(&reader, snapshot)).collect();
    let chunks: Vec<_> = trees.iter().flatten().flat_map(|node| nodes.records(node).unwrap()).collect();
    first.iter().for_each(|objects| put(objects));
    second.iter().for_each(|objects| delete(objects));
    let mut nodes = crate::repo::nodes::NodeReader::new(&reader.inner).unwrap();
    for node in trees.iter().flatten() {
        nodes.read(node).unwrap();
    }
    let mut places = 0;
    for record in chunks {
        let (crate::repo::tree::Record::Stretch(chunks)
        | crate::repo::tree::Record::Entry { content: crate::repo::tree::Content::Inline(chunks), .. }) = record
        else {
            continue;
        };
        for place in chunks.iter().flat_map(|chunk| chunk.stored.places()) {
            let now = reader.inner.moved_since(place).unwrap().expect("it is somewhere");
            assert!(reader.inner.directory(reader.inner.packs.get(now.pack)).unwrap().has(now.frame, now.slot));
            places += 1;
        }
    }
    assert!(places > 200, "{places}");
    // What is really gone is nowhere, however it is asked for.
    delete(&first[0]);
    let lost = restore(&reader, &snapshots[0]).unwrap_err();
    assert_eq!(lost.kind(), Kind::Damaged, "{lost:?}");
}

/// Does something when this phase begins.
struct AtPhase<F>(&'static str, F);

impl<F: Fn() + Sync + Send> Progress for AtPhase<F> {
    fn event(&self, event: Event) {
        if matches!(event, Event::Phase { name, .. } if name == self.0) {
            (self.1)();
        }
    }
}

/// Two prunes at once: the other one removes and deletes what this one has just listed.
#[test]
fn a_snapshot_that_another_prune_takes_before_it_is_looked_at_blocks_nothing() {
    use crate::store::Verb;
    use crate::store::faults::{Effect, Rule};
    let bench = Bench::new();
    let files = |seed| vec![("db", Layout::Pages(8192), &b""[..], noise(seed, 8192 * 20))];
    let kept = bench.backup(&files(1));
    let faults = Faults::new();
    let repository = bench.open_apart(Store::with_faults(bench.store.clone(), faults.clone()));
    let done = std::thread::scope(|scope| {
        let meanwhile = AtPhase("sessions", || {
            let new = bench.backup(&files(2));
            let key = bench.keys("snapshots/").into_iter().find(|key| key.ends_with(&new.id.to_string())).unwrap();
            faults.add(Rule::on(Verb::Get).below(&key).then(Effect::Delay(Duration::from_secs(1))));
            let (bench, faults) = (&bench, faults.clone());
            scope.spawn(move || {
                let waited = std::time::Instant::now();
                while !faults.calls().iter().any(|call| call.key == key) {
                    assert!(waited.elapsed() < Duration::from_mins(1), "nobody looked at {key}");
                    std::thread::sleep(Duration::from_millis(1));
                }
                remove(&bench.open(), &[&new]).unwrap();
                bench.runtime.block_on(bench.store.delete(&key)).unwrap();
            });
        });
        repository.collect(&CollectOptions::default(), Utc::now(), &meanwhile, &Cancel::default()).unwrap()
    });
    assert_eq!(done.blocked, Vec::<String>::new());
    assert_eq!(restore(&bench.open(), &kept).unwrap(), content(&files(1)));
}

#[test]
fn a_maintainer_moves_whole_frames_and_opens_none() {
    let bench = Bench::new();
    let mut files =
        vec![("a", Layout::Pages(8192), &b""[..], noise(5, 8192 * 256)), ("z", Layout::Pages(8192), &b""[..], noise(6, 8192 * 1024))];
    // One worker: so the first file is a frame of its own, and not half of two.
    let options = crate::repo::OpenOptions { workers: 1, ..bench.options() };
    let writer = Repository::open(bench.store.clone(), bench.runtime.handle().clone(), &passphrase(), &options).unwrap();
    let first = backup(&writer, &files).unwrap();
    files.remove(1);
    let second = backup(&writer, &files).unwrap();
    let key = Passphrase::new("a maintainer's passphrase");
    bench.open().add_key("m", crate::repo::Role::Maintainer, &key, Utc::now()).unwrap();
    let maintainer = Repository::open(bench.store.clone(), bench.runtime.handle().clone(), &key, &bench.options()).unwrap();
    remove(&maintainer, &[&first]).unwrap();
    let done = collect(&maintainer);
    assert!(done.packs_rewritten >= 1 && done.bytes_moved < 3 << 20, "{done:?}");
    assert_eq!(collect(&maintainer).packs_rewritten, 0);
    assert_eq!(restore(&bench.open(), &second).unwrap(), content(&files));
    sound(&bench.open());
}

/// Frames of several generations and of a plan's own key, some of them partly dead, in packs that are put together anew.
#[test]
fn every_key_generation_stays_readable_through_rewriting() {
    let base = noise(79, 8192 * 260);
    let files = |round| vec![("db", Layout::Pages(8192), &b""[..], generation(&base, round))];
    for (new_ids, reader) in [(false, true), (true, true), (true, false)] {
        let bench = Bench::new();
        let hr = Name::new("hr").unwrap();
        bench.open().make_plan_key(&hr, Utc::now()).unwrap();
        let mut old = vec![bench.backup(&files(0)), bench.backup(&files(1))];
        let own: Vec<Manifest> = (0..2).map(|round| backup_as(&bench.open(), &hr, &files(round)).unwrap()).collect();
        bench.open().rotate(&passphrase(), &[], new_ids, Utc::now()).unwrap();
        let kept = bench.backup(&files(1));
        old.push(bench.backup(&files(2)));
        let last = bench.backup(&files(3));
        let key = Passphrase::new("a maintainer's passphrase");
        let repository = if reader {
            bench.open()
        } else {
            bench.open().add_key("m", crate::repo::Role::Maintainer, &key, Utc::now()).unwrap();
            Repository::open(bench.store.clone(), bench.runtime.handle().clone(), &key, &bench.options()).unwrap()
        };
        remove(&repository, &[&old[0], &old[1], &old[2], &own[0]]).unwrap();
        let everything = CollectOptions { rewrite: &|pack| pack.dead_percent() > 0, ..CollectOptions::default() };
        let done = collect_with(&repository, &everything);
        assert!(done.packs_rewritten >= 1 && done.blocked.is_empty(), "{done:?}");
        for (manifest, round) in [(&kept, 1), (&own[1], 1), (&last, 3)] {
            assert_eq!(restore(&bench.open(), manifest).unwrap(), content(&files(round)), "{new_ids} {reader}");
        }
        sound(&bench.open());
        // What was destroyed stands in nobody's way, and nothing else is destroyed with it.
        bench.open().erase_plan(&hr, Utc::now()).unwrap();
        remove(&repository, &[&own[1], &kept]).unwrap();
        let done = collect_with(&bench.open(), &everything);
        assert_eq!(done.blocked, Vec::<String>::new());
        assert_eq!(restore(&bench.open(), &last).unwrap(), content(&files(3)));
        let end = collect_with(&bench.open(), &CollectOptions { dry_run: true, ..eager() });
        assert_eq!((end.packs_dead, end.packs_waiting), (0, 0), "{end:?}");
        // What was moved is reused, and what comes after it reads.
        let again = bench.backup(&files(3));
        assert_eq!(restore(&bench.open(), &again).unwrap(), content(&files(3)));
        sound(&bench.open());
    }
}

/// A copy that has read a tree before the packs that it names were put together anew: it knows where they were, or has their directories.
#[test]
fn a_copy_finds_what_was_moved_while_it_was_read() {
    let base = noise(80, 8192 * 260);
    let files = |round| vec![("db", Layout::Pages(8192), &b""[..], generation(&base, round))];
    for warm in [false, true] {
        let (from, to) = (Bench::new(), Bench::new());
        let snapshots: Vec<Manifest> = (0..3).map(|round| from.backup(&files(round))).collect();
        let early = from.open();
        if warm {
            assert_eq!(restore(&early, &snapshots[2]).unwrap(), content(&files(2)));
        }
        remove(&from.open(), &[&snapshots[0], &snapshots[1]]).unwrap();
        let options =
            CollectOptions { rewrite: &|pack| pack.kind == PackKind::Data && pack.dead_percent() > 0, ..CollectOptions::default() };
        let done = collect_with(&from.open(), &options);
        assert!(done.packs_rewritten >= 1, "{done:?}");
        let copied = to
            .open()
            .copy_from(&early, &snapshots[2], None, CopyNotes::default(), Utc::now(), &Silent, &Cancel::default(), |_| Ok(()))
            .unwrap();
        assert_eq!(restore(&to.open(), &copied.0.manifest).unwrap(), content(&files(2)));
        sound(&to.open());
    }
}

#[test]
fn a_backup_at_work_is_waited_for_and_a_dead_one_is_fenced() {
    let bench = Bench::new();
    let first = bench.backup(&one(1, 300));
    bench.backup(&one(9, 300));
    let repository = bench.open();
    let writer = repository.begin(&plan(), Utc::now(), &Cancel::default()).unwrap();
    remove(&repository, &[&first]).unwrap();
    let packs = bench.keys("packs/");
    let waits = collect(&repository);
    assert!(waits.packs_waiting >= 1 && waits.waiting_for.len() == 1, "{waits:?}");
    assert_eq!(bench.keys("packs/"), packs);
    // A later one does not matter: it knows the tombstones.
    let later = bench.open().begin(&Name::new("other").unwrap(), Utc::now(), &Cancel::default()).unwrap();
    assert_eq!(collect(&repository).packs_deleted, 0);
    let manifest = {
        let mut writer = writer;
        let tree = writer.tree(&plan(), "files", crate::entry::Order::Tree).unwrap().finish(serde_json::json!({})).unwrap();
        writer.commit(vec![tree], Utc::now(), vec![], &Silent).unwrap().manifest
    };
    let done = collect(&repository);
    assert!(done.packs_deleted >= 1, "{done:?}");
    drop(later);
    // A session whose time is over is fenced, and what it meant to commit never is.
    let late = bench.open().begin(&plan(), Utc::now(), &Cancel::default()).unwrap();
    remove(&repository, &[&manifest]).unwrap_or_default();
    collect_with(&repository, &eager());
    let error = late.commit(vec![], Utc::now(), vec![], &Silent).unwrap_err();
    assert_eq!(error.kind(), Kind::Busy, "{error:?}");
}

use crate::id::Name;
use crate::repo::{CopyNotes, Passphrase};

#[test]
fn a_session_that_cannot_be_read_stops_it() {
    let bench = Bench::new();
    let first = bench.backup(&one(1, 100));
    bench.backup(&one(9, 100));
    Session::publish(&bench.open().inner, "snapshots/x/y", "h", Utc::now()).unwrap().leave();
    bench.runtime.block_on(crate::store::faults::flip_byte(&bench.store, &bench.keys("sessions/")[0], 70)).unwrap();
    remove(&bench.open(), &[&first]).unwrap();
    let packs = bench.keys("packs/");
    assert_eq!(collect(&bench.open()).blocked.len(), 1);
    assert_eq!(bench.keys("packs/"), packs);
}

/// A run that is settled long after it had committed, and one that never will commit.
#[test]
fn void_markers_stay_and_what_retention_removed_had_been_committed() {
    let bench = Bench::new();
    let first = bench.backup(&one(1, 20));
    let last = bench.backup(&one(2, 20));
    let repository = bench.open();
    assert_eq!(repository.decide(&plan(), first.id).unwrap(), Decided::Committed(Box::new(first.clone())));
    let writer = bench.open().begin(&plan(), Utc::now(), &Cancel::default()).unwrap();
    let fenced = writer.id();
    for _ in 0..2 {
        assert_eq!(repository.decide(&plan(), fenced).unwrap(), Decided::Void);
    }
    remove(&repository, &[&first]).unwrap();
    // Its session is decided: nothing waits for it.
    let done = collect(&repository);
    assert_eq!((done.packs_waiting, done.waiting_for, done.fenced), (0, vec![], vec![]));
    assert!(!bench.keys("snapshots/").iter().any(|key| key.ends_with(&first.id.to_string())));
    // Whoever settles its run now, and whoever does it again after somebody died at that.
    for _ in 0..2 {
        assert!(matches!(repository.decide(&plan(), first.id).unwrap(), Decided::Removed(removed) if removed.id == first.id));
    }
    for _ in 0..2 {
        assert_eq!(collect_with(&repository, &eager()).blocked, Vec::<String>::new());
    }
    let left = bench.keys("snapshots/");
    assert!(left.len() == 2 && left.iter().any(|key| key.ends_with(&fenced.to_string())), "{left:?}");
    let error = writer.commit(vec![], Utc::now(), vec![], &Silent).map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), Kind::Busy);
    assert_eq!(repository.decide(&plan(), fenced).unwrap(), Decided::Void);
    assert_eq!(repository.manifests(None).unwrap().iter().map(|m| m.id).collect::<Vec<_>>(), [last.id]);
    sound(&bench.open());
}

/// Its answer got lost, then the store refused (a credential that has ended, say): the request may be carried out long after that.
#[test]
fn a_record_that_comes_late_is_fenced_or_whole() {
    use crate::store::Verb;
    use crate::store::faults::{Effect, Rule};
    let base = noise(81, 8192 * 200);
    let files = |round| vec![("db", Layout::Pages(8192), &b""[..], generation(&base, round))];
    for before_the_next in [false, true] {
        let bench = Bench::new();
        let faults = Faults::new();
        let repository = bench.open_on(Store::with_faults(bench.store.clone(), faults.clone()));
        let snapshots: Vec<Manifest> = (0..3).map(|round| backup(&repository, &files(round)).unwrap()).collect();
        remove(&repository, &[&snapshots[0], &snapshots[1]]).unwrap();
        let late = Duration::from_millis(if before_the_next { 50 } else { 1500 });
        faults.add(Rule::on(Verb::Create).below("gc/moved/").nth(1).then(Effect::Late(late)));
        faults.add(Rule::on(Verb::Create).below("gc/moved/").from(2).then(Effect::Fail(Kind::Failed)));
        repository.collect(&CollectOptions::default(), Utc::now(), &Silent, &Cancel::default()).unwrap_err();
        assert_eq!(bench.keys("sessions/").len(), 1, "whoever collects next must meet its session");
        let comes = || {
            let waited = std::time::Instant::now();
            while faults.late() > 0 {
                assert!(waited.elapsed() < Duration::from_secs(20), "it never came");
                std::thread::yield_now();
            }
        };
        if before_the_next {
            comes();
        }
        collect_with(&bench.open(), &eager());
        comes();
        for _ in 0..2 {
            assert_eq!(restore(&bench.open(), &snapshots[2]).unwrap(), content(&files(2)), "{before_the_next}");
            assert_eq!(collect_with(&bench.open(), &eager()).blocked, Vec::<String>::new());
        }
        sound(&bench.open());
    }
}

/// A collection that is killed at a write and run again, from the same beginning each time.
struct Killed {
    bench: Bench,
    faults: Faults,
    base: Vec<u8>,
    snapshots: Vec<Manifest>,
    begin: Vec<(String, Bytes)>,
}

impl Killed {
    fn new() -> Self {
        let base = noise(78, 8192 * 60);
        let bench = Bench::new();
        let faults = Faults::new();
        let repository = bench.open_on(Store::with_faults(bench.store.clone(), faults.clone()));
        let files = |round| vec![("db", Layout::Pages(8192), &b""[..], generation(&base, round))];
        let snapshots = (0..3).map(|round| backup(&repository, &files(round)).unwrap()).collect();
        let get = |key: &String| bench.runtime.block_on(bench.store.get(key)).unwrap();
        let begin = bench.keys("").into_iter().map(|key| (key.clone(), get(&key))).collect();
        Self { bench, faults, base, snapshots, begin }
    }

    fn files(&self, round: u64) -> Vec<TestFile> {
        vec![("db", Layout::Pages(8192), &b""[..], generation(&self.base, round))]
    }

    /// A repository as it was before anything was removed, in whose place two snapshots are removed and their garbage is collected.
    fn collected(&self) -> (Repository, Result<Collection>) {
        let Self { bench, begin, snapshots, .. } = self;
        for key in bench.keys("").into_iter().filter(|key| !begin.iter().any(|(known, _)| known == key)) {
            bench.runtime.block_on(bench.store.delete(&key)).unwrap();
        }
        for (key, bytes) in begin {
            bench.runtime.block_on(bench.store.create(key, bytes.clone())).unwrap();
        }
        // The store went back in time, which nothing may that is open.
        let repository = bench.open_on(Store::with_faults(bench.store.clone(), self.faults.clone()));
        self.faults.forget_calls();
        let done = remove(&repository, &[&snapshots[0], &snapshots[1]])
            .and_then(|_| repository.collect(&eager(), Utc::now(), &Silent, &Cancel::default()));
        (repository, done)
    }

    /// The writes of a whole one: verb and folder, by their numbers from 1.
    fn writes(&self) -> Vec<(String, u64)> {
        use crate::store::Verb;
        self.faults.clear();
        self.collected().1.unwrap();
        let calls = self.faults.calls().into_iter().filter(|call| matches!(call.verb, Verb::Create | Verb::Delete));
        let folder = |key: &str| {
            let parts = if key.starts_with("gc/") { key.rsplit_once('/') } else { key.split_once('/') };
            parts.map_or(key, |(folder, _)| folder).to_owned()
        };
        (1..).zip(calls).map(|(number, call)| (format!("{} {}", call.verb.word(), folder(&call.key)), number)).collect()
    }

    fn at(&self, write: u64, when: When) {
        let (bench, snapshots) = (&self.bench, &self.snapshots);
        self.faults.crash_at_write(write, when);
        let (repository, killed) = self.collected();
        assert!(self.faults.crashed(), "write {write}: {killed:?}");
        self.faults.clear();
        assert_eq!(restore(&repository, &snapshots[2]).unwrap(), content(&self.files(2)), "write {write}");
        // A backup in between, and then collections that come to their end.
        let next = backup(&repository, &self.files(3)).unwrap();
        remove(&repository, &[&snapshots[0], &snapshots[1]]).unwrap();
        for _ in 0..2 {
            assert_eq!(collect_with(&repository, &eager()).blocked, Vec::<String>::new());
        }
        for (manifest, round) in [(&snapshots[2], 2), (&next, 3)] {
            assert_eq!(restore(&repository, manifest).unwrap(), content(&self.files(round)), "write {write}");
        }
        sound(&repository);
        let end = collect_with(&repository, &CollectOptions { dry_run: true, ..eager() });
        assert_eq!((end.packs_dead, end.packs_waiting), (0, 0), "write {write}: {end:?}");
        // What became of it is decided, and stays so.
        assert!(bench.keys("sessions/").len() <= 1, "{:?}", bench.keys("sessions/"));
    }
}

/// Of each kind of write one, before it or after it, as the seed says.
#[test]
fn killed_at_a_write_of_each_kind_and_run_again() {
    let seed = seed();
    println!("seed {seed}");
    let (killed, mut dice) = (Killed::new(), Dice(seed));
    let mut kinds: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for (kind, number) in killed.writes() {
        kinds.entry(kind).or_default().push(number);
    }
    assert!(kinds.len() >= 9 && kinds.contains_key("create gc/moved") && kinds.contains_key("delete packs"), "{kinds:?}");
    for (kind, numbers) in kinds {
        let write = numbers[dice.roll(numbers.len() as u64) as usize];
        let when = if dice.roll(2) == 0 { When::Before } else { When::After };
        println!("{kind}: write {write}, {when:?}");
        killed.at(write, when);
    }
}

/// `cargo test --lib killed_at_every -- --ignored`
#[test]
#[ignore = "takes minutes; the seeds of the one above come to all of these"]
fn killed_at_every_write_and_run_again() {
    let killed = Killed::new();
    for (_, write) in killed.writes() {
        for when in [When::Before, When::After] {
            killed.at(write, when);
        }
    }
}

/// A small generator of its own, so that a seed tells the whole story.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

/// What each snapshot must yield, noted before it is committed.
type Expected = std::sync::Mutex<BTreeMap<SnapshotId, Vec<u8>>>;

/// Requests that fail, fail after they were carried out, come late; and a process that is killed at a write.
fn trouble(dice: &mut Dice, faults: &Faults) {
    use crate::store::Verb;
    use crate::store::faults::{Effect, Rule};
    faults.clear();
    for _ in 0..dice.roll(4) {
        let effect = match dice.roll(4) {
            0 => Effect::Fail(Kind::Unavailable),
            1 => Effect::FailAfter(Kind::Unavailable),
            2 => Effect::Delay(Duration::from_millis(dice.roll(20))),
            _ => Effect::FailAfter(Kind::Failed),
        };
        faults.add(Rule::any().nth(1 + dice.roll(60)).then(effect));
    }
    if dice.roll(3) == 0 {
        // A write that comes when nobody counts on it any more: after its repetition, or after the one who asked has given up.
        let (verb, at) = (if dice.roll(3) == 0 { Verb::Delete } else { Verb::Create }, 1 + dice.roll(12));
        faults.add(Rule::on(verb).nth(at).then(Effect::Late(Duration::from_millis(dice.roll(400)))));
        if dice.roll(2) == 0 {
            faults.add(Rule::any().from(at + dice.roll(30)).then(Effect::Fail(Kind::Failed)));
            faults.add(Rule::on(verb).from(at + 1).then(Effect::Fail(Kind::Failed)));
        }
    }
    if dice.roll(4) == 0 {
        let when = if dice.roll(2) == 0 { When::Before } else { When::After };
        faults.crash_at_write(1 + dice.roll(25), when);
    }
}

/// Errors that injected faults, fences and rivals explain.
fn explained(error: &Error) {
    let fine = matches!(error.kind(), Kind::Unavailable | Kind::Failed | Kind::Busy | Kind::Interrupted);
    assert!(fine, "{error:?}");
}

fn writes(repository: &Repository, content: &[u8], expected: &Expected) -> Result<()> {
    let mut writer = repository.begin(&plan(), Utc::now(), &Cancel::default())?;
    expected.lock().unwrap().insert(writer.id(), content.to_vec());
    let mut tree = writer.tree(&plan(), "files", crate::entry::Order::Tree)?;
    tree.add(crate::repo::tests::file_entry("db", Layout::Pages(8192), b"", content.len()))?;
    tree.content(&mut &content[..])?;
    let record = tree.finish(serde_json::json!({}))?;
    writer.commit(vec![record], Utc::now(), vec![], &Silent).map(drop)
}

fn reads(repository: &Repository, manifest: &Manifest, expected: &Expected) {
    let wanted = expected.lock().unwrap()[&manifest.id].clone();
    match restore(repository, manifest) {
        Ok(files) => assert!(files["db"] == wanted, "{} came back changed", manifest.id),
        Err(error) => assert!(repository.removed(manifest.id).is_some(), "{} is lost: {error:?}", manifest.id),
    }
}

/// Counts a writer out, also one that panics: the others wait for that.
struct Leaves<'a>(&'a std::sync::atomic::AtomicUsize);

impl Drop for Leaves<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
    }
}

fn story(seed: u64, rounds: usize) {
    println!("seed {seed}: LIFEBOAT_SEED={seed} repeats the choices, not the order of the threads");
    let bench = Bench::new();
    let expected = Expected::default();
    let writing = std::sync::atomic::AtomicUsize::new(3);
    let at_work = || writing.load(std::sync::atomic::Ordering::SeqCst) > 0;
    let at_work = &at_work;
    let writing = &writing;
    let all_faults = std::sync::Mutex::new(Vec::new());
    let faulty = || {
        let faults = Faults::new();
        all_faults.lock().unwrap().push(faults.clone());
        (Store::with_faults(bench.store.clone(), faults.clone()), faults)
    };
    std::thread::scope(|scope| {
        for number in 0..3u64 {
            let expected = &expected;
            let (store, faults) = faulty();
            let repository = bench.open_apart(store);
            scope.spawn(move || {
                let _at_work = Leaves(writing);
                let mut dice = Dice(seed * 31 + number);
                let mut content = noise(seed, 8192 * 40);
                for round in 0..rounds as u64 {
                    for page in content.chunks_mut(8192) {
                        if dice.roll(3) == 0 {
                            // Now and then what was there long ago, or what another writer has.
                            page.copy_from_slice(&noise(
                                dice.roll(200) + if dice.roll(2) == 0 { 0 } else { seed ^ (number * 1000 + round) },
                                8192,
                            ));
                        }
                    }
                    trouble(&mut dice, &faults);
                    if let Err(error) = writes(&repository, &content, expected) {
                        explained(&error);
                    }
                }
            });
        }
        for number in 0..2u64 {
            let (store, faults) = faulty();
            let repository = bench.open_apart(store);
            scope.spawn(move || {
                let mut dice = Dice(seed * 37 + number);
                while at_work() {
                    trouble(&mut dice, &faults);
                    // Rarely, or no backup would ever come to its end.
                    let options = if dice.roll(60) == 0 { eager() } else { CollectOptions::default() };
                    match repository.collect(&options, Utc::now(), &Silent, &Cancel::default()) {
                        Ok(done) => assert_eq!(done.blocked, Vec::<String>::new()),
                        Err(error) => explained(&error),
                    }
                }
            });
        }
        let expected = &expected;
        let (store, faults) = faulty();
        let repository = bench.open_apart(store);
        scope.spawn(move || {
            let mut dice = Dice(seed * 41);
            while at_work() {
                faults.clear();
                let mut manifests = repository.manifests(None).unwrap();
                manifests.pop();
                manifests.retain(|_| dice.roll(2) == 0);
                trouble(&mut dice, &faults);
                let done = repository.amend_ledger(Utc::now(), |ledger| {
                    let left = manifests.iter().filter(|manifest| !ledger.is_removed(manifest.id));
                    let removed = repository.removals_of(&left.map(|m| (m, "a test")).collect::<Vec<_>>(), Utc::now())?;
                    Ok((!removed.is_empty()).then_some(Decision::Remove { snapshots: removed }))
                });
                if let Err(error) = done {
                    explained(&error);
                }
            }
        });
        let repository = bench.open_apart(bench.store.clone());
        scope.spawn(move || {
            let mut dice = Dice(seed * 43);
            while at_work() {
                let (manifests, lost) = repository.sound_manifests(None).unwrap();
                for lost in lost {
                    assert!(lost.id.is_some_and(|id| repository.removed(id).is_some()), "{lost:?}");
                }
                if !manifests.is_empty() {
                    reads(&repository, &manifests[dice.roll(manifests.len() as u64) as usize], expected);
                }
            }
        });
    });
    let waited = std::time::Instant::now();
    while all_faults.lock().unwrap().iter().any(|faults| faults.late() > 0) {
        assert!(waited.elapsed() < Duration::from_secs(20), "late writes never came");
        std::thread::yield_now();
    }
    // All threads are gone: their sessions are dead.
    let repository = bench.open();
    for _ in 0..6 {
        assert_eq!(collect_with(&repository, &eager()).blocked, Vec::<String>::new());
    }
    let manifests = repository.manifests(None).unwrap();
    for manifest in &manifests {
        assert!(restore(&repository, manifest).unwrap()["db"] == expected.lock().unwrap()[&manifest.id], "{}", manifest.id);
    }
    sound(&bench.open());
    let end = collect_with(&bench.open(), &CollectOptions { dry_run: true, ..eager() });
    assert_eq!((end.packs_dead, end.packs_waiting), (0, 0), "garbage is left: {end:?}");
    assert!(!manifests.is_empty(), "no backup came to its end: nothing was tried");
    println!("{} snapshots left of {} begun, {} packs", manifests.len(), expected.lock().unwrap().len(), end.packs);
}

fn seed() -> u64 {
    std::env::var("LIFEBOAT_SEED").map_or(988_839, |text| text.parse().unwrap())
}

#[test]
fn writers_collectors_retention_and_readers_lose_nothing() {
    story(seed(), 5);
}

/// `LIFEBOAT_SECONDS=3600 cargo test --release --lib for_hours -- --ignored --nocapture`
#[test]
#[ignore = "as long as it is told to; for docs/measurements.md"]
fn writers_collectors_retention_and_readers_lose_nothing_for_hours() {
    let seconds = std::env::var("LIFEBOAT_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(60);
    let began = std::time::Instant::now();
    for seed in seed().. {
        if began.elapsed().as_secs() >= seconds {
            break;
        }
        story(seed, 8);
    }
}

/// Containers with their host's network, and cloned machines, have one name and see none of each other's processes.
#[test]
fn a_backup_of_another_container_or_machine_with_this_name_is_not_taken_for_gone() {
    let base = noise(84, 8192 * 60);
    let files = |round| vec![("db", Layout::Pages(8192), &b""[..], generation(&base, round))];
    let bench = Bench::new();
    let mut last = bench.backup(&files(0));
    let repository = bench.open();
    let mut child = std::process::Command::new("true").spawn().unwrap();
    let dead = child.id();
    child.wait().unwrap();
    // What a session of this program says of itself.
    let writer = bench.open().begin(&plan(), Utc::now(), &Cancel::default()).unwrap();
    let key = bench.keys("sessions/").pop().unwrap();
    let told = repository.inner.open_object(crate::repo::format::ObjectKind::Session, &key).unwrap();
    let own: serde_json::Value = serde_json::from_slice(&told).unwrap();
    drop(writer);
    assert!(own["boot_id"].as_str().unwrap().len() == 36 && own["pid_namespace"].as_str().unwrap().starts_with("pid:["), "{own}");
    let elsewhere = |key: &str, value: &str| {
        let mut other = own.clone();
        other[key] = value.into();
        other
    };
    let boot = elsewhere("boot_id", "00000000-0000-0000-0000-000000000000");
    let days = chrono::TimeDelta::days;
    for (round, mut session, why, wait) in [
        (1, own.clone(), "its process is gone", chrono::TimeDelta::hours(1)),
        (2, boot.clone(), "it ends by itself", days(7)),
        (3, elsewhere("pid_namespace", "pid:[1]"), "it ends by itself", days(7)),
    ] {
        let next = bench.backup(&files(round));
        remove(&repository, &[&last]).unwrap();
        session["process"] = dead.into();
        session["manifest"] = format!("snapshots/x/{}", SessionId::generate(Utc::now())).into();
        let key = format!("sessions/{}", SessionId::generate(Utc::now()));
        let sealed = repository.inner.seal_object(crate::repo::format::ObjectKind::Session, &key, session.to_string().as_bytes()).unwrap();
        bench.runtime.block_on(bench.store.create(&key, sealed.into())).unwrap();
        let waits = collect(&repository);
        let told = waits.waiting_for.join("") + &waits.warnings.join("");
        let day = (Utc::now() + wait).format("a prune after %Y-%m-%d").to_string();
        assert!(waits.fenced.is_empty() && told.contains(why) && told.contains(&day), "{session}: {waits:?}");
        bench.runtime.block_on(bench.store.delete(&key)).unwrap();
        last = next;
    }
    // A prune that a power failure ended is not waited for as long as one of another machine.
    let session = |object: &serde_json::Value| crate::repo::session::SeenSession {
        key: "sessions/x".into(),
        commits: format!("{FOLDER}x"),
        host: host_name(),
        process: dead,
        processes: serde_json::from_value(object.clone()).unwrap(),
        published: Utc::now(),
    };
    let options = CollectOptions::default();
    let after = |object: &serde_json::Value| (session(object).ends(&options, &[]) - Utc::now()).num_minutes();
    assert!((58..=60).contains(&after(&boot)), "{}", after(&boot));
    assert!(after(&elsewhere("pid_namespace", "pid:[1]")) > 6 * 24 * 60);
    assert!(after(&own) <= 0);
    assert_eq!(restore(&bench.open(), &last).unwrap(), content(&files(3)));
    sound(&bench.open());
}

/// A prune that was killed while it put packs together anew holds nothing up; a backup that may be at work is named, and until when it is waited for.
#[test]
fn a_killed_collection_is_not_waited_for_and_a_backup_is_named() {
    let base = noise(83, 8192 * 200);
    let files = |round| vec![("db", Layout::Pages(8192), &b""[..], generation(&base, round))];
    let bench = Bench::new();
    let snapshots: Vec<Manifest> = (0..3).map(|round| bench.backup(&files(round))).collect();
    remove(&bench.open(), &[&snapshots[0], &snapshots[1]]).unwrap();
    let repository = bench.open();
    let mut child = std::process::Command::new("true").spawn().unwrap();
    let dead = child.id();
    child.wait().unwrap();
    let publish = |commits: &str, process: u32| {
        let session = serde_json::json!({ "manifest": commits, "host": host_name(), "process": process, "started": Utc::now() });
        let key = format!("sessions/{}", SessionId::generate(Utc::now()));
        let sealed = repository.inner.seal_object(crate::repo::format::ObjectKind::Session, &key, session.to_string().as_bytes()).unwrap();
        bench.runtime.block_on(bench.store.create(&key, sealed.into())).unwrap();
        key
    };
    let killed = format!("{FOLDER}{}", SessionId::generate(Utc::now()));
    publish(&killed, dead);
    let done = collect(&repository);
    assert!(done.fenced.len() == 1 && done.fenced[0].starts_with("a prune"), "{done:?}");
    assert!(done.packs_rewritten >= 1 && done.packs_deleted >= 2 && done.warnings.is_empty(), "{done:?}");
    assert_eq!(restore(&bench.open(), &snapshots[2]).unwrap(), content(&files(2)));
    // Whoever was taken for dead and is not finds its name taken.
    let error = bench.runtime.block_on(bench.store.create(&killed, "x".into())).unwrap_err();
    assert_eq!(error.kind(), Kind::AlreadyExists);
    // A backup is another matter: its work would be lost.
    let mut last = snapshots[2].clone();
    for (round, process, why) in [(3, dead, "its process is gone"), (4, std::process::id(), "it ends by itself")] {
        let next = bench.backup(&files(round));
        remove(&repository, &[&last]).unwrap();
        let key = publish(&format!("snapshots/x/{}", SnapshotId::generate(Utc::now())), process);
        let waits = collect(&repository);
        let until = Utc::now() + chrono::TimeDelta::hours(if process == dead { 1 } else { 7 * 24 });
        let told = waits.waiting_for.join("").clone() + &waits.warnings.join("");
        assert!(waits.fenced.is_empty() && told.contains("a backup (sessions/") && told.contains(why), "{waits:?}");
        let day = until.format("a prune after %Y-%m-%d").to_string();
        assert!(told.contains(&day), "{told} {day}");
        bench.runtime.block_on(bench.store.delete(&key)).unwrap();
        last = next;
    }
    assert_eq!(restore(&bench.open(), &last).unwrap(), content(&files(4)));
    sound(&bench.open());
}

/// A record says that nothing of a pack was kept, and a snapshot needs it: that it is gone is no rewriting.
#[test]
fn a_pack_that_a_snapshot_needs_is_missing_whatever_a_record_says() {
    use crate::repo::format::{ObjectKind, PackId};
    use crate::repo::moved::{FOLDER, MovedPack, MovedRecord};
    let bench = Bench::new();
    let manifest = backup(&bench.open(), &one(1, 900)).unwrap();
    let repository = bench.open();
    let key = bench.keys("packs/").into_iter().max_by_key(|key| bench.runtime.block_on(bench.store.get(key)).unwrap().len()).unwrap();
    let id = PackId::from_key(&key).unwrap();
    let mut record = MovedRecord::default();
    record.sources.push(MovedPack::new(id, 64));
    let name = format!("{FOLDER}{}", ulid::Ulid::generate());
    let sealed = repository.inner.seal_object(ObjectKind::Moved, &name, &record.encode()).unwrap();
    bench.runtime.block_on(bench.store.create(&name, sealed.into())).unwrap();
    sound(&bench.open());
    bench.runtime.block_on(bench.store.delete(&key)).unwrap();
    for depth in [crate::repo::VerifyDepth::Structure, crate::repo::VerifyDepth::Data { percent: 100, run: 0 }] {
        let found = bench.open().verify(depth, &Silent, &Cancel::default()).unwrap().findings;
        let told = found.iter().any(|finding| finding.object == key && finding.kind == "missing" && finding.snapshots == [manifest.id]);
        assert!(told, "{found:?}");
    }
}

/// A pack that is lost harms the snapshots that need it and stops nothing else, whoever has missed it and whatever was noted of it then.
#[test]
fn a_lost_pack_that_somebody_missed_stands_in_no_way() {
    use crate::repo::format::PackId;
    let bench = Bench::new();
    let harmed = bench.backup(&one(1, 300));
    let largest = |bench: &Bench| {
        let len = |key: &String| bench.runtime.block_on(bench.store.get(key)).unwrap().len();
        bench.keys("packs/").into_iter().max_by_key(len).unwrap()
    };
    let lost = largest(&bench);
    let others: Vec<Manifest> = (2..6).map(|seed| bench.backup(&one(seed, 300))).collect();
    bench.runtime.block_on(bench.store.delete(&lost)).unwrap();
    let reader = bench.open();
    let error = restore(&reader, &harmed).unwrap_err();
    assert!(error.kind() == Kind::Damaged && format!("{error:?}").contains("is missing"), "{error:?}");
    assert_eq!((reader.condemn_found(Utc::now()).unwrap(), bench.keys("gc/tombstones/")), (0, Vec::new()));
    remove(&bench.open(), &[&others[0]]).unwrap();
    let done = collect(&bench.open());
    assert!(done.blocked.is_empty() && done.packs_deleted >= 1, "{done:?}");
    // As programs did that marked what is missing, too.
    crate::repo::session::condemn(&bench.open().inner, &[PackId::from_key(&lost).unwrap()], Utc::now()).unwrap();
    for removed in &others[1..3] {
        remove(&bench.open(), &[removed]).unwrap();
        let done = collect(&bench.open());
        assert!(done.blocked.is_empty() && done.packs_deleted >= 1, "{done:?}");
        assert!(done.warnings.iter().any(|told| told.contains(&lost) && told.contains("is lost")), "{done:?}");
    }
    assert_eq!(restore(&bench.open(), &others[3]).unwrap(), content(&one(5, 300)));
    let found = bench.open().verify(crate::repo::VerifyDepth::Structure, &Silent, &Cancel::default()).unwrap().findings;
    assert!(matches!(found.as_slice(), [one] if one.object == lost && one.kind == "missing" && one.snapshots == [harmed.id]), "{found:?}");
}

/// A pack that was put together anew looks like a lost one where its record is lost and somebody has listed it again: what took its place stays.
#[test]
fn what_may_have_taken_the_place_of_a_lost_pack_is_kept() {
    let base = noise(77, 8192 * 260);
    let files = |round| vec![("db", Layout::Pages(8192), &b""[..], generation(&base, round))];
    let bench = Bench::new();
    let snapshots: Vec<Manifest> = (0..3).map(|round| bench.backup(&files(round))).collect();
    let take = |folder: &str| -> Vec<(String, Bytes)> {
        bench.keys(folder).into_iter().map(|key| (key.clone(), bench.runtime.block_on(bench.store.get(&key)).unwrap())).collect()
    };
    let put = |objects: &[(String, Bytes)]| {
        for (key, bytes) in objects {
            if !bench.keys(key).contains(key) {
                bench.runtime.block_on(bench.store.create(key, bytes.clone())).unwrap();
            }
        }
    };
    let index = take("index/");
    remove(&bench.open(), &[&snapshots[0], &snapshots[1]]).unwrap();
    let of_data = CollectOptions { rewrite: &|pack| pack.kind == PackKind::Data && pack.dead_percent() > 0, ..CollectOptions::default() };
    assert!(collect_with(&bench.open(), &of_data).packs_rewritten >= 1);
    let records = take("gc/moved/");
    records.iter().for_each(|(key, _)| bench.runtime.block_on(bench.store.delete(key)).unwrap());
    put(&index);
    // More garbage, which goes.
    let gone = bench.backup(&one(4, 300));
    bench.backup(&one(5, 300));
    remove(&bench.open(), &[&gone]).unwrap();
    for round in 0..2 {
        let done = collect(&bench.open());
        assert!(done.blocked.is_empty() && (done.packs_deleted >= 1) == (round == 0), "{done:?}");
        assert!(done.warnings.iter().any(|told| told.contains("is lost")), "{done:?}");
    }
    put(&records);
    assert_eq!(restore(&bench.open(), &snapshots[2]).unwrap(), content(&files(2)));
    sound(&bench.open());
}

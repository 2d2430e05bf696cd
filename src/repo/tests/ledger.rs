//! The retention ledger: what this machine has seen of it counts, and what somebody decided without a right to can be taken back.

use std::collections::BTreeSet;
use std::path::Path;

use chrono::DateTime;

use super::*;
use crate::id::SnapshotId;
use crate::repo::format::ObjectKind;
use crate::repo::removed::{self, VOLUME_SNAPSHOTS};
use crate::store::Verb;

/// As a process on a machine with this cache folder opens it.
fn on_machine(bench: &Bench, cache: &Path) -> Repository {
    let options = OpenOptions { cache: Some(cache.to_owned()), workers: 2 };
    Repository::open(bench.store.clone(), bench.runtime.handle().clone(), &passphrase(), &options).unwrap()
}

fn hold(repository: &Repository, id: crate::id::SnapshotId) {
    let hold = Hold { snapshot: id, until: None, reason: "audit".into(), by: "t".into(), held_at: Utc::now() };
    assert!(repository.amend_ledger(Utc::now(), |_| Ok(Some(Decision::Hold { hold: hold.clone() }))).unwrap());
}

fn remove(repository: &Repository, manifests: &[&Manifest]) {
    let manifests: Vec<(&Manifest, &str)> = manifests.iter().map(|manifest| (*manifest, "the rules")).collect();
    let decide = |_: &Ledger| Ok(Some(Decision::Remove { snapshots: repository.removals_of(&manifests, Utc::now())? }));
    assert!(repository.amend_ledger(Utc::now(), decide).unwrap());
}

fn collect(repository: &Repository) -> Collection {
    repository.collect(&CollectOptions::default(), Utc::now(), &Silent, &Cancel::default()).unwrap()
}

fn files(seed: u64) -> Vec<TestFile> {
    vec![("a", Layout::Content, &b""[..], noise(seed, 200_000))]
}

/// Whoever may delete objects takes a hold back by deleting its entry, which is the newest: no other entry misses it.
#[test]
fn a_ledger_that_ends_before_what_this_machine_has_seen_is_not_believed() {
    let bench = Bench::new();
    let [here, elsewhere] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let snapshots: Vec<Manifest> = (0..3).map(|seed| bench.backup(&files(seed))).collect();
    let repository = on_machine(&bench, here.path());
    remove(&repository, &[&snapshots[0]]);
    // Seen by another process of this machine alone.
    hold(&on_machine(&bench, here.path()), snapshots[1].id);
    let newest = bench.keys("retention/").pop().unwrap();
    let entry = bench.runtime.block_on(bench.store.get(&newest)).unwrap();
    let delete = |key: &str| bench.runtime.block_on(bench.store.delete(key)).unwrap();
    let create = |key: &str, bytes: Bytes| assert_eq!(bench.runtime.block_on(bench.store.create(key, bytes)).unwrap(), Created::New);

    delete(&newest);
    for repository in [&repository, &on_machine(&bench, here.path())] {
        let error = repository.ledger().unwrap_err();
        assert_eq!(error.kind(), Kind::Damaged);
        assert!(
            error.to_string().contains("has seen its entry retention/0000000000000002, and it ends with retention/0000000000000001 now"),
            "{error}"
        );
        let decided = repository.amend_ledger(Utc::now(), |_| panic!("nothing may be decided"));
        assert_eq!(decided.unwrap_err().kind(), Kind::Damaged);
        let packs = bench.keys("packs/");
        assert!(collect(repository).blocked.iter().any(|why| why.contains("has seen its entry")));
        assert_eq!(bench.keys("packs/"), packs);
        let found = repository.verify(VerifyDepth::Structure, &Silent, &Cancel::default()).unwrap();
        assert!(found.findings.iter().any(|finding| finding.object == "retention/" && finding.kind == "damaged"), "{found:?}");
        assert_eq!(restore(repository, &snapshots[2]).unwrap(), expected(&files(2)), "what is there can be restored all the same");
    }
    // The whole of it.
    let first = bench.keys("retention/").pop().unwrap();
    let first_entry = bench.runtime.block_on(bench.store.get(&first)).unwrap();
    delete(&first);
    assert!(repository.ledger().unwrap_err().to_string().contains("there is none now"));
    create(&first, first_entry);

    // A machine that has not seen it cannot know, and decides something else in its place.
    let other = on_machine(&bench, elsewhere.path());
    assert!(other.ledger().unwrap().holds().is_empty());
    hold(&other, snapshots[2].id);
    let error = repository.ledger().unwrap_err();
    assert!(error.kind() == Kind::Damaged && error.to_string().contains("another one is in its place"), "{error}");
    hold(&other, snapshots[2].id);
    assert!(repository.ledger().unwrap_err().to_string().contains("another one is in its place"), "also when it goes on from there");

    // Brought back, it is as it was here; and the other machine is the one that has seen what is gone.
    bench.keys("retention/").iter().skip(1).for_each(|key| delete(key));
    create(&newest, entry);
    assert!(repository.ledger().unwrap().hold(snapshots[1].id, Utc::now()).is_some());
    assert_eq!(other.ledger().unwrap_err().kind(), Kind::Damaged);
    assert_eq!(other.forget_ledger().unwrap(), Some(3));
    assert!(other.ledger().unwrap().hold(snapshots[1].id, Utc::now()).is_some(), "put back on purpose, somebody says");
    assert_eq!(other.forget_ledger().unwrap(), Some(2));
    assert_eq!(on_machine(&bench, elsewhere.path()).forget_ledger().unwrap(), None);
}

#[test]
fn what_this_machine_has_seen_may_be_behind_a_base() {
    let bench = Bench::new();
    let here = tempfile::tempdir().unwrap();
    let snapshot = bench.backup(&files(1));
    let (repository, other) = (on_machine(&bench, here.path()), bench.open());
    hold(&repository, snapshot.id);
    for _ in 0..70 {
        other.pass_in_ledger("a test", Utc::now()).unwrap();
    }
    assert_eq!(bench.keys("retention/")[0], "retention/0000000000000040", "what came before the base was cleared away");
    assert!(repository.ledger().unwrap().hold(snapshot.id, Utc::now()).is_some());
    // From a newer one on it counts again.
    bench.runtime.block_on(bench.store.delete(&bench.keys("retention/").pop().unwrap())).unwrap();
    assert_eq!(repository.ledger().unwrap_err().kind(), Kind::Damaged);
}

#[test]
fn what_somebody_decided_without_a_right_to_is_taken_back() {
    let bench = Bench::new();
    let snapshots: Vec<Manifest> = (0..4).map(|seed| bench.backup(&files(seed))).collect();
    let repository = bench.open();
    hold(&repository, snapshots[1].id);
    remove(&repository, &[&snapshots[0]]);
    let then = repository.ledger().unwrap();
    assert!(!repository.reinstate_to(&then, "t", "an attack", Utc::now()).unwrap().takes_away(), "nothing was decided since");
    assert_eq!(bench.keys("retention/").len(), 2);

    // Released and removed; and something that takes nothing away.
    let release = Decision::Release { snapshot: snapshots[1].id, by: "evil".into(), reason: "x".into() };
    let mut release = Some(release);
    repository.amend_ledger(Utc::now(), |_| Ok(release.take())).unwrap();
    remove(&repository, &[&snapshots[1], &snapshots[2]]);
    hold(&repository, snapshots[3].id);
    let ids = |repository: &Repository| repository.manifests(None).unwrap().iter().map(|manifest| manifest.id).collect::<Vec<_>>();
    assert_eq!(ids(&repository), [snapshots[3].id]);

    let taken = repository.reinstate_to(&then, "t", "an attack", Utc::now()).unwrap();
    assert_eq!((taken.removed.len(), taken.holds.len()), (2, 1));
    for round in 0..70 {
        repository.pass_in_ledger("so that it is in a base", Utc::now()).unwrap();
        if round % 16 == 0 {
            assert_eq!(ids(&repository), snapshots[1..].iter().map(|manifest| manifest.id).collect::<Vec<_>>());
        }
    }
    for repository in [repository, bench.open_apart(bench.store.clone())] {
        assert_eq!(ids(&repository), snapshots[1..].iter().map(|manifest| manifest.id).collect::<Vec<_>>());
        let ledger = repository.ledger().unwrap();
        let held = |at: usize| ledger.hold(snapshots[at].id, Utc::now()).is_some();
        assert_eq!((held(1), held(2), held(3)), (true, false, true));
        assert!(ledger.is_removed(snapshots[0].id), "what was rightly removed before stays removed");
        collect(&repository);
        for (at, snapshot) in snapshots.iter().enumerate().skip(1) {
            assert_eq!(restore(&repository, snapshot).unwrap(), expected(&files(at as u64)));
        }
        let found = repository.verify(VerifyDepth::Data { percent: 100, run: 0 }, &Silent, &Cancel::default()).unwrap();
        assert_eq!(found.findings, []);
    }
}

#[test]
fn a_decision_without_a_reason_is_told_without_one() {
    let snapshot = crate::id::SnapshotId::generate(Utc::now());
    let release = |reason: &str| Decision::Release { snapshot, by: "uid 0 on vm".into(), reason: reason.into() }.describe().unwrap();
    assert_eq!(release("done"), format!("released snapshot {snapshot} (done, by uid 0 on vm)"));
    assert_eq!(release(""), format!("released snapshot {snapshot} (by uid 0 on vm)"));
}

/// Entries that somebody put in the place of others do not go on from those when they are back: they are deleted, and this machine, which had seen them,
/// believes the ledger as it is then.
#[test]
fn entries_that_go_on_from_another_ledger_are_put_away() {
    let bench = Bench::new();
    let [here, elsewhere] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let snapshots: Vec<Manifest> = (0..2).map(|seed| bench.backup(&files(seed))).collect();
    let repository = on_machine(&bench, here.path());
    repository.pass_in_ledger("the first", Utc::now()).unwrap();
    hold(&repository, snapshots[0].id);
    let then = repository.ledger().unwrap();
    let held = bench.keys("retention/").pop().unwrap();
    let entry = bench.runtime.block_on(bench.store.get(&held)).unwrap();
    bench.runtime.block_on(bench.store.delete(&held)).unwrap();
    let thief = on_machine(&bench, elsewhere.path());
    thief.pass_in_ledger("in its place", Utc::now()).unwrap();
    remove(&thief, &[&snapshots[0]]);
    bench.runtime.block_on(faults::replace(&bench.store, &held, entry)).unwrap();
    assert_eq!(thief.ledger().unwrap_err().kind(), Kind::Damaged);
    assert_eq!(repository.ledger().unwrap_err().kind(), Kind::Damaged);
    thief.put_ledger_back_to(&then).unwrap();
    for repository in [&repository, &thief] {
        assert!(repository.ledger().unwrap().hold(snapshots[0].id, Utc::now()).is_some());
        assert_eq!(repository.manifests(None).unwrap().len(), 2);
    }
}

/// What a damaged snapshot was is not known when it is removed, and the one that came after it, which names it, was removed before: no chain is broken.
#[test]
fn a_removal_that_does_not_know_what_the_snapshot_was_breaks_no_chain() {
    let bench = Bench::new();
    let snapshots: Vec<Manifest> = (0..3).map(|seed| bench.backup(&files(seed))).collect();
    let repository = bench.open();
    remove(&repository, &[&snapshots[1]]);
    let first = &snapshots[0];
    let unread = repository.removal_of_unread(&first.plan, first.id, [&snapshots[2]].into_iter(), "the rules", Utc::now());
    assert_eq!(unread.hash, "");
    let decide = |_: &Ledger| Ok(Some(Decision::Remove { snapshots: vec![unread.clone()] }));
    assert!(repository.amend_ledger(Utc::now(), decide).unwrap());
    bench.runtime.block_on(bench.store.delete(&repository.manifest_key(first))).unwrap();
    let found = bench.open().verify(VerifyDepth::Structure, &Silent, &Cancel::default()).unwrap();
    assert_eq!(found.findings, []);
}

/// A snapshot that never was, of one of a hundred plans, made and removed in this hour, whose parent is that plan's one before (`before` hours ago).
fn removal(hour: u64, before: Option<&RemovedSnapshot>) -> RemovedSnapshot {
    let time = DateTime::from_timestamp(1_700_000_000 + hour as i64 * 36, 0).unwrap();
    RemovedSnapshot {
        id: SnapshotId::generate(time),
        plan: Name::new(format!("plan-{}", hour % 100)).unwrap(),
        hash: blake3::hash(&hour.to_le_bytes()).to_hex().to_string(),
        parents: before.map(|before| Parent { id: before.id, hash: before.hash.clone() }).into_iter().collect(),
        removed_at: time,
        reason: "no rule keeps it".into(),
        logs: if hour % 100 == 7 { vec![Name::new("db").unwrap()] } else { Vec::new() },
    }
}

fn decide(repository: &Repository, decision: &Decision) {
    assert!(repository.amend_ledger(Utc::now(), |_| Ok(Some(decision.clone()))).unwrap());
}

/// Everything that the ledger knows of removed snapshots, by id.
fn known(repository: &Repository) -> BTreeMap<SnapshotId, RemovedSnapshot> {
    let ledger = repository.ledger().unwrap();
    let mut all = BTreeMap::new();
    repository.removals(&ledger, |snapshot| assert!(all.insert(snapshot.id, snapshot).is_none(), "each once")).unwrap();
    assert_eq!(all.keys().copied().collect::<Vec<_>>(), ledger.removed_ids().collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>());
    assert!(all.keys().all(|id| ledger.is_removed(*id)));
    all
}

/// A hundred plans that back up each hour, after more than a year of it: the ledger stays small in memory, and so does what a decision writes.
#[test]
fn a_ledger_of_a_million_removals_goes_on() {
    const COUNT: u64 = 1_000_000;
    let bench = Bench::new();
    let faults = Faults::new();
    let repository = bench.open_apart(Store::with_faults(bench.store.clone(), faults.clone()));
    // As if entries had removed them: that would take an hour.
    let mut newest: Vec<RemovedSnapshot> = Vec::new();
    let mut volumes = Vec::new();
    let mut stored = 0;
    let size = |key: String| bench.runtime.block_on(bench.store.head(&key)).unwrap().unwrap().size;
    for first in (0..COUNT).step_by(VOLUME_SNAPSHOTS) {
        let mut of_volume = BTreeMap::new();
        for hour in first..COUNT.min(first + VOLUME_SNAPSHOTS as u64) {
            let snapshot = removal(hour, newest.get(hour as usize % 100));
            of_volume.insert(snapshot.id, snapshot.clone());
            match newest.get_mut(hour as usize % 100) {
                Some(before) => *before = snapshot,
                None => newest.push(snapshot),
            }
        }
        for (ids, records) in removed::into_volumes(&of_volume) {
            let listed = removed::write(&repository.inner, 64, &ids, Some(&records)).unwrap();
            stored += listed.keys().into_iter().map(size).sum::<u64>();
            volumes.push(listed);
        }
    }
    assert_eq!(volumes.len() as u64, COUNT.div_ceil(VOLUME_SNAPSHOTS as u64));
    assert!(stored < COUNT * 100, "{} bytes a removal", stored / COUNT);
    let entry = serde_json::json!({
        "number": 64, "previous": "", "time": Utc::now(), "host": "h", "decision": { "action": "pass", "reason": "a test" },
        "state": { "volumes": volumes, "logs": { "plan-7": ["db"] }, "holds": [] },
    });
    let key = "retention/0000000000000040";
    let sealed = repository.inner.seal_object(ObjectKind::Ledger, key, entry.to_string().as_bytes()).unwrap();
    repository.create(key, sealed).unwrap();

    faults.forget_calls();
    let ledger = repository.ledger().unwrap();
    let read: u64 = faults.calls().iter().filter(|call| matches!(call.verb, Verb::Get | Verb::GetRange)).map(|call| call.bytes).sum();
    assert!(read < COUNT * 16 + 100_000, "ids alone are read: {read} bytes");
    assert_eq!(ledger.removed_ids().count() as u64, COUNT);
    assert!(ledger.volumes().iter().map(|volume| size_of_val(volume.ids())).sum::<usize>() <= 16_000_000, "bytes of memory");
    let of_volumes = || repository.ledger().unwrap().volumes().len();
    faults.forget_calls();
    let again = repository.ledger().unwrap();
    assert_eq!((again.removed_ids().count() as u64, faults.keys(Verb::Get)), (COUNT, Vec::new()), "what was read is not read again");

    // What was removed is known; a hold, a removal, and a backup whose parents are there.
    assert!(ledger.is_removed(newest[5].id) && !ledger.is_removed(SnapshotId::generate(Utc::now())));
    let error = repository.removed(newest[5].id).unwrap().to_string();
    assert!(error.contains("of plan plan-5 was removed on"), "{error}");
    let snapshots: Vec<Manifest> = (0..2).map(|seed| bench.backup(&files(seed))).collect();
    hold(&repository, snapshots[1].id);
    faults.forget_calls();
    remove(&repository, &[&snapshots[0]]);
    let written = |faults: &Faults| faults.calls().iter().filter(|call| call.verb == Verb::Create).map(|call| call.bytes).sum::<u64>();
    assert!(written(&faults) < 2_000, "{} bytes for a removal", written(&faults));
    assert_eq!(bench.open().manifests(None).unwrap().iter().map(|manifest| manifest.id).collect::<Vec<_>>(), [snapshots[1].id]);

    // Another state, of two removals an entry: what it writes follows what is new.
    faults.forget_calls();
    let mut removals = 0;
    for hour in COUNT..COUNT + 62 {
        let one = removal(hour, newest.get(hour as usize % 100));
        let two = removal(hour, None);
        decide(&repository, &Decision::Remove { snapshots: vec![one, two] });
        removals += 2;
    }
    assert!(written(&faults) < removals * 2_000, "{} bytes for {removals} removals", written(&faults));
    let entries = bench.keys("retention/").into_iter().filter(|key| !removed::is_volume_key(key));
    assert_eq!(entries.collect::<Vec<_>>(), ["retention/0000000000000080"], "the entries before are not needed");
    assert_eq!(of_volumes(), volumes.len() + 1);
    let whole = bench.open_apart(bench.store.clone()).ledger().unwrap();
    assert_eq!(whole.removed_ids().count() as u64, COUNT + removals + 1);
    assert!(whole.hold(snapshots[1].id, Utc::now()).is_some());
    assert_eq!(whole.logs_of_removed().map(|(plan, source)| format!("{plan} {source}")).collect::<Vec<_>>(), ["plan-7 db"]);
}

/// Whatever is decided: what the ledger knows is what a plain list of it would, and volumes stay few.
#[test]
fn volumes_say_what_the_entries_before_them_said() {
    let bench = Bench::new();
    let (repository, other) = (bench.open(), bench.open_apart(bench.store.clone()));
    let mut model: BTreeMap<SnapshotId, RemovedSnapshot> = BTreeMap::new();
    let mut hour = 0;
    for round in 0..420_u64 {
        let random = u64::from_le_bytes(blake3::hash(&round.to_le_bytes()).as_bytes()[..8].try_into().unwrap());
        // Some are many, as in the first prune of a repository: more than a volume holds.
        let many = if round == 150 { VOLUME_SNAPSHOTS as u64 + 10 } else { random % 40 };
        match if round == 150 { 0 } else { random % 5 } {
            0..3 => {
                let mut snapshots: Vec<RemovedSnapshot> = (hour..hour + many).map(|hour| removal(hour, None)).collect();
                hour += many;
                // Also one that was removed already: what was known of it first counts.
                snapshots.extend(model.values().next().map(|known| RemovedSnapshot { reason: "again".into(), ..known.clone() }));
                decide(&repository, &Decision::Remove { snapshots: snapshots.clone() });
                for snapshot in snapshots {
                    model.entry(snapshot.id).or_insert(snapshot);
                }
            }
            3 => {
                let snapshots: Vec<SnapshotId> = model.keys().copied().filter(|id| id.to_bytes()[15].is_multiple_of(7)).take(5).collect();
                decide(
                    &repository,
                    &Decision::Reinstate { snapshots: snapshots.clone(), holds: vec![], by: "t".into(), reason: "x".into() },
                );
                let taken: Vec<RemovedSnapshot> = snapshots.iter().filter_map(|id| model.remove(id)).collect();
                // And some of these removed once more, for another reason.
                let again: Vec<RemovedSnapshot> =
                    taken.into_iter().take(2).map(|snapshot| RemovedSnapshot { reason: "later".into(), ..snapshot }).collect();
                decide(&repository, &Decision::Remove { snapshots: again.clone() });
                model.extend(again.into_iter().map(|snapshot| (snapshot.id, snapshot)));
            }
            _ => repository.pass_in_ledger("a test", Utc::now()).unwrap(),
        }
        if round % 40 == 0 || round == 419 {
            assert!(known(&repository) == model && known(&other) == model, "round {round}");
            assert!(known(&bench.open_apart(bench.store.clone())) == model, "round {round}");
        }
    }
    let volumes = repository.ledger().unwrap().volumes().to_vec();
    assert!((2..12).contains(&volumes.len()) && volumes.iter().all(|volume| volume.ids().len() <= VOLUME_SNAPSHOTS), "{}", volumes.len());
    assert_eq!(bench.keys("retention/ids/").len(), volumes.len(), "nothing is left of those before");
    assert_eq!(bench.keys("retention/removed/").len(), volumes.len());
}

/// What a state lists is checked like an entry: without it nothing is decided, and a verification tells what is wrong.
#[test]
fn a_volume_that_is_missing_or_another_one_is_damage() {
    let bench = Bench::new();
    let snapshots: Vec<Manifest> = (0..4).map(|seed| bench.backup(&files(seed))).collect();
    let repository = bench.open();
    remove(&repository, &[&snapshots[0], &snapshots[1]]);
    (1..64).for_each(|_| repository.pass_in_ledger("a test", Utc::now()).unwrap());
    // The next state has one of its own beside, that is larger.
    for hour in 0..64 {
        decide(&repository, &Decision::Remove { snapshots: vec![removal(hour, None), removal(hour, None), removal(hour, None)] });
    }
    collect(&repository);
    let first = repository.ledger().unwrap();
    assert_eq!(first.volumes().len(), 1, "put together: {:?}", first.volumes());
    (0..63).for_each(|_| repository.pass_in_ledger("a test", Utc::now()).unwrap());
    remove(&repository, &[&snapshots[2]]);
    (0..64).for_each(|_| repository.pass_in_ledger("a test", Utc::now()).unwrap());
    let volumes = repository.ledger().unwrap().volumes().to_vec();
    assert_eq!(volumes.len(), 3, "the others are smaller");
    let verify = |repository: &Repository| repository.verify(VerifyDepth::Structure, &Silent, &Cancel::default()).unwrap().findings;
    assert_eq!(verify(&repository), []);
    let keys: Vec<String> = volumes.iter().flat_map(|volume| volume.listed.keys()).collect();
    let objects: BTreeMap<&String, Bytes> = keys.iter().map(|key| (key, bench.runtime.block_on(bench.store.get(key)).unwrap())).collect();
    for key in &keys {
        let is_ids = key.starts_with("retention/ids/");
        let swapped = keys.iter().find(|other| *other != key && other.starts_with("retention/ids/") == is_ids).unwrap();
        // The same content sealed anew is another object, too.
        let kind = if is_ids { ObjectKind::RemovedIds } else { ObjectKind::Removed };
        let content = crate::repo::seal::open(&repository.inner.keys, repository.inner.id, kind, key, &objects[key]).unwrap();
        let anew = repository.inner.seal_object(kind, key, &content).unwrap();
        for (what, bytes) in [("missing", None), ("swapped", Some(objects[swapped].clone())), ("sealed anew", Some(Bytes::from(anew)))] {
            match bytes {
                None => bench.runtime.block_on(faults::remove(&bench.store, key)).unwrap(),
                Some(bytes) => bench.runtime.block_on(faults::replace(&bench.store, key, bytes)).unwrap(),
            }
            let fresh = bench.open_apart(bench.store.clone());
            let found = verify(&fresh);
            assert!(found.iter().any(|finding| finding.object.starts_with("retention/")), "{key} {what}: {found:?}");
            if is_ids || what == "missing" {
                assert_eq!(fresh.ledger().unwrap_err().kind(), Kind::Damaged, "{key} {what}");
                let decided = fresh.amend_ledger(Utc::now(), |_| panic!("nothing may be decided"));
                assert_eq!(decided.unwrap_err().kind(), Kind::Damaged);
                assert!(!collect(&fresh).blocked.is_empty());
            } else {
                // That they were removed is known; what they were is not.
                assert!(fresh.ledger().unwrap().is_removed(volumes[0].ids()[0]));
                let told = volumes.iter().find(|volume| volume.listed.records_key() == *key).unwrap().ids()[0];
                assert!(fresh.removed(told).unwrap().to_string().contains("was removed; when and why cannot be read"));
                assert!(
                    found.iter().all(|finding| finding.kind != "chain-broken" || !finding.object.contains(&snapshots[1].id.to_string()))
                );
            }
            assert_eq!(restore(&fresh, &snapshots[3]).unwrap(), expected(&files(3)), "what is there can be restored all the same");
            bench.runtime.block_on(faults::replace(&bench.store, key, objects[key].clone())).unwrap();
        }
    }
    assert_eq!(verify(&bench.open_apart(bench.store.clone())), []);
}

/// Who read the ledger before its volumes were put together still finds what they knew; and what a writer left that did not come to its entry is cleared
/// away, but not what is for an entry to come.
#[test]
fn volumes_that_were_put_together_meanwhile_are_found_again() {
    let bench = Bench::new();
    let (repository, slow) = (bench.open(), bench.open_apart(bench.store.clone()));
    let mut model = BTreeMap::new();
    let round = |hours: std::ops::Range<u64>, model: &mut BTreeMap<SnapshotId, RemovedSnapshot>| {
        for hour in hours {
            let snapshot = removal(hour, None);
            decide(&repository, &Decision::Remove { snapshots: vec![snapshot.clone()] });
            model.insert(snapshot.id, snapshot);
        }
    };
    round(0..64, &mut model);
    let before = slow.ledger().unwrap();
    let (then, first) = (model.clone(), bench.keys("retention/ids/"));
    let written = |number: u64| removed::write(&repository.inner, number, &[], Some(&[])).unwrap();
    let (left, to_come) = (written(128), written(192));
    round(64..150, &mut model);
    let keys = bench.keys("retention/ids/");
    assert!(!keys.contains(&first[0]) && !keys.contains(&left.ids_key()), "{keys:?}");
    assert!(keys.contains(&to_come.ids_key()), "{keys:?}");
    let mut found = BTreeMap::new();
    slow.removals(&before, |snapshot| drop(found.insert(snapshot.id, snapshot))).unwrap();
    assert!(found == then);
    assert!(known(&slow) == model);
    round(150..200, &mut model);
    assert!(!bench.keys("retention/ids/").contains(&to_come.ids_key()), "nobody took it");
    assert!(known(&slow) == model);
}

/// Rotten bytes in what only the chain asks for end neither retention nor holds, and a repair gives them up, or makes the other half anew.
#[test]
fn a_volume_of_which_one_half_is_lost_keeps_nobody_from_deciding() {
    let bench = Bench::new();
    let repository = bench.open();
    let mut model: BTreeMap<SnapshotId, RemovedSnapshot> = BTreeMap::new();
    let round = |hours: std::ops::Range<u64>, model: &mut BTreeMap<SnapshotId, RemovedSnapshot>| {
        for hour in hours {
            let snapshot = removal(hour, None);
            decide(&repository, &Decision::Remove { snapshots: vec![snapshot.clone()] });
            model.insert(snapshot.id, snapshot);
        }
    };
    let verify = || bench.open_apart(bench.store.clone()).verify(VerifyDepth::Structure, &Silent, &Cancel::default()).unwrap().findings;
    round(0..64, &mut model);
    let held =
        Hold { snapshot: SnapshotId::generate(Utc::now()), until: None, reason: "audit".into(), by: "t".into(), held_at: Utc::now() };
    decide(&repository, &Decision::Hold { hold: held.clone() });
    let volume = repository.ledger().unwrap().volumes()[0].clone();
    let (first, records) = (volume.ids()[0], volume.listed.records_key());
    bench.runtime.block_on(faults::flip_byte(&bench.store, &records, 90)).unwrap();
    // Through three more states, each of which would put it together with its own.
    round(64..250, &mut model);
    let ledger = bench.open_apart(bench.store.clone()).ledger().unwrap();
    assert_eq!(ledger.removed_ids().collect::<BTreeSet<_>>(), model.keys().copied().collect());
    assert!(ledger.volumes().contains(&volume) && ledger.hold(held.snapshot, Utc::now()) == Some(&held));
    let found = verify();
    assert!(found.iter().all(|finding| finding.object == records) && !found.is_empty(), "{found:?}");

    assert_eq!(repository.harmed_volumes().unwrap().into_iter().collect::<Vec<_>>(), [(records.clone(), HarmedVolume::Records)]);
    assert_eq!(repository.mend_volumes("a test", Utc::now()).unwrap().len(), 1);
    assert_eq!((verify(), repository.mend_volumes("a test", Utc::now()).unwrap().len()), (vec![], 0));
    assert!(!bench.keys("retention/").contains(&records));
    let ledger = bench.open_apart(bench.store.clone()).ledger().unwrap();
    assert_eq!(ledger.removed_ids().collect::<BTreeSet<_>>(), model.keys().copied().collect());
    assert_eq!(ledger.hold(held.snapshot, Utc::now()), Some(&held));
    let mut known = BTreeMap::new();
    let read = repository.removals(&ledger, |snapshot| drop(known.insert(snapshot.id, snapshot)));
    assert_eq!(read.unwrap_err().kind(), Kind::Damaged);
    assert!(known == model.clone().into_iter().filter(|(id, _)| !volume.has(*id)).collect());
    assert!(repository.removed(first).unwrap().to_string().contains("was removed; when and why cannot be read"));
    // What was lost can be taken back like any other.
    decide(&repository, &Decision::Reinstate { snapshots: vec![first], holds: vec![], by: "t".into(), reason: "x".into() });
    model.remove(&first);
    round(250..400, &mut model);
    let ledger = bench.open_apart(bench.store.clone()).ledger().unwrap();
    assert_eq!(ledger.removed_ids().collect::<BTreeSet<_>>(), model.keys().copied().collect());
    assert_eq!(verify(), []);

    // The ids are in the records, too.
    let volume = ledger.volumes().iter().find(|volume| !volume.listed.is_without_records()).unwrap().clone();
    let ids = volume.listed.ids_key();
    let whole = bench.runtime.block_on(bench.store.get(&ids)).unwrap();
    for harm in ["flipped", "gone"] {
        if harm == "gone" {
            bench.runtime.block_on(faults::remove(&bench.store, &ids)).unwrap();
        } else {
            bench.runtime.block_on(faults::flip_byte(&bench.store, &ids, 90)).unwrap();
        }
        let fresh = bench.open_apart(bench.store.clone());
        assert_eq!(fresh.ledger().unwrap_err().kind(), Kind::Damaged);
        assert_eq!(fresh.harmed_volumes().unwrap().into_iter().collect::<Vec<_>>(), [(ids.clone(), HarmedVolume::Ids)]);
        if harm == "flipped" {
            bench.runtime.block_on(faults::replace(&bench.store, &ids, whole.clone())).unwrap();
        }
    }
    let fresh = bench.open_apart(bench.store.clone());
    assert_eq!(fresh.mend_volumes("a test", Utc::now()).unwrap().len(), 1);
    assert_eq!(fresh.ledger().unwrap().removed_ids().collect::<BTreeSet<_>>(), model.keys().copied().collect());
    assert_eq!(verify(), []);
    // Nothing of both halves: nothing is known, and nothing is decided.
    let volume = fresh.ledger().unwrap().volumes().iter().find(|volume| !volume.listed.is_without_records()).unwrap().clone();
    for key in volume.listed.keys() {
        bench.runtime.block_on(faults::flip_byte(&bench.store, &key, 90)).unwrap();
    }
    let fresh = bench.open_apart(bench.store.clone());
    assert_eq!(fresh.mend_volumes("a test", Utc::now()).unwrap_err().kind(), Kind::Damaged);
    assert_eq!(fresh.ledger().unwrap_err().kind(), Kind::Damaged);
}

/// The chain goes on through volumes: of what was removed long ago a thief cannot take a parent away unnoticed.
#[test]
fn a_chain_goes_on_through_volumes() {
    let bench = Bench::new();
    let snapshots: Vec<Manifest> = (0..5).map(|seed| bench.backup(&files(seed))).collect();
    let repository = bench.open();
    remove(&repository, &[&snapshots[0], &snapshots[2], &snapshots[3]]);
    (0..70).for_each(|_| repository.pass_in_ledger("a test", Utc::now()).unwrap());
    assert_eq!(repository.ledger().unwrap().volumes().len(), 1);
    let verify = || bench.open().verify(VerifyDepth::Structure, &Silent, &Cancel::default()).unwrap().findings;
    assert_eq!(verify(), []);
    bench.runtime.block_on(bench.store.delete(&repository.manifest_key(&snapshots[1]))).unwrap();
    let found = verify();
    assert_eq!(
        (found.len(), found[0].kind.as_str(), found[0].snapshots.as_slice()),
        (1, "chain-broken", &[snapshots[1].id][..]),
        "{found:?}"
    );
    // Nor put another one in the place of one that was removed: its child has the hash of what it came after.
    let mut decision = repository.removals_of(&[(&snapshots[4], "the rules")], Utc::now()).unwrap();
    decision[0].parents[0].hash = "00".repeat(32);
    decide(&repository, &Decision::Remove { snapshots: decision });
    let found = verify();
    assert!(found.iter().any(|finding| finding.message.contains("is not the one that snapshot")), "{found:?}");
}

/// What an older program wrote whole into an entry goes on, and the next state has it in volumes.
#[test]
fn the_base_of_an_older_program_is_read_and_goes_on_in_volumes() {
    let bench = Bench::new();
    let repository = bench.open();
    let removed: Vec<RemovedSnapshot> = (0..100).map(|hour| removal(hour, None)).collect();
    let hold =
        Hold { snapshot: SnapshotId::generate(Utc::now()), until: None, reason: "audit".into(), by: "t".into(), held_at: Utc::now() };
    let entry = serde_json::json!({
        "number": 64, "previous": "", "time": Utc::now(), "host": "h", "decision": { "action": "pass", "reason": "a test" },
        "base": { "removed": removed, "holds": [hold] },
    });
    let key = "retention/0000000000000040";
    repository.create(key, repository.inner.seal_object(ObjectKind::Ledger, key, entry.to_string().as_bytes()).unwrap()).unwrap();
    let model: BTreeMap<SnapshotId, RemovedSnapshot> = removed.into_iter().map(|snapshot| (snapshot.id, snapshot)).collect();
    for round in 0..70 {
        if round % 35 == 0 || round > 62 {
            let ledger = repository.ledger().unwrap();
            assert!(known(&repository) == model && ledger.hold(hold.snapshot, Utc::now()) == Some(&hold), "round {round}");
            assert_eq!(ledger.logs_of_removed().count(), 1);
            assert_eq!(ledger.volumes().len(), usize::from(round > 63));
        }
        repository.pass_in_ledger("a test", Utc::now()).unwrap();
    }
    assert!(known(&bench.open_apart(bench.store.clone())) == model);
}

/// A loss that was accepted is known as long as its snapshot is there, whatever becomes of the entry that said so.
#[test]
fn an_accepted_loss_stands_in_every_later_state_until_its_snapshot_is_removed() {
    let bench = Bench::new();
    let snapshots = [bench.backup(&sample()), bench.backup(&sample())];
    let repository = bench.open();
    let accept = |objects: &[&str]| crate::repo::AcceptedLoss {
        snapshot: snapshots[0].id,
        objects: objects.iter().map(|object| (*object).to_owned()).collect(),
        reason: "a disk".into(),
        by: "t".into(),
        accepted_at: Utc::now(),
    };
    for objects in [&["packs/one"][..], &["packs/two"]] {
        repository.amend_ledger(Utc::now(), |_| Ok(Some(Decision::Accept { losses: vec![accept(objects)] }))).unwrap();
    }
    for number in 0..140 {
        repository.pass_in_ledger(&number.to_string(), Utc::now()).unwrap();
    }
    assert!(bench.keys("retention/").len() < 70, "states were written, and the entry is gone");
    // Programs that know nothing of it find no state, and the entries before are gone: to them the ledger is damaged, as it was by the entry.
    let state = || {
        let entries = bench.keys("retention/").into_iter().filter(|key| super::super::ledger::number_of(key).is_some());
        let opened = entries.map(|key| serde_json::from_slice(&repository.inner.open_object(ObjectKind::Ledger, &key).unwrap()).unwrap());
        opened.map(|entry: serde_json::Value| (entry["state"].is_object(), entry["state_with_losses"].is_object())).next().unwrap()
    };
    assert_eq!(state(), (false, true));
    let ledger = bench.open().ledger().unwrap();
    let known = |object: &str| ledger.is_accepted(snapshots[0].id, object);
    assert_eq!(["packs/one", "packs/two", "packs/three"].map(known), [true, true, false]);
    assert!(!ledger.is_accepted(snapshots[1].id, "packs/one"));
    repository
        .amend_ledger(Utc::now(), |_| {
            Ok(Some(Decision::Remove { snapshots: repository.removals_of(&[(&snapshots[0], "no rule keeps it")], Utc::now())? }))
        })
        .unwrap();
    assert!(bench.open().ledger().unwrap().accepted().is_empty());
    (0..64).for_each(|number| repository.pass_in_ledger(&number.to_string(), Utc::now()).unwrap());
    assert_eq!(state(), (true, false), "nothing keeps older programs out any more");
    assert!(bench.open().ledger().unwrap().is_removed(snapshots[0].id));
}

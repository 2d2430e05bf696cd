//! The retention ledger: what this machine has seen of it counts, and what somebody decided without a right to can be taken back.

use std::path::Path;

use super::*;

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
        assert!(ledger.removed(snapshots[0].id).is_some(), "what was rightly removed before stays removed");
        collect(&repository);
        for (at, snapshot) in snapshots.iter().enumerate().skip(1) {
            assert_eq!(restore(&repository, snapshot).unwrap(), expected(&files(at as u64)));
        }
        let found = repository.verify(VerifyDepth::Data { percent: 100, run: 0 }, &Silent, &Cancel::default()).unwrap();
        assert_eq!(found.findings, []);
    }
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

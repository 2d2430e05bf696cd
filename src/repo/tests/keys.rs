//! Slots, generations, exports and keys of plans: who can open what, before, during and after.

use super::*;
use crate::repo::keys::{Keys, Marker, StoredSlot};

fn open_with(bench: &Bench, key: &Passphrase) -> Result<Repository> {
    Repository::open(bench.store.clone(), bench.runtime.handle().clone(), key, &bench.options())
}

fn verify(repository: &Repository) -> Verification {
    repository.verify(VerifyDepth::Data { percent: 100, run: 0 }, &Silent, &Cancel::default()).unwrap()
}

fn get(bench: &Bench, key: &str) -> Bytes {
    bench.runtime.block_on(bench.store.get(key)).unwrap()
}

fn put(bench: &Bench, key: &str, bytes: impl Into<Bytes>) {
    bench.runtime.block_on(bench.store.create(key, bytes.into())).unwrap();
}

fn delete(bench: &Bench, key: &str) {
    bench.runtime.block_on(bench.store.delete(key)).unwrap();
}

fn small() -> Vec<TestFile> {
    vec![("a", Layout::Content, b"stamp-a", noise(1, 200_000)), ("b", Layout::Pages(8192), b"stamp-b", pages(2, 60))]
}

fn data_packs(bench: &Bench) -> Vec<String> {
    bench.keys("packs/").into_iter().filter(|key| is_data_pack(bench, key)).collect()
}

#[test]
fn each_kind_of_slot_opens_with_its_own_and_nothing_else() {
    let bench = Bench::new();
    let reader = bench.open();
    let (file, recipient) = (KeyFile::generate(), Recipient::generate());
    let words = Passphrase::new("some words of a writer");
    reader.add_slot("words", Role::Writer, &Lock::Passphrase(&words), Utc::now()).unwrap();
    reader.add_slot("file", Role::Writer, &Lock::KeyFile(&file), Utc::now()).unwrap();
    reader.add_slot("recipient", Role::Maintainer, &Lock::Recipient(&recipient.public_text()), Utc::now()).unwrap();
    let as_text = |text: &str| Passphrase::new(text.to_owned());
    for (key, role) in [
        (words.clone(), Role::Writer),
        (as_text(&file.reveal()), Role::Writer),
        (as_text(&file.reveal().to_lowercase().replace('-', " ")), Role::Writer),
        (as_text(&recipient.reveal()), Role::Maintainer),
    ] {
        assert_eq!(open_with(&bench, &key).unwrap().role(), role);
    }
    for wrong in [
        as_text(&KeyFile::generate().reveal()),
        as_text(&Recipient::generate().reveal()),
        as_text(&recipient.public_text()),
        as_text(&file.reveal()[..40]),
    ] {
        let error = open_with(&bench, &wrong).unwrap_err();
        assert_eq!(error.kind(), Kind::WrongKey);
        assert!(!format!("{error:?}").contains(&file.reveal()[10..30]), "{error:?}");
    }
    let kinds: Vec<String> = reader.key_slots().unwrap().into_iter().map(|slot| slot.kind).collect();
    assert_eq!(kinds, ["passphrase", "passphrase", "passphrase", "key-file", "recipient"]);
    let bad = reader.add_slot("typo", Role::Writer, &Lock::Recipient("LBPK1-0000"), Utc::now()).unwrap_err();
    assert_eq!(bad.kind(), Kind::Usage);
    // A slot says nothing else than it said: role, generation and lock are bound into its seal, and any other change shows.
    for (from, to) in [("\"role\": \"writer\"", "\"role\": \"reader\""), ("\"generation\": 1", "\"generation\": 2")] {
        let slot = reader.key_slots().unwrap().into_iter().find(|slot| slot.label == "file").unwrap();
        let key = format!("keys/{}", slot.id);
        let before = get(&bench, &key);
        delete(&bench, &key);
        put(&bench, &key, String::from_utf8(before.to_vec()).unwrap().replace(from, to));
        assert_eq!(open_with(&bench, &as_text(&file.reveal())).unwrap_err().kind(), Kind::Damaged);
        delete(&bench, &key);
        put(&bench, &key, before);
    }
}

#[test]
fn after_a_rotation_everything_old_is_readable_and_everything_new_is_of_the_new_generation() {
    let bench = Bench::new();
    let (words, file, recipient) = (Passphrase::new("some words of a writer"), KeyFile::generate(), Recipient::generate());
    let (file_key, recipient_key) = (Passphrase::new(file.reveal().to_string()), Passphrase::new(recipient.reveal().to_string()));
    let reader = bench.open();
    reader.add_slot("words", Role::Writer, &Lock::Passphrase(&words), Utc::now()).unwrap();
    let gone = reader.add_slot("file", Role::Reader, &Lock::KeyFile(&file), Utc::now()).unwrap();
    reader.add_slot("recipient", Role::Maintainer, &Lock::Recipient(&recipient.public_text()), Utc::now()).unwrap();
    let first = bench.backup(&small());
    let (packs, data) = (bench.keys("packs/"), data_packs(&bench));
    let kept = get(&bench, &format!("keys/{}", gone.id));
    let index: std::collections::BTreeSet<String> = bench.keys("index/").into_iter().collect();

    let rotation = reader.rotate(&passphrase(), std::slice::from_ref(&gone.id), false, Utc::now()).unwrap();
    assert_eq!((rotation.generation, rotation.carried.len(), rotation.removed.len(), rotation.left_behind.len()), (2, 4, 1, 0));
    assert_eq!(open_with(&bench, &file_key).unwrap_err().kind(), Kind::WrongKey, "its slot is gone");

    let writer = open_with(&bench, &words).unwrap();
    assert_eq!(writer.key_generations(), (vec![2, 1], 2));
    let second = backup(&writer, &small()).unwrap();
    assert_eq!(second.parents[0].id, first.id, "the chain goes on");
    assert_eq!(second.stats.chunks_new, 0, "what is stored is reused");
    assert_eq!(data_packs(&bench), data);
    let new: Vec<String> = bench.keys("packs/").into_iter().filter(|key| !packs.contains(key)).collect();
    assert!(!new.is_empty(), "trees are sealed anew");
    for key in new {
        assert_eq!(get(&bench, &key)[6..8], [2, 0], "{key}");
    }
    for key in bench.keys("index/").into_iter().filter(|key| !index.contains(key)) {
        assert_eq!(get(&bench, &key)[6..8], [2, 0], "{key}");
    }
    let mut changed = small();
    (changed[0].2, changed[0].3) = (b"stamp-2", noise(77, 300_000));
    let third = backup(&writer, &changed).unwrap();
    let shares = bench.open().generation_shares().unwrap();
    assert_eq!(shares.iter().map(|share| share.generation).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(bench.open().generation_shares().unwrap(), shares, "from the cache");

    for key in [&passphrase(), &words, &recipient_key] {
        let repository = open_with(&bench, key).unwrap();
        assert_eq!(repository.manifests(None).unwrap().len(), 3);
        assert_eq!(verify(&repository).findings, []);
    }
    let reader = bench.open();
    for (manifest, files) in [(&first, small()), (&second, small()), (&third, changed)] {
        assert_eq!(restore(&reader, manifest).unwrap(), expected(&files));
    }
    assert_eq!(reader.fingerprint_key(), writer.fingerprint_key());
    let events: Vec<KeyEvent> = reader.key_events().unwrap().into_iter().map(Result::unwrap).collect();
    assert!(events.iter().all(|event| event.signed == Some(true)));
    assert_eq!(events.last().unwrap().event, "rotate");

    // Who was shut out has kept the slot, and somebody puts it back: it opens what is old, writes nothing and reads nothing new.
    put(&bench, &format!("keys/{}", gone.id), kept);
    let old = open_with(&bench, &file_key).unwrap();
    assert_eq!(old.key_generations(), (vec![1], 2));
    assert_eq!(backup(&old, &small()).unwrap_err().kind(), Kind::WrongKey);
    assert_eq!(old.add_key("mine", Role::Reader, &Passphrase::new("a back door"), Utc::now()).unwrap_err().kind(), Kind::WrongKey);
    assert_eq!(old.rotate(&file_key, &[], false, Utc::now()).unwrap_err().kind(), Kind::WrongKey);
    assert_eq!(restore(&old, &first).unwrap(), expected(&small()));
    assert_eq!(old.manifest(third.id).unwrap_err().kind(), Kind::WrongKey);
    assert_eq!(restore(&old, &third).unwrap_err().kind(), Kind::WrongKey);
    let listed = bench.open().key_slots().unwrap();
    assert_eq!(listed.iter().find(|slot| slot.id == gone.id).unwrap().generation, 1);
    // Nobody takes it along by accident.
    let again = bench.open().rotate(&passphrase(), &[], false, Utc::now()).unwrap();
    assert_eq!((again.generation, again.left_behind.len(), again.carried.len()), (3, 1, 4));
    assert_eq!(open_with(&bench, &words).unwrap().key_generations(), (vec![3, 2, 1], 3));
    assert_eq!(verify(&bench.open()).findings, []);
}

#[test]
fn new_chunk_ids_store_everything_again_even_files_that_did_not_change() {
    let bench = Bench::new();
    let first = bench.backup(&small());
    bench.open().rotate(&passphrase(), &[], true, Utc::now()).unwrap();
    let second = bench.backup(&small());
    assert!(second.stats.chunks_new > 50 && second.stats.chunks_reused == 0, "{:?}", second.stats);
    let third = bench.backup(&small());
    assert_eq!(third.stats.chunks_new, 0);
    for manifest in [&first, &second, &third] {
        assert_eq!(restore(&bench.open(), manifest).unwrap(), expected(&small()));
    }
    assert_eq!(verify(&bench.open()).findings, []);
    // The newest snapshot needs nothing of the old generation.
    let old = |share: &&GenerationShare| share.generation == 1;
    let before: u64 = bench.open().generation_shares().unwrap().iter().filter(old).map(|share| share.bytes).sum();
    for key in bench.keys("packs/") {
        if get(&bench, &key)[6] == 1 {
            delete(&bench, &key);
        }
    }
    assert!(before > 0 && restore(&bench.open(), &third).unwrap() == expected(&small()));
}

#[test]
fn rewriting_retires_the_old_generation() {
    for new_ids in [false, true] {
        let bench = Bench::new();
        let hr = Name::new("hr").unwrap();
        bench.open().make_plan_key(&hr, Utc::now()).unwrap();
        let (first, own) = (bench.backup(&small()), backup_as(&bench.open(), &hr, &small()).unwrap());
        bench.open().rotate(&passphrase(), &[], new_ids, Utc::now()).unwrap();
        let mut changed = small();
        (changed[0].2, changed[0].3) = (b"", noise(99, 250_000));
        let second = bench.backup(&changed);
        let words = Passphrase::new("some words of a writer");
        bench.open().add_key("words", Role::Writer, &words, Utc::now()).unwrap();
        let writer = open_with(&bench, &words).unwrap();
        assert_eq!(writer.retire_generations(Utc::now(), &Silent, &Cancel::default()).unwrap_err().kind(), Kind::WrongKey);
        let (done, unread) = bench.open().retire_generations(Utc::now(), &Silent, &Cancel::default()).unwrap();
        assert_eq!(unread, 0);
        assert!(done.blocked.is_empty(), "{:?}", done.blocked);
        let shares = bench.open().generation_shares().unwrap();
        assert!(shares.iter().all(|share| share.generation == 2 || share.plan.is_some()), "{shares:?}");
        let reader = bench.open();
        for (manifest, files) in [(&first, small()), (&own, small()), (&second, changed.clone())] {
            assert_eq!(restore(&reader, manifest).unwrap(), expected(&files));
        }
        assert_eq!(verify(&reader).findings, []);
        // Frames under a plan's own key went along as they were: they are destroyed with it.
        bench.open().erase_plan(&hr, Utc::now()).unwrap();
        assert_eq!(restore(&bench.open(), &own).unwrap_err().kind(), Kind::NoRecoveryPoint);
        assert_eq!(restore(&bench.open(), &first).unwrap(), expected(&small()));
        assert_eq!(bench.backup(&changed).stats.chunks_new, 0);
    }
}

/// Kind of crash × place of crash: with the slots of before or those of after, everything opens, is whole and can be written; then it goes on.
#[test]
fn a_rotation_that_is_killed_anywhere_leaves_a_repository_that_works() {
    let words = Passphrase::new("some words of a writer");
    let mut rounds = 0;
    for when in [When::Before, When::After] {
        for round in 1.. {
            let bench = Bench::new();
            let reader = bench.open();
            reader.add_key("words", Role::Writer, &words, Utc::now()).unwrap();
            let leaver = reader.add_key("leaver", Role::Writer, &Passphrase::new("words of a leaver"), Utc::now()).unwrap();
            reader.make_plan_key(&plan(), Utc::now()).unwrap();
            let first = bench.backup(&small());
            let faults = Faults::new();
            let crashing = bench.open_on(Store::with_faults(bench.store.clone(), faults.clone()));
            faults.crash_at_write(round, when);
            let outcome = crashing.rotate(&passphrase(), std::slice::from_ref(&leaver.id), false, Utc::now());
            if !faults.crashed() {
                outcome.unwrap();
                break;
            }
            rounds += 1;
            assert!(outcome.is_err(), "round {round}: a rotation that was cut off says so");
            let generations: Vec<_> = [&passphrase(), &words].map(|key| open_with(&bench, key).unwrap().key_generations()).into();
            assert_eq!(generations[0], generations[1], "round {round}");
            assert_eq!(generations[0].0[0], generations[0].1, "round {round}: nobody is left behind");
            let second = backup(&open_with(&bench, &words).unwrap(), &small()).unwrap();
            for manifest in [&first, &second] {
                assert_eq!(restore(&bench.open(), manifest).unwrap(), expected(&small()), "round {round}");
            }
            assert_eq!(verify(&bench.open()).findings, [], "round {round}");
            let without: Vec<String> =
                bench.open().key_slots().unwrap().into_iter().filter(|slot| slot.label == "leaver").map(|slot| slot.id).collect();
            let done = bench.open().rotate(&passphrase(), &without, false, Utc::now()).unwrap();
            assert_eq!(done.generation, generations[0].1 + 1, "round {round}");
            assert_eq!(bench.keys("keys/").iter().filter(|key| key.contains('.')).count(), 3, "round {round}: nothing is left over");
            assert_eq!(open_with(&bench, &words).unwrap().key_generations().1, done.generation);
            assert_eq!(restore(&bench.open(), &first).unwrap(), expected(&small()));
            backup(&open_with(&bench, &words).unwrap(), &small()).unwrap_or_else(|error| panic!("round {round}: {error:?}"));
        }
    }
    assert!(rounds >= 14, "{rounds} places where it was killed");
}

#[test]
fn of_two_rotations_one_wins_and_the_other_changes_nothing() {
    let bench = Bench::new();
    let (one, other) = (bench.open(), bench.open());
    one.rotate(&passphrase(), &[], false, Utc::now()).unwrap();
    assert_eq!(other.rotate(&passphrase(), &[], false, Utc::now()).unwrap_err().kind(), Kind::Busy);
    assert_eq!(other.add_key("late", Role::Writer, &Passphrase::new("words of a writer"), Utc::now()).unwrap_err().kind(), Kind::Busy);
    assert_eq!(bench.open().key_slots().unwrap().len(), 2);
    // A writer at work when the keys were rotated finishes under the old ones: readers have those as well.
    let manifest = backup(&other, &small()).unwrap();
    assert_eq!(restore(&bench.open(), &manifest).unwrap(), expected(&small()));
    assert_eq!(bench.open().key_generations(), (vec![2, 1], 2));
    // At the very commit: the slower one finds the place taken.
    let (one, other) = (bench.open(), bench.open());
    let faults = Faults::new();
    let paused = bench.open_on(Store::with_faults(bench.store.clone(), faults.clone()));
    faults.add(faults::Rule::on(crate::store::Verb::Create).below("keys/generation-").always().then(faults::Effect::Fail(Kind::Failed)));
    assert!(paused.rotate(&passphrase(), &[], false, Utc::now()).is_err());
    let left = bench.keys("keys/");
    assert!(left.iter().any(|key| key.contains(".3-")));
    drop(other);
    one.rotate(&passphrase(), &[], false, Utc::now()).unwrap();
    assert_eq!(bench.open().key_generations(), (vec![3, 2, 1], 3));
    let lost = left.iter().filter(|key| key.contains(".3-")).filter(|key| bench.keys("keys/").contains(key)).count();
    bench.open().rotate(&passphrase(), &[], false, Utc::now()).unwrap();
    assert!(left.iter().filter(|key| key.contains(".3-")).all(|key| !bench.keys("keys/").contains(key)), "{lost} were cleared later");
}

/// Whoever may write below `keys/` but holds no reader key: a generation or keys of their own are not believed.
#[test]
fn forged_generations_updates_and_plan_keys_are_not_believed() {
    let bench = Bench::new();
    let words = Passphrase::new("some words of a writer");
    let slot = bench.open().add_key("words", Role::Writer, &words, Utc::now()).unwrap();
    let first = bench.backup(&small());
    let writer = open_with(&bench, &words).unwrap();
    // The attacker's own root, signed by itself; the bundle that the slot would get is sealed to the slot as a rotation would.
    let attacker = Keys::generate().next_generation(2, true);
    let marker = serde_json::to_vec(&attacker.marker(writer.id(), Utc::now()).unwrap()).unwrap();
    let stored = StoredSlot::from_json(&get(&bench, &format!("keys/{}", slot.id))).unwrap();
    let (key, update) = attacker.update_for(writer.id(), &stored).unwrap().unwrap();
    put(&bench, &Marker::key(2), marker);
    put(&bench, &key, serde_json::to_vec(&update).unwrap());
    let fooled = open_with(&bench, &words).unwrap();
    assert_eq!(fooled.key_generations().0, [1]);
    assert_eq!(backup(&fooled, &small()).unwrap_err().kind(), Kind::WrongKey, "nothing is written to keys that may be an attacker's");
    assert_eq!(restore(&bench.open(), &first).unwrap(), expected(&small()), "restores go on");
    delete(&bench, &Marker::key(2));
    delete(&bench, &key);
    // A right marker, and an update for this slot that the attacker made.
    bench.open().rotate(&passphrase(), &[], false, Utc::now()).unwrap();
    let real = bench.keys("keys/").into_iter().find(|key| key.starts_with(&format!("keys/{}.2-", slot.id))).unwrap();
    delete(&bench, &real);
    put(&bench, &real, serde_json::to_vec(&update).unwrap());
    assert_eq!(open_with(&bench, &words).unwrap_err().kind(), Kind::Damaged);
    // A key for a plan that a writer made up, to read what others store: writers can seal the object, and not sign it.
    let bench = Bench::new();
    bench.open().add_key("words", Role::Writer, &words, Utc::now()).unwrap();
    let writer = open_with(&bench, &words).unwrap();
    let forged = Keys::generate().create_plan_key(writer.id(), "crm", 0x8000, Utc::now()).unwrap();
    let sealed = writer.inner.seal_object(ObjectKind::PlanKey, "keys/plan-8000", &forged).unwrap();
    put(&bench, "keys/plan-8000", sealed);
    assert_eq!(backup(&open_with(&bench, &words).unwrap(), &small()).unwrap_err().kind(), Kind::Damaged);
}

#[test]
fn a_store_that_forgets_a_rotation_is_found_out_by_who_has_seen_it() {
    let bench = Bench::new();
    let first = bench.backup(&small());
    let before: Vec<(String, Bytes)> = bench.keys("keys/").into_iter().map(|key| (key.clone(), get(&bench, &key))).collect();
    bench.open().rotate(&passphrase(), &[], false, Utc::now()).unwrap();
    assert_eq!(bench.open().key_generations(), (vec![2, 1], 2));
    let restore_state = |state: &[(String, Bytes)]| {
        bench.keys("keys/").iter().for_each(|key| delete(&bench, key));
        state.iter().for_each(|(key, bytes)| put(&bench, key, bytes.clone()));
    };
    let after: Vec<(String, Bytes)> = bench.keys("keys/").into_iter().map(|key| (key.clone(), get(&bench, &key))).collect();
    restore_state(&before);
    let rolled_back = bench.open();
    assert_eq!(rolled_back.key_generations(), (vec![1], 2));
    assert_eq!(backup(&rolled_back, &small()).unwrap_err().kind(), Kind::WrongKey);
    assert_eq!(restore(&rolled_back, &first).unwrap(), expected(&small()), "restores go on");
    // A second generation 2, by somebody who has the old reader key: new to who has never seen the first one.
    let elsewhere = tempfile::tempdir().unwrap();
    let options = OpenOptions { cache: Some(elsewhere.path().to_owned()), workers: 2 };
    let stranger = Repository::open(bench.store.clone(), bench.runtime.handle().clone(), &passphrase(), &options).unwrap();
    stranger.rotate(&passphrase(), &[], false, Utc::now()).unwrap();
    assert!(Repository::open(bench.store.clone(), bench.runtime.handle().clone(), &passphrase(), &options).is_ok());
    assert_eq!(open_with(&bench, &passphrase()).unwrap_err().kind(), Kind::Damaged);
    restore_state(&after);
    assert_eq!(bench.open().key_generations(), (vec![2, 1], 2));
}

#[test]
fn any_k_shares_open_the_repository_and_fewer_do_not() {
    let bench = Bench::new();
    let first = bench.backup(&small());
    let (slot, shares) = bench.open().export_shares("paper", Role::Reader, 3, 5, Utc::now()).unwrap();
    let texts: Vec<String> = shares.iter().map(|share| share.reveal().to_string()).collect();
    let joined = |which: &[usize]| Passphrase::new(which.iter().map(|at| texts[*at].clone()).collect::<Vec<_>>().join("\n"));
    for which in [[0, 1, 2], [4, 2, 0], [3, 4, 1]] {
        let opened = open_with(&bench, &joined(&which)).unwrap();
        assert_eq!(restore(&opened, &first).unwrap(), expected(&small()));
    }
    for which in [vec![0, 1], vec![4], vec![2, 2, 2]] {
        let error = open_with(&bench, &joined(&which)).unwrap_err();
        assert!(error.to_string().contains("3 are needed"), "{error}");
    }
    // They go on opening it after a rotation, and no more once their slot is removed.
    bench.open().rotate(&passphrase(), &[], false, Utc::now()).unwrap();
    assert_eq!(open_with(&bench, &joined(&[0, 2, 4])).unwrap().key_generations(), (vec![2, 1], 2));
    bench.open().remove_key(&slot.id, None, Utc::now()).unwrap();
    assert_eq!(open_with(&bench, &joined(&[0, 2, 4])).unwrap_err().kind(), Kind::WrongKey);
    assert!(bench.keys("keys/").iter().all(|key| !key.contains(&slot.id)));
}

#[test]
fn an_export_brings_a_repository_back_that_has_lost_its_slots() {
    let bench = Bench::new();
    let first = bench.backup(&small());
    let escrow = Recipient::generate();
    let reader = bench.open();
    let (slot, document) = reader.export_slot("escrow", Role::Reader, &Lock::Recipient(&escrow.public_text()), Utc::now()).unwrap();
    assert!(!bench.keys("keys/").iter().any(|key| key.contains(&slot.id)), "it is not in the repository");
    let event = reader.key_events().unwrap().pop().unwrap().unwrap();
    assert_eq!((event.event.as_str(), event.signed), ("export", Some(true)));
    assert!(event.detail.contains("escrow") && event.detail.contains("recipient"), "{event:?}");
    bench.keys("keys/").iter().for_each(|key| delete(&bench, key));
    let key = Passphrase::new(escrow.reveal().to_string());
    assert_eq!(open_with(&bench, &key).unwrap_err().kind(), Kind::Damaged, "there are no slots");
    let import =
        |document: &[u8], key: &Passphrase| Repository::import_slot(&bench.store, bench.runtime.handle(), document, key, Utc::now());
    assert_eq!(import(&document, &passphrase()).unwrap_err().kind(), Kind::WrongKey);
    assert_eq!(import(b"{}", &key).unwrap_err().kind(), Kind::Usage);
    let mut bent = document.clone();
    let at = bent.len() / 2;
    bent[at] = if bent[at] == b'1' { b'2' } else { b'1' };
    assert!(import(&bent, &key).is_err());
    assert_eq!(import(&document, &key).unwrap().id, slot.id);
    assert_eq!(restore(&open_with(&bench, &key).unwrap(), &first).unwrap(), expected(&small()));
    // Of another repository.
    let other = Bench::new();
    let elsewhere = Repository::import_slot(&other.store, other.runtime.handle(), &document, &key, Utc::now());
    assert_eq!(elsewhere.unwrap_err().kind(), Kind::Damaged);
}

pub(in crate::repo) fn backup_as(repository: &Repository, plan: &Name, files: &[TestFile]) -> Result<Manifest> {
    let mut writer = repository.begin(plan, Utc::now(), &Cancel::default())?;
    let mut tree = writer.tree(plan, "files", Order::Tree)?;
    for (entry, bytes) in tree_of(files) {
        if tree.add(entry)? == Added::NeedsContent {
            tree.content(&mut &bytes[..])?;
        }
    }
    let source = tree.finish(serde_json::Value::Null)?;
    Ok(writer.commit(vec![source], Utc::now(), Vec::new(), &Silent)?.manifest)
}

#[test]
fn a_plan_with_its_own_key_can_be_destroyed_alone() {
    let bench = Bench::new();
    let (hr, crm) = (Name::new("hr").unwrap(), plan());
    let words = Passphrase::new("some words of a writer");
    bench.open().add_key("words", Role::Writer, &words, Utc::now()).unwrap();
    let writer = || open_with(&bench, &words).unwrap();
    let before = backup_as(&writer(), &hr, &small()).unwrap();
    bench.open().make_plan_key(&hr, Utc::now()).unwrap();
    assert_eq!(bench.open().make_plan_key(&hr, Utc::now()).unwrap_err().kind(), Kind::AlreadyExists);
    // The same content three times: nothing is shared with what is not under this key, in either direction, though no file changed.
    let own = backup_as(&writer(), &hr, &small()).unwrap();
    assert!(own.stats.chunks_new > 50 && own.stats.chunks_reused == 0, "{:?}", own.stats);
    let again = backup_as(&writer(), &hr, &small()).unwrap();
    assert_eq!(again.stats.chunks_new, 0);
    let neighbour = backup_as(&writer(), &crm, &small()).unwrap();
    assert_eq!(neighbour.stats.chunks_new, 0, "this one shares with what is under the repository's key");
    let log = |repository: &Repository, plan: &Name| repository.log(plan, &Name::new("database").unwrap());
    let wal = noise(5, 100_000);
    let of = |plan: &Name| log(&writer(), plan).append(1, 0, wal.len() as u64, &serde_json::json!({}), &wal).unwrap().piece;
    let (hr_piece, crm_piece) = (of(&hr), of(&crm));
    let reader = bench.open();
    for manifest in [&before, &own, &again, &neighbour] {
        assert_eq!(restore(&reader, manifest).unwrap(), expected(&small()));
    }
    assert_eq!(log(&reader, &hr).read(&hr_piece).unwrap(), wal);
    assert_eq!(verify(&reader).findings, []);
    assert!(reader.generation_shares().unwrap().iter().any(|share| share.plan.as_deref() == Some("hr") && share.bytes > 200_000));
    // Renewed with the generation: a reader who is shut out does not read what comes later.
    assert_eq!(reader.rotate(&passphrase(), &[], false, Utc::now()).unwrap().plans, ["hr"]);
    let mut changed = small();
    (changed[0].2, changed[0].3) = (b"", noise(99, 250_000));
    let later = backup_as(&writer(), &hr, &changed).unwrap();
    assert_eq!(restore(&bench.open(), &later).unwrap(), expected(&changed));
    assert_eq!(restore(&bench.open(), &own).unwrap(), expected(&small()));

    let stale = bench.open();
    assert_eq!(stale.erase_plan(&Name::new("none").unwrap(), Utc::now()).unwrap_err().kind(), Kind::NotFound);
    assert_eq!(writer().erase_plan(&hr, Utc::now()).unwrap_err().kind(), Kind::WrongKey);
    // Killed between the record and the deletion: it is destroyed as far as anybody can tell, and the next call finishes.
    let faults = Faults::new();
    let crashing = bench.open_on(Store::with_faults(bench.store.clone(), faults.clone()));
    faults.crash_at_write(1, When::After);
    assert!(crashing.erase_plan(&hr, Utc::now()).is_err());
    assert_eq!(bench.open().erase_plan(&hr, Utc::now()).unwrap().len(), 2);
    let left: Vec<String> = bench.keys("keys/").into_iter().filter(|key| key.starts_with("keys/plan-")).collect();
    assert_eq!(left, ["keys/plan-8000-erased", "keys/plan-8001-erased"]);
    let reader = bench.open();
    for manifest in [&own, &again, &later] {
        let error = restore(&reader, manifest).unwrap_err();
        assert_eq!(error.kind(), Kind::NoRecoveryPoint);
        assert!(format!("{error:?}").contains("plan hr's data was destroyed"), "{error:?}");
    }
    assert_eq!(log(&reader, &hr).read(&hr_piece).unwrap_err().kind(), Kind::NoRecoveryPoint);
    // Everybody knows which they are, and when it was done, without reading any of it: by the record of the key alone.
    let janitor = Passphrase::new("some words of a janitor");
    bench.open().add_key("janitor", Role::Maintainer, &janitor, Utc::now()).unwrap();
    for repository in [bench.open(), writer(), open_with(&bench, &janitor).unwrap()] {
        let at: Vec<_> = [&own, &again, &later].map(|manifest| repository.destroyed_at(manifest)).into_iter().collect();
        assert!(at.iter().all(Option::is_some), "{:?}: {at:?}", repository.role());
        assert_eq!(repository.require_content(&own).unwrap_err().kind(), Kind::NoRecoveryPoint);
        assert_eq!([&before, &neighbour].map(|manifest| repository.destroyed_at(manifest)), [None, None], "{:?}", repository.role());
        for (plan, piece) in [(&hr, Some(hr_piece)), (&crm, None)] {
            let log = log(&repository, plan);
            // From the store, and then from what was kept.
            for _ in 0..2 {
                assert_eq!(log.destroyed(&log.listed().unwrap()).unwrap().into_iter().collect::<Vec<_>>(), Vec::from_iter(piece));
            }
        }
    }
    for manifest in [&before, &neighbour] {
        assert_eq!(restore(&reader, manifest).unwrap(), expected(&small()), "all others live on");
    }
    assert_eq!(log(&reader, &crm).read(&crm_piece).unwrap(), wal);
    let verified = verify(&reader);
    assert_eq!(verified.findings, [], "what was destroyed on purpose is not damage");
    assert!(verified.skipped.iter().any(|what| what.contains("plan hr")), "{:?}", verified.skipped);
    // What was promised to be destroyable does not silently go under another key.
    assert_eq!(backup_as(&writer(), &hr, &small()).unwrap_err().kind(), Kind::WrongKey);
    assert_eq!(backup_as(&writer(), &crm, &small()).unwrap().stats.chunks_new, 0);
    bench.open().make_plan_key(&hr, Utc::now()).unwrap();
    let fresh = backup_as(&writer(), &hr, &small()).unwrap();
    assert_eq!(restore(&bench.open(), &fresh).unwrap(), expected(&small()));
    assert_eq!((bench.open().destroyed_at(&fresh), bench.open().destroyed_at(&own).is_some()), (None, true));
    // What has no content has lost none.
    let none: [TestFile; 1] = [("empty", Layout::Content, b"", Vec::new())];
    let empty = backup_as(&writer(), &hr, &none).unwrap();
    bench.open().erase_plan(&hr, Utc::now()).unwrap();
    assert_eq!((bench.open().destroyed_at(&empty), bench.open().destroyed_at(&fresh).is_some()), (None, true));
    assert_eq!(restore(&bench.open(), &empty).unwrap(), expected(&none));
    bench.open().make_plan_key(&hr, Utc::now()).unwrap();
    let fresh = backup_as(&writer(), &hr, &small()).unwrap();
    // A damaged key of a plan: nothing is written rather than under a wrong key, and others are restored.
    delete(&bench, "keys/plan-8003");
    put(&bench, "keys/plan-8003", b"garbage that is long enough to be looked at as an object of some kind, which it is not".to_vec());
    assert_eq!(backup_as(&writer(), &hr, &small()).unwrap_err().kind(), Kind::Damaged);
    assert_eq!(restore(&bench.open(), &fresh).unwrap_err().kind(), Kind::Damaged);
    assert_eq!(restore(&bench.open(), &neighbour).unwrap(), expected(&small()));
}

/// What a rotation cannot store anew yet is no damage, and whom it waits for is told.
#[test]
fn rewriting_beside_backups_takes_nothing_for_damage_and_tells_what_it_waits_for() {
    let bench = Bench::new();
    // One that will never end: what it has stored is nobody's yet, and all there is of the old generation.
    let killed = bench.open();
    let mut writer = killed.begin(&plan(), Utc::now(), &Cancel::default()).unwrap();
    let mut tree = writer.tree(&plan(), "files", Order::Tree).unwrap();
    let own: [TestFile; 1] = [("new", Layout::Content, b"", noise(17, 400_000))];
    for (entry, bytes) in tree_of(&own) {
        if tree.add(entry).unwrap() == Added::NeedsContent {
            tree.content(&mut &bytes[..]).unwrap();
        }
    }
    tree.finish(serde_json::Value::Null).unwrap();
    writer.settle().unwrap();
    bench.open().rotate(&passphrase(), &[], false, Utc::now()).unwrap();
    let retire = || bench.open().retire_generations(Utc::now(), &Silent, &Cancel::default()).unwrap();
    let old =
        || bench.open().generation_shares().unwrap().iter().filter(|share| share.generation == 1).map(|share| share.bytes).sum::<u64>();
    let (held_up, unread) = retire();
    assert!(unread == 0 && held_up.blocked.is_empty() && old() > 400_000, "{held_up:?}");
    let told = |done: &Collection| done.waiting_for.len() == 1 && done.waiting_for[0].contains("a backup (sessions/");
    assert!(told(&held_up), "{held_up:?}");
    bench.keys("sessions/").iter().for_each(|key| delete(&bench, key));
    let (done, unread) = retire();
    assert!(unread == 0 && done.waiting_for.is_empty() && old() == 0, "{done:?}");
    // A name that is none of a pack is no pack; a pack that cannot be read is damage, and one that is gone by then is not.
    put(&bench, "packs/ab/strange", "x");
    assert_eq!(retire().1, 0);
    delete(&bench, "packs/ab/strange");
    bench.backup(&[("more", Layout::Content, b"", noise(18, 300_000))]);
    let largest = data_packs(&bench).into_iter().max_by_key(|key| get(&bench, key).len()).unwrap();
    let bytes = get(&bench, &largest);
    delete(&bench, &largest);
    put(&bench, &largest, bytes[..bytes.len() - 9].to_vec());
    assert_eq!(retire().1, 1);
    let faults = Faults::new();
    faults.add(Rule::on(Verb::Head).below(&largest).always().then(Effect::Hide));
    let beside = bench.open_on(Store::with_faults(bench.store.clone(), faults));
    assert_eq!(beside.pack_generations().unwrap().1, 0, "a collection deleted it since the listing");
}

/// Like a backup that goes on for long: `meanwhile` comes before its commit. What it was told.
fn backup_while(repository: &Repository, plan: &Name, meanwhile: impl FnOnce()) -> Result<Vec<String>> {
    let mut writer = repository.begin(plan, Utc::now(), &Cancel::default())?;
    let mut tree = writer.tree(plan, "files", Order::Tree)?;
    for (entry, bytes) in tree_of(&small()) {
        if tree.add(entry)? == Added::NeedsContent {
            tree.content(&mut &bytes[..])?;
        }
    }
    let source = tree.finish(serde_json::Value::Null)?;
    meanwhile();
    Ok(writer.commit(vec![source], Utc::now(), Vec::new(), &Silent)?.warnings)
}

#[test]
fn what_is_done_with_keys_while_a_backup_runs_is_told_before_it_commits() {
    let bench = Bench::new();
    let (hr, crm) = (Name::new("hr").unwrap(), plan());
    let (words, file) = (Passphrase::new("some words of a writer"), KeyFile::generate());
    let file_key = Passphrase::new(file.reveal().to_string());
    bench.open().add_key("words", Role::Writer, &words, Utc::now()).unwrap();
    let shut_out = bench.open().add_slot("file", Role::Writer, &Lock::KeyFile(&file), Utc::now()).unwrap();
    let writer = || open_with(&bench, &words).unwrap();
    let nothing = |repository: &Repository, plan: &Name| repository.keys_changed(plan).unwrap().is_none();
    let plan_keys = || bench.keys("keys/").into_iter().filter(|key| key.starts_with("keys/plan-")).collect::<Vec<_>>();
    // Nothing happened, or nothing that concerns the plan: not a word.
    assert_eq!(backup_while(&writer(), &hr, || ()).unwrap(), [""; 0]);
    let (stream, neighbour) = (writer(), writer());
    let told = backup_while(&writer(), &crm, || drop(bench.open().make_plan_key(&hr, Utc::now()).unwrap())).unwrap();
    assert_eq!(told, [""; 0], "another plan's");
    assert!(nothing(&neighbour, &crm) && nothing(&neighbour, &crm) && nothing(&writer(), &hr));
    assert_eq!(neighbour.keys_changed(&hr).unwrap(), Some(KeyChange::Own), "what is nothing to one plan is something to another");
    assert_eq!(stream.keys_changed(&hr).unwrap(), Some(KeyChange::Own));
    // A rotation that did not come to its commit changes nothing for anybody.
    let faults = Faults::new();
    let crashing = bench.open_on(Store::with_faults(bench.store.clone(), faults.clone()));
    faults.crash_at_write(6, When::Before);
    assert!(crashing.rotate(&passphrase(), &[], false, Utc::now()).is_err());
    assert_eq!(plan_keys(), ["keys/plan-8000", "keys/plan-8001"], "it came as far as that");
    assert!(nothing(&writer(), &hr) && nothing(&neighbour, &crm));
    // One that did: whoever was carried along hears of it, whoever was shut out commits nothing.
    let (stream, others) = (writer(), open_with(&bench, &file_key).unwrap());
    let rotate = || drop(bench.open().rotate(&passphrase(), std::slice::from_ref(&shut_out.id), false, Utc::now()).unwrap());
    let refused = backup_while(&others, &crm, rotate).unwrap_err();
    assert_eq!(refused.kind(), Kind::WrongKey, "{refused:?}");
    let told = backup_while(&stream, &hr, || ()).unwrap();
    assert!(told.len() == 1 && told[0].contains("rotated to generation 2 while this backup ran"), "{told:?}");
    assert_eq!(stream.keys_changed(&hr).unwrap(), Some(KeyChange::Rotated(2)));
    assert!(nothing(&writer(), &hr));
    // A plan that gets a key of its own, and one that loses it.
    let told = backup_while(&writer(), &crm, || drop(bench.open().make_plan_key(&crm, Utc::now()).unwrap())).unwrap();
    assert!(told.len() == 1 && told[0].contains("plan crm got a key of its own while this backup ran"), "{told:?}");
    let (stream, before) = (writer(), bench.keys("snapshots/").len());
    let refused = backup_while(&writer(), &hr, || drop(bench.open().erase_plan(&hr, Utc::now()).unwrap())).unwrap_err();
    assert_eq!(refused.kind(), Kind::WrongKey, "{refused:?}");
    assert!(format!("{refused:?}").contains("its own key was destroyed after this began"), "{refused:?}");
    assert_eq!(bench.keys("snapshots/").len(), before);
    assert_eq!(stream.keys_changed(&hr).unwrap_err().kind(), Kind::WrongKey);
    bench.open().make_plan_key(&hr, Utc::now()).unwrap();
    assert_eq!(stream.keys_changed(&hr).unwrap_err().kind(), Kind::WrongKey, "what it would seal stays destroyed");
    assert!(nothing(&writer(), &hr));
    // Taken away by nobody of ours: not what was promised to be destroyable under the repository's key, nor the other way round.
    let stream = writer();
    let own = plan_keys().into_iter().rfind(|key| !key.ends_with("-erased")).unwrap();
    delete(&bench, &own);
    assert_eq!(stream.keys_changed(&hr).unwrap_err().kind(), Kind::Damaged);
}

/// The content of all objects that these keys open, by name.
fn everything_opened(bench: &Bench, repository: &Repository) -> Vec<(String, Vec<u8>)> {
    let inner = &repository.inner;
    let mut opened = Vec::new();
    for key in bench.keys("") {
        let bytes = get(bench, &key);
        if let Some(kind) = seal::claimed_kind(&bytes)
            && let Ok(content) = seal::open(&inner.keys, inner.id, kind, &key, &bytes)
        {
            opened.push((key, content));
        } else if let Some(id) = PackId::from_key(&key) {
            let (_, directory) = inner.directory_of_listed(id, bytes.len() as u64).unwrap();
            opened.push((key.clone(), format!("{directory:?}").into_bytes()));
            if directory.kind == PackKind::Nodes {
                let mut worker = read::DecodeWorker::new(inner).unwrap();
                for frame in &directory.frames {
                    let at = frame.offset as usize;
                    worker.decode(&key, &directory, frame, &bytes[at..at + frame.sealed_len as usize]).unwrap();
                    opened.push((key.clone(), worker.plain.clone()));
                }
            }
        }
    }
    opened
}

/// A host with the writer role, wholly taken over: its passphrase, everything its process holds, its cache, and every object of the repository.
#[test]
fn everything_that_a_writer_host_has_opens_no_data() {
    let bench = Bench::new();
    let marker = b"planted-content-8c41d2 ";
    let words = Passphrase::new("some words of a writer");
    bench.open().add_key("web1", Role::Writer, &words, Utc::now()).unwrap();
    bench.open().add_key("janitor", Role::Maintainer, &Passphrase::new("words of a janitor"), Utc::now()).unwrap();
    let secret: Vec<u8> = marker.iter().copied().cycle().take(400_000).collect();
    let files: Vec<TestFile> =
        vec![("accounts.db", Layout::Pages(8192), b"", secret.clone()), ("letters/one", Layout::Content, b"", secret)];
    backup_as(&bench.open(), &Name::new("elsewhere").unwrap(), &files).unwrap();
    backup(&open_with(&bench, &words).unwrap(), &files).unwrap();
    bench.open().rotate(&passphrase(), &[], true, Utc::now()).unwrap();
    backup(&open_with(&bench, &words).unwrap(), &files).unwrap();
    let host = open_with(&bench, &words).unwrap();
    host.log(&plan(), &Name::new("database").unwrap()).append(1, 0, 23, &serde_json::json!({}), marker).unwrap();
    bench.open().make_plan_key(&plan(), Utc::now()).unwrap();
    backup(&open_with(&bench, &words).unwrap(), &files).unwrap();

    let host = open_with(&bench, &words).unwrap();
    assert_eq!(host.role(), Role::Writer);
    // Every slot, by its passphrase and by whatever else is on the host.
    let bundle = host.inner.keys.known_secrets();
    assert!(bundle.len() >= 12, "{} keys are known to the host", bundle.len());
    let own = host.key_slots().unwrap().into_iter().find(|slot| slot.current).unwrap().id;
    let mut tries = vec![words.clone(), Passphrase::new("")];
    for key in &bundle {
        tries.push(Passphrase::new(hex::encode(key)));
        tries.push(Passphrase::new(KeyFile::from_bytes(*key).reveal().to_string()));
    }
    for key in bench.keys("keys/").iter().filter(|key| !key.contains(['.', '-'])) {
        let slot = StoredSlot::from_json(&get(&bench, key)).unwrap();
        for attempt in &tries {
            let Some(opened) = slot.answers_to(host.id(), &attempt.credential().unwrap(), &crate::event::Pulse::default()).unwrap() else {
                continue;
            };
            assert!(slot.id == own && slot.unseal(host.id(), &opened).unwrap().role == Role::Writer, "{key}");
        }
    }
    // Every envelope of data: as the program would, and with every key at hand and what derives from it, as AES key and as root.
    let (mut envelopes, mut names) = (0, String::new());
    let purposes =
        ["lifeboat v1 data key pair", "lifeboat v1 metadata", "lifeboat v1 chunk ids", "lifeboat v1 node pack", "lifeboat v1 slot wrap"];
    let mut guesses: Vec<[u8; 32]> = bundle.clone();
    for key in &bundle {
        guesses.extend(purposes.iter().map(|purpose| blake3::derive_key(purpose, key)));
    }
    for key in bench.keys("packs/").into_iter().filter(|key| is_data_pack(&bench, key)) {
        let bytes = get(&bench, &key);
        let id = PackId::from_key(&key).unwrap();
        let (_, directory) = host.inner.directory_of_listed(id, bytes.len() as u64).unwrap();
        for frame in &directory.frames {
            let sealed = &bytes[frame.offset as usize..frame.offset as usize + frame.sealed_len as usize];
            let envelope = &directory.envelopes[frame.envelope as usize];
            let mut opener = pack::FrameOpener::new(&host.inner.keys, host.id());
            let refused = opener.open(&key, PackKind::Data, envelope, frame, sealed, &mut Vec::new()).unwrap_err();
            assert_eq!(refused.kind(), Kind::WrongKey);
            for guess in &guesses {
                assert!(!pack::opens_with(host.id(), PackKind::Data, envelope, frame, sealed, guess), "{key}");
                assert!(!pack::root_opens(host.id(), envelope, guess), "{key}");
            }
            envelopes += 1;
        }
    }
    assert!(envelopes >= 3, "{envelopes} frames of data were tried");
    // Everything that does open, and all that lies on its disk: content is in none of it; names are, as docs/security.md says.
    let contains = |bytes: &[u8], what: &[u8]| bytes.windows(what.len()).any(|window| window == what);
    for manifest in host.manifests(None).unwrap() {
        names.push_str(&serde_json::to_string(&manifest).unwrap());
        for entry in host.tree(&manifest.sources[0]).unwrap() {
            names.push_str(&entry.unwrap().entry.display_path());
        }
        assert_eq!(restore(&host, &manifest).unwrap_err().kind(), Kind::WrongKey);
    }
    assert!(names.contains("accounts.db") && names.contains("letters/one"), "names are visible to it");
    let opened = everything_opened(&bench, &host);
    assert!(opened.len() > 10);
    for (key, plain) in opened {
        assert!(!contains(&plain, &marker[..12]), "{key}");
    }
    let mut folders = vec![bench.cache.path().to_owned()];
    while let Some(folder) = folders.pop() {
        for item in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            if item.file_type().unwrap().is_dir() {
                folders.push(item.path());
            } else {
                let bytes = std::fs::read(item.path()).unwrap();
                assert!(!contains(&bytes, &marker[..12]) && !contains(&bytes, b"accounts.db"), "{}", item.path().display());
                assert!(bundle.iter().all(|key| !contains(&bytes, key) && !contains(&bytes, hex::encode(key).as_bytes())));
            }
        }
    }
}

fn structure(repository: &Repository) -> Vec<(String, String)> {
    let found = repository.verify(VerifyDepth::Structure, &Silent, &Cancel::default()).unwrap();
    found.findings.into_iter().map(|finding| (finding.object, finding.kind)).collect()
}

/// A key on paper is tried on the day on which nothing else is left: that its slot is gone must be known before.
#[test]
fn a_slot_that_nobody_removed_is_missed() {
    let bench = Bench::new();
    let words = Passphrase::new("some words of a writer");
    bench.open().add_key("words", Role::Writer, &words, Utc::now()).unwrap();
    let slots = || bench.open().key_slots().unwrap();
    let missing = |repository: &Repository| -> Vec<String> {
        structure(repository).into_iter().filter(|(_, kind)| kind == "missing").map(|(object, _)| object).collect()
    };
    for rotated in [false, true] {
        if rotated {
            bench.open().rotate(&passphrase(), &[], false, Utc::now()).unwrap();
        }
        for label in ["recovery key", "words"] {
            let slot = slots().into_iter().find(|slot| slot.label == label).unwrap();
            let key = format!("keys/{}", slot.id);
            let bytes = get(&bench, &key);
            delete(&bench, &key);
            assert_eq!(missing(&bench.open()), std::slice::from_ref(&key), "{label}, rotated: {rotated}");
            put(&bench, &key, bytes);
            assert_eq!(structure(&bench.open()), []);
        }
    }
    // Removed on purpose; and gone, and then said to be on purpose.
    let mut ids: Vec<String> = slots().into_iter().filter(|slot| !slot.current).map(|slot| slot.id).collect();
    let (removed, gone) = (ids.pop().unwrap(), ids.pop().unwrap());
    bench.open().remove_key(&removed, None, Utc::now()).unwrap();
    assert_eq!(structure(&bench.open()), []);
    let (document, key) = {
        let key = KeyFile::generate();
        (
            bench.open().export_slot("escrow", Role::Reader, &Lock::KeyFile(&key), Utc::now()).unwrap(),
            Passphrase::new(key.reveal().to_string()),
        )
    };
    assert_eq!(structure(&bench.open()), [], "it is in no repository");
    delete(&bench, &format!("keys/{gone}"));
    assert_eq!(missing(&bench.open()), [format!("keys/{gone}")]);
    bench.open().remove_key(&gone, None, Utc::now()).unwrap();
    assert_eq!(structure(&bench.open()), []);
    assert_eq!(bench.open().remove_key("0123456789abcdef", None, Utc::now()).unwrap_err().kind(), Kind::Usage);
    // What is brought in must stay, too.
    let imported = Repository::import_slot(&bench.store, bench.runtime.handle(), &document.1, &key, Utc::now()).unwrap().id;
    assert_eq!(structure(&bench.open()), []);
    delete(&bench, &format!("keys/{imported}"));
    assert_eq!(missing(&bench.open()), [format!("keys/{imported}")]);
}

/// Whoever verifies opens one slot: what the others need is looked at all the same.
#[test]
fn updates_and_marks_that_are_gone_or_changed_are_found_by_every_slot() {
    let bench = Bench::new();
    let (words, late) = (Passphrase::new("some words of a writer"), Passphrase::new("words of a late reader"));
    let slot = bench.open().add_key("words", Role::Writer, &words, Utc::now()).unwrap();
    bench.backup(&small());
    for _ in 0..2 {
        bench.open().rotate(&passphrase(), &[], false, Utc::now()).unwrap();
    }
    bench.open().add_key("late", Role::Reader, &late, Utc::now()).unwrap();
    bench.backup(&small());
    let update = bench.keys("keys/").into_iter().find(|key| key.starts_with(&format!("keys/{}.3-", slot.id))).unwrap();
    let by = |passphrase: &Passphrase| structure(&open_with(&bench, passphrase).unwrap());
    for passphrase in [&passphrase(), &late, &words] {
        assert_eq!(by(passphrase), []);
    }
    let whole = get(&bench, &update);
    let changed = String::from_utf8(whole.to_vec()).unwrap().replacen("\"generation\": 3", "\"generation\": 2", 1);
    let mut other = whole.to_vec();
    let at = other.len() / 2;
    other[at] = if other[at] == b'1' { b'2' } else { b'1' };
    for (bytes, kind) in
        [(Some(whole.slice(..100)), "damaged"), (Some(changed.into()), "damaged"), (Some(other.into()), "damaged"), (None, "missing")]
    {
        delete(&bench, &update);
        if let Some(bytes) = bytes {
            put(&bench, &update, bytes);
        }
        for passphrase in [&passphrase(), &late] {
            assert_eq!(by(passphrase), [(update.clone(), kind.to_owned())]);
        }
        if kind == "damaged" {
            assert_eq!(open_with(&bench, &words).unwrap_err().kind(), Kind::Damaged);
        }
        bench.runtime.block_on(bench.store.delete(&update)).ok();
        put(&bench, &update, whole.clone());
    }
    for generation in [2, 3] {
        let mark = Marker::key(generation);
        let whole = get(&bench, &mark);
        delete(&bench, &mark);
        let found = by(&late);
        assert!(found.contains(&(mark.clone(), "missing".to_owned())), "{found:?}");
        put(&bench, &mark, whole.slice(..50));
        let found = by(&late);
        assert!(found.contains(&(mark.clone(), "damaged".to_owned())), "{found:?}");
        delete(&bench, &mark);
        put(&bench, &mark, whole);
    }
    // One that no reader signed.
    let forged = Keys::generate().next_generation(4, true).marker(bench.open().id(), Utc::now()).unwrap();
    put(&bench, &Marker::key(4), serde_json::to_vec(&forged).unwrap());
    assert_eq!(by(&passphrase()), [(Marker::key(4), "damaged".to_owned())]);
    delete(&bench, &Marker::key(4));
    // Slots that are gone are missed by nobody.
    bench.open().remove_key(&slot.id, None, Utc::now()).unwrap();
    assert_eq!(by(&late), []);
}

/// The key of a plan is gone and nobody destroyed it: found, nothing else is held to be damaged, and nothing goes on under the key of all.
#[test]
fn a_plan_s_key_that_is_gone_is_found_and_nothing_goes_on_without_it() {
    let bench = Bench::new();
    let hr = Name::new("hr").unwrap();
    bench.open().make_plan_key(&hr, Utc::now()).unwrap();
    let key = "keys/plan-8000".to_owned();
    let whole = get(&bench, &key);
    // Before anything was sealed to it.
    delete(&bench, &key);
    assert_eq!(structure(&bench.open()), [(key.clone(), "missing".to_owned())]);
    put(&bench, &key, whole.clone());
    let (own, other) = (backup_as(&bench.open(), &hr, &small()).unwrap(), bench.backup(&small()));
    assert_eq!(verify(&bench.open()).findings, []);
    for (bytes, kind) in [(None, "missing"), (Some(whole.slice(..whole.len() - 3)), "damaged")] {
        delete(&bench, &key);
        if let Some(bytes) = bytes {
            put(&bench, &key, bytes);
        }
        for depth in [VerifyDepth::Structure, VerifyDepth::Data { percent: 100, run: 0 }] {
            let found = bench.open().verify(depth, &Silent, &Cancel::default()).unwrap().findings;
            assert_eq!(found.len(), 1, "{found:?}");
            assert_eq!((&found[0].object, found[0].kind.as_str(), &found[0].snapshots), (&key, kind, &vec![own.id]));
        }
        let reader = bench.open();
        assert_eq!(restore(&reader, &own).unwrap_err().kind(), Kind::Damaged);
        assert_eq!(reader.condemn_found(Utc::now()).unwrap(), 0, "its packs are sound");
        assert_eq!(bench.keys("gc/tombstones/"), Vec::<String>::new());
        assert_eq!(restore(&reader, &other).unwrap(), expected(&small()));
        assert_eq!(backup_as(&bench.open(), &hr, &small()).unwrap_err().kind(), Kind::Damaged);
        if kind == "missing" {
            // A new one has another number, and the plan goes on under it.
            let made = bench.open().make_plan_key(&hr, Utc::now()).unwrap();
            assert_eq!(made.number, "8001");
            backup_as(&bench.open(), &hr, &small()).unwrap();
        } else {
            delete(&bench, &key);
        }
        bench.runtime.block_on(bench.store.delete(&key)).ok();
        put(&bench, &key, whole.clone());
        assert_eq!(verify(&bench.open()).findings, []);
        assert_eq!(restore(&bench.open(), &own).unwrap(), expected(&small()));
    }
    // After a rotation, which gives the plan another key; and one that was destroyed is missed by nobody.
    bench.open().rotate(&passphrase(), &[], true, Utc::now()).unwrap();
    backup_as(&bench.open(), &hr, &small()).unwrap();
    assert_eq!(verify(&bench.open()).findings, []);
    bench.open().erase_plan(&hr, Utc::now()).unwrap();
    assert_eq!(verify(&bench.open()).findings, []);
}

#[test]
fn a_slot_that_cannot_be_read_is_told_by_the_list_and_by_a_rotation() {
    let bench = Bench::new();
    let ids = ["0123456789abcdef", "fedcba9876543210"];
    ids.iter().for_each(|id| put(&bench, &format!("keys/{id}"), &b"rotten"[..]));
    let told: Vec<String> = bench.open().damaged_slots().unwrap().into_iter().map(|(id, _)| id).collect();
    assert_eq!(told, ids);
    let done = bench.open().rotate(&passphrase(), &[ids[1].to_owned()], false, Utc::now()).unwrap();
    assert_eq!((done.unread, done.carried.len()), (vec![ids[0].to_owned()], 2));
    assert!(!bench.keys("keys/").contains(&format!("keys/{}", ids[1])), "it was shut out");
    let event = bench.open().key_events().unwrap().pop().unwrap().unwrap();
    assert_eq!(event.removed, [ids[1]]);
    bench.open().remove_key(ids[0], None, Utc::now()).unwrap();
    assert!(bench.open().damaged_slots().unwrap().is_empty());
}

//! Logs: pieces come back, nobody but a reader reads them, and no change to them goes unnoticed.

use serde_json::json;

use super::*;
use crate::store::Verb;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn log(repository: &Repository) -> Log {
    repository.log(&plan(), &name("database"))
}

/// Log-like bytes: some compress, some do not.
fn wal(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = noise(seed, len / 2 + 1).into_iter().flat_map(|b| [b, 0]).collect();
    bytes.truncate(len);
    bytes
}

fn all_facts(log: &Log) -> Vec<Result<serde_json::Value>> {
    let mut all = Vec::new();
    log.facts_of(&log.listed().unwrap(), |at, facts| {
        assert_eq!(at, all.len());
        all.push(facts);
        true
    });
    all
}

fn verify(repository: &Repository) -> Vec<(String, String)> {
    let found = repository.verify(VerifyDepth::Data { percent: 100, run: 0 }, &Silent, &Cancel::default()).unwrap();
    found.findings.into_iter().map(|f| (f.object, f.kind)).collect()
}

fn key_of(repository: &Repository, piece: &PieceInfo) -> String {
    let chain = repository.inner.keys.log_name("crm", "database");
    format!("logs/{chain}/pieces/{:016x}-{:016x}-{:016x}", piece.stream, piece.start, piece.end)
}

fn open_as(bench: &Bench, role: Role) -> Repository {
    let key = Passphrase::new(format!("the passphrase of a {role}"));
    bench.open().add_key("host", role, &key, Utc::now()).unwrap();
    Repository::open(bench.store.clone(), bench.runtime.handle().clone(), &key, &bench.options()).unwrap()
}

#[test]
fn pieces_come_back_whole_and_in_part_with_their_facts() {
    let bench = Bench::new();
    let repository = bench.open();
    let log = log(&repository);
    assert_eq!(log.pieces().unwrap(), []);
    let sizes = [1usize, 8192, 1 << 20, (1 << 20) + 1, 3_333_333];
    let mut at = 0x0100_0000u64;
    let mut all = Vec::new();
    for (number, size) in sizes.into_iter().enumerate() {
        let bytes = wal(number as u64, size);
        let facts = json!({ "system": 7_000_000_000_000_000_001_u64, "number": number });
        let appended = log.append(1, at, at + size as u64, &facts, &bytes).unwrap();
        assert!(appended.new);
        assert_eq!((appended.piece.start, appended.piece.end), (at, at + size as u64));
        at += size as u64;
        all.extend_from_slice(&bytes);
    }
    log.append(2, 0, 5, &json!(null), b"other").unwrap();
    let pieces = log.pieces().unwrap();
    assert_eq!(pieces.len(), 6);
    assert!(pieces.is_sorted());
    let start = pieces[0].start as usize;
    for (number, piece) in pieces[..5].iter().enumerate() {
        let expected = &all[piece.start as usize - start..piece.end as usize - start];
        assert!(log.read(piece).unwrap() == expected);
        assert_eq!(log.facts(piece).unwrap()["number"], number);
        for part in [0..1u64, 0..piece.end - piece.start, (piece.end - piece.start) / 3..(piece.end - piece.start) * 2 / 3, 0..0] {
            let part = piece.start + part.start..piece.start + part.end;
            assert!(log.read_range(piece, part.clone()).unwrap() == all[part.start as usize - start..part.end as usize - start]);
        }
        assert_eq!(log.read_range(piece, piece.start..piece.end + 1).unwrap_err().kind(), Kind::Bug);
    }
    let facts: Vec<_> = all_facts(&log).into_iter().map(|f| f.unwrap()["number"].as_u64()).collect();
    assert_eq!(facts, [Some(0), Some(1), Some(2), Some(3), Some(4), None]);
    let found = runs(&pieces);
    assert_eq!(found.iter().map(|r| (r.stream, r.start, r.end)).collect::<Vec<_>>(), [(1, start as u64, at), (2, 0, 5)]);
    assert!(log.read_span(&pieces, 1, found[0].start..found[0].end).unwrap() == all);
    assert!(log.read_span(&pieces, 1, found[0].start + 5000..at - 7).unwrap() == all[5000..all.len() - 7]);
    for (stream, positions) in [(1, found[0].start - 1..at), (1, found[0].start..at + 1), (2, 3..9), (3, 0..1)] {
        assert_eq!(log.read_span(&pieces, stream, positions).unwrap_err().kind(), Kind::NoRecoveryPoint);
    }
    assert_eq!(verify(&repository), []);
    // Another source, another plan: other logs.
    assert_eq!(repository.log(&plan(), &name("other")).pieces().unwrap(), []);
    assert_eq!(repository.log(&name("database"), &plan()).pieces().unwrap(), []);
    for bad in [(5, 5, &b""[..]), (5, 9, b"abc"), (9, 5, b"abc"), (u64::MAX, 1, b"ab")] {
        assert_eq!(log.append(1, bad.0, bad.1, &json!({}), bad.2).unwrap_err().kind(), Kind::Bug);
    }
}

#[test]
fn facts_cost_one_small_request_and_parts_only_their_frames() {
    let bench = Bench::new();
    let faults = Faults::new();
    let repository = bench.open_on(Store::with_faults(bench.store.clone(), faults.clone()));
    let log = log(&repository);
    let bytes = noise(1, 16 << 20);
    let piece = log.append(1, 0, 16 << 20, &json!({"a": 1}), &bytes).unwrap().piece;
    let large = json!({ "restore_points": vec!["x".repeat(50); 1000] });
    let labelled = log.append(1, 16 << 20, (16 << 20) + 3, &large, b"abc").unwrap().piece;
    let ranges = || {
        let asked = repository.store().metrics().verb(Verb::GetRange);
        (asked.requests, asked.bytes)
    };
    let before = ranges();
    log.facts(&piece).unwrap();
    let after = ranges();
    assert_eq!(after.0 - before.0, 1);
    assert!(after.1 - before.1 <= 16 << 10);
    assert!(log.read_range(&piece, 5 << 20..(5 << 20) + 10).unwrap() == bytes[5 << 20..(5 << 20) + 10]);
    assert!(ranges().1 - after.1 < (1 << 20) + (32 << 10));
    assert_eq!(log.facts(&labelled).unwrap(), large);
    assert_eq!(log.append(1, 1 << 30, (1 << 30) + 1, &json!("x".repeat(70_000)), b"a").unwrap_err().kind(), Kind::Bug);
}

#[test]
fn the_same_content_again_is_fine_and_another_one_is_split_brain() {
    let bench = Bench::new();
    let repository = bench.open();
    let log = log(&repository);
    let bytes = wal(1, 100_000);
    let first = log.append(1, 1000, 101_000, &json!({"host": "a"}), &bytes).unwrap();
    // Sealed anew, so other bytes; other facts do not matter. A writer's key decides it too.
    for repository in [bench.open(), open_as(&bench, Role::Writer)] {
        let again = self::log(&repository).append(1, 1000, 101_000, &json!({"host": "b"}), &bytes).unwrap();
        assert_eq!(again, Appended { new: false, ..first });
    }
    assert_eq!(log.facts(&first.piece).unwrap()["host"], "a");
    let mut other = bytes.clone();
    other[99_999] ^= 1;
    let error = log.append(1, 1000, 101_000, &json!({"host": "b"}), &other).unwrap_err();
    assert_eq!(error.kind(), Kind::SplitBrain);
    assert!(error.to_string().contains("split brain") && error.hint_text().is_some());
    assert!(log.read(&first.piece).unwrap() == bytes);
    // Another timeline is another stream.
    assert!(log.append(2, 1000, 101_000, &json!({}), &other).unwrap().new);

    let history = name("00000002.history");
    assert_eq!(log.side(&history).unwrap(), None);
    assert!(log.put_side(&history, b"1\t0/3000000\tno reason\n").unwrap());
    assert!(!log.put_side(&history, b"1\t0/3000000\tno reason\n").unwrap());
    assert_eq!(log.put_side(&history, b"1\t0/4000000\tno reason\n").unwrap_err().kind(), Kind::SplitBrain);
    assert_eq!(log.side(&history).unwrap().unwrap(), b"1\t0/3000000\tno reason\n");
    assert_eq!(log.sides().unwrap(), [history]);
    assert_eq!(verify(&repository), []);
}

#[test]
fn a_writer_appends_and_cannot_read() {
    let bench = Bench::new();
    let writer = open_as(&bench, Role::Writer);
    let maintainer = open_as(&bench, Role::Maintainer);
    let marker = b"a marker that must not be found anywhere in what is stored";
    let mut bytes = marker.repeat(500);
    bytes.extend(noise(3, 1000));
    bytes.extend_from_slice(marker);
    let facts = json!({ "system": "a fact that must not be found either" });
    let log = log(&writer);
    let piece = log.append(1, 0, bytes.len() as u64, &facts, &bytes).unwrap().piece;
    log.put_side(&name("2.history"), marker).unwrap();
    log.record_gap(&Gap {
        stream: 9,
        from: 0,
        to: 1,
        reason: String::from_utf8(marker.to_vec()).unwrap(),
        noticed_at: Utc::now(),
        unreadable: false,
    })
    .unwrap();
    assert_eq!(log.facts(&piece).unwrap(), facts);
    assert_eq!(log.side(&name("2.history")).unwrap().unwrap(), marker);
    for result in [log.read(&piece), log.read_range(&piece, 0..1), self::log(&maintainer).read(&piece)] {
        assert_eq!(result.unwrap_err().kind(), Kind::WrongKey);
    }
    // Not by going around the check either: the key of the frames does not open.
    let key = bench.keys("logs/").into_iter().find(|k| k.contains("/pieces/")).unwrap();
    for repository in [&writer, &maintainer] {
        assert_eq!(crate::repo::log::read_piece_for_test(&repository.inner, &key, &piece).unwrap_err().kind(), Kind::WrongKey);
    }
    assert_eq!(self::log(&maintainer).append(1, 0, 3, &json!({}), b"abc").unwrap_err().kind(), Kind::WrongKey);
    assert_eq!(self::log(&maintainer).facts(&piece).unwrap(), facts);
    for key in bench.keys("") {
        assert!(!key.contains("database") && !key.contains("crm"), "{key} tells a name");
        let stored = bench.runtime.block_on(bench.store.get(&key)).unwrap();
        for planted in [&marker[..], b"a fact that must not", b"database"] {
            assert!(!stored.windows(planted.len()).any(|w| w == planted), "{key} shows what is in it");
        }
    }
    // The stored bytes are checked without opening them, and what was not done is said.
    let verified = maintainer.verify(VerifyDepth::Data { percent: 100, run: 0 }, &Silent, &Cancel::default()).unwrap();
    assert!(verified.findings.is_empty() && verified.skipped.iter().any(|s| s.contains("log pieces")));
    runtime_flip(&bench, &key, 100);
    let verified = maintainer.verify(VerifyDepth::Data { percent: 100, run: 0 }, &Silent, &Cancel::default()).unwrap();
    assert_eq!(verified.findings.iter().map(|f| (&f.object, &*f.kind)).collect::<Vec<_>>(), [(&key, "damaged")]);
}

/// Every object of a log, in every kind of damage.
#[test]
fn every_damage_to_a_log_is_found() {
    let bench = Bench::new();
    let repository = bench.open();
    let log = log(&repository);
    let (a, b) = (wal(1, 3000), wal(2, 3000));
    let pieces = [
        log.append(1, 0, 3000, &json!({}), &a).unwrap().piece,
        log.append(1, 3000, 6000, &json!({}), &b).unwrap().piece,
        log.append(1, 6000, 9000, &json!({}), &a).unwrap().piece,
    ];
    let other = repository.log(&plan(), &name("other"));
    other.append(1, 3000, 6000, &json!({}), &b).unwrap();
    log.put_side(&name("2.history"), b"one").unwrap();
    log.put_side(&name("3.history"), b"two").unwrap();
    for stream in [7, 8] {
        log.record_gap(&Gap { stream, from: 5, to: 6, reason: "slot lost".into(), noticed_at: Utc::now(), unreadable: false }).unwrap();
    }
    assert_eq!(verify(&repository), []);
    let keys = bench.keys("logs/");
    assert_eq!(keys.len(), 8);
    let first = key_of(&repository, &pieces[0]);
    for key in &keys {
        let original = bench.runtime.block_on(bench.store.get(key)).unwrap();
        let mut damages: Vec<(String, Bytes)> = vec![("emptied".into(), Bytes::new())];
        for at in 0..original.len() {
            if at % 97 == 0 || *key == first && at % 5 == 0 {
                let mut flipped = original.to_vec();
                flipped[at] ^= 0x10;
                damages.push((format!("flipped at {at}"), Bytes::from(flipped)));
            }
            if at % 97 == 0 {
                damages.push((format!("cut at {at}"), original.slice(..at)));
            }
        }
        damages.push(("longer".into(), Bytes::from([&original[..], b"x"].concat())));
        // What stands under another name, also of another log.
        for other in keys.iter().filter(|other| *other != key) {
            damages.push((format!("swapped with {other}"), bench.runtime.block_on(bench.store.get(other)).unwrap()));
        }
        for (what, bytes) in damages {
            bench.runtime.block_on(faults::replace(&bench.store, key, bytes)).unwrap();
            assert_eq!(verify(&repository), [(key.clone(), "damaged".to_owned())], "{key} {what}");
            for piece in log.pieces().unwrap() {
                match log.read(&piece) {
                    Ok(read) => assert!(read == if piece.start == 3000 { &b[..] } else { &a[..] }, "{key} {what}"),
                    Err(e) => assert_eq!(e.kind(), Kind::Damaged, "{key} {what}: {e:?}"),
                }
            }
        }
        bench.runtime.block_on(faults::replace(&bench.store, key, original.clone())).unwrap();
    }
    // A damaged piece is not taken for the same content.
    runtime_flip(&bench, &first, pieces[0].size as usize - 100);
    assert_eq!(log.append(1, 0, 3000, &json!({}), &a).unwrap_err().kind(), Kind::Damaged);
    runtime_flip(&bench, &first, pieces[0].size as usize - 100);
    // One in the middle that goes away leaves a hole that nothing explains.
    let middle = &key_of(&repository, &pieces[1]);
    bench.runtime.block_on(bench.store.delete(middle)).unwrap();
    assert_eq!(verify(&repository), [(middle.clone(), "missing".to_owned())]);
    log.record_gap(&Gap { stream: 1, from: 2000, to: 6000, reason: "recycled".into(), noticed_at: Utc::now(), unreadable: false }).unwrap();
    assert_eq!(verify(&repository), []);
    bench.runtime.block_on(bench.store.create("logs/strange", Bytes::from("x"))).unwrap();
    assert_eq!(verify(&repository), [], "somebody else's");
    assert_eq!(repository.store().strange(), ["logs/strange"]);
}

#[test]
fn what_overlaps_a_piece_is_compared_without_its_data() {
    let bench = Bench::new();
    let repository = bench.open();
    let bytes = wal(1, (3 << 20) + 5000);
    let piece = log(&repository).append(1, 1000, 1000 + bytes.len() as u64, &json!({}), &bytes).unwrap().piece;
    let around = [noise(2, 1000), bytes, noise(3, 70)].concat();
    let changed = |at: usize| {
        let mut other = around.clone();
        other[at] ^= 1;
        other
    };
    let writer = open_as(&bench, Role::Writer);
    let asked = |repository: &Repository| repository.store().metrics().verb(Verb::GetRange).requests;
    for (repository, is_reader) in [(&repository, true), (&writer, false)] {
        let log = log(repository);
        let before = asked(repository);
        assert!(log.agrees(&piece, 0, &around).unwrap());
        assert_eq!(asked(repository) - before, 1);
        assert!(log.agrees(&piece, 1500, &around[1500..2_000_000]).unwrap());
        assert!(log.agrees(&piece, 0, &around[..1000]).unwrap(), "nothing that both have");
        for at in [1000, 1000 + (1 << 20), around.len() - 71] {
            assert!(!log.agrees(&piece, 0, &changed(at)).unwrap(), "{at}");
        }
        for at in [0, 999, around.len() - 70] {
            assert!(log.agrees(&piece, 0, &changed(at)).unwrap(), "{at} is not of the piece");
        }
        // A part of a frame cannot be told apart without reading it.
        assert_eq!(log.agrees(&piece, 0, &changed(1000)[..5000]).unwrap(), !is_reader);
    }
}

#[test]
fn gaps_are_kept_and_said_again() {
    let bench = Bench::new();
    let repository = bench.open();
    let log = log(&repository);
    let gap = |stream, from, to| Gap { stream, from, to, reason: "the slot was lost".into(), noticed_at: Utc::now(), unreadable: false };
    let (first, second) = (gap(1, 0x500, 0x900), gap(1, 0x50, 0x60));
    log.record_gap(&first).unwrap();
    log.record_gap(&second).unwrap();
    log.record_gap(&Gap { reason: "noticed again".into(), ..first.clone() }).unwrap();
    let (gaps, damaged) = log.gaps().unwrap();
    assert_eq!((gaps, damaged.len()), (vec![second, first.clone()], 0));
    let key = bench.keys("logs/").pop().unwrap();
    runtime_flip(&bench, &key, 70);
    assert_eq!(log.record_gap(&first).unwrap_err().kind(), Kind::Damaged, "it would not be on record");
    let (gaps, damaged) = log.gaps().unwrap();
    assert_eq!((gaps.len(), damaged.len()), (1, 1));
    assert_eq!(log.record_gap(&gap(1, 5, 5)).unwrap_err().kind(), Kind::Bug);
}

#[test]
fn only_what_another_piece_contains_is_removed_and_a_refusal_is_no_failure() {
    let bench = Bench::new();
    let faults = Faults::new();
    let repository = bench.open_on(Store::with_faults(bench.store.clone(), faults.clone()));
    let log = log(&repository);
    let bytes = wal(1, 16_384);
    let append = |start: usize, end: usize| log.append(1, start as u64, end as u64, &json!({}), &bytes[start..end]).unwrap().piece;
    let (a, b, tail) = (append(0, 5000), append(5000, 9000), append(9000, 16_384));
    let planned = PieceInfo { stream: 1, start: 0, end: 16_384, size: 5000 };
    assert_eq!(log.remove_subsumed(&[a], &planned).unwrap_err().kind(), Kind::NotFound, "the whole is not there yet");
    let whole = append(0, 16_384);
    for by in [&a, &b, &PieceInfo { stream: 2, ..whole }] {
        assert_eq!(log.remove_subsumed(&[a], by).unwrap_err().kind(), Kind::Bug);
    }
    assert!(log.remove_subsumed(&[a], &whole).unwrap());
    faults.add(faults::Rule::on(Verb::Delete).always().then(faults::Effect::Fail(Kind::Failed)));
    assert!(!log.remove_subsumed(&[b, tail], &whole).unwrap());
    faults.clear();
    assert!(log.remove_subsumed(&[tail], &whole).unwrap());
    assert_eq!(log.pieces().unwrap(), [whole, b]);
    assert_eq!(verify(&repository), []);
    assert!(log.read_span(&log.pieces().unwrap(), 1, 4000..10_000).unwrap() == bytes[4000..10_000]);
}

/// Whoever reads a long log has listed it long before: its end was put together into larger pieces since, or is lost.
#[test]
fn pieces_that_were_replaced_since_they_were_listed_are_read_where_they_are_now() {
    let bench = Bench::new();
    let repository = bench.open();
    let log = log(&repository);
    let bytes = wal(1, 16_384);
    let append = |start: usize, end: usize| log.append(1, start as u64, end as u64, &json!({}), &bytes[start..end]).unwrap().piece;
    let small = [append(0, 5000), append(5000, 9000), append(9000, 12_000)];
    let listed = log.pieces().unwrap();
    let larger = append(0, 9000);
    assert!(log.remove_subsumed(&small[..2], &larger).unwrap());
    assert!(log.read_span(&listed, 1, 0..12_000).unwrap() == bytes[..12_000]);
    let whole = append(0, 16_384);
    assert!(log.remove_subsumed(&[larger, small[2]], &whole).unwrap());
    assert!(log.read_span(&listed, 1, 4990..12_000).unwrap() == bytes[4990..12_000]);
    assert!(log.read_span(&listed, 1, 0..12_000).unwrap() == bytes[..12_000]);
    // What is damaged is told as that.
    runtime_flip(&bench, &key_of(&repository, &whole), 50);
    assert_eq!(log.read_span(&listed, 1, 0..12_000).unwrap_err().kind(), Kind::Damaged);
    // What is lost is a hole.
    bench.runtime.block_on(bench.store.delete(&key_of(&repository, &whole))).unwrap();
    let lost = log.read_span(&listed, 1, 0..12_000).unwrap_err();
    assert_eq!(lost.kind(), Kind::NoRecoveryPoint);
    assert!(lost.causes().iter().any(|cause| cause.contains("pieces/")), "{lost:?}");
}

#[test]
fn a_damaged_piece_does_not_hide_sound_ones_that_have_the_same() {
    let bench = Bench::new();
    let repository = bench.open();
    let log = log(&repository);
    let bytes = wal(1, 16_384);
    let append = |start: usize, end: usize| log.append(1, start as u64, end as u64, &json!({}), &bytes[start..end]).unwrap().piece;
    let small = [append(0, 5000), append(5000, 9000), append(9000, 16_384)];
    let whole = append(0, 16_384);
    // Somebody who may create objects puts down one that claims more.
    let claimed = PieceInfo { end: 1 << 20, ..whole };
    bench.runtime.block_on(bench.store.create(&key_of(&repository, &claimed), Bytes::from(noise(1, 5000)))).unwrap();
    runtime_flip(&bench, &key_of(&repository, &whole), 50);
    let pieces = log.pieces().unwrap();
    assert_eq!(pieces.len(), 5);
    assert!(log.read_span(&pieces, 1, 0..16_384).unwrap() == bytes);
    assert!(log.read_span(&pieces, 1, 4990..5010).unwrap() == bytes[4990..5010]);
    bench.runtime.block_on(bench.store.delete(&key_of(&repository, &small[2]))).unwrap();
    assert!(log.read_span(&pieces, 1, 0..9000).unwrap() == bytes[..9000]);
    assert_eq!(log.read_span(&pieces, 1, 0..16_384).unwrap_err().kind(), Kind::Damaged);
}

/// A verification beside a writer that replaces small pieces by a segment, in the middle of the listing.
#[test]
fn pieces_that_are_replaced_meanwhile_are_no_finding() {
    let bench = Bench::new();
    let faults = Faults::new();
    let repository = bench.open_on(Store::with_faults(bench.store.clone(), faults.clone()));
    let log = log(&repository);
    let bytes = wal(1, 3000);
    for (start, end) in [(0usize, 1000usize), (1000, 2000), (2000, 3000), (0, 3000)] {
        log.append(1, start as u64, end as u64, &json!({}), &bytes[start..end]).unwrap();
    }
    let keys = bench.keys("logs/");
    // The listing passed the segment's place before it was written, and a small piece was removed before it came to that.
    faults.add(faults::Rule::on(Verb::List).below(&keys[1]).nth(1).then(faults::Effect::Hide));
    faults.add(faults::Rule::on(Verb::GetRange).below(&keys[2]).always().then(faults::Effect::Hide));
    faults.add(faults::Rule::on(Verb::Get).below(&keys[2]).always().then(faults::Effect::Hide));
    assert_eq!(verify(&repository), []);
    faults.clear();
    // Without the segment it is one.
    bench.runtime.block_on(bench.store.delete(&keys[1])).unwrap();
    bench.runtime.block_on(bench.store.delete(&keys[2])).unwrap();
    assert_eq!(verify(&repository).len(), 1);
}

/// A verification beside a prune that removes the beginning of the log: nobody can tell that from retention, and it is retention.
#[test]
fn a_beginning_that_is_removed_meanwhile_is_no_finding() {
    let bench = Bench::new();
    let faults = Faults::new();
    let repository = bench.open_on(Store::with_faults(bench.store.clone(), faults.clone()));
    let log = log(&repository);
    let ends = [0, 0x100, 0x110, 0x1000, 0x2000, 0x3000];
    for stream in [1, 2] {
        for pair in ends.windows(2) {
            log.append(stream, pair[0], pair[1], &json!({}), &wal(pair[0] + stream, (pair[1] - pair[0]) as usize)).unwrap();
        }
    }
    let keys = bench.keys("logs/");
    // The beginnings of the names of the first three of a timeline, of the second and third, of the last one, and of all.
    let first = |stream: usize| keys[stream * 5 - 5][..keys[0].len() - 20].to_owned();
    let (second, last) = (keys[1][..keys[1].len() - 19].to_owned(), keys[4].clone());
    let all = keys[0][..keys[0].len() - 33].to_owned();
    let below = |prefix: &str| keys.iter().filter(|key| key.starts_with(prefix)).count();
    assert_eq!([&first(1), &first(2), &second, &last, &all].map(|prefix| below(prefix)), [3, 3, 2, 1, 5]);
    // What is hidden from which listings, the first and the last of them; and what cannot be opened.
    let verify_while = |lists: &[(&str, u64, u64)], gone: &str| {
        for (prefix, from, to) in lists {
            for number in *from..=*to {
                faults.add(faults::Rule::on(Verb::List).below(prefix).nth(number).then(faults::Effect::Hide));
            }
        }
        for verb in [Verb::Get, Verb::GetRange] {
            faults.add(faults::Rule::on(verb).below(gone).always().then(faults::Effect::Hide));
        }
        let found = verify(&repository);
        faults.clear();
        found
    };
    for removed in [&first(1), &first(2), &all] {
        assert_eq!(verify_while(&[(removed, 2, 9)], removed), [], "{removed}");
    }
    // Several are removed at a time; a listing had the first before it was removed, and not the next ones.
    assert_eq!(verify_while(&[(&second, 2, 2), (&first(1), 3, 9)], &first(1)), []);
    assert_eq!(verify_while(&[(&second, 1, 1), (&first(1), 2, 9)], &first(1)), []);
    // In the middle or at the end it is one, and so is a hole.
    let missing = |some: &[&String]| some.iter().map(|key| ((*key).clone(), "missing".to_owned())).collect::<Vec<_>>();
    assert_eq!(verify_while(&[(&second, 2, 9)], &second), missing(&[&keys[1], &keys[2]]));
    assert_eq!(verify_while(&[(&last, 2, 9)], &last), missing(&[&last]));
    let hole = keys[1].replace("0000000000000110", "0000000000001000");
    assert_eq!(verify_while(&[(&second, 1, 9)], &second), missing(&[&hole]));
}

#[test]
fn an_append_that_crashes_is_all_or_nothing_and_can_be_repeated() {
    let bench = Bench::new();
    let bytes = wal(1, 200_000);
    for when in [When::Before, When::After] {
        let faults = Faults::new();
        let repository = bench.open_on(Store::with_faults(bench.store.clone(), faults.clone()));
        faults.crash_at_write(1, when);
        let stream = u64::from(when == When::After);
        log(&repository).append(stream, 0, 200_000, &json!({}), &bytes).unwrap_err();
        let repository = bench.open();
        let again = log(&repository).append(stream, 0, 200_000, &json!({}), &bytes).unwrap();
        assert_eq!(again.new, when == When::Before);
        assert!(log(&repository).read(&again.piece).unwrap() == bytes);
    }
    assert_eq!(verify(&bench.open()), []);
}

/// What this machine knows of pieces spares requests, and nothing that is gone, swapped or damaged is believed for it.
#[test]
fn kept_facts_spare_requests_and_are_no_witness() {
    let bench = Bench::new();
    let faults = Faults::new();
    let store = Store::with_faults(bench.store.clone(), faults.clone());
    let repository = bench.open_on(store.clone());
    let log = log(&repository);
    let pieces: Vec<PieceInfo> =
        (0..8u64).map(|n| log.append(1, n * 4096, (n + 1) * 4096, &json!({ "n": n }), &wal(n, 4096)).unwrap().piece).collect();
    let key = |n: usize| key_of(&repository, &pieces[n]);
    let numbers =
        |log: &Log| all_facts(log).into_iter().map(|f| f.map(|f| f["n"].as_u64().unwrap()).map_err(|e| e.kind())).collect::<Vec<_>>();
    let asked = || {
        let asked = faults.calls().iter().filter(|call| call.verb != Verb::List).count();
        faults.forget_calls();
        asked
    };
    asked();
    let all: Vec<_> = (0..8u64).map(Ok).collect();
    assert_eq!((numbers(&log), asked()), (all.clone(), 8));
    assert_eq!((numbers(&log), asked()), (all.clone(), 0));
    // Another process, and a writer, who may read facts and no data.
    let key_of_writer = Passphrase::new("the passphrase of a writer");
    repository.add_key("host", Role::Writer, &key_of_writer, Utc::now()).unwrap();
    let writer = Repository::open(store, bench.runtime.handle().clone(), &key_of_writer, &bench.options()).unwrap();
    asked();
    assert_eq!((numbers(&self::log(&writer)), asked()), (all.clone(), 0));
    let cache = bench.cache.path().join(repository.id().to_string());
    let file = std::fs::read_dir(&cache).unwrap().map(|e| e.unwrap().path()).find(|p| p.extension().is_some_and(|e| e == "facts")).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).unwrap().permissions()) & 0o777, 0o600);
    let kept = std::fs::read(&file).unwrap();

    // Gone; swapped with one of the same size; changed in the label.
    let swap = |n: usize, bytes: Bytes| {
        bench.runtime.block_on(bench.store.delete(&key(n))).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(2));
        bench.runtime.block_on(bench.store.create(&key(n), bytes)).unwrap();
    };
    let stored = |n: usize| bench.runtime.block_on(bench.store.get(&key(n))).unwrap();
    bench.runtime.block_on(bench.store.delete(&key(0))).unwrap();
    swap(1, stored(2));
    let mut changed = stored(3).to_vec();
    let at = changed.len() - 150;
    changed[at] ^= 1;
    swap(3, changed.into());
    let damaged = Err(Kind::Damaged);
    assert_eq!(numbers(&log), [damaged, Ok(2), damaged, Ok(4), Ok(5), Ok(6), Ok(7)]);
    assert_eq!(numbers(&log), [damaged, Ok(2), damaged, Ok(4), Ok(5), Ok(6), Ok(7)], "what is damaged is not kept");

    // A file that was changed, cut or brought from elsewhere is none.
    let other = Bench::new();
    let others = other.open();
    self::log(&others).append(1, 0, 4096, &json!({ "n": 99 }), &wal(0, 4096)).unwrap();
    all_facts(&self::log(&others));
    let cache = other.cache.path().join(others.id().to_string());
    let foreign =
        std::fs::read_dir(&cache).unwrap().map(|e| e.unwrap().path()).find(|p| p.extension().is_some_and(|e| e == "facts")).unwrap();
    let flipped = |at: usize| kept.iter().enumerate().map(|(n, b)| if n == at { b ^ 1 } else { *b }).collect::<Vec<u8>>();
    for bytes in [flipped(60), flipped(kept.len() - 1), kept[..kept.len() / 2].to_vec(), Vec::new(), std::fs::read(&foreign).unwrap()] {
        std::fs::write(&file, bytes).unwrap();
        asked();
        assert_eq!(numbers(&log), [damaged, Ok(2), damaged, Ok(4), Ok(5), Ok(6), Ok(7)]);
        assert!(asked() >= 7, "all were asked for again");
    }
    // No object of the store is one, either way.
    assert!(bench.keys("").iter().all(|key| !key.contains("facts")));
}

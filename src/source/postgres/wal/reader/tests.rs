use super::*;
use crate::source::postgres::test_server::TestServer;
use crate::source::postgres::wal::{Meaning, WalName};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::fs;

const MIB: u64 = 1 << 20;

/// Segments of a timeline in `pg_wal`, the longest contiguous run up to the last one that was begun.
fn segments(server: &TestServer, timeline: u32) -> (Lsn, Vec<Vec<u8>>) {
    let size = SegmentSize::new(MIB).unwrap();
    let folder = server.data().join("pg_wal");
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        if let Some(WalName::Segment { timeline: of, number }) = WalName::parse(entry.file_name().to_str().unwrap(), size)
            && of == timeline
        {
            found.insert(number, fs::read(entry.path()).unwrap());
        }
    }
    let mut run: Vec<(u64, Vec<u8>)> = Vec::new();
    for (number, bytes) in found {
        assert!(run.last().is_none_or(|(last, _)| last + 1 == number), "a gap in pg_wal");
        run.push((number, bytes));
    }
    (size.start(run[0].0), run.into_iter().map(|(_, bytes)| bytes).collect())
}

fn reader(start: Lsn) -> WalReader {
    WalReader::new(start, SegmentSize::new(MIB).unwrap(), None).unwrap()
}

fn read(start: Lsn, segments: &[Vec<u8>], piece: usize) -> (Vec<Record>, WalReader) {
    let mut reader = reader(start);
    let mut records = Vec::new();
    for segment in segments {
        for bytes in segment.chunks(piece) {
            reader.push(bytes, |record| records.push(record));
        }
    }
    (records, reader)
}

/// One line of pg_waldump.
#[derive(Debug, PartialEq)]
struct Dumped {
    start: Lsn,
    length: u32,
    xid: u32,
    /// Whose pages it refers to.
    databases: Vec<u32>,
    description: String,
}

fn dump(server: &TestServer, timeline: u32, start: Lsn) -> (Vec<Dumped>, String) {
    let folder = server.data().join("pg_wal");
    let arguments = ["-p", folder.to_str().unwrap(), "-t", &timeline.to_string(), "-s", &start.to_string()];
    let output = server.run("pg_waldump", &arguments);
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    let after = |line: &str, word: &str| line.split_once(word).map(|(_, rest)| rest.trim_start().to_owned()).unwrap();
    let until = |text: &str| text.split([',', ' ']).next().unwrap().to_owned();
    let records = lines.lines().filter(|line| line.starts_with("rmgr:")).map(|line| Dumped {
        start: until(&after(line, "lsn:")).parse().unwrap(),
        length: until(&after(&after(line, "(rec/tot):"), "/")).parse().unwrap(),
        xid: until(&after(line, "tx:")).parse().unwrap(),
        databases: line.split(": rel ").skip(1).map(|rest| rest.split('/').nth(1).unwrap().parse().unwrap()).collect(),
        description: after(line, "desc:"),
    });
    (records.collect(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// As pg_waldump says it.
fn described(meaning: &Meaning) -> Option<String> {
    let time = |time: &chrono::DateTime<chrono::Utc>| time.format("%Y-%m-%d %H:%M:%S%.6f UTC").to_string();
    match meaning {
        Meaning::Commit { time: at, .. } => Some(format!("COMMIT{{}} {}", time(at))),
        Meaning::Abort { time: at, .. } => Some(format!("ABORT{{}} {}", time(at))),
        Meaning::Prepare { time: at } => Some(format!("PREPARE{{}} {}", time(at))),
        Meaning::RestorePoint { name, .. } => Some(format!("RESTORE_POINT {name}")),
        Meaning::Checkpoint { shutdown, redo, timeline, previous_timeline, .. } => Some(format!(
            "CHECKPOINT_{} redo {redo}; tli {timeline}; prev tli {previous_timeline};",
            if *shutdown { "SHUTDOWN" } else { "ONLINE" }
        )),
        Meaning::EndOfRecovery { timeline, previous_timeline, time: at } => {
            Some(format!("END_OF_RECOVERY tli {timeline}; prev tli {previous_timeline}; time {}", time(at)))
        }
        Meaning::BackupEnd { start } => Some(format!("BACKUP_END {start}")),
        Meaning::ParameterChange { .. } => Some("PARAMETER_CHANGE".into()),
        Meaning::Switch => Some("SWITCH".into()),
        Meaning::OverwriteContrecord { at } => Some(format!("OVERWRITE_CONTRECORD lsn {at}")),
        Meaning::CreateTablespace { oid, location } => Some(format!("CREATE {oid} \"{location}\"")),
        Meaning::CopyDatabase { database, source } => Some(format!("copy dir 1663/{source} to 1663/{database}")),
        Meaning::DropDatabase { database } => Some(format!("DROP dir 1663/{database}")),
        Meaning::Other => None,
    }
}

/// Checks that every record, its meaning, and the end are as pg_waldump has them.
fn compare(server: &TestServer, timeline: u32) -> Vec<Record> {
    let (start, segments) = segments(server, timeline);
    let (records, reader) = read(start, &segments, 77_777);
    let (dumped, stderr) = dump(server, timeline, start);
    assert!(!records.is_empty());
    for (ours, theirs) in records.iter().zip(&dumped) {
        assert_eq!((ours.start, ours.length, ours.xid), (theirs.start, theirs.length, theirs.xid), "{theirs:?}");
        let description = theirs.description.as_str();
        match described(&ours.meaning) {
            Some(text) => match text.split_once("{}") {
                // COMMIT, or COMMIT_PREPARED 730: with the transaction that was prepared.
                Some((word, time)) => {
                    assert!(description.starts_with(word) && description.contains(time), "{ours:?} {theirs:?}");
                    let (Meaning::Commit { xid, .. } | Meaning::Abort { xid, .. }) = ours.meaning else { continue };
                    let rest = &description[word.len()..];
                    let prepared = rest.strip_prefix("_PREPARED ").map(|rest| rest.split(':').next().unwrap().parse().unwrap());
                    assert_eq!(xid, prepared.unwrap_or(theirs.xid), "{theirs:?}");
                }
                // Since 15: CREATE_FILE_COPY copy dir …
                None if text.starts_with("copy dir") => assert!(description.contains(&text), "{ours:?} {theirs:?}"),
                None => assert!(description.starts_with(&text), "{ours:?} {theirs:?}"),
            },
            None => {
                for word in [
                    "COMMIT",
                    "ABORT",
                    "PREPARE",
                    "RESTORE_POINT",
                    "CHECKPOINT_ONLINE",
                    "CHECKPOINT_SHUTDOWN",
                    "SWITCH",
                    "END_OF_REC",
                    "BACKUP_END",
                    "OVERWRITE",
                    "CREATE_FILE_COPY",
                    "DROP dir",
                ] {
                    assert!(!description.starts_with(word), "{ours:?} {theirs:?}");
                }
            }
        }
    }
    let mut copied = std::collections::BTreeSet::new();
    for (ours, theirs) in records.iter().zip(&dumped) {
        let changes = theirs.databases.iter().find(|database| copied.contains(*database));
        assert_eq!(ours.changes.as_ref(), changes, "{theirs:?}");
        if let Meaning::CopyDatabase { source, .. } = ours.meaning {
            copied.insert(source);
        }
    }
    assert_eq!(records.len(), dumped.len(), "{stderr}");
    let end = reader.end().expect("the last segment is not full");
    assert_eq!(end.at, records.last().unwrap().end);
    // "invalid record length at 0/1F5B2A8: wanted 24, got 0": names the end, which a page header may follow.
    if let Some((_, rest)) = stderr.split_once("invalid record length at ") {
        let at: Lsn = rest.split(':').next().unwrap().parse().unwrap();
        assert!(at == end.at || at.since(end.at) <= 40, "{at} {end:?}");
    }
    for piece in [1 << 16, 8192, 13] {
        let (again, other) = read(start, &segments, piece);
        assert!(again == records && other.end() == reader.end() && other.valid_end() == reader.valid_end(), "pieces of {piece}");
    }
    records
}

fn count(records: &[Record], wanted: impl Fn(&Meaning) -> bool) -> usize {
    records.iter().filter(|record| wanted(&record.meaning)).count()
}

fn load(server: &TestServer) {
    let socket = server.folder().to_str().unwrap().to_owned();
    server.tool("pgbench", &["-h", &socket, "-U", "postgres", "-i", "-s", "1", "-q", "postgres"]);
    server.tool("pgbench", &["-h", &socket, "-U", "postgres", "-c", "4", "-t", "100", "-n", "postgres"]);
    server.sql("SELECT pg_create_restore_point('before the \u{e9}nd')");
    // Subtransactions, dropped relations and invalidations, which stand before a prepared transaction's number.
    server.sql("CREATE TABLE dropped (a int)");
    for (name, last) in [("one", "COMMIT PREPARED 'one'"), ("two", "ROLLBACK PREPARED 'two'")] {
        let inner =
            "SAVEPOINT a; CREATE TABLE inner_NAME (a int); SAVEPOINT b; INSERT INTO inner_NAME VALUES (1); DROP TABLE IF EXISTS dropped;";
        for statement in [format!("BEGIN; {} PREPARE TRANSACTION '{name}'", inner.replace("NAME", name)), last.to_owned()] {
            // One at a time: a prepared transaction ends its session's.
            server.sql(&statement);
        }
    }
    server.sql("BEGIN; CREATE TABLE never (a int); INSERT INTO never VALUES (1); ROLLBACK");
    // One record over three segments.
    server.sql("SELECT pg_logical_emit_message(true, 'large', repeat('x', 3000000))");
    server.sql("SELECT pg_switch_wal()");
    server.sql("INSERT INTO pgbench_history (tid) SELECT generate_series(1, 1000)");
}

/// Two copies of databases by their files, of which one original is changed afterwards, in small records and with images of pages.
fn copies(server: &TestServer) {
    let strategy = if server.sql("SHOW server_version_num").parse::<u32>().unwrap() < 150_000 { "" } else { " STRATEGY file_copy" };
    server.sql("CREATE DATABASE original");
    let in_original =
        |sql: &str| server.tool("psql", &["-h", server.folder().to_str().unwrap(), "-U", "postgres", "-d", "original", "-qc", sql]);
    in_original("CREATE TABLE t AS SELECT g, repeat('x', 100) AS text FROM generate_series(1, 1000) g");
    server.sql(&format!("CREATE DATABASE copy TEMPLATE original{strategy}"));
    server.sql(&format!("CREATE DATABASE second TEMPLATE template0{strategy}"));
    in_original("UPDATE t SET text = 'y' WHERE g % 3 = 0; CHECKPOINT; UPDATE t SET text = 'z' WHERE g % 7 = 0; CREATE INDEX ON t (g)");
    server.sql("DROP DATABASE second");
}

const CONFIGURATION: &str = "max_prepared_transactions = 5\nwal_keep_size = '1GB'\nautovacuum = off";

#[test]
fn every_record_is_as_pg_waldump_has_it() {
    for extra in [
        "wal_level = replica",
        "wal_level = logical\nwal_compression = on",
        "wal_level = replica\nwal_log_hints = on\nfull_page_writes = off",
    ] {
        let mut server = TestServer::start(&["--wal-segsize=1"], &format!("{CONFIGURATION}\n{extra}"));
        load(&server);
        server.session().sql("SET allow_in_place_tablespaces = on;\nCREATE TABLESPACE inside LOCATION ''");
        copies(&server);
        let last_commit = server.sql("INSERT INTO pgbench_history (tid) VALUES (1); SELECT 1");
        assert_eq!(last_commit, "1");
        server.stop("immediate");
        let records = compare(&server, 1);
        assert!(count(&records, |meaning| matches!(meaning, Meaning::Commit { .. })) > 400);
        assert_eq!(count(&records, |meaning| matches!(meaning, Meaning::Switch)), 1);
        assert!(
            records.iter().any(|record| matches!(&record.meaning, Meaning::RestorePoint { name, .. } if name == "before the \u{e9}nd"))
        );
        assert!(records.iter().any(|record| record.length > 3_000_000));
        assert_eq!(count(&records, |meaning| matches!(meaning, Meaning::CreateTablespace { .. })), 1);
        // That of template0 is made of template1 when a cluster is made.
        assert_eq!(count(&records, |meaning| matches!(meaning, Meaning::CopyDatabase { source, .. } if *source != 1)), 2);
        assert_eq!(count(&records, |meaning| matches!(meaning, Meaning::DropDatabase { .. })), 1);
        assert!(records.iter().filter(|record| record.changes.is_some()).count() > 50);
        torn_anywhere(&server, &records);
        // Recovery from the crash goes on right where we say that the log ends.
        let end = records.last().unwrap().end;
        server.resume();
        server.stop("fast");
        let records = compare(&server, 1);
        assert!(records.iter().any(|record| record.start.0 <= end.0 + 40 && record.end > end), "{end}");
    }
}

/// Damage ends the log at the damaged record, never later, and makes up nothing.
fn torn_anywhere(server: &TestServer, records: &[Record]) {
    let (start, segments) = segments(server, 1);
    let last = records.last().unwrap();
    let log: Vec<u8> = segments.concat();
    // The rest of a segment behind a switch is not looked at, but for new pages.
    let is_passed_over =
        |at: Lsn| records.iter().any(|record| record.meaning == Meaning::Switch && (record.start.0 + 24..record.end.0).contains(&at.0));
    for step in 0..150u64 {
        let at = usize::try_from((step * 7_919_777) % last.end.since(start)).unwrap();
        let mut bad = log.clone();
        bad[at] ^= 1 << (step % 8);
        let mut reader = reader(start);
        let mut read = Vec::new();
        reader.push(&bad, |record| read.push(record));
        let position = Lsn(start.0 + at as u64);
        // A page's timeline is only checked against the pages around it.
        read.iter_mut().for_each(|record| record.timeline = 1);
        assert!(read.len() <= records.len() && read == records[..read.len()], "bit at {position}");
        let whole = records.iter().take_while(|record| record.end <= position).count();
        assert!(read.len() + 1 >= whole, "bit at {position}: {} of {whole}", read.len());
        if let Some(hit) = records.get(whole)
            && hit.start <= position
            && !is_passed_over(position)
            && read.len() > whole
        {
            // Padding behind a record and unused bytes of page headers mean nothing.
            let in_page = position.0 % 8192;
            assert!(in_page < 40 || position.0 >= hit.end.0 - 8, "bit at {position} was not noticed");
        }
    }
}

#[test]
fn a_record_torn_by_a_crash_is_given_up_and_overwritten() {
    let mut server = TestServer::start(&["--wal-segsize=1"], CONFIGURATION);
    server.sql("CREATE TABLE t (a int); CHECKPOINT");
    server.sql("SELECT pg_switch_wal(); INSERT INTO t VALUES (1)");
    // As PostgreSQL's own test of this has it: a record over three segments, whose last segment is lost.
    server.sql("SELECT pg_logical_emit_message(true, 'large', repeat('x', 2500000))");
    let (start, before) = segments(&server, 1);
    let (records, _) = read(start, &before, 1 << 20);
    let large = records.iter().find(|record| record.length > 2_500_000).unwrap().clone();
    server.stop("immediate");
    let size = SegmentSize::new(MIB).unwrap();
    let mut number = size.number_before(large.end);
    let mut lost = 0;
    while let name = (WalName::Segment { timeline: 1, number }).text(size)
        && fs::remove_file(server.data().join("pg_wal").join(name)).is_ok()
    {
        (number, lost) = (number + 1, lost + 1);
    }
    assert!(lost > 0);
    let (start, torn) = segments(&server, 1);
    let (records, reader) = read(start, &torn, 1 << 20);
    assert_eq!((reader.end(), reader.valid_end()), (None, large.start), "waits for more of the record");
    assert_eq!(records.last().unwrap().end, large.start);
    server.resume();
    server.sql("INSERT INTO t VALUES (2)");
    server.stop("fast");
    let records = compare(&server, 1);
    assert!(records.iter().any(|record| record.meaning == Meaning::OverwriteContrecord { at: large.start }), "{:?}", large.start);
}

#[test]
fn a_timeline_switch_is_followed() {
    let mut server = TestServer::start(&["--wal-segsize=1"], CONFIGURATION);
    server.sql("CREATE TABLE t (a int); SELECT pg_switch_wal(); INSERT INTO t VALUES (1)");
    server.stop("fast");
    fs::write(server.data().join("standby.signal"), "").unwrap();
    server.resume();
    server.tool("pg_ctl", &["-D", server.data().to_str().unwrap(), "-w", "promote"]);
    server.sql("INSERT INTO t SELECT generate_series(1, 1000)");
    server.stop("fast");
    let text = fs::read_to_string(server.data().join("pg_wal/00000002.history")).unwrap();
    let history = crate::source::postgres::wal::TimelineHistory::parse(2, &text).unwrap();
    let switch = history.left_at(1).unwrap();
    let size = SegmentSize::new(MIB).unwrap();
    let (start, mut old) = segments(&server, 1);
    let (second_start, new) = segments(&server, 2);
    assert_eq!(size.number(switch), size.number(second_start));
    let alone = compare(&server, 2);
    old.truncate(usize::try_from(size.number(second_start) - size.number(start)).unwrap());
    old.extend(new);
    let (records, reader) = read(start, &old, 1 << 20);
    // Behind a page header, where the switch is at the end of a page.
    let begun = records.iter().find(|record| record.start >= switch).unwrap();
    assert!(begun.start.since(switch) <= 40);
    assert!(
        matches!(begun.meaning, Meaning::EndOfRecovery { timeline: 2, previous_timeline: 1, .. })
            || matches!(begun.meaning, Meaning::Checkpoint { timeline: 2, previous_timeline: 1, .. }),
        "{begun:?}"
    );
    assert_eq!(reader.end().unwrap().at, alone.last().unwrap().end);
    assert_eq!(reader.timeline(), 2);
}

#[test]
fn the_log_of_another_cluster_is_refused() {
    let mut server = TestServer::start(&["--wal-segsize=1"], "");
    server.stop("fast");
    let (start, segments) = segments(&server, 1);
    let control = crate::source::postgres::control::Control::parse(&fs::read(server.data().join("global/pg_control")).unwrap()).unwrap();
    let size = SegmentSize::new(MIB).unwrap();
    for (identifier, accepted) in [(control.system_identifier, true), (control.system_identifier ^ 1, false)] {
        let mut reader = WalReader::new(start, size, Some(identifier)).unwrap();
        let mut records = 0;
        segments.iter().for_each(|segment| reader.push(segment, |_| records += 1));
        assert_eq!(records > 0, accepted);
        assert_eq!(reader.end().unwrap().why == Why::OtherServer(control.system_identifier), !accepted);
    }
    let mut other_size = WalReader::new(start, SegmentSize::new(2 * MIB).unwrap(), None).unwrap();
    other_size.push(&segments[0], |_| panic!("a record"));
    assert!(matches!(other_size.end().unwrap().why, Why::Invalid(_)));
    assert!(WalReader::new(Lsn(8), size, None).is_err());
}

proptest! {
    #[test]
    fn garbage_never_panics(
        seed in proptest::collection::vec(any::<u8>(), 1..3000),
        start in 0u64..1 << 40,
        magic in 0usize..5,
        flags in 0u16..16,
        fields in any::<(u32, u32, u8, u8)>(),
        piece in 1usize..9000,
    ) {
        let start = Lsn(start / 8192 * 8192);
        let mut log: Vec<u8> = seed.iter().copied().cycle().take(5 * 8192).collect();
        for page in 0..5usize {
            // Headers good enough to get further.
            let at = page * 8192;
            let address = start.0 + at as u64;
            let long = if address.is_multiple_of(MIB) { 2 } else { 0 };
            log[at..at + 2].copy_from_slice(&MAGICS[magic].to_le_bytes());
            log[at + 2..at + 4].copy_from_slice(&(flags & !2 | long).to_le_bytes());
            log[at + 4..at + 8].copy_from_slice(&1u32.to_le_bytes());
            log[at + 8..at + 16].copy_from_slice(&address.to_le_bytes());
            log[at + 16..at + 20].copy_from_slice(&(if page == 0 { fields.0 % 20_000 } else { fields.1 % 20_000 }).to_le_bytes());
            log[at + 32..at + 36].copy_from_slice(&(1u32 << 20).to_le_bytes());
            log[at + 36..at + 40].copy_from_slice(&8192u32.to_le_bytes());
        }
        let mut reader = WalReader::new(start, SegmentSize::new(MIB).unwrap(), None).unwrap();
        for bytes in log.chunks(piece) {
            reader.push(bytes, |record| assert!(record.end > record.start));
        }
        // Bodies with lengths and counts from nowhere.
        let header = Header { length: 0, xid: 1, previous: Lsn(0), info: fields.2, resource_manager: fields.3 % 2, crc: 0 };
        for lead in [&[255u8, 200][..], &[254, 1, 2, 3, 4], &[253, 1, 2, 255, 0], &[252, 1, 2, 3, 4, 255, 9], &[]] {
            meaning(&header, &[lead, &seed].concat(), MAGICS[magic]);
        }
    }
}

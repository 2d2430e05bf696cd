use std::sync::atomic::AtomicBool;

use super::*;
use crate::source::postgres::conninfo::Host;
use crate::source::postgres::instance::Stop;
use crate::source::postgres::prove;
use crate::source::postgres::test_restored::Archived;
use crate::source::postgres::test_server::TestServer;

const KEY: [u8; 32] = [7; 32];

fn settings_of(source: &Archived, user: &str) -> Settings {
    Settings::new(Host::Socket(source.server.folder().to_owned()), 5432, user)
}

#[test]
fn names_are_read_back() {
    let name = |database: &str, schema: &str, table: &str, sample| TableName {
        database: database.into(),
        schema: schema.into(),
        table: table.into(),
        encoding: None,
        sample,
    };
    let encoded = |name: TableName| TableName { encoding: Some("EUC_JIS_2004".into()), ..name };
    let names = [
        (name("crm", "public", "order_2", None), "crm.public.order_2"),
        (name("CRM", "a.b", "say \"x\"", None), "\"CRM\".\"a.b\".\"say \"\"x\"\"\""),
        (name("ü", "1a", "(t)", Some(Sample { read: 64, all: 1000, seed: 0 })), "\"ü\".\"1a\".\"(t)\" [64 of 1000 pages]"),
        (name("a", "b", "t", Some(Sample { read: 1, all: 9, seed: 77 })), "a.b.t [1 of 9 pages, 77]"),
        (name("a", "b", "t [1 of 2 pages]", None), "a.b.\"t [1 of 2 pages]\""),
        (encoded(name("a", "b", "t", None)), "a.b.t (EUC_JIS_2004)"),
        (encoded(name("a", "b", "t (x)", Some(Sample { read: 1, all: 9, seed: 77 }))), "a.b.\"t (x)\" (EUC_JIS_2004) [1 of 9 pages, 77]"),
        (name("a", "", "\"", None), "a.\"\".\"\"\"\""),
    ];
    for (name, text) in names {
        assert_eq!(name.to_string(), text);
        assert_eq!(TableName::parse(text), Some(name));
    }
    for text in [
        "",
        "a.b",
        "a.b.c.d",
        "a.b.\"c",
        "A.b.c",
        "a.b.c [x of 2 pages]",
        "a.b.c [1 of 2 pages, x]",
        "a.b.c [1 of 2 pages",
        "a.b.c ",
        "a.b.c (x",
    ] {
        assert_eq!(TableName::parse(text), None, "{text}");
    }
}

#[test]
fn lines_of_copy_are_decoded() {
    let row = |line: &[u8], columns| {
        let (mut encoder, mut scratch) = (RowEncoder::default(), Vec::new());
        encode(line, columns, &mut encoder, &mut scratch).map(|()| encoder.encoded().to_vec())
    };
    let mut expected = RowEncoder::default();
    expected.start(4);
    expected.text(b"a\tb\\N\n\x0b\x08\x0c\r");
    expected.null();
    expected.text(b"");
    expected.text("ü".as_bytes());
    assert_eq!(row("a\\tb\\\\N\\n\\v\\b\\f\\r\t\\N\t\tü\n".as_bytes(), 4).unwrap(), expected.encoded());
    assert!(row(b"a\tb\n", 3).is_err() && row(b"a", 1).is_err() && row(b"a\\\n", 1).is_err());
    assert_eq!(row(b"\n", 0).unwrap(), 0u32.to_le_bytes());
    assert_ne!(row(b"\n", 1).unwrap(), row(b"\\N\n", 1).unwrap());
}

#[test]
fn a_line_that_comes_in_pieces_has_the_digest_of_the_whole() {
    let digest = |line: &[u8], cuts: &[usize], columns| {
        let mut lines = Lines::new(&KEY, columns);
        let ends = cuts.iter().copied().chain([line.len()]);
        let starts = [0].into_iter().chain(cuts.iter().copied());
        for (start, end) in starts.zip(ends) {
            lines.add(&Piece { bytes: line[start..end].to_vec().into(), ends: end == line.len() })?;
        }
        lines.finish("t".into())
    };
    let lines: [(&[u8], usize); 6] = [
        ("a\\tb\\\\N\\n\\v\\b\\f\\r\t\\N\t\tü\n".as_bytes(), 4),
        (b"\\N\t\\N\n", 2),
        (b"\t\n", 2),
        (b"\\\\N\t\\\\\\\\\n", 2),
        (b"\\N\tx\n", 2),
        (b"N\t\\N\n", 2),
    ];
    for (line, columns) in lines {
        let whole = digest(line, &[], columns).unwrap();
        for cut in 1..line.len() {
            assert_eq!(digest(line, &[cut], columns).unwrap(), whole, "{line:?} {cut}");
            assert!(digest(line, &[cut], columns + 1).is_err());
        }
        let all: Vec<usize> = (1..line.len()).collect();
        assert_eq!(digest(line, &all, columns).unwrap(), whole);
    }
    assert!(digest(b"ab\n", &[1], 1).is_ok() && digest(b"ab", &[1], 1).is_err() && digest(b"a\\\n", &[1], 1).is_err());
    assert!(digest(b"\\Nx\n", &[1], 1).is_err());
    let mut cut_off = Lines::new(&KEY, 1);
    cut_off.add(&Piece { bytes: b"a"[..].into(), ends: false }).unwrap();
    assert!(cut_off.finish("t".into()).is_err());
}

#[test]
fn a_wide_row_is_read_in_pieces_and_no_faster_than_allowed() {
    let source = Archived::start("");
    source.sql("CREATE TABLE wide(a text, b text, c text, d bytea)");
    source.sql("INSERT INTO wide VALUES ('ü', repeat(E'tab\\t\\\\back\\n', 100000), NULL, convert_to(repeat('x', 300000), 'UTF8')), ('', NULL, 'short', '')");
    let (settings, cancel) = (settings_of(&source, "postgres"), Cancel::default());
    let throttle = Throttle::new(1 << 20, cancel.clone());
    let begun = Instant::now();
    let taken = Snapshot::take(&settings, "x", &Options::default(), &cancel).unwrap().read(&KEY, Some(&throttle), &cancel).unwrap();
    // Two MiB, less the burst of a quarter of a second.
    assert!(taken.cost[0].bytes > 1_800_000 && begun.elapsed() > Duration::from_millis(1400), "{:?} {:?}", taken.cost, begun.elapsed());
    let (mut sum, mut row) = (Accumulator::new(&KEY), RowEncoder::default());
    row.start(4);
    row.text("ü".as_bytes());
    row.text("tab\t\\back\n".repeat(100_000).as_bytes());
    row.null();
    row.text(format!("\\x{}", "78".repeat(300_000)).as_bytes());
    sum.add(&row);
    row.start(4);
    row.text(b"");
    row.null();
    row.text(b"short");
    row.text(b"\\x");
    sum.add(&row);
    assert_eq!(taken.tables, [sum.finish("postgres.public.wide")]);
}

#[test]
fn samples_stay_inside_and_do_not_overlap() {
    for (read, all, seed) in [(1, 2), (127, 128), (128, 129), (300, 1000), (1280, 1_000_000), (999, 1000)]
        .into_iter()
        .flat_map(|(read, all)| [0, 7].map(|seed| (read, all, seed)))
    {
        let runs = runs(Sample { read, all, seed });
        assert!(runs.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{runs:?}");
        assert!(runs.iter().all(|run| run.0 < run.1 && run.1 <= all), "{runs:?}");
        let taken: u64 = runs.iter().map(|run| run.1 - run.0).sum();
        assert!(taken <= read && taken * 2 > read, "{read} of {all}: {runs:?}");
    }
}

fn fill(source: &Archived) {
    source.sql("CREATE DATABASE \"Zweite DB\"");
    source.sql("CREATE EXTENSION amcheck");
    source.sql("CREATE TABLE account(id int PRIMARY KEY, balance bigint, note text)");
    source.sql("INSERT INTO account SELECT n, 0, repeat('x', 50) FROM generate_series(1, 20000) n");
    source.sql("CREATE TABLE ledger(id bigserial PRIMARY KEY, account int, amount int, at timestamptz DEFAULT clock_timestamp())");
    source.sql("CREATE SCHEMA \"Größe.n\"");
    source.sql(
        "CREATE TABLE \"Größe.n\".\"Ta\"\"b\"(a float8, b numeric, c bytea, d jsonb, e text[], f interval, g date, h money, i regclass, \
         j int GENERATED ALWAYS AS (1 + 1) STORED)",
    );
    source.sql(
        "INSERT INTO \"Größe.n\".\"Ta\"\"b\" VALUES ('NaN', 1e30, '\\x00ff5c', '{\"a\": \"\\t\"}', ARRAY['a','NULL',NULL,E'\\n\\\\'], \
         '1 year -3 days', 'infinity', 12.5, 'account'), (-0.0, NULL, '', NULL, '{}', NULL, '0044-03-15 BC', NULL, NULL), (0.1, 'NaN', NULL, 'null', NULL, '1 s', NULL, -1, 0)",
    );
    source.sql("CREATE TABLE nothing()");
    source.sql("INSERT INTO nothing DEFAULT VALUES");
    source.sql("CREATE TABLE parted(n int) PARTITION BY RANGE (n)");
    source.sql("CREATE TABLE part1 PARTITION OF parted FOR VALUES FROM (0) TO (10)");
    source.sql("INSERT INTO parted VALUES (1), (2)");
    source.sql("CREATE UNLOGGED TABLE gone(n int)");
    // Two tables of an extension, of which it names one as the user's.
    source.sql("CREATE TABLE kept(n int)");
    source.sql("INSERT INTO kept VALUES (1), (2)");
    source.sql("CREATE TABLE its_own(n int)");
    source.sql("ALTER EXTENSION amcheck ADD TABLE kept");
    source.sql("ALTER EXTENSION amcheck ADD TABLE its_own");
    source.sql(
        "UPDATE pg_extension SET extconfig = ARRAY['kept'::regclass::oid], extcondition = ARRAY['WHERE n > 1'] WHERE extname = 'amcheck'",
    );
    source.sql("SELECT lo_from_bytea(0, '\\x0102')");
    source.sql("CREATE ROLE reader LOGIN");
    source.sql("GRANT UPDATE, SELECT ON ALL TABLES IN SCHEMA public TO reader");
}

/// Moves money from one account to another, one transaction each, until told to stop.
fn write_on(settings: &Settings, seed: u64, stop: &AtomicBool) -> u64 {
    let mut connection = Connection::connect(settings, Mode::Sql { database: Some("postgres") }, &Cancel::default()).unwrap();
    let (mut state, mut count) = (seed, 0);
    while !stop.load(Ordering::Relaxed) {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (from, to) = (1 + (state >> 33) % 20000, 1 + (state >> 13) % 20000);
        // In the order of their numbers: no two of these wait for each other.
        let (first, second) = (from.min(to), from.max(to));
        let end = if state.is_multiple_of(16) { "ROLLBACK" } else { "COMMIT" };
        connection
            .execute(&format!(
                "BEGIN; UPDATE account SET balance = balance - 1 WHERE id = {first}; UPDATE account SET balance = balance + 1 WHERE id = {second}; \
                 INSERT INTO ledger(account, amount) VALUES ({first}, -1), ({second}, 1); {end}"
            ))
            .unwrap();
        count += 1;
    }
    count
}

/// Again when a table was busy (a vacuum is in the way for a second), under another name each time.
fn take_all(settings: &Settings, options: &Options) -> Snapshot {
    for attempt in 1.. {
        let snapshot = Snapshot::take(settings, &format!("lifeboat-test-{attempt}"), options, &Cancel::default()).unwrap();
        if attempt > 60 || !snapshot.left_out.iter().any(|left| left.message.contains("lock")) {
            return snapshot;
        }
        drop(snapshot);
        std::thread::park_timeout(Duration::from_millis(300));
    }
    unreachable!()
}

/// Takes fingerprints while two writers run, then compares them with a server that was recovered to their position.
fn taken_equals_recovered(user: &str, options: &Options) -> Taken {
    let source = Archived::start("");
    fill(&source);
    let restored = source.base_backup("restored");
    let stop = AtomicBool::new(false);
    let (writer, reader) = (settings_of(&source, "postgres"), settings_of(&source, user));
    let cancel = Cancel::default();
    let busy = || source.sql("SELECT count(*) FROM ledger").parse::<u64>().unwrap();
    let wait_for = |count: u64| {
        let deadline = Instant::now() + Duration::from_mins(1);
        while busy() < count {
            assert!(Instant::now() < deadline, "the writers do not write");
            std::thread::park_timeout(Duration::from_millis(20));
        }
    };
    let taken = std::thread::scope(|scope| {
        let writers = [1, 2].map(|seed| {
            scope.spawn({
                let (writer, stop) = (&writer, &stop);
                move || write_on(writer, seed, stop)
            })
        });
        wait_for(200);
        let snapshot = take_all(&reader, options);
        let count = busy();
        wait_for(count + 200);
        let taken = snapshot.read(&KEY, None, &cancel).unwrap();
        stop.store(true, Ordering::Relaxed);
        let written: u64 = writers.map(|writer| writer.join().unwrap()).iter().sum();
        eprintln!("{user}: {written} transactions, locked {} ms, left out {:?}", taken.locked_ms, taken.left_out);
        taken
    });
    source.archive_all();

    let (instance, outcome) = source.recover(&restored, taken.position.target()).unwrap();
    assert_eq!(outcome.end, taken.position.lsn);
    let settings = prove::settings(&instance, "postgres");
    let names: Vec<&str> = taken.tables.iter().map(|table| table.table.as_str()).collect();
    let found = again(&settings, &names, &KEY, 3, &cancel).unwrap();
    for (expected, found) in taken.tables.iter().zip(found) {
        assert_eq!(&found.unwrap().0, expected);
    }
    // And one row less or other is seen.
    source.ask(&instance, "UPDATE account SET note = 'y' WHERE id = 1; DELETE FROM ledger WHERE id = (SELECT min(id) FROM ledger)");
    let found = again(&settings, &["postgres.public.account", "postgres.public.ledger", "postgres.public.none"], &KEY, 1, &cancel).unwrap();
    let expected = |name: &str| taken.tables.iter().find(|table| table.table == name);
    assert_ne!(found[0].as_ref().ok().map(|found| &found.0), expected("postgres.public.account"));
    assert_ne!(found[1].as_ref().ok().map(|found| &found.0), expected("postgres.public.ledger"));
    assert_eq!(sqlstate(found[2].as_ref().unwrap_err()), Some("42P01"));
    instance.stop(Stop::Immediate).unwrap();
    taken
}

#[test]
fn under_load_they_equal_what_is_recovered_at_the_restore_point() {
    let taken = taken_equals_recovered("postgres", &Options::default());
    assert!(taken.position.restore_point.as_deref().unwrap().starts_with("lifeboat-test-"));
    assert_eq!(taken.left_out, []);
    let rows: Vec<(&str, u64)> = taken.tables.iter().map(|table| (table.table.as_str(), table.rows)).collect();
    let expected = [
        ("postgres.\"Größe.n\".\"Ta\"\"b\"", 3),
        ("postgres.pg_catalog.pg_largeobject", 1),
        ("postgres.public.account", 20000),
        ("postgres.public.kept", 2),
        ("postgres.public.nothing", 1),
        ("postgres.public.part1", 2),
    ];
    for expected in expected {
        assert!(rows.contains(&expected), "{expected:?} in {rows:?}");
    }
    assert_eq!(rows.len(), expected.len() + 1, "and the ledger: {rows:?}");
    assert_eq!(taken.cost.len(), taken.tables.len());
    assert!(taken.cost.iter().any(|cost| cost.rows == 20000 && cost.bytes > 20000 * 50));
}

#[test]
fn without_privileges_and_sampled_they_equal_what_is_recovered_at_the_position() {
    let options = Options { budget: Budget::Bytes(512 * 1024), ..Options::default() };
    let taken = taken_equals_recovered("reader", &options);
    assert_eq!(taken.position.restore_point, None);
    // What this role may not lock is named.
    let left_out: Vec<&str> = taken.left_out.iter().map(|left| left.object.as_str()).collect();
    assert!(left_out.contains(&"postgres.pg_catalog.pg_largeobject"), "{left_out:?}");
    assert!(left_out.contains(&"postgres.\"Größe.n\".\"Ta\"\"b\""), "{left_out:?}");
    let sampled = taken.tables.iter().find(|table| table.table.starts_with("postgres.public.account [")).unwrap();
    assert!(sampled.rows > 0 && sampled.rows < 20000);
}

#[test]
fn a_table_that_stays_locked_is_named_and_keeps_nobody_waiting() {
    let source = Archived::start("");
    source.sql("CREATE TABLE quiet(n int)");
    source.sql("CREATE TABLE busy(n int)");
    let (settings, cancel) = (settings_of(&source, "postgres"), Cancel::default());
    let mut writer = Connection::connect(&settings, Mode::Sql { database: Some("postgres") }, &cancel).unwrap();
    writer.execute("BEGIN; INSERT INTO busy VALUES (1)").unwrap();
    let snapshot = Snapshot::take(&settings, "x", &Options::default(), &cancel).unwrap();
    assert!(snapshot.locked() < Duration::from_secs(3));
    // Others write again as soon as it is taken, also to the table that was locked.
    source.sql("SET lock_timeout = '2s'; INSERT INTO quiet VALUES (1)");
    let taken = snapshot.read(&KEY, None, &cancel).unwrap();
    assert_eq!(taken.tables.iter().map(|table| (table.table.as_str(), table.rows)).collect::<Vec<_>>(), [("postgres.public.quiet", 0)]);
    let [left] = taken.left_out.as_slice() else { panic!("{:?}", taken.left_out) };
    assert_eq!(left.object, "postgres.public.busy");
    assert!(left.message.contains("lock timeout"), "{}", left.message);
    writer.execute("COMMIT").unwrap();
}

#[test]
fn what_is_committed_while_a_table_is_waited_for_belongs_to_the_snapshot() {
    let source = Archived::start("");
    source.sql("CREATE TABLE t(n int)");
    let (settings, cancel) = (settings_of(&source, "postgres"), Cancel::default());
    let connect = || Connection::connect(&settings, Mode::Sql { database: Some("postgres") }, &cancel).unwrap();
    let (mut writer, mut watcher) = (connect(), connect());
    writer.execute("BEGIN; INSERT INTO t VALUES (1)").unwrap();
    let options = Options { lock_timeout: Duration::from_secs(30), ..Options::default() };
    // Longer than the default of a server, so that a slow machine waits too.
    source.sql("ALTER ROLE postgres SET deadlock_timeout = '60s'");
    let options = Options { lock_limit: Duration::from_secs(30), ..options };
    let taken = std::thread::scope(|scope| {
        let snapshot = scope.spawn(|| Snapshot::take(&settings, "x", &options, &cancel).unwrap());
        let deadline = Instant::now() + Duration::from_secs(30);
        while watcher.value("SELECT count(*) FROM pg_locks WHERE mode = 'ShareLock' AND NOT granted").unwrap().as_deref() != Some("1") {
            assert!(Instant::now() < deadline, "nobody waits for the lock");
        }
        writer.execute("COMMIT").unwrap();
        snapshot.join().unwrap().read(&KEY, None, &cancel).unwrap()
    });
    assert_eq!(taken.left_out, []);
    assert_eq!(taken.tables[0].rows, 1);
}

/// `COPY` writes the labels of enumerated types as they are now, whatever the snapshot.
#[test]
fn a_value_that_is_renamed_while_rows_are_read_is_no_difference_for_ever() {
    let source = Archived::start("");
    source.sql("CREATE TYPE mood AS ENUM ('fine', 'bad')");
    source.sql("CREATE DOMAIN temper AS mood");
    for (name, columns) in [("plain", "n int"), ("direct", "m mood"), ("list", "m mood[]"), ("domain", "m temper"), ("row_of", "d direct")]
    {
        source.sql(&format!("CREATE TABLE {name}({columns})"));
    }
    let settings = settings_of(&source, "postgres");
    let read = |renamed: &[&str]| {
        let snapshot = take_all(&settings, &Options::default());
        renamed.iter().for_each(|statement| drop(source.sql(statement)));
        let taken = snapshot.read(&[7; 32], None, &Cancel::default()).unwrap();
        assert!(taken.left_out.iter().all(|problem| problem.message.contains("was renamed while it was read")), "{:?}", taken.left_out);
        let mut left_out: Vec<String> = taken.left_out.iter().filter_map(|it| TableName::parse(&it.object)).map(|it| it.table).collect();
        left_out.sort();
        assert_eq!(left_out.len() + taken.tables.len(), 5, "{:?}", taken.tables);
        left_out
    };
    assert_eq!(read(&[]), [""; 0]);
    assert_eq!(read(&["ALTER TYPE mood ADD VALUE 'great'"]), [""; 0]);
    assert_eq!(read(&["ALTER TYPE mood RENAME VALUE 'fine' TO 'well'"]), ["direct", "domain", "list", "row_of"]);
}

#[test]
fn a_budget_reads_small_tables_whole_and_the_same_of_all_others() {
    let mib = 1 << 20;
    assert_eq!(share_of_each(vec![], mib), u64::MAX);
    assert_eq!(share_of_each(vec![3, 4, 5], 12), u64::MAX, "all of it");
    assert_eq!(share_of_each(vec![900 * mib, mib, 100 * mib, 2 * mib], 103 * mib), 50 * mib);
    assert_eq!(share_of_each(vec![900 * mib, mib], 2 * mib), mib);
    // Of very many tables a little each, even if that is more.
    assert_eq!(share_of_each(vec![mib; 10_000], mib), SAMPLE_LEAST);
}

#[test]
fn samples_of_another_seed_are_of_other_pages_and_never_of_few_places() {
    let of = |seed| runs(Sample { read: 64, all: 10_000, seed });
    assert_eq!(of(3), of(3));
    assert_ne!(of(3), of(4));
    assert_eq!(of(3).len(), 8);
}

#[test]
fn a_database_without_an_encoding_is_read_byte_for_byte_and_what_has_no_name_is_told() {
    let source = Archived::start("");
    source.sql("CREATE DATABASE raw ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0");
    let (settings, cancel) = (settings_of(&source, "postgres"), Cancel::default());
    let mut raw = Connection::connect(&settings, Mode::Sql { database: Some("raw") }, &cancel).unwrap();
    raw.execute("CREATE TABLE t(v text); INSERT INTO t VALUES (E'\\xff'), ('a')").unwrap();
    raw.execute("DO $$ BEGIN EXECUTE 'CREATE TABLE \"n' || chr(255) || 'me\"(v text)'; END $$").unwrap();
    assert_eq!(raw.value("SELECT v FROM t WHERE v <> 'a'").unwrap().as_deref(), Some("\u{fffd}"));
    let taken = Snapshot::take(&settings, "x", &Options::default(), &cancel).unwrap().read(&KEY, None, &cancel).unwrap();
    assert_eq!(taken.tables.iter().map(|table| (table.table.as_str(), table.rows)).collect::<Vec<_>>(), [("raw.public.t", 2)]);
    let [left] = taken.left_out.as_slice() else { panic!("{:?}", taken.left_out) };
    assert_eq!(left.object, "raw.public.\"n\u{fffd}me\"");
    let found = again(&settings, &["raw.public.t"], &KEY, 1, &cancel).unwrap();
    assert_eq!(found[0].as_ref().unwrap().0, taken.tables[0]);
    // Another byte is seen.
    raw.execute("UPDATE t SET v = E'\\xfe' WHERE v <> 'a'").unwrap();
    let found = again(&settings, &["raw.public.t"], &KEY, 1, &cancel).unwrap();
    assert_ne!(found[0].as_ref().unwrap().0.digest, taken.tables[0].digest);
}

#[test]
fn characters_without_an_equivalent_in_utf_8_are_read_in_the_encoding_of_their_database() {
    let source = Archived::start("");
    let (settings, cancel) = (settings_of(&source, "postgres"), Cancel::default());
    // In WIN1252 0x81 is no character; of MULE_INTERNAL nothing is converted.
    for (encoding, bytes) in [("LATIN1", "\\xe9"), ("WIN1252", "\\xe9\\x81"), ("MULE_INTERNAL", "\\x81\\xe9")] {
        let name = encoding.to_lowercase();
        source.sql(&format!("CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0"));
        let mut sql = Connection::connect(&settings, Mode::Sql { database: Some(&name) }, &cancel).unwrap();
        sql.execute(&format!("CREATE TABLE t(v text); INSERT INTO t VALUES (E'{bytes}'), ('a')")).unwrap();
    }
    source.sql("CREATE TABLE t(v text)");
    source.sql("INSERT INTO t VALUES ('é'), ('a')");
    let taken = Snapshot::take(&settings, "x", &Options::default(), &cancel).unwrap().read(&KEY, None, &cancel).unwrap();
    assert_eq!(taken.left_out, []);
    let digest_of = |texts: [&[u8]; 2]| {
        let (mut sum, mut row) = (Accumulator::new(&KEY), RowEncoder::default());
        for text in texts {
            row.start(1);
            row.text(text);
            sum.add(&row);
        }
        sum
    };
    let expected = [
        digest_of([b"\xe9", b"a"]).finish("latin1.public.t (LATIN1)"),
        digest_of([b"\x81\xe9", b"a"]).finish("mule_internal.public.t (MULE_INTERNAL)"),
        digest_of(["é".as_bytes(), b"a"]).finish("postgres.public.t"),
        digest_of([b"\xe9\x81", b"a"]).finish("win1252.public.t (WIN1252)"),
    ];
    assert_eq!(taken.tables, expected);
    // A fingerprint of before, whose name says nothing of the encoding, is of the rows as UTF-8.
    let before = digest_of(["é".as_bytes(), b"a"]).finish("latin1.public.t");
    let names: Vec<&str> = [&before].into_iter().chain(&taken.tables).map(|known| known.table.as_str()).collect();
    let found = again(&settings, &names, &KEY, 2, &cancel).unwrap();
    let found: Vec<TableFingerprint> = found.into_iter().map(|found| found.unwrap().0).collect();
    assert_eq!(found[0], before);
    assert_eq!(found[1..], expected);
}

#[test]
fn limits_that_are_meant_for_applications_do_not_end_what_lifeboat_does() {
    let source = Archived::start(
        "statement_timeout = 20ms\nlock_timeout = 1ms\nidle_in_transaction_session_timeout = 20ms\nidle_session_timeout = 20ms",
    );
    let (settings, cancel) = (settings_of(&source, "postgres"), Cancel::default());
    let mut connection = Connection::connect(&settings, Mode::Sql { database: Some("postgres") }, &cancel).unwrap();
    let mut replication = Connection::connect(&settings, Mode::Replication, &cancel).unwrap();
    connection.execute("BEGIN; SELECT pg_sleep(0.1)").unwrap();
    std::thread::park_timeout(Duration::from_millis(200));
    connection.execute("COMMIT").unwrap();
    std::thread::park_timeout(Duration::from_millis(200));
    connection.execute("SELECT 1").unwrap();
    crate::source::postgres::replication::identify_system(&mut replication).unwrap();
}

/// A standby that streams from `source`.
fn standby_of(source: &Archived) -> TestServer {
    let mut standby = TestServer::empty();
    let (host, data) = (source.server.folder().to_str().unwrap(), standby.data().to_str().unwrap());
    source.server.tool("pg_basebackup", &["-h", host, "-U", "postgres", "-D", data, "-X", "stream", "-c", "fast", "-N", "-R"]);
    standby.configure("");
    standby.resume();
    standby
}

fn settings_at(server: &TestServer) -> Settings {
    Settings::new(Host::Socket(server.folder().to_owned()), 5432, "postgres")
}

fn wait_until(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

/// A process of a server that stands still until this is dropped.
struct Stopped(rustix::process::Pid);

impl Stopped {
    /// The one that this query tells.
    fn of(server: &TestServer, query: &str) -> Self {
        let process = rustix::process::Pid::from_raw(server.sql(query).parse().unwrap()).unwrap();
        rustix::process::kill_process(process, rustix::process::Signal::STOP).unwrap();
        Self(process)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        rustix::process::kill_process(self.0, rustix::process::Signal::CONT).unwrap();
    }
}

const STARTUP: &str = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'startup'";
const PAUSE_STATE: &str = "SELECT pg_get_wal_replay_pause_state()";
const KEEPER: &str = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'SELECT pg_wal_replay_pause();%'";

#[test]
fn a_standby_goes_on_whatever_ends_what_had_paused_it() {
    let source = Archived::start("");
    source.sql("CREATE TABLE t(n int)");
    let standby = standby_of(&source);
    let settings = settings_at(&standby);
    let goes_on = |why: &str| {
        wait_until(why, || standby.sql(PAUSE_STATE) == "not paused");
        source.sql("INSERT INTO t VALUES (1)");
        let there = source.sql("SELECT count(*) FROM t");
        wait_until(why, || standby.sql("SELECT count(*) FROM t") == there);
    };
    // While replay cannot pause, the pause is only asked for.
    for end in ["", KEEPER, "SELECT pid FROM pg_stat_activity WHERE query ~ '^SELECT pg_(get|try)' AND pid <> pg_backend_pid()"] {
        let cancel = Cancel::default();
        let startup = Stopped::of(&standby, STARTUP);
        let error = std::thread::scope(|scope| {
            let taken = scope.spawn(|| Snapshot::take(&settings, "x", &Options::default(), &cancel).map(drop));
            wait_until("the pause is asked for", || standby.sql(PAUSE_STATE) == "pause requested");
            if end.is_empty() {
                cancel.cancel();
            } else {
                assert_eq!(standby.sql(&format!("SELECT count(pg_terminate_backend(pid)) FROM ({end}) ended")), "1", "{end}");
            }
            taken.join().unwrap().unwrap_err()
        });
        let is_told =
            if end.is_empty() { error.kind() == Kind::Interrupted } else { matches!(error.kind(), Kind::Busy | Kind::Unavailable) };
        assert!(is_told, "{end}: {error:?}");
        // Before anything else can resume it.
        assert_eq!(standby.sql(PAUSE_STATE), "not paused", "{end}");
        drop(startup);
        goes_on(end);
    }
    // A process that is killed only closes its connections.
    let mut pause = Pause::ask(&settings, &Cancel::default()).unwrap();
    wait_until("paused", || pause.holds().unwrap());
    assert_eq!(standby.sql(PAUSE_STATE), "paused");
    drop(pause);
    goes_on("killed");
    // What somebody else paused stays paused.
    standby.sql("SELECT pg_wal_replay_pause()");
    let error = Snapshot::take(&settings, "x", &Options::default(), &Cancel::default()).map(drop).unwrap_err();
    assert_eq!(error.kind(), Kind::Busy);
    assert_ne!(standby.sql(PAUSE_STATE), "not paused");
    standby.sql("SELECT pg_wal_replay_resume()");
    // And it works at all.
    let taken = Snapshot::take(&settings, "x", &Options::default(), &Cancel::default()).unwrap();
    goes_on("taken");
    let taken = taken.read(&KEY, None, &Cancel::default()).unwrap();
    let there: u64 = source.sql("SELECT count(*) FROM t").parse().unwrap();
    assert_eq!(taken.tables[0].rows, there - 1);
}

#[test]
fn snapshots_between_which_a_standby_went_on_are_refused() {
    let source = Archived::start("");
    source.sql("CREATE TABLE t(n int)");
    let standby = standby_of(&source);
    let settings = settings_at(&standby);
    for paused_again in [false, true] {
        let startup = Stopped::of(&standby, STARTUP);
        let error = std::thread::scope(|scope| {
            let taken = scope.spawn(|| Snapshot::take(&settings, "x", &Options::default(), &Cancel::default()).map(drop));
            wait_until("the pause is asked for", || standby.sql(PAUSE_STATE) == "pause requested");
            let leader =
                Stopped::of(&standby, "SELECT pid FROM pg_stat_activity WHERE state = 'idle in transaction' AND datname = 'postgres'");
            drop(startup);
            wait_until("paused", || standby.sql(PAUSE_STATE) == "paused");
            // The first database is about to have its snapshot; another backup resumes meanwhile.
            std::thread::park_timeout(Duration::from_millis(200));
            let before = standby.sql("SELECT pg_last_wal_replay_lsn()");
            standby.sql("SELECT pg_wal_replay_resume()");
            source.sql("INSERT INTO t VALUES (1)");
            wait_until("replay goes on", || standby.sql("SELECT pg_last_wal_replay_lsn()") != before);
            if paused_again {
                standby.sql("SELECT pg_wal_replay_pause()");
                wait_until("paused again", || standby.sql(PAUSE_STATE) == "paused");
            }
            drop(leader);
            taken.join().unwrap().unwrap_err()
        });
        assert_eq!(error.kind(), Kind::Busy, "{error:?}");
        assert!(error.to_string().contains("while snapshots were taken"), "{error}");
        standby.sql("SELECT pg_wal_replay_resume()");
        wait_until("not paused", || standby.sql(PAUSE_STATE) == "not paused");
    }
}

#[test]
fn a_database_that_takes_no_connections_is_left_out_by_name() {
    let source = Archived::start("");
    let (settings, cancel) = (settings_of(&source, "postgres"), Cancel::default());
    let left_out = || Snapshot::take(&settings, "x", &Options::default(), &cancel).unwrap().read(&KEY, None, &cancel).unwrap().left_out;
    assert_eq!(left_out(), [], "a plain server has only template0");
    source.sql("CREATE DATABASE shut");
    source.sql("ALTER DATABASE shut ALLOW_CONNECTIONS false");
    let [left] = left_out().try_into().unwrap();
    assert_eq!((left.object.as_str(), left.kind.as_str()), ("database shut", "no-fingerprint"));
    assert!(left.message.contains("takes no connections") && left.message.contains("ALLOW_CONNECTIONS true"), "{left:?}");
}

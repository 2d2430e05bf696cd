use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;

use super::super::open::open_copy;
use super::*;
use crate::event::{Cancel, Silent};
use crate::source::sqlite::SqliteSource;
use crate::source::{Outcome, ProveRequest, Source};

struct Fixture {
    folder: tempfile::TempDir,
    context: SourceContext,
}

fn fixture() -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let scratch = folder.path().join("scratch");
    std::fs::create_dir(&scratch).unwrap();
    let context = SourceContext { scratch, fingerprint_key: [3; 32], progress: Arc::new(Silent), cancel: Cancel::default() };
    Fixture { folder, context }
}

impl Fixture {
    fn path(&self) -> PathBuf {
        self.folder.path().join("a ?#名.db")
    }

    fn database(&self, sql: &str) -> Connection {
        let connection = Connection::open(self.path()).unwrap();
        connection.execute_batch(sql).unwrap();
        connection
    }

    fn source(&self) -> SqliteSource {
        SqliteSource { path: self.path() }
    }

    fn begin(&self) -> Result<Box<dyn SourceSnapshot>> {
        self.source().begin(&self.context)
    }

    /// The error of a `begin` that waits hardly at all for locks.
    fn refusal(&self) -> Error {
        match SqliteSnapshot::begin_waiting(&self.path(), b"x".to_vec(), &self.context, Duration::from_millis(1)) {
            Ok(_) => panic!("must be refused"),
            Err(error) => error,
        }
    }

    /// Takes a snapshot, restores it byte by byte, and proves it.
    fn round_trip(&self) -> (Finish, PathBuf, Vec<crate::source::CheckResult>) {
        let mut snapshot = self.begin().unwrap();
        let entry = snapshot.next_entry().unwrap().unwrap();
        assert!(snapshot.next_entry().unwrap().is_none());
        let mut bytes = Vec::new();
        snapshot.open(&entry).unwrap().unwrap().read_to_end(&mut bytes).unwrap();
        snapshot.close(&entry, bytes.len() as u64).unwrap();
        let finish = snapshot.finish().unwrap();
        let restored = self.folder.path().join("restored");
        std::fs::create_dir_all(&restored).unwrap();
        std::fs::write(restored.join("a ?#名.db"), bytes).unwrap();
        let usable = self.source().adopt(&restored, &self.context).unwrap();
        let checks = self.prove(&usable, &finish);
        (finish, usable, checks)
    }

    fn prove(&self, usable: &Path, finish: &Finish) -> Vec<crate::source::CheckResult> {
        let request = ProveRequest { fingerprints: finish.fingerprints.clone(), compare_percent: 100, checks: Vec::new() };
        self.source().prove(usable, &request, &self.context, &mut || {}).unwrap()
    }
}

fn assert_passed(checks: &[crate::source::CheckResult]) {
    for check in checks {
        assert_eq!(check.outcome, Outcome::Passed, "{check:?}");
    }
}

#[test]
fn every_page_size_encoding_and_vacuum_mode_comes_back() {
    for page_size in [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536] {
        for (encoding, vacuum, mode) in [("UTF-8", 0, "wal"), ("UTF-16le", 1, "delete"), ("UTF-16be", 2, "wal")] {
            let fixture = fixture();
            let _open = fixture.database(&format!(
                "PRAGMA page_size = {page_size}; PRAGMA encoding = '{encoding}'; PRAGMA auto_vacuum = {vacuum}; PRAGMA journal_mode = {mode};
                 CREATE TABLE t (id INTEGER PRIMARY KEY, x TEXT);
                 WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500) INSERT INTO t SELECT i, printf('行 %d', i * 7919) FROM n;
                 PRAGMA user_version = 42;"
            ));
            let (finish, usable, checks) = fixture.round_trip();
            assert_passed(&checks);
            assert!(finish.problems.is_empty(), "{:?}", finish.problems);
            let point = &finish.consistency;
            assert_eq!(point["page_size"], page_size);
            assert_eq!(point["encoding"], encoding);
            assert_eq!(point["auto_vacuum"], vacuum != 0);
            assert_eq!(point["journal_mode"], if mode == "wal" { "wal" } else { "rollback" });
            assert_eq!(point["user_version"], 42);
            assert_eq!(point["integrity"], "ok");
            let count: i64 = open_copy(&usable).unwrap().query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap();
            assert_eq!(count, 500);
        }
    }
}

#[test]
fn content_that_is_only_in_the_log_comes_over_and_the_log_stays() {
    let fixture = fixture();
    let writer =
        fixture.database("PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0; CREATE TABLE t (x); INSERT INTO t VALUES (1), (2)");
    let log = super::super::open::beside(&fixture.path(), "-wal");
    let before = std::fs::metadata(&log).unwrap().len();
    let (finish, _, checks) = fixture.round_trip();
    assert_passed(&checks);
    assert_eq!(finish.fingerprints.iter().find(|table| table.table == "t").unwrap().rows, 2);
    assert_eq!(std::fs::metadata(&log).unwrap().len(), before);
    drop(writer);
}

#[test]
fn a_log_left_by_a_crash_is_read_and_not_touched() {
    let fixture = fixture();
    let writer =
        fixture.database("PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0; CREATE TABLE t (x); INSERT INTO t VALUES (1), (2)");
    let crashed = self::fixture();
    for suffix in ["", "-wal"] {
        std::fs::copy(super::super::open::beside(&fixture.path(), suffix), super::super::open::beside(&crashed.path(), suffix)).unwrap();
    }
    drop(writer);
    let files = || ["", "-wal"].map(|suffix| std::fs::read(super::super::open::beside(&crashed.path(), suffix)).unwrap());
    let before = files();
    let (finish, _, checks) = crashed.round_trip();
    assert_passed(&checks);
    assert_eq!(finish.fingerprints.iter().find(|table| table.table == "t").unwrap().rows, 2);
    assert!(files() == before, "database and log are as the crash left them");
}

#[test]
fn a_link_to_a_database_does_not_hide_its_log() {
    let fixture = fixture();
    let real = fixture.folder.path().join("real");
    std::fs::create_dir(&real).unwrap();
    let crashed = self::fixture();
    let writer =
        crashed.database("PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0; CREATE TABLE t (x); INSERT INTO t VALUES (1), (2)");
    for (suffix, name) in [("", "db"), ("-wal", "db-wal")] {
        std::fs::copy(super::super::open::beside(&crashed.path(), suffix), real.join(name)).unwrap();
    }
    drop(writer);
    std::os::unix::fs::symlink(real.join("db"), fixture.path()).unwrap();
    let before = std::fs::read(real.join("db-wal")).unwrap();
    let (_, _, checks) = fixture.round_trip();
    assert_passed(&checks);
    assert!(std::fs::read(real.join("db-wal")).unwrap() == before);
}

#[test]
fn a_database_at_rest_is_left_as_it_was() {
    let fixture = fixture();
    drop(fixture.database("PRAGMA journal_mode = WAL; CREATE TABLE t (x); INSERT INTO t VALUES (1)"));
    let before = std::fs::read(fixture.path()).unwrap();
    fixture.round_trip();
    assert_eq!(std::fs::read(fixture.path()).unwrap(), before);
    let names: BTreeSet<_> = std::fs::read_dir(fixture.folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 3, "{names:?}");
    assert_eq!(std::fs::read_dir(&fixture.context.scratch).unwrap().count(), 0);
}

#[test]
fn staging_is_private() {
    let fixture = fixture();
    fixture.database("CREATE TABLE t (x)");
    let snapshot = fixture.begin().unwrap();
    let staged = std::fs::read_dir(&fixture.context.scratch).unwrap().next().unwrap().unwrap();
    assert_eq!(staged.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    drop(snapshot);
    assert_eq!(std::fs::read_dir(&fixture.context.scratch).unwrap().count(), 0);
}

#[test]
fn tables_of_every_kind_have_fingerprints() {
    let fixture = fixture();
    fixture.database(
        "CREATE TABLE \"we\"\"ird 'név' 表\" (\"a\"\"b\", rowid, \"select\");
         INSERT INTO \"we\"\"ird 'név' 表\" VALUES (1, 2, 3), (CAST(x'ff00fe' AS TEXT), x'ff00fe', NULL), (-0.0, 1e300, 9223372036854775807);
         CREATE TABLE hidden (rowid, _rowid_, oid); INSERT INTO hidden VALUES (1, 2, 3);
         CREATE TABLE keyed (k TEXT PRIMARY KEY, v) WITHOUT ROWID; INSERT INTO keyed VALUES ('a', 1), ('b', 2);
         CREATE TABLE generated (a, b AS (a + 1) VIRTUAL, c AS (a * 2) STORED); INSERT INTO generated (a) VALUES (1), (2);
         CREATE TABLE auto (id INTEGER PRIMARY KEY AUTOINCREMENT); INSERT INTO auto DEFAULT VALUES;
         CREATE TABLE \"(schema)\" (x); INSERT INTO \"(schema)\" VALUES (1);
         CREATE VIRTUAL TABLE words USING fts5 (body); INSERT INTO words VALUES ('hello world'), ('你好 世界');
         CREATE VIRTUAL TABLE boxes USING rtree (id, x0, x1); INSERT INTO boxes VALUES (1, 0, 1);
         CREATE VIEW v AS SELECT 1;",
    );
    let (finish, usable, checks) = fixture.round_trip();
    assert_passed(&checks);
    let rows = |name: &str| finish.fingerprints.iter().find(|table| table.table == name).map(|table| table.rows);
    for (name, count) in [
        ("we\"ird 'név' 表", 3),
        ("hidden", 1),
        ("keyed", 2),
        ("generated", 2),
        ("auto", 1),
        ("sqlite_sequence", 1),
        ("\"(schema)\"", 1),
        ("words_content", 2),
    ] {
        assert_eq!(rows(name), Some(count), "{name}");
    }
    assert!(rows("boxes_node").is_some() && rows("(schema)").is_some() && rows("(header)").is_some());
    assert_eq!(rows("words"), None, "a virtual table has no pages of its own");
    let names: BTreeSet<_> = finish.fingerprints.iter().map(|table| &table.table).collect();
    assert_eq!(names.len(), finish.fingerprints.len(), "each once");

    // The plan's SQL may use the virtual tables too.
    let check = |sql: &str, expect: &str| crate::source::SqlCheck {
        name: sql.into(),
        sql: sql.into(),
        expect: crate::source::Expectation::parse(expect).unwrap(),
        database: None,
        timeout: Duration::from_secs(5),
    };
    let request = ProveRequest {
        fingerprints: finish.fingerprints.clone(),
        compare_percent: 100,
        checks: vec![
            check("SELECT count(*) FROM words WHERE words MATCH 'hello'", "= 1"),
            check("SELECT count(*) FROM boxes WHERE x0 < 1", "= 1"),
        ],
    };
    assert_passed(&fixture.source().prove(&usable, &request, &fixture.context, &mut || {}).unwrap());
}

#[test]
fn parts_of_a_large_table_add_up_to_the_whole() {
    let fixture = fixture();
    let connection = fixture.database(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, x);
         WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 30000) INSERT INTO t SELECT i * 3 - 45000, i FROM n;
         CREATE TABLE ends (id INTEGER PRIMARY KEY); INSERT INTO ends VALUES (-9223372036854775808), (0), (9223372036854775807);",
    );
    let (finish, ..) = fixture.round_trip();
    for (table, values) in [("t", 3), ("ends", 2)] {
        let mut sum = crate::source::fingerprint::Accumulator::new(&[3; 32]);
        let mut encoder = crate::source::fingerprint::RowEncoder::default();
        let mut statement = connection.prepare(&format!("SELECT rowid, * FROM {table}")).unwrap();
        let mut rows = statement.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            encoder.start(values);
            (0..values as usize).for_each(|index| encoder.integer(row.get(index).unwrap()));
            sum.add(&encoder);
        }
        assert_eq!(finish.fingerprints.iter().find(|known| known.table == table), Some(&sum.finish(table)));
    }
}

#[test]
fn violations_that_the_source_had_are_not_damage_but_more_are() {
    let fixture = fixture();
    fixture.database(
        "PRAGMA foreign_keys = OFF; CREATE TABLE p (id INTEGER PRIMARY KEY); CREATE TABLE c (p REFERENCES p (id));
         INSERT INTO p VALUES (1); INSERT INTO c VALUES (1), (99);",
    );
    let (finish, usable, checks) = fixture.round_trip();
    assert_passed(&checks);
    assert_eq!(finish.consistency["foreign_key_violations"], 1);
    Connection::open(&usable).unwrap().execute_batch("PRAGMA foreign_keys = OFF; DELETE FROM p").unwrap();
    let checks = fixture.prove(&usable, &finish);
    let check = checks.iter().find(|check| check.name == "foreign_key_check").unwrap();
    assert_eq!(check.outcome, Outcome::Failed);
    assert!(check.actual.contains("2 violations: c row 1 has no parent in p"), "{check:?}");
}

#[test]
fn a_damaged_source_is_kept_but_is_a_problem() {
    let fixture = fixture();
    drop(fixture.database(
        "CREATE TABLE t (x); CREATE INDEX i ON t (x);
         WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000) INSERT INTO t SELECT hex(randomblob(20)) FROM n;",
    ));
    let mut bytes = std::fs::read(fixture.path()).unwrap();
    bytes[3 * 4096..3 * 4096 + 64].fill(0xff);
    std::fs::write(fixture.path(), &bytes).unwrap();
    let (finish, _, checks) = fixture.round_trip();
    assert!(finish.problems.iter().any(|problem| problem.kind == "integrity"), "{:?}", finish.problems);
    assert_ne!(finish.consistency["integrity"], "ok");
    assert!(checks.iter().any(|check| check.outcome == Outcome::Failed));
}

#[test]
fn what_cannot_be_backed_up_says_why() {
    let fixture = fixture();
    assert_eq!(fixture.refusal().kind(), Kind::NotFound);
    std::fs::create_dir(fixture.path()).unwrap();
    let error = fixture.refusal();
    assert_eq!((error.kind(), error.hint_text().is_some()), (Kind::Usage, true));
    std::fs::remove_dir(fixture.path()).unwrap();
    for content in [&b"just some text, and more of it"[..], &[0x5a; 8192]] {
        std::fs::write(fixture.path(), content).unwrap();
        let error = fixture.refusal();
        assert_eq!(error.kind(), Kind::Failed);
        assert!(error.hint_text().unwrap().contains("not an SQLite database"), "{error:?}");
    }
    assert!(fixture.source().diagnose().iter().any(|found| !found.ok));
}

#[test]
fn an_empty_file_is_a_problem() {
    let fixture = fixture();
    std::fs::write(fixture.path(), "").unwrap();
    let finish = fixture.begin().unwrap().finish().unwrap();
    assert_eq!(finish.problems[0].kind, "empty-database");
    assert_eq!(std::fs::metadata(fixture.path()).unwrap().len(), 0);
}

#[test]
fn a_database_under_an_exclusive_lock_is_busy_and_nothing_is_left() {
    let fixture = fixture();
    for mode in ["DELETE", "WAL"] {
        let owner = fixture.database(&format!(
            "PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = {mode}; CREATE TABLE IF NOT EXISTS t (x); BEGIN EXCLUSIVE; INSERT INTO t VALUES (1);"
        ));
        let error = fixture.refusal();
        assert_eq!(error.kind(), Kind::Busy, "{error:?}");
        assert!(error.hint_text().is_some());
        assert_eq!(std::fs::read_dir(&fixture.context.scratch).unwrap().count(), 0);
        drop(owner);
    }
    assert!(fixture.begin().is_ok());
}

#[test]
fn cancelling_ends_begin_and_inspection() {
    let fixture = fixture();
    fixture.database("CREATE TABLE t (x); INSERT INTO t VALUES (1)");
    let snapshot = fixture.begin().unwrap();
    fixture.context.cancel.cancel();
    let ended = snapshot.finish();
    assert!(ended.is_ok() || ended.unwrap_err().kind() == Kind::Interrupted);
    let Err(error) = fixture.begin() else { panic!("must be interrupted") };
    assert_eq!(error.kind(), Kind::Interrupted);
    assert_eq!(std::fs::read_dir(&fixture.context.scratch).unwrap().count(), 0);
}

#[test]
fn a_source_deleted_meanwhile_is_still_whole_in_its_snapshot() {
    let fixture = fixture();
    drop(fixture.database("CREATE TABLE t (x); INSERT INTO t VALUES (1)"));
    let mut snapshot = fixture.begin().unwrap();
    std::fs::remove_file(fixture.path()).unwrap();
    let entry = snapshot.next_entry().unwrap().unwrap();
    let mut bytes = Vec::new();
    snapshot.open(&entry).unwrap().unwrap().read_to_end(&mut bytes).unwrap();
    assert_eq!(Some((bytes.len() as u64, 1)), snapshot.estimate());
    snapshot.close(&entry, bytes.len() as u64).unwrap();
    assert!(snapshot.finish().unwrap().problems.is_empty());
}

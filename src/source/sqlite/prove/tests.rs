use super::*;
use crate::event::{Cancel, Silent};
use crate::source::Expectation;

fn database(sql: &str) -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    Connection::open(&path).unwrap().execute_batch(sql).unwrap();
    (folder, path)
}

fn run(path: &Path, sql: &str, expect: &str, limit: Duration) -> CheckResult {
    let context = SourceContext {
        scratch: std::path::PathBuf::new(),
        fingerprint_key: [0; 32],
        progress: Arc::new(Silent),
        cancel: Cancel::default(),
    };
    let check =
        SqlCheck { name: "check".into(), sql: sql.into(), expect: Expectation::parse(expect).unwrap(), database: None, timeout: limit };
    let request = ProveRequest { fingerprints: Vec::new(), compare_percent: 100, checks: vec![check] };
    prove(path, &request, &context).unwrap().pop().unwrap()
}

const LIMIT: Duration = Duration::from_secs(10);

#[test]
fn numbers_are_shown_as_sqlite_shows_them_and_other_values_by_their_length() {
    let (_folder, path) = database("CREATE TABLE t (x); INSERT INTO t VALUES (1), (2)");
    for (sql, value) in [
        ("SELECT count(*) FROM t", "2"),
        ("SELECT 1.5", "1.5"),
        ("SELECT 2.0", "2.0"),
        ("SELECT 'Ada Lovelace'", "text of 12 bytes"),
        ("SELECT x'01ff'", "blob of 2 bytes"),
        ("SELECT 1, NULL, 'a';", "1|NULL|text of 1 byte"),
        ("PRAGMA integrity_check", "text of 2 bytes"),
        ("SELECT count(*) FROM pragma_table_info('t') -- a comment", "1"),
        ("WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10) SELECT max(i) FROM n", "10"),
    ] {
        assert_eq!(run(&path, sql, "= 1", LIMIT).actual, value, "{sql}");
    }
    assert_eq!(run(&path, "SELECT NULL", "= 1", LIMIT).actual, "NULL");
    let row = run(&path, "SELECT NULL, NULL", "is not null", LIMIT);
    assert_eq!((row.outcome, row.actual.as_str()), (Outcome::Failed, "NULL|NULL"));
    assert_eq!(run(&path, "SELECT 1, NULL", "is not null", LIMIT).outcome, Outcome::Failed);
    for (expect, shown) in [("= 'ok'", "ok"), ("!= 'ok'", "ok"), ("between 'a' and 'ok'", "ok"), ("= 'oK'", "text of 2 bytes")] {
        assert_eq!(run(&path, "PRAGMA integrity_check", expect, LIMIT).actual, shown, "{expect}");
    }
    assert_eq!(run(&path, "SELECT 1, 'x'", "= '1|x'", LIMIT).actual, "1|x");
    assert_eq!(run(&path, "SELECT count(*) FROM t", "= 2", LIMIT).outcome, Outcome::Passed);
    assert_eq!(run(&path, "SELECT count(*) FROM t", ">= 3", LIMIT).outcome, Outcome::Failed);
}

#[test]
fn anything_but_reading_one_row_fails_and_changes_nothing() {
    let (folder, path) = database("CREATE TABLE t (x); INSERT INTO t VALUES (1), (2)");
    let before = std::fs::read(&path).unwrap();
    let other = folder.path().join("other");
    let attach = format!("ATTACH '{}' AS other", other.display());
    for sql in [
        "DELETE FROM t",
        "INSERT INTO t VALUES (3) RETURNING x",
        "CREATE TEMP TABLE x (y)",
        "PRAGMA user_version = 7",
        "PRAGMA query_only = OFF",
        "PRAGMA writable_schema = ON",
        "PRAGMA journal_mode = WAL",
        "SELECT load_extension('x')",
        "VACUUM",
        "BEGIN",
        "SELECT x FROM t",
        "SELECT x FROM t WHERE 0",
        "SELECT 1; SELECT 1",
        "SELECT nonsense",
        "",
        attach.as_str(),
    ] {
        let result = run(&path, sql, "= 1", LIMIT);
        assert_eq!(result.outcome, Outcome::Failed, "{sql}: {result:?}");
    }
    assert!(std::fs::read(&path).unwrap() == before);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing was made beside it");
}

#[test]
fn an_assertion_that_fails_on_a_row_does_not_quote_it() {
    let (_folder, path) = database("CREATE TABLE t (x); INSERT INTO t VALUES ('planted-row')");
    for sql in
        ["SELECT json_extract('{}', x) FROM t", "SELECT abs(-9223372036854775808) FROM t", "SELECT x FROM t", "SELECT json(x) FROM t"]
    {
        let result = run(&path, sql, "= 1", LIMIT);
        assert_eq!(result.outcome, Outcome::Failed, "{result:?}");
        assert!(!result.actual.contains("planted-row") && !result.actual.is_empty(), "{sql}: {result:?}");
    }
}

#[test]
fn an_assertion_that_takes_too_long_says_the_limit() {
    let (_folder, path) = database("CREATE TABLE t (x)");
    let endless = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";
    let result = run(&path, endless, "= 1", Duration::from_millis(30));
    assert_eq!(result.outcome, Outcome::Failed);
    assert!(result.actual.contains("0.03 s"), "{result:?}");
}

#[test]
fn without_fingerprints_content_is_skipped_not_passed() {
    let (_folder, path) = database("CREATE TABLE t (x)");
    let context = SourceContext {
        scratch: std::path::PathBuf::new(),
        fingerprint_key: [0; 32],
        progress: Arc::new(Silent),
        cancel: Cancel::default(),
    };
    let request = ProveRequest { fingerprints: Vec::new(), compare_percent: 100, checks: Vec::new() };
    let results = prove(&path, &request, &context).unwrap();
    assert!(results.iter().any(|check| check.name == "fingerprint sample" && check.outcome == Outcome::Skipped));
}

#[test]
fn the_sample_is_rounded_up_and_moves_with_the_content() {
    let known = |digest: &str| -> Vec<TableFingerprint> {
        (0..10).map(|n| TableFingerprint { table: format!("t{n}"), rows: 1, digest: digest.into() }).collect()
    };
    let names = |known: &[TableFingerprint], percent| -> Vec<String> {
        fingerprint::choose(known, percent).into_iter().map(|known| known.table.clone()).collect()
    };
    for (percent, count) in [(0, 0), (1, 1), (10, 1), (11, 2), (50, 5), (99, 10), (100, 10)] {
        assert_eq!(names(&known("aa"), percent).len(), count, "{percent}");
    }
    assert_eq!(names(&known("aa"), 30), names(&known("aa"), 30));
    let choices: HashSet<Vec<String>> = (0..20).map(|n| names(&known(&format!("{n:02}")), 10)).collect();
    assert!(choices.len() > 3, "every table has its turn");
}

#[test]
fn each_check_has_its_own_limit() {
    let (_folder, path) = database("CREATE TABLE t (x)");
    let endless = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";
    let check = |sql: &str, timeout| SqlCheck {
        name: "check".into(),
        sql: sql.into(),
        expect: Expectation::parse("= 1").unwrap(),
        database: None,
        timeout,
    };
    let context = SourceContext {
        scratch: std::path::PathBuf::new(),
        fingerprint_key: [0; 32],
        progress: Arc::new(Silent),
        cancel: Cancel::default(),
    };
    let checks = vec![check(endless, Duration::from_millis(100)), check("SELECT 1", Duration::from_hours(1))];
    let began = Instant::now();
    let results = prove(&path, &ProveRequest { fingerprints: Vec::new(), compare_percent: 0, checks }, &context).unwrap();
    assert!(began.elapsed() < Duration::from_mins(10), "the longest limit is not everybody's");
    let [.., slow, quick] = results.as_slice() else { panic!("{results:?}") };
    assert!(slow.outcome == Outcome::Failed && slow.actual.contains("limit of 0.1 s"), "{slow:?}");
    assert_eq!(quick.outcome, Outcome::Passed);
}

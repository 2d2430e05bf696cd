use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use super::*;
use crate::event::Silent;
use crate::source::Expectation;
use crate::source::postgres::instance::Launch;
use crate::source::postgres::recover::Target;
use crate::source::postgres::test_restored::Archived;
use crate::source::postgres::test_server::TestServer;

const KEY: [u8; 32] = [3; 32];

fn context() -> SourceContext {
    SourceContext { scratch: PathBuf::new(), fingerprint_key: KEY, progress: Arc::new(Silent), cancel: Cancel::default() }
}

fn check(name: &str, sql: &str, expect: &str) -> SqlCheck {
    SqlCheck {
        name: name.into(),
        sql: sql.into(),
        expect: Expectation::parse(expect).unwrap(),
        database: Some("postgres".into()),
        timeout: Duration::from_secs(1),
    }
}

fn outcome_of<'a>(results: &'a [CheckResult], name: &str) -> &'a CheckResult {
    results.iter().find(|result| result.name == name).unwrap_or_else(|| panic!("no {name} in {results:#?}"))
}

/// A recovered copy of a small database, and what was fingerprinted at its position.
fn recovered(source: &Archived) -> (Instance, PathBuf, ProveRequest) {
    source.sql("CREATE TABLE t(n int PRIMARY KEY, v text)");
    source.sql("INSERT INTO t SELECT n, 'value ' || n FROM generate_series(1, 5000) n");
    source.sql("CREATE INDEX t_v ON t(v)");
    let restored = source.base_backup("restored");
    let settings = Settings::new(Host::Socket(source.server.folder().to_owned()), PORT, "postgres");
    let cancel = Cancel::default();
    let taken = fingerprint::Snapshot::take(&settings, "point", &fingerprint::Options::default(), &cancel)
        .unwrap()
        .read(&KEY, None, &cancel)
        .unwrap();
    source.archive_all();
    let (instance, _) = source.recover(&restored, taken.position.target()).unwrap();
    let request = ProveRequest { fingerprints: taken.tables, compare_percent: 100, checks: Vec::new() };
    (instance, restored, request)
}

#[test]
fn a_sound_copy_passes_and_nothing_is_left_in_it() {
    let source = Archived::start("");
    // Nothing of these may run or be in the way.
    source.sql("CREATE TABLE audit(n int)");
    source.sql("CREATE FUNCTION spy() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO audit VALUES (1); END'");
    let (instance, restored, mut request) = recovered(&source);
    request.checks = vec![
        check("rows", "SELECT count(*) FROM t", ">= 5000"),
        check("too many", "SELECT count(*) FROM t", "> 5000"),
        check("two", "SELECT n FROM t LIMIT 2", ">= 0"),
        check("write", "DELETE FROM t RETURNING 1", ">= 0"),
        check("write anyway", "COMMIT; DELETE FROM t RETURNING 1", ">= 0"),
        check("slow", "SELECT 1 FROM pg_sleep(30)", "= 1"),
        SqlCheck { database: None, ..check("somewhere", "SELECT 1", "= 1") },
    ];
    source.ask(&instance, "CREATE EVENT TRIGGER spy ON ddl_command_end EXECUTE FUNCTION spy()");
    let results = ask(&instance, &request, &Options::default(), &context()).unwrap();
    let failed: Vec<&str> = results.iter().filter(|result| result.outcome != Outcome::Passed).map(|result| result.name.as_str()).collect();
    assert_eq!(failed, ["too many", "two", "write", "write anyway", "slow", "somewhere"], "{results:#?}");
    assert_eq!(outcome_of(&results, "somewhere").outcome, Outcome::Skipped, "never asked of another database than was meant");
    assert!(outcome_of(&results, "slow").actual.contains("limit of 1 s"));
    assert!(outcome_of(&results, "write").actual.contains("read-only"), "{results:#?}");
    assert!(outcome_of(&results, "extensions").actual.contains("plpgsql"));
    for name in ["databases", "content of postgres.public.t", "amcheck of postgres", "amcheck of template1"] {
        assert_eq!(outcome_of(&results, name).outcome, Outcome::Passed);
    }
    assert_eq!(source.ask(&instance, "SELECT count(*) FROM pg_extension WHERE extname = 'amcheck'"), "0");
    assert_eq!(source.ask(&instance, "SELECT count(*) FROM audit"), "0");
    let (tools, account) = (Tools::find(15, None).unwrap(), Account::choose(&restored).unwrap());
    request.checks.clear();
    let results = prove(instance, &tools, account, &request, &Options { amcheck: Amcheck::Off, ..Options::default() }, &context()).unwrap();
    assert_eq!(outcome_of(&results, PAGES).outcome, Outcome::Passed, "{results:#?}");
    assert!(!restored.join("postmaster.pid").exists());
}

#[test]
fn a_changed_row_a_missing_file_and_a_lying_index_are_found() {
    let source = Archived::start("");
    source.sql("CREATE TABLE gone(n int); INSERT INTO gone VALUES (1)");
    let (instance, restored, request) = recovered(&source);
    let gone = source.ask(&instance, "SELECT pg_relation_filepath('gone')");
    source.ask(&instance, "UPDATE pg_index SET indisready = false WHERE indexrelid = 't_v'::regclass");
    source.ask(&instance, "UPDATE t SET v = 'other' WHERE n = 17");
    source.ask(&instance, "UPDATE pg_index SET indisready = true WHERE indexrelid = 't_v'::regclass");
    let file = source.ask(&instance, "SELECT pg_relation_filepath('pg_toast.pg_toast_' || 't'::regclass::oid)");
    let results = ask(&instance, &request, &Options::default(), &context()).unwrap();
    let amcheck = outcome_of(&results, "amcheck of postgres");
    assert_eq!(amcheck.outcome, Outcome::Failed);
    assert!(amcheck.actual.contains("public.t_v"), "{amcheck:?}");
    assert!(!amcheck.actual.contains("other"), "no content in a report: {amcheck:?}");
    source.ask(&instance, "CHECKPOINT");
    fs::remove_file(restored.join(file)).unwrap();
    fs::remove_file(restored.join(gone)).unwrap();
    let options = Options { missing_libraries: vec!["timescaledb".into()], ..Options::default() };
    let results = ask(&instance, &request, &options, &context()).unwrap();
    assert_eq!(outcome_of(&results, "content of postgres.public.t").outcome, Outcome::Differs);
    let gone = outcome_of(&results, "content of postgres.public.gone");
    assert_eq!(gone.outcome, Outcome::Failed, "no library: {gone:?}");
    assert!(gone.actual.contains("could not open file"), "{gone:?}");
    let amcheck = outcome_of(&results, "amcheck of postgres");
    assert_eq!(amcheck.outcome, Outcome::Failed);
    assert!(amcheck.actual.contains("pg_toast") && !amcheck.actual.contains("not possible here"), "{amcheck:?}");
    assert!(!amcheck.actual.contains("other"), "no content in a report: {amcheck:?}");
    let databases = outcome_of(&results, "databases");
    assert_eq!(databases.outcome, Outcome::Failed, "{results:#?}");
    assert!(databases.actual.contains("pg_toast"), "{databases:?}");
    let extensions = outcome_of(&results, "extensions");
    assert_eq!(extensions.outcome, Outcome::Skipped);
    assert!(extensions.actual.contains("timescaledb"));
    instance.stop(Stop::Immediate).unwrap();
}

#[test]
fn damaged_pages_are_found_by_their_checksums() {
    let source = Archived::start("");
    let (instance, restored, request) = recovered(&source);
    let heap = restored.join(source.ask(&instance, "SELECT pg_relation_filepath('t')"));
    let index = restored.join(source.ask(&instance, "SELECT pg_relation_filepath('t_pkey')"));
    instance.stop(Stop::Fast(Duration::from_mins(1))).unwrap();
    let (tools, account) = (Tools::find(15, None).unwrap(), Account::choose(&restored).unwrap());
    assert_eq!(check_pages(&tools, account, &restored).unwrap().unwrap().outcome, Outcome::Passed);
    for path in [&heap, &index] {
        fs::OpenOptions::new().write(true).open(path).unwrap().write_all_at(b"damage", 8192 + 4000).unwrap();
    }
    let found = check_pages(&tools, account, &restored).unwrap().unwrap();
    assert_eq!(found.outcome, Outcome::Failed);
    let relative = heap.strip_prefix(&restored).unwrap().to_str().unwrap();
    assert!(found.actual.contains(relative) && found.actual.contains("block 1"), "{found:?}");

    let folder = restored.with_extension("second");
    let launch =
        Launch { tools: &tools, account, data: &restored, folder: &folder, settings: &[], preload: &[], limit: Duration::from_mins(1) };
    let instance = Instance::start(&launch, &Cancel::default()).unwrap();
    let results = ask(&instance, &request, &Options { amcheck: Amcheck::Indexes, ..Options::default() }, &context()).unwrap();
    assert_eq!(outcome_of(&results, "content of postgres.public.t").outcome, Outcome::Failed, "{results:#?}");
    let amcheck = outcome_of(&results, "amcheck of postgres");
    assert_eq!(amcheck.outcome, Outcome::Failed);
    assert!(amcheck.actual.contains("public.t_pkey: "), "{amcheck:?}");
    drop(instance);
    assert!(!folder.exists());
}

#[test]
fn a_library_that_is_not_here_is_named() {
    let source = Archived::start("");
    source.sql("CREATE EXTENSION citext");
    let (instance, _, mut request) = recovered(&source);
    source.ask(&instance, "UPDATE pg_proc SET probin = '$libdir/not_here' WHERE proname = 'citext_eq'");
    request.compare_percent = 0;
    let results = ask(&instance, &request, &Options { amcheck: Amcheck::Off, ..Options::default() }, &context()).unwrap();
    let extensions = outcome_of(&results, "extensions");
    assert_eq!(extensions.outcome, Outcome::Skipped, "{extensions:?}");
    assert!(extensions.actual.contains("$libdir/not_here of citext (in postgres)"), "{extensions:?}");
    drop(instance);
}

#[test]
fn an_unknown_user_is_a_failed_check() {
    let source = Archived::start("");
    source.sql("CREATE TABLE t(n int)");
    let restored = source.base_backup("restored");
    let (instance, _) = source.recover(&restored, Target::Immediate).unwrap();
    let request = ProveRequest { fingerprints: Vec::new(), compare_percent: 0, checks: Vec::new() };
    let results = ask(&instance, &request, &Options { user: "nobody".into(), ..Options::default() }, &context()).unwrap();
    assert_eq!(results.len(), 1);
    assert_eq!(results[0].outcome, Outcome::Failed);
    assert!(results[0].actual.contains("nobody"), "{results:?}");
}

#[test]
fn a_database_that_takes_no_connections_is_no_proof() {
    let source = Archived::start("");
    source.sql("CREATE DATABASE shut");
    source.sql("ALTER DATABASE shut ALLOW_CONNECTIONS false");
    let (instance, _, request) = recovered(&source);
    let results = ask(&instance, &request, &Options { amcheck: Amcheck::Off, ..Options::default() }, &context()).unwrap();
    let shut = outcome_of(&results, "database shut");
    assert_eq!(shut.outcome, Outcome::Skipped);
    assert!(shut.actual.contains("takes no connections"), "{shut:?}");
    assert_eq!(results.iter().filter(|result| result.outcome != Outcome::Passed).count(), 1, "{results:#?}");
    source.ask(&instance, "ALTER DATABASE shut ALLOW_CONNECTIONS true");
    let results = ask(&instance, &request, &Options { amcheck: Amcheck::Off, ..Options::default() }, &context()).unwrap();
    assert!(results.iter().all(|result| result.outcome == Outcome::Passed), "{results:#?}");
    instance.stop(Stop::Immediate).unwrap();
}

#[test]
fn an_answer_of_millions_of_rows_is_counted_and_not_kept() {
    let server = TestServer::start(&[], "");
    let settings = Settings::new(Host::Socket(server.folder().to_owned()), PORT, "postgres");
    let mut connection = connect(&settings, "postgres", &Cancel::default()).unwrap();
    let (rows, count) = connection.query_at_most("SELECT n FROM generate_series(1, 5000000) n", 2).unwrap();
    assert_eq!((rows.len(), count), (2, 5_000_000));
    assert_eq!(rows.iter().map(|row| row.get(0)).collect::<Vec<_>>(), [Some("1"), Some("2")]);
    // Of several statements the last one with rows counts.
    let (rows, count) = connection.query_at_most("SELECT n FROM generate_series(1, 9) n; SELECT 'x'", 1).unwrap();
    assert_eq!((rows.len(), count, rows[0].get(0)), (1, 1, Some("x")));
    let many = SqlCheck { timeout: Duration::from_mins(1), ..check("many", "SELECT n FROM generate_series(1, 5000000) n", "= 1") };
    let result = check_sql(&settings, &many, &Cancel::default());
    assert_eq!((result.outcome, result.actual.as_str()), (Outcome::Failed, "the statement yields 5000000 rows, not one"));
    for few in ["SELECT 1 WHERE false", "SELECT"] {
        assert_eq!(check_sql(&settings, &check("few", few, "= 1"), &Cancel::default()).outcome, Outcome::Failed, "{few}");
    }
}

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use super::*;
use crate::event::Silent;
use crate::source::Expectation;
use crate::source::postgres::instance::{Account, Launch, Tools};
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
    request.checks.clear();
    let results = prove(instance, &request, &Options { amcheck: Amcheck::Off, ..Options::default() }, &context()).unwrap();
    for name in [pages::CHECKSUMS, pages::LEADS, pages::SIZES, pages::FOLDERS] {
        assert_eq!(outcome_of(&results, name).outcome, Outcome::Passed, "{results:#?}");
    }
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

/// Waits for a process of the server on this folder that is called so for a second, and sends it a signal.
fn signal(data: &std::path::Path, title: &str, signal: &str) {
    let works_there = |pid: &String| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == data);
    let is_it = |pid: &String| fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains(title));
    for _ in 0..600 {
        let all = fs::read_dir("/proc").unwrap().filter_map(|item| item.ok()?.file_name().into_string().ok());
        let found = all.filter(works_there).find(is_it);
        std::thread::sleep(if found.is_some() { Duration::from_secs(1) } else { Duration::from_millis(50) });
        if let Some(pid) = found.filter(is_it) {
            assert!(std::process::Command::new("kill").args(["-s", signal, &pid]).status().unwrap().success());
            return;
        }
    }
    panic!("no process is called {title}");
}

#[test]
fn a_server_that_something_else_ends_is_no_finding_and_takes_none_back() {
    let source = Archived::start("");
    source.sql("CREATE TABLE t(n int)");
    let request = ProveRequest {
        // Found before the server ends: it stays found.
        fingerprints: vec![TableFingerprint { table: "postgres.public.gone".into(), rows: 1, digest: "00".repeat(32) }],
        compare_percent: 100,
        checks: vec![SqlCheck { timeout: Duration::from_mins(1), ..check("slow", "SELECT 1 FROM pg_sleep(40)", "= 1") }],
    };
    for (number, (title, kind)) in
        [("[local] SELECT", "KILL"), ("config_file=", "KILL"), ("[local] SELECT", "TERM"), ("[local] SELECT", "SEGV")]
            .into_iter()
            .enumerate()
    {
        let restored = source.base_backup(&format!("restored{number}"));
        let (instance, _) = source.recover(&restored, Target::Immediate).unwrap();
        let results = std::thread::scope(|scope| {
            let request = &request;
            let proving = scope.spawn(move || prove(instance, request, &Options::default(), &context()).unwrap());
            signal(&restored, "[local] SELECT", "0");
            signal(&restored, title, kind);
            proving.join().unwrap()
        });
        let of = |outcome| results.iter().filter(|result| result.outcome == outcome).map(|result| result.name.as_str()).collect::<Vec<_>>();
        assert_eq!(of(Outcome::Differs), ["content of postgres.public.gone"], "{kind}: {results:#?}");
        let slow = outcome_of(&results, "slow");
        assert!(slow.outcome == Outcome::Skipped && slow.actual.contains(LOST), "{kind}: {results:#?}");
        match kind {
            // The session alone.
            "TERM" => assert_eq!((of(Outcome::Failed), of(Outcome::Skipped)), (vec![], vec!["slow"]), "{results:#?}"),
            "KILL" => {
                assert_eq!(of(Outcome::Failed), Vec::<&str>::new(), "{results:#?}");
                let end = outcome_of(&results, TO_THE_END);
                assert!(end.actual.contains("signal 9") && end.actual.contains("memory"), "{end:?}");
                let pages = outcome_of(&results, "shutdown");
                assert!(pages.outcome == Outcome::Skipped && pages.actual.contains("signal 9"), "{pages:?}");
            }
            _ => {
                let end = outcome_of(&results, TO_THE_END);
                assert!(end.outcome == Outcome::Failed && end.actual.contains("signal 11"), "{end:?}");
            }
        }
    }
}

#[test]
fn damaged_pages_are_found_by_their_checksums() {
    let source = Archived::start("");
    let (instance, restored, request) = recovered(&source);
    let heap = restored.join(source.ask(&instance, "SELECT pg_relation_filepath('t')"));
    let index = restored.join(source.ask(&instance, "SELECT pg_relation_filepath('t_pkey')"));
    instance.stop(Stop::Fast(Duration::from_mins(1))).unwrap();
    let (tools, account) = (Tools::find(15, None).unwrap(), Account::choose(&restored).unwrap());
    let check_pages = || {
        let results = pages::check(&restored, &pages::Catalogue::unknown(), &Cancel::default()).unwrap();
        assert_eq!(outcome_of(&results, pages::LEADS).outcome, Outcome::Skipped, "{results:#?}");
        outcome_of(&results, pages::CHECKSUMS).clone()
    };
    assert_eq!(check_pages().outcome, Outcome::Passed);
    for path in [&heap, &index] {
        fs::OpenOptions::new().write(true).open(path).unwrap().write_all_at(b"damage", 8192 + 4000).unwrap();
    }
    let found = check_pages();
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
fn a_sequence_without_its_row_is_found() {
    let source = Archived::start("");
    source.sql("CREATE SEQUENCE one; CREATE SEQUENCE \"T w o\"; CREATE UNLOGGED TABLE u(n serial); SELECT nextval('one')");
    let (instance, restored, mut request) = recovered(&source);
    request.compare_percent = 0;
    let options = Options { amcheck: Amcheck::Off, ..Options::default() };
    let sequences = || outcome_of(&ask(&instance, &request, &options, &context()).unwrap(), "sequences").clone();
    let found = sequences();
    assert_eq!((found.outcome, found.actual.as_str()), (Outcome::Passed, "3 sequences"), "{found:?}");
    // As a server that was just started: nothing of them is in its memory.
    let paths = ["one", "\"T w o\""].map(|name| restored.join(source.ask(&instance, &format!("SELECT pg_relation_filepath('{name}')"))));
    let (tools, account) = (Tools::find(15, None).unwrap(), Account::choose(&restored).unwrap());
    instance.stop(Stop::Fast(Duration::from_mins(1))).unwrap();
    fs::OpenOptions::new().write(true).open(&paths[0]).unwrap().set_len(0).unwrap();
    fs::write(&paths[1], vec![0; 8192]).unwrap();
    let folder = restored.with_extension("second");
    let launch =
        Launch { tools: &tools, account, data: &restored, folder: &folder, settings: &[], preload: &[], limit: Duration::from_mins(1) };
    let instance = Instance::start(&launch, &Cancel::default()).unwrap();
    let results = ask(&instance, &request, &options, &context()).unwrap();
    let found = outcome_of(&results, "sequences");
    assert_eq!(found.outcome, Outcome::Failed, "{found:?}");
    for name in ["postgres: public.one: it has 0 rows", "postgres: public.T w o: it has 0 rows"] {
        assert!(found.actual.contains(name), "{found:?}");
    }
    instance.stop(Stop::Immediate).unwrap();
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

/// Runs SQL in a private server as another user or in another database.
fn ask_in(source: &Archived, instance: &Instance, user: &str, database: &str, statement: &str) -> String {
    let socket = instance.socket_folder().to_str().unwrap();
    let arguments = ["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", socket, "-U", user, "-d", database, "-c", statement];
    source.server.tool("psql", &arguments).trim_end().to_owned()
}

#[test]
fn a_locale_that_is_not_here_is_no_damage_and_a_folder_that_is_gone_is() {
    const NAMES: [&str; 5] = ["databases", "extensions", "content of other.public.o", "amcheck of other", "rows"];
    let source = Archived::start("");
    source.sql("CREATE DATABASE other");
    let socket = source.server.folder().to_str().unwrap();
    source.server.tool("psql", &["-X", "-q", "-h", socket, "-U", "postgres", "-d", "other", "-c", "CREATE TABLE o AS SELECT 1 AS n"]);
    let (instance, restored, mut request) = recovered(&source);
    request.checks = vec![SqlCheck { database: Some("other".into()), ..check("rows", "SELECT count(*) FROM o", "= 1") }];
    let results = ask(&instance, &request, &Options::default(), &context()).unwrap();
    assert!(results.iter().all(|result| result.outcome == Outcome::Passed), "{results:#?}");

    let locale = |name: &str, which: &str| {
        source.ask(&instance, &format!("UPDATE pg_database SET datcollate = '{name}', datctype = '{name}' WHERE datname {which}"));
    };
    locale("xx_XX.UTF-8", "= 'other'");
    let results = ask(&instance, &request, &Options::default(), &context()).unwrap();
    for name in NAMES {
        let found = outcome_of(&results, name);
        assert_eq!(found.outcome, Outcome::Skipped, "{found:?}");
        assert!(found.actual.contains("install the locale"), "{found:?}");
    }
    for name in ["content of postgres.public.t", "amcheck of postgres"] {
        assert_eq!(outcome_of(&results, name).outcome, Outcome::Passed, "{results:#?}");
    }

    locale("C", "= 'other'");
    let oid = source.ask(&instance, "SELECT oid FROM pg_database WHERE datname = 'other'");
    let (folder, away) = (restored.join("base").join(&oid), restored.join("base/away"));
    fs::rename(&folder, &away).unwrap();
    let results = ask(&instance, &request, &Options::default(), &context()).unwrap();
    for name in ["databases", "extensions", "amcheck of other", "rows"] {
        assert_eq!(outcome_of(&results, name).outcome, Outcome::Failed, "{results:#?}");
    }
    fs::rename(&away, &folder).unwrap();

    locale("xx_XX.UTF-8", "<> ''");
    let results = ask(&instance, &request, &Options::default(), &context()).unwrap();
    let [only] = results.as_slice() else { panic!("{results:#?}") };
    assert_eq!((only.name.as_str(), only.outcome), ("databases", Outcome::Skipped), "{only:?}");
    assert!(only.actual.contains("install the locale"), "{only:?}");
    instance.stop(Stop::Immediate).unwrap();
}

#[test]
fn the_order_of_an_index_is_no_damage_where_its_collation_is_another_version() {
    let source = Archived::start("");
    source.sql("CREATE TABLE g(v text COLLATE \"de-x-icu\"); INSERT INTO g SELECT 'v' || n FROM generate_series(1, 500) n");
    source.sql("CREATE INDEX g_v ON g(v)");
    let (instance, _, mut request) = recovered(&source);
    request.compare_percent = 0;
    let prove = || ask(&instance, &request, &Options::default(), &context()).unwrap();
    let amcheck = || {
        let results = prove();
        let found = outcome_of(&results, "amcheck of postgres");
        (found.outcome, found.actual.clone())
    };
    // As if the entries had been put in another order.
    let turn = |index: &str, option: u32| {
        source.ask(&instance, &format!("UPDATE pg_index SET indoption = '{option}' WHERE indexrelid = '{index}'::regclass"));
    };
    let results = prove();
    let found = outcome_of(&results, COLLATIONS);
    assert_eq!((found.outcome, &found.actual), (Outcome::Passed, &found.expected), "{found:?}");
    for index in ["t_v", "g_v"] {
        turn(index, 3);
        let (outcome, actual) = amcheck();
        assert_eq!(outcome, Outcome::Failed, "{actual}");
        assert!(actual.contains("invariant violated") && actual.contains(index), "{actual}");
        turn(index, 0);
    }

    source.ask(&instance, "UPDATE pg_database SET datcollversion = '1.0' WHERE datname = 'postgres'");
    turn("t_v", 3);
    let (outcome, actual) = amcheck();
    assert_eq!(outcome, Outcome::Skipped, "{actual}");
    assert!(actual.contains("public.t_v") && actual.contains("another version"), "{actual}");
    let results = prove();
    let found = outcome_of(&results, COLLATIONS);
    assert_eq!(found.outcome, Outcome::Passed, "no matter of the snapshot: {found:?}");
    assert!(found.actual.contains("database postgres, its own: version 1.0 at the source, none here"), "{found:?}");
    assert!(found.actual != found.expected && found.actual.contains("REINDEX") && !found.actual.contains("de-x-icu"), "{found:?}");

    // Another collation, and no collation, whose versions are as ever.
    for index in ["g_v", "t_pkey"] {
        turn(index, 3);
        let (outcome, actual) = amcheck();
        assert_eq!(outcome, Outcome::Failed, "{actual}");
        assert!(actual.contains(index) && !actual.contains("t_v"), "{actual}");
        turn(index, 0);
    }
    source.ask(&instance, "UPDATE pg_collation SET collversion = '1' WHERE collname = 'de-x-icu'");
    turn("g_v", 3);
    let (outcome, actual) = amcheck();
    assert_eq!(outcome, Outcome::Skipped, "{actual}");
    assert!(actual.contains("public.g_v") && actual.contains("public.t_v"), "{actual}");
    let results = prove();
    assert!(outcome_of(&results, COLLATIONS).actual.contains("collation pg_catalog.de-x-icu: version 1 at the source"), "{results:#?}");
    turn("g_v", 0);
    turn("t_v", 0);

    // Rows that are not in the index have nothing to do with its order.
    source.ask(&instance, "UPDATE pg_index SET indisready = false WHERE indexrelid = 't_v'::regclass");
    source.ask(&instance, "UPDATE t SET v = 'other' WHERE n = 17");
    source.ask(&instance, "UPDATE pg_index SET indisready = true WHERE indexrelid = 't_v'::regclass");
    let (outcome, actual) = amcheck();
    assert_eq!(outcome, Outcome::Failed, "{actual}");
    assert!(actual.contains("lacks matching index tuple"), "{actual}");
    instance.stop(Stop::Immediate).unwrap();
}

#[test]
fn event_triggers_that_always_fire_do_not_and_stay() {
    const STATES: &str = "SELECT string_agg(evtname || evtenabled::text, ' ' ORDER BY evtname) FROM pg_event_trigger";
    let source = Archived::start("");
    let (instance, _, mut request) = recovered(&source);
    request.compare_percent = 0;
    source.ask(&instance, "CREATE FUNCTION no() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''no DDL here''; END'");
    for (name, event, enabled) in
        [("\"n O\"", "ddl_command_start", "ALWAYS"), ("b", "sql_drop", "REPLICA"), ("c", "ddl_command_end", "ALWAYS")]
    {
        let state = format!("ALTER EVENT TRIGGER {name} ENABLE {enabled}");
        // Before the next one is made, which this one would refuse.
        source.ask(&instance, &format!("CREATE EVENT TRIGGER {name} ON {event} EXECUTE FUNCTION no(); {state}"));
    }
    let before = source.ask(&instance, STATES);
    assert_eq!(before, "bR cA n OA");
    let results = ask(&instance, &request, &Options::default(), &context()).unwrap();
    assert!(results.iter().all(|result| result.outcome == Outcome::Passed), "{results:#?}");
    assert_eq!(source.ask(&instance, STATES), before);
    assert_eq!(source.ask(&instance, "SELECT count(*) FROM pg_extension WHERE extname = 'amcheck'"), "0");
    instance.stop(Stop::Immediate).unwrap();
}

#[test]
fn a_way_in_is_found_or_missed_and_only_what_must_be_there_is_damage() {
    let source = Archived::start("");
    let (instance, _, request) = recovered(&source);
    let nothing = ProveRequest { fingerprints: Vec::new(), ..request.clone() };
    let options = |user: &str| Options { user: user.into(), amcheck: Amcheck::Off, ..Options::default() };
    let only = |request: &ProveRequest, user: &str| {
        let results = ask(&instance, request, &options(user), &context()).unwrap();
        assert_eq!(results.len(), 1, "{results:#?}");
        (results[0].outcome, results[0].actual.clone())
    };
    source.ask(&instance, "CREATE ROLE boss SUPERUSER LOGIN");
    source.ask(&instance, "ALTER ROLE postgres NOLOGIN");
    let (outcome, actual) = only(&request, "postgres");
    assert_eq!(outcome, Outcome::Skipped, "{actual}");
    assert!(actual.contains("not permitted to log in") && actual.contains("ALTER ROLE … LOGIN"), "{actual}");

    ask_in(&source, &instance, "boss", "template1", "ALTER DATABASE postgres ALLOW_CONNECTIONS false");
    let results = ask(&instance, &nothing, &options("boss"), &context()).unwrap();
    assert_eq!(outcome_of(&results, "databases").outcome, Outcome::Passed, "by template1: {results:#?}");
    assert_eq!(outcome_of(&results, "database postgres").outcome, Outcome::Skipped, "{results:#?}");
    ask_in(&source, &instance, "boss", "template1", "ALTER DATABASE postgres ALLOW_CONNECTIONS true");
    ask_in(&source, &instance, "boss", "template1", "ALTER DATABASE postgres RENAME TO crm");
    ask_in(&source, &instance, "boss", "crm", "ALTER DATABASE template1 IS_TEMPLATE false");
    ask_in(&source, &instance, "boss", "crm", "ALTER DATABASE template1 RENAME TO other");
    let known = |database: &str| {
        let fingerprints = request.fingerprints.iter().cloned().map(|mut known| {
            known.table = known.table.replacen("postgres.", &format!("{database}."), 1);
            known
        });
        ProveRequest { fingerprints: fingerprints.collect(), ..request.clone() }
    };
    let results = ask(&instance, &known("crm"), &options("boss"), &context()).unwrap();
    assert!(results.iter().all(|result| result.outcome == Outcome::Passed), "by what has fingerprints: {results:#?}");
    assert!(outcome_of(&results, "databases").actual.contains("2 databases"), "{results:#?}");
    let (outcome, actual) = only(&nothing, "boss");
    assert_eq!(outcome, Outcome::Skipped, "{actual}");
    assert!(actual.contains("postgres, template1") && actual.contains("CREATE DATABASE"), "{actual}");
    let (outcome, actual) = only(&known("lost"), "boss");
    assert_eq!(outcome, Outcome::Failed, "it had fingerprints: {actual}");
    assert!(actual.contains("no database postgres, template1, lost"), "{actual}");
    instance.stop(Stop::Immediate).unwrap();
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
fn a_check_is_one_query_and_changes_nothing() {
    let server = TestServer::start(&[], "");
    server.sql("CREATE TABLE t AS SELECT 1 AS n");
    let settings = Settings::new(Host::Socket(server.folder().to_owned()), PORT, "postgres");
    let made = server.folder().join("made");
    let run = |sql: &str| check_sql(&settings, &check("one", sql, "= 1"), &Cancel::default());
    let program = format!("COPY (SELECT 1) TO PROGRAM 'touch {}'", made.display());
    for (sql, why) in [
        ("SET TRANSACTION READ WRITE; DELETE FROM t; COMMIT; SELECT 1", "these are several"),
        ("SELECT count(*) FROM t WHERE false; SELECT 1", "these are several"),
        (program.as_str(), "is no query"),
        ("DELETE FROM t", "is no query"),
        ("", "is no query"),
        ("DELETE FROM t RETURNING 1", "read-only transaction"),
        ("SELECT 1 FROM set_config('transaction_read_only', 'off', false)", "SQLSTATE 25001"),
    ] {
        let result = run(sql);
        assert_eq!(result.outcome, Outcome::Failed, "{sql}: {result:?}");
        assert!(result.actual.contains(why) || result.actual.contains("before any query"), "{sql}: {result:?}");
    }
    assert!(!made.exists());
    for sql in ["SELECT count(*) FROM t;", "WITH x AS (SELECT n FROM t) SELECT * FROM x", "TABLE t", "VALUES (1)"] {
        assert_eq!(run(sql).outcome, Outcome::Passed, "{sql}");
    }
}

/// A cluster that was upgraded from a version whose `amcheck` had not all of its functions.
#[test]
fn an_old_amcheck_of_the_source_is_updated_in_the_copy() {
    let source = Archived::start("");
    source.sql("CREATE EXTENSION amcheck VERSION '1.2'");
    let (instance, _, request) = recovered(&source);
    let results = ask(&instance, &request, &Options { amcheck: Amcheck::Full, ..Options::default() }, &context()).unwrap();
    let amcheck = outcome_of(&results, "amcheck of postgres");
    assert_eq!(amcheck.outcome, Outcome::Passed, "{amcheck:?}");
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

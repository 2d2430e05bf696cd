use super::*;
use crate::source::postgres::instance::Stop;
use crate::source::postgres::test_restored::Archived;

#[test]
fn one_target_at_a_time_is_asked_for() {
    let recovery = |target| Recovery { target, timeline: Timeline::Number(3), restore_command: None, action: Action::Promote };
    let time = DateTime::from_timestamp(1_790_000_000, 123_456_789).unwrap();
    let targets = [
        (Target::Latest, None),
        (Target::Immediate, Some(("recovery_target", "immediate"))),
        (Target::Time(time), Some(("recovery_target_time", "2026-09-21 14:13:20.123456+00"))),
        (Target::Lsn { lsn: Lsn(0x16_B374_D848), inclusive: false }, Some(("recovery_target_lsn", "16/B374D848"))),
        (Target::Xid { xid: 739, inclusive: true }, Some(("recovery_target_xid", "739"))),
        (Target::Name("before it's gone".into()), Some(("recovery_target_name", "before it's gone"))),
    ];
    for (target, expected) in targets {
        let settings = recovery(target.clone()).settings().unwrap();
        let set: Vec<(&str, &str)> = settings
            .iter()
            .filter(|(name, value)| TARGETS.contains(&name.as_str()) && !value.is_empty())
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        assert_eq!(set, expected.into_iter().collect::<Vec<_>>(), "{target:?}");
        assert!(settings.contains(&("recovery_target_timeline".into(), "3".into())));
    }
    for name in [String::new(), "x".repeat(64), "a\nrestore_command = 'rm'".into()] {
        assert_eq!(recovery(Target::Name(name)).settings().unwrap_err().kind(), Kind::Usage);
    }
}

#[test]
fn settings_for_an_operator_replace_those_of_an_earlier_restore() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path();
    fs::write(data.join("postgresql.auto.conf"), "work_mem = '8MB'\nrecovery_target_time = '2020-01-01'").unwrap();
    fs::write(data.join("standby.signal"), "").unwrap();
    let recovery = |name: &str| Recovery {
        target: Target::Name(name.into()),
        timeline: Timeline::Latest,
        restore_command: Some("fetch '%f' \"%p\"".into()),
        action: Action::Promote,
    };
    write_for_operator(data, &recovery("first"), false, &[]).unwrap();
    write_for_operator(data, &recovery("it's"), false, &[("primary_slot_name".into(), "x".into())]).unwrap();
    let text = fs::read_to_string(data.join("postgresql.auto.conf")).unwrap();
    assert!(text.starts_with("work_mem = '8MB'\nrecovery_target_time = '2020-01-01'\n# lifeboat: recovery begins\n"), "{text}");
    // The last line of a parameter wins.
    assert!(text.rfind("recovery_target_time = ''") > text.find("2020-01-01"), "{text}");
    assert!(text.contains("recovery_target_name = 'it''s'\n") && !text.contains("first"), "{text}");
    assert!(text.contains("restore_command = 'fetch ''%f'' \"%p\"'\n") && text.contains("primary_slot_name = 'x'\n"), "{text}");
    let command = text.lines().filter_map(|line| line.strip_prefix("recovery_end_command = '")).collect::<Vec<_>>();
    assert_eq!(command.len(), 1, "{text}");
    // As the server runs it once it is promoted.
    let command = command[0].strip_suffix('\'').unwrap().replace("''", "'").replace("\\\\", "\\");
    let run = || std::process::Command::new("sh").args(["-c", &command]).current_dir(data).output().unwrap();
    assert!(run().status.success());
    let left = fs::read_to_string(data.join("postgresql.auto.conf")).unwrap();
    assert_eq!(left, "work_mem = '8MB'\n# lifeboat: settings begin\nprimary_slot_name = 'x'\n# lifeboat: settings end\n");
    // Where it cannot, the server opens all the same.
    fs::rename(data.join("postgresql.auto.conf"), data.join("away")).unwrap();
    assert!(run().status.success() && !data.join("postgresql.auto.conf").exists());
    fs::rename(data.join("away"), data.join("postgresql.auto.conf")).unwrap();
    assert!(data.join("recovery.signal").exists() && !data.join("standby.signal").exists());
    write_for_operator(data, &recovery("x"), true, &[]).unwrap();
    assert!(!data.join("recovery.signal").exists() && data.join("standby.signal").exists());
    let broken = write_for_operator(data, &recovery("x"), true, &[("a b".into(), "c".into())]).unwrap_err();
    assert_eq!(broken.kind(), Kind::Usage);
}

#[test]
fn a_planted_link_is_not_written_through() {
    let folder = tempfile::tempdir().unwrap();
    let (data, victim) = (folder.path().join("data"), folder.path().join("victim"));
    fs::create_dir(&data).unwrap();
    fs::write(&victim, "untouched").unwrap();
    let recovery = Recovery { target: Target::Latest, timeline: Timeline::Latest, restore_command: None, action: Action::Promote };
    std::os::unix::fs::symlink(&victim, data.join("recovery.signal")).unwrap();
    write_for_operator(&data, &recovery, false, &[]).unwrap();
    assert!(fs::symlink_metadata(data.join("recovery.signal")).unwrap().is_file());
    fs::remove_file(data.join("postgresql.auto.conf")).unwrap();
    std::os::unix::fs::symlink(&victim, data.join("postgresql.auto.conf")).unwrap();
    assert!(write_for_operator(&data, &recovery, false, &[]).is_err());
    assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
}

#[test]
fn every_kind_of_target_is_reached_exactly() {
    let source = Archived::start("track_commit_timestamp = on\nmax_prepared_transactions = 5");
    source.sql("CREATE TABLE t(n int)");
    source.sql("INSERT INTO t VALUES (0)");
    // What an earlier restore may have left in it must not matter.
    source.sql("ALTER SYSTEM SET recovery_target_name = 'nowhere'");
    let backups: Vec<_> = (0..7).map(|number| source.base_backup(&format!("restored{number}"))).collect();
    let at_backup_end = source.sql("SELECT count(*) FROM t");
    source.sql("INSERT INTO t VALUES (1)");
    let xid = source.sql("INSERT INTO t VALUES (2) RETURNING xmin").parse().unwrap();
    source.sql("SELECT pg_create_restore_point('two')");
    let lsn: Lsn = source.sql("SELECT pg_current_wal_insert_lsn()").parse().unwrap();
    source.sql("INSERT INTO t VALUES (3)");
    let time = source.sql("SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')").parse().unwrap();
    source.sql("INSERT INTO t VALUES (4)");
    // As the workers of a subscription commit.
    source.sql("SELECT pg_replication_origin_create('o'), pg_replication_origin_session_setup('o'); SELECT pg_replication_origin_xact_setup('0/1', now())");
    source.sql("BEGIN; INSERT INTO t VALUES (5); PREPARE TRANSACTION 'p'");
    source.archive_all();

    let targets = [
        (Target::Immediate, at_backup_end.as_str()),
        (Target::Name("two".into()), "3"),
        (Target::Lsn { lsn, inclusive: false }, "3"),
        (Target::Lsn { lsn, inclusive: true }, "3"),
        (Target::Time(time), "4"),
        (Target::Xid { xid, inclusive: false }, "2"),
        (Target::Latest, "5"),
    ];
    for ((target, rows), restored) in targets.into_iter().zip(&backups) {
        let begun = std::time::Instant::now();
        let (instance, outcome) = source.recover(restored, target.clone()).unwrap();
        eprintln!("{target:?}: {outcome:?}, started in {:?}, all in {:?}", instance.started_in(), begun.elapsed());
        assert_eq!(source.ask(&instance, "SELECT count(*) FROM t"), rows, "{target:?}");
        assert_eq!((outcome.timeline, outcome.parent), (2, 1));
        match target {
            Target::Lsn { inclusive: false, .. } => assert_eq!(outcome.end, lsn, "exactly"),
            Target::Name(_) => assert!(outcome.end <= lsn && outcome.last_transaction.unwrap() < time),
            Target::Latest => {
                assert!(outcome.last_transaction.unwrap() > time);
                assert!(outcome.files_restored > 0);
                assert_eq!(source.ask(&instance, "SELECT gid FROM pg_prepared_xacts"), "p");
            }
            _ => {}
        }
        instance.stop(Stop::Immediate).unwrap();
    }
}

#[test]
fn a_target_that_the_log_does_not_reach_is_no_recovery_point() {
    let source = Archived::start("");
    source.sql("SELECT pg_create_restore_point('early')");
    let early = source.sql("SELECT pg_current_wal_insert_lsn()").parse().unwrap();
    source.sql("CREATE TABLE t(n int)");
    let backups: Vec<_> = (0..4).map(|number| source.base_backup(&format!("restored{number}"))).collect();
    source.sql("INSERT INTO t VALUES (1)");
    source.archive_all();
    let targets = [
        Target::Name("never made".into()),
        Target::Time(Utc::now() + chrono::TimeDelta::hours(1)),
        Target::Lsn { lsn: early, inclusive: true },
        Target::Name("early".into()),
    ];
    for (target, restored) in targets.into_iter().zip(&backups) {
        let error = source.recover(restored, target.clone()).unwrap_err();
        assert_eq!(error.kind(), Kind::NoRecoveryPoint, "{target:?}: {error:?}");
        assert!(error.hint_text().is_some());
        assert!(!restored.with_extension("instance").exists());
    }
}

#[test]
fn log_that_the_backup_needs_is_missed() {
    let source = Archived::start("");
    source.sql("CREATE TABLE t(n int)");
    let restored = source.base_backup("restored");
    for item in fs::read_dir(restored.join("pg_wal")).unwrap().flatten().filter(|item| item.path().is_file()) {
        fs::remove_file(item.path()).unwrap();
    }
    // Renamed at once: the archiver may be writing into it, and would make a removal fail.
    fs::rename(source.server.folder().join("archive"), source.server.folder().join("archive.away")).unwrap();
    let error = source.recover(&restored, Target::Latest).unwrap_err();
    assert_eq!(error.kind(), Kind::Damaged, "{error:?}");
}

#[test]
fn a_folder_without_its_label_or_with_a_link_is_refused() {
    let source = Archived::start("");
    let restored = source.base_backup("restored");
    let account = Account::choose(&restored).unwrap();
    for name in ["base/999", "pg_xact/0FFF", "lifeboat_tablespaces", "tablespace_map"] {
        let link = restored.join(name);
        std::os::unix::fs::symlink(source.server.data(), &link).unwrap();
        let error = prepare(&restored, account).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
        fs::remove_file(link).unwrap();
    }
    fs::rename(restored.join("backup_label"), restored.join("backup_label.old")).unwrap();
    assert_eq!(prepare(&restored, account).unwrap_err().kind(), Kind::Damaged);
}

#[test]
fn links_that_no_server_follows_are_removed() {
    let source = Archived::start("");
    source.sql("CREATE TABLE t(n int)");
    let restored = source.base_backup("restored");
    fs::create_dir_all(restored.join("log")).unwrap();
    fs::remove_file(restored.join("postgresql.auto.conf")).unwrap();
    let links = ["server.crt", "pg_log", "log/current", "postgresql.auto.conf", "nowhere"].map(|name| restored.join(name));
    let victim = source.server.folder().join("victim");
    fs::write(&victim, "work_mem = 'nonsense'").unwrap();
    for link in &links {
        std::os::unix::fs::symlink(&victim, link).unwrap();
    }
    let (instance, _) = source.recover(&restored, Target::Latest).unwrap();
    assert_eq!(source.ask(&instance, "SELECT count(*) FROM t"), "0");
    assert!(links.iter().all(|link| fs::symlink_metadata(link).is_err()));
    assert_eq!(fs::read_to_string(&victim).unwrap(), "work_mem = 'nonsense'");
    instance.stop(Stop::Immediate).unwrap();
}

#[test]
fn tablespaces_never_lead_back_to_the_source() {
    let source = Archived::start("");
    let place = source.server.folder().join("spc");
    fs::create_dir(&place).unwrap();
    crate::source::postgres::test_server::TestServer::own(&place);
    source.sql(&format!("CREATE TABLESPACE spc LOCATION '{}'", place.display()));
    source.sql("CREATE TABLE t(n int) TABLESPACE spc");
    source.sql("INSERT INTO t SELECT generate_series(1, 1000)");
    let restored = source.server.folder().join("restored");
    let (host, path) = (source.server.folder().to_str().unwrap(), restored.to_str().unwrap());
    let elsewhere = format!("--tablespace-mapping={}={}", place.display(), source.server.folder().join("copy").display());
    source.server.tool("pg_basebackup", &["-h", host, "-U", "postgres", "-D", path, "-X", "fetch", "-c", "fast", "-N", &elsewhere]);
    // As a restore leaves it: a real folder below pg_tblspc, and the map of the source.
    let oid = source.sql("SELECT oid FROM pg_tablespace WHERE spcname = 'spc'");
    let link = restored.join("pg_tblspc").join(&oid);
    fs::remove_file(&link).unwrap();
    fs::rename(source.server.folder().join("copy"), &link).unwrap();
    fs::write(restored.join("tablespace_map"), format!("{oid} {}\n", place.display())).unwrap();

    let (instance, _) = source.recover(&restored, Target::Immediate).unwrap();
    assert_eq!(source.ask(&instance, "SELECT sum(n) FROM t"), "500500");
    assert_eq!(fs::read_link(&link).unwrap(), Path::new(&format!("../lifeboat_tablespaces/{oid}")), "as in a restored folder");
    source.ask(&instance, "TRUNCATE t");
    instance.stop(Stop::Immediate).unwrap();
    assert_eq!(source.sql("SELECT sum(n) FROM t"), "500500");
}

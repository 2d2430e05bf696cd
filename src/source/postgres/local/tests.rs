use super::*;
use crate::source::postgres::findings::Judgement;
use crate::source::postgres::test_server::TestServer;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Stdio;

fn settings(server: &TestServer, start: Lsn) -> LocalSettings {
    LocalSettings {
        data_directory: server.data().to_owned(),
        configuration: Vec::new(),
        start,
        called: SystemTime::now(),
        full: false,
        throttle: None,
        cancel: Cancel::default(),
    }
}

/// Reads everything, with buffers of this size; entries and content by path, and those whose stamp does not hold.
fn read_all(reader: &mut LocalReader, buffer: usize) -> (BTreeMap<Vec<u8>, (Entry, Vec<u8>)>, Vec<String>) {
    let (mut all, mut unstamped) = (BTreeMap::new(), Vec::new());
    let mut last = Vec::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        assert!(is_valid_path(&entry.path));
        if !last.is_empty() && !entry.path.starts_with(CONFIGURATION_FOLDER) && entry.path != control::PATH {
            assert!(tree_order(&last, &entry.path).is_lt(), "{}", entry.display_path());
        }
        let parent = entry.path.iter().rposition(|&byte| byte == b'/').map(|at| entry.path[..at].to_vec()).unwrap_or_default();
        assert!(entry.path.is_empty() || all.contains_key(&parent), "{} before its folder", entry.display_path());
        last.clone_from(&entry.path);
        let mut content = Vec::new();
        if let EntryKind::File { .. } = entry.kind {
            let Some(mut bytes) = reader.open(&entry).unwrap() else { continue };
            let mut piece = vec![0; buffer];
            loop {
                let read = bytes.read(&mut piece).unwrap();
                if read == 0 {
                    break;
                }
                content.extend_from_slice(&piece[..read]);
            }
            if !reader.close(&entry).unwrap().stamp_holds {
                unstamped.push(entry.display_path());
            }
        }
        assert!(all.insert(entry.path.clone(), (entry, content)).is_none());
    }
    assert_eq!(last, control::PATH, "the control file comes last");
    (all, unstamped)
}

fn write_tree(target: &TestServer, all: &BTreeMap<Vec<u8>, (Entry, Vec<u8>)>) {
    for (path, (entry, content)) in all {
        let path = target.data().join(OsStr::from_bytes(path));
        match entry.kind {
            EntryKind::Directory => fs::create_dir_all(&path).unwrap(),
            _ => fs::write(&path, content).unwrap(),
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(entry.mode)).unwrap();
        TestServer::own(&path);
    }
}

#[test]
fn a_backup_under_load_recovers() {
    let server = TestServer::start(&["-k", "--wal-segsize=1"], "wal_keep_size = '1GB'\nmax_wal_senders = 2");
    let place = server.folder().join("space");
    fs::create_dir(&place).unwrap();
    TestServer::own(&place);
    // Of another version, in the same place.
    fs::create_dir(place.join("PG_9_1")).unwrap();
    server.sql(&format!("CREATE TABLESPACE \"sp\u{e9}ce\" LOCATION '{}'", place.display()));
    server.sql("CREATE TABLE spaced TABLESPACE \"sp\u{e9}ce\" AS SELECT generate_series(1, 20000) AS a");
    server.sql("CREATE UNLOGGED TABLE unlogged AS SELECT generate_series(1, 10000) AS a");
    let socket = server.folder().to_str().unwrap().to_owned();
    let bench = ["-h", &socket, "-U", "postgres", "postgres"];
    server.tool("pgbench", &[&["-i", "-s", "3", "-q"], &bench[..]].concat());
    let outside = server.folder().join("etc");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("pg_hba.conf"), "local all all trust\n").unwrap();
    fs::write(server.data().join("base/1/t7_4711"), "temporary").unwrap();
    fs::create_dir_all(server.data().join("base/pgsql_tmp")).unwrap();

    let mut load = server.command("pgbench", &[&["-n", "-c", "2", "-T", "60"], &bench[..]].concat());
    let mut load = load.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mut session = server.session();
    let called = SystemTime::now();
    let start: Lsn = session.sql("SELECT pg_backup_start('test', true)").parse().unwrap();
    let hba = outside.join("pg_hba.conf");
    let configuration = vec![hba.clone(), server.data().join("postgresql.conf"), outside.join("missing.conf")];
    let mut reader = LocalReader::begin(LocalSettings { configuration, called, ..settings(&server, start) }).unwrap();
    let (bytes, entries) = reader.estimate().unwrap();
    let (all, unstamped) = read_all(&mut reader, 65_536);
    assert!(bytes > 40_000_000 && entries > 800);
    assert_eq!(reader.tablespaces().len(), 1);
    assert_eq!(reader.tablespaces()[0].location.as_deref(), Some(place.as_os_str().as_bytes()));
    let space = [&b"pg_tblspc/"[..], reader.tablespaces()[0].oid.to_string().as_bytes()].concat();
    let stopped = session.sql("SELECT lsn || ' ' || labelfile FROM pg_backup_stop()");
    let (stop, label) = stopped.split_once(' ').unwrap();
    let stop: Lsn = stop.parse().unwrap();
    let _ = load.kill();
    let _ = load.wait();
    drop(session);

    let problems = reader.finish(stop).unwrap();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!(problems[0].object, outside.join("missing.conf").display().to_string());
    assert!(unstamped.is_empty(), "{unstamped:?}");
    let under_conf = |path: &Path| [CONFIGURATION_FOLDER, path.as_os_str().as_bytes()].concat();
    assert_eq!(all[&under_conf(&hba)].1, b"local all all trust\n");
    assert!(all.contains_key(&b"pg_wal/archive_status"[..]) && all.contains_key(&b"postgresql.conf"[..]));
    for path in all.keys() {
        let text = display_path(path);
        assert!(
            !text.starts_with("pg_wal/0") && !text.contains("t7_4711") && !text.contains("pgsql_tmp") && !text.contains("PG_9_1"),
            "{text}"
        );
        assert!(!["postmaster.pid", "backup_label", "pg_stat_tmp/global.stat"].contains(&text.as_str()), "{text}");
    }

    let mut target = TestServer::empty();
    write_tree(&target, &all);
    // As a restore does it: links to tablespaces, the label, the log.
    let spaced = target.folder().join("space");
    fs::rename(target.data().join(OsStr::from_bytes(&space)), &spaced).unwrap();
    symlink(&spaced, target.data().join(OsStr::from_bytes(&space))).unwrap();
    fs::write(target.data().join("backup_label"), format!("{label}\n")).unwrap();
    TestServer::own(&target.data().join("backup_label"));
    for entry in fs::read_dir(server.data().join("pg_wal")).unwrap() {
        let entry = entry.unwrap();
        if entry.path().is_file() {
            let copy = target.data().join("pg_wal").join(entry.file_name());
            fs::copy(entry.path(), &copy).unwrap();
            TestServer::own(&copy);
        }
    }
    target.configure("");
    target.resume();
    let totals = "SELECT (SELECT sum(abalance) FROM pgbench_accounts) || ' ' || (SELECT sum(tbalance) FROM pgbench_tellers) || ' ' || \
                  (SELECT sum(delta) FROM pgbench_history) || ' ' || (SELECT count(*) > 0 FROM pgbench_history)";
    let sums = target.sql(totals);
    let words: Vec<&str> = sums.split(' ').collect();
    assert!(words[0] == words[1] && words[1] == words[2] && words[3] == "true", "{sums}");
    assert_eq!(target.sql("SELECT count(*) FROM spaced"), "20000");
    assert_eq!(target.sql("SELECT count(*) FROM unlogged"), "0");
    target.stop("fast");
    target.tool("pg_checksums", &["--check", "-D", target.data().to_str().unwrap()]);
}

#[test]
fn bad_pages_are_named_and_never_vouched_for() {
    let server = TestServer::start(&["-k"], "autovacuum = off");
    server.sql("CREATE TABLE t AS SELECT generate_series(1, 50000) AS a; CHECKPOINT");
    let path = server.sql("SELECT pg_relation_filepath('t')");
    let start: Lsn = server.sql("SELECT pg_current_wal_insert_lsn()").parse().unwrap();
    let file = server.data().join(&path);
    let mut bytes = fs::read(&file).unwrap();
    bytes[3 * 8192 + 5000] ^= 1;
    bytes[7 * 8192 + 100] ^= 1;
    // Claims to be from the future.
    bytes[9 * 8192..9 * 8192 + 8].copy_from_slice(&[0x7F; 8]);
    fs::write(&file, &bytes).unwrap();
    let called = SystemTime::now() + Duration::from_mins(10);
    for buffer in [65_536, 1000] {
        let mut reader = LocalReader::begin(LocalSettings { called, ..settings(&server, start) }).unwrap();
        let (all, unstamped) = read_all(&mut reader, buffer);
        assert_eq!(all[path.as_bytes()].1, bytes);
        assert!(!all[path.as_bytes()].0.stamp.is_empty());
        assert!(unstamped.len() == 1 && unstamped[0] == path, "{unstamped:?}");
        let problems = reader.finish(start).unwrap();
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert_eq!((problems[0].object.as_str(), problems[0].kind.as_str()), (path.as_str(), "bad-page"));
        let message = &problems[0].message;
        assert!(message.starts_with("2 damaged page(s)") && message.contains("block 3:") && message.contains("block 7:"), "{message}");
        assert!(message.contains("block 9 is not valid and claims a change at 7F7F7F7F/7F7F7F7F"), "{message}");
    }
}

#[test]
fn stamps_tell_what_changed_and_are_not_given_too_early() {
    let server = TestServer::start(&[], "autovacuum = off");
    server.sql("CREATE TABLE a AS SELECT 1 AS x; CREATE TABLE b AS SELECT 1 AS x; CHECKPOINT");
    let (a, b) = (server.sql("SELECT pg_relation_filepath('a')"), server.sql("SELECT pg_relation_filepath('b')"));
    let stamps = |called: SystemTime, full: bool| {
        let mut reader = LocalReader::begin(LocalSettings { called, full, ..settings(&server, Lsn(0)) }).unwrap();
        let (all, _) = read_all(&mut reader, 65_536);
        all.into_iter().map(|(path, (entry, _))| (display_path(&path), entry.stamp)).collect::<BTreeMap<_, _>>()
    };
    let later = SystemTime::now() + Duration::from_mins(10);
    let first = stamps(later, false);
    assert!(!first[&a].is_empty() && !first[&b].is_empty());
    assert!(first["global/pg_control"].is_empty());
    assert_eq!(stamps(later, false)[&a], first[&a]);
    assert!(stamps(later, true).values().all(Vec::is_empty));
    // Everything is younger than two seconds before a backup that was called right when the server was made.
    let made = fs::metadata(server.data().join("PG_VERSION")).unwrap().modified().unwrap();
    assert!(stamps(made + Duration::from_secs(1), false).values().all(Vec::is_empty));
    server.sql("UPDATE b SET x = 2; CHECKPOINT");
    let second = stamps(later, false);
    assert_eq!(second[&a], first[&a]);
    assert_ne!(second[&b], first[&b]);
}

#[test]
fn the_control_file_waits_for_all_others() {
    let server = TestServer::start(&[], "");
    let mut reader = LocalReader::begin(settings(&server, Lsn(0))).unwrap();
    let mut open = None;
    let error = loop {
        match reader.next_entry() {
            Ok(entry) => {
                let entry = entry.expect("an error before the end");
                if entry.path == b"PG_VERSION" {
                    open = reader.open(&entry).unwrap();
                }
            }
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), Kind::Bug);
    assert!(open.is_some());
    assert_eq!(reader.finish(Lsn(0)).unwrap_err().kind(), Kind::Bug);
}

/// Reads a copy of a folder, whose control file is exchanged before its turn comes; what the reader says at its end, stop at `stop`.
fn with_another_control_file(copy: &TestServer, start: Lsn, bytes: &[u8], stop: Lsn) -> Result<Vec<Problem>> {
    let mut reader = LocalReader::begin(settings(copy, start)).unwrap();
    assert!(reader.next_entry().unwrap().is_some());
    fs::write(copy.data().join("global/pg_control"), bytes).unwrap();
    while reader.next_entry()?.is_some() {}
    reader.finish(stop)
}

#[test]
fn a_folder_that_is_not_the_servers_is_noticed_at_the_end() {
    let server = TestServer::start(&[], "");
    let read = || fs::read(server.data().join("global/pg_control")).unwrap();
    let older = read();
    server.sql("CREATE TABLE a AS SELECT 1 AS n; CHECKPOINT");
    let bytes = read();
    let control = Control::parse(&bytes).unwrap();
    let copy = TestServer::empty();
    server.tool("cp", &["-a", server.data().to_str().unwrap(), copy.data().to_str().unwrap()]);
    assert_eq!(with_another_control_file(&copy, control.redo, &bytes, control.redo).unwrap(), Vec::new());
    // Of an older moment than what was there when reading began.
    let error = with_another_control_file(&copy, control.redo, &older, control.redo).unwrap_err();
    assert_eq!(error.kind(), Kind::Failed);
    assert!(error.to_string().contains(copy.data().to_str().unwrap()), "{error:?}");
    // Of a standby that has to replay more than the one that ended the backup had.
    let mut standby = bytes.clone();
    standby[16..20].copy_from_slice(&5u32.to_le_bytes());
    standby[136..144].copy_from_slice(&control.checkpoint.0.to_le_bytes());
    let sum = u32::try_from(crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &standby[..288])).unwrap();
    standby[288..292].copy_from_slice(&sum.to_le_bytes());
    let ended = |stop| {
        fs::write(copy.data().join("global/pg_control"), &bytes).unwrap();
        with_another_control_file(&copy, control.redo, &standby, stop)
    };
    assert_eq!(ended(control.checkpoint).unwrap(), Vec::new());
    assert_eq!(ended(Lsn(control.checkpoint.0 - 1)).unwrap_err().kind(), Kind::Failed);
}

#[test]
fn a_slot_tells_the_folder_of_its_server() {
    let server = TestServer::start(&[], "wal_level = replica\nmax_replication_slots = 4");
    let reader = LocalReader::begin(settings(&server, Lsn(0))).unwrap();
    assert!(!reader.has_slot("lifeboat_1").unwrap());
    let mut session = server.session();
    session.sql("SELECT pg_create_physical_replication_slot('lifeboat_1', true, true)");
    assert!(reader.has_slot("lifeboat_1").unwrap());
    session.sql("SELECT pg_drop_replication_slot('lifeboat_1')");
    assert!(!reader.has_slot("lifeboat_1").unwrap());
}

#[test]
fn links_and_missing_tablespaces_are_told() {
    let mut server = TestServer::start(&["--wal-segsize=1"], "");
    let place = server.folder().join("space");
    fs::create_dir(&place).unwrap();
    TestServer::own(&place);
    server.sql(&format!("CREATE TABLESPACE s LOCATION '{}'", place.display()));
    server.stop("fast");
    let data = server.data().to_owned();
    // Moved to other disks, as people do.
    for name in ["pg_wal", "pg_xact"] {
        fs::rename(data.join(name), server.folder().join(name)).unwrap();
        symlink(server.folder().join(name), data.join(name)).unwrap();
    }
    symlink("/elsewhere", data.join("base/1/link")).unwrap();
    symlink("/etc/hostname", data.join("extra.conf")).unwrap();
    fs::remove_dir_all(&place).unwrap();
    let mut reader = LocalReader::begin(settings(&server, Lsn(0))).unwrap();
    let (all, _) = read_all(&mut reader, 65_536);
    assert_eq!(all[&b"pg_xact/0000"[..]].1, fs::read(server.folder().join("pg_xact/0000")).unwrap());
    assert!(matches!(all[&b"pg_wal"[..]].0.kind, EntryKind::Directory));
    assert!(matches!(all[&b"extra.conf"[..]].0.kind, EntryKind::Symlink { .. }));
    let problems: Vec<(String, String)> =
        reader.finish(Lsn(0)).unwrap().into_iter().map(|problem| (problem.kind, problem.object)).collect();
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert_eq!(problems[0], ("link-not-followed".into(), "base/1/link".into()));
    assert_eq!(problems[1].0, "tablespace-missing");
    fs::create_dir(&place).unwrap();
    let mut reader = LocalReader::begin(settings(&server, Lsn(0))).unwrap();
    read_all(&mut reader, 65_536);
    assert!(reader.finish(Lsn(0)).unwrap()[1].message.contains("has no folder PG_"));
    let not_data = LocalReader::begin(LocalSettings { data_directory: place, ..settings(&server, Lsn(0)) });
    assert_eq!(not_data.err().unwrap().kind(), Kind::Usage);
}

fn good_page(block: u32) -> Vec<u8> {
    let mut page = vec![9; 8192];
    page[..8].fill(0);
    for (at, value) in [(10, 0u16), (12, 28), (14, 8000), (16, 8192), (18, 8196)] {
        page[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
    let sum = crate::source::postgres::page::checksum(&page, block);
    page[8..10].copy_from_slice(&sum.to_le_bytes());
    page
}

#[test]
fn torn_pages_are_given_time_and_sizes_are_those_at_opening() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("16384.1");
    let good: Vec<u8> = (0..4).flat_map(|number| good_page(131_072 + number)).collect();
    let mut torn = good.clone();
    torn[2 * 8192 + 4096..3 * 8192].fill(1);
    fs::write(&path, &torn).unwrap();
    let judge = Judge { block_bytes: 8192, start: Lsn(1) };
    let open = |limit: u64| {
        let findings = Arc::new(Mutex::new(Findings::new(b"base/1/16384.1")));
        let check = Check { judge, first_block: 131_072, findings: Arc::clone(&findings) };
        (FileReader::new(Arc::new(File::open(&path).unwrap()), limit, Some(check), Cancel::default()), findings)
    };
    let (mut reader, findings) = open(4 * 8192);
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).unwrap();
    let found = findings.lock().unwrap().clone();
    assert_eq!((found.bad_pages, found.first_bad[0].0), (1, 131_074));
    // The writer gets there while we wait.
    let (mut reader, findings) = open(4 * 8192);
    let bytes = thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(25));
            fs::write(&path, &good).unwrap();
        });
        let mut bytes = vec![0; 4 * 8192];
        reader.read_exact(&mut bytes).unwrap();
        bytes
    });
    assert!(findings.lock().unwrap().is_empty() && bytes == good);
    // Grown, shrunk, and ending within a page.
    let read = |limit: u64| {
        let (mut reader, findings) = open(limit);
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        assert!(findings.lock().unwrap().is_empty());
        bytes.len()
    };
    assert_eq!(read(2 * 8192), 2 * 8192);
    assert_eq!(read(9 * 8192), 4 * 8192);
    fs::write(&path, &good[..8192 + 100]).unwrap();
    assert_eq!(read(4 * 8192), 8192);
    assert_eq!(judge.judge(&good[..8192], 131_072), Judgement::Good);
}

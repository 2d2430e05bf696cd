//! Base backups and the log as a stream, against real servers of the distribution's version and the newest one.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use lifeboat::error::{Error, Kind, Result};
use lifeboat::source::postgres::client::{Connection, sqlstate};
use lifeboat::source::postgres::lsn::Lsn;
use lifeboat::source::postgres::replication::{
    BackupPart, BaseBackupOptions, LogPosition, Tablespace, WalEvent, WalStream, base_backup, create_physical_slot, drop_slot,
    identify_system, read_slot, show, slot_by_sql, start_replication, timeline_history,
};
use lifeboat::source::postgres::stream::ensure_slot;
use support::postgres::{Cluster, NEWEST, Options, distribution_version, server_user, wait_until};

const SEGMENT: u64 = 16 << 20;
const SOON: Duration = Duration::from_secs(30);

fn versions() -> [u32; 2] {
    [distribution_version(), NEWEST]
}

struct Received {
    start: LogPosition,
    end: LogPosition,
    archives: Vec<(Tablespace, Vec<u8>)>,
    manifest: Vec<u8>,
    progress: u64,
}

fn receive(connection: &mut Connection, options: &BaseBackupOptions) -> Result<Received> {
    let mut backup = base_backup(connection, options)?;
    let mut received = Received { start: backup.start(), end: backup.start(), archives: Vec::new(), manifest: Vec::new(), progress: 0 };
    let mut in_manifest = false;
    while let Some(part) = backup.next()? {
        match part {
            BackupPart::Archive(tablespace) => received.archives.push((tablespace, Vec::new())),
            BackupPart::Manifest => in_manifest = true,
            BackupPart::Data(bytes) if in_manifest => received.manifest.extend_from_slice(&bytes),
            BackupPart::Data(bytes) => received.archives.last_mut().unwrap().1.extend_from_slice(&bytes),
            BackupPart::Progress(bytes) => received.progress = received.progress.max(bytes),
        }
    }
    assert!(backup.next()?.is_none());
    let end = backup.finish()?;
    received.end = end.position;
    end.damaged_pages.map_or(Ok(received), Err)
}

fn untar(archive: &[u8], folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    let mut tar = Command::new("tar").arg("-xf").arg("-").arg("-C").arg(folder).stdin(std::process::Stdio::piped()).spawn().unwrap();
    tar.stdin.take().unwrap().write_all(archive).unwrap();
    assert!(tar.wait().unwrap().success());
}

/// All files below a folder.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.is_symlink() {
                folders.push(path);
            } else if path.is_file() {
                found.insert(path.strip_prefix(folder).unwrap().display().to_string(), fs::read(&path).unwrap());
            }
        }
    }
    found
}

fn give_to_server(folder: &Path) {
    if let Some((user, group)) = server_user() {
        assert!(Command::new("chown").arg("-R").arg(format!("{user}:{group}")).arg(folder).status().unwrap().success());
    }
}

/// Reads the stream until `end`, confirming nothing.
fn stream_until(stream: &mut WalStream, end: Lsn) -> Vec<u8> {
    let mut log = Vec::new();
    while stream.position() < end {
        match stream.next(SOON).unwrap().expect("the log comes") {
            WalEvent::Data { start, server_end, bytes, server_clock } => {
                assert_eq!(start.plus(bytes.len() as u64), stream.position());
                assert!(server_end >= stream.position());
                assert!((chrono::Utc::now() - server_clock).num_seconds().abs() < 600, "{server_clock}");
                log.extend_from_slice(&bytes);
            }
            WalEvent::Keepalive { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    log
}

#[test]
fn a_base_backup_is_the_folder_and_starts() {
    for version in versions() {
        let cluster = Cluster::start(version);
        let space = cluster.folder().join("space ü");
        fs::create_dir(&space).unwrap();
        give_to_server(&space);
        let mut sql = cluster.connect();
        sql.execute(&format!("CREATE TABLESPACE space LOCATION '{}'", space.display())).unwrap();
        sql.execute("CREATE TABLE here AS SELECT g, md5(g::text) FROM generate_series(1, 50000) g").unwrap();
        sql.execute("CREATE TABLE there TABLESPACE space AS SELECT g FROM generate_series(1, 50000) g").unwrap();

        let mut connection = cluster.connect_replication();
        assert_eq!(show(&mut connection, "wal_segment_size").unwrap(), "16MB");
        create_physical_slot(&mut connection, "backup", true).unwrap();
        let mut options = BaseBackupOptions::new("it's a \\ label");
        options.manifest = true;
        let received = receive(&mut connection, &options).unwrap();
        let identity = identify_system(&mut connection).unwrap();
        assert_eq!(identity.timeline, 1);
        assert!(received.start.lsn < received.end.lsn && received.end.lsn <= identity.position);
        assert!(received.manifest.starts_with(b"{ \"PostgreSQL-Backup-Manifest-Version\""));
        assert_eq!(received.archives.len(), 2);
        let (other, main) = (&received.archives[0], &received.archives[1]);
        assert_eq!((other.0.location.as_deref(), main.0.oid), (Some(space.to_str().unwrap()), None));
        assert_eq!(other.0.oid.unwrap().to_string(), cluster.value("SELECT oid FROM pg_tablespace WHERE spcname = 'space'"));
        assert!(main.0.bytes.unwrap() > 10 << 20 && received.progress > 10 << 20);

        // What the server itself writes at its stop aside, relations are byte for byte those of the folder: a quick checkpoint was before.
        let copy = Cluster::empty(version);
        untar(&main.1, &copy.data());
        let (ours, theirs) = (files(&copy.data()), files(&cluster.data()));
        assert!(String::from_utf8_lossy(&ours["backup_label"]).contains("LABEL: it's a \\ label"));
        let path = cluster.value("SELECT pg_relation_filepath('here')");
        assert!(ours[&path] == theirs[&path] && ours[&path].len() > 1 << 20);
        let missing: Vec<_> = theirs
            .keys()
            .filter(|path| path.starts_with("base/") && !path.ends_with("pg_internal.init") && !ours.contains_key(*path))
            .collect();
        assert_eq!(missing, Vec::<&String>::new());

        // The log that it needs, through the slot; then it starts.
        let slot = slot_by_sql(&mut sql, "backup").unwrap().unwrap();
        assert!(slot.is_physical && slot.is_temporary && slot.restart.unwrap() <= received.start.lsn);
        sql.execute("SELECT pg_switch_wal()").unwrap();
        let first = Lsn(received.start.lsn.0 / SEGMENT * SEGMENT);
        let last = Lsn((received.end.lsn.0 / SEGMENT + 1) * SEGMENT);
        let mut stream = start_replication(connection, Some("backup"), first, 1).unwrap();
        let log = stream_until(&mut stream, last);
        for (number, segment) in log.chunks_exact(16 << 20).enumerate() {
            let number = first.0 / SEGMENT + number as u64;
            let name = format!("00000001{:08X}{:08X}", number / 256, number % 256);
            fs::write(copy.data().join("pg_wal").join(name), segment).unwrap();
        }
        let moved = copy.folder().join("space");
        untar(&other.1, &moved);
        let link = copy.data().join("pg_tblspc").join(other.0.oid.unwrap().to_string());
        fs::write(copy.data().join("tablespace_map"), format!("{} {}\n", other.0.oid.unwrap(), moved.display())).unwrap();
        let _ = fs::remove_file(&link);
        give_to_server(copy.folder());
        copy.configure(&[]);
        fs::set_permissions(copy.data(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        copy.start_server();
        assert_eq!(copy.value("SELECT count(*) || ' ' || (SELECT count(*) FROM there) FROM here"), "50000 50000");
    }
}

#[test]
fn a_bad_page_fails_the_backup_at_its_end() {
    for version in versions() {
        let cluster = Cluster::start(version);
        cluster.sql("CREATE TABLE broken AS SELECT g FROM generate_series(1, 10000) g");
        let path = cluster.data().join(cluster.value("SELECT pg_relation_filepath('broken')"));
        cluster.stop_server();
        let mut file = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let mut byte = [0];
        file.seek(SeekFrom::Start(2 * 8192 + 5000)).unwrap();
        file.read_exact(&mut byte).unwrap();
        file.seek(SeekFrom::Start(2 * 8192 + 5000)).unwrap();
        file.write_all(&[!byte[0]]).unwrap();
        cluster.start_server();

        let mut connection = cluster.connect_replication();
        let mut options = BaseBackupOptions::new("bad");
        let mut backup = base_backup(&mut connection, &options).unwrap();
        let mut bytes = 0;
        while let Some(part) = backup.next().unwrap() {
            if let BackupPart::Data(data) = part {
                bytes += data.len();
            }
        }
        let error = backup.finish().unwrap().damaged_pages.unwrap();
        assert_eq!((sqlstate(&error), error.kind()), (Some("XX001"), Kind::Damaged), "{error:?}");
        assert!(bytes > 10 << 20, "all bytes came before the error: {bytes}");
        // The connection is whole, and without the check the same backup is taken.
        options.verify_checksums = false;
        receive(&mut connection, &options).unwrap();
    }
}

#[test]
fn a_walsender_that_is_ended_in_mid_backup() {
    let cluster = Cluster::start(distribution_version());
    let end = |process: i32| cluster.sql(&format!("SELECT pg_terminate_backend({process})"));
    let mut connection = cluster.connect_replication();
    let process = connection.backend_process();
    let mut options = BaseBackupOptions::new("ended");
    options.max_rate_kib = Some(1024);
    let mut backup = base_backup(&mut connection, &options).unwrap();
    while !matches!(backup.next().unwrap().unwrap(), BackupPart::Data(_)) {}
    end(process);
    let error = loop {
        match backup.next() {
            Ok(part) => assert!(part.is_some(), "a backup that was cut off was taken for a whole one"),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), Kind::Unavailable, "{error:?}");
    assert!(backup.finish().is_err());

    let mut connection = cluster.connect_replication();
    let process = connection.backend_process();
    let identity = identify_system(&mut connection).unwrap();
    let mut stream = start_replication(connection, None, identity.position, 1).unwrap();
    end(process);
    let error: Error = loop {
        match stream.next(SOON) {
            Ok(event) => assert!(!matches!(event, None | Some(WalEvent::End)), "{event:?}"),
            Err(error) => break error,
        }
    };
    assert_eq!((sqlstate(&error), error.kind()), (Some("57P01"), Kind::Unavailable), "{error:?}");

    // Left in the middle by us: the server's process goes too.
    let mut connection = cluster.connect_replication();
    let mut backup = base_backup(&mut connection, &options).unwrap();
    backup.next().unwrap();
    drop(connection);
    wait_until("the walsender to end", || cluster.value("SELECT count(*) FROM pg_stat_replication") == "0");
}

/// A first backup and the stream of the log begin in the same moment: both miss the slot, one makes it.
#[test]
fn runs_that_make_the_same_slot_at_once_all_have_it() {
    for version in versions() {
        let cluster = Cluster::start(version);
        let settings = cluster.socket_settings();
        for round in 0..5 {
            let (name, cancel) = (format!("shared_{round}"), lifeboat::event::Cancel::default());
            let start = std::sync::Barrier::new(4);
            let made = std::thread::scope(|scope| {
                let run = || {
                    start.wait();
                    ensure_slot(&settings, &name, &cancel).unwrap()
                };
                let runs: Vec<_> = (0..4).map(|_| scope.spawn(run)).collect();
                runs.into_iter().map(|run| run.join().unwrap()).filter(|made| *made).count()
            });
            assert_eq!(made, 1);
            assert!(slot_by_sql(&mut cluster.connect(), &name).unwrap().unwrap().restart.is_some());
        }
    }
}

#[test]
fn slots() {
    for version in versions() {
        let cluster = Cluster::start(version);
        let mut connection = cluster.connect_replication();
        let mut sql = cluster.connect();
        assert_eq!(read_slot(&mut connection, "kept").unwrap(), None);
        assert_eq!(slot_by_sql(&mut sql, "kept").unwrap(), None);
        create_physical_slot(&mut connection, "kept", false).unwrap();
        let state = read_slot(&mut connection, "kept").unwrap().unwrap();
        assert_eq!((state.restart.is_some(), state.timeline), (true, Some(1)));
        let status = slot_by_sql(&mut sql, "kept").unwrap().unwrap();
        assert_eq!((status.is_physical, status.is_temporary, status.is_active), (true, false, false));
        assert_eq!((status.restart, status.wal_status.as_deref()), (state.restart, Some("reserved")));
        assert!(status.held_bytes.is_some());
        let error = create_physical_slot(&mut connection, "kept", false).unwrap_err();
        assert_eq!(error.kind(), Kind::AlreadyExists, "{error:?}");
        assert!(create_physical_slot(&mut connection, "Not A Name", false).is_err());

        // Confirmed positions move it; in use it cannot be dropped.
        let start = Lsn(state.restart.unwrap().0 / SEGMENT * SEGMENT);
        let mut stream = start_replication(cluster.connect_replication(), Some("kept"), start, 1).unwrap();
        sql.execute("CREATE TABLE t AS SELECT g FROM generate_series(1, 1000) g").unwrap();
        let now: Lsn = sql.value("SELECT pg_current_wal_flush_lsn()").unwrap().unwrap().parse().unwrap();
        stream_until(&mut stream, now);
        let error = drop_slot(&mut connection, "kept", false).unwrap_err();
        assert_eq!((sqlstate(&error), error.kind()), (Some("55006"), Kind::Busy), "{error:?}");
        let error = start_replication(cluster.connect_replication(), Some("kept"), start, 1).err().unwrap();
        assert_eq!(error.kind(), Kind::Busy, "{error:?}");
        stream.ping(stream.position(), now, Lsn(0)).unwrap();
        while !matches!(stream.next(SOON).unwrap().expect("an answer to the ping"), WalEvent::Keepalive { .. }) {}
        wait_until("the slot to move", || slot_by_sql(&mut sql, "kept").unwrap().unwrap().restart == Some(now));
        let mut back = stream.stop().unwrap();
        assert_eq!(identify_system(&mut back).unwrap().timeline, 1, "the connection goes on");
        drop(back);

        drop_slot(&mut connection, "kept", true).unwrap();
        let error = drop_slot(&mut connection, "kept", false).unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound, "{error:?}");
        let error = start_replication(cluster.connect_replication(), Some("kept"), start, 1).err().unwrap();
        assert_eq!(error.kind(), Kind::NotFound, "{error:?}");
    }
}

#[test]
fn the_log_is_streamed_byte_for_byte() {
    for version in versions() {
        let cluster = Cluster::start(version);
        let mut connection = cluster.connect_replication();
        create_physical_slot(&mut connection, "log", true).unwrap();
        let identity = identify_system(&mut connection).unwrap();
        let start = Lsn(identity.position.0 / SEGMENT * SEGMENT);
        let mut sql = cluster.connect();
        sql.execute("CREATE TABLE t AS SELECT g, repeat('x', 500) AS x FROM generate_series(1, 60000) g").unwrap();
        sql.execute("SELECT pg_switch_wal()").unwrap();
        let now: Lsn = sql.value("SELECT pg_current_wal_lsn()").unwrap().unwrap().parse().unwrap();
        let end = Lsn(now.0 / SEGMENT * SEGMENT);
        let mut stream = start_replication(connection, Some("log"), start, 1).unwrap();
        let log = stream_until(&mut stream, end);
        assert!(end.since(start) >= 2 * SEGMENT, "several segments");
        for (number, segment) in log.chunks_exact(16 << 20).enumerate() {
            let number = start.0 / SEGMENT + number as u64;
            let name = format!("00000001{:08X}{:08X}", number / 256, number % 256);
            assert!(fs::read(cluster.data().join("pg_wal").join(&name)).unwrap() == *segment, "{name}");
        }
        // An idle server: nothing within the limit, and no error.
        while stream.next(Duration::from_millis(300)).unwrap().is_some() {}

        // Stopped in order, the server sends everything first.
        let stopping = std::thread::spawn(move || {
            let mut last = stream.position();
            loop {
                match stream.next(SOON) {
                    Ok(Some(WalEvent::End)) => return Ok(last),
                    Ok(Some(WalEvent::Keepalive { .. })) => {
                        let position = stream.position();
                        stream.status(position, position, Lsn(0)).unwrap();
                    }
                    Ok(_) => last = stream.position(),
                    Err(error) => return Err(error),
                }
            }
        });
        drop(sql);
        cluster.stop_server();
        match stopping.join().unwrap() {
            Ok(last) => assert!(last >= now),
            Err(error) => assert_eq!(error.kind(), Kind::Unavailable, "{error:?}"),
        }
    }
}

#[test]
fn log_that_is_gone_and_a_timeline_that_ends() {
    for version in versions() {
        let primary = Options::new(version).setting("wal_keep_size", "512").start();
        primary.sql("CREATE TABLE t AS SELECT g FROM generate_series(1, 1000) g");
        let mut connection = primary.connect_replication();
        let received = receive(&mut connection, &BaseBackupOptions::new("standby")).unwrap();
        let standby = Cluster::empty(version);
        untar(&received.archives[0].1, &standby.data());
        let source = format!("host={} port={} user=postgres", primary.folder().display(), primary.port);
        standby.configure(&[("primary_conninfo".into(), source)]);
        fs::write(standby.data().join("standby.signal"), "").unwrap();
        give_to_server(standby.folder());
        fs::set_permissions(standby.data(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        standby.start_server();

        let first = Lsn(received.start.lsn.0 / SEGMENT * SEGMENT);
        let mut stream = start_replication(standby.connect_replication(), None, first, 1).unwrap();
        primary.sql("INSERT INTO t SELECT g FROM generate_series(1, 1000) g");
        let now: Lsn = primary.value("SELECT pg_current_wal_flush_lsn()").parse().unwrap();
        stream_until(&mut stream, now);
        standby.promote();
        let (next, at) = loop {
            match stream.next(SOON).unwrap().expect("the end of the timeline") {
                WalEvent::TimelineEnd { next, at } => break (next, at),
                WalEvent::End => panic!("the end of the timeline was taken for that of the server"),
                _ => {}
            }
        };
        assert_eq!((next, at), (2, stream.position()));
        let mut connection = stream.stop().unwrap();
        let history = timeline_history(&mut connection, 2).unwrap();
        assert_eq!(history.file_name, "00000002.history");
        assert_eq!(history.content, fs::read(standby.data().join("pg_wal/00000002.history")).unwrap());
        assert!(String::from_utf8_lossy(&history.content).contains(&at.to_string()));
        assert!(timeline_history(&mut connection, 7).is_err());

        // From exactly the end, the server names the next one at once; then that one is streamed on the same connection.
        let mut stream = start_replication(connection, None, at, 1).unwrap();
        assert_eq!(stream.next(SOON).unwrap(), Some(WalEvent::TimelineEnd { next: 2, at }));
        standby.sql("CREATE TABLE on_two AS SELECT g FROM generate_series(1, 1000) g");
        let now: Lsn = standby.value("SELECT pg_current_wal_flush_lsn()").parse().unwrap();
        let mut stream = start_replication(stream.stop().unwrap(), None, at, 2).unwrap();
        stream_until(&mut stream, now);

        // Long recycled, and not there yet.
        let mut stream = start_replication(primary.connect_replication(), None, Lsn(SEGMENT * 256 * 16), 1).unwrap();
        let error = stream.next(SOON).unwrap_err();
        assert_eq!(error.kind(), Kind::Failed, "{error:?}");
        let mut stream = start_replication(primary.connect_replication(), None, Lsn(0), 1).unwrap();
        let error = loop {
            match stream.next(SOON) {
                Ok(event) => assert!(event.is_some()),
                Err(error) => break error,
            }
        };
        assert_eq!((sqlstate(&error), error.kind()), (Some("58P01"), Kind::NotFound), "{error:?}");
    }
}

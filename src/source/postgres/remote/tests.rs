use super::*;
use crate::entry::Layout;
use crate::event::Cancel;
use crate::source::postgres::client::ServerError;
use crate::source::postgres::local::{LocalReader, LocalSettings};
use crate::source::postgres::tar::tests::link_header;
use crate::source::postgres::test_server::TestServer;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::time::SystemTime;

type Tree = BTreeMap<String, (EntryKind, u32, Vec<u8>)>;

fn read_archive(path: &std::path::Path, archive: Archive, cluster: Cluster, tree: &mut Tree) -> Finished {
    let mut reader = ArchiveReader::new(File::open(path).unwrap(), archive, cluster);
    while let Some(entry) = reader.next_entry().unwrap() {
        let mut content = Vec::new();
        if let EntryKind::File { .. } = entry.kind {
            reader.read_to_end(&mut content).unwrap();
        }
        assert!(tree.insert(entry.display_path(), (entry.kind.clone(), entry.mode, content)).is_none(), "{}", entry.display_path());
    }
    reader.finish().unwrap()
}

#[test]
fn the_same_tree_as_read_locally() {
    let server = TestServer::start(&["-k", "--wal-segsize=1"], "autovacuum = off");
    let place = server.folder().join("space");
    fs::create_dir(&place).unwrap();
    TestServer::own(&place);
    server.sql(&format!("CREATE TABLESPACE s LOCATION '{}'", place.display()));
    server.sql(
        "CREATE TABLE spaced TABLESPACE s AS SELECT generate_series(1, 20000) AS a; CREATE UNLOGGED TABLE u AS SELECT 1 AS a; CHECKPOINT",
    );
    let damaged = server.sql("SELECT pg_relation_filepath('spaced')");
    let mut bytes = fs::read(server.data().join(&damaged)).unwrap();
    bytes[8192 + 4000] ^= 1;
    fs::write(server.data().join(&damaged), bytes).unwrap();
    let target = server.folder().join("copy");
    let socket = server.folder().to_str().unwrap();
    let arguments =
        ["-h", socket, "-U", "postgres", "-Ft", "-X", "none", "-c", "fast", "--no-verify-checksums", "-D", target.to_str().unwrap()];
    server.tool("pg_basebackup", &arguments);

    let start: Lsn = server.sql("SELECT pg_current_wal_insert_lsn()").parse().unwrap();
    let cluster = Cluster { block_bytes: 8192, segment_blocks: 131_072, check_from: Some(start) };
    let mut remote = Tree::new();
    let base = read_archive(&target.join("base.tar"), Archive::Base { mode: 0o700 }, cluster, &mut remote);
    let oid = server.sql("SELECT oid FROM pg_tablespace WHERE spcname = 's'").parse().unwrap();
    let space = read_archive(&target.join(format!("{oid}.tar")), Archive::Tablespace(oid), cluster, &mut remote);
    assert!(base.problems(start).is_empty());
    let problems = space.problems(start);
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!(problems[0].object, damaged);
    assert!(problems[0].message.contains("1 damaged page(s)") && problems[0].message.contains("block 1:"), "{problems:?}");
    assert!(String::from_utf8_lossy(&remote["backup_label"].2).contains("START WAL LOCATION"));

    let mut local = Tree::new();
    let settings = LocalSettings {
        data_directory: server.data().to_owned(),
        configuration: Vec::new(),
        start,
        called: SystemTime::now(),
        full: false,
        throttle: None,
        cancel: Cancel::default(),
    };
    let mut reader = LocalReader::begin(settings).unwrap();
    assert_eq!(reader.control().segment_blocks, 131_072);
    while let Some(entry) = reader.next_entry().unwrap() {
        let mut content = Vec::new();
        if let EntryKind::File { .. } = entry.kind {
            reader.open(&entry).unwrap().unwrap().read_to_end(&mut content).unwrap();
            reader.close(&entry).unwrap();
        }
        local.insert(entry.display_path(), (entry.kind, entry.mode, content));
    }
    assert_eq!(reader.finish(start).unwrap(), problems);
    remote.remove("backup_label");
    remote.remove("tablespace_map");
    assert_eq!(remote.keys().collect::<Vec<_>>(), local.keys().collect::<Vec<_>>());
    for (path, theirs) in &remote {
        // Written again since.
        if path != "global/pg_control" {
            assert!(theirs == &local[path], "{path}");
        }
    }
    assert!(matches!(remote[&damaged].0, EntryKind::File { layout: Layout::Pages(8192), .. }));
}

#[test]
fn links_to_tablespaces_are_told_and_no_entries() {
    let cluster = Cluster { block_bytes: 8192, segment_blocks: 131_072, check_from: None };
    let read = |name: &[u8]| {
        let block = link_header(name, b"/mnt/space");
        let mut reader = ArchiveReader::new(&block[..], Archive::Base { mode: 0o750 }, cluster);
        let root = reader.next_entry().unwrap().unwrap();
        assert_eq!((root.path.len(), root.mode, root.uid), (0, 0o750, 101));
        reader.next_entry().map(|entry| (entry, reader.finish().unwrap().links))
    };
    let link = TablespaceLink { oid: 16400, location: Some(b"/mnt/space".to_vec()) };
    assert_eq!(read(b"pg_tblspc/16400").unwrap(), (None, vec![link]));
    assert_eq!(read(b"base/link").unwrap_err().kind(), Kind::Damaged);
}

#[test]
fn an_archive_that_is_cut_off_is_an_error() {
    let server = TestServer::start(&[], "");
    let target = server.folder().join("copy");
    let socket = server.folder().to_str().unwrap();
    server.tool("pg_basebackup", &["-h", socket, "-U", "postgres", "-Ft", "-X", "none", "-c", "fast", "-D", target.to_str().unwrap()]);
    let bytes = fs::read(target.join("base.tar")).unwrap();
    let cluster = Cluster { block_bytes: 8192, segment_blocks: 131_072, check_from: None };
    let mut reader = ArchiveReader::new(&bytes[..bytes.len() / 2 + 100], Archive::Base { mode: 0o700 }, cluster);
    let error = loop {
        match reader.next_entry() {
            Ok(entry) => assert!(entry.is_some(), "no error"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error.kind(), Kind::Failed | Kind::Damaged), "{error:?}");
    let reader = ArchiveReader::new(&bytes[..], Archive::Base { mode: 0o700 }, cluster);
    assert_eq!(reader.finish().unwrap_err().kind(), Kind::Bug);
}

#[test]
fn a_tablespace_that_a_server_does_not_send_is_never_missed_quietly() {
    assert!(kept_inside(16384, "../lifeboat_tablespaces/16384").unwrap());
    assert!(!kept_inside(16384, "/srv/space").unwrap() && !kept_inside(16384, "pg_tblspc/16384").unwrap());
    for other in ["../lifeboat_tablespaces/16385", "../../space", "space"] {
        assert_eq!(kept_inside(16384, other).unwrap_err().kind(), Kind::Failed, "{other}");
    }
    let cluster = Cluster { block_bytes: 8192, segment_blocks: 131_072, check_from: None };
    // The end of an archive, and nothing before.
    let mut reader = ArchiveReader::new(&[0; 1024][..], Archive::Base { mode: 0o700 }, cluster).with_inside([16384].into());
    assert_eq!(reader.next_entry().unwrap(), None);
    assert_eq!(reader.finish().unwrap_err().kind(), Kind::Damaged);
}

#[test]
fn what_the_server_left_out_is_told_in_any_language() {
    let warning = |routine: &str, message: &str| ServerError {
        severity: "WARNING".into(),
        sqlstate: "01000".into(),
        message: message.into(),
        hint: None,
        routine: routine.into(),
    };
    let first = vec![
        warning("sendDir", "skipping special file \"./base/5/16401\""),
        warning("sendDir", "Spezialdatei »./pg_xact« wird ausgelassen"),
        warning("sendDir", "skipping special file \"./postgresql.conf\""),
        warning("sendDir", "skipping special file or directory \"/space/PG_18_202506291/5/1 two\""),
        // A socket, and what no backup holds.
        warning("sendDir", "skipping special file \"./.s.PGSQL.5432\""),
        warning("sendDir", "skipping special file \"./log\""),
        warning("sendDir", "skipping special file \"./pg_replslot/x/y\""),
        warning("verify_page_checksum", "checksum verification failed in file \"./base/5/1\""),
        warning("perform_base_backup", "anything else"),
    ];
    let told = |more: u64, pages_told: bool| {
        let warnings = Warnings { first: first.clone(), more };
        warned_of(&warnings, pages_told).into_iter().map(|problem| (problem.object, problem.kind)).collect::<Vec<_>>()
    };
    let of = |object: &str, kind: &str| (object.to_owned(), kind.to_owned());
    let links = ["base/5/16401", "pg_xact", "/space/PG_18_202506291/5/1 two"].map(|object| of(object, "link-not-followed"));
    let other = || of("the base backup", "server-warning");
    assert_eq!(told(0, true), [&links[..], &[other()]].concat());
    assert_eq!(told(0, false), [&links[..], &[other(), other()]].concat());
    let configuration = links_left_out(&Warnings { first: first.clone(), more: 0 }).unwrap();
    assert!(configuration.contains("are not in this backup: postgresql.conf; with data_directory"), "{configuration}");
    assert_eq!(told(7, true), [&links[..], &[other(), of("the base backup", "link-not-followed")]].concat());
}

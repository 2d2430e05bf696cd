use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, FileTimes};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::time::Duration;

use super::*;
use crate::entry::tree_order;

fn begin(path: &Path, exclude: &[&str], page_size: Option<u32>) -> FilesSnapshot {
    let exclude: Vec<String> = exclude.iter().map(|&pattern| pattern.to_owned()).collect();
    FilesSnapshot::begin(path, Exclude::new(&exclude).unwrap(), page_size, Cancel::default()).unwrap()
}

fn entries(snapshot: &mut FilesSnapshot) -> Vec<Entry> {
    std::iter::from_fn(|| snapshot.next_entry().unwrap()).collect()
}

fn paths(entries: &[Entry]) -> Vec<String> {
    entries.iter().map(Entry::display_path).collect()
}

fn problems(snapshot: FilesSnapshot) -> BTreeMap<String, String> {
    Box::new(snapshot).finish().unwrap().problems.into_iter().map(|problem| (problem.object, problem.kind)).collect()
}

fn find<'a>(entries: &'a [Entry], path: &str) -> &'a Entry {
    entries.iter().find(|entry| entry.path == path.as_bytes()).unwrap()
}

/// Makes a file look unchanged for a day; its change time cannot be set, so the snapshot is begun "later" instead.
fn age(snapshot: &mut FilesSnapshot) {
    snapshot.began_ns += 10_000_000_000;
}

#[test]
fn a_tree_comes_in_order_with_all_its_kinds() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    for path in ["a/b/c", "a.b", "a!", "z"] {
        fs::create_dir_all(root.join(path)).unwrap();
    }
    for path in ["a/file", "a.b/x", "a!/y", "z/é", "a/b/c/deep"] {
        fs::write(root.join(path), path).unwrap();
    }
    fs::write(root.join(OsStr::from_bytes(b"z/\xff\n")), "latin").unwrap();
    fs::hard_link(root.join("a/file"), root.join("z/again")).unwrap();
    symlink("../nowhere", root.join("z/link")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, root.join("z/pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(root.join("z/socket")).unwrap();
    fs::set_permissions(root.join("a/file"), fs::Permissions::from_mode(0o4751)).unwrap();

    let mut snapshot = begin(root, &[], None);
    let found = entries(&mut snapshot);
    assert!(found.is_sorted_by(|a, b| tree_order(&a.path, &b.path).is_lt()), "{:?}", paths(&found));
    assert_eq!(found[0].path, b"");
    assert_eq!(found.len(), 1 + 6 + 6 + 3);
    assert_eq!(find(&found, "z/again").kind, EntryKind::Hardlink { target: b"a/file".to_vec() });
    assert_eq!(find(&found, "z/link").kind, EntryKind::Symlink { target: b"../nowhere".to_vec() });
    assert_eq!(find(&found, "z/pipe").kind, EntryKind::Fifo);
    assert_eq!(find(&found, "a/file").mode, 0o4751);
    assert!(found.iter().any(|entry| entry.path == b"z/\xff\n"));
    assert_eq!(problems(snapshot), BTreeMap::from([("z/socket".into(), "skipped-special".into())]));
}

#[test]
fn excluded_folders_are_not_looked_into() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("keep/cache/deep")).unwrap();
    fs::write(folder.path().join("keep/cache/deep/x"), "").unwrap();
    fs::write(folder.path().join("keep/a.tmp"), "").unwrap();
    fs::write(folder.path().join("keep/a.txt"), "").unwrap();
    let mut snapshot = begin(folder.path(), &["cache/", "*.tmp"], None);
    assert_eq!(paths(&entries(&mut snapshot)), [".", "keep", "keep/a.txt"]);
}

#[test]
fn the_root_may_be_a_link_but_nothing_else_is_followed() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("real/sub")).unwrap();
    symlink("sub", folder.path().join("real/link")).unwrap();
    symlink("real", folder.path().join("root")).unwrap();
    let mut snapshot = begin(&folder.path().join("root"), &[], None);
    assert_eq!(paths(&entries(&mut snapshot)), [".", "link", "sub"]);
    let refused = |path: &str| FilesSnapshot::begin(&folder.path().join(path), Exclude::default(), None, Cancel::default()).err().unwrap();
    assert_eq!(refused("missing").kind(), Kind::NotFound);
    fs::write(folder.path().join("file"), "").unwrap();
    assert!(refused("file").hint_text().is_some());
}

#[test]
fn stamps_prove_only_what_lies_far_enough_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("f");
    fs::write(&path, "one").unwrap();
    let stamp_of = |aged: bool| {
        let mut snapshot = begin(folder.path(), &[], None);
        if aged {
            age(&mut snapshot);
        }
        find(&entries(&mut snapshot), "f").stamp.clone()
    };
    assert!(stamp_of(false).is_empty(), "changed a moment ago");
    let first = stamp_of(true);
    assert_eq!((first.len(), first[0]), (1 + 8 + 12 + 12 + 8, 1));
    assert_eq!(stamp_of(true), first);

    // The same size and modification time do not hide a change: the change time tells.
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    fs::write(&path, "two").unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_times(FileTimes::new().set_modified(modified)).unwrap();
    assert_ne!(stamp_of(true), first);

    let future = SystemTime::now() + Duration::from_hours(24);
    fs::File::options().write(true).open(&path).unwrap().set_times(FileTimes::new().set_modified(future)).unwrap();
    assert!(stamp_of(true).is_empty(), "a time in the future proves nothing");
}

#[test]
fn only_whole_pages_are_cut_as_pages() {
    let folder = tempfile::tempdir().unwrap();
    for (name, size) in [("empty", 0), ("page", 8192), ("pages", 81_920), ("odd", 8193), ("small", 512)] {
        fs::File::create(folder.path().join(name)).unwrap().set_len(size).unwrap();
    }
    let mut snapshot = begin(folder.path(), &[], Some(8192));
    let found = entries(&mut snapshot);
    let layout = |name: &str| match find(&found, name).kind {
        EntryKind::File { layout, .. } => layout,
        _ => unreachable!(),
    };
    assert_eq!(
        ["empty", "page", "pages", "odd", "small"].map(layout),
        [Layout::Content, Layout::Pages(8192), Layout::Pages(8192), Layout::Content, Layout::Content]
    );
}

#[test]
fn a_file_that_changes_or_vanishes_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for name in ["calm", "grows", "rewritten", "vanishes", "linked", "swapped", "replaced", "short"] {
        fs::write(path(name), "0123456789").unwrap();
    }
    fs::hard_link(path("linked"), path("linked-again")).unwrap();
    fs::write(path("secret"), "secret").unwrap();
    let mut snapshot = begin(folder.path(), &["secret"], None);
    let found = entries(&mut snapshot);

    fs::remove_file(path("vanishes")).unwrap();
    fs::remove_file(path("linked")).unwrap();
    fs::remove_file(path("swapped")).unwrap();
    symlink("secret", path("swapped")).unwrap();
    fs::write(path("new"), "something else").unwrap();
    fs::rename(path("new"), path("replaced")).unwrap();

    let mut read = BTreeMap::new();
    for entry in found.iter().filter(|entry| matches!(entry.kind, EntryKind::File { .. })) {
        let name = entry.display_path();
        let Some(mut reader) = snapshot.open(entry).unwrap() else { continue };
        match name.as_str() {
            "grows" => fs::File::options().append(true).open(path("grows")).unwrap().write_all(b"more").unwrap(),
            "rewritten" => fs::write(path("rewritten"), "9876543210 and more").unwrap(),
            _ => {}
        }
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        let count = if name == "short" { 9 } else { bytes.len() as u64 };
        snapshot.close(entry, count).unwrap();
        read.insert(name, bytes);
    }
    assert_eq!(read["calm"], b"0123456789");
    assert_eq!(read["grows"], b"0123456789more", "what was read is kept");
    assert!(!read.contains_key("swapped"), "a link that took its place is not followed");
    let kinds = [
        ("grows", "changed-while-read"),
        ("linked", "vanished"),
        ("linked-again", "vanished"),
        ("replaced", "changed-while-read"),
        ("rewritten", "changed-while-read"),
        ("short", "changed-while-read"),
        ("swapped", "vanished"),
        ("vanishes", "vanished"),
    ];
    assert_eq!(problems(snapshot), kinds.map(|(path, kind)| (path.to_owned(), kind.to_owned())).into());
}

#[test]
fn opening_never_waits_for_a_pipe_that_took_the_place_of_a_file() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("f"), "x").unwrap();
    let mut snapshot = begin(folder.path(), &[], None);
    let found = entries(&mut snapshot);
    fs::remove_file(folder.path().join("f")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, folder.path().join("f"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    assert!(snapshot.open(find(&found, "f")).unwrap().is_none());
    assert_eq!(problems(snapshot)["f"], "vanished");
}

#[test]
fn a_folder_that_vanishes_while_walking_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("a")).unwrap();
    fs::create_dir_all(folder.path().join("b/c")).unwrap();
    let mut snapshot = begin(folder.path(), &[], None);
    assert_eq!(snapshot.next_entry().unwrap().unwrap().display_path(), ".");
    fs::remove_dir_all(folder.path().join("b")).unwrap();
    assert_eq!(paths(&entries(&mut snapshot)), ["a"]);
    assert_eq!(problems(snapshot)["b"], "vanished");
}

#[test]
fn what_may_not_be_read_is_reported() {
    if rustix::process::geteuid().is_root() {
        // Root may read everything; the words for the errors are what is left to test.
        assert_eq!(problem_kind(rustix::io::Errno::ACCESS), "unreadable");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("closed")).unwrap();
    fs::write(folder.path().join("f"), "x").unwrap();
    fs::set_permissions(folder.path().join("closed"), fs::Permissions::from_mode(0o0)).unwrap();
    fs::set_permissions(folder.path().join("f"), fs::Permissions::from_mode(0o0)).unwrap();
    let mut snapshot = begin(folder.path(), &[], None);
    let found = entries(&mut snapshot);
    assert!(snapshot.open(find(&found, "f")).unwrap().is_none());
    assert_eq!(problems(snapshot), BTreeMap::from([("closed".into(), "unreadable".into()), ("f".into(), "unreadable".into())]));
    fs::set_permissions(folder.path().join("closed"), fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn many_files_need_two_looks_each() {
    let folder = tempfile::tempdir().unwrap();
    for number in 0..2_000 {
        fs::write(folder.path().join(format!("{number}")), "x").unwrap();
    }
    let mut snapshot = begin(folder.path(), &[], None);
    let began = std::time::Instant::now();
    assert_eq!(entries(&mut snapshot).len(), 2_001);
    println!("2000 files walked in {:?}", began.elapsed());
}

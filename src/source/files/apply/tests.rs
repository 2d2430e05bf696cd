use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use super::*;
use crate::entry::Layout;

fn entry(path: &str, kind: EntryKind) -> Entry {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    Entry { path: path.into(), kind, mode: 0o640, uid, gid, mtime_ns: 1_600_000_000_123_456_789, stamp: Vec::new(), xattrs: Vec::new() }
}

fn file(path: &str) -> Entry {
    entry(path, EntryKind::File { size: Some(4), layout: Layout::Content })
}

fn folder(path: &str) -> Entry {
    Entry { mode: 0o750, ..entry(path, EntryKind::Directory) }
}

fn target() -> (tempfile::TempDir, PathBuf) {
    let outer = tempfile::tempdir().unwrap();
    let root = outer.path().join("tree");
    (outer, root)
}

#[test]
fn a_tree_gets_its_metadata() {
    let (_outer, root) = target();
    let tree = TreeTarget::create(&root).unwrap();
    tree.make(&folder("")).unwrap();
    tree.make(&Entry { mode: 0o555, ..folder("d") }).unwrap();
    let one = Entry { mode: 0o6751, xattrs: vec![(b"user.note".to_vec(), b"\0\xff".to_vec())], ..file("d/one") };
    let mut made = tree.make(&one).unwrap().unwrap();
    assert_eq!(made.metadata().unwrap().len(), 4, "preallocated");
    assert_eq!(made.metadata().unwrap().mode() & 0o777, 0o600, "private until it is sealed");
    tree.make(&entry("d/two", EntryKind::Hardlink { target: b"d/one".to_vec() })).unwrap();
    tree.make(&entry("l", EntryKind::Symlink { target: b"/does/not/exist".to_vec() })).unwrap();
    tree.make(&entry("p", EntryKind::Fifo)).unwrap();
    made.write_all(b"abcd").unwrap();
    tree.seal(&one, &made).unwrap();
    tree.finish().unwrap();

    let look = |path: &str| fs::symlink_metadata(root.join(path)).unwrap();
    for path in ["", "d", "d/one", "l", "p"] {
        let found = look(path);
        assert_eq!((found.mtime(), found.mtime_nsec()), (1_600_000_000, 123_456_789), "{path}");
    }
    assert_eq!(look("").mode() & 0o7777, 0o750);
    assert_eq!(look("d").mode() & 0o7777, 0o555);
    assert_eq!(look("d/one").mode() & 0o7777, 0o6751);
    assert_eq!(look("p").mode() & 0o7777, 0o640);
    assert_eq!(look("d/one").ino(), look("d/two").ino());
    assert_eq!(fs::read(root.join("d/two")).unwrap(), b"abcd");
    assert_eq!(fs::read_link(root.join("l")).unwrap(), Path::new("/does/not/exist"));
    let read = super::super::xattr::read_all(&root.join("d/one")).unwrap();
    assert!(read.is_empty() || read == one.xattrs, "where the file system has them they are back: {read:?}");
    fs::set_permissions(root.join("d"), fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn nothing_is_made_through_a_planted_link() {
    let (outer, root) = target();
    let outside = outer.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), "safe").unwrap();
    let tree = TreeTarget::create(&root).unwrap();
    tree.make(&entry("evil", EntryKind::Symlink { target: b"../outside".to_vec() })).unwrap();
    tree.make(&entry("file", EntryKind::Symlink { target: b"../outside/file".to_vec() })).unwrap();
    for attempt in [
        file("evil/new"),
        folder("evil/new"),
        folder("evil"),
        file("file"),
        entry("evil/link", EntryKind::Symlink { target: b"x".to_vec() }),
        entry("evil/pipe", EntryKind::Fifo),
        entry("hard", EntryKind::Hardlink { target: b"evil/file".to_vec() }),
        entry("hard", EntryKind::Hardlink { target: b"file".to_vec() }),
        entry("hard", EntryKind::Hardlink { target: b"../outside/file".to_vec() }),
        entry("hard", EntryKind::Hardlink { target: b"missing".to_vec() }),
        entry("empty", EntryKind::Symlink { target: Vec::new() }),
        file("../outside/new"),
        file("/etc/new"),
        file("a//b"),
        file(""),
    ] {
        assert!(tree.make(&attempt).is_err(), "{attempt:?}");
    }
    assert!(tree.existing(&file("file")).is_err());
    tree.finish().unwrap();
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    assert_eq!(fs::read(outside.join("file")).unwrap(), b"safe");
}

#[test]
fn a_link_planted_in_place_of_a_made_folder_is_refused_at_the_end() {
    let (outer, root) = target();
    fs::create_dir(outer.path().join("outside")).unwrap();
    let before = fs::metadata(outer.path().join("outside")).unwrap();
    let tree = TreeTarget::create(&root).unwrap();
    tree.make(&folder("d")).unwrap();
    fs::remove_dir(root.join("d")).unwrap();
    symlink("../outside", root.join("d")).unwrap();
    assert!(tree.finish().is_err());
    let after = fs::metadata(outer.path().join("outside")).unwrap();
    assert_eq!((before.mtime_nsec(), before.mode()), (after.mtime_nsec(), after.mode()));
}

#[test]
fn only_an_empty_folder_is_begun_in_unless_resumed() {
    let (_outer, root) = target();
    let tree = TreeTarget::create(&root).unwrap();
    tree.make(&folder("d")).unwrap();
    let mut made = tree.make(&file("d/f")).unwrap().unwrap();
    made.write_all(b"abcd").unwrap();
    assert_eq!(tree.make(&file("d/f")).unwrap_err().kind(), Kind::AlreadyExists);
    drop(tree);
    assert_eq!(TreeTarget::create(&root).err().unwrap().kind(), Kind::AlreadyExists);
    let tree = TreeTarget::resume(&root).unwrap();
    tree.make(&folder("d")).unwrap();
    assert!(tree.existing(&file("d/f")).unwrap().is_some());
    assert!(tree.existing(&file("d/other")).unwrap().is_none());
    let again = tree.make(&file("d/f")).unwrap().unwrap();
    assert_eq!(again.metadata().unwrap().ino(), fs::metadata(root.join("d/f")).unwrap().ino());
    tree.finish().unwrap();
}

#[test]
fn missing_parents_are_made() {
    let (_outer, root) = target();
    let tree = TreeTarget::create(&root).unwrap();
    assert!(tree.make(&file("a/b/c/f")).unwrap().is_some());
    tree.make(&folder("a/b")).unwrap();
    tree.finish().unwrap();
    assert_eq!(fs::metadata(root.join("a/b")).unwrap().mode() & 0o777, 0o750);
}

#[test]
fn owners_that_may_not_be_set_are_one_warning_and_take_set_id_bits_away() {
    let (_outer, root) = target();
    let tree = TreeTarget::create(&root).unwrap();
    let (uid, gid) = (54_321, 54_321);
    for name in ["a", "b"] {
        let entry = Entry { uid, gid, mode: 0o6755, ..file(name) };
        let made = tree.make(&entry).unwrap().unwrap();
        tree.seal(&entry, &made).unwrap();
    }
    let applied = tree.finish().unwrap();
    let found = fs::metadata(root.join("a")).unwrap();
    if rustix::process::geteuid().is_root() {
        assert_eq!((found.uid(), found.gid(), found.mode() & 0o7777, applied.warnings.len()), (uid, gid, 0o6755, 0));
    } else {
        assert_eq!((found.mode() & 0o7777, applied.warnings.len()), (0o755, 1));
        assert!(applied.warnings[0].contains("2 times"));
    }
}

/// Runs as a user without privileges: in a thread of another user where the tests run as root, for rights are a thread's in Linux.
pub(crate) fn unprivileged<T: Send>(folder: &Path, work: impl FnOnce() -> T + Send) -> T {
    use rustix::fs::{Gid, Uid};
    if !rustix::process::geteuid().is_root() {
        return work();
    }
    let (uid, gid) = (Uid::from_raw(65534), Gid::from_raw(65534));
    std::os::unix::fs::chown(folder, Some(65534), Some(65534)).unwrap();
    let thread = || {
        rustix::thread::set_thread_groups(&[]).unwrap();
        rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
        rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
        work()
    };
    std::thread::scope(|scope| scope.spawn(thread).join()).unwrap()
}

#[test]
fn a_resumed_tree_is_made_below_folders_and_over_files_that_forbid_it() {
    let (outer, root) = target();
    unprivileged(outer.path(), || {
        let fixed = |path: &str, mode: u32| Entry { mode, ..folder(path) };
        let all = [fixed("", 0o555), fixed("d", 0o555), fixed("d/none", 0)];
        let sealed = Entry { mode: 0o444, ..file("d/sealed") };
        let tree = TreeTarget::create(&root).unwrap();
        for entry in &all {
            tree.make(entry).unwrap();
        }
        let mut made = tree.make(&sealed).unwrap().unwrap();
        made.write_all(b"kept").unwrap();
        tree.seal(&sealed, &made).unwrap();
        tree.finish().unwrap();
        assert!(fs::write(root.join("d/new"), "").is_err(), "who runs this may not write there");

        let tree = TreeTarget::resume(&root).unwrap();
        for entry in &all {
            tree.make(entry).unwrap();
        }
        assert_eq!(fs::metadata(root.join("d")).unwrap().mode() & 0o7777, 0o700);
        let kept = tree.existing(&sealed).unwrap().unwrap();
        tree.seal(&sealed, &kept).unwrap();
        let late = file("d/none/late");
        let mut made = tree.make(&late).unwrap().unwrap();
        made.write_all(b"late").unwrap();
        tree.seal(&late, &made).unwrap();
        tree.make(&entry("d/two", EntryKind::Hardlink { target: b"d/sealed".to_vec() })).unwrap();
        tree.finish().unwrap();
        let mode = |path: &str| fs::metadata(root.join(path)).unwrap().mode() & 0o7777;
        assert_eq!([mode(""), mode("d"), mode("d/none"), mode("d/sealed")], [0o555, 0o555, 0, 0o444]);
        assert_eq!(fs::read_to_string(root.join("d/two")).unwrap(), "kept");
        for path in ["", "d", "d/none"] {
            fs::set_permissions(root.join(path), fs::Permissions::from_mode(0o700)).unwrap();
        }
        assert_eq!(fs::read_to_string(root.join("d/none/late")).unwrap(), "late");
    });
}

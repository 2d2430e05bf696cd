//! Opening paths below a folder without ever leaving it or passing through a symbolic link, whoever swaps names meanwhile.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::{Errno, Result};

/// How often a walk that lost a race against a rename is begun again by the kernel's wish.
const RACES: u32 = 16;

/// Opens a relative path (a valid tree path; the empty one is the root itself) below `root`.
///
/// # Errors
/// `ELOOP` or `ENOTDIR` where a symbolic link stands in the way, else what the kernel says.
pub fn open(root: impl AsFd, path: &[u8], flags: OFlags) -> Result<OwnedFd> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let name = if path.is_empty() { OsStr::new(".") } else { OsStr::from_bytes(path) };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..RACES {
        match rustix::fs::openat2(&root, name, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN) => {}
            // No such call: an older kernel, or a sandbox that does not know it. Too long: the kernel takes 4 KiB at once.
            Err(Errno::NOSYS | Errno::NAMETOOLONG | Errno::PERM) => return open_by_parts(root, path, flags),
            other => return other,
        }
    }
    open_by_parts(root, path, flags)
}

/// The same, one name at a time.
fn open_by_parts(root: impl AsFd, path: &[u8], flags: OFlags) -> Result<OwnedFd> {
    let folder = OFlags::DIRECTORY | OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let (parents, name) = split(path);
    let mut at: Option<OwnedFd> = None;
    for part in parents.split(|&byte| byte == b'/').filter(|part| !part.is_empty()) {
        let part = OsStr::from_bytes(part);
        at = Some(match &at {
            Some(at) => rustix::fs::openat(at, part, folder, Mode::empty())?,
            None => rustix::fs::openat(&root, part, folder, Mode::empty())?,
        });
    }
    let name = if name.is_empty() { OsStr::new(".") } else { OsStr::from_bytes(name) };
    match &at {
        Some(at) => rustix::fs::openat(at, name, flags, Mode::empty()),
        None => rustix::fs::openat(&root, name, flags, Mode::empty()),
    }
}

/// The path of the folder that holds it, and its name in there.
pub fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&[], path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn neither_way_passes_through_links() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("root/real/deep")).unwrap();
        fs::write(folder.path().join("root/real/deep/file"), "x").unwrap();
        fs::write(folder.path().join("secret"), "x").unwrap();
        symlink("..", folder.path().join("root/out")).unwrap();
        symlink("real", folder.path().join("root/in")).unwrap();
        symlink("real/deep/file", folder.path().join("root/last")).unwrap();
        let root = fs::File::open(folder.path().join("root")).unwrap();
        let by_kernel = |path: &[u8]| open(&root, path, OFlags::RDONLY);
        let by_parts = |path: &[u8]| open_by_parts(&root, path, OFlags::RDONLY | OFlags::NOFOLLOW);
        for way in [&by_kernel as &dyn Fn(&[u8]) -> Result<OwnedFd>, &by_parts] {
            assert!(way(b"real/deep/file").is_ok());
            assert!(way(b"").is_ok());
            for path in [&b"out/secret"[..], b"in/deep/file", b"last", b"out"] {
                assert!(way(path).is_err(), "{}", path.escape_ascii());
            }
        }
    }
}

//! What is what in a data folder, by path alone: which files hold pages of which relation, and what a backup leaves out.
//!
//! Sources: "Database File Layout" and "Making a Base Backup Using the Low Level API" of the manual, `src/backend/backup/basebackup.c`, `src/common/relpath.c`,
//! `src/backend/storage/file/reinit.c`.
//!
//! Tablespaces appear in our trees as folders `pg_tblspc/OID/PG_…/…`, never as links.

use crate::entry::Layout;

/// Configuration that a server keeps outside its data folder (Debian: `/etc/postgresql`) is below this folder of the tree, each file under its absolute
/// path. No server has such a name in its data folder.
pub const CONFIGURATION_FOLDER: &[u8] = b"lifeboat_conf";
/// A restored data folder keeps its tablespaces in this folder, by number; `pg_tblspc` leads there, and a backup takes them from there alone.
pub const TABLESPACES_INSIDE: &str = "lifeboat_tablespaces";
/// Where the tablespaces are.
pub const TABLESPACE_FOLDER: &[u8] = b"pg_tblspc";
/// The largest page that a tree may be cut in.
const LARGEST_PAGE: u32 = 65_536;

/// Folders that exist in a backup but are empty: the server fills or clears them when it starts. `pg_wal`: the log is kept by its own rules.
const EMPTY_FOLDERS: [&[u8]; 8] =
    [b"pg_dynshmem", b"pg_notify", b"pg_replslot", b"pg_serial", b"pg_snapshots", b"pg_stat_tmp", b"pg_subtrans", b"pg_wal"];

/// Folders in `pg_wal` that a server expects there; in a backup they are empty. The second since 17.
const WAL_FOLDERS: [&[u8]; 2] = [b"pg_wal/archive_status", b"pg_wal/summaries"];

/// Folders of the server itself: a link instead of one of them is followed. Any other link is kept as a link.
pub const OWN_FOLDERS: [&[u8]; 10] =
    [b"base", b"global", b"log", b"pg_commit_ts", b"pg_logical", b"pg_multixact", b"pg_stat", b"pg_tblspc", b"pg_twophase", b"pg_xact"];

/// Files that belong to the running server or to another backup.
const LEFT_OUT: [&[u8]; 12] = [
    b"backup_label",
    b"backup_label.old",
    b"backup_manifest",
    b"current_logfiles",
    b"current_logfiles.tmp",
    b"postgresql.auto.conf.tmp",
    b"postmaster.opts",
    b"postmaster.pid",
    b"tablespace_map",
    b"tablespace_map.old",
    // A folder that is being recovered has these; the recovery that they ask for is not the backup's.
    b"recovery.signal",
    b"standby.signal",
];

/// Folders in which a server keeps nothing but SLRU files: fixed pages that change in place.
const SLRU_FOLDERS: [&[u8]; 4] = [b"pg_commit_ts", b"pg_multixact/members", b"pg_multixact/offsets", b"pg_xact"];

/// Where a relation is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tablespace {
    /// `base`.
    Default,
    /// `global`: what all databases share.
    Global,
    /// `pg_tblspc/OID`.
    Oid(u32),
}

/// Which part of a relation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fork {
    Main,
    /// Free space map.
    FreeSpace,
    /// Visibility map.
    Visibility,
    /// What an unlogged relation is reset to.
    Init,
}

/// One file of a relation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelationFile {
    pub tablespace: Tablespace,
    /// OID; 0 in `global`.
    pub database: u32,
    pub filenode: u32,
    pub fork: Fork,
    /// Number of this file in its fork, from 0.
    pub segment: u32,
}

impl RelationFile {
    /// Reads a path of the tree. `None`: no file of a permanent or unlogged relation. Temporary relations (`t3_16384`) are none.
    #[must_use]
    pub fn parse(path: &[u8]) -> Option<Self> {
        let (tablespace, database, name) = place(path)?;
        let (filenode, fork, segment) = file_name(name)?;
        Some(Self { tablespace, database, filenode, fork, segment })
    }

    /// Number in the fork of the file's first block; `None` where no relation has so many.
    #[must_use]
    pub fn first_block(&self, segment_blocks: u32) -> Option<u32> {
        self.segment.checked_mul(segment_blocks)
    }
}

/// What to do with something found in a data folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    Yes,
    /// The folder itself, without what is in it.
    Empty,
    No,
}

/// What a backup does with a path, by its name alone; [`is_unlogged`] needs more. What an earlier restore put into the folder is not the server's:
/// what this backup itself puts below [`CONFIGURATION_FOLDER`] is not asked for here.
#[must_use]
pub fn keep(path: &[u8]) -> Keep {
    if EMPTY_FOLDERS.contains(&path) || WAL_FOLDERS.contains(&path) {
        return Keep::Empty;
    }
    let top = path.split(|&byte| byte == b'/').next().unwrap_or(path);
    if top == CONFIGURATION_FOLDER || top == TABLESPACES_INSIDE.as_bytes() {
        return Keep::No;
    }
    if top.len() < path.len() && EMPTY_FOLDERS.contains(&top) {
        return Keep::No;
    }
    let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or(path);
    let is_in_root = top.len() == path.len();
    if name.starts_with(b"pgsql_tmp")
        || name.starts_with(b"pg_internal.init")
        || (is_in_root && LEFT_OUT.contains(&name))
        || is_temporary_relation(path)
    {
        return Keep::No;
    }
    Keep::Yes
}

/// Whether the content of a folder is kept: names directly in `pg_wal` that a server expects.
#[must_use]
pub fn kept_in_empty(folder: &[u8]) -> &'static [&'static [u8]] {
    if folder == b"pg_wal" { &WAL_FOLDERS } else { &[] }
}

/// Whether a file is content of an unlogged relation, which the server resets when it recovers: all forks but the init fork of a relation that has one.
/// `has_init`: whether a file of this name is in the same folder.
#[must_use]
pub fn is_unlogged(path: &[u8], has_init: impl FnOnce(&[u8]) -> bool) -> bool {
    let Some(RelationFile { filenode, fork, .. }) = RelationFile::parse(path) else { return false };
    fork != Fork::Init && has_init(format!("{filenode}_init").as_bytes())
}

/// How a file is cut: relations and transaction status in pages of the cluster's block size, everything else by content.
#[must_use]
pub fn layout(path: &[u8], block_bytes: u32) -> Layout {
    let is_slru = || {
        path.iter().rposition(|&byte| byte == b'/').is_some_and(|slash| {
            let name = &path[slash + 1..];
            SLRU_FOLDERS.contains(&&path[..slash]) && name.iter().all(u8::is_ascii_hexdigit)
        })
    };
    let is_size = block_bytes.is_power_of_two() && (512..=LARGEST_PAGE).contains(&block_bytes);
    if is_size && (RelationFile::parse(path).is_some() || is_slru()) { Layout::Pages(block_bytes) } else { Layout::Content }
}

/// Tablespace, database and file name of a path in a database's folder.
fn place(path: &[u8]) -> Option<(Tablespace, u32, &[u8])> {
    let parts: Vec<&[u8]> = path.split(|&byte| byte == b'/').collect();
    match parts[..] {
        [b"global", name] => Some((Tablespace::Global, 0, name)),
        [b"base", database, name] => Some((Tablespace::Default, oid(database)?, name)),
        [TABLESPACE_FOLDER, tablespace, version, database, name] if version.starts_with(b"PG_") => {
            Some((Tablespace::Oid(oid(tablespace)?), oid(database)?, name))
        }
        _ => None,
    }
}

/// `FILENODE[_FORK][.SEGMENT]`.
fn file_name(name: &[u8]) -> Option<(u32, Fork, u32)> {
    let (name, segment) = match name.iter().position(|&byte| byte == b'.') {
        // The first segment has no number.
        Some(dot) => (&name[..dot], oid(&name[dot + 1..]).filter(|&number| number > 0)?),
        None => (name, 0),
    };
    let (filenode, fork) = match name.iter().position(|&byte| byte == b'_') {
        None => (name, Fork::Main),
        Some(at) => {
            let fork = match &name[at + 1..] {
                b"fsm" => Fork::FreeSpace,
                b"vm" => Fork::Visibility,
                b"init" => Fork::Init,
                _ => return None,
            };
            (&name[..at], fork)
        }
    };
    Some((oid(filenode)?, fork, segment))
}

/// `tBACKEND_FILENODE…` in a database's folder.
fn is_temporary_relation(path: &[u8]) -> bool {
    let Some((_, _, name)) = place(path) else { return false };
    let Some((backend, rest)) =
        name.strip_prefix(b"t").and_then(|rest| rest.iter().position(|&byte| byte == b'_').map(|at| (&rest[..at], &rest[at + 1..])))
    else {
        return false;
    };
    oid(backend).is_some() && file_name(rest).is_some()
}

/// A number as servers write it: digits without a leading zero (0 itself aside).
pub(in crate::source::postgres) fn oid(text: &[u8]) -> Option<u32> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) || (text.len() > 1 && text[0] == b'0') {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relation_paths() {
        let parsed = |path: &str| RelationFile::parse(path.as_bytes());
        let main = |tablespace, database, filenode, fork, segment| Some(RelationFile { tablespace, database, filenode, fork, segment });
        assert_eq!(parsed("global/1262"), main(Tablespace::Global, 0, 1262, Fork::Main, 0));
        assert_eq!(parsed("base/5/16384.17"), main(Tablespace::Default, 5, 16384, Fork::Main, 17));
        assert_eq!(parsed("base/5/16384_fsm"), main(Tablespace::Default, 5, 16384, Fork::FreeSpace, 0));
        assert_eq!(parsed("base/5/16384_vm.2"), main(Tablespace::Default, 5, 16384, Fork::Visibility, 2));
        assert_eq!(parsed("pg_tblspc/16400/PG_15_202209061/5/4294967295_init"), main(Tablespace::Oid(16400), 5, u32::MAX, Fork::Init, 0));
        for path in [
            "",
            "base",
            "base/5",
            "base/5/PG_VERSION",
            "base/5/pg_filenode.map",
            "base/5/t3_16384",
            "base/5/16384.0",
            "base/5/16384.",
            "base/5/016384",
            "base/5/16384_old",
            "base/5/16384.1_fsm",
            "base/5/4294967296",
            "base/x/1",
            "global/pg_control",
            "pg_tblspc/16400/5/16384",
            "pg_xact/0000",
            "base/5/16384/1",
            "other/5/16384",
        ] {
            assert_eq!(parsed(path), None, "{path}");
        }
        assert_eq!(parsed("base/5/1.17").unwrap().first_block(131_072), Some(17 * 131_072));
        assert_eq!(parsed("base/5/1.99999999").unwrap().first_block(131_072), None);
    }

    #[test]
    fn what_is_left_out() {
        for path in ["pg_wal", "pg_replslot", "pg_wal/archive_status", "pg_stat_tmp"] {
            assert_eq!(keep(path.as_bytes()), Keep::Empty, "{path}");
        }
        for path in [
            "pg_wal/000000010000000000000001",
            "pg_replslot/slot/state",
            "postmaster.pid",
            "backup_label",
            "base/pgsql_tmp",
            "base/pgsql_tmp/pgsql_tmp3.0",
            "base/5/pg_internal.init",
            "global/pg_internal.init.123",
            "base/5/t3_16384",
            "base/5/t3_16384_fsm.1",
            "pg_wal/archive_status/x.done",
            "pg_tblspc/16400/PG_15_202209061/pgsql_tmp",
            "pg_tblspc/16400/PG_15_202209061/5/t10_16384",
            "lifeboat_conf",
            "lifeboat_conf/recovery-point.json",
            "lifeboat_tablespaces",
            "lifeboat_tablespaces/16384/PG_15_202209061/5/16384",
        ] {
            assert_eq!(keep(path.as_bytes()), Keep::No, "{path}");
        }
        for path in [
            "PG_VERSION",
            "base/5/postmaster.pid",
            "base",
            "pg_xact/0000",
            "base/5/16384",
            "postgresql.auto.conf",
            "log/backup_label",
            "pg_walx/1",
            "base/lifeboat_conf",
            "lifeboat_confx",
            "pg_tblspc/16400/PG_15_202209061/lifeboat_tablespaces",
        ] {
            assert_eq!(keep(path.as_bytes()), Keep::Yes, "{path}");
        }
    }

    #[test]
    fn unlogged_relations_are_known_by_their_init_fork() {
        let has = |name: &[u8]| name == b"16384_init";
        for path in ["base/5/16384", "base/5/16384.1", "base/5/16384_fsm", "base/5/16384_vm"] {
            assert!(is_unlogged(path.as_bytes(), has), "{path}");
        }
        for path in ["base/5/16384_init", "base/5/16385", "base/5/PG_VERSION"] {
            assert!(!is_unlogged(path.as_bytes(), has), "{path}");
        }
    }

    #[test]
    fn pages_are_for_what_is_written_in_pages() {
        for path in ["base/5/16384", "global/1262_fsm", "pg_xact/0000", "pg_multixact/members/00FF", "pg_commit_ts/0001"] {
            assert_eq!(layout(path.as_bytes(), 8192), Layout::Pages(8192), "{path}");
        }
        for path in ["PG_VERSION", "global/pg_control", "pg_multixact/x/0000", "pg_logical/0000", "base/5/pg_filenode.map"] {
            assert_eq!(layout(path.as_bytes(), 8192), Layout::Content, "{path}");
        }
    }
}

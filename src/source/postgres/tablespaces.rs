//! Tablespaces of a restored data folder: kept in it, or led to folders that the operator names.
//!
//! What the source called their places may be in use on this host, so nothing is ever written there unless it is asked for by name. A link in `pg_tblspc` leads
//! to whole content at every moment: what moves to another file system is copied and flushed before the link changes.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Component, Path, PathBuf};

use crate::error::{Error, IoContext, Kind, Result};
use crate::source::TablespaceMapping;
use crate::source::postgres::backup::TablespacePlace;
use crate::source::postgres::instance::Account;
use crate::source::postgres::layout::TABLESPACES_INSIDE;
use crate::source::postgres::recover;

/// Folder in the data folder that they are kept in, by number.
pub const INSIDE: &str = TABLESPACES_INSIDE;
/// File that says that what is in a folder is a restore's that has not ended; its content is the target of that restore.
const MARK: &str = "lifeboat-restore-unfinished";

/// Keeps tablespaces in the data folder, behind links that hold wherever it is moved to. A folder in `pg_tblspc` is the tablespace: what the snapshot
/// of a restored server may have in its place besides is the same once more.
///
/// # Errors
/// As the system says.
pub fn keep_inside(data: &Path) -> Result<()> {
    let oids = recover::tablespaces_of(data)?;
    if oids.is_empty() {
        return Ok(());
    }
    let inside = data.join(INSIDE);
    let owner = fs::metadata(data).io_context(|| format!("look at {}", data.display()))?.uid();
    let failed = || format!("put the tablespaces into {}", inside.display());
    match fs::DirBuilder::new().mode(0o700).create(&inside) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(Error::io(failed(), error)),
        _ => {}
    }
    // Not root: everything belongs to who restores anyway.
    let own_all = Account::own().uid == 0;
    if own_all {
        chown(&inside, Some(owner), None).io_context(failed)?;
    }
    for oid in oids {
        let link = data.join("pg_tblspc").join(oid.to_string());
        if link.is_symlink() {
            continue;
        }
        let place = inside.join(oid.to_string());
        match fs::remove_dir_all(&place) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(Error::io(failed(), error)),
            _ => {}
        }
        fs::rename(&link, &place).io_context(failed)?;
        symlink(format!("../{INSIDE}/{oid}"), &link).io_context(failed)?;
        if own_all && owner != 0 {
            lchown(&link, Some(owner), None).io_context(failed)?;
        }
    }
    Ok(())
}

/// Checks a mapping before anything is restored; `known`: the folders of the source's tablespaces, `target`: the data folder to be, absolute.
///
/// # Errors
/// `Usage` when a tablespace is not known or named twice, or its new folder is not absolute, not empty, taken by another, or within the data folder.
pub fn check(mappings: &[TablespaceMapping], known: &[String], target: &Path) -> Result<()> {
    for (number, mapping) in mappings.iter().enumerate() {
        let refused = |why: &str| Error::new(Kind::Usage, format!("--tablespace-mapping {}={}: {why}", mapping.from, mapping.to.display()));
        if !known.contains(&mapping.from) {
            let there = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(refused("the snapshot has no tablespace with this folder").hint(format!("its tablespaces are: {there}")));
        }
        let upwards = mapping.to.components().any(|part| part == Component::ParentDir);
        if !mapping.to.is_absolute() || upwards || mapping.to.to_str().is_none_or(|text| text.contains(['\n', '\r'])) {
            return Err(refused("the new folder must be an absolute path of plain text, without .."));
        }
        if mapping.to.starts_with(target) || target.starts_with(&mapping.to) {
            return Err(refused("the new folder and the data folder must not be in one another"));
        }
        if mappings[..number].iter().any(|other| other.from == mapping.from) {
            return Err(refused("this tablespace was mapped before"));
        }
        if mappings[..number].iter().any(|other| other.to.starts_with(&mapping.to) || mapping.to.starts_with(&other.to)) {
            return Err(refused("another tablespace goes there"));
        }
        if !mapping.to.parent().is_some_and(Path::is_dir) {
            return Err(
                refused("the folder that the new one is to be in is not there").hint("make it, so that the server's user can enter it")
            );
        }
        free(&mapping.to, target)?;
    }
    Ok(())
}

/// Whether a folder may be used: not there, empty, or with what an interrupted restore to the same target has left.
fn free(folder: &Path, target: &Path) -> Result<()> {
    let mut items = match fs::read_dir(folder) {
        Ok(items) => items,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io(format!("look into {}", folder.display()), error)),
    };
    if items.next().is_none() {
        return Ok(());
    }
    match fs::read(folder.join(MARK)) {
        Ok(text) if text == target.as_os_str().as_bytes() => return Ok(()),
        Ok(text) => {
            let other = String::from_utf8_lossy(&text).into_owned();
            return Err(Error::new(Kind::Usage, format!("{} holds what a restore to {other} puts there", folder.display()))
                .hint("name another folder; if that restore was given up, empty this one"));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(Error::io(format!("look into {}", folder.display()), error)),
    }
    Err(Error::new(Kind::Usage, format!("{} is not empty: a tablespace is not put there", folder.display()))
        .hint("name a new or empty folder; if a restore was interrupted and left this, empty it"))
}

/// Leads tablespaces that are kept in the data folder, which will be at `target` (absolute), to other folders; where each of them now is.
///
/// # Errors
/// `Usage` for a folder that is in use; as the system says, and then the tablespace is still whole in the data folder.
pub fn map(data: &Path, target: &Path, places: &[TablespacePlace], mappings: &[TablespaceMapping]) -> Result<BTreeMap<u32, PathBuf>> {
    let mut mapped = BTreeMap::new();
    for mapping in mappings {
        let place = places.iter().find(|place| place.location.as_deref() == Some(mapping.from.as_str()));
        let place = place.ok_or_else(|| Error::new(Kind::Usage, format!("the snapshot has no tablespace in {}", mapping.from)))?;
        lead(data, target, place.oid, &mapping.to)?;
        mapped.insert(place.oid, mapping.to.clone());
    }
    let inside = data.join(INSIDE);
    // Stays where others are in it.
    if !mapped.is_empty() && fs::read_dir(&inside).is_ok_and(|mut items| items.next().is_none()) {
        fs::remove_dir(&inside).io_context(|| format!("remove {}", inside.display()))?;
    }
    Ok(mapped)
}

fn lead(data: &Path, target: &Path, oid: u32, to: &Path) -> Result<()> {
    let failed = || format!("put tablespace {oid} into {}", to.display());
    let link = data.join("pg_tblspc").join(oid.to_string());
    let from = data.join(INSIDE).join(oid.to_string());
    free(to, target)?;
    let about = fs::metadata(data).io_context(|| format!("look at {}", data.display()))?;
    match fs::DirBuilder::new().mode(0o700).create(to) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(Error::io(failed(), error)),
        _ => {}
    }
    let mark = to.join(MARK);
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&mark)
        .and_then(|mut file| file.write_all(target.as_os_str().as_bytes()).and_then(|()| file.sync_all()))
        .io_context(failed)?;
    for item in fs::read_dir(to).io_context(failed)? {
        let path = item.io_context(failed)?.path();
        if path != mark {
            let removed = if path.is_dir() && !path.is_symlink() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.io_context(failed)?;
        }
    }
    give(to, &about).io_context(failed)?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o700)).io_context(failed)?;
    for item in fs::read_dir(&from).io_context(failed)? {
        let path = item.io_context(failed)?.path();
        let there = to.join(path.file_name().unwrap_or_default());
        match fs::rename(&path, &there) {
            Err(error) if error.kind() == std::io::ErrorKind::CrossesDevices => copy(&path, &there)?,
            other => other.io_context(failed)?,
        }
    }
    let file_system = fs::File::open(to).io_context(failed)?;
    rustix::fs::syncfs(&file_system).map_err(std::io::Error::from).io_context(|| format!("flush {} to disk", to.display()))?;
    let new = link.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(Error::io(failed(), error)),
        _ => {}
    }
    symlink(to, &new).io_context(failed)?;
    if Account::own().uid == 0 {
        lchown(&new, Some(about.uid()), Some(about.gid())).io_context(failed)?;
    }
    fs::rename(&new, &link).io_context(failed)?;
    fs::remove_dir_all(&from).io_context(failed)?;
    // The server may start once the folder is in place: a mark that came back after a crash would give its tablespace away.
    fs::remove_file(&mark).and_then(|()| file_system.sync_all()).io_context(failed)
}

/// Gives what was made here to whom it belongs, where that is allowed.
fn give(path: &Path, about: &fs::Metadata) -> std::io::Result<()> {
    if Account::own().uid == 0 { chown(path, Some(about.uid()), Some(about.gid())) } else { Ok(()) }
}

/// Folders and plain files, with owners, modes and times.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let failed = || format!("copy {} to {}", from.display(), to.display());
    let about = fs::symlink_metadata(from).io_context(failed)?;
    if about.is_dir() {
        fs::DirBuilder::new().mode(0o700).create(to).io_context(failed)?;
        for item in fs::read_dir(from).io_context(failed)? {
            let path = item.io_context(failed)?.path();
            copy(&path, &to.join(path.file_name().unwrap_or_default()))?;
        }
    } else if about.is_file() {
        let copied = fs::copy(from, to).io_context(failed)?;
        if copied != about.len() {
            return Err(Error::new(Kind::Failed, format!("{}: {copied} of {} bytes were copied", failed(), about.len())));
        }
    } else {
        return Err(Error::new(Kind::Failed, format!("{}: neither a folder nor a plain file", failed())));
    }
    give(to, &about).io_context(failed)?;
    fs::set_permissions(to, about.permissions()).io_context(failed)?;
    let times = fs::FileTimes::new().set_modified(about.modified().io_context(failed)?);
    fs::File::open(to).and_then(|file| file.set_times(times)).io_context(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A data folder that keeps tablespace 7, with one file.
    fn restored(at: &Path) -> PathBuf {
        let data = at.join("partial");
        fs::create_dir_all(data.join("pg_tblspc")).unwrap();
        fs::create_dir_all(data.join(INSIDE).join("7/PG_15_1")).unwrap();
        fs::write(data.join(INSIDE).join("7/PG_15_1/16384"), "rows").unwrap();
        symlink(format!("../{INSIDE}/7"), data.join("pg_tblspc/7")).unwrap();
        data
    }

    #[test]
    fn what_a_snapshot_has_in_the_place_of_a_tablespace_gives_way_to_the_tablespace() {
        let folder = tempfile::tempdir().unwrap();
        let data = restored(folder.path());
        fs::remove_file(data.join("pg_tblspc/7")).unwrap();
        fs::create_dir_all(data.join("pg_tblspc/7/PG_15_1")).unwrap();
        fs::write(data.join("pg_tblspc/7/PG_15_1/16385"), "more rows").unwrap();
        for _ in 0..2 {
            keep_inside(&data).unwrap();
            assert_eq!(fs::read_link(data.join("pg_tblspc/7")).unwrap(), Path::new("../lifeboat_tablespaces/7"));
            assert_eq!(fs::read(data.join("pg_tblspc/7/PG_15_1/16385")).unwrap(), b"more rows");
            assert!(!data.join("pg_tblspc/7/PG_15_1/16384").exists(), "not a mixture");
        }
    }

    fn mapped(data: &Path, target: &Path, to: &Path) -> Result<BTreeMap<u32, PathBuf>> {
        let place = TablespacePlace { oid: 7, location: Some("/source".into()) };
        map(data, target, &[place], &[TablespaceMapping { from: "/source".into(), to: to.to_owned() }])
    }

    #[test]
    fn only_what_the_same_restore_has_left_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (data, to, target) = (restored(folder.path()), folder.path().join("new"), folder.path().join("target"));
        fs::create_dir(&to).unwrap();
        for (mark, said) in [(None, "not empty"), (Some("/another"), "a restore to /another")] {
            fs::write(to.join("somebody's"), "file").unwrap();
            mark.inspect(|text| fs::write(to.join(MARK), text).unwrap());
            let error = mapped(&data, &target, &to).unwrap_err();
            assert_eq!(error.kind(), Kind::Usage);
            assert!(error.to_string().contains(said), "{error}");
            assert_eq!(fs::read(to.join("somebody's")).unwrap(), b"file");
            assert_eq!(fs::read(data.join("pg_tblspc/7/PG_15_1/16384")).unwrap(), b"rows");
        }
        fs::write(to.join(MARK), target.as_os_str().as_bytes()).unwrap();
        assert_eq!(mapped(&data, &target, &to).unwrap()[&7], to);
        assert_eq!(fs::read_link(data.join("pg_tblspc/7")).unwrap(), to);
        assert_eq!(fs::read(to.join("PG_15_1/16384")).unwrap(), b"rows");
        assert_eq!(fs::read_dir(&to).unwrap().count(), 1, "no mark is left, and nothing of before");
        assert!(!data.join(INSIDE).exists());
    }
}

//! The place a restore goes to: what stands there, moving it aside, and the one rename that makes the restored thing appear.
//!
//! The order matters at two points. What stands there is moved aside before the new appears, so nothing is ever overwritten; and a
//! database file goes before its `-wal`, `-shm` and `-journal`: the other way round, a crash between would leave an old database that
//! looks whole without the transactions of its log.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags};

use crate::error::{Error, IoContext, Kind, Result};
use crate::ops::Existing;
use crate::ops::work::movable;
use crate::source::postgres::instance;

/// Bytes that a file name has at most on all usual file systems.
const LONGEST_NAME: usize = 255;
/// What belongs to a SQLite database beside its file.
const SQLITE_SIBLINGS: [&str; 3] = ["-wal", "-shm", "-journal"];

/// What a target is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// One file.
    File {
        /// A SQLite database, with files that belong to it beside it.
        sqlite: bool,
    },
    /// A folder.
    Folder,
}

/// A target that can be one: absolute, named, in a folder that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    target: PathBuf,
    parent: PathBuf,
    name: OsString,
    shape: Shape,
}

impl Place {
    /// # Errors
    /// `Usage` when nothing can be restored there, whatever the operator confirms.
    pub(crate) fn new(to: &Path, shape: Shape) -> Result<Self> {
        let refuse = |why: &str, hint: &str| Err(Error::new(Kind::Usage, format!("restore to {}: {why}", to.display())).hint(hint));
        let target = std::path::absolute(to).io_context(|| format!("make {} an absolute path", to.display()))?;
        let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else {
            return refuse("that names no file or folder", "name a new file or folder");
        };
        if name.len() > LONGEST_NAME {
            return refuse("that name is too long", "name a file or folder with at most 255 bytes in its name");
        }
        let (parent, name) = (parent.to_owned(), name.to_owned());
        match fs::metadata(&parent) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => return refuse(&format!("{} is not a folder", parent.display()), "name a target in a folder that exists"),
            Err(source) if source.kind() == io::ErrorKind::NotFound => {
                return refuse(&format!("folder {} does not exist", parent.display()), "make it first (mkdir -p), or name another target");
            }
            Err(source) => return Err(Error::io(format!("look at {}", parent.display()), source)),
        }
        let place = Self { target, parent, name, shape };
        place.check_shape()?;
        Ok(place)
    }

    fn check_shape(&self) -> Result<()> {
        let refuse =
            |why: String, hint: &str| Err(Error::new(Kind::Usage, format!("restore to {}: {why}", self.target.display())).hint(hint));
        // Whatever is restored: nothing of a server may be moved away below it, and nothing be put between its files.
        instance::refuse_running(&self.target)?;
        let Some(metadata) = look(&self.target)? else { return Ok(()) };
        match self.shape {
            Shape::File { .. } if metadata.is_dir() => refuse("that is a folder, and this restores one file".into(), "name a file in it"),
            Shape::Folder if metadata.is_file() => {
                refuse("that is a file, and this restores a folder".into(), "name a new or empty folder")
            }
            Shape::Folder if metadata.is_dir() => {
                let parent = fs::metadata(&self.parent).io_context(|| format!("look at {}", self.parent.display()))?;
                if parent.dev() == metadata.dev() {
                    Ok(())
                } else {
                    // It could neither be renamed nor moved aside, so nothing could appear there at once.
                    refuse("that is where a file system is mounted".into(), "name a folder in it")
                }
            }
            _ => Ok(()),
        }
    }

    /// The absolute path.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    /// The folder it is in.
    pub(crate) fn parent(&self) -> &Path {
        &self.parent
    }

    /// The private folder beside it where a restore works.
    pub(crate) fn partial(&self) -> PathBuf {
        partial_in(&self.parent, &self.name)
    }

    /// The same of an absolute path that may turn out not to be a place.
    pub(crate) fn partial_beside(target: &Path) -> Result<PathBuf> {
        match (target.parent(), target.file_name()) {
            (Some(parent), Some(name)) => Ok(partial_in(parent, name)),
            _ => Err(Error::new(Kind::Usage, format!("restore to {}: that names no file or folder", target.display()))),
        }
    }

    /// The word that confirms a restore into place.
    pub(crate) fn confirmation(&self) -> String {
        self.name.to_string_lossy().into_owned()
    }

    /// What would have to be moved aside; `id` names this restore. An empty folder is not in the way of a folder.
    pub(crate) fn standing(&self, id: &str) -> Result<Vec<Existing>> {
        let mut standing = Vec::new();
        for (path, aside) in self.candidates(id) {
            if let Some(metadata) = look(&path)?
                && !(self.shape == Shape::Folder && metadata.is_dir() && is_empty(&path)?)
            {
                standing.push(Existing {
                    path: path.display().to_string(),
                    what: describe(&path, &metadata)?,
                    moved_to: aside.display().to_string(),
                });
            }
        }
        Ok(standing)
    }

    /// What [`put`](Self::put) will move aside: what stands there, if it is among `confirmed`.
    ///
    /// # Errors
    /// `Usage` when anything else has come to stand there.
    pub(crate) fn movable(&self, id: &str, confirmed: &[Existing]) -> Result<Vec<Existing>> {
        self.check_shape()?;
        let standing = self.standing(id)?;
        let strangers: Vec<String> =
            standing.iter().filter(|m| confirmed.iter().all(|c| c.path != m.path)).map(|m| format!("{} ({})", m.path, m.what)).collect();
        if strangers.is_empty() {
            return Ok(standing);
        }
        Err(Error::new(
            Kind::Usage,
            format!("put the restored content at {}: appeared there meanwhile: {}", self.target.display(), strangers.join(", ")),
        )
        .hint("nothing was moved; look at what it is and stop the program that made it; the restored content is complete beside it, and the same command with --resume puts it into place"))
    }

    /// Whether something stands there whose name aside is taken: this restore moved it aside once, and it came again.
    pub(crate) fn is_spent(&self, id: &str) -> Result<bool> {
        for (path, aside) in self.candidates(id) {
            if look(&path)?.is_some() && look(&aside)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Moves what stands there aside and lets `whole` appear. `whole` must be flushed already and on the same file system.
    ///
    /// # Errors
    /// As [`movable`](Self::movable): then nothing was moved.
    pub(crate) fn put(&self, whole: &Path, id: &str, confirmed: &[Existing]) -> Result<()> {
        self.movable(id, confirmed)?;
        for (path, aside) in self.candidates(id) {
            if let Some(metadata) = look(&path)?
                && !(self.shape == Shape::Folder && metadata.is_dir() && is_empty(&path)?)
            {
                rename_new(&path, &aside).io_context(|| format!("move {} aside to {}", path.display(), aside.display()))?;
            }
        }
        self.appear(whole)?;
        sync_folder(&self.parent)?;
        self.nothing_stale()
    }

    fn appear(&self, whole: &Path) -> Result<()> {
        let what = || format!("put the restored content at {}", self.target.display());
        let result = if self.shape == Shape::Folder && look(&self.target)?.is_some_and(|m| m.is_dir()) {
            // Replaces a folder only when it is (still) empty.
            movable(whole, || fs::rename(whole, &self.target))
        } else {
            movable(whole, || rename_new(whole, &self.target))
        };
        match result {
            Err(source) if matches!(source.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty) => {
                Err(Error::new(Kind::Usage, format!("{}: something has appeared there meanwhile", what())).hint(
                    "see what it is; the restored content is complete beside it, and the same command with --resume puts it into place",
                ))
            }
            other => other.io_context(what),
        }
    }

    /// A log of another database beside a restored one would be replayed into it.
    pub(crate) fn nothing_stale(&self) -> Result<()> {
        for sibling in self.siblings() {
            if look(&sibling)?.is_some() {
                return Err(Error::new(Kind::Failed, format!("{} has appeared beside the restored database", sibling.display()))
                    .hint("stop the program that uses the database, and restore again"));
            }
        }
        Ok(())
    }

    /// Paths that must be free, with where each is moved, in the order to move them.
    fn candidates(&self, id: &str) -> Vec<(PathBuf, PathBuf)> {
        let ending = format!(".before-restore-{id}");
        // With room for what a database has beside it: all of that goes under one name.
        let room = LONGEST_NAME - ending.len() - self.suffixes().iter().map(|suffix| suffix.len()).max().unwrap_or(0);
        let aside = suffixed(&self.parent.join(cut(&self.name, room)), &ending);
        let siblings = self.suffixes().iter().map(|suffix| (suffixed(&self.target, suffix), suffixed(&aside, suffix)));
        std::iter::once((self.target.clone(), aside.clone())).chain(siblings).collect()
    }

    fn siblings(&self) -> Vec<PathBuf> {
        self.suffixes().iter().map(|suffix| suffixed(&self.target, suffix)).collect()
    }

    fn suffixes(&self) -> &'static [&'static str] {
        if self.shape == (Shape::File { sqlite: true }) { &SQLITE_SIBLINGS } else { &[] }
    }
}

fn partial_in(parent: &Path, target: &OsStr) -> PathBuf {
    const ENDING: &str = ".lifeboat-partial";
    let mut name = OsString::from(".");
    if target.len() + 1 + ENDING.len() <= LONGEST_NAME {
        name.push(target);
    } else {
        // What is cut off still tells two targets apart.
        let digest = blake3::hash(target.as_bytes()).to_hex();
        name.push(cut(target, LONGEST_NAME - 1 - ENDING.len() - 17));
        name.push(format!("~{}", &digest[..16]));
    }
    name.push(ENDING);
    parent.join(name)
}

/// The beginning of a name, not cut within a character.
fn cut(name: &OsStr, most: usize) -> &OsStr {
    let bytes = name.as_bytes();
    if bytes.len() <= most {
        return name;
    }
    let end = name.to_str().map_or(most, |text| text.floor_char_boundary(most));
    OsStr::from_bytes(&bytes[..end])
}

/// Bytes that an ordinary user may still write on the file system of `folder`.
pub(crate) fn free_bytes(folder: &Path) -> Result<u64> {
    let stat = rustix::fs::statvfs(folder).map_err(io::Error::from).io_context(|| format!("ask for free space at {}", folder.display()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Flushes a folder's entries to disk.
pub(crate) fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|f| f.sync_all()).io_context(|| format!("flush folder {}", folder.display()))
}

fn look(path: &Path) -> Result<Option<fs::Metadata>> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        // What has a name too long to be, is not.
        Err(source) if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::InvalidFilename) => {
            Ok(None)
        }
        Err(source) => Err(Error::io(format!("look at {}", path.display()), source)),
    }
}

fn is_empty(folder: &Path) -> Result<bool> {
    Ok(fs::read_dir(folder).io_context(|| format!("list {}", folder.display()))?.next().is_none())
}

fn describe(path: &Path, metadata: &fs::Metadata) -> Result<String> {
    if metadata.is_dir() {
        let count = fs::read_dir(path).io_context(|| format!("list {}", path.display()))?.count();
        Ok(format!("a folder with {count} {}", if count == 1 { "entry" } else { "entries" }))
    } else if metadata.is_file() {
        Ok(format!("a file of {} bytes", metadata.len()))
    } else if metadata.is_symlink() {
        Ok("a symbolic link".into())
    } else {
        Ok("something that is neither file nor folder".into())
    }
}

/// Renames only where nothing is.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(errno) if errno == rustix::io::Errno::INVAL || errno == rustix::io::Errno::NOSYS => {
            // A file system without the flag: look first.
            if fs::symlink_metadata(to).is_ok() {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            fs::rename(from, to)
        }
        other => other.map_err(io::Error::from),
    }
}

fn suffixed(path: &Path, suffix: &(impl AsRef<OsStr> + ?Sized)) -> PathBuf {
    let mut text = path.as_os_str().to_owned();
    text.push(suffix.as_ref());
    PathBuf::from(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SQLITE: Shape = Shape::File { sqlite: true };

    fn refusal(to: &Path, shape: Shape) -> String {
        let error = Place::new(to, shape).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage);
        assert!(error.hint_text().is_some());
        error.to_string()
    }

    #[test]
    fn places_where_nothing_can_be_restored_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "x").unwrap();
        assert!(refusal(Path::new("/"), Shape::Folder).contains("names no file"));
        assert!(refusal(&folder.path().join("no/such"), SQLITE).contains("does not exist"));
        assert!(refusal(folder.path(), SQLITE).contains("is a folder"));
        assert!(refusal(&folder.path().join("file"), Shape::Folder).contains("is a file"));
        assert!(refusal(&folder.path().join("file/x"), SQLITE).contains("not a folder"));
        assert!(refusal(Path::new("/proc"), Shape::Folder).contains("mounted"));
    }

    #[test]
    fn nothing_is_put_into_a_data_folder() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("PG_VERSION"), "17\n").unwrap();
        fs::create_dir(folder.path().join("base")).unwrap();
        fs::write(folder.path().join("base/there"), "x").unwrap();
        for name in ["base/there", "base/new", "new"] {
            for shape in [SQLITE, Shape::File { sqlite: false }] {
                assert!(refusal(&folder.path().join(name), shape).contains("the data folder of a PostgreSQL"), "{name}");
            }
        }
        assert!(refusal(&folder.path().join("base/new"), Shape::Folder).contains("the data folder of a PostgreSQL"));
        assert!(refusal(&folder.path().join("base"), Shape::Folder).contains("the data folder of a PostgreSQL"));
    }

    #[test]
    fn a_database_goes_aside_with_its_log() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("crm.db");
        for (suffix, text) in [("", "old"), ("-wal", "log"), ("-shm", "memory")] {
            fs::write(suffixed(&target, suffix), text).unwrap();
        }
        let whole = folder.path().join("whole");
        fs::write(&whole, "new").unwrap();
        let place = Place::new(&target, SQLITE).unwrap();
        let moved = place.standing("01x").unwrap();
        let refused = place.put(&whole, "01x", &moved[..1]).unwrap_err();
        assert!(refused.hint_text().unwrap().contains("--resume") && refused.to_string().contains("crm.db-wal"), "{refused}");
        assert_eq!(fs::read_to_string(&target).unwrap(), "old", "nothing was moved");
        place.put(&whole, "01x", &moved).unwrap();
        assert_eq!(moved.len(), 3);
        assert!(place.is_spent("01x").unwrap() && !place.is_spent("01y").unwrap());
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
        assert_eq!(read("crm.db"), "new");
        assert_eq!(read("crm.db.before-restore-01x"), "old");
        assert_eq!(read("crm.db.before-restore-01x-wal"), "log");
        assert!(place.siblings().iter().all(|p| !p.exists()));
    }

    #[test]
    fn an_orphaned_log_is_something_in_the_way() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("crm.db");
        fs::write(suffixed(&target, "-wal"), "log").unwrap();
        assert_eq!(Place::new(&target, SQLITE).unwrap().standing("1").unwrap().len(), 1);
        assert_eq!(Place::new(&target, Shape::File { sqlite: false }).unwrap().standing("1").unwrap().len(), 0);
    }

    #[test]
    fn the_longest_names_are_moved_aside_too() {
        let folder = tempfile::tempdir().unwrap();
        let id = "01m5wjtzs7v6sf2gazmcb3gm00";
        for (name, other) in [("x".repeat(247), "y"), ("ü".repeat(123), "ä"), ("z".repeat(255), "y")] {
            let target = folder.path().join(&name);
            let place = Place::new(&target, SQLITE).unwrap();
            let partial = place.partial();
            fs::create_dir(&partial).unwrap();
            let twin = Place::new(&folder.path().join(format!("{}{other}", &name[..name.len() - other.len()])), SQLITE).unwrap();
            assert_ne!(twin.partial(), partial);
            fs::write(&target, "old").unwrap();
            let log = suffixed(&target, "-wal");
            let logged = fs::write(&log, "log").is_ok();
            fs::write(partial.join("whole"), "new").unwrap();
            let moved = place.standing(id).unwrap();
            place.put(&partial.join("whole"), id, &moved).unwrap();
            assert_eq!(moved.len(), 1 + usize::from(logged), "{moved:?}");
            assert!(moved.iter().all(|m| m.moved_to.contains(&format!(".before-restore-{id}"))));
            assert_eq!(fs::read_to_string(&moved[0].moved_to).unwrap(), "old");
            assert!(!logged || moved[1].moved_to == format!("{}-wal", moved[0].moved_to), "{moved:?}");
            assert_eq!(fs::read_to_string(&target).unwrap(), "new");
        }
        assert!(refusal(&folder.path().join("x".repeat(256)), SQLITE).contains("too long"));
    }

    #[test]
    fn a_folder_that_its_owner_may_not_write_goes_into_place_with_its_mode() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        crate::source::files::apply::tests::unprivileged(folder.path(), || {
            let (inner, target) = (folder.path().join("inner"), folder.path().join("target"));
            for over in [false, true] {
                fs::create_dir_all(inner.join("whole/below")).unwrap();
                fs::set_permissions(inner.join("whole"), fs::Permissions::from_mode(0o555)).unwrap();
                if over {
                    fs::set_permissions(&target, fs::Permissions::from_mode(0o755)).unwrap();
                    fs::remove_dir(target.join("below")).unwrap();
                }
                Place::new(&target, Shape::Folder).unwrap().put(&inner.join("whole"), "01x", &[]).unwrap();
                assert!(target.join("below").is_dir());
                assert_eq!(fs::metadata(&target).unwrap().mode() & 0o7777, 0o555);
            }
        });
    }

    #[test]
    fn an_empty_folder_is_replaced_and_a_full_one_moved_aside() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("target");
        let place = |whole: &str| {
            let whole = folder.path().join(whole);
            fs::create_dir(&whole).unwrap();
            fs::write(whole.join("new"), "x").unwrap();
            let place = Place::new(&target, Shape::Folder).unwrap();
            let moved = place.standing("01x").unwrap();
            place.put(&whole, "01x", &moved).unwrap();
            moved
        };
        fs::create_dir(&target).unwrap();
        assert!(place("first").is_empty());
        assert!(target.join("new").exists());
        fs::write(target.join("old"), "x").unwrap();
        let moved = place("second");
        assert_eq!(moved[0].what, "a folder with 2 entries");
        assert!(!target.join("old").exists());
        assert!(Path::new(&moved[0].moved_to).join("old").exists());
    }
}

//! A folder as a store. Reading is `object_store`'s `LocalFileSystem`, except listing, for which it looks four times at each file and takes one
//! that it may not look at for none; writing is our own, because of what its `with_fsync` (0.14) leaves open:
//!
//! - it syncs the file, links it in, and syncs the folder and those parent folders that *this* call made; a call that finds the
//!   folder made a moment ago by another one (or by a process that then died) does not sync its entry and still reports success;
//! - "already exists" is reported for a link whose folder was never synced by the one who made it;
//! - deletes are never synced, so after a crash a later delete may have happened and an earlier one not;
//! - files and folders get the mode of the process's umask.
//!
//! A folder on a file system that is not mounted any more is away, not empty: what was seen as the root first must still be there, and is never made again.
//!
//! Here: a temporary file `name#digits` of mode 0600 in the same folder (such names are invisible to `LocalFileSystem`), written
//! and synced, linked to its name (which fails if the name is taken), folder synced. Each folder's entry in its parent is synced
//! once per process and folder before anything in it counts, whoever made it; folders are 0700. Deletes sync their folder.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use object_store::local::LocalFileSystem;

use crate::error::{Error, IoContext, Kind, Result};
use crate::event::Pulse;
use crate::store::backend::{Backend, PutMode, Want};
use crate::store::limits::Rate;
use crate::store::objects::Objects;
use crate::store::refusal::Refusals;
use crate::store::{ObjectInfo, is_listed};

/// A temporary file that was not touched for so long belongs to a process that is gone.
const ABANDONED: Duration = Duration::from_hours(24);

/// The object that tells one repository from another, and is never changed.
const IDENTITY: &str = "format";

/// A local folder.
#[derive(Debug, Clone)]
pub(crate) struct Local(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    /// Made once the root exists.
    reading: OnceLock<Objects>,
    /// The root, since it was seen.
    seen: Mutex<Option<Seen>>,
    /// Folders whose entry in their parent is known to be on disk.
    settled: Mutex<HashSet<PathBuf>>,
    refusals: Refusals,
    download: Option<Arc<Rate>>,
}

/// A root that was seen.
#[derive(Debug)]
struct Seen {
    device: u64,
    inode: u64,
    /// What [`IDENTITY`] says, once it is there.
    identity: Option<Vec<u8>>,
}

impl Local {
    /// Nothing is touched: the root is made by the first create, unless it was there before.
    pub fn new(root: PathBuf, refusals: Refusals, download: Option<Arc<Rate>>) -> Self {
        Self(Arc::new(Inner { root, reading: OnceLock::new(), seen: Mutex::default(), settled: Mutex::default(), refusals, download }))
    }

    /// Whether the root is there: [`Inner::is_there`], which may block.
    async fn is_there(&self) -> Result<bool> {
        let inner = self.0.clone();
        blocking(move || inner.is_there()).await
    }

    /// `None` while there is no root.
    async fn reading(&self) -> Result<Option<&Objects>> {
        let inner = &*self.0;
        if let Some(reading) = inner.reading.get() {
            return Ok(Some(reading));
        }
        if !self.is_there().await? {
            return Ok(None);
        }
        let files = LocalFileSystem::new_with_prefix(&inner.root).map_err(|error| inner.refusals.error("open", "", error))?;
        let files = Arc::new(files);
        let objects = Objects {
            writer: files.clone(),
            locked: None,
            reader: files,
            prefix: object_store::path::Path::ROOT,
            refusals: inner.refusals.clone(),
            download: inner.download.clone(),
        };
        Ok(Some(inner.reading.get_or_init(|| objects)))
    }

    fn absent(&self, operation: &str, key: &str) -> Error {
        Error::new(Kind::NotFound, self.0.refusals.message(operation, key))
    }

    /// An object that is not there is missing only while its root is.
    async fn or_away<T>(&self, found: Result<T>) -> Result<T> {
        if found.as_ref().is_err_and(|error| error.kind() == Kind::NotFound) {
            self.is_there().await?;
        }
        found
    }
}

impl Backend for Local {
    fn put<'a>(&'a self, key: &'a str, bytes: Bytes, mode: PutMode) -> BoxFuture<'a, Result<()>> {
        let (inner, key) = (self.0.clone(), key.to_owned());
        blocking(move || inner.put(&key, &bytes, mode)).boxed()
    }

    fn get<'a>(&'a self, key: &'a str, want: Want) -> BoxFuture<'a, Result<Bytes>> {
        async move {
            match self.reading().await? {
                Some(objects) => self.or_away(objects.get(key, want).await).await,
                None => Err(self.absent("read", key)),
            }
        }
        .boxed()
    }

    fn file(&self, key: &str) -> Option<PathBuf> {
        self.0.download.is_none().then(|| self.0.root.join(key))
    }

    fn head<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<ObjectInfo>> {
        async move {
            match self.reading().await? {
                Some(objects) => self.or_away(objects.head(key).await).await,
                None => Err(self.absent("look at", key)),
            }
        }
        .boxed()
    }

    fn list<'a>(&'a self, prefix: &'a str, pulse: &'a Pulse) -> BoxFuture<'a, Result<Vec<ObjectInfo>>> {
        async move {
            if self.reading().await?.is_none() {
                return Ok(Vec::new());
            }
            let (inner, prefix, pulse) = (self.0.clone(), prefix.to_owned(), pulse.clone());
            let listed = blocking(move || inner.list(prefix, &pulse)).await?;
            // What went away meanwhile looks empty.
            self.is_there().await?;
            Ok(listed)
        }
        .boxed()
    }

    fn delete<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<()>> {
        let (inner, key) = (self.0.clone(), key.to_owned());
        blocking(move || inner.delete(&key)).boxed()
    }

    fn delete_together<'a>(&'a self, keys: &'a [&'a str]) -> Option<BoxFuture<'a, Vec<Result<()>>>> {
        let inner = self.0.clone();
        let owned: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
        let deleted = async move {
            match blocking(move || Ok(inner.delete_together(&owned))).await {
                Ok(deleted) => deleted,
                Err(error) => keys.iter().map(|_| Err(Error::new(error.kind(), error.to_string()))).collect(),
            }
        };
        Some(deleted.boxed())
    }
}

/// Runs `work` where it may block. It runs to its end even when the future is dropped.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::new(Kind::Bug, "a file operation was cut short").because(error)),
    }
}

/// Links to folders that a listing follows on the way to an object: more of them are a circle.
const LINKS: u8 = 8;

impl Inner {
    /// Whether the root is there; `false` only before it was ever seen.
    ///
    /// # Errors
    /// [`Kind::Unavailable`] when it is gone since, or another folder without the same repository is in its place: a file system that was unmounted.
    fn is_there(&self) -> Result<bool> {
        let found = match fs::metadata(&self.root) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => None,
            Err(error) => return Err(Error::io(self.refusals.message("open", ""), error)),
            Ok(found) if !found.is_dir() => {
                return Err(Error::new(Kind::Usage, format!("{}: not a folder", self.refusals.message("open", ""))));
            }
            Ok(found) => Some((found.dev(), found.ino())),
        };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let identity = || fs::read(self.root.join(IDENTITY)).ok();
        match (found, &mut *seen) {
            (None, None) => Ok(false),
            (Some((device, inode)), None) => {
                *seen = Some(Seen { device, inode, identity: identity() });
                Ok(true)
            }
            (Some(found), Some(seen)) if found == (seen.device, seen.inode) => {
                if seen.identity.is_none() {
                    seen.identity = identity();
                }
                Ok(true)
            }
            // Mounted again, it may have other numbers.
            (Some((device, inode)), Some(seen)) if seen.identity.is_some() && seen.identity == identity() => {
                (seen.device, seen.inode) = (device, inode);
                self.settled.lock().unwrap_or_else(PoisonError::into_inner).clear();
                Ok(true)
            }
            (_, Some(_)) => Err(Error::new(
                Kind::Unavailable,
                format!("{}: the folder is gone, or another one is in its place", self.refusals.message("open", "")),
            )
            .hint("is its file system still mounted? Nothing is stored until the folder is back")),
        }
    }

    /// Every object below a folder, with one look at each and none at its path: a repository has thousands. A folder that is not there is empty.
    fn list(&self, prefix: String, pulse: &Pulse) -> Result<Vec<ObjectInfo>> {
        let refused = |key: &str, error| Error::io(self.refusals.message("list", key), error);
        // What a process removes while this goes on is not there.
        let gone = |error: &io::Error| matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory);
        let mut objects = Vec::new();
        let mut folders = vec![(prefix, 0)];
        while let Some((folder, links)) = folders.pop() {
            let entries = match fs::read_dir(self.root.join(&folder)) {
                Ok(entries) => entries,
                Err(error) if gone(&error) => continue,
                Err(error) => return Err(refused(&folder, error)),
            };
            for entry in entries {
                pulse.beat();
                let entry = entry.map_err(|error| refused(&folder, error))?;
                let name = entry.file_name();
                // What is no text has a character in place of that which no key has.
                let name = &*name.to_string_lossy();
                let key = if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") };
                let is_link = entry.file_type().map_err(|error| refused(&key, error))?.is_symlink();
                let about = match if is_link { fs::metadata(entry.path()) } else { entry.metadata() } {
                    Ok(about) => about,
                    Err(error) if gone(&error) => continue,
                    Err(error) => return Err(refused(&key, error)),
                };
                if about.is_dir() && !is_listed(name) {
                    // Whatever is in there is nobody's object: it is shown as one thing, to be passed over.
                    objects.push(ObjectInfo { key, size: 0, modified: chrono::DateTime::UNIX_EPOCH });
                } else if about.is_dir() {
                    let links = links + u8::from(is_link);
                    if links > LINKS {
                        return Err(Error::new(Kind::Failed, format!("{}: links go in a circle", self.refusals.message("list", &key))));
                    }
                    folders.push((key, links));
                } else if about.is_file() && !is_temporary(name) {
                    let modified = about.modified().map_err(|error| refused(&key, error))?;
                    objects.push(ObjectInfo { key, size: about.len(), modified: modified.into() });
                }
            }
        }
        Ok(objects)
    }

    fn put(&self, key: &str, bytes: &Bytes, mode: PutMode) -> Result<()> {
        let message = || self.refusals.message("write", key);
        self.is_there()?;
        let path = self.root.join(key);
        let folder = path.parent().unwrap_or(&self.root).to_owned();
        let mut settled_again = false;
        let temporary = loop {
            self.settle(&folder).io_context(message)?;
            match Temporary::beside(&path) {
                Ok(temporary) => break temporary,
                // Somebody removed the folder since it was settled.
                Err(error) if error.kind() == io::ErrorKind::NotFound && !settled_again => {
                    settled_again = true;
                    self.settled.lock().unwrap_or_else(PoisonError::into_inner).clear();
                }
                Err(error) => return Err(Error::io(message(), error)),
            }
        };
        temporary.fill(bytes).io_context(message)?;
        let linked = match mode {
            PutMode::Create => temporary.link(&path),
            PutMode::Overwrite => temporary.replace(&path),
        };
        // Also when the name was taken: whoever took it may have died before its own sync.
        let taken = matches!(&linked, Err(error) if error.kind() == io::ErrorKind::AlreadyExists);
        if linked.is_ok() || taken {
            sync_folder(&folder).io_context(message)?;
        }
        drop(temporary);
        // Written to what was below a file system that went away meanwhile, it is not stored.
        if !self.is_there()? {
            return Err(Error::new(Kind::Unavailable, message()));
        }
        if taken { Err(Error::new(Kind::AlreadyExists, message())) } else { linked.io_context(message) }
    }

    fn delete(&self, key: &str) -> Result<()> {
        let message = || self.refusals.message("delete", key);
        self.is_there()?;
        let path = self.root.join(key);
        match fs::remove_file(&path) {
            Ok(()) => sync_folder(path.parent().unwrap_or(&self.root)).io_context(message),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Error::io(message(), error)),
        }
    }

    /// All are of one folder, which is synced once.
    fn delete_together(&self, keys: &[String]) -> Vec<Result<()>> {
        if let Err(error) = self.is_there() {
            return keys.iter().map(|_| Err(Error::new(error.kind(), error.to_string()))).collect();
        }
        let path = |key: &str| self.root.join(key);
        let failed = |key: &str, error| Error::io(self.refusals.message("delete", key), error);
        let removed: Vec<io::Result<()>> = keys.iter().map(|key| fs::remove_file(path(key))).collect();
        let folder = keys.first().map(|key| path(key)).and_then(|path| path.parent().map(Path::to_owned));
        let synced = match folder.filter(|_| removed.iter().any(io::Result::is_ok)) {
            Some(folder) => sync_folder(&folder),
            None => Ok(()),
        };
        let of_one = |(key, removed): (&String, io::Result<()>)| match (removed, &synced) {
            (Ok(()), Ok(())) => Ok(()),
            (Ok(()), Err(error)) => Err(failed(key, io::Error::new(error.kind(), error.to_string()))),
            (Err(error), _) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            (Err(error), _) => Err(failed(key, error)),
        };
        keys.iter().zip(removed).map(of_one).collect()
    }

    /// Makes `folder` and its parents where they are missing, and sees that their entries are on disk.
    fn settle(&self, folder: &Path) -> io::Result<()> {
        if self.settled.lock().unwrap_or_else(PoisonError::into_inner).contains(folder) {
            return Ok(());
        }
        let root_existed = self.root.is_dir();
        // What stands above the root already; everything below it may be new.
        let anchor = self.root.ancestors().skip(1).find(|above| above.is_dir()).map(Path::to_owned);
        // Only the first create makes the root: one that went away is not to be made again.
        if self.seen.lock().unwrap_or_else(PoisonError::into_inner).is_some() && !root_existed {
            return Err(io::ErrorKind::NotFound.into());
        }
        if !folder.is_dir() {
            DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        for parent in folder.ancestors().skip(1) {
            let is_anchor = anchor.as_deref() == Some(parent);
            match sync_folder(parent) {
                // The folder that holds the root need not be readable for us; then we did not make the root in it either.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied && is_anchor && root_existed => {}
                result => result?,
            }
            if is_anchor {
                break;
            }
        }
        sweep(folder);
        self.settled.lock().unwrap_or_else(PoisonError::into_inner).insert(folder.to_owned());
        Ok(())
    }
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Removes what dead processes left half-written. What cannot be removed only costs room.
fn sweep(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let is_temporary = entry.file_name().to_str().is_some_and(is_temporary);
        let is_old = || entry.metadata().and_then(|m| m.modified()).is_ok_and(|at| at.elapsed().is_ok_and(|age| age > ABANDONED));
        if is_temporary && is_old() {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Whether a name is one of a file on its way.
fn is_temporary(name: &str) -> bool {
    name.split_once('#').is_some_and(|(_, number)| !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit()))
}

/// A file on its way; its name is removed on drop.
struct Temporary {
    path: PathBuf,
    file: File,
}

impl Temporary {
    fn beside(path: &Path) -> io::Result<Self> {
        loop {
            let number = getrandom::u64().map_err(io::Error::other)?;
            let mut name = path.as_os_str().to_owned();
            name.push(format!("#{number}"));
            let temporary = PathBuf::from(name);
            match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary) {
                Ok(file) => return Ok(Self { path: temporary, file }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn fill(&self, bytes: &[u8]) -> io::Result<()> {
        (&self.file).write_all(bytes)?;
        self.file.sync_all()
    }

    /// Gives the file its name unless it is taken.
    fn link(&self, path: &Path) -> io::Result<()> {
        match fs::hard_link(&self.path, path) {
            // NFS: the answer to our own link got lost and its repetition failed (open(2), on O_EXCL).
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let (ours, there) = (self.file.metadata()?, fs::metadata(path)?);
                if ours.ino() == there.ino() && ours.dev() == there.dev() { Ok(()) } else { Err(error) }
            }
            // File systems without hard links (exFAT, some network mounts).
            Err(error) if matches!(error.kind(), io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied) => {
                use rustix::fs::{CWD, RenameFlags, renameat_with};
                renameat_with(CWD, &self.path, CWD, path, RenameFlags::NOREPLACE).map_err(|second| match second.kind() {
                    io::ErrorKind::AlreadyExists => second.into(),
                    _ => error,
                })
            }
            result => result,
        }
    }

    fn replace(&self, path: &Path) -> io::Result<()> {
        fs::rename(&self.path, path)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Gone already after a rename; else invisible, and swept later.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::SystemTime;

    fn local(root: &Path) -> Local {
        Local::new(root.to_owned(), Refusals::new("test", Vec::new()), None)
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[tokio::test]
    async fn objects_and_folders_are_for_their_owner_only_and_nothing_else_is_left() {
        let base = tempfile::tempdir().unwrap();
        let root = base.path().join("new/root");
        let store = local(&root);
        store.put("packs/ab/cd", Bytes::from_static(b"x"), PutMode::Create).await.unwrap();
        let again = store.put("packs/ab/cd", Bytes::from_static(b"y"), PutMode::Create).await.unwrap_err();
        assert_eq!(again.kind(), Kind::AlreadyExists);
        for folder in ["", "packs", "packs/ab"] {
            assert_eq!(mode(&root.join(folder)), 0o700, "{folder}");
        }
        assert_eq!(mode(&root.join("packs/ab/cd")), 0o600);
        assert_eq!(fs::read_dir(root.join("packs/ab")).unwrap().count(), 1);
        assert_eq!(fs::read(root.join("packs/ab/cd")).unwrap(), b"x");
    }

    #[tokio::test]
    async fn leftovers_of_a_killed_writer_are_never_listed_and_swept_after_a_day() {
        let base = tempfile::tempdir().unwrap();
        let folder = base.path().join("packs");
        fs::create_dir(&folder).unwrap();
        let (old, young, named) = (folder.join("a#123"), folder.join("b#123"), folder.join("c"));
        for path in [&old, &young, &named] {
            fs::write(path, "half").unwrap();
        }
        let two_days_ago = SystemTime::now() - 2 * ABANDONED;
        for path in [&old, &named] {
            File::options().write(true).open(path).unwrap().set_modified(two_days_ago).unwrap();
        }
        let store = local(base.path());
        let keys = |list: Vec<ObjectInfo>| list.into_iter().map(|info| info.key).collect::<Vec<_>>();
        assert_eq!(keys(store.list("", &Pulse::default()).await.unwrap()), ["packs/c"]);
        store.put("packs/d", Bytes::new(), PutMode::Create).await.unwrap();
        assert!(!old.exists() && young.exists() && named.exists());
    }

    #[tokio::test]
    async fn a_folder_that_was_removed_meanwhile_is_made_again() {
        let base = tempfile::tempdir().unwrap();
        let store = local(&base.path().join("root"));
        store.put("a/b", Bytes::new(), PutMode::Create).await.unwrap();
        fs::remove_dir_all(base.path().join("root/a")).unwrap();
        store.put("a/b", Bytes::new(), PutMode::Create).await.unwrap();
        assert!(store.head("a/b").await.is_ok());
    }

    #[tokio::test]
    async fn a_root_that_went_away_is_neither_empty_nor_made_again() {
        let base = tempfile::tempdir().unwrap();
        let (root, aside) = (base.path().join("root"), base.path().join("aside"));
        let store = local(&root);
        let put = async |key: &str| store.put(key, Bytes::new(), PutMode::Create).await.map_err(|error| error.kind());
        assert_eq!(store.list("", &Pulse::default()).await.unwrap().len(), 0, "it was never there");
        put("packs/a").await.unwrap();
        fs::write(root.join(IDENTITY), "this one").unwrap();
        put("packs/b").await.unwrap();
        let all_refused = async || {
            assert_eq!(put("packs/c").await, Err(Kind::Unavailable));
            assert_eq!(put("new/folder/c").await, Err(Kind::Unavailable));
            assert_eq!(store.head("packs/a").await.unwrap_err().kind(), Kind::Unavailable);
            assert_eq!(store.get("packs/a", Want::All { limit: 9 }).await.unwrap_err().kind(), Kind::Unavailable);
            assert_eq!(store.list("", &Pulse::default()).await.unwrap_err().kind(), Kind::Unavailable);
            assert_eq!(store.delete("packs/a").await.unwrap_err().kind(), Kind::Unavailable);
            let together = store.delete_together(&["packs/a"]).unwrap().await;
            assert!(together[0].as_ref().is_err_and(|error| error.kind() == Kind::Unavailable));
        };
        // A folder in a file system that was unmounted.
        fs::rename(&root, &aside).unwrap();
        all_refused().await;
        assert!(!root.exists());
        // The folder that the file system was mounted on, and another repository.
        for found in ["", "another one"] {
            fs::create_dir(&root).unwrap();
            if !found.is_empty() {
                fs::write(root.join(IDENTITY), found).unwrap();
            }
            all_refused().await;
            fs::remove_dir_all(&root).unwrap();
        }
        // Mounted again.
        fs::create_dir_all(root.join("packs")).unwrap();
        for name in [IDENTITY, "packs/a", "packs/b"] {
            fs::copy(aside.join(name), root.join(name)).unwrap();
        }
        put("packs/c").await.unwrap();
        assert_eq!(store.list("packs", &Pulse::default()).await.unwrap().len(), 3);
    }

    #[tokio::test]
    async fn a_listing_shows_all_that_is_there_also_behind_links_and_nothing_else() {
        use std::os::unix::fs::symlink;
        let (base, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let root = base.path();
        let store = local(root);
        for key in ["packs/ab/cd", "packs/ab/ef", "index/x"] {
            store.put(key, Bytes::from_static(b"12345"), PutMode::Create).await.unwrap();
        }
        fs::write(other.path().join("far"), "1234567").unwrap();
        symlink(other.path(), root.join("packs/moved")).unwrap();
        symlink(other.path().join("far"), root.join("packs/ab/far")).unwrap();
        symlink("/nowhere/at/all", root.join("packs/ab/broken")).unwrap();
        fs::create_dir(root.join("packs/empty")).unwrap();
        let shown = async |prefix| {
            let mut all: Vec<(String, u64)> =
                store.list(prefix, &Pulse::default()).await.unwrap().into_iter().map(|info| (info.key, info.size)).collect();
            all.sort();
            all
        };
        let of = |all: &[(&str, u64)]| all.iter().map(|(key, size)| ((*key).to_owned(), *size)).collect::<Vec<_>>();
        let packs = of(&[("packs/ab/cd", 5), ("packs/ab/ef", 5), ("packs/ab/far", 7), ("packs/moved/far", 7)]);
        assert_eq!(shown("packs").await, packs);
        assert_eq!(shown("").await.len(), 5);
        assert_eq!(shown("nothing").await, []);
        assert_eq!(shown("packs/ab/cd").await, [], "below a file there is nothing");
        // Each moment is the one that a look at the object alone tells.
        for info in store.list("packs/ab", &Pulse::default()).await.unwrap() {
            assert_eq!(store.head(&info.key).await.unwrap().modified, info.modified, "{}", info.key);
        }
        symlink(root.join("packs"), root.join("packs/round")).unwrap();
        let error = store.list("packs", &Pulse::default()).await.unwrap_err();
        assert!(error.to_string().contains("links go in a circle"), "{error:?}");
    }

    #[tokio::test]
    async fn objects_of_one_folder_go_together_and_each_is_told() {
        let base = tempfile::tempdir().unwrap();
        let store = local(base.path());
        for key in ["x/a", "x/b", "x/c", "x/stays"] {
            store.put(key, Bytes::new(), PutMode::Create).await.unwrap();
        }
        fs::remove_file(base.path().join("x/c")).unwrap();
        fs::create_dir_all(base.path().join("x/folder/y")).unwrap();
        let answers = store.delete_together(&["x/a", "x/folder", "x/missing", "x/c", "x/b"]).unwrap().await;
        assert_eq!(answers.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true, true, true]);
        let left: Vec<_> = store.list("x", &Pulse::default()).await.unwrap().into_iter().map(|info| info.key).collect();
        assert_eq!(left, ["x/stays"]);
    }

    #[tokio::test]
    async fn a_root_that_is_a_file_is_refused() {
        let base = tempfile::tempdir().unwrap();
        let root = base.path().join("file");
        fs::write(&root, "").unwrap();
        assert_eq!(local(&root).list("", &Pulse::default()).await.unwrap_err().kind(), Kind::Usage);
        assert!(local(&root).put("a", Bytes::new(), PutMode::Create).await.is_err());
    }
}

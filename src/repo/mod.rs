//! The repository: what is stored, how it is sealed, written, read and verified. The byte format is in `docs/format.md`.
//!
//! - `format` names, limits; `wire` integers and varints; `keys` roles and slots; `seal` small sealed objects
//! - `frame`, `pack` chunks compressed and sealed together; `tree` entries and the places of their chunks; `index` which chunk is where
//! - `write` the backup pipeline; `read` trees and bytes back; `verify`; `snapshot` manifests; `report`
//! - `log` the continuous log of a source beside its snapshots
//! - `locks` what is kept stays under Object Lock
//! - `current` whether the keys that are written with are still those to write with
//! - `ledger` what was removed on purpose and what is held; `collect` garbage; `moved` where rewritten packs have gone
//!
//! Objects are created once and never changed. Commit order: packs → index → manifest. The manifest is the commit; anything
//! before it is only garbage that a next run finds and reuses.
//!
//! All methods here block: call them from ordinary threads (`spawn_blocking`), never from an async task.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "sizes and counts are bounded by the limits in `format`; this program runs on 64-bit machines only"
)]

#[cfg(not(target_pointer_width = "64"))]
compile_error!("lifeboat needs a 64-bit machine");

mod collect;
mod content;
mod copy;
mod current;
mod format;
mod frame;
mod index;
mod kept;
mod keyless;
mod keyring;
mod keys;
mod ledger;
mod leftover;
mod locks;
mod log;
mod lost_format;
mod moved;
mod names;
mod nodes;
mod pack;
mod packs;
mod pages;
#[doc(hidden)]
pub mod parsers;
mod pipeline;
mod previous;
mod read;
mod removed;
mod repair;
mod report;
mod seal;
mod seen;
mod session;
mod snapshot;
#[cfg(test)]
mod tests;
mod totals;
mod tree;
mod verify;
mod wire;
mod write;

pub use collect::{CollectOptions, Collection, PackState, REWRITE_PERCENT};
pub use copy::{CopyNotes, CopyStats, Predecessor};
pub use current::KeyChange;
pub use format::{ChunkId, PackId, PackKind, RepositoryId};
pub use index::{IndexedPack, LocalIndex};
pub use keyless::{KeylessCheck, check_keyless};
pub use keyring::{GenerationShare, KeyEvent, PlanKey, Rotation};
pub use keys::{KeyFile, KeySlot, Lock, Passphrase, Recipient, RecoveryKey, Role, Share, combine_shares};
pub use ledger::{AcceptedLoss, DecidedSince, Decision, Hold, LaterDecision, Ledger, RemovedSnapshot};
pub use locks::{LockSample, Locks, UNLOCKED, object_lock};
pub use log::{Appended, Gap, Listed, Log, LogRun, PieceInfo, Sealed, is_piece_key, runs};
pub use lost_format::LostFormat;
pub use read::{BlockSink, FetchStats, StoredEntry, TreeReader, Wanted};
pub use removed::{HarmedVolume, is_volume_key};
pub use repair::{HarmedFiles, IndexRepair};
pub use report::{ReportKind, ReportRecord};
pub use session::Decided;
pub use snapshot::{CopiedFrom, LostManifest, Manifest, Parent, SourceRecord, Stats, replacements};
pub use totals::{ObjectTotals, Totals};
pub use verify::{Finding, Verification, VerifyDepth, share_covers};
pub use write::{Added, BackupWriter, Committed, TreeWriter};

use std::fmt;
use std::future::Future;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::error::{Error, IoContext as _, Kind, Result};
use crate::store::{Created, Store};
use format::{FORMAT_KEY, ObjectKind};
use keyring::Ring;
use keys::{Keys, StoredSlot};

/// How to open a repository.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// Folder for the local index (made when missing, 0700); safe to delete at any time. `None`: a temporary one.
    pub cache: Option<PathBuf>,
    /// Threads for hashing, compression and sealing; 0 means one a core.
    pub workers: usize,
}

/// An open repository. Cheap to clone.
#[derive(Clone)]
pub struct Repository {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    runtime: tokio::runtime::Handle,
    id: RepositoryId,
    keys: Keys,
    /// What was listed below `keys/` when they were read.
    standing: keyring::Standing,
    /// What was listed there later and changed nothing for a plan, by its name.
    harmless: std::sync::Mutex<std::collections::HashMap<String, keyring::Standing>>,
    slot: String,
    workers: usize,
    cache: CacheFolder,
    packs: packs::PackTable,
    directories: packs::Directories,
    found: packs::Found,
    /// Where rewritten packs have gone, as far as it was read.
    moved: std::sync::RwLock<Arc<moved::MovedTable>>,
    /// The ledger last read, under its newest entry.
    ledger: std::sync::Mutex<Option<(crate::store::ObjectInfo, ledger::Ledger)>>,
}

/// The folder for local copies; a temporary one goes away with the repository.
struct CacheFolder {
    path: PathBuf,
    temporary: bool,
}

impl Drop for CacheFolder {
    fn drop(&mut self) {
        if self.temporary {
            // Best effort: it holds only what can be made again, sealed or keyed.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

/// The `format` object: plain JSON, the one thing that can be read without a key.
#[derive(Debug, Serialize, Deserialize)]
struct FormatObject {
    format: String,
    version: u8,
    id: RepositoryId,
    created: DateTime<Utc>,
}

/// Objects asked for at a time; the store's own limits bound what is really in flight.
const REQUESTS: usize = 16;

const FORMAT_WORD: &str = "lifeboat repository";

impl fmt::Debug for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Repository({}, {})", self.inner.id, self.inner.keys.role)
    }
}

impl Repository {
    /// Creates a repository and opens it with the reader role. The recovery key opens it too; it is shown once and kept nowhere.
    ///
    /// The caller has probed the store: conditional create must work, or be waived for a single writer.
    ///
    /// # Errors
    /// `AlreadyExists` where a repository is, or where foreign objects are.
    pub fn init(
        store: Store,
        runtime: tokio::runtime::Handle,
        passphrase: &Passphrase,
        options: &OpenOptions,
        now: DateTime<Utc>,
    ) -> Result<(Self, RecoveryKey)> {
        let store = store.with_names(names::is_object);
        let exists = |what: &str| {
            Error::new(Kind::AlreadyExists, format!("{what} at {}", store.describe()))
                .hint("use it as it is (a plan that names it can back up right away), or choose another, empty place")
        };
        if block_on(&runtime, store.head(FORMAT_KEY))?.is_some() {
            return Err(exists("there is a repository already"));
        }
        for folder in ["packs/", "index/", "snapshots/", "logs/"] {
            if !block_on(&runtime, store.list(folder))?.is_empty() {
                return Err(format_lost(Kind::AlreadyExists, &store));
            }
        }
        // Key slots and their event alone are what an interrupted `init` leaves: they open nothing.
        for folder in ["keys/", keyring::EVENTS] {
            for object in block_on(&runtime, store.list(folder))? {
                block_on(&runtime, store.delete(&object.key))?;
            }
        }
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(|e| Error::new(Kind::Bug, "ask for random bytes").because(e))?;
        let id = RepositoryId(id);
        let keys = Keys::generate();
        let recovery = keys::generate_recovery_key();
        let slot = StoredSlot::create(&keys, id, Role::Reader, "passphrase", &Lock::Passphrase(passphrase), now)?;
        let lock = Lock::Passphrase(recovery.passphrase());
        let recovery_slot = StoredSlot::create(&keys, id, Role::Reader, keys::RECOVERY_LABEL, &lock, now)?;
        // Slots first, and that they must be there: with `format` there, the repository can be opened.
        for slot in [&slot, &recovery_slot] {
            block_on(&runtime, store.create(&slot.key(), Bytes::from(slot.to_json()?)))?;
        }
        keyring::put_first_event(&store, &runtime, id, &keys, &[&slot, &recovery_slot], now)?;
        let format = FormatObject { format: FORMAT_WORD.into(), version: format::VERSION, id, created: now };
        block_on(&runtime, store.create(FORMAT_KEY, Bytes::from(to_json(&format)?)))
            .map_err(|e| if e.kind() == Kind::AlreadyExists { exists("somebody else has just created a repository") } else { e })?;
        Ok((Self::assemble(store, runtime, id, (keys, keyring::Standing::default()), slot.id, options)?, recovery))
    }

    /// Opens with the role of the slot that the passphrase (or recovery key) opens; of several, the strongest role.
    ///
    /// # Errors
    /// `NoRepository`, `WrongKey`, `Damaged`, `Unavailable`.
    pub fn open(store: Store, runtime: tokio::runtime::Handle, passphrase: &Passphrase, options: &OpenOptions) -> Result<Self> {
        let store = store.with_names(names::is_object);
        // Far away each answer takes its time: what does not need the other is asked for at the same time.
        let (format, ring) = beside(|| Ring::read(&store, &runtime), || read_format(&store, &runtime));
        let format = format?;
        let credential = passphrase.credential()?;
        let mut ring = ring?;
        let mut slots = std::mem::take(&mut ring.slots);
        // Each try may cost a key derivation: the likeliest first. Of two that open alike, the one with the newer generation.
        slots.sort_by_key(|(_, slot)| {
            let slot = slot.as_ref().ok()?;
            Some((std::cmp::Reverse((slot.role, ring.generation_of(slot))), slot.label == keys::RECOVERY_LABEL))
        });
        let (mut damaged, mut whole) = (None, 0);
        // The passphrase is known to be right by this slot's commitment, and yet the slot does not open.
        let mut right = None;
        for (key, slot) in slots {
            let slot = match slot {
                Ok(slot) => slot,
                Err(error) => {
                    damaged = Some(error);
                    continue;
                }
            };
            let is_whole = slot.is_whole();
            match slot.answers_to(format.id, &credential, store.pulse()) {
                // What counts is sealed: a slot that opens is good enough, `verify` finds what else is wrong with it.
                Ok(Some(opened)) => match slot.unseal(format.id, &opened) {
                    Ok(keys) => {
                        let keys = ring.bring_up(&store, &runtime, format.id, &slot, &opened, keys)?;
                        return Self::assemble(store, runtime, format.id, (keys, ring.standing), slot.id, options);
                    }
                    Err(error) => right = Some((key, is_whole, error)),
                },
                Ok(None) if is_whole => whole += 1,
                Ok(None) => damaged = Some(Error::new(Kind::Damaged, format!("object {key}: was changed"))),
                Err(error) => damaged = Some(error),
            }
        }
        Err(cannot_open(&store, right, damaged, whole))
    }

    fn assemble(
        store: Store,
        runtime: tokio::runtime::Handle,
        id: RepositoryId,
        (mut keys, standing): (Keys, keyring::Standing),
        slot: String,
        options: &OpenOptions,
    ) -> Result<Self> {
        let cache = match &options.cache {
            Some(path) => CacheFolder { path: path.join(id.to_string()), temporary: false },
            None => CacheFolder { path: std::env::temp_dir().join(format!("lifeboat-cache-{}", ulid::Ulid::generate())), temporary: true },
        };
        make_private_folder(&cache.path)?;
        keyring::remember_generation(&cache.path, &mut keys)?;
        let workers = match options.workers {
            0 => std::thread::available_parallelism().map_or(2, std::num::NonZero::get),
            workers => workers,
        };
        let inner = Inner {
            store,
            runtime,
            id,
            keys,
            standing,
            harmless: std::sync::Mutex::default(),
            slot,
            workers,
            cache,
            packs: packs::PackTable::default(),
            directories: packs::Directories::default(),
            found: packs::Found::default(),
            moved: std::sync::RwLock::default(),
            ledger: std::sync::Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The repository's random identifier.
    pub fn id(&self) -> RepositoryId {
        self.inner.id
    }

    /// What the passphrase allows.
    pub fn role(&self) -> Role {
        self.inner.keys.role
    }

    /// # Errors
    /// `WrongKey` with a hint when this role cannot read data; `operation` names what was asked for.
    pub fn require_reader(&self, operation: &str) -> Result<()> {
        self.inner.keys.require_reader(operation)
    }

    /// Where it is.
    pub fn store(&self) -> &Store {
        &self.inner.store
    }

    /// Key for [`crate::source::SourceContext::fingerprint_key`]; the same for ever in one repository.
    pub fn fingerprint_key(&self) -> [u8; 32] {
        self.inner.keys.fingerprint_key()
    }

    fn create(&self, key: &str, bytes: Vec<u8>) -> Result<Created> {
        self.inner.block_on(self.inner.store.create(key, Bytes::from(bytes)))
    }
}

impl Inner {
    fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        block_on(&self.runtime, future)
    }

    /// Asks for all of these at the same time; in their order, each with its answer.
    fn get_all(&self, keys: impl IntoIterator<Item = String>) -> Vec<(String, Result<Bytes>)> {
        use futures::StreamExt as _;
        let fetches = futures::stream::iter(keys).map(|key| async move { (self.store.get(&key).await, key) }).buffered(REQUESTS);
        self.block_on(fetches.map(|(bytes, key)| (key, bytes)).collect())
    }

    /// The same of small objects, opened.
    fn open_all(&self, kind: ObjectKind, keys: impl IntoIterator<Item = String>) -> impl Iterator<Item = (String, Result<Vec<u8>>)> {
        self.get_all(keys).into_iter().map(move |(key, bytes)| {
            let opened = bytes.and_then(|bytes| seal::open(&self.keys, self.id, kind, &key, &bytes));
            (key, opened)
        })
    }

    /// Reads and opens a sealed object.
    fn open_object(&self, kind: ObjectKind, key: &str) -> Result<Vec<u8>> {
        let bytes = self.block_on(self.store.get(key))?;
        seal::open(&self.keys, self.id, kind, key, &bytes)
    }

    fn seal_object(&self, kind: ObjectKind, key: &str, content: &[u8]) -> Result<Vec<u8>> {
        seal::seal(&self.keys, self.id, kind, key, content)
    }
}

fn block_on<T>(runtime: &tokio::runtime::Handle, future: impl Future<Output = T>) -> T {
    runtime.block_on(future)
}

/// Does both at the same time, `other` in this thread; what `other` gives comes first.
pub(crate) fn beside<A: Send, B>(one: impl FnOnce() -> Result<A> + Send, other: impl FnOnce() -> B) -> (B, Result<A>) {
    std::thread::scope(|scope| {
        let one = std::thread::Builder::new().spawn_scoped(scope, one);
        let other = other();
        let panicked = |_| Err(Error::new(Kind::Bug, "a thread that asks the store panicked"));
        (
            other,
            one.map_err(|error| Error::io("start a thread that asks the store", error)).and_then(|one| one.join().unwrap_or_else(panicked)),
        )
    })
}

/// The object that makes a place a repository, of a version that this program knows.
fn read_format(store: &Store, runtime: &tokio::runtime::Handle) -> Result<FormatObject> {
    let format = match block_on(runtime, store.get(FORMAT_KEY)) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == Kind::NotFound => {
            return Err(if has_parts(store, runtime)? {
                format_lost(Kind::Damaged, store)
            } else {
                Error::new(Kind::NoRepository, format!("there is no repository at {}", store.describe())).hint("check the url")
            });
        }
        Err(e) => return Err(e.within(format!("open the repository at {}", store.describe()))),
    };
    let foreign =
        |what: &str| Error::new(Kind::Damaged, format!("the format object at {} {what}", store.describe())).hint(format_hint(store));
    let format: FormatObject = serde_json::from_slice(&format).map_err(|e| foreign("cannot be decoded").because(e))?;
    if format.format != FORMAT_WORD {
        return Err(if has_parts(store, runtime)? {
            foreign("does not say that this is a lifeboat repository, and key slots or packs are beside it")
        } else {
            Error::new(Kind::NoRepository, format!("what is at {} is not a lifeboat repository", store.describe())).hint("check the url")
        });
    }
    if format.version != format::VERSION {
        return Err(foreign(&format!("has version {}, this program knows {}", format.version, format::VERSION))
            .hint(format!("use a newer version of lifeboat; if none was ever used here, the object is damaged: {}", format_hint(store))));
    }
    Ok(format)
}

/// Whether something of a repository is there, `format` aside.
fn has_parts(store: &Store, runtime: &tokio::runtime::Handle) -> Result<bool> {
    for folder in ["keys/", "packs/", "index/", "snapshots/"] {
        if !block_on(runtime, store.list(folder))?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What to say where everything but `format` is there.
pub(crate) fn format_lost(kind: Kind, store: &Store) -> Error {
    Error::new(kind, format!("there are parts of a repository without its format object at {}", store.describe()))
        .hint(format!("do not make a new repository there: {}", format_hint(store)))
}

fn format_hint(store: &Store) -> String {
    format!(
        "`lifeboat repair` makes it anew; or bring the object `format` at {} back from the store's versions or a copy (docs/guide.md, Troubleshooting)",
        store.describe()
    )
}

/// Why no slot opened. `right`: key, wholeness and trouble of a slot whose passphrase this is; `damaged`: one that could not be tried;
/// `whole`: how many are sound and another passphrase's.
fn cannot_open(store: &Store, right: Option<(String, bool, Error)>, damaged: Option<Error>, whole: usize) -> Error {
    let at = store.describe();
    match (right, damaged) {
        // The slot is as it was stored and bound to another repository id than the format object has.
        (Some((key, true, _)), _) => {
            Error::new(Kind::Damaged, format!("the passphrase is right, but {key} and the format object at {at} do not belong together"))
                .hint(format!("the id in `format` was changed, or the slot is another repository's: {}", format_hint(store)))
        }
        (Some((key, false, error)), _) => {
            Error::new(Kind::Damaged, format!("the passphrase is right, but its key slot {key} at {at} is damaged"))
                .because(error)
                .hint(format!("use the recovery key or another slot's passphrase, or bring {key} back from the store's versions or a copy"))
        }
        (None, None) if whole == 0 => Error::new(Kind::Damaged, format!("the repository at {at} has no key slots"))
            .hint("bring the objects below keys/ back from the store's versions or a copy: without one, nothing can be read"),
        (None, Some(damage)) if whole == 0 => Error::new(Kind::Damaged, format!("every key slot of the repository at {at} is damaged"))
            .because(damage)
            .hint("bring the objects below keys/ back from the store's versions or a copy: without one, nothing can be read"),
        (None, Some(damage)) => {
            Error::new(Kind::WrongKey, "no key slot opens with this passphrase, and some key slots are damaged").because(damage).hint(
                "check the passphrase that the plan refers to; if it is right, the damaged slot is its own: bring that object back from \
                 the store's versions or a copy, or use the recovery key printed at `repo init`",
            )
        }
        (None, None) => Error::new(Kind::WrongKey, format!("no key slot of the repository at {at} opens with this passphrase"))
            .hint("check the passphrase that the plan refers to, or use the recovery key printed at `repo init`"),
    }
}

fn to_json<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    serde_json::to_vec_pretty(value).map_err(|e| Error::new(Kind::Bug, "encode as JSON").because(e))
}

/// Makes a folder that only its owner enters.
fn make_private_folder(path: &Path) -> Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).io_context(|| format!("make the folder {}", path.display()))
}

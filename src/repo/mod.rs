//! The repository: what is stored, how it is sealed, written, read and verified. The byte format is in `docs/format.md`.
//!
//! All methods here block: call them from ordinary threads (`spawn_blocking`), never from an async task.

mod keys;
mod read;
mod report;
mod snapshot;
mod verify;
mod write;

pub use keys::{KeySlot, Passphrase, RecoveryKey, Role};
pub use read::{BlockSink, FetchStats, StoredEntry, TreeReader, Wanted};
pub use report::{ReportKind, ReportRecord};
pub use snapshot::{Manifest, Parent, SourceRecord, Stats};
pub use verify::{Finding, Verification, VerifyDepth};
pub use write::{Added, BackupWriter, Committed, TreeWriter};

use std::path::PathBuf;

use chrono::{DateTime, Utc};

use crate::error::Result;
use crate::event::{Cancel, Progress};
use crate::id::{Name, SnapshotId};
use crate::store::Store;

/// Random identifier of a repository, fixed at `init`; hex, 32 characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RepositoryId(pub [u8; 16]);

/// How to open a repository.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// Folder for the local index and copies of sealed metadata (made when missing, 0700). `None`: a temporary one.
    pub cache: Option<PathBuf>,
    /// Threads for hashing, compression and sealing; 0 means one a core.
    pub workers: usize,
}

/// An open repository. Cheap to clone.
#[derive(Clone)]
pub struct Repository {}

impl Repository {
    /// Creates a repository and opens it with the reader role. The recovery key opens it too; it is shown once and kept nowhere.
    ///
    /// # Errors
    /// `AlreadyExists` where one is; `Usage` where the store ignores conditional create (and `single_writer` is not set).
    pub fn init(_store: Store, _runtime: tokio::runtime::Handle, _passphrase: &Passphrase, _options: &OpenOptions, _now: DateTime<Utc>) -> Result<(Self, RecoveryKey)> {
        todo!()
    }

    /// Opens with whatever role the passphrase's (or recovery key's) slot has.
    ///
    /// # Errors
    /// `NoRepository`, `WrongKey`, `Damaged`, `Unavailable`.
    pub fn open(_store: Store, _runtime: tokio::runtime::Handle, _passphrase: &Passphrase, _options: &OpenOptions) -> Result<Self> {
        todo!()
    }

    pub fn id(&self) -> RepositoryId { todo!() }
    pub fn role(&self) -> Role { todo!() }
    /// Can this role read data? Otherwise `WrongKey` with a hint that names the role needed.
    pub fn require_reader(&self, _operation: &str) -> Result<()> { todo!() }
    pub fn store(&self) -> &Store { todo!() }

    /// Key for [`crate::source::SourceContext::fingerprint_key`]; the same for ever in one repository.
    pub fn fingerprint_key(&self) -> [u8; 32] { todo!() }

    /// Manifests of one plan, or of all, oldest first (by `time`, then id).
    ///
    /// # Errors
    /// `Damaged` names the object when one cannot be opened.
    pub fn manifests(&self, _plan: Option<&Name>) -> Result<Vec<Manifest>> { todo!() }

    /// One manifest.
    ///
    /// # Errors
    /// `NoRecoveryPoint` when there is no such snapshot.
    pub fn manifest(&self, _id: SnapshotId) -> Result<Manifest> { todo!() }

    /// Begins a snapshot: publishes the session, reads tombstones and index, finds the previous snapshot of the plan.
    pub fn begin(&self, _plan: &Name, _now: DateTime<Utc>, _cancel: &Cancel) -> Result<BackupWriter> { todo!() }

    /// Entries of one source of a snapshot in tree order, streamed.
    pub fn tree(&self, _source: &SourceRecord) -> Result<TreeReader> { todo!() }

    /// Delivers the bytes of many files, in pack order, decoded in parallel; each chunk is checked against its id before it is
    /// delivered. Needs the reader role.
    ///
    /// # Errors
    /// `Damaged` (names object and file), `Unavailable`, `Interrupted`, or what the sink returns.
    pub fn fetch(&self, _wanted: &[Wanted<'_>], _sink: &dyn BlockSink, _progress: &dyn Progress, _cancel: &Cancel) -> Result<FetchStats> { todo!() }

    /// The bytes of one file in order (for pipes). Needs the reader role.
    pub fn open_file(&self, _entry: &StoredEntry, _cancel: &Cancel) -> Result<Box<dyn std::io::Read + Send>> { todo!() }

    /// Checks the repository: structure, or also stored bytes. Findings are in the result, not an error.
    pub fn verify(&self, _depth: VerifyDepth, _progress: &dyn Progress, _cancel: &Cancel) -> Result<Verification> { todo!() }

    /// Stores a report (sealed).
    pub fn put_report(&self, _report: &ReportRecord) -> Result<()> { todo!() }

    /// All reports of a kind, oldest first.
    pub fn reports(&self, _kind: Option<ReportKind>) -> Result<Vec<ReportRecord>> { todo!() }

    /// The key slots (public part).
    pub fn key_slots(&self) -> Result<Vec<KeySlot>> { todo!() }
    /// Adds a slot for a role; only the reader role can.
    pub fn add_key(&self, _label: &str, _role: Role, _passphrase: &Passphrase, _now: DateTime<Utc>) -> Result<KeySlot> { todo!() }
    /// Removes a slot; refuses the last one with the reader role.
    pub fn remove_key(&self, _id: &str) -> Result<()> { todo!() }
}

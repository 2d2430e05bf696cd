//! Where data comes from and what proves that it came back: one folder a kind of source.
//!
//! A source hands out a consistent snapshot as a tree of entries with bytes, and, the other way, turns a restored tree into
//! something usable and proves it. It knows nothing of repositories: the two meet in `ops`.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::entry::{Entry, Order};
use crate::error::{Error, Kind, Result};
use crate::event::{Cancel, Progress};

/// What a source needs to know of the run that uses it.
pub struct SourceContext {
    /// A private folder (0700) of this run for staging copies; the caller removes it whatever happens.
    pub scratch: PathBuf,
    /// Keys the row digests of fingerprints, so that they tell nothing to who does not hold it.
    pub fingerprint_key: [u8; 32],
    pub progress: Arc<dyn Progress>,
    pub cancel: Cancel,
}

/// Order-independent digest of one table's content, taken inside the snapshot that is backed up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableFingerprint {
    pub table: String,
    pub rows: u64,
    /// Hex. Sum modulo 2^256 of the keyed BLAKE3 of every row's canonical text.
    pub digest: String,
}

/// Something that was not read as it should have been. A run with problems is incomplete (exit 3), never silently fine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What it concerns (a path, a table), printable.
    pub object: String,
    /// `vanished`, `changed-while-read`, `unreadable`, `skipped-special`, …
    pub kind: String,
    pub message: String,
}

/// What a finished snapshot says about itself; kept in the manifest.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Finish {
    /// The consistency point, by kind: for SQLite `{"journal_mode":…,"page_count":…,"change_counter":…}`, later LSN or GTID.
    pub consistency: serde_json::Value,
    /// Empty where the kind has no tables.
    pub fingerprints: Vec<TableFingerprint>,
    pub problems: Vec<Problem>,
}

/// One thing that `doctor` looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnosis {
    pub name: String,
    pub ok: bool,
    /// What was found; when not ok, also what to do.
    pub message: String,
}

/// How a restored server is to follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standby {
    /// What brings a file of the log: the server's `restore_command`.
    pub restore_command: String,
    /// The server to follow, in the words of its connection settings, without a password.
    pub primary: Option<String>,
    /// The slot on it.
    pub slot: Option<String>,
}

/// Where one tablespace of a restored server goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TablespaceMapping {
    /// Its folder on the source.
    pub from: String,
    /// An absolute path; new, or an empty folder.
    pub to: PathBuf,
}

/// What a person wants of what is handed over; by default nothing but a server of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HandOver {
    pub standby: Option<Standby>,
    /// Other tablespaces stay in the restored folder.
    pub tablespaces: Vec<TablespaceMapping>,
}

/// A server of its own replays its log and answers ([`Source::unfinished`]).
pub const REPLAY: &str = "replay";
/// A server of its own takes a dump ([`Source::unfinished`]).
pub const LOAD: &str = "load";

/// What a person is told who takes over what was restored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HandedOver {
    /// Why it must not be used as it is: sentences. With any of them the restore is incomplete.
    pub dangers: Vec<String>,
    /// What to do next, in sentences.
    pub steps: Vec<String>,
}

/// A configured source. Cheap to build: nothing is opened before `begin`.
pub trait Source: Send + Sync {
    /// `sqlite`, `files`, `command`, …
    fn kind(&self) -> &'static str;

    /// Everything a backup needs, checked without changing anything.
    fn diagnose(&self) -> Vec<Diagnosis>;

    /// Where in its log it is now, of a server whose log goes on along timelines: timeline and position; of a primary, that of what it writes next, of a
    /// standby, that of the last byte that it has.
    ///
    /// # Errors
    /// When it cannot be asked.
    fn log_position(&self) -> Result<Option<(u32, u64)>> {
        Ok(None)
    }

    /// Whose data it has now, as [`SourceSnapshot::belongs`] tells it of a snapshot.
    ///
    /// # Errors
    /// When it cannot be asked.
    fn belongs(&self) -> Result<Option<(&'static str, String)>> {
        Ok(None)
    }

    /// Whether everything is there that a restore needs of this machine, secrets for example; asked before anything is fetched.
    ///
    /// # Errors
    /// `Usage` when something is not.
    fn ready(&self) -> Result<()> {
        Ok(())
    }

    /// Begins a consistent snapshot that stays the same until it is finished or dropped.
    ///
    /// # Errors
    /// Not a database, locked, missing, not permitted: each says what to do.
    fn begin(&self, context: &SourceContext) -> Result<Box<dyn SourceSnapshot>>;

    /// Finishes a restore: `restored` holds the tree as [`SourceSnapshot::next_entry`] yielded it, below a private folder. Leaves the
    /// usable thing there and returns its path (for `sqlite`: the database file; for `files`: the folder).
    ///
    /// # Errors
    /// When what was restored cannot be made usable.
    fn adopt(&self, restored: &Path, context: &SourceContext) -> Result<PathBuf>;

    /// Makes what `adopt` returned ready for a person who takes it over at `target`; a drill does not ask for this.
    ///
    /// # Errors
    /// When that is not possible; `Usage` for what the kind does not have.
    fn hand_over(&self, _usable: &Path, _target: &Path, wanted: &HandOver) -> Result<HandedOver> {
        if *wanted != HandOver::default() {
            return Err(Error::new(Kind::Usage, format!("a source of kind {} has no standby and no tablespaces", self.kind())));
        }
        Ok(HandedOver::default())
    }

    /// Takes parts (`request.only`, in the words of the kind) out of what `adopt` returned, and loads them where the request says. What `adopt`
    /// returned is used up by it.
    ///
    /// # Errors
    /// `Usage` when the kind has no parts, for a part that is not there, and for a target that cannot take it: nothing was loaded then. `Differs` when
    /// what was loaded is not what was taken.
    fn extract(&self, _usable: &Path, _request: &ExtractRequest, _context: &SourceContext) -> Result<Extracted> {
        Err(Error::new(Kind::Usage, format!("restore only a part: parts cannot be taken out of a source of kind {}", self.kind())))
    }

    /// Loads what `adopt` returned into a server, by URL without a password.
    ///
    /// # Errors
    /// `Usage` when the kind is not one of databases, and when the server cannot take it: nothing was touched then.
    fn load(&self, _usable: &Path, _url: &str, _context: &SourceContext) -> Result<postgres::logical::Loaded> {
        Err(Error::new(Kind::Usage, format!("restore to a database URL: a source of kind {} becomes files", self.kind())))
    }

    /// Whether a proof leaves the content as it was stored, so that it can be compared byte by byte afterwards. A server that recovers
    /// changes its files; what it then holds is compared by fingerprints.
    fn keeps_content(&self) -> bool {
        true
    }

    /// What is left to do before somebody can use what `adopt` returned, as the name of a phase ([`REPLAY`], [`LOAD`]): an incident costs its time
    /// too, and [`Source::prove`] begins with it. `None`: nothing.
    fn unfinished(&self) -> Option<&'static str> {
        None
    }

    /// Proves a restored thing (as returned by `adopt`): engine checks, fingerprints, the plan's SQL. Never changes its content.
    /// Every check asked for has a result; what could not be checked is `Skipped` and says why. `usable` is called once, where
    /// [`Source::unfinished`] names something: when that is done, before anything is checked. Not called: it did not become usable.
    ///
    /// # Errors
    /// Only when checking itself was not possible (interrupted, machine out of room); damage is a failed check, not an error.
    fn prove(&self, restored: &Path, request: &ProveRequest, context: &SourceContext, usable: &mut dyn FnMut())
    -> Result<Vec<CheckResult>>;
}

/// What closing a file told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed {
    /// Whether the entry's stamp may vouch for the file in later backups. False: it must be stored without one, or what is wrong with the file
    /// would be told once and never again.
    pub stamp_holds: bool,
}

impl Closed {
    /// Nothing is against it.
    pub const SOUND: Self = Self { stamp_holds: true };
}

/// A consistent snapshot being read.
pub trait SourceSnapshot: Send {
    /// Bytes and entries to expect, for progress; `None` when it cannot be told cheaply.
    fn estimate(&self) -> Option<(u64, u64)>;

    /// Whose data this is: the field of [`Finish::consistency`] that says so, and its value. What has another one is not a later state of
    /// the same thing. `None`: that cannot be told.
    fn belongs(&self) -> Option<(&'static str, String)> {
        None
    }

    /// Where in its log it begins, of a server whose log goes on along timelines: timeline and position. Known once it has begun.
    fn log_position(&self) -> Option<(u32, u64)> {
        None
    }

    /// In which order `next_entry` yields.
    fn order(&self) -> Order {
        Order::Tree
    }

    /// The next entry in the promised order, `None` at the end. What vanished or may not be read is not yielded but kept as a problem.
    ///
    /// # Errors
    /// When the listing itself fails: the run fails.
    fn next_entry(&mut self) -> Result<Option<Entry>>;

    /// Opens the bytes of a file entry that `next_entry` yielded. At most once an entry, in any order. `Ok(None)`: it vanished or
    /// may not be read meanwhile; that is kept as a problem and the entry must be left out.
    ///
    /// # Errors
    /// When reading fails in a way that makes the whole snapshot worthless.
    fn open(&mut self, entry: &Entry) -> Result<Option<Box<dyn Read + Send>>>;

    /// Says how many bytes of an opened entry were really read, when its reader reached the end; notices files that changed meanwhile.
    ///
    /// # Errors
    /// When the source cannot be asked any more.
    fn close(&mut self, entry: &Entry, bytes_read: u64) -> Result<Closed>;

    /// Instead of `close`: reading an opened entry failed. `Ok`: that is kept as a problem and the entry must be left out.
    ///
    /// # Errors
    /// `error` itself when the snapshot is worthless without that entry.
    fn unread(&mut self, entry: &Entry, error: Error) -> Result<()>;

    /// Ends the snapshot after everything was read (a child process has exited 0 by now).
    ///
    /// # Errors
    /// When the snapshot turns out to be worthless; the backup must not commit.
    fn finish(self: Box<Self>) -> Result<Finish>;
}

/// An SQL assertion of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqlCheck {
    pub name: String,
    pub sql: String,
    /// Already parsed from the plan's text (`>= 1000`, `= 'ok'`, `between 1 and 5`).
    pub expect: Expectation,
    /// For servers with several databases.
    pub database: Option<String>,
    /// The longest time for its answer.
    pub timeout: Duration,
}

pub use expect::Expectation;

/// What a drill asks a source to prove.
#[derive(Debug, Clone)]
pub struct ProveRequest {
    /// Fingerprints from the manifest.
    pub fingerprints: Vec<TableFingerprint>,
    /// How many of the fingerprints to compare: 0–100 percent of the tables, at least one unless 0.
    pub compare_percent: u8,
    pub checks: Vec<SqlCheck>,
}

/// Which parts are taken out of something restored, and where to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtractRequest {
    /// In the words of the kind; not empty.
    pub only: Vec<String>,
    /// A new private file for the extract.
    pub dump: PathBuf,
    /// A server to load it into, by URL without a password. `None`: the file is all.
    pub load_into: Option<String>,
}

/// What was taken out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Extracted {
    pub tables: Vec<ExtractedTable>,
    pub warnings: Vec<String>,
    /// What was loaded could not all be compared with what was taken: the warnings say why.
    pub incomplete: bool,
}

/// One table and how many rows it has, in what was restored and, where it was loaded and could be counted, there too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtractedTable {
    pub table: String,
    pub rows: u64,
}

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    Passed,
    /// The engine or an assertion says no: exit 20.
    Failed,
    /// Content differs from what was backed up: exit 21.
    Differs,
    /// Could not be checked; the drill is incomplete at best.
    Skipped,
}

/// One check of a drill.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckResult {
    pub name: String,
    pub outcome: Outcome,
    pub expected: String,
    pub actual: String,
}

pub mod command;
pub mod expect;
pub mod files;
pub mod fingerprint;
pub mod postgres;
pub mod sqlite;

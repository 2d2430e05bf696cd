//! Operations: each is one procedure that reads as its steps. They join a repository and sources, which do not know each other.
//!
//! Nothing here prints: progress goes out as events, results come back as documents (`lifeboat.<thing>/<version>`), each of which
//! says by `exit()` how the process should end although the operation itself returned `Ok`. All functions block and are called from
//! ordinary threads (`spawn_blocking`), never from an async task.
//!
//! Who may run beside whom: two backups of one plan on one host exclude each other by a file lock (`Busy`); everything else may run
//! side by side, because the repository needs no locks and every run works in a folder of its own (`work.rs`).

pub mod backup;
pub mod copy;
pub mod damage;
pub mod doctor;
pub mod document;
pub mod drill;
pub mod extract;
pub mod identity;
pub mod init;
mod judged;
pub mod key_age;
pub mod keyless;
pub mod log;
pub mod prune;
pub mod repair;
pub mod report;
pub mod report_html;
pub mod resolve;
pub mod restore;
pub mod retention;
pub mod select;
pub mod snapshots;
pub mod stats;
mod transfer;
pub mod undelete;
pub mod verdict;
pub mod verify;
mod work;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::event::{Cancel, Progress};
use crate::id::{Name, SnapshotId};
use crate::ops::select::Choice;
use crate::repo::{LostManifest, Manifest, ReportRecord, Repository};
use crate::source::{Source, SourceContext, SqlCheck};

pub use work::sweep;

pub use document::{CheckRecord, Existing, Missing, Objective, Phase, Verdict};

/// A source under the name that plan and manifest know it by.
#[derive(Clone)]
pub struct NamedSource {
    pub name: Name,
    pub source: Arc<dyn Source>,
    /// Whether a restore yields a folder where its kind alone does not tell: a command source with a restore command.
    pub restores_folder: bool,
}

/// What every operation on a plan works with: opened, resolved, free of plan-file types.
#[derive(Clone)]
pub struct Job {
    pub plan: Name,
    /// Recorded in every manifest.
    pub tags: Vec<String>,
    /// In the order of the plan; empty for a restore on a machine without plans.
    pub sources: Vec<NamedSource>,
    pub repository: Repository,
    /// Private folder (0700) of this plan below the state folder: locks, scratch folders, kept drill targets. Made by the runs that use it.
    pub work: PathBuf,
    /// Recorded in drill reports; the repository records its own in manifests.
    pub host: String,
    pub objectives: Objectives,
    pub drill: DrillSettings,
    pub clock: Arc<dyn Clock>,
    pub progress: Arc<dyn Progress>,
    pub cancel: Cancel,
    pub gate: CommitGate,
}

/// The snapshots of a plan, as one listing has them.
#[derive(Default)]
pub(in crate::ops) struct Snapshots {
    /// Those that can be chosen.
    pub all: Vec<Manifest>,
    /// Those that nobody can restore any more, because the key of their content was destroyed.
    pub destroyed: Vec<Manifest>,
    /// Those that cannot be read.
    pub lost: Vec<LostManifest>,
}

impl Snapshots {
    /// Chooses as [`select::choose`]. One that is named may be one that nobody can restore any more: who is about to restore it says why.
    pub fn choose(&self, repository: &Repository, reports: &[ReportRecord], choice: &Choice, now: DateTime<Utc>) -> Result<Manifest> {
        if matches!(choice, Choice::Snapshot(_)) {
            let named: Vec<Manifest> = self.all.iter().chain(&self.destroyed).cloned().collect();
            return select::choose(&named, reports, choice, now).cloned();
        }
        self.require_any(repository)?;
        select::choose(&self.all, reports, choice, now).cloned()
    }

    /// # Errors
    /// `NoRecoveryPoint` where there are snapshots, and nobody can restore any of them.
    pub fn require_any(&self, repository: &Repository) -> Result<()> {
        match self.destroyed.iter().max_by_key(|manifest| (manifest.time, manifest.id)) {
            Some(last) if self.all.is_empty() => repository.require_content(last).map_err(|error| {
                error.within(format!("find a snapshot: of {} there is none that can be read", counted(self.destroyed.len(), "snapshot")))
            }),
            _ => Ok(()),
        }
    }

    /// Whether or not they can be restored.
    pub fn into_known(self) -> impl Iterator<Item = Manifest> {
        self.all.into_iter().chain(self.destroyed)
    }
}

impl Job {
    /// Lists the plan's snapshots.
    ///
    /// # Errors
    /// When the store cannot be asked.
    pub(in crate::ops) fn snapshots(&self) -> Result<Snapshots> {
        let listed = self.repository.sound_manifests(Some(&self.plan));
        let (known, lost) = listed.map_err(|e| e.within(format!("list the snapshots of plan {}", self.plan)))?;
        let (destroyed, all) = known.into_iter().partition(|manifest| self.repository.destroyed_at(manifest).is_some());
        Ok(Snapshots { all, destroyed, lost })
    }
}

/// What a run is about to do to a repository that cannot be taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Commit {
    /// Its manifest is created.
    Snapshot(SnapshotId),
    /// An entry of the retention ledger is created that removes snapshots.
    Retention,
}

/// What says whether that may be done; where it is not the plan's own repository, with the name of the one.
type Gate = dyn Fn(Option<&Name>, Commit) -> Result<()> + Send + Sync;

/// The last word on whether a run may commit: asked right before the object is created. By default yes.
#[derive(Clone, Default)]
pub struct CommitGate(Option<Arc<Gate>>);

impl CommitGate {
    /// `may`: an error means that nothing may be committed.
    #[must_use]
    pub fn new(may: impl Fn(Option<&Name>, Commit) -> Result<()> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(may)))
    }

    /// `repository`: its name, where it is not the plan's own.
    ///
    /// # Errors
    /// What the gate says.
    pub fn ask(&self, repository: Option<&Name>, commit: Commit) -> Result<()> {
        self.0.as_ref().map_or(Ok(()), |may| may(repository, commit))
    }
}

/// What the plan promises.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Objectives {
    /// RPO.
    pub data_loss: Option<Duration>,
    /// RTO.
    pub recovery_time: Option<Duration>,
}

/// A plan's SQL check and the source it is asked of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedCheck {
    pub source: Name,
    pub check: SqlCheck,
}

/// How a plan wants to be drilled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DrillSettings {
    /// Choose a random snapshot unless the request says otherwise.
    pub random: bool,
    /// How far back a random choice goes; `None`: all snapshots.
    pub window: Option<Duration>,
    /// Share of content compared, 0–100; 0 turns it off: then it was not asked for and is not missing.
    pub compare_percent: u8,
    pub checks: Vec<PlannedCheck>,
    /// How long the target of a failed drill is kept; `None`: not at all.
    pub keep_on_failure: Option<Duration>,
    /// A drill that takes longer is stopped and has failed.
    pub time_limit: Option<Duration>,
    /// A drill that would restore more bytes is not started.
    pub disk_limit_bytes: Option<u64>,
    /// Rows that tell how much a disaster would lose.
    pub canaries: Vec<Canary>,
}

/// A canary row of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Canary {
    pub source: Name,
    pub every: Duration,
    /// Where it is. `None`: the source's settings cannot be read here.
    pub database: Option<String>,
}

/// `1 place`, `2 places`.
pub(crate) fn counted(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// An error with its causes, in one line for a document.
pub(crate) fn explain(error: &Error) -> String {
    std::iter::once(error.to_string()).chain(error.causes()).collect::<Vec<_>>().join(": ")
}

/// What to say when manifests are damaged: a snapshot is lost, perhaps the newest.
pub(crate) fn damaged_warning(damaged: &[LostManifest]) -> Option<String> {
    let first = damaged.first()?;
    let count = if damaged.len() == 1 { "a manifest".to_owned() } else { format!("each of {} manifests", damaged.len()) };
    Some(format!("{count} cannot be read and its snapshot cannot be chosen (run `lifeboat verify`): {}", explain(&first.error)))
}

/// What to say when reports are damaged: a proof is lost, or what took one back.
pub(crate) fn damaged_reports_warning(damaged: &[Error]) -> Option<String> {
    let first = damaged.first()?;
    let count = if damaged.len() == 1 { "a report".to_owned() } else { format!("each of {} reports", damaged.len()) };
    Some(format!("{count} cannot be read, and what it says of a snapshot is not known (run `lifeboat verify`): {}", explain(first)))
}

/// Marks packs that were found damaged while they were read, and says so. That it cannot be done must not stand in the way of anything.
pub(crate) fn condemn(job: &Job) -> Option<String> {
    match job.repository.condemn_found(job.clock.now()) {
        Ok(0) => None,
        Ok(count) => Some(format!(
            "{count} damaged pack{} marked: no later backup uses {}, and the next one stores the content again where the source still has it",
            if count == 1 { " is" } else { "s are" },
            if count == 1 { "it" } else { "them" }
        )),
        Err(error) => Some(format!(
            "damaged packs could not be marked, so backups may go on using them until `lifeboat verify --data` is run with a credential that may write: {}",
            explain(&error)
        )),
    }
}

/// An error of reading a snapshot, which may be that it was removed meanwhile.
pub(crate) fn unless_removed(repository: &Repository, id: crate::id::SnapshotId, error: Error) -> Error {
    let may_be = matches!(error.kind(), crate::error::Kind::Damaged | crate::error::Kind::NotFound);
    match may_be.then(|| repository.removed(id)).flatten() {
        Some(removed) => removed.because(error),
        None => error,
    }
}

/// What a source needs to know of a run that works in `scratch` on a snapshot's content: a copy's fingerprints have the key of the original.
fn context_of(job: &Job, scratch: PathBuf, manifest: &Manifest) -> Result<SourceContext> {
    let own = context(job, scratch);
    Ok(SourceContext { fingerprint_key: manifest.foreign_fingerprint_key()?.unwrap_or(own.fingerprint_key), ..own })
}

/// The same, for what is of this repository.
fn context(job: &Job, scratch: PathBuf) -> SourceContext {
    SourceContext {
        scratch,
        fingerprint_key: job.repository.fingerprint_key(),
        progress: Arc::clone(&job.progress),
        cancel: job.cancel.clone(),
    }
}

impl Default for DrillSettings {
    fn default() -> Self {
        Self {
            random: false,
            window: None,
            compare_percent: 100,
            checks: Vec::new(),
            keep_on_failure: None,
            time_limit: None,
            disk_limit_bytes: None,
            canaries: Vec::new(),
        }
    }
}

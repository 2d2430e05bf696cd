//! From a validated plan to what operations work with. The only module of `ops` that knows plan-file types.
//!
//! `resolve::plan(&crate::plan::…) -> Result<Resolved>` and `resolve::repository(…) -> Result<RepositorySettings>` join as soon as the
//! plan model is merged.

use std::path::PathBuf;
use std::sync::Arc;

use super::{DrillSettings, Job, NamedSource, Objectives};
use crate::clock::Clock;
use crate::error::Result;
use crate::event::{Cancel, Progress};
use crate::id::Name;
use crate::repo::{Passphrase, Repository};
use crate::source::Source;
use crate::store::StoreConfig;

/// What the process around an operation gives it.
#[derive(Clone)]
pub struct Surroundings {
    /// `--state DIR`; made 0700 when missing.
    pub state: PathBuf,
    /// Drives the store's I/O; operations block on it from ordinary threads.
    pub runtime: tokio::runtime::Handle,
    pub clock: Arc<dyn Clock>,
    pub progress: Arc<dyn Progress>,
    pub cancel: Cancel,
}

/// A repository that is not open yet. `Debug` shows no secret.
#[derive(Debug, Clone)]
pub struct RepositorySettings {
    /// Its name in plan files; `None` when it was given by URL.
    pub name: Option<Name>,
    pub store: StoreConfig,
    pub passphrase: Passphrase,
}

impl RepositorySettings {
    /// Opens it.
    ///
    /// # Errors
    /// `NoRepository`, `WrongKey`, `Unavailable`, `Usage`.
    pub fn open(&self, _surroundings: &Surroundings) -> Result<Repository> {
        todo!()
    }
}

/// A plan with its sources built and its secrets read; nothing is opened yet.
#[derive(Clone)]
pub struct Resolved {
    pub plan: Name,
    pub sources: Vec<NamedSource>,
    pub repository: RepositorySettings,
    pub objectives: Objectives,
    pub drill: DrillSettings,
}

impl Resolved {
    /// For a restore on a machine without plans: sources are taken from the manifest.
    #[must_use]
    pub fn bare(plan: Name, repository: RepositorySettings) -> Self {
        Self { plan, sources: Vec::new(), repository, objectives: Objectives::default(), drill: DrillSettings::default() }
    }

    /// Opens the repository.
    ///
    /// # Errors
    /// As [`RepositorySettings::open`], and when the state folder cannot be made.
    pub fn open(&self, _surroundings: &Surroundings) -> Result<Job> {
        todo!()
    }
}

/// A source that only knows how to bring back what a manifest of this kind holds.
///
/// # Errors
/// `Usage` when this build has no driver for the kind.
pub fn bare_source(_kind: &str) -> Result<Arc<dyn Source>> {
    todo!()
}

//! Making a repository.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::ops::resolve::{RepositorySettings, Surroundings};
use crate::repo::{RecoveryKey, Repository};

/// `lifeboat.init/1`. The recovery key is not part of it: it is shown once and kept nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitReport {
    pub schema: String,
    /// The repository's name in plan files.
    pub name: Option<String>,
    /// Without credentials.
    pub url: String,
    /// Hex.
    pub repository: String,
}

/// Creates a repository.
///
/// # Errors
/// `AlreadyExists` where one is; `Usage` where the store ignores conditional create.
pub fn run(settings: &RepositorySettings, surroundings: &Surroundings) -> Result<(InitReport, RecoveryKey)> {
    let store = settings.open_store()?;
    let url = store.describe().to_owned();
    let options = settings.options(&surroundings.state)?;
    // Looked at before anything is written there.
    let look = async {
        Ok((store.head("format").await?.is_some(), !store.list("keys/").await?.is_empty() || !store.list("packs/").await?.is_empty()))
    };
    let (whole, parts) = surroundings.runtime.block_on(look).map_err(|e: Error| e.within(format!("look what is at {url}")))?;
    if whole || parts {
        let what = if whole { "there is a repository already" } else { "there are parts of a repository without its format object" };
        return Err(Error::new(Kind::AlreadyExists, format!("{what} at {url}"))
            .hint("use it as it is (a plan that names it can back up right away), or choose another, empty place"));
    }
    // Where create does not refuse what is there, two writers would destroy each other's commits.
    let probe = surroundings.runtime.block_on(store.probe()).map_err(|e| e.within(format!("try what {url} can do")))?;
    let alone = settings.store.single_writer && probe.read_after_write && probe.list_after_write && probe.range_reads;
    if !(probe.is_safe() || alone) {
        let seen = probe.to_string().replace('\n', "; ");
        return Err(Error::new(Kind::Usage, format!("create a repository at {url}: it does not do what a repository needs: {seen}"))
            .hint("choose another store; where only conditional create is missing, `single_writer = true` in the plan promises that one host alone writes"));
    }
    let now = surroundings.clock.now();
    let (repository, key) = Repository::init(store, surroundings.runtime.clone(), &settings.passphrase, &options, now)?;
    let report = InitReport {
        schema: "lifeboat.init/1".into(),
        name: settings.name.as_ref().map(ToString::to_string),
        url,
        repository: hex::encode(repository.id().0),
    };
    Ok((report, key))
}

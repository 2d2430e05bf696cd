//! Making a repository.

use serde::{Deserialize, Serialize};

use super::resolve::{RepositorySettings, Surroundings};
use crate::error::Result;
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

//! Making a repository.

use serde::{Deserialize, Serialize};

use super::resolve::{RepositorySettings, Surroundings};
use crate::error::Result;
use crate::repo::RecoveryKey;

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
pub fn run(_settings: &RepositorySettings, _surroundings: &Surroundings) -> Result<(InitReport, RecoveryKey)> {
    todo!()
}

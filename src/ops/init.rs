//! Making a repository.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::ops::resolve::{RepositorySettings, Surroundings};
use crate::repo::{RecoveryKey, Repository, format_lost};
use crate::store::StoreConfig;

/// `lifeboat.init/1`. The recovery key is not part of it: it is shown once and kept nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitReport {
    pub schema: String,
    /// The repository's name in plan files.
    pub name: Option<String>,
    /// Without credentials; as `--from` takes it.
    pub url: String,
    /// The variables that `--from` needs to reach the place, beside the passphrase and the store's credentials.
    pub environment: BTreeMap<String, String>,
    /// Hex.
    pub repository: String,
    /// As that another repository was at this place before, of which nothing is here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Creates a repository.
///
/// # Errors
/// `AlreadyExists` where one is; `Usage` where the store ignores conditional create.
pub fn run(settings: &RepositorySettings, surroundings: &Surroundings) -> Result<(InitReport, RecoveryKey)> {
    let store = settings.open_store_in(surroundings)?;
    let url = store.describe().to_owned();
    let options = settings.options(&surroundings.state)?;
    // Looked at before anything is written there.
    let look = async {
        let mut parts = Vec::new();
        for folder in ["keys/", "packs/", "index/", "snapshots/"] {
            if !store.list(folder).await?.is_empty() {
                parts.push(folder);
            }
        }
        Ok((store.head("format").await?.is_some(), parts))
    };
    let (whole, parts) = surroundings.runtime.block_on(look).map_err(|e: Error| e.within(format!("look what is at {url}")))?;
    if whole {
        return Err(Error::new(Kind::AlreadyExists, format!("there is a repository already at {url}"))
            .hint("use it as it is (a plan that names it can back up right away), or choose another, empty place"));
    }
    if parts == ["keys/"] {
        return Err(Error::new(Kind::AlreadyExists, format!("there are key slots without a format object at {url}")).hint(
            "an interrupted `repo init` leaves this: if no backup was ever made there, delete what is below keys/ and run it again; \
             otherwise bring the object `format` back from the store's versions or a copy",
        ));
    }
    if !parts.is_empty() {
        return Err(format_lost(Kind::AlreadyExists, &store));
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
        url: settings.store.url.clone(),
        environment: environment(&settings.store),
        repository: hex::encode(repository.id().0),
        warnings: settings.note(&repository, surroundings).into_iter().collect(),
    };
    Ok((report, key))
}

/// What of a plan's store settings a machine without plans has to be told by the provider's variables.
fn environment(store: &StoreConfig) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    let mut set = |name: &str, value: &str| variables.insert(name.to_owned(), value.to_owned());
    if store.url.starts_with("s3:") {
        if let Some(endpoint) = &store.endpoint {
            set("AWS_ENDPOINT_URL_S3", endpoint.trim_end_matches('/'));
        }
        if let Some(region) = &store.region {
            set("AWS_REGION", region);
        }
        if store.path_style == Some(false) && store.endpoint.is_some() {
            set("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "true");
        }
    }
    if store.allow_http {
        set("LIFEBOAT_ALLOW_HTTP", "true");
    }
    variables
}

//! The object store behind our few verbs: open by URL, conditional create, ranged reads, list, delete; with retry and limits.
//!
//! Everything above sees only these verbs. Objects are immutable: there is no overwrite.

use std::ops::Range;

use bytes::Bytes;

use crate::error::Result;

/// Where objects are, and how to talk to the place. Secrets inside are redacted in `Debug`.
#[derive(Clone, Debug, Default)]
pub struct StoreConfig {
    /// `file:///path`, `s3://bucket/prefix`, `gs://…`, `az://…`.
    pub url: String,
}

/// How a create ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// This call (or a retry of it) wrote the object.
    New,
    /// The very same bytes were there already.
    Same,
}

/// One object of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Relative to the repository's root, `/`-separated.
    pub key: String,
    pub size: u64,
    pub modified: chrono::DateTime<chrono::Utc>,
}

/// An open store. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {}

impl Store {
    pub fn open(_config: &StoreConfig) -> Result<Self> {
        todo!()
    }
    pub fn in_memory() -> Self {
        todo!()
    }
    pub async fn create(&self, _key: &str, _bytes: Bytes) -> Result<Created> {
        todo!()
    }
    pub async fn get(&self, _key: &str) -> Result<Bytes> {
        todo!()
    }
    pub async fn get_range(&self, _key: &str, _range: Range<u64>) -> Result<Bytes> {
        todo!()
    }
    pub async fn head(&self, _key: &str) -> Result<Option<ObjectInfo>> {
        todo!()
    }
    /// Sorted by key, complete.
    pub async fn list(&self, _prefix: &str) -> Result<Vec<ObjectInfo>> {
        todo!()
    }
    pub async fn delete(&self, _key: &str) -> Result<()> {
        todo!()
    }
}

//! The narrow trait behind the façade: one call is one operation on the place, without retries of ours, limits or confirmation.
//!
//! Errors come classified: `Unavailable` means "outcome unknown or not done, may be tried again"; `AlreadyExists` may still be
//! our own earlier write; every other kind is final.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

use bytes::Bytes;
use futures::future::BoxFuture;

use crate::error::Result;
use crate::event::Pulse;
use crate::store::ObjectInfo;

/// What a put does about an object that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PutMode {
    /// Refuse with `AlreadyExists`, atomically.
    Create,
    /// Replace it. Only for single-writer mode and for tests that damage objects.
    Overwrite,
}

/// A place for objects. Keys were validated by the façade.
pub(crate) trait Backend: fmt::Debug + Send + Sync {
    /// Writes one object durably.
    fn put<'a>(&'a self, key: &'a str, bytes: Bytes, mode: PutMode) -> BoxFuture<'a, Result<()>>;
    /// A whole object, at most `limit` bytes, or an exact range of it; a range that leaves the object is `Damaged`.
    fn get<'a>(&'a self, key: &'a str, want: Want) -> BoxFuture<'a, Result<Bytes>>;
    /// The file that is the object, where reading it needs no more than that.
    fn file(&self, _key: &str) -> Option<PathBuf> {
        None
    }
    /// `NotFound` when it is not there.
    fn head<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<ObjectInfo>>;
    /// Everything below the folder `prefix` (no slash at its end; empty for all), in any order. The pulse beats with each object: there may be many.
    fn list<'a>(&'a self, prefix: &'a str, pulse: &'a Pulse) -> BoxFuture<'a, Result<Vec<ObjectInfo>>>;
    /// Removes; an object that is not there is a success.
    fn delete<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<()>>;
    /// The same of several in one folder, where that costs less than one by one; in their order.
    fn delete_together<'a>(&'a self, _keys: &'a [&'a str]) -> Option<BoxFuture<'a, Vec<Result<()>>>> {
        None
    }
}

/// Which bytes of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Want {
    /// All of it.
    All {
        /// Greatest size that is accepted.
        limit: u64,
    },
    /// Exactly this range; not empty.
    Range(Range<u64>),
}

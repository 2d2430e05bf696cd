//! The object store behind our few verbs: open by URL, conditional create, ranged reads, list, delete; with retry and limits.
//!
//! Everything above sees only [`Store`]. Objects are immutable: there is no overwrite. What this module promises:
//!
//! - [`Store::create`] returns only when the object is durable (local: file and folders flushed; remote: the store's word,
//!   checked by a look), and never replaces an object that is there, whatever answers get lost on the way;
//! - a listing is complete and sorted, and never shows half-written objects;
//! - an error names operation, key and store, and never a secret; its kind says what can be done (see [`crate::error::Kind`]).
//!
//! What it does not do: it knows nothing of what objects contain, so "damaged" comes from here only for an object that is
//! shorter than a range that was asked for, or larger than anything this program writes.
//!
//! Layers, outside in: [`Store`] (retries, lost answers, limits, counters) → `faults` (tests only) → `local` or `objects`
//! (one call, one operation) → `object_store`.

mod alone;
mod aws_profile;
mod backend;
mod bucket;
mod config;
pub mod faults;
mod limits;
mod local;
mod lock;
mod locked;
mod metrics;
mod objects;
mod open;
mod probe;
mod refusal;
mod retry;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use object_store::memory::InMemory;

use crate::error::{Error, Kind, Result};
use crate::event::Pulse;
use crate::store::backend::{Backend, PutMode, Want};
use crate::store::bucket::Bucket;
use crate::store::faults::Faults;
use crate::store::limits::Limits;
use crate::store::metrics::Counters;
use crate::store::objects::Objects;
use crate::store::open::Place;
use crate::store::refusal::Refusals;
use crate::store::retry::{Policy, Tries};

pub use crate::store::bucket::Version;
pub(crate) use crate::store::bucket::is_page as is_versions_page;
pub use crate::store::config::{Credential, StoreConfig};
pub use crate::store::lock::{LockClass, LockMode, LockProbe, ObjectLock, ObjectRetention};
pub use crate::store::metrics::{Metrics, Verb, VerbMetrics, process as process_metrics};
pub use crate::store::probe::Probe;
pub(crate) use crate::store::refusal::is_for_want_of_rights;

/// The greatest object that is written or read whole; far above the greatest pack.
pub const MAX_OBJECT_BYTES: u64 = 512 << 20;

/// After each create on a remote store its size is looked at: a store that acknowledges what it does not have is noticed
/// before anything depends on it. Costs one small request an object.
const CONFIRM_REMOTE_CREATES: bool = true;

/// The greatest read that counts as small.
const SMALL_BYTES: u64 = 64 << 10;

/// Objects, or folders of them, removed at a time.
const DELETES: usize = 16;

/// The longest key, in bytes. S3 allows 1,024 with the prefix.
const MAX_KEY_BYTES: usize = 800;

/// How a create ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// This call wrote the object: of several racing calls at most one gets this answer.
    New,
    /// The very same bytes are there: written by somebody else, by an earlier call, or by this one whose answer got lost.
    Same,
}

/// One object of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Relative to the repository's root, `/`-separated.
    pub key: String,
    /// Stored bytes.
    pub size: u64,
    /// By the store's clock, which may differ from ours.
    pub modified: chrono::DateTime<chrono::Utc>,
}

/// An open store. Cheap to clone; clones share limits and counters.
#[derive(Clone)]
pub struct Store(Arc<Inner>, Pulse, Names);

/// Which keys are of objects that whoever uses the store puts there.
type Names = fn(&str) -> bool;

struct Inner {
    backend: Arc<dyn Backend>,
    describe: String,
    local: bool,
    confirm: bool,
    single_writer: bool,
    /// Where processes of this host wait for each other then.
    alone: Option<PathBuf>,
    policy: Policy,
    limits: Limits,
    counters: Counters,
    /// The place without injected faults, where there are some.
    beneath: Option<Arc<dyn Backend>>,
    /// Versions and locks, where the store has them.
    bucket: Option<Arc<Bucket>>,
    /// See [`Store::newest_seen`]; milliseconds since 1970.
    newest: AtomicI64,
    /// See [`Store::strange`].
    strange: Mutex<BTreeSet<String>>,
}

/// Names of what is no object that are remembered.
const STRANGE: usize = 1000;

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({})", self.0.describe)
    }
}

impl Store {
    /// Opens the place of `config` without contacting it; a local folder is made by the first create.
    ///
    /// # Errors
    /// [`Kind::Usage`] for a configuration that cannot work: fix it.
    pub fn open(config: &StoreConfig) -> Result<Self> {
        let Place { backend, describe, local, limits, bucket } = open::open(config)?;
        Ok(Self(
            Arc::new(Inner {
                backend,
                describe,
                local,
                confirm: CONFIRM_REMOTE_CREATES && !local,
                single_writer: config.single_writer,
                alone: config.alone.clone(),
                policy: if local { Policy::LOCAL } else { Policy::REMOTE },
                limits,
                counters: Counters::default(),
                beneath: None,
                bucket,
                newest: AtomicI64::new(i64::MIN),
                strange: Mutex::default(),
            }),
            Pulse::default(),
            |_| true,
        ))
    }

    /// An empty store in this process's memory, with the rules of a real one. For tests and trials.
    #[must_use]
    pub fn in_memory() -> Self {
        let memory = Arc::new(InMemory::new());
        let describe = "memory".to_owned();
        let backend = Objects {
            writer: memory.clone(),
            locked: None,
            reader: memory,
            prefix: object_store::path::Path::ROOT,
            refusals: Refusals::new(&describe, Vec::new()),
            download: None,
        };
        let defaults = StoreConfig::default();
        Self(
            Arc::new(Inner {
                backend: Arc::new(backend),
                describe,
                local: true,
                confirm: false,
                single_writer: false,
                alone: None,
                policy: Policy::LOCAL,
                limits: Limits::new(defaults.max_requests, None, None),
                counters: Counters::default(),
                beneath: None,
                bucket: None,
                newest: AtomicI64::new(i64::MIN),
                strange: Mutex::default(),
            }),
            Pulse::default(),
            |_| true,
        )
    }

    /// `inner` with programmable faults *below* retries and confirmation, so that those are tested too. Uploads are confirmed
    /// as on a remote store; retries pause for milliseconds; counters start at zero. For tests.
    #[must_use]
    pub fn with_faults(inner: Self, faults: Faults) -> Self {
        Self(
            Arc::new(Inner {
                backend: faults.around(inner.0.backend.clone()),
                describe: inner.0.describe.clone(),
                local: inner.0.local,
                confirm: true,
                single_writer: inner.0.single_writer,
                alone: inner.0.alone.clone(),
                policy: Policy::LOCAL,
                limits: inner.0.limits.clone(),
                counters: Counters::default(),
                beneath: Some(inner.beneath().clone()),
                bucket: inner.0.bucket.clone(),
                newest: AtomicI64::new(i64::MIN),
                strange: Mutex::default(),
            }),
            inner.1,
            inner.2,
        )
    }

    /// The same place, whose answers are beats of this pulse: a request that is repeated because the place is away, or is not answered at all, is none.
    #[must_use]
    pub fn with_pulse(&self, pulse: &Pulse) -> Self {
        Self(Arc::clone(&self.0), pulse.clone(), self.2)
    }

    /// The same place, whose listings show only objects with these names.
    #[must_use]
    pub fn with_names(&self, names: Names) -> Self {
        Self(Arc::clone(&self.0), self.1.clone(), names)
    }

    /// What listings of this store and its clones passed over, because its name is none of an object: others put files into folders, too (a NAS, a file manager,
    /// NFS). The first thousand, sorted.
    #[must_use]
    pub fn strange(&self) -> Vec<String> {
        self.0.strange.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Beats with each answer of the place.
    pub(crate) fn pulse(&self) -> &Pulse {
        &self.1
    }

    /// Where it is, for people; without secrets.
    #[must_use]
    pub fn describe(&self) -> &str {
        &self.0.describe
    }

    /// Whether objects are on this machine (or where it mounts), so that requests cost next to nothing.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.0.local
    }

    /// What was asked of the place so far through this store and its clones.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        self.0.counters.snapshot()
    }

    /// Writes a new object, at most [`MAX_OBJECT_BYTES`], and returns when it is durable.
    ///
    /// # Errors
    /// [`Kind::AlreadyExists`]: other bytes are there under this key; they were not touched. [`Kind::Unavailable`]: it may or may
    /// not have been written; calling again with the same bytes is safe. [`Kind::NoSpace`], [`Kind::Failed`]: not written, or the
    /// store acknowledged it and does not have it.
    ///
    /// # Cancellation
    /// When the future is dropped the object may or may not be written, and later than that; never partly.
    pub async fn create(&self, key: &str, bytes: Bytes) -> Result<Created> {
        check_key(key)?;
        if bytes.len() as u64 > MAX_OBJECT_BYTES {
            return Err(Error::new(Kind::Bug, format!("{}: {} bytes are too many", self.message("write", key), bytes.len())));
        }
        let mut tries = Tries::new(self.0.policy);
        loop {
            let error = match self.put(key, &bytes).await {
                Ok(()) => {
                    self.confirm(key, bytes.len() as u64).await?;
                    return Ok(Created::New);
                }
                Err(error) => error,
            };
            // "Already exists" may be our own write whose answer got lost below us, or a 409 for two at once where nothing landed;
            // "unavailable" may have landed. Only a look tells.
            if !matches!(error.kind(), Kind::AlreadyExists | Kind::Unavailable) {
                return Err(self.maybe_for_the_lock(key, error));
            }
            match self.compare(key, &bytes).await {
                Ok(Some(true)) => {
                    // Its bytes were just looked at.
                    if self.is_to_be_locked(key) {
                        self.confirm_locked(key, bytes.len() as u64).await?;
                    }
                    return Ok(Created::Same);
                }
                Ok(Some(false)) => {
                    let message = format!("{}: another object is there", self.message("write", key));
                    return Err(Error::new(Kind::AlreadyExists, message));
                }
                Ok(None) => {}
                Err(look) if look.kind() == Kind::Unavailable => {}
                Err(look) => return Err(look.within(format!("{}: its outcome is unknown", self.message("write", key)))),
            }
            if !tries.again().await {
                return Err(match error.kind() {
                    Kind::Unavailable => error,
                    _ => Error::new(Kind::Unavailable, self.message("write", key)).because(error),
                });
            }
            self.note(&error);
        }
    }

    /// A whole object, at most [`MAX_OBJECT_BYTES`].
    ///
    /// # Errors
    /// [`Kind::NotFound`]; [`Kind::Damaged`] when it is larger than that; [`Kind::Unavailable`] after retries.
    pub async fn get(&self, key: &str) -> Result<Bytes> {
        check_key(key)?;
        self.retrying(|| self.get_once(key, Want::All { limit: MAX_OBJECT_BYTES })).await
    }

    /// Exactly the bytes `range` of an object (end exclusive); an empty range asks nobody.
    ///
    /// # Errors
    /// [`Kind::NotFound`]; [`Kind::Damaged`] when the object ends before the range does; [`Kind::Unavailable`] after retries.
    pub async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        self.range(key, range, false).await
    }

    /// Whether [`Store::get_range_here`] is worth a try.
    #[must_use]
    pub fn reads_here(&self) -> bool {
        self.0.backend.file("x").is_some()
    }

    /// The same by this very thread and into a buffer that is used again. `false`: not done, for whatever reason; [`Store::get_range`] does it, or
    /// says what is wrong.
    #[must_use]
    pub fn get_range_here(&self, key: &str, range: Range<u64>, buffer: &mut Vec<u8>) -> bool {
        let fits = check_key(key).is_ok() && range.start <= range.end && range.end - range.start <= MAX_OBJECT_BYTES;
        let (Some(path), true) = (self.0.backend.file(key), fits) else { return false };
        let Ok(length) = usize::try_from(range.end - range.start) else { return false };
        buffer.resize(length, 0);
        let read = File::open(path).is_ok_and(|file| file.read_exact_at(buffer, range.start).is_ok());
        if read {
            self.0.counters.request(Verb::GetRange, Ok(range.end - range.start));
        }
        read
    }

    /// The same for a few KiB of each of many objects: four of these count as one request in flight.
    ///
    /// # Errors
    /// As [`Store::get_range`].
    pub async fn get_small(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        let small = range.end.saturating_sub(range.start) <= SMALL_BYTES;
        self.range(key, range, small).await
    }

    async fn range(&self, key: &str, range: Range<u64>, small: bool) -> Result<Bytes> {
        check_key(key)?;
        if range.start > range.end || range.end - range.start > MAX_OBJECT_BYTES {
            return Err(Error::new(Kind::Bug, format!("{}: bytes {}..{}", self.message("read", key), range.start, range.end)));
        }
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        self.retrying(|| async {
            let _place = if small { self.0.limits.small_request().await } else { self.0.limits.request().await };
            self.get_placed(key, Want::Range(range.clone())).await
        })
        .await
    }

    /// Size and time of an object, or `None` when there is none.
    ///
    /// # Errors
    /// [`Kind::Unavailable`] after retries; [`Kind::Failed`].
    pub async fn head(&self, key: &str) -> Result<Option<ObjectInfo>> {
        check_key(key)?;
        self.retrying(|| self.head_once(key)).await
    }

    /// All objects below the folder `prefix` (`"packs"` and `"packs/"` are the same; `""` is everything), sorted by key, complete.
    /// A folder that is not there is empty. What has a name that no object has is passed over, see [`Store::strange`].
    ///
    /// # Errors
    /// [`Kind::Unavailable`] after retries; [`Kind::Failed`]. Never a part of the list.
    pub async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>> {
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
        if !prefix.is_empty() {
            check_key(prefix)?;
        }
        let mut objects = self
            .retrying(|| async {
                let _place = self.0.limits.request().await;
                self.counted(Verb::List, self.0.backend.list(prefix, &self.1).await, |_| 0)
            })
            .await?;
        objects.retain(|object| prefix.is_empty() || object.key.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/')));
        objects.retain(|object| {
            let is_known = object.key.split('/').all(is_listed) && object.key.len() <= MAX_KEY_BYTES && (self.2)(&object.key);
            if !is_known {
                let mut strange = self.0.strange.lock().unwrap_or_else(PoisonError::into_inner);
                if strange.len() < STRANGE && strange.insert(object.key.clone()) {
                    tracing::debug!(key = object.key, "no object has such a name: it is passed over");
                }
            }
            is_known
        });
        objects.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        if let Some(newest) = objects.iter().map(|object| object.modified.timestamp_millis()).max() {
            self.0.newest.fetch_max(newest, Ordering::Relaxed);
        }
        Ok(objects)
    }

    /// The latest moment, by the store's clock, at which something was written that a listing of this process showed: the store's clock is not behind
    /// it. `None`: none showed anything.
    #[must_use]
    pub fn newest_seen(&self) -> Option<chrono::DateTime<chrono::Utc>> {
        chrono::DateTime::from_timestamp_millis(self.0.newest.load(Ordering::Relaxed))
    }

    /// Removes an object. One that is not there is a success.
    ///
    /// # Errors
    /// [`Kind::Failed`] when the store refuses (missing right, object lock); [`Kind::Unavailable`] after retries.
    pub async fn delete(&self, key: &str) -> Result<()> {
        check_key(key)?;
        self.retrying(|| async {
            let _place = self.0.limits.request().await;
            self.counted(Verb::Delete, self.0.backend.delete(key).await, |()| 0)
        })
        .await
    }

    /// Removes many objects, several at a time; of each what [`Store::delete`] would say, in their order.
    pub async fn delete_all(&self, keys: &[String]) -> Vec<Result<()>> {
        use futures::StreamExt as _;
        let mut folders: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (at, key) in keys.iter().enumerate() {
            folders.entry(key.rsplit_once('/').map_or("", |(folder, _)| folder)).or_default().push(at);
        }
        let of_folder = |places: Vec<usize>| async move {
            let together: Vec<&str> = places.iter().map(|at| keys[*at].as_str()).collect();
            let mut answers = match self.delete_together(&together).await {
                Some(answers) => answers,
                None => futures::stream::iter(&together).map(|key| self.delete(key)).buffered(DELETES).collect().await,
            };
            answers.resize_with(places.len(), || Err(Error::new(Kind::Bug, "a delete has no answer")));
            places.into_iter().zip(answers).collect::<Vec<_>>()
        };
        let answers: Vec<Vec<(usize, Result<()>)>> =
            futures::stream::iter(folders.into_values()).map(of_folder).buffer_unordered(DELETES).collect().await;
        let mut answers: Vec<(usize, Result<()>)> = answers.into_iter().flatten().collect();
        answers.sort_unstable_by_key(|(at, _)| *at);
        answers.into_iter().map(|(_, answer)| answer).collect()
    }

    /// Of several objects in one folder, where the place has a shorter way for that.
    async fn delete_together(&self, keys: &[&str]) -> Option<Vec<Result<()>>> {
        if keys.len() < 2 || keys.iter().any(|key| check_key(key).is_err()) {
            return None;
        }
        let deleting = self.0.backend.delete_together(keys)?;
        let place = self.0.limits.request().await;
        let answers = deleting.await;
        drop(place);
        let mut done = Vec::with_capacity(keys.len());
        for (key, answer) in keys.iter().zip(answers) {
            done.push(match self.counted(Verb::Delete, answer, |()| 0) {
                Err(error) if error.kind() == Kind::Unavailable => self.delete(key).await,
                answer => answer,
            });
        }
        Some(done)
    }

    /// Tries on the place itself what it is able to do, below `probe/`.
    ///
    /// # Errors
    /// When the place cannot be written or read at all.
    pub async fn probe(&self) -> Result<Probe> {
        probe::probe(self).await
    }

    async fn put(&self, key: &str, bytes: &Bytes) -> Result<()> {
        if self.0.single_writer {
            // No other host writes (the operator's word), and on this one others wait: between this look and the write nothing changes.
            let _alone = match &self.0.alone {
                Some(folder) => Some(alone::wait(folder, &self.0.describe, key).await?),
                None => None,
            };
            if self.head_once(key).await?.is_some() {
                return Err(Error::new(Kind::AlreadyExists, self.message("write", key)));
            }
            return self.put_once(key, bytes, PutMode::Overwrite).await;
        }
        self.put_once(key, bytes, PutMode::Create).await
    }

    async fn put_once(&self, key: &str, bytes: &Bytes, mode: PutMode) -> Result<()> {
        let size = bytes.len() as u64;
        self.0.limits.upload(size).await;
        let _place = self.0.limits.request().await;
        self.counted(Verb::Create, self.0.backend.put(key, bytes.clone(), mode).await, |()| size)
    }

    async fn get_once(&self, key: &str, want: Want) -> Result<Bytes> {
        let _place = self.0.limits.request().await;
        self.get_placed(key, want).await
    }

    /// By who has a place among the requests in flight.
    async fn get_placed(&self, key: &str, want: Want) -> Result<Bytes> {
        let (verb, expected) = match &want {
            Want::All { .. } => (Verb::Get, None),
            Want::Range(range) => (Verb::GetRange, Some(range.end - range.start)),
        };
        let bytes = self.counted(verb, self.0.backend.get(key, want).await, |bytes| bytes.len() as u64)?;
        match expected {
            Some(expected) if bytes.len() as u64 != expected => {
                Err(Error::new(Kind::Damaged, format!("{}: {} of {expected} bytes are there", self.message("read", key), bytes.len())))
            }
            _ => Ok(bytes),
        }
    }

    async fn head_once(&self, key: &str) -> Result<Option<ObjectInfo>> {
        let _place = self.0.limits.request().await;
        match self.counted(Verb::Head, self.0.backend.head(key).await, |_| 0) {
            Ok(info) => Ok(Some(info)),
            Err(error) if error.kind() == Kind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether the object at `key` is `bytes`; `None` when there is none.
    async fn compare(&self, key: &str, bytes: &Bytes) -> Result<Option<bool>> {
        let Some(info) = self.head_once(key).await? else { return Ok(None) };
        if info.size != bytes.len() as u64 {
            return Ok(Some(false));
        }
        match self.get_once(key, Want::All { limit: info.size }).await {
            Ok(there) => Ok(Some(there == *bytes)),
            Err(error) if error.kind() == Kind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn confirm(&self, key: &str, size: u64) -> Result<()> {
        if self.is_to_be_locked(key) {
            return self.confirm_locked(key, size).await;
        }
        if !self.0.confirm {
            return Ok(());
        }
        let lie = |what: String| {
            Err(Error::new(Kind::Failed, format!("{}: the store acknowledged it but {what}", self.message("write", key)))
                .hint("do not trust this store with backups before this is understood"))
        };
        match self.retrying(|| self.head_once(key)).await? {
            Some(info) if info.size == size => Ok(()),
            Some(info) => lie(format!("has {} of {size} bytes", info.size)),
            None => lie("does not have it".to_owned()),
        }
    }

    async fn retrying<T, F: Future<Output = Result<T>>>(&self, operation: impl FnMut() -> F) -> Result<T> {
        retry::run(self.0.policy, |error| self.note(error), operation).await
    }

    fn note(&self, error: &Error) {
        self.0.counters.retry();
        tracing::debug!(error = ?error, "repeating a store operation");
    }

    fn counted<T>(&self, verb: Verb, result: Result<T>, size: impl FnOnce(&T) -> u64) -> Result<T> {
        let outcome = result.as_ref().map(size).map_err(Error::kind);
        self.0.counters.request(verb, outcome);
        if outcome != Err(Kind::Unavailable) {
            self.1.beat();
        }
        result
    }

    /// The place itself, past injected faults.
    fn beneath(&self) -> &Arc<dyn Backend> {
        self.0.beneath.as_ref().unwrap_or(&self.0.backend)
    }

    fn message(&self, operation: &str, key: &str) -> String {
        format!("cannot {operation} {key} in {}", self.0.describe)
    }
}

/// Whether a key may have this between two slashes.
fn is_segment(segment: &str) -> bool {
    !segment.is_empty()
        && segment.len() <= 200
        && segment != "."
        && segment != ".."
        && segment.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

/// The same of what a listing shows: no object is hidden.
fn is_listed(segment: &str) -> bool {
    is_segment(segment) && !segment.starts_with('.')
}

/// Keys are made by this program from checked parts, so a bad one is a bug; but it must never reach a file system.
fn check_key(key: &str) -> Result<()> {
    if key.len() <= MAX_KEY_BYTES && key.split('/').all(is_segment) {
        Ok(())
    } else {
        Err(Error::new(Kind::Bug, format!("not a key of an object: {key:?}")))
    }
}

#[cfg(test)]
mod tests;

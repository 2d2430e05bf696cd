//! The façade's verbs for versions and Object Lock, with retries, limits and counters. Only S3 has them.

use std::ops::Range;

use bytes::Bytes;
use chrono::{DateTime, Utc};

use crate::error::{Error, Kind, Result};
use crate::store::backend::Want;
use crate::store::bucket::{Bucket, Version};
use crate::store::lock::{self, Held, LockMode, LockProbe, ObjectLock};
use crate::store::{MAX_OBJECT_BYTES, Store, Verb, check_key};

const NOT_LOCKED: &str = "the plan asks for Object Lock: the bucket must have it (it is chosen when a bucket is made), and the credentials need \
     s3:PutObjectRetention and s3:GetObjectRetention; `lifeboat doctor` tries it";

impl Store {
    /// How objects are locked here.
    #[must_use]
    pub fn object_lock(&self) -> Option<&ObjectLock> {
        self.0.bucket.as_ref()?.lock.as_ref()
    }

    pub(super) fn is_to_be_locked(&self, key: &str) -> bool {
        self.object_lock().is_some_and(|lock| lock.of(key).is_some())
    }

    fn bucket(&self) -> Result<&Bucket> {
        self.0.bucket.as_deref().ok_or_else(|| {
            Error::new(Kind::Usage, format!("{} keeps no versions that lifeboat can ask for", self.0.describe))
                .hint("only S3 buckets with versioning do")
        })
    }

    /// Tries what the bucket does about locks.
    ///
    /// # Errors
    /// `Usage` where the store is no S3 bucket; when it cannot be asked at all.
    pub async fn probe_lock(&self) -> Result<LockProbe> {
        let bucket = self.bucket()?;
        self.retrying(|| lock::probe(bucket, Utc::now())).await
    }

    /// All versions and delete markers below the folder `prefix`, by key, each key's newest first. What has a name that no object has is passed over.
    ///
    /// # Errors
    /// `Usage` where the store is no S3 bucket; `Unavailable` after retries. Never a part of the list.
    pub async fn versions(&self, prefix: &str) -> Result<Vec<Version>> {
        let bucket = self.bucket()?;
        let prefix = prefix.trim_end_matches('/');
        if !prefix.is_empty() {
            check_key(prefix)?;
        }
        let mut versions = self
            .retrying(|| async {
                let _place = self.0.limits.request().await;
                self.counted(Verb::List, bucket.versions(prefix).await, |_| 0)
            })
            .await?;
        versions.retain(|version| (self.2)(&version.key));
        Ok(versions)
    }

    /// Until when a version is locked, and how; `None`: it is not.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`, `Failed`.
    pub async fn lock_of(&self, key: &str, version: &str) -> Result<Option<(LockMode, DateTime<Utc>)>> {
        match self.look(key, Some(version)).await? {
            Some(held) => Ok(held.lock),
            None => Err(Error::new(Kind::NotFound, format!("{}: version {version} is not there", self.message("look at", key)))),
        }
    }

    /// The same of the version that is read now.
    ///
    /// # Errors
    /// As [`Store::lock_of`].
    pub async fn lock_now(&self, key: &str) -> Result<Option<(LockMode, DateTime<Utc>)>> {
        match self.look(key, None).await? {
            Some(held) => Ok(held.lock),
            None => Err(Error::new(Kind::NotFound, self.message("look at", key))),
        }
    }

    /// Locks a version until this time, in the mode of the configuration.
    ///
    /// # Errors
    /// `Failed` when the store refuses; `Unavailable` after retries.
    pub async fn lock_until(&self, key: &str, version: &str, until: DateTime<Utc>) -> Result<()> {
        check_key(key)?;
        let bucket = self.bucket()?;
        let Some(lock) = &bucket.lock else {
            return Err(Error::new(Kind::Bug, format!("{}: no lock is asked for", self.message("lock", key))));
        };
        self.retain(bucket, key, Some(version), lock.mode, until).await
    }

    /// The bytes of one version.
    ///
    /// # Errors
    /// As [`Store::get`].
    pub async fn get_version(&self, key: &str, version: &str) -> Result<Bytes> {
        self.read_version(key, version, Want::All { limit: MAX_OBJECT_BYTES }).await
    }

    /// Exactly these of them; not empty.
    ///
    /// # Errors
    /// As [`Store::get_range`].
    pub async fn get_version_range(&self, key: &str, version: &str, range: Range<u64>) -> Result<Bytes> {
        self.read_version(key, version, Want::Range(range)).await
    }

    async fn read_version(&self, key: &str, version: &str, want: Want) -> Result<Bytes> {
        check_key(key)?;
        let bucket = self.bucket()?;
        self.retrying(|| async {
            let _place = self.0.limits.request().await;
            self.counted(Verb::Get, bucket.read(key, version, want.clone()).await, |bytes| bytes.len() as u64)
        })
        .await
    }

    /// Makes a version the one that is read, by a copy within the store, under the lock of the configuration. What hides it stays as an
    /// earlier version.
    ///
    /// # Errors
    /// `Failed` when the store refuses or does not have it afterwards; `Unavailable` after retries.
    pub async fn bring_back(&self, version: &Version) -> Result<()> {
        let key = version.key.as_str();
        check_key(key)?;
        let bucket = self.bucket()?;
        let lock = bucket.lock.as_ref().and_then(|lock| lock.of(key));
        self.retrying(|| async {
            let _place = self.0.limits.request().await;
            let copied = bucket.copy(key, &version.version, lock.map(|lock| (lock.mode, lock.until(Utc::now())))).await;
            self.counted(Verb::Create, copied, |()| 0)
        })
        .await?;
        self.confirm(key, version.size).await
    }

    /// After a create of what is to be locked: that it is there, whole, and locked. One request, as the look after any other create.
    pub(super) async fn confirm_locked(&self, key: &str, size: u64) -> Result<()> {
        let bucket = self.bucket()?;
        let Some(lock) = bucket.lock.and_then(|lock| lock.of(key)) else { return Ok(()) };
        let unlocked = |what: String| Error::new(Kind::Failed, format!("{}: {what}", self.message("lock", key))).hint(NOT_LOCKED);
        let look = async || match self.look(key, None).await? {
            Some(held) if held.size == size => Ok(held),
            Some(held) => Err(unlocked(format!("the store has {} of {size} bytes", held.size))),
            None => Err(unlocked("the store acknowledged it but does not have it".to_owned())),
        };
        let held = look().await?;
        // Without versions there is no lock, whatever a server repeats. Neither would it know the next request, and might take it for a write.
        let Some(version) = held.version.filter(|version| version != "null") else {
            return Err(unlocked("the bucket keeps no versions, so it has no Object Lock".to_owned()));
        };
        if lock.is_held(held.lock, Utc::now()) {
            return Ok(());
        }
        // The same bytes from an earlier time, or a store that does not take a lock with the write.
        let until = lock.until_after(held.lock, Utc::now());
        self.retain(bucket, key, Some(&version), lock.mode, until).await.map_err(|error| error.hint(NOT_LOCKED))?;
        let held = look().await?;
        if lock.is_held(held.lock, Utc::now()) {
            return Ok(());
        }
        let has = held.lock.map_or_else(|| "none".to_owned(), |(mode, until)| format!("{} until {until}", mode.word()));
        Err(unlocked(format!("{} until {until} was asked for, the store says it has {has}", lock.mode.word())))
    }

    /// A refused write of what is to be locked may be refused for the lock.
    pub(super) fn maybe_for_the_lock(&self, key: &str, error: Error) -> Error {
        if error.kind() == Kind::Failed && self.is_to_be_locked(key) { error.hint(NOT_LOCKED) } else { error }
    }

    async fn retain(&self, bucket: &Bucket, key: &str, version: Option<&str>, mode: LockMode, until: DateTime<Utc>) -> Result<()> {
        self.retrying(|| async {
            let _place = self.0.limits.request().await;
            self.counted(Verb::Lock, bucket.retain(key, version, mode, until).await, |()| 0)
        })
        .await
    }

    async fn look(&self, key: &str, version: Option<&str>) -> Result<Option<Held>> {
        check_key(key)?;
        let bucket = self.bucket()?;
        self.retrying(|| async {
            let _place = self.0.limits.request().await;
            self.counted(Verb::Head, bucket.look(key, version).await, |_| 0)
        })
        .await
    }
}

//! Object Lock: what is locked, for how long, and what a bucket really enforces. Pure but for the probe.
//!
//! With `retain` as what the operator asks for of a class of objects and `spare` as a quarter of it:
//!
//! - an object is written with a date `retain + spare` away, in the very request that writes it;
//! - whoever keeps it later (a backup, a prune) moves the date back there as soon as less than `retain + spare / 4` is left;
//! - so what is kept is always locked for `retain`, and each object costs one request every `3/4 spare`.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use ulid::Ulid;

use crate::error::{Error, Kind, Result};
use crate::store::bucket::Bucket;

/// Who may undo a lock before its date.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LockMode {
    /// Who has the right `s3:BypassGovernanceRetention`.
    Governance,
    /// Nobody, not even the account's root.
    Compliance,
}

impl LockMode {
    /// As it stands in plan files.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Governance => "governance",
            Self::Compliance => "compliance",
        }
    }

    pub(crate) fn s3(self) -> &'static str {
        match self {
            Self::Governance => "GOVERNANCE",
            Self::Compliance => "COMPLIANCE",
        }
    }

    pub(crate) fn of_s3(word: &str) -> Option<Self> {
        [Self::Governance, Self::Compliance].into_iter().find(|mode| mode.s3() == word)
    }
}

/// How objects of a store are locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectLock {
    pub mode: LockMode,
    /// What is kept can be destroyed by nobody for at least so long.
    pub retain: Duration,
    /// Folders with a time of their own, no longer than `retain`.
    pub classes: [LockClass; 2],
    /// Folders whose objects come and go, each with its slash.
    pub unlocked: &'static [&'static str],
}

/// Objects that are locked for another time than the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LockClass {
    /// What a plan calls it.
    pub name: &'static str,
    /// Each with its slash.
    pub folders: &'static [&'static str],
    pub retain: Duration,
}

/// How one object is locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectRetention {
    pub mode: LockMode,
    pub retain: Duration,
}

impl ObjectLock {
    /// How this object is locked; `None`: not at all.
    #[must_use]
    pub fn of(&self, key: &str) -> Option<ObjectRetention> {
        let is_below = |folders: &[&str]| folders.iter().any(|folder| key.starts_with(folder));
        let class = self.classes.iter().find(|class| is_below(class.folders));
        (!is_below(self.unlocked)).then(|| ObjectRetention { mode: self.mode, retain: class.map_or(self.retain, |class| class.retain) })
    }

    /// That of the objects whose dates are moved on the most often.
    #[must_use]
    pub fn shortest(&self) -> ObjectRetention {
        let retain = self.classes.iter().map(|class| class.retain).fold(self.retain, Duration::min);
        ObjectRetention { mode: self.mode, retain }
    }

    /// What a plan calls this time.
    #[must_use]
    pub fn name_of(&self, retention: ObjectRetention) -> &'static str {
        let class = self.classes.iter().find(|class| class.retain == retention.retain && class.retain != self.retain);
        class.map_or("retain", |class| class.name)
    }
}

impl ObjectRetention {
    /// What is added so that dates need not be moved each day.
    #[must_use]
    pub fn spare(&self) -> Duration {
        self.retain / 4
    }

    /// The date that is asked for.
    #[must_use]
    pub fn until(&self, now: DateTime<Utc>) -> DateTime<Utc> {
        // The wire has whole seconds.
        after(now, self.retain + self.spare()) + TimeDelta::seconds(1)
    }

    /// The same of an object that has a lock, which may be of the other mode and of a longer time: dates are never brought nearer.
    #[must_use]
    pub fn until_after(&self, held: Option<(LockMode, DateTime<Utc>)>, now: DateTime<Utc>) -> DateTime<Utc> {
        held.map_or(self.until(now), |(_, until)| until.max(self.until(now)))
    }

    /// The least date with which an object may be written or left as it is.
    #[must_use]
    pub fn wanted(&self, now: DateTime<Utc>) -> DateTime<Utc> {
        after(now, self.retain + self.spare() / 4)
    }

    /// Whether a client that writes this date may still be used.
    #[must_use]
    pub(crate) fn is_fresh(&self, until: DateTime<Utc>, now: DateTime<Utc>) -> bool {
        until >= after(now, self.retain + self.spare() / 2)
    }

    /// Whether a lock is strong and long enough.
    #[must_use]
    pub fn is_held(&self, lock: Option<(LockMode, DateTime<Utc>)>, now: DateTime<Utc>) -> bool {
        lock.is_some_and(|(mode, until)| (mode == self.mode || mode == LockMode::Compliance) && until >= self.wanted(now))
    }
}

fn after(now: DateTime<Utc>, time: Duration) -> DateTime<Utc> {
    TimeDelta::from_std(time).ok().and_then(|time| now.checked_add_signed(time)).unwrap_or(DateTime::<Utc>::MAX_UTC)
}

/// What the store says of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Held {
    pub size: u64,
    pub version: Option<String>,
    pub lock: Option<(LockMode, DateTime<Utc>)>,
}

/// What a bucket does about locks, found out by trying on an object below `probe/`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "independent findings, not a state")]
pub struct LockProbe {
    /// Whether earlier versions are kept, as the bucket's settings say; `None`: these credentials may not ask.
    pub versioning: Option<bool>,
    /// A lock that is asked for in the write is there afterwards. Otherwise nothing else was tried.
    pub keeps: bool,
    /// Why not, in the store's words.
    pub refusal: Option<String>,
    /// A locked version is not destroyed by these credentials.
    pub resists_destroying: bool,
    /// A lock's date is not brought nearer by these credentials.
    pub resists_shortening: bool,
    /// These credentials can destroy what is locked in governance mode.
    pub bypass: bool,
    /// A plain delete is accepted: it hides the object behind a marker and destroys nothing.
    pub hides: bool,
}

impl LockProbe {
    /// Whether what a plan asks for is enforced against these credentials.
    #[must_use]
    pub fn enforces(&self, mode: LockMode) -> bool {
        self.versioning != Some(false)
            && self.keeps
            && self.resists_destroying
            && self.resists_shortening
            && (mode == LockMode::Compliance || !self.bypass)
    }
}

impl fmt::Display for LockProbe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.keeps {
            let why = self.refusal.as_ref().map_or_else(|| "the lock was not there afterwards".to_owned(), Clone::clone);
            return write!(f, "it does not lock objects: {why}");
        }
        let versions = match self.versioning {
            Some(true) => "keeps earlier versions",
            Some(false) => "does NOT keep earlier versions",
            None => "may keep earlier versions (these credentials may not ask)",
        };
        write!(f, "it {versions}; a locked version ")?;
        f.write_str(match (self.resists_destroying, self.bypass) {
            (false, _) => "CAN BE DESTROYED with these credentials",
            (true, true) => "in governance mode CAN BE DESTROYED with these credentials, which may bypass it",
            (true, false) => "cannot be destroyed with these credentials",
        })?;
        f.write_str(if self.resists_shortening { ", and its lock cannot be shortened" } else { ", and its lock CAN BE SHORTENED" })?;
        f.write_str(if self.hides { "; a plain delete hides an object behind a marker" } else { "; a plain delete is refused" })
    }
}

/// How long the probe's own object is locked, always in governance mode.
const PROBE_RETAIN: TimeDelta = TimeDelta::seconds(60);

/// Tries. The probe's object stays as an earlier version behind a marker until the bucket's rules remove it.
pub(crate) async fn probe(bucket: &Bucket, now: DateTime<Utc>) -> Result<LockProbe> {
    let mut found = LockProbe {
        versioning: bucket.versioning().await?,
        keeps: false,
        refusal: None,
        resists_destroying: false,
        resists_shortening: false,
        bypass: false,
        hides: false,
    };
    let key = format!("probe/{}-lock", Ulid::generate().to_string().to_lowercase());
    let mode = LockMode::Governance;
    let until = now + PROBE_RETAIN;
    if let Some(refusal) = refused(bucket.put_locked(&key, Bytes::from_static(b"lifeboat probe: locked"), mode, until).await)? {
        found.refusal = Some(refusal);
        return Ok(found);
    }
    let held = bucket.look(&key, None).await?;
    let version = held.as_ref().and_then(|held| held.version.clone()).filter(|version| version != "null");
    found.keeps = held.and_then(|held| held.lock).is_some_and(|(_, date)| date >= until - TimeDelta::seconds(1));
    if version.is_none() {
        // Whatever a server repeats of a lock.
        found.keeps = false;
        found.refusal = Some("it keeps no versions".to_owned());
    }
    let Some(version) = version.filter(|_| found.keeps) else {
        if let Some(refusal) = refused(bucket.destroy(&key, None, false).await)? {
            tracing::debug!(refusal, "an object of a probe stays");
        }
        return Ok(found);
    };
    found.resists_shortening = refused(bucket.retain(&key, Some(&version), mode, now + PROBE_RETAIN / 2).await)?.is_some();
    found.resists_destroying =
        refused(bucket.destroy(&key, Some(&version), false).await)?.is_some() && bucket.look(&key, Some(&version)).await?.is_some();
    if found.resists_destroying {
        found.hides = refused(bucket.destroy(&key, None, false).await)?.is_none();
        let refusal = refused(bucket.destroy(&key, Some(&version), true).await)?;
        found.bypass = refusal.is_none() || bucket.look(&key, Some(&version)).await?.is_none();
    }
    Ok(found)
}

/// Why the store refused; `None`: it did not.
fn refused(result: Result<()>) -> Result<Option<String>> {
    match result {
        Ok(()) => Ok(None),
        Err(error) if matches!(error.kind(), Kind::Unavailable | Kind::Bug) => Err(error),
        Err(error) => Ok(Some(reason(&error))),
    }
}

fn reason(error: &Error) -> String {
    error.causes().into_iter().next().unwrap_or_else(|| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCK: ObjectRetention = ObjectRetention { mode: LockMode::Governance, retain: days(28) };

    const fn days(days: u64) -> Duration {
        Duration::from_hours(24 * days)
    }

    #[test]
    fn what_is_written_is_held_until_three_quarters_of_the_spare_time_are_over() {
        let now = "2026-11-20T02:15:00Z".parse().unwrap();
        let lock = Some((LockMode::Governance, LOCK.until(now)));
        assert!(LOCK.is_held(lock, now));
        assert!(LOCK.is_held(lock, now + TimeDelta::hours(5 * 24 + 6)));
        assert!(!LOCK.is_held(lock, now + TimeDelta::hours(5 * 24 + 7)));
        // Even then what was asked for is still there.
        assert!(LOCK.until(now) >= now + TimeDelta::hours(5 * 24 + 7) + TimeDelta::days(28));
        assert!(!LOCK.is_held(None, now));
        let strong = ObjectRetention { mode: LockMode::Compliance, ..LOCK };
        assert!(!strong.is_held(lock, now), "governance is not compliance");
        assert!(LOCK.is_held(Some((LockMode::Compliance, LOCK.until(now))), now));
        assert_eq!((LOCK.until_after(None, now), LOCK.until_after(lock, now - TimeDelta::days(1))), (LOCK.until(now), LOCK.until(now)));
    }

    #[test]
    fn each_object_is_locked_for_the_time_of_its_class_and_what_comes_and_goes_is_not() {
        let class = |name, folders, retain| LockClass { name, folders, retain };
        let lock = ObjectLock {
            mode: LockMode::Governance,
            retain: days(28),
            classes: [class("snapshots", &["packs/", "index/"], days(14)), class("logs", &["logs/"], days(7))],
            unlocked: &["sessions/", "probe/"],
        };
        for (key, retain) in [
            ("packs/00/x", Some((14, "snapshots"))),
            ("index/x", Some((14, "snapshots"))),
            ("logs/x/pieces/y", Some((7, "logs"))),
            ("format", Some((28, "retain"))),
            ("packsx", Some((28, "retain"))),
            ("sessionsx", Some((28, "retain"))),
            ("sessions/x", None),
            ("probe/x", None),
        ] {
            let found = lock.of(key).map(|of| (of.retain, lock.name_of(of)));
            assert_eq!(found, retain.map(|(of, name)| (days(of), name)), "{key}");
        }
        assert_eq!(lock.shortest().retain, days(7));
        let alike = ObjectLock { classes: lock.classes.map(|class| LockClass { retain: days(28), ..class }), ..lock };
        assert_eq!((alike.shortest().retain, alike.name_of(alike.of("logs/x").unwrap())), (days(28), "retain"));
    }

    #[test]
    fn a_date_out_of_reach_is_the_last_one() {
        let lock = ObjectRetention { retain: Duration::MAX / 8, ..LOCK };
        assert!(lock.wanted(Utc::now()) > Utc::now());
    }

    #[test]
    fn a_probe_that_found_one_gap_is_not_enforced() {
        let good = LockProbe {
            versioning: Some(true),
            keeps: true,
            refusal: None,
            resists_destroying: true,
            resists_shortening: true,
            bypass: false,
            hides: true,
        };
        assert!(good.enforces(LockMode::Governance));
        assert!(LockProbe { versioning: None, ..good.clone() }.enforces(LockMode::Governance));
        for gap in [
            LockProbe { versioning: Some(false), ..good.clone() },
            LockProbe { keeps: false, ..good.clone() },
            LockProbe { resists_destroying: false, ..good.clone() },
            LockProbe { resists_shortening: false, ..good.clone() },
        ] {
            assert!(!gap.enforces(LockMode::Compliance), "{gap}");
        }
        let bypass = LockProbe { bypass: true, ..good };
        assert!(!bypass.enforces(LockMode::Governance) && bypass.enforces(LockMode::Compliance));
    }
}

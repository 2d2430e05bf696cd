//! The retention ledger: which snapshots were removed on purpose, and which are held. What it says counts, not what objects are there.
//!
//! Entries are `retention/NUMBER`, numbered without a gap and created only if absent, each with the hash of the one before. So decisions
//! follow one another: whoever decides reads the ledger first, then what it decides upon, and takes the next number; when somebody else
//! was quicker the decision is made again. A hold and a removal can never pass each other by, nor two removals that each spare what the
//! other takes.
//!
//! A snapshot exists when its manifest is there and the ledger does not say that it was removed. That is what lets a manifest's object go
//! although a writer that never heard of its commit may create it once more, whenever that is; and it is how `verify` tells a snapshot
//! that was removed from one that was stolen: the entry has its hash and its parents, so the chain goes on through it.
//!
//! Now and then an entry carries the whole state before it (`base`), and the ones before are not needed any more.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::error::{Context as _, Error, Kind, Result};
use crate::id::{Name, SnapshotId};
use crate::repo::format::ObjectKind;
use crate::repo::session::SeenSession;
use crate::repo::snapshot::{Manifest, Parent, host_name, id_of};
use crate::repo::{Inner, Repository, seal};
use crate::store::ObjectInfo;

const FOLDER: &str = "retention/";
/// Entries after which one carries the state, so that a reader needs few.
const BASE_EVERY: u64 = 64;
/// How often a decision is made again because somebody else was quicker.
const ATTEMPTS: usize = 32;

/// A snapshot that was removed on purpose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovedSnapshot {
    pub id: SnapshotId,
    pub plan: Name,
    /// Hex BLAKE3 of the manifest's object, as in [`Parent`].
    pub hash: String,
    /// As its manifest had them.
    pub parents: Vec<Parent>,
    pub removed_at: DateTime<Utc>,
    /// For people.
    pub reason: String,
}

/// A snapshot that no retention removes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    pub snapshot: SnapshotId,
    /// `None`: until it is released.
    pub until: Option<DateTime<Utc>>,
    pub reason: String,
    /// Who asked for it: user and host, as they call themselves.
    pub by: String,
    pub held_at: DateTime<Utc>,
}

/// One decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "lowercase")]
pub enum Decision {
    Remove {
        snapshots: Vec<RemovedSnapshot>,
    },
    Hold {
        hold: Hold,
    },
    Release {
        snapshot: SnapshotId,
        by: String,
        reason: String,
    },
    /// Nothing but this number: whoever was about to take it must look again.
    Pass {
        reason: String,
    },
}

/// Everything that the entries up to one say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    removed: Vec<RemovedSnapshot>,
    holds: Vec<Hold>,
}

/// Content of an entry (JSON).
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    number: u64,
    /// Hex BLAKE3 of the stored entry before; empty for the first.
    previous: String,
    time: DateTime<Utc>,
    host: String,
    decision: Decision,
    /// The state before this entry.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    base: Option<State>,
}

/// What the ledger says.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    /// Number and hash of the newest entry.
    newest: Option<(u64, String)>,
    removed: HashMap<SnapshotId, RemovedSnapshot>,
    holds: BTreeMap<SnapshotId, Hold>,
}

impl Ledger {
    /// What is known of a snapshot that was removed.
    #[must_use]
    pub fn removed(&self, id: SnapshotId) -> Option<&RemovedSnapshot> {
        self.removed.get(&id)
    }

    /// All that were removed, in no order.
    pub fn all_removed(&self) -> impl Iterator<Item = &RemovedSnapshot> {
        self.removed.values()
    }

    /// Holds that were not released, also those whose time is over.
    #[must_use]
    pub fn holds(&self) -> &BTreeMap<SnapshotId, Hold> {
        &self.holds
    }

    /// The hold of a snapshot, if it holds now.
    #[must_use]
    pub fn hold(&self, id: SnapshotId, now: DateTime<Utc>) -> Option<&Hold> {
        self.holds.get(&id).filter(|hold| hold.until.is_none_or(|until| now < until))
    }

    fn apply(&mut self, decision: Decision) {
        match decision {
            Decision::Remove { snapshots } => {
                for snapshot in snapshots {
                    self.holds.remove(&snapshot.id);
                    self.removed.entry(snapshot.id).or_insert(snapshot);
                }
            }
            Decision::Hold { hold } => {
                self.holds.insert(hold.snapshot, hold);
            }
            Decision::Release { snapshot, .. } => {
                self.holds.remove(&snapshot);
            }
            Decision::Pass { .. } => {}
        }
    }

    fn state(&self) -> State {
        let mut removed: Vec<RemovedSnapshot> = self.removed.values().cloned().collect();
        removed.sort_by_key(|snapshot| snapshot.id);
        State { removed, holds: self.holds.values().cloned().collect() }
    }
}

impl Repository {
    /// The ledger as it is now. One listing; entries that were read before are not asked for again.
    ///
    /// # Errors
    /// `Damaged` when an entry is missing, out of its chain or cannot be opened: then nothing may be removed.
    pub fn ledger(&self) -> Result<Ledger> {
        let inner = &self.inner;
        for _ in 0..ATTEMPTS {
            let listed = inner.block_on(inner.store.list(FOLDER))?;
            let Some(last) = listed.last() else { return Ok(Ledger::default()) };
            if let Some((key, ledger)) = &*inner.ledger.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
                && key == last
            {
                return Ok(ledger.clone());
            }
            match read(inner, &listed) {
                Ok(ledger) => {
                    *inner.ledger.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some((last.clone(), ledger.clone()));
                    return Ok(ledger);
                }
                // Entries before a base were cleared away since the listing.
                Err(error) if error.kind() == Kind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Err(Error::new(Kind::Unavailable, "read the retention ledger: its entries go away while they are read").hint("try again"))
    }

    /// Adds a decision. `decide` gets the ledger and must look at everything that it decides upon *after* that; it is called again when
    /// somebody else was quicker. `None` from it: nothing is to be decided. Returns whether something was.
    ///
    /// # Errors
    /// What `decide` says; `Unavailable`: the decision may count or not (read the ledger to see).
    pub fn amend_ledger(&self, now: DateTime<Utc>, mut decide: impl FnMut(&Ledger) -> Result<Option<Decision>>) -> Result<bool> {
        let inner = &self.inner;
        for _ in 0..ATTEMPTS {
            let ledger = self.ledger()?;
            let Some(decision) = decide(&ledger)? else { return Ok(false) };
            let (before, previous) = ledger.newest.clone().unwrap_or_default();
            let number = before + 1;
            let base = number.is_multiple_of(BASE_EVERY).then(|| ledger.state());
            let has_base = base.is_some();
            let entry = Entry { number, previous, time: now, host: host_name(), decision, base };
            let key = key_of(number);
            let content = serde_json::to_vec(&entry).context(Kind::Bug, || "encode an entry of the retention ledger".into())?;
            let sealed = inner.seal_object(ObjectKind::Ledger, &key, &content)?;
            match inner.block_on(inner.store.create(&key, Bytes::from(sealed))) {
                Ok(_) => {
                    if has_base {
                        self.clear_before(number);
                    }
                    return Ok(true);
                }
                Err(error) if error.kind() == Kind::AlreadyExists => {}
                Err(error) => return Err(error.within("write the retention ledger")),
            }
        }
        Err(Error::new(Kind::Busy, "write the retention ledger: others were quicker every time").hint("try again"))
    }

    /// Takes the next number for nothing. Who has looked at the ledger before, and may have been paused since for however long, finds it taken.
    ///
    /// # Errors
    /// As [`Repository::amend_ledger`].
    pub fn pass_in_ledger(&self, reason: &str, now: DateTime<Utc>) -> Result<()> {
        self.amend_ledger(now, |_| Ok(Some(Decision::Pass { reason: reason.to_owned() }))).map(drop)
    }

    /// What the ledger is to remember of snapshots that are removed, each with its reason. Those are left out whose objects are gone: somebody else
    /// has removed them since.
    ///
    /// # Errors
    /// When a manifest cannot be read.
    pub fn removals_of(&self, manifests: &[(&Manifest, &str)], now: DateTime<Utc>) -> Result<Vec<RemovedSnapshot>> {
        let keys = manifests.iter().map(|(manifest, _)| self.manifest_key(manifest));
        let mut removed = Vec::with_capacity(manifests.len());
        for ((manifest, reason), (key, bytes)) in manifests.iter().zip(self.inner.get_all(keys)) {
            // Opened again, not only hashed: bytes that come wrong would be the chain's for ever.
            let hash = match bytes.and_then(|bytes| self.decode_manifest(&key, &bytes)) {
                Ok(Some((_, hash))) => hash,
                Ok(None) => return Err(Error::new(Kind::Damaged, format!("object {key}: is a void marker, and was a manifest"))),
                Err(error) if error.kind() == Kind::NotFound => continue,
                Err(error) => return Err(error),
            };
            removed.push(RemovedSnapshot {
                id: manifest.id,
                plan: manifest.plan.clone(),
                hash,
                parents: manifest.parents.clone(),
                removed_at: now,
                reason: (*reason).to_owned(),
            });
        }
        Ok(removed)
    }

    /// The same of one whose manifest cannot be read, or is gone. `others`: the manifests that can, which may say what it was.
    pub fn removal_of_unread<'a>(
        &self,
        plan: &Name,
        id: SnapshotId,
        others: impl Iterator<Item = &'a Manifest>,
        reason: &str,
        now: DateTime<Utc>,
    ) -> RemovedSnapshot {
        let mut named = others.filter(|other| other.plan == *plan).flat_map(|other| &other.parents).filter(|parent| parent.id == id);
        let hash = named.find(|parent| !parent.hash.is_empty()).map_or_else(String::new, |parent| parent.hash.clone());
        // What it came after is named by what was brought back in its place.
        RemovedSnapshot { id, plan: plan.clone(), hash, parents: Vec::new(), removed_at: now, reason: reason.to_owned() }
    }

    /// Snapshots whose sessions are there: committed or not, their writers may not know yet.
    ///
    /// # Errors
    /// `Damaged` when a session cannot be read.
    pub fn open_commits(&self) -> Result<Vec<SnapshotId>> {
        Ok(SeenSession::list(&self.inner)?.iter().filter_map(|session| id_of(&session.commits)).collect())
    }

    /// Whether a writer is at work on a snapshot of the plan, or was killed at it.
    ///
    /// # Errors
    /// As [`Repository::open_commits`].
    pub fn has_open_commit(&self, plan: &Name) -> Result<bool> {
        let folder = format!("snapshots/{}/", self.inner.keys.chain_name(plan.as_str()));
        let sessions = SeenSession::list(&self.inner)?.into_iter().filter(|session| session.commits.starts_with(&folder));
        Ok(SeenSession::are_decided(&sessions.collect::<Vec<_>>(), self)?.contains(&false))
    }

    /// Removes the entries that a base has made superfluous. Best effort: one that stays harms nothing.
    fn clear_before(&self, number: u64) {
        let inner = &self.inner;
        let Ok(listed) = inner.block_on(inner.store.list(FOLDER)) else { return };
        for object in listed.iter().filter(|object| number_of(&object.key).is_some_and(|other| other < number)) {
            if let Err(error) = inner.block_on(inner.store.delete(&object.key)) {
                tracing::debug!(?error, "an old entry of the retention ledger could not be removed");
                return;
            }
        }
    }
}

fn key_of(number: u64) -> String {
    format!("{FOLDER}{number:016x}")
}

fn number_of(key: &str) -> Option<u64> {
    let number = u64::from_str_radix(key.strip_prefix(FOLDER)?, 16).ok()?;
    (key_of(number) == key).then_some(number)
}

/// Reads the entries from the newest base on and checks that none is missing.
fn read(inner: &Inner, listed: &[ObjectInfo]) -> Result<Ledger> {
    use futures::StreamExt as _;
    let damaged = |what: String| Error::new(Kind::Damaged, format!("the retention ledger: {what}"));
    let mut numbers = Vec::with_capacity(listed.len());
    for ObjectInfo { key, .. } in listed {
        numbers.push(number_of(key).ok_or_else(|| damaged(format!("{key} is no name of an entry")))?);
    }
    numbers.sort_unstable();
    // The newest base is among the last of these, unless entries before it could not be removed; then all are read.
    let store = &inner.store;
    let fetched: Vec<(u64, Result<Bytes>)> = inner.block_on(
        futures::stream::iter(numbers).map(|number| async move { (number, store.get(&key_of(number)).await) }).buffered(16).collect(),
    );
    let mut ledger = Ledger::default();
    let mut read: Vec<(Entry, String)> = Vec::with_capacity(fetched.len());
    for (number, bytes) in fetched {
        let bytes = bytes?;
        let key = key_of(number);
        let content = seal::open(&inner.keys, inner.id, ObjectKind::Ledger, &key, &bytes)?;
        let entry: Entry = serde_json::from_slice(&content).map_err(|e| damaged(format!("{key} cannot be decoded")).because(e))?;
        if entry.number != number {
            return Err(damaged(format!("{key} holds another entry than its name says")));
        }
        read.push((entry, blake3::hash(&bytes).to_hex().to_string()));
    }
    let first = read.iter().rposition(|(entry, _)| entry.base.is_some()).unwrap_or(0);
    let mut expected: Option<(u64, String)> = None;
    for (entry, hash) in read.into_iter().skip(first) {
        match &expected {
            None if entry.base.is_none() && entry.number != 1 => {
                return Err(damaged(format!("entries before {} are missing", key_of(entry.number))));
            }
            Some((number, previous)) if entry.number != number + 1 || entry.previous != *previous => {
                return Err(damaged(format!("what comes before {} is missing or another one", key_of(entry.number))));
            }
            _ => {}
        }
        if let Some(base) = entry.base.filter(|_| expected.is_none()) {
            ledger.removed = base.removed.into_iter().map(|snapshot| (snapshot.id, snapshot)).collect();
            ledger.holds = base.holds.into_iter().map(|hold| (hold.snapshot, hold)).collect();
        }
        expected = Some((entry.number, hash));
        ledger.apply(entry.decision);
    }
    ledger.newest = expected;
    Ok(ledger)
}

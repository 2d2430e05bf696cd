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
//! Now and then an entry carries the whole state before it, and the ones before are not needed any more. What was removed only grows, so a state does not
//! hold it but names volumes of it ([`removed`]), each written once; of them a reader holds the ids. (Older programs wrote all of it into a `base`, which is
//! read and not written any more.)
//!
//! That the newest entries are missing cannot be seen in the ledger: whoever can delete them takes a hold back. So each machine remembers the
//! newest one that it has seen ([`SeenLedger`]), and believes no ledger that does not go on from there.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::error::{Context as _, Error, Kind, Result};
use crate::id::{Name, SnapshotId};
use crate::repo::format::ObjectKind;
use crate::repo::removed::{self, HarmedVolume, HarmedVolumes, ListedVolume, VOLUME_SNAPSHOTS, Volume, volume_number};
use crate::repo::seen::SeenLedger;
use crate::repo::session::SeenSession;
use crate::repo::snapshot::{Manifest, Parent, host_name, id_of};
use crate::repo::{Inner, REQUESTS, Repository, seal};
use crate::store::{ObjectInfo, Version};

pub(super) const FOLDER: &str = "retention/";
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
    /// Its sources that a log continued.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logs: Vec<Name>,
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

/// That a loss of a snapshot which can be read in part is accepted: what these objects held of it is gone. It is not expected to be whole any more, and goes when
/// no rule keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceptedLoss {
    pub snapshot: SnapshotId,
    /// Keys of what was found missing or damaged. Damage to anything else was not accepted.
    pub objects: BTreeSet<String>,
    pub reason: String,
    /// Who accepted it: user and host, as they call themselves.
    pub by: String,
    pub accepted_at: DateTime<Utc>,
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
    /// Losses that cannot be repaired.
    Accept {
        losses: Vec<AcceptedLoss>,
    },
    /// Takes removals back, and puts holds in their place again: somebody decided who had no right to.
    Reinstate {
        snapshots: Vec<SnapshotId>,
        holds: Vec<Hold>,
        by: String,
        reason: String,
    },
    /// Nothing but this number: whoever was about to take it must look again.
    Pass {
        reason: String,
    },
}

impl Decision {
    /// In words, for people; `None`: it decides nothing.
    pub(super) fn describe(&self) -> Option<String> {
        // A release need not have one.
        let why = |reason: &str, by: &str| if reason.is_empty() { format!("by {by}") } else { format!("{reason}, by {by}") };
        match self {
            Self::Remove { snapshots } => {
                let reasons: BTreeSet<&str> = snapshots.iter().map(|snapshot| snapshot.reason.as_str()).collect();
                Some(format!("removed {} snapshots ({})", snapshots.len(), reasons.into_iter().collect::<Vec<_>>().join("; ")))
            }
            Self::Hold { hold } => Some(format!("held snapshot {} ({})", hold.snapshot, why(&hold.reason, &hold.by))),
            Self::Release { snapshot, by, reason } => Some(format!("released snapshot {snapshot} ({})", why(reason, by))),
            Self::Accept { losses } => {
                let told =
                    |loss: &AcceptedLoss| format!("accepted the loss of snapshot {} ({})", loss.snapshot, why(&loss.reason, &loss.by));
                Some(losses.iter().map(told).collect::<Vec<_>>().join("; "))
            }
            Self::Reinstate { snapshots, holds, by, reason } => {
                let why = why(reason, by);
                Some(format!("took back the removal of {} snapshots and set {} holds ({why})", snapshots.len(), holds.len()))
            }
            Self::Pass { .. } => None,
        }
    }
}

/// A decision that came later, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaterDecision {
    /// Of its object.
    pub key: String,
    pub time: DateTime<Utc>,
    pub host: String,
    pub what: String,
}

/// What was decided since the ledger ended with an earlier entry, and still counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DecidedSince {
    /// Entries that came since, as far as they were not put into a base.
    pub decisions: Vec<LaterDecision>,
    /// Snapshots that are removed now and were not then.
    pub removed: Vec<SnapshotId>,
    /// Holds of then that are gone now, or others.
    pub holds: Vec<Hold>,
}

impl DecidedSince {
    /// Whether anything that was kept then is not kept now.
    #[must_use]
    pub fn takes_away(&self) -> bool {
        !self.removed.is_empty() || !self.holds.is_empty()
    }
}

/// Everything that the entries up to one say, as older programs wrote it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Base {
    removed: Vec<RemovedSnapshot>,
    holds: Vec<Hold>,
}

/// Everything that the entries up to one say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    /// What was removed is in these, each snapshot in one.
    volumes: Vec<ListedVolume>,
    /// Of removed snapshots, sources that a log continued, by plan.
    logs: BTreeMap<Name, BTreeSet<Name>>,
    holds: Vec<Hold>,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    accepted: Vec<AcceptedLoss>,
}

/// Content of an entry (JSON).
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Entry {
    number: u64,
    /// Hex BLAKE3 of the stored entry before; empty for the first.
    previous: String,
    time: DateTime<Utc>,
    host: String,
    decision: Decision,
    /// The state before this entry, where no loss is accepted.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    state: Option<State>,
    /// The same where losses are. Programs that know nothing of them do not know this either: they take the entries before for missing, and remove nothing.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    state_with_losses: Option<State>,
    /// The same of an older program.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    base: Option<Base>,
}

impl Entry {
    /// Whether the entries before are not needed.
    fn is_base(&self) -> bool {
        self.state.is_some() || self.state_with_losses.is_some() || self.base.is_some()
    }
}

/// What the ledger says. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    /// Hash of each entry from the newest base on, by number.
    entries: BTreeMap<u64, String>,
    /// Of the first of them: the hash of the one before.
    before: String,
    /// What was removed before the newest state, but for what was taken back since.
    volumes: Vec<Arc<Volume>>,
    reinstated: Arc<HashSet<SnapshotId>>,
    /// What was removed since.
    recent: Arc<HashMap<SnapshotId, RemovedSnapshot>>,
    logs: BTreeMap<Name, BTreeSet<Name>>,
    holds: BTreeMap<SnapshotId, Hold>,
    /// Of snapshots that were not removed.
    accepted: BTreeMap<SnapshotId, AcceptedLoss>,
}

impl Ledger {
    /// Whether a snapshot was removed.
    #[must_use]
    pub fn is_removed(&self, id: SnapshotId) -> bool {
        self.recent.contains_key(&id) || self.volume_of(id).is_some()
    }

    /// Ids of all that were removed, in no order.
    pub fn removed_ids(&self) -> impl Iterator<Item = SnapshotId> {
        let of_volumes = self.volumes.iter().flat_map(|volume| volume.ids()).filter(|id| !self.reinstated.contains(id));
        of_volumes.chain(self.recent.keys()).copied()
    }

    /// Plans, and their sources whose logs removed snapshots continued.
    pub fn logs_of_removed(&self) -> impl Iterator<Item = (&Name, &Name)> {
        self.logs.iter().flat_map(|(plan, sources)| sources.iter().map(move |source| (plan, source)))
    }

    pub(super) fn volumes(&self) -> &[Arc<Volume>] {
        &self.volumes
    }

    /// What was removed since the newest state.
    pub(super) fn recent(&self) -> impl Iterator<Item = &RemovedSnapshot> {
        self.recent.values()
    }

    /// The volume that has a snapshot, unless that was taken back since.
    fn volume_of(&self, id: SnapshotId) -> Option<&Arc<Volume>> {
        self.volumes.iter().find(|volume| volume.has(id)).filter(|_| !self.reinstated.contains(&id))
    }

    /// Whether the state that the ledger goes on from lists this object.
    pub(super) fn lists(&self, key: &str) -> bool {
        self.volumes.iter().any(|volume| volume.listed.keys().iter().any(|listed| listed == key))
    }

    /// Holds that were not released, also those whose time is over.
    #[must_use]
    pub fn holds(&self) -> &BTreeMap<SnapshotId, Hold> {
        &self.holds
    }

    /// Number and hash of the newest entry.
    pub(super) fn newest(&self) -> Option<(u64, &str)> {
        self.entries.last_key_value().map(|(number, hash)| (*number, hash.as_str()))
    }

    /// Number of the entry that comes next.
    fn next(&self) -> Result<u64> {
        let before = self.newest().map_or(0, |(number, _)| number);
        before.checked_add(1).ok_or_else(|| Error::new(Kind::Failed, "the retention ledger has no more numbers"))
    }

    /// Number of the entry that a reader begins with; those before it are not needed.
    pub(super) fn base(&self) -> Option<u64> {
        self.entries.first_key_value().map(|(number, _)| *number)
    }

    /// Whether another entry than this one is, or was, in its place. Of what lies further back than the base nothing is known.
    pub(super) fn contradicts(&self, seen: &SeenLedger) -> bool {
        let is_right_before = self.base().and_then(|base| base.checked_sub(1)) == Some(seen.number);
        let there = self.entries.get(&seen.number).or(is_right_before.then_some(&self.before));
        there.is_some_and(|hash| *hash != seen.hash)
    }

    /// Losses that were accepted, of snapshots that were not removed since.
    #[must_use]
    pub fn accepted(&self) -> &BTreeMap<SnapshotId, AcceptedLoss> {
        &self.accepted
    }

    /// Whether it was accepted that this snapshot lost what this object held.
    #[must_use]
    pub fn is_accepted(&self, id: SnapshotId, object: &str) -> bool {
        self.accepted.get(&id).is_some_and(|loss| loss.objects.contains(object))
    }

    /// The hold of a snapshot, if it holds now.
    #[must_use]
    pub fn hold(&self, id: SnapshotId, now: DateTime<Utc>) -> Option<&Hold> {
        self.holds.get(&id).filter(|hold| hold.until.is_none_or(|until| now < until))
    }

    /// The same of a snapshot or of one in whose place it stands: what was brought back is held as long as the damaged one was to be. `replaces`: see
    /// [`replacements`](crate::repo::replacements).
    #[must_use]
    pub fn hold_in_place(&self, id: SnapshotId, replaces: &BTreeMap<SnapshotId, SnapshotId>, now: DateTime<Utc>) -> Option<&Hold> {
        let mut place = Some(id);
        // As long as the longest chain can be: one that closes a ring leads nowhere.
        for _ in 0..=replaces.len() {
            if let Some(hold) = self.hold(place?, now) {
                return Some(hold);
            }
            place = replaces.get(&place?).copied();
        }
        None
    }

    fn apply(&mut self, decision: Decision) {
        match decision {
            Decision::Remove { snapshots } => {
                for snapshot in snapshots {
                    self.holds.remove(&snapshot.id);
                    self.accepted.remove(&snapshot.id);
                    if !self.is_removed(snapshot.id) {
                        self.note_logs(&snapshot);
                        Arc::make_mut(&mut self.recent).insert(snapshot.id, snapshot);
                    }
                }
            }
            Decision::Hold { hold } => {
                self.holds.insert(hold.snapshot, hold);
            }
            Decision::Release { snapshot, .. } => {
                self.holds.remove(&snapshot);
            }
            Decision::Accept { losses } => {
                for mut loss in losses {
                    if let Some(before) = self.accepted.remove(&loss.snapshot) {
                        loss.objects.extend(before.objects);
                    }
                    self.accepted.insert(loss.snapshot, loss);
                }
            }
            Decision::Reinstate { snapshots, holds, .. } => {
                for id in snapshots {
                    if Arc::make_mut(&mut self.recent).remove(&id).is_none() && self.volume_of(id).is_some() {
                        Arc::make_mut(&mut self.reinstated).insert(id);
                    }
                }
                self.holds.extend(holds.into_iter().map(|hold| (hold.snapshot, hold)));
            }
            Decision::Pass { .. } => {}
        }
    }

    fn note_logs(&mut self, removed: &RemovedSnapshot) {
        if !removed.logs.is_empty() {
            self.logs.entry(removed.plan.clone()).or_default().extend(removed.logs.iter().cloned());
        }
    }
}

impl Repository {
    /// The ledger as it is now. One listing; entries that were read before are not asked for again.
    ///
    /// # Errors
    /// `Damaged` when an entry is missing, out of its chain or cannot be opened, or when this machine has seen another or a newer one: then nothing
    /// may be removed.
    pub fn ledger(&self) -> Result<Ledger> {
        let inner = &self.inner;
        // The newest entry of a ledger whose state was not all there.
        let mut incomplete: Option<ObjectInfo> = None;
        for _ in 0..ATTEMPTS {
            // Before the listing: what anybody on this machine had seen by then must be in it.
            let seen = SeenLedger::read(&inner.cache.path);
            let there = inner.block_on(inner.store.list(FOLDER))?;
            let entries: Vec<&ObjectInfo> = there.iter().filter(|object| volume_number(&object.key).is_none()).collect();
            let known = inner.ledger.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
            let ledger = match (entries.last(), known) {
                (None, _) => Ledger::default(),
                (Some(last), Some((key, ledger))) if **last == key => ledger,
                (Some(last), known) => {
                    let known = known.map_or_else(Vec::new, |(_, ledger)| ledger.volumes);
                    let read = match read(inner, &entries) {
                        Ok(read) => read,
                        // Entries before a base were cleared away since the listing.
                        Err(error) if error.kind() == Kind::NotFound => continue,
                        Err(error) => return Err(error),
                    };
                    match follow(read, |listed| removed::load(inner, &there, listed, &known)) {
                        Ok(ledger) => {
                            let known = ((*last).clone(), ledger.clone());
                            *inner.ledger.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(known);
                            ledger
                        }
                        // Put together with others, for a newer state.
                        Err(error) if error.kind() == Kind::NotFound && incomplete.as_ref() != Some(*last) => {
                            incomplete = Some((*last).clone());
                            continue;
                        }
                        Err(error) if error.kind() == Kind::NotFound => {
                            return Err(damaged("a part of its state is missing").because(error));
                        }
                        Err(error) => return Err(error),
                    }
                }
            };
            if let Some(seen) = seen {
                seen.check(&ledger, &inner.cache.path)?;
            }
            SeenLedger::note(&inner.cache.path, &ledger)?;
            return Ok(ledger);
        }
        Err(Error::new(Kind::Unavailable, "read the retention ledger: its entries go away while they are read").hint("try again"))
    }

    /// The ledger as it was last read here, which asks nobody.
    pub(super) fn known_ledger(&self) -> Option<Ledger> {
        let known = self.inner.ledger.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        known.as_ref().map(|(_, ledger)| ledger.clone())
    }

    /// The same for those who only want to know what else it says of what is there: a damaged one, which is told elsewhere, says nothing.
    ///
    /// # Errors
    /// When the store cannot be asked.
    pub fn ledger_or_none(&self) -> Result<Ledger> {
        match self.ledger() {
            Err(error) if error.kind() == Kind::Damaged => Ok(Ledger::default()),
            ledger => ledger,
        }
    }

    /// Adds a decision. `decide` gets the ledger and must look at everything that it decides upon *after* that; it is called again when
    /// somebody else was quicker. `None` from it: nothing is to be decided. Returns whether something was.
    ///
    /// # Errors
    /// What `decide` says; `Unavailable`: the decision may count or not (read the ledger to see).
    pub fn amend_ledger(&self, now: DateTime<Utc>, mut decide: impl FnMut(&Ledger) -> Result<Option<Decision>>) -> Result<bool> {
        for _ in 0..ATTEMPTS {
            let ledger = self.ledger()?;
            let Some(decision) = decide(&ledger)? else { return Ok(false) };
            let number = ledger.next()?;
            let state =
                if number.is_multiple_of(BASE_EVERY) { Some(self.write_state(&ledger, number, &HarmedVolumes::new())?) } else { None };
            if self.add_entry(&ledger, number, decision, state, now)? {
                return Ok(true);
            }
        }
        Err(too_slow())
    }

    /// Makes volumes anew of which one half cannot be read: ids from records, which say them too; of records that are lost, that these snapshots were removed stays
    /// known. Returns what it made anew.
    ///
    /// # Errors
    /// `Damaged` when more of the ledger is; as [`Repository::amend_ledger`].
    pub fn mend_volumes(&self, reason: &str, now: DateTime<Utc>) -> Result<HarmedVolumes> {
        for _ in 0..ATTEMPTS {
            let (ledger, harmed) = self.harmed_ledger()?;
            if harmed.is_empty() {
                return Ok(harmed);
            }
            let number = ledger.next()?;
            let state = self.write_state(&ledger, number, &harmed)?;
            if self.add_entry(&ledger, number, Decision::Pass { reason: reason.to_owned() }, Some(state), now)? {
                return Ok(harmed);
            }
        }
        Err(too_slow())
    }

    /// The keys of objects of volumes that [`Repository::mend_volumes`] would make anew, or give up.
    ///
    /// # Errors
    /// `Damaged` when more of the ledger is; when the store cannot be asked.
    pub fn harmed_volumes(&self) -> Result<BTreeMap<String, HarmedVolume>> {
        let (ledger, harmed) = self.harmed_ledger()?;
        let key = |volume: &Arc<Volume>| {
            let harm = *harmed.get(&volume.listed.name)?;
            Some((if harm == HarmedVolume::Ids { volume.listed.ids_key() } else { volume.listed.records_key() }, harm))
        };
        Ok(ledger.volumes.iter().filter_map(key).collect())
    }

    /// The ledger as it is in the store now, also where one half of a volume cannot be read. All of it is read.
    fn harmed_ledger(&self) -> Result<(Ledger, HarmedVolumes)> {
        let inner = &self.inner;
        let seen = SeenLedger::read(&inner.cache.path);
        let there = inner.block_on(inner.store.list(FOLDER))?;
        let entries: Vec<&ObjectInfo> = there.iter().filter(|object| volume_number(&object.key).is_none()).collect();
        let mut harmed = HarmedVolumes::new();
        let ledger = follow(read(inner, &entries)?, |listed| {
            let (volumes, found) = removed::load_harmed(inner, listed)?;
            harmed = found;
            Ok(volumes)
        })?;
        if let Some(seen) = seen {
            seen.check(&ledger, &inner.cache.path)?;
        }
        Ok((ledger, harmed))
    }

    /// Writes the entry with this number, which is the next one after the ledger's, and clears away what its state makes superfluous. `false`: somebody else
    /// was quicker.
    fn add_entry(&self, ledger: &Ledger, number: u64, decision: Decision, state: Option<State>, now: DateTime<Utc>) -> Result<bool> {
        let inner = &self.inner;
        let previous = ledger.newest().map_or_else(String::new, |(_, hash)| hash.to_owned());
        let volumes = state.as_ref().map(|state| state.volumes.clone());
        let (state_with_losses, state) =
            state.map_or((None, None), |state| if state.accepted.is_empty() { (None, Some(state)) } else { (Some(state), None) });
        let entry = Entry { number, previous, time: now, host: host_name(), decision, state, state_with_losses, base: None };
        let key = key_of(number);
        let content = serde_json::to_vec(&entry).context(Kind::Bug, || "encode an entry of the retention ledger".into())?;
        let sealed = inner.seal_object(ObjectKind::Ledger, &key, &content)?;
        let hash = blake3::hash(&sealed).to_hex().to_string();
        match inner.block_on(inner.store.create(&key, Bytes::from(sealed))) {
            Ok(_) => {
                SeenLedger { number, hash }.write(&inner.cache.path)?;
                if let Some(volumes) = volumes {
                    self.clear_before(number, &volumes);
                }
                Ok(true)
            }
            Err(error) if error.kind() == Kind::AlreadyExists => Ok(false),
            Err(error) => Err(error.within("write the retention ledger")),
        }
    }

    /// Takes the next number for nothing. Who has looked at the ledger before, and may have been paused since for however long, finds it taken.
    ///
    /// # Errors
    /// As [`Repository::amend_ledger`].
    pub fn pass_in_ledger(&self, reason: &str, now: DateTime<Utc>) -> Result<()> {
        self.amend_ledger(now, |_| Ok(Some(Decision::Pass { reason: reason.to_owned() }))).map(drop)
    }

    /// What is decided now and was not when the ledger was made of these versions of its entries (of each key one, in their order).
    ///
    /// # Errors
    /// As [`Repository::ledger`], of either of the two.
    pub fn decided_since(&self, then: &[Version]) -> Result<DecidedSince> {
        let then = self.ledger_of(then)?;
        let now = self.ledger()?;
        let mut since = since(&then, &now);
        let inner = &self.inner;
        let last = then.newest().map_or(0, |(number, _)| number);
        let listed = inner.block_on(inner.store.list(FOLDER))?;
        let newer: Vec<ObjectInfo> =
            listed.into_iter().filter(|object| number_of(&object.key).is_some_and(|number| number > last)).collect();
        for (entry, _) in read(inner, &newer.iter().collect::<Vec<_>>())? {
            let (key, time, host) = (key_of(entry.number), entry.time, entry.host);
            since.decisions.extend(entry.decision.describe().map(|what| LaterDecision { key, time, host, what }));
        }
        Ok(since)
    }

    /// Takes back what was decided since: snapshots that were removed count again, and holds that were released hold. For when their objects are
    /// there again, and no collection is at work that began before. Returns what was taken back.
    ///
    /// # Errors
    /// As [`Repository::decided_since`] and [`Repository::amend_ledger`].
    pub fn reinstate(&self, then: &[Version], by: &str, reason: &str, now: DateTime<Utc>) -> Result<DecidedSince> {
        self.reinstate_to(&self.ledger_of(then)?, by, reason, now)
    }

    pub(super) fn reinstate_to(&self, then: &Ledger, by: &str, reason: &str, now: DateTime<Utc>) -> Result<DecidedSince> {
        let mut taken = DecidedSince::default();
        self.amend_ledger(now, |ledger| {
            taken = since(then, ledger);
            let (snapshots, holds) = (taken.removed.clone(), taken.holds.clone());
            let decision = || Decision::Reinstate { snapshots, holds, by: by.to_owned(), reason: reason.to_owned() };
            Ok(taken.takes_away().then(decision))
        })?;
        Ok(taken)
    }

    /// Deletes (hides, in a versioned bucket) the entries behind those that the ledger was made of, the newest first: for entries that do not go on from
    /// there, because somebody had put others in their place. This machine believes the ledger as it is then.
    ///
    /// # Errors
    /// `Damaged` when it was not whole then; what the store says.
    pub fn put_ledger_back(&self, then: &[Version]) -> Result<()> {
        self.put_ledger_back_to(&self.ledger_of(then)?)
    }

    pub(super) fn put_ledger_back_to(&self, then: &Ledger) -> Result<()> {
        let inner = &self.inner;
        let last = then.newest().map_or(0, |(number, _)| number);
        let listed = inner.block_on(inner.store.list(FOLDER))?;
        // Then the volumes that were written for them.
        for of in [number_of, volume_number] {
            for object in listed.iter().rev().filter(|object| of(&object.key).is_some_and(|number| number > last)) {
                inner.block_on(inner.store.delete(&object.key))?;
            }
        }
        self.forget_ledger().map(drop)
    }

    /// Of entries that were deleted behind the ledger's newest one (all versions of each, by number), those that it had: version by version they go on
    /// from it. Others were put there by somebody in the place of entries that are back.
    pub(super) fn stolen_entries<'a>(&self, ledger: &Ledger, deleted: &[&'a [Version]]) -> Result<Vec<&'a Version>> {
        let (mut number, hash) = ledger.newest().unwrap_or_default();
        // Whether the entry before was the ledger's, and its hashes.
        let mut before = (true, vec![hash.to_owned()]);
        let mut stolen = Vec::new();
        for of_key in deleted {
            let contents = self.contents(of_key)?;
            let next = number_of(&of_key[0].key).unwrap_or_default();
            let is_next = next.checked_sub(1) == Some(number);
            let follower = contents.iter().find(|(_, previous, _)| before.1.contains(previous));
            number = next;
            before = match (is_next, before.0, follower) {
                (true, true, Some((version, _, hash))) => {
                    stolen.push(*version);
                    (true, vec![hash.clone()])
                }
                (true, true, None) | (true, false, Some(_)) => (false, contents.into_iter().map(|(_, _, hash)| hash).collect()),
                // What was before it is not known.
                _ => {
                    stolen.extend(of_key.iter().rfind(|version| !version.marker));
                    (true, contents.into_iter().map(|(_, _, hash)| hash).collect())
                }
            };
        }
        Ok(stolen)
    }

    /// Whether another version of an entry that is there could stand in its place as well as it does.
    pub(super) fn is_entry_replaced(&self, ledger: &Ledger, of_key: &[Version]) -> Result<bool> {
        let Some(number) = number_of(&of_key[0].key) else { return Ok(false) };
        let before = ledger.entries.get(&number.wrapping_sub(1)).or_else(|| (ledger.base() == Some(number)).then_some(&ledger.before));
        let (Some(before), Some(there)) = (before, ledger.entries.get(&number)) else { return Ok(false) };
        Ok(self.contents(of_key)?.iter().any(|(_, previous, hash)| previous == before && hash != there))
    }

    /// Of versions of an entry that can be opened: what each says came before it, and its own hash.
    fn contents<'a>(&self, of_key: &'a [Version]) -> Result<Vec<(&'a Version, String, String)>> {
        let inner = &self.inner;
        let mut contents = Vec::new();
        for version in of_key.iter().filter(|version| !version.marker) {
            let bytes = inner.block_on(inner.store.get_version(&version.key, &version.version))?;
            match open_entry(inner, &version.key, &bytes) {
                Ok((entry, hash)) => contents.push((version, entry.previous, hash)),
                Err(error) if error.kind() == Kind::Damaged => {}
                Err(error) => return Err(error),
            }
        }
        Ok(contents)
    }

    fn ledger_of(&self, versions: &[Version]) -> Result<Ledger> {
        use futures::{StreamExt as _, TryStreamExt as _};
        let inner = &self.inner;
        let entries: Vec<&Version> = versions.iter().filter(|version| number_of(&version.key).is_some()).collect();
        let fetches = futures::stream::iter(&entries).map(|version| inner.store.get_version(&version.key, &version.version));
        let fetched: Vec<Bytes> = inner.block_on(fetches.buffered(REQUESTS).try_collect())?;
        let opened = entries.iter().zip(fetched).map(|(version, bytes)| open_entry(inner, &version.key, &bytes));
        let volume = |listed: &ListedVolume| {
            let key = listed.ids_key();
            let version = versions.iter().find(|version| version.key == key);
            let version = version.ok_or_else(|| damaged(&format!("{key} was not there")))?;
            removed::open_volume(inner, listed, &inner.block_on(inner.store.get_version(&version.key, &version.version))?)
        };
        follow(opened.collect::<Result<_>>()?, |listed| listed.iter().map(volume).collect())
    }

    /// What is known of a snapshot that was removed; `None`: it was not.
    ///
    /// # Errors
    /// When that cannot be read.
    pub fn removal(&self, ledger: &Ledger, id: SnapshotId) -> Result<Option<RemovedSnapshot>> {
        match (ledger.recent.get(&id), ledger.volume_of(id)) {
            (Some(recent), _) => Ok(Some(recent.clone())),
            (None, Some(volume)) => Ok(self.records_of(volume)?.into_iter().find(|snapshot| snapshot.id == id)),
            (None, None) => Ok(None),
        }
    }

    /// Goes through all that is known of snapshots that were removed, a volume at a time, in no order: there may be a million.
    ///
    /// # Errors
    /// `Damaged`, after all that can be read, when some of it cannot be or was lost; when the store cannot be asked.
    pub fn removals(&self, ledger: &Ledger, mut each: impl FnMut(RemovedSnapshot)) -> Result<()> {
        let mut damaged = None;
        for volume in ledger.volumes() {
            match self.removals_in(ledger, volume, &mut each) {
                Err(error) if error.kind() == Kind::Damaged => damaged = damaged.or(Some(error)),
                read => read?,
            }
        }
        ledger.recent.values().cloned().for_each(each);
        damaged.map_or(Ok(()), Err)
    }

    /// The same of one volume.
    pub(super) fn removals_in(&self, ledger: &Ledger, volume: &Volume, each: impl FnMut(RemovedSnapshot)) -> Result<()> {
        self.records_of(volume)?.into_iter().filter(|snapshot| !ledger.reinstated.contains(&snapshot.id)).for_each(each);
        Ok(())
    }

    /// The records of a volume, also when it was put together with others since the ledger was read.
    fn records_of(&self, volume: &Volume) -> Result<Vec<RemovedSnapshot>> {
        let inner = &self.inner;
        let gone = match removed::records(inner, volume) {
            Err(error) if error.kind() == Kind::NotFound => error,
            records => return records,
        };
        let ledger = self.ledger()?;
        if ledger.lists(&volume.listed.records_key()) {
            return Err(damaged("a part of its state is missing").because(gone));
        }
        let mut records = Vec::new();
        for other in ledger.volumes.iter().filter(|other| volume.ids().iter().any(|id| other.has(*id))) {
            let again = removed::records(inner, other).map_err(|error| match error.kind() {
                Kind::NotFound => {
                    Error::new(Kind::Unavailable, "read the retention ledger: its volumes are put together while they are read")
                        .hint("try again")
                }
                _ => error,
            });
            records.extend(again?.into_iter().filter(|snapshot| volume.has(snapshot.id)));
        }
        Ok(records)
    }

    /// Writes what was removed since the last state into volumes; yields what is the state before the entry with this number. Small volumes before are
    /// put together with it, and those that have what was taken back are written anew, as those that are `harmed`. One whose records cannot be read stays as it
    /// is where nothing must be done about it: that what it has was removed is known, and a decision must not depend on more.
    fn write_state(&self, ledger: &Ledger, number: u64, harmed: &HarmedVolumes) -> Result<State> {
        let is_changed = |volume: &Volume| !ledger.reinstated.is_empty() && volume.ids().iter().any(|id| ledger.reinstated.contains(id));
        let is_to_be_written = |volume: &Volume| is_changed(volume) || harmed.contains_key(&volume.listed.name);
        let (mut again, mut kept): (Vec<&Arc<Volume>>, Vec<&Arc<Volume>>) =
            ledger.volumes.iter().partition(|volume| is_to_be_written(volume));
        let mut count = ledger.recent.len();
        while let Some(last) = kept.pop_if(|last| last.ids().len() <= count && count + last.ids().len() <= VOLUME_SNAPSHOTS) {
            count += last.ids().len();
            again.push(last);
        }
        let mut snapshots: BTreeMap<SnapshotId, RemovedSnapshot> =
            ledger.recent.iter().map(|(id, snapshot)| (*id, snapshot.clone())).collect();
        let mut volumes = Vec::new();
        for volume in again {
            let mut records = Vec::new();
            let is_lost = volume.listed.is_without_records() || harmed.get(&volume.listed.name) == Some(&HarmedVolume::Records);
            let read = if is_lost { Ok(()) } else { self.removals_in(ledger, volume, |snapshot| records.push(snapshot)) };
            match read {
                Ok(()) if is_lost && is_to_be_written(volume) => {
                    let ids: Vec<SnapshotId> = volume.ids().iter().copied().filter(|id| !ledger.reinstated.contains(id)).collect();
                    if !ids.is_empty() {
                        volumes.push(removed::write(&self.inner, number, &ids, None)?);
                    }
                }
                Ok(()) if is_lost => kept.push(volume),
                Ok(()) => {
                    for snapshot in records {
                        snapshots.entry(snapshot.id).or_insert(snapshot);
                    }
                }
                Err(error) if error.kind() == Kind::Damaged && !is_to_be_written(volume) => kept.push(volume),
                Err(error) if error.kind() == Kind::Damaged => return Err(error.hint("`lifeboat repair` says what can be done about it")),
                Err(error) => return Err(error),
            }
        }
        volumes.splice(0..0, kept.into_iter().map(|volume| volume.listed.clone()));
        for (ids, records) in removed::into_volumes(&snapshots) {
            volumes.push(removed::write(&self.inner, number, &ids, Some(&records))?);
        }
        let (holds, accepted) = (ledger.holds.values().cloned().collect(), ledger.accepted.values().cloned().collect());
        Ok(State { volumes, logs: ledger.logs.clone(), holds, accepted })
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
                logs: Vec::new(),
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
        RemovedSnapshot { id, plan: plan.clone(), hash, parents: Vec::new(), removed_at: now, reason: reason.to_owned(), logs: Vec::new() }
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

    /// Removes what the state of an entry, which lists these volumes, has made superfluous: entries before it, and volumes that were written for it or
    /// before and that it does not list. (Those of later entries may be about to be listed.) Best effort: one that stays harms nothing.
    fn clear_before(&self, number: u64, volumes: &[ListedVolume]) {
        let inner = &self.inner;
        let Ok(listed) = inner.block_on(inner.store.list(FOLDER)) else { return };
        let kept: HashSet<String> = volumes.iter().flat_map(ListedVolume::keys).collect();
        let is_over = |key: &str| match (number_of(key), volume_number(key)) {
            (Some(entry), _) => entry < number,
            (None, Some(written_for)) => written_for <= number && !kept.contains(key),
            (None, None) => false,
        };
        for object in listed.iter().filter(|object| is_over(&object.key)) {
            if let Err(error) = inner.block_on(inner.store.delete(&object.key)) {
                tracing::debug!(?error, "an old part of the retention ledger could not be removed");
                return;
            }
        }
    }
}

/// Key of the entry with this number.
pub(super) fn key_of(number: u64) -> String {
    format!("{FOLDER}{number:016x}")
}

/// Number of the entry with this key; `None`: it is no name of an entry.
pub(super) fn number_of(key: &str) -> Option<u64> {
    let number = u64::from_str_radix(key.strip_prefix(FOLDER)?, 16).ok()?;
    (key_of(number) == key).then_some(number)
}

/// What one ledger keeps that another one, which came after it, does not.
fn since(then: &Ledger, now: &Ledger) -> DecidedSince {
    let mut removed: Vec<SnapshotId> = now.removed_ids().filter(|id| !then.is_removed(*id)).collect();
    removed.sort_unstable();
    let holds = then.holds.values().filter(|hold| now.holds.get(&hold.snapshot) != Some(*hold)).cloned().collect();
    DecidedSince { decisions: Vec::new(), removed, holds }
}

/// An entry, and the hex BLAKE3 of what is stored.
type Stored = (Entry, String);

fn too_slow() -> Error {
    Error::new(Kind::Busy, "write the retention ledger: others were quicker every time").hint("try again")
}

fn damaged(what: &str) -> Error {
    Error::new(Kind::Damaged, format!("the retention ledger: {what}"))
}

/// Reads the entries that a listing shows, in the order of their numbers.
fn read(inner: &Inner, listed: &[&ObjectInfo]) -> Result<Vec<Stored>> {
    let mut numbers = Vec::with_capacity(listed.len());
    for ObjectInfo { key, .. } in listed {
        numbers.push(number_of(key).ok_or_else(|| damaged(&format!("{key} is no name of an entry")))?);
    }
    numbers.sort_unstable();
    // The newest base is among the last of these, unless entries before it could not be removed; then all are read.
    let fetched = inner.get_all(numbers.into_iter().map(key_of));
    fetched.into_iter().map(|(key, bytes)| open_entry(inner, &key, &bytes?)).collect()
}

fn open_entry(inner: &Inner, key: &str, bytes: &[u8]) -> Result<Stored> {
    let content = seal::open(&inner.keys, inner.id, ObjectKind::Ledger, key, bytes)?;
    let entry = decode(&content).map_err(|e| damaged(&format!("{key} cannot be decoded")).because(e))?;
    if Some(entry.number) != number_of(key) {
        return Err(damaged(&format!("{key} holds another entry than its name says")));
    }
    Ok((entry, blake3::hash(bytes).to_hex().to_string()))
}

fn decode(content: &[u8]) -> serde_json::Result<Entry> {
    serde_json::from_slice(content)
}

/// Whether these are entries that go on one from the other; each alone is read whole or not at all. For fuzzing.
pub(super) fn parse<'a>(contents: impl Iterator<Item = &'a [u8]>) -> bool {
    let entries: Vec<Stored> = contents
        .map_while(|content| {
            let entry = decode(content).ok()?;
            let again = serde_json::to_vec(&entry).ok().and_then(|json| decode(&json).ok());
            assert!(again.is_some_and(|again| again == entry), "what was read can be written and read again");
            let _ = entry.decision.describe();
            Some((entry, blake3::hash(content).to_hex().to_string()))
        })
        .collect();
    let count = entries.len();
    let Ok(ledger) = follow(entries, |volumes| volumes.iter().map(|_| Err(damaged("there are no volumes here"))).collect()) else {
        return false;
    };
    assert_eq!(ledger.newest().is_none(), count == 0);
    let snapshots: BTreeMap<SnapshotId, RemovedSnapshot> = ledger.recent.iter().map(|(id, snapshot)| (*id, snapshot.clone())).collect();
    let volumes = removed::into_volumes(&snapshots);
    let again = volumes.iter().flat_map(|(_, records)| removed::decode_records(records).unwrap_or_default());
    assert!(again.eq(snapshots.into_values()), "a volume says what the entries before it said");
    count > 0
}

/// What entries say, in the order of their numbers: begins with the newest base and checks that none is missing from there on. `load` reads the volumes
/// that it lists.
fn follow(read: Vec<Stored>, load: impl FnOnce(&[ListedVolume]) -> Result<Vec<Arc<Volume>>>) -> Result<Ledger> {
    let mut ledger = Ledger::default();
    let first = read.iter().rposition(|(entry, _)| entry.is_base()).unwrap_or(0);
    let mut load = Some(load);
    for (entry, hash) in read.into_iter().skip(first) {
        let number = entry.number;
        match ledger.newest() {
            None if !entry.is_base() && number != 1 => {
                return Err(damaged(&format!("entries before {} are missing", key_of(number))));
            }
            Some((before, previous)) if before.checked_add(1) != Some(number) || entry.previous != previous => {
                return Err(damaged(&format!("what comes before {} is missing or another one", key_of(number))));
            }
            Some(_) => {}
            None => {
                ledger.before = entry.previous;
                if let (Some(state), Some(load)) = (entry.state.or(entry.state_with_losses), load.take()) {
                    ledger.volumes = load(&state.volumes)?;
                    ledger.logs = state.logs;
                    ledger.holds = state.holds.into_iter().map(|hold| (hold.snapshot, hold)).collect();
                    ledger.accepted = state.accepted.into_iter().map(|loss| (loss.snapshot, loss)).collect();
                } else if let Some(base) = entry.base {
                    base.removed.iter().for_each(|snapshot| ledger.note_logs(snapshot));
                    ledger.recent = Arc::new(base.removed.into_iter().map(|snapshot| (snapshot.id, snapshot)).collect());
                    ledger.holds = base.holds.into_iter().map(|hold| (hold.snapshot, hold)).collect();
                }
            }
        }
        ledger.entries.insert(number, hash);
        ledger.apply(entry.decision);
    }
    Ok(ledger)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_what_was_seen_the_one_right_before_the_base_is_compared_too() {
        let ledger =
            Ledger { entries: BTreeMap::from([(64, "c".to_owned()), (65, "d".to_owned())]), before: "b".to_owned(), ..Ledger::default() };
        let contradicts = |number: u64, hash: &str| ledger.contradicts(&SeenLedger { number, hash: hash.to_owned() });
        assert_eq!(["c", "x"].map(|hash| contradicts(64, hash)), [false, true]);
        assert_eq!(["d", "x"].map(|hash| contradicts(65, hash)), [false, true]);
        assert_eq!(["b", "x"].map(|hash| contradicts(63, hash)), [false, true]);
        assert!(!contradicts(62, "x"), "of that nothing is known any more");
    }
}

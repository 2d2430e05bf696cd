//! What is stored below `keys/`, and what is done with it: opening, slots, rotation, exports, keys of plans.
//!
//! **Rotation, step by step.** (1) A root for generation `n` is made in memory. (2) For every slot that is carried along, an update is created
//! beside it; for every plan with a key of its own, a new key under generation `n`. (3) The marker `keys/generation-<n>` is created: the
//! commit; of two rotations at the same time exactly one creates it. (4) What is superseded or shut out is deleted. Killed before (3),
//! everything opens and writes as before and what was written is never looked at again; killed after it, everything opens with generation
//! `n`. A slot that got no update is *left behind*: it reads what is older, and may not write.

mod check;

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::StreamExt as _;
use serde::{Deserialize, Serialize};

use crate::error::{Context as _, Error, Kind, Result};
use crate::event::{Cancel, Progress};
use crate::id::SessionId;
use crate::repo::format::{ObjectKind, PackKind, RepositoryId};
use crate::repo::keys::{
    KeyFile, KeyObject, KeySlot, Keys, Lock, Marker, OWN_FIRST, Opened, Passphrase, RecoveryKey, Role, Share, StoredSlot, Update,
    erased_key_of, generate_recovery_key, key_of, split_shares,
};
use crate::repo::snapshot::host_name;
use crate::repo::{CollectOptions, Collection, Inner, OpenOptions, Repository, block_on, seal, seen};
use crate::store::{ObjectInfo, Store, Version};

/// Slots and marks asked for at a time.
const REQUESTS: usize = 16;

/// The objects below `keys/` by what they are. Slots are read; the others only when they are needed.
pub(super) struct Ring {
    pub standing: Standing,
    /// By name of the object; one that cannot be decoded is an error in its place.
    pub slots: Vec<(String, Result<StoredSlot>)>,
    /// Generations that were committed, and their markers.
    markers: BTreeMap<u16, Marker>,
    /// Why a marker cannot be used, by generation.
    bad_markers: BTreeMap<u16, Error>,
    /// Slot, generation, attempt.
    updates: Vec<(String, u16, String)>,
    /// Number, and whether it is the record of a destroyed one.
    plan_keys: Vec<(u16, bool)>,
}

/// What the names below `keys/` say of who is to write with what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Standing {
    /// The newest generation that has a marker; 0: none has.
    pub newest: u16,
    /// As in [`Ring`], sorted.
    pub plan_keys: Vec<(u16, bool)>,
}

impl Standing {
    pub fn of(listed: &[ObjectInfo]) -> Self {
        let mut standing = Self::default();
        for object in listed {
            match KeyObject::of(&object.key) {
                KeyObject::Marker(generation) => standing.newest = standing.newest.max(generation),
                KeyObject::PlanKey { number, erased } => standing.plan_keys.push((number, erased)),
                KeyObject::Slot(_) | KeyObject::Update { .. } | KeyObject::Other => {}
            }
        }
        standing.plan_keys.sort_unstable();
        standing
    }
}

impl Ring {
    /// One listing, and one request for each slot and marker.
    pub fn read(store: &Store, runtime: &tokio::runtime::Handle) -> Result<Self> {
        let listed = block_on(runtime, store.list("keys/"))?;
        Self::fetch(store, runtime, listed)
    }

    /// The same of what was listed.
    ///
    /// # Errors
    /// `Unavailable` and the like; what is damaged is kept as such.
    pub fn fetch(store: &Store, runtime: &tokio::runtime::Handle, listed: Vec<ObjectInfo>) -> Result<Self> {
        let mut ring = Self {
            standing: Standing::of(&listed),
            slots: Vec::new(),
            markers: BTreeMap::new(),
            bad_markers: BTreeMap::new(),
            updates: Vec::new(),
            plan_keys: Vec::new(),
        };
        // Far away each answer takes its time: all are asked for at once.
        let wanted = listed.iter().filter(|object| matches!(KeyObject::of(&object.key), KeyObject::Slot(_) | KeyObject::Marker(_)));
        let fetches = futures::stream::iter(wanted).map(|object| async move { (object.key.clone(), store.get(&object.key).await) });
        let mut fetched: HashMap<String, Result<Bytes>> = block_on(runtime, fetches.buffer_unordered(REQUESTS).collect());
        for object in listed {
            let mut bytes =
                || fetched.remove(&object.key).unwrap_or_else(|| Err(Error::new(Kind::Bug, format!("{} was not asked for", object.key))));
            let damaged = |what: &str| Error::new(Kind::Damaged, format!("object {}: {what}", object.key));
            match KeyObject::of(&object.key) {
                KeyObject::Slot(_) => {
                    let bytes = bytes();
                    // Neither by its name nor by what it holds: others put it there.
                    if !KeyObject::is_slot_name(&object.key) && bytes.as_ref().is_ok_and(|bytes| StoredSlot::from_json(bytes).is_err()) {
                        continue;
                    }
                    let slot = bytes.and_then(|bytes| {
                        let slot = StoredSlot::from_json(&bytes).map_err(|e| damaged("is not a key slot").because(e))?;
                        if slot.key() == object.key { Ok(slot) } else { Err(damaged("holds another key slot than its name says")) }
                    });
                    ring.slots.push((object.key, slot));
                }
                KeyObject::Marker(generation) => {
                    let marker = bytes().and_then(|bytes| {
                        let marker: Marker =
                            serde_json::from_slice(&bytes).map_err(|e| damaged("is not a mark of a key generation").because(e))?;
                        if marker.generation == generation {
                            Ok(marker)
                        } else {
                            Err(damaged("is of another generation than its name says"))
                        }
                    });
                    match marker {
                        Ok(marker) => drop(ring.markers.insert(generation, marker)),
                        // A store that is away says nothing of the mark.
                        Err(error) if !matches!(error.kind(), Kind::Damaged | Kind::NotFound) => return Err(error),
                        Err(error) => drop(ring.bad_markers.insert(generation, error)),
                    }
                }
                KeyObject::Update { slot, generation, attempt } => ring.updates.push((slot, generation, attempt)),
                KeyObject::PlanKey { number, erased } => ring.plan_keys.push((number, erased)),
                KeyObject::Other => {}
            }
        }
        Ok(ring)
    }

    /// Slots that are as they were stored; a changed one is an error in its place.
    pub fn whole(self) -> Vec<(String, Result<StoredSlot>)> {
        let whole = |key: &str, slot: StoredSlot| {
            if slot.is_whole() { Ok(slot) } else { Err(Error::new(Kind::Damaged, format!("object {key}: was changed"))) }
        };
        self.slots
            .into_iter()
            .map(|(key, slot)| {
                let slot = slot.and_then(|slot| whole(&key, slot));
                (key, slot)
            })
            .collect()
    }

    fn newest(&self) -> u16 {
        self.markers.keys().chain(self.bad_markers.keys()).max().copied().unwrap_or(1)
    }

    /// The newest generation that a slot's holder gets, by names alone.
    pub fn generation_of(&self, slot: &StoredSlot) -> u16 {
        let updates = self.updates.iter().filter(|(id, generation, attempt)| {
            *id == slot.id && self.markers.get(generation).is_some_and(|marker| marker.attempt() == *attempt)
        });
        updates.map(|(_, generation, _)| *generation).max().unwrap_or(0).max(slot.generation())
    }

    /// Brings what a slot held when it was made up to the newest generation that was given to it, and takes in the keys of plans.
    ///
    /// # Errors
    /// `Damaged` when an update that the repository's generation needs is; `Unavailable`.
    pub fn bring_up(
        &self,
        store: &Store,
        runtime: &tokio::runtime::Handle,
        id: RepositoryId,
        slot: &StoredSlot,
        opened: &Opened,
        keys: Keys,
    ) -> Result<Keys> {
        let mut chain: HashMap<u16, [u8; 32]> = HashMap::new();
        let mut last = keys.generation;
        let mut verifying = keys.verifying_key();
        let mut trouble = None;
        for marker in self.markers.values().filter(|marker| marker.generation > keys.generation) {
            match (verifying, marker.verifying()) {
                (Some(signer), Some(next)) if marker.previous == last && marker.is_of(id, &signer) => {
                    chain.insert(marker.generation, next);
                    (last, verifying) = (marker.generation, Some(next));
                }
                // A slot of version 1 without the reader role cannot tell. It must not write in any case.
                (None, _) => trouble = trouble.or(Some((marker.generation, None))),
                _ => {
                    let key = Marker::key(marker.generation);
                    let error = Error::new(Kind::Damaged, format!("object {key}: is not signed by the key generation before it"));
                    trouble = trouble.or(Some((marker.generation, Some(error))));
                }
            }
        }
        for (generation, _) in self.bad_markers.iter().filter(|(generation, _)| **generation > keys.generation) {
            trouble = trouble.or(Some((*generation, None)));
        }
        let mut mine: Vec<(u16, &String)> = self
            .updates
            .iter()
            .filter(|(of, generation, attempt)| {
                *of == slot.id
                    && chain.contains_key(generation)
                    && self.markers.get(generation).is_some_and(|marker| marker.attempt() == *attempt)
            })
            .map(|(_, generation, attempt)| (*generation, attempt))
            .collect();
        mine.sort_unstable();
        let mut keys = keys;
        if let (Some((generation, attempt)), Some(pair)) = (mine.pop(), &opened.pair) {
            let key = Update::key(&slot.id, generation, attempt);
            let bytes = block_on(runtime, store.get(&key))?;
            let update: Update = serde_json::from_slice(&bytes)
                .map_err(|e| Error::new(Kind::Damaged, format!("object {key}: is not an update of a key slot")).because(e))?;
            let first = keys;
            keys = first.updated(&update, id, slot, pair, &chain[&generation])?;
        }
        // The newest that can be believed; one that cannot stops writers too, and says why when something is written.
        let newest = trouble.as_ref().map_or(last, |(generation, _)| last.max(*generation));
        if let Some((generation, Some(error))) = trouble
            && generation > keys.generation
        {
            tracing::warn!(error = ?error, "a mark of a key generation cannot be believed: nothing is written until it is removed or the slot is renewed");
        }
        keys.note_newest(newest);
        self.take_plan_keys(store, runtime, id, &mut keys)?;
        Ok(keys)
    }

    /// Takes in the keys of plans that these keys can open.
    ///
    /// # Errors
    /// `Unavailable` and the like; of what is damaged the keys know.
    pub fn take_plan_keys(&self, store: &Store, runtime: &tokio::runtime::Handle, id: RepositoryId, keys: &mut Keys) -> Result<()> {
        let mut numbers = self.plan_keys.clone();
        // Destroyed ones come last: that one was destroyed counts.
        numbers.sort_by_key(|(number, erased)| (*erased, *number));
        let named =
            numbers.into_iter().map(|(number, erased)| (number, erased, if erased { erased_key_of(number) } else { key_of(number) }));
        let fetches = futures::stream::iter(named).map(|(number, erased, key)| async move { (store.get(&key).await, number, erased, key) });
        let fetched: Vec<_> = block_on(runtime, fetches.buffered(REQUESTS).collect());
        for (bytes, number, erased, key) in fetched {
            let bytes = match bytes {
                Ok(bytes) => bytes,
                // Deleted between the listing and now: the record of its end is listed, or comes with the next opening.
                Err(e) if e.kind() == Kind::NotFound => continue,
                Err(e) => return Err(e),
            };
            // Of a generation that was never committed, or that this slot does not have.
            if seal::claimed_generation(&bytes).is_some_and(|generation| generation > keys.generation) {
                continue;
            }
            let taken = seal::open(keys, id, ObjectKind::PlanKey, &key, &bytes)
                .and_then(|content| if erased { keys.take_erased(number, &content) } else { keys.take_plan_key(id, number, &content) });
            if let Err(error) = taken {
                keys.note_damaged_plan_key(error.to_string());
            }
        }
        Ok(())
    }
}

/// What a rotation did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotation {
    /// The generation that everything is sealed under from now on.
    pub generation: u16,
    /// Whether chunk ids began anew, so that the next backup of each plan stores everything again.
    pub new_ids: bool,
    /// Slots that got the new generation.
    pub carried: Vec<KeySlot>,
    /// Slots that were shut out and removed.
    pub removed: Vec<KeySlot>,
    /// Slots that could not get it (made by an older program, or changed): their holders need new ones.
    pub left_behind: Vec<KeySlot>,
    /// Ids of slots that could not even be read: what stands in them is of no use to their holders any more, who need new ones.
    pub unread: Vec<String>,
    /// Plans whose own key was renewed.
    pub plans: Vec<String>,
}

/// A key of a single plan, without secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanKey {
    /// Four hexadecimal digits.
    pub number: String,
    pub plan: String,
    /// The key generation whose readers can open it.
    pub generation: u16,
    pub created: Option<DateTime<Utc>>,
    /// When it was destroyed.
    pub erased: Option<DateTime<Utc>>,
}

/// Something that was done with keys, as the repository remembers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyEvent {
    pub id: String,
    pub time: DateTime<Utc>,
    /// `init`, `add`, `remove`, `rotate`, `export`, `import`, `plan-key`, `erase`.
    pub event: String,
    pub host: String,
    /// The slot that did it.
    pub by: String,
    /// For people.
    pub detail: String,
    /// Ids of slots that were removed by it.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub removed: Vec<String>,
    /// Objects below `keys/` that were made by it and must be there from then on: slots (until they are removed), updates of slots (until newer ones come) and
    /// keys of plans (until they are destroyed). Older programs did not say, or not of slots.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub made: Vec<String>,
    /// Whether a reader signed it: `None` when this bundle cannot tell. Not stored.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub signed: Option<bool>,
}

/// How much of the stored data is sealed under which key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerationShare {
    /// A generation; of a plan's own key, the generation is the one that the key is sealed to.
    pub generation: u16,
    /// The plan, where it is its own key.
    pub plan: Option<String>,
    pub packs: u64,
    pub bytes: u64,
}

impl Repository {
    /// The key slots (public part), oldest first. A damaged slot is left out and logged; `verify` finds it.
    ///
    /// # Errors
    /// `Unavailable` and the like.
    pub fn key_slots(&self) -> Result<Vec<KeySlot>> {
        let ring = self.ring()?;
        let slots = ring.slots.iter().filter_map(|(key, slot)| match slot {
            Ok(slot) if slot.is_whole() => Some(slot.public(ring.generation_of(slot), slot.id == self.inner.slot)),
            Ok(_) => {
                tracing::warn!(slot = %key, "a key slot was changed; remove it with `lifeboat key remove`");
                None
            }
            Err(error) => {
                tracing::warn!(slot = %key, error = ?error, "a damaged key slot; remove it with `lifeboat key remove`");
                None
            }
        });
        let mut slots: Vec<KeySlot> = slots.collect();
        slots.sort_by(|a, b| (a.created, &a.id).cmp(&(b.created, &b.id)));
        Ok(slots)
    }

    /// Of key slots that cannot be read, or were changed: the id and what is wrong.
    ///
    /// # Errors
    /// `Unavailable` and the like.
    pub fn damaged_slots(&self) -> Result<Vec<(String, Error)>> {
        let slots = self.ring()?.whole();
        Ok(slots.into_iter().filter_map(|(key, slot)| Some((id_of_slot(&key).to_owned(), slot.err()?))).collect())
    }

    fn ring(&self) -> Result<Ring> {
        Ring::read(&self.inner.store, &self.inner.runtime)
    }

    /// The repository's key generations that this slot holds, newest first, and the newest there is.
    #[must_use]
    pub fn key_generations(&self) -> (Vec<u16>, u16) {
        let held: Vec<u16> = self.inner.keys.generations().collect();
        (held, self.inner.keys.behind().unwrap_or(self.inner.keys.generation))
    }

    /// Adds a slot for a role that a passphrase opens (or whatever key the text says it is).
    ///
    /// # Errors
    /// `WrongKey` without the reader role; `Usage` for a passphrase that is too short.
    pub fn add_key(&self, label: &str, role: Role, passphrase: &Passphrase, now: DateTime<Utc>) -> Result<KeySlot> {
        self.add_slot(label, role, &Lock::Passphrase(passphrase), now)
    }

    /// Adds a slot.
    ///
    /// # Errors
    /// As [`Repository::add_key`]; `Busy` when the keys were rotated meanwhile: nothing was added.
    pub fn add_slot(&self, label: &str, role: Role, lock: &Lock<'_>, now: DateTime<Utc>) -> Result<KeySlot> {
        let inner = &self.inner;
        let slot = StoredSlot::create(&inner.keys, inner.id, role, label, lock, now)?;
        self.create(&slot.key(), slot.to_json()?)?;
        // A rotation that has listed the slots before this one was there has left it behind.
        if self.ring()?.newest() != inner.keys.generation {
            let detail = format!("slot {} ({label}), made while the keys were rotated", slot.id);
            put_key_event(inner, &inner.keys, "remove", &detail, Changed::removed(&slot.id), now)?;
            inner.block_on(inner.store.delete(&slot.key()))?;
            return Err(rotated_meanwhile("add a key slot"));
        }
        let detail = format!("{role} slot {} ({label}), opens with a {}", slot.id, slot.kind());
        put_key_event(inner, &inner.keys, "add", &detail, Changed::made(vec![slot.key()]), now)?;
        Ok(slot.public(slot.generation(), false))
    }

    /// Removes a slot; `false`: it was gone already, and now that is on record. `confirmed`: the whole id, where that is asked for: of the slot in use, and of the
    /// last one with the reader role.
    ///
    /// # Errors
    /// `WrongKey` without the reader role; `Usage` when there is no such slot or it needs to be confirmed.
    pub fn remove_key(&self, id: &str, confirmed: Option<&str>, now: DateTime<Utc>) -> Result<bool> {
        self.require_reader("remove a key slot")?;
        let slots = self.key_slots()?;
        let slot = slots.iter().find(|s| s.id == id);
        let ring = self.ring()?;
        if !ring.slots.iter().any(|(key, _)| *key == format!("keys/{id}")) {
            let is_missed = || Ok::<_, Error>(check::missing_slots(&ring, &self.events_that_count()?).contains(id));
            if self.was_deleted(&format!("keys/{id}"))? || is_missed()? {
                // By hand, or by somebody else: now it is said.
                let detail = format!("slot {id}, which was gone already");
                put_key_event(&self.inner, &self.inner.keys, "remove", &detail, Changed::removed(id), now)?;
                return Ok(false);
            }
            return Err(Error::new(Kind::Usage, format!("there is no key slot {id:?}")).hint("see `lifeboat key list`"));
        }
        let newest = ring.newest();
        let readers = |s: &&KeySlot| s.role == Role::Reader && s.generation == newest;
        let last = slot.is_some_and(|s| readers(&s)) && slots.iter().filter(readers).count() == 1;
        let current = slot.is_some_and(|s| s.current);
        if (last || current) && confirmed != Some(id) {
            return Err(Error::new(
                Kind::Usage,
                if last { "this is the last key slot that can read data" } else { "this is the key slot in use" },
            )
            .hint(if last {
                format!(
                    "add another reader slot first: without one, nothing can ever be restored. If that is what you want: --confirm {id}"
                )
            } else {
                format!("check that you can open the repository with another one; then --confirm {id}")
            }));
        }
        // Noted first: afterwards there may be nobody who can.
        let label = slot.map_or("damaged", |slot| slot.label.as_str());
        put_key_event(&self.inner, &self.inner.keys, "remove", &format!("slot {id} ({label})"), Changed::removed(id), now)?;
        self.delete_slot(&ring, id)?;
        Ok(true)
    }

    /// Of objects below `keys/` that were deleted (of each what was committed), those of which no command did that.
    pub(super) fn stolen_keys<'a>(&self, mut deleted: Vec<&'a Version>) -> Result<Vec<&'a Version>> {
        if deleted.is_empty() {
            return Ok(deleted);
        }
        let (inner, ring) = (&self.inner, self.ring()?);
        let removed: HashSet<String> = self.events_that_count()?.into_iter().flat_map(|event| event.removed).collect();
        let there = ring.slots.iter().filter_map(|(key, _)| key.strip_prefix("keys/"));
        let kept: HashSet<String> = there.map(str::to_owned).chain(deleted.iter().filter_map(|version| slot_of(&version.key))).collect();
        let mut stolen = HashSet::new();
        for version in &deleted {
            let is_stolen = match KeyObject::of(&version.key) {
                KeyObject::Slot(id) => !removed.contains(&id),
                KeyObject::Marker(_) | KeyObject::PlanKey { erased: true, .. } => true,
                // Superseded ones are cleared away, and those of a rotation that never came to its commit.
                KeyObject::Update { slot, generation, attempt } => {
                    let is_current = generation >= ring.newest() && ring.markers.get(&generation).is_none_or(|it| it.attempt() == attempt);
                    is_current && kept.contains(&slot) && !removed.contains(&slot)
                }
                KeyObject::PlanKey { number, erased: false } => {
                    let bytes = inner.block_on(inner.store.get_version(&version.key, &version.version))?;
                    // One of a rotation that never came to its commit does not open, and was cleared away.
                    let opens = || seal::open(&inner.keys, inner.id, ObjectKind::PlanKey, &version.key, &bytes).is_ok();
                    !ring.plan_keys.contains(&(number, true)) && opens()
                }
                KeyObject::Other => false,
            };
            if is_stolen {
                stolen.insert(version.key.clone());
            }
        }
        deleted.retain(|version| stolen.contains(&version.key));
        Ok(deleted)
    }

    /// Key events, oldest first, without those that say nothing, because no reader signed them; what cannot be checked is believed.
    fn events_that_count(&self) -> Result<Vec<KeyEvent>> {
        Ok(self.key_events()?.into_iter().filter_map(Result::ok).filter(|event| event.signed != Some(false)).collect())
    }

    /// Whether a versioned bucket has an earlier version of what is not there.
    fn was_deleted(&self, key: &str) -> Result<bool> {
        let store = &self.inner.store;
        Ok(store.object_lock().is_some()
            && self.inner.block_on(store.versions("keys/"))?.iter().any(|version| version.key == key && !version.marker))
    }

    fn delete_slot(&self, ring: &Ring, id: &str) -> Result<()> {
        let inner = &self.inner;
        inner.block_on(inner.store.delete(&format!("keys/{id}")))?;
        for (_, generation, attempt) in ring.updates.iter().filter(|(slot, ..)| slot == id) {
            inner.block_on(inner.store.delete(&Update::key(id, *generation, attempt)))?;
        }
        Ok(())
    }

    /// Begins a new key generation. `without`: ids of slots that are shut out and removed. `passphrase`: what this repository was opened with
    /// (its slot is renewed when an older program made it).
    ///
    /// # Errors
    /// `WrongKey` without the reader role, or from a slot that was left behind; `Usage` when `without` names the slot in use or none; `Busy`
    /// when another rotation was quicker. Whatever the error, and wherever the process ends: the repository opens as before or as after.
    pub fn rotate(&self, passphrase: &Passphrase, without: &[String], new_ids: bool, now: DateTime<Utc>) -> Result<Rotation> {
        self.require_reader("rotate the keys")?;
        let inner = &self.inner;
        inner.keys.require_current()?;
        if let Some(unknown) = without.iter().find(|id| **id == inner.slot) {
            return Err(Error::new(Kind::Usage, format!("shut out key slot {unknown}: it is the one in use"))
                .hint("open the repository with another one"));
        }
        let ring = self.ring()?;
        if ring.newest() != inner.keys.generation {
            return Err(rotated_meanwhile("rotate the keys"));
        }
        if let Some(unknown) = without.iter().find(|id| !ring.slots.iter().any(|(key, _)| *key == format!("keys/{id}"))) {
            return Err(Error::new(Kind::Usage, format!("there is no key slot {unknown:?}")).hint("see `lifeboat key list`"));
        }
        let number = inner.keys.generation + 1;
        if number >= OWN_FIRST {
            return Err(Error::new(Kind::Failed, "there are no more numbers for key generations"));
        }
        let next = inner.keys.next_generation(number, new_ids);
        let mut rotation =
            Rotation { generation: number, new_ids, carried: vec![], removed: vec![], left_behind: vec![], unread: vec![], plans: vec![] };
        let mut created = Vec::new();
        let mut renewed = None;
        let mut unread = Vec::new();
        for (key, slot) in &ring.slots {
            let slot = match slot {
                Ok(slot) => slot,
                Err(error) if error.kind() == Kind::Damaged => {
                    let id = id_of_slot(key).to_owned();
                    if without.contains(&id) {
                        unread.push(id);
                    } else {
                        rotation.unread.push(id);
                    }
                    continue;
                }
                // Removed since the listing.
                Err(error) if error.kind() == Kind::NotFound => continue,
                Err(error) => {
                    return Err(
                        Error::new(error.kind(), format!("read the object {key}: {error}")).hint("the keys are as before; run it again")
                    );
                }
            };
            let current = slot.id == inner.slot;
            if without.contains(&slot.id) {
                rotation.removed.push(slot.public(ring.generation_of(slot), false));
                continue;
            }
            if ring.generation_of(slot) != inner.keys.generation || !slot.is_whole() {
                rotation.left_behind.push(slot.public(ring.generation_of(slot), current));
                continue;
            }
            match next.update_for(inner.id, slot)? {
                Some((key, update)) => {
                    self.create(&key, to_json(&update)?)?;
                    created.push(key);
                    rotation.carried.push(slot.public(number, current));
                }
                // Of an older program, and ours: its passphrase is at hand.
                None if current => {
                    let new = StoredSlot::create(&inner.keys, inner.id, slot.role, &slot.label, &Lock::Passphrase(passphrase), now)?;
                    self.create(&new.key(), new.to_json()?)?;
                    created.push(new.key());
                    if let Some((key, update)) = next.update_for(inner.id, &new)? {
                        self.create(&key, to_json(&update)?)?;
                        created.push(key);
                    }
                    rotation.carried.push(new.public(number, true));
                    renewed = Some(slot.id.clone());
                }
                None => rotation.left_behind.push(slot.public(1, false)),
            }
        }
        let plans = self.renew_plan_keys(&ring, &next, now)?;
        created.extend(plans.iter().map(|(_, key)| key.clone()));
        rotation.plans = plans.into_iter().map(|(plan, _)| plan).collect();
        // The commit.
        let marker = next.marker(inner.id, now)?;
        if let Err(error) = self.create(&Marker::key(number), to_json(&marker)?) {
            if error.kind() == Kind::AlreadyExists {
                created.iter().for_each(|key| self.clear(key));
                return Err(rotated_meanwhile("rotate the keys"));
            }
            // It may have landed: what was made stays, and is either right or never looked at.
            return Err(error);
        }
        // At once: a state from before that is put in its place is found out from now on.
        let remembered = remember(&inner.cache.path, &next);
        let gone: Vec<String> = rotation.removed.iter().map(|slot| slot.id.clone()).chain(renewed).chain(unread).collect();
        let names = |slots: &[KeySlot]| slots.iter().map(|s| format!("{} ({})", s.id, s.label)).collect::<Vec<_>>().join(", ");
        let detail = format!(
            "to generation {number}{}; carried: {}; removed: {}; left behind: {}; not readable: {}",
            if new_ids { " with new chunk ids" } else { "" },
            names(&rotation.carried),
            names(&rotation.removed),
            names(&rotation.left_behind),
            rotation.unread.join(", ")
        );
        // Said before it is done: a slot that is gone without it was taken by somebody else.
        let noted = put_key_event(inner, &next, "rotate", &detail, Changed { removed: gone.clone(), made: created }, now);
        noted.and_then(|()| gone.iter().try_for_each(|id| self.delete_slot(&ring, id))).map_err(|error| {
            let slots = gone.join(", ");
            error.within(format!("the keys are at generation {number} now; note it, and remove the key slots that were left behind ({slots})")).hint(
                "they open nothing that is stored from now on; remove them with a credential that may delete: `lifeboat key remove REPO SLOT`",
            )
        })?;
        // Updates that this one supersedes, and those of rotations that never came to their commit.
        for (slot, generation, attempt) in &ring.updates {
            let superseded = rotation.carried.iter().any(|carried| carried.id == *slot);
            let dead = ring.markers.get(generation).is_none_or(|marker| marker.attempt() != *attempt);
            if superseded || dead {
                self.clear(&Update::key(slot, *generation, attempt));
            }
        }
        self.clear_plan_keys_of_none(&ring);
        remembered.map_err(|error| {
            error.within(format!("the keys are at generation {number} now; take note of it on this machine")).hint(
                "the rotation is done; until this machine has seen the new keys once more, it would not find out that they were put back to an older state",
            )
        })?;
        Ok(rotation)
    }

    /// Keys of plans that were made for the generation that is committed now, by a rotation that never came to that: nobody has what opens them, and they
    /// would be taken for damaged ones. `ring`: as it was before.
    fn clear_plan_keys_of_none(&self, ring: &Ring) {
        let inner = &self.inner;
        for (key, bytes) in inner.get_all(ring.plan_keys.iter().filter(|(_, erased)| !erased).map(|(number, _)| key_of(*number))) {
            match bytes {
                Ok(bytes) if seal::claimed_generation(&bytes).is_some_and(|generation| generation > inner.keys.generation) => {
                    self.clear(&key);
                }
                Ok(_) => {}
                Err(error) if error.kind() == Kind::NotFound => {}
                Err(error) => {
                    tracing::warn!(%key, error = ?error, "whether this key of a plan is left of a rotation that was cut off is not known");
                }
            }
        }
    }

    /// One that no key of a plan ever had, as far as is known: data that is sealed to one that is gone must not be taken for another one's.
    fn next_plan_number(&self, ring: &Ring) -> Result<u16> {
        let made = self.key_events()?.into_iter().filter_map(Result::ok).flat_map(|event| event.made);
        let made = made.filter_map(|key| match KeyObject::of(&key) {
            KeyObject::PlanKey { number, .. } => Some(number),
            _ => None,
        });
        let last = ring.plan_keys.iter().map(|(number, _)| *number).chain(made).max();
        last.map_or(Some(OWN_FIRST), |last| last.checked_add(1)).ok_or_else(no_more_plan_keys)
    }

    fn renew_plan_keys(&self, ring: &Ring, next: &Keys, now: DateTime<Utc>) -> Result<Vec<(String, String)>> {
        let inner = &self.inner;
        let mut plans: Vec<String> = inner.keys.own_keys().iter().filter(|own| own.erased.is_none()).map(|own| own.plan.clone()).collect();
        plans.sort();
        plans.dedup();
        let mut made = Vec::new();
        let mut number = self.next_plan_number(ring)?;
        for plan in plans {
            let key = key_of(number);
            let content = next.create_plan_key(inner.id, &plan, number, now)?;
            self.create(&key, seal::seal(next, inner.id, ObjectKind::PlanKey, &key, &content)?)?;
            made.push((plan, key));
            number = number.checked_add(1).ok_or_else(no_more_plan_keys)?;
        }
        Ok(made)
    }

    fn clear(&self, key: &str) {
        if let Err(error) = self.inner.block_on(self.inner.store.delete(key)) {
            tracing::warn!(%key, error = ?error, "what a rotation has superseded could not be removed; it is never looked at again");
        }
    }

    /// Writes the keys of a role out as a key slot that is not in the repository: a document for [`Repository::import_slot`]. The export is noted.
    ///
    /// # Errors
    /// As [`Repository::add_slot`].
    pub fn export_slot(&self, label: &str, role: Role, lock: &Lock<'_>, now: DateTime<Utc>) -> Result<(KeySlot, Vec<u8>)> {
        let inner = &self.inner;
        let slot = StoredSlot::create(&inner.keys, inner.id, role, label, lock, now)?;
        let detail = format!("{role} keys as a file, slot {} ({label}), opens with a {}", slot.id, slot.kind());
        self.note_key_event("export", &detail, now)?;
        Ok((slot.public(slot.generation(), false), slot.to_json()?))
    }

    /// A new slot of a role that a new recovery key opens.
    ///
    /// # Errors
    /// As [`Repository::add_slot`].
    pub fn export_recovery_key(&self, label: &str, role: Role, now: DateTime<Utc>) -> Result<(KeySlot, RecoveryKey)> {
        let key = generate_recovery_key();
        let slot = self.add_slot(label, role, &Lock::Passphrase(key.passphrase()), now)?;
        self.note_key_event("export", &format!("a recovery key of {role} slot {} ({label})", slot.id), now)?;
        Ok((slot, key))
    }

    /// A new slot of a role that a key file in shares opens.
    ///
    /// # Errors
    /// As [`Repository::add_slot`]; `Usage` for impossible numbers.
    pub fn export_shares(&self, label: &str, role: Role, threshold: u8, count: u8, now: DateTime<Utc>) -> Result<(KeySlot, Vec<Share>)> {
        let file = KeyFile::generate();
        let shares = split_shares(file.bytes(), threshold, count)?;
        let slot = self.add_slot(label, role, &Lock::KeyFile(&file), now)?;
        let set = shares.first().map(Share::set).unwrap_or_default();
        self.note_key_event("export", &format!("{threshold}-of-{count} shares, set {set}, of {role} slot {} ({label})", slot.id), now)?;
        Ok((slot, shares))
    }

    /// Puts an exported key slot into the repository at a store, where `passphrase` opens it. Needs no other key: this is the way back when all
    /// slots are lost.
    ///
    /// # Errors
    /// `Usage` when it is no key slot; `WrongKey` when the passphrase does not open it; `Damaged` when it is another repository's.
    pub fn import_slot(
        store: &Store,
        runtime: &tokio::runtime::Handle,
        document: &[u8],
        passphrase: &Passphrase,
        now: DateTime<Utc>,
    ) -> Result<KeySlot> {
        let id = crate::repo::read_format(store, runtime)?.id;
        let slot =
            StoredSlot::from_json(document).map_err(|e| Error::new(Kind::Usage, "read the exported key slot: it is none").because(e))?;
        if !slot.is_whole() {
            return Err(Error::new(Kind::Damaged, "read the exported key slot: it was changed").hint("use another copy of the file"));
        }
        let opened = slot.answers_to(id, &passphrase.credential()?, store.pulse())?.ok_or_else(|| {
            Error::new(Kind::WrongKey, "the exported key slot does not open with this passphrase").hint(
                "LIFEBOAT_PASSPHRASE must hold what it was exported for: a passphrase, a key file's text, or a recipient's private key",
            )
        })?;
        let keys = slot.unseal(id, &opened)?;
        let ring = Ring::read(store, runtime)?;
        let keys = ring.bring_up(store, runtime, id, &slot, &opened, keys)?;
        block_on(runtime, store.create(&slot.key(), Bytes::from(slot.to_json()?)))?;
        if keys.behind().is_none() {
            let made = Changed::made(vec![slot.key()]);
            let event = event("import", &slot.id, &format!("{} slot {} ({})", slot.role, slot.id, slot.label), made, now);
            put_event_at(store, runtime, id, &keys, &event)?;
        }
        Ok(slot.public(slot.generation(), false))
    }

    /// Gives a plan a key of its own: what is backed up from now on is sealed to it.
    ///
    /// # Errors
    /// `WrongKey` without the reader role; `AlreadyExists` when it has a usable one.
    pub fn make_plan_key(&self, plan: &crate::id::Name, now: DateTime<Utc>) -> Result<PlanKey> {
        self.require_reader("make a key for a plan")?;
        let inner = &self.inner;
        inner.keys.require_current()?;
        let own = inner.keys.own_keys();
        if own.iter().any(|own| own.plan == plan.as_str() && own.erased.is_none() && own.generation == inner.keys.generation) {
            return Err(Error::new(Kind::AlreadyExists, format!("plan {plan} has a key of its own already")));
        }
        let ring = self.ring()?;
        let number = self.next_plan_number(&ring)?;
        let key = key_of(number);
        let content = inner.keys.create_plan_key(inner.id, plan.as_str(), number, now)?;
        self.create(&key, inner.seal_object(ObjectKind::PlanKey, &key, &content)?)?;
        put_key_event(inner, &inner.keys, "plan-key", &format!("key {number:04x} for plan {plan}"), Changed::made(vec![key]), now)?;
        Ok(PlanKey {
            number: format!("{number:04x}"),
            plan: plan.to_string(),
            generation: inner.keys.generation,
            created: Some(now),
            erased: None,
        })
    }

    /// The keys of plans, destroyed ones too, by number.
    #[must_use]
    pub fn plan_keys(&self) -> Vec<PlanKey> {
        let own = self.inner.keys.own_keys();
        own.into_iter()
            .map(|own| PlanKey {
                number: format!("{:04x}", own.number),
                plan: own.plan.clone(),
                generation: own.generation,
                created: own.created,
                erased: own.erased,
            })
            .collect()
    }

    /// Destroys all own keys of a plan: what was sealed to them can never be read again. Data of the plan that is older than its first own key
    /// is not touched. Returns the numbers; a second call finishes what an interrupted one began.
    ///
    /// # Errors
    /// `WrongKey` without the reader role; `NotFound` when the plan has no key of its own.
    pub fn erase_plan(&self, plan: &crate::id::Name, now: DateTime<Utc>) -> Result<Vec<PlanKey>> {
        self.require_reader("destroy the key of a plan")?;
        let inner = &self.inner;
        inner.keys.require_current()?;
        let ring = self.ring()?;
        let of_plan: Vec<_> = inner.keys.own_keys().into_iter().filter(|own| own.plan == plan.as_str()).cloned().collect();
        if of_plan.is_empty() {
            return Err(Error::new(Kind::NotFound, format!("plan {plan} has no key of its own that could be destroyed")).hint(
                "its data is sealed to the repository's key like that of others; `lifeboat key own` gives it one for what is backed up from then on",
            ));
        }
        let mut erased = Vec::new();
        for own in &of_plan {
            let key = erased_key_of(own.number);
            // The record first: without it the loss would look like damage.
            if own.erased.is_none() && !ring.plan_keys.contains(&(own.number, true)) {
                let content = inner.keys.create_erased(own, now)?;
                self.create(&key, inner.seal_object(ObjectKind::PlanKey, &key, &content)?)?;
            }
            inner.block_on(inner.store.delete(&key_of(own.number)))?;
            erased.push(PlanKey {
                number: format!("{:04x}", own.number),
                plan: own.plan.clone(),
                generation: own.generation,
                created: own.created,
                erased: own.erased.or(Some(now)),
            });
        }
        let numbers: Vec<&str> = erased.iter().map(|key| key.number.as_str()).collect();
        self.note_key_event("erase", &format!("keys {} of plan {plan}", numbers.join(", ")), now)?;
        Ok(erased)
    }

    /// Writes down what was done with keys.
    ///
    /// # Errors
    /// `Unavailable` and the like.
    pub fn note_key_event(&self, what: &str, detail: &str, now: DateTime<Utc>) -> Result<()> {
        put_key_event(&self.inner, &self.inner.keys, what, detail, Changed::default(), now)
    }

    /// What was done with keys, oldest first; what cannot be opened comes as an error.
    ///
    /// # Errors
    /// When the store cannot be asked.
    pub fn key_events(&self) -> Result<Vec<Result<KeyEvent>>> {
        Ok(self.open_key_events()?.into_iter().map(|(_, event)| event).collect())
    }

    /// The same, with their objects.
    pub(super) fn open_key_events(&self) -> Result<Vec<(String, Result<KeyEvent>)>> {
        let inner = &self.inner;
        let open = |key: &str| inner.open_object(ObjectKind::KeyEvent, key).and_then(|content| decode_event(&inner.keys, key, &content));
        let listed = inner.block_on(inner.store.list(EVENTS))?;
        Ok(listed.into_iter().map(|object| (object.key.clone(), open(&object.key))).collect())
    }

    /// How many stored bytes of data and trees are sealed under which generation or plan's key. Reads the directory of every pack once; what is known
    /// is kept in the cache folder.
    ///
    /// # Errors
    /// `Unavailable`; `WrongKey` from a slot that was left behind. Damaged packs are left out (`verify` finds them).
    pub fn generation_shares(&self) -> Result<Vec<GenerationShare>> {
        let mut shares: BTreeMap<u16, (u64, u64)> = BTreeMap::new();
        for pack in self.pack_generations()?.0 {
            for (number, bytes) in &pack.bytes {
                let share = shares.entry(*number).or_default();
                share.1 += bytes;
            }
            if let Some(oldest) = pack.bytes.keys().min() {
                shares.entry(*oldest).or_default().0 += 1;
            }
        }
        let own = self.inner.keys.own_keys();
        Ok(shares
            .into_iter()
            .map(|(number, (packs, bytes))| match own.iter().find(|own| own.number == number) {
                Some(own) => GenerationShare { generation: own.generation, plan: Some(own.plan.clone()), packs, bytes },
                None => GenerationShare { generation: number, plan: None, packs, bytes },
            })
            .collect())
    }

    /// Rewrites the packs that hold something of an older generation, so that nothing stays under it but what plans' own keys seal, and
    /// collects what is dead by then. May be interrupted and called again. Also returns how many packs were there afterwards whose generation cannot be
    /// read: of them nothing is known.
    ///
    /// # Errors
    /// `WrongKey` without the reader role; else as [`Repository::collect`].
    pub fn retire_generations(&self, now: DateTime<Utc>, progress: &dyn Progress, cancel: &Cancel) -> Result<(Collection, u64)> {
        self.require_reader("seal anew what is stored")?;
        self.inner.keys.require_current()?;
        let newest = self.inner.keys.generation;
        let (packs, _) = self.pack_generations()?;
        let old: std::collections::HashSet<_> =
            packs.into_iter().filter(|pack| pack.bytes.keys().any(|number| *number < newest)).map(|pack| pack.id).collect();
        let options = CollectOptions { rewrite: &|pack| old.contains(&pack.id), ..CollectOptions::default() };
        let done = self.collect(&options, now, progress, cancel)?;
        let (_, unread) = self.pack_generations()?;
        Ok((done, unread))
    }

    /// What each pack is sealed under: bytes by the generation of envelopes (for a pack of nodes and for directories, that of the pack). And how many packs of
    /// the same listing cannot be read: one that went away since is none of them.
    pub(super) fn pack_generations(&self) -> Result<(Vec<PackGenerations>, u64)> {
        let inner = &self.inner;
        let listed: Vec<_> = inner
            .block_on(inner.store.list("packs/"))?
            .into_iter()
            .filter_map(|object| crate::repo::format::PackId::from_key(&object.key).map(|id| (id, object.size)))
            .collect();
        let cache = inner.cache.path.join("generations.json");
        let known: KnownGenerations = std::fs::read(&cache).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        let queue = std::sync::Mutex::new(listed.into_iter());
        let next = || queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
        let read = |id, len| -> Result<_> { Ok(generations_of(&inner.directory_of_listed(id, len)?.1, inner.pack_generation(id, len)?)) };
        let found: Vec<Result<(Vec<PackGenerations>, u64)>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..LOOKERS)
                .map(|_| {
                    scope.spawn(|| {
                        let (mut found, mut unread) = (Vec::new(), 0);
                        while let Some((id, len)) = next() {
                            let bytes = match known.get(&hex::encode(id.0)).cloned().map_or_else(|| read(id, len), Ok) {
                                Ok(bytes) => bytes,
                                Err(e) if matches!(e.kind(), Kind::Damaged | Kind::NotFound) => {
                                    // A collection beside this one may have deleted it since the listing.
                                    unread += u64::from(inner.block_on(inner.store.head(&id.key()))?.is_some());
                                    continue;
                                }
                                Err(e) => return Err(e),
                            };
                            found.push(PackGenerations { id, bytes });
                        }
                        Ok((found, unread))
                    })
                })
                .collect();
            threads.into_iter().map(|t| t.join().unwrap_or_else(|_| Err(Error::new(Kind::Bug, "a thread panicked")))).collect()
        });
        let (mut packs, mut unread) = (Vec::new(), 0);
        for some in found {
            let (some, of_some) = some?;
            packs.extend(some);
            unread += of_some;
        }
        packs.sort_by_key(|pack| pack.id);
        let known: BTreeMap<String, &BTreeMap<u16, u64>> = packs.iter().map(|pack| (hex::encode(pack.id.0), &pack.bytes)).collect();
        // A cache: what cannot be kept is looked up again.
        if let Ok(json) = serde_json::to_vec(&known)
            && let Err(error) = std::fs::write(&cache, json)
        {
            tracing::debug!(%error, "what packs are sealed under was not kept");
        }
        Ok((packs, unread))
    }
}

/// The newest generation that this machine has seen of the repository.
#[derive(Serialize, Deserialize)]
pub(super) struct Remembered {
    generation: u16,
    /// See `Keys::generation_name`.
    name: String,
}

/// Compares with what this machine has seen of the repository's generations before, and remembers it. A store (or who holds its credentials)
/// that serves a state from before a rotation, or another generation under the same number, is found out; the folder may be deleted at any
/// time, and then the first answer is believed again.
///
/// # Errors
/// `Damaged` when a generation is another one than it was.
pub(super) fn remember_generation(cache: &std::path::Path, keys: &mut Keys) -> Result<()> {
    if let Some(known) = seen::read::<Remembered>(cache, seen::GENERATION) {
        match keys.generation_name(known.generation) {
            Some(name) if name != known.name => {
                return Err(Error::new(
                    Kind::Damaged,
                    format!("key generation {} of this repository is another one than this machine has known", known.generation),
                )
                .hint(format!(
                    "somebody replaced what is below keys/, or another repository has this one's id: find out first; if it is right, `lifeboat repo accept` says so on each machine ({})",
                    cache.join(seen::GENERATION).display()
                )));
            }
            Some(_) if known.generation == keys.generation => return Ok(()),
            Some(_) => {}
            // The slot was left behind, or the store serves a state from before a rotation: either way nothing may be written.
            None if known.generation > keys.behind().unwrap_or(keys.generation) => {
                keys.note_seen(known.generation);
                return Ok(());
            }
            None => return Ok(()),
        }
    }
    remember(cache, keys)
}

/// Writes down which generation this machine has seen last.
fn remember(cache: &std::path::Path, keys: &Keys) -> Result<()> {
    let Some(name) = keys.generation_name(keys.generation) else { return Ok(()) };
    seen::write(cache, seen::GENERATION, &Remembered { generation: keys.generation, name }, "the repository's key generation")
}

impl Repository {
    /// The key generation that this machine has seen of the repository, where it is newer than all that are there now.
    #[must_use]
    pub fn generation_seen(&self) -> Option<u16> {
        self.inner.keys.seen()
    }

    /// # Errors
    /// `WrongKey` where this machine has seen a newer key generation of the repository than all that are there now, with what to do about it.
    pub fn require_generation_seen(&self) -> Result<()> {
        self.inner.keys.seen().map_or(Ok(()), |_| self.inner.keys.require_current())
    }

    /// Forgets which key generation of the repository at a store this machine has seen, so that keys which were put back to an older state, or were
    /// made anew since, are believed: its number, if one was remembered. What is open already does not hear of it.
    ///
    /// # Errors
    /// `NoRepository` and the like; when the file cannot be removed.
    pub fn forget_generation(store: &Store, runtime: &tokio::runtime::Handle, options: &OpenOptions) -> Result<Option<u16>> {
        let id = crate::repo::read_format(store, runtime)?.id;
        let Some(cache) = options.cache.as_ref().map(|cache| cache.join(id.to_string())) else { return Ok(None) };
        let known = seen::read::<Remembered>(&cache, seen::GENERATION);
        seen::forget(&cache, seen::GENERATION)?;
        Ok(known.map(|known| known.generation))
    }
}

/// The file of what packs are sealed under: by name of the pack and number of the generation or plan's key, sealed bytes.
pub(super) type KnownGenerations = HashMap<String, BTreeMap<u16, u64>>;

/// What a pack is sealed under.
pub(super) struct PackGenerations {
    pub id: crate::repo::format::PackId,
    /// Sealed bytes by number of the generation or plan's key.
    pub bytes: BTreeMap<u16, u64>,
}

/// Packs looked at at a time.
const LOOKERS: usize = 16;

fn generations_of(directory: &crate::repo::pack::Directory, pack: u16) -> BTreeMap<u16, u64> {
    let mut bytes = BTreeMap::new();
    for frame in &directory.frames {
        let number = match directory.kind {
            PackKind::Nodes => pack,
            PackKind::Data | PackKind::Log => directory.envelopes[frame.envelope as usize].generation,
        };
        *bytes.entry(number).or_insert(0) += u64::from(frame.sealed_len);
    }
    bytes
}

fn id_of_slot(key: &str) -> &str {
    key.strip_prefix("keys/").unwrap_or(key)
}

/// The slot whose object this is.
fn slot_of(key: &str) -> Option<String> {
    match KeyObject::of(key) {
        KeyObject::Slot(id) => Some(id),
        _ => None,
    }
}

fn no_more_plan_keys() -> Error {
    Error::new(Kind::Failed, "there are no more numbers for keys of plans")
}

fn rotated_meanwhile(operation: &str) -> Error {
    Error::new(Kind::Busy, format!("{operation}: the keys have just been rotated by somebody else"))
        .hint("nothing was changed; run it again")
}

pub(super) const EVENTS: &str = "key-events/";

/// Content of the sealed objects below `key-events/` (JSON): an event as text, signed by a reader.
#[derive(Serialize, Deserialize)]
struct SignedEvent {
    record: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    signature: Option<String>,
}

fn event(what: &str, by: &str, detail: &str, changed: Changed, now: DateTime<Utc>) -> KeyEvent {
    KeyEvent {
        id: SessionId::generate(now).to_string(),
        time: now,
        event: what.to_owned(),
        host: host_name(),
        by: by.to_owned(),
        detail: detail.to_owned(),
        removed: changed.removed,
        made: changed.made,
        signed: None,
    }
}

/// What an event says of objects, see [`KeyEvent`].
#[derive(Default)]
struct Changed {
    /// Ids of slots.
    removed: Vec<String>,
    /// Whole keys.
    made: Vec<String>,
}

impl Changed {
    fn made(keys: Vec<String>) -> Self {
        Self { removed: Vec::new(), made: keys }
    }

    fn removed(slot: &str) -> Self {
        Self { removed: vec![slot.to_owned()], made: Vec::new() }
    }
}

fn put_key_event(inner: &Inner, keys: &Keys, what: &str, detail: &str, changed: Changed, now: DateTime<Utc>) -> Result<()> {
    tracing::info!(event = what, detail, "keys");
    put_event_at(&inner.store, &inner.runtime, inner.id, keys, &event(what, &inner.slot, detail, changed, now))
}

/// Notes the slots that a repository begins with.
pub(super) fn put_first_event(
    store: &Store,
    runtime: &tokio::runtime::Handle,
    id: RepositoryId,
    keys: &Keys,
    slots: &[&StoredSlot],
    now: DateTime<Utc>,
) -> Result<()> {
    let told: Vec<String> = slots.iter().map(|slot| format!("{} slot {} ({})", slot.role, slot.id, slot.label)).collect();
    let made = Changed::made(slots.iter().map(|slot| slot.key()).collect());
    let by = slots.first().map_or("", |slot| slot.id.as_str());
    put_event_at(store, runtime, id, keys, &event("init", by, &told.join(", "), made, now))
}

fn put_event_at(store: &Store, runtime: &tokio::runtime::Handle, id: RepositoryId, keys: &Keys, event: &KeyEvent) -> Result<()> {
    let content = encode_event(keys, event)?;
    let key = format!("{EVENTS}{}", event.id);
    let sealed = seal::seal(keys, id, ObjectKind::KeyEvent, &key, &content)?;
    block_on(runtime, store.create(&key, Bytes::from(sealed)))?;
    Ok(())
}

/// The content of an event's object.
pub(super) fn encode_event(keys: &Keys, event: &KeyEvent) -> Result<Vec<u8>> {
    let encode = || "encode a key event".to_owned();
    let record = serde_json::to_string(event).context(Kind::Bug, encode)?;
    let signature = match keys.role {
        Role::Reader => Some(keys.sign(record.as_bytes())?),
        Role::Writer | Role::Maintainer => None,
    };
    serde_json::to_vec(&SignedEvent { record, signature }).context(Kind::Bug, encode)
}

/// The event of the object `key`, with whether a reader signed it.
pub(super) fn decode_event(keys: &Keys, key: &str, content: &[u8]) -> Result<KeyEvent> {
    let damaged = |e: serde_json::Error| Error::new(Kind::Damaged, format!("object {key}: cannot be decoded")).because(e);
    let signed: SignedEvent = serde_json::from_slice(content).map_err(damaged)?;
    let mut event: KeyEvent = serde_json::from_str(&signed.record).map_err(damaged)?;
    if *key != format!("{EVENTS}{}", event.id) {
        return Err(Error::new(Kind::Damaged, format!("object {key}: holds another event than its name says")));
    }
    let signature = signed.signature.as_deref().and_then(|text| hex::decode(text).ok()).unwrap_or_default();
    event.signed = keys.is_signed(signed.record.as_bytes(), &signature);
    Ok(event)
}

fn to_json<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    serde_json::to_vec_pretty(value).context(Kind::Bug, || "encode as JSON".into())
}

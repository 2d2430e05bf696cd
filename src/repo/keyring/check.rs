//! Whether everything below `keys/` is there and is what was stored: slots, marks of generations, the newest updates of slots, keys of plans.
//!
//! That something is gone shows in three ways: who holds a generation knows that its mark must be there; a reader who made a slot, an update or a plan's key
//! has signed that in a key event; and data names the key that it is sealed to.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::error::{Error, Kind, Result};
use crate::repo::format::ObjectKind;
use crate::repo::keyring::{KeyEvent, Ring};
use crate::repo::keys::{KeyObject, Marker, OWN_FIRST, StoredSlot, Update, erased_key_of, key_of};
use crate::repo::verify::{Findings, Verification, tolerable};
use crate::repo::{Repository, seal};

/// What is there, by a look that is as new as the verification.
pub(in crate::repo) struct KeysThere {
    /// Numbers of keys of plans that open, destroyed ones too.
    own: BTreeSet<u16>,
    /// Numbers whose objects are there and cannot be read.
    damaged: BTreeSet<u16>,
    /// The repository's newest generation, by the names of marks.
    pub newest: u16,
}

impl KeysThere {
    /// How the object of a plan's key is found that data is sealed to: its key, kind and message of the finding. `None`: nothing is wrong with it, or the
    /// number is that of a generation.
    pub fn trouble(&self, number: u16) -> Option<(String, &'static str, String)> {
        if number < OWN_FIRST || self.own.contains(&number) {
            return None;
        }
        let key = key_of(number);
        if self.damaged.contains(&number) {
            return Some((key, "damaged", "data is sealed to this plan's key, which cannot be read".into()));
        }
        Some((key, "missing", "data is sealed to this plan's key, which is gone although nobody destroyed it".into()))
    }
}

impl Repository {
    /// Checks what is below `keys/`. `events`: what readers have signed, read before this is called.
    ///
    /// # Errors
    /// When the store cannot be asked.
    pub(in crate::repo) fn verify_keys(&self, events: &[KeyEvent], out: &mut Verification, findings: &mut Findings) -> Result<KeysThere> {
        let mut ring = self.ring()?;
        let verifying = self.verify_marks(&mut ring, out, findings)?;
        self.verify_updates(&ring, &verifying, out, findings)?;
        let there = self.verify_plan_keys(&ring, out, findings)?;
        verify_made(&ring, events, findings);
        if !missing_slots(&ring, events).is_empty() {
            // What was removed since the events were read is known by now.
            for id in missing_slots(&ring, &self.events_that_count()?) {
                let message = "this key slot is gone although no command removed it: whoever holds its key opens nothing with it. Bring the object back from the \
                    store's versions or a copy of the bucket, or give its holder a new one; `lifeboat key remove` with its id says that it is meant to be gone";
                findings.add(&format!("keys/{id}"), "missing", message, []);
            }
        }
        for (key, slot) in ring.whole() {
            out.objects_checked += 1;
            if let Err(error) = slot {
                findings.add_error(&key, &tolerable(error)?, []);
            }
        }
        Ok(there)
    }

    /// Each mark is signed by the generation before it, and there is one of each generation that this bundle holds. Returns what the generations sign with.
    fn verify_marks(&self, ring: &mut Ring, out: &mut Verification, findings: &mut Findings) -> Result<BTreeMap<u16, [u8; 32]>> {
        let inner = &self.inner;
        let mut held = inner.keys.verifying_keys();
        let oldest = held.keys().next().copied();
        for (generation, error) in &ring.bad_markers {
            out.objects_checked += 1;
            findings.add_error(&Marker::key(*generation), &tolerable(Error::new(error.kind(), error.to_string()))?, []);
        }
        for marker in ring.markers.values() {
            out.objects_checked += 1;
            // Of a generation that is not known here it cannot be told.
            let Some(signer) = held.get(&marker.previous) else { continue };
            let next = marker.verifying().filter(|next| held.get(&marker.generation).is_none_or(|known| known == next));
            match next.filter(|_| marker.is_of(inner.id, signer)) {
                Some(next) => drop(held.insert(marker.generation, next)),
                None => findings.add(&Marker::key(marker.generation), "damaged", "is not signed by the key generation before it", []),
            }
        }
        // What is there goes on from no mark that this machine has seen.
        if let (Some(seen), Err(error)) = (inner.keys.seen(), self.require_generation_seen()) {
            findings.add(&Marker::key(seen), "missing", error.to_string(), []);
        }
        for generation in inner.keys.generations().filter(|generation| Some(*generation) != oldest && *generation > 1) {
            if !ring.markers.contains_key(&generation) && !ring.bad_markers.contains_key(&generation) {
                let message = format!(
                    "the keys were rotated to generation {generation}, and its mark is gone: older key slots do not get it any more"
                );
                findings.add(&Marker::key(generation), "missing", message, []);
            }
        }
        Ok(held)
    }

    /// The newest update of each slot is there and was made by the generation that it gives.
    fn verify_updates(
        &self,
        ring: &Ring,
        verifying: &BTreeMap<u16, [u8; 32]>,
        out: &mut Verification,
        findings: &mut Findings,
    ) -> Result<()> {
        let inner = &self.inner;
        let mut newest: HashMap<String, (&StoredSlot, u16)> = HashMap::new();
        for slot in ring.slots.iter().filter_map(|(_, slot)| slot.as_ref().ok()).filter(|slot| slot.is_whole()) {
            let generation = ring.generation_of(slot);
            if let Some(marker) = ring.markers.get(&generation).filter(|_| generation > slot.generation()) {
                newest.insert(Update::key(&slot.id, generation, &marker.attempt()), (slot, generation));
            }
        }
        let mut keys: Vec<String> = newest.keys().cloned().collect();
        keys.sort_unstable();
        for (key, bytes) in inner.get_all(keys) {
            out.objects_checked += 1;
            let Some((slot, generation)) = newest.get(&key) else { continue };
            let bytes = match bytes {
                Ok(bytes) => bytes,
                // A rotation since has superseded it, or somebody has removed the slot.
                Err(error) if error.kind() == Kind::NotFound && self.is_superseded(slot, *generation)? => continue,
                Err(error) => {
                    findings.add_error(&key, &tolerable(error)?, []);
                    continue;
                }
            };
            let fits = |update: Update| verifying.get(generation).is_none_or(|signer| update.is_of(inner.id, slot, signer));
            match serde_json::from_slice::<Update>(&bytes) {
                Ok(update) if update.generation == *generation && fits(update.clone()) => {}
                Ok(_) => findings.add(&key, "damaged", "is not signed by the generation that it gives", []),
                Err(error) => findings.add(&key, "damaged", format!("is not an update of a key slot: {error}"), []),
            }
        }
        Ok(())
    }

    fn is_superseded(&self, slot: &StoredSlot, generation: u16) -> Result<bool> {
        let now = self.ring()?;
        let there = now.slots.iter().find(|(key, _)| *key == slot.key());
        Ok(there.is_none_or(|(_, slot)| slot.as_ref().is_ok_and(|slot| now.generation_of(slot) > generation)))
    }

    /// Every key of a plan, and every record of a destroyed one, opens, as far as this bundle has its generation.
    fn verify_plan_keys(&self, ring: &Ring, out: &mut Verification, findings: &mut Findings) -> Result<KeysThere> {
        let inner = &self.inner;
        let mut keys = inner.keys.clone();
        let mut there = KeysThere { own: BTreeSet::new(), damaged: BTreeSet::new(), newest: ring.newest() };
        let mut named: Vec<(bool, u16)> = ring.plan_keys.iter().map(|(number, erased)| (*erased, *number)).collect();
        named.sort_unstable();
        let object_of = |(erased, number): (bool, u16)| if erased { erased_key_of(number) } else { key_of(number) };
        let mut fetched: HashMap<String, _> = inner.get_all(named.iter().copied().map(object_of)).into_iter().collect();
        for (erased, number) in named {
            out.objects_checked += 1;
            let key = object_of((erased, number));
            let bytes = match fetched.remove(&key) {
                Some(Ok(bytes)) => bytes,
                // It was destroyed since the listing.
                Some(Err(error)) if error.kind() == Kind::NotFound && !erased => {
                    if inner.block_on(inner.store.head(&erased_key_of(number)))?.is_some() {
                        there.own.insert(number);
                    } else {
                        findings.add_error(&key, &error, []);
                    }
                    continue;
                }
                Some(Err(error)) => {
                    findings.add_error(&key, &tolerable(error)?, []);
                    continue;
                }
                None => continue,
            };
            // Of a rotation that never came to its commit, or of one that came since.
            if seal::claimed_generation(&bytes).is_some_and(|generation| generation > keys.generation) {
                there.own.insert(number);
                continue;
            }
            let taken = seal::open(&keys, inner.id, ObjectKind::PlanKey, &key, &bytes).and_then(|content| {
                if erased { keys.take_erased(number, &content) } else { keys.take_plan_key(inner.id, number, &content) }
            });
            match taken {
                Ok(()) => drop(there.own.insert(number)),
                // A slot that cannot tell whether it is genuine.
                Err(error) if error.kind() == Kind::WrongKey => drop(there.own.insert(number)),
                Err(error) => {
                    there.damaged.insert(number);
                    findings.add_error(&key, &tolerable(error)?, []);
                }
            }
        }
        Ok(there)
    }
}

/// Ids of slots that must be there, as key events say or what rotations gave to them, and are not. Pure.
pub(in crate::repo) fn missing_slots(ring: &Ring, events: &[KeyEvent]) -> BTreeSet<String> {
    let slot_of = |key: &String| match KeyObject::of(key) {
        KeyObject::Slot(id) | KeyObject::Update { slot: id, .. } => Some(id),
        _ => None,
    };
    // Only a reader says what was made. Clocks may differ, and no id is given twice: one that was removed is not looked for.
    let made = events.iter().filter(|event| event.signed == Some(true)).flat_map(|event| &event.made).filter_map(slot_of);
    let removed = events.iter().filter(|event| event.signed != Some(false)).flat_map(|event| &event.removed);
    let removed: BTreeSet<&str> = removed.map(String::as_str).collect();
    let there: BTreeSet<&str> = ring.slots.iter().filter_map(|(key, _)| key.strip_prefix("keys/")).collect();
    let is_committed = |generation: &u16, attempt: &str| ring.markers.get(generation).is_some_and(|marker| marker.attempt() == *attempt);
    let updated = ring.updates.iter().filter(|(_, generation, attempt)| is_committed(generation, attempt)).map(|(id, ..)| id.clone());
    made.chain(updated).filter(|id| !removed.contains(id.as_str()) && !there.contains(id.as_str())).collect()
}

/// What readers have signed that they made is there, unless something newer stands in its place.
fn verify_made(ring: &Ring, events: &[KeyEvent], findings: &mut Findings) {
    // Of each slot the newest.
    let mut updates: BTreeMap<String, (u16, &str)> = BTreeMap::new();
    for key in events.iter().filter(|event| event.signed == Some(true)).flat_map(|event| &event.made) {
        match KeyObject::of(key) {
            KeyObject::Update { slot, generation, .. } if updates.get(&slot).is_none_or(|(known, _)| *known < generation) => {
                updates.insert(slot, (generation, key));
            }
            KeyObject::PlanKey { number, erased: false } if !ring.plan_keys.iter().any(|(there, _)| *there == number) => {
                findings.add(key, "missing", "this key of a plan is gone although nobody destroyed it", []);
            }
            _ => {}
        }
    }
    for (slot, (generation, key)) in updates {
        let there = ring.slots.iter().filter_map(|(_, stored)| stored.as_ref().ok()).find(|stored| stored.id == slot);
        // Where the mark is gone, that is the finding.
        if ring.markers.contains_key(&generation) && there.is_some_and(|stored| ring.generation_of(stored) < generation) {
            let message = format!("it gave generation {generation} to key slot {slot}, which opens only what is older now");
            findings.add(key, "missing", message, []);
        }
    }
}

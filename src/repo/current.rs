//! Whether the keys that are written with are still those to write with. They are read when a repository is opened, and a backup or a stream may go on
//! for long after that: meanwhile a rotation may have begun a new generation, or a plan may have got a key of its own or lost it.
//!
//! One listing of `keys/` tells that nothing of this happened. What did is looked into with a few requests more.

use std::sync::PoisonError;

use crate::error::{Error, Kind, Result};
use crate::id::Name;
use crate::repo::keyring::{Ring, Standing};
use crate::repo::keys::{Keys, key_of};
use crate::repo::{Inner, Repository};

/// What was done with the keys of a plan's data since they were read, while what they seal can still be read by whoever may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyChange {
    /// To this generation, which this slot got too.
    Rotated(u16),
    /// The plan has a key of its own now.
    Own,
}

impl KeyChange {
    /// What it means for a snapshot of the plan that was written meanwhile; a sentence.
    pub(super) fn of_snapshot(self, plan: &str) -> String {
        match self {
            Self::Rotated(generation) => format!(
                "the keys were rotated to generation {generation} while this backup ran: what it stored is sealed under the generation before, which who was \
                 shut out may know. The next backup is sealed under the new one; `lifeboat key rotate --repack` stores this one anew"
            ),
            Self::Own => format!(
                "plan {plan} got a key of its own while this backup ran: this snapshot is still sealed to the repository's key, and `lifeboat key erase` will \
                 not reach it. Run a backup, and remove this snapshot if that matters"
            ),
        }
    }
}

impl Repository {
    /// Whether something was done with the keys of a plan's data since this repository was opened: then whoever goes on should open it anew. One
    /// request where nothing was.
    ///
    /// # Errors
    /// `WrongKey` when the plan's own key was destroyed, or a rotation has left this slot behind; `Damaged` when the plan's key is gone and nobody said so, or it
    /// cannot be told which it has; `Unavailable`.
    pub fn keys_changed(&self, plan: &Name) -> Result<Option<KeyChange>> {
        let keys = self.inner.keys.for_plan(plan.as_str())?;
        self.inner.look_at_keys(&keys, plan.as_str())
    }

    /// Whether data of a plan may be written with the keys as they were when this repository was opened. Asks nobody.
    ///
    /// # Errors
    /// `WrongKey`, `Damaged`, as for [`Repository::begin`].
    pub fn may_write(&self, plan: &Name) -> Result<()> {
        self.inner.keys.require_current()?;
        self.inner.keys.for_plan(plan.as_str()).map(drop)
    }
}

impl Inner {
    /// The same for who writes with `keys`.
    pub(super) fn look_at_keys(&self, keys: &Keys, plan: &str) -> Result<Option<KeyChange>> {
        let listed = self.block_on(self.store.list("keys/"))?;
        let now = Standing::of(&listed);
        let harmless = || self.harmless.lock().unwrap_or_else(PoisonError::into_inner);
        if now == self.standing || harmless().get(plan) == Some(&now) {
            return Ok(None);
        }
        let ring = Ring::fetch(&self.store, &self.runtime, listed)?;
        let mut fresh = self.keys.without_own();
        ring.take_plan_keys(&self.store, &self.runtime, self.id, &mut fresh)?;
        let written = keys.data_generation();
        if fresh.is_erased(written) {
            return Err(Error::new(Kind::WrongKey, format!("write data of plan {plan}: its own key was destroyed after this began")).hint(
                format!("if the plan goes on, make a new one with a reader key: `lifeboat key own REPO --plan {plan}`, and run this again"),
            ));
        }
        if keys.writes_own() && !now.plan_keys.contains(&(written, false)) {
            return Err(Error::new(
                Kind::Damaged,
                format!("write data of plan {plan}: its own key was there when this began, and {} is gone", key_of(written)),
            )
            .hint("no command of lifeboat removes it so: bring that object back from the store's versions or a copy"));
        }
        let to_write = fresh.for_plan(plan)?.data_generation();
        if now.newest > self.standing.newest {
            let mine = ring.slots.iter().filter_map(|(_, slot)| slot.as_ref().ok()).find(|slot| slot.id == self.slot);
            if mine.is_none_or(|slot| ring.generation_of(slot) < now.newest) {
                let mut keys = self.keys.clone();
                keys.note_newest(now.newest);
                keys.require_current()?;
            }
            return Ok(Some(KeyChange::Rotated(now.newest)));
        }
        if to_write != written {
            return Ok(Some(KeyChange::Own));
        }
        // Another plan's: not looked into again.
        harmless().insert(plan.to_owned(), now);
        Ok(None)
    }
}

//! The `format` object, made anew: without it nothing opens, and all that it holds is written elsewhere too.

use std::collections::BTreeMap;

use bytes::Bytes;
use chrono::{DateTime, Utc};

use crate::error::{Error, Kind, Result};
use crate::id::ReportId;
use crate::repo::format::{FORMAT_KEY, PackId, RepositoryId, VERSION};
use crate::repo::keyring::Ring;
use crate::repo::keys::Passphrase;
use crate::repo::pack::TRAILER_BYTES;
use crate::repo::{FORMAT_WORD, FormatObject, block_on, read_format, seal, to_json};
use crate::store::Store;

/// Objects asked for the repository's id.
const WITNESSES: usize = 20;

/// A `format` object that is missing or damaged, and what it must have held.
#[derive(Debug)]
pub struct LostFormat {
    id: RepositoryId,
    created: DateTime<Utc>,
    is_there: bool,
    /// How many objects name the id.
    witnesses: usize,
}

impl LostFormat {
    #[must_use]
    pub fn id(&self) -> RepositoryId {
        self.id
    }

    /// What would be done, in words.
    #[must_use]
    pub fn describe(&self) -> String {
        format!(
            "make the object `format` anew for repository {}: {} objects name that id, and the passphrase opens a key slot that is bound to it",
            self.id, self.witnesses
        )
    }

    /// Looks whether that is what is wrong in a place that does not open. `None`: it is not, or the id cannot be told. The id that other objects name is
    /// believed when the passphrase opens a key slot that is bound to it.
    ///
    /// # Errors
    /// `WrongKey` when the passphrase is none at all; what the store says.
    pub fn find(store: &Store, runtime: &tokio::runtime::Handle, passphrase: &Passphrase) -> Result<Option<Self>> {
        let known = match read_format(store, runtime) {
            Ok(format) => Some(format.id),
            Err(error) if error.kind() == Kind::Damaged => None,
            Err(error) => return Err(error),
        };
        let credential = passphrase.credential()?;
        let slots = Ring::read(store, runtime)?.slots;
        let named = named_ids(store, runtime)?;
        for (id, witnesses) in &named {
            for slot in slots.iter().filter_map(|(_, slot)| slot.as_ref().ok()) {
                let Ok(Some(opened)) = slot.answers_to(*id, &credential, store.pulse()) else { continue };
                if slot.unseal(*id, &opened).is_err() {
                    continue;
                }
                if known == Some(*id) {
                    return Ok(None);
                }
                let is_there = block_on(runtime, store.head(FORMAT_KEY))?.is_some();
                // It may be an exchanged slot: the repository is as old as the oldest slot and the oldest name of what is in it.
                let made = slots.iter().filter_map(|(_, slot)| Some(slot.as_ref().ok()?.created));
                let created = made.chain(named_moments(store, runtime)?).fold(slot.created, DateTime::min);
                return Ok(Some(Self { id: *id, created, is_there, witnesses: *witnesses }));
            }
        }
        Ok(None)
    }

    /// Makes it. What is there is removed first: it names another id, or none.
    ///
    /// # Errors
    /// What the store says: run it again.
    pub fn put(&self, store: &Store, runtime: &tokio::runtime::Handle) -> Result<()> {
        let format = FormatObject { format: FORMAT_WORD.into(), version: VERSION, id: self.id, created: self.created };
        let bytes = Bytes::from(to_json(&format)?);
        if self.is_there {
            block_on(runtime, store.delete(FORMAT_KEY))?;
        }
        block_on(runtime, store.create(FORMAT_KEY, bytes)).map(drop).map_err(|error: Error| error.within("make the format object anew"))
    }
}

/// When what is stored was made, by names alone.
fn named_moments(store: &Store, runtime: &tokio::runtime::Handle) -> Result<Vec<DateTime<Utc>>> {
    let mut moments = Vec::new();
    for folder in ["snapshots/", "reports/", "key-events/"] {
        let names = block_on(runtime, store.list(folder))?;
        moments.extend(names.iter().filter_map(|object| object.key.rsplit('/').next()?.parse::<ReportId>().ok()?.generated()));
    }
    Ok(moments)
}

/// Ids that sealed objects and packs name (unauthenticated), the most frequent first.
fn named_ids(store: &Store, runtime: &tokio::runtime::Handle) -> Result<Vec<(RepositoryId, usize)>> {
    let mut counts: BTreeMap<[u8; 16], usize> = BTreeMap::new();
    for folder in ["snapshots/", "index/", "packs/", "reports/"] {
        for object in block_on(runtime, store.list(folder))?.into_iter().take(WITNESSES) {
            let id = if PackId::from_key(&object.key).is_some() {
                let start = object.size.saturating_sub(TRAILER_BYTES as u64);
                let trailer = block_on(runtime, store.get_range(&object.key, start..object.size));
                trailer.ok().and_then(|trailer| trailer.get(36..52)?.try_into().ok())
            } else {
                block_on(runtime, store.get(&object.key)).ok().and_then(|bytes| seal::claims(&bytes)).map(|(_, id)| id.0)
            };
            if let Some(id) = id {
                *counts.entry(id).or_default() += 1;
            }
        }
    }
    let mut named: Vec<(RepositoryId, usize)> = counts.into_iter().map(|(id, count)| (RepositoryId(id), count)).collect();
    named.sort_by_key(|(id, count)| (std::cmp::Reverse(*count), id.0));
    named.truncate(4);
    Ok(named)
}

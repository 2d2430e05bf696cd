//! A rotation's two kinds of objects.
//!
//! The *marker* `keys/generation-<n>` (create-only) is the commit of a rotation: until it is there, generation `n` does not exist, whatever
//! else was written. It names the generation's public keys and is signed by the generation before, so whoever holds an older bundle can tell
//! a rotation from a forgery. An *update* `keys/<slot>.<n>-<attempt>` gives the bundle of generation `n` to one slot: sealed to the slot's
//! public key and signed by generation `n` itself. `attempt` tells the updates of a rotation that was interrupted, or lost a race, apart.

use chrono::{DateTime, Utc};
use ed25519_dalek::Signer as _;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::repo::format::RepositoryId;
use crate::repo::keys::hpke_box::{self, KeyPair};
use crate::repo::keys::{Keys, OWN_FIRST, Role, StoredSlot, is_signed, signing_key};

const UPDATE_INFO: &[u8] = b"lifeboat v1 key update";

/// JSON at `keys/generation-<n>`. Hex strings.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Marker {
    version: u8,
    pub generation: u16,
    /// The generation before, which signed this.
    pub previous: u16,
    pub created: DateTime<Utc>,
    public: String,
    verifying: String,
    signature: String,
}

impl Marker {
    pub fn key(generation: u16) -> String {
        format!("keys/generation-{generation}")
    }

    /// Of the newest generation in `next`, signed by the one before it.
    pub(super) fn create(next: &Keys, repository: RepositoryId, now: DateTime<Utc>) -> Result<Self> {
        let [newest, before, ..] = next.generations.as_slice() else {
            return Err(Error::new(Kind::Bug, "commit a key generation that has none before it"));
        };
        let missing = || Error::new(Kind::Bug, "commit a key generation without its root");
        let mut marker = Self {
            version: 1,
            generation: newest.number,
            previous: before.number,
            created: now,
            public: hex::encode(newest.public),
            verifying: hex::encode(newest.verifying.ok_or_else(missing)?),
            signature: String::new(),
        };
        let signing = signing_key(before.root.as_ref().ok_or_else(missing)?);
        marker.signature = hex::encode(signing.sign(&marker.signed(repository)).to_bytes());
        Ok(marker)
    }

    /// Which of several attempts at this generation it commits.
    pub fn attempt(&self) -> String {
        attempt(&self.public)
    }

    /// Whether the generation before signed it. `verifying`: that one's key.
    pub fn is_of(&self, repository: RepositoryId, verifying: &[u8; 32]) -> bool {
        let signature = hex::decode(&self.signature).unwrap_or_default();
        self.version == 1 && self.generation > self.previous && is_signed(verifying, &self.signed(repository), &signature)
    }

    pub fn verifying(&self) -> Option<[u8; 32]> {
        let mut key = [0; 32];
        hex::decode_to_slice(&self.verifying, &mut key).ok().map(|()| key)
    }

    fn signed(&self, repository: RepositoryId) -> Vec<u8> {
        let Self { generation, previous, created, public, verifying, .. } = self;
        let created = created.to_rfc3339_opts(chrono::SecondsFormat::Nanos, true);
        format!("lifeboat v1 key generation\n{repository}\n{generation}\n{previous}\n{created}\n{public}\n{verifying}\n").into_bytes()
    }
}

fn attempt(public: &str) -> String {
    blake3::hash(public.as_bytes()).to_hex()[..16].to_owned()
}

/// JSON at `keys/<slot>.<n>-<attempt>`. Hex strings.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Update {
    version: u8,
    pub slot: String,
    pub generation: u16,
    encapsulated: String,
    sealed: String,
    signature: String,
}

/// What an object below `keys/` is, by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyObject {
    Slot(String),
    Update {
        slot: String,
        generation: u16,
        attempt: String,
    },
    Marker(u16),
    PlanKey {
        number: u16,
        erased: bool,
    },
    /// Ignored.
    Other,
}

impl KeyObject {
    /// Of a whole key.
    pub fn of(key: &str) -> Self {
        let Some(name) = key.strip_prefix("keys/") else { return Self::Other };
        if let Some(number) = name.strip_prefix("generation-") {
            return number.parse().ok().filter(|n| Marker::key(*n) == key && *n < OWN_FIRST).map_or(Self::Other, Self::Marker);
        }
        if let Some(rest) = name.strip_prefix("plan-") {
            let (number, erased) = rest.strip_suffix("-erased").map_or((rest, false), |number| (number, true));
            let number = u16::from_str_radix(number, 16).ok().filter(|n| *n >= OWN_FIRST && format!("{n:04x}") == number);
            return number.map_or(Self::Other, |number| Self::PlanKey { number, erased });
        }
        match name.split_once('.') {
            Some((slot, rest)) if is_hex(slot, 16) => match rest.split_once('-') {
                Some((number, attempt)) if is_hex(attempt, 16) => number.parse().ok().map_or(Self::Other, |generation| Self::Update {
                    slot: slot.into(),
                    generation,
                    attempt: attempt.into(),
                }),
                _ => Self::Other,
            },
            // Anything else is looked at as a slot, so that a damaged name is told of.
            _ => Self::Slot(name.to_owned()),
        }
    }

    /// Whether a slot can have this key.
    pub fn is_slot_name(key: &str) -> bool {
        key.strip_prefix("keys/").is_some_and(|name| is_hex(name, 16))
    }
}

fn is_hex(text: &str, len: usize) -> bool {
    text.len() == len && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

impl Update {
    pub fn key(slot: &str, generation: u16, attempt: &str) -> String {
        format!("keys/{slot}.{generation}-{attempt}")
    }

    /// Seals the bundle of `next` for the slot. `None`: a slot of version 1, which has nothing to seal to.
    pub(super) fn create(next: &Keys, repository: RepositoryId, slot: &StoredSlot) -> Result<Option<(String, Self)>> {
        let Some(public) = slot.public_key() else { return Ok(None) };
        let bundle = next.reduced(slot.role).to_bundle()?;
        let associated = associated(repository, slot, next.generation);
        let (encapsulated, sealed) = hpke_box::seal(&public, UPDATE_INFO, &bundle, &associated)?;
        let signed = [&associated[..], &encapsulated, &sealed].concat();
        let signature = hex::encode(next.signing_key()?.sign(&signed).to_bytes());
        let key = Self::key(&slot.id, next.generation, &attempt(&hex::encode(next.newest().public)));
        let update = Self {
            version: 1,
            slot: slot.id.clone(),
            generation: next.generation,
            encapsulated: hex::encode(encapsulated),
            sealed: hex::encode(sealed),
            signature,
        };
        Ok(Some((key, update)))
    }

    /// Whether the generation that it gives made it for this slot. `verifying`: that of the generation.
    pub fn is_of(&self, repository: RepositoryId, slot: &StoredSlot, verifying: &[u8; 32]) -> bool {
        let bytes = |text: &str| hex::decode(text).unwrap_or_default();
        let signed = [&associated(repository, slot, self.generation)[..], &bytes(&self.encapsulated), &bytes(&self.sealed)].concat();
        self.version == 1 && self.slot == slot.id && is_signed(verifying, &signed, &bytes(&self.signature))
    }

    /// The keys inside. `verifying`: that of the generation, from its marker.
    ///
    /// # Errors
    /// `Damaged` when it is not what the rotation made for this slot.
    pub(super) fn open(&self, repository: RepositoryId, slot: &StoredSlot, pair: &KeyPair, verifying: &[u8; 32]) -> Result<Keys> {
        let damaged = |what: &str| slot.damaged(&format!("its update to generation {}: {what}", self.generation));
        let bytes = |text: &str| hex::decode(text).map_err(|_| damaged("is not hexadecimal"));
        let (encapsulated, sealed) = (bytes(&self.encapsulated)?, bytes(&self.sealed)?);
        let associated = associated(repository, slot, self.generation);
        if !self.is_of(repository, slot, verifying) {
            return Err(damaged("is not signed by the generation that it gives"));
        }
        let bundle = hpke_box::open(pair, &encapsulated, UPDATE_INFO, &sealed, &associated).ok_or_else(|| damaged("does not open"))?;
        let keys = Keys::from_bundle(slot.role, &bundle).filter(|keys| keys.generation == self.generation);
        keys.ok_or_else(|| damaged("cannot be decoded"))
    }
}

fn associated(repository: RepositoryId, slot: &StoredSlot, generation: u16) -> Vec<u8> {
    let role: Role = slot.role;
    format!("lifeboat v1 key update\n{repository}\n{}\n{role}\n{generation}\n", slot.id).into_bytes()
}

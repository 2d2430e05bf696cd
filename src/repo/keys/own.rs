//! Keys of single plans: data of such a plan is sealed to a key pair of its own, which can be destroyed while everything else lives on.
//!
//! `keys/plan-<number>` holds the pair's root, sealed to the readers of one generation, and its public half for writers; it is signed by
//! that generation, so no writer can make one. The number stands in the envelopes of data where otherwise a generation does. Chunk ids are the
//! plan's own too, so nothing of it is shared with other plans in either direction. `keys/plan-<number>-erased` says that the key was
//! destroyed, so that what cannot be opened any more is not taken for damage.

use chrono::{DateTime, Utc};
use ed25519_dalek::Signer as _;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::error::{Context as _, Error, Kind, Result};
use crate::repo::format::RepositoryId;
use crate::repo::keys::hpke_box::{self, KeyPair};
use crate::repo::keys::{Keys, OWN_FIRST, data_pair, ids_name_of, is_signed, random};

const INFO: &[u8] = b"lifeboat v1 plan key";

/// A plan's own key, as far as the role has it.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct OwnKey {
    #[zeroize(skip)]
    pub number: u16,
    #[zeroize(skip)]
    pub plan: String,
    /// The generation of the repository whose readers can open it.
    #[zeroize(skip)]
    pub generation: u16,
    #[zeroize(skip)]
    pub created: Option<DateTime<Utc>>,
    #[zeroize(skip)]
    pub erased: Option<DateTime<Utc>>,
    /// The name of the ids of chunks that are sealed to it, see [`Keys::ids_name`]; `None`: this role, or the record of its end, does not know it.
    #[zeroize(skip)]
    ids: Option<String>,
    pub(super) public: [u8; 32],
    pub(super) chunk_ids: Option<[u8; 32]>,
    root: Option<[u8; 32]>,
}

/// Content of the sealed objects `keys/plan-…` (JSON): a record as text, signed.
#[derive(Debug, Serialize, Deserialize)]
struct Signed {
    record: String,
    /// Hex, Ed25519.
    signature: String,
}

/// What a plan key's record says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PlanKeyRecord {
    number: u16,
    plan: String,
    generation: u16,
    created: DateTime<Utc>,
    public: String,
    encapsulated: String,
    sealed: String,
}

/// What the record of a destroyed one says.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct ErasedRecord {
    number: u16,
    plan: String,
    generation: u16,
    erased: DateTime<Utc>,
    /// See [`OwnKey::ids`]: by it everybody knows which snapshots restore nothing any more.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    ids: Option<String>,
}

/// Whether this is a signed record of a plan's key, or of the end of one, whoever signed it. For fuzzing.
pub fn is_signed_record(content: &[u8]) -> bool {
    let Ok(signed) = serde_json::from_slice::<Signed>(content) else { return false };
    serde_json::from_str::<PlanKeyRecord>(&signed.record).is_ok() || serde_json::from_str::<ErasedRecord>(&signed.record).is_ok()
}

/// Name of the object of a plan's key.
pub fn key_of(number: u16) -> String {
    format!("keys/plan-{number:04x}")
}

/// Name of the object that says that it was destroyed.
pub fn erased_key_of(number: u16) -> String {
    format!("keys/plan-{number:04x}-erased")
}

impl Keys {
    /// A fresh key for a plan: the content of its object.
    pub fn create_plan_key(&self, repository: RepositoryId, plan: &str, number: u16, now: DateTime<Utc>) -> Result<Vec<u8>> {
        self.require_reader("make a key for a plan")?;
        let root = random::<32>();
        let associated = associated(repository, number, plan);
        let (encapsulated, sealed) = hpke_box::seal(&self.newest().public, INFO, &*root, &associated)?;
        let record = PlanKeyRecord {
            number,
            plan: plan.to_owned(),
            generation: self.generation,
            created: now,
            public: hex::encode(data_pair(&root).public),
            encapsulated: hex::encode(encapsulated),
            sealed: hex::encode(sealed),
        };
        self.sign_record(&record)
    }

    /// The content of the object that says that a plan's key was destroyed.
    pub fn create_erased(&self, own: &OwnKey, now: DateTime<Utc>) -> Result<Vec<u8>> {
        self.require_reader("destroy the key of a plan")?;
        self.sign_record(&ErasedRecord {
            number: own.number,
            plan: own.plan.clone(),
            generation: self.generation,
            erased: now,
            ids: own.ids.clone(),
        })
    }

    fn sign_record<T: Serialize>(&self, record: &T) -> Result<Vec<u8>> {
        let encode = || "encode the record of a key".to_owned();
        let record = serde_json::to_string(record).context(Kind::Bug, encode)?;
        let signature = hex::encode(self.signing_key()?.sign(record.as_bytes()).to_bytes());
        serde_json::to_vec(&Signed { record, signature }).context(Kind::Bug, encode)
    }

    /// Takes the opened object of a plan's key in.
    ///
    /// # Errors
    /// `Damaged` when it is not what a reader of its generation made for this number; `WrongKey` when this bundle cannot tell.
    pub fn take_plan_key(&mut self, repository: RepositoryId, number: u16, content: &[u8]) -> Result<()> {
        let damaged = |what: &str| Error::new(Kind::Damaged, format!("object {}: {what}", key_of(number)));
        let record: PlanKeyRecord = self.signed_record(content, number, &damaged, |record: &PlanKeyRecord| record.generation)?;
        let bytes = |text: &str| hex::decode(text).map_err(|_| damaged("is not hexadecimal"));
        let public = <[u8; 32]>::try_from(bytes(&record.public)?).map_err(|_| damaged("has no public key"))?;
        if record.number != number {
            return Err(damaged("holds another key than its name says"));
        }
        let generation = self.held(record.generation).ok_or_else(|| damaged("is of another key generation than its seal"))?;
        let chunk_ids = generation.chunk_ids.map(|ids| {
            let material = Zeroizing::new([&ids[..], &number.to_le_bytes(), &public].concat());
            blake3::derive_key("lifeboat v1 plan chunk ids", &material)
        });
        let root = match &generation.root {
            None => None,
            Some(readers) => {
                let associated = associated(repository, number, &record.plan);
                let root = hpke_box::open(&data_pair(readers), &bytes(&record.encapsulated)?, INFO, &bytes(&record.sealed)?, &associated)
                    .and_then(|root| <[u8; 32]>::try_from(root.as_slice()).ok())
                    .filter(|root| data_pair(root).public == public);
                Some(root.ok_or_else(|| damaged("its key does not open"))?)
            }
        };
        self.own.retain(|own| own.number != number);
        let PlanKeyRecord { plan, generation, created, .. } = record;
        let ids = chunk_ids.as_ref().map(ids_name_of);
        self.own.push(OwnKey { number, plan, generation, created: Some(created), erased: None, ids, public, chunk_ids, root });
        Ok(())
    }

    /// Takes in that a plan's key was destroyed. To be called after all [`Self::take_plan_key`].
    ///
    /// # Errors
    /// As there.
    pub fn take_erased(&mut self, number: u16, content: &[u8]) -> Result<()> {
        let damaged = |what: &str| Error::new(Kind::Damaged, format!("object {}: {what}", erased_key_of(number)));
        let record: ErasedRecord = self.signed_record(content, number, &damaged, |record: &ErasedRecord| record.generation)?;
        if record.number != number {
            return Err(damaged("speaks of another key than its name says"));
        }
        let known = self.own.iter().find(|own| own.number == number);
        let (created, known_ids) = known.map_or((None, None), |own| (own.created, own.ids.clone()));
        self.own.retain(|own| own.number != number);
        let ErasedRecord { plan, generation, erased, ids, .. } = record;
        let ids = ids.or(known_ids);
        // Should the key still be there (the destroyer was interrupted), it is not used any more all the same.
        let gone = OwnKey { number, plan, generation, created, erased: Some(erased), ids, public: [0; 32], chunk_ids: None, root: None };
        self.own.push(gone);
        Ok(())
    }

    fn signed_record<T: serde::de::DeserializeOwned>(
        &self,
        content: &[u8],
        number: u16,
        damaged: &dyn Fn(&str) -> Error,
        generation: impl Fn(&T) -> u16,
    ) -> Result<T> {
        let signed: Signed = serde_json::from_slice(content).map_err(|e| damaged("cannot be decoded").because(e))?;
        let record: T = serde_json::from_str(&signed.record).map_err(|e| damaged("cannot be decoded").because(e))?;
        let signer = self.held(generation(&record)).ok_or_else(|| damaged("is of a key generation that is not known"))?;
        let Some(verifying) = &signer.verifying else {
            return Err(Error::new(Kind::WrongKey, format!("{}: this key slot cannot tell whether it is genuine", key_of(number)))
                .hint("the slot was made by an older lifeboat: ask a reader for a new one (`lifeboat key add`)"));
        };
        if !is_signed(verifying, signed.record.as_bytes(), &hex::decode(&signed.signature).unwrap_or_default()) {
            return Err(damaged("is not signed by a reader"));
        }
        Ok(record)
    }

    /// The same keys without those of plans, to take them in anew.
    pub fn without_own(&self) -> Self {
        Self { own: Vec::new(), own_damaged: None, writes_to: None, ..self.clone() }
    }

    /// Remembers why not all keys of plans are known.
    pub fn note_damaged_plan_key(&mut self, why: String) {
        self.own_damaged.get_or_insert(why);
    }

    /// Keys of plans, destroyed ones too, by number.
    pub fn own_keys(&self) -> Vec<&OwnKey> {
        let mut own: Vec<&OwnKey> = self.own.iter().collect();
        own.sort_by_key(|own| own.number);
        own
    }

    /// The keys to write data of a plan with: sealed to its own key if it has one.
    ///
    /// # Errors
    /// `Damaged` when it cannot be told which; `WrongKey` when its key was destroyed, or the one it has is not of the newest generation. Never
    /// falls back to the repository's key: what was promised to be destroyable must stay so.
    pub fn for_plan(&self, plan: &str) -> Result<Self> {
        if let Some(why) = &self.own_damaged {
            return Err(Error::new(
                Kind::Damaged,
                format!("write data of plan {plan}: whether it has a key of its own is not known: {why}"),
            )
            .hint("bring that object back from the store's versions or a copy"));
        }
        let of_plan: Vec<&OwnKey> = self.own.iter().filter(|own| own.plan == plan).collect();
        let usable = of_plan.iter().filter(|own| own.erased.is_none() && own.generation == self.generation);
        if let Some(own) = usable.max_by_key(|own| own.number) {
            return Ok(Self { writes_to: Some(own.number), ..self.clone() });
        }
        if of_plan.is_empty() {
            return Ok(self.clone());
        }
        let what = if of_plan.iter().all(|own| own.erased.is_some()) { "was destroyed" } else { "is of an older key generation" };
        Err(Error::new(Kind::WrongKey, format!("write data of plan {plan}: its own key {what}"))
            .hint(format!("make a new one with a reader key: `lifeboat key own REPO --plan {plan}`")))
    }

    /// Whether data is sealed to a plan's own key.
    pub fn writes_own(&self) -> bool {
        self.writes_to.is_some()
    }

    pub(super) fn own_pair(&self, number: u16) -> Result<KeyPair> {
        let unknown = || {
            let why = self.own_damaged.as_ref().map_or_else(|| "it is not there".to_owned(), Clone::clone);
            Error::new(Kind::Damaged, format!("data is sealed to a plan's own key, {}: {why}", key_of(number)))
                .hint("bring that object back from the store's versions or a copy: without it, that plan's data cannot be read")
        };
        let own = self.own.iter().find(|own| own.number == number).ok_or_else(unknown)?;
        if let Some(erased) = own.erased {
            return Err(destroyed(&own.plan, erased));
        }
        own.root.as_ref().map(data_pair).ok_or_else(unknown)
    }

    /// Whether data under this number is sealed to a plan's key that is not at hand although nobody destroyed it.
    pub fn lacks(&self, number: u16) -> bool {
        number >= OWN_FIRST && !self.own.iter().any(|own| own.number == number)
    }

    /// Refuses to go on under the repository's key where the plan's last snapshot has ids of a key that is not at hand: it was a key of the plan's own.
    /// `before`: the names of its ids. `self`: what [`Self::for_plan`] gave.
    ///
    /// # Errors
    /// `Damaged`.
    pub fn require_own_of<'a>(&self, plan: &str, mut before: impl Iterator<Item = &'a str>) -> Result<()> {
        if self.writes_to.is_some() || before.all(|name| self.knows_ids(name)) {
            return Ok(());
        }
        Err(Error::new(Kind::Damaged, format!("write data of plan {plan}: its last snapshot is sealed to a key of its own, which is gone")).hint(
            "`lifeboat verify` names the object below keys/: bring it back from the store's versions or a copy of the bucket, or give the plan a new key \
             with `lifeboat key own`; without one, what could be destroyed alone until now could not be any more",
        ))
    }

    /// When the key was destroyed whose chunk ids have this name, see [`Self::ids_name`]; `None`: no key that is known to have it was.
    pub fn ids_destroyed_at(&self, name: &str) -> Option<DateTime<Utc>> {
        self.own.iter().find(|own| own.ids.as_deref() == Some(name)).and_then(|own| own.erased)
    }

    /// Whether a key of this plan was destroyed.
    pub fn has_destroyed(&self, plan: &str) -> bool {
        self.own.iter().any(|own| own.plan == plan && own.erased.is_some())
    }

    /// Whether data under this number can never be opened again.
    pub fn is_erased(&self, number: u16) -> bool {
        number >= OWN_FIRST && self.own.iter().any(|own| own.number == number && own.erased.is_some())
    }
}

/// What to say to who asks for data whose key was destroyed at this time.
pub fn destroyed(plan: &str, at: DateTime<Utc>) -> Error {
    let when = at.to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
    Error::new(Kind::NoRecoveryPoint, format!("the key of plan {plan}'s data was destroyed at {when}"))
        .hint("`lifeboat key erase` did that on purpose: nobody can read this data any more")
}

fn associated(repository: RepositoryId, number: u16, plan: &str) -> Vec<u8> {
    format!("lifeboat v1 plan key\n{repository}\n{number}\n{plan}\n").into_bytes()
}

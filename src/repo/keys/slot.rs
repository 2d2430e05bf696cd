//! Key slots: the keys of a role behind a lock. The fields are in `docs/format.md`.
//!
//! Version 2 is written: a lock yields 32 secret bytes (Argon2id of a passphrase; a key file; bytes sealed to a recipient), and under
//! those the bundle of all generations is sealed. A commitment to the secret is checked first, so that a slot opens under one secret only and
//! a wrong one is told apart from damage. From the secret also follows a key pair whose public half stands in the slot: a rotation seals the
//! next generation to it without knowing the secret. Version 1 (passphrases and one generation, no key pair) is read.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use lifeboat_cipher::Cipher;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::error::{Context as _, Error, Kind, Result};
use crate::event::Pulse;
use crate::repo::format::RepositoryId;
use crate::repo::keys::hpke_box::{self, KeyPair};
use crate::repo::keys::text::{self, Prefix};
use crate::repo::keys::{Credential, Keys, Passphrase, Role, random};

/// 32 random bytes that stand in for a passphrase.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct KeyFile([u8; 32]);

impl KeyFile {
    pub fn generate() -> Self {
        Self(*random())
    }

    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The content of the file.
    pub fn reveal(&self) -> Zeroizing<String> {
        text::encode(Prefix::KeyFile, &self.0)
    }

    pub(super) fn read(text: &str) -> Result<Self, &'static str> {
        Ok(Self(array(&text::decode(Prefix::KeyFile, text, 32)?)))
    }
}

/// The private key of somebody that slots are sealed to.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Recipient([u8; 32]);

impl Recipient {
    pub fn generate() -> Self {
        Self(*random())
    }

    /// The content of the private key's file.
    pub fn reveal(&self) -> Zeroizing<String> {
        text::encode(Prefix::SecretKey, &self.0)
    }

    /// The text to give to whoever adds the slot; nothing secret.
    pub fn public_text(&self) -> String {
        text::encode(Prefix::PublicKey, &self.pair().public).to_string()
    }

    pub(super) fn read(text: &str) -> Result<Self, &'static str> {
        Ok(Self(array(&text::decode(Prefix::SecretKey, text, 32)?)))
    }

    pub(super) fn pair(&self) -> KeyPair {
        KeyPair::derive(&blake3::derive_key("lifeboat v1 recipient key pair", &self.0))
    }
}

fn array(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(bytes);
    out
}

/// What a new slot shall open with.
pub enum Lock<'a> {
    Passphrase(&'a Passphrase),
    KeyFile(&'a KeyFile),
    /// The text of a public key.
    Recipient(&'a str),
}

/// A key slot as stored.
#[derive(Debug, Clone)]
pub struct StoredSlot {
    pub id: String,
    pub label: String,
    pub role: Role,
    pub created: DateTime<Utc>,
    stored: Stored,
}

#[derive(Debug, Clone)]
enum Stored {
    One(StoredOne),
    Two(StoredTwo),
}

/// Version 1, JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredOne {
    version: u8,
    id: String,
    label: String,
    role: Role,
    created: DateTime<Utc>,
    kdf: KdfOne,
    /// Hex. `blake3::derive_key("lifeboat v1 slot commitment", argon2 output)`.
    commitment: String,
    /// Hex. The bundle sealed by AES-256-GCM, zero nonce (the key is used once).
    sealed: String,
    /// Hex BLAKE3 of the other fields (see `digest`): finds rot in a slot whose passphrase is not at hand. No proof against forgery.
    check: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KdfOne {
    algorithm: String,
    /// Hex, 32 bytes.
    salt: String,
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

/// Version 2, JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredTwo {
    version: u8,
    id: String,
    label: String,
    role: Role,
    created: DateTime<Utc>,
    /// The newest that the sealed bundle holds.
    generation: u16,
    lock: StoredLock,
    /// Hex: of the key pair that rotations seal to.
    public: String,
    /// Hex, of the secret, as in version 1.
    commitment: String,
    /// Hex: the bundle.
    sealed: String,
    /// Hex, as in version 1.
    check: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
enum StoredLock {
    Passphrase { salt: String, memory_kib: u32, passes: u32, lanes: u32 },
    KeyFile { salt: String },
    Recipient { encapsulated: String, secret: String },
}

impl StoredLock {
    fn word(&self) -> &'static str {
        match self {
            Self::Passphrase { .. } => "passphrase",
            Self::KeyFile { .. } => "key-file",
            Self::Recipient { .. } => "recipient",
        }
    }
}

/// Memory for Argon2id: RFC 9106's second recommended option (64 MiB, 3 passes, 4 lanes, which are worked on at the same time).
#[cfg(not(test))]
const ARGON_MEMORY_KIB: u32 = 64 * 1024;
/// Unit tests open hundreds of repositories.
#[cfg(test)]
const ARGON_MEMORY_KIB: u32 = 64;
const ARGON_PASSES: u32 = 3;
const ARGON_LANES: u32 = 4;
/// Upper limits for what a stored slot may ask of this machine.
const ARGON_MEMORY_KIB_MAX: u32 = 1024 * 1024;
const ARGON_PASSES_MAX: u32 = 64;

const RECIPIENT_INFO: &[u8] = b"lifeboat v1 key slot";

/// The public part of a key slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeySlot {
    pub id: String,
    pub label: String,
    pub role: Role,
    /// `passphrase`, `key-file` or `recipient`.
    pub kind: String,
    pub created: DateTime<Utc>,
    /// The newest key generation that it gives to its holder.
    pub generation: u16,
    /// Whether this is the slot that the repository was opened with.
    pub current: bool,
}

/// What the lock of a slot yields to its holder.
pub struct Opened {
    secret: Zeroizing<[u8; 32]>,
    /// What rotations seal to; `None` in version 1.
    pub pair: Option<KeyPair>,
}

impl StoredSlot {
    /// Where it is stored.
    pub fn key(&self) -> String {
        format!("keys/{}", self.id)
    }

    /// Reads what [`Self::to_json`] wrote, or a slot of version 1.
    ///
    /// # Errors
    /// What serde says; another version than 1 and 2.
    pub fn from_json(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct Version {
            version: u8,
        }
        let Version { version } = serde_json::from_slice(bytes)?;
        if version == 1 {
            let one: StoredOne = serde_json::from_slice(bytes)?;
            let StoredOne { id, label, role, created, .. } = one.clone();
            return Ok(Self { id, label, role, created, stored: Stored::One(one) });
        }
        if version != 2 {
            return Err(serde::de::Error::custom("a key slot of an unknown version"));
        }
        let two: StoredTwo = serde_json::from_slice(bytes)?;
        let StoredTwo { id, label, role, created, .. } = two.clone();
        Ok(Self { id, label, role, created, stored: Stored::Two(two) })
    }

    /// As it is stored.
    ///
    /// # Errors
    /// `Bug`.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        let json = match &self.stored {
            Stored::One(one) => serde_json::to_vec_pretty(one),
            Stored::Two(two) => serde_json::to_vec_pretty(two),
        };
        json.context(Kind::Bug, || "encode a key slot".into())
    }

    /// Wraps `keys`, reduced to `role`.
    ///
    /// # Errors
    /// `Usage` for a passphrase that is too short or a text that is no recipient; `WrongKey` when `keys` are not a reader's.
    pub fn create(keys: &Keys, repository: RepositoryId, role: Role, label: &str, lock: &Lock<'_>, now: DateTime<Utc>) -> Result<Self> {
        keys.require_reader("add a key slot")?;
        keys.require_current()?;
        let (stored_lock, secret, public) = close(lock, repository, role)?;
        let mut sealed = keys.reduced(role).to_bundle()?;
        let mut two = StoredTwo {
            version: 2,
            id: hex::encode(*random::<8>()),
            label: label.to_owned(),
            role,
            created: now,
            generation: keys.generation,
            lock: stored_lock,
            public: hex::encode(public),
            commitment: hex::encode(commitment(&secret)),
            sealed: String::new(),
            check: String::new(),
        };
        let associated = two.associated(repository);
        slot_cipher(&secret).seal(&[0; 12], &associated, &mut sealed).map_err(|_| Error::new(Kind::Bug, "seal a key slot"))?;
        two.sealed = hex::encode(&*sealed);
        two.check = two.digest();
        let StoredTwo { id, label, .. } = two.clone();
        Ok(Self { id, label, role, created: now, stored: Stored::Two(two) })
    }

    /// Whether the slot is as it was stored, as far as that can be told without its secret.
    pub fn is_whole(&self) -> bool {
        match &self.stored {
            Stored::One(one) => one.check == one.digest(),
            Stored::Two(two) => two.check == two.digest(),
        }
    }

    /// What rotations seal to; `None` in version 1, which they leave behind.
    pub fn public_key(&self) -> Option<[u8; 32]> {
        let Stored::Two(two) = &self.stored else { return None };
        let mut public = [0; 32];
        hex::decode_to_slice(&two.public, &mut public).ok().map(|()| public)
    }

    /// The newest generation in the slot itself, updates by rotations aside. Not sealed: for lists.
    pub fn generation(&self) -> u16 {
        match &self.stored {
            Stored::One(_) => 1,
            Stored::Two(two) => two.generation,
        }
    }

    pub fn kind(&self) -> &'static str {
        match &self.stored {
            Stored::One(_) => "passphrase",
            Stored::Two(two) => two.lock.word(),
        }
    }

    /// Opens the slot. `None`: the passphrase is not this slot's.
    ///
    /// # Errors
    /// `Damaged` when the passphrase is right (or cannot be told) but the slot's content is not what was stored.
    #[cfg(test)]
    pub fn open(&self, repository: RepositoryId, passphrase: &Passphrase) -> Result<Option<Keys>> {
        self.answers_to(repository, &passphrase.credential()?, &Pulse::default())?
            .map(|opened| self.unseal(repository, &opened))
            .transpose()
    }

    /// Tells by the slot's commitment whether it opens with this; gives what [`Self::unseal`] needs. The pulse beats while it waits for its turn.
    ///
    /// # Errors
    /// `Damaged` when it cannot be told.
    pub fn answers_to(&self, repository: RepositoryId, credential: &Credential, pulse: &Pulse) -> Result<Option<Opened>> {
        let stretched = |salt: &str, memory_kib: u32, passes: u32, lanes: u32, passphrase: &str| {
            if memory_kib > ARGON_MEMORY_KIB_MAX || passes > ARGON_PASSES_MAX {
                return Err(self.damaged("asks for too much memory or time"));
            }
            stretch(salt, memory_kib, passes, lanes, passphrase, pulse).map_err(|e| self.damaged(&e))
        };
        let (secret, told, pair) = match (&self.stored, credential) {
            (Stored::One(one), Credential::Passphrase(passphrase)) => {
                if one.version != 1 || one.kdf.algorithm != "argon2id" {
                    return Err(self.damaged("unknown version or key derivation"));
                }
                let KdfOne { salt, memory_kib, passes, lanes, .. } = &one.kdf;
                (stretched(salt, *memory_kib, *passes, *lanes, passphrase)?, &one.commitment, None)
            }
            (Stored::Two(two), credential) => {
                let (secret, pair) = match (&two.lock, credential) {
                    (StoredLock::Passphrase { salt, memory_kib, passes, lanes }, Credential::Passphrase(passphrase)) => {
                        let secret = stretched(salt, *memory_kib, *passes, *lanes, passphrase)?;
                        let pair = slot_pair(&secret);
                        (secret, pair)
                    }
                    (StoredLock::KeyFile { salt }, Credential::KeyFile(file)) => {
                        let secret = file_secret(file, &hex::decode(salt).map_err(|_| self.damaged("the salt is not hexadecimal"))?);
                        let pair = slot_pair(&secret);
                        (secret, pair)
                    }
                    (StoredLock::Recipient { encapsulated, secret }, Credential::Recipient(recipient)) => {
                        let pair = recipient.pair();
                        if hex::encode(pair.public) != two.public {
                            return Ok(None);
                        }
                        let (Ok(encapsulated), Ok(sealed)) = (hex::decode(encapsulated), hex::decode(secret)) else {
                            return Err(self.damaged("the sealed secret is not hexadecimal"));
                        };
                        let associated = recipient_associated(repository, self.role);
                        let secret = hpke_box::open(&pair, &encapsulated, RECIPIENT_INFO, &sealed, &associated)
                            .filter(|secret| secret.len() == 32)
                            .ok_or_else(|| self.damaged("the sealed secret was changed, or the slot is another repository's"))?;
                        (Zeroizing::new(array(&secret)), pair)
                    }
                    _ => return Ok(None),
                };
                (secret, &two.commitment, Some(pair))
            }
            _ => return Ok(None),
        };
        let told = blake3::Hash::from_hex(told).map_err(|_| self.damaged("the commitment is no hash"))?;
        // `Hash` compares in constant time.
        Ok((blake3::Hash::from_bytes(commitment(&secret)) == told).then_some(Opened { secret, pair }))
    }

    /// The keys inside, as of when the slot was made.
    ///
    /// # Errors
    /// `Damaged`: the secret is right, so either the slot was changed, or it is another repository's.
    pub fn unseal(&self, repository: RepositoryId, opened: &Opened) -> Result<Keys> {
        let (sealed, associated) = match &self.stored {
            Stored::One(one) => (&one.sealed, one.associated(repository)),
            Stored::Two(two) => (&two.sealed, two.associated(repository)),
        };
        let mut bundle = Zeroizing::new(hex::decode(sealed).map_err(|_| self.damaged("the sealed part is not hexadecimal"))?);
        slot_cipher(&opened.secret)
            .open(&[0; 12], &associated, &mut bundle)
            .map_err(|_| self.damaged("the sealed part was changed, or the slot is another repository's"))?;
        let keys = match &self.stored {
            Stored::One(_) => Keys::from_first_bundle(self.role, &bundle),
            Stored::Two(_) => Keys::from_bundle(self.role, &bundle),
        };
        keys.ok_or_else(|| self.damaged("the bundle cannot be decoded"))
    }

    pub(super) fn damaged(&self, what: &str) -> Error {
        Error::new(Kind::Damaged, format!("key slot {}: {what}", self.id)).hint("use another key slot or the recovery key")
    }

    /// The public part.
    pub fn public(&self, generation: u16, current: bool) -> KeySlot {
        KeySlot {
            id: self.id.clone(),
            label: self.label.clone(),
            role: self.role,
            kind: self.kind().to_owned(),
            created: self.created,
            generation,
            current,
        }
    }
}

fn stamp(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(chrono::SecondsFormat::Nanos, true)
}

impl StoredOne {
    /// Hex BLAKE3 of all fields but `check`, in the order of the object, each followed by a line feed.
    fn digest(&self) -> String {
        let Self { version, id, label, role, created, kdf, commitment, sealed, check: _ } = self;
        let KdfOne { algorithm, salt, memory_kib, passes, lanes } = kdf;
        let created = stamp(*created);
        let text = format!(
            "{version}\n{id}\n{label}\n{role}\n{created}\n{algorithm}\n{salt}\n{memory_kib}\n{passes}\n{lanes}\n{commitment}\n{sealed}\n"
        );
        blake3::hash(text.as_bytes()).to_hex().to_string()
    }

    fn associated(&self, repository: RepositoryId) -> Vec<u8> {
        format!("lifeboat v1 key slot\n{repository}\n{}\n{}\n", self.id, self.role).into_bytes()
    }
}

impl StoredTwo {
    fn digest(&self) -> String {
        let Self { version, id, label, role, created, generation, lock, public, commitment, sealed, check: _ } = self;
        let created = stamp(*created);
        let kind = lock.word();
        let lock = match lock {
            StoredLock::Passphrase { salt, memory_kib, passes, lanes } => format!("{salt}\n{memory_kib}\n{passes}\n{lanes}"),
            StoredLock::KeyFile { salt } => salt.clone(),
            StoredLock::Recipient { encapsulated, secret } => format!("{encapsulated}\n{secret}"),
        };
        let text = format!("{version}\n{id}\n{label}\n{role}\n{created}\n{generation}\n{kind}\n{lock}\n{public}\n{commitment}\n{sealed}\n");
        blake3::hash(text.as_bytes()).to_hex().to_string()
    }

    fn associated(&self, repository: RepositoryId) -> Vec<u8> {
        let Self { id, role, generation, lock, public, .. } = self;
        format!("lifeboat v1 key slot 2\n{repository}\n{id}\n{role}\n{generation}\n{}\n{public}\n", lock.word()).into_bytes()
    }
}

/// The stored form of a lock, the secret behind it, and the public key for rotations.
fn close(lock: &Lock<'_>, repository: RepositoryId, role: Role) -> Result<(StoredLock, Zeroizing<[u8; 32]>, [u8; 32])> {
    let salt = hex::encode(*random::<32>());
    match lock {
        Lock::Passphrase(passphrase) => match passphrase.credential()? {
            Credential::KeyFile(file) => close(&Lock::KeyFile(&file), repository, role),
            Credential::Recipient(recipient) => close(&Lock::Recipient(&recipient.public_text()), repository, role),
            Credential::Passphrase(text) => {
                if text.trim().is_empty() {
                    return Err(Error::new(Kind::Usage, "the passphrase is empty").hint("set a passphrase of at least eight characters"));
                }
                if text.chars().count() < 8 {
                    return Err(Error::new(Kind::Usage, "the passphrase is shorter than eight characters")
                        .hint("use a longer one, for example several random words"));
                }
                let secret = stretch(&salt, ARGON_MEMORY_KIB, ARGON_PASSES, ARGON_LANES, &text, &Pulse::default())
                    .map_err(|e| Error::new(Kind::Bug, format!("derive a slot key: {e}")))?;
                let public = slot_pair(&secret).public;
                let lock = StoredLock::Passphrase { salt, memory_kib: ARGON_MEMORY_KIB, passes: ARGON_PASSES, lanes: ARGON_LANES };
                Ok((lock, secret, public))
            }
        },
        Lock::KeyFile(file) => {
            let secret = file_secret(file, &hex::decode(&salt).context(Kind::Bug, || "encode a salt".into())?);
            let public = slot_pair(&secret).public;
            Ok((StoredLock::KeyFile { salt }, secret, public))
        }
        Lock::Recipient(text) => {
            let public = text::decode(Prefix::PublicKey, text, 32).map_err(|why| {
                Error::new(Kind::Usage, format!("read the recipient's public key: {why}"))
                    .hint("it begins with LBPK1; `lifeboat key generate` prints it")
            })?;
            let public = array(&public);
            let secret = random::<32>();
            let (encapsulated, sealed) = hpke_box::seal(&public, RECIPIENT_INFO, &*secret, &recipient_associated(repository, role))?;
            Ok((StoredLock::Recipient { encapsulated: hex::encode(encapsulated), secret: hex::encode(sealed) }, secret, public))
        }
    }
}

fn recipient_associated(repository: RepositoryId, role: Role) -> Vec<u8> {
    format!("lifeboat v1 slot secret\n{repository}\n{role}\n").into_bytes()
}

/// One after the other: each derivation takes its memory and every processor, and a daemon may begin a hundred runs in the same second.
struct Turn {
    taken: Mutex<bool>,
    free: Condvar,
}

/// Whose turn it is; until it is dropped.
struct Taken<'a>(&'a Turn);

impl Turn {
    const fn new() -> Self {
        Self { taken: Mutex::new(false), free: Condvar::new() }
    }

    /// Waits for it. The pulse beats each `often` meanwhile, for every derivation comes to its end, and when it is obtained.
    fn take(&self, pulse: &Pulse, often: Duration) -> Taken<'_> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        while *taken {
            taken = self.free.wait_timeout(taken, often).unwrap_or_else(PoisonError::into_inner).0;
            pulse.beat();
        }
        *taken = true;
        pulse.beat();
        Taken(self)
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        *self.0.taken.lock().unwrap_or_else(PoisonError::into_inner) = false;
        self.0.free.notify_one();
    }
}

/// How often one who waits for its turn says so: soon enough for whoever takes silence for hanging.
const OFTEN: Duration = Duration::from_secs(1);

fn stretch(salt: &str, memory_kib: u32, passes: u32, lanes: u32, passphrase: &str, pulse: &Pulse) -> Result<Zeroizing<[u8; 32]>, String> {
    static TURN: Turn = Turn::new();
    let salt = hex::decode(salt).map_err(|e| e.to_string())?;
    let params = argon2::Params::new(memory_kib, passes, lanes, Some(32)).map_err(|e| e.to_string())?;
    let mut out = Zeroizing::new([0u8; 32]);
    let _turn = TURN.take(pulse, OFTEN);
    argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params)
        .hash_password_into(passphrase.as_bytes(), &salt, &mut *out)
        .map_err(|e| e.to_string())?;
    Ok(out)
}

fn file_secret(file: &KeyFile, salt: &[u8]) -> Zeroizing<[u8; 32]> {
    let mut material = Zeroizing::new(file.0.to_vec());
    material.extend_from_slice(salt);
    Zeroizing::new(blake3::derive_key("lifeboat v1 key file", &material))
}

fn commitment(secret: &[u8; 32]) -> [u8; 32] {
    blake3::derive_key("lifeboat v1 slot commitment", secret)
}

fn slot_pair(secret: &[u8; 32]) -> KeyPair {
    KeyPair::derive(&Zeroizing::new(blake3::derive_key("lifeboat v1 slot key pair", secret)))
}

fn slot_cipher(secret: &[u8; 32]) -> Cipher {
    let key = Zeroizing::new(blake3::derive_key("lifeboat v1 slot wrap", secret));
    Cipher::new(&key)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn whoever_waits_for_its_turn_is_not_silent() {
        let (turn, pulse) = (Turn::new(), Pulse::default());
        let held = turn.take(&Pulse::default(), OFTEN);
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| drop(turn.take(&pulse, Duration::from_millis(1))));
            let began = Instant::now();
            while pulse.beats() < 5 {
                assert!(began.elapsed() < Duration::from_mins(1), "{} signs", pulse.beats());
                std::thread::sleep(Duration::from_millis(1));
            }
            assert!(!waits.is_finished());
            drop(held);
        });
        // And the next one need not wait.
        drop(turn.take(&pulse, OFTEN));
    }

    #[test]
    fn a_derivation_gives_a_sign_when_it_begins() {
        let (repository, passphrase) = (RepositoryId([7; 16]), Passphrase::new("correct horse battery staple"));
        let slot =
            StoredSlot::create(&Keys::generate(), repository, Role::Reader, "a", &Lock::Passphrase(&passphrase), Utc::now()).unwrap();
        let pulse = Pulse::default();
        assert!(slot.answers_to(repository, &passphrase.credential().unwrap(), &pulse).unwrap().is_some());
        assert!(pulse.beats() >= 1);
    }
}

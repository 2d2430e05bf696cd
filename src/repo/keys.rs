//! Keys and roles: what is derived from the root, who holds what, and the slots that wrap it.
//!
//! ```text
//! root (32 random bytes; reader role only)
//!  ├─ chunk-id key   writer, reader          keyed BLAKE3 of chunks; boundaries of content-defined chunks
//!  ├─ metadata key   maintainer, writer, reader   seals manifests, index, trees, directories, reports
//!  ├─ X25519 key     public: writer; private: reader   each data pack's AES key is sealed to it
//!  └─ signing key    reader                  signs drill reports
//! ```
//! A slot (`keys/<id>`) wraps the bundle of one role under Argon2id of a passphrase. A commitment is stored beside the wrapped
//! bundle and checked first, so a slot opens under one passphrase only and a wrong one is told apart from damage.

use std::fmt;

use aes_gcm::Aes256Gcm;
use aes_gcm::aead::{AeadInOut, KeyInit};
use chrono::{DateTime, Utc};
use hpke::aead::AesGcm256;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable, Kem as _, OpModeR, OpModeS, Serializable};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::error::{Context as _, Error, Kind, Result};
use crate::repo::format::RepositoryId;

/// What a key holder can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Sees metadata, verifies objects, prunes; cannot back up or read data.
    Maintainer,
    /// Backs up and sees metadata; cannot read data.
    Writer,
    /// Everything: restores, drills, manages keys.
    Reader,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Maintainer => "maintainer",
            Self::Writer => "writer",
            Self::Reader => "reader",
        })
    }
}

impl std::str::FromStr for Role {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "maintainer" => Ok(Self::Maintainer),
            "writer" => Ok(Self::Writer),
            "reader" => Ok(Self::Reader),
            _ => Err(Error::new(Kind::Usage, format!("unknown role {text:?}")).hint("roles are writer, maintainer and reader")),
        }
    }
}

/// A passphrase or recovery key as typed. Zeroized; `Debug` shows nothing.
#[derive(Clone)]
pub struct Passphrase(Zeroizing<String>);

impl Passphrase {
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(…)")
    }
}

/// The key printed once at `repo init`; usable wherever a passphrase is.
pub struct RecoveryKey(Passphrase);

/// Label of the slot that the recovery key opens.
pub const RECOVERY_LABEL: &str = "recovery key";
/// What a recovery key begins with.
const RECOVERY_PREFIX: &str = "LBRK1-";
/// Crockford's base 32: no I, L, O, U.
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

impl RecoveryKey {
    /// 160 random bits in base 32, in groups of four.
    fn generate() -> Self {
        let mut random = Zeroizing::new([0u8; 32]);
        getrandom::fill(&mut *random).expect("the operating system's random source works");
        let mut text = String::from(RECOVERY_PREFIX);
        for (i, byte) in random.iter().enumerate() {
            if i > 0 && i % 4 == 0 {
                text.push('-');
            }
            text.push(char::from(ALPHABET[usize::from(byte & 31)]));
        }
        Self(Passphrase::new(text))
    }

    /// The text to show once: groups of letters and digits.
    pub fn reveal(&self) -> &str {
        self.0.expose()
    }

    /// The key as a passphrase.
    pub fn passphrase(&self) -> &Passphrase {
        &self.0
    }
}

impl fmt::Debug for RecoveryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RecoveryKey(…)")
    }
}

/// Recovery keys are read from paper: case, spaces and dashes do not matter, and O, I, L mean 0, 1, 1.
fn normalise(text: &str) -> Zeroizing<String> {
    let text = text.trim_end_matches(['\n', '\r']);
    let compact: Zeroizing<String> =
        Zeroizing::new(text.chars().filter(|c| !c.is_whitespace() && *c != '-').collect::<String>().to_ascii_uppercase());
    let prefix = RECOVERY_PREFIX.trim_end_matches('-');
    match compact.strip_prefix(prefix) {
        Some(rest) if rest.len() == 32 => {
            let mut out = Zeroizing::new(prefix.to_owned());
            out.extend(rest.chars().map(|c| match c {
                'O' => '0',
                'I' | 'L' => '1',
                c => c,
            }));
            out
        }
        _ => Zeroizing::new(text.to_owned()),
    }
}

/// The secrets of one key generation, as far as the role has them.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Keys {
    #[zeroize(skip)]
    pub role: Role,
    #[zeroize(skip)]
    pub generation: u16,
    metadata: [u8; 32],
    chunk_ids: Option<[u8; 32]>,
    public: [u8; 32],
    root: Option<[u8; 32]>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys({}, generation {})", self.role, self.generation)
    }
}

/// What a slot wraps, as JSON inside the sealed part. Hex strings.
#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(deny_unknown_fields)]
struct Bundle {
    #[zeroize(skip)]
    generation: u16,
    metadata: String,
    public: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    chunk_ids: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    root: Option<String>,
}

type Kem = X25519HkdfSha256;
const HPKE_INFO: &[u8] = b"lifeboat v1 pack key";

/// Bytes of an encapsulated X25519 key.
pub const ENCAPSULATED_BYTES: usize = 32;
/// Bytes of a sealed pack key.
pub const SEALED_KEY_BYTES: usize = 48;

impl Keys {
    /// Fresh keys of generation 1 with the reader role.
    pub fn generate() -> Self {
        let mut root = Zeroizing::new([0u8; 32]);
        getrandom::fill(&mut *root).expect("the operating system's random source works");
        Self::from_root(*root, 1)
    }

    /// Everything from the root.
    pub fn from_root(root: [u8; 32], generation: u16) -> Self {
        let (_, public) = Kem::derive_keypair(&blake3::derive_key("lifeboat v1 data key pair", &root));
        let mut public_bytes = [0; 32];
        public_bytes.copy_from_slice(&public.to_bytes());
        Self {
            role: Role::Reader,
            generation,
            metadata: blake3::derive_key("lifeboat v1 metadata", &root),
            chunk_ids: Some(blake3::derive_key("lifeboat v1 chunk ids", &root)),
            public: public_bytes,
            root: Some(root),
        }
    }

    /// The same keys as far as `role` may have them.
    fn reduced(&self, role: Role) -> Self {
        let mut keys = self.clone();
        keys.role = role;
        if role != Role::Reader {
            keys.root = None;
        }
        if role == Role::Maintainer {
            keys.chunk_ids = None;
        }
        keys
    }

    /// # Errors
    /// `WrongKey` for the maintainer role.
    pub fn chunk_id_key(&self) -> Result<&[u8; 32]> {
        self.chunk_ids.as_ref().ok_or_else(|| wrong_role("make or check chunk ids", self.role, "writer or reader"))
    }

    /// Key of node ids.
    pub fn node_id_key(&self) -> [u8; 32] {
        blake3::derive_key("lifeboat v1 node ids", &self.metadata)
    }

    /// Seed of content-defined boundaries.
    ///
    /// # Errors
    /// `WrongKey` for the maintainer role.
    pub fn boundary_seed(&self) -> Result<u64> {
        let derived = blake3::derive_key("lifeboat v1 chunk boundaries", self.chunk_id_key()?);
        let (head, _) = derived.split_first_chunk::<8>().expect("32 bytes hold 8");
        Ok(u64::from_le_bytes(*head))
    }

    /// Key of row digests in fingerprints.
    pub fn fingerprint_key(&self) -> [u8; 32] {
        blake3::derive_key("lifeboat v1 fingerprints", &self.metadata)
    }

    /// Names the folder of a plan's snapshots without telling the plan's name.
    pub fn chain_name(&self, plan: &str) -> String {
        let key = blake3::derive_key("lifeboat v1 chain names", &self.metadata);
        hex::encode(&blake3::keyed_hash(&key, plan.as_bytes()).as_bytes()[..16])
    }

    /// Names the folder of a source's log in the same manner. No plan's name holds a `/`, so no two chains meet.
    pub fn log_name(&self, plan: &str, source: &str) -> String {
        self.chain_name(&format!("{plan}/{source}"))
    }

    /// Keyed hash of a log piece's plain bytes: whether two are equal can be told, what they are cannot.
    ///
    /// # Errors
    /// `WrongKey` for the maintainer role.
    pub fn log_content(&self, bytes: &[u8]) -> Result<blake3::Hash> {
        let key = Zeroizing::new(blake3::derive_key("lifeboat v1 log content", self.chunk_id_key()?));
        Ok(blake3::keyed_hash(&key, bytes))
    }

    /// AES key of one sealed thing: `purpose` and its random salt.
    pub fn metadata_cipher(&self, purpose: &'static str, salt: &[u8; 32]) -> Aes256Gcm {
        let mut material = Zeroizing::new([0u8; 64]);
        material[..32].copy_from_slice(&self.metadata);
        material[32..].copy_from_slice(salt);
        let key = Zeroizing::new(blake3::derive_key(purpose, &*material));
        Aes256Gcm::new((&*key).into())
    }

    /// Seals a data pack's AES key to the public key (RFC 9180 base mode, X25519-HKDF-SHA256, AES-256-GCM).
    ///
    /// # Errors
    /// `Bug` when the public key in the slot is not one.
    pub fn seal_pack_key(&self, key: &[u8; 32], context: &[u8]) -> Result<([u8; ENCAPSULATED_BYTES], [u8; SEALED_KEY_BYTES])> {
        let failed = |e| Error::new(Kind::Bug, format!("seal a pack key: {e}"));
        let public = <Kem as hpke::Kem>::PublicKey::from_bytes(&self.public).map_err(failed)?;
        let (encapsulated, sealed) =
            hpke::single_shot_seal::<AesGcm256, HkdfSha256, Kem>(&OpModeS::Base, &public, HPKE_INFO, key, context).map_err(failed)?;
        let mut encapsulated_bytes = [0; ENCAPSULATED_BYTES];
        encapsulated_bytes.copy_from_slice(&encapsulated.to_bytes());
        let sealed = sealed.try_into().map_err(|_| Error::new(Kind::Bug, "seal a pack key: unexpected length"))?;
        Ok((encapsulated_bytes, sealed))
    }

    /// Opens what [`Keys::seal_pack_key`] sealed. `None`: not sealed to this key, or changed.
    ///
    /// # Errors
    /// `WrongKey` without the reader role.
    pub fn open_pack_key(
        &self,
        encapsulated: &[u8; ENCAPSULATED_BYTES],
        sealed: &[u8; SEALED_KEY_BYTES],
        context: &[u8],
    ) -> Result<Option<Zeroizing<[u8; 32]>>> {
        let root = self.root.as_ref().ok_or_else(|| wrong_role("read data", self.role, "reader"))?;
        let (private, _) = Kem::derive_keypair(&blake3::derive_key("lifeboat v1 data key pair", root));
        let Ok(encapsulated) = <Kem as hpke::Kem>::EncappedKey::from_bytes(encapsulated) else { return Ok(None) };
        let Ok(key) =
            hpke::single_shot_open::<AesGcm256, HkdfSha256, Kem>(&OpModeR::Base, &private, &encapsulated, HPKE_INFO, sealed, context)
        else {
            return Ok(None);
        };
        let key = Zeroizing::new(key);
        Ok(<[u8; 32]>::try_from(key.as_slice()).ok().map(Zeroizing::new))
    }

    /// Signs reports.
    ///
    /// # Errors
    /// `WrongKey` without the reader role.
    pub fn signing_key(&self) -> Result<ed25519_dalek::SigningKey> {
        let root = self.root.as_ref().ok_or_else(|| wrong_role("sign a report", self.role, "reader"))?;
        Ok(ed25519_dalek::SigningKey::from_bytes(&blake3::derive_key("lifeboat v1 report signing", root)))
    }

    /// # Errors
    /// `WrongKey` when the role is not the reader's.
    pub fn require_reader(&self, operation: &str) -> Result<()> {
        if self.role == Role::Reader { Ok(()) } else { Err(wrong_role(operation, self.role, "reader")) }
    }
}

fn wrong_role(operation: &str, role: Role, needed: &str) -> Error {
    Error::new(Kind::WrongKey, format!("cannot {operation}: this passphrase opens a {role} key slot"))
        .hint(format!("use the passphrase of a {needed} slot (see `lifeboat key list`) or the recovery key"))
}

/// A key slot as stored (JSON).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredSlot {
    pub version: u8,
    pub id: String,
    pub label: String,
    pub role: Role,
    pub created: DateTime<Utc>,
    kdf: Kdf,
    /// Hex. `blake3::derive_key("lifeboat v1 slot commitment", argon2 output)`.
    commitment: String,
    /// Hex. The bundle sealed by AES-256-GCM, zero nonce (the key is used once).
    sealed: String,
    /// Hex BLAKE3 of the other fields (see `digest`): finds rot in a slot whose passphrase is not at hand. No proof against forgery.
    check: String,
}

/// Parameters of Argon2id (RFC 9106), version 0x13, 32 bytes out.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kdf {
    algorithm: String,
    /// Hex, 32 bytes.
    salt: String,
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

/// Memory for Argon2id: RFC 9106's second recommended option (64 MiB, 3 passes).
#[cfg(not(test))]
const ARGON_MEMORY_KIB: u32 = 64 * 1024;
/// Unit tests open hundreds of repositories.
#[cfg(test)]
const ARGON_MEMORY_KIB: u32 = 64;
const ARGON_PASSES: u32 = 3;
/// Upper limits for what a stored slot may ask of this machine.
const ARGON_MEMORY_KIB_MAX: u32 = 1024 * 1024;
const ARGON_PASSES_MAX: u32 = 64;

/// The public part of a key slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeySlot {
    pub id: String,
    pub label: String,
    pub role: Role,
    pub created: DateTime<Utc>,
    /// Whether this is the slot that the repository was opened with.
    pub current: bool,
}

impl StoredSlot {
    /// Where it is stored.
    pub fn key(&self) -> String {
        format!("keys/{}", self.id)
    }

    /// Wraps `keys`, reduced to `role`, under a passphrase.
    ///
    /// # Errors
    /// `Usage` for an empty passphrase; `WrongKey` when `keys` are not a reader's.
    pub fn create(
        keys: &Keys,
        repository: RepositoryId,
        role: Role,
        label: &str,
        passphrase: &Passphrase,
        now: DateTime<Utc>,
    ) -> Result<Self> {
        keys.require_reader("add a key slot")?;
        if passphrase.expose().trim().is_empty() {
            return Err(Error::new(Kind::Usage, "the passphrase is empty").hint("set a passphrase of at least eight characters"));
        }
        if passphrase.expose().chars().count() < 8 {
            return Err(Error::new(Kind::Usage, "the passphrase is shorter than eight characters")
                .hint("use a longer one, for example several random words"));
        }
        let mut salt = [0u8; 32];
        let mut id = [0u8; 8];
        getrandom::fill(&mut salt).context(Kind::Bug, || "ask for random bytes".into())?;
        getrandom::fill(&mut id).context(Kind::Bug, || "ask for random bytes".into())?;
        let kdf =
            Kdf { algorithm: "argon2id".into(), salt: hex::encode(salt), memory_kib: ARGON_MEMORY_KIB, passes: ARGON_PASSES, lanes: 1 };
        let stretched = stretch(&kdf, passphrase).map_err(|e| Error::new(Kind::Bug, format!("derive a slot key: {e}")))?;
        let keys = keys.reduced(role);
        let bundle = Bundle {
            generation: keys.generation,
            metadata: hex::encode(keys.metadata),
            public: hex::encode(keys.public),
            chunk_ids: keys.chunk_ids.map(hex::encode),
            root: keys.root.map(hex::encode),
        };
        let mut sealed = Zeroizing::new(serde_json::to_vec(&bundle).context(Kind::Bug, || "encode a key bundle".into())?);
        let mut slot = Self {
            version: 1,
            id: hex::encode(id),
            label: label.to_owned(),
            role,
            created: now,
            kdf,
            commitment: hex::encode(blake3::derive_key("lifeboat v1 slot commitment", &*stretched)),
            sealed: String::new(),
            check: String::new(),
        };
        let associated = slot.associated(repository);
        slot_cipher(&stretched)
            .encrypt_in_place(&[0u8; 12].into(), &associated, &mut *sealed)
            .map_err(|_| Error::new(Kind::Bug, "seal a key slot"))?;
        slot.sealed = hex::encode(&*sealed);
        slot.check = slot.digest();
        Ok(slot)
    }

    /// Hex BLAKE3 of all fields but `check`, in the order of the object, each followed by a line feed.
    fn digest(&self) -> String {
        let Self { version, id, label, role, created, kdf, commitment, sealed, check: _ } = self;
        let Kdf { algorithm, salt, memory_kib, passes, lanes } = kdf;
        let created = created.to_rfc3339_opts(chrono::SecondsFormat::Nanos, true);
        let text = format!(
            "{version}\n{id}\n{label}\n{role}\n{created}\n{algorithm}\n{salt}\n{memory_kib}\n{passes}\n{lanes}\n{commitment}\n{sealed}\n"
        );
        blake3::hash(text.as_bytes()).to_hex().to_string()
    }

    /// Whether the slot is as it was stored, as far as that can be told without its passphrase.
    pub fn is_whole(&self) -> bool {
        self.check == self.digest()
    }

    /// Opens the slot. `None`: the passphrase is not this slot's.
    ///
    /// # Errors
    /// `Damaged` when the passphrase is right (or cannot be told) but the slot's content is not what was stored.
    #[cfg(test)]
    pub fn open(&self, repository: RepositoryId, passphrase: &Passphrase) -> Result<Option<Keys>> {
        self.answers_to(passphrase)?.map(|stretched| self.unseal(repository, &stretched)).transpose()
    }

    /// Tells by the slot's commitment whether the passphrase is this slot's; gives what [`Self::unseal`] needs.
    ///
    /// # Errors
    /// `Damaged` when it cannot be told.
    pub fn answers_to(&self, passphrase: &Passphrase) -> Result<Option<Zeroizing<[u8; 32]>>> {
        if self.version != 1
            || self.kdf.algorithm != "argon2id"
            || self.kdf.memory_kib > ARGON_MEMORY_KIB_MAX
            || self.kdf.passes > ARGON_PASSES_MAX
        {
            return Err(self.damaged("unknown version or key derivation"));
        }
        let stretched = stretch(&self.kdf, passphrase).map_err(|e| self.damaged(&e))?;
        let commitment = blake3::Hash::from_bytes(blake3::derive_key("lifeboat v1 slot commitment", &*stretched));
        let stored = blake3::Hash::from_hex(&self.commitment).map_err(|_| self.damaged("the commitment is no hash"))?;
        Ok((commitment == stored).then_some(stretched))
    }

    /// The keys inside.
    ///
    /// # Errors
    /// `Damaged`: the passphrase is right, so either the slot was changed, or it is another repository's.
    pub fn unseal(&self, repository: RepositoryId, stretched: &[u8; 32]) -> Result<Keys> {
        let damaged = |what: &str| self.damaged(what);
        let mut sealed = Zeroizing::new(hex::decode(&self.sealed).map_err(|_| damaged("the sealed part is not hexadecimal"))?);
        slot_cipher(stretched)
            .decrypt_in_place(&[0u8; 12].into(), &self.associated(repository), &mut *sealed)
            .map_err(|_| damaged("the sealed part was changed, or the slot is another repository's"))?;
        let bundle: Bundle = serde_json::from_slice(&sealed).map_err(|_| damaged("the bundle cannot be decoded"))?;
        let key = |text: &str| -> Result<[u8; 32]> {
            let mut out = [0; 32];
            hex::decode_to_slice(text, &mut out).map_err(|_| damaged("a key in the bundle has the wrong length"))?;
            Ok(out)
        };
        Ok(Keys {
            role: self.role,
            generation: bundle.generation,
            metadata: key(&bundle.metadata)?,
            public: key(&bundle.public)?,
            chunk_ids: bundle.chunk_ids.as_deref().map(key).transpose()?,
            root: bundle.root.as_deref().map(key).transpose()?,
        })
    }

    fn damaged(&self, what: &str) -> Error {
        Error::new(Kind::Damaged, format!("key slot {}: {what}", self.id)).hint("use another key slot or the recovery key")
    }

    /// The public part.
    pub fn public(&self, current: bool) -> KeySlot {
        KeySlot { id: self.id.clone(), label: self.label.clone(), role: self.role, created: self.created, current }
    }

    fn associated(&self, repository: RepositoryId) -> Vec<u8> {
        format!("lifeboat v1 key slot\n{repository}\n{}\n{}\n", self.id, self.role).into_bytes()
    }
}

fn stretch(kdf: &Kdf, passphrase: &Passphrase) -> Result<Zeroizing<[u8; 32]>, String> {
    let salt = hex::decode(&kdf.salt).map_err(|e| e.to_string())?;
    let params = argon2::Params::new(kdf.memory_kib, kdf.passes, kdf.lanes, Some(32)).map_err(|e| e.to_string())?;
    let mut out = Zeroizing::new([0u8; 32]);
    argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params)
        .hash_password_into(normalise(passphrase.expose()).as_bytes(), &salt, &mut *out)
        .map_err(|e| e.to_string())?;
    Ok(out)
}

fn slot_cipher(stretched: &[u8; 32]) -> Aes256Gcm {
    let key = Zeroizing::new(blake3::derive_key("lifeboat v1 slot wrap", stretched));
    Aes256Gcm::new((&*key).into())
}

/// A fresh recovery key.
pub fn generate_recovery_key() -> RecoveryKey {
    RecoveryKey::generate()
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPOSITORY: RepositoryId = RepositoryId([7; 16]);

    #[test]
    fn a_slot_opens_only_with_its_passphrase_and_only_in_its_repository() {
        let keys = Keys::generate();
        let passphrase = Passphrase::new("correct horse battery");
        let slot = StoredSlot::create(&keys, REPOSITORY, Role::Reader, "test", &passphrase, Utc::now()).unwrap();
        let opened = slot.open(REPOSITORY, &passphrase).unwrap().unwrap();
        assert_eq!(opened.root, keys.root);
        assert!(slot.open(REPOSITORY, &Passphrase::new("wrong horse battery")).unwrap().is_none());
        assert_eq!(slot.open(RepositoryId([8; 16]), &passphrase).unwrap_err().kind(), Kind::Damaged);
    }

    #[test]
    fn a_role_cannot_be_raised_by_editing_the_slot() {
        let keys = Keys::generate();
        let passphrase = Passphrase::new("correct horse battery");
        let mut slot = StoredSlot::create(&keys, REPOSITORY, Role::Writer, "test", &passphrase, Utc::now()).unwrap();
        let opened = slot.open(REPOSITORY, &passphrase).unwrap().unwrap();
        assert!(opened.root.is_none() && opened.chunk_ids.is_some());
        assert_eq!(opened.require_reader("restore").unwrap_err().kind(), Kind::WrongKey);
        slot.role = Role::Reader;
        assert_eq!(slot.open(REPOSITORY, &passphrase).unwrap_err().kind(), Kind::Damaged);
    }

    #[test]
    fn a_writer_seals_what_only_a_reader_opens() {
        let reader = Keys::generate();
        let writer = reader.reduced(Role::Writer);
        let (encapsulated, sealed) = writer.seal_pack_key(&[9; 32], b"context").unwrap();
        assert_eq!(*reader.open_pack_key(&encapsulated, &sealed, b"context").unwrap().unwrap(), [9; 32]);
        assert!(reader.open_pack_key(&encapsulated, &sealed, b"other").unwrap().is_none());
        assert_eq!(writer.open_pack_key(&encapsulated, &sealed, b"context").unwrap_err().kind(), Kind::WrongKey);
    }

    #[test]
    fn recovery_keys_survive_being_copied_from_paper() {
        let key = RecoveryKey::generate();
        let sloppy = key.reveal().to_lowercase().replace('-', " ").replace('0', "o");
        assert_eq!(normalise(key.reveal()), normalise(&sloppy));
        assert_eq!(*normalise("An ordinary passphrase\n"), "An ordinary passphrase");
    }
}

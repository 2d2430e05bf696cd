//! Keys and roles: what is derived from a root, who holds what, the slots that wrap it, and generations.
//!
//! ```text
//! root of a generation (32 random bytes; reader role only)
//!  ├─ chunk-id key   writer, reader          keyed BLAKE3 of chunks; boundaries of content-defined chunks; may be handed on by a rotation
//!  ├─ metadata key   maintainer, writer, reader   seals manifests, index, trees, directories, reports
//!  ├─ X25519 key     public: writer; private: reader   each data pack's AES key is sealed to it
//!  └─ signing key    private: reader; public: all   signs drill reports, generations, updates of slots, keys of plans
//! ```
//! - `slot` a key slot (`keys/<id>`): wraps the bundle of one role under a passphrase, a key file, or to a recipient
//! - `generation` a rotation's commit (`keys/generation-<n>`) and what it gives to each slot that it carries along
//! - `own` keys of single plans, which can be destroyed alone
//! - `text`, `shares` keys on paper
//!
//! What is written is sealed under the newest generation that a bundle holds; what is read, under whichever it names. Names of folders,
//! row digests and hashes of log pieces come from the *oldest* generation and stay the same for ever: they stand only inside what is sealed
//! under the newer ones, or tell no more than a folder's name.

mod generation;
mod hpke_box;
mod own;
mod shares;
mod slot;
mod text;

pub use generation::{KeyObject, Marker, Update};
pub use own::{OwnKey, destroyed, erased_key_of, is_signed_record, key_of};
pub use shares::{Share, combine as combine_shares, split as split_shares};
pub use slot::{KeyFile, KeySlot, Lock, Opened, Recipient, StoredSlot};

use std::fmt;

use lifeboat_cipher::Cipher;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::error::{Context as _, Error, Kind, Result};
use crate::repo::format::{ChunkId, RepositoryId};
use crate::repo::nodes::chunk_id;
use hpke_box::{KeyPair, open as hpke_open, seal as hpke_seal};
use text::Prefix;

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

/// What opens a key slot, as text: a passphrase, a recovery key, the content of a key file or of a recipient's private key, or as many shares
/// as are needed, one after the other. Zeroized; `Debug` shows nothing.
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
impl RecoveryKey {
    /// 160 random bits in base 32, in groups of four.
    fn generate() -> Self {
        let mut random = Zeroizing::new([0u8; 32]);
        getrandom::fill(&mut *random).expect("the operating system's random source works");
        let mut text = String::from(Prefix::Recovery.word());
        for (i, byte) in random.iter().enumerate() {
            if i % 4 == 0 {
                text.push('-');
            }
            text.push(char::from(text::ALPHABET[usize::from(byte & 31)]));
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

/// What a text is, once it was looked at.
pub enum Credential {
    /// A passphrase or recovery key, as it goes into Argon2id.
    Passphrase(Zeroizing<String>),
    KeyFile(KeyFile),
    Recipient(Recipient),
}

impl Passphrase {
    /// Whether it is the text of a key file, rather than words.
    pub fn is_key_file(&self) -> bool {
        text::prefix_of(self.expose()) == Some(Prefix::KeyFile)
    }

    /// # Errors
    /// `WrongKey` when it says that it is a key file, a private key or shares, and is not whole.
    pub fn credential(&self) -> Result<Credential> {
        let wrong = |what: &str, why: &str| {
            Error::new(Kind::WrongKey, format!("read the {what}: {why}")).hint("compare it with the file or paper that it came from")
        };
        let text = self.expose();
        // Shares may come on their pages, one after the other.
        let prefix = if Share::is_in(text) { Some(Prefix::Share) } else { text::prefix_of(text) };
        match prefix {
            Some(Prefix::KeyFile) => KeyFile::read(text).map(Credential::KeyFile).map_err(|why| wrong("key file", why)),
            Some(Prefix::SecretKey) => Recipient::read(text).map(Credential::Recipient).map_err(|why| wrong("private key", why)),
            Some(Prefix::PublicKey) => Err(wrong("private key", "this is the public one, which opens nothing")),
            Some(Prefix::Share) => {
                let shares = Share::find(text)?;
                Ok(Credential::KeyFile(KeyFile::from_bytes(*combine_shares(&shares)?)))
            }
            Some(Prefix::Recovery) | None => Ok(Credential::Passphrase(normalise(text))),
        }
    }
}

/// Recovery keys are read from paper: case, spaces and dashes do not matter, and O, I, L mean 0, 1, 1.
fn normalise(text: &str) -> Zeroizing<String> {
    let text = text.trim_end_matches(['\n', '\r']);
    let prefix = Prefix::Recovery.word();
    match text::compact(text).strip_prefix(&**text::forgiven(prefix)) {
        Some(rest) if rest.len() == 32 => Zeroizing::new(format!("{prefix}{rest}")),
        _ => Zeroizing::new(text.to_owned()),
    }
}

/// The secrets of one key generation, as far as the role has them.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Generation {
    #[zeroize(skip)]
    pub number: u16,
    metadata: [u8; 32],
    chunk_ids: Option<[u8; 32]>,
    public: [u8; 32],
    /// Of Ed25519. Bundles of version 1 of other roles than the reader do not have it.
    verifying: Option<[u8; 32]>,
    root: Option<[u8; 32]>,
}

impl Generation {
    /// Everything from the root.
    fn from_root(root: [u8; 32], number: u16) -> Self {
        Self {
            number,
            metadata: blake3::derive_key("lifeboat v1 metadata", &root),
            chunk_ids: Some(blake3::derive_key("lifeboat v1 chunk ids", &root)),
            public: data_pair(&root).public,
            verifying: Some(signing_key(&root).verifying_key().to_bytes()),
            root: Some(root),
        }
    }

    fn reduced(&self, role: Role) -> Self {
        let mut generation = self.clone();
        if role != Role::Reader {
            generation.root = None;
        }
        if role == Role::Maintainer {
            generation.chunk_ids = None;
        }
        generation
    }

    fn node_ids(&self) -> [u8; 32] {
        blake3::derive_key("lifeboat v1 node ids", &self.metadata)
    }
}

/// First number of plans' own keys; generations of the repository are below.
pub const OWN_FIRST: u16 = 0x8000;

/// What a key slot opened: the keys of all generations, as far as the role has them.
#[derive(Clone)]
pub struct Keys {
    pub role: Role,
    /// The newest, which everything is sealed under.
    pub generation: u16,
    /// Newest first, never empty.
    generations: Vec<Generation>,
    /// The repository's newest generation, when this bundle does not hold it.
    behind: Option<u16>,
    /// One that is newer than all that the repository has, and that this machine has seen there.
    seen: Option<u16>,
    own: Vec<OwnKey>,
    /// Why not all own keys are known.
    own_damaged: Option<String>,
    /// Number of the own key that data is sealed to, where the plan that is written has one.
    writes_to: Option<u16>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys({}, generation {})", self.role, self.generation)
    }
}

/// What a slot wraps, as JSON inside the sealed part: generations, newest first. Hex strings.
#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(deny_unknown_fields)]
struct Bundle {
    generations: Vec<BundledGeneration>,
}

/// A whole bundle in a slot of version 1.
#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(deny_unknown_fields)]
struct BundledGeneration {
    #[zeroize(skip)]
    generation: u16,
    metadata: String,
    public: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    verifying: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    chunk_ids: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    root: Option<String>,
}

impl From<&Generation> for BundledGeneration {
    fn from(generation: &Generation) -> Self {
        Self {
            generation: generation.number,
            metadata: hex::encode(generation.metadata),
            public: hex::encode(generation.public),
            verifying: generation.verifying.map(hex::encode),
            chunk_ids: generation.chunk_ids.map(hex::encode),
            root: generation.root.map(hex::encode),
        }
    }
}

impl BundledGeneration {
    /// `None` when a key has the wrong length, or the keys of a reader do not fit the root.
    fn open(&self) -> Option<Generation> {
        let key = |text: &str| -> Option<[u8; 32]> {
            let mut out = [0; 32];
            hex::decode_to_slice(text, &mut out).ok().map(|()| out)
        };
        let optional = |text: &Option<String>| match text {
            None => Some(None),
            Some(text) => key(text).map(Some),
        };
        let mut generation = Generation {
            number: self.generation,
            metadata: key(&self.metadata)?,
            public: key(&self.public)?,
            verifying: optional(&self.verifying)?,
            chunk_ids: optional(&self.chunk_ids)?,
            root: optional(&self.root)?,
        };
        if let Some(root) = &generation.root {
            let whole = Generation::from_root(*root, self.generation);
            if whole.metadata != generation.metadata || whole.public != generation.public {
                return None;
            }
            generation.verifying = whole.verifying;
        }
        Some(generation)
    }
}

const HPKE_INFO: &[u8] = b"lifeboat v1 pack key";

/// Bytes of an encapsulated X25519 key.
pub const ENCAPSULATED_BYTES: usize = 32;
/// Bytes of a sealed pack key.
pub const SEALED_KEY_BYTES: usize = 48;

fn random<const N: usize>() -> Zeroizing<[u8; N]> {
    let mut bytes = Zeroizing::new([0u8; N]);
    getrandom::fill(&mut *bytes).expect("the operating system's random source works");
    bytes
}

fn data_pair(root: &[u8; 32]) -> KeyPair {
    KeyPair::derive(&blake3::derive_key("lifeboat v1 data key pair", root))
}

fn signing_key(root: &[u8; 32]) -> ed25519_dalek::SigningKey {
    ed25519_dalek::SigningKey::from_bytes(&blake3::derive_key("lifeboat v1 report signing", root))
}

fn is_signed(verifying: &[u8; 32], text: &[u8], signature: &[u8]) -> bool {
    let key = ed25519_dalek::VerifyingKey::from_bytes(verifying).ok();
    let signature = ed25519_dalek::Signature::from_slice(signature).ok();
    key.zip(signature).is_some_and(|(key, signature)| key.verify_strict(text, &signature).is_ok())
}

impl Keys {
    /// Fresh keys of generation 1 with the reader role.
    pub fn generate() -> Self {
        Self::of(Role::Reader, vec![Generation::from_root(*random(), 1)])
    }

    fn of(role: Role, generations: Vec<Generation>) -> Self {
        let generation = generations[0].number;
        Self { role, generation, generations, behind: None, seen: None, own: Vec::new(), own_damaged: None, writes_to: None }
    }

    /// The same keys with a new generation on top, which is not committed yet. It takes the chunk-id key of the one before over, so that what
    /// is stored is reused, unless `new_ids`.
    fn with_new_generation(&self, number: u16, new_ids: bool) -> Self {
        let mut newest = Generation::from_root(*random(), number);
        if !new_ids {
            newest.chunk_ids = self.newest().chunk_ids;
        }
        let mut generations = vec![newest];
        generations.extend(self.generations.iter().cloned());
        Self { own: self.own.clone(), ..Self::of(self.role, generations) }
    }

    /// The same keys as far as `role` may have them.
    fn reduced(&self, role: Role) -> Self {
        Self::of(role, self.generations.iter().map(|generation| generation.reduced(role)).collect())
    }

    fn to_bundle(&self) -> Result<Zeroizing<Vec<u8>>> {
        let bundle = Bundle { generations: self.generations.iter().map(BundledGeneration::from).collect() };
        serde_json::to_vec(&bundle).map(Zeroizing::new).context(Kind::Bug, || "encode a key bundle".into())
    }

    /// `None` when it cannot be decoded or is not of this role.
    pub(super) fn from_bundle(role: Role, bytes: &[u8]) -> Option<Self> {
        let bundle: Bundle = serde_json::from_slice(bytes).ok()?;
        let generations: Vec<Generation> = bundle.generations.iter().map(BundledGeneration::open).collect::<Option<_>>()?;
        let in_order = generations.array_windows().all(|[newer, older]| newer.number > older.number);
        let of_role =
            generations.iter().all(|g| g.root.is_some() == (role == Role::Reader) && g.chunk_ids.is_some() == (role != Role::Maintainer));
        (!generations.is_empty() && in_order && of_role && generations[0].number < OWN_FIRST).then(|| Self::of(role, generations))
    }

    fn from_first_bundle(role: Role, bytes: &[u8]) -> Option<Self> {
        let bundle: BundledGeneration = serde_json::from_slice(bytes).ok()?;
        Some(Self::of(role, vec![bundle.open()?]))
    }

    fn newest(&self) -> &Generation {
        &self.generations[0]
    }

    fn oldest(&self) -> &Generation {
        &self.generations[self.generations.len() - 1]
    }

    /// All generations held, newest first.
    pub fn generations(&self) -> impl Iterator<Item = u16> {
        self.generations.iter().map(|generation| generation.number)
    }

    fn held(&self, number: u16) -> Option<&Generation> {
        self.generations.iter().find(|generation| generation.number == number)
    }

    /// The generation that `object` says it is sealed under.
    fn of_object(&self, object: &str, number: u16) -> Result<&Generation> {
        self.held(number).ok_or_else(|| match self.behind {
            Some(newest) if number <= newest => Error::new(
                Kind::WrongKey,
                format!("{object}: sealed under key generation {number}, and this key slot holds those up to {} only", self.generation),
            )
            .hint(LEFT_BEHIND),
            _ => Error::new(Kind::Damaged, format!("{object}: sealed under another key generation")),
        })
    }

    /// The repository's newest generation, when this bundle does not hold it: then nothing may be written.
    pub fn behind(&self) -> Option<u16> {
        self.behind
    }

    /// # Errors
    /// `WrongKey` when the keys were rotated and this slot was left behind: what it wrote would be open to those who were shut out. The same when
    /// the repository is older than this machine has seen it.
    pub fn require_current(&self) -> Result<()> {
        if let Some(seen) = self.seen {
            return Err(Error::new(
                Kind::WrongKey,
                format!("this machine has seen the repository at key generation {seen}, and it is at {} now", self.generation),
            )
            .hint(format!(
                "it was put back to an older state, or somebody deleted what is below keys/: find out first, and bring keys/generation-{seen} and what was beside \
                 it back (the store's versions, a copy of the bucket). If it was put back on purpose, `lifeboat repo accept` says so on each machine"
            )));
        }
        match self.behind {
            None => Ok(()),
            Some(newest) => Err(Error::new(
                Kind::WrongKey,
                format!("the keys were rotated: this key slot holds generation {}, the repository is at {newest}", self.generation),
            )
            .hint(LEFT_BEHIND)),
        }
    }

    /// Key of the ids of chunks that are written.
    ///
    /// # Errors
    /// `WrongKey` for the maintainer role.
    pub fn chunk_id_key(&self) -> Result<&[u8; 32]> {
        let ids = match self.writes_to.and_then(|number| self.own.iter().find(|own| own.number == number)) {
            Some(own) => own.chunk_ids.as_ref(),
            None => self.newest().chunk_ids.as_ref(),
        };
        ids.ok_or_else(|| self.wrong_role_for_ids())
    }

    /// Tells the keys of chunk ids apart without telling them; `None` for the repository's first.
    ///
    /// # Errors
    /// `WrongKey` for the maintainer role.
    pub fn ids_name(&self) -> Result<Option<String>> {
        let key = self.chunk_id_key()?;
        if self.writes_to.is_none() && self.oldest().chunk_ids.as_ref() == Some(key) {
            return Ok(None);
        }
        Ok(Some(ids_name_of(key)))
    }

    fn wrong_role_for_ids(&self) -> Error {
        wrong_role("make or check chunk ids", self.role, "writer or reader")
    }

    /// Whether a chunk of data has this id, under the keys that its frame's envelope may mean: those of all generations (a rotation hands ids
    /// on, a rewritten pack keeps them), or that of a plan.
    ///
    /// # Errors
    /// `WrongKey` for the maintainer role.
    pub fn chunk_has_id(&self, envelope: u16, bytes: &[u8], id: ChunkId) -> Result<bool> {
        if self.role == Role::Maintainer {
            return Err(self.wrong_role_for_ids());
        }
        if envelope >= OWN_FIRST {
            let own = self.own.iter().find(|own| own.number == envelope).and_then(|own| own.chunk_ids.as_ref());
            return Ok(own.is_some_and(|key| chunk_id(key, bytes) == id));
        }
        Ok(self.repository_id_keys(envelope).any(|key| chunk_id(key, bytes) == id))
    }

    /// Whether bytes that are at hand are a chunk with this id, wherever it is stored.
    ///
    /// # Errors
    /// `WrongKey` for the maintainer role.
    pub fn is_chunk(&self, bytes: &[u8], id: ChunkId) -> Result<bool> {
        if self.role == Role::Maintainer {
            return Err(self.wrong_role_for_ids());
        }
        let own = self.own.iter().filter_map(|own| own.chunk_ids.as_ref());
        Ok(self.repository_id_keys(self.generation).chain(own).any(|key| chunk_id(key, bytes) == id))
    }

    /// The distinct chunk-id keys of the repository, that of `first` in front.
    fn repository_id_keys(&self, first: u16) -> impl Iterator<Item = &[u8; 32]> {
        let likely = self.held(first).and_then(|generation| generation.chunk_ids.as_ref());
        let mut seen: Vec<&[u8; 32]> = likely.into_iter().collect();
        for key in self.generations.iter().filter_map(|generation| generation.chunk_ids.as_ref()) {
            if !seen.contains(&key) {
                seen.push(key);
            }
        }
        seen.into_iter()
    }

    /// Key of the ids of nodes that are written.
    pub fn node_id_key(&self) -> [u8; 32] {
        self.newest().node_ids()
    }

    /// Whether a node has this id, under the key of any generation.
    pub fn node_has_id(&self, bytes: &[u8], id: ChunkId) -> bool {
        self.generations.iter().any(|generation| chunk_id(&generation.node_ids(), bytes) == id)
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

    /// Key of row digests in fingerprints; the same in all generations.
    pub fn fingerprint_key(&self) -> [u8; 32] {
        blake3::derive_key("lifeboat v1 fingerprints", &self.oldest().metadata)
    }

    /// Names the folder of a plan's snapshots without telling the plan's name; the same in all generations.
    pub fn chain_name(&self, plan: &str) -> String {
        let key = blake3::derive_key("lifeboat v1 chain names", &self.oldest().metadata);
        hex::encode(&blake3::keyed_hash(&key, plan.as_bytes()).as_bytes()[..16])
    }

    /// Names the folder of a source's log in the same manner. No plan's name holds a `/`, so no two chains meet.
    pub fn log_name(&self, plan: &str, source: &str) -> String {
        self.chain_name(&format!("{plan}/{source}"))
    }

    /// Keyed hash of a log piece's plain bytes, the same in all generations: whether two are equal can be told, what they are cannot.
    ///
    /// # Errors
    /// `WrongKey` for the maintainer role.
    pub fn log_content(&self, bytes: &[u8]) -> Result<blake3::Hash> {
        let ids = self.oldest().chunk_ids.as_ref().ok_or_else(|| self.wrong_role_for_ids())?;
        let key = Zeroizing::new(blake3::derive_key("lifeboat v1 log content", ids));
        Ok(blake3::keyed_hash(&key, bytes))
    }

    /// AES key of one thing that is sealed now, under the newest generation: `purpose` and its random salt.
    pub fn metadata_cipher(&self, purpose: &'static str, salt: &[u8; 32]) -> Cipher {
        cipher_of(self.newest(), purpose, salt)
    }

    /// AES key of something that was sealed under `generation`.
    ///
    /// # Errors
    /// When the bundle does not hold that generation: `WrongKey` where the slot was left behind by a rotation, else `Damaged`. `object` names it.
    pub fn metadata_cipher_of(&self, object: &str, generation: u16, purpose: &'static str, salt: &[u8; 32]) -> Result<Cipher> {
        Ok(cipher_of(self.of_object(object, generation)?, purpose, salt))
    }

    /// What the envelopes of data that is written now name: the newest generation, or the plan's own key.
    pub fn data_generation(&self) -> u16 {
        self.writes_to.unwrap_or(self.generation)
    }

    /// Seals a data pack's AES key to the public key (RFC 9180 base mode, X25519-HKDF-SHA256, AES-256-GCM).
    ///
    /// # Errors
    /// `Bug` when the public key in the slot is not one.
    pub fn seal_pack_key(&self, key: &[u8; 32], context: &[u8]) -> Result<([u8; ENCAPSULATED_BYTES], [u8; SEALED_KEY_BYTES])> {
        let own = self.writes_to.and_then(|number| self.own.iter().find(|own| own.number == number));
        let public = own.map_or(&self.newest().public, |own| &own.public);
        let (encapsulated, sealed) = hpke_seal(public, HPKE_INFO, key, context)?;
        let sealed = sealed.try_into().map_err(|_| Error::new(Kind::Bug, "seal a pack key: unexpected length"))?;
        Ok((encapsulated, sealed))
    }

    /// Opens what [`Keys::seal_pack_key`] sealed for `generation`. `None`: not sealed to this key, or changed.
    ///
    /// # Errors
    /// `WrongKey` without the reader role, or where the slot was left behind; `NoRecoveryPoint` where the plan's key was destroyed.
    pub fn open_pack_key(
        &self,
        generation: u16,
        encapsulated: &[u8; ENCAPSULATED_BYTES],
        sealed: &[u8; SEALED_KEY_BYTES],
        context: &[u8],
    ) -> Result<Option<Zeroizing<[u8; 32]>>> {
        self.require_reader("read data")?;
        let pair = if generation >= OWN_FIRST { self.own_pair(generation)? } else { self.pair_of(generation)? };
        let Some(key) = hpke_open(&pair, encapsulated, HPKE_INFO, sealed, context) else { return Ok(None) };
        Ok(<[u8; 32]>::try_from(key.as_slice()).ok().map(Zeroizing::new))
    }

    fn pair_of(&self, generation: u16) -> Result<KeyPair> {
        let root = self.of_object("data", generation)?.root.as_ref();
        root.map(data_pair).ok_or_else(|| wrong_role("read data", self.role, "reader"))
    }

    /// What the generations that are held sign with, as others check it; without those of which the bundle does not know.
    pub fn verifying_keys(&self) -> std::collections::BTreeMap<u16, [u8; 32]> {
        self.generations.iter().filter_map(|generation| Some((generation.number, generation.verifying?))).collect()
    }

    /// Whether these keys have one whose chunk ids have this name, see [`Keys::ids_name`].
    pub fn knows_ids(&self, name: &str) -> bool {
        let own = self.own.iter().filter_map(|own| own.chunk_ids.as_ref());
        let of_generations = self.generations.iter().filter_map(|generation| generation.chunk_ids.as_ref());
        own.chain(of_generations).any(|key| ids_name_of(key) == name)
    }

    /// What the newest generation signs with, as others check it.
    pub fn verifying_key(&self) -> Option<[u8; 32]> {
        self.newest().verifying
    }

    /// What an update gives to the holder of these keys: they must be part of it.
    ///
    /// # Errors
    /// `Damaged` when it is not what a rotation made for this slot.
    pub fn updated(
        self,
        update: &Update,
        repository: RepositoryId,
        slot: &StoredSlot,
        pair: &KeyPair,
        verifying: &[u8; 32],
    ) -> Result<Self> {
        let keys = update.open(repository, slot, pair, verifying)?;
        let kept = self.generations.iter().all(|old| keys.held(old.number).is_some_and(|new| new.metadata == old.metadata));
        if kept { Ok(keys) } else { Err(slot.damaged("its update holds other keys of earlier generations")) }
    }

    /// Takes note of a generation that this machine has seen, and that is newer than all that the repository has.
    pub fn note_seen(&mut self, seen: u16) {
        self.seen = Some(seen);
        self.note_newest(seen);
    }

    /// See [`Self::note_seen`].
    pub fn seen(&self) -> Option<u16> {
        self.seen
    }

    /// Takes note of the newest generation of the repository; of several notes the highest counts.
    pub fn note_newest(&mut self, newest: u16) {
        self.behind = self.behind.max((newest > self.generation).then_some(newest));
    }

    /// Tells the keys of a generation that is held apart from others under its number, without telling them.
    pub fn generation_name(&self, number: u16) -> Option<String> {
        self.held(number).map(|held| hex::encode(blake3::derive_key("lifeboat v1 generation name", &held.metadata)))
    }

    /// These keys with a new generation on top, see [`Marker`].
    pub fn next_generation(&self, number: u16, new_ids: bool) -> Self {
        self.with_new_generation(number, new_ids)
    }

    /// The update that gives these keys to a slot: name and content of the object. `None` for a slot of version 1.
    ///
    /// # Errors
    /// `Bug`.
    pub fn update_for(&self, repository: RepositoryId, slot: &StoredSlot) -> Result<Option<(String, Update)>> {
        Update::create(self, repository, slot)
    }

    /// The marker of the newest generation.
    ///
    /// # Errors
    /// `Bug` when there is none before it.
    pub fn marker(&self, repository: RepositoryId, now: chrono::DateTime<chrono::Utc>) -> Result<Marker> {
        Marker::create(self, repository, now)
    }

    /// Hex signature of the newest generation.
    ///
    /// # Errors
    /// `WrongKey` without the reader role.
    pub fn sign(&self, text: &[u8]) -> Result<String> {
        use ed25519_dalek::Signer as _;
        Ok(hex::encode(self.signing_key()?.sign(text).to_bytes()))
    }

    /// Signs reports.
    ///
    /// # Errors
    /// `WrongKey` without the reader role.
    pub fn signing_key(&self) -> Result<ed25519_dalek::SigningKey> {
        let root = self.newest().root.as_ref().ok_or_else(|| wrong_role("sign a report", self.role, "reader"))?;
        Ok(signing_key(root))
    }

    /// Whether a reader of any generation signed this. `None`: the bundle (of version 1) has no key to check with.
    pub fn is_signed(&self, text: &[u8], signature: &[u8]) -> Option<bool> {
        let known: Vec<&[u8; 32]> = self.generations.iter().filter_map(|generation| generation.verifying.as_ref()).collect();
        if known.is_empty() { None } else { Some(known.into_iter().any(|verifying| is_signed(verifying, text, signature))) }
    }

    /// # Errors
    /// `WrongKey` when the role is not the reader's.
    pub fn require_reader(&self, operation: &str) -> Result<()> {
        if self.role == Role::Reader { Ok(()) } else { Err(wrong_role(operation, self.role, "reader")) }
    }
}

/// See [`Keys::ids_name`].
fn ids_name_of(key: &[u8; 32]) -> String {
    hex::encode(&blake3::derive_key("lifeboat v1 chunk ids name", key)[..8])
}

const LEFT_BEHIND: &str =
    "ask whoever rotated the keys for a new slot (`lifeboat key add`); `lifeboat key list` shows the generation that each slot holds";

fn cipher_of(generation: &Generation, purpose: &'static str, salt: &[u8; 32]) -> Cipher {
    let mut material = Zeroizing::new([0u8; 64]);
    material[..32].copy_from_slice(&generation.metadata);
    material[32..].copy_from_slice(salt);
    let key = Zeroizing::new(blake3::derive_key(purpose, &*material));
    Cipher::new(&key)
}

fn wrong_role(operation: &str, role: Role, needed: &str) -> Error {
    Error::new(Kind::WrongKey, format!("cannot {operation}: this passphrase opens a {role} key slot"))
        .hint(format!("use the passphrase of a {needed} slot (see `lifeboat key list`) or the recovery key"))
}

/// A fresh recovery key.
pub fn generate_recovery_key() -> RecoveryKey {
    RecoveryKey::generate()
}

/// Whether a root, or a secret that a key pair derives from directly, opens what was sealed for data: for tests that try what an attacker would.
#[cfg(test)]
pub fn root_opens(root: &[u8; 32], encapsulated: &[u8; 32], sealed: &[u8; 48], context: &[u8]) -> bool {
    [data_pair(root), KeyPair::derive(root)].iter().any(|pair| hpke_open(pair, encapsulated, HPKE_INFO, sealed, context).is_some())
}

#[cfg(test)]
impl Keys {
    /// Every key that a holder of this bundle has or can derive, for the same tests.
    pub fn known_secrets(&self) -> Vec<[u8; 32]> {
        let mut known = Vec::new();
        for generation in &self.generations {
            known.extend([generation.metadata, generation.public, generation.node_ids()]);
            known.extend([generation.chunk_ids, generation.verifying, generation.root].into_iter().flatten());
        }
        for own in &self.own {
            known.push(own.public);
            known.extend(own.chunk_ids);
        }
        known.push(self.fingerprint_key());
        known
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPOSITORY: RepositoryId = RepositoryId([7; 16]);

    fn slot_of(keys: &Keys, role: Role, passphrase: &Passphrase) -> StoredSlot {
        StoredSlot::create(keys, REPOSITORY, role, "test", &Lock::Passphrase(passphrase), chrono::Utc::now()).unwrap()
    }

    #[test]
    fn a_slot_opens_only_with_its_passphrase_and_only_in_its_repository() {
        let keys = Keys::generate();
        let passphrase = Passphrase::new("correct horse battery");
        let slot = slot_of(&keys, Role::Reader, &passphrase);
        let opened = slot.open(REPOSITORY, &passphrase).unwrap().unwrap();
        assert_eq!(opened.newest().root, keys.newest().root);
        assert!(slot.open(REPOSITORY, &Passphrase::new("wrong horse battery")).unwrap().is_none());
        assert_eq!(slot.open(RepositoryId([8; 16]), &passphrase).unwrap_err().kind(), Kind::Damaged);
    }

    #[test]
    fn a_role_cannot_be_raised_by_editing_the_slot() {
        let passphrase = Passphrase::new("correct horse battery");
        let mut slot = slot_of(&Keys::generate(), Role::Writer, &passphrase);
        let opened = slot.open(REPOSITORY, &passphrase).unwrap().unwrap();
        assert!(opened.newest().root.is_none() && opened.newest().chunk_ids.is_some());
        assert_eq!(opened.require_reader("restore").unwrap_err().kind(), Kind::WrongKey);
        let json = String::from_utf8(slot.to_json().unwrap()).unwrap().replace("\"writer\"", "\"reader\"");
        slot = StoredSlot::from_json(json.as_bytes()).unwrap();
        assert_eq!((slot.role, slot.is_whole()), (Role::Reader, false));
        assert_eq!(slot.open(REPOSITORY, &passphrase).unwrap_err().kind(), Kind::Damaged);
    }

    #[test]
    fn a_writer_seals_what_only_a_reader_opens() {
        let reader = Keys::generate();
        let writer = reader.reduced(Role::Writer);
        let (encapsulated, sealed) = writer.seal_pack_key(&[9; 32], b"context").unwrap();
        assert_eq!(*reader.open_pack_key(1, &encapsulated, &sealed, b"context").unwrap().unwrap(), [9; 32]);
        assert!(reader.open_pack_key(1, &encapsulated, &sealed, b"other").unwrap().is_none());
        assert_eq!(reader.open_pack_key(2, &encapsulated, &sealed, b"context").unwrap_err().kind(), Kind::Damaged);
        assert_eq!(writer.open_pack_key(1, &encapsulated, &sealed, b"context").unwrap_err().kind(), Kind::WrongKey);
        // A new generation opens what is old, and the old one nothing that is new.
        let next = reader.next_generation(2, false);
        assert!(next.open_pack_key(1, &encapsulated, &sealed, b"context").unwrap().is_some());
        let (encapsulated, sealed) = next.seal_pack_key(&[9; 32], b"context").unwrap();
        assert!(reader.open_pack_key(1, &encapsulated, &sealed, b"context").unwrap().is_none());
    }

    #[test]
    fn recovery_keys_survive_being_copied_from_paper() {
        let key = RecoveryKey::generate();
        for one in ["1", "l", "I"] {
            let sloppy = key.reveal().to_lowercase().replace('-', " ").replace('0', "o").replace('1', one);
            assert_eq!(normalise(key.reveal()), normalise(&sloppy), "{sloppy}");
        }
        assert!(normalise(key.reveal()).starts_with("LBRK1"));
        assert_eq!(*normalise("An ordinary passphrase\n"), "An ordinary passphrase");
    }

    #[test]
    fn bundles_of_another_role_order_or_root_are_refused() {
        let keys = Keys::generate().next_generation(2, true);
        let bundle = keys.to_bundle().unwrap();
        assert!(Keys::from_bundle(Role::Reader, &bundle).is_some() && Keys::from_bundle(Role::Writer, &bundle).is_none());
        let mut value: serde_json::Value = serde_json::from_slice(&bundle).unwrap();
        value["generations"].as_array_mut().unwrap().reverse();
        assert!(Keys::from_bundle(Role::Reader, value.to_string().as_bytes()).is_none());
        let mut value: serde_json::Value = serde_json::from_slice(&bundle).unwrap();
        value["generations"][0]["root"] = hex::encode([3; 32]).into();
        assert!(Keys::from_bundle(Role::Reader, value.to_string().as_bytes()).is_none());
        assert!(Keys::from_bundle(Role::Reader, br#"{"generations":[]}"#).is_none());
    }
}

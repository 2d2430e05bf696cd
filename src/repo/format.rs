//! Constants of the repository format: names of objects, magic numbers, limits. The whole description is `docs/format.md`.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Version that this program writes, and the only one that it reads.
pub const VERSION: u8 = 1;

/// Name of the object that makes a place a repository.
pub const FORMAT_KEY: &str = "format";

/// Bytes of a chunk or node id: keyed BLAKE3, truncated.
pub const ID_BYTES: usize = 16;

/// Greatest plain size of a frame: 16 MiB. Writers stay near [`FRAME_TARGET`].
pub const FRAME_MAX: usize = 16 << 20;
/// Plain bytes at which a writer closes a data frame.
pub const FRAME_TARGET: usize = 2 << 20;
/// Plain bytes of a frame of log, exactly; the last one of a piece may be shorter.
pub const LOG_FRAME: usize = 1 << 20;
/// Plain bytes at which a writer closes a frame of metadata.
pub const NODE_FRAME_TARGET: usize = 128 << 10;
/// Greatest plain size of one chunk: 4 MiB.
pub const CHUNK_MAX: usize = 4 << 20;
/// Sealed bytes at which a writer closes a pack of data.
pub const PACK_TARGET: usize = 32 << 20;
/// Sealed bytes at which a writer closes a pack of metadata.
pub const NODE_PACK_TARGET: usize = 8 << 20;
/// Greatest pack that is read: 512 MiB.
pub const PACK_MAX: u64 = 512 << 20;
/// Greatest plain size of a sealed object other than a pack: 256 MiB.
pub const OBJECT_MAX: usize = 256 << 20;
/// Chunks in one stretch of a large file's map (1 MiB of 8 KiB pages).
pub const STRETCH_CHUNKS: usize = 128;

/// Greatest plain size of a piece of a log: 128 MiB.
pub const LOG_PIECE_MAX: usize = 128 << 20;

/// AES-GCM tag.
pub const TAG_BYTES: usize = 16;

/// Content-defined chunks: least, average and greatest bytes.
pub const CONTENT_MIN: usize = 16 << 10;
pub const CONTENT_AVERAGE: usize = 64 << 10;
pub const CONTENT_MAX: usize = 256 << 10;

/// Random identifier of a repository, fixed at `init`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RepositoryId(pub [u8; 16]);

impl fmt::Display for RepositoryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl TryFrom<String> for RepositoryId {
    type Error = hex::FromHexError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        let mut id = [0; 16];
        hex::decode_to_slice(text, &mut id)?;
        Ok(Self(id))
    }
}

impl From<RepositoryId> for String {
    fn from(id: RepositoryId) -> Self {
        id.to_string()
    }
}

/// Name of a pack: BLAKE3 of its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PackId(pub [u8; 32]);

impl PackId {
    /// The object's key.
    pub fn key(&self) -> String {
        let name = hex::encode(self.0);
        format!("packs/{}/{name}", &name[..2])
    }

    /// The inverse of [`PackId::key`].
    pub fn from_key(key: &str) -> Option<Self> {
        let (folder, name) = key.strip_prefix("packs/")?.split_once('/')?;
        let mut id = [0; 32];
        hex::decode_to_slice(name, &mut id).ok()?;
        (folder == name.get(..2)? && Self(id).key() == key).then_some(Self(id))
    }
}

impl fmt::Debug for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0[..6]))
    }
}

/// Id of a chunk (data) or node (metadata).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct ChunkId(pub [u8; ID_BYTES]);

impl ChunkId {
    /// The part that index objects keep.
    pub fn prefix(&self) -> u64 {
        (u128::from_be_bytes(self.0) >> 64) as u64
    }
}

impl fmt::Debug for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// What a pack holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum PackKind {
    /// Chunks of files, sealed to the public key: only the reader role opens them.
    Data = 1,
    /// Nodes of trees, sealed under the metadata key.
    Nodes = 2,
    /// A piece of a log: like data, but named by what it covers, and never below `packs/`.
    Log = 3,
}

impl PackKind {
    /// The kind of a pack below `packs/`, so never a piece of a log.
    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Data),
            2 => Some(Self::Nodes),
            _ => None,
        }
    }
}

/// What a sealed object other than a pack is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ObjectKind {
    Index = 1,
    Manifest = 2,
    Session = 3,
    /// Packs that must never be deduplicated against again.
    Tombstones = 4,
    Report = 5,
    /// Stands at a manifest's key and fences the writer that meant to commit there.
    Void = 6,
    /// A small file beside a log, such as a timeline's history.
    LogSide = 7,
    /// A stretch of a log that is known to be missing.
    LogGap = 8,
    /// An entry of the retention ledger.
    Ledger = 9,
    /// Where the frames of rewritten packs have gone.
    Moved = 10,
    /// Which writers were at work when packs had been given up.
    Waits = 11,
    /// Ids of removed snapshots, of a volume of the retention ledger.
    RemovedIds = 12,
    /// What is known of these snapshots.
    Removed = 13,
    /// A plan's own key, or that it was destroyed.
    PlanKey = 32,
    /// Something that was done with keys.
    KeyEvent = 33,
}

impl ObjectKind {
    pub fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Index,
            2 => Self::Manifest,
            3 => Self::Session,
            4 => Self::Tombstones,
            5 => Self::Report,
            6 => Self::Void,
            7 => Self::LogSide,
            8 => Self::LogGap,
            9 => Self::Ledger,
            10 => Self::Moved,
            11 => Self::Waits,
            12 => Self::RemovedIds,
            13 => Self::Removed,
            32 => Self::PlanKey,
            33 => Self::KeyEvent,
            _ => return None,
        })
    }

    pub fn word(self) -> &'static str {
        match self {
            Self::Index => "index",
            Self::Manifest => "manifest",
            Self::Session => "session",
            Self::Tombstones => "tombstones",
            Self::Report => "report",
            Self::Void => "void",
            Self::LogSide => "log side file",
            Self::LogGap => "log gap",
            Self::Ledger => "retention ledger",
            Self::Moved => "moved packs",
            Self::Waits => "waits",
            Self::RemovedIds => "ids of removed snapshots",
            Self::Removed => "removed snapshots",
            Self::PlanKey => "plan key",
            Self::KeyEvent => "key event",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pack_keys_come_back_and_others_are_refused() {
        let id = PackId([0xab; 32]);
        assert_eq!(PackId::from_key(&id.key()), Some(id));
        assert_eq!(PackId::from_key(&id.key().to_uppercase()), None);
        assert_eq!(PackId::from_key(&id.key().replace("packs/ab", "packs/ac")), None);
        assert_eq!(PackId::from_key("packs/ab/short"), None);
    }
}

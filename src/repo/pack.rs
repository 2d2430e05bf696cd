//! Packs: sealed frames and, at the tail, a sealed directory of them. Named by the BLAKE3 of all their bytes.
//!
//! ```text
//! header     8  magic "LBPK", version u8, kind u8 (1 data, 2 nodes), key generation u16
//! frames     …  each: ciphertext and 16-byte tag, one after the other
//! directory  …  ciphertext and 16-byte tag
//! trailer   64  salt 32, directory length u32 (sealed), repository id 16, reserved 4 (zero), version u8, kind u8,
//!               key generation u16, magic "LBPT"
//! ```
//! *Frames* of an envelope are sealed with the envelope's AES key; nonce: the ordinal as 96-bit little-endian; associated data:
//! `"lifeboat v1 frame" ‖ repository id ‖ kind ‖ generation ‖ envelope salt ‖ ordinal u64`. A fresh pack has one envelope and
//! its frames have the ordinals 0, 1, 2, …; a pack that a collector rewrites carries the envelopes of the packs its frames came
//! from, so frames move without being opened.
//!
//! *Directory*: key `derive_key("lifeboat v1 pack directory", metadata key ‖ trailer salt)`, zero nonce, associated data: header
//! and trailer. Its content is in [`Directory`].
//!
//! A *piece of a log* (kind 3, see `log`) is the same with a name of its own: the associated data of its directory ends with its
//! key, and before the directory's content stands a label (a blob).

use lifeboat_cipher::Cipher;
use zeroize::Zeroizing;

use crate::error::{Error, Kind, Result};
use crate::repo::format::{CHUNK_MAX, ChunkId, FRAME_MAX, ID_BYTES, PACK_MAX, PackId, PackKind, RepositoryId, TAG_BYTES, VERSION};
use crate::repo::frame::Encoding;
use crate::repo::keys::{ENCAPSULATED_BYTES, Keys, SEALED_KEY_BYTES};
use crate::repo::wire::{Reader, WireError, WireResult, put_blob, put_varint};

pub const HEADER_BYTES: usize = 8;
pub const TRAILER_BYTES: usize = 64;
const HEADER_MAGIC: &[u8; 4] = b"LBPK";
const TRAILER_MAGIC: &[u8; 4] = b"LBPT";
const DIRECTORY_PURPOSE: &str = "lifeboat v1 pack directory";
const NODES_PURPOSE: &str = "lifeboat v1 node pack";

/// The key of some frames, and what binds them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    pub generation: u16,
    pub salt: [u8; 32],
    /// Zero in packs of nodes, whose key derives from the metadata key and the salt.
    pub encapsulated: [u8; ENCAPSULATED_BYTES],
    pub sealed_key: [u8; SEALED_KEY_BYTES],
}

/// One chunk of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkEntry {
    pub id: ChunkId,
    /// Plain bytes.
    pub len: u32,
    /// In a delta frame: the full chunk that the patch applies to, and the patch's bytes.
    pub base: Option<(ChunkId, u32)>,
}

/// One frame of a pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameEntry {
    pub encoding: Encoding,
    pub envelope: u32,
    pub ordinal: u64,
    /// Where its sealed bytes begin in the pack.
    pub offset: u64,
    pub sealed_len: u32,
    /// Bytes after decoding: the sum of its chunks, or of its patches.
    pub plain_len: u32,
    /// Number of the frame's first chunk in the whole directory.
    pub first_chunk: u32,
    pub chunks: Vec<ChunkEntry>,
}

/// What is in a pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    pub kind: PackKind,
    pub envelopes: Vec<Envelope>,
    pub frames: Vec<FrameEntry>,
}

impl Directory {
    /// All chunks in order.
    pub fn chunks(&self) -> impl Iterator<Item = &ChunkEntry> {
        self.frames.iter().flat_map(|frame| &frame.chunks)
    }

    /// Whether there is a chunk at this frame and slot.
    pub fn has(&self, frame: u32, slot: u32) -> bool {
        self.frames.get(frame as usize).is_some_and(|frame| (slot as usize) < frame.chunks.len())
    }

    /// The frame and slot of the chunk with this number in the whole directory.
    pub fn locate(&self, chunk: u32) -> Option<(u32, u32)> {
        let frame = self.frames.partition_point(|f| f.first_chunk <= chunk).checked_sub(1)?;
        let slot = chunk - self.frames[frame].first_chunk;
        ((slot as usize) < self.frames[frame].chunks.len()).then_some((frame as u32, slot))
    }

    /// Memory that it takes, roughly.
    pub fn memory_bytes(&self) -> usize {
        self.frames.iter().map(|f| 64 + f.chunks.len() * size_of::<ChunkEntry>()).sum::<usize>()
            + self.envelopes.len() * size_of::<Envelope>()
    }

    /// Content of the sealed directory: varint count of envelopes, each generation u16, salt 32, encapsulated 32, sealed key 48; varint
    /// count of frames, each: encoding u8, varint envelope, varint ordinal, varint sealed length, varint plain length, varint count of
    /// chunks, u8 lengths mode; mode 0: all chunks have the one varint length that follows; mode 1: a varint length a chunk;
    /// then the 16-byte ids; in a delta frame then a 16-byte base id and a varint patch length a chunk.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(256 + self.chunks().count() * (ID_BYTES + 1));
        put_varint(&mut out, self.envelopes.len() as u64);
        for envelope in &self.envelopes {
            out.extend_from_slice(&envelope.generation.to_le_bytes());
            out.extend_from_slice(&envelope.salt);
            out.extend_from_slice(&envelope.encapsulated);
            out.extend_from_slice(&envelope.sealed_key);
        }
        put_varint(&mut out, self.frames.len() as u64);
        for frame in &self.frames {
            out.push(frame.encoding as u8);
            put_varint(&mut out, u64::from(frame.envelope));
            put_varint(&mut out, frame.ordinal);
            put_varint(&mut out, u64::from(frame.sealed_len));
            put_varint(&mut out, u64::from(frame.plain_len));
            put_varint(&mut out, frame.chunks.len() as u64);
            let first = frame.chunks.first().map_or(0, |c| c.len);
            if frame.chunks.iter().all(|c| c.len == first) {
                out.push(0);
                put_varint(&mut out, u64::from(first));
            } else {
                out.push(1);
                frame.chunks.iter().for_each(|c| put_varint(&mut out, u64::from(c.len)));
            }
            frame.chunks.iter().for_each(|c| out.extend_from_slice(&c.id.0));
            for (base, patch_len) in frame.chunks.iter().filter_map(|c| c.base) {
                out.extend_from_slice(&base.0);
                put_varint(&mut out, u64::from(patch_len));
            }
        }
        out
    }

    /// The inverse of `encode`; `frames_len` is how many sealed bytes the frames must take in all.
    pub fn decode(kind: PackKind, bytes: &[u8], frames_len: u64) -> WireResult<Self> {
        let mut reader = Reader::new(bytes);
        let mut envelopes = Vec::new();
        for _ in 0..reader.count(2 + 32 + ENCAPSULATED_BYTES + SEALED_KEY_BYTES)? {
            envelopes.push(Envelope {
                generation: reader.u16()?,
                salt: reader.array()?,
                encapsulated: reader.array()?,
                sealed_key: reader.array()?,
            });
        }
        let mut offset = HEADER_BYTES as u64;
        let mut first_chunk = 0u32;
        let mut frames = Vec::new();
        for _ in 0..reader.count(7)? {
            let encoding = Encoding::from_byte(reader.u8()?).ok_or(WireError::Invalid("unknown frame encoding"))?;
            let envelope = reader.varint32()?;
            if envelope as usize >= envelopes.len() {
                return Err(WireError::Invalid("frame names an envelope that is not there"));
            }
            let ordinal = reader.varint()?;
            let sealed_len = reader.varint32()?;
            let plain_len = reader.varint32()?;
            if plain_len as usize > FRAME_MAX || (sealed_len as usize) < TAG_BYTES {
                return Err(WireError::Invalid("frame has an impossible size"));
            }
            let count = reader.count(ID_BYTES)?;
            let mut chunks = vec![ChunkEntry { id: ChunkId::default(), len: 0, base: None }; count];
            match reader.u8()? {
                0 => {
                    let len = reader.varint32()?;
                    chunks.iter_mut().for_each(|c| c.len = len);
                }
                1 => {
                    for chunk in &mut chunks {
                        chunk.len = reader.varint32()?;
                    }
                }
                _ => return Err(WireError::Invalid("unknown lengths mode")),
            }
            for chunk in &mut chunks {
                chunk.id = ChunkId(reader.array()?);
                if chunk.len as usize > CHUNK_MAX {
                    return Err(WireError::Invalid("chunk is over the size limit"));
                }
            }
            if encoding == Encoding::Delta {
                for chunk in &mut chunks {
                    chunk.base = Some((ChunkId(reader.array()?), reader.varint32()?));
                }
            }
            let plain: u64 = chunks.iter().map(|c| u64::from(c.base.map_or(c.len, |(_, patch_len)| patch_len))).sum();
            if plain != u64::from(plain_len) {
                return Err(WireError::Invalid("chunks do not add up to their frame"));
            }
            frames.push(FrameEntry { encoding, envelope, ordinal, offset, sealed_len, plain_len, first_chunk, chunks });
            offset += u64::from(sealed_len);
            first_chunk =
                u32::try_from(count).ok().and_then(|c| first_chunk.checked_add(c)).ok_or(WireError::Invalid("too many chunks"))?;
        }
        reader.finish()?;
        if offset - HEADER_BYTES as u64 != frames_len {
            return Err(WireError::Invalid("frames do not add up to the pack"));
        }
        Ok(Self { kind, envelopes, frames })
    }
}

/// A pack being filled in memory.
pub struct PackBuilder {
    repository: RepositoryId,
    kind: PackKind,
    generation: u16,
    cipher: Cipher,
    bytes: Vec<u8>,
    directory: Directory,
}

/// A finished pack.
pub struct FinishedPack {
    pub id: PackId,
    pub bytes: Vec<u8>,
    /// Sealed bytes of the directory.
    pub directory_len: u32,
    pub directory: Directory,
}

impl PackBuilder {
    /// A new, empty pack with a key of its own, filled into `bytes` (an empty buffer).
    ///
    /// # Errors
    /// `WrongKey` from a slot that a rotation left behind; when there are no random bytes to be had.
    pub fn new(keys: &Keys, repository: RepositoryId, kind: PackKind, mut bytes: Vec<u8>) -> Result<Self> {
        keys.require_current()?;
        let mut random = Zeroizing::new([0u8; 64]);
        getrandom::fill(&mut *random).map_err(|e| Error::new(Kind::Bug, "ask for random bytes").because(e))?;
        let mut salt = [0; 32];
        salt.copy_from_slice(&random[..32]);
        let generation = keys.generation;
        // Of data: may be a plan's own key. Directories, like all metadata, are always under the repository's.
        let envelope_generation = if kind == PackKind::Nodes { generation } else { keys.data_generation() };
        let (cipher, encapsulated, sealed_key) = match kind {
            PackKind::Data | PackKind::Log => {
                let mut key = Zeroizing::new([0u8; 32]);
                key.copy_from_slice(&random[32..]);
                let (encapsulated, sealed) = keys.seal_pack_key(&key, &key_context(repository, envelope_generation, &salt))?;
                (Cipher::new(&key), encapsulated, sealed)
            }
            PackKind::Nodes => (keys.metadata_cipher(NODES_PURPOSE, &salt), [0; ENCAPSULATED_BYTES], [0; SEALED_KEY_BYTES]),
        };
        bytes.extend_from_slice(&header(kind, generation));
        let envelopes = vec![Envelope { generation: envelope_generation, salt, encapsulated, sealed_key }];
        Ok(Self { repository, kind, generation, cipher, bytes, directory: Directory { kind, envelopes, frames: Vec::new() } })
    }

    /// Sealed bytes so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Chunks so far.
    pub fn chunk_count(&self) -> u32 {
        self.directory.frames.last().map_or(0, |f| f.first_chunk + f.chunks.len() as u32)
    }

    /// Whether no frame was added yet.
    pub fn is_empty(&self) -> bool {
        self.directory.frames.is_empty()
    }

    /// Seals an encoded frame into the pack and returns its number.
    ///
    /// # Errors
    /// `Bug` for what no reader would accept: a frame or chunk over the limits.
    pub fn push(&mut self, encoding: Encoding, encoded: &[u8], chunks: Vec<ChunkEntry>) -> Result<u32> {
        let plain_len: u32 = chunks.iter().map(|c| c.base.map_or(c.len, |(_, patch_len)| patch_len)).sum();
        if plain_len as usize > FRAME_MAX
            || chunks.iter().any(|c| c.len as usize > CHUNK_MAX)
            || (self.bytes.len() + encoded.len()) as u64 > PACK_MAX / 2
        {
            return Err(Error::new(Kind::Bug, "a frame over the limits of the format"));
        }
        let frame_no = self.directory.frames.len() as u32;
        // Of the pack's own envelope: a number may be left out, never used twice.
        let ordinal = u64::from(frame_no);
        let start = self.bytes.len();
        self.bytes.extend_from_slice(encoded);
        let associated = frame_associated(self.repository, self.kind, &self.directory.envelopes[0], ordinal);
        let tag = self
            .cipher
            .seal_detached(&nonce(ordinal), &associated, &mut self.bytes[start..])
            .map_err(|_| Error::new(Kind::Bug, "seal a frame"))?;
        self.bytes.extend_from_slice(&tag);
        let first_chunk = self.chunk_count();
        let sealed_len = (self.bytes.len() - start) as u32;
        self.directory.frames.push(FrameEntry {
            encoding,
            envelope: 0,
            ordinal,
            offset: start as u64,
            sealed_len,
            plain_len,
            first_chunk,
            chunks,
        });
        Ok(frame_no)
    }

    /// Takes a frame of another pack of the kind as it is, sealed, with its envelope and ordinal. Returns its number here.
    ///
    /// # Errors
    /// `Bug` when the pack would be too large.
    pub fn carry(&mut self, envelope: &Envelope, frame: &FrameEntry, sealed: &[u8]) -> Result<u32> {
        if sealed.len() != frame.sealed_len as usize || (self.bytes.len() + sealed.len()) as u64 > PACK_MAX / 2 {
            return Err(Error::new(Kind::Bug, "a frame over the limits of the format"));
        }
        let known = self.directory.envelopes.iter().position(|known| known == envelope);
        let number = known.unwrap_or_else(|| {
            self.directory.envelopes.push(envelope.clone());
            self.directory.envelopes.len() - 1
        });
        let frame_no = self.directory.frames.len() as u32;
        let (first_chunk, offset) = (self.chunk_count(), self.bytes.len() as u64);
        self.bytes.extend_from_slice(sealed);
        self.directory.frames.push(FrameEntry { envelope: number as u32, offset, first_chunk, ..frame.clone() });
        Ok(frame_no)
    }

    /// Seals the directory, adds the trailer and names the pack.
    ///
    /// # Errors
    /// When there are no random bytes to be had.
    pub fn finish(mut self, keys: &Keys) -> Result<FinishedPack> {
        let directory_len = self.seal_directory(keys, self.directory.encode(), "")?;
        let id = PackId(*blake3::hash(&self.bytes).as_bytes());
        Ok(FinishedPack { id, bytes: self.bytes, directory_len, directory: self.directory })
    }

    /// Ends a piece of a log, which stands under a name of its own: bound to it, and with a label in front of the directory. `label`
    /// gets the hash of the bytes so far.
    ///
    /// # Errors
    /// When there are no random bytes to be had.
    pub fn finish_log(mut self, keys: &Keys, key: &str, label: impl FnOnce(blake3::Hash) -> Result<Vec<u8>>) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        put_blob(&mut body, &label(blake3::hash(&self.bytes))?);
        body.extend_from_slice(&self.directory.encode());
        self.seal_directory(keys, body, key)?;
        Ok(self.bytes)
    }

    /// Adds the sealed directory and the trailer; returns the sealed bytes of the directory.
    fn seal_directory(&mut self, keys: &Keys, mut body: Vec<u8>, place: &str) -> Result<u32> {
        let mut salt = [0u8; 32];
        getrandom::fill(&mut salt).map_err(|e| Error::new(Kind::Bug, "ask for random bytes").because(e))?;
        let directory_len = u32::try_from(body.len() + TAG_BYTES).map_err(|_| Error::new(Kind::Bug, "a pack directory over 4 GiB"))?;
        let trailer = trailer(self.repository, self.kind, self.generation, &salt, directory_len);
        let associated = [&self.bytes[..HEADER_BYTES], &trailer, place.as_bytes()].concat();
        keys.metadata_cipher(DIRECTORY_PURPOSE, &salt)
            .seal(&[0; 12], &associated, &mut body)
            .map_err(|_| Error::new(Kind::Bug, "seal a pack directory"))?;
        self.bytes.extend_from_slice(&body);
        self.bytes.extend_from_slice(&trailer);
        Ok(directory_len)
    }
}

fn header(kind: PackKind, generation: u16) -> [u8; HEADER_BYTES] {
    let [low, high] = generation.to_le_bytes();
    let [a, b, c, d] = *HEADER_MAGIC;
    [a, b, c, d, VERSION, kind as u8, low, high]
}

fn trailer(repository: RepositoryId, kind: PackKind, generation: u16, salt: &[u8; 32], directory_len: u32) -> [u8; TRAILER_BYTES] {
    let mut out = [0; TRAILER_BYTES];
    out[..32].copy_from_slice(salt);
    out[32..36].copy_from_slice(&directory_len.to_le_bytes());
    out[36..52].copy_from_slice(&repository.0);
    out[56] = VERSION;
    out[57] = kind as u8;
    out[58..60].copy_from_slice(&generation.to_le_bytes());
    out[60..].copy_from_slice(TRAILER_MAGIC);
    out
}

fn nonce(ordinal: u64) -> [u8; 12] {
    let mut out = [0; 12];
    out[..8].copy_from_slice(&ordinal.to_le_bytes());
    out
}

fn key_context(repository: RepositoryId, generation: u16, salt: &[u8; 32]) -> Vec<u8> {
    [&repository.0[..], &generation.to_le_bytes(), salt].concat()
}

fn frame_associated(repository: RepositoryId, kind: PackKind, envelope: &Envelope, ordinal: u64) -> Vec<u8> {
    [b"lifeboat v1 frame", &repository.0[..], &[kind as u8], &envelope.generation.to_le_bytes(), &envelope.salt, &ordinal.to_le_bytes()]
        .concat()
}

/// Reads the trailer: kind and sealed length of the directory before it.
///
/// # Errors
/// `Damaged` when it is not the trailer of a pack of this repository.
pub fn read_trailer(repository: RepositoryId, key: &str, trailer: &[u8]) -> Result<(PackKind, u32)> {
    let (kind, len) = read_any_trailer(repository, key, trailer)?;
    let kind = PackKind::from_byte(kind).ok_or_else(|| Error::new(Kind::Damaged, format!("pack {key}: is of an unknown kind")))?;
    Ok((kind, len))
}

/// The same for a piece of a log: the sealed length of its directory.
///
/// # Errors
/// `Damaged` when it is not the trailer of such a piece of this repository.
pub fn read_log_trailer(repository: RepositoryId, key: &str, trailer: &[u8]) -> Result<u32> {
    match read_any_trailer(repository, key, trailer)? {
        (kind, len) if kind == PackKind::Log as u8 => Ok(len),
        _ => Err(Error::new(Kind::Damaged, format!("object {key}: is of another kind than its name says"))),
    }
}

fn read_any_trailer(repository: RepositoryId, key: &str, trailer: &[u8]) -> Result<(u8, u32)> {
    let damaged = |what: &str| Error::new(Kind::Damaged, format!("object {key}: {what}"));
    if trailer.len() != TRAILER_BYTES || &trailer[60..] != TRAILER_MAGIC {
        return Err(damaged("has no trailer (truncated or overwritten)"));
    }
    if trailer[56] != VERSION {
        return Err(damaged("written by another format version").hint("use a newer version of lifeboat"));
    }
    if trailer[36..52] != repository.0 {
        return Err(damaged("belongs to another repository"));
    }
    let mut len = [0; 4];
    len.copy_from_slice(&trailer[32..36]);
    Ok((trailer[57], u32::from_le_bytes(len)))
}

/// Opens a pack's directory from its tail: the sealed directory and the trailer, `pack_len` being the whole pack's bytes.
///
/// # Errors
/// `Damaged` when anything does not fit.
pub fn open_directory(keys: &Keys, repository: RepositoryId, key: &str, pack_len: u64, tail: &[u8]) -> Result<Directory> {
    let split = tail.len().saturating_sub(TRAILER_BYTES);
    let (kind, directory_len) = read_trailer(repository, key, &tail[split..])?;
    let (body, frames_len) = open_tail(keys, kind, key, "", pack_len, directory_len, tail)?;
    Directory::decode(kind, &body, frames_len)
        .map_err(|e| Error::new(Kind::Damaged, format!("pack {key}: its directory cannot be decoded")).because(e))
}

/// Opens the label and the directory of a piece of a log from its tail, as [`open_directory`] does.
///
/// # Errors
/// `Damaged` when anything does not fit.
pub fn open_log_directory(keys: &Keys, repository: RepositoryId, key: &str, len: u64, tail: &[u8]) -> Result<(Vec<u8>, Directory)> {
    let split = tail.len().saturating_sub(TRAILER_BYTES);
    let directory_len = read_log_trailer(repository, key, &tail[split..])?;
    let (body, frames_len) = open_tail(keys, PackKind::Log, key, key, len, directory_len, tail)?;
    decode_log_body(&body, frames_len)
        .map_err(|e| Error::new(Kind::Damaged, format!("object {key}: its directory cannot be decoded")).because(e))
}

/// What is below the seal of a piece's tail: its label and its directory.
pub(super) fn decode_log_body(body: &[u8], frames_len: u64) -> WireResult<(Vec<u8>, Directory)> {
    let mut reader = Reader::new(body);
    let label = reader.blob()?.to_vec();
    Ok((label, Directory::decode(PackKind::Log, reader.rest(), frames_len)?))
}

/// Opens the seal around a directory: its content, and how many bytes the frames before it take.
fn open_tail(
    keys: &Keys,
    kind: PackKind,
    key: &str,
    place: &str,
    pack_len: u64,
    directory_len: u32,
    tail: &[u8],
) -> Result<(Vec<u8>, u64)> {
    let damaged = |what: &str| Error::new(Kind::Damaged, format!("object {key}: {what}"));
    let (sealed, trailer) = tail.split_at(tail.len() - TRAILER_BYTES);
    let rest = (HEADER_BYTES + TRAILER_BYTES) as u64 + u64::from(directory_len);
    if pack_len > PACK_MAX || sealed.len() != directory_len as usize || pack_len < rest || directory_len < TAG_BYTES as u32 {
        return Err(damaged("its directory has an impossible size"));
    }
    let mut generation = [0; 2];
    generation.copy_from_slice(&trailer[58..60]);
    let mut salt = [0; 32];
    salt.copy_from_slice(&trailer[..32]);
    let associated = [&header(kind, u16::from_le_bytes(generation))[..], trailer, place.as_bytes()].concat();
    let mut body = sealed.to_vec();
    keys.metadata_cipher_of(&format!("object {key}"), u16::from_le_bytes(generation), DIRECTORY_PURPOSE, &salt)?
        .open(&[0; 12], &associated, &mut body)
        .map_err(|_| damaged("the seal of its directory is broken (changed, truncated or moved here from another place)"))?;
    Ok((body, pack_len - rest))
}

/// Opens frames of packs: holds the AES keys of the envelopes met.
pub struct FrameOpener<'k> {
    keys: &'k Keys,
    repository: RepositoryId,
    ciphers: lru_ciphers::Ciphers,
}

impl<'k> FrameOpener<'k> {
    pub fn new(keys: &'k Keys, repository: RepositoryId) -> Self {
        Self { keys, repository, ciphers: lru_ciphers::Ciphers::default() }
    }

    /// Opens the sealed bytes of a frame; `encoded` becomes the encoded frame.
    ///
    /// # Errors
    /// `Damaged`, or `WrongKey` when data is opened without the reader role.
    pub fn open(
        &mut self,
        key: &str,
        kind: PackKind,
        envelope: &Envelope,
        frame: &FrameEntry,
        sealed: &[u8],
        encoded: &mut Vec<u8>,
    ) -> Result<()> {
        let damaged = |what: &str| Error::new(Kind::Damaged, format!("pack {key}, frame at {}: {what}", frame.offset));
        let cipher = if let Some(cipher) = self.ciphers.get(&envelope.salt) {
            cipher
        } else {
            let cipher = match kind {
                PackKind::Nodes => {
                    self.keys.metadata_cipher_of(&format!("pack {key}"), envelope.generation, NODES_PURPOSE, &envelope.salt)?
                }
                PackKind::Data | PackKind::Log => {
                    let context = key_context(self.repository, envelope.generation, &envelope.salt);
                    let opened = self.keys.open_pack_key(envelope.generation, &envelope.encapsulated, &envelope.sealed_key, &context)?;
                    Cipher::new(&*opened.ok_or_else(|| damaged("its key cannot be opened"))?)
                }
            };
            self.ciphers.put(envelope.salt, cipher)
        };
        let (sealed, tag) = sealed.split_last_chunk::<TAG_BYTES>().ok_or_else(|| damaged("is truncated"))?;
        let associated = frame_associated(self.repository, kind, envelope, frame.ordinal);
        // Not cleared before: what is there already need not be zeroed.
        encoded.resize(sealed.len(), 0);
        cipher
            .open_detached(&nonce(frame.ordinal), &associated, sealed, tag, encoded)
            .map_err(|_| damaged("its seal is broken (changed on the way or in the store)"))
    }
}

/// Whether a key opens a frame, whoever it is from: for tests that try what an attacker would.
#[cfg(test)]
pub fn opens_with(
    repository: RepositoryId,
    kind: PackKind,
    envelope: &Envelope,
    frame: &FrameEntry,
    sealed: &[u8],
    key: &[u8; 32],
) -> bool {
    let associated = frame_associated(repository, kind, envelope, frame.ordinal);
    Cipher::new(key).open(&nonce(frame.ordinal), &associated, &mut sealed.to_vec()).is_ok()
}

/// Whether a root opens an envelope: for the same tests.
#[cfg(test)]
pub fn root_opens(repository: RepositoryId, envelope: &Envelope, root: &[u8; 32]) -> bool {
    let context = key_context(repository, envelope.generation, &envelope.salt);
    crate::repo::keys::root_opens(root, &envelope.encapsulated, &envelope.sealed_key, &context)
}

mod lru_ciphers {
    //! The few ciphers last used, by envelope salt.
    use lifeboat_cipher::Cipher;

    const KEPT: usize = 16;

    #[derive(Default)]
    pub struct Ciphers(Vec<([u8; 32], Cipher)>);

    impl Ciphers {
        pub fn get(&self, salt: &[u8; 32]) -> Option<&Cipher> {
            self.0.iter().find(|(s, _)| s == salt).map(|(_, c)| c)
        }

        pub fn put(&mut self, salt: [u8; 32], cipher: Cipher) -> &Cipher {
            if self.0.len() >= KEPT {
                self.0.remove(0);
            }
            self.0.push((salt, cipher));
            &self.0[self.0.len() - 1].1
        }
    }
}

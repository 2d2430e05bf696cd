//! Frames: the unit of compression. Consecutive new chunks, compressed together; sealing is the pack's.
//!
//! A *delta* frame holds chunks as differences against one full chunk each (depth one, never a chain): the plain bytes are
//! the patches one after the other; a patch is one zstd frame made with the base chunk as its raw-content dictionary.

use crate::error::{Error, Kind, Result};
use crate::repo::format::{CHUNK_MAX, FRAME_MAX};
use crate::repo::wire::WireError;

/// How a frame's bytes are encoded before they are sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Encoding {
    /// As they are: incompressible data never grows.
    Raw = 0,
    /// One zstd frame.
    Zstd = 1,
    /// One zstd frame of patches.
    Delta = 2,
}

impl Encoding {
    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Raw),
            1 => Some(Self::Zstd),
            2 => Some(Self::Delta),
            _ => None,
        }
    }
}

/// What a frame mostly holds: decides how zstd searches. Readers need not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// Database pages. zstd's fast strategy with a 17-bit table, matches of five bytes and no acceleration: on PostgreSQL pages as small
    /// as level 3 within 0.3% and a sixth quicker (`docs/decisions/004-zstd-for-pages.md`).
    Pages,
    /// Anything else: zstd level 3.
    General,
    /// Metadata, small and read often: zstd level 9.
    Nodes,
}

/// Compresses frames with one reused context; one a worker.
pub struct Encoder {
    compressor: zstd::bulk::Compressor<'static>,
    scratch: Vec<u8>,
}

impl Encoder {
    /// # Errors
    /// When zstd cannot allocate.
    pub fn new(profile: Profile) -> std::io::Result<Self> {
        use zstd::zstd_safe::{CParameter, Strategy};
        let mut compressor = zstd::bulk::Compressor::new(if profile == Profile::Nodes { 9 } else { 3 })?;
        if profile == Profile::Pages {
            for parameter in
                [CParameter::Strategy(Strategy::ZSTD_fast), CParameter::HashLog(17), CParameter::MinMatch(5), CParameter::TargetLength(0)]
            {
                compressor.set_parameter(parameter)?;
            }
        }
        Ok(Self { compressor, scratch: Vec::new() })
    }

    /// Encodes a frame's plain bytes: compressed, or raw when that would not make them smaller.
    ///
    /// # Errors
    /// When zstd fails.
    pub fn encode<'a>(&'a mut self, plain: &'a [u8]) -> std::io::Result<(Encoding, &'a [u8])> {
        self.scratch.clear();
        self.scratch.reserve(zstd::zstd_safe::compress_bound(plain.len()));
        self.compressor.compress_to_buffer(plain, &mut self.scratch)?;
        if self.scratch.len() < plain.len() { Ok((Encoding::Zstd, &self.scratch)) } else { Ok((Encoding::Raw, plain)) }
    }
}

/// Decompresses frames with one reused context; one a worker.
pub struct Decoder {
    decompressor: zstd::bulk::Decompressor<'static>,
}

impl Decoder {
    /// # Errors
    /// When zstd cannot allocate.
    pub fn new() -> std::io::Result<Self> {
        let mut decompressor = zstd::bulk::Decompressor::new()?;
        // Frames are at most 16 MiB, so no honest one needs a larger window.
        decompressor.set_parameter(zstd::zstd_safe::DParameter::WindowLogMax(24))?;
        Ok(Self { decompressor })
    }

    /// Decodes to exactly `plain_len` bytes.
    ///
    /// # Errors
    /// When the bytes are not a frame of that size.
    pub fn decode(&mut self, encoding: Encoding, encoded: &[u8], plain_len: usize, plain: &mut Vec<u8>) -> Result<(), WireError> {
        if plain_len > FRAME_MAX {
            return Err(WireError::Invalid("frame is over the size limit"));
        }
        plain.clear();
        match encoding {
            Encoding::Raw => plain.extend_from_slice(encoded),
            Encoding::Zstd | Encoding::Delta => {
                plain.reserve(plain_len);
                self.decompressor.decompress_to_buffer(encoded, plain).map_err(|_| WireError::Invalid("frame cannot be decompressed"))?;
            }
        }
        if plain.len() == plain_len { Ok(()) } else { Err(WireError::Invalid("frame decompresses to another size")) }
    }
}

/// Decodes a frame again: a compressor that is wrong must not be found out at a restore.
///
/// # Errors
/// `Bug` when it does not decompress to what went in.
pub fn prove(encoding: Encoding, encoded: &[u8], plain: &[u8]) -> Result<()> {
    let mut back = Vec::new();
    let mut decoder = Decoder::new().map_err(|e| Error::new(Kind::Failed, "start a decoder").because(e))?;
    if decoder.decode(encoding, encoded, plain.len(), &mut back).is_ok() && back == plain {
        Ok(())
    } else {
        Err(Error::new(Kind::Bug, "a compressed frame does not decompress to what went in")
            .hint("nothing was committed; check this machine's memory, and report this if it happens again"))
    }
}

/// Makes a patch that turns `base` into `chunk`. No backup writes patches yet: who supplies the base is decided later; the format and
/// every reader know them, and tests make them.
///
/// # Errors
/// When zstd fails.
#[cfg(test)]
pub fn make_patch(base: &[u8], chunk: &[u8], level: i32) -> std::io::Result<Vec<u8>> {
    let mut compressor = zstd::bulk::Compressor::with_dictionary(level, base)?;
    compressor.compress(chunk)
}

/// Applies a patch of [`make_patch`].
///
/// # Errors
/// When the patch does not yield `len` bytes with this base.
pub fn apply_patch(base: &[u8], patch: &[u8], len: usize) -> Result<Vec<u8>, WireError> {
    if len > CHUNK_MAX {
        return Err(WireError::Invalid("chunk is over the size limit"));
    }
    let mut decompressor = zstd::bulk::Decompressor::with_dictionary(base).map_err(|_| WireError::Invalid("base cannot be used"))?;
    let chunk = decompressor.decompress(patch, len).map_err(|_| WireError::Invalid("patch cannot be applied"))?;
    if chunk.len() == len { Ok(chunk) } else { Err(WireError::Invalid("patch yields another size")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn frames_come_back_and_never_grow(plain in proptest::collection::vec(any::<u8>(), 0..5000), repeat in 1usize..4) {
            let plain = plain.repeat(repeat);
            let mut encoder = Encoder::new(if repeat == 1 { Profile::Pages } else { Profile::General }).unwrap();
            let (encoding, encoded) = encoder.encode(&plain).unwrap();
            prop_assert!(encoded.len() <= plain.len());
            let mut back = Vec::new();
            Decoder::new().unwrap().decode(encoding, encoded, plain.len(), &mut back).unwrap();
            prop_assert_eq!(&back, &plain);
            prop_assert!(Decoder::new().unwrap().decode(encoding, encoded, plain.len() + 1, &mut back).is_err());
        }

        #[test]
        fn patches_come_back(base in proptest::collection::vec(any::<u8>(), 8192), at in 0usize..8192, byte: u8) {
            let mut chunk = base.clone();
            chunk[at] = byte;
            let patch = make_patch(&base, &chunk, 3).unwrap();
            prop_assert!(patch.len() < 200, "a one-byte change makes a small patch, not {} bytes", patch.len());
            prop_assert_eq!(apply_patch(&base, &patch, 8192).unwrap(), chunk);
        }
    }
}

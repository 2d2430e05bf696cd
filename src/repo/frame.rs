//! Frames: the unit of compression. Consecutive new chunks, compressed together; sealing is the pack's.
//!
//! A *delta* frame holds chunks as differences against one full chunk each (depth one, never a chain): the plain bytes are
//! the patches one after the other; a patch is one zstd frame made with the base chunk as its raw-content dictionary.

use crate::error::{Error, Kind, Result};
use crate::repo::format::{CHUNK_MAX, FRAME_MAX};
use crate::repo::pages;
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
    /// One zstd frame of pages that [`pages`] has rearranged.
    Pages = 3,
}

impl Encoding {
    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Raw),
            1 => Some(Self::Zstd),
            2 => Some(Self::Delta),
            3 => Some(Self::Pages),
            _ => None,
        }
    }
}

/// What a frame mostly holds: decides how zstd searches. Readers need not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// Database pages: zstd's fast strategy without acceleration, with the table that these pages need ([`SEARCHES`]).
    Pages,
    /// Anything else: zstd level 3.
    General,
    /// Metadata, small and read often: zstd level 9.
    Nodes,
}

/// A way to search pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Search {
    /// Of the table of places.
    hash_log: u32,
    /// Bytes that a match has at least.
    min_match: u32,
    /// How far back a match may be.
    window_log: u32,
}

/// From the quickest to the one that makes pages smallest. A table, and a window, that fit a processor's caches are up to twice as quick, and for many tables and indexes, or
/// what cannot be compressed, they find as much (`docs/decisions/004-zstd-for-pages.md`).
const SEARCHES: [Search; 3] = [
    Search { hash_log: 13, min_match: 6, window_log: 18 },
    Search { hash_log: 15, min_match: 5, window_log: 18 },
    Search { hash_log: 17, min_match: 5, window_log: 18 },
];
/// The quickest search is taken whose result is at most this many thousandths larger than the best one's.
const TOLERANCE: usize = 30;
/// Searches are compared on so much of a frame, ...
const TRIAL_BYTES: usize = 256 << 10;
/// ... and anew after so many frames, ...
const TRIAL_EVERY: u32 = 64;
/// ... or when a frame's ratio differs by one part in so many from that of the first frame after the comparison: other content.
const TRIAL_DEVIATION: usize = 8;

/// When the search for pages is chosen next. Depends on what was encoded before, and on nothing else.
struct Choice {
    /// Frames until the next comparison.
    left: u32,
    /// Encoded size per mebibyte of the first frame since.
    ratio: Option<usize>,
}

/// Compresses frames with one reused context; one a worker.
pub struct Encoder {
    compressor: zstd::bulk::Compressor<'static>,
    scratch: Vec<u8>,
    /// For pages.
    choice: Option<Choice>,
    /// A frame's pages, rearranged.
    arranged: Vec<u8>,
}

impl Encoder {
    /// # Errors
    /// When zstd cannot allocate.
    pub fn new(profile: Profile) -> std::io::Result<Self> {
        use zstd::zstd_safe::{CParameter, Strategy};
        let mut compressor = zstd::bulk::Compressor::new(if profile == Profile::Nodes { 9 } else { 3 })?;
        let mut choice = None;
        if profile == Profile::Pages {
            compressor.set_parameter(CParameter::Strategy(Strategy::ZSTD_fast))?;
            compressor.set_parameter(CParameter::TargetLength(0))?;
            choice = Some(Choice { left: 0, ratio: None });
        }
        Ok(Self { compressor, scratch: Vec::new(), choice, arranged: Vec::new() })
    }

    /// Encodes a frame's plain bytes: compressed, or raw when that would not make them smaller.
    ///
    /// # Errors
    /// When zstd fails.
    pub fn encode<'a>(&'a mut self, plain: &'a [u8]) -> std::io::Result<(Encoding, &'a [u8])> {
        if self.choice.is_some() && pages::has_pages(plain) {
            let mut arranged = std::mem::take(&mut self.arranged);
            arranged.clear();
            arranged.extend_from_slice(plain);
            pages::rearrange(&mut arranged);
            let compressed = self.search_and_compress(&arranged);
            self.arranged = arranged;
            compressed?;
            return Ok(if self.scratch.len() < plain.len() { (Encoding::Pages, &self.scratch) } else { (Encoding::Raw, plain) });
        }
        self.search_and_compress(plain)?;
        if self.scratch.len() < plain.len() { Ok((Encoding::Zstd, &self.scratch)) } else { Ok((Encoding::Raw, plain)) }
    }

    /// Leaves the compressed bytes in `scratch`.
    fn search_and_compress(&mut self, plain: &[u8]) -> std::io::Result<()> {
        self.choose(plain)?;
        self.compress(plain)?;
        if let Some(choice) = &mut self.choice {
            choice.left -= 1;
            let ratio = self.scratch.len().saturating_mul(1 << 20) / plain.len().max(1);
            let first = *choice.ratio.get_or_insert(ratio);
            if ratio.abs_diff(first) > first / TRIAL_DEVIATION {
                choice.left = 0;
            }
        }
        Ok(())
    }

    /// Makes the next frames' search the one that suits this one, when it is time.
    fn choose(&mut self, plain: &[u8]) -> std::io::Result<()> {
        if self.choice.as_ref().is_none_or(|choice| choice.left > 0) {
            return Ok(());
        }
        let sample = &plain[..plain.len().min(TRIAL_BYTES)];
        let mut sizes = [0; SEARCHES.len()];
        for (size, search) in sizes.iter_mut().zip(SEARCHES) {
            self.search(search)?;
            self.compress(sample)?;
            *size = self.scratch.len();
        }
        let best = sizes.iter().min().copied().unwrap_or_default();
        let enough = sizes.iter().position(|&size| size <= best + best * TOLERANCE / 1000).unwrap_or(SEARCHES.len() - 1);
        self.search(SEARCHES[enough])?;
        self.choice = Some(Choice { left: TRIAL_EVERY, ratio: None });
        Ok(())
    }

    fn search(&mut self, search: Search) -> std::io::Result<()> {
        use zstd::zstd_safe::CParameter;
        self.compressor.set_parameter(CParameter::HashLog(search.hash_log))?;
        self.compressor.set_parameter(CParameter::WindowLog(search.window_log))?;
        self.compressor.set_parameter(CParameter::MinMatch(search.min_match))
    }

    fn compress(&mut self, plain: &[u8]) -> std::io::Result<()> {
        self.scratch.clear();
        self.scratch.reserve(zstd::zstd_safe::compress_bound(plain.len()));
        self.compressor.compress_to_buffer(plain, &mut self.scratch)?;
        Ok(())
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
            Encoding::Zstd | Encoding::Delta | Encoding::Pages => {
                plain.reserve(plain_len);
                self.decompressor.decompress_to_buffer(encoded, plain).map_err(|_| WireError::Invalid("frame cannot be decompressed"))?;
            }
        }
        if encoding == Encoding::Pages {
            pages::restore(plain);
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
        fn pages_come_back_and_are_rearranged(rows in 20usize..100, block: u16) {
            let plain: Vec<u8> = (0..20).flat_map(|page| pages::heap_page(u32::from(block) + page, rows, 64)).collect();
            let (mut encoder, mut back) = (Encoder::new(Profile::Pages).unwrap(), Vec::new());
            let (encoding, encoded) = encoder.encode(&plain).unwrap();
            prop_assert_eq!(encoding, Encoding::Pages);
            let mut as_they_are = Encoder::new(Profile::General).unwrap();
            prop_assert!(encoded.len() < as_they_are.encode(&plain).unwrap().1.len());
            Decoder::new().unwrap().decode(encoding, encoded, plain.len(), &mut back).unwrap();
            prop_assert_eq!(&back, &plain);
            // Without the last step it is something else.
            Decoder::new().unwrap().decode(Encoding::Zstd, encoded, plain.len(), &mut back).unwrap();
            prop_assert_ne!(&back, &plain);
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

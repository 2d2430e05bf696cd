//! Cutting bytes into chunks: by content for attachments and dumps. Pages need no code: they are cut at multiples of their size.
//!
//! FastCDC (Xia et al., USENIX ATC 2016, in the 2020 form) with gear tables seeded by a secret of the repository, normalisation
//! level 1, sizes as in `format`.

use std::borrow::Cow;

use fastcdc::v2020::{Normalization, cut_gear, get_gear_with_seed, select_masks};

use crate::repo::format::{CONTENT_AVERAGE, CONTENT_MAX, CONTENT_MIN};

/// Finds content-defined boundaries.
pub struct ContentChunker {
    mask_s: u64,
    mask_l: u64,
    gear: Cow<'static, [u64]>,
    gear_ls: Cow<'static, [u64]>,
}

impl ContentChunker {
    pub fn new(seed: u64) -> Self {
        let (mask_s, mask_l) = select_masks(CONTENT_AVERAGE, Normalization::Level1);
        let (gear, gear_ls) = get_gear_with_seed(seed);
        Self { mask_s, mask_l, gear, gear_ls }
    }

    /// Length of the first chunk of `bytes`, which hold at least [`CONTENT_MAX`] bytes or all that is left.
    pub fn cut(&self, bytes: &[u8]) -> usize {
        if bytes.len() <= CONTENT_MIN {
            return bytes.len();
        }
        let (mask_s_ls, mask_l_ls) = (self.mask_s << 1, self.mask_l << 1);
        cut_gear(
            bytes,
            CONTENT_MIN,
            CONTENT_AVERAGE,
            CONTENT_MAX,
            self.mask_s,
            self.mask_l,
            mask_s_ls,
            mask_l_ls,
            &self.gear,
            &self.gear_ls,
        )
        .1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().update(b"noise").finalize_xof().fill(&mut bytes);
        bytes
    }

    fn cuts(chunker: &ContentChunker, mut bytes: &[u8]) -> Vec<usize> {
        let mut lens = Vec::new();
        while !bytes.is_empty() {
            let len = chunker.cut(&bytes[..bytes.len().min(CONTENT_MAX)]);
            lens.push(len);
            bytes = &bytes[len..];
        }
        lens
    }

    #[test]
    fn boundaries_are_those_of_the_format_page() {
        let lens = cuts(&ContentChunker::new(0x0123_4567_89ab_cdef), &noise(1 << 20));
        assert_eq!(lens.iter().sum::<usize>(), 1 << 20);
        // Golden: a change here is a change of the format.
        assert_eq!(
            lens,
            [
                29_085, 91_378, 61_444, 66_052, 111_568, 104_136, 17_335, 37_917, 85_356, 73_745, 87_357, 98_154, 88_946, 72_229, 17_985,
                5_889
            ]
        );
    }

    #[test]
    fn an_insertion_moves_few_boundaries_and_the_seed_moves_all() {
        let chunker = ContentChunker::new(7);
        let bytes = noise(4 << 20);
        let mut shifted = b"inserted".to_vec();
        shifted.extend_from_slice(&bytes);
        let ends = |lens: &[usize], total: usize| -> std::collections::HashSet<usize> {
            lens.iter()
                .scan(0, |at, len| {
                    *at += len;
                    Some(*at)
                })
                .map(|end| total - end)
                .collect()
        };
        let a = ends(&cuts(&chunker, &bytes), bytes.len());
        let b = ends(&cuts(&chunker, &shifted), shifted.len());
        assert!(a.intersection(&b).count() * 10 > a.len() * 8);
        let other = ends(&cuts(&ContentChunker::new(8), &bytes), bytes.len());
        assert!(a.intersection(&other).count() < a.len() / 2);
    }
}

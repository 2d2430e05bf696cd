//! Data pages: the checksum, and what else a page says about itself.
//!
//! Source: PostgreSQL's `src/include/storage/checksum_impl.h` and `bufpage.h`, the same from 9.3 to 18 (little-endian machines).
//!
//! A page begins with: position of its last change (`pd_lsn`, two u32, high half first), checksum (u16 at 8), flags (u16), lower, upper and special offsets (u16 at
//! 12, 14, 16), size and layout version (u16 at 18), prune xid (u32).

use std::fmt;

use crate::source::postgres::lsn::Lsn;

const LANES: usize = 32;
const PRIME: u32 = 16_777_619;
const HEADER_BYTES: u16 = 24;
/// `PD_VALID_FLAG_BITS`.
const FLAGS: u16 = 0x0007;

/// One FNV-1a basis for each lane, so that equal columns do not cancel each other out.
const BASES: [u32; LANES] = [
    0x5B1F_36E9,
    0xB852_5960,
    0x02AB_50AA,
    0x1DE6_6D2A,
    0x79FF_467A,
    0x9BB9_F8A3,
    0x217E_7CD2,
    0x83E1_3D2C,
    0xF8D4_474F,
    0xE39E_B970,
    0x42C6_AE16,
    0x9932_16FA,
    0x7B09_3B5D,
    0x98DA_FF3C,
    0xF718_902A,
    0x0B1C_9CDB,
    0xE58F_764B,
    0x1876_36BC,
    0x5D7B_3BB1,
    0xE73D_E7DE,
    0x92BE_C979,
    0xCCA6_C0B2,
    0x304A_0979,
    0x85AA_43D4,
    0x7831_25BB,
    0x6CA8_EAA2,
    0xE407_EAC6,
    0x4B5C_FC3E,
    0x9FBF_8C76,
    0x15CA_20BE,
    0xF2CA_9FD3,
    0x959B_D756,
];

/// What a page turns out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageState {
    Valid,
    /// All zeros: allocated and never written.
    New,
    Bad(Damage),
}

/// Why a page is bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    Checksum {
        stored: u16,
        computed: u16,
    },
    /// No page header of this block size, though the checksum may fit.
    Header,
    /// Says that it is unused but is not empty.
    NotEmpty,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Checksum { stored, computed } => write!(f, "checksum {stored:04X} is stored but {computed:04X} is right"),
            Self::Header => f.write_str("its header makes no sense"),
            Self::NotEmpty => f.write_str("its header is empty but its content is not"),
        }
    }
}

/// Position of the last change of a page, as it says itself. `page` has at least 8 bytes.
#[must_use]
pub fn page_lsn(page: &[u8]) -> Lsn {
    Lsn(u64::from(u32_at(page, 0)) << 32 | u64::from(u32_at(page, 4)))
}

/// Judges a whole page (its length is the block size) of a cluster with data checksums. `block`: number in the whole relation fork, over all its segments.
#[must_use]
pub fn check_page(page: &[u8], block: u32) -> PageState {
    let state = check_header(page);
    if matches!(state, PageState::New | PageState::Bad(Damage::NotEmpty)) {
        return state;
    }
    let (stored, computed) = (u16_at(page, 8), checksum(page, block));
    if stored == computed { state } else { PageState::Bad(Damage::Checksum { stored, computed }) }
}

/// Judges a page of a cluster without data checksums, by what its server itself looks at before it uses one.
#[must_use]
pub fn check_header(page: &[u8]) -> PageState {
    if u16_at(page, 14) == 0 {
        return if page.iter().all(|&byte| byte == 0) { PageState::New } else { PageState::Bad(Damage::NotEmpty) };
    }
    if is_sane(page) { PageState::Valid } else { PageState::Bad(Damage::Header) }
}

/// `PD_ALL_VISIBLE`: a page of a table says that everybody sees all its rows. The visibility map may only say so of a page that does (`visibilitymap.c`).
#[must_use]
pub fn is_all_visible(page: &[u8]) -> bool {
    u16_at(page, 10) & 0x0004 != 0
}

/// Where the space at the end of a page begins that belongs to its access method (`pd_special`).
#[must_use]
pub fn special_at(page: &[u8]) -> usize {
    usize::from(u16_at(page, 16))
}

/// The items of a page, `ItemIdData` by `ItemIdData`, with their numbers from 1: those that have content, dead ones too. Of what reaches beyond the page nothing.
pub fn items(page: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let count = usize::from(u16_at(page, 12).saturating_sub(HEADER_BYTES)) / 4;
    (1..).zip(0..count).filter_map(|(number, index)| {
        let pointer = u32_at(page, usize::from(HEADER_BYTES) + 4 * index) as usize;
        let (at, state, length) = (pointer & 0x7FFF, (pointer >> 15) & 3, pointer >> 17);
        // LP_NORMAL, LP_DEAD.
        matches!(state, 1 | 3).then(|| page.get(at..at + length)).flatten().map(|item| (number, item))
    })
}

/// As `PageIsVerified` has it.
fn is_sane(page: &[u8]) -> bool {
    let (flags, lower, upper, special) = (u16_at(page, 10), u16_at(page, 12), u16_at(page, 14), u16_at(page, 16));
    flags & !FLAGS == 0
        && lower >= HEADER_BYTES
        && lower <= upper
        && upper <= special
        && usize::from(special) <= page.len()
        && special.is_multiple_of(8)
}

/// The checksum that a page must hold, 1 ..= 65535; what it holds now does not matter. Its length is a multiple of 128.
#[must_use]
pub fn checksum(page: &[u8], block: u32) -> u16 {
    let mut sums = BASES;
    let mut rows = page.chunks_exact(LANES * 4);
    if let Some(first) = rows.next() {
        let mut row = values(first);
        // The checksum itself counts as zero.
        row[2] &= 0xFFFF_0000;
        mix(&mut sums, &row);
    }
    for row in rows {
        mix(&mut sums, &values(row));
    }
    // Two rounds of zeros mix the last values well.
    mix(&mut sums, &[0; LANES]);
    mix(&mut sums, &[0; LANES]);
    let folded = sums.iter().fold(0, |all, sum| all ^ sum) ^ block;
    u16::try_from(folded % 65_535 + 1).unwrap_or(u16::MAX)
}

#[inline]
fn values(row: &[u8]) -> [u32; LANES] {
    let mut values = [0; LANES];
    for (value, bytes) in values.iter_mut().zip(row.as_chunks::<4>().0) {
        *value = u32::from_le_bytes(*bytes);
    }
    values
}

/// One step of all lanes; the compiler makes vector instructions of it.
#[inline]
fn mix(sums: &mut [u32; LANES], row: &[u32; LANES]) {
    for (sum, value) in sums.iter_mut().zip(row) {
        let mixed = *sum ^ value;
        *sum = mixed.wrapping_mul(PRIME) ^ (mixed >> 17);
    }
}

pub(in crate::source::postgres) fn u16_at(page: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([page[at], page[at + 1]])
}

pub(in crate::source::postgres) fn u32_at(page: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::postgres::layout::RelationFile;
    use crate::source::postgres::test_server::TestServer;
    use std::fs;
    use std::path::Path;

    /// Every relation file below the folder, by its path in the data folder.
    fn relation_files(root: &Path, folder: &Path, found: &mut Vec<(RelationFile, Vec<u8>)>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                relation_files(root, &path, found);
            } else if let Some(file) = RelationFile::parse(path.strip_prefix(root).unwrap().to_str().unwrap().as_bytes()) {
                found.push((file, fs::read(path).unwrap()));
            }
        }
    }

    #[test]
    fn all_pages_of_a_real_cluster_are_valid_and_any_change_is_not() {
        let mut server = TestServer::start(&["-k"], "autovacuum = off");
        server.sql(
            "CREATE TABLE t AS SELECT generate_series(1, 100000) AS a; CREATE INDEX ON t (a); CREATE UNLOGGED TABLE u (a int primary key)",
        );
        server.sql("VACUUM t");
        server.stop("fast");
        let mut files = Vec::new();
        relation_files(server.data(), server.data(), &mut files);
        let (mut pages, mut forks) = (0u32, std::collections::HashSet::new());
        for (file, bytes) in &files {
            assert!(bytes.len().is_multiple_of(8192), "{file:?}");
            for (number, page) in (0..).zip(bytes.chunks(8192)) {
                let block = file.first_block(131_072).unwrap() + number;
                let state = check_page(page, block);
                assert!(matches!(state, PageState::Valid | PageState::New), "{file:?} {block}: {state:?}");
                pages += 1;
                if state == PageState::Valid && pages.is_multiple_of(50) {
                    assert!(page_lsn(page) > Lsn(0));
                    assert!(matches!(check_page(page, block + 1), PageState::Bad(Damage::Checksum { .. })));
                    let mut bad = page.to_vec();
                    bad[(pages as usize * 37) % 8192] ^= 4;
                    assert!(matches!(check_page(&bad, block), PageState::Bad(_)), "{file:?} {block}");
                }
            }
            forks.insert(file.fork);
        }
        assert!(pages > 1500 && forks.len() == 4, "{pages} {forks:?}");
    }

    #[test]
    #[ignore = "a measurement: run with --release and --nocapture"]
    fn speed() {
        let page: Vec<u8> = (0..8192u32).map(|byte| byte.to_le_bytes()[0]).collect();
        let began = std::time::Instant::now();
        let sum = (0..300_000).fold(0u64, |sum, block| sum + u64::from(checksum(std::hint::black_box(&page), block)));
        println!("{:.2} GB/s ({sum})", 300_000.0 * 8192.0 / began.elapsed().as_secs_f64() / 1e9);
    }
}

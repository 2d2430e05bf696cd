//! Pages of PostgreSQL as a compressor likes them: numbers that count up from row to row are written as differences.
//!
//! A search for repetitions does not see that the line pointers of a page go down by the length of a row each, and that each row names its own place.
//! [`rearrange`] replaces such numbers by what they differ from the expected; [`restore`] undoes it. Both go by the same numbers in the same order, and neither
//! needs to know more than the page: together they give back *any* bytes, whether those are a page or only look like one.
//! `docs/format.md` (encoding 3) describes the same in words.
//!
//! Source of the layout: PostgreSQL's documentation, "Database Page Layout"; `bufpage.h`, `itemid.h`, `htup_details.h`, `itup.h`.

/// The only page size there is in practice; blocks of it are counted from the beginning of a frame.
const PAGE: usize = 8192;
/// Bytes of the header, and where line pointers begin.
const HEADER: usize = 24;
/// Size and layout version that a page's header states.
const SIZE_AND_VERSION: u16 = PAGE as u16 | 4;
/// `LP_NORMAL` of a line pointer: it points to something.
const NORMAL: u32 = 1;
/// Where a row's own place is in a heap's row, whose header has [`HEAP_ROW`] bytes.
const HEAP_PLACE: usize = 12;
const HEAP_ROW: usize = 23;
/// An index entry begins with a row's place, and has at least so many bytes.
const INDEX_ENTRY: usize = 8;
/// Rows begin at multiples of this.
const ALIGNMENT: usize = 8;

/// Replaces the numbers of all pages in `frame`. Returns whether there was any page.
pub fn rearrange(frame: &mut [u8]) -> bool {
    let mut any = false;
    for page in frame.as_chunks_mut().0 {
        any |= walk::<true>(page);
    }
    any
}

/// Undoes [`rearrange`].
pub fn restore(frame: &mut [u8]) {
    for page in frame.as_chunks_mut().0 {
        walk::<false>(page);
    }
}

/// Whether `frame` has a page that [`rearrange`] would touch.
pub fn has_pages(frame: &[u8]) -> bool {
    frame.as_chunks().0.iter().any(|page| Layout::of(page).is_some())
}

/// What the header says. It is never changed, so both ways see the same.
struct Layout {
    /// Line pointers.
    count: usize,
    /// Where rows begin, and where they end: the end of the page in a heap, else where the index keeps its own data.
    rows: std::ops::Range<usize>,
}

impl Layout {
    fn of(page: &[u8; PAGE]) -> Option<Self> {
        let (lower, upper, special) = (usize::from(word(page, 12)), usize::from(word(page, 14)), usize::from(word(page, 16)));
        let sound = word(page, 18) == SIZE_AND_VERSION && HEADER <= lower && lower <= upper && upper <= special && special <= PAGE;
        (sound && lower >= HEADER + 4).then(|| Self { count: (lower - HEADER) / 4, rows: upper..special })
    }
}

fn word(page: &[u8; PAGE], at: usize) -> u16 {
    u16::from_le_bytes([page[at], page[at + 1]])
}

/// [`rearrange`]s a page (`FORTH`) or undoes it. Returns whether it is one.
fn walk<const FORTH: bool>(page: &mut [u8; PAGE]) -> bool {
    let Some(layout) = Layout::of(page) else { return false };
    let heap = layout.rows.end == PAGE;
    let (within, needed) = if heap { (HEAP_PLACE, HEAP_ROW) } else { (0, INDEX_ENTRY) };
    // Of the line pointer before; the first row is expected to end where rows do.
    let mut before = layout.rows.end as u32;
    let mut place = [0_u16; 3];
    // Two line pointers to one row: it is changed once.
    let mut seen = [0_u64; PAGE / ALIGNMENT / 64];
    for number in 0..layout.count {
        let at = HEADER + 4 * number;
        let Some(pointer) = page[at..].first_chunk_mut::<4>() else { break };
        let found = u32::from_le_bytes(*pointer);
        // 15 bits offset, 2 bits state, 15 bits length.
        let (state, len) = (found >> 15 & 3, found >> 17);
        if state != NORMAL {
            continue;
        }
        let expected = before.wrapping_sub((len + 7) & !7);
        let other = if FORTH { found.wrapping_sub(expected) } else { found.wrapping_add(expected) } & 0x7fff;
        *pointer = (found & !0x7fff | other).to_le_bytes();
        before = if FORTH { found & 0x7fff } else { other };
        let offset = before as usize;
        if !offset.is_multiple_of(ALIGNMENT) || offset < layout.rows.start || offset + needed > layout.rows.end {
            continue;
        }
        let (slot, bit) = (offset / ALIGNMENT / 64, 1 << (offset / ALIGNMENT % 64));
        if seen[slot] & bit != 0 {
            continue;
        }
        seen[slot] |= bit;
        // Block (high and low word) and line pointer, and two bytes that stay; a row is longer than that. In a heap a row mostly names its own.
        let Some(names) = page[offset + within..].first_chunk_mut::<8>() else { continue };
        let old = u64::from_le_bytes(*names);
        let words = [old as u16, (old >> 16) as u16, (old >> 32) as u16];
        let expected = [place[0], place[1], if heap { number as u16 + 1 } else { place[2] }];
        let turn = |word: u16, expected: u16| if FORTH { word.wrapping_sub(expected) } else { word.wrapping_add(expected) };
        let new = [turn(words[0], expected[0]), turn(words[1], expected[1]), turn(words[2], expected[2])];
        place = if FORTH { words } else { new };
        *names = (old >> 48 << 48 | u64::from(new[2]) << 32 | u64::from(new[1]) << 16 | u64::from(new[0])).to_le_bytes();
    }
    true
}

/// For tests: a page with `rows` rows of `len` bytes that name their own places, as a heap's does.
#[cfg(test)]
pub fn heap_page(block: u32, rows: usize, len: usize) -> Vec<u8> {
    let mut page = vec![0; PAGE];
    let mut upper = PAGE;
    for number in 0..rows {
        upper -= len.next_multiple_of(8);
        let pointer = upper as u32 | NORMAL << 15 | (len as u32) << 17;
        page[HEADER + 4 * number..][..4].copy_from_slice(&pointer.to_le_bytes());
        page[upper + HEAP_PLACE..][..2].copy_from_slice(&((block >> 16) as u16).to_le_bytes());
        page[upper + HEAP_PLACE + 2..][..2].copy_from_slice(&(block as u16).to_le_bytes());
        page[upper + HEAP_PLACE + 4..][..2].copy_from_slice(&(number as u16 + 1).to_le_bytes());
    }
    header(&mut page, HEADER + 4 * rows, upper, PAGE);
    page
}

#[cfg(test)]
fn header(page: &mut [u8], lower: usize, upper: usize, special: usize) {
    for (at, value) in [(12, lower), (14, upper), (16, special), (18, usize::from(SIZE_AND_VERSION))] {
        page[at..at + 2].copy_from_slice(&(value as u16).to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there_and_back(bytes: &[u8]) -> Vec<u8> {
        let mut changed = bytes.to_vec();
        rearrange(&mut changed);
        let between = changed.clone();
        restore(&mut changed);
        assert_eq!(changed, bytes);
        between
    }

    #[test]
    fn what_counts_up_becomes_nothing() {
        let page = heap_page(0x12_3456, 60, 100);
        let between = there_and_back(&page);
        let pointers: Vec<u32> =
            between[HEADER..HEADER + 240].chunks(4).map(|p| u32::from_le_bytes(p.try_into().unwrap()) & 0x7fff).collect();
        assert_eq!(pointers, vec![0; 60]);
        let places: Vec<&[u8]> = (1..=60).map(|row| &between[PAGE - row * 104 + HEAP_PLACE..][..6]).collect();
        assert_eq!(places[0], [0x12, 0, 0x56, 0x34, 0, 0], "the first one's block is kept");
        assert!(places[1..].iter().all(|place| place == &[0; 6]));
    }

    #[test]
    fn an_index_counts_from_entry_to_entry() {
        let special = PAGE - 16;
        let mut page = vec![0; PAGE];
        for row in 0..40 {
            let offset = special - 16 * (row + 1);
            page[HEADER + 4 * row..][..4].copy_from_slice(&(offset as u32 | NORMAL << 15 | 16 << 17).to_le_bytes());
            page[offset + 2] = 7;
            page[offset + 4] = row as u8 + 1;
            page[offset + 8..offset + 16].copy_from_slice(b"some key");
        }
        header(&mut page, HEADER + 160, special - 40 * 16, special);
        let between = there_and_back(&page);
        let entries: Vec<&[u8]> = (1..=40).map(|row| &between[special - 16 * row..][..16]).collect();
        assert_eq!(entries[0], b"\0\0\x07\0\x01\0\0\0some key");
        assert!(entries[1..].iter().all(|entry| entry == b"\0\0\0\0\x01\0\0\0some key"));
    }

    #[test]
    fn other_bytes_stay_as_they_are() {
        for bytes in [vec![], vec![7; 100], vec![0; 3 * PAGE], vec![0xff; 2 * PAGE + 5]] {
            assert_eq!(there_and_back(&bytes), bytes);
            assert!(!has_pages(&bytes));
        }
        let mut frame = [heap_page(1, 3, 64), vec![9; 500]].concat();
        assert!(has_pages(&frame));
        assert!(rearrange(&mut frame));
        assert_eq!(&frame[PAGE..], [9; 500]);
    }

    /// Numbers below `below` from a stream of random bytes.
    fn draw(random: &mut blake3::OutputReader, below: usize) -> usize {
        let mut bytes = [0; 8];
        random.fill(&mut bytes);
        (u64::from_le_bytes(bytes) % below.max(1) as u64) as usize
    }

    #[test]
    fn any_bytes_come_back() {
        let seed = std::env::var("LIFEBOAT_SEED").unwrap_or_else(|_| "81".into());
        println!("LIFEBOAT_SEED={seed}");
        let mut random = blake3::Hasher::new().update(seed.as_bytes()).finalize_xof();
        for round in 0..2000 {
            let mut page = vec![0; PAGE];
            if round % 2 == 0 {
                // Plausible headers; line pointers that overlap, repeat, and point at each other and beyond.
                random.fill(&mut page);
                let lower = HEADER + draw(&mut random, PAGE - HEADER + 1);
                let upper = lower + draw(&mut random, PAGE - lower + 1);
                let special = if round % 4 == 0 { PAGE } else { upper + draw(&mut random, PAGE - upper + 1) };
                header(&mut page, lower, upper, special);
                for pointer in page[HEADER..lower].chunks_exact_mut(4) {
                    if draw(&mut random, 4) > 0 {
                        let value = (draw(&mut random, 1024) as u32 * 8) | (NORMAL << 15) | ((draw(&mut random, 8192) as u32) << 17);
                        pointer.copy_from_slice(&value.to_le_bytes());
                    }
                }
            } else {
                let len = 24 + draw(&mut random, 400);
                let rows = draw(&mut random, (PAGE - HEADER) / (len.next_multiple_of(8) + 4));
                page = heap_page(draw(&mut random, 1 << 32) as u32, rows, len);
                for _ in 0..draw(&mut random, 20) {
                    let at = draw(&mut random, PAGE);
                    page[at] = draw(&mut random, 256) as u8;
                }
            }
            there_and_back(&page);
        }
    }
}

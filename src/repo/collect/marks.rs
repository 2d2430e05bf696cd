//! Which chunks are alive, in little memory: a bit each, by pack, frame and slot, so that no id is kept and no directory is needed.
//!
//! A hundred million pages are 12.5 MB of bits and 8 bytes a frame.
//!
//! Frames and slots are counted from 0, so a single place takes as much memory as its numbers say, and they are what a tree claims: see [`Marks::is_cheap`].

use crate::repo::packs::PackNo;
use crate::repo::tree::Place;

/// Live chunks by their places.
#[derive(Default)]
pub struct Marks {
    /// By number of the pack.
    packs: Vec<Option<Box<PackMarks>>>,
}

/// Live chunks of one pack.
#[derive(Debug, Default)]
pub struct PackMarks {
    /// Of each frame: where its words begin, and how many it has.
    frames: Vec<(u32, u32)>,
    words: Vec<u32>,
    pub chunks: u32,
}

/// Bytes that the marks of a pack may take, whatever is in it, and for each chunk that is marked.
const FREE_BYTES: u64 = 1024;
const BYTES_A_CHUNK: u64 = 64;

impl Marks {
    /// Whether marking a chunk takes no more memory than so many marks should. Of others, it must be known first that the pack has them.
    pub fn is_cheap(&self, place: Place<PackNo>) -> bool {
        let none = PackMarks::default();
        let pack = self.pack(place.pack).unwrap_or(&none);
        let frames = u64::from(place.frame).saturating_add(1).max(pack.frames.len() as u64);
        let (_, len) = pack.frames.get(place.frame as usize).copied().unwrap_or_default();
        let more = if place.slot / 32 < len { 0 } else { words_for(place.slot / 32, len) };
        frames * 8 + (pack.words.len() as u64 + u64::from(more)) * 4 <= FREE_BYTES + BYTES_A_CHUNK * (u64::from(pack.chunks) + 1)
    }

    /// Marks a chunk; `true` when it was not marked before.
    pub fn set(&mut self, place: Place<PackNo>) -> bool {
        let at = place.pack.0 as usize;
        if self.packs.len() <= at {
            self.packs.resize_with(at + 1, || None);
        }
        let pack = self.packs[at].get_or_insert_default();
        let new = pack.set(place.frame as usize, place.slot);
        if new {
            pack.chunks += 1;
        }
        new
    }

    /// What is alive in a pack; `None`: nothing.
    pub fn pack(&self, pack: PackNo) -> Option<&PackMarks> {
        self.packs.get(pack.0 as usize)?.as_deref()
    }

    /// Numbers of all packs in which something is alive.
    pub fn packs(&self) -> impl Iterator<Item = PackNo> {
        self.packs.iter().enumerate().filter(|(_, marks)| marks.is_some()).map(|(number, _)| PackNo(number as u32))
    }

    /// Bytes of memory.
    #[cfg(test)]
    pub fn memory_bytes(&self) -> usize {
        let pack = |marks: &Option<Box<PackMarks>>| {
            marks.as_ref().map_or(0, |m| size_of::<PackMarks>() + m.frames.capacity() * 8 + m.words.capacity() * 4)
        };
        self.packs.capacity() * 8 + self.packs.iter().map(pack).sum::<usize>()
    }
}

/// How many words a frame that has `len` gets so that it has this one.
fn words_for(word: u32, len: u32) -> u32 {
    (word + 1).max(len * 2)
}

impl PackMarks {
    fn set(&mut self, frame: usize, slot: u32) -> bool {
        if self.frames.len() <= frame {
            self.frames.resize(frame + 1, (0, 0));
        }
        let (mut start, mut len) = self.frames[frame];
        let word = slot / 32;
        if word >= len {
            let more = words_for(word, len);
            if len > 0 && start + len == self.words.len() as u32 {
                self.words.resize((start + more) as usize, 0);
            } else {
                let old = start as usize..(start + len) as usize;
                start = self.words.len() as u32;
                self.words.extend_from_within(old);
                self.words.resize((start + more) as usize, 0);
            }
            len = more;
            self.frames[frame] = (start, len);
        }
        let word = &mut self.words[(start + word) as usize];
        let new = *word >> (slot % 32) & 1 == 0;
        *word |= 1 << (slot % 32);
        new
    }

    /// Whether a chunk is alive.
    pub fn has(&self, frame: usize, slot: u32) -> bool {
        self.frames
            .get(frame)
            .is_some_and(|(start, len)| slot / 32 < *len && self.words[(start + slot / 32) as usize] >> (slot % 32) & 1 == 1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn holds_exactly_what_was_set(places in proptest::collection::vec((0u32..3, 0u32..5, 0u32..300), 0..400)) {
            let mut marks = Marks::default();
            let mut naive = HashSet::new();
            for (pack, frame, slot) in places {
                prop_assert_eq!(marks.set(Place { pack: PackNo(pack), frame, slot }), naive.insert((pack, frame, slot)));
            }
            for pack in 0..4 {
                let of_pack = naive.iter().filter(|(p, ..)| *p == pack).count();
                prop_assert_eq!(marks.pack(PackNo(pack)).map_or(0, |m| m.chunks as usize), of_pack);
                for frame in 0..6 {
                    for slot in 0..310 {
                        let there = marks.pack(PackNo(pack)).is_some_and(|m| m.has(frame as usize, slot));
                        prop_assert_eq!(there, naive.contains(&(pack, frame, slot)));
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_claimed_to_be_far_behind_is_not_cheap() {
        let place = |frame, slot| Place { pack: PackNo(0), frame, slot };
        let mut marks = Marks::default();
        for (frame, slot) in [(u32::MAX, 0), (0, u32::MAX), (u32::MAX, u32::MAX), (200, 0), (0, 10_000)] {
            assert!(!marks.is_cheap(place(frame, slot)), "{frame} {slot}");
        }
        // What packs are like, in any order: a pack of pages, one of small chunks, one of what compresses well.
        for (frames, slots) in [(40, 128), (3, 40_000), (5_000, 64)] {
            let mut places: Vec<(u32, u32)> = (0..frames).flat_map(|frame| (0..slots).map(move |slot| (frame, slot))).collect();
            for reversed in [false, true] {
                marks = Marks::default();
                for (frame, slot) in &places {
                    assert!(reversed || marks.is_cheap(place(*frame, *slot)), "{frame} {slot}");
                    marks.set(place(*frame, *slot));
                }
                assert_eq!(marks.pack(PackNo(0)).unwrap().chunks, frames * slots);
                places.reverse();
            }
        }
    }

    /// 800 GB of pages and as many chunks cut by content; `cargo test --release --lib million_chunks -- --ignored --nocapture` measures the process too.
    #[test]
    #[ignore = "takes seconds; for docs/measurements.md"]
    fn a_hundred_million_chunks_take_little_memory() {
        for (name, slots, frames) in [("pages of 8 KiB", 128u32, 40u32), ("chunks of 64 KiB", 16, 40)] {
            let mut marks = Marks::default();
            let packs = 100_000_000 / (slots * frames);
            for pack in 0..packs {
                for frame in 0..frames {
                    for slot in 0..slots {
                        marks.set(Place { pack: PackNo(pack), frame, slot });
                    }
                }
            }
            let resident = std::fs::read_to_string("/proc/self/status").unwrap();
            let resident = resident.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default();
            println!("{name}: {packs} packs, {} MiB of marks, {resident}", marks.memory_bytes() >> 20);
            assert!(marks.memory_bytes() < 160 << 20);
        }
    }
}

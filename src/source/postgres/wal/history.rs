//! Histories of timelines: which timeline left which one, and where.
//!
//! Source: `src/backend/access/transam/timeline.c`. A history file has one line for each ancestor, oldest first: its timeline (decimal), where it was left
//! (position), why; separated by white space. `#` begins a comment.

use crate::error::{Error, Kind, Result};
use crate::source::postgres::lsn::Lsn;

/// One ancestor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ancestor {
    pub timeline: u32,
    /// The first byte that this timeline does not share with its descendant.
    pub left_at: Lsn,
}

/// Where two ways part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parting {
    /// The last timeline that both are on.
    pub from: u32,
    pub at: Lsn,
    /// The next one on the way to the younger timeline.
    pub to: u32,
}

/// A timeline and its ancestors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineHistory {
    timeline: u32,
    /// Oldest first; timelines and positions rise.
    ancestors: Vec<Ancestor>,
}

impl TimelineHistory {
    /// Timeline 1, or any other without ancestors.
    #[must_use]
    pub fn first(timeline: u32) -> Self {
        Self { timeline, ancestors: Vec::new() }
    }

    /// Reads the history file of `timeline`.
    ///
    /// # Errors
    /// [`Kind::Damaged`] when it is not as a server writes it.
    pub fn parse(timeline: u32, text: &str) -> Result<Self> {
        let damaged =
            |line: usize| Error::new(Kind::Damaged, format!("history file {timeline:08X}.history makes no sense in line {}", line + 1));
        let mut ancestors: Vec<Ancestor> = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim_start();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let mut words = line.split_whitespace();
            let ancestor = words.next().and_then(|word| word.parse().ok()).zip(words.next().and_then(|word| word.parse().ok()));
            let Some((ancestor, left_at)) = ancestor else { return Err(damaged(number)) };
            let rises = ancestors.last().is_none_or(|last| last.timeline < ancestor && last.left_at <= left_at);
            if !rises || ancestor == 0 || ancestor >= timeline {
                return Err(damaged(number));
            }
            ancestors.push(Ancestor { timeline: ancestor, left_at });
        }
        Ok(Self { timeline, ancestors })
    }

    /// The youngest timeline.
    #[must_use]
    pub fn timeline(&self) -> u32 {
        self.timeline
    }

    /// Oldest first, without the timeline itself.
    #[must_use]
    pub fn ancestors(&self) -> &[Ancestor] {
        &self.ancestors
    }

    /// The timeline that the byte at `lsn` is of, on the way to this one. The segment file that holds a switch exists on both; the younger one is
    /// complete.
    #[must_use]
    pub fn timeline_at(&self, lsn: Lsn) -> u32 {
        self.ancestors.iter().find(|ancestor| lsn < ancestor.left_at).map_or(self.timeline, |ancestor| ancestor.timeline)
    }

    /// Where a timeline was left on the way to this one; `None` for this one itself and for strangers.
    #[must_use]
    pub fn left_at(&self, timeline: u32) -> Option<Lsn> {
        self.ancestors.iter().find(|ancestor| ancestor.timeline == timeline).map(|ancestor| ancestor.left_at)
    }

    /// Where the way to this timeline left the one that `timeline` is on, when what that has from `start` on is not on the way. `None`: it is; or the
    /// history does not reach back so far that it could tell.
    #[must_use]
    pub fn parted(&self, timeline: u32, start: Lsn) -> Option<Parting> {
        if timeline >= self.timeline {
            return None;
        }
        // A timeline that is no ancestor is younger than the ancestor that it came from.
        let older = self.ancestors.partition_point(|ancestor| ancestor.timeline <= timeline);
        let last = self.ancestors.get(older.checked_sub(1)?)?;
        let to = self.ancestors.get(older).map_or(self.timeline, |next| next.timeline);
        (last.timeline != timeline || start >= last.left_at).then_some(Parting { from: last.timeline, at: last.left_at, to })
    }

    /// Up to where the ways to two timelines are one.
    #[must_use]
    pub fn shared_with(&self, other: &Self) -> Lsn {
        let way = |history: &Self| {
            let own = (history.timeline, Lsn(u64::MAX));
            history.ancestors.iter().map(|ancestor| (ancestor.timeline, ancestor.left_at)).chain([own]).collect::<Vec<_>>()
        };
        let mut shared = Lsn(0);
        for ((timeline, to), (other_timeline, other_to)) in way(self).into_iter().zip(way(other)) {
            if timeline != other_timeline {
                break;
            }
            shared = to.min(other_to);
            if to != other_to {
                break;
            }
        }
        shared
    }

    /// Whether what was written on `timeline` before `end` is part of this history.
    #[must_use]
    pub fn contains(&self, timeline: u32, end: Lsn) -> bool {
        timeline == self.timeline || self.left_at(timeline).is_some_and(|left_at| end <= left_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_with_two_ancestors() {
        let text = "1\t0/A000198\tno recovery target specified\n# note\n\n3\t0/C0000A0\tat restore point \"x\"\n";
        let history = TimelineHistory::parse(4, text).unwrap();
        let lsn = |text: &str| text.parse::<Lsn>().unwrap();
        assert_eq!(history.ancestors().len(), 2);
        for (at, timeline) in [("0/1", 1), ("0/A000197", 1), ("0/A000198", 3), ("0/C00009F", 3), ("0/C0000A0", 4), ("F/0", 4)] {
            assert_eq!(history.timeline_at(lsn(at)), timeline, "{at}");
        }
        assert!(history.contains(1, lsn("0/A000198")) && !history.contains(1, lsn("0/A000199")));
        assert!(!history.contains(2, lsn("0/1")) && history.contains(4, lsn("F/0")));
        assert_eq!(TimelineHistory::first(1).timeline_at(lsn("0/5")), 1);
    }

    #[test]
    fn ways_part_where_a_timeline_was_left() {
        let history = TimelineHistory::parse(5, "1\t0/A0\tx\n3\t0/C0\tx\n").unwrap();
        let parted = |timeline, start| history.parted(timeline, Lsn(start)).map(|parting| (parting.from, parting.at.0, parting.to));
        assert_eq!((parted(1, 0x9f), parted(1, 0xa0)), (None, Some((1, 0xa0, 3))));
        assert_eq!((parted(3, 0xbf), parted(3, 0xc0)), (None, Some((3, 0xc0, 5))));
        assert_eq!((parted(2, 0x10), parted(4, 0xff)), (Some((1, 0xa0, 3)), Some((3, 0xc0, 5))), "no ancestors");
        assert_eq!((parted(5, 0xff), parted(6, 0xff)), (None, None));
        let short = TimelineHistory::parse(5, "3\t0/C0\tx\n").unwrap();
        assert_eq!((short.parted(1, Lsn(0xff)), short.parted(4, Lsn(0)).map(|parting| parting.to)), (None, Some(5)));
    }

    #[test]
    fn two_ways_are_one_up_to_where_the_first_of_them_goes_another() {
        let of = |timeline, text: &str| TimelineHistory::parse(timeline, text).unwrap();
        let (two, three, four) = (of(2, "1\t0/50\tx\n"), of(3, "1\t0/90\tx\n"), of(4, "1\t0/50\tx\n2\t0/70\tx\n"));
        let shared = |one: &TimelineHistory, other: &TimelineHistory| {
            assert_eq!(one.shared_with(other), other.shared_with(one));
            one.shared_with(other).0
        };
        assert_eq!((shared(&TimelineHistory::first(1), &two), shared(&two, &three), shared(&two, &four)), (0x50, 0x50, 0x70));
        assert_eq!((shared(&three, &four), shared(&four, &four)), (0x50, u64::MAX));
        assert_eq!(shared(&TimelineHistory::first(7), &two), 0, "strangers");
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["1", "x 0/1 y", "1 01 y", "4 0/1 y", "2 0/5 a\n1 0/6 b", "1 0/5 a\n2 0/4 b", "0 0/1 z"] {
            assert_eq!(TimelineHistory::parse(4, text).unwrap_err().kind(), Kind::Damaged, "{text}");
        }
    }
}

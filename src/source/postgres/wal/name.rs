//! Names of files in `pg_wal`.
//!
//! Source: `src/include/access/xlog_internal.h`.

use std::fmt;

use crate::error::{Error, Kind, Result};
use crate::source::postgres::lsn::Lsn;

/// Size of the log's files, fixed for a cluster: a power of two from 1 MiB to 1 GiB, usually 16 MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentSize(u32);

impl SegmentSize {
    /// # Errors
    /// [`Kind::Damaged`] for a size that no server has.
    pub fn new(bytes: u64) -> Result<Self> {
        match u32::try_from(bytes) {
            Ok(size) if size.is_power_of_two() && (1 << 20..=1 << 30).contains(&size) => Ok(Self(size)),
            _ => Err(Error::new(Kind::Damaged, format!("WAL segments of {bytes} bytes are impossible"))),
        }
    }

    #[must_use]
    pub fn bytes(self) -> u32 {
        self.0
    }

    /// Number of the segment that holds the byte at `lsn`.
    #[must_use]
    pub fn number(self, lsn: Lsn) -> u64 {
        lsn.0 / u64::from(self.0)
    }

    /// Number of the segment that holds the last byte before `end`; of the first segment for 0.
    #[must_use]
    pub fn number_before(self, end: Lsn) -> u64 {
        self.number(Lsn(end.0.saturating_sub(1)))
    }

    /// Position of a segment's first byte; stays at the greatest position.
    #[must_use]
    pub fn start(self, number: u64) -> Lsn {
        Lsn(number.saturating_mul(u64::from(self.0)))
    }

    /// Bytes from the beginning of its segment.
    #[must_use]
    pub fn offset(self, lsn: Lsn) -> u32 {
        // Below the segment size, which is a u32.
        u32::try_from(lsn.0 % u64::from(self.0)).unwrap_or(0)
    }

    /// How many segments share the middle part of a name.
    fn per_log(self) -> u64 {
        (1 << 32) / u64::from(self.0)
    }
}

/// A name of a file in `pg_wal` that belongs into an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WalName {
    /// `000000010000000A000000FE`; the number counts segments from position 0.
    Segment { timeline: u32, number: u64 },
    /// `….partial`: what a server that was promoted leaves of the last segment of the old timeline; also an unfinished one of a receiver.
    Partial { timeline: u32, number: u64 },
    /// `00000002.history`.
    History { timeline: u32 },
    /// `….00000028.backup`: where a base backup began (offset in its segment).
    Backup { timeline: u32, number: u64, offset: u32 },
}

impl WalName {
    /// Reads a name. `None`: no such name, or one that a cluster with this segment size cannot have.
    #[must_use]
    pub fn parse(name: &str, size: SegmentSize) -> Option<Self> {
        if let Some(timeline) = name.strip_suffix(".history") {
            return Some(Self::History { timeline: hex(timeline)? }).filter(|found| found.timeline() > 0);
        }
        let (stem, rest) = name.split_once('.').map_or((name, None), |(stem, rest)| (stem, Some(rest)));
        if stem.len() != 24 || !stem.is_ascii() {
            return None;
        }
        let (timeline, log, segment) = (hex(&stem[..8])?, hex(&stem[8..16])?, hex(&stem[16..])?);
        if timeline == 0 || u64::from(segment) >= size.per_log() {
            return None;
        }
        let number = u64::from(log) * size.per_log() + u64::from(segment);
        match rest {
            None => Some(Self::Segment { timeline, number }),
            Some("partial") => Some(Self::Partial { timeline, number }),
            Some(rest) => {
                let offset = hex(rest.strip_suffix(".backup")?)?;
                (offset < size.bytes()).then_some(Self::Backup { timeline, number, offset })
            }
        }
    }

    #[must_use]
    pub fn timeline(&self) -> u32 {
        match *self {
            Self::Segment { timeline, .. }
            | Self::Partial { timeline, .. }
            | Self::History { timeline }
            | Self::Backup { timeline, .. } => timeline,
        }
    }

    /// The name in a cluster with this segment size.
    #[must_use]
    pub fn text(&self, size: SegmentSize) -> String {
        let stem = |timeline: u32, number: u64| Stem { timeline, log: number / size.per_log(), segment: number % size.per_log() };
        match *self {
            Self::Segment { timeline, number } => stem(timeline, number).to_string(),
            Self::Partial { timeline, number } => format!("{}.partial", stem(timeline, number)),
            Self::History { timeline } => format!("{timeline:08X}.history"),
            Self::Backup { timeline, number, offset } => format!("{}.{offset:08X}.backup", stem(timeline, number)),
        }
    }
}

struct Stem {
    timeline: u32,
    log: u64,
    segment: u64,
}

impl fmt::Display for Stem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08X}{:08X}{:08X}", self.timeline, self.log, self.segment)
    }
}

/// Eight upper-case hexadecimal digits.
fn hex(text: &str) -> Option<u32> {
    let is_hex = text.len() == 8 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'A'..=b'F'));
    is_hex.then(|| u32::from_str_radix(text, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_the_servers() {
        let size = SegmentSize::new(16 << 20).unwrap();
        let segment = WalName::Segment { timeline: 1, number: 0xA * 256 + 0xFE };
        assert_eq!(WalName::parse("000000010000000A000000FE", size), Some(segment));
        assert_eq!(size.start(0xA * 256 + 0xFE), "A/FE000000".parse().unwrap());
        assert_eq!(WalName::parse("000000010000000A000000FE.partial", size).unwrap(), WalName::Partial { timeline: 1, number: 2814 });
        assert_eq!(WalName::parse("0000000C.history", size), Some(WalName::History { timeline: 12 }));
        assert_eq!(
            WalName::parse("000000010000000A000000FE.00000028.backup", size),
            Some(WalName::Backup { timeline: 1, number: 2814, offset: 0x28 })
        );
        for name in [
            "",
            "000000010000000A00000100",
            "000000000000000A000000FE",
            "000000010000000a000000fe",
            "000000010000000A000000FE.tmp",
            "00000000.history",
            "000000010000000A000000FE.02000000.backup",
            "archive_status",
            "00000001000000\u{e9}A00000FE",
            "000000010000000A000000FE.00000028.backup.x",
        ] {
            assert_eq!(WalName::parse(name, size), None, "{name}");
        }
        let boundary = Lsn(32 << 20);
        assert_eq!((size.number(boundary), size.number_before(boundary), size.offset(boundary)), (2, 1, 0));
        assert!(SegmentSize::new(3 << 20).is_err() && SegmentSize::new(1 << 19).is_err() && SegmentSize::new(u64::MAX).is_err());
    }

    proptest! {
        #[test]
        fn names_come_back(timeline in 1u32.., position: u64, power in 20u32..=30, offset: u32, kind in 0..4) {
            let size = SegmentSize::new(1 << power).unwrap();
            let number = size.number(Lsn(position));
            let name = match kind {
                0 => WalName::Segment { timeline, number },
                1 => WalName::Partial { timeline, number },
                2 => WalName::History { timeline },
                _ => WalName::Backup { timeline, number, offset: offset % size.bytes() },
            };
            prop_assert_eq!(WalName::parse(&name.text(size), size), Some(name));
        }
    }
}

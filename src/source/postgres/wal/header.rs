//! What a segment file says of itself, at its very beginning.

use crate::error::{Error, Kind, Result};
use crate::source::postgres::lsn::Lsn;
use crate::source::postgres::wal::name::SegmentSize;
use crate::source::postgres::wal::reader::{IS_LONG, MAGICS, PAGE_BYTES};
use crate::source::postgres::wal::record::{u16_at, u32_at, u64_at};

/// The long header of a segment's first page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Of the page: the first segment of a timeline begins with pages of an older one.
    pub timeline: u32,
    /// Of the page.
    pub position: Lsn,
    pub system_identifier: u64,
    pub segment: SegmentSize,
}

impl SegmentHeader {
    /// Reads it from the beginning of a file.
    ///
    /// # Errors
    /// [`Kind::Failed`] when it is none that a supported server writes.
    pub fn read(bytes: &[u8]) -> Result<Self> {
        let none = |why: String| Error::new(Kind::Failed, format!("it does not begin as a segment of the log does: {why}"));
        let field = |value: Option<u32>| value.ok_or_else(|| none("it is too short".into()));
        let wide = |value: Option<u64>| value.ok_or_else(|| none("it is too short".into()));
        let magic = u16_at(bytes, 0).ok_or_else(|| none("it is too short".into()))?;
        if !MAGICS.contains(&magic) {
            return Err(none(format!("its page format {magic:04X} is not one of PostgreSQL 14 to 18")));
        }
        if u16_at(bytes, 2).is_none_or(|flags| flags & IS_LONG == 0) {
            return Err(none("its first page has no long header".into()));
        }
        let size = field(u32_at(bytes, 32))?;
        if field(u32_at(bytes, 36))? != PAGE_BYTES {
            return Err(none("its pages are not of 8 KiB".into()));
        }
        Ok(Self {
            timeline: field(u32_at(bytes, 4))?,
            position: Lsn(wide(u64_at(bytes, 8))?),
            system_identifier: wide(u64_at(bytes, 24))?,
            segment: SegmentSize::new(u64::from(size)).map_err(|_| none(format!("segments of {size} bytes are impossible")))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(0xD118_u16.to_le_bytes());
        bytes.extend(2_u16.to_le_bytes());
        bytes.extend(3_u32.to_le_bytes());
        bytes.extend((7_u64 << 24).to_le_bytes());
        bytes.extend([0; 8]);
        bytes.extend(7_777_777_777_777_777_777_u64.to_le_bytes());
        bytes.extend((16_u32 << 20).to_le_bytes());
        bytes.extend(8192_u32.to_le_bytes());
        bytes
    }

    #[test]
    fn a_header_is_read_and_anything_else_is_not() {
        let read = SegmentHeader::read(&header()).unwrap();
        assert_eq!((read.timeline, read.position, read.segment.bytes()), (3, Lsn(7 << 24), 16 << 20));
        assert_eq!(read.system_identifier, 7_777_777_777_777_777_777);
        for (at, value) in [(0, 1), (2, 0), (33, 1), (37, 0)] {
            let mut other = header();
            other[at] = value;
            assert_eq!(SegmentHeader::read(&other).unwrap_err().kind(), Kind::Failed, "byte {at}");
        }
        for length in 0..header().len() {
            assert!(SegmentHeader::read(&header()[..length]).is_err(), "{length} bytes");
        }
    }
}

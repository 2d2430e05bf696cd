//! Reading the log: records out of a contiguous run of bytes, checked as the server checks them when it recovers.
//!
//! Owns the page format (headers, continued records, padding, switches) and finding the exact end of what is valid. Does no I/O: bytes are
//! pushed in pieces of any size. Holds one record's interesting part in memory at most (16 MiB).
//!
//! Source: `src/backend/access/transam/xlogreader.c`, `access/xlog_internal.h`. Each page of 8 KiB begins with a header, little endian: magic (u16, by major version), flags
//! (u16: 1 continues a record, 2 long header, 4 may be left out, 8 the continued record was given up), timeline (u32), its own position (u64), bytes
//! left of the continued record (u32), 4 unused; on the first page of a segment file also the system identifier (u64), segment size and page size (u32 each).
//! Records begin at multiples of 8 and run on over page ends.

use std::collections::BTreeSet;
use std::fmt;

use crc_fast::{CrcAlgorithm, Digest};

use crate::error::{Error, Kind, Result};
use crate::source::postgres::lsn::Lsn;
use crate::source::postgres::wal::name::SegmentSize;
use crate::source::postgres::wal::record::{
    BLOCK_HEADERS_MAX, HEADER_BYTES, Header, Meaning, Record, databases, meaning, u16_at, u32_at, u64_at,
};

/// Of all builds in use.
pub const PAGE_BYTES: u32 = 8192;
const PAGE: u64 = PAGE_BYTES as u64;
const SHORT_HEADER: usize = 24;
const LONG_HEADER: usize = 40;
const IS_CONTINUATION: u16 = 1;
pub const IS_LONG: u16 = 2;
const IS_OVERWRITE: u16 = 8;
const ALL_FLAGS: u16 = 15;
/// Page magics of PostgreSQL 14, 15, 16, 17, 18.
pub const MAGICS: [u16; 5] = [0xD10D, 0xD110, 0xD113, 0xD116, 0xD118];
/// Greatest record: what a server can allocate at once (`MaxAllocSize`).
const RECORD_MAX: u32 = 0x3FFF_FFFF;
/// How much of an interesting record is kept.
const KEPT_MAX: usize = 16 << 20;
/// Resource managers: the server's own, with room for a few more, and those of extensions.
const OWN_MANAGERS_MAX: u8 = 31;
const CUSTOM_MANAGERS_MIN: u8 = 128;

/// Why the log ends where it ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// Nothing was ever written here: zeros.
    Empty,
    /// The page belongs to this other position: a reused file whose old content begins here.
    OldPage(Lsn),
    /// The log of another cluster.
    OtherServer(u64),
    /// Page format of a version that is not supported.
    UnknownVersion(u16),
    /// The server ran with `wal_level = minimal` from there on, and wrote data that is in no log: a recovery refuses to go on.
    Minimal,
    /// Anything else that is not valid: torn by a crash, the end of a reused file, or damage.
    Invalid(&'static str),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("nothing was written there"),
            Self::OldPage(at) => write!(f, "a page of {at} is there"),
            Self::OtherServer(identifier) => write!(f, "it is of another cluster, with system identifier {identifier}"),
            Self::Minimal => f.write_str("the server ran with wal_level = minimal from there on"),
            Self::UnknownVersion(magic) => write!(f, "its page format {magic:04X} is unknown"),
            Self::Invalid(what) => f.write_str(what),
        }
    }
}

/// Where a log ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// End of the last valid record: recovery can get here and no further.
    pub at: Lsn,
    /// Where the page or record that is not valid begins.
    pub found_at: Lsn,
    pub why: Why,
}

/// Reads records from one contiguous run of log.
pub struct WalReader {
    segment: SegmentSize,
    system_identifier: Option<u64>,
    magic: Option<u16>,
    timeline: u32,
    /// Of the next byte to be pushed.
    position: Lsn,
    /// Bytes before this are passed over.
    skip_to: Lsn,
    page_header: Vec<u8>,
    page_is_open: bool,
    state: State,
    record: Partial,
    /// Start of the last valid record.
    last: Option<Lsn>,
    valid_end: Lsn,
    end: Option<End>,
    /// Databases that were copied.
    copied: BTreeSet<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Looking for the first record that begins here, behind the rest of one that does not.
    Seeking,
    Between,
    InRecord,
}

/// A record being put together.
struct Partial {
    start: Lsn,
    timeline: u32,
    fixed: [u8; HEADER_BYTES],
    fixed_bytes: usize,
    header: Option<Header>,
    body_bytes: u64,
    crc: Digest,
    kept: Vec<u8>,
}

impl Partial {
    /// Header included; known from its first four bytes on.
    fn total(&self) -> u64 {
        u64::from(u32_at(&self.fixed, 0).unwrap_or(0))
    }

    fn left(&self) -> u64 {
        self.total().saturating_sub(self.body_bytes).saturating_sub(u64::try_from(self.fixed_bytes).unwrap_or(0))
    }
}

impl WalReader {
    /// Begins at the start of a page (usually of a segment); a record that began before is passed over. With `system_identifier`, pages of other clusters end
    /// the log.
    ///
    /// # Errors
    /// [`Kind::Bug`] when `start` is no multiple of 8192.
    pub fn new(start: Lsn, segment: SegmentSize, system_identifier: Option<u64>) -> Result<Self> {
        if !start.0.is_multiple_of(PAGE) {
            return Err(Error::new(Kind::Bug, format!("log read from {start}, which is no start of a page")));
        }
        Ok(Self {
            segment,
            system_identifier,
            magic: None,
            timeline: 0,
            position: start,
            skip_to: start,
            page_header: Vec::with_capacity(LONG_HEADER),
            page_is_open: false,
            state: State::Seeking,
            record: Partial {
                start,
                timeline: 0,
                fixed: [0; HEADER_BYTES],
                fixed_bytes: 0,
                header: None,
                body_bytes: 0,
                crc: Digest::new(CrcAlgorithm::Crc32Iscsi),
                kept: Vec::new(),
            },
            last: None,
            valid_end: start,
            end: None,
            copied: BTreeSet::new(),
        })
    }

    /// Position of the next byte to be pushed.
    #[must_use]
    pub fn position(&self) -> Lsn {
        self.position
    }

    /// End of the last valid record so far (the start, before any); what follows may be the beginning of the next one.
    #[must_use]
    pub fn valid_end(&self) -> Lsn {
        self.valid_end
    }

    /// Of the last page that was begun; 0 before.
    #[must_use]
    pub fn timeline(&self) -> u32 {
        self.timeline
    }

    /// Where and why nothing more can be read, once that is known. Bytes pushed afterwards are ignored.
    #[must_use]
    pub fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    /// Takes the bytes that follow and hands out every record that they complete, in order.
    pub fn push(&mut self, mut bytes: &[u8], mut each: impl FnMut(Record)) {
        while !bytes.is_empty() && self.end.is_none() {
            if self.position < self.skip_to {
                let length = clamp(self.skip_to.since(self.position), bytes.len());
                self.advance(&mut bytes, length);
            } else if !self.page_is_open {
                self.take_page_header(&mut bytes);
            } else {
                let in_page = clamp(PAGE - self.position.0 % PAGE, bytes.len());
                self.take_record(&mut bytes, in_page, &mut each);
            }
        }
    }

    fn advance<'a>(&mut self, bytes: &mut &'a [u8], length: usize) -> &'a [u8] {
        let (taken, rest) = bytes.split_at(length);
        *bytes = rest;
        self.position = self.position.plus(u64::try_from(length).unwrap_or(0));
        if self.position.0.is_multiple_of(PAGE) && length > 0 {
            self.page_is_open = false;
        }
        taken
    }

    fn stop(&mut self, found_at: Lsn, why: Why) {
        self.end = Some(End { at: self.valid_end, found_at, why });
    }

    fn take_page_header(&mut self, bytes: &mut &[u8]) {
        let have = self.page_header.len();
        let is_long = u16_at(&self.page_header, 2).is_some_and(|flags| flags & IS_LONG != 0);
        let wanted = if have >= SHORT_HEADER && is_long { LONG_HEADER } else { SHORT_HEADER };
        let length = bytes.len().min(wanted - have);
        let taken = self.advance(bytes, length);
        self.page_header.extend_from_slice(taken);
        let complete = match self.page_header.len() {
            LONG_HEADER => true,
            SHORT_HEADER => u16_at(&self.page_header, 2).is_some_and(|flags| flags & IS_LONG == 0),
            _ => false,
        };
        if complete {
            let header = std::mem::take(&mut self.page_header);
            let page = Lsn(self.position.0 - u64::try_from(header.len()).unwrap_or(0));
            match self.open_page(page, &header) {
                Ok(()) => self.page_is_open = true,
                Err(why) => self.stop(page, why),
            }
            self.page_header = header;
            self.page_header.clear();
        }
    }

    /// Checks a page header and decides how its first bytes are to be read.
    fn open_page(&mut self, page: Lsn, header: &[u8]) -> std::result::Result<(), Why> {
        // Complete, so every field is there.
        let field = |at: usize| u32_at(header, at).unwrap_or(0);
        let (magic, flags) = (u16_at(header, 0).unwrap_or(0), u16_at(header, 2).unwrap_or(0));
        if header.iter().all(|&byte| byte == 0) {
            return Err(Why::Empty);
        }
        if !MAGICS.contains(&magic) {
            return Err(Why::UnknownVersion(magic));
        }
        if self.magic.is_some_and(|known| known != magic) {
            return Err(Why::Invalid("the page is of another server version"));
        }
        if flags & !ALL_FLAGS != 0 {
            return Err(Why::Invalid("the page header has unknown flags"));
        }
        if flags & IS_LONG != 0 {
            let identifier = u64_at(header, 24).unwrap_or(0);
            if self.system_identifier.is_some_and(|ours| ours != identifier) {
                return Err(Why::OtherServer(identifier));
            }
            if field(32) != self.segment.bytes() {
                return Err(Why::Invalid("the page header names another segment size"));
            }
            if field(36) != PAGE_BYTES {
                return Err(Why::Invalid("the page header names another page size"));
            }
        } else if self.segment.offset(page) == 0 {
            return Err(Why::Invalid("the first page of a segment lacks its long header"));
        }
        let address = Lsn(u64_at(header, 8).unwrap_or(0));
        if address != page {
            return Err(Why::OldPage(address));
        }
        let timeline = field(4);
        if timeline == 0 || timeline < self.timeline {
            return Err(Why::Invalid("the page is of an older timeline than the page before"));
        }
        self.magic = Some(magic);
        self.timeline = timeline;
        self.enter_page(flags, u64::from(field(16)))
    }

    fn enter_page(&mut self, flags: u16, continued_bytes: u64) -> std::result::Result<(), Why> {
        let is_continuation = flags & IS_CONTINUATION != 0;
        match self.state {
            State::InRecord if flags & IS_OVERWRITE != 0 => self.state = State::Between,
            State::InRecord if !is_continuation || continued_bytes != self.record.left() => {
                return Err(Why::Invalid("the record is not continued on its next page"));
            }
            State::Between if is_continuation => return Err(Why::Invalid("the page continues a record that did not begin")),
            State::InRecord | State::Between => {}
            State::Seeking if is_continuation => {
                let room = PAGE - self.position.0 % PAGE;
                let rest = aligned(continued_bytes);
                if rest < room {
                    self.state = State::Between;
                }
                self.skip_to = self.position.plus(rest.min(room));
            }
            State::Seeking => self.state = State::Between,
        }
        Ok(())
    }

    /// Takes bytes of the present page, of one record at most.
    fn take_record(&mut self, bytes: &mut &[u8], in_page: usize, each: &mut impl FnMut(Record)) {
        if self.state != State::InRecord {
            let record = &mut self.record;
            (record.start, record.timeline, record.fixed_bytes) = (self.position, self.timeline, 0);
            record.header = None;
            record.body_bytes = 0;
            record.crc.reset();
            record.kept.clear();
            self.state = State::InRecord;
        }
        let taken = if self.record.header.is_none() {
            let length = in_page.min(HEADER_BYTES - self.record.fixed_bytes);
            let taken = self.advance(bytes, length);
            let at = self.record.fixed_bytes;
            self.record.fixed[at..at + length].copy_from_slice(taken);
            self.record.fixed_bytes += length;
            self.check_header()
        } else {
            let length = clamp(self.record.left(), in_page);
            let taken = self.advance(bytes, length);
            let record = &mut self.record;
            record.crc.update(taken);
            record.body_bytes += u64::try_from(length).unwrap_or(0);
            let most = match record.header {
                Some(header) if header.is_interesting() => KEPT_MAX,
                _ if !self.copied.is_empty() => BLOCK_HEADERS_MAX,
                _ => 0,
            };
            if record.kept.len() < most {
                record.kept.extend_from_slice(taken);
            }
            Ok(())
        };
        if let Err(why) = taken {
            self.stop(self.record.start, why);
        } else if self.record.left() == 0
            && let Some(header) = self.record.header
        {
            self.finish_record(header, each);
        }
    }

    /// As soon as its bytes are there; the length, which is never split, comes first.
    fn check_header(&mut self) -> std::result::Result<(), Why> {
        let record = &mut self.record;
        if record.fixed_bytes >= 4 {
            match record.total() {
                0 => return Err(Why::Empty),
                1..24 => return Err(Why::Invalid("the record is shorter than its header")),
                length if length > u64::from(RECORD_MAX) => return Err(Why::Invalid("the record is longer than any can be")),
                _ => {}
            }
        }
        if record.fixed_bytes < HEADER_BYTES {
            return Ok(());
        }
        let header = Header::parse(&record.fixed);
        if (OWN_MANAGERS_MAX + 1..CUSTOM_MANAGERS_MIN).contains(&header.resource_manager) {
            return Err(Why::Invalid("the record is of an unknown resource manager"));
        }
        if self.last.map_or(header.previous >= record.start, |last| header.previous != last) {
            return Err(Why::Invalid("the record does not follow the one before"));
        }
        record.header = Some(header);
        Ok(())
    }

    fn finish_record(&mut self, header: Header, each: &mut impl FnMut(Record)) {
        self.record.crc.update(&self.record.fixed[..20]);
        if self.record.crc.finalize() != u64::from(header.crc) {
            self.stop(self.record.start, Why::Invalid("the record's checksum is wrong"));
            return;
        }
        self.state = State::Between;
        let end = if header.is_switch() && self.segment.offset(self.position) != 0 {
            self.segment.start(self.segment.number(self.position) + 1)
        } else {
            Lsn(aligned(self.position.0))
        };
        (self.last, self.valid_end, self.skip_to) = (Some(self.record.start), end, end);
        let magic = self.magic.unwrap_or(0);
        let meaning = meaning(&header, &self.record.kept, magic);
        let changes = if self.copied.is_empty() { None } else { self.changes(magic) };
        if let Meaning::CopyDatabase { source, .. } = meaning {
            self.copied.insert(source);
        }
        each(Record {
            start: self.record.start,
            end,
            timeline: self.record.timeline,
            xid: header.xid,
            resource_manager: header.resource_manager,
            info: header.info,
            length: header.length,
            meaning,
            changes,
        });
    }

    /// Which of the databases that were copied the record changes that is complete now.
    fn changes(&self, magic: u16) -> Option<u32> {
        match databases(&self.record.kept, clamp(self.record.body_bytes, usize::MAX), magic) {
            Some(databases) => databases.into_iter().find(|database| self.copied.contains(database)),
            // It may be any of them.
            None => self.copied.first().copied(),
        }
    }
}

fn aligned(bytes: u64) -> u64 {
    bytes.div_ceil(8).saturating_mul(8)
}

fn clamp(wanted: u64, have: usize) -> usize {
    usize::try_from(wanted).map_or(have, |wanted| wanted.min(have))
}

#[cfg(test)]
mod tests;

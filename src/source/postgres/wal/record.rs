//! Records of the log: the few kinds that matter to recovery.
//!
//! Source: `access/xlogrecord.h`, `access/xact.h`, `access/xlog_internal.h`, `catalog/pg_control.h`, `commands/tablespace.h`, `commands/dbcommands_xlog.h` of PostgreSQL 14 to 18. A record is a header of 24 bytes (total
//! length u32, transaction u32, start of the previous record u64, info u8, resource manager u8, 2 unused, CRC-32C u32 of everything after the header and then
//! of the header up to here), headers of its parts, and its data; the main data comes last.

use chrono::{DateTime, Utc};

use crate::source::postgres::control::Room;
use crate::source::postgres::lsn::Lsn;

pub const HEADER_BYTES: usize = 24;

const XLOG: u8 = 0;
const XACT: u8 = 1;
const DATABASE: u8 = 4;
const TABLESPACE: u8 = 5;
/// Page magic of 15.
const SINCE_15: u16 = 0xD110;
/// The upper half of `info` belongs to the resource manager.
const INFO: u8 = 0xF0;
const XACT_OPERATION: u8 = 0x70;
const XACT_HAS_INFO: u8 = 0x80;
const BLOCK_ID_MAX: u8 = 32;
const BLOCK_HAS_IMAGE: u8 = 0x10;
const BLOCK_SAME_RELATION: u8 = 0x80;
/// What the headers of all pages that a record refers to come to at most.
pub const BLOCK_HEADERS_MAX: usize = 1024;
/// 2000-01-01, where the server's times begin, in seconds since 1970.
const EPOCH_SECS: i64 = 946_684_800;

/// What a record says. Transactions are numbered modulo 2^32.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meaning {
    /// A transaction became visible; also one that was prepared before.
    Commit {
        xid: u32,
        time: DateTime<Utc>,
    },
    Abort {
        xid: u32,
        time: DateTime<Utc>,
    },
    /// `PREPARE TRANSACTION`: it becomes visible later, if at all.
    Prepare {
        time: DateTime<Utc>,
    },
    /// Made by `pg_create_restore_point`. Bytes that are no UTF-8 are replaced.
    RestorePoint {
        name: String,
        time: DateTime<Utc>,
    },
    Checkpoint {
        shutdown: bool,
        redo: Lsn,
        timeline: u32,
        previous_timeline: u32,
        time: DateTime<Utc>,
    },
    /// A server was promoted: `timeline` begins here.
    EndOfRecovery {
        timeline: u32,
        previous_timeline: u32,
        time: DateTime<Utc>,
    },
    /// The end of a base backup that began at `start`.
    BackupEnd {
        start: Lsn,
    },
    /// Settings that recovery depends on changed; below `wal_level` 1 (`minimal`) the log cannot be recovered through.
    ParameterChange {
        room: Room,
        wal_level: i32,
    },
    /// The rest of this segment is empty.
    Switch,
    /// The unfinished record at this position, torn by a crash, is void.
    OverwriteContrecord {
        at: Lsn,
    },
    /// Replaying it makes the server use, and before 15 empty, this folder.
    CreateTablespace {
        oid: u32,
        location: String,
    },
    /// Replaying it copies the folder that the database `source` has in a tablespace, as it is then: `CREATE DATABASE` (since 15 only with `STRATEGY file_copy`),
    /// and with the same number twice `ALTER DATABASE … SET TABLESPACE`.
    CopyDatabase {
        database: u32,
        source: u32,
    },
    /// Its folder is removed; also where it moved to another tablespace.
    DropDatabase {
        database: u32,
    },
    /// Anything else.
    Other,
}

/// One whole record whose CRC is right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub start: Lsn,
    /// Where the next record may begin: behind padding, after a switch the next segment.
    pub end: Lsn,
    /// Of the page that it begins on.
    pub timeline: u32,
    /// 0: none.
    pub xid: u32,
    pub resource_manager: u8,
    pub info: u8,
    /// Header included.
    pub length: u32,
    pub meaning: Meaning,
    /// A database that a [`Meaning::CopyDatabase`] earlier in this run of log copied, and pages of which this record changes.
    pub changes: Option<u32>,
}

/// A record's fixed header.
#[derive(Debug, Clone, Copy)]
pub struct Header {
    pub length: u32,
    pub xid: u32,
    pub previous: Lsn,
    pub info: u8,
    pub resource_manager: u8,
    pub crc: u32,
}

impl Header {
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Self {
        Self {
            length: u32_at(bytes, 0).unwrap_or(0),
            xid: u32_at(bytes, 4).unwrap_or(0),
            previous: Lsn(u64_at(bytes, 8).unwrap_or(0)),
            info: bytes[16],
            resource_manager: bytes[17],
            crc: u32_at(bytes, 20).unwrap_or(0),
        }
    }

    /// Whether [`meaning`] needs the body.
    pub fn is_interesting(&self) -> bool {
        match self.resource_manager {
            XACT => matches!(self.info & XACT_OPERATION, 0x00 | 0x10 | 0x20 | 0x30 | 0x40),
            XLOG => matches!(self.info & INFO, 0x00 | 0x10 | 0x40..=0x70 | 0x90 | 0xD0),
            DATABASE => matches!(self.info & INFO, 0x00 | 0x10 | 0x20),
            TABLESPACE => self.info & INFO == 0x00,
            _ => false,
        }
    }

    pub fn is_switch(&self) -> bool {
        self.resource_manager == XLOG && self.info & INFO == 0x40
    }
}

/// What a record means. `body`: everything after the header, or its beginning where it is very long. `magic`: of its page.
pub fn meaning(header: &Header, body: &[u8], magic: u16) -> Meaning {
    understand(header, body, magic).unwrap_or(Meaning::Other)
}

fn understand(header: &Header, body: &[u8], magic: u16) -> Option<Meaning> {
    if header.is_switch() {
        return Some(Meaning::Switch);
    }
    let data = main_data(body)?;
    let info = header.info;
    if header.resource_manager == XACT && info & XACT_OPERATION == 0x10 {
        return Some(Meaning::Prepare { time: time_at(data, 16)? });
    }
    if header.resource_manager == XACT {
        let time = time_at(data, 0)?;
        let operation = info & XACT_OPERATION;
        let xid = match operation {
            0x00 | 0x20 => header.xid,
            0x30 => prepared_xid(data, info, true, magic)?,
            0x40 => prepared_xid(data, info, false, magic)?,
            _ => return None,
        };
        return Some(if matches!(operation, 0x00 | 0x30) { Meaning::Commit { xid, time } } else { Meaning::Abort { xid, time } });
    }
    if header.resource_manager == TABLESPACE && info & INFO == 0x00 {
        return Some(Meaning::CreateTablespace { oid: u32_at(data, 0)?, location: text_at(data, 4)? });
    }
    if header.resource_manager == DATABASE {
        let database = u32_at(data, 0)?;
        return match info & INFO {
            0x00 => Some(Meaning::CopyDatabase { database, source: u32_at(data, 8)? }),
            0x10 if magic < SINCE_15 => Some(Meaning::DropDatabase { database }),
            0x20 if magic >= SINCE_15 => Some(Meaning::DropDatabase { database }),
            _ => None,
        };
    }
    if header.resource_manager != XLOG {
        return None;
    }
    match info & INFO {
        kind @ (0x00 | 0x10) => Some(Meaning::Checkpoint {
            shutdown: kind == 0x00,
            redo: Lsn(u64_at(data, 0)?),
            timeline: u32_at(data, 8)?,
            previous_timeline: u32_at(data, 12)?,
            time: DateTime::from_timestamp(u64_at(data, 64)?.cast_signed(), 0)?,
        }),
        0x50 => Some(Meaning::BackupEnd { start: Lsn(u64_at(data, 0)?) }),
        0x60 => Some(Meaning::ParameterChange {
            room: Room {
                connections: u32_at(data, 0)?,
                worker_processes: u32_at(data, 4)?,
                wal_senders: u32_at(data, 8)?,
                prepared_transactions: u32_at(data, 12)?,
                locks_per_transaction: u32_at(data, 16)?,
            },
            wal_level: u32_at(data, 20)?.cast_signed(),
        }),
        0x70 => Some(Meaning::RestorePoint { name: text_at(data, 8)?, time: time_at(data, 0)? }),
        0x90 => Some(Meaning::EndOfRecovery { timeline: u32_at(data, 8)?, previous_timeline: u32_at(data, 12)?, time: time_at(data, 0)? }),
        0xD0 => Some(Meaning::OverwriteContrecord { at: Lsn(u64_at(data, 0)?) }),
        _ => None,
    }
}

/// The databases whose pages a record refers to, shared catalogs left out (0); more than once where it refers to several pages. `None`: they cannot be told.
/// `body`: everything after the header, or at least its first [`BLOCK_HEADERS_MAX`] bytes; `length`: of all of it. `magic`: of its page.
pub fn databases(body: &[u8], length: usize, magic: u16) -> Option<Vec<u32>> {
    let mut found = Vec::new();
    // They come first; what they announce, their data and images, comes last.
    let (mut at, mut announced) = (0, 0);
    while at + announced < length
        && let id = *body.get(at)?
        && id <= BLOCK_ID_MAX
    {
        let flags = *body.get(at + 1)?;
        announced += usize::from(u16_at(body, at + 2)?);
        at += 4;
        if flags & BLOCK_HAS_IMAGE != 0 {
            announced += usize::from(u16_at(body, at)?);
            let image = *body.get(at + 4)?;
            let compressed = if magic < SINCE_15 { 0x02 } else { 0x1C };
            // A hole is there, and since the image is compressed, its length cannot be told from that of the image.
            at += if image & 0x01 != 0 && image & compressed != 0 { 7 } else { 5 };
        }
        if flags & BLOCK_SAME_RELATION == 0 {
            let database = u32_at(body, at + 4)?;
            if database != 0 {
                found.push(database);
            }
            at += 12;
        }
        at += 4;
    }
    Some(found)
}

/// The main data of a record that refers to no blocks, which those that we understand never do.
fn main_data(body: &[u8]) -> Option<&[u8]> {
    let mut at = 0;
    loop {
        match *body.get(at)? {
            255 => return body.get(at + 2..),
            254 => return body.get(at + 5..),
            253 => at += 3,
            252 => at += 5,
            _ => return None,
        }
    }
}

/// The transaction that `COMMIT PREPARED` or `ROLLBACK PREPARED` ends, behind lists whose presence `xinfo` tells.
fn prepared_xid(data: &[u8], info: u8, is_commit: bool, magic: u16) -> Option<u32> {
    if info & XACT_HAS_INFO == 0 {
        return None;
    }
    let present = u32_at(data, 8)?;
    let mut at: usize = 12;
    if present & 1 != 0 {
        at += 8;
    }
    // Since 18 (page magic D118) the number of a dropped statistics object has 64 bits.
    let statistics_bytes = if magic >= 0xD118 { 16 } else { 12 };
    let lists = [(1 << 1, 4), (1 << 2, 12), (1 << 8, statistics_bytes), (if is_commit { 1 << 3 } else { 0 }, 16)];
    for (flag, item_bytes) in lists {
        if present & flag != 0 {
            let count = usize::try_from(u32_at(data, at)?).ok()?;
            at = at.checked_add(4)?.checked_add(count.checked_mul(item_bytes)?)?;
        }
    }
    if present & (1 << 4) == 0 { None } else { u32_at(data, at) }
}

/// Up to its terminator.
fn text_at(data: &[u8], at: usize) -> Option<String> {
    let text = data.get(at..)?;
    let text = &text[..text.iter().position(|&byte| byte == 0).unwrap_or(text.len())];
    Some(String::from_utf8_lossy(text).into_owned())
}

fn time_at(data: &[u8], at: usize) -> Option<DateTime<Utc>> {
    let micros = u64_at(data, at)?.cast_signed();
    DateTime::from_timestamp_micros(micros.checked_add(EPOCH_SECS * 1_000_000)?)
}

pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk::<2>().map(|bytes| u16::from_le_bytes(*bytes))
}

pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk::<4>()?;
    Some(u32::from_le_bytes(*bytes))
}

pub fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..)?.first_chunk::<8>()?;
    Some(u64::from_le_bytes(*bytes))
}

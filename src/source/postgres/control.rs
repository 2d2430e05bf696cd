//! The control file, `global/pg_control`: what a cluster is and where its last checkpoint lies.
//!
//! Source: `src/include/catalog/pg_control.h` of PostgreSQL 14 to 18 on little-endian machines with eight-byte alignment. One structure, little endian:
//!
//! | at | field |
//! |---|---|
//! | 0 | system identifier, u64 |
//! | 8, 12 | version of this structure (1300: 14 to 16, 1700: 17, 1800: 18), version of the catalogue, u32 each |
//! | 16 | state, u32 |
//! | 32 | position of the last checkpoint record, u64 |
//! | 40, 48, 52 | of that checkpoint: redo position u64, timeline u32, earlier timeline u32 |
//! | 104 | of that checkpoint: time, seconds since 1970, i64 |
//! | 136, 144 | minimum recovery position u64 and its timeline u32 |
//! | 152, 160, 168 | start u64 and end u64 of the backup that is being recovered from, whether its end is required (byte) |
//! | 172 | `wal_level`, i32: 0 minimal, 1 replica, 2 logical |
//! | 180, 184, 188, 192, 196 | [`Room`]: connections, worker processes, WAL senders, prepared transactions, locks per transaction, i32 each |
//! | 216, 220, 224, 228 | block size, blocks in a relation segment, WAL block size, WAL segment size, u32 each |
//! | 252 | version of the data checksums, u32: 0 off, 1 on |
//! | 288 (18: 292) | CRC-32C of everything before, u32 |

use crate::error::{Error, Kind, Result};
use crate::source::postgres::lsn::Lsn;

/// Where the control file is in the data folder.
pub const PATH: &[u8] = b"global/pg_control";
/// Size of the file; all after the structure is zeros.
pub const FILE_BYTES: usize = 8192;

/// What the server says it is doing, or was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    StartingUp,
    ShutDown,
    ShutDownInRecovery,
    ShuttingDown,
    InCrashRecovery,
    /// Also that of a standby.
    InArchiveRecovery,
    InProduction,
}

impl State {
    /// Whether the data folder was left by a clean stop.
    #[must_use]
    pub fn is_stopped(self) -> bool {
        matches!(self, Self::ShutDown | Self::ShutDownInRecovery)
    }

    /// As `pg_controldata` prints it.
    #[must_use]
    pub fn told(self) -> &'static str {
        match self {
            Self::StartingUp => "starting up",
            Self::ShutDown => "shut down",
            Self::ShutDownInRecovery => "shut down in recovery",
            Self::ShuttingDown => "shutting down",
            Self::InCrashRecovery => "in crash recovery",
            Self::InArchiveRecovery => "in archive recovery",
            Self::InProduction => "in production",
        }
    }
}

/// Settings that a server which recovers, and answers meanwhile, must have at least as large as the server whose log it is (`CheckRequiredParameterValues` in
/// `xlogrecovery.c`); for transactions that are prepared when recovery ends, also one that does not answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Room {
    pub connections: u32,
    pub worker_processes: u32,
    pub wal_senders: u32,
    pub prepared_transactions: u32,
    pub locks_per_transaction: u32,
}

impl Room {
    /// The larger of each.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self {
            connections: self.connections.max(other.connections),
            worker_processes: self.worker_processes.max(other.worker_processes),
            wal_senders: self.wal_senders.max(other.wal_senders),
            prepared_transactions: self.prepared_transactions.max(other.prepared_transactions),
            locks_per_transaction: self.locks_per_transaction.max(other.locks_per_transaction),
        }
    }

    /// Each with its parameter's name and with what a server takes whose configuration does not name it.
    #[must_use]
    pub fn settings(self) -> [(&'static str, u32, u32); 5] {
        [
            ("max_connections", self.connections, 100),
            ("max_worker_processes", self.worker_processes, 8),
            ("max_wal_senders", self.wal_senders, 10),
            ("max_prepared_transactions", self.prepared_transactions, 0),
            ("max_locks_per_transaction", self.locks_per_transaction, 64),
        ]
    }
}

/// What we need of the control file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Control {
    /// Made up when the cluster was created; copies and standbys share it.
    pub system_identifier: u64,
    /// Of the structure: see the module documentation.
    pub control_version: u32,
    pub catalog_version: u32,
    pub state: State,
    /// Position of the last checkpoint's record.
    pub checkpoint: Lsn,
    /// Where recovery from that checkpoint begins.
    pub redo: Lsn,
    pub timeline: u32,
    pub previous_timeline: u32,
    /// Seconds since 1970, UTC.
    pub checkpoint_time: i64,
    /// 0 where no recovery is under way.
    pub min_recovery: Lsn,
    pub min_recovery_timeline: u32,
    pub backup_start: Lsn,
    pub backup_end: Lsn,
    pub backup_end_required: bool,
    /// 0 minimal, 1 replica, 2 logical.
    pub wal_level: i32,
    /// Of the server that wrote the log.
    pub room: Room,
    /// Bytes, a power of two from 1 KiB to 32 KiB.
    pub block_bytes: u32,
    /// Blocks in one file of a relation; the rest is in the next file. At least 1.
    pub segment_blocks: u32,
    pub wal_block_bytes: u32,
    /// Bytes, a power of two from 1 MiB to 1 GiB.
    pub wal_segment_bytes: u32,
    /// Whether data pages carry checksums that are kept up to date.
    pub data_checksums: bool,
}

impl Control {
    /// Reads a control file. A file that a server was writing at this moment fails its CRC: read it again.
    ///
    /// # Errors
    /// [`Kind::Damaged`] when it is too short, fails its CRC or holds impossible values; [`Kind::Failed`] for a version or a byte order that this
    /// program does not know.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let damaged = |why: String| {
            Error::new(Kind::Damaged, format!("control file pg_control {why}"))
                .hint("this folder cannot be used as it is: compare with pg_controldata, and restore it from a backup if that agrees")
        };
        if bytes.len() < 296 {
            return Err(damaged(format!("has only {} bytes", bytes.len())));
        }
        let version = u32_at(bytes, 8);
        let crc_at = match version {
            1300 | 1700 => 288,
            1800 => 292,
            _ if version.swap_bytes() < 10_000 && version > 0xFFFF => {
                return Err(Error::new(Kind::Failed, "control file pg_control is of a machine of the other byte order"));
            }
            _ => {
                return Err(Error::new(Kind::Failed, format!("control file pg_control has the unknown version {version}"))
                    .hint("PostgreSQL 14 to 18 are supported"));
            }
        };
        let computed = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &bytes[..crc_at]);
        if computed != u64::from(u32_at(bytes, crc_at)) {
            return Err(damaged("fails its CRC".into()));
        }
        let state = match u32_at(bytes, 16) {
            0 => State::StartingUp,
            1 => State::ShutDown,
            2 => State::ShutDownInRecovery,
            3 => State::ShuttingDown,
            4 => State::InCrashRecovery,
            5 => State::InArchiveRecovery,
            6 => State::InProduction,
            other => return Err(damaged(format!("has the unknown state {other}"))),
        };
        let control = Self {
            system_identifier: u64_at(bytes, 0),
            control_version: version,
            catalog_version: u32_at(bytes, 12),
            state,
            checkpoint: Lsn(u64_at(bytes, 32)),
            redo: Lsn(u64_at(bytes, 40)),
            timeline: u32_at(bytes, 48),
            previous_timeline: u32_at(bytes, 52),
            checkpoint_time: u64_at(bytes, 104).cast_signed(),
            min_recovery: Lsn(u64_at(bytes, 136)),
            min_recovery_timeline: u32_at(bytes, 144),
            backup_start: Lsn(u64_at(bytes, 152)),
            backup_end: Lsn(u64_at(bytes, 160)),
            backup_end_required: bytes[168] != 0,
            wal_level: u32_at(bytes, 172).cast_signed(),
            room: Room {
                connections: u32_at(bytes, 180),
                worker_processes: u32_at(bytes, 184),
                wal_senders: u32_at(bytes, 188),
                prepared_transactions: u32_at(bytes, 192),
                locks_per_transaction: u32_at(bytes, 196),
            },
            block_bytes: u32_at(bytes, 216),
            segment_blocks: u32_at(bytes, 220),
            wal_block_bytes: u32_at(bytes, 224),
            wal_segment_bytes: u32_at(bytes, 228),
            data_checksums: u32_at(bytes, 252) == 1,
        };
        let is_size = |size: u32, least: u32, most: u32| size.is_power_of_two() && (least..=most).contains(&size);
        if !is_size(control.block_bytes, 1 << 10, 1 << 15)
            || !is_size(control.wal_block_bytes, 1 << 10, 1 << 16)
            || !is_size(control.wal_segment_bytes, 1 << 20, 1 << 30)
            || control.segment_blocks == 0
            || control.timeline == 0
        {
            return Err(damaged("holds impossible sizes".into()));
        }
        Ok(control)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::postgres::test_server::TestServer;
    use std::collections::HashMap;

    #[test]
    fn agrees_with_pg_controldata_running_and_stopped() {
        let settings = "max_worker_processes = 9\nmax_wal_senders = 7\nmax_prepared_transactions = 3\nmax_locks_per_transaction = 70";
        let mut server = TestServer::start(&["-k", "--wal-segsize=2"], settings);
        server.sql("CHECKPOINT");
        for state in [State::InProduction, State::ShutDown] {
            let bytes = std::fs::read(server.data().join("global/pg_control")).unwrap();
            let control = Control::parse(&bytes).unwrap();
            let said: HashMap<String, String> = server
                .tool("pg_controldata", &["-D", server.data().to_str().unwrap()])
                .lines()
                .filter_map(|line| line.split_once(':').map(|(key, value)| (key.to_owned(), value.trim().to_owned())))
                .collect();
            assert_eq!(control.state, state);
            assert_eq!(control.state.told(), said["Database cluster state"]);
            assert_eq!(control.state.is_stopped(), said["Database cluster state"] == "shut down");
            for (key, ours) in [
                ("Database system identifier", control.system_identifier.to_string()),
                ("pg_control version number", control.control_version.to_string()),
                ("Catalog version number", control.catalog_version.to_string()),
                ("Latest checkpoint location", control.checkpoint.to_string()),
                ("Latest checkpoint's REDO location", control.redo.to_string()),
                ("Latest checkpoint's TimeLineID", control.timeline.to_string()),
                ("Latest checkpoint's PrevTimeLineID", control.previous_timeline.to_string()),
                ("Minimum recovery ending location", control.min_recovery.to_string()),
                ("Database block size", control.block_bytes.to_string()),
                ("Blocks per segment of large relation", control.segment_blocks.to_string()),
                ("WAL block size", control.wal_block_bytes.to_string()),
                ("Bytes per WAL segment", control.wal_segment_bytes.to_string()),
                ("Data page checksum version", u32::from(control.data_checksums).to_string()),
                ("max_connections setting", control.room.connections.to_string()),
                ("max_worker_processes setting", control.room.worker_processes.to_string()),
                ("max_wal_senders setting", control.room.wal_senders.to_string()),
                ("max_prepared_xacts setting", control.room.prepared_transactions.to_string()),
                ("max_locks_per_xact setting", control.room.locks_per_transaction.to_string()),
            ] {
                assert_eq!(ours, said[key], "{key}");
            }
            assert_eq!(control.wal_level, 1);
            assert_eq!(control.wal_segment_bytes, 2 << 20);
            let expected = server.tool("date", &["-d", &said["Time of latest checkpoint"], "+%s"]);
            assert_eq!(control.checkpoint_time.to_string(), expected.trim());
            server.stop("fast");
        }
    }

    #[test]
    fn a_changed_byte_anywhere_is_noticed() {
        let server = TestServer::start(&[], "");
        let good = std::fs::read(server.data().join("global/pg_control")).unwrap();
        assert!(!Control::parse(&good).unwrap().data_checksums || server.major() >= 18);
        for at in 0..288 {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            assert!(Control::parse(&bad).is_err(), "byte {at}");
        }
        assert_eq!(Control::parse(&good[..200]).unwrap_err().kind(), Kind::Damaged);
    }
}

//! What is said of a piece of log beside its bytes, so that the moments it can be recovered to are known without reading it.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::source::postgres::lsn::Lsn;
use crate::source::postgres::wal::name::SegmentSize;
use crate::source::postgres::wal::reader::{End, WalReader, Why};
use crate::source::postgres::wal::record::Meaning;

/// Kept with a piece `start .. end` of a timeline. It tells times and names of restore points, nothing of rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PieceFacts {
    /// Of the cluster; a string, because it does not fit a JSON number.
    pub system_identifier: String,
    pub timeline: u32,
    /// Bytes of a segment file.
    pub segment_bytes: u32,
    /// Time of the first and last commit or abort whose record ends in the piece, as they come in the log. `None`: there is none. A record that
    /// began before the piece is missing where the log before it was not at hand.
    #[serde(default)]
    pub first_commit: Option<DateTime<Utc>>,
    #[serde(default)]
    pub last_commit: Option<DateTime<Utc>>,
    #[serde(default)]
    pub restore_points: Vec<RestorePoint>,
    /// The source's clock when everything that it had written was known to end with this piece: whatever was committed before this moment is
    /// in the log up to here. `None`: not known, as of a file that was archived.
    #[serde(default)]
    pub server_clock: Option<DateTime<Utc>>,
    /// End of the last whole record; the start of the piece when there is none.
    pub valid_to: Lsn,
}

impl PieceFacts {
    /// There may have been more restore points than are told.
    #[must_use]
    pub fn has_all_room_taken(&self) -> bool {
        self.restore_points.len() >= RESTORE_POINTS_MAX
    }
}

/// Made by `pg_create_restore_point` in the source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestorePoint {
    pub name: String,
    /// End of its record.
    pub lsn: Lsn,
    pub time: DateTime<Utc>,
}

/// Most restore points that are told of one piece; more are found by reading it.
const RESTORE_POINTS_MAX: usize = 256;

/// Finds the facts of pieces that follow each other.
pub struct FactsReader {
    reader: WalReader,
    segment: SegmentSize,
    system_identifier: u64,
    minimal: Option<End>,
}

impl FactsReader {
    /// Begins at the start of a page (usually of a segment).
    ///
    /// # Errors
    /// [`crate::error::Kind::Bug`] when `start` is none.
    pub fn new(start: Lsn, segment: SegmentSize, system_identifier: u64) -> Result<Self> {
        let reader = WalReader::new(start, segment, Some(system_identifier))?;
        Ok(Self { reader, segment, system_identifier, minimal: None })
    }

    /// Position of the next byte.
    #[must_use]
    pub fn position(&self) -> Lsn {
        self.reader.position()
    }

    /// Where and why no recovery goes on, once that is so. Where the log cannot be read on, nothing that follows has facts of records.
    #[must_use]
    pub fn end(&self) -> Option<&End> {
        self.minimal.as_ref().or(self.reader.end())
    }

    /// The facts of the piece that these next bytes are, of `timeline`; the server's clock is for the caller to add.
    pub fn take(&mut self, timeline: u32, bytes: &[u8]) -> PieceFacts {
        let mut facts = PieceFacts {
            system_identifier: self.system_identifier.to_string(),
            timeline,
            segment_bytes: self.segment.bytes(),
            first_commit: None,
            last_commit: None,
            restore_points: Vec::new(),
            server_clock: None,
            valid_to: self.reader.position(),
        };
        let minimal = &mut self.minimal;
        self.reader.push(bytes, |record| match record.meaning {
            Meaning::ParameterChange { wal_level: 0, .. } => {
                minimal.get_or_insert(End { at: record.start, found_at: record.start, why: Why::Minimal });
            }
            Meaning::Commit { time, .. } | Meaning::Abort { time, .. } => {
                facts.first_commit.get_or_insert(time);
                facts.last_commit = Some(time);
            }
            Meaning::RestorePoint { name, time } if facts.restore_points.len() < RESTORE_POINTS_MAX => {
                facts.restore_points.push(RestorePoint { name, lsn: record.end, time });
            }
            _ => {}
        });
        facts.valid_to = facts.valid_to.max(self.reader.valid_end());
        facts
    }
}

//! Writing.
use chrono::{DateTime, Utc};

use super::snapshot::{Manifest, SourceRecord};
use crate::entry::Entry;
use crate::error::Result;
use crate::event::Progress;
use crate::id::Name;

/// What [`TreeWriter::add`] says about an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Added {
    /// Taken whole: not a file, or unchanged since the previous snapshot by its stamp.
    Complete,
    /// Its bytes are needed now: call [`TreeWriter::content`], or [`TreeWriter::leave_out`].
    NeedsContent,
}

/// A snapshot being written. Dropping it without `commit` leaves only garbage that a next run reuses.
pub struct BackupWriter {}

/// One source's tree being written.
pub struct TreeWriter<'a> { _writer: &'a mut BackupWriter }

/// A committed snapshot.
pub struct Committed { pub manifest: Manifest }

impl BackupWriter {
    /// Begins the tree of one source (unique name within the snapshot).
    pub fn tree(&mut self, _name: &Name, _kind: &str) -> Result<TreeWriter<'_>> { todo!() }
    /// Waits for all uploads, writes packs → index → manifest, ends the session. `time`: the consistency moment.
    pub fn commit(self, _sources: Vec<SourceRecord>, _time: DateTime<Utc>, _tags: Vec<String>, _progress: &dyn Progress) -> Result<Committed> { todo!() }
}

impl TreeWriter<'_> {
    /// Adds the next entry in tree order.
    pub fn add(&mut self, _entry: Entry) -> Result<Added> { todo!() }
    /// Reads the bytes of the entry just added to their end; returns how many there were.
    pub fn content(&mut self, _reader: &mut dyn std::io::Read) -> Result<u64> { todo!() }
    /// Drops the entry just added (it vanished).
    pub fn leave_out(&mut self) { todo!() }
    /// Ends the tree; `finish` is the source's account, kept in the manifest.
    pub fn finish(self, _finish: serde_json::Value) -> Result<SourceRecord> { todo!() }
}

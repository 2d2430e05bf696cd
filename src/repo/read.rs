//! Reading.
use crate::entry::Entry;
use crate::error::Result;

/// An entry of a stored tree; its size is what was really read.
#[derive(Debug, Clone)]
pub struct StoredEntry {
    pub entry: Entry,
}

impl StoredEntry {
    /// Plain bytes; 0 for what is not a file.
    pub fn size(&self) -> u64 { todo!() }
}

/// Streams a tree.
pub struct TreeReader {}

impl Iterator for TreeReader {
    type Item = Result<StoredEntry>;
    fn next(&mut self) -> Option<Self::Item> { todo!() }
}

/// A file to fetch; `file` is the caller's number for it.
pub struct Wanted<'a> {
    pub file: usize,
    pub entry: &'a StoredEntry,
}

/// Takes delivered bytes. Called from several threads, in any order, never twice for one range.
pub trait BlockSink: Sync {
    /// `data` belongs at `offset` of `file`.
    fn write(&self, file: usize, offset: u64, data: &[u8]) -> Result<()>;
    /// `len` zero bytes belong at `offset`. The default does nothing: right for a file that was made with its full length just now.
    fn zero(&self, _file: usize, _offset: u64, _len: u64) -> Result<()> { Ok(()) }
    /// Reads what the target holds already at `offset` (a resumed restore); `true`: `buffer` was filled. What equals is not fetched.
    fn existing(&self, _file: usize, _offset: u64, _buffer: &mut [u8]) -> Result<bool> { Ok(false) }
    /// All bytes of `file` were delivered (or found existing).
    fn done(&self, _file: usize) -> Result<()> { Ok(()) }
}

/// What a fetch moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FetchStats {
    /// Plain bytes delivered, zeros included.
    pub bytes_delivered: u64,
    /// Plain bytes found already there.
    pub bytes_existing: u64,
    /// Sealed bytes read from the store.
    pub bytes_fetched: u64,
}

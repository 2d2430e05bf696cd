//! What a snapshot is made of: the vocabulary that sources yield and the repository keeps.
//!
//! A snapshot of one source is a tree of entries in *tree order*: parents before children, siblings by the bytes of their names
//! (compare paths with [`tree_order`]). Paths are bytes, not text, relative, separated by `/`, without `.`, `..`, empty
//! parts or NUL.

use std::cmp::Ordering;

/// How a file's bytes are cut into chunks, the unit of deduplication.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Layout {
    /// Fixed, page-aligned pieces of this many bytes (512 ..= 65536, a power of two): databases.
    Pages(u32),
    /// Cut by content: attachments, logical dumps.
    Content,
}

/// What kind of thing an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file (or a stream) with bytes.
    File {
        /// Bytes, as known when the entry was listed; a stream of unknown length has `None`. What was really read is recorded.
        size: Option<u64>,
        layout: Layout,
    },
    Directory,
    /// The bytes that the link holds, not resolved.
    Symlink {
        target: Vec<u8>,
    },
    /// Another name of the file at this earlier path of the same tree.
    Hardlink {
        target: Vec<u8>,
    },
    /// A named pipe.
    Fifo,
}

/// In which order a source yields its entries. What is stored is in tree order either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// Tree order (see [`tree_order`]): memory does not grow with the tree.
    #[default]
    Tree,
    /// As they come, each path once, a hard link possibly before its target. Memory grows with the number of entries.
    Any,
}

/// One entry of a source's tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Relative path as bytes; the root folder of a `files` source itself is the empty path.
    pub path: Vec<u8>,
    pub kind: EntryKind,
    /// Unix permission bits (`0o7777`).
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Modification time, nanoseconds since the Unix epoch.
    pub mtime_ns: i64,
    /// Proof that content did not change since an earlier snapshot: equal non-empty stamps of the same path mean equal bytes, so
    /// the bytes need not be read again. Empty: always read.
    pub stamp: Vec<u8>,
    /// Extended attributes (name, value), sorted by name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Entry {
    /// The path for messages: invalid UTF-8 is escaped, never dropped.
    #[must_use]
    pub fn display_path(&self) -> String {
        display_path(&self.path)
    }
}

/// A path for messages: printable text as it is, other bytes as `\xNN`.
#[must_use]
pub fn display_path(path: &[u8]) -> String {
    if path.is_empty() {
        return ".".into();
    }
    match std::str::from_utf8(path) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => path.escape_ascii().to_string(),
    }
}

/// Orders paths so that a folder comes before what is in it and nothing comes between them.
#[must_use]
pub fn tree_order(a: &[u8], b: &[u8]) -> Ordering {
    if a.is_empty() || b.is_empty() {
        return a.len().cmp(&b.len());
    }
    a.split(|&c| c == b'/').cmp(b.split(|&c| c == b'/'))
}

/// Whether a path is one that a tree may hold (see the module documentation). The empty path is the root.
#[must_use]
pub fn is_valid_path(path: &[u8]) -> bool {
    path.is_empty()
        || (path.len() <= 65_535
            && !path.contains(&0)
            && path.split(|&c| c == b'/').all(|part| !part.is_empty() && part != b"." && part != b".."))
}

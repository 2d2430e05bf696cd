//! The write-ahead log: names of its files, histories of timelines, and reading records without a server.

pub mod facts;
pub mod header;
pub mod history;
pub mod name;
pub mod reader;
mod record;

pub use facts::{FactsReader, PieceFacts, RestorePoint};
pub use header::SegmentHeader;
pub use history::{Parting, TimelineHistory};
pub use name::{SegmentSize, WalName};
pub use reader::{End, WalReader, Why};
pub use record::{Meaning, Record};

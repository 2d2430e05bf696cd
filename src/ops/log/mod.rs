//! The continuous log of a plan's sources: from a source into the repository's log.

pub mod stream;

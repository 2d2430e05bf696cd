//! The continuous log of a source: what joins it, as pieces in a repository, and the servers that write and replay it.

pub mod archive;
pub mod canary;
pub mod fetch;
pub mod fork;
pub mod push;
pub mod ranges;
pub mod reach;
pub mod replay;
pub mod retain;
pub mod stream;
pub mod way;

//! The continuous log of a PostgreSQL source: where its positions and the repository's pieces meet.

pub mod archive;
pub mod fetch;
pub mod push;
pub mod stream;

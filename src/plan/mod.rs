//! Plan files.
pub mod schedule;
pub mod secret;
pub mod units;

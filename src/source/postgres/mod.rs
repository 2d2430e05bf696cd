//! PostgreSQL 14 to 18: reading a cluster's files and its log without a server.
//!
//! | module | owns |
//! |---|---|
//! | [`lsn`], [`wal`] | positions, names of log files, histories of timelines, reading records |
//! | [`control`] | `global/pg_control` |
//! | [`layout`] | what is what in a data folder, and what a backup leaves out |
//! | [`page`], [`findings`] | checksums of data pages, and what is told of bad ones |
//! | [`local`] | reading the data folder of a running server |
//! | [`remote`], [`tar`] | the same from the archives that a server streams |
//! | [`throttle`] | reading no faster than allowed |

pub mod control;
pub mod findings;
pub mod layout;
pub mod local;
pub mod lsn;
pub mod page;
pub mod remote;
pub mod tar;
#[cfg(test)]
mod test_server;
pub mod throttle;
pub mod wal;

//! PostgreSQL 14 to 18: physical backups of a running cluster, its continuous log, recovery to any moment, and servers that are started to
//! prove it.
//!
//! Everything here blocks; every wait has a limit and obeys [`crate::event::Cancel`].
//!
//! | module | owns |
//! |---|---|
//! | [`conninfo`], [`client`], [`replication`] | talking to a server: settings, SQL, base backups, the log as a stream |
//! | [`lsn`], [`wal`] | positions, names of log files, histories of timelines, reading records |
//! | [`control`] | `global/pg_control` |
//! | [`layout`] | what is what in a data folder, and what a backup leaves out |
//! | [`page`], [`findings`] | checksums of data pages, and what is told of bad ones |
//! | [`local`] | reading the data folder of a running server |
//! | [`remote`], [`tar`] | the same from the archives that a server streams |
//! | [`throttle`] | reading no faster than allowed |
//! | [`fingerprint`] | digests of tables at an exact position of the log |
//! | [`recover`], [`instance`] | recovery of a restored folder, in a private server |
//! | [`prove`] | what a recovered server is asked |

pub mod client;
pub mod conninfo;
pub mod control;
pub mod findings;
pub mod fingerprint;
pub mod instance;
pub mod layout;
pub mod local;
pub mod lsn;
pub mod page;
pub mod prove;
pub mod recover;
pub mod remote;
pub mod replication;
pub mod tar;
pub mod throttle;
pub mod wal;

#[cfg(test)]
mod test_restored;
#[cfg(test)]
#[allow(dead_code, reason = "shared by tests of several modules")]
mod test_server;

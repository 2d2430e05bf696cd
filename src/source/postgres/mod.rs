//! PostgreSQL: physical backups, the continuous log, recovery to any moment, and servers that are started to prove it.
//!
//! Everything here blocks; every wait has a limit and obeys [`crate::event::Cancel`].

pub mod client;
pub mod conninfo;
pub mod fingerprint;
pub mod instance;
pub mod lsn;
pub mod prove;
pub mod recover;
pub mod replication;

#[cfg(test)]
mod test_restored;
#[cfg(test)]
#[allow(dead_code, reason = "shared by tests of several modules")]
mod test_server;

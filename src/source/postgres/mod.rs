//! PostgreSQL: physical backups, the continuous log, recovery to any moment, and servers that are started to prove it.
//!
//! Everything here blocks; every wait has a limit and obeys [`crate::event::Cancel`].

pub mod client;
pub mod conninfo;
pub mod lsn;
pub mod replication;

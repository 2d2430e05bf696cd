//! Unattended work: the journal of runs, the scheduler that says what is due, and the daemon that does it.
//!
//! Owns the state folder. Does not own any operation: those are in `ops` and run the same way without a daemon.

pub mod companion;
pub mod control;
pub mod job;
pub mod journal;
mod logs;
pub mod owner;
pub mod recorder;
pub mod runner;
pub mod scheduler;
pub mod serve;
pub mod status;

use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use crate::error::{IoContext, Result};

/// Makes a folder that only this user can enter, with its parents; one that is there is left as it is.
///
/// # Errors
/// When it cannot be made.
pub fn private_folder(path: &Path) -> Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).io_context(|| format!("make folder {}", path.display()))
}

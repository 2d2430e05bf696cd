//! Unattended work: the journal of runs, the scheduler that says what is due, and the daemon that does it.
//!
//! Owns the state folder. Does not own any operation: those are in `ops` and run the same way without a daemon.

pub mod agenda;
pub mod alarms;
pub mod cancel;
pub mod companion;
pub mod control;
pub mod gone;
pub mod history;
pub mod job;
pub mod journal;
mod logs;
pub mod nodes;
pub mod notify;
pub mod owner;
mod places;
pub mod rebuild;
pub mod recorder;
pub mod reload;
mod requests;
pub mod runner;
pub mod scheduler;
pub mod serve;
pub mod settler;
pub mod status;
pub mod systemd;

use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use crate::error::{IoContext, Result};

/// Makes a folder that only this user can enter, with its parents; one that is there is left as it is.
///
/// # Errors
/// When it cannot be made.
pub fn private_folder(path: &Path) -> Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).io_context(|| format!("make folder {}", path.display()))
}

/// Replaces a file of this user's alone, whole: a reader sees the old one or the new one. It is on disk when this returns.
///
/// # Errors
/// When it cannot be written.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<()> {
    let beside = path.with_extension("new");
    let context = || format!("write {}", beside.display());
    // A left-over of a crash may have another mode.
    let _ = std::fs::remove_file(&beside);
    let mut file = std::fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(&beside).io_context(context)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).io_context(context)?;
    std::fs::rename(&beside, path).io_context(|| format!("rename {} to {}", beside.display(), path.display()))
}

//! SQLite databases, backed up live.
//!
//! Owns: taking a consistent copy of a database that others are writing to, its fingerprints, and the proof of a restored
//! one. A snapshot is one file, cut in the database's own pages.
//!
//! Invariants:
//! - The live file is opened through SQLite only, never by itself: closing any other descriptor of it would drop the POSIX locks that
//!   this process holds on it (<https://www.sqlite.org/howtocorrupt.html#_posix_advisory_locks_canceled_by_a_separate_thread_doing_close_>).
//! - The source's content is never changed. A log (`-wal`) that was there before stays as it is; one that SQLite made for us is gone
//!   afterwards. (In rollback mode a hot journal of a crashed writer is rolled back, as any reader does.)
//! - A backup checks nothing on the live database: integrity, foreign keys and fingerprints are of the private copy, the very bytes
//!   that are backed up. (`doctor` looks at the live one, for two seconds at most.)

mod content;
mod open;
mod prove;
mod snapshot;
mod tables;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Kind, Result};
pub(crate) use open::no_room_for_index;
pub use tables::copy_tables;

use crate::source::{CheckResult, Diagnosis, ProveRequest, Source, SourceContext, SourceSnapshot};

/// One SQLite database file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqliteSource {
    /// The database file; a symbolic link to it is followed.
    pub path: PathBuf,
}

impl SqliteSource {
    /// The name of the one entry of a snapshot, and of the file in a restored folder: the database's own file name.
    fn entry_name(&self) -> Result<&OsStr> {
        self.path.file_name().ok_or_else(|| Error::new(Kind::Usage, format!("database path {} names no file", self.path.display())))
    }
}

/// The one thing in a restored folder, whatever the live database is called now: its name may have changed since, and a restore
/// without a plan knows none.
fn only_file(restored: &Path) -> Result<PathBuf> {
    let list = || -> std::io::Result<Vec<PathBuf>> { std::fs::read_dir(restored)?.map(|item| Ok(item?.path())).collect() };
    let mut found = list().map_err(|source| Error::io(format!("list restored folder {}", restored.display()), source))?;
    match (found.pop(), found.len()) {
        (Some(one), 0) => Ok(one),
        (_, others) => {
            let count = others + 1;
            Err(Error::new(
                Kind::Damaged,
                format!("restored folder {} should hold one database file, not {count} entries", restored.display()),
            ))
        }
    }
}

impl Source for SqliteSource {
    fn kind(&self) -> &'static str {
        "sqlite"
    }

    fn diagnose(&self) -> Vec<Diagnosis> {
        open::diagnose(&self.path)
    }

    fn begin(&self, context: &SourceContext) -> Result<Box<dyn SourceSnapshot>> {
        let name = self.entry_name()?.as_bytes().to_vec();
        Ok(Box::new(snapshot::SqliteSnapshot::begin(&self.path, name, context)?))
    }

    fn adopt(&self, restored: &Path, _context: &SourceContext) -> Result<PathBuf> {
        let database = only_file(restored)?;
        match std::fs::symlink_metadata(&database) {
            Ok(metadata) if metadata.is_file() => Ok(database),
            Ok(_) => Err(Error::new(Kind::Damaged, format!("restored database {} is not a regular file", database.display()))),
            Err(source) => Err(Error::io(format!("look at restored database {}", database.display()), source)),
        }
    }

    fn prove(
        &self,
        restored: &Path,
        request: &ProveRequest,
        context: &SourceContext,
        _usable: &mut dyn FnMut(),
    ) -> Result<Vec<CheckResult>> {
        prove::prove(restored, request, context)
    }
}

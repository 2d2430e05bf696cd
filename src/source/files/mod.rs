//! A tree of files: attachments, documents, a stopped server's data folder.
//!
//! Owns: the walk in tree order, reading files without being misled by what changes meanwhile (`walk`, `snapshot`), and making such
//! a tree again safely ([`apply`]). Symbolic links are kept, never followed; only the root itself may be one, and is resolved once.
//!
//! A tree of files has no snapshot of its own: each file is read consistently (or is reported), the tree as a whole is what it was while
//! it was walked. Use a file system snapshot as the root where more is needed.
//!
//! # Stamps
//!
//! The stamp of a regular file is a version byte (1), then little endian: size (u64), modification time and change time (each i64 seconds, u32
//! nanoseconds), inode number (u64). Equal stamps mean equal bytes because whoever changes a file's bytes also changes its change time, which no
//! program can set back. That holds only beyond the granularity of the clock: a file changed twice within one tick shows the same times. So, as
//! with git's index (`Documentation/technical/racy-git.txt`), a file whose modification or change time lies less than two seconds before the snapshot
//! began, or after, has an empty stamp and is read again next time. (Two seconds: the coarsest time stamps in use, those of FAT.) Device numbers are left out: they change
//! with the order in which disks are found.

pub mod apply;
pub(in crate::source) mod beneath;
mod exclude;
mod snapshot;
pub(in crate::source) mod walk;
pub mod xattr;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{Error, Kind, Result};
use crate::event::Cancel;
use crate::source::{CheckResult, Diagnosis, Outcome, ProveRequest, Source, SourceContext, SourceSnapshot};

pub use exclude::Exclude;

/// A folder and everything in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilesSource {
    /// The folder; a symbolic link to it is followed.
    pub path: PathBuf,
    /// What to leave out: see [`Exclude`].
    pub exclude: Vec<String>,
    /// Files whose size is a multiple of this (512 ..= 65536, a power of two) are cut in pages instead of by content.
    pub page_size: Option<u32>,
}

/// How long `doctor` may walk.
const WALK_LIMIT: Duration = Duration::from_secs(5);

impl FilesSource {
    /// Whether everything can be listed and opened, as far as that is seen in [`WALK_LIMIT`].
    fn diagnose_content(&self) -> Diagnosis {
        let name = || "content".to_owned();
        let deadline = Some(Instant::now() + WALK_LIMIT);
        let walked = self
            .validate()
            .and_then(|exclude| snapshot::FilesSnapshot::begin(&self.path, exclude, None, Cancel::default()))
            .and_then(|snapshot| snapshot::count_readable_until(snapshot, deadline));
        match walked {
            Ok((counts, problems, whole)) => {
                let cut =
                    if whole { String::new() } else { format!("; cut short after {} s, a backup looks at all", WALK_LIMIT.as_secs()) };
                if whole && problems.is_empty() && counts.is_empty() {
                    return Diagnosis { name: name(), ok: false, message: snapshot::EMPTY.into() };
                }
                // A live tree changes while it is looked at.
                let Some(first) = problems.iter().find(|problem| problem.kind != "vanished") else {
                    return Diagnosis { name: name(), ok: true, message: format!("{counts}, all can be opened{cut}") };
                };
                let more = if problems.len() > 1 { format!(" and {} more", problems.len() - 1) } else { String::new() };
                Diagnosis {
                    name: name(),
                    ok: false,
                    message: format!(
                        "{} {}: {}{more}{cut} (a backup would be incomplete: let the user that runs lifeboat read it, or exclude it)",
                        first.object, first.kind, first.message
                    ),
                }
            }
            Err(error) => Diagnosis { name: name(), ok: false, message: error.to_string() },
        }
    }

    fn validate(&self) -> Result<Exclude> {
        if let Some(size) = self.page_size
            && !(size.is_power_of_two() && (512..=65536).contains(&size))
        {
            return Err(Error::new(Kind::Usage, format!("page size {size} is not a power of two from 512 to 65536"))
                .hint("PostgreSQL has pages of 8192 bytes, InnoDB of 16384"));
        }
        Exclude::new(&self.exclude)
    }
}

impl Source for FilesSource {
    fn kind(&self) -> &'static str {
        "files"
    }

    fn diagnose(&self) -> Vec<Diagnosis> {
        let settings = match self.validate() {
            Ok(_) => Diagnosis { name: "settings".into(), ok: true, message: format!("{} excluded patterns", self.exclude.len()) },
            Err(error) => Diagnosis { name: "settings".into(), ok: false, message: error.to_string() },
        };
        let folder = match snapshot::open_root(&self.path) {
            Ok((_, resolved)) => {
                // Patterns that are wrong are told above.
                let exclude = self.validate().unwrap_or_default();
                let begun = snapshot::FilesSnapshot::begin(&self.path, exclude, None, Cancel::default());
                let (ok, message) = match begun.and_then(snapshot::nothing) {
                    Ok(None) => (true, resolved.display().to_string()),
                    Ok(Some(why)) => (false, format!("{}: {why}", resolved.display())),
                    Err(error) => (false, format!("list {}: {error}", resolved.display())),
                };
                Diagnosis { name: "folder".into(), ok, message }
            }
            Err(error) => {
                let cause = error.causes().first().map(|cause| format!(": {cause}")).unwrap_or_default();
                Diagnosis {
                    name: "folder".into(),
                    ok: false,
                    message: format!("{error}{cause} ({})", error.hint_text().unwrap_or_default()),
                }
            }
        };
        let content = (settings.ok && folder.ok).then(|| self.diagnose_content());
        [settings, folder].into_iter().chain(content).collect()
    }

    fn begin(&self, context: &SourceContext) -> Result<Box<dyn SourceSnapshot>> {
        let exclude = self.validate()?;
        Ok(Box::new(snapshot::FilesSnapshot::begin(&self.path, exclude, self.page_size, context.cancel.clone())?))
    }

    fn adopt(&self, restored: &Path, _context: &SourceContext) -> Result<PathBuf> {
        Ok(restored.to_owned())
    }

    fn prove(
        &self,
        restored: &Path,
        request: &ProveRequest,
        context: &SourceContext,
        _usable: &mut dyn FnMut(),
    ) -> Result<Vec<CheckResult>> {
        prove_tree(restored, &request.checks, context)
    }
}

/// What can be proved of a restored tree without knowing what was in it: that all of it can be listed and opened. SQL cannot be asked.
///
/// # Errors
/// [`Kind::Interrupted`].
pub(in crate::source) fn prove_tree(root: &Path, checks: &[crate::source::SqlCheck], context: &SourceContext) -> Result<Vec<CheckResult>> {
    const WANTED: &str = "every entry readable";
    let counted = snapshot::FilesSnapshot::begin(root, Exclude::default(), None, context.cancel.clone()).and_then(snapshot::count_readable);
    let tree = match counted {
        Ok((counts, problems)) => {
            let outcome = if problems.is_empty() { Outcome::Passed } else { Outcome::Failed };
            let first =
                problems.first().map(|problem| format!("; {} {}: {}", problem.object, problem.kind, problem.message)).unwrap_or_default();
            CheckResult { name: "tree".into(), outcome, expected: WANTED.into(), actual: format!("{counts}{first}") }
        }
        Err(error) if error.kind() == Kind::Interrupted => return Err(error),
        Err(error) => CheckResult { name: "tree".into(), outcome: Outcome::Failed, expected: WANTED.into(), actual: error.to_string() },
    };
    let mut results = vec![tree];
    results.extend(checks.iter().map(|check| CheckResult {
        name: check.name.clone(),
        outcome: Outcome::Skipped,
        expected: check.expect.to_string(),
        actual: "files have no SQL".into(),
    }));
    Ok(results)
}

//! Requests for runs, those that wait for their place and those that go on: kept in a file of the state folder, so that the daemon has them again after its end, however it ended.
//!
//! A request is in the file before whoever asked is told that it waits, and until its run is in the journal, under the same id: what is in both
//! has started.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::daemon::job::{Job, Trigger};
use crate::daemon::journal::NewRun;
use crate::error::{Context, Error, Kind, Result};
use crate::id::{Name, RunId};

/// Name of the file below the state folder.
const FILE: &str = "requests.json";

#[derive(Debug, Serialize, Deserialize)]
struct Document {
    version: u32,
    requests: Vec<Kept>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    id: RunId,
    plan: Name,
    job: Job,
    by: String,
}

/// The file, and what is in it.
pub(super) struct Requests {
    path: PathBuf,
    /// `None`: not known.
    kept: Option<BTreeSet<RunId>>,
}

impl Requests {
    pub(super) fn of(state: &Path) -> Self {
        Self { path: state.join(FILE), kept: None }
    }

    /// What waited when the last daemon on this state folder ended, oldest first.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub(super) fn read(&self) -> Result<Vec<NewRun>> {
        let bytes = match std::fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::io(format!("read {}", self.path.display()), error)),
        };
        let what = || format!("read the requests that waited, {}", self.path.display());
        let document: Document = serde_json::from_slice(&bytes).context(Kind::Failed, what)?;
        let run = |Kept { id, plan, job, by }| NewRun { id, plan, job, trigger: Trigger::Manual, by, scheduled: None, story: None };
        Ok(document.requests.into_iter().map(run).collect())
    }

    /// Makes the file hold these; writes only where that is a change.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn keep(&mut self, waiting: &[&NewRun]) -> Result<()> {
        let ids: BTreeSet<RunId> = waiting.iter().map(|run| run.id).collect();
        if self.kept.as_ref() == Some(&ids) {
            return Ok(());
        }
        // What the file holds after a failure is not known.
        self.kept = None;
        let kept = |run: &&NewRun| Kept { id: run.id, plan: run.plan.clone(), job: run.job, by: run.by.clone() };
        let document = Document { version: 1, requests: waiting.iter().map(kept).collect() };
        let text = serde_json::to_vec_pretty(&document).context(Kind::Bug, || "write requests as JSON".to_owned())?;
        crate::daemon::write_private(&self.path, &text)?;
        self.kept = Some(ids);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_there_again_and_a_broken_file_is_an_error() {
        let state = tempfile::tempdir().unwrap();
        let mut requests = Requests::of(state.path());
        assert!(requests.read().unwrap().is_empty());
        let now = "2026-11-20T02:00:00Z".parse().unwrap();
        let run = NewRun::manual(&Name::new("crm").unwrap(), Job::Drill, "api token", now);
        requests.keep(&[&run]).unwrap();
        let read = Requests::of(state.path()).read().unwrap();
        assert_eq!((read.len(), read[0].id, read[0].job, read[0].by.as_str()), (1, run.id, Job::Drill, "api token"));
        requests.keep(&[]).unwrap();
        assert!(Requests::of(state.path()).read().unwrap().is_empty());
        std::fs::write(state.path().join(FILE), "{").unwrap();
        assert!(Requests::of(state.path()).read().is_err());
    }
}

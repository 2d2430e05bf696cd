//! One run with its journal entry: recorded before it starts, closed after, whoever starts it.
//!
//! The command line and the daemon both come through here, so that a manual backup is as well known as a scheduled one and the two
//! never run beside each other.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};

use crate::daemon::journal::{Claim, Ending, ErrorRecord, Filter, Job, Journal, NewRun, Run, State};
use crate::daemon::recorder::Recorder;
use crate::error::{Error, Kind, Result};
use crate::id::RunId;
use crate::ops::backup::BackupReport;
use crate::ops::drill::{DrillReport, DrillRequest};
use crate::ops::resolve::{self, Surroundings};
use crate::ops::restore::RestoreReport;
use crate::ops::verify::{Depth, VerifyReport};
use crate::ops::{backup, drill, verify};
use crate::plan::Plan;
use crate::repo::Repository;

/// A result document that the journal can keep the essence of.
pub trait Outcome {
    /// State, ids and byte counts; phases and warnings are filled in by the runner.
    fn ending(&self) -> Ending;
}

fn ended(exit: Option<Kind>, message: impl FnOnce() -> String) -> Ending {
    let Some(kind) = exit else { return Ending::new(State::Succeeded) };
    let state = if kind == Kind::Incomplete { State::Incomplete } else { State::Failed };
    let error = ErrorRecord { kind: kind.word().to_owned(), message: message(), causes: Vec::new(), hint: None };
    Ending { error: Some(error), ..Ending::new(state) }
}

impl Outcome for BackupReport {
    fn ending(&self) -> Ending {
        Ending {
            bytes_read: Some(self.bytes_read),
            bytes_stored: Some(self.bytes_stored),
            snapshot: Some(self.snapshot.to_string()),
            ..ended(self.exit(), || format!("{} objects of the source could not be backed up as they should", self.problems.len()))
        }
    }
}

impl Outcome for DrillReport {
    fn ending(&self) -> Ending {
        Ending {
            bytes_read: Some(self.bytes_restored),
            snapshot: Some(self.snapshot.to_string()),
            report: Some(self.id.to_string()),
            ..ended(self.exit(), || {
                if self.reasons.is_empty() { format!("the drill ended {}", self.verdict.word()) } else { self.reasons.join("; ") }
            })
        }
    }
}

impl Outcome for VerifyReport {
    fn ending(&self) -> Ending {
        Ending {
            bytes_read: Some(self.bytes_checked),
            report: Some(self.id.to_string()),
            ..ended(self.exit(), || format!("{} findings, {} things not checked", self.findings.len(), self.skipped.len()))
        }
    }
}

impl Outcome for RestoreReport {
    fn ending(&self) -> Ending {
        Ending {
            bytes_read: Some(self.bytes_restored),
            snapshot: Some(self.snapshot.to_string()),
            ..ended(self.exit(), || format!("{} objects were not in the snapshot", self.missing.len()))
        }
    }
}

/// Runs `work` as `run`. `covers`: what the story says beside the result. `work` gets surroundings whose progress is recorded.
///
/// # Errors
/// `Busy` when such a run is going on; what `work` says, after it was recorded; what the journal says.
pub fn journalled<T: Outcome>(
    journal: &Journal,
    run: &NewRun,
    story: Option<String>,
    surroundings: &Surroundings,
    work: impl FnOnce(&Surroundings) -> Result<T>,
) -> Result<(RunId, T)> {
    let claim = journal.begin(run, surroundings.clock.now())?;
    let span = tracing::info_span!("run", id = %claim.id, plan = %run.plan, job = run.job.word(), attempt = claim.attempt);
    let _entered = span.enter();
    tracing::info!(trigger = run.trigger.word(), scheduled = run.scheduled.map(|slot| slot.to_rfc3339()), "run started");
    let (result, ending) = carry_out(run, story, surroundings, work);
    let closed = close(journal, claim, &ending, surroundings.clock.now());
    // The result of the work is what counts; a journal that failed meanwhile is told when there is nothing worse.
    let outcome = result?;
    closed?;
    Ok((claim.id, outcome))
}

/// Like [`journalled`], but nothing that is wrong with the journal stops the work or makes it fail: `told` hears of it. For restores.
///
/// # Errors
/// What `work` says.
pub fn journalled_if_possible<T: Outcome>(
    journal: &Journal,
    run: &NewRun,
    surroundings: &Surroundings,
    told: impl Fn(&Error),
    work: impl FnOnce(&Surroundings) -> Result<T>,
) -> Result<T> {
    let claim = match journal.begin(run, surroundings.clock.now()) {
        Ok(claim) => claim,
        Err(error) => {
            told(&error);
            return work(surroundings);
        }
    };
    let (result, ending) = carry_out(run, None, surroundings, work);
    if let Err(error) = close(journal, claim, &ending, surroundings.clock.now()) {
        told(&error);
    }
    result
}

/// Does the work, and says what the journal is to keep of it.
fn carry_out<T: Outcome>(
    run: &NewRun,
    story: Option<String>,
    surroundings: &Surroundings,
    work: impl FnOnce(&Surroundings) -> Result<T>,
) -> (Result<T>, Ending) {
    let recorder = Arc::new(Recorder::new(Arc::clone(&surroundings.progress)));
    let recorded = Surroundings { progress: recorder.clone(), ..surroundings.clone() };
    // A panic is a bug in one run: it must not leave the row open while this process lives on.
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(&recorded))).unwrap_or_else(|_| {
        Err(Error::new(Kind::Bug, format!("{} of plan {} panicked", run.job.word(), run.plan))
            .hint("please report this, with the lines above"))
    });
    let (phases, warnings) = recorder.finish();
    let ending = match &result {
        Ok(outcome) => outcome.ending(),
        Err(error) => Ending::of_error(error),
    };
    let ending = Ending { story, phases, warnings, ..ending };
    log(&ending);
    (result, ending)
}

fn close(journal: &Journal, claim: Claim, ending: &Ending, now: DateTime<Utc>) -> Result<()> {
    journal.close(claim, ending, now).inspect_err(|error| tracing::error!(error = ?error, "the end of the run could not be recorded"))
}

fn log(ending: &Ending) {
    let kind = ending.error.as_ref().map(|error| error.kind.as_str());
    let message = ending.error.as_ref().map(|error| error.message.as_str());
    let (snapshot, report) = (ending.snapshot.as_deref(), ending.report.as_deref());
    if ending.state == State::Succeeded {
        tracing::info!(snapshot, report, bytes_read = ending.bytes_read, bytes_stored = ending.bytes_stored, "run succeeded");
    } else {
        tracing::error!(state = ending.state.word(), kind, message, snapshot, report, "run did not succeed");
    }
}

/// One job of a plan as the daemon runs it: everything as the plan says.
///
/// # Errors
/// As [`journalled`].
pub fn run_job(journal: &Journal, plan: &Plan, run: &NewRun, story: Option<String>, surroundings: &Surroundings) -> Result<RunId> {
    match run.job {
        Job::Backup => {
            let work = |surroundings: &Surroundings| backup::run(&resolve::plan(plan)?.open(surroundings)?);
            journalled(journal, run, story, surroundings, work).map(|(id, _)| id)
        }
        Job::Drill => {
            let work = |surroundings: &Surroundings| drill::run(&resolve::plan(plan)?.open(surroundings)?, &DrillRequest::default());
            journalled(journal, run, story, surroundings, work).map(|(id, _)| id)
        }
        Job::Verify | Job::Restore => {
            let depth = match plan.verify.data.percent() {
                0 => Depth::Structure,
                percent => Depth::Data { percent },
            };
            let work = |surroundings: &Surroundings| {
                let job = resolve::plan(plan)?.open(surroundings)?;
                verify::run(&job.repository, Some(&plan.name), depth, &*surroundings.clock, &*surroundings.progress, &surroundings.cancel)
            };
            journalled(journal, run, story, surroundings, work).map(|(id, _)| id)
        }
    }
}

/// Finishes the story of runs whose process died. `open` opens the repository of a run's plan, to see whether the snapshot was
/// committed after all; only runs of `wanted` are looked at. Returns what was settled.
///
/// # Errors
/// When the journal cannot be read or written. A repository that cannot be opened is part of the story.
pub fn settle(
    journal: &Journal,
    wanted: impl Fn(&Run) -> bool,
    open: impl Fn(&Run) -> Result<Repository>,
    now: DateTime<Utc>,
) -> Result<Vec<(Run, Ending)>> {
    let mut settled = Vec::new();
    for run in journal.broken()?.into_iter().filter(|run| wanted(run)) {
        let died = format!("process {} on {} ended without closing this run", run.process.pid, run.process.host);
        let ending = match run.job {
            Job::Backup => match open(&run).and_then(|repository| committed(journal, &run, &repository, now)) {
                Ok(Some(snapshot)) => Ending {
                    story: Some(format!("succeeded after a crash: {died}, but its snapshot had been committed")),
                    snapshot: Some(snapshot),
                    ..Ending::new(State::Succeeded)
                },
                Ok(None) => interrupted(format!("{died}; no snapshot was committed, and what was uploaded is used by the next run")),
                Err(error) => interrupted(format!("{died}; whether its snapshot was committed could not be seen: {error:?}")),
            },
            Job::Restore => interrupted(format!("{died}; the target is untouched or whole, `lifeboat restore --resume` continues")),
            Job::Drill | Job::Verify => interrupted(format!("{died}; it left no report")),
        };
        if journal.settle(&run, &ending, now)? {
            tracing::warn!(run = %run.id, plan = %run.plan, job = run.job.word(), state = ending.state.word(), story = ending.story.as_deref(), "a broken run was settled");
            settled.push((run, ending));
        }
    }
    Ok(settled)
}

fn interrupted(story: String) -> Ending {
    Ending { story: Some(story), ..Ending::new(State::Interrupted) }
}

/// The snapshot that a broken backup committed: of the same plan and host, begun while the run was on, and of no other run.
fn committed(journal: &Journal, run: &Run, repository: &Repository, now: DateTime<Utc>) -> Result<Option<String>> {
    // The manifest's clock is the same machine's, read a moment after the run's.
    let (from, to) = (run.started - TimeDelta::seconds(1), now + TimeDelta::seconds(1));
    let known = journal.runs(&Filter { plan: Some(run.plan.clone()), job: Some(Job::Backup), ..Filter::default() })?;
    let (manifests, damaged) = repository.sound_manifests(Some(&run.plan))?;
    let found = manifests
        .iter()
        .filter(|manifest| manifest.host == run.process.host && (from..=to).contains(&manifest.started))
        .map(|manifest| manifest.id.to_string())
        .find(|id| known.iter().all(|other| other.snapshot.as_deref() != Some(id)));
    // A manifest that cannot be read may be the one.
    match (found, damaged.into_iter().next()) {
        (None, Some(error)) => Err(error),
        (found, _) => Ok(found),
    }
}

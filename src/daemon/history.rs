//! Runs as documents: `lifeboat.runs/1` and `lifeboat.run/1`, for the command line and the API alike.

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Value, json};

use crate::daemon::journal::{Attempt, Filter, Job, Journal, Run, State, Trigger};
use crate::error::Result;
use crate::id::{Name, SnapshotId};
use crate::plan::Plans;

/// A run whose process is gone does not run, even though nobody has settled it yet.
///
/// # Errors
/// When the journal cannot be asked.
pub fn as_they_are(journal: &Journal, mut runs: Vec<Run>) -> Result<Vec<Run>> {
    let broken = journal.broken()?;
    for run in runs.iter_mut().filter(|run| broken.iter().any(|broken| broken.id == run.id)) {
        run.state = State::Interrupted;
        let gone = format!("process {} on {} is gone; the next run of the plan settles it", run.process.pid, run.process.host);
        run.story = Some(run.story.take().map_or_else(|| gone.clone(), |story| format!("{story}; {gone}")));
    }
    Ok(runs)
}

/// Snapshots that these runs committed to a repository: that of the plans in `own`, or one that the plans copy to under the name `repository`. Pure.
///
/// Only what is certain: a backup that ended with its snapshot, and the last one of a copy that succeeded.
#[must_use]
pub fn committed(runs: &[Run], own: &[Name], repository: Option<&Name>) -> Vec<(Name, SnapshotId)> {
    let one = |run: &Run| {
        let id = match run.job {
            Job::Backup if own.contains(&run.plan) && matches!(run.state, State::Succeeded | State::Incomplete) => run.snapshot.clone()?,
            Job::Copy if run.state == State::Succeeded => {
                let (name, id) = run.announced.as_deref()?.split_once('/')?;
                (repository.map(Name::as_str) == Some(name)).then(|| id.to_owned())?
            }
            _ => return None,
        };
        Some((run.plan.clone(), id.parse().ok()?))
    };
    runs.iter().filter_map(one).collect()
}

/// What the journal says was committed to a repository of the plan files, by its name there: what must be there, unless retention removed it.
///
/// # Errors
/// When the journal cannot be read.
pub fn committed_to(journal: &Journal, plans: &Plans, repository: &Name) -> Result<Vec<(Name, SnapshotId)>> {
    let own: Vec<Name> = plans.plans.values().filter(|plan| plan.repository.name == *repository).map(|plan| plan.name.clone()).collect();
    // The runs of one job of one plan at a time: a year of all of them would fill the memory.
    let mut all = Vec::new();
    let mut ask = |plan: &Name, job| -> Result<()> {
        let runs = journal.runs(&Filter { plan: Some(plan.clone()), job: Some(job), ..Filter::default() })?;
        all.extend(committed(&runs, &own, Some(repository)));
        Ok(())
    };
    for plan in plans.plans.values() {
        if plan.repository.name == *repository {
            ask(&plan.name, Job::Backup)?;
        }
        if plan.copies.iter().any(|copy| copy.to.name == *repository) {
            ask(&plan.name, Job::Copy)?;
        }
    }
    Ok(all)
}

/// `lifeboat.runs/1`.
#[must_use]
pub fn runs_document(runs: &[Run]) -> Value {
    json!({ "schema": "lifeboat.runs/1", "runs": runs.iter().map(|run| document(run, &[])).collect::<Vec<_>>() })
}

/// `lifeboat.run/1`.
#[must_use]
pub fn run_document(run: &Run, attempts: &[Attempt]) -> Value {
    let mut shown = document(run, attempts);
    shown["schema"] = json!("lifeboat.run/1");
    shown
}

/// How long a run took; `None`: it goes on, or nobody knows: of a backup that was made anew from its snapshot only the moments of that are known.
#[must_use]
pub fn duration_ms(run: &Run) -> Option<u64> {
    if run.trigger == Trigger::Rebuilt && run.job == Job::Backup {
        return None;
    }
    u64::try_from((run.ended? - run.started).num_milliseconds()).ok()
}

fn utc(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}

fn document(run: &Run, attempts: &[Attempt]) -> Value {
    json!({
        "id": run.id, "plan": run.plan, "job": run.job, "trigger": run.trigger, "by": run.by, "scheduled_at": run.scheduled.map(utc),
        "attempt": run.attempt, "state": run.state, "started_at": utc(run.started), "ended_at": run.ended.map(utc),
        "duration_ms": duration_ms(run), "error": run.error, "story": run.story, "phases": run.phases, "warnings": run.warnings,
        "bytes_read": run.bytes_read, "bytes_stored": run.bytes_stored, "snapshot": run.snapshot, "report": run.report,
        "node": run.node, "host": run.process.host, "pid": run.process.pid,
        "earlier_attempts": attempts.iter().map(|attempt| json!({
            "attempt": attempt.attempt, "started_at": utc(attempt.started), "ended_at": utc(attempt.ended), "state": attempt.state,
            "error": attempt.error, "story": attempt.story,
        })).collect::<Vec<_>>(),
    })
}

//! `lifeboat run …`

use std::fmt::Write as _;

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Value, json};

use crate::cli::args::RunCommand;
use crate::cli::{App, Exit, render};
use crate::daemon::journal::{Attempt, ErrorRecord, Filter, Journal, Run, State};
use crate::error::{Error, Kind, Result};
use crate::id::Name;

pub(super) fn run(app: &App, command: &RunCommand) -> Result<Exit> {
    let journal = Journal::open_existing(&app.state()?, app.clock.now())?;
    match command {
        RunCommand::History { plan, limit } => {
            let plan = plan.as_deref().map(Name::new).transpose()?;
            let filter = Filter { plan, limit: *limit, ..Filter::default() };
            let runs = journal.map_or_else(|| Ok(Vec::new()), |journal| as_they_are(&journal, journal.runs(&filter)?))?;
            let document = json!({ "schema": "lifeboat.runs/1", "runs": runs.iter().map(|run| document(run, &[])).collect::<Vec<_>>() });
            app.output.result(&document, || history_text(&runs))?;
        }
        RunCommand::Show { id } => {
            let journal =
                journal.ok_or_else(|| Error::new(Kind::NotFound, format!("find run {id}: nothing was ever run with this state folder")))?;
            let run = as_they_are(&journal, vec![find(&journal, id)?])?.remove(0);
            let attempts = journal.attempts(run.id)?;
            let mut shown = document(&run, &attempts);
            shown["schema"] = json!("lifeboat.run/1");
            app.output.result(&shown, || text(&run, &attempts))?;
        }
    }
    Ok(None)
}

/// By id or a unique beginning of it, in any case.
fn find(journal: &Journal, id: &str) -> Result<Run> {
    let wanted = id.to_ascii_lowercase();
    let mut found = journal.runs(&Filter::default())?.into_iter().filter(|run| run.id.to_string().starts_with(&wanted));
    match (found.next(), found.next()) {
        (Some(run), None) => Ok(run),
        (None, _) => Err(Error::new(Kind::NotFound, format!("find run {id}: no such run")).hint("`lifeboat run history` lists the runs")),
        (Some(_), Some(_)) => Err(Error::new(Kind::Usage, format!("find run {id}: several runs begin so")).hint("give more of the id")),
    }
}

/// A run whose process is gone does not run, even though nobody has settled it yet.
fn as_they_are(journal: &Journal, mut runs: Vec<Run>) -> Result<Vec<Run>> {
    let broken = journal.broken()?;
    for run in runs.iter_mut().filter(|run| broken.iter().any(|broken| broken.id == run.id)) {
        run.state = State::Interrupted;
        run.story = Some(format!("process {} on {} is gone; the next run of the plan settles it", run.process.pid, run.process.host));
    }
    Ok(runs)
}

/// The state in words. An objective that was missed is no failure of the recovery.
fn state(run: &Run) -> &'static str {
    let missed = run.kind.as_deref() == Some(Kind::ObjectiveMissed.word());
    if missed { "passed, objective missed" } else { run.state.word() }
}

fn utc(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}

fn document(run: &Run, attempts: &[Attempt]) -> Value {
    json!({
        "id": run.id, "plan": run.plan, "job": run.job, "trigger": run.trigger, "by": run.by, "scheduled_at": run.scheduled.map(utc), "attempt": run.attempt,
        "state": run.state, "started_at": utc(run.started), "ended_at": run.ended.map(utc), "duration_ms": duration_ms(run),
        "error": run.error, "story": run.story, "phases": run.phases, "warnings": run.warnings, "bytes_read": run.bytes_read,
        "bytes_stored": run.bytes_stored, "snapshot": run.snapshot, "report": run.report, "host": run.process.host, "pid": run.process.pid,
        "earlier_attempts": attempts.iter().map(|attempt| json!({
            "attempt": attempt.attempt, "started_at": utc(attempt.started), "ended_at": utc(attempt.ended), "state": attempt.state,
            "error": attempt.error, "story": attempt.story,
        })).collect::<Vec<_>>(),
    })
}

fn duration_ms(run: &Run) -> Option<u64> {
    u64::try_from((run.ended? - run.started).num_milliseconds()).ok()
}

fn what(run: &Run) -> String {
    run.error
        .as_ref()
        .map(ErrorRecord::line)
        .or_else(|| run.story.clone())
        .or_else(|| run.snapshot.as_ref().map(|id| format!("snapshot {id}")))
        .unwrap_or_default()
}

fn history_text(runs: &[Run]) -> String {
    if runs.is_empty() {
        return "no runs yet\n".to_owned();
    }
    let rows: Vec<Vec<String>> = runs
        .iter()
        .map(|run| {
            vec![
                run.id.to_string(),
                run.plan.to_string(),
                run.job.word().to_owned(),
                run.trigger.word().to_owned(),
                render::time(run.started),
                render::or_dash(duration_ms(run).filter(|_| run.state != State::Missed).map(render::duration_ms)),
                state(run).to_owned(),
                what(run),
            ]
        })
        .collect();
    render::table(&["id", "plan", "job", "trigger", "started", "took", "state", ""], &rows, &[5])
}

fn text(run: &Run, attempts: &[Attempt]) -> String {
    let mut pairs = vec![
        ("run", run.id.to_string()),
        ("plan", run.plan.to_string()),
        ("job", run.job.word().to_owned()),
        ("state", state(run).to_owned()),
        ("trigger", run.trigger.word().to_owned()),
        ("started", render::time(run.started)),
        ("ended", render::or_dash(run.ended.map(render::time))),
        ("took", render::or_dash(duration_ms(run).map(render::duration_ms))),
        ("started by", render::or_dash(run.by.clone())),
        ("process", format!("{} on {}", run.process.pid, run.process.host)),
    ];
    if let Some(slot) = run.scheduled {
        pairs.push(("scheduled for", render::time(slot)));
        pairs.push(("attempt", run.attempt.to_string()));
    }
    pairs.extend(run.snapshot.iter().map(|id| ("snapshot", id.clone())));
    pairs.extend(run.report.iter().map(|id| ("report", id.clone())));
    pairs.extend(run.bytes_read.map(|bytes| ("read", render::bytes(bytes))));
    pairs.extend(run.bytes_stored.map(|bytes| ("stored", render::bytes(bytes))));
    pairs.extend(run.story.iter().map(|story| ("story", story.clone())));
    let mut text = render::pairs(&pairs);
    for phase in &run.phases {
        let _ = writeln!(text, "phase {}: {}, {}", phase.name, render::duration_ms(phase.duration_ms), render::bytes(phase.bytes));
    }
    for warning in &run.warnings {
        let _ = writeln!(text, "warning: {warning}");
    }
    if let Some(error) = &run.error {
        let _ = writeln!(text, "error ({}): {}", error.kind, error.message);
        text.extend(error.causes.iter().map(|cause| format!("  because: {cause}\n")));
        text.extend(error.hint.iter().map(|hint| format!("hint: {hint}\n")));
    }
    for attempt in attempts {
        let error = attempt.error.as_ref().map_or_else(String::new, |error| format!(": {}", error.line()));
        let _ = writeln!(text, "attempt {}: {} {}{error}", attempt.attempt, render::time(attempt.started), attempt.state.word());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::journal::{Ending, ErrorRecord, Job, NewRun};

    #[test]
    fn history_says_how_runs_stand() {
        let folder = tempfile::tempdir().unwrap();
        let now = DateTime::from_timestamp(1_790_000_000, 0).unwrap();
        let journal = Journal::open(folder.path(), now).unwrap();
        let new = |job| NewRun::manual(&Name::new("crm").unwrap(), job, "tester", now);
        let drilled = journal.begin(&new(Job::Drill), now).unwrap();
        let error = ErrorRecord { kind: Kind::ObjectiveMissed.word().into(), message: "too slow".into(), causes: Vec::new(), hint: None };
        journal.close(drilled, &Ending { error: Some(error), ..Ending::new(State::Succeeded) }, now).unwrap();
        let killed = journal.begin(&new(Job::Backup), now).unwrap();
        let shown = |journal: &Journal| as_they_are(journal, journal.runs(&Filter::default()).unwrap()).unwrap();
        assert!(shown(&journal).iter().any(|run| run.id == killed.id && run.state == State::Running));
        drop(journal);
        let journal = Journal::open(folder.path(), now).unwrap();
        let runs = shown(&journal);
        assert!(runs.iter().any(|run| run.id == killed.id && run.state == State::Interrupted && what(run).contains("is gone")));
        assert_eq!(journal.run(killed.id).unwrap().state, State::Running, "only shown: whoever runs next settles it");
        assert!(history_text(&runs).contains("passed, objective missed"), "{}", history_text(&runs));
    }
}

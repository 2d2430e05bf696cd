//! `lifeboat run …`

use std::fmt::Write as _;
use std::sync::Arc;

use serde_json::json;

use crate::cli::args::RunCommand;
use crate::cli::context::who;
use crate::cli::{App, Exit, render};
use crate::daemon::cancel::{self, Asked};
use crate::daemon::history::{as_they_are, duration_ms, run_document, runs_document};
use crate::daemon::journal::{Attempt, ErrorRecord, Filter, Run, State};
use crate::daemon::rebuild::{self, RebuildReport};
use crate::error::{Error, Kind, Result};
use crate::event::Silent;
use crate::id::Name;

pub(super) fn run(app: &App, command: &RunCommand) -> Result<Exit> {
    if matches!(command, RunCommand::Rebuild) {
        let report = rebuild::run(&app.plans()?, &app.surroundings(Arc::new(Silent))?)?;
        app.output.result(&report, || rebuilt(&report))?;
        return Ok(report.exit());
    }
    let journal = app.journal_to_read()?;
    match command {
        RunCommand::Rebuild => {}
        RunCommand::Cancel { id } => {
            let known = match journal.as_ref().map(|journal| journal.find(id)) {
                Some(Err(error)) if error.kind() != Kind::NotFound => return Err(error),
                found => found.and_then(Result::ok),
            };
            let full = known.as_ref().map_or_else(|| id.to_ascii_lowercase().parse().ok(), |run| Some(run.id));
            let Some(full) = full else {
                return Err(
                    Error::new(Kind::NotFound, format!("cancel run {id}: there is no such run")).hint("`lifeboat run history` lists them")
                );
            };
            let asked = cancel::ask(&app.state()?, journal.as_ref(), full, known.as_ref(), &who())?;
            let document = json!({ "schema": "lifeboat.cancel-request/1", "id": full });
            app.output.result(&document, || match asked {
                Asked::Ending => format!("run {full} was asked to end, and does at its next check: `lifeboat run show {full}`\n"),
                Asked::TakenBack => format!("run {full} had not begun, and will not\n"),
            })?;
        }
        RunCommand::History { plan, limit } => {
            let plan = plan.as_deref().map(Name::new).transpose()?;
            let filter = Filter { plan, limit: *limit, ..Filter::default() };
            let runs = journal.map_or_else(|| Ok(Vec::new()), |journal| as_they_are(&journal, journal.runs(&filter)?))?;
            let document = runs_document(&runs);
            app.output.result(&document, || history_text(&runs))?;
        }
        RunCommand::Show { id } => {
            let journal =
                journal.ok_or_else(|| Error::new(Kind::NotFound, format!("find run {id}: nothing was ever run with this state folder")))?;
            let run = as_they_are(&journal, vec![journal.find(id)?])?.remove(0);
            let attempts = journal.attempts(run.id)?;
            let shown = run_document(&run, &attempts);
            app.output.result(&shown, || text(&run, &attempts))?;
        }
    }
    Ok(None)
}

fn rebuilt(report: &RebuildReport) -> String {
    let mut text = format!("the journal {} is made anew\n", report.journal.display());
    let counts: Vec<String> = report.runs.iter().map(|(job, count)| format!("{count} {job}")).collect();
    let _ = writeln!(text, "runs that the repositories prove: {}", if counts.is_empty() { "none".to_owned() } else { counts.join(", ") });
    if let Some(aside) = &report.aside {
        let _ = writeln!(text, "the old file is kept: {}", aside.display());
    }
    if report.removed > 0 {
        let _ = writeln!(text, "removed by retention, so no longer among them: {} snapshots", report.removed);
    }
    text.push_str("not known any more: runs that failed, restores, the reasons of retries\n");
    for damaged in &report.damaged {
        let _ = writeln!(text, "MISSING: {damaged}");
    }
    text
}

/// The state in words. An objective that was missed is no failure of the recovery.
fn state(run: &Run) -> &'static str {
    let missed = run.kind.as_deref() == Some(Kind::ObjectiveMissed.word());
    if missed { "passed, objective missed" } else { run.state.word() }
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
    use chrono::DateTime;

    use super::*;
    use crate::daemon::journal::{Ending, ErrorRecord, Job, Journal, NewRun};

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

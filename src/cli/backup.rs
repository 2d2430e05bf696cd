//! `lifeboat backup`

use std::fmt::Write as _;

use crate::cli::args::BackupArgs;
use crate::cli::{App, Exit, render};
use crate::daemon::journal::Job;
use crate::error::{Error, Kind, Result};
use crate::ops;
use crate::ops::backup::BackupReport;
use crate::ops::resolve;

pub(super) fn run(app: &App, args: &BackupArgs) -> Result<Exit> {
    let report = make(app, &args.plan)?;
    app.output.result(&report, || text(&report))?;
    Ok(report.exit())
}

/// One backup, without showing its result.
pub(super) fn make(app: &App, plan: &str) -> Result<BackupReport> {
    let plan = app.plan(plan)?;
    let surroundings = app.surroundings(app.progress("backup"))?;
    app.manual(&plan.name, Job::Backup, &surroundings, |surroundings| {
        let job = resolve::plan(&plan)?.open(surroundings)?;
        ops::backup::run(&job)
    })
    .map_err(kept)
}

fn kept(error: Error) -> Error {
    if error.kind() == Kind::Interrupted && error.hint_text().is_none() {
        error.hint("no snapshot was committed; what was uploaded is kept and not sent again by the next backup")
    } else {
        error
    }
}

pub(super) fn text(report: &BackupReport) -> String {
    let mut text = render::pairs(&[
        ("snapshot", report.snapshot.to_string()),
        ("plan", report.plan.clone()),
        ("content of", render::time(report.time)),
        ("read", render::bytes(report.bytes_read)),
        ("stored", render::bytes(report.bytes_stored)),
        ("took", render::duration_ms(report.duration_ms)),
    ]);
    if report.bytes_resumed > 0 {
        let resumed = render::bytes(report.bytes_resumed);
        let _ = writeln!(text, "resumed: {resumed} of what was read had been stored by a run that did not finish, and was not sent again");
    }
    for (source, point) in &report.consistency {
        if let Some(point) = consistency(point) {
            let _ = writeln!(text, "{source}: {point}");
        }
    }
    for warning in &report.warnings {
        let _ = writeln!(text, "warning: {warning}");
    }
    for problem in &report.problems {
        let _ = writeln!(text, "missing: {}: {}: {} ({})", problem.source, problem.object, problem.message, problem.kind);
    }
    if let Some(locks) = &report.locks {
        let _ = writeln!(text, "locked: {} objects, {} of them for longer than before", locks.objects, locks.extended);
    }
    if report.locks.as_ref().is_some_and(|locks| !locks.alarms.is_empty()) {
        text.push_str("NOT SAFE: the snapshot was committed, and what is locked was tampered with or can be: see the warnings\n");
    }
    if !report.problems.is_empty() {
        text.push_str("INCOMPLETE: the snapshot was committed without what is missing above\n");
    }
    text
}

/// What a person wants to know of a consistency point; the whole is in the document. Pure.
fn consistency(point: &serde_json::Value) -> Option<String> {
    let number = |field: &str| point.get(field).and_then(serde_json::Value::as_u64);
    if let Some(mode) = point.get("journal_mode").and_then(serde_json::Value::as_str) {
        let violations = number("foreign_key_violations").filter(|count| *count > 0);
        let violations = violations.map_or_else(String::new, |count| format!(", {count} foreign key violations"));
        let pages = number("page_count").unwrap_or_default();
        return Some(format!("one moment of the database, {pages} pages, {mode} journal{violations}"));
    }
    if let Some(files) = number("files") {
        return Some(format!("{files} files in {} folders, each as it was when it was read", number("folders").unwrap_or_default()));
    }
    if let Some(version) = number("server_version") {
        return Some(of_server(point, &format!("PostgreSQL {}.{}", version / 10_000, version % 10_000)));
    }
    // Other kinds say what they say, without JSON's marks.
    let all: Vec<String> = point.as_object()?.iter().map(|(name, value)| format!("{} {value}", name.replace('_', " "))).collect();
    Some(all.join(", ").replace('"', "")).filter(|text| !text.is_empty())
}

/// Of a PostgreSQL server: where in its log, or of which databases, and what was fingerprinted.
fn of_server(point: &serde_json::Value, version: &str) -> String {
    let number = |value: &serde_json::Value, field: &str| value.get(field).and_then(serde_json::Value::as_u64).unwrap_or_default();
    let mut text = if let Some(databases) = point.get("databases").and_then(serde_json::Value::as_object) {
        let told = databases.iter().map(|(name, of)| {
            let objects = match number(of, "large_objects") {
                0 => String::new(),
                count => format!(", {count} large objects"),
            };
            format!("{name:?}: {} tables, {} rows{objects}", number(of, "tables"), number(of, "rows"))
        });
        format!("{version}, each database at one moment of its own ({})", told.collect::<Vec<_>>().join("; "))
    } else {
        let lsn = point.get("lsn").and_then(serde_json::Value::as_str).unwrap_or("?");
        let standby = if point.get("standby") == Some(&true.into()) { ", a standby" } else { "" };
        format!("{version}{standby}, one moment of the server: {lsn} on timeline {}", number(point, "timeline"))
    };
    if let Some(taken) = point.get("fingerprints") {
        let (tables, rows, waited) = (number(taken, "tables"), number(taken, "rows"), number(taken, "locked_ms"));
        let _ = write!(text, "; {tables} tables fingerprinted ({rows} rows; writers waited {waited} ms at most)");
        for left in taken.get("left_out").and_then(serde_json::Value::as_array).into_iter().flatten() {
            let say = |field: &str| left.get(field).and_then(serde_json::Value::as_str).unwrap_or_default();
            let _ = write!(text, "; not fingerprinted: {} ({})", say("object"), say("message"));
        }
    }
    for warning in point.get("warnings").and_then(serde_json::Value::as_array).into_iter().flatten() {
        let said = warning.as_str().map_or_else(|| warning.to_string(), str::to_owned);
        let _ = write!(text, "; note: {said}");
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_servers_moment_is_told_in_words() {
        let physical = json!({
            "server_version": 170_010, "timeline": 2, "lsn": "0/5000138", "standby": true, "warnings": ["one of \"them\""],
            "fingerprints": { "tables": 2, "rows": 7, "locked_ms": 5, "left_out": [{ "object": "crm.public.t", "message": "it is locked", "kind": "no-fingerprint" }] },
        });
        assert_eq!(
            consistency(&physical).unwrap(),
            "PostgreSQL 17.10, a standby, one moment of the server: 0/5000138 on timeline 2; 2 tables fingerprinted (7 rows; writers waited 5 ms at most); \
             not fingerprinted: crm.public.t (it is locked); note: one of \"them\""
        );
        let logical = json!({
            "method": "logical", "server_version": 150_018,
            "databases": { "Crm \\": { "tables": 2, "rows": 3, "large_objects": 1 }, "b": { "tables": 0, "rows": 0, "large_objects": 0 } },
        });
        assert_eq!(
            consistency(&logical).unwrap(),
            "PostgreSQL 15.18, each database at one moment of its own (\"Crm \\\\\": 2 tables, 3 rows, 1 large objects; \"b\": 0 tables, 0 rows)"
        );
    }
}

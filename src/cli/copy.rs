//! `lifeboat copy`

use std::fmt::Write as _;

use crate::cli::args::CopyArgs;
use crate::cli::{App, Exit, render};
use crate::daemon::journal::Job;
use crate::daemon::runner;
use crate::error::{Error, Kind, Result};
use crate::ops::copy::CopyReport;
use crate::plan::PlannedCopy;

pub(super) fn run(app: &App, args: &CopyArgs) -> Result<Exit> {
    let report = make(app, args)?;
    app.output.result(&report, || text(&report))?;
    Ok(report.exit())
}

/// One copy, without showing its result.
pub(super) fn make(app: &App, args: &CopyArgs) -> Result<CopyReport> {
    let plans = app.plans()?;
    let plan = plans.plan(&args.plan)?;
    let to = plans.repository(&args.to)?;
    if to.name == plan.repository.name {
        return Err(Error::new(Kind::Usage, format!("copy plan {} to {}: that is the plan's own repository", plan.name, to.name))
            .hint("name another repository of the plan files"));
    }
    let planned = plan.copies.iter().find(|copy| copy.to.name == to.name).cloned();
    let mut planned = planned.unwrap_or_else(|| PlannedCopy {
        to: to.clone(),
        schedule: None,
        keep: crate::plan::Keep::default(),
        last: None,
        tags: Vec::new(),
    });
    planned.last = args.last.or(planned.last);
    if !args.tag.is_empty() {
        planned.tags.clone_from(&args.tag);
    }
    let surroundings = app.surroundings(app.progress("copy"))?;
    app.manual(&plan.name, Job::Copy, &surroundings, |surroundings| {
        runner::copy_once(plan, &planned, args.snapshot.clone(), args.all, surroundings)
    })
}

pub(super) fn text(report: &CopyReport) -> String {
    let mut text = String::new();
    for one in &report.snapshots {
        let _ = writeln!(
            text,
            "copied snapshot {} of {} as {}: {} read, {} stored, {}",
            one.original,
            render::time(one.time),
            one.copy,
            render::bytes(one.bytes_read),
            render::bytes(one.bytes_stored),
            render::duration_ms(one.duration_ms)
        );
    }
    for log in report.logs.iter().filter(|log| log.pieces + log.gaps > 0) {
        let gaps = if log.gaps == 0 { String::new() } else { format!(", and {} gaps", log.gaps) };
        let _ = writeln!(text, "copied {} pieces of the log of {} ({}){gaps}", log.pieces, log.source, render::bytes(log.bytes));
    }
    for finding in &report.findings {
        let _ = writeln!(text, "NOT COPIED, DAMAGED: {}: {}", finding.object, finding.message);
    }
    for warning in &report.warnings {
        let _ = writeln!(text, "warning: {warning}");
    }
    let count = report.snapshots.len();
    let _ = writeln!(
        text,
        "plan {} to {} ({}): {} copied, {} there before, {} left out, in {}",
        report.plan,
        report.repository,
        report.to,
        if count == 1 { "1 snapshot".to_owned() } else { format!("{count} snapshots") },
        report.already,
        report.left_out,
        render::duration_ms(report.duration_ms)
    );
    match (report.newest, report.behind_ms) {
        (Some(newest), Some(0)) => {
            let _ = writeln!(text, "the copy has the newest snapshot, of {}", render::time(newest));
        }
        (Some(newest), behind) => {
            let behind = behind.map_or_else(String::new, |behind| format!(", {} behind", render::duration_ms(behind)));
            let _ = writeln!(text, "the newest snapshot in the copy is of {}{behind}", render::time(newest));
        }
        (None, _) => text.push_str("the copy holds no snapshot of this plan\n"),
    }
    text
}

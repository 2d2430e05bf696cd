//! `lifeboat verify`

use std::fmt::Write as _;

use crate::cli::args::VerifyArgs;
use crate::cli::{App, Exit, render};
use crate::daemon::journal::Job;
use crate::error::Result;
use crate::id::Name;
use crate::ops::verify::{Depth, VerifyReport, run as check};

pub(super) fn run(app: &App, args: &VerifyArgs) -> Result<Exit> {
    let report = make(app, args)?;
    app.output.result(&report, || text(&report))?;
    Ok(report.exit())
}

/// One verification, without showing its result.
pub(super) fn make(app: &App, args: &VerifyArgs) -> Result<VerifyReport> {
    let (plan, settings) = app.plan_or_repository(&args.name)?;
    let depth = args.data.map_or(Depth::Structure, |percent| Depth::Data { percent });
    let surroundings = app.surroundings(app.progress("verify"))?;
    // A repository that was asked for by its own name is journalled under that name.
    let name = plan.clone().or_else(|| settings.name.clone()).map_or_else(|| Name::new(args.name.as_str()), Ok)?;
    app.manual(&name, Job::Verify, &surroundings, |surroundings| {
        let repository = settings.open(surroundings)?;
        check(&repository, plan.as_ref(), depth, &*surroundings.clock, &*surroundings.progress, &surroundings.cancel)
    })
}

pub(super) fn text(report: &VerifyReport) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        let _ = writeln!(text, "FOUND {}: {}: {}", finding.kind, finding.object, finding.message);
        if !finding.snapshots.is_empty() {
            let harmed: Vec<String> = finding.snapshots.iter().map(ToString::to_string).collect();
            let _ = writeln!(text, "      harms {}", harmed.join(", "));
        }
    }
    for skipped in &report.skipped {
        let _ = writeln!(text, "not checked: {skipped}");
    }
    for warning in &report.warnings {
        let _ = writeln!(text, "warning: {warning}");
    }
    if report.packs_due == Some(0) && report.packs.is_some_and(|packs| packs > 0) {
        let _ = writeln!(
            text,
            "no stored byte was read: none of the {} packs was due this time; the share goes round, later runs read them",
            report.packs.unwrap_or_default()
        );
    }
    let depth = report.percent.map_or_else(|| report.depth.clone(), |percent| format!("{} ({percent}%)", report.depth));
    let _ = writeln!(
        text,
        "{} objects and {} checked in {}, depth {depth}: {}",
        report.objects_checked,
        render::bytes(report.bytes_checked),
        render::duration_ms(report.duration_ms),
        match report.findings.len() {
            0 => "no findings".to_owned(),
            1 => "1 finding".to_owned(),
            count => format!("{count} findings"),
        }
    );
    text
}

//! `lifeboat verify`

use std::fmt::Write as _;

use crate::cli::args::VerifyArgs;
use crate::cli::{App, Exit, render};
use crate::daemon::journal::Job;
use crate::error::{Error, Kind, Result};
use crate::id::Name;
use crate::ops::keyless::{KeylessReport, run as check_keyless};
use crate::ops::resolve::RepositorySettings;
use crate::ops::verify::{Depth, VerifyReport, run_against as check};
use crate::repo::Passphrase;

pub(super) fn run(app: &App, args: &VerifyArgs) -> Result<Exit> {
    if let Some(url) = &args.keyless {
        return keyless(app, url);
    }
    let report = make(app, args)?;
    app.output.result(&report, || text(&report))?;
    Ok(report.exit())
}

/// The store's credentials are in the environment, as for `--from`.
fn keyless(app: &App, url: &str) -> Result<Exit> {
    let store = RepositorySettings::at(url, Passphrase::new(""))?.open_store()?;
    let progress = app.progress("verify");
    let report = check_keyless(&store, &app.runtime, &*app.clock, &*progress, &app.cancel)?;
    app.output.result(&report, || keyless_text(&report))?;
    Ok(report.exit())
}

fn keyless_text(report: &KeylessReport) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        let _ = writeln!(text, "FOUND {}: {}: {}", finding.kind, finding.object, finding.message);
    }
    for not in &report.not_checked {
        let _ = writeln!(text, "cannot be seen without a key: {not}");
    }
    for warning in &report.warnings {
        let _ = writeln!(text, "warning: {warning}");
    }
    let _ = writeln!(
        text,
        "{}: {} packs and index objects ({}) compared with their names, {} other objects looked at by their shape, in {}: {}",
        report.repository,
        report.objects_compared,
        render::bytes(report.bytes_compared),
        report.objects_shaped,
        render::duration_ms(report.duration_ms),
        findings(report.findings.len())
    );
    text
}

fn findings(count: usize) -> String {
    if count == 0 { "no findings".to_owned() } else { crate::ops::counted(count, "finding") }
}

/// One verification, without showing its result.
pub(super) fn make(app: &App, args: &VerifyArgs) -> Result<VerifyReport> {
    let name = args.name.as_deref().ok_or_else(|| Error::new(Kind::Usage, "nothing was named to verify"))?;
    let (plan, settings) = app.plan_or_repository(name)?;
    let depth = args.data.map_or(Depth::Structure, |percent| Depth::Data { percent });
    let surroundings = app.surroundings(app.progress("verify"))?;
    // A repository that was asked for by its own name is journalled under that name.
    let journalled = plan.clone().or_else(|| settings.name.clone()).map_or_else(|| Name::new(name), Ok)?;
    app.manual(&journalled, Job::Verify, &surroundings, |surroundings| {
        let repository = settings.open(surroundings)?;
        let committed = settings.name.as_ref().map_or_else(|| Ok(Vec::new()), |name| app.committed_to(name))?;
        let (clock, progress) = (&*surroundings.clock, &*surroundings.progress);
        let report = check(&repository, plan.as_ref(), depth, &committed, clock, progress, &surroundings.cancel)?;
        settings.must_belong(&repository, surroundings).map(|()| report)
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
    for finding in &report.replaced {
        let _ = writeln!(
            text,
            "replaced: {}: {}: {} (what it harms was brought back, see `lifeboat snapshots`)",
            finding.kind, finding.object, finding.message
        );
    }
    for finding in &report.accepted {
        let _ = writeln!(
            text,
            "accepted: {}: {}: {} (of what it harms the loss was accepted, or the key was destroyed, see `lifeboat snapshots`)",
            finding.kind, finding.object, finding.message
        );
    }
    for skipped in &report.skipped {
        let _ = writeln!(text, "not checked: {skipped}");
    }
    for warning in &report.warnings {
        let _ = writeln!(text, "warning: {warning}");
    }
    if let Some(packs) = report.packs.filter(|packs| *packs > 0 && report.packs_due == Some(0)) {
        let read = if report.bytes_checked == 0 { "no stored byte was read" } else { "only log was read" };
        let _ = writeln!(text, "{read}: none of the {packs} packs was due this time; the share goes round, later runs read them");
    }
    let depth = report.percent.map_or_else(|| report.depth.clone(), |percent| format!("{} ({percent}%)", report.depth));
    let _ = writeln!(
        text,
        "{} objects and {} checked in {}, depth {depth}: {}",
        report.objects_checked,
        render::bytes(report.bytes_checked),
        render::duration_ms(report.duration_ms),
        findings(report.findings.len())
    );
    text
}

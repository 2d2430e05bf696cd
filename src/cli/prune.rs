//! `lifeboat prune`

use std::fmt::Write as _;

use crate::cli::args::PruneArgs;
use crate::cli::{App, Exit, render};
use crate::daemon::journal::Job;
use crate::daemon::runner;
use crate::error::Result;
use crate::id::Name;
use crate::ops::Commit;
use crate::ops::prune::{PlanRules, PruneReport, run as prune};
use crate::ops::resolve;

pub(super) fn run(app: &App, args: &PruneArgs) -> Result<Exit> {
    let plans = app.plans()?;
    let (plan, settings) = app.plan_or_repository(&args.name)?;
    let surroundings = app.surroundings(app.progress("prune"))?;
    let name = plan.clone().or_else(|| settings.name.clone()).map_or_else(|| Name::new(args.name.as_str()), Ok)?;
    let work = |surroundings: &resolve::Surroundings| -> Result<PruneReport> {
        if let Some(plan) = &plan {
            return runner::prune_once(plans.plan(plan.as_str())?, args.dry_run, surroundings);
        }
        // By its own name: of all plans that have it, or a copy in it.
        let of_repository = |name: &Name| settings.name.as_ref() == Some(name);
        let plans = || plans.plans.values();
        let copies = plans().flat_map(|plan| plan.copies.iter().map(move |copy| (plan, copy)));
        let own = plans().filter(|plan| of_repository(&plan.repository.name)).map(|plan| resolve::rules(plan));
        let rules: Vec<PlanRules> = own
            .chain(copies.filter(|(_, copy)| of_repository(&copy.to.name)).map(|(plan, copy)| resolve::copy_rules(plan, copy)))
            .collect();
        let repository = settings.open(surroundings)?;
        let may = || surroundings.gate.ask(settings.name.as_ref(), Commit::Retention);
        prune(&repository, &rules, args.dry_run, &*surroundings.clock, &*surroundings.progress, &surroundings.cancel, &may)
    };
    // A dry run is no run: nothing is done.
    let report = if args.dry_run { work(&surroundings)? } else { app.manual(&name, Job::Prune, &surroundings, work)? };
    app.output.result(&report, || text(&report))?;
    Ok(report.exit())
}

fn text(report: &PruneReport) -> String {
    let mut text = String::new();
    let rows: Vec<Vec<String>> = report
        .snapshots
        .iter()
        .map(|fate| {
            let verdict = if fate.kept { "keep" } else { "remove" };
            vec![verdict.to_owned(), fate.id.to_string(), fate.plan.clone(), render::time(fate.time), fate.reasons.join("; ")]
        })
        .collect();
    if rows.is_empty() {
        text.push_str("no snapshots\n");
    } else {
        text.push_str(&render::table(&["", "snapshot", "plan", "content of", "why"], &rows, &[]));
        text.push('\n');
    }
    for log in &report.logs {
        let before = log.before.as_deref().map_or_else(String::new, |before| format!(" before {before}"));
        let what = if report.dry_run { "would go" } else { "removed" };
        let _ = writeln!(
            text,
            "log of {} {}: {} pieces, {}{before} {what}; {}",
            log.plan,
            log.source,
            log.pieces,
            render::bytes(log.bytes),
            log.reason
        );
    }
    if report.reports.removed + report.reports.refused > 0 {
        let what = if report.dry_run { "would go" } else { "removed" };
        let _ = writeln!(text, "reports: {} {what} that nothing rests on, {} kept", report.reports.removed, report.reports.kept);
    }
    for blocked in report.blocked.iter().chain(&report.collection.blocked) {
        let _ = writeln!(text, "BLOCKED, nothing is deleted: {blocked}");
    }
    if !report.blocked.is_empty() || !report.collection.blocked.is_empty() {
        let _ = writeln!(
            text,
            "`lifeboat repair` brings back what another repository has; where none has it, it says what is lost and how that is accepted"
        );
    }
    for warning in &report.warnings {
        let _ = writeln!(text, "warning: {warning}");
    }
    text.push_str(&collected(report));
    if let Some(locks) = &report.locks {
        let _ = writeln!(text, "locked: {} objects, {} of them for longer than before", locks.objects, locks.extended);
    }
    for copy in &report.copies {
        let _ = writeln!(text, "\ncopy in {}", copy.name);
        match (&copy.report, &copy.error) {
            (Some(report), _) => text.push_str(&self::text(report)),
            (None, error) => {
                let why = error.as_ref().map_or("it was not pruned", |error| error.message.as_str());
                let _ = writeln!(text, "FAILED, nothing was removed there: {why}");
            }
        }
    }
    text
}

fn collected(report: &PruneReport) -> String {
    let of = &report.collection;
    let mut text = String::new();
    let snapshots = format!("{} snapshot{}", report.snapshots_removed, if report.snapshots_removed == 1 { "" } else { "s" });
    if report.dry_run {
        let mut parts = Vec::new();
        if of.packs_dead > 0 {
            parts.push(format!("{} dead packs with {}", of.packs_dead, render::bytes(of.bytes_dead)));
        }
        if of.packs_to_rewrite > 0 {
            let (bytes, dead) = (render::bytes(of.bytes_to_rewrite), render::bytes(of.bytes_to_free));
            parts.push(format!("{} packs rewritten with {bytes}, {dead} of that dead", of.packs_to_rewrite));
        }
        let what = if parts.is_empty() { String::new() } else { format!(": {}", parts.join(", and ")) };
        let _ = writeln!(text, "would remove {snapshots} and free about {}{what}", render::bytes(of.bytes_dead + of.bytes_to_free));
        let moved = of.bytes_to_rewrite.saturating_sub(of.bytes_to_free);
        if of.bytes_to_free > 0 {
            let _ = writeln!(text, "cost: {} moved for {} freed by rewriting", render::bytes(moved), render::bytes(of.bytes_to_free));
        }
    } else {
        let freed = of.bytes_deleted.saturating_sub(of.bytes_moved);
        let _ = writeln!(
            text,
            "removed {snapshots}; freed {}: {} packs deleted, {} of them rewritten ({} moved), of {} packs with {}; took {}",
            render::bytes(freed),
            of.packs_deleted,
            of.packs_rewritten,
            render::bytes(of.bytes_moved),
            of.packs,
            render::bytes(of.bytes),
            render::duration_ms(report.duration_ms),
        );
    }
    if of.packs_waiting > 0 {
        let _ = writeln!(
            text,
            "waiting: {} packs with {} until these have ended; the next prune looks again",
            of.packs_waiting,
            render::bytes(of.bytes_waiting)
        );
    }
    for session in of.waiting_for.iter().filter(|_| of.packs_waiting > 0) {
        let _ = writeln!(text, "  {session}");
    }
    for session in &of.fenced {
        let _ = writeln!(text, "fenced: {session} (taken for dead; should it still run, it will fail and must be run again)");
    }
    if of.refused > 0 {
        let _ = writeln!(text, "{} objects could not be deleted: the store refused", of.refused);
    }
    text
}

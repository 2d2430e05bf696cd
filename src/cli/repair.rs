//! `lifeboat repair`

use std::fmt::Write as _;
use std::sync::Arc;

use crate::cli::args::RepairArgs;
use crate::cli::context::who;
use crate::cli::output::{ask, can_ask, note};
use crate::cli::{App, Exit, render};
use crate::error::{Error, Kind, Result};
use crate::id::{Name, SnapshotId};
use crate::ops::repair::{Acceptance, LostSnapshot, Other, RepairReport, RepairRequest, apply, plan};
use crate::ops::resolve::{self, RepositorySettings, Surroundings};
use crate::ops::{CommitGate, explain};
use crate::plan::{Plans, Repository};
use crate::repo::LostFormat;

pub(super) fn run(app: &App, args: &RepairArgs) -> Result<Exit> {
    let report = make(app, args)?;
    app.output.result(&report, || text(&report))?;
    Ok(report.exit())
}

fn make(app: &App, args: &RepairArgs) -> Result<RepairReport> {
    let plans = app.plans()?;
    let (_, settings) = app.plan_or_repository(&args.name)?;
    let name = settings.name.clone().ok_or_else(|| Error::new(Kind::Bug, "a repository of the plan files without a name"))?;
    if !args.dry_run && !args.yes && (!can_ask() || app.output.is_json()) {
        return Err(Error::new(Kind::Usage, format!("repair {name}: nobody is there to confirm it"))
            .hint("look at what would be done with --dry-run, then repeat it with --yes"));
    }
    let surroundings = app.surroundings(app.progress("repair"))?;
    let repository = match settings.open(&surroundings) {
        Err(error) if error.kind() == Kind::Damaged => open_without_format(app, args, &settings, &surroundings, error)?,
        opened => opened?,
    };
    let (mut others, mut unreachable) = (Vec::new(), Vec::new());
    for place in places(&plans, &name, &args.from)? {
        match open(&place, &surroundings) {
            Ok(repository) => others.push(Other { name: place.name.clone(), repository }),
            // Another one, or none, may be enough: what could not be asked is told.
            Err(error) => unreachable.push((place.name.clone(), explain(&error))),
        }
    }
    let mut warnings = Vec::new();
    // In an incident the journal may be gone too.
    let committed = app.committed_to(&name).unwrap_or_else(|error| {
        warnings.push(format!("the journal could not be asked which snapshots were committed: {}", explain(&error)));
        Vec::new()
    });
    let accept = (!args.accept_loss.is_empty()).then(|| Acceptance {
        snapshots: args.accept_loss.clone(),
        reason: args.reason.clone().unwrap_or_default(),
        by: format!("{} on {}", who(), rustix::system::uname().nodename().to_string_lossy()),
        plans: plans.plans.keys().cloned().collect(),
    });
    let (dry_run, gate) = (args.dry_run, CommitGate::default());
    let request = RepairRequest { repository, others, unreachable, committed, dry_run, gate, accept };
    let clock = &*surroundings.clock;
    let mut planned = plan(&request, clock, &*surroundings.progress, &surroundings.cancel)?;
    planned.report.warnings.extend(warnings);
    if args.dry_run || !planned.report.has_work() {
        planned.report.dry_run = args.dry_run;
        return Ok(planned.report);
    }
    if !args.yes {
        note(text(&planned.report).trim_end());
    }
    confirmed(args)?;
    apply(planned, &request, clock, &*surroundings.progress, &surroundings.cancel)
}

/// Makes the format object anew, if that is what keeps the repository from being opened.
fn open_without_format(
    app: &App,
    args: &RepairArgs,
    settings: &RepositorySettings,
    surroundings: &Surroundings,
    error: Error,
) -> Result<crate::repo::Repository> {
    let store = settings.open_store()?;
    let Some(lost) = LostFormat::find(&store, &app.runtime, &settings.passphrase)? else { return Err(error) };
    if args.dry_run {
        let hint = format!("`lifeboat repair {} --yes` would {}; what else is wrong can be seen only then", args.name, lost.describe());
        return Err(error.hint(hint));
    }
    note(&format!("the repository does not open: {error}; to do: {}", lost.describe()));
    confirmed(args)?;
    lost.put(&store, &app.runtime)?;
    settings.open(surroundings)
}

fn confirmed(args: &RepairArgs) -> Result<()> {
    if args.yes || ["y", "yes"].contains(&ask("repair? [y/N]")?.to_ascii_lowercase().as_str()) {
        return Ok(());
    }
    Err(Error::new(Kind::Usage, "the repair was not confirmed: nothing was repaired"))
}

fn open(place: &Repository, surroundings: &Surroundings) -> Result<crate::repo::Repository> {
    let repository = resolve::repository(place)?.open(surroundings)?;
    repository.require_reader("read what is to be brought back")?;
    Ok(repository)
}

/// Which repositories may have what this one lost: those named, else all that the plans copy it to, or copy to it.
fn places(plans: &Plans, name: &Name, named: &[String]) -> Result<Vec<Arc<Repository>>> {
    let mut places: Vec<Arc<Repository>> = Vec::new();
    let mut add = |place: &Arc<Repository>| {
        if place.name != *name && places.iter().all(|known| known.name != place.name) {
            places.push(Arc::clone(place));
        }
    };
    if !named.is_empty() {
        for one in named {
            add(plans.repository(one)?);
        }
        return Ok(places);
    }
    for plan in plans.plans.values() {
        let copies = || plan.copies.iter().map(|copy| &copy.to);
        if plan.repository.name == *name || copies().any(|copy| copy.name == *name) {
            add(&plan.repository);
            copies().for_each(&mut add);
        }
    }
    Ok(places)
}

fn text(report: &RepairReport) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        let _ = writeln!(text, "FOUND {}: {}: {}", finding.kind, finding.object, finding.message);
    }
    for action in &report.actions {
        let (what, error) = match (action.done, &action.error) {
            (true, _) => ("done", String::new()),
            (false, None) => ("to do", String::new()),
            (false, Some(error)) => ("FAILED", format!(": {error}")),
        };
        let new = action
            .snapshot
            .map_or_else(String::new, |id| format!(": it is snapshot {id} now, {} were fetched", render::bytes(action.bytes_fetched)));
        let _ = writeln!(text, "{what}: {} {}: {}{new}{error}", action.what, action.object, action.detail);
    }
    for lost in &report.lost {
        if let Some(why) = &lost.unknown {
            let _ = writeln!(text, "UNKNOWN: snapshot {}: {why}", lost.snapshot);
            continue;
        }
        let Some((plan, time)) = lost.plan.as_ref().zip(lost.time) else {
            let _ = writeln!(
                text,
                "LOST: snapshot {}: its manifest is gone or cannot be read, and no other repository gives it whole",
                lost.snapshot
            );
            continue;
        };
        let what = match lost.files_count {
            0 => "not even the names of all files can be read".to_owned(),
            1 => format!("1 file with {} cannot be counted on", render::bytes(lost.bytes)),
            count => format!("{count} files with {} cannot be counted on", render::bytes(lost.bytes)),
        };
        let _ = writeln!(
            text,
            "LOST: of snapshot {} of plan {plan} ({}) {what}, and no other repository gives it whole:",
            lost.snapshot,
            render::time(time)
        );
        for file in &lost.files {
            let _ = writeln!(text, "      {file}");
        }
        if (lost.files.len() as u64) < lost.files_count {
            let _ = writeln!(text, "      and {} more", lost.files_count - lost.files.len() as u64);
        }
        for unread in &lost.unread {
            let _ = writeln!(text, "      and what this names: {unread}");
        }
    }
    let is_accepted = |id: &SnapshotId| report.actions.iter().any(|it| it.what == "accept" && it.object == id.to_string());
    let for_good = |lost: &&LostSnapshot| lost.unknown.is_none() && !is_accepted(&lost.snapshot);
    if let Some(lost) = report.lost.iter().find(for_good) {
        let _ = writeln!(
            text,
            "what is LOST is told by every verification, and may stand in the way of every prune, until it is there again (the store's versions: `lifeboat repo \
             undelete`; another copy of the storage) or its loss is accepted: `lifeboat repair … --accept-loss {} --reason TEXT`",
            lost.snapshot
        );
    }
    for left in &report.left {
        let object = if left.object.is_empty() { String::new() } else { format!("{}: ", left.object) };
        let _ = writeln!(text, "left as it is: {object}{}\n      {}", left.message, left.advice);
    }
    for finding in &report.remaining {
        let _ = writeln!(text, "STILL {}: {}: {}", finding.kind, finding.object, finding.message);
    }
    for warning in &report.warnings {
        let _ = writeln!(text, "warning: {warning}");
    }
    let what = match (report.findings.is_empty() && !report.has_work(), report.dry_run, report.exit()) {
        (true, ..) if report.exit().is_none() => "nothing is wrong",
        (_, true, _) => "a dry run: nothing was repaired",
        (.., None) => "all of it is right again",
        (.., Some(_)) => "NOT ALL OF IT IS RIGHT",
    };
    let _ = writeln!(text, "{} in {}: {what}", report.repository, render::duration_ms(report.duration_ms));
    text
}

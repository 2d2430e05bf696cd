//! `lifeboat snapshots`

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use chrono_tz::Tz;

use crate::cli::args::{SnapshotsArgs, SnapshotsCommand};
use crate::cli::context::who;
use crate::cli::output::note;
use crate::cli::progress::Warnings;
use crate::cli::{App, Exit, render, time};
use crate::error::{Error, Kind, Result};
use crate::id::{Name, SnapshotId};
use crate::ops::explain;
use crate::ops::prune::{self, HoldReport};
use crate::ops::resolve::{self, Surroundings};
use crate::ops::restore::fallback::may_help;
use crate::ops::snapshots::{self, SnapshotList};
use crate::plan::{Plan, Repository};

pub(super) fn run(app: &App, args: &SnapshotsArgs) -> Result<Exit> {
    match &args.command {
        Some(SnapshotsCommand::Hold { id, until, reason }) => {
            return hold(app, id, false, |repository, id, zone, by, now| {
                let until = until.as_deref().map(|until| time::parse(until, zone)).transpose()?;
                prune::hold(repository, id, until, reason, by, now)
            });
        }
        Some(SnapshotsCommand::Release { id, reason }) => {
            return hold(app, id, true, |repository, id, _, by, now| prune::release(repository, id, reason, by, now));
        }
        None => {}
    }
    let surroundings = app.surroundings(Arc::new(Warnings))?;
    if let Some(url) = &args.from {
        let plan = args.plan.as_deref().map(Name::new).transpose()?;
        let repository = App::repository_at(url)?.open(&surroundings)?;
        let found = list(app, &repository, plan.as_ref())?;
        if let (Some(plan), true, true) = (&plan, found.snapshots.is_empty(), found.damaged.is_empty()) {
            return Err(none_of(plan, &list(app, &repository, None)?));
        }
        app.output.result(&found, || text(&found, "the repository holds no snapshot\n"))?;
        return Ok(found.exit());
    }
    let sound = app.sound_plans()?;
    let plans = &sound.plans;
    let found = if let Some(name) = &args.plan {
        let plan = sound.plan(name).map_err(|error| app.of_a_plan_that_is_gone(name, error))?;
        if let Some(name) = &args.repository {
            list(app, &resolve::repository_of(plan, name)?.open(&surroundings)?, Some(&plan.name))?
        } else {
            let own = resolve::repository(&plan.repository).and_then(|own| list(app, &own.open(&surroundings)?, Some(&plan.name)));
            match own {
                Err(error) if may_help(error.kind()) => return from_a_copy(app, plan, &surroundings, error),
                own => own?,
            }
        }
    } else {
        let used: BTreeMap<&Name, &Arc<Repository>> = plans.plans.values().map(|plan| (&plan.repository.name, &plan.repository)).collect();
        let mut all: Option<SnapshotList> = None;
        for repository in used.values() {
            let more = list(app, &resolve::repository(repository)?.open(&surroundings)?, None)?;
            match &mut all {
                Some(all) => {
                    all.snapshots.extend(more.snapshots);
                    all.recovery_ranges.extend(more.recovery_ranges);
                    all.damaged.extend(more.damaged);
                }
                None => all = Some(more),
            }
        }
        let mut all = all.unwrap_or_else(|| SnapshotList {
            schema: "lifeboat.snapshots/1".to_owned(),
            snapshots: Vec::new(),
            recovery_ranges: Vec::new(),
            damaged: Vec::new(),
        });
        all.snapshots.sort_by_key(|snapshot| (snapshot.time, snapshot.id));
        all
    };
    app.output.result(&found, || text(&found, "no snapshots yet; `lifeboat backup PLAN` makes one\n"))?;
    Ok(found.exit())
}

fn list(app: &App, repository: &crate::repo::Repository, plan: Option<&Name>) -> Result<SnapshotList> {
    snapshots::run(repository, plan, app.clock.now())
}

/// What the first copy that can be used holds, where the plan's own repository cannot be.
fn from_a_copy(app: &App, plan: &Plan, surroundings: &Surroundings, error: Error) -> Result<Exit> {
    for copy in resolve::copies(plan) {
        match copy.settings().and_then(|settings| list(app, &settings.open(surroundings)?, Some(&plan.name))) {
            Ok(found) => {
                note(&format!(
                    "warning: THIS IS THE COPY {}, because the plan's own repository cannot be used; what it held beyond that is not known: {}",
                    copy.name(),
                    explain(&error)
                ));
                app.output.result(&found, || text(&found, "the copy holds no snapshot of this plan\n"))?;
                return Ok(Some(found.exit().unwrap_or(Kind::Incomplete)));
            }
            Err(other) => note(&format!("warning: the copy {} cannot be used either: {}", copy.name(), explain(&other))),
        }
    }
    Err(error)
}

/// Holds or releases a snapshot, which is looked for in the repositories of all plans. `held`: also among those that are held and cannot be read.
fn hold(
    app: &App,
    text: &str,
    held: bool,
    act: impl Fn(&crate::repo::Repository, SnapshotId, Tz, &str, DateTime<Utc>) -> Result<HoldReport>,
) -> Result<Exit> {
    let surroundings = app.surroundings(Arc::new(Warnings))?;
    let plans = app.plans()?;
    let used: BTreeMap<&Name, &Arc<Repository>> = plans.plans.values().map(|plan| (&plan.repository.name, &plan.repository)).collect();
    let mut found = Vec::new();
    for repository in used.values() {
        let repository = resolve::repository(repository)?.open(&surroundings)?;
        let (manifests, _) = repository.sound_manifests(None)?;
        let wanted = text.to_ascii_lowercase();
        let begins = |id: &SnapshotId| id.to_string().starts_with(&wanted);
        let known: BTreeSet<SnapshotId> = manifests.iter().map(|manifest| manifest.id).collect();
        if held {
            let unread = repository.ledger()?.holds().keys().filter(|id| begins(id) && !known.contains(id)).copied().collect::<Vec<_>>();
            found.extend(unread.into_iter().map(|id| (repository.clone(), id, None)));
        }
        found.extend(manifests.into_iter().filter(|m| begins(&m.id)).map(|m| (repository.clone(), m.id, Some(m.plan))));
    }
    let (repository, id, plan) = match found.as_slice() {
        [one] => one,
        [] => {
            return Err(Error::new(Kind::NoRecoveryPoint, format!("find snapshot {text}: there is none")).hint("see `lifeboat snapshots`"));
        }
        several => {
            return Err(
                Error::new(Kind::Usage, format!("find snapshot {text}: {} begin with that", several.len())).hint("give more of the id")
            );
        }
    };
    let zone = plan.as_ref().and_then(|plan| plans.plans.get(plan)).map_or(Tz::UTC, |plan| plan.zone());
    let by = format!("{} on {}", who(), rustix::system::uname().nodename().to_string_lossy());
    let report = act(repository, *id, zone, &by, app.clock.now())?;
    app.output.result(&report, || {
        let until = report.until.map_or_else(|| "until it is released".to_owned(), |until| format!("until {}", render::time(until)));
        if report.held {
            format!("snapshot {} of plan {} is held {until}: {}\n", report.snapshot, report.plan, report.reason)
        } else if report.plan.is_empty() {
            format!("snapshot {}, which cannot be read, is no longer held\n", report.snapshot)
        } else {
            format!("snapshot {} of plan {} is no longer held\n", report.snapshot, report.plan)
        }
    })?;
    Ok(None)
}

/// A name that the repository does not know: a slip, most likely, in an incident.
fn none_of(plan: &Name, all: &SnapshotList) -> Error {
    let inside: BTreeSet<&str> = all.snapshots.iter().map(|snapshot| snapshot.plan.as_str()).collect();
    let inside = inside.into_iter().collect::<Vec<_>>().join(", ");
    let hint =
        if inside.is_empty() { "the repository holds no snapshot".to_owned() } else { format!("plans in this repository: {inside}") };
    Error::new(Kind::NoRecoveryPoint, format!("list snapshots: the repository holds none of plan {plan}")).hint(hint)
}

fn text(list: &SnapshotList, none: &str) -> String {
    if list.snapshots.is_empty() && list.damaged.is_empty() {
        return none.to_owned();
    }
    let rows: Vec<Vec<String>> = list
        .snapshots
        .iter()
        .map(|snapshot| {
            let sources: Vec<String> = snapshot.sources.iter().map(|source| format!("{} ({})", source.name, source.kind)).collect();
            vec![
                snapshot.id.to_string(),
                snapshot.plan.clone(),
                render::time(snapshot.time),
                sources.join(", "),
                render::bytes(snapshot.bytes_source),
                render::bytes(snapshot.bytes_stored),
                render::or_dash(snapshot.verified_at.map(render::time)),
                render::or_dash(snapshot.proven_at.map(render::time)),
                match (&snapshot.damaged, snapshot.problems) {
                    _ if snapshot.destroyed_at.is_some() => "DESTROYED".to_owned(),
                    (Some(_), _) => "DAMAGED".to_owned(),
                    (None, 0) => snapshot.held.as_ref().map_or_else(String::new, |why| format!("held: {why}")),
                    (None, problems) => format!("incomplete: {problems} missing"),
                },
            ]
        })
        .collect();
    let mut text = render::table(&["id", "plan", "content of", "sources", "size", "stored", "verified", "proven", ""], &rows, &[4, 5]);
    text.push('\n');
    for snapshot in &list.snapshots {
        if let Some(at) = snapshot.destroyed_at {
            let _ =
                writeln!(text, "DESTROYED: snapshot {}: its key was destroyed at {}: nobody can restore it", snapshot.id, render::time(at));
        } else if let Some(damaged) = &snapshot.damaged {
            let what = match (&snapshot.loss_accepted, &snapshot.replaced_by) {
                (_, Some(by)) => format!("; snapshot {by} stands in its place"),
                (Some(accepted), None) => format!("; this loss was accepted: {accepted}"),
                (None, None) => String::new(),
            };
            let _ = writeln!(text, "DAMAGED: snapshot {}: {}{what}", snapshot.id, damaged.describe());
        }
    }
    for damaged in &list.damaged {
        let _ = writeln!(text, "DAMAGED: {damaged}");
    }
    for range in &list.recovery_ranges {
        let (from, to) = (render::time(range.from), render::time(range.to));
        let how = match (range.continuous, range.points) {
            (true, _) => format!("any moment from {from} to {to}"),
            (false, 1) => format!("1 moment: {from}"),
            (false, points) => format!("{points} moments from {from} to {to}"),
        };
        let _ = writeln!(text, "{} {} can be recovered to {how}", range.plan, range.source);
    }
    text
}

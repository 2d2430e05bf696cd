//! `lifeboat drill …`

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use crate::cli::args::DrillRunArgs;
use crate::cli::output::{note, said_text};
use crate::cli::progress::Warnings;
use crate::cli::{App, Exit, render, time};
use crate::daemon::journal::{Filter, Job, Run};
use crate::error::{Error, IoContext, Kind, Result};
use crate::id::Name;
use crate::ops;
use crate::ops::drill::{DrillReport, DrillRequest};
use crate::ops::resolve;
use crate::ops::select::{Choice, Wanted};
use crate::plan::{Repository, parse_duration};

pub(super) fn run(app: &App, args: &DrillRunArgs) -> Result<Exit> {
    let report = make(app, args)?;
    app.output.result(&report, || ops::report::text(&report))?;
    if let Some(said) = &report.said {
        note(said_text(said).trim_end());
    }
    Ok(report.exit())
}

/// One drill, without showing its report.
pub(super) fn make(app: &App, args: &DrillRunArgs) -> Result<DrillReport> {
    let plan = app.plan(&args.plan)?;
    let keep_target = args.keep_target.as_deref().map(parse_duration).transpose()?;
    let choice = if let Some(at) = &args.at {
        let at = time::parse(at, plan.zone())?;
        note(&format!("recovery point asked for: {}", render::time_in_both(at, plan.zone())));
        Some(Choice::At(at))
    } else if let Some(lsn) = &args.lsn {
        Some(Choice::Along { wanted: Wanted::Lsn(lsn.parse()?), timeline: None })
    } else if args.latest {
        Some(ops::drill::END)
    } else if args.random {
        Some(Choice::Random { seed: random_seed()?, window: Some(plan.drill.window) })
    } else {
        None
    };
    let surroundings = app.surroundings(app.progress("drill"))?;
    app.manual(&plan.name, Job::Drill, &surroundings, |surroundings| {
        let resolved = resolve::plan(&plan)?;
        let resolved = match &args.repository {
            Some(name) => resolved.with(resolve::repository_of(&plan, name)?),
            None => resolved,
        };
        let job = resolved.open(surroundings)?;
        ops::drill::run(&job, &DrillRequest { choice, keep_target })
    })
}

fn random_seed() -> Result<u64> {
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).map_err(|error| Error::new(Kind::Failed, "get a random seed").because(error))?;
    // JSON readers that know only floating point keep 53 bits.
    Ok(u64::from_le_bytes(seed) >> 11)
}

pub(super) fn history(app: &App, plan: Option<&str>) -> Result<Exit> {
    let plans = app.plans()?;
    let surroundings = app.surroundings(Arc::new(Warnings))?;
    let (mut drills, damaged) = if let Some(name) = plan {
        let plan = plans.plan(name)?;
        ops::drill::history(&resolve::repository(&plan.repository)?.open(&surroundings)?, Some(&plan.name))?
    } else {
        let used: BTreeMap<&Name, &Arc<Repository>> = plans.plans.values().map(|plan| (&plan.repository.name, &plan.repository)).collect();
        let (mut all, mut lost) = (Vec::new(), Vec::new());
        for repository in used.values() {
            let (drills, damaged) = ops::drill::history(&resolve::repository(repository)?.open(&surroundings)?, None)?;
            all.extend(drills);
            lost.extend(damaged);
        }
        (all, lost)
    };
    drills.sort_by_key(|drill| drill.id);
    let damaged: Vec<String> = damaged.iter().map(ops::explain).collect();
    let unstored = unstored(app, plan, &drills, &damaged)
        .unwrap_or_else(|error| vec![format!("drills whose report is not in the repository are not known: {}", ops::explain(&error))]);
    let document = json!({ "schema": "lifeboat.drills/1", "drills": drills, "damaged": damaged, "unstored": unstored });
    app.output.result(&document, || history_text(&drills, &damaged, &unstored))?;
    Ok((!damaged.is_empty()).then_some(Kind::Damaged))
}

/// Drills of this host that ended without a report in the repository: only the journal knows of them.
fn unstored(app: &App, plan: Option<&str>, drills: &[DrillReport], damaged: &[String]) -> Result<Vec<String>> {
    let Some(journal) = app.journal_to_read()? else { return Ok(Vec::new()) };
    let filter = Filter { plan: plan.map(Name::new).transpose()?, job: Some(Job::Drill), ..Filter::default() };
    let stored: BTreeSet<String> = drills.iter().map(|drill| drill.id.to_string()).collect();
    let is_damaged = |report: &str| damaged.iter().any(|text| text.contains(&format!("reports/{report}")));
    let lost = |run: &Run| run.report.as_ref().is_some_and(|report| !stored.contains(report) && !is_damaged(report));
    let say = |run: Run| {
        let why = run.error.map(|error| error.message).unwrap_or_default();
        format!("a drill of {} at {} ended {} (run {}): {why}", run.plan, render::time(run.started), run.state.word(), run.id)
    };
    Ok(journal.runs(&filter)?.into_iter().rev().filter(lost).map(say).collect())
}

fn history_text(drills: &[DrillReport], damaged: &[String], unstored: &[String]) -> String {
    let damaged = damaged.iter().fold(String::new(), |text, damaged| text + "DAMAGED: " + damaged + "\n");
    let damaged = unstored.iter().fold(damaged, |text, run| text + "WITHOUT A STORED REPORT: " + run + "\n");
    if drills.is_empty() && !damaged.is_empty() {
        return damaged;
    }
    if drills.is_empty() {
        return "no drills yet; `lifeboat drill run PLAN` makes one\n".to_owned();
    }
    let rows: Vec<Vec<String>> = drills
        .iter()
        .map(|drill| {
            vec![
                drill.id.to_string(),
                drill.plan.clone(),
                render::time(drill.time),
                drill.snapshot.to_string(),
                drill.verdict.word().to_owned(),
                render::or_dash(drill.recovery_time_ms.map(render::duration_ms)),
                render::or_dash(drill.data_loss_ms.map(render::duration_ms)),
                drill.reasons.first().cloned().unwrap_or_default(),
            ]
        })
        .collect();
    render::table(&["id", "plan", "drilled", "snapshot", "verdict", "recovery time", "data loss", ""], &rows, &[5, 6]) + &damaged
}

pub(super) fn report(app: &App, id: &str, html: Option<&Path>) -> Result<Exit> {
    let plans = app.plans()?;
    let surroundings = app.surroundings(Arc::new(Warnings))?;
    // Another repository may have it; one that cannot be opened is told when none has.
    let mut missing = Kind::NotFound;
    for repository in plans.repositories.values() {
        match resolve::repository(repository).and_then(|settings| settings.open(&surroundings)).and_then(|open| ops::drill::find(&open, id))
        {
            Ok(report) => {
                if let Some(file) = html {
                    std::fs::write(file, ops::report_html::html(&report)).io_context(|| format!("write {}", file.display()))?;
                }
                app.output.result(&report, || ops::report::text(&report))?;
                return Ok(None);
            }
            Err(error) if matches!(error.kind(), Kind::Usage | Kind::Damaged) => return Err(error),
            Err(error) if missing == Kind::NotFound => missing = error.kind(),
            Err(_) => {}
        }
    }
    Err(Error::new(missing, format!("find drill report {id}: no repository of the plan files has it"))
        .hint("`lifeboat drill history` lists the drills; for the id of a run, `lifeboat run show ID` gives its report's id"))
}

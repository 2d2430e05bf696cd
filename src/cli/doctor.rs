//! `lifeboat doctor`

use std::fmt::Write as _;
use std::sync::Arc;

use crate::cli::args::DoctorArgs;
use crate::cli::{App, Exit};
use crate::error::{Error, Kind, Result};
use crate::event::Silent;
use crate::ops::doctor::{DoctorReport, run as examine};
use crate::ops::resolve;
use crate::plan::JOBS;

pub(super) fn run(app: &App, args: &DoctorArgs) -> Result<Exit> {
    let plans = app.plans()?;
    let chosen = match &args.plan {
        Some(name) => vec![Arc::clone(plans.plan(name)?)],
        None => plans.plans.values().cloned().collect(),
    };
    if chosen.is_empty() {
        return Err(
            Error::new(Kind::Usage, "there is no plan to examine").hint("declare one in a plan file; `lifeboat plan schema` says how")
        );
    }
    let surroundings = app.surroundings(Arc::new(Silent))?;
    let mut reports = Vec::new();
    for plan in &chosen {
        let scheduled: Vec<&str> = JOBS.into_iter().filter(|job| plan.schedule_of(job).is_some()).collect();
        reports.push(examine(&resolve::plan(plan)?, &scheduled, &surroundings));
    }
    // One plan asked for is one document; all plans are a list of the same documents.
    if args.plan.is_some() {
        for report in &reports {
            app.output.result(report, || text(report))?;
        }
    } else {
        let document =
            serde_json::json!({ "schema": "lifeboat.doctors/1", "ok": reports.iter().all(|report| report.ok), "plans": reports });
        app.output.result(&document, || reports.iter().map(text).collect::<Vec<_>>().join("\n"))?;
    }
    Ok(reports.iter().find_map(DoctorReport::exit))
}

fn text(report: &DoctorReport) -> String {
    let mut text = format!("plan {}\n", report.plan);
    for check in &report.checks {
        let _ = writeln!(text, "  {:6} {}: {}", if check.ok { "ok" } else { "FAILED" }, check.name, check.message);
    }
    text.push_str(if report.ok { "all is well\n" } else { "not ready: see FAILED above\n" });
    text
}

//! `lifeboat status`

use std::fmt::Write as _;
use std::sync::Arc;

use crate::cli::args::StatusArgs;
use crate::cli::{App, Exit, render};
use crate::daemon::journal::Journal;
use crate::daemon::owner::DaemonLock;
use crate::daemon::status::{PlanStatus, Status, gather};
use crate::error::Result;
use crate::event::Silent;

pub(super) fn run(app: &App, args: &StatusArgs) -> Result<Exit> {
    let plans = app.plans()?;
    let surroundings = app.surroundings(Arc::new(Silent))?;
    let journal = Journal::open_existing(&surroundings.state, app.clock.now())?;
    let status = gather(&plans, journal.as_ref(), &surroundings, DaemonLock::is_held(&surroundings.state))?;
    app.output.result(&status, || text(&status))?;
    Ok(status.check().filter(|_| args.check))
}

fn text(status: &Status) -> String {
    let mut text = String::new();
    for plan in &status.plans {
        text.push_str(&plan_text(plan, status));
        text.push('\n');
    }
    text.push_str(if status.daemon {
        "a daemon is running\n"
    } else {
        "no daemon is running on this state folder: schedules are not followed (`lifeboat serve`)\n"
    });
    text
}

fn plan_text(plan: &PlanStatus, status: &Status) -> String {
    let now = status.time;
    let moment =
        |at: Option<_>, never: &str| at.map_or_else(|| never.to_owned(), |at| format!("{} ({})", render::time(at), render::ago(at, now)));
    let against = |value: Option<u64>, limit: Option<u64>, unknown: &str| {
        let limit = limit.map(render::duration_ms);
        match (value.map(render::duration_ms), limit) {
            (Some(value), Some(limit)) => format!("{value} of {limit} allowed"),
            (None, Some(limit)) => format!("{unknown} ({limit} allowed)"),
            (Some(value), None) => format!("{value} (no objective)"),
            (None, None) => format!("{unknown} (no objective)"),
        }
    };
    let next = match (plan.next_run, &plan.next_job) {
        (Some(at), Some(job)) => format!("{job} at {} ({})", render::time(at), render::ago(at, now)),
        _ => "none: no schedule".to_owned(),
    };
    let mut text = format!("{}  {}\n", plan.name, if plan.problems.is_empty() { "OK" } else { "PROBLEMS" });
    let whole = if plan.whole_point == plan.recovery_point {
        None
    } else {
        Some(("  whole", format!("{} (what is newer lacks something or is damaged)", moment(plan.whole_point, "nothing"))))
    };
    let pairs: Vec<(&str, String)> =
        [("  last success", moment(plan.last_success, "never")), ("  can restore to", moment(plan.recovery_point, "nothing"))]
            .into_iter()
            .chain(whole)
            .chain([
                (
                    "  loss if lost now",
                    against(
                        plan.data_loss_ms,
                        plan.data_loss_objective_ms,
                        if plan.whole_point.is_some() { "not known" } else { "everything" },
                    ),
                ),
                ("  recovery takes", against(plan.recovery_time_ms, plan.recovery_time_objective_ms, "not measured yet")),
                (
                    "  last proven",
                    plan.proven_at.map_or_else(
                        || "never".to_owned(),
                        |at| format!("{}, the content of {}", moment(Some(at), ""), render::or_dash(plan.proven_point.map(render::time))),
                    ),
                ),
                ("  next run", next),
            ])
            .collect();
    text.push_str(&render::pairs(&pairs));
    for log in &plan.logs {
        let moment =
            log.server_clock.map_or_else(|| "not known".to_owned(), |at| format!("{} ({})", render::time(at), render::ago(at, now)));
        let _ = writeln!(text, "  log of {}: whole until {moment}, {} behind the server", log.source, render::bytes(log.lag_bytes));
    }
    for copy in &plan.copies {
        let newest = if copy.reachable { moment(copy.newest, "nothing yet") } else { "NOT REACHABLE".to_owned() };
        let behind =
            copy.behind_ms.filter(|behind| *behind > 0).map_or_else(String::new, |ms| format!(", {} behind", render::duration_ms(ms)));
        let _ = writeln!(text, "  copy in {}: has {newest}{behind}", copy.repository);
    }
    for run in &plan.running {
        let _ = writeln!(text, "  running: {run}");
    }
    for problem in &plan.problems {
        let _ = writeln!(text, "  ! {}: {}", problem.kind, problem.message);
    }
    text
}

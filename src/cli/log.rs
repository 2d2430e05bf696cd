//! `lifeboat log …`

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::cli::args::{LogCommand, LogFetchArgs, LogPushArgs};
use crate::cli::output::note;
use crate::cli::{App, Exit, render};
use crate::error::{Error, Kind, Result};
use crate::event::Silent;
use crate::ops::log::archive::Archive;
use crate::ops::log::stream::{self, LogStatus, Persistence};
use crate::ops::log::{fetch, push};
use crate::ops::resolve::{self, Surroundings};
use crate::source::postgres::lsn::Lsn;

pub(super) fn run(app: &App, command: &LogCommand) -> Result<Exit> {
    match command {
        LogCommand::Stream { plan, source } => {
            let plan = app.plan(plan)?;
            let source = stream::choose(&plan, source.as_deref())?;
            let surroundings = app.surroundings(app.progress("log stream"))?;
            let begun = surroundings.clock.now();
            let status = stream::run(&plan, source, Persistence::Foreground, &surroundings)?;
            app.output.result(&status, || text(&status))?;
            Ok(status.exit(begun))
        }
        LogCommand::Push(args) => run_push(app, args),
        // A server takes the exit code of a panic, as every other up to 125, for the end of the log.
        LogCommand::Fetch(args) => catch_unwind(AssertUnwindSafe(|| run_fetch(app, args)))
            .unwrap_or_else(|_| Err(Error::new(Kind::Bug, format!("fetch {}: an invariant of this program does not hold", args.name)))),
    }
}

fn archive(app: &App, plan: &str, source: Option<&str>, repository: Option<&str>) -> Result<(Archive, Surroundings)> {
    let plan = app.sound_plan(plan)?;
    let surroundings = app.surroundings(std::sync::Arc::new(Silent))?;
    let source = stream::choose(&plan, source)?.name.clone();
    let (settings, copies) = match repository {
        Some(name) => (resolve::repository_of(&plan, name)?, Vec::new()),
        None => (resolve::repository(&plan.repository)?, resolve::copies(&plan)),
    };
    let archive = Archive::new(plan.name.clone(), source, settings, &surroundings);
    Ok((archive.with_copies(copies), surroundings))
}

fn run_push(app: &App, args: &LogPushArgs) -> Result<Exit> {
    let (archive, surroundings) = archive(app, &args.plan, args.source.as_deref(), None)?;
    let report = push::run(&archive, &args.path, args.jobs.into(), &surroundings)?;
    // Quiet otherwise: the server writes what is said into its log, for every file.
    app.output.result(&report, String::new)?;
    Ok(None)
}

fn run_fetch(app: &App, args: &LogFetchArgs) -> Result<Exit> {
    let (archive, surroundings) = archive(app, &args.plan, args.source.as_deref(), args.repository.as_deref())?;
    let report = fetch::run(&archive, &args.name, &args.destination, args.jobs.into(), args.end_at_gap, &surroundings)?;
    if let Some((copy, why)) = &report.copy {
        note(&format!("{} is FROM THE COPY {copy}, because the plan's own repository cannot give it: {why}", report.name));
    }
    if !report.found {
        note(&format!("{} is not in the log of source {}", report.name, report.source));
    }
    app.output.result(&report, String::new)?;
    Ok(report.exit())
}

fn text(status: &LogStatus) -> String {
    let mut pairs = vec![
        ("stored up to", format!("{} of timeline {}", status.durable_to, status.timeline)),
        ("all commits until", render::or_dash(status.server_clock.map(render::time))),
        ("behind the server", render::bytes(status.lag_bytes)),
    ];
    pairs.extend(status.gaps.iter().map(|gap| ("GAP", format!("{} to {}: {}", Lsn(gap.from), Lsn(gap.to), gap.reason))));
    pairs.extend(status.damaged.iter().map(|what| ("DAMAGED", what.clone())));
    pairs.extend(status.error.iter().map(|error| ("DID NOT STREAM", error.clone())));
    render::pairs(&pairs)
}

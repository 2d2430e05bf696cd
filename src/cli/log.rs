//! `lifeboat log …`

use crate::cli::args::LogCommand;
use crate::cli::{App, Exit, render};
use crate::error::Result;
use crate::ops::log::stream::{self, LogStatus, Persistence};

pub(super) fn run(app: &App, command: &LogCommand) -> Result<Exit> {
    match command {
        LogCommand::Stream { plan, source } => {
            let plan = app.plan(plan)?;
            let source = stream::choose(&plan, source.as_deref())?;
            let status = stream::run(&plan, source, Persistence::Foreground, &app.surroundings(app.progress("log stream"))?)?;
            app.output.result(&status, || text(&status))?;
        }
    }
    Ok(None)
}

fn text(status: &LogStatus) -> String {
    render::pairs(&[
        ("stored up to", format!("{} of timeline {}", status.durable_to, status.timeline)),
        ("all commits until", render::or_dash(status.server_clock.map(render::time))),
        ("behind the server", render::bytes(status.lag_bytes)),
    ])
}

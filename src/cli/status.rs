//! `lifeboat status`

use std::io::IsTerminal as _;
use std::sync::Arc;

use crate::cli::args::StatusArgs;
use crate::cli::screen::{self, Screen};
use crate::cli::{App, Exit};
use crate::daemon::owner::DaemonLock;
use crate::daemon::reload;
use crate::daemon::status::{Problem, gather};
use crate::error::Result;
use crate::event::Silent;

/// Columns where nobody says how many there are.
const WIDTH: usize = 120;

pub(super) fn run(app: &App, args: &StatusArgs) -> Result<Exit> {
    let sound = app.sound_plans()?;
    let mut plans = sound.plans.clone();
    if let Some(name) = &args.plan {
        let wanted = Arc::clone(sound.plan(name).map_err(|error| app.of_a_plan_that_is_gone(name, error))?);
        plans.plans.retain(|name, _| *name == wanted.name);
    }
    let surroundings = app.surroundings(Arc::new(Silent))?;
    let journal = app.journal_of(sound.clone().with_their_journal())?;
    // On a shared journal any node follows the schedules.
    let nodes =
        journal.as_ref().filter(|journal| journal.is_shared()).map_or_else(|| Ok(Vec::new()), |shared| shared.nodes(app.clock.now()))?;
    let daemon = !nodes.is_empty() || DaemonLock::is_held(&surroundings.state);
    let mut status = gather(&plans, journal.as_ref(), &surroundings, daemon)?;
    if let Some(errors) = &sound.errors
        && status.problems.iter().all(|problem| problem.kind != reload::BROKEN)
    {
        let message = format!(
            "{} in plan files: the plans in them are not shown here, and follow what a daemon read before",
            crate::ops::counted(errors.count(), "error")
        );
        status.problems.push(Problem::new(reload::BROKEN, message));
    }
    let terminal = std::io::stdout().is_terminal();
    let colours = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let screen = Screen { width: width(), colours, all: args.all };
    app.output.result(&status, || screen::text(&status, screen))?;
    Ok(status.check().filter(|_| args.check))
}

/// Of the terminal, or as `COLUMNS` says.
fn width() -> usize {
    let said = std::env::var("COLUMNS").ok().and_then(|text| text.parse().ok());
    let seen = || rustix::termios::tcgetwinsize(std::io::stdout()).ok().map(|size| usize::from(size.ws_col)).filter(|columns| *columns > 0);
    said.or_else(seen).unwrap_or(WIDTH).clamp(60, 400)
}

//! `lifeboat status`

use std::io::IsTerminal as _;
use std::sync::Arc;

use serde_json::json;

use crate::cli::args::StatusArgs;
use crate::cli::screen::{self, Screen};
use crate::cli::{App, Exit};
use crate::daemon::owner::DaemonLock;
use crate::daemon::reload;
use crate::daemon::status::{Problem, STUCK, gather};
use crate::error::{Kind, Result};
use crate::event::Silent;

/// Columns where nobody says how many there are.
const WIDTH: usize = 120;

pub(super) fn run(app: &App, args: &StatusArgs) -> Result<Exit> {
    if args.daemon {
        return daemon(app);
    }
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
        && status.problems.iter().all(|problem| problem.kind != reload::BROKEN.word())
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

/// Whether the daemon is there and its loop turns. What cannot be told is no yes.
fn daemon(app: &App) -> Result<Exit> {
    let state = app.surroundings(Arc::new(Silent))?.state;
    let running = DaemonLock::is_held(&state);
    let silent = DaemonLock::silent_for(&state).filter(|_| running);
    let alive = running && silent.is_some_and(|silent| silent < STUCK);
    let silent_ms = silent.map(|silent| u64::try_from(silent.as_millis()).unwrap_or(u64::MAX));
    let document = json!({ "schema": "lifeboat.daemon/1", "running": running, "silent_ms": silent_ms, "alive": alive });
    app.output.result(&document, || match silent {
        _ if !running => format!("no daemon runs on {}\n", state.display()),
        Some(silent) if alive => format!("the daemon is there and looked at what is due {} s ago\n", silent.as_secs()),
        Some(silent) => format!("the daemon is there and has not looked at what is due for {} s: nothing is started\n", silent.as_secs()),
        None => "a daemon is there, and when it last looked at what is due cannot be told: it is of an older version (start it anew), or on another machine\n"
            .to_owned(),
    })?;
    Ok((!alive).then_some(Kind::Failed))
}

/// Of the terminal, or as `COLUMNS` says.
fn width() -> usize {
    let said = std::env::var("COLUMNS").ok().and_then(|text| text.parse().ok());
    let seen = || rustix::termios::tcgetwinsize(std::io::stdout()).ok().map(|size| usize::from(size.ws_col)).filter(|columns| *columns > 0);
    said.or_else(seen).unwrap_or(WIDTH).clamp(60, 400)
}

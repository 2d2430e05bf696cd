//! `lifeboat serve`

use std::sync::Arc;

use crate::cli::args::ServeArgs;
use crate::cli::{App, Exit};
use crate::daemon::companion::Companion;
use crate::daemon::serve::{self, Setup};
use crate::error::Result;
use crate::event::Silent;

pub(super) fn run(app: &App, _args: &ServeArgs) -> Result<Exit> {
    // Runs tell their story through the log; a bar of several runs at once would tell nobody anything.
    let surroundings = app.surroundings(Arc::new(Silent))?;
    serve::run(Setup { paths: app.plan_folders()?, surroundings, companions: companions() }, |_| {})?;
    Ok(None)
}

/// What lives beside the runs, in the order in which it starts; it is stopped the other way round.
fn companions() -> Vec<Box<dyn Companion>> {
    Vec::new()
}

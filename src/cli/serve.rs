//! `lifeboat serve`

use std::sync::Arc;

use crate::cli::args::ServeArgs;
use crate::cli::{App, Exit};
use crate::daemon::serve;
use crate::error::Result;
use crate::event::Silent;

pub(super) fn run(app: &App, _args: &ServeArgs) -> Result<Exit> {
    let plans = app.plans()?;
    // Runs tell their story through the log; a bar of several runs at once would tell nobody anything.
    serve::run(&plans, &app.surroundings(Arc::new(Silent))?, || {})?;
    Ok(None)
}

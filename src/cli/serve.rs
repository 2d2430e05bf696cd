//! `lifeboat serve`

use std::sync::Arc;

use crate::cli::args::ServeArgs;
use crate::cli::{App, Exit};
use crate::daemon::companion::Companion;
use crate::daemon::serve::{self, Setup};
use crate::error::Result;
use crate::event::Silent;
use crate::id::Name;

pub(super) fn run(app: &App, args: &ServeArgs) -> Result<Exit> {
    // Runs tell their story through the log; a bar of several runs at once would tell nobody anything.
    let surroundings = app.surroundings(Arc::new(Silent))?;
    let word = |text: &String| Name::new(text.clone()).map(|name| name.to_string());
    let (node, labels) = (args.node.as_ref().map(word).transpose()?, args.labels.iter().map(word).collect::<Result<Vec<String>>>()?);
    serve::run(Setup { paths: app.plan_folders()?, surroundings, companions: companions(), node, labels }, |_| {})?;
    Ok(None)
}

/// What lives beside the runs, in the order in which it starts; it is stopped the other way round.
fn companions() -> Vec<Box<dyn Companion>> {
    Vec::new()
}

//! `lifeboat serve`

use std::sync::Arc;

use crate::cli::args::ServeArgs;
use crate::cli::{App, Exit};
use crate::daemon::companion::{Companion, Threaded};
use crate::daemon::notify::Notifications;
use crate::daemon::serve::{self, Setup};
use crate::daemon::systemd;
use crate::error::Result;
use crate::event::Silent;
use crate::id::Name;
use crate::web;

pub(super) fn run(app: &App, args: &ServeArgs) -> Result<Exit> {
    // Runs tell their story through the log; a bar of several runs at once would tell nobody anything.
    let surroundings = app.surroundings(Arc::new(Silent))?;
    let word = |text: &String| Name::new(text.clone()).map(|name| name.to_string());
    // A variable that is set to nothing says nothing.
    let node = args.node.as_ref().filter(|name| !name.is_empty()).map(word).transpose()?;
    let labels = args.labels.iter().filter(|label| !label.is_empty()).map(word).collect::<Result<Vec<String>>>()?;
    let (paths, signals, companions) = (app.plan_folders()?, app.signals.clone(), companions(args)?);
    serve::run(Setup { paths, surroundings, signals, companions, node, labels }, |_| {})?;
    Ok(None)
}

/// What lives beside the runs, in the order in which it starts; it is stopped the other way round.
fn companions(args: &ServeArgs) -> Result<Vec<Box<dyn Companion>>> {
    let notifications = Notifications::default();
    let latest = notifications.latest();
    let mut companions: Vec<Box<dyn Companion>> = vec![Box::new(Threaded::new("systemd", systemd::tell)), Box::new(notifications)];
    // Empty where a service's environment switches it off.
    if let Some(listen) = args.listen.as_deref().filter(|listen| !listen.is_empty()) {
        let settings = web::Settings { listen: listen.parse()?, remote_allowed: args.listen_remote, token_file: args.token_file.clone() };
        companions.push(Box::new(web::Service::new(settings, latest)?));
    }
    Ok(companions)
}

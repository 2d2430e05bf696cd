//! `lifeboat notify test`

use std::sync::Arc;

use crate::cli::args::NotifyCommand;
use crate::cli::{App, Exit, render};
use crate::daemon::notify;
use crate::error::Result;
use crate::event::Silent;

pub(super) fn run(app: &App, command: &NotifyCommand) -> Result<Exit> {
    let NotifyCommand::Test { name } = command;
    let plans = app.plans()?;
    let notifier = plans.notifier(name)?;
    let (report, error) = notify::test(notifier, &app.surroundings(Arc::new(Silent))?);
    if let Some(error) = error {
        return Err(error.within(format!("tell notifier {name} ({}) of a test", report.kind)));
    }
    let text = || {
        let answer = report.answer.as_deref().unwrap_or_default();
        format!(
            "notifier {} ({}) took the test after {}: {answer}\n",
            report.notifier,
            report.kind,
            render::duration_ms(report.duration_ms)
        )
    };
    app.output.result(&report, text)?;
    Ok(None)
}

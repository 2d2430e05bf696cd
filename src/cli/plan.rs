//! `lifeboat plan …`

use crate::cli::args::PlanCommand;
use crate::cli::output::note;
use crate::cli::{App, Exit};
use crate::error::{Error, Kind, Result};
use crate::plan::{Plans, check_json, check_text, explain_json, explain_text, schema_text, show_json, show_text};

pub(super) fn run(app: &App, command: &PlanCommand) -> Result<Exit> {
    match command {
        PlanCommand::Check { paths } => return check(app, paths),
        PlanCommand::Show { name } => {
            let plan = app.plan(name)?;
            app.output.result(&show_json(&plan), || show_text(&plan))?;
        }
        PlanCommand::Explain { name } => {
            let plan = app.plan(name)?;
            let now = app.clock.now();
            app.output.result(&explain_json(&plan, now), || explain_text(&plan, now))?;
        }
        PlanCommand::Schema => app.output.text(&schema_text())?,
    }
    Ok(None)
}

/// All errors at once. With `--json` they are the document; the exit code is the same.
fn check(app: &App, paths: &[std::path::PathBuf]) -> Result<Exit> {
    let paths = if paths.is_empty() { app.plan_folders()? } else { paths.to_vec() };
    match Plans::load(&paths) {
        Ok(plans) => {
            app.output.result(&check_json(&plans), || check_text(&plans))?;
            Ok(None)
        }
        Err(errors) => {
            note(&errors.to_string());
            if app.output.is_json() {
                app.output.document(&errors.to_json())?;
            } else {
                note(&format!("\nerror: {}", Error::from(errors)));
            }
            Ok(Some(Kind::Usage))
        }
    }
}

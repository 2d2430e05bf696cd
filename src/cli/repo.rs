//! `lifeboat repo …`

use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use crate::cli::args::RepoCommand;
use crate::cli::context::shell_word;
use crate::cli::{App, Exit, render};
use crate::error::{Error, Kind, Result};
use crate::event::Silent;
use crate::ops::init::{InitReport, run as create};
use crate::ops::resolve;
use crate::repo::RecoveryKey;

pub(super) fn run(app: &App, command: &RepoCommand) -> Result<Exit> {
    let RepoCommand::Init { name } = command;
    let (report, key) = init(app, name)?;
    if app.output.is_json() {
        let mut document =
            serde_json::to_value(&report).map_err(|error| Error::new(Kind::Bug, "write the result as JSON").because(error))?;
        document["recovery_key"] = json!(key.reveal());
        app.output.document(&document)?;
    } else {
        app.output.text(&text(&report, &key))?;
    }
    Ok(None)
}

/// Makes the repository, without showing its recovery key.
pub(super) fn init(app: &App, name: &str) -> Result<(InitReport, RecoveryKey)> {
    let plans = app.plans()?;
    let settings = resolve::repository(plans.repository(name)?)?;
    create(&settings, &app.surroundings(Arc::new(Silent))?)
}

fn text(report: &InitReport, key: &RecoveryKey) -> String {
    let head = render::pairs(&[
        ("repository", report.name.clone().unwrap_or_default()),
        ("url", report.url.clone()),
        ("id", report.repository.clone()),
    ]);
    let variables =
        report.environment.iter().fold(String::new(), |text, (name, value)| text + name + "=" + &shell_word(Path::new(value)) + " ");
    let credentials = match report.url.split(':').next() {
        Some("s3") => "The store's credentials come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.\n",
        Some("gs" | "az") => "The store's credentials come from the provider's variables.\n",
        _ => "",
    };
    format!(
        "{head}\nRECOVERY KEY (shown once, kept nowhere):\n\n    {}\n\n\
         Write it down or print it, and keep it away from the machines that are backed up. It opens the repository like the\n\
         passphrase does, also when the passphrase is lost:\n\n\
         \x20   {variables}LIFEBOAT_PASSPHRASE='…the key…' lifeboat restore PLAN --from {} --to TARGET\n{credentials}",
        key.reveal(),
        shell_word(Path::new(&report.url))
    )
}

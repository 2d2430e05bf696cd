//! `lifeboat completions`

use clap::CommandFactory;

use crate::cli::args::{Cli, CompletionsArgs};
use crate::cli::{App, Exit};
use crate::error::Result;

pub(super) fn run(app: &App, args: &CompletionsArgs) -> Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "lifeboat", &mut script);
    app.output.raw(&script)?;
    Ok(None)
}

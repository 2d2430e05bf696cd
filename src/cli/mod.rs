//! The command line: arguments, one file a command, rendering, progress. Runs every operation without a daemon.
//!
//! stdout carries results, stderr everything else. The only folder of the library that prints.

pub mod args;
pub mod demo;
pub mod output;
mod progress;
mod render;
pub mod telemetry;
mod time;

mod backup;
mod completions;
mod context;
mod copy;
mod doctor;
mod drill;
mod key;
mod log;
mod man;
mod notify;
mod plan;
mod prune;
mod repair;
mod repo;
mod restore;
mod run;
mod screen;
mod serve;
mod snapshots;
mod status;
mod verify;

pub use context::App;

use args::{Command, DrillCommand, LogCommand};

use crate::error::{Kind, Result};

/// How a command ended although it did not fail: `None` is exit 0.
pub type Exit = Option<Kind>;

/// What `log fetch` ends with when it failed: a server that recovers takes every code up to 125 for the end of the log, and opens.
pub const STOP_RECOVERY: u8 = 150;

/// The exit code of a command that failed.
#[must_use]
pub fn exit_code(command: &Command, kind: Kind) -> u8 {
    match command {
        Command::Log(LogCommand::Fetch(_)) => STOP_RECOVERY,
        _ => kind.exit_code(),
    }
}

/// Runs one command.
///
/// # Errors
/// What the command says; the caller shows it and exits by its kind.
pub fn run(app: &App, command: &Command) -> Result<Exit> {
    match command {
        Command::Demo(args) => demo::run(app, args),
        Command::Plan(command) => plan::run(app, command),
        Command::Doctor(args) => doctor::run(app, args),
        Command::Repo(command) => repo::run(app, command),
        Command::Backup(args) => backup::run(app, args),
        Command::Copy(args) => copy::run(app, args),
        Command::Snapshots(args) => snapshots::run(app, args),
        Command::Restore(args) => restore::run(app, args),
        Command::Verify(args) => verify::run(app, args),
        Command::Repair(args) => repair::run(app, args),
        Command::Prune(args) => prune::run(app, args),
        Command::Drill(DrillCommand::Run(args)) => drill::run(app, args),
        Command::Drill(DrillCommand::History { plan }) => drill::history(app, plan.as_deref()),
        Command::Drill(DrillCommand::Report { id, html }) => drill::report(app, id, html.as_deref()),
        Command::Key(command) => key::run(app, command),
        Command::Log(command) => log::run(app, command),
        Command::Serve(args) => serve::run(app, args),
        Command::Status(args) => status::run(app, args),
        Command::Notify(command) => notify::run(app, command),
        Command::Run(command) => run::run(app, command),
        Command::Completions(args) => completions::run(app, args),
        Command::Man(args) => man::run(app, args),
    }
}

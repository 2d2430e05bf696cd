//! The program: parses the command line, starts tracing, hands over to the library, and turns errors into exit codes.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use lifeboat::cli::args::{Cli, Command};
use lifeboat::cli::telemetry::Telemetry;
use lifeboat::cli::{self, App, output};
use lifeboat::error::{Error, Kind, Result};
use lifeboat::event::Cancel;

fn main() -> ExitCode {
    raise_open_files();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match run(&cli) {
        Ok(exit) => ExitCode::from(exit.map_or(0, Kind::exit_code)),
        Err(error) => {
            let _ = std::io::stderr().lock().write_all(output::error_text(&error).as_bytes());
            if cli.global.json {
                // Nobody is left to tell when even this cannot be written.
                let _ = output::Output::new(true).document(&output::error_document(&error));
            }
            ExitCode::from(cli::exit_code(&cli.command, error.kind()))
        }
    }
}

/// A restore has many files open at once; what starts programs often allows 1024 although the system allows many more.
fn raise_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Where it is not allowed, restores work in smaller batches.
    let _ = setrlimit(Resource::Nofile, limit);
}

fn run(cli: &Cli) -> Result<cli::Exit> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("io")
        .enable_all()
        .build()
        .map_err(|error| Error::io("start the I/O threads", error))?;
    let (telemetry, untraced) = Telemetry::start(&cli.global, matches!(cli.command, Command::Serve(_)), runtime.handle());
    if let Some(error) = untraced {
        output::note(&format!("warning: there are no traces: {error:?}"));
    }
    let cancel = Cancel::default();
    let app = App::new(cli.global.clone(), runtime.handle().clone(), cancel);
    let serves = matches!(cli.command, Command::Serve(_));
    stop_on_signals(&runtime, &app, serves)?;
    let result = cli::run(&app, &cli.command);
    telemetry.finish();
    // Requests that are still in flight after an error are not waited for.
    runtime.shutdown_background();
    result
}

/// The first signal asks everything to stop at its next check; the second one ends the process at once. A terminal or SSH session
/// that goes away (SIGHUP) stops cleanly too, but never at once: it may be told more than once. Under `nohup` it is ignored.
///
/// A daemon (`serves`) lets its runs go on for a while with the first signal, cancels them with the second, and ends at once with the third;
/// SIGHUP has it read its plan files anew.
fn stop_on_signals(runtime: &tokio::runtime::Runtime, app: &App, serves: bool) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let _entered = runtime.enter();
    let listen = |kind| signal(kind).map_err(|error| Error::io("listen to signals", error));
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    let mut hangup = if ignores_hangup() && !serves { None } else { Some(listen(SignalKind::hangup())?) };
    let (cancel, signals) = (app.cancel.clone(), app.signals.clone());
    runtime.spawn(async move {
        loop {
            let hung_up = async {
                match hangup.as_mut() {
                    Some(hangup) => hangup.recv().await,
                    None => std::future::pending().await,
                }
            };
            let is_hangup = tokio::select! {
                _ = interrupt.recv() => false,
                _ = terminate.recv() => false,
                _ = hung_up => true,
            };
            if is_hangup && serves {
                signals.reload();
                continue;
            }
            if is_hangup && cancel.is_cancelled() {
                continue;
            }
            if serves && !signals.drain.is_cancelled() {
                signals.drain.cancel();
                output::note("stopping: runs may end by themselves; once more cancels them");
                continue;
            }
            if cancel.is_cancelled() || output::is_asking() {
                std::process::exit(i32::from(Kind::Interrupted.exit_code()));
            }
            cancel.cancel();
            output::note("stopping cleanly; once more stops at once");
        }
    });
    Ok(())
}

/// Whether this process was started with SIGHUP ignored, as `nohup` does (proc(5), `SigIgn`: bit 0 is signal 1).
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & 1 == 1)
}

/// Help and version go to stdout with exit 0, everything else is a usage error: exit 2, as JSON too where that was asked for.
fn usage(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let _ = error.print();
    if std::env::args_os().any(|word| word == "--json") {
        let text = error.render().to_string();
        let message = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
        let error = Error::new(Kind::Usage, message).hint("`lifeboat COMMAND --help` shows what it takes");
        let _ = output::Output::new(true).document(&output::error_document(&error));
    }
    ExitCode::from(if is_fetch() { cli::STOP_RECOVERY } else { Kind::Usage.exit_code() })
}

/// Whether a line that cannot be understood was to be a restore command.
fn is_fetch() -> bool {
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    let log = words.iter().position(|word| word == "log");
    log.is_some_and(|at| words[at..].iter().any(|word| word == "fetch"))
}

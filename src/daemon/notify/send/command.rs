//! One command: JSON on its standard input, no shell, a clean environment, a time limit. What it prints goes nowhere.

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use zeroize::Zeroizing;

use crate::daemon::notify::event::Notice;
use crate::daemon::notify::send::too_slow;
use crate::error::{Error, Kind, Result};
use crate::plan::{Environment, EnvironmentValue};
use crate::source::command::PASSED_ON;

const LOOK: Duration = Duration::from_millis(20);

/// Runs it; how it ended, which is well only with exit 0.
///
/// # Errors
/// As [`deliver`](crate::daemon::notify::send::deliver).
pub(super) fn run(words: &[String], environment: &Environment, notice: &Notice, timeout: Duration) -> Result<String> {
    let (program, arguments) = words.split_first().ok_or_else(|| Error::new(Kind::Usage, "the command of the notifier is empty"))?;
    let input = serde_json::to_vec(notice).map_err(|error| Error::new(Kind::Bug, "write a notice as JSON").because(error))?;
    let mut command = Command::new(program);
    command.args(arguments).env_clear();
    let passed = |name: &std::ffi::OsStr| name.to_str().is_some_and(|name| PASSED_ON.contains(&name) || name.starts_with("LC_"));
    command.envs(std::env::vars_os().filter(|(name, _)| passed(name)));
    for (name, value) in environment {
        let value = match value {
            EnvironmentValue::Plain(text) => Zeroizing::new(text.clone()),
            EnvironmentValue::Secret(reference) => Zeroizing::new(reference.resolve()?.expose().to_owned()),
        };
        command.env(name, value.as_str());
    }
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    let child = command.spawn().map_err(|error| {
        let kind = if error.kind() == std::io::ErrorKind::NotFound { Kind::Usage } else { Kind::Failed };
        Error::new(kind, format!("start {program}")).because(error).hint("give its full path; no shell is used")
    })?;
    let mut group = Group(child);
    if let Some(mut stdin) = group.0.stdin.take() {
        // One that does not read may block the pipe: the limit ends it, and with it this thread.
        std::thread::spawn(move || {
            // It need not read what it does not want.
            let _ = stdin.write_all(&input);
        });
    }
    let deadline = Instant::now() + timeout;
    loop {
        match group.ended().map_err(|error| Error::io(format!("wait for {program}"), error))? {
            Some(status) if status.success() => return Ok("exit 0".to_owned()),
            Some(status) => {
                return Err(Error::new(Kind::Failed, format!("{program} ended with {status}"))
                    .hint("what it printed is kept nowhere: run it by hand with the JSON of a notice on its standard input"));
            }
            None if Instant::now() >= deadline => return Err(too_slow(timeout).within(format!("{program} was ended"))),
            None => std::thread::sleep(LOOK),
        }
    }
}

/// Ends with everything that it started.
struct Group(Child);

impl Group {
    fn id(&self) -> Option<Pid> {
        i32::try_from(self.0.id()).ok().and_then(Pid::from_raw)
    }

    /// Kills what it left running while its number is still its own: seen to have ended, and not yet reaped.
    fn ended(&mut self) -> std::io::Result<Option<ExitStatus>> {
        let Some(id) = self.id() else { return self.0.wait().map(Some) };
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        if waitid(WaitId::Pid(id), look)?.is_none() {
            return Ok(None);
        }
        // Nobody left in it is as good.
        let _ = kill_process_group(id, Signal::KILL);
        self.0.wait().map(Some)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Not after it was reaped: the number may be somebody else's then.
        if let (Ok(None), Some(id)) = (self.ended(), self.id()) {
            let _ = kill_process_group(id, Signal::KILL);
            let _ = self.0.wait();
        }
    }
}

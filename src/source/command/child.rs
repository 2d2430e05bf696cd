//! A child process in a group of its own, whose end is always seen to.

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process_group, pidfd_open, waitid};
use zeroize::Zeroizing;

use crate::error::{Error, IoContext, Kind, Result};
use crate::event::Cancel;
use crate::source::command::{PASSED_ON, SecretValue};

/// How much of what a command says on standard error is kept: its end, which names the reason.
const MOST_SAID_BYTES: usize = 2048;
/// How often a wait looks at the cancel signal.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
/// How long the rest of standard error is waited for after everything that may write there was killed.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A command with a clean environment and no input.
pub fn command(words: &[String], environment: &[(String, SecretValue)]) -> Command {
    let mut command = Command::new(words.first().map_or("", String::as_str));
    command.args(words.get(1..).unwrap_or_default()).env_clear();
    let inherited =
        std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(|name| PASSED_ON.contains(&name) || name.starts_with("LC_")));
    command.envs(inherited);
    command.envs(environment.iter().map(|(name, value)| (name, value.reveal())));
    command.stdin(Stdio::null()).stderr(Stdio::piped()).process_group(0);
    command
}

/// Finds a program as the system would.
pub fn find_program(program: &str) -> Result<PathBuf> {
    let candidates: Vec<PathBuf> = if program.contains('/') {
        vec![program.into()]
    } else {
        std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).map(|folder| folder.join(program)).collect()
    };
    let runs = |path: &Path| path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok();
    candidates.into_iter().find(|path| runs(path)).ok_or_else(|| missing(program))
}

fn missing(program: &str) -> Error {
    Error::new(Kind::Usage, format!("program {program} was not found or may not be run"))
        .hint("install it, or give its full path; lifeboat uses no shell")
}

/// A running command.
pub struct Child {
    program: String,
    process: std::process::Child,
    group: Option<Pid>,
    said: Arc<Mutex<Vec<u8>>>,
    all_said: Receiver<()>,
    secrets: Vec<Zeroizing<String>>,
    ended: bool,
}

impl Child {
    /// Starts it.
    pub fn spawn(mut command: Command, program: &str, environment: &[(String, SecretValue)]) -> Result<Self> {
        let mut process = command.spawn().map_err(|source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => missing(program).because(source),
            _ => Error::io(format!("run {program}"), source),
        })?;
        let said = Arc::new(Mutex::new(Vec::new()));
        let (done, all_said) = channel();
        let stderr = process.stderr.take();
        let group = i32::try_from(process.id()).ok().and_then(Pid::from_raw);
        let secrets =
            environment.iter().map(|(_, value)| Zeroizing::new(value.reveal().to_owned())).filter(|value| !value.is_empty()).collect();
        let child = Self { program: program.to_owned(), process, group, said: Arc::clone(&said), all_said, secrets, ended: false };
        if let Some(mut stderr) = stderr {
            let listen = move || {
                let mut piece = [0; 1024];
                while let Ok(count @ 1..) = stderr.read(&mut piece) {
                    let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
                    said.extend_from_slice(&piece[..count]);
                    let excess = said.len().saturating_sub(MOST_SAID_BYTES);
                    said.drain(..excess);
                }
                // Nobody may be listening any more.
                let _ = done.send(());
            };
            // On failure the child is dropped, which ends it.
            std::thread::Builder::new().name("command-stderr".into()).spawn(listen).io_context(|| format!("listen to {program}"))?;
        }
        Ok(child)
    }

    pub fn program(&self) -> &str {
        &self.program
    }

    /// Its standard output, once.
    pub fn take_output(&mut self, cancel: Cancel) -> Result<Output> {
        match self.process.stdout.take() {
            Some(output) => Ok(Output { pipe: output.into(), cancel }),
            None => Err(Error::new(Kind::Bug, format!("{} has no output", self.program))),
        }
    }

    /// Waits for its end, ends what it left running, and judges it.
    pub fn wait(&mut self, cancel: &Cancel) -> Result<()> {
        let failed = |errno: Errno| Error::io(format!("wait for {}", self.program), errno.into());
        if let Some(pid) = self.group {
            let watched = pidfd_open(pid, PidfdFlags::empty()).map_err(failed)?;
            loop {
                cancel.check()?;
                match poll(&mut [PollFd::new(&watched, PollFlags::IN)], Some(&LOOK)) {
                    Ok(0) | Err(Errno::INTR) => {}
                    Ok(_) => break,
                    Err(errno) => return Err(failed(errno)),
                }
            }
            // Seen but not yet reaped: until then nobody else can get its number, so the group that is killed is its own.
            waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).map_err(failed)?;
        }
        let status = self.end().io_context(|| format!("wait for {}", self.program))?;
        // What it started outside of its group may keep the stream open for ever.
        let _ = self.all_said.recv_timeout(LAST_WORDS);
        if status.success() {
            return Ok(());
        }
        Err(Error::new(Kind::Failed, format!("{} {}", self.program, describe(status)))
            .saying(self.said())
            .hint("what it said on standard error is shown on the terminal only: run this by hand, or the command itself, as the user that runs lifeboat"))
    }

    /// The end of what it said on standard error, without secrets. Dump and restore programs quote rows there: for [`Error::saying`] only.
    pub fn said(&self) -> Option<String> {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let text = redact(&String::from_utf8_lossy(&said), &self.secrets);
        let text = text.trim();
        (!text.is_empty()).then(|| text.to_owned())
    }

    /// Kills the whole group and reaps the child.
    fn end(&mut self) -> io::Result<ExitStatus> {
        if let (Some(group), false) = (self.group, self.ended) {
            // Nobody left in it is as good.
            let _ = kill_process_group(group, Signal::KILL);
        }
        let status = self.process.wait()?;
        self.ended = true;
        Ok(status)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.end();
        }
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

/// Also takes away a secret whose beginning was cut off with the older text, or that stands there line by line.
fn redact(text: &str, secrets: &[Zeroizing<String>]) -> String {
    let mut text = text.to_owned();
    for secret in secrets {
        text = text.replace(secret.as_str(), "***");
        for line in secret.lines().filter(|line| line.len() >= 4) {
            text = text.replace(line, "***");
        }
        let cut = (4..secret.len()).rev().filter_map(|length| secret.get(secret.len() - length..)).find(|tail| text.starts_with(tail));
        if let Some(tail) = cut {
            text.replace_range(..tail.len(), "***");
        }
    }
    text
}

/// Standard output of a command; reading it ends with an error once the run is cancelled.
pub struct Output {
    pipe: OwnedFd,
    cancel: Cancel,
}

impl Read for Output {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            self.cancel.check().map_err(io::Error::other)?;
            match poll(&mut [PollFd::from_borrowed_fd(self.pipe.as_fd(), PollFlags::IN)], Some(&LOOK)) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => match rustix::io::read(&self.pipe, &mut *buffer) {
                    Err(Errno::INTR) => {}
                    other => return other.map_err(Into::into),
                },
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_taken_out_whole_and_cut() {
        let secrets = [Zeroizing::new("hunter22".to_owned()), Zeroizing::new("first line\nsecond line".to_owned())];
        assert_eq!(redact("login hunter22 failed", &secrets), "login *** failed");
        assert_eq!(redact("ter22 failed", &secrets), "*** failed");
        assert_eq!(redact("near \"second line\"", &secrets), "near \"***\"");
    }
}

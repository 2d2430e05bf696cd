//! Asking a run to end from another process on the same state folder.
//!
//! A run of the daemon is asked by a file `cancel/ID` there, which holds who asks; the daemon takes it within a second. A run of a command is asked
//! by a signal (SIGINT), as whoever typed it would. Both end at their next check and are recorded as interrupted.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::daemon::journal::{Journal, Run, State};
use crate::daemon::owner::{self, DaemonLock};
use crate::error::{Context as _, Error, IoContext as _, Kind, Result};
use crate::id::RunId;

const FOLDER: &str = "cancel";

/// A daemon looks several times a second.
const PATIENCE: Duration = Duration::from_secs(20);

/// One that had its turn and waited for what a killed run left is recorded as taken back a moment later.
const ROW_PATIENCE: Duration = Duration::from_secs(2);

const TICK: Duration = Duration::from_millis(100);

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// It was asked, and ends at its next check.
    Ending,
    /// It had not begun, and will not.
    TakenBack,
}

/// Asks the run `id` to end; `who` asks, for people. `known`: what the journal has of it.
///
/// # Errors
/// `NotFound`; `Busy` when it is over or runs on another machine; `Unavailable` when the daemon does not answer.
pub fn ask(state: &Path, journal: Option<&Journal>, id: RunId, known: Option<&Run>, who: &str) -> Result<Asked> {
    let failed = |kind: Kind, why: String| Error::new(kind, format!("cancel run {id}: {why}"));
    if let Some(run) = known {
        if run.state != State::Running {
            return Err(failed(Kind::Busy, format!("it is over ({})", run.state.word())));
        }
        if run.process.host != owner::host() {
            return Err(failed(Kind::Busy, format!("it runs on {}", run.process.host)).hint("run the same command there"));
        }
        if !owner::is_alive(state, &run.owner)? {
            return Err(failed(Kind::Busy, "its process is gone, or uses another state folder".into())
                .hint("say which with --state; what a process left that is gone is settled by the next run of the plan"));
        }
        if DaemonLock::holder(state) != Some(run.process.pid) {
            // One that settles what a killed run left has the run, and is not the process that it tells of: that number may be anybody's by now.
            if !run.process.is_there() {
                return Err(failed(Kind::Busy, format!("its process {} is gone", run.process.pid)).hint(
                    "there is nothing to end: whether it committed is being found out; `lifeboat run show` tells what became of it",
                ));
            }
            let gone = || failed(Kind::Busy, format!("its process {} is gone", run.process.pid));
            let pid = i32::try_from(run.process.pid).ok().and_then(Pid::from_raw).ok_or_else(gone)?;
            kill_process(pid, Signal::INT)
                .map_err(|error| Error::io(format!("cancel run {id}: signal process {}", run.process.pid), error.into()))?;
            return Ok(Asked::Ending);
        }
    } else if !DaemonLock::is_held(state) {
        return Err(failed(Kind::NotFound, "there is no such run, and no daemon that it could wait for".into())
            .hint("`lifeboat run history` lists them"));
    }
    let path = file(state, id);
    crate::daemon::private_folder(&state.join(FOLDER))?;
    crate::daemon::write_private(&path, who.as_bytes())?;
    let until = Instant::now() + PATIENCE;
    while path.exists() {
        if Instant::now() >= until {
            // The daemon may have been quicker after all.
            let _ = std::fs::remove_file(&path);
            return Err(failed(Kind::Unavailable, "the daemon does not answer".into()).hint("`lifeboat status` says whether it is at work"));
        }
        std::thread::sleep(TICK);
    }
    if known.is_some() {
        return Ok(Asked::Ending);
    }
    let until = Instant::now() + ROW_PATIENCE;
    loop {
        return match journal.map(|journal| journal.run(id)) {
            // It began in between, and was asked.
            Some(Ok(run)) if run.state == State::Running => Ok(Asked::Ending),
            Some(Ok(run)) if run.state == State::Interrupted => Ok(Asked::TakenBack),
            Some(Ok(run)) => Err(failed(Kind::Busy, format!("it is over ({})", run.state.word()))),
            Some(Err(_)) if Instant::now() < until => {
                std::thread::sleep(TICK);
                continue;
            }
            _ => Err(failed(Kind::NotFound, "there is no such run, and none that waits".into()).hint("`lifeboat run history` lists them")),
        };
    }
}

fn file(state: &Path, id: RunId) -> PathBuf {
    state.join(FOLDER).join(id.to_string())
}

/// What others asked of the daemon since the last call: which run, and who. Call [`done`] for each.
///
/// # Errors
/// When the folder is there and cannot be read.
pub(super) fn asked(state: &Path) -> Result<Vec<(RunId, String)>> {
    let folder = state.join(FOLDER);
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io(format!("read folder {}", folder.display()), error)),
    };
    let mut asked = Vec::new();
    for entry in entries {
        let entry = entry.io_context(|| format!("read folder {}", folder.display()))?;
        // A file that is being written has another name.
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<RunId>().ok()) else { continue };
        let who = std::fs::read_to_string(entry.path()).context(Kind::Failed, || format!("read {}", entry.path().display()))?;
        asked.push((id, who));
    }
    Ok(asked)
}

/// Whoever asked goes on.
///
/// # Errors
/// When the file cannot be removed.
pub(super) fn done(state: &Path, id: RunId) -> Result<()> {
    let path = file(state, id);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(format!("remove {}", path.display()), error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock as _, SystemClock};
    use crate::daemon::journal::{FILE, Job, NewRun};
    use crate::id::Name;

    #[test]
    fn a_process_that_has_the_number_of_one_that_is_gone_gets_no_signal() {
        let folder = tempfile::tempdir().unwrap();
        let now = SystemClock.now();
        {
            let dead = Journal::open(folder.path(), now).unwrap();
            dead.begin(&NewRun::manual(&Name::new("crm").unwrap(), Job::Backup, "tester", now), now).unwrap();
        }
        // As the daemon does that settles it.
        let settling = Journal::open(folder.path(), now).unwrap();
        let taken = settling.take_over(&settling.broken().unwrap()[0], now).unwrap().unwrap();
        let mut other = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let journal = rusqlite::Connection::open(folder.path().join(FILE)).unwrap();
        journal.execute("UPDATE runs SET pid = ?1", [other.id()]).unwrap();
        let run = settling.run(taken.id).unwrap();
        let asked = ask(folder.path(), Some(&settling), run.id, Some(&run), "ann");
        let lives = other.try_wait().unwrap().is_none();
        other.kill().unwrap();
        other.wait().unwrap();
        let error = asked.unwrap_err();
        assert!(lives && error.kind() == Kind::Busy && error.to_string().contains("is gone"), "{error:?}");
    }
}

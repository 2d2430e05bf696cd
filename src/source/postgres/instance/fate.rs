//! How a server, or a program of one, came to its end: by what it holds, or because something else ended it.
//!
//! Only the first may be damage. The kernel ends the largest process where memory is short (signal 9); an operator or a supervisor ends what it takes for a server
//! that is left over. A signal that says that a process went wrong by itself, and what a server calls `PANIC`, or `FATAL` while it recovers, is never taken for that.

use std::error::Error as StdError;
use std::fmt;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use crate::error::{Error, Kind};

/// SIGILL, SIGTRAP, SIGABRT (which is how a `PANIC` ends), SIGBUS, SIGFPE, SIGSEGV: no other process sends them.
const OF_ITSELF: [i32; 6] = [4, 5, 6, 7, 8, 11];
/// What to do about it.
const MEMORY: &str = "this says nothing about the backup: the kernel ends the largest process where memory is short (dmesg has \"Out of memory: Killed process\"; in a container, \
     its memory limit): give this host more, or use another one, and run the same again; or somebody ended it";

/// What something else than its content ended, as the cause of an [`Error`].
#[derive(Debug)]
struct Lost(String);

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl StdError for Lost {}

/// How a server stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    Runs,
    /// It, or one of its processes, ended by itself: why, with its last words.
    Fell(String),
    /// Something else ended it: what.
    Lost(String),
}

/// `what` could not be done because something else ended who did it; `why` is of that.
pub(in crate::source::postgres) fn lost(what: impl Into<String>, why: impl Into<String>) -> Error {
    // Not `Unavailable`: no copy of the repository would help.
    Error::new(Kind::Failed, what).because(Lost(why.into())).hint(MEMORY)
}

/// Whether that is why.
#[must_use]
pub fn is_lost(error: &Error) -> bool {
    let mut next = error.source();
    while let Some(cause) = next {
        if cause.is::<Lost>() {
            return true;
        }
        next = cause.source();
    }
    false
}

/// What to do where that is why.
#[must_use]
pub fn advice() -> &'static str {
    MEMORY
}

/// The signal by which something else ended a process. `None`: it ended otherwise.
#[must_use]
pub(in crate::source::postgres) fn from_outside(status: ExitStatus) -> Option<i32> {
    status.signal().filter(|signal| !OF_ITSELF.contains(signal))
}

/// What a process that has ended says of it, in words.
pub(super) fn ended(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("it exited with {code}"),
        (None, Some(signal)) => format!("it was killed by signal {signal}"),
        (None, None) => "it ended".into(),
    }
}

/// What a server said, without when, and by which process: `2026-01-01 00:00:00.000 UTC [1] LOG:  …`.
fn said(log: &str) -> impl Iterator<Item = &str> {
    log.lines().map(|line| line.split_once("] ").map_or(line, |(_, said)| said).trim())
}

/// The signal that one of a server's processes ended by, as the first one tells it.
fn signal_of(line: &str) -> Option<i32> {
    let (_, rest) = line.split_once(" was terminated by signal ")?;
    rest.split(|letter: char| !letter.is_ascii_digit()).next()?.parse().ok()
}

/// What a log says of a process that went wrong by itself. Pure.
pub(super) fn fall(log: &str) -> Option<String> {
    let is_crash = |line: &&str| line.starts_with("LOG:") && signal_of(line).is_some_and(|signal| OF_ITSELF.contains(&signal));
    said(log).find(|line| line.starts_with("PANIC:")).or_else(|| said(log).find(is_crash)).map(str::to_owned)
}

/// Why a server that is gone, and left this end of a log (in English), was ended by something else. `None`: it fell by itself. `before_ready`: it had not answered yet, so nobody but itself can have been
/// refused. Pure.
pub(super) fn loss(status: ExitStatus, log: &str, before_ready: bool) -> Option<String> {
    let all = |word: &'static str| said(log).filter_map(move |said| said.strip_prefix(word)).map(str::trim);
    if fall(log).is_some() || status.signal().is_some_and(|signal| OF_ITSELF.contains(&signal)) {
        return None;
    }
    // What it says to those whose sessions end with it.
    let is_end =
        |line: &str| line.starts_with("terminating ") || line.starts_with("the database system is ") || line.contains("postmaster exit");
    let is_memory = |line: &str| line.starts_with("out of memory") || line.contains("Cannot allocate memory");
    let is_limit = |line: &str| line.starts_with("insufficient file descriptors available");
    let grave = all("FATAL:").find(|line| before_ready && !is_end(line));
    match grave {
        Some(line) if is_memory(line) => return Some(format!("this host had no memory for it: {line}")),
        Some(line) if is_limit(line) => return Some(format!("it may not open as many files here as it must (ulimit -n): {line}")),
        Some(_) => return None,
        None => {}
    }
    let killed = all("LOG:").find(|line| signal_of(line).is_some());
    let asked = all("LOG:").find(|line| line.starts_with("received ") && line.ends_with(" shutdown request"));
    let short = all("LOG:").find(|line| is_memory(line));
    Some(killed.or(asked).or(short).map_or_else(|| ended(status), str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "2026-01-01 00:00:00.000 UTC [1] LOG:  ";
    const FATAL: &str = "2026-01-01 00:00:00.000 UTC [7] FATAL:  ";

    #[test]
    fn what_a_server_ended_by_is_told_from_what_ended_it() {
        let (killed, exited) = (ExitStatus::from_raw(9), ExitStatus::from_raw(1 << 8));
        let of = |status, lines: &[String], before_ready| loss(status, &lines.join("\n"), before_ready);
        let process = |signal: &str| format!("{LOG}server process (PID 12) was terminated by signal {signal}");
        assert_eq!(of(killed, &[format!("{LOG}redo starts at 0/2000028")], true).unwrap(), "it was killed by signal 9");
        let one = of(exited, &[process("9: Killed"), format!("{LOG}terminating any other active server processes")], false).unwrap();
        assert_eq!(one, "server process (PID 12) was terminated by signal 9: Killed");
        let asked = of(
            exited,
            &[format!("{LOG}received fast shutdown request"), format!("{FATAL}terminating connection due to administrator command")],
            true,
        );
        assert_eq!(asked.unwrap(), "received fast shutdown request");
        let memory = of(exited, &[format!("{FATAL}could not map anonymous shared memory: Cannot allocate memory")], true);
        assert!(memory.unwrap().contains("no memory"));
        let files = of(exited, &[format!("{FATAL}insufficient file descriptors available to start server process")], true);
        assert!(files.unwrap().contains("ulimit -n"));
        // A login that was refused is nobody's end.
        assert!(of(killed, &[format!("{FATAL}database \"x\" does not exist")], false).is_some());

        // By itself.
        assert_eq!(of(exited, &[process("11: Segmentation fault")], false), None);
        assert_eq!(of(exited, &[process("6: Aborted"), process("9: Killed")], false), None);
        assert_eq!(of(ExitStatus::from_raw(6), &[], true), None);
        assert_eq!(of(exited, &["2026-01-01 00:00:00.000 UTC [7] PANIC:  could not locate a valid checkpoint record".into()], true), None);
        assert_eq!(of(killed, &["2026-01-01 00:00:00.000 UTC [7] PANIC:  WAL contains references to invalid pages".into()], false), None);
        assert_eq!(of(exited, &[format!("{FATAL}could not access status of transaction 3")], true), None);
        assert_eq!(of(exited, &[format!("{FATAL}invalid page in block 0 of relation base/5/1")], true), None);
    }

    #[test]
    fn a_loss_is_known_by_its_cause() {
        let error = lost("start it", "it was killed by signal 9");
        assert!(is_lost(&error) && is_lost(&error.within("drill")));
        assert!(!is_lost(&Error::new(Kind::Failed, "it was killed by signal 9")));
    }
}

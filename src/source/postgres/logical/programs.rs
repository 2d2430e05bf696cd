//! `pg_dump` and `pg_restore`, for the definitions: rows go by our own connections.

use std::error::Error as StdError;
use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::error::{Error, IoContext, Kind, Result};
use crate::event::Cancel;
use crate::source::postgres::backup::MAJORS;
use crate::source::postgres::client::ServerError;
use crate::source::postgres::conninfo::Settings;
use crate::source::postgres::extract::load::conninfo;
use crate::source::postgres::instance::{Account, Tools, from_outside, lost};

/// How long a definition that somebody else changes is waited for.
pub(super) const LOCK_TIMEOUT_MS: u32 = 60_000;
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
const PIECE: usize = 64 * 1024;
/// A `pg_dump` that yields nothing for so long waits for a server that hangs.
const SILENCE: Duration = Duration::from_hours(1);
/// One that has yielded everything ends within this time.
const END_LIMIT: Duration = Duration::from_mins(5);
/// How often it is asked, while `pg_restore` works, whether the server still answers.
const ALIVE_INTERVAL: Duration = Duration::from_mins(1);
/// So much of what a program said although it ended well is kept.
const TOLD_LINES: usize = 20;
const TOLD_LETTERS: usize = 300;

/// Which half of the definitions: before the rows, and what is quicker or only possible after them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Section {
    Before,
    After,
}

impl Section {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Before => "pre-data",
            Self::After => "post-data",
        }
    }
}

/// The first version whose `pg_restore` begins with a setting that earlier servers do not have, whatever is loaded.
const SETS_TRANSACTION_TIMEOUT: u32 = 17;

/// Finds a program's folder: of this major version, wherever it is, or else of the next newer one that is there.
///
/// # Errors
/// `Usage` says what to install.
pub(super) fn find(least: u32, first: u32, bin_directory: Option<&Path>) -> Result<Tools> {
    let newer = (least..=*MAJORS.end()).filter(|major| *major != first);
    let majors: Vec<u32> = (first >= least).then_some(first).into_iter().chain(newer).collect();
    // What the plan names is of one version, and may be another one than is needed.
    let places = || bin_directory.map(Some).into_iter().chain([None]);
    if let Some(found) = majors.iter().find_map(|major| places().find_map(|place| Tools::clients(*major, place).ok())) {
        return Ok(found);
    }
    Err(Error::new(Kind::Usage, format!("find pg_dump and pg_restore of PostgreSQL {least} or newer: not on this host"))
        .hint(format!("install the client's programs (postgresql-client-{first}), or say where they are with `bin_directory` in the plan")))
}

/// `lc_monetary`: how amounts of money are written and read, where the session can say that of itself.
fn command(
    tools: &Tools,
    name: &str,
    settings: &Settings,
    database: &str,
    takes_options: bool,
    lc_monetary: Option<&str>,
) -> Result<Command> {
    let mut command = tools.command(name, Account::own())?;
    let mut settings = settings.clone();
    if takes_options {
        let words = settings.options.take().into_iter().chain(["-c array_nulls=on".to_owned()]);
        let money = lc_monetary.map(|locale| format!("-c lc_monetary={}", locale.replace('\\', "\\\\").replace(' ', "\\ ")));
        settings.options = Some(words.chain(money).collect::<Vec<_>>().join(" "));
    }
    let settings = &settings;
    // Nobody but root and this user can see it, and it is in no file. A file of this host must not be used in its place (of one that is there libpq warns).
    command.env("PGPASSFILE", "/dev/null/none");
    if let Some(password) = settings.password(database)? {
        command.env("PGPASSWORD", password.as_str());
    }
    command.arg("--no-password").arg(format!("--dbname={}", conninfo(settings, database, tools.major(), takes_options)?));
    Ok(command)
}

/// Where a program says why it failed.
fn listen(command: &mut Command, said: &Path) -> Result<()> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(said);
    command.stderr(file.io_context(|| format!("make {}", said.display()))?);
    Ok(())
}

/// Ends a child that is left.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill().and_then(|()| self.0.wait().map(drop));
    }
}

/// Where definitions are read.
pub(super) struct Dump<'a> {
    pub(super) tools: &'a Tools,
    pub(super) settings: &'a Settings,
    pub(super) database: &'a str,
    /// As exported by a transaction that is still open.
    pub(super) snapshot: &'a str,
    pub(super) section: Section,
    /// Of the database, as PostgreSQL calls it: that of its definitions, whatever a role has as a setting.
    pub(super) encoding: &'a str,
    /// As [`conninfo`] has it.
    pub(super) takes_options: bool,
    /// How amounts of money are written, where the session can say that of itself.
    pub(super) lc_monetary: &'a str,
    pub(super) said: &'a Path,
}

impl Dump<'_> {
    /// Runs it; every piece of its output goes to `take`. Yields what it said although it ended well: what it left out.
    pub(super) fn run(&self, cancel: &Cancel, take: &mut dyn FnMut(Bytes) -> Result<()>) -> Result<Vec<String>> {
        let mut command = command(self.tools, "pg_dump", self.settings, self.database, self.takes_options, Some(self.lc_monetary))?;
        command.arg(format!("--encoding={}", self.encoding));
        command.args(["--format=custom", "--compress=0", "--schema-only"]).arg(format!("--section={}", self.section.word()));
        command.arg(format!("--snapshot={}", self.snapshot)).arg(format!("--lock-wait-timeout={LOCK_TIMEOUT_MS}"));
        listen(&mut command, self.said)?;
        command.stdout(Stdio::piped());
        let mut child = Ended(command.spawn().io_context(|| "run pg_dump".into())?);
        let mut output = child.0.stdout.take().ok_or_else(|| Error::new(Kind::Bug, "pg_dump has no output"))?;
        let failed = || "read from pg_dump".to_owned();
        let what = || format!("dump the definitions of {}", self.database);
        let silent = || {
            Error::new(Kind::Unavailable, format!("{}: pg_dump yields nothing any more", what()))
                .hint("Does the server hang? Its log, and pg_stat_activity, tell what pg_dump waits for.")
        };
        let (mut any, mut heard) = (false, Instant::now());
        loop {
            cancel.check()?;
            match poll(&mut [PollFd::new(&output.as_fd(), PollFlags::IN)], Some(&LOOK)) {
                Ok(0) | Err(rustix::io::Errno::INTR) if heard.elapsed() < SILENCE => continue,
                Ok(0) | Err(rustix::io::Errno::INTR) => return Err(silent()),
                Ok(_) => {}
                Err(errno) => return Err(Error::io(failed(), errno.into())),
            }
            let mut piece = vec![0; PIECE];
            let count = output.read(&mut piece).io_context(failed)?;
            if count == 0 {
                break;
            }
            any = true;
            piece.truncate(count);
            take(piece.into())?;
            heard = Instant::now();
        }
        let ended = Instant::now();
        let mut wait = || if ended.elapsed() < END_LIMIT { cancel.check() } else { Err(silent()) };
        let told = finish(child, self.said, &what(), &mut wait).map_err(in_its_way)?;
        if any { Ok(told) } else { Err(Error::new(Kind::Failed, "pg_dump ended well and wrote nothing")) }
    }
}

/// Loads definitions into a server of this major version; yields what the program said although it ended well. `alive` fails when the server does not answer
/// any more.
#[expect(clippy::too_many_arguments, reason = "all of it is given by the one place that calls this")]
pub(super) fn restore(
    tools: &Tools,
    settings: &Settings,
    server_major: u32,
    database: &str,
    takes_options: bool,
    lc_monetary: Option<&str>,
    dump: &Path,
    with_owners: bool,
    said: &Path,
    cancel: &Cancel,
    alive: &mut dyn FnMut() -> Result<()>,
) -> Result<Vec<String>> {
    let mut command = command(tools, "pg_restore", settings, database, takes_options, lc_monetary)?;
    // As promised: everything goes to the default one. The target may lack the source's.
    command.arg("--no-tablespaces");
    // Its first error, which is none, must not end it then: it goes on after others too, which are found at its end.
    let goes_on = tools.major() >= SETS_TRANSACTION_TIMEOUT && server_major < SETS_TRANSACTION_TIMEOUT;
    if !goes_on {
        command.arg("--exit-on-error");
    }
    if !with_owners {
        command.args(["--no-owner", "--no-privileges"]);
    }
    command.arg(dump).stdout(Stdio::null());
    listen(&mut command, said)?;
    let child = Ended(command.spawn().io_context(|| "run pg_restore".into())?);
    let what = format!("load {} into {database}", dump.display());
    let mut asked = Instant::now();
    let mut wait = || {
        cancel.check()?;
        if asked.elapsed() >= ALIVE_INTERVAL {
            alive().map_err(|error| error.within(what.clone()))?;
            asked = Instant::now();
        }
        Ok(())
    };
    let (status, text) = end(child, said, &what, &mut wait)?;
    // So it ends after an error that it went on from.
    match beside_the_timeout(&text).filter(|_| goes_on && status.code() == Some(1)) {
        Some(rest) => Ok(told(&rest)),
        None => judge(status, &text, &what),
    }
}

/// Tells of a `pg_dump` that did not get a lock, or a session, what to do.
fn in_its_way(error: Error) -> Error {
    if error.said().is_some_and(|said| said.contains("LOCK TABLE")) {
        return error.hint(
            "somebody alters one of its tables, or waits to: run it again when nobody does (ALTER, TRUNCATE, DROP, VACUUM FULL, REINDEX)",
        );
    }
    if error.said().is_some_and(|said| said.contains("too many connections for ")) {
        return error.hint("All connections that the role or the database may have are taken: ALTER ROLE or ALTER DATABASE … CONNECTION LIMIT, or try later.");
    }
    error
}

/// Finds the name of a type in definitions that go by in pieces: without it there is no amount of money in them.
#[derive(Default)]
pub(super) struct MoneyFinder {
    /// The end of the piece before.
    end: Vec<u8>,
    pub(super) found: bool,
}

const MONEY: &[u8] = b"money";

impl MoneyFinder {
    pub(super) fn add(&mut self, piece: &[u8]) {
        if self.found {
            return;
        }
        let is_in = |bytes: &[u8]| bytes.windows(MONEY.len()).any(|part| part == MONEY);
        let rest = MONEY.len() - 1;
        self.end.extend_from_slice(&piece[..piece.len().min(rest)]);
        self.found = is_in(&self.end) || is_in(piece);
        if piece.len() >= rest {
            piece[piece.len() - rest..].clone_into(&mut self.end);
        } else {
            self.end.drain(..self.end.len().saturating_sub(rest));
        }
    }
}

/// Whether definitions in a file may hold amounts of money.
pub(super) fn may_hold_money(dump: &Path) -> Result<bool> {
    let failed = || format!("read {}", dump.display());
    let mut file = fs::File::open(dump).io_context(failed)?;
    let (mut finder, mut piece) = (MoneyFinder::default(), vec![0; PIECE]);
    loop {
        let count = file.read(&mut piece).io_context(failed)?;
        finder.add(&piece[..count]);
        if finder.found || count == 0 {
            return Ok(finder.found);
        }
    }
}

/// What `pg_restore` said beside the complaint of an older server about the timeout. `None`: that was not the only error.
fn beside_the_timeout(text: &str) -> Option<String> {
    let is_error = |line: &str| line.starts_with("pg_restore: error: ");
    let mut lines: Vec<&str> = text.lines().collect();
    // By its own count, because a command that failed is shown with all of its lines, whatever they look like.
    lines.pop().filter(|last| *last == "pg_restore: warning: errors ignored on restore: 1")?;
    let first = lines.iter().position(|line| is_error(line))?;
    let complaint: Vec<&str> = lines.splice(first..(first + 2).min(lines.len()), []).collect();
    let is_it = matches!(complaint[..], [error, command] if error.contains("transaction_timeout") && command == "Command was: SET transaction_timeout = 0;");
    (is_it && !lines.iter().any(|line| is_error(line))).then(|| lines.join("\n"))
}

/// Waits for its end, as long as `wait` agrees, and judges it. Yields what it said although it ended well.
fn finish(child: Ended, said: &Path, what: &str, wait: &mut dyn FnMut() -> Result<()>) -> Result<Vec<String>> {
    let (status, text) = end(child, said, what, wait)?;
    judge(status, &text, what)
}

/// Waits for its end, as long as `wait` agrees. Yields that and what it said.
fn end(mut child: Ended, said: &Path, what: &str, wait: &mut dyn FnMut() -> Result<()>) -> Result<(ExitStatus, String)> {
    let status = loop {
        if let Some(status) = child.0.try_wait().io_context(|| format!("wait: {what}"))? {
            break status;
        }
        wait()?;
        std::thread::park_timeout(Duration::from_millis(20));
    };
    let text = fs::read(said).io_context(|| format!("read {}", said.display()))?;
    Ok((status, String::from_utf8_lossy(&text).into_owned()))
}

/// What the server's host has no program, library or data for: it says nothing about what is loaded. Shown as the server said it.
#[derive(Debug)]
struct Lack(String);

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ERROR: {}", self.0)
    }
}

impl StdError for Lack {}

/// Whether an error of a load is of what the server, which speaks English, or its host lacks: an extension, a locale, a library, a feature that was not built in.
#[must_use]
pub(super) fn is_lack(error: &Error) -> bool {
    let mut next: Option<&(dyn StdError + 'static)> = error.source();
    while let Some(cause) = next {
        if cause.is::<Lack>() || cause.downcast_ref::<ServerError>().is_some_and(|said| says_lack(&said.message)) {
            return true;
        }
        next = cause.source();
    }
    false
}

/// As servers of 14 to 18 say it. The SQLSTATEs are those of other errors too, and `pg_restore` tells none.
fn says_lack(message: &str) -> bool {
    let begins = |beginnings: &[&str]| beginnings.iter().any(|beginning| message.starts_with(beginning));
    let is_extension =
        begins(&["extension \""]) && message.ends_with(" is not available") || begins(&["could not open extension control file "]);
    let is_library = begins(&["could not access file ", "could not load library ", "could not find function ", "incompatible library "])
        || message.contains("shared_preload_libraries")
        || message.ends_with(" must be preloaded");
    let is_locale = begins(&["invalid "]) && message.contains("locale name")
        || begins(&["could not create locale ", "could not open collator for locale ", "could not convert locale name "])
        || begins(&["collation \"pg_catalog."]) && message.ends_with(" does not exist");
    let is_dictionary = ["dictionary", "affix", "stop-word", "synonym", "thesaurus"]
        .iter()
        .any(|kind| message.strip_prefix("could not open ").is_some_and(|rest| rest.starts_with(&format!("{kind} file "))));
    let is_feature = message.ends_with(" is not supported in this build")
        || begins(&["compression method "]) && message.ends_with(" not supported")
        || message == "unsupported XML feature";
    is_extension || is_library || is_locale || is_dictionary || is_feature
}

/// The first error that `pg_restore` tells, where it is of what the server's host lacks.
fn lack(text: &str) -> Option<&str> {
    let failed = text.lines().filter_map(|line| line.strip_prefix("pg_restore: error: could not execute query: "));
    let mut said = failed.filter_map(|said| said.strip_prefix("ERROR:  ").or_else(|| said.strip_prefix("FATAL:  ")));
    said.find(|said| !said.contains("\"transaction_timeout\"")).filter(|said| says_lack(said))
}

fn judge(status: ExitStatus, text: &str, what: &str) -> Result<Vec<String>> {
    if status.success() {
        return Ok(told(text));
    }
    if let Some(lack) = lack(text) {
        let error = Error::new(Kind::Failed, what).because(Lack(lack.to_owned()));
        return Err(error.saying(Some(text.chars().take(4096).collect())));
    }
    // Definitions only: but a constraint that rows break is told with the row.
    if let Some(signal) = from_outside(status) {
        let error = lost(what, format!("the program was killed by signal {signal}"));
        return Err(error.saying(Some(text.chars().take(4096).collect())));
    }
    let why = text.lines().find_map(crate::source::postgres::extract::harmless);
    let why = why.map_or_else(|| format!("the program ended with {status}"), str::to_owned);
    Err(Error::new(Kind::Failed, format!("{what}: {why}")).saying(Some(text.chars().take(4096).collect())))
}

/// Each line once, without the program's name before it; of many the first.
fn told(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let line = ["pg_dump: ", "pg_restore: ", "warning: "].iter().fold(line, |line, begin| line.strip_prefix(begin).unwrap_or(line));
        let line: String = line.chars().take(TOLD_LETTERS).collect();
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    let more = lines.len().saturating_sub(TOLD_LINES);
    if more > 0 {
        lines.truncate(TOLD_LINES);
        lines.push(format!("and {more} more lines"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn the_exact_version_is_taken_wherever_it_is() {
        let named = tempfile::tempdir().unwrap();
        for name in ["pg_dump", "pg_restore"] {
            let path = named.path().join(name);
            fs::write(&path, format!("#!/bin/sh\necho '{name} (PostgreSQL) 18.1'\n")).unwrap();
            fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        }
        let major = |least, first| find(least, first, Some(named.path())).unwrap().major();
        let here: Vec<u32> = MAJORS.filter(|major| Tools::clients(*major, None).is_ok()).collect();
        assert!(!here.is_empty(), "PostgreSQL's programs are not installed");
        for wanted in MAJORS {
            let next = here.iter().copied().chain([18]).filter(|there| *there >= wanted).min().unwrap();
            assert_eq!((major(wanted, wanted), major(18, wanted)), (next, 18), "{here:?}");
        }
    }

    #[test]
    fn money_is_found_in_whatever_pieces_it_comes() {
        let text = b"CREATE TABLE t(a mone, b money)";
        for size in 1..=text.len() {
            let found = |text: &[u8]| {
                let mut finder = MoneyFinder::default();
                text.chunks(size).for_each(|piece| finder.add(piece));
                finder.found
            };
            assert!(found(text) && !found(&text[..text.len() - 2]), "in pieces of {size}");
        }
    }

    #[test]
    fn a_lock_that_pg_dump_does_not_get_is_explained() {
        let said = "pg_dump: error: query failed: ERROR:  canceling statement due to lock timeout\npg_dump: detail: Query was: LOCK TABLE public.t IN ACCESS SHARE MODE\n";
        let error = judge(ExitStatusExt::from_raw(256), said, "dump the definitions of crm").unwrap_err();
        assert!(in_its_way(error).hint_text().unwrap().contains("waits to"));
        let other = judge(ExitStatusExt::from_raw(256), "pg_dump: error: out of memory\n", "dump the definitions of crm").unwrap_err();
        assert_eq!(in_its_way(other).hint_text(), None);
    }

    #[test]
    fn only_the_timeout_is_passed_over() {
        let timeout = "pg_restore: error: could not execute query: ERROR:  unrecognized configuration parameter \"transaction_timeout\"\n\
            Command was: SET transaction_timeout = 0;\n";
        let count = |number: u32| format!("pg_restore: warning: errors ignored on restore: {number}\n");
        let other = "pg_restore: error: could not execute query: ERROR:  type \"x\" does not exist\nCommand was: CREATE TABLE t(x x);\n\n";
        assert_eq!(beside_the_timeout(&format!("{timeout}{}", count(1))).unwrap(), "");
        assert_eq!(beside_the_timeout(&format!("pg_restore: warning: w\n{timeout}{}", count(1))).unwrap(), "pg_restore: warning: w");
        for said in [
            format!("{timeout}{other}{}", count(2)),
            format!("{timeout}{}", count(2)),
            format!("{timeout}{other}{}", count(1)),
            format!("{other}{}", count(1)),
            format!("{other}{timeout}{}", count(1)),
            timeout.to_owned(),
            count(1),
            String::new(),
        ] {
            assert_eq!(beside_the_timeout(&said), None, "{said}");
        }
    }

    #[test]
    fn what_a_host_lacks_is_told_from_what_is_wrong_with_a_dump() {
        // As 14 to 18 said it.
        for said in [
            "extension \"nosuch\" is not available",
            "could not open extension control file \"/usr/share/postgresql/14/extension/nosuch.control\": No such file or directory",
            "could not access file \"$libdir/nosuch\": No such file or directory",
            "could not load library \"/usr/lib/postgresql/15/lib/plpython3.so\": libpython3.11.so.1.0: cannot open shared object file: No such file or directory",
            "invalid locale name: \"de_XX.UTF-8\"",
            "invalid LC_COLLATE locale name: \"de_XX.UTF-8\"",
            "invalid locale name \"bogus\" for builtin provider",
            "ICU is not supported in this build",
            "collation \"pg_catalog.de_XX\" for encoding \"UTF8\" does not exist",
            "could not create locale \"de_XX.utf8\": No such file or directory",
            "could not open dictionary file \"/usr/share/postgresql/15/tsearch_data/nosuch.dict\": No such file or directory",
            "compression method lz4 not supported",
            "unsupported XML feature",
            "pg_cron can only be loaded via shared_preload_libraries",
            "extension \"timescaledb\" must be preloaded",
        ] {
            assert!(says_lack(said), "{said}");
            let error =
                judge(ExitStatusExt::from_raw(256), &format!("pg_restore: error: could not execute query: ERROR:  {said}\n"), "load");
            assert!(is_lack(&error.unwrap_err()), "{said}");
        }
        for said in [
            "type \"x\" does not exist",
            "collation \"public.mine\" for encoding \"UTF8\" does not exist",
            "could not open file \"base/1/2\": No such file or directory",
            "permission denied for language internal",
            "invalid input syntax for type integer: \"locale\"",
            "language \"plnosuch\" does not exist",
        ] {
            let first = format!("pg_restore: error: could not execute query: ERROR:  {said}\nCommand was: x\n");
            let later = "pg_restore: error: could not execute query: ERROR:  extension \"x\" is not available\n";
            let error = judge(ExitStatusExt::from_raw(256), &format!("{first}{later}"), "load").unwrap_err();
            assert!(!is_lack(&error), "{said}");
        }
        // Text of a command is none of an error.
        let quoted =
            "pg_restore: error: could not execute query: ERROR:  syntax error\nCommand was: -- ERROR:  extension \"x\" is not available\n";
        assert_eq!(lack(quoted), None);
        let behind = "pg_restore: error: could not execute query: ERROR:  unrecognized configuration parameter \"transaction_timeout\"\nCommand was: SET transaction_timeout = 0;\n\
            pg_restore: error: could not execute query: ERROR:  extension \"x\" is not available\n";
        assert_eq!(lack(behind), Some("extension \"x\" is not available"));
    }

    #[test]
    fn what_a_program_said_is_told_once_and_bounded() {
        let said =
            "pg_dump: warning: subscriptions not dumped\n\npg_dump: warning: subscriptions not dumped\n  pg_dump: hint: be a superuser\n";
        assert_eq!(told(said), ["subscriptions not dumped", "hint: be a superuser"]);
        let many = (0..50).map(|n| format!("{n}{}", "x".repeat(1000))).collect::<Vec<_>>().join("\n");
        let told = told(&many);
        assert_eq!((told.len(), told[TOLD_LINES].as_str()), (TOLD_LINES + 1, "and 30 more lines"));
        assert!(told.iter().all(|line| line.len() <= TOLD_LETTERS));
    }
}

//! `pg_dump` and `pg_restore`, for the definitions: rows go by our own connections.

use std::fs::{self, OpenOptions};
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use bytes::Bytes;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::error::{Error, IoContext, Kind, Result};
use crate::event::Cancel;
use crate::source::postgres::backup::MAJORS;
use crate::source::postgres::conninfo::Settings;
use crate::source::postgres::extract::load::conninfo;
use crate::source::postgres::instance::{Account, Tools};

/// How long a definition that somebody else changes is waited for.
pub(super) const LOCK_TIMEOUT_MS: u32 = 60_000;
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
const PIECE: usize = 64 * 1024;

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

/// Finds a program's folder: of this major version, or else the next newer one that is there.
///
/// # Errors
/// `Usage` says what to install.
pub(super) fn find(least: u32, first: u32, bin_directory: Option<&Path>) -> Result<Tools> {
    let newer = (least..=*MAJORS.end()).filter(|major| *major != first);
    let majors: Vec<u32> = (first >= least).then_some(first).into_iter().chain(newer).collect();
    // What the plan names is of one version, and may be another one than is needed.
    for place in bin_directory.map(Some).into_iter().chain([None]) {
        if let Some(found) = majors.iter().find_map(|major| Tools::clients(*major, place).ok()) {
            return Ok(found);
        }
    }
    Err(Error::new(Kind::Usage, format!("find pg_dump and pg_restore of PostgreSQL {least} or newer: not on this host"))
        .hint(format!("install the client's programs (postgresql-client-{first}), or say where they are with `bin_directory` in the plan")))
}

fn command(tools: &Tools, name: &str, settings: &Settings, database: &str) -> Result<Command> {
    let mut command = tools.command(name, Account::own())?;
    // Nobody but root and this user can see it, and it is in no file. A file of this host must not be used in its place.
    command.env("PGPASSFILE", "/dev/null");
    if let Some(password) = settings.password(database)? {
        command.env("PGPASSWORD", password.as_str());
    }
    command.arg("--no-password").arg(format!("--dbname={}", conninfo(settings, database, tools.major())?));
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
    pub(super) said: &'a Path,
}

impl Dump<'_> {
    /// Runs it; every piece of its output goes to `take`.
    pub(super) fn run(&self, cancel: &Cancel, take: &mut dyn FnMut(Bytes) -> Result<()>) -> Result<()> {
        let mut command = command(self.tools, "pg_dump", self.settings, self.database)?;
        command.args(["--format=custom", "--compress=0", "--schema-only"]).arg(format!("--section={}", self.section.word()));
        command.arg(format!("--snapshot={}", self.snapshot)).arg(format!("--lock-wait-timeout={LOCK_TIMEOUT_MS}"));
        listen(&mut command, self.said)?;
        command.stdout(Stdio::piped());
        let mut child = Ended(command.spawn().io_context(|| "run pg_dump".into())?);
        let mut output = child.0.stdout.take().ok_or_else(|| Error::new(Kind::Bug, "pg_dump has no output"))?;
        let failed = || "read from pg_dump".to_owned();
        let mut any = false;
        loop {
            cancel.check()?;
            match poll(&mut [PollFd::new(&output.as_fd(), PollFlags::IN)], Some(&LOOK)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => continue,
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
        }
        finish(child, self.said, &format!("dump the definitions of {}", self.database), cancel)?;
        if any { Ok(()) } else { Err(Error::new(Kind::Failed, "pg_dump ended well and wrote nothing")) }
    }
}

/// Loads definitions.
pub(super) fn restore(
    tools: &Tools,
    settings: &Settings,
    database: &str,
    dump: &Path,
    with_owners: bool,
    said: &Path,
    cancel: &Cancel,
) -> Result<()> {
    let mut command = command(tools, "pg_restore", settings, database)?;
    // As promised: everything goes to the default one. The target may lack the source's.
    command.args(["--exit-on-error", "--no-tablespaces"]);
    if !with_owners {
        command.args(["--no-owner", "--no-privileges"]);
    }
    command.arg(dump).stdout(Stdio::null());
    listen(&mut command, said)?;
    let child = Ended(command.spawn().io_context(|| "run pg_restore".into())?);
    finish(child, said, &format!("load {} into {database}", dump.display()), cancel)
}

/// Waits for its end and judges it.
fn finish(mut child: Ended, said: &Path, what: &str, cancel: &Cancel) -> Result<()> {
    let status = loop {
        if let Some(status) = child.0.try_wait().io_context(|| format!("wait: {what}"))? {
            break status;
        }
        cancel.check()?;
        std::thread::park_timeout(std::time::Duration::from_millis(20));
    };
    if status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&fs::read(said).unwrap_or_default()).into_owned();
    // Definitions only: but a constraint that rows break is told with the row.
    let why = text.lines().find_map(crate::source::postgres::extract::harmless);
    let why = why.map_or_else(|| format!("the program ended with {status}"), str::to_owned);
    Err(Error::new(Kind::Failed, format!("{what}: {why}")).saying(Some(text.chars().take(4096).collect())))
}

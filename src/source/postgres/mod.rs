//! PostgreSQL 14 to 18: physical backups of a running cluster, its continuous log, recovery to any moment, and servers that are started to
//! prove it.
//!
//! Everything here blocks; every wait has a limit and obeys [`crate::event::Cancel`].
//!
//! | module | owns |
//! |---|---|
//! | [`conninfo`], [`client`], [`replication`] | talking to a server: settings, SQL, base backups, the log as a stream |
//! | [`lsn`], [`wal`] | positions, names of log files, histories of timelines, reading records |
//! | [`control`] | `global/pg_control` |
//! | [`configuration`], `places` | where a server's configuration is, and what it includes; what it says of other places in a restored folder |
//! | [`layout`] | what is what in a data folder, and what a backup leaves out |
//! | [`page`], [`findings`] | checksums of data pages, and what is told of bad ones |
//! | [`local`] | reading the data folder of a running server |
//! | [`remote`], [`tar`] | the same from the archives that a server streams |
//! | [`throttle`] | reading no faster than allowed |
//! | [`backup`] | a base backup as a snapshot |
//! | [`fingerprint`] | digests of tables at an exact position of the log |
//! | [`recover`], [`instance`], `private` | recovery of a restored folder, in a private server |
//! | `restored` | what a restored folder needs so that it starts and leaves others alone |
//! | [`extract`] | a database or tables of a recovered server, into another one |
//! | [`prove`] | what a recovered server is asked |
//! | [`canary`] | a row that tells how much a disaster would have lost |
//! | [`doctor`] | what a server lacks for all of this |
//! | [`logical`] | the other method: rows and definitions, for servers that allow no replication |

pub mod backup;
pub mod canary;
pub mod client;
pub mod configuration;
pub mod conninfo;
pub mod control;
mod doctor;
pub mod extract;
pub mod findings;
pub mod fingerprint;
pub mod instance;
pub mod layout;
pub mod local;
pub mod logical;
pub mod lsn;
pub mod page;
mod places;
mod private;
pub mod prove;
pub mod recover;
pub mod remote;
pub mod replication;
mod restored;
pub mod stream;
pub mod tablespaces;
pub mod tar;
pub mod throttle;
pub mod wal;

use std::fs;
use std::os::unix::fs::{OpenOptionsExt, chown};
use std::path::{Path, PathBuf};

use crate::error::{Context, Error, IoContext, Kind, Result};
use crate::event::Cancel;
use crate::source::postgres::backup::{BaseSnapshot, POINT_FILE, Point, SYSTEM_IDENTIFIER};
use crate::source::postgres::client::{Connection, Mode};
use crate::source::postgres::conninfo::Settings;
use crate::source::postgres::instance::{Account, Instance, Tools, major_of};
use crate::source::postgres::layout::CONFIGURATION_FOLDER;
use crate::source::postgres::places::Places;
use crate::source::postgres::private::{Private, Recovered};
use crate::source::postgres::recover::{Action, Recovery, Request, Target, Timeline};
use crate::source::{
    CheckResult, Diagnosis, ExtractRequest, Extracted, HandOver, HandedOver, Outcome, ProveRequest, REPLAY, Source, SourceContext,
    SourceSnapshot, Standby,
};

/// A cluster, backed up as a whole.
#[derive(Default)]
pub struct PostgresSource {
    /// `None`: only to bring back.
    pub settings: Option<Settings>,
    /// On this host: files are read there instead of streamed by the server.
    pub data_directory: Option<PathBuf>,
    /// Of the server's programs, for private instances.
    pub bin_directory: Option<PathBuf>,
    /// Files of the data folder that did not change since the last snapshot are read and checked too.
    pub read_unchanged: bool,
    /// A page whose checksum is wrong ends a backup, instead of being a problem of it.
    pub refuses_damaged_pages: bool,
    /// Limit for reading, in bytes a second.
    pub read_limit_bytes_per_sec: Option<u64>,
    /// How much of the tables is read for fingerprints.
    pub fingerprint_budget: fingerprint::Budget,
    /// The slot that the continuous log is streamed by: it is there before a backup begins, so that no log is missing behind it.
    pub log_slot: Option<String>,
    /// The server brings its log by `archive_command`.
    pub archives: bool,
    /// The canary row that is written on it.
    pub canary: Option<String>,
}

/// Room that a server needs to recover and answer: two files of its log.
const NEEDED_ROOM: u64 = 32 << 20;
const NEEDED_FILES: u64 = 100;

impl PostgresSource {
    fn settings(&self) -> Result<&Settings> {
        self.settings.as_ref().ok_or_else(|| Error::new(Kind::Bug, "a source that only brings back was asked for its server"))
    }

    /// Recovers the folder to its own moment in a private server and asks it everything.
    fn prove_recovered(
        &self,
        data: &Path,
        request: &ProveRequest,
        context: &SourceContext,
        usable: &mut dyn FnMut(),
    ) -> Result<Vec<CheckResult>> {
        let check = |name: &str, outcome, expected: &str, actual: String| CheckResult {
            name: name.into(),
            outcome,
            expected: expected.into(),
            actual,
        };
        let point = Point::read(data)?;
        let tools = match Tools::find(major_of(data)?, self.bin_directory.as_deref()) {
            Ok(tools) => tools,
            // Not the backup's fault, and no proof either.
            Err(error) => return Ok(vec![check("server", Outcome::Skipped, "a private server that starts", told(&error))]),
        };
        let expected = format!("recovered to {}", point.position.lsn);
        let account = Account::choose(data)?;
        let private = match Private::prepare(&point, data, &tools, account) {
            Ok(private) => private,
            Err(error) if error.kind() == Kind::Incomplete => {
                let actual = format!("not started: {}; drill a later snapshot", told(&error));
                return Ok(vec![check("server", Outcome::Skipped, &expected, actual)]);
            }
            Err(error) if error.kind() == Kind::Damaged => return Ok(vec![check("server", Outcome::Failed, &expected, told(&error))]),
            Err(error) => return Err(error),
        };
        let expected = if private.is_through_the_log() {
            format!("recovered from {} through the log to {}", point.position.lsn, private.goal())
        } else {
            expected
        };
        let Recovered { instance, outcome, missing_libraries, without_files, reached } = match private.recover(context) {
            Ok(recovered) => recovered,
            Err(error) if matches!(error.kind(), Kind::Interrupted | Kind::NoSpace) => return Err(error),
            Err(error) if instance::is_lost(&error) => {
                return Ok(vec![check("server", Outcome::Skipped, &expected, told_with_hint(&error))]);
            }
            // Of this host, before the server ran.
            Err(error) if matches!(error.kind(), Kind::Usage | Kind::Busy) => {
                return Ok(vec![check("server", Outcome::Skipped, &expected, told_with_hint(&error))]);
            }
            Err(error) => {
                // It may not even have had the room to say so.
                if let Some(bytes) = little_room(data)? {
                    let what = format!("prove {}: only {bytes} bytes are free there", data.display());
                    return Err(Error::new(Kind::NoSpace, what).because(error).hint("free space on that file system, then drill again"));
                }
                return Ok(vec![check("server", Outcome::Failed, &expected, told(&error))]);
            }
        };
        if !reached {
            let actual = format!("the log ends at {}: {}", outcome.end, outcome.reason);
            return Ok(vec![check("server", Outcome::Failed, &expected, actual)]);
        }
        usable();
        let started = format!(
            "PostgreSQL {} answered after {} ms{}, {} (timeline {})",
            tools.version(),
            instance.started_in().as_millis(),
            apart(&instance),
            outcome.reason,
            outcome.timeline
        );
        let mut results = vec![check("server", Outcome::Passed, &expected, started)];
        results.extend(without_files.into_iter().map(|why| check("databases being dropped", Outcome::Skipped, "none", why)));
        if request.compare_percent > 0 {
            let without = |problem: &crate::source::Problem| {
                check(
                    &format!("content of {}", problem.object),
                    Outcome::Skipped,
                    "as backed up",
                    format!("no fingerprint: {}", problem.message),
                )
            };
            results.extend(point.left_out.iter().map(without));
        }
        let options = prove::Options { user: point.superuser, missing_libraries, ..prove::Options::default() };
        results.extend(prove::prove(instance, request, &options, context)?);
        if let Some(bytes) = little_room(data)? {
            let is_of_this = |result: &CheckResult| result.outcome == Outcome::Failed || result.actual.contains(instance::advice());
            for result in results.iter_mut().filter(|result| is_of_this(result)) {
                result.outcome = Outcome::Skipped;
                result.actual = format!(
                    "{}; only {bytes} bytes are free at {}, which may be why: free space and drill again",
                    result.actual,
                    data.display()
                );
            }
        }
        Ok(results)
    }
}

/// Bytes that are free where `data` is, when they are so few that a server may fail for it: what it says then proves nothing against the backup.
fn little_room(data: &Path) -> Result<Option<u64>> {
    let stat =
        rustix::fs::statvfs(data).map_err(std::io::Error::from).io_context(|| format!("ask for free space at {}", data.display()))?;
    let bytes = stat.f_bavail.saturating_mul(stat.f_frsize);
    Ok((bytes < NEEDED_ROOM || (stat.f_files > 0 && stat.f_favail < NEEDED_FILES)).then_some(bytes))
}

/// How it stands with a private server's network, as part of a sentence.
pub(super) fn apart(instance: &Instance) -> &'static str {
    if instance.is_apart() { " without a network" } else { "" }
}

/// An error with its causes, in a line.
pub(super) fn told(error: &Error) -> String {
    std::iter::once(error.to_string()).chain(error.causes()).collect::<Vec<_>>().join(": ")
}

/// The same, with what to do.
fn told_with_hint(error: &Error) -> String {
    let hint = error.hint_text().map(|hint| format!(" ({hint})")).unwrap_or_default();
    format!("{}{hint}", told(error))
}

impl Point {
    /// That of a restored folder.
    ///
    /// # Errors
    /// `Damaged` when it is not there or not understood.
    pub fn read(data: &Path) -> Result<Self> {
        let path = data.join(std::str::from_utf8(CONFIGURATION_FOLDER).unwrap_or_default()).join(POINT_FILE);
        let text = fs::read(&path).map_err(|error| Error::new(Kind::Damaged, format!("read {}", path.display())).because(error))?;
        serde_json::from_slice(&text).context(Kind::Damaged, || format!("understand {}", path.display()))
    }
}

impl Source for PostgresSource {
    fn kind(&self) -> &'static str {
        "postgres"
    }

    fn diagnose(&self) -> Vec<Diagnosis> {
        match self.settings() {
            Ok(settings) => doctor::diagnose(settings, self),
            Err(error) => vec![diagnosis("server", Err(error))],
        }
    }

    fn log_position(&self) -> Result<Option<(u32, u64)>> {
        let connect = |mode| Connection::connect(self.settings()?, mode, &Cancel::default());
        let is_standby = connect(Mode::Sql { database: None })?.value("SELECT pg_catalog.pg_is_in_recovery()")?.as_deref() == Some("t");
        let identity = replication::identify_system(&mut connect(Mode::Replication)?)?;
        let position = identity.position;
        let position = if is_standby { stream::without_page_header(position).0.saturating_sub(1) } else { position.0 };
        Ok(Some((identity.timeline, position)))
    }

    fn belongs(&self) -> Result<Option<(&'static str, String)>> {
        let mut connection = Connection::connect(self.settings()?, Mode::Replication, &Cancel::default())?;
        let identity = replication::identify_system(&mut connection)?;
        Ok(Some((SYSTEM_IDENTIFIER, identity.system_identifier.to_string())))
    }

    fn keeps_content(&self) -> bool {
        false
    }

    fn begin(&self, context: &SourceContext) -> Result<Box<dyn SourceSnapshot>> {
        Ok(Box::new(BaseSnapshot::begin(self, context)?))
    }

    fn adopt(&self, restored: &Path, _context: &SourceContext) -> Result<PathBuf> {
        major_of(restored)?;
        Point::read(restored)?;
        Ok(restored.to_owned())
    }

    fn hand_over(&self, usable: &Path, target: &Path, wanted: &HandOver) -> Result<HandedOver> {
        self.make_ready(usable, target, wanted)
    }

    fn extract(&self, usable: &Path, request: &ExtractRequest, context: &SourceContext) -> Result<Extracted> {
        extract::extract(usable, self.bin_directory.as_deref(), request, context)
    }

    fn unfinished(&self) -> Option<&'static str> {
        Some(REPLAY)
    }

    fn prove(
        &self,
        restored: &Path,
        request: &ProveRequest,
        context: &SourceContext,
        usable: &mut dyn FnMut(),
    ) -> Result<Vec<CheckResult>> {
        self.prove_recovered(restored, request, context, usable)
    }
}

impl PostgresSource {
    /// A restored folder that an operator can start: a server of its own, or one that follows.
    fn make_ready(&self, usable: &Path, target: &Path, wanted: &HandOver) -> Result<HandedOver> {
        let standby = wanted.standby.as_ref();
        let point = Point::read(usable)?;
        recover::clear(usable)?;
        let cut = recover::cut_links(usable)?;
        tablespaces::keep_inside(usable)?;
        let mapped = tablespaces::map(usable, target, &point.tablespaces, &wanted.tablespaces)?;
        let asked = Request::read(usable)?;
        let bare = write_missing_configuration(usable)?;
        let places = places::keep_here(usable, target, point.data_directory.as_deref())?;
        let major = point.server_version / 10_000;
        let tools = Tools::find(major, self.bin_directory.as_deref()).ok();
        let said = configuration::said_by_the_source(usable, target, &restored::names());
        // A standby does nothing of it until it is promoted, and then it is meant to.
        let (recovery, quiet, following) = match standby {
            None => (point.recovery(asked.as_ref()), restored::quiet(&said, bare), Vec::new()),
            Some(standby) => (follow(standby), Places::default(), standby_settings(standby)),
        };
        let ahead = point.look_ahead(usable, &recovery.target)?;
        let room = restored::room(usable, &said, ahead.room, bare, major)?;
        let more = [following, room.settings, quiet.settings, places.settings].concat();
        recover::write_for_operator(usable, &recovery, standby.is_some(), &more)?;
        let bin = tools.as_ref().and_then(|tools| tools.program("pg_ctl"));
        let program = bin.map_or_else(|| format!("pg_ctl of PostgreSQL {major}"), |path| path.display().to_string());
        let becomes = match standby {
            None => format!(
                "it replays its log to {} and is then a server of its own",
                asked.map_or_else(|| point.position.lsn.to_string(), |asked| asked.target.to_string())
            ),
            Some(standby) => format!(
                "it is a standby that takes queries and follows {}until it is promoted ({program} -D {} promote)",
                standby.primary.as_ref().map_or("the log in the repository ", |_| "the primary, and the log in the repository, "),
                target.display()
            ),
        };
        let mut steps = vec![format!(
            "start it as the user that owns the folder (never root): {program} -D {data} -l /tmp/postgres.log start; {becomes}. Where its port is taken, or nobody else is to reach it \
             yet: {program} -D {data} -l /tmp/postgres.log -o \"-p 5433 -c listen_addresses=\" start",
            data = target.display(),
        )];
        steps.extend(quiet.told);
        if let Some(standby) = standby {
            steps.push(format!(
                "that user must be able to run this, which brings the log: it needs the program, the plan and the passphrase of a reader: {}",
                standby.restore_command
            ));
        }
        let created = ahead.created();
        let mut dangers: Vec<String> = ahead.impassable().into_iter().chain(ahead.without_files()).collect();
        if !created.is_empty() {
            dangers.push(format!(
                "DO NOT START IT on a host where these folders are in use: tablespaces were created in the log that it replays, and then the server takes their folders for its own: {}; or restore a \
                 later snapshot, or a moment before that (--at)",
                created.join(", ")
            ));
        }
        if !cut.is_empty() {
            dangers.push(format!(
                "DO NOT START IT: links were in the source's data folder where no server makes one, and what they led to was not backed up; they were taken out, for the server would have \
                 gone on working in the source's own files by them: {}. Put what they led to in their places first, as it was at the snapshot; and at the source back into the data \
                 folder, or into a tablespace",
                cut.join(", ")
            ));
        }
        if bare {
            steps.push(format!(
                "its configuration was not in the data folder: a minimal one was written (socket only, local users by their own names); what was backed up of the source's is below {}/lifeboat_conf; \
                 before you put that into the folder, take data_directory, hba_file, ident_file and external_pid_file out of it: by them the server would open the source's data folder",
                target.display()
            ));
        }
        steps.extend([room.told, places.told, restored::libraries(&said, &point.preload, tools.as_ref())].concat());
        steps.extend(restored::outside(usable, target, &said).into_iter().chain(restored::locales(&said)));
        let elsewhere = configuration::includes_elsewhere(usable);
        if !elsewhere.is_empty() {
            steps.push(format!(
                "its postgresql.conf includes what is not in the folder, without which it may not start: {}; what was backed up of it is below {}/lifeboat_conf: put it there, or take the \
                 lines out",
                elsewhere.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", "),
                target.display()
            ));
        }
        if !point.tablespaces.is_empty() {
            let places = point.tablespaces.iter().map(|place| {
                let now = match mapped.get(&place.oid) {
                    Some(folder) => folder.display().to_string(),
                    None => format!("{}/{}/{}", target.display(), tablespaces::INSIDE, place.oid),
                };
                format!("{now} (was {})", place.location.as_deref().unwrap_or("inside"))
            });
            steps.push(format!("its tablespaces are in: {}", places.collect::<Vec<_>>().join(", ")));
        }
        if standby.is_none() {
            steps.push(restored::before_a_standby(target));
        }
        Ok(HandedOver { dangers, steps })
    }
}

/// A standby goes wherever its source goes.
fn follow(standby: &Standby) -> Recovery {
    Recovery {
        target: Target::Latest,
        timeline: Timeline::Latest,
        restore_command: Some(standby.restore_command.clone()),
        action: Action::Promote,
    }
}

fn standby_settings(standby: &Standby) -> Vec<(String, String)> {
    vec![
        ("hot_standby".to_owned(), "on".to_owned()),
        ("primary_conninfo".to_owned(), standby.primary.clone().unwrap_or_default()),
        ("primary_slot_name".to_owned(), standby.slot.clone().unwrap_or_default()),
    ]
}

/// Settings for a standby's `primary_conninfo`, which everybody sees who may read the folder or the process list.
///
/// # Errors
/// `Usage` when they are none, or hold a password.
pub fn check_primary(text: &str) -> Result<()> {
    let settings = Settings::parse(text).map_err(|error| error.within("understand --primary"))?;
    if settings.has_password() {
        return Err(Error::new(Kind::Usage, "--primary holds a password, which would stand in the process list and in the server's settings")
            .hint("put it into the ~/.pgpass of the user that runs the standby (mode 0600; database `replication`), or name a file with passfile=PATH"));
    }
    Ok(())
}

/// The name of a replication slot.
///
/// # Errors
/// `Usage` when no slot can have it.
pub fn check_slot(name: &str) -> Result<()> {
    let allowed = |letter: u8| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == b'_';
    if name.is_empty() || name.len() > 63 || !name.bytes().all(allowed) {
        return Err(Error::new(Kind::Usage, format!("no replication slot can be called {name:?}"))
            .hint("lower-case letters, digits and _, at most 63"));
    }
    Ok(())
}

/// A server does not start without these files, which Debian keeps elsewhere. True: they were missing.
fn write_missing_configuration(data: &Path) -> Result<bool> {
    let metadata = fs::metadata(data).io_context(|| format!("look at {}", data.display()))?;
    let (uid, gid) = (std::os::unix::fs::MetadataExt::uid(&metadata), std::os::unix::fs::MetadataExt::gid(&metadata));
    let files = [
        ("postgresql.conf", "# Written by lifeboat: the source kept its configuration elsewhere.\nlisten_addresses = ''\n"),
        ("pg_hba.conf", "# Written by lifeboat: the source kept its configuration elsewhere.\nlocal all all peer\n"),
        ("pg_ident.conf", "# Written by lifeboat: the source kept its configuration elsewhere.\n"),
    ];
    let mut written = false;
    for (name, text) in files {
        let path = data.join(name);
        match fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
            Ok(mut file) => {
                std::io::Write::write_all(&mut file, text.as_bytes()).io_context(|| format!("write {}", path.display()))?;
                if Account::own().uid == 0 {
                    chown(&path, Some(uid), Some(gid)).io_context(|| format!("give {} to its owner", path.display()))?;
                }
                written |= name == "postgresql.conf";
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Error::io(format!("write {}", path.display()), error)),
        }
    }
    Ok(written)
}

pub(super) fn diagnosis(name: &str, found: Result<String>) -> Diagnosis {
    match found {
        Ok(message) => Diagnosis { name: name.into(), ok: true, message },
        Err(error) => Diagnosis { name: name.into(), ok: false, message: told_with_hint(&error) },
    }
}

#[cfg(test)]
mod test_restored;
#[cfg(test)]
#[allow(dead_code, reason = "shared by tests of several modules")]
mod test_server;

//! The journal of runs: an embedded SQLite file in the state folder.
//!
//! Invariants:
//! - A run is recorded before it starts and closed after it ended, each in one durable transaction (WAL, `synchronous = FULL`), so
//!   a crash leaves a `running` row whose owner is gone, never a silent gap. [`Journal::broken`] finds those.
//! - A slot of a schedule is one row for ever: `UNIQUE(plan, job, scheduled_ms)`. Retries are further attempts of that row.
//! - At most one live run per plan and exclusive job, held by a partial unique index, whoever starts it.
//! - Nothing secret and no row content is ever written: errors and warnings are texts that the terminal shows too, without what a command of
//!   the plan said (`Error::saying`).
//!
//! The tables are made for what comes later too: `fence` grows with every claim, `node` and `lease_until_ms` serve several
//! machines, `attempts` keeps the reason of every retry. Changes are migrations, numbered from 1, never edited once released.

use std::collections::BTreeSet;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, TransactionBehavior, params};
use serde::{Deserialize, Serialize};

pub use crate::daemon::job::{Job, Trigger};
use crate::daemon::owner::{self, Owner, Process};
use crate::daemon::scheduler::PastSlot;
use crate::error::{Error, IoContext, Kind, Result};
use crate::id::{Name, RunId};

/// Name of the file below the state folder.
pub const FILE: &str = "journal.sqlite";

/// How long a writer waits for another process's transaction. All transactions here take milliseconds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(15);

/// A heartbeat says that its run lives for so long from now. A run that died was at work no later than its last lease says.
pub const LEASE: TimeDelta = TimeDelta::minutes(2);

/// Migrations in order; the first has number 1. `PRAGMA user_version` holds the last one applied.
const MIGRATIONS: &[&str] = &[
    r"
CREATE TABLE migrations (
    version INTEGER PRIMARY KEY,
    applied_ms INTEGER NOT NULL,
    program TEXT NOT NULL
) STRICT;

CREATE TABLE runs (
    id TEXT PRIMARY KEY,
    plan TEXT NOT NULL,
    job TEXT NOT NULL,
    trigger TEXT NOT NULL,
    scheduled_ms INTEGER,
    attempt INTEGER NOT NULL,
    exclusive INTEGER NOT NULL,
    state TEXT NOT NULL,
    started_ms INTEGER NOT NULL,
    ended_ms INTEGER,
    kind TEXT,
    error TEXT,
    story TEXT,
    phases TEXT,
    warnings TEXT,
    bytes_read INTEGER,
    bytes_stored INTEGER,
    snapshot TEXT,
    report TEXT,
    node TEXT NOT NULL,
    owner TEXT NOT NULL,
    host TEXT NOT NULL,
    pid INTEGER NOT NULL,
    boot_id TEXT NOT NULL,
    start_ticks INTEGER NOT NULL,
    lease_until_ms INTEGER,
    fence INTEGER NOT NULL,
    UNIQUE (plan, job, scheduled_ms)
) STRICT;
CREATE UNIQUE INDEX runs_live ON runs (plan, job) WHERE state = 'running' AND exclusive = 1;
CREATE INDEX runs_running ON runs (owner) WHERE state = 'running';
CREATE INDEX runs_by_plan ON runs (plan, job, started_ms);
CREATE INDEX runs_by_time ON runs (started_ms);

CREATE TABLE attempts (
    run TEXT NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    attempt INTEGER NOT NULL,
    started_ms INTEGER NOT NULL,
    ended_ms INTEGER NOT NULL,
    state TEXT NOT NULL,
    kind TEXT,
    error TEXT,
    story TEXT,
    PRIMARY KEY (run, attempt)
) STRICT;

CREATE TABLE schedules (
    plan TEXT NOT NULL,
    job TEXT NOT NULL,
    expression TEXT NOT NULL,
    since_ms INTEGER NOT NULL,
    PRIMARY KEY (plan, job)
) STRICT;

CREATE TABLE counters (
    name TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT;
INSERT INTO counters (name, value) VALUES ('fence', 0);
",
    r"
ALTER TABLE runs ADD COLUMN started_by TEXT;
",
];

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    Running,
    Succeeded,
    /// Finished with something missing (exit 3).
    Incomplete,
    Failed,
    /// Stopped by a signal, or its process died.
    Interrupted,
    /// A slot that passed and was not run, because the plan says `missed = "skip"`.
    Missed,
}

impl State {
    /// The word used in the journal, JSON and logs.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Incomplete => "incomplete",
            Self::Failed => "failed",
            Self::Interrupted => "interrupted",
            Self::Missed => "missed",
        }
    }

    fn from_word(word: &str) -> Option<Self> {
        [Self::Running, Self::Succeeded, Self::Incomplete, Self::Failed, Self::Interrupted, Self::Missed]
            .into_iter()
            .find(|state| state.word() == word)
    }
}

/// An error as the journal and JSON keep it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorRecord {
    pub kind: String,
    pub message: String,
    pub causes: Vec<String>,
    pub hint: Option<String>,
}

impl ErrorRecord {
    /// Message and causes in one line.
    #[must_use]
    pub fn line(&self) -> String {
        let all: Vec<&str> = std::iter::once(&self.message).chain(&self.causes).map(|text| text.trim_end()).collect();
        all.join(": ").replace('\n', " ")
    }
}

impl From<&Error> for ErrorRecord {
    fn from(error: &Error) -> Self {
        Self {
            kind: error.kind().word().to_owned(),
            message: error.to_string(),
            causes: error.causes(),
            hint: error.hint_text().map(str::to_owned),
        }
    }
}

/// One phase of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phase {
    pub name: String,
    pub duration_ms: u64,
    /// Plain bytes that it moved.
    pub bytes: u64,
}

/// A run about to start.
#[derive(Debug, Clone)]
pub struct NewRun {
    /// The id that its row gets; a further attempt of a slot keeps the id of the row that is there.
    pub id: RunId,
    pub plan: Name,
    pub job: Job,
    pub trigger: Trigger,
    /// Who or what started it, for people: `alice (uid 1000)`, `daemon`, an API token's name. Never a secret.
    pub by: String,
    /// The slot of the schedule, without jitter. `None`: manual.
    pub scheduled: Option<DateTime<Utc>>,
}

impl NewRun {
    /// A run that somebody asked for.
    #[must_use]
    pub fn manual(plan: &Name, job: Job, by: impl Into<String>, now: DateTime<Utc>) -> Self {
        Self { id: RunId::generate(now), plan: plan.clone(), job, trigger: Trigger::Manual, by: by.into(), scheduled: None }
    }

    /// A run of a slot of the plan's schedule. Its id is that of the slot's row where there is one already.
    #[must_use]
    pub fn of_slot(plan: &Name, job: Job, trigger: Trigger, slot: DateTime<Utc>, id: RunId) -> Self {
        Self { id, plan: plan.clone(), job, trigger, by: "daemon".to_owned(), scheduled: Some(slot) }
    }
}

/// A schedule that a daemon follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScheduleKey {
    pub plan: Name,
    pub job: Job,
    /// As [`crate::daemon::job::expression`] says it.
    pub expression: String,
}

/// What the journal knows of a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Followed {
    /// Since when it is followed; slots before do not count.
    pub since: DateTime<Utc>,
    /// Its newest slot that is not later than the moment asked about.
    pub last: Option<PastSlot>,
}

/// How a run ended.
#[derive(Debug, Clone)]
pub struct Ending {
    pub state: State,
    pub error: Option<ErrorRecord>,
    /// In words, where the state alone does not tell it.
    pub story: Option<String>,
    pub phases: Vec<Phase>,
    pub warnings: Vec<String>,
    pub bytes_read: Option<u64>,
    pub bytes_stored: Option<u64>,
    pub snapshot: Option<String>,
    pub report: Option<String>,
}

impl Ending {
    /// An ending with nothing but its state.
    #[must_use]
    pub fn new(state: State) -> Self {
        Self {
            state,
            error: None,
            story: None,
            phases: Vec::new(),
            warnings: Vec::new(),
            bytes_read: None,
            bytes_stored: None,
            snapshot: None,
            report: None,
        }
    }

    /// The ending that an error means.
    #[must_use]
    pub fn of_error(error: &Error) -> Self {
        let state = match error.kind() {
            Kind::Interrupted => State::Interrupted,
            Kind::Incomplete => State::Incomplete,
            _ => State::Failed,
        };
        Self { error: Some(error.into()), ..Self::new(state) }
    }
}

/// A claimed run: what [`Journal::close`] needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    pub id: RunId,
    /// Counts attempts of this slot from 1.
    pub attempt: u32,
    /// Grows with every claim in this journal.
    pub fence: u64,
}

/// A run as the journal has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    pub id: RunId,
    pub plan: Name,
    pub job: Job,
    pub trigger: Trigger,
    /// Who or what started it; `None` in rows of versions that did not record it.
    pub by: Option<String>,
    pub scheduled: Option<DateTime<Utc>>,
    pub attempt: u32,
    pub state: State,
    /// Of the last attempt.
    pub started: DateTime<Utc>,
    pub ended: Option<DateTime<Utc>>,
    /// The error's kind word, `None` on success.
    pub kind: Option<String>,
    pub error: Option<ErrorRecord>,
    pub story: Option<String>,
    pub phases: Vec<Phase>,
    pub warnings: Vec<String>,
    pub bytes_read: Option<u64>,
    pub bytes_stored: Option<u64>,
    pub snapshot: Option<String>,
    pub report: Option<String>,
    /// Lock file of the process that ran or runs it.
    pub owner: String,
    pub process: Process,
    pub fence: u64,
    /// Its last heartbeat and [`LEASE`]; `None` when it never had one.
    pub lease_until: Option<DateTime<Utc>>,
}

/// An earlier attempt of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    pub attempt: u32,
    pub started: DateTime<Utc>,
    pub ended: DateTime<Utc>,
    pub state: State,
    pub error: Option<ErrorRecord>,
    pub story: Option<String>,
}

/// Which runs to list.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    pub plan: Option<Name>,
    pub job: Option<Job>,
    pub state: Option<State>,
    /// Newest this many; 0 means all.
    pub limit: u32,
}

/// An open journal. Methods block for the time of one small transaction.
pub struct Journal {
    connection: Mutex<Connection>,
    state: PathBuf,
    process: Process,
    /// Made at the first claim and held until the journal is dropped.
    owner: Mutex<Option<Owner>>,
    /// Fences of the runs that this process is at work on: a `running` row of its own that is not here is broken.
    held: Mutex<BTreeSet<u64>>,
    /// Endings that could not be written yet, with the time of each.
    unfinished: Mutex<Vec<(Claim, Ending, DateTime<Utc>)>>,
}

impl Journal {
    /// Opens the journal of a state folder, making both when missing, and brings its tables up to date.
    ///
    /// # Errors
    /// `Failed` when the file is damaged or of a later version (the hint says what to do), `NoSpace`, `Busy`.
    pub fn open(state: &Path, now: DateTime<Utc>) -> Result<Self> {
        crate::daemon::private_folder(state)?;
        let path = state.join(FILE);
        // SQLite gives its side files the mode of the main one, so making that first is enough.
        std::fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .io_context(|| format!("open the journal {}", path.display()))?;
        let journal = Self::connect(state, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        journal.migrate(now)?;
        Ok(journal)
    }

    /// Opens the journal only where one is.
    ///
    /// # Errors
    /// As [`Journal::open`].
    pub fn open_existing(state: &Path, now: DateTime<Utc>) -> Result<Option<Self>> {
        if state.join(FILE).exists() { Self::open(state, now).map(Some) } else { Ok(None) }
    }

    fn connect(state: &Path, flags: OpenFlags) -> Result<Self> {
        let path = state.join(FILE);
        let open = || -> rusqlite::Result<Connection> {
            let connection = Connection::open_with_flags(&path, flags)?;
            connection.busy_timeout(BUSY_TIMEOUT)?;
            connection.pragma_update(None, "journal_mode", "wal")?;
            connection.pragma_update(None, "synchronous", "full")?;
            connection.pragma_update(None, "foreign_keys", true)?;
            Ok(connection)
        };
        let connection = open().map_err(|error| failure("open", &path, error))?;
        Ok(Self {
            connection: Mutex::new(connection),
            state: state.to_owned(),
            process: Process::this(),
            owner: Mutex::new(None),
            held: Mutex::default(),
            unfinished: Mutex::default(),
        })
    }

    /// The state folder.
    #[must_use]
    pub fn state_folder(&self) -> &Path {
        &self.state
    }

    fn migrate(&self, now: DateTime<Utc>) -> Result<()> {
        let mut connection = self.lock();
        let version = |connection: &Connection| connection.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0));
        let known = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
        let found = version(&connection).map_err(|error| self.failure("read", error))?;
        if found == known {
            return Ok(());
        }
        if found > known {
            return Err(Error::new(
                Kind::Failed,
                format!("open the journal {}: version {found} is newer than this program", self.path().display()),
            )
            .hint("use the lifeboat that wrote it, or a later one; or give this one a state folder of its own with --state DIR"));
        }
        let mut apply = || -> rusqlite::Result<()> {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            // Another process may have been quicker.
            let found = version(&transaction)?;
            for number in found..known {
                let step = usize::try_from(number).unwrap_or(usize::MAX);
                if let Some(script) = MIGRATIONS.get(step) {
                    transaction.execute_batch(script)?;
                    transaction.execute(
                        "INSERT INTO migrations (version, applied_ms, program) VALUES (?1, ?2, ?3)",
                        params![number + 1, now.timestamp_millis(), env!("CARGO_PKG_VERSION")],
                    )?;
                    transaction.pragma_update(None, "user_version", number + 1)?;
                }
            }
            transaction.commit()
        };
        apply().map_err(|error| self.failure("bring up to date", error))
    }

    /// Records a run before it starts. A slot that has a row already gets a further attempt, and that row's id.
    ///
    /// # Errors
    /// `Busy` when a live run of the same plan and job is there, or when the slot was already run successfully.
    pub fn begin(&self, run: &NewRun, now: DateTime<Utc>) -> Result<Claim> {
        self.finish_unfinished()?;
        let owner = self.owner(now)?;
        let live = self.live(&run.plan, run.job)?;
        if run.job.is_exclusive()
            && let Some(live) = &live
        {
            if !self.is_broken(live)? {
                return Err(busy(live));
            }
            return Err(Error::new(
                Kind::Bug,
                format!("start {} of plan {}: run {} has no owner and was not settled", run.job.word(), run.plan, live.id),
            ));
        }
        // Held until the claim is noted: whoever sees the row must see the claim too.
        let mut held = guard(&self.held);
        let mut connection = self.lock();
        let mut insert = || -> rusqlite::Result<Option<Claim>> {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let fence: i64 =
                transaction
                    .query_row("UPDATE counters SET value = value + 1 WHERE name = 'fence' RETURNING value", [], |row| row.get(0))?;
            let scheduled = run.scheduled.map(|time| time.timestamp_millis());
            let earlier = transaction
                .query_row(
                    "SELECT id, attempt, state FROM runs WHERE plan = ?1 AND job = ?2 AND scheduled_ms = ?3",
                    params![run.plan.as_str(), run.job.word(), scheduled],
                    |row| Ok((row.get::<_, String>(0)?, row.get::<_, u32>(1)?, row.get::<_, String>(2)?)),
                )
                .optional()?;
            let claim = if let Some((id, attempt, state)) = earlier {
                let Ok(id) = id.parse::<RunId>() else { return Ok(None) };
                if !matches!(State::from_word(&state), Some(State::Failed | State::Interrupted)) {
                    return Ok(None);
                }
                transaction.execute(
                    "INSERT INTO attempts (run, attempt, started_ms, ended_ms, state, kind, error, story)
                     SELECT id, attempt, started_ms, coalesce(ended_ms, started_ms), state, kind, error, story FROM runs WHERE id = ?1",
                    [id.to_string()],
                )?;
                transaction.execute(
                    "UPDATE runs SET trigger = ?2, attempt = ?3, state = 'running', started_ms = ?4, ended_ms = NULL, kind = NULL,
                        error = NULL, story = NULL, phases = NULL, warnings = NULL, bytes_read = NULL, bytes_stored = NULL,
                        snapshot = NULL, report = NULL, lease_until_ms = NULL, owner = ?5, host = ?6, node = ?6, pid = ?7, boot_id = ?8, start_ticks = ?9,
                        fence = ?10, started_by = ?11 WHERE id = ?1",
                    params![
                        id.to_string(),
                        run.trigger.word(),
                        attempt + 1,
                        now.timestamp_millis(),
                        owner,
                        self.process.host,
                        self.process.pid,
                        self.process.boot_id,
                        i64::try_from(self.process.start_ticks).unwrap_or(0),
                        fence,
                        run.by
                    ],
                )?;
                Claim { id, attempt: attempt + 1, fence: fence.unsigned_abs() }
            } else {
                let id = run.id;
                transaction.execute(
                    "INSERT INTO runs (id, plan, job, trigger, scheduled_ms, attempt, exclusive, state, started_ms, node, owner, host,
                        pid, boot_id, start_ticks, fence, started_by)
                     VALUES (?1, ?2, ?3, ?4, ?5, 1, ?6, 'running', ?7, ?8, ?9, ?8, ?10, ?11, ?12, ?13, ?14)",
                    params![
                        id.to_string(),
                        run.plan.as_str(),
                        run.job.word(),
                        run.trigger.word(),
                        scheduled,
                        run.job.is_exclusive(),
                        now.timestamp_millis(),
                        self.process.host,
                        owner,
                        self.process.pid,
                        self.process.boot_id,
                        i64::try_from(self.process.start_ticks).unwrap_or(0),
                        fence,
                        run.by
                    ],
                )?;
                Claim { id, attempt: 1, fence: fence.unsigned_abs() }
            };
            transaction.commit()?;
            Ok(Some(claim))
        };
        match insert() {
            Ok(Some(claim)) => {
                held.insert(claim.fence);
                Ok(claim)
            }
            Ok(None) => Err(Error::new(Kind::Busy, format!("start {} of plan {}: this slot was run already", run.job.word(), run.plan))),
            Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::ConstraintViolation) => {
                Err(Error::new(Kind::Busy, format!("start {} of plan {}: another one has just started", run.job.word(), run.plan))
                    .hint("wait for it; `lifeboat run history` shows it"))
            }
            Err(error) => Err(self.failure("write", error)),
        }
    }

    /// Closes a run that this process holds. An ending that cannot be written now is kept for [`Journal::finish_unfinished`].
    ///
    /// # Errors
    /// `Bug` when the claim is no longer the current one; when the journal cannot be written.
    pub fn close(&self, claim: Claim, ending: &Ending, now: DateTime<Utc>) -> Result<()> {
        let ended = self.end(claim.id, claim.fence, ending, now).inspect_err(|_| {
            guard(&self.unfinished).push((claim, ending.clone(), now));
        })?;
        guard(&self.held).remove(&claim.fence);
        if ended { Ok(()) } else { Err(Error::new(Kind::Bug, format!("close run {}: it is not held by this process any more", claim.id))) }
    }

    /// Writes the endings that could not be written when their runs ended; how many.
    ///
    /// # Errors
    /// When the journal still cannot be written: the rest is kept.
    pub fn finish_unfinished(&self) -> Result<usize> {
        let mut unfinished = guard(&self.unfinished);
        let mut finished = 0;
        while let Some((claim, ending, ended)) = unfinished.first() {
            // Already closed by somebody else is closed too.
            self.end(claim.id, claim.fence, ending, *ended)?;
            guard(&self.held).remove(&claim.fence);
            unfinished.remove(0);
            finished += 1;
        }
        Ok(finished)
    }

    /// Says that a run of this process is still at work.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub fn heartbeat(&self, claim: Claim, now: DateTime<Utc>) -> Result<()> {
        self.lock()
            .execute(
                "UPDATE runs SET lease_until_ms = ?3 WHERE id = ?1 AND fence = ?2 AND state = 'running'",
                params![claim.id.to_string(), signed(claim.fence), (now + LEASE).timestamp_millis()],
            )
            .map(|_| ())
            .map_err(|error| self.failure("write", error))
    }

    /// Whether nobody is at work on this `running` row any more.
    fn is_broken(&self, run: &Run) -> Result<bool> {
        if guard(&self.owner).as_ref().is_some_and(|owner| owner.id() == run.owner) {
            return Ok(!guard(&self.held).contains(&run.fence));
        }
        Ok(!owner::is_alive(&self.state, &run.owner)?)
    }

    /// Closes a broken run ([`Journal::broken`]) of another process; `false` when somebody else was quicker.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub fn settle(&self, run: &Run, ending: &Ending, now: DateTime<Utc>) -> Result<bool> {
        let settled = self.end(run.id, run.fence, ending, now)?;
        let own = guard(&self.owner).as_ref().is_some_and(|owner| owner.id() == run.owner);
        if settled && !own && self.running_of(&run.owner)? == 0 {
            owner::forget(&self.state, &run.owner);
        }
        Ok(settled)
    }

    fn end(&self, id: RunId, fence: u64, ending: &Ending, now: DateTime<Utc>) -> Result<bool> {
        let changed = self.lock().execute(
            "UPDATE runs SET state = ?3, ended_ms = max(?4, started_ms), kind = ?5, error = ?6, story = ?7, phases = ?8, warnings = ?9,
                bytes_read = ?10, bytes_stored = ?11, snapshot = ?12, report = ?13
             WHERE id = ?1 AND fence = ?2 AND state = 'running'",
            params![
                id.to_string(),
                signed(fence),
                ending.state.word(),
                now.timestamp_millis(),
                ending.error.as_ref().map(|error| error.kind.as_str()),
                ending.error.as_ref().map(json),
                ending.story,
                json(&ending.phases),
                json(&ending.warnings),
                ending.bytes_read.map(signed),
                ending.bytes_stored.map(signed),
                ending.snapshot,
                ending.report,
            ],
        );
        changed.map(|changed| changed == 1).map_err(|error| self.failure("write", error))
    }

    /// Records a slot that passed and will not be run; later calls for the same slot change nothing.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub fn missed(&self, plan: &Name, job: Job, slot: DateTime<Utc>, story: &str, now: DateTime<Utc>) -> Result<()> {
        self.lock()
            .execute(
                "INSERT OR IGNORE INTO runs (id, plan, job, trigger, scheduled_ms, attempt, exclusive, state, started_ms, ended_ms, story,
                    node, owner, host, pid, boot_id, start_ticks, fence)
                 VALUES (?1, ?2, ?3, 'schedule', ?4, 0, 0, 'missed', ?5, ?5, ?6, ?7, '', ?7, ?8, ?9, 0, 0)",
                params![
                    RunId::generate(now).to_string(),
                    plan.as_str(),
                    job.word(),
                    slot.timestamp_millis(),
                    now.timestamp_millis(),
                    story,
                    self.process.host,
                    self.process.pid,
                    self.process.boot_id
                ],
            )
            .map(|_| ())
            .map_err(|error| self.failure("write", error))
    }

    /// Runs that are `running` though their owner is gone, or is this process and not at work on them; oldest first.
    ///
    /// # Errors
    /// When the journal or a lock cannot be read.
    pub fn broken(&self) -> Result<Vec<Run>> {
        let running = self.runs(&Filter { state: Some(State::Running), ..Filter::default() })?;
        let mut broken = Vec::new();
        for run in running.into_iter().rev() {
            if self.is_broken(&run)? {
                broken.push(run);
            }
        }
        Ok(broken)
    }

    /// Runs that match, newest first.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn runs(&self, filter: &Filter) -> Result<Vec<Run>> {
        let limit = if filter.limit == 0 { -1 } else { i64::from(filter.limit) };
        self.select(
            "WHERE (?1 IS NULL OR plan = ?1) AND (?2 IS NULL OR job = ?2) AND (?3 IS NULL OR state = ?3)
             ORDER BY started_ms DESC, id DESC LIMIT ?4",
            params![filter.plan.as_ref().map(Name::as_str), filter.job.map(Job::word), filter.state.map(State::word), limit],
        )
    }

    /// One run.
    ///
    /// # Errors
    /// `NotFound` when there is none.
    pub fn run(&self, id: RunId) -> Result<Run> {
        self.select("WHERE id = ?1", [id.to_string()])?
            .into_iter()
            .next()
            .ok_or_else(|| Error::new(Kind::NotFound, format!("find run {id}: no such run")).hint("`lifeboat run history` lists the runs"))
    }

    /// The newest slot of a schedule, not later than `until`, that has a row in whatever state.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn last_slot(&self, plan: &Name, job: Job, until: DateTime<Utc>) -> Result<Option<Run>> {
        Ok(self
            .select(
                "WHERE plan = ?1 AND job = ?2 AND scheduled_ms <= ?3 ORDER BY scheduled_ms DESC LIMIT 1",
                params![plan.as_str(), job.word(), until.timestamp_millis()],
            )?
            .into_iter()
            .next())
    }

    /// The newest run of a plan and job in this state.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn last_in(&self, plan: &Name, job: Job, state: State) -> Result<Option<Run>> {
        Ok(self.runs(&Filter { plan: Some(plan.clone()), job: Some(job), state: Some(state), limit: 1 })?.into_iter().next())
    }

    /// The newest run of a plan and job that failed, without what failed by how it was asked for: a command typed by hand that named no
    /// recovery point, did not open with its passphrase, or was not a right one. A backup is asked for in one way only, so that its `usage`
    /// is the plan's and counts.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn last_failed(&self, plan: &Name, job: Job) -> Result<Option<Run>> {
        let mistakes = [Kind::NoRecoveryPoint.word(), Kind::WrongKey.word(), if job == Job::Backup { "-" } else { Kind::Usage.word() }];
        let [first, second, third] = mistakes;
        let found = self.select(
            "WHERE plan = ?1 AND job = ?2 AND state = 'failed' AND NOT (trigger = 'manual' AND coalesce(kind, '') IN (?3, ?4, ?5))
             ORDER BY started_ms DESC, id DESC LIMIT 1",
            params![plan.as_str(), job.word(), first, second, third],
        )?;
        Ok(found.into_iter().next())
    }

    /// Earlier attempts of a run, oldest first.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn attempts(&self, id: RunId) -> Result<Vec<Attempt>> {
        let connection = self.lock();
        let query = || -> rusqlite::Result<Vec<Attempt>> {
            let mut statement = connection.prepare_cached(
                "SELECT attempt, started_ms, ended_ms, state, error, story FROM attempts WHERE run = ?1 ORDER BY attempt",
            )?;
            let rows = statement.query_map([id.to_string()], |row| {
                Ok(Attempt {
                    attempt: row.get(0)?,
                    started: time(row.get(1)?),
                    ended: time(row.get(2)?),
                    state: State::from_word(&row.get::<_, String>(3)?).unwrap_or(State::Failed),
                    error: parsed(row.get(4)?),
                    story: row.get(5)?,
                })
            })?;
            rows.collect()
        };
        query().map_err(|error| self.failure("read", error))
    }

    /// Since when this schedule has been followed, remembering it from now on when it is new or has changed.
    ///
    /// # Errors
    /// When the journal cannot be read or written.
    pub fn schedule_since(&self, plan: &Name, job: Job, expression: &str, now: DateTime<Utc>) -> Result<DateTime<Utc>> {
        self.lock()
            .query_row(
                "INSERT INTO schedules (plan, job, expression, since_ms) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (plan, job) DO UPDATE SET
                    since_ms = CASE WHEN expression = excluded.expression THEN since_ms ELSE excluded.since_ms END,
                    expression = excluded.expression
                 RETURNING since_ms",
                params![plan.as_str(), job.word(), expression, now.timestamp_millis()],
                |row| row.get(0),
            )
            .map(time)
            .map_err(|error| self.failure("write", error))
    }

    /// What is known of these schedules at `now`, in their order and in one transaction; those that are new or have changed are followed
    /// from now on.
    ///
    /// # Errors
    /// When the journal cannot be read or written; then nothing was changed.
    pub fn follow(&self, schedules: &[ScheduleKey], now: DateTime<Utc>) -> Result<Vec<Followed>> {
        let mut connection = self.lock();
        let mut query = || -> rusqlite::Result<Vec<Followed>> {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let mut all = Vec::with_capacity(schedules.len());
            {
                let mut known = transaction.prepare_cached("SELECT expression, since_ms FROM schedules WHERE plan = ?1 AND job = ?2")?;
                let mut note = transaction.prepare_cached(
                    "INSERT INTO schedules (plan, job, expression, since_ms) VALUES (?1, ?2, ?3, ?4)
                     ON CONFLICT (plan, job) DO UPDATE SET expression = excluded.expression, since_ms = excluded.since_ms",
                )?;
                let mut newest = transaction.prepare_cached(
                    "SELECT id, scheduled_ms, state, attempt, ended_ms, kind FROM runs
                     WHERE plan = ?1 AND job = ?2 AND scheduled_ms <= ?3 ORDER BY scheduled_ms DESC LIMIT 1",
                )?;
                for key in schedules {
                    let (plan, job) = (key.plan.as_str(), key.job.word());
                    let since = known
                        .query_row(params![plan, job], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?)))
                        .optional()?
                        .filter(|(expression, _)| *expression == key.expression);
                    let since = if let Some((_, since)) = since {
                        time(since)
                    } else {
                        note.execute(params![plan, job, key.expression, now.timestamp_millis()])?;
                        now
                    };
                    let last = newest.query_row(params![plan, job, now.timestamp_millis()], past_slot).optional()?.flatten();
                    all.push(Followed { since, last });
                }
            }
            transaction.commit()?;
            Ok(all)
        };
        query().map_err(|error| self.failure("read", error))
    }

    /// Since when this schedule has been followed; `None` when it is new or has changed.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn schedule_known(&self, plan: &Name, job: Job, expression: &str) -> Result<Option<DateTime<Utc>>> {
        self.lock()
            .query_row(
                "SELECT since_ms FROM schedules WHERE plan = ?1 AND job = ?2 AND expression = ?3",
                params![plan.as_str(), job.word(), expression],
                |row| row.get(0),
            )
            .optional()
            .map(|since| since.map(time))
            .map_err(|error| self.failure("read", error))
    }

    fn live(&self, plan: &Name, job: Job) -> Result<Option<Run>> {
        Ok(self
            .select("WHERE plan = ?1 AND job = ?2 AND state = 'running' AND exclusive = 1", params![plan.as_str(), job.word()])?
            .into_iter()
            .next())
    }

    fn running_of(&self, owner: &str) -> Result<u64> {
        self.lock()
            .query_row("SELECT count(*) FROM runs WHERE state = 'running' AND owner = ?1", [owner], |row| row.get::<_, i64>(0))
            .map(i64::unsigned_abs)
            .map_err(|error| self.failure("read", error))
    }

    fn select(&self, rest: &str, params: impl rusqlite::Params) -> Result<Vec<Run>> {
        const COLUMNS: &str =
            "SELECT id, plan, job, trigger, scheduled_ms, attempt, state, started_ms, ended_ms, kind, error, story, phases,
            warnings, bytes_read, bytes_stored, snapshot, report, owner, host, pid, boot_id, start_ticks, fence, lease_until_ms, started_by FROM runs ";
        let connection = self.lock();
        let query = || -> rusqlite::Result<Vec<Option<Run>>> {
            let mut statement = connection.prepare_cached(&format!("{COLUMNS}{rest}"))?;
            let rows = statement.query_map(params, read_run)?;
            rows.collect()
        };
        // A row that this version cannot read (a job of a later release) is none of its business.
        query().map(|rows| rows.into_iter().flatten().collect()).map_err(|error| self.failure("read", error))
    }

    fn owner(&self, now: DateTime<Utc>) -> Result<String> {
        let mut owner = self.owner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(owner) = owner.as_ref() {
            return Ok(owner.id().to_owned());
        }
        let claimed = Owner::claim(&self.state, RunId::generate(now).to_string())?;
        let id = claimed.id().to_owned();
        *owner = Some(claimed);
        Ok(id)
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self) -> PathBuf {
        self.state.join(FILE)
    }

    fn failure(&self, operation: &str, error: rusqlite::Error) -> Error {
        failure(operation, &self.path(), error)
    }
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn busy(live: &Run) -> Error {
    Error::new(
        Kind::Busy,
        format!(
            "start {} of plan {}: run {} (process {} on {}) is doing that since {}",
            live.job.word(),
            live.plan,
            live.id,
            live.process.pid,
            live.process.host,
            live.started.format("%Y-%m-%dT%H:%M:%SZ")
        ),
    )
    .hint("wait for it, then run the same command again; `lifeboat run history` shows it")
}

/// Turns what SQLite says into what an operator can do about it.
fn failure(operation: &str, path: &Path, error: rusqlite::Error) -> Error {
    use rusqlite::ErrorCode as Code;
    let path_text = path.display();
    let message = format!("{operation} the journal {path_text}");
    match error.sqlite_error_code() {
        Some(Code::DatabaseCorrupt | Code::NotADatabase) => Error::new(Kind::Failed, format!("{message}: the file is damaged")).because(error).hint(format!(
            "move it aside with `mv {path_text} {path_text}.damaged` (and the -wal and -shm files beside it) and run the same command again: the history of runs starts anew, snapshots and reports are in the repository and are not touched"
        )),
        code if code == Some(Code::DiskFull) || crate::source::sqlite::no_room_for_index(&error) => Error::new(Kind::NoSpace, message)
            .because(error)
            .hint(format!("free space on the file system of {path_text}, then run the same command again")),
        Some(Code::DatabaseBusy | Code::DatabaseLocked) => {
            Error::new(Kind::Busy, message).because(error).hint("another process holds the journal for unusually long; try again, or find it with `fuser`")
        }
        Some(Code::ReadOnly | Code::PermissionDenied | Code::CannotOpen) => Error::new(Kind::Failed, message)
            .because(error)
            .hint("the state folder must be writable for this user; choose another with --state DIR"),
        _ => Error::new(Kind::Failed, message).because(error),
    }
}

fn read_run(row: &Row<'_>) -> rusqlite::Result<Option<Run>> {
    let id = row.get::<_, String>(0)?.parse::<RunId>();
    let plan = Name::new(row.get::<_, String>(1)?);
    let job = Job::from_word(&row.get::<_, String>(2)?);
    let trigger = Trigger::from_word(&row.get::<_, String>(3)?);
    let state = State::from_word(&row.get::<_, String>(6)?);
    let (Ok(id), Ok(plan), Some(job), Some(trigger), Some(state)) = (id, plan, job, trigger, state) else { return Ok(None) };
    Ok(Some(Run {
        id,
        plan,
        job,
        trigger,
        by: row.get(25)?,
        scheduled: row.get::<_, Option<i64>>(4)?.map(time),
        attempt: row.get(5)?,
        state,
        started: time(row.get(7)?),
        ended: row.get::<_, Option<i64>>(8)?.map(time),
        kind: row.get(9)?,
        error: parsed(row.get(10)?),
        story: row.get(11)?,
        phases: parsed(row.get(12)?).unwrap_or_default(),
        warnings: parsed(row.get(13)?).unwrap_or_default(),
        bytes_read: row.get::<_, Option<i64>>(14)?.map(i64::unsigned_abs),
        bytes_stored: row.get::<_, Option<i64>>(15)?.map(i64::unsigned_abs),
        snapshot: row.get(16)?,
        report: row.get(17)?,
        owner: row.get(18)?,
        process: Process {
            host: row.get(19)?,
            pid: row.get(20)?,
            boot_id: row.get(21)?,
            start_ticks: row.get::<_, i64>(22)?.unsigned_abs(),
        },
        fence: row.get::<_, i64>(23)?.unsigned_abs(),
        lease_until: row.get::<_, Option<i64>>(24)?.map(time),
    }))
}

/// A slot as the scheduler wants it; `None` when this version cannot read its row.
fn past_slot(row: &Row<'_>) -> rusqlite::Result<Option<PastSlot>> {
    let (Ok(run), Some(state)) = (row.get::<_, String>(0)?.parse::<RunId>(), State::from_word(&row.get::<_, String>(2)?)) else {
        return Ok(None);
    };
    let (ended, kind) = (row.get::<_, Option<i64>>(4)?, row.get::<_, Option<String>>(5)?);
    Ok(Some(PastSlot::new(run, time(row.get(1)?), state, row.get(3)?, ended.map(time), kind.as_deref())))
}

/// Milliseconds since the Unix epoch, as kept in the tables, back to a time. What is out of range becomes the epoch.
fn time(ms: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(ms).unwrap_or_default()
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

fn parsed<T: for<'de> Deserialize<'de>>(text: Option<String>) -> Option<T> {
    text.and_then(|text| serde_json::from_str(&text).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn now() -> DateTime<Utc> {
        "2026-11-20T02:15:00Z".parse().unwrap()
    }

    fn later(seconds: i64) -> DateTime<Utc> {
        now() + chrono::TimeDelta::seconds(seconds)
    }

    fn slot_run(trigger: Trigger) -> NewRun {
        NewRun::of_slot(&Name::new("crm").unwrap(), Job::Backup, trigger, now(), RunId::generate(now()))
    }

    fn manual(job: Job) -> NewRun {
        NewRun::manual(&Name::new("crm").unwrap(), job, "tester", now())
    }

    #[test]
    fn a_run_is_there_before_it_ends_and_complete_after() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path(), now()).unwrap();
        let claim = journal.begin(&manual(Job::Backup), now()).unwrap();
        let other = Journal::open(folder.path(), now()).unwrap();
        assert_eq!(other.run(claim.id).unwrap().state, State::Running);
        let ending = Ending {
            phases: vec![Phase { name: "read".into(), duration_ms: 5, bytes: 7 }],
            warnings: vec!["w".into()],
            bytes_read: Some(10),
            bytes_stored: Some(3),
            snapshot: Some("s".into()),
            ..Ending::new(State::Succeeded)
        };
        journal.close(claim, &ending, later(3)).unwrap();
        let run = other.run(claim.id).unwrap();
        assert_eq!(run.by.as_deref(), Some("tester"));
        assert_eq!((run.state, run.ended, run.bytes_read, run.bytes_stored), (State::Succeeded, Some(later(3)), Some(10), Some(3)));
        assert_eq!((run.phases, run.warnings, run.snapshot.as_deref()), (ending.phases, ending.warnings, Some("s")));
        assert_eq!(run.process, Process::this());
        assert_eq!(journal.close(claim, &Ending::new(State::Failed), later(4)).unwrap_err().kind(), Kind::Bug);
    }

    #[test]
    fn files_are_private() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("a/b");
        let journal = Journal::open(&state, now()).unwrap();
        journal.begin(&manual(Job::Backup), now()).unwrap();
        assert_eq!(std::fs::metadata(&state).unwrap().permissions().mode() & 0o777, 0o700);
        for file in std::fs::read_dir(&state).unwrap().map(|entry| entry.unwrap()) {
            let mode = file.metadata().unwrap().permissions().mode() & 0o777;
            assert_eq!(mode & 0o077, 0, "{} is {mode:o}", file.path().display());
        }
    }

    #[test]
    fn what_was_mistyped_is_in_the_history_and_no_failure_of_the_plan() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path(), now()).unwrap();
        let mut second = 0;
        let mut failed = |new: &NewRun, kind| {
            second += 1;
            let claim = journal.begin(new, later(second)).unwrap();
            journal.close(claim, &Ending::of_error(&Error::new(kind, "x")), later(second)).unwrap();
            claim.id
        };
        let last = |job| journal.last_failed(&Name::new("crm").unwrap(), job).unwrap().map(|run| run.id);
        let real = failed(&manual(Job::Drill), Kind::Damaged);
        for kind in [Kind::Usage, Kind::NoRecoveryPoint, Kind::WrongKey] {
            failed(&manual(Job::Drill), kind);
            assert_eq!(last(Job::Drill), Some(real), "what failed before is not hidden either: {kind:?}");
        }
        let wrong = failed(&slot_run(Trigger::Schedule), Kind::WrongKey);
        assert_eq!(last(Job::Backup), Some(wrong), "nobody typed that");
        let usage = failed(&manual(Job::Backup), Kind::Usage);
        assert_eq!(last(Job::Backup), Some(usage), "a backup's usage is the plan's");
        assert_eq!(journal.runs(&Filter::default()).unwrap().len(), 6);
    }

    #[test]
    fn two_backups_of_a_plan_at_once_are_refused_and_named() {
        let folder = tempfile::tempdir().unwrap();
        let first = Journal::open(folder.path(), now()).unwrap();
        let second = Journal::open(folder.path(), now()).unwrap();
        let claim = first.begin(&manual(Job::Backup), now()).unwrap();
        let refused = second.begin(&slot_run(Trigger::Schedule), now()).unwrap_err();
        assert_eq!(refused.kind(), Kind::Busy);
        assert!(refused.to_string().contains(&claim.id.to_string()), "{refused}");
        second.begin(&manual(Job::Drill), now()).unwrap();
        second.begin(&manual(Job::Restore), now()).unwrap();
        second.begin(&manual(Job::Restore), now()).unwrap();
        first.close(claim, &Ending::new(State::Succeeded), now()).unwrap();
        second.begin(&slot_run(Trigger::Schedule), now()).unwrap();
    }

    #[test]
    fn a_dead_owner_leaves_a_broken_run_that_can_be_settled_once() {
        let folder = tempfile::tempdir().unwrap();
        let dead = Journal::open(folder.path(), now()).unwrap();
        let claim = dead.begin(&slot_run(Trigger::Schedule), now()).unwrap();
        let journal = Journal::open(folder.path(), later(60)).unwrap();
        assert!(journal.broken().unwrap().is_empty(), "its owner still lives");
        drop(dead);
        let broken = journal.broken().unwrap();
        assert_eq!(broken.len(), 1);
        assert!(journal.settle(&broken[0], &Ending { story: Some("gone".into()), ..Ending::new(State::Interrupted) }, later(60)).unwrap());
        assert!(!journal.settle(&broken[0], &Ending::new(State::Failed), later(61)).unwrap());
        assert_eq!(journal.run(claim.id).unwrap().story.as_deref(), Some("gone"));
        assert!(journal.broken().unwrap().is_empty());
    }

    #[test]
    fn an_ending_that_could_not_be_written_is_written_later() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path(), now()).unwrap();
        let claim = journal.begin(&manual(Job::Backup), now()).unwrap();
        journal.lock().pragma_update(None, "query_only", true).unwrap();
        let ending = Ending { snapshot: Some("s".into()), ..Ending::new(State::Succeeded) };
        journal.close(claim, &ending, later(1)).unwrap_err();
        journal.finish_unfinished().unwrap_err();
        assert!(journal.broken().unwrap().is_empty(), "its ending is known: nothing is to be guessed");
        journal.lock().pragma_update(None, "query_only", false).unwrap();
        assert_eq!(journal.finish_unfinished().unwrap(), 1);
        let run = journal.run(claim.id).unwrap();
        assert_eq!((run.state, run.ended, run.snapshot.as_deref()), (State::Succeeded, Some(later(1)), Some("s")));
        assert_eq!(journal.finish_unfinished().unwrap(), 0);
        journal.begin(&manual(Job::Backup), later(2)).unwrap();
    }

    #[test]
    fn a_row_of_this_process_that_it_does_not_work_on_is_broken() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path(), now()).unwrap();
        let claim = journal.begin(&manual(Job::Backup), now()).unwrap();
        assert!(journal.broken().unwrap().is_empty());
        guard(&journal.held).clear();
        let broken = journal.broken().unwrap();
        assert_eq!(broken.iter().map(|run| run.id).collect::<Vec<_>>(), [claim.id]);
        assert!(journal.settle(&broken[0], &Ending::new(State::Interrupted), later(1)).unwrap());
        assert!(owner::is_alive(folder.path(), &broken[0].owner).unwrap(), "this process keeps its own lock file");
        journal.begin(&manual(Job::Backup), later(2)).unwrap();
    }

    #[test]
    fn a_retry_is_a_further_attempt_of_the_same_row_and_keeps_the_reason() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path(), now()).unwrap();
        let first = journal.begin(&slot_run(Trigger::Schedule), now()).unwrap();
        let error = Error::new(Kind::Unavailable, "reach the store").hint("wait");
        journal.close(first, &Ending::of_error(&error), later(1)).unwrap();
        let second = journal.begin(&slot_run(Trigger::Retry), later(61)).unwrap();
        assert_eq!((second.id, second.attempt), (first.id, 2));
        assert!(second.fence > first.fence);
        assert_eq!(
            journal.close(first, &Ending::new(State::Succeeded), later(62)).unwrap_err().kind(),
            Kind::Bug,
            "a stale claim cannot close"
        );
        journal.close(second, &Ending::new(State::Succeeded), later(62)).unwrap();
        let attempts = journal.attempts(first.id).unwrap();
        assert_eq!(attempts.len(), 1);
        assert_eq!(attempts[0].error.as_ref().unwrap().kind, "unavailable");
        assert_eq!(journal.begin(&slot_run(Trigger::Retry), later(70)).unwrap_err().kind(), Kind::Busy, "a slot that succeeded is done");
    }

    #[test]
    fn a_missed_slot_is_recorded_once_and_never_run() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path(), now()).unwrap();
        let plan = Name::new("crm").unwrap();
        journal.missed(&plan, Job::Backup, now(), "3 slots", later(9)).unwrap();
        journal.missed(&plan, Job::Backup, now(), "again", later(10)).unwrap();
        let slot = journal.last_slot(&plan, Job::Backup, later(9)).unwrap().unwrap();
        assert_eq!((slot.state, slot.story.as_deref(), slot.scheduled), (State::Missed, Some("3 slots"), Some(now())));
        assert_eq!(journal.begin(&slot_run(Trigger::CatchUp), later(11)).unwrap_err().kind(), Kind::Busy);
    }

    #[test]
    fn a_schedule_is_followed_since_it_was_first_seen_or_changed() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path(), now()).unwrap();
        let plan = Name::new("crm").unwrap();
        assert_eq!(journal.schedule_since(&plan, Job::Backup, "0 2 * * * UTC", now()).unwrap(), now());
        assert_eq!(journal.schedule_since(&plan, Job::Backup, "0 2 * * * UTC", later(9)).unwrap(), now());
        assert_eq!(journal.schedule_since(&plan, Job::Backup, "0 3 * * * UTC", later(9)).unwrap(), later(9));
    }

    #[test]
    fn schedules_are_followed_all_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path(), now()).unwrap();
        let plan = Name::new("crm").unwrap();
        let key = |job, expression: &str| ScheduleKey { plan: plan.clone(), job, expression: expression.into() };
        let keys = [key(Job::Backup, "0 2 * * * UTC"), key(Job::Drill, "0 3 * * * UTC")];
        assert_eq!(journal.follow(&keys, now()).unwrap(), [Followed { since: now(), last: None }; 2]);
        let claim = journal.begin(&slot_run(Trigger::Schedule), later(1)).unwrap();
        journal.close(claim, &Ending::of_error(&Error::new(Kind::Unavailable, "away")), later(2)).unwrap();
        let changed = [key(Job::Backup, "0 2 * * * UTC"), key(Job::Drill, "0 4 * * * UTC")];
        let found = journal.follow(&changed, later(9)).unwrap();
        let last = PastSlot::new(claim.id, now(), State::Failed, 1, Some(later(2)), Some("unavailable"));
        assert_eq!(found, [Followed { since: now(), last: Some(last) }, Followed { since: later(9), last: None }]);
        let before = journal.follow(&keys[..1], now() - TimeDelta::seconds(1)).unwrap();
        assert_eq!(before[0].last, None, "a slot of the future does not count");
    }

    #[test]
    fn a_damaged_journal_says_to_move_it_aside() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE), vec![b'x'; 8192]).unwrap();
        let error = Journal::open(folder.path(), now()).err().unwrap();
        assert_eq!(error.kind(), Kind::Failed);
        assert!(error.hint_text().unwrap().contains("move it aside"), "{error:?}");
    }

    #[test]
    fn damage_inside_the_journal_is_told_too() {
        let folder = tempfile::tempdir().unwrap();
        drop(Journal::open(folder.path(), now()).unwrap());
        let path = folder.path().join(FILE);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[4096..].fill(0x5a);
        std::fs::write(&path, bytes).unwrap();
        let error = Journal::open(folder.path(), now()).and_then(|journal| journal.begin(&manual(Job::Backup), now())).unwrap_err();
        assert!(error.hint_text().unwrap().contains("move it aside"), "{error:?}");
    }

    #[test]
    fn a_full_disk_is_no_space() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path(), now()).unwrap();
        journal.lock().pragma_update(None, "max_page_count", 1).unwrap();
        let error = (0..200)
            .map(|i| journal.missed(&Name::new("crm").unwrap(), Job::Backup, later(i), &"x".repeat(500), now()))
            .find_map(Result::err);
        assert_eq!(error.unwrap().kind(), Kind::NoSpace);
    }

    #[test]
    fn a_journal_of_a_later_version_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        Journal::open(folder.path(), now()).unwrap().lock().pragma_update(None, "user_version", 99).unwrap();
        let error = Journal::open(folder.path(), now()).err().unwrap();
        assert!(error.to_string().contains("version 99"), "{error}");
    }
}

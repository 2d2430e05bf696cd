//! The journal of runs: an embedded SQLite file in the state folder, or a PostgreSQL database that several machines share.
//!
//! Invariants, the same for both:
//! - A run is recorded before it starts and closed after it ended, each in one durable transaction, so a crash leaves a `running` row
//!   whose owner is gone, never a silent gap. [`Journal::broken`] finds those.
//! - A slot of a schedule is one row for ever: `UNIQUE(plan, job, scheduled_ms)`. Retries are further attempts of that row, with the reason
//!   of each kept in `attempts`.
//! - At most one live run per plan and exclusive job, held by a partial unique index, whoever starts it.
//! - Every claim has a fence that grows. A row is changed only by who names its current fence ([`Claim`]): whoever takes a broken run over
//!   raises it first, and what the earlier holder still sends changes nothing.
//! - A backup notes the snapshot that it is about to commit ([`Journal::announce`]) *before* it creates the manifest. So whoever takes the
//!   run over knows the one key at which it may have committed, or may still.
//! - Nothing secret and no row content is ever written: errors and warnings are texts that the terminal shows too, without what a command of
//!   the plan said (`Error::saying`).
//!
//! `model` has the values, `tables` and `bulk` every statement, `sqlite` and `postgres` the drivers and their migrations.

mod bulk;
mod database;
pub mod faults;
mod model;
mod postgres;
mod sqlite;
mod tables;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, TimeDelta, Utc};

use crate::daemon::journal::faults::{Faults, Faulty};
use crate::daemon::journal::postgres::Postgres;
use crate::daemon::journal::sqlite::Sqlite;
use crate::daemon::journal::tables::{Begun, Claimant, Closed, Tables};
use crate::daemon::owner::{self, Owner, Process};
use crate::error::{Error, Kind, Result};
use crate::event::Reason;
use crate::id::{Name, RunId};
use crate::ops::select;
use crate::plan::{Plan, Plans};
use crate::source::postgres::conninfo::Settings;

pub use crate::daemon::job::{Job, Trigger};
pub use crate::daemon::journal::model::{
    Attempt, Claim, Ending, ErrorRecord, Filter, Followed, Known, NewRun, Newest, Phase, Run, ScheduleKey, Schedules, State,
};
pub use crate::daemon::journal::sqlite::FILE;
pub use crate::daemon::journal::tables::Node;

/// A heartbeat says that its run lives for so long from now. A run that died was at work no later than its last lease says.
pub const LEASE: TimeDelta = TimeDelta::minutes(2);

/// Closed runs are looked at so many at a time when old ones are removed, so that nobody waits for it.
const FORGET_PAGE: u32 = 1000;

/// An open journal. Methods block for the time of one small transaction. A clone is the same journal of the same process.
#[derive(Clone)]
pub struct Journal(Arc<Shared>);

struct Shared {
    tables: Tables,
    state: PathBuf,
    node: String,
    lease: TimeDelta,
    process: Process,
    /// Made at the first claim and held until the journal is dropped.
    owner: Mutex<Option<Holder>>,
    /// Fences of the runs that this process is at work on: a `running` row of its own that is not here is broken.
    held: Mutex<BTreeSet<u64>>,
    /// Endings that could not be written yet, with the time of each.
    unfinished: Mutex<Vec<(Claim, Ending, DateTime<Utc>)>>,
}

/// What this process claims with.
struct Holder {
    owner: Owner,
    /// Random name of the state folder: whose owners this machine can ask for by their lock files.
    place: String,
}

impl Journal {
    /// Opens the embedded journal of a state folder, making both when missing, and brings its tables up to date.
    ///
    /// # Errors
    /// `Failed` when the file is damaged or of a later version (the hint says what to do), `NoSpace`, `Busy`.
    pub fn open(state: &Path, now: DateTime<Utc>) -> Result<Self> {
        Ok(Self::over(Tables(Box::new(Sqlite::open(state, now)?)), state, owner::host(), LEASE))
    }

    /// Opens the embedded journal only where one is.
    ///
    /// # Errors
    /// As [`Journal::open`].
    pub fn open_existing(state: &Path, now: DateTime<Utc>) -> Result<Option<Self>> {
        if state.join(FILE).exists() { Self::open(state, now).map(Some) } else { Ok(None) }
    }

    /// Opens the journal that the plans name: the database of `[journal] url`, else the embedded one. `node`: the name of this node; without
    /// one, the machine's.
    ///
    /// # Errors
    /// As [`Journal::open`]; `Usage` when the url cannot be read or the login is not as it must be, or when a repository is used by one writer only;
    /// `Unavailable` when the database cannot be reached.
    pub fn of(plans: &Plans, state: &Path, node: Option<&str>, now: DateTime<Utc>) -> Result<Self> {
        let node = node.map_or_else(owner::host, str::to_owned);
        let Some(url) = &plans.journal.url else {
            return Ok(Self::over(Tables(Box::new(Sqlite::open(state, now)?)), state, node, LEASE));
        };
        check(plans)?;
        let url = url.resolve().map_err(|error| error.within("read the url of the journal"))?;
        let settings = Settings::parse(url.expose()).map_err(|error| error.within("understand the url of the journal"))?;
        Self::shared(settings, state, node, TimeDelta::from_std(plans.journal.lease).unwrap_or(LEASE))
    }

    /// Opens a journal in PostgreSQL. `lease`: for how long a claim of any node is good without a heartbeat.
    ///
    /// # Errors
    /// As [`Journal::of`].
    pub fn shared(settings: Settings, state: &Path, node: String, lease: TimeDelta) -> Result<Self> {
        crate::daemon::private_folder(state)?;
        Ok(Self::over(Tables(Box::new(Postgres::open(settings, lease)?)), state, node, lease))
    }

    /// The same journal with faults, for tests.
    ///
    /// # Errors
    /// As [`Journal::open`].
    pub fn with_faults(state: &Path, faults: Faults, now: DateTime<Utc>) -> Result<Self> {
        let inner = Box::new(Sqlite::open(state, now)?);
        Ok(Self::over(Tables(Box::new(Faulty { inner, faults })), state, owner::host(), LEASE))
    }

    /// [`Journal::shared`] with faults, for tests.
    ///
    /// # Errors
    /// As [`Journal::of`].
    pub fn shared_with_faults(settings: Settings, state: &Path, node: String, lease: TimeDelta, faults: Faults) -> Result<Self> {
        crate::daemon::private_folder(state)?;
        let inner = Box::new(Postgres::open(settings, lease)?);
        Ok(Self::over(Tables(Box::new(Faulty { inner, faults })), state, node, lease))
    }

    fn over(tables: Tables, state: &Path, node: String, lease: TimeDelta) -> Self {
        Self(Arc::new(Shared {
            tables,
            state: state.to_owned(),
            node,
            lease,
            process: Process::this(),
            owner: Mutex::new(None),
            held: Mutex::default(),
            unfinished: Mutex::default(),
        }))
    }

    /// The state folder.
    #[must_use]
    pub fn state_folder(&self) -> &Path {
        &self.0.state
    }

    /// The name of this node.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.0.node
    }

    /// Where the journal is, for messages.
    #[must_use]
    pub fn place(&self) -> String {
        self.0.tables.0.place()
    }

    /// Whether other machines may use it too.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.0.tables.0.is_shared()
    }

    /// For how long a claim is good without a heartbeat.
    #[must_use]
    pub fn lease(&self) -> TimeDelta {
        self.0.lease
    }

    /// Records a run before it starts. A slot that has a row already gets a further attempt, and that row's id.
    ///
    /// # Errors
    /// `Busy` when a live run of the same plan and job is there, or when the slot was already run successfully; `Unavailable` when such a run
    /// is broken and not settled yet.
    pub fn begin(&self, run: &NewRun, now: DateTime<Utc>) -> Result<Claim> {
        self.finish_unfinished()?;
        let (word, plan) = (run.job.word(), &run.plan);
        if run.job.is_exclusive()
            && let Some(live) = self.0.tables.live(plan, run.job)?
        {
            if !self.is_broken(&live)? {
                return Err(busy(&live));
            }
            return Err(Error::new(
                Kind::Unavailable,
                format!("start {word} of plan {plan}: run {} is broken and not settled yet", live.id),
            )
            .hint("its repository must be asked first whether it committed; the log says why that was not possible"));
        }
        self.claim(now, |who| match self.0.tables.begin(run, who, now)? {
            Begun::Claimed(claim) => Ok(Some(claim)),
            Begun::SlotTaken => Err(Error::new(Kind::Busy, format!("start {word} of plan {plan}: this slot was run already"))),
            Begun::Live => Err(Error::new(Kind::Busy, format!("start {word} of plan {plan}: another one has just started"))
                .hint("wait for it; `lifeboat run history` shows it")),
        })?
        .ok_or_else(|| Error::new(Kind::Bug, "a claim came to nothing"))
    }

    /// Makes a broken run ([`Journal::broken`]) this process's, so that nobody else settles it; `None` when somebody else was quicker. What its
    /// earlier holder still sends to the journal changes nothing from now on.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub fn take_over(&self, run: &Run, now: DateTime<Utc>) -> Result<Option<Claim>> {
        let claim = self.claim(now, |who| self.0.tables.take_over(run, who, now))?;
        // What the process left on this machine is of no more use. Should that not be known, it stays: the claim is there, and nothing may hide it.
        let is_over =
            || matches!(self.0.tables.running_of(&run.owner), Ok(0)) && matches!(owner::is_alive(&self.0.state, &run.owner), Ok(false));
        if claim.is_some() && is_over() {
            owner::forget(&self.0.state, &run.owner);
        }
        Ok(claim)
    }

    fn claim(&self, now: DateTime<Utc>, make: impl FnOnce(&Claimant<'_>) -> Result<Option<Claim>>) -> Result<Option<Claim>> {
        let (owner, place) = self.owner(now)?;
        // Held until the claim is noted: whoever sees the row must see the claim too.
        let mut held = guard(&self.0.held);
        let claim = make(&self.claimant(&owner, &place))?;
        held.extend(claim.map(|claim| claim.fence));
        Ok(claim)
    }

    fn claimant<'a>(&'a self, owner: &'a str, place: &'a str) -> Claimant<'a> {
        Claimant { owner, node: &self.0.node, place, process: &self.0.process, lease: self.0.lease }
    }

    /// Closes a run that this process holds. An ending that cannot be written now is kept for [`Journal::finish_unfinished`].
    ///
    /// # Errors
    /// `Bug` when the claim is no longer the current one; when the journal cannot be written.
    pub fn close(&self, claim: Claim, ending: &Ending, now: DateTime<Utc>) -> Result<()> {
        let ended = self.0.tables.end(claim.id, claim.fence, ending, now).inspect_err(|_| {
            guard(&self.0.unfinished).push((claim, ending.clone(), now));
        })?;
        guard(&self.0.held).remove(&claim.fence);
        if ended { Ok(()) } else { Err(Error::new(Kind::Bug, format!("close run {}: it is not held by this process any more", claim.id))) }
    }

    /// Writes the endings that could not be written when their runs ended; how many.
    ///
    /// # Errors
    /// When the journal still cannot be written: the rest is kept.
    pub fn finish_unfinished(&self) -> Result<usize> {
        let mut unfinished = guard(&self.0.unfinished);
        let mut finished = 0;
        while let Some((claim, ending, ended)) = unfinished.first() {
            // Already closed by somebody else is closed too.
            self.0.tables.end(claim.id, claim.fence, ending, *ended)?;
            guard(&self.0.held).remove(&claim.fence);
            unfinished.remove(0);
            finished += 1;
        }
        Ok(finished)
    }

    /// Says that a run of this process is still at work; `false` when it is no longer this process's: it must stop.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub fn heartbeat(&self, claim: Claim, now: DateTime<Utc>) -> Result<bool> {
        self.0.tables.renew(claim, self.0.lease, now)
    }

    /// Notes the snapshot that a run is about to commit, and so proves that its claim is still the current one; `false`: it is not, and
    /// nothing may be committed.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub fn announce(&self, claim: Claim, snapshot: &str, now: DateTime<Utc>) -> Result<bool> {
        self.0.tables.announce(claim, snapshot, self.0.lease, now)
    }

    /// Lets go of a run without closing it: it was taken from this process, or somebody else is to settle it. It is nobody's then, for all processes.
    ///
    /// # Errors
    /// When the journal cannot be written; the lease runs out by itself.
    pub fn give_back(&self, claim: Claim, now: DateTime<Utc>) -> Result<()> {
        guard(&self.0.held).remove(&claim.fence);
        self.0.tables.give_back(claim, now)
    }

    /// Whether nobody is at work on this `running` row any more.
    fn is_broken(&self, run: &Run) -> Result<bool> {
        let shared = self.is_shared();
        let own = guard(&self.0.owner).as_ref().map(|holder| (holder.owner.id() == run.owner, Some(&holder.place) == run.place.as_ref()));
        if let Some((true, _)) = own {
            return Ok(!guard(&self.0.held).contains(&run.fence));
        }
        let here = !shared || own.is_some_and(|(_, here)| here) || run.place.as_deref().is_some_and(|place| is_place(&self.0.state, place));
        if here && !owner::is_alive(&self.0.state, &run.owner)? {
            return Ok(true);
        }
        // An outage that this process saw may have kept others from renewing too: they get a moment.
        Ok(shared && run.expired && self.0.tables.0.has_settled())
    }

    /// Records a slot that passed and will not be run; later calls for the same slot change nothing.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub fn missed(&self, plan: &Name, job: Job, slot: DateTime<Utc>, story: &str, now: DateTime<Utc>) -> Result<()> {
        let ending = Ending { story: Some(story.to_owned()), ..Ending::new(State::Missed) };
        let (_, place) = self.owner(now)?;
        self.0.tables.add_closed(
            &Closed {
                id: RunId::generate(now),
                plan,
                job,
                trigger: Trigger::Schedule,
                scheduled: Some(slot),
                attempt: 0,
                started: now,
                ended: now,
                host: &self.0.process.host,
                started_by: "the schedule",
                ending: &ending,
            },
            &self.claimant("", &place),
        )
    }

    /// The run of this job of the plan that keeps others from starting, whoever holds it.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn live(&self, plan: &Name, job: Job) -> Result<Option<Run>> {
        self.0.tables.live(plan, job)
    }

    /// Records that the run of a slot was cancelled before it began: the slot is not tried again. One that was tried before keeps its error.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub fn slot_cancelled(&self, run: &NewRun, by: &str, now: DateTime<Utc>) -> Result<()> {
        let reason = Reason::Cancelled(by.to_owned());
        let story = format!("{reason} before it began");
        if self.0.tables.cancel_retries(run.id, reason.word(), &story)? {
            return Ok(());
        }
        let error = ErrorRecord { kind: reason.word().to_owned(), message: reason.to_string(), causes: Vec::new(), hint: None };
        let ending = Ending { story: Some(story), error: Some(error), ..Ending::new(State::Interrupted) };
        let (_, place) = self.owner(now)?;
        let closed = Closed {
            id: run.id,
            plan: &run.plan,
            job: run.job,
            trigger: run.trigger,
            scheduled: run.scheduled,
            attempt: 1,
            started: now,
            ended: now,
            host: &self.0.process.host,
            started_by: &run.by,
            ending: &ending,
        };
        self.0.tables.add_closed(&closed, &self.claimant("", &place))
    }

    /// Records a request that will not be carried out: a run that ended before it began.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub fn dropped(&self, run: &NewRun, story: &str, now: DateTime<Utc>) -> Result<()> {
        let ending = Ending { story: Some(story.to_owned()), ..Ending::new(State::Interrupted) };
        let (_, place) = self.owner(now)?;
        let closed = Closed {
            id: run.id,
            plan: &run.plan,
            job: run.job,
            trigger: run.trigger,
            scheduled: None,
            attempt: 0,
            started: now,
            ended: now,
            host: &self.0.process.host,
            started_by: &run.by,
            ending: &ending,
        };
        self.0.tables.add_closed(&closed, &self.claimant("", &place))
    }

    /// Records a run that is over and that nobody recorded when it went on: between these moments, on this host.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub fn add_proven(
        &self,
        plan: &Name,
        job: Job,
        trigger: Trigger,
        (started, ended): (DateTime<Utc>, DateTime<Utc>),
        host: &str,
        ending: &Ending,
    ) -> Result<RunId> {
        let id = RunId::generate(started);
        let closed = Closed {
            id,
            plan,
            job,
            trigger,
            scheduled: None,
            attempt: 1,
            started,
            ended: ended.max(started),
            host,
            started_by: "not known",
            ending,
        };
        self.0.tables.add_closed(&closed, &self.claimant("", ""))?;
        Ok(id)
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
        self.0.tables.runs(filter)
    }

    /// One run.
    ///
    /// # Errors
    /// `NotFound` when there is none.
    pub fn run(&self, id: RunId) -> Result<Run> {
        self.0.tables.run(id)?.ok_or_else(|| no_such_run(&id.to_string()))
    }

    /// A run by its id or a unique beginning of it, in any case.
    ///
    /// # Errors
    /// `NotFound` when there is none, `Usage` when there are several.
    pub fn find(&self, id: &str) -> Result<Run> {
        let wanted = id.to_ascii_lowercase();
        if wanted.is_empty() || !wanted.bytes().all(|letter| letter.is_ascii_alphanumeric()) {
            return Err(no_such_run(id));
        }
        let mut found = self.0.tables.beginning(&wanted, 2)?.into_iter();
        match (found.next(), found.next()) {
            (Some(run), None) => Ok(run),
            (None, _) => Err(no_such_run(id)),
            (Some(_), Some(_)) => Err(Error::new(Kind::Usage, format!("find run {id}: several runs begin so")).hint("give more of the id")),
        }
    }

    /// The newest run of each job and state of these plans, asked for once however many they are. Without what failed by how it was asked for: a
    /// command typed by hand that named no recovery point, did not open with its passphrase, or was not a right one. A backup is asked for in one
    /// way only, so that its `usage` is the plan's and counts. Nor what ended and is dated in the future: by a clock that was wrong.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn newest(&self, plans: &[&Name], now: DateTime<Utc>) -> Result<Newest> {
        self.0.tables.newest(plans, now + select::CLOCK_TOLERANCE)
    }

    /// Earlier attempts of a run, oldest first.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn attempts(&self, id: RunId) -> Result<Vec<Attempt>> {
        self.0.tables.attempts(id)
    }

    /// Since when this schedule has been followed, remembering it from now on when it is new or has changed.
    ///
    /// # Errors
    /// When the journal cannot be read or written.
    pub fn schedule_since(&self, plan: &Name, job: Job, expression: &str, now: DateTime<Utc>) -> Result<DateTime<Utc>> {
        self.0.tables.schedule_since(plan, job, expression, now)
    }

    /// What is known of these schedules at `now`, in their order; those that are new or have changed are followed from now on.
    ///
    /// # Errors
    /// When the journal cannot be read or written.
    pub fn follow(&self, schedules: &[ScheduleKey], now: DateTime<Utc>) -> Result<Vec<Followed>> {
        self.0.tables.follow(schedules, now)
    }

    /// All schedules that were ever followed, also those that are gone.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn followed(&self) -> Result<Schedules> {
        self.0.tables.followed()
    }

    /// Remembers that these plans copy to these repositories on a schedule: one of several copies has no runs of its own.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub fn note_copies(&self, copies: &[(&Name, &Name)], now: DateTime<Utc>) -> Result<()> {
        self.0.tables.note_copies(copies, now)
    }

    /// What is known of these schedules at `now`, in their order. Nothing is followed by that.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn known(&self, schedules: &[ScheduleKey], now: DateTime<Utc>) -> Result<Vec<Known>> {
        self.0.tables.known(schedules, now)
    }

    /// Takes or prolongs a named lease for this process: true on exactly one of all that ask, until `ttl` after its last asking (by the clock of
    /// a shared journal's database). For work that only one node is to do.
    ///
    /// # Errors
    /// When the journal cannot be written: then nobody may believe to hold it.
    pub fn hold(&self, name: &str, ttl: TimeDelta, now: DateTime<Utc>) -> Result<bool> {
        let (owner, _) = self.owner(now)?;
        self.0.tables.hold(name, &owner, ttl, now)
    }

    /// Of these named leases those that somebody has now, and whether that is a process of this state folder (`true`) or one elsewhere.
    ///
    /// # Errors
    /// When the journal or a lock file cannot be read.
    pub fn held_here(&self, names: &[String], now: DateTime<Utc>) -> Result<BTreeMap<String, bool>> {
        if names.is_empty() {
            return Ok(BTreeMap::new());
        }
        let mut alive: BTreeMap<String, bool> = BTreeMap::new();
        let holders = self.0.tables.holders(names, now)?;
        for holder in holders.values() {
            if !alive.contains_key(holder) {
                alive.insert(holder.clone(), owner::is_alive(&self.0.state, holder)?);
            }
        }
        Ok(holders.into_iter().map(|(name, holder)| (name, alive.get(&holder).is_some_and(|alive| *alive))).collect())
    }

    /// Whether a run is of this state folder: that of a node on a shared journal, and every one on the embedded one.
    #[must_use]
    pub fn is_of_this_place(&self, run: &Run) -> bool {
        !self.is_shared() || run.place.as_deref().is_some_and(|place| is_place(&self.0.state, place))
    }

    /// Gives a named lease back before it runs out.
    ///
    /// # Errors
    /// When the journal cannot be written; it runs out by itself.
    pub fn let_go(&self, name: &str, now: DateTime<Utc>) -> Result<()> {
        let (owner, _) = self.owner(now)?;
        self.0.tables.let_go(name, &owner)
    }

    /// Says that this node is at work, with its labels, and yields all nodes that are, by name. To be repeated within the lease.
    ///
    /// # Errors
    /// `Busy` when another live process has this node's name; when the journal cannot be written.
    pub fn check_in(&self, labels: &[String], now: DateTime<Utc>) -> Result<Vec<Node>> {
        let (owner, place) = self.owner(now)?;
        self.0.tables.check_in(labels, &self.claimant(&owner, &place), now)?.ok_or_else(|| {
            Error::new(Kind::Busy, format!("another process uses this journal as node {}", self.0.node)).hint(format!(
                "give each node a name of its own (--node NAME); if that one is gone, its name is free {} s after it was last heard of",
                self.0.lease.num_seconds()
            ))
        })
    }

    /// All nodes that are at work, by name.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn nodes(&self, now: DateTime<Utc>) -> Result<Vec<Node>> {
        self.0.tables.nodes(self.0.lease, now)
    }

    /// All nodes that are at work, or were within so many leases, by name.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn nodes_within(&self, leases: i32, now: DateTime<Utc>) -> Result<Vec<Node>> {
        self.0.tables.nodes(self.0.lease * leases, now)
    }

    /// Says that this node ends.
    ///
    /// # Errors
    /// When the journal cannot be written; it is forgotten by itself.
    pub fn check_out(&self, now: DateTime<Utc>) -> Result<()> {
        let owner = guard(&self.0.owner).as_ref().map(|holder| holder.owner.id().to_owned());
        owner.map_or(Ok(()), |owner| self.0.tables.check_out(&owner, self.0.lease, now))
    }

    /// Removes closed runs, with their attempts, that started before this moment; how many. And nodes that were last heard of before it. What status needs stays however old it is: the
    /// newest run of each plan, job and state, and the newest slot of each schedule.
    ///
    /// # Errors
    /// When the journal cannot be written; what is gone by then is gone.
    pub fn forget(&self, before: DateTime<Utc>) -> Result<u64> {
        self.0.tables.forget_nodes(before)?;
        let (mut from, mut forgotten) = (Some(i64::MIN), 0);
        while let Some(next) = from {
            let (gone, rest) = self.0.tables.forget(next, before, FORGET_PAGE)?;
            forgotten += gone;
            from = rest;
        }
        Ok(forgotten)
    }

    /// Owner and place of this process, made when it first claims something.
    fn owner(&self, now: DateTime<Utc>) -> Result<(String, String)> {
        let mut holder = guard(&self.0.owner);
        if holder.is_none() {
            let owner = Owner::claim(&self.0.state, RunId::generate(now).to_string())?;
            *holder = Some(Holder { owner, place: owner::place(&self.0.state, now)? });
        }
        let Some(holder) = holder.as_ref() else { return Err(Error::new(Kind::Bug, "an owner that was just made is gone")) };
        Ok((holder.owner.id().to_owned(), holder.place.clone()))
    }
}

/// Whether what these plans say of the journal and of their repositories goes together.
///
/// # Errors
/// `Usage` when a repository is used by one writer only while the journal is for several.
pub fn check(plans: &Plans) -> Result<()> {
    let alone = |plan: &&Arc<Plan>| plan.repository.single_writer || plan.copies.iter().any(|copy| copy.to.single_writer);
    let Some(plan) = plans.plans.values().find(alone).filter(|_| plans.journal.url.is_some()) else { return Ok(()) };
    let message = format!("plan {} has a repository with single_writer, and [journal] url says that several machines write", plan.name);
    Err(Error::new(Kind::Usage, message).hint(
        "use a store that honours conditional creation (`lifeboat doctor` tells) and leave single_writer out, or leave out [journal] url",
    ))
}

/// Whether this state folder has that name.
fn is_place(state: &Path, name: &str) -> bool {
    owner::known_place(state).is_some_and(|place| place == name)
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn no_such_run(id: &str) -> Error {
    Error::new(Kind::NotFound, format!("find run {id}: no such run")).hint("`lifeboat run history` lists the runs")
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

#[cfg(test)]
mod tests;

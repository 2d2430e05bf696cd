//! What the journal knows of runs: plain values, no I/O.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::daemon::job::{Job, Trigger};
use crate::daemon::owner::Process;
use crate::daemon::scheduler::PastSlot;
use crate::error::{Error, Kind};
use crate::id::{Name, RunId};

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

    /// The state with this word.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
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
    /// What is told of it from its beginning, however it ends: the slots that it stands for.
    pub story: Option<String>,
}

impl NewRun {
    /// A run that somebody asked for.
    #[must_use]
    pub fn manual(plan: &Name, job: Job, by: impl Into<String>, now: DateTime<Utc>) -> Self {
        Self { id: RunId::generate(now), plan: plan.clone(), job, trigger: Trigger::Manual, by: by.into(), scheduled: None, story: None }
    }

    /// A run of a slot of the plan's schedule. Its id is that of the slot's row where there is one already.
    #[must_use]
    pub fn of_slot(plan: &Name, job: Job, trigger: Trigger, slot: DateTime<Utc>, id: RunId) -> Self {
        Self { id, plan: plan.clone(), job, trigger, by: "daemon".to_owned(), scheduled: Some(slot), story: None }
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

/// The schedules that were ever followed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Schedules {
    pub jobs: BTreeSet<(Name, Job)>,
    /// Of each plan's copies: plan and repository, and since when.
    pub copies: BTreeMap<(Name, Name), DateTime<Utc>>,
}

/// What the journal knows of a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Followed {
    /// Since when it is followed; slots before do not count.
    pub since: DateTime<Utc>,
    /// Its newest slot that is not later than the moment asked about.
    pub last: Option<PastSlot>,
}

/// What the journal knows of a schedule that may never have been followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// Since when it is followed; `None` when it is new or has changed.
    pub since: Option<DateTime<Utc>>,
    /// As in [`Followed`], of whatever schedule the job had.
    pub last: Option<PastSlot>,
}

/// The newest run of each job and state of some plans.
#[derive(Debug, Clone, Default)]
pub struct Newest(BTreeMap<Name, Vec<Run>>);

impl Newest {
    /// That of a plan and job in this state.
    #[must_use]
    pub fn of(&self, plan: &Name, job: Job, state: State) -> Option<&Run> {
        self.0.get(plan)?.iter().find(|run| run.job == job && run.state == state)
    }

    /// That of a plan and job, whatever became of it.
    #[must_use]
    pub fn last(&self, plan: &Name, job: Job) -> Option<&Run> {
        self.0.get(plan)?.iter().filter(|run| run.job == job).max_by_key(|run| run.started)
    }
}

impl FromIterator<Run> for Newest {
    fn from_iter<I: IntoIterator<Item = Run>>(runs: I) -> Self {
        let mut newest = Self::default();
        for run in runs {
            newest.0.entry(run.plan.clone()).or_default().push(run);
        }
        newest
    }
}

/// How a run ended.
#[derive(Debug, Clone)]
pub struct Ending {
    pub state: State,
    pub error: Option<ErrorRecord>,
    /// In words, where the state alone does not tell it; comes after what the run's beginning told.
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

/// A claimed run: what `Journal::close` needs.
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
    /// Until when it is known to live: its last heartbeat and the lease. `None` when it never had one.
    pub lease_until: Option<DateTime<Utc>>,
    /// The name of the node that ran or runs it.
    pub node: String,
    /// The snapshot that it was about to commit (of a copy `REPOSITORY/SNAPSHOT`): written before the commit, so that whoever finds the run broken
    /// knows where to look.
    pub announced: Option<String>,
    /// Random name of the state folder that its process used; `None` for runs of version 1 of the journal.
    pub place: Option<String>,
    /// Whether its lease is over by the journal's clock.
    pub expired: bool,
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
    /// Only runs that started at this moment or later.
    pub since: Option<DateTime<Utc>>,
    /// Only runs that started before this moment.
    pub before: Option<DateTime<Utc>>,
    /// Newest this many; 0 means all.
    pub limit: u32,
}

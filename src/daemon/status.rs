//! How each plan stands: what can be restored, how old it is, when that was last proven, and what is wrong.
//!
//! The documents, and what is known of a plan. [`assess`] and [`forecast`] judge and are pure; [`gather`] asks the journal and the
//! repositories, the journal once for all plans and each repository once for all that keep snapshots or copies there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::daemon::journal::{Job, Run};
use crate::error::Kind;
use crate::id::Name;
use crate::ops::damage::Damage;
use crate::ops::log::reach::Reach;
use crate::ops::log::stream::LogStatus;
use crate::ops::resolve::Changed;
use crate::repo::{Ledger, Manifest, ReportRecord};

mod ask;
mod assess;
mod beside;
mod copies;
pub mod forecast;
mod gather;
mod heard;
mod kind;
mod logs;
mod reports;

pub use ask::{Asked, Unanswered, ask};
pub use assess::assess;
pub use beside::Pace;
pub(in crate::daemon) use beside::{News, hear};
pub use copies::CopyStatus;
pub use forecast::Forecast;
pub use gather::{STUCK, gather, view};
pub use heard::{Heard, last_backup};
pub use kind::ProblemKind;

/// `lifeboat.status/1`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub schema: String,
    /// The moment that all of this is of.
    pub time: DateTime<Utc>,
    /// Whether a daemon runs on this state folder now.
    pub daemon: bool,
    pub plans: Vec<PlanStatus>,
    /// Who is told, and whether they could be.
    #[serde(default)]
    pub notifiers: Vec<NotifierStatus>,
    /// What is wrong and of no plan alone.
    #[serde(default)]
    pub problems: Vec<Problem>,
}

impl Status {
    /// How `status --check` ends: `None` (exit 0) only when no plan has a problem. The most telling wins: 20 (it is in doubt whether a
    /// recovery works), 22 (the plan's promises are not kept), 1, 3 (the newest snapshot is incomplete and nothing else is wrong).
    #[must_use]
    pub fn check(&self) -> Option<Kind> {
        let order = [Kind::Damaged, Kind::ObjectiveMissed, Kind::Failed, Kind::Incomplete];
        let problems = || self.plans.iter().flat_map(|plan| &plan.problems).chain(&self.problems);
        order.into_iter().find(|kind| problems().any(|problem| problem.exit() == *kind))
    }
}

/// Whether somebody can be told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotifierStatus {
    pub name: String,
    /// `webhook`, `email`, `command` or `heartbeat`.
    pub kind: String,
    pub last_delivered: Option<DateTime<Utc>>,
    /// Events that wait for their delivery.
    pub waiting: u64,
    /// Since when deliveries fail, how many in a row, and why the last one did.
    pub failing_since: Option<DateTime<Utc>>,
    pub failures: u64,
    pub error: Option<String>,
}

/// One plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanStatus {
    pub name: String,
    /// End of the last backup that committed a snapshot without a gap, from the repository or the journal, whichever is later.
    pub last_success: Option<DateTime<Utc>>,
    /// The newest snapshot in the repository that anybody can restore, and the moment its content is of.
    pub snapshot: Option<String>,
    pub recovery_point: Option<DateTime<Utc>>,
    /// The newest snapshot that lacks no content and is not known to be damaged, and the moment its content is of.
    #[serde(default)]
    pub whole_snapshot: Option<String>,
    #[serde(default)]
    pub whole_point: Option<DateTime<Utc>>,
    pub snapshots: u64,
    /// The oldest and the newest moment that can be restored: of whole snapshots, and of the log that goes on from the newest of them.
    #[serde(default)]
    pub restorable_from: Option<DateTime<Utc>>,
    #[serde(default)]
    pub restorable_to: Option<DateTime<Utc>>,
    /// Content of the newest whole snapshot.
    #[serde(default)]
    pub bytes_source: Option<u64>,
    /// What a disaster now would lose: the age of `whole_point`. `None`: there is none (`recovery_point` tells whether there is any snapshot),
    /// or a clock is wrong (`clock`) and it is not known.
    pub data_loss_ms: Option<u64>,
    pub data_loss_objective_ms: Option<u64>,
    /// As measured by the last drill that got so far.
    pub recovery_time_ms: Option<u64>,
    pub recovery_time_objective_ms: Option<u64>,
    /// What the next recovery is expected to take, and when that will be too long. `None`: the repository could not be asked.
    #[serde(default)]
    pub forecast: Option<Forecast>,
    /// Of the newest snapshot that is proven, the one that `restore --latest-proven` takes: when a drill last passed on it, and the moment
    /// that it is of.
    pub proven_at: Option<DateTime<Utc>>,
    pub proven_point: Option<DateTime<Utc>>,
    /// The nearest run of any schedule of the plan.
    pub next_run: Option<DateTime<Utc>>,
    pub next_job: Option<String>,
    /// Runs that go on now.
    pub running: Vec<String>,
    /// Whether the repository could be asked; if not, what is above is from the journal only.
    pub repository_reachable: bool,
    /// Continuous logs, as their streams on this host say.
    #[serde(default)]
    pub logs: Vec<LogStatus>,
    /// In further repositories.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub copies: Vec<CopyStatus>,
    pub problems: Vec<Problem>,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The word of a [`ProblemKind`].
    pub kind: String,
    /// The job that a run did (`backup`, `drill`, `verify`), where the problem is about one.
    pub job: Option<String>,
    pub message: String,
}

impl Problem {
    /// A problem of no job.
    #[must_use]
    pub fn new(kind: ProblemKind, message: impl Into<String>) -> Self {
        Self { kind: kind.word().to_owned(), job: None, message: message.into() }
    }

    /// A problem of a job.
    #[must_use]
    pub fn of(kind: ProblemKind, job: Job, message: impl Into<String>) -> Self {
        Self { job: Some(job.word().to_owned()), ..Self::new(kind, message) }
    }

    /// What it alone makes of `status --check`.
    fn exit(&self) -> Kind {
        let proving = self.job.as_deref().is_some_and(|job| job == Job::Drill.word() || job == Job::Verify.word());
        match self.kind.as_str() {
            "damaged" | "drill-failed" | "never-proven" | "repository-changed" => Kind::Damaged,
            "failed" | "incomplete" | "interrupted" if proving => Kind::Damaged,
            "never-backed-up"
            | "key-destroyed"
            | "overdue"
            | "missed"
            | "schedule-gone"
            | "data-loss-objective"
            | "recovery-time-objective"
            | "log-not-streamed"
            | "log-slot"
            | "log-gap"
            | "log-fork"
            | "canary-not-written"
            | "copy-behind" => Kind::ObjectiveMissed,
            "incomplete" => Kind::Incomplete,
            _ => Kind::Failed,
        }
    }
}

impl From<Changed> for Problem {
    fn from(Changed { certain, message }: Changed) -> Self {
        Self::new(if certain { ProblemKind::RepositoryChanged } else { ProblemKind::RepositoryUnknown }, message)
    }
}

/// What is known of a plan.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Of each job: the newest closed run, whatever its result.
    pub last: Vec<Run>,
    /// The newest backup that succeeded or was incomplete.
    pub last_backup: Option<Run>,
    /// The newest backup that succeeded.
    pub last_whole_backup: Option<Run>,
    /// The newest drill that failed or was incomplete, unless one succeeded since.
    pub failed_drill: Option<Run>,
    pub running: Vec<Run>,
    /// How long the newest run of each job that succeeded, or was incomplete, took: the shorter of the two.
    pub usual: Vec<(Job, chrono::TimeDelta)>,
    /// The next step of each schedule.
    pub next: Vec<(Job, DateTime<Utc>)>,
    /// Slots that are due since this moment and did not start.
    pub overdue: Vec<(Job, DateTime<Utc>)>,
    /// `Err`: why the repository could not be asked.
    pub repository: Option<Asked>,
}

/// Why a repository could not be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unasked {
    pub kind: Kind,
    pub message: String,
    /// A secret that opens it could not be had: nobody was asked.
    pub secret: bool,
}

/// What the repository knows of a plan.
#[derive(Debug, Clone, Default)]
pub struct Stored {
    /// When it was begun to ask it: what a run committed later need not be here.
    pub asked: Option<DateTime<Utc>>,
    /// That it is not the repository that the plan's backups went to before, or that nobody can say so.
    pub changed: Option<Changed>,
    /// Of the plan, oldest first, without those that nobody can restore any more.
    pub manifests: Vec<Manifest>,
    /// Those whose key was destroyed, and when; oldest first.
    pub destroyed: Vec<(Manifest, DateTime<Utc>)>,
    /// Oldest first: drills of the plan and of its snapshots, and all verifications of the repository: each is of all plans, whichever asked for it.
    pub reports: Vec<Arc<ReportRecord>>,
    /// What verifications found and none has taken back, in the whole repository.
    pub standing: Arc<Vec<Damage>>,
    /// Of these, what needs nobody: it harms only what was brought back or destroyed, or whose loss was accepted.
    pub settled: Arc<Vec<Damage>>,
    /// What was removed on purpose, of the whole repository.
    pub ledger: Ledger,
    /// Manifests and reports that cannot be read; sentences. All else here is of those that can.
    pub damaged: Vec<String>,
    /// How far the stored log leads from the newest whole snapshot, by source; only of sources whose log is to be kept.
    pub reaches: BTreeMap<Name, Reach>,
    /// That locks of what is needed end, or have ended; a sentence.
    pub lock: Option<String>,
    /// The plan's copies, and what is wrong with them.
    pub copies: Vec<CopyStatus>,
    pub copy_problems: Vec<Problem>,
}

impl Stored {
    /// All snapshots that are there, whether or not anybody can restore them.
    fn there(&self) -> impl Iterator<Item = &Manifest> {
        self.manifests.iter().chain(self.destroyed.iter().map(|(manifest, _)| manifest))
    }
}

/// A schedule's next run is this late before it is called overdue: jitter and a busy plan are not yet a problem.
pub(in crate::daemon) const OVERDUE: chrono::TimeDelta = chrono::TimeDelta::minutes(15);

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;

//! The kinds of work that plans ask for, and everything that the daemon knows of each.
//!
//! A new kind of job is a variant here, which the compiler then asks for in each of these functions, and an arm in
//! [`runner::run_job`](crate::daemon::runner::run_job), which does the work. Nothing else of the scheduler, the serve loop or the journal names a job.

use serde::{Deserialize, Serialize};

use crate::daemon::scheduler::{MissedSlots, Rules};
use crate::plan::{Missed, Plan, Schedule};

/// What a run does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Job {
    Backup,
    Drill,
    Verify,
    Restore,
    /// To the plan's further repositories, one after the other.
    Copy,
    Prune,
}

impl Job {
    /// Every kind, in the order in which due runs start: what makes recovery possible goes before what proves it.
    pub const ALL: [Self; 6] = [Self::Restore, Self::Backup, Self::Copy, Self::Drill, Self::Verify, Self::Prune];

    /// The word used in the journal, JSON, logs and plan files.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Backup => "backup",
            Self::Drill => "drill",
            Self::Verify => "verify",
            Self::Restore => "restore",
            Self::Copy => "copy",
            Self::Prune => "prune",
        }
    }

    /// The kind with this word.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|job| job.word() == word)
    }

    /// The schedule that a plan has for it. A restore has none: somebody asks for it.
    #[must_use]
    pub fn schedule(self, plan: &Plan) -> Option<&Schedule> {
        plan.schedule_of(self.word())
    }

    /// Whether two of one plan may not run at once. An incident restore is never held up by another one.
    #[must_use]
    pub fn is_exclusive(self) -> bool {
        !matches!(self, Self::Restore)
    }

    /// Whether it gives way: it starts only when no due backup wants its place and no restore goes on, and one that runs is asked to stop
    /// for them. Nothing is lost by that but the time it took.
    #[must_use]
    pub fn gives_way(self) -> bool {
        match self {
            Self::Backup | Self::Restore => false,
            Self::Copy | Self::Drill | Self::Verify | Self::Prune => true,
        }
    }

    /// Whether a running daemon may be asked to do it now. A restore asks its operator things and has a target.
    #[must_use]
    pub fn may_be_requested(self) -> bool {
        !matches!(self, Self::Restore)
    }
}

/// What started a run. Who it was stands beside it in the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trigger {
    /// A person or script, on the command line or through the daemon.
    Manual,
    /// A slot of the plan's schedule, on time.
    Schedule,
    /// A slot that passed while no daemon was there.
    CatchUp,
    /// A further attempt of a slot.
    Retry,
    /// Not known any more: the row was made from what a repository proves.
    Rebuilt,
}

impl Trigger {
    /// The word used in the journal, JSON and logs.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Manual => "manual",
            Self::Schedule => "schedule",
            Self::CatchUp => "catch-up",
            Self::Retry => "retry",
            Self::Rebuilt => "rebuilt",
        }
    }

    /// The trigger with this word.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Manual, Self::Schedule, Self::CatchUp, Self::Retry, Self::Rebuilt].into_iter().find(|trigger| trigger.word() == word)
    }
}

/// The schedules of a plan with their jobs, in the order of [`Job::ALL`].
#[must_use]
pub fn schedules(plan: &Plan) -> Vec<(Job, &Schedule)> {
    Job::ALL.into_iter().filter_map(|job| Some((job, job.schedule(plan)?))).collect()
}

/// How the scheduler treats a plan's slots.
#[must_use]
pub fn rules(plan: &Plan) -> Rules {
    Rules {
        jitter: plan.jitter,
        missed: match plan.missed {
            Missed::RunOnce => MissedSlots::RunOnce,
            Missed::Skip => MissedSlots::Skip,
        },
        attempts: plan.retry.attempts,
        delay: plan.retry.delay,
    }
}

/// The text under which a schedule is remembered in the journal.
#[must_use]
pub fn expression(schedule: &Schedule) -> String {
    format!("{} {}", schedule.text(), schedule.zone())
}

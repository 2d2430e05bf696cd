//! What metrics say beside the status of all plans, looked up in the journal.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::daemon::companion::Context;
use crate::daemon::job::{self, Job};
use crate::daemon::journal::{Run, State};
use crate::daemon::status::Status;
use crate::error::Result;
use crate::id::Name;
use crate::plan::{Plan, Schedule};

/// Slots that are looked at for the longest pause of a schedule: enough for a week of a schedule that rests on Sundays.
const SLOTS: usize = 9;

/// What a look found.
pub(in crate::web) struct Look {
    pub status: Arc<Status>,
    pub jobs: Vec<JobFacts>,
    /// Phases of the last drill that succeeded on this host, by plan.
    pub drills: BTreeMap<Name, Run>,
}

/// A job of a plan that has a schedule or was ever done.
pub(in crate::web) struct JobFacts {
    pub plan: Name,
    pub job: Job,
    /// End of the last run that succeeded.
    pub last_success: Option<DateTime<Utc>>,
    /// The longest that its schedule lets pass between two runs.
    pub interval: Option<Duration>,
    pub next_run: Option<DateTime<Utc>>,
}

/// The longest pauses of schedules, which cost some work to find.
#[derive(Default)]
pub(in crate::web) struct Intervals(BTreeMap<String, Option<Duration>>);

impl Intervals {
    fn of(&mut self, schedule: &Schedule, now: DateTime<Utc>) -> Option<Duration> {
        let find = || {
            let slots = schedule.upcoming(now, SLOTS);
            slots.windows(2).filter_map(|pair| (pair[1] - pair[0]).to_std().ok()).max()
        };
        *self.0.entry(job::expression(schedule)).or_insert_with(find)
    }
}

impl Look {
    /// Asks the journal.
    ///
    /// # Errors
    /// When the journal cannot be asked.
    pub fn take(context: &Context, status: Arc<Status>, intervals: &mut Intervals) -> Result<Self> {
        let plans = context.control.plans();
        let now = context.surroundings.clock.now();
        let newest = context.journal.newest(&plans.plans.keys().collect::<Vec<&Name>>(), now)?;
        // A backup that another machine made counts too.
        let elsewhere: BTreeMap<&str, DateTime<Utc>> =
            status.plans.iter().filter_map(|of| Some((of.name.as_str(), of.last_success?))).collect();
        let mut jobs = Vec::new();
        let mut drills = BTreeMap::new();
        for plan in plans.plans.values() {
            for job in Job::ALL {
                let here = newest.of(&plan.name, job, State::Succeeded).and_then(|run| run.ended);
                let elsewhere = elsewhere.get(plan.name.as_str()).copied().filter(|_| job == Job::Backup);
                jobs.extend(facts(plan, job, here.max(elsewhere), intervals, now));
            }
            drills.extend(newest.of(&plan.name, Job::Drill, State::Succeeded).map(|run| (plan.name.clone(), run.clone())));
        }
        Ok(Self { status, jobs, drills })
    }
}

fn facts(plan: &Plan, job: Job, last_success: Option<DateTime<Utc>>, intervals: &mut Intervals, now: DateTime<Utc>) -> Option<JobFacts> {
    let schedule = job.schedule(plan);
    if schedule.is_none() && last_success.is_none() {
        return None;
    }
    Some(JobFacts {
        plan: plan.name.clone(),
        job,
        last_success,
        interval: schedule.and_then(|schedule| intervals.of(schedule, now)),
        next_run: schedule.and_then(|schedule| schedule.next_after(now)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_pause_of_a_schedule_is_what_is_expected() {
        let now = DateTime::parse_from_rfc3339("2026-11-25T12:00:00Z").unwrap().to_utc();
        let mut intervals = Intervals::default();
        for (text, hours) in [("0 2 * * *", 24), ("0 * * * *", 1), ("0 2 * * 1-5", 72), ("0 2 * * sun", 168)] {
            let schedule = Schedule::parse(text, chrono_tz::UTC).unwrap();
            assert_eq!(intervals.of(&schedule, now), Some(Duration::from_hours(hours)), "{text}");
            assert_eq!(intervals.of(&schedule, now), Some(Duration::from_hours(hours)), "{text}, remembered");
        }
    }
}

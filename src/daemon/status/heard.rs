//! What the journal says of the plans that are judged: asked once for all of them, in a few questions however many they are.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use crate::daemon::job::{expression, schedules};
use crate::daemon::journal::{Job, Journal, Known, Newest, Run, ScheduleKey, State};
use crate::daemon::nodes;
use crate::error::Result;
use crate::id::Name;
use crate::plan::Plan;

/// An answer of the journal.
#[derive(Default)]
pub struct Heard {
    pub newest: Newest,
    /// Runs whose process is gone.
    pub broken: Vec<Run>,
    schedules: BTreeMap<Name, Vec<(Job, Known)>>,
    /// Leases of streams that somebody has: whether on this host.
    held: BTreeMap<String, bool>,
}

impl Heard {
    /// Asks.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn ask(plans: &[&Plan], journal: &Journal, now: DateTime<Utc>) -> Result<Self> {
        let names: Vec<&Name> = plans.iter().map(|plan| &plan.name).collect();
        let key = |plan: &Plan, (job, schedule)| ScheduleKey { plan: plan.name.clone(), job, expression: expression(schedule) };
        let keys: Vec<ScheduleKey> = plans.iter().flat_map(|plan| schedules(plan).into_iter().map(|it| key(plan, it))).collect();
        let mut of_plan: BTreeMap<Name, Vec<(Job, Known)>> = BTreeMap::new();
        let known = journal.known(&keys, now)?;
        for (key, known) in keys.into_iter().zip(known) {
            of_plan.entry(key.plan).or_default().push((key.job, known));
        }
        let held = if journal.is_shared() { journal.held_here(&streams(plans), now)? } else { BTreeMap::new() };
        Ok(Self { newest: journal.newest(&names, now)?, broken: journal.broken()?, schedules: of_plan, held })
    }

    /// The schedules of a plan, as they were when this was asked.
    #[must_use]
    pub fn schedules(&self, plan: &Name) -> &[(Job, Known)] {
        self.schedules.get(plan).map_or(&[], Vec::as_slice)
    }

    /// Whether another node does this endless work of a source: then it knows how that stands, and this host does not.
    pub(in crate::daemon::status) fn is_elsewhere(&self, kind: &str, plan: &Name, source: &Name) -> bool {
        !self.held.is_empty() && self.held.get(&nodes::stream_lease(kind, plan, source)) == Some(&false)
    }

    /// The newest run of a plan that committed a snapshot.
    pub(in crate::daemon::status) fn last_backup(&self, plan: &Name) -> Option<&Run> {
        last_backup(&self.newest, plan)
    }
}

/// The newest backup of a plan that made a snapshot, whole or not.
#[must_use]
pub fn last_backup<'a>(newest: &'a Newest, plan: &Name) -> Option<&'a Run> {
    let of = |state| newest.of(plan, Job::Backup, state);
    of(State::Succeeded).into_iter().chain(of(State::Incomplete)).max_by_key(|run| run.started)
}

/// Names of the leases on all endless work of these plans.
fn streams(plans: &[&Plan]) -> Vec<String> {
    let mut names = Vec::new();
    for plan in plans {
        for source in &plan.sources {
            let lease = |kind| nodes::stream_lease(kind, &plan.name, &source.name);
            names.extend(source.kind.streams_log().then(|| lease("log")));
            names.extend(source.kind.canary().map(|_| lease("canary")));
        }
    }
    names
}

//! Which of several nodes on one journal tells people of a plan, so that not all do: where its log is streamed, the node that does it, since nobody else
//! knows as well how it stands; else the one that has a lease for it. On the embedded journal there is only this one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};

use crate::daemon::journal::Journal;
use crate::daemon::nodes::stream_lease;
use crate::error::Result;
use crate::plan::{Plan, Plans};

/// The lease of the one that tells.
const TELL: &str = "tell";

/// What the journal said is believed for so long at most; a lease is at least 5 s.
const BELIEVED: Duration = Duration::from_secs(10);

pub(super) struct Teller {
    journal: Arc<Journal>,
    /// Leases on the logs of all plans.
    logs: Vec<String>,
    /// Who has those that somebody has: whether this host.
    held: Option<(Instant, BTreeMap<String, bool>)>,
    /// Whether this node has the lease of the one that tells.
    tells: Option<(Instant, bool)>,
}

impl Teller {
    pub(super) fn new(plans: &Plans, journal: Arc<Journal>) -> Self {
        let logs = plans.plans.values().flat_map(|plan| logs(plan)).collect();
        Self { journal, logs, held: None, tells: None }
    }

    /// Whether this node tells of a plan.
    ///
    /// # Errors
    /// When the journal cannot be asked.
    pub(super) fn tells(&mut self, plan: &Plan, now: DateTime<Utc>) -> Result<bool> {
        if !self.journal.is_shared() {
            return Ok(true);
        }
        let believed = BELIEVED.min(self.journal.lease().to_std().unwrap_or_default() / 4);
        for log in logs(plan) {
            // Of all plans in one question.
            if self.held.as_ref().is_none_or(|(when, _)| when.elapsed() >= believed) {
                self.held = Some((Instant::now(), self.journal.held_here(&self.logs, now)?));
            }
            if let Some(here) = self.held.as_ref().and_then(|(_, held)| held.get(&log)) {
                return Ok(*here);
            }
        }
        if let Some((_, tells)) = self.tells.filter(|(when, _)| when.elapsed() < believed) {
            return Ok(tells);
        }
        let tells = self.journal.hold(TELL, self.journal.lease(), now)?;
        self.tells = Some((Instant::now(), tells));
        Ok(tells)
    }
}

/// The leases on the logs of a plan.
fn logs(plan: &Plan) -> impl Iterator<Item = String> {
    plan.sources.iter().filter(|source| source.kind.streams_log()).map(|source| stream_lease("log", &plan.name, &source.name))
}

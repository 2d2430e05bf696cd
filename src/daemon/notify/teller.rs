//! Which of several nodes on one journal tells people of a plan, so that not all do: where its log is streamed, the node that does it, since nobody else
//! knows as well how it stands; else the one that has a lease for it. On the embedded journal there is only this one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};

use crate::daemon::journal::Journal;
use crate::daemon::nodes::stream_lease;
use crate::error::Result;
use crate::id::Name;
use crate::plan::Plan;

/// The lease of the one that tells.
const TELL: &str = "tell";

/// What the journal said is believed for so long at most; a lease is at least 5 s.
const BELIEVED: Duration = Duration::from_secs(10);

pub(super) struct Teller {
    journal: Arc<Journal>,
    /// What the journal said of each plan with a log, and (`None`) of the lease.
    known: BTreeMap<Option<Name>, (Instant, bool)>,
}

impl Teller {
    pub(super) fn new(journal: Arc<Journal>) -> Self {
        Self { journal, known: BTreeMap::new() }
    }

    /// Whether this node tells of a plan.
    ///
    /// # Errors
    /// When the journal cannot be asked.
    pub(super) fn tells(&mut self, plan: &Plan, now: DateTime<Utc>) -> Result<bool> {
        if !self.journal.is_shared() {
            return Ok(true);
        }
        let streams = plan.sources.iter().any(|source| source.kind.streams_log());
        let believed = BELIEVED.min(self.journal.lease().to_std().unwrap_or_default() / 4);
        let key = streams.then(|| plan.name.clone());
        if let Some((_, tells)) = self.known.get(&key).filter(|(when, _)| when.elapsed() < believed) {
            return Ok(*tells);
        }
        let tells = self.ask(plan, now)?;
        self.known.insert(key, (Instant::now(), tells));
        Ok(tells)
    }

    fn ask(&self, plan: &Plan, now: DateTime<Utc>) -> Result<bool> {
        for source in plan.sources.iter().filter(|source| source.kind.streams_log()) {
            if let Some(here) = self.journal.is_held_here(&stream_lease("log", &plan.name, &source.name), now)? {
                return Ok(here);
            }
        }
        self.journal.hold(TELL, self.journal.lease(), now)
    }
}

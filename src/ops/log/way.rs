//! What of a log is needed, where servers went back to the past.
//!
//! After a recovery in place the positions of the new timeline are lower than those of newer snapshots, which are not on its way. So neither do positions
//! alone tell which log is of no use any more, nor times alone which snapshots recovery begins with: the *way* does, which is what the newest timeline goes
//! through.

use chrono::{DateTime, Utc};

use crate::error::Result;
use crate::id::{Name, SnapshotId};
use crate::ops::log::archive::stored_history;
use crate::ops::log::fork::newest;
use crate::ops::log::replay::{base_of, can_have_log};
use crate::ops::retention::{Candidate, Rules};
use crate::repo::{Log, Manifest};
use crate::source::postgres::lsn::Lsn;
use crate::source::postgres::wal::TimelineHistory;

/// The way of a source's log.
#[derive(Debug, Clone)]
pub struct Way {
    source: Name,
    history: TimelineHistory,
}

/// The snapshots that recovery along a way begins with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Beginnings {
    /// To its newest moment.
    pub newest: Option<SnapshotId>,
    /// To the first moment of the window that the rules keep log for. `None` also where no snapshot on the way is as old as that.
    pub window: Option<SnapshotId>,
}

impl Beginnings {
    /// Each, and why it must not go. Pure.
    pub fn reasons(self, timeline: u32) -> impl Iterator<Item = (SnapshotId, String)> {
        let newest = self.newest.map(|id| (id, format!("recovery along timeline {timeline} begins with it")));
        let window = self.window.map(|id| (id, format!("the recovery window of timeline {timeline} begins with it")));
        newest.into_iter().chain(window)
    }
}

impl Way {
    /// Of the newest timeline whose history is stored. `None`: no timeline but the first is known. One listing, and one small request.
    ///
    /// # Errors
    /// `Damaged` when its history cannot be read; when the store cannot be asked.
    pub fn of(log: &Log, source: &Name) -> Result<Option<Self>> {
        let Some(timeline) = newest(log)? else { return Ok(None) };
        let Some(text) = stored_history(log, timeline)? else { return Ok(None) };
        Ok(Some(Self { source: source.clone(), history: TimelineHistory::parse(timeline, &text)? }))
    }

    #[must_use]
    pub fn source(&self) -> &Name {
        &self.source
    }

    /// The newest.
    #[must_use]
    pub fn timeline(&self) -> u32 {
        self.history.timeline()
    }

    /// Where log goes on from a snapshot. `None`: the way does not go through it.
    fn point_of(&self, manifest: &Manifest) -> Option<Lsn> {
        let record = manifest.sources.iter().find(|record| record.name == self.source && can_have_log(record))?;
        let base = base_of(manifest, record)?;
        self.history.contains(base.timeline, base.point).then_some(base.point)
    }

    /// What recovery along it begins with: of the snapshots in question the furthest sound and whole one, else the furthest sound one, else the furthest.
    /// By position: there is no going back on a way, whatever clocks say. `snapshots`: what retention knows of each, and its manifest. Pure.
    #[must_use]
    pub fn beginnings(&self, rules: &Rules, snapshots: &[(&Candidate, &Manifest)], now: DateTime<Utc>) -> Beginnings {
        let on_it: Vec<(Lsn, &Candidate)> =
            snapshots.iter().filter_map(|(candidate, manifest)| Some((self.point_of(manifest)?, *candidate))).collect();
        let furthest_before = |end: DateTime<Utc>| {
            let in_question = on_it.iter().filter(|(_, candidate)| candidate.time <= end);
            let best = in_question.max_by_key(|(point, one)| (one.damaged.is_none(), one.whole, *point, one.id));
            best.map(|(_, candidate)| candidate.id)
        };
        let window = rules.log.and_then(|log| now.checked_sub_signed(chrono::Duration::from_std(log).ok()?));
        Beginnings { newest: furthest_before(now), window: window.and_then(furthest_before) }
    }
}

/// What of a log is needed: all from a position on, on whatever timeline, and all of timelines that no snapshot which needs its log is of yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needed {
    /// Start of a segment.
    pub from: u64,
    /// The greatest timeline that such a snapshot is of; 0 without any.
    pub newest: u32,
}

impl Needed {
    /// Whether of a stretch that ends at `end` (exclusive) anything is.
    #[must_use]
    pub fn has(self, stream: u64, end: u64) -> bool {
        end > self.from || self.is_above(stream)
    }

    /// Whether a stream is a timeline that no snapshot is of yet.
    #[must_use]
    pub fn is_above(self, stream: u64) -> bool {
        stream > u64::from(self.newest)
    }
}

//! Snapshots: what can be restored, and what was verified and proven.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::error::{Kind, Result};
use crate::id::{Name, SnapshotId};
use crate::ops::damage::{self, KnownDamage};
use crate::ops::judged::{self, Digest, Existing, Judgement};
use crate::ops::log::replay;
use crate::ops::{backup, explain, prune, select};
use crate::repo::{Manifest, ReportRecord, Repository, SourceRecord, beside, replacements};

/// One source of a listed snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedSource {
    pub name: String,
    pub kind: String,
    pub bytes: u64,
    pub entries: u64,
}

/// One snapshot of the list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedSnapshot {
    pub id: SnapshotId,
    pub time: DateTime<Utc>,
    pub plan: String,
    pub host: String,
    pub sources: Vec<ListedSource>,
    pub bytes_source: u64,
    pub bytes_read: u64,
    pub bytes_stored: u64,
    /// Objects that the backup could not read; 0 is complete.
    pub problems: u64,
    /// The last verification that found all its stored bytes sound (structure alone does not count).
    pub verified_at: Option<DateTime<Utc>>,
    /// The last drill that passed on it.
    pub proven_at: Option<DateTime<Utc>>,
    /// When the key of its content was destroyed, on purpose: nobody can restore it, and it is in no recovery range.
    #[serde(default)]
    pub destroyed_at: Option<DateTime<Utc>>,
    /// What is known against it: it cannot be counted on, and is in no recovery range.
    #[serde(default)]
    pub damaged: Option<KnownDamage>,
    /// Of a damaged one: the snapshot without known damage that has its content and its place, brought back from a copy.
    #[serde(default)]
    pub replaced_by: Option<SnapshotId>,
    /// Of a damaged one: who accepted all of that loss, and why.
    #[serde(default)]
    pub loss_accepted: Option<String>,
    /// Why no retention removes it, and until when: it is held.
    #[serde(default)]
    pub held: Option<String>,
}

/// What moments a source can be recovered to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveryRange {
    pub plan: String,
    pub source: String,
    /// Oldest moment.
    pub from: DateTime<Utc>,
    /// Newest moment.
    pub to: DateTime<Utc>,
    /// `false`: only the moments of the snapshots between the two, not everything between.
    pub continuous: bool,
    /// How many moments those are.
    pub points: u64,
}

/// `lifeboat.snapshots/1`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotList {
    pub schema: String,
    /// Oldest first.
    pub snapshots: Vec<ListedSnapshot>,
    pub recovery_ranges: Vec<RecoveryRange>,
    /// Manifests that cannot be read: their snapshots are not listed. Also reports: what they say is not known, so a snapshot may have
    /// been verified or proven later than it is listed here, or that may have been taken back.
    pub damaged: Vec<String>,
}

impl ListedSnapshot {
    /// Whether it can be counted on, as far as is known.
    fn is_usable(&self) -> bool {
        self.damaged.is_none() && self.destroyed_at.is_none()
    }
}

impl SnapshotList {
    /// How the process should end: `None` is exit 0.
    #[must_use]
    pub fn exit(&self) -> Option<Kind> {
        let is_harmed = |one: &ListedSnapshot| {
            one.damaged.is_some() && one.replaced_by.is_none() && one.loss_accepted.is_none() && one.destroyed_at.is_none()
        };
        let harmed = self.snapshots.iter().any(is_harmed);
        (harmed || !self.damaged.is_empty()).then_some(Kind::Damaged)
    }
}

/// Lists the snapshots of one plan, or of all. `now`: for holds whose time is over, and reports whose time has not come.
///
/// # Errors
/// What the repository says.
pub fn run(repository: &Repository, plan: Option<&Name>, now: DateTime<Utc>) -> Result<SnapshotList> {
    // Far away each answer takes its time: what does not need the other is asked for at the same time.
    let (manifests, others) = beside(|| Ok((repository.sound_reports(None)?, repository.ledger())), || repository.sound_manifests(plan));
    let (mut manifests, damaged) = manifests?;
    manifests.sort_by_key(|m| (m.time, m.id));
    let ((reports, damaged_reports), ledger) = others?;
    let mut list = list(&manifests, &reports, now, &|manifest| repository.destroyed_at(manifest));
    list.damaged = damaged.iter().map(|lost| &lost.error).chain(&damaged_reports).map(explain).collect();
    let unread = with_logs(repository, &manifests, &mut list)?;
    list.damaged.extend(unread);
    // A ledger that cannot be read is among the damaged.
    if let Ok(ledger) = ledger {
        let standing = if ledger.accepted().is_empty() { Vec::new() } else { damage::standing(&reports, None, now) };
        for snapshot in &mut list.snapshots {
            let loss = snapshot.damaged.as_ref().and_then(|known| damage::accepted(known, snapshot.id, &standing, &ledger));
            snapshot.loss_accepted = loss.map(|loss| format!("{} (by {}, {})", loss.reason, loss.by, select::moment(loss.accepted_at)));
        }
        let replaces = replacements(&manifests);
        for snapshot in &mut list.snapshots {
            snapshot.held = ledger.hold_in_place(snapshot.id, &replaces, now).map(|hold| {
                let until = hold.until.map_or_else(String::new, |until| format!(" until {}", select::moment(until)));
                format!("{}{until}{}", hold.reason, prune::in_place_of(hold, snapshot.id))
            });
        }
    }
    Ok(list)
}

/// Puts what the logs of sources make possible in place of the moments of their snapshots. Returns what could not be read of them.
fn with_logs(repository: &Repository, manifests: &[Manifest], list: &mut SnapshotList) -> Result<Vec<String>> {
    let sound: BTreeSet<SnapshotId> = list.snapshots.iter().filter(|s| s.is_usable()).map(|s| s.id).collect();
    let mut sources: BTreeMap<(Name, Name), Vec<&Manifest>> = BTreeMap::new();
    for manifest in manifests.iter().filter(|manifest| sound.contains(&manifest.id)) {
        for source in manifest.sources.iter().filter(|source| replay::can_have_log(source)) {
            sources.entry((manifest.plan.clone(), source.name.clone())).or_default().push(manifest);
        }
    }
    let mut unread = Vec::new();
    for ((plan, source), manifests) in sources {
        let (view, damaged) = replay::view(&repository.log(&plan, &source), &manifests, &source)?;
        unread.extend(damaged);
        let Some(view) = view else { continue };
        let of_source = |range: &RecoveryRange| range.plan == plan.as_str() && range.source == source.as_str();
        let at = list.recovery_ranges.iter().position(of_source).unwrap_or(list.recovery_ranges.len());
        list.recovery_ranges.retain(|range| !of_source(range));
        let ranges = view.ranges();
        let inside: BTreeSet<SnapshotId> =
            ranges.iter().filter(|range| range.continuous).flat_map(|range| range.snapshots.iter().copied()).collect();
        // Also those of timelines that are not followed: by their names they can be restored.
        let alone =
            self::ranges(manifests.iter().copied().filter(|manifest| !inside.contains(&manifest.id)).map(|manifest| (manifest, &source)));
        let continuous = ranges.iter().filter(|range| range.continuous).map(|range| RecoveryRange {
            plan: plan.to_string(),
            source: source.to_string(),
            from: range.from,
            to: range.to,
            continuous: true,
            points: range.snapshots.len() as u64,
        });
        let mut all: Vec<RecoveryRange> = alone.into_iter().chain(continuous).collect();
        all.sort_by_key(|range| (range.from, range.to));
        list.recovery_ranges.splice(at..at, all);
    }
    Ok(unread)
}

/// The document, of manifests in the order to show. `destroyed_at`: see [`Repository::destroyed_at`]. Pure.
#[must_use]
pub fn list(
    manifests: &[Manifest],
    reports: &[ReportRecord],
    now: DateTime<Utc>,
    destroyed_at: &dyn Fn(&Manifest) -> Option<DateTime<Utc>>,
) -> SnapshotList {
    let existing = Existing::new(manifests, &[]);
    let digests = reports.iter().map(|report| Digest::of(report.clone(), &existing)).collect();
    let judged = judged::judge(digests, &existing, now);
    let mut snapshots: Vec<ListedSnapshot> = manifests.iter().map(|m| listed(m, judged.of(m.id), destroyed_at(m))).collect();
    let sound: BTreeSet<SnapshotId> = snapshots.iter().filter(|one| one.is_usable()).map(|one| one.id).collect();
    let replacing: BTreeMap<SnapshotId, SnapshotId> =
        manifests.iter().filter(|m| sound.contains(&m.id)).filter_map(|m| Some((m.replaces()?, m.id))).collect();
    for one in snapshots.iter_mut().filter(|one| one.damaged.is_some()) {
        one.replaced_by = replacing.get(&one.id).copied();
    }
    let sound = manifests.iter().zip(&snapshots).filter(|(_, listed)| listed.is_usable()).map(|(manifest, _)| manifest);
    let every = sound.flat_map(|manifest| manifest.sources.iter().map(move |source| (manifest, &source.name)));
    SnapshotList { schema: "lifeboat.snapshots/1".into(), recovery_ranges: ranges(every), snapshots, damaged: Vec::new() }
}

fn listed(manifest: &Manifest, judged: Judgement, destroyed_at: Option<DateTime<Utc>>) -> ListedSnapshot {
    let source = |s: &SourceRecord| ListedSource { name: s.name.to_string(), kind: s.kind.clone(), bytes: s.bytes, entries: s.entries };
    ListedSnapshot {
        id: manifest.id,
        time: manifest.time,
        plan: manifest.plan.to_string(),
        host: manifest.host.clone(),
        sources: manifest.sources.iter().map(source).collect(),
        bytes_source: manifest.stats.bytes_source,
        bytes_read: manifest.stats.bytes_read,
        bytes_stored: manifest.stats.bytes_stored,
        problems: backup::missing(&manifest.sources).len() as u64,
        verified_at: judged.verified_at,
        proven_at: judged.proven_at,
        destroyed_at,
        damaged: judged.damaged,
        replaced_by: None,
        loss_accepted: None,
        held: None,
    }
}

/// One range for each source of each plan, by name: these kinds of source have only the moments of their snapshots.
fn ranges<'a>(moments: impl Iterator<Item = (&'a Manifest, &'a Name)>) -> Vec<RecoveryRange> {
    let mut ranges: BTreeMap<(String, String), RecoveryRange> = BTreeMap::new();
    for (manifest, source) in moments {
        let key = (manifest.plan.to_string(), source.to_string());
        let range = ranges.entry(key).or_insert_with_key(|(plan, source)| RecoveryRange {
            plan: plan.clone(),
            source: source.clone(),
            from: manifest.time,
            to: manifest.time,
            continuous: false,
            points: 0,
        });
        range.from = range.from.min(manifest.time);
        range.to = range.to.max(manifest.time);
        range.points += 1;
    }
    ranges.into_values().collect()
}

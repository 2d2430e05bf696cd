//! Snapshots: what can be restored, and what was verified and proven.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::error::{Kind, Result};
use crate::id::{Name, SnapshotId};
use crate::ops::damage::{self, Damage, KnownDamage};
use crate::ops::{backup, explain, select};
use crate::repo::{Manifest, ReportRecord, Repository, SourceRecord};

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
    /// What is known against it: it cannot be counted on, and is in no recovery range.
    #[serde(default)]
    pub damaged: Option<KnownDamage>,
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

impl SnapshotList {
    /// How the process should end: `None` is exit 0.
    #[must_use]
    pub fn exit(&self) -> Option<Kind> {
        let harmed = self.snapshots.iter().any(|snapshot| snapshot.damaged.is_some());
        (harmed || !self.damaged.is_empty()).then_some(Kind::Damaged)
    }
}

/// Lists the snapshots of one plan, or of all.
///
/// # Errors
/// What the repository says.
pub fn run(repository: &Repository, plan: Option<&Name>) -> Result<SnapshotList> {
    let (mut manifests, damaged) = repository.sound_manifests(plan)?;
    manifests.sort_by_key(|m| (m.time, m.id));
    let (reports, damaged_reports) = repository.sound_reports(None)?;
    let mut list = list(&manifests, &reports);
    list.damaged = damaged.iter().map(|lost| &lost.error).chain(&damaged_reports).map(explain).collect();
    Ok(list)
}

/// The document, of manifests in the order to show. Pure.
#[must_use]
pub fn list(manifests: &[Manifest], reports: &[ReportRecord]) -> SnapshotList {
    let standing = damage::standing(reports, None);
    let snapshots: Vec<ListedSnapshot> = manifests.iter().map(|manifest| listed(manifest, reports, &standing)).collect();
    let sound = manifests.iter().zip(&snapshots).filter(|(_, listed)| listed.damaged.is_none()).map(|(manifest, _)| manifest);
    SnapshotList { schema: "lifeboat.snapshots/1".into(), recovery_ranges: ranges(sound), snapshots, damaged: Vec::new() }
}

fn listed(manifest: &Manifest, reports: &[ReportRecord], standing: &[Damage]) -> ListedSnapshot {
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
        verified_at: select::verified_at(reports, manifest.id),
        proven_at: select::proven_at(reports, manifest.id),
        damaged: damage::of_snapshot(reports, standing, manifest.id),
    }
}

/// One range for each source of each plan, by name: these kinds of source have only the moments of their snapshots.
fn ranges<'a>(manifests: impl Iterator<Item = &'a Manifest>) -> Vec<RecoveryRange> {
    let mut ranges: BTreeMap<(String, String), RecoveryRange> = BTreeMap::new();
    for manifest in manifests {
        for source in &manifest.sources {
            let key = (manifest.plan.to_string(), source.name.to_string());
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
    }
    ranges.into_values().collect()
}

//! What speaks against the snapshot that was chosen: damage that is known, a newer one that cannot be read, an older one that is complete.
//! Pure.

use std::collections::HashSet;

use chrono::{DateTime, Utc};

use crate::id::SnapshotId;
use crate::ops::select::{self, Choice, Wanted};
use crate::ops::verdict::{duration_text, millis};
use crate::ops::{backup, damage};
use crate::repo::{LostManifest, Manifest, ReportRecord, replacements};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    /// Newer ones that the choice may have meant.
    pub(super) newer_unread: Vec<SnapshotId>,
    /// For the operator, before the restore and in its result.
    pub(super) sentences: Vec<String>,
}

impl Doubts {
    /// `all` and `lost`: the plan's manifests, where they were looked at.
    pub(super) fn of(
        manifest: &Manifest,
        all: &[Manifest],
        lost: &[LostManifest],
        reports: &[ReportRecord],
        choice: &Choice,
        now: DateTime<Utc>,
    ) -> Self {
        let newer_unread = newer_unread(manifest, all, lost, reports, choice, now);
        let damage = known_damage(manifest, all, reports, now);
        let sentences = unread_sentence(manifest, &newer_unread).into_iter().chain(damage).chain(older_complete(manifest, all, choice));
        Self { sentences: sentences.collect(), newer_unread }
    }
}

/// What was lost and may be what was asked for. A snapshot that was named is what was asked for, whatever else there was.
fn newer_unread(
    manifest: &Manifest,
    all: &[Manifest],
    lost: &[LostManifest],
    reports: &[ReportRecord],
    choice: &Choice,
    now: DateTime<Utc>,
) -> Vec<SnapshotId> {
    let followed: HashSet<SnapshotId> = all.iter().flat_map(|m| m.parents.iter().map(|parent| parent.id)).collect();
    let meant = |id: &SnapshotId| match choice {
        Choice::Latest | Choice::Along { wanted: Wanted::Latest | Wanted::Immediate, .. } => !followed.contains(id),
        // A snapshot is begun before the moment that its content is of.
        Choice::At(wanted) | Choice::Along { wanted: Wanted::Time(wanted), .. } => id.generated().is_none_or(|begun| begun <= *wanted),
        Choice::LatestProven => select::proven_at(reports, *id, now).is_some(),
        Choice::Snapshot(_) | Choice::Random { .. } | Choice::Along { .. } => false,
    };
    let mut newer: Vec<SnapshotId> = lost.iter().filter_map(|lost| lost.id).filter(|id| *id > manifest.id).filter(meant).collect();
    newer.sort_unstable();
    newer
}

fn unread_sentence(manifest: &Manifest, newer: &[SnapshotId]) -> Option<String> {
    let last = newer.last()?;
    let what = match newer.len() {
        1 => "a newer snapshot cannot be read".to_owned(),
        several => format!("{several} newer snapshots cannot be read"),
    };
    let older = last.generated().and_then(|time| (time - manifest.time).to_std().ok());
    let older = older.map_or_else(|| "older".to_owned(), |gap| format!("{} older", duration_text(millis(gap))));
    Some(format!(
        "{what}; this is {older}: {last} was asked for, {} is what there is (`lifeboat verify` says what is wrong with it; --snapshot names another)",
        select::describe(manifest)
    ))
}

/// Whether damage of it is known.
pub(super) fn is_damaged(manifest: &Manifest, reports: &[ReportRecord], now: DateTime<Utc>) -> bool {
    damage::of_snapshot(reports, &damage::standing(reports, None, now), manifest.id, now).is_some()
}

fn known_damage(manifest: &Manifest, all: &[Manifest], reports: &[ReportRecord], now: DateTime<Utc>) -> Option<String> {
    let standing = damage::standing(reports, None, now);
    let known = damage::of_snapshot(reports, &standing, manifest.id, now)?;
    let is_sound = |m: &&Manifest| damage::of_snapshot(reports, &standing, m.id, now).is_none();
    let replaces = replacements(all);
    let back = all.iter().filter(is_sound).find(|m| replaces.get(&m.id) == Some(&manifest.id));
    let other = match (back, all.iter().filter(is_sound).max_by_key(|m| (m.time, m.id))) {
        (Some(back), _) => format!("; its content was brought back and stands in its place: restore that (--snapshot {})", back.id),
        (None, Some(newest)) => format!("; the newest without known damage is {}", select::describe(newest)),
        (None, None) => String::new(),
    };
    Some(format!("this snapshot is known to be damaged, so its restore will probably fail: {}{other}", known.describe()))
}

/// That the last snapshot lacks something is told where it is; that there is one that does not is told here.
fn older_complete(manifest: &Manifest, all: &[Manifest], choice: &Choice) -> Option<String> {
    let lacks = backup::missing(&manifest.sources).len();
    if lacks == 0 || matches!(choice, Choice::Snapshot(_)) {
        return None;
    }
    let complete = all.iter().filter(|m| m.time < manifest.time && backup::missing(&m.sources).is_empty());
    let complete = complete.max_by_key(|m| (m.time, m.id))?;
    Some(format!(
        "this snapshot lacks {lacks} of what was to be backed up; the newest complete one is {}, {} older (--snapshot {})",
        select::describe(complete),
        duration_text(millis((manifest.time - complete.time).to_std().unwrap_or_default())),
        complete.id
    ))
}

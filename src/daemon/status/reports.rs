//! What a repository's reports say of each of its plans: read once for all of them, so that a plan costs its own drills and not everybody's.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use chrono::{DateTime, Utc};

use crate::error::Result;
use crate::id::{Name, SnapshotId};
use crate::ops::damage::{self, Damage, Excused};
use crate::ops::damaged_reports_warning;
use crate::repo::{Manifest, ReportKind, ReportRecord, Repository};

/// The reports of one repository.
pub(super) struct Reports {
    /// Oldest first, by their ids.
    all: Vec<Arc<ReportRecord>>,
    /// Places in `all`: of verifications, and of drills by plan and by snapshot.
    verifications: Vec<usize>,
    of_plan: HashMap<String, Vec<usize>>,
    of_snapshot: HashMap<SnapshotId, Vec<usize>>,
    pub(super) standing: Arc<Vec<Damage>>,
    /// Of these, what needs nobody: see [`Damage::is_settled`].
    pub(super) settled: Arc<Vec<Damage>>,
    /// A sentence about those that cannot be read.
    pub(super) damaged: Option<String>,
}

impl Reports {
    /// Reads them; `now`: those that are dated later find nothing sound.
    ///
    /// # Errors
    /// When the store cannot be asked.
    pub(super) fn read(repository: &Repository, now: DateTime<Utc>) -> Result<Self> {
        let (all, damaged) = repository.sound_reports(None)?;
        let mut standing = damage::standing(&all, None, now);
        let mut settled = Vec::new();
        if !standing.is_empty() {
            // What plans have matters only where something was found; where not all of it can be read, nothing counts as gone.
            let (manifests, lost) = repository.sound_manifests(None)?;
            if lost.is_empty() {
                let existing: BTreeSet<SnapshotId> = manifests.iter().map(|manifest| manifest.id).collect();
                standing = damage::standing(&all, Some(&existing), now);
            }
            let (replaced, excused) = (damage::replaced_soundly(&standing, &manifests), Excused::of(repository, &manifests)?);
            settled = standing.iter().filter(|damage| damage.is_settled(&replaced, &excused)).cloned().collect();
        }
        let pieces: BTreeSet<String> = standing.iter().filter_map(Damage::piece).map(str::to_owned).collect();
        if !pieces.is_empty() {
            let there = repository.pieces_there(&pieces.iter().map(String::as_str).collect())?;
            standing.retain(|damage| damage.piece().is_none_or(|piece| there.contains(piece)));
        }
        Ok(Self { settled: Arc::new(settled), ..Self::of(all, standing, damaged_reports_warning(&damaged)) })
    }

    fn of(all: Vec<ReportRecord>, standing: Vec<Damage>, damaged: Option<String>) -> Self {
        let (mut verifications, mut of_plan, mut of_snapshot) = (Vec::new(), HashMap::new(), HashMap::new());
        for (at, report) in all.iter().enumerate() {
            if report.kind != ReportKind::Drill {
                verifications.push(at);
                continue;
            }
            if let Some(plan) = &report.plan {
                of_plan.entry(plan.clone()).or_insert_with(Vec::new).push(at);
            }
            for snapshot in &report.snapshots {
                of_snapshot.entry(*snapshot).or_insert_with(Vec::new).push(at);
            }
        }
        let all = all.into_iter().map(Arc::new).collect();
        Self { all, verifications, of_plan, of_snapshot, standing: Arc::new(standing), settled: Arc::default(), damaged }
    }

    /// Those that may say something of a plan with these snapshots, oldest first.
    pub(super) fn about(&self, plan: &Name, manifests: &[Manifest]) -> Vec<Arc<ReportRecord>> {
        let drills = self.of_plan.get(plan.as_str()).into_iter().chain(manifests.iter().filter_map(|m| self.of_snapshot.get(&m.id)));
        let mut wanted: Vec<usize> = drills.flatten().chain(&self.verifications).copied().collect();
        wanted.sort_unstable();
        wanted.dedup();
        wanted.into_iter().filter_map(|at| self.all.get(at).map(Arc::clone)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::status::tests::{drill, manifest, verify};

    #[test]
    fn a_plan_gets_its_own_drills_and_all_verifications_in_the_order_of_time() {
        let (own, other) = (manifest("02:00:00", "db", &[]), manifest("02:00:01", "db", &[]));
        let of_other = |time, snapshot| ReportRecord { plan: Some("other".into()), ..drill(time, snapshot, true) };
        let gone = manifest("01:00:00", "db", &[]).id;
        let all = vec![
            drill("03:00:00", own.id, true),
            of_other("03:10:00", other.id),
            verify("03:20:00", Some(100), &[]),
            // Under another name, of this plan's snapshot; and of one that is gone.
            of_other("03:30:00", own.id),
            drill("03:40:00", gone, false),
        ];
        let reports = Reports::of(all, Vec::new(), None);
        let times = |plan: &str, manifests: &[Manifest]| -> Vec<DateTime<Utc>> {
            reports.about(&Name::new(plan).unwrap(), manifests).iter().map(|report| report.time).collect()
        };
        let at = |text: &str| format!("2026-11-20T{text}:00Z").parse::<DateTime<Utc>>().unwrap();
        assert_eq!(times("crm", std::slice::from_ref(&own)), [at("03:00"), at("03:20"), at("03:30"), at("03:40")]);
        assert_eq!(times("other", std::slice::from_ref(&other)), [at("03:10"), at("03:20"), at("03:30")]);
        assert_eq!(times("none", &[]), [at("03:20")]);
    }
}

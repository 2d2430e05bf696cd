//! Verify: the repository's own check, with a stored report. A finding is never exit 0.

use std::collections::{BTreeMap, HashSet};
use std::time::Instant;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::clock::Clock;
use crate::error::{Context, Error, Kind, Result};
use crate::event::{Cancel, Event, Progress};
use crate::id::{Name, ReportId, SnapshotId};
use crate::ops::damage::Excused;
use crate::ops::verdict::millis;
use crate::ops::{counted, damaged_reports_warning, explain};
use crate::repo::{Finding, Manifest, ReportKind, ReportRecord, Repository, Role, VerifyDepth};

/// How deep to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    Structure,
    /// Also this share of the stored bytes of packs and of pieces of logs, 1–100 percent; below 100 it rotates, so that ⌈100/percent⌉ runs in a row cover everything.
    Data {
        percent: u8,
    },
}

/// `lifeboat.verify/1`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyReport {
    pub schema: String,
    pub id: ReportId,
    pub plan: Option<String>,
    pub time: DateTime<Utc>,
    /// `structure` or `data`.
    pub depth: String,
    /// For `data`: the share that was read and the number of this run in the rotation.
    pub percent: Option<u8>,
    pub run: Option<u64>,
    /// For `data`: how many packs this run was to read, of how many. A small repository has none in some shares.
    #[serde(default)]
    pub packs_due: Option<u64>,
    #[serde(default)]
    pub packs: Option<u64>,
    pub findings: Vec<Finding>,
    /// Findings that harm only snapshots whose content was brought back: another one, which was found sound, stands in the place of each.
    #[serde(default)]
    pub replaced: Vec<Finding>,
    /// Findings that harm only snapshots whose loss by that very object was accepted (see `lifeboat repair --accept-loss`), that nobody can restore any more
    /// because their key was destroyed, or that were brought back.
    #[serde(default)]
    pub accepted: Vec<Finding>,
    pub bytes_checked: u64,
    pub objects_checked: u64,
    /// Snapshots all of whose objects were looked at, at this depth, without a finding.
    pub snapshots_sound: Vec<SnapshotId>,
    /// Plans of which a journal said what was committed, and the oldest snapshot that it knew. Of older ones, and of other plans, nobody could say whether
    /// a snapshot had vanished.
    #[serde(default)]
    pub witnessed: BTreeMap<Name, SnapshotId>,
    /// Of the findings, snapshots that are gone although a journal says that they were committed, and nobody removed them; with their plans.
    #[serde(default)]
    pub vanished: BTreeMap<SnapshotId, Name>,
    /// What this key's role could not check.
    pub skipped: Vec<String>,
    /// Of these, what nobody can check any more, because the key was destroyed that it is sealed to: all else was looked at.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub destroyed: Vec<String>,
    pub duration_ms: u64,
    pub warnings: Vec<String>,
}

impl VerifyReport {
    /// Everything that was found.
    pub fn all_findings(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().chain(&self.replaced).chain(&self.accepted)
    }

    /// How the process should end: `None` is exit 0.
    #[must_use]
    pub fn exit(&self) -> Option<Kind> {
        if !self.findings.is_empty() {
            Some(Kind::Damaged)
        } else if !self.skipped.is_empty() {
            Some(Kind::Incomplete)
        } else {
            None
        }
    }

    /// What could not be checked, and could be with another key.
    pub fn unchecked(&self) -> impl Iterator<Item = &String> {
        self.skipped.iter().filter(|skipped| !self.destroyed.contains(skipped))
    }
}

/// Checks the whole repository (`plan` is only recorded in the report).
///
/// # Errors
/// When checking itself was not possible; damage is a finding, not an error.
pub fn run(
    repository: &Repository,
    plan: Option<&Name>,
    depth: Depth,
    clock: &dyn Clock,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<VerifyReport> {
    run_against(repository, plan, depth, &[], clock, progress, cancel)
}

/// The same, and whether everything is there that was committed by what is written elsewhere: in the journal, which whoever can write to the store
/// cannot change. `committed` was read before this is called.
///
/// # Errors
/// As [`run`].
pub fn run_against(
    repository: &Repository,
    plan: Option<&Name>,
    depth: Depth,
    committed: &[(Name, SnapshotId)],
    clock: &dyn Clock,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<VerifyReport> {
    let began = Instant::now();
    let time = clock.now();
    if let Depth::Data { percent } = depth
        && !(1..=100).contains(&percent)
    {
        return Err(Error::new(Kind::Usage, format!("verify {percent} percent of the data")).hint("the share is 1 to 100 percent"));
    }
    let id = repository.new_report_id(time)?;
    let mut warnings = Vec::new();
    let share = match depth {
        Depth::Structure => None,
        Depth::Data { percent } => {
            // A repository whose reports are damaged must still be verified: the rotation goes on from those that are not. Where a reader
            // counts, only readers' reports do: else whoever may write has it read the same share for ever.
            let earlier = match repository.role() {
                Role::Reader => repository.signed_reports(ReportKind::Verify),
                Role::Writer | Role::Maintainer => repository.sound_reports(Some(ReportKind::Verify)),
            };
            let (earlier, damaged) = earlier.unwrap_or_else(|error| {
                warnings.push(format!(
                    "earlier verifications could not be read, the rotation goes on from what this machine remembers: {error}"
                ));
                (Vec::new(), Vec::new())
            });
            warnings.extend(damaged_reports_warning(&damaged));
            Some((percent, next_run(&earlier, repository.remembered_run(percent), percent)))
        }
    };
    progress.event(Event::Phase { name: "verify", detail: share.map_or_else(|| "structure".into(), |(p, _)| format!("{p}% of the data")) });
    let depth = share.map_or(VerifyDepth::Structure, |(percent, run)| VerifyDepth::Data { percent, run });
    let mut verification = repository.verify(depth, progress, cancel)?;
    let gone = repository.vanished(committed, &verification)?;
    let plans: BTreeMap<SnapshotId, &Name> = committed.iter().map(|(plan, id)| (*id, plan)).collect();
    let vanished = gone.iter().flat_map(|finding| &finding.snapshots);
    let vanished = vanished.filter_map(|id| Some((*id, (*plans.get(id)?).clone()))).collect();
    verification.findings.extend(gone);
    warnings.extend(verification.unproven.iter().map(|(by, of)| {
        format!("snapshot {by} says that it stands in the place of snapshot {of}, and no reader key has signed that: it counts for nothing")
    }));
    warnings.extend(strange_warning(&repository.store().strange()));
    if !verification.destroyed.is_empty() {
        // Their content was not opened.
        let (manifests, _) = repository.sound_manifests(None)?;
        let destroyed = manifests.iter().filter(|manifest| repository.destroyed_at(manifest).is_some());
        let destroyed: HashSet<SnapshotId> = destroyed.map(|manifest| manifest.id).collect();
        verification.snapshots_sound.retain(|id| !destroyed.contains(id));
    }
    let (findings, replaced, accepted) = settle(repository, verification.findings, &verification.snapshots_sound)?;
    let mut report = VerifyReport {
        schema: "lifeboat.verify/1".into(),
        id,
        plan: plan.map(ToString::to_string),
        time,
        depth: if share.is_some() { "data" } else { "structure" }.into(),
        percent: share.map(|(percent, _)| percent),
        run: share.map(|(_, run)| run),
        packs_due: share.map(|_| verification.packs_due),
        packs: share.map(|_| verification.packs),
        findings,
        replaced,
        accepted,
        bytes_checked: verification.bytes_checked,
        objects_checked: verification.objects_checked,
        snapshots_sound: verification.snapshots_sound,
        witnessed: oldest(committed),
        vanished,
        skipped: verification.skipped,
        destroyed: verification.destroyed,
        duration_ms: millis(began.elapsed()),
        warnings,
    };
    // The findings are what matters: a report that cannot be stored is told, not put in their place.
    let is_remembered = share.is_none_or(|(percent, run)| repository.remember_run(percent, run));
    if let Err(error) = store(repository, &report) {
        if let Some((percent, _)) = share.filter(|(percent, _)| *percent < 100 && !is_remembered) {
            report.skipped.push(format!(
                "the rest of the data: that these {percent} percent were read could not be recorded, so that the next verification reads the same ones. \
                 Give this key the right to store below reports/, or the repository a `cache` folder"
            ));
        }
        report.warnings.push(format!("this verification could not be recorded in the repository: {}", explain(&error)));
    }
    for message in &report.warnings {
        progress.event(Event::Warning { message: message.clone() });
    }
    Ok(report)
}

/// What somebody else has put there harms nothing.
pub(in crate::ops) fn strange_warning(strange: &[String]) -> Option<String> {
    let first = strange.first()?;
    Some(format!(
        "{} in the repository's folders cannot be objects of it by their names, and are passed over (the first is {first}): whatever puts them there should not",
        counted(strange.len(), "thing")
    ))
}

fn oldest(committed: &[(Name, SnapshotId)]) -> BTreeMap<Name, SnapshotId> {
    let mut oldest = BTreeMap::new();
    for (plan, id) in committed {
        oldest.entry(plan.clone()).and_modify(|oldest: &mut SnapshotId| *oldest = (*oldest).min(*id)).or_insert(*id);
    }
    oldest
}

/// What is wrong; apart from it what harms only snapshots that are soundly replaced, and what else harms only those that are excused.
fn settle(repository: &Repository, findings: Vec<Finding>, sound: &[SnapshotId]) -> Result<(Vec<Finding>, Vec<Finding>, Vec<Finding>)> {
    if findings.iter().all(|finding| finding.snapshots.is_empty()) {
        return Ok((findings, Vec::new(), Vec::new()));
    }
    let (manifests, _) = repository.sound_manifests(None)?;
    let replaced: HashSet<SnapshotId> = manifests.iter().filter(|m| sound.contains(&m.id)).filter_map(Manifest::replaces).collect();
    let excused = Excused::of(repository, &manifests)?;
    let harms_none =
        |finding: &Finding, but: &dyn Fn(SnapshotId) -> bool| !finding.snapshots.is_empty() && finding.snapshots.iter().all(|id| but(*id));
    let (settled, findings): (Vec<_>, Vec<_>) = findings.into_iter().partition(|finding| harms_none(finding, &|id| replaced.contains(&id)));
    let is_accepted = |finding: &Finding| harms_none(finding, &|id| replaced.contains(&id) || excused.has(id, &finding.object));
    let (accepted, findings) = findings.into_iter().partition(is_accepted);
    Ok((findings, settled, accepted))
}

fn store(repository: &Repository, report: &VerifyReport) -> Result<()> {
    repository.put_report(&ReportRecord {
        id: report.id,
        kind: ReportKind::Verify,
        time: report.time,
        plan: report.plan.clone(),
        snapshots: report.snapshots_sound.clone(),
        passed: report.exit().is_none(),
        document: serde_json::to_value(report).context(Kind::Bug, || "write the verify report".into())?,
    })
}

/// The number of the next run in the rotation of this share: one more than the last, by the reports or as this machine remembers.
fn next_run(earlier: &[ReportRecord], remembered: Option<u64>, percent: u8) -> u64 {
    let run = |report: &ReportRecord| {
        let number = |field: &str| report.document.get(field).and_then(serde_json::Value::as_u64);
        (number("percent") == Some(percent.into())).then(|| number("run")).flatten()
    };
    earlier.iter().filter_map(run).chain(remembered).max().map_or(0, |last| last.wrapping_add(1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::repo::share_covers;

    fn report(percent: Option<u8>, run: Option<u64>) -> ReportRecord {
        let time = chrono::DateTime::from_timestamp(1_790_000_000, 0).unwrap();
        ReportRecord {
            id: ReportId::generate(time),
            kind: ReportKind::Verify,
            time,
            plan: None,
            snapshots: Vec::new(),
            passed: true,
            document: serde_json::json!({ "percent": percent, "run": run }),
        }
    }

    proptest! {
        /// Whatever packs come and go, whatever other shares and interrupted runs are in between, and wherever the numbers stand: a pack that is there
        /// during ⌈100 / percent⌉ recorded runs of one share in a row is read by one of them, and by no more than one.
        #[test]
        fn a_rotating_share_reads_every_pack_that_stays(
            percent in 1u8..=100,
            start in prop_oneof![Just(0u64), Just(7), Just(1_000_003)],
            steps in proptest::collection::vec((any::<u64>(), 0u8..6), 1..400),
        ) {
            let runs = 100usize.div_ceil(usize::from(percent));
            // Of each pack: which of the last recorded runs of the share read it since it came.
            let mut packs: Vec<(String, Vec<bool>)> = Vec::new();
            let mut reports: Vec<ReportRecord> = if start == 0 { Vec::new() } else { vec![report(Some(percent), Some(start - 1))] };
            for (random, what) in steps {
                match what {
                    0 => {
                        let name = blake3::hash(&random.to_le_bytes()).to_hex().to_string();
                        packs.push((format!("packs/{}/{name}", &name[..2]), Vec::new()));
                    }
                    1 if !packs.is_empty() => {
                        packs.swap_remove(usize::try_from(random % packs.len() as u64).unwrap());
                    }
                    // Another share, or the structure alone.
                    2 => reports.push(report((random % 2 == 0).then_some(percent % 100 + 1), (random % 2 == 0).then_some(random % 50))),
                    // A run that ended before its report was stored: as if it had not been.
                    3 => prop_assert_eq!(next_run(&reports, None, percent), next_run(&reports, None, percent)),
                    _ => {
                        let run = next_run(&reports, None, percent);
                        for (key, read) in &mut packs {
                            read.push(share_covers(key, percent, run));
                        }
                        reports.push(report(Some(percent), Some(run)));
                    }
                }
            }
            for (key, read) in &packs {
                for window in read.windows(runs) {
                    prop_assert_eq!(window.iter().filter(|read| **read).count(), 1, "{} at {}%: {:?}", key, percent, read);
                }
            }
        }
    }

    #[test]
    fn each_share_counts_its_own_runs() {
        let earlier = [report(Some(10), Some(0)), report(Some(10), Some(1)), report(Some(25), Some(6)), report(None, None)];
        assert_eq!(next_run(&earlier, None, 10), 2);
        assert_eq!(next_run(&earlier, None, 25), 7);
        assert_eq!(next_run(&earlier, None, 50), 0);
        // What this machine read itself counts where no report came of it, and a report where another machine has read more.
        assert_eq!((next_run(&earlier, Some(4), 10), next_run(&earlier, Some(0), 10), next_run(&earlier, Some(3), 50)), (5, 2, 4));
    }
}

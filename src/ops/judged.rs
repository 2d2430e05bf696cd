//! What all reports of a repository together say of its snapshots, in one pass over them, and which of them nobody needs any more.
//!
//! Of each report only that is held which is asked here: a repository has thousands of them, with a line for each table or snapshot. What is judged is what
//! [`select::proven`], [`select::verified_at`] and [`damage::of_snapshot`] say of one snapshot (a test compares them).
//!
//! Reports go after [`KEPT`], and none goes that what is judged here rests on. Of drills, all of a snapshot that exists stay, and the newest of each plan. Verifications
//! follow one another (what one found a later one takes back), so of them only go those before a moment from which on the others say the same. Which came
//! first is told by ids, and how old one is by its time, where that fits among the others.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use chrono::{DateTime, TimeDelta, Utc};
use serde::Deserialize as _;

use crate::error::{Error, Result};
use crate::id::{ReportId, SnapshotId};
use crate::ops::damage::{self, Damage, KnownDamage};
use crate::ops::select;
use crate::ops::verify::VerifyReport;
use crate::repo::{AcceptedLoss, Ledger, LostManifest, Manifest, ReportKind, ReportRecord, Repository};

/// How long a report is kept that nothing rests on: whoever looks at the last year sees all of it.
pub(in crate::ops) const KEPT: TimeDelta = TimeDelta::days(400);
/// How many drills of a plan that passed are kept however old they are, and of others as many.
const DRILLS: usize = 10;

/// The snapshots that exist, numbered.
pub(in crate::ops) struct Existing {
    numbers: HashMap<SnapshotId, usize>,
    /// When the original had been proven, of a copy.
    proven_before: Vec<Option<DateTime<Utc>>>,
}

impl Existing {
    /// `lost`: those that cannot be read are there, too.
    pub fn new<'a>(manifests: impl IntoIterator<Item = &'a Manifest>, lost: &[LostManifest]) -> Self {
        let mut existing = Self { numbers: HashMap::new(), proven_before: Vec::new() };
        let read = manifests.into_iter().map(|m| (m.id, m.copied_from.as_ref().and_then(|from| from.proven_at)));
        for (id, proven_before) in read.chain(lost.iter().filter_map(|lost| Some((lost.id?, None)))) {
            // An id may come twice: one that is read, and something else under its name.
            existing.numbers.entry(id).or_insert_with(|| {
                existing.proven_before.push(proven_before);
                existing.proven_before.len() - 1
            });
        }
        existing
    }

    fn numbers(&self, ids: impl IntoIterator<Item = SnapshotId>) -> Vec<usize> {
        ids.into_iter().filter_map(|id| self.numbers.get(&id).copied()).collect()
    }

    fn bits(&self, ids: &[SnapshotId]) -> Vec<u64> {
        let mut bits = vec![0; self.proven_before.len().div_ceil(64)];
        for number in self.numbers(ids.iter().copied()) {
            bits[number / 64] |= 1 << (number % 64);
        }
        bits
    }
}

fn has(bits: &[u64], number: usize) -> bool {
    bits.get(number / 64).is_some_and(|word| word >> (number % 64) & 1 == 1)
}

/// What is asked of a report.
pub(in crate::ops) struct Digest {
    id: ReportId,
    time: DateTime<Utc>,
    passed: bool,
    what: What,
}

enum What {
    Drill {
        plan: Option<String>,
        snapshots: Vec<usize>,
        is_disproof: bool,
        /// What it found, where that is against the snapshot: whether its bytes are damaged, and how it says so.
        found: Option<(bool, String)>,
    },
    Verify {
        /// Those it found sound, a bit for each.
        sound: Vec<u64>,
        harmed: Vec<usize>,
        share: Option<(u64, u64)>,
        /// Whether it says of no snapshot that its content is sound.
        is_blind: bool,
        /// `None`: of a later version of the program.
        report: Option<Box<VerifyReport>>,
    },
}

impl Digest {
    pub fn of(mut record: ReportRecord, existing: &Existing) -> Self {
        let (id, time, passed) = (record.id, record.time, record.passed);
        let what = match record.kind {
            ReportKind::Drill => What::Drill {
                snapshots: existing.numbers(record.snapshots.iter().copied()),
                is_disproof: select::is_disproof(&record),
                found: damage::found_by_drill(&record),
                plan: record.plan,
            },
            ReportKind::Verify => {
                // Said already, by the record.
                if let Some(sound) = record.document.get_mut("snapshots_sound").and_then(serde_json::Value::as_array_mut) {
                    *sound = Vec::new();
                }
                What::Verify {
                    sound: existing.bits(&record.snapshots),
                    harmed: existing.numbers(select::harmed(&record)),
                    share: select::share_of(&record),
                    is_blind: select::is_blind(&record),
                    report: VerifyReport::deserialize(&record.document).ok().map(Box::new),
                }
            }
        };
        Self { id, time, passed, what }
    }
}

/// What is known of a snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::ops) struct Judgement {
    /// As [`select::proven`], [`select::verified_at`] and [`damage::of_snapshot`].
    pub proven_at: Option<DateTime<Utc>>,
    pub verified_at: Option<DateTime<Utc>>,
    pub damaged: Option<KnownDamage>,
}

/// What all reports say.
#[derive(Debug, Default)]
pub(in crate::ops) struct Judged {
    by_id: HashMap<SnapshotId, Judgement>,
    /// How many reports there are.
    pub reports: u64,
    /// What stands, as [`damage::standing`] has it.
    standing: Vec<Damage>,
    /// Drills that nobody needs any more, with their plans; and verifications.
    over: Vec<(ReportId, Option<String>)>,
    /// Steps of the work: reports that were looked at, once for all of them or once for a snapshot.
    #[cfg(test)]
    steps: u64,
}

impl Judged {
    /// Reads all reports. An error for each that is damaged.
    ///
    /// # Errors
    /// When the store cannot be asked.
    pub fn read(repository: &Repository, existing: &Existing, now: DateTime<Utc>) -> Result<(Self, Vec<Error>)> {
        let (digests, damaged) = repository.sound_reports_as(&|record| Digest::of(record, existing))?;
        Ok((judge(digests, existing, now), damaged))
    }

    /// What is known of a snapshot; nothing of one that was not among those that exist.
    pub fn of(&self, id: SnapshotId) -> Judgement {
        self.by_id.get(&id).cloned().unwrap_or_default()
    }

    pub fn is_damaged(&self, id: SnapshotId) -> bool {
        self.by_id.get(&id).is_some_and(|judgement| judgement.damaged.is_some())
    }

    /// The accepted loss that all of what is known against a snapshot is: see [`damage::accepted`].
    pub fn accepted<'a>(&self, id: SnapshotId, ledger: &'a Ledger) -> Option<&'a AcceptedLoss> {
        damage::accepted(self.by_id.get(&id)?.damaged.as_ref()?, id, &self.standing, ledger)
    }

    /// Reports that nobody needs any more: drills of these plans, and verifications, which are of the whole repository.
    pub fn over(&self, plans: &BTreeSet<&str>) -> Vec<ReportId> {
        self.over.iter().filter(|(_, plan)| plan.as_deref().is_none_or(|plan| plans.contains(plan))).map(|(id, _)| *id).collect()
    }
}

/// What is followed of a snapshot from report to report.
#[derive(Clone, Default)]
struct Followed {
    proven: Option<DateTime<Utc>>,
    /// The report, by its number, that last completed a reading of all bytes, and when that was.
    verified: Option<(usize, DateTime<Utc>)>,
    /// The rotation: percent, last run, how many in a row.
    streak: Option<(u64, u64, u64)>,
    /// The last drill that says something of its content.
    drill: Option<usize>,
}

impl Followed {
    /// A verification that does not harm it, of this number and time.
    fn verify(&mut self, (number, time): (usize, DateTime<Utc>), is_blind: bool, share: Option<(u64, u64)>, is_sound: bool) {
        if is_blind {
            self.streak = None;
            return;
        }
        let Some((percent, run)) = share else { return };
        if !is_sound || percent == 0 {
            self.streak = None;
            return;
        }
        let in_a_row = match self.streak {
            Some((p, last, count)) if p == percent && last.checked_add(1) == Some(run) => count + 1,
            _ => 1,
        };
        self.streak = Some((percent, run, in_a_row));
        if in_a_row >= 100u64.div_ceil(percent) {
            self.verified = Some((number, self.verified.map_or(time, |(_, earlier)| earlier.max(time))));
        }
    }
}

/// Judges all snapshots by all reports. Pure.
pub(in crate::ops) fn judge(mut digests: Vec<Digest>, existing: &Existing, now: DateTime<Utc>) -> Judged {
    digests.sort_by_key(|digest| digest.id);
    let mut judged = Judged { reports: digests.len() as u64, ..Judged::default() };
    let mut followed: Vec<Followed> =
        existing.proven_before.iter().map(|proven| Followed { proven: *proven, ..Followed::default() }).collect();
    for (number, digest) in digests.iter().enumerate() {
        let is_misdated = select::is_misdated(digest.id, digest.time, now);
        match &digest.what {
            What::Drill { snapshots, is_disproof, found, .. } => {
                let is_good = digest.passed && !is_misdated;
                for snapshot in snapshots {
                    let followed = &mut followed[*snapshot];
                    if is_good {
                        followed.proven = followed.proven.max(Some(digest.time));
                    } else if *is_disproof {
                        followed.proven = None;
                    }
                    if is_good || found.is_some() {
                        followed.drill = Some(number);
                    }
                }
            }
            What::Verify { sound, harmed, share, is_blind, .. } => {
                let is_harmed: HashSet<usize> = harmed.iter().copied().collect();
                for (snapshot, followed) in followed.iter_mut().enumerate() {
                    if is_harmed.contains(&snapshot) {
                        (followed.proven, followed.verified, followed.streak) = (None, None, None);
                    } else if !is_misdated {
                        followed.verify((number, digest.time), *is_blind, *share, has(sound, snapshot));
                    }
                }
                #[cfg(test)]
                {
                    judged.steps += followed.len() as u64;
                }
            }
        }
    }
    let verifications = digests.iter().filter_map(|digest| match &digest.what {
        What::Verify { report, .. } => Some((digest.id, digest.time, digest.passed, report.as_deref())),
        What::Drill { .. } => None,
    });
    let standing = damage::standing_of(verifications, now);
    let mut found: HashMap<SnapshotId, &Damage> = HashMap::new();
    for damage in &standing {
        for id in &damage.finding.snapshots {
            let last = found.entry(*id).or_insert(damage);
            if damage.report >= last.report {
                *last = damage;
            }
        }
    }
    for (id, number) in &existing.numbers {
        let followed = &followed[*number];
        let verified_at = followed.verified.map(|(_, time)| time);
        let of_drill = followed.drill.map(|number| &digests[number]).and_then(|drill| match &drill.what {
            What::Drill { found: Some((is_damage, message)), .. } if !drill.passed => {
                let is_taken_back = *is_damage && followed.verified.is_some_and(|(verified, _)| digests[verified].id > drill.id);
                (!is_taken_back).then(|| KnownDamage::by_drill(drill.id, drill.time, message.clone()))
            }
            _ => None,
        });
        let damaged = found.get(id).map(|damage| damage.known()).into_iter().chain(of_drill).max_by_key(|known| known.report);
        judged.by_id.insert(*id, Judgement { proven_at: followed.proven, verified_at, damaged });
    }
    let verified: BTreeSet<usize> = followed.iter().filter_map(|followed| Some(followed.verified?.0)).collect();
    judged.over = over(&digests, &standing, &verified, now);
    judged.standing = standing;
    judged
}

/// Reports that nothing rests on. `verified`: the numbers of those that completed a reading of all bytes of some snapshot.
fn over(digests: &[Digest], standing: &[Damage], verified: &BTreeSet<usize>, now: DateTime<Utc>) -> Vec<(ReportId, Option<String>)> {
    let old = now - KEPT;
    let made = made(digests, now);
    let first = |damage: &Damage| {
        digests.binary_search_by_key(&damage.first, |digest| digest.id).map_or(DateTime::<Utc>::MIN_UTC, |number| made[number])
    };
    // From here on all verifications stay: what stands, and what once was found against a snapshot that exists (which took a proof back), is of them; so is
    // the last reading of all bytes.
    let mut from = standing.iter().map(first).fold(old, DateTime::min);
    let mut newest: BTreeMap<u64, usize> = BTreeMap::new();
    let mut drills: HashMap<(&str, bool), usize> = HashMap::new();
    let mut over = Vec::new();
    for (number, digest) in digests.iter().enumerate().rev() {
        match &digest.what {
            What::Drill { plan, snapshots, .. } => {
                let Some(plan) = plan else { continue };
                let later = drills.entry((plan.as_str(), digest.passed)).or_default();
                *later += 1;
                if *later > DRILLS && snapshots.is_empty() && made[number] < old {
                    over.push((digest.id, Some(plan.clone())));
                }
            }
            What::Verify { harmed, share, .. } => {
                if !harmed.is_empty() {
                    from = from.min(made[number]);
                }
                if let Some((percent, run)) = share {
                    // The next run of the rotation is the one after the greatest.
                    let last = newest.entry(*percent).or_insert(number);
                    if matches!(&digests[*last].what, What::Verify { share: Some((_, known)), .. } if run > known) {
                        *last = number;
                    }
                    if verified.contains(&number) {
                        // It is there: else the row would not be complete.
                        from = from.min(began(&digests[..=number], *percent, *run).map_or(DateTime::<Utc>::MIN_UTC, |first| made[first]));
                    }
                }
            }
        }
    }
    // One alone among those that are gone says nothing wrong if it found nothing.
    let found_something = |digest: &Digest| match &digest.what {
        What::Verify { report, .. } => report.as_ref().is_none_or(|report| report.all_findings().next().is_some()),
        What::Drill { .. } => false,
    };
    for last in newest.values().filter(|last| !digests[**last].passed && found_something(&digests[**last])) {
        from = from.min(made[*last]);
    }
    let newest: BTreeSet<usize> = newest.into_values().collect();
    let is_over = |(number, digest): &(usize, &Digest)| {
        matches!(digest.what, What::Verify { .. }) && made[*number] < from && !newest.contains(number)
    };
    over.extend(digests.iter().enumerate().filter(is_over).map(|(_, digest)| (digest.id, None)));
    over
}

/// When each was made at the latest. A time that is of the future, or earlier than that of one with a smaller id, says nothing: it is no later than the next one
/// whose time fits. Never less than that of one before.
fn made(digests: &[Digest], now: DateTime<Utc>) -> Vec<DateTime<Utc>> {
    let mut latest = DateTime::<Utc>::MIN_UTC;
    let fitting = digests.iter().map(|digest| {
        let fits = !select::is_misdated(digest.id, digest.time, now) && !select::is_to_come(latest, digest.time);
        fits.then(|| {
            latest = latest.max(digest.time);
            latest
        })
    });
    let fitting: Vec<Option<DateTime<Utc>>> = fitting.collect();
    let mut next = now;
    let mut made: Vec<DateTime<Utc>> = fitting
        .into_iter()
        .rev()
        .map(|time| {
            next = time.unwrap_or(next);
            next
        })
        .collect();
    made.reverse();
    made
}

/// The number of the report with which the rotation began that the last of these completed.
fn began(digests: &[Digest], percent: u64, run: u64) -> Option<usize> {
    let first = (percent, run.saturating_add(1).saturating_sub(100u64.div_ceil(percent.max(1))));
    digests.iter().rposition(|digest| matches!(&digest.what, What::Verify { share: Some(share), .. } if *share == first))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use crate::repo::share_covers;

    const DAY: TimeDelta = TimeDelta::days(1);

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_790_000_000, 0).unwrap()
    }

    fn existing(ids: &[SnapshotId]) -> Existing {
        let numbers = ids.iter().enumerate().map(|(number, id)| (*id, number)).collect();
        Existing { numbers, proven_before: vec![None; ids.len()] }
    }

    /// One that is read, and something else under its name.
    #[test]
    fn a_snapshot_that_is_listed_twice_is_one() {
        let ids = [SnapshotId::generate(now()), SnapshotId::generate(now())];
        let lost = |id| LostManifest { id: Some(id), error: Error::new(Kind::Damaged, "it is no manifest") };
        let existing = Existing::new(std::iter::empty::<&Manifest>(), &[lost(ids[0]), lost(ids[1]), lost(ids[0])]);
        assert_eq!((existing.numbers(ids), existing.proven_before.len()), (vec![0, 1], 2));
        assert!(ids.iter().all(|id| judge(Vec::new(), &existing, now()).of(*id).damaged.is_none()));
    }

    fn verify(
        time: DateTime<Utc>,
        share: Option<(u64, u64)>,
        sound: &[SnapshotId],
        findings: serde_json::Value,
        skipped: bool,
    ) -> ReportRecord {
        let id = ReportId::generate(time);
        let passed = !skipped && findings.as_array().unwrap().is_empty();
        let document = serde_json::json!({
            "schema": "lifeboat.verify/1", "id": id, "plan": "crm", "time": time, "depth": if share.is_some() { "data" } else { "structure" },
            "percent": share.map(|share| share.0), "run": share.map(|share| share.1), "findings": findings, "bytes_checked": 1, "objects_checked": 1,
            "snapshots_sound": sound, "skipped": if skipped { vec!["the content"] } else { vec![] }, "duration_ms": 1, "warnings": [],
        });
        ReportRecord { id, kind: ReportKind::Verify, time, plan: Some("crm".into()), snapshots: sound.to_vec(), passed, document }
    }

    fn drill(time: DateTime<Utc>, plan: &str, of: SnapshotId, exit: Option<&str>) -> ReportRecord {
        let document =
            serde_json::json!({ "exit": exit, "verdict": if exit.is_some() { "failed" } else { "passed" }, "reasons": ["a table"] });
        let (id, passed) = (ReportId::generate(time), exit.is_none());
        ReportRecord { id, kind: ReportKind::Drill, time, plan: Some(plan.into()), snapshots: vec![of], passed, document }
    }

    fn judged(reports: &[ReportRecord], existing: &Existing) -> Judged {
        judge(reports.iter().map(|report| Digest::of(report.clone(), existing)).collect(), existing, now())
    }

    /// Three years of a repository whose snapshots come and go, are damaged and found sound again: in one pass it is judged what looking at each snapshot alone
    /// says, and the same without the reports that go.
    #[test]
    fn what_goes_changes_no_judgement() {
        let mut went = 0;
        for seed in 0..120_u64 {
            let mut draws = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
            let mut draw = |below: u32| {
                let mut bytes = [0; 4];
                draws.fill(&mut bytes);
                u32::from_le_bytes(bytes) % below
            };
            let there: Vec<SnapshotId> = (0..4).map(|_| SnapshotId::generate(now())).collect();
            let gone: Vec<SnapshotId> = (0..3).map(|_| SnapshotId::generate(now())).collect();
            let all: Vec<SnapshotId> = there.iter().chain(&gone).copied().collect();
            let existing = existing(&there);
            let mut reports = Vec::new();
            let mut runs = BTreeMap::<u64, u64>::new();
            // Some have been left alone for long, some only lately.
            let (first, last) = (600 + draw(500), draw(450));
            // And of some a host's clock was wrong now and then, years ahead or behind.
            let is_skewed = seed % 3 == 0;
            for _ in 0..draw(60) {
                let time = now() - DAY * i32::try_from(last + draw(first - last)).unwrap();
                let one = all[usize::try_from(draw(7)).unwrap()];
                reports.push(match draw(8) {
                    0 => drill(time, "crm", one, None),
                    1 => drill(
                        time,
                        ["crm", "other"][usize::try_from(draw(2)).unwrap()],
                        one,
                        Some(["differs", "damaged", "no-space"][usize::try_from(draw(3)).unwrap()]),
                    ),
                    kind => {
                        let percent = [100, 50, 34][usize::try_from(draw(3)).unwrap()];
                        let share = (kind > 2).then(|| (percent, *runs.entry(percent).and_modify(|run| *run += 1).or_default()));
                        let pack = format!("packs/{0:02x}/{0:02x}{1}", draw(3) * 60, "00".repeat(31));
                        let harmed: Vec<SnapshotId> = all.iter().copied().filter(|_| draw(3) == 0).collect();
                        let bad = serde_json::json!([{ "object": pack, "kind": "damaged", "message": "bad", "snapshots": harmed }]);
                        let findings = if draw(6) == 0 { bad } else { serde_json::json!([]) };
                        let sound: Vec<SnapshotId> = all.iter().copied().filter(|id| draw(9) > 0 && !harmed.contains(id)).collect();
                        verify(time, share, &sound, findings, draw(12) == 0)
                    }
                });
            }
            // In the order of their runs, as they are made.
            reports.sort_by_key(|report| report.id);
            let true_times: HashMap<ReportId, DateTime<Utc>> = reports.iter().map(|report| (report.id, report.time)).collect();
            for report in reports.iter_mut().skip(1).filter(|_| is_skewed) {
                report.time += match draw(8) {
                    0 => DAY * 3650,
                    1 => -DAY * 2000,
                    _ => TimeDelta::zero(),
                };
            }
            let mut next = BTreeMap::<u64, u64>::new();
            for report in &mut reports {
                if let Some((percent, _)) = select::share_of(report) {
                    report.document["run"] = (*next.entry(percent).and_modify(|run| *run += 1).or_default()).into();
                }
            }
            let of_all = judged(&reports, &existing);
            let standing = damage::standing(&reports, None, now());
            for id in &there {
                let alone = Judgement {
                    proven_at: select::proven_at(&reports, *id, now()),
                    verified_at: select::verified_at(&reports, *id, now()),
                    damaged: damage::of_snapshot(&reports, &standing, *id, now()),
                };
                assert_eq!(of_all.of(*id), alone, "seed {seed}");
            }
            let over: HashSet<ReportId> = of_all.over(&BTreeSet::from(["crm", "other"])).into_iter().collect();
            went += over.len();
            let left: Vec<ReportRecord> = reports.iter().filter(|report| !over.contains(&report.id)).cloned().collect();
            let of_left = judged(&left, &existing);
            there.iter().for_each(|id| assert_eq!(of_left.of(*id), of_all.of(*id), "seed {seed}: {id}"));
            assert_eq!(damage::standing(&left, None, now()), standing, "seed {seed}");
            let newest = |reports: &[ReportRecord], percent: u64| {
                reports.iter().filter_map(select::share_of).filter(|share| share.0 == percent).map(|share| share.1).max()
            };
            [100, 50, 34].into_iter().for_each(|percent| assert_eq!(newest(&left, percent), newest(&reports, percent), "seed {seed}"));
            assert!(over.iter().all(|id| now() - true_times[id] > KEPT), "seed {seed}");
            if !is_skewed {
                assert!(judged(&left, &existing).over(&BTreeSet::from(["crm", "other"])).is_empty(), "seed {seed}: once is enough");
            }
        }
        assert!(went > 300, "{went} reports went");
        assert!(share_covers(&format!("packs/00/00{}", "00".repeat(31)), 50, 0), "packs are in shares");
    }

    /// Each report is read once, and each snapshot looked at once for each: not each report again for each snapshot.
    #[test]
    fn work_and_memory_follow_what_there_is() {
        const SNAPSHOTS: usize = 2_000;
        const VERIFICATIONS: usize = 365;
        let ids: Vec<SnapshotId> = (0..SNAPSHOTS).map(|_| SnapshotId::generate(now())).collect();
        let existing = existing(&ids);
        let one = verify(now(), Some((100, 0)), &ids, serde_json::json!([]), false);
        let digests: Vec<Digest> = (0..VERIFICATIONS)
            .map(|day| {
                let mut record = one.clone();
                (record.time, record.id) = (now() - DAY * i32::try_from(day).unwrap(), ReportId::generate(now()));
                Digest::of(record, &existing)
            })
            .collect();
        for digest in &digests {
            let What::Verify { sound, report: Some(report), .. } = &digest.what else { panic!("a verification") };
            assert_eq!((sound.len(), report.snapshots_sound.capacity()), (SNAPSHOTS.div_ceil(64), 0), "a bit for each snapshot");
        }
        let judged = judge(digests, &existing, now());
        assert_eq!(judged.steps, (SNAPSHOTS * VERIFICATIONS) as u64);
        assert!(ids.iter().all(|id| judged.of(*id).verified_at == Some(now())));
    }
}

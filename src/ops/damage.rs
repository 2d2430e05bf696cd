//! Damage that stands: what a verification found and no later one that looked as deep has found sound again. Pure.
//!
//! Whether a later verification takes a finding back depends on what it looked at. What the check of the structure sees, every verification
//! sees again. What only reading the stored bytes shows (a pack or a piece of a log whose bytes were changed) is taken back by nothing less than
//! reading these very bytes again, with a key that opens them. A finding is also over when none of the snapshots that it harmed exists any more, and
//! one of a piece of a log when that is gone.
//!
//! Which one is later is told by the ids of reports, which grow with each that is begun, and not by clocks. A report that is dated in the future takes
//! nothing back (see [`select::is_misdated`]).

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::error::{Kind, Result};
use crate::id::{Name, ReportId, SnapshotId};
use crate::ops::select;
use crate::ops::verify::VerifyReport;
use crate::repo::{AcceptedLoss, Finding, Ledger, Manifest, ReportKind, ReportRecord, Repository, is_piece_key, share_covers};

/// One finding that stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    pub finding: Finding,
    /// The last verification that found it, and when.
    pub report: ReportId,
    pub time: DateTime<Utc>,
    /// When the first of those verifications found it that did so without one between that took it back.
    pub since: DateTime<Utc>,
    /// That one.
    pub(in crate::ops) first: ReportId,
    /// Only reading the object's stored bytes can show that it is sound again.
    deep: bool,
    /// A snapshot that is gone although a journal knows that it was committed, and its plan: only who knows that too can see it there again.
    vanished: Option<(Name, SnapshotId)>,
}

/// Damage that a snapshot is known to have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownDamage {
    /// What found it: `verify` or `drill`.
    pub found_by: String,
    pub report: ReportId,
    pub time: DateTime<Utc>,
    pub message: String,
}

impl Damage {
    /// The key of the piece of a log whose bytes are damaged, where this is about one: when it is gone (it is too old, or a later one holds what it held), this
    /// is over. Where it leaves a hole, that is a finding itself.
    #[must_use]
    pub fn piece(&self) -> Option<&str> {
        (self.finding.kind == "damaged" && is_piece_key(&self.finding.object)).then_some(self.finding.object.as_str())
    }

    /// Whether it harms only snapshots in whose place another one stands that nothing standing harms, or that are excused: damage that needs nobody.
    /// `replaced`: see [`replaced_soundly`].
    #[must_use]
    pub fn is_settled(&self, replaced: &BTreeSet<SnapshotId>, excused: &Excused) -> bool {
        let Finding { object, snapshots, .. } = &self.finding;
        !snapshots.is_empty() && snapshots.iter().all(|id| replaced.contains(id) || excused.has(*id, object))
    }

    /// As what is known against a snapshot that it harms.
    pub(in crate::ops) fn known(&self) -> KnownDamage {
        KnownDamage {
            found_by: "verify".into(),
            report: self.report,
            time: self.time,
            message: format!("{} is {}: {}", self.finding.object, self.finding.kind, self.finding.message),
        }
    }
}

impl KnownDamage {
    pub(in crate::ops) fn by_drill(report: ReportId, time: DateTime<Utc>, message: String) -> Self {
        Self { found_by: "drill".into(), report, time, message }
    }

    /// In one line.
    #[must_use]
    pub fn describe(&self) -> String {
        format!("{} (found by {} at {}, report {})", self.message, self.found_by, select::moment(self.time), self.report)
    }
}

/// Snapshots of which nobody waits that what they lost is put right.
pub struct Excused {
    /// Those whose manifests can be read.
    readable: BTreeSet<SnapshotId>,
    /// Those that nobody can restore any more.
    destroyed: BTreeSet<SnapshotId>,
    ledger: Ledger,
}

impl Excused {
    /// By the repository's ledger (one that cannot be read is a finding elsewhere, and excuses nothing). `manifests`: all that can be read.
    ///
    /// # Errors
    /// When the store cannot be asked.
    pub fn of(repository: &Repository, manifests: &[Manifest]) -> Result<Self> {
        let destroyed = manifests.iter().filter(|manifest| repository.destroyed_at(manifest).is_some());
        Ok(Self {
            readable: manifests.iter().map(|manifest| manifest.id).collect(),
            destroyed: destroyed.map(|manifest| manifest.id).collect(),
            ledger: repository.ledger_or_none()?,
        })
    }

    /// Whether it was accepted that this snapshot lost what this object held, or its key was destroyed, so that there is nothing to lose. Who accepts that a
    /// part is lost can read the rest: where the manifest cannot be read any more, all is lost, and that nobody has accepted.
    #[must_use]
    pub fn has(&self, id: SnapshotId, object: &str) -> bool {
        self.is_destroyed(id) || (self.readable.contains(&id) && self.ledger.is_accepted(id, object))
    }

    /// Whether nobody can restore it any more, because its key was destroyed.
    #[must_use]
    pub fn is_destroyed(&self, id: SnapshotId) -> bool {
        self.destroyed.contains(&id)
    }
}

/// The accepted loss that all of what is known against a snapshot is; `None`: something else is known against it. A drill that found damage after the last
/// verification that did may have met another one. `standing`: what stands, as [`standing`] has it.
pub(in crate::ops) fn accepted<'a>(
    known: &KnownDamage,
    id: SnapshotId,
    standing: &[Damage],
    ledger: &'a Ledger,
) -> Option<&'a AcceptedLoss> {
    let mut harms = standing.iter().filter(|damage| damage.finding.snapshots.contains(&id)).map(|damage| damage.finding.object.as_str());
    let loss = ledger.accepted().get(&id)?;
    (known.found_by == "verify" && harms.all(|object| loss.objects.contains(object))).then_some(loss)
}

/// Damaged snapshots in whose place others stand, which none of these findings harms.
#[must_use]
pub fn replaced_soundly(standing: &[Damage], manifests: &[Manifest]) -> BTreeSet<SnapshotId> {
    let harmed: BTreeSet<SnapshotId> = standing.iter().flat_map(|damage| damage.finding.snapshots.iter().copied()).collect();
    manifests.iter().filter(|manifest| !harmed.contains(&manifest.id)).filter_map(Manifest::replaces).collect()
}

/// What is known against a snapshot that exists, the last of it: a finding that stands (`standing` is of the same reports), or a drill of
/// it that found damage or a difference, unless one passed since. Damage that a drill found is taken back also by a verification of all
/// its stored bytes; a difference is not, since the bytes may be as they were stored.
#[must_use]
pub fn of_snapshot(reports: &[impl Borrow<ReportRecord>], standing: &[Damage], id: SnapshotId, now: DateTime<Utc>) -> Option<KnownDamage> {
    let found = standing.iter().filter(|damage| damage.finding.snapshots.contains(&id)).max_by_key(|damage| damage.report);
    let found = found.map(Damage::known);
    found.into_iter().chain(of_drill(reports, id, now)).max_by_key(|known| known.report)
}

/// What a drill found against its snapshot: whether that is damage of stored bytes (or a difference, which such need not have), and how it says so. `None`: it says
/// nothing of the content (it lacked room), so neither finds nor takes back; or it passed.
pub(in crate::ops) fn found_by_drill(record: &ReportRecord) -> Option<(bool, String)> {
    let text = |pointer: &str| record.document.pointer(pointer).and_then(serde_json::Value::as_str);
    let exit = text("/exit")?;
    let is_damage = exit == Kind::Damaged.word();
    if !is_damage && exit != Kind::Differs.word() {
        return None;
    }
    Some((is_damage, text("/failure/message").or_else(|| text("/reasons/0")).unwrap_or("a drill of it failed").to_owned()))
}

fn of_drill(reports: &[impl Borrow<ReportRecord>], id: SnapshotId, now: DateTime<Utc>) -> Option<KnownDamage> {
    let is_good = |record: &ReportRecord| record.passed && !select::is_misdated(record.id, record.time, now);
    let told = |record: &&ReportRecord| {
        record.kind == ReportKind::Drill && record.snapshots.contains(&id) && (is_good(record) || found_by_drill(record).is_some())
    };
    let last =
        reports.iter().map(Borrow::<ReportRecord>::borrow).filter(told).max_by_key(|record| record.id).filter(|record| !record.passed)?;
    let (is_damage, message) = found_by_drill(last)?;
    if is_damage && select::verified(reports, id, now).is_some_and(|(verified, _)| verified > last.id) {
        return None;
    }
    Some(KnownDamage::by_drill(last.id, last.time, message))
}

/// Findings that stand, by object. `existing`: every snapshot of the repository; `None`: not all could be listed, so none counts as gone.
#[must_use]
pub fn standing(reports: &[ReportRecord], existing: Option<&BTreeSet<SnapshotId>>, now: DateTime<Utc>) -> Vec<Damage> {
    let mut ordered: Vec<&ReportRecord> = reports.iter().filter(|report| report.kind == ReportKind::Verify).collect();
    ordered.sort_by_key(|report| report.id);
    let decoded: Vec<Option<VerifyReport>> = ordered.iter().map(|record| VerifyReport::deserialize(&record.document).ok()).collect();
    let told = |(record, report): (&&ReportRecord, _)| (record.id, record.time, record.passed, report);
    let standing = standing_of(ordered.iter().zip(decoded.iter().map(Option::as_ref)).map(told), now);
    standing.into_iter().filter(|damage| existing.is_none_or(|existing| !is_gone(damage, existing))).collect()
}

/// The same of verifications in their order: id, time, whether it passed, and the document, where this version can read it.
pub(in crate::ops) fn standing_of<'a>(
    verifications: impl Iterator<Item = (ReportId, DateTime<Utc>, bool, Option<&'a VerifyReport>)>,
    now: DateTime<Utc>,
) -> Vec<Damage> {
    let mut standing: BTreeMap<(String, String), Damage> = BTreeMap::new();
    for (id, time, passed, report) in verifications {
        let Some(report) = report else {
            if !passed {
                let damage = unreadable(id, time);
                standing.insert((damage.finding.object.clone(), damage.finding.kind.clone()), damage);
            }
            continue;
        };
        if !select::is_misdated(id, time, now) {
            standing.retain(|_, damage| !takes_back(report, damage));
        }
        for finding in report.all_findings() {
            let key = (finding.object.clone(), finding.kind.clone());
            let by_reading = match finding.kind.as_str() {
                "damaged" => is_pack(&finding.object) || is_piece_key(&finding.object),
                // Of a piece, every verification sees the hole.
                "missing" => is_pack(&finding.object),
                _ => false,
            };
            let earlier = standing.get(&key);
            let deep = (by_reading && reads(report, &finding.object)) || earlier.is_some_and(|earlier| earlier.deep);
            let (first, since) = earlier.map_or((id, time), |earlier| (earlier.first, earlier.since));
            let gone = finding.snapshots.first().filter(|_| finding.kind == "missing");
            let vanished = gone.and_then(|id| Some((report.vanished.get(id)?.clone(), *id)));
            standing.insert(key, Damage { finding: finding.clone(), report: id, time, since, first, deep, vanished });
        }
    }
    standing.into_values().collect()
}

/// A verification of a later version of the program that did not pass: what it found is not known here, but that it found something is.
fn unreadable(id: ReportId, time: DateTime<Utc>) -> Damage {
    let finding = Finding {
        object: format!("reports/{id}"),
        kind: "unknown".into(),
        message: "this verification did not pass, and what it found cannot be read by this version".into(),
        snapshots: Vec::new(),
    };
    Damage { finding, report: id, time, since: time, first: id, deep: true, vanished: None }
}

fn takes_back(report: &VerifyReport, damage: &Damage) -> bool {
    if report.all_findings().any(|finding| finding.object == damage.finding.object) {
        return false;
    }
    // Who does not know what was committed does not miss it.
    if let Some((plan, id)) = &damage.vanished {
        return report.witnessed.get(plan).is_some_and(|oldest| oldest <= id);
    }
    // A key that opens no data saw that bytes fit their names, not that their content is sound.
    !damage.deep || (report.unchecked().next().is_none() && reads(report, &damage.finding.object))
}

/// Whether a verification read the stored bytes of this object. What is no pack and no piece of a log stands for more than one object: all must be read.
fn reads(report: &VerifyReport, object: &str) -> bool {
    match (report.percent, report.run) {
        (Some(percent), Some(run)) if is_pack(object) || is_piece_key(object) => share_covers(object, percent, run),
        (Some(percent), _) => percent >= 100,
        (None, _) => false,
    }
}

fn is_pack(object: &str) -> bool {
    object.starts_with("packs/")
}

/// Packs only: that a manifest is not there is a finding itself.
fn is_gone(damage: &Damage, existing: &BTreeSet<SnapshotId>) -> bool {
    let harmed = &damage.finding.snapshots;
    is_pack(&damage.finding.object) && !harmed.is_empty() && harmed.iter().all(|id| !existing.contains(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(hour: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_790_000_000 + hour * 3600, 0).unwrap()
    }

    /// A pack of bucket `first`.
    fn pack(first: u8) -> String {
        format!("packs/{first:02x}/{first:02x}{}", "00".repeat(31))
    }

    fn finding(object: &str, kind: &str, harmed: &[SnapshotId]) -> Finding {
        Finding { object: object.into(), kind: kind.into(), message: "bad".into(), snapshots: harmed.to_vec() }
    }

    fn verify(hour: i64, share: Option<(u8, u64)>, findings: &[Finding]) -> ReportRecord {
        let id = ReportId::generate(time(hour));
        let report = VerifyReport {
            schema: "lifeboat.verify/1".into(),
            id,
            plan: None,
            time: time(hour),
            depth: if share.is_some() { "data" } else { "structure" }.into(),
            percent: share.map(|share| share.0),
            run: share.map(|share| share.1),
            findings: findings.to_vec(),
            replaced: Vec::new(),
            accepted: Vec::new(),
            bytes_checked: 0,
            objects_checked: 0,
            snapshots_sound: Vec::new(),
            witnessed: BTreeMap::new(),
            vanished: BTreeMap::new(),
            packs_due: None,
            packs: None,
            skipped: Vec::new(),
            destroyed: Vec::new(),
            duration_ms: 0,
            warnings: Vec::new(),
        };
        let (passed, document) = (report.exit().is_none(), serde_json::to_value(report).unwrap());
        ReportRecord { id, kind: ReportKind::Verify, time: time(hour), plan: None, snapshots: Vec::new(), passed, document }
    }

    /// Later than all here.
    fn now() -> DateTime<Utc> {
        time(100)
    }

    fn count(reports: &[ReportRecord]) -> usize {
        standing(reports, None, now()).len()
    }

    #[test]
    fn damage_in_a_piece_of_a_log_stands_until_that_piece_is_read_again() {
        let stretch = |start: u64| format!("{:016x}-{start:016x}-{:016x}", 1, start + 16);
        let piece = format!("logs/{}/pieces/{}", "ab".repeat(16), stretch(32));
        let due = (0..4).find(|run| share_covers(&piece, 25, *run)).unwrap();
        let bad = finding(&piece, "damaged", &[]);
        for share in [(100, 0), (25, due)] {
            let mut reports = vec![verify(1, Some(share), std::slice::from_ref(&bad))];
            assert_eq!(standing(&reports, None, now())[0].piece(), Some(piece.as_str()));
            reports.push(verify(2, None, &[]));
            reports.extend((1..4).map(|later| verify(2 + i64::try_from(later).unwrap(), Some((25, due + later)), &[])));
            assert_eq!(count(&reports), 1, "labels, and three quarters that it is not in");
            reports.push(verify(6, Some((25, due + 4)), &[]));
            assert_eq!(count(&reports), 0, "its own quarter was read");
        }
        // What the check of labels has found, or of what is there, the next one finds again.
        let hole = finding(&piece, "missing", &[]);
        assert_eq!(count(&[verify(1, None, std::slice::from_ref(&bad)), verify(2, None, &[])]), 0);
        let holes = [verify(1, Some((100, 0)), std::slice::from_ref(&hole)), verify(2, None, &[])];
        assert_eq!(count(&holes), 0);
        assert_eq!(standing(&holes[..1], None, now())[0].piece(), None, "a hole is there because nothing is");
    }

    /// One report was dated by a clock that was ten years ahead, or by one that is behind.
    #[test]
    fn what_comes_later_is_told_by_ids_and_not_by_clocks() {
        let bad = finding(&pack(60), "damaged", &[]);
        let mut after = None;
        let mut at = |hour: i64, dated: i64, findings: &[Finding]| {
            let mut record = verify(dated, Some((100, 0)), findings);
            record.id = ReportId::generate_after(time(dated), after.max(Some(ReportId::generate(time(hour)))));
            after = Some(record.id);
            record
        };
        let (years, now) = (10 * 366 * 24, time(100));
        // Sound, by the clock of 2036; then the pack rots.
        let future = at(1, years, &[]);
        let found = at(2, 2, std::slice::from_ref(&bad));
        let stands =
            |reports: &[&ReportRecord], now| standing(&reports.iter().map(|record| (*record).clone()).collect::<Vec<_>>(), None, now).len();
        assert_eq!(stands(&[&future, &found], now), 1);
        assert_eq!(stands(&[&future, &found], time(2 * years)), 1, "nor when that moment has come");
        // Found by a host whose clock is behind that of the one that found nothing before.
        let (sound, behind) = (at(5, 5, &[]), at(6, 3, std::slice::from_ref(&bad)));
        assert_eq!(stands(&[&sound, &behind], now), 1);
        assert_eq!(stands(&[&behind, &at(7, 2, &[])], now), 0, "and it is taken back by one whose clock is behind");
        // Versions that named reports by the clock alone: what is of the future takes nothing back, and finds what it finds.
        let named = |dated: i64, findings: &[Finding]| verify(dated, Some((100, 0)), findings);
        assert_eq!(stands(&[&named(1, std::slice::from_ref(&bad)), &named(years, &[])], now), 1);
        assert_eq!(stands(&[&named(years, std::slice::from_ref(&bad)), &named(2, &[])], now), 1);
        assert_eq!(stands(&[&named(years, std::slice::from_ref(&bad)), &at(9, 9, &[])], now), 0, "the next one has a greater id");
    }

    #[test]
    fn a_snapshot_that_vanished_is_missed_until_somebody_who_knows_of_it_sees_it() {
        let (crm, other) = (Name::new("crm").unwrap(), Name::new("other").unwrap());
        let id = SnapshotId::generate(time(0));
        let gone = finding("snapshots/ab/one", "missing", &[id]);
        let with = |mut record: ReportRecord, witnessed: &[(&Name, SnapshotId)], vanished: bool| {
            record.document["witnessed"] = serde_json::json!(witnessed.iter().copied().collect::<BTreeMap<_, _>>());
            if vanished {
                record.document["vanished"] = serde_json::json!({ id.to_string(): crm });
            }
            record
        };
        let mut reports = vec![with(verify(1, None, std::slice::from_ref(&gone)), &[(&crm, id)], true)];
        assert_eq!(count(&reports), 1);
        // On a machine without the journal, or with one of other plans.
        reports.push(verify(2, Some((100, 0)), &[]));
        reports.push(with(verify(3, Some((100, 1)), &[]), &[(&other, id)], false));
        // A journal of later runs only: it is new, or has forgotten.
        reports.push(with(verify(3, None, &[]), &[(&crm, SnapshotId::generate(time(2)))], false));
        assert_eq!(count(&reports), 1, "who does not know of it cannot miss it");
        reports.push(with(verify(4, None, &[]), &[(&other, id), (&crm, id)], false));
        assert_eq!(count(&reports), 0, "it was put back, or removed on purpose");
        // What the chain tells of is told by any verification.
        let broken = [verify(5, None, std::slice::from_ref(&gone)), verify(6, None, &[])];
        assert_eq!(count(&broken), 0);
    }

    #[test]
    fn a_shallower_verification_takes_no_damage_back() {
        let bad = finding(&pack(60), "damaged", &[]);
        let mut reports = vec![verify(1, Some((100, 0)), std::slice::from_ref(&bad)), verify(2, None, &[])];
        assert_eq!(count(&reports), 1, "the structure says nothing of stored bytes");
        reports.push(verify(3, Some((50, 0)), &[]));
        assert_eq!(count(&reports), 1, "the other half was read");
        let mut blind = verify(4, Some((100, 1)), &[]);
        blind.document["skipped"] = serde_json::json!(["the content was not opened"]);
        reports.push(blind);
        assert_eq!(count(&reports), 1, "a key that opens no data");
        let mut of_destroyed = reports.clone();
        of_destroyed[3].document["destroyed"] = of_destroyed[3].document["skipped"].clone();
        assert_eq!(count(&of_destroyed), 0, "what nobody can open says nothing of the rest");
        reports.push(verify(5, Some((50, 1)), &[]));
        assert_eq!(count(&reports), 0, "its own half was read and is sound");
        reports.push(verify(6, None, &[finding(&pack(60), "not-indexed", &[])]));
        assert_eq!(count(&reports), 1);
        reports.push(verify(7, None, &[]));
        assert_eq!(count(&reports), 0, "the structure is seen by every verification");
    }

    #[test]
    fn damage_found_by_the_structure_stays_deep_once_it_was_found_deep() {
        let bad = finding(&pack(1), "damaged", &[]);
        let reports =
            [verify(1, Some((100, 0)), std::slice::from_ref(&bad)), verify(2, None, std::slice::from_ref(&bad)), verify(3, None, &[])];
        assert_eq!(count(&reports), 1);
    }

    #[test]
    fn damage_to_nothing_that_still_exists_is_over() {
        let (gone, there) = (SnapshotId::generate(time(0)), SnapshotId::generate(time(0)));
        let existing: BTreeSet<SnapshotId> = [there].into();
        let of = |finding: Finding| standing(&[verify(1, Some((100, 0)), &[finding])], Some(&existing), now()).len();
        assert_eq!(of(finding(&pack(1), "damaged", &[gone])), 0);
        assert_eq!(of(finding(&pack(1), "damaged", &[gone, there])), 1);
        assert_eq!(of(finding("snapshots/x/y", "chain-broken", &[gone])), 1, "that it is gone is the finding");
    }

    #[test]
    fn what_a_later_version_found_is_not_nothing() {
        let mut strange = verify(1, Some((100, 0)), &[]);
        (strange.passed, strange.document) = (false, serde_json::json!({ "schema": "lifeboat.verify/9" }));
        assert_eq!(count(&[strange.clone(), verify(2, None, &[]), verify(3, Some((99, 0)), &[])]), 1);
        assert_eq!(count(&[strange, verify(2, Some((100, 0)), &[])]), 0);
    }
}

//! Choosing a snapshot, and what is known to be proven. Pure: manifests and reports in, one manifest or a reason out.

use std::borrow::Borrow;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};

use crate::error::{Error, Kind, Result};
use crate::id::{ReportId, SnapshotId};
use crate::ops::Verdict;
use crate::repo::{Manifest, ReportKind, ReportRecord};
use crate::source::postgres::lsn::Lsn;

/// By how much the clocks of hosts may differ without being told.
pub const CLOCK_TOLERANCE: TimeDelta = TimeDelta::minutes(5);

/// Which snapshot is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// The last one committed. Where the chain of manifests does not say which that is, the newest by content time: a clock that was
    /// wrong once must not make an old snapshot the latest for ever.
    Latest,
    /// By id or a unique beginning of one (any case).
    Snapshot(String),
    /// The newest whose content is not later than this.
    At(DateTime<Utc>),
    /// The newest that a drill proved and nothing disproved since.
    LatestProven,
    /// One of those within `window` before now, each equally likely; the same seed chooses the same of the same list.
    Random { seed: u64, window: Option<Duration> },
    /// A moment of the log that continues snapshots; `timeline`: the one to follow instead of the newest.
    Along { wanted: Wanted, timeline: Option<u32> },
}

/// A moment of a continuous log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    Latest,
    Time(DateTime<Utc>),
    /// What was written before this position.
    Lsn(Lsn),
    /// Just after this transaction.
    Xid(u64),
    RestorePoint(String),
    /// As soon as the newest snapshot is consistent.
    Immediate,
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => f.write_str("the newest moment"),
            Self::Time(time) => f.write_str(&time.to_rfc3339_opts(SecondsFormat::AutoSi, true)),
            Self::Lsn(lsn) => write!(f, "log position {lsn}"),
            Self::Xid(xid) => write!(f, "transaction {xid}"),
            Self::RestorePoint(name) => write!(f, "the restore point {name:?}"),
            Self::Immediate => f.write_str("the end of the base backup"),
        }
    }
}

/// Chooses among the manifests of one plan (in any order). `reports` are all drill and verify reports; `now` bounds what exists.
///
/// # Errors
/// `NoRecoveryPoint` lists the nearest that are available; `Usage` when a beginning of an id is ambiguous or not an id at all.
pub fn choose<'a>(manifests: &'a [Manifest], reports: &[ReportRecord], choice: &Choice, now: DateTime<Utc>) -> Result<&'a Manifest> {
    let Some(latest) = latest(manifests) else {
        return Err(Error::new(Kind::NoRecoveryPoint, "find a snapshot: there is none yet").hint("run `lifeboat backup` first"));
    };
    match choice {
        Choice::Latest => Ok(latest),
        Choice::Snapshot(text) => by_id(manifests, text),
        Choice::At(moment) => at(manifests, *moment, now),
        Choice::LatestProven => latest_proven(manifests, reports, now).map(|(manifest, _)| manifest).ok_or_else(|| {
            Error::new(Kind::NoRecoveryPoint, "find a proven snapshot: no drill has passed on any that still exist")
                .hint(format!("run `lifeboat drill run`, or restore what is there unproven; the latest is {}", describe(latest)))
        }),
        Choice::Random { seed, window } => random(manifests, *seed, *window, now),
        Choice::Along { wanted, .. } => Err(Error::new(Kind::Usage, format!("recover to {wanted}: that needs a continuous log"))
            .hint("a log is kept of PostgreSQL sources; of several sources name one with --source; without a log, use --at or --snapshot")),
    }
}

/// The last one committed, see [`Choice::Latest`]; `None` of an empty list.
#[must_use]
pub fn latest(manifests: &[Manifest]) -> Option<&Manifest> {
    // Copies of one repository may have been made in any order: what counts among them is the order there.
    let origin = |m: &Manifest| m.copied_from.as_ref().map(|from| (from.repository.clone(), from.place()));
    let origins: HashMap<SnapshotId, (String, SnapshotId)> = manifests.iter().filter_map(|m| Some((m.id, origin(m)?))).collect();
    let mut newest: HashMap<&str, SnapshotId> = HashMap::new();
    for (repository, snapshot) in origins.values() {
        let newest = newest.entry(repository).or_insert(*snapshot);
        *newest = (*newest).max(*snapshot);
    }
    let siblings = |a: SnapshotId, b: SnapshotId| origins.get(&a).zip(origins.get(&b)).is_some_and(|(a, b)| a.0 == b.0);
    // One that was brought back stands where the damaged one stood, however late it was committed: it comes after nothing by itself.
    let replaces: HashMap<SnapshotId, SnapshotId> = manifests.iter().filter_map(|m| Some((m.id, m.replaces()?))).collect();
    let parents: HashMap<SnapshotId, Vec<SnapshotId>> =
        manifests.iter().map(|m| (m.id, m.parents.iter().map(|p| p.id).collect())).collect();
    let mut superseded: HashSet<SnapshotId> = HashSet::new();
    for child in manifests.iter().filter(|m| m.replaces().is_none()) {
        let mut before: Vec<SnapshotId> = parents.get(&child.id).cloned().unwrap_or_default();
        while let Some(parent) = before.pop() {
            let is_new = !siblings(child.id, parent) && superseded.insert(parent);
            if is_new && replaces.contains_key(&parent) {
                before.extend(parents.get(&parent).into_iter().flatten());
            }
        }
    }
    let stands_for_an_older_one: Vec<SnapshotId> =
        replaces.iter().filter(|(_, damaged)| superseded.contains(damaged)).map(|(id, _)| *id).collect();
    superseded.extend(stands_for_an_older_one);
    superseded.extend(replaces.values());
    let is_older_copy =
        |m: &Manifest| origins.get(&m.id).is_some_and(|(repository, snapshot)| newest.get(repository.as_str()) > Some(snapshot));
    manifests.iter().max_by_key(|m| (!superseded.contains(&m.id) && !is_older_copy(m), m.time, m.id))
}

/// Whether a moment has not been yet, by more than clocks differ.
#[must_use]
pub fn is_to_come(moment: DateTime<Utc>, now: DateTime<Utc>) -> bool {
    moment - now > CLOCK_TOLERANCE
}

/// Whether a report is dated in the future, or under a name that is no clock's: when it was made nobody knows. Which reports came before it is told by ids,
/// but of versions that went by the clock alone they do not tell that either: what such a report found sound does not count, what it found wrong does.
#[must_use]
pub fn is_misdated(id: ReportId, time: DateTime<Utc>, now: DateTime<Utc>) -> bool {
    !id.is_of_a_clock() || is_to_come(time, now)
}

/// Where the clock of the host that made a snapshot was behind: the moment that had been by then at the least. Ids of a plan grow with each backup, so that of
/// such a snapshot is later than its host believed. Of copies that cannot be told by themselves.
#[must_use]
pub fn clock_was_behind(manifest: &Manifest, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let at_least = manifest.id.generated()?;
    // Behind one that is of the future, all that come are right.
    let is_behind = is_to_come(at_least, manifest.started) && !is_to_come(at_least, now);
    (is_behind && manifest.copied_from.is_none()).then_some(at_least)
}

/// The newest snapshot that is proven, and since when; see [`proven_at`].
#[must_use]
pub fn latest_proven<'a>(
    manifests: &'a [Manifest],
    reports: &[impl Borrow<ReportRecord>],
    now: DateTime<Utc>,
) -> Option<(&'a Manifest, DateTime<Utc>)> {
    by_age(manifests).into_iter().rev().find_map(|manifest| Some((manifest, proven(reports, manifest, now)?)))
}

/// When a drill last proved this snapshot, unless a later drill of it failed or a later verification found that it is harmed. A drill that
/// this machine or the store kept from finishing says nothing either way. Later is what has the greater id.
#[must_use]
pub fn proven_at(reports: &[impl Borrow<ReportRecord>], id: SnapshotId, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    proven_since(reports, id, None, now)
}

fn proven_since(
    reports: &[impl Borrow<ReportRecord>],
    id: SnapshotId,
    before: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
) -> Option<DateTime<Utc>> {
    in_order(reports, id).into_iter().fold(before, |proven, report| match report.kind {
        ReportKind::Drill if report.passed && is_misdated(report.id, report.time, now) => proven,
        ReportKind::Drill if report.passed => proven.max(Some(report.time)),
        ReportKind::Drill if is_disproof(report) => None,
        ReportKind::Verify if harms(report, id) => None,
        _ => proven,
    })
}

/// The same of a snapshot or a copy of one: what had been proven of the original counts, until something is found against the copy.
#[must_use]
pub fn proven(reports: &[impl Borrow<ReportRecord>], manifest: &Manifest, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    proven_since(reports, manifest.id, manifest.copied_from.as_ref().and_then(|from| from.proven_at), now)
}

/// When all stored bytes of this snapshot were last found sound: by one full verification, or by as many rotating shares in a row as
/// cover everything. A later finding that harms it takes that back.
#[must_use]
pub fn verified_at(reports: &[impl Borrow<ReportRecord>], id: SnapshotId, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    verified(reports, id, now).map(|(_, time)| time)
}

/// The same with the report that completed it.
pub(in crate::ops) fn verified(
    reports: &[impl Borrow<ReportRecord>],
    id: SnapshotId,
    now: DateTime<Utc>,
) -> Option<(ReportId, DateTime<Utc>)> {
    let mut verified: Option<(ReportId, DateTime<Utc>)> = None;
    // The rotation being followed: percent, last run, how many in a row.
    let mut streak: Option<(u64, u64, u64)> = None;
    for report in in_order(reports, id) {
        if report.kind != ReportKind::Verify {
            continue;
        }
        if harms(report, id) {
            (verified, streak) = (None, None);
            continue;
        }
        if is_misdated(report.id, report.time, now) {
            continue;
        }
        if is_blind(report) {
            streak = None;
            continue;
        }
        let Some((percent, run)) = share_of(report) else { continue };
        if !report.snapshots.contains(&id) || percent == 0 {
            streak = None;
            continue;
        }
        let in_a_row = match streak {
            Some((p, last, count)) if p == percent && last.checked_add(1) == Some(run) => count + 1,
            _ => 1,
        };
        streak = Some((percent, run, in_a_row));
        if in_a_row >= 100u64.div_ceil(percent) {
            verified = Some((report.id, verified.map_or(report.time, |(_, time)| time.max(report.time))));
        }
    }
    verified
}

/// How old something of this moment is. `None`: that moment has not been yet, so one of two clocks is wrong and nothing is known. (Two hosts
/// that keep their clocks right still differ a little.)
#[must_use]
pub fn age_ms(moment: DateTime<Utc>, now: DateTime<Utc>) -> Option<u64> {
    const SKEW_MS: i64 = 5_000;
    let age = (now - moment).num_milliseconds();
    (age >= -SKEW_MS).then(|| u64::try_from(age).unwrap_or(0))
}

/// One line on a snapshot for messages: id, moment.
#[must_use]
pub fn describe(manifest: &Manifest) -> String {
    format!("{} of {}", manifest.id, moment(manifest.time))
}

/// A moment for messages: RFC 3339 in UTC, seconds.
#[must_use]
pub fn moment(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}

fn by_id<'a>(manifests: &'a [Manifest], text: &str) -> Result<&'a Manifest> {
    let wanted = text.to_ascii_lowercase();
    if wanted.is_empty() || wanted.len() > 26 || !wanted.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return Err(Error::new(Kind::Usage, format!("not a snapshot id: {text:?}"))
            .hint("an id is 26 letters and digits, or a unique beginning of one, as printed by `lifeboat snapshots`"));
    }
    let found: Vec<&Manifest> = by_age(manifests)
        .into_iter()
        .filter(|m| {
            m.id.to_string().starts_with(&wanted) || m.copied_from.as_ref().is_some_and(|f| f.snapshot.to_string().starts_with(&wanted))
        })
        .collect();
    match found.as_slice() {
        [one] => Ok(one),
        [] => {
            let back = manifests.iter().find(|m| m.replaces().is_some_and(|damaged| damaged.to_string().starts_with(&wanted)));
            let hint = match back {
                Some(back) => format!("its content was brought back and stands in its place as snapshot {}", describe(back)),
                None => format!(
                    "`lifeboat snapshots` lists what is there; the latest is {}",
                    latest(manifests).map(describe).unwrap_or_default()
                ),
            };
            Err(Error::new(Kind::NoRecoveryPoint, format!("find snapshot {text}: there is none")).hint(hint))
        }
        several => {
            let list: Vec<String> = several.iter().take(10).map(|m| describe(m)).collect();
            Err(Error::new(Kind::Usage, format!("find snapshot {text}: {} begin with that", several.len())).hint(format!(
                "give more of the id: {}{}",
                list.join(", "),
                if several.len() > 10 { ", …" } else { "" }
            )))
        }
    }
}

fn at(manifests: &[Manifest], wanted: DateTime<Utc>, now: DateTime<Utc>) -> Result<&Manifest> {
    let ordered = by_age(manifests);
    let before = ordered.iter().rev().find(|m| m.time <= wanted).copied();
    let after = ordered.iter().find(|m| m.time > wanted).copied();
    let nearest = match (before, after) {
        (Some(b), Some(a)) => format!("the nearest are {} before it and {} after it", describe(b), describe(a)),
        (Some(b), None) => format!("the nearest is {} before it", describe(b)),
        (None, Some(a)) => format!("the nearest is {} after it", describe(a)),
        (None, None) => String::new(),
    };
    if wanted > now {
        return Err(Error::new(
            Kind::NoRecoveryPoint,
            format!("recover to {}: that is in the future (now is {})", moment(wanted), moment(now)),
        )
        .hint(nearest));
    }
    before.ok_or_else(|| {
        Error::new(Kind::NoRecoveryPoint, format!("recover to {}: there is no snapshot as old as that", moment(wanted))).hint(nearest)
    })
}

fn random(manifests: &[Manifest], seed: u64, window: Option<Duration>, now: DateTime<Utc>) -> Result<&Manifest> {
    let ordered = by_age(manifests);
    let earliest = window.and_then(|w| chrono::Duration::from_std(w).ok()).and_then(|w| now.checked_sub_signed(w));
    let inside: Vec<&Manifest> = ordered.iter().copied().filter(|m| earliest.is_none_or(|e| m.time >= e)).collect();
    if inside.is_empty() {
        let newest = ordered.last().map(|m| describe(m)).unwrap_or_default();
        return Err(Error::new(Kind::NoRecoveryPoint, "choose a random snapshot: there is none within the window")
            .hint(format!("widen the drill's window; the newest is {newest}")));
    }
    let hash = blake3::hash(&seed.to_le_bytes());
    let mut first = [0u8; 8];
    first.copy_from_slice(&hash.as_bytes()[..8]);
    let count = inside.len() as u64;
    let index = usize::try_from(u64::from_le_bytes(first) % count).unwrap_or(0);
    Ok(inside[index])
}

fn by_age(manifests: &[Manifest]) -> Vec<&Manifest> {
    let mut ordered: Vec<&Manifest> = manifests.iter().collect();
    ordered.sort_by_key(|m| (m.time, m.id));
    ordered
}

/// Reports that can say something about a snapshot, in the order in which they were begun.
fn in_order(reports: &[impl Borrow<ReportRecord>], id: SnapshotId) -> Vec<&ReportRecord> {
    let all = reports.iter().map(Borrow::<ReportRecord>::borrow);
    let mut ordered: Vec<&ReportRecord> = all.filter(|r| r.kind == ReportKind::Verify || r.snapshots.contains(&id)).collect();
    ordered.sort_by_key(|r| r.id);
    ordered
}

/// Whether a drill that did not pass says something against the snapshot.
pub(in crate::ops) fn is_disproof(report: &ReportRecord) -> bool {
    // What failed here had other reasons than the snapshot.
    const SURROUNDINGS: [Kind; 6] = [Kind::Unavailable, Kind::NoSpace, Kind::Busy, Kind::Usage, Kind::WrongKey, Kind::Interrupted];
    let field = |name: &str| report.document.get(name).and_then(serde_json::Value::as_str);
    // An incomplete drill found nothing wrong. The verdict of a document without one is known by its exit alone.
    let incomplete = field("verdict").is_some_and(|verdict| verdict == Verdict::Incomplete.word());
    !report.passed
        && !incomplete
        && field("exit").is_none_or(|exit| exit != Kind::Incomplete.word() && SURROUNDINGS.iter().all(|kind| kind.word() != exit))
}

fn harms(report: &ReportRecord, id: SnapshotId) -> bool {
    harmed(report).any(|harmed| harmed == id)
}

/// Snapshots that a verification found harmed.
pub(in crate::ops) fn harmed(report: &ReportRecord) -> impl Iterator<Item = SnapshotId> {
    let list =
        |value: &'_ serde_json::Value, field: &str| value.get(field).and_then(serde_json::Value::as_array).cloned().unwrap_or_default();
    let findings = list(&report.document, "findings").into_iter();
    findings.flat_map(move |finding| list(&finding, "snapshots")).filter_map(|id| id.as_str()?.parse().ok())
}

/// Whose key opens no data (a writer's, a maintainer's) has not seen that the content is sound: neither verified nor part of a row.
pub(in crate::ops) fn is_blind(report: &ReportRecord) -> bool {
    let list = |field: &str| report.document.get(field).and_then(serde_json::Value::as_array).map_or(0, Vec::len);
    // What nobody can open, because its key was destroyed, says nothing of the rest.
    let destroyed = list("destroyed");
    list("skipped") > destroyed || (!report.passed && list("findings") == 0 && destroyed == 0)
}

/// Percent and run of a verification of data.
pub(in crate::ops) fn share_of(report: &ReportRecord) -> Option<(u64, u64)> {
    let number = |field: &str| report.document.get(field).and_then(serde_json::Value::as_u64);
    Some((number("percent")?, number("run")?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Name, ReportId};
    use crate::repo::{Parent, Stats};

    fn time(hour: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_790_000_000 + hour * 3600, 0).unwrap()
    }

    fn manifest(hour: i64) -> Manifest {
        Manifest {
            id: SnapshotId::generate(time(hour)),
            plan: Name::new("crm").unwrap(),
            host: "host".into(),
            started: time(hour),
            time: time(hour),
            parents: Vec::new(),
            sources: Vec::new(),
            stats: Stats::default(),
            tags: Vec::new(),
            program: "test".into(),
            copied_from: None,
        }
    }

    fn drill(hour: i64, id: SnapshotId, passed: bool, exit: Option<&str>) -> ReportRecord {
        ReportRecord {
            id: ReportId::generate(time(hour)),
            kind: ReportKind::Drill,
            time: time(hour),
            plan: Some("crm".into()),
            snapshots: vec![id],
            passed,
            document: serde_json::json!({ "exit": exit }),
        }
    }

    fn verify(hour: i64, sound: &[SnapshotId], harmed: &[SnapshotId], share: Option<(u8, u64)>) -> ReportRecord {
        let findings: Vec<_> = harmed.iter().map(|id| serde_json::json!({ "snapshots": [id] })).collect();
        ReportRecord {
            id: ReportId::generate(time(hour)),
            kind: ReportKind::Verify,
            time: time(hour),
            plan: None,
            snapshots: sound.to_vec(),
            passed: harmed.is_empty(),
            document: serde_json::json!({ "percent": share.map(|s| s.0), "run": share.map(|s| s.1), "findings": findings }),
        }
    }

    #[test]
    fn latest_follows_the_chain_and_not_a_clock_that_was_wrong_once() {
        let wrong = manifest(100_000);
        let mut right = manifest(2);
        right.parents = vec![Parent { id: wrong.id, hash: String::new() }];
        let list = [wrong, right];
        assert_eq!(choose(&list, &[], &Choice::Latest, time(3)).unwrap().id, list[1].id);
    }

    #[test]
    fn at_takes_the_newest_that_is_not_later() {
        let list = [manifest(3), manifest(1), manifest(2)];
        assert_eq!(choose(&list, &[], &Choice::At(time(2)), time(9)).unwrap().id, list[2].id);
        assert_eq!(choose(&list, &[], &Choice::At(time(8)), time(9)).unwrap().id, list[0].id);
    }

    #[test]
    fn a_moment_that_is_not_available_names_the_nearest() {
        let list = [manifest(3), manifest(5)];
        let early = choose(&list, &[], &Choice::At(time(1)), time(9)).unwrap_err();
        assert_eq!(early.kind(), Kind::NoRecoveryPoint);
        assert!(early.hint_text().unwrap().contains(&list[0].id.to_string()), "{early:?}");
        let future = choose(&list, &[], &Choice::At(time(10)), time(9)).unwrap_err();
        assert_eq!(future.kind(), Kind::NoRecoveryPoint);
        assert!(future.hint_text().unwrap().contains(&list[1].id.to_string()), "{future:?}");
    }

    #[test]
    fn without_a_snapshot_there_is_no_recovery_point() {
        for choice in [
            Choice::Latest,
            Choice::At(time(0)),
            Choice::LatestProven,
            Choice::Snapshot("01".into()),
            Choice::Random { seed: 1, window: None },
        ] {
            assert_eq!(choose(&[], &[], &choice, time(9)).unwrap_err().kind(), Kind::NoRecoveryPoint);
        }
    }

    #[test]
    fn ids_may_be_shortened_until_they_are_ambiguous() {
        let list = [manifest(1), manifest(1)];
        let full = list[0].id.to_string();
        assert_eq!(choose(&list, &[], &Choice::Snapshot(full.to_uppercase()), time(9)).unwrap().id, list[0].id);
        assert_eq!(choose(&list, &[], &Choice::Snapshot(full[..20].into()), time(9)).unwrap().id, list[0].id);
        let ambiguous = choose(&list, &[], &Choice::Snapshot(full[..6].into()), time(9)).unwrap_err();
        assert_eq!(ambiguous.kind(), Kind::Usage);
        assert!(list.iter().all(|m| ambiguous.hint_text().unwrap().contains(&m.id.to_string())));
        assert_eq!(choose(&list, &[], &Choice::Snapshot("../x".into()), time(9)).unwrap_err().kind(), Kind::Usage);
        assert_eq!(choose(&list, &[], &Choice::Snapshot("zzzz".into()), time(9)).unwrap_err().kind(), Kind::NoRecoveryPoint);
    }

    #[test]
    fn proven_is_what_passed_and_was_not_disproved_since() {
        let list = [manifest(1), manifest(2), manifest(3)];
        let mut reports = vec![drill(4, list[0].id, true, None), drill(5, list[1].id, true, Some("objective-missed"))];
        assert_eq!(choose(&list, &reports, &Choice::LatestProven, time(9)).unwrap().id, list[1].id);
        // A drill that ran out of disk proves nothing and disproves nothing.
        reports.push(drill(6, list[1].id, false, Some("no-space")));
        assert_eq!(proven_at(&reports, list[1].id, time(9)), Some(time(5)));
        reports.push(drill(7, list[1].id, false, Some("incomplete")));
        assert_eq!(proven_at(&reports, list[1].id, time(9)), Some(time(5)));
        for exit in ["failed", "not-found", "damaged"] {
            let failed = [reports.clone(), vec![drill(7, list[1].id, false, Some(exit))]].concat();
            assert_eq!(proven_at(&failed, list[1].id, time(9)), None, "a drill of it that failed takes the proof back: {exit}");
        }
        reports.push(drill(7, list[1].id, false, Some("differs")));
        assert_eq!(choose(&list, &reports, &Choice::LatestProven, time(9)).unwrap().id, list[0].id);
        reports.push(verify(8, &[], &[list[0].id], None));
        assert_eq!(choose(&list, &reports, &Choice::LatestProven, time(9)).unwrap_err().kind(), Kind::NoRecoveryPoint);
    }

    #[test]
    fn verified_needs_every_share_in_a_row() {
        let id = manifest(1).id;
        let mut reports = vec![verify(1, &[id], &[], None)];
        assert_eq!(verified_at(&reports, id, time(9)), None, "structure alone");
        reports.push(verify(2, &[id], &[], Some((40, 7))));
        reports.push(verify(3, &[id], &[], Some((40, 8))));
        assert_eq!(verified_at(&reports, id, time(9)), None, "two of three shares");
        reports.push(verify(4, &[id], &[], Some((40, 9))));
        assert_eq!(verified_at(&reports, id, time(9)), Some(time(4)));
        reports.push(verify(5, &[], &[id], Some((100, 0))));
        assert_eq!(verified_at(&reports, id, time(9)), None, "damaged since");
        reports.push(verify(6, &[id], &[], Some((100, 1))));
        assert_eq!(verified_at(&reports, id, time(9)), Some(time(6)));
    }

    #[test]
    fn a_verification_that_opened_no_data_verifies_nothing() {
        let id = SnapshotId::generate(time(0));
        let skipped = |hour, share| {
            let mut report = verify(hour, &[id], &[], Some(share));
            report.passed = false;
            report.document["skipped"] = serde_json::json!(["the content of data packs was not opened"]);
            report
        };
        let mut reports = vec![skipped(1, (100, 0))];
        assert_eq!(verified_at(&reports, id, time(9)), None);
        reports.extend([verify(2, &[id], &[], Some((50, 0))), skipped(3, (50, 1)), verify(4, &[id], &[], Some((50, 2)))]);
        assert_eq!(verified_at(&reports, id, time(9)), None, "the row was interrupted");
        reports.push(verify(5, &[id], &[], Some((50, 3))));
        assert_eq!(verified_at(&reports, id, time(9)), Some(time(5)));
        let mut of_destroyed = skipped(6, (100, 1));
        of_destroyed.document["destroyed"] = of_destroyed.document["skipped"].clone();
        assert_eq!((is_blind(&of_destroyed), is_blind(&skipped(6, (100, 1)))), (false, true));
        reports.push(skipped(6, (100, 1)));
        assert_eq!(verified_at(&reports, id, time(9)), Some(time(5)), "what was known before still is");
    }

    #[test]
    fn reports_of_the_future_find_nothing_sound_and_ids_tell_what_comes_later() {
        let list = [manifest(1)];
        let (id, now) = (list[0].id, time(9));
        let dated = |record: ReportRecord, hour: i64| ReportRecord { time: time(hour), ..record };
        let mut reports = vec![dated(drill(2, id, true, None), 90_000), dated(verify(3, &[id], &[], Some((100, 0))), 90_000)];
        assert_eq!((proven_at(&reports, id, now), verified_at(&reports, id, now)), (None, None));
        assert_eq!(choose(&list, &reports, &Choice::LatestProven, now).unwrap_err().kind(), Kind::NoRecoveryPoint);
        let then = time(90_000);
        assert_eq!((proven_at(&reports, id, then), verified_at(&reports, id, then)), (Some(then), Some(then)));
        reports.extend([drill(4, id, true, None), verify(5, &[id], &[], Some((100, 1)))]);
        assert_eq!((proven_at(&reports, id, now), verified_at(&reports, id, now)), (Some(time(4)), Some(time(5))));
        // By a clock that is behind: it came later all the same, and does not make older what was known before.
        reports.extend([dated(drill(6, id, true, None), -9), dated(verify(7, &[id], &[], Some((100, 2))), -9)]);
        assert_eq!((proven_at(&reports, id, now), verified_at(&reports, id, now)), (Some(time(4)), Some(time(5))));
        reports.push(dated(verify(8, &[], &[id], Some((100, 3))), -8));
        assert_eq!((proven_at(&reports, id, now), verified_at(&reports, id, now)), (None, None));
        assert_eq!(proven_at(&reports, id, then), None, "nor when that moment has come");
        // A name that no clock has said is later than all others.
        let forged = ReportRecord { id: ReportId::generate(time(9_000_000)), ..drill(9, id, true, None) };
        reports.push(forged);
        assert_eq!(proven_at(&reports, id, now), None);
    }

    #[test]
    fn a_clock_that_was_behind_is_told_by_an_id_that_is_ahead_of_it() {
        let first = manifest(3);
        let by_clock =
            |hour: i64, after: &Manifest| Manifest { id: SnapshotId::generate_after(time(hour), Some(after.id)), ..manifest(hour) };
        let behind = by_clock(-90_000, &first);
        assert_eq!(clock_was_behind(&behind, time(9)), first.id.generated().map(|at| at + TimeDelta::milliseconds(1)));
        let right = by_clock(4, &behind);
        assert_eq!((clock_was_behind(&first, time(9)), clock_was_behind(&right, time(9))), (None, None));
        // Behind one that is of the future all are, and are right.
        let after = by_clock(5, &by_clock(90_000, &right));
        assert_eq!(clock_was_behind(&after, time(9)), None);
    }

    #[test]
    fn a_random_choice_repeats_with_its_seed_and_reaches_everything_in_the_window() {
        let list: Vec<Manifest> = (0..10).map(manifest).collect();
        let window = Some(Duration::from_hours(5));
        let chosen: HashSet<SnapshotId> =
            (0..500).map(|seed| choose(&list, &[], &Choice::Random { seed, window }, time(9)).unwrap().id).collect();
        assert_eq!(chosen, list[4..].iter().map(|m| m.id).collect());
        let twice = Choice::Random { seed: 42, window: None };
        assert_eq!(choose(&list, &[], &twice, time(9)).unwrap().id, choose(&list, &[], &twice, time(9)).unwrap().id);
        let narrow = Choice::Random { seed: 1, window: Some(Duration::from_mins(1)) };
        assert_eq!(choose(&list, &[], &narrow, time(12)).unwrap_err().kind(), Kind::NoRecoveryPoint);
    }
}

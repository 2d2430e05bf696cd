//! How far the copies of a plan are.

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use crate::daemon::journal::Job;
use crate::daemon::status::{Problem, ProblemKind, Unasked};
use crate::error::Kind;
use crate::id::Name;
use crate::ops::copy::{behind, lacks};
use crate::ops::resolve::Changed;
use crate::ops::{explain, select};
use crate::plan::{Plan, PlannedCopy};
use crate::repo::{LostManifest, Manifest};

/// A copy may take so long after its schedule before it is called behind.
const PATIENCE: TimeDelta = TimeDelta::hours(1);

/// One copy of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyStatus {
    /// Name of the repository it is in.
    pub repository: String,
    /// The moment of the newest snapshot there. `None`: there is none, or it could not be asked.
    pub newest: Option<DateTime<Utc>>,
    /// How much newer the plan's newest snapshot is. `None`: not known.
    pub behind_ms: Option<u64>,
    pub reachable: bool,
}

/// What a repository has of a plan that copies there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    newest: Option<DateTime<Utc>>,
    /// That manifests cannot be read: how many and why, in words.
    lost: Option<String>,
    changed: Option<Changed>,
    /// That locks of what is needed end, or have ended; a sentence.
    lock: Option<String>,
}

impl Held {
    pub fn of(manifests: &[Manifest], lost: &[LostManifest], changed: Option<Changed>, lock: Option<String>) -> Self {
        let lost = lost.first().map(|first| format!("{} manifests that cannot be read: {}", lost.len(), explain(&first.error)));
        Self { newest: select::latest(manifests).map(|manifest| manifest.time), lost, changed, lock }
    }
}

/// How each copy of a plan is, by what is `held` in each repository. `originals`: of the plan's own repository, where it could be asked. Pure.
pub fn of(
    plan: &Plan,
    originals: Option<&[Manifest]>,
    held: impl Fn(&Name) -> std::result::Result<Held, Unasked>,
    now: DateTime<Utc>,
) -> (Vec<CopyStatus>, Vec<Problem>) {
    let (mut all, mut problems) = (Vec::new(), Vec::new());
    let original = originals.and_then(select::latest).map(|manifest| manifest.time);
    for copy in &plan.copies {
        let to = &copy.to.name;
        match held(to) {
            Ok(Held { newest, lost, changed, lock }) => {
                problems.extend(changed.map(|changed| Problem { job: Some(Job::Copy.word().to_owned()), ..Problem::from(changed) }));
                problems.extend(originals.and_then(|originals| is_behind(copy, originals, newest, now)));
                problems.extend(lost.map(|lost| Problem::of(ProblemKind::Damaged, Job::Copy, format!("the copy in {to} has {lost}"))));
                problems.extend(lock.map(|told| Problem::of(ProblemKind::LockLapsed, Job::Copy, format!("the copy in {to}: {told}"))));
                let behind_ms = newest.zip(original).map(|(copy, original)| behind(copy, original));
                all.push(CopyStatus { repository: to.to_string(), newest, behind_ms, reachable: true });
            }
            Err(unasked) => {
                let (kind, why) = match unasked.kind {
                    _ if unasked.secret => (ProblemKind::SecretUnavailable, "was not asked"),
                    Kind::Damaged => (ProblemKind::Damaged, "is damaged, and could not be asked"),
                    _ => (ProblemKind::CopyUnreachable, "could not be asked"),
                };
                problems.push(Problem::of(kind, Job::Copy, format!("the copy in {to} {why}: {}", unasked.message)));
                all.push(CopyStatus { repository: to.to_string(), newest: None, behind_ms: None, reachable: false });
            }
        }
    }
    (all, problems)
}

/// Whether a scheduled copy lacks a snapshot that was there when it was last due. Pure.
fn is_behind(copy: &PlannedCopy, originals: &[Manifest], newest: Option<DateTime<Utc>>, now: DateTime<Utc>) -> Option<Problem> {
    let due = copy.schedule.as_ref()?.previous_at_or_before(now - PATIENCE)?;
    let missing = lacks(&copy.tags, originals, newest, due)?;
    let has = newest.map_or_else(|| "it has none".to_owned(), |newest| format!("its newest is of {}", select::moment(newest)));
    let message = format!(
        "the copy in {} lacks the snapshot of {} although it was due at {}: {has}",
        copy.to.name,
        select::moment(missing),
        select::moment(due)
    );
    Some(Problem::of(ProblemKind::CopyBehind, Job::Copy, message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::status::tests::{manifest, plan};

    #[test]
    fn a_copy_is_behind_when_it_lacks_what_was_there_when_it_was_due() {
        let at = |text: &str| format!("2026-11-20T{text}Z").parse::<DateTime<Utc>>().unwrap();
        let schedule = crate::plan::Schedule::parse("30 3 * * *", chrono_tz::Tz::UTC).unwrap();
        let to = plan().repository.clone();
        let copy = PlannedCopy { to, schedule: Some(schedule), keep: crate::plan::Keep::default(), last: None, tags: Vec::new() };
        let originals = [manifest("02:00:00", "db", &[]), manifest("03:00:00", "db", &[])];
        let (first, second) = (Some(originals[0].time), Some(originals[1].time));
        assert_eq!(is_behind(&copy, &originals, second, at("05:00:00")), None);
        assert_eq!(is_behind(&copy, &originals, first, at("05:00:00")).unwrap().kind, "copy-behind");
        assert!(is_behind(&copy, &originals, None, at("05:00:00")).unwrap().message.contains("it has none"));
        assert_eq!(is_behind(&copy, &originals, first, at("04:00:00")), None, "it was due just now");
        let by_hand = PlannedCopy { schedule: None, ..copy };
        assert_eq!(is_behind(&by_hand, &originals, None, at("05:00:00")), None);
    }
}

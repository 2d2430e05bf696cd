//! How far the copies of a plan are.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use crate::daemon::journal::Job;
use crate::daemon::status::{Problem, Unasked};
use crate::error::Error;
use crate::id::Name;
use crate::ops::copy::{behind, lacks};
use crate::ops::resolve::{self, Surroundings};
use crate::ops::{explain, select};
use crate::plan::{Plan, PlannedCopy};
use crate::repo::{LostManifest, Manifest, Repository};

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

/// The repositories that plans copy to, each opened once.
pub struct Copies<'a> {
    surroundings: &'a Surroundings,
    /// With what is told of one that was exchanged for another.
    opened: BTreeMap<Name, std::result::Result<(Repository, Option<String>), Unasked>>,
}

impl<'a> Copies<'a> {
    /// Nothing is opened yet.
    pub fn new(surroundings: &'a Surroundings) -> Self {
        Self { surroundings, opened: BTreeMap::new() }
    }

    /// Asks every copy of a plan. `originals`: of the plan's own repository, where it could be asked.
    pub fn of(&mut self, plan: &Plan, originals: Option<&[Manifest]>) -> (Vec<CopyStatus>, Vec<Problem>) {
        let (mut all, mut problems) = (Vec::new(), Vec::new());
        for copy in &plan.copies {
            match self.there(copy, &plan.name) {
                Ok((manifests, lost, changed)) => {
                    problems.extend(changed.map(|changed| Problem::of("repository-changed", Job::Copy, changed)));
                    let newest = select::latest(&manifests).map(|manifest| manifest.time);
                    let original = originals.and_then(select::latest).map(|manifest| manifest.time);
                    let now = self.surroundings.clock.now();
                    problems.extend(originals.and_then(|originals| is_behind(copy, originals, newest, now)));
                    if let Some(first) = lost.first() {
                        let message = format!(
                            "the copy in {} has {} manifests that cannot be read: {}",
                            copy.to.name,
                            lost.len(),
                            explain(&first.error)
                        );
                        problems.push(Problem::of("damaged", Job::Copy, message));
                    }
                    let behind_ms = newest.zip(original).map(|(copy, original)| behind(copy, original));
                    all.push(CopyStatus { repository: copy.to.name.to_string(), newest, behind_ms, reachable: true });
                }
                Err(unasked) => {
                    let (kind, why) =
                        if unasked.secret { ("secret-unavailable", "was not asked") } else { ("copy-unreachable", "could not be asked") };
                    let message = format!("the copy in {} {why}: {}", copy.to.name, unasked.message);
                    problems.push(Problem::of(kind, Job::Copy, message));
                    all.push(CopyStatus { repository: copy.to.name.to_string(), newest: None, behind_ms: None, reachable: false });
                }
            }
        }
        (all, problems)
    }

    /// What there is of a plan.
    fn there(
        &mut self,
        copy: &PlannedCopy,
        plan: &Name,
    ) -> std::result::Result<(Vec<Manifest>, Vec<LostManifest>, Option<String>), Unasked> {
        let unasked = |error: &Error, secret| Unasked { kind: error.kind(), message: explain(error), secret };
        let surroundings = self.surroundings;
        let opened = self.opened.entry(copy.to.name.clone()).or_insert_with(|| {
            // All that the first does is to get secrets.
            let settings = resolve::repository(&copy.to).map_err(|error| unasked(&error, true))?;
            let repository = settings.open(surroundings).map_err(|error| unasked(&error, false))?;
            let changed = settings.changed(&repository, surroundings);
            Ok((repository, changed))
        });
        let (repository, changed) = opened.as_ref().map_err(Clone::clone)?;
        let (manifests, lost) = repository.sound_manifests(Some(plan)).map_err(|error| unasked(&error, false))?;
        Ok((manifests, lost, changed.clone()))
    }
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
    Some(Problem::of("copy-behind", Job::Copy, message))
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

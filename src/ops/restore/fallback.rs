//! A restore from a copy, where the plan's own repository is away, damaged or does not have what is asked for: said loudly, and never
//! silently of an older moment than was asked for.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind};
use crate::id::SnapshotId;
use crate::ops::restore::RestorePlan;
use crate::ops::select::{Choice, Wanted, moment};
use crate::ops::{Job, explain};
use crate::repo::{CopiedFrom, Manifest};

/// That a restore uses a copy, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fallback {
    /// Name of the repository that is used, and its URL.
    pub repository: String,
    pub url: String,
    /// What is wrong with the plan's own.
    pub why: String,
    /// How this may be of an older moment than was asked for. `None`: it is what was asked for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub older: Option<String>,
}

impl Fallback {
    /// From this job's repository, called `name`, because of `error`.
    #[must_use]
    pub fn new(job: &Job, name: &str, error: &Error) -> Self {
        Self { repository: name.to_owned(), url: job.repository.store().describe().to_owned(), why: explain(error), older: None }
    }

    /// For people.
    #[must_use]
    pub fn sentence(&self) -> String {
        let head =
            format!("FROM THE COPY {} ({}), because the plan's own repository cannot be used: {}", self.repository, self.url, self.why);
        match &self.older {
            Some(older) => format!("{head}. PERHAPS NOT WHAT WAS ASKED FOR: {older}"),
            None => format!("{head}. It is what was asked for"),
        }
    }
}

/// Whether a copy may help where the plan's own repository failed so, before anything was written.
#[must_use]
pub fn may_help(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Unavailable | Kind::Failed | Kind::NotFound | Kind::NoRepository | Kind::Damaged | Kind::WrongKey | Kind::NoRecoveryPoint
    )
}

/// The same when data was being brought back already: other errors may be this machine's.
#[must_use]
pub fn may_help_on_the_way(kind: Kind) -> bool {
    matches!(kind, Kind::Unavailable | Kind::NotFound | Kind::Damaged)
}

/// What is known of the plan's own repository although it cannot be used.
#[derive(Debug, Clone, Default)]
pub struct Own {
    /// The moment that a restore from there would have led to.
    pub planned: Option<DateTime<Utc>>,
    /// Snapshots that backups told this machine of.
    pub backups: Vec<SnapshotId>,
}

/// The snapshot, as the repository that it was backed up to knows it: what was brought back there, as the one that it stands for.
#[must_use]
pub fn original(manifest: &Manifest) -> SnapshotId {
    manifest.copied_from.as_ref().map_or(manifest.id, CopiedFrom::place)
}

/// How what a copy gives may be older than what was asked for. Pure.
#[must_use]
pub fn older(plan: &RestorePlan, choice: &Choice, own: &Own) -> Option<String> {
    older_of(plan.at, original(&plan.manifest), plan.recovery.is_some() || !plan.moments.is_empty(), choice, own)
}

fn older_of(at: DateTime<Utc>, snapshot: SnapshotId, by_log: bool, choice: &Choice, own: &Own) -> Option<String> {
    let until = match choice {
        Choice::Snapshot(_) | Choice::Along { wanted: Wanted::Time(_) | Wanted::Lsn(_) | Wanted::Xid(_) | Wanted::RestorePoint(_), .. } => {
            return None;
        }
        // The log led to that very moment.
        Choice::At(_) if by_log => return None,
        Choice::At(moment) => Some(*moment),
        _ => None,
    };
    if let Some(planned) = own.planned {
        return (at < planned)
            .then(|| format!("the copy leads to {}, the plan's own repository would have led to {}", moment(at), moment(planned)));
    }
    if by_log {
        return Some(format!("the log in the copy ends at {}, and whether the plan's own repository has more is not known", moment(at)));
    }
    let before = |id: &&SnapshotId| until.is_none_or(|until| id.generated().is_some_and(|generated| generated <= until));
    match own.backups.iter().filter(before).max() {
        Some(newest) if *newest <= snapshot => None,
        Some(newest) => Some(format!("a later backup made snapshot {newest}, which this copy does not have")),
        None => Some(
            "this machine's journal knows of no backup, so whether the plan's own repository has a newer snapshot is not known".to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(hour: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_790_000_000 + hour * 3600, 0).unwrap()
    }

    #[test]
    fn what_is_older_than_asked_for_is_told_and_what_is_not_is_not() {
        let ids: Vec<SnapshotId> = (0..4).map(|hour| SnapshotId::generate(time(hour))).collect();
        let known = |backups: &[SnapshotId]| Own { planned: None, backups: backups.to_vec() };
        let latest = Choice::Latest;
        assert_eq!(older_of(time(2), ids[2], false, &latest, &known(&ids[..3])), None);
        assert!(older_of(time(2), ids[2], false, &latest, &known(&ids)).unwrap().contains(&ids[3].to_string()));
        assert!(older_of(time(2), ids[2], false, &latest, &known(&[])).is_some(), "nothing is known");
        // A backup after the moment that was asked for has no part in it.
        assert_eq!(older_of(time(2), ids[2], false, &Choice::At(time(2)), &known(&ids)), None);
        assert!(older_of(time(1), ids[1], false, &Choice::At(time(3)), &known(&ids)).is_some());
        assert_eq!(older_of(time(1), ids[1], false, &Choice::Snapshot("x".into()), &known(&ids)), None);
        // Through the log: its end may be too early, a moment of it is that moment.
        assert!(older_of(time(2), ids[2], true, &latest, &known(&ids[..3])).is_some());
        assert_eq!(older_of(time(2), ids[2], true, &Choice::At(time(2)), &known(&ids)), None);
        let planned = |hour| Own { planned: Some(time(hour)), backups: Vec::new() };
        assert_eq!(older_of(time(2), ids[2], true, &latest, &planned(2)), None);
        assert!(older_of(time(2), ids[2], true, &latest, &planned(3)).is_some());
    }
}

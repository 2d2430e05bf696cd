//! What can be wrong, by name.

/// Makes the kinds and their words in one place, so that none is left out of the list of all.
macro_rules! problem_kinds {
    ($($(#[$doc:meta])* $name:ident = $word:literal,)*) => {
        /// What can be wrong. Their words stand in `lifeboat.status/1`, in alarms and in what notifiers send; documents of another version may have more.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum ProblemKind {
            $($(#[$doc])* $name,)*
        }

        impl ProblemKind {
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// As in documents.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)*
                }
            }
        }
    };
}

problem_kinds! {
    NeverBackedUp = "never-backed-up",
    /// The newest snapshots restore nothing any more.
    KeyDestroyed = "key-destroyed",
    Overdue = "overdue",
    Failed = "failed",
    Incomplete = "incomplete",
    Interrupted = "interrupted",
    Missed = "missed",
    NeverProven = "never-proven",
    DrillFailed = "drill-failed",
    Damaged = "damaged",
    /// A snapshot is of the future.
    Clock = "clock",
    DataLossObjective = "data-loss-objective",
    RecoveryTimeObjective = "recovery-time-objective",
    DataLossForecast = "data-loss-forecast",
    RecoveryTimeForecast = "recovery-time-forecast",
    RepositoryUnreachable = "repository-unreachable",
    RepositoryChanged = "repository-changed",
    /// Which one belongs there cannot be read.
    RepositoryUnknown = "repository-unknown",
    WrongKey = "wrong-key",
    SecretUnavailable = "secret-unavailable",
    LockLapsed = "lock-lapsed",
    RetentionBlocked = "retention-blocked",
    CopyBehind = "copy-behind",
    CopyUnreachable = "copy-unreachable",
    LogNotStreamed = "log-not-streamed",
    LogSlot = "log-slot",
    LogGap = "log-gap",
    LogFork = "log-fork",
    CanaryNotWritten = "canary-not-written",
    RunningLong = "running-long",
    PlanGone = "plan-gone",
    ScheduleGone = "schedule-gone",
    PlansBroken = "plans-broken",
    JournalUnavailable = "journal-unavailable",
    DaemonStuck = "daemon-stuck",
    NotifierFailing = "notifier-failing",
    Expiring = "expiring",
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    /// What stands between backquotes.
    fn quoted(text: &str) -> BTreeSet<&str> {
        text.split('`').skip(1).step_by(2).collect()
    }

    #[test]
    fn every_kind_is_in_the_reference_and_what_to_do_in_the_guide() {
        let read = |name: &str| std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name)).unwrap();
        let all: BTreeSet<&str> = ProblemKind::ALL.iter().map(|kind| kind.word()).collect();
        assert_eq!(all.len(), ProblemKind::ALL.len(), "each has a word of its own");

        let reference = read("reference/command-line.md");
        let list = reference.lines().find_map(|line| line.split_once("Kinds of problems: ")).unwrap().1;
        assert_eq!(quoted(list), all);

        // The first column of the table whose first row this is.
        let guide = read("guide.md");
        let rows = guide.lines().skip_while(|line| !line.starts_with("| `never-backed-up`, ")).take_while(|line| line.starts_with('|'));
        let told: BTreeSet<&str> = rows.flat_map(|row| quoted(row.split('|').nth(1).unwrap())).collect();
        assert_eq!(told, all);
    }
}

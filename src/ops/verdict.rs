//! What a drill's facts amount to: verdict, exit and reasons. Pure.
//!
//! The verdict is about the recovery point: `passed` means that its content came back, is sound and equals what was backed up. An
//! objective that was missed does not take that back (the exit says it: 22), and a drill that could not look at something that was
//! asked for never passes.

use std::time::Duration;

use crate::error::Kind;
use crate::ops::{CheckRecord, Objective, Objectives, Verdict};
use crate::source::Outcome;

/// What a drill found out.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The recovery itself did not work: the kind of its error, and its message.
    pub failure: Option<(Kind, &'a str)>,
    pub checks: &'a [CheckRecord],
    pub objectives: &'a [Objective],
    /// What was asked for and not checked, other than skipped checks.
    pub skipped: &'a [String],
}

/// What the facts amount to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    pub verdict: Verdict,
    /// `None`: exit 0.
    pub exit: Option<Kind>,
    pub reasons: Vec<String>,
}

/// Judges. Of several exits the most telling wins: 20, 21, then what made the recovery fail, 22, 3.
#[must_use]
pub fn judge(facts: &Facts<'_>) -> Judgement {
    // What failed comes first: it is what is read, and told.
    let (mut reasons, mut unlooked) = (Vec::new(), Vec::new());
    let mut exits = Vec::new();
    if let Some((kind, message)) = facts.failure {
        exits.push(kind);
        reasons.push(message.to_owned());
    }
    for check in facts.checks {
        let place = if check.source.is_empty() { check.name.clone() } else { format!("{}: {}", check.source, check.name) };
        match check.outcome {
            Outcome::Passed => {}
            Outcome::Failed | Outcome::Differs => {
                exits.push(if check.outcome == Outcome::Failed { Kind::Damaged } else { Kind::Differs });
                reasons.push(format!("{place}: expected {}, found {}", check.expected, check.actual));
            }
            Outcome::Skipped => {
                exits.push(Kind::Incomplete);
                unlooked.push(format!("{place}: not checked: {}", check.actual));
            }
        }
    }
    let failed = exits.iter().any(|kind| *kind != Kind::Incomplete);
    reasons.append(&mut unlooked);
    for what in facts.skipped {
        exits.push(Kind::Incomplete);
        reasons.push(what.clone());
    }
    let verdict = match (failed, exits.is_empty()) {
        (true, _) => Verdict::Failed,
        (false, false) => Verdict::Incomplete,
        (false, true) => Verdict::Passed,
    };
    for objective in facts.objectives.iter().filter(|o| !o.met) {
        // An objective that could not be measured was not missed by a recovery that worked: the failure says it.
        if objective.actual_ms.is_some() {
            exits.push(Kind::ObjectiveMissed);
        }
        let actual = objective.actual_ms.map_or_else(|| "could not be measured".into(), |ms| format!("was {}", duration_text(ms)));
        reasons.push(format!("objective missed: {} {actual}, the limit is {}", objective.name, duration_text(objective.limit_ms)));
    }
    Judgement { verdict, exit: exits.into_iter().min_by_key(|kind| rank(*kind)), reasons }
}

/// Measured against the plan's promises; in the order recovery time, data loss.
#[must_use]
pub fn objectives(promised: &Objectives, recovery_time_ms: Option<u64>, data_loss_ms: Option<u64>) -> Vec<Objective> {
    let objective = |name: &str, limit: Duration, actual_ms: Option<u64>| {
        let limit_ms = millis(limit);
        Objective { name: name.into(), limit_ms, actual_ms, met: actual_ms.is_some_and(|actual| actual <= limit_ms) }
    };
    let recovery = promised.recovery_time.map(|limit| objective("recovery_time", limit, recovery_time_ms));
    let loss = promised.data_loss.map(|limit| objective("data_loss", limit, data_loss_ms));
    recovery.into_iter().chain(loss).collect()
}

/// Whole milliseconds, saturating.
#[must_use]
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A duration for people: two units at most.
#[must_use]
pub fn duration_text(ms: u64) -> String {
    let secs = ms / 1000;
    match secs {
        0 => format!("{ms} ms"),
        1..60 => format!("{}.{} s", secs, ms % 1000 / 100),
        60..3600 => format!("{} min {} s", secs / 60, secs % 60),
        3600..86_400 => format!("{} h {} min", secs / 3600, secs % 3600 / 60),
        _ => format!("{} d {} h", secs / 86_400, secs % 86_400 / 3600),
    }
}

fn rank(kind: Kind) -> u8 {
    match kind {
        Kind::Damaged => 0,
        Kind::Differs => 1,
        Kind::ObjectiveMissed => 3,
        Kind::Incomplete => 4,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(outcome: Outcome) -> CheckRecord {
        CheckRecord { source: "db".into(), name: "it".into(), outcome, expected: "1".into(), actual: "2".into() }
    }

    fn missed() -> Objective {
        Objective { name: "recovery_time".into(), limit_ms: 1, actual_ms: Some(2), met: false }
    }

    fn judged(failure: Option<Kind>, outcomes: &[Outcome], objectives: &[Objective], skipped: &[&str]) -> (Verdict, Option<Kind>) {
        let checks: Vec<CheckRecord> = outcomes.iter().map(|o| check(*o)).collect();
        let skipped: Vec<String> = skipped.iter().map(|s| (*s).to_owned()).collect();
        let judgement = judge(&Facts { failure: failure.map(|kind| (kind, "it broke")), checks: &checks, objectives, skipped: &skipped });
        assert_eq!(judgement.reasons.is_empty(), judgement.exit.is_none(), "every exit has a reason: {judgement:?}");
        (judgement.verdict, judgement.exit)
    }

    #[test]
    fn the_verdict_and_exit_of_every_mixture() {
        use Outcome::{Differs, Failed, Passed, Skipped};
        type Row<'a> = (Option<Kind>, &'a [Outcome], &'a [Objective], &'a [&'a str], Verdict, Option<Kind>);
        let table: &[Row<'_>] = &[
            (None, &[Passed, Passed], &[], &[], Verdict::Passed, None),
            (None, &[Passed, Failed, Differs], &[missed()], &[], Verdict::Failed, Some(Kind::Damaged)),
            (None, &[Differs, Skipped], &[missed()], &[], Verdict::Failed, Some(Kind::Differs)),
            (None, &[Passed, Skipped], &[], &[], Verdict::Incomplete, Some(Kind::Incomplete)),
            (None, &[Passed], &[], &["attachments: nothing compares them"], Verdict::Incomplete, Some(Kind::Incomplete)),
            (None, &[Passed], &[missed()], &[], Verdict::Passed, Some(Kind::ObjectiveMissed)),
            (None, &[Skipped], &[missed()], &[], Verdict::Incomplete, Some(Kind::ObjectiveMissed)),
            (Some(Kind::Damaged), &[], &[], &[], Verdict::Failed, Some(Kind::Damaged)),
            (Some(Kind::NoSpace), &[], &[missed()], &[], Verdict::Failed, Some(Kind::NoSpace)),
            (Some(Kind::NoSpace), &[Differs], &[], &[], Verdict::Failed, Some(Kind::Differs)),
        ];
        for (failure, outcomes, objectives, skipped, verdict, exit) in table {
            assert_eq!(judged(*failure, outcomes, objectives, skipped), (*verdict, *exit), "{failure:?} {outcomes:?}");
        }
    }

    #[test]
    fn what_failed_is_told_before_what_was_not_looked_at() {
        let named = |name: &str, outcome| CheckRecord { name: name.into(), ..check(outcome) };
        let checks = [named("first", Outcome::Skipped), named("second", Outcome::Passed), named("third", Outcome::Failed)];
        let judgement = judge(&Facts { failure: None, checks: &checks, objectives: &[missed()], skipped: &["fourth".to_owned()] });
        let told: Vec<_> =
            judgement.reasons.iter().map(|reason| reason.split([':', ' ']).find(|word| *word != "db" && !word.is_empty())).collect();
        assert_eq!(told, [Some("third"), Some("first"), Some("fourth"), Some("objective")], "{judgement:?}");
    }

    #[test]
    fn a_limit_is_met_when_it_is_just_reached() {
        let promised = Objectives { data_loss: Some(Duration::from_millis(10)), recovery_time: Some(Duration::from_secs(1)) };
        let measured = objectives(&promised, Some(1000), Some(11));
        assert_eq!(measured.iter().map(|o| (o.name.as_str(), o.met)).collect::<Vec<_>>(), [("recovery_time", true), ("data_loss", false)]);
        assert!(!objectives(&promised, None, Some(0))[0].met, "what could not be measured was not met");
        assert!(!objectives(&promised, Some(1), None)[1].met, "a wrong clock meets nothing");
        assert!(objectives(&Objectives::default(), Some(1), Some(1)).is_empty());
    }

    #[test]
    fn durations_read_well() {
        let texts: Vec<String> = [0, 999, 1_500, 61_000, 7_260_000, 90_000_000].into_iter().map(duration_text).collect();
        assert_eq!(texts, ["0 ms", "999 ms", "1.5 s", "1 min 1 s", "2 h 1 min", "1 d 1 h"]);
    }
}

//! How long a restore will take, from what drills measured. Pure.

use crate::ops::restore::Estimate;
use crate::repo::{ReportKind, ReportRecord};

/// What is assumed of a plan that was never drilled; plain bytes per second.
const DEFAULT_BYTES_PER_SEC: u64 = 100_000_000;
/// How many of the newest measurements count.
const NEWEST: usize = 5;

/// One measured recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Measurement {
    pub(super) bytes: u64,
    pub(super) ms: u64,
}

/// The newest measured recoveries of a plan, oldest first, from its drill reports.
pub(super) fn measurements(reports: &[ReportRecord], plan: &str) -> Vec<Measurement> {
    let number = |report: &ReportRecord, field: &str| report.document.get(field).and_then(serde_json::Value::as_u64);
    let mut ordered: Vec<&ReportRecord> =
        reports.iter().filter(|r| r.kind == ReportKind::Drill && r.plan.as_deref() == Some(plan)).collect();
    ordered.sort_by_key(|r| (r.time, r.id));
    let measured: Vec<Measurement> = ordered
        .into_iter()
        .filter_map(|r| Some(Measurement { bytes: number(r, "bytes_restored")?, ms: number(r, "recovery_time_ms")? }))
        .collect();
    measured[measured.len().saturating_sub(NEWEST)..].to_vec()
}

/// The slowest rate of the newest drills: an operator in an incident is better served by too long than by too short.
pub(super) fn estimate(bytes: u64, measured: &[Measurement]) -> Estimate {
    // A recovery of bytes never takes less than the fixed part that the quickest drill shows, so a tiny restore is not told as 0.
    let scaled = |m: &Measurement| {
        let by_rate = u128::from(m.ms.max(1)) * u128::from(bytes) / u128::from(m.bytes.max(1));
        u64::try_from(by_rate).unwrap_or(u64::MAX)
    };
    match measured.iter().map(scaled).max() {
        Some(slowest) => {
            let floor = measured.iter().map(|m| m.ms).min().unwrap_or(0).min(1000);
            let drills =
                if measured.len() == 1 { "the last drill".into() } else { format!("the slowest of the last {} drills", measured.len()) };
            Estimate { duration_ms: slowest.max(floor), basis: format!("from {drills} of this plan") }
        }
        None => Estimate {
            duration_ms: bytes.saturating_mul(1000) / DEFAULT_BYTES_PER_SEC + 1000,
            basis: "a guess at 100 MB/s: no drill has measured this plan yet".into(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_rate_of_the_drills_counts() {
        let measured = [Measurement { bytes: 1_000_000, ms: 10_000 }, Measurement { bytes: 2_000_000, ms: 10_000 }];
        assert_eq!(estimate(3_000_000, &measured).duration_ms, 30_000);
        assert_eq!(estimate(1, &measured).duration_ms, 1000);
    }

    #[test]
    fn a_guess_says_that_it_is_one() {
        let guess = estimate(1_000_000_000, &[]);
        assert_eq!(guess.duration_ms, 11_000);
        assert!(guess.basis.contains("guess"));
    }

    #[test]
    fn nothing_measured_divides_by_zero() {
        assert_eq!(estimate(0, &[Measurement { bytes: 0, ms: 0 }]).duration_ms, 0);
        assert_eq!(estimate(u64::MAX, &[Measurement { bytes: 0, ms: u64::MAX }]).duration_ms, u64::MAX);
    }
}

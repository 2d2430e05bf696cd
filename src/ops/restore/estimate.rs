//! How long a restore will take, from what drills measured. Pure.

use crate::ops::drill::DrillReport;
use crate::ops::restore::Estimate;
use crate::repo::{ReportKind, ReportRecord, SourceRecord};

/// What is assumed of a plan that was never drilled; plain bytes per second.
const DEFAULT_BYTES_PER_SEC: u64 = 100_000_000;
/// How many of the newest measurements count.
const NEWEST: usize = 5;

/// One measured recovery; the bytes of content and log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Measurement {
    pub(super) bytes: u64,
    pub(super) ms: u64,
}

/// The newest measured recoveries of a plan with these sources, oldest first, from its drill reports.
pub(super) fn measurements(reports: &[ReportRecord], plan: &str, sources: &[SourceRecord]) -> Vec<Measurement> {
    let mut ordered: Vec<&ReportRecord> =
        reports.iter().filter(|r| r.kind == ReportKind::Drill && r.plan.as_deref() == Some(plan)).collect();
    ordered.sort_by_key(|r| r.id);
    let measured: Vec<Measurement> = ordered
        .into_iter()
        .filter_map(|r| {
            // One of a later version that cannot be read measures nothing.
            let drill: DrillReport = serde_json::from_value(r.document.clone()).ok()?;
            let ms = drill.measured_ms(sources.iter().map(|source| source.kind.as_str()))?;
            Some(Measurement { bytes: drill.bytes_brought(), ms })
        })
        .collect();
    measured[measured.len().saturating_sub(NEWEST)..].to_vec()
}

/// The slowest rate of the newest drills: an operator in an incident is better served by too long than by too short. `bytes` are of content and log; `rest`:
/// what drills do before they call it recovered, besides fetching.
pub(super) fn estimate(bytes: u64, measured: &[Measurement], rest: Option<&str>) -> Estimate {
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
            let rest = rest.map_or_else(String::new, |rest| format!(", with {rest}"));
            Estimate { duration_ms: slowest.max(floor), basis: format!("from {drills} of this plan{rest}") }
        }
        None => Estimate {
            duration_ms: bytes.saturating_mul(1000) / DEFAULT_BYTES_PER_SEC + 1000,
            basis: format!(
                "a guess at 100 MB/s{}: no drill has measured a recovery of this plan yet",
                rest.map_or_else(String::new, |rest| format!(", without {rest}"))
            ),
        },
    }
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, Utc};
    use serde_json::json;

    use super::*;
    use crate::id::{ReportId, SnapshotId};

    #[test]
    fn the_slowest_rate_of_the_drills_counts() {
        let measured = [Measurement { bytes: 1_000_000, ms: 10_000 }, Measurement { bytes: 2_000_000, ms: 10_000 }];
        assert_eq!(estimate(3_000_000, &measured, None).duration_ms, 30_000);
        assert_eq!(estimate(1, &measured, None).duration_ms, 1000);
    }

    #[test]
    fn a_guess_says_that_it_is_one() {
        let guess = estimate(1_000_000_000, &[], Some("the replay"));
        assert_eq!(guess.duration_ms, 11_000);
        assert!(guess.basis.starts_with("a guess at 100 MB/s, without the replay:"), "{guess:?}");
        let measured = estimate(1, &[Measurement { bytes: 1, ms: 1 }], Some("the replay"));
        assert_eq!(measured.basis, "from the last drill of this plan, with the replay");
    }

    #[test]
    fn nothing_measured_divides_by_zero() {
        assert_eq!(estimate(0, &[Measurement { bytes: 0, ms: 0 }], None).duration_ms, 0);
        assert_eq!(estimate(u64::MAX, &[Measurement { bytes: 0, ms: u64::MAX }], None).duration_ms, u64::MAX);
    }

    #[test]
    fn a_drill_counts_with_its_log_and_only_where_the_server_was_waited_for() {
        let time: DateTime<Utc> = "2026-11-01T05:00:00Z".parse().unwrap();
        let report = |phases: &[&str], log: Option<u64>| {
            let id = ReportId::generate(time);
            let recovery = log.map(|bytes| {
                json!({ "source": "db", "target": "latest", "timeline": "latest", "along": 1, "from": "0/1", "to": "0/2", "reaches": null,
                    "bytes": bytes, "at": time })
            });
            let phases: Vec<_> = phases.iter().map(|name| json!({ "name": name, "duration_ms": 1 })).collect();
            let document = json!({
                "schema": "lifeboat.drill/1", "id": id, "plan": "crm", "host": "h", "snapshot": SnapshotId::generate(time), "snapshot_time": time,
                "recovery": recovery, "snapshot_age_ms": 0, "time": time, "verdict": "passed", "reasons": [], "failure": null,
                "recovery_time_ms": 17_000, "data_loss_ms": 0, "duration_ms": 1, "bytes_restored": 100, "entries_restored": 1, "phases": phases,
                "checks": [], "objectives": [], "skipped": [], "missing": [], "warnings": [], "seed": null, "exit": null, "program": "test",
                "cleanup": { "removed": true, "kept": null, "kept_until": null, "message": "removed" },
            });
            serde_json::from_value::<DrillReport>(document.clone()).unwrap();
            ReportRecord { id, kind: ReportKind::Drill, time, plan: Some("crm".into()), snapshots: vec![], passed: true, document }
        };
        let of = |kind: &str| -> Vec<SourceRecord> {
            vec![
                serde_json::from_value(
                    json!({ "name": "db", "kind": kind, "entries": 1, "bytes": 100, "finish": {}, "tree": { "depth": 0, "nodes": "" } }),
                )
                .unwrap(),
            ]
        };
        let reports = [report(&["fetch", "replay"], Some(1900)), report(&["fetch", "load"], None), report(&["fetch"], Some(1900))];
        let bytes = |kind| measurements(&reports, "crm", &of(kind)).iter().map(|m| (m.bytes, m.ms)).collect::<Vec<_>>();
        for kind in ["postgres", "postgres-logical"] {
            let mut found = bytes(kind);
            found.sort_unstable();
            assert_eq!(found, [(100, 17_000), (2000, 17_000)], "{kind}");
        }
        assert_eq!(bytes("files").len(), 3, "files can be used at once");
        // What was measured of so many bytes is what is expected of so many.
        assert_eq!(estimate(2000, &[Measurement { bytes: 2000, ms: 17_000 }], None).duration_ms, 17_000);
    }
}

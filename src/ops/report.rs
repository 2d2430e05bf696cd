//! A drill report as text for people. Pure.

use std::fmt::Write as _;

use crate::error::Kind;
use crate::ops::Verdict;
use crate::ops::drill::DrillReport;
use crate::ops::select::moment;
use crate::ops::verdict::duration_text;
use crate::source::Outcome;

/// The recovery report: verdict first, then what was restored, checked, measured and skipped. Lines end with `\n`; no colours.
#[must_use]
pub fn text(report: &DrillReport) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    write_report(&mut out, report).unwrap_or_default();
    out
}

/// How much was brought.
pub(super) fn restored(report: &DrillReport) -> String {
    let log = report.recovery.as_ref().filter(|_| report.bytes_restored > 0).map(|recovery| grouped(recovery.bytes));
    let log = log.map_or_else(String::new, |bytes| format!(", and {bytes} bytes of log"));
    format!("{} bytes in {} entries{log}", grouped(report.bytes_restored), grouped(report.entries_restored))
}

fn write_report(out: &mut String, report: &DrillReport) -> std::fmt::Result {
    writeln!(out, "Recovery drill of {}: {}", report.plan, headline(report))?;
    writeln!(out)?;
    writeln!(out, "  drill      {} on {} at {}", report.id, report.host, moment(report.time))?;
    writeln!(out, "  snapshot   {} of {} ({} old)", report.snapshot, moment(report.snapshot_time), duration_text(report.snapshot_age_ms))?;
    if let Some(recovery) = &report.recovery {
        let compared = report.compared_with.map_or_else(
            || "without fingerprints to compare with".to_owned(),
            |later| format!("compared with the fingerprints of snapshot {later}"),
        );
        writeln!(out, "  log        from {} to {}, to {}: {compared}", recovery.from, recovery.to, recovery.target)?;
    }
    if let Some(chosen) = chosen(report) {
        writeln!(out, "  chosen     {chosen}")?;
    }
    writeln!(out, "  restored   {}", restored(report))?;
    let recovery = report.recovery_time_ms.map_or_else(|| "not reached".into(), duration_text);
    writeln!(out, "  recovery   {recovery}{}", limit(report, "recovery_time"))?;
    writeln!(out, "  data loss  {} if disaster had struck then{}", data_loss(report), limit(report, "data_loss"))?;
    if let Some(measured) = report.data_loss_measured_ms {
        writeln!(out, "  measured   {} by the canary row", duration_text(measured))?;
    }

    section(out, "Why", &report.reasons)?;
    writeln!(out, "\nChecks")?;
    if report.checks.is_empty() {
        writeln!(out, "  none")?;
    }
    for check in &report.checks {
        let place = if check.source.is_empty() { String::new() } else { format!("{}: ", check.source) };
        let what = if check.outcome == Outcome::Passed {
            check.actual.clone()
        } else {
            format!("expected {}, found {}", check.expected, check.actual)
        };
        writeln!(out, "  {:<8} {place}{} — {what}", word(check.outcome), check.name)?;
    }
    writeln!(out, "\nPhases")?;
    for phase in &report.phases {
        writeln!(out, "  {:<8} {}", phase.name, duration_text(phase.duration_ms))?;
    }
    section(out, "Not checked", &report.skipped)?;
    section(out, "Warnings", &report.warnings)?;
    let missing: Vec<String> = report.missing.iter().map(|m| format!("{}: {} {}: {}", m.source, m.object, m.kind, m.message)).collect();
    section(out, "Not in the backup", &missing)?;
    writeln!(out, "\nClean-up\n  {}", report.cleanup.message)
}

/// How to repeat a random choice.
pub(super) fn chosen(report: &DrillReport) -> Option<String> {
    let seed = report.seed?;
    let again = report.recovery.as_ref().filter(|_| report.compared_with.is_none());
    let again = again.map_or_else(String::new, |recovery| {
        format!(": --at {} comes to this moment again", recovery.at.to_rfc3339_opts(chrono::SecondsFormat::Micros, true))
    });
    Some(format!("at random, seed {seed}{again}"))
}

fn section(out: &mut String, title: &str, lines: &[String]) -> std::fmt::Result {
    if lines.is_empty() {
        return Ok(());
    }
    writeln!(out, "\n{title}")?;
    lines.iter().try_for_each(|line| writeln!(out, "  {line}"))
}

pub(super) fn headline(report: &DrillReport) -> String {
    let verdict = match report.verdict {
        Verdict::Passed => "PASSED",
        Verdict::Failed => "FAILED",
        Verdict::Incomplete => "INCOMPLETE",
    };
    match report.exit() {
        Some(Kind::ObjectiveMissed) => format!("{verdict}, but an objective was missed"),
        Some(Kind::Damaged) => format!("{verdict}: damaged"),
        Some(Kind::Differs) => format!("{verdict}: restored content differs from what was backed up"),
        _ => verdict.into(),
    }
}

pub(super) fn data_loss(report: &DrillReport) -> String {
    report.data_loss_ms.map_or_else(|| "not known".into(), duration_text)
}

pub(super) fn limit(report: &DrillReport, name: &str) -> String {
    report.objectives.iter().find(|o| o.name == name).map_or_else(String::new, |objective| {
        format!(" (objective {}: {})", duration_text(objective.limit_ms), if objective.met { "met" } else { "MISSED" })
    })
}

pub(super) fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Passed => "passed",
        Outcome::Failed => "FAILED",
        Outcome::Differs => "DIFFERS",
        Outcome::Skipped => "skipped",
    }
}

/// Digits in groups of three.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_three() {
        assert_eq!([0, 999, 1000, 12_345_678].map(grouped), ["0", "999", "1 000", "12 345 678"]);
    }
}

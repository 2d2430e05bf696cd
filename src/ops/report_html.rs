//! A drill report as one page: no script, nothing from anywhere else, every text escaped. Pure.

use std::fmt::{self, Write as _};

use crate::ops::drill::DrillReport;
use crate::ops::report::{chosen, data_loss, headline, limit, restored, word};
use crate::ops::select::moment;
use crate::ops::verdict::duration_text;
use crate::ops::{Phase, Verdict};

const STYLE: &str = "\
:root{color-scheme:light dark;--back:#fff;--text:#1c2024;--soft:#60666d;--line:#d9dde1;--good:#1a7f37;--bad:#c62828;--open:#9a6700;--bar:#3b6fb6}
@media (prefers-color-scheme:dark){:root{--back:#15181b;--text:#e4e7ea;--soft:#9aa2aa;--line:#353b41;--good:#4ac26b;--bad:#ff7b72;--open:#d4a72c;--bar:#6ea3e8}}
body{margin:2rem auto;max-width:60rem;padding:0 1rem;background:var(--back);color:var(--text);font:1rem/1.5 system-ui,sans-serif}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}.good{color:var(--good)}.bad{color:var(--bad)}.open{color:var(--open)}
table{border-collapse:collapse;width:100%}th,td{text-align:left;vertical-align:top;padding:.3rem .8rem .3rem 0;border-bottom:1px solid var(--line);overflow-wrap:anywhere}
th{color:var(--soft);font-weight:500}svg{width:100%;height:auto}svg text{fill:var(--text);font:13px system-ui,sans-serif}svg rect{fill:var(--bar)}
footer{margin-top:2rem;color:var(--soft);font-size:.85rem}";

/// Text as HTML shows it: nothing in it is markup, and nothing in it is a control character.
struct Safe<'a>(&'a str);

impl fmt::Display for Safe<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                c if c.is_control() => f.write_char('\u{fffd}')?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// The recovery report as a whole page.
#[must_use]
pub fn html(report: &DrillReport) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    page(&mut out, report).unwrap_or_default();
    out
}

fn page(out: &mut String, report: &DrillReport) -> fmt::Result {
    let title = format!("Recovery drill of {}: {}", report.plan, headline(report));
    let class = match (report.verdict, report.exit()) {
        (Verdict::Passed, None) => "good",
        (Verdict::Failed, _) => "bad",
        _ => "open",
    };
    writeln!(out, "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">")?;
    writeln!(out, "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">")?;
    writeln!(out, "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">")?;
    writeln!(out, "<title>{}</title>\n<style>\n{STYLE}\n</style>\n</head>\n<body>\n<h1 class=\"{class}\">{0}</h1>", Safe(&title))?;
    list(out, "Why", &report.reasons)?;

    writeln!(out, "<h2>What was recovered</h2>\n<table>")?;
    let mut rows = vec![
        ("Drill", format!("{} on {} at {}", report.id, report.host, moment(report.time))),
        ("Snapshot", format!("{} of {} ({} old)", report.snapshot, moment(report.snapshot_time), duration_text(report.snapshot_age_ms))),
        ("Restored", restored(report)),
        ("Recovery time", report.recovery_time_ms.map_or_else(|| "not reached".into(), duration_text) + &limit(report, "recovery_time")),
        ("Data loss", format!("{} if disaster had struck then{}", data_loss(report), limit(report, "data_loss"))),
        ("Clean-up", report.cleanup.message.clone()),
    ];
    rows.extend(chosen(report).map(|chosen| ("Chosen", chosen)));
    for (name, value) in rows {
        writeln!(out, "<tr><th scope=\"row\">{name}</th><td>{}</td></tr>", Safe(&value))?;
    }
    writeln!(out, "</table>")?;

    checks(out, report)?;
    phases(out, &report.phases, report.duration_ms)?;
    list(out, "Not checked", &report.skipped)?;
    list(out, "Warnings", &report.warnings)?;
    let missing: Vec<String> = report.missing.iter().map(|m| format!("{}: {} {}: {}", m.source, m.object, m.kind, m.message)).collect();
    list(out, "Not in the backup", &missing)?;
    writeln!(out, "<footer>lifeboat {}. This page is a copy; the signed report is in the repository.</footer>", Safe(&report.program))?;
    writeln!(out, "</body>\n</html>")
}

fn checks(out: &mut String, report: &DrillReport) -> fmt::Result {
    writeln!(out, "<h2>Checks</h2>")?;
    if report.checks.is_empty() {
        return writeln!(out, "<p>none</p>");
    }
    writeln!(out, "<table>\n<tr><th>Outcome</th><th>Source</th><th>Check</th><th>Expected</th><th>Found</th></tr>")?;
    for check in &report.checks {
        let class = match word(check.outcome) {
            "passed" => "good",
            "skipped" => "open",
            _ => "bad",
        };
        writeln!(
            out,
            "<tr><td class=\"{class}\">{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            word(check.outcome),
            Safe(&check.source),
            Safe(&check.name),
            Safe(&check.expected),
            Safe(&check.actual)
        )?;
    }
    writeln!(out, "</table>")
}

/// One bar a phase, each where it was in the whole.
fn phases(out: &mut String, phases: &[Phase], whole_ms: u64) -> fmt::Result {
    const WIDTH: u64 = 480;
    writeln!(out, "<h2>Where the time went: {}</h2>", duration_text(whole_ms))?;
    let scale = phases.iter().map(|phase| phase.duration_ms).sum::<u64>().max(whole_ms).max(1);
    let at = |ms: u64| u64::try_from(u128::from(ms) * u128::from(WIDTH) / u128::from(scale)).unwrap_or(WIDTH);
    writeln!(out, "<svg viewBox=\"0 0 720 {}\" role=\"img\" aria-label=\"Duration of each phase\">", phases.len() * 26 + 4)?;
    let mut before = 0;
    for (row, phase) in phases.iter().enumerate() {
        let y = row * 26;
        let time = duration_text(phase.duration_ms);
        writeln!(
            out,
            "<text x=\"0\" y=\"{}\">{}</text><rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"18\" rx=\"2\"/><text x=\"600\" y=\"{}\">{time}</text>",
            y + 16,
            Safe(&phase.name),
            100 + at(before),
            y + 2,
            at(phase.duration_ms).max(1),
            y + 16,
        )?;
        before += phase.duration_ms;
    }
    writeln!(out, "</svg>")
}

fn list(out: &mut String, title: &str, lines: &[String]) -> fmt::Result {
    if lines.is_empty() {
        return Ok(());
    }
    writeln!(out, "<h2>{title}</h2>\n<ul>")?;
    lines.iter().try_for_each(|line| writeln!(out, "<li>{}</li>", Safe(line)))?;
    writeln!(out, "</ul>")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{ReportId, SnapshotId};
    use crate::ops::CheckRecord;
    use crate::ops::drill::Cleanup;
    use crate::source::Outcome;

    fn report() -> DrillReport {
        let time = chrono::DateTime::from_timestamp(1_790_000_000, 0).unwrap();
        let evil = "<script>alert('1')</script>\u{1b}[31m & \"x\"";
        DrillReport {
            schema: "lifeboat.drill/1".into(),
            id: ReportId::generate(time),
            plan: "crm".into(),
            host: evil.into(),
            snapshot: SnapshotId::generate(time),
            snapshot_time: time,
            recovery: None,
            compared_with: None,
            snapshot_age_ms: 60_000,
            time,
            verdict: Verdict::Failed,
            reasons: vec![evil.into()],
            failure: None,
            recovery_time_ms: Some(1500),
            data_loss_ms: Some(60_000),
            data_loss_measured_ms: Some(70_000),
            duration_ms: 2000,
            bytes_restored: 1234,
            entries_restored: 2,
            phases: vec![Phase { name: "fetch".into(), duration_ms: 1500 }, Phase { name: evil.into(), duration_ms: 500 }],
            checks: vec![CheckRecord {
                source: "db".into(),
                name: evil.into(),
                outcome: Outcome::Differs,
                expected: evil.into(),
                actual: evil.into(),
            }],
            objectives: Vec::new(),
            skipped: vec![evil.into()],
            missing: Vec::new(),
            warnings: vec![evil.into()],
            cleanup: Cleanup { removed: true, kept: None, kept_until: None, message: evil.into() },
            seed: Some(7),
            exit: Some("differs".into()),
            program: evil.into(),
            said: None,
        }
    }

    #[test]
    fn the_page_stands_alone_and_nothing_in_it_is_markup() {
        let page = html(&report());
        assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"));
        for wanted in
            ["FAILED: restored content differs", "class=\"bad\"", "DIFFERS", "&lt;script&gt;alert(&#39;1&#39;)", "&amp; &quot;x&quot;"]
        {
            assert!(page.contains(wanted), "{wanted}: {page}");
        }
        for unwanted in ["<script", "\u{1b}", "http://", "https://", "src=", "href=", "url(", "@import"] {
            assert!(!page.contains(unwanted), "{unwanted}: {page}");
        }
        // Two bars, one after the other, in a width of 480.
        assert!(page.contains("<rect x=\"100\" y=\"2\" width=\"360\""), "{page}");
        assert!(page.contains("<rect x=\"460\" y=\"28\" width=\"120\""), "{page}");
        assert!(page.contains("prefers-color-scheme:dark"));
    }

    #[test]
    fn a_drill_without_time_or_checks_is_a_page_too() {
        let page =
            html(&DrillReport { phases: Vec::new(), checks: Vec::new(), duration_ms: 0, verdict: Verdict::Passed, exit: None, ..report() });
        assert!(page.contains("<h1 class=\"good\">") && page.contains("<p>none</p>"));
    }
}

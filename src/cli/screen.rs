//! The status on one screen: what can be restored, to when, how long it takes, when that was last proven, what is wrong. Pure.
//!
//! A few plans are told in sentences; more in a table of a line each, those with problems first; of many, those without are summed up.
//! Widths are those of a terminal: a Chinese character takes two columns.

use std::fmt::Write as _;

use chrono::{DateTime, Utc};
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use crate::cli::render;
use crate::daemon::status::{PlanStatus, Problem, Status};

/// Up to so many plans are told in sentences.
const SENTENCES: usize = 2;
/// Up to so many without problems have a line each.
const LINES: usize = 20;
/// Of more problems the number is told.
const PROBLEMS: usize = 12;
const WIDEST_NAME: usize = 24;

/// How it is shown.
#[derive(Debug, Clone, Copy)]
pub struct Screen {
    /// Columns of the terminal.
    pub width: usize,
    pub colours: bool,
    /// Every plan has a line.
    pub all: bool,
}

impl Screen {
    fn paint(self, text: &str, code: &str) -> String {
        if self.colours { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    fn bad(self, text: &str) -> String {
        self.paint(text, "31;1")
    }

    fn good(self, text: &str) -> String {
        self.paint(text, "32")
    }
}

/// The whole of it.
#[must_use]
pub fn text(status: &Status, screen: Screen) -> String {
    let mut out = String::new();
    if status.plans.len() <= SENTENCES {
        for plan in &status.plans {
            out.push_str(&sentences(plan, status.time, screen));
            out.push('\n');
        }
    } else {
        out.push_str(&table(status, screen));
    }
    for problem in &status.problems {
        out.push_str(&wrapped(&screen.bad("! "), &format!("{}: {}", problem.kind, problem.message), 2, screen.width, usize::MAX));
    }
    out.push_str(&footer(status, screen));
    out
}

fn footer(status: &Status, screen: Screen) -> String {
    let mut out = String::new();
    let failing: Vec<&str> = status.notifiers.iter().filter(|one| one.failures > 0).map(|one| one.name.as_str()).collect();
    if !status.notifiers.is_empty() {
        let told = if failing.is_empty() {
            let names: Vec<&str> = status.notifiers.iter().map(|one| one.name.as_str()).collect();
            let waiting: u64 = status.notifiers.iter().map(|one| one.waiting).sum();
            let waits = if waiting > 1 { format!(" ({waiting} events wait for the next message)") } else { String::new() };
            format!("told of problems: {}{waits}", names.join(", "))
        } else {
            format!("cannot be told of problems now: {}", failing.join(", "))
        };
        out.push_str(&wrapped("", &told, 2, screen.width, usize::MAX));
    }
    if status.daemon {
        out.push_str("a daemon is running\n");
    } else {
        let text = "no daemon is running on this state folder: schedules are not followed and nobody is told (`lifeboat serve`)";
        out.push_str(&wrapped("", text, 2, screen.width, usize::MAX));
    }
    out
}

/// One plan in sentences.
fn sentences(plan: &PlanStatus, now: DateTime<Utc>, screen: Screen) -> String {
    let moment = |at: Option<DateTime<Utc>>, never: &str| {
        at.map_or_else(|| never.to_owned(), |at| format!("{} ({})", render::time(at), render::ago(at, now)))
    };
    let state = if plan.problems.is_empty() { screen.good("OK") } else { screen.bad("PROBLEMS") };
    let mut out = format!("{}  {state}\n", plan.name);
    let newest = plan.restorable_to.max(plan.recovery_point);
    let oldest = plan
        .restorable_from
        .filter(|from| Some(*from) != newest)
        .map_or_else(String::new, |from| format!(", back to {}", moment(Some(from), "")));
    let mut pairs = vec![("last success", moment(plan.last_success, "never")), ("can restore to", moment(newest, "nothing") + &oldest)];
    if plan.whole_point != plan.recovery_point && plan.restorable_to <= plan.whole_point {
        pairs.push(("whole", format!("{} (what is newer lacks something or is damaged)", moment(plan.whole_point, "nothing"))));
    }
    let unknown = if plan.whole_point.is_some() { "not known" } else { "everything" };
    pairs.push(("loss if lost now", against(plan.data_loss_ms, plan.data_loss_objective_ms, unknown)));
    pairs.push(("recovery takes", takes(plan)));
    let proven = plan.proven_at.map_or_else(
        || "never".to_owned(),
        |at| format!("{}, the content of {}", moment(Some(at), ""), render::or_dash(plan.proven_point.map(render::time))),
    );
    pairs.push(("last proven", proven));
    let next = match (plan.next_run, &plan.next_job) {
        (Some(at), Some(job)) => format!("{job} at {}", moment(Some(at), "")),
        _ => "none: no schedule".to_owned(),
    };
    pairs.push(("next run", next));
    for (name, value) in pairs {
        out.push_str(&wrapped(&format!("  {name:<16}  "), &value, 20, screen.width, usize::MAX));
    }
    for log in &plan.logs {
        // Behind a gap there is log, and nothing that could be recovered by it.
        let of_source = format!("source {} ", log.source);
        let gap = plan.problems.iter().any(|problem| problem.kind == "log-gap" && problem.message.contains(&of_source));
        let text = format!(
            "log of {}: {} until {}, {} behind the server",
            log.source,
            if gap { "stored with a GAP (log-gap, below)" } else { "whole" },
            moment(log.server_clock, "no known moment"),
            render::bytes(log.lag_bytes)
        );
        out.push_str(&wrapped("  ", &text, 4, screen.width, usize::MAX));
    }
    for copy in &plan.copies {
        let newest = if copy.reachable { moment(copy.newest, "nothing yet") } else { "NOT REACHABLE".to_owned() };
        let behind =
            copy.behind_ms.filter(|behind| *behind > 0).map_or_else(String::new, |ms| format!(", {} behind", render::duration_ms(ms)));
        out.push_str(&wrapped("  ", &format!("copy in {}: has {newest}{behind}", copy.repository), 4, screen.width, usize::MAX));
    }
    for run in &plan.running {
        let _ = writeln!(out, "  running: {run}");
    }
    for problem in &plan.problems {
        out.push_str(&wrapped(
            &format!("  {}", screen.bad("! ")),
            &format!("{}: {}", problem.kind, problem.message),
            4,
            screen.width,
            usize::MAX,
        ));
    }
    out
}

fn against(value: Option<u64>, limit: Option<u64>, unknown: &str) -> String {
    let limit = limit.map(render::duration_ms);
    match (value.map(render::duration_ms), limit) {
        (Some(value), Some(limit)) => format!("{value} of {limit} allowed"),
        (None, Some(limit)) => format!("{unknown} ({limit} allowed)"),
        (Some(value), None) => format!("{value} (no objective)"),
        (None, None) => format!("{unknown} (no objective)"),
    }
}

/// As measured last, and what is to be expected where that differs.
fn takes(plan: &PlanStatus) -> String {
    let measured = against(plan.recovery_time_ms, plan.recovery_time_objective_ms, "not measured yet");
    let Some(forecast) = &plan.forecast else { return measured };
    let mut more = Vec::new();
    if let Some(expected) =
        forecast.recovery_time_ms.filter(|expected| plan.recovery_time_ms.is_some_and(|last| expected.abs_diff(last) > last / 10 + 1000))
    {
        more.push(format!("{} expected, {}", render::duration_ms(expected), forecast.note));
    }
    if let Some(at) = forecast.breaks_at.filter(|_| plan.recovery_time_objective_ms.is_some()) {
        more.push(format!("too long from {} on at this growth", at.format("%Y-%m-%d")));
    }
    if more.is_empty() { measured } else { format!("{measured}; {}", more.join("; ")) }
}

/// Many plans, a line each.
fn table(status: &Status, screen: Screen) -> String {
    let now = status.time;
    let (wrong, fine): (Vec<&PlanStatus>, Vec<&PlanStatus>) = status.plans.iter().partition(|plan| !plan.problems.is_empty());
    let listed_fine = screen.all || fine.len() <= LINES;
    let rows: Vec<(&PlanStatus, [String; 6])> =
        wrong.iter().chain(fine.iter().filter(|_| listed_fine)).map(|plan| (*plan, row(plan, now))).collect();
    let mut out = String::new();
    if !rows.is_empty() {
        let header = ["restore to", "back to", "takes", "allowed", "proven", "next"].map(str::to_owned);
        let name_width = rows.iter().map(|(plan, _)| plan.name.width()).max().unwrap_or(0).clamp(4, WIDEST_NAME);
        let mut widths = header.clone().map(|text| text.width());
        for (_, row) in &rows {
            widths.iter_mut().zip(row).for_each(|(width, cell)| *width = (*width).max(cell.width()));
        }
        let line = |mark: &str, name: &str, cells: &[String; 6]| {
            let mut line = format!("{mark} {}", padded(name, name_width));
            for (cell, width) in cells.iter().zip(widths) {
                line.push_str("  ");
                line.push_str(&padded(cell, width));
            }
            line
        };
        // What does not fit is cut at the right: the next run is the least of it.
        out.push_str(cut(&line(" ", "plan", &header), screen.width).trim_end());
        out.push('\n');
        for (plan, cells) in &rows {
            let (mark, painted) = if plan.problems.is_empty() { (" ", " ".to_owned()) } else { ("!", screen.bad("!")) };
            let text = cut(&line(mark, &plan.name, cells), screen.width);
            let _ = writeln!(out, "{painted}{}", text.trim_end().strip_prefix(mark).unwrap_or_default());
        }
    }
    if !listed_fine {
        out.push_str(&wrapped(
            &format!("  {}", screen.good(&format!("{} plans without problems", fine.len()))),
            &summed_up(&fine, now),
            4,
            screen.width,
            usize::MAX,
        ));
    }
    out.push('\n');
    let problems: Vec<(&str, &Problem)> =
        wrong.iter().flat_map(|plan| plan.problems.iter().map(|problem| (plan.name.as_str(), problem))).collect();
    let lines = if problems.len() > 4 { 2 } else { usize::MAX };
    let shown = if screen.all { problems.len() } else { PROBLEMS };
    for (plan, problem) in problems.iter().take(shown) {
        out.push_str(&wrapped(&screen.bad("! "), &format!("{plan}: {}: {}", problem.kind, problem.message), 2, screen.width, lines));
    }
    if problems.len() > shown {
        let _ =
            writeln!(out, "… and {} more problems: `lifeboat status --all`, or of one plan `lifeboat status PLAN`", problems.len() - shown);
    }
    if problems.is_empty() {
        let _ = writeln!(out, "{}", screen.good("nothing is wrong"));
    }
    out
}

fn row(plan: &PlanStatus, now: DateTime<Utc>) -> [String; 6] {
    let ago = |at: Option<DateTime<Utc>>, never: &str| at.map_or_else(|| never.to_owned(), |at| short_ago(at, now));
    let next = match (plan.next_run, &plan.next_job) {
        (Some(at), Some(job)) => format!("{job} {}", short_ago(at, now)),
        _ => "-".to_owned(),
    };
    let expected = plan.forecast.as_ref().and_then(|forecast| forecast.recovery_time_ms).or(plan.recovery_time_ms);
    [
        ago(plan.restorable_to, if plan.recovery_point.is_some() { "not whole" } else { "NOTHING" }),
        ago(plan.restorable_from, "-"),
        expected.map_or_else(|| "not known".to_owned(), short),
        plan.recovery_time_objective_ms.map_or_else(|| "-".to_owned(), short),
        ago(plan.proven_at, "never"),
        next,
    ]
}

/// What holds of all of them: the worst of each.
fn summed_up(plans: &[&PlanStatus], now: DateTime<Utc>) -> String {
    let oldest = plans.iter().filter_map(|plan| plan.restorable_to).min();
    let slowest = plans.iter().filter_map(|plan| plan.forecast.as_ref()?.recovery_time_ms.or(plan.recovery_time_ms)).max();
    let proven = plans.iter().filter_map(|plan| plan.proven_at).min();
    let part = |text: Option<String>| text.unwrap_or_else(|| "not known".to_owned());
    format!(
        ": each can be restored to {} or later, takes {} at most, was proven {} or later (--all lists them)",
        part(oldest.map(|at| short_ago(at, now))),
        part(slowest.map(short)),
        part(proven.map(|at| short_ago(at, now)))
    )
}

/// With one unit: `4 s`, `12 min`, `31 d`.
fn short(ms: u64) -> String {
    match ms / 1000 {
        0 => format!("{ms} ms"),
        seconds @ 1..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} d", seconds / 86_400),
    }
}

fn short_ago(at: DateTime<Utc>, now: DateTime<Utc>) -> String {
    let text = short((now - at).num_milliseconds().unsigned_abs() / 1000 * 1000);
    match (now - at).num_seconds() {
        0 => "now".to_owned(),
        1.. => format!("{text} ago"),
        _ => format!("in {text}"),
    }
}

/// With spaces up to a width, or cut to it.
fn padded(text: &str, width: usize) -> String {
    let text = cut(text, width);
    let spaces = width.saturating_sub(text.width());
    text + &" ".repeat(spaces)
}

/// At most so many columns; what is left out is shown as `…`.
fn cut(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let (mut out, mut used) = (String::new(), 0);
    for c in text.chars() {
        let columns = c.width().unwrap_or(0);
        if used + columns + 1 > width {
            break;
        }
        used += columns;
        out.push(c);
    }
    out + "…"
}

/// `first` and the words after it, in lines of at most `width` columns, the later ones `indent` to the right; at most `lines`, the last cut.
fn wrapped(first: &str, text: &str, indent: usize, width: usize, lines: usize) -> String {
    let width = width.max(20);
    // Colours take no columns.
    let first_width = strip_colours(first).width();
    let mut rows: Vec<(String, usize)> = vec![(first.to_owned(), first_width)];
    let mut begun = false;
    for word in text.split_whitespace() {
        let Some((row, used)) = rows.last_mut() else { break };
        let space = usize::from(begun);
        if *used + space + word.width() <= width || !begun {
            if space == 1 {
                row.push(' ');
            }
            row.push_str(word);
            *used += space + word.width();
            begun = true;
        } else {
            rows.push((format!("{}{word}", " ".repeat(indent)), indent + word.width()));
        }
    }
    let more = rows.len() > lines;
    rows.truncate(lines.max(1));
    if more && let Some((row, used)) = rows.last_mut() {
        // Room for the mark.
        while *used + 2 > width {
            let Some(c) = row.pop() else { break };
            *used = used.saturating_sub(c.width().unwrap_or(0));
        }
        row.push_str(" …");
    }
    rows.into_iter().fold(String::new(), |out, (row, _)| out + row.trim_end() + "\n")
}

fn strip_colours(text: &str) -> String {
    let mut out = String::new();
    let mut inside = false;
    for c in text.chars() {
        match (inside, c) {
            (false, '\u{1b}') => inside = true,
            (true, 'm') => inside = false,
            (false, c) => out.push(c),
            _ => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::status::{Forecast, ProblemKind};

    fn at(text: &str) -> DateTime<Utc> {
        format!("2026-11-{text}Z").parse().unwrap()
    }

    fn plan(name: &str, problems: &[(ProblemKind, &str)]) -> PlanStatus {
        let forecast = Forecast {
            recovery_time_ms: Some(750_000),
            drills: 9,
            growth_bytes_per_day: Some(1 << 30),
            breaks_at: None,
            note: "from 9 drills of different sizes".into(),
        };
        PlanStatus {
            name: name.into(),
            last_success: Some(at("28T02:20:00")),
            snapshot: Some("01k".into()),
            recovery_point: Some(at("28T02:15:00")),
            whole_snapshot: Some("01k".into()),
            whole_point: Some(at("28T02:15:00")),
            snapshots: 30,
            restorable_from: Some(at("01T02:15:00")),
            restorable_to: Some(at("28T17:59:56")),
            bytes_source: Some(1 << 37),
            data_loss_ms: Some(4000),
            data_loss_objective_ms: Some(300_000),
            recovery_time_ms: Some(680_000),
            recovery_time_objective_ms: Some(2_700_000),
            forecast: Some(forecast),
            proven_at: Some(at("25T05:00:00")),
            proven_point: Some(at("25T02:15:00")),
            next_run: Some(at("29T02:15:00")),
            next_job: Some("backup".into()),
            running: vec![],
            repository_reachable: true,
            logs: vec![],
            copies: Vec::new(),
            problems: problems.iter().map(|(kind, message)| Problem::new(*kind, *message)).collect(),
        }
    }

    fn shown(plans: Vec<PlanStatus>, width: usize) -> String {
        let status = Status { schema: String::new(), time: at("28T18:00:00"), daemon: true, plans, notifiers: vec![], problems: vec![] };
        let text = text(&status, Screen { width, colours: false, all: false });
        for line in text.lines() {
            assert!(line.width() <= width, "{} columns: {line}", line.width());
        }
        text
    }

    const OVERDUE: (ProblemKind, &str) = (
        ProblemKind::Overdue,
        "a backup was due at 2026-11-28 02:15:00 UTC and did not start; a drill run has been going since 2026-11-28T01:00:00Z (run 01k9)",
    );

    #[test]
    fn one_plan_is_told_in_sentences() {
        insta::assert_snapshot!("one_80", shown(vec![plan("crm", &[OVERDUE])], 80));
        insta::assert_snapshot!("one_120", shown(vec![plan("客户关系管理", &[])], 120));
    }

    #[test]
    fn five_plans_are_a_table_and_what_is_wrong_stands_below() {
        let names = ["crm", "orders-archive-of-the-whole-company", "客户关系管理", "files", "wiki"];
        let mut plans: Vec<PlanStatus> = names.iter().map(|name| plan(name, &[])).collect();
        plans[2].problems = vec![Problem::new(OVERDUE.0, OVERDUE.1)];
        plans[3].recovery_point = None;
        (plans[3].restorable_to, plans[3].restorable_from, plans[3].proven_at, plans[3].forecast) = (None, None, None, None);
        (plans[3].recovery_time_ms, plans[3].next_run) = (None, None);
        plans[3].problems = vec![Problem::new(ProblemKind::NeverBackedUp, "there is no snapshot: nothing can be restored")];
        insta::assert_snapshot!("five_80", shown(plans.clone(), 80));
        insta::assert_snapshot!("five_120", shown(plans, 120));
    }

    #[test]
    fn a_log_with_a_gap_is_not_called_whole() {
        let log = |source: &str| {
            let value = serde_json::json!({
                "schema": "lifeboat.log/1", "plan": "crm", "source": source, "time": at("28T18:00:00"), "connected": true, "timeline": 1,
                "durable_to": "0/200", "server_end": "0/200", "lag_bytes": 0, "newest_commit": null, "server_clock": at("28T17:59:56"),
                "held_bytes": null, "safe_bytes": null, "wal_status": null, "slot": "s", "gaps": [], "error": null,
            });
            serde_json::from_value(value).unwrap()
        };
        let mut gap =
            plan("crm", &[(ProblemKind::LogGap, "the log of source db has a hole from 0/1 to 0/2: nothing behind can be recovered")]);
        gap.logs = vec![log("db"), log("db2")];
        let text = shown(vec![gap.clone()], 120);
        assert!(text.contains("log of db: stored with a GAP (log-gap, below) until 2026-11-28"), "{text}");
        assert!(text.contains("log of db2: whole until 2026-11-28"), "{text}");
        gap.problems.clear();
        assert!(shown(vec![gap], 120).contains("log of db: whole until"));
    }

    #[test]
    fn fifty_plans_fit_on_one_screen() {
        let mut plans: Vec<PlanStatus> = (0..50).map(|i| plan(&format!("plan-{i:02}"), &[])).collect();
        for i in [7, 31, 44] {
            plans[i].problems =
                vec![Problem::new(OVERDUE.0, OVERDUE.1), Problem::new(ProblemKind::Failed, "the last backup failed: no route to host")];
        }
        let text = shown(plans.clone(), 80);
        assert!(text.lines().count() <= 24, "{} lines\n{text}", text.lines().count());
        insta::assert_snapshot!("fifty_80", text);
        for plan in &mut plans {
            plan.problems = vec![Problem::new(ProblemKind::Failed, "x")];
        }
        let text = shown(plans, 120);
        assert!(text.contains("… and 38 more problems"), "{text}");
    }

    #[test]
    fn colours_are_only_where_they_are_asked_for() {
        let status = Status {
            schema: String::new(),
            time: at("28T18:00:00"),
            daemon: true,
            plans: vec![plan("a", &[OVERDUE]), plan("b", &[]), plan("c", &[])],
            notifiers: vec![],
            problems: vec![Problem::new(ProblemKind::PlansBroken, "x")],
        };
        let plain = text(&status, Screen { width: 80, colours: false, all: false });
        let coloured = text(&status, Screen { width: 80, colours: true, all: false });
        assert!(!plain.contains('\u{1b}') && coloured.contains('\u{1b}'));
        assert_eq!(strip_colours(&coloured), plain);
    }

    #[test]
    fn words_are_wrapped_by_their_width() {
        assert_eq!(wrapped("! ", "one two three four five six seven", 2, 20, usize::MAX), "! one two three four\n  five six seven\n");
        assert_eq!(wrapped("! ", "one two three four five six seven", 2, 20, 1), "! one two three fo …\n");
        assert_eq!((cut("客户关系管理", 7), padded("客户", 6)), ("客户关…".to_owned(), "客户  ".to_owned()));
        assert_eq!(
            [short(999), short(119_000), short(120_000), short(7_200_000), short(172_800_000)],
            ["999 ms", "119 s", "2 min", "2 h", "2 d"]
        );
    }
}

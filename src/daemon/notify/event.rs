//! What somebody is told: events, the notice that carries them, and which occasion a problem is.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::plan::Occasion;

/// Events that a notice lists; of more it says how many.
pub const LISTED: usize = 50;

/// What became of what an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// It happened and is done: a run began or succeeded, a test.
    Happened,
    /// It stands from now on.
    Raised,
    /// It still stands.
    Reminded,
    /// It is over.
    Over,
}

/// One thing to tell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Unique; the same again is the same event, delivered again.
    pub id: String,
    pub time: DateTime<Utc>,
    /// The word of the occasion, as in a notifier's `on`; `test` for a test.
    pub occasion: String,
    pub change: Change,
    pub plan: Option<String>,
    pub job: Option<String>,
    /// The kind of the problem, as in `lifeboat.status/1`.
    pub problem: Option<String>,
    /// Since when the problem stands, or stood.
    pub since: Option<DateTime<Utc>>,
    /// The run in the journal that it is of.
    pub run: Option<String>,
    /// A sentence; nothing secret and nothing of rows.
    pub message: String,
}

impl Event {
    /// One line: plan, what, message.
    #[must_use]
    pub fn line(&self) -> String {
        let plan = self.plan.as_deref().map_or_else(String::new, |plan| format!("{plan}: "));
        let still = if self.change == Change::Reminded { "still " } else { "" };
        format!("{plan}{still}{} — {}", self.occasion, self.message)
    }

    /// How bad it is.
    #[must_use]
    pub fn severity(&self) -> Severity {
        match Occasion::from_word(&self.occasion) {
            None | Some(Occasion::Start | Occasion::Success | Occasion::Recovered) => Severity::Ok,
            Some(
                Occasion::Incomplete | Occasion::ObjectiveAtRisk | Occasion::NeverProven | Occasion::Expiring | Occasion::LogNotStreamed,
            ) => Severity::Warning,
            Some(_) => Severity::Critical,
        }
    }
}

/// How bad something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    Ok,
    Warning,
    Critical,
}

/// `lifeboat.notice/1`: what a webhook of the generic form and a command get, and what templates are filled with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    pub schema: String,
    /// Of the first event: the same again is the same notice, delivered again.
    pub id: String,
    pub time: DateTime<Utc>,
    pub host: String,
    pub notifier: String,
    /// Of the worst event.
    pub severity: Severity,
    /// One line for a subject.
    pub title: String,
    /// Some lines for a person.
    pub text: String,
    /// How many events it tells of; at most [`LISTED`] are in `events`.
    pub count: u64,
    /// Oldest first.
    pub events: Vec<Event>,
}

impl Notice {
    /// Of some events (at least one), oldest first; `unlisted`: how many more there were.
    #[must_use]
    pub fn new(notifier: &str, host: &str, events: &[Event], unlisted: u64, now: DateTime<Utc>) -> Self {
        let count = events.len() as u64 + unlisted;
        let severity = events.iter().map(Event::severity).max().unwrap_or(Severity::Ok);
        let mut text = String::new();
        // What is worst is read first; what is beyond the list is counted.
        let mut shown: Vec<&Event> = events.iter().collect();
        shown.sort_by_key(|event| std::cmp::Reverse(event.severity()));
        for event in shown.iter().take(LISTED) {
            text.push_str(&event.line());
            text.push('\n');
        }
        let hidden = count.saturating_sub(shown.len().min(LISTED) as u64);
        if hidden > 0 {
            text = format!("{text}… and {hidden} more; `lifeboat status` shows how everything stands\n");
        }
        let title = match events {
            [event] if unlisted == 0 => format!("lifeboat: {}", event.line()),
            _ => format!("lifeboat: {count} events: {}", summary(events)),
        };
        let mut kept: Vec<Event> = shown.into_iter().take(LISTED).cloned().collect();
        kept.sort_by(|a, b| (a.time, &a.id).cmp(&(b.time, &b.id)));
        Self {
            schema: "lifeboat.notice/1".to_owned(),
            id: events.first().map(|event| event.id.clone()).unwrap_or_default(),
            time: now,
            host: host.to_owned(),
            notifier: notifier.to_owned(),
            severity,
            title: shortened(&one_line(&title), 200),
            text: text.trim_end().to_owned(),
            count,
            events: kept,
        }
    }
}

/// `3 failure, 1 recovered`.
fn summary(events: &[Event]) -> String {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for event in events {
        match counts.iter_mut().find(|(word, _)| *word == event.occasion) {
            Some((_, count)) => *count += 1,
            None => counts.push((&event.occasion, 1)),
        }
    }
    counts.iter().map(|(word, count)| format!("{count} {word}")).collect::<Vec<_>>().join(", ")
}

/// Without what could break a header or a terminal.
pub(in crate::daemon::notify) fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// At most so many characters, whole.
pub(in crate::daemon::notify) fn shortened(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most.saturating_sub(1)).chain(['…']).collect()
}

/// At most so many bytes of UTF-8, cut between characters and said so.
pub(in crate::daemon::notify) fn shortened_bytes(text: &str, most: usize) -> String {
    const CUT: &str = "\n…";
    if text.len() <= most {
        return text.to_owned();
    }
    let mut end = most.saturating_sub(CUT.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{CUT}", &text[..end])
}

/// The occasion that a problem of `lifeboat.status/1` is. One that is not known is a failure: nothing new is silent.
#[must_use]
pub fn occasion_of(kind: &str, job: Option<&str>) -> Occasion {
    match kind {
        "incomplete" if job != Some("drill") => Occasion::Incomplete,
        "drill-failed" => Occasion::DrillFailed,
        "failed" | "incomplete" if job == Some("drill") => Occasion::DrillFailed,
        "never-proven" => Occasion::NeverProven,
        "overdue" | "missed" | "never-backed-up" | "key-destroyed" | "plan-gone" | "schedule-gone" => Occasion::Overdue,
        "damaged" | "repository-changed" | "repository-unknown" => Occasion::Damaged,
        "data-loss-objective" | "recovery-time-objective" => Occasion::ObjectiveMissed,
        "data-loss-forecast" | "recovery-time-forecast" | "running-long" => Occasion::ObjectiveAtRisk,
        "log-gap" | "log-fork" | "log-slot" => Occasion::LogGap,
        "log-not-streamed" | "canary-not-written" => Occasion::LogNotStreamed,
        "retention-blocked" => Occasion::RetentionBlocked,
        "plans-broken" => Occasion::PlansBroken,
        "expiring" => Occasion::Expiring,
        "notifier-failing" => Occasion::NotifierFailing,
        _ => Occasion::Failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(id: &str, occasion: Occasion, message: &str) -> Event {
        Event {
            id: id.into(),
            time: "2026-11-20T02:00:00Z".parse().unwrap(),
            occasion: occasion.word().into(),
            change: Change::Raised,
            plan: Some("客户".into()),
            job: None,
            problem: None,
            since: None,
            run: None,
            message: message.into(),
        }
    }

    #[test]
    fn one_event_is_told_as_it_is_and_many_as_a_digest() {
        let now = "2026-11-20T02:00:05Z".parse().unwrap();
        let one = Notice::new("ops", "db1", &[event("a", Occasion::Failure, "the last backup failed: \r\nX: y")], 0, now);
        assert_eq!(one.title, "lifeboat: 客户: failure — the last backup failed:   X: y");
        assert_eq!((one.severity, one.count), (Severity::Critical, 1));
        let mut many: Vec<Event> = (0..1000).map(|i| event(&format!("{i:04}"), Occasion::Failure, "x")).collect();
        many.push(event("z", Occasion::Recovered, "over"));
        let digest = Notice::new("ops", "db1", &many, 7, now);
        assert_eq!(digest.title, "lifeboat: 1008 events: 1000 failure, 1 recovered");
        assert!(digest.text.ends_with("… and 958 more; `lifeboat status` shows how everything stands"), "{}", digest.text);
        assert_eq!((digest.count, digest.events.len(), digest.id.as_str()), (1008, LISTED, "0000"));
    }

    #[test]
    fn every_kind_of_problem_has_an_occasion_and_an_unknown_one_is_a_failure() {
        assert_eq!(occasion_of("failed", Some("backup")), Occasion::Failure);
        assert_eq!(occasion_of("failed", Some("drill")), Occasion::DrillFailed);
        assert_eq!(occasion_of("incomplete", Some("backup")), Occasion::Incomplete);
        assert_eq!(occasion_of("of-a-later-version", None), Occasion::Failure);
    }

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!(shortened("数据库备份", 3), "数据…");
        assert_eq!(shortened_bytes("数据库", 9), "数据库");
        assert_eq!(shortened_bytes("数据库备份", 10), "数据\n…");
    }
}

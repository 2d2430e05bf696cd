//! When nothing of a plan starts: windows of the week on the wall clock of its zone. Pure.
//!
//! A window is days and a time of day, such as `mon-fri 08:00-18:00`; days alone are whole days, a time alone is every day. One that ends
//! at or before its beginning ends on the next day and belongs to the day it begins on.

use std::fmt;

use chrono::{DateTime, Datelike as _, Days, NaiveDateTime, NaiveTime, TimeZone as _, Timelike as _, Utc};
use chrono_tz::Tz;

use crate::error::{Error, Kind, Result};
use crate::plan::schedule::after_gap;

const HINT: &str = "write days, a time of day, or both, such as \"mon-fri 08:00-18:00\", \"sat,sun\" or \"22:00-02:00\"";
const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
const DAY_MINUTES: u32 = 24 * 60;

/// Kinds of scheduled work by their words, as plan files name them.
pub const JOBS: [&str; 5] = ["backup", "copy", "drill", "verify", "prune"];

/// The windows of a plan and what they hold back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blackout {
    windows: Vec<Window>,
    zone: Tz,
    /// Words of [`JOBS`].
    jobs: Vec<String>,
}

impl Default for Blackout {
    fn default() -> Self {
        Self { windows: Vec::new(), zone: Tz::UTC, jobs: JOBS.map(str::to_owned).to_vec() }
    }
}

impl Blackout {
    /// `jobs`: words of [`JOBS`]; `None`: all.
    ///
    /// # Errors
    /// `Usage` when the windows leave no minute of the week free.
    pub fn new(windows: Vec<Window>, zone: Tz, jobs: Option<Vec<String>>) -> Result<Self> {
        let free = (0..7).any(|day| (0..DAY_MINUTES).any(|minute| !windows.iter().any(|window| window.covers(day, minute))));
        if !free {
            return Err(Error::new(Kind::Usage, "the blackout covers the whole week: nothing would ever run").hint("leave some time free"));
        }
        Ok(Self { windows, zone, jobs: jobs.unwrap_or_else(|| JOBS.map(str::to_owned).to_vec()) })
    }

    /// As written.
    #[must_use]
    pub fn windows(&self) -> &[Window] {
        &self.windows
    }

    /// What it holds back, as words of plan files.
    #[must_use]
    pub fn jobs(&self) -> &[String] {
        &self.jobs
    }

    /// When a run of this job may start that is to start at `at`: then, or at the end of the window that holds it back. Windows that touch
    /// are one.
    #[must_use]
    pub fn free_at(&self, job: &str, at: DateTime<Utc>) -> DateTime<Utc> {
        let mut free = at;
        if self.jobs.iter().any(|word| word == job) {
            // Some minute of the week is free, so that this ends; were it not so, a run late by a month is better than none.
            for _ in 0..64 {
                let Some(end) = self.end(free) else { break };
                free = end;
            }
        }
        free
    }

    /// Whether it ever holds this job back.
    pub(super) fn holds(&self, job: &str) -> bool {
        !self.windows.is_empty() && self.jobs.iter().any(|word| word == job)
    }

    /// For how many minutes it holds back what is due at this minute of the week, counted from Monday on the wall clock.
    pub(super) fn wait(&self, job: &str, minute_of_week: u32) -> u32 {
        let mut free = minute_of_week;
        if self.holds(job) {
            for _ in 0..64 {
                let Some(end) = self.windows.iter().filter_map(|window| window.end_minute(free)).max() else { break };
                free = end;
            }
        }
        free - minute_of_week
    }

    /// The end of a window that `at` is in.
    fn end(&self, at: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let wall = at.with_timezone(&self.zone).naive_local();
        let end = self.windows.iter().filter_map(|window| window.end(wall)).max()?;
        let (first, second) = match self.zone.from_local_datetime(&end) {
            chrono::MappedLocalTime::Single(instant) => (instant.with_timezone(&Utc), instant.with_timezone(&Utc)),
            chrono::MappedLocalTime::Ambiguous(first, second) => (first.with_timezone(&Utc), second.with_timezone(&Utc)),
            chrono::MappedLocalTime::None => (after_gap(self.zone, end), after_gap(self.zone, end)),
        };
        // Within the second pass of a repeated hour its first end is over.
        Some(if first > at { first } else { second }).filter(|end| *end > at)
    }
}

/// Days of the week and a time of day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    text: String,
    /// From Monday on.
    days: [bool; 7],
    /// Minutes since midnight: from 0 to 1439.
    from: u32,
    /// Minutes since the midnight that the day begins with: greater than `from`, at most 2879.
    to: u32,
}

impl Window {
    /// Reads `mon-fri 08:00-18:00`, `sat,sun`, `22:00-02:00`.
    ///
    /// # Errors
    /// `Usage` with the forms as the hint.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = |why: &str| Error::new(Kind::Usage, format!("not a valid window {text:?}: {why}")).hint(HINT);
        let words: Vec<&str> = text.split_whitespace().collect();
        let (days, times) = match words.as_slice() {
            [one] if one.contains(':') => (None, Some(*one)),
            [one] => (Some(*one), None),
            [days, times] => (Some(*days), Some(*times)),
            _ => return Err(wrong("it has more or less than days and a time")),
        };
        let days = match days {
            None => [true; 7],
            Some(days) => parse_days(days).ok_or_else(|| wrong("the days are not known"))?,
        };
        let (from, to) = match times {
            None => (0, DAY_MINUTES),
            Some(times) => {
                let (from, to) = times.split_once('-').ok_or_else(|| wrong("a time has a beginning and an end"))?;
                let from = parse_minute(from).filter(|from| *from < DAY_MINUTES).ok_or_else(|| wrong("it begins at no time of a day"))?;
                (from, parse_minute(to).ok_or_else(|| wrong("it ends at no time of a day"))?)
            }
        };
        if from == to {
            return Err(wrong("it ends where it begins"));
        }
        let to = if to < from { to + DAY_MINUTES } else { to };
        Ok(Self { text: words.join(" "), days, from, to })
    }

    /// Whether this minute of the week is in it.
    fn covers(&self, day: usize, minute: u32) -> bool {
        let before = (day + 6) % 7;
        (self.days[day] && (self.from..self.to).contains(&minute))
            || (self.days[before] && (self.from..self.to).contains(&(minute + DAY_MINUTES)))
    }

    /// Its end in minutes since Monday, where that minute is in it.
    fn end_minute(&self, minute_of_week: u32) -> Option<u32> {
        let (day, minute) = (minute_of_week / DAY_MINUTES, minute_of_week % DAY_MINUTES);
        let begins = |days_ago: u32| self.days.get(usize::try_from((day + 7 - days_ago) % 7).ok()?).filter(|begins| **begins);
        let midnight = day * DAY_MINUTES;
        let of_today = begins(0).filter(|_| (self.from..self.to).contains(&minute)).map(|_| midnight + self.to);
        let of_yesterday =
            begins(1).filter(|_| (self.from..self.to).contains(&(minute + DAY_MINUTES))).map(|_| midnight + self.to - DAY_MINUTES);
        of_today.max(of_yesterday)
    }

    /// Its end on the wall clock, where `wall` is in it.
    fn end(&self, wall: NaiveDateTime) -> Option<NaiveDateTime> {
        let minute = wall.hour() * 60 + wall.minute();
        let today = wall.date();
        let day = usize::try_from(today.weekday().num_days_from_monday()).ok()?;
        let midnight = |date: chrono::NaiveDate| date.and_time(NaiveTime::MIN);
        let ends = |begins: chrono::NaiveDate| {
            let date = begins.checked_add_days(Days::new(u64::from(self.to / DAY_MINUTES)))?;
            midnight(date).checked_add_signed(chrono::TimeDelta::minutes(i64::from(self.to % DAY_MINUTES)))
        };
        let of_today = (self.days[day] && (self.from..self.to).contains(&minute)).then(|| ends(today)).flatten();
        let of_yesterday =
            (self.days[(day + 6) % 7] && (self.from..self.to).contains(&(minute + DAY_MINUTES))).then(|| ends(today.pred_opt()?)).flatten();
        of_today.max(of_yesterday)
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn parse_days(text: &str) -> Option<[bool; 7]> {
    let day = |text: &str| DAYS.iter().position(|name| text.eq_ignore_ascii_case(name));
    let mut days = [false; 7];
    for part in text.split(',') {
        let (first, last) = match part.split_once('-') {
            Some((first, last)) => (day(first)?, day(last)?),
            None => (day(part)?, day(part)?),
        };
        let count = (last + 7 - first) % 7;
        for offset in 0..=count {
            days[(first + offset) % 7] = true;
        }
    }
    Some(days)
}

/// `08:00` to minutes since midnight; `24:00` is the end of a day.
fn parse_minute(text: &str) -> Option<u32> {
    let (hour, minute) = text.split_once(':')?;
    if !(1..=2).contains(&hour.len()) || minute.len() != 2 || !text.bytes().all(|byte| byte.is_ascii_digit() || byte == b':') {
        return None;
    }
    let (hour, minute) = (hour.parse::<u32>().ok()?, minute.parse::<u32>().ok()?);
    (minute < 60 && (hour < 24 || (hour == 24 && minute == 0))).then_some(hour * 60 + minute)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn utc(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    fn blackout(zone: Tz, windows: &[&str]) -> Blackout {
        Blackout::new(windows.iter().map(|window| Window::parse(window).unwrap()).collect(), zone, None).unwrap()
    }

    #[track_caller]
    fn free(blackout: &Blackout, at: &str, expected: &str) {
        assert_eq!(blackout.free_at("backup", utc(at)), utc(expected), "{at}");
    }

    #[test]
    fn a_run_due_inside_a_window_starts_at_its_end() {
        let office = blackout(Tz::Asia__Shanghai, &["mon-fri 08:00-18:00"]);
        // 2026-11-20 is a Friday; Shanghai is eight hours ahead.
        free(&office, "2026-11-20T00:00:00Z", "2026-11-20T10:00:00Z");
        free(&office, "2026-11-20T09:59:59Z", "2026-11-20T10:00:00Z");
        free(&office, "2026-11-20T10:00:00Z", "2026-11-20T10:00:00Z");
        free(&office, "2026-11-19T23:59:59Z", "2026-11-19T23:59:59Z");
        free(&office, "2026-11-21T04:00:00Z", "2026-11-21T04:00:00Z");
    }

    #[test]
    fn a_window_over_midnight_belongs_to_the_day_it_begins_on() {
        let nights = blackout(Tz::UTC, &["fri 22:00-02:00"]);
        free(&nights, "2026-11-20T23:00:00Z", "2026-11-21T02:00:00Z");
        free(&nights, "2026-11-21T01:59:00Z", "2026-11-21T02:00:00Z");
        free(&nights, "2026-11-20T01:00:00Z", "2026-11-20T01:00:00Z");
        free(&nights, "2026-11-21T23:00:00Z", "2026-11-21T23:00:00Z");
    }

    #[test]
    fn windows_that_touch_are_one_and_jobs_not_named_are_free() {
        let weekend = blackout(Tz::UTC, &["fri 20:00-24:00", "sat,sun", "mon 00:00-06:00"]);
        free(&weekend, "2026-11-20T21:00:00Z", "2026-11-23T06:00:00Z");
        let drills = Blackout::new(weekend.windows.clone(), Tz::UTC, Some(vec!["drill".into()])).unwrap();
        free(&drills, "2026-11-20T21:00:00Z", "2026-11-20T21:00:00Z");
        assert_eq!(drills.free_at("drill", utc("2026-11-20T21:00:00Z")), utc("2026-11-23T06:00:00Z"));
    }

    #[test]
    fn daylight_saving_moves_the_end_with_the_wall_clock() {
        // Berlin: 2026-03-29 02:00 → 03:00, 2026-10-25 03:00 → 02:00.
        let night = blackout(Tz::Europe__Berlin, &["01:00-02:30"]);
        free(&night, "2026-03-29T00:30:00Z", "2026-03-29T01:00:00Z");
        free(&night, "2026-10-25T00:15:00Z", "2026-10-25T00:30:00Z");
        // 02:15 comes again an hour later, and is in the window again.
        free(&night, "2026-10-25T01:15:00Z", "2026-10-25T01:30:00Z");
    }

    #[test]
    fn what_is_no_window_is_said() {
        for text in [
            "",
            "08:00",
            "mon-fri 8-18",
            "mon 08:00-08:00",
            "someday",
            "mon 25:00-26:00",
            "mon tue 08:00-09:00",
            "24:00-02:00",
            "1:+2-3:00",
        ] {
            let error = Window::parse(text).unwrap_err();
            assert_eq!(error.kind(), Kind::Usage, "{text}");
            assert!(error.hint_text().is_some());
        }
        let whole = ["mon-sun"].map(|text| Window::parse(text).unwrap()).to_vec();
        assert!(Blackout::new(whole, Tz::UTC, None).is_err());
        assert!(Blackout::new(["00:00-12:00", "12:00-24:00"].map(|text| Window::parse(text).unwrap()).to_vec(), Tz::UTC, None).is_err());
    }
}

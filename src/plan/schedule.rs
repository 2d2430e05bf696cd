//! When a schedule runs: crontab(5)'s five fields in a time zone, both daylight-saving cases decided. Pure.
//!
//! The `cron` crate does the calendar search, but not the reading: it takes seconds first, numbers Sunday as 1 and joins
//! day-of-month and day-of-week by *and*. We read the five fields ourselves, by crontab(5), and hand the crate only explicit lists
//! in its own numbering; where both days are restricted we ask two of its schedules and take the nearer answer (*or*).
//!
//! The search runs on local wall-clock time; each hit is mapped to an instant: a local time that does not exist runs at the next
//! valid instant, one that occurs twice runs the first time. That mapping never goes backwards, so slots stay in order, and slots
//! that fall on one instant are one slot.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, MappedLocalTime, NaiveDateTime, TimeDelta, TimeZone as _, Timelike as _, Utc};
use chrono_tz::Tz;

use crate::error::{Error, Kind, Result};
use crate::id::Name;

const HINT: &str = "write five fields: minute hour day-of-month month day-of-week, such as \"15 2 * * *\" (every day at 02:15)";

/// Nicknames of crontab(5).
const NICKNAMES: [(&str, &str); 7] = [
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
    ("@monthly", "0 0 1 * *"),
    ("@weekly", "0 0 * * 0"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@hourly", "0 * * * *"),
];

struct FieldRules {
    name: &'static str,
    min: u32,
    max: u32,
    /// In order, the first one standing for `min`.
    names: &'static [&'static str],
}

const FIELDS: [FieldRules; 5] = [
    FieldRules { name: "minute", min: 0, max: 59, names: &[] },
    FieldRules { name: "hour", min: 0, max: 23, names: &[] },
    FieldRules { name: "day of month", min: 1, max: 31, names: &[] },
    FieldRules {
        name: "month",
        min: 1,
        max: 12,
        names: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
    },
    // 7 is Sunday too; it becomes 0 once ranges are spread out.
    FieldRules { name: "day of week", min: 0, max: 7, names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"] },
];

/// A schedule in its time zone. Equal when text and zone are.
#[derive(Clone)]
pub struct Schedule {
    text: String,
    zone: Tz,
    /// One or more whose hits are joined. All run on wall-clock time dressed as UTC.
    searches: Arc<[cron::Schedule]>,
}

impl Schedule {
    /// Reads five fields or a nickname such as `@daily`.
    ///
    /// # Errors
    /// [`Kind::Usage`] when the text is not what crontab(5) accepts, or names a day that never comes.
    pub fn parse(text: &str, zone: Tz) -> Result<Self> {
        let fields = Fields::parse(text.trim())?;
        let schedule = Self { text: text.trim().to_owned(), zone, searches: fields.searches()?.into() };
        // The rarest schedule that runs at all is a 29 February on a given weekday: once in 28 years, and again well before 2100,
        // where the search of the `cron` crate ends.
        let epoch = DateTime::from_timestamp(1_704_067_200, 0).unwrap_or_default();
        if schedule.next_after(epoch).is_none() {
            return Err(
                Error::new(Kind::Usage, format!("schedule {:?} never runs", schedule.text)).hint("no month it names has such a day")
            );
        }
        Ok(schedule)
    }

    /// The slots of all of these, which follow one wall clock; `None` of none.
    #[must_use]
    pub fn any_of<'a>(schedules: impl Iterator<Item = &'a Self>) -> Option<Self> {
        let mut distinct: Vec<&Self> = schedules.collect();
        distinct.sort_by_key(|schedule| &schedule.text);
        distinct.dedup_by_key(|schedule| &schedule.text);
        let zone = distinct.first()?.zone;
        let text = distinct.iter().map(|schedule| schedule.text()).collect::<Vec<_>>().join(" | ");
        Some(Self { text, zone, searches: distinct.iter().flat_map(|schedule| schedule.searches.iter().cloned()).collect() })
    }

    /// As written in the plan.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// All run on wall-clock time dressed as UTC.
    pub(super) fn searches(&self) -> &[cron::Schedule] {
        &self.searches
    }

    /// The zone whose wall clock it follows.
    #[must_use]
    pub fn zone(&self) -> Tz {
        self.zone
    }

    /// The first slot strictly after `after`; `None` only beyond the year 2100.
    #[must_use]
    pub fn next_after(&self, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let mut local = after.with_timezone(&self.zone).naive_local();
        // Hits that map to `after` or before it are the second half of a repeated hour: passed once already.
        loop {
            local = self.searches.iter().filter_map(|search| search.after(&local.and_utc()).next()).min()?.naive_utc();
            let instant = self.instant(local);
            if instant > after {
                return Some(instant);
            }
        }
    }

    /// The last slot at or before `at`; `None` only before the year 1970.
    #[must_use]
    pub fn previous_at_or_before(&self, at: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let wall = at.with_timezone(&self.zone).naive_local();
        // Within the second pass of a repeated hour, all of the first pass has gone by, also what is later on the wall clock.
        let passed = match self.zone.from_local_datetime(&wall) {
            MappedLocalTime::Ambiguous(first, second) if at >= second.with_timezone(&Utc) => {
                second.with_timezone(&Utc) - first.with_timezone(&Utc)
            }
            _ => TimeDelta::zero(),
        };
        let mut local = wall.with_nanosecond(0)?.checked_add_signed(passed)?.checked_add_signed(TimeDelta::seconds(1))?;
        loop {
            local = self.searches.iter().filter_map(|search| search.after(&local.and_utc()).next_back()).max()?.naive_utc();
            let instant = self.instant(local);
            if instant <= at {
                return Some(instant);
            }
        }
    }

    /// The next `count` slots after `after`, in order.
    #[must_use]
    pub fn upcoming(&self, after: DateTime<Utc>, count: usize) -> Vec<DateTime<Utc>> {
        std::iter::successors(self.next_after(after), |slot| self.next_after(*slot)).take(count).collect()
    }

    /// The daylight-saving rule; never decreasing in `local`.
    fn instant(&self, local: NaiveDateTime) -> DateTime<Utc> {
        match self.zone.from_local_datetime(&local) {
            MappedLocalTime::Single(instant) | MappedLocalTime::Ambiguous(instant, _) => instant.with_timezone(&Utc),
            MappedLocalTime::None => after_gap(self.zone, local),
        }
    }
}

impl PartialEq for Schedule {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text && self.zone == other.zone
    }
}

impl Eq for Schedule {}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Schedule({} in {})", self.text, self.zone)
    }
}

/// The first instant whose wall clock shows more than the skipped time `local`. Offsets stay within a day of UTC and a zone does not change
/// twice within two days, so the wall clock is in order over the searched range.
pub(super) fn after_gap(zone: Tz, local: NaiveDateTime) -> DateTime<Utc> {
    let middle = local.and_utc().timestamp();
    let (mut before, mut after) = (middle - 26 * 3_600, middle + 26 * 3_600);
    while after - before > 1 {
        let probe = before + (after - before) / 2;
        let shown = DateTime::from_timestamp(probe, 0).map(|instant| instant.with_timezone(&zone).naive_local());
        if shown.is_some_and(|shown| shown > local) {
            after = probe;
        } else {
            before = probe;
        }
    }
    DateTime::from_timestamp(after, 0).unwrap_or_else(|| local.and_utc())
}

/// How long a run waits after its slot, so that many plans with one schedule do not start in the same second: spread evenly over
/// 0 to `max` (whole seconds, inclusive), and always the same for one plan and slot, so that a restart does not move it.
#[must_use]
pub fn jitter_for(plan: &Name, slot: DateTime<Utc>, max: Duration) -> Duration {
    let mut hasher = blake3::Hasher::new_derive_key("lifeboat schedule jitter v1");
    hasher.update(plan.as_str().as_bytes());
    hasher.update(&slot.timestamp().to_le_bytes());
    let mut word = [0; 8];
    word.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    Duration::from_secs(u64::from_le_bytes(word) % max.as_secs().saturating_add(1))
}

/// A time zone by its IANA name.
///
/// # Errors
/// [`Kind::Usage`] with the nearest name as the hint.
pub fn parse_timezone(text: &str) -> Result<Tz> {
    Tz::from_str(text).map_err(|_| {
        let folded = text.to_lowercase();
        let near = chrono_tz::TZ_VARIANTS
            .iter()
            .map(|zone| (strsim::jaro_winkler(&folded, &zone.name().to_lowercase()), zone.name()))
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .filter(|(likeness, _)| *likeness >= 0.85);
        let hint = match near {
            Some((_, name)) => format!("did you mean {name:?}?"),
            None => "write an IANA name such as \"Asia/Shanghai\", \"Europe/Berlin\" or \"UTC\"".to_owned(),
        };
        Error::new(Kind::Usage, format!("unknown time zone {text:?}")).hint(hint)
    })
}

/// The five fields, spread out.
struct Fields {
    values: [BTreeSet<u32>; 5],
    /// crontab(5): "restricted" means that the field does not start with `*`.
    days_restricted: (bool, bool),
}

impl Fields {
    fn parse(text: &str) -> Result<Self> {
        let wrong = |why: String| Error::new(Kind::Usage, format!("not a valid schedule {text:?}: {why}"));
        let expanded = if text.starts_with('@') {
            let found = NICKNAMES.iter().find(|(name, _)| name.eq_ignore_ascii_case(text));
            found.map(|(_, fields)| *fields).ok_or_else(|| {
                let known = NICKNAMES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
                wrong("unknown nickname".to_owned()).hint(format!("known are {known}; or {HINT}"))
            })?
        } else {
            text
        };
        let words = expanded.split_ascii_whitespace().collect::<Vec<_>>();
        let words: [&str; 5] = words.as_slice().try_into().map_err(|_| match words.len() {
            6 | 7 => {
                wrong(format!("it has {} fields; exactly five are read, there is no field for seconds or years", words.len())).hint(HINT)
            }
            count => wrong(format!("it has {count} fields instead of five")).hint(HINT),
        })?;
        let mut values = <[BTreeSet<u32>; 5]>::default();
        for ((set, rules), word) in values.iter_mut().zip(&FIELDS).zip(words) {
            for item in word.split(',') {
                let (first, last, step) =
                    rules.parse_item(item).map_err(|why| wrong(format!("{} {item:?} {why}", rules.name)).hint(HINT))?;
                set.extend((first..=last).step_by(step));
            }
        }
        if values[4].remove(&7) {
            values[4].insert(0);
        }
        Ok(Self { values, days_restricted: (!words[2].starts_with('*'), !words[4].starts_with('*')) })
    }

    /// crontab(5): when both day fields are restricted, a day that matches *either* counts; else both must match.
    fn searches(&self) -> Result<Vec<cron::Schedule>> {
        let all_days_of_month = (1..=31).collect::<BTreeSet<_>>();
        let all_days_of_week = (0..=6).collect::<BTreeSet<_>>();
        if self.days_restricted == (true, true) {
            Ok(vec![self.search(&self.values[2], &all_days_of_week)?, self.search(&all_days_of_month, &self.values[4])?])
        } else {
            Ok(vec![self.search(&self.values[2], &self.values[4])?])
        }
    }

    fn search(&self, days_of_month: &BTreeSet<u32>, days_of_week: &BTreeSet<u32>) -> Result<cron::Schedule> {
        let list = |values: &BTreeSet<u32>, add: u32| values.iter().map(|value| (value + add).to_string()).collect::<Vec<_>>().join(",");
        let [minutes, hours, _, months, _] = &self.values;
        // Seconds first, Sunday is 1.
        let text =
            format!("0 {} {} {} {} {}", list(minutes, 0), list(hours, 0), list(days_of_month, 0), list(months, 0), list(days_of_week, 1));
        cron::Schedule::from_str(&text)
            .map_err(|error| Error::new(Kind::Bug, format!("hand the schedule {text:?} to the cron crate")).because(error))
    }
}

impl FieldRules {
    /// One item of a list: first, last, step.
    fn parse_item(&self, item: &str) -> std::result::Result<(u32, u32, usize), String> {
        let (range, step) = match item.split_once('/') {
            None => (item, 1),
            Some((range, step)) => match step.parse::<u32>() {
                Ok(step) if (1..=self.max).contains(&step) => (range, usize::try_from(step).unwrap_or(1)),
                _ => return Err(format!("has a wrong step; it may be 1 to {}", self.max)),
            },
        };
        let (first, last) = if range == "*" {
            // Not up to 7: `*/7` means Sunday once.
            (self.min, if self.max == 7 { 6 } else { self.max })
        } else if let Some((first, last)) = range.split_once('-') {
            let first_value = self.value(first)?;
            let last_value = match self.value(last)? {
                // A week that ends on a Sunday, as in `fri-sun`.
                0 if self.max == 7 && first_value > 0 => 7,
                value => value,
            };
            if first_value > last_value {
                let (upper, lower) = (if self.max == 7 { 6 } else { self.max }, self.min);
                return Err(format!("goes backwards; write \"{first}-{upper},{lower}-{last}\""));
            }
            (first_value, last_value)
        } else {
            let value = self.value(range)?;
            if item.contains('/') {
                return Err(format!("has a step without a range; write \"{range}-{}/{step}\" or \"*/{step}\"", self.max));
            }
            (value, value)
        };
        Ok((first, last, step))
    }

    fn value(&self, word: &str) -> std::result::Result<u32, String> {
        if !word.is_empty() && word.bytes().all(|b| b.is_ascii_digit()) {
            let value = word.parse::<u32>().unwrap_or(u32::MAX);
            return if (self.min..=self.max).contains(&value) {
                Ok(value)
            } else {
                Err(format!("is not within {} to {}", self.min, self.max))
            };
        }
        match self.names.iter().zip(self.min..).find(|(name, _)| name.eq_ignore_ascii_case(word)) {
            Some((_, value)) => Ok(value),
            None if word.is_empty() => Err("is incomplete".to_owned()),
            None if self.names.is_empty() => Err("is not a number".to_owned()),
            None => Err(format!("is neither a number nor one of {}", self.names.join(", "))),
        }
    }
}

/// A slot as a person reads it: local time with offset, and UTC beside it.
#[must_use]
pub fn in_both(slot: DateTime<Utc>, zone: Tz) -> String {
    let local = slot.with_timezone(&zone);
    let utc_day = if local.date_naive() == slot.date_naive() { "" } else { "%Y-%m-%d " };
    format!("{}  ({} UTC)", local.format("%a %Y-%m-%d %H:%M %:z"), slot.format(&format!("{utc_day}%H:%M")))
}

#[cfg(test)]
mod tests {
    use chrono::Datelike as _;
    use chrono_tz::{America, Asia, Australia, Europe, Pacific};
    use croner::parser::{CronParser, Seconds, Year};
    use proptest::prelude::*;

    use super::*;

    fn utc(text: &str) -> DateTime<Utc> {
        DateTime::parse_from_rfc3339(text).unwrap().with_timezone(&Utc)
    }

    fn upcoming(text: &str, zone: Tz, after: &str, count: usize) -> Vec<String> {
        let schedule = Schedule::parse(text, zone).unwrap();
        let slots = schedule.upcoming(utc(after), count);
        for slot in &slots {
            assert_eq!(schedule.previous_at_or_before(*slot), Some(*slot));
        }
        slots.iter().map(|slot| slot.with_timezone(&zone).format("%a %m-%d %H:%M %:z").to_string()).collect()
    }

    /// The next runs by crontab(5)'s rules. 2026-01-01 is a Thursday.
    #[test]
    fn runs_as_crontab_5_says() {
        let table: &[(&str, &[&str])] = &[
            ("15 2 * * *", &["Thu 01-01 02:15", "Fri 01-02 02:15", "Sat 01-03 02:15"]),
            ("0 5 * * sun", &["Sun 01-04 05:00", "Sun 01-11 05:00"]),
            ("0 5 * * 0", &["Sun 01-04 05:00", "Sun 01-11 05:00"]),
            ("0 5 * * 7", &["Sun 01-04 05:00", "Sun 01-11 05:00"]),
            ("0 5 * * 1", &["Mon 01-05 05:00", "Mon 01-12 05:00"]),
            ("0 5 * * MON-fri", &["Thu 01-01 05:00", "Fri 01-02 05:00", "Mon 01-05 05:00"]),
            ("0 5 * * fri-sun", &["Fri 01-02 05:00", "Sat 01-03 05:00", "Sun 01-04 05:00", "Fri 01-09 05:00"]),
            ("0 5 * * 5-7", &["Fri 01-02 05:00", "Sat 01-03 05:00", "Sun 01-04 05:00", "Fri 01-09 05:00"]),
            ("0 5 * * 0-7", &["Thu 01-01 05:00", "Fri 01-02 05:00", "Sat 01-03 05:00", "Sun 01-04 05:00"]),
            ("*/20 */12 * * *", &["Thu 01-01 00:20", "Thu 01-01 00:40", "Thu 01-01 12:00", "Thu 01-01 12:20"]),
            ("30 4 1,15 * 5", &["Thu 01-01 04:30", "Fri 01-02 04:30", "Fri 01-09 04:30", "Thu 01-15 04:30", "Fri 01-16 04:30"]),
            // A day field that starts with * is not restricted, steps or not: both must match.
            ("0 0 */2 * 0", &["Sun 01-11 00:00", "Sun 01-25 00:00"]),
            ("0 0 1-7 * */7", &["Sun 01-04 00:00", "Sun 02-01 00:00"]),
            ("0 0 * * */2", &["Sat 01-03 00:00", "Sun 01-04 00:00", "Tue 01-06 00:00", "Thu 01-08 00:00"]),
            ("0 0 31 * *", &["Sat 01-31 00:00", "Tue 03-31 00:00", "Sun 05-31 00:00"]),
            ("0 0 29 feb *", &["Tue 02-29 00:00"]),
            ("0 0 1 jan,Jul *", &["Wed 07-01 00:00", "Fri 01-01 00:00"]),
            ("@daily", &["Fri 01-02 00:00", "Sat 01-03 00:00"]),
            ("@Weekly", &["Sun 01-04 00:00", "Sun 01-11 00:00"]),
            ("@hourly", &["Thu 01-01 01:00", "Thu 01-01 02:00"]),
            ("  5   0 * *\t* ", &["Thu 01-01 00:05", "Fri 01-02 00:05"]),
        ];
        for (text, expected) in table {
            let runs = upcoming(text, Tz::UTC, "2026-01-01T00:00:00Z", expected.len());
            assert_eq!(runs.iter().map(|run| run.trim_end_matches(" +00:00")).collect::<Vec<_>>(), *expected, "{text}");
        }
    }

    #[test]
    fn what_crontab_5_does_not_know_is_refused_with_a_reason() {
        for (text, why) in [
            ("0 15 2 * * *", "6 fields"),
            ("0 15 2 * * * 2027", "7 fields"),
            ("15 2 * *", "4 fields"),
            ("", "0 fields"),
            ("60 2 * * *", "minute \"60\" is not within 0 to 59"),
            ("0 24 * * *", "hour \"24\" is not within 0 to 23"),
            ("0 0 0 * *", "day of month \"0\" is not within 1 to 31"),
            ("0 0 * 13 *", "month \"13\""),
            ("0 0 * * 8", "day of week \"8\" is not within 0 to 7"),
            ("0 22-2 * * *", "write \"22-23,0-2\""),
            ("0 0 * * fri-mon", "write \"fri-6,0-mon\""),
            ("5/15 * * * *", "write \"5-59/15\" or \"*/15\""),
            ("*/0 * * * *", "wrong step"),
            ("*/99 * * * *", "wrong step"),
            ("0 0 L * *", "is not a number"),
            ("0 0 ? * *", "is not a number"),
            ("0 0 * * mon#1", "neither a number nor one of sun, mon"),
            ("0 0 * * monday", "neither a number"),
            ("0 0 * 1-foo *", "neither a number"),
            ("0 0 1,, * *", "is incomplete"),
            ("mon 0 * * *", "is not a number"),
            ("-5 0 * * *", "is incomplete"),
            ("@reboot", "unknown nickname"),
            ("0 0 31 2 *", "never runs"),
            ("0 0 31 4,6,9,11 *", "never runs"),
            ("99999999999999999999 0 * * *", "is not within"),
        ] {
            let error = Schedule::parse(text, Tz::UTC).unwrap_err();
            assert_eq!(error.kind(), Kind::Usage);
            assert!(error.to_string().contains(why), "{text:?}: {error}");
            assert!(error.hint_text().is_some());
        }
    }

    #[test]
    fn a_skipped_local_time_runs_once_at_the_next_valid_instant() {
        // Berlin 2026-03-29: 02:00 becomes 03:00.
        assert_eq!(
            upcoming("30 2 * * *", Europe::Berlin, "2026-03-27T12:00:00Z", 3),
            ["Sat 03-28 02:30 +01:00", "Sun 03-29 03:00 +02:00", "Mon 03-30 02:30 +02:00"]
        );
        assert_eq!(
            upcoming("*/30 1-3 * * *", Europe::Berlin, "2026-03-29T00:00:00Z", 5),
            [
                "Sun 03-29 01:30 +01:00",
                "Sun 03-29 03:00 +02:00",
                "Sun 03-29 03:30 +02:00",
                "Mon 03-30 01:00 +02:00",
                "Mon 03-30 01:30 +02:00"
            ]
        );
        // New York 2026-03-08: 02:00 becomes 03:00.
        assert_eq!(upcoming("0 2 8 3 *", America::New_York, "2026-01-01T00:00:00Z", 1), ["Sun 03-08 03:00 -04:00"]);
        // Lord Howe moves by half an hour: 2026-10-04 02:00 becomes 02:30.
        assert_eq!(upcoming("15 2 4 10 *", Australia::Lord_Howe, "2026-01-01T00:00:00Z", 1), ["Sun 10-04 02:30 +11:00"]);
        // Apia left out the whole of 2011-12-30.
        assert_eq!(
            upcoming("0 12 * * *", Pacific::Apia, "2011-12-28T23:00:00Z", 3),
            ["Thu 12-29 12:00 -10:00", "Sat 12-31 00:00 +14:00", "Sat 12-31 12:00 +14:00"]
        );
    }

    #[test]
    fn a_repeated_local_time_runs_once_the_first_time() {
        // Berlin 2026-10-25: 03:00 becomes 02:00.
        assert_eq!(upcoming("30 2 * * *", Europe::Berlin, "2026-10-24T12:00:00Z", 2), ["Sun 10-25 02:30 +02:00", "Mon 10-26 02:30 +01:00"]);
        assert_eq!(
            upcoming("0 * * * *", Europe::Berlin, "2026-10-24T22:30:00Z", 4),
            ["Sun 10-25 01:00 +02:00", "Sun 10-25 02:00 +02:00", "Sun 10-25 03:00 +01:00", "Sun 10-25 04:00 +01:00"]
        );
        // Lord Howe 2026-04-05: 02:00 becomes 01:30.
        assert_eq!(
            upcoming("45 1 * * *", Australia::Lord_Howe, "2026-04-04T00:00:00Z", 2),
            ["Sun 04-05 01:45 +11:00", "Mon 04-06 01:45 +10:30"]
        );
        // Asked in the second pass: the later wall-clock time of the first pass is the one that ran last.
        let schedule = Schedule::parse("10,40 2 * * *", Europe::Berlin).unwrap();
        assert_eq!(schedule.previous_at_or_before(utc("2026-10-25T01:15:00Z")), Some(utc("2026-10-25T00:40:00Z")));
        assert_eq!(schedule.next_after(utc("2026-10-25T01:05:00Z")), Some(utc("2026-10-26T01:10:00Z")));
    }

    #[test]
    fn zones() {
        assert_eq!(parse_timezone("Asia/Shanghai").unwrap(), Asia::Shanghai);
        assert_eq!(parse_timezone("Asia/Shangai").unwrap_err().hint_text(), Some("did you mean \"Asia/Shanghai\"?"));
        assert_eq!(parse_timezone("europe/berlin").unwrap_err().hint_text(), Some("did you mean \"Europe/Berlin\"?"));
        assert!(parse_timezone("").is_err() && parse_timezone("Local").is_err());
        assert_eq!(in_both(utc("2026-01-01T18:15:00Z"), Asia::Shanghai), "Fri 2026-01-02 02:15 +08:00  (2026-01-01 18:15 UTC)");
    }

    #[test]
    fn jitter_is_steady_spread_and_bounded() {
        let slots = (0..1000).map(|i| {
            jitter_for(&Name::new("crm").unwrap(), DateTime::from_timestamp(i * 3600, 0).unwrap(), Duration::from_mins(1)).as_secs()
        });
        let seen = slots.collect::<BTreeSet<_>>();
        assert_eq!((seen.first(), seen.last(), seen.len()), (Some(&0), Some(&60), 61));
        let at = utc("2026-01-01T00:00:00Z");
        let of = |plan: &str| jitter_for(&Name::new(plan).unwrap(), at, Duration::from_secs(100_000));
        assert_eq!(of("crm"), of("crm"));
        assert_ne!(of("crm"), of("erp"));
        assert_eq!(jitter_for(&Name::new("crm").unwrap(), at, Duration::ZERO), Duration::ZERO);
    }

    const ZONES: [Tz; 8] = [
        Tz::UTC,
        Asia::Shanghai,
        Europe::Berlin,
        America::New_York,
        Australia::Lord_Howe,
        Asia::Kolkata,
        America::Sao_Paulo,
        Pacific::Auckland,
    ];

    fn field(min: u32, max: u32) -> impl Strategy<Value = String> {
        let range = (min..=max, min..=max).prop_map(|(a, b)| (a.min(b), a.max(b)));
        prop_oneof![
            4 => (min..=max).prop_map(|value| value.to_string()),
            2 => range.clone().prop_map(|(a, b)| format!("{a}-{b}")),
            1 => (range, 1..=max).prop_map(|((a, b), step)| format!("{a}-{b}/{step}")),
            2 => proptest::collection::vec(min..=max, 1..4).prop_map(|values| values.iter().map(u32::to_string).collect::<Vec<_>>().join(",")),
        ]
    }

    fn or_star(min: u32, max: u32) -> impl Strategy<Value = String> {
        prop_oneof![2 => Just("*".to_owned()), 1 => (1..=max).prop_map(|step| format!("*/{step}")), 3 => field(min, max)]
    }

    /// A day field without `*/n`: there `croner` keeps to *or* where crontab(5) says *and*; the table above holds that case.
    fn day(min: u32, max: u32) -> impl Strategy<Value = String> {
        prop_oneof![Just("*".to_owned()), field(min, max)]
    }

    fn near_a_transition(zone: Tz, at: DateTime<Utc>) -> bool {
        use chrono::Offset as _;
        let offset = |hours| (at + TimeDelta::hours(hours)).with_timezone(&zone).offset().fix();
        offset(-26) != offset(26)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn agrees_with_croner(
            minute in or_star(0, 59), hour in or_star(0, 23), day_of_month in day(1, 31), month in or_star(1, 12), day_of_week in day(0, 7),
            zone in proptest::sample::select(ZONES.as_slice()), start in 946_684_800_i64..2_208_988_800,
        ) {
            let text = format!("{minute} {hour} {day_of_month} {month} {day_of_week}");
            let oracle = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build().parse(&text).unwrap();
            let Ok(schedule) = Schedule::parse(&text, zone) else {
                let from = utc("2024-01-01T00:00:00Z");
                prop_assert!(oracle.find_next_occurrence(&from, false).is_err(), "we say that {text} never runs");
                return Ok(());
            };
            let mut at = DateTime::from_timestamp(start, 0).unwrap();
            for _ in 0..12 {
                let ours = schedule.next_after(at).unwrap();
                let theirs = oracle.find_next_occurrence(&at.with_timezone(&zone), false).unwrap().with_timezone(&Utc);
                if near_a_transition(zone, ours) || near_a_transition(zone, theirs) || near_a_transition(zone, at) {
                    // The rules differ there: `croner` repeats what runs more often than hourly.
                    at = ours + TimeDelta::hours(53);
                    continue;
                }
                prop_assert_eq!(ours, theirs, "{} in {} after {}", text, zone, at);
                prop_assert_eq!(schedule.previous_at_or_before(ours), Some(ours));
                prop_assert_eq!(schedule.previous_at_or_before(ours - TimeDelta::seconds(1)), schedule.previous_at_or_before(at).filter(|_| schedule.next_after(at) == Some(ours)));
                at = ours;
            }
        }

        #[test]
        fn slots_go_forward_and_back_the_same_way_through_transitions(
            minute in or_star(0, 59), hour in or_star(0, 5), zone in proptest::sample::select(ZONES.as_slice()),
            year in 2015_i32..2030, month in proptest::sample::select([3_u32, 4, 9, 10, 11].as_slice()),
        ) {
            let schedule = Schedule::parse(&format!("{minute} {hour} * * *"), zone).unwrap();
            let mut at = Utc.with_ymd_and_hms(year, month, 1, 0, 0, 0).unwrap();
            let end = at + TimeDelta::days(35);
            let mut seen = BTreeSet::new();
            let mut steps = 0;
            while at < end && steps < 3_000 {
                let next = schedule.next_after(at).unwrap();
                prop_assert!(next > at);
                prop_assert_eq!(schedule.previous_at_or_before(next), Some(next));
                if let Some(last) = seen.last() {
                    prop_assert_eq!(schedule.previous_at_or_before(next - TimeDelta::seconds(1)), Some(*last));
                }
                seen.insert(next);
                at = next;
                steps += 1;
            }
            // No wall-clock time is run twice.
            let local = seen.iter().map(|slot| slot.with_timezone(&zone).naive_local()).collect::<BTreeSet<_>>();
            prop_assert_eq!(local.len(), seen.len());
            prop_assert!(local.iter().all(|slot| slot.second() == 0 && slot.day() >= 1));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "[0-9*/,@a-z -]{0,20}") {
            let _ = Schedule::parse(&text, Tz::UTC);
        }
    }
}

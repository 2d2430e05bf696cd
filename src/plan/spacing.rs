//! How far apart the slots of a schedule are: what cannot work is found before it runs. Pure, and cheap however many plans there are: most
//! schedules are judged by one day, the others by two weeks, and only those that name days of the month or months by five years.
//!
//! All is on the wall clock. Daylight saving adds or takes an hour twice a year, and is left out: a schedule is not wrong for it.

use std::time::Duration;

use cron::TimeUnitSpec as _;

use crate::plan::blackout::Blackout;
use crate::plan::schedule::Schedule;

const DAY: u32 = 24 * 60;
const WEEK: u32 = 7 * DAY;
/// From Monday 2024-01-01 on, two leap years among them.
const FIRST_DAY: (i32, u32, u32) = (2024, 1, 1);
const FIVE_YEARS: usize = 5 * 365 + 2;

/// One search of a schedule.
struct Calendar {
    /// Bit by number, from 1.
    days: u64,
    months: u64,
    /// Bit by days since Monday.
    weekdays: u64,
    /// Since midnight, ascending, never empty.
    minutes: Vec<u32>,
}

impl Calendar {
    fn new(search: &cron::Schedule) -> Self {
        let bits = |values: &mut dyn Iterator<Item = u32>| values.fold(0, |bits, value| bits | 1 << value);
        let hours: Vec<u32> = search.hours().iter().collect();
        Self {
            days: bits(&mut search.days_of_month().iter()),
            months: bits(&mut search.months().iter()),
            // Sunday is 1 there.
            weekdays: bits(&mut search.days_of_week().iter().map(|day| (day + 5) % 7)),
            minutes: hours.iter().flat_map(|hour| search.minutes().iter().map(move |minute| hour * 60 + minute)).collect(),
        }
    }

    /// Whether only the day of the week matters.
    fn is_weekly(&self) -> bool {
        self.days.count_ones() == 31 && self.months.count_ones() == 12
    }

    fn is_daily(&self) -> bool {
        self.is_weekly() && self.weekdays.count_ones() == 7
    }
}

/// The shortest distance between two slots of a schedule, where it is at most `limit`.
pub(super) fn shortest(schedule: &Schedule, limit: Duration) -> Option<Duration> {
    let calendars = calendars(schedule);
    let mut minutes: Vec<u32> = calendars.iter().flat_map(|calendar| calendar.minutes.iter().copied()).collect();
    minutes.sort_unstable();
    minutes.dedup();
    let within = minutes.windows(2).map(|pair| pair[1] - pair[0]).min();
    let over_midnight = minutes.last().zip(minutes.first()).map(|(last, first)| DAY - last + first);
    // No two slots are nearer than on a calendar of all these minutes on every day.
    let bound = within.into_iter().chain(over_midnight).min()?;
    if limit < of_minutes(bound) {
        return None;
    }
    let found = if calendars.iter().all(Calendar::is_daily) { Some(bound) } else { gaps(slots(&calendars)).min() };
    found.map(of_minutes).filter(|gap| *gap <= limit)
}

/// The longest time between two starts of this job by a schedule: each at its slot, or at the end of the blackout that holds it back. `None`: it
/// starts less than twice in five years.
pub(super) fn longest(schedule: &Schedule, blackout: &Blackout, job: &str) -> Option<Duration> {
    let calendars = calendars(schedule);
    if let [only] = calendars.as_slice()
        && only.is_daily()
        && !blackout.holds(job)
    {
        let within = only.minutes.windows(2).map(|pair| pair[1] - pair[0]).max();
        let over_midnight = only.minutes.last().zip(only.minutes.first()).map(|(last, first)| DAY - last + first);
        return within.max(over_midnight).map(of_minutes);
    }
    let starts = slots(&calendars).map(|slot| slot + blackout.wait(job, slot % WEEK));
    gaps(starts).max().map(of_minutes)
}

/// The longest time between two starts of any of these jobs, each with its schedule and what holds it back, where it is more than `limit`
/// (`Duration::MAX`: they start less than twice in five years). Schedules in other zones are taken as if they were in one.
pub(super) fn longest_of(jobs: &[(&Schedule, &Blackout, &str)], limit: Duration) -> Option<Duration> {
    if jobs.iter().any(|(schedule, blackout, job)| longest(schedule, blackout, job).is_some_and(|gap| gap <= limit)) {
        return None;
    }
    let calendars: Vec<_> = jobs.iter().map(|(schedule, ..)| calendars(schedule)).collect();
    let days = calendars.iter().map(|calendars| days(calendars)).max().unwrap_or(0);
    let mut starts: Vec<u32> = Vec::new();
    for ((_, blackout, job), calendars) in jobs.iter().zip(&calendars) {
        starts.extend(slots_of(calendars, days).map(|slot| slot + blackout.wait(job, slot % WEEK)));
    }
    starts.sort_unstable();
    let longest = gaps(starts.into_iter()).max().map_or(Duration::MAX, of_minutes);
    (longest > limit).then_some(longest)
}

/// Whether every slot of a schedule falls in the blackout.
pub(super) fn is_always_held(schedule: &Schedule, blackout: &Blackout, job: &str) -> bool {
    blackout.holds(job) && slots(&calendars(schedule)).all(|slot| blackout.wait(job, slot % WEEK) > 0)
}

fn calendars(schedule: &Schedule) -> Vec<Calendar> {
    schedule.searches().iter().map(Calendar::new).collect()
}

/// How many days decide.
fn days(calendars: &[Calendar]) -> usize {
    if calendars.iter().all(Calendar::is_weekly) { 14 } else { FIVE_YEARS }
}

/// All slots of the days that decide, in minutes since the first, ascending.
fn slots(calendars: &[Calendar]) -> impl Iterator<Item = u32> {
    slots_of(calendars, days(calendars))
}

/// The same of so many days.
fn slots_of(calendars: &[Calendar], days: usize) -> impl Iterator<Item = u32> {
    let first = chrono::NaiveDate::from_ymd_opt(FIRST_DAY.0, FIRST_DAY.1, FIRST_DAY.2).unwrap_or_default();
    first.iter_days().zip(0_u32..).take(days).flat_map(move |(date, number)| {
        use chrono::Datelike as _;
        let matches = |calendar: &&Calendar| {
            calendar.weekdays >> (number % 7) & 1 == 1 && calendar.months >> date.month() & 1 == 1 && calendar.days >> date.day() & 1 == 1
        };
        let mut minutes: Vec<u32> = Vec::new();
        for calendar in calendars.iter().filter(matches) {
            minutes.extend_from_slice(&calendar.minutes);
        }
        if calendars.len() > 1 {
            minutes.sort_unstable();
            minutes.dedup();
        }
        minutes.into_iter().map(move |minute| number * DAY + minute)
    })
}

/// Between neighbours that are not the same; `starts` never goes back.
fn gaps(starts: impl Iterator<Item = u32>) -> impl Iterator<Item = u32> {
    let mut before = None;
    starts.filter_map(move |start| before.replace(start).map(|before| start - before)).filter(|gap| *gap > 0)
}

fn of_minutes(minutes: u32) -> Duration {
    Duration::from_secs(u64::from(minutes) * 60)
}

#[cfg(test)]
mod tests {
    use chrono_tz::Tz;

    use super::*;
    use crate::plan::blackout::Window;

    fn schedule(text: &str) -> Schedule {
        Schedule::parse(text, Tz::UTC).unwrap()
    }

    fn blackout(windows: &[&str], jobs: Option<&[&str]>) -> Blackout {
        let windows = windows.iter().map(|text| Window::parse(text).unwrap()).collect();
        Blackout::new(windows, Tz::UTC, jobs.map(|jobs| jobs.iter().map(ToString::to_string).collect())).unwrap()
    }

    const EVER: Duration = Duration::from_hours(24 * 366 * 10);

    #[test]
    fn distances_are_those_of_the_slots() {
        let table = [
            ("* * * * *", 1, 1),
            ("15 2 * * *", 24 * 60, 24 * 60),
            ("0 */5 * * *", 4 * 60, 5 * 60),
            ("0 9,17 * * mon-fri", 8 * 60, 64 * 60),
            ("0 3 * * sun", 7 * 24 * 60, 7 * 24 * 60),
            ("0 0 1 * *", 28 * 24 * 60, 31 * 24 * 60),
            ("0 0 1 * sun", 24 * 60, 7 * 24 * 60),
            ("30 4 29 2 *", 4 * 366 * 24 * 60 - 3 * 24 * 60, 4 * 366 * 24 * 60 - 3 * 24 * 60),
            ("0 0,23 1 jan,jul *", 23 * 60, (184 * 24 - 23) * 60),
        ];
        for (text, least, most) in table {
            let schedule = schedule(text);
            assert_eq!(shortest(&schedule, EVER), Some(of_minutes(least)), "{text}");
            assert_eq!(longest(&schedule, &Blackout::default(), "backup"), Some(of_minutes(most)), "{text}");
            assert_eq!(shortest(&schedule, of_minutes(least - 1)), None, "{text}");
        }
    }

    /// By the slots themselves, one by one.
    #[test]
    fn distances_agree_with_a_walk_of_the_schedule() {
        let start = "2024-01-01T00:00:00Z".parse::<chrono::DateTime<chrono::Utc>>().unwrap() - chrono::TimeDelta::minutes(1);
        for text in ["*/7 3-5 * * tue,thu", "0 1,2,13 * * *", "59 23 * 3 *", "1 0 13 * fri", "*/20 */12 1-7 * */7"] {
            let schedule = schedule(text);
            let window = blackout(&["mon-thu 04:00-05:30", "fri 22:00-02:00"], None);
            let end = start + chrono::TimeDelta::days(5 * 365 + 2);
            let slots: Vec<_> =
                std::iter::successors(schedule.next_after(start), |slot| schedule.next_after(*slot)).take_while(|s| *s <= end).collect();
            let walked = |starts: &[chrono::DateTime<chrono::Utc>]| {
                let gaps: Vec<_> =
                    starts.windows(2).map(|pair| (pair[1] - pair[0]).to_std().unwrap()).filter(|gap| !gap.is_zero()).collect();
                (gaps.iter().min().copied(), gaps.iter().max().copied())
            };
            let held: Vec<_> = slots.iter().map(|slot| window.free_at("backup", *slot)).collect();
            assert_eq!(shortest(&schedule, EVER), walked(&slots).0, "{text}");
            assert_eq!(longest(&schedule, &Blackout::default(), "backup"), walked(&slots).1, "{text}");
            assert_eq!(longest(&schedule, &window, "backup"), walked(&held).1, "{text}");
        }
    }

    #[test]
    fn a_blackout_makes_gaps_and_may_hold_every_slot() {
        let office = blackout(&["mon-fri 08:00-18:00"], None);
        assert_eq!(longest(&schedule("0 * * * *"), &office, "backup"), Some(Duration::from_hours(11)));
        assert!(is_always_held(&schedule("0 9-17 * * mon-fri"), &office, "drill"));
        assert!(!is_always_held(&schedule("0 9-18 * * mon-fri"), &office, "drill"));
        assert!(!is_always_held(&schedule("0 9-17 * * *"), &office, "drill"));
        assert!(is_always_held(&schedule("30 22 * * *"), &blackout(&["22:00-02:00"], None), "backup"));
        let drills = blackout(&["sun"], Some(&["drill"]));
        assert!(is_always_held(&schedule("0 3 * * sun"), &drills, "drill") && !is_always_held(&schedule("0 3 * * sun"), &drills, "backup"));
    }
}

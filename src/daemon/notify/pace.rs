//! When to try again, and how often somebody may be told. Pure.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

/// Pauses after a delivery that failed: doubled each time.
const FIRST_PAUSE: TimeDelta = TimeDelta::seconds(10);
const LONGEST_PAUSE: TimeDelta = TimeDelta::minutes(30);

/// At most so many messages within so long, each a digest of what came meanwhile. What is beyond waits.
const LIMITS: [(usize, TimeDelta); 2] = [(1, TimeDelta::seconds(30)), (6, TimeDelta::minutes(30))];

/// The same where something bad is among what waits: routine never holds it up for long.
const URGENT_LIMITS: [(usize, TimeDelta); 2] = [(1, TimeDelta::seconds(30)), (30, TimeDelta::minutes(30))];

/// Sends that matter for [`next_send`].
pub const SENDS_KEPT: usize = 30;

/// What comes within so long of the first event goes into one message.
pub const GATHER: Duration = Duration::from_secs(3);

/// When to try again after the `failures`th failure in a row.
#[must_use]
pub fn retry_at(failures: u64, now: DateTime<Utc>) -> DateTime<Utc> {
    let doubled = 1i32.checked_shl(u32::try_from(failures.saturating_sub(1)).unwrap_or(u32::MAX)).unwrap_or(i32::MAX).max(1);
    now + FIRST_PAUSE.checked_mul(doubled).unwrap_or(LONGEST_PAUSE).min(LONGEST_PAUSE)
}

/// Whether a moment to try again at has come. One that is further away than any pause was made by a clock that was wrong.
#[must_use]
pub fn is_due(next: Option<DateTime<Utc>>, now: DateTime<Utc>) -> bool {
    next.is_none_or(|next| next <= now || next - now > LONGEST_PAUSE)
}

/// The earliest moment for another message, after these (oldest first). Messages of the future do not count. `urgent`: something critical waits.
#[must_use]
pub fn next_send(sent: &[DateTime<Utc>], urgent: bool, now: DateTime<Utc>) -> DateTime<Utc> {
    let sent: Vec<&DateTime<Utc>> = sent.iter().filter(|at| **at <= now).collect();
    let free =
        |(most, within): (usize, TimeDelta)| sent.len().checked_sub(most).and_then(|at| sent.get(at)).map(|oldest| **oldest + within);
    let limits = if urgent { URGENT_LIMITS } else { LIMITS };
    limits.into_iter().filter_map(free).max().unwrap_or(now).max(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_790_000_000 + seconds, 0).unwrap()
    }

    #[test]
    fn pauses_double_up_to_half_an_hour() {
        let pause = |failures| (retry_at(failures, at(0)) - at(0)).num_seconds();
        assert_eq!([1, 2, 3, 8, 9, 40, u64::MAX].map(pause), [10, 20, 40, 1280, 1800, 1800, 1800]);
    }

    #[test]
    fn a_clock_that_was_set_back_holds_up_nothing_for_long() {
        assert!(is_due(None, at(0)) && is_due(Some(at(0)), at(0)) && !is_due(Some(at(1)), at(0)));
        assert!(is_due(Some(at(86_400)), at(0)));
    }

    #[test]
    fn a_stream_of_events_becomes_few_messages() {
        assert_eq!(next_send(&[], false, at(0)), at(0));
        assert_eq!(next_send(&[at(0)], false, at(1)), at(30));
        assert_eq!(next_send(&[at(0)], false, at(40)), at(40));
        assert_eq!(next_send(&[at(900)], false, at(1)), at(1), "a message of the future is none");
        // Somebody who always sends as soon as it is allowed, for a day.
        let (mut sent, mut now) = (Vec::new(), at(0));
        while now < at(86_400) {
            now = next_send(&sent, false, now);
            sent.push(now);
            if sent.len() > SENDS_KEPT {
                sent.remove(0);
            }
        }
        let all = (now - at(0)).num_minutes();
        assert!(all >= 1440, "{all}");
        let mut count = 0;
        let (mut sent, mut now) = (Vec::new(), at(0));
        while now < at(86_400) {
            now = next_send(&sent, false, now).max(now);
            sent.push(now);
            count += 1;
        }
        assert!(count <= 6 * 48 + 6, "{count} messages in a day");
    }
    #[test]
    fn routine_never_holds_up_what_is_bad_for_more_than_half_a_minute() {
        let routine: Vec<DateTime<Utc>> = (0..6).map(|number| at(number * 30)).collect();
        assert_eq!(next_send(&routine, false, at(160)), at(1800));
        assert_eq!(next_send(&routine, true, at(160)), at(180));
        // It is no flood either: a day of nothing but bad news.
        let (mut sent, mut now) = (Vec::new(), at(0));
        while now < at(86_400) {
            now = next_send(&sent, true, now);
            sent.push(now);
        }
        assert!(sent.len() <= 30 * 48 + 30, "{}", sent.len());
    }
}

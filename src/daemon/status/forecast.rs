//! How long a recovery will take as the content grows, from what drills measured. Pure.
//!
//! Two lines through points, each by Theil and Sen (the median of the slopes of all pairs; Sen, J. Am. Stat. Assoc. 63, 1968), which one
//! slow drill or one bulk load does not turn: recovery time over bytes restored, and bytes over time. Where there are too few points, or
//! all of one size, it says so and foretells nothing.

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

/// One measured recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measured {
    pub time: DateTime<Utc>,
    pub bytes: u64,
    pub ms: u64,
}

/// How much there was at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    pub time: DateTime<Utc>,
    pub bytes: u64,
}

/// What to expect of the next recovery, and of later ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forecast {
    /// Of the content as it is now. `None`: no drill has measured a recovery.
    pub recovery_time_ms: Option<u64>,
    /// How many drills that is from.
    pub drills: u64,
    /// How much the content grows (or shrinks). `None`: too little is known of its past.
    pub growth_bytes_per_day: Option<i64>,
    /// When a recovery will take longer than its objective, at this growth. `None`: not within [`HORIZON`], or it cannot be told (`note`).
    pub breaks_at: Option<DateTime<Utc>>,
    /// What it is from, or what is missing; a sentence without a full stop.
    pub note: String,
}

/// Nothing is foretold beyond this.
pub const HORIZON: TimeDelta = TimeDelta::days(365);

/// Fewer drills than this tell no trend.
const FEWEST_DRILLS: usize = 4;
/// The newest that count: what the machine and the program were like before is over.
const NEWEST_DRILLS: usize = 40;
/// Fewer snapshots, or over less time, tell no growth.
const FEWEST_SIZES: usize = 4;
const SHORTEST_PAST: TimeDelta = TimeDelta::days(3);
/// Of more snapshots than these, some evenly spread ones count: pairs grow with the square.
const MOST_SIZES: usize = 120;
/// Two drills tell how time grows with bytes only when their sizes differ by this share of the greatest.
const APART: f64 = 0.05;
const MS_PER_DAY: f64 = 86_400_000.0;

/// `measured` and `sizes` in any order; `limit_ms`: the objective.
#[must_use]
pub fn forecast(measured: &[Measured], sizes: &[Size], limit_ms: Option<u64>, now: DateTime<Utc>) -> Forecast {
    let mut measured = measured.to_vec();
    measured.sort_by_key(|drill| drill.time);
    let measured = &measured[measured.len().saturating_sub(NEWEST_DRILLS)..];
    let growth = growth(sizes);
    let bytes_now = growth.map(|line| line.at(days(now)).max(0.0)).or_else(|| sizes.iter().max_by_key(|s| s.time).map(|s| real(s.bytes)));
    let mut forecast = Forecast {
        recovery_time_ms: None,
        drills: measured.len() as u64,
        growth_bytes_per_day: growth.map(|line| whole(line.slope)),
        breaks_at: None,
        note: "no drill has measured a recovery".to_owned(),
    };
    let Some(duration) = duration(measured) else { return forecast };
    let bytes_now = bytes_now.unwrap_or_else(|| measured.last().map_or(0.0, |drill| real(drill.bytes)));
    let expected = duration.line.at(bytes_now).max(0.0) + duration.spread;
    forecast.recovery_time_ms = Some(whole(expected).unsigned_abs());
    let drills = crate::ops::counted(measured.len(), "drill");
    let Some(growth) = growth else {
        forecast.note = format!("from {drills}; too few snapshots over too short a time to tell how the content grows");
        return forecast;
    };
    if measured.len() < FEWEST_DRILLS {
        forecast.note = format!("from {drills}; {FEWEST_DRILLS} are needed to tell a trend");
        return forecast;
    }
    forecast.note = if duration.of_one_size {
        format!("from {drills} of about one size: it is supposed that time grows with the bytes")
    } else {
        format!("from {drills} of different sizes")
    };
    forecast.breaks_at = limit_ms.and_then(|limit| breaks_at(&duration, growth, bytes_now, real(limit), now));
    forecast
}

fn breaks_at(duration: &Duration, growth: Line, bytes_now: f64, limit: f64, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    if duration.line.at(bytes_now) + duration.spread > limit {
        return Some(now);
    }
    if growth.slope <= 0.0 || duration.line.slope <= 0.0 {
        return None;
    }
    let most = (limit - duration.spread - duration.line.start) / duration.line.slope;
    let left = (most - bytes_now) / growth.slope * MS_PER_DAY;
    #[expect(clippy::cast_precision_loss, reason = "a year in milliseconds is exact")]
    let near = left < HORIZON.num_milliseconds() as f64;
    near.then(|| now + TimeDelta::milliseconds(whole(left.max(0.0))))
}

/// `start + slope · x`.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Line {
    start: f64,
    slope: f64,
}

impl Line {
    fn at(self, x: f64) -> f64 {
        self.start + self.slope * x
    }
}

/// Milliseconds over bytes.
struct Duration {
    line: Line,
    /// How far drills are from the line, in the middle: what is expected lies above it by this.
    spread: f64,
    of_one_size: bool,
}

fn duration(measured: &[Measured]) -> Option<Duration> {
    let points: Vec<(f64, f64)> = measured.iter().map(|drill| (real(drill.bytes), real(drill.ms))).collect();
    let greatest = points.iter().map(|point| point.0).fold(0.0, f64::max);
    let line = if points.len() < FEWEST_DRILLS { None } else { theil_sen(&points, greatest * APART, FEWEST_DRILLS) };
    let line = line.map(|line| {
        // More bytes never take less time; a line that says so saw something else.
        let slope = line.slope.max(0.0);
        Line { start: median(points.iter().map(|point| point.1 - slope * point.0).collect()).unwrap_or(0.0).max(0.0), slope }
    });
    let of_one_size = line.is_none();
    let line = if let Some(line) = line {
        line
    } else {
        let time = median(points.iter().map(|point| point.1).collect())?;
        let size = median(points.iter().map(|point| point.0).collect()).unwrap_or(0.0);
        if size > 0.0 { Line { start: 0.0, slope: time / size } } else { Line { start: time, slope: 0.0 } }
    };
    let spread = median(points.iter().map(|point| (point.1 - line.at(point.0)).abs()).collect())?;
    Some(Duration { line, spread, of_one_size })
}

/// Bytes over days since 1970.
fn growth(sizes: &[Size]) -> Option<Line> {
    let mut sizes = sizes.to_vec();
    sizes.sort_by_key(|size| size.time);
    let (first, last) = (sizes.first()?, sizes.last()?);
    if sizes.len() < FEWEST_SIZES || last.time - first.time < SHORTEST_PAST {
        return None;
    }
    let chosen: Vec<(f64, f64)> = if sizes.len() <= MOST_SIZES {
        sizes.iter().map(|size| (days(size.time), real(size.bytes))).collect()
    } else {
        (0..MOST_SIZES).map(|i| &sizes[i * (sizes.len() - 1) / (MOST_SIZES - 1)]).map(|size| (days(size.time), real(size.bytes))).collect()
    };
    theil_sen(&chosen, 1.0 / 24.0, 3)
}

/// Of the pairs that are at least `apart` from each other in x; `None` with fewer than `fewest` of those.
fn theil_sen(points: &[(f64, f64)], apart: f64, fewest: usize) -> Option<Line> {
    let pairs = points.iter().enumerate().flat_map(|(i, a)| points[i + 1..].iter().map(move |b| (a, b)));
    let apart = pairs.filter(|(a, b)| (b.0 - a.0).abs() >= apart && (b.0 - a.0).abs() > 0.0);
    let slopes: Vec<f64> = apart.map(|(a, b)| (b.1 - a.1) / (b.0 - a.0)).collect();
    if slopes.len() < fewest {
        return None;
    }
    let slope = median(slopes)?;
    Some(Line { start: median(points.iter().map(|point| point.1 - slope * point.0).collect())?, slope })
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    Some(if values.len().is_multiple_of(2) { f64::midpoint(values[middle - 1], upper) } else { upper })
}

#[expect(clippy::cast_precision_loss, reason = "a forecast needs no more than 53 bits")]
fn real(number: u64) -> f64 {
    number as f64
}

#[expect(clippy::cast_precision_loss, reason = "milliseconds since 1970 are exact")]
fn days(time: DateTime<Utc>) -> f64 {
    time.timestamp_millis() as f64 / MS_PER_DAY
}

#[expect(clippy::cast_possible_truncation, reason = "a cast of a float saturates")]
fn whole(number: f64) -> i64 {
    number.round() as i64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GIB: u64 = 1 << 30;

    fn day(day: i64) -> DateTime<Utc> {
        "2026-11-01T02:00:00Z".parse::<DateTime<Utc>>().unwrap() + TimeDelta::days(day)
    }

    /// 100 GiB and 1 GiB more each day.
    fn sizes(days: i64) -> Vec<Size> {
        (0..days).map(|d| Size { time: day(d), bytes: (100 + d.unsigned_abs()) * GIB }).collect()
    }

    /// Half a minute, and 10 s for each GiB.
    fn drill(d: i64) -> Measured {
        let gib = 100 + d.unsigned_abs();
        Measured { time: day(d), bytes: gib * GIB, ms: 30_000 + gib * 10_000 }
    }

    fn near(at: DateTime<Utc>, wanted: DateTime<Utc>) -> bool {
        (at - wanted).abs() < TimeDelta::hours(12)
    }

    #[test]
    fn nothing_is_foretold_from_too_little() {
        let none = forecast(&[], &sizes(30), Some(1), day(30));
        assert_eq!((none.recovery_time_ms, none.breaks_at, none.note.as_str()), (None, None, "no drill has measured a recovery"));
        let one = forecast(&[drill(29)], &sizes(30), Some(1), day(30));
        assert!(one.recovery_time_ms.is_some() && one.breaks_at.is_none() && one.note.contains("4 are needed"), "{one:?}");
        let young = forecast(&[drill(0), drill(1), drill(1), drill(2)], &sizes(2), Some(1), day(2));
        assert!(young.breaks_at.is_none() && young.growth_bytes_per_day.is_none() && young.note.contains("too few snapshots"), "{young:?}");
    }

    #[test]
    fn a_growing_database_breaks_its_objective_on_a_day_that_is_told_before() {
        let drills: Vec<Measured> = (0..28).step_by(4).map(drill).collect();
        // 28 GiB more: 30 s + 160 × 10 s is reached at day 60.
        let found = forecast(&drills, &sizes(28), Some(30_000 + 160 * 10_000), day(28));
        assert_eq!(found.growth_bytes_per_day, Some(i64::try_from(GIB).unwrap()));
        assert!(near(found.breaks_at.unwrap(), day(60)), "{found:?}");
        assert!(found.recovery_time_ms.unwrap().abs_diff(30_000 + 128 * 10_000) < 2000, "{found:?}");
        assert_eq!(found.note, "from 7 drills of different sizes");
        let far = forecast(&drills, &sizes(28), Some(100_000_000), day(28));
        assert_eq!(far.breaks_at, None, "in some years: {far:?}");
        let over = forecast(&drills, &sizes(28), Some(60_000), day(28));
        assert_eq!(over.breaks_at, Some(day(28)), "already");
    }

    #[test]
    fn one_slow_drill_and_one_bulk_load_turn_nothing() {
        let mut drills: Vec<Measured> = (0..28).step_by(4).map(drill).collect();
        drills[3].ms *= 10;
        let mut sizes = sizes(28);
        sizes[10].bytes *= 5;
        let found = forecast(&drills, &sizes, Some(30_000 + 160 * 10_000), day(28));
        assert!((found.breaks_at.unwrap() - day(60)).abs() < TimeDelta::days(3), "{found:?}");
    }

    #[test]
    fn drills_of_one_size_are_supposed_to_grow_with_the_bytes_and_that_is_said() {
        let drills: Vec<Measured> = (0..6).map(|d| Measured { time: day(d), bytes: 100 * GIB, ms: 1_000_000 }).collect();
        let found = forecast(&drills, &sizes(20), Some(1_500_000), day(20));
        assert!(near(found.breaks_at.unwrap(), day(50)) && found.note.contains("supposed"), "{found:?}");
    }

    #[test]
    fn what_shrinks_breaks_nothing() {
        let sizes: Vec<Size> = (0..20).map(|d: i64| Size { time: day(d), bytes: (200 - d.unsigned_abs()) * GIB }).collect();
        let drills: Vec<Measured> = (0..6).map(drill).collect();
        let found = forecast(&drills, &sizes, Some(10_000_000), day(20));
        assert!(found.breaks_at.is_none() && found.growth_bytes_per_day.unwrap() < 0, "{found:?}");
    }

    proptest! {
        #[test]
        fn any_numbers_are_borne(
            drills in prop::collection::vec((0i64..400, any::<u64>(), any::<u64>()), 0..60),
            sizes in prop::collection::vec((0i64..400, any::<u64>()), 0..200),
            limit in prop::option::of(any::<u64>()),
        ) {
            let drills: Vec<Measured> = drills.into_iter().map(|(d, bytes, ms)| Measured { time: day(d), bytes, ms }).collect();
            let sizes: Vec<Size> = sizes.into_iter().map(|(d, bytes)| Size { time: day(d), bytes }).collect();
            let found = forecast(&drills, &sizes, limit, day(400));
            prop_assert_eq!(found.recovery_time_ms.is_some(), !drills.is_empty());
            prop_assert!(found.breaks_at.is_none_or(|at| at >= day(400) && at <= day(400) + HORIZON + TimeDelta::seconds(1)));
        }
    }
}

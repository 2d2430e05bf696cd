//! Which snapshots stay, and why: a plan that is explained line by line before it is applied. Pure.
//!
//! A snapshot stays when any rule keeps it. Never removed, whatever the rules say: the newest, the newest whole one, the newest that a
//! drill has proven, one that is held, one whose backup has not ended yet, and one whose state is not known to be sound. Without a rule
//! nothing is removed at all.
//!
//! A snapshot of a moment that has not been yet (a clock was wrong) stays, too, and is none of those until that moment: neither the newest of
//! anything nor in a place of any rule, or a few of them would push all real ones out for years.
//!
//! Rules of periods keep the newest *whole* snapshot of each of the last so many periods that have one (the newest at all where none is
//! whole), by the calendar of the plan's zone; weeks are those of ISO 8601. A snapshot that is known to be damaged takes no place in them.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Datelike as _, Timelike as _, Utc};
use chrono_tz::Tz;

use crate::id::SnapshotId;

/// The rules of a plan.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    pub last: u32,
    pub hourly: u32,
    pub daily: u32,
    pub weekly: u32,
    pub monthly: u32,
    pub yearly: u32,
    /// Everything younger than this.
    pub within: Option<Duration>,
    /// Everything with one of these tags.
    pub tags: Vec<String>,
    /// How far back every moment can be recovered where there is a log; `None`: as far as the oldest snapshot that is kept.
    pub log: Option<Duration>,
}

impl Rules {
    /// Whether no rule is given that keeps snapshots: then nothing is ever removed.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        Self { log: None, ..self.clone() } == Self::default()
    }
}

/// A snapshot as retention sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    pub id: SnapshotId,
    /// The moment that its content is of.
    pub time: DateTime<Utc>,
    pub tags: Vec<String>,
    /// Nothing was missing in the source.
    pub whole: bool,
    /// When a drill last proved it.
    pub proven_at: Option<DateTime<Utc>>,
    /// What is known against it.
    pub damaged: Option<String>,
    /// Why it is held.
    pub held: Option<String>,
    /// Whether its backup may not have heard of its commit.
    pub unended: bool,
    /// Whether it can be the beginning of a recovery along a log.
    pub has_log: bool,
}

/// What is to become of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fate {
    pub id: SnapshotId,
    pub time: DateTime<Utc>,
    pub kept: bool,
    /// Why; sentences, never empty.
    pub reasons: Vec<String>,
}

/// Decides for all snapshots of one plan. In the order of their times, oldest first.
#[must_use]
pub fn plan(rules: &Rules, snapshots: &[Candidate], zone: Tz, now: DateTime<Utc>) -> Vec<Fate> {
    let mut ordered: Vec<&Candidate> = snapshots.iter().collect();
    ordered.sort_by_key(|snapshot| (snapshot.time, snapshot.id));
    let mut reasons: BTreeMap<SnapshotId, Vec<String>> = BTreeMap::new();
    let mut keep = |id: SnapshotId, why: String| reasons.entry(id).or_default().push(why);

    if rules.is_everything() {
        for snapshot in &ordered {
            keep(snapshot.id, "the plan has no keep rules: nothing is removed".to_owned());
        }
    }
    let (past, future): (Vec<&Candidate>, Vec<&Candidate>) = ordered.iter().copied().partition(|snapshot| snapshot.time <= now);
    for snapshot in future {
        keep(snapshot.id, "of a moment that has not been yet: it stays, and takes no other one's place".to_owned());
    }
    by_state(&ordered, &past, &mut keep);
    let sound: Vec<&Candidate> = past.into_iter().filter(|snapshot| snapshot.damaged.is_none()).collect();
    for snapshot in sound.iter().rev().take(rules.last as usize) {
        keep(snapshot.id, format!("one of the last {}", rules.last));
    }
    for (count, period) in [
        (rules.hourly, Period::Hour),
        (rules.daily, Period::Day),
        (rules.weekly, Period::Week),
        (rules.monthly, Period::Month),
        (rules.yearly, Period::Year),
    ] {
        by_period(&sound, count, period, zone, &mut keep);
    }
    if let Some(earliest) = rules.within.and_then(|within| before(now, within)) {
        for snapshot in ordered.iter().filter(|snapshot| snapshot.time >= earliest) {
            keep(snapshot.id, "younger than `within`".to_owned());
        }
    }
    for snapshot in &ordered {
        if let Some(tag) = snapshot.tags.iter().find(|tag| rules.tags.contains(tag)) {
            keep(snapshot.id, format!("tagged {tag:?}"));
        }
    }
    if let Some(first) = log_begins(rules, &ordered, now) {
        keep(first.id, "the recovery window begins with it".to_owned());
    }
    let fate = |snapshot: &&Candidate| {
        let why = reasons.remove(&snapshot.id);
        Fate {
            id: snapshot.id,
            time: snapshot.time,
            kept: why.is_some(),
            reasons: why.unwrap_or_else(|| vec!["no rule keeps it".to_owned()]),
        }
    };
    ordered.iter().map(fate).collect()
}

/// What is kept whatever the rules say. `past`: those that are not of the future.
fn by_state(ordered: &[&Candidate], past: &[&Candidate], keep: &mut impl FnMut(SnapshotId, String)) {
    if let Some(newest) = past.last() {
        keep(newest.id, "the newest".to_owned());
    }
    // By its commit it may be another one, where a clock was wrong.
    if let Some(latest) = ordered.iter().max_by_key(|snapshot| snapshot.id)
        && past.last().is_none_or(|newest| newest.id != latest.id)
    {
        keep(latest.id, "the last that was committed".to_owned());
    }
    if let Some(whole) = past.iter().rev().find(|snapshot| snapshot.whole && snapshot.damaged.is_none()) {
        keep(whole.id, "the newest whole one".to_owned());
    }
    let proven = past.iter().filter(|snapshot| snapshot.proven_at.is_some() && snapshot.damaged.is_none());
    if let Some(proven) = proven.max_by_key(|snapshot| (snapshot.time, snapshot.id)) {
        keep(proven.id, "the newest that a drill has proven".to_owned());
    }
    for snapshot in ordered {
        if let Some(why) = &snapshot.held {
            keep(snapshot.id, format!("held: {why}"));
        }
        if let Some(why) = &snapshot.damaged {
            keep(snapshot.id, format!("not known to be sound, so not removed by itself: {why}"));
        }
        if snapshot.unended {
            keep(snapshot.id, "its backup has not ended yet".to_owned());
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Period {
    Hour,
    Day,
    Week,
    Month,
    Year,
}

impl Period {
    /// Equal within one period; greater in a later one. An hour that a clock change repeats is two.
    fn key(self, time: DateTime<Utc>, zone: Tz) -> (i64, u32, u32) {
        let local = time.with_timezone(&zone);
        match self {
            // By the instant: local hours may begin at any minute of UTC, and come twice.
            Self::Hour => (time.timestamp() - i64::from(local.minute() * 60 + local.second()), 0, 0),
            Self::Day => (i64::from(local.year()), local.ordinal(), 0),
            Self::Week => (i64::from(local.iso_week().year()), local.iso_week().week(), 0),
            Self::Month => (i64::from(local.year()), local.month(), 0),
            Self::Year => (i64::from(local.year()), 0, 0),
        }
    }

    fn told(self, time: DateTime<Utc>, zone: Tz) -> String {
        let local = time.with_timezone(&zone);
        match self {
            Self::Hour => format!("hourly: {}", local.format("%Y-%m-%d %H:00")),
            Self::Day => format!("daily: {}", local.format("%Y-%m-%d")),
            Self::Week => format!("weekly: {}", local.format("%G-W%V")),
            Self::Month => format!("monthly: {}", local.format("%Y-%m")),
            Self::Year => format!("yearly: {}", local.format("%Y")),
        }
    }
}

fn by_period(sound: &[&Candidate], count: u32, period: Period, zone: Tz, keep: &mut impl FnMut(SnapshotId, String)) {
    if count == 0 {
        return;
    }
    let mut periods: BTreeMap<(i64, u32, u32), &Candidate> = BTreeMap::new();
    for snapshot in sound {
        let key = period.key(snapshot.time, zone);
        // Oldest first: a later one takes the place, unless it is the first that is not whole.
        if periods.get(&key).is_none_or(|best| snapshot.whole || !best.whole) {
            periods.insert(key, snapshot);
        }
    }
    for snapshot in periods.values().rev().take(count as usize) {
        keep(snapshot.id, period.told(snapshot.time, zone));
    }
}

/// The snapshot that recovery to the beginning of the window starts from: the newest sound one that is not later.
fn log_begins<'a>(rules: &Rules, ordered: &[&'a Candidate], now: DateTime<Utc>) -> Option<&'a Candidate> {
    let earliest = before(now, rules.log?)?;
    let mut usable = ordered.iter().copied().filter(|snapshot| snapshot.has_log && snapshot.whole && snapshot.damaged.is_none());
    usable.rfind(|snapshot| snapshot.time <= earliest)
}

/// Of the snapshots that are kept, those whose log is needed from their beginning on. Oldest first.
#[must_use]
pub fn log_needed_by<'a>(rules: &Rules, snapshots: &'a [Candidate], fates: &[Fate], now: DateTime<Utc>) -> Vec<&'a Candidate> {
    needing_log_of(rules, snapshots.iter().filter(|snapshot| fates.iter().any(|fate| fate.kept && fate.id == snapshot.id)).collect(), now)
}

/// The same where all are kept.
#[must_use]
pub fn needing_log<'a>(rules: &Rules, snapshots: &'a [Candidate], now: DateTime<Utc>) -> Vec<&'a Candidate> {
    needing_log_of(rules, snapshots.iter().collect(), now)
}

fn needing_log_of<'a>(rules: &Rules, mut kept: Vec<&'a Candidate>, now: DateTime<Utc>) -> Vec<&'a Candidate> {
    kept.sort_by_key(|snapshot| (snapshot.time, snapshot.id));
    let first = log_begins(rules, &kept, now).map(|first| (first.time, first.id));
    // Without a snapshot as old as the window the whole log is needed.
    kept.into_iter().filter(|snapshot| snapshot.has_log && first.is_none_or(|first| (snapshot.time, snapshot.id) >= first)).collect()
}

fn before(now: DateTime<Utc>, duration: Duration) -> Option<DateTime<Utc>> {
    now.checked_sub_signed(chrono::Duration::from_std(duration).ok()?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use proptest::prelude::*;

    const ZONE: Tz = Tz::Europe__Berlin;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    fn snapshot(time: DateTime<Utc>) -> Candidate {
        Candidate {
            id: SnapshotId::generate(time),
            time,
            tags: vec![],
            whole: true,
            proven_at: None,
            damaged: None,
            held: None,
            unended: false,
            has_log: false,
        }
    }

    fn daily(days: i64) -> Vec<Candidate> {
        (0..days).map(|day| snapshot(at("2026-01-01T01:15:00Z") + chrono::Duration::days(day))).collect()
    }

    fn kept(fates: &[Fate]) -> Vec<String> {
        fates.iter().filter(|fate| fate.kept).map(|fate| fate.time.format("%m-%d").to_string()).collect()
    }

    #[test]
    fn periods_are_those_of_the_zone() {
        let rules = Rules { daily: 3, weekly: 2, monthly: 3, ..Rules::default() };
        let fates = plan(&rules, &daily(60), ZONE, at("2026-03-02T00:00:00Z"));
        assert_eq!(kept(&fates), ["01-31", "02-22", "02-27", "02-28", "03-01"]);
        // 23:30 UTC is the next day in Berlin: two snapshots of one day.
        let two = [snapshot(at("2026-01-10T23:30:00Z")), snapshot(at("2026-01-11T02:00:00Z")), snapshot(at("2026-01-12T02:00:00Z"))];
        let fates = plan(&Rules { daily: 2, ..Rules::default() }, &two, ZONE, at("2026-01-12T03:00:00Z"));
        assert_eq!(kept(&fates), ["01-11", "01-12"]);
        // The hour that comes twice in autumn is two hours.
        let hours = [snapshot(at("2026-10-25T00:30:00Z")), snapshot(at("2026-10-25T01:30:00Z"))];
        let fates = plan(&Rules { hourly: 5, ..Rules::default() }, &hours, ZONE, at("2026-10-25T03:00:00Z"));
        assert_eq!(kept(&fates).len(), 2);
    }

    #[test]
    fn without_rules_nothing_goes() {
        let fates = plan(&Rules { log: Some(Duration::from_secs(1)), ..Rules::default() }, &daily(10), ZONE, at("2036-01-01T00:00:00Z"));
        assert!(fates.iter().all(|fate| fate.kept && fate.reasons[0].contains("no keep rules")));
    }

    #[test]
    fn what_must_never_go_stays() {
        let mut snapshots = daily(10);
        snapshots[9].whole = false;
        snapshots[8].damaged = Some("a pack is missing".into());
        snapshots[3].proven_at = Some(at("2026-02-01T00:00:00Z"));
        snapshots[2].held = Some("audit".into());
        snapshots[1].unended = true;
        snapshots[0].tags = vec!["release".into()];
        let rules = Rules { last: 1, tags: vec!["release".into()], ..Rules::default() };
        let fates = plan(&rules, &snapshots, ZONE, at("2026-02-01T00:00:00Z"));
        assert_eq!(kept(&fates), ["01-01", "01-02", "01-03", "01-04", "01-08", "01-09", "01-10"]);
        assert!(fates[8].reasons[0].contains("a pack is missing"));
    }

    #[test]
    fn an_incomplete_snapshot_does_not_push_a_whole_one_out() {
        let mut snapshots =
            vec![snapshot(at("2026-01-01T01:00:00Z")), snapshot(at("2026-01-01T05:00:00Z")), snapshot(at("2026-01-02T01:00:00Z"))];
        snapshots[1].whole = false;
        let fates = plan(&Rules { daily: 2, ..Rules::default() }, &snapshots, ZONE, at("2026-01-03T00:00:00Z"));
        assert_eq!(fates.iter().map(|fate| fate.kept).collect::<Vec<_>>(), [true, false, true]);
    }

    #[test]
    fn the_window_keeps_the_snapshot_that_it_begins_with() {
        let mut snapshots = daily(30);
        snapshots.iter_mut().for_each(|s| s.has_log = true);
        let rules = Rules { last: 2, log: Some(Duration::from_hours(24 * 10)), ..Rules::default() };
        let now = at("2026-01-30T12:00:00Z");
        let fates = plan(&rules, &snapshots, ZONE, now);
        assert_eq!(kept(&fates), ["01-20", "01-29", "01-30"]);
        let needed: Vec<String> =
            log_needed_by(&rules, &snapshots, &fates, now).iter().map(|s| s.time.format("%m-%d").to_string()).collect();
        assert_eq!(needed, ["01-20", "01-29", "01-30"]);
        // With yearly ones kept beside it, their log is not needed.
        let rules = Rules { yearly: 1, monthly: 3, ..rules };
        snapshots.push(Candidate { has_log: true, ..snapshot(at("2025-06-01T00:00:00Z")) });
        let fates = plan(&rules, &snapshots, ZONE, now);
        assert!(fates[0].kept);
        assert_eq!(log_needed_by(&rules, &snapshots, &fates, now)[0].time, at("2026-01-20T01:15:00Z"));
    }

    /// A host was at 2036 for two weeks, and its clock was put right: ids go on behind those of then.
    #[test]
    fn snapshots_of_the_future_push_no_real_one_out() {
        let real = daily(20);
        let mut wrong: Vec<Candidate> = (0..14).map(|day| snapshot(at("2036-05-01T01:15:00Z") + chrono::Duration::days(day))).collect();
        wrong[5].proven_at = Some(at("2026-01-18T00:00:00Z"));
        let mut all = real.clone();
        all[12].proven_at = Some(at("2026-01-15T00:00:00Z"));
        all[19].whole = false;
        let rules = Rules { last: 3, daily: 5, monthly: 2, within: Some(Duration::from_hours(48)), ..Rules::default() };
        let now = at("2026-01-20T12:00:00Z");
        let alone = kept(&plan(&rules, &all, ZONE, now));
        assert_eq!(alone, ["01-13", "01-16", "01-17", "01-18", "01-19", "01-20"]);
        all.extend(wrong);
        let fates = plan(&rules, &all, ZONE, now);
        assert_eq!(kept(&fates)[..alone.len()], alone);
        assert!(fates[20..].iter().all(|fate| fate.kept && fate.reasons[0].contains("has not been yet")), "{fates:?}");
        // At their time they are like any other.
        let fates = plan(&rules, &all, ZONE, at("2036-06-01T00:00:00Z"));
        assert_eq!(kept(&fates), ["01-19", "05-06", "05-10", "05-11", "05-12", "05-13", "05-14"]);
    }

    /// The same question, asked of each snapshot alone by counting.
    fn naive(rules: &Rules, all: &[Candidate], one: &Candidate, now: DateTime<Utc>) -> bool {
        let has_been = |s: &Candidate| (now - s.time) >= chrono::Duration::zero();
        let later = |a: &Candidate, b: &Candidate| has_been(a) && (a.time, a.id) > (b.time, b.id);
        let usable = |s: &Candidate| s.damaged.is_none();
        let newest_of = |filter: &dyn Fn(&Candidate) -> bool| filter(one) && !all.iter().any(|s| filter(s) && later(s, one));
        let mut kept = newest_of(&|_| true) || newest_of(&|s| s.whole && usable(s)) || newest_of(&|s| s.proven_at.is_some() && usable(s));
        kept |= all.iter().all(|s| s.id <= one.id);
        kept |= !has_been(one);
        kept |= one.held.is_some() || one.damaged.is_some() || one.unended;
        kept |= one.tags.iter().any(|tag| rules.tags.contains(tag));
        kept |= rules.within.is_some_and(|within| now - one.time <= chrono::Duration::from_std(within).unwrap());
        if usable(one) {
            kept |= all.iter().filter(|s| usable(s) && later(s, one)).count() < rules.last as usize;
            let formats =
                [(rules.hourly, "%F %H %z"), (rules.daily, "%F"), (rules.weekly, "%G %V"), (rules.monthly, "%Y %m"), (rules.yearly, "%Y")];
            for (count, format) in formats {
                let bucket = |s: &Candidate| s.time.with_timezone(&ZONE).format(format).to_string();
                let rivals: Vec<&Candidate> = all.iter().filter(|s| usable(s) && has_been(s) && bucket(s) == bucket(one)).collect();
                let best = if rivals.iter().any(|s| s.whole) {
                    one.whole && !rivals.iter().any(|s| s.whole && later(s, one))
                } else {
                    !rivals.iter().any(|s| later(s, one))
                };
                let newer: BTreeSet<String> =
                    all.iter().filter(|s| usable(s) && later(s, one)).map(bucket).filter(|b| *b != bucket(one)).collect();
                kept |= best && newer.len() < count as usize;
            }
        }
        if let Some(log) = rules.log {
            let begins = |s: &Candidate| s.has_log && s.whole && usable(s) && now - s.time >= chrono::Duration::from_std(log).unwrap();
            kept |= newest_of(&begins);
        }
        kept || rules.is_everything()
    }

    fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
        let one = (0i64..4_000, any::<[bool; 3]>(), 0u8..12).prop_map(|(hours, [whole, proven, has_log], odd)| {
            // Around both changes of the clock.
            let time = at("2026-03-01T00:10:00Z") + chrono::Duration::minutes(hours * 97);
            Candidate {
                whole: whole || odd > 3,
                proven_at: (proven && odd == 1).then_some(time),
                damaged: (odd == 2).then(|| "x".to_owned()),
                held: (odd == 3).then(|| "y".to_owned()),
                unended: odd == 4,
                tags: if odd == 5 { vec!["a".into(), "b".into()] } else { vec![] },
                has_log,
                ..snapshot(time)
            }
        });
        proptest::collection::vec(one, 0..30)
    }

    fn rules() -> impl Strategy<Value = Rules> {
        (any::<[bool; 9]>(), proptest::collection::vec(0u32..6, 6), 0u64..3_000, 0u64..3_000).prop_map(|(on, counts, within, log)| {
            let count = |at: usize| if on[at] { counts[at] } else { 0 };
            Rules {
                last: count(0),
                hourly: count(1),
                daily: count(2),
                weekly: count(3),
                monthly: count(4),
                yearly: count(5),
                within: on[6].then(|| Duration::from_hours(within)),
                tags: if on[7] { vec!["b".into()] } else { vec![] },
                log: on[8].then(|| Duration::from_hours(log)),
            }
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]
        #[test]
        fn agrees_with_a_naive_model(rules in rules(), snapshots in candidates(), later in 0i64..9_000) {
            let now = at("2026-03-01T00:00:00Z") + chrono::Duration::hours(later);
            let fates = plan(&rules, &snapshots, ZONE, now);
            prop_assert_eq!(fates.len(), snapshots.len());
            for fate in &fates {
                let one = snapshots.iter().find(|s| s.id == fate.id).unwrap();
                prop_assert_eq!(fate.kept, naive(&rules, &snapshots, one, now), "{:?} {:?}", one, fate);
                prop_assert!(!fate.reasons.is_empty());
            }
            // What was kept is kept again: nothing slips away by pruning twice.
            let left: Vec<Candidate> = snapshots.iter().filter(|s| fates.iter().any(|f| f.kept && f.id == s.id)).cloned().collect();
            prop_assert!(plan(&rules, &left, ZONE, now).iter().all(|fate| fate.kept));
        }
    }
}

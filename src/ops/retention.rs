//! Which snapshots stay, and why: a plan that is explained line by line before it is applied. Pure.
//!
//! A snapshot stays when any rule keeps it. Never removed, whatever the rules say: the newest, the newest whole one, the newest that a
//! drill has proven, one that is held, one whose backup has not ended yet, and one whose state is not known to be sound. Without a rule
//! nothing is removed at all.
//!
//! A snapshot of a moment that has not been yet (a clock was wrong) stays, too, and is none of those until that moment: neither the newest of
//! anything nor in a place of any rule, or a few of them would push all real ones out for years.
//!
//! One that was made while the clock of its host was behind would look older than what was made before it, and go first. It is in no place of any rule, and
//! stays as long as rules reach back to the moment before which it must have been made: that of the next snapshot that was committed after it, by a right
//! clock. What is the newest is asked of it, too, in the order of commits.
//!
//! The window of a log begins with the newest sound snapshot that is as old as the window. Until there is one, the oldest stays in its place: else each prune
//! would remove what the window is to begin with. And one more stays, of no more than a window later, with which it goes on: else the first one, and all log
//! after it, would be needed for ever.
//!
//! Rules of periods keep the newest *whole* snapshot of each of the last so many periods that have one (the newest at all where none is
//! whole), by the calendar of the plan's zone; weeks are those of ISO 8601. A snapshot that is known to be damaged takes no place in them.
//!
//! A snapshot whose key was destroyed restores nothing. No rule keeps it and it is the newest of nothing; it stays only while it is held, its backup has not
//! ended, it is the last that was committed (later ones name it), or of a moment that has not been yet.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Datelike as _, TimeDelta, Timelike as _, Utc};
use chrono_tz::Tz;

use crate::id::SnapshotId;
use crate::ops::select;

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
#[expect(clippy::struct_excessive_bools, reason = "independent facts, each asked for by another rule")]
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
    /// When the key of its content was destroyed.
    pub destroyed: Option<DateTime<Utc>>,
    /// Why it is held.
    pub held: Option<String>,
    /// Whether its backup may not have heard of its commit.
    pub unended: bool,
    /// Whether it can be the beginning of a recovery along a log.
    pub has_log: bool,
    /// Its place in the order of commits: its id, or of what stands for another one, that one's.
    pub place: SnapshotId,
    /// The clock of the host that made it was behind: it is later than its time.
    pub behind: bool,
}

impl Candidate {
    /// Whether a recovery along the log can begin with it.
    fn is_usable(&self) -> bool {
        self.has_log && self.whole && self.damaged.is_none() && !self.behind
    }
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
    let mut all: Vec<&Candidate> = snapshots.iter().collect();
    all.sort_by_key(|snapshot| (snapshot.time, snapshot.id));
    let (destroyed, ordered): (Vec<&Candidate>, Vec<&Candidate>) = all.iter().copied().partition(|snapshot| snapshot.destroyed.is_some());
    let mut reasons: BTreeMap<SnapshotId, Vec<String>> = BTreeMap::new();
    let mut keep = |id: SnapshotId, why: String| reasons.entry(id).or_default().push(why);

    if rules.is_everything() {
        for snapshot in &all {
            keep(snapshot.id, "the plan has no keep rules: nothing is removed".to_owned());
        }
    }
    for snapshot in &destroyed {
        if snapshot.time > now {
            keep(snapshot.id, "of a moment that has not been yet".to_owned());
        }
        if snapshots.iter().all(|other| other.id <= snapshot.id) {
            keep(snapshot.id, "the last that was committed".to_owned());
        }
        by_others(snapshot, &mut keep);
    }
    let (past, future): (Vec<&Candidate>, Vec<&Candidate>) = ordered.iter().copied().partition(|snapshot| snapshot.time <= now);
    for snapshot in future {
        keep(snapshot.id, "of a moment that has not been yet: it stays, and takes no other one's place".to_owned());
    }
    by_state(&ordered, &in_order(&past), &mut keep);
    let (behind, right): (Vec<&Candidate>, Vec<&Candidate>) = past.into_iter().partition(|snapshot| snapshot.behind);
    let sound: Vec<&Candidate> = right.iter().copied().filter(|snapshot| snapshot.damaged.is_none()).collect();
    let earliest = rules.within.and_then(|within| before(now, within));
    // The earliest moment that a rule keeps something of.
    let mut reach = earliest;
    let mut by_rule = |snapshot: &Candidate, why: String| {
        reach = Some(reach.map_or(snapshot.time, |reach| reach.min(snapshot.time)));
        keep(snapshot.id, why);
    };
    for snapshot in sound.iter().rev().take(rules.last as usize) {
        by_rule(snapshot, format!("one of the last {}", rules.last));
    }
    for (count, period) in [
        (rules.hourly, Period::Hour),
        (rules.daily, Period::Day),
        (rules.weekly, Period::Week),
        (rules.monthly, Period::Month),
        (rules.yearly, Period::Year),
    ] {
        by_period(&sound, count, period, zone, &mut by_rule);
    }
    if let Some((first, next)) = window(rules, &right, now) {
        by_rule(first, "the recovery window begins with it".to_owned());
        if let Some(next) = next {
            by_rule(next, "the recovery window goes on with it".to_owned());
        }
    }
    for snapshot in behind {
        let until = right.iter().filter(|other| other.place > snapshot.place).map(|other| other.time).min().unwrap_or(now);
        if sound.is_empty() || reach.is_some_and(|reach| until >= reach) {
            keep(
                snapshot.id,
                "dated before one that was committed earlier, by a clock that was wrong: it stays while a rule reaches back to when it may be of, and takes \
                 no other one's place"
                    .to_owned(),
            );
        }
    }
    if let Some(earliest) = earliest {
        for snapshot in ordered.iter().filter(|snapshot| snapshot.time >= earliest) {
            keep(snapshot.id, "younger than `within`".to_owned());
        }
    }
    for snapshot in &ordered {
        if let Some(tag) = snapshot.tags.iter().find(|tag| rules.tags.contains(tag)) {
            keep(snapshot.id, format!("tagged {tag:?}"));
        }
    }
    let fate = |snapshot: &&Candidate| {
        let why = reasons.remove(&snapshot.id);
        Fate {
            id: snapshot.id,
            time: snapshot.time,
            kept: why.is_some(),
            reasons: why.unwrap_or_else(|| {
                vec![snapshot.destroyed.map_or_else(
                    || "no rule keeps it".to_owned(),
                    |at| format!("the key of its content was destroyed at {}: nobody can restore it", select::moment(at)),
                )]
            }),
        }
    };
    all.iter().map(fate).collect()
}

/// What keeps a snapshot whatever is in it.
fn by_others(snapshot: &Candidate, keep: &mut impl FnMut(SnapshotId, String)) {
    if let Some(why) = &snapshot.held {
        keep(snapshot.id, format!("held: {why}"));
    }
    if snapshot.unended {
        keep(snapshot.id, "its backup has not ended yet".to_owned());
    }
}

/// In the order in which they were made, of those of the past that are in the order of their times: one that is dated too early comes after those that were
/// committed before it.
fn in_order<'a>(past: &[&'a Candidate]) -> Vec<&'a Candidate> {
    let mut ordered = past.to_vec();
    ordered.sort_by_cached_key(|snapshot| {
        let earlier = past.iter().filter(|other| snapshot.behind && !other.behind && other.place < snapshot.place);
        (earlier.map(|other| other.time).max().unwrap_or(snapshot.time), snapshot.behind, snapshot.place, snapshot.id)
    });
    ordered
}

/// What is kept whatever the rules say. `past`: those that are not of the future, in the order in which they were made.
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
    if let Some(proven) = past.iter().rev().find(|snapshot| snapshot.proven_at.is_some() && snapshot.damaged.is_none()) {
        keep(proven.id, "the newest that a drill has proven".to_owned());
    }
    for snapshot in ordered {
        if let Some(why) = &snapshot.damaged {
            keep(snapshot.id, format!("not known to be sound, so not removed by itself: {why}"));
        }
        by_others(snapshot, keep);
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

fn by_period(sound: &[&Candidate], count: u32, period: Period, zone: Tz, keep: &mut impl FnMut(&Candidate, String)) {
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
        keep(snapshot, period.told(snapshot.time, zone));
    }
}

/// The snapshot that recovery to the beginning of the window starts from: the newest sound one that is not later.
fn log_begins<'a>(rules: &Rules, ordered: &[&'a Candidate], now: DateTime<Utc>) -> Option<&'a Candidate> {
    let earliest = before(now, rules.log?)?;
    ordered.iter().copied().rfind(|snapshot| snapshot.is_usable() && snapshot.time <= earliest)
}

/// The snapshots that the window stands on: the one that it begins with, or while none is as old as it the oldest; and the newest that is no more than a window
/// later than that, or where there is none the next one. So the log that is kept reaches back no more than about twice as far as the window.
fn window<'a>(rules: &Rules, right: &[&'a Candidate], now: DateTime<Utc>) -> Option<(&'a Candidate, Option<&'a Candidate>)> {
    let log = TimeDelta::from_std(rules.log?).unwrap_or(TimeDelta::MAX);
    let usable: Vec<&Candidate> = right.iter().copied().filter(|snapshot| snapshot.is_usable()).collect();
    let first = log_begins(rules, &usable, now).or_else(|| usable.first().copied())?;
    let later = || usable.iter().copied().filter(|snapshot| (snapshot.time, snapshot.id) > (first.time, first.id));
    let next = later().take_while(|snapshot| snapshot.time - first.time <= log).last().or_else(|| later().next());
    Some((first, next))
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
    let is_inside = |snapshot: &Candidate| snapshot.behind || first.is_none_or(|first| (snapshot.time, snapshot.id) >= first);
    kept.into_iter().filter(|snapshot| snapshot.has_log && is_inside(snapshot)).collect()
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
        let id = SnapshotId::generate(time);
        Candidate {
            id,
            place: id,
            behind: false,
            time,
            tags: vec![],
            whole: true,
            proven_at: None,
            damaged: None,
            destroyed: None,
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

    /// Daily backups and prunes of a plan that keeps two snapshots and a window of log: it grows to its length, stays, and does not keep log for ever.
    #[test]
    fn a_window_that_no_other_rule_reaches_grows_to_its_length_and_goes_on() {
        let log = Some(Duration::from_hours(24 * 14));
        let (last, daily) = (Rules { last: 2, log, ..Rules::default() }, Rules { daily: 1, log, ..Rules::default() });
        let within = Rules { within: Some(Duration::from_hours(50)), ..daily.clone() };
        for (rules, every) in [(&last, 24), (&daily, 24), (&last, 70), (&within, 24), (&last, 1), (&last, 24 * 20)] {
            let (window, every) = (chrono::Duration::days(14), chrono::Duration::hours(every));
            let begin = at("2026-01-01T01:15:00Z");
            let mut snapshots: Vec<Candidate> = Vec::new();
            let mut most = 0;
            for number in 0..1000 {
                // Nor does it matter that the time of a backup jitters.
                let made = begin + every * number + chrono::Duration::minutes(i64::from(number * 7 % 13));
                snapshots.push(Candidate { has_log: true, ..snapshot(made) });
                let now = made + chrono::Duration::minutes(30);
                let fates = plan(rules, &snapshots, ZONE, now);
                let needed = log_needed_by(rules, &snapshots, &fates, now).first().map(|first| first.time).unwrap();
                assert!(needed <= begin.max(now - window), "{every}: {number}");
                assert!(now - needed <= window * 2 + every + every, "{every}: {number}: log of {}", now - needed);
                snapshots.retain(|snapshot| fates.iter().any(|fate| fate.kept && fate.id == snapshot.id));
                most = most.max(snapshots.len());
            }
            assert!(most <= 5, "{every}: {most} snapshots");
            // Backups stop: what is left leads from the last one on, and log before it goes.
            let last = snapshots.last().unwrap().time;
            let now = last + window * 3;
            let fates = plan(rules, &snapshots, ZONE, now);
            let needed: Vec<DateTime<Utc>> = log_needed_by(rules, &snapshots, &fates, now).iter().map(|s| s.time).collect();
            assert_eq!(needed, [last]);
        }
    }

    /// Five right days, two weeks of 2020 by a clock without a battery, and the clock is right again.
    #[test]
    fn snapshots_of_a_clock_that_was_behind_do_not_go_as_the_oldest() {
        let day = |day: i64| at("2026-11-10T01:15:00Z") + chrono::Duration::days(day);
        let mut all: Vec<Candidate> = (0..5).map(|number| snapshot(day(number))).collect();
        for number in 0..14 {
            let last = all.last().unwrap().id;
            let time = at("2020-01-01T00:00:00Z") + chrono::Duration::days(number);
            let id = SnapshotId::generate_after(time, Some(last));
            all.push(Candidate { id, place: id, behind: true, ..snapshot(time) });
        }
        let wrong: Vec<SnapshotId> = all[5..].iter().map(|s| s.id).collect();
        let gone = |all: &[Candidate], rules: &Rules, now| {
            plan(rules, all, ZONE, now).into_iter().filter(|fate| !fate.kept).map(|fate| fate.id).collect::<Vec<_>>()
        };
        let (last, within) = (Rules { last: 3, ..Rules::default() }, Some(Duration::from_hours(24 * 30)));
        // While it lasts, and seen by a clock that is right: the newest is the last of them.
        assert_eq!(gone(&all, &last, day(18)), [all[0].id, all[1].id]);
        let newest = plan(&last, &all, ZONE, day(18)).into_iter().find(|fate| fate.id == *wrong.last().unwrap()).unwrap();
        assert!(newest.reasons[0] == "the newest" && newest.reasons[1] == "the newest whole one", "{newest:?}");
        all.push(snapshot(day(19)));
        let rules = Rules { within, ..last.clone() };
        assert_eq!(gone(&all, &rules, day(20)), vec![]);
        assert_eq!(gone(&all, &Rules { daily: 14, ..Rules::default() }, day(20)), vec![]);
        assert_eq!(gone(&all, &last, day(20)), all[..3].iter().map(|s| s.id).collect::<Vec<_>>());
        // Not for ever: they go with those that were made before and after them.
        all.extend((20..60).map(|number| snapshot(day(number))));
        for rules in [&last, &rules, &Rules { daily: 14, ..Rules::default() }] {
            let gone = gone(&all, rules, day(60));
            assert!(wrong.iter().all(|id| gone.contains(id)), "{rules:?}");
        }
        assert!(!gone(&all, &Rules { daily: 45, ..Rules::default() }, day(60)).contains(&wrong[0]), "as far as a rule reaches");
        // What is proven of them alone stays for good.
        all[7].proven_at = Some(day(10));
        assert!(!gone(&all, &last, day(60)).contains(&wrong[2]));
    }

    /// Backups that nobody can restore any more push none out that somebody can, and go themselves.
    #[test]
    fn what_was_destroyed_takes_no_place_and_goes() {
        let mut snapshots = daily(6);
        let destroyed = Some(at("2026-01-06T12:00:00Z"));
        for snapshot in &mut snapshots[2..] {
            (snapshot.destroyed, snapshot.proven_at, snapshot.tags) = (destroyed, Some(snapshot.time), vec!["release".into()]);
        }
        let rules = Rules {
            last: 1,
            daily: 2,
            within: Some(Duration::from_hours(24 * 5)),
            tags: vec!["release".into()],
            log: Some(Duration::from_hours(24)),
            ..Rules::default()
        };
        let now = at("2026-01-07T00:00:00Z");
        let fates = plan(&rules, &snapshots, ZONE, now);
        assert_eq!(kept(&fates), ["01-01", "01-02", "01-06"]);
        assert!(fates[1].reasons.iter().any(|why| why == "the newest whole one"), "{fates:?}");
        assert_eq!(fates[5].reasons, ["the last that was committed"]);
        assert_eq!(fates[4].reasons, ["the key of its content was destroyed at 2026-01-06T12:00:00Z: nobody can restore it"]);
        // Somebody holds one, and a later backup was committed.
        snapshots[3].held = Some("the court wants its names".into());
        snapshots.push(snapshot(at("2026-01-06T20:00:00Z")));
        let fates = plan(&rules, &snapshots, ZONE, now);
        assert_eq!(kept(&fates), ["01-02", "01-04", "01-06"], "{fates:?}");
        assert!(!fates[5].kept && fates[6].kept);
        // Without rules nothing goes at all.
        assert!(plan(&Rules::default(), &snapshots, ZONE, now).iter().all(|fate| fate.kept));
    }

    /// The same question, asked of each snapshot alone by counting.
    fn naive(rules: &Rules, all: &[Candidate], one: &Candidate, now: DateTime<Utc>) -> bool {
        let has_been = |s: &Candidate| (now - s.time) >= chrono::Duration::zero();
        if one.destroyed.is_some() {
            let is_last = all.iter().all(|s| s.id <= one.id);
            return rules.is_everything() || is_last || !has_been(one) || one.held.is_some() || one.unended;
        }
        let all: Vec<Candidate> = all.iter().filter(|s| s.destroyed.is_none()).cloned().collect();
        let all = all.as_slice();
        let is_right = |s: &Candidate| has_been(s) && !s.behind;
        let usable = |s: &Candidate| s.damaged.is_none();
        // Behind all right ones that were committed before it.
        let moment = |s: &Candidate| {
            let before = all.iter().filter(|other| s.behind && is_right(other) && other.place < s.place);
            (before.map(|other| other.time).max().unwrap_or(s.time), s.behind, s.place)
        };
        let later = |a: &Candidate, b: &Candidate| has_been(a) && moment(a) > moment(b);
        let newest_of = |filter: &dyn Fn(&Candidate) -> bool| filter(one) && !all.iter().any(|s| filter(s) && later(s, one));
        let mut kept = newest_of(&|_| true) || newest_of(&|s| s.whole && usable(s)) || newest_of(&|s| s.proven_at.is_some() && usable(s));
        kept |= all.iter().all(|s| s.id <= one.id);
        kept |= !has_been(one);
        kept |= one.held.is_some() || one.damaged.is_some() || one.unended;
        kept |= one.tags.iter().any(|tag| rules.tags.contains(tag));
        let within = rules.within.map(|within| now - chrono::Duration::from_std(within).unwrap());
        kept |= within.is_some_and(|earliest| one.time >= earliest);
        if is_right(one) {
            kept |= naive_rules(rules, all, one, now);
        } else if one.behind {
            let by_rule = all.iter().filter(|s| is_right(s) && naive_rules(rules, all, s, now)).map(|s| s.time);
            let reach = by_rule.chain(within).min();
            let until = all.iter().filter(|s| is_right(s) && s.place > one.place).map(|s| s.time).min().unwrap_or(now);
            kept |= reach.is_some_and(|reach| reach <= until) || !all.iter().any(|s| is_right(s) && usable(s));
        }
        kept || rules.is_everything()
    }

    /// Whether a rule that counts keeps a snapshot that is dated right.
    fn naive_rules(rules: &Rules, all: &[Candidate], one: &Candidate, now: DateTime<Utc>) -> bool {
        let has_been = |s: &Candidate| now - s.time >= chrono::Duration::zero() && !s.behind;
        let later = |a: &Candidate, b: &Candidate| has_been(a) && (a.time, a.id) > (b.time, b.id);
        let usable = |s: &Candidate| s.damaged.is_none();
        let mut kept = false;
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
        if let Some(log) = rules.log.map(|log| chrono::Duration::from_std(log).unwrap()) {
            let base = |s: &Candidate| s.has_log && s.whole && usable(s) && has_been(s);
            let old = |s: &Candidate| base(s) && now - s.time >= log;
            let begins = |s: &Candidate| {
                if all.iter().any(old) {
                    old(s) && !all.iter().any(|other| old(other) && later(other, s))
                } else {
                    base(s) && !all.iter().any(|other| base(other) && later(s, other))
                }
            };
            let first = all.iter().find(|s| begins(s));
            kept |= first.is_some_and(|first| first.id == one.id);
            // What the window goes on with.
            let goes_on = |s: &Candidate| first.is_some_and(|first| base(s) && later(s, first));
            let near = |s: &Candidate| goes_on(s) && first.is_some_and(|first| s.time - first.time <= log);
            kept |= if all.iter().any(near) {
                near(one) && !all.iter().any(|other| near(other) && later(other, one))
            } else {
                goes_on(one) && !all.iter().any(|other| goes_on(other) && later(one, other))
            };
        }
        kept
    }

    fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
        let one = (0i64..4_000, any::<[bool; 3]>(), 0u8..16).prop_map(|(hours, [whole, proven, has_log], odd)| {
            // Around both changes of the clock.
            let right = at("2026-03-01T00:10:00Z") + chrono::Duration::minutes(hours * 97);
            let behind = (10..13).contains(&odd);
            let time = if behind { right - chrono::Duration::days(90) } else { right };
            let place = SnapshotId::generate(right);
            Candidate {
                id: place,
                place,
                behind,
                whole: whole || odd > 3,
                proven_at: (proven && odd == 1).then_some(time),
                damaged: (odd == 2).then(|| "x".to_owned()),
                destroyed: (odd >= 13).then_some(time),
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

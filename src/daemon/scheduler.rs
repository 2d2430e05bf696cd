//! What is due: pure planning of one schedule's next step from its slots, its history and the time.
//!
//! Invariants, each held by a test: a slot is never run twice; every slot that passes is run, covered by a later catch-up of the
//! same schedule, or handed out as missed; a clock that jumps back never repeats a slot, one that jumped far ahead and came back
//! does not silence a schedule (the caller passes the newest slot *not later than now*).

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use crate::daemon::journal::{Run, State, Trigger};
use crate::error::Kind;
use crate::event::Reason;
use crate::id::{Name, RunId};
use crate::plan::{Schedule, jitter_for};

/// A slot that starts this much after it was due is late: the daemon was not there. It wakes far more often than that.
const GRACE: TimeDelta = TimeDelta::minutes(2);

/// Missed slots are counted up to here; a schedule of every minute passes it in 17 hours.
const COUNT_LIMIT: u32 = 1000;

/// An interrupted run is started again at most until this attempt, also where the plan asks for no retries: a run that takes the
/// daemon down with it must not do so for ever.
const INTERRUPTED_ATTEMPTS: u32 = 3;

/// A retry waits at most this long, however often it was doubled.
const LONGEST_DELAY: Duration = Duration::from_hours(1);

/// The slots of a schedule.
pub trait Slots {
    /// The first slot strictly after `after`; `None` when there is none any more.
    fn next_after(&self, after: DateTime<Utc>) -> Option<DateTime<Utc>>;

    /// The last slot at or before `at`.
    fn last_until(&self, at: DateTime<Utc>) -> Option<DateTime<Utc>>;
}

impl Slots for Schedule {
    fn next_after(&self, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        Schedule::next_after(self, after)
    }

    fn last_until(&self, at: DateTime<Utc>) -> Option<DateTime<Utc>> {
        self.previous_at_or_before(at)
    }
}

/// What to do with slots that passed while no daemon was there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MissedSlots {
    /// One run for all of them.
    RunOnce,
    /// None; they are recorded as missed.
    Skip,
}

/// How a plan wants its slots treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Each slot starts up to this much later, always the same for the same slot.
    pub jitter: Duration,
    pub missed: MissedSlots,
    /// Greatest number of attempts of one slot, the first included.
    pub attempts: u32,
    /// Before the second attempt; doubles with each further one.
    pub delay: Duration,
}

/// What the journal knows of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PastSlot {
    /// The run that a further attempt of this slot belongs to.
    pub run: RunId,
    pub slot: DateTime<Utc>,
    pub state: State,
    pub attempt: u32,
    pub ended: Option<DateTime<Utc>>,
    /// Whether its error may pass by itself.
    pub may_pass: bool,
    /// Whether somebody cancelled it: then it is not tried again.
    pub cancelled: bool,
}

impl PastSlot {
    /// `None` for a run without a slot.
    #[must_use]
    pub fn of_run(run: &Run) -> Option<Self> {
        Some(Self::new(run.id, run.scheduled?, run.state, run.attempt, run.ended, run.kind.as_deref()))
    }

    /// `kind`: the word of its error.
    #[must_use]
    pub fn new(run: RunId, slot: DateTime<Utc>, state: State, attempt: u32, ended: Option<DateTime<Utc>>, kind: Option<&str>) -> Self {
        let may_pass = kind.is_some_and(|kind| [Kind::Unavailable, Kind::Busy].into_iter().any(|k| k.may_pass() && k.word() == kind));
        let cancelled = kind == Some(Reason::Cancelled(String::new()).word());
        Self { run, slot, state, attempt, ended, may_pass, cancelled }
    }
}

/// One schedule at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Situation {
    pub now: DateTime<Utc>,
    /// Since when the schedule is followed; slots before do not count.
    pub since: DateTime<Utc>,
    /// The newest slot in the journal that is not later than `now`.
    pub last: Option<PastSlot>,
    /// Until when another run of the same plan was in the way; a slot that waited for it is not late.
    pub free_since: DateTime<Utc>,
}

/// What to do next for one schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Start a run of `slot` now. `covers` earlier slots passed without a run since `first`.
    Run { slot: DateTime<Utc>, trigger: Trigger, covers: u32, first: DateTime<Utc> },
    /// Record that `count` slots up to `slot` passed (at least so many when it is [`Step::COUNTED`]).
    Missed { slot: DateTime<Utc>, count: u32, first: DateTime<Utc> },
    /// Nothing before this moment. `None`: never again.
    Wait(Option<DateTime<Utc>>),
}

impl Step {
    /// Counting stops here.
    pub const COUNTED: u32 = COUNT_LIMIT;
}

/// Decides the next step. Calling it again without recording what it said yields the same step.
#[must_use]
pub fn next_step(plan: &Name, slots: &dyn Slots, rules: &Rules, at: &Situation) -> Step {
    let now = at.now;
    let since = at.since.min(now);
    let anchor = at.last.map_or(since, |last| last.slot.max(since));
    let passed = passed(slots, anchor, now);
    let Some(passed) = passed else {
        let next = slots.next_after(anchor);
        let next_due = next.map(|slot| due(plan, slot, rules));
        let Some(retry) = at.last.and_then(|last| retry_at(&last, rules)) else { return Step::Wait(next_due) };
        // Within the slot: a retry that would come after the next one is left to the next one.
        if next.is_some_and(|next| retry.1 >= next) {
            return Step::Wait(next_due);
        }
        if retry.1 <= now {
            return Step::Run { slot: retry.0, trigger: Trigger::Retry, covers: 0, first: retry.0 };
        }
        return Step::Wait(Some(next_due.map_or(retry.1, |due| due.min(retry.1))));
    };
    let due_at = due(plan, passed.latest, rules);
    if due_at > now {
        return Step::Wait(Some(due_at));
    }
    let late = now - due_at.max(at.free_since) > GRACE;
    match (rules.missed, late, passed.count) {
        (MissedSlots::Skip, true, count) => Step::Missed { slot: passed.latest, count, first: passed.first },
        (MissedSlots::Skip, false, count) if count > 1 => {
            Step::Missed { slot: passed.before_latest, count: count - 1, first: passed.first }
        }
        (_, late, count) => Step::Run {
            slot: passed.latest,
            trigger: if late || count > 1 { Trigger::CatchUp } else { Trigger::Schedule },
            covers: count - 1,
            first: passed.first,
        },
    }
}

/// The moment of the next run as far as it can be told now: a retry, or the next slot with its jitter.
#[must_use]
pub fn next_run(plan: &Name, slots: &dyn Slots, rules: &Rules, at: &Situation) -> Option<DateTime<Utc>> {
    match next_step(plan, slots, rules, at) {
        Step::Run { .. } => Some(at.now),
        Step::Wait(until) => until,
        Step::Missed { .. } => slots.next_after(at.now).map(|slot| due(plan, slot, rules)),
    }
}

struct Passed {
    first: DateTime<Utc>,
    before_latest: DateTime<Utc>,
    latest: DateTime<Utc>,
    count: u32,
}

/// The moment a slot starts: jitter spreads plans of the same minute.
fn due(plan: &Name, slot: DateTime<Utc>, rules: &Rules) -> DateTime<Utc> {
    slot + TimeDelta::from_std(jitter_for(plan, slot, rules.jitter)).unwrap_or_default()
}

/// The slots in `(anchor, now]`.
fn passed(slots: &dyn Slots, anchor: DateTime<Utc>, now: DateTime<Utc>) -> Option<Passed> {
    let first = slots.next_after(anchor).filter(|slot| *slot <= now)?;
    let mut passed = Passed { first, before_latest: first, latest: first, count: 1 };
    while let Some(next) = slots.next_after(passed.latest).filter(|slot| *slot <= now) {
        if passed.count == COUNT_LIMIT {
            // Too many to walk.
            passed.latest = slots.last_until(now).unwrap_or(passed.latest);
            passed.before_latest = slots.last_until(passed.latest - TimeDelta::milliseconds(1)).unwrap_or(passed.latest);
            return Some(passed);
        }
        (passed.before_latest, passed.latest) = (passed.latest, next);
        passed.count += 1;
    }
    Some(passed)
}

/// The slot to try again and when; `None` when it succeeded, may not pass, or was tried often enough.
fn retry_at(last: &PastSlot, rules: &Rules) -> Option<(DateTime<Utc>, DateTime<Utc>)> {
    let ended = last.ended?;
    let (attempts, delay) = match last.state {
        State::Failed if last.may_pass => (rules.attempts, rules.delay),
        State::Interrupted if !last.cancelled => {
            (rules.attempts.max(INTERRUPTED_ATTEMPTS), if last.attempt > 1 { rules.delay } else { Duration::ZERO })
        }
        _ => return None,
    };
    if last.attempt >= attempts {
        return None;
    }
    let doubled = delay.saturating_mul(1u32.checked_shl(last.attempt.saturating_sub(1)).unwrap_or(u32::MAX)).min(LONGEST_DELAY.max(delay));
    Some((last.slot, ended + TimeDelta::from_std(doubled).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Every `0` seconds: the simplest schedule there is.
    struct Every(TimeDelta);

    impl Slots for Every {
        fn next_after(&self, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
            let step = self.0.num_milliseconds();
            DateTime::from_timestamp_millis((after.timestamp_millis().div_euclid(step) + 1) * step)
        }

        fn last_until(&self, at: DateTime<Utc>) -> Option<DateTime<Utc>> {
            let step = self.0.num_milliseconds();
            DateTime::from_timestamp_millis(at.timestamp_millis().div_euclid(step) * step)
        }
    }

    const HOURLY: Every = Every(TimeDelta::hours(1));
    const RULES: Rules = Rules { jitter: Duration::ZERO, missed: MissedSlots::RunOnce, attempts: 3, delay: Duration::from_mins(1) };

    fn at(text: &str) -> DateTime<Utc> {
        format!("2026-11-20T{text}Z").parse().unwrap()
    }

    fn plan() -> Name {
        Name::new("crm").unwrap()
    }

    fn step(rules: &Rules, now: &str, last: Option<PastSlot>) -> Step {
        step_since(rules, now, last, "00:30:00")
    }

    fn step_since(rules: &Rules, now: &str, last: Option<PastSlot>, free_since: &str) -> Step {
        next_step(&plan(), &HOURLY, rules, &Situation { now: at(now), since: at("00:30:00"), last, free_since: at(free_since) })
    }

    #[expect(clippy::unnecessary_wraps, reason = "it stands where an option is expected")]
    fn past(slot: &str, state: State, attempt: u32, ended: &str, may_pass: bool) -> Option<PastSlot> {
        Some(PastSlot {
            run: RunId::generate(at(slot)),
            slot: at(slot),
            state,
            attempt,
            ended: Some(at(ended)),
            may_pass,
            cancelled: false,
        })
    }

    fn run(slot: &str, trigger: Trigger, covers: u32, first: &str) -> Step {
        Step::Run { slot: at(slot), trigger, covers, first: at(first) }
    }

    #[test]
    fn a_new_schedule_waits_for_its_first_slot_and_then_runs_on_time() {
        assert_eq!(step(&RULES, "00:30:00", None), Step::Wait(Some(at("01:00:00"))));
        assert_eq!(step(&RULES, "01:00:00", None), run("01:00:00", Trigger::Schedule, 0, "01:00:00"));
        let done = past("01:00:00", State::Succeeded, 1, "01:00:10", false);
        assert_eq!(step(&RULES, "01:00:10", done), Step::Wait(Some(at("02:00:00"))));
    }

    #[test]
    fn missed_slots_are_caught_up_by_one_run() {
        let done = past("01:00:00", State::Succeeded, 1, "01:00:10", false);
        assert_eq!(step(&RULES, "05:20:00", done), run("05:00:00", Trigger::CatchUp, 3, "02:00:00"));
    }

    #[test]
    fn missed_slots_are_recorded_where_the_plan_skips_them() {
        let skip = Rules { missed: MissedSlots::Skip, ..RULES };
        let done = past("01:00:00", State::Succeeded, 1, "01:00:10", false);
        assert_eq!(step(&skip, "05:20:00", done), Step::Missed { slot: at("05:00:00"), count: 4, first: at("02:00:00") });
        let missed = past("05:00:00", State::Missed, 0, "05:20:00", false);
        assert_eq!(step(&skip, "05:20:00", missed), Step::Wait(Some(at("06:00:00"))));
        assert_eq!(
            step(&skip, "05:00:01", done),
            Step::Missed { slot: at("04:00:00"), count: 3, first: at("02:00:00") },
            "the slot of now is still run"
        );
        assert_eq!(
            step(&skip, "05:00:01", past("04:00:00", State::Missed, 0, "05:00:01", false)),
            run("05:00:00", Trigger::Schedule, 0, "05:00:00")
        );
    }

    #[test]
    fn a_slot_that_waited_for_another_run_of_its_plan_is_not_missed() {
        let skip = Rules { missed: MissedSlots::Skip, ..RULES };
        let done = past("01:00:00", State::Succeeded, 1, "01:00:10", false);
        assert_eq!(step_since(&skip, "02:20:00", done, "02:19:00"), run("02:00:00", Trigger::Schedule, 0, "02:00:00"));
    }

    #[test]
    fn only_errors_that_may_pass_are_retried_with_growing_delay_within_the_slot() {
        assert_eq!(step(&RULES, "01:05:00", past("01:00:00", State::Failed, 1, "01:05:00", false)), Step::Wait(Some(at("02:00:00"))));
        assert_eq!(step(&RULES, "01:05:00", past("01:00:00", State::Failed, 1, "01:05:00", true)), Step::Wait(Some(at("01:06:00"))));
        assert_eq!(
            step(&RULES, "01:06:00", past("01:00:00", State::Failed, 1, "01:05:00", true)),
            run("01:00:00", Trigger::Retry, 0, "01:00:00")
        );
        assert_eq!(step(&RULES, "01:07:00", past("01:00:00", State::Failed, 2, "01:07:00", true)), Step::Wait(Some(at("01:09:00"))));
        assert_eq!(step(&RULES, "01:30:00", past("01:00:00", State::Failed, 3, "01:07:00", true)), Step::Wait(Some(at("02:00:00"))));
        assert_eq!(
            step(&RULES, "01:59:30", past("01:00:00", State::Failed, 1, "01:59:30", true)),
            Step::Wait(Some(at("02:00:00"))),
            "left to the next slot"
        );
    }

    #[test]
    fn an_interrupted_run_is_started_again_but_not_for_ever() {
        let once = Rules { attempts: 1, ..RULES };
        assert_eq!(
            step(&once, "01:05:00", past("01:00:00", State::Interrupted, 1, "01:05:00", false)),
            run("01:00:00", Trigger::Retry, 0, "01:00:00")
        );
        assert_eq!(step(&once, "01:05:00", past("01:00:00", State::Interrupted, 3, "01:05:00", false)), Step::Wait(Some(at("02:00:00"))));
    }

    #[test]
    fn jitter_is_bounded_and_always_the_same_for_a_slot() {
        let rules = Rules { jitter: Duration::from_mins(10), ..RULES };
        let Step::Wait(Some(due)) = step(&rules, "00:30:00", None) else { panic!() };
        assert!(due >= at("01:00:00") && due <= at("01:10:00"), "{due}");
        assert_eq!(step(&rules, "00:59:00", None), Step::Wait(Some(due)));
        let situation = Situation { now: due, since: at("00:30:00"), last: None, free_since: at("00:30:00") };
        assert_eq!(next_step(&plan(), &HOURLY, &rules, &situation), run("01:00:00", Trigger::Schedule, 0, "01:00:00"));
    }

    #[test]
    fn a_schedule_of_every_minute_that_slept_for_ten_years_is_planned_at_once() {
        let now = at("05:00:30");
        let since = now - TimeDelta::days(3650);
        let situation = Situation { now, since, last: None, free_since: since };
        let Step::Run { slot, trigger, covers, .. } = next_step(&plan(), &Every(TimeDelta::minutes(1)), &RULES, &situation) else {
            panic!()
        };
        assert_eq!((slot, trigger, covers), (at("05:00:00"), Trigger::CatchUp, Step::COUNTED - 1));
    }

    #[test]
    fn a_clock_that_went_back_does_not_repeat_a_slot() {
        // The caller looks for the newest slot not later than now, so that of 02:00 is not seen at 01:59 …
        assert_eq!(step(&RULES, "01:59:00", past("01:00:00", State::Succeeded, 1, "01:00:10", false)), Step::Wait(Some(at("02:00:00"))));
        // … and is seen again at 02:00.
        assert_eq!(step(&RULES, "02:00:00", past("02:00:00", State::Succeeded, 1, "02:00:10", false)), Step::Wait(Some(at("03:00:00"))));
    }

    proptest! {
        /// A daemon that is there only now and then, with a clock that moves at random: each slot at most once, none unaccounted for.
        #[test]
        fn every_slot_is_run_once_or_covered_or_recorded(
            moves in prop::collection::vec(1i64..40_000, 1..200),
            skip in any::<bool>(),
            jitter_secs in 0u64..3000,
        ) {
            let rules = Rules { missed: if skip { MissedSlots::Skip } else { MissedSlots::RunOnce }, jitter: Duration::from_secs(jitter_secs), ..RULES };
            let since = at("00:30:00");
            let (mut now, mut last) = (since, None::<PastSlot>);
            let (mut accounted, mut seen) = (0u32, std::collections::BTreeSet::new());
            for seconds in moves {
                now += TimeDelta::seconds(seconds);
                loop {
                    let situation = Situation { now, since, last, free_since: since };
                    let (slot, count, state) = match next_step(&plan(), &HOURLY, &rules, &situation) {
                        Step::Run { slot, covers, .. } => (slot, covers + 1, State::Succeeded),
                        Step::Missed { slot, count, .. } => (slot, count, State::Missed),
                        Step::Wait(until) => {
                            prop_assert!(until.unwrap() > now);
                            break;
                        }
                    };
                    prop_assert!(slot <= now && seen.insert(slot), "slot {slot} twice");
                    accounted += count;
                    last = Some(PastSlot { run: RunId::generate(slot), slot, state, attempt: 1, ended: Some(now), may_pass: false, cancelled: false });
                }
            }
            let passed = last.map_or(0, |last| (last.slot - since).num_hours() + 1);
            prop_assert_eq!(i64::from(accounted), passed);
            let open = (now - last.map_or(since, |last| last.slot)).num_seconds();
            // What is open is at most what jitter holds back: earlier slots wait for the one that is about to start.
            prop_assert!(open < 3600 + i64::try_from(jitter_secs).unwrap() || i64::try_from(jitter_secs).unwrap() > 0, "{open}");
        }
    }
}

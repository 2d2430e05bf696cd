//! A daemon without a daemon: the agenda of a set of plans, a journal in memory and runs that take simulated time, under a clock that jumps
//! from event to event. Counts what the scheduler promises: each slot once, none left out.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use lifeboat::daemon::agenda::Agenda;
use lifeboat::daemon::job::Job;
use lifeboat::daemon::journal::{Followed, ScheduleKey, State};
use lifeboat::daemon::scheduler::PastSlot;
use lifeboat::id::{Name, RunId};
use lifeboat::plan::Plans;

/// What the simulated journal keeps of a schedule.
struct Kept {
    since: DateTime<Utc>,
    newest: Option<PastSlot>,
}

/// What happened.
#[derive(Debug, Default)]
pub struct Counts {
    pub runs: u64,
    pub retries: u64,
    /// Slots that a later run stood for.
    pub covered: u64,
    /// Slots recorded as missed.
    pub missed: u64,
    /// Slots that were started though they were done: must stay 0.
    pub doubled: u64,
    /// Slots that were passed over: must stay 0.
    pub lost: u64,
    pub most_at_once: usize,
    pub questions: u64,
}

pub struct Simulation {
    agenda: Agenda,
    plans: Arc<Plans>,
    journal: HashMap<(Name, Job), Kept>,
    going_on: BTreeMap<RunId, (Name, Job, DateTime<Utc>, u32)>,
    ends: BinaryHeap<Reverse<(DateTime<Utc>, RunId)>>,
    /// Until when the store is away: runs of that time fail as `unavailable`.
    pub away_until: Option<DateTime<Utc>>,
    pub takes: fn(Job) -> TimeDelta,
    pub counts: Counts,
}

impl Simulation {
    pub fn new(plans: Plans, now: DateTime<Utc>) -> Self {
        let plans = Arc::new(plans);
        Self {
            agenda: Agenda::new(Arc::clone(&plans), now),
            plans,
            journal: HashMap::new(),
            going_on: BTreeMap::new(),
            ends: BinaryHeap::new(),
            away_until: None,
            takes: |_| TimeDelta::seconds(1),
            counts: Counts::default(),
        }
    }

    fn follow(&mut self, key: &ScheduleKey, now: DateTime<Utc>) -> Followed {
        let kept = self.journal.entry((key.plan.clone(), key.job)).or_insert(Kept { since: now, newest: None });
        Followed { since: kept.since, last: kept.newest.filter(|last| last.slot <= now) }
    }

    /// One turn of the loop at this moment.
    pub fn turn(&mut self, now: DateTime<Utc>) {
        while let Some(Reverse((at, id))) = self.ends.peek().copied() {
            if at > now {
                break;
            }
            self.ends.pop();
            self.end(id, at);
        }
        self.agenda.advance(now);
        self.learn(now);
        for passed in self.agenda.take_passed() {
            self.counts.missed += u64::from(passed.count);
            self.account(&passed.plan, passed.job, passed.first, passed.slot, passed.count);
            let row = PastSlot::new(RunId::generate(now), passed.slot, State::Missed, 0, Some(now), None);
            if let Some(kept) = self.journal.get_mut(&(passed.plan.clone(), passed.job)) {
                kept.newest = Some(row);
            }
            self.agenda.recorded(&passed, true);
        }
        self.learn(now);
        while let Some(start) = self.agenda.next_start() {
            let (plan, job, slot) = (start.run.plan.clone(), start.run.job, start.run.scheduled.expect("nobody asks here"));
            let first = start.covers.map_or(slot, |(_, first)| first);
            let covers = start.covers.map_or(0, |(covers, _)| covers);
            let newest = self.journal.get(&(plan.clone(), job)).and_then(|kept| kept.newest);
            let attempt = match newest {
                Some(newest) if newest.slot == slot && newest.state != State::Succeeded => {
                    self.counts.retries += 1;
                    newest.attempt + 1
                }
                _ => {
                    self.counts.covered += u64::from(covers);
                    self.account(&plan, job, first, slot, covers + 1);
                    1
                }
            };
            let row = PastSlot::new(start.run.id, slot, State::Running, attempt, None, None);
            self.journal.get_mut(&(plan.clone(), job)).expect("it was asked about").newest = Some(row);
            self.counts.runs += 1;
            self.going_on.insert(start.run.id, (plan, job, slot, attempt));
            self.counts.most_at_once = self.counts.most_at_once.max(self.going_on.len());
            self.ends.push(Reverse((now + (self.takes)(job), start.run.id)));
        }
    }

    fn learn(&mut self, now: DateTime<Utc>) {
        let (entries, keys) = self.agenda.to_ask();
        for (entry, key) in entries.into_iter().zip(keys) {
            self.counts.questions += 1;
            let known = self.follow(&key, now);
            self.agenda.learn(entry, known);
        }
    }

    /// Looks that these slots are the next ones of their schedule.
    fn account(&mut self, plan: &Name, job: Job, first: DateTime<Utc>, slot: DateTime<Utc>, count: u32) {
        let kept = &self.journal[&(plan.clone(), job)];
        let anchor = kept.newest.map_or(kept.since, |newest| newest.slot.max(kept.since));
        if slot <= anchor {
            self.counts.doubled += 1;
            return;
        }
        let plan = &self.plans.plans[plan];
        let schedule = job.schedule(plan).expect("it runs by it");
        let next = schedule.next_after(anchor);
        let last = if count <= 1 { next } else { schedule.upcoming(anchor, usize::try_from(count).expect("few")).last().copied() };
        if next != Some(first) || last != Some(slot) {
            self.counts.lost += 1;
        }
    }

    fn end(&mut self, id: RunId, at: DateTime<Utc>) {
        let (plan, job, slot, attempt) = self.going_on.remove(&id).expect("it goes on");
        let away = self.away_until.is_some_and(|until| at < until);
        let (state, kind) = if away { (State::Failed, Some("unavailable")) } else { (State::Succeeded, None) };
        let row = PastSlot::new(id, slot, state, attempt, Some(at), kind);
        self.journal.get_mut(&(plan, job)).expect("it was asked about").newest = Some(row);
        self.agenda.advance(at);
        self.agenda.ended(id);
    }

    /// Turns from event to event until `until`.
    pub fn run_until(&mut self, mut now: DateTime<Utc>, until: DateTime<Utc>) {
        while now <= until {
            self.turn(now);
            let ends = self.ends.peek().map(|Reverse((at, _))| *at);
            let Some(next) = ends.into_iter().chain(self.agenda.wake()).min() else { return };
            now = next.max(now + TimeDelta::milliseconds(1));
        }
    }

    /// Schedules whose newest slot did not end well.
    pub fn failed(&self) -> Vec<&(Name, Job)> {
        self.journal.iter().filter(|(_, kept)| kept.newest.is_some_and(|row| row.state != State::Succeeded)).map(|(key, _)| key).collect()
    }

    pub fn going_on(&self) -> usize {
        self.going_on.len()
    }
}

/// `count` plans of one source each on `repositories` repositories: a daily backup, a weekly drill and a monthly verification, at minutes
/// that differ, with jitter.
pub fn plans(count: usize, repositories: usize, max_runs: u16) -> String {
    use std::fmt::Write as _;
    let mut text = format!("version = 1\n[serve]\nmax_runs = {max_runs}\n");
    for number in 0..repositories {
        let _ = writeln!(text, "[repository.r{number}]\nurl = \"file:///nowhere/{number}\"\npassphrase = {{ env = \"NONE\" }}");
    }
    let zones = ["UTC", "Asia/Shanghai", "Europe/Berlin", "America/New_York"];
    for number in 0..count {
        let (minute, hour, zone) = (number % 60, number / 60 % 24, zones[number % zones.len()]);
        let repository = number % repositories;
        let _ = writeln!(
            text,
            "[source.s{number}]\nkind = \"files\"\npath = \"/nowhere/{number}\"\n[plan.p{number}]\nsource = \"s{number}\"\nrepository = \"r{repository}\"\n\
             schedule = \"{minute} {hour} * * *\"\ntimezone = \"{zone}\"\njitter = \"5m\"\n[plan.p{number}.drill]\nschedule = \"{minute} {hour} * * sun\"\n\
             [plan.p{number}.verify]\nschedule = \"{minute} {hour} 1 * *\""
        );
    }
    text
}

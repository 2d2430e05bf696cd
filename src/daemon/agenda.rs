//! What is to run when: all schedules, requests and runs of one daemon, in memory. Pure: time is a parameter, and the journal is asked and
//! written by the serve loop, which hands over what it said.
//!
//! Each schedule waits in a heap for its next moment. When that comes, [`scheduler::next_step`] says what is due; it is then ready, and starts
//! when its place is free ([`places`](crate::daemon::places)). After its run the journal is asked once how the slot ended. So the cost is per slot, never per
//! plan and turn of the loop.
//!
//! On a journal that machines share, every node follows every schedule of the plans that it may run, asks the journal whenever one is due, and lets the
//! nodes that the slot would rather have go first ([`Membership::turn`]). Backups of plans that it may not run are followed only where others
//! come after them.
//!
//! Invariants: a schedule is in one place at a time (asked about, waiting, ready, running); what starts was judged at the moment it starts;
//! the journal has the last word on each slot, so that a slot that another process took is learnt and not repeated.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};

use crate::daemon::job::{self, Job};
use crate::daemon::journal::{Followed, NewRun, ScheduleKey, State, Trigger};
use crate::daemon::nodes::Membership;
use crate::daemon::scheduler::{self, PastSlot, Rules, Situation, Step};
use crate::id::{Name, RunId};
use crate::plan::{Plan, Plans, Schedule};

/// A request whose run could not be recorded waits for so long.
const REQUEST_AGAIN: TimeDelta = TimeDelta::seconds(30);

/// A schedule whose run could not be recorded, or whose history could not be read, is looked at again after this; doubled up to the longest.
const TRY_AGAIN: TimeDelta = TimeDelta::seconds(10);
const TRY_AGAIN_LONGEST: TimeDelta = TimeDelta::minutes(1);

/// A slot that another process is at work on is asked about this often: that process may die.
const LOOK_AGAIN: TimeDelta = TimeDelta::minutes(1);

/// A clock that went back by more than this makes the journal be asked anew.
const CLOCK_SLACK: TimeDelta = TimeDelta::seconds(1);

/// A schedule of the plans in force.
#[expect(clippy::struct_excessive_bools, reason = "facts that do not depend on each other")]
pub struct Entry {
    pub(super) plan: Arc<Plan>,
    pub(super) job: Job,
    rules: Rules,
    /// Whether this node may run it.
    here: bool,
    known: Option<Followed>,
    pub(super) stand: Stand,
    /// The moment in the heap; others of this entry there are stale.
    at: DateTime<Utc>,
    /// Its slot was due while the daemon was there: what it waits for since is no absence.
    excused: bool,
    /// Its slot was late when it was first looked at.
    late: bool,
    /// How often its slot gave way: those attempts do not count.
    yields: u32,
    /// How often in a row its run was not recorded.
    stumbles: u32,
    /// The slot that was started last.
    started: Option<DateTime<Utc>>,
    /// Its first slot without a row, while it waits or is ready.
    pub(super) next_slot: Option<DateTime<Utc>>,
    /// Its last slot is to be tried again.
    pub(super) retries: bool,
    /// Another process was at work on its last slot when the journal was asked.
    pub(super) elsewhere: bool,
    /// The slot that other nodes may take first, and since when it has been waiting for them.
    turn: Option<(DateTime<Utc>, DateTime<Utc>)>,
}

/// Where a schedule stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stand {
    /// The journal is to be asked.
    Ask,
    Waiting,
    Ready,
    Running,
}

impl Entry {
    fn schedule(&self) -> Option<&Schedule> {
        self.job.schedule(&self.plan)
    }

    /// The slot that it is ready for.
    pub(super) fn slot(&self) -> DateTime<Utc> {
        self.at
    }

    fn key(&self) -> ScheduleKey {
        let expression = self.schedule().map(job::expression).unwrap_or_default();
        ScheduleKey { plan: self.plan.name.clone(), job: self.job, expression }
    }

    fn step(&self, now: DateTime<Utc>, excused: bool) -> Option<Step> {
        let known = self.known?;
        let free_since = if excused { now } else { DateTime::<Utc>::MIN_UTC };
        let last = known.last.map(|last| PastSlot { attempt: last.attempt.saturating_sub(self.yields), ..last });
        let situation = Situation { now, since: known.since, last, free_since };
        Some(scheduler::next_step(&self.plan.name, self.schedule()?, &self.rules, &situation))
    }
}

/// A run that goes on.
pub(super) struct Active {
    pub plan: Arc<Plan>,
    pub job: Job,
    pub id: RunId,
    /// Asked to give way.
    pub yielding: bool,
    pub scheduled: bool,
}

/// A restore that goes on, in whatever process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restore {
    pub run: RunId,
    pub plan: Name,
    /// Whether it is on this host.
    pub here: bool,
}

/// Slots that passed and are not run: to be written to the journal, then told by [`Agenda::recorded`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passed {
    pub entry: usize,
    pub plan: Name,
    pub job: Job,
    pub slot: DateTime<Utc>,
    pub count: u32,
    pub first: DateTime<Utc>,
}

/// A run to start now.
pub struct Start {
    pub plan: Arc<Plan>,
    pub run: NewRun,
    /// Slots before its own that it stands for, and the first of them.
    pub covers: Option<(u32, DateTime<Utc>)>,
}

/// The order in which what is ready starts: by job, what somebody asked for first, then by how long it has been due.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    order: usize,
    scheduled: bool,
    due: DateTime<Utc>,
    pub what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum What {
    Request(RunId),
    Slot(usize),
}

/// See the module.
pub struct Agenda {
    pub(super) plans: Arc<Plans>,
    membership: Membership,
    pub(super) entries: Vec<Entry>,
    pub(super) by_key: HashMap<(Name, Job), usize>,
    due: BinaryHeap<Reverse<(DateTime<Utc>, usize)>>,
    ask: BTreeSet<usize>,
    passed: Vec<Passed>,
    pub(super) ready: BTreeSet<Rank>,
    pub(super) requests: BTreeMap<RunId, (Arc<Plan>, NewRun)>,
    pub(super) running: BTreeMap<RunId, Active>,
    pub(super) restores: Vec<Restore>,
    /// Plans whose killed backup cannot be settled.
    pub(super) unsettled: BTreeSet<Name>,
    /// Requests do not start before: the last one could not be recorded.
    pub(super) requests_from: DateTime<Utc>,
    now: DateTime<Utc>,
    /// The latest moment that the clock ever said.
    latest: DateTime<Utc>,
}

impl Agenda {
    /// All schedules of `plans`; of each the journal is to be asked first ([`Agenda::to_ask`]).
    #[must_use]
    pub fn new(plans: Arc<Plans>, now: DateTime<Utc>) -> Self {
        Self::of_node(plans, Membership::new("", &[], false), now)
    }

    /// The same for one of several nodes.
    #[must_use]
    pub fn of_node(plans: Arc<Plans>, membership: Membership, now: DateTime<Utc>) -> Self {
        let mut agenda = Self {
            plans: Arc::clone(&plans),
            membership,
            entries: Vec::new(),
            by_key: HashMap::new(),
            due: BinaryHeap::new(),
            ask: BTreeSet::new(),
            passed: Vec::new(),
            ready: BTreeSet::new(),
            requests: BTreeMap::new(),
            running: BTreeMap::new(),
            restores: Vec::new(),
            unsettled: BTreeSet::new(),
            requests_from: now,
            now,
            latest: now,
        };
        agenda.follow(plans);
        agenda
    }

    /// Puts another set of plans in force. Runs that go on are not touched; requests of plans that are gone are dropped and returned.
    pub fn reload(&mut self, plans: Arc<Plans>) -> Vec<NewRun> {
        let gone: Vec<RunId> =
            self.requests.iter().filter(|(_, (plan, _))| !plans.plans.contains_key(&plan.name)).map(|(id, _)| *id).collect();
        let gone = gone.into_iter().filter_map(|id| self.withdraw(id)).collect();
        for (plan, _) in self.requests.values_mut() {
            if let Some(new) = plans.plans.get(&plan.name) {
                *plan = Arc::clone(new);
            }
        }
        self.ready.retain(|rank| matches!(rank.what, What::Request(_)));
        self.follow(plans);
        gone
    }

    fn follow(&mut self, plans: Arc<Plans>) {
        let before: HashMap<(Name, Job), Entry> =
            std::mem::take(&mut self.entries).into_iter().map(|entry| ((entry.plan.name.clone(), entry.job), entry)).collect();
        self.by_key.clear();
        self.due.clear();
        self.ask.clear();
        self.passed.clear();
        let before_ours: BTreeSet<&Name> =
            plans.plans.values().filter(|plan| self.membership.may_run(plan)).flat_map(|plan| &plan.after).collect();
        for plan in plans.plans.values() {
            let here = self.membership.may_run(plan);
            let is_followed = |job: Job| here || (self.membership.is_shared() && job == Job::Backup && before_ours.contains(&plan.name));
            for (job, _) in job::schedules(plan).into_iter().filter(|(job, _)| is_followed(*job)) {
                let index = self.entries.len();
                let old = before.get(&(plan.name.clone(), job));
                let runs = self.running.values().any(|run| run.scheduled && run.plan.name == plan.name && run.job == job);
                self.by_key.insert((plan.name.clone(), job), index);
                self.entries.push(Entry {
                    plan: Arc::clone(plan),
                    job,
                    rules: job::rules(plan),
                    here,
                    known: None,
                    stand: if runs { Stand::Running } else { Stand::Ask },
                    at: self.now,
                    excused: old.is_some_and(|old| old.excused),
                    late: old.is_some_and(|old| old.late),
                    yields: old.map_or(0, |old| old.yields),
                    stumbles: 0,
                    started: old.and_then(|old| old.started).filter(|_| runs),
                    next_slot: None,
                    retries: false,
                    elsewhere: false,
                    turn: old.and_then(|old| old.turn),
                });
                if !runs {
                    self.ask.insert(index);
                }
            }
        }
        self.plans = plans;
    }

    /// How many schedules there are that this node may run.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.iter().filter(|entry| entry.here).count()
    }

    /// Whether there is no such schedule.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Moves on to `now`: what is due is judged. A clock that went back makes the journal be asked about everything that does not run.
    pub fn advance(&mut self, now: DateTime<Utc>) {
        if now + CLOCK_SLACK < self.now {
            self.ask_all();
        }
        // A clock that was set back comes by slots that may have been run: the journal is asked at the moment of each.
        let again = now < self.latest;
        self.now = now;
        self.latest = self.latest.max(now);
        while let Some(Reverse((at, index))) = self.due.peek().copied() {
            if at > now {
                break;
            }
            self.due.pop();
            let Some(entry) = self.entries.get(index) else { continue };
            if entry.stand != Stand::Waiting || entry.at != at {
                continue;
            }
            // One that waited because the journal was not to be had, or had a slot that another process works on or may have taken.
            let elsewhere = again || self.membership.is_shared() || entry.elsewhere || entry.known.is_none();
            if elsewhere { self.ask(index) } else { self.judge(index) }
        }
    }

    /// Has the journal be asked about every schedule that has no run of this daemon: other processes may have done something.
    pub fn ask_all(&mut self) {
        self.due.clear();
        self.passed.clear();
        self.ready.retain(|rank| matches!(rank.what, What::Request(_)));
        for index in 0..self.entries.len() {
            if self.entries[index].stand != Stand::Running {
                self.ask(index);
            }
        }
    }

    /// Has the journal be asked about the schedules of a plan that have no run of this daemon.
    pub fn look(&mut self, plan: &Name) {
        for index in 0..self.entries.len() {
            if self.entries[index].plan.name == *plan && self.entries[index].stand != Stand::Running {
                self.ready.retain(|rank| rank.what != What::Slot(index));
                self.ask(index);
            }
        }
    }

    fn ask(&mut self, index: usize) {
        self.entries[index].stand = Stand::Ask;
        self.ask.insert(index);
    }

    /// The schedules that the journal is to be asked about, at the moment of the last [`Agenda::advance`]; hand the answer to [`Agenda::learn`].
    #[must_use]
    pub fn to_ask(&self) -> (Vec<usize>, Vec<ScheduleKey>) {
        self.ask.iter().map(|index| (*index, self.entries[*index].key())).unzip()
    }

    /// What the journal knows of a schedule.
    pub fn learn(&mut self, index: usize, known: Followed) {
        if !self.ask.remove(&index) {
            return;
        }
        let entry = &mut self.entries[index];
        entry.known = Some(known);
        let recorded = known.last.map(|last| last.slot);
        if let Some(started) = entry.started.take() {
            if recorded.is_none_or(|recorded| recorded < started) {
                // Somebody is in the way, or the journal was not to be had.
                entry.stumbles += 1;
                return self.postpone(index);
            }
            entry.stumbles = 0;
        }
        self.judge(index);
    }

    /// The journal could not be asked: later.
    pub fn not_learnt(&mut self) {
        for index in std::mem::take(&mut self.ask) {
            self.entries[index].known = None;
            self.postpone(index);
        }
    }

    fn postpone(&mut self, index: usize) {
        let factor = 1i32.checked_shl(self.entries[index].stumbles.saturating_sub(1)).unwrap_or(i32::MAX).clamp(1, 60);
        self.entries[index].known = None;
        self.wait(index, Some(self.now + (TRY_AGAIN * factor).min(TRY_AGAIN_LONGEST)));
    }

    fn wait(&mut self, index: usize, until: Option<DateTime<Utc>>) {
        let entry = &mut self.entries[index];
        entry.stand = Stand::Waiting;
        if let Some(until) = until {
            entry.at = until;
            self.due.push(Reverse((until, index)));
        }
    }

    /// Finds what is to be done with a schedule now.
    fn judge(&mut self, index: usize) {
        let now = self.now;
        let entry = &mut self.entries[index];
        entry.next_slot = entry.known.and_then(|known| {
            let anchor = known.last.map_or(known.since, |last| last.slot.max(known.since));
            entry.job.schedule(&entry.plan)?.next_after(anchor)
        });
        entry.retries = false;
        entry.elsewhere = entry.known.and_then(|known| known.last).is_some_and(|last| last.state == State::Running);
        let Some(step) = entry.step(now, entry.excused) else { return self.wait(index, None) };
        match step {
            Step::Wait(until) => {
                entry.excused = false;
                entry.late = false;
                entry.retries = until.is_some_and(|until| entry.next_slot.is_none_or(|next| until < next));
                let until = if entry.elsewhere { until.into_iter().chain([now + LOOK_AGAIN]).min() } else { until };
                self.wait(index, until);
            }
            // Another node does it; where none can, nothing waits for it.
            _ if !entry.here => {
                if !self.membership.another_may_run(&entry.plan) {
                    entry.next_slot = None;
                }
                self.wait(index, Some(now + LOOK_AGAIN));
            }
            Step::Missed { slot, count, first } => {
                let (plan, job) = (entry.plan.name.clone(), entry.job);
                self.wait(index, None);
                self.passed.push(Passed { entry: index, plan, job, slot, count, first });
            }
            Step::Run { slot, trigger, .. } => {
                if !entry.excused {
                    entry.late = trigger == Trigger::CatchUp;
                }
                entry.excused = true;
                entry.retries = trigger == Trigger::Retry;
                let free = entry.plan.blackout.free_at(entry.job.word(), now);
                if free > now {
                    return self.wait(index, Some(free));
                }
                let since = entry.turn.filter(|(of, since)| *of == slot && *since <= now).map_or(now, |(_, since)| since);
                entry.turn = Some((slot, since));
                let turn = since + self.membership.turn(&entry.plan, slot);
                if turn > now {
                    return self.wait(index, Some(turn));
                }
                entry.stand = Stand::Ready;
                entry.at = slot;
                let rank = Rank { order: order(entry.job), scheduled: true, due: slot, what: What::Slot(index) };
                self.ready.insert(rank);
            }
        }
    }

    /// Slots that passed and are to be recorded.
    pub fn take_passed(&mut self) -> Vec<Passed> {
        std::mem::take(&mut self.passed)
    }

    /// Whether the journal has them (`Ok`), or could not be written.
    pub fn recorded(&mut self, passed: &Passed, written: bool) {
        if written { self.ask(passed.entry) } else { self.postpone(passed.entry) }
    }

    /// The next run that has a place now.
    pub fn next_start(&mut self) -> Option<Start> {
        loop {
            let rank = self.admissible()?;
            self.ready.remove(&rank);
            let start = match rank.what {
                What::Request(id) => {
                    let (plan, run) = self.requests.remove(&id)?;
                    Some(Start { plan, run, covers: None })
                }
                What::Slot(index) => self.start_of(index),
            };
            if let Some(start) = start {
                let active = Active {
                    plan: Arc::clone(&start.plan),
                    job: start.run.job,
                    id: start.run.id,
                    yielding: false,
                    scheduled: start.run.scheduled.is_some(),
                };
                self.running.insert(start.run.id, active);
                return Some(start);
            }
        }
    }

    /// Judged anew: while it was ready, a later slot may have come.
    fn start_of(&mut self, index: usize) -> Option<Start> {
        let now = self.now;
        let entry = &mut self.entries[index];
        let Some(Step::Run { slot, trigger, covers, first }) = entry.step(now, true) else {
            self.judge(index);
            return None;
        };
        let trigger = if entry.late && trigger == Trigger::Schedule { Trigger::CatchUp } else { trigger };
        let row = entry.known.and_then(|known| known.last).filter(|last| last.slot == slot);
        if row.is_none() {
            entry.yields = 0;
        }
        entry.stand = Stand::Running;
        entry.started = Some(slot);
        let id = row.map_or_else(|| RunId::generate(now), |row| row.run);
        let run = NewRun::of_slot(&entry.plan.name, entry.job, trigger, slot, id);
        Some(Start { plan: Arc::clone(&entry.plan), run, covers: (covers > 0).then_some((covers, first)) })
    }

    /// A run that was started has ended, or could not begin.
    pub fn ended(&mut self, id: RunId) {
        let Some(run) = self.running.remove(&id) else { return };
        let Some(index) = self.by_key.get(&(run.plan.name.clone(), run.job)).copied() else { return };
        if run.scheduled && self.entries[index].stand == Stand::Running {
            let entry = &mut self.entries[index];
            entry.yields += u32::from(run.yielding);
            // What comes now waited for this run.
            entry.excused = true;
            self.ask(index);
        }
    }

    /// Puts a request in line again that could not be recorded when its turn came. All requests wait a while.
    pub fn request_again(&mut self, plan: &Arc<Plan>, run: NewRun) {
        self.requests_from = self.now + REQUEST_AGAIN;
        self.request(plan, run);
    }

    /// Puts a request in line; what it waits for, where it does not start at the next [`Agenda::next_start`]. Whoever calls has looked that no
    /// such run goes on or waits ([`Agenda::same`]).
    pub fn request(&mut self, plan: &Arc<Plan>, run: NewRun) -> Option<String> {
        let waits_for = self.blocked(plan, run.job, None);
        self.ready.insert(Rank { order: order(run.job), scheduled: false, due: self.now, what: What::Request(run.id) });
        self.requests.insert(run.id, (Arc::clone(plan), run));
        waits_for
    }

    /// A run of the same job of the plan that goes on here or was asked for, by its id.
    #[must_use]
    pub fn same(&self, plan: &Name, job: Job) -> Option<RunId> {
        let runs = self.running.values().find(|run| run.plan.name == *plan && run.job == job).map(|run| run.id);
        runs.or_else(|| self.requests.iter().find(|(_, (_, run))| run.plan == *plan && run.job == job).map(|(id, _)| *id))
    }

    /// Takes a request back that has not started; `None`: there is none.
    pub fn withdraw(&mut self, id: RunId) -> Option<NewRun> {
        let (_, run) = self.requests.remove(&id)?;
        self.ready.retain(|rank| rank.what != What::Request(id));
        Some(run)
    }

    /// Requests that wait, oldest first.
    #[must_use]
    pub fn waiting_requests(&self) -> Vec<&NewRun> {
        self.requests.values().map(|(_, run)| run).collect()
    }

    /// The moment of the last [`Agenda::advance`].
    pub(super) fn now(&self) -> DateTime<Utc> {
        self.now
    }

    /// The nearest moment at which something is due; `None`: never.
    #[must_use]
    pub fn wake(&self) -> Option<DateTime<Utc>> {
        if !self.ask.is_empty() || !self.passed.is_empty() {
            return Some(self.now);
        }
        let due = self.due.peek().map(|Reverse((at, _))| *at);
        let again = Some(self.requests_from).filter(|at| *at > self.now && !self.requests.is_empty());
        due.into_iter().chain(again).min()
    }
}

fn order(job: Job) -> usize {
    Job::ALL.iter().position(|known| *known == job).unwrap_or(Job::ALL.len())
}

#[cfg(test)]
mod tests;

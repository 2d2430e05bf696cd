//! Which of what is ready may start beside what runs, and who gives way. Pure.
//!
//! The rules, in the order in which they are asked:
//! - one run of a job of a plan at a time, and one of those that give way (drills, verifications, …) per plan; these start only when the
//!   plan's own backup neither runs nor is due;
//! - two plans with the same source do not back it up at once;
//! - a backup comes after those of the plans it names: while one of them runs, or has a slot of the same time or before that is not done, it waits;
//! - nothing that gives way starts while a restore goes on, on this host or of the same repository;
//! - one run at a time in a repository with `single_writer`, be it of a plan that has it or of a copy to it;
//! - at most `max_runs` runs, of the daemon and of the repository. Where that is more than one, those that give way leave one free.
//!
//! Several nodes on one journal each keep these rules by what they run themselves. What holds for all of them is the order of `after` and that restores go
//! first, by what the journal says, and one backup of a source at a time ([`alone_with_sources`](crate::daemon::nodes)).
//!
//! Asked to give way is every run that does so while a restore goes on as above; and the one that started last where a backup is due and
//! finds all places taken and no backup among them. So a drill never starves a backup: it leaves a place free, or gives its own up.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};

use crate::daemon::agenda::{Active, Agenda, Rank, Stand, What};
use crate::daemon::job::Job;
use crate::daemon::journal::NewRun;
use crate::id::{Name, RunId};
use crate::plan::{Plan, Repository};

/// What is said of one that could not be recorded when its turn came.
const NOT_RECORDED: &str = "it could not be recorded just now, and is tried again within half a minute: see the daemon's log";

/// What is said of one that nothing holds back, but its turn has not come.
pub(super) const OTHERS_FIRST: &str = "others are first in line";

/// Repositories that a run of this job writes to.
fn repositories(plan: &Plan, job: Job) -> impl Iterator<Item = &Repository> {
    let copies = plan.copies.iter().filter(move |_| matches!(job, Job::Copy | Job::Prune)).map(|copy| &*copy.to);
    std::iter::once(&*plan.repository).chain(copies)
}

fn is_in(run: &Active, repository: &Repository) -> bool {
    repositories(&run.plan, run.job).any(|other| other.name == repository.name)
}

impl Agenda {
    /// The first in line that nothing holds back.
    pub(super) fn admissible(&self) -> Option<Rank> {
        if self.running.len() >= self.max_runs() {
            return None;
        }
        self.ready.iter().find(|rank| self.why_not(rank.what).is_none()).cloned()
    }

    fn why_not(&self, what: What) -> Option<String> {
        match what {
            What::Request(id) => {
                let (plan, run) = self.requests.get(&id)?;
                if self.now() < self.requests_from {
                    return Some(NOT_RECORDED.to_owned());
                }
                self.blocked(plan, run.job, None)
            }
            What::Slot(index) => {
                let entry = &self.entries[index];
                self.blocked(&entry.plan, entry.job, Some(entry.slot()))
            }
        }
    }

    /// A request that waits, and what holds it back.
    pub fn waiting_request(&self, id: RunId) -> Option<(&NewRun, String)> {
        let (_, run) = self.requests.get(&id)?;
        Some((run, self.why_not(What::Request(id)).unwrap_or_else(|| OTHERS_FIRST.to_owned())))
    }

    /// What holds a run of this job back now. `slot`: of the plan's schedule; `None`: somebody asked for it.
    pub(super) fn blocked(&self, plan: &Plan, job: Job, slot: Option<DateTime<Utc>>) -> Option<String> {
        self.held_back(plan, job, slot).or_else(|| self.full(plan, job))
    }

    /// The same, but for want of a place.
    fn held_back(&self, plan: &Plan, job: Job, slot: Option<DateTime<Utc>>) -> Option<String> {
        let goes_on = |run: &Active| format!("run {} ({} of plan {}) goes on", run.id, run.job.word(), run.plan.name);
        let own = |run: &&Active| run.plan.name == plan.name && (run.job == job || (job.gives_way() && run.job != Job::Restore));
        if let Some(run) = self.running.values().find(own) {
            return Some(goes_on(run));
        }
        if job == Job::Backup {
            let same = |run: &&Active| {
                run.job == Job::Backup && run.plan.sources.iter().any(|theirs| plan.sources.iter().any(|ours| ours.name == theirs.name))
            };
            if let Some(run) = self.running.values().find(same) {
                return Some(format!("{}, of the same source", goes_on(run)));
            }
            let before = slot.and_then(|until| plan.after.iter().find(|name| self.is_before(name, until)));
            if let Some(name) = before {
                return Some(format!("the backup of plan {name} goes first"));
            }
        }
        if job.gives_way() {
            if slot.is_some() && self.is_due(&plan.name, Job::Backup) {
                return Some("the plan's backup is due and goes first".to_owned());
            }
            if let Some(restore) = self.restore_beside(plan) {
                return Some(format!("a restore goes on: {restore}"));
            }
        }
        None
    }

    /// Whether the backup of a plan that others come after is not done: it runs, or has a slot up to `until`, or its last one is tried again.
    fn is_before(&self, name: &Name, until: DateTime<Utc>) -> bool {
        let runs = self.running.values().any(|run| run.plan.name == *name && run.job == Job::Backup);
        if self.unsettled.contains(name) {
            return runs;
        }
        let entry = self.by_key.get(&(name.clone(), Job::Backup)).map(|index| &self.entries[*index]);
        runs || entry.is_some_and(|entry| {
            entry.stand != Stand::Waiting || entry.retries || entry.elsewhere || entry.next_slot.is_some_and(|slot| slot <= until)
        })
    }

    fn is_due(&self, plan: &Name, job: Job) -> bool {
        let entry = self.by_key.get(&(plan.clone(), job)).map(|index| &self.entries[*index]);
        entry.is_some_and(|entry| matches!(entry.stand, Stand::Ready | Stand::Ask))
    }

    /// A restore on this host, or of the plan's repository.
    fn restore_beside(&self, plan: &Plan) -> Option<RunId> {
        let of_repository = |name: &Name| self.plans.plans.get(name).is_some_and(|other| other.repository.name == plan.repository.name);
        self.restores.iter().find(|restore| restore.here || of_repository(&restore.plan)).map(|restore| restore.run)
    }

    fn max_runs(&self) -> usize {
        usize::from(self.plans.serve.max_runs.get())
    }

    fn full(&self, plan: &Plan, job: Job) -> Option<String> {
        let full = |limit: usize, of: &dyn Fn(&&Active) -> bool| {
            let all = self.running.values().filter(of).count();
            let giving_way = self.running.values().filter(of).filter(|run| run.job.gives_way()).count();
            all >= limit || (job.gives_way() && giving_way >= (limit - 1).max(1))
        };
        if full(self.max_runs(), &|_| true) {
            return Some(format!("as many runs go on as may at once (max_runs = {})", self.max_runs()));
        }
        for repository in repositories(plan, job).filter(|repository| repository.single_writer) {
            if let Some(run) = self.running.values().find(|run| is_in(run, repository)) {
                return Some(format!(
                    "run {} ({} of plan {}) goes on in repository {}, in which there is one at a time (single_writer)",
                    run.id,
                    run.job.word(),
                    run.plan.name,
                    repository.name
                ));
            }
        }
        let limit = usize::from(plan.repository.max_runs?.get());
        let name = &plan.repository.name;
        full(limit, &|run| run.plan.repository.name == *name)
            .then(|| format!("as many runs go on as may at once on repository {name} (max_runs = {limit})"))
    }

    /// Which restores go on now, in whatever process.
    pub fn set_restores(&mut self, restores: Vec<crate::daemon::agenda::Restore>) {
        self.restores = restores;
    }

    /// Plans whose killed backup cannot be settled, as its repository does not answer: what comes after them starts, as after one that failed.
    pub fn set_unsettled(&mut self, plans: BTreeSet<Name>) {
        self.unsettled = plans;
    }

    /// Whether it matters to know of restores: something that gives way runs or is ready.
    #[must_use]
    pub fn minds_restores(&self) -> bool {
        let gives_way = |rank: &Rank| match rank.what {
            What::Request(id) => self.requests.get(&id).is_some_and(|(_, run)| run.job.gives_way()),
            What::Slot(index) => self.entries[index].job.gives_way(),
        };
        self.running.values().any(|run| run.job.gives_way()) || self.ready.iter().any(gives_way)
    }

    /// Runs that are to be asked to give way now, each once, and to what.
    pub fn yields(&mut self) -> Vec<(RunId, String)> {
        let mut asked = Vec::new();
        for run in self.running.values().filter(|run| run.job.gives_way() && !run.yielding) {
            if let Some(restore) = self.restore_beside(&run.plan) {
                asked.push((run.id, format!("a restore (run {restore})")));
            }
        }
        if asked.is_empty()
            && let Some(found) = self.yields_to_backup()
        {
            asked.push(found);
        }
        for (id, _) in &asked {
            if let Some(run) = self.running.get_mut(id) {
                run.yielding = true;
            }
        }
        asked
    }

    fn yields_to_backup(&self) -> Option<(RunId, String)> {
        for rank in &self.ready {
            let (plan, job, slot) = match rank.what {
                What::Request(id) => self.requests.get(&id).map(|(plan, run)| (plan, run.job, None))?,
                What::Slot(index) => (&self.entries[index].plan, self.entries[index].job, Some(self.entries[index].slot())),
            };
            if job != Job::Backup {
                return None;
            }
            if self.held_back(plan, job, slot).is_some() {
                continue;
            }
            let single = plan.repository.single_writer;
            let limit = if single { 1 } else { plan.repository.max_runs.map_or(usize::MAX, |limit| usize::from(limit.get())) };
            let on_repository =
                |run: &Active| if single { is_in(run, &plan.repository) } else { run.plan.repository.name == plan.repository.name };
            let scope: Vec<&Active> = if self.running.values().filter(|run| on_repository(run)).count() >= limit {
                self.running.values().filter(|run| on_repository(run)).collect()
            } else if self.running.len() >= self.max_runs() {
                self.running.values().collect()
            } else {
                continue;
            };
            // One that was asked already will make room.
            if scope.iter().all(|run| run.job.gives_way() && !run.yielding) {
                return scope.last().map(|run| (run.id, format!("the backup of plan {}", plan.name)));
            }
        }
        None
    }
}

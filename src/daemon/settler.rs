//! Settles what killed processes left ([`runner::settle`]) beside everything else. To ask a repository whether a run committed may take minutes, or for
//! ever, and a thread that waits for a store cannot be ended. So each job of a plan has a thread of its own for that, one at a time: a store that hangs
//! holds up the runs that commit to it and nothing else, and these wait with a limit. The journal's claims see to it that each run is settled once,
//! whatever other processes do.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::daemon::journal::{Job, Journal, Run};
use crate::daemon::runner;
use crate::error::{Error, Kind, Result};
use crate::event::Cancel;
use crate::id::{Name, RunId};
use crate::ops::resolve::Surroundings;
use crate::plan::Plans;

/// A run of a daemon waits so long for what is in its way; then its place is free for others, and it is tried again.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What could not be settled is tried again after this; doubled up to the longest.
const TRY_AGAIN: Duration = Duration::from_secs(15);
const TRY_AGAIN_LONGEST: Duration = Duration::from_mins(5);

/// How soon a run that waits learns that it should stop.
const STEP: Duration = Duration::from_millis(100);

/// What is settled at a time: the runs of one job of a plan.
type Key = (Name, Job);

/// Of one process; clones are the same.
#[derive(Clone)]
pub struct Settler(Arc<Shared>);

struct Shared {
    journal: Journal,
    surroundings: Surroundings,
    plans: Box<dyn Fn() -> Result<Arc<Plans>> + Send + Sync>,
    told: Box<dyn Fn(&Name) + Send + Sync>,
    stands: Mutex<BTreeMap<Key, Stand>>,
    attempts: AtomicU64,
    changed: Condvar,
}

#[derive(Debug, Clone, Copy)]
enum Stand {
    /// A thread is at it. `number`: of the attempt. `of`: the run, and which attempt at its slot, that is in the way.
    Going { first: Instant, since: Instant, number: u64, of: Option<(RunId, u32)> },
    /// It came to nothing: the repository could not be asked. `pause`: before the next one. `first`: since when it is tried.
    Failed { first: Instant, at: Instant, pause: Duration },
}

/// Says how it ended, also by a panic.
struct Attempt {
    settler: Settler,
    key: Key,
    number: u64,
    first: Instant,
    /// Before the next one, should this come to nothing.
    pause: Duration,
    done: bool,
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let mut stands = self.settler.stands();
        if !matches!(stands.get(&self.key), Some(Stand::Going { number, .. }) if *number == self.number) {
            // Somebody else has settled it meanwhile, and nobody waits for this any more.
        } else if self.done {
            stands.remove(&self.key);
        } else {
            stands.insert(self.key.clone(), Stand::Failed { first: self.first, at: Instant::now(), pause: self.pause });
        }
        self.settler.0.changed.notify_all();
    }
}

impl Settler {
    /// `plans`: those in force. `told` hears of each plan of which something was settled.
    pub fn new(
        journal: Journal,
        surroundings: Surroundings,
        plans: impl Fn() -> Result<Arc<Plans>> + Send + Sync + 'static,
        told: impl Fn(&Name) + Send + Sync + 'static,
    ) -> Self {
        let (stands, attempts, changed) = (Mutex::default(), AtomicU64::default(), Condvar::new());
        Self(Arc::new(Shared { journal, surroundings, plans: Box::new(plans), told: Box::new(told), stands, attempts, changed }))
    }

    /// Begins to settle everything that is left, as far as that does not go on or was tried a short time ago. Never waits for a repository. What cannot be
    /// settled is logged.
    ///
    /// # Errors
    /// When the plans or the journal cannot be read.
    pub fn look(&self) -> Result<()> {
        let plans = (self.0.plans)()?;
        // What no plan here knows, another node may, or a plan file that is wrong.
        let of_others = self.0.journal.is_shared() || plans.is_partial;
        let wanted = |run: &Run| !of_others || plans.plans.contains_key(&run.plan);
        self.settle_at_once(wanted)?;
        self.forget_what_others_settled()?;
        let broken: BTreeSet<Key> = self.0.journal.broken()?.into_iter().filter(wanted).map(|run| (run.plan, run.job)).collect();
        let due: Vec<Key> = {
            let mut stands = self.stands();
            // Somebody else has settled it.
            stands.retain(|key, stand| matches!(stand, Stand::Going { .. }) || broken.contains(key));
            let is_due = |key: &Key| match stands.get(key) {
                None => true,
                Some(Stand::Going { .. }) => false,
                Some(Stand::Failed { at, pause, .. }) => at.elapsed() >= *pause,
            };
            broken.into_iter().filter(is_due).collect()
        };
        for key in due {
            if let Err(error) = self.begin(&key) {
                tracing::error!(plan = %key.0, job = key.1.word(), error = ?error, "what a killed run left could not be settled");
            }
        }
        Ok(())
    }

    /// Settles what killed runs of this job of the plan left, which would be in the way of the next one, and what else of the plan needs no repository. Waits
    /// for it until `cancel` is set, or it has been going on for as long as `patience` (`None`: for as long as it takes). What could not be settled is
    /// logged, and in the way.
    ///
    /// # Errors
    /// `Interrupted`; `Unavailable` when it takes too long; when the journal cannot be read or written.
    pub fn make_way(&self, plan: &Name, job: Job, cancel: &Cancel, patience: Option<Duration>) -> Result<()> {
        self.settle_at_once(|run| run.plan == *plan)?;
        // Of the others any number may go on at once.
        if !job.is_exclusive() {
            return Ok(());
        }
        let key = (plan.clone(), job);
        let goes_on = matches!(self.stands().get(&key), Some(Stand::Going { .. }));
        if !goes_on {
            if !self.is_left(&key)? {
                return Ok(());
            }
            self.begin(&key)?;
        }
        self.wait(&key, cancel, patience)
    }

    /// Settles those of which the journal knows enough.
    fn settle_at_once(&self, wanted: impl Fn(&Run) -> bool) -> Result<()> {
        let (journal, now) = (&self.0.journal, self.0.surroundings.clock.now());
        let settled = runner::settle(journal, |run| wanted(run) && !runner::asks_repository(journal, run), |_, _| Ok(None), now)?;
        settled.iter().for_each(|(run, _)| (self.0.told)(&run.plan));
        Ok(())
    }

    /// Until nobody is at it any more.
    fn wait(&self, key: &Key, cancel: &Cancel, patience: Option<Duration>) -> Result<()> {
        let mut ask_at = patience.unwrap_or(PATIENCE);
        let mut stands = self.stands();
        loop {
            let Some(Stand::Going { since, number, of, .. }) = stands.get(key).copied() else { return Ok(()) };
            let waited = since.elapsed();
            if waited >= ask_at {
                drop(stands);
                if self.is_settled_elsewhere(key, number, of)? {
                    return Ok(());
                }
                if patience.is_none() {
                    ask_at = waited + PATIENCE;
                    stands = self.stands();
                    continue;
                }
                let (plan, word) = (&key.0, key.1.word());
                let message = format!(
                    "start {word} of plan {plan}: whether a {word} that was killed has committed is being asked of its repository for {} s, without an answer",
                    waited.as_secs()
                );
                return Err(Error::new(Kind::Unavailable, message)
                    .hint("look at the store: nothing of this kind starts before it has answered; it is tried again by itself"));
            }
            cancel.check()?;
            stands = self.0.changed.wait_timeout(stands, STEP).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// What others settled while an attempt here goes on, or hangs for ever, is in nobody's way.
    fn forget_what_others_settled(&self) -> Result<()> {
        let long: Vec<_> = {
            let stands = self.stands();
            let long = stands.iter().filter_map(|(key, stand)| match stand {
                Stand::Going { since, number, of, .. } if since.elapsed() >= PATIENCE => Some((key.clone(), *number, *of)),
                _ => None,
            });
            long.collect()
        };
        long.into_iter().try_for_each(|(key, number, of)| self.is_settled_elsewhere(&key, number, of).map(drop))
    }

    /// Whether the run that was in the way is not any more, though this attempt at it goes on: on a shared journal another node takes it when its lease is
    /// over. Then the attempt is forgotten.
    fn is_settled_elsewhere(&self, key: &Key, attempt: u64, of: Option<(RunId, u32)>) -> Result<bool> {
        if self.in_the_way(key)?.is_some_and(|live| Some(live) == of) {
            return Ok(false);
        }
        let mut stands = self.stands();
        if matches!(stands.get(key), Some(Stand::Going { number, .. }) if *number == attempt) {
            stands.remove(key);
        }
        Ok(true)
    }

    /// Plans of which it is not known whether their last backup committed, and will not be soon: what comes after them does not wait for that.
    #[must_use]
    pub fn unsettled_backups(&self) -> BTreeSet<Name> {
        let is_long = |stand: &Stand| match stand {
            Stand::Going { first, .. } | Stand::Failed { first, .. } => first.elapsed() >= PATIENCE,
        };
        let stands = self.stands();
        stands.iter().filter(|((_, job), stand)| *job == Job::Backup && is_long(stand)).map(|((plan, _), _)| plan.clone()).collect()
    }

    /// Starts a thread that settles these runs, unless one is at it.
    fn begin(&self, key: &Key) -> Result<()> {
        let of = self.in_the_way(key)?;
        let attempt = {
            let mut stands = self.stands();
            let since = Instant::now();
            let (first, pause) = match stands.get(key) {
                Some(Stand::Going { .. }) => return Ok(()),
                Some(Stand::Failed { first, pause, .. }) => (*first, (*pause * 2).min(TRY_AGAIN_LONGEST)),
                None => (since, TRY_AGAIN),
            };
            let number = self.0.attempts.fetch_add(1, Ordering::Relaxed);
            stands.insert(key.clone(), Stand::Going { first, since, number, of });
            Attempt { settler: self.clone(), key: key.clone(), number, first, pause, done: false }
        };
        let work = move || {
            let mut attempt = attempt;
            match attempt.settler.settle(&attempt.key) {
                Ok(done) => attempt.done = done,
                Err(error) => {
                    tracing::error!(plan = %attempt.key.0, job = attempt.key.1.word(), error = ?error, hint = error.hint_text(), "what a killed run left could not be settled");
                }
            }
        };
        let started = std::thread::Builder::new().name("settle".into()).spawn(work);
        started.map(drop).map_err(|error| Error::io("start the thread that settles what a killed run left", error))
    }

    /// Whether nothing is left.
    fn settle(&self, key: &Key) -> Result<bool> {
        let plans = (self.0.plans)()?;
        let open = |run: &Run, copy: Option<&str>| runner::open_for(&plans, run, copy, &self.0.surroundings);
        let settled = runner::settle(&self.0.journal, |run| is_of(run, key), open, self.0.surroundings.clock.now())?;
        settled.iter().for_each(|(run, _)| (self.0.told)(&run.plan));
        self.is_left(key).map(|left| !left)
    }

    /// The run that keeps the next one from starting, and which attempt at its slot it is.
    fn in_the_way(&self, (plan, job): &Key) -> Result<Option<(RunId, u32)>> {
        Ok(self.0.journal.live(plan, *job)?.map(|run| (run.id, run.attempt)))
    }

    fn is_left(&self, key: &Key) -> Result<bool> {
        Ok(self.0.journal.broken()?.iter().any(|run| is_of(run, key)))
    }

    fn stands(&self) -> MutexGuard<'_, BTreeMap<Key, Stand>> {
        self.0.stands.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_of(run: &Run, (plan, job): &Key) -> bool {
    run.plan == *plan && run.job == *job
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock as _, SystemClock};
    use crate::daemon::journal::{Ending, Filter, NewRun, State};
    use crate::event::Silent;
    use crate::ops::CommitGate;

    const PLANS: &str = "version = 1\n[repository.main]\nurl = \"file:///nowhere/r\"\npassphrase = { env = \"LIFEBOAT_NONE\" }\n[source.a]\nkind = \"files\"\npath = \"/nowhere\"\n\
        [plan.crm]\nsource = \"a\"\nrepository = \"main\"\n[plan.erp]\nsource = \"a\"\nrepository = \"main\"\n[plan.shop]\nsource = \"a\"\nrepository = \"main\"\n";

    #[test]
    fn what_hangs_holds_up_the_next_run_of_its_kind_until_that_is_cancelled_or_tired_of_it_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let now = SystemClock.now();
        let [crm, erp, shop] = ["crm", "erp", "shop"].map(|name| Name::new(name).unwrap());
        {
            // Of a process that is gone.
            let dead = Journal::open(folder.path(), now).unwrap();
            for job in [Job::Backup, Job::Drill, Job::Restore] {
                dead.begin(&NewRun::manual(&crm, job, "tester", now), now).unwrap();
            }
            dead.begin(&NewRun::manual(&shop, Job::Backup, "tester", now), now).unwrap();
        }
        let journal = Journal::open(folder.path(), now).unwrap();
        let states = || -> Vec<(Job, State)> {
            let mut all: Vec<_> = journal
                .runs(&Filter { plan: Some(crm.clone()), ..Filter::default() })
                .unwrap()
                .into_iter()
                .map(|run| (run.job, run.state))
                .collect();
            all.sort_by_key(|(job, _)| *job);
            all
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let surroundings = Surroundings {
            state: folder.path().to_owned(),
            runtime: runtime.handle().clone(),
            clock: Arc::new(SystemClock),
            progress: Arc::new(Silent),
            cancel: Cancel::default(),
            gate: CommitGate::default(),
        };
        // Stands for a store that does not answer until this lets it.
        let gate = Arc::new(Mutex::new(()));
        let closed = gate.lock().unwrap();
        let store = Arc::clone(&gate);
        let plans = move || {
            if std::thread::current().name() == Some("settle") {
                drop(store.lock());
            }
            Ok(Arc::new(Plans::from_text(PLANS)?))
        };
        let told = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&told);
        let settler = Settler::new(journal.clone(), surroundings, plans, move |plan| heard.lock().unwrap().push(plan.to_string()));

        settler.look().unwrap();
        let patience = Some(Duration::from_millis(200));
        let going = Cancel::default();
        for _ in 0..2 {
            let tired = settler.make_way(&crm, Job::Backup, &going, patience).unwrap_err();
            assert!(tired.kind() == Kind::Unavailable && tired.to_string().contains("start backup of plan crm"), "{tired:?}");
        }
        let (interrupted, running) = (State::Interrupted, State::Running);
        settler.make_way(&crm, Job::Drill, &going, None).unwrap();
        settler.make_way(&crm, Job::Restore, &going, None).unwrap();
        settler.make_way(&erp, Job::Backup, &going, None).unwrap();
        assert_eq!(states(), [(Job::Backup, running), (Job::Drill, interrupted), (Job::Restore, interrupted)]);
        let cancelled = Cancel::default();
        cancelled.cancel();
        assert_eq!(settler.make_way(&crm, Job::Backup, &cancelled, None).unwrap_err().kind(), Kind::Interrupted);
        // Another node is quicker than one whose store hangs: then nothing is in the way.
        assert!(settler.make_way(&shop, Job::Backup, &going, patience).is_err());
        let other = Journal::open(folder.path(), now).unwrap();
        let run = other.broken().unwrap().into_iter().find(|run| run.plan == shop).unwrap();
        let claim = other.take_over(&run, now).unwrap().unwrap();
        assert!(settler.make_way(&shop, Job::Backup, &going, patience).is_err(), "it is at it, and not done");
        other.close(claim, &Ending::new(interrupted), now).unwrap();
        // Nor is the next one there, of which this attempt knows nothing.
        other.begin(&NewRun::manual(&shop, Job::Backup, "tester", now), now).unwrap();
        settler.make_way(&shop, Job::Backup, &going, patience).unwrap();
        drop(closed);
        settler.make_way(&crm, Job::Backup, &going, None).unwrap();
        assert_eq!(states()[0], (Job::Backup, interrupted));
        assert_eq!(*told.lock().unwrap(), ["crm"; 3]);
    }
}

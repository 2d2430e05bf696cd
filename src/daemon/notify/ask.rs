//! Asks the repositories now and then, beside everything else: one that hangs holds up its own plans only, and no run and no notification.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::daemon::status::{self, Asked, Stored, Unanswered, Unasked};
use crate::error::Kind;
use crate::id::Name;
use crate::ops::resolve::Surroundings;
use crate::plan::{Plan, Plans};

/// Repositories that are asked at the same time: opening one takes memory for its key.
const AT_ONCE: usize = 3;

/// How often one is asked, where no run of its plans ended: a quarter of the shortest data-loss objective, within these.
const OFTEN: Duration = Duration::from_mins(1);
const SELDOM: Duration = Duration::from_mins(15);

/// What could not be asked is asked again after this.
const AGAIN: Duration = Duration::from_mins(1);

/// Runs that end within so long of each other are one reason to ask.
const SETTLE: Duration = Duration::from_secs(1);

/// So many times longer than it was asked for, a repository is left alone.
const SPARE: u32 = 4;

/// Asking that takes longer than this is an answer too. Copies are not waited for so long: see [`status::ask`].
const PATIENCE: Duration = Duration::from_mins(15);

/// Asks in threads of its own.
pub(super) struct Asker {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    surroundings: Surroundings,
}

#[derive(Default)]
struct State {
    repositories: BTreeMap<Name, Repository>,
    answers: BTreeMap<Name, (u64, Asked)>,
    stopping: bool,
}

struct Repository {
    plans: Vec<Arc<Plan>>,
    interval: Duration,
    /// When all of its plans are asked about.
    next: Instant,
    /// Plans that are asked about sooner, and when.
    outdated: BTreeSet<Name>,
    soon: Instant,
    /// Since when it is being asked.
    busy: Option<Instant>,
    /// How often it was asked, the time that goes on included.
    asked: u64,
    /// Which time must have answered about a plan.
    wanted: BTreeMap<Name, u64>,
    /// Copies of its plans that hang.
    unanswered: Unanswered,
}

impl Repository {
    fn due(&self) -> Instant {
        if self.outdated.is_empty() { self.next } else { self.next.min(self.soon) }
    }
}

impl Asker {
    /// Begins at once with all repositories of the plans.
    pub(super) fn start(plans: &Plans, surroundings: &Surroundings) -> Self {
        let mut state = State::default();
        for plan in plans.plans.values() {
            let fresh = || Repository {
                plans: Vec::new(),
                interval: SELDOM,
                next: Instant::now(),
                outdated: BTreeSet::new(),
                soon: Instant::now(),
                busy: None,
                asked: 0,
                wanted: BTreeMap::new(),
                unanswered: Unanswered::default(),
            };
            let repository = state.repositories.entry(plan.repository.name.clone()).or_insert_with(fresh);
            let wish = plan.objectives.data_loss.map_or(SELDOM, |limit| (limit / 4).clamp(OFTEN, SELDOM));
            repository.interval = repository.interval.min(wish);
            repository.plans.push(Arc::clone(plan));
        }
        let count = state.repositories.len().min(AT_ONCE);
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new(), surroundings: surroundings.clone() });
        let mut threads = Vec::new();
        for _ in 0..count {
            let shared = Arc::clone(&shared);
            match std::thread::Builder::new().name("ask".into()).spawn(move || work(&shared)) {
                Ok(thread) => threads.push(thread),
                Err(error) => tracing::error!(%error, "no thread to ask repositories how plans stand"),
            }
        }
        Self { shared, threads }
    }

    /// Something of this plan changed: what its repository said is out of date.
    pub(super) fn outdated(&self, plan: &Name) {
        let mut state = lock(&self.shared);
        for repository in state.repositories.values_mut().filter(|repository| repository.plans.iter().any(|known| known.name == *plan)) {
            // What is being asked now may have been answered already.
            repository.wanted.insert(plan.clone(), repository.asked + 1);
            if repository.outdated.is_empty() {
                repository.soon = repository.soon.max(Instant::now() + SETTLE);
            }
            repository.outdated.insert(plan.clone());
        }
        self.shared.changed.notify_all();
    }

    /// What the repositories of these plans said last. Without those that said nothing yet, or whose answer is out of date and that are being asked
    /// again.
    pub(super) fn answers<'a>(&self, plans: impl Iterator<Item = &'a Arc<Plan>>) -> Vec<(Arc<Plan>, Asked)> {
        let state = lock(&self.shared);
        plans.filter_map(|plan| Some((Arc::clone(plan), answer(&state, plan)?))).collect()
    }

    /// Ends when what is being asked has answered; one that hangs is left behind.
    pub(super) fn stop(self, deadline: Instant) {
        lock(&self.shared).stopping = true;
        self.shared.changed.notify_all();
        for thread in self.threads {
            while !thread.is_finished() {
                if Instant::now() >= deadline {
                    return;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

fn answer(state: &State, plan: &Plan) -> Option<Asked> {
    let repository = state.repositories.get(&plan.repository.name)?;
    if let Some(taken) = repository.busy.map(|since| since.elapsed()).filter(|taken| *taken > PATIENCE) {
        let message = format!("it has not answered for {} min", taken.as_secs() / 60);
        return Some(Err(Unasked { kind: Kind::Unavailable, message, secret: false }));
    }
    let (of, answer) = state.answers.get(&plan.name)?;
    let wanted = repository.wanted.get(&plan.name).copied().unwrap_or_default();
    (*of >= wanted).then(|| answer.clone())
}

fn lock(shared: &Shared) -> MutexGuard<'_, State> {
    shared.state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn work(shared: &Shared) {
    let mut state = lock(shared);
    loop {
        if state.stopping {
            return;
        }
        let free = state.repositories.iter().filter(|(_, repository)| repository.busy.is_none());
        let due = free.min_by_key(|(_, repository)| repository.due()).map(|(name, repository)| (name.clone(), repository.due()));
        let Some((name, due)) = due else {
            state = shared.changed.wait_timeout(state, SETTLE).unwrap_or_else(PoisonError::into_inner).0;
            continue;
        };
        let began = Instant::now();
        if due > began {
            state = shared.changed.wait_timeout(state, due - began).unwrap_or_else(PoisonError::into_inner).0;
            continue;
        }
        let Some(repository) = state.repositories.get_mut(&name) else { continue };
        let outdated = std::mem::take(&mut repository.outdated);
        let all = repository.next <= began;
        let plans: Vec<Arc<Plan>> = repository.plans.iter().filter(|plan| all || outdated.contains(&plan.name)).map(Arc::clone).collect();
        repository.busy = Some(began);
        repository.asked += 1;
        let (number, unanswered) = (repository.asked, repository.unanswered.clone());
        drop(state);
        let answers = ask(&plans, &unanswered, &shared.surroundings);
        state = lock(shared);
        if let Some(repository) = state.repositories.get_mut(&name) {
            let ended = Instant::now();
            repository.busy = None;
            // However many runs end: most of the time it is left alone.
            repository.soon = ended + SETTLE.max((ended - began) * SPARE);
            if answers.iter().any(|(_, answer)| answer.is_err()) {
                repository.next = ended + AGAIN.min(repository.interval);
            } else if all {
                repository.next = ended + repository.interval;
            }
        }
        state.answers.extend(answers.into_iter().map(|(plan, answer)| (plan, (number, answer))));
        shared.changed.notify_all();
    }
}

/// In a thread of its own, so that a panic ends only that one.
fn ask(plans: &[Arc<Plan>], unanswered: &Unanswered, surroundings: &Surroundings) -> Vec<(Name, Asked)> {
    let answers = std::thread::scope(|scope| scope.spawn(|| status::ask(plans, unanswered, surroundings)).join());
    answers.map_or_else(
        |_| {
            let why = Unasked { kind: Kind::Bug, message: "asking it panicked; please report this".to_owned(), secret: false };
            plans.iter().map(|plan| (plan.name.clone(), Err(why.clone()))).collect()
        },
        |answers| answers.into_iter().map(|(plan, answer)| (plan, answer.map(slim))).collect(),
    )
}

/// Without what no judgement needs: fingerprints of every table are most of a manifest, and this stays in memory.
fn slim(stored: Arc<Stored>) -> Arc<Stored> {
    let mut stored = Arc::unwrap_or_clone(stored);
    for manifest in &mut stored.manifests {
        for source in &mut manifest.sources {
            if let Some(fingerprints) = source.finish.get_mut("fingerprints").and_then(serde_json::Value::as_array_mut) {
                *fingerprints = Vec::new();
            }
        }
    }
    Arc::new(stored)
}

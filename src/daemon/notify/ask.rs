//! Asks the repositories now and then, beside everything else: one that hangs holds up its own plans only, and no run, no notification and no other
//! repository.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::daemon::status::{self, Asked, Stored, Unanswered, Unasked};
use crate::error::{Error, Kind, Result};
use crate::event::{Pulse, Silence};
use crate::id::Name;
use crate::ops::explain;
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

/// How long is waited for a repository.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// What is asked for longer keeps nothing else from being asked: a place that hangs has a thread and costs little else.
    stalled: Duration,
    /// That there is none for longer than this after it was due, whether asking takes so long or does not begin, is an answer too. Copies are not
    /// waited for so long: see [`status::ask`].
    patience: Duration,
    /// So is a longer silence of one that never answered: nothing at all is known of its plans.
    first: Duration,
}

impl Pace {
    const DAEMON: Self = Self { stalled: Duration::from_secs(5), patience: Duration::from_mins(15), first: status::Pace::STATUS.patience };
}

/// Asks a repository about these plans, which are all in it: [`status::ask`] but for tests.
type Ask = dyn Fn(&[Arc<Plan>], &Unanswered, &Pulse) -> Vec<(Name, Asked)> + Send + Sync;

/// Asks in threads of its own.
pub(super) struct Asker {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    pace: Pace,
    ask: Box<Ask>,
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
    busy: Option<Busy>,
    /// How often it was asked, the time that goes on included.
    asked: u64,
    /// Which time must have answered about a plan.
    wanted: BTreeMap<Name, u64>,
    /// Copies of its plans that hang.
    unanswered: Unanswered,
}

/// A repository is being asked.
struct Busy {
    due: Instant,
    began: Instant,
    silence: Silence,
}

/// What is known of a plan's repository.
pub(super) struct Answer {
    pub plan: Arc<Plan>,
    pub asked: Asked,
    /// Whether the repository was asked after the last run of the plan ended. If not, only the journal knows of that one.
    pub current: bool,
}

/// One time that a repository is asked.
struct Question {
    repository: Name,
    number: u64,
    plans: Vec<Arc<Plan>>,
    /// Whether these are all of its plans.
    all: bool,
    unanswered: Unanswered,
    pulse: Pulse,
}

impl State {
    /// Nothing was asked yet.
    fn of(plans: &Plans) -> Self {
        let mut state = Self::default();
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
        state
    }
}

impl Repository {
    fn due(&self) -> Instant {
        if self.outdated.is_empty() { self.next } else { self.next.min(self.soon) }
    }

    fn begin(&mut self, name: &Name) -> Question {
        let (due, began, pulse) = (self.due(), Instant::now(), Pulse::default());
        let outdated = std::mem::take(&mut self.outdated);
        let all = self.next <= began;
        self.busy = Some(Busy { due, began, silence: Silence::of(&pulse) });
        self.asked += 1;
        Question {
            repository: name.clone(),
            number: self.asked,
            plans: self.plans.iter().filter(|plan| all || outdated.contains(&plan.name)).map(Arc::clone).collect(),
            all,
            unanswered: self.unanswered.clone(),
            pulse,
        }
    }

    fn end(&mut self, question: &Question, answers: &[(Name, Asked)]) {
        let now = Instant::now();
        let took = self.busy.take().map(|busy| now - busy.began).unwrap_or_default();
        // However many runs end: most of the time it is left alone.
        self.soon = now + SETTLE.max(took * SPARE);
        if answers.len() < question.plans.len() || answers.iter().any(|(_, answer)| answer.is_err()) {
            self.next = now + AGAIN.min(self.interval);
        } else if question.all {
            self.next = now + self.interval;
        }
    }
}

impl Asker {
    /// Begins at once with all repositories of the plans.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(super) fn start(plans: &Plans, surroundings: &Surroundings) -> Result<Self> {
        let surroundings = surroundings.clone();
        let ask = move |plans: &[Arc<Plan>], unanswered: &Unanswered, pulse: &Pulse| status::ask(plans, unanswered, pulse, &surroundings);
        Self::start_with(plans, Pace::DAEMON, Box::new(ask))
    }

    fn start_with(plans: &Plans, pace: Pace, ask: Box<Ask>) -> Result<Self> {
        let shared = Arc::new(Shared { state: Mutex::new(State::of(plans)), changed: Condvar::new(), pace, ask });
        let asks = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("ask".into()).spawn(move || take_turns(&asks));
        let thread = thread.map_err(|error| Error::io("start a thread to ask repositories how plans stand", error))?;
        Ok(Self { shared, thread })
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

    /// What the repositories of these plans said last, or that they say nothing. Without those that never said anything and are, or are to be, asked
    /// since a short time.
    pub(super) fn answers<'a>(&self, plans: impl Iterator<Item = &'a Arc<Plan>>) -> Vec<Answer> {
        let mut state = lock(&self.shared);
        plans.filter_map(|plan| answer(&mut state, self.shared.pace, plan)).collect()
    }

    /// Ends when what is being asked has answered; one that hangs is left behind.
    pub(super) fn stop(self, deadline: Instant) {
        self.begin_no_more();
        let goes_on = || !self.thread.is_finished() || lock(&self.shared).repositories.values().any(|one| one.busy.is_some());
        while goes_on() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn begin_no_more(&self) {
        lock(&self.shared).stopping = true;
        self.shared.changed.notify_all();
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        self.begin_no_more();
    }
}

fn answer(state: &mut State, pace: Pace, plan: &Arc<Plan>) -> Option<Answer> {
    let known = state.answers.get(&plan.name);
    let repository = state.repositories.get_mut(&plan.repository.name)?;
    let (late, silent, what) = match &mut repository.busy {
        Some(busy) => (busy.due.elapsed(), busy.silence.lasts(), "it has not answered"),
        None => (repository.due().elapsed(), Duration::ZERO, "it was due to be asked, and others took all the time,"),
    };
    let limit =
        if late > pace.patience { Some(pace.patience) } else { Some(pace.first).filter(|first| known.is_none() && silent > *first) };
    if let Some(limit) = limit {
        // Nothing that changes with every look.
        let message = format!("{what} for more than {} min", limit.as_secs() / 60);
        let asked = Err(Unasked { kind: Kind::Unavailable, message, secret: false });
        return Some(Answer { plan: Arc::clone(plan), asked, current: false });
    }
    let (of, asked) = known?;
    let wanted = repository.wanted.get(&plan.name).copied().unwrap_or_default();
    Some(Answer { plan: Arc::clone(plan), asked: asked.clone(), current: *of >= wanted })
}

fn lock(shared: &Shared) -> MutexGuard<'_, State> {
    shared.state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts to ask what is due, each in a thread of its own, until the end is asked for.
fn take_turns(shared: &Arc<Shared>) {
    let mut state = lock(shared);
    while !state.stopping {
        let pause = match turn(&mut state, shared.pace) {
            Ok(question) => {
                put(shared, &mut state, question);
                continue;
            }
            Err(pause) => pause,
        };
        state = shared.changed.wait_timeout(state, pause).unwrap_or_else(PoisonError::into_inner).0;
    }
}

/// What is asked now, or how long nothing is.
fn turn(state: &mut State, pace: Pace) -> std::result::Result<Question, Duration> {
    let at_work: Vec<Duration> =
        state.repositories.values().filter_map(|one| pace.stalled.checked_sub(one.busy.as_ref()?.began.elapsed())).collect();
    if at_work.len() >= AT_ONCE {
        // One of them ends, which is told, or does not count any more.
        return Err(at_work.into_iter().min().unwrap_or_default());
    }
    let free = state.repositories.iter_mut().filter(|(_, repository)| repository.busy.is_none());
    let Some((name, repository)) = free.min_by_key(|(_, repository)| repository.due()) else { return Err(SELDOM) };
    match repository.due().saturating_duration_since(Instant::now()) {
        Duration::ZERO => Ok(repository.begin(name)),
        pause => Err(pause),
    }
}

/// In a thread of its own, so that a panic ends only that one.
fn put(shared: &Arc<Shared>, state: &mut State, question: Question) {
    let question = Arc::new(question);
    let (asks, asked) = (Arc::clone(shared), Arc::clone(&question));
    let started = std::thread::Builder::new().name("ask".into()).spawn(move || {
        let answers = std::panic::catch_unwind(AssertUnwindSafe(|| (asks.ask)(&asked.plans, &asked.unanswered, &asked.pulse)));
        let answers = answers.map_or_else(
            |_| of_all(&asked, Kind::Bug, "asking it panicked; please report this"),
            |answers| answers.into_iter().map(|(plan, answer)| (plan, answer.map(slim))).collect(),
        );
        take(&mut lock(&asks), &asked, answers);
        asks.changed.notify_all();
    });
    if let Err(error) = started {
        let error = Error::io("start a thread to ask it", error);
        take(state, &question, of_all(&question, error.kind(), &explain(&error)));
    }
}

fn of_all(question: &Question, kind: Kind, message: &str) -> Vec<(Name, Asked)> {
    let why = Unasked { kind, message: message.to_owned(), secret: false };
    question.plans.iter().map(|plan| (plan.name.clone(), Err(why.clone()))).collect()
}

fn take(state: &mut State, question: &Question, answers: Vec<(Name, Asked)>) {
    if let Some(repository) = state.repositories.get_mut(&question.repository) {
        repository.end(question, &answers);
    }
    state.answers.extend(answers.into_iter().map(|(plan, answer)| (plan, (question.number, answer))));
}

/// Without what no judgement needs: fingerprints of every table are most of a manifest, and this stays in memory.
fn slim(stored: Arc<Stored>) -> Arc<Stored> {
    let mut stored = Arc::unwrap_or_clone(stored);
    for manifest in stored.manifests.iter_mut().chain(stored.destroyed.iter_mut().map(|(manifest, _)| manifest)) {
        for source in &mut manifest.sources {
            if let Some(fingerprints) = source.finish.get_mut("fingerprints").and_then(serde_json::Value::as_array_mut) {
                *fingerprints = Vec::new();
            }
        }
    }
    Arc::new(stored)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: Pace = Pace { stalled: Duration::from_millis(100), patience: Duration::from_secs(4), first: Duration::from_secs(2) };

    /// Plans `p0`, `p1` …, each in a repository of its own.
    fn plans(count: usize) -> Plans {
        let folder = tempfile::tempdir().unwrap();
        let of = |number: usize| {
            format!(
                "[repository.r{number}]\nurl = \"file:///nowhere/r{number}\"\npassphrase = {{ env = \"NONE\" }}\n\
                 [plan.p{number}]\nsource = \"a\"\nrepository = \"r{number}\"\n"
            )
        };
        let all: String = (0..count).map(of).collect();
        let text = format!("version = 1\n[source.a]\nkind = \"files\"\npath = \"/nowhere\"\n{all}");
        std::fs::write(folder.path().join("plans.toml"), text).unwrap();
        Plans::load(&[folder.path().join("plans.toml")]).unwrap()
    }

    fn empty(plans: &[Arc<Plan>]) -> Vec<(Name, Asked)> {
        plans.iter().map(|plan| (plan.name.clone(), Ok(Arc::default()))).collect()
    }

    /// Repositories that hang.
    #[derive(Default)]
    struct Hanging(Mutex<BTreeSet<String>>, Condvar);

    impl Hanging {
        fn set(&self, names: &[&str]) {
            *self.0.lock().unwrap() = names.iter().map(|name| (*name).to_owned()).collect();
            self.1.notify_all();
        }

        fn ask(self: &Arc<Self>) -> Box<Ask> {
            let hanging = Arc::clone(self);
            Box::new(move |plans, _, _| {
                let name = plans[0].repository.name.as_str();
                drop(hanging.1.wait_while(hanging.0.lock().unwrap(), |hanging| hanging.contains(name)).unwrap());
                empty(plans)
            })
        }
    }

    /// What is said of a plan: `None`: nothing; whether it was asked since the last run, or why it was not.
    fn said(asker: &Asker, plans: &Plans, name: &str) -> Option<std::result::Result<bool, Unasked>> {
        let plan = plans.plans.values().filter(|plan| plan.name.as_str() == name);
        asker.answers(plan).pop().map(|answer| answer.asked.map(|_| answer.current))
    }

    fn until(what: &str, mut condition: impl FnMut() -> bool) {
        let began = Instant::now();
        while !condition() {
            assert!(began.elapsed() < Duration::from_mins(1), "waited in vain until {what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn what_hangs_keeps_no_other_from_being_asked_and_is_told_itself() {
        let (plans, hanging) = (plans(2 * AT_ONCE), Arc::<Hanging>::default());
        hanging.set(&["r0", "r1", "r2", "r3", "r4"]);
        let asker = Asker::start_with(&plans, PACE, hanging.ask()).unwrap();
        assert_eq!(said(&asker, &plans, "p0"), None, "nothing is known of it yet");
        until("the last one is asked", || said(&asker, &plans, "p5") == Some(Ok(true)));
        for plan in ["p0", "p1", "p2", "p3", "p4"] {
            until("one that hangs is told", || said(&asker, &plans, plan).is_some());
            let why = said(&asker, &plans, plan).unwrap().unwrap_err();
            assert!(why.kind == Kind::Unavailable && why.message.starts_with("it has not answered for more than"), "{why:?}");
        }
        hanging.set(&[]);
        until("it answers again", || said(&asker, &plans, "p0") == Some(Ok(true)));
        asker.stop(Instant::now() + Duration::from_mins(1));
    }

    #[test]
    fn an_answer_that_is_out_of_date_is_not_dropped_and_counts_for_a_while() {
        let (plans, hanging) = (plans(1), Arc::<Hanging>::default());
        let plan = plans.plans.values().next().unwrap().name.clone();
        let asker = Asker::start_with(&plans, PACE, hanging.ask()).unwrap();
        until("it is asked", || said(&asker, &plans, "p0") == Some(Ok(true)));
        hanging.set(&["r0"]);
        asker.outdated(&plan);
        assert_eq!(said(&asker, &plans, "p0"), Some(Ok(false)));
        until("it is asked again", || lock(&asker.shared).repositories.values().all(|one| one.busy.is_some()));
        // A run that ends while it is asked may be in that answer, or not.
        asker.outdated(&plan);
        assert!(said(&asker, &plans, "p0").is_some());
        until("that it hangs is told", || matches!(said(&asker, &plans, "p0"), Some(Err(_))));
        hanging.set(&[]);
        until("it has answered", || matches!(said(&asker, &plans, "p0"), Some(Ok(_))));
        let (of, wanted) = {
            let state = lock(&asker.shared);
            (state.answers[&plan].0, state.repositories.values().next().unwrap().wanted[&plan])
        };
        assert_eq!((of, wanted, said(&asker, &plans, "p0")), (2, 3, Some(Ok(false))));
    }

    #[test]
    fn one_that_nobody_comes_to_ask_is_told_too() {
        let plans = plans(1);
        let plan = plans.plans.values().next().unwrap();
        let mut state = State::of(&plans);
        std::thread::sleep(Duration::from_millis(20));
        assert!(answer(&mut state, PACE, plan).is_none());
        let short = Duration::from_millis(10);
        let why = |state: &mut State, pace: Pace| answer(state, pace, plan).unwrap().asked.map(|_| ()).unwrap_err().message;
        assert!(answer(&mut state, Pace { first: short, ..PACE }, plan).is_none(), "others are asked before it");
        let impatient = Pace { patience: short, ..PACE };
        assert!(why(&mut state, impatient).starts_with("it was due to be asked"));
        // An old answer does not hide it, and what counts is since when it was due.
        state.answers.extend(empty(&[Arc::clone(plan)]).into_iter().map(|(plan, asked)| (plan, (0, asked))));
        assert!(answer(&mut state, PACE, plan).unwrap().asked.is_ok());
        assert!(why(&mut state, impatient).starts_with("it was due to be asked"));
        assert!(turn(&mut state, PACE).is_ok());
        assert!(why(&mut state, impatient).starts_with("it has not answered"));
    }

    #[test]
    fn so_many_are_asked_at_a_time_unless_they_take_long() {
        let mut state = State::of(&plans(AT_ONCE + 2));
        let first: Vec<Question> = (0..AT_ONCE).map(|_| turn(&mut state, PACE).ok().unwrap()).collect();
        let patient = Pace { stalled: Duration::from_hours(1), ..PACE };
        assert!(turn(&mut state, patient).is_err_and(|pause| pause > Duration::from_mins(59)));
        // One that ends makes room, and one that takes long.
        take(&mut state, &first[0], empty(&first[0].plans));
        let fourth = turn(&mut state, patient).ok().unwrap();
        assert!(turn(&mut state, patient).is_err());
        std::thread::sleep(PACE.stalled + Duration::from_millis(10));
        let fifth = turn(&mut state, PACE).ok().unwrap();
        assert_eq!((fourth.repository.as_str(), fifth.repository.as_str()), ("r3", "r4"));
        // All that are left are asked already, or were just now.
        assert!(turn(&mut state, PACE).is_err_and(|pause| pause > Duration::from_secs(1)));
        // Who says nothing of a plan is asked again soon.
        take(&mut state, &fourth, Vec::new());
        assert!(state.repositories.values().any(|one| one.busy.is_none() && one.next <= Instant::now() + AGAIN));
    }

    #[test]
    fn a_panic_is_told_and_ends_nothing() {
        let plans = plans(2);
        let ask: Box<Ask> = Box::new(|plans, _, _| {
            assert_ne!(plans[0].name.as_str(), "p0", "planted");
            empty(plans)
        });
        let asker = Asker::start_with(&plans, PACE, ask).unwrap();
        until("both are asked", || said(&asker, &plans, "p0").is_some() && said(&asker, &plans, "p1").is_some());
        assert_eq!(said(&asker, &plans, "p0").unwrap().unwrap_err().kind, Kind::Bug);
        assert_eq!(said(&asker, &plans, "p1"), Some(Ok(true)));
    }
}

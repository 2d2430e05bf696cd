//! Telling somebody: what happened and what stands goes to the notifiers of the plan files.
//!
//! ```text
//! journal ─runs─┐
//! repositories ─┼▶ watch ─▶ step (pure) ─▶ outbox (on disk) ─▶ deliver, a thread for each notifier ─▶ webhook | e-mail | command | heartbeat
//! alarms ───────┘
//! ```
//!
//! Nothing here holds up a run: repositories are asked in threads of their own, targets have theirs, and each has a time limit. An event is
//! written to disk with the observation that made it and leaves only when the target has taken it: at least once. A problem that stays is
//! told once, reminded of, and its end is told. Events that come together go in one message. Nothing secret and nothing of rows is in them:
//! they are made of the journal's and the status's own sentences.

mod ask;
mod deliver;
pub mod event;
mod expiry;
mod message;
pub mod outbox;
pub mod pace;
mod past;
mod secrets;
mod send;
pub mod step;
mod teller;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::daemon::companion::{Companion, Context};
use crate::daemon::journal::ErrorRecord;
use crate::daemon::notify::ask::Asker;
use crate::daemon::notify::deliver::Bell;
use crate::daemon::notify::event::Notice;
use crate::daemon::notify::outbox::Outbox;
use crate::daemon::notify::past::Past;
use crate::daemon::notify::send::Parcel;
use crate::daemon::notify::teller::Teller;
use crate::daemon::notify::watch::Watch;
use crate::daemon::owner;
use crate::daemon::status::{NotifierStatus, Problem, Status, Unanswered};
use crate::error::{Error, Result};
use crate::id::RunId;
use crate::ops::resolve::Surroundings;
use crate::plan::{Notifier, NotifierKind, Plans};

/// How often the journal is looked at for runs.
const LOOK: Duration = Duration::from_secs(1);

/// How everything stood when it was last looked at; shared with whoever shows it.
#[derive(Clone, Default)]
pub struct Latest(Arc<Mutex<Option<Arc<Status>>>>);

impl Latest {
    /// `None` until all plans were judged once. The repositories' part is at most half an hour old: of what could not be asked for longer
    /// this is said.
    #[must_use]
    pub fn get(&self) -> Option<Arc<Status>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, status: Option<Arc<Status>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }
}

/// What tells of the plans that a daemon follows, from its start to its stop; begins anew with other plans.
#[derive(Default)]
pub struct Notifications {
    latest: Latest,
    thread: Option<JoinHandle<()>>,
}

impl Notifications {
    /// How everything stands, from when this was started.
    #[must_use]
    pub fn latest(&self) -> Latest {
        self.latest.clone()
    }
}

impl Companion for Notifications {
    fn name(&self) -> &'static str {
        "notifications"
    }

    fn start(&mut self, context: &Context) -> Result<()> {
        let mut plans = context.control.plans_watch();
        let current = Arc::clone(&plans.borrow_and_update());
        let first = Telling::start(&current, &self.latest, context)?;
        let (context, latest) = (context.clone(), self.latest.clone());
        self.thread = Some(thread("notifications".to_owned(), move || {
            let mut telling = Some(first);
            let mut failed: Option<Instant> = None;
            while !context.surroundings.cancel.is_cancelled() {
                if plans.has_changed().unwrap_or(false) || failed.is_some_and(|at| at.elapsed() >= START_AGAIN) {
                    let changed = Arc::clone(&plans.borrow_and_update());
                    telling.into_iter().for_each(|telling| telling.stop(Instant::now() + CHANGE));
                    telling = match Telling::start(&changed, &latest, &context) {
                        Ok(telling) => {
                            failed = None;
                            Some(telling)
                        }
                        Err(error) => {
                            if failed.replace(Instant::now()).is_none() {
                                tracing::error!(error = ?error, hint = error.hint_text(), "nobody is told of anything until this is mended");
                            }
                            None
                        }
                    };
                }
                std::thread::sleep(PAUSE);
            }
            telling.into_iter().for_each(|telling| telling.stop(Instant::now() + CHANGE));
        })?);
        Ok(())
    }

    fn stop(&mut self, deadline: Instant) {
        while self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            if Instant::now() >= deadline {
                tracing::warn!("a notification that is under way is left behind; it is delivered again by the next start");
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// How soon a stop and other plans are noticed.
const PAUSE: Duration = Duration::from_millis(100);

/// What could not be started with other plans (a full disk) is tried again so often.
const START_AGAIN: Duration = Duration::from_secs(10);

/// For deliveries that are under way when the plans change, or at the end.
const CHANGE: Duration = Duration::from_secs(10);

/// The threads for one set of plans.
struct Telling {
    bell: Arc<Bell>,
    threads: Vec<JoinHandle<()>>,
}

impl Telling {
    /// Begins to watch and to deliver. Without notifiers what stands is in the log and in `latest` all the same.
    fn start(plans: &Plans, latest: &Latest, context: &Context) -> Result<Self> {
        let surroundings = &context.surroundings;
        let outbox = Arc::new(Outbox::open(&surroundings.state)?);
        // From here on nothing is missed, whenever the first look is.
        outbox.looked_until(surroundings.clock.now())?;
        let declared: Vec<&str> = plans.notifiers.keys().map(crate::id::Name::as_str).collect();
        for name in outbox.forget_others(&declared)? {
            tracing::warn!(notifier = name, "the plan files declare this notifier no more: what waited for it is dropped");
        }
        latest.set(None);
        let bell = Arc::new(Bell::default());
        let mut telling = Self { bell: Arc::clone(&bell), threads: Vec::new() };
        let started = telling.spawn(plans, &outbox, latest, context);
        if started.is_err() {
            bell.stop();
        }
        started.map(|()| telling)
    }

    fn spawn(&mut self, plans: &Plans, outbox: &Arc<Outbox>, latest: &Latest, context: &Context) -> Result<()> {
        let surroundings = &context.surroundings;
        for notifier in plans.notifiers.values() {
            let (notifier, outbox, surroundings, bell) =
                (Arc::clone(notifier), Arc::clone(outbox), surroundings.clone(), Arc::clone(&self.bell));
            let name = format!("notify-{}", notifier.name);
            self.threads.push(thread(name, move || deliver::run(&notifier, &outbox, &surroundings, &bell))?);
        }
        // A repository or a server that hangs keeps nobody from looking at secrets.
        let own = Surroundings { cancel: self.bell.cancel(), ..surroundings.clone() };
        let (rung, kept_plans, kept) = (Arc::clone(&self.bell), plans.clone(), own.clone());
        self.threads.push(thread("expiry".to_owned(), move || look_for_ends(&kept_plans, &kept, &rung))?);
        let (rung, kept_plans) = (Arc::clone(&self.bell), plans.clone());
        self.threads.push(thread("secrets".to_owned(), move || look_at_secrets(&kept_plans, &own, &rung))?);
        let watch = Watch {
            plans: plans.clone(),
            control: context.control.clone(),
            journal: Arc::clone(&context.journal),
            surroundings: surroundings.clone(),
            outbox: Arc::clone(outbox),
            teller: Teller::new(plans, Arc::clone(&context.journal)),
            left: BTreeSet::new(),
            asker: Asker::start(plans, surroundings)?,
            latest: latest.clone(),
            judged: None,
            statuses: BTreeMap::new(),
            logged: BTreeSet::new(),
        };
        let rung = Arc::clone(&self.bell);
        self.threads.push(thread("watch".to_owned(), move || look_on(watch, &rung))?);
        Ok(())
    }

    /// Ends all threads. A delivery that is under way is waited for until the deadline; what is not delivered stays in the outbox.
    fn stop(self, deadline: Instant) {
        self.bell.stop();
        for thread in self.threads {
            while !thread.is_finished() {
                if Instant::now() >= deadline {
                    tracing::warn!("a notification that is under way is left behind; it is delivered again");
                    return;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

fn thread(name: String, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name).spawn(work).map_err(|error| Error::io("start a thread for notifications", error))
}

/// Looks until the end is asked for. What is seen at the last moment is left to the next start.
fn look_on(mut watch: Watch, bell: &Arc<Bell>) {
    let (mut troubled, mut past) = (false, Past::default());
    while !bell.is_stopping() {
        let times = bell.times();
        bell.hung(watch.hung());
        match watch.look() {
            Ok(events) => {
                bell.looked(None);
                troubled = false;
                past.well();
                if events > 0 {
                    bell.ring();
                    continue;
                }
            }
            Err(error) => {
                bell.looked(Some(deliver::why(&error)));
                // Once, not every second.
                if !std::mem::replace(&mut troubled, true) {
                    tracing::error!(error = ?error, hint = error.hint_text(), "runs and plans cannot be watched");
                }
                match watch.look_blindly() {
                    Ok(0) => {}
                    Ok(_) => bell.ring(),
                    Err(error) => {
                        let plans = watch.plans.notifiers.values();
                        let people: Vec<_> = plans.filter(|one| !matches!(one.kind, NotifierKind::Heartbeat { .. })).collect();
                        if past.troubled(&deliver::why(&error), &people, &watch.surroundings, bell) {
                            tracing::error!(error = ?error, "what is to be told cannot be written down: it is told from memory");
                        }
                    }
                }
            }
        }
        bell.wait(times, LOOK);
    }
    let until = Instant::now() + Duration::from_secs(1);
    watch.asker.stop(until);
    for thread in past.into_threads() {
        while !thread.is_finished() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// How often it is looked whether something is due to be looked at, and at secrets.
const GLANCE: Duration = Duration::from_mins(1);

/// Looks at keys and certificates until the end is asked for.
fn look_for_ends(plans: &Plans, surroundings: &Surroundings, bell: &Bell) {
    let unanswered = Unanswered::default();
    let mut last: Option<Instant> = None;
    while !bell.is_stopping() {
        if last.is_none_or(|last| last.elapsed() >= expiry::EVERY) {
            last = Some(Instant::now());
            let looked = expiry::look(plans, &unanswered, surroundings);
            if let Err(error) = looked
                && !bell.is_stopping()
            {
                tracing::error!(error = ?error, "what ends soon cannot be told of");
            }
        }
        bell.wait(bell.times(), GLANCE);
    }
}

/// Looks at secrets of notifiers until the end is asked for.
fn look_at_secrets(plans: &Plans, surroundings: &Surroundings, bell: &Bell) {
    while !bell.is_stopping() {
        if let Err(error) = secrets::look(plans, surroundings) {
            tracing::error!(error = ?error, "notifiers whose secrets cannot be had cannot be told of");
        }
        bell.wait(bell.times(), GLANCE);
    }
}

/// How the deliveries of all notifiers stand, and what is wrong with them: for a process that is not the daemon.
///
/// # Errors
/// When the outbox is there and cannot be read.
pub fn standing(plans: &Plans, state: &std::path::Path) -> Result<(Vec<NotifierStatus>, Vec<Problem>)> {
    let statuses = match Outbox::open_existing(state)? {
        Some(outbox) => watch::statuses_of(plans, &outbox)?,
        None => plans
            .notifiers
            .values()
            .map(|notifier| NotifierStatus {
                name: notifier.name.to_string(),
                kind: notifier.kind.word().to_owned(),
                last_delivered: None,
                waiting: 0,
                failing_since: None,
                failures: 0,
                error: None,
            })
            .collect(),
    };
    let problems = statuses.iter().filter_map(watch::failing).collect();
    Ok((statuses, problems))
}

/// `lifeboat.notify-test/1`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestReport {
    pub schema: String,
    pub notifier: String,
    pub kind: String,
    pub time: DateTime<Utc>,
    pub delivered: bool,
    pub duration_ms: u64,
    /// What the target said, when it took it.
    pub answer: Option<String>,
    pub error: Option<ErrorRecord>,
}

/// Sends a real event that says it is a test, past the outbox.
#[must_use]
pub fn test(notifier: &Notifier, surroundings: &Surroundings) -> (TestReport, Option<Error>) {
    let now = surroundings.clock.now();
    let event = message::test_event(RunId::generate(now).to_string(), now);
    let notice = Notice::new(notifier.name.as_str(), &owner::host(), &[event], 0, now);
    let began = Instant::now();
    let result = send::deliver(notifier, &Parcel::Notice(&notice), &surroundings.runtime, now);
    let duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    let error = result.as_ref().err().map(ErrorRecord::from);
    let report = TestReport {
        schema: "lifeboat.notify-test/1".to_owned(),
        notifier: notifier.name.to_string(),
        kind: notifier.kind.word().to_owned(),
        time: now,
        delivered: result.is_ok(),
        duration_ms,
        answer: result.as_ref().ok().cloned(),
        error,
    };
    (report, result.err())
}

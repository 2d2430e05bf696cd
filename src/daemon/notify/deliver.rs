//! Brings what waits to one notifier, in a thread of its own: a target that hangs delays nobody else.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::daemon::notify::event::{Event, Notice, Severity};
use crate::daemon::notify::outbox::{Delivery, Outbox};
use crate::daemon::notify::pace;
use crate::daemon::notify::send::{self, Parcel};
use crate::daemon::owner;
use crate::error::{Error, Result};
use crate::event::Cancel;
use crate::ops::resolve::Surroundings;
use crate::plan::{HeartbeatStyle, Notifier, NotifierKind};

/// The outbox is looked at so often even if nobody rings.
const LOOK: Duration = Duration::from_secs(5);

/// After this without a look of the one who watches, which is every second, a heartbeat of the daemon says so.
const BLIND: Duration = Duration::from_secs(90);

/// Wakes the threads when there is something to bring, or when they are to end.
#[derive(Default)]
pub(super) struct Bell {
    state: Mutex<Rung>,
    changed: Condvar,
    /// Set with the end.
    cancel: Cancel,
}

#[derive(Default)]
struct Rung {
    times: u64,
    stopping: bool,
    /// When everything was last looked at, and what was in the way since.
    looked: Option<std::time::Instant>,
    trouble: Option<String>,
    /// Why nothing is started although all is watched.
    hung: Option<String>,
}

impl Bell {
    pub(super) fn ring(&self) {
        self.lock().times += 1;
        self.changed.notify_all();
    }

    pub(super) fn stop(&self) {
        self.cancel.cancel();
        self.lock().stopping = true;
        self.changed.notify_all();
    }

    /// For what takes long and should end when the end is asked for.
    pub(super) fn cancel(&self) -> Cancel {
        self.cancel.clone()
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.lock().stopping
    }

    /// `None`: all was looked at just now.
    pub(super) fn looked(&self, trouble: Option<String>) {
        let mut state = self.lock();
        if trouble.is_none() {
            state.looked = Some(std::time::Instant::now());
        }
        state.trouble = trouble;
    }

    /// Whether the loop that starts runs hangs, and for how long.
    pub(super) fn hung(&self, why: Option<String>) {
        self.lock().hung = why;
    }

    /// Why nothing is watched, or nothing started; `None`: it is.
    fn blindness(&self) -> Option<String> {
        let state = self.lock();
        if state.hung.is_some() {
            return state.hung.clone();
        }
        if state.looked.is_some_and(|at| at.elapsed() < BLIND) {
            return None;
        }
        Some(state.trouble.clone().unwrap_or_else(|| "nothing was looked at for some minutes".to_owned()))
    }

    /// How often it was rung.
    pub(super) fn times(&self) -> u64 {
        self.lock().times
    }

    /// Until it is rung once more than `times`, the end is asked for, or the time is over.
    pub(super) fn wait(&self, times: u64, longest: Duration) {
        let state = self.lock();
        let waits = |state: &mut Rung| !state.stopping && state.times == times;
        let _unused = self.changed.wait_timeout_while(state, longest, waits).unwrap_or_else(PoisonError::into_inner);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Rung> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Delivers until the end is asked for.
pub(super) fn run(notifier: &Notifier, outbox: &Outbox, surroundings: &Surroundings, bell: &Bell) {
    let mut alive = None;
    while !bell.is_stopping() {
        let times = bell.times();
        let pause = match &notifier.kind {
            NotifierKind::Heartbeat { every: Some(every), .. } => keep_alive(notifier, *every, &mut alive, outbox, surroundings, bell),
            _ => bring(notifier, outbox, surroundings),
        };
        let pause = pause.unwrap_or_else(|error| {
            tracing::error!(notifier = %notifier.name, error = ?error, "what waits for a notifier could not be looked at");
            LOOK
        });
        // What is held back on purpose is not hurried by the bell.
        if pause > Duration::ZERO {
            bell.wait(times, pause.min(LOOK));
        }
    }
}

/// One delivery, where something waits and it is time; how long to wait then.
fn bring(notifier: &Notifier, outbox: &Outbox, surroundings: &Surroundings) -> Result<Duration> {
    let now = surroundings.clock.now();
    let name = notifier.name.as_str();
    let delivery = outbox.delivery(name)?;
    if delivery.waiting == 0 && delivery.unlisted == 0 {
        return Ok(LOOK);
    }
    if !pace::is_due(delivery.next, now) {
        return Ok(until(delivery.next, now));
    }
    let waiting = outbox.waiting(name, crate::daemon::notify::outbox::MOST_WAITING)?;
    // What a later version wrote is left to it.
    if waiting.is_empty() && delivery.unlisted == 0 {
        return Ok(LOOK);
    }
    if matches!(notifier.kind, NotifierKind::Heartbeat { .. }) {
        return ping(notifier, outbox, surroundings, waiting);
    }
    let gathered = waiting.first().map(|(_, event)| event.time + pace::GATHER).filter(|at| *at > now && *at - now <= gather());
    let urgent = waiting.iter().any(|(_, event)| event.severity() == Severity::Critical);
    let allowed = Some(pace::next_send(&delivery.sent, urgent, now)).filter(|at| *at > now);
    if let Some(later) = gathered.max(allowed) {
        return Ok(until(Some(later), now));
    }
    let (ids, events): (Vec<i64>, Vec<Event>) = waiting.into_iter().unzip();
    let notice = Notice::new(name, &owner::host(), &events, delivery.unlisted, now);
    let result = send::deliver(notifier, &Parcel::Notice(&notice), &surroundings.runtime, now);
    note(notifier, outbox, surroundings, &ids, delivery.unlisted, result)
}

fn gather() -> chrono::TimeDelta {
    chrono::TimeDelta::from_std(pace::GATHER).unwrap_or_default()
}

fn until(at: Option<DateTime<Utc>>, now: DateTime<Utc>) -> Duration {
    at.and_then(|at| (at - now).to_std().ok()).unwrap_or_default().max(Duration::from_millis(50))
}

/// Pings of runs, in their order. Of each plan and job those before the last end are news no more.
fn ping(notifier: &Notifier, outbox: &Outbox, surroundings: &Surroundings, waiting: Vec<(i64, Event)>) -> Result<Duration> {
    let is_end = |event: &Event| event.occasion != "start";
    let scope = |event: &Event| (event.plan.clone(), event.job.clone());
    let mut done = Vec::new();
    for (position, (id, event)) in waiting.iter().enumerate() {
        done.push(*id);
        let later = &waiting[position + 1..];
        if later.iter().any(|(_, other)| is_end(other) && scope(other) == scope(event)) {
            continue;
        }
        let result = send::deliver(notifier, &Parcel::Ping(event), &surroundings.runtime, surroundings.clock.now());
        let failed = result.is_err();
        let pause = note(notifier, outbox, surroundings, &done, 0, result)?;
        if failed {
            return Ok(pause);
        }
        done.clear();
    }
    Ok(Duration::ZERO)
}

/// That the daemon lives and watches.
fn keep_alive(
    notifier: &Notifier,
    every: Duration,
    last: &mut Option<std::time::Instant>,
    outbox: &Outbox,
    surroundings: &Surroundings,
    bell: &Bell,
) -> Result<Duration> {
    if let Some(left) = last.and_then(|last| every.checked_sub(last.elapsed())).filter(|left| !left.is_zero()) {
        return Ok(left);
    }
    let first = last.replace(std::time::Instant::now()).is_none();
    let trouble = bell.blindness();
    if first && trouble.is_some() {
        // It has only just begun.
        *last = None;
        bell.wait(bell.times(), LOOK);
        if bell.blindness().is_some() {
            *last = Some(std::time::Instant::now());
        }
        return Ok(Duration::from_millis(50));
    }
    // A plain one says that all is well, or nothing.
    if trouble.is_some() && matches!(notifier.kind, NotifierKind::Heartbeat { style: HeartbeatStyle::Plain, .. }) {
        return Ok(LOOK);
    }
    let now = surroundings.clock.now();
    let result = send::deliver(notifier, &Parcel::Alive(trouble.as_deref()), &surroundings.runtime, now);
    note(notifier, outbox, surroundings, &[], 0, result)
}

/// Notes how a delivery ended; how long to wait then.
fn note(
    notifier: &Notifier,
    outbox: &Outbox,
    surroundings: &Surroundings,
    ids: &[i64],
    unlisted: u64,
    result: Result<String>,
) -> Result<Duration> {
    let (now, name) = (surroundings.clock.now(), notifier.name.as_str());
    match result {
        Ok(answer) => {
            outbox.delivered(name, ids, unlisted, now)?;
            tracing::info!(notifier = name, events = ids.len(), answer, "delivered");
            Ok(Duration::ZERO)
        }
        Err(error) => {
            let Delivery { next, failures, .. } = outbox.not_delivered(name, &why(&error), now)?;
            tracing::error!(notifier = name, failures, error = ?error, hint = error.hint_text(), "not delivered; it is tried again");
            Ok(until(next, now))
        }
    }
}

/// An error of a delivery in one line.
pub(super) fn why(error: &Error) -> String {
    std::iter::once(error.to_string()).chain(error.causes()).collect::<Vec<_>>().join(": ").replace('\n', " ")
}

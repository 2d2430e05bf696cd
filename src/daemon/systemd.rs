//! Talks to the service manager (sd_notify(3)): ready, what goes on, alive, stopping. Without `NOTIFY_SOCKET` it says nothing.
//!
//! The watchdog is fed only while the daemon's loop turns: a loop that hangs gets the whole process restarted. While runs are drained the
//! time that systemd allows for stopping is extended, as long as the daemon itself still counts down.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use tokio::sync::broadcast::error::TryRecvError;

use crate::daemon::companion::Context;
use crate::daemon::control::{Control, Happening, LONGEST_TURN, Phase};

/// How soon a stop or a change is told.
const TICK: Duration = Duration::from_millis(100);

/// By how much starting and stopping are extended, again and again.
const EXTENSION: Duration = Duration::from_secs(30);
const EXTEND_EVERY: Duration = Duration::from_secs(10);

/// A loop that has not turned for so long hangs.
const LONGEST_SILENCE: Duration = LONGEST_TURN.saturating_mul(3);

/// The companion's work: until its cancel is set.
pub fn tell(context: Context) {
    if std::env::var_os("NOTIFY_SOCKET").is_none_or(|socket| socket.is_empty()) {
        return;
    }
    let mut happenings = context.control.happenings();
    let mut teller = Teller::new(sd_notify::watchdog_enabled());
    while !context.surroundings.cancel.is_cancelled() {
        let mut reloaded = false;
        loop {
            match happenings.try_recv() {
                Ok(Happening::PlansChanged) => reloaded = true,
                Ok(_) | Err(TryRecvError::Lagged(_)) => {}
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            }
        }
        let control = &context.control;
        for message in teller.due(control.phase(), control.loop_age(), reloaded, &story(control), Instant::now()) {
            send(&message);
        }
        std::thread::park_timeout(TICK);
    }
    for message in teller.due(Phase::Stopping, Duration::ZERO, false, "stopping", Instant::now()) {
        send(&message);
    }
}

fn send(message: &Message) {
    let state = match message {
        Message::Ready => vec![NotifyState::Ready],
        Message::Reloaded => {
            let mut states = vec![NotifyState::Reloading];
            states.extend(NotifyState::monotonic_usec_now());
            if let Err(error) = sd_notify::notify(&states) {
                tracing::warn!(%error, "the service manager could not be told");
            }
            vec![NotifyState::Ready]
        }
        Message::Stopping => vec![NotifyState::Stopping],
        Message::Alive => vec![NotifyState::Watchdog],
        Message::Extend => vec![NotifyState::ExtendTimeoutUsec(u32::try_from(EXTENSION.as_micros()).unwrap_or(u32::MAX))],
        Message::Status(text) => vec![NotifyState::Status(text)],
    };
    if let Err(error) = sd_notify::notify(&state) {
        tracing::warn!(%error, "the service manager could not be told");
    }
}

/// One line for `systemctl status`.
fn story(control: &Control) -> String {
    let plans = control.plans().plans.len();
    let running = control.running();
    let problems = control.problems();
    let mut text = match control.phase() {
        Phase::Starting => "starting".to_owned(),
        Phase::Serving => format!("{plans} plans"),
        Phase::Draining => "stopping: runs are asked to end".to_owned(),
        Phase::Stopping => "stopping".to_owned(),
    };
    if !running.is_empty() {
        let named: Vec<String> = running.iter().take(3).map(|run| format!("{} of {}", run.job.word(), run.plan)).collect();
        let more = running.len() - named.len();
        let more = if more == 0 { String::new() } else { format!(" and {more} more") };
        text = format!("{text}; running: {}{more}", named.join(", "));
    }
    if let Some(problem) = problems.first() {
        text = format!("{text}; {}: {}", problem.kind, problem.message);
    }
    // One line it must be.
    text.replace(['\n', '\r'], " ")
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Message {
    Ready,
    Reloaded,
    Stopping,
    Alive,
    Extend,
    Status(String),
}

/// What was told already. Pure.
struct Teller {
    /// A sign of life at least this often.
    watchdog: Option<Duration>,
    ready: bool,
    stopping: bool,
    alive: Option<Instant>,
    extended: Option<Instant>,
    status: String,
}

impl Teller {
    fn new(watchdog: Option<Duration>) -> Self {
        // Twice within the time, as sd_watchdog_enabled(3) advises, and a tick less.
        let watchdog = watchdog.map(|time| (time / 2).saturating_sub(TICK * 2));
        Self { watchdog, ready: false, stopping: false, alive: None, extended: None, status: String::new() }
    }

    fn due(&mut self, phase: Phase, loop_age: Duration, reloaded: bool, story: &str, now: Instant) -> Vec<Message> {
        let mut messages = Vec::new();
        match phase {
            Phase::Serving if !self.ready => {
                self.ready = true;
                messages.push(Message::Ready);
            }
            Phase::Serving if reloaded => messages.push(Message::Reloaded),
            Phase::Starting | Phase::Serving => {}
            Phase::Draining | Phase::Stopping => {
                if !self.stopping {
                    self.stopping = true;
                    self.extended = None;
                    messages.push(Message::Stopping);
                }
            }
        }
        if phase != Phase::Serving && self.extended.is_none_or(|last| now.duration_since(last) >= EXTEND_EVERY) {
            self.extended = Some(now);
            messages.push(Message::Extend);
        }
        let turns = phase != Phase::Serving || loop_age < LONGEST_SILENCE;
        let due = self.watchdog.is_some_and(|every| self.alive.is_none_or(|last| now.duration_since(last) >= every));
        if due && turns {
            self.alive = Some(now);
            messages.push(Message::Alive);
        }
        if self.status != story {
            story.clone_into(&mut self.status);
            messages.push(Message::Status(story.to_owned()));
        }
        messages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(1);

    #[test]
    fn a_service_says_ready_once_lives_while_its_loop_turns_and_extends_its_stop() {
        let mut teller = Teller::new(Some(Duration::from_mins(2)));
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        assert_eq!(
            teller.due(Phase::Starting, SOON, false, "starting", at(0)),
            [Message::Extend, Message::Alive, Message::Status("starting".into())]
        );
        assert_eq!(teller.due(Phase::Starting, SOON, false, "starting", at(5)), []);
        assert_eq!(teller.due(Phase::Serving, SOON, false, "starting", at(6)), [Message::Ready]);
        assert_eq!(teller.due(Phase::Serving, SOON, false, "starting", at(60)), [Message::Alive], "within half of the time");
        assert_eq!(teller.due(Phase::Serving, SOON, true, "3 plans", at(61)), [Message::Reloaded, Message::Status("3 plans".into())]);
        assert_eq!(teller.due(Phase::Serving, Duration::from_secs(90), false, "3 plans", at(200)), [], "a loop that hangs is not alive");
        assert_eq!(teller.due(Phase::Serving, SOON, false, "3 plans", at(201)), [Message::Alive]);
        assert_eq!(teller.due(Phase::Draining, Duration::from_hours(1), false, "3 plans", at(202)), [Message::Stopping, Message::Extend]);
        assert_eq!(teller.due(Phase::Draining, SOON, false, "3 plans", at(213)), [Message::Extend]);
        assert_eq!(teller.due(Phase::Stopping, SOON, false, "3 plans", at(214)), [], "stopping is said once");
    }

    #[test]
    fn without_a_watchdog_there_is_no_sign_of_life() {
        let mut teller = Teller::new(None);
        assert_eq!(teller.due(Phase::Serving, SOON, false, "", Instant::now()), [Message::Ready]);
    }
}

//! What lives beside the runs of a daemon: who tells people, who answers HTTP, who feeds the watchdog.
//!
//! The list of them stands in `cli::serve`, in the order in which they start. They start before anything runs and are stopped in the
//! opposite order after the last run has ended, so that each sees and tells of everything up to the end, the draining too.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::daemon::control::Control;
use crate::daemon::journal::Journal;
use crate::error::{Error, Result};
use crate::event::Cancel;
use crate::ops::resolve::Surroundings;

/// What a companion works with.
#[derive(Clone)]
pub struct Context {
    pub control: Control,
    pub journal: Arc<Journal>,
    /// Its `cancel` is this companion's own: set when it is to stop, and not before.
    pub surroundings: Surroundings,
}

/// One thing that lives beside the runs.
pub trait Companion: Send {
    /// For logs: one word.
    fn name(&self) -> &'static str;

    /// Gets in place (a bound socket, an opened file) and goes on in threads or tasks of its own. Must not block for long.
    ///
    /// # Errors
    /// Ends the start of the daemon.
    fn start(&mut self, context: &Context) -> Result<()>;

    /// Finishes what it has begun, until `deadline` at the latest. The context's `cancel` is set already. What is not done by then is left; it is
    /// the companion that says so in the log.
    fn stop(&mut self, deadline: Instant);
}

/// Companions that were started.
pub(super) struct Companions(Vec<(Box<dyn Companion>, Cancel)>);

impl Companions {
    /// Starts all in order; when one cannot, those before it are stopped again.
    pub(super) fn start(all: Vec<Box<dyn Companion>>, context: &Context) -> Result<Self> {
        let mut started = Self(Vec::new());
        for mut companion in all {
            let cancel = Cancel::default();
            let own = Context { surroundings: Surroundings { cancel: cancel.clone(), ..context.surroundings.clone() }, ..context.clone() };
            if let Err(error) = companion.start(&own) {
                started.stop(Instant::now() + Duration::from_secs(5));
                return Err(error);
            }
            tracing::debug!(name = companion.name(), "started");
            started.0.push((companion, cancel));
        }
        Ok(started)
    }

    /// Stops all, the last one first. Each gets at least a second, whatever the others took.
    pub(super) fn stop(&mut self, deadline: Instant) {
        while let Some((mut companion, cancel)) = self.0.pop() {
            cancel.cancel();
            companion.stop(deadline.max(Instant::now() + Duration::from_secs(1)));
            tracing::debug!(name = companion.name(), "stopped");
        }
    }
}

/// A companion that is one thread, which ends by itself once its `cancel` is set.
pub struct Threaded<F> {
    name: &'static str,
    work: Option<F>,
    thread: Option<JoinHandle<()>>,
}

impl<F: FnOnce(Context) + Send + 'static> Threaded<F> {
    /// `work` looks at `context.surroundings.cancel` several times a second.
    pub fn new(name: &'static str, work: F) -> Self {
        Self { name, work: Some(work), thread: None }
    }
}

impl<F: FnOnce(Context) + Send + 'static> Companion for Threaded<F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn start(&mut self, context: &Context) -> Result<()> {
        let Some(work) = self.work.take() else { return Ok(()) };
        let context = context.clone();
        let thread = std::thread::Builder::new().name(self.name.to_owned()).spawn(move || work(context));
        self.thread = Some(thread.map_err(|error| Error::io(format!("start the thread {}", self.name), error))?);
        Ok(())
    }

    fn stop(&mut self, deadline: Instant) {
        while self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            if Instant::now() >= deadline {
                tracing::error!(name = self.name, "did not stop in time and is left behind");
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!(name = self.name, "panicked: please report this, with the lines above");
        }
    }
}

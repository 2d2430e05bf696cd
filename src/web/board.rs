//! What requests are answered from without asking anybody: the last status of all plans, and the text of the metrics.
//!
//! Two threads keep them fresh. One asks the repositories: after each run of this daemon, when the plans change, and otherwise every
//! [`LOOK_EVERY`]; but never for more than a twentieth of the time (a fifth while runs end), so that ten thousand plans or a slow store make the picture older and
//! not the store busier. The other makes the metrics every [`RENDER_EVERY`] of what is here (the journal, the last look), so that they go
//! on when a store does not answer.

use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::TryRecvError;

use crate::daemon::companion::Context;
use crate::daemon::control::Happening;
use crate::daemon::status::Status;
use crate::error::{Error, Kind, Result};
use crate::id::RunId;
use crate::web::metrics::ledger::Ledger;
use crate::web::metrics::look::{Intervals, Look};

/// How often the repositories are asked where nothing happens.
const LOOK_EVERY: Duration = Duration::from_mins(2);

/// A look waits for so many times what the last one took: where nothing happens, and where something did.
const REST: u32 = 19;
const REST_AFTER_NEWS: u32 = 4;

/// How often the metrics are made.
const RENDER_EVERY: Duration = Duration::from_secs(5);

/// How soon a stop or a run that ended is noticed.
const TICK: Duration = Duration::from_millis(200);

/// The picture. Reading it takes no longer than copying a pointer.
#[derive(Default)]
pub struct Board {
    look: RwLock<Seen>,
    metrics: RwLock<Arc<str>>,
}

#[derive(Default)]
struct Seen {
    look: Option<Arc<Look>>,
    /// Why there is none: kind and message.
    failed: Option<(Kind, String)>,
}

impl Board {
    /// The last status.
    ///
    /// # Errors
    /// `None`: nobody has looked yet. Else why the first look failed.
    pub fn status(&self) -> Result<Status, Option<Error>> {
        let seen = self.look.read().unwrap_or_else(PoisonError::into_inner);
        match (&seen.look, &seen.failed) {
            (Some(look), _) => Ok(look.status.clone()),
            (None, Some((kind, message))) => Err(Some(Error::new(*kind, message.clone()))),
            (None, None) => Err(None),
        }
    }

    /// The metrics, ready to be sent; empty only in the first moment.
    #[must_use]
    pub fn metrics(&self) -> Arc<str> {
        Arc::clone(&self.metrics.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn look(&self) -> Option<Arc<Look>> {
        self.look.read().unwrap_or_else(PoisonError::into_inner).look.clone()
    }

    fn show(&self, look: Result<Look>) {
        let mut seen = self.look.write().unwrap_or_else(PoisonError::into_inner);
        match look {
            Ok(look) => *seen = Seen { look: Some(Arc::new(look)), failed: None },
            // The last good one stays: its time tells its age.
            Err(error) => seen.failed = Some((error.kind(), error.to_string())),
        }
    }

    fn show_metrics(&self, text: String) {
        *self.metrics.write().unwrap_or_else(PoisonError::into_inner) = text.into();
    }
}

/// The threads that keep a board fresh.
pub(super) struct Refresher {
    threads: Vec<JoinHandle<()>>,
}

impl Refresher {
    /// Until `context.surroundings.cancel` is set.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(board: &Arc<Board>, context: &Context) -> Result<Self> {
        // What happens from now on is heard, also before the threads get their turn.
        let of_looks = context.control.happenings();
        let of_metrics = context.control.happenings();
        let looks = (Arc::clone(board), context.clone());
        let metrics = (Arc::clone(board), context.clone());
        let threads = vec![
            thread("look", move || keep_looking(&looks.0, &looks.1, of_looks))?,
            thread("metrics", move || keep_counting(&metrics.0, &metrics.1, of_metrics))?,
        ];
        Ok(Self { threads })
    }

    /// Waits for them until `deadline`; a store that does not answer holds up nobody.
    pub fn stop(self, deadline: Instant) {
        for thread in self.threads {
            while !thread.is_finished() && Instant::now() < deadline {
                std::thread::park_timeout(Duration::from_millis(20));
            }
            if !thread.is_finished() {
                tracing::warn!("a repository is still being asked how its plans stand: the thread is left behind");
            } else if thread.join().is_err() {
                tracing::error!("a thread that keeps the API's picture fresh panicked: please report this, with the lines above");
            }
        }
    }
}

fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(work).map_err(|error| Error::io(format!("start the thread {name}"), error))
}

fn keep_looking(board: &Board, context: &Context, mut happenings: Receiver<Happening>) {
    let mut intervals = Intervals::default();
    let mut took = Duration::ZERO;
    let mut next = Instant::now();
    while !context.surroundings.cancel.is_cancelled() {
        if !heard(&mut happenings).is_empty() {
            // Not before the last look has been paid for.
            next = next.min(Instant::now() + took.saturating_mul(REST_AFTER_NEWS).min(LOOK_EVERY));
        }
        if Instant::now() >= next {
            let begun = Instant::now();
            let look = Look::take(context, &mut intervals);
            if let Err(error) = &look {
                tracing::error!(error = ?error, hint = error.hint_text(), "how the plans stand could not be found out");
            }
            took = begun.elapsed();
            board.show(look.map(|look| Look { took, ..look }));
            next = Instant::now() + LOOK_EVERY.max(took.saturating_mul(REST));
        }
        std::thread::park_timeout(TICK);
    }
}

fn keep_counting(board: &Board, context: &Context, mut happenings: Receiver<Happening>) {
    let mut ledger = Ledger::default();
    let mut next = Instant::now();
    let mut ended: Vec<RunId> = Vec::new();
    let mut last_look: Option<Arc<Look>> = None;
    while !context.surroundings.cancel.is_cancelled() {
        let happened = heard(&mut happenings);
        ended.extend(happened.iter().filter_map(|happening| match happening {
            Happening::RunEnded { id, .. } => Some(*id),
            _ => None,
        }));
        let look = board.look();
        let is_new = look.as_ref().map(Arc::as_ptr) != last_look.as_ref().map(Arc::as_ptr);
        if is_new || !happened.is_empty() || Instant::now() >= next {
            next = Instant::now() + RENDER_EVERY;
            match ledger.take_up(&context.journal, &mut ended) {
                Ok(()) => board.show_metrics(ledger.render(context, look.as_deref())),
                Err(error) => tracing::error!(error = ?error, "the journal could not be asked for the metrics"),
            }
            last_look = look;
        }
        std::thread::park_timeout(TICK);
    }
}

/// What happened since this was asked last. A listener that lost some hears at least that.
fn heard(happenings: &mut Receiver<Happening>) -> Vec<Happening> {
    let mut heard = Vec::new();
    loop {
        match happenings.try_recv() {
            Ok(happening) => heard.push(happening),
            Err(TryRecvError::Lagged(_)) => heard.push(Happening::ProblemsChanged),
            Err(TryRecvError::Empty | TryRecvError::Closed) => return heard,
        }
    }
}

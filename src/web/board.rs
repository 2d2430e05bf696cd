//! What requests are answered from without asking anybody: the last status of all plans, and the text of the metrics.
//!
//! The status is that of [`Latest`]: whoever watches the objectives asks the repositories, and nobody asks them twice. One thread makes the
//! metrics every [`RENDER_EVERY`] and when a run ends, of what is here: the journal and the last status. It looks through the journal for
//! each plan with every new status, but for at most a tenth of the time, so that ten thousand plans make that part older and not the daemon
//! busier.

use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::TryRecvError;

use crate::daemon::companion::Context;
use crate::daemon::control::Happening;
use crate::daemon::notify::Latest;
use crate::daemon::status::Status;
use crate::error::{Error, Result};
use crate::id::RunId;
use crate::web::metrics::ledger::Ledger;
use crate::web::metrics::look::{Intervals, Look};

/// How often the metrics are made.
const RENDER_EVERY: Duration = Duration::from_secs(5);

/// Looking through the journal waits for so many times what it took last.
const REST: u32 = 9;

/// How soon a stop or a run that ended is noticed.
const TICK: Duration = Duration::from_millis(200);

/// The picture. Reading it takes no longer than copying a pointer.
pub struct Board {
    latest: Latest,
    /// The last one of `latest`, which has none while plans that changed are looked at for the first time.
    last: RwLock<Option<Arc<Status>>>,
    metrics: RwLock<Arc<str>>,
}

impl Board {
    /// Empty metrics, until they are made.
    #[must_use]
    pub fn new(latest: Latest) -> Self {
        Self { latest, last: RwLock::default(), metrics: RwLock::default() }
    }

    /// The last status; `None` until somebody has looked at all plans.
    #[must_use]
    pub fn status(&self) -> Option<Arc<Status>> {
        self.latest.get().or_else(|| self.last.read().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// The metrics, ready to be sent; empty only in the first moment.
    #[must_use]
    pub fn metrics(&self) -> Arc<str> {
        Arc::clone(&self.metrics.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn show_metrics(&self, text: String) {
        *self.metrics.write().unwrap_or_else(PoisonError::into_inner) = text.into();
    }
}

/// The thread that makes the metrics.
pub(super) struct Refresher(JoinHandle<()>);

impl Refresher {
    /// Until `context.surroundings.cancel` is set.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(board: &Arc<Board>, context: &Context) -> Result<Self> {
        // What happens from now on is heard, also before the thread gets its turn.
        let happenings = context.control.happenings();
        let (board, context) = (Arc::clone(board), context.clone());
        let thread = std::thread::Builder::new().name("metrics".into()).spawn(move || keep_fresh(&board, &context, happenings));
        thread.map(Self).map_err(|error| Error::io("start the thread that makes the metrics", error))
    }

    /// Waits for it until `deadline`.
    pub fn stop(self, deadline: Instant) {
        while !self.0.is_finished() && Instant::now() < deadline {
            std::thread::park_timeout(Duration::from_millis(20));
        }
        if !self.0.is_finished() {
            tracing::warn!("the metrics are still being made: their thread is left behind");
        } else if self.0.join().is_err() {
            tracing::error!("the thread that makes the metrics panicked: please report this, with the lines above");
        }
    }
}

fn keep_fresh(board: &Board, context: &Context, mut happenings: Receiver<Happening>) {
    let (mut ledger, mut intervals) = (Ledger::default(), Intervals::default());
    let (mut render_at, mut look_at) = (Instant::now(), Instant::now());
    let mut ended: Vec<RunId> = Vec::new();
    let mut look: Option<Look> = None;
    while !context.surroundings.cancel.is_cancelled() {
        let happened = heard(&mut happenings);
        ended.extend(happened.iter().filter_map(|happening| match happening {
            Happening::RunEnded { id, .. } => Some(*id),
            _ => None,
        }));
        let fresh = board.status().filter(|status| look.as_ref().is_none_or(|look| !Arc::ptr_eq(&look.status, status)));
        let mut news = !happened.is_empty();
        if let Some(status) = fresh.filter(|_| Instant::now() >= look_at) {
            let begun = Instant::now();
            match Look::take(context, status, &mut intervals) {
                Ok(taken) => {
                    news = true;
                    *board.last.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&taken.status));
                    look = Some(taken);
                }
                Err(error) => tracing::error!(error = ?error, "the journal could not be asked for the metrics"),
            }
            look_at = Instant::now() + begun.elapsed().saturating_mul(REST).max(TICK);
        }
        if news || Instant::now() >= render_at {
            render_at = Instant::now() + RENDER_EVERY;
            // Where it cannot be asked, the rest is still worth a scrape: that very trouble is in it.
            if let Err(error) = ledger.take_up(&context.journal, &mut ended) {
                tracing::error!(error = ?error, "the journal could not be asked for the metrics");
            }
            board.show_metrics(ledger.render(context, look.as_ref()));
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

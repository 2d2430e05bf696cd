//! The HTTP service beside the daemon: the API, its OpenAPI document, and metrics.
//!
//! ```text
//! connection ─▶ token ─▶ time limit ─▶ route ─▶ journal, board, daemon      answers at once
//!                                           └─▶ repository                  two requests at a time, each with its own limit
//! board ◀─ how everything stands, from who watches the objectives; a thread that makes the metrics of it beforehand
//! ```
//!
//! Invariants: nothing is answered without a token, not even that a path does not exist; no answer holds a secret; `/metrics` and status
//! never wait for a store; whatever a client sends, it costs a bounded place for a bounded time; a run never waits for this module.
//!
//! A web page takes the routes below `/` that are free, and accounts a place beside [`token::Tokens`]: both become a [`token::Caller`].

mod api;
pub mod board;
mod connection;
mod documents;
mod failure;
pub mod listen;
pub mod metrics;
mod token;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;

use crate::daemon::companion::{Companion, Context};
use crate::daemon::control::Control;
use crate::daemon::journal::Journal;
use crate::daemon::notify::Latest;
use crate::error::Result;
use crate::ops::resolve::Surroundings;
use crate::web::board::Board;
use crate::web::listen::{Listen, Listener};
use crate::web::token::Tokens;

pub use crate::web::token::{API_FILE, METRICS_FILE};

/// Where metrics are.
pub const METRICS_PATH: &str = "/metrics";

/// A request takes at most so long, its body included; then it is told so.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);

/// What a request may send.
const MAX_BODY_BYTES: usize = 64 << 10;

/// Requests that read a repository, at once: backups need the store more.
const STORE_PLACES: usize = 2;

/// How the service is to be reached.
#[derive(Debug, Clone)]
pub struct Settings {
    pub listen: Listen,
    /// Whether other machines may reach it.
    pub remote_allowed: bool,
    /// A file with the API's token; `None`: [`API_FILE`] in the state folder, made when missing.
    pub token_file: Option<PathBuf>,
}

/// What handlers work with.
struct Web {
    control: Control,
    journal: Arc<Journal>,
    board: Arc<Board>,
    tokens: Tokens,
    surroundings: Surroundings,
    store_places: Arc<Semaphore>,
    requests: metrics::Requests,
}

/// The service as what it is to the daemon.
pub struct Service {
    settings: Settings,
    latest: Latest,
    running: Option<Running>,
}

struct Running {
    stop: watch::Sender<bool>,
    accepting: JoinHandle<()>,
    board: board::Refresher,
    runtime: tokio::runtime::Handle,
    address: Listen,
}

impl Service {
    /// Does nothing before it is started. `latest`: how everything stands, from who looks at it anyway.
    ///
    /// # Errors
    /// `Usage` for an address that others can reach and nobody allowed.
    pub fn new(settings: Settings, latest: Latest) -> Result<Self> {
        settings.listen.check(settings.remote_allowed)?;
        Ok(Self { settings, latest, running: None })
    }

    /// Where it listens, with the port that the system chose; `None`: it does not.
    #[must_use]
    pub fn address(&self) -> Option<&Listen> {
        self.running.as_ref().map(|running| &running.address)
    }
}

impl Companion for Service {
    fn name(&self) -> &'static str {
        "web"
    }

    /// Opens tokens and address, and starts to answer. A token file that others can read is `Usage`, an address in use `Busy`.
    fn start(&mut self, context: &Context) -> Result<()> {
        let surroundings = &context.surroundings;
        let tokens = Tokens::open(&surroundings.state, self.settings.token_file.as_deref())?;
        let runtime = surroundings.runtime.clone();
        let (listener, address) = runtime.block_on(Listener::open(&self.settings.listen))?;
        let board = Arc::new(Board::new(self.latest.clone()));
        let refresher = board::Refresher::start(&board, context)?;
        let web = Arc::new(Web {
            control: context.control.clone(),
            journal: Arc::clone(&context.journal),
            board,
            tokens,
            surroundings: surroundings.clone(),
            store_places: Arc::new(Semaphore::new(STORE_PLACES)),
            requests: metrics::Requests::default(),
        });
        let (stop, stopped) = watch::channel(false);
        let accepting = runtime.spawn(connection::serve(listener, api::router(web), stopped));
        tracing::info!(address = %address, "the API answers");
        self.running = Some(Running { stop, accepting, board: refresher, runtime, address });
        Ok(())
    }

    /// Takes no new connections, and waits for the answers that are on their way.
    fn stop(&mut self, deadline: Instant) {
        let Some(Running { stop, mut accepting, board, runtime, .. }) = self.running.take() else { return };
        // Nobody listens any more when the runtime is gone: then there is nothing to stop.
        let _ = stop.send(true);
        let left = deadline.saturating_duration_since(Instant::now()).min(REQUEST_TIMEOUT);
        if runtime.block_on(async { tokio::time::timeout(left, &mut accepting).await }).is_err() {
            accepting.abort();
            tracing::warn!("answers of the API were cut off: it is time to stop");
        }
        board.stop(deadline);
    }
}

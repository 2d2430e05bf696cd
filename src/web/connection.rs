//! Connections: how many, for how long, and how slowly a client may talk.
//!
//! Whoever can connect, with or without a token, costs at most one of [`MAX_CONNECTIONS`] for [`HEAD_TIMEOUT`] at a time, a small buffer
//! and no thread. Those beyond wait in the system's queue.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, watch};

use crate::web::listen::Listener;

/// Connections at once.
const MAX_CONNECTIONS: usize = 64;

/// A request's head must be there within this; also how long a connection may be idle.
pub(super) const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// No connection lives longer: one that never reads its answers would hold its place for ever.
const MAX_AGE: Duration = Duration::from_mins(5);

/// What a request's head may take, bytes and lines.
const MAX_HEAD_BYTES: usize = 16 << 10;
const MAX_HEADERS: usize = 64;

/// After a failed accept (no file descriptor is left, for example).
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Serves until `stop` says true or its sender is gone; then requests that go on may end, up to their own limits.
pub(super) async fn serve(listener: Listener, router: Router, mut stop: watch::Receiver<bool>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = accept(&listener) => accepted,
            () = stopped(&mut stop) => return drain(&places, place).await,
        };
        match accepted {
            Ok(stream) => {
                let (router, stop) = (router.clone(), stop.clone());
                tokio::spawn(async move {
                    connection(stream, router, stop).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection to the API could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

async fn accept(listener: &Listener) -> std::io::Result<Box<dyn Stream>> {
    match listener {
        Listener::Tcp(listener) => {
            let (stream, _) = listener.accept().await?;
            // Answers are small: nothing is gained by waiting for more.
            let _ = stream.set_nodelay(true);
            Ok(Box::new(stream))
        }
        Listener::Unix(listener, _) => Ok(Box::new(listener.accept().await?.0)),
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error: nobody is left who could say it.
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn drain(places: &Semaphore, place: tokio::sync::OwnedSemaphorePermit) {
    drop(place);
    let _ = places.acquire_many(u32::try_from(MAX_CONNECTIONS).unwrap_or(u32::MAX)).await;
}

async fn connection(stream: Box<dyn Stream>, router: Router, mut stop: watch::Receiver<bool>) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let too_old = tokio::time::sleep(MAX_AGE);
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        () = stopped(&mut stop) => None,
        () = too_old => None,
    };
    let ended = if let Some(ended) = ended {
        ended
    } else {
        connection.as_mut().graceful_shutdown();
        let Ok(ended) = tokio::time::timeout(crate::web::REQUEST_TIMEOUT, connection).await else { return };
        ended
    };
    if let Err(error) = ended {
        // What a client sent or that it went away: its own trouble.
        tracing::debug!(%error, "a connection to the API ended");
    }
}

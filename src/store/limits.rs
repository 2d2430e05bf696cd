//! What a store may use of the machine and the line: requests in flight and bytes per second.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

/// How much may be saved up while idle.
const BURST: Duration = Duration::from_secs(1);

/// How many small reads count as one request.
const SMALL: usize = 16;

/// A bandwidth limit: each taker waits until what earlier takers took is paid off, then goes at once.
///
/// So the average holds for any size of piece, and no taker ever waits for its own bytes. Takers are served in the order of
/// their calls. Dropping a waiting future does not give its bytes back.
#[derive(Debug)]
pub(crate) struct Rate {
    bytes_per_sec: u64,
    paid_off: Mutex<Instant>,
}

impl Rate {
    /// At least one byte per second.
    pub fn new(bytes_per_sec: u64) -> Self {
        // An empty start: the first second's allowance is not saved up before anything began.
        Self { bytes_per_sec: bytes_per_sec.max(1), paid_off: Mutex::new(Instant::now()) }
    }

    /// Waits until `bytes` may pass.
    pub async fn take(&self, bytes: u64) {
        let start = {
            let mut paid_off = self.paid_off.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let earliest = now.checked_sub(BURST).unwrap_or(now);
            let start = (*paid_off).max(earliest);
            #[expect(clippy::cast_precision_loss, reason = "a rate, not an account")]
            let cost = Duration::from_secs_f64((bytes as f64 / self.bytes_per_sec as f64).min(1e6));
            *paid_off = start + cost;
            start
        };
        tokio::time::sleep_until(start).await;
    }
}

/// The limits of one store, shared by all its clones.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    requests: Arc<Semaphore>,
    small: Arc<Semaphore>,
    upload: Option<Arc<Rate>>,
    download: Option<Arc<Rate>>,
}

impl Limits {
    /// `max_requests` of zero counts as one.
    pub fn new(max_requests: usize, upload: Option<u64>, download: Option<u64>) -> Self {
        let requests = max_requests.clamp(1, Semaphore::MAX_PERMITS / SMALL);
        Self {
            requests: Arc::new(Semaphore::new(requests)),
            small: Arc::new(Semaphore::new(requests * SMALL)),
            upload: upload.map(|rate| Arc::new(Rate::new(rate))),
            download: download.map(|rate| Arc::new(Rate::new(rate))),
        }
    }

    /// Waits for a place among the requests in flight.
    pub async fn request(&self) -> Option<SemaphorePermit<'_>> {
        // The semaphore is never closed, so this is always a permit.
        self.requests.acquire().await.ok()
    }

    /// The same for reads of a few KiB: they wait for the line, they do not fill it.
    pub async fn small_request(&self) -> Option<SemaphorePermit<'_>> {
        self.small.acquire().await.ok()
    }

    /// Waits until `bytes` may be sent.
    pub async fn upload(&self, bytes: u64) {
        if let Some(rate) = &self.upload {
            rate.take(bytes).await;
        }
    }

    /// What paces bodies that arrive.
    pub fn download(&self) -> Option<Arc<Rate>> {
        self.download.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_average_rate_holds_for_small_and_large_pieces() {
        for piece in [1_000_u64, 100_000, 5_000_000] {
            let rate = Rate::new(1_000_000);
            let start = Instant::now();
            for _ in 0..=(10_000_000 / piece) {
                rate.take(piece).await;
            }
            let took = start.elapsed().as_secs_f64();
            assert!((9.9..=10.1).contains(&took), "pieces of {piece}: {took}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn idle_time_saves_up_one_second_and_no_more() {
        let rate = Rate::new(1000);
        tokio::time::advance(Duration::from_hours(1)).await;
        let start = Instant::now();
        rate.take(1000).await;
        rate.take(1000).await;
        assert_eq!(start.elapsed(), Duration::ZERO);
        rate.take(1).await;
        assert!(start.elapsed() >= Duration::from_millis(999), "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn concurrent_takers_share_the_rate() {
        let rate = Arc::new(Rate::new(1000));
        let start = Instant::now();
        let takers: Vec<_> = (0..10)
            .map(|_| {
                let rate = rate.clone();
                tokio::spawn(async move { rate.take(1000).await })
            })
            .collect();
        for taker in takers {
            taker.await.unwrap();
        }
        let took = start.elapsed();
        assert!((Duration::from_millis(8990)..Duration::from_millis(9100)).contains(&took), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_requests_than_allowed_are_in_flight() {
        let limits = Limits::new(3, None, None);
        let held: Vec<_> = futures::future::join_all((0..3).map(|_| limits.request())).await;
        assert!(tokio::time::timeout(Duration::from_mins(1), limits.request()).await.is_err());
        drop(held);
        assert!(limits.request().await.is_some());
        assert!(Limits::new(0, None, None).request().await.is_some());
    }
}

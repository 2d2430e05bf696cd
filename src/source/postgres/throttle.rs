//! Reading no faster than allowed.

use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::event::Cancel;

/// Longest sleep before a request to stop is looked at.
const NAP: Duration = Duration::from_millis(100);
/// What may be read at once after a pause, in time at the full rate.
const BURST: Duration = Duration::from_millis(250);

/// A rate that several readers share. Clones are the same rate.
#[derive(Debug, Clone)]
pub struct Throttle {
    bytes_per_sec: u64,
    /// When everything that was read so far would have been read at exactly the rate.
    due: Arc<Mutex<Instant>>,
    cancel: Cancel,
}

impl Throttle {
    /// At most this many bytes a second (at least 1), averaged over a quarter of a second.
    #[must_use]
    pub fn new(bytes_per_sec: u64, cancel: Cancel) -> Self {
        Self { bytes_per_sec: bytes_per_sec.max(1), due: Arc::new(Mutex::new(Instant::now())), cancel }
    }

    /// Accounts for bytes that were read and sleeps until they were allowed. Ends early when cancelled.
    pub fn pace(&self, bytes: usize) {
        let until = {
            let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            // Time that was not used is not saved up beyond the burst.
            *due = (*due).max(now.checked_sub(BURST).unwrap_or(now)) + self.duration(bytes);
            *due
        };
        while !self.cancel.is_cancelled() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            thread::sleep(left.min(NAP));
        }
    }

    fn duration(&self, bytes: usize) -> Duration {
        let nanos = u128::try_from(bytes).unwrap_or(u128::MAX).saturating_mul(1_000_000_000) / u128::from(self.bytes_per_sec);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// A reader at the pace of a [`Throttle`].
pub struct Throttled<R> {
    inner: R,
    throttle: Throttle,
}

impl<R: Read> Throttled<R> {
    pub fn new(inner: R, throttle: Throttle) -> Self {
        Self { inner, throttle }
    }
}

impl<R: Read> Read for Throttled<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // No single read may take much longer than the burst: progress would stand still.
        let most = usize::try_from(self.throttle.bytes_per_sec / 4).unwrap_or(usize::MAX).max(1);
        let length = buffer.len().min(most);
        let read = self.inner.read(&mut buffer[..length])?;
        self.throttle.pace(read);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_shared_and_kept() {
        let throttle = Throttle::new(1_000_000, Cancel::default());
        let began = Instant::now();
        thread::scope(|scope| {
            for _ in 0..2 {
                let mut reader = Throttled::new(io::repeat(7).take(500_000), throttle.clone());
                scope.spawn(move || assert_eq!(io::copy(&mut reader, &mut io::sink()).unwrap(), 500_000));
            }
        });
        // A million bytes, less the burst of a quarter of a second.
        assert!(began.elapsed() >= Duration::from_millis(700), "{:?}", began.elapsed());
    }

    #[test]
    fn a_cancelled_throttle_does_not_sleep() {
        let cancel = Cancel::default();
        cancel.cancel();
        let began = Instant::now();
        Throttle::new(1, cancel).pace(1_000_000);
        assert!(began.elapsed() < Duration::from_secs(5));
    }
}

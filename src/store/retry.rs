//! Our own retries, above those of `object_store`: exponential backoff with full jitter, bounded by tries and by a deadline.
//!
//! `object_store` retries single HTTP requests; this layer repeats whole operations whose kind says that they may pass, and
//! gives the façade its pause between the tries of an ambiguous create.

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;

use crate::error::{Error, Kind, Result};

/// How often and how long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Policy {
    /// Most tries, the first included.
    pub tries: u32,
    /// Greatest pause before the second try; doubles with each further one.
    pub first_pause: Duration,
    /// No pause is longer.
    pub longest_pause: Duration,
    /// After this time since the start, no further try begins.
    pub deadline: Duration,
}

impl Policy {
    /// For servers. With the retries of single requests below, a refused connection is given up after about half a minute.
    pub const REMOTE: Self = Self {
        tries: 4,
        first_pause: Duration::from_millis(500),
        longest_pause: Duration::from_secs(10),
        deadline: Duration::from_mins(10),
    };
    /// For the local machine, where waiting seldom helps.
    pub const LOCAL: Self = Self {
        tries: 4,
        first_pause: Duration::from_millis(2),
        longest_pause: Duration::from_millis(20),
        deadline: Duration::from_secs(10),
    };
}

/// The state of one operation's tries.
#[derive(Debug)]
pub(crate) struct Tries {
    policy: Policy,
    started: Instant,
    done: u32,
}

impl Tries {
    /// Starts the clock.
    pub fn new(policy: Policy) -> Self {
        Self { policy, started: Instant::now(), done: 0 }
    }

    /// Notes a failed try. Waits and answers `true`, or answers `false` at once when this was the last one.
    pub async fn again(&mut self) -> bool {
        self.done += 1;
        if self.done >= self.policy.tries || self.started.elapsed() >= self.policy.deadline {
            return false;
        }
        let factor = 1_u32 << (self.done - 1).min(16);
        let most = self.policy.first_pause.saturating_mul(factor).min(self.policy.longest_pause);
        tokio::time::sleep(jitter(most)).await;
        true
    }
}

/// Between half of `most` and `most`, so that many clients do not come back together.
fn jitter(most: Duration) -> Duration {
    // No randomness is no reason to fail: the pause is then the longest.
    let share = getrandom::u32().map_or(1.0, |r| f64::from(r) / f64::from(u32::MAX));
    most.mul_f64(f64::midpoint(1.0, share))
}

/// Repeats `operation` while its error may pass. `note` hears of each repetition.
pub(crate) async fn run<T, F>(policy: Policy, note: impl Fn(&Error), mut operation: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let mut tries = Tries::new(policy);
    loop {
        match operation().await {
            Err(error) if error.kind() == Kind::Unavailable => {
                if !tries.again().await {
                    return Err(error);
                }
                note(&error);
            }
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    async fn tries_of(kind: Kind, fail: u32) -> (u32, Result<u32>, Duration) {
        let calls = Cell::new(0);
        let start = Instant::now();
        let result = run(
            Policy::REMOTE,
            |_| {},
            || async {
                calls.set(calls.get() + 1);
                if calls.get() <= fail { Err(Error::new(kind, "no")) } else { Ok(calls.get()) }
            },
        )
        .await;
        (calls.get(), result, start.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_pass_is_repeated_with_growing_pauses_and_then_given_up() {
        let (calls, result, took) = tries_of(Kind::Unavailable, 2).await;
        assert_eq!((calls, result.unwrap()), (3, 3));
        assert!((Duration::from_millis(750)..=Duration::from_millis(1510)).contains(&took), "{took:?}");
        let (calls, result, took) = tries_of(Kind::Unavailable, 99).await;
        assert_eq!((calls, result.unwrap_err().kind()), (4, Kind::Unavailable));
        assert!(took <= Duration::from_millis(3510), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_pass_is_not_repeated() {
        for kind in [Kind::Failed, Kind::NotFound, Kind::AlreadyExists, Kind::NoSpace] {
            let (calls, result, took) = tries_of(kind, 1).await;
            assert_eq!((calls, result.unwrap_err().kind(), took), (1, kind, Duration::ZERO));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn no_try_begins_after_the_deadline() {
        let mut tries = Tries::new(Policy::REMOTE);
        tokio::time::advance(Policy::REMOTE.deadline).await;
        assert!(!tries.again().await);
    }
}

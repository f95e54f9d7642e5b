// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Rate limiting by token buckets, of bytes and of requests.
//!
//! A bucket holds at most its burst and is refilled at its rate. A request is let in while the bucket is not empty,
//! and pays what it turns out to cost; the debt is waited for by those after it. So a request larger than the
//! burst passes too, and over any stretch of time no more passes than burst, rate times time, and one request.
//!
//! The queues of a device share its buckets, and a reset does not fill them. Queues that are served by threads of their own may
//! each let in the one request that is beyond. What is limited pays when it begins, so that requests under way together
//! do not all pass at the price of one.
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use vmm_sys_util::timerfd::TimerFd;

/// A rate, and how much may come at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rate {
    /// Tokens that [`per`](Self::per) brings. Not 0.
    pub tokens: u64,
    /// In which time. Not 0; more than 2^60 nanoseconds, which are 36 years, count as those.
    pub per: Duration,
    /// Tokens that a full bucket holds. Not 0.
    pub burst: u64,
}

impl Rate {
    /// A rate whose burst is what one second brings.
    pub fn per_second(per_second: u64) -> Self {
        Self {
            tokens: per_second,
            per: Duration::from_secs(1),
            burst: per_second,
        }
    }
}

/// What a device may do in a time, all its queues together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Bytes of data.
    pub bytes: Option<Rate>,
    /// Requests or packets.
    pub requests: Option<Rate>,
}

/// One bucket. Time is a parameter: any clock that does not run backwards.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    rate: Rate,
    /// Parts that a token has: as many as the rate's time has nanoseconds, so that each nanosecond brings as many parts as that
    /// time brings tokens, and nothing is rounded however slow the rate is.
    parts: i128,
    /// In parts of a token.
    level: i128,
    at: Duration,
}

/// The time of all buckets of devices: since the first was asked for, or, in a test, as its clock says.
fn now() -> Duration {
    static START: OnceLock<Instant> = OnceLock::new();
    #[cfg(feature = "fake")]
    if let Some(now) = crate::fake::Clock::now() {
        return now;
    }
    START.get_or_init(Instant::now).elapsed()
}

/// Nanoseconds beyond which no time is told from another: all sums of parts fit.
const LONGEST: u128 = 1 << 60;

/// `time` in nanoseconds, at most [`LONGEST`] of them.
fn nanoseconds(time: Duration) -> i128 {
    i128::try_from(time.as_nanos().min(LONGEST)).unwrap_or(0)
}

impl TokenBucket {
    /// A full bucket at time `now`. Tokens, a time in nanoseconds or a burst of 0 count as 1.
    pub fn new(rate: Rate, now: Duration) -> Self {
        let rate = Rate {
            tokens: rate.tokens.max(1),
            per: rate.per.max(Duration::from_nanos(1)),
            burst: rate.burst.max(1),
        };
        let parts = nanoseconds(rate.per);
        Self {
            rate,
            parts,
            level: parts.saturating_mul(rate.burst.into()),
            at: now,
        }
    }

    /// How long until the bucket is not empty; zero if it is not.
    pub fn wait(&mut self, now: Duration) -> Duration {
        self.refill(now);
        if self.level > 0 {
            return Duration::ZERO;
        }
        // How much it lacks of the first token, which is more than 0: it is empty.
        let missing = self.parts.saturating_sub(self.level).unsigned_abs();
        // Rounded up: at the end of it the bucket is not empty. The rate is not 0.
        let nanoseconds = missing.div_ceil(self.rate.tokens.into());
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }

    /// Pays `tokens`, into debt if need be.
    pub fn pay(&mut self, tokens: u64) {
        // A debt that no number says is the largest that one does.
        let price = self.parts.saturating_mul(tokens.into());
        self.level = self.level.saturating_sub(price);
    }

    fn refill(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.at);
        self.at = self.at.max(now);
        // At most 2^64 parts in each of 2^60 nanoseconds, and never above the burst: nothing saturates.
        let brought = nanoseconds(passed).saturating_mul(self.rate.tokens.into());
        let full = self.parts.saturating_mul(self.rate.burst.into());
        self.level = self.level.saturating_add(brought).min(full);
    }
}

/// What the queues of a device may do together in a time. It is the device's own, so that no reset fills the buckets; a
/// device that is restored begins with full ones, as a new one does.
#[derive(Clone, Debug)]
pub(crate) struct Allowance(Option<Arc<Mutex<Buckets>>>);

#[derive(Debug)]
struct Buckets {
    bytes: Option<TokenBucket>,
    requests: Option<TokenBucket>,
}

impl Allowance {
    /// Full buckets.
    pub(crate) fn new(limits: Limits) -> Self {
        if limits == Limits::default() {
            return Self(None);
        }
        let now = now();
        let bucket = |rate: Rate| TokenBucket::new(rate, now);
        Self(Some(Arc::new(Mutex::new(Buckets {
            bytes: limits.bytes.map(bucket),
            requests: limits.requests.map(bucket),
        }))))
    }

    /// The limiter of one of the queues, if there is something to limit.
    pub(crate) fn limiter(&self) -> std::io::Result<Option<Limiter>> {
        let Some(buckets) = &self.0 else {
            return Ok(None);
        };
        Ok(Some(Limiter {
            buckets: Arc::clone(buckets),
            timer: TimerFd::new()?,
        }))
    }
}

impl Buckets {
    /// How long until neither is empty.
    fn wait(&mut self) -> Duration {
        let now = now();
        let buckets = [&mut self.bytes, &mut self.requests];
        let wait = buckets.into_iter().flatten().map(|bucket| bucket.wait(now));
        wait.max().unwrap_or_default()
    }
}

/// The limiter of one queue: the device's buckets, and a timer that becomes readable when the queue may try again.
#[derive(Debug)]
pub(crate) struct Limiter {
    buckets: Arc<Mutex<Buckets>>,
    timer: TimerFd,
}

impl Limiter {
    pub(crate) fn source(&self) -> RawFd {
        self.timer.as_raw_fd()
    }

    /// Whether the queue may go on. If not, the timer says when to ask again: another queue may have been quicker then.
    pub(crate) fn allows(&mut self) -> bool {
        let wait = self.buckets().wait();
        match wait {
            Duration::ZERO => true,
            // A timer that cannot be set must not stop the queue.
            wait => self.timer.reset(wait, None).is_err(),
        }
    }

    /// Pays for one request and its bytes.
    pub(crate) fn pay(&self, bytes: u64) {
        let mut buckets = self.buckets();
        if let Some(bucket) = &mut buckets.bytes {
            bucket.pay(bytes);
        }
        if let Some(bucket) = &mut buckets.requests {
            bucket.pay(1);
        }
    }

    fn buckets(&self) -> MutexGuard<'_, Buckets> {
        // Whatever a panic left of two numbers is a level.
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_full_bucket_empties_and_refills() {
        let second = Duration::from_secs(1);
        let rate = Rate {
            burst: 10,
            ..Rate::per_second(100)
        };
        let mut bucket = TokenBucket::new(rate, second);
        for _ in 0..10 {
            assert_eq!(bucket.wait(second), Duration::ZERO);
            bucket.pay(1);
        }
        assert_eq!(bucket.wait(second), Duration::from_millis(10));
        assert_eq!(
            bucket.wait(second + Duration::from_millis(10)),
            Duration::ZERO
        );
        // A debt of 49 tokens, and one to go on with.
        bucket.pay(50);
        assert_eq!(
            bucket.wait(second + Duration::from_millis(10)),
            Duration::from_millis(500)
        );
        // It never holds more than its burst.
        bucket.wait(100 * second);
        bucket.pay(10);
        assert_ne!(bucket.wait(100 * second), Duration::ZERO);
    }

    #[test]
    fn a_clock_that_jumps_does_no_harm() {
        let rate = Rate::per_second(u64::MAX);
        let mut bucket = TokenBucket::new(rate, Duration::from_secs(5));
        for _ in 0..10 {
            bucket.pay(u64::MAX);
        }
        assert_ne!(bucket.wait(Duration::ZERO), Duration::ZERO);
        assert_eq!(bucket.wait(Duration::MAX), Duration::ZERO);
        let nothing = Rate {
            tokens: 0,
            per: Duration::ZERO,
            burst: 0,
        };
        assert_eq!(
            TokenBucket::new(nothing, Duration::ZERO).wait(Duration::ZERO),
            Duration::ZERO
        );
    }

    #[test]
    fn slow_rates_are_not_rounded() {
        let seconds = Duration::from_secs;
        // Two a minute and a second: not one a second, nor one in 30 seconds.
        let rate = Rate {
            tokens: 2,
            per: seconds(61),
            burst: 2,
        };
        let mut bucket = TokenBucket::new(rate, Duration::ZERO);
        bucket.pay(2);
        assert_eq!(bucket.wait(Duration::ZERO), Duration::from_millis(30_500));
        bucket.pay(1);
        assert_eq!(bucket.wait(Duration::ZERO), seconds(61));
        // The slowest there is, deep in debt, and the quickest.
        let slowest = Rate {
            tokens: 1,
            per: Duration::MAX,
            burst: u64::MAX,
        };
        let mut bucket = TokenBucket::new(slowest, Duration::ZERO);
        bucket.pay(u64::MAX);
        assert_eq!(bucket.wait(Duration::ZERO), Duration::from_nanos(1 << 60));
        bucket.pay(u64::MAX);
        bucket.pay(u64::MAX);
        assert_eq!(bucket.wait(Duration::ZERO), Duration::from_nanos(u64::MAX));
        let quickest = Rate {
            tokens: u64::MAX,
            per: Duration::from_nanos(1),
            burst: 1,
        };
        let mut bucket = TokenBucket::new(quickest, Duration::ZERO);
        bucket.pay(u64::MAX);
        assert_eq!(bucket.wait(Duration::ZERO), Duration::from_nanos(1));
        assert_eq!(bucket.wait(Duration::from_nanos(1)), Duration::ZERO);
    }

    proptest! {
        /// What passes in a time is at most the burst, the rate times the time, and one request.
        #[test]
        fn no_more_passes_than_was_agreed(
            tokens in 1u64..1_000_000,
            per in 1u64..100_000_000_000,
            burst in 1u64..10_000,
            requests in prop::collection::vec((1u64..5_000, 0u64..20_000_000), 1..200),
        ) {
            let rate = Rate { tokens, per: Duration::from_nanos(per), burst };
            let mut bucket = TokenBucket::new(rate, Duration::ZERO);
            let (mut now, mut passed, mut largest) = (Duration::ZERO, 0u128, 0);
            for (cost, pause) in requests {
                now += Duration::from_nanos(pause);
                if bucket.wait(now) == Duration::ZERO {
                    bucket.pay(cost);
                    passed += u128::from(cost);
                    largest = largest.max(cost);
                }
                let most = u128::from(burst) + u128::from(tokens) * now.as_nanos() / u128::from(per);
                prop_assert!(passed <= most + u128::from(largest), "{passed} by {now:?}");
            }
        }

        /// And who waits as long as it is told gets on.
        #[test]
        fn a_wait_is_enough(
            tokens in 1u64..1_000_000_000,
            per in 1u64..100_000_000_000,
            burst in 1u64..1000,
            cost in 1u64..1_000_000,
        ) {
            let rate = Rate { tokens, per: Duration::from_nanos(per), burst };
            let mut bucket = TokenBucket::new(rate, Duration::ZERO);
            bucket.pay(cost);
            let wait = bucket.wait(Duration::ZERO);
            prop_assert_eq!(bucket.wait(wait), Duration::ZERO);
        }
    }
}

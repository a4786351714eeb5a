//! A rate limit: a token bucket.

use std::time::{Duration, Instant};

/// The bucket's capacity, as a share of what one second adds. Small, so that no second exceeds the
/// limit by much; not zero, because timers are coarse.
const BURST: f64 = 0.1;

/// How many deliveries of an endpoint may be sent now. Only the holder of the endpoint's lease has
/// the bucket.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Bucket {
    per_second: f64,
    tokens: f64,
    at: Instant,
}

fn capacity(per_second: f64) -> f64 {
    (per_second * BURST).max(1.0)
}

impl Bucket {
    /// The bucket as the last holder left it: its tokens, and how long ago. Full if there was none.
    pub(crate) fn new(per_second: f64, left: Option<(f64, Duration)>, now: Instant) -> Self {
        let per_second = per_second.max(1.0);
        let full = capacity(per_second);
        let tokens = left.map_or(full, |(tokens, ago)| {
            ago.as_secs_f64().mul_add(per_second, tokens).min(full)
        });
        Self {
            per_second,
            tokens: tokens.max(0.0),
            at: now,
        }
    }

    /// Fills at another rate from now on.
    pub(crate) fn set_rate(&mut self, per_second: f64, now: Instant) {
        self.fill(now);
        self.per_second = per_second.max(1.0);
        self.tokens = self.tokens.min(capacity(self.per_second));
    }

    fn fill(&mut self, now: Instant) {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        let full = capacity(self.per_second);
        self.tokens = since.mul_add(self.per_second, self.tokens).min(full);
        self.at = now;
    }

    /// Whether a delivery may be sent now; else when. Takes no token.
    pub(crate) fn ready(&mut self, now: Instant) -> Result<(), Instant> {
        self.fill(now);
        // A rounding error must not cost another turn.
        if self.tokens >= 1.0 - 1e-6 {
            return Ok(());
        }
        let wait = Duration::from_secs_f64((1.0 - self.tokens) / self.per_second);
        Err(now + wait.max(Duration::from_millis(1)))
    }

    /// Takes a token: a delivery is sent.
    pub(crate) fn take(&mut self) {
        self.tokens = (self.tokens - 1.0).max(0.0);
    }

    /// The tokens in the bucket.
    pub(crate) fn tokens(&mut self, now: Instant) -> f64 {
        self.fill(now);
        self.tokens
    }

    /// The rate, deliveries a second.
    pub(crate) const fn per_second(&self) -> f64 {
        self.per_second
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many deliveries are sent `during` a time if there is always one more.
    fn sent(bucket: &mut Bucket, mut now: Instant, during: Duration) -> u32 {
        let end = now + during;
        let mut count = 0;
        while now < end {
            match bucket.ready(now) {
                Ok(()) => {
                    bucket.take();
                    count += 1;
                }
                Err(later) => {
                    assert!(later > now);
                    now = later;
                }
            }
        }
        count
    }

    #[test]
    fn no_second_sees_more_than_the_limit_and_a_tenth() {
        for limit in [1, 2, 5, 10, 100, 2500] {
            let now = Instant::now();
            let mut bucket = Bucket::new(limit.into(), None, now);
            let first = sent(&mut bucket, now, Duration::from_secs(1));
            assert!(first <= limit + limit / 10 + 1, "{first} of {limit}");
            let long = sent(
                &mut bucket,
                now + Duration::from_secs(1),
                Duration::from_secs(9),
            );
            assert!(
                (8 * limit..=9 * limit + 1).contains(&long),
                "{long} of {limit}"
            );
        }
    }

    #[test]
    fn what_one_holder_took_the_next_does_not_have() {
        let now = Instant::now();
        let mut bucket = Bucket::new(10.0, None, now);
        bucket.take();
        let left = bucket.tokens(now);
        let mut next = Bucket::new(10.0, Some((left, Duration::ZERO)), now);
        assert!(next.ready(now).is_err());
        assert!(next.ready(now + Duration::from_millis(101)).is_ok());
        let mut later = Bucket::new(10.0, Some((left, Duration::from_secs(1))), now);
        assert!(later.ready(now).is_ok());
    }

    #[test]
    fn another_rate_counts_from_its_moment_on() {
        let now = Instant::now();
        let mut bucket = Bucket::new(1.0, None, now);
        bucket.take();
        bucket.set_rate(100.0, now);
        assert!(bucket.ready(now).is_err());
        assert!(bucket.ready(now + Duration::from_millis(11)).is_ok());
    }
}

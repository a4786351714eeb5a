//! Time: milliseconds since the Unix epoch in UTC, and the clocks that return it.

use std::{
    fmt,
    sync::atomic::{AtomicI64, Ordering},
    time::{Duration, Instant},
};

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// A point in time in milliseconds, UTC. Both database engines store the same integer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

/// The last time that RFC 3339 can write with a four-digit year.
const MAX_MS: i64 = 253_402_300_799_999;

impl Timestamp {
    /// From milliseconds since the Unix epoch, clamped to the years 1970 to 9999.
    #[must_use]
    pub const fn from_ms(ms: i64) -> Self {
        if ms < 0 {
            Self(0)
        } else if ms > MAX_MS {
            Self(MAX_MS)
        } else {
            Self(ms)
        }
    }

    /// Milliseconds since the Unix epoch.
    #[must_use]
    pub const fn ms(self) -> i64 {
        self.0
    }

    /// Whole seconds since the Unix epoch.
    #[must_use]
    pub const fn seconds(self) -> i64 {
        self.0 / 1000
    }

    /// `self + duration`, saturating at the end of the year 9999.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        let ms = i64::try_from(duration.as_millis()).unwrap_or(MAX_MS);
        Self::from_ms(self.0.saturating_add(ms))
    }

    /// `self - duration`, saturating at the epoch.
    #[must_use]
    pub fn minus(self, duration: Duration) -> Self {
        let ms = i64::try_from(duration.as_millis()).unwrap_or(MAX_MS);
        Self::from_ms(self.0.saturating_sub(ms))
    }

    /// How long from `earlier` to `self`; zero if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0 - earlier.0).unwrap_or(0))
    }

    /// Parses RFC 3339 (§5.6) with any offset. Fractions of a millisecond are cut off.
    ///
    /// # Errors
    /// `None` if the text is no such time, or the time is before 1970.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let at = OffsetDateTime::parse(text, &Rfc3339).ok()?;
        let ms = i64::try_from(at.unix_timestamp_nanos() / 1_000_000).ok()?;
        (0..=MAX_MS).contains(&ms).then_some(Self(ms))
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339 in UTC with exactly three decimals, as every answer shows it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = OffsetDateTime::from_unix_timestamp(self.seconds()).map_err(|_| fmt::Error)?;
        // Nearly every answer contains times, and `write!` with seven numbers takes far longer.
        let mut text = *b"0000-00-00T00:00:00.000Z";
        let mut put = |end: usize, mut number: u32| {
            for digit in text[..end].iter_mut().rev() {
                if number == 0 {
                    break;
                }
                *digit += (number % 10) as u8;
                number /= 10;
            }
        };
        put(4, at.year().unsigned_abs());
        put(7, u8::from(at.month()).into());
        put(10, at.day().into());
        put(13, at.hour().into());
        put(16, at.minute().into());
        put(19, at.second().into());
        put(23, u32::try_from(self.0 % 1000).unwrap_or_default());
        f.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

/// A source of the present time. Tests have their own.
pub trait Clock: Send + Sync + 'static {
    /// The present time.
    fn now(&self) -> Timestamp;

    /// Whether this clock ignores changes of the machine's clock until it is steered.
    fn is_steady(&self) -> bool {
        false
    }

    /// Sets this clock to `to`, if it can be set.
    fn steer(&self, _to: Timestamp) {}
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that reads the machine's clock"
    )]
    fn now(&self) -> Timestamp {
        let since_epoch = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        Timestamp::from_ms(i64::try_from(since_epoch.as_millis()).unwrap_or(MAX_MS))
    }
}

/// A clock that starts with the machine's time and then runs by itself. Changes of the machine's
/// clock have no effect until this clock is steered.
#[derive(Debug)]
pub struct SteadyClock {
    began: Instant,
    at_beginning: AtomicI64,
}

impl SteadyClock {
    /// A clock that starts with the machine's present time, to the millisecond where the machine
    /// lets this thread read both clocks within one. A thread that has to wait in between would
    /// start a clock that is ahead by as long for good, so the closest of some readings counts.
    #[must_use]
    pub fn new() -> Self {
        const READINGS: usize = 16;
        let reading = |_| {
            let before = Instant::now();
            let at = SystemClock.now();
            (before.elapsed(), before, at)
        };
        let (_, began, at) = (0..READINGS)
            .map(reading)
            .min_by_key(|(took, ..)| *took)
            .unwrap_or_else(|| reading(0));
        Self {
            began,
            at_beginning: AtomicI64::new(at.0),
        }
    }

    fn elapsed_ms(&self) -> i64 {
        i64::try_from(self.began.elapsed().as_millis()).unwrap_or(MAX_MS)
    }
}

impl Default for SteadyClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SteadyClock {
    fn now(&self) -> Timestamp {
        let at_beginning = self.at_beginning.load(Ordering::Relaxed);
        Timestamp::from_ms(at_beginning.saturating_add(self.elapsed_ms()))
    }

    fn is_steady(&self) -> bool {
        true
    }

    fn steer(&self, to: Timestamp) {
        let at_beginning = to.0.saturating_sub(self.elapsed_ms());
        self.at_beginning.store(at_beginning, Ordering::Relaxed);
    }
}

/// A clock for tests, which moves only when it is told to.
#[derive(Debug)]
pub struct ManualClock(AtomicI64);

impl ManualClock {
    /// A clock that shows `at`.
    #[must_use]
    pub const fn at(at: Timestamp) -> Self {
        Self(AtomicI64::new(at.0))
    }

    /// Moves the clock forward.
    pub fn advance(&self, by: Duration) {
        let ms = i64::try_from(by.as_millis()).unwrap_or(MAX_MS);
        self.0.fetch_add(ms, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_ms(self.0.load(Ordering::SeqCst))
    }

    fn steer(&self, to: Timestamp) {
        self.0.store(to.0, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn shows_three_decimals_in_utc() {
        let at = Timestamp::parse("2026-02-03T04:05:06.7891+01:00").unwrap();
        assert_eq!(at.to_string(), "2026-02-03T03:05:06.789Z");
    }

    #[test]
    fn a_steady_clock_goes_on_from_where_it_is_steered_to() {
        let clock = SteadyClock::new();
        assert!(clock.now() >= clock.now().minus(Duration::from_secs(1)));
        let to = Timestamp::from_ms(1_000_000);
        clock.steer(to);
        let now = clock.now();
        assert!(now >= to && now < to.plus(Duration::from_mins(1)));
    }

    proptest! {
        #[test]
        fn what_is_shown_parses_back(ms in 0..=MAX_MS) {
            let at = Timestamp::from_ms(ms);
            prop_assert_eq!(Timestamp::parse(&at.to_string()), Some(at));
        }
    }
}

//! Limits the rate of late deliveries while other deliveries are on time.
//!
//! Deliveries on time never wait behind a backlog, but sending a backlog takes processors, disk and
//! database from everything else. So while other deliveries are on time, late ones have a rate. The
//! rate rises as long as the dispatcher's loop wakes up when it planned to, and falls when the loop
//! wakes up too late, because then the processors are busy. Without deliveries on time there is no
//! limit, and what is sent then does not count against the rate later.

use std::time::{Duration, Instant};

use domain::Timestamp;

/// A delivery that has been due for longer than this is late.
const LATE: Duration = Duration::from_secs(2);
/// How long after the last delivery on time, or the last late one, the other kind counts as alone.
const ALONE_AFTER: Duration = Duration::from_millis(200);
/// How long after it is planned the loop's next wake-up is measured.
const MEASURE_AFTER: Duration = Duration::from_millis(5);
/// A wake-up that comes later than planned by more than this shows that the processors are busy.
/// Timers count in milliseconds.
const DELAY_MAX: Duration = Duration::from_millis(2);
/// Late deliveries a second: the lowest rate, however busy the machine is; the first; the highest.
const RATE_MIN: f64 = 300.0;
const RATE_FIRST: f64 = 600.0;
const RATE_MAX: f64 = 10_000.0;
/// What one timely wake-up adds to the rate, deliveries a second.
const INCREASE: f64 = 4.0;
/// What one late wake-up multiplies the rate by.
const DECREASE_FACTOR: f64 = 0.75;
/// How many late deliveries may be sent at once.
const BURST: f64 = 4.0;

/// Whether a delivery that has been due since `due` is late.
pub(crate) fn is_late(due: Timestamp, wall: Timestamp) -> bool {
    wall.since(due) > LATE
}

fn is_past(at: Instant, now: Instant) -> bool {
    now.saturating_duration_since(at) > ALONE_AFTER
}

/// The rate of late deliveries, and when the next may be sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BacklogThrottle {
    per_second: f64,
    /// How many may be sent now; never negative, so that what is sent alone leaves no debt.
    tokens: f64,
    filled: Instant,
    /// When a delivery on time was last sent.
    on_time: Option<Instant>,
    /// When a late delivery was last sent.
    late: Option<Instant>,
    /// When the loop is planned to wake up for the next measurement.
    measure_at: Option<Instant>,
}

impl BacklogThrottle {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            per_second: RATE_FIRST,
            tokens: BURST,
            filled: now,
            on_time: None,
            late: None,
            measure_at: None,
        }
    }

    /// Whether no delivery on time was sent within the last [`ALONE_AFTER`].
    fn alone(&self, now: Instant) -> bool {
        self.on_time.is_none_or(|at| is_past(at, now))
    }

    /// A delivery on time is sent.
    pub(crate) fn on_time_sent(&mut self, now: Instant) {
        self.on_time = Some(now);
    }

    /// A late delivery is sent.
    pub(crate) fn late_sent(&mut self, now: Instant) {
        if !self.alone(now) {
            self.fill(now);
            self.tokens = (self.tokens - 1.0).max(0.0);
        }
        self.late = Some(now);
    }

    fn fill(&mut self, now: Instant) {
        let since = now.saturating_duration_since(self.filled).as_secs_f64();
        self.tokens = since.mul_add(self.per_second, self.tokens).min(BURST);
        self.filled = self.filled.max(now);
    }

    /// Whether a late delivery may be sent now; else when.
    pub(crate) fn ready(&mut self, now: Instant) -> Result<(), Instant> {
        self.fill(now);
        // A rounding error must not cost another turn.
        if self.alone(now) || self.tokens >= 1.0 - 1e-6 {
            return Ok(());
        }
        let wait = Duration::from_secs_f64((1.0 - self.tokens) / self.per_second);
        Err(now + wait.max(Duration::from_millis(1)))
    }

    /// Whether a late delivery has waited for so long that it goes first. Without this, deliveries
    /// on time could take every place for ever.
    pub(crate) fn is_late_owed(&self, now: Instant) -> bool {
        let waited = |at| now.saturating_duration_since(at).as_secs_f64() * RATE_MIN > 1.0;
        !self.alone(now) && self.late.is_none_or(waited)
    }

    /// When the loop is to wake up for a measurement, if at all. `waits` says whether a late
    /// delivery waits. A backlog that has just sent and lacks only a free slot counts, too.
    pub(crate) fn next_measurement(&mut self, waits: bool, now: Instant) -> Option<Instant> {
        let some = waits || self.late.is_some_and(|at| !is_past(at, now));
        if !some || self.alone(now) {
            self.measure_at = None;
        } else if self.measure_at.is_none() {
            self.measure_at = Some(now + MEASURE_AFTER);
        }
        self.measure_at
    }

    /// The loop woke up. How late it woke up shows how busy the processors are.
    pub(crate) fn woke(&mut self, now: Instant) {
        let Some(meant) = self.measure_at.filter(|meant| *meant <= now) else {
            return;
        };
        self.measure_at = None;
        self.fill(now);
        self.per_second = if now.saturating_duration_since(meant) > DELAY_MAX {
            (self.per_second * DECREASE_FACTOR).max(RATE_MIN)
        } else {
            (self.per_second + INCREASE).min(RATE_MAX)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// How many late deliveries are sent `during` a time, with one on time every ten milliseconds.
    /// The loop wakes up by `later` later than planned.
    fn sent(
        backlog: &mut BacklogThrottle,
        now: &mut Instant,
        during: Duration,
        later: Duration,
    ) -> u32 {
        let end = *now + during;
        let (mut count, mut on_time) = (0, *now);
        while *now < end {
            backlog.woke(*now);
            if *now >= on_time {
                backlog.on_time_sent(*now);
                on_time += 10 * MS;
            }
            while backlog.ready(*now).is_ok() {
                backlog.late_sent(*now);
                count += 1;
            }
            let look = backlog.next_measurement(true, *now);
            *now = look.map_or(*now + MS, |look| {
                if look <= *now + MS {
                    look + later
                } else {
                    *now + MS
                }
            });
        }
        count
    }

    #[test]
    fn what_ran_alone_leaves_no_debt() {
        let mut now = Instant::now();
        let mut backlog = BacklogThrottle::new(now);
        for _ in 0..100_000 {
            assert_eq!(backlog.ready(now), Ok(()), "alone nothing holds it up");
            backlog.late_sent(now);
            now += Duration::from_micros(100);
        }
        backlog.on_time_sent(now);
        assert_eq!(backlog.ready(now), Ok(()), "it goes on at its pace");
        let second = Duration::from_secs(1);
        let count = sent(&mut backlog, &mut now, second, Duration::ZERO);
        assert!(f64::from(count) >= RATE_FIRST, "{count}");
    }

    #[test]
    fn under_strain_it_goes_slowly_and_never_stands_still() {
        let mut now = Instant::now();
        let mut backlog = BacklogThrottle::new(now);
        let (second, much) = (Duration::from_secs(1), 20 * MS);
        sent(&mut backlog, &mut now, second, much);
        // Woken so seldom it can't send more often; what it may send does not grow meanwhile.
        let slow = f64::from(sent(&mut backlog, &mut now, 10 * second, 3 * MS)) / 10.0;
        assert!(
            (RATE_MIN * 0.9..=RATE_MIN * 1.1).contains(&slow),
            "{slow} a second"
        );
    }

    #[test]
    fn with_room_it_gets_ever_faster_and_under_strain_slower_again() {
        let mut now = Instant::now();
        let mut backlog = BacklogThrottle::new(now);
        let second = Duration::from_secs(1);
        sent(&mut backlog, &mut now, 2 * second, Duration::ZERO);
        let fast = sent(&mut backlog, &mut now, second, Duration::ZERO);
        assert!(f64::from(fast) > 2.0 * RATE_FIRST, "{fast}");
        sent(&mut backlog, &mut now, second / 2, 5 * MS);
        let slow = sent(&mut backlog, &mut now, second, 5 * MS);
        assert!(slow < fast / 2, "{slow} after {fast}");
    }

    #[test]
    fn one_that_waits_behind_what_is_on_time_gets_its_turn() {
        let now = Instant::now();
        let mut backlog = BacklogThrottle::new(now);
        assert!(!backlog.is_late_owed(now), "alone it need not push in");
        backlog.on_time_sent(now);
        backlog.late_sent(now);
        assert!(!backlog.is_late_owed(now + MS));
        assert!(backlog.is_late_owed(now + 4 * MS));
    }

    #[test]
    fn a_loop_is_woken_only_while_something_late_waits_beside_others() {
        let now = Instant::now();
        let mut backlog = BacklogThrottle::new(now);
        assert_eq!(backlog.next_measurement(true, now), None, "alone");
        backlog.on_time_sent(now);
        assert_eq!(
            backlog.next_measurement(false, now),
            None,
            "nothing is late"
        );
        assert_eq!(
            backlog.next_measurement(true, now),
            Some(now + MEASURE_AFTER)
        );
        assert_eq!(
            backlog.next_measurement(true, now + MS),
            Some(now + MEASURE_AFTER)
        );
        backlog.woke(now + MS);
        let pace = |backlog: &BacklogThrottle| format!("{:.3}", backlog.per_second);
        let first = pace(&backlog);
        assert_eq!(
            first,
            format!("{RATE_FIRST:.3}"),
            "it was woken by something else"
        );
        backlog.woke(now + MEASURE_AFTER);
        assert_eq!(pace(&backlog), format!("{:.3}", RATE_FIRST + INCREASE));
        let later = now + 2 * ALONE_AFTER;
        assert_eq!(backlog.next_measurement(true, later), None, "alone again");
        backlog.on_time_sent(later);
        backlog.late_sent(later);
        assert_eq!(
            backlog.next_measurement(false, later),
            Some(later + MEASURE_AFTER)
        );
        let last = later + 2 * ALONE_AFTER;
        backlog.on_time_sent(last);
        assert_eq!(backlog.next_measurement(false, last), None);
    }
}

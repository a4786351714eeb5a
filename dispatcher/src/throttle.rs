//! The rate at which a receiver takes deliveries, learned from its refusals.
//!
//! A receiver that answers 429 or 503 with `Retry-After` (RFC 6585 §4, RFC 9110 §10.2.3) says how
//! long to wait, but not how many deliveries it takes after that. So the endpoint pauses, and then
//! goes on a little below the rate that the receiver took before it refused. The rate grows again
//! as the cube of the time since: slowly where the last refusal was, and fast beyond it.

use std::time::{Duration, Instant};

use crate::bucket::Bucket;

/// Successes are counted in windows of this length.
const WINDOW: Duration = Duration::from_secs(1);
/// The shortest pause; also that for a receiver which asks for none.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// The longest pause that a receiver can ask for.
pub(crate) const PAUSE_MAX: Duration = Duration::from_hours(24);
/// After this many pauses in a row without a success, each pause is at least twice as long as the
/// last, up to [`BACKOFF_MAX`].
const PAUSES_BEFORE_BACKOFF: u32 = 3;
/// See [`PAUSES_BEFORE_BACKOFF`].
const BACKOFF_MAX: Duration = Duration::from_mins(5);
/// The new rate after a refusal, as a share of the rate that the receiver took before it.
const BELOW: f64 = 0.95;
/// The least new rate, as a share of the last one, if the refusal comes within the first window.
const EARLY: f64 = 0.7;
/// Two refusals at rates that differ by less than this share come from the same limit.
const SAME: f64 = 0.3;
/// The time in which the rate doubles: at first, and at most. It doubles each time that the same
/// limit is met.
const SPAN: (Duration, Duration) = (Duration::from_secs(15), Duration::from_mins(5));
/// The limit is forgotten once the rate has grown to so many times its base.
const FORGOTTEN: f64 = 64.0;

/// The rate that is kept after a refusal.
#[derive(Clone, Copy, Debug)]
struct LearnedRate {
    /// Deliveries a second at the end of the pause.
    base: f64,
    /// The time in which the rate doubles.
    span: Duration,
    bucket: Bucket,
}

/// The pause and the rate of an endpoint's receiver.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Throttle {
    window_began: Instant,
    /// Successes in this window, and in the one before it.
    taken: (u32, u32),
    /// Pauses in a row without a success between them.
    pauses: u32,
    paused_until: Option<Instant>,
    learned: Option<LearnedRate>,
}

impl Throttle {
    pub(crate) const fn new(now: Instant) -> Self {
        Self {
            window_began: now,
            taken: (0, 0),
            pauses: 0,
            paused_until: None,
            learned: None,
        }
    }

    /// Continues a pause that the endpoint's last holder left.
    pub(crate) fn paused_for(&mut self, pause: Duration, now: Instant) {
        self.paused_until = Some(now + pause.min(PAUSE_MAX));
    }

    /// Forgets all limits, and ends the pause.
    pub(crate) fn reset(&mut self, now: Instant) {
        *self = Self::new(now);
    }

    /// What is left of the pause, if there is one.
    pub(crate) fn pause(&self, now: Instant) -> Option<Duration> {
        let until = self.paused_until.filter(|until| *until > now)?;
        Some(until.saturating_duration_since(now))
    }

    /// The rate, deliveries a second; `None` while no limit is known.
    pub(crate) fn per_second(&self) -> Option<f64> {
        self.learned.map(|rate| rate.bucket.per_second())
    }

    fn roll(&mut self, now: Instant) {
        let windows =
            now.saturating_duration_since(self.window_began).as_millis() / WINDOW.as_millis();
        match windows {
            0 => return,
            1 => self.taken = (0, self.taken.0),
            _ => self.taken = (0, 0),
        }
        self.window_began = now;
    }

    /// A delivery succeeded.
    pub(crate) fn succeeded(&mut self, now: Instant) {
        self.roll(now);
        self.taken.0 = self.taken.0.saturating_add(1);
        self.pauses = 0;
    }

    /// The receiver refused a delivery and asks for a pause of `asked`.
    pub(crate) fn refused(&mut self, asked: Duration, now: Instant) {
        let asked = asked.clamp(PAUSE_MIN, PAUSE_MAX);
        if self.pause(now).is_some() {
            // The delivery was under way when the pause began, and says nothing about the rate.
            self.paused_until = self.paused_until.max(Some(now + asked));
            return;
        }
        self.roll(now);
        self.pauses = self.pauses.saturating_add(1);
        let doublings = self.pauses.saturating_sub(PAUSES_BEFORE_BACKOFF).min(16);
        let backoff = (doublings > 0).then(|| PAUSE_MIN * (1 << doublings));
        let pause = asked.max(backoff.unwrap_or_default().min(BACKOFF_MAX));
        let resumes = now + pause;
        let counted = f64::from(self.taken.0.max(self.taken.1)) * BELOW;
        let running = self
            .paused_until
            .map(|at| now.saturating_duration_since(at));
        let early = running.is_some_and(|since| since < WINDOW);
        let last = self.per_second().filter(|_| early).unwrap_or_default();
        let base = counted.max(EARLY * last).max(1.0);
        let same = self
            .learned
            .filter(|rate| (rate.base - base).abs() < SAME * rate.base);
        let span = same.map_or(SPAN.0, |rate| (rate.span * 2).min(SPAN.1));
        // With one token: with a full bucket the first second would exceed the rate.
        let bucket = Bucket::new(base, Some((1.0, Duration::ZERO)), resumes);
        self.learned = Some(LearnedRate { base, span, bucket });
        self.paused_until = Some(resumes);
        (self.window_began, self.taken) = (resumes, (0, 0));
    }

    /// Whether a delivery may be sent now; else when. Takes no token.
    pub(crate) fn ready(&mut self, now: Instant) -> Result<(), Instant> {
        if let Some(until) = self.paused_until.filter(|until| *until > now) {
            return Err(until);
        }
        let (Some(resumed), Some(rate)) = (self.paused_until, &mut self.learned) else {
            return Ok(());
        };
        let spans = now.saturating_duration_since(resumed).as_secs_f64() / rate.span.as_secs_f64();
        let grown = 1.0 + spans.powi(3);
        if grown >= FORGOTTEN {
            self.learned = None;
            return Ok(());
        }
        rate.bucket.set_rate(rate.base * grown, now);
        rate.bucket.ready(now)
    }

    /// Takes a token: a delivery is sent.
    pub(crate) fn take(&mut self) {
        if let Some(rate) = &mut self.learned {
            rate.bucket.take();
        }
    }
}

#[cfg(test)]
mod tests;

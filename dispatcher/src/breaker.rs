//! A circuit breaker: after a run of failures, an endpoint gets single deliveries as probes until
//! one succeeds.

use std::time::{Duration, Instant};

/// Failures in a row that open the breaker.
pub(crate) const OPENS_AFTER: u32 = 10;
/// The pause before the first probe, doubled after each that fails, and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(5));
/// Pauses are spread by this much to either side.
const JITTER: f64 = 0.2;

/// Whether an endpoint's deliveries are sent, after what its last ones did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Breaker {
    /// Deliveries are sent. `failures` counts those in a row.
    Closed { failures: u32 },
    /// Nothing is sent before `until`; then one probe is.
    Open { failed_probes: u32, until: Instant },
    /// A probe is under way; its outcome decides.
    Probing { failed_probes: u32 },
}

/// Whether a delivery may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    Free,
    /// This one alone, as a probe.
    Probe,
    /// Not before this time.
    At(Instant),
    /// Not before the probe under way has ended.
    Shut,
}

fn pause(failed_probes: u32) -> Duration {
    let doubled = PAUSE.0.saturating_mul(1 << failed_probes.min(16));
    doubled.min(PAUSE.1).mul_f64(domain::random::jitter(JITTER))
}

impl Breaker {
    /// The breaker as the last holder of the endpoint left it.
    pub(crate) fn restored(failures: u32, probe_in: Option<Duration>, now: Instant) -> Self {
        if failures < OPENS_AFTER {
            return Self::Closed { failures };
        }
        Self::Open {
            failed_probes: failures - OPENS_AFTER,
            until: now + probe_in.unwrap_or_default().min(PAUSE.1),
        }
    }

    /// What is stored for the next holder: the failures in a row, and what is left of the pause.
    pub(crate) fn left(self, now: Instant) -> (u32, Option<Duration>) {
        match self {
            Self::Closed { failures } => (failures, None),
            Self::Open {
                failed_probes,
                until,
            } => (
                OPENS_AFTER.saturating_add(failed_probes),
                Some(until.saturating_duration_since(now)),
            ),
            Self::Probing { failed_probes } => (
                OPENS_AFTER.saturating_add(failed_probes),
                Some(Duration::ZERO),
            ),
        }
    }

    pub(crate) fn gate(self, now: Instant) -> Gate {
        match self {
            Self::Closed { .. } => Gate::Free,
            Self::Open { until, .. } if until > now => Gate::At(until),
            Self::Open { .. } => Gate::Probe,
            Self::Probing { .. } => Gate::Shut,
        }
    }

    /// A probe is sent.
    pub(crate) fn probes(&mut self) {
        if let Self::Open { failed_probes, .. } = *self {
            *self = Self::Probing { failed_probes };
        }
    }

    /// The probe was not made, so nothing is known: another may be sent at once.
    pub(crate) fn unprobed(&mut self, now: Instant) {
        if let Self::Probing { failed_probes } = *self {
            *self = Self::Open {
                failed_probes,
                until: now,
            };
        }
    }

    /// The next probe may be sent at once, and counts as the first.
    pub(crate) fn resume(&mut self, now: Instant) {
        *self = match *self {
            Self::Closed { .. } => Self::Closed { failures: 0 },
            Self::Open { .. } => Self::Open {
                failed_probes: 0,
                until: now,
            },
            Self::Probing { .. } => Self::Probing { failed_probes: 0 },
        };
    }

    /// A delivery succeeded: the endpoint works.
    pub(crate) fn succeeded(&mut self) {
        *self = Self::Closed { failures: 0 };
    }

    /// A delivery failed. One that was under way when the breaker opened changes nothing.
    pub(crate) fn failed(&mut self, probe: bool, now: Instant) {
        *self = match *self {
            Self::Closed { failures } if failures + 1 < OPENS_AFTER => Self::Closed {
                failures: failures + 1,
            },
            Self::Closed { .. } => Self::Open {
                failed_probes: 0,
                until: now + pause(0),
            },
            Self::Probing { failed_probes } if probe => Self::Open {
                failed_probes: failed_probes.saturating_add(1),
                until: now + pause(failed_probes.saturating_add(1)),
            },
            same => same,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(now: Instant) -> Breaker {
        let mut breaker = Breaker::Closed { failures: 0 };
        for _ in 0..OPENS_AFTER {
            assert_eq!(breaker.gate(now), Gate::Free);
            breaker.failed(false, now);
        }
        breaker
    }

    #[test]
    fn a_probe_that_was_not_made_tells_nothing() {
        let now = Instant::now();
        let mut breaker = Breaker::Probing { failed_probes: 3 };
        breaker.unprobed(now);
        assert_eq!(breaker.gate(now), Gate::Probe);
        assert_eq!(breaker.left(now).0, OPENS_AFTER + 3);
    }

    #[test]
    fn a_run_of_failures_opens_it_and_what_was_under_way_does_not_count() {
        let now = Instant::now();
        let mut breaker = opened(now);
        let Gate::At(first) = breaker.gate(now) else {
            panic!("{breaker:?}")
        };
        let wait = first.duration_since(now).as_secs_f64();
        assert!((0.8..=1.2).contains(&wait), "{wait}");
        for _ in 0..50 {
            breaker.failed(false, now);
        }
        assert_eq!(breaker.gate(now), Gate::At(first));
    }

    #[test]
    fn one_success_in_between_starts_the_count_anew() {
        let now = Instant::now();
        let mut breaker = Breaker::Closed { failures: 0 };
        for _ in 0..100 {
            for _ in 1..OPENS_AFTER {
                breaker.failed(false, now);
            }
            assert_eq!(breaker.gate(now), Gate::Free);
            breaker.succeeded();
        }
    }

    #[test]
    fn probes_go_out_alone_and_ever_later_but_not_later_than_the_longest_pause() {
        let mut now = Instant::now();
        let mut breaker = opened(now);
        let mut last = Duration::ZERO;
        for probe in 0..20 {
            let Gate::At(until) = breaker.gate(now) else {
                panic!("{breaker:?}")
            };
            let wait = until.duration_since(now);
            assert!(wait <= PAUSE.1.mul_f64(1.0 + JITTER), "{wait:?}");
            assert!(probe > 8 || wait > last, "{wait:?} after {last:?}");
            last = wait;
            now = until;
            assert_eq!(breaker.gate(now), Gate::Probe);
            breaker.probes();
            assert_eq!(breaker.gate(now), Gate::Shut);
            breaker.failed(true, now);
        }
        breaker.probes();
        breaker.succeeded();
        assert_eq!(breaker.gate(now), Gate::Free);
    }

    #[test]
    fn the_next_holder_goes_on_where_the_last_one_stood() {
        let now = Instant::now();
        let mut breaker = opened(now);
        let until = match breaker.gate(now) {
            Gate::At(until) => until,
            other => panic!("{other:?}"),
        };
        let (failures, wait) = breaker.left(now);
        assert_eq!(Breaker::restored(failures, wait, now), breaker);
        breaker.gate(until);
        breaker.probes();
        // A holder that gives it back while a probe is under way leaves the next probe to the next.
        let (failures, wait) = breaker.left(until);
        assert_eq!(
            Breaker::restored(failures, wait, until).gate(until),
            Gate::Probe
        );
        let few = Breaker::Closed { failures: 3 };
        let (failures, wait) = few.left(now);
        assert_eq!(Breaker::restored(failures, wait, now), few);
    }
}

//! The size of a sweep's batches, and the rest after each.
//!
//! A sweep is never urgent, but it takes store and processors from urgent work. So each batch waits
//! a moment until nothing else writes, should take few milliseconds, and is followed by a rest of
//! several times its length. While the store is busy, batches take longer, so they get smaller and
//! the rests longer. Both have limits: rows that are written all the time have to be removed, too.

use std::time::Duration;

/// The time that a batch should take.
const AIM: Duration = Duration::from_micros(2500);
/// Rows of a batch: the fewest, which is also the first size; the fewest if other writes went on;
/// the most. All are multiples of `STEP`.
const LEAST: u64 = 20;
const LEAST_BUSY: u64 = 100;
const MOST: u64 = 1000;
const STEP: u64 = 10;
/// The rest after a batch, as a multiple of the time that the batch took.
const RESTS: u32 = 4;
/// The longest rest: a sweep goes on however busy the store is.
const REST_MAX: Duration = Duration::from_millis(500);

/// The size of the next batch of a sweep.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Batches {
    rows: u64,
}

impl Batches {
    pub(crate) fn new() -> Self {
        Self { rows: LEAST }
    }

    /// Rows of the next batch. `idle` says that nothing else is being written.
    pub(crate) fn rows(self, idle: bool) -> u64 {
        self.rows.max(if idle { LEAST } else { LEAST_BUSY })
    }

    /// Takes the time that a batch took: sets the next size, and returns how long to rest.
    pub(crate) fn took(&mut self, took: Duration) -> Duration {
        if took > AIM {
            let fewer = self.rows * 3 / 4;
            self.rows = (fewer / STEP * STEP).max(LEAST);
        } else if took < AIM / 2 {
            let more = self.rows * 5 / 4;
            self.rows = more.next_multiple_of(STEP).min(MOST);
        }
        took.saturating_mul(RESTS).min(REST_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The size that is found where a batch costs so much, and so much a row.
    fn found(fixed: Duration, row: Duration) -> u64 {
        let mut batches = Batches::new();
        for _ in 0..100 {
            let rows = u32::try_from(batches.rows(true)).unwrap();
            let took = fixed + row * rows;
            let rest = batches.took(took);
            assert!(
                rest >= took * 4 || rest == REST_MAX,
                "{rest:?} after {took:?}"
            );
        }
        assert_eq!(batches.rows(true) % STEP, 0);
        batches.rows(true)
    }

    #[test]
    fn a_batch_takes_a_few_milliseconds() {
        let (ms, us) = (Duration::from_millis(1), Duration::from_micros(1));
        for (fixed, row) in [(ms, 10 * us), (2 * ms, 20 * us), (Duration::ZERO, 40 * us)] {
            let rows = u32::try_from(found(fixed, row)).unwrap();
            let took = fixed + row * rows;
            assert!(
                took >= AIM / 3 && took <= AIM * 5 / 4,
                "{rows} rows in {took:?}"
            );
        }
    }

    #[test]
    fn a_batch_is_neither_huge_nor_nothing() {
        assert_eq!(found(Duration::ZERO, Duration::ZERO), MOST);
        assert_eq!(found(Duration::from_secs(2), Duration::ZERO), LEAST);
        assert_eq!(Batches { rows: LEAST }.rows(false), LEAST_BUSY);
        assert_eq!(Batches { rows: MOST }.rows(false), MOST);
    }
}

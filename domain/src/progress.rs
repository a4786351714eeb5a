//! Progress reports of the parts of the process: which have work, and when each last made progress.
//!
//! A part without work is never stuck. A part that has work and has made no progress for
//! [`STUCK_AFTER`] is stuck, and `/readyz` names it. Nothing here waits.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// A part with work counts as stuck after this time without progress.
pub const STUCK_AFTER: Duration = Duration::from_secs(15);

#[derive(Debug)]
struct State {
    /// How many pieces of work are under way.
    under_way: usize,
    /// Whether the last step failed and has to be repeated.
    failed: bool,
    /// When the present work began or last made progress.
    since: Instant,
}

/// One part of the process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Part(Arc<Mutex<State>>);

impl Part {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(State {
            under_way: 0,
            failed: false,
            since: Instant::now(),
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a piece of work, which lasts until the returned value is dropped. An endless loop is
    /// one piece of work, and calls [`Part::moved`] at each step.
    #[must_use]
    pub fn work(&self) -> Working {
        let mut state = self.state();
        if state.under_way == 0 && !state.failed {
            state.since = Instant::now();
        }
        state.under_way += 1;
        drop(state);
        Working(self.clone())
    }

    /// Reports progress; a failed step is done now.
    pub fn moved(&self) {
        let mut state = self.state();
        state.failed = false;
        state.since = Instant::now();
    }

    /// Reports that a step failed and has to be repeated.
    pub fn failed(&self) {
        let mut state = self.state();
        if state.under_way == 0 && !state.failed {
            state.since = Instant::now();
        }
        state.failed = true;
    }

    /// Reports the end of a step that is repeated until it succeeds.
    pub fn went(&self, well: bool) {
        if well {
            self.moved();
        } else {
            self.failed();
        }
    }

    /// The present state of the part.
    #[must_use]
    pub fn standing(&self) -> Standing {
        let state = self.state();
        let waits = state.under_way == 0 && !state.failed;
        Standing {
            age: if waits {
                Duration::ZERO
            } else {
                state.since.elapsed()
            },
            failing: state.failed,
        }
    }
}

/// The state of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// How long the part has had work without progress.
    pub age: Duration,
    /// Whether the last step failed.
    pub failing: bool,
}

/// A piece of work that is under way.
#[derive(Debug)]
pub struct Working(Part);

impl Drop for Working {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.under_way -= 1;
        if !state.failed {
            state.since = Instant::now();
        }
    }
}

/// The parts of a process. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<Mutex<BTreeMap<&'static str, Part>>>);

impl Progress {
    fn parts(&self) -> MutexGuard<'_, BTreeMap<&'static str, Part>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The part with this name; it is created if there is none.
    #[must_use]
    pub fn part(&self, name: &'static str) -> Part {
        self.parts().entry(name).or_insert_with(Part::new).clone()
    }

    /// The states of all parts, by name.
    #[must_use]
    pub fn standings(&self) -> BTreeMap<&'static str, Standing> {
        let parts = self.parts();
        let each = parts.iter().map(|(name, part)| (*name, part.standing()));
        each.collect()
    }

    /// The stuck parts, and how long each has made no progress.
    #[must_use]
    pub fn stuck(&self) -> BTreeMap<&'static str, Duration> {
        let all = self.standings().into_iter();
        let stuck = all.filter(|(_, standing)| standing.age >= STUCK_AFTER);
        stuck.map(|(name, standing)| (name, standing.age)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As if the part had last moved so long ago.
    fn age(part: &Part, by: Duration) {
        part.state().since -= by;
    }

    #[test]
    fn who_waits_for_work_is_not_late_and_who_has_some_is() {
        let progress = Progress::default();
        let part = progress.part("lane");
        age(&part, 2 * STUCK_AFTER);
        assert!(progress.stuck().is_empty(), "it has nothing to do");
        let one = part.work();
        assert!(progress.stuck().is_empty(), "it has just begun");
        age(&part, STUCK_AFTER);
        let two = part.work();
        assert!(
            progress.stuck().contains_key("lane"),
            "more work is no step"
        );
        part.moved();
        assert!(progress.stuck().is_empty());
        age(&part, STUCK_AFTER);
        drop(one);
        assert!(
            progress.stuck().is_empty(),
            "a piece that is done is a step"
        );
        drop(two);
        age(&part, STUCK_AFTER);
        assert!(progress.stuck().is_empty());
    }

    #[test]
    fn what_fails_is_still_to_be_done() {
        let progress = Progress::default();
        let part = progress.part("record");
        part.failed();
        age(&part, STUCK_AFTER);
        drop(part.work());
        part.failed();
        assert!(
            progress.stuck().contains_key("record"),
            "no step in between"
        );
        assert!(part.standing().failing);
        part.moved();
        assert!(progress.stuck().is_empty() && !part.standing().failing);
    }
}

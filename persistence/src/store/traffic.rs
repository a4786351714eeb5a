//! When nothing is written, and who else writes: the moments for work that is never urgent.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;
use uuid::Uuid;

/// Nothing has been written for so long: what the last transaction brought about, an answer and
/// the first tries of its deliveries, is over.
const LULL: Duration = Duration::from_millis(2);
/// A store that is never quiet is not waited for any longer.
const PATIENCE: Duration = Duration::from_millis(20);
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// Whoever asked for a change in this time is at work.
const LATELY: Duration = Duration::from_secs(1);

/// Time of the writer in one transaction that costs no rest.
pub(crate) const FREE: Duration = Duration::from_millis(5);
/// How many times as long as the time beyond that the rest is, and how long at most.
const REST: f64 = 2.0;
const REST_MAX: Duration = Duration::from_millis(250);

/// The transactions of this process.
pub(crate) struct Traffic {
    under_way: AtomicUsize,
    /// When the last one ended.
    ended: Mutex<Instant>,
    /// The two publishers that asked for changes last, and when; the last one first.
    asked: Mutex<[Option<(Uuid, Instant)>; 2]>,
}

/// One of them.
pub(crate) struct UnderWay<'a>(&'a Traffic);

impl Traffic {
    pub(crate) fn new() -> Self {
        Self {
            under_way: AtomicUsize::new(0),
            ended: Mutex::new(Instant::now()),
            asked: Mutex::default(),
        }
    }

    /// A publisher asks for a change.
    pub(crate) fn asks(&self, publisher: Uuid) {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if asked[0].is_none_or(|(last, _)| last != publisher) {
            asked[1] = asked[0];
        }
        asked[0] = Some((publisher, Instant::now()));
    }

    /// Whether another publisher asked for a change lately.
    pub(crate) fn others_ask(&self, publisher: Uuid) -> bool {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let mut others = asked.iter().flatten().filter(|(one, _)| *one != publisher);
        others.any(|(_, at)| at.elapsed() < LATELY)
    }

    /// A transaction waits or runs until the answer is dropped.
    pub(crate) fn enter(&self) -> UnderWay<'_> {
        self.under_way.fetch_add(1, Ordering::Relaxed);
        UnderWay(self)
    }

    fn is_quiet(&self) -> bool {
        let ended = *self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        self.under_way.load(Ordering::Relaxed) == 0 && ended.elapsed() >= LULL
    }

    /// Waits for a moment in which nothing is written; answers whether one came.
    pub(crate) async fn lull(&self) -> bool {
        let end = Instant::now() + PATIENCE;
        while !self.is_quiet() {
            if Instant::now() >= end {
                return false;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        true
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        *(self.0.ended.lock()).unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How long a publisher rests that took the writer, or a connection beside it, for so long while
/// others were at work.
pub(crate) fn rest_after(time: Duration) -> Duration {
    time.saturating_sub(FREE).mul_f64(REST).min(REST_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_are_at_work_for_a_second() {
        let (mine, theirs) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let traffic = Traffic::new();
        traffic.asks(mine);
        assert!(!traffic.others_ask(mine));
        assert!(traffic.others_ask(theirs));
        traffic.asks(theirs);
        traffic.asks(mine);
        traffic.asks(mine);
        assert!(traffic.others_ask(mine), "however often this one asks");
        for (_, at) in traffic.asked.lock().unwrap().iter_mut().flatten() {
            *at = at.checked_sub(LATELY).unwrap();
        }
        assert!(!traffic.others_ask(mine));
    }

    #[tokio::test]
    async fn a_lull_begins_after_the_last_transaction() {
        let traffic = Traffic::new();
        let one = traffic.enter();
        let two = traffic.enter();
        drop(one);
        assert!(!traffic.lull().await, "one is under way");
        drop(two);
        assert!(traffic.lull().await);
    }

    #[tokio::test]
    async fn a_store_that_is_never_quiet_is_waited_for_a_moment_only() {
        let traffic = Traffic::new();
        let busy = async {
            let mut last = traffic.enter();
            loop {
                last = {
                    let next = traffic.enter();
                    drop(last);
                    next
                };
                tokio::task::yield_now().await;
            }
        };
        let began = Instant::now();
        tokio::select! {
            biased;
            () = busy => {}
            quiet = traffic.lull() => assert!(!quiet),
        }
        assert!(began.elapsed() >= PATIENCE);
    }
}

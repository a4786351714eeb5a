//! When nothing is written: the moments for work that is never urgent.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::scope::System;

/// Nothing has been written for so long: what the last transaction brought about, an answer and
/// the first tries of its deliveries, is over.
const LULL: Duration = Duration::from_millis(2);
/// A store that is never quiet is not waited for any longer.
const PATIENCE: Duration = Duration::from_millis(20);
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// The transactions of this process.
pub(crate) struct Traffic {
    under_way: AtomicUsize,
    /// When the last one ended.
    ended: Mutex<Instant>,
}

/// One of them.
pub(crate) struct UnderWay<'a>(&'a Traffic);

impl Traffic {
    pub(crate) fn new() -> Self {
        Self {
            under_way: AtomicUsize::new(0),
            ended: Mutex::new(Instant::now()),
        }
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

    async fn lull(&self) -> bool {
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

impl System {
    /// Waits for a moment in which this process writes nothing, for 20 ms at most; answers whether
    /// one came.
    pub async fn lull(&self) -> bool {
        self.store.inner.db.traffic.lull().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

//! When this process writes, and for whom. Work that can wait runs while nothing is written.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;
use uuid::Uuid;

/// The store is idle if nothing has been written for this time. By then the effects of the last
/// transaction, such as a response and first attempts of deliveries, are over.
const IDLE_AFTER: Duration = Duration::from_millis(2);
/// How long to wait at most for a store that is never idle.
const WAIT_MAX: Duration = Duration::from_millis(20);
const CHECK_EVERY: Duration = Duration::from_millis(1);
/// A publisher that asked for a change within this time counts as active.
const RECENT: Duration = Duration::from_secs(1);

/// A transaction that takes the writer for no longer than this is followed by no rest.
pub(crate) const FREE: Duration = Duration::from_millis(5);
/// The rest is so many times as long as the time beyond that. The next constant is its maximum.
const REST: f64 = 2.0;
const REST_MAX: Duration = Duration::from_millis(250);

/// The write transactions of this process.
pub(crate) struct WriteActivity {
    active: AtomicUsize,
    /// When the last one ended.
    ended: Mutex<Instant>,
    /// The two publishers that asked for changes last, and when; the latest one first.
    asked: Mutex<[Option<(Uuid, Instant)>; 2]>,
}

/// A transaction that waits or runs. It counts until it is dropped.
pub(crate) struct ActiveWrite<'a>(&'a WriteActivity);

impl WriteActivity {
    pub(crate) fn new() -> Self {
        Self {
            active: AtomicUsize::new(0),
            ended: Mutex::new(Instant::now()),
            asked: Mutex::default(),
        }
    }

    /// Notes that a publisher asks for a change.
    pub(crate) fn note_request(&self, publisher: Uuid) {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if asked[0].is_none_or(|(last, _)| last != publisher) {
            asked[1] = asked[0];
        }
        asked[0] = Some((publisher, Instant::now()));
    }

    /// Whether another publisher asked for a change within the last second.
    pub(crate) fn others_are_active(&self, publisher: Uuid) -> bool {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let mut others = asked.iter().flatten().filter(|(one, _)| *one != publisher);
        others.any(|(_, at)| at.elapsed() < RECENT)
    }

    /// Counts a transaction that waits or runs, until the result is dropped.
    pub(crate) fn enter(&self) -> ActiveWrite<'_> {
        self.active.fetch_add(1, Ordering::Relaxed);
        ActiveWrite(self)
    }

    fn is_idle(&self) -> bool {
        let ended = *self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        self.active.load(Ordering::Relaxed) == 0 && ended.elapsed() >= IDLE_AFTER
    }

    /// Waits until nothing is written. Returns whether that happened in time.
    pub(crate) async fn wait_for_idle(&self) -> bool {
        let end = Instant::now() + WAIT_MAX;
        while !self.is_idle() {
            if Instant::now() >= end {
                return false;
            }
            tokio::time::sleep(CHECK_EVERY).await;
        }
        true
    }
}

impl Drop for ActiveWrite<'_> {
    fn drop(&mut self) {
        *(self.0.ended.lock()).unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How long a publisher rests after it took the writer, or a connection beside it, for `time` while
/// others were active.
pub(crate) fn rest_after(time: Duration) -> Duration {
    time.saturating_sub(FREE).mul_f64(REST).min(REST_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_are_at_work_for_a_second() {
        let (mine, theirs) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let activity = WriteActivity::new();
        activity.note_request(mine);
        assert!(!activity.others_are_active(mine));
        assert!(activity.others_are_active(theirs));
        activity.note_request(theirs);
        activity.note_request(mine);
        activity.note_request(mine);
        assert!(
            activity.others_are_active(mine),
            "however often this one asks"
        );
        for (_, at) in activity.asked.lock().unwrap().iter_mut().flatten() {
            *at = at.checked_sub(RECENT).unwrap();
        }
        assert!(!activity.others_are_active(mine));
    }

    #[tokio::test]
    async fn the_store_is_idle_shortly_after_the_last_transaction() {
        let activity = WriteActivity::new();
        let one = activity.enter();
        let two = activity.enter();
        drop(one);
        assert!(!activity.wait_for_idle().await, "one is under way");
        drop(two);
        assert!(activity.wait_for_idle().await);
    }

    #[tokio::test]
    async fn a_store_that_is_never_idle_is_waited_for_a_moment_only() {
        let activity = WriteActivity::new();
        let busy = async {
            let mut last = activity.enter();
            loop {
                last = {
                    let next = activity.enter();
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
            idle = activity.wait_for_idle() => assert!(!idle),
        }
        assert!(began.elapsed() >= WAIT_MAX);
    }
}

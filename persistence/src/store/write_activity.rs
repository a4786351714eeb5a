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
const IDLE_AFTER: Duration = Duration::from_millis(2);
/// A store that is never quiet is not waited for any longer.
const WAIT_MAX: Duration = Duration::from_millis(20);
const CHECK_EVERY: Duration = Duration::from_millis(1);
/// Whoever asked for a change in this time is at work.
const RECENT: Duration = Duration::from_secs(1);

/// Time of the writer in one transaction that costs no rest.
pub(crate) const FREE: Duration = Duration::from_millis(5);
/// How many times as long as the time beyond that the rest is, and how long at most.
const REST: f64 = 2.0;
const REST_MAX: Duration = Duration::from_millis(250);

/// The transactions of this process.
pub(crate) struct WriteActivity {
    active: AtomicUsize,
    /// When the last one ended.
    ended: Mutex<Instant>,
    /// The two publishers that asked for changes last, and when; the last one first.
    asked: Mutex<[Option<(Uuid, Instant)>; 2]>,
}

/// One of them.
pub(crate) struct ActiveWrite<'a>(&'a WriteActivity);

impl WriteActivity {
    pub(crate) fn new() -> Self {
        Self {
            active: AtomicUsize::new(0),
            ended: Mutex::new(Instant::now()),
            asked: Mutex::default(),
        }
    }

    /// A publisher asks for a change.
    pub(crate) fn note_request(&self, publisher: Uuid) {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if asked[0].is_none_or(|(last, _)| last != publisher) {
            asked[1] = asked[0];
        }
        asked[0] = Some((publisher, Instant::now()));
    }

    /// Whether another publisher asked for a change lately.
    pub(crate) fn others_are_active(&self, publisher: Uuid) -> bool {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let mut others = asked.iter().flatten().filter(|(one, _)| *one != publisher);
        others.any(|(_, at)| at.elapsed() < RECENT)
    }

    /// A transaction waits or runs until the answer is dropped.
    pub(crate) fn enter(&self) -> ActiveWrite<'_> {
        self.active.fetch_add(1, Ordering::Relaxed);
        ActiveWrite(self)
    }

    fn is_idle(&self) -> bool {
        let ended = *self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        self.active.load(Ordering::Relaxed) == 0 && ended.elapsed() >= IDLE_AFTER
    }

    /// Waits for a moment in which nothing is written; answers whether one came.
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

//! The queue of commands that no batch has taken yet, by publisher.
//!
//! Publishers take turns to fill a batch: one change of each publisher, then the next of each,
//! until the batch has the rows of one transaction. While several publishers are active, none fills
//! more than its share. A call that is larger than the share goes alone, and never two of them in a
//! row while others wait. So nobody waits for more than one large and one usual transaction. A
//! publisher that took much of the writer's time while others were active rests in proportion, so
//! that the writer is mostly free for the others.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use tokio::time::Instant;
use uuid::Uuid;

use crate::store::write_activity::rest_after;

/// The estimated rows of one transaction: some 15 milliseconds of the writer.
pub(super) const ROWS: usize = 1024;
/// The rows of one publisher in one transaction, while others are active.
pub(super) const SHARE: usize = 256;
/// After so long without another publisher's command, a publisher has the lane for itself.
const ALONE_AFTER: Duration = Duration::from_secs(1);

/// A command of a publisher, with its estimated rows.
struct Queued<T> {
    what: T,
    rows: usize,
}

/// Waiting commands, with publishers in turn.
struct TurnQueue<T>(VecDeque<(Uuid, VecDeque<Queued<T>>)>);

impl<T> TurnQueue<T> {
    fn push(&mut self, publisher: Uuid, queued: Queued<T>) {
        match self.0.iter_mut().find(|(whose, _)| *whose == publisher) {
            Some((_, line)) => line.push_back(queued),
            None => self.0.push_back((publisher, VecDeque::from([queued]))),
        }
    }

    /// Takes the first command that fits, of the publisher whose turn it is. That publisher's next
    /// turn is after all others'.
    fn pop(&mut self, fits: impl Fn(Uuid, usize) -> bool) -> Option<(Uuid, Queued<T>)> {
        let at = self.0.iter().position(|(publisher, line)| {
            let first = line.front();
            first.is_some_and(|first| fits(*publisher, first.rows))
        })?;
        let (publisher, mut line) = self.0.remove(at)?;
        let first = line.pop_front()?;
        if !line.is_empty() {
            self.0.push_back((publisher, line));
        }
        Some((publisher, first))
    }
}

/// See the module.
pub(super) struct Queue<T> {
    usual: TurnQueue<T>,
    large: TurnQueue<T>,
    count: usize,
    /// Whether the last batch was a large call.
    was_large: bool,
    /// The publisher that came last. The next field is the last time at which another one than
    /// the one before came.
    latest: Option<Uuid>,
    other: Option<Instant>,
    /// The rows of each publisher in the last batch.
    taken: HashMap<Uuid, usize>,
    /// When each resting publisher's rest ends.
    resting: HashMap<Uuid, Instant>,
}

impl<T> Queue<T> {
    pub(super) fn new() -> Self {
        Self {
            usual: TurnQueue(VecDeque::new()),
            large: TurnQueue(VecDeque::new()),
            count: 0,
            was_large: false,
            latest: None,
            other: None,
            taken: HashMap::new(),
            resting: HashMap::new(),
        }
    }

    pub(super) fn push(&mut self, publisher: Uuid, what: T, rows: usize, now: Instant) {
        if self
            .latest
            .replace(publisher)
            .is_some_and(|last| last != publisher)
        {
            self.other = Some(now);
        }
        self.count += 1;
        let queued = Queued { what, rows };
        if rows > SHARE {
            self.large.push(publisher, queued);
        } else {
            self.usual.push(publisher, queued);
        }
    }

    /// How many commands wait.
    pub(super) const fn len(&self) -> usize {
        self.count
    }

    /// Whether several publishers use the lane.
    fn is_shared(&self, now: Instant) -> bool {
        (self.other).is_some_and(|at| now.duration_since(at) < ALONE_AFTER)
    }

    /// When the first waiting command may go on, if all of them rest.
    pub(super) fn rests_until(&self) -> Option<Instant> {
        let lines = self.usual.0.iter().chain(&self.large.0);
        let ends = lines.map(|(publisher, _)| self.resting.get(publisher).copied());
        // A publisher that does not rest has no end of a rest, which sorts before all times.
        ends.min().flatten()
    }

    /// Ends all rests.
    pub(super) fn wake_all(&mut self) {
        self.resting.clear();
    }

    /// Takes in that the last batch took `time`. Publishers that took more than is free while
    /// others were active rest.
    pub(super) fn took(&mut self, time: Duration, now: Instant) {
        if !self.is_shared(now) {
            return;
        }
        let all: usize = self.taken.values().sum();
        for (publisher, rows) in &self.taken {
            let own = time.mul_f64(to_f64(*rows) / to_f64(all.max(1)));
            let rest = rest_after(own);
            if !rest.is_zero() {
                self.resting.insert(*publisher, now + rest);
            }
        }
    }

    /// The commands of the next transaction: at most `most`, and none while all publishers rest.
    pub(super) fn next_batch(&mut self, most: usize, now: Instant) -> Vec<T> {
        self.resting.retain(|_, until| *until > now);
        self.taken.clear();
        let after_large = std::mem::take(&mut self.was_large);
        let first = if after_large { None } else { self.large_call() };
        if let Some(large) = first {
            return vec![large];
        }
        let batch = self.usual_batch(most, now);
        if batch.is_empty() && after_large {
            return self.large_call().into_iter().collect();
        }
        batch
    }

    /// A large call whose publisher does not rest.
    fn large_call(&mut self) -> Option<T> {
        let resting = &self.resting;
        let large = self
            .large
            .pop(|publisher, _| !resting.contains_key(&publisher));
        let (publisher, large) = large?;
        self.was_large = true;
        self.count -= 1;
        self.taken.insert(publisher, large.rows);
        Some(large.what)
    }

    fn usual_batch(&mut self, most: usize, now: Instant) -> Vec<T> {
        let share = if self.is_shared(now) { SHARE } else { ROWS };
        let (mut batch, mut all) = (Vec::new(), 0);
        while batch.len() < most {
            let (taken, resting) = (&self.taken, &self.resting);
            let fits = |publisher, rows| {
                let own = taken.get(&publisher).copied().unwrap_or(0);
                own + rows <= share && all + rows <= ROWS && !resting.contains_key(&publisher)
            };
            let Some((publisher, queued)) = self.usual.pop(fits) else {
                break;
            };
            self.count -= 1;
            all += queued.rows;
            *self.taken.entry(publisher).or_default() += queued.rows;
            batch.push(queued.what);
        }
        batch
    }
}

fn to_f64(rows: usize) -> f64 {
    f64::from(u32::try_from(rows).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::write_activity::FREE;

    fn id(number: u128) -> Uuid {
        Uuid::from_u128(number)
    }

    /// How many changes each publisher had in each batch until the queue was empty.
    fn batches(queue: &mut Queue<Uuid>, now: Instant) -> Vec<HashMap<Uuid, usize>> {
        let mut all = Vec::new();
        while queue.len() > 0 {
            let mut count: HashMap<Uuid, usize> = HashMap::new();
            for publisher in queue.next_batch(256, now) {
                *count.entry(publisher).or_default() += 1;
            }
            assert!(!count.is_empty(), "something always fits");
            all.push(count);
        }
        all
    }

    #[tokio::test]
    async fn a_publisher_alone_fills_a_batch_and_beside_others_its_share() {
        let (mut queue, now) = (Queue::new(), Instant::now());
        for _ in 0..300 {
            queue.push(id(1), id(1), 8, now);
        }
        let first = queue.next_batch(256, now);
        assert_eq!(first.len(), ROWS / 8, "as many as the rows allow");
        queue.push(id(2), id(2), 8, now);
        let next = queue.next_batch(256, now);
        let own = next.iter().filter(|who| **who == id(1)).count();
        assert_eq!((own, next.len()), (SHARE / 8, SHARE / 8 + 1));
        let later = now + ALONE_AFTER;
        assert_eq!(queue.next_batch(256, later).len(), 128, "alone again");
    }

    #[tokio::test]
    async fn whoever_comes_late_does_not_wait_behind_anothers_queue() {
        let (mut queue, now) = (Queue::new(), Instant::now());
        for _ in 0..4000 {
            queue.push(id(1), id(1), 4, now);
        }
        for other in 2..10 {
            queue.push(id(other), id(other), 4, now);
        }
        let all = batches(&mut queue, now);
        for other in 2..10 {
            assert_eq!(all[0].get(&id(other)), Some(&1), "in the very next batch");
        }
        assert!(
            all.iter()
                .all(|one| one.get(&id(1)).is_none_or(|n| *n <= SHARE / 4))
        );
    }

    #[tokio::test]
    async fn large_calls_go_alone_and_never_two_in_a_row_before_others() {
        let (mut queue, now) = (Queue::new(), Instant::now());
        for publisher in [1, 1, 2, 3] {
            queue.push(id(publisher), id(publisher), SHARE + 1, now);
        }
        assert_eq!(queue.next_batch(256, now), [id(1)]);
        queue.push(id(9), id(9), 4, now);
        assert_eq!(
            queue.next_batch(256, now),
            [id(9)],
            "before the other large ones"
        );
        assert_eq!(queue.next_batch(256, now), [id(2)], "in turns");
        assert_eq!(queue.next_batch(256, now), [id(3)]);
        assert_eq!(queue.next_batch(256, now), [id(1)]);
        assert_eq!(queue.len(), 0);
    }

    #[tokio::test]
    async fn whoever_took_long_beside_others_rests_and_they_do_not() {
        let (mut queue, now) = (Queue::new(), Instant::now());
        for publisher in [1, 1, 2] {
            queue.push(id(publisher), id(publisher), SHARE + 1, now);
        }
        queue.push(id(1), id(1), 4, now);
        assert_eq!(queue.next_batch(256, now), [id(1)]);
        queue.took(FREE + Duration::from_millis(20), now);
        // Its usual change rests, too. The other publisher's does not.
        assert_eq!(queue.next_batch(256, now), [id(2)]);
        queue.took(FREE, now);
        let end = now + Duration::from_millis(40);
        assert_eq!(queue.rests_until(), Some(end));
        assert!(queue.next_batch(256, now).is_empty());
        queue.push(id(3), id(3), 4, now);
        assert_eq!(queue.rests_until(), None, "somebody may go on");
        assert_eq!(queue.next_batch(256, now), [id(3)]);
        assert_eq!(queue.next_batch(256, end), [id(1)]);
        assert_eq!(queue.next_batch(256, end), [id(1)]);
        // Alone it does not rest, however long it takes.
        let later = end + ALONE_AFTER;
        queue.push(id(3), id(3), 4, later);
        assert_eq!(queue.next_batch(256, later), [id(3)]);
        let later = later + ALONE_AFTER;
        queue.took(Duration::from_secs(1), later);
        assert_eq!(queue.rests_until(), None);
    }

    #[tokio::test]
    async fn no_batch_has_more_changes_than_are_allowed() {
        let (mut queue, now) = (Queue::new(), Instant::now());
        for publisher in [1, 2, 1, 2, 1] {
            queue.push(id(publisher), id(publisher), 1, now);
        }
        assert_eq!(queue.next_batch(2, now), [id(1), id(2)], "in turns");
        assert_eq!(queue.next_batch(2, now), [id(1), id(2)]);
        assert_eq!(queue.next_batch(2, now), [id(1)]);
    }
}

//! Permits for a limited resource, with a limit for all owners together and a limit for each owner.
//!
//! One type serves every resource that publishers share in a process: requests at work, bytes of
//! bodies, open streams, subcommand calls, schema evaluations, waiting claims. An owner that uses
//! its whole share is refused or waits; it can't use up what the others need. Waiting owners take
//! turns.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_channel::oneshot;

/// The limits of a resource, in its own unit (requests, bytes, streams).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// For all owners together.
    pub total: usize,
    /// For each owner.
    pub per_owner: usize,
}

/// The limit that allows no permit now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// The owner uses its whole share: the answer is 429 `share_exceeded`.
    Owner,
    /// All owners together use everything: the answer is 503 `overloaded`.
    Total,
}

impl Full {
    /// The problem for the caller: 429 `share_exceeded` or 503 `overloaded`, to be tried again
    /// after a second. `what` names the resource in the plural, as in "requests at work".
    #[must_use]
    pub fn problem(self, what: &str) -> crate::Problem {
        let (code, detail) = match self {
            Self::Owner => (
                crate::Code::ShareExceeded,
                format!("The publisher's share of {what} is in use."),
            ),
            Self::Total => (
                crate::Code::Overloaded,
                format!("All {what} of this server are in use."),
            ),
        };
        crate::Problem::new(code, detail).retry_after(1)
    }
}

/// A caller that waits for a permit.
struct Waiter<K: Eq + Hash + Clone> {
    amount: usize,
    grant: oneshot::Sender<Permit<K>>,
}

struct State<K: Eq + Hash + Clone> {
    in_use: usize,
    by_owner: HashMap<K, usize>,
    /// The waiting owners; the first is served next. Each has an entry with at least one waiter.
    waiting: VecDeque<(K, VecDeque<Waiter<K>>)>,
}

struct Inner<K: Eq + Hash + Clone> {
    bounds: Bounds,
    state: Mutex<State<K>>,
}

impl<K: Eq + Hash + Clone> Inner<K> {
    fn state(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash + Clone> State<K> {
    fn used_by(&self, owner: &K) -> usize {
        self.by_owner.get(owner).copied().unwrap_or(0)
    }

    /// Adds `amount` to what `owner` uses, if both limits allow it.
    fn take(&mut self, bounds: Bounds, owner: &K, amount: usize) -> Result<(), Full> {
        if self.used_by(owner).saturating_add(amount) > bounds.per_owner {
            return Err(Full::Owner);
        }
        if self.in_use.saturating_add(amount) > bounds.total {
            return Err(Full::Total);
        }
        self.in_use += amount;
        *self.by_owner.entry(owner.clone()).or_default() += amount;
        Ok(())
    }

    fn give_back(&mut self, owner: &K, amount: usize) {
        self.in_use -= amount;
        if let Some(used) = self.by_owner.get_mut(owner) {
            *used -= amount;
            if *used == 0 {
                self.by_owner.remove(owner);
            }
        }
    }

    /// The first waiter that both limits allow now; its amount is added already. Its owner goes to
    /// the end of the queue.
    fn next_granted(&mut self, bounds: Bounds) -> Option<(K, Waiter<K>)> {
        for at in 0..self.waiting.len() {
            let (owner, line) = &mut self.waiting[at];
            while line.front().is_some_and(|first| first.grant.is_canceled()) {
                line.pop_front();
            }
            let Some(amount) = line.front().map(|first| first.amount) else {
                continue;
            };
            let owner = owner.clone();
            if self.take(bounds, &owner, amount).is_err() {
                continue;
            }
            let (owner, mut line) = self.waiting.remove(at)?;
            let waiter = line.pop_front()?;
            if !line.is_empty() {
                self.waiting.push_back((owner.clone(), line));
            }
            return Some((owner, waiter));
        }
        self.waiting.retain(|(_, line)| !line.is_empty());
        None
    }
}

/// The permits of one resource. Cheap to clone.
pub struct Permits<K: Eq + Hash + Clone>(Arc<Inner<K>>);

impl<K: Eq + Hash + Clone> Clone for Permits<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K: Eq + Hash + Clone> Permits<K> {
    /// Permits with these limits.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        Self(Arc::new(Inner {
            bounds,
            state: Mutex::new(State {
                in_use: 0,
                by_owner: HashMap::new(),
                waiting: VecDeque::new(),
            }),
        }))
    }

    /// Returns a permit for `amount` units, if both limits allow it now. Does not queue behind
    /// callers that wait in [`Permits::acquire`].
    ///
    /// # Errors
    /// The limit that does not allow it.
    pub fn try_acquire(&self, owner: K, amount: usize) -> Result<Permit<K>, Full> {
        self.0.state().take(self.0.bounds, &owner, amount)?;
        Ok(self.permit(owner, amount))
    }

    /// Waits until both limits allow a permit for `amount` units, and returns it. A larger amount
    /// than the limit of an owner counts as that limit.
    ///
    /// The wait has no time limit: put a deadline around it. The future may be dropped at any time.
    pub async fn acquire(&self, owner: K, amount: usize) -> Permit<K> {
        let bounds = self.0.bounds;
        let amount = amount.min(bounds.per_owner).min(bounds.total);
        let granted = {
            let mut state = self.0.state();
            let own = state.waiting.iter().position(|(who, _)| *who == owner);
            if own.is_none() && state.take(bounds, &owner, amount).is_ok() {
                None
            } else {
                let (grant, granted) = oneshot::channel();
                let waiter = Waiter { amount, grant };
                match own.and_then(|at| state.waiting.get_mut(at)) {
                    Some((_, line)) => line.push_back(waiter),
                    None => state
                        .waiting
                        .push_back((owner.clone(), VecDeque::from([waiter]))),
                }
                Some(granted)
            }
        };
        let Some(granted) = granted else {
            return self.permit(owner, amount);
        };
        // Waiters before this one may have left the queue meanwhile.
        serve(&self.0);
        match granted.await {
            Ok(permit) => permit,
            // A waiter is never dropped while its receiver exists.
            Err(_) => std::future::pending().await,
        }
    }

    /// Units in use now.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.0.state().in_use
    }

    /// Units that one owner uses now.
    #[must_use]
    pub fn in_use_by(&self, owner: &K) -> usize {
        self.0.state().used_by(owner)
    }

    fn permit(&self, owner: K, amount: usize) -> Permit<K> {
        Permit {
            inner: Arc::clone(&self.0),
            owner,
            amount,
        }
    }
}

/// Gives free units to waiters.
fn serve<K: Eq + Hash + Clone>(inner: &Arc<Inner<K>>) {
    loop {
        // The lock ends with this statement, because a permit that no receiver takes is dropped
        // below.
        let next = inner.state().next_granted(inner.bounds);
        let Some((owner, waiter)) = next else { return };
        let permit = Permit {
            inner: Arc::clone(inner),
            owner,
            amount: waiter.amount,
        };
        if let Err(mut permit) = waiter.grant.send(permit) {
            permit.release();
        }
    }
}

/// Some units of a resource. They are given back when the permit is dropped.
pub struct Permit<K: Eq + Hash + Clone> {
    inner: Arc<Inner<K>>,
    owner: K,
    amount: usize,
}

impl<K: Eq + Hash + Clone> Permit<K> {
    /// The number of units.
    #[must_use]
    pub fn amount(&self) -> usize {
        self.amount
    }

    /// Adds `more` units to the permit, if both limits allow it.
    ///
    /// # Errors
    /// The limit that does not allow it; the permit stays as it was.
    pub fn try_grow(&mut self, more: usize) -> Result<(), Full> {
        self.inner
            .state()
            .take(self.inner.bounds, &self.owner, more)?;
        self.amount += more;
        Ok(())
    }

    /// Gives back all but `amount` units. Does nothing if the permit has no more than that.
    pub fn shrink_to(&mut self, amount: usize) {
        let Some(less) = self.amount.checked_sub(amount).filter(|less| *less > 0) else {
            return;
        };
        self.amount = amount;
        self.inner.state().give_back(&self.owner, less);
        serve(&self.inner);
    }

    /// Gives all units back without serving waiters; returns whether there are any.
    fn release(&mut self) -> bool {
        let amount = std::mem::take(&mut self.amount);
        if amount == 0 {
            return false;
        }
        let mut state = self.inner.state();
        state.give_back(&self.owner, amount);
        !state.waiting.is_empty()
    }
}

impl<K: Eq + Hash + Clone> Drop for Permit<K> {
    fn drop(&mut self) {
        if self.release() {
            serve(&self.inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::Future,
        pin::{Pin, pin},
        task::{Context, Poll, Waker},
    };

    use proptest::prelude::*;

    use super::*;

    fn permits(total: usize, per_owner: usize) -> Permits<u8> {
        Permits::new(Bounds { total, per_owner })
    }

    fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn an_owner_is_refused_at_its_share_and_others_are_not() {
        let permits = permits(10, 3);
        let held = permits.try_acquire(1, 3).unwrap();
        assert_eq!(permits.try_acquire(1, 1).err(), Some(Full::Owner));
        let other = permits.try_acquire(2, 3).unwrap();
        assert_eq!(permits.in_use(), 6);
        drop((held, other));
        assert_eq!(permits.in_use(), 0);
        assert!(permits.0.state().by_owner.is_empty());
    }

    #[test]
    fn there_is_a_bound_for_everybody() {
        let permits = permits(4, 3);
        let _first = permits.try_acquire(1, 3).unwrap();
        assert_eq!(permits.try_acquire(2, 2).err(), Some(Full::Total));
        assert!(permits.try_acquire(2, 1).is_ok());
    }

    #[test]
    fn a_permit_grows_and_shrinks() {
        let permits = permits(4, 4);
        let mut held = permits.try_acquire(1, 1).unwrap();
        held.try_grow(3).unwrap();
        assert_eq!(held.try_grow(1), Err(Full::Owner));
        held.shrink_to(2);
        assert_eq!((held.amount(), permits.in_use()), (2, 2));
        held.shrink_to(3);
        assert_eq!(held.amount(), 2);
    }

    #[test]
    fn those_who_wait_are_served_in_turns() {
        let permits = permits(1, 1);
        let held = permits.try_acquire(9, 1).unwrap();
        let mut greedy = [
            Box::pin(permits.acquire(1, 1)),
            Box::pin(permits.acquire(1, 1)),
        ];
        assert!(greedy.iter_mut().all(|w| poll(w.as_mut()).is_pending()));
        let mut modest = pin!(permits.acquire(2, 1));
        assert!(poll(modest.as_mut()).is_pending());
        drop(held);
        let Poll::Ready(first) = poll(greedy[0].as_mut()) else {
            panic!("the first in line is served")
        };
        assert!(poll(modest.as_mut()).is_pending());
        drop(first);
        let Poll::Ready(second) = poll(modest.as_mut()) else {
            panic!("the other owner comes before the first's second wish")
        };
        assert!(poll(greedy[1].as_mut()).is_pending());
        drop(second);
        assert!(poll(greedy[1].as_mut()).is_ready());
    }

    #[test]
    fn who_leaves_the_line_takes_nothing() {
        let permits = permits(1, 1);
        let held = permits.try_acquire(1, 1).unwrap();
        {
            let mut gone = pin!(permits.acquire(1, 1));
            assert!(poll(gone.as_mut()).is_pending());
        }
        let mut waits = pin!(permits.acquire(2, 1));
        assert!(poll(waits.as_mut()).is_pending());
        drop(held);
        assert!(poll(waits.as_mut()).is_ready());
        assert_eq!(permits.in_use(), 0, "the grant went with the future");
    }

    #[test]
    fn a_grant_that_nobody_takes_goes_to_the_next() {
        let permits = permits(1, 1);
        let held = permits.try_acquire(1, 1).unwrap();
        let mut next = pin!(permits.acquire(3, 1));
        {
            let mut leaves = pin!(permits.acquire(2, 1));
            assert!(poll(leaves.as_mut()).is_pending());
            assert!(poll(next.as_mut()).is_pending());
            drop(held);
        }
        assert!(poll(next.as_mut()).is_ready());
    }

    proptest! {
        #[test]
        fn bounds_hold_whatever_is_asked(asks in prop::collection::vec((0u8..4, 1usize..5, any::<bool>()), 1..60)) {
            let permits = permits(7, 4);
            let mut held: Vec<Permit<u8>> = Vec::new();
            for (owner, amount, release) in asks {
                if release && !held.is_empty() {
                    held.swap_remove(0);
                } else if let Ok(permit) = permits.try_acquire(owner, amount) {
                    held.push(permit);
                }
                let sum: usize = held.iter().map(Permit::amount).sum();
                prop_assert_eq!(permits.in_use(), sum);
                prop_assert!(sum <= 7);
                for owner in 0..4 {
                    prop_assert!(permits.in_use_by(&owner) <= 4);
                }
            }
        }
    }
}

//! How many requests to token endpoints are under way: so many in all and so many of one
//! publisher, that endpoints which hang hold up nobody else's refreshes.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use domain::id::PublisherId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Most requests under way in a process, and of one publisher.
pub(crate) const IN_ALL: usize = 64;
pub(crate) const OF_ONE: usize = 8;
/// Publishers that are remembered before those with nothing under way are forgotten.
const REMEMBERED: usize = 1024;

pub(crate) struct Places {
    all: Arc<Semaphore>,
    own: Mutex<HashMap<PublisherId, Weak<Semaphore>>>,
}

/// A place, free again when it is dropped.
pub(crate) struct Place {
    _own: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

impl Places {
    pub(crate) fn new() -> Self {
        Self {
            all: Arc::new(Semaphore::new(IN_ALL)),
            own: Mutex::default(),
        }
    }

    /// Waits for a place, first among the publisher's own: who waits there takes up none of all.
    pub(crate) async fn take(&self, publisher: PublisherId) -> Place {
        let own = self.of(publisher).acquire_owned().await;
        let all = Arc::clone(&self.all).acquire_owned().await;
        Place {
            _own: own.expect("the semaphore is never closed"),
            _all: all.expect("the semaphore is never closed"),
        }
    }

    fn of(&self, publisher: PublisherId) -> Arc<Semaphore> {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = own.get(&publisher).and_then(Weak::upgrade) {
            return known;
        }
        if own.len() >= REMEMBERED {
            own.retain(|_, one| one.strong_count() > 0);
        }
        let new = Arc::new(Semaphore::new(OF_ONE));
        own.insert(publisher, Arc::downgrade(&new));
        new
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use domain::id::Id as _;

    use super::*;

    #[tokio::test]
    async fn one_publisher_leaves_places_to_the_others() {
        let places = Places::new();
        let now = domain::Timestamp::from_ms(1);
        let (one, other) = (PublisherId::generate(now), PublisherId::generate(now));
        let mut taken = Vec::new();
        for _ in 0..OF_ONE {
            taken.push(places.take(one).await);
        }
        let wait = Duration::from_millis(20);
        assert!(tokio::time::timeout(wait, places.take(one)).await.is_err());
        taken.push(places.take(other).await);
        taken.remove(0);
        taken.push(places.take(one).await);
        drop(taken);
        assert_eq!(places.all.available_permits(), IN_ALL);
    }
}

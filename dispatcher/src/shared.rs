//! What the loop, the deliveries under way and the recorder share.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use domain::id::EndpointId;
use tokio::sync::Notify;

/// Who is under way, and what wakes the loop beside the store's bell.
#[derive(Debug)]
pub(crate) struct Shared {
    busy: Mutex<HashMap<EndpointId, u64>>,
    turned: Mutex<Instant>,
    /// Rung when a slot is given back.
    pub(crate) freed: Notify,
    /// Rung when a retry was recorded that is due before the next poll.
    pub(crate) sooner: Notify,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(crate) fn new() -> Self {
        Self {
            busy: Mutex::default(),
            turned: Mutex::new(Instant::now()),
            freed: Notify::new(),
            sooner: Notify::new(),
        }
    }

    /// How many deliveries each endpoint has under way; endpoints with none are absent.
    pub(crate) fn busy(&self) -> Vec<(EndpointId, u64)> {
        locked(&self.busy).iter().map(|(id, n)| (*id, *n)).collect()
    }

    /// Takes a slot, which is given back when what is returned is dropped.
    pub(crate) fn enter(self: &Arc<Self>, endpoint: EndpointId) -> Slot {
        *locked(&self.busy).entry(endpoint).or_default() += 1;
        metrics::gauge!("stationmaster_deliveries_in_flight").increment(1.0);
        Slot {
            shared: Arc::clone(self),
            endpoint,
        }
    }

    pub(crate) fn turn(&self) {
        *locked(&self.turned) = Instant::now();
    }

    pub(crate) fn since_turn(&self) -> Duration {
        locked(&self.turned).elapsed()
    }
}

/// A place among the deliveries under way. Dropped once the outcome is recorded, or by whatever
/// else ends the delivery's task.
#[derive(Debug)]
pub(crate) struct Slot {
    shared: Arc<Shared>,
    endpoint: EndpointId,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut busy = locked(&self.shared.busy);
        if let Some(n) = busy.get_mut(&self.endpoint) {
            *n -= 1;
            if *n == 0 {
                busy.remove(&self.endpoint);
            }
        }
        drop(busy);
        metrics::gauge!("stationmaster_deliveries_in_flight").decrement(1.0);
        self.shared.freed.notify_one();
    }
}

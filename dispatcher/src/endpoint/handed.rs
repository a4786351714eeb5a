//! Deliveries that a commit of this process hands over in memory, and when the endpoint may take
//! one (ADR 0022).

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use domain::id::DeliveryId;
use persistence::DueDelivery;

use super::{Endpoint, PAGE};

/// A delivery that is handed over later than this after its commit began is loaded from the store
/// instead.
const PROMPT: Duration = Duration::from_secs(1);
/// How many pages of deliveries an endpoint may get into memory by handing over.
const PAGES: usize = 4;

/// The deliveries that were loaded within [`PROMPT`]. Such a delivery may have been sent and
/// forgotten before it is handed over as well; without this it would be sent twice.
#[derive(Debug)]
pub(super) struct RecentlyLoaded {
    /// Those of the present period and of the one before.
    periods: [HashSet<DeliveryId>; 2],
    period_began: Instant,
}

impl RecentlyLoaded {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            periods: [HashSet::new(), HashSet::new()],
            period_began: now,
        }
    }

    fn rotate(&mut self, now: Instant) {
        if now.saturating_duration_since(self.period_began) > PROMPT {
            self.period_began = now;
            self.periods.swap(0, 1);
            self.periods[0] = HashSet::new();
        }
    }

    pub(super) fn add(&mut self, id: DeliveryId, now: Instant) {
        self.rotate(now);
        self.periods[0].insert(id);
    }

    fn has(&self, id: DeliveryId) -> bool {
        self.periods.iter().any(|period| period.contains(&id))
    }
}

impl Endpoint {
    /// Takes a delivery whose commit began after `since`. Returns `false` if the delivery has to be
    /// loaded from the store: because others may come before it, because another holder of the
    /// lease may have sent it, or because there is no room.
    pub(crate) fn hand_over(&mut self, due: DueDelivery, since: Instant, now: Instant) -> bool {
        let plain = self
            .target
            .as_ref()
            .is_some_and(|target| !target.ordered && self.has_room());
        let ours = self.fence.is_some() && since > self.held_at;
        let prompt = now.saturating_duration_since(since) < PROMPT;
        if !(plain && ours && prompt) || self.dirty || self.overtaken {
            return false;
        }
        if self.recently_loaded.has(due.id) {
            return true;
        }
        if self.loading {
            // The page shows whether others come before it, and may contain it.
            self.queued_bytes += due.body.len();
            self.waiting.push(due);
        } else {
            self.enqueue(due);
        }
        true
    }

    fn has_room(&self) -> bool {
        let most = match self.page() {
            PAGE => PAGES * PAGE,
            fewer => fewer,
        };
        self.queue.len() + self.waiting.len() < most
    }
}

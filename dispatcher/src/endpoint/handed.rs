//! Deliveries that a commit of this process hands over, and when one may be taken (ADR 0022).

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use domain::id::DeliveryId;
use persistence::DueDelivery;

use super::{Endpoint, PAGE};

/// What is handed over later than this after its commit began is looked for in the store instead.
const PROMPT: Duration = Duration::from_secs(1);
/// Pages that an endpoint may have in memory by being handed over.
const PAGES: usize = 4;

/// What pages have shown within [`PROMPT`]: it may have gone out and be forgotten before it is
/// handed over, too.
#[derive(Debug)]
pub(super) struct RecentlyLoaded {
    /// By the time in which it was shown: this one, and the one before.
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
    /// Takes a delivery whose commit began after `since`. Answers `false` for one that has to be
    /// looked for in the store: because something may come before it, because another holder of
    /// the lease may have sent it, or because there is no room.
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
            // The page tells whether something comes before it, and may show it too.
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

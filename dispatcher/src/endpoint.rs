//! An endpoint whose lease this process holds: its loaded deliveries, and whether the next may be
//! sent.

mod handed;

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use domain::{Timestamp, id::DeliveryId};
use persistence::{DeliveryTarget, DueDelivery, EndpointKey, Handover, Lease};

use crate::{
    backlog_throttle::is_late,
    breaker::{Breaker, Gate},
    bucket::Bucket,
    throttle::Throttle,
};
use handed::RecentlyLoaded;

/// Nothing is sent by a target that was read longer ago than this: the endpoint may have been
/// disabled since.
pub(crate) const TARGET_FRESH: Duration = Duration::from_secs(1);
/// A request that lasts longer than this is slow, and so is its endpoint.
pub(crate) const SLOW: Duration = Duration::from_secs(2);
/// Most requests under way to an endpoint that is slow, or whose speed is not known yet.
const SLOW_SHARE: usize = 4;
/// Most deliveries loaded at once for a quick endpoint.
const PAGE: usize = 128;
/// The same for an endpoint that is slow, or whose speed is not known yet.
const SLOW_PAGE: usize = 16;
/// The lease of an endpoint without work is given back after this.
const IDLE: Duration = Duration::from_secs(10);

/// How long an endpoint takes to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    Unknown,
    Quick,
    Slow,
}

/// Whether an endpoint's next delivery may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Go {
    Now {
        probe: bool,
    },
    At(Instant),
    /// Not before a request ends or deliveries are loaded.
    Wait,
    /// Not before the target is read again.
    Stale,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Succeeded,
    Failed,
    /// The receiver asks for a pause of this length (429 or 503 with `Retry-After`).
    Throttled(Duration),
}

/// In which of the board's queues an endpoint is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct QueuedFor {
    /// Its publisher's queue of endpoints with something to send.
    pub(crate) sending: bool,
    /// The queue of endpoints to load.
    pub(crate) loading: bool,
}

/// The state of one endpoint.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) key: EndpointKey,
    /// The number of the lease; `None` once the lease is lost.
    pub(crate) fence: Option<i64>,
    /// When the lease was taken. Another holder may have sent what was committed before.
    held_at: Instant,
    target: Option<Arc<DeliveryTarget>>,
    target_read: Option<Instant>,
    /// A target whose reading began before this is not used.
    invalid_before: Option<Instant>,
    pub(crate) queue: VecDeque<DueDelivery>,
    /// The deliveries that were handed over while a page was being loaded.
    waiting: Vec<DueDelivery>,
    /// The bytes of all bodies in `queue` and `waiting`.
    queued_bytes: usize,
    recently_loaded: RecentlyLoaded,
    /// The deliveries that are queued, under way, or not recorded yet.
    known: HashSet<DeliveryId>,
    pub(crate) in_flight: usize,
    unrecorded: usize,
    /// Whether the store may have due deliveries that are not known here.
    dirty: bool,
    pub(crate) loading: bool,
    /// The deliveries that were settled while a page was being loaded: the page may contain them.
    settled: HashSet<DeliveryId>,
    /// Whether the page that is being loaded must be dropped. The queue was emptied meanwhile, and
    /// the page begins where the queue ended, so it would break the order. Or the lease was lost,
    /// and another holder may have sent all of the page.
    overtaken: bool,
    left: Handover,
    bucket: Option<Bucket>,
    /// The pauses and the rate that the receiver asked for.
    throttle: Throttle,
    pub(crate) breaker: Breaker,
    pub(crate) pace: Pace,
    pub(crate) queued_for: QueuedFor,
    /// Nothing is sent before this, because this process lacked a resource of its own.
    rests_until: Option<Instant>,
    busy_at: Instant,
}

fn until(at: Timestamp, now: Instant, wall: Timestamp) -> Instant {
    now + at.since(wall)
}

impl Endpoint {
    pub(crate) fn new(key: EndpointKey, now: Instant) -> Self {
        Self {
            key,
            fence: None,
            held_at: now,
            target: None,
            target_read: None,
            invalid_before: None,
            queue: VecDeque::new(),
            waiting: Vec::new(),
            queued_bytes: 0,
            recently_loaded: RecentlyLoaded::new(now),
            known: HashSet::new(),
            in_flight: 0,
            unrecorded: 0,
            dirty: false,
            loading: false,
            settled: HashSet::new(),
            overtaken: false,
            left: Handover::default(),
            bucket: None,
            throttle: Throttle::new(now),
            breaker: Breaker::Closed { failures: 0 },
            pace: Pace::Unknown,
            queued_for: QueuedFor::default(),
            rests_until: None,
            busy_at: now,
        }
    }

    /// Takes a lease, with the state that the last holder left.
    pub(crate) fn held(&mut self, lease: &Lease, now: Instant, wall: Timestamp) {
        self.fence = Some(lease.fence);
        self.held_at = now;
        self.left = lease.state;
        let probe_in = lease.state.probe_at.map(|at| at.since(wall));
        self.breaker = Breaker::restored(lease.state.failures, probe_in, now);
        self.throttle.reset(now);
        if let (Some(pause), Breaker::Closed { .. }) = (probe_in, self.breaker) {
            self.throttle.paused_for(pause, now);
        }
        // Both are created again once the target is read.
        self.bucket = None;
        (self.target, self.target_read) = (None, None);
        self.dirty = true;
        self.busy_at = now;
    }

    /// Ends the lease, which is lost or about to be given back: nothing that is queued is sent.
    pub(crate) fn lose(&mut self) {
        self.fence = None;
        self.dirty = false;
        self.clear();
    }

    fn clear(&mut self) {
        for due in self.queue.drain(..) {
            self.known.remove(&due.id);
        }
        // The page that these waited for is dropped, too.
        self.waiting.clear();
        self.queued_bytes = 0;
        self.overtaken = self.loading;
    }

    /// How many deliveries are in memory, and the bytes of their bodies.
    pub(crate) fn weight(&self) -> (usize, usize) {
        (self.queue.len() + self.waiting.len(), self.queued_bytes)
    }

    /// Puts a delivery at the end of the queue, unless it is known already.
    fn enqueue(&mut self, due: DueDelivery) {
        if self.known.insert(due.id) {
            self.queued_bytes += due.body.len();
            self.queue.push_back(due);
        }
    }

    /// Takes out what was handed over during a load.
    fn take_waiting(&mut self) -> Vec<DueDelivery> {
        let waiting = std::mem::take(&mut self.waiting);
        self.queued_bytes -= waiting.iter().map(|due| due.body.len()).sum::<usize>();
        waiting
    }

    /// Drops what is queued, and loads it again.
    pub(crate) fn read_anew(&mut self) {
        self.clear();
        self.dirty = true;
    }

    /// Forgets what the receiver asked for and did. What is queued is loaded again, because it may
    /// be due earlier now.
    pub(crate) fn resume(&mut self, now: Instant) {
        self.throttle.reset(now);
        self.breaker.resume(now);
        self.read_anew();
    }

    pub(crate) fn notify(&mut self) {
        self.dirty = true;
    }

    pub(crate) fn is_ordered(&self) -> Option<bool> {
        self.target.as_ref().map(|target| target.ordered)
    }

    /// How many deliveries to load at once.
    fn page(&self) -> usize {
        let probing = !matches!(self.breaker, Breaker::Closed { .. });
        let own = self.bucket.map(|bucket| bucket.per_second());
        let rates = own.into_iter().chain(self.throttle.per_second());
        let rate = rates.reduce(f64::min).map_or(PAGE, |rate| {
            // One second's worth is enough: loads come many times a second.
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "clamped"
            )]
            let worth = rate.clamp(1.0, 128.0) as usize;
            worth
        });
        match self.pace {
            _ if probing => 1,
            Pace::Quick => PAGE.min(rate),
            Pace::Slow | Pace::Unknown => SLOW_PAGE.min(rate),
        }
    }

    /// How many deliveries to load now, if any. When memory is short, only what can be sent at
    /// once.
    pub(crate) fn wants(&self, short: bool) -> Option<usize> {
        let page = if short {
            self.page().min(SLOW_SHARE)
        } else {
            self.page()
        };
        let low = if short { 0 } else { page / 2 };
        let sendable = self.target_read.is_none() || self.target.is_some();
        let wants = self.fence.is_some() && self.dirty && !self.loading && sendable;
        (wants && self.queue.len() <= low).then_some(page)
    }

    /// Begins to load a page; returns the deliveries that the page need not contain.
    pub(crate) fn load_begins(&mut self) -> HashSet<DeliveryId> {
        self.loading = true;
        self.dirty = false;
        self.settled.clear();
        self.overtaken = false;
        self.known.clone()
    }

    /// Takes a page. What was handed over meanwhile goes behind it. If the store has more, what was
    /// handed over is dropped: the rest has to come first, and loading finds it again.
    pub(crate) fn loaded(&mut self, due: Vec<DueDelivery>, more: bool, now: Instant) {
        self.loading = false;
        self.dirty |= more;
        let settled = std::mem::take(&mut self.settled);
        let waiting = self.take_waiting();
        if self.fence.is_none() {
            return;
        }
        if std::mem::take(&mut self.overtaken) {
            self.dirty = true;
            return;
        }
        for due in due {
            self.recently_loaded.add(due.id, now);
            if !settled.contains(&due.id) {
                self.enqueue(due);
            }
        }
        for due in waiting.into_iter().filter(|_| !more) {
            self.enqueue(due);
        }
    }

    pub(crate) fn load_failed(&mut self) {
        self.loading = false;
        self.dirty = true;
        self.settled.clear();
        self.take_waiting();
    }

    /// Takes the target, whose reading began at `read_at`; `None` if nothing may be sent.
    pub(crate) fn set_target(
        &mut self,
        target: Option<Arc<DeliveryTarget>>,
        read_at: Instant,
        now: Instant,
    ) {
        let newer = self.target_read.is_some_and(|known| known > read_at);
        if newer || self.invalid_before.is_some_and(|at| at >= read_at) {
            return;
        }
        let order_changed = match (&self.target, &target) {
            (Some(old), Some(new)) => old.ordered != new.ordered,
            (None, Some(_)) => self.target_read.is_some(),
            _ => false,
        };
        if order_changed {
            self.dirty = true;
        }
        if order_changed || target.is_none() {
            self.clear();
        }
        match target
            .as_ref()
            .and_then(|target| target.rate_limit_per_second)
        {
            None => self.bucket = None,
            Some(rate) => match &mut self.bucket {
                Some(bucket) if (bucket.per_second() - f64::from(rate)).abs() < 0.5 => {}
                Some(bucket) => bucket.set_rate(rate.into(), now),
                None => self.bucket = None,
            },
        }
        self.target = target;
        self.target_read = Some(read_at);
    }

    /// Creates the bucket from the tokens that the last holder left, once the rate is known.
    pub(crate) fn fill_bucket(&mut self, now: Instant, wall: Timestamp) {
        let rate = self
            .target
            .as_ref()
            .and_then(|target| target.rate_limit_per_second);
        if let (Some(rate), None) = (rate, &self.bucket) {
            #[expect(clippy::cast_precision_loss, reason = "a few thousand at most")]
            let left = self
                .left
                .tokens
                .take()
                .map(|(milli, at)| (milli as f64 / 1000.0, wall.since(at)));
            self.bucket = Some(Bucket::new(rate.into(), left, now));
        }
    }

    /// Forgets the target: the receiver answered that it is gone.
    pub(crate) fn forget_target(&mut self) {
        self.clear();
        self.dirty = true;
        self.target = None;
        self.target_read = None;
    }

    /// Invalidates a target that was read before `now`: the endpoint was changed.
    pub(crate) fn invalidate_target(&mut self, now: Instant) {
        self.invalid_before = Some(now);
        self.target_read = None;
        // An endpoint to which nothing may be sent may have been enabled.
        self.dirty |= self.target.is_none();
    }

    /// Whether the target should be read again now.
    pub(crate) fn is_stale(&self, now: Instant, fresh: Duration) -> bool {
        self.target_read
            .is_none_or(|read| now.saturating_duration_since(read) > fresh)
    }

    /// Whether deliveries wait that need a fresh target.
    pub(crate) fn is_active(&self) -> bool {
        self.fence.is_some() && !self.loading && !self.queue.is_empty()
    }

    /// Whether the first delivery of the queue is late.
    pub(crate) fn is_late(&self, wall: Timestamp) -> bool {
        let head = self.queue.front();
        head.is_some_and(|head| is_late(head.due, wall))
    }

    /// Whether the first delivery of the queue may be sent. `usual` is the limit on requests under
    /// way of an endpoint without its own.
    pub(crate) fn go(&mut self, usual: usize, now: Instant, wall: Timestamp) -> Go {
        let (Some(_), Some(head)) = (self.fence, self.queue.front()) else {
            return Go::Wait;
        };
        if self.is_stale(now, TARGET_FRESH) {
            return Go::Stale;
        }
        let Some(target) = &self.target else {
            return Go::Wait;
        };
        if let Some(later) = self.rests_until.filter(|at| *at > now) {
            return Go::At(later);
        }
        let own = target
            .max_in_flight
            .and_then(|own| usize::try_from(own).ok());
        let own = own.unwrap_or(usual).max(1);
        let limit = match self.pace {
            _ if target.ordered => 1,
            Pace::Quick => own,
            Pace::Slow | Pace::Unknown => own.min(SLOW_SHARE),
        };
        let unrecorded_max = if target.ordered { 0 } else { 8 * own };
        if self.in_flight >= limit || self.unrecorded > unrecorded_max {
            return Go::Wait;
        }
        if target.ordered && head.due > wall {
            return Go::At(until(head.due, now, wall));
        }
        let probe = match self.breaker.gate(now) {
            Gate::Free => false,
            // The requests under way end first: one of them may succeed.
            Gate::Probe if self.in_flight > 0 => return Go::Wait,
            Gate::Probe => true,
            Gate::At(later) => return Go::At(later),
            Gate::Shut => return Go::Wait,
        };
        let own = self.bucket.as_mut();
        let own = own.map_or(Ok(()), |bucket| bucket.ready(now));
        match own.and_then(|()| self.throttle.ready(now)) {
            Ok(()) => Go::Now { probe },
            Err(later) => Go::At(later),
        }
    }

    /// Takes the first delivery off the queue, to send it.
    pub(crate) fn begin(
        &mut self,
        probe: bool,
        now: Instant,
    ) -> Option<(i64, Arc<DeliveryTarget>, DueDelivery)> {
        let (fence, target) = (self.fence?, Arc::clone(self.target.as_ref()?));
        let due = self.queue.pop_front()?;
        self.queued_bytes -= due.body.len();
        if probe {
            self.breaker.probes();
        }
        if let Some(bucket) = &mut self.bucket {
            bucket.take();
        }
        self.throttle.take();
        self.in_flight += 1;
        self.busy_at = now;
        Some((fence, target, due))
    }

    /// Takes the end of a request, whose outcome is not recorded yet.
    pub(crate) fn ended(&mut self, end: End, probe: bool, slow: bool, now: Instant) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.unrecorded += 1;
        self.busy_at = now;
        self.pace = if slow { Pace::Slow } else { Pace::Quick };
        match end {
            End::Succeeded => {
                self.breaker.succeeded();
                self.throttle.succeeded(now);
            }
            End::Failed => self.breaker.failed(probe, now),
            End::Throttled(pause) => {
                self.throttle.refused(pause, now);
                // The receiver answers; but while it takes nothing it is still only probed.
                if probe {
                    self.breaker.failed(probe, now);
                }
            }
        }
    }

    /// Takes back a request that was not made. All that is queued is loaded again with it, so that
    /// the order stays.
    pub(crate) fn unsent(&mut self, id: DeliveryId, probe: bool, now: Instant) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.known.remove(&id);
        self.clear();
        self.dirty = true;
        if probe {
            self.breaker.unprobed(now);
        }
    }

    /// Sends nothing before `until`.
    pub(crate) fn rest(&mut self, until: Instant) {
        self.rests_until = Some(until);
    }

    /// An outcome is recorded, or never will be. `waits` says that the delivery may still wait in
    /// the store.
    pub(crate) fn settled(&mut self, id: DeliveryId, waits: bool) {
        self.unrecorded = self.unrecorded.saturating_sub(1);
        self.known.remove(&id);
        if self.loading {
            self.settled.insert(id);
        }
        if waits && self.is_ordered() == Some(true) {
            // In an order, the other deliveries wait for this one, and are loaded with it.
            self.clear();
        }
    }

    /// Whether requests or their outcomes are still awaited.
    pub(crate) fn is_awaited(&self) -> bool {
        self.in_flight > 0 || self.unrecorded > 0 || self.loading
    }

    /// Whether the lease can be given back. An ordered endpoint whose first delivery waits for a
    /// retry is idle, too.
    pub(crate) fn is_idle(&self, now: Instant, wall: Timestamp) -> bool {
        if self.is_awaited() || self.fence.is_none() {
            return false;
        }
        if self.target_read.is_some() && self.target.is_none() {
            return true;
        }
        let head = self.queue.front();
        let waits =
            self.is_ordered() == Some(true) && head.is_some_and(|head| head.due > wall.plus(IDLE));
        let empty = self.queue.is_empty() && !self.dirty;
        (waits || empty) && now.saturating_duration_since(self.busy_at) >= IDLE
    }

    /// The lease with the state for the next holder; `None` if it is lost.
    pub(crate) fn lease(&mut self, now: Instant, wall: Timestamp) -> Option<Lease> {
        let (failures, wait) = self.breaker.left(now);
        let wait = wait.or_else(|| self.throttle.pause(now));
        #[expect(clippy::cast_possible_truncation, reason = "a few thousand at most")]
        let tokens = self
            .bucket
            .as_mut()
            .map(|bucket| ((bucket.tokens(now) * 1000.0) as i64, wall));
        Some(Lease {
            key: self.key,
            fence: self.fence?,
            state: Handover {
                tokens: tokens.or(self.left.tokens),
                failures,
                probe_at: wait.map(|wait| wall.plus(wait)),
            },
        })
    }
}

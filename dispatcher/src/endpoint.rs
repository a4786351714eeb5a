//! An endpoint that this process holds: what is loaded of it, and whether the next may go out.

mod handed;

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use domain::{Timestamp, id::DeliveryId};
use persistence::{DeliveryTarget, DueDelivery, EndpointKey, Handover, Lease};

use crate::{
    breaker::{Breaker, Gate},
    bucket::Bucket,
    throttle::Throttle,
    yielding::is_late,
};
use handed::Shown;

/// A target read longer ago is not sent to: it may have been disabled since.
pub(crate) const TARGET_FRESH: Duration = Duration::from_secs(1);
/// A request that is under way for longer is slow, and so is its endpoint.
pub(crate) const SLOW: Duration = Duration::from_secs(2);
/// Most under way to an endpoint that is slow, or of which nothing is known yet.
const SLOW_SHARE: usize = 4;
/// Most deliveries loaded at once of an endpoint that is quick.
const PAGE: usize = 128;
/// The same of one that is slow, or of which nothing is known yet.
const SLOW_PAGE: usize = 16;
/// An endpoint without work is given back after this.
const IDLE: Duration = Duration::from_secs(10);

/// How long an endpoint takes to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    Unknown,
    Quick,
    Slow,
}

/// Whether an endpoint's next delivery may go out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Go {
    Now {
        probe: bool,
    },
    At(Instant),
    /// Something will change first: a request ends, or deliveries are loaded.
    Wait,
    /// The target has to be read first.
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

/// In which lines an endpoint stands.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Lines {
    /// Its publisher's, of those with something to send.
    pub(crate) turn: bool,
    /// That of those to load.
    pub(crate) load: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) key: EndpointKey,
    /// The lease's number; none once the lease is lost.
    pub(crate) fence: Option<i64>,
    /// When the lease was taken. What was committed before may have been another holder's.
    held_at: Instant,
    target: Option<Arc<DeliveryTarget>>,
    target_read: Option<Instant>,
    /// What was begun to be read before this does not hold.
    outdated: Option<Instant>,
    pub(crate) queue: VecDeque<DueDelivery>,
    /// What was handed over while a page was being loaded.
    waiting: Vec<DueDelivery>,
    /// The bytes of all their bodies.
    queued_bytes: usize,
    shown: Shown,
    /// What is queued, under way, or not recorded yet.
    known: HashSet<DeliveryId>,
    pub(crate) in_flight: usize,
    unrecorded: usize,
    /// There may be due deliveries that are not known.
    dirty: bool,
    pub(crate) loading: bool,
    /// What was dealt with while a page was being loaded, which may still show it.
    settled: HashSet<DeliveryId>,
    /// The queue was emptied while a page was being loaded, which goes on where the queue ended:
    /// it would put what comes later before what comes first. Also when the lease was lost:
    /// another holder may have sent all of the page.
    overtaken: bool,
    left: Handover,
    bucket: Option<Bucket>,
    /// What the receiver asked for.
    throttle: Throttle,
    pub(crate) breaker: Breaker,
    pub(crate) pace: Pace,
    pub(crate) lines: Lines,
    /// Nothing goes out before this, since something of our own was missing.
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
            outdated: None,
            queue: VecDeque::new(),
            waiting: Vec::new(),
            queued_bytes: 0,
            shown: Shown::new(now),
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
            lines: Lines::default(),
            rests_until: None,
            busy_at: now,
        }
    }

    /// The lease is taken, with what the last holder left.
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
        // Both are made anew once the target is read.
        self.bucket = None;
        (self.target, self.target_read) = (None, None);
        self.dirty = true;
        self.busy_at = now;
    }

    /// The lease is lost, or about to be given back: nothing that is queued goes out.
    pub(crate) fn lose(&mut self) {
        self.fence = None;
        self.dirty = false;
        self.clear();
    }

    fn clear(&mut self) {
        for due in self.queue.drain(..) {
            self.known.remove(&due.id);
        }
        // The page that these waited for does not count either.
        self.waiting.clear();
        self.queued_bytes = 0;
        self.overtaken = self.loading;
    }

    /// How many deliveries it has in memory, and the bytes of their bodies.
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

    /// What was handed over during a load leaves its place.
    fn take_waiting(&mut self) -> Vec<DueDelivery> {
        let waiting = std::mem::take(&mut self.waiting);
        self.queued_bytes -= waiting.iter().map(|due| due.body.len()).sum::<usize>();
        waiting
    }

    /// What is queued counts no more: it is read again.
    pub(crate) fn read_anew(&mut self) {
        self.clear();
        self.dirty = true;
    }

    /// Forgets what the receiver asked for and did. What is queued is read again: it may have been
    /// due later.
    pub(crate) fn resume(&mut self, now: Instant) {
        self.throttle.reset(now);
        self.breaker.resume(now);
        self.read_anew();
    }

    pub(crate) fn rung(&mut self) {
        self.dirty = true;
    }

    pub(crate) fn is_ordered(&self) -> Option<bool> {
        self.target.as_ref().map(|target| target.ordered)
    }

    /// How many to have loaded.
    fn page(&self) -> usize {
        let probing = !matches!(self.breaker, Breaker::Closed { .. });
        let own = self.bucket.map(|bucket| bucket.per_second());
        let rates = own.into_iter().chain(self.throttle.per_second());
        let rate = rates.reduce(f64::min).map_or(PAGE, |rate| {
            // A second's worth is loaded many times a second where nothing holds it up.
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

    /// How many to load now, if any. When memory is short only what can go out at once.
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

    /// A page is being loaded from here on; answers what the loader need not bring.
    pub(crate) fn load_begins(&mut self) -> HashSet<DeliveryId> {
        self.loading = true;
        self.dirty = false;
        self.settled.clear();
        self.overtaken = false;
        self.known.clone()
    }

    /// A page has come. What was handed over meanwhile goes behind it, and where there is more to
    /// load has to be looked for behind that.
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
            self.shown.add(due.id, now);
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

    /// What was read of the endpoint since `read_at`; nothing if it may not be sent to.
    pub(crate) fn set_target(
        &mut self,
        target: Option<Arc<DeliveryTarget>>,
        read_at: Instant,
        now: Instant,
    ) {
        let newer = self.target_read.is_some_and(|known| known > read_at);
        if newer || self.outdated.is_some_and(|outdated| outdated >= read_at) {
            return;
        }
        let turned = match (&self.target, &target) {
            (Some(old), Some(new)) => old.ordered != new.ordered,
            (None, Some(_)) => self.target_read.is_some(),
            _ => false,
        };
        if turned {
            self.dirty = true;
        }
        if turned || target.is_none() {
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

    /// Makes the bucket of what the last holder left, once the rate is known.
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

    /// Forgets what is known of the target: it said itself that it is gone.
    pub(crate) fn doubt(&mut self) {
        self.clear();
        self.dirty = true;
        self.target = None;
        self.target_read = None;
    }

    /// The endpoint was changed: nothing goes out by what was read of it before `now`.
    pub(crate) fn outdate(&mut self, now: Instant) {
        self.outdated = Some(now);
        self.target_read = None;
        // One that may not be sent to perhaps may again.
        self.dirty |= self.target.is_none();
    }

    /// Whether the target should be read again now.
    pub(crate) fn is_stale(&self, now: Instant, fresh: Duration) -> bool {
        self.target_read
            .is_none_or(|read| now.saturating_duration_since(read) > fresh)
    }

    /// Whether there is something that the target has to be fresh for.
    pub(crate) fn is_active(&self) -> bool {
        self.fence.is_some() && !self.loading && !self.queue.is_empty()
    }

    /// Whether the first of the queue is late.
    pub(crate) fn is_late(&self, wall: Timestamp) -> bool {
        let head = self.queue.front();
        head.is_some_and(|head| is_late(head.due, wall))
    }

    /// Whether the first of the queue may go out. `usual` is the usual limit on those under way.
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
            // The outcomes of all others first: one of them may be a success.
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

    /// The first of the queue goes out.
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

    /// A request has ended; its outcome is not recorded yet.
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
                // The receiver lives; but while it takes nothing it is still only probed.
                if probe {
                    self.breaker.failed(probe, now);
                }
            }
        }
    }

    /// A request was not made after all. What is queued is read anew with it, so that an order
    /// stands.
    pub(crate) fn unsent(&mut self, id: DeliveryId, probe: bool, now: Instant) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.known.remove(&id);
        self.clear();
        self.dirty = true;
        if probe {
            self.breaker.unprobed(now);
        }
    }

    /// Nothing goes out before `until`.
    pub(crate) fn rest(&mut self, until: Instant) {
        self.rests_until = Some(until);
    }

    /// An outcome is dealt with: recorded, or not to be. `waits` says that the delivery may still
    /// be waiting in the store.
    pub(crate) fn settled(&mut self, id: DeliveryId, waits: bool) {
        self.unrecorded = self.unrecorded.saturating_sub(1);
        self.known.remove(&id);
        if self.loading {
            self.settled.insert(id);
        }
        if waits && self.is_ordered() == Some(true) {
            // The others wait for it, and come back with it.
            self.clear();
        }
    }

    /// Whether requests or their outcomes are still awaited.
    pub(crate) fn is_awaited(&self) -> bool {
        self.in_flight > 0 || self.unrecorded > 0 || self.loading
    }

    /// Whether it can be given back. An order whose head waits for a retry is idle too.
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

    /// What to give back.
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

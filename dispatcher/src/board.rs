//! Decides which delivery is sent next. Publishers take turns, and within a publisher its endpoints
//! do.
//!
//! The requests under way are limited in all, for each publisher and for each endpoint. A request
//! that has lasted for longer than [`SLOW`] counts against a limit of its own, so that receivers
//! which hang can't use up everything. Late deliveries have a lower priority. Nothing here waits or
//! asks the store.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use domain::{
    Timestamp,
    id::{DeliveryId, PublisherId},
};
use persistence::{DeliveryTarget, DueDelivery, EndpointKey, HandedOver, Lease};

use crate::{
    backlog_throttle::BacklogThrottle,
    breaker::Breaker,
    endpoint::{End, Endpoint, Go, Pace, SLOW},
};
use round_robin::{Priority, RoundRobin};

mod round_robin;

/// With this many outcomes waiting to be recorded, no request is started.
const UNRECORDED_MAX: usize = 4096;
/// With this many deliveries loaded, only endpoints with none loaded get more.
const QUEUED_MAX: usize = 8192;
/// The same limit in bytes of their bodies.
const QUEUED_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Limits on the requests under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Requests that are not slow so far.
    pub(crate) quick: usize,
    /// With this many slow requests, slow endpoints start no other.
    pub(crate) slow: usize,
    /// All requests.
    pub(crate) all: usize,
    /// Requests of one publisher.
    pub(crate) publisher: usize,
    /// Requests to one endpoint, unless it has its own limit.
    pub(crate) endpoint: usize,
}

/// A delivery that is to be sent now.
#[derive(Clone, Debug)]
pub(crate) struct Start {
    pub(crate) flight: u64,
    pub(crate) key: EndpointKey,
    pub(crate) fence: i64,
    pub(crate) target: Arc<DeliveryTarget>,
    pub(crate) due: DueDelivery,
}

/// A request under way.
#[derive(Clone, Copy, Debug)]
struct Flight {
    key: EndpointKey,
    id: DeliveryId,
    began: Instant,
    slow: bool,
    probe: bool,
}

/// What to load for an endpoint.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    pub(crate) key: EndpointKey,
    pub(crate) limit: usize,
    /// Whether the endpoint is ordered; `None` if the target has to be read, too.
    pub(crate) ordered: Option<bool>,
    pub(crate) known: HashSet<DeliveryId>,
}

/// The numbers that the metrics show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Figures {
    pub(crate) in_flight: usize,
    pub(crate) slow: usize,
    pub(crate) leases: usize,
    pub(crate) queued: usize,
    pub(crate) open: usize,
    pub(crate) probing: usize,
}

/// The endpoints that this process holds, and the requests under way.
#[derive(Debug)]
pub(crate) struct Board {
    limits: Limits,
    endpoints: HashMap<EndpointKey, Endpoint>,
    round_robin: RoundRobin,
    backlog: BacklogThrottle,
    /// When the next late delivery may be sent, if it waits for its rate alone.
    held_back: Option<Instant>,
    to_load: VecDeque<EndpointKey>,
    wakes: BTreeSet<(Instant, EndpointKey)>,
    stale: BTreeSet<EndpointKey>,
    /// Slow endpoints that wait for the limit on slow requests.
    crowded: BTreeSet<EndpointKey>,
    flights: HashMap<u64, Flight>,
    last_flight: u64,
    slow: usize,
    unrecorded: usize,
    queued: usize,
    queued_bytes: usize,
}

impl Board {
    pub(crate) fn new(limits: Limits, now: Instant) -> Self {
        Self {
            limits,
            endpoints: HashMap::new(),
            round_robin: RoundRobin::new(limits.publisher),
            backlog: BacklogThrottle::new(now),
            held_back: None,
            to_load: VecDeque::new(),
            wakes: BTreeSet::new(),
            stale: BTreeSet::new(),
            crowded: BTreeSet::new(),
            flights: HashMap::new(),
            last_flight: 0,
            slow: 0,
            unrecorded: 0,
            queued: 0,
            queued_bytes: 0,
        }
    }

    pub(crate) fn is_held(&self, key: EndpointKey) -> bool {
        let found = self.endpoints.get(&key);
        found.is_some_and(|endpoint| endpoint.fence.is_some())
    }

    /// The number of requests under way and of outcomes that are not recorded yet.
    pub(crate) fn awaited(&self) -> usize {
        self.flights.len() + self.unrecorded
    }

    /// Changes an endpoint, updates the totals, and queues it if it has work.
    fn with<T>(&mut self, key: EndpointKey, change: impl FnOnce(&mut Endpoint) -> T) -> Option<T> {
        let endpoint = self.endpoints.get_mut(&key)?;
        let before = endpoint.weight();
        let value = change(endpoint);
        let after = endpoint.weight();
        let over = endpoint.fence.is_none() && !endpoint.is_awaited();
        self.queued = self.queued + after.0 - before.0;
        self.queued_bytes = self.queued_bytes + after.1 - before.1;
        if over {
            self.endpoints.remove(&key);
            self.round_robin.tidy(key.publisher);
        } else {
            self.ready(key);
            self.queue_load(key);
        }
        Some(value)
    }

    /// Puts an endpoint with something to send in its publisher's queue. Its priority is checked
    /// when its turn comes.
    fn ready(&mut self, key: EndpointKey) {
        let Some(endpoint) = self.endpoints.get_mut(&key) else {
            return;
        };
        if endpoint.queued_for.sending || endpoint.fence.is_none() || endpoint.queue.is_empty() {
            return;
        }
        endpoint.queued_for.sending = true;
        self.round_robin.push(key, Priority::OnTime);
    }

    fn short(&self) -> bool {
        self.queued >= QUEUED_MAX || self.queued_bytes >= QUEUED_BYTES_MAX
    }

    /// Puts an endpoint that wants more in the queue of those to load.
    fn queue_load(&mut self, key: EndpointKey) {
        let short = self.short();
        if let Some(endpoint) = self.endpoints.get_mut(&key)
            && !endpoint.queued_for.loading
            && endpoint.wants(short).is_some()
        {
            endpoint.queued_for.loading = true;
            self.to_load.push_back(key);
        }
    }

    /// Adds an endpoint whose lease was taken.
    pub(crate) fn hold(&mut self, lease: &Lease, now: Instant, wall: Timestamp) {
        self.endpoints
            .entry(lease.key)
            .or_insert_with(|| Endpoint::new(lease.key, now));
        self.with(lease.key, |endpoint| endpoint.held(lease, now, wall));
    }

    /// Drops an endpoint whose lease is lost.
    fn lose(&mut self, key: EndpointKey) {
        self.with(key, Endpoint::lose);
    }

    /// The same, if the lost lease is the present one; returns whether it was.
    pub(crate) fn lose_numbered(&mut self, key: EndpointKey, fence: i64) -> bool {
        let found = self.endpoints.get(&key);
        let present = found.is_some_and(|endpoint| endpoint.fence == Some(fence));
        if present {
            self.lose(key);
        }
        present
    }

    /// Drops all endpoints; returns their keys.
    pub(crate) fn lose_all(&mut self) -> Vec<EndpointKey> {
        let held = self.endpoints.values().filter(|one| one.fence.is_some());
        let held: Vec<EndpointKey> = held.map(|one| one.key).collect();
        for key in &held {
            self.lose(*key);
        }
        held
    }

    /// Tells an endpoint that it may have due deliveries that are not loaded.
    pub(crate) fn notify(&mut self, key: EndpointKey) {
        self.with(key, Endpoint::notify);
    }

    /// Sends an endpoint's deliveries again, whatever its receiver did before.
    pub(crate) fn resume(&mut self, key: EndpointKey, now: Instant) {
        self.with(key, |endpoint| endpoint.resume(now));
    }

    /// What to load next, for at most `most` endpoints. A target that was read within `fresh` need
    /// not be read again.
    pub(crate) fn loads(&mut self, most: usize, now: Instant, fresh: Duration) -> Vec<Load> {
        let short = self.short();
        let mut loads = Vec::new();
        while loads.len() < most
            && let Some(key) = self.to_load.pop_front()
        {
            let Some(endpoint) = self.endpoints.get_mut(&key) else {
                continue;
            };
            endpoint.queued_for.loading = false;
            if let Some(limit) = endpoint.wants(short) {
                loads.push(Load {
                    key,
                    limit,
                    ordered: endpoint
                        .is_ordered()
                        .filter(|_| !endpoint.is_stale(now, fresh)),
                    known: endpoint.load_begins(),
                });
            }
        }
        loads
    }

    /// Takes a page of an endpoint's deliveries; `more` says that the store has more due ones.
    pub(crate) fn loaded(
        &mut self,
        key: EndpointKey,
        due: Vec<DueDelivery>,
        more: bool,
        now: Instant,
    ) {
        self.with(key, |endpoint| endpoint.loaded(due, more, now));
    }

    /// Takes a delivery that a commit of this process hands over. Returns `false` if it has to be
    /// loaded from the store instead.
    pub(crate) fn hand_over(&mut self, handed: HandedOver, now: Instant) -> bool {
        let HandedOver { key, due, since } = handed;
        if self.short() {
            return false;
        }
        self.with(key, |endpoint| endpoint.hand_over(due, since, now))
            .unwrap_or(false)
    }

    pub(crate) fn load_failed(&mut self, key: EndpointKey) {
        self.with(key, Endpoint::load_failed);
    }

    /// Takes the target of an endpoint, whose reading began at `read_at`. `None` means that nothing
    /// may be sent to the endpoint.
    pub(crate) fn set_target(
        &mut self,
        key: EndpointKey,
        target: Option<Arc<DeliveryTarget>>,
        read_at: Instant,
        (now, wall): (Instant, Timestamp),
    ) {
        self.with(key, |endpoint| {
            endpoint.set_target(target, read_at, now);
            endpoint.fill_bucket(now, wall);
        });
    }

    /// Sends nothing to an endpoint before its target is read again: its receiver answered that it
    /// is gone.
    pub(crate) fn forget_target(&mut self, key: EndpointKey) {
        self.with(key, Endpoint::forget_target);
    }

    /// Invalidates all targets of these publishers that were read before `now`: their endpoints or
    /// secrets have changed.
    pub(crate) fn invalidate_targets(&mut self, publishers: &BTreeSet<PublisherId>, now: Instant) {
        let held = self.endpoints.values().filter(|one| one.fence.is_some());
        let of_them = held.filter(|one| publishers.contains(&one.key.publisher));
        let keys: Vec<EndpointKey> = of_them.map(|one| one.key).collect();
        for key in keys {
            self.with(key, |endpoint| endpoint.invalidate_target(now));
        }
    }

    /// Loads all queued deliveries again: the times at which they are due have changed.
    pub(crate) fn read_anew(&mut self) {
        let held = self.endpoints.values().filter(|one| one.fence.is_some());
        let held: Vec<EndpointKey> = held.map(|one| one.key).collect();
        for key in held {
            self.with(key, Endpoint::read_anew);
        }
    }

    /// The endpoints with something to send whose targets are older than `fresh`.
    pub(crate) fn stale(&mut self, now: Instant, fresh: Duration) -> Vec<EndpointKey> {
        self.stale.clear();
        let needed = self.endpoints.values();
        needed
            .filter(|one| one.is_active() && one.is_stale(now, fresh))
            .map(|one| one.key)
            .collect()
    }

    /// Whether a delivery waits for its target to be read again.
    pub(crate) fn has_stale(&self) -> bool {
        !self.stale.is_empty()
    }

    fn has_room(&self) -> bool {
        let all = self.flights.len();
        all < self.limits.all
            && all - self.slow < self.limits.quick
            && self.unrecorded < UNRECORDED_MAX
    }

    /// The next delivery to send, if one may be sent. Deliveries on time come first, unless a late
    /// one has waited for too long.
    pub(crate) fn pick(&mut self, now: Instant, wall: Timestamp) -> Option<Start> {
        self.held_back = None;
        if self.backlog.is_late_owed(now)
            && let Some(start) = self.pick_in(Priority::Late, now, wall)
        {
            return Some(start);
        }
        if let Some(start) = self.pick_in(Priority::OnTime, now, wall) {
            return Some(start);
        }
        if self.round_robin.len(Priority::Late) == 0 {
            return None;
        }
        match self.backlog.ready(now) {
            Ok(()) => self.pick_in(Priority::Late, now, wall),
            Err(later) => {
                self.held_back = Some(later);
                None
            }
        }
    }

    fn pick_in(&mut self, priority: Priority, now: Instant, wall: Timestamp) -> Option<Start> {
        for _ in 0..self.round_robin.len(priority) {
            if !self.has_room() {
                return None;
            }
            let id = self.round_robin.next_publisher(priority)?;
            let start = self.pick_of(id, priority, now, wall);
            self.round_robin.rejoin(id);
            self.round_robin.tidy(id);
            if start.is_some() {
                return start;
            }
        }
        None
    }

    fn pick_of(
        &mut self,
        id: PublisherId,
        priority: Priority,
        now: Instant,
        wall: Timestamp,
    ) -> Option<Start> {
        for _ in 0..self.round_robin.endpoints(id, priority) {
            let key = self.round_robin.next_endpoint(id, priority)?;
            let Some(endpoint) = self.endpoints.get_mut(&key) else {
                continue;
            };
            let fits = if endpoint.is_late(wall) {
                Priority::Late
            } else {
                Priority::OnTime
            };
            if fits != priority {
                self.round_robin.push(key, fits);
                continue;
            }
            endpoint.queued_for.sending = false;
            match endpoint.go(self.limits.endpoint, now, wall) {
                Go::Now { .. } if endpoint.pace == Pace::Slow && self.slow >= self.limits.slow => {
                    self.crowded.insert(key);
                }
                Go::Now { probe } => {
                    match priority {
                        Priority::OnTime => self.backlog.on_time_sent(now),
                        Priority::Late => self.backlog.late_sent(now),
                    }
                    return self.start(key, probe, now);
                }
                Go::At(later) => {
                    self.wakes.insert((later, key));
                }
                Go::Stale => {
                    self.stale.insert(key);
                }
                Go::Wait => {}
            }
        }
        None
    }

    fn start(&mut self, key: EndpointKey, probe: bool, now: Instant) -> Option<Start> {
        let slow = self.endpoints.get(&key)?.pace == Pace::Slow;
        let (fence, target, due) = self.with(key, |endpoint| endpoint.begin(probe, now))??;
        self.round_robin.begins(key.publisher);
        self.last_flight += 1;
        self.slow += usize::from(slow);
        let flight = Flight {
            key,
            id: due.id,
            began: now,
            slow,
            probe,
        };
        self.flights.insert(self.last_flight, flight);
        Some(Start {
            flight: self.last_flight,
            key,
            fence,
            target,
            due,
        })
    }

    /// Queues the endpoints whose time to go on has come.
    pub(crate) fn wake(&mut self, now: Instant) {
        while let Some((at, key)) = self.wakes.first().copied()
            && at <= now
        {
            self.wakes.pop_first();
            self.ready(key);
        }
    }

    /// When the next endpoint may go on.
    pub(crate) fn next_wake(&self) -> Option<Instant> {
        let wakes = self.wakes.first().map(|(at, _)| *at);
        wakes.into_iter().chain(self.held_back).min()
    }

    /// When the loop is to wake up to measure its own delay.
    pub(crate) fn next_measurement(&mut self, now: Instant) -> Option<Instant> {
        let waits = self.round_robin.len(Priority::Late) > 0;
        self.backlog.next_measurement(waits, now)
    }

    /// The loop woke up.
    pub(crate) fn woke(&mut self, now: Instant) {
        self.backlog.woke(now);
    }

    /// Counts requests that have lasted for [`SLOW`] as slow from now on.
    pub(crate) fn age(&mut self, now: Instant) {
        for flight in self.flights.values_mut() {
            if !flight.slow && now.saturating_duration_since(flight.began) >= SLOW {
                flight.slow = true;
                self.slow += 1;
                if let Some(endpoint) = self.endpoints.get_mut(&flight.key) {
                    endpoint.pace = Pace::Slow;
                }
            }
        }
    }

    /// Takes the end of a request, whose outcome is recorded next. Returns endpoint and delivery.
    pub(crate) fn ended(
        &mut self,
        flight: u64,
        end: End,
        now: Instant,
    ) -> Option<(EndpointKey, DeliveryId)> {
        let Flight {
            key,
            id,
            began,
            probe,
            ..
        } = self.land(flight)?;
        self.unrecorded += 1;
        let slow_now = now.saturating_duration_since(began) >= SLOW;
        self.with(key, |endpoint| {
            endpoint.ended(end, probe, slow_now, now);
        });
        self.make_room(key.publisher);
        Some((key, id))
    }

    /// Takes back a request that was not made: its delivery waits in the store as before.
    pub(crate) fn unsent(&mut self, flight: u64, now: Instant) {
        let Some(Flight { key, id, probe, .. }) = self.land(flight) else {
            return;
        };
        self.with(key, |endpoint| endpoint.unsent(id, probe, now));
        self.make_room(key.publisher);
    }

    /// The same because this process lacks a resource of its own; the endpoint rests until `until`.
    pub(crate) fn short_of(&mut self, flight: u64, until: Instant, now: Instant) {
        if let Some(flight) = self.flights.get(&flight) {
            let key = flight.key;
            self.with(key, |endpoint| endpoint.rest(until));
        }
        self.unsent(flight, now);
    }

    /// Removes a request from those under way.
    fn land(&mut self, flight: u64) -> Option<Flight> {
        let flight = self.flights.remove(&flight)?;
        self.slow -= usize::from(flight.slow);
        self.round_robin.ends(flight.key.publisher);
        Some(flight)
    }

    /// Queues those that waited for a limit on requests under way.
    fn make_room(&mut self, publisher: PublisherId) {
        self.round_robin.rejoin(publisher);
        if self.slow < self.limits.slow {
            for key in std::mem::take(&mut self.crowded) {
                self.ready(key);
            }
        }
    }

    /// An outcome is recorded, or never will be. `again` says that the delivery may still wait in
    /// the store.
    pub(crate) fn settled(&mut self, key: EndpointKey, id: DeliveryId, retried: bool, again: bool) {
        self.unrecorded = self.unrecorded.saturating_sub(1);
        self.with(key, |endpoint| {
            endpoint.settled(id, retried || again);
            if again {
                endpoint.notify();
            }
        });
    }

    /// Removes endpoints without work, at most `most`; returns the leases to give back.
    pub(crate) fn idle(&mut self, now: Instant, wall: Timestamp, most: usize) -> Vec<Lease> {
        let idle = self.endpoints.values_mut();
        let leases: Vec<Lease> = idle
            .filter(|one| one.is_idle(now, wall))
            .filter_map(|one| one.lease(now, wall))
            .take(most)
            .collect();
        for lease in &leases {
            self.lose(lease.key);
        }
        leases
    }

    /// Removes all endpoints; returns the leases to give back.
    pub(crate) fn all_leases(&mut self, now: Instant, wall: Timestamp) -> Vec<Lease> {
        let leases = self.endpoints.values_mut();
        let leases: Vec<Lease> = leases.filter_map(|one| one.lease(now, wall)).collect();
        self.lose_all();
        leases
    }

    pub(crate) fn figures(&self) -> Figures {
        let mut figures = Figures {
            in_flight: self.flights.len(),
            slow: self.slow,
            queued: self.queued,
            ..Figures::default()
        };
        for endpoint in self.endpoints.values().filter(|one| one.fence.is_some()) {
            figures.leases += 1;
            figures.open += usize::from(matches!(endpoint.breaker, Breaker::Open { .. }));
            figures.probing += usize::from(matches!(endpoint.breaker, Breaker::Probing { .. }));
        }
        figures
    }

    pub(crate) fn leases(&self) -> usize {
        self.endpoints.len()
    }
}

#[cfg(test)]
mod tests;

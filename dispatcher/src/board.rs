//! Who goes next: publishers take turns, and within a publisher its endpoints do.
//!
//! What is under way is bounded in all, for each publisher and for each endpoint. A request that
//! has lasted for long leaves the common places for others, up to a bound of their own, so that
//! receivers which hang can't take them all. What is late yields to what is on time. Nothing here
//! waits or asks the store.

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
    breaker::Breaker,
    endpoint::{End, Endpoint, Go, Pace, SLOW},
    yielding::Yielding,
};
use lines::{Line, Lines};

mod lines;

/// Outcomes that wait to be recorded; more stop the starts.
const UNRECORDED_MAX: usize = 4096;
/// Loaded deliveries beyond which only endpoints with nothing loaded get more.
const QUEUED_MAX: usize = 8192;
/// The same in bytes of their bodies.
const QUEUED_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Bounds on what is under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Requests that are quick so far.
    pub(crate) quick: usize,
    /// Requests that were slow from their start, since their endpoint is.
    pub(crate) slow: usize,
    /// All.
    pub(crate) all: usize,
    /// Those of one publisher.
    pub(crate) publisher: usize,
    /// Those to one endpoint, unless it has its own limit.
    pub(crate) endpoint: usize,
}

/// A delivery that is to go out now.
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

/// What to load of an endpoint.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    pub(crate) key: EndpointKey,
    pub(crate) limit: usize,
    /// Whether in order, where the target was read just now; else it is to be read with it.
    pub(crate) ordered: Option<bool>,
    pub(crate) known: HashSet<DeliveryId>,
}

/// Figures of the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Figures {
    pub(crate) in_flight: usize,
    pub(crate) slow: usize,
    pub(crate) leases: usize,
    pub(crate) queued: usize,
    pub(crate) open: usize,
    pub(crate) probing: usize,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Board {
    limits: Limits,
    endpoints: HashMap<EndpointKey, Endpoint>,
    lines: Lines,
    yielding: Yielding,
    /// When the next that is late may go out, where that is all that it waits for.
    held_back: Option<Instant>,
    to_load: VecDeque<EndpointKey>,
    wakes: BTreeSet<(Instant, EndpointKey)>,
    stale: BTreeSet<EndpointKey>,
    /// Slow endpoints that wait for a place among the slow.
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
            lines: Lines::new(limits.publisher),
            yielding: Yielding::new(now),
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

    /// Requests under way, and outcomes that are not recorded yet.
    pub(crate) fn awaited(&self) -> usize {
        self.flights.len() + self.unrecorded
    }

    /// Changes an endpoint, keeps count of what is queued, and lets it go on.
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
            self.lines.tidy(key.publisher);
        } else {
            self.ready(key);
            self.line_up(key);
        }
        Some(value)
    }

    /// Puts an endpoint with something to send in its publisher's line. Whether it belongs to those
    /// that are late shows when its turn comes.
    fn ready(&mut self, key: EndpointKey) {
        let Some(endpoint) = self.endpoints.get_mut(&key) else {
            return;
        };
        if endpoint.lines.turn || endpoint.fence.is_none() || endpoint.queue.is_empty() {
            return;
        }
        endpoint.lines.turn = true;
        self.lines.push(key, Line::OnTime);
    }

    fn short(&self) -> bool {
        self.queued >= QUEUED_MAX || self.queued_bytes >= QUEUED_BYTES_MAX
    }

    /// Puts an endpoint that wants more in the line of those to load.
    fn line_up(&mut self, key: EndpointKey) {
        let short = self.short();
        if let Some(endpoint) = self.endpoints.get_mut(&key)
            && !endpoint.lines.load
            && endpoint.wants(short).is_some()
        {
            endpoint.lines.load = true;
            self.to_load.push_back(key);
        }
    }

    /// A lease is taken.
    pub(crate) fn hold(&mut self, lease: &Lease, now: Instant, wall: Timestamp) {
        self.endpoints
            .entry(lease.key)
            .or_insert_with(|| Endpoint::new(lease.key, now));
        self.with(lease.key, |endpoint| endpoint.held(lease, now, wall));
    }

    /// A lease is lost.
    fn lose(&mut self, key: EndpointKey) {
        self.with(key, Endpoint::lose);
    }

    /// The lease of this number is lost, if it is the present one; answers whether it was.
    pub(crate) fn lose_numbered(&mut self, key: EndpointKey, fence: i64) -> bool {
        let found = self.endpoints.get(&key);
        let present = found.is_some_and(|endpoint| endpoint.fence == Some(fence));
        if present {
            self.lose(key);
        }
        present
    }

    /// All leases are lost; answers which.
    pub(crate) fn lose_all(&mut self) -> Vec<EndpointKey> {
        let held = self.endpoints.values().filter(|one| one.fence.is_some());
        let held: Vec<EndpointKey> = held.map(|one| one.key).collect();
        for key in &held {
            self.lose(*key);
        }
        held
    }

    /// There may be more of an endpoint than is loaded.
    pub(crate) fn rung(&mut self, key: EndpointKey) {
        self.with(key, Endpoint::rung);
    }

    /// An endpoint's deliveries go out whatever its receiver did before.
    pub(crate) fn resume(&mut self, key: EndpointKey, now: Instant) {
        self.with(key, |endpoint| endpoint.resume(now));
    }

    /// What to load next, of at most so many endpoints; a target that was read within `fresh`
    /// need not be read again.
    pub(crate) fn loads(&mut self, most: usize, now: Instant, fresh: Duration) -> Vec<Load> {
        let short = self.short();
        let mut loads = Vec::new();
        while loads.len() < most
            && let Some(key) = self.to_load.pop_front()
        {
            let Some(endpoint) = self.endpoints.get_mut(&key) else {
                continue;
            };
            endpoint.lines.load = false;
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

    /// A page of an endpoint has come.
    pub(crate) fn loaded(
        &mut self,
        key: EndpointKey,
        due: Vec<DueDelivery>,
        more: bool,
        now: Instant,
    ) {
        self.with(key, |endpoint| endpoint.loaded(due, more, now));
    }

    /// Takes a delivery that a commit hands over. Answers `false` for one that has to be looked
    /// for in the store.
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

    /// An endpoint was read, beginning at `read_at`; nothing if it may not be sent to.
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

    /// An endpoint's receiver says that it is gone: nothing goes out before it was read again.
    pub(crate) fn doubt(&mut self, key: EndpointKey) {
        self.with(key, Endpoint::doubt);
    }

    /// Endpoints or secrets of these publishers have changed: nothing goes out by what was read
    /// of them before `now`.
    pub(crate) fn outdate(&mut self, publishers: &BTreeSet<PublisherId>, now: Instant) {
        let held = self.endpoints.values().filter(|one| one.fence.is_some());
        let of_them = held.filter(|one| publishers.contains(&one.key.publisher));
        let keys: Vec<EndpointKey> = of_them.map(|one| one.key).collect();
        for key in keys {
            self.with(key, |endpoint| endpoint.outdate(now));
        }
    }

    /// When deliveries are due has changed: all that is queued is read again.
    pub(crate) fn read_anew(&mut self) {
        let held = self.endpoints.values().filter(|one| one.fence.is_some());
        let held: Vec<EndpointKey> = held.map(|one| one.key).collect();
        for key in held {
            self.with(key, Endpoint::read_anew);
        }
    }

    /// Endpoints whose targets are older than `fresh` and are needed.
    pub(crate) fn stale(&mut self, now: Instant, fresh: Duration) -> Vec<EndpointKey> {
        self.stale.clear();
        let needed = self.endpoints.values();
        needed
            .filter(|one| one.is_active() && one.is_stale(now, fresh))
            .map(|one| one.key)
            .collect()
    }

    /// Whether something can't go out before its target was read again.
    pub(crate) fn has_stale(&self) -> bool {
        !self.stale.is_empty()
    }

    fn has_room(&self) -> bool {
        let all = self.flights.len();
        all < self.limits.all
            && all - self.slow < self.limits.quick
            && self.unrecorded < UNRECORDED_MAX
    }

    /// The next delivery to go out, if one may: what is on time first, unless what is late has
    /// waited for long.
    pub(crate) fn pick(&mut self, now: Instant, wall: Timestamp) -> Option<Start> {
        self.held_back = None;
        if self.yielding.is_owed(now)
            && let Some(start) = self.pick_in(Line::Late, now, wall)
        {
            return Some(start);
        }
        if let Some(start) = self.pick_in(Line::OnTime, now, wall) {
            return Some(start);
        }
        if self.lines.len(Line::Late) == 0 {
            return None;
        }
        match self.yielding.ready(now) {
            Ok(()) => self.pick_in(Line::Late, now, wall),
            Err(later) => {
                self.held_back = Some(later);
                None
            }
        }
    }

    fn pick_in(&mut self, line: Line, now: Instant, wall: Timestamp) -> Option<Start> {
        for _ in 0..self.lines.len(line) {
            if !self.has_room() {
                return None;
            }
            let id = self.lines.next_publisher(line)?;
            let start = self.pick_of(id, line, now, wall);
            self.lines.rejoin(id);
            self.lines.tidy(id);
            if start.is_some() {
                return start;
            }
        }
        None
    }

    fn pick_of(
        &mut self,
        id: PublisherId,
        line: Line,
        now: Instant,
        wall: Timestamp,
    ) -> Option<Start> {
        for _ in 0..self.lines.endpoints(id, line) {
            let key = self.lines.next_endpoint(id, line)?;
            let Some(endpoint) = self.endpoints.get_mut(&key) else {
                continue;
            };
            let fits = if endpoint.is_late(wall) {
                Line::Late
            } else {
                Line::OnTime
            };
            if fits != line {
                self.lines.push(key, fits);
                continue;
            }
            endpoint.lines.turn = false;
            match endpoint.go(self.limits.endpoint, now, wall) {
                Go::Now { .. } if endpoint.pace == Pace::Slow && self.slow >= self.limits.slow => {
                    self.crowded.insert(key);
                }
                Go::Now { probe } => {
                    match line {
                        Line::OnTime => self.yielding.takes_on_time(now),
                        Line::Late => self.yielding.takes_late(now),
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
        self.lines.begins(key.publisher);
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

    /// Lets those who waited for a moment go on, once it has come.
    pub(crate) fn wake(&mut self, now: Instant) {
        while let Some((at, key)) = self.wakes.first().copied()
            && at <= now
        {
            self.wakes.pop_first();
            self.ready(key);
        }
    }

    /// When somebody may go on.
    pub(crate) fn next_wake(&self) -> Option<Instant> {
        let wakes = self.wakes.first().map(|(at, _)| *at);
        wakes.into_iter().chain(self.held_back).min()
    }

    /// When the loop is to be woken only to see when it is.
    pub(crate) fn next_look(&mut self, now: Instant) -> Option<Instant> {
        let waits = self.lines.len(Line::Late) > 0;
        self.yielding.next_look(waits, now)
    }

    /// The loop is awake.
    pub(crate) fn woke(&mut self, now: Instant) {
        self.yielding.woke(now);
    }

    /// Requests that have lasted for long leave the common places.
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

    /// A request has ended, well or not; its outcome is to be recorded. Answers whose it was.
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

    /// A request was not made after all: its delivery waits in the store as before.
    pub(crate) fn unsent(&mut self, flight: u64, now: Instant) {
        let Some(Flight { key, id, probe, .. }) = self.land(flight) else {
            return;
        };
        self.with(key, |endpoint| endpoint.unsent(id, probe, now));
        self.make_room(key.publisher);
    }

    /// The same since this process is short of something of its own; none goes there before `until`.
    pub(crate) fn short_of(&mut self, flight: u64, until: Instant, now: Instant) {
        if let Some(flight) = self.flights.get(&flight) {
            let key = flight.key;
            self.with(key, |endpoint| endpoint.rest(until));
        }
        self.unsent(flight, now);
    }

    /// A request is under way no more.
    fn land(&mut self, flight: u64) -> Option<Flight> {
        let flight = self.flights.remove(&flight)?;
        self.slow -= usize::from(flight.slow);
        self.lines.ends(flight.key.publisher);
        Some(flight)
    }

    /// Lets those go on who waited for a place.
    fn make_room(&mut self, publisher: PublisherId) {
        self.lines.rejoin(publisher);
        if self.slow < self.limits.slow {
            for key in std::mem::take(&mut self.crowded) {
                self.ready(key);
            }
        }
    }

    /// An outcome is dealt with. `again` says that the delivery may still be waiting in the store.
    pub(crate) fn settled(&mut self, key: EndpointKey, id: DeliveryId, retried: bool, again: bool) {
        self.unrecorded = self.unrecorded.saturating_sub(1);
        self.with(key, |endpoint| {
            endpoint.settled(id, retried || again);
            if again {
                endpoint.rung();
            }
        });
    }

    /// Takes endpoints without work off the board, at most so many; answers what to give back.
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

    /// Takes everything off the board.
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

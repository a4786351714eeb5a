//! Who stands in line: publishers take turns, and within a publisher its endpoints do. What is on
//! time stands in one line, what is late in another.
//!
//! A publisher whose 1 000 endpoints all have something to send starts one request before a
//! neighbour's; in a single queue of endpoints it would start 1 000. Taking turns costs 0.3 µs a
//! request, and a request 90 to 269 µs (`docs/benchmarks.md`). Without the line of what is late, p99
//! of the neighbours grew from 7.4 to 43.3 ms beside a backlog (PostgreSQL, the same page).
//!
//! The first two figures are from a loop over this type and over a single queue: 98 publishers with
//! three endpoints each, the medians of nine rounds.

use std::collections::{HashMap, VecDeque};

use domain::id::PublisherId;
use persistence::EndpointKey;

/// Which line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line {
    OnTime,
    Late,
}

/// A publisher's places in one line.
#[derive(Debug, Default)]
struct Turns {
    endpoints: VecDeque<EndpointKey>,
    /// Whether the publisher stands in the line.
    in_ring: bool,
}

#[derive(Debug, Default)]
struct Publisher {
    turns: [Turns; 2],
    in_flight: usize,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Lines {
    publishers: HashMap<PublisherId, Publisher>,
    rings: [VecDeque<PublisherId>; 2],
    /// Most requests of a publisher under way.
    most: usize,
}

impl Lines {
    pub(super) fn new(most: usize) -> Self {
        Self {
            publishers: HashMap::new(),
            rings: [VecDeque::new(), VecDeque::new()],
            most,
        }
    }

    /// An endpoint goes to the end of its publisher's turns.
    pub(super) fn push(&mut self, key: EndpointKey, line: Line) {
        let publisher = self.publishers.entry(key.publisher).or_default();
        publisher.turns[line as usize].endpoints.push_back(key);
        self.rejoin(key.publisher);
    }

    /// Puts a publisher with something to send in line, unless it has its share under way.
    pub(super) fn rejoin(&mut self, id: PublisherId) {
        let Some(publisher) = self.publishers.get_mut(&id) else {
            return;
        };
        if publisher.in_flight >= self.most {
            return;
        }
        for (turns, ring) in publisher.turns.iter_mut().zip(&mut self.rings) {
            if !turns.in_ring && !turns.endpoints.is_empty() {
                turns.in_ring = true;
                ring.push_back(id);
            }
        }
    }

    /// How many publishers stand in line.
    pub(super) fn len(&self, line: Line) -> usize {
        self.rings[line as usize].len()
    }

    /// The publisher whose turn it is leaves the line; it has to rejoin.
    pub(super) fn next_publisher(&mut self, line: Line) -> Option<PublisherId> {
        let id = self.rings[line as usize].pop_front()?;
        if let Some(publisher) = self.publishers.get_mut(&id) {
            publisher.turns[line as usize].in_ring = false;
        }
        Some(id)
    }

    /// How many of a publisher's endpoints stand in line.
    pub(super) fn endpoints(&self, id: PublisherId, line: Line) -> usize {
        let found = self.publishers.get(&id);
        found.map_or(0, |one| one.turns[line as usize].endpoints.len())
    }

    /// The endpoint of a publisher's whose turn it is leaves the line; none if the publisher has
    /// its share under way.
    pub(super) fn next_endpoint(&mut self, id: PublisherId, line: Line) -> Option<EndpointKey> {
        let publisher = self.publishers.get_mut(&id)?;
        if publisher.in_flight >= self.most {
            return None;
        }
        publisher.turns[line as usize].endpoints.pop_front()
    }

    /// A request of a publisher's begins.
    pub(super) fn begins(&mut self, id: PublisherId) {
        self.publishers.entry(id).or_default().in_flight += 1;
    }

    /// A request of a publisher's is under way no more.
    pub(super) fn ends(&mut self, id: PublisherId) {
        if let Some(publisher) = self.publishers.get_mut(&id) {
            publisher.in_flight = publisher.in_flight.saturating_sub(1);
        }
    }

    /// Forgets a publisher with nothing to send and nothing under way.
    pub(super) fn tidy(&mut self, id: PublisherId) {
        let idle = |turns: &Turns| turns.endpoints.is_empty() && !turns.in_ring;
        let found = self.publishers.get(&id);
        if found.is_some_and(|one| one.in_flight == 0 && one.turns.iter().all(idle)) {
            self.publishers.remove(&id);
        }
    }
}

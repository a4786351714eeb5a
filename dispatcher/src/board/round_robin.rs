//! The order in which endpoints send: round robin between publishers, and between the endpoints of
//! one publisher. Deliveries on time and late ones have a queue each.

use std::collections::{HashMap, VecDeque};

use domain::id::PublisherId;
use persistence::EndpointKey;

/// Which of the two queues. A delivery is late if [`is_late`](crate::backlog_throttle::is_late)
/// says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Priority {
    OnTime,
    Late,
}

/// The endpoints of one publisher with something to send at one priority.
#[derive(Debug, Default)]
struct EndpointQueue {
    endpoints: VecDeque<EndpointKey>,
    /// Whether the publisher itself is queued at this priority.
    is_queued: bool,
}

#[derive(Debug, Default)]
struct Publisher {
    queues: [EndpointQueue; 2],
    in_flight: usize,
}

/// See the module.
#[derive(Debug)]
pub(super) struct RoundRobin {
    publishers: HashMap<PublisherId, Publisher>,
    publisher_queues: [VecDeque<PublisherId>; 2],
    /// Most requests of a publisher under way.
    most: usize,
}

impl RoundRobin {
    pub(super) fn new(most: usize) -> Self {
        Self {
            publishers: HashMap::new(),
            publisher_queues: [VecDeque::new(), VecDeque::new()],
            most,
        }
    }

    /// Puts an endpoint at the end of its publisher's queue.
    pub(super) fn push(&mut self, key: EndpointKey, priority: Priority) {
        let publisher = self.publishers.entry(key.publisher).or_default();
        publisher.queues[priority as usize].endpoints.push_back(key);
        self.rejoin(key.publisher);
    }

    /// Queues a publisher with something to send, unless it has its share under way.
    pub(super) fn rejoin(&mut self, id: PublisherId) {
        let Some(publisher) = self.publishers.get_mut(&id) else {
            return;
        };
        if publisher.in_flight >= self.most {
            return;
        }
        for (own, publishers) in publisher.queues.iter_mut().zip(&mut self.publisher_queues) {
            if !own.is_queued && !own.endpoints.is_empty() {
                own.is_queued = true;
                publishers.push_back(id);
            }
        }
    }

    /// How many publishers are queued.
    pub(super) fn len(&self, priority: Priority) -> usize {
        self.publisher_queues[priority as usize].len()
    }

    /// Takes the first publisher out of the queue; the caller has to call [`RoundRobin::rejoin`].
    pub(super) fn next_publisher(&mut self, priority: Priority) -> Option<PublisherId> {
        let id = self.publisher_queues[priority as usize].pop_front()?;
        if let Some(publisher) = self.publishers.get_mut(&id) {
            publisher.queues[priority as usize].is_queued = false;
        }
        Some(id)
    }

    /// How many of a publisher's endpoints are queued.
    pub(super) fn endpoints(&self, id: PublisherId, priority: Priority) -> usize {
        let found = self.publishers.get(&id);
        found.map_or(0, |one| one.queues[priority as usize].endpoints.len())
    }

    /// Takes the first endpoint out of a publisher's queue; none if the publisher has its share
    /// under way.
    pub(super) fn next_endpoint(
        &mut self,
        id: PublisherId,
        priority: Priority,
    ) -> Option<EndpointKey> {
        let publisher = self.publishers.get_mut(&id)?;
        if publisher.in_flight >= self.most {
            return None;
        }
        publisher.queues[priority as usize].endpoints.pop_front()
    }

    /// Counts a request of a publisher that begins.
    pub(super) fn begins(&mut self, id: PublisherId) {
        self.publishers.entry(id).or_default().in_flight += 1;
    }

    /// Counts a request of a publisher that has ended.
    pub(super) fn ends(&mut self, id: PublisherId) {
        if let Some(publisher) = self.publishers.get_mut(&id) {
            publisher.in_flight = publisher.in_flight.saturating_sub(1);
        }
    }

    /// Removes a publisher with nothing to send and nothing under way.
    pub(super) fn tidy(&mut self, id: PublisherId) {
        let idle = |queue: &EndpointQueue| queue.endpoints.is_empty() && !queue.is_queued;
        let found = self.publishers.get(&id);
        if found.is_some_and(|one| one.in_flight == 0 && one.queues.iter().all(idle)) {
            self.publishers.remove(&id);
        }
    }
}

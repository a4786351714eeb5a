//! What must happen after a commit, and only then.
//!
//! A transaction collects it while it works. One that is rolled back, or whose commit does not
//! answer, leaves nothing of it behind.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Instant,
};

use domain::{
    Timestamp,
    id::{DeliveryId, EndpointId, EventId, Id as _, PublisherId},
};
use sea_orm::{QueryResult, Value};
use uuid::Uuid;

use crate::store::{
    entity::{deliveries, events},
    error::Result,
};

/// Most deliveries that are handed over before anybody takes them.
const HANDED_MAX: usize = 4096;
/// The same in bytes of their bodies, each counted as often as it is to be sent.
const HANDED_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Which endpoint of which publisher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointKey {
    /// Whose.
    pub publisher: PublisherId,
    /// Which.
    pub endpoint: EndpointId,
}

impl EndpointKey {
    pub(crate) fn of_uuids(publisher: Uuid, endpoint: Uuid) -> Self {
        Self {
            publisher: PublisherId::from_uuid(publisher),
            endpoint: EndpointId::from_uuid(endpoint),
        }
    }

    pub(crate) fn of_row(row: &QueryResult) -> Result<Self> {
        Ok(Self::of_uuids(
            row.try_get("", "publisher_id")?,
            row.try_get("", "endpoint_id")?,
        ))
    }

    pub(crate) fn values(self) -> [Value; 2] {
        [self.publisher.uuid().into(), self.endpoint.uuid().into()]
    }
}

/// A delivery that is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DueDelivery {
    /// Which.
    pub id: DeliveryId,
    /// What it tells of.
    pub event: EventId,
    /// The exact text to send and sign. Empty, as no event's is, where it can't be read.
    pub body: Arc<str>,
    /// Which try comes next, from 1.
    pub attempt: i32,
    /// How many of those before were answered by asking for a pause.
    pub throttled: i32,
    /// Since when it is due; in an order, when it will be.
    pub due: Timestamp,
    /// When it was written.
    pub created_at: Timestamp,
}

/// A delivery that a commit of this process wrote, for its own dispatcher (ADR 0022).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandedOver {
    /// To which endpoint.
    pub key: EndpointKey,
    /// What is to be sent.
    pub due: DueDelivery,
    /// From when on the store may have shown it: the moment before the commit began.
    pub since: Instant,
}

/// Deliveries that are handed over, within bounds.
#[derive(Debug)]
pub(crate) struct Handed<T> {
    all: Vec<T>,
    bytes: usize,
}

impl<T> Default for Handed<T> {
    fn default() -> Self {
        Self {
            all: Vec::new(),
            bytes: 0,
        }
    }
}

impl<T> Handed<T> {
    /// Whether there was room for it.
    pub(crate) fn push(&mut self, one: T, bytes: usize) -> bool {
        let room = self.all.len() < HANDED_MAX && self.bytes + bytes <= HANDED_BYTES_MAX;
        if room {
            self.all.push(one);
            self.bytes += bytes;
        }
        room
    }

    pub(crate) fn into_all(self) -> Vec<T> {
        self.all
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }
}

/// Deliveries that were not there before, or that can go out from now on.
#[derive(Debug, Default)]
pub(crate) struct Deliveries {
    /// To which endpoints, of which publishers.
    pub(crate) endpoints: BTreeSet<(Uuid, Uuid)>,
    /// To which of them some are not handed over, and have to be looked for.
    pub(crate) looked_for: BTreeSet<(Uuid, Uuid)>,
    pub(crate) handed: Handed<(EndpointKey, DueDelivery)>,
    /// To which endpoints they go out whatever the receivers did before.
    pub(crate) resumed: BTreeSet<(Uuid, Uuid)>,
}

impl Deliveries {
    pub(crate) fn look_for(&mut self, endpoint: (Uuid, Uuid)) {
        self.endpoints.insert(endpoint);
        self.looked_for.insert(endpoint);
    }

    fn hand_over(&mut self, row: &deliveries::Model, body: &Arc<str>) {
        let endpoint = (row.publisher_id, row.endpoint_id);
        let due = DueDelivery {
            id: DeliveryId::from_uuid(row.id),
            event: EventId::from_uuid(row.event_id),
            body: Arc::clone(body),
            attempt: row.attempts.saturating_add(1),
            throttled: row.throttled,
            due: Timestamp::from_ms(row.next_attempt_at.unwrap_or(row.created_at)),
            created_at: Timestamp::from_ms(row.created_at),
        };
        let key = EndpointKey::of_uuids(endpoint.0, endpoint.1);
        self.endpoints.insert(endpoint);
        if !self.handed.push((key, due), body.len()) {
            self.looked_for.insert(endpoint);
        }
    }

    /// Hands rows over with what their events say, but for those that have a place in an order or
    /// are told once more: these wait for their turn in the store.
    pub(crate) fn wrote(&mut self, rows: &[deliveries::Model], bodies: &Bodies) {
        for row in rows {
            match bodies.0.get(&row.event_id) {
                Some(body) if row.seq == 0 && row.precedence == 0 => self.hand_over(row, body),
                _ => self.look_for((row.publisher_id, row.endpoint_id)),
            }
        }
    }
}

/// What events say, by their identifiers.
#[derive(Debug, Default)]
pub(crate) struct Bodies(HashMap<Uuid, Arc<str>>);

impl Bodies {
    /// Of those events that have deliveries.
    pub(crate) fn of<'a>(
        events: impl IntoIterator<Item = &'a events::Model>,
        deliveries: &[deliveries::Model],
    ) -> Self {
        let wanted: BTreeSet<Uuid> = deliveries.iter().map(|row| row.event_id).collect();
        let events = events.into_iter().filter(|row| wanted.contains(&row.id));
        Self(
            events
                .map(|row| (row.id, Arc::from(row.body.as_str())))
                .collect(),
        )
    }
}

/// See the module.
#[derive(Default)]
pub(crate) struct Effects {
    /// Whose credentials changed.
    pub(crate) credentials_of: Vec<PublisherId>,
    /// Of whom the dispatcher may know endpoints or secrets that are no longer so.
    pub(crate) targets_of: BTreeSet<Uuid>,
    pub(crate) deliveries: Deliveries,
    /// Who may have runs to hand out that were not there before.
    pub(crate) runs_ready: BTreeSet<Uuid>,
    /// Which runs changed, and of which publishers there are new events.
    pub(crate) changed: BTreeSet<Uuid>,
    /// How many bytes more of each publisher are stored; fewer where it is below zero.
    pub(crate) stored: HashMap<Uuid, i64>,
    /// Whether messages about trains wait that were not there before.
    pub(crate) notices: bool,
    /// Whether fan-outs wait to be spread that were not there before.
    pub(crate) fan_outs: bool,
    /// How many endpoints listen to each publisher whose events were written.
    pub(crate) listening: HashMap<Uuid, usize>,
}

#[cfg(test)]
mod tests;

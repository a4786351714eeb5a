//! The effects of a commit: what must happen after it, and only then.
//!
//! A transaction collects them while it works. If it is rolled back, or its commit gets no answer,
//! they are dropped.

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

/// Most deliveries that are kept for the dispatcher until it takes them.
const HANDED_MAX: usize = 4096;
/// Most bytes of their bodies. A body counts once for each delivery.
const HANDED_BYTES_MAX: usize = 16 * 1024 * 1024;

/// An endpoint and its publisher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointKey {
    /// The endpoint's publisher.
    pub publisher: PublisherId,
    /// The endpoint within its publisher.
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

/// A delivery that is to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DueDelivery {
    /// The delivery's identifier.
    pub id: DeliveryId,
    /// The event that it is about.
    pub event: EventId,
    /// The exact text to send and sign. Empty if it cannot be read; no event's text is empty.
    pub body: Arc<str>,
    /// The number of the next attempt, from 1.
    pub attempt: i32,
    /// How many earlier attempts were answered with a request for a pause.
    pub throttled: i32,
    /// Since when it is due. For an ordered endpoint: from when it may be due.
    pub due: Timestamp,
    /// When it was written.
    pub created_at: Timestamp,
}

/// A delivery that a commit of this process wrote, for its own dispatcher (ADR 0022).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandedOver {
    /// The endpoint.
    pub key: EndpointKey,
    /// The delivery.
    pub due: DueDelivery,
    /// A time just before the commit: the store may have shown the delivery since then.
    pub since: Instant,
}

/// Deliveries that are handed to the dispatcher, limited in number and bytes.
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
    /// Adds one, and returns whether there was room for it.
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

/// Deliveries that are new, or that can be sent from now on.
#[derive(Debug, Default)]
pub(crate) struct Deliveries {
    /// Their endpoints, with the publishers.
    pub(crate) endpoints: BTreeSet<(Uuid, Uuid)>,
    /// Endpoints some of whose deliveries are not handed over, and so have to be looked up.
    pub(crate) looked_for: BTreeSet<(Uuid, Uuid)>,
    pub(crate) handed: Handed<(EndpointKey, DueDelivery)>,
    /// Endpoints whose deliveries are sent even if the receiver failed before.
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

    /// Hands rows over together with their events' bodies. Rows with a sequence number and replays
    /// are not handed over: they wait for their turn in the store.
    pub(crate) fn wrote(&mut self, rows: &[deliveries::Model], bodies: &Bodies) {
        for row in rows {
            match bodies.0.get(&row.event_id) {
                Some(body) if row.seq == 0 && row.precedence == 0 => self.hand_over(row, body),
                _ => self.look_for((row.publisher_id, row.endpoint_id)),
            }
        }
    }
}

/// The bodies of events, by the events' identifiers.
#[derive(Debug, Default)]
pub(crate) struct Bodies(HashMap<Uuid, Arc<str>>);

impl Bodies {
    /// The bodies of those events that have deliveries.
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

/// The effects of one transaction; see the module.
#[derive(Default)]
pub(crate) struct Effects {
    /// The publishers whose credentials changed.
    pub(crate) credentials_of: Vec<PublisherId>,
    /// The publishers whose endpoints or secrets changed, so that the dispatcher reads them again.
    pub(crate) targets_of: BTreeSet<Uuid>,
    pub(crate) deliveries: Deliveries,
    /// The publishers that may have new runs to hand out.
    pub(crate) runs_ready: BTreeSet<Uuid>,
    /// The runs that changed, and the publishers with new events.
    pub(crate) changed: BTreeSet<Uuid>,
    /// How many bytes more are stored for each publisher; negative if bytes were removed.
    pub(crate) stored: HashMap<Uuid, i64>,
    /// Whether there are new messages about trains.
    pub(crate) notices: bool,
    /// Whether mails were written.
    pub(crate) mails: bool,
    /// Whether there are new fan-outs to spread.
    pub(crate) fan_outs: bool,
    /// For each publisher whose events were written, how many of its endpoints listen.
    pub(crate) listening: HashMap<Uuid, usize>,
}

#[cfg(test)]
mod tests;

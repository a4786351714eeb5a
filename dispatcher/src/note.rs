//! What the tasks of the dispatcher tell the loop that decides.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use domain::id::DeliveryId;
use persistence::{
    AttemptOutcome, DeliveryTarget, DuePage, EndpointKey, Lease, Next, ProcessId, RecordResult,
    WaitingEndpoint,
};

/// Something that happened.
pub(crate) enum Note {
    /// The store answered which of the asked endpoints this registration holds now.
    Leased(ProcessId, Vec<EndpointKey>, Option<Vec<Lease>>),
    /// Pages were loaded, by what was read since then.
    Loaded(Vec<EndpointKey>, Instant, Option<Found>),
    /// Targets were read, beginning then.
    Refreshed(Vec<EndpointKey>, Instant, Option<Targets>),
    /// All endpoints were looked at.
    Polled(Option<Vec<WaitingEndpoint>>),
    /// Leases were given back, or not.
    GivenBack,
    /// A request has ended.
    Ended(u64, Option<Tried>),
    /// A request was not made.
    Unsent(u64),
    /// A request could not be made for want of something of our own.
    Short(u64),
    /// Outcomes were recorded, or not.
    Recorded(Vec<Recorded>),
}

/// A try that was made.
#[derive(Debug)]
pub(crate) struct Tried {
    /// What is to be written down.
    pub(crate) outcome: AttemptOutcome,
    /// The pause that the receiver asked for.
    pub(crate) pause: Option<Duration>,
}

/// What endpoints are sent by.
pub(crate) type Targets = HashMap<EndpointKey, Arc<DeliveryTarget>>;

/// What a load found.
pub(crate) struct Found {
    /// Of which endpoints the targets were read.
    pub(crate) read: Vec<EndpointKey>,
    pub(crate) targets: Targets,
    pub(crate) pages: Vec<DuePage>,
}

/// An outcome that is dealt with.
#[derive(Clone, Debug)]
pub(crate) struct Recorded {
    pub(crate) key: EndpointKey,
    pub(crate) fence: i64,
    pub(crate) id: DeliveryId,
    pub(crate) next: Next,
    /// Nothing where the store refused it.
    pub(crate) verdict: Option<RecordResult>,
}

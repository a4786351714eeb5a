//! The notes by which the dispatcher's tasks report to its loop.

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

/// A report of what happened.
pub(crate) enum Note {
    /// Which of the asked endpoints this registration holds now; `None` if the store failed.
    Leased(ProcessId, Vec<EndpointKey>, Option<Vec<Lease>>),
    /// Pages and targets of the asked endpoints, whose reading began then; `None` if the store
    /// failed.
    Loaded(Vec<EndpointKey>, Instant, Option<LoadResult>),
    /// Targets of the asked endpoints, whose reading began then; `None` if the store failed.
    Refreshed(Vec<EndpointKey>, Instant, Option<Targets>),
    /// The endpoints with waiting deliveries; `None` if the store failed.
    Polled(Option<Vec<WaitingEndpoint>>),
    /// An attempt to give leases back has ended, well or not.
    GivenBack,
    /// A request has ended; `None` if its task panicked.
    Ended(u64, Option<Tried>),
    /// A request was not made, because this process may not hold its leases any more.
    Unsent(u64),
    /// A request could not be made because this process lacked a resource of its own.
    Short(u64),
    /// Outcomes were recorded, or refused by the store.
    Recorded(Vec<Recorded>),
}

/// A try that was made.
#[derive(Debug)]
pub(crate) struct Tried {
    /// The outcome to record.
    pub(crate) outcome: AttemptOutcome,
    /// The pause that the receiver asked for.
    pub(crate) pause: Option<Duration>,
}

/// The targets of endpoints: URL, headers, secrets and limits.
pub(crate) type Targets = HashMap<EndpointKey, Arc<DeliveryTarget>>;

/// What a load read.
pub(crate) struct LoadResult {
    /// The endpoints whose targets were read.
    pub(crate) read: Vec<EndpointKey>,
    pub(crate) targets: Targets,
    pub(crate) pages: Vec<DuePage>,
}

/// An outcome that the recorder is done with.
#[derive(Clone, Debug)]
pub(crate) struct Recorded {
    pub(crate) key: EndpointKey,
    pub(crate) fence: i64,
    pub(crate) id: DeliveryId,
    pub(crate) next: Next,
    /// What the store made of it; `None` if the store refused it.
    pub(crate) verdict: Option<RecordResult>,
}

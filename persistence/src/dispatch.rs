//! Deliveries on their way out, dispatched by endpoint (ADR 0017).
//!
//! A process leases an endpoint and is then the only one that sends to it, so what is due is
//! loaded without a claim for each delivery, and outcomes are written many at a time. Each change
//! of holder counts the lease's `fence` up; an outcome counts only under the present number, so
//! that a late writer changes nothing. A lease is good for as long as its process renews its row.

use domain::id::{EndpointId, Id as _, PublisherId};
use sea_orm::{QueryResult, Value};
use uuid::Uuid;

use crate::{error::Result, sql::padded};

mod due;
mod leases;
mod outcomes;
mod processes;
mod targets;

pub use due::{Ask, DueDelivery, Page, Waiting};
pub use leases::{Handover, Lease};
pub use outcomes::{Next, Outcome, Verdict};
pub use processes::{PROCESS_EXPIRES_AFTER, ProcessId, Renewed};
pub use targets::Target;

pub(crate) use targets::SecretCache;

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

    fn of_row(row: &QueryResult) -> Result<Self> {
        Ok(Self::of_uuids(
            row.try_get("", "publisher_id")?,
            row.try_get("", "endpoint_id")?,
        ))
    }

    fn values(self) -> [Value; 2] {
        [self.publisher.uuid().into(), self.endpoint.uuid().into()]
    }
}

/// The keys for an `IN (…)`.
fn rows_of(keys: &[EndpointKey]) -> impl Iterator<Item = Vec<Value>> {
    let keys = padded(keys.iter().copied()).into_iter();
    keys.map(|key| key.values().to_vec())
}

fn whole(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;

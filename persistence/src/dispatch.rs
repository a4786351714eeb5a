//! Deliveries on their way out, dispatched by endpoint (ADR 0017).
//!
//! A process leases an endpoint and is then the only one that sends to it, so what is due is
//! loaded without a claim for each delivery, and outcomes are written many at a time. Each change
//! of holder counts the lease's `fence` up; an outcome counts only under the present number, so
//! that a late writer changes nothing. A lease is good for as long as its process renews its row.

use sea_orm::Value;

use crate::{effects::EndpointKey, sql::padded};

mod due;
mod leases;
mod outcomes;
mod processes;
mod targets;

pub use due::{Ask, Page, Waiting};
pub use leases::{Handover, Lease};
pub use outcomes::{Next, Outcome, Verdict};
pub use processes::{PROCESS_EXPIRES_AFTER, ProcessId, Renewed};
pub use targets::Target;

pub(crate) use targets::SecretCache;

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

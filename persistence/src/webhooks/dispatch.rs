//! Deliveries that are sent, by endpoint (ADR 0017).
//!
//! A process leases an endpoint and is then the only one that sends to it. So due deliveries are
//! loaded without a claim for each, and outcomes are written many at a time. Each change of holder
//! increases the lease's `fence`. An outcome counts only with the current number, so that a late
//! writer changes nothing. A lease is valid as long as its process renews its row.

mod due;
mod leases;
mod outcomes;
mod processes;
mod targets;
mod values;

pub use due::{DuePage, DueRequest, WaitingEndpoint};
pub use leases::{Handover, Lease};
pub use outcomes::{AttemptOutcome, Next, RecordResult};
pub use processes::{PROCESS_EXPIRES_AFTER, ProcessId, Renewed};
pub use targets::DeliveryTarget;

pub(crate) use targets::SecretCache;

#[cfg(test)]
mod tests;

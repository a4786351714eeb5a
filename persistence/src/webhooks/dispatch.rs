//! Deliveries on their way out, dispatched by endpoint (ADR 0017).
//!
//! A process leases an endpoint and is then the only one that sends to it, so what is due is
//! loaded without a claim for each delivery, and outcomes are written many at a time. Each change
//! of holder counts the lease's `fence` up; an outcome counts only under the present number, so
//! that a late writer changes nothing. A lease is good for as long as its process renews its row.

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

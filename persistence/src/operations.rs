//! Operations of the service: opening the store, scheduled jobs, sweeps, reading the audit log,
//! counting stored bytes, and changes that other processes made.

pub(crate) mod audit;
mod credential_changes;
pub(crate) mod jobs;
pub(crate) mod open;
pub(crate) mod recount;
pub(crate) mod rewrap;
pub(crate) mod sweeps;

use crate::store::handle::handle;

handle! {
    "The audit log, jobs, sweeps and keys: of one
     publisher over [`Scoped`](crate::Scoped), of all over [`System`](crate::System).",
    Operations, Scoped::operations, System::operations
}

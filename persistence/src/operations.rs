//! What keeps the service going: opening the store, scheduled jobs, sweeps, the audit log as it is
//! read, counts of stored bytes, and what other processes changed.

pub(crate) mod audit;
mod credential_changes;
pub(crate) mod jobs;
pub(crate) mod open;
pub(crate) mod recount;
pub(crate) mod rewrap;
pub(crate) mod sweeps;

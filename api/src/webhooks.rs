//! What happened, and how it reaches its endpoints.

pub(crate) mod deliveries;
pub(crate) mod endpoint_secrets;
pub(crate) mod endpoints;
pub(crate) mod event_types;
pub(crate) mod events;
pub(crate) mod listen;
pub(crate) mod replays;

//! Webhooks: endpoints with their secrets and health, events and their types, and deliveries from
//! the event to the last attempt.

pub(crate) mod deliveries;
mod delivery_rows;
pub(crate) mod dispatch;
pub(crate) mod enabling;
mod endpoint_rows;
pub(crate) mod endpoint_secrets;
pub(crate) mod endpoints;
pub(crate) mod event_types;
pub(crate) mod events;
pub(crate) mod fan_outs;
pub(crate) mod feed;
pub(crate) mod health;
mod listeners;
pub(crate) mod own_events;
mod publish;
mod recovery;
pub(crate) mod replays;

use crate::store::handle::handle;

handle! {
    "Endpoints, events and deliveries: of one
     publisher over [`Scoped`](crate::Scoped), of all over [`System`](crate::System).",
    Webhooks, Scoped::webhooks, System::webhooks
}

//! Trains: upstream accounts, their import and refresh, the trains that lend them, the trains'
//! tokens, and messages about trains.

pub(crate) mod account_authorizations;
pub(crate) mod accounts;
mod end_cooldown;
pub(crate) mod import;
pub(crate) mod lending;
pub(crate) mod notices;
pub(crate) mod refresh;
pub(crate) mod train;
pub(crate) mod train_tokens;

use crate::store::handle::handle;

handle! {
    "Accounts and trains: of one
     publisher over [`Scoped`](crate::Scoped), of all over [`System`](crate::System).",
    Trains, Scoped::trains, System::trains
}

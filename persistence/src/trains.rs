//! Trains: upstream accounts, how they come in and stay fresh, the trains that lend them, their
//! tokens, and messages about them.

pub(crate) mod account_authorizations;
pub(crate) mod accounts;
mod end_cooldown;
pub(crate) mod import;
pub(crate) mod lending;
pub(crate) mod notices;
pub(crate) mod refresh;
pub(crate) mod train;
pub(crate) mod train_tokens;

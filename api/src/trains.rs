//! Upstream credentials, and the trains that lend them to gateways.

pub(crate) mod accounts;
pub mod resolve;
pub(crate) mod train;
pub(crate) mod train_tokens;

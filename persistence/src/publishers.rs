//! Publishers, their credentials, and who a presented token stands for.

pub(crate) mod auth;
pub(crate) mod credentials;
pub(crate) mod publisher;
mod seed;

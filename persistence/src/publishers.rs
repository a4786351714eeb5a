//! Publishers, their credentials, and the authentication of tokens.

pub(crate) mod auth;
pub(crate) mod credentials;
pub(crate) mod publisher;
mod seed;

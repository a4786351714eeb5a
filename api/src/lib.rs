//! The HTTP surface: one module a resource, over the shared ways of [`http`] and the [`contract`].

pub mod auth;
pub mod common;
pub mod contract;
pub mod cursor;
pub mod docs;
pub mod http;
pub mod idempotency;

#[cfg(test)]
mod sample;

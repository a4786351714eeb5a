//! The HTTP surface: one module a resource, over the shared ways of [`http`] and the [`contract`].

pub mod contract;
pub mod docs;
pub mod http;

#[cfg(test)]
mod sample;

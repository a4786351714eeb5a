//! What stands below authentication and below every resource.

mod app;
pub mod common;
pub mod cursor;
pub(crate) mod destination;
pub(crate) mod examples;
pub mod idempotency;
mod notices;
mod own_value;
pub mod page;
pub mod path;
pub(crate) mod sent;
pub(crate) mod verbatim;
pub(crate) mod words;

pub use app::App;
pub(crate) use app::{OUTSIDE, context};
pub(crate) use notices::Notices;
pub(crate) use own_value::own_value;

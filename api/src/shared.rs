//! What stands below authentication and below every resource.

mod app;
pub(crate) mod examples;
mod notices;

pub use app::App;
pub(crate) use app::{OUTSIDE, context};
pub(crate) use notices::Notices;

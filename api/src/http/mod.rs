//! Everything about HTTP that no resource should have to know: connections, limits, bodies,
//! errors, request identifiers, logs and counters. Of publishers it knows
//! whose request it is, and of the store nothing.

pub mod address;
pub mod body;
pub mod context;
pub mod error;
pub mod limit;
pub mod raw;
pub mod serve;
pub mod share;
pub mod stack;

pub(crate) mod json;
mod meters;
mod open;
mod refusal;
mod stall;

pub use body::{Body, OptionalBody, Patch};
pub use context::RequestContext;
pub use error::ApiError;
pub use limit::{RateLimits, RateSettings, RateState};
pub use raw::AnyBody;
pub(crate) use refusal::of_query;
pub use serve::{ConnectionLimits, serve};
pub use share::{Owner, Shares};
pub use stack::{Stack, StackOptions, wrap};

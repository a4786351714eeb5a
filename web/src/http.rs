//! Everything about HTTP that no resource should have to know: connections, limits, bodies,
//! errors, request identifiers, logs and counters. Of publishers it knows
//! whose request it is, and of the store nothing.

pub mod address;
pub mod body;
pub mod context;
pub mod cookies;
pub mod error;
pub mod form;
pub mod limit;
pub mod middleware;
pub mod origin;
pub mod pages;
pub mod raw;
pub mod serve;
pub mod share;

mod error_mapping;
pub mod json;
mod last_answer;
mod malformed;
mod meters;
mod open;
mod slow_client;

pub use body::{Body, OptionalBody, Patch};
pub use context::RequestContext;
pub use error::ApiError;
pub use error_mapping::of_query;
pub use form::Form;
pub use limit::{RateLimits, RateSettings, RateState};
pub use middleware::{ProblemPages, Stack, StackOptions, wrap};
pub use origin::PublicOrigin;
pub use pages::Pages;
pub use raw::AnyBody;
pub use serve::{ConnectionLimits, serve};
pub use share::{Owner, Shares};

//! Rules and types of Stationmaster, without I/O.
//!
//! Nothing here uses a database or a socket. Time comes from a [`clock::Clock`], randomness from
//! [`random`]. This crate depends on no other crate of the workspace.

pub mod account;
pub mod audit;
pub mod clock;
pub mod credential;
pub mod event;
pub mod fault;
pub mod id;
pub mod json;
pub mod lending;
pub mod limits;
pub mod notice;
pub mod people;
pub mod permission;
pub mod permits;
pub mod pipeline;
pub mod problem;
pub mod progress;
pub mod random;
pub mod retry;
pub mod run;
pub mod seal;
pub mod signature;
pub mod slug;
pub mod token;
pub mod train;
pub mod upstream;
mod words;

pub use clock::{Clock, Timestamp};
pub use fault::FaultCode;
pub use json::JsonText;
pub use problem::{Code, FieldError, Problem};
pub use slug::Slug;

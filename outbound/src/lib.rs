//! The HTTP client for all requests to other servers, with a guard that checks their destinations;
//! and [`mail`].
//!
//! Every request to a URL that a tenant can choose (webhook endpoints, subcommands, token
//! endpoints, Slack) is sent by [`Client`]. A [`Policy`] checks the URL when it is stored and again
//! when it is used, and checks every address of its host each time that a connection is made.
//!
//! This crate must never follow a redirect, obey a proxy variable, keep a cookie, read a body
//! without a limit, or put bytes of an answer into an error.

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")
)]

mod client;
mod connect;
mod excerpt;
mod failure;
mod guard;
mod headers;
pub mod mail;
mod registry;
mod resolver;
mod shortage;
mod stream;
mod tls;

pub use client::{
    Client, ClientLimits, KEEP_BYTES_DEFAULT, READ_BYTES_MAX_DEFAULT, Request, Response, asked_wait,
};
pub use excerpt::{EXCERPT_BYTES_MAX, mask_secrets, safe_excerpt};
pub use failure::{Failure, Phase};
pub use guard::{Destination, DestinationRefusal, Policy, URL_LEN_MAX_DEFAULT};
pub use headers::{
    HEADER_NAME_LEN_MAX, HEADER_VALUE_LEN_MAX, HeaderRefusal, check_credential_header,
    check_custom_header,
};
pub use http::Method;
pub use registry::AddressClass;
pub use resolver::{Answer, ResolveFailed, Resolver, SystemResolver};
pub use stream::Incoming;

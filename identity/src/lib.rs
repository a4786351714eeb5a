//! How people get in: sign-in, registration, invitations and sessions, without HTTP.

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")
)]

pub mod mails;

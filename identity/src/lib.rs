//! How people get in: sign-in, registration, invitations and sessions, without HTTP.

pub mod issuers;
pub mod jws;
pub mod passkeys;

mod json;
mod public_key;

pub use public_key::Algorithm;

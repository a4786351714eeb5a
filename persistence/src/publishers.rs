//! Publishers, their credentials, and the authentication of tokens.

pub(crate) mod auth;
pub(crate) mod credentials;
pub(crate) mod publisher;
mod seed;

use crate::store::handle::handle;

handle! {
    "One publisher's own credentials.",
    Credentials, Scoped::credentials
}

handle! {
    "All publishers, and how their tokens are used.",
    Publishers, System::publishers
}

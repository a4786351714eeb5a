//! Publishers, their credentials, and the authentication of tokens.

pub(crate) mod auth;
pub(crate) mod credentials;
pub(crate) mod invitations;
pub(crate) mod members;
pub(crate) mod publisher;
mod seed;
pub(crate) mod standing;

use crate::store::handle::handle;

handle! {
    "One publisher's own credentials.",
    Credentials, Scoped::credentials
}

handle! {
    "One publisher's members and invitations.",
    Members, Scoped::members
}

handle! {
    "All publishers, and how their tokens are used.",
    Publishers, System::publishers
}

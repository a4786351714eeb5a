//! How people get in: sign-in, registration, invitations and sessions, without HTTP.
//!
//! [`Service`] is what pages and JSON operations call alike. It decides and words; the rows are the
//! store's ([`persistence::Identity`]). Everything that a browser or a mail holds is random text,
//! of which only keyed hashes are stored.

mod invitations;
pub mod mails;
mod own;
pub mod passwords;
mod service;
mod sign_in;
mod throttle;

pub use own::{ADDRESS_CHANGE_LASTS, AddressChange, PasswordChange};
pub use service::{BeginSession, Registration, Service, Settings};
pub use sign_in::{
    Device, LinkKind, NewBrowserSession, OpenedLink, REGISTRATION_LASTS, RESET_LASTS, Requested,
};

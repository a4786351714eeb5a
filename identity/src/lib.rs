//! How people get in: sign-in, registration, invitations and sessions, without HTTP.
//!
//! [`Service`] is what pages and JSON operations call alike. It decides and words; the rows are the
//! store's ([`persistence::Identity`]). Everything that a browser or a mail holds is random text,
//! of which only keyed hashes are stored.

mod ceremonies;
mod invitations;
pub mod issuers;
mod json;
pub mod jws;
pub mod mails;
mod own;
pub mod passkeys;
pub mod passwords;
mod providers;
mod public_key;
mod recovery;
mod service;
mod sign_in;
mod throttle;

pub use ceremonies::Ceremony;
pub use own::{ADDRESS_CHANGE_LASTS, AddressChange, PasswordChange};
pub use providers::{BeganElsewhere, CameBack};
pub use public_key::Algorithm;
pub use recovery::RESET_LASTS;
pub use service::{BeginSession, Registration, Service, Settings};
pub use sign_in::{Device, LinkKind, NewBrowserSession, OpenedLink, REGISTRATION_LASTS, Requested};

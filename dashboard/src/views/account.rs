//! One's own page.

use askama::Template;

use super::{Field, Frame, Moment, sign_in::Provider};

/// `/account`.
#[derive(Debug, Template)]
#[template(path = "account.html")]
pub(crate) struct Account {
    pub(crate) frame: Frame,
    pub(crate) name: Field,
    pub(crate) email: String,
    pub(crate) sessions: Vec<Session>,
    pub(crate) passkeys: Vec<Passkey>,
    pub(crate) identities: Vec<Identity>,
    /// The providers that can be connected.
    pub(crate) providers: Vec<Provider>,
    /// Whether this server can have passkeys.
    pub(crate) has_passkeys: bool,
    /// Whether the deployment has passwords.
    pub(crate) passwords: bool,
    pub(crate) has_password: bool,
}

/// A sign-in of a browser.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) id: String,
    /// Browser and system, as the browser says.
    pub(crate) device: String,
    pub(crate) address: String,
    pub(crate) last_seen: Moment,
    /// Whether it is this browser.
    pub(crate) current: bool,
}

/// A passkey.
#[derive(Debug)]
pub(crate) struct Passkey {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) created: Moment,
    pub(crate) last_used: Option<Moment>,
}

/// A sign-in elsewhere that signs somebody in here.
#[derive(Debug)]
pub(crate) struct Identity {
    /// The provider, by its URL.
    pub(crate) issuer: String,
    /// What the provider calls the person.
    pub(crate) name: String,
}

/// `/account/password`.
#[derive(Debug, Template)]
#[template(path = "password.html")]
pub(crate) struct Password {
    pub(crate) frame: Frame,
    pub(crate) email: String,
    pub(crate) has_password: bool,
    pub(crate) password: Field,
}

/// `/account/email`.
#[derive(Debug, Template)]
#[template(path = "email.html")]
pub(crate) struct Email {
    pub(crate) frame: Frame,
    /// The present address.
    pub(crate) email: String,
    pub(crate) new_email: Field,
}

/// `/account/passkeys/{id}`: its name.
#[derive(Debug, Template)]
#[template(path = "passkey.html")]
pub(crate) struct RenamePasskey {
    pub(crate) frame: Frame,
    pub(crate) id: String,
    pub(crate) name: Field,
}

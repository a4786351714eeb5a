//! Getting in.

use askama::Template;

use super::{Field, Frame};

/// A provider that one can sign in with.
#[derive(Clone, Debug)]
pub(crate) struct Provider {
    /// Its name in addresses.
    pub(crate) slug: String,
    /// Its name for people.
    pub(crate) name: String,
}

/// The ways that are open for signing in.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ways {
    /// Whether a mailed link can be asked for.
    pub(crate) mail: bool,
    pub(crate) passwords: bool,
    pub(crate) passkeys: bool,
    pub(crate) providers: Vec<Provider>,
}

/// `/sign-in`.
#[derive(Debug, Template)]
#[template(path = "sign-in.html")]
pub(crate) struct SignIn {
    pub(crate) frame: Frame,
    pub(crate) email: Field,
    pub(crate) password: Field,
    pub(crate) ways: Ways,
    /// Whether people without an invitation can register.
    pub(crate) registration: bool,
    /// Where to go after it.
    pub(crate) return_to: String,
}

/// `/sign-in/code`: a mail is on its way, and this browser may type the code in it.
#[derive(Debug, Template)]
#[template(path = "sign-in-code.html")]
pub(crate) struct SignInCode {
    pub(crate) frame: Frame,
    pub(crate) code: Field,
    /// How long the mail is good for, minutes.
    pub(crate) minutes: u64,
}

/// `/sign-in/confirm`: what a mailed link is for, and a button.
#[derive(Debug, Template)]
#[template(path = "sign-in-confirm.html")]
pub(crate) struct SignInConfirm {
    pub(crate) frame: Frame,
    /// Whom the link signs in.
    pub(crate) email: String,
    pub(crate) token: String,
    /// Whether another browser asked for the link.
    pub(crate) elsewhere: bool,
}

/// `/sign-in/with/{provider}`: on the way to the provider.
#[derive(Debug, Template)]
#[template(path = "leave.html")]
pub(crate) struct Leave {
    pub(crate) frame: Frame,
    /// The provider's name for people.
    pub(crate) provider: String,
    /// Where to go. Made by this server from the provider's settings.
    pub(crate) url: String,
}

/// `/confirm-it-is-you`: a recent sign-in is needed.
#[derive(Debug, Template)]
#[template(path = "confirm-it-is-you.html")]
pub(crate) struct ConfirmItIsYou {
    pub(crate) frame: Frame,
    pub(crate) email: String,
    pub(crate) password: Field,
    /// Whether this person has a password.
    pub(crate) has_password: bool,
    /// Whether a code can be mailed.
    pub(crate) has_mail: bool,
    /// Whether this person has passkeys.
    pub(crate) has_passkeys: bool,
    pub(crate) return_to: String,
}

/// `/forgot-password`.
#[derive(Debug, Template)]
#[template(path = "forgot-password.html")]
pub(crate) struct ForgotPassword {
    pub(crate) frame: Frame,
    pub(crate) email: Field,
}

/// `/reset-password`: a new password, by a mailed link.
#[derive(Debug, Template)]
#[template(path = "reset-password.html")]
pub(crate) struct ResetPassword {
    pub(crate) frame: Frame,
    /// Whose password it is.
    pub(crate) email: String,
    pub(crate) token: String,
    pub(crate) password: Field,
}

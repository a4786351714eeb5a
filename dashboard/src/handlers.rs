//! What answers at each address: it takes a form, calls the service, and shows a view or leads on.

pub(crate) mod account;
pub(crate) mod join;
pub(crate) mod links;
pub(crate) mod passkeys;
pub(crate) mod providers;
pub(crate) mod publisher;
pub(crate) mod sign_in;

use poem::Response;

use crate::stop::Stop;

/// What a handler answers.
pub(crate) type Answer = Result<Response, Stop>;

/// What was just done, by the word for it in the address of the page that says so.
pub(crate) fn done(word: Option<&str>) -> Option<&'static str> {
    Some(match word? {
        "name" => "Your name was changed.",
        "session" => "That browser was signed out.",
        "everywhere" => "You were signed out everywhere.",
        "signed-out" => "You were signed out.",
        "password" => "Your password was changed, and all other browsers were signed out.",
        "password-removed" => "Your password was removed.",
        "reset" => "Your password was changed. Sign in with it.",
        "address-asked" => "A mail with a link is on its way to the new address.",
        "address" => "Your address was changed.",
        "passkey" => "The passkey was added.",
        "passkey-name" => "The passkey was renamed.",
        "passkey-removed" => "The passkey was removed.",
        "connected" => "That sign-in is connected with you now.",
        "disconnected" => "That sign-in is not connected with you any more.",
        "joined" => "You are a member now.",
        "left" => "You are not a member any more.",
        "invited" => "The invitation is on its way.",
        "withdrawn" => "The invitation was withdrawn.",
        "role" => "The role was changed.",
        "removed" => "That person is not a member any more.",
        _ => return None,
    })
}

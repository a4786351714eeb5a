//! What the browser says about a request (WebAuthn §5.8.1).

use serde_json::Value;

use super::{Challenge, PasskeyError, RelyingParty, encoded, equal};
use crate::json;

/// The longest text of a browser, in bytes.
const LEN_MAX: usize = 8 * 1024;

/// Which of its two functions the browser was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ceremony {
    Registration,
    SignIn,
}

impl Ceremony {
    const fn name(self) -> &'static str {
        match self {
            Self::Registration => "webauthn.create",
            Self::SignIn => "webauthn.get",
        }
    }
}

/// Checks that the browser was asked by a page of this site, for this ceremony, with this challenge.
pub(super) fn check(
    text: &[u8],
    ceremony: Ceremony,
    party: &RelyingParty,
    challenge: &Challenge,
) -> Result<(), PasskeyError> {
    if text.len() > LEN_MAX {
        return Err(PasskeyError::Malformed);
    }
    let members = json::object(text).ok_or(PasskeyError::Malformed)?;
    let member = |name: &str| {
        let text = members.get(name).and_then(Value::as_str);
        text.ok_or(PasskeyError::Malformed)
    };
    if member("type")? != ceremony.name() {
        return Err(PasskeyError::Ceremony);
    }
    let answered = member("challenge")?;
    if !equal(answered.as_bytes(), encoded(challenge).as_bytes()) {
        return Err(PasskeyError::Challenge);
    }
    if member("origin")? != party.origin {
        return Err(PasskeyError::Origin);
    }
    match members.get("crossOrigin") {
        None | Some(Value::Bool(false)) => {}
        Some(Value::Bool(true)) => return Err(PasskeyError::CrossOrigin),
        Some(_) => return Err(PasskeyError::Malformed),
    }
    // The origin of the page around, which is told only if there is another one.
    if members.contains_key("topOrigin") {
        return Err(PasskeyError::CrossOrigin);
    }
    Ok(())
}

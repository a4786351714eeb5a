//! The operator's bootstrap tokens.

use domain::{
    audit::{Actor, ActorKind},
    token::TokenHash,
};

use super::{Outcome, Sent};
use crate::shared::{App, context};
use web::http::RequestContext;

/// Characters of a bootstrap token's hash that name it in the log.
const FINGERPRINT_CHARS: usize = 16;

/// The bootstrap token that was sent, if it is one. What is none may be a token of another scheme,
/// so nothing fails here.
pub(super) fn authenticate(app: &App, sent: Option<Sent<'_>>) -> Outcome<TokenHash> {
    match sent {
        Some(sent) if is_one_of(&app.bootstrap, &sent.hash) => Outcome::Authenticated(sent.hash),
        _ => Outcome::NotRequested,
    }
}

/// The actor that audit rows name: the token by the beginning of its hash.
pub(super) fn actor(token: &TokenHash) -> Actor {
    Actor {
        kind: ActorKind::Bootstrap,
        id: fingerprint(token),
    }
}

/// Looks at all of them, always: how long it takes tells nothing.
fn is_one_of(tokens: &[TokenHash], hash: &TokenHash) -> bool {
    tokens
        .iter()
        .fold(false, |found, known| known.matches(hash) | found)
}

/// Writes down that a bootstrap token was used: off the request's path, and at most once a minute
/// for each token.
pub(super) fn note_use(app: &App, request: &RequestContext, token: &TokenHash) {
    if !app
        .notices
        .due(*token.as_bytes(), "bootstrap", app.store.now())
    {
        return;
    }
    let system = app.store.system();
    let context = context(request, actor(token), (None, None));
    app.tasks.spawn(async move {
        if let Err(error) = system.operations().note_bootstrap_use(&context).await {
            tracing::warn!(%error, "a use of a bootstrap token could not be written down");
        }
    });
}

/// Names a bootstrap token without telling anything of it.
fn fingerprint(hash: &TokenHash) -> String {
    let hex = hash.as_bytes().iter().flat_map(|byte| {
        let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap_or('0');
        [digit(byte >> 4), digit(byte & 15)]
    });
    "boot_".chars().chain(hex.take(FINGERPRINT_CHARS)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_short_and_steady() {
        let hash = TokenHash::of("abc");
        assert_eq!(fingerprint(&hash), "boot_ba7816bf8f01cfea");
    }

    #[test]
    fn each_of_the_tokens_is_known_and_no_other() {
        let [one, two, other] = ["one", "two", "other"].map(TokenHash::of);
        assert!(is_one_of(&[one, two], &one) && is_one_of(&[one, two], &two));
        assert!(!is_one_of(&[one, two], &other) && !is_one_of(&[], &other));
    }
}

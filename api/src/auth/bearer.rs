//! The bearer tokens of publishers and trains.

use std::sync::Arc;

use poem::{
    Request,
    http::{HeaderName, header},
};

use domain::{
    id::Id as _,
    token::{self, MAX_BEARER_LEN, MIN_FOREIGN_LEN, Prefix, TokenHash},
};
use persistence::{CachedToken, Principal};

use super::{Outcome, Sent};
use crate::shared::App;
use web::http::{ApiError, Owner, RequestContext};

/// Where some clients send what others send as a bearer.
pub(crate) const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// The one bearer of a request; `None` when there is none, or it can be no token.
pub(super) fn of(request: &Request) -> Option<&str> {
    let mut values = request.headers().get_all(header::AUTHORIZATION).iter();
    let value = values.next()?.to_str().ok()?;
    if values.next().is_some() {
        return None;
    }
    let (scheme, text) = value.split_once(' ')?;
    let text = text.trim_matches(' ');
    (scheme.eq_ignore_ascii_case("bearer") && is_sane(text)).then_some(text)
}

/// What a request sends as `x-api-key`; `None` when there is none, or it can be no token.
pub(super) fn api_key(request: &Request) -> Option<&str> {
    let mut values = request.headers().get_all(API_KEY).iter();
    let text = values.next()?.to_str().ok()?;
    (values.next().is_none() && is_sane(text)).then_some(text)
}

fn is_sane(text: &str) -> bool {
    (1..=MAX_BEARER_LEN).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Which tokens without our form there are.
#[derive(Clone, Copy)]
struct OtherForms {
    /// Older ones of publishers.
    foreign: bool,
    /// Ones of trains that were made elsewhere, in whatever form.
    imported: bool,
}

/// Whether the text may be a token of a publisher or a train: of our form, or of another one while
/// there are such.
fn may_be_token(text: &str, others: OtherForms) -> bool {
    match token::recognise(text) {
        Some(prefix) => matches!(prefix, Prefix::Admin | Prefix::Runner | Prefix::Train),
        None if text.starts_with("stm_") => false,
        None => others.imported || (others.foreign && text.len() >= MIN_FOREIGN_LEN),
    }
}

/// The live token of a publisher or a train, its publisher's allowance counted.
pub(super) async fn authenticate(
    app: &App,
    context: &RequestContext,
    sent: Option<Sent<'_>>,
) -> Result<Outcome<(Arc<Principal>, TokenHash)>, ApiError> {
    let Some(sent) = sent else {
        return Ok(Outcome::NotRequested);
    };
    let others = OtherForms {
        foreign: app.store.knows_foreign_tokens(),
        imported: app.store.knows_imported_tokens(),
    };
    if !may_be_token(sent.text, others) {
        return Ok(Outcome::Failed);
    }
    let Some(principal) = look_up(app, context, sent.hash).await? else {
        return Ok(Outcome::Failed);
    };
    let publisher = principal.scope.publisher().uuid();
    context.admit(app.limits.check_publisher(publisher))?;
    Ok(Outcome::Authenticated((principal, sent.hash)))
}

/// Asks the store only for what is worth a query. An address that has failed too often gets none
/// for tokens that were never good here, but is not locked out of those that were: it may be shared
/// with one that guesses.
async fn look_up(
    app: &App,
    context: &RequestContext,
    hash: TokenHash,
) -> Result<Option<Arc<Principal>>, ApiError> {
    match app.store.cached_token(hash) {
        CachedToken::Live(principal) => return Ok(Some(principal)),
        CachedToken::Stale => {}
        CachedToken::Unknown => {
            let verdict = app.limits.may_authenticate(context.address(), &hash);
            context.admit(verdict.map(|()| None))?;
        }
    }
    // Whose work it is shows only now: until then it is its address's.
    context.enter(Owner::address(context.address())).await?;
    Ok(app.store.authenticate(hash).await?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret as _;

    fn bearer_of(values: &[&str]) -> Option<String> {
        let mut request = Request::builder();
        for value in values {
            request = request.header("authorization", *value);
        }
        of(&request.finish()).map(str::to_owned)
    }

    #[test]
    fn one_sane_bearer_is_taken() {
        assert_eq!(bearer_of(&["Bearer abc"]).as_deref(), Some("abc"));
        assert_eq!(bearer_of(&["bearer  abc"]).as_deref(), Some("abc"));
        let long = format!("Bearer {}", "x".repeat(MAX_BEARER_LEN + 1));
        for odd in [
            "",
            "Bearer",
            "Bearer ",
            "Basic abc",
            "Bearer a b",
            "abc",
            &long,
        ] {
            assert_eq!(bearer_of(&[odd]), None, "{odd}");
        }
        assert_eq!(bearer_of(&["Bearer abc", "Bearer abc"]), None);
        assert_eq!(bearer_of(&[]), None);
    }

    #[test]
    fn one_sane_key_is_taken() {
        let sent = |values: &[&str]| {
            let mut request = Request::builder();
            for value in values {
                request = request.header("x-api-key", *value);
            }
            api_key(&request.finish()).map(str::to_owned)
        };
        assert_eq!(sent(&["abc"]).as_deref(), Some("abc"));
        assert_eq!(sent(&["a", "a"]), None);
        for value in ["", "a b", &"x".repeat(MAX_BEARER_LEN + 1)] {
            assert_eq!(sent(&[value]), None, "{value}");
        }
        assert_eq!(sent(&[]), None);
    }

    #[test]
    fn only_what_may_be_a_token_is_looked_up() {
        let [none, foreign, imported] = [(false, false), (true, false), (false, true)]
            .map(|(foreign, imported)| OtherForms { foreign, imported });
        for (prefix, may) in [
            (Prefix::Admin, true),
            (Prefix::Runner, true),
            (Prefix::Train, true),
            (Prefix::Boot, false),
            (Prefix::Claim, false),
            (Prefix::SubcommandBearer, false),
        ] {
            let text = token::generate(prefix);
            assert_eq!(may_be_token(text.expose_secret(), none), may);
        }
        let (long, short) = ("x".repeat(MIN_FOREIGN_LEN), "x".repeat(MIN_FOREIGN_LEN - 1));
        assert!(may_be_token(&long, foreign) && may_be_token(&long, imported));
        assert!(!may_be_token(&long, none));
        assert!(!may_be_token(&short, foreign) && may_be_token(&short, imported));
        let ours = format!("stm_admin_{}", "x".repeat(49));
        assert!(!may_be_token(&ours, foreign) && !may_be_token(&ours, imported));
        let theirs = format!("ptk_{}", "x".repeat(49));
        assert!(!may_be_token(&theirs, none) && may_be_token(&theirs, imported));
    }
}

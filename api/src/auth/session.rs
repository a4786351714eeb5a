//! The sessions of people who are signed in with a browser: a cookie, and for changes the proof
//! that one of our own pages, or a program that knows the session's token, sends the request.

use std::sync::Arc;

use poem::{
    Request,
    http::{HeaderName, header},
};

use domain::{Code, slug::Slug, token::TokenHash};
use persistence::{Presented, Principal, SignedIn};

use super::{Outcome, bearer::API_KEY};
use crate::shared::App;
use web::http::{ApiError, Owner, RequestContext, cookies};

/// The header with the token of a session's forms.
pub(crate) const CSRF_TOKEN: HeaderName = HeaderName::from_static("x-csrf-token");
/// The header by which a session's request names its publisher.
pub(crate) const PUBLISHER: HeaderName = HeaderName::from_static("stationmaster-publisher");

/// A request's session.
pub(super) struct Session {
    pub(super) who: Arc<SignedIn>,
    pub(super) hash: TokenHash,
}

/// The session's cookie of a request, unless it carries a token: then cookies do not count. They
/// do not count either where people can't sign in.
pub(super) fn cookie<'a>(app: &App, request: &'a Request) -> Option<&'a str> {
    let headers = request.headers();
    if !app.people.settings().enabled {
        return None;
    }
    if headers.contains_key(header::AUTHORIZATION) || headers.contains_key(API_KEY) {
        return None;
    }
    cookies::SESSION.read(headers, app.origin.is_secure())
}

/// Refuses what was sent to another host, or by another site's page.
pub(super) fn check_site(app: &App, request: &Request) -> Result<(), ApiError> {
    if !app.origin.is_host_of(request) {
        return Err(Code::WrongHost.into());
    }
    if !app.origin.is_from_us(request.method(), request.headers()) {
        return Err(Code::CsrfFailed.into());
    }
    Ok(())
}

/// The live session of a request. A change has to carry the session's token, too.
pub(super) async fn authenticate(
    app: &App,
    context: &RequestContext,
    request: &Request,
) -> Result<Outcome<Session>, ApiError> {
    let Some(cookie) = cookie(app, request) else {
        return Ok(Outcome::NotRequested);
    };
    let Some(hash) = app.people.session_hash(cookie) else {
        return Ok(Outcome::Failed);
    };
    check_site(app, request)?;
    if !request.method().is_safe() {
        let sent = request.headers().get(CSRF_TOKEN);
        let sent = sent.and_then(|value| value.to_str().ok()).unwrap_or("");
        if !app.people.is_csrf_token(cookie, sent) {
            return Err(Code::CsrfFailed.into());
        }
    }
    context.enter(Owner::address(context.address())).await?;
    let idle = app.people.settings().idle;
    let found = app.store.signed_in(hash, idle).await?;
    Ok(found.map_or(Outcome::Failed, |who| {
        Outcome::Authenticated(Session { who, hash })
    }))
}

/// The member as whom a session's request acts: of the publisher that it names. A person who is no
/// member gets the answer for a publisher that does not exist.
pub(super) async fn member(
    app: &App,
    request: &Request,
    session: &Session,
) -> Result<(Arc<Principal>, Presented), ApiError> {
    let mut named = request.headers().get_all(PUBLISHER).iter();
    let (first, second) = (named.next(), named.next());
    let (Some(first), None) = (first, second) else {
        return Err(Code::PublisherRequired.into());
    };
    let slug = first.to_str().ok().and_then(Slug::parse);
    let slug = slug.ok_or(Code::NotFound)?;
    let principal = app.store.member(&session.who, &slug).await?;
    let principal = principal.ok_or(Code::NotFound)?;
    let presented = Presented::Member {
        session: session.hash,
        publisher: slug,
        idle: app.people.settings().idle,
    };
    Ok((principal, presented))
}

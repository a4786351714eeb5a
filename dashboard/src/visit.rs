//! A request for a page: who makes it, and whether one of our own pages does.

use std::sync::Arc;

use poem::{
    FromRequest, Request, RequestBody, Response,
    http::{HeaderValue, header},
};
use serde::de::DeserializeOwned;

use domain::{
    Code, Problem,
    audit::Actor,
    people::ReturnTo,
    permission::Permission,
    slug::Slug,
    token::{self, Prefix},
};
use identity::{NewBrowserSession, Service};
use persistence::{Context, Members, Principal, PublisherStatus, Scoped, SignedIn, Store, User};
use secrecy::{ExposeSecret as _, SecretString};
use web::http::{
    ApiError, Owner, PublicOrigin, RequestContext,
    cookies::{DEVICE, SESSION, VISIT},
    form,
};

use crate::{page, stop::Stop, views::Frame};

/// How long a browser that is not signed in keeps what a mailed link is compared with, seconds.
const VISIT_SECONDS: u64 = 24 * 3600;
/// How long a browser is known as one in which somebody signed in, seconds.
const DEVICE_SECONDS: u64 = 365 * 24 * 3600;

/// What pages are made from.
pub(crate) struct Parts {
    pub(crate) service: Service,
    pub(crate) store: Store,
    pub(crate) origin: PublicOrigin,
}

/// A request for a page.
#[derive(Clone)]
pub(crate) struct Visit(Arc<Inner>);

struct Inner {
    parts: Arc<Parts>,
    request: RequestContext,
    signed_in: Option<Arc<SignedIn>>,
    /// What the session's cookie holds, if the session is alive.
    session: Option<String>,
    /// What the cookie of a browser that is not signed in holds.
    browser: String,
    /// Whether that was made for this request.
    is_new: bool,
    device: Option<String>,
}

impl Visit {
    /// Looks at a request before anything else does.
    ///
    /// # Errors
    /// `wrong_host`; `csrf` for a form that another site's page sends; what the store says.
    pub(crate) async fn begin(parts: &Arc<Parts>, request: &Request) -> Result<Self, ApiError> {
        let context = RequestContext::of(request)?;
        if !parts.origin.is_host_of(request) {
            return Err(Code::WrongHost.into());
        }
        let headers = request.headers();
        if !parts.origin.is_from_us(request.method(), headers) {
            return Err(Code::CsrfFailed.into());
        }
        context.enter(Owner::address(context.address())).await?;
        let secure = parts.origin.is_secure();
        let session = SESSION.read(headers, secure);
        let signed_in = match session {
            Some(cookie) => parts.service.signed_in(cookie).await?,
            None => None,
        };
        let browser = VISIT.read(headers, secure);
        let browser = browser.filter(|text| token::recognise(text) == Some(Prefix::Link));
        let made = token::generate(Prefix::Link);
        Ok(Self(Arc::new(Inner {
            parts: Arc::clone(parts),
            request: context.clone(),
            session: session.filter(|_| signed_in.is_some()).map(str::to_owned),
            signed_in,
            browser: browser.unwrap_or(made.expose_secret()).to_owned(),
            is_new: browser.is_none(),
            device: DEVICE.read(headers, secure).map(str::to_owned),
        })))
    }

    /// How people get in.
    pub(crate) fn service(&self) -> &Service {
        &self.0.parts.service
    }

    /// The store.
    pub(crate) fn store(&self) -> &Store {
        &self.0.parts.store
    }

    fn secure(&self) -> bool {
        self.0.parts.origin.is_secure()
    }

    /// What a browser that is not signed in holds.
    pub(crate) fn browser(&self) -> &str {
        &self.0.browser
    }

    /// What marks a browser in which somebody signed in before.
    pub(crate) fn device(&self) -> identity::Device<'_> {
        identity::Device(self.0.device.as_deref())
    }

    /// Who is signed in, if anybody is.
    pub(crate) fn signed_in(&self) -> Option<&SignedIn> {
        self.0.signed_in.as_deref()
    }

    /// Who is signed in; whoever is not goes to sign in, and comes back to `page`.
    pub(crate) fn need(&self, page: &str) -> Result<&SignedIn, Stop> {
        let to = || Stop::Elsewhere(with_return_to("/sign-in", page));
        self.signed_in().ok_or_else(to)
    }

    /// The same for what needs a recent sign-in.
    pub(crate) fn need_recent(&self, page: &str) -> Result<&SignedIn, Stop> {
        let who = self.need(page)?;
        if self.service().is_recent(who.session.authenticated_at) {
            Ok(who)
        } else {
            Err(Stop::Elsewhere(with_return_to("/confirm-it-is-you", page)))
        }
    }

    /// The publisher of this slug, for a member whose role holds the permission. For everybody else
    /// there is no such publisher.
    ///
    /// # Errors
    /// `not_found`; `role_too_low`; `publisher_suspended` for a change.
    pub(crate) async fn need_member(
        &self,
        slug: &str,
        permission: Permission,
    ) -> Result<Member, Stop> {
        let page = format!("/p/{slug}");
        let who = if permission.needs_recent_sign_in() {
            self.need_recent(&page)?
        } else {
            self.need(&page)?
        };
        let slug = Slug::parse(slug).ok_or_else(Problem::not_found)?;
        let principal = self.store().member(who, &slug).await?;
        let principal = principal.ok_or_else(Problem::not_found)?;
        if !principal.holds(permission) {
            return Err(Code::RoleTooLow.into());
        }
        let changes = permission != Permission::MembersRead;
        if changes && principal.publisher.status == PublisherStatus::Suspended {
            return Err(Code::PublisherSuspended.into());
        }
        let scoped = self.store().scoped(&principal.scope);
        Ok(Member {
            principal,
            members: scoped.members(),
        })
    }

    /// What the store is told of who asks, and how.
    pub(crate) fn context(&self) -> Context {
        let actor = self.signed_in().map(|who| Actor::user(who.user.id));
        Context {
            actor: actor.unwrap_or_else(Actor::anonymous),
            request_id: Some(self.0.request.request_id().to_owned()),
            address: Some(self.0.request.address().to_string()),
            user_agent: self.0.request.user_agent(),
            idempotency: None,
            permission: None,
        }
    }

    /// The same for a change in a publisher, which takes this permission.
    pub(crate) fn context_for(&self, permission: Permission) -> Context {
        Context {
            permission: Some(permission),
            ..self.context()
        }
    }

    /// A parameter of the query, if it is there once.
    pub(crate) fn query(&self, name: &str) -> Option<String> {
        let query = self.0.request.uri().query().unwrap_or_default();
        form::query(query, name)
    }

    /// Where to go after this.
    pub(crate) fn return_to(&self) -> Option<ReturnTo> {
        ReturnTo::parse(&self.query("return_to")?)
    }

    /// What a page has around its own content.
    pub(crate) fn frame(&self, title: impl Into<String>) -> Frame {
        Frame {
            title: title.into(),
            person: self.signed_in().map(|who| person(&who.user)),
            csrf: self.service().csrf_token(self.csrf_key()),
            ..Frame::default()
        }
    }

    fn csrf_key(&self) -> &str {
        self.0.session.as_deref().unwrap_or(&self.0.browser)
    }

    /// Gives the browser what a mail that was asked for is compared with.
    pub(crate) fn hold(&self, response: &mut Response, visit: &SecretString) {
        let visit = VISIT.set(visit.expose_secret(), Some(VISIT_SECONDS), self.secure());
        set_cookie(response, visit);
    }

    /// The answer after somebody signed in: the browser holds the session from now on, and nothing
    /// that it held before is good any more.
    pub(crate) fn welcome(&self, session: &NewBrowserSession, page: &str) -> Response {
        let mut response = page::see_other(page);
        let lasts = self.service().settings().lasts.as_secs();
        let cookie = session.cookie.expose_secret();
        let secure = self.secure();
        set_cookie(&mut response, SESSION.set(cookie, Some(lasts), secure));
        let device = DEVICE.set(&session.device, Some(DEVICE_SECONDS), secure);
        set_cookie(&mut response, device);
        set_cookie(&mut response, VISIT.remove(secure));
        response
    }

    /// The answer after somebody signed out.
    pub(crate) fn goodbye(&self, page: &str) -> Response {
        let mut response = page::see_other(page);
        set_cookie(&mut response, SESSION.remove(self.secure()));
        response
    }

    /// What every answer gets.
    pub(crate) fn finish(&self, response: &mut Response) {
        let sets = response.headers().contains_key(header::SET_COOKIE);
        if self.0.is_new && self.0.session.is_none() && !sets {
            self.hold(response, &SecretString::from(self.0.browser.clone()));
        }
        if self.secure() {
            crate::headers::require_https(response);
        }
    }
}

/// A member of a publisher, and the members that this one sees.
pub(crate) struct Member {
    pub(crate) principal: Arc<Principal>,
    pub(crate) members: Members<Scoped>,
}

/// How a page calls a person: by name, or by address.
pub(crate) fn person(user: &User) -> String {
    let name = user.display_name.clone();
    name.unwrap_or_else(|| user.address.to_string())
}

fn set_cookie(response: &mut Response, cookie: HeaderValue) {
    response.headers_mut().append(header::SET_COOKIE, cookie);
}

/// A page of ours to which a page is given to go back to.
fn with_return_to(path: &str, page: &str) -> String {
    format!("{path}?return_to={}", form::encode(page))
}

impl<'a> FromRequest<'a> for &'a Visit {
    async fn from_request(request: &'a Request, _: &mut RequestBody) -> poem::Result<Self> {
        let visit = request.data::<Visit>();
        Ok(visit.ok_or_else(|| ApiError::from(Code::Internal))?)
    }
}

/// A form that a page of ours sent, in the browser for which it was made: its fields are seen only
/// after its token was.
pub(crate) struct Posted<T>(pub(crate) T);

impl<'a, T: DeserializeOwned> FromRequest<'a> for Posted<T> {
    async fn from_request(request: &'a Request, body: &mut RequestBody) -> poem::Result<Self> {
        let visit = <&Visit>::from_request(request, body).await?;
        let mut form = form::read(request, body).await.map_err(ApiError::from)?;
        let token = form.take("csrf").unwrap_or_default();
        if !visit.service().is_csrf_token(visit.csrf_key(), &token) {
            return Err(ApiError::from(Code::CsrfFailed).into());
        }
        Ok(form.parse().map(Self).map_err(ApiError::from)?)
    }
}

/// A form that has nothing but its token.
#[derive(serde::Deserialize)]
pub(crate) struct Nothing {}

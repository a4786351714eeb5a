//! What an operation takes first: a caller that holds its permission. The store is reached through
//! it alone.

use std::{marker::PhantomData, sync::Arc};

use poem::{PathPattern, Request, RequestBody};
use poem_openapi::{
    ApiExtractor, ApiExtractorType, ExtractParamOptions,
    registry::{MetaSecurityScheme, Registry},
};

use domain::{Code, audit::Actor, id::PublisherId, permission::Required};
use persistence::{Context, Presented, Principal, Scope, Scoped, SignedIn, System};

use super::{Carried, Standing, bearer, proxied, session};
use crate::shared::{App, context, cursor::List, idempotency::Idempotency, page::PageQuery};
use web::{
    contract::VISITOR,
    http::{ApiError, Owner, RequestContext, cookies, of_query},
};

/// The scheme of a train's token that comes as `x-api-key`.
const TRAIN_KEY: &str = "train_key";

/// A request of a publisher's token, of a train's, or of a member who is signed in, that holds the
/// permission `P`.
pub struct Caller<P> {
    /// The token or the member, and the publisher that it acts for.
    pub principal: Arc<Principal>,
    /// What is known of the request.
    pub request: RequestContext,
    presented: Presented,
    app: Arc<App>,
    permission: PhantomData<fn() -> P>,
}

impl<P: Required> Caller<P> {
    /// What the token acts for.
    #[must_use]
    pub fn scope(&self) -> &Scope {
        &self.principal.scope
    }

    /// The publisher that the token acts for.
    #[must_use]
    pub fn publisher(&self) -> PublisherId {
        self.scope().publisher()
    }

    /// The store, as that publisher sees it.
    #[must_use]
    pub fn scoped(&self) -> Scoped {
        self.app.store.scoped(self.scope())
    }

    /// What the store is told of who asks, and how.
    #[must_use]
    pub fn context(&self) -> Context {
        context(&self.request, self.principal.actor(), None)
    }

    /// The same for a change that is made at most once. To be called after the body was read.
    #[must_use]
    pub fn context_with(&self, key: Idempotency) -> Context {
        let key = key.of(&self.request);
        context(&self.request, self.principal.actor(), key)
    }

    /// Begins to answer a list of the publisher's.
    ///
    /// # Errors
    /// When the store can't be read, or the caller has too many answers to read already.
    pub async fn list(&self, page: PageQuery) -> Result<List, ApiError> {
        List::begin(&self.app, &self.request, Some(self.scope()), page).await
    }

    /// For what lasts longer than a moment.
    pub(crate) fn standing(&self) -> Standing {
        Standing {
            app: Arc::clone(&self.app),
            presented: self.presented.clone(),
            permission: P::PERMISSION,
        }
    }

    /// What was presented, for what waits in the store and asks there whether it is still good.
    #[must_use]
    pub fn presented(&self) -> Presented {
        self.presented.clone()
    }
}

/// A request that a proxy asks about: of a train's token, which its client may have sent as
/// `x-api-key` too. A refusal is the operation's to answer, since some proxies know few statuses.
pub struct Proxied<P> {
    /// The train's token, or why there is none.
    pub principal: Result<Arc<Principal>, ApiError>,
    permission: PhantomData<fn() -> P>,
}

/// A request of a person who is signed in, about themselves.
pub struct Person<P> {
    /// The person, and the session.
    pub who: Arc<SignedIn>,
    /// What is known of the request.
    pub request: RequestContext,
    /// What changes of the session send along.
    pub csrf_token: String,
    app: Arc<App>,
    permission: PhantomData<fn() -> P>,
}

impl<P: Required> Person<P> {
    /// The application's parts.
    #[must_use]
    pub fn app(&self) -> &App {
        &self.app
    }

    /// What the store is told of who asks, and how.
    #[must_use]
    pub fn context(&self) -> Context {
        context(&self.request, Actor::user(self.who.user.id), None)
    }
}

/// A request of somebody who wants in: no credential is needed, but it must be sent to this
/// service's own host, and by none of another site's pages.
pub struct Visitor {
    /// What is known of the request.
    pub request: RequestContext,
    /// What the browser holds that asked for a mail before.
    pub visit: Option<String>,
    /// What the browser holds in which somebody signed in before.
    pub device: Option<String>,
    /// Who is signed in already.
    pub signed_in: Option<Arc<SignedIn>>,
    app: Arc<App>,
}

impl Visitor {
    /// The application's parts.
    #[must_use]
    pub fn app(&self) -> &App {
        &self.app
    }

    /// What the store is told of who asks, and how.
    #[must_use]
    pub fn context(&self) -> Context {
        let actor = match &self.signed_in {
            Some(who) => Actor::user(who.user.id),
            None => Actor::anonymous(),
        };
        context(&self.request, actor, None)
    }
}

/// A request of the operator, whose token holds the permission `P`.
pub struct Operator<P> {
    /// What is known of the request.
    pub request: RequestContext,
    actor: Actor,
    app: Arc<App>,
    permission: PhantomData<fn() -> P>,
}

impl<P: Required> Operator<P> {
    /// The store without a scope.
    #[must_use]
    pub fn system(&self) -> System {
        self.app.store.system()
    }

    /// What the store is told of who asks, and how. Audit rows name the token by the beginning of
    /// its hash.
    #[must_use]
    pub fn context(&self) -> Context {
        context(&self.request, self.actor.clone(), None)
    }

    /// The same for a change that is made at most once. To be called after the body was read.
    #[must_use]
    pub fn context_with(&self, key: Idempotency) -> Context {
        let key = key.of(&self.request);
        context(&self.request, self.actor.clone(), key)
    }

    /// Begins to answer a list of the operator's.
    ///
    /// # Errors
    /// When the store can't be read, or the caller has too many answers to read already.
    pub async fn list(&self, page: PageQuery) -> Result<List, ApiError> {
        List::begin(&self.app, &self.request, None, page).await
    }
}

fn app(request: &Request) -> Result<&Arc<App>, ApiError> {
    request.data::<Arc<App>>().ok_or_else(|| {
        tracing::error!("a request reached a guard without the application's parts");
        Code::Internal.into()
    })
}

fn carried(request: &Request) -> Carried<'_> {
    Carried {
        request,
        token: bearer::of(request),
    }
}

/// Checks that the operation has every query parameter that was sent. A proxy's questions are not
/// checked: their query may be the client's own.
fn has_known_query(context: &RequestContext, request: &Request) -> Result<(), ApiError> {
    let Some(query) = request.uri().query() else {
        return Ok(());
    };
    let routes = context.contract().routes();
    let route = request
        .data::<PathPattern>()
        .and_then(|pattern| routes.get(&pattern.0));
    let problem = route.and_then(|route| of_query(query, route, request.method()));
    problem.map_or(Ok(()), |problem| Err(problem.into()))
}

/// Names a permission in the draft of the document, where [the contract](web::contract::complete)
/// reads it.
fn register(registry: &mut Registry, name: &'static str) {
    registry.create_security_scheme(
        name,
        MetaSecurityScheme {
            ty: "http",
            description: None,
            name: None,
            key_in: None,
            scheme: Some("bearer"),
            bearer_format: None,
            flows: None,
            openid_connect_url: None,
        },
    );
}

/// Makes an extractor of a type: the schemes that the draft names for it, and how a request becomes
/// one.
macro_rules! guard {
    ($name:ident, [$($scheme:expr),+], |$app:ident, $context:ident, $request:ident| $made:expr) => {
        impl<'a, P: Required> ApiExtractor<'a> for $name<P> {
            const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::SecurityScheme];
            type ParamType = ();
            type ParamRawType = ();

            fn register(registry: &mut Registry) {
                $(register(registry, $scheme);)+
            }

            fn security_schemes() -> Vec<&'static str> {
                vec![$($scheme),+]
            }

            async fn from_request(
                $request: &'a Request,
                _: &mut RequestBody,
                _: ExtractParamOptions<()>,
            ) -> poem::Result<Self> {
                let ($app, $context) = (app($request)?, RequestContext::of($request)?);
                Ok($made)
            }
        }
    };
}

guard!(Caller, [P::PERMISSION.as_str()], |app, context, request| {
    let carried = carried(request);
    let (principal, presented) = app.authorize(context, carried, P::PERMISSION).await?;
    has_known_query(context, request)?;
    Self {
        principal,
        request: context.clone(),
        presented,
        app: Arc::clone(app),
        permission: PhantomData,
    }
});

guard!(Person, [P::PERMISSION.as_str()], |app, context, request| {
    let carried = carried(request);
    let who = app
        .authorize_person(context, carried, P::PERMISSION)
        .await?;
    has_known_query(context, request)?;
    let cookie = session::cookie(app, request).unwrap_or_default();
    Self {
        who,
        request: context.clone(),
        csrf_token: app.people.csrf_token(cookie),
        app: Arc::clone(app),
        permission: PhantomData,
    }
});

impl<'a> ApiExtractor<'a> for Visitor {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::SecurityScheme];
    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        register(registry, VISITOR);
    }

    fn security_schemes() -> Vec<&'static str> {
        vec![VISITOR]
    }

    async fn from_request(
        request: &'a Request,
        _: &mut RequestBody,
        _: ExtractParamOptions<()>,
    ) -> poem::Result<Self> {
        let (app, context) = (app(request)?, RequestContext::of(request)?);
        app.people.need_people().map_err(ApiError::from)?;
        session::check_site(app, request)?;
        context.admit(app.limits.check_visitor(context.address()))?;
        has_known_query(context, request)?;
        context.enter(Owner::address(context.address())).await?;
        let (headers, secure) = (request.headers(), app.origin.is_secure());
        let read = |cookie: cookies::Cookie| cookie.read(headers, secure).map(str::to_owned);
        let signed_in = match session::cookie(app, request) {
            Some(cookie) => app.people.signed_in(cookie).await.map_err(ApiError::from)?,
            None => None,
        };
        Ok(Self {
            request: context.clone(),
            visit: read(cookies::VISIT),
            device: read(cookies::DEVICE),
            signed_in,
            app: Arc::clone(app),
        })
    }
}

guard!(
    Proxied,
    [P::PERMISSION.as_str(), TRAIN_KEY],
    |app, context, request| Self {
        principal: proxied::principal(app, (context, request), P::PERMISSION).await,
        permission: PhantomData,
    }
);

guard!(
    Operator,
    [P::PERMISSION.as_str()],
    |app, context, request| {
        let carried = carried(request);
        let actor = app
            .authorize_operator(context, carried, P::PERMISSION)
            .await?;
        has_known_query(context, request)?;
        Self {
            request: context.clone(),
            actor,
            app: Arc::clone(app),
            permission: PhantomData,
        }
    }
);

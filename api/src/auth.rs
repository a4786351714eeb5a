//! Who asks, and whether that kind of token may: the first thing that every operation extracts.
//!
//! Missing, malformed, unknown, expired and revoked tokens are one and the same 401. A live token
//! of another kind is a 403 before anything of the request is looked at.

use std::sync::Arc;

use poem::{
    PathPattern, Request, RequestBody,
    http::{HeaderName, header},
};
use poem_openapi::{
    ApiExtractor, ApiExtractorType, ExtractParamOptions,
    registry::{MetaSecurityScheme, Registry},
};

use domain::{
    Code, Problem,
    audit::{Actor, ActorKind},
    credential::CredentialKind,
    id::Id as _,
    token::{self, MAX_BEARER_LEN, MIN_FOREIGN_LEN, Prefix, TokenHash},
};
use persistence::{Known, Principal};

use crate::shared::{App, context};
use web::http::{ApiError, Owner, RequestContext, of_query};

/// Where some clients send what others send as a bearer.
pub(crate) const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
/// Characters of a bootstrap token's hash that name it in the log.
const FINGERPRINT_CHARS: usize = 16;

/// An admin token's request.
#[derive(Clone, Debug)]
pub struct Admin(pub Arc<Principal>, pub(crate) TokenHash);

/// A request of an admin or a runner token.
#[derive(Clone, Debug)]
pub struct AdminOrRunner(pub Arc<Principal>, pub(crate) TokenHash);

/// A runner token's request.
#[derive(Clone, Debug)]
pub struct Runner(pub Arc<Principal>, pub(crate) TokenHash);

/// A request of a train's token.
#[derive(Clone, Debug)]
pub struct TrainToken(pub Arc<Principal>);

/// A request that a proxy asks about: a train's token, which its client may have sent as
/// `x-api-key` too. A refusal is the operation's to answer, since some proxies know few statuses.
#[derive(Clone, Debug)]
pub struct ProxiedTrainToken(pub Result<Arc<Principal>, ApiError>);

/// A request of the operator.
#[derive(Clone, Debug)]
pub struct Operator(pub OperatorActor);

/// The operator, by one of its bootstrap tokens.
#[derive(Clone, Debug)]
pub struct OperatorActor {
    actor: Actor,
}

impl OperatorActor {
    /// The actor that audit rows name: the token by the beginning of its hash.
    #[must_use]
    pub fn actor(&self) -> Actor {
        self.actor.clone()
    }
}

/// Which tokens an operation takes.
#[derive(Clone, Copy)]
enum Wanted {
    Admin,
    Runner,
    Either,
    Train,
}

impl Wanted {
    const fn takes(self, who: &Principal) -> bool {
        match self {
            Self::Admin => who.grants.admin,
            Self::Runner => who.grants.runner,
            Self::Either => who.grants.admin || who.grants.runner,
            Self::Train => who.train.is_some(),
        }
    }

    fn refusal(self) -> Problem {
        let kinds = match self {
            Self::Admin => "an admin token",
            Self::Runner => "a runner token",
            Self::Either => "an admin or a runner token",
            Self::Train => "a train token",
        };
        wrong_kind(kinds)
    }
}

fn wrong_kind(kinds: &str) -> Problem {
    Problem::new(Code::WrongTokenKind, format!("This takes {kinds}."))
}

fn app(request: &Request) -> Result<&Arc<App>, ApiError> {
    request.data::<Arc<App>>().ok_or_else(|| {
        tracing::error!("a request reached a guard without the application's parts");
        Code::Internal.into()
    })
}

/// The one bearer of a request; `None` when there is none, or it can be no token.
fn bearer(request: &Request) -> Option<&str> {
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
fn api_key(request: &Request) -> Option<&str> {
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

impl App {
    /// The bootstrap token that this is the hash of. Looks at all of them, always.
    fn bootstrap_of(&self, hash: &TokenHash) -> bool {
        self.bootstrap
            .iter()
            .fold(false, |found, known| known.matches(hash) | found)
    }

    /// The live token of a publisher or a train behind a bearer, its publisher's allowance counted.
    async fn principal(
        &self,
        context: &RequestContext,
        text: &str,
        hash: TokenHash,
    ) -> Result<Option<Arc<Principal>>, ApiError> {
        let others = OtherForms {
            foreign: self.store.knows_foreign_tokens(),
            imported: self.store.knows_imported_tokens(),
        };
        if !may_be_token(text, others) {
            return Ok(None);
        }
        let Some(principal) = self.look_up(context, hash).await? else {
            return Ok(None);
        };
        let publisher = principal.scope.publisher().uuid();
        context.admit(self.limits.check_publisher(publisher))?;
        Ok(Some(principal))
    }

    /// Asks the store only for what is worth a query. An address that has failed too often gets
    /// none for tokens that were never good here, but is not locked out of those that were: it may
    /// be shared with one that guesses.
    async fn look_up(
        &self,
        context: &RequestContext,
        hash: TokenHash,
    ) -> Result<Option<Arc<Principal>>, ApiError> {
        match self.store.known(hash) {
            Known::Live(principal) => return Ok(Some(principal)),
            Known::Once => {}
            Known::Never => {
                let verdict = self.limits.may_authenticate(context.address(), &hash);
                context.admit(verdict.map(|()| None))?;
            }
        }
        // Whose work it is shows only now: until then it is its address's.
        context.enter(Owner::address(context.address())).await?;
        Ok(self.store.authenticate(hash).await?)
    }

    fn failed(&self, context: &RequestContext) -> ApiError {
        let verdict = self.limits.authentication_failed(context.address());
        match context.admit(verdict.map(|()| None)) {
            Ok(()) => Code::Unauthenticated.into(),
            Err(refusal) => refusal,
        }
    }

    async fn tenant(
        &self,
        request: &Request,
        wanted: Wanted,
    ) -> Result<(Arc<Principal>, TokenHash), ApiError> {
        let holder = self.holder(request, bearer(request), wanted).await?;
        has_known_query(request)?;
        Ok(holder)
    }

    /// Who holds what was sent, if that is of a kind that is wanted.
    async fn holder(
        &self,
        request: &Request,
        sent: Option<&str>,
        wanted: Wanted,
    ) -> Result<(Arc<Principal>, TokenHash), ApiError> {
        let context = RequestContext::of(request)?;
        let Some(text) = sent else {
            // Nothing to guess with was sent, so nothing is counted.
            return Err(Code::Unauthenticated.into());
        };
        let hash = TokenHash::of(text);
        if self.bootstrap_of(&hash) {
            return Err(wanted.refusal().into());
        }
        let Some(principal) = self.principal(context, text, hash).await? else {
            return Err(self.failed(context));
        };
        if !wanted.takes(&principal) {
            self.denied(context, &principal, Code::WrongTokenKind);
            return Err(wanted.refusal().into());
        }
        if principal.publisher.status != persistence::PublisherStatus::Active {
            self.denied(context, &principal, Code::PublisherSuspended);
            return Err(Code::PublisherSuspended.into());
        }
        let publisher = principal.scope.publisher();
        context.enter(Owner::Publisher(publisher)).await?;
        Ok((principal, hash))
    }

    /// Who holds the train token of a request that a proxy asks about. It may be the bearer or the
    /// `x-api-key`; what stands in the other header may be meant for somebody else.
    async fn proxied(&self, request: &Request) -> Result<Arc<Principal>, ApiError> {
        let holder = match (bearer(request), api_key(request)) {
            (Some(bearer), Some(key)) if bearer != key => {
                self.holder_of_one(request, [bearer, key]).await
            }
            (bearer, key) => self.holder(request, bearer.or(key), Wanted::Train).await,
        };
        holder.map(|(principal, _)| principal)
    }

    /// Who holds the one that is a train's token. What has a train token's form is one, and what
    /// stands beside it is none; where neither has, either may be an imported key.
    async fn holder_of_one(
        &self,
        request: &Request,
        [bearer, key]: [&str; 2],
    ) -> Result<(Arc<Principal>, TokenHash), ApiError> {
        let of_train = |text| token::recognise(text) == Some(Prefix::Train);
        let sent = match (of_train(bearer), of_train(key)) {
            (true, true) => return Err(Code::TwoTokens.into()),
            (false, true) => key,
            _ => bearer,
        };
        let holder = self.holder(request, Some(sent), Wanted::Train).await;
        if of_train(sent) || !self.store.knows_imported_tokens() {
            return holder;
        }
        match holder {
            Ok(holder) => Ok(holder),
            Err(refusal) => {
                let other = self.holder(request, Some(key), Wanted::Train).await;
                other.map_err(|_| refusal)
            }
        }
    }

    async fn operator(self: &Arc<Self>, request: &Request) -> Result<OperatorActor, ApiError> {
        let context = RequestContext::of(request)?;
        let Some(text) = bearer(request) else {
            return Err(Code::Unauthenticated.into());
        };
        let address = context.address();
        let hash = TokenHash::of(text);
        // First of all: whoever guesses behind the same address does not lock the operator out. A
        // token is no easier to guess for that, since it is too long to be guessed at any pace.
        if self.bootstrap_of(&hash) {
            context.admit(self.limits.check_operator())?;
            context.enter(Owner::Operator).await?;
            let operator = OperatorActor {
                actor: Actor {
                    kind: ActorKind::Bootstrap,
                    id: fingerprint(&hash),
                },
            };
            self.note_operator(context, hash, &operator);
            has_known_query(request)?;
            return Ok(operator);
        }
        if matches!(self.store.known(hash), Known::Never) {
            context.admit(self.limits.may_bootstrap(address).map(|()| None))?;
        }
        if let Some(principal) = self.principal(context, text, hash).await? {
            self.denied(context, &principal, Code::WrongTokenKind);
            return Err(wrong_kind("the operator's bootstrap token").into());
        }
        let verdict = self.limits.bootstrap_failed(address);
        context.admit(verdict.map(|()| None))?;
        Err(Code::Unauthenticated.into())
    }

    /// Writes down that a publisher's own token was refused; off the request's path, and at most
    /// once a minute for each token and reason.
    fn denied(&self, request: &RequestContext, principal: &Principal, reason: Code) {
        let now = self.store.now();
        let mut key = [0; 32];
        key[..16].copy_from_slice(principal.credential.uuid().as_bytes());
        if !self.notices.due(key, reason.as_str(), now) {
            return;
        }
        let scoped = self.store.scoped(&principal.scope);
        let context = context(request, principal.actor(), None);
        self.tasks.spawn(async move {
            if let Err(error) = scoped.note_denial(&context, reason.as_str()).await {
                tracing::warn!(%error, "a denial could not be written down");
            }
        });
    }

    fn note_operator(&self, request: &RequestContext, hash: TokenHash, operator: &OperatorActor) {
        if !self
            .notices
            .due(*hash.as_bytes(), "bootstrap", self.store.now())
        {
            return;
        }
        let system = self.store.system();
        let context = context(request, operator.actor(), None);
        self.tasks.spawn(async move {
            if let Err(error) = system.note_bootstrap_use(&context).await {
                tracing::warn!(%error, "a use of a bootstrap token could not be written down");
            }
        });
    }
}

/// Names a bootstrap token without telling anything of it.
fn fingerprint(hash: &TokenHash) -> String {
    let hex = hash.as_bytes().iter().flat_map(|byte| {
        let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap_or('0');
        [digit(byte >> 4), digit(byte & 15)]
    });
    "boot_".chars().chain(hex.take(FINGERPRINT_CHARS)).collect()
}

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

/// Checks that the operation has every query parameter that was sent. A proxy's questions are not
/// checked: their query may be the client's own.
fn has_known_query(request: &Request) -> Result<(), ApiError> {
    let Some(query) = request.uri().query() else {
        return Ok(());
    };
    let routes = RequestContext::of(request)?.contract().routes();
    let route = request
        .data::<PathPattern>()
        .and_then(|pattern| routes.get(&pattern.0));
    let problem = route.and_then(|route| of_query(query, route, request.method()));
    problem.map_or(Ok(()), |problem| Err(problem.into()))
}

/// A guard is an argument that an operation takes first.
macro_rules! guard {
    ($name:ident, $scheme:literal, |$app:ident, $request:ident| $check:expr) => {
        impl<'a> ApiExtractor<'a> for $name {
            const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::SecurityScheme];
            type ParamType = ();
            type ParamRawType = ();

            fn register(registry: &mut Registry) {
                register(registry, $scheme);
            }

            fn security_schemes() -> Vec<&'static str> {
                vec![$scheme]
            }

            async fn from_request(
                $request: &'a Request,
                _: &mut RequestBody,
                _: ExtractParamOptions<()>,
            ) -> poem::Result<Self> {
                let $app = app($request)?;
                Ok($check)
            }
        }
    };
}

guard!(Admin, "admin", |app, request| {
    let (principal, hash) = app.tenant(request, Wanted::Admin).await?;
    Self(principal, hash)
});
guard!(Runner, "runner", |app, request| {
    let (principal, hash) = app.tenant(request, Wanted::Runner).await?;
    Self(principal, hash)
});
guard!(AdminOrRunner, "admin_or_runner", |app, request| {
    let (principal, hash) = app.tenant(request, Wanted::Either).await?;
    Self(principal, hash)
});
guard!(TrainToken, "train", |app, request| {
    let (principal, _) = app.tenant(request, Wanted::Train).await?;
    Self(principal)
});
guard!(ProxiedTrainToken, "train_or_train_key", |app, request| {
    Self(app.proxied(request).await)
});
guard!(Operator, "bootstrap", |app, request| Self(
    app.operator(request).await?
));

/// Whether a token that was good when its request came is still good, and for what: asked by
/// whatever lasts longer than a moment, before it hands anything out.
///
/// # Errors
/// 401 when it is not; 403 when its publisher is suspended.
pub(crate) async fn still_good(
    app: &App,
    hash: TokenHash,
    kind: Option<CredentialKind>,
) -> Result<Arc<Principal>, ApiError> {
    let principal = app.store.authenticate(hash).await?;
    let principal = principal
        .filter(|principal| !principal.grants.is_empty())
        .filter(|principal| kind.is_none_or(|kind| principal.grants.has(kind)))
        .ok_or(Code::Unauthenticated)?;
    if principal.publisher.status != persistence::PublisherStatus::Active {
        return Err(Code::PublisherSuspended.into());
    }
    Ok(principal)
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
        bearer(&request.finish()).map(str::to_owned)
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

    #[test]
    fn a_fingerprint_is_short_and_steady() {
        let hash = TokenHash::of("abc");
        assert_eq!(fingerprint(&hash), "boot_ba7816bf8f01cfea");
    }
}

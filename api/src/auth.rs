//! Who asks, and whether they may: the first thing that every operation extracts.
//!
//! Each scheme has a file and says only what it found; `App::authenticate` asks them in order and
//! counts what fails. Whether the caller may follows from the operation's one [`Permission`], which
//! stands in its signature as `Caller<…>` or `Operator<…>`.
//!
//! Missing, malformed, unknown, expired and revoked tokens are one and the same 401. A live token
//! of another kind is a 403 before anything of the request is looked at.

use std::sync::Arc;

use domain::{
    Code, Problem, Timestamp,
    audit::Actor,
    id::Id as _,
    permission::{Held, Permission, TokenKind},
    token::TokenHash,
};
use persistence::{CachedToken, Presented, Principal, SignedIn};
use poem::Request;

use crate::shared::{App, context};
use web::http::{ApiError, Owner, RequestContext};

mod bearer;
mod bootstrap;
mod caller;
mod proxied;
pub(crate) mod session;
mod standing;

pub(crate) use bearer::API_KEY;
pub use caller::{Caller, Operator, Person, Proxied, Visitor};
pub(crate) use standing::Standing;

/// What a scheme says of a request.
enum Outcome<T> {
    /// It carries no credential of this scheme.
    NotRequested,
    /// It carries a live one.
    Authenticated(T),
    /// It carries one that is unknown, or not good any more.
    Failed,
}

/// What was sent as a token.
#[derive(Clone, Copy)]
struct Sent<'a> {
    text: &'a str,
    hash: TokenHash,
}

/// Who asks.
enum Identity {
    /// The operator, by this bootstrap token.
    Operator(TokenHash),
    /// A publisher or one of its trains.
    Token(Arc<Principal>, TokenHash),
    /// A person who is signed in.
    Person(session::Session),
}

/// What a request carries.
#[derive(Clone, Copy)]
struct Carried<'a> {
    request: &'a Request,
    /// The token, in whichever header the operation takes it.
    token: Option<&'a str>,
}

fn wrong_kind(wanted: Permission) -> ApiError {
    let detail = format!("This takes {}.", wanted.tokens());
    Problem::new(Code::WrongTokenKind, detail).into()
}

/// What a member, or a person, is told who may not do something.
fn role_too_low(wanted: Permission) -> ApiError {
    let detail = match wanted.people() {
        Held::ByMembers(least) => format!("This takes the role {} or above.", least.as_str()),
        Held::ByStaff => "This is for staff.".to_owned(),
        Held::ByEverybody | Held::ByNobody => format!("This takes {}.", wanted.tokens()),
    };
    Problem::new(Code::RoleTooLow, detail).into()
}

impl App {
    /// Asks the schemes in order who sent a token, and counts what fails.
    ///
    /// The operator's comes first: whoever guesses behind the same address does not lock the
    /// operator out. A bootstrap token is no easier to guess for that, since it is too long to be
    /// guessed at any pace.
    async fn authenticate(
        &self,
        context: &RequestContext,
        carried: Carried<'_>,
        wanted: Permission,
    ) -> Result<Identity, ApiError> {
        match session::authenticate(self, context, carried.request).await? {
            Outcome::Authenticated(session) => return Ok(Identity::Person(session)),
            Outcome::Failed => return Err(self.failed(context, false)),
            Outcome::NotRequested => {}
        }
        let sent = carried.token.map(|text| Sent {
            text,
            hash: TokenHash::of(text),
        });
        if let Outcome::Authenticated(token) = bootstrap::authenticate(self, sent) {
            return Ok(Identity::Operator(token));
        }
        let for_operator = wanted.is_held_by(TokenKind::Bootstrap);
        if for_operator
            && let Some(sent) = sent
            && matches!(self.store.cached_token(sent.hash), CachedToken::Unknown)
        {
            let verdict = self.limits.may_bootstrap(context.address());
            context.admit(verdict.map(|()| None))?;
        }
        match bearer::authenticate(self, context, sent).await? {
            Outcome::Authenticated((principal, token)) => Ok(Identity::Token(principal, token)),
            // Nothing to guess with was sent, so nothing is counted.
            Outcome::NotRequested => Err(Code::Unauthenticated.into()),
            Outcome::Failed => Err(self.failed(context, for_operator)),
        }
    }

    /// Counts what failed, and says what the caller is told: 401, or 429 if it was too often.
    fn failed(&self, context: &RequestContext, for_operator: bool) -> ApiError {
        let verdict = if for_operator {
            self.limits.bootstrap_failed(context.address())
        } else {
            self.limits.authentication_failed(context.address())
        };
        match context.admit(verdict.map(|()| None)) {
            Ok(()) => Code::Unauthenticated.into(),
            Err(refusal) => refusal,
        }
    }

    /// The publisher's or train's token that was sent, or the member who is signed in, if it holds
    /// the permission. From then on the request counts for its publisher.
    async fn authorize(
        &self,
        context: &RequestContext,
        carried: Carried<'_>,
        wanted: Permission,
    ) -> Result<(Arc<Principal>, Presented), ApiError> {
        let (principal, presented) = match self.authenticate(context, carried, wanted).await? {
            Identity::Operator(_) => return Err(wrong_kind(wanted)),
            Identity::Token(principal, token) => (principal, Presented::Token(token)),
            Identity::Person(session) => {
                let found = session::member(self, carried.request, &session).await?;
                let publisher = found.0.scope.publisher().uuid();
                context.admit(self.limits.check_publisher(publisher))?;
                found
            }
        };
        if !principal.holds(wanted) {
            let refusal = match principal.member() {
                Some(_) => role_too_low(wanted),
                None => wrong_kind(wanted),
            };
            self.note_denial(context, &principal, refusal.problem().code);
            return Err(refusal);
        }
        if !principal.publisher.is_active() {
            self.note_denial(context, &principal, Code::PublisherSuspended);
            return Err(Code::PublisherSuspended.into());
        }
        if let Some(member) = principal.member() {
            self.check_recent(wanted, member.authenticated_at)?;
        }
        let publisher = principal.scope.publisher();
        context.enter(Owner::Publisher(publisher)).await?;
        Ok((principal, presented))
    }

    /// Refuses what needs a recent sign-in to somebody who proved long ago who they are.
    fn check_recent(&self, wanted: Permission, proved: Timestamp) -> Result<(), ApiError> {
        if wanted.needs_recent_sign_in() && !self.people.is_recent(proved) {
            return Err(Code::RecentSignInRequired.into());
        }
        Ok(())
    }

    /// The person who is signed in, about whom the request is.
    async fn authorize_person(
        &self,
        context: &RequestContext,
        carried: Carried<'_>,
        wanted: Permission,
    ) -> Result<Arc<SignedIn>, ApiError> {
        self.people.need_people()?;
        match self.authenticate(context, carried, wanted).await? {
            Identity::Person(session) => {
                self.check_recent(wanted, session.who.session.authenticated_at)?;
                Ok(session.who)
            }
            Identity::Operator(_) => Err(wrong_kind(wanted)),
            Identity::Token(principal, _) => {
                self.note_denial(context, &principal, Code::WrongTokenKind);
                Err(wrong_kind(wanted))
            }
        }
    }

    /// The operator, if one of its tokens was sent and holds the permission; or a person of the
    /// staff.
    async fn authorize_operator(
        &self,
        context: &RequestContext,
        carried: Carried<'_>,
        wanted: Permission,
    ) -> Result<Actor, ApiError> {
        match self.authenticate(context, carried, wanted).await? {
            Identity::Operator(token) if wanted.is_held_by(TokenKind::Bootstrap) => {
                context.admit(self.limits.check_operator())?;
                context.enter(Owner::Operator).await?;
                bootstrap::note_use(self, context, &token);
                Ok(bootstrap::actor(&token))
            }
            Identity::Person(session) => {
                let user = &session.who.user;
                if !user.staff || wanted.people() != Held::ByStaff {
                    return Err(role_too_low(wanted));
                }
                self.check_recent(wanted, session.who.session.authenticated_at)?;
                context.admit(self.limits.check_operator())?;
                context.enter(Owner::Operator).await?;
                Ok(Actor::user(user.id))
            }
            Identity::Operator(_) => Err(wrong_kind(wanted)),
            Identity::Token(principal, _) => {
                self.note_denial(context, &principal, Code::WrongTokenKind);
                Err(wrong_kind(wanted))
            }
        }
    }

    /// Writes down that a publisher's own token was refused; off the request's path, and at most
    /// once a minute for each token and reason.
    fn note_denial(&self, request: &RequestContext, principal: &Principal, reason: Code) {
        let now = self.store.now();
        let mut key = [0; 32];
        key[..16].copy_from_slice(principal.credential().as_bytes());
        if !self.notices.due(key, reason.as_str(), now) {
            return;
        }
        let scoped = self.store.scoped(&principal.scope);
        let context = context(request, principal.actor(), (None, None));
        self.tasks.spawn(async move {
            if let Err(error) = scoped
                .operations()
                .note_denial(&context, reason.as_str())
                .await
            {
                tracing::warn!(%error, "a denial could not be written down");
            }
        });
    }
}

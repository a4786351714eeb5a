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
    Code, Problem,
    audit::Actor,
    id::Id as _,
    permission::{Permission, TokenKind},
    token::TokenHash,
};
use persistence::{CachedToken, Principal};

use crate::shared::{App, context};
use web::http::{ApiError, Owner, RequestContext};

mod bearer;
mod bootstrap;
mod caller;
mod proxied;
mod standing;

pub(crate) use bearer::API_KEY;
pub use caller::{Caller, Operator, Proxied};
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
}

fn wrong_kind(wanted: Permission) -> ApiError {
    let detail = format!("This takes {}.", wanted.tokens());
    Problem::new(Code::WrongTokenKind, detail).into()
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
        sent: Option<&str>,
        wanted: Permission,
    ) -> Result<Identity, ApiError> {
        let sent = sent.map(|text| Sent {
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
            Outcome::Failed => {
                let verdict = if for_operator {
                    self.limits.bootstrap_failed(context.address())
                } else {
                    self.limits.authentication_failed(context.address())
                };
                context.admit(verdict.map(|()| None))?;
                Err(Code::Unauthenticated.into())
            }
        }
    }

    /// The publisher's or train's token that was sent, if it holds the permission. From then on the
    /// request counts for its publisher.
    async fn authorize_token(
        &self,
        context: &RequestContext,
        sent: Option<&str>,
        wanted: Permission,
    ) -> Result<(Arc<Principal>, TokenHash), ApiError> {
        let identity = self.authenticate(context, sent, wanted).await?;
        let Identity::Token(principal, token) = identity else {
            return Err(wrong_kind(wanted));
        };
        if !principal.holds(wanted) {
            self.note_denial(context, &principal, Code::WrongTokenKind);
            return Err(wrong_kind(wanted));
        }
        if !principal.publisher.is_active() {
            self.note_denial(context, &principal, Code::PublisherSuspended);
            return Err(Code::PublisherSuspended.into());
        }
        let publisher = principal.scope.publisher();
        context.enter(Owner::Publisher(publisher)).await?;
        Ok((principal, token))
    }

    /// The operator, if one of its tokens was sent and holds the permission.
    async fn authorize_operator(
        &self,
        context: &RequestContext,
        sent: Option<&str>,
        wanted: Permission,
    ) -> Result<Actor, ApiError> {
        match self.authenticate(context, sent, wanted).await? {
            Identity::Operator(token) if wanted.is_held_by(TokenKind::Bootstrap) => {
                context.admit(self.limits.check_operator())?;
                context.enter(Owner::Operator).await?;
                bootstrap::note_use(self, context, &token);
                Ok(bootstrap::actor(&token))
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
        let context = context(request, principal.actor(), None);
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

//! Which upstream credential to use now: what AI gateways ask, and what they report back.
//!
//! Resolving asks the store nothing while what is kept of the publisher holds
//! (docs/adr/0021-resolve-from-a-snapshot.md).

use std::{sync::Arc, time::Duration};

use poem_openapi::OpenApi;

use domain::{
    Code, FaultCode, FieldError, Problem, Timestamp,
    id::{AccountId, Id as _, TokenId, TrainId},
    lending::{ASK_AGAIN_AFTER, NOBODY_RETURNS_AFTER, Unavailable},
    permission::TrainsResolve,
};
use persistence::{
    AccountCriteria, AccountReport, CredentialPool, Exhausted, Principal, ResolvedAccount,
    StoreError, Upstream, Upstreams,
};
use url::Url;

use crate::{
    auth::Caller,
    shared::{App, NoContent, Ok, Tag, no_content},
};
use web::http::{ApiError, Body, OptionalBody, RequestContext};

pub(crate) mod forward;
mod views;

use views::{Lending, ReportRequest, ResolveRequest};

/// What a caller asks for.
#[derive(Debug, Default)]
struct Asked {
    provider: Option<String>,
    /// Without a slash at its end, as accounts have it.
    base_url: Option<String>,
    /// Whether the caller sends all its requests to one upstream, whatever the answer says of it.
    has_one_upstream: bool,
    model: Option<String>,
    exclude: Vec<AccountId>,
    client_key: Option<String>,
}

impl Asked {
    /// An identifier that is none of ours excludes as little as one of nothing.
    fn of(request: ResolveRequest) -> Result<Self, ApiError> {
        let exclude = request.exclude.unwrap_or_default();
        let base_url = request.base_url.as_deref().map(base_url).transpose();
        let fault = || Problem::field("/base_url", FaultCode::Format, NO_URL);
        Ok(Self {
            provider: request.provider,
            base_url: base_url.map_err(|NoUrl| fault())?,
            has_one_upstream: false,
            model: request.model,
            exclude: exclude
                .iter()
                .filter_map(|id| AccountId::parse(id))
                .collect(),
            client_key: request.client_key,
        })
    }

    fn upstream(&self) -> Upstream<'_> {
        Upstream {
            provider: self.provider.as_deref(),
            base_url: self.base_url.as_deref(),
        }
    }

    /// Refuses what no account of the train may be lent for: a credential goes to its own upstream
    /// and to no other (docs/adr/0035-a-gateway-names-its-upstream.md).
    fn check(&self, by: &CredentialPool) -> Result<(), ApiError> {
        let upstream = self.upstream();
        let is_named = upstream != Upstream::default();
        match by.upstreams(&upstream) {
            Upstreams::None if is_named => Err(Code::NoAccountOfUpstream.into()),
            Upstreams::Several if self.has_one_upstream => Err(Code::SeveralUpstreams.into()),
            _ => Ok(()),
        }
    }
}

/// It is no URL.
struct NoUrl;

const NO_URL: &str = "It is no URL.";

/// A base URL in the form that accounts have.
fn base_url(text: &str) -> Result<String, NoUrl> {
    let url = Url::parse(text).map_err(|_| NoUrl)?;
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

fn train_of(who: &Principal) -> Result<TrainId, ApiError> {
    who.train().ok_or_else(|| Code::WrongTokenKind.into())
}

/// The token's train as it lends now, unless it is disabled.
async fn lending(app: &App, who: &Principal) -> Result<CredentialPool, ApiError> {
    let scoped = app.store.scoped(&who.scope);
    // A train takes its tokens along when it goes.
    let by = scoped.trains().credential_pool(train_of(who)?).await?;
    let by = by.ok_or(Code::Unauthenticated)?;
    if by.is_enabled() {
        Ok(by)
    } else {
        Err(Code::TrainDisabled.into())
    }
}

/// How long whoever resolves waits for a new token while the old one lives, and after its end.
const WAIT: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(30));

/// The account to use now. An access token that expires within the minute is replaced first, if
/// it can be; each account is tried once, or again at its end. An unexpired one that could not be
/// replaced is lent all the same. If none is left and the store was in the way, the store is to
/// blame.
async fn lend(
    app: &Arc<App>,
    request: &RequestContext,
    who: &Principal,
    asked: &Asked,
) -> Result<Arc<ResolvedAccount>, ApiError> {
    let (mut tried, mut away, mut outside) = (Vec::new(), None::<StoreError>, None);
    loop {
        let (by, now) = (lending(app, who).await?, app.store.now());
        asked.check(&by)?;
        let wish = AccountCriteria {
            upstream: asked.upstream(),
            model: asked.model.as_deref(),
            exclude: &asked.exclude,
            client: asked.client_key.as_deref(),
            tried: &tried,
        };
        let lent = match (by.choose(&wish, now), &away) {
            (Ok(lent), _) => lent,
            (Err(_), Some(error)) => return Err(error.clone().into()),
            (Err(exhausted), None) => {
                tell_exhausted(app, who, &by, &exhausted);
                return Err(refusal(&exhausted, now));
            }
        };
        let renew = lent.is_oauth && lent.expires_soon(now) && !tried.contains(&lent.id);
        if !renew {
            return Ok(lent);
        }
        if outside.is_none() {
            outside = Some(app.wait_outside(request, who.scope.publisher()).await?);
        }
        let renewed = app.refresher.living_token(&who.scope, lent.id, WAIT).await;
        if let Err(error) = renewed {
            // The refresher warns once; this is said for each of those that waited for it.
            tracing::debug!(account = %lent.id, %error, "an access token could not be replaced before it is lent");
            away = away.or(error.of_the_store());
        }
        // One that ended meanwhile is tried once more: that it is not fresh was said of a live one.
        let lived = |at| lent.expires_at.is_some_and(|end| end > at);
        if !lived(now) || lived(app.store.now()) {
            tried.push(lent.id);
        }
    }
}

/// Tells the publisher, off the request's path, that a train has nothing left: whatever its callers
/// exclude, and not more often than every five minutes.
fn tell_exhausted(app: &App, who: &Principal, by: &CredentialPool, exhausted: &Exhausted) {
    let (Some(train), true) = (who.train(), exhausted.is_whole()) else {
        return;
    };
    if !by.claim_exhausted_notice(app.store.now()) {
        return;
    }
    let scoped = app.store.scoped(&who.scope);
    let (slug, available_at) = (by.slug().to_owned(), exhausted.available_at());
    app.tasks.spawn(async move {
        if let Err(error) = scoped
            .trains()
            .tell_exhausted(train, &slug, available_at)
            .await
        {
            tracing::warn!(%error, "that a train is exhausted could not be told");
        }
    });
}

fn refusal(exhausted: &Exhausted, now: Timestamp) -> ApiError {
    let returns = exhausted.available_at();
    let wait = returns.map_or(NOBODY_RETURNS_AFTER, |at| at.since(now));
    let wait_s = wait.as_millis().div_ceil(1000).max(1);
    let detail = match returns {
        Some(at) => format!("The first account is back at {at}."),
        None => "No account comes back by itself.".to_owned(),
    };
    let why = |(account, out): &(AccountId, Unavailable)| {
        let pointer = format!("/accounts/{account}");
        FieldError::new(pointer, out.code(), describe(*out))
    };
    let mut problem = Problem::new(Code::TrainExhausted, detail);
    problem.errors = exhausted.accounts.iter().map(why).collect();
    problem
        .retry_after(u64::try_from(wait_s).unwrap_or(u64::MAX))
        .into()
}

fn describe(out: Unavailable) -> String {
    match out {
        Unavailable::Disabled => "It is disabled.".to_owned(),
        Unavailable::Failed => "It can't be refreshed any more.".to_owned(),
        Unavailable::Expired => "Its access token is expired.".to_owned(),
        Unavailable::CoolingDown(until) => format!("It cools down until {until}."),
        Unavailable::Excluded => "The request excludes it.".to_owned(),
    }
}

/// Takes a report of one of the train's accounts.
async fn report(app: &App, who: &Principal, report: &AccountReport) -> Result<(), ApiError> {
    let scoped = app.store.scoped(&who.scope);
    scoped
        .trains()
        .report(train_of(who)?, TokenId::from_uuid(who.credential()), report)
        .await?;
    Ok(())
}

/// When the caller should ask again: soon, and before the credential expires.
fn ask_again_at(lent: &ResolvedAccount, now: Timestamp) -> Timestamp {
    let soon = now.plus(ASK_AGAIN_AFTER);
    lent.expires_at.map_or(soon, |at| at.min(soon))
}

/// What AI gateways ask.
pub(crate) struct Resolve {
    pub(crate) app: Arc<App>,
}

#[OpenApi(prefix_path = "/v1/resolve", tag = "Tag::Trains")]
impl Resolve {
    /// Resolve the account to use now
    ///
    /// Of the token's train: the account with the lowest priority number that is enabled, healthy
    /// and not cooling down, with the header to send upstream. The answer may be used until
    /// `ask_again_at`.
    #[oai(path = "/", method = "post", operation_id = "resolve")]
    async fn resolve(
        &self,
        who: Caller<TrainsResolve>,
        body: OptionalBody<ResolveRequest>,
    ) -> Result<Ok<Lending>, ApiError> {
        let asked = Asked::of(body.0)?;
        let lent = lend(&self.app, &who.request, &who.principal, &asked).await?;
        Ok(Ok::show(&Lending::of(&lent, self.app.store.now()), None))
    }

    /// Report the outcome of an upstream request
    ///
    /// `rate_limited` lets the account, or the account for `model` alone, cool down for
    /// `retry_after` seconds, 60 if that is not said; `unauthorized` for five minutes, and an
    /// `oauth` account's tokens are refreshed soon; `failed` for 30 seconds. A cooldown never
    /// becomes shorter but by `ok`, which ends it. It has taken effect when the answer arrives.
    #[oai(path = "/report", method = "post", operation_id = "report")]
    async fn report(
        &self,
        who: Caller<TrainsResolve>,
        body: Body<ReportRequest>,
    ) -> Result<NoContent, ApiError> {
        lending(&self.app, &who.principal).await?;
        report(&self.app, &who.principal, &body.0.parse()?).await?;
        Ok(no_content().into())
    }
}

fn seconds(count: Option<u32>) -> Option<Duration> {
    count.map(|count| Duration::from_secs(count.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_every_account_and_the_first_return() {
        let now = Timestamp::from_ms(1_800_000_000_000);
        let account = |number| AccountId::from_uuid(uuid::Uuid::from_u128(number));
        let until = now.plus(Duration::from_millis(1001));
        let exhausted = Exhausted {
            accounts: vec![
                (account(1), Unavailable::Disabled),
                (account(2), Unavailable::CoolingDown(until)),
            ],
        };
        let error = refusal(&exhausted, now);
        let problem = error.problem();
        assert_eq!(problem.retry_after_s, Some(2), "never too early");
        assert_eq!(problem.errors.len(), 2);
        assert_eq!(problem.errors[1].code.as_str(), "cooling_down");
        assert!(problem.errors[1].detail.contains(&until.to_string()));
        assert!(problem.errors[0].pointer.starts_with("/accounts/acc_"));
        let nobody = Exhausted {
            accounts: vec![(account(1), Unavailable::Failed)],
        };
        assert_eq!(refusal(&nobody, now).problem().retry_after_s, Some(60));
    }
}

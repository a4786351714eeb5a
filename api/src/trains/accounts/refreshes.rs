//! Refreshing OAuth accounts by hand: one, or all.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};
use poem_openapi::{Enum, Object, OpenApi};
use tokio::time::Instant;
use view_derive::Example;

use domain::{account::CredentialType, id::AccountId, permission::AccountsWrite};
use persistence::{Context, Refreshable, Scope, StoreError};
use upstream::RefreshError;

use crate::{
    auth::Caller,
    shared::{App, Ok, Path, Tag},
};
use web::http::{ApiError, OptionalBody};

use super::{AccountView, example_id, shown};

/// How many accounts of a publisher are refreshed at a time.
const AT_A_TIME: usize = 8;
/// After this no further account is begun: the answer has to come within the request's time.
const BEGIN_WITHIN: Duration = Duration::from_secs(40);

/// What was done, or would be.
#[derive(Enum, Clone, Copy, Debug, PartialEq, Eq)]
#[oai(rename = "RefreshOutcome", rename_all = "snake_case")]
pub enum Outcome {
    /// It has a new token.
    Refreshed,
    /// It would get one: this was a dry run.
    WouldRefresh,
    /// It got none; the reason says why.
    Failed,
    /// It was left alone; the reason says why.
    Skipped,
}

/// An account, and what became of it.
#[derive(Object, Example, Clone, Debug)]
#[oai(rename = "AccountRefresh", example)]
pub struct RefreshView {
    /// `acc_…`
    #[example(example_id())]
    account_id: String,
    /// Its name.
    #[example("team-one")]
    name: String,
    /// What was done, or would be.
    #[example(Outcome::Refreshed)]
    outcome: Outcome,
    /// Why it failed or was left alone: `api_key`, `disabled`, `time_over`, or the endpoint's fault.
    #[oai(nullable)]
    reason: Option<String>,
}

impl RefreshView {
    fn of(one: &Refreshable, outcome: Outcome, reason: Option<&str>) -> Self {
        Self {
            account_id: one.account.to_string(),
            name: one.name.clone(),
            outcome,
            reason: reason.map(str::to_owned),
        }
    }
}

/// Every account.
#[derive(Object, Example)]
#[oai(rename = "AccountRefreshes", example)]
struct RefreshesView {
    /// All of them, by name.
    #[example([RefreshView::example()])]
    items: Vec<RefreshView>,
}

/// How to refresh all.
#[derive(Object, Example, Clone, Debug, Default)]
#[oai(rename = "RefreshAccounts", example, deny_unknown_fields)]
pub struct RefreshBody {
    /// Whether to say what would be done, and do nothing.
    #[oai(default)]
    #[example(true)]
    dry_run: bool,
}

/// Why an account is no matter of a refresh of all.
fn left_alone(one: &Refreshable) -> Option<&'static str> {
    if one.credential_type != CredentialType::Oauth {
        return Some(CredentialType::ApiKey.as_str());
    }
    (!one.enabled).then_some("disabled")
}

/// The operations.
pub struct Refreshes {
    pub(crate) app: Arc<App>,
}

/// What is done with each account of a refresh of all.
#[derive(Clone)]
struct Round {
    app: Arc<App>,
    scope: Scope,
    context: Context,
    dry_run: bool,
    until: Instant,
}

impl Round {
    async fn treat(self, one: Refreshable) -> RefreshView {
        if let Some(reason) = left_alone(&one) {
            return RefreshView::of(&one, Outcome::Skipped, Some(reason));
        }
        if self.dry_run {
            return RefreshView::of(&one, Outcome::WouldRefresh, None);
        }
        if Instant::now() >= self.until {
            return RefreshView::of(&one, Outcome::Skipped, Some("time_over"));
        }
        let (refresher, context) = (&self.app.refresher, Some(self.context));
        let fresh = refresher.replace(&self.scope, one.account, one.version, true, context);
        match fresh.await {
            Ok(_) => RefreshView::of(&one, Outcome::Refreshed, None),
            Err(error) => RefreshView::of(&one, Outcome::Failed, Some(&why(&one, error))),
        }
    }
}

fn why(one: &Refreshable, error: RefreshError) -> String {
    match error {
        RefreshError::Upstream(reason) => reason,
        RefreshError::TimeOver => "time_over".to_owned(),
        // It was deleted meanwhile, or somebody else has just dealt with it.
        RefreshError::Store(StoreError::Refused(problem)) => problem.code.as_str().to_owned(),
        RefreshError::Store(error) => {
            tracing::warn!(account = %one.account, %error, "an account could not be refreshed");
            "store_unavailable".to_owned()
        }
    }
}

#[OpenApi(prefix_path = "/v1/accounts", tag = "Tag::Trains")]
impl Refreshes {
    /// Refresh an account
    ///
    /// Asks its token endpoint for a new access token now, whatever is left of the old one. However
    /// many ask at the same time, one request goes out, and all get its outcome. A failure leaves an
    /// unexpired token in use.
    #[oai(
        path = "/:id/refresh",
        method = "post",
        operation_id = "refresh_account"
    )]
    async fn one(
        &self,
        who: Caller<AccountsWrite>,
        Path(id): Path<AccountId>,
    ) -> Result<Ok<AccountView>, ApiError> {
        let scope = who.scope();
        let trains = who.scoped().trains();
        let seen = trains.credential_version(id).await?;
        let context = who.context();
        let _outside = self
            .app
            .wait_outside(&who.request, scope.publisher())
            .await?;
        let refresher = &self.app.refresher;
        let fresh = refresher.replace(scope, id, seen, true, Some(context));
        fresh.await.map_err(StoreError::from)?;
        let account = trains.account(id).await?;
        Ok(shown(&account).into())
    }

    /// Refresh all accounts
    ///
    /// Those that hold OAuth tokens and are enabled, a few at a time; the others are listed as left
    /// alone. What is not begun within 40 seconds is left alone too: ask again.
    #[oai(path = "/refresh", method = "post", operation_id = "refresh_accounts")]
    async fn all(
        &self,
        who: Caller<AccountsWrite>,
        body: OptionalBody<RefreshBody>,
    ) -> Result<Ok<RefreshesView>, ApiError> {
        let scope = who.scope();
        let all = who.scoped().trains().refreshable().await?;
        let _outside = if body.0.dry_run {
            None
        } else {
            Some(
                self.app
                    .wait_outside(&who.request, scope.publisher())
                    .await?,
            )
        };
        let round = Round {
            app: Arc::clone(&self.app),
            scope: scope.clone(),
            context: who.context(),
            dry_run: body.0.dry_run,
            until: Instant::now() + BEGIN_WITHIN,
        };
        let work = all.into_iter().map(|one| round.clone().treat(one));
        let items = stream::iter(work).buffered(AT_A_TIME).collect().await;
        Ok(Ok::show(&RefreshesView { items }, None))
    }
}

//! Cooldowns of accounts, which gateways report: how they are shown, and how an admin ends them.

use std::sync::Arc;

use poem_openapi::{Enum, Object, OpenApi, param::Path, types::Example};

use domain::{
    Code,
    id::{AccountId, Id as _, TokenId},
    lending::Outcome,
};
use persistence::{Account, AccountCooldown, Reporter};

use crate::{
    auth::Admin,
    shared::{
        App,
        common::{Ok, Tag, Time, answer, parse_id},
        examples::EXAMPLE_AT,
        idempotency::Idempotency,
    },
};
use web::{
    contract::OperationDoc,
    http::{ApiError, OptionalBody, RequestContext},
};

use super::AccountView;

/// The problems of this operation's own.
pub const DOCS: &[OperationDoc] = &[OperationDoc {
    operation_id: "end_account_cooldown",
    codes: &[Code::IdempotencyKeyReused],
}];

/// What a report said that lets an account cool down.
#[derive(Clone, Copy, Debug, Enum)]
#[oai(rename = "CooldownReason", rename_all = "snake_case")]
enum ReasonName {
    /// The upstream asked for a pause (429, 529).
    RateLimited,
    /// The upstream refused the credential (401, 403).
    Unauthorized,
    /// The request failed in another way.
    Failed,
}

impl From<Outcome> for ReasonName {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::RateLimited => Self::RateLimited,
            Outcome::Unauthorized => Self::Unauthorized,
            // The store has no cooldown after a success.
            Outcome::Failed | Outcome::Ok => Self::Failed,
        }
    }
}

/// Who reported that an account needs to cool down.
#[derive(Object, Clone, Debug)]
#[oai(rename = "CooldownReporter")]
struct ReporterView {
    /// The train token: `tok_…`
    token_id: String,
    /// Its name; null if it has none, or is gone.
    #[oai(nullable)]
    token_name: Option<String>,
    /// The slug of its train; null if it is gone.
    #[oai(nullable)]
    train: Option<String>,
}

impl From<&Reporter> for ReporterView {
    fn from(reporter: &Reporter) -> Self {
        Self {
            token_id: reporter.token.to_string(),
            token_name: reporter.name.clone(),
            train: reporter.train.clone(),
        }
    }
}

/// A time in which trains do not lend an account.
#[derive(Object, Clone, Debug)]
#[oai(rename = "Cooldown", example)]
pub(crate) struct CooldownView {
    /// The model that it is about; null for the account as a whole.
    #[oai(nullable)]
    model: Option<String>,
    /// Until when.
    until: Time,
    /// What was reported.
    reason: ReasonName,
    /// When it was reported.
    reported_at: Time,
    /// Who reported it; null if that was not recorded.
    #[oai(nullable)]
    reported_by: Option<ReporterView>,
}

impl From<&AccountCooldown> for CooldownView {
    fn from(cooldown: &AccountCooldown) -> Self {
        Self {
            model: cooldown.model.clone(),
            until: cooldown.until.into(),
            reason: cooldown.reason.into(),
            reported_at: cooldown.reported_at.into(),
            reported_by: cooldown.reported_by.as_ref().map(ReporterView::from),
        }
    }
}

impl Example for CooldownView {
    fn example() -> Self {
        Self {
            model: None,
            until: EXAMPLE_AT,
            reason: ReasonName::RateLimited,
            reported_at: EXAMPLE_AT,
            reported_by: Some(ReporterView {
                token_id: TokenId::from_uuid(uuid::Uuid::nil()).to_string(),
                token_name: Some("laptop".into()),
                train: Some("night-shift".into()),
            }),
        }
    }
}

/// Of an account's cooldowns, that of the account as a whole, and those for one model each.
pub(super) fn parted(account: &Account) -> (Option<CooldownView>, Vec<CooldownView>) {
    let (whole, models): (Vec<_>, Vec<_>) = account
        .cooldowns
        .iter()
        .partition(|cooldown| cooldown.model.is_none());
    let whole = whole.first().copied().map(CooldownView::from);
    (whole, models.into_iter().map(CooldownView::from).collect())
}

/// Which cooldown to end.
#[derive(Object, Clone, Debug, Default)]
#[oai(
    rename = "EndCooldown",
    example,
    deny_unknown_fields,
    skip_serializing_if_is_none
)]
pub struct EndBody {
    /// End the cooldown for this model alone. Without it, all of the account's cooldowns end.
    #[oai(validator(min_length = 1, max_length = 200))]
    model: Option<String>,
}

impl Example for EndBody {
    fn example() -> Self {
        Self {
            model: Some("claude-opus-4-1".into()),
        }
    }
}

/// The operation.
pub struct Cooldowns {
    pub(crate) app: Arc<App>,
}

#[OpenApi(prefix_path = "/v1", tag = "Tag::Trains")]
impl Cooldowns {
    /// End the cooldown of an account
    ///
    /// Ends all of its cooldowns, or the one for `model`. When the answer arrives, trains lend the
    /// account again; other processes follow within half a second. A later report starts a new
    /// cooldown. If the account does not cool down, nothing changes.
    #[oai(
        path = "/accounts/:id/end-cooldown",
        method = "post",
        operation_id = "end_account_cooldown"
    )]
    async fn end(
        &self,
        who: Admin,
        request: &RequestContext,
        /// The account's identifier.
        #[oai(validator(max_length = 40))]
        id: Path<String>,
        /// Makes repeats of the request harmless for 24 hours.
        #[oai(name = "Idempotency-Key")]
        key: Idempotency,
        body: OptionalBody<EndBody>,
    ) -> Result<Ok<AccountView>, ApiError> {
        let id = parse_id::<AccountId>(&id.0)?;
        let key = key.of("end_account_cooldown", request);
        let context = self.app.context(request, who.0.actor(), key);
        let scoped = self.app.store.scoped(&who.0.scope);
        let model = body.0.model.as_deref();
        let shown = |account: &Account| {
            let view = AccountView::from(account);
            answer(200, &view, Some(account.revision), None, false)
        };
        let answer = scoped.end_cooldown(&context, id, model, shown);
        Ok(answer.await?.into())
    }
}

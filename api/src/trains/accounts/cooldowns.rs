//! Cooldowns of accounts, which gateways report: how they are shown, and how an admin ends them.

use poem_openapi::{Enum, Object, OpenApi};
use view_derive::{Example, View};

use domain::{
    id::{AccountId, TokenId},
    lending::UseOutcome,
    permission::AccountsWrite,
};
use persistence::{Account, AccountCooldown, Reporter};

use crate::{
    auth::Caller,
    shared::{Idempotency, Ok, Path, Tag, Time, nil_id},
};
use web::http::{ApiError, OptionalBody};

use super::{AccountView, shown};

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

impl From<UseOutcome> for ReasonName {
    fn from(outcome: UseOutcome) -> Self {
        match outcome {
            UseOutcome::RateLimited => Self::RateLimited,
            UseOutcome::Unauthorized => Self::Unauthorized,
            // The store has no cooldown after a success.
            UseOutcome::Failed | UseOutcome::Ok => Self::Failed,
        }
    }
}

/// Who reported that an account needs to cool down.
#[derive(Object, View, Example, Clone, Debug)]
#[oai(rename = "CooldownReporter")]
#[view(of = Reporter)]
struct ReporterView {
    /// The train token: `tok_…`
    #[view(field = token)]
    #[example(nil_id::<TokenId>())]
    token_id: String,
    /// Its name; null if it has none, or is gone.
    #[oai(nullable)]
    #[view(field = name)]
    #[example("laptop")]
    token_name: Option<String>,
    /// The slug of its train; null if it is gone.
    #[oai(nullable)]
    #[example("night-shift")]
    train: Option<String>,
}

/// A time in which trains do not lend an account.
#[derive(Object, View, Example, Clone, Debug)]
#[oai(rename = "Cooldown", example)]
#[view(of = AccountCooldown)]
pub(crate) struct CooldownView {
    /// The model that it is about; null for the account as a whole.
    #[oai(nullable)]
    model: Option<String>,
    /// Until when.
    until: Time,
    /// What was reported.
    #[example(ReasonName::RateLimited)]
    reason: ReasonName,
    /// When it was reported.
    reported_at: Time,
    /// Who reported it; null if that was not recorded.
    #[oai(nullable)]
    #[example(ReporterView::example())]
    reported_by: Option<ReporterView>,
}

/// The cooldown of an account as a whole.
pub(super) fn of_all(account: &Account) -> Option<CooldownView> {
    let mut cooldowns = account.cooldowns.iter();
    let whole = cooldowns.find(|cooldown| cooldown.model.is_none());
    whole.map(CooldownView::from)
}

/// The cooldowns of an account for one model each.
pub(super) fn of_models(account: &Account) -> Vec<CooldownView> {
    let cooldowns = account.cooldowns.iter();
    let of_models = cooldowns.filter(|cooldown| cooldown.model.is_some());
    of_models.map(CooldownView::from).collect()
}

/// Which cooldown to end.
#[derive(Object, Example, Clone, Debug, Default)]
#[oai(
    rename = "EndCooldown",
    example,
    deny_unknown_fields,
    skip_serializing_if_is_none
)]
pub struct EndBody {
    /// End the cooldown for this model alone. Without it, all of the account's cooldowns end.
    #[oai(validator(min_length = 1, max_length = 200))]
    #[example("claude-opus-4-1")]
    model: Option<String>,
}

/// The operation.
pub struct Cooldowns;

#[OpenApi(prefix_path = "/v1/accounts", tag = "Tag::Trains")]
impl Cooldowns {
    /// End the cooldown of an account
    ///
    /// Ends all of its cooldowns, or the one for `model`. When the answer arrives, trains lend the
    /// account again; other processes follow within half a second. A later report starts a new
    /// cooldown. If the account does not cool down, nothing changes.
    #[oai(
        path = "/:id/end-cooldown",
        method = "post",
        operation_id = "end_account_cooldown"
    )]
    async fn end(
        &self,
        who: Caller<AccountsWrite>,
        Path(id): Path<AccountId>,
        key: Idempotency,
        body: OptionalBody<EndBody>,
    ) -> Result<Ok<AccountView>, ApiError> {
        let context = who.context_with(key);
        let trains = who.scoped().trains();
        let model = body.0.model.as_deref();
        let answer = trains.end_cooldown(&context, id, model, shown);
        Ok(answer.await?.into())
    }
}

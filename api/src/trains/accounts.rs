//! Accounts: upstream credentials that come in and never go out again, but to a train's gateway.

pub(crate) mod body;
pub mod cooldowns;
pub mod logins;
pub mod refreshes;

use std::sync::Arc;

use poem_openapi::{Enum, Object, OpenApi};
use view_derive::{Example, View};

use domain::{
    account::CredentialType,
    id::AccountId,
    permission::{AccountsRead, AccountsWrite},
};
use persistence::{Account, AccountHealth, OauthClient};

use crate::{
    auth::Caller,
    shared::{
        App, Created, Idempotency, IfMatch, Listed, Ok, PageQuery, Path, Tag, Time, Word, answer,
        created, nil_id,
    },
};
use web::http::{ApiError, Body, Patch};

use cooldowns::CooldownView;

use body::{AccountPatchBody, CeilingsBody, HeaderBody, NewAccountBody};

/// Whether a credential works, as far as is known.
#[derive(Clone, Copy, Debug, Enum)]
#[oai(rename = "AccountStatus", rename_all = "snake_case")]
enum HealthStatus {
    /// It does.
    Ok,
    /// It can't be refreshed any more.
    Failed,
}

/// Whether an account's credential works, as far as is known.
#[derive(Object, Clone, Debug)]
#[oai(rename = "AccountHealth")]
struct HealthView {
    /// Whether it works.
    status: HealthStatus,
    /// Why not, if that is known.
    #[oai(nullable)]
    reason: Option<String>,
    /// Since when it does not.
    #[oai(nullable)]
    failed_at: Option<Time>,
    /// If it failed: until when trains lend the access token that it still has. Null if that token
    /// had expired by then.
    #[oai(nullable)]
    lent_until: Option<Time>,
}

impl From<AccountHealth> for HealthView {
    fn from(health: AccountHealth) -> Self {
        match health {
            AccountHealth::Ok => Self {
                status: HealthStatus::Ok,
                reason: None,
                failed_at: None,
                lent_until: None,
            },
            AccountHealth::Failed {
                reason,
                at,
                lent_until,
            } => Self {
                status: HealthStatus::Failed,
                reason,
                failed_at: Some(Time(at)),
                lent_until: lent_until.map(Time),
            },
        }
    }
}

/// How an account's tokens are refreshed.
#[derive(Object, View, Clone, Debug)]
#[oai(rename = "OauthClient")]
#[view(of = OauthClient)]
struct ClientView {
    /// The token endpoint.
    token_url: String,
    /// As whom.
    client_id: String,
    /// What a refresh asks for.
    scopes: Vec<String>,
}

/// An upstream credential, without what it is.
#[derive(Object, View, Example, Clone, Debug)]
#[oai(rename = "Account", example)]
#[view(of = Account)]
pub struct AccountView {
    /// `acc_…`
    #[example(example_id())]
    id: String,
    /// Unique within the publisher.
    #[example("Anthropic, team A")]
    name: String,
    /// Whose credential it is.
    #[example("anthropic")]
    provider: String,
    /// Where the upstream is.
    #[example("https://api.anthropic.com")]
    base_url: String,
    /// What carries the credential there.
    #[example(HeaderBody { name: "x-api-key".into(), scheme: None })]
    header: HeaderBody,
    /// What sort of credential it is.
    #[example(CredentialType::ApiKey)]
    credential_type: Word<CredentialType>,
    /// The last four characters of what goes out.
    #[example("6789")]
    last_four: String,
    /// Whether trains lend it.
    #[example(true)]
    enabled: bool,
    /// Whether it works.
    #[example(AccountHealth::Ok)]
    health: HealthView,
    /// How much of it is to be used.
    #[example(CeilingsBody::default())]
    ceilings: CeilingsBody,
    /// The cooldown of the account as a whole: no train lends it until then. Null if there is none.
    #[oai(nullable)]
    #[view(from = cooldowns::of_all(of))]
    cooldown: Option<CooldownView>,
    /// The cooldowns for single models. Only in answers with one account, and only if there are
    /// any.
    #[oai(skip_serializing_if_is_none)]
    #[view(from = Some(cooldowns::of_models(of)).filter(|models| !models.is_empty()))]
    model_cooldowns: Option<Vec<CooldownView>>,
    /// How it is refreshed; null for an `api_key`.
    #[oai(nullable)]
    oauth: Option<ClientView>,
    /// When its access token expires; null for an `api_key`.
    #[oai(nullable)]
    expires_at: Option<Time>,
    /// When it was last refreshed.
    #[oai(nullable)]
    refreshed_at: Option<Time>,
    /// When it was made.
    created_at: Time,
    /// When it last changed.
    updated_at: Time,
}

/// An identifier for examples.
pub(crate) fn example_id() -> String {
    nil_id::<AccountId>().into()
}

/// What the removal of an account leaves behind.
#[derive(Object, Example, Clone, Debug)]
#[oai(example)]
pub struct DeletedAccount {
    /// The slugs of the trains that had no other account.
    #[example(["night-shift"])]
    trains_left_empty: Vec<String>,
}

/// The operations on accounts.
pub struct Accounts {
    app: Arc<App>,
}

/// Everything that concerns accounts.
pub(crate) type All = (
    Accounts,
    refreshes::Refreshes,
    cooldowns::Cooldowns,
    logins::Logins,
);

/// See [`All`].
pub(crate) fn all(app: &Arc<App>) -> All {
    let app = || Arc::clone(app);
    (
        Accounts { app: app() },
        refreshes::Refreshes { app: app() },
        cooldowns::Cooldowns,
        logins::Logins { app: app() },
    )
}

#[OpenApi(prefix_path = "/v1/accounts", tag = "Tag::Trains")]
impl Accounts {
    /// Create an account
    ///
    /// The credential is sealed, and no answer shows it again.
    #[oai(path = "/", method = "post", operation_id = "create_account")]
    async fn create(
        &self,
        who: Caller<AccountsWrite>,
        key: Idempotency,
        body: Body<NewAccountBody>,
    ) -> Result<Created<AccountView>, ApiError> {
        let new = body.0.checked(&self.app.policy)?;
        let context = who.context_with(key);
        let trains = who.scoped().trains();
        let answer = trains.create_account(&context, new, made);
        Ok(answer.await?.into())
    }

    /// List accounts
    ///
    /// Newest first.
    #[oai(path = "/", method = "get", operation_id = "list_accounts")]
    async fn list(
        &self,
        who: Caller<AccountsRead>,
        page: PageQuery,
    ) -> Result<Listed<AccountView>, ApiError> {
        let list = who.list(page).await?;
        let page = who.scoped().trains().accounts(list.page()?).await?;
        Ok(list.answer(page, |account| AccountView::from(&account)))
    }

    /// Get an account
    #[oai(path = "/:id", method = "get", operation_id = "get_account")]
    async fn get(
        &self,
        who: Caller<AccountsRead>,
        Path(id): Path<AccountId>,
    ) -> Result<Ok<AccountView>, ApiError> {
        let account = who.scoped().trains().account(id).await?;
        Ok(shown(&account).into())
    }

    /// Update an account
    ///
    /// A JSON Merge Patch (RFC 7396). Its credential stays what it is.
    #[oai(path = "/:id", method = "patch", operation_id = "update_account")]
    async fn update(
        &self,
        who: Caller<AccountsWrite>,
        Path(id): Path<AccountId>,
        if_match: IfMatch,
        body: Patch<AccountPatchBody>,
    ) -> Result<Ok<AccountView>, ApiError> {
        let context = who.context();
        let trains = who.scoped().trains();
        let wish = |account: &Account| body.0.over(account.ceilings);
        let answer = trains.update_account(&context, id, if_match.0, wish, shown);
        Ok(answer.await?.into())
    }

    /// Delete an account
    ///
    /// It leaves every train that lent it; the answer names those that have no account now.
    #[oai(path = "/:id", method = "delete", operation_id = "delete_account")]
    async fn delete(
        &self,
        who: Caller<AccountsWrite>,
        Path(id): Path<AccountId>,
        if_match: IfMatch,
    ) -> Result<Ok<DeletedAccount>, ApiError> {
        let context = who.context();
        let trains = who.scoped().trains();
        let report = |empty: &Vec<String>| {
            let report = DeletedAccount {
                trains_left_empty: empty.clone(),
            };
            answer(200, &report)
        };
        let answer = trains.delete_account(&context, id, if_match.0, report);
        Ok(answer.await?.into())
    }

    /// Replace an account
    ///
    /// A new account, with another credential, takes over every place in trains, and the old one
    /// is removed: all of it or nothing. It may keep the name.
    #[oai(
        path = "/:id/replace",
        method = "post",
        operation_id = "replace_account"
    )]
    async fn replace(
        &self,
        who: Caller<AccountsWrite>,
        Path(id): Path<AccountId>,
        key: Idempotency,
        body: Body<NewAccountBody>,
    ) -> Result<Created<AccountView>, ApiError> {
        let new = body.0.checked(&self.app.policy)?;
        let context = who.context_with(key);
        let trains = who.scoped().trains();
        let answer = trains.replace_account(&context, id, new, made);
        Ok(answer.await?.into())
    }
}

/// An account as it is now.
fn shown(account: &Account) -> persistence::Answer {
    answer(200, &AccountView::from(account)).revision(account.revision)
}

/// A new account.
fn made(account: &Account) -> persistence::Answer {
    created(shown(account), format!("/v1/accounts/{}", account.id))
}

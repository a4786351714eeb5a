//! Accounts: upstream credentials that come in and never go out again, but to a train's gateway.

pub(crate) mod body;
pub mod cooldowns;
pub mod logins;
pub mod refreshes;

use std::sync::Arc;

use poem_openapi::{
    Enum, Object, OpenApi,
    param::{Path, Query},
    types::Example,
};

use domain::{
    Code,
    id::{AccountId, Id as _},
};
use persistence::{Account, AccountHealth, OauthClient};

use crate::{
    auth::Admin,
    shared::{
        App,
        common::{Created, IfMatch, Ok, Tag, Time, answer, parse_id},
        cursor::{List, Listed},
        examples::EXAMPLE_AT,
        idempotency::Idempotency,
    },
};
use web::{
    contract::OperationDoc,
    http::{ApiError, Body, Patch, RequestContext},
};

use cooldowns::CooldownView;

use body::{AccountPatchBody, CeilingsBody, HeaderBody, NewAccountBody, TypeName};

/// The problems of these operations' own.
pub const DOCS: &[OperationDoc] = &[
    OperationDoc {
        operation_id: "create_account",
        codes: &[
            Code::DestinationRefused,
            Code::QuotaExceeded,
            Code::NameTaken,
            Code::IdempotencyKeyReused,
        ],
    },
    OperationDoc {
        operation_id: "update_account",
        codes: &[Code::NameTaken, Code::PreconditionFailed],
    },
    OperationDoc {
        operation_id: "delete_account",
        codes: &[Code::PreconditionFailed],
    },
    OperationDoc {
        operation_id: "replace_account",
        codes: &[
            Code::DestinationRefused,
            Code::NameTaken,
            Code::IdempotencyKeyReused,
        ],
    },
];

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

impl From<&AccountHealth> for HealthView {
    fn from(health: &AccountHealth) -> Self {
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
                reason: reason.clone(),
                failed_at: Some(Time(*at)),
                lent_until: lent_until.map(Time),
            },
        }
    }
}

/// How an account's tokens are refreshed.
#[derive(Object, Clone, Debug)]
#[oai(rename = "OauthClient")]
struct ClientView {
    /// The token endpoint.
    token_url: String,
    /// As whom.
    client_id: String,
    /// What a refresh asks for.
    scopes: Vec<String>,
}

impl From<&OauthClient> for ClientView {
    fn from(client: &OauthClient) -> Self {
        Self {
            token_url: client.token_url.clone(),
            client_id: client.client_id.clone(),
            scopes: client.scopes.clone(),
        }
    }
}

/// An upstream credential, without what it is.
#[derive(Object, Clone, Debug)]
#[oai(rename = "Account", example)]
pub struct AccountView {
    /// `acc_…`
    id: String,
    /// Unique within the publisher.
    name: String,
    /// Whose credential it is.
    provider: String,
    /// Where the upstream is.
    base_url: String,
    /// What carries the credential there.
    header: HeaderBody,
    /// What sort of credential it is.
    credential_type: TypeName,
    /// The last four characters of what goes out.
    last_four: String,
    /// Whether trains lend it.
    enabled: bool,
    /// Whether it works.
    health: HealthView,
    /// How much of it is to be used.
    ceilings: CeilingsBody,
    /// The cooldown of the account as a whole: no train lends it until then. Null if there is none.
    #[oai(nullable)]
    cooldown: Option<CooldownView>,
    /// The cooldowns for single models. Only in answers with one account, and only if there are
    /// any.
    #[oai(skip_serializing_if_is_none)]
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

impl From<&Account> for AccountView {
    fn from(account: &Account) -> Self {
        let (cooldown, model_cooldowns) = cooldowns::parted(account);
        Self {
            id: account.id.to_string(),
            name: account.name.clone(),
            provider: account.provider.clone(),
            base_url: account.base_url.clone(),
            header: account.header.clone().into(),
            credential_type: account.credential_type.into(),
            last_four: account.last_four.clone(),
            enabled: account.enabled,
            health: HealthView::from(&account.health),
            ceilings: account.ceilings.into(),
            cooldown,
            model_cooldowns: Some(model_cooldowns).filter(|models| !models.is_empty()),
            oauth: account.oauth.as_ref().map(ClientView::from),
            expires_at: account.expires_at.map(Time),
            refreshed_at: account.refreshed_at.map(Time),
            created_at: account.created_at.into(),
            updated_at: account.updated_at.into(),
        }
    }
}

/// An identifier for examples.
pub(crate) fn example_id() -> String {
    AccountId::from_uuid(uuid::Uuid::nil()).to_string()
}

impl Example for AccountView {
    fn example() -> Self {
        let new = NewAccountBody::example();
        Self {
            id: example_id(),
            name: new.name,
            provider: new.provider,
            base_url: "https://api.anthropic.com".into(),
            header: HeaderBody {
                name: "x-api-key".into(),
                scheme: None,
            },
            credential_type: TypeName::ApiKey,
            last_four: "6789".into(),
            enabled: true,
            health: HealthView::from(&AccountHealth::Ok),
            ceilings: CeilingsBody::default(),
            cooldown: None,
            model_cooldowns: None,
            oauth: None,
            expires_at: None,
            refreshed_at: None,
            created_at: EXAMPLE_AT,
            updated_at: EXAMPLE_AT,
        }
    }
}

/// What the removal of an account leaves behind.
#[derive(Object, Clone, Debug)]
#[oai(example)]
pub struct DeletedAccount {
    /// The slugs of the trains that had no other account.
    trains_left_empty: Vec<String>,
}

impl Example for DeletedAccount {
    fn example() -> Self {
        Self {
            trains_left_empty: vec!["night-shift".into()],
        }
    }
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
        cooldowns::Cooldowns { app: app() },
        logins::Logins { app: app() },
    )
}

#[OpenApi(prefix_path = "/v1", tag = "Tag::Trains")]
impl Accounts {
    /// Create an account
    ///
    /// The credential is sealed, and no answer shows it again.
    #[oai(path = "/accounts", method = "post", operation_id = "create_account")]
    async fn create(
        &self,
        who: Admin,
        request: &RequestContext,
        /// Makes repeats of the request harmless for 24 hours.
        #[oai(name = "Idempotency-Key")]
        key: Idempotency,
        body: Body<NewAccountBody>,
    ) -> Result<Created<AccountView>, ApiError> {
        let new = body.0.checked(&self.app.policy)?;
        let key = key.of("create_account", request);
        let context = self.app.context(request, who.0.actor(), key);
        let scoped = self.app.store.scoped(&who.0.scope);
        let answer = scoped.create_account(&context, new, made);
        Ok(answer.await?.into())
    }

    /// List accounts
    ///
    /// Newest first.
    #[oai(path = "/accounts", method = "get", operation_id = "list_accounts")]
    async fn list(
        &self,
        who: Admin,
        request: &RequestContext,
        /// Page size.
        #[oai(validator(minimum(value = "1"), maximum(value = "200")))]
        limit: Query<Option<u64>>,
        /// Cursor: the `next_cursor` of the previous page.
        #[oai(validator(max_length = 200))]
        cursor: Query<Option<String>>,
    ) -> Result<Listed<AccountView>, ApiError> {
        let scope = &who.0.scope;
        let list = List::begin(&self.app, request, Some(scope), limit.0, cursor.0).await?;
        let page = self.app.store.scoped(scope).accounts(list.page()?).await?;
        Ok(list.answer(page, |account| AccountView::from(&account)))
    }

    /// Get an account
    #[oai(path = "/accounts/:id", method = "get", operation_id = "get_account")]
    async fn get(
        &self,
        who: Admin,
        /// The account's identifier.
        #[oai(validator(max_length = 40))]
        id: Path<String>,
    ) -> Result<Ok<AccountView>, ApiError> {
        let id = parse_id::<AccountId>(&id.0)?;
        let account = self.app.store.scoped(&who.0.scope).account(id).await?;
        Ok(Ok::show(
            &AccountView::from(&account),
            Some(account.revision),
        ))
    }

    /// Update an account
    ///
    /// A JSON Merge Patch (RFC 7396). Its credential stays what it is.
    #[oai(
        path = "/accounts/:id",
        method = "patch",
        operation_id = "update_account"
    )]
    async fn update(
        &self,
        who: Admin,
        request: &RequestContext,
        /// The account's identifier.
        #[oai(validator(max_length = 40))]
        id: Path<String>,
        /// The expected revision (`ETag`).
        #[oai(name = "If-Match")]
        if_match: IfMatch,
        body: Patch<AccountPatchBody>,
    ) -> Result<Ok<AccountView>, ApiError> {
        let id = parse_id::<AccountId>(&id.0)?;
        let context = self.app.context(request, who.0.actor(), None);
        let scoped = self.app.store.scoped(&who.0.scope);
        let wish = |account: &Account| body.0.over(account.ceilings);
        let shown = |account: &Account| {
            let view = AccountView::from(account);
            answer(200, &view, Some(account.revision), None, false)
        };
        let answer = scoped.update_account(&context, id, if_match.0, wish, shown);
        Ok(answer.await?.into())
    }

    /// Delete an account
    ///
    /// It leaves every train that lent it; the answer names those that have no account now.
    #[oai(
        path = "/accounts/:id",
        method = "delete",
        operation_id = "delete_account"
    )]
    async fn delete(
        &self,
        who: Admin,
        request: &RequestContext,
        /// The account's identifier.
        #[oai(validator(max_length = 40))]
        id: Path<String>,
        /// The expected revision (`ETag`).
        #[oai(name = "If-Match")]
        if_match: IfMatch,
    ) -> Result<Ok<DeletedAccount>, ApiError> {
        let id = parse_id::<AccountId>(&id.0)?;
        let context = self.app.context(request, who.0.actor(), None);
        let scoped = self.app.store.scoped(&who.0.scope);
        let report = |empty: &Vec<String>| {
            let report = DeletedAccount {
                trains_left_empty: empty.clone(),
            };
            answer(200, &report, None, None, false)
        };
        let answer = scoped.delete_account(&context, id, if_match.0, report);
        Ok(answer.await?.into())
    }

    /// Replace an account
    ///
    /// A new account, with another credential, takes over every place in trains, and the old one
    /// is removed: all of it or nothing. It may keep the name.
    #[oai(
        path = "/accounts/:id/replace",
        method = "post",
        operation_id = "replace_account"
    )]
    async fn replace(
        &self,
        who: Admin,
        request: &RequestContext,
        /// The identifier of the account that is replaced.
        #[oai(validator(max_length = 40))]
        id: Path<String>,
        /// Makes repeats of the request harmless for 24 hours.
        #[oai(name = "Idempotency-Key")]
        key: Idempotency,
        body: Body<NewAccountBody>,
    ) -> Result<Created<AccountView>, ApiError> {
        let id = parse_id::<AccountId>(&id.0)?;
        let new = body.0.checked(&self.app.policy)?;
        let key = key.of("replace_account", request);
        let context = self.app.context(request, who.0.actor(), key);
        let scoped = self.app.store.scoped(&who.0.scope);
        let answer = scoped.replace_account(&context, id, new, made);
        Ok(answer.await?.into())
    }
}

/// A new account.
fn made(account: &Account) -> persistence::Answer {
    let location = format!("/v1/accounts/{}", account.id);
    let view = AccountView::from(account);
    answer(201, &view, Some(account.revision), Some(location), false)
}

//! Accounts: upstream credentials that trains lend.

use domain::{
    Code, Problem, Timestamp,
    account::{
        Ceilings, Credential, CredentialType, SealedFor, UpstreamHeader, refresh_due,
        refresh_jitter,
    },
    audit::Action,
    id::{AccountId, Id as _, PublisherId},
    limits::NAME_CHARS,
};
use sea_orm::{
    ActiveModelTrait as _,
    ActiveValue::Set,
    ColumnTrait as _, DbErr, EntityTrait as _, IntoActiveModel as _, PaginatorTrait as _,
    QueryFilter as _, QueryOrder as _, QuerySelect as _, QueryTrait as _, Select, SqlErr,
    sea_query::{Expr, ExprTrait as _, SelectStatement},
};
use serde_json::json;
use uuid::Uuid;

use super::lending::shown::{AccountCooldown, Shown, cooldowns, cooldowns_of};
use crate::{
    store::{
        Scoped, Store,
        change::{Answer, Audited, Context, Expected, audit_entry, check_revision},
        db::Tx,
        entity::{accounts, train_accounts, trains},
        error::{Result, StoreError, corrupt_row},
        page::{Page, PageRequest},
        quota::{over_quota, quotas_of},
    },
    trains::Trains,
};

/// Whether an account's credential works, as far as is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccountHealth {
    /// The credential works.
    Ok,
    /// The credential cannot be refreshed.
    Failed {
        /// The class of error, if it is known.
        reason: Option<String>,
        /// When the refresh failed.
        at: Timestamp,
        /// Until when the current token is still lent; `None` if it had expired by then.
        lent_until: Option<Timestamp>,
    },
}

/// How the tokens of an `oauth` account are refreshed (RFC 6749 §6). Holds no credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OauthClient {
    /// The token endpoint.
    pub token_url: String,
    /// The client identifier.
    pub client_id: String,
    /// The requested scopes; empty for those that were granted first.
    pub scopes: Vec<String>,
}

/// An upstream credential, without its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// The account's identifier.
    pub id: AccountId,
    /// The account's name, unique within its publisher.
    pub name: String,
    /// The provider, such as `openai`.
    pub provider: String,
    /// The base URL of the upstream.
    pub base_url: String,
    /// The header that carries the credential.
    pub header: UpstreamHeader,
    /// The type of the credential.
    pub credential_type: CredentialType,
    /// The last four characters of the credential.
    pub last_four: String,
    /// Whether trains may lend the account.
    pub enabled: bool,
    /// Whether the credential works.
    pub health: AccountHealth,
    /// Soft limits of its use.
    pub ceilings: Ceilings,
    /// The account's cooldowns: first that of the account as a whole, then those for single models,
    /// which are only read together with a single account.
    pub cooldowns: Vec<AccountCooldown>,
    /// How the tokens are refreshed, for an account of type `oauth`.
    pub oauth: Option<OauthClient>,
    /// When its access token expires.
    pub expires_at: Option<Timestamp>,
    /// When the tokens were last refreshed.
    pub refreshed_at: Option<Timestamp>,
    /// Increased with each change of this row.
    pub revision: i64,
    /// When the account was created.
    pub created_at: Timestamp,
    /// When the account last changed.
    pub updated_at: Timestamp,
}

/// What a caller gives for a new account. The caller has checked that its URLs are allowed
/// destinations.
#[derive(Clone, Debug)]
pub struct NewAccount {
    /// The account's name, unique within its publisher.
    pub name: String,
    /// The provider, such as `openai`.
    pub provider: String,
    /// The base URL of the upstream.
    pub base_url: String,
    /// The header that carries the credential.
    pub header: UpstreamHeader,
    /// The credential.
    pub credential: Credential,
    /// How to refresh the tokens, and when the access token expires. For type `oauth` only, which
    /// needs it.
    pub oauth: Option<(OauthClient, Timestamp)>,
    /// Whether trains may lend the account.
    pub enabled: bool,
    /// Soft limits of its use.
    pub ceilings: Ceilings,
}

/// Changes of an account. `None` keeps a member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccountPatch {
    /// The account's name, unique within its publisher.
    pub name: Option<String>,
    /// Whether trains may lend the account.
    pub enabled: Option<bool>,
    /// Soft limits of its use.
    pub ceilings: Option<Ceilings>,
}

impl Account {
    pub(crate) fn of_row(row: accounts::Model) -> Result<Self> {
        Ok(Self {
            id: AccountId::from_uuid(row.id),
            credential_type: CredentialType::parse(&row.credential_type)
                .ok_or_else(|| corrupt_row("account's type"))?,
            health: health_of(&row)?,
            ceilings: ceilings_of(row.ceilings.as_deref())?,
            cooldowns: Vec::new(),
            oauth: client_of(&row),
            name: row.name,
            provider: row.provider,
            base_url: row.base_url,
            header: UpstreamHeader {
                name: row.header_name,
                scheme: row.header_scheme,
            },
            last_four: row.last_four,
            enabled: row.enabled,
            expires_at: row.expires_at.map(Timestamp::from_ms),
            refreshed_at: row.refreshed_at.map(Timestamp::from_ms),
            revision: row.revision,
            created_at: Timestamp::from_ms(row.created_at),
            updated_at: Timestamp::from_ms(row.updated_at),
        })
    }
}

fn health_of(row: &accounts::Model) -> Result<AccountHealth> {
    match (row.health.as_str(), row.failed_at) {
        ("ok", None) => Ok(AccountHealth::Ok),
        ("failed", Some(at)) => Ok(AccountHealth::Failed {
            reason: row.health_reason.clone(),
            at: Timestamp::from_ms(at),
            lent_until: lent_after(at, row.expires_at),
        }),
        _ => Err(corrupt_row("account's health")),
    }
}

/// Until when a token is lent whose refresh failed at `failed_at`.
pub(crate) fn lent_after(failed_at: i64, expires_at: Option<i64>) -> Option<Timestamp> {
    let lives = expires_at.filter(|expires_at| *expires_at > failed_at);
    lives.map(Timestamp::from_ms)
}

fn ceilings_of(text: Option<&str>) -> Result<Ceilings> {
    text.map_or_else(
        || Ok(Ceilings::default()),
        |text| serde_json::from_str(text).map_err(|_| corrupt_row("account's ceilings")),
    )
}

fn ceilings_column(ceilings: Ceilings) -> Option<String> {
    (ceilings != Ceilings::default()).then(|| json!(ceilings).to_string())
}

fn client_of(row: &accounts::Model) -> Option<OauthClient> {
    let scopes = row.scopes.as_deref().unwrap_or_default().split(' ');
    Some(OauthClient {
        token_url: row.token_url.clone()?,
        client_id: row.client_id.clone()?,
        scopes: scopes
            .filter(|scope| !scope.is_empty())
            .map(str::to_owned)
            .collect(),
    })
}

/// Scopes as in a token request (RFC 6749 §3.3).
fn scopes_column(scopes: &[String]) -> Option<String> {
    (!scopes.is_empty()).then(|| scopes.join(" "))
}

fn name_conflict(error: DbErr) -> StoreError {
    match error.sql_err() {
        Some(SqlErr::UniqueConstraintViolation(_)) => Code::NameTaken.into(),
        _ => error.into(),
    }
}

/// A publisher's accounts.
pub(crate) fn of(publisher: Uuid) -> Select<accounts::Entity> {
    accounts::Entity::find().filter(accounts::Column::PublisherId.eq(publisher))
}

pub(crate) async fn row_of(tx: &Tx, publisher: Uuid, id: AccountId) -> Result<accounts::Model> {
    let row = accounts::Entity::find_by_id((publisher, id.uuid()));
    row.one(tx.db())
        .await?
        .ok_or_else(|| Problem::not_found().into())
}

/// The wrapper of administrative changes has locked the publisher's row, so the count holds.
async fn check_quota(tx: &Tx, publisher: Uuid) -> Result<()> {
    let limit = quotas_of(tx, publisher).await?.accounts;
    if of(publisher).count(tx.db()).await? >= u64::from(limit) {
        return Err(over_quota("accounts", limit));
    }
    Ok(())
}

/// The context for which a row's credential is sealed.
pub(crate) fn sealed_for(row: &accounts::Model) -> SealedFor<'_> {
    SealedFor {
        publisher: PublisherId::from_uuid(row.publisher_id),
        account: AccountId::from_uuid(row.id),
        base_url: &row.base_url,
        token_url: row.token_url.as_deref(),
    }
}

/// Inserts a new account, its credential sealed with the publisher's data key.
pub(crate) async fn insert_account(
    store: &Store,
    tx: &Tx,
    publisher: PublisherId,
    new: &NewAccount,
) -> Result<Account> {
    let id = AccountId::generate(tx.now);
    let key = store.inner.keys.of(tx.db(), publisher.uuid()).await?.data;
    let client = new.oauth.as_ref().map(|(client, _)| client);
    let expires_at = new.oauth.as_ref().map(|(_, expires_at)| *expires_at);
    let row = accounts::Model {
        publisher_id: publisher.uuid(),
        id: id.uuid(),
        name: new.name.clone(),
        provider: new.provider.clone(),
        base_url: new.base_url.clone(),
        header_name: new.header.name.clone(),
        header_scheme: new.header.scheme.clone(),
        credential_type: new.credential.credential_type().as_str().to_owned(),
        sealed: new.credential.seal(
            &key,
            &SealedFor {
                publisher,
                account: id,
                base_url: &new.base_url,
                token_url: client.map(|client| client.token_url.as_str()),
            },
        ),
        credential_version: 1,
        last_four: new.credential.last_four(),
        enabled: new.enabled,
        health: "ok".to_owned(),
        health_reason: None,
        failed_at: None,
        ceilings: ceilings_column(new.ceilings),
        expires_at: expires_at.map(Timestamp::ms),
        token_url: client.map(|client| client.token_url.clone()),
        client_id: client.map(|client| client.client_id.clone()),
        scopes: client.and_then(|client| scopes_column(&client.scopes)),
        refreshed_at: None,
        refresh_due_at: expires_at.map(|at| refresh_due(tx.now, at, refresh_jitter()).ms()),
        refresh_failures: 0,
        refresh_lease: None,
        refresh_lease_until: None,
        revision: 1,
        created_at: tx.now.ms(),
        updated_at: tx.now.ms(),
    };
    let active = row.clone().into_active_model().reset_all();
    accounts::Entity::insert(active)
        .exec_without_returning(tx.db())
        .await
        .map_err(name_conflict)?;
    tx.touches_credentials_of(publisher);
    Account::of_row(row)
}

/// A subquery for the trains that contain an account.
fn trains_with(publisher: Uuid, account: Uuid) -> SelectStatement {
    use train_accounts::Column;
    train_accounts::Entity::find()
        .select_only()
        .column(Column::TrainId)
        .filter(Column::PublisherId.eq(publisher))
        .filter(Column::AccountId.eq(account))
        .into_query()
}

/// The slugs of trains whose only account is this one.
async fn trains_with_only(tx: &Tx, publisher: Uuid, account: Uuid) -> Result<Vec<String>> {
    use train_accounts::Column;
    let with_another = train_accounts::Entity::find()
        .select_only()
        .column(Column::TrainId)
        .filter(Column::PublisherId.eq(publisher))
        .filter(Column::AccountId.ne(account))
        .into_query();
    let slugs = trains::Entity::find()
        .select_only()
        .column(trains::Column::Slug)
        .filter(trains::Column::PublisherId.eq(publisher))
        .filter(trains::Column::Id.in_subquery(trains_with(publisher, account)))
        .filter(trains::Column::Id.not_in_subquery(with_another))
        .order_by_asc(trains::Column::Slug)
        .into_tuple();
    Ok(slugs.all(tx.db()).await?)
}

/// Increases the revisions of the trains that contain an account.
async fn touch_trains_with(tx: &Tx, publisher: Uuid, account: Uuid) -> Result<()> {
    use trains::Column;
    trains::Entity::update_many()
        .col_expr(Column::Revision, Expr::col(Column::Revision).add(1))
        .col_expr(Column::UpdatedAt, Expr::value(tx.now.ms()))
        .filter(Column::PublisherId.eq(publisher))
        .filter(Column::Id.in_subquery(trains_with(publisher, account)))
        .exec(tx.db())
        .await?;
    Ok(())
}

/// Deletes an account's row, and by foreign keys all rows that depend on it.
async fn remove(tx: &Tx, publisher: PublisherId, account: Uuid) -> Result<()> {
    accounts::Entity::delete_by_id((publisher.uuid(), account))
        .exec(tx.db())
        .await?;
    tx.touches_credentials_of(publisher);
    Ok(())
}

/// Renames an account that is about to be deleted, since the next one may want its name.
async fn release_name(tx: &Tx, publisher: Uuid, account: AccountId) -> Result<()> {
    let row = accounts::ActiveModel {
        publisher_id: Set(publisher),
        id: Set(account.uuid()),
        // Longer than a name may be, so no account has it.
        name: Set(format!("{account}{}", " ".repeat(NAME_CHARS))),
        ..Default::default()
    };
    accounts::Entity::update(row).exec(tx.db()).await?;
    Ok(())
}

/// Replaces an account by another in all trains. Returns in how many.
async fn hand_over(tx: &Tx, publisher: Uuid, from: Uuid, to: Uuid) -> Result<u64> {
    use train_accounts::Column;
    let moved = train_accounts::Entity::update_many()
        .col_expr(Column::AccountId, Expr::value(to))
        .filter(Column::PublisherId.eq(publisher))
        .filter(Column::AccountId.eq(from))
        .exec(tx.db())
        .await?;
    Ok(moved.rows_affected)
}

/// Applies a patch. Returns the names of the members that changed.
fn apply(row: &mut accounts::Model, patch: &AccountPatch) -> Vec<&'static str> {
    let mut changed = Vec::new();
    if let Some(name) = patch.name.as_ref().filter(|name| **name != row.name) {
        row.name.clone_from(name);
        changed.push("name");
    }
    if let Some(enabled) = patch.enabled.filter(|enabled| *enabled != row.enabled) {
        row.enabled = enabled;
        changed.push("enabled");
    }
    if let Some(ceilings) = patch.ceilings.map(ceilings_column)
        && ceilings != row.ceilings
    {
        row.ceilings = ceilings;
        changed.push("ceilings");
    }
    changed
}

/// Writes the columns that [`apply`] may change, and no others: a refresh may replace the
/// credential meanwhile.
async fn write_settings(tx: &Tx, row: accounts::Model) -> Result<accounts::Model> {
    let settings = accounts::ActiveModel {
        publisher_id: Set(row.publisher_id),
        id: Set(row.id),
        name: Set(row.name),
        enabled: Set(row.enabled),
        ceilings: Set(row.ceilings),
        revision: Set(row.revision + 1),
        updated_at: Set(tx.now.ms()),
        ..Default::default()
    };
    accounts::Entity::update(settings)
        .exec(tx.db())
        .await
        .map_err(name_conflict)
}

fn facts(account: &Account) -> serde_json::Value {
    json!({
        "name": account.name,
        "provider": account.provider,
        "credential_type": account.credential_type.as_str(),
    })
}

/// Creates an account, if the quota allows it.
pub(crate) async fn create_within(
    store: &Store,
    tx: &Tx,
    publisher: PublisherId,
    new: &NewAccount,
) -> Result<Audited<Account>> {
    let owner = publisher.uuid();
    check_quota(tx, owner).await?;
    let account = insert_account(store, tx, publisher, new).await?;
    let entry = audit_entry(
        Action::AccountCreated,
        "account",
        account.id,
        facts(&account),
    );
    Ok(Audited::new(account, owner, entry))
}

/// Changes an account. Values that are already set change nothing.
pub(crate) async fn update_within(
    tx: &Tx,
    mut row: accounts::Model,
    patch: &AccountPatch,
) -> Result<Audited<Account>> {
    let (owner, id) = (row.publisher_id, AccountId::from_uuid(row.id));
    let changed = apply(&mut row, patch);
    if changed.is_empty() {
        return Ok(Audited::unchanged(Account::of_row(row)?));
    }
    let row = write_settings(tx, row).await?;
    tx.touches_credentials_of(PublisherId::from_uuid(owner));
    let entry = audit_entry(
        Action::AccountUpdated,
        "account",
        id,
        json!({ "changed": changed }),
    );
    Ok(Audited::new(Account::of_row(row)?, owner, entry))
}

/// Replaces an existing account by a new one in all trains, and deletes the old one.
pub(crate) async fn replace_within(
    store: &Store,
    tx: &Tx,
    publisher: PublisherId,
    old: AccountId,
    new: &NewAccount,
) -> Result<Audited<Account>> {
    let owner = publisher.uuid();
    touch_trains_with(tx, owner, old.uuid()).await?;
    release_name(tx, owner, old).await?;
    let account = insert_account(store, tx, publisher, new).await?;
    let count = hand_over(tx, owner, old.uuid(), account.id.uuid()).await?;
    remove(tx, publisher, old.uuid()).await?;
    let mut facts = facts(&account);
    facts["replaces"] = json!(old.to_string());
    facts["trains"] = json!(count);
    let entry = audit_entry(Action::AccountReplaced, "account", account.id, facts);
    Ok(Audited::new(account, owner, entry))
}

impl Trains<Scoped> {
    /// Creates an account.
    pub async fn create_account<A>(
        &self,
        context: &Context,
        new: NewAccount,
        render: A,
    ) -> Result<Answer, StoreError>
    where
        A: Fn(&Account) -> Answer + Send + Sync,
    {
        let (store, publisher, new) = (&self.store, self.scope.publisher(), &new);
        let owner = publisher.uuid();
        let work = |tx: Tx| async move { create_within(store, &tx, publisher, new).await };
        store.administer(context, owner, work, render).await
    }

    /// Reads an account.
    pub async fn account(&self, id: AccountId) -> Result<Account, StoreError> {
        let (db, owner) = (self.store.read(), self.scope.uuid());
        let row = accounts::Entity::find_by_id((owner, id.uuid()))
            .one(db)
            .await?;
        let account = Account::of_row(row.ok_or_else(Problem::not_found)?)?;
        let cooldowns = cooldowns_of(db, owner, id.uuid(), self.store.now()).await?;
        Ok(Account {
            cooldowns,
            ..account
        })
    }

    /// The publisher's accounts, newest first.
    pub async fn accounts(
        &self,
        page: PageRequest<Uuid>,
    ) -> Result<Page<Account, Uuid>, StoreError> {
        use accounts::Column;
        let mut query = of(self.scope.uuid());
        if let Some(after) = page.after {
            query = query.filter(Column::Id.lt(after));
        }
        let query = query.order_by_desc(Column::Id).limit(page.fetch());
        let db = self.store.read();
        let page = page.cut(query.all(db).await?, |row| row.id);
        let ids: Vec<Uuid> = page.items.iter().map(|row| row.id).collect();
        let (shown, now) = (Shown::OfAccounts(&ids), self.store.now());
        let resting = cooldowns(db, self.scope.uuid(), shown, now).await?;
        page.try_map(|row| {
            let cooldowns = resting.get(&row.id).cloned().unwrap_or_default();
            Ok(Account {
                cooldowns,
                ..Account::of_row(row)?
            })
        })
    }

    /// Changes an account. `patch_of` gets the current account, which nobody else changes
    /// meanwhile, and returns the changes. Values that are already set change nothing.
    pub async fn update_account<C, A>(
        &self,
        context: &Context,
        id: AccountId,
        if_match: Option<Expected>,
        patch_of: C,
        render: A,
    ) -> Result<Answer, StoreError>
    where
        C: Fn(&Account) -> AccountPatch + Send + Sync,
        A: Fn(&Account) -> Answer + Send + Sync,
    {
        let (owner, patch_of) = (self.scope.uuid(), &patch_of);
        let work = |tx: Tx| async move {
            let row = row_of(&tx, owner, id).await?;
            check_revision(if_match, row.revision)?;
            let patch = patch_of(&Account::of_row(row.clone())?);
            let updated = update_within(&tx, row, &patch).await?;
            let cooldowns = cooldowns_of(tx.db(), owner, id.uuid(), tx.now).await?;
            let account = Account {
                cooldowns,
                ..updated.value().clone()
            };
            Ok(updated.with(account))
        };
        self.store.administer(context, owner, work, render).await
    }

    /// Replaces an account by a new one in all trains, and deletes the old one together with its
    /// usage, cooldowns and health.
    pub async fn replace_account<A>(
        &self,
        context: &Context,
        old: AccountId,
        new: NewAccount,
        render: A,
    ) -> Result<Answer, StoreError>
    where
        A: Fn(&Account) -> Answer + Send + Sync,
    {
        let (store, publisher, new) = (&self.store, self.scope.publisher(), &new);
        let owner = publisher.uuid();
        let work = |tx: Tx| async move {
            row_of(&tx, owner, old).await?;
            replace_within(store, &tx, publisher, old, new).await
        };
        store.administer(context, owner, work, render).await
    }

    /// Deletes an account. `render` gets the slugs of the trains that have no account any more.
    pub async fn delete_account<A>(
        &self,
        context: &Context,
        id: AccountId,
        if_match: Option<Expected>,
        render: A,
    ) -> Result<Answer, StoreError>
    where
        A: Fn(&Vec<String>) -> Answer + Send + Sync,
    {
        let (publisher, owner) = (self.scope.publisher(), self.scope.uuid());
        let work = |tx: Tx| async move {
            let row = row_of(&tx, owner, id).await?;
            check_revision(if_match, row.revision)?;
            let empty = trains_with_only(&tx, owner, row.id).await?;
            touch_trains_with(&tx, owner, row.id).await?;
            remove(&tx, publisher, row.id).await?;
            let facts = json!({ "name": row.name, "trains_left_empty": empty.len() });
            let entry = audit_entry(Action::AccountDeleted, "account", id, facts);
            Ok(Audited::new(empty, owner, entry))
        };
        self.store.administer(context, owner, work, render).await
    }
}

#[cfg(test)]
pub(crate) mod tests;

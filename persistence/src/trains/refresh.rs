//! The refresh of OAuth accounts: which process may refresh an account, and the result.
//!
//! A refresh token may be used only once, so at most one process refreshes an account at a time:
//! the one that wrote its lease into the row. No row is locked during the request. The answer is
//! stored, under the lease and the number of the replaced credential, before anybody gets the new
//! token. A process that dies between the endpoint's answer and that commit leaves a lease that
//! expires. If the endpoint rotates refresh tokens, the next attempt then finds the old one used,
//! and the account needs a new login (docs/adr/0005).

use std::time::Duration;

use domain::{
    Code, Problem, Timestamp,
    account::{Credential, CredentialType, OauthTokens, SealedFor, refresh_due, refresh_jitter},
    audit::Action,
    event::OwnType,
    id::{AccountId, Id as _},
    upstream::{ErrorKind, Grant, TokenError, ends_soon},
};
use sea_orm::{
    ActiveValue::Set, ColumnTrait as _, Condition, ConnectionTrait as _, EntityTrait as _,
    QueryFilter as _, QueryOrder as _, QuerySelect as _, Select,
};
use secrecy::SecretString;
use serde_json::json;
use uuid::Uuid;

use crate::{
    store::{
        Scoped, System,
        change::{Audited, Context, audit_entry, nothing},
        db::Tx,
        entity::accounts::{ActiveModel, Column, Entity, Model},
        error::{Result, StoreError, corrupt_row},
        scope::Scope,
        sql::Sql,
        unreadable,
    },
    trains::Trains,
    trains::{
        accounts::{lent_after, sealed_for},
        notices::{NoticeTrigger, notify},
    },
};

/// An account whose refresh is due.
#[derive(Clone, Debug)]
pub struct DueRefresh {
    /// The scope of the account's publisher.
    pub scope: Scope,
    /// The account.
    pub account: AccountId,
    /// The number of the credential to replace.
    pub version: i64,
}

/// The current token of an OAuth account. `Debug` does not show the token.
#[derive(Clone, Debug)]
pub struct AccountToken {
    /// The number of the credential; it grows with every refresh.
    pub version: i64,
    /// The access token.
    pub access_token: SecretString,
    /// When the access token expires, if that is known.
    pub expires_at: Option<Timestamp>,
    /// Whether the token expires so soon that it should be replaced before it is used.
    pub ends_soon: bool,
    /// Whether the upstream refused to refresh the account for good.
    pub failed: bool,
}

/// A lease for refreshing an account. `Debug` does not show the tokens.
#[derive(Clone, Debug)]
pub struct RefreshLease {
    /// The account.
    pub account: AccountId,
    /// The token endpoint.
    pub token_url: String,
    /// The client identifier.
    pub client_id: String,
    /// The scopes to request; `None` for those that were granted first.
    pub scopes: Option<String>,
    /// The current tokens.
    pub tokens: OauthTokens,
    base_url: String,
    lease: Uuid,
    version: i64,
}

/// Whether the caller may refresh an account now.
#[derive(Debug)]
pub enum RefreshClaim {
    /// The caller may, with this lease.
    Claimed(Box<RefreshLease>),
    /// Another caller is refreshing the account.
    InProgress {
        /// Consecutive failures that were recorded before that refresh.
        failures: u32,
    },
    /// The credential that the caller knows has already been replaced.
    Replaced,
    /// The last refresh failed, and the next one must wait.
    BackingOff {
        /// When the next attempt may be made.
        at: Timestamp,
        /// The class of error of the last failure.
        reason: String,
    },
}

/// A request to refresh an account.
#[derive(Clone, Copy, Debug, Default)]
pub struct RefreshRequest {
    /// The number of the credential that the caller knows and wants replaced.
    pub seen: i64,
    /// Whether to refresh even if the wait after a failure is not over.
    pub force: bool,
    /// Consecutive failures when the caller began to wait for another caller's refresh. If there is
    /// one more now, that refresh failed.
    pub waited: Option<u32>,
}

/// An account in the list for refreshing all accounts.
#[derive(Clone, Debug)]
pub struct Refreshable {
    /// The account.
    pub account: AccountId,
    /// Its name.
    pub name: String,
    /// The type of its credential.
    pub credential_type: CredentialType,
    /// Whether trains may lend it.
    pub enabled: bool,
    /// The number of its credential.
    pub version: i64,
}

fn at(ms: Option<i64>) -> Option<Timestamp> {
    ms.map(Timestamp::from_ms)
}

fn one(owner: Uuid, account: AccountId) -> Select<Entity> {
    Entity::find_by_id((owner, account.uuid()))
}

fn lease_free(now: Timestamp) -> Condition {
    Condition::any()
        .add(Column::RefreshLease.is_null())
        .add(Column::RefreshLeaseUntil.lte(now.ms()))
}

/// The condition that the row still has this lease. What was read under a lease is stored under the
/// same lease, or not at all.
fn held(owner: Uuid, lease: &RefreshLease) -> Condition {
    Condition::all()
        .add(Column::PublisherId.eq(owner))
        .add(Column::Id.eq(lease.account.uuid()))
        .add(Column::RefreshLease.eq(lease.lease))
        .add(Column::CredentialVersion.eq(lease.version))
}

fn failures_of(row: &Model) -> u32 {
    u32::try_from(row.refresh_failures).unwrap_or(0)
}

/// Refuses an account that does not exist or cannot be refreshed.
fn oauth_only(row: Option<Model>) -> Result<Model> {
    let row = row.ok_or_else(Problem::not_found)?;
    if row.credential_type != CredentialType::Oauth.as_str() {
        return Err(Code::WrongCredentialType.into());
    }
    Ok(row)
}

/// The error if the lease was lost to another process, or the account was deleted.
fn lost() -> StoreError {
    let words = "Somebody else has taken the refresh of this account over.";
    Problem::new(Code::RefreshFailed, words).into()
}

impl Trains<Scoped> {
    fn token_of(&self, row: &Model, opened: &Credential) -> AccountToken {
        let since = at(row.refreshed_at).unwrap_or(Timestamp::from_ms(row.created_at));
        let expires_at = at(row.expires_at);
        AccountToken {
            version: row.credential_version,
            access_token: opened.bearer().clone(),
            expires_at,
            ends_soon: expires_at.is_some_and(|at| ends_soon(self.store.now(), since, at)),
            failed: row.health == "failed",
        }
    }

    async fn opened(&self, row: &Model) -> Result<Credential> {
        let owner = self.scope.uuid();
        let keys = self.store.inner.keys.of(self.store.read(), owner).await?;
        Credential::open(&keys.data, &sealed_for(row), &row.sealed)
            .map_err(|_| corrupt_row("account's credential"))
    }

    /// The number of an OAuth account's credential.
    ///
    /// # Errors
    /// 404; `wrong_credential_type`.
    pub async fn credential_version(&self, account: AccountId) -> Result<i64, StoreError> {
        let found = one(self.scope.uuid(), account)
            .one(self.store.read())
            .await?;
        Ok(oauth_only(found)?.credential_version)
    }

    /// The current token of an OAuth account.
    ///
    /// # Errors
    /// 404; `wrong_credential_type`.
    pub async fn account_token(&self, account: AccountId) -> Result<AccountToken, StoreError> {
        let found = one(self.scope.uuid(), account)
            .one(self.store.read())
            .await?;
        let row = oauth_only(found)?;
        let opened = self.opened(&row).await?;
        Ok(self.token_of(&row, &opened))
    }

    /// Invalidates what this process caches of the publisher, for a caller that has just read a
    /// newer row.
    pub fn invalidate_cached(&self) {
        self.store.forget_publisher(self.scope.uuid());
    }

    /// All accounts, by name.
    pub async fn refreshable(&self) -> Result<Vec<Refreshable>, StoreError> {
        let rows: Vec<(Uuid, String, String, bool, i64)> = Entity::find()
            .select_only()
            .columns([
                Column::Id,
                Column::Name,
                Column::CredentialType,
                Column::Enabled,
                Column::CredentialVersion,
            ])
            .filter(Column::PublisherId.eq(self.scope.uuid()))
            .order_by_asc(Column::Name)
            .into_tuple()
            .all(self.store.read())
            .await?;
        let read = |(id, name, word, enabled, version): (Uuid, String, String, bool, i64)| {
            let credential_type = CredentialType::parse(&word);
            Ok(Refreshable {
                account: AccountId::from_uuid(id),
                name,
                credential_type: credential_type.ok_or_else(|| corrupt_row("credential type"))?,
                enabled,
                version,
            })
        };
        rows.into_iter().map(read).collect()
    }

    /// Claims the refresh of an account for `life`, if the credential is still the one that the
    /// caller knows and no other caller is refreshing it.
    ///
    /// # Errors
    /// 404; `wrong_credential_type`.
    pub async fn take_refresh(
        &self,
        account: AccountId,
        request: RefreshRequest,
        life: Duration,
    ) -> Result<RefreshClaim, StoreError> {
        let owner = self.scope.uuid();
        // Most callers find that there is nothing to claim, for which the writer is not needed.
        let found = one(owner, account).one(self.store.read()).await?;
        let row = oauth_only(found)?;
        if let Some(claim) = claim_without_writing(&row, request, self.store.now()) {
            return Ok(claim);
        }
        let lease = Uuid::from_bytes(domain::random::bytes());
        let judged = &row;
        let taken = self
            .store
            .write_for(
                owner,
                |tx| async move { take(&tx, judged, (lease, life)).await },
            )
            .await?;
        let Some(row) = taken else {
            // The row has changed since it was read: the caller tries again.
            let failures = failures_of(&row);
            return Ok(RefreshClaim::InProgress { failures });
        };
        let Credential::Oauth(tokens) = self.opened(&row).await? else {
            return Err(corrupt_row("account's credential"));
        };
        Ok(RefreshClaim::Claimed(Box::new(RefreshLease {
            account,
            token_url: row.token_url.ok_or_else(|| corrupt_row("token URL"))?,
            client_id: row.client_id.ok_or_else(|| corrupt_row("client id"))?,
            scopes: row.scopes,
            tokens,
            base_url: row.base_url,
            lease,
            version: row.credential_version,
        })))
    }

    /// Stores new tokens and releases the lease. `asked_at` is when the request was sent: the
    /// token's life is counted from then. The refresh token stays unless the endpoint returned a
    /// new one (RFC 6749 §6).
    ///
    /// # Errors
    /// `refresh_failed` if the lease was lost. Nothing is stored then.
    pub async fn keep_refreshed(
        &self,
        context: &Context,
        lease: &RefreshLease,
        grant: &Grant,
        asked_at: Timestamp,
    ) -> Result<AccountToken, StoreError> {
        let owner = self.scope.uuid();
        let expires_at = asked_at.plus(grant.life);
        let refresh_token = grant.refresh_token.as_ref();
        let access_token = &grant.access_token;
        let (tokens, sealed) = self.sealed(lease, access_token, refresh_token).await?;
        let (tokens, sealed) = (&tokens, &sealed);
        let work = |tx: Tx| async move {
            let now = tx.now;
            let change = ActiveModel {
                sealed: Set(sealed.clone()),
                credential_version: Set(lease.version + 1),
                last_four: Set(tokens.last_four()),
                expires_at: Set(Some(expires_at.ms())),
                refreshed_at: Set(Some(now.ms())),
                refresh_due_at: Set(Some(refresh_due(now, expires_at, refresh_jitter()).ms())),
                refresh_failures: Set(0),
                refresh_lease: Set(None),
                refresh_lease_until: Set(None),
                health: Set("ok".to_owned()),
                health_reason: Set(None),
                failed_at: Set(None),
                updated_at: Set(now.ms()),
                ..Default::default()
            };
            store_under(&tx, owner, lease, change).await?;
            tx.touches_credentials_of(self.scope.publisher());
            let facts = json!({
                "expires_at": expires_at.to_string(),
                "refresh_token_rotated": refresh_token.is_some(),
            });
            let entry = audit_entry(Action::AccountRefreshed, "account", lease.account, facts);
            Ok(Audited::new((), owner, entry))
        };
        self.store
            .administer(context, owner, work, |()| nothing())
            .await?;
        Ok(AccountToken {
            version: lease.version + 1,
            access_token: grant.access_token.clone(),
            expires_at: Some(expires_at),
            ends_soon: false,
            failed: false,
        })
    }

    /// The leased account's credential with this access token, and with this refresh token if there
    /// is a new one; and the same sealed.
    async fn sealed(
        &self,
        lease: &RefreshLease,
        access_token: &SecretString,
        refresh_token: Option<&SecretString>,
    ) -> Result<(Credential, Vec<u8>)> {
        let held = &lease.tokens;
        let tokens = Credential::Oauth(OauthTokens {
            access_token: access_token.clone(),
            refresh_token: refresh_token.unwrap_or(&held.refresh_token).clone(),
            client_secret: held.client_secret.clone(),
        });
        let owner = self.scope.uuid();
        let keys = self.store.inner.keys.of(self.store.read(), owner).await?;
        let sealed_for = SealedFor {
            publisher: self.scope.publisher(),
            account: lease.account,
            base_url: &lease.base_url,
            token_url: Some(&lease.token_url),
        };
        let sealed = tokens.seal(&keys.data, &sealed_for);
        Ok((tokens, sealed))
    }

    /// Releases the lease of a refresh that was not attempted, although the endpoint is not the
    /// cause. No failure is counted.
    ///
    /// # Errors
    /// `refresh_failed` if the lease was lost.
    pub async fn return_refresh(&self, lease: &RefreshLease) -> Result<(), StoreError> {
        let owner = self.scope.uuid();
        self.store
            .write(|tx| async move {
                let change = ActiveModel {
                    refresh_lease: Set(None),
                    refresh_lease_until: Set(None),
                    ..Default::default()
                };
                store_under(&tx, owner, lease, change).await
            })
            .await
    }

    /// Records that a refresh failed and releases the lease. If the account cannot be refreshed any
    /// more, it is marked as failed, with an audit entry and an event. Otherwise its refresh is due
    /// again after a wait. A refresh token that came without an access token replaces the old one,
    /// which may be used up. The number of the credential stays, since the access token stays.
    ///
    /// # Errors
    /// `refresh_failed` if the lease was lost. Nothing is stored then.
    pub async fn keep_refresh_failure(
        &self,
        context: &Context,
        lease: &RefreshLease,
        error: &TokenError,
    ) -> Result<(), StoreError> {
        let owner = self.scope.uuid();
        let found = one(owner, lease.account).one(self.store.read()).await?;
        let expires_at = found.as_ref().and_then(|row| at(row.expires_at));
        if error.ends_account(self.store.now(), expires_at) {
            let work = |tx: Tx| async move { self.end(&tx, lease, error).await };
            let ended = self.store.administer(context, owner, work, |()| nothing());
            return ended.await.map(|_| ());
        }
        let sealed = match &error.refresh_token {
            Some(token) => {
                let access_token = &lease.tokens.access_token;
                Some(self.sealed(lease, access_token, Some(token)).await?.1)
            }
            None => None,
        };
        let sealed = &sealed;
        self.store
            .write_for(owner, |tx| async move {
                let row = leased(&tx, owner, lease).await?;
                let mut change = after_failure(&tx, &row, error);
                if row.health != "failed" {
                    change.health_reason = Set(Some(error.reason.to_owned()));
                } else if row.refresh_due_at.is_none() {
                    // Its grant is invalid, and this refresh was requested by hand.
                    change.refresh_due_at = Set(None);
                }
                if let Some(sealed) = sealed {
                    change.sealed = Set(sealed.clone());
                }
                store_under(&tx, owner, lease, change).await
            })
            .await
    }

    async fn end(&self, tx: &Tx, lease: &RefreshLease, error: &TokenError) -> Result<Audited<()>> {
        let owner = self.scope.uuid();
        let row = leased(tx, owner, lease).await?;
        let known = row.health == "failed";
        let failed_at = row.failed_at.unwrap_or(tx.now.ms());
        let mut change = ActiveModel {
            health: Set("failed".to_owned()),
            health_reason: Set(Some(error.reason.to_owned())),
            failed_at: Set(Some(failed_at)),
            updated_at: Set(tx.now.ms()),
            ..after_failure(tx, &row, error)
        };
        if error.kind == ErrorKind::Spent {
            // Only a login helps. A refresh may still be requested by hand.
            change.refresh_due_at = Set(None);
        }
        store_under(tx, owner, lease, change).await?;
        tx.touches_credentials_of(self.scope.publisher());
        if !known {
            let lent_until = lent_after(failed_at, row.expires_at);
            let data = json!({
                "account_id": lease.account.to_string(),
                "name": row.name,
                "reason": error.reason,
                "lent_until": lent_until.map(|at| at.to_string()),
            });
            let event_type = OwnType::AccountRefreshFailed.as_str();
            crate::webhooks::events::emit(tx, owner, event_type, &data, None).await?;
            let trigger = NoticeTrigger::RefreshFailed {
                account: lease.account,
                name: &row.name,
                reason: error.reason,
                lent_until,
            };
            notify(tx, self.scope.publisher(), &trigger).await?;
        }
        let facts = json!({ "reason": error.reason });
        let entry = audit_entry(
            Action::AccountRefreshFailed,
            "account",
            lease.account,
            facts,
        );
        Ok(Audited::new((), owner, entry))
    }
}

/// Decides a claim from the row alone; `None` if the row has to be updated to find out.
fn claim_without_writing(
    row: &Model,
    request: RefreshRequest,
    now: Timestamp,
) -> Option<RefreshClaim> {
    if row.credential_version > request.seen {
        return Some(RefreshClaim::Replaced);
    }
    let failures = failures_of(row);
    if row
        .refresh_lease_until
        .is_some_and(|until| until > now.ms())
    {
        return Some(RefreshClaim::InProgress { failures });
    }
    let in_vain = request.waited.is_some_and(|before| failures > before);
    let waits = failures > 0 && row.refresh_due_at.is_none_or(|due| due > now.ms());
    (in_vain || (waits && !request.force)).then(|| RefreshClaim::BackingOff {
        at: at(row.refresh_due_at).unwrap_or(now),
        reason: row.health_reason.clone().unwrap_or_default(),
    })
}

/// Writes a lease into a row, if the row has not changed since it was checked.
async fn take(tx: &Tx, judged: &Model, (lease, life): (Uuid, Duration)) -> Result<Option<Model>> {
    let taken = Entity::update_many()
        .col_expr(Column::RefreshLease, lease.into())
        .col_expr(Column::RefreshLeaseUntil, tx.now.plus(life).ms().into())
        .filter(Column::PublisherId.eq(judged.publisher_id))
        .filter(Column::Id.eq(judged.id))
        .filter(Column::CredentialVersion.eq(judged.credential_version))
        .filter(Column::RefreshFailures.eq(judged.refresh_failures))
        .filter(lease_free(tx.now))
        .exec(tx.db())
        .await?;
    if taken.rows_affected == 0 {
        return Ok(None);
    }
    let key = (judged.publisher_id, judged.id);
    Ok(Entity::find_by_id(key).one(tx.db()).await?)
}

async fn leased(tx: &Tx, owner: Uuid, lease: &RefreshLease) -> Result<Model> {
    let row = Entity::find()
        .filter(held(owner, lease))
        .one(tx.db())
        .await?;
    row.ok_or_else(lost)
}

fn after_failure(tx: &Tx, row: &Model, error: &TokenError) -> ActiveModel {
    let failures = row.refresh_failures.saturating_add(1);
    let wait = error.wait(u32::try_from(failures).unwrap_or(1));
    ActiveModel {
        refresh_failures: Set(failures),
        refresh_due_at: Set(Some(tx.now.plus(wait).ms())),
        refresh_lease: Set(None),
        refresh_lease_until: Set(None),
        ..Default::default()
    }
}

async fn store_under(
    tx: &Tx,
    owner: Uuid,
    lease: &RefreshLease,
    change: ActiveModel,
) -> Result<()> {
    let stored = Entity::update_many()
        .set(change)
        .filter(held(owner, lease))
        .exec(tx.db())
        .await?;
    if stored.rows_affected == 1 {
        Ok(())
    } else {
        Err(lost())
    }
}

/// Releases every lease, for a process that is the only one.
pub(crate) async fn release_all(tx: &Tx) -> Result<()> {
    let change = ActiveModel {
        refresh_lease: Set(None),
        refresh_lease_until: Set(None),
        ..Default::default()
    };
    Entity::update_many()
        .set(change)
        .filter(Column::RefreshLease.is_not_null())
        .exec(tx.db())
        .await?;
    Ok(())
}

impl Trains<System> {
    /// Up to `limit` accounts whose refresh is due, at most `each` of one publisher. Accounts whose
    /// last refresh did not fail come first, so that endpoints that hang delay only their own
    /// accounts. Accounts of suspended or deleted publishers are left out.
    pub async fn due_refreshes(
        &self,
        limit: u64,
        each: u64,
    ) -> Result<Vec<DueRefresh>, StoreError> {
        let now = self.store.now().ms();
        let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let mut sql = Sql::new(
            "SELECT due.publisher_id, due.id, due.credential_version FROM \
             (SELECT a.publisher_id, a.id, a.credential_version, a.refresh_due_at, \
             CASE WHEN a.refresh_failures > 0 THEN 1 ELSE 0 END AS failing, \
             row_number() OVER (PARTITION BY a.publisher_id ORDER BY \
             CASE WHEN a.refresh_failures > 0 THEN 1 ELSE 0 END, a.refresh_due_at) AS place \
             FROM accounts a JOIN publishers p ON p.id = a.publisher_id \
             WHERE a.refresh_due_at IS NOT NULL AND p.status = 'active' \
             AND p.deleted_at IS NULL AND a.refresh_due_at <= ",
        );
        sql.bind(now);
        sql.push(" AND (a.refresh_lease_until IS NULL OR a.refresh_lease_until <= ")
            .bind(now);
        sql.push(")) due WHERE due.place <= ").bind(count(each));
        sql.push(" ORDER BY due.failing, due.refresh_due_at LIMIT ")
            .bind(count(limit));
        let statement = sql.statement(self.store.backend());
        let rows = self.store.read().query_all_raw(statement).await?;
        let read = |row: sea_orm::QueryResult| {
            Ok(DueRefresh {
                scope: Scope::of_row(row.try_get("", "publisher_id")?, None),
                account: AccountId::from_uuid(row.try_get("", "id")?),
                version: row.try_get("", "credential_version")?,
            })
        };
        // If one row cannot be read, the others are still refreshed.
        let due = rows.into_iter().map(read).filter_map(|one: Result<_>| {
            one.inspect_err(|error| {
                unreadable::report("account", Uuid::nil(), Uuid::nil(), error);
            })
            .ok()
        });
        Ok(due.collect())
    }
}

#[cfg(test)]
mod tests;

//! Authorizations of accounts at an upstream that were begun: the account's settings, and the
//! secrets of whoever began, until the code arrives (RFC 7636).

use std::time::Duration;

use domain::{
    Code, Problem, Timestamp, account::UpstreamHeader, limits::OAUTH_LOGINS, seal::SealContext,
    token::TokenHash,
};
use sea_orm::{
    ActiveValue::Set, ColumnTrait as _, EntityTrait as _, PaginatorTrait as _, QueryFilter as _,
};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::{
    store::{
        Scoped,
        change::{Audited, Context, nothing},
        db::Tx,
        entity::{
            accounts,
            oauth_logins::{ActiveModel, Column, Entity},
        },
        error::{Result, StoreError, corrupt_row},
        quota::over_quota,
    },
    trains::Trains,
};

/// How long an authorization may take.
const AUTHORIZATION_LIFE: Duration = Duration::from_mins(10);

/// An authorization: the account's settings, and where its tokens come from. Holds no credential.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountAuthorization {
    /// The account's name.
    pub name: String,
    /// The account's provider.
    pub provider: String,
    /// The base URL of the account's upstream.
    pub base_url: String,
    /// The name of the header that carries the account's token.
    pub header_name: String,
    /// The word before the token in the header.
    pub header_scheme: Option<String>,
    /// The token endpoint, which exchanges the code for tokens.
    pub token_url: String,
    /// The client identifier at the token endpoint.
    pub client_id: String,
    /// The redirect URI, to which the code is sent.
    pub redirect_uri: String,
    /// The account that the new one replaces.
    pub replaces: Option<Uuid>,
}

impl AccountAuthorization {
    /// The header that carries the account's token.
    #[must_use]
    pub fn header(&self) -> UpstreamHeader {
        UpstreamHeader {
            name: self.header_name.clone(),
            scheme: self.header_scheme.clone(),
        }
    }
}

/// The secrets of whoever began an authorization. `Debug` shows none of them.
#[derive(Clone, Debug)]
pub struct AuthorizationSecrets {
    /// The code verifier, of which the challenge was made.
    pub verifier: SecretString,
    /// The secret with which the client authenticates.
    pub client_secret: Option<SecretString>,
}

/// The secrets, in the form that is sealed.
#[derive(Serialize)]
struct Plain<'a> {
    verifier: &'a str,
    client_secret: Option<&'a str>,
}

/// The secrets, in the form that is opened.
#[derive(Deserialize)]
struct Opened {
    verifier: Zeroizing<String>,
    client_secret: Option<Zeroizing<String>>,
}

fn hash(state: &SecretString) -> [u8; 32] {
    *TokenHash::of_secret(state).as_bytes()
}

fn seal_context(owner: Uuid, row: &[u8]) -> SealContext<'_> {
    SealContext {
        owner,
        table: "oauth_logins",
        row,
        column: "sealed",
    }
}

/// Refuses an account that could not be created after the login.
async fn check_account(tx: &Tx, owner: Uuid, authorization: &AccountAuthorization) -> Result<()> {
    if let Some(old) = authorization.replaces {
        let found = accounts::Entity::find_by_id((owner, old))
            .one(tx.db())
            .await?;
        found.ok_or_else(Problem::not_found)?;
    }
    let same = accounts::Entity::find()
        .filter(accounts::Column::PublisherId.eq(owner))
        .filter(accounts::Column::Name.eq(&authorization.name))
        .one(tx.db())
        .await?;
    match same {
        Some(row) if authorization.replaces != Some(row.id) => Err(Code::NameTaken.into()),
        _ => Ok(()),
    }
}

impl Trains<Scoped> {
    /// Stores a new authorization under the hash of its state. Returns when it expires.
    ///
    /// # Errors
    /// `quota_exceeded` while [`OAUTH_LOGINS`] others are unfinished; and what would refuse the
    /// account later, as far as it is known: `name_taken`, 404 for an account to replace.
    pub async fn begin_account_authorization(
        &self,
        context: &Context,
        state: &SecretString,
        authorization: &AccountAuthorization,
        secrets: &AuthorizationSecrets,
    ) -> Result<Timestamp, StoreError> {
        let (owner, state) = (self.scope.uuid(), hash(state));
        let plain = Plain {
            verifier: secrets.verifier.expose_secret(),
            client_secret: secrets
                .client_secret
                .as_ref()
                .map(secrecy::ExposeSecret::expose_secret),
        };
        let internal = |error: serde_json::Error| StoreError::Internal(error.to_string());
        let plain = Zeroizing::new(serde_json::to_vec(&plain).map_err(internal)?);
        let account = serde_json::to_string(authorization).map_err(internal)?;
        let keys = self.store.inner.keys.of(self.store.read(), owner).await?;
        let sealed = keys.data.seal(&seal_context(owner, &state), &plain);
        let until = self.store.now().plus(AUTHORIZATION_LIFE);
        let (account, sealed) = (&account, &sealed);
        let work = |tx: Tx| async move {
            // Under the publisher's lock, so that the count holds. An authorization that is never
            // finished changes nothing, so the audit log has no entry about it.
            let waiting = Entity::find()
                .filter(Column::PublisherId.eq(owner))
                .filter(Column::ExpiresAt.gt(tx.now.ms()))
                .count(tx.db())
                .await?;
            if waiting >= u64::from(OAUTH_LOGINS) {
                return Err(over_quota("logins that wait", OAUTH_LOGINS));
            }
            check_account(&tx, owner, authorization).await?;
            let row = ActiveModel {
                publisher_id: Set(owner),
                state_hash: Set(state.to_vec()),
                sealed: Set(sealed.clone()),
                account: Set(account.clone()),
                created_at: Set(tx.now.ms()),
                expires_at: Set(until.ms()),
            };
            Entity::insert(row).exec_without_returning(tx.db()).await?;
            Ok(Audited::unchanged(()))
        };
        self.store
            .administer(context, owner, work, |()| nothing())
            .await?;
        Ok(until)
    }

    /// Removes and returns an authorization. A state is valid once, whatever happens afterwards.
    ///
    /// # Errors
    /// 404 for a state that is unknown, another publisher's, used or expired.
    pub async fn take_account_authorization(
        &self,
        state: &SecretString,
    ) -> Result<(AccountAuthorization, AuthorizationSecrets), StoreError> {
        let (owner, state) = (self.scope.uuid(), hash(state));
        let row = self
            .store
            .write_for(owner, |tx| async move {
                let found = Entity::find_by_id((owner, state.to_vec()))
                    .one(tx.db())
                    .await?;
                let row = found.ok_or_else(Problem::not_found)?;
                let taken = Entity::delete_by_id((owner, state.to_vec()))
                    .exec(tx.db())
                    .await?;
                // Two callers may have read the row; only one of them removed it.
                if taken.rows_affected == 0 || row.expires_at <= tx.now.ms() {
                    return Err(Problem::not_found().into());
                }
                Ok(row)
            })
            .await?;
        let authorization = serde_json::from_str(&row.account).map_err(|_| corrupt_row("login"))?;
        let keys = self.store.inner.keys.of(self.store.read(), owner).await?;
        let plain = keys
            .data
            .open(&seal_context(owner, &state), &row.sealed)
            .map_err(|_| corrupt_row("login"))?;
        let opened: Opened = serde_json::from_slice(&plain).map_err(|_| corrupt_row("login"))?;
        let secret = |text: &Zeroizing<String>| SecretString::from(text.as_str().to_owned());
        let secrets = AuthorizationSecrets {
            verifier: secret(&opened.verifier),
            client_secret: opened.client_secret.as_ref().map(secret),
        };
        Ok((authorization, secrets))
    }
}

#[cfg(test)]
mod tests {
    use domain::id::PublisherId;

    use super::*;
    use crate::{
        fixture::{Fixture, context, engines},
        store::scope::Scope,
    };

    fn secret(text: &str) -> SecretString {
        SecretString::from(text.to_owned())
    }

    fn authorization() -> AccountAuthorization {
        AccountAuthorization {
            name: "team".into(),
            provider: "acme".into(),
            base_url: "https://api.example".into(),
            header_name: "authorization".into(),
            header_scheme: Some("Bearer".into()),
            token_url: "https://id.example/token".into(),
            client_id: "client".into(),
            redirect_uri: "http://127.0.0.1:1/".into(),
            replaces: None,
        }
    }

    fn scoped(fixture: &Fixture, publisher: PublisherId) -> Scoped {
        let publisher = domain::id::Id::uuid(publisher);
        fixture.store.scoped(&Scope::of_row(publisher, None))
    }

    async fn begin(scoped: &Scoped, state: &str) -> Result<Timestamp> {
        let secrets = AuthorizationSecrets {
            verifier: secret("verifier-of-the-test"),
            client_secret: Some(secret("cs")),
        };
        let (context, authorization) = (context(), authorization());
        scoped
            .trains()
            .begin_account_authorization(&context, &secret(state), &authorization, &secrets)
            .await
    }

    fn refused<T: std::fmt::Debug>(result: Result<T>) -> Code {
        match result.unwrap_err() {
            StoreError::Refused(problem) => problem.code,
            other => panic!("{other}"),
        }
    }

    #[tokio::test]
    async fn a_state_counts_once_for_its_publisher_and_within_its_time() {
        for fixture in engines().await {
            let owner = fixture.publisher("acme").await.publisher.id;
            let other = fixture.publisher("other").await.publisher.id;
            let (owner, other) = (scoped(&fixture, owner), scoped(&fixture, other));
            begin(&owner, "one").await.unwrap();
            assert_eq!(
                refused(
                    other
                        .trains()
                        .take_account_authorization(&secret("one"))
                        .await
                ),
                Code::NotFound
            );
            assert_eq!(
                refused(
                    owner
                        .trains()
                        .take_account_authorization(&secret("two"))
                        .await
                ),
                Code::NotFound
            );
            let (found, secrets) = owner
                .trains()
                .take_account_authorization(&secret("one"))
                .await
                .unwrap();
            assert_eq!(found, authorization());
            assert_eq!(secrets.verifier.expose_secret(), "verifier-of-the-test");
            assert_eq!(
                refused(
                    owner
                        .trains()
                        .take_account_authorization(&secret("one"))
                        .await
                ),
                Code::NotFound
            );

            begin(&owner, "late").await.unwrap();
            fixture.clock.advance(AUTHORIZATION_LIFE);
            assert_eq!(
                refused(
                    owner
                        .trains()
                        .take_account_authorization(&secret("late"))
                        .await
                ),
                Code::NotFound
            );
        }
    }

    #[tokio::test]
    async fn so_many_wait_and_no_more() {
        for fixture in engines().await {
            let owner = fixture.publisher("acme").await.publisher.id;
            let owner = scoped(&fixture, owner);
            for number in 0..OAUTH_LOGINS {
                begin(&owner, &number.to_string()).await.unwrap();
            }
            assert_eq!(refused(begin(&owner, "more").await), Code::QuotaExceeded);
            fixture.clock.advance(AUTHORIZATION_LIFE);
            begin(&owner, "more").await.unwrap();
            let swept = fixture
                .store
                .system()
                .operations()
                .sweep_table("oauth_logins", Timestamp::from_ms(0), 1000)
                .await
                .unwrap();
            assert_eq!(swept, u64::from(OAUTH_LOGINS));
            owner
                .trains()
                .take_account_authorization(&secret("more"))
                .await
                .unwrap();
        }
    }
}

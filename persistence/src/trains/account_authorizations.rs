//! Authorizations of accounts at an upstream that were begun: what the account is to be, and what
//! only its beginner knows, until a code comes back (RFC 7636).

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

use crate::store::{
    Scoped,
    change::{Audited, Context, nothing},
    db::Tx,
    entity::{
        accounts,
        oauth_logins::{ActiveModel, Column, Entity},
    },
    error::{Result, StoreError, damaged},
    quota::over_quota,
};

/// How long an authorization may take.
const AUTHORIZATION_LIFE: Duration = Duration::from_mins(10);

/// An authorization: what the account is to be, and where its tokens come from. No credential is in
/// it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountAuthorization {
    /// The account's name.
    pub name: String,
    /// Its provider.
    pub provider: String,
    /// Where its upstream is.
    pub base_url: String,
    /// The name of the header that carries its token.
    pub header_name: String,
    /// The word before the token.
    pub header_scheme: Option<String>,
    /// Where the code is traded for tokens.
    pub token_url: String,
    /// As whom.
    pub client_id: String,
    /// Where the code is sent.
    pub redirect_uri: String,
    /// An account that goes when this one comes.
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

/// What only the beginner of an authorization knows. Nothing of it shows in `Debug`.
#[derive(Clone, Debug)]
pub struct AuthorizationSecrets {
    /// What the challenge was made of.
    pub verifier: SecretString,
    /// What the client authenticates with.
    pub client_secret: Option<SecretString>,
}

/// The form that is sealed.
#[derive(Serialize)]
struct Plain<'a> {
    verifier: &'a str,
    client_secret: Option<&'a str>,
}

/// The form that is opened.
#[derive(Deserialize)]
struct Opened {
    verifier: Zeroizing<String>,
    client_secret: Option<Zeroizing<String>>,
}

fn hash(state: &SecretString) -> [u8; 32] {
    *TokenHash::of_secret(state).as_bytes()
}

fn place(owner: Uuid, row: &[u8]) -> SealContext<'_> {
    SealContext {
        owner,
        table: "oauth_logins",
        row,
        column: "sealed",
    }
}

/// Refuses, before anybody logs in, what would be refused afterwards.
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

impl Scoped {
    /// Keeps an authorization that begins, under the hash of its state; answers until when.
    ///
    /// # Errors
    /// `quota_exceeded` while [`OAUTH_LOGINS`] others wait; what would refuse the account in the
    /// end, as far as it can be told: `name_taken`, 404 for an account to replace.
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
        let sealed = keys.data.seal(&place(owner, &state), &plain);
        let until = self.store.now().plus(AUTHORIZATION_LIFE);
        let (account, sealed) = (&account, &sealed);
        let work = |tx: Tx| async move {
            // Under the publisher's lock, so that the count holds. An authorization that is never
            // finished changes nothing, so none is in the audit log.
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

    /// Takes an authorization out, for good: a state counts once, whatever comes of it.
    ///
    /// # Errors
    /// 404 for a state that is unknown, another publisher's, used, or past its time.
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
                // Two may have read it; one has removed it.
                if taken.rows_affected == 0 || row.expires_at <= tx.now.ms() {
                    return Err(Problem::not_found().into());
                }
                Ok(row)
            })
            .await?;
        let authorization = serde_json::from_str(&row.account).map_err(|_| damaged("login"))?;
        let keys = self.store.inner.keys.of(self.store.read(), owner).await?;
        let plain = keys
            .data
            .open(&place(owner, &state), &row.sealed)
            .map_err(|_| damaged("login"))?;
        let opened: Opened = serde_json::from_slice(&plain).map_err(|_| damaged("login"))?;
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
                refused(other.take_account_authorization(&secret("one")).await),
                Code::NotFound
            );
            assert_eq!(
                refused(owner.take_account_authorization(&secret("two")).await),
                Code::NotFound
            );
            let (found, secrets) = owner
                .take_account_authorization(&secret("one"))
                .await
                .unwrap();
            assert_eq!(found, authorization());
            assert_eq!(secrets.verifier.expose_secret(), "verifier-of-the-test");
            assert_eq!(
                refused(owner.take_account_authorization(&secret("one")).await),
                Code::NotFound
            );

            begin(&owner, "late").await.unwrap();
            fixture.clock.advance(AUTHORIZATION_LIFE);
            assert_eq!(
                refused(owner.take_account_authorization(&secret("late")).await),
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
                .sweep_table("oauth_logins", Timestamp::from_ms(0), 1000)
                .await
                .unwrap();
            assert_eq!(swept, u64::from(OAUTH_LOGINS));
            owner
                .take_account_authorization(&secret("more"))
                .await
                .unwrap();
        }
    }
}

//! Passkeys of users: public keys, which `identity` verifies with.

use domain::{
    Code, Problem, Timestamp,
    audit::Action,
    id::{Id as _, PasskeyId, UserId},
};
use sea_orm::{
    ColumnTrait as _, EntityTrait as _, PaginatorTrait as _, QueryFilter as _, QueryOrder as _,
    SqlErr, sea_query::Expr,
};
use serde_json::json;

use crate::{
    identity::{
        Identity,
        mails::{self, NewMail},
        users::{self, about},
    },
    store::{change::Context, entity::passkeys, error::StoreError, quota::over_quota},
};

/// Most passkeys of a user.
const PASSKEYS_A_USER: u32 = 20;

/// A passkey of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passkey {
    /// The passkey's identifier.
    pub id: PasskeyId,
    /// Whose it is.
    pub user: UserId,
    /// The authenticator's identifier of the key.
    pub credential_id: Vec<u8>,
    /// The public key in COSE form (RFC 9052 §7).
    pub public_key: Vec<u8>,
    /// The authenticator's counter at the last use; 0 if it does not count.
    pub sign_count: u32,
    /// Whether the key is kept on several devices.
    pub backed_up: bool,
    /// A name for people.
    pub name: String,
    /// When the passkey was added.
    pub created_at: Timestamp,
    /// When the passkey was last used.
    pub last_used_at: Option<Timestamp>,
}

/// What is given for a new passkey.
#[derive(Clone, Debug)]
pub struct NewPasskey {
    /// The authenticator's identifier of the key.
    pub credential_id: Vec<u8>,
    /// The public key in COSE form.
    pub public_key: Vec<u8>,
    /// The authenticator's counter.
    pub sign_count: u32,
    /// Whether the key is kept on several devices.
    pub backed_up: bool,
    /// A name for people.
    pub name: String,
}

fn passkey_of(row: passkeys::Model) -> Passkey {
    Passkey {
        id: PasskeyId::from_uuid(row.id),
        user: UserId::from_uuid(row.user_id),
        credential_id: row.credential_id,
        public_key: row.public_key,
        sign_count: u32::try_from(row.sign_count).unwrap_or(u32::MAX),
        backed_up: row.backed_up,
        name: row.name,
        created_at: Timestamp::from_ms(row.created_at),
        last_used_at: row.last_used_at.map(Timestamp::from_ms),
    }
}

impl Identity {
    /// A user's passkeys, oldest first.
    pub async fn passkeys(&self, user: UserId) -> Result<Vec<Passkey>, StoreError> {
        let rows = passkeys::Entity::find()
            .filter(passkeys::Column::UserId.eq(user.uuid()))
            .order_by_asc(passkeys::Column::Id)
            .all(self.store.read())
            .await?;
        Ok(rows.into_iter().map(passkey_of).collect())
    }

    /// The passkey that an authenticator calls by this identifier.
    pub async fn passkey_by_credential(
        &self,
        credential_id: &[u8],
    ) -> Result<Option<Passkey>, StoreError> {
        let row = passkeys::Entity::find()
            .filter(passkeys::Column::CredentialId.eq(credential_id.to_vec()))
            .one(self.store.read())
            .await?;
        Ok(row.map(passkey_of))
    }

    /// Adds a passkey, and mails `notice` to its user.
    ///
    /// # Errors
    /// `quota_exceeded`; `passkey_taken` if the authenticator's key is somebody's already.
    pub async fn add_passkey(
        &self,
        context: &Context,
        user: UserId,
        new: &NewPasskey,
        notice: &NewMail,
    ) -> Result<Passkey, StoreError> {
        let store = &self.store;
        self.change(context, |tx| async move {
            users::lock(&tx, user).await?;
            let count = passkeys::Entity::find()
                .filter(passkeys::Column::UserId.eq(user.uuid()))
                .count(tx.db())
                .await?;
            if count >= u64::from(PASSKEYS_A_USER) {
                return Err(over_quota("passkeys", PASSKEYS_A_USER));
            }
            let row = passkeys::Model {
                id: PasskeyId::generate(tx.now).uuid(),
                user_id: user.uuid(),
                credential_id: new.credential_id.clone(),
                public_key: new.public_key.clone(),
                sign_count: i64::from(new.sign_count),
                backed_up: new.backed_up,
                name: new.name.clone(),
                created_at: tx.now.ms(),
                last_used_at: None,
            };
            let active: passkeys::ActiveModel = row.clone().into();
            let inserted = passkeys::Entity::insert(sea_orm::ActiveModelTrait::reset_all(active))
                .exec_without_returning(tx.db())
                .await;
            match inserted {
                Err(error)
                    if matches!(error.sql_err(), Some(SqlErr::UniqueConstraintViolation(_))) =>
                {
                    return Err(Code::PasskeyTaken.into());
                }
                other => other?,
            };
            mails::write(store, &tx, notice).await?;
            let passkey = passkey_of(row);
            let facts = json!({ "passkey": passkey.id.to_string() });
            Ok(about(passkey, Action::PasskeyAdded, user, facts))
        })
        .await
    }

    /// Changes a passkey's name.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn rename_passkey(
        &self,
        context: &Context,
        user: UserId,
        id: PasskeyId,
        name: &str,
    ) -> Result<(), StoreError> {
        self.change(context, |tx| async move {
            let changed = passkeys::Entity::update_many()
                .col_expr(passkeys::Column::Name, Expr::value(name))
                .filter(passkeys::Column::Id.eq(id.uuid()))
                .filter(passkeys::Column::UserId.eq(user.uuid()))
                .exec(tx.db())
                .await?;
            if changed.rows_affected == 0 {
                return Err(Problem::not_found().into());
            }
            let facts = json!({ "passkey": id.to_string() });
            Ok(about((), Action::PasskeyUpdated, user, facts))
        })
        .await
    }

    /// Removes a passkey, and mails `notice` to its user.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn remove_passkey(
        &self,
        context: &Context,
        user: UserId,
        id: PasskeyId,
        notice: &NewMail,
    ) -> Result<(), StoreError> {
        let store = &self.store;
        self.change(context, |tx| async move {
            let removed = passkeys::Entity::delete_many()
                .filter(passkeys::Column::Id.eq(id.uuid()))
                .filter(passkeys::Column::UserId.eq(user.uuid()))
                .exec(tx.db())
                .await?;
            if removed.rows_affected == 0 {
                return Err(Problem::not_found().into());
            }
            mails::write(store, &tx, notice).await?;
            let facts = json!({ "passkey": id.to_string() });
            Ok(about((), Action::PasskeyRemoved, user, facts))
        })
        .await
    }

    /// Notes that a passkey was used, if its counter still is what was judged. Returns whether it
    /// was: of two answers with the same counter one is a copy.
    pub async fn use_passkey(
        &self,
        passkey: &Passkey,
        sign_count: u32,
    ) -> Result<bool, StoreError> {
        self.store
            .write_for(super::PEOPLE, |tx| async move {
                let used = passkeys::Entity::update_many()
                    .col_expr(
                        passkeys::Column::SignCount,
                        Expr::value(i64::from(sign_count)),
                    )
                    .col_expr(passkeys::Column::LastUsedAt, Expr::value(Some(tx.now.ms())))
                    .filter(passkeys::Column::Id.eq(passkey.id.uuid()))
                    .filter(passkeys::Column::SignCount.eq(i64::from(passkey.sign_count)))
                    .exec(tx.db())
                    .await?;
                Ok(used.rows_affected == 1)
            })
            .await
    }
}

//! Stored passwords: their hashes, which `identity` makes and judges.

use domain::{
    audit::Action,
    id::{Id as _, SessionId, UserId},
    people::Purpose,
    token::TokenHash,
};
use sea_orm::{
    ActiveValue::Set,
    ColumnTrait as _, EntityTrait as _, QueryFilter as _,
    sea_query::{Expr, OnConflict},
};
use serde_json::json;

use crate::{
    identity::{
        Identity,
        mails::{self, NewMail},
        sessions::end_all,
        tokens::{self, TokenFault, spend_all},
        users::{self, User, about},
    },
    store::{
        change::{Audited, Context},
        db::Tx,
        entity::user_passwords,
        error::{Result, StoreError},
    },
};

async fn store_hash(tx: &Tx, user: UserId, hash: &str) -> Result<()> {
    use user_passwords::Column;
    let update = OnConflict::column(Column::UserId)
        .update_columns([Column::Hash, Column::ChangedAt])
        .to_owned();
    user_passwords::Entity::insert(user_passwords::ActiveModel {
        user_id: Set(user.uuid()),
        hash: Set(hash.to_owned()),
        changed_at: Set(tx.now.ms()),
    })
    .on_conflict(update)
    .exec_without_returning(tx.db())
    .await?;
    Ok(())
}

/// The hash of a user's password, within an open transaction.
pub(crate) async fn stored(tx: &Tx, user: UserId) -> Result<Option<String>> {
    let row = user_passwords::Entity::find_by_id(user.uuid())
        .one(tx.db())
        .await?;
    Ok(row.map(|row| row.hash))
}

/// Sets a password within an open transaction: all sessions but `except` end, and no mailed link is
/// good any more.
pub(crate) async fn set(
    tx: &Tx,
    user: &User,
    hash: &str,
    except: Option<SessionId>,
) -> Result<u64> {
    store_hash(tx, user.id, hash).await?;
    spend_all(tx, user.id, Some(&user.address)).await?;
    end_all(tx, user.id, except).await
}

impl Identity {
    /// The hash of a user's password; `None` if the user has none.
    pub async fn password_hash(&self, user: UserId) -> Result<Option<String>, StoreError> {
        let row = user_passwords::Entity::find_by_id(user.uuid())
            .one(self.store.read())
            .await?;
        Ok(row.map(|row| row.hash))
    }

    /// Sets a user's password, and mails `notice` to the user. All sessions but `except` end, and
    /// no mailed link is good any more.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn set_password(
        &self,
        context: &Context,
        id: UserId,
        hash: &str,
        except: Option<SessionId>,
        notice: Option<&NewMail>,
    ) -> Result<(), StoreError> {
        let store = &self.store;
        self.change(context, |tx| async move {
            users::lock(&tx, id).await?;
            let user = users::read(tx.db(), id).await?;
            let user = user.ok_or_else(domain::Problem::not_found)?;
            let ended = set(&tx, &user, hash, except).await?;
            if let Some(notice) = notice {
                mails::write(store, &tx, notice).await?;
            }
            let facts = json!({ "sessions_ended": ended });
            Ok(about((), Action::PasswordChanged, id, facts))
        })
        .await
    }

    /// Uses a link for a new password. All sessions end, no other link is good any more, and the
    /// address counts as verified, since the link was mailed there.
    pub async fn reset_password(
        &self,
        context: &Context,
        token: &TokenHash,
        hash: &str,
        notice: &(dyn Fn(&User) -> NewMail + Sync),
    ) -> Result<std::result::Result<User, TokenFault>, StoreError> {
        let store = &self.store;
        self.change(context, |tx| async move {
            let token = match tokens::take(store, &tx, token, Purpose::Reset).await? {
                Ok(token) => token,
                Err(fault) => return Ok(Audited::unchanged(Err(fault))),
            };
            let Some(id) = token.user else {
                return Ok(Audited::unchanged(Err(TokenFault::Unknown)));
            };
            users::lock(&tx, id).await?;
            let user = users::read(tx.db(), id).await?;
            // The address may have changed since the link was mailed.
            let same = |user: &User| token.address.as_ref() == Some(&user.address);
            let Some(user) = user.filter(|user| user.is_enabled() && same(user)) else {
                return Ok(Audited::unchanged(Err(TokenFault::Unknown)));
            };
            users::verify(&tx, &user.address).await?;
            let ended = set(&tx, &user, hash, None).await?;
            mails::write(store, &tx, &notice(&user)).await?;
            let facts = json!({ "sessions_ended": ended, "by": "reset" });
            Ok(about(Ok(user), Action::PasswordChanged, id, facts))
        })
        .await
    }

    /// Stores the same password under other parameters, unless it was changed meanwhile.
    pub async fn rehash_password(
        &self,
        user: UserId,
        old: &str,
        new: &str,
    ) -> Result<(), StoreError> {
        self.store
            .write_for(super::PEOPLE, |tx| async move {
                user_passwords::Entity::update_many()
                    .col_expr(user_passwords::Column::Hash, Expr::value(new))
                    .filter(user_passwords::Column::UserId.eq(user.uuid()))
                    .filter(user_passwords::Column::Hash.eq(old))
                    .exec(tx.db())
                    .await?;
                Ok(())
            })
            .await
    }

    /// Removes a user's password.
    ///
    /// # Errors
    /// `not_found` if there is none.
    pub async fn remove_password(&self, context: &Context, id: UserId) -> Result<(), StoreError> {
        self.change(context, |tx| async move {
            users::lock(&tx, id).await?;
            let removed = user_passwords::Entity::delete_by_id(id.uuid())
                .exec(tx.db())
                .await?;
            if removed.rows_affected == 0 {
                return Err(domain::Problem::not_found().into());
            }
            Ok(about((), Action::PasswordRemoved, id, json!({})))
        })
        .await
    }
}

//! Sign-ins elsewhere: which subject of which provider is which user.
//!
//! The key is what the provider calls its subject, never an address or a login name: those change
//! hands.

use domain::{
    Code, Problem, Timestamp,
    audit::Action,
    id::{Id as _, UserId},
};
use sea_orm::{
    ActiveValue::Set, ColumnTrait as _, ConnectionTrait, EntityTrait as _, QueryFilter as _,
    QueryOrder as _, TryInsertResult, sea_query::Expr,
};
use serde_json::json;

use crate::{
    identity::{
        Identity,
        users::{self, User, about},
    },
    store::{
        change::Context,
        db::Tx,
        entity::user_identities,
        error::{Result, StoreError},
    },
};

/// A sign-in elsewhere that is connected with a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProviderIdentity {
    /// The provider's name in the settings.
    pub provider: String,
    /// What the provider calls the person.
    pub subject: String,
    /// The address that the provider named last.
    pub address: Option<String>,
    /// When it was connected.
    pub created_at: Timestamp,
    /// When it was last used.
    pub last_used_at: Timestamp,
}

/// The user who is a provider's subject.
pub(crate) async fn user_of(
    db: &impl ConnectionTrait,
    provider: &str,
    subject: &str,
) -> Result<Option<User>> {
    let key = (provider.to_owned(), subject.to_owned());
    match user_identities::Entity::find_by_id(key).one(db).await? {
        Some(row) => users::read(db, UserId::from_uuid(row.user_id)).await,
        None => Ok(None),
    }
}

/// Connects a provider's subject with a user.
///
/// # Errors
/// `identity_taken` if it is another user's.
pub(crate) async fn link(
    tx: &Tx,
    user: UserId,
    (provider, subject): (&str, &str),
    address: Option<&str>,
) -> Result<()> {
    use user_identities::Column;
    let inserted = user_identities::Entity::insert(user_identities::ActiveModel {
        provider: Set(provider.to_owned()),
        subject: Set(subject.to_owned()),
        user_id: Set(user.uuid()),
        address: Set(address.map(str::to_owned)),
        created_at: Set(tx.now.ms()),
        last_used_at: Set(tx.now.ms()),
    })
    .on_conflict_do_nothing_on([Column::Provider, Column::Subject])
    .exec_without_returning(tx.db())
    .await?;
    if matches!(inserted, TryInsertResult::Inserted(1)) {
        return Ok(());
    }
    match user_of(tx.db(), provider, subject).await? {
        Some(other) if other.id == user => Ok(()),
        _ => Err(Code::IdentityTaken.into()),
    }
}

/// Notes that a sign-in elsewhere was used.
pub(crate) async fn note_use(
    tx: &Tx,
    (provider, subject): (&str, &str),
    address: Option<&str>,
) -> Result<()> {
    use user_identities::Column;
    user_identities::Entity::update_many()
        .col_expr(Column::LastUsedAt, Expr::value(tx.now.ms()))
        .col_expr(Column::Address, Expr::value(address))
        .filter(Column::Provider.eq(provider))
        .filter(Column::Subject.eq(subject))
        .exec(tx.db())
        .await?;
    Ok(())
}

impl Identity {
    /// The sign-ins elsewhere that are connected with a user.
    pub async fn identities(&self, user: UserId) -> Result<Vec<ProviderIdentity>, StoreError> {
        let rows = user_identities::Entity::find()
            .filter(user_identities::Column::UserId.eq(user.uuid()))
            .order_by_asc(user_identities::Column::Provider)
            .order_by_asc(user_identities::Column::Subject)
            .all(self.store.read())
            .await?;
        let identities = rows.into_iter().map(|row| ProviderIdentity {
            provider: row.provider,
            subject: row.subject,
            address: row.address,
            created_at: Timestamp::from_ms(row.created_at),
            last_used_at: Timestamp::from_ms(row.last_used_at),
        });
        Ok(identities.collect())
    }

    /// Connects a provider's subject with a user who is signed in.
    ///
    /// # Errors
    /// `identity_taken` if it is another user's.
    pub async fn link_provider(
        &self,
        context: &Context,
        user: UserId,
        (provider, subject): (&str, &str),
        address: Option<&str>,
    ) -> Result<(), StoreError> {
        self.change(context, |tx| async move {
            users::lock(&tx, user).await?;
            link(&tx, user, (provider, subject), address).await?;
            let facts = json!({ "provider": provider });
            Ok(about((), Action::IdentityLinked, user, facts))
        })
        .await
    }

    /// Disconnects a provider from a user.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn unlink_provider(
        &self,
        context: &Context,
        user: UserId,
        provider: &str,
    ) -> Result<(), StoreError> {
        self.change(context, |tx| async move {
            let removed = user_identities::Entity::delete_many()
                .filter(user_identities::Column::UserId.eq(user.uuid()))
                .filter(user_identities::Column::Provider.eq(provider))
                .exec(tx.db())
                .await?;
            if removed.rows_affected == 0 {
                return Err(Problem::not_found().into());
            }
            let facts = json!({ "provider": provider });
            Ok(about((), Action::IdentityUnlinked, user, facts))
        })
        .await
    }
}

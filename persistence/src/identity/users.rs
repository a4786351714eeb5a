//! Users: what is known of a person.

use domain::{
    Code, Problem, Timestamp,
    audit::Action,
    id::{Id as _, UserId},
    people::EmailAddress,
};
use sea_orm::{
    ActiveValue::Set,
    ColumnTrait as _, ConnectionTrait, EntityTrait as _, QueryFilter as _, QueryOrder as _,
    QuerySelect as _, SqlErr,
    sea_query::{Expr, LockType},
};
use serde_json::json;
use uuid::Uuid;

use crate::{
    identity::{Identity, sessions::end_all, tokens::spend_all, touch},
    store::{
        change::{Audited, Context, Expected, audit_entry, check_revision},
        db::Tx,
        ends::End,
        entity::{memberships, user_addresses, users},
        error::{Result, StoreError, corrupt_row},
        page::{Page, PageRequest},
        scope::OPERATOR,
        sql::Sql,
        tables::TABLES,
    },
};

/// A person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The user's identifier.
    pub id: UserId,
    /// The address to which mails go.
    pub address: EmailAddress,
    /// When somebody proved to receive mail there; `None` if nobody has.
    pub verified_at: Option<Timestamp>,
    /// A name for people.
    pub display_name: Option<String>,
    /// Whether the user has the operator's rights.
    pub staff: bool,
    /// Increased with each change of this row.
    pub revision: i64,
    /// When the user was created.
    pub created_at: Timestamp,
    /// When the user was disabled; `None` if no sign-in is refused for that.
    pub disabled_at: Option<Timestamp>,
}

impl User {
    /// Whether the user may sign in.
    #[must_use]
    pub const fn is_enabled(&self) -> bool {
        self.disabled_at.is_none()
    }
}

/// What is given for a new user.
#[derive(Clone, Debug)]
pub struct NewUser {
    /// The address.
    pub address: EmailAddress,
    /// Whether somebody has proved to receive mail there, or the operator vouches for it.
    pub verified: bool,
    /// A name for people.
    pub display_name: Option<String>,
    /// Whether the user has the operator's rights.
    pub staff: bool,
}

fn user_of(row: users::Model, address: &user_addresses::Model) -> Result<User> {
    Ok(User {
        id: UserId::from_uuid(row.id),
        address: EmailAddress::parse(&address.address).ok_or_else(|| corrupt_row("address"))?,
        verified_at: address.verified_at.map(Timestamp::from_ms),
        display_name: row.display_name,
        staff: row.staff,
        revision: row.revision,
        created_at: Timestamp::from_ms(row.created_at),
        disabled_at: row.disabled_at.map(Timestamp::from_ms),
    })
}

/// Reads a user.
pub(crate) async fn read(db: &impl ConnectionTrait, id: UserId) -> Result<Option<User>> {
    let row = users::Entity::find_by_id(id.uuid()).one(db).await?;
    let Some(row) = row else { return Ok(None) };
    let address = user_addresses::Entity::find()
        .filter(user_addresses::Column::UserId.eq(id.uuid()))
        .filter(user_addresses::Column::IsPrimary.eq(true))
        .one(db)
        .await?
        .ok_or_else(|| corrupt_row("address of a user"))?;
    user_of(row, &address).map(Some)
}

/// Reads the user who has an address, verified or not.
pub(crate) async fn with_address(
    db: &impl ConnectionTrait,
    address: &EmailAddress,
) -> Result<Option<User>> {
    let row = user_addresses::Entity::find_by_id(address.as_str().to_owned())
        .one(db)
        .await?;
    match row {
        Some(row) => read(db, UserId::from_uuid(row.user_id)).await,
        None => Ok(None),
    }
}

/// Locks a user's row. What changes how a user gets in begins with it.
///
/// # Errors
/// `not_found`.
pub(crate) async fn lock(tx: &Tx, id: UserId) -> Result<users::Model> {
    users::Entity::find_by_id(id.uuid())
        .lock(LockType::NoKeyUpdate)
        .one(tx.db())
        .await?
        .ok_or_else(|| Problem::not_found().into())
}

/// Inserts a user with an address.
///
/// # Errors
/// `address_taken` if another user has the address.
pub(crate) async fn insert(tx: &Tx, new: &NewUser) -> Result<User> {
    let id = UserId::generate(tx.now);
    let row = users::Model {
        id: id.uuid(),
        display_name: new.display_name.clone(),
        staff: new.staff,
        revision: 1,
        created_at: tx.now.ms(),
        updated_at: tx.now.ms(),
        disabled_at: None,
    };
    let active: users::ActiveModel = row.into();
    users::Entity::insert(sea_orm::ActiveModelTrait::reset_all(active))
        .exec_without_returning(tx.db())
        .await?;
    insert_address(tx, id, &new.address, new.verified).await?;
    read(tx.db(), id)
        .await?
        .ok_or_else(|| corrupt_row("new user"))
}

async fn insert_address(
    tx: &Tx,
    user: UserId,
    address: &EmailAddress,
    verified: bool,
) -> Result<()> {
    let inserted = user_addresses::Entity::insert(user_addresses::ActiveModel {
        address: Set(address.as_str().to_owned()),
        user_id: Set(user.uuid()),
        is_primary: Set(true),
        verified_at: Set(verified.then_some(tx.now.ms())),
        created_at: Set(tx.now.ms()),
    })
    .exec_without_returning(tx.db())
    .await;
    match inserted {
        Err(error) if matches!(error.sql_err(), Some(SqlErr::UniqueConstraintViolation(_))) => {
            Err(Code::AddressTaken.into())
        }
        other => {
            other?;
            Ok(())
        }
    }
}

/// Makes `address` the user's only one, as verified.
///
/// # Errors
/// `address_taken` if another user has the address.
pub(crate) async fn replace_address(tx: &Tx, user: UserId, address: &EmailAddress) -> Result<()> {
    user_addresses::Entity::delete_many()
        .filter(user_addresses::Column::UserId.eq(user.uuid()))
        .exec(tx.db())
        .await?;
    insert_address(tx, user, address, true).await
}

/// Gives a new user a name.
pub(crate) async fn name(tx: &Tx, user: UserId, name: Option<&str>) -> Result<()> {
    users::Entity::update_many()
        .col_expr(users::Column::DisplayName, Expr::value(name))
        .filter(users::Column::Id.eq(user.uuid()))
        .exec(tx.db())
        .await?;
    Ok(())
}

/// Notes that somebody proved to receive mail at the user's address.
pub(crate) async fn verify(tx: &Tx, address: &EmailAddress) -> Result<()> {
    user_addresses::Entity::update_many()
        .col_expr(
            user_addresses::Column::VerifiedAt,
            Expr::value(Some(tx.now.ms())),
        )
        .filter(user_addresses::Column::Address.eq(address.as_str()))
        .filter(user_addresses::Column::VerifiedAt.is_null())
        .exec(tx.db())
        .await?;
    Ok(())
}

/// An entry of the operator's audit log about a user.
pub(crate) fn about<T>(
    value: T,
    action: Action,
    user: UserId,
    facts: serde_json::Value,
) -> Audited<T> {
    Audited::new(value, OPERATOR, audit_entry(action, "user", user, facts))
}

impl Identity {
    /// Creates a user.
    ///
    /// # Errors
    /// `address_taken`.
    pub async fn create_user(&self, context: &Context, new: NewUser) -> Result<User, StoreError> {
        let new = &new;
        self.change(context, |tx| async move {
            let user = insert(&tx, new).await?;
            let facts = json!({ "address": user.address.as_str(), "staff": user.staff });
            let id = user.id;
            Ok(about(user, Action::UserCreated, id, facts))
        })
        .await
    }

    /// Reads a user; `None` if there is none.
    pub async fn user(&self, id: UserId) -> Result<Option<User>, StoreError> {
        read(self.store.read(), id).await
    }

    /// The user who has an address, verified or not.
    pub async fn user_with_address(
        &self,
        address: &EmailAddress,
    ) -> Result<Option<User>, StoreError> {
        with_address(self.store.read(), address).await
    }

    /// All users, newest first.
    pub async fn users(&self, page: PageRequest<Uuid>) -> Result<Page<User, Uuid>, StoreError> {
        let mut query = users::Entity::find();
        if let Some(after) = page.after {
            query = query.filter(users::Column::Id.lt(after));
        }
        let rows = query
            .order_by_desc(users::Column::Id)
            .limit(page.fetch())
            .all(self.store.read())
            .await?;
        let page = page.cut(rows, |row| row.id);
        let mut items = Vec::with_capacity(page.items.len());
        for row in &page.items {
            items.extend(read(self.store.read(), UserId::from_uuid(row.id)).await?);
        }
        Ok(Page {
            items,
            next: page.next,
        })
    }

    /// Changes a user's name.
    ///
    /// # Errors
    /// `not_found`, `precondition_failed`.
    pub async fn rename_user(
        &self,
        context: &Context,
        id: UserId,
        name: Option<String>,
        if_match: Option<Expected>,
    ) -> Result<User, StoreError> {
        let name = &name;
        self.change(context, |tx| async move {
            let row = lock(&tx, id).await?;
            check_revision(if_match, row.revision)?;
            let same = row.display_name == *name;
            if !same {
                let changed = users::ActiveModel {
                    id: Set(row.id),
                    display_name: Set(name.clone()),
                    revision: Set(row.revision + 1),
                    updated_at: Set(tx.now.ms()),
                    ..Default::default()
                };
                users::Entity::update(changed).exec(tx.db()).await?;
                touch(&tx, id);
            }
            let user = read(tx.db(), id).await?.ok_or_else(Problem::not_found)?;
            Ok(if same {
                Audited::unchanged(user)
            } else {
                about(
                    user,
                    Action::UserUpdated,
                    id,
                    json!({ "changed": ["display_name"] }),
                )
            })
        })
        .await
    }

    /// Lets a user in no more, and ends all sessions; or lets the user in again.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn set_user_enabled(
        &self,
        context: &Context,
        id: UserId,
        enabled: bool,
    ) -> Result<User, StoreError> {
        self.change(context, |tx| async move {
            let row = lock(&tx, id).await?;
            let same = row.disabled_at.is_none() == enabled;
            let mut ended = 0;
            if !same {
                let changed = users::ActiveModel {
                    id: Set(row.id),
                    disabled_at: Set((!enabled).then_some(tx.now.ms())),
                    revision: Set(row.revision + 1),
                    updated_at: Set(tx.now.ms()),
                    ..Default::default()
                };
                users::Entity::update(changed).exec(tx.db()).await?;
                ended = end_all(&tx, id, None).await?;
                spend_all(&tx, id, None).await?;
                touch(&tx, id);
            }
            let user = read(tx.db(), id).await?.ok_or_else(Problem::not_found)?;
            Ok(match (same, enabled) {
                (true, _) => Audited::unchanged(user),
                (false, true) => about(user, Action::UserEnabled, id, json!({})),
                (false, false) => {
                    about(user, Action::UserDisabled, id, json!({ "sessions": ended }))
                }
            })
        })
        .await
    }

    /// Gives a user the operator's rights, or takes them away.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn set_staff(
        &self,
        context: &Context,
        id: UserId,
        staff: bool,
    ) -> Result<User, StoreError> {
        self.change(context, |tx| async move {
            let row = lock(&tx, id).await?;
            let same = row.staff == staff;
            if !same {
                let changed = users::ActiveModel {
                    id: Set(row.id),
                    staff: Set(staff),
                    revision: Set(row.revision + 1),
                    updated_at: Set(tx.now.ms()),
                    ..Default::default()
                };
                users::Entity::update(changed).exec(tx.db()).await?;
                touch(&tx, id);
            }
            let user = read(tx.db(), id).await?.ok_or_else(Problem::not_found)?;
            Ok(if same {
                Audited::unchanged(user)
            } else {
                about(user, Action::UserUpdated, id, json!({ "staff": staff }))
            })
        })
        .await
    }

    /// Deletes a user with everything that is known of the person, memberships included.
    ///
    /// # Errors
    /// `not_found`; `last_owner` if a publisher would be left without an owner.
    pub async fn delete_user(&self, context: &Context, id: UserId) -> Result<(), StoreError> {
        self.change(context, |tx| async move {
            // Publishers before users: the order of locks of a change of members.
            refuse_last_owner(&tx, id).await?;
            lock(&tx, id).await?;
            touch(&tx, id);
            for table in TABLES
                .iter()
                .filter(|table| table.ends.iter().any(|end| matches!(end, End::WithUser)))
            {
                let mut sql = Sql::new("DELETE FROM ");
                sql.push(table.name).push(" WHERE user_id = ");
                sql.bind(id.uuid());
                let statement = sql.statement(tx.db().get_database_backend());
                tx.db().execute_raw(statement).await?;
            }
            users::Entity::delete_by_id(id.uuid()).exec(tx.db()).await?;
            Ok(about((), Action::UserDeleted, id, json!({})))
        })
        .await
    }
}

/// Refuses if a publisher's only owner is this user. Locks the publishers of which the user is an
/// owner, so that nobody else stops being one meanwhile.
async fn refuse_last_owner(tx: &Tx, id: UserId) -> Result<()> {
    let owned: Vec<Uuid> = memberships::Entity::find()
        .select_only()
        .column(memberships::Column::PublisherId)
        .filter(memberships::Column::UserId.eq(id.uuid()))
        .filter(memberships::Column::Role.eq("owner"))
        .order_by_asc(memberships::Column::PublisherId)
        .into_tuple()
        .all(tx.db())
        .await?;
    for publisher in owned {
        crate::store::change::lock_publisher(tx, publisher).await?;
        let another = memberships::Entity::find()
            .filter(memberships::Column::PublisherId.eq(publisher))
            .filter(memberships::Column::Role.eq("owner"))
            .filter(memberships::Column::UserId.ne(id.uuid()))
            .one(tx.db())
            .await?;
        if another.is_none() {
            return Err(Code::LastOwner.into());
        }
    }
    Ok(())
}

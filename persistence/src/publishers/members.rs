//! Members of a publisher: who they are, what they may do, and what they created.
//!
//! Who changes members must still be one in the transaction itself: a request that was let in a
//! moment before its person was demoted changes nothing.

use domain::{
    Code, Problem, Timestamp,
    audit::{Action, Actor, ActorKind},
    id::{Id as _, PublisherId, TokenId, UserId},
    people::{EmailAddress, Role},
    slug::Slug,
};
use sea_orm::{
    ActiveValue::Set, ColumnTrait as _, Condition, ConnectionTrait, EntityTrait as _,
    PaginatorTrait as _, QueryFilter as _, QueryOrder as _, QuerySelect as _, sea_query::Expr,
};
use serde_json::json;
use uuid::Uuid;

use crate::{
    identity::{
        Identity, touch,
        users::{self, User},
    },
    publishers::{
        Members,
        credentials::live_at,
        invitations::withdraw_of_tokens,
        publisher::{NewPublisher, Publisher},
    },
    store::{
        Scoped,
        change::{Answer, Audited, Context, Expected, audit_entry, check_revision},
        db::Tx,
        entity::{credentials, memberships, publishers, sessions, train_tokens},
        error::{Result, StoreError, corrupt_row},
        page::{Page, PageRequest},
        quota::over_quota,
    },
};

/// Most members of a publisher.
const MEMBERS: u32 = 500;

/// A member of a publisher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The person.
    pub user: UserId,
    /// The person's address.
    pub address: EmailAddress,
    /// The person's name.
    pub display_name: Option<String>,
    /// What the person may do here.
    pub role: Role,
    /// Increased with each change.
    pub revision: i64,
    /// When the person joined.
    pub created_at: Timestamp,
    /// When one of the person's sessions was last seen, to the minute; `None` if there is none.
    pub last_seen_at: Option<Timestamp>,
}

/// A publisher of which a person is a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnMembership {
    /// The publisher.
    pub publisher: Publisher,
    /// What the person may do there.
    pub role: Role,
    /// When the person joined.
    pub created_at: Timestamp,
}

/// A live token that a person created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MintedToken {
    /// The token's identifier.
    pub id: TokenId,
    /// The slug of the train, if the token is a train's.
    pub train: bool,
    /// A name for people.
    pub name: Option<String>,
    /// The last four characters.
    pub last_four: String,
    /// When the token was created.
    pub created_at: Timestamp,
}

/// A member who was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemovedMember {
    /// The person.
    pub user: UserId,
    /// The live tokens that the person had created.
    pub minted: Vec<MintedToken>,
    /// Whether they were revoked together with the membership.
    pub revoked: bool,
}

/// The role with which an actor changes members: a person's own, or an administrator's for the
/// publisher's admin token.
///
/// # Errors
/// `not_found` if the person is no member any more.
pub(crate) async fn acting_role(tx: &Tx, publisher: Uuid, actor: &Actor) -> Result<Role> {
    match actor.user_id() {
        Some(user) => Ok(find(tx.db(), publisher, user)
            .await?
            .ok_or_else(Problem::not_found)
            .and_then(|row| role_of(&row).map_err(|_| Problem::from(Code::Internal)))?),
        None => Ok(Role::Admin),
    }
}

/// Refuses unless `acting` may give or take the role `other`.
pub(crate) fn check_manages(acting: Role, other: Role) -> Result<()> {
    if acting.manages(other) {
        return Ok(());
    }
    let detail = format!("It takes a member who is {} or above.", other.as_str());
    Err(Problem::new(Code::RoleTooLow, detail).into())
}

pub(crate) fn role_of(row: &memberships::Model) -> Result<Role> {
    Role::parse(&row.role).ok_or_else(|| corrupt_row("role"))
}

pub(crate) async fn find(
    db: &impl ConnectionTrait,
    publisher: Uuid,
    user: UserId,
) -> Result<Option<memberships::Model>> {
    Ok(memberships::Entity::find_by_id((publisher, user.uuid()))
        .one(db)
        .await?)
}

/// How many owners a publisher has.
pub(crate) async fn owners(tx: &Tx, publisher: Uuid) -> Result<u64> {
    Ok(memberships::Entity::find()
        .filter(memberships::Column::PublisherId.eq(publisher))
        .filter(memberships::Column::Role.eq(Role::Owner.as_str()))
        .count(tx.db())
        .await?)
}

/// Makes a user a member. The publisher's row must be locked.
pub(crate) async fn add(tx: &Tx, publisher: Uuid, user: UserId, role: Role) -> Result<()> {
    let members = memberships::Entity::find()
        .filter(memberships::Column::PublisherId.eq(publisher))
        .count(tx.db())
        .await?;
    if members >= u64::from(MEMBERS) {
        return Err(over_quota("members", MEMBERS));
    }
    memberships::Entity::insert(memberships::ActiveModel {
        publisher_id: Set(publisher),
        user_id: Set(user.uuid()),
        role: Set(role.as_str().to_owned()),
        revision: Set(1),
        created_at: Set(tx.now.ms()),
        updated_at: Set(tx.now.ms()),
    })
    .exec_without_returning(tx.db())
    .await?;
    touch(tx, user);
    Ok(())
}

async fn membership_of(
    db: &impl ConnectionTrait,
    row: memberships::Model,
) -> Result<Option<Membership>> {
    let user = UserId::from_uuid(row.user_id);
    let Some(known) = users::read(db, user).await? else {
        return Ok(None);
    };
    let seen: Option<i64> = sessions::Entity::find()
        .select_only()
        .column(sessions::Column::LastSeenAt)
        .filter(sessions::Column::UserId.eq(row.user_id))
        .order_by_desc(sessions::Column::LastSeenAt)
        .into_tuple()
        .one(db)
        .await?;
    let role = role_of(&row)?;
    Ok(Some(Membership {
        user,
        address: known.address,
        display_name: known.display_name,
        role,
        revision: row.revision,
        created_at: Timestamp::from_ms(row.created_at),
        last_seen_at: seen.map(Timestamp::from_ms),
    }))
}

async fn minted_by(
    db: &impl ConnectionTrait,
    publisher: Uuid,
    user: UserId,
    now: Timestamp,
) -> Result<Vec<MintedToken>> {
    let own = credentials::Entity::find()
        .filter(credentials::Column::PublisherId.eq(publisher))
        .filter(credentials::Column::MintedBy.eq(user.uuid()))
        .filter(is_token_row())
        .filter(live_at(now))
        .all(db)
        .await?;
    let of_trains = train_tokens::Entity::find()
        .filter(train_tokens::Column::PublisherId.eq(publisher))
        .filter(train_tokens::Column::MintedBy.eq(user.uuid()))
        .filter(train_tokens::Column::RevokedAt.is_null())
        .all(db)
        .await?;
    let own = own.into_iter().map(|row| MintedToken {
        id: TokenId::from_uuid(row.id),
        train: false,
        name: row.name,
        last_four: row.last_four,
        created_at: Timestamp::from_ms(row.created_at),
    });
    let live = of_trains
        .into_iter()
        .filter(|row| row.expires_at.is_none_or(|at| at > now.ms()));
    let of_trains = live.map(|row| MintedToken {
        id: TokenId::from_uuid(row.id),
        train: true,
        name: row.name,
        last_four: row.last_four,
        created_at: Timestamp::from_ms(row.created_at),
    });
    Ok(own.chain(of_trains).collect())
}

/// The condition of tokens, which open something, among credentials.
fn is_token_row() -> Condition {
    Condition::any()
        .add(credentials::Column::GrantsAdmin.eq(true))
        .add(credentials::Column::GrantsRunner.eq(true))
}

/// Revokes the tokens that a person created, and withdraws what those offered.
///
/// # Errors
/// `last_admin_token` if no admin token would be left.
async fn revoke_minted(tx: &Tx, publisher: Uuid, user: UserId) -> Result<()> {
    let minted = minted_by(tx.db(), publisher, user, tx.now).await?;
    withdraw_of_tokens(tx, publisher, minted.iter().map(|one| one.id.uuid())).await?;
    credentials::Entity::update_many()
        .col_expr(
            credentials::Column::RevokedAt,
            Expr::value(Some(tx.now.ms())),
        )
        .filter(credentials::Column::PublisherId.eq(publisher))
        .filter(credentials::Column::MintedBy.eq(user.uuid()))
        .filter(is_token_row())
        .filter(live_at(tx.now))
        .exec(tx.db())
        .await?;
    train_tokens::Entity::update_many()
        .col_expr(
            train_tokens::Column::RevokedAt,
            Expr::value(Some(tx.now.ms())),
        )
        .filter(train_tokens::Column::PublisherId.eq(publisher))
        .filter(train_tokens::Column::MintedBy.eq(user.uuid()))
        .filter(train_tokens::Column::RevokedAt.is_null())
        .exec(tx.db())
        .await?;
    let admins = credentials::Entity::find()
        .filter(credentials::Column::PublisherId.eq(publisher))
        .filter(credentials::Column::GrantsAdmin.eq(true))
        .filter(credentials::Column::SupersededAt.is_null())
        .filter(live_at(tx.now))
        .count(tx.db())
        .await?;
    if admins == 0 {
        return Err(Code::LastAdminToken.into());
    }
    tx.touches_credentials_of(PublisherId::from_uuid(publisher));
    Ok(())
}

impl Members<Scoped> {
    /// The publisher's members, in the order in which they became users.
    pub async fn members(
        &self,
        page: PageRequest<Uuid>,
    ) -> Result<Page<Membership, Uuid>, StoreError> {
        let mut query = memberships::Entity::find()
            .filter(memberships::Column::PublisherId.eq(self.scope.uuid()));
        if let Some(after) = page.after {
            query = query.filter(memberships::Column::UserId.gt(after));
        }
        let rows = query
            .order_by_asc(memberships::Column::UserId)
            .limit(page.fetch())
            .all(self.store.read())
            .await?;
        let page = page.cut(rows, |row| row.user_id);
        let mut items = Vec::with_capacity(page.items.len());
        for row in page.items {
            items.extend(membership_of(self.store.read(), row).await?);
        }
        Ok(Page {
            items,
            next: page.next,
        })
    }

    /// One member.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn membership(&self, user: UserId) -> Result<Membership, StoreError> {
        let row = find(self.store.read(), self.scope.uuid(), user).await?;
        let row = row.ok_or_else(Problem::not_found)?;
        let found = membership_of(self.store.read(), row).await?;
        found.ok_or_else(|| Problem::not_found().into())
    }

    /// The live tokens that a person has created.
    pub async fn minted_by(&self, user: UserId) -> Result<Vec<MintedToken>, StoreError> {
        let now = self.store.now();
        minted_by(self.store.read(), self.scope.uuid(), user, now).await
    }

    /// Gives a member another role.
    ///
    /// # Errors
    /// `not_found`, `precondition_failed`; `role_too_low` if who asks is below the old or the new
    /// role; `last_owner`.
    pub async fn change_role<A>(
        &self,
        context: &Context,
        user: UserId,
        role: Role,
        if_match: Option<Expected>,
        render: A,
    ) -> Result<Answer, StoreError>
    where
        A: Fn(&Membership) -> Answer + Send + Sync,
    {
        let owner = self.scope.uuid();
        let work = |tx: Tx| async move {
            let row = find(tx.db(), owner, user).await?;
            let row = row.ok_or_else(Problem::not_found)?;
            check_revision(if_match, row.revision)?;
            let (acting, old) = (
                acting_role(&tx, owner, &context.actor).await?,
                role_of(&row)?,
            );
            check_manages(acting, old)?;
            check_manages(acting, role)?;
            let changes = old != role;
            if changes {
                if old == Role::Owner && owners(&tx, owner).await? <= 1 {
                    return Err(Code::LastOwner.into());
                }
                memberships::Entity::update(memberships::ActiveModel {
                    publisher_id: Set(owner),
                    user_id: Set(user.uuid()),
                    role: Set(role.as_str().to_owned()),
                    revision: Set(row.revision + 1),
                    updated_at: Set(tx.now.ms()),
                    ..Default::default()
                })
                .exec(tx.db())
                .await?;
                touch(&tx, user);
            }
            let row = find(tx.db(), owner, user).await?;
            let row = row.ok_or_else(Problem::not_found)?;
            let member = membership_of(tx.db(), row).await?;
            let member = member.ok_or_else(Problem::not_found)?;
            if !changes {
                return Ok(Audited::unchanged(member));
            }
            let facts = json!({ "from": old.as_str(), "to": role.as_str() });
            let entry = audit_entry(Action::MemberUpdated, "user", user, facts);
            Ok(Audited::new(member, owner, entry))
        };
        self.store.administer(context, owner, work, render).await
    }

    /// Removes a member; at the same time revokes the tokens that the person created, if wanted. A
    /// person may also leave.
    ///
    /// # Errors
    /// `not_found`, `precondition_failed`; `role_too_low`; `last_owner`; `last_admin_token`.
    pub async fn remove_member<A>(
        &self,
        context: &Context,
        user: UserId,
        (revoke, if_match): (bool, Option<Expected>),
        render: A,
    ) -> Result<Answer, StoreError>
    where
        A: Fn(&RemovedMember) -> Answer + Send + Sync,
    {
        let owner = self.scope.uuid();
        let work = |tx: Tx| async move {
            let row = find(tx.db(), owner, user).await?;
            let row = row.ok_or_else(Problem::not_found)?;
            check_revision(if_match, row.revision)?;
            let role = role_of(&row)?;
            if context.actor.user_id() != Some(user) {
                check_manages(acting_role(&tx, owner, &context.actor).await?, role)?;
            }
            if role == Role::Owner && owners(&tx, owner).await? <= 1 {
                return Err(Code::LastOwner.into());
            }
            let minted = minted_by(tx.db(), owner, user, tx.now).await?;
            if revoke && !minted.is_empty() {
                revoke_minted(&tx, owner, user).await?;
            }
            memberships::Entity::delete_by_id((owner, user.uuid()))
                .exec(tx.db())
                .await?;
            touch(&tx, user);
            let tokens: Vec<String> = minted.iter().map(|one| one.id.to_string()).collect();
            let facts = json!({ "role": role.as_str(), "minted": tokens, "revoked": revoke });
            let removed = RemovedMember {
                user,
                minted,
                revoked: revoke,
            };
            let entry = audit_entry(Action::MemberRemoved, "user", user, facts);
            Ok(Audited::new(removed, owner, entry))
        };
        self.store.administer(context, owner, work, render).await
    }
}

impl Identity {
    /// The publishers of which a person is a member, by slug. Deleted ones are left out.
    pub async fn memberships(&self, user: UserId) -> Result<Vec<OwnMembership>, StoreError> {
        let rows = memberships::Entity::find()
            .filter(memberships::Column::UserId.eq(user.uuid()))
            .all(self.store.read())
            .await?;
        let mut all = Vec::with_capacity(rows.len());
        for row in rows {
            let publisher = publishers::Entity::find_by_id(row.publisher_id)
                .one(self.store.read())
                .await?;
            if let Some(publisher) = publisher.filter(|row| row.deleted_at.is_none()) {
                all.push(OwnMembership {
                    publisher: Publisher::of_row(publisher)?,
                    role: role_of(&row)?,
                    created_at: Timestamp::from_ms(row.created_at),
                });
            }
        }
        all.sort_by(|a, b| a.publisher.slug.cmp(&b.publisher.slug));
        Ok(all)
    }

    /// Makes a user the owner of a publisher, or gives a member that role. For the operator.
    ///
    /// # Errors
    /// `not_found` if there is no such publisher.
    pub async fn make_owner(
        &self,
        context: &Context,
        user: UserId,
        publisher: &Slug,
    ) -> Result<(), StoreError> {
        self.change(context, |tx| async move {
            let row = publishers::Entity::find()
                .filter(publishers::Column::LiveSlug.eq(publisher.as_str()))
                .one(tx.db())
                .await?
                .ok_or_else(Problem::not_found)?;
            crate::store::change::lock_publisher(&tx, row.id).await?;
            users::lock(&tx, user).await?;
            memberships::Entity::delete_by_id((row.id, user.uuid()))
                .exec(tx.db())
                .await?;
            add(&tx, row.id, user, Role::Owner).await?;
            let entry = audit_entry(
                Action::MemberAdded,
                "user",
                user,
                json!({ "role": "owner", "by": "operator" }),
            );
            Ok(Audited::by_operator((), row.id, entry))
        })
        .await
    }

    /// Creates a publisher with the user as its owner, unless the user is a member of one. For
    /// people who register by themselves; may be called again after a failure.
    pub async fn provision_publisher(
        &self,
        context: &Context,
        user: &User,
        new: &NewPublisher,
    ) -> Result<(), StoreError> {
        let store = &self.store;
        self.change(context, |tx| async move {
            users::lock(&tx, user.id).await?;
            let has_one = memberships::Entity::find()
                .filter(memberships::Column::UserId.eq(user.id.uuid()))
                .one(tx.db())
                .await?;
            if has_one.is_some() {
                return Ok(Audited::unchanged(()));
            }
            let created = store.insert_publisher(&tx, new).await?;
            let id = created.publisher.id;
            add(&tx, id.uuid(), user.id, Role::Owner).await?;
            let facts = json!({ "slug": created.publisher.slug, "by": "registration" });
            let made = audit_entry(Action::PublisherCreated, "publisher", id, facts);
            let joined = audit_entry(
                Action::MemberAdded,
                "user",
                user.id,
                json!({ "role": "owner", "by": "registration" }),
            );
            Ok(Audited::by_operator((), id.uuid(), made).and(&[id.uuid()], joined))
        })
        .await
    }
}

/// Whether an actor is the publisher's own token.
pub(crate) fn is_token(actor: &Actor) -> bool {
    matches!(actor.kind, ActorKind::Admin | ActorKind::Runner)
}

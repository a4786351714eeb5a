//! Who makes a change, asked once more in the change's own transaction.
//!
//! A request is let in before its body has come, and by what its process knows. Meanwhile its token
//! may have been revoked, or its person removed, demoted or disabled. So an administrative change
//! asks again under the lock of its publisher, which each of those takes, too.

use domain::{
    Code, Problem,
    audit::ActorKind,
    id::{Id as _, TokenId, UserId},
    people::Role,
    permission::{Held, Permission, TokenKind},
};
use sea_orm::EntityTrait as _;
use uuid::Uuid;

use crate::store::{
    change::Context,
    db::Tx,
    entity::{credentials, memberships, users},
    error::{Result, corrupt_row},
};

/// Refuses unless who makes the change may still make it. A change with no permission is the
/// service's own, or the operator's command's. Notes the person who stands behind the actor, too:
/// the one who is signed in, or who created the token.
///
/// # Errors
/// `unauthenticated` for a token that is not live any more; `not_found` for a person who is no
/// member any more; `role_too_low`; `user_disabled`.
pub(crate) async fn check(tx: &Tx, owner: Uuid, context: &Context) -> Result<()> {
    let Some(permission) = context.permission else {
        return Ok(());
    };
    match (context.actor.kind, context.actor.user_id()) {
        (ActorKind::User, Some(user)) => check_person(tx, owner, user, permission).await,
        (ActorKind::Admin | ActorKind::Runner, _) => {
            let id = TokenId::parse(&context.actor.id).ok_or_else(|| corrupt_row("actor"))?;
            check_token(tx, owner, id, permission).await
        }
        _ => Ok(()),
    }
}

async fn check_person(tx: &Tx, owner: Uuid, user: UserId, permission: Permission) -> Result<()> {
    let row = users::Entity::find_by_id(user.uuid()).one(tx.db()).await?;
    let row = row.ok_or(Code::Unauthenticated)?;
    if row.disabled_at.is_some() {
        return Err(Code::UserDisabled.into());
    }
    let may = match permission.people() {
        Held::ByStaff => row.staff,
        Held::ByMembers(_) => {
            let member = memberships::Entity::find_by_id((owner, user.uuid()))
                .one(tx.db())
                .await?
                .ok_or_else(Problem::not_found)?;
            let role = Role::parse(&member.role).ok_or_else(|| corrupt_row("role"))?;
            permission.is_held_by_member(role)
        }
        Held::ByEverybody => true,
        Held::ByNobody => false,
    };
    if may {
        Ok(())
    } else {
        Err(Code::RoleTooLow.into())
    }
}

async fn check_token(tx: &Tx, owner: Uuid, id: TokenId, permission: Permission) -> Result<()> {
    let row = credentials::Entity::find_by_id((owner, id.uuid()))
        .one(tx.db())
        .await?
        .ok_or(Code::Unauthenticated)?;
    let live = row.revoked_at.is_none() && row.expires_at.is_none_or(|at| at > tx.now.ms());
    let holds = (row.grants_admin && permission.is_held_by(TokenKind::Admin))
        || (row.grants_runner && permission.is_held_by(TokenKind::Runner));
    if !live || !holds {
        return Err(Code::Unauthenticated.into());
    }
    if let Some(user) = row.minted_by {
        tx.made_by(UserId::from_uuid(user));
    }
    Ok(())
}

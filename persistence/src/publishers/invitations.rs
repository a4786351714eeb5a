//! Invitations: offers of membership to addresses.
//!
//! An invitation is good once, for a week. Whoever proves to receive the address's mail may accept
//! it: by its mailed link, or signed in as the user who has that verified address. The inviter must
//! still be allowed to give the role then.

use std::time::Duration;

use domain::{
    Code, Problem, Timestamp,
    audit::{Action, Actor, ActorKind},
    id::{Id as _, InvitationId, TokenId, UserId},
    people::{EmailAddress, Role},
    token::TokenHash,
};
use sea_orm::{
    ActiveValue::Set, ColumnTrait as _, Condition, ConnectionTrait, EntityTrait as _,
    PaginatorTrait as _, QueryFilter as _, QueryOrder as _, QuerySelect as _, sea_query::Expr,
};
use serde_json::json;
use uuid::Uuid;

use crate::{
    identity::{
        Identity,
        mails::{self, NewMail},
        sessions::{self, NewSession},
        sign_in::SignIn,
        tokens::TokenFault,
        users::{self, NewUser, User},
    },
    publishers::{
        Members,
        members::{self, acting_role, check_manages},
        publisher::Publisher,
    },
    store::{
        Scoped,
        change::{Answer, Audited, Context, audit_entry, lock_publisher},
        db::Tx,
        entity::{credentials, invitations, publishers},
        error::{Result, StoreError, corrupt_row},
        page::{Page, PageRequest},
        quota::over_quota,
        scope::OPERATOR,
    },
};

/// How long an invitation is good.
pub const INVITATION_LASTS: Duration = Duration::from_hours(7 * 24);
/// Most open invitations of a publisher.
const OPEN: u32 = 100;

domain::words! {
    /// What became of an invitation.
    pub enum InvitationStatus {
        /// It waits to be accepted.
        Pending = "pending",
        /// It was accepted.
        Accepted = "accepted",
        /// It was withdrawn.
        Revoked = "revoked",
        /// Nobody accepted it in time.
        Expired = "expired",
    }
}

/// An offer of membership.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invitation {
    /// The invitation's identifier.
    pub id: InvitationId,
    /// To whom it was mailed.
    pub address: EmailAddress,
    /// The role that it offers.
    pub role: Role,
    /// What became of it.
    pub status: InvitationStatus,
    /// Who invited: a person (`usr_…`) or a token (`tok_…`).
    pub invited_by: String,
    /// When it was created.
    pub created_at: Timestamp,
    /// Until when it can be accepted.
    pub expires_at: Timestamp,
    /// When it was accepted.
    pub accepted_at: Option<Timestamp>,
}

/// An invitation as the invited person sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnInvitation {
    /// The invitation.
    pub invitation: Invitation,
    /// The publisher that invites.
    pub publisher: Publisher,
}

/// What is given for a new invitation.
#[derive(Clone, Debug)]
pub struct NewInvitation {
    /// To whom it is mailed.
    pub address: EmailAddress,
    /// The role that it offers.
    pub role: Role,
    /// The hash of the text in the mailed link.
    pub hash: TokenHash,
    /// The mail.
    pub mail: NewMail,
}

/// A person who accepted an invitation.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// The publisher.
    pub publisher: Publisher,
    /// The role, which may be a higher one that the person had already.
    pub role: Role,
    /// The new session, if the mailed link was the proof.
    pub sign_in: Option<SignIn>,
}

fn invitation_of(row: invitations::Model, now: Timestamp) -> Result<Invitation> {
    let status = match (row.accepted_at, row.revoked_at) {
        (Some(_), _) => InvitationStatus::Accepted,
        (None, Some(_)) => InvitationStatus::Revoked,
        (None, None) if row.expires_at <= now.ms() => InvitationStatus::Expired,
        (None, None) => InvitationStatus::Pending,
    };
    Ok(Invitation {
        id: InvitationId::from_uuid(row.id),
        address: EmailAddress::parse(&row.address).ok_or_else(|| corrupt_row("invitation"))?,
        role: Role::parse(&row.role).ok_or_else(|| corrupt_row("role of an invitation"))?,
        status,
        invited_by: row.inviter_id,
        created_at: Timestamp::from_ms(row.created_at),
        expires_at: Timestamp::from_ms(row.expires_at),
        accepted_at: row.accepted_at.map(Timestamp::from_ms),
    })
}

/// The condition of invitations that wait to be accepted.
fn pending(now: Timestamp) -> Condition {
    use invitations::Column;
    Condition::all()
        .add(Column::AcceptedAt.is_null())
        .add(Column::RevokedAt.is_null())
        .add(Column::ExpiresAt.gt(now.ms()))
}

/// Withdraws the invitations of tokens that are revoked: what a token gave ends with it.
pub(crate) async fn withdraw_of_tokens(
    tx: &Tx,
    publisher: Uuid,
    tokens: impl IntoIterator<Item = Uuid>,
) -> Result<()> {
    use invitations::Column;
    let ids = tokens
        .into_iter()
        .map(|id| TokenId::from_uuid(id).to_string());
    invitations::Entity::update_many()
        .col_expr(Column::RevokedAt, Expr::value(Some(tx.now.ms())))
        .filter(Column::PublisherId.eq(publisher))
        .filter(Column::InviterId.is_in(ids))
        .filter(pending(tx.now))
        .exec(tx.db())
        .await?;
    Ok(())
}

/// Refuses unless the actor may offer the role. While a publisher has no owner, an admin token may
/// invite one that no `person` created; there is nobody else who could.
async fn check_offers(
    tx: &Tx,
    publisher: Uuid,
    (actor, person): (&Actor, Option<UserId>),
    role: Role,
) -> Result<()> {
    let machine = members::is_token(actor) && person.is_none();
    if role == Role::Owner && machine && members::owners(tx, publisher).await? == 0 {
        return Ok(());
    }
    check_manages(acting_role(tx, publisher, actor).await?, role)
}

/// Refuses unless the inviter could still offer the role.
async fn check_inviter(tx: &Tx, row: &invitations::Model, role: Role) -> Result<()> {
    let lost = || StoreError::from(Code::InviterLostRights);
    let kind = ActorKind::parse(&row.inviter_kind).ok_or_else(|| corrupt_row("inviter"))?;
    let actor = Actor {
        kind,
        id: row.inviter_id.clone(),
    };
    let mut person = None;
    if let Some(user) = actor.user_id() {
        let inviter = users::read(tx.db(), user).await?;
        if !inviter.is_some_and(|inviter| inviter.is_enabled()) {
            return Err(lost());
        }
    } else if kind == ActorKind::Admin {
        // The invitations of a token that was revoked are withdrawn with it. One that was rotated,
        // or has expired, has given what it gave.
        let id = TokenId::parse(&row.inviter_id).ok_or_else(|| corrupt_row("inviter"))?;
        let token = credentials::Entity::find_by_id((row.publisher_id, id.uuid()))
            .one(tx.db())
            .await?;
        let minter = token.and_then(|token| token.minted_by);
        person = minter.map(UserId::from_uuid);
    }
    let may = check_offers(tx, row.publisher_id, (&actor, person), role).await;
    may.map_err(|error| match error {
        StoreError::Refused(_) => lost(),
        other => other,
    })
}

impl Members<Scoped> {
    /// Offers a membership, and mails it.
    ///
    /// # Errors
    /// `already_member`; `role_too_low` if who asks is below the role; `quota_exceeded`.
    pub async fn invite<A>(
        &self,
        context: &Context,
        new: &NewInvitation,
        render: A,
    ) -> Result<Answer, StoreError>
    where
        A: Fn(&Invitation) -> Answer + Send + Sync,
    {
        let (owner, store) = (self.scope.uuid(), &self.store);
        let work = |tx: Tx| async move {
            check_offers(&tx, owner, (&context.actor, tx.member()), new.role).await?;
            if let Some(user) = users::with_address(tx.db(), &new.address).await?
                && members::find(tx.db(), owner, user.id).await?.is_some()
            {
                return Err(Code::AlreadyMember.into());
            }
            let open = invitations::Entity::find()
                .filter(invitations::Column::PublisherId.eq(owner))
                .filter(pending(tx.now));
            if open.count(tx.db()).await? >= u64::from(OPEN) {
                return Err(over_quota("open invitations", OPEN));
            }
            // A new one takes the place of older ones to the same address.
            invitations::Entity::update_many()
                .col_expr(
                    invitations::Column::RevokedAt,
                    Expr::value(Some(tx.now.ms())),
                )
                .filter(invitations::Column::PublisherId.eq(owner))
                .filter(invitations::Column::Address.eq(new.address.as_str()))
                .filter(pending(tx.now))
                .exec(tx.db())
                .await?;
            let row = invitations::Model {
                publisher_id: owner,
                id: InvitationId::generate(tx.now).uuid(),
                address: new.address.to_string(),
                role: new.role.as_str().to_owned(),
                hash: new.hash.as_bytes().to_vec(),
                inviter_kind: context.actor.kind.as_str().to_owned(),
                inviter_id: context.actor.id.clone(),
                created_at: tx.now.ms(),
                expires_at: tx.now.plus(INVITATION_LASTS).ms(),
                accepted_at: None,
                accepted_by: None,
                revoked_at: None,
            };
            let active: invitations::ActiveModel = row.clone().into();
            invitations::Entity::insert(sea_orm::ActiveModelTrait::reset_all(active))
                .exec_without_returning(tx.db())
                .await?;
            mails::write(store, &tx, &new.mail).await?;
            let invitation = invitation_of(row, tx.now)?;
            let facts = json!({
                "address": new.address.as_str(),
                "role": new.role.as_str(),
            });
            let entry = audit_entry(
                Action::InvitationCreated,
                "invitation",
                invitation.id,
                facts,
            );
            Ok(Audited::new(invitation, owner, entry))
        };
        self.store.administer(context, owner, work, render).await
    }

    /// The publisher's invitations, newest first.
    pub async fn invitations(
        &self,
        page: PageRequest<Uuid>,
    ) -> Result<Page<Invitation, Uuid>, StoreError> {
        let mut query = invitations::Entity::find()
            .filter(invitations::Column::PublisherId.eq(self.scope.uuid()));
        if let Some(after) = page.after {
            query = query.filter(invitations::Column::Id.lt(after));
        }
        let rows = query
            .order_by_desc(invitations::Column::Id)
            .limit(page.fetch())
            .all(self.store.read())
            .await?;
        let now = self.store.now();
        page.cut(rows, |row| row.id)
            .try_map(|row| invitation_of(row, now))
    }

    /// One invitation.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn invitation(&self, id: InvitationId) -> Result<Invitation, StoreError> {
        let row = invitations::Entity::find_by_id((self.scope.uuid(), id.uuid()))
            .one(self.store.read())
            .await?;
        invitation_of(row.ok_or_else(Problem::not_found)?, self.store.now())
    }

    /// Mails a pending or expired invitation again, with a new link and a new week.
    ///
    /// # Errors
    /// `not_found` if there is none, or it was accepted or withdrawn; `role_too_low`.
    pub async fn resend_invitation<A>(
        &self,
        context: &Context,
        id: InvitationId,
        (hash, mail): (TokenHash, &NewMail),
        render: A,
    ) -> Result<Answer, StoreError>
    where
        A: Fn(&Invitation) -> Answer + Send + Sync,
    {
        let (owner, store) = (self.scope.uuid(), &self.store);
        let work = |tx: Tx| async move {
            let mut row = open_row(&tx, owner, id).await?;
            let role = invitation_of(row.clone(), tx.now)?.role;
            check_offers(&tx, owner, (&context.actor, tx.member()), role).await?;
            row.hash = hash.as_bytes().to_vec();
            row.expires_at = tx.now.plus(INVITATION_LASTS).ms();
            context
                .actor
                .kind
                .as_str()
                .clone_into(&mut row.inviter_kind);
            row.inviter_id.clone_from(&context.actor.id);
            let active: invitations::ActiveModel = row.clone().into();
            invitations::Entity::update(sea_orm::ActiveModelTrait::reset_all(active))
                .exec(tx.db())
                .await?;
            mails::write(store, &tx, mail).await?;
            let entry = audit_entry(Action::InvitationResent, "invitation", id, json!({}));
            Ok(Audited::new(invitation_of(row, tx.now)?, owner, entry))
        };
        self.store.administer(context, owner, work, render).await
    }

    /// Withdraws an invitation.
    ///
    /// # Errors
    /// `not_found` if there is none, or it was accepted or withdrawn; `role_too_low`.
    pub async fn revoke_invitation<A>(
        &self,
        context: &Context,
        id: InvitationId,
        render: A,
    ) -> Result<Answer, StoreError>
    where
        A: Fn(&Invitation) -> Answer + Send + Sync,
    {
        let owner = self.scope.uuid();
        let work = |tx: Tx| async move {
            let mut row = open_row(&tx, owner, id).await?;
            let role = invitation_of(row.clone(), tx.now)?.role;
            check_offers(&tx, owner, (&context.actor, tx.member()), role).await?;
            row.revoked_at = Some(tx.now.ms());
            let active: invitations::ActiveModel = row.clone().into();
            invitations::Entity::update(sea_orm::ActiveModelTrait::reset_all(active))
                .exec(tx.db())
                .await?;
            let entry = audit_entry(Action::InvitationRevoked, "invitation", id, json!({}));
            Ok(Audited::new(invitation_of(row, tx.now)?, owner, entry))
        };
        self.store.administer(context, owner, work, render).await
    }
}

/// An invitation that was neither accepted nor withdrawn.
async fn open_row(tx: &Tx, publisher: Uuid, id: InvitationId) -> Result<invitations::Model> {
    let row = invitations::Entity::find_by_id((publisher, id.uuid()))
        .one(tx.db())
        .await?;
    row.filter(|row| row.accepted_at.is_none() && row.revoked_at.is_none())
        .ok_or_else(|| Problem::not_found().into())
}

async fn by_hash(
    db: &impl ConnectionTrait,
    hash: &TokenHash,
) -> Result<Option<invitations::Model>> {
    Ok(invitations::Entity::find()
        .filter(invitations::Column::Hash.eq(hash.as_bytes().to_vec()))
        .one(db)
        .await?)
}

fn fault_of(invitation: &Invitation) -> Option<TokenFault> {
    match invitation.status {
        InvitationStatus::Pending => None,
        InvitationStatus::Accepted => Some(TokenFault::Used),
        InvitationStatus::Revoked | InvitationStatus::Expired => Some(TokenFault::Expired),
    }
}

impl Identity {
    /// The invitation whose link holds this text; or why it is not good.
    pub async fn invitation_of_link(
        &self,
        hash: &TokenHash,
    ) -> Result<std::result::Result<OwnInvitation, TokenFault>, StoreError> {
        let db = self.store.read();
        let Some(row) = by_hash(db, hash).await? else {
            return Ok(Err(TokenFault::Unknown));
        };
        let publisher = publishers::Entity::find_by_id(row.publisher_id)
            .one(db)
            .await?
            .filter(|row| row.deleted_at.is_none());
        let Some(publisher) = publisher else {
            return Ok(Err(TokenFault::Expired));
        };
        let invitation = invitation_of(row, self.store.now())?;
        Ok(match fault_of(&invitation) {
            Some(fault) => Err(fault),
            None => Ok(OwnInvitation {
                invitation,
                publisher: Publisher::of_row(publisher)?,
            }),
        })
    }

    /// The invitations that wait for a user's verified address, newest first.
    pub async fn own_invitations(&self, user: &User) -> Result<Vec<OwnInvitation>, StoreError> {
        if user.verified_at.is_none() {
            return Ok(Vec::new());
        }
        let (db, now) = (self.store.read(), self.store.now());
        let rows = invitations::Entity::find()
            .filter(invitations::Column::Address.eq(user.address.as_str()))
            .filter(pending(now))
            .order_by_desc(invitations::Column::Id)
            .limit(200)
            .all(db)
            .await?;
        let mut all = Vec::with_capacity(rows.len());
        for row in rows {
            let publisher = publishers::Entity::find_by_id(row.publisher_id)
                .one(db)
                .await?;
            if let Some(publisher) = publisher.filter(|row| row.deleted_at.is_none()) {
                all.push(OwnInvitation {
                    invitation: invitation_of(row, now)?,
                    publisher: Publisher::of_row(publisher)?,
                });
            }
        }
        Ok(all)
    }

    /// Accepts an invitation for a user who is signed in and has its verified address.
    ///
    /// # Errors
    /// `not_found` if the user has no such invitation;
    /// `link_used`, `link_expired`; `inviter_lost_rights`; `quota_exceeded`.
    pub async fn accept_own_invitation(
        &self,
        context: &Context,
        user: UserId,
        id: InvitationId,
    ) -> Result<Accepted, StoreError> {
        self.change(context, |tx| async move {
            let user = users::read(tx.db(), user).await?;
            let user = user.filter(|user| user.verified_at.is_some());
            let user = user.ok_or_else(Problem::not_found)?;
            // What is somebody else's is answered as if it were not there.
            let row = invitations::Entity::find()
                .filter(invitations::Column::Address.eq(user.address.as_str()))
                .filter(invitations::Column::Id.eq(id.uuid()))
                .one(tx.db())
                .await?
                .ok_or_else(Problem::not_found)?;
            accept(&tx, row, &user).await
        })
        .await
    }

    /// Accepts an invitation by its mailed link, which proves that the person receives the
    /// address's mail. Signs the person in; an address of nobody becomes a new user's, also where
    /// registration is closed.
    ///
    /// # Errors
    /// As above, and `user_disabled`.
    pub async fn accept_invitation(
        &self,
        context: &Context,
        hash: &TokenHash,
        new: &NewSession,
    ) -> Result<Accepted, StoreError> {
        self.change(context, |tx| async move {
            let row = by_hash(tx.db(), hash).await?;
            let row = row.ok_or(Code::LinkInvalid)?;
            lock_publisher(&tx, row.publisher_id).await?;
            let address =
                EmailAddress::parse(&row.address).ok_or_else(|| corrupt_row("invitation"))?;
            let (user, registered) = match users::with_address(tx.db(), &address).await? {
                Some(user) if !user.is_enabled() => return Err(Code::UserDisabled.into()),
                Some(user) => {
                    users::verify(&tx, &address).await?;
                    (user, false)
                }
                None => {
                    let new = NewUser {
                        address,
                        verified: true,
                        display_name: None,
                        staff: false,
                    };
                    (users::insert(&tx, &new).await?, true)
                }
            };
            let accepted = accept(&tx, row, &user).await?;
            let made = registered.then_some(user.id);
            let session = sessions::begin(&tx, context, user.id, new).await?;
            // The link is days old and may have been passed on: for a user who was there it is no
            // proof for what needs a recent one.
            if made.is_none() {
                sessions::is_no_recent_proof(&tx, session.id).await?;
            }
            let facts = json!({ "method": new.method.as_str(), "session": session.id.to_string() });
            let entry = audit_entry(Action::SignInSucceeded, "user", user.id, facts);
            let sign_in = SignIn {
                user,
                session,
                registered,
                payload: None,
            };
            let accepted = accepted.map(|accepted| Accepted {
                sign_in: Some(sign_in),
                ..accepted
            });
            let audited = accepted.and(&[OPERATOR], entry);
            let Some(made) = made else {
                return Ok(audited);
            };
            let facts = json!({ "by": "invitation" });
            let entry = audit_entry(Action::UserCreated, "user", made, facts);
            Ok(audited.and(&[OPERATOR], entry))
        })
        .await
    }
}

async fn accept(tx: &Tx, row: invitations::Model, user: &User) -> Result<Audited<Accepted>> {
    let owner = row.publisher_id;
    lock_publisher(tx, owner).await?;
    let publisher = publishers::Entity::find_by_id(owner)
        .one(tx.db())
        .await?
        .filter(|row| row.deleted_at.is_none())
        .ok_or(Code::LinkExpired)?;
    let publisher = Publisher::of_row(publisher)?;
    // Read again under the lock.
    let row = invitations::Entity::find_by_id((owner, row.id))
        .one(tx.db())
        .await?
        .ok_or(Code::LinkInvalid)?;
    let invitation = invitation_of(row.clone(), tx.now)?;
    match fault_of(&invitation) {
        Some(TokenFault::Used) => return Err(Code::LinkUsed.into()),
        Some(_) => return Err(Code::LinkExpired.into()),
        None => {}
    }
    check_inviter(tx, &row, invitation.role).await?;
    invitations::Entity::update(invitations::ActiveModel {
        publisher_id: Set(owner),
        id: Set(row.id),
        accepted_at: Set(Some(tx.now.ms())),
        accepted_by: Set(Some(user.id.uuid())),
        ..Default::default()
    })
    .exec(tx.db())
    .await?;
    let id = invitation.id;
    let facts = json!({ "user": user.id.to_string() });
    let taken = audit_entry(Action::InvitationAccepted, "invitation", id, facts);
    // Who is a member already keeps the role: an invitation takes nothing away.
    if let Some(member) = members::find(tx.db(), owner, user.id).await? {
        let accepted = Accepted {
            publisher,
            role: members::role_of(&member)?,
            sign_in: None,
        };
        return Ok(Audited::new(accepted, owner, taken));
    }
    members::add(tx, owner, user.id, invitation.role).await?;
    let facts = json!({ "role": invitation.role.as_str(), "invitation": id.to_string() });
    let joined = audit_entry(Action::MemberAdded, "user", user.id, facts);
    let accepted = Accepted {
        publisher,
        role: invitation.role,
        sign_in: None,
    };
    Ok(Audited::new(accepted, owner, taken).and(&[owner], joined))
}

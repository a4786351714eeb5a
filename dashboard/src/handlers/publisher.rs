//! One's publishers, and their members.

use poem::{handler, http::StatusCode, web::Path};
use serde::Deserialize;

use domain::{
    FaultCode, Problem,
    id::{Id as _, InvitationId, UserId},
    limits::PAGE_MAX,
    people::Role,
    permission::Permission,
};
use identity::Service;
use persistence::{
    Answer as Stored, InvitationStatus, Membership, PageRequest, PublisherStatus, StoreError,
};

use crate::{
    handlers::{Answer, done, join},
    page,
    stop::{Stop, explain},
    views::{
        Confirm, Field, Moment,
        publisher::{Home, Member, OwnPublisher, Publisher, SentInvitation, WaitingInvitation},
    },
    visit::{Member as Viewer, Nothing, Posted, Visit},
};

/// `GET /`
#[handler]
pub(crate) async fn show_home(visit: &Visit) -> Answer {
    let who = visit.need("/")?;
    let identity = visit.store().identity();
    let memberships = identity.memberships(who.user.id).await?;
    let mut invitations = Vec::new();
    for one in visit.service().own_invitations(who).await? {
        invitations.push(WaitingInvitation {
            id: one.invitation.id.to_string(),
            inviter: join::inviter(visit, &one).await?,
            publisher: one.publisher.display_name,
            role: one.invitation.role.into(),
            expires: Moment::of(one.invitation.expires_at),
        });
    }
    let mut view = Home {
        frame: visit.frame("Your publishers"),
        publishers: memberships
            .into_iter()
            .map(|one| OwnPublisher {
                slug: one.publisher.slug,
                name: one.publisher.display_name,
                role: one.role.as_str(),
                suspended: one.publisher.status == PublisherStatus::Suspended,
            })
            .collect(),
        invitations,
    };
    view.frame.done = done(visit.query("done").as_deref());
    Ok(page::answer(StatusCode::OK, &view))
}

/// As many rows as one page of a list has.
fn first<K>() -> PageRequest<K> {
    PageRequest {
        limit: PAGE_MAX.into(),
        after: None,
    }
}

/// What the store would keep for a repeated request; pages send no key for one.
fn nothing<T>(_: &T) -> Stored {
    Stored::new(204, String::new())
}

/// All pages of a list, which the store bounds.
async fn all_members(viewer: &Viewer) -> Result<Vec<Membership>, StoreError> {
    let mut request = first();
    let mut all = Vec::new();
    loop {
        let page = viewer.members.members(request).await?;
        all.extend(page.items);
        match page.next {
            Some(after) => request.after = Some(after),
            None => return Ok(all),
        }
    }
}

async fn view(visit: &Visit, viewer: &Viewer) -> Result<Publisher, Stop> {
    let acting = viewer.principal.member().ok_or_else(Problem::not_found)?;
    let manages = viewer.principal.holds(Permission::MembersWrite);
    let members = all_members(viewer).await?;
    let invitations = if viewer.principal.holds(Permission::InvitationsRead) {
        viewer.members.invitations(first()).await?.items
    } else {
        Vec::new()
    };
    let publisher = &viewer.principal.publisher;
    let roles = Role::ALL
        .into_iter()
        .filter(|role| acting.role.manages(*role));
    Ok(Publisher {
        frame: visit.frame(publisher.display_name.clone()),
        slug: publisher.slug.clone(),
        name: publisher.display_name.clone(),
        role: acting.role.into(),
        suspended: publisher.status == PublisherStatus::Suspended,
        members: members
            .into_iter()
            .map(|one| Member {
                own: one.user == acting.user,
                manageable: manages && one.user != acting.user && acting.role.manages(one.role),
                id: one.user.to_string(),
                name: name_of(&one),
                email: one.address.to_string(),
                role: one.role.as_str(),
                last_seen: one.last_seen_at.map(Moment::of),
            })
            .collect(),
        invitations: invitations
            .into_iter()
            .filter(|one| one.status == InvitationStatus::Pending)
            .map(|one| SentInvitation {
                id: one.id.to_string(),
                email: one.address.to_string(),
                role: one.role.as_str(),
                expires: Moment::of(one.expires_at),
            })
            .collect(),
        roles: roles.map(Into::into).collect(),
        email: Field::default(),
        chosen: Role::Viewer.as_str().to_owned(),
    })
}

fn name_of(member: &Membership) -> String {
    let name = member.display_name.clone();
    name.unwrap_or_else(|| member.address.to_string())
}

/// `GET /p/{slug}`
#[handler]
pub(crate) async fn show(visit: &Visit, Path(slug): Path<String>) -> Answer {
    let viewer = visit.need_member(&slug, Permission::MembersRead).await?;
    let mut view = view(visit, &viewer).await?;
    view.frame.done = done(visit.query("done").as_deref());
    Ok(page::answer(StatusCode::OK, &view))
}

fn role_of(text: &str) -> Result<Role, Problem> {
    Role::parse(text)
        .ok_or_else(|| Problem::field("/role", FaultCode::NotAllowed, "There is no such role."))
}

/// What the form that invites sends.
#[derive(Deserialize)]
pub(crate) struct InviteForm {
    email: String,
    role: String,
}

/// `POST /p/{slug}/invitations`
#[handler]
pub(crate) async fn invite(
    visit: &Visit,
    Path(slug): Path<String>,
    Posted(form): Posted<InviteForm>,
) -> Answer {
    let viewer = visit
        .need_member(&slug, Permission::InvitationsWrite)
        .await?;
    let role = role_of(&form.role)?;
    let context = visit.context_for(Permission::InvitationsWrite);
    let invited: Result<_, StoreError> = match Service::address(&form.email, "/email") {
        Ok(address) => {
            let invited = visit.service().invite(
                (&context, &viewer.principal),
                (&address, role),
                None,
                nothing,
            );
            invited.await
        }
        Err(problem) => Err(problem.into()),
    };
    match invited {
        Ok(_) => Ok(page::see_other(&format!("/p/{slug}?done=invited"))),
        Err(error) => {
            let mut view = view(visit, &viewer).await?;
            view.email = Field::of(form.email);
            view.chosen = form.role;
            let mut fields = [("email", &mut view.email)];
            let status = explain(error, &mut view.frame, &mut fields)?;
            Ok(page::answer(status, &view))
        }
    }
}

/// `POST /p/{slug}/invitations/{invitation}/revoke`
#[handler]
pub(crate) async fn withdraw(
    visit: &Visit,
    Path((slug, id)): Path<(String, String)>,
    Posted(Nothing {}): Posted<Nothing>,
) -> Answer {
    let viewer = visit
        .need_member(&slug, Permission::InvitationsWrite)
        .await?;
    let id = InvitationId::parse(&id).ok_or_else(Problem::not_found)?;
    let context = visit.context_for(Permission::InvitationsWrite);
    let withdrawn = viewer.members.revoke_invitation(&context, id, nothing);
    withdrawn.await?;
    Ok(page::see_other(&format!("/p/{slug}?done=withdrawn")))
}

/// `POST /p/{slug}/invitations/{invitation}/resend`
#[handler]
pub(crate) async fn resend(
    visit: &Visit,
    Path((slug, id)): Path<(String, String)>,
    Posted(Nothing {}): Posted<Nothing>,
) -> Answer {
    let viewer = visit
        .need_member(&slug, Permission::InvitationsWrite)
        .await?;
    let id = InvitationId::parse(&id).ok_or_else(Problem::not_found)?;
    let context = visit.context_for(Permission::InvitationsWrite);
    let who = (&context, viewer.principal.as_ref());
    visit.service().resend_invitation(who, id, nothing).await?;
    Ok(page::see_other(&format!("/p/{slug}?done=invited")))
}

/// What the form of a member's role sends.
#[derive(Deserialize)]
pub(crate) struct RoleForm {
    role: String,
}

/// `POST /p/{slug}/members/{member}/role`
#[handler]
pub(crate) async fn change_role(
    visit: &Visit,
    Path((slug, id)): Path<(String, String)>,
    Posted(form): Posted<RoleForm>,
) -> Answer {
    let viewer = visit.need_member(&slug, Permission::MembersWrite).await?;
    let user = UserId::parse(&id).ok_or_else(Problem::not_found)?;
    let (context, role) = (
        visit.context_for(Permission::MembersWrite),
        role_of(&form.role)?,
    );
    let changed = viewer
        .members
        .change_role(&context, user, role, None, nothing);
    match changed.await {
        Ok(_) => Ok(page::see_other(&format!("/p/{slug}?done=role"))),
        Err(error) => {
            let mut view = view(visit, &viewer).await?;
            let status = explain(error, &mut view.frame, &mut [])?;
            Ok(page::answer(status, &view))
        }
    }
}

/// Who removes a member: a person may leave without having signed in a moment ago.
async fn remover(visit: &Visit, slug: &str, user: UserId) -> Result<Viewer, Stop> {
    let leaves = visit
        .signed_in()
        .is_some_and(|signed_in| signed_in.user.id == user);
    let permission = if leaves {
        Permission::MembershipLeave
    } else {
        Permission::MembersWrite
    };
    visit.need_member(slug, permission).await
}

/// `GET /p/{slug}/members/{member}/remove`
#[handler]
pub(crate) async fn ask_remove(visit: &Visit, Path((slug, id)): Path<(String, String)>) -> Answer {
    let user = UserId::parse(&id).ok_or_else(Problem::not_found)?;
    let viewer = remover(visit, &slug, user).await?;
    let member = viewer.members.membership(user).await?;
    let minted = viewer.members.minted_by(user).await?;
    let own = viewer.principal.member().map(|acting| acting.user) == Some(user);
    let (name, publisher) = (name_of(&member), &viewer.principal.publisher.display_name);
    let (title, words, button) = if own {
        (
            format!("Leave {publisher}?"),
            format!("You will have no access to {publisher} any more, at once."),
            format!("Leave {publisher}"),
        )
    } else {
        (
            format!("Remove {name}?"),
            format!("{name} will have no access to {publisher} any more, at once."),
            format!("Remove {name}"),
        )
    };
    let mut paragraphs = vec![words];
    let choice = match minted.len() {
        0 => None,
        1 => Some("Revoke this token, too".to_owned()),
        count => Some(format!("Revoke these {count} tokens, too")),
    };
    if choice.is_some() {
        let who = if own { "you" } else { "this person" };
        paragraphs.push(format!(
            "What follows was minted by {who} and stays valid unless you revoke it now:"
        ));
    }
    let list = minted.into_iter().map(|token| {
        let kind = if token.train {
            "token of a train"
        } else {
            "token"
        };
        let name = token.name.unwrap_or_else(|| "without a name".to_owned());
        format!("{name} ({kind}, ends in {})", token.last_four)
    });
    Ok(page::answer(
        StatusCode::OK,
        &Confirm {
            frame: visit.frame(title),
            paragraphs,
            list: list.collect(),
            action: format!("/p/{slug}/members/{id}/remove"),
            hidden: Vec::new(),
            choice: choice.map(|words| ("revoke", words)),
            button,
            destructive: true,
            cancel: Some(format!("/p/{slug}")),
        },
    ))
}

/// What the form that removes a member sends.
#[derive(Deserialize)]
pub(crate) struct RemoveForm {
    revoke: Option<String>,
}

/// `POST /p/{slug}/members/{member}/remove`
#[handler]
pub(crate) async fn remove(
    visit: &Visit,
    Path((slug, id)): Path<(String, String)>,
    Posted(form): Posted<RemoveForm>,
) -> Answer {
    let user = UserId::parse(&id).ok_or_else(Problem::not_found)?;
    let viewer = remover(visit, &slug, user).await?;
    let how = (form.revoke.is_some(), None);
    let context = visit.context_for(Permission::MembershipLeave);
    let removed = viewer.members.remove_member(&context, user, how, nothing);
    match removed.await {
        Ok(_) if visit.signed_in().is_some_and(|who| who.user.id == user) => {
            Ok(page::see_other("/?done=left"))
        }
        Ok(_) => Ok(page::see_other(&format!("/p/{slug}?done=removed"))),
        Err(error) => {
            let mut view = view(visit, &viewer).await?;
            let status = explain(error, &mut view.frame, &mut [])?;
            Ok(page::answer(status, &view))
        }
    }
}

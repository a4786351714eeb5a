//! What a signed-in person sees and changes of themselves.

use poem_openapi::{Object, OpenApi, types::MaybeUndefined};
use secrecy::SecretString;
use view_derive::Example;

use ::identity::{ADDRESS_CHANGE_LASTS, Service};
use domain::{
    id::{InvitationId, SessionId},
    permission::{MeRead, MeSecure, MeWrite},
};

use super::{
    sign_in::{MailRequested, mailed},
    views::{
        AcceptedView, EXAMPLE_EMAIL, MeView, OwnInvitations, OwnMemberships, Sessions, UserView,
    },
};
use crate::{
    auth::Person,
    shared::{Accepted, NoContent, Ok, Path, Tag, change, no_content},
};
use web::http::{ApiError, Body, Patch};

/// What a person changes of themselves.
#[derive(Object, Example)]
#[oai(
    rename = "MePatch",
    example,
    deny_unknown_fields,
    skip_serializing_if_is_none
)]
struct MePatch {
    /// The person's name; null removes it.
    #[oai(nullable, validator(max_length = 120))]
    #[example(MaybeUndefined::Value("Ada Lovelace".to_owned()))]
    name: MaybeUndefined<String>,
}

/// A new password.
#[derive(Object, Example)]
#[oai(rename = "NewPassword", example, deny_unknown_fields)]
struct NewPassword {
    /// A password of 8 characters or more, and of 1024 bytes at most, that is not a common one.
    #[oai(validator(max_length = 1024))]
    #[example("correct horse battery staple")]
    password: String,
}

/// A new address.
#[derive(Object, Example)]
#[oai(rename = "NewAddress", example, deny_unknown_fields)]
struct NewAddress {
    /// The address.
    #[oai(validator(max_length = 254))]
    #[example(EXAMPLE_EMAIL)]
    email: String,
}

/// The operations of people on themselves.
pub(crate) struct Me;

#[OpenApi(prefix_path = "/v1/me", tag = "Tag::People")]
impl Me {
    /// Get the person who is signed in
    ///
    /// With the token that changes of the session have to carry.
    #[oai(path = "/", method = "get", operation_id = "get_me")]
    async fn get(&self, person: Person<MeRead>) -> Result<Ok<MeView>, ApiError> {
        let (people, who) = (&person.app().people, &person.who);
        let view = MeView {
            user: (&who.user).into(),
            session: (&who.session).into(),
            recent_sign_in: people.is_recent(who.session.authenticated_at),
            has_password: people.has_password(who.user.id).await?,
            csrf_token: person.csrf_token,
        };
        Ok(Ok::show(&view, None))
    }

    /// Update the person who is signed in
    #[oai(path = "/", method = "patch", operation_id = "update_me")]
    async fn update(
        &self,
        person: Person<MeWrite>,
        body: Patch<MePatch>,
    ) -> Result<Ok<UserView>, ApiError> {
        let people = &person.app().people;
        let user = match change(body.0.name) {
            Some(name) => {
                people
                    .rename(&person.context(), &person.who, name.as_deref())
                    .await?
            }
            None => person.who.user.clone(),
        };
        Ok(Ok::show(&UserView::from(user), None))
    }

    /// List one's own sessions
    #[oai(path = "/sessions", method = "get", operation_id = "list_own_sessions")]
    async fn sessions(&self, person: Person<MeRead>) -> Result<Ok<Sessions>, ApiError> {
        let who = &person.who;
        let all = person.app().people.sessions(who.user.id).await?;
        let view = Sessions {
            items: all.iter().map(Into::into).collect(),
            current: who.session.id.to_string(),
        };
        Ok(Ok::show(&view, None))
    }

    /// End one of one's own sessions
    ///
    /// It has ended when the answer arrives, on other processes within a second.
    #[oai(
        path = "/sessions/:id",
        method = "delete",
        operation_id = "end_own_session"
    )]
    async fn end_session(
        &self,
        person: Person<MeWrite>,
        Path(id): Path<SessionId>,
    ) -> Result<NoContent, ApiError> {
        let people = &person.app().people;
        people
            .end_own_session(&person.context(), person.who.user.id, id)
            .await?;
        Ok(no_content().into())
    }

    /// End all of one's other sessions
    #[oai(
        path = "/sessions",
        method = "delete",
        operation_id = "end_other_sessions"
    )]
    async fn end_others(&self, person: Person<MeWrite>) -> Result<NoContent, ApiError> {
        let (people, who) = (&person.app().people, &person.who);
        people
            .end_sessions(&person.context(), who.user.id, Some(who.session.id))
            .await?;
        Ok(no_content().into())
    }

    /// Set one's own password
    ///
    /// All other sessions end, and no mailed link is good any more. A mail tells of it.
    #[oai(path = "/password", method = "put", operation_id = "set_own_password")]
    async fn set_password(
        &self,
        person: Person<MeSecure>,
        body: Body<NewPassword>,
    ) -> Result<NoContent, ApiError> {
        let password = SecretString::from(body.0.password);
        let people = &person.app().people;
        people
            .change_password(&person.context(), &person.who, &password)
            .await?;
        Ok(no_content().into())
    }

    /// Remove one's own password
    #[oai(
        path = "/password",
        method = "delete",
        operation_id = "remove_own_password"
    )]
    async fn remove_password(&self, person: Person<MeSecure>) -> Result<NoContent, ApiError> {
        let people = &person.app().people;
        people
            .remove_password(&person.context(), &person.who)
            .await?;
        Ok(no_content().into())
    }

    /// Request a change of one's own address
    ///
    /// Mails a link to the new address. The address changes when it is opened; whether it is
    /// another user's shows only then.
    #[oai(
        path = "/email",
        method = "post",
        operation_id = "request_email_change"
    )]
    async fn change_email(
        &self,
        person: Person<MeSecure>,
        body: Body<NewAddress>,
    ) -> Result<Accepted<MailRequested>, ApiError> {
        let address = Service::address(&body.0.email, "/email")?;
        let people = &person.app().people;
        people
            .request_address_change(&person.context(), &person.who, &address)
            .await?;
        Ok(mailed(ADDRESS_CHANGE_LASTS))
    }

    /// List one's own memberships
    ///
    /// The publishers that a request of the session may name.
    #[oai(
        path = "/memberships",
        method = "get",
        operation_id = "list_own_memberships"
    )]
    async fn memberships(&self, person: Person<MeRead>) -> Result<Ok<OwnMemberships>, ApiError> {
        let all = person.app().people.memberships(person.who.user.id).await?;
        let items = all.iter().map(Into::into).collect();
        Ok(Ok::show(&OwnMemberships { items }, None))
    }

    /// List the invitations that wait for one
    #[oai(
        path = "/invitations",
        method = "get",
        operation_id = "list_own_invitations"
    )]
    async fn invitations(&self, person: Person<MeRead>) -> Result<Ok<OwnInvitations>, ApiError> {
        let all = person.app().people.own_invitations(&person.who).await?;
        let items = all.iter().map(Into::into).collect();
        Ok(Ok::show(&OwnInvitations { items }, None))
    }

    /// Accept an invitation to one's own verified address
    #[oai(
        path = "/invitations/:id/accept",
        method = "post",
        operation_id = "accept_own_invitation"
    )]
    async fn accept(
        &self,
        person: Person<MeWrite>,
        Path(id): Path<InvitationId>,
    ) -> Result<Ok<AcceptedView>, ApiError> {
        let people = &person.app().people;
        let accepted = people
            .accept_own_invitation(&person.context(), &person.who, id)
            .await?;
        Ok(Ok::show(&AcceptedView::from(accepted), None))
    }
}

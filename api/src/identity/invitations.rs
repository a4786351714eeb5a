//! Invitations to a publisher, as its members and its admin tokens see them.

use std::sync::Arc;

use poem_openapi::{Object, OpenApi};
use view_derive::Example;

use ::identity::Service;
use domain::{
    id::InvitationId,
    people::Role,
    permission::{InvitationsRead, InvitationsWrite},
};
use persistence::{Answer, Invitation};

use super::views::{EXAMPLE_EMAIL, InvitationView};
use crate::{
    auth::Caller,
    shared::{
        App, Created, Idempotency, Listed, NoContent, Ok, PageQuery, Path, Tag, Word, answer,
        created, no_content,
    },
};
use web::http::{ApiError, Body};

/// Who is invited.
#[derive(Object, Example)]
#[oai(
    rename = "NewInvitation",
    example,
    deny_unknown_fields,
    skip_serializing_if_is_none
)]
struct NewInvitationRequest {
    /// The address to which the invitation is mailed.
    #[oai(validator(max_length = 254))]
    #[example(EXAMPLE_EMAIL)]
    email: String,
    /// The role that is offered. Nobody offers one above one's own. While a publisher has no owner,
    /// its admin token may offer that role.
    #[example(Role::Developer)]
    role: Word<Role>,
    /// A few words for the mail.
    #[oai(validator(min_length = 1, max_length = 1000))]
    #[example("Welcome aboard.")]
    message: Option<String>,
}

fn shown(invitation: &Invitation) -> Answer {
    answer(200, &InvitationView::from(invitation))
}

fn made(invitation: &Invitation) -> Answer {
    let location = format!("/v1/invitations/{}", invitation.id);
    created(shown(invitation), location)
}

/// A publisher's invitations.
pub(crate) struct Invitations {
    pub(crate) app: Arc<App>,
}

#[OpenApi(prefix_path = "/v1/invitations", tag = "Tag::Members")]
impl Invitations {
    /// List invitations
    ///
    /// Newest first, those that were accepted or withdrawn among them.
    #[oai(path = "/", method = "get", operation_id = "list_invitations")]
    async fn list(
        &self,
        who: Caller<InvitationsRead>,
        page: PageQuery,
    ) -> Result<Listed<InvitationView>, ApiError> {
        let list = who.list(page).await?;
        let page = who.scoped().members().invitations(list.page()?).await?;
        Ok(list.answer(page, Into::into))
    }

    /// Create an invitation
    ///
    /// Mails a link that is good for 7 days. A newer invitation to the same address takes the place
    /// of older ones.
    #[oai(path = "/", method = "post", operation_id = "create_invitation")]
    async fn create(
        &self,
        who: Caller<InvitationsWrite>,
        key: Idempotency,
        body: Body<NewInvitationRequest>,
    ) -> Result<Created<InvitationView>, ApiError> {
        let body = body.0;
        let address = Service::address(&body.email, "/email")?;
        let context = who.context_with(key);
        let (by, offer) = ((&context, who.principal.as_ref()), (&address, body.role.0));
        let people = &self.app.people;
        let answer = people.invite(by, offer, body.message.as_deref(), made);
        Ok(answer.await?.into())
    }

    /// Get an invitation
    #[oai(path = "/:id", method = "get", operation_id = "get_invitation")]
    async fn get(
        &self,
        who: Caller<InvitationsRead>,
        Path(id): Path<InvitationId>,
    ) -> Result<Ok<InvitationView>, ApiError> {
        let invitation = who.scoped().members().invitation(id).await?;
        Ok(shown(&invitation).into())
    }

    /// Send an invitation again
    ///
    /// With a new link, which is good for 7 days; the old link is not good any more. Whoever sends
    /// it counts as the inviter.
    #[oai(
        path = "/:id/resend",
        method = "post",
        operation_id = "resend_invitation"
    )]
    async fn resend(
        &self,
        who: Caller<InvitationsWrite>,
        Path(id): Path<InvitationId>,
        key: Idempotency,
    ) -> Result<Ok<InvitationView>, ApiError> {
        let context = who.context_with(key);
        let by = (&context, who.principal.as_ref());
        let answer = self.app.people.resend_invitation(by, id, shown);
        Ok(answer.await?.into())
    }

    /// Withdraw an invitation
    #[oai(path = "/:id", method = "delete", operation_id = "revoke_invitation")]
    async fn revoke(
        &self,
        who: Caller<InvitationsWrite>,
        Path(id): Path<InvitationId>,
    ) -> Result<NoContent, ApiError> {
        let (scoped, context) = (who.scoped(), who.context());
        let members = scoped.members();
        let answer = members.revoke_invitation(&context, id, |_| no_content());
        Ok(answer.await?.into())
    }
}

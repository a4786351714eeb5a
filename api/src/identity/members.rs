//! The members of a publisher.

use poem_openapi::{Object, OpenApi, param::Query};
use view_derive::Example;

use domain::{
    Code,
    id::UserId,
    people::Role,
    permission::{CredentialsRead, MembersRead, MembersWrite, MembershipLeave},
};

use super::views::{MemberView, MintedTokens, RemovedView};
use crate::{
    auth::Caller,
    shared::{IfMatch, Listed, NoContent, Ok, PageQuery, Path, Tag, Word, answer, no_content},
};
use web::http::{ApiError, Patch};

/// What changes of a member.
#[derive(Object, Example)]
#[oai(
    rename = "MemberPatch",
    example,
    deny_unknown_fields,
    skip_serializing_if_is_none
)]
struct MemberPatch {
    /// What the person may do. Nobody gives or takes a role above one's own; an admin token counts
    /// as an admin.
    #[example(Role::Developer)]
    role: Option<Word<Role>>,
}

/// A publisher's members.
pub(crate) struct Members;

#[OpenApi(prefix_path = "/v1/members", tag = "Tag::Members")]
impl Members {
    /// List members
    ///
    /// In the order in which they became users.
    #[oai(path = "/", method = "get", operation_id = "list_members")]
    async fn list(
        &self,
        who: Caller<MembersRead>,
        page: PageQuery,
    ) -> Result<Listed<MemberView>, ApiError> {
        let list = who.list(page).await?;
        let page = who.scoped().members().members(list.page()?).await?;
        Ok(list.answer(page, Into::into))
    }

    /// Get a member
    #[oai(path = "/:user_id", method = "get", operation_id = "get_member")]
    async fn get(
        &self,
        who: Caller<MembersRead>,
        Path(user_id): Path<UserId>,
    ) -> Result<Ok<MemberView>, ApiError> {
        let member = who.scoped().members().membership(user_id).await?;
        let revision = member.revision;
        Ok(Ok::show(&MemberView::from(member), Some(revision)))
    }

    /// Update a member
    ///
    /// The person has the new role when the answer arrives, on other processes within a second.
    #[oai(path = "/:user_id", method = "patch", operation_id = "update_member")]
    async fn update(
        &self,
        who: Caller<MembersWrite>,
        Path(user_id): Path<UserId>,
        if_match: IfMatch,
        body: Patch<MemberPatch>,
    ) -> Result<Ok<MemberView>, ApiError> {
        let (scoped, context) = (who.scoped(), who.context());
        let members = scoped.members();
        let role = match body.0.role {
            Some(role) => role.0,
            None => members.membership(user_id).await?.role,
        };
        let changed = members.change_role(&context, user_id, role, if_match.0, |member| {
            answer(200, &MemberView::from(member)).revision(member.revision)
        });
        Ok(changed.await?.into())
    }

    /// Remove a member
    ///
    /// The answer lists the live tokens that the person created. They are revoked in the same
    /// transaction if `revoke_minted` says so, and work on otherwise.
    #[oai(path = "/:user_id", method = "delete", operation_id = "remove_member")]
    async fn remove(
        &self,
        who: Caller<MembersWrite>,
        Path(user_id): Path<UserId>,
        /// Whether to revoke the tokens that the person created.
        revoke_minted: Query<Option<bool>>,
        if_match: IfMatch,
    ) -> Result<Ok<RemovedView>, ApiError> {
        let (scoped, context) = (who.scoped(), who.context());
        let how = (revoke_minted.0.unwrap_or(false), if_match.0);
        let members = scoped.members();
        let removed = members.remove_member(&context, user_id, how, |removed| {
            answer(200, &RemovedView::from(removed))
        });
        Ok(removed.await?.into())
    }

    /// List the live tokens that a member created
    #[oai(
        path = "/:user_id/minted",
        method = "get",
        operation_id = "list_minted_tokens"
    )]
    async fn minted(
        &self,
        who: Caller<CredentialsRead>,
        Path(user_id): Path<UserId>,
    ) -> Result<Ok<MintedTokens>, ApiError> {
        let scoped = who.scoped();
        let members = scoped.members();
        members.membership(user_id).await?;
        let all = members.minted_by(user_id).await?;
        let items = all.iter().map(Into::into).collect();
        Ok(Ok::show(&MintedTokens { items }, None))
    }

    /// Leave the publisher
    ///
    /// What the person created works on.
    #[oai(path = "/leave", method = "post", operation_id = "leave_publisher")]
    async fn leave(&self, who: Caller<MembershipLeave>) -> Result<NoContent, ApiError> {
        let (scoped, context) = (who.scoped(), who.context());
        // No token holds the permission.
        let member = who.principal.member().ok_or(Code::Internal)?;
        let members = scoped.members();
        let left = members.remove_member(&context, member.user, (false, None), |_| no_content());
        Ok(left.await?.into())
    }
}

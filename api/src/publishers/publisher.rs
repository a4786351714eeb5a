//! Publishers, from both sides: what the operator makes and changes, and what each publisher sees
//! and changes of itself.

mod own;
mod views;

use poem_openapi::{OpenApi, param::Query};

use domain::{
    FaultCode, Problem,
    id::PublisherId,
    permission::{PublishersMint, PublishersRead, PublishersWrite},
    slug::{self, Slug},
};
use persistence::{Answer, NewPublisher, Publisher};

use crate::{
    auth::Operator,
    publishers::credentials::{IssuedCredential, NewCredentialRequest},
    shared::{
        Created, Idempotency, IfMatch, Listed, NoContent, Ok, PageQuery, Path, Tag, answer,
        no_content,
    },
};
use web::http::{ApiError, Body, OptionalBody, Patch};

pub(crate) use own::Own;
use views::{CreatedView, NewPublisherRequest, PatchRequest, PublisherView, ResumeRequest};

fn slug_field(text: &str) -> Result<Slug, ApiError> {
    Slug::parse(text).ok_or_else(|| {
        let detail = format!("`slug` must match `{}`.", slug::PATTERN);
        Problem::field("/slug", FaultCode::Pattern, detail).into()
    })
}

fn show(publisher: &Publisher) -> Answer {
    answer(200, &PublisherView::from(publisher)).revision(publisher.revision)
}

/// The operator's operations on publishers.
pub(crate) struct Publishers;

#[OpenApi(prefix_path = "/v1/publishers", tag = "Tag::Operator")]
impl Publishers {
    /// Create a publisher
    ///
    /// The answer is the only one that shows its first two tokens and two secrets.
    #[oai(path = "/", method = "post", operation_id = "create_publisher")]
    async fn create(
        &self,
        who: Operator<PublishersMint>,
        /// Makes a repeat of the request harmless for 24 hours; for 10 minutes the repeat shows
        /// the credentials again.
        key: Idempotency,
        body: Body<NewPublisherRequest>,
    ) -> Result<Created<CreatedView>, ApiError> {
        let new = NewPublisher {
            slug: slug_field(&body.0.slug)?,
            display_name: body.0.display_name,
        };
        let context = who.context_with(key);
        let publishers = who.system().publishers();
        let answer = publishers.create_publisher(&context, new, |new| {
            let location = format!("/v1/publishers/{}", new.publisher.id);
            let shown = answer(201, &CreatedView::from(new)).revision(new.publisher.revision);
            shown.at(location).holds_secret(true)
        });
        Ok(answer.await?.into())
    }

    /// List publishers
    ///
    /// Newest first; deleted ones too, until they are removed.
    #[oai(path = "/", method = "get", operation_id = "list_publishers")]
    async fn list(
        &self,
        who: Operator<PublishersRead>,
        page: PageQuery,
    ) -> Result<Listed<PublisherView>, ApiError> {
        let list = who.list(page).await?;
        let page = who.system().publishers().publishers(list.page()?).await?;
        Ok(list.answer(page, |publisher| PublisherView::from(&publisher)))
    }

    /// Get a publisher
    #[oai(path = "/:id", method = "get", operation_id = "get_publisher")]
    async fn get(
        &self,
        who: Operator<PublishersRead>,
        Path(id): Path<PublisherId>,
    ) -> Result<Ok<PublisherView>, ApiError> {
        let publisher = who.system().publishers().publisher(id).await?;
        Ok(show(&publisher).into())
    }

    /// Update a publisher
    ///
    /// Name and quotas. A quota below what the publisher has takes nothing away.
    #[oai(path = "/:id", method = "patch", operation_id = "update_publisher")]
    async fn update(
        &self,
        who: Operator<PublishersWrite>,
        Path(id): Path<PublisherId>,
        if_match: IfMatch,
        body: Patch<PatchRequest>,
    ) -> Result<Ok<PublisherView>, ApiError> {
        let context = who.context();
        let publishers = who.system().publishers();
        let answer = publishers.update_publisher(&context, id, body.0.into(), if_match.0, show);
        Ok(answer.await?.into())
    }

    /// Delete a publisher
    ///
    /// Its tokens stop working at once and its slug is free. For 7 days it can be resumed; then
    /// its data key is destroyed and its rows are removed.
    #[oai(path = "/:id", method = "delete", operation_id = "delete_publisher")]
    async fn delete(
        &self,
        who: Operator<PublishersWrite>,
        Path(id): Path<PublisherId>,
        /// The publisher's slug, as a confirmation.
        #[oai(validator(max_length = 63))]
        confirm: Query<String>,
        if_match: IfMatch,
    ) -> Result<NoContent, ApiError> {
        let context = who.context();
        let publishers = who.system().publishers();
        let answer =
            publishers.delete_publisher(&context, id, &confirm.0, if_match.0, |()| no_content());
        Ok(answer.await?.into())
    }

    /// Suspend a publisher
    ///
    /// Its tokens answer 403 `publisher_suspended`; its deliveries and claims pause, unharmed.
    #[oai(
        path = "/:id/suspend",
        method = "post",
        operation_id = "suspend_publisher"
    )]
    async fn suspend(
        &self,
        who: Operator<PublishersWrite>,
        Path(id): Path<PublisherId>,
        key: Idempotency,
    ) -> Result<Ok<PublisherView>, ApiError> {
        let context = who.context_with(key);
        let publishers = who.system().publishers();
        let answer = publishers.suspend_publisher(&context, id, show);
        Ok(answer.await?.into())
    }

    /// Resume a publisher
    ///
    /// Undoes a suspension, or a deletion of the last 7 days.
    #[oai(
        path = "/:id/resume",
        method = "post",
        operation_id = "resume_publisher"
    )]
    async fn resume(
        &self,
        who: Operator<PublishersWrite>,
        Path(id): Path<PublisherId>,
        key: Idempotency,
        body: OptionalBody<ResumeRequest>,
    ) -> Result<Ok<PublisherView>, ApiError> {
        let slug = body.0.slug.as_deref().map(slug_field).transpose()?;
        let context = who.context_with(key);
        let publishers = who.system().publishers();
        let answer = publishers.resume_publisher(&context, id, slug, show);
        Ok(answer.await?.into())
    }

    /// Create an admin token for a publisher
    ///
    /// For a publisher that has lost its own. It stands in the publisher's audit log too.
    #[oai(
        path = "/:id/tokens/admin",
        method = "post",
        operation_id = "mint_admin_token"
    )]
    async fn mint_admin(
        &self,
        who: Operator<PublishersMint>,
        Path(id): Path<PublisherId>,
        /// Makes a repeat of the request harmless for 24 hours; for 10 minutes the repeat shows
        /// the token again.
        key: Idempotency,
        body: OptionalBody<NewCredentialRequest>,
    ) -> Result<Created<IssuedCredential>, ApiError> {
        let new = body.0.parse()?;
        let context = who.context_with(key);
        let publishers = who.system().publishers();
        let answer = publishers.mint_admin_token(&context, id, new, |minted| {
            answer(201, &IssuedCredential::from(minted)).holds_secret(true)
        });
        Ok(answer.await?.into())
    }
}

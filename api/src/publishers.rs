//! Publishers, from both sides: what the operator makes and changes, and what each publisher sees
//! and changes of itself.

use std::sync::Arc;

use poem_openapi::{
    Enum, Object, OpenApi,
    param::{Path, Query},
    types::Example,
};

use domain::{
    Code, Problem, Timestamp, credential::CredentialKind, id::PublisherId, limits::Quotas,
    slug::Slug,
};
use persistence::{CreatedPublisher, NewPublisher, Publisher, PublisherPatch, PublisherStatus};

use crate::{
    auth::{Admin, AdminOrRunner, Operator},
    common::{App, Created, IfMatch, NoContent, Ok, Tag, Time, answer, no_content, parse_id},
    contract::OperationDoc,
    credentials::{IssuedCredential, KindName, NewCredentialRequest},
    cursor::{List, Listed},
    http::{ApiError, Body, OptionalBody, Patch, RequestContext},
    idempotency::Idempotency,
};

/// The problems of these operations.
pub const DOCS: &[OperationDoc] = &[
    OperationDoc {
        operation_id: "create_publisher",
        codes: &[Code::SlugTaken, Code::SecretNoLongerAvailable],
    },
    OperationDoc {
        operation_id: "suspend_publisher",
        codes: &[Code::WrongPublisherState],
    },
    OperationDoc {
        operation_id: "resume_publisher",
        codes: &[Code::WrongPublisherState, Code::SlugTaken],
    },
    OperationDoc {
        operation_id: "mint_admin_token",
        codes: &[
            Code::WrongPublisherState,
            Code::QuotaExceeded,
            Code::SecretNoLongerAvailable,
        ],
    },
];

/// How often a change of quotas is tried again when somebody else's comes between.
const PATCH_TRIES: u32 = 5;

/// Whether a publisher's tokens work.
#[derive(Clone, Copy, Enum)]
#[oai(rename = "PublisherStatus", rename_all = "snake_case")]
pub(crate) enum StatusName {
    /// They do.
    Active,
    /// They are refused; its deliveries and claims pause.
    Suspended,
    /// They are unknown; it can come back for 7 days.
    Deleted,
}

impl From<PublisherStatus> for StatusName {
    fn from(status: PublisherStatus) -> Self {
        match status {
            PublisherStatus::Active => Self::Active,
            PublisherStatus::Suspended => Self::Suspended,
            PublisherStatus::Deleted => Self::Deleted,
        }
    }
}

/// How much a publisher may have.
#[derive(Clone, Object)]
#[oai(rename = "Quotas", example)]
pub(crate) struct QuotasView {
    /// Live credentials of each kind.
    credentials_per_kind: u32,
    /// Pipelines.
    pipelines: u32,
    /// Webhook endpoints.
    webhook_endpoints: u32,
}

impl From<Quotas> for QuotasView {
    fn from(quotas: Quotas) -> Self {
        Self {
            credentials_per_kind: quotas.credentials_per_kind,
            pipelines: quotas.pipelines,
            webhook_endpoints: quotas.webhook_endpoints,
        }
    }
}

impl Example for QuotasView {
    fn example() -> Self {
        Quotas::default().into()
    }
}

/// A tenant: everything that belongs together and is kept apart from everything else.
#[derive(Clone, Object)]
#[oai(rename = "Publisher", example)]
pub(crate) struct PublisherView {
    /// `pub_…`
    id: String,
    /// Its name in the operator's hands; unique among those that are not deleted.
    slug: String,
    /// Its name for people.
    display_name: String,
    /// Whether its tokens work.
    status: StatusName,
    /// How much it may have.
    quotas: QuotasView,
    /// When it was made.
    created_at: Time,
    /// When it last changed.
    updated_at: Time,
    /// When it was deleted.
    #[oai(nullable)]
    deleted_at: Option<Time>,
}

impl From<&Publisher> for PublisherView {
    fn from(publisher: &Publisher) -> Self {
        Self {
            id: publisher.id.to_string(),
            slug: publisher.slug.clone(),
            display_name: publisher.display_name.clone(),
            status: publisher.status.into(),
            quotas: publisher.quotas.into(),
            created_at: publisher.created_at.into(),
            updated_at: publisher.updated_at.into(),
            deleted_at: publisher.deleted_at.map(Time),
        }
    }
}

pub(crate) const EXAMPLE_ID: &str = "pub_01h455vb4pex5vsknk084sn02q";
/// A moment for examples: 2026-01-31T12:00:00Z.
pub(crate) const EXAMPLE_AT: Time = Time(Timestamp::from_ms(1_769_860_800_000));

impl Example for PublisherView {
    fn example() -> Self {
        Self {
            id: EXAMPLE_ID.into(),
            slug: "acme".into(),
            display_name: "Acme Media".into(),
            status: StatusName::Active,
            quotas: QuotasView::example(),
            created_at: EXAMPLE_AT,
            updated_at: EXAMPLE_AT,
            deleted_at: None,
        }
    }
}

/// A publisher to make.
#[derive(Object)]
#[oai(
    rename = "NewPublisher",
    example,
    deny_unknown_fields,
    skip_serializing_if_is_none
)]
struct NewPublisherRequest {
    /// Its name in the operator's hands.
    #[oai(validator(pattern = "^[a-z0-9][a-z0-9-]{0,62}$"))]
    slug: String,
    /// Its name for people.
    #[oai(validator(min_length = 1, max_length = 120))]
    display_name: String,
}

impl Example for NewPublisherRequest {
    fn example() -> Self {
        Self {
            slug: "acme".into(),
            display_name: "Acme Media".into(),
        }
    }
}

/// The first tokens of a publisher.
#[derive(Object)]
struct FirstTokens {
    /// May do everything within the publisher.
    admin: IssuedCredential,
    /// May start, claim and finish runs.
    runner: IssuedCredential,
}

/// The first secrets of a publisher.
#[derive(Object)]
struct FirstSecrets {
    /// Signs its webhooks.
    webhook_signing: IssuedCredential,
    /// What calls to its own services carry.
    subcommand_bearer: IssuedCredential,
}

/// A new publisher with its first credentials, which are shown this once.
#[derive(Object)]
#[oai(rename = "CreatedPublisher", example)]
struct CreatedView {
    /// The publisher.
    publisher: PublisherView,
    /// Its tokens.
    tokens: FirstTokens,
    /// Its secrets.
    secrets: FirstSecrets,
}

impl From<&CreatedPublisher> for CreatedView {
    fn from(created: &CreatedPublisher) -> Self {
        Self {
            publisher: (&created.publisher).into(),
            tokens: FirstTokens {
                admin: (&created.admin).into(),
                runner: (&created.runner).into(),
            },
            secrets: FirstSecrets {
                webhook_signing: (&created.webhook_signing).into(),
                subcommand_bearer: (&created.subcommand_bearer).into(),
            },
        }
    }
}

impl Example for CreatedView {
    fn example() -> Self {
        Self {
            publisher: PublisherView::example(),
            tokens: FirstTokens {
                admin: IssuedCredential::of_kind(CredentialKind::Admin),
                runner: IssuedCredential::of_kind(CredentialKind::Runner),
            },
            secrets: FirstSecrets {
                webhook_signing: IssuedCredential::of_kind(CredentialKind::WebhookSigning),
                subcommand_bearer: IssuedCredential::of_kind(CredentialKind::SubcommandBearer),
            },
        }
    }
}

/// Quotas to change; those left out stay.
#[derive(Object)]
#[oai(example, deny_unknown_fields, skip_serializing_if_is_none)]
struct QuotasPatch {
    /// Live credentials of each kind.
    #[oai(validator(minimum(value = "1"), maximum(value = "1000")))]
    credentials_per_kind: Option<u32>,
    /// Pipelines.
    #[oai(validator(minimum(value = "0"), maximum(value = "1000000")))]
    pipelines: Option<u32>,
    /// Webhook endpoints.
    #[oai(validator(minimum(value = "0"), maximum(value = "100000")))]
    webhook_endpoints: Option<u32>,
}

impl Example for QuotasPatch {
    fn example() -> Self {
        Self {
            credentials_per_kind: None,
            pipelines: Some(5000),
            webhook_endpoints: None,
        }
    }
}

impl QuotasPatch {
    fn over(&self, now: Quotas) -> Quotas {
        Quotas {
            credentials_per_kind: self
                .credentials_per_kind
                .unwrap_or(now.credentials_per_kind),
            pipelines: self.pipelines.unwrap_or(now.pipelines),
            webhook_endpoints: self.webhook_endpoints.unwrap_or(now.webhook_endpoints),
        }
    }
}

/// What the operator changes of a publisher.
#[derive(Object)]
#[oai(
    rename = "PublisherPatch",
    example,
    deny_unknown_fields,
    skip_serializing_if_is_none
)]
struct PatchRequest {
    /// Its name for people.
    #[oai(validator(min_length = 1, max_length = 120))]
    display_name: Option<String>,
    /// How much it may have.
    quotas: Option<QuotasPatch>,
}

impl Example for PatchRequest {
    fn example() -> Self {
        Self {
            display_name: None,
            quotas: Some(QuotasPatch::example()),
        }
    }
}

/// How a deleted publisher comes back.
#[derive(Object)]
#[oai(
    rename = "ResumePublisher",
    example,
    deny_unknown_fields,
    skip_serializing_if_is_none
)]
struct ResumeRequest {
    /// A new slug, for a deleted publisher whose own is taken by now.
    #[oai(validator(pattern = "^[a-z0-9][a-z0-9-]{0,62}$"))]
    slug: Option<String>,
}

impl Example for ResumeRequest {
    fn example() -> Self {
        Self {
            slug: Some("acme-2".into()),
        }
    }
}

/// Which token asks.
#[derive(Object)]
struct Asking {
    /// `tok_…`
    id: String,
    /// What it may do.
    kinds: Vec<KindName>,
    /// The only pipelines that it reaches; null for all.
    #[oai(nullable)]
    pipelines: Option<Vec<String>>,
    /// When it stops working.
    #[oai(nullable)]
    expires_at: Option<Time>,
}

/// A publisher as it sees itself.
#[derive(Object)]
#[oai(rename = "OwnPublisher", example)]
struct OwnView {
    /// `pub_…`
    id: String,
    /// Its name in the operator's hands.
    slug: String,
    /// Its name for people.
    display_name: String,
    /// Whether its tokens work.
    status: StatusName,
    /// How much it may have.
    quotas: QuotasView,
    /// When it was made.
    created_at: Time,
    /// When it last changed.
    updated_at: Time,
    /// Which token asks.
    credential: Asking,
}

impl OwnView {
    fn of(publisher: &Publisher, who: &persistence::Principal) -> Self {
        let kinds = who.grants.kinds();
        let pipelines = who.scope.pipelines();
        Self {
            id: publisher.id.to_string(),
            slug: publisher.slug.clone(),
            display_name: publisher.display_name.clone(),
            status: publisher.status.into(),
            quotas: publisher.quotas.into(),
            created_at: publisher.created_at.into(),
            updated_at: publisher.updated_at.into(),
            credential: Asking {
                id: who.credential.to_string(),
                kinds: kinds.into_iter().map(KindName::from).collect(),
                pipelines: pipelines.map(|some| some.iter().map(Slug::to_string).collect()),
                expires_at: who.expires_at.map(Time),
            },
        }
    }
}

impl Example for OwnView {
    fn example() -> Self {
        Self {
            id: EXAMPLE_ID.into(),
            slug: "acme".into(),
            display_name: "Acme Media".into(),
            status: StatusName::Active,
            quotas: QuotasView::example(),
            created_at: EXAMPLE_AT,
            updated_at: EXAMPLE_AT,
            credential: Asking {
                id: crate::credentials::EXAMPLE_TOKEN_ID.into(),
                kinds: vec![KindName::Runner],
                pipelines: Some(vec!["nightly-import".into()]),
                expires_at: None,
            },
        }
    }
}

/// What a publisher changes of itself.
#[derive(Object)]
#[oai(
    rename = "OwnPublisherPatch",
    example,
    deny_unknown_fields,
    skip_serializing_if_is_none
)]
struct OwnPatchRequest {
    /// Its name for people.
    #[oai(validator(min_length = 1, max_length = 120))]
    display_name: Option<String>,
}

impl Example for OwnPatchRequest {
    fn example() -> Self {
        Self {
            display_name: Some("Acme Media Group".into()),
        }
    }
}

/// How many credentials of each kind are live.
#[derive(Object)]
struct CredentialCounts {
    /// Admin tokens.
    admin: u64,
    /// Runner tokens.
    runner: u64,
    /// Webhook secrets.
    webhook_signing: u64,
    /// Subcommand bearers.
    subcommand_bearer: u64,
}

/// How much a publisher has, beside how much it may have.
#[derive(Object)]
#[oai(rename = "Usage", example)]
struct UsageView {
    /// Live credentials by kind.
    credentials: CredentialCounts,
    /// Pipelines.
    pipelines: u64,
    /// Webhook endpoints.
    webhook_endpoints: u64,
    /// How much it may have.
    quotas: QuotasView,
}

impl Example for UsageView {
    fn example() -> Self {
        Self {
            credentials: CredentialCounts {
                admin: 1,
                runner: 3,
                webhook_signing: 1,
                subcommand_bearer: 1,
            },
            pipelines: 12,
            webhook_endpoints: 2,
            quotas: QuotasView::example(),
        }
    }
}

fn slug_field(text: &str) -> Result<Slug, ApiError> {
    Slug::parse(text).ok_or_else(|| {
        let detail = "`slug` must be a slug.";
        Problem::field("/slug", "pattern", detail).into()
    })
}

fn show(publisher: &Publisher) -> persistence::Answer {
    let revision = Some(publisher.revision);
    answer(200, &PublisherView::from(publisher), revision, None, false)
}

/// The operator's operations on publishers.
pub(crate) struct Publishers {
    pub(crate) app: Arc<App>,
}

#[OpenApi(prefix_path = "/v1", tag = "Tag::Operator")]
impl Publishers {
    /// Make a publisher
    ///
    /// The answer is the only one that shows its first two tokens and two secrets.
    #[oai(
        path = "/publishers",
        method = "post",
        operation_id = "create_publisher"
    )]
    async fn create(
        &self,
        who: Operator,
        context: &RequestContext,
        /// Makes a repeat of the request harmless for 24 hours; for 10 minutes the repeat shows
        /// the credentials again.
        #[oai(name = "Idempotency-Key")]
        key: Idempotency,
        body: Body<NewPublisherRequest>,
    ) -> Result<Created<CreatedView>, ApiError> {
        let new = NewPublisher {
            slug: slug_field(&body.0.slug)?,
            display_name: body.0.display_name,
        };
        let key = key.of("create_publisher", context);
        let context = self.app.context(context, who.0.actor(), key);
        let system = self.app.store.system();
        let answer = system.create_publisher(&context, new, |created| {
            let location = format!("/v1/publishers/{}", created.publisher.id);
            let revision = Some(created.publisher.revision);
            answer(
                201,
                &CreatedView::from(created),
                revision,
                Some(location),
                true,
            )
        });
        Ok(answer.await?.into())
    }

    /// List publishers
    ///
    /// Newest first; deleted ones too, until they are removed.
    #[oai(path = "/publishers", method = "get", operation_id = "list_publishers")]
    async fn list(
        &self,
        _who: Operator,
        context: &RequestContext,
        /// How many at most.
        #[oai(validator(minimum(value = "1"), maximum(value = "200")))]
        limit: Query<Option<u64>>,
        /// `next_cursor` of the part before.
        #[oai(validator(max_length = 200))]
        cursor: Query<Option<String>>,
    ) -> Result<Listed<PublisherView>, ApiError> {
        let list = List::begin(&self.app, context, None, limit.0, cursor.0).await?;
        let page = self.app.store.system().publishers(list.page()?).await?;
        Ok(list.answer(page, |publisher| PublisherView::from(&publisher)))
    }

    /// Read a publisher
    #[oai(
        path = "/publishers/:id",
        method = "get",
        operation_id = "get_publisher"
    )]
    async fn get(
        &self,
        _who: Operator,
        /// Which publisher.
        #[oai(validator(max_length = 64))]
        id: Path<String>,
    ) -> Result<Ok<PublisherView>, ApiError> {
        let id: PublisherId = parse_id(&id.0)?;
        let publisher = self.app.store.system().publisher(id).await?;
        Ok(show(&publisher).into())
    }

    /// Change a publisher
    ///
    /// Name and quotas. A quota below what the publisher has takes nothing away.
    #[oai(
        path = "/publishers/:id",
        method = "patch",
        operation_id = "update_publisher"
    )]
    async fn update(
        &self,
        who: Operator,
        context: &RequestContext,
        /// Which publisher.
        #[oai(validator(max_length = 64))]
        id: Path<String>,
        /// Only if the publisher still has this `ETag`.
        #[oai(name = "If-Match")]
        if_match: IfMatch,
        body: Patch<PatchRequest>,
    ) -> Result<Ok<PublisherView>, ApiError> {
        let id: PublisherId = parse_id(&id.0)?;
        let context = self.app.context(context, who.0.actor(), None);
        let system = self.app.store.system();
        for _ in 0..PATCH_TRIES {
            let now = system.publisher(id).await?;
            let patch = PublisherPatch {
                display_name: body.0.display_name.clone(),
                quotas: body.0.quotas.as_ref().map(|patch| patch.over(now.quotas)),
            };
            // Quotas are merged into what was just read, so it must be what is changed.
            let seen = if_match.0.or(Some(now.revision));
            match system
                .update_publisher(&context, id, patch, seen, show)
                .await
            {
                Err(persistence::StoreError::Refused(problem))
                    if problem.code == Code::PreconditionFailed && if_match.0.is_none() => {}
                result => return Ok(result?.into()),
            }
        }
        Err(Code::Overloaded.into())
    }

    /// Delete a publisher
    ///
    /// Its tokens stop working at once and its slug is free. For 7 days it can be resumed; then
    /// its data key is destroyed and its rows are removed.
    #[oai(
        path = "/publishers/:id",
        method = "delete",
        operation_id = "delete_publisher"
    )]
    async fn delete(
        &self,
        who: Operator,
        context: &RequestContext,
        /// Which publisher.
        #[oai(validator(max_length = 64))]
        id: Path<String>,
        /// The publisher's slug, as a confirmation.
        #[oai(validator(max_length = 63))]
        confirm: Query<String>,
        /// Only if the publisher still has this `ETag`.
        #[oai(name = "If-Match")]
        if_match: IfMatch,
    ) -> Result<NoContent, ApiError> {
        let id: PublisherId = parse_id(&id.0)?;
        let context = self.app.context(context, who.0.actor(), None);
        let system = self.app.store.system();
        let answer = system
            .delete_publisher(&context, id, &confirm.0, if_match.0, |()| no_content())
            .await?;
        Ok(answer.into())
    }

    /// Suspend a publisher
    ///
    /// Its tokens answer 403 `publisher_suspended`; its deliveries and claims pause, unharmed.
    #[oai(
        path = "/publishers/:id/suspend",
        method = "post",
        operation_id = "suspend_publisher"
    )]
    async fn suspend(
        &self,
        who: Operator,
        context: &RequestContext,
        /// Which publisher.
        #[oai(validator(max_length = 64))]
        id: Path<String>,
        /// Makes a repeat of the request harmless for 24 hours.
        #[oai(name = "Idempotency-Key")]
        key: Idempotency,
    ) -> Result<Ok<PublisherView>, ApiError> {
        let id: PublisherId = parse_id(&id.0)?;
        let key = key.of("suspend_publisher", context);
        let context = self.app.context(context, who.0.actor(), key);
        let system = self.app.store.system();
        Ok(system.suspend_publisher(&context, id, show).await?.into())
    }

    /// Resume a publisher
    ///
    /// Undoes a suspension, or a deletion of the last 7 days.
    #[oai(
        path = "/publishers/:id/resume",
        method = "post",
        operation_id = "resume_publisher"
    )]
    async fn resume(
        &self,
        who: Operator,
        context: &RequestContext,
        /// Which publisher.
        #[oai(validator(max_length = 64))]
        id: Path<String>,
        /// Makes a repeat of the request harmless for 24 hours.
        #[oai(name = "Idempotency-Key")]
        key: Idempotency,
        body: OptionalBody<ResumeRequest>,
    ) -> Result<Ok<PublisherView>, ApiError> {
        let id: PublisherId = parse_id(&id.0)?;
        let slug = body.0.slug.as_deref().map(slug_field).transpose()?;
        let key = key.of("resume_publisher", context);
        let context = self.app.context(context, who.0.actor(), key);
        let system = self.app.store.system();
        Ok(system
            .resume_publisher(&context, id, slug, show)
            .await?
            .into())
    }

    /// Make an admin token for a publisher
    ///
    /// For a publisher that has lost its own. It stands in the publisher's audit log too.
    #[oai(
        path = "/publishers/:id/tokens/admin",
        method = "post",
        operation_id = "mint_admin_token"
    )]
    async fn mint_admin(
        &self,
        who: Operator,
        context: &RequestContext,
        /// Which publisher.
        #[oai(validator(max_length = 64))]
        id: Path<String>,
        /// Makes a repeat of the request harmless for 24 hours; for 10 minutes the repeat shows
        /// the token again.
        #[oai(name = "Idempotency-Key")]
        key: Idempotency,
        body: OptionalBody<NewCredentialRequest>,
    ) -> Result<Created<IssuedCredential>, ApiError> {
        let id: PublisherId = parse_id(&id.0)?;
        let new = body.0.parse()?;
        let key = key.of("mint_admin_token", context);
        let context = self.app.context(context, who.0.actor(), key);
        let system = self.app.store.system();
        let answer = system.mint_admin_token(&context, id, new, |minted| {
            answer(201, &IssuedCredential::from(minted), None, None, true)
        });
        Ok(answer.await?.into())
    }
}

/// What a publisher sees and changes of itself.
pub(crate) struct Own {
    pub(crate) app: Arc<App>,
}

#[expect(clippy::unused_async, reason = "the macro wants handlers to be async")]
#[OpenApi(prefix_path = "/v1", tag = "Tag::Publisher")]
impl Own {
    /// Read the own publisher
    ///
    /// `credential` says which token asks. Answered without asking the store.
    #[oai(
        path = "/publishers/me",
        method = "get",
        operation_id = "get_own_publisher"
    )]
    async fn get(&self, who: AdminOrRunner) -> Result<Ok<OwnView>, ApiError> {
        let publisher = &who.0.publisher;
        let view = OwnView::of(publisher, &who.0);
        Ok(Ok::show(&view, Some(publisher.revision)))
    }

    /// Change the own publisher
    #[oai(
        path = "/publishers/me",
        method = "patch",
        operation_id = "update_own_publisher"
    )]
    async fn update(
        &self,
        who: Admin,
        context: &RequestContext,
        /// Only if the publisher still has this `ETag`.
        #[oai(name = "If-Match")]
        if_match: IfMatch,
        body: Patch<OwnPatchRequest>,
    ) -> Result<Ok<OwnView>, ApiError> {
        let context = self.app.context(context, who.0.actor(), None);
        let scoped = self.app.store.scoped(&who.0.scope);
        let render = |publisher: &Publisher| {
            let view = OwnView::of(publisher, &who.0);
            answer(200, &view, Some(publisher.revision), None, false)
        };
        let name = body.0.display_name;
        let answer = scoped.update_publisher(&context, name, if_match.0, render);
        Ok(answer.await?.into())
    }

    /// Read what is used of the quotas
    #[oai(
        path = "/publishers/me/usage",
        method = "get",
        operation_id = "get_usage"
    )]
    async fn usage(&self, who: Admin) -> Result<Ok<UsageView>, ApiError> {
        let usage = self.app.store.scoped(&who.0.scope).usage().await?;
        let live = |kind: CredentialKind| {
            let count = usage.credentials.get(kind.as_str());
            count.copied().unwrap_or_default()
        };
        let view = UsageView {
            credentials: CredentialCounts {
                admin: live(CredentialKind::Admin),
                runner: live(CredentialKind::Runner),
                webhook_signing: live(CredentialKind::WebhookSigning),
                subcommand_bearer: live(CredentialKind::SubcommandBearer),
            },
            pipelines: usage.pipelines,
            webhook_endpoints: usage.webhook_endpoints,
            quotas: usage.quotas.into(),
        };
        Ok(Ok::show(&view, None))
    }
}

//! A publisher as it sees and changes itself.

use std::sync::Arc;

use poem_openapi::{Object, OpenApi, types::Example};

use domain::{credential::CredentialKind, slug::Slug};
use persistence::{Principal, Publisher};

use super::views::{QuotasView, StatusName};
use crate::{
    auth::{Admin, AdminOrRunner},
    publishers::credentials::{EXAMPLE_TOKEN_ID, KindName},
    shared::{
        App,
        common::{IfMatch, Ok, Tag, Time, answer},
        examples::{EXAMPLE_AT, EXAMPLE_ID},
    },
};
use web::http::{ApiError, Patch, RequestContext};

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
    fn of(publisher: &Publisher, who: &Principal) -> Self {
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
                id: EXAMPLE_TOKEN_ID.into(),
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
    /// Upstream accounts.
    accounts: u64,
    /// Trains.
    trains: u64,
    /// Live tokens of all trains.
    train_tokens: u64,
    /// Bytes stored of events, runs, deliveries and kept answers. Counted as rows are written and
    /// removed, by each process for itself and summed up every second; row by row once a day.
    storage_bytes: u64,
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
            accounts: 4,
            trains: 2,
            train_tokens: 3,
            storage_bytes: 734_003_200,
            quotas: QuotasView::example(),
        }
    }
}

/// The operations of a publisher on itself.
pub(crate) struct Own {
    pub(crate) app: Arc<App>,
}

#[expect(clippy::unused_async, reason = "the macro wants handlers to be async")]
#[OpenApi(prefix_path = "/v1", tag = "Tag::Publisher")]
impl Own {
    /// Get the token's own publisher
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

    /// Update the token's own publisher
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

    /// Get quotas and their use
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
            accounts: usage.accounts,
            trains: usage.trains,
            train_tokens: usage.train_tokens,
            storage_bytes: usage.storage_bytes,
            quotas: usage.quotas.into(),
        };
        Ok(Ok::show(&view, None))
    }
}

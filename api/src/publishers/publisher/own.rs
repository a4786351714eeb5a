//! A publisher as it sees and changes itself.

use poem_openapi::{Object, OpenApi};
use view_derive::{Example, View};

use domain::{
    credential::CredentialKind,
    permission::{PublisherRead, PublisherWrite, UsageRead},
    slug::Slug,
};
use persistence::{Principal, Publisher};

use super::views::{QuotasView, StatusName};
use crate::{
    auth::Caller,
    identity::views::RoleName,
    publishers::credentials::{EXAMPLE_TOKEN_ID, KindName},
    shared::{
        common::{IfMatch, Ok, Tag, Time, answer},
        examples::EXAMPLE_ID,
    },
};
use web::http::{ApiError, Patch};

/// Which token asks, or which person.
#[derive(Object, View, Example)]
#[view(of = Principal)]
struct Asking {
    /// `tok_…`; `usr_…` for a person who is signed in.
    #[view(from = of.actor().id)]
    #[example(EXAMPLE_TOKEN_ID)]
    id: String,
    /// What a token may do; empty for a person.
    #[view(from = of.grants().kinds().into_iter().map(KindName::from).collect())]
    #[example([KindName::Runner])]
    kinds: Vec<KindName>,
    /// The only pipelines that it reaches; null for all.
    #[oai(nullable)]
    #[view(from = of.scope.pipelines().map(|all| all.iter().map(Slug::to_string).collect()))]
    #[example(["nightly-import"])]
    pipelines: Option<Vec<String>>,
    /// The role of a person; null for a token.
    #[oai(nullable)]
    #[view(from = of.member().map(|member| member.role.into()))]
    role: Option<RoleName>,
    /// When it stops working.
    #[oai(nullable)]
    expires_at: Option<Time>,
}

/// A publisher as it sees itself.
#[derive(Object, Example)]
#[oai(rename = "OwnPublisher", example)]
struct OwnView {
    /// `pub_…`
    #[example(EXAMPLE_ID)]
    id: String,
    /// Its name in the operator's hands.
    #[example("acme")]
    slug: String,
    /// Its name for people.
    #[example("Acme Media")]
    display_name: String,
    /// Whether its tokens work.
    #[example(StatusName::Active)]
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
        Self {
            id: publisher.id.to_string(),
            slug: publisher.slug.clone(),
            display_name: publisher.display_name.clone(),
            status: publisher.status.into(),
            quotas: publisher.quotas.into(),
            created_at: publisher.created_at.into(),
            updated_at: publisher.updated_at.into(),
            credential: who.into(),
        }
    }
}

/// What a publisher changes of itself.
#[derive(Object, Example)]
#[oai(
    rename = "OwnPublisherPatch",
    example,
    deny_unknown_fields,
    skip_serializing_if_is_none
)]
struct OwnPatchRequest {
    /// Its name for people.
    #[oai(validator(min_length = 1, max_length = 120))]
    #[example("Acme Media Group")]
    display_name: Option<String>,
}

/// How many credentials of each kind are live.
#[derive(Object, Example)]
struct CredentialCounts {
    /// Admin tokens.
    #[example(1)]
    admin: u64,
    /// Runner tokens.
    #[example(3)]
    runner: u64,
    /// Webhook secrets.
    #[example(1)]
    webhook_signing: u64,
    /// Subcommand bearers.
    #[example(1)]
    subcommand_bearer: u64,
}

/// How much a publisher has, beside how much it may have.
#[derive(Object, Example)]
#[oai(rename = "Usage", example)]
struct UsageView {
    /// Live credentials by kind.
    credentials: CredentialCounts,
    /// Pipelines.
    #[example(12)]
    pipelines: u64,
    /// Webhook endpoints.
    #[example(2)]
    webhook_endpoints: u64,
    /// Upstream accounts.
    #[example(4)]
    accounts: u64,
    /// Trains.
    #[example(2)]
    trains: u64,
    /// Live tokens of all trains.
    #[example(3)]
    train_tokens: u64,
    /// Bytes stored of events, runs, deliveries and kept answers. Counted as rows are written and
    /// removed, by each process for itself and summed up every second; row by row once a day.
    #[example(734_003_200)]
    storage_bytes: u64,
    /// How much it may have.
    quotas: QuotasView,
}

/// The operations of a publisher on itself.
pub(crate) struct Own;

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
    async fn get(&self, who: Caller<PublisherRead>) -> Result<Ok<OwnView>, ApiError> {
        let publisher = &who.principal.publisher;
        let view = OwnView::of(publisher, &who.principal);
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
        who: Caller<PublisherWrite>,
        if_match: IfMatch,
        body: Patch<OwnPatchRequest>,
    ) -> Result<Ok<OwnView>, ApiError> {
        let context = who.context();
        let scoped = who.scoped();
        let render = |publisher: &Publisher| {
            let view = OwnView::of(publisher, &who.principal);
            answer(200, &view).revision(publisher.revision)
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
    async fn usage(&self, who: Caller<UsageRead>) -> Result<Ok<UsageView>, ApiError> {
        let usage = who.scoped().usage().await?;
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

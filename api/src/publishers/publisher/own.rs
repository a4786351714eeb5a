//! A publisher as it sees and changes itself.

use poem_openapi::{Object, OpenApi};
use view_derive::{Example, View};

use domain::{
    credential::CredentialKind,
    people::Role,
    permission::{PublisherRead, PublisherWrite, UsageRead},
    slug::Slug,
};
use persistence::{Principal, Publisher, PublisherStatus, Usage};

use super::views::QuotasView;
use crate::{
    auth::Caller,
    publishers::credentials::EXAMPLE_TOKEN_ID,
    shared::{EXAMPLE_ID, IfMatch, Ok, Tag, Time, Word, answer},
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
    #[view(from = of.grants().kinds().into_iter().map(Word).collect())]
    #[example([CredentialKind::Runner])]
    kinds: Vec<Word<CredentialKind>>,
    /// The only pipelines that it reaches; null for all.
    #[oai(nullable)]
    #[view(from = of.scope.pipelines().map(|all| all.iter().map(Slug::to_string).collect()))]
    #[example(["nightly-import"])]
    pipelines: Option<Vec<String>>,
    /// The role of a person; null for a token.
    #[oai(nullable)]
    #[view(from = of.member().map(|member| Word(member.role)))]
    role: Option<Word<Role>>,
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
    #[example(PublisherStatus::Active)]
    status: Word<PublisherStatus>,
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

/// How many credentials of a kind are live.
fn live(usage: &Usage, kind: CredentialKind) -> u64 {
    let count = usage.credentials.get(kind.as_str());
    count.copied().unwrap_or_default()
}

/// How many credentials of each kind are live.
#[derive(Object, View, Example)]
#[view(of = Usage)]
struct CredentialCounts {
    /// Admin tokens.
    #[view(from = live(of, CredentialKind::Admin))]
    #[example(1)]
    admin: u64,
    /// Runner tokens.
    #[view(from = live(of, CredentialKind::Runner))]
    #[example(3)]
    runner: u64,
    /// Webhook secrets.
    #[view(from = live(of, CredentialKind::WebhookSigning))]
    #[example(1)]
    webhook_signing: u64,
    /// Subcommand bearers.
    #[view(from = live(of, CredentialKind::SubcommandBearer))]
    #[example(1)]
    subcommand_bearer: u64,
}

/// How much a publisher has, beside how much it may have.
#[derive(Object, View, Example)]
#[oai(rename = "Usage", example)]
#[view(of = Usage)]
struct UsageView {
    /// Live credentials by kind.
    #[view(from = of.into())]
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
#[OpenApi(prefix_path = "/v1/publishers/me", tag = "Tag::Publisher")]
impl Own {
    /// Get the token's own publisher
    ///
    /// `credential` says which token asks. Answered without asking the store.
    #[oai(path = "/", method = "get", operation_id = "get_own_publisher")]
    async fn get(&self, who: Caller<PublisherRead>) -> Result<Ok<OwnView>, ApiError> {
        let publisher = &who.principal.publisher;
        let view = OwnView::of(publisher, &who.principal);
        Ok(Ok::show(&view, Some(publisher.revision)))
    }

    /// Update the token's own publisher
    #[oai(path = "/", method = "patch", operation_id = "update_own_publisher")]
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
    #[oai(path = "/usage", method = "get", operation_id = "get_usage")]
    async fn usage(&self, who: Caller<UsageRead>) -> Result<Ok<UsageView>, ApiError> {
        let usage = who.scoped().usage().await?;
        Ok(Ok::show(&UsageView::from(&usage), None))
    }
}

//! Publishers as the operator sees, makes and changes them.

use poem_openapi::Object;
use view_derive::{Example, View};

use domain::{credential::CredentialKind, limits::Quotas};
use persistence::{CreatedPublisher, Publisher, PublisherPatch, PublisherStatus};

use crate::{
    publishers::credentials::IssuedCredential,
    shared::{EXAMPLE_ID, Time, Word},
};

/// How much a publisher may have.
#[derive(Clone, Object, View, Example)]
#[oai(rename = "Quotas", example)]
#[view(of = Quotas)]
#[example(Quotas::default())]
pub(super) struct QuotasView {
    /// Live credentials of each kind.
    credentials_per_kind: u32,
    /// Pipelines.
    pipelines: u32,
    /// Webhook endpoints.
    webhook_endpoints: u32,
    /// Upstream accounts.
    accounts: u32,
    /// Trains.
    trains: u32,
    /// Live tokens of all trains.
    train_tokens: u32,
    /// Live tokens of one train.
    train_tokens_per_train: u32,
    /// Bytes stored of events, runs, deliveries and kept answers. Over it, runs are not created,
    /// events not published and replays not started; what is under way goes on.
    storage_bytes: u64,
}

/// A tenant: everything that belongs together and is kept apart from everything else.
#[derive(Clone, Object, View, Example)]
#[oai(rename = "Publisher", example)]
#[view(of = Publisher)]
pub(super) struct PublisherView {
    /// `pub_…`
    #[example(EXAMPLE_ID)]
    id: String,
    /// Its name in the operator's hands; unique among those that are not deleted.
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
    /// When it was deleted.
    #[oai(nullable)]
    deleted_at: Option<Time>,
}

/// A publisher to make.
#[derive(Object, Example)]
#[oai(
    rename = "NewPublisher",
    example,
    deny_unknown_fields,
    skip_serializing_if_is_none
)]
pub(super) struct NewPublisherRequest {
    /// Its name in the operator's hands.
    #[oai(validator(pattern = "^[a-z0-9][a-z0-9-]{0,62}$"))]
    #[example("acme")]
    pub(super) slug: String,
    /// Its name for people.
    #[oai(validator(min_length = 1, max_length = 120))]
    #[example("Acme Media")]
    pub(super) display_name: String,
}

/// The first tokens of a publisher.
#[derive(Object, View, Example)]
#[view(of = CreatedPublisher)]
struct FirstTokens {
    /// May do everything within the publisher.
    #[view(from = (&of.admin).into())]
    #[example(IssuedCredential::of_kind(CredentialKind::Admin))]
    admin: IssuedCredential,
    /// May start, claim and finish runs.
    #[view(from = (&of.runner).into())]
    #[example(IssuedCredential::of_kind(CredentialKind::Runner))]
    runner: IssuedCredential,
}

/// The first secrets of a publisher.
#[derive(Object, View, Example)]
#[view(of = CreatedPublisher)]
struct FirstSecrets {
    /// Signs its webhooks.
    #[view(from = (&of.webhook_signing).into())]
    #[example(IssuedCredential::of_kind(CredentialKind::WebhookSigning))]
    webhook_signing: IssuedCredential,
    /// What calls to its own services carry.
    #[view(from = (&of.subcommand_bearer).into())]
    #[example(IssuedCredential::of_kind(CredentialKind::SubcommandBearer))]
    subcommand_bearer: IssuedCredential,
}

/// A new publisher with its first credentials, which are shown this once.
#[derive(Object, View, Example)]
#[oai(rename = "CreatedPublisher", example)]
#[view(of = CreatedPublisher)]
pub(super) struct CreatedView {
    /// The publisher.
    publisher: PublisherView,
    /// Its tokens.
    #[view(from = of.into())]
    tokens: FirstTokens,
    /// Its secrets.
    #[view(from = of.into())]
    secrets: FirstSecrets,
}

/// Quotas to change; those left out stay.
#[derive(Object, View, Example)]
#[oai(example, deny_unknown_fields, skip_serializing_if_is_none)]
#[view(into = persistence::QuotasPatch)]
struct QuotasPatch {
    /// Live credentials of each kind.
    #[oai(validator(minimum(value = "1"), maximum(value = "1000")))]
    credentials_per_kind: Option<u32>,
    /// Pipelines.
    #[oai(validator(minimum(value = "0"), maximum(value = "1000000")))]
    #[example(5000)]
    pipelines: Option<u32>,
    /// Webhook endpoints.
    #[oai(validator(minimum(value = "0"), maximum(value = "100000")))]
    webhook_endpoints: Option<u32>,
    /// Upstream accounts.
    #[oai(validator(minimum(value = "0"), maximum(value = "100000")))]
    accounts: Option<u32>,
    /// Trains.
    #[oai(validator(minimum(value = "0"), maximum(value = "100000")))]
    trains: Option<u32>,
    /// Live tokens of all trains.
    #[oai(validator(minimum(value = "0"), maximum(value = "100000")))]
    #[example(200)]
    train_tokens: Option<u32>,
    /// Live tokens of one train.
    #[oai(validator(minimum(value = "0"), maximum(value = "1000")))]
    train_tokens_per_train: Option<u32>,
    /// Bytes stored of events, runs, deliveries and kept answers.
    #[oai(validator(minimum(value = "0"), maximum(value = "1125899906842624")))]
    storage_bytes: Option<u64>,
}

/// What the operator changes of a publisher.
#[derive(Object, Example)]
#[oai(
    rename = "PublisherPatch",
    example,
    deny_unknown_fields,
    skip_serializing_if_is_none
)]
pub(super) struct PatchRequest {
    /// Its name for people.
    #[oai(validator(min_length = 1, max_length = 120))]
    display_name: Option<String>,
    /// How much it may have.
    #[example(QuotasPatch::example())]
    quotas: Option<QuotasPatch>,
}

impl From<PatchRequest> for PublisherPatch {
    fn from(request: PatchRequest) -> Self {
        Self {
            display_name: request.display_name,
            quotas: request.quotas.map(Into::into).unwrap_or_default(),
        }
    }
}

/// How a deleted publisher comes back.
#[derive(Object, Example)]
#[oai(
    rename = "ResumePublisher",
    example,
    deny_unknown_fields,
    skip_serializing_if_is_none
)]
pub(super) struct ResumeRequest {
    /// A new slug, for a deleted publisher whose own is taken by now.
    #[oai(validator(pattern = "^[a-z0-9][a-z0-9-]{0,62}$"))]
    #[example("acme-2")]
    pub(super) slug: Option<String>,
}

//! Publishers as the operator sees, makes and changes them.

use poem_openapi::{Enum, Object, types::Example};

use domain::{credential::CredentialKind, limits::Quotas};
use persistence::{CreatedPublisher, Publisher, PublisherPatch, PublisherStatus};

use crate::{
    publishers::credentials::IssuedCredential,
    shared::{
        common::Time,
        examples::{EXAMPLE_AT, EXAMPLE_ID},
    },
};

/// Whether a publisher's tokens work.
#[derive(Clone, Copy, Enum)]
#[oai(rename = "PublisherStatus", rename_all = "snake_case")]
pub(super) enum StatusName {
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

impl From<Quotas> for QuotasView {
    fn from(quotas: Quotas) -> Self {
        Self {
            credentials_per_kind: quotas.credentials_per_kind,
            pipelines: quotas.pipelines,
            webhook_endpoints: quotas.webhook_endpoints,
            accounts: quotas.accounts,
            trains: quotas.trains,
            train_tokens: quotas.train_tokens,
            train_tokens_per_train: quotas.train_tokens_per_train,
            storage_bytes: quotas.storage_bytes,
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
pub(super) struct PublisherView {
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
pub(super) struct NewPublisherRequest {
    /// Its name in the operator's hands.
    #[oai(validator(pattern = "^[a-z0-9][a-z0-9-]{0,62}$"))]
    pub(super) slug: String,
    /// Its name for people.
    #[oai(validator(min_length = 1, max_length = 120))]
    pub(super) display_name: String,
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
pub(super) struct CreatedView {
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
    /// Upstream accounts.
    #[oai(validator(minimum(value = "0"), maximum(value = "100000")))]
    accounts: Option<u32>,
    /// Trains.
    #[oai(validator(minimum(value = "0"), maximum(value = "100000")))]
    trains: Option<u32>,
    /// Live tokens of all trains.
    #[oai(validator(minimum(value = "0"), maximum(value = "100000")))]
    train_tokens: Option<u32>,
    /// Live tokens of one train.
    #[oai(validator(minimum(value = "0"), maximum(value = "1000")))]
    train_tokens_per_train: Option<u32>,
    /// Bytes stored of events, runs, deliveries and kept answers.
    #[oai(validator(minimum(value = "0"), maximum(value = "1125899906842624")))]
    storage_bytes: Option<u64>,
}

impl Example for QuotasPatch {
    fn example() -> Self {
        Self {
            credentials_per_kind: None,
            pipelines: Some(5000),
            webhook_endpoints: None,
            accounts: None,
            trains: None,
            train_tokens: Some(200),
            train_tokens_per_train: None,
            storage_bytes: None,
        }
    }
}

impl From<QuotasPatch> for persistence::QuotasPatch {
    fn from(patch: QuotasPatch) -> Self {
        Self {
            credentials_per_kind: patch.credentials_per_kind,
            pipelines: patch.pipelines,
            webhook_endpoints: patch.webhook_endpoints,
            accounts: patch.accounts,
            trains: patch.trains,
            train_tokens: patch.train_tokens,
            train_tokens_per_train: patch.train_tokens_per_train,
            storage_bytes: patch.storage_bytes,
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
pub(super) struct PatchRequest {
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

impl From<PatchRequest> for PublisherPatch {
    fn from(request: PatchRequest) -> Self {
        Self {
            display_name: request.display_name,
            quotas: request.quotas.map(Into::into).unwrap_or_default(),
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
pub(super) struct ResumeRequest {
    /// A new slug, for a deleted publisher whose own is taken by now.
    #[oai(validator(pattern = "^[a-z0-9][a-z0-9-]{0,62}$"))]
    pub(super) slug: Option<String>,
}

impl Example for ResumeRequest {
    fn example() -> Self {
        Self {
            slug: Some("acme-2".into()),
        }
    }
}

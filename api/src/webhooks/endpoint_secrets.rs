//! Secrets that one endpoint has in place of its publisher's, and the public keys of those that
//! sign by a pair.

use std::{sync::Arc, time::Duration};

use poem_openapi::{Enum, Object, OpenApi, param::Path, types::Example};
use secrecy::ExposeSecret as _;

use domain::{
    Code, Timestamp,
    id::{EndpointId, Id as _, KeySetId, SecretId},
    signature::Signing,
    token::TokenHash,
};
use persistence::{Answer, EndpointSecret, MintedEndpointSecret, PublicKey, StoreError};

use crate::{
    auth::Admin,
    publishers::credentials::ReplacedCredential,
    shared::{
        App,
        common::{Created, NoContent, Ok, Tag, Time, answer, no_content, parse_id},
        idempotency::Idempotency,
    },
};
use web::{
    contract::OperationDoc,
    http::{ApiError, OptionalBody, RequestContext},
};

/// The problems of these operations' own.
pub const DOCS: &[OperationDoc] = &[
    OperationDoc {
        operation_id: "mint_endpoint_secret",
        codes: &[Code::QuotaExceeded, Code::SecretNoLongerAvailable],
    },
    OperationDoc {
        operation_id: "rotate_endpoint_secrets",
        codes: &[Code::QuotaExceeded, Code::SecretNoLongerAvailable],
    },
    OperationDoc {
        operation_id: "delete_endpoint_secret",
        codes: &[Code::LastSecret],
    },
    OperationDoc {
        operation_id: "get_webhook_keys",
        codes: &[Code::RateLimited, Code::StoreUnavailable],
    },
];

const EXAMPLE_PUBLIC: &str = "whpk_11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=";

/// What deliveries are signed by.
#[derive(Enum, Clone, Copy, Debug, PartialEq, Eq)]
#[oai(rename = "Signing", rename_all = "snake_case")]
pub enum SigningName {
    /// HMAC-SHA256, with a secret that the receiver has too.
    Hmac,
    /// Ed25519, with a private key that nobody else has.
    Ed25519,
}

impl From<Signing> for SigningName {
    fn from(signing: Signing) -> Self {
        match signing {
            Signing::Hmac => Self::Hmac,
            Signing::Ed25519 => Self::Ed25519,
        }
    }
}

impl From<SigningName> for Signing {
    fn from(name: SigningName) -> Self {
        match name {
            SigningName::Hmac => Self::Hmac,
            SigningName::Ed25519 => Self::Ed25519,
        }
    }
}

/// A secret of an endpoint, without what it is.
#[derive(Object, Clone, Debug)]
#[oai(rename = "EndpointSecret", example)]
pub struct EndpointSecretView {
    /// `sec_…`
    id: String,
    /// What it signs by.
    signing: SigningName,
    /// The key that verifies what it signs, `whpk_…`; null for a shared secret.
    #[oai(nullable)]
    public_key: Option<String>,
    /// Its last four characters; of a pair, the public key's.
    last_four: String,
    /// When it was made.
    created_at: Time,
    /// When it stops signing.
    #[oai(nullable)]
    expires_at: Option<Time>,
    /// When a rotation replaced it; it signs until `expires_at`.
    #[oai(nullable)]
    superseded_at: Option<Time>,
}

impl From<&EndpointSecret> for EndpointSecretView {
    fn from(secret: &EndpointSecret) -> Self {
        Self {
            id: secret.id.to_string(),
            signing: secret.kind.into(),
            public_key: secret.public_key.clone(),
            last_four: secret.last_four.clone(),
            created_at: secret.created_at.into(),
            expires_at: secret.expires_at.map(Time),
            superseded_at: secret.superseded_at.map(Time),
        }
    }
}

impl Example for EndpointSecretView {
    fn example() -> Self {
        Self {
            id: SecretId::from_uuid(uuid::Uuid::nil()).to_string(),
            signing: SigningName::Ed25519,
            public_key: Some(EXAMPLE_PUBLIC.into()),
            last_four: "URo=".into(),
            created_at: Timestamp::from_ms(1_769_860_800_000).into(),
            expires_at: None,
            superseded_at: None,
        }
    }
}

/// All live secrets of an endpoint, on one page.
#[derive(Object, Clone, Debug)]
#[oai(example)]
pub struct EndpointSecrets {
    /// The secrets, newest first. None: the publisher's sign.
    items: Vec<EndpointSecretView>,
    /// Always null: there is no further page.
    #[oai(nullable)]
    next_cursor: Option<String>,
}

impl Example for EndpointSecrets {
    fn example() -> Self {
        Self {
            items: vec![EndpointSecretView::example()],
            next_cursor: None,
        }
    }
}

/// A new secret of an endpoint: this answer alone shows what it is.
#[derive(Object)]
#[oai(example)]
pub struct IssuedEndpointSecret {
    #[oai(flatten)]
    of: EndpointSecretView,
    /// The secret itself, `whsec_…`; null for a pair of keys, of which nobody needs the private
    /// one.
    #[oai(nullable)]
    secret: Option<String>,
    /// What a rotation replaced.
    replaced: Vec<ReplacedCredential>,
}

impl From<&MintedEndpointSecret> for IssuedEndpointSecret {
    fn from(minted: &MintedEndpointSecret) -> Self {
        let text = minted.text.as_ref();
        Self {
            of: (&minted.secret).into(),
            secret: text.map(|text| text.expose_secret().to_owned()),
            replaced: minted.replaced.iter().map(Into::into).collect(),
        }
    }
}

impl Example for IssuedEndpointSecret {
    fn example() -> Self {
        Self {
            of: EndpointSecretView {
                signing: SigningName::Hmac,
                public_key: None,
                last_four: "xxxx".into(),
                ..EndpointSecretView::example()
            },
            secret: Some(format!("whsec_{}", "x".repeat(44))),
            replaced: Vec::new(),
        }
    }
}

/// How an endpoint's secrets are replaced.
#[derive(Object)]
#[oai(example, deny_unknown_fields, skip_serializing_if_is_none)]
struct RotateEndpointSecrets {
    /// How long the old ones still sign beside the new one, seconds: 7 days at most.
    #[oai(validator(minimum(value = "0"), maximum(value = "604800")))]
    overlap_seconds: Option<u32>,
}

impl Example for RotateEndpointSecrets {
    fn example() -> Self {
        Self {
            overlap_seconds: Some(3600),
        }
    }
}

/// A key that verifies deliveries.
#[derive(Object, Clone, Debug)]
#[oai(rename = "WebhookKey")]
pub struct KeyView {
    /// `whpk_` and the base64 of the 32 bytes of an Ed25519 public key (Standard Webhooks).
    public_key: String,
    /// When it stops being used.
    #[oai(nullable)]
    expires_at: Option<Time>,
}

impl From<&PublicKey> for KeyView {
    fn from(key: &PublicKey) -> Self {
        Self {
            public_key: key.text.clone(),
            expires_at: key.expires_at.map(Time),
        }
    }
}

/// The keys of one endpoint.
#[derive(Object, Clone, Debug)]
#[oai(example)]
pub struct WebhookKeys {
    /// The keys, newest first: a delivery is genuine if any of them verifies it.
    items: Vec<KeyView>,
}

impl Example for WebhookKeys {
    fn example() -> Self {
        Self {
            items: vec![KeyView {
                public_key: EXAMPLE_PUBLIC.into(),
                expires_at: None,
            }],
        }
    }
}

fn issued(status: u16, minted: &MintedEndpointSecret) -> Answer {
    let view = IssuedEndpointSecret::from(minted);
    answer(status, &view, None, None, minted.text.is_some())
}

/// The operations on endpoints' secrets.
pub(crate) struct EndpointSecretsApi {
    pub(crate) app: Arc<App>,
}

#[OpenApi(prefix_path = "/v1", tag = "Tag::Webhooks")]
impl EndpointSecretsApi {
    /// List an endpoint's secrets
    ///
    /// Those of its own that are live, without what they are. Without any, the publisher's
    /// secrets sign its deliveries.
    #[oai(
        path = "/webhook-endpoints/:id/secrets",
        method = "get",
        operation_id = "list_endpoint_secrets"
    )]
    async fn list(
        &self,
        who: Admin,
        /// The endpoint's identifier.
        #[oai(validator(max_length = 40))]
        id: Path<String>,
    ) -> Result<Ok<EndpointSecrets>, ApiError> {
        let id = parse_id::<EndpointId>(&id.0)?;
        let scoped = self.app.store.scoped(&who.0.scope);
        let secrets = scoped.endpoint_secrets(id).await?;
        let list = EndpointSecrets {
            items: secrets.iter().map(Into::into).collect(),
            next_cursor: None,
        };
        Ok(Ok::show(&list, None))
    }

    /// Create a secret for an endpoint
    ///
    /// Of the kind that the endpoint's `signing` says. From then on the publisher's secrets don't
    /// sign its deliveries: whoever receives here can't forge what others get.
    #[oai(
        path = "/webhook-endpoints/:id/secrets",
        method = "post",
        operation_id = "mint_endpoint_secret"
    )]
    async fn mint(
        &self,
        who: Admin,
        request: &RequestContext,
        /// The endpoint's identifier.
        #[oai(validator(max_length = 40))]
        id: Path<String>,
        /// Makes a repeat of the request harmless for 24 hours; for 10 minutes the repeat shows
        /// the secret again.
        #[oai(name = "Idempotency-Key")]
        key: Idempotency,
    ) -> Result<Created<IssuedEndpointSecret>, ApiError> {
        let id = parse_id::<EndpointId>(&id.0)?;
        let key = key.of("mint_endpoint_secret", request);
        let context = self.app.context(request, who.0.actor(), key);
        let scoped = self.app.store.scoped(&who.0.scope);
        let minted = scoped.mint_endpoint_secret(&context, id, |minted| issued(201, minted));
        Ok(minted.await?.into())
    }

    /// Rotate an endpoint's secrets
    ///
    /// One new secret, of the kind that the endpoint's `signing` says, takes the place of all of
    /// that kind. During the overlap every live one signs.
    #[oai(
        path = "/webhook-endpoints/:id/secrets/rotate",
        method = "post",
        operation_id = "rotate_endpoint_secrets"
    )]
    async fn rotate(
        &self,
        who: Admin,
        request: &RequestContext,
        /// The endpoint's identifier.
        #[oai(validator(max_length = 40))]
        id: Path<String>,
        /// Makes a repeat of the request harmless for 24 hours; for 10 minutes the repeat shows
        /// the secret again.
        #[oai(name = "Idempotency-Key")]
        key: Idempotency,
        body: OptionalBody<RotateEndpointSecrets>,
    ) -> Result<Ok<IssuedEndpointSecret>, ApiError> {
        let id = parse_id::<EndpointId>(&id.0)?;
        let overlap = Duration::from_secs(body.0.overlap_seconds.unwrap_or(0).into());
        let key = key.of("rotate_endpoint_secrets", request);
        let context = self.app.context(request, who.0.actor(), key);
        let scoped = self.app.store.scoped(&who.0.scope);
        let rotated =
            scoped.rotate_endpoint_secrets(&context, id, overlap, |minted| issued(200, minted));
        Ok(rotated.await?.into())
    }

    /// Revoke an endpoint's secret
    ///
    /// Without any, the publisher's secrets sign its deliveries again. The last pair of keys stays
    /// while the endpoint signs by one.
    #[oai(
        path = "/webhook-endpoints/:id/secrets/:secret",
        method = "delete",
        operation_id = "delete_endpoint_secret"
    )]
    async fn delete(
        &self,
        who: Admin,
        request: &RequestContext,
        /// The endpoint's identifier.
        #[oai(validator(max_length = 40))]
        id: Path<String>,
        /// The secret's identifier.
        #[oai(validator(max_length = 40))]
        secret: Path<String>,
    ) -> Result<NoContent, ApiError> {
        let id = parse_id::<EndpointId>(&id.0)?;
        let secret = parse_id::<SecretId>(&secret.0)?;
        let context = self.app.context(request, who.0.actor(), None);
        let scoped = self.app.store.scoped(&who.0.scope);
        let gone = scoped.revoke_endpoint_secret(&context, id, secret, |()| no_content());
        Ok(gone.await?.into())
    }

    /// Get an endpoint's public keys
    ///
    /// Those that verify the deliveries of one endpoint that signs by `ed25519`. Needs no token:
    /// the name can't be guessed, and tells nothing of whose it is. Who tries many names is held
    /// to as many as failed tokens.
    #[oai(
        path = "/webhook-keys/:name",
        method = "get",
        operation_id = "get_webhook_keys"
    )]
    async fn keys(
        &self,
        request: &RequestContext,
        /// The name, as the endpoint's `public_keys` says.
        #[oai(validator(max_length = 40))]
        name: Path<String>,
    ) -> Result<Ok<WebhookKeys>, ApiError> {
        let (limits, address) = (&self.app.limits, request.address());
        let verdict = limits.may_authenticate(address, &TokenHash::of(&name.0));
        request.admit(verdict.map(|()| None))?;
        let found = match KeySetId::parse(&name.0) {
            Some(name) => self.app.store.public_keys(name).await,
            None => Err(domain::Problem::not_found().into()),
        };
        if let Err(StoreError::Refused(_)) = &found {
            let verdict = limits.authentication_failed(address);
            request.admit(verdict.map(|()| None))?;
        }
        let keys = WebhookKeys {
            items: found?.iter().map(Into::into).collect(),
        };
        Ok(Ok::show(&keys, None))
    }
}

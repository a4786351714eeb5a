//! Secrets that one endpoint has in place of its publisher's, and the public keys of those that
//! sign by a pair.

use std::{sync::Arc, time::Duration};

use poem_openapi::{Object, OpenApi, types::Example};
use secrecy::ExposeSecret as _;
use view_derive::{Example, View};

use domain::{
    id::{EndpointId, Id as _, KeySetId, SecretId},
    permission::{CredentialsRead, CredentialsWrite},
    signature::Signing,
    token::TokenHash,
};
use persistence::{Answer, EndpointSecret, MintedEndpointSecret, PublicKey, StoreError};

use crate::{
    auth::Caller,
    publishers::credentials::ReplacedCredential,
    shared::{
        App, Created, Idempotency, NoContent, Ok, Path, Tag, Text, Time, Word, answer, nil_id,
        no_content,
    },
};
use web::http::{ApiError, OptionalBody, RequestContext};

const EXAMPLE_PUBLIC: &str = "whpk_11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=";

/// A secret of an endpoint, without what it is.
#[derive(Object, View, Example, Clone, Debug)]
#[oai(rename = "EndpointSecret", example)]
#[view(of = EndpointSecret)]
pub struct EndpointSecretView {
    /// `sec_…`
    #[example(nil_id::<SecretId>())]
    id: String,
    /// What it signs by.
    #[example(Signing::Ed25519)]
    #[view(field = kind)]
    signing: Word<Signing>,
    /// The key that verifies what it signs, `whpk_…`; null for a shared secret.
    #[oai(nullable)]
    #[example(EXAMPLE_PUBLIC)]
    public_key: Option<String>,
    /// Its last four characters; of a pair, the public key's.
    #[example("URo=")]
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

/// All live secrets of an endpoint, on one page.
#[derive(Object, Example, Clone, Debug)]
#[oai(example)]
pub struct EndpointSecrets {
    /// The secrets, newest first. None: the publisher's sign.
    #[example([EndpointSecretView::example()])]
    items: Vec<EndpointSecretView>,
    /// Always null: there is no further page.
    #[oai(nullable)]
    next_cursor: Option<String>,
}

/// A new secret of an endpoint: this answer alone shows what it is.
#[derive(Object, View)]
#[oai(example)]
#[view(of = MintedEndpointSecret)]
pub struct IssuedEndpointSecret {
    #[oai(flatten)]
    #[view(field = secret)]
    of: EndpointSecretView,
    /// The secret itself, `whsec_…`; null for a pair of keys, of which nobody needs the private
    /// one.
    #[oai(nullable)]
    #[view(from = of.text.as_ref().map(|text| text.expose_secret().to_owned()))]
    secret: Option<String>,
    /// What a rotation replaced.
    replaced: Vec<ReplacedCredential>,
}

impl Example for IssuedEndpointSecret {
    fn example() -> Self {
        Self {
            of: EndpointSecretView {
                signing: Word(Signing::Hmac),
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
#[derive(Object, Example)]
#[oai(example, deny_unknown_fields, skip_serializing_if_is_none)]
struct RotateEndpointSecrets {
    /// How long the old ones still sign beside the new one, seconds: 7 days at most.
    #[oai(validator(minimum(value = "0"), maximum(value = "604800")))]
    #[example(3600)]
    overlap_seconds: Option<u32>,
}

/// A key that verifies deliveries.
#[derive(Object, View, Example, Clone, Debug)]
#[oai(rename = "WebhookKey")]
#[view(of = PublicKey)]
pub struct KeyView {
    /// `whpk_` and the base64 of the 32 bytes of an Ed25519 public key (Standard Webhooks).
    #[view(field = text)]
    #[example(EXAMPLE_PUBLIC)]
    public_key: String,
    /// When it stops being used.
    #[oai(nullable)]
    expires_at: Option<Time>,
}

/// The keys of one endpoint.
#[derive(Object, Example, Clone, Debug)]
#[oai(example)]
pub struct WebhookKeys {
    /// The keys, newest first: a delivery is genuine if any of them verifies it.
    #[example([KeyView::example()])]
    items: Vec<KeyView>,
}

fn issued(status: u16, minted: &MintedEndpointSecret) -> Answer {
    let view = IssuedEndpointSecret::from(minted);
    answer(status, &view).holds_secret(minted.text.is_some())
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
        who: Caller<CredentialsRead>,
        Path(id): Path<EndpointId>,
    ) -> Result<Ok<EndpointSecrets>, ApiError> {
        let webhooks = who.scoped().webhooks();
        let secrets = webhooks.endpoint_secrets(id).await?;
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
        who: Caller<CredentialsWrite>,
        Path(id): Path<EndpointId>,
        /// Makes a repeat of the request harmless for 24 hours; for 10 minutes the repeat shows
        /// the secret again.
        key: Idempotency,
    ) -> Result<Created<IssuedEndpointSecret>, ApiError> {
        let context = who.context_with(key);
        let webhooks = who.scoped().webhooks();
        let minted = webhooks.mint_endpoint_secret(&context, id, |minted| issued(201, minted));
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
        who: Caller<CredentialsWrite>,
        Path(id): Path<EndpointId>,
        /// Makes a repeat of the request harmless for 24 hours; for 10 minutes the repeat shows
        /// the secret again.
        key: Idempotency,
        body: OptionalBody<RotateEndpointSecrets>,
    ) -> Result<Ok<IssuedEndpointSecret>, ApiError> {
        let overlap = Duration::from_secs(body.0.overlap_seconds.unwrap_or(0).into());
        let context = who.context_with(key);
        let webhooks = who.scoped().webhooks();
        let rotated =
            webhooks.rotate_endpoint_secrets(&context, id, overlap, |minted| issued(200, minted));
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
        who: Caller<CredentialsWrite>,
        Path(id): Path<EndpointId>,
        Path(secret): Path<SecretId>,
    ) -> Result<NoContent, ApiError> {
        let context = who.context();
        let webhooks = who.scoped().webhooks();
        let gone = webhooks.revoke_endpoint_secret(&context, id, secret, |()| no_content());
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
        Path(name): Path<Text<40>>,
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

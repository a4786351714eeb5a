//! A publisher's credentials: two kinds of token that come in, two kinds of secret that go out.

use std::{sync::Arc, time::Duration};

use poem_openapi::{
    Enum, Object, OpenApi,
    param::{Path, Query},
    types::Example,
};
use secrecy::ExposeSecret as _;

use domain::{
    Code, Problem,
    credential::{CredentialKind, Source},
    id::CredentialId,
    slug::Slug,
};
use persistence::{Answer, Credential, Minted, NewCredential, Replaced};

use crate::{
    auth::Admin,
    runs::pipelines,
    shared::{
        App,
        common::{Created, NoContent, Ok, Tag, Time, answer, no_content},
        cursor::{List, Listed},
        examples::EXAMPLE_AT,
        idempotency::Idempotency,
    },
};
use web::{
    contract::OperationDoc,
    http::{ApiError, OptionalBody, RequestContext},
};

/// The problems of these operations.
pub const DOCS: &[OperationDoc] = &[
    OperationDoc {
        operation_id: "mint_credential",
        codes: &[Code::QuotaExceeded, Code::SecretNoLongerAvailable],
    },
    OperationDoc {
        operation_id: "rotate_credentials",
        codes: &[Code::QuotaExceeded, Code::SecretNoLongerAvailable],
    },
    OperationDoc {
        operation_id: "rotate_credential",
        codes: &[Code::QuotaExceeded, Code::SecretNoLongerAvailable],
    },
    OperationDoc {
        operation_id: "delete_credential",
        codes: &[Code::LastAdminToken, Code::LastSecret],
    },
];

pub(crate) const EXAMPLE_TOKEN_ID: &str = "tok_01h455vb4pex5vsknk084sn02q";
const EXAMPLE_SECRET_ID: &str = "sec_01h455vb4pex5vsknk084sn02q";

/// A kind of credential.
#[derive(Clone, Copy, Enum)]
#[oai(rename = "CredentialKind", rename_all = "snake_case")]
pub(crate) enum KindName {
    /// Comes in; may do everything within its publisher.
    Admin,
    /// Comes in; may start, claim and finish runs.
    Runner,
    /// Goes out: the key that signs webhooks.
    WebhookSigning,
    /// Goes out: the bearer that subcommand calls carry.
    SubcommandBearer,
}

impl From<CredentialKind> for KindName {
    fn from(kind: CredentialKind) -> Self {
        match kind {
            CredentialKind::Admin => Self::Admin,
            CredentialKind::Runner => Self::Runner,
            CredentialKind::WebhookSigning => Self::WebhookSigning,
            CredentialKind::SubcommandBearer => Self::SubcommandBearer,
        }
    }
}

impl From<KindName> for CredentialKind {
    fn from(name: KindName) -> Self {
        match name {
            KindName::Admin => Self::Admin,
            KindName::Runner => Self::Runner,
            KindName::WebhookSigning => Self::WebhookSigning,
            KindName::SubcommandBearer => Self::SubcommandBearer,
        }
    }
}

/// Where a credential came from.
#[derive(Clone, Copy, Enum)]
#[oai(rename = "CredentialSource", rename_all = "snake_case")]
pub(crate) enum SourceName {
    /// Made with its publisher.
    Bootstrap,
    /// Minted or rotated over this API.
    Api,
    /// Put there when the service was set up over an older one.
    Seed,
}

impl From<Source> for SourceName {
    fn from(source: Source) -> Self {
        match source {
            Source::Bootstrap => Self::Bootstrap,
            Source::Api => Self::Api,
            Source::Seed => Self::Seed,
        }
    }
}

/// A credential, without what it is.
#[derive(Object)]
#[oai(rename = "Credential", example)]
pub(crate) struct CredentialView {
    /// `tok_…` or `sec_…`
    id: String,
    /// Its kind; of an older token with several rights the first.
    kind: KindName,
    /// What it may do: more than one kind only for an older token.
    kinds: Vec<KindName>,
    /// Its name for people.
    #[oai(nullable)]
    name: Option<String>,
    /// Its last four characters.
    last_four: String,
    /// Where it came from.
    source: SourceName,
    /// The only pipelines that a runner token reaches; null for all.
    #[oai(nullable)]
    pipelines: Option<Vec<String>>,
    /// When it was made.
    created_at: Time,
    /// When it stops working.
    #[oai(nullable)]
    expires_at: Option<Time>,
    /// When a rotation replaced it; it works until `expires_at`.
    #[oai(nullable)]
    superseded_at: Option<Time>,
    /// When it was last used, to the minute.
    #[oai(nullable)]
    last_used_at: Option<Time>,
}

fn slugs(some: Option<&[Slug]>) -> Option<Vec<String>> {
    some.map(|slugs| slugs.iter().map(Slug::to_string).collect())
}

impl From<Credential> for CredentialView {
    fn from(credential: Credential) -> Self {
        let kinds = if credential.kind.is_token() {
            credential.grants.kinds()
        } else {
            vec![credential.kind]
        };
        Self {
            id: credential.id.to_string(),
            kind: credential.kind.into(),
            kinds: kinds.into_iter().map(KindName::from).collect(),
            pipelines: slugs(credential.pipelines.as_deref()),
            name: credential.name,
            last_four: credential.last_four,
            source: credential.source.into(),
            created_at: credential.created_at.into(),
            expires_at: credential.expires_at.map(Time),
            superseded_at: credential.superseded_at.map(Time),
            last_used_at: credential.last_used_at.map(Time),
        }
    }
}

impl Example for CredentialView {
    fn example() -> Self {
        Self {
            id: EXAMPLE_TOKEN_ID.into(),
            kind: KindName::Runner,
            kinds: vec![KindName::Runner],
            name: Some("importer".into()),
            last_four: "9kQz".into(),
            source: SourceName::Api,
            pipelines: Some(vec!["nightly-import".into()]),
            created_at: EXAMPLE_AT,
            expires_at: None,
            superseded_at: None,
            last_used_at: Some(EXAMPLE_AT),
        }
    }
}

/// A credential that a rotation replaced.
#[derive(Object)]
pub(crate) struct ReplacedCredential {
    /// `tok_…` or `sec_…`
    id: String,
    /// Until when it still works: the moment of the rotation if there is no overlap.
    valid_until: Time,
    /// When it was last used, to the minute.
    #[oai(nullable)]
    last_used_at: Option<Time>,
}

impl From<&Replaced> for ReplacedCredential {
    fn from(replaced: &Replaced) -> Self {
        Self {
            id: replaced.id.to_string(),
            valid_until: replaced.valid_until.into(),
            last_used_at: replaced.last_used_at.map(Time),
        }
    }
}

/// A new credential: this answer alone shows what it is.
#[derive(Object)]
#[oai(example)]
pub(crate) struct IssuedCredential {
    /// `tok_…` or `sec_…`
    id: String,
    /// Its kind.
    kind: KindName,
    /// The token itself; only of admin and runner tokens.
    #[oai(skip_serializing_if_is_none)]
    token: Option<String>,
    /// The secret itself; only of the two kinds of secret.
    #[oai(skip_serializing_if_is_none)]
    secret: Option<String>,
    /// Its last four characters, by which lists show it.
    last_four: String,
    /// Its name for people.
    #[oai(nullable)]
    name: Option<String>,
    /// The only pipelines that a runner token reaches; null for all.
    #[oai(nullable)]
    pipelines: Option<Vec<String>>,
    /// When it was made.
    created_at: Time,
    /// When it stops working.
    #[oai(nullable)]
    expires_at: Option<Time>,
    /// What a rotation replaced.
    replaced: Vec<ReplacedCredential>,
}

impl From<&Minted> for IssuedCredential {
    fn from(minted: &Minted) -> Self {
        let credential = &minted.credential;
        let text = minted.text.expose_secret().to_owned();
        let (token, secret) = if credential.kind.is_token() {
            (Some(text), None)
        } else {
            (None, Some(text))
        };
        Self {
            id: credential.id.to_string(),
            kind: credential.kind.into(),
            token,
            secret,
            last_four: credential.last_four.clone(),
            name: credential.name.clone(),
            pipelines: slugs(credential.pipelines.as_deref()),
            created_at: credential.created_at.into(),
            expires_at: credential.expires_at.map(Time),
            replaced: minted.replaced.iter().map(Into::into).collect(),
        }
    }
}

impl IssuedCredential {
    /// An example of a kind. Its text has the form of a real one, but its checksum is wrong.
    pub(crate) fn of_kind(kind: CredentialKind) -> Self {
        let text = |prefix: &str, length: usize| Some(format!("{prefix}{}", "x".repeat(length)));
        let (token, secret) = match kind {
            CredentialKind::Admin => (text("stm_admin_", 49), None),
            CredentialKind::Runner => (text("stm_runner_", 49), None),
            CredentialKind::WebhookSigning => (None, text("whsec_", 44)),
            CredentialKind::SubcommandBearer => (None, text("stm_sub_", 49)),
        };
        let id = if kind.is_token() {
            EXAMPLE_TOKEN_ID
        } else {
            EXAMPLE_SECRET_ID
        };
        Self {
            id: id.into(),
            kind: kind.into(),
            token,
            secret,
            last_four: "xxxx".into(),
            name: None,
            pipelines: None,
            created_at: EXAMPLE_AT,
            expires_at: None,
            replaced: Vec::new(),
        }
    }
}

impl Example for IssuedCredential {
    fn example() -> Self {
        Self {
            name: Some("importer".into()),
            replaced: vec![ReplacedCredential {
                id: "tok_01h455vb4pex5vsknk084sn02r".into(),
                valid_until: EXAMPLE_AT,
                last_used_at: Some(EXAMPLE_AT),
            }],
            ..Self::of_kind(CredentialKind::Runner)
        }
    }
}

/// What a new credential is given; everything may be left out.
#[derive(Object)]
#[oai(
    rename = "NewCredential",
    example,
    deny_unknown_fields,
    skip_serializing_if_is_none
)]
pub(crate) struct NewCredentialRequest {
    /// Its name for people.
    #[oai(validator(min_length = 1, max_length = 120))]
    name: Option<String>,
    /// When it stops working; by default never.
    expires_at: Option<Time>,
    /// The only pipelines that it reaches; only for runner tokens.
    #[oai(validator(
        min_items = 1,
        max_items = 50,
        unique_items,
        pattern = "^[a-z0-9][a-z0-9-]{0,62}$"
    ))]
    pipelines: Option<Vec<String>>,
}

impl NewCredentialRequest {
    pub(crate) fn parse(self) -> Result<NewCredential, ApiError> {
        new_credential(self.name, self.expires_at, self.pipelines)
    }
}

fn new_credential(
    name: Option<String>,
    expires_at: Option<Time>,
    pipelines: Option<Vec<String>>,
) -> Result<NewCredential, ApiError> {
    let mut faults = Vec::new();
    let pipelines = pipelines.map(|texts| pipelines::slugs(&texts, "/pipelines", &mut faults));
    if !faults.is_empty() {
        return Err(Problem::invalid(faults).into());
    }
    Ok(NewCredential {
        name,
        expires_at: expires_at.map(|at| at.0),
        pipelines,
    })
}

impl Example for NewCredentialRequest {
    fn example() -> Self {
        Self {
            name: Some("importer".into()),
            expires_at: None,
            pipelines: Some(vec!["nightly-import".into()]),
        }
    }
}

/// How all credentials of a kind are replaced.
#[derive(Object)]
#[oai(example, deny_unknown_fields, skip_serializing_if_is_none)]
struct RotateCredentials {
    /// How long the old ones still work, seconds: 7 days at most. Never longer than they would
    /// have without the rotation.
    #[oai(validator(minimum(value = "0"), maximum(value = "604800")))]
    overlap_seconds: Option<u32>,
    /// The new one's name; by default the old one's if there is exactly one.
    #[oai(validator(min_length = 1, max_length = 120))]
    name: Option<String>,
    /// When the new one stops working; by default as the old one if there is exactly one.
    expires_at: Option<Time>,
    /// The only pipelines that the new one reaches; by default the old one's if there is exactly
    /// one.
    #[oai(validator(
        min_items = 1,
        max_items = 50,
        unique_items,
        pattern = "^[a-z0-9][a-z0-9-]{0,62}$"
    ))]
    pipelines: Option<Vec<String>>,
}

impl Example for RotateCredentials {
    fn example() -> Self {
        Self {
            overlap_seconds: Some(3600),
            name: None,
            expires_at: None,
            pipelines: None,
        }
    }
}

/// How one credential is replaced.
#[derive(Object)]
#[oai(example, deny_unknown_fields, skip_serializing_if_is_none)]
struct RotateCredential {
    /// How long the old one still works, seconds: 7 days at most. Never longer than it would
    /// have without the rotation.
    #[oai(validator(minimum(value = "0"), maximum(value = "604800")))]
    overlap_seconds: Option<u32>,
}

impl Example for RotateCredential {
    fn example() -> Self {
        Self {
            overlap_seconds: Some(3600),
        }
    }
}

fn overlap(seconds: Option<u32>) -> Duration {
    Duration::from_secs(seconds.unwrap_or(0).into())
}

fn credential_id(text: &str) -> Result<CredentialId, ApiError> {
    CredentialId::parse(text).ok_or_else(|| Problem::not_found().into())
}

fn made(minted: &Minted) -> Answer {
    answer(201, &IssuedCredential::from(minted), None, None, true)
}

fn rotated(minted: &Minted) -> Answer {
    answer(200, &IssuedCredential::from(minted), None, None, true)
}

/// A publisher's credentials.
pub(crate) struct Credentials {
    pub(crate) app: Arc<App>,
}

#[OpenApi(prefix_path = "/v1", tag = "Tag::Credentials")]
impl Credentials {
    /// List credentials
    ///
    /// All that are not revoked, newest first, without what they are.
    #[oai(
        path = "/publishers/me/tokens",
        method = "get",
        operation_id = "list_credentials"
    )]
    async fn list(
        &self,
        who: Admin,
        context: &RequestContext,
        /// Only this kind.
        kind: Query<Option<KindName>>,
        /// Page size.
        #[oai(validator(minimum(value = "1"), maximum(value = "200")))]
        limit: Query<Option<u64>>,
        /// Cursor: the `next_cursor` of the previous page.
        #[oai(validator(max_length = 200))]
        cursor: Query<Option<String>>,
    ) -> Result<Listed<CredentialView>, ApiError> {
        let scope = &who.0.scope;
        let list = List::begin(&self.app, context, Some(scope), limit.0, cursor.0).await?;
        let scoped = self.app.store.scoped(scope);
        let page = scoped.credentials(kind.0.map(Into::into), list.page()?);
        Ok(list.answer(page.await?, Into::into))
    }

    /// Create a credential
    #[oai(
        path = "/publishers/me/tokens/:kind",
        method = "post",
        operation_id = "mint_credential"
    )]
    async fn mint(
        &self,
        who: Admin,
        context: &RequestContext,
        /// The kind of credential.
        kind: Path<KindName>,
        /// Makes a repeat of the request harmless for 24 hours; for 10 minutes the repeat shows
        /// the credential again.
        #[oai(name = "Idempotency-Key")]
        key: Idempotency,
        body: OptionalBody<NewCredentialRequest>,
    ) -> Result<Created<IssuedCredential>, ApiError> {
        let new = body.0.parse()?;
        let key = key.of("mint_credential", context);
        let context = self.app.context(context, who.0.actor(), key);
        let scoped = self.app.store.scoped(&who.0.scope);
        Ok(scoped
            .mint(&context, kind.0.into(), new, made)
            .await?
            .into())
    }

    /// Rotate all credentials of a kind
    ///
    /// One new credential takes the place of all of them. Without an overlap the old ones stop
    /// working before the answer is sent.
    #[oai(
        path = "/publishers/me/tokens/:kind/rotate",
        method = "post",
        operation_id = "rotate_credentials"
    )]
    async fn rotate_all(
        &self,
        who: Admin,
        context: &RequestContext,
        /// The kind of credential.
        kind: Path<KindName>,
        /// Makes a repeat of the request harmless for 24 hours; for 10 minutes the repeat shows
        /// the credential again.
        #[oai(name = "Idempotency-Key")]
        key: Idempotency,
        body: OptionalBody<RotateCredentials>,
    ) -> Result<Ok<IssuedCredential>, ApiError> {
        let body = body.0;
        let new = new_credential(body.name, body.expires_at, body.pipelines)?;
        let key = key.of("rotate_credentials", context);
        let context = self.app.context(context, who.0.actor(), key);
        let scoped = self.app.store.scoped(&who.0.scope);
        let overlap = overlap(body.overlap_seconds);
        let answer = scoped.rotate_all(&context, kind.0.into(), overlap, new, rotated);
        Ok(answer.await?.into())
    }

    /// Rotate one credential
    ///
    /// The new one has the old one's name, pipelines and expiry.
    #[oai(
        path = "/publishers/me/tokens/:kind/:id/rotate",
        method = "post",
        operation_id = "rotate_credential"
    )]
    async fn rotate_one(
        &self,
        who: Admin,
        context: &RequestContext,
        /// The kind of credential.
        kind: Path<KindName>,
        /// The credential's identifier.
        #[oai(validator(max_length = 64))]
        id: Path<String>,
        /// Makes a repeat of the request harmless for 24 hours; for 10 minutes the repeat shows
        /// the credential again.
        #[oai(name = "Idempotency-Key")]
        key: Idempotency,
        body: OptionalBody<RotateCredential>,
    ) -> Result<Ok<IssuedCredential>, ApiError> {
        let id = credential_id(&id.0)?;
        let key = key.of("rotate_credential", context);
        let context = self.app.context(context, who.0.actor(), key);
        let scoped = self.app.store.scoped(&who.0.scope);
        let overlap = overlap(body.0.overlap_seconds);
        let answer = scoped.rotate_one(&context, kind.0.into(), id, overlap, rotated);
        Ok(answer.await?.into())
    }

    /// Revoke a credential
    ///
    /// It has stopped working when the answer arrives. An older token with several rights loses
    /// the one of `kind` and keeps the others.
    #[oai(
        path = "/publishers/me/tokens/:kind/:id",
        method = "delete",
        operation_id = "delete_credential"
    )]
    async fn delete(
        &self,
        who: Admin,
        context: &RequestContext,
        /// The kind of credential.
        kind: Path<KindName>,
        /// The credential's identifier.
        #[oai(validator(max_length = 64))]
        id: Path<String>,
    ) -> Result<NoContent, ApiError> {
        let id = credential_id(&id.0)?;
        let context = self.app.context(context, who.0.actor(), None);
        let scoped = self.app.store.scoped(&who.0.scope);
        let answer = scoped.revoke(&context, kind.0.into(), id, |()| no_content());
        Ok(answer.await?.into())
    }
}

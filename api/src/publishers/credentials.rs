//! A publisher's credentials: two kinds of token that come in, two kinds of secret that go out.

use std::time::Duration;

use poem_openapi::{Object, OpenApi, param::Query, types::Example};
use secrecy::ExposeSecret as _;
use view_derive::{Example, View};

use domain::{
    Problem,
    credential::{CredentialKind, Source},
    id::CredentialId,
    permission::{CredentialsRead, CredentialsWrite},
};
use persistence::{Answer, Credential, Minted, NewCredential, Replaced};

use crate::{
    auth::Caller,
    identity::views::EXAMPLE_USER_ID,
    runs::pipelines,
    shared::{
        Created, EXAMPLE_AT, Idempotency, Listed, NoContent, Ok, PageQuery, Path, Tag, Time, Word,
        answer, no_content,
    },
};
use web::http::{ApiError, OptionalBody};

pub(crate) const EXAMPLE_TOKEN_ID: &str = "tok_01h455vb4pex5vsknk084sn02q";
const EXAMPLE_SECRET_ID: &str = "sec_01h455vb4pex5vsknk084sn02q";

/// A credential, without what it is.
#[derive(Object, View, Example)]
#[oai(rename = "Credential", example)]
#[view(of = Credential)]
pub(crate) struct CredentialView {
    /// `tok_…` or `sec_…`
    #[example(EXAMPLE_TOKEN_ID)]
    id: String,
    /// Its kind; of an older token with several rights the first.
    #[example(CredentialKind::Runner)]
    kind: Word<CredentialKind>,
    /// What it may do: more than one kind only for an older token.
    #[example([CredentialKind::Runner])]
    #[view(from = kinds(of))]
    kinds: Vec<Word<CredentialKind>>,
    /// Its name for people.
    #[oai(nullable)]
    #[example("importer")]
    name: Option<String>,
    /// Its last four characters.
    #[example("9kQz")]
    last_four: String,
    /// Where it came from.
    #[example(Source::Api)]
    source: Word<Source>,
    /// The only pipelines that a runner token reaches; null for all.
    #[oai(nullable)]
    #[example(["nightly-import"])]
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
    #[example(EXAMPLE_AT)]
    last_used_at: Option<Time>,
    /// The person who made it, `usr_…`; null if a token did.
    #[oai(nullable)]
    #[example(EXAMPLE_USER_ID)]
    minted_by: Option<String>,
}

/// A credential that a rotation replaced.
#[derive(Object, View)]
#[view(of = Replaced)]
pub(crate) struct ReplacedCredential {
    /// `tok_…` or `sec_…`
    id: String,
    /// Until when it still works: the moment of the rotation if there is no overlap.
    valid_until: Time,
    /// When it was last used, to the minute.
    #[oai(nullable)]
    last_used_at: Option<Time>,
}

/// What a credential may do.
fn kinds(credential: &Credential) -> Vec<Word<CredentialKind>> {
    let kinds = if credential.kind.is_token() {
        credential.grants.kinds()
    } else {
        vec![credential.kind]
    };
    kinds.into_iter().map(Word).collect()
}

/// The text of a new credential, in the member that is for its kind.
fn text_if(wanted: bool, minted: &Minted) -> Option<String> {
    wanted.then(|| minted.text.expose_secret().to_owned())
}

/// A new credential: this answer alone shows what it is.
#[derive(Object, View)]
#[oai(example)]
#[view(of = Minted)]
pub(crate) struct IssuedCredential {
    /// `tok_…` or `sec_…`
    #[view(field = credential.id)]
    id: String,
    /// Its kind.
    #[view(field = credential.kind)]
    kind: Word<CredentialKind>,
    /// The token itself; only of admin and runner tokens.
    #[oai(skip_serializing_if_is_none)]
    #[view(from = text_if(of.credential.kind.is_token(), of))]
    token: Option<String>,
    /// The secret itself; only of the two kinds of secret.
    #[oai(skip_serializing_if_is_none)]
    #[view(from = text_if(!of.credential.kind.is_token(), of))]
    secret: Option<String>,
    /// Its last four characters, by which lists show it.
    #[view(field = credential.last_four)]
    last_four: String,
    /// Its name for people.
    #[oai(nullable)]
    #[view(field = credential.name)]
    name: Option<String>,
    /// The only pipelines that a runner token reaches; null for all.
    #[oai(nullable)]
    #[view(field = credential.pipelines)]
    pipelines: Option<Vec<String>>,
    /// When it was made.
    #[view(field = credential.created_at)]
    created_at: Time,
    /// When it stops working.
    #[oai(nullable)]
    #[view(field = credential.expires_at)]
    expires_at: Option<Time>,
    /// What a rotation replaced.
    replaced: Vec<ReplacedCredential>,
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
            kind: Word(kind),
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
#[derive(Object, Example)]
#[oai(
    rename = "NewCredential",
    example,
    deny_unknown_fields,
    skip_serializing_if_is_none
)]
pub(crate) struct NewCredentialRequest {
    /// Its name for people.
    #[oai(validator(min_length = 1, max_length = 120))]
    #[example("importer")]
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
    #[example(["nightly-import"])]
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

/// How all credentials of a kind are replaced.
#[derive(Object, Example)]
#[oai(example, deny_unknown_fields, skip_serializing_if_is_none)]
struct RotateCredentials {
    /// How long the old ones still work, seconds: 7 days at most. Never longer than they would
    /// have without the rotation.
    #[oai(validator(minimum(value = "0"), maximum(value = "604800")))]
    #[example(3600)]
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

/// How one credential is replaced.
#[derive(Object, Example)]
#[oai(example, deny_unknown_fields, skip_serializing_if_is_none)]
struct RotateCredential {
    /// How long the old one still works, seconds: 7 days at most. Never longer than it would
    /// have without the rotation.
    #[oai(validator(minimum(value = "0"), maximum(value = "604800")))]
    #[example(3600)]
    overlap_seconds: Option<u32>,
}

fn overlap(seconds: Option<u32>) -> Duration {
    Duration::from_secs(seconds.unwrap_or(0).into())
}

fn made(minted: &Minted) -> Answer {
    answer(201, &IssuedCredential::from(minted)).holds_secret(true)
}

fn rotated(minted: &Minted) -> Answer {
    answer(200, &IssuedCredential::from(minted)).holds_secret(true)
}

/// A publisher's credentials.
pub(crate) struct Credentials;

#[OpenApi(prefix_path = "/v1/publishers/me/tokens", tag = "Tag::Credentials")]
impl Credentials {
    /// List credentials
    ///
    /// All that are not revoked, newest first, without what they are.
    #[oai(path = "/", method = "get", operation_id = "list_credentials")]
    async fn list(
        &self,
        who: Caller<CredentialsRead>,
        /// Only this kind.
        kind: Query<Option<Word<CredentialKind>>>,
        page: PageQuery,
    ) -> Result<Listed<CredentialView>, ApiError> {
        let list = who.list(page).await?;
        let credentials = who.scoped().credentials();
        let page = credentials.credentials(kind.0.map(|kind| kind.0), list.page()?);
        Ok(list.answer(page.await?, Into::into))
    }

    /// Create a credential
    #[oai(path = "/:kind", method = "post", operation_id = "mint_credential")]
    async fn mint(
        &self,
        who: Caller<CredentialsWrite>,
        /// The kind of credential.
        Path(kind): Path<Word<CredentialKind>>,
        /// Makes a repeat of the request harmless for 24 hours; for 10 minutes the repeat shows
        /// the credential again.
        key: Idempotency,
        body: OptionalBody<NewCredentialRequest>,
    ) -> Result<Created<IssuedCredential>, ApiError> {
        let new = body.0.parse()?;
        let context = who.context_with(key);
        let credentials = who.scoped().credentials();
        let answer = credentials.mint(&context, kind.0, new, made);
        Ok(answer.await?.into())
    }

    /// Rotate all credentials of a kind
    ///
    /// One new credential takes the place of all of them. Without an overlap the old ones stop
    /// working before the answer is sent.
    #[oai(
        path = "/:kind/rotate",
        method = "post",
        operation_id = "rotate_credentials"
    )]
    async fn rotate_all(
        &self,
        who: Caller<CredentialsWrite>,
        /// The kind of credential.
        Path(kind): Path<Word<CredentialKind>>,
        /// Makes a repeat of the request harmless for 24 hours; for 10 minutes the repeat shows
        /// the credential again.
        key: Idempotency,
        body: OptionalBody<RotateCredentials>,
    ) -> Result<Ok<IssuedCredential>, ApiError> {
        let body = body.0;
        let new = new_credential(body.name, body.expires_at, body.pipelines)?;
        let context = who.context_with(key);
        let credentials = who.scoped().credentials();
        let overlap = overlap(body.overlap_seconds);
        let answer = credentials.rotate_all(&context, kind.0, overlap, new, rotated);
        Ok(answer.await?.into())
    }

    /// Rotate one credential
    ///
    /// The new one has the old one's name, pipelines and expiry.
    #[oai(
        path = "/:kind/:id/rotate",
        method = "post",
        operation_id = "rotate_credential"
    )]
    async fn rotate_one(
        &self,
        who: Caller<CredentialsWrite>,
        /// The kind of credential.
        Path(kind): Path<Word<CredentialKind>>,
        Path(id): Path<CredentialId>,
        /// Makes a repeat of the request harmless for 24 hours; for 10 minutes the repeat shows
        /// the credential again.
        key: Idempotency,
        body: OptionalBody<RotateCredential>,
    ) -> Result<Ok<IssuedCredential>, ApiError> {
        let context = who.context_with(key);
        let credentials = who.scoped().credentials();
        let overlap = overlap(body.0.overlap_seconds);
        let answer = credentials.rotate_one(&context, kind.0, id, overlap, rotated);
        Ok(answer.await?.into())
    }

    /// Revoke a credential
    ///
    /// It has stopped working when the answer arrives. An older token with several rights loses
    /// the one of `kind` and keeps the others.
    #[oai(
        path = "/:kind/:id",
        method = "delete",
        operation_id = "delete_credential"
    )]
    async fn delete(
        &self,
        who: Caller<CredentialsWrite>,
        /// The kind of credential.
        Path(kind): Path<Word<CredentialKind>>,
        Path(id): Path<CredentialId>,
    ) -> Result<NoContent, ApiError> {
        let context = who.context();
        let credentials = who.scoped().credentials();
        let answer = credentials.revoke(&context, kind.0, id, |()| no_content());
        Ok(answer.await?.into())
    }
}

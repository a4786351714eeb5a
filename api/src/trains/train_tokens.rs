//! Tokens of trains: what the clients of an AI gateway present.

use std::sync::Arc;

use poem_openapi::{
    Object, OpenApi,
    param::{Path, Query},
    types::Example,
};
use secrecy::ExposeSecret as _;

use domain::{Code, id::TokenId};
use persistence::{Answer, MintedTrainToken, NewTrainToken, TrainToken};

use crate::{
    auth::Admin,
    publishers::credentials::EXAMPLE_TOKEN_ID,
    shared::{
        App,
        common::{Created, NoContent, Tag, Time, answer, no_content, parse_id, parse_slug},
        cursor::{List, Listed},
        examples::EXAMPLE_AT,
        idempotency::Idempotency,
    },
};
use web::{
    contract::OperationDoc,
    http::{ApiError, OptionalBody, RequestContext},
};

/// The problems of these operations' own.
pub const DOCS: &[OperationDoc] = &[OperationDoc {
    operation_id: "mint_train_token",
    codes: &[Code::QuotaExceeded, Code::SecretNoLongerAvailable],
}];

/// A train's token, without what it is.
#[derive(Object)]
#[oai(rename = "TrainToken", example)]
struct TrainTokenView {
    /// `tok_…`
    id: String,
    /// Its name for people.
    #[oai(nullable)]
    name: Option<String>,
    /// Its last four characters.
    last_four: String,
    /// Whether it was made elsewhere and imported.
    imported: bool,
    /// When it was made.
    created_at: Time,
    /// When it stops working.
    #[oai(nullable)]
    expires_at: Option<Time>,
    /// When it was taken away.
    #[oai(nullable)]
    revoked_at: Option<Time>,
    /// When it was last used, to the minute.
    #[oai(nullable)]
    last_used_at: Option<Time>,
}

impl From<TrainToken> for TrainTokenView {
    fn from(token: TrainToken) -> Self {
        Self {
            id: token.id.to_string(),
            name: token.name,
            last_four: token.last_four,
            imported: token.imported,
            created_at: token.created_at.into(),
            expires_at: token.expires_at.map(Time),
            revoked_at: token.revoked_at.map(Time),
            last_used_at: token.last_used_at.map(Time),
        }
    }
}

impl Example for TrainTokenView {
    fn example() -> Self {
        Self {
            id: EXAMPLE_TOKEN_ID.into(),
            name: Some("gateway".into()),
            last_four: "9kQz".into(),
            imported: false,
            created_at: EXAMPLE_AT,
            expires_at: None,
            revoked_at: None,
            last_used_at: Some(EXAMPLE_AT),
        }
    }
}

/// A new token of a train: this answer alone shows what it is.
#[derive(Object)]
#[oai(example)]
struct IssuedTrainToken {
    /// `tok_…`
    id: String,
    /// The token itself.
    token: String,
    /// Its last four characters, by which lists show it.
    last_four: String,
    /// Its name for people.
    #[oai(nullable)]
    name: Option<String>,
    /// When it was made.
    created_at: Time,
    /// When it stops working.
    #[oai(nullable)]
    expires_at: Option<Time>,
}

impl From<&MintedTrainToken> for IssuedTrainToken {
    fn from(minted: &MintedTrainToken) -> Self {
        let token = &minted.token;
        Self {
            id: token.id.to_string(),
            token: minted.text.expose_secret().to_owned(),
            last_four: token.last_four.clone(),
            name: token.name.clone(),
            created_at: token.created_at.into(),
            expires_at: token.expires_at.map(Time),
        }
    }
}

impl Example for IssuedTrainToken {
    /// Its text has the form of a real one, but its checksum is wrong.
    fn example() -> Self {
        Self {
            id: EXAMPLE_TOKEN_ID.into(),
            token: format!("ptk_{}", "x".repeat(49)),
            last_four: "xxxx".into(),
            name: Some("gateway".into()),
            created_at: EXAMPLE_AT,
            expires_at: None,
        }
    }
}

/// What a new token of a train is given; everything may be left out.
#[derive(Object)]
#[oai(
    rename = "NewTrainToken",
    example,
    deny_unknown_fields,
    skip_serializing_if_is_none
)]
struct NewTrainTokenRequest {
    /// Its name for people.
    #[oai(validator(min_length = 1, max_length = 120))]
    name: Option<String>,
    /// When it stops working; by default never.
    expires_at: Option<Time>,
}

impl Example for NewTrainTokenRequest {
    fn example() -> Self {
        Self {
            name: Some("gateway".into()),
            expires_at: None,
        }
    }
}

fn made(minted: &MintedTrainToken) -> Answer {
    answer(201, &IssuedTrainToken::from(minted), None, None, true)
}

/// The operations on trains' tokens.
pub(crate) struct TrainTokens {
    pub(crate) app: Arc<App>,
}

#[OpenApi(prefix_path = "/v1", tag = "Tag::Trains")]
impl TrainTokens {
    /// List a train's tokens
    ///
    /// Newest first, without what they are. Revoked ones stay in the list until they are swept.
    #[oai(
        path = "/trains/:slug/tokens",
        method = "get",
        operation_id = "list_train_tokens"
    )]
    async fn list(
        &self,
        who: Admin,
        context: &RequestContext,
        /// The train's slug.
        #[oai(validator(max_length = 64))]
        slug: Path<String>,
        /// Page size.
        #[oai(validator(minimum(value = "1"), maximum(value = "200")))]
        limit: Query<Option<u64>>,
        /// Cursor: the `next_cursor` of the previous page.
        #[oai(validator(max_length = 200))]
        cursor: Query<Option<String>>,
    ) -> Result<Listed<TrainTokenView>, ApiError> {
        let slug = parse_slug(&slug.0)?;
        let scope = &who.0.scope;
        let list = List::begin(&self.app, context, Some(scope), limit.0, cursor.0).await?;
        let scoped = self.app.store.scoped(scope);
        let page = scoped.train_tokens(&slug, list.page()?).await?;
        Ok(list.answer(page, Into::into))
    }

    /// Create a token for a train
    #[oai(
        path = "/trains/:slug/tokens",
        method = "post",
        operation_id = "mint_train_token"
    )]
    async fn mint(
        &self,
        who: Admin,
        context: &RequestContext,
        /// The train's slug.
        #[oai(validator(max_length = 64))]
        slug: Path<String>,
        /// Makes a repeat of the request harmless for 24 hours; for 10 minutes the repeat shows
        /// the token again.
        #[oai(name = "Idempotency-Key")]
        key: Idempotency,
        body: OptionalBody<NewTrainTokenRequest>,
    ) -> Result<Created<IssuedTrainToken>, ApiError> {
        let slug = parse_slug(&slug.0)?;
        let new = NewTrainToken {
            name: body.0.name,
            expires_at: body.0.expires_at.map(|at| at.0),
        };
        let key = key.of("mint_train_token", context);
        let context = self.app.context(context, who.0.actor(), key);
        let scoped = self.app.store.scoped(&who.0.scope);
        let answer = scoped.mint_train_token(&context, &slug, new, made);
        Ok(answer.await?.into())
    }

    /// Revoke a train's token
    ///
    /// It has stopped working when the answer arrives.
    #[oai(
        path = "/trains/:slug/tokens/:id",
        method = "delete",
        operation_id = "delete_train_token"
    )]
    async fn delete(
        &self,
        who: Admin,
        context: &RequestContext,
        /// The train's slug.
        #[oai(validator(max_length = 64))]
        slug: Path<String>,
        /// The token's identifier.
        #[oai(validator(max_length = 64))]
        id: Path<String>,
    ) -> Result<NoContent, ApiError> {
        let (slug, id) = (parse_slug(&slug.0)?, parse_id::<TokenId>(&id.0)?);
        let context = self.app.context(context, who.0.actor(), None);
        let scoped = self.app.store.scoped(&who.0.scope);
        let answer = scoped.revoke_train_token(&context, &slug, id, |()| no_content());
        Ok(answer.await?.into())
    }
}

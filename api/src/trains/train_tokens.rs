//! Tokens of trains: what the clients of an AI gateway present.

use poem_openapi::{Object, OpenApi};
use secrecy::ExposeSecret as _;
use view_derive::{Example, View};

use domain::{
    Slug,
    id::TokenId,
    permission::{CredentialsRead, CredentialsWrite},
};
use persistence::{Answer, MintedTrainToken, NewTrainToken, TrainToken};

use crate::{
    auth::Caller,
    identity::views::EXAMPLE_USER_ID,
    publishers::credentials::EXAMPLE_TOKEN_ID,
    shared::{
        Created, EXAMPLE_AT, Idempotency, Listed, NoContent, PageQuery, Path, Tag, Time, answer,
        no_content,
    },
};
use web::http::{ApiError, OptionalBody};

/// A train's token, without what it is.
#[derive(Object, View, Example)]
#[oai(rename = "TrainToken", example)]
#[view(of = TrainToken)]
struct TrainTokenView {
    /// `tok_…`
    #[example(EXAMPLE_TOKEN_ID)]
    id: String,
    /// Its name for people.
    #[oai(nullable)]
    #[example("gateway")]
    name: Option<String>,
    /// Its last four characters.
    #[example("9kQz")]
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
    #[example(EXAMPLE_AT)]
    last_used_at: Option<Time>,
    /// The person who made it, `usr_…`; null if a token did.
    #[oai(nullable)]
    #[example(EXAMPLE_USER_ID)]
    minted_by: Option<String>,
}

/// A new token of a train: this answer alone shows what it is.
#[derive(Object, View, Example)]
#[oai(example)]
#[view(of = MintedTrainToken)]
struct IssuedTrainToken {
    /// `tok_…`
    #[view(field = token.id)]
    #[example(EXAMPLE_TOKEN_ID)]
    id: String,
    /// The token itself.
    #[view(from = of.text.expose_secret().to_owned())]
    // It has the form of a real one, but its checksum is wrong.
    #[example(format!("ptk_{}", "x".repeat(49)))]
    token: String,
    /// Its last four characters, by which lists show it.
    #[view(field = token.last_four)]
    #[example("xxxx")]
    last_four: String,
    /// Its name for people.
    #[oai(nullable)]
    #[view(field = token.name)]
    #[example("gateway")]
    name: Option<String>,
    /// When it was made.
    #[view(field = token.created_at)]
    created_at: Time,
    /// When it stops working.
    #[oai(nullable)]
    #[view(field = token.expires_at)]
    expires_at: Option<Time>,
}

/// What a new token of a train is given; everything may be left out.
#[derive(Object, Example)]
#[oai(
    rename = "NewTrainToken",
    example,
    deny_unknown_fields,
    skip_serializing_if_is_none
)]
struct NewTrainTokenRequest {
    /// Its name for people.
    #[oai(validator(min_length = 1, max_length = 120))]
    #[example("gateway")]
    name: Option<String>,
    /// When it stops working; by default never.
    expires_at: Option<Time>,
}

fn made(minted: &MintedTrainToken) -> Answer {
    answer(201, &IssuedTrainToken::from(minted)).holds_secret(true)
}

/// The operations on trains' tokens.
pub(crate) struct TrainTokens;

#[OpenApi(prefix_path = "/v1/trains", tag = "Tag::Trains")]
impl TrainTokens {
    /// List a train's tokens
    ///
    /// Newest first, without what they are. Revoked ones stay in the list until they are swept.
    #[oai(
        path = "/:slug/tokens",
        method = "get",
        operation_id = "list_train_tokens"
    )]
    async fn list(
        &self,
        who: Caller<CredentialsRead>,
        /// The train's slug.
        #[oai(validator(max_length = 64))]
        Path(slug): Path<Slug>,
        page: PageQuery,
    ) -> Result<Listed<TrainTokenView>, ApiError> {
        let list = who.list(page).await?;
        let trains = who.scoped().trains();
        let page = trains.train_tokens(&slug, list.page()?).await?;
        Ok(list.answer(page, Into::into))
    }

    /// Create a token for a train
    #[oai(
        path = "/:slug/tokens",
        method = "post",
        operation_id = "mint_train_token"
    )]
    async fn mint(
        &self,
        who: Caller<CredentialsWrite>,
        /// The train's slug.
        #[oai(validator(max_length = 64))]
        Path(slug): Path<Slug>,
        /// Makes a repeat of the request harmless for 24 hours; for 10 minutes the repeat shows
        /// the token again.
        key: Idempotency,
        body: OptionalBody<NewTrainTokenRequest>,
    ) -> Result<Created<IssuedTrainToken>, ApiError> {
        let new = NewTrainToken {
            name: body.0.name,
            expires_at: body.0.expires_at.map(|at| at.0),
        };
        let context = who.context_with(key);
        let trains = who.scoped().trains();
        let answer = trains.mint_train_token(&context, &slug, new, made);
        Ok(answer.await?.into())
    }

    /// Revoke a train's token
    ///
    /// It has stopped working when the answer arrives.
    #[oai(
        path = "/:slug/tokens/:id",
        method = "delete",
        operation_id = "delete_train_token"
    )]
    async fn delete(
        &self,
        who: Caller<CredentialsWrite>,
        /// The train's slug.
        #[oai(validator(max_length = 64))]
        Path(slug): Path<Slug>,
        Path(id): Path<TokenId>,
    ) -> Result<NoContent, ApiError> {
        let context = who.context();
        let trains = who.scoped().trains();
        let answer = trains.revoke_train_token(&context, &slug, id, |()| no_content());
        Ok(answer.await?.into())
    }
}

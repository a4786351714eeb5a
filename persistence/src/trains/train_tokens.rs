//! Tokens of trains: the clients of an AI gateway authenticate with them.

use domain::{
    FaultCode, Problem, Timestamp,
    audit::Action,
    id::{Id, TokenId, UserId},
    limits::Quotas,
    slug::Slug,
    token::{self, Prefix, TokenHash},
};
use sea_orm::{
    ActiveModelTrait as _, ActiveValue::Set, ColumnTrait as _, ConnectionTrait, DbErr,
    EntityTrait as _, IntoActiveModel as _, PaginatorTrait as _, QueryFilter as _,
};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::json;
use uuid::Uuid;

use crate::{
    store::{
        Scoped,
        change::{Answer, Audited, Context, audit_entry},
        db::Tx,
        entity::{train_token_hashes, train_tokens, trains},
        error::{Result, StoreError},
        page::{Page, PageRequest},
        quota::{over_quota, quotas_of},
        sql::padded,
        walk::{Path, Span, Walk},
    },
    trains::Trains,
    trains::train::{live_tokens, of as trains_of, row_of},
};

/// The source of tokens that were created over the API.
const MADE: &str = "api";
/// The source of imported tokens, which may have any form.
pub(crate) const IMPORTED: &str = "import";

/// A train's token, without its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrainToken {
    /// The token's identifier.
    pub id: TokenId,
    /// A name for people.
    pub name: Option<String>,
    /// The last four characters.
    pub last_four: String,
    /// Whether the token was imported.
    pub imported: bool,
    /// When the token was created.
    pub created_at: Timestamp,
    /// When the token expires.
    pub expires_at: Option<Timestamp>,
    /// When the token was revoked.
    pub revoked_at: Option<Timestamp>,
    /// When the token was last used, to the minute.
    pub last_used_at: Option<Timestamp>,
    /// The person who created it, if a person did.
    pub minted_by: Option<UserId>,
}

/// A new token with its value, which cannot be read later.
#[derive(Clone, Debug)]
pub struct MintedTrainToken {
    /// The token without its value.
    pub token: TrainToken,
    /// The value.
    pub text: SecretString,
}

/// What a caller gives for a new token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewTrainToken {
    /// A name for people.
    pub name: Option<String>,
    /// When the token expires.
    pub expires_at: Option<Timestamp>,
}

fn token_of(row: train_tokens::Model) -> TrainToken {
    TrainToken {
        id: TokenId::from_uuid(row.id),
        name: row.name,
        last_four: row.last_four,
        imported: row.source == IMPORTED,
        created_at: Timestamp::from_ms(row.created_at),
        expires_at: row.expires_at.map(Timestamp::from_ms),
        revoked_at: row.revoked_at.map(Timestamp::from_ms),
        last_used_at: row.last_used_at.map(Timestamp::from_ms),
        minted_by: row.minted_by.map(UserId::from_uuid),
    }
}

/// Refuses one more token if the train or its publisher has its quota of live ones. Administrative
/// changes of a publisher are serialized, so the counts still hold at the commit.
pub(crate) async fn check_quotas(tx: &Tx, publisher: Uuid, train: Uuid) -> Result<()> {
    let quotas = quotas_of(tx, publisher).await?;
    let live = live_counts(tx.db(), publisher, Some(train), tx.now).await?;
    check_room(&quotas, live)
}

/// The numbers of live tokens: of all the publisher's trains, and of one train.
pub(crate) async fn live_counts<C: ConnectionTrait>(
    db: &C,
    publisher: Uuid,
    train: Option<Uuid>,
    now: Timestamp,
) -> Result<(u64, u64)> {
    let live = live_tokens(publisher, now);
    let all = live.clone().count(db).await?;
    let Some(train) = train else {
        return Ok((all, 0));
    };
    let of_train = live.filter(train_tokens::Column::TrainId.eq(train));
    Ok((all, of_train.count(db).await?))
}

/// Refuses one more token if one of these numbers of live tokens has reached its quota: of all
/// trains, and of the token's train.
pub(crate) fn check_room(quotas: &Quotas, (all, of_train): (u64, u64)) -> Result<()> {
    if all >= u64::from(quotas.train_tokens) {
        return Err(over_quota("live train tokens", quotas.train_tokens));
    }
    if of_train >= u64::from(quotas.train_tokens_per_train) {
        return Err(over_quota(
            "live tokens of one train",
            quotas.train_tokens_per_train,
        ));
    }
    Ok(())
}

/// Inserts a token's row, and the hash by which the token is found.
pub(crate) async fn insert_row(
    tx: &Tx,
    row: train_tokens::Model,
    hash: &TokenHash,
) -> Result<TrainToken, DbErr> {
    train_tokens::Entity::insert(row.clone().into_active_model().reset_all())
        .exec_without_returning(tx.db())
        .await?;
    train_token_hashes::Entity::insert(train_token_hashes::ActiveModel {
        hash: Set(hash.as_bytes().to_vec()),
        publisher_id: Set(row.publisher_id),
        token_id: Set(row.id),
    })
    .exec_without_returning(tx.db())
    .await?;
    Ok(token_of(row))
}

async fn insert(
    tx: &Tx,
    publisher: Uuid,
    train: Uuid,
    new: &NewTrainToken,
) -> Result<MintedTrainToken> {
    let text = token::generate(Prefix::Train);
    let row = train_tokens::Model {
        publisher_id: publisher,
        id: TokenId::generate(tx.now).uuid(),
        train_id: train,
        name: new.name.clone(),
        last_four: token::last_four(text.expose_secret()),
        source: MADE.to_owned(),
        created_at: tx.now.ms(),
        expires_at: new.expires_at.map(Timestamp::ms),
        revoked_at: None,
        last_used_at: None,
        minted_by: tx.member().map(Id::uuid),
    };
    let token = insert_row(tx, row, &TokenHash::of_secret(&text)).await?;
    Ok(MintedTrainToken { token, text })
}

impl Trains<Scoped> {
    /// A train's tokens, newest first, including revoked ones until they are swept.
    pub async fn train_tokens(
        &self,
        train: &Slug,
        page: PageRequest<Uuid>,
    ) -> Result<Page<TrainToken, Uuid>, StoreError> {
        use train_tokens::Column;
        let owner = self.scope.uuid();
        let train = trains_of(owner)
            .filter(trains::Column::Slug.eq(train.as_str()))
            .one(self.store.read())
            .await?
            .ok_or_else(Problem::not_found)?;
        let path = Path::by("train_tokens_by_train", &["train_id"], [train.id.into()]);
        let walk = Walk::over("train_tokens", owner, vec![path]);
        let scan = self.store.scan(owner).await?;
        let db = scan.db();
        let found = walk.part(db, &page, Span::after(page.after)).await?;
        let rows = train_tokens::Entity::find()
            .filter(Column::PublisherId.eq(owner))
            .filter(Column::Id.is_in(padded(found.keys.iter().copied())))
            .all(db)
            .await?;
        Page::of_key_page(found, rows, |row| row.id).try_map(|row| Ok(token_of(row)))
    }

    /// Creates a further token of a train.
    pub async fn mint_train_token<A>(
        &self,
        context: &Context,
        train: &Slug,
        new: NewTrainToken,
        render: A,
    ) -> Result<Answer, StoreError>
    where
        A: Fn(&MintedTrainToken) -> Answer + Send + Sync,
    {
        let (owner, new) = (self.scope.uuid(), &new);
        let work = |tx: Tx| async move {
            if new.expires_at.is_some_and(|at| at <= tx.now) {
                let detail = "The time has passed.";
                return Err(Problem::field("/expires_at", FaultCode::TooSmall, detail).into());
            }
            let row = row_of(&tx, owner, train).await?;
            check_quotas(&tx, owner, row.id).await?;
            let minted = insert(&tx, owner, row.id, new).await?;
            let facts = json!({ "train": train.as_str() });
            let entry = audit_entry(
                Action::TrainTokenMinted,
                "train_token",
                minted.token.id,
                facts,
            );
            Ok(Audited::new(minted, owner, entry))
        };
        self.store.administer(context, owner, work, render).await
    }

    /// Revokes a live token of a train. It no longer works when the call returns.
    pub async fn revoke_train_token<A>(
        &self,
        context: &Context,
        train: &Slug,
        id: TokenId,
        render: A,
    ) -> Result<Answer, StoreError>
    where
        A: Fn(&()) -> Answer + Send + Sync,
    {
        let owner = self.scope.uuid();
        let work = |tx: Tx| async move {
            let row = row_of(&tx, owner, train).await?;
            let token = live_tokens(owner, tx.now)
                .filter(train_tokens::Column::Id.eq(id.uuid()))
                .filter(train_tokens::Column::TrainId.eq(row.id))
                .one(tx.db())
                .await?
                .ok_or_else(Problem::not_found)?;
            train_tokens::Entity::update(train_tokens::ActiveModel {
                publisher_id: Set(owner),
                id: Set(token.id),
                revoked_at: Set(Some(tx.now.ms())),
                ..Default::default()
            })
            .exec(tx.db())
            .await?;
            tx.touches_credentials_of(self.scope.publisher());
            let facts = json!({ "train": train.as_str() });
            let entry = audit_entry(Action::TrainTokenRevoked, "train_token", id, facts);
            Ok(Audited::new((), owner, entry))
        };
        self.store.administer(context, owner, work, render).await
    }
}

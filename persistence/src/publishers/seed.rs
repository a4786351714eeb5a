//! The boot seed: a token from a time before publishers existed becomes the token of a demo
//! publisher.

use domain::{
    audit::Action,
    credential::{CredentialKind, Grants, Source},
    id::{Id as _, PublisherId},
    slug::Slug,
    token::TokenHash,
};
use sea_orm::{ActiveValue::Set, ColumnTrait as _, EntityTrait as _, QueryFilter as _};
use secrecy::SecretString;
use serde_json::json;

use crate::{
    publishers::Publishers,
    publishers::{
        credentials::{Insert, NewCredential, insert},
        publisher::NewPublisher,
    },
    store::{
        System,
        change::{Answer, Audited, Context, audit_entry},
        db::Tx,
        entity::{credentials, publishers, token_hashes},
        error::{Result, StoreError},
        scope::OPERATOR,
    },
};

/// The slug of the seeded publisher; with a number appended if it is taken.
const SEED_SLUG: &str = "legacy";
/// Most slugs that are tried.
const SEED_SLUGS: u32 = 100;

fn quiet<T>(_: &T) -> Answer {
    Answer::new(204, String::new())
}

impl Publishers<System> {
    /// Applies the legacy token of the configuration.
    ///
    /// The first time, it creates a publisher with this token as admin and runner token and as
    /// subcommand bearer. If the value has changed since, the old token is revoked, the new one
    /// added, and the bearer changes with it if nobody has rotated it. The same value again changes
    /// nothing: if the token was revoked or lost a right, that stays so.
    pub async fn apply_seed(&self, token: &SecretString) -> Result<(), StoreError> {
        let context = Context::system("seed");
        let (store, hash) = (&self.store, &TokenHash::of_secret(token));
        let known = token_hashes::Entity::find_by_id(hash.as_bytes().to_vec());
        if known.one(store.read()).await?.is_some() {
            return Ok(());
        }
        store
            .administer(
                &context,
                OPERATOR,
                |tx| async move {
                    let (publisher, made) = self.seed_publisher(&tx).await?;
                    let old = seeded(&tx, publisher).await?;
                    let bearer_follows = self.bearer_follows(&tx, publisher).await?;
                    for row in &old {
                        let follows =
                            row.kind != CredentialKind::SubcommandBearer.as_str() || bearer_follows;
                        if follows {
                            revoke(&tx, row).await?;
                        }
                    }
                    let id = self
                        .insert_seed(&tx, publisher, token, bearer_follows)
                        .await?;
                    tx.touches_credentials_of(publisher);
                    let facts = json!({ "token": id, "replaced": !old.is_empty() });
                    let entry = audit_entry(Action::SeedApplied, "publisher", publisher, facts);
                    let mut audited = Audited::by_operator((), publisher.uuid(), entry);
                    if made {
                        let entry = audit_entry(
                            Action::PublisherCreated,
                            "publisher",
                            publisher,
                            json!({}),
                        );
                        audited = audited.and(&[publisher.uuid(), OPERATOR], entry);
                    }
                    Ok(audited)
                },
                quiet,
            )
            .await?;
        store.look_for_foreign_tokens(Some(&[])).await
    }

    /// The seeded publisher, created if it does not exist, and whether it was created.
    async fn seed_publisher(&self, tx: &Tx) -> Result<(PublisherId, bool)> {
        let row = credentials::Entity::find()
            .filter(credentials::Column::Source.eq(Source::Seed.as_str()))
            .one(tx.db())
            .await?;
        if let Some(row) = row {
            return Ok((PublisherId::from_uuid(row.publisher_id), false));
        }
        let slug = free_slug(tx).await?;
        let new = NewPublisher {
            slug,
            display_name: "Legacy token".to_owned(),
        };
        let created = self.store.insert_publisher(tx, &new).await?;
        let id = created.publisher.id;
        // The publisher only uses the legacy token. Nobody ever saw the values of these others.
        let unseen = credentials::Entity::find()
            .filter(credentials::Column::PublisherId.eq(id.uuid()))
            .filter(credentials::Column::Kind.is_in(["admin", "runner", "subcommand_bearer"]))
            .all(tx.db())
            .await?;
        for row in &unseen {
            revoke(tx, row).await?;
        }
        Ok((id, true))
    }

    /// Whether the subcommand bearer still comes from the seed, so that nobody has rotated or
    /// created one since.
    async fn bearer_follows(&self, tx: &Tx, publisher: PublisherId) -> Result<bool> {
        let live = credentials::Entity::find()
            .filter(credentials::Column::PublisherId.eq(publisher.uuid()))
            .filter(credentials::Column::Kind.eq(CredentialKind::SubcommandBearer.as_str()))
            .filter(credentials::Column::RevokedAt.is_null())
            .all(tx.db())
            .await?;
        Ok(live.iter().all(|row| row.source == Source::Seed.as_str()))
    }

    async fn insert_seed(
        &self,
        tx: &Tx,
        publisher: PublisherId,
        token: &SecretString,
        with_bearer: bool,
    ) -> Result<String> {
        let keys = self
            .store
            .inner
            .keys
            .find(tx.db(), publisher.uuid())
            .await?;
        let keys = keys.ok_or_else(|| StoreError::Internal("the seed has no keys".into()))?;
        let new = NewCredential {
            name: Some("legacy".to_owned()),
            ..Default::default()
        };
        let values = |kind, grants| Insert {
            kind,
            grants,
            text: token.clone(),
            source: Source::Seed,
            new: &new,
        };
        let both = Grants {
            admin: true,
            runner: true,
        };
        let made = insert(
            tx,
            publisher.uuid(),
            &keys.data,
            values(CredentialKind::Admin, both),
        )
        .await?;
        if with_bearer {
            let bearer = values(CredentialKind::SubcommandBearer, Grants::default());
            insert(tx, publisher.uuid(), &keys.data, bearer).await?;
        }
        Ok(made.credential.id.to_string())
    }
}

/// A slug for the seeded publisher. A publisher that the operator created is never taken over.
async fn free_slug(tx: &Tx) -> Result<Slug> {
    for number in 1..=SEED_SLUGS {
        let text = if number == 1 {
            SEED_SLUG.to_owned()
        } else {
            format!("{SEED_SLUG}-{number}")
        };
        let taken = publishers::Entity::find()
            .filter(publishers::Column::LiveSlug.eq(&text))
            .one(tx.db())
            .await?;
        if let (None, Some(slug)) = (taken, Slug::parse(&text)) {
            return Ok(slug);
        }
    }
    Err(StoreError::Internal(
        "no slug is free for the seeded publisher".into(),
    ))
}

/// The tokens of the seed that are not revoked.
async fn seeded(tx: &Tx, publisher: PublisherId) -> Result<Vec<credentials::Model>> {
    Ok(credentials::Entity::find()
        .filter(credentials::Column::PublisherId.eq(publisher.uuid()))
        .filter(credentials::Column::Source.eq(Source::Seed.as_str()))
        .filter(credentials::Column::RevokedAt.is_null())
        .all(tx.db())
        .await?)
}

async fn revoke(tx: &Tx, row: &credentials::Model) -> Result<()> {
    credentials::Entity::update(credentials::ActiveModel {
        publisher_id: Set(row.publisher_id),
        id: Set(row.id),
        revoked_at: Set(Some(tx.now.ms())),
        ..Default::default()
    })
    .exec(tx.db())
    .await?;
    Ok(())
}

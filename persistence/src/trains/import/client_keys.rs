//! The keys of an import, which clients of trains already have.

use domain::{
    audit::Action,
    id::{Id as _, TokenId},
};
use sea_orm::{ColumnTrait as _, ConnectionTrait, EntityTrait as _, QueryFilter as _, SqlErr};
use serde_json::json;
use uuid::Uuid;

use super::{ClientKeySpec, Import, ImportOutcome, ImportResult, refusal_as_result, refuse};
use crate::{
    store::{
        change::{Audited, audit_entry},
        db::Tx,
        entity::{token_hashes, train_token_hashes, train_tokens, trains},
        error::{Result, StoreError, corrupt_row},
    },
    trains::train_tokens::{IMPORTED, check_quotas, check_room, insert_row, live_counts},
};

/// What to do with a key.
enum Step {
    /// The train's identifier; `None` if a dry run would have created the train.
    Create(Option<Uuid>),
    Nothing(ImportResult),
}

/// The error is always the same: it must not tell whose key it is.
fn used_elsewhere() -> StoreError {
    refuse("The key is in use already, for something else.")
}

impl Import {
    /// Adds a key to its train. A known key does not change: a revoked one stays revoked.
    ///
    /// # Errors
    /// Those of the store. A refusal is a result.
    pub async fn client_key(&mut self, spec: &ClientKeySpec) -> Result<ImportResult, StoreError> {
        refusal_as_result(self.bring_key(spec).await)
    }

    async fn bring_key(&mut self, spec: &ClientKeySpec) -> Result<ImportResult> {
        let step = self.key_step(self.scoped.store.read(), spec).await?;
        let train = match step {
            Step::Nothing(done) => return Ok(done),
            Step::Create(train) => train,
        };
        if self.pretended.is_some() {
            self.pretend_key(spec.train.as_str(), train).await?;
            return Ok(ImportResult::of(ImportOutcome::Created));
        }
        let this = &*self;
        let work = |tx: Tx| async move {
            match this.key_step(tx.db(), spec).await? {
                Step::Nothing(done) => Ok(Audited::unchanged(done)),
                Step::Create(None) => Err(no_train(spec)),
                Step::Create(Some(train)) => this.insert_key(&tx, train, spec).await,
            }
        };
        this.commit(work).await
    }

    async fn key_step<C: ConnectionTrait>(&self, db: &C, spec: &ClientKeySpec) -> Result<Step> {
        if self.reserved.iter().any(|hash| hash.matches(&spec.hash)) {
            return Err(used_elsewhere());
        }
        let train = crate::trains::train::of(self.owner())
            .filter(trains::Column::Slug.eq(spec.train.as_str()))
            .one(db)
            .await?
            .map(|train| train.id);
        let slug = spec.train.as_str();
        let pretended = self.pretended.as_ref();
        if train.is_none() && !pretended.is_some_and(|all| all.trains.contains(slug)) {
            return Err(no_train(spec));
        }
        let hash = spec.hash.as_bytes().to_vec();
        let of_publisher = token_hashes::Entity::find_by_id(hash.clone());
        if of_publisher.one(db).await?.is_some() {
            return Err(used_elsewhere());
        }
        let known = train_token_hashes::Entity::find_by_id(hash).one(db).await?;
        let Some(known) = known else {
            return Ok(Step::Create(train));
        };
        if known.publisher_id != self.owner() {
            return Err(used_elsewhere());
        }
        let token = train_tokens::Entity::find_by_id((known.publisher_id, known.token_id))
            .one(db)
            .await?
            .ok_or_else(|| corrupt_row("hash of a train's token"))?;
        if Some(token.train_id) != train {
            return Err(used_elsewhere());
        }
        Ok(Step::Nothing(if token.revoked_at.is_some() {
            ImportResult::unchanged("It was revoked, and stays so.")
        } else {
            ImportResult::of(ImportOutcome::Unchanged)
        }))
    }

    async fn pretend_key(&mut self, slug: &str, train: Option<Uuid>) -> Result<()> {
        let quotas = self.scoped.publisher().await?.quotas;
        let (db, now) = (self.scoped.store.read(), self.scoped.store.now());
        let (all, of_train) = live_counts(db, self.owner(), train, now).await?;
        let Some(pretended) = &mut self.pretended else {
            return Ok(());
        };
        let all = all + pretended.keys.values().sum::<u64>();
        let ahead = pretended.keys.entry(slug.to_owned()).or_default();
        check_room(&quotas, (all, of_train + *ahead))?;
        *ahead += 1;
        Ok(())
    }

    async fn insert_key(
        &self,
        tx: &Tx,
        train: Uuid,
        spec: &ClientKeySpec,
    ) -> Result<Audited<ImportResult>> {
        let owner = self.owner();
        check_quotas(tx, owner, train).await?;
        let row = train_tokens::Model {
            publisher_id: owner,
            id: TokenId::generate(tx.now).uuid(),
            train_id: train,
            name: spec.name.clone(),
            last_four: spec.last_four.clone(),
            source: IMPORTED.to_owned(),
            created_at: tx.now.ms(),
            expires_at: None,
            revoked_at: None,
            last_used_at: None,
            minted_by: None,
        };
        let token =
            insert_row(tx, row, &spec.hash)
                .await
                .map_err(|error| match error.sql_err() {
                    // Another token got the same value meanwhile.
                    Some(SqlErr::UniqueConstraintViolation(_)) => used_elsewhere(),
                    _ => error.into(),
                })?;
        tx.touches_credentials_of(self.publisher());
        let facts = json!({ "train": spec.train.as_str(), "source": IMPORTED });
        let entry = audit_entry(Action::TrainTokenMinted, "train_token", token.id, facts);
        Ok(Audited::new(
            ImportResult::of(ImportOutcome::Created),
            owner,
            entry,
        ))
    }
}

fn no_train(spec: &ClientKeySpec) -> StoreError {
    refuse(format!("The publisher has no train {}.", spec.train))
}

//! Which master key wraps whose keys, and moving all keys to the first master key.
//!
//! Each step of the move is a transaction, in the order of owners. So the operator comes first, and
//! with it the master key in force. A row is changed only if it is still as it was read, so that a
//! concurrent deletion or move of an owner is not undone.

use std::collections::BTreeMap;

use domain::{audit::Action, seal::MasterKeys};
use sea_orm::{
    ColumnTrait as _, DatabaseConnection, EntityTrait as _, PaginatorTrait as _, QueryFilter as _,
    QueryOrder as _, QuerySelect as _, sea_query::Expr,
};
use serde_json::json;
use uuid::Uuid;

use crate::{
    operations::Operations,
    operations::open::{OpenError, config_of, connect, state_of},
    store::{
        System,
        change::{AuditEntry, Context, audit_entry},
        db::Tx,
        entity::{owner_keys, processes},
        error::{Result, StoreError},
        keys::{ClosedKeys, KeySource, is_destroyed, not_given, opened, wrapped},
        scope::OPERATOR,
    },
};

/// Owners that a survey reads at a time.
const SURVEY_ROWS: u64 = 500;

/// Which master keys wrap the owners' keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeysSurvey {
    /// For each master key, how many owners' keys it wraps.
    pub owners: BTreeMap<String, u64>,
    /// The master key in force, which wraps the operator's keys and those of new publishers; `None`
    /// before the first start.
    pub in_force: Option<String>,
    /// Owners whose keys cannot be unwrapped.
    pub closed: Vec<ClosedKeys>,
}

impl KeysSurvey {
    fn count(&mut self, master: &MasterKeys, row: &owner_keys::Model) {
        *self.owners.entry(row.master_key_id.clone()).or_default() += 1;
        if row.owner_id == OPERATOR {
            self.in_force = Some(row.master_key_id.clone());
        }
        self.closed.extend(opened(master, row).err());
    }
}

/// Reads every owner's keys and changes nothing. It needs no working master key, and may run beside
/// a server.
///
/// # Errors
/// [`OpenError`] with what to do, if the database cannot be read.
pub async fn survey_keys(url: &str, master: &MasterKeys) -> Result<KeysSurvey, OpenError> {
    let config = config_of(url, 1, true)?;
    let db = connect(&config).await?;
    let found = survey(&db, master).await;
    let closed = db.close().await;
    let found = found?;
    closed.map_err(|e| OpenError::Store(e.into()))?;
    Ok(found)
}

async fn survey(db: &DatabaseConnection, master: &MasterKeys) -> Result<KeysSurvey, OpenError> {
    let state = state_of(db).await.map_err(StoreError::from)?;
    if state.pending > 0 {
        return Err(OpenError::OldSchema {
            pending: state.pending,
        });
    }
    let (mut found, mut after) = (KeysSurvey::default(), None);
    loop {
        let rows = rows_after(after).limit(SURVEY_ROWS).all(db);
        let rows = rows.await.map_err(StoreError::from)?;
        for row in &rows {
            found.count(master, row);
        }
        match rows.last() {
            Some(last) => after = Some(last.owner_id),
            None => return Ok(found),
        }
    }
}

/// Rows in the order of owners, beginning after `after`.
fn rows_after(after: Option<Uuid>) -> sea_orm::Select<owner_keys::Entity> {
    let rows = owner_keys::Entity::find().order_by_asc(owner_keys::Column::OwnerId);
    match after {
        Some(owner) => rows.filter(owner_keys::Column::OwnerId.gt(owner)),
        None => rows,
    }
}

/// The position of a move, for its next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RewrapCursor(Uuid);

/// The result of one step of a move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewrapped {
    /// Owners whose keys were moved, or would be in a dry run.
    pub moved: u64,
    /// Owners that another process moved or deleted meanwhile.
    pub passed: u64,
    /// Owners whose keys cannot be unwrapped. They do not change.
    pub closed: Vec<ClosedKeys>,
    /// The position for the next step; `None` at the end.
    pub next: Option<RewrapCursor>,
}

/// A row as it was read, and its new values.
struct Move {
    old: owner_keys::Model,
    data_key: Vec<u8>,
    chain_key: Vec<u8>,
}

impl Move {
    /// Changes the row if it is still as it was read. Returns whether it was.
    async fn make(&self, tx: &Tx, master_key_id: &str) -> Result<bool> {
        use owner_keys::Column;
        let done = owner_keys::Entity::update_many()
            .col_expr(Column::MasterKeyId, Expr::value(master_key_id))
            .col_expr(Column::DataKey, Expr::value(self.data_key.clone()))
            .col_expr(Column::ChainKey, Expr::value(self.chain_key.clone()))
            .filter(Column::OwnerId.eq(self.old.owner_id))
            .filter(Column::MasterKeyId.eq(self.old.master_key_id.as_str()))
            .filter(Column::DataKey.eq(self.old.data_key.clone()))
            .filter(Column::ChainKey.eq(self.old.chain_key.clone()))
            .exec(tx.db())
            .await?;
        Ok(done.rows_affected > 0)
    }
}

impl Operations<System> {
    /// Sets a source of master keys. It is read whenever keys are found that no known master key
    /// wraps, so that a running process follows changes of its key file. Known keys are never
    /// forgotten. Only the first call has an effect.
    pub fn reread_master_keys_from(&self, source: KeySource) {
        self.store.inner.keys.reread_from(source);
    }

    /// The identifier of the first master key with which this store was opened. Moves go to this
    /// key.
    #[must_use]
    pub fn first_master_key(&self) -> String {
        self.store.inner.keys.master().first_id().to_owned()
    }

    /// How many owners' keys are wrapped by other master keys than the first.
    pub async fn keys_to_rewrap(&self) -> Result<u64, StoreError> {
        let elsewhere = owner_keys::Column::MasterKeyId.ne(self.first_master_key());
        let count = owner_keys::Entity::find().filter(elsewhere);
        Ok(count.count(self.store.read()).await?)
    }

    /// How many servers use this database now.
    pub async fn live_processes(&self) -> Result<u64, StoreError> {
        let alive = processes::Column::ExpiresAt.gt(self.store.now().ms());
        let count = processes::Entity::find().filter(alive);
        Ok(count.count(self.store.read()).await?)
    }

    /// Wraps the keys of the next owners, at most `limit`, with the first master key, in one
    /// transaction with an entry in the operator's log. With `dry`, only the counts are returned.
    /// `after` is `None` for the first step. Steps may be left out, repeated, and run concurrently.
    ///
    /// # Errors
    /// The store cannot be read or written. The step then changed nothing.
    pub async fn rewrap_keys(
        &self,
        after: Option<RewrapCursor>,
        limit: u64,
        dry: bool,
    ) -> Result<Rewrapped, StoreError> {
        let master = self.store.inner.keys.master();
        let id = master.first_id();
        let rows = rows_after(after.map(|cursor| cursor.0))
            .filter(owner_keys::Column::MasterKeyId.ne(id))
            .limit(limit)
            .all(self.store.read())
            .await?;
        let next = rows.last().map(|last| RewrapCursor(last.owner_id));
        let (mut steps, mut closed) = (Vec::with_capacity(rows.len()), Vec::new());
        for old in rows {
            match opened(&master, &old) {
                Ok(keys) => {
                    let made = wrapped(&master, id, old.owner_id, &keys);
                    let (mut data_key, chain_key) = made.ok_or_else(|| not_given(id))?;
                    if is_destroyed(&old) {
                        data_key.clear();
                    }
                    steps.push(Move {
                        old,
                        data_key,
                        chain_key,
                    });
                }
                Err(one) => closed.push(one),
            }
        }
        let wanted = u64::try_from(steps.len()).unwrap_or(u64::MAX);
        let moved = if dry || steps.is_empty() {
            wanted
        } else {
            self.make(id, &steps).await?
        };
        Ok(Rewrapped {
            moved,
            passed: wanted - moved,
            closed,
            next,
        })
    }

    async fn make(&self, id: &str, steps: &[Move]) -> Result<u64> {
        let (store, context) = (&self.store, &Context::system("keys"));
        let work = |tx: Tx| async move {
            let mut moved = 0;
            for one in steps {
                moved += u64::from(one.make(&tx, id).await?);
            }
            if moved > 0 {
                let facts = json!({ "owners": moved });
                let entry = AuditEntry {
                    owners: vec![OPERATOR],
                    ..audit_entry(Action::KeysRewrapped, "master_key", id, facts)
                };
                store.append_audit(&tx, context, vec![entry]).await?;
            }
            Ok(moved)
        };
        store.write(work).await
    }
}

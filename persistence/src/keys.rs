//! Each owner's two keys: the data key that seals, the chain key that links its audit log.
//!
//! Both are random, wrapped by a master key, and cached unwrapped. The operator's stand under
//! the nil owner.

use domain::{
    Timestamp,
    seal::{Key, MasterKeys, Place},
};
use moka::sync::Cache;
use sea_orm::{ActiveValue::Set, ConnectionTrait, EntityTrait as _};
use uuid::Uuid;

use crate::{
    entity::owner_keys,
    error::{Result, StoreError},
};

/// The operator, as the owner of keys, audit rows and idempotency keys.
pub(crate) const OPERATOR: Uuid = Uuid::nil();

/// Most owners whose keys are kept unwrapped.
const CACHED_OWNERS: u64 = 10_000;

/// An owner's keys, unwrapped.
#[derive(Clone)]
pub(crate) struct OwnerKeys {
    pub(crate) data: Key,
    pub(crate) chain: Key,
}

pub(crate) struct KeyRing {
    master: MasterKeys,
    cache: Cache<Uuid, OwnerKeys>,
}

fn place(owner: Uuid, column: &'static str) -> Place<'static> {
    Place {
        owner,
        table: "owner_keys",
        row: &[],
        column,
    }
}

impl KeyRing {
    pub(crate) fn new(master: MasterKeys) -> Self {
        Self {
            master,
            cache: Cache::new(CACHED_OWNERS),
        }
    }

    /// Makes and stores the keys of a new owner.
    pub(crate) async fn create<C: ConnectionTrait>(
        &self,
        db: &C,
        owner: Uuid,
        now: Timestamp,
    ) -> Result<OwnerKeys> {
        let keys = OwnerKeys {
            data: Key::generate(),
            chain: Key::generate(),
        };
        let (master_key_id, data_key) = self.master.wrap(&place(owner, "data_key"), &keys.data);
        let (_, chain_key) = self.master.wrap(&place(owner, "chain_key"), &keys.chain);
        owner_keys::Entity::insert(owner_keys::ActiveModel {
            owner_id: Set(owner),
            master_key_id: Set(master_key_id),
            data_key: Set(data_key),
            chain_key: Set(chain_key),
            created_at: Set(now.ms()),
        })
        .exec_without_returning(db)
        .await?;
        // Not cached here: the transaction may yet fail, and the next one makes other keys.
        Ok(keys)
    }

    /// The keys of an owner, or `None` if it has none (any more).
    pub(crate) async fn find<C: ConnectionTrait>(
        &self,
        db: &C,
        owner: Uuid,
    ) -> Result<Option<OwnerKeys>> {
        if let Some(keys) = self.cache.get(&owner) {
            return Ok(Some(keys));
        }
        let Some(row) = owner_keys::Entity::find_by_id(owner).one(db).await? else {
            return Ok(None);
        };
        let open = |column, wrapped: &[u8]| {
            self.master
                .unwrap(&row.master_key_id, &place(owner, column), wrapped)
                .map_err(|_| {
                    StoreError::Internal(format!(
                        "the keys of owner {owner} do not open with master key {:?}",
                        row.master_key_id
                    ))
                })
        };
        let keys = OwnerKeys {
            data: open("data_key", &row.data_key)?,
            chain: open("chain_key", &row.chain_key)?,
        };
        self.cache.insert(owner, keys.clone());
        Ok(Some(keys))
    }

    /// The keys of an owner that must have some.
    pub(crate) async fn of<C: ConnectionTrait>(&self, db: &C, owner: Uuid) -> Result<OwnerKeys> {
        self.find(db, owner)
            .await?
            .ok_or_else(|| StoreError::Internal(format!("owner {owner} has no keys")))
    }

    /// Forgets an owner whose keys were destroyed.
    pub(crate) fn forget(&self, owner: Uuid) {
        self.cache.invalidate(&owner);
    }
}

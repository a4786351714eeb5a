//! Each owner's two keys: the data key, which seals, and the chain key, which links the audit log.
//!
//! Both are random, wrapped by a master key, and cached unwrapped. The operator's keys are stored
//! under the nil owner. The master key that wraps the operator's keys is the one in force: it wraps
//! the keys of new owners, whichever key is first in a process's list. So no process wraps with a
//! key that another process has not got yet, or with one that is being replaced (ADR 0020).

use std::{
    fmt,
    sync::{
        Arc, OnceLock, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use domain::{
    Timestamp,
    id::{Id as _, PublisherId},
    seal::{Key, MasterKeys, SealContext},
};
use moka::sync::Cache;
use sea_orm::{
    ActiveValue::Set, ConnectionTrait, EntityTrait as _, QuerySelect as _, sea_query::LockType,
};
use uuid::Uuid;

use crate::store::{
    entity::owner_keys,
    error::{Result, StoreError},
    scope::OPERATOR,
};

#[cfg(test)]
mod tests;

/// Reads the process's master keys again. An error is a text for the log.
pub type KeySource = Arc<dyn Fn() -> Result<MasterKeys, String> + Send + Sync>;

/// Most owners whose keys are cached unwrapped.
const CACHED_OWNERS: u64 = 10_000;

/// An owner's keys that cannot be unwrapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClosedKeys {
    /// The publisher; `None` for the operator.
    pub publisher: Option<PublisherId>,
    /// The master key that wraps them, according to their row.
    pub master_key_id: String,
    /// Whether that master key is known. If so, the row is corrupt.
    pub known: bool,
}

impl ClosedKeys {
    fn of_row(master: &MasterKeys, row: &owner_keys::Model) -> Self {
        let owner = row.owner_id;
        Self {
            publisher: (owner != OPERATOR).then(|| PublisherId::from_uuid(owner)),
            master_key_id: row.master_key_id.clone(),
            known: master.knows(&row.master_key_id),
        }
    }
}

impl fmt::Display for ClosedKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.publisher {
            Some(id) => write!(f, "the keys of {id} ")?,
            None => f.write_str("the operator's keys ")?,
        }
        let id = &self.master_key_id;
        if self.known {
            write!(
                f,
                "do not open with master key {id:?}: their row is damaged"
            )
        } else {
            write!(f, "are wrapped by master key {id:?}, which is not given")
        }
    }
}

/// An owner's keys, unwrapped.
#[derive(Clone)]
pub(crate) struct OwnerKeys {
    pub(crate) data: Key,
    pub(crate) chain: Key,
}

pub(crate) struct KeyRing {
    master: RwLock<Arc<MasterKeys>>,
    /// Where to read the master keys again if an unknown one is needed.
    source: OnceLock<KeySource>,
    cache: Cache<Uuid, OwnerKeys>,
    /// Increased whenever keys are dropped from the cache. Keys that were read before that are not
    /// cached.
    generation: AtomicU64,
}

fn seal_context(owner: Uuid, column: &'static str) -> SealContext<'static> {
    SealContext {
        owner,
        table: "owner_keys",
        row: &[],
        column,
    }
}

/// Unwraps both keys of a row; `None` if one does not open. If the data key is destroyed, its place
/// is taken by a random key that has sealed nothing.
pub(crate) fn opened(
    master: &MasterKeys,
    row: &owner_keys::Model,
) -> Result<OwnerKeys, ClosedKeys> {
    let open = |column, wrapped: &[u8]| {
        master
            .unwrap(
                &row.master_key_id,
                &seal_context(row.owner_id, column),
                wrapped,
            )
            .map_err(|_| ClosedKeys::of_row(master, row))
    };
    let data = if is_destroyed(row) {
        Key::generate()
    } else {
        open("data_key", &row.data_key)?
    };
    Ok(OwnerKeys {
        data,
        chain: open("chain_key", &row.chain_key)?,
    })
}

/// Whether an owner's data key is destroyed. Its chain key stays as long as its audit log, so that
/// the log can still be verified.
pub(crate) fn is_destroyed(row: &owner_keys::Model) -> bool {
    row.data_key.is_empty()
}

/// Wraps both keys with the master key `id`, as a row stores them; `None` if that master key is
/// unknown.
pub(crate) fn wrapped(
    master: &MasterKeys,
    id: &str,
    owner: Uuid,
    keys: &OwnerKeys,
) -> Option<(Vec<u8>, Vec<u8>)> {
    let wrap = |column, key| master.wrap(id, &seal_context(owner, column), key).ok();
    Some((
        wrap("data_key", &keys.data)?,
        wrap("chain_key", &keys.chain)?,
    ))
}

fn no_keys(owner: Uuid) -> StoreError {
    StoreError::Internal(format!("owner {owner} has no keys"))
}

pub(crate) fn not_given(id: &str) -> StoreError {
    StoreError::Internal(format!(
        "master key {id:?} is in use and is not among those that this process was given; give it, too"
    ))
}

impl KeyRing {
    pub(crate) fn new(master: MasterKeys) -> Self {
        Self {
            master: RwLock::new(Arc::new(master)),
            source: OnceLock::new(),
            cache: Cache::new(CACHED_OWNERS),
            generation: AtomicU64::new(0),
        }
    }

    /// The master keys that this process knows.
    pub(crate) fn master(&self) -> Arc<MasterKeys> {
        Arc::clone(&self.master.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The master keys, read again first if `id` is unknown. It may still be missing afterwards.
    async fn master_with(&self, id: &str) -> Arc<MasterKeys> {
        let known = self.master();
        if known.knows(id) {
            return known;
        }
        let Some(source) = self.source.get().cloned() else {
            return known;
        };
        // The source may be a file on a slow disk.
        let read = tokio::task::spawn_blocking(move || source()).await;
        match read.unwrap_or_else(|error| Err(error.to_string())) {
            Ok(read) => {
                let mut master = self.master.write().unwrap_or_else(PoisonError::into_inner);
                *master = Arc::new(master.and(&read));
                if master.knows(id) {
                    tracing::info!(master_key = id, "A new master key was read");
                }
                Arc::clone(&master)
            }
            Err(reason) => {
                tracing::error!(master_key = id, reason, "Master keys can't be read anew");
                known
            }
        }
    }

    /// Sets the source that is read whenever keys are found that no known master key wraps. Only
    /// the first call has an effect.
    pub(crate) fn reread_from(&self, source: KeySource) {
        let _ = self.source.set(source);
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
        let in_force = in_force(db).await?;
        let (id, master) = match in_force {
            Some(id) => (id.clone(), self.master_with(&id).await),
            // The operator's own keys, at the very first start.
            None => (self.master().first_id().to_owned(), self.master()),
        };
        let (data_key, chain_key) =
            wrapped(&master, &id, owner, &keys).ok_or_else(|| not_given(&id))?;
        owner_keys::Entity::insert(owner_keys::ActiveModel {
            owner_id: Set(owner),
            master_key_id: Set(id),
            data_key: Set(data_key),
            chain_key: Set(chain_key),
            created_at: Set(now.ms()),
        })
        .exec_without_returning(db)
        .await?;
        // Not cached here: the transaction may still fail, and a second try makes other keys.
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
        let generation = self.generation.load(Ordering::SeqCst);
        let row = owner_keys::Entity::find_by_id(owner).one(db).await?;
        let Some(row) = row.filter(|row| !is_destroyed(row)) else {
            return Ok(None);
        };
        let keys = self.opened(&row).await?;
        self.keep(owner, &keys, generation);
        Ok(Some(keys))
    }

    /// The key that links an owner's audit log, as long as the log exists.
    pub(crate) async fn chain_of<C: ConnectionTrait>(&self, db: &C, owner: Uuid) -> Result<Key> {
        if let Some(keys) = self.cache.get(&owner) {
            return Ok(keys.chain);
        }
        let row = owner_keys::Entity::find_by_id(owner).one(db).await?;
        let row = row.ok_or_else(|| no_keys(owner))?;
        Ok(self.opened(&row).await?.chain)
    }

    async fn opened(&self, row: &owner_keys::Model) -> Result<OwnerKeys> {
        let master = self.master_with(&row.master_key_id).await;
        opened(&master, row).map_err(|closed| {
            if master.knows(&row.master_key_id) {
                StoreError::Internal(closed.to_string())
            } else {
                not_given(&row.master_key_id)
            }
        })
    }

    /// Caches keys that were read at `generation`, unless keys were dropped since.
    fn keep(&self, owner: Uuid, keys: &OwnerKeys, generation: u64) {
        self.cache.insert(owner, keys.clone());
        // Checked after the insertion. Whoever drops keys increases the counter first and removes
        // then, so one of the two sees the other.
        if self.generation.load(Ordering::SeqCst) != generation {
            self.cache.invalidate(&owner);
        }
    }

    /// The keys of an owner that must have some.
    pub(crate) async fn of<C: ConnectionTrait>(&self, db: &C, owner: Uuid) -> Result<OwnerKeys> {
        self.find(db, owner).await?.ok_or_else(|| no_keys(owner))
    }

    /// Drops cached keys of owners whose keys may have been destroyed, and wipes them.
    pub(crate) fn forget(&self, owners: impl IntoIterator<Item = Uuid>) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        for owner in owners {
            self.cache.invalidate(&owner);
        }
        // The cache frees removed entries during later calls. A process with few calls might keep
        // them for ever.
        self.cache.run_pending_tasks();
    }

    /// Drops the cached keys of all owners.
    pub(crate) fn forget_all(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.cache.invalidate_all();
        self.cache.run_pending_tasks();
    }
}

/// The identifier of the master key that wraps new owners' keys; `None` before the first start. It
/// stays the same until the transaction ends.
async fn in_force<C: ConnectionTrait>(db: &C) -> Result<Option<String>> {
    let row = owner_keys::Entity::find_by_id(OPERATOR)
        .lock(LockType::Share)
        .one(db)
        .await?;
    Ok(row.map(|row| row.master_key_id))
}

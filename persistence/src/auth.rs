//! From a presented token to a principal, through a cache that a revocation can't be outrun by.
//!
//! Within this process: every publisher has a cell that its cached tokens share. A change of its
//! credentials (or of its own row) marks the cell as stale before the call that made the change
//! returns, so each entry dies at once. A look-up notes the count of invalidations before it
//! reads; if its publisher was invalidated since, what it read is not kept. So a look-up begun
//! before a revocation can't bring the token back after it.
//!
//! Across processes: the changing transaction bumps an epoch and logs whose credentials changed.
//! Every process polls that log; when the last good poll began too long ago, it stops trusting
//! its cache and reads the store for each request.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use domain::{
    Timestamp,
    credential::{Grants, Source},
    id::{Id as _, TokenId},
    slug::Slug,
    token::TokenHash,
};
use moka::sync::Cache;
use sea_orm::{
    ActiveValue::Set, ColumnTrait as _, EntityTrait as _, ExprTrait as _, QueryFilter as _,
    QueryOrder as _, QuerySelect as _, sea_query::Expr,
};
use uuid::Uuid;

use crate::{
    Store,
    db::Tx,
    entity::{cache_epoch, credential_changes, credentials, publishers, token_hashes},
    error::{Result, damaged},
    publishers::Publisher,
    scope::{Principal, Scope},
};

/// Most tokens that are kept verified.
const CACHED_TOKENS: u64 = 200_000;
/// How often the log of changes is read.
const POLL_EVERY: Duration = Duration::from_millis(250);
/// When the last good poll began longer ago than this, the cache is not trusted.
const TRUST_FOR_MS: i64 = 750;
/// Changes read in one poll.
const POLL_ROWS: u64 = 1000;
/// `last_used_at` is kept to the minute.
const USED_EVERY_MS: i64 = 60_000;
/// Most tokens whose use waits to be written down; more are dropped (they come again).
const PENDING_USES: usize = 100_000;

/// What all cached tokens of a publisher share.
#[derive(Debug, Default)]
struct Cell {
    stale: AtomicBool,
}

struct Entry {
    principal: Arc<Principal>,
    cell: Arc<Cell>,
    last_used_ms: AtomicI64,
}

#[derive(Default)]
struct Cells {
    live: HashMap<Uuid, Arc<Cell>>,
    /// At which count of invalidations each publisher was last invalidated.
    invalidated: HashMap<Uuid, u64>,
    /// At which count everybody was.
    all_invalidated: u64,
}

pub(crate) struct AuthCache {
    tokens: Cache<[u8; 32], Arc<Entry>>,
    cells: Mutex<Cells>,
    invalidations: AtomicU64,
    /// Look-ups under way; while there are none, nothing in `invalidated` is needed.
    lookups: AtomicU64,
    last_poll_began_ms: AtomicI64,
    epoch: AtomicI64,
    used: Mutex<HashMap<(Uuid, Uuid), i64>>,
    /// Whether tokens exist that don't have our form.
    foreign: AtomicBool,
}

impl AuthCache {
    pub(crate) fn new() -> Self {
        Self {
            tokens: Cache::new(CACHED_TOKENS),
            cells: Mutex::default(),
            invalidations: AtomicU64::new(0),
            lookups: AtomicU64::new(0),
            last_poll_began_ms: AtomicI64::new(0),
            epoch: AtomicI64::new(0),
            used: Mutex::default(),
            foreign: AtomicBool::new(false),
        }
    }

    fn cells(&self) -> std::sync::MutexGuard<'_, Cells> {
        self.cells.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Kills everything cached of a publisher, including what is being looked up now.
    pub(crate) fn invalidate(&self, publisher: Uuid) {
        let mut cells = self.cells();
        let count = self.invalidations.fetch_add(1, Ordering::SeqCst) + 1;
        if self.lookups.load(Ordering::SeqCst) == 0 {
            cells.invalidated.clear();
        } else {
            cells.invalidated.insert(publisher, count);
        }
        if let Some(cell) = cells.live.remove(&publisher) {
            cell.stale.store(true, Ordering::SeqCst);
        }
    }

    fn invalidate_all(&self) {
        let mut cells = self.cells();
        cells.all_invalidated = self.invalidations.fetch_add(1, Ordering::SeqCst) + 1;
        for cell in std::mem::take(&mut cells.live).into_values() {
            cell.stale.store(true, Ordering::SeqCst);
        }
        drop(cells);
        self.tokens.invalidate_all();
    }

    fn keep(&self, hash: [u8; 32], principal: &Arc<Principal>, began_at: u64, now: Timestamp) {
        let publisher = principal.scope.uuid();
        let mut cells = self.cells();
        let last = cells.invalidated.get(&publisher).copied().unwrap_or(0);
        if last > began_at || cells.all_invalidated > began_at {
            return;
        }
        let cell = Arc::clone(cells.live.entry(publisher).or_default());
        let entry = Entry {
            principal: Arc::clone(principal),
            cell,
            last_used_ms: AtomicI64::new(now.ms() / USED_EVERY_MS * USED_EVERY_MS - USED_EVERY_MS),
        };
        self.tokens.insert(hash, Arc::new(entry));
    }

    pub(crate) fn trusted(&self, now: Timestamp) -> bool {
        // A clock that was set back says nothing about how long ago that poll was.
        (0..=TRUST_FOR_MS).contains(&(now.ms() - self.last_poll_began_ms.load(Ordering::Acquire)))
    }

    fn note_use(&self, principal: &Principal, now: Timestamp) {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if used.len() < PENDING_USES {
            used.insert(
                (principal.scope.uuid(), principal.credential.uuid()),
                now.ms(),
            );
        }
    }

    /// What is cached and holds. An entry that does not hold any more stays, as a note that the
    /// token was good once, until the next look-up replaces or removes it.
    fn hit(&self, hash: &[u8; 32], now: Timestamp) -> Option<Arc<Principal>> {
        let entry = self.tokens.get(hash)?;
        if entry.cell.stale.load(Ordering::SeqCst) {
            return None;
        }
        let last = entry.last_used_ms.load(Ordering::Relaxed);
        if now.ms() - last >= USED_EVERY_MS
            && entry
                .last_used_ms
                .compare_exchange(last, now.ms(), Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        {
            self.note_use(&entry.principal, now);
        }
        Some(Arc::clone(&entry.principal))
    }
}

/// Counts a look-up while it lasts, whatever ends it.
struct Lookup<'a>(&'a AuthCache);

impl<'a> Lookup<'a> {
    fn begin(cache: &'a AuthCache) -> (Self, u64) {
        // Under the lock, so that an invalidation either sees this look-up or comes before it.
        let _cells = cache.cells();
        cache.lookups.fetch_add(1, Ordering::SeqCst);
        (Self(cache), cache.invalidations.load(Ordering::SeqCst))
    }
}

impl Drop for Lookup<'_> {
    fn drop(&mut self) {
        self.0.lookups.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What this process knows of a token without asking the database.
#[derive(Clone, Debug)]
pub enum Known {
    /// It is live.
    Live(Arc<Principal>),
    /// It was live once; only the database can tell whether it still is.
    Once,
    /// Nothing.
    Never,
}

impl Store {
    /// What is known of a token here and now. Asks nobody, so it costs next to nothing.
    #[must_use]
    pub fn known(&self, hash: TokenHash) -> Known {
        let now = self.now();
        match self.cached(hash, now).filter(|p| is_live(p, now)) {
            Some(principal) => Known::Live(principal),
            None if self.inner.auth.tokens.contains_key(hash.as_bytes()) => Known::Once,
            None => Known::Never,
        }
    }

    /// What the cache holds, if it can be trusted.
    fn cached(&self, hash: TokenHash, now: Timestamp) -> Option<Arc<Principal>> {
        let cache = &self.inner.auth;
        cache
            .trusted(now)
            .then(|| cache.hit(hash.as_bytes(), now))
            .flatten()
    }

    /// The principal behind a token, or `None` if there is none that is live now.
    ///
    /// A suspended publisher's tokens still authenticate; the caller decides by
    /// [`Principal::publisher`]. A deleted one's do not.
    pub async fn authenticate(&self, hash: TokenHash) -> Result<Option<Arc<Principal>>> {
        let now = self.now();
        let principal = match self.cached(hash, now) {
            Some(principal) => Some(principal),
            None => self.look_up(hash, now).await?,
        };
        Ok(principal.filter(|p| is_live(p, now)))
    }

    async fn look_up(&self, hash: TokenHash, now: Timestamp) -> Result<Option<Arc<Principal>>> {
        let cache = &self.inner.auth;
        let (_counted, began_at) = Lookup::begin(cache);
        let Some(principal) = self.read_principal(hash).await? else {
            cache.tokens.invalidate(hash.as_bytes());
            return Ok(None);
        };
        let principal = Arc::new(principal);
        cache.keep(*hash.as_bytes(), &principal, began_at, now);
        cache.note_use(&principal, now);
        Ok(Some(principal))
    }

    /// The principal of a token that is not revoked, from the database.
    async fn read_principal(&self, hash: TokenHash) -> Result<Option<Principal>> {
        let found = token_hashes::Entity::find_by_id(hash.as_bytes().to_vec())
            .one(self.read())
            .await?;
        let Some(found) = found else { return Ok(None) };
        let key = (found.publisher_id, found.token_id);
        let row = credentials::Entity::find_by_id(key)
            .one(self.read())
            .await?;
        let publisher = publishers::Entity::find_by_id(found.publisher_id)
            .one(self.read())
            .await?;
        let (Some(row), Some(publisher)) = (row, publisher) else {
            return Ok(None);
        };
        if row.revoked_at.is_some() || publisher.deleted_at.is_some() {
            return Ok(None);
        }
        principal_of(&row, publisher).map(Some)
    }

    /// Logs, in the transaction that changes them, whose credentials change.
    pub(crate) async fn publish_credential_changes(&self, tx: &Tx) -> Result<()> {
        let mut touched = tx.touched();
        touched.sort_unstable();
        touched.dedup();
        for publisher in touched {
            cache_epoch::Entity::update_many()
                .col_expr(
                    cache_epoch::Column::Epoch,
                    Expr::col(cache_epoch::Column::Epoch).add(1),
                )
                .filter(cache_epoch::Column::Id.eq(1))
                .exec(tx.db())
                .await?;
            let epoch = cache_epoch::Entity::find_by_id(1)
                .one(tx.db())
                .await?
                .ok_or_else(|| damaged("cache epoch"))?
                .epoch;
            credential_changes::Entity::insert(credential_changes::ActiveModel {
                epoch: Set(epoch),
                publisher_id: Set(publisher.uuid()),
                at: Set(tx.now.ms()),
            })
            .exec_without_returning(tx.db())
            .await?;
        }
        Ok(())
    }

    /// Whether bearers that don't have our form are worth a look-up: only while there are live
    /// ones, which came with the boot seed.
    #[must_use]
    pub fn knows_foreign_tokens(&self) -> bool {
        self.inner.auth.foreign.load(Ordering::Acquire)
    }

    pub(crate) async fn look_for_foreign_tokens(&self) -> Result<()> {
        let found = credentials::Entity::find()
            .filter(credentials::Column::Source.eq(Source::Seed.as_str()))
            .filter(credentials::Column::Sealed.is_null())
            .filter(credentials::Column::RevokedAt.is_null())
            .one(self.read())
            .await?;
        self.inner
            .auth
            .foreign
            .store(found.is_some(), Ordering::Release);
        Ok(())
    }

    /// Reads the log of changes once.
    pub(crate) async fn poll_credential_changes(&self) -> Result<()> {
        let cache = &self.inner.auth;
        let began = self.now();
        loop {
            let known = cache.epoch.load(Ordering::Acquire);
            let rows = credential_changes::Entity::find()
                .filter(credential_changes::Column::Epoch.gt(known))
                .order_by_asc(credential_changes::Column::Epoch)
                .limit(POLL_ROWS)
                .all(self.read())
                .await?;
            let Some(last) = rows.last().map(|row| row.epoch) else {
                break;
            };
            if rows.first().is_some_and(|first| first.epoch != known + 1) {
                // Rows that this process never saw were swept: nothing cached is known to hold.
                cache.invalidate_all();
                self.inner.secrets.invalidate_all();
                self.inner.keys.forget_all();
            }
            self.inner
                .keys
                .forget(rows.iter().map(|row| row.publisher_id));
            for row in &rows {
                cache.invalidate(row.publisher_id);
                self.inner.secrets.invalidate(row.publisher_id);
            }
            self.look_for_foreign_tokens().await?;
            cache.epoch.store(last, Ordering::Release);
            if u64::try_from(rows.len()).unwrap_or(0) < POLL_ROWS {
                break;
            }
        }
        cache
            .last_poll_began_ms
            .store(began.ms(), Ordering::Release);
        Ok(())
    }

    /// Starts at the present end of the log: an empty cache has nothing to invalidate.
    pub(crate) async fn start_at_current_epoch(&self) -> Result<()> {
        let began = self.now();
        let row = cache_epoch::Entity::find_by_id(1).one(self.read()).await?;
        let epoch = row.ok_or_else(|| damaged("cache epoch"))?.epoch;
        self.look_for_foreign_tokens().await?;
        self.inner.auth.epoch.store(epoch, Ordering::Release);
        self.inner
            .auth
            .last_poll_began_ms
            .store(began.ms(), Ordering::Release);
        Ok(())
    }

    /// Polls until the store is dropped or closed.
    pub(crate) async fn poll_loop(self, stop: tokio_util::sync::CancellationToken) {
        let mut tick = tokio::time::interval(POLL_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let mut failing = false;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = tick.tick() => {}
            }
            match self.poll_credential_changes().await {
                Ok(()) => failing = false,
                Err(error) if !failing => {
                    failing = true;
                    tracing::warn!(%error, "credential changes can't be read: tokens are looked up anew");
                }
                Err(_) => {}
            }
        }
    }

    /// Writes down when tokens were last used; called now and then, off every request's path.
    pub(crate) async fn flush_uses(&self) -> Result<u64> {
        let taken = {
            let mut used = self
                .inner
                .auth
                .used
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *used)
        };
        let mut by_minute: HashMap<i64, Vec<(Uuid, Uuid)>> = HashMap::new();
        for (token, at) in &taken {
            by_minute
                .entry(at / USED_EVERY_MS * USED_EVERY_MS)
                .or_default()
                .push(*token);
        }
        let batches: Vec<(i64, Vec<(Uuid, Uuid)>)> = by_minute
            .into_iter()
            .flat_map(|(at, tokens)| {
                tokens
                    .chunks(500)
                    .map(|part| (at, part.to_vec()))
                    .collect::<Vec<_>>()
            })
            .collect();
        let batches = &batches;
        self.write(|tx| async move {
            use credentials::Column;
            for (at, tokens) in batches {
                let ids = tokens.iter().map(|(_, id)| *id);
                let owners = tokens.iter().map(|(publisher, _)| *publisher);
                credentials::Entity::update_many()
                    .col_expr(Column::LastUsedAt, Expr::value(*at))
                    .filter(Column::PublisherId.is_in(owners))
                    .filter(Column::Id.is_in(ids))
                    .filter(Column::LastUsedAt.is_null().or(Column::LastUsedAt.lt(*at)))
                    .exec(tx.db())
                    .await?;
            }
            Ok(())
        })
        .await?;
        Ok(u64::try_from(taken.len()).unwrap_or(u64::MAX))
    }
}

fn is_live(principal: &Principal, now: Timestamp) -> bool {
    principal.expires_at.is_none_or(|at| at > now)
}

fn principal_of(row: &credentials::Model, publisher: publishers::Model) -> Result<Principal> {
    let pipelines = match &row.pipelines {
        None => None,
        Some(text) => Some(slugs_of(text)?.into()),
    };
    Ok(Principal {
        scope: Scope::of_row(row.publisher_id, pipelines),
        credential: TokenId::from_uuid(row.id),
        grants: Grants {
            admin: row.grants_admin,
            runner: row.grants_runner,
        },
        expires_at: row.expires_at.map(Timestamp::from_ms),
        publisher: Arc::new(Publisher::of_row(publisher)?),
    })
}

/// A stored JSON list of slugs.
pub(crate) fn slugs_of(text: &str) -> Result<Vec<Slug>> {
    let words: Vec<String> = serde_json::from_str(text).map_err(|_| damaged("list of slugs"))?;
    words
        .iter()
        .map(|word| Slug::parse(word).ok_or_else(|| damaged("slug")))
        .collect()
}

/// The tests of the race need to stop a look-up half-way.
#[cfg(test)]
mod tests {
    use super::*;

    fn principal(publisher: u128) -> Arc<Principal> {
        let now = Timestamp::from_ms(1);
        Arc::new(Principal {
            scope: Scope::of_row(Uuid::from_u128(publisher), None),
            credential: TokenId::generate(now),
            grants: Grants::default(),
            expires_at: None,
            publisher: Arc::new(Publisher::for_tests(domain::id::PublisherId::from_uuid(
                Uuid::from_u128(publisher),
            ))),
        })
    }

    #[test]
    fn an_invalidation_kills_what_is_cached() {
        let cache = AuthCache::new();
        let now = Timestamp::from_ms(1);
        let (lookup, began) = Lookup::begin(&cache);
        cache.keep([1; 32], &principal(7), began, now);
        drop(lookup);
        assert!(cache.hit(&[1; 32], now).is_some());
        cache.invalidate(Uuid::from_u128(8));
        assert!(cache.hit(&[1; 32], now).is_some());
        cache.invalidate(Uuid::from_u128(7));
        assert!(cache.hit(&[1; 32], now).is_none());
    }

    #[test]
    fn the_cache_is_trusted_only_shortly_after_a_poll_and_never_before_it() {
        let cache = AuthCache::new();
        cache.last_poll_began_ms.store(10_000, Ordering::Release);
        for (now, trusted) in [
            (10_000, true),
            (10_750, true),
            (10_751, false),
            (9_999, false),
        ] {
            assert_eq!(cache.trusted(Timestamp::from_ms(now)), trusted, "{now}");
        }
    }

    #[test]
    fn a_lookup_begun_before_a_revocation_can_not_refill_the_cache_after_it() {
        let cache = AuthCache::new();
        let now = Timestamp::from_ms(1);
        let (_lookup, began) = Lookup::begin(&cache);
        cache.invalidate(Uuid::from_u128(7));
        // Others come and go meanwhile; the note of the invalidation must outlive them.
        drop(Lookup::begin(&cache));
        cache.invalidate(Uuid::from_u128(9));
        cache.keep([1; 32], &principal(7), began, now);
        assert!(cache.hit(&[1; 32], now).is_none());
        let (_second, began) = Lookup::begin(&cache);
        cache.keep([1; 32], &principal(7), began, now);
        assert!(cache.hit(&[1; 32], now).is_some());
        // The same when everybody is invalidated while nothing of this publisher is cached.
        let (_third, began) = Lookup::begin(&cache);
        cache.invalidate_all();
        cache.keep([2; 32], &principal(8), began, now);
        assert!(cache.hit(&[1; 32], now).is_none());
        assert!(cache.hit(&[2; 32], now).is_none());
    }
}

//! How long cached data of a publisher may be trusted, in this process and in others.
//!
//! Within a process, everything that is cached of a publisher shares a [`Cell`]. A change of the
//! publisher's credentials, accounts or trains (or of its own row) marks the cell as stale before
//! the call that made the change returns, which invalidates every entry at once. A reader notes the
//! count of invalidations before it reads. If its publisher was invalidated since, the result is
//! not cached. So a read that began before a revocation cannot restore a revoked token.
//!
//! Across processes, the transaction that makes the change increments an epoch and logs whose
//! credentials changed. Every process polls that log. If the last successful poll began too long
//! ago, a process trusts no cached data and reads the store for each request.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
};

use domain::{Timestamp, id::Id as _};
use sea_orm::{
    ActiveValue::Set, ColumnTrait as _, EntityTrait as _, ExprTrait as _, QueryFilter as _,
    sea_query::Expr,
};
use uuid::Uuid;

use crate::store::{
    db::Tx,
    entity::{cache_epoch, credential_changes},
    error::{Result, corrupt_row},
};

/// Cached data is trusted if the last successful poll began at most so long ago.
const TRUST_FOR_MS: i64 = 750;
/// What all cached entries of one publisher share.
#[derive(Debug, Default)]
pub(crate) struct Cell {
    stale: AtomicBool,
}

impl Cell {
    /// Whether the entries that hold this cell are invalid.
    pub(crate) fn is_stale(&self) -> bool {
        self.stale.load(Ordering::SeqCst)
    }

    fn die(&self) {
        self.stale.store(true, Ordering::SeqCst);
    }
}

#[derive(Default)]
struct Cells {
    live: HashMap<Uuid, Arc<Cell>>,
    /// For each publisher, the count of invalidations at its last one.
    invalidated: HashMap<Uuid, u64>,
    /// The count of invalidations when everybody was last invalidated.
    all_invalidated: u64,
}

/// Which changes this process knows of.
#[derive(Default)]
pub(crate) struct Freshness {
    cells: Mutex<Cells>,
    invalidations: AtomicU64,
    /// Reads in progress. While there are none, `invalidated` is not needed.
    readings: AtomicU64,
    last_poll_began_ms: AtomicI64,
    epoch: AtomicI64,
}

impl Freshness {
    fn cells(&self) -> MutexGuard<'_, Cells> {
        self.cells.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Invalidates everything cached of a publisher, and everything that is being read now.
    pub(crate) fn invalidate(&self, publisher: Uuid) {
        let mut cells = self.cells();
        let count = self.invalidations.fetch_add(1, Ordering::SeqCst) + 1;
        if self.readings.load(Ordering::SeqCst) == 0 {
            cells.invalidated.clear();
        } else {
            cells.invalidated.insert(publisher, count);
        }
        if let Some(cell) = cells.live.remove(&publisher) {
            cell.die();
        }
    }

    /// Invalidates everything cached of everybody.
    pub(crate) fn invalidate_all(&self) {
        let mut cells = self.cells();
        cells.all_invalidated = self.invalidations.fetch_add(1, Ordering::SeqCst) + 1;
        for cell in std::mem::take(&mut cells.live).into_values() {
            cell.die();
        }
    }

    /// Begins a read whose result is to be cached.
    pub(crate) fn begin(&self) -> Reading<'_> {
        // Counted under the lock, so that an invalidation either sees this read or happens before
        // it.
        let _cells = self.cells();
        self.readings.fetch_add(1, Ordering::SeqCst);
        Reading {
            freshness: self,
            began_at: self.invalidations.load(Ordering::SeqCst),
        }
    }

    /// Whether cached data may be trusted now.
    pub(crate) fn trusted(&self, now: Timestamp) -> bool {
        // After a clock was set back, the difference is negative and says nothing.
        (0..=TRUST_FOR_MS).contains(&(now.ms() - self.last_poll_began_ms.load(Ordering::Acquire)))
    }

    /// Notes that a poll that began at `began` has read all changes.
    pub(crate) fn polled(&self, began: Timestamp) {
        self.last_poll_began_ms.store(began.ms(), Ordering::Release);
    }

    /// The epoch of the last change that this process knows of.
    pub(crate) fn epoch(&self) -> i64 {
        self.epoch.load(Ordering::Acquire)
    }

    pub(crate) fn heard_of(&self, epoch: i64) {
        self.epoch.store(epoch, Ordering::Release);
    }

    #[cfg(test)]
    pub(crate) fn distrust(&self) {
        self.polled(Timestamp::from_ms(0));
    }
}

/// A read in progress. It counts as such until it is dropped.
pub(crate) struct Reading<'a> {
    freshness: &'a Freshness,
    began_at: u64,
}

impl Reading<'_> {
    /// Calls `keep` with the cell for what was read of `publisher`, unless the publisher was
    /// invalidated since this read began. No invalidation can happen during the call.
    pub(crate) fn keep(&self, publisher: Uuid, keep: impl FnOnce(Arc<Cell>)) {
        let mut cells = self.freshness.cells();
        let last = cells.invalidated.get(&publisher).copied().unwrap_or(0);
        if last <= self.began_at && cells.all_invalidated <= self.began_at {
            keep(Arc::clone(cells.live.entry(publisher).or_default()));
        }
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.freshness.readings.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Logs, in the transaction of a change, whose credentials it changes.
pub(crate) async fn publish_credential_changes(tx: &Tx) -> Result<()> {
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
            .ok_or_else(|| corrupt_row("cache epoch"))?
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

/// These tests stop a read half-way, which tests of the store cannot.
#[cfg(test)]
mod tests {
    use super::*;

    const SEVEN: Uuid = Uuid::from_u128(7);

    fn kept(reading: &Reading<'_>, publisher: Uuid) -> Option<Arc<Cell>> {
        let mut kept = None;
        reading.keep(publisher, |cell| kept = Some(cell));
        kept
    }

    #[test]
    fn an_invalidation_kills_what_is_kept_of_that_publisher() {
        let freshness = Freshness::default();
        let cell = kept(&freshness.begin(), SEVEN).unwrap();
        let other = kept(&freshness.begin(), Uuid::from_u128(8)).unwrap();
        assert!(!cell.is_stale());
        freshness.invalidate(SEVEN);
        assert!(cell.is_stale() && !other.is_stale());
        freshness.invalidate_all();
        assert!(other.is_stale());
    }

    #[test]
    fn nothing_is_trusted_but_shortly_after_a_poll_and_never_before_it() {
        let freshness = Freshness::default();
        freshness.polled(Timestamp::from_ms(10_000));
        for (now, trusted) in [
            (10_000, true),
            (10_750, true),
            (10_751, false),
            (9_999, false),
        ] {
            assert_eq!(freshness.trusted(Timestamp::from_ms(now)), trusted, "{now}");
        }
    }

    #[test]
    fn a_reading_begun_before_a_revocation_can_not_keep_anything_after_it() {
        let freshness = Freshness::default();
        let reading = freshness.begin();
        freshness.invalidate(SEVEN);
        // Other reads begin and end meanwhile; the note of the invalidation must outlive them.
        drop(freshness.begin());
        freshness.invalidate(Uuid::from_u128(9));
        assert!(kept(&reading, SEVEN).is_none());
        assert!(kept(&freshness.begin(), SEVEN).is_some());
        // The same if everybody is invalidated while nothing is cached of this publisher.
        let reading = freshness.begin();
        freshness.invalidate_all();
        assert!(kept(&reading, Uuid::from_u128(8)).is_none());
    }
}

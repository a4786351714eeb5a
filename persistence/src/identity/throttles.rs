//! Throttles of sign-in: how often something failed, or was asked for, of an address or a network.
//! They are rows, so that every process counts the same.

use std::time::Duration;

use domain::Timestamp;
use sea_orm::{
    ActiveValue::Set,
    ColumnTrait as _, EntityTrait as _, ExprTrait as _, QueryFilter as _, QuerySelect as _,
    sea_query::{Expr, LockType},
};

use crate::{
    identity::Identity,
    store::{
        entity::sign_in_throttles,
        error::{Result, StoreError, corrupt_row},
    },
};

/// How a throttle grows: `free` times are free, then each further time blocks for twice as long as
/// the one before.
#[derive(Clone, Copy, Debug)]
pub struct Growth {
    /// How many times are free.
    pub free: u32,
    /// How long the first time beyond blocks.
    pub first: Duration,
    /// How long one time blocks at most.
    pub most: Duration,
    /// After so long without a further time, counting begins again.
    pub forgets_after: Duration,
}

impl Growth {
    /// How long the `count`th time blocks.
    fn delay(&self, count: u32) -> Duration {
        let Some(beyond) = count.checked_sub(self.free + 1) else {
            return Duration::ZERO;
        };
        let doubled = self
            .first
            .saturating_mul(1_u32.checked_shl(beyond).unwrap_or(u32::MAX));
        doubled.min(self.most)
    }
}

impl Identity {
    /// Until when `key` is blocked; `None` if it is not.
    #[cfg(test)]
    pub(crate) async fn blocked_until(
        &self,
        key: &[u8; 32],
    ) -> Result<Option<Timestamp>, StoreError> {
        let row = sign_in_throttles::Entity::find_by_id(key.to_vec())
            .one(self.store.read())
            .await?;
        let until = row.map(|row| Timestamp::from_ms(row.blocked_until));
        Ok(until.filter(|until| *until > self.store.now()))
    }

    /// Counts one more time for each of these keys, unless one of them is blocked: then none is
    /// counted, and the time is returned until when it is. What is refused counts for nothing, so
    /// that nobody is kept out for good by others' attempts.
    pub async fn admit(
        &self,
        keys: &[([u8; 32], Growth)],
    ) -> Result<Option<Timestamp>, StoreError> {
        self.store
            .write_for(super::PEOPLE, |tx| async move {
                // In one order, so that two transactions can't wait for each other.
                let mut keys = keys.to_vec();
                keys.sort_unstable_by_key(|(key, _)| *key);
                let mut rows = Vec::with_capacity(keys.len());
                for (key, growth) in &keys {
                    // A row that is there can be locked: of two who count first, none is lost.
                    begin(&tx, key).await?;
                    let row = sign_in_throttles::Entity::find_by_id(key.to_vec())
                        .lock(LockType::Update)
                        .one(tx.db())
                        .await?
                        .ok_or_else(|| corrupt_row("throttle"))?;
                    rows.push((row, growth));
                }
                let blocked = rows.iter().map(|(row, _)| row.blocked_until).max();
                if let Some(until) = blocked.filter(|until| *until > tx.now.ms()) {
                    return Ok(Some(Timestamp::from_ms(until)));
                }
                for (row, growth) in rows {
                    let idle = tx.now.since(Timestamp::from_ms(row.updated_at));
                    let before = if idle < growth.forgets_after {
                        row.count
                    } else {
                        0
                    };
                    let count = before.saturating_add(1);
                    let delay = growth.delay(u32::try_from(count).unwrap_or(u32::MAX));
                    update(&tx, row.key, count, delay).await?;
                }
                Ok(None)
            })
            .await
    }

    /// Takes back what was counted last for these keys: the attempt succeeded.
    pub async fn give_back(&self, keys: &[([u8; 32], Growth)]) -> Result<(), StoreError> {
        self.store
            .write_for(super::PEOPLE, |tx| async move {
                let mut keys = keys.to_vec();
                keys.sort_unstable_by_key(|(key, _)| *key);
                for (key, _) in keys {
                    sign_in_throttles::Entity::update_many()
                        .col_expr(
                            sign_in_throttles::Column::Count,
                            Expr::col(sign_in_throttles::Column::Count).sub(1),
                        )
                        .col_expr(
                            sign_in_throttles::Column::BlockedUntil,
                            Expr::value(tx.now.ms()),
                        )
                        .filter(sign_in_throttles::Column::Key.eq(key.to_vec()))
                        .filter(sign_in_throttles::Column::Count.gt(0))
                        .exec(tx.db())
                        .await?;
                }
                Ok(())
            })
            .await
    }

    /// Forgets what was counted of `key`: its owner has proved who they are.
    pub async fn forgive(&self, key: &[u8; 32]) -> Result<(), StoreError> {
        let known = sign_in_throttles::Entity::find_by_id(key.to_vec())
            .one(self.store.read())
            .await?;
        if known.is_none() {
            return Ok(());
        }
        self.store
            .write_for(super::PEOPLE, |tx| async move {
                sign_in_throttles::Entity::delete_many()
                    .filter(sign_in_throttles::Column::Key.eq(key.to_vec()))
                    .exec(tx.db())
                    .await?;
                Ok(())
            })
            .await
    }
}

async fn begin(tx: &crate::store::db::Tx, key: &[u8; 32]) -> Result<()> {
    sign_in_throttles::Entity::insert(sign_in_throttles::ActiveModel {
        key: Set(key.to_vec()),
        count: Set(0),
        updated_at: Set(tx.now.ms()),
        blocked_until: Set(tx.now.ms()),
    })
    .on_conflict_do_nothing_on([sign_in_throttles::Column::Key])
    .exec_without_returning(tx.db())
    .await?;
    Ok(())
}

async fn update(
    tx: &crate::store::db::Tx,
    key: Vec<u8>,
    count: i32,
    delay: Duration,
) -> Result<()> {
    sign_in_throttles::Entity::update(sign_in_throttles::ActiveModel {
        key: Set(key),
        count: Set(count),
        updated_at: Set(tx.now.ms()),
        blocked_until: Set(tx.now.plus(delay).ms()),
    })
    .exec(tx.db())
    .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_and_have_an_end() {
        let growth = Growth {
            free: 3,
            first: Duration::from_secs(2),
            most: Duration::from_mins(1),
            forgets_after: Duration::from_hours(1),
        };
        let delays: Vec<u64> = (0..12).map(|count| growth.delay(count).as_secs()).collect();
        assert_eq!(delays, [0, 0, 0, 0, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(growth.delay(u32::MAX), growth.most);
    }
}

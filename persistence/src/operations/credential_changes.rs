//! Follows the log of credential changes (see [`crate::store::freshness`]).

use std::time::Duration;

use sea_orm::{
    ColumnTrait as _, EntityTrait as _, QueryFilter as _, QueryOrder as _, QuerySelect as _,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::store::{
    POLLS, Store,
    entity::{cache_epoch, credential_changes},
    error::{Result, corrupt_row},
};

/// How often the log is read.
const POLL_EVERY: Duration = Duration::from_millis(250);
/// Changes that one poll reads.
const POLL_ROWS: u64 = 1000;

impl Store {
    /// Reads the log once, and invalidates caches of the changed publishers.
    pub(crate) async fn poll_credential_changes(&self) -> Result<()> {
        let freshness = &self.inner.freshness;
        let began = self.now();
        loop {
            let known = freshness.epoch();
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
                // Rows that this process has not read were swept, so nothing cached can be trusted.
                self.forget_everybody();
                self.look_for_foreign_tokens(None).await?;
            }
            self.inner
                .keys
                .forget(rows.iter().map(|row| row.publisher_id));
            for row in &rows {
                self.forget_publisher(row.publisher_id);
            }
            let changed: Vec<Uuid> = rows.iter().map(|row| row.publisher_id).collect();
            self.look_for_foreign_tokens(Some(&changed)).await?;
            freshness.heard_of(last);
            if u64::try_from(rows.len()).unwrap_or(0) < POLL_ROWS {
                break;
            }
        }
        freshness.polled(began);
        Ok(())
    }

    /// Starts at the current end of the log, since the cache is empty.
    pub(crate) async fn start_at_current_epoch(&self) -> Result<()> {
        let began = self.now();
        let row = cache_epoch::Entity::find_by_id(1).one(self.read()).await?;
        let epoch = row.ok_or_else(|| corrupt_row("cache epoch"))?.epoch;
        self.look_for_foreign_tokens(None).await?;
        self.inner.freshness.heard_of(epoch);
        self.inner.freshness.polled(began);
        Ok(())
    }

    /// Reads the log regularly until the store is dropped or closed.
    pub(crate) async fn poll_loop(self, stop: CancellationToken) {
        let mut tick = tokio::time::interval(POLL_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let mut failing = false;
        let changes = self.progress().part(POLLS);
        let cooldowns = self.progress().part("cooldowns");
        let _at_work = (changes.work(), cooldowns.work());
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = tick.tick() => {}
            }
            let polled = tokio::select! {
                () = stop.cancelled() => return,
                polled = self.poll_credential_changes() => polled,
            };
            changes.went(polled.is_ok());
            match polled {
                Ok(()) => failing = false,
                Err(error) if !failing => {
                    failing = true;
                    tracing::warn!(%error, "credential changes can't be read: every request reads its token from the database");
                }
                Err(_) => {}
            }
            // The errors are logged above, since it is the same database.
            cooldowns.went(self.poll_cooldowns().await.is_ok());
        }
    }
}

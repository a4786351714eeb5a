//! Scheduled jobs: when each is due, which process runs it, and its last result.

use std::time::Duration;

use domain::Timestamp;
use sea_orm::{
    ActiveValue::Set, ColumnTrait as _, Condition, EntityTrait as _, QueryFilter as _,
    QueryOrder as _,
};

use crate::{
    operations::Operations,
    store::{
        System,
        db::Tx,
        entity::jobs::{ActiveModel, Column, Entity},
        error::{Result, StoreError},
    },
};

/// The state of a job.
#[derive(Clone, Debug, PartialEq)]
pub struct JobRow {
    /// The job's name.
    pub name: String,
    /// When the job is due next.
    pub due_at: Timestamp,
    /// When a process last started the job.
    pub started_at: Option<Timestamp>,
    /// When the job last succeeded.
    pub finished_at: Option<Timestamp>,
    /// The counts of the last success.
    pub counts: Option<serde_json::Value>,
    /// Why the job last failed; `None` after a success.
    pub error: Option<String>,
}

fn unleased(now: Timestamp) -> Condition {
    Condition::any()
        .add(Column::LeaseUntil.is_null())
        .add(Column::LeaseUntil.lte(now.ms()))
}

async fn take(tx: &Tx, name: &str, owner: &str, lease: Duration, next: i64) -> Result<bool> {
    let row = ActiveModel {
        name: Set(name.to_owned()),
        due_at: Set(next),
        ..Default::default()
    };
    Entity::insert(row)
        .on_conflict_do_nothing_on([Column::Name])
        .exec_without_returning(tx.db())
        .await?;
    // The schedule may be denser than when the row was written.
    Entity::update_many()
        .col_expr(Column::DueAt, next.into())
        .filter(Column::Name.eq(name))
        .filter(Column::DueAt.gt(next))
        .exec(tx.db())
        .await?;
    let taken = Entity::update_many()
        .col_expr(Column::LeaseOwner, owner.into())
        .col_expr(Column::LeaseUntil, tx.now.plus(lease).ms().into())
        .col_expr(Column::StartedAt, tx.now.ms().into())
        .filter(Column::Name.eq(name))
        .filter(Column::DueAt.lte(tx.now.ms()))
        .filter(unleased(tx.now))
        .exec(tx.db())
        .await?;
    Ok(taken.rows_affected == 1)
}

impl Operations<System> {
    /// Claims a job for `lease` if it is due and no process runs it.
    ///
    /// `next` is the next time of the schedule. A job without a row, or with a later due time, is
    /// then due at `next`.
    pub async fn take_job(
        &self,
        name: &str,
        owner: &str,
        lease: Duration,
        next: Timestamp,
    ) -> Result<bool, StoreError> {
        // Most calls find nothing to claim, for which the writer is not needed.
        let known = Entity::find_by_id(name.to_owned())
            .one(self.store.read())
            .await?;
        let now = self.store.now().ms();
        if known.is_some_and(|row| row.due_at > now && row.due_at <= next.ms()) {
            return Ok(false);
        }
        self.store
            .write(|tx| async move { take(&tx, name, owner, lease, next.ms()).await })
            .await
    }

    /// Extends the lease of a job that `owner` runs, counted from now. Returns `false` if the lease
    /// was lost.
    pub async fn keep_job(
        &self,
        name: &str,
        owner: &str,
        lease: Duration,
    ) -> Result<bool, StoreError> {
        self.store
            .write(|tx| async move {
                let kept = Entity::update_many()
                    .col_expr(Column::LeaseUntil, tx.now.plus(lease).ms().into())
                    .filter(Column::Name.eq(name))
                    .filter(Column::LeaseOwner.eq(owner))
                    .exec(tx.db())
                    .await?;
                Ok(kept.rows_affected == 1)
            })
            .await
    }

    /// Releases a job, which is due again at `next_due`. After an error the time and counts of the
    /// last success stay. Does nothing if another process has the job now.
    pub async fn finish_job(
        &self,
        name: &str,
        owner: &str,
        next_due: Timestamp,
        counts: &serde_json::Value,
        error: Option<&str>,
    ) -> Result<(), StoreError> {
        self.store
            .write(|tx| async move {
                let mut change = ActiveModel {
                    due_at: Set(next_due.ms()),
                    lease_owner: Set(None),
                    lease_until: Set(None),
                    error: Set(error.map(str::to_owned)),
                    ..Default::default()
                };
                if error.is_none() {
                    change.finished_at = Set(Some(tx.now.ms()));
                    change.counts = Set(Some(counts.to_string()));
                }
                Entity::update_many()
                    .set(change)
                    .filter(Column::Name.eq(name))
                    .filter(Column::LeaseOwner.eq(owner))
                    .exec(tx.db())
                    .await?;
                Ok(())
            })
            .await
    }

    /// All jobs that any process has ever claimed, by name.
    pub async fn jobs(&self) -> Result<Vec<JobRow>, StoreError> {
        let rows = Entity::find()
            .order_by_asc(Column::Name)
            .all(self.store.read())
            .await?;
        rows.into_iter()
            .map(|row| {
                // The counts are only shown to people: if they do not parse, the job still runs.
                let counts = row.counts.as_deref();
                let counts = counts.and_then(|text| serde_json::from_str(text).ok());
                Ok(JobRow {
                    name: row.name,
                    due_at: Timestamp::from_ms(row.due_at),
                    started_at: row.started_at.map(Timestamp::from_ms),
                    finished_at: row.finished_at.map(Timestamp::from_ms),
                    counts,
                    error: row.error,
                })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests;

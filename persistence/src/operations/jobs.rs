//! Scheduled jobs: when each is due, which process has it, and how it last went.

use std::time::Duration;

use domain::Timestamp;
use sea_orm::{
    ActiveValue::Set, ColumnTrait as _, Condition, EntityTrait as _, QueryFilter as _,
    QueryOrder as _,
};

use crate::store::{
    System,
    db::Tx,
    entity::jobs::{ActiveModel, Column, Entity},
    error::{Result, StoreError},
};

/// A job as the store knows it.
#[derive(Clone, Debug, PartialEq)]
pub struct JobRow {
    /// Its name.
    pub name: String,
    /// When it is due next.
    pub due_at: Timestamp,
    /// When a process last took it.
    pub started_at: Option<Timestamp>,
    /// When it last ended well.
    pub finished_at: Option<Timestamp>,
    /// What it then did.
    pub counts: Option<serde_json::Value>,
    /// Why it last failed; `None` once it went well.
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
    // The schedule may have become denser since the row was written.
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

impl System {
    /// Takes a job for `lease` if it is due and no process has it.
    ///
    /// `next` is when the schedule is due next after now: a job that the store does not know yet,
    /// or that it thinks due later, is due then.
    pub async fn take_job(
        &self,
        name: &str,
        owner: &str,
        lease: Duration,
        next: Timestamp,
    ) -> Result<bool, StoreError> {
        // Most looks find nothing to do; they need not bother the writer.
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

    /// Makes the lease of a job that `owner` has last from now on; `false` if it was lost.
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

    /// Gives a job back, due again at `next_due`. After an error the time and counts of the last
    /// good run stay. Does nothing if another process has the job by now.
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

    /// All jobs that any process has ever looked at, by name.
    pub async fn jobs(&self) -> Result<Vec<JobRow>, StoreError> {
        let rows = Entity::find()
            .order_by_asc(Column::Name)
            .all(self.store.read())
            .await?;
        rows.into_iter()
            .map(|row| {
                // What it once counted is for people to read; a job is due without it.
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

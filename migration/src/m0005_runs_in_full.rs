//! More about runs: pauses, progress, requested cancellations, times to live, timelines. Events
//! name the pipeline of their run.

use sea_orm_migration::{prelude::*, schema::*};

use crate::{drop_tables, foreign_key, primary_key, run};

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.create_table(run_timeline()).await?;
        run(
            manager,
            &[
                "ALTER TABLE pipelines ADD COLUMN paused_at BIGINT",
                "ALTER TABLE events ADD COLUMN pipeline_slug TEXT",
                "ALTER TABLE runs ADD COLUMN progress TEXT",
                "ALTER TABLE runs ADD COLUMN cancel_requested BOOLEAN NOT NULL DEFAULT FALSE",
                "ALTER TABLE runs ADD COLUMN failures INTEGER NOT NULL DEFAULT 0",
                "ALTER TABLE runs ADD COLUMN expires_at BIGINT",
                // Whether `not_before` has passed: so that runs that wait for a later time are
                // not read again and again by claims. An older program inserts runs as not
                // ready, and the next claim finds those that are.
                "ALTER TABLE runs ADD COLUMN ready BOOLEAN NOT NULL DEFAULT FALSE",
                "UPDATE runs SET failures = attempt - 1 WHERE status = 'running'",
                "UPDATE runs SET failures = attempt WHERE status = 'queued'",
                "CREATE INDEX runs_ready ON runs (publisher_id, pipeline_id, priority, not_before, id) WHERE status = 'queued' AND ready",
                "CREATE INDEX runs_scheduled ON runs (publisher_id, not_before) WHERE status = 'queued' AND NOT ready",
                "CREATE INDEX runs_held ON runs (publisher_id, lease_expires_at, pipeline_id) WHERE status = 'running'",
                "CREATE INDEX runs_to_expire ON runs (expires_at) WHERE status = 'queued' AND expires_at IS NOT NULL",
                "CREATE INDEX idempotency_keys_to_wipe ON idempotency_keys (answer_until) WHERE answer_until IS NOT NULL AND answer IS NOT NULL",
                "DROP INDEX runs_queued",
            ],
        )
        .await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        run(
            manager,
            &[
                "CREATE INDEX runs_queued ON runs (publisher_id, priority, not_before, id) WHERE status = 'queued'",
                "DROP INDEX idempotency_keys_to_wipe",
                "DROP INDEX runs_to_expire",
                "DROP INDEX runs_held",
                "DROP INDEX runs_scheduled",
                "DROP INDEX runs_ready",
                "ALTER TABLE runs DROP COLUMN ready",
                "ALTER TABLE runs DROP COLUMN expires_at",
                "ALTER TABLE runs DROP COLUMN failures",
                "ALTER TABLE runs DROP COLUMN cancel_requested",
                "ALTER TABLE runs DROP COLUMN progress",
                "ALTER TABLE events DROP COLUMN pipeline_slug",
                "ALTER TABLE pipelines DROP COLUMN paused_at",
            ],
        )
        .await?;
        drop_tables(manager, &["run_timeline"]).await
    }
}

/// The timelines of runs. The number of an entry is the revision of the run at that time, so
/// entries sort in their order, with gaps.
fn run_timeline() -> TableCreateStatement {
    Table::create()
        .table("run_timeline")
        .col(uuid("publisher_id"))
        .col(uuid("run_id"))
        .col(big_integer("seq"))
        .col(big_integer("at"))
        .col(text("moment"))
        .col(integer("attempt"))
        .col(text_null("actor_kind"))
        .col(text_null("actor_id"))
        .col(text_null("data"))
        .primary_key(&mut primary_key(&["publisher_id", "run_id", "seq"]))
        .foreign_key(
            foreign_key(
                ("run_timeline", &["publisher_id", "run_id"]),
                ("runs", &["publisher_id", "id"]),
            )
            .on_delete(ForeignKeyAction::Cascade),
        )
        .to_owned()
}

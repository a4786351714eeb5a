//! Indexes for every filter of the lists, and the bytes that each publisher stores.
//!
//! A filter fixes all columns of its index but the last, which gives the order. So the cost of a
//! page depends on its own rows only. Some indexes are partial, so that inserting new rows does not
//! have to update them.

use sea_orm_migration::{prelude::*, schema::*};

use crate::{drop_tables, foreign_key, run};

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.create_table(storage_usage()).await?;
        run(
            manager,
            &[
                // By the slug, which filters name. Queries by a pipeline's identifier use the index
                // of external identifiers.
                "CREATE INDEX runs_by_slug ON runs (publisher_id, pipeline_slug, id)",
                "DROP INDEX runs_by_pipeline",
                "CREATE INDEX runs_unfinished ON runs (publisher_id, cancel_requested, id) WHERE status IN ('queued', 'running')",
                "CREATE INDEX runs_ended ON runs (publisher_id, status, id) WHERE status IN ('succeeded', 'failed', 'cancelled', 'expired')",
                "CREATE INDEX runs_by_external_id ON runs (publisher_id, external_id, id) WHERE external_id IS NOT NULL",
                "CREATE INDEX events_by_type ON events (publisher_id, event_type, id)",
                "CREATE INDEX events_by_pipeline ON events (publisher_id, pipeline_slug, id)",
                "CREATE INDEX deliveries_of_event ON deliveries (publisher_id, event_id, id)",
                "DROP INDEX deliveries_by_event",
                "CREATE INDEX deliveries_not_made ON deliveries (publisher_id, status, id) WHERE status IN ('failed', 'cancelled')",
                "CREATE INDEX audit_events_by_action ON audit_events (owner_id, action, seq)",
                "CREATE INDEX audit_events_by_actor ON audit_events (owner_id, actor_id, seq)",
                "CREATE INDEX audit_events_by_target ON audit_events (owner_id, target_id, seq)",
                "CREATE INDEX audit_events_by_time ON audit_events (owner_id, at, seq)",
                "CREATE INDEX credentials_live ON credentials (publisher_id, kind, id) WHERE revoked_at IS NULL",
                "CREATE INDEX webhook_endpoints_live ON webhook_endpoints (publisher_id, enabled, id) WHERE deleted_at IS NULL",
            ],
        )
        .await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        run(
            manager,
            &[
                "DROP INDEX webhook_endpoints_live",
                "DROP INDEX credentials_live",
                "DROP INDEX audit_events_by_time",
                "DROP INDEX audit_events_by_target",
                "DROP INDEX audit_events_by_actor",
                "DROP INDEX audit_events_by_action",
                "DROP INDEX deliveries_not_made",
                "CREATE INDEX deliveries_by_event ON deliveries (publisher_id, event_id)",
                "DROP INDEX deliveries_of_event",
                "DROP INDEX events_by_pipeline",
                "DROP INDEX events_by_type",
                "DROP INDEX runs_by_external_id",
                "DROP INDEX runs_ended",
                "DROP INDEX runs_unfinished",
                "CREATE INDEX runs_by_pipeline ON runs (publisher_id, pipeline_id, id)",
                "DROP INDEX runs_by_slug",
            ],
        )
        .await?;
        drop_tables(manager, &["storage_usage"]).await
    }
}

/// How much each publisher stores: a sum that processes update in batches, not with every row.
fn storage_usage() -> TableCreateStatement {
    Table::create()
        .table("storage_usage")
        .col(uuid("publisher_id").primary_key())
        .col(big_integer("bytes"))
        // When the rows were last counted; NULL before the first time.
        .col(big_integer_null("counted_at"))
        .foreign_key(&mut foreign_key(
            ("storage_usage", &["publisher_id"]),
            ("publishers", &["id"]),
        ))
        .to_owned()
}

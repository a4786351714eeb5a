//! Indexes for sweeps: deleted endpoints and pipelines, and superseded versions of pipelines.
//! Without them a sweep would read all live rows.

use sea_orm_migration::prelude::*;

use crate::run;

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        run(
            manager,
            &[
                "CREATE INDEX webhook_endpoints_deleted ON webhook_endpoints (deleted_at) WHERE deleted_at IS NOT NULL",
                "CREATE INDEX pipelines_deleted ON pipelines (updated_at) WHERE live_slug IS NULL",
                "CREATE INDEX pipeline_versions_by_age ON pipeline_versions (created_at)",
                // Both engines search this table when a version is removed, and there are many
                // runs.
                "CREATE INDEX runs_of_version ON runs (publisher_id, pipeline_id, pipeline_version)",
            ],
        )
        .await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        run(
            manager,
            &[
                "DROP INDEX runs_of_version",
                "DROP INDEX pipeline_versions_by_age",
                "DROP INDEX pipelines_deleted",
                "DROP INDEX webhook_endpoints_deleted",
            ],
        )
        .await
    }
}

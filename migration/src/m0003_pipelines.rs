//! Pipelines, their versions, and runs.

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
        manager.create_table(pipelines()).await?;
        manager.create_table(pipeline_versions()).await?;
        manager.create_table(runs()).await?;
        run(
            manager,
            &[
                "CREATE UNIQUE INDEX pipelines_slug ON pipelines (publisher_id, live_slug)",
                "CREATE UNIQUE INDEX runs_external_id ON runs (publisher_id, pipeline_id, external_id)",
                "CREATE INDEX runs_by_pipeline ON runs (publisher_id, pipeline_id, id)",
                "CREATE INDEX runs_queued ON runs (publisher_id, priority, not_before, id) WHERE status = 'queued'",
                "CREATE INDEX runs_leased ON runs (lease_expires_at) WHERE status = 'running'",
                "CREATE INDEX runs_to_sweep ON runs (sweep_at) WHERE sweep_at IS NOT NULL",
            ],
        )
        .await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        drop_tables(manager, &["runs", "pipeline_versions", "pipelines"]).await
    }
}

fn pipelines() -> TableCreateStatement {
    Table::create()
        .table("pipelines")
        .col(uuid("publisher_id"))
        .col(uuid("id"))
        .col(text("slug"))
        // NULL once the pipeline is deleted, so that the slug is free and its runs stay readable.
        .col(text_null("live_slug"))
        .col(big_integer("version"))
        .col(big_integer("revision"))
        .col(big_integer("created_at"))
        .col(big_integer("updated_at"))
        .primary_key(&mut primary_key(&["publisher_id", "id"]))
        .foreign_key(&mut foreign_key(
            ("pipelines", &["publisher_id"]),
            ("publishers", &["id"]),
        ))
        .to_owned()
}

fn pipeline_versions() -> TableCreateStatement {
    Table::create()
        .table("pipeline_versions")
        .col(uuid("publisher_id"))
        .col(uuid("pipeline_id"))
        .col(big_integer("version"))
        .col(text("definition"))
        .col(big_integer("created_at"))
        .primary_key(&mut primary_key(&[
            "publisher_id",
            "pipeline_id",
            "version",
        ]))
        .foreign_key(&mut foreign_key(
            ("pipeline_versions", &["publisher_id", "pipeline_id"]),
            ("pipelines", &["publisher_id", "id"]),
        ))
        .to_owned()
}

fn runs() -> TableCreateStatement {
    Table::create()
        .table("runs")
        .col(uuid("publisher_id"))
        .col(uuid("id"))
        .col(uuid("pipeline_id"))
        .col(big_integer("pipeline_version"))
        .col(text("pipeline_slug"))
        .col(text("status"))
        .col(text("input"))
        .col(text_null("output"))
        .col(text_null("error"))
        .col(text_null("external_id"))
        .col(integer("priority"))
        .col(big_integer("not_before"))
        .col(integer("attempt"))
        .col(integer("max_attempts"))
        .col(integer("lease_seconds"))
        .col(integer("retention_days"))
        .col(blob_null("claim_hash"))
        .col(text_null("claimed_by"))
        .col(big_integer_null("lease_expires_at"))
        .col(text("created_by_id"))
        .col(text("created_by_kind"))
        .col(big_integer("revision"))
        .col(big_integer("created_at"))
        .col(big_integer_null("started_at"))
        .col(big_integer_null("finished_at"))
        .col(big_integer_null("sweep_at"))
        .primary_key(&mut primary_key(&["publisher_id", "id"]))
        .foreign_key(&mut foreign_key(
            ("runs", &["publisher_id", "pipeline_id", "pipeline_version"]),
            (
                "pipeline_versions",
                &["publisher_id", "pipeline_id", "version"],
            ),
        ))
        .check(Expr::cust(
            "status IN ('queued', 'running', 'succeeded', 'failed', 'cancelled', 'expired')",
        ))
        .check(Expr::cust(
            "(status = 'running') = (claim_hash IS NOT NULL AND lease_expires_at IS NOT NULL)",
        ))
        .check(Expr::cust(
            "(status IN ('queued', 'running')) = (finished_at IS NULL)",
        ))
        .check(Expr::cust("(finished_at IS NULL) = (sweep_at IS NULL)"))
        .to_owned()
}

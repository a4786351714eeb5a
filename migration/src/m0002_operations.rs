//! Audit, idempotency keys and scheduled jobs.

use sea_orm_migration::{prelude::*, schema::*};

use crate::{drop_tables, primary_key, run};

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.create_table(audit_heads()).await?;
        manager.create_table(audit_events()).await?;
        manager.create_table(idempotency_keys()).await?;
        manager.create_table(jobs()).await?;
        run(
            manager,
            &["CREATE INDEX idempotency_keys_expired ON idempotency_keys (expires_at)"],
        )
        .await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        drop_tables(
            manager,
            &["jobs", "idempotency_keys", "audit_events", "audit_heads"],
        )
        .await
    }
}

/// The newest entry of each owner's log. It is locked last in the transaction that adds an entry.
fn audit_heads() -> TableCreateStatement {
    Table::create()
        .table("audit_heads")
        .col(uuid("owner_id").primary_key())
        .col(big_integer("seq"))
        .col(blob("mac"))
        .to_owned()
}

/// The operator's log has the nil owner.
fn audit_events() -> TableCreateStatement {
    Table::create()
        .table("audit_events")
        .col(uuid("owner_id"))
        .col(big_integer("seq"))
        .col(uuid("id"))
        .col(big_integer("at"))
        .col(text("actor_kind"))
        .col(text("actor_id"))
        .col(text("action"))
        .col(text("target_kind"))
        .col(text("target_id"))
        .col(text_null("request_id"))
        .col(text_null("address"))
        .col(text_null("user_agent"))
        .col(text("metadata"))
        .col(blob("mac"))
        .primary_key(&mut primary_key(&["owner_id", "seq"]))
        .to_owned()
}

fn idempotency_keys() -> TableCreateStatement {
    Table::create()
        .table("idempotency_keys")
        .col(uuid("owner_id"))
        .col(text("operation"))
        .col(text("key"))
        .col(blob("request_hash"))
        .col(blob_null("answer"))
        .col(big_integer_null("answer_until"))
        .col(big_integer("created_at"))
        .col(big_integer("expires_at"))
        .primary_key(&mut primary_key(&["owner_id", "operation", "key"]))
        .to_owned()
}

fn jobs() -> TableCreateStatement {
    Table::create()
        .table("jobs")
        .col(text("name").primary_key())
        .col(big_integer("due_at"))
        .col(text_null("lease_owner"))
        .col(big_integer_null("lease_until"))
        .col(big_integer_null("started_at"))
        .col(big_integer_null("finished_at"))
        .col(text_null("counts"))
        .col(text_null("error"))
        .to_owned()
}

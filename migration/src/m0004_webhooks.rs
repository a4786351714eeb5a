//! Events, webhook endpoints, deliveries and their attempts.

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
        manager.create_table(events()).await?;
        manager.create_table(webhook_endpoints()).await?;
        manager.create_table(deliveries()).await?;
        manager.create_table(delivery_attempts()).await?;
        run(
            manager,
            &[
                "CREATE INDEX events_to_sweep ON events (created_at)",
                "CREATE INDEX deliveries_by_event ON deliveries (publisher_id, event_id)",
                "CREATE INDEX deliveries_by_endpoint ON deliveries (publisher_id, endpoint_id, id)",
                "CREATE INDEX deliveries_due ON deliveries (next_attempt_at) WHERE status = 'pending'",
                "CREATE INDEX deliveries_to_sweep ON deliveries (finished_at) WHERE finished_at IS NOT NULL",
            ],
        )
        .await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        drop_tables(
            manager,
            &[
                "delivery_attempts",
                "deliveries",
                "webhook_endpoints",
                "events",
            ],
        )
        .await
    }
}

fn events() -> TableCreateStatement {
    Table::create()
        .table("events")
        .col(uuid("publisher_id"))
        .col(uuid("id"))
        .col(text("event_type"))
        // The exact text that every delivery sends and signs.
        .col(text("body"))
        .col(big_integer("created_at"))
        .primary_key(&mut primary_key(&["publisher_id", "id"]))
        .foreign_key(&mut foreign_key(
            ("events", &["publisher_id"]),
            ("publishers", &["id"]),
        ))
        .to_owned()
}

fn webhook_endpoints() -> TableCreateStatement {
    Table::create()
        .table("webhook_endpoints")
        .col(uuid("publisher_id"))
        .col(uuid("id"))
        .col(text("url"))
        .col(text_null("description"))
        .col(text("event_types"))
        .col(text_null("pipelines"))
        .col(text("headers"))
        .col(boolean("enabled"))
        .col(text_null("disabled_reason"))
        .col(boolean("send_bearer"))
        .col(big_integer("revision"))
        .col(big_integer("created_at"))
        .col(big_integer("updated_at"))
        .col(big_integer_null("deleted_at"))
        .primary_key(&mut primary_key(&["publisher_id", "id"]))
        .foreign_key(&mut foreign_key(
            ("webhook_endpoints", &["publisher_id"]),
            ("publishers", &["id"]),
        ))
        .check(Expr::cust("deleted_at IS NULL OR NOT enabled"))
        .to_owned()
}

fn deliveries() -> TableCreateStatement {
    Table::create()
        .table("deliveries")
        .col(uuid("publisher_id"))
        .col(uuid("id"))
        .col(uuid("event_id"))
        .col(uuid("endpoint_id"))
        .col(text("status"))
        .col(integer("attempts"))
        // When the next try is due; while a dispatcher holds the row, when the lease ends.
        .col(big_integer_null("next_attempt_at"))
        // The number of the claim. An outcome is recorded only with the number of the present
        // claim.
        .col(big_integer("fence"))
        .col(big_integer("created_at"))
        .col(big_integer_null("finished_at"))
        .primary_key(&mut primary_key(&["publisher_id", "id"]))
        .foreign_key(&mut foreign_key(
            ("deliveries", &["publisher_id", "event_id"]),
            ("events", &["publisher_id", "id"]),
        ))
        .foreign_key(&mut foreign_key(
            ("deliveries", &["publisher_id", "endpoint_id"]),
            ("webhook_endpoints", &["publisher_id", "id"]),
        ))
        .check(Expr::cust(
            "status IN ('pending', 'succeeded', 'failed', 'cancelled')",
        ))
        .check(Expr::cust(
            "(status = 'pending') = (next_attempt_at IS NOT NULL)",
        ))
        .check(Expr::cust("(status = 'pending') = (finished_at IS NULL)"))
        .to_owned()
}

fn delivery_attempts() -> TableCreateStatement {
    Table::create()
        .table("delivery_attempts")
        .col(uuid("publisher_id"))
        .col(uuid("delivery_id"))
        .col(integer("number"))
        .col(big_integer("at"))
        .col(integer_null("status_code"))
        .col(text_null("error"))
        .col(big_integer("latency_ms"))
        .col(text_null("response_excerpt"))
        .primary_key(&mut primary_key(&["publisher_id", "delivery_id", "number"]))
        .foreign_key(
            foreign_key(
                ("delivery_attempts", &["publisher_id", "delivery_id"]),
                ("deliveries", &["publisher_id", "id"]),
            )
            .on_delete(ForeignKeyAction::Cascade),
        )
        .to_owned()
}

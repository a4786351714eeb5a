//! More about webhooks: a publisher's own events and their types, replays, the health of endpoints,
//! and secrets of single endpoints.

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
        for table in [
            event_types(),
            replays(),
            endpoint_health(),
            endpoint_stats(),
            endpoint_secrets(),
        ] {
            manager.create_table(table).await?;
        }
        for (table, column) in [
            ("events", text_null("external_id")),
            // The replay that wrote the delivery; NULL if the event did.
            ("deliveries", uuid_null("replay_id")),
            // 0 is sent before 1: new deliveries before those of replays.
            ("deliveries", integer("precedence").default(0).take()),
            ("webhook_endpoints", text("signing").default("hmac").take()),
            // Random. The endpoint's public keys are served under this name alone.
            ("webhook_endpoints", uuid_null("key_set")),
        ] {
            let add = Table::alter().table(table).add_column(column).to_owned();
            manager.alter_table(add).await?;
        }
        run(
            manager,
            &[
                "CREATE UNIQUE INDEX events_by_external_id ON events (publisher_id, external_id) WHERE external_id IS NOT NULL",
                "CREATE INDEX deliveries_of_replay ON deliveries (publisher_id, replay_id) WHERE replay_id IS NOT NULL AND status = 'pending'",
                "CREATE UNIQUE INDEX webhook_endpoints_by_key_set ON webhook_endpoints (key_set) WHERE key_set IS NOT NULL",
                "CREATE UNIQUE INDEX replays_running ON replays (publisher_id, endpoint_id, filter) WHERE status = 'running'",
                "CREATE INDEX replays_to_work ON replays (looked_at) WHERE status = 'running'",
                "CREATE INDEX replays_by_endpoint ON replays (publisher_id, endpoint_id, id)",
                "CREATE INDEX replays_to_sweep ON replays (finished_at) WHERE finished_at IS NOT NULL",
                "CREATE INDEX endpoint_health_failing ON endpoint_health (failing_since) WHERE failing_since IS NOT NULL",
                "CREATE INDEX endpoint_health_gone ON endpoint_health (gone_at) WHERE gone_at IS NOT NULL",
                "CREATE INDEX endpoint_health_warned ON endpoint_health (warned_at) WHERE warned_at IS NOT NULL",
                "CREATE INDEX endpoint_stats_to_sweep ON endpoint_stats (bucket)",
                "CREATE INDEX endpoint_secrets_by_endpoint ON endpoint_secrets (publisher_id, endpoint_id, id)",
                "CREATE INDEX endpoint_secrets_revoked ON endpoint_secrets (revoked_at) WHERE revoked_at IS NOT NULL",
                "CREATE INDEX endpoint_secrets_expired ON endpoint_secrets (expires_at) WHERE expires_at IS NOT NULL",
            ],
        )
        .await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        run(
            manager,
            &[
                "DROP INDEX webhook_endpoints_by_key_set",
                "DROP INDEX deliveries_of_replay",
                "DROP INDEX events_by_external_id",
                "ALTER TABLE webhook_endpoints DROP COLUMN key_set",
                "ALTER TABLE webhook_endpoints DROP COLUMN signing",
                "ALTER TABLE deliveries DROP COLUMN precedence",
                "ALTER TABLE deliveries DROP COLUMN replay_id",
                "ALTER TABLE events DROP COLUMN external_id",
            ],
        )
        .await?;
        drop_tables(
            manager,
            &[
                "endpoint_secrets",
                "endpoint_stats",
                "endpoint_health",
                "replays",
                "event_types",
            ],
        )
        .await
    }
}

/// A publisher's descriptions of its event types.
fn event_types() -> TableCreateStatement {
    Table::create()
        .table("event_types")
        .col(uuid("publisher_id"))
        .col(text("event_type"))
        // Together with the revision, it names a version of the schema that never changes.
        .col(uuid("id"))
        .col(text_null("description"))
        .col(text_null("example"))
        .col(text_null("schema"))
        .col(big_integer("revision"))
        .col(big_integer("created_at"))
        .col(big_integer("updated_at"))
        .primary_key(&mut primary_key(&["publisher_id", "event_type"]))
        .foreign_key(&mut foreign_key(
            ("event_types", &["publisher_id"]),
            ("publishers", &["id"]),
        ))
        .to_owned()
}

fn of_endpoint(table: &'static str) -> ForeignKeyCreateStatement {
    foreign_key(
        (table, &["publisher_id", "endpoint_id"]),
        ("webhook_endpoints", &["publisher_id", "id"]),
    )
}

fn replays() -> TableCreateStatement {
    Table::create()
        .table("replays")
        .col(uuid("publisher_id"))
        .col(uuid("id"))
        .col(uuid("endpoint_id"))
        .col(text("status"))
        // The normalised request.
        .col(text("filter"))
        .col(big_integer("since"))
        .col(big_integer("until"))
        .col(boolean("only_failed"))
        .col(text_null("event_types"))
        // The last event that was processed.
        .col(uuid_null("position"))
        .col(big_integer("matched"))
        .col(big_integer("queued"))
        .col(big_integer("looked_at"))
        .col(big_integer("created_at"))
        .col(big_integer_null("finished_at"))
        .primary_key(&mut primary_key(&["publisher_id", "id"]))
        .foreign_key(&mut of_endpoint("replays"))
        .check(Expr::cust(
            "status IN ('running', 'succeeded', 'cancelled')",
        ))
        .check(Expr::cust("(status = 'running') = (finished_at IS NULL)"))
        .to_owned()
}

/// The results of recent tries at an endpoint. They are apart from the endpoint's row, so that
/// recording outcomes never changes that row.
fn endpoint_health() -> TableCreateStatement {
    Table::create()
        .table("endpoint_health")
        .col(uuid("publisher_id"))
        .col(uuid("endpoint_id"))
        .col(integer("consecutive_failures"))
        // The first failure after the last success.
        .col(big_integer_null("failing_since"))
        .col(big_integer_null("last_success_at"))
        .col(big_integer_null("last_failure_at"))
        .col(text_null("last_error"))
        .col(integer_null("last_status_code"))
        // When the publisher got the event that the endpoint fails.
        .col(big_integer_null("warned_at"))
        // When the receiver answered that it is gone for good.
        .col(big_integer_null("gone_at"))
        .primary_key(&mut primary_key(&["publisher_id", "endpoint_id"]))
        .foreign_key(&mut of_endpoint("endpoint_health"))
        .to_owned()
}

/// The number of tries at each endpoint in each span of five minutes.
fn endpoint_stats() -> TableCreateStatement {
    Table::create()
        .table("endpoint_stats")
        .col(uuid("publisher_id"))
        .col(uuid("endpoint_id"))
        .col(big_integer("bucket"))
        .col(big_integer("succeeded"))
        .col(big_integer("failed"))
        .col(big_integer("latency_ms_sum"))
        .col(big_integer("latency_ms_max"))
        .primary_key(&mut primary_key(&["publisher_id", "endpoint_id", "bucket"]))
        .foreign_key(&mut of_endpoint("endpoint_stats"))
        .to_owned()
}

fn endpoint_secrets() -> TableCreateStatement {
    Table::create()
        .table("endpoint_secrets")
        .col(uuid("publisher_id"))
        .col(uuid("id"))
        .col(uuid("endpoint_id"))
        .col(text("kind"))
        .col(binary("sealed"))
        .col(text_null("public_key"))
        .col(text("last_four"))
        .col(big_integer("created_at"))
        .col(big_integer_null("expires_at"))
        .col(big_integer_null("superseded_at"))
        .col(big_integer_null("revoked_at"))
        .primary_key(&mut primary_key(&["publisher_id", "id"]))
        .foreign_key(&mut of_endpoint("endpoint_secrets"))
        .check(Expr::cust("kind IN ('hmac', 'ed25519')"))
        .check(Expr::cust("(kind = 'ed25519') = (public_key IS NOT NULL)"))
        .to_owned()
}

//! Deliveries are dispatched by endpoint: the running processes, the endpoints that they lease, the
//! settings of endpoints for their deliveries, and the order of deliveries to ordered endpoints.

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
        manager.create_table(processes()).await?;
        manager.create_table(dispatch_leases()).await?;
        manager.create_table(endpoint_sequences()).await?;
        run(
            manager,
            &[
                "ALTER TABLE webhook_endpoints ADD COLUMN ordered BOOLEAN NOT NULL DEFAULT FALSE",
                "ALTER TABLE webhook_endpoints ADD COLUMN rate_limit_per_second INTEGER",
                "ALTER TABLE webhook_endpoints ADD COLUMN retry_schedule TEXT",
                "ALTER TABLE webhook_endpoints ADD COLUMN max_in_flight INTEGER",
                // The sequence number among the endpoint's deliveries; 0 for endpoints without an
                // order.
                "ALTER TABLE deliveries ADD COLUMN seq BIGINT NOT NULL DEFAULT 0",
                "DROP INDEX deliveries_due",
                // Claims of single deliveries were numbered here. Now leases of endpoints are
                // numbered.
                "ALTER TABLE deliveries DROP COLUMN fence",
                "CREATE INDEX deliveries_waiting ON deliveries (publisher_id, endpoint_id, seq, next_attempt_at, id) WHERE status = 'pending'",
            ],
        )
        .await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        run(
            manager,
            &[
                "DROP INDEX deliveries_waiting",
                "ALTER TABLE deliveries ADD COLUMN fence BIGINT NOT NULL DEFAULT 0",
                "CREATE INDEX deliveries_due ON deliveries (next_attempt_at) WHERE status = 'pending'",
                "ALTER TABLE deliveries DROP COLUMN seq",
                "ALTER TABLE webhook_endpoints DROP COLUMN max_in_flight",
                "ALTER TABLE webhook_endpoints DROP COLUMN retry_schedule",
                "ALTER TABLE webhook_endpoints DROP COLUMN rate_limit_per_second",
                "ALTER TABLE webhook_endpoints DROP COLUMN ordered",
            ],
        )
        .await?;
        drop_tables(
            manager,
            &["endpoint_sequences", "dispatch_leases", "processes"],
        )
        .await
    }
}

/// A row for each running process. Its leases hold for as long as it renews this row.
fn processes() -> TableCreateStatement {
    Table::create()
        .table("processes")
        .col(uuid("id").primary_key())
        .col(big_integer("started_at"))
        .col(big_integer("heartbeat_at"))
        .col(big_integer("expires_at"))
        .to_owned()
}

/// The process that alone sends to an endpoint, and the state for the next one.
fn dispatch_leases() -> TableCreateStatement {
    Table::create()
        .table("dispatch_leases")
        .col(uuid("publisher_id"))
        .col(uuid("endpoint_id"))
        // The lease is free if this is null or names a process that is gone.
        .col(uuid_null("process_id"))
        // The number of the lease. An outcome is recorded only with the number of the present
        // lease.
        .col(big_integer("fence"))
        // The rate limit's bucket, in thousandths of a delivery, as it was at a time.
        .col(big_integer_null("tokens_milli"))
        .col(big_integer_null("tokens_at"))
        // The circuit breaker: failures in a row, and when the next probe may be sent.
        .col(integer("failures"))
        .col(big_integer_null("probe_at"))
        .primary_key(&mut primary_key(&["publisher_id", "endpoint_id"]))
        .foreign_key(
            foreign_key(
                ("dispatch_leases", &["publisher_id", "endpoint_id"]),
                ("webhook_endpoints", &["publisher_id", "id"]),
            )
            .on_delete(ForeignKeyAction::Cascade),
        )
        .to_owned()
}

/// The last sequence number that was given to a delivery of an endpoint.
fn endpoint_sequences() -> TableCreateStatement {
    Table::create()
        .table("endpoint_sequences")
        .col(uuid("publisher_id"))
        .col(uuid("endpoint_id"))
        .col(big_integer("last"))
        .primary_key(&mut primary_key(&["publisher_id", "endpoint_id"]))
        .foreign_key(
            foreign_key(
                ("endpoint_sequences", &["publisher_id", "endpoint_id"]),
                ("webhook_endpoints", &["publisher_id", "id"]),
            )
            .on_delete(ForeignKeyAction::Cascade),
        )
        .to_owned()
}

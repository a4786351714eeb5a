//! Deliveries are dispatched by endpoint: processes that live, endpoints that they lease, what an
//! endpoint wishes of its deliveries, and the order of those that go out one after the other.

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
                // The place in the order of an endpoint's deliveries; 0 where none was asked for.
                "ALTER TABLE deliveries ADD COLUMN seq BIGINT NOT NULL DEFAULT 0",
                "DROP INDEX deliveries_due",
                // Claims of single deliveries were numbered here; leases number endpoints now.
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

/// A row for each running process. Leases are its own for as long as it renews this.
fn processes() -> TableCreateStatement {
    Table::create()
        .table("processes")
        .col(uuid("id").primary_key())
        .col(big_integer("started_at"))
        .col(big_integer("heartbeat_at"))
        .col(big_integer("expires_at"))
        .to_owned()
}

/// Who alone sends to an endpoint, and what it hands over with it.
fn dispatch_leases() -> TableCreateStatement {
    Table::create()
        .table("dispatch_leases")
        .col(uuid("publisher_id"))
        .col(uuid("endpoint_id"))
        // Nobody's where it is null or names a process that is gone.
        .col(uuid_null("process_id"))
        // Counts holders; an outcome counts only under its holder's number.
        .col(big_integer("fence"))
        // The rate limit's bucket, in thousandths of a delivery, as it was at a time.
        .col(big_integer_null("tokens_milli"))
        .col(big_integer_null("tokens_at"))
        // The breaker: failures in a row, and when the next probe may go out.
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

/// The last place given out in the order of an endpoint's deliveries.
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

//! Large fan-outs: deliveries that are written after their events, in small transactions.

use sea_orm_migration::{prelude::*, schema::*};

use crate::{drop_tables, foreign_key, primary_key};

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.create_table(fan_out_sequences()).await?;
        manager.create_table(fan_outs()).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        drop_tables(manager, &["fan_outs", "fan_out_sequences"]).await
    }
}

fn of_publisher(table: &'static str) -> ForeignKeyCreateStatement {
    foreign_key((table, &["publisher_id"]), ("publishers", &["id"]))
}

/// The last number that was given to a fan-out of a publisher. Fan-outs are written in this order.
fn fan_out_sequences() -> TableCreateStatement {
    Table::create()
        .table("fan_out_sequences")
        .col(uuid("publisher_id"))
        .col(big_integer("last"))
        .primary_key(&mut primary_key(&["publisher_id"]))
        .foreign_key(&mut of_publisher("fan_out_sequences"))
        .to_owned()
}

/// Events whose deliveries are still to be written, with their endpoints.
fn fan_outs() -> TableCreateStatement {
    Table::create()
        .table("fan_outs")
        .col(uuid("publisher_id"))
        .col(big_integer("seq"))
        // How many deliveries there are, and how many of them are written.
        .col(big_integer("total"))
        .col(big_integer("done"))
        // The time of its events.
        .col(big_integer("created_at"))
        // Endpoints and events, as JSON.
        .col(text("plan"))
        .primary_key(&mut primary_key(&["publisher_id", "seq"]))
        .foreign_key(&mut of_publisher("fan_outs"))
        .check(Expr::cust("total > 0"))
        .check(Expr::cust("done >= 0 AND done < total"))
        .to_owned()
}

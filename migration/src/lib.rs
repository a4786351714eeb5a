//! The schema, as numbered steps that run on both SQLite and PostgreSQL.
//!
//! Rules: one change a statement; foreign keys at `CREATE TABLE` (SQLite can't add them later);
//! every step in a transaction; a released step never changes; an old binary must run against the
//! next schema (expand, then contract). Every tenant table's key begins with `publisher_id`, and
//! its foreign keys carry it. Times are milliseconds since the epoch in a `BIGINT`.

use sea_orm_migration::prelude::*;

mod m0001_publishers;
mod m0002_operations;
mod m0003_pipelines;
mod m0004_webhooks;
mod m0005_runs_in_full;
mod m0006_dispatch_by_endpoint;
mod m0007_webhooks_in_full;
mod m0008_trains;
mod m0009_fan_outs;
mod m0010_reads_by_index;
mod m0011_ends_by_index;
mod m0012_cooldown_reporters;
mod m0013_waiting_deliveries;
mod m0014_people;

/// All steps, in order.
pub struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m0001_publishers::Migration),
            Box::new(m0002_operations::Migration),
            Box::new(m0003_pipelines::Migration),
            Box::new(m0004_webhooks::Migration),
            Box::new(m0005_runs_in_full::Migration),
            Box::new(m0006_dispatch_by_endpoint::Migration),
            Box::new(m0007_webhooks_in_full::Migration),
            Box::new(m0008_trains::Migration),
            Box::new(m0009_fan_outs::Migration),
            Box::new(m0010_reads_by_index::Migration),
            Box::new(m0011_ends_by_index::Migration),
            Box::new(m0012_cooldown_reporters::Migration),
            Box::new(m0013_waiting_deliveries::Migration),
            Box::new(m0014_people::Migration),
        ]
    }
}

/// A foreign key over several columns. Rows that it refers to can't be deleted.
fn foreign_key(
    from: (&'static str, &[&'static str]),
    to: (&'static str, &[&'static str]),
) -> ForeignKeyCreateStatement {
    let mut key = ForeignKey::create();
    key.from_tbl(from.0).to_tbl(to.0);
    for column in from.1 {
        key.from_col(*column);
    }
    for column in to.1 {
        key.to_col(*column);
    }
    key
}

/// A primary key over several columns.
fn primary_key(columns: &[&'static str]) -> IndexCreateStatement {
    let mut key = Index::create();
    key.primary();
    for column in columns {
        key.col(*column);
    }
    key
}

/// Runs SQL that is the same for both engines, such as partial indexes, which the builder can't
/// write.
async fn run(manager: &SchemaManager<'_>, statements: &[&str]) -> Result<(), DbErr> {
    for sql in statements {
        manager.get_connection().execute_unprepared(sql).await?;
    }
    Ok(())
}

/// Drops tables, in the reverse order.
async fn drop_tables(manager: &SchemaManager<'_>, tables: &[&'static str]) -> Result<(), DbErr> {
    for table in tables {
        manager
            .drop_table(Table::drop().table(*table).to_owned())
            .await?;
    }
    Ok(())
}

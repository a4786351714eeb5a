//! The token whose report caused the cooldown of an account.

use sea_orm_migration::{prelude::*, schema::*};

use crate::run;

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        // The token of the train. It may be removed before the cooldown, so this is no foreign key.
        let add = Table::alter()
            .table("account_cooldowns")
            .add_column(uuid_null("reported_by"))
            .to_owned();
        manager.alter_table(add).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        run(
            manager,
            &["ALTER TABLE account_cooldowns DROP COLUMN reported_by"],
        )
        .await
    }
}

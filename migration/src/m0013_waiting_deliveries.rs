//! Waiting deliveries: the number of attempts that the receiver answered by asking for a pause,
//! which use up none of the retry schedule; and replays that make waiting deliveries due.

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
                "ALTER TABLE deliveries ADD COLUMN throttled integer NOT NULL DEFAULT 0",
                "ALTER TABLE replays ADD COLUMN include_pending boolean NOT NULL DEFAULT FALSE",
                "ALTER TABLE replays ADD COLUMN made_due bigint NOT NULL DEFAULT 0",
            ],
        )
        .await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        run(
            manager,
            &[
                "ALTER TABLE replays DROP COLUMN made_due",
                "ALTER TABLE replays DROP COLUMN include_pending",
                "ALTER TABLE deliveries DROP COLUMN throttled",
            ],
        )
        .await
    }
}

//! Publishers, their keys and their credentials.

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
        manager.create_table(publishers()).await?;
        manager.create_table(owner_keys()).await?;
        manager.create_table(credentials()).await?;
        manager.create_table(token_hashes()).await?;
        manager.create_table(cache_epoch()).await?;
        manager.create_table(credential_changes()).await?;
        run(
            manager,
            &[
                "INSERT INTO cache_epoch (id, epoch) VALUES (1, 0)",
                "CREATE INDEX credentials_expired ON credentials (expires_at) WHERE expires_at IS NOT NULL",
                "CREATE INDEX credentials_revoked ON credentials (revoked_at) WHERE revoked_at IS NOT NULL",
                "CREATE INDEX token_hashes_token ON token_hashes (publisher_id, token_id)",
                "CREATE INDEX publishers_deleted ON publishers (deleted_at) WHERE deleted_at IS NOT NULL",
            ],
        )
        .await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        drop_tables(
            manager,
            &[
                "credential_changes",
                "cache_epoch",
                "token_hashes",
                "credentials",
                "owner_keys",
                "publishers",
            ],
        )
        .await
    }
}

fn publishers() -> TableCreateStatement {
    Table::create()
        .table("publishers")
        .col(uuid("id").primary_key())
        .col(text("slug"))
        // The slug while the publisher exists, and NULL once it is deleted, so that the slug is
        // free.
        .col(text_uniq("live_slug").null())
        .col(text("display_name"))
        .col(text("status"))
        .col(text("quotas"))
        .col(big_integer("revision"))
        .col(big_integer("created_at"))
        .col(big_integer("updated_at"))
        .col(big_integer_null("deleted_at"))
        .check(Expr::cust("status IN ('active', 'suspended', 'deleted')"))
        .check(Expr::cust(
            "(status = 'deleted') = (deleted_at IS NOT NULL)",
        ))
        .check(Expr::cust("(status = 'deleted') = (live_slug IS NULL)"))
        .to_owned()
}

/// Without a foreign key, because the operator's keys are in this table, too, with the nil owner.
fn owner_keys() -> TableCreateStatement {
    Table::create()
        .table("owner_keys")
        .col(uuid("owner_id").primary_key())
        .col(text("master_key_id"))
        .col(blob("data_key"))
        .col(blob("chain_key"))
        .col(big_integer("created_at"))
        .to_owned()
}

fn credentials() -> TableCreateStatement {
    Table::create()
        .table("credentials")
        .col(uuid("publisher_id"))
        .col(uuid("id"))
        .col(text("kind"))
        .col(boolean("grants_admin"))
        .col(boolean("grants_runner"))
        .col(blob_null("sealed"))
        .col(text("last_four"))
        .col(text_null("name"))
        .col(text("source"))
        .col(text_null("pipelines"))
        .col(big_integer("created_at"))
        .col(big_integer_null("expires_at"))
        .col(big_integer_null("superseded_at"))
        .col(big_integer_null("revoked_at"))
        .col(big_integer_null("last_used_at"))
        .primary_key(&mut primary_key(&["publisher_id", "id"]))
        .foreign_key(&mut foreign_key(
            ("credentials", &["publisher_id"]),
            ("publishers", &["id"]),
        ))
        .check(Expr::cust(
            "kind IN ('admin', 'runner', 'webhook_signing', 'subcommand_bearer')",
        ))
        .check(Expr::cust(
            "(kind IN ('admin', 'runner')) = (sealed IS NULL)",
        ))
        .check(Expr::cust(
            "sealed IS NULL OR (NOT grants_admin AND NOT grants_runner)",
        ))
        .to_owned()
}

/// The index for authentication, which does not know the publisher yet.
fn token_hashes() -> TableCreateStatement {
    Table::create()
        .table("token_hashes")
        .col(blob("hash").primary_key())
        .col(uuid("publisher_id"))
        .col(uuid("token_id"))
        .foreign_key(
            foreign_key(
                ("token_hashes", &["publisher_id", "token_id"]),
                ("credentials", &["publisher_id", "id"]),
            )
            .on_delete(ForeignKeyAction::Cascade),
        )
        .to_owned()
}

/// One row. Its lock puts the changes of all credentials in one order.
fn cache_epoch() -> TableCreateStatement {
    Table::create()
        .table("cache_epoch")
        .col(integer("id").primary_key())
        .col(big_integer("epoch"))
        .to_owned()
}

/// The publishers whose credentials changed, for the caches of other processes.
fn credential_changes() -> TableCreateStatement {
    Table::create()
        .table("credential_changes")
        .col(big_integer("epoch").primary_key())
        .col(uuid("publisher_id"))
        .col(big_integer("at"))
        .to_owned()
}

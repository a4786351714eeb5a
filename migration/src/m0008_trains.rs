//! Upstream credentials (accounts), the trains that lend them, and the tokens of trains.

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
            accounts(),
            account_cooldowns(),
            account_usage(),
            trains(),
            train_accounts(),
            train_tokens(),
            train_token_hashes(),
            oauth_logins(),
            train_notices(),
        ] {
            manager.create_table(table).await?;
        }
        run(
            manager,
            &[
                "CREATE UNIQUE INDEX accounts_by_name ON accounts (publisher_id, name)",
                "CREATE INDEX accounts_to_refresh ON accounts (refresh_due_at) WHERE refresh_due_at IS NOT NULL",
                "CREATE INDEX account_cooldowns_reported ON account_cooldowns (reported_at)",
                "CREATE INDEX account_cooldowns_to_sweep ON account_cooldowns (until)",
                "CREATE INDEX account_usage_to_sweep ON account_usage (bucket)",
                "CREATE UNIQUE INDEX trains_by_slug ON trains (publisher_id, slug)",
                "CREATE INDEX train_accounts_by_account ON train_accounts (publisher_id, account_id)",
                "CREATE INDEX train_tokens_by_train ON train_tokens (publisher_id, train_id, id)",
                "CREATE INDEX train_tokens_revoked ON train_tokens (revoked_at) WHERE revoked_at IS NOT NULL",
                "CREATE INDEX train_tokens_expired ON train_tokens (expires_at) WHERE expires_at IS NOT NULL",
                "CREATE INDEX train_token_hashes_token ON train_token_hashes (publisher_id, token_id)",
                "CREATE INDEX oauth_logins_to_sweep ON oauth_logins (expires_at)",
                "CREATE INDEX train_notices_due ON train_notices (next_attempt_at) WHERE next_attempt_at IS NOT NULL",
                "CREATE INDEX train_notices_to_sweep ON train_notices (finished_at) WHERE finished_at IS NOT NULL",
            ],
        )
        .await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        drop_tables(
            manager,
            &[
                "train_notices",
                "oauth_logins",
                "train_token_hashes",
                "train_tokens",
                "train_accounts",
                "trains",
                "account_usage",
                "account_cooldowns",
                "accounts",
            ],
        )
        .await
    }
}

fn of_publisher(table: &'static str) -> ForeignKeyCreateStatement {
    foreign_key((table, &["publisher_id"]), ("publishers", &["id"]))
}

/// A foreign key to `table` whose rows are deleted together with the row that they refer to.
fn belongs_to(
    from: &'static str,
    column: &'static str,
    table: &'static str,
) -> ForeignKeyCreateStatement {
    foreign_key(
        (from, &["publisher_id", column]),
        (table, &["publisher_id", "id"]),
    )
    .on_delete(ForeignKeyAction::Cascade)
    .to_owned()
}

fn accounts() -> TableCreateStatement {
    Table::create()
        .table("accounts")
        .col(uuid("publisher_id"))
        .col(uuid("id"))
        .col(text("name"))
        .col(text("provider"))
        .col(text("base_url"))
        // The header that carries the credential, and the word before it if there is one.
        .col(text("header_name"))
        .col(text_null("header_scheme"))
        .col(text("credential_type"))
        // An API key, or the tokens and the client secret of OAuth.
        .col(binary("sealed"))
        // The version of the credential. A refresh replaces the version that it began with.
        .col(big_integer("credential_version"))
        .col(text("last_four"))
        .col(boolean("enabled"))
        .col(text("health"))
        .col(text_null("health_reason"))
        .col(big_integer_null("failed_at"))
        // Soft ceilings of use, as JSON.
        .col(text_null("ceilings"))
        .col(big_integer_null("expires_at"))
        .col(text_null("token_url"))
        .col(text_null("client_id"))
        .col(text_null("scopes"))
        .col(big_integer_null("refreshed_at"))
        .col(big_integer_null("refresh_due_at"))
        .col(integer("refresh_failures").default(0).take())
        .col(uuid_null("refresh_lease"))
        .col(big_integer_null("refresh_lease_until"))
        .col(big_integer("revision"))
        .col(big_integer("created_at"))
        .col(big_integer("updated_at"))
        .primary_key(&mut primary_key(&["publisher_id", "id"]))
        .foreign_key(&mut of_publisher("accounts"))
        .check(Expr::cust("credential_type IN ('api_key', 'oauth')"))
        .check(Expr::cust(
            "(credential_type = 'oauth') = (token_url IS NOT NULL)",
        ))
        .check(Expr::cust(
            "(credential_type = 'oauth') = (client_id IS NOT NULL)",
        ))
        .check(Expr::cust("credential_type = 'oauth' OR scopes IS NULL"))
        .check(Expr::cust(
            "credential_type = 'oauth' OR expires_at IS NULL",
        ))
        .check(Expr::cust(
            "credential_type = 'oauth' OR refreshed_at IS NULL",
        ))
        .check(Expr::cust(
            "credential_type = 'oauth' OR refresh_due_at IS NULL",
        ))
        .check(Expr::cust(
            "(refresh_lease IS NULL) = (refresh_lease_until IS NULL)",
        ))
        .check(Expr::cust("health IN ('ok', 'failed')"))
        .check(Expr::cust("(health = 'failed') = (failed_at IS NOT NULL)"))
        .to_owned()
}

/// The cooldowns of accounts, for one model or (`''`) for all.
fn account_cooldowns() -> TableCreateStatement {
    Table::create()
        .table("account_cooldowns")
        .col(uuid("publisher_id"))
        .col(uuid("account_id"))
        .col(text("model"))
        .col(big_integer("until"))
        .col(text("reason"))
        .col(big_integer("reported_at"))
        .primary_key(&mut primary_key(&["publisher_id", "account_id", "model"]))
        .foreign_key(&mut belongs_to(
            "account_cooldowns",
            "account_id",
            "accounts",
        ))
        .check(Expr::cust(
            "reason IN ('rate_limited', 'unauthorized', 'failed')",
        ))
        .to_owned()
}

/// The use that gateways reported, by span of time.
fn account_usage() -> TableCreateStatement {
    Table::create()
        .table("account_usage")
        .col(uuid("publisher_id"))
        .col(uuid("account_id"))
        .col(big_integer("bucket"))
        .col(big_integer("requests"))
        .col(big_integer("tokens"))
        .primary_key(&mut primary_key(&["publisher_id", "account_id", "bucket"]))
        .foreign_key(&mut belongs_to("account_usage", "account_id", "accounts"))
        .to_owned()
}

fn trains() -> TableCreateStatement {
    Table::create()
        .table("trains")
        .col(uuid("publisher_id"))
        .col(uuid("id"))
        .col(text("slug"))
        .col(text_null("description"))
        .col(boolean("enabled"))
        // Whether a client that sends its key keeps its account while that is usable.
        .col(boolean("sticky"))
        .col(binary_null("slack_webhook"))
        .col(text_null("slack_channel"))
        .col(text_null("slack_events"))
        // When the publisher was last notified that no account is usable.
        .col(big_integer_null("exhausted_at"))
        .col(big_integer("revision"))
        .col(big_integer("created_at"))
        .col(big_integer("updated_at"))
        .primary_key(&mut primary_key(&["publisher_id", "id"]))
        .foreign_key(&mut of_publisher("trains"))
        .check(Expr::cust(
            "(slack_webhook IS NULL) = (slack_events IS NULL)",
        ))
        .check(Expr::cust(
            "slack_webhook IS NOT NULL OR slack_channel IS NULL",
        ))
        .to_owned()
}

fn train_accounts() -> TableCreateStatement {
    Table::create()
        .table("train_accounts")
        .col(uuid("publisher_id"))
        .col(uuid("train_id"))
        .col(uuid("account_id"))
        // 0 is tried first.
        .col(integer("priority"))
        .primary_key(&mut primary_key(&[
            "publisher_id",
            "train_id",
            "account_id",
        ]))
        .foreign_key(&mut belongs_to("train_accounts", "train_id", "trains"))
        .foreign_key(&mut belongs_to("train_accounts", "account_id", "accounts"))
        .check(Expr::cust("priority >= 0"))
        .to_owned()
}

fn train_tokens() -> TableCreateStatement {
    Table::create()
        .table("train_tokens")
        .col(uuid("publisher_id"))
        .col(uuid("id"))
        .col(uuid("train_id"))
        .col(text_null("name"))
        .col(text("last_four"))
        // `import`: created by another service, in any form.
        .col(text("source"))
        .col(big_integer("created_at"))
        .col(big_integer_null("expires_at"))
        .col(big_integer_null("revoked_at"))
        .col(big_integer_null("last_used_at"))
        .primary_key(&mut primary_key(&["publisher_id", "id"]))
        .foreign_key(&mut belongs_to("train_tokens", "train_id", "trains"))
        .check(Expr::cust("source IN ('api', 'import')"))
        .to_owned()
}

/// The index for the authentication of train tokens, which does not know the publisher yet.
fn train_token_hashes() -> TableCreateStatement {
    Table::create()
        .table("train_token_hashes")
        .col(blob("hash").primary_key())
        .col(uuid("publisher_id"))
        .col(uuid("token_id"))
        .foreign_key(&mut belongs_to(
            "train_token_hashes",
            "token_id",
            "train_tokens",
        ))
        .to_owned()
}

/// Unfinished logins at upstreams (RFC 7636).
fn oauth_logins() -> TableCreateStatement {
    Table::create()
        .table("oauth_logins")
        .col(uuid("publisher_id"))
        .col(binary("state_hash"))
        // The code verifier, and a client secret if there is one.
        .col(binary("sealed"))
        // The settings of the new account, as JSON without credentials.
        .col(text("account"))
        .col(big_integer("created_at"))
        .col(big_integer("expires_at"))
        .primary_key(&mut primary_key(&["publisher_id", "state_hash"]))
        .foreign_key(&mut of_publisher("oauth_logins"))
        .to_owned()
}

/// Slack messages about trains that are to be sent.
fn train_notices() -> TableCreateStatement {
    Table::create()
        .table("train_notices")
        .col(uuid("publisher_id"))
        .col(uuid("id"))
        .col(uuid("train_id"))
        .col(text("event_type"))
        .col(text("message"))
        .col(integer("attempts"))
        // NULL once the message was sent or finally failed.
        .col(big_integer_null("next_attempt_at"))
        .col(text_null("last_error"))
        .col(big_integer("created_at"))
        .col(big_integer_null("finished_at"))
        .primary_key(&mut primary_key(&["publisher_id", "id"]))
        .foreign_key(&mut belongs_to("train_notices", "train_id", "trains"))
        .check(Expr::cust(
            "(next_attempt_at IS NULL) = (finished_at IS NOT NULL)",
        ))
        .to_owned()
}

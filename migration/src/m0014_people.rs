//! People: users with their addresses, passwords, passkeys and identities; sessions and single-use
//! tokens; memberships and invitations; mails; throttles of sign-in. Also which member created a
//! credential.

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
            users(),
            user_addresses(),
            user_identities(),
            user_passwords(),
            passkeys(),
            sessions(),
            single_use_tokens(),
            memberships(),
            invitations(),
            mails(),
            sign_in_throttles(),
        ] {
            manager.create_table(table).await?;
        }
        run(
            manager,
            &[
                "CREATE INDEX user_addresses_by_user ON user_addresses (user_id)",
                "CREATE INDEX user_identities_by_user ON user_identities (user_id)",
                "CREATE INDEX passkeys_by_user ON passkeys (user_id)",
                "CREATE INDEX sessions_by_user ON sessions (user_id, id)",
                "CREATE INDEX sessions_expired ON sessions (expires_at)",
                "CREATE INDEX sessions_idle ON sessions (last_seen_at)",
                "CREATE INDEX single_use_tokens_by_user ON single_use_tokens (user_id) WHERE user_id IS NOT NULL",
                "CREATE INDEX single_use_tokens_by_address ON single_use_tokens (address, purpose) WHERE address IS NOT NULL",
                "CREATE INDEX single_use_tokens_expired ON single_use_tokens (expires_at)",
                "CREATE INDEX memberships_by_user ON memberships (user_id)",
                "CREATE INDEX invitations_by_address ON invitations (address)",
                "CREATE INDEX invitations_expired ON invitations (expires_at)",
                "CREATE INDEX mails_due ON mails (next_attempt_at) WHERE next_attempt_at IS NOT NULL",
                "CREATE INDEX mails_to_sweep ON mails (finished_at) WHERE finished_at IS NOT NULL",
                "CREATE INDEX sign_in_throttles_to_sweep ON sign_in_throttles (updated_at)",
                "ALTER TABLE credentials ADD COLUMN minted_by uuid",
                "ALTER TABLE train_tokens ADD COLUMN minted_by uuid",
            ],
        )
        .await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        run(
            manager,
            &[
                "ALTER TABLE train_tokens DROP COLUMN minted_by",
                "ALTER TABLE credentials DROP COLUMN minted_by",
            ],
        )
        .await?;
        drop_tables(
            manager,
            &[
                "sign_in_throttles",
                "mails",
                "invitations",
                "memberships",
                "single_use_tokens",
                "sessions",
                "passkeys",
                "user_passwords",
                "user_identities",
                "user_addresses",
                "users",
            ],
        )
        .await
    }
}

fn of_user(table: &'static str) -> ForeignKeyCreateStatement {
    foreign_key((table, &["user_id"]), ("users", &["id"]))
}

fn of_publisher(table: &'static str) -> ForeignKeyCreateStatement {
    foreign_key((table, &["publisher_id"]), ("publishers", &["id"]))
}

/// People, of no publisher.
fn users() -> TableCreateStatement {
    Table::create()
        .table("users")
        .col(uuid("id").primary_key())
        .col(text_null("display_name"))
        // Whether the user has the operator's rights.
        .col(boolean("staff"))
        .col(big_integer("revision"))
        .col(big_integer("created_at"))
        .col(big_integer("updated_at"))
        .col(big_integer_null("disabled_at"))
        .to_owned()
}

/// Addresses of users. An address is one user's.
fn user_addresses() -> TableCreateStatement {
    Table::create()
        .table("user_addresses")
        .col(text("address").primary_key())
        .col(uuid("user_id"))
        .col(boolean("is_primary"))
        .col(big_integer_null("verified_at"))
        .col(big_integer("created_at"))
        .foreign_key(&mut of_user("user_addresses"))
        .to_owned()
}

/// Sign-ins elsewhere.
fn user_identities() -> TableCreateStatement {
    Table::create()
        .table("user_identities")
        .col(text("provider"))
        .col(text("subject"))
        .col(uuid("user_id"))
        // What the provider said last, for people to read.
        .col(text_null("address"))
        .col(big_integer("created_at"))
        .col(big_integer("last_used_at"))
        .primary_key(&mut primary_key(&["provider", "subject"]))
        .foreign_key(&mut of_user("user_identities"))
        .to_owned()
}

fn user_passwords() -> TableCreateStatement {
    Table::create()
        .table("user_passwords")
        .col(uuid("user_id").primary_key())
        // In PHC form, with the algorithm and its parameters.
        .col(text("hash"))
        .col(big_integer("changed_at"))
        .foreign_key(&mut of_user("user_passwords"))
        .to_owned()
}

/// Public keys of authenticators (WebAuthn).
fn passkeys() -> TableCreateStatement {
    Table::create()
        .table("passkeys")
        .col(uuid("id").primary_key())
        .col(uuid("user_id"))
        .col(binary("credential_id").unique_key())
        // In COSE form (RFC 9052 §7).
        .col(binary("public_key"))
        .col(big_integer("sign_count"))
        .col(boolean("backed_up"))
        .col(text("name"))
        .col(big_integer("created_at"))
        .col(big_integer_null("last_used_at"))
        .foreign_key(&mut of_user("passkeys"))
        .to_owned()
}

fn sessions() -> TableCreateStatement {
    Table::create()
        .table("sessions")
        .col(uuid("id").primary_key())
        .col(binary("hash").unique_key())
        .col(uuid("user_id"))
        .col(text("method"))
        .col(text_null("provider"))
        // When the person last proved who they are.
        .col(big_integer("authenticated_at"))
        .col(big_integer("created_at"))
        .col(big_integer("last_seen_at"))
        .col(big_integer("expires_at"))
        .col(text_null("client_address"))
        .col(text_null("user_agent"))
        .foreign_key(&mut of_user("sessions"))
        .to_owned()
}

/// Mailed links and codes, challenges, and sign-ins elsewhere that were begun: each good for one
/// purpose, once.
fn single_use_tokens() -> TableCreateStatement {
    Table::create()
        .table("single_use_tokens")
        .col(binary("hash").primary_key())
        .col(text("purpose"))
        .col(uuid_null("user_id"))
        .col(text_null("address"))
        // The hash of what the browser that asked holds in a cookie.
        .col(binary_null("browser"))
        // The hash of the short code beside the link, and how often it was tried.
        .col(binary_null("code"))
        .col(integer("code_attempts"))
        // What belongs to the purpose.
        .col(binary_null("sealed"))
        .col(big_integer("created_at"))
        .col(big_integer("expires_at"))
        .col(big_integer_null("used_at"))
        // A newer one took its place.
        .col(big_integer_null("superseded_at"))
        .foreign_key(&mut of_user("single_use_tokens"))
        .to_owned()
}

fn memberships() -> TableCreateStatement {
    Table::create()
        .table("memberships")
        .col(uuid("publisher_id"))
        .col(uuid("user_id"))
        .col(text("role"))
        .col(big_integer("revision"))
        .col(big_integer("created_at"))
        .col(big_integer("updated_at"))
        .primary_key(&mut primary_key(&["publisher_id", "user_id"]))
        .foreign_key(&mut of_publisher("memberships"))
        .foreign_key(&mut of_user("memberships"))
        .check(Expr::cust(
            "role IN ('owner', 'admin', 'developer', 'viewer')",
        ))
        .to_owned()
}

fn invitations() -> TableCreateStatement {
    Table::create()
        .table("invitations")
        .col(uuid("publisher_id"))
        .col(uuid("id"))
        .col(text("address"))
        .col(text("role"))
        .col(binary("hash").unique_key())
        // Who invited: a user, or a token.
        .col(text("inviter_kind"))
        .col(text("inviter_id"))
        .col(big_integer("created_at"))
        .col(big_integer("expires_at"))
        .col(big_integer_null("accepted_at"))
        .col(uuid_null("accepted_by"))
        .col(big_integer_null("revoked_at"))
        .primary_key(&mut primary_key(&["publisher_id", "id"]))
        .foreign_key(&mut of_publisher("invitations"))
        .check(Expr::cust(
            "role IN ('owner', 'admin', 'developer', 'viewer')",
        ))
        .check(Expr::cust("(accepted_at IS NULL) = (accepted_by IS NULL)"))
        .to_owned()
}

/// Mails that are to be sent.
fn mails() -> TableCreateStatement {
    Table::create()
        .table("mails")
        .col(uuid("id").primary_key())
        .col(text("kind"))
        // The address, the subject and the texts, while the mail waits.
        .col(binary_null("sealed"))
        .col(integer("attempts"))
        .col(big_integer_null("next_attempt_at"))
        .col(text_null("last_error"))
        .col(big_integer("created_at"))
        // After this the mail is of no use.
        .col(big_integer("expires_at"))
        .col(big_integer_null("finished_at"))
        .check(Expr::cust(
            "(next_attempt_at IS NULL) = (finished_at IS NOT NULL)",
        ))
        .to_owned()
}

/// Failed sign-ins, and mails that were asked for, of an address or a network.
fn sign_in_throttles() -> TableCreateStatement {
    Table::create()
        .table("sign_in_throttles")
        // A keyed hash of what is counted.
        .col(binary("key").primary_key())
        .col(integer("count"))
        .col(big_integer("updated_at"))
        .col(big_integer("blocked_until"))
        .to_owned()
}

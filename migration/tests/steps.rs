//! Every step runs on a populated database, on both engines; a failing one leaves no trace; the
//! schema that results is frozen.

#![expect(clippy::unwrap_used, reason = "a test")]

use migration::Migrator;
use sea_orm::{ConnectionTrait, Database, DatabaseConnection, DbBackend, Statement};
use sea_orm_migration::prelude::*;

/// A row for every table, in an order that foreign keys allow, by the step that made the table.
/// `{u}` is an identifier, `{b}` some bytes.
const ROWS: &[(usize, &str, &str)] = &[
    (
        1,
        "publishers",
        "INSERT INTO publishers (id, slug, live_slug, display_name, status, quotas, revision, created_at, updated_at) VALUES ({u}, 's', 's', 'S', 'active', '{}', 1, 1, 1)",
    ),
    (
        1,
        "owner_keys",
        "INSERT INTO owner_keys (owner_id, master_key_id, data_key, chain_key, created_at) VALUES ({u}, 'm', {b}, {b}, 1)",
    ),
    (
        1,
        "credentials",
        "INSERT INTO credentials (publisher_id, id, kind, grants_admin, grants_runner, last_four, source, created_at) VALUES ({u}, {u}, 'admin', TRUE, FALSE, 'abcd', 'api', 1)",
    ),
    (
        1,
        "token_hashes",
        "INSERT INTO token_hashes (hash, publisher_id, token_id) VALUES ({b}, {u}, {u})",
    ),
    (
        1,
        "credential_changes",
        "INSERT INTO credential_changes (epoch, publisher_id, at) VALUES (1, {u}, 1)",
    ),
    (
        2,
        "audit_heads",
        "INSERT INTO audit_heads (owner_id, seq, mac) VALUES ({u}, 1, {b})",
    ),
    (
        2,
        "audit_events",
        "INSERT INTO audit_events (owner_id, seq, id, at, actor_kind, actor_id, action, target_kind, target_id, metadata, mac) VALUES ({u}, 1, {u}, 1, 'admin', 'a', 'x', 'y', 'z', '{}', {b})",
    ),
    (
        2,
        "idempotency_keys",
        "INSERT INTO idempotency_keys (owner_id, operation, key, request_hash, created_at, expires_at) VALUES ({u}, 'o', 'k', {b}, 1, 1)",
    ),
    (2, "jobs", "INSERT INTO jobs (name, due_at) VALUES ('j', 1)"),
    (
        3,
        "pipelines",
        "INSERT INTO pipelines (publisher_id, id, slug, live_slug, version, revision, created_at, updated_at) VALUES ({u}, {u}, 'p', 'p', 1, 1, 1, 1)",
    ),
    (
        3,
        "pipeline_versions",
        "INSERT INTO pipeline_versions (publisher_id, pipeline_id, version, definition, created_at) VALUES ({u}, {u}, 1, '{}', 1)",
    ),
    (
        3,
        "runs",
        "INSERT INTO runs (publisher_id, id, pipeline_id, pipeline_version, pipeline_slug, status, input, priority, not_before, attempt, max_attempts, lease_seconds, retention_days, created_by_id, created_by_kind, revision, created_at) VALUES ({u}, {u}, {u}, 1, 'p', 'queued', '{}', 5, 1, 0, 3, 60, 30, 'a', 'admin', 1, 1)",
    ),
    (
        4,
        "events",
        "INSERT INTO events (publisher_id, id, event_type, body, created_at) VALUES ({u}, {u}, 't', '{}', 1)",
    ),
    (
        4,
        "webhook_endpoints",
        "INSERT INTO webhook_endpoints (publisher_id, id, url, event_types, headers, enabled, send_bearer, revision, created_at, updated_at) VALUES ({u}, {u}, 'https://x', '[]', '{}', TRUE, FALSE, 1, 1, 1)",
    ),
    (
        4,
        "deliveries",
        "INSERT INTO deliveries (publisher_id, id, event_id, endpoint_id, status, attempts, next_attempt_at, fence, created_at) VALUES ({u}, {u}, {u}, {u}, 'pending', 0, 1, 0, 1)",
    ),
    (
        4,
        "delivery_attempts",
        "INSERT INTO delivery_attempts (publisher_id, delivery_id, number, at, latency_ms) VALUES ({u}, {u}, 1, 1, 1)",
    ),
    (
        5,
        "run_timeline",
        "INSERT INTO run_timeline (publisher_id, run_id, seq, at, moment, attempt) VALUES ({u}, {u}, 1, 1, 'created', 0)",
    ),
    (
        6,
        "processes",
        "INSERT INTO processes (id, started_at, heartbeat_at, expires_at) VALUES ({u}, 1, 1, 1)",
    ),
    (
        6,
        "dispatch_leases",
        "INSERT INTO dispatch_leases (publisher_id, endpoint_id, process_id, fence, failures) VALUES ({u}, {u}, {u}, 1, 0)",
    ),
    (
        6,
        "endpoint_sequences",
        "INSERT INTO endpoint_sequences (publisher_id, endpoint_id, last) VALUES ({u}, {u}, 1)",
    ),
    (
        7,
        "event_types",
        "INSERT INTO event_types (publisher_id, event_type, id, revision, created_at, updated_at) VALUES ({u}, 'order.paid', {u}, 1, 1, 1)",
    ),
    (
        7,
        "replays",
        "INSERT INTO replays (publisher_id, id, endpoint_id, status, filter, since, until, only_failed, matched, queued, looked_at, created_at) VALUES ({u}, {u}, {u}, 'running', '{}', 1, 2, FALSE, 0, 0, 1, 1)",
    ),
    (
        7,
        "endpoint_health",
        "INSERT INTO endpoint_health (publisher_id, endpoint_id, consecutive_failures) VALUES ({u}, {u}, 0)",
    ),
    (
        7,
        "endpoint_stats",
        "INSERT INTO endpoint_stats (publisher_id, endpoint_id, bucket, succeeded, failed, latency_ms_sum, latency_ms_max) VALUES ({u}, {u}, 0, 1, 0, 1, 1)",
    ),
    (
        7,
        "endpoint_secrets",
        "INSERT INTO endpoint_secrets (publisher_id, id, endpoint_id, kind, sealed, last_four, created_at) VALUES ({u}, {u}, {u}, 'hmac', {b}, 'abcd', 1)",
    ),
    (
        8,
        "accounts",
        "INSERT INTO accounts (publisher_id, id, name, provider, base_url, header_name, credential_type, sealed, credential_version, last_four, enabled, health, revision, created_at, updated_at) VALUES ({u}, {u}, 'n', 'anthropic', 'https://x', 'x-api-key', 'api_key', {b}, 1, 'abcd', TRUE, 'ok', 1, 1, 1)",
    ),
    (
        8,
        "account_cooldowns",
        "INSERT INTO account_cooldowns (publisher_id, account_id, model, until, reason, reported_at) VALUES ({u}, {u}, '', 2, 'rate_limited', 1)",
    ),
    (
        8,
        "account_usage",
        "INSERT INTO account_usage (publisher_id, account_id, bucket, requests, tokens) VALUES ({u}, {u}, 0, 1, 1)",
    ),
    (
        8,
        "trains",
        "INSERT INTO trains (publisher_id, id, slug, enabled, sticky, revision, created_at, updated_at) VALUES ({u}, {u}, 't', TRUE, FALSE, 1, 1, 1)",
    ),
    (
        8,
        "train_accounts",
        "INSERT INTO train_accounts (publisher_id, train_id, account_id, priority) VALUES ({u}, {u}, {u}, 0)",
    ),
    (
        8,
        "train_tokens",
        "INSERT INTO train_tokens (publisher_id, id, train_id, last_four, source, created_at) VALUES ({u}, {u}, {u}, 'abcd', 'api', 1)",
    ),
    (
        8,
        "train_token_hashes",
        "INSERT INTO train_token_hashes (hash, publisher_id, token_id) VALUES ({b}, {u}, {u})",
    ),
    (
        8,
        "oauth_logins",
        "INSERT INTO oauth_logins (publisher_id, state_hash, sealed, account, created_at, expires_at) VALUES ({u}, {b}, {b}, '{}', 1, 2)",
    ),
    (
        8,
        "train_notices",
        "INSERT INTO train_notices (publisher_id, id, train_id, event_type, message, attempts, next_attempt_at, created_at) VALUES ({u}, {u}, {u}, 't', 'm', 0, 1, 1)",
    ),
    (
        9,
        "fan_out_sequences",
        "INSERT INTO fan_out_sequences (publisher_id, last) VALUES ({u}, 1)",
    ),
    (
        9,
        "fan_outs",
        "INSERT INTO fan_outs (publisher_id, seq, total, done, created_at, plan) VALUES ({u}, 1, 2, 1, 1, '{}')",
    ),
    (
        10,
        "storage_usage",
        "INSERT INTO storage_usage (publisher_id, bytes) VALUES ({u}, 1)",
    ),
    (
        14,
        "users",
        "INSERT INTO users (id, staff, revision, created_at, updated_at) VALUES ({u}, FALSE, 1, 1, 1)",
    ),
    (
        14,
        "user_addresses",
        "INSERT INTO user_addresses (address, user_id, is_primary, created_at) VALUES ('a@b.example', {u}, TRUE, 1)",
    ),
    (
        14,
        "user_identities",
        "INSERT INTO user_identities (provider, subject, user_id, created_at, last_used_at) VALUES ('github', '1', {u}, 1, 1)",
    ),
    (
        14,
        "user_passwords",
        "INSERT INTO user_passwords (user_id, hash, changed_at) VALUES ({u}, 'h', 1)",
    ),
    (
        14,
        "passkeys",
        "INSERT INTO passkeys (id, user_id, credential_id, public_key, sign_count, backed_up, name, created_at) VALUES ({u}, {u}, {b}, {b}, 0, FALSE, 'n', 1)",
    ),
    (
        14,
        "sessions",
        "INSERT INTO sessions (id, hash, user_id, method, authenticated_at, created_at, last_seen_at, expires_at) VALUES ({u}, {b}, {u}, 'link', 1, 1, 1, 2)",
    ),
    (
        14,
        "single_use_tokens",
        "INSERT INTO single_use_tokens (hash, purpose, user_id, code_attempts, created_at, expires_at) VALUES ({b}, 'sign_in', {u}, 0, 1, 2)",
    ),
    (
        14,
        "memberships",
        "INSERT INTO memberships (publisher_id, user_id, role, revision, created_at, updated_at) VALUES ({u}, {u}, 'owner', 1, 1, 1)",
    ),
    (
        14,
        "invitations",
        "INSERT INTO invitations (publisher_id, id, address, role, hash, inviter_kind, inviter_id, created_at, expires_at) VALUES ({u}, {u}, 'a@b.example', 'viewer', {b}, 'user', 'usr_x', 1, 2)",
    ),
    (
        14,
        "mails",
        "INSERT INTO mails (id, kind, attempts, next_attempt_at, created_at, expires_at) VALUES ({u}, 'sign_in', 0, 1, 1, 2)",
    ),
    (
        14,
        "sign_in_throttles",
        "INSERT INTO sign_in_throttles (key, count, updated_at, blocked_until) VALUES ({b}, 1, 1, 1)",
    ),
];

/// Steps that make no table: what they keep are the rows of others.
const WITHOUT_TABLES: [usize; 3] = [11, 12, 13];

fn sql_for(backend: DbBackend, template: &str) -> String {
    let (id, bytes) = match backend {
        DbBackend::Sqlite => ("x'00000000000000000000000000000001'", "x'0102'"),
        _ => (
            "'00000000-0000-0000-0000-000000000001'::uuid",
            "'\\x0102'::bytea",
        ),
    };
    template.replace("{u}", id).replace("{b}", bytes)
}

async fn count(db: &DatabaseConnection, table: &str) -> i64 {
    let sql = format!("SELECT COUNT(*) AS n FROM {table}");
    let row = db
        .query_one_raw(Statement::from_string(db.get_database_backend(), sql))
        .await;
    row.unwrap().unwrap().try_get("", "n").unwrap()
}

async fn fill(db: &DatabaseConnection, step: usize) {
    for (_, _, sql) in ROWS.iter().filter(|(at, _, _)| *at == step) {
        db.execute_unprepared(&sql_for(db.get_database_backend(), sql))
            .await
            .unwrap();
    }
}

async fn assert_kept(db: &DatabaseConnection, up_to: usize) {
    for (_, table, _) in ROWS.iter().filter(|(at, _, _)| *at <= up_to) {
        assert_eq!(count(db, table).await, 1, "{table} after {up_to} steps");
    }
}

async fn steps_keep_rows(db: &DatabaseConnection) {
    let steps = Migrator::migrations().len();
    for step in 1..=steps {
        let has_rows = ROWS.iter().any(|(at, _, _)| *at == step);
        assert!(
            has_rows || WITHOUT_TABLES.contains(&step),
            "step {step} has no rows here"
        );
    }
    for step in 1..=steps {
        Migrator::up(db, Some(1)).await.unwrap();
        assert_kept(db, step - 1).await;
        fill(db, step).await;
    }
    assert_kept(db, steps).await;
    // Down and up again: what the earlier steps hold survives that too.
    for step in (2..=steps).rev() {
        Migrator::down(db, Some(1)).await.unwrap();
        assert_kept(db, step - 1).await;
    }
    Migrator::up(db, None).await.unwrap();
    assert_kept(db, 1).await;
}

/// Our steps and one more, which makes a table and then fails.
struct Failing;

struct Bad;

impl MigrationName for Bad {
    fn name(&self) -> &'static str {
        "m9999_bad"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Bad {
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }

    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let db = manager.get_connection();
        db.execute_unprepared("CREATE TABLE half_done (id INTEGER)")
            .await?;
        db.execute_unprepared("UPDATE publishers SET display_name = 'changed'")
            .await?;
        db.execute_unprepared("ALTER TABLE no_such_table ADD COLUMN x INTEGER")
            .await?;
        Ok(())
    }
}

#[async_trait::async_trait]
impl MigratorTrait for Failing {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        let mut all = Migrator::migrations();
        all.push(Box::new(Bad));
        all
    }
}

async fn a_failing_step_leaves_no_trace(db: &DatabaseConnection) {
    Migrator::up(db, None).await.unwrap();
    fill(db, 1).await;
    let before = listing(db).await;
    assert!(Failing::up(db, None).await.is_err());
    assert_eq!(listing(db).await, before);
    let sql = "SELECT display_name FROM publishers";
    let row = db
        .query_one_raw(Statement::from_string(db.get_database_backend(), sql))
        .await;
    let name: String = row.unwrap().unwrap().try_get("", "display_name").unwrap();
    assert_eq!(name, "S");
}

async fn listing(db: &DatabaseConnection) -> String {
    let sql = match db.get_database_backend() {
        DbBackend::Sqlite => {
            "SELECT m.name || '.' || c.name || ' ' || lower(c.type) || CASE WHEN c.\"notnull\" = 1 THEN ' not null' ELSE '' END AS line \
             FROM sqlite_master m JOIN pragma_table_info(m.name) c WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite_%' \
             UNION ALL SELECT 'index ' || name FROM sqlite_master WHERE type = 'index' AND name NOT LIKE 'sqlite_%' ORDER BY 1"
        }
        _ => {
            "SELECT table_name || '.' || column_name || ' ' || data_type || CASE WHEN is_nullable = 'NO' THEN ' not null' ELSE '' END AS line \
             FROM information_schema.columns WHERE table_schema = 'public' \
             UNION ALL SELECT 'index ' || indexname FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1"
        }
    };
    let rows = db
        .query_all_raw(Statement::from_string(db.get_database_backend(), sql))
        .await;
    let mut lines: Vec<String> = rows
        .unwrap()
        .iter()
        .map(|row| row.try_get("", "line").unwrap())
        .collect();
    lines.sort();
    lines.join("\n")
}

async fn the_schema_is_frozen(db: &DatabaseConnection, engine: &str) {
    Migrator::up(db, None).await.unwrap();
    insta::assert_snapshot!(format!("schema_{engine}"), listing(db).await);
}

async fn sqlite(dir: &tempfile::TempDir) -> DatabaseConnection {
    let url = format!("sqlite://{}/test.db?mode=rwc", dir.path().display());
    Database::connect(url).await.unwrap()
}

#[expect(
    clippy::disallowed_methods,
    reason = "a name for a database that nobody keeps"
)]
/// A database of its own; `None` (counted) where no PostgreSQL is at hand.
async fn postgres(test: &str) -> Option<DatabaseConnection> {
    let Ok(url) = std::env::var("STATIONMASTER_TEST_POSTGRES_URL") else {
        assert!(
            std::env::var("STATIONMASTER_TEST_STRICT").is_err(),
            "no PostgreSQL for {test}"
        );
        if let Ok(file) = std::env::var("STATIONMASTER_TEST_SKIPS") {
            use std::io::Write as _;
            let file = std::fs::OpenOptions::new()
                .append(true)
                .create(true)
                .open(file);
            writeln!(file.unwrap(), "{test}: no STATIONMASTER_TEST_POSTGRES_URL").unwrap();
        }
        return None;
    };
    let name = format!("migration_{}", uuid::Uuid::now_v7().simple());
    let admin = Database::connect(&url).await.unwrap();
    admin
        .execute_unprepared(&format!("CREATE DATABASE {name}"))
        .await
        .unwrap();
    admin.close().await.unwrap();
    let (base, _) = url.rsplit_once('/').unwrap();
    Some(Database::connect(format!("{base}/{name}")).await.unwrap())
}

macro_rules! on_both {
    ($($story:ident => |$db:ident, $engine:ident| $run:expr;)*) => {$(
        mod $story {
            #[tokio::test]
            async fn on_sqlite() {
                let dir = tempfile::tempdir().unwrap();
                let $db = &super::sqlite(&dir).await;
                let $engine = "sqlite";
                let _ = $engine;
                $run.await;
            }

            #[tokio::test]
            async fn on_postgres() {
                let Some(db) = super::postgres(stringify!($story)).await else { return };
                let $db = &db;
                let $engine = "postgres";
                let _ = $engine;
                $run.await;
            }
        }
    )*};
}

on_both! {
    every_step_keeps_the_rows_before_it => |db, engine| super::steps_keep_rows(db);
    a_failing_step => |db, engine| super::a_failing_step_leaves_no_trace(db);
    frozen => |db, engine| super::the_schema_is_frozen(db, engine);
}

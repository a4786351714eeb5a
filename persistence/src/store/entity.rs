//! The database's rows, and how they end: each table declares the column with its publisher and the
//! ways in which its rows end (`ends.rs`). Private to this crate, whose functions return domain
//! types.

use crate::store::{
    ends::{
        CHANGES_KEPT, COOLDOWNS_KEPT, DELETED_WITHOUT_RUNS, Declared, End, NOT_THE_NEWEST,
        OF_A_PIPELINE, OF_AN_ENDPOINT, RetentionPeriod, STATS_KEPT, SUPERSEDED_WITHOUT_RUNS, Table,
        UNUSED, USAGE_KEPT, WITH_PUBLISHER, WITHOUT_DELIVERIES, key_of, swept,
    },
    job::Job,
};

macro_rules! entity {
    (
        $(#[$doc:meta])* $module:ident, $table:literal, $owner:expr, [$($end:expr),+ $(,)?],
        { $($(#[$attr:meta])* $field:ident: $ty:ty,)* }
    ) => {
        $(#[$doc])*
        pub(crate) mod $module {
            use sea_orm::entity::prelude::*;

            #[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
            #[sea_orm(table_name = $table)]
            pub struct Model { $($(#[$attr])* pub $field: $ty,)* }

            #[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
            pub enum Relation {}

            impl ActiveModelBehavior for ActiveModel {}

            impl crate::store::sql::Row for Model {
                const TABLE: &'static str = $table;
                const COLUMNS: &'static [&'static str] = &[$(stringify!($field)),*];

                fn values(self) -> Vec<sea_orm::Value> {
                    vec![$(self.$field.into()),*]
                }
            }
        }

        impl Declared for $module::Entity {
            const TABLE: Table = Table {
                name: $table,
                owner: $owner,
                key: key_of::<Self>,
                ends: &[$($end),+],
            };
        }
    };
}

mod people;

pub(crate) use people::*;

entity!(publishers, "publishers", Some("id"), [
    End::By("the job `publishers`, with all that the publisher had"),
], {
    #[sea_orm(primary_key, auto_increment = false)]
    id: Uuid,
    slug: String,
    live_slug: Option<String>,
    display_name: String,
    status: String,
    quotas: String,
    revision: i64,
    created_at: i64,
    updated_at: i64,
    deleted_at: Option<i64>,
});

entity!(owner_keys, "owner_keys", Some("owner_id"), [
    WITH_PUBLISHER,
    End::Few("the operator has one"),
], {
    #[sea_orm(primary_key, auto_increment = false)]
    owner_id: Uuid,
    master_key_id: String,
    data_key: Vec<u8>,
    chain_key: Vec<u8>,
    created_at: i64,
});

entity!(credentials, "credentials", Some("publisher_id"), [
    swept(Job::Credentials, "removed", "revoked_at", RetentionPeriod::Credentials).only("source <> 'seed'"),
    swept(Job::Credentials, "removed", "expires_at", RetentionPeriod::Credentials).only("source <> 'seed'"),
    WITH_PUBLISHER,
], {
    #[sea_orm(primary_key, auto_increment = false)]
    publisher_id: Uuid,
    #[sea_orm(primary_key, auto_increment = false)]
    id: Uuid,
    kind: String,
    grants_admin: bool,
    grants_runner: bool,
    sealed: Option<Vec<u8>>,
    last_four: String,
    name: Option<String>,
    source: String,
    pipelines: Option<String>,
    created_at: i64,
    expires_at: Option<i64>,
    superseded_at: Option<i64>,
    revoked_at: Option<i64>,
    last_used_at: Option<i64>,
    minted_by: Option<Uuid>,
});

entity!(token_hashes, "token_hashes", Some("publisher_id"), [End::With("credentials")], {
    #[sea_orm(primary_key, auto_increment = false)]
    hash: Vec<u8>,
    publisher_id: Uuid,
    token_id: Uuid,
});

entity!(cache_epoch, "cache_epoch", None, [End::Few("it is one row")], {
    #[sea_orm(primary_key, auto_increment = false)]
    id: i32,
    epoch: i64,
});

entity!(credential_changes, "credential_changes", Some("publisher_id"), [
    // Epochs and times grow together, so the primary key orders rows like an index on time.
    swept(Job::Credentials, "changes_removed", "at", RetentionPeriod::For(CHANGES_KEPT))
        .only(NOT_THE_NEWEST)
        .ordered_by("epoch"),
], {
    #[sea_orm(primary_key, auto_increment = false)]
    epoch: i64,
    publisher_id: Uuid,
    at: i64,
});

entity!(audit_heads, "audit_heads", Some("owner_id"), [
    WITH_PUBLISHER,
    End::Few("the operator has one"),
], {
    #[sea_orm(primary_key, auto_increment = false)]
    owner_id: Uuid,
    seq: i64,
    mac: Vec<u8>,
});

entity!(audit_events, "audit_events", Some("owner_id"), [
    WITH_PUBLISHER,
    End::Few("the operator's own log is kept as evidence"),
], {
    #[sea_orm(primary_key, auto_increment = false)]
    owner_id: Uuid,
    #[sea_orm(primary_key, auto_increment = false)]
    seq: i64,
    id: Uuid,
    at: i64,
    actor_kind: String,
    actor_id: String,
    action: String,
    target_kind: String,
    target_id: String,
    request_id: Option<String>,
    address: Option<String>,
    user_agent: Option<String>,
    metadata: String,
    mac: Vec<u8>,
});

entity!(idempotency_keys, "idempotency_keys", Some("owner_id"), [
    swept(Job::IdempotencyKeys, "removed", "expires_at", RetentionPeriod::Until),
    WITH_PUBLISHER,
], {
    #[sea_orm(primary_key, auto_increment = false)]
    owner_id: Uuid,
    #[sea_orm(primary_key, auto_increment = false)]
    operation: String,
    #[sea_orm(primary_key, auto_increment = false)]
    key: String,
    request_hash: Vec<u8>,
    answer: Option<Vec<u8>>,
    answer_until: Option<i64>,
    created_at: i64,
    expires_at: i64,
});

entity!(jobs, "jobs", None, [End::Few("each job has one")], {
    #[sea_orm(primary_key, auto_increment = false)]
    name: String,
    due_at: i64,
    lease_owner: Option<String>,
    lease_until: Option<i64>,
    started_at: Option<i64>,
    finished_at: Option<i64>,
    counts: Option<String>,
    error: Option<String>,
});

entity!(pipelines, "pipelines", Some("publisher_id"), [
    swept(Job::Runs, "pipelines_removed", "updated_at", RetentionPeriod::Runs)
        .only(DELETED_WITHOUT_RUNS)
        .along(OF_A_PIPELINE),
    WITH_PUBLISHER,
], {
    #[sea_orm(primary_key, auto_increment = false)]
    publisher_id: Uuid,
    #[sea_orm(primary_key, auto_increment = false)]
    id: Uuid,
    slug: String,
    live_slug: Option<String>,
    version: i64,
    revision: i64,
    created_at: i64,
    updated_at: i64,
    paused_at: Option<i64>,
});

entity!(pipeline_versions, "pipeline_versions", Some("publisher_id"), [
    swept(Job::Runs, "versions_removed", "created_at", RetentionPeriod::Runs).only(SUPERSEDED_WITHOUT_RUNS),
    End::With("pipelines"),
    WITH_PUBLISHER,
], {
    #[sea_orm(primary_key, auto_increment = false)]
    publisher_id: Uuid,
    #[sea_orm(primary_key, auto_increment = false)]
    pipeline_id: Uuid,
    #[sea_orm(primary_key, auto_increment = false)]
    version: i64,
    definition: String,
    created_at: i64,
});

entity!(runs, "runs", Some("publisher_id"), [
    swept(Job::Runs, "removed", "sweep_at", RetentionPeriod::Until),
    WITH_PUBLISHER,
], {
    #[sea_orm(primary_key, auto_increment = false)]
    publisher_id: Uuid,
    #[sea_orm(primary_key, auto_increment = false)]
    id: Uuid,
    pipeline_id: Uuid,
    pipeline_version: i64,
    pipeline_slug: String,
    status: String,
    input: String,
    output: Option<String>,
    error: Option<String>,
    external_id: Option<String>,
    priority: i32,
    not_before: i64,
    attempt: i32,
    max_attempts: i32,
    lease_seconds: i32,
    retention_days: i32,
    claim_hash: Option<Vec<u8>>,
    claimed_by: Option<String>,
    lease_expires_at: Option<i64>,
    created_by_id: String,
    created_by_kind: String,
    revision: i64,
    created_at: i64,
    started_at: Option<i64>,
    finished_at: Option<i64>,
    sweep_at: Option<i64>,
    progress: Option<String>,
    cancel_requested: bool,
    failures: i32,
    expires_at: Option<i64>,
    ready: bool,
});

entity!(run_timeline, "run_timeline", Some("publisher_id"), [End::With("runs"), WITH_PUBLISHER], {
    #[sea_orm(primary_key, auto_increment = false)]
    publisher_id: Uuid,
    #[sea_orm(primary_key, auto_increment = false)]
    run_id: Uuid,
    #[sea_orm(primary_key, auto_increment = false)]
    seq: i64,
    at: i64,
    moment: String,
    attempt: i32,
    actor_kind: Option<String>,
    actor_id: Option<String>,
    data: Option<String>,
});

entity!(events, "events", Some("publisher_id"), [
    swept(Job::Events, "removed", "created_at", RetentionPeriod::Events).only(WITHOUT_DELIVERIES),
    WITH_PUBLISHER,
], {
    #[sea_orm(primary_key, auto_increment = false)]
    publisher_id: Uuid,
    #[sea_orm(primary_key, auto_increment = false)]
    id: Uuid,
    event_type: String,
    body: String,
    created_at: i64,
    pipeline_slug: Option<String>,
    external_id: Option<String>,
});

entity!(event_types, "event_types", Some("publisher_id"), [
    End::By("deleteEventType"),
    WITH_PUBLISHER,
], {
    #[sea_orm(primary_key, auto_increment = false)]
    publisher_id: Uuid,
    #[sea_orm(primary_key, auto_increment = false)]
    event_type: String,
    id: Uuid,
    description: Option<String>,
    example: Option<String>,
    schema: Option<String>,
    revision: i64,
    created_at: i64,
    updated_at: i64,
});

entity!(webhook_endpoints, "webhook_endpoints", Some("publisher_id"), [
    swept(Job::Deliveries, "endpoints_removed", "deleted_at", RetentionPeriod::Deliveries)
        .only(UNUSED)
        .along(OF_AN_ENDPOINT),
    WITH_PUBLISHER,
], {
    #[sea_orm(primary_key, auto_increment = false)]
    publisher_id: Uuid,
    #[sea_orm(primary_key, auto_increment = false)]
    id: Uuid,
    url: String,
    description: Option<String>,
    event_types: String,
    pipelines: Option<String>,
    headers: String,
    enabled: bool,
    disabled_reason: Option<String>,
    send_bearer: bool,
    revision: i64,
    created_at: i64,
    updated_at: i64,
    deleted_at: Option<i64>,
    ordered: bool,
    rate_limit_per_second: Option<i32>,
    retry_schedule: Option<String>,
    max_in_flight: Option<i32>,
    signing: String,
    key_set: Option<Uuid>,
});

entity!(endpoint_secrets, "endpoint_secrets", Some("publisher_id"), [
    swept(Job::Credentials, "endpoint_secrets_removed", "revoked_at", RetentionPeriod::Credentials),
    swept(Job::Credentials, "endpoint_secrets_removed", "expires_at", RetentionPeriod::Credentials),
    End::With("webhook_endpoints"),
    WITH_PUBLISHER,
], {
    #[sea_orm(primary_key, auto_increment = false)]
    publisher_id: Uuid,
    #[sea_orm(primary_key, auto_increment = false)]
    id: Uuid,
    endpoint_id: Uuid,
    kind: String,
    sealed: Vec<u8>,
    public_key: Option<String>,
    last_four: String,
    created_at: i64,
    expires_at: Option<i64>,
    superseded_at: Option<i64>,
    revoked_at: Option<i64>,
});

entity!(endpoint_health, "endpoint_health", Some("publisher_id"), [
    End::With("webhook_endpoints"),
    WITH_PUBLISHER,
], {
    #[sea_orm(primary_key, auto_increment = false)]
    publisher_id: Uuid,
    #[sea_orm(primary_key, auto_increment = false)]
    endpoint_id: Uuid,
    consecutive_failures: i32,
    failing_since: Option<i64>,
    last_success_at: Option<i64>,
    last_failure_at: Option<i64>,
    last_error: Option<String>,
    last_status_code: Option<i32>,
    warned_at: Option<i64>,
    gone_at: Option<i64>,
});

entity!(endpoint_stats, "endpoint_stats", Some("publisher_id"), [
    swept(Job::Endpoints, "stats_removed", "bucket", RetentionPeriod::For(STATS_KEPT)),
    End::With("webhook_endpoints"),
    WITH_PUBLISHER,
], {
    #[sea_orm(primary_key, auto_increment = false)]
    publisher_id: Uuid,
    #[sea_orm(primary_key, auto_increment = false)]
    endpoint_id: Uuid,
    #[sea_orm(primary_key, auto_increment = false)]
    bucket: i64,
    succeeded: i64,
    failed: i64,
    latency_ms_sum: i64,
    latency_ms_max: i64,
});

entity!(replays, "replays", Some("publisher_id"), [
    swept(Job::Deliveries, "replays_removed", "finished_at", RetentionPeriod::Deliveries),
    End::With("webhook_endpoints"),
    WITH_PUBLISHER,
], {
    #[sea_orm(primary_key, auto_increment = false)]
    publisher_id: Uuid,
    #[sea_orm(primary_key, auto_increment = false)]
    id: Uuid,
    endpoint_id: Uuid,
    status: String,
    filter: String,
    since: i64,
    until: i64,
    only_failed: bool,
    event_types: Option<String>,
    position: Option<Uuid>,
    matched: i64,
    queued: i64,
    looked_at: i64,
    created_at: i64,
    finished_at: Option<i64>,
    include_pending: bool,
    made_due: i64,
});

entity!(processes, "processes", None, [
    End::By("the start of any process, once they count as dead"),
], {
    #[sea_orm(primary_key, auto_increment = false)]
    id: Uuid,
    started_at: i64,
    heartbeat_at: i64,
    expires_at: i64,
});

entity!(deliveries, "deliveries", Some("publisher_id"), [
    swept(Job::Deliveries, "removed", "finished_at", RetentionPeriod::Deliveries),
    WITH_PUBLISHER,
], {
    #[sea_orm(primary_key, auto_increment = false)]
    publisher_id: Uuid,
    #[sea_orm(primary_key, auto_increment = false)]
    id: Uuid,
    event_id: Uuid,
    endpoint_id: Uuid,
    status: String,
    attempts: i32,
    next_attempt_at: Option<i64>,
    created_at: i64,
    finished_at: Option<i64>,
    seq: i64,
    replay_id: Option<Uuid>,
    precedence: i32,
    throttled: i32,
});

entity!(delivery_attempts, "delivery_attempts", Some("publisher_id"), [
    End::With("deliveries"),
    WITH_PUBLISHER,
], {
    #[sea_orm(primary_key, auto_increment = false)]
    publisher_id: Uuid,
    #[sea_orm(primary_key, auto_increment = false)]
    delivery_id: Uuid,
    #[sea_orm(primary_key, auto_increment = false)]
    number: i32,
    at: i64,
    status_code: Option<i32>,
    error: Option<String>,
    latency_ms: i64,
    response_excerpt: Option<String>,
});

entity!(accounts, "accounts", Some("publisher_id"), [End::By("deleteAccount"), WITH_PUBLISHER], {
    #[sea_orm(primary_key, auto_increment = false)]
    publisher_id: Uuid,
    #[sea_orm(primary_key, auto_increment = false)]
    id: Uuid,
    name: String,
    provider: String,
    base_url: String,
    header_name: String,
    header_scheme: Option<String>,
    credential_type: String,
    sealed: Vec<u8>,
    credential_version: i64,
    last_four: String,
    enabled: bool,
    health: String,
    health_reason: Option<String>,
    failed_at: Option<i64>,
    ceilings: Option<String>,
    expires_at: Option<i64>,
    token_url: Option<String>,
    client_id: Option<String>,
    scopes: Option<String>,
    refreshed_at: Option<i64>,
    refresh_due_at: Option<i64>,
    refresh_failures: i32,
    refresh_lease: Option<Uuid>,
    refresh_lease_until: Option<i64>,
    revision: i64,
    created_at: i64,
    updated_at: i64,
});

entity!(account_cooldowns, "account_cooldowns", Some("publisher_id"), [
    swept(Job::Credentials, "cooldowns_removed", "until", RetentionPeriod::For(COOLDOWNS_KEPT)),
    End::With("accounts"),
    WITH_PUBLISHER,
], {
    #[sea_orm(primary_key, auto_increment = false)]
    publisher_id: Uuid,
    #[sea_orm(primary_key, auto_increment = false)]
    account_id: Uuid,
    #[sea_orm(primary_key, auto_increment = false)]
    model: String,
    until: i64,
    reason: String,
    reported_at: i64,
    reported_by: Option<Uuid>,
});

entity!(account_usage, "account_usage", Some("publisher_id"), [
    swept(Job::Credentials, "usage_removed", "bucket", RetentionPeriod::For(USAGE_KEPT)),
    End::With("accounts"),
    WITH_PUBLISHER,
], {
    #[sea_orm(primary_key, auto_increment = false)]
    publisher_id: Uuid,
    #[sea_orm(primary_key, auto_increment = false)]
    account_id: Uuid,
    #[sea_orm(primary_key, auto_increment = false)]
    bucket: i64,
    requests: i64,
    tokens: i64,
});

entity!(trains, "trains", Some("publisher_id"), [End::By("deleteTrain"), WITH_PUBLISHER], {
    #[sea_orm(primary_key, auto_increment = false)]
    publisher_id: Uuid,
    #[sea_orm(primary_key, auto_increment = false)]
    id: Uuid,
    slug: String,
    description: Option<String>,
    enabled: bool,
    sticky: bool,
    slack_webhook: Option<Vec<u8>>,
    slack_channel: Option<String>,
    slack_events: Option<String>,
    exhausted_at: Option<i64>,
    revision: i64,
    created_at: i64,
    updated_at: i64,
});

entity!(fan_outs, "fan_outs", Some("publisher_id"), [
    End::By("the spreader, once their deliveries are written"),
    WITH_PUBLISHER,
], {
    #[sea_orm(primary_key, auto_increment = false)]
    publisher_id: Uuid,
    #[sea_orm(primary_key, auto_increment = false)]
    seq: i64,
    total: i64,
    done: i64,
    created_at: i64,
    plan: String,
});

entity!(train_accounts, "train_accounts", Some("publisher_id"), [
    End::With("trains"),
    WITH_PUBLISHER,
], {
    #[sea_orm(primary_key, auto_increment = false)]
    publisher_id: Uuid,
    #[sea_orm(primary_key, auto_increment = false)]
    train_id: Uuid,
    #[sea_orm(primary_key, auto_increment = false)]
    account_id: Uuid,
    priority: i32,
});

entity!(train_tokens, "train_tokens", Some("publisher_id"), [
    swept(Job::Credentials, "train_tokens_removed", "revoked_at", RetentionPeriod::Credentials).only("source <> 'import'"),
    swept(Job::Credentials, "train_tokens_removed", "expires_at", RetentionPeriod::Credentials).only("source <> 'import'"),
    End::With("trains"),
    WITH_PUBLISHER,
], {
    #[sea_orm(primary_key, auto_increment = false)]
    publisher_id: Uuid,
    #[sea_orm(primary_key, auto_increment = false)]
    id: Uuid,
    train_id: Uuid,
    name: Option<String>,
    last_four: String,
    source: String,
    created_at: i64,
    expires_at: Option<i64>,
    revoked_at: Option<i64>,
    last_used_at: Option<i64>,
    minted_by: Option<Uuid>,
});

entity!(train_token_hashes, "train_token_hashes", Some("publisher_id"), [
    End::With("train_tokens"),
], {
    #[sea_orm(primary_key, auto_increment = false)]
    hash: Vec<u8>,
    publisher_id: Uuid,
    token_id: Uuid,
});

entity!(oauth_logins, "oauth_logins", Some("publisher_id"), [
    swept(Job::Accounts, "logins_removed", "expires_at", RetentionPeriod::Until),
    WITH_PUBLISHER,
], {
    #[sea_orm(primary_key, auto_increment = false)]
    publisher_id: Uuid,
    #[sea_orm(primary_key, auto_increment = false)]
    state_hash: Vec<u8>,
    sealed: Vec<u8>,
    account: String,
    created_at: i64,
    expires_at: i64,
});

entity!(train_notices, "train_notices", Some("publisher_id"), [
    swept(Job::Notices, "removed", "finished_at", RetentionPeriod::Notices),
    End::With("trains"),
    WITH_PUBLISHER,
], {
    #[sea_orm(primary_key, auto_increment = false)]
    publisher_id: Uuid,
    #[sea_orm(primary_key, auto_increment = false)]
    id: Uuid,
    train_id: Uuid,
    event_type: String,
    message: String,
    attempts: i32,
    next_attempt_at: Option<i64>,
    last_error: Option<String>,
    created_at: i64,
    finished_at: Option<i64>,
});

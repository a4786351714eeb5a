//! Removal of what is past its time, in batches that each hold the store for a moment only.
//!
//! Every sweep removes or changes at most `limit` rows in one transaction and answers how many;
//! fewer than `limit` mean that nothing is left. What to remove is found through an index; what
//! to change is looked for among the readers, so that the many looks that find nothing do not
//! bother the writer. The condition stands beside the chosen keys too, so that a row which
//! changed in between is kept.

use std::time::Duration;

use domain::{
    Timestamp,
    id::{Id as _, PublisherId},
};
use sea_orm::{
    ColumnTrait as _, ConnectionTrait as _, DbBackend, EntityTrait as _, QueryFilter as _,
    QueryResult, Value, sea_query::Expr,
};
use uuid::Uuid;

use crate::{
    db::Tx,
    entity::owner_keys,
    error::{Result, StoreError},
    scope::System,
    sql::Sql,
    storage,
};

/// How long the log of credential changes reaches back. A process that was out of touch for
/// longer forgets its whole cache instead.
const CHANGES_KEPT: Duration = Duration::from_hours(1);

/// How long tries at endpoints stay counted: a day is shown, in spans of five minutes.
const STATS_KEPT: Duration = Duration::from_hours(25);

/// How long the use of accounts stays counted: ceilings look back 7 days.
const USAGE_KEPT: Duration = Duration::from_hours(7 * 24 + 1);

/// How long a cooldown stays after its end: what other processes hear of is looked for among rows.
const COOLDOWNS_KEPT: Duration = Duration::from_hours(1);

/// A table's rows that are past their time.
struct Sweep<'a> {
    table: &'static str,
    /// The primary key's columns.
    key: &'static str,
    /// Writes the condition, which must name the index's column.
    past: &'a (dyn Fn(&mut Sql) + Sync),
    /// The index's column.
    order: &'static str,
}

impl Sweep<'_> {
    /// What the rows are counted for that are to go, by owner.
    fn sizes(&self, size: &str, limit: u64) -> Sql {
        let owner = self.key.split(',').next().unwrap_or(self.key);
        let mut sql = Sql::new("SELECT owner, CAST(SUM(bytes) AS BIGINT) AS bytes FROM (SELECT ");
        sql.push(owner).push(" AS owner, ").push(size);
        sql.push(" AS bytes FROM ").push(self.table).push(" WHERE ");
        (self.past)(&mut sql);
        sql.push(" ORDER BY ").push(self.order).push(" LIMIT ");
        sql.bind(i64::try_from(limit).unwrap_or(i64::MAX));
        sql.push(") AS gone GROUP BY owner");
        sql
    }

    fn sql(&self, limit: u64) -> Sql {
        let Self {
            table,
            key,
            past,
            order,
        } = self;
        let mut sql = Sql::new("DELETE FROM ");
        sql.push(table)
            .push(" WHERE (")
            .push(key)
            .push(") IN (SELECT ")
            .push(key);
        sql.push(" FROM ").push(table).push(" WHERE ");
        past(&mut sql);
        sql.push(" ORDER BY ").push(order).push(" LIMIT ");
        sql.bind(i64::try_from(limit).unwrap_or(i64::MAX))
            .push(") AND ");
        past(&mut sql);
        sql
    }

    async fn run(&self, tx: &Tx, limit: u64) -> Result<u64> {
        if limit == 0 {
            return Ok(0);
        }
        let backend = tx.db().get_database_backend();
        if let Some(size) = storage::size_of(self.table) {
            let sums = self.sizes(&size, limit).statement(backend);
            for row in tx.db().query_all_raw(sums).await? {
                tx.removes(row.try_get("", "owner")?, row.try_get("", "bytes")?);
            }
        }
        let statement = self.sql(limit).statement(backend);
        Ok(tx.db().execute_raw(statement).await?.rows_affected())
    }
}

/// Writes that the time in a column is `cutoff` or before. No time is never.
fn is_past(sql: &mut Sql, at: &str, cutoff: Timestamp) {
    sql.push(at).push(" IS NOT NULL AND ").push(at);
    sql.push(" <= ").bind(cutoff.ms());
}

/// A table's rows that are to be changed.
struct Amend<'a> {
    table: &'static str,
    /// The primary key's columns.
    key: &'static [&'static str],
    /// Writes the condition, which must not hold for a changed row.
    past: &'a (dyn Fn(&mut Sql) + Sync),
    /// The column that says which rows come first.
    order: &'static str,
    /// Writes the assignments.
    set: &'a (dyn Fn(&mut Sql) + Sync),
}

impl Amend<'_> {
    fn find(&self, limit: u64) -> Sql {
        let mut sql = Sql::new("SELECT ");
        sql.push(&self.key.join(", "))
            .push(" FROM ")
            .push(self.table)
            .push(" WHERE ");
        (self.past)(&mut sql);
        sql.push(" ORDER BY ").push(self.order).push(" LIMIT ");
        sql.bind(i64::try_from(limit).unwrap_or(i64::MAX));
        sql
    }

    fn change(&self, keys: &[Vec<Value>]) -> Sql {
        let mut sql = Sql::new("UPDATE ");
        sql.push(self.table).push(" SET ");
        (self.set)(&mut sql);
        sql.push(" WHERE ");
        (self.past)(&mut sql);
        sql.push(" AND (")
            .push(&self.key.join(", "))
            .push(") IN (")
            .values(keys.iter().cloned())
            .push(")");
        sql
    }
}

/// A column of a primary key: the owner and identifiers are UUIDs, all others are texts.
fn key_value(row: &QueryResult, column: &str) -> Result<Value> {
    if column == "id" || column.ends_with("_id") {
        let id: Uuid = row.try_get("", column)?;
        Ok(id.into())
    } else {
        let text: String = row.try_get("", column)?;
        Ok(text.into())
    }
}

/// A publisher's tables, those that refer to others first: the order in which they can go.
const TABLES_OF_A_PUBLISHER: [(&str, &str, &str); 32] = [
    (
        "delivery_attempts",
        "publisher_id",
        "publisher_id, delivery_id, number",
    ),
    ("deliveries", "publisher_id", "publisher_id, id"),
    ("replays", "publisher_id", "publisher_id, id"),
    (
        "endpoint_health",
        "publisher_id",
        "publisher_id, endpoint_id",
    ),
    (
        "endpoint_stats",
        "publisher_id",
        "publisher_id, endpoint_id, bucket",
    ),
    ("endpoint_secrets", "publisher_id", "publisher_id, id"),
    ("fan_outs", "publisher_id", "publisher_id, seq"),
    ("fan_out_sequences", "publisher_id", "publisher_id"),
    ("events", "publisher_id", "publisher_id, id"),
    ("event_types", "publisher_id", "publisher_id, event_type"),
    (
        "dispatch_leases",
        "publisher_id",
        "publisher_id, endpoint_id",
    ),
    (
        "endpoint_sequences",
        "publisher_id",
        "publisher_id, endpoint_id",
    ),
    ("webhook_endpoints", "publisher_id", "publisher_id, id"),
    ("run_timeline", "publisher_id", "publisher_id, run_id, seq"),
    ("runs", "publisher_id", "publisher_id, id"),
    (
        "pipeline_versions",
        "publisher_id",
        "publisher_id, pipeline_id, version",
    ),
    ("pipelines", "publisher_id", "publisher_id, id"),
    ("train_notices", "publisher_id", "publisher_id, id"),
    ("oauth_logins", "publisher_id", "publisher_id, state_hash"),
    ("train_tokens", "publisher_id", "publisher_id, id"),
    (
        "train_accounts",
        "publisher_id",
        "publisher_id, train_id, account_id",
    ),
    ("trains", "publisher_id", "publisher_id, id"),
    (
        "account_cooldowns",
        "publisher_id",
        "publisher_id, account_id, model",
    ),
    (
        "account_usage",
        "publisher_id",
        "publisher_id, account_id, bucket",
    ),
    ("accounts", "publisher_id", "publisher_id, id"),
    ("credentials", "publisher_id", "publisher_id, id"),
    ("idempotency_keys", "owner_id", "owner_id, operation, key"),
    ("audit_events", "owner_id", "owner_id, seq"),
    ("audit_heads", "owner_id", "owner_id"),
    ("owner_keys", "owner_id", "owner_id"),
    ("storage_usage", "publisher_id", "publisher_id"),
    ("publishers", "id", "id"),
];

/// Removes up to `limit` rows of one publisher; its own row goes last.
async fn remove_publisher(tx: &Tx, publisher: Uuid, limit: u64) -> Result<u64> {
    let mut removed = 0;
    for (table, owner, key) in TABLES_OF_A_PUBLISHER {
        let past = |sql: &mut Sql| {
            sql.push(owner).push(" = ").bind(publisher);
        };
        let sweep = Sweep {
            table,
            key,
            past: &past,
            order: key,
        };
        removed += sweep.run(tx, limit - removed).await?;
        if removed >= limit {
            break;
        }
    }
    Ok(removed)
}

impl System {
    async fn amend(&self, amend: Amend<'_>, limit: u64) -> Result<u64> {
        let backend = self.store.backend();
        let statement = amend.find(limit).statement(backend);
        let rows = self.store.read().query_all_raw(statement).await?;
        let of_row = |row| {
            amend
                .key
                .iter()
                .map(|column| key_value(row, column))
                .collect()
        };
        let keys: Vec<Vec<Value>> = rows.iter().map(of_row).collect::<Result<_>>()?;
        if keys.is_empty() {
            return Ok(0);
        }
        let (amend, keys) = (&amend, &keys);
        self.store
            .write(|tx| async move {
                let statement = amend.change(keys).statement(backend);
                Ok(tx.db().execute_raw(statement).await?.rows_affected())
            })
            .await
    }

    async fn sweep(&self, sweep: Sweep<'_>, limit: u64) -> Result<u64> {
        let sweep = &sweep;
        self.store
            .write_unflushed(|tx| async move { sweep.run(&tx, limit).await })
            .await
    }

    /// Rows of a table whose time `at`, a column of an index, is `cutoff` or before.
    async fn sweep_past(
        &self,
        table: &'static str,
        key: &'static str,
        at: &'static str,
        cutoff: Timestamp,
        limit: u64,
    ) -> Result<u64> {
        let past = |sql: &mut Sql| is_past(sql, at, cutoff);
        let sweep = Sweep {
            table,
            key,
            past: &past,
            order: at,
        };
        self.sweep(sweep, limit).await
    }

    /// Credentials revoked or expired at or before `cutoff`, with the hashes of tokens. What the
    /// boot seed wrote stays: its hash is how a revoked value is known when it comes back.
    pub async fn sweep_credentials(
        &self,
        cutoff: Timestamp,
        limit: u64,
    ) -> Result<u64, StoreError> {
        self.sweep_ended("credentials", "source <> 'seed' AND ", cutoff, limit)
            .await
    }

    /// Tokens of trains revoked or expired at or before `cutoff`, with their hashes. Imported ones
    /// stay for the same reason: a file may still have them.
    pub async fn sweep_train_tokens(
        &self,
        cutoff: Timestamp,
        limit: u64,
    ) -> Result<u64, StoreError> {
        self.sweep_ended("train_tokens", "source <> 'import' AND ", cutoff, limit)
            .await
    }

    /// Counts of the use of accounts that no ceiling looks back to.
    pub async fn sweep_account_usage(&self, limit: u64) -> Result<u64, StoreError> {
        let cutoff = self.store.now().minus(USAGE_KEPT);
        self.sweep_past(
            "account_usage",
            "publisher_id, account_id, bucket",
            "bucket",
            cutoff,
            limit,
        )
        .await
    }

    /// Cooldowns that are over for good.
    pub async fn sweep_cooldowns(&self, limit: u64) -> Result<u64, StoreError> {
        let cutoff = self.store.now().minus(COOLDOWNS_KEPT);
        self.sweep_past(
            "account_cooldowns",
            "publisher_id, account_id, model",
            "until",
            cutoff,
            limit,
        )
        .await
    }

    /// The log of credential changes, but for the last hour and the newest row: the log's end
    /// must stay known.
    pub async fn sweep_credential_changes(&self, limit: u64) -> Result<u64, StoreError> {
        let cutoff = self.store.now().minus(CHANGES_KEPT).ms();
        let past = |sql: &mut Sql| {
            sql.push("at <= ").bind(cutoff);
            sql.push(" AND epoch < (SELECT max(newest.epoch) FROM credential_changes newest)");
        };
        // Epochs and times grow together, so the key is as good as an index on time.
        let sweep = Sweep {
            table: "credential_changes",
            key: "epoch",
            past: &past,
            order: "epoch",
        };
        self.sweep(sweep, limit).await
    }

    /// Idempotency keys that are no longer honoured.
    pub async fn sweep_idempotency_keys(&self, limit: u64) -> Result<u64, StoreError> {
        let now = self.store.now();
        self.sweep_past(
            "idempotency_keys",
            "owner_id, operation, key",
            "expires_at",
            now,
            limit,
        )
        .await
    }

    /// Deliveries that ended at or before `cutoff`, with their attempts.
    pub async fn sweep_deliveries(&self, cutoff: Timestamp, limit: u64) -> Result<u64, StoreError> {
        self.sweep_past(
            "deliveries",
            "publisher_id, id",
            "finished_at",
            cutoff,
            limit,
        )
        .await
    }

    /// Replays that ended at or before `cutoff`.
    pub async fn sweep_replays(&self, cutoff: Timestamp, limit: u64) -> Result<u64, StoreError> {
        self.sweep_past("replays", "publisher_id, id", "finished_at", cutoff, limit)
            .await
    }

    /// Counts of tries at endpoints that are older than what is shown of them.
    pub async fn sweep_endpoint_stats(&self, limit: u64) -> Result<u64, StoreError> {
        let cutoff = self.store.now().minus(STATS_KEPT);
        self.sweep_past(
            "endpoint_stats",
            "publisher_id, endpoint_id, bucket",
            "bucket",
            cutoff,
            limit,
        )
        .await
    }

    /// Secrets of endpoints revoked or expired at or before `cutoff`.
    pub async fn sweep_endpoint_secrets(
        &self,
        cutoff: Timestamp,
        limit: u64,
    ) -> Result<u64, StoreError> {
        self.sweep_ended("endpoint_secrets", "", cutoff, limit)
            .await
    }

    /// Rows of a table that were revoked or expired at or before `cutoff`. `among` says which of
    /// them, and ends in `AND`.
    async fn sweep_ended(
        &self,
        table: &'static str,
        among: &'static str,
        cutoff: Timestamp,
        limit: u64,
    ) -> Result<u64> {
        let mut removed = 0;
        for order in ["revoked_at", "expires_at"] {
            let past = |sql: &mut Sql| {
                sql.push(among);
                is_past(sql, order, cutoff);
            };
            let sweep = Sweep {
                table,
                key: "publisher_id, id",
                past: &past,
                order,
            };
            removed += self.sweep(sweep, limit - removed).await?;
        }
        Ok(removed)
    }

    /// Logins at an upstream that nobody finished in time.
    pub async fn sweep_logins(&self, limit: u64) -> Result<u64, StoreError> {
        let now = self.store.now();
        self.sweep_past(
            "oauth_logins",
            "publisher_id, state_hash",
            "expires_at",
            now,
            limit,
        )
        .await
    }

    /// Events of `cutoff` or before of which no delivery is left, nor one to be written.
    pub async fn sweep_events(&self, cutoff: Timestamp, limit: u64) -> Result<u64, StoreError> {
        let past = |sql: &mut Sql| {
            sql.push("created_at <= ").bind(cutoff.ms());
            sql.push(
                " AND NOT EXISTS (SELECT 1 FROM deliveries d \
                 WHERE d.publisher_id = events.publisher_id AND d.event_id = events.id) \
                 AND NOT EXISTS (SELECT 1 FROM fan_outs f \
                 WHERE f.publisher_id = events.publisher_id AND f.created_at = events.created_at)",
            );
        };
        let key = "publisher_id, id";
        let sweep = Sweep {
            table: "events",
            key,
            past: &past,
            order: "created_at",
        };
        self.sweep(sweep, limit).await
    }

    /// Messages about trains that were sent or given up at or before `cutoff`.
    pub async fn sweep_notices(&self, cutoff: Timestamp, limit: u64) -> Result<u64, StoreError> {
        self.sweep_past(
            "train_notices",
            "publisher_id, id",
            "finished_at",
            cutoff,
            limit,
        )
        .await
    }

    /// Runs past the time that their pipeline asks for.
    pub async fn sweep_runs(&self, limit: u64) -> Result<u64, StoreError> {
        let now = self.store.now();
        self.sweep_past("runs", "publisher_id, id", "sweep_at", now, limit)
            .await
    }

    /// Brings forward, by at most `limit` runs, the time of those that ended at or before
    /// `cutoff` although their pipeline asks for longer.
    pub async fn shorten_runs(&self, cutoff: Timestamp, limit: u64) -> Result<u64, StoreError> {
        let now = self.store.now().ms();
        let past = |sql: &mut Sql| {
            sql.push("sweep_at IS NOT NULL AND sweep_at > ").bind(now);
            sql.push(" AND finished_at IS NOT NULL AND finished_at <= ")
                .bind(cutoff.ms());
        };
        let set = |sql: &mut Sql| {
            sql.push("sweep_at = ").bind(now);
        };
        let amend = Amend {
            table: "runs",
            key: &["publisher_id", "id"],
            past: &past,
            order: "sweep_at",
            set: &set,
        };
        self.amend(amend, limit).await
    }

    /// Wipes answers that hold a credential and may no longer be repeated. Their keys stay, so
    /// that a repeat is told so instead of being done again.
    pub async fn wipe_secret_answers(&self, limit: u64) -> Result<u64, StoreError> {
        let now = self.store.now().ms();
        let past = |sql: &mut Sql| {
            sql.push("answer IS NOT NULL AND answer_until IS NOT NULL AND answer_until <= ")
                .bind(now);
        };
        let set = |sql: &mut Sql| {
            sql.push("answer = NULL");
        };
        let amend = Amend {
            table: "idempotency_keys",
            key: &["owner_id", "operation", "key"],
            past: &past,
            order: "answer_until",
            set: &set,
        };
        self.amend(amend, limit).await
    }

    /// Calls off deliveries that wait for an endpoint which is deleted: on PostgreSQL an event
    /// may be written while another transaction deletes one of its endpoints, and neither sees
    /// the other.
    pub async fn cancel_orphans(&self, limit: u64) -> Result<u64, StoreError> {
        let now = self.store.now().ms();
        let past = |sql: &mut Sql| {
            sql.push(
                "status = 'pending' AND (publisher_id, endpoint_id) IN \
                 (SELECT e.publisher_id, e.id FROM webhook_endpoints e \
                 WHERE e.deleted_at IS NOT NULL)",
            );
        };
        let set = |sql: &mut Sql| {
            sql.push("status = 'cancelled', next_attempt_at = NULL, finished_at = ")
                .bind(now);
        };
        let amend = Amend {
            table: "deliveries",
            key: &["publisher_id", "id"],
            past: &past,
            order: "publisher_id, endpoint_id",
            set: &set,
        };
        self.amend(amend, limit).await
    }

    /// Publishers deleted at or before `cutoff`, with all that they had. Their keys are destroyed
    /// and committed first: from then on nothing that was sealed for them can be read, however
    /// long the rows take to go.
    pub async fn sweep_publishers(&self, cutoff: Timestamp, limit: u64) -> Result<u64, StoreError> {
        self.destroy_keys(cutoff, limit).await?;
        self.store
            .write(|tx| async move {
                let mut removed = 0;
                while removed < limit {
                    let next = deleted(&tx, "NOT EXISTS", cutoff, 1).await?;
                    let Some(publisher) = next.first() else { break };
                    removed += remove_publisher(&tx, *publisher, limit - removed).await?;
                }
                Ok(removed)
            })
            .await
    }

    /// Destroys the data keys of publishers deleted at or before `cutoff`, and tells every process
    /// to forget them. The keys of their audit logs go with the logs.
    async fn destroy_keys(&self, cutoff: Timestamp, limit: u64) -> Result<()> {
        let store = &self.store;
        let gone = store
            .write(|tx| async move {
                let gone = deleted(&tx, "EXISTS", cutoff, limit).await?;
                if gone.is_empty() {
                    return Ok(gone);
                }
                owner_keys::Entity::update_many()
                    .col_expr(owner_keys::Column::DataKey, Expr::value(Vec::<u8>::new()))
                    .filter(owner_keys::Column::OwnerId.is_in(gone.iter().copied()))
                    .exec(tx.db())
                    .await?;
                for publisher in &gone {
                    tx.touches_credentials_of(PublisherId::from_uuid(*publisher));
                }
                store.publish_credential_changes(&tx).await?;
                Ok(gone)
            })
            .await?;
        store.inner.keys.forget(gone);
        Ok(())
    }
}

/// Publishers deleted at or before `cutoff` whose data keys still exist, or not; those deleted first
/// come first. Their rows stay locked: nobody can bring one back before the commit.
async fn deleted(tx: &Tx, keys: &str, cutoff: Timestamp, limit: u64) -> Result<Vec<Uuid>> {
    let backend = tx.db().get_database_backend();
    let mut sql = Sql::new("SELECT p.id FROM publishers p WHERE p.deleted_at IS NOT NULL");
    sql.push(" AND p.deleted_at <= ")
        .bind(cutoff.ms())
        .push(" AND ")
        .push(keys);
    sql.push(" (SELECT 1 FROM owner_keys k WHERE k.owner_id = p.id AND length(k.data_key) > 0)");
    sql.push(" ORDER BY p.deleted_at LIMIT ");
    sql.bind(i64::try_from(limit).unwrap_or(i64::MAX));
    if backend == DbBackend::Postgres {
        sql.push(" FOR NO KEY UPDATE OF p");
    }
    let rows = tx.db().query_all_raw(sql.statement(backend)).await?;
    rows.iter().map(|row| Ok(row.try_get("", "id")?)).collect()
}

#[cfg(test)]
mod tests;

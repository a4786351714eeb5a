//! Removes expired rows, in batches that each hold the writer only briefly.
//!
//! Every sweep removes or changes at most `limit` rows in one transaction and returns how many.
//! Fewer than `limit` mean that nothing is left. Rows to remove are found by an index. Rows to
//! change are searched on a connection for reads, so that searches that find nothing do not need
//! the writer. The statement repeats the condition besides the keys, so that a row that changed in
//! between stays.

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
    operations::Operations,
    store::{
        System,
        db::Tx,
        ends::{End, Retention, Swept, Table},
        entity::owner_keys,
        error::{Result, StoreError},
        freshness::publish_credential_changes,
        job::Job,
        sql::Sql,
        storage,
        tables::TABLES,
    },
};

/// The result of one step of a job's sweeps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SweepResult {
    /// How many rows of each kind were removed.
    pub counts: Vec<(&'static str, u64)>,
    /// Whether there may be more.
    pub more: bool,
}

/// The expired rows of a table.
struct Sweep<'a> {
    table: &'static str,
    /// The columns of the primary key.
    key: &'a str,
    /// Writes the condition, which must use the column of the index.
    past: &'a (dyn Fn(&mut Sql) + Sync),
    /// The column of the index.
    order: &'a str,
}

impl Sweep<'_> {
    /// The statement for the sizes of the rows to remove, by owner.
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

/// Writes the condition that the time in a column is `cutoff` or before. It does not hold for NULL.
fn is_past(sql: &mut Sql, at: &str, cutoff: Timestamp) {
    sql.push(at).push(" IS NOT NULL AND ").push(at);
    sql.push(" <= ").bind(cutoff.ms());
}

/// Rows of a table to change.
struct Amend<'a> {
    table: &'static str,
    /// The columns of the primary key.
    key: &'a [&'static str],
    /// Writes the condition. It must not hold for a row that was changed.
    past: &'a (dyn Fn(&mut Sql) + Sync),
    /// The column by which rows are ordered.
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

/// The values of a row's primary key.
fn key_values(row: &QueryResult, key: &[&'static str]) -> Result<Vec<Value>> {
    key.iter().map(|column| key_value(row, column)).collect()
}

/// The value of a column of a primary key. The owner and identifiers are UUIDs, all others are
/// texts.
fn key_value(row: &QueryResult, column: &str) -> Result<Value> {
    if column == "id" || column.ends_with("_id") {
        let id: Uuid = row.try_get("", column)?;
        Ok(id.into())
    } else {
        let text: String = row.try_get("", column)?;
        Ok(text.into())
    }
}

/// Removes the rows of a table whose columns have one of these values and that meet the condition
/// of `still`. Subtracts their sizes from their publishers' sums.
async fn remove(
    tx: &Tx,
    table: &'static str,
    columns: &[&'static str],
    keys: &[Vec<Value>],
    still: &(dyn Fn(&mut Sql) + Sync),
) -> Result<u64> {
    let backend = tx.db().get_database_backend();
    let these = |sql: &mut Sql| {
        sql.push(" FROM ").push(table).push(" WHERE (");
        sql.push(&columns.join(", ")).push(") IN (");
        sql.values(keys.iter().cloned()).push(")");
        still(sql);
    };
    if let Some(size) = storage::size_of(table) {
        let mut sql = Sql::new("SELECT publisher_id, CAST(SUM(");
        sql.push(&size).push(") AS BIGINT) AS bytes");
        these(&mut sql);
        sql.push(" GROUP BY publisher_id");
        for row in tx.db().query_all_raw(sql.statement(backend)).await? {
            tx.removes(row.try_get("", "publisher_id")?, row.try_get("", "bytes")?);
        }
    }
    let mut sql = Sql::new("DELETE");
    these(&mut sql);
    let done = tx.db().execute_raw(sql.statement(backend)).await?;
    Ok(done.rows_affected())
}

/// Removes up to `limit` rows of one publisher. The publisher's own row comes last.
async fn remove_publisher(tx: &Tx, publisher: Uuid, limit: u64) -> Result<u64> {
    let mut removed = 0;
    for (table, owner) in tables_of_a_publisher() {
        let key = (table.key)().join(", ");
        let past = |sql: &mut Sql| {
            sql.push(owner).push(" = ").bind(publisher);
        };
        let sweep = Sweep {
            table: table.name,
            key: &key,
            past: &past,
            order: &key,
        };
        removed += sweep.run(tx, limit - removed).await?;
        if removed >= limit {
            break;
        }
    }
    Ok(removed)
}

/// The tables with rows that are removed with their publisher, and the publishers' table, in the
/// order of removal.
fn tables_of_a_publisher() -> impl Iterator<Item = (&'static Table, &'static str)> {
    let goes = |table: &&'static Table| {
        let with_it = |end: &End| matches!(end, End::WithPublisher);
        table.name == "publishers" || table.ends.iter().any(with_it)
    };
    TABLES
        .iter()
        .filter(goes)
        .filter_map(|table| Some((table, table.owner?)))
}

impl Operations<System> {
    async fn amend(&self, amend: Amend<'_>, limit: u64) -> Result<u64> {
        let backend = self.store.backend();
        let statement = amend.find(limit).statement(backend);
        let rows = self.store.read().query_all_raw(statement).await?;
        let keys: Vec<Vec<Value>> = rows
            .iter()
            .map(|row| key_values(row, amend.key))
            .collect::<Result<_>>()?;
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

    /// Removes the rows of a job's tables that have ended, at most `limit` of each table.
    ///
    /// # Errors
    /// The store is not available. Rows that were removed before the error stay removed.
    pub async fn sweep(
        &self,
        job: Job,
        retention: &Retention,
        limit: u64,
    ) -> Result<SweepResult, StoreError> {
        let mut all = SweepResult::default();
        for table in &TABLES {
            for swept in table.sweeps().filter(|swept| swept.job == job) {
                let limit = swept.at_a_time(limit);
                let removed = self.sweep_rows(table, swept, retention, limit).await?;
                all.more |= removed >= limit;
                match all
                    .counts
                    .iter_mut()
                    .find(|(what, _)| *what == swept.counted)
                {
                    Some((_, count)) => *count += removed,
                    None => all.counts.push((swept.counted, removed)),
                }
            }
        }
        Ok(all)
    }

    /// Removes at most `limit` rows of one table that ended at or before `cutoff`, if the operator
    /// sets their retention.
    #[cfg(test)]
    pub(crate) async fn sweep_table(
        &self,
        table: &str,
        cutoff: Timestamp,
        limit: u64,
    ) -> Result<u64> {
        let kept = self.store.now().since(cutoff);
        let retention = Retention {
            credentials: kept,
            events: kept,
            deliveries: kept,
            runs: kept,
            notices: kept,
        };
        let mut removed = 0;
        for table in TABLES.iter().filter(|known| known.name == table) {
            for swept in table.sweeps() {
                let limit = swept.at_a_time(limit - removed);
                removed += self.sweep_rows(table, swept, &retention, limit).await?;
            }
        }
        Ok(removed)
    }

    async fn sweep_rows(
        &self,
        table: &Table,
        swept: Swept,
        retention: &Retention,
        limit: u64,
    ) -> Result<u64> {
        let cutoff = swept.kept.cutoff(self.store.now(), retention);
        let past = |sql: &mut Sql| {
            is_past(sql, swept.at, cutoff);
            for (at, part) in swept
                .only
                .into_iter()
                .flat_map(|only| only.split("CUTOFF").enumerate())
            {
                if at > 0 {
                    sql.bind(cutoff.ms());
                }
                sql.push(if at == 0 { " AND " } else { "" }).push(part);
            }
        };
        let key = (table.key)();
        if swept.along.is_empty() {
            let key = key.join(", ");
            let sweep = &Sweep {
                table: table.name,
                key: &key,
                past: &past,
                order: swept.order,
            };
            return self
                .store
                .write_unflushed(|tx| async move { sweep.run(&tx, limit).await })
                .await;
        }
        self.sweep_with(table, &key, swept, &past, limit).await
    }

    /// Removes rows together with rows of other tables that refer to them. The keys are read first,
    /// since the condition is too expensive to repeat for each of these tables.
    async fn sweep_with(
        &self,
        table: &Table,
        key: &[&'static str],
        swept: Swept,
        past: &(dyn Fn(&mut Sql) + Sync),
        limit: u64,
    ) -> Result<u64> {
        let backend = self.store.backend();
        let find = Amend {
            table: table.name,
            key,
            past,
            order: swept.order,
            set: &|_| {},
        };
        let statement = find.find(limit).statement(backend);
        let rows = self.store.read().query_all_raw(statement).await?;
        let keys: Vec<Vec<Value>> = rows
            .iter()
            .map(|row| key_values(row, key))
            .collect::<Result<_>>()?;
        if keys.is_empty() {
            return Ok(0);
        }
        let keys = &keys;
        self.store
            .write_unflushed(|tx| async move {
                for (other, column) in swept.along {
                    remove(&tx, other, &["publisher_id", column], keys, &|_| {}).await?;
                }
                let still = |sql: &mut Sql| {
                    sql.push(" AND ");
                    past(sql);
                };
                remove(&tx, table.name, key, keys, &still).await
            })
            .await
    }

    /// Moves the removal of at most `limit` runs forward that ended at or before `cutoff`, although
    /// their pipeline sets a longer retention.
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

    /// Removes stored responses that hold a credential and may not be repeated any more. Their keys
    /// stay, so that a repeated request gets an error instead of being carried out again.
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

    /// Cancels pending deliveries to deleted endpoints. On PostgreSQL an event may be written while
    /// another transaction deletes one of its endpoints, and neither sees the other.
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

    /// Removes publishers that were deleted at or before `cutoff`, with all their rows. Their data
    /// keys are destroyed in a transaction before. From then on nothing that was sealed for them
    /// can be read, however long the removal of rows takes.
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

    /// Destroys the data keys of publishers that were deleted at or before `cutoff`, and tells
    /// every process to forget them. The chain keys are removed together with the audit logs.
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
                publish_credential_changes(&tx).await?;
                Ok(gone)
            })
            .await?;
        store.inner.keys.forget(gone);
        Ok(())
    }
}

/// Publishers that were deleted at or before `cutoff`, with or without data keys as `keys` says;
/// those deleted first come first. Their rows are locked, so that none can be resumed before the
/// commit.
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
pub(crate) mod tests;

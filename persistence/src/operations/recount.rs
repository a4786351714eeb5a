//! Writes the sums of stored bytes once a second, and counts rows again once a day.

use std::time::Duration;

use sea_orm::ConnectionTrait as _;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::store::{
    Store,
    error::{Result, corrupt_row},
    sql::Sql,
    storage::{Storage, size_of},
    walk::first_id_at,
};

/// How often sums are written and read.
const FLUSH_EVERY: Duration = Duration::from_secs(1);
/// How often due counts are searched; the first search is as long after the start.
const COUNT_EVERY: Duration = Duration::from_mins(1);
/// How long a count of rows is valid.
pub(crate) const COUNTED_FOR: Duration = Duration::from_hours(24);
/// Rows that one step counts.
const STEP: usize = 500;
/// The pause after each step.
const PAUSE: Duration = Duration::from_millis(20);

impl Store {
    /// Keeps the sums up to date until the store is closed.
    pub(crate) async fn storage_loop(self, stop: CancellationToken) {
        let mut tick = tokio::time::interval(FLUSH_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut count =
            tokio::time::interval_at(tokio::time::Instant::now() + COUNT_EVERY, COUNT_EVERY);
        count.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let done = tokio::select! {
                () = stop.cancelled() => return,
                _ = tick.tick() => self.flush_storage().await,
                _ = count.tick() => tokio::select! {
                    () = stop.cancelled() => return,
                    done = self.count_storage() => done,
                },
            };
            if let Err(error) = done {
                tracing::debug!(%error, "stored bytes could not be counted");
            }
        }
    }

    /// Counts the rows of publishers whose last count is too old.
    async fn count_storage(&self) -> Result<()> {
        loop {
            let due = self.now().minus(COUNTED_FOR).ms();
            let mut sql = Sql::new(
                "SELECT p.id FROM publishers p LEFT JOIN storage_usage s ON s.publisher_id = p.id \
                 WHERE s.counted_at IS NULL OR s.counted_at <= ",
            );
            sql.bind(due).push(" LIMIT 1");
            let row = self.read().query_one_raw(sql.statement(self.backend()));
            let Some(row) = row.await? else {
                return Ok(());
            };
            self.recount_storage(row.try_get("", "id")?).await?;
        }
    }

    /// Counts a publisher's rows, and corrects the sum by the difference. Rows that are written
    /// meanwhile are added as always.
    pub(crate) async fn recount_storage(&self, publisher: Uuid) -> Result<()> {
        self.flush_storage().await?;
        let (backend, now) = (self.backend(), self.now());
        let due = now.minus(COUNTED_FOR).ms();
        // If several processes counted, the first to write is used.
        let ours = self
            .write_unflushed(|tx| async move {
                let mut sql = Sql::new(
                    "INSERT INTO storage_usage (publisher_id, bytes, counted_at) VALUES (",
                );
                sql.bind(publisher).push(", 0, ").bind(now.ms());
                sql.push(
                    ") ON CONFLICT (publisher_id) DO UPDATE SET counted_at = excluded.counted_at \
                     WHERE storage_usage.counted_at IS NULL OR storage_usage.counted_at <= ",
                );
                sql.bind(due);
                let done = tx.db().execute_raw(sql.statement(backend)).await?;
                Ok(done.rows_affected() > 0)
            })
            .await?;
        if !ours {
            return Ok(());
        }
        let before = self.read_storage([publisher]).await?;
        let before = before.get(&publisher).map_or(0, |(bytes, _)| *bytes);
        let end = first_id_at(now.ms().saturating_add(1));
        let mut counted = 0;
        for table in ["runs", "events", "deliveries"] {
            counted += self.count_rows(table, publisher, end).await?;
        }
        counted += self.count_answers(publisher).await?;
        counted += self.count_versions(publisher).await?;
        let wrong = counted - before;
        self.write_unflushed(|tx| async move {
            let mut sql = Sql::new("UPDATE storage_usage SET bytes = bytes + ");
            sql.bind(wrong).push(" WHERE publisher_id = ");
            sql.bind(publisher);
            tx.db().execute_raw(sql.statement(backend)).await?;
            Ok(())
        })
        .await?;
        self.state::<Storage>().look_again(publisher);
        Ok(())
    }

    async fn count_rows(&self, table: &'static str, publisher: Uuid, end: Uuid) -> Result<i64> {
        let size = size_of(table).ok_or_else(|| corrupt_row("table of counted rows"))?;
        let (mut at, mut bytes) = (Uuid::nil(), 0);
        loop {
            let mut sql = Sql::new("SELECT id, CAST(");
            sql.push(&size).push(" AS BIGINT) AS size FROM ");
            sql.push(table).push(" WHERE publisher_id = ");
            sql.bind(publisher).push(" AND id > ").bind(at);
            sql.push(" AND id < ").bind(end);
            sql.push(" ORDER BY id LIMIT ").push(&STEP.to_string());
            let rows = {
                let scan = self.scan(Uuid::nil()).await?;
                let statement = sql.statement(self.backend());
                scan.db().query_all_raw(statement).await?
            };
            for row in &rows {
                at = row.try_get("", "id")?;
                bytes += row.try_get::<i64>("", "size")?;
            }
            if rows.len() < STEP {
                return Ok(bytes);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Counts versions without steps, since they are few: those stored within the retention of
    /// runs.
    async fn count_versions(&self, publisher: Uuid) -> Result<i64> {
        let size =
            size_of("pipeline_versions").ok_or_else(|| corrupt_row("table of counted rows"))?;
        let mut sql = Sql::new("SELECT CAST(COALESCE(SUM(");
        sql.push(&size);
        sql.push("), 0) AS BIGINT) AS bytes FROM pipeline_versions WHERE publisher_id = ");
        sql.bind(publisher);
        let scan = self.scan(Uuid::nil()).await?;
        let statement = sql.statement(self.backend());
        let row = scan.db().query_one_raw(statement).await?;
        row.map_or(Ok(0), |row| Ok(row.try_get("", "bytes")?))
    }

    async fn count_answers(&self, publisher: Uuid) -> Result<i64> {
        let size =
            size_of("idempotency_keys").ok_or_else(|| corrupt_row("table of counted rows"))?;
        let (mut at, mut bytes) = ((String::new(), String::new()), 0);
        loop {
            let mut sql = Sql::new("SELECT operation, key, CAST(");
            sql.push(&size)
                .push(" AS BIGINT) AS size FROM idempotency_keys WHERE owner_id = ");
            sql.bind(publisher).push(" AND (operation, key) > (");
            sql.bind(at.0.as_str()).push(", ").bind(at.1.as_str());
            sql.push(") ORDER BY operation, key LIMIT ")
                .push(&STEP.to_string());
            let rows = {
                let scan = self.scan(Uuid::nil()).await?;
                let statement = sql.statement(self.backend());
                scan.db().query_all_raw(statement).await?
            };
            for row in &rows {
                at = (row.try_get("", "operation")?, row.try_get("", "key")?);
                bytes += row.try_get::<i64>("", "size")?;
            }
            if rows.len() < STEP {
                return Ok(bytes);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

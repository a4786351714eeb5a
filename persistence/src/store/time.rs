//! One time for all processes, and what happens when it is set back or forward (ADR 0032).
//!
//! A process's clock runs independently of changes to the machine's clock, and follows a source. On
//! PostgreSQL the source is the database's clock, so that all processes agree on leases however far
//! their machines' clocks differ. On SQLite, where there is one process, it is the machine's clock.
//! A small difference is adopted at once. A large one is a step: waiting and leased rows were
//! written with the old time, so they are moved in the transaction with which the new time takes
//! effect.

use std::time::{Duration, Instant};

use domain::{Clock, Timestamp, clock::SystemClock};
use sea_orm::{ConnectionTrait, DbBackend, Statement};
use tokio_util::sync::CancellationToken;

use crate::store::{
    Store,
    db::Tx,
    error::{Result, StoreError},
    sql::Sql,
};

/// How often the source is read.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A difference above this is a step: rows were scheduled with another time.
const STEP_MS: i64 = 2_000;
/// A difference below this is ignored: it may come from the duration of the query.
const SLACK_MS: i64 = 20;
/// An answer that took longer is too imprecise to use.
const ANSWER_MAX: Duration = Duration::from_secs(1);
/// A lock that is held on PostgreSQL while rows are moved, so that only one process moves them. The
/// number is arbitrary: "stm" followed by the purpose's number.
const STEP_LOCK: i64 = 0x0073_746d_0002;

/// A process that was seen within this time before a step counts as alive after it.
const PROCESS_SEEN_MS: i64 = 10_000;

/// Columns with the time at which a row is due.
const DUE: [(&str, &str, &str); 7] = [
    ("deliveries", "next_attempt_at", "status = 'pending'"),
    ("train_notices", "next_attempt_at", "finished_at IS NULL"),
    ("accounts", "refresh_due_at", "refresh_due_at IS NOT NULL"),
    ("runs", "not_before", "status = 'queued' AND failures > 0"),
    ("dispatch_leases", "probe_at", "probe_at IS NOT NULL"),
    ("jobs", "due_at", "due_at IS NOT NULL"),
    // When a stored response with a secret is wiped.
    (
        "idempotency_keys",
        "answer_until",
        "answer_until IS NOT NULL",
    ),
];
/// Columns with the time until which a row is leased or blocked.
const HELD: [(&str, &str, &str); 5] = [
    ("processes", "expires_at", "expires_at IS NOT NULL"),
    ("runs", "lease_expires_at", "status = 'running'"),
    ("jobs", "lease_until", "lease_until IS NOT NULL"),
    (
        "accounts",
        "refresh_lease_until",
        "refresh_lease_until IS NOT NULL",
    ),
    ("account_cooldowns", "until", "until IS NOT NULL"),
];
/// Columns with the time at which a process was last alive. The next process measures by them, so
/// they must not be in the future.
const SIGNS: [(&str, &str); 4] = [
    ("processes", "heartbeat_at"),
    ("jobs", "started_at"),
    ("jobs", "finished_at"),
    ("trains", "exhausted_at"),
];

/// The statement that moves a column by `by` milliseconds where it is beyond `beyond`. A due time
/// does not become earlier than `least`.
fn move_sql((table, column, which): (&str, &str, &str), by: i64, beyond: i64, least: i64) -> Sql {
    let mut sql = Sql::new(&format!(
        "UPDATE {table} SET {column} = CASE WHEN {column} + "
    ));
    sql.bind(by).push(" < ").bind(least).push(" THEN ");
    sql.bind(least).push(&format!(" ELSE {column} + ")).bind(by);
    sql.push(&format!(" END WHERE {which} AND {column} > "));
    sql.bind(beyond);
    sql
}

async fn run(tx: &Tx, sql: Sql) -> Result<()> {
    let statement = sql.statement(tx.db().get_database_backend());
    tx.db().execute_raw(statement).await?;
    Ok(())
}

/// When a process was last seen alive, in that process's time.
async fn last_sign<C: ConnectionTrait>(db: &C) -> Result<Option<i64>> {
    let sql = "SELECT max(at) AS at FROM (SELECT max(heartbeat_at) AS at FROM processes \
               UNION ALL SELECT max(started_at) FROM jobs) signs";
    let statement = Statement::from_string(db.get_database_backend(), sql);
    let row = db.query_one_raw(statement).await?;
    Ok(row.map(|row| row.try_get("", "at")).transpose()?.flatten())
}

/// Whether another process has moved all rows already. If so, it was seen alive at the new time.
async fn is_moved(tx: &Tx, new: i64) -> Result<bool> {
    let mut sql = Sql::new("SELECT count(*) AS alive FROM processes WHERE heartbeat_at <= ");
    sql.bind(new).push(" AND expires_at > ").bind(new);
    let statement = sql.statement(tx.db().get_database_backend());
    let row = tx.db().query_one_raw(statement).await?;
    let alive: Option<i64> = row.map(|row| row.try_get("", "alive")).transpose()?;
    Ok(alive.is_some_and(|alive| alive > 0))
}

/// Moves rows that were written with the old time. If the clock was set back, times in the future
/// are pulled in. If it was set forward, leases are extended to last as long as before; due rows
/// become due early, which does no harm.
async fn move_rows(tx: &Tx, old: i64, new: i64) -> Result<()> {
    let by = new - old;
    for held in HELD {
        let beyond = if by < 0 { new } else { old };
        run(tx, move_sql(held, by, beyond, new.min(old))).await?;
    }
    let mut signs = Sql::new("UPDATE processes SET heartbeat_at = heartbeat_at + ");
    signs.bind(by).push(" WHERE heartbeat_at > ");
    signs.bind(old.min(new) - PROCESS_SEEN_MS);
    if by > 0 {
        return run(tx, signs).await;
    }
    for due in DUE {
        run(tx, move_sql(due, by, new, new)).await?;
    }
    for (table, column) in SIGNS {
        let mut sql = Sql::new(&format!("UPDATE {table} SET {column} = "));
        sql.bind(new).push(&format!(" WHERE {column} > ")).bind(new);
        run(tx, sql).await?;
    }
    // Other processes learn of a cooldown only if its row is newer than what they know.
    let mut sql = Sql::new("UPDATE account_cooldowns SET reported_at = reported_at + 1");
    sql.push(" WHERE reported_at > ").bind(new);
    run(tx, sql).await
}

impl Store {
    /// The source's current time, and its possible error.
    async fn source(&self) -> Result<(Timestamp, Duration)> {
        if self.backend() == DbBackend::Sqlite {
            return Ok((SystemClock.now(), Duration::ZERO));
        }
        let sql = "SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT) AS ms";
        let began = Instant::now();
        let statement = Statement::from_string(self.backend(), sql);
        let row = self.read().query_one_raw(statement).await?;
        let took = began.elapsed();
        let row = row.ok_or_else(|| StoreError::Internal("the database has no time".to_owned()))?;
        let at = Timestamp::from_ms(row.try_get("", "ms")?);
        Ok((at.plus(took / 2), took))
    }

    fn clock(&self) -> &dyn Clock {
        self.inner.db.clock()
    }

    /// Adopts the source's time, and handles a step that happened while no process ran.
    pub(crate) async fn start_time(&self) -> Result<()> {
        if self.clock().is_steady() {
            let (at, _) = self.source().await?;
            self.clock().steer(at);
        }
        let ahead = |last: Option<i64>, now: i64| last.filter(|last| last - now > STEP_MS);
        if ahead(last_sign(self.read()).await?, self.now().ms()).is_none() {
            return Ok(());
        }
        let moved = self
            .write(|tx| async move {
                lock(&tx).await?;
                let now = tx.now.ms();
                let Some(last) = ahead(last_sign(tx.db()).await?, now) else {
                    return Ok(None);
                };
                if is_moved(&tx, now).await? {
                    return Ok(None);
                }
                move_rows(&tx, last, now).await?;
                Ok(Some(last - now))
            })
            .await?;
        if let Some(ms) = moved {
            report_step(-ms);
        }
        Ok(())
    }

    /// Compares the clock with its source once. Returns the length of a step in milliseconds, if
    /// there was one.
    pub(crate) async fn follow_time(&self) -> Result<Option<i64>> {
        let (source, error) = self.source().await?;
        let now = self.now();
        let difference = source.ms() - now.ms();
        let slack = SLACK_MS.max(i64::try_from(error.as_millis()).unwrap_or(i64::MAX));
        if error > ANSWER_MAX || difference.abs() <= slack {
            return Ok(None);
        }
        if difference.abs() < STEP_MS {
            self.clock().steer(source);
            return Ok(None);
        }
        self.step(now, difference).await?;
        Ok(Some(difference))
    }

    /// Moves rows in one transaction, with which the new time takes effect.
    async fn step(&self, old: Timestamp, by: i64) -> Result<()> {
        let sqlite = self.backend() == DbBackend::Sqlite;
        let began = Instant::now();
        let present = move |by: i64| Timestamp::from_ms(old.plus(began.elapsed()).ms() + by);
        let stepped = self
            .write(|tx| async move {
                lock(&tx).await?;
                let (old, new) = (present(0).ms(), present(by).ms());
                if !is_moved(&tx, new).await? {
                    // On PostgreSQL the last sign of life gives the old time, whichever process
                    // moves the rows.
                    let last = last_sign(tx.db()).await?.filter(|_| !sqlite);
                    move_rows(&tx, last.unwrap_or(old), new).await?;
                }
                // Before the commit, so that nobody writes the old time after it.
                self.clock().steer(present(by));
                Ok(())
            })
            .await;
        if let Err(error) = stepped {
            self.clock().steer(present(0));
            return Err(error);
        }
        self.time_was_set();
        report_step(by);
        Ok(())
    }

    /// Follows the source until the store is closed.
    pub(crate) async fn time_loop(self, stop: CancellationToken) {
        if !self.clock().is_steady() {
            return;
        }
        let mut failing = false;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            match self.follow_time().await {
                Ok(_) => failing = false,
                Err(error) if !failing => {
                    failing = true;
                    tracing::warn!(%error, "the clock can't be compared with its source, and continues by itself");
                }
                Err(_) => {}
            }
        }
    }
}

async fn lock(tx: &Tx) -> Result<()> {
    if tx.db().get_database_backend() == DbBackend::Postgres {
        let sql = format!("SELECT pg_advisory_xact_lock({STEP_LOCK})");
        tx.db().execute_unprepared(&sql).await?;
    }
    Ok(())
}

fn report_step(ms: i64) {
    metrics::counter!("stationmaster_clock_steps_total").increment(1);
    let seconds = ms / 1000;
    tracing::warn!(
        seconds,
        "the clock was set; times of waiting and leased rows were moved"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{START, engines};

    const JOB: &str = "leases";
    const HOUR_MS: i64 = 3_600_000;
    const EVERY: Duration = Duration::from_secs(10);

    async fn column(store: &Store, column: &str) -> i64 {
        let sql = format!("SELECT {column} AS at FROM jobs");
        let statement = Statement::from_string(store.backend(), sql);
        let row = store.read().query_one_raw(statement).await.unwrap();
        row.unwrap().try_get("", "at").unwrap()
    }

    #[tokio::test]
    async fn set_back_what_waits_is_pulled_in_and_what_is_held_ends_in_time() {
        for fixture in engines().await {
            let (store, system) = (&fixture.store, fixture.store.system());
            let lease = Duration::from_mins(1);
            let next = START.plus(EVERY);
            assert!(
                system
                    .operations()
                    .take_job(JOB, "a", lease, next)
                    .await
                    .is_ok()
            );
            system.webhooks().register_process().await.unwrap();
            fixture.clock.advance(EVERY);
            assert!(
                system
                    .operations()
                    .take_job(JOB, "a", lease, next)
                    .await
                    .unwrap()
            );
            store.step(store.now(), -HOUR_MS).await.unwrap();
            let now = store.now().ms();
            // The last sign of life gives the old time if there may be other processes.
            assert!((now - START.plus(EVERY).ms() + HOUR_MS).abs() < 1000);
            let until = column(store, "lease_until").await - now;
            assert!((0..=60_000).contains(&until), "{until}");
            assert!(column(store, "due_at").await <= now);
            assert!(column(store, "started_at").await <= now);
            // The next process finds that the rows have been moved.
            store.start_time().await.unwrap();
            assert_eq!(column(store, "lease_until").await - now, until);
            fixture.store.close().await;
        }
    }

    #[tokio::test]
    async fn set_forward_what_is_held_is_held_as_long_as_before() {
        for fixture in engines().await {
            let (store, system) = (&fixture.store, fixture.store.system());
            let lease = Duration::from_mins(1);
            let process = system.webhooks().register_process().await.unwrap();
            let next = START.plus(EVERY);
            system
                .operations()
                .take_job(JOB, "a", lease, next)
                .await
                .unwrap();
            fixture.clock.advance(EVERY / 10);
            system.webhooks().renew_process(process).await.unwrap();
            fixture.clock.advance(EVERY);
            assert!(
                system
                    .operations()
                    .take_job(JOB, "a", lease, next)
                    .await
                    .unwrap()
            );
            store.step(store.now(), HOUR_MS).await.unwrap();
            let left = column(store, "lease_until").await - store.now().ms();
            assert!((59_000..=61_000).contains(&left), "{left}");
            // A second process on the same database moves nothing again.
            assert!(
                !system
                    .operations()
                    .take_job(JOB, "b", lease, next)
                    .await
                    .unwrap()
            );
            fixture.store.close().await;
        }
    }
}

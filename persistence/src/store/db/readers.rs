//! SQLite's readers: one pool for single rows, one for scans.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use sea_orm::sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqlitePoolOptions};

use crate::store::{
    connections::Connections,
    database_config::{ACQUIRE_TIMEOUT, DatabaseConfig, unavailable},
    error::Result,
};

/// SQLite's page cache for each connection of scans, which read much data once; a negative number
/// is in KiB.
const SQLITE_SCAN_CACHE_KIB: &str = "-4096";
/// How long a scan's statement may take in SQLite.
const SQLITE_SCAN_TIMEOUT: Duration = Duration::from_secs(10);
/// After so many steps of its virtual machine SQLite asks whether it may go on: about every 50 µs.
const SQLITE_STEPS: i32 = 1000;
/// SQLite readers at most. More than there are cores cost CPU and gain little.
const SQLITE_READERS_MAX: u32 = 8;

/// Opens the readers for single rows.
pub(super) async fn connect(
    options: &SqliteConnectOptions,
    limit: Duration,
) -> Result<Connections> {
    pool()
        .acquire_timeout(limit.min(ACQUIRE_TIMEOUT))
        .connect_with(options.clone().pragma("query_only", "ON"))
        .await
        .map(|pool| Connections::Sqlite(pool.into()))
        .map_err(unavailable)
}

/// Opens the readers for scans. They add their steps to `steps`. Scans on PostgreSQL use the pool.
pub(super) async fn connect_scans(
    config: &DatabaseConfig,
    steps: &Arc<AtomicU64>,
) -> Result<Option<Connections>> {
    let DatabaseConfig::Sqlite { options, .. } = config else {
        return Ok(None);
    };
    let options = (**options).clone();
    let options = options.pragma("cache_size", SQLITE_SCAN_CACHE_KIB);
    let (first, again) = (Arc::clone(steps), Arc::clone(steps));
    // One connection for each statement, so that its time begins when it is acquired.
    let pool = pool()
        .after_connect(move |connection, _| {
            let steps = Arc::clone(&first);
            Box::pin(async move { limit_time(connection, steps).await.map(drop) })
        })
        .before_acquire(move |connection, _| {
            let steps = Arc::clone(&again);
            Box::pin(limit_time(connection, steps))
        });
    let pool = pool.connect_with(options.pragma("query_only", "ON")).await;
    Ok(Some(Connections::Sqlite(pool.map_err(unavailable)?.into())))
}

/// The number of readers for single rows, and of readers for scans.
pub(super) fn count() -> u32 {
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let readers = u32::try_from(cores).unwrap_or(2);
    readers.clamp(2, SQLITE_READERS_MAX)
}

/// The settings of both pools.
fn pool() -> SqlitePoolOptions {
    SqlitePoolOptions::new()
        .max_connections(count())
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false)
}

/// Ends each statement on a connection to SQLite that takes longer than the limit.
async fn limit_time(
    connection: &mut SqliteConnection,
    steps: Arc<AtomicU64>,
) -> Result<bool, sea_orm::sqlx::Error> {
    let began = Instant::now();
    let every = u64::try_from(SQLITE_STEPS).unwrap_or(1);
    let mut handle = connection.lock_handle().await?;
    handle.set_progress_handler(SQLITE_STEPS, move || {
        steps.fetch_add(every, Ordering::Relaxed);
        began.elapsed() < SQLITE_SCAN_TIMEOUT
    });
    Ok(true)
}

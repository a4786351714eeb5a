//! The two engines behind one face: pools, transactions, and what follows a commit.

use std::{
    future::Future,
    str::FromStr as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use domain::{
    Clock, Timestamp,
    id::{Id as _, PublisherId},
};
use sea_orm::{
    ConnectionTrait as _, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr,
    SqliteTransactionMode, TransactionOptions, TransactionTrait as _,
    sqlx::{
        ConnectOptions as _, Connection as _,
        postgres::{PgConnectOptions, PgPoolOptions},
        sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
    },
};
use tokio::sync::Notify;
use uuid::Uuid;

use crate::{
    checkpoint,
    effects::{Bodies, Effects},
    entity::deliveries,
    error::{Result, StoreError},
    traffic::Traffic,
};

/// How often a transaction that lost against another one is run again.
const CONFLICT_RETRIES: u32 = 8;
/// PostgreSQL ends a transaction that does nothing for so long, and frees what it has locked. Ours
/// never wait for anything else than the store, so their process stands still or is gone, and
/// whoever takes its work over must not find the rows locked: shorter than
/// [`crate::PROCESS_EXPIRES_AFTER`].
const IDLE_IN_TRANSACTION: &str = "5s";
/// How long a request waits for a connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection that was idle for longer is asked whether it still lives.
const PING_AFTER_IDLE: Duration = Duration::from_secs(5);
/// PostgreSQL connections that load what is due. They are few, so that each soon knows the few large
/// statements that this takes.
const LOADING_CONNECTIONS: u32 = 2;
/// Prepared statements that a connection keeps: some of ours have sixteen lengths.
const STATEMENTS_KEPT: usize = 200;
/// SQLite's page cache for each connection, in its own unit of negative KiB.
const SQLITE_CACHE_KIB: &str = "-16384";
/// How much of the file SQLite may map, bytes.
const SQLITE_MMAP_BYTES: &str = "268435456";
/// SQLite readers; more than cores cost CPU and buy little.
const SQLITE_READERS_MAX: u32 = 8;

/// Where the data is.
#[derive(Clone)]
pub(crate) enum Target {
    Sqlite {
        options: Box<SqliteConnectOptions>,
        /// Whether a commit waits for the disk.
        full: bool,
    },
    Postgres {
        options: Box<PgConnectOptions>,
        connections: u32,
    },
}

impl Target {
    /// Reads a `sqlite://…` or `postgres://…` URL.
    pub(crate) fn parse(
        url: &str,
        connections: u32,
        synchronous_full: bool,
    ) -> Result<Self, DbErr> {
        let wrong = |error: sea_orm::sqlx::Error| DbErr::Custom(error.to_string());
        if url.starts_with("sqlite:") {
            let synchronous = if synchronous_full {
                SqliteSynchronous::Full
            } else {
                SqliteSynchronous::Normal
            };
            let options = SqliteConnectOptions::from_str(url)
                .map_err(wrong)?
                .create_if_missing(true)
                .journal_mode(SqliteJournalMode::Wal)
                .synchronous(synchronous)
                .foreign_keys(true)
                .busy_timeout(Duration::from_secs(5))
                .pragma("cache_size", SQLITE_CACHE_KIB)
                .pragma("mmap_size", SQLITE_MMAP_BYTES)
                .pragma("wal_autocheckpoint", checkpoint::PAGES_MAX)
                .statement_cache_capacity(STATEMENTS_KEPT)
                .disable_statement_logging();
            return Ok(Self::Sqlite {
                options: Box::new(options),
                full: synchronous_full,
            });
        }
        let options = PgConnectOptions::from_str(url)
            .map_err(wrong)?
            .application_name("stationmaster")
            .options([
                ("statement_timeout", "30s"),
                ("idle_in_transaction_session_timeout", IDLE_IN_TRANSACTION),
            ])
            .statement_cache_capacity(STATEMENTS_KEPT)
            .disable_statement_logging();
        Ok(Self::Postgres {
            options: Box::new(options),
            connections,
        })
    }

    /// One connection, for migrations and for SQLite's writer.
    pub(crate) async fn connect_one(&self) -> Result<DatabaseConnection> {
        match self {
            Self::Sqlite { options, .. } => SqlitePoolOptions::new()
                .max_connections(1)
                .acquire_timeout(ACQUIRE_TIMEOUT)
                .idle_timeout(None)
                .max_lifetime(None)
                .test_before_acquire(false)
                .connect_with((**options).clone())
                .await
                .map(DatabaseConnection::from)
                .map_err(unavailable),
            // Asked each time whether it lives: it is alone, so a lost one would be a lost batch.
            Self::Postgres { options, .. } => PgPoolOptions::new()
                .max_connections(1)
                .acquire_timeout(ACQUIRE_TIMEOUT)
                .test_before_acquire(true)
                .connect_with((**options).clone())
                .await
                .map(DatabaseConnection::from)
                .map_err(unavailable),
        }
    }

    async fn connect_pool(&self) -> Result<DatabaseConnection> {
        match self {
            Self::Sqlite { options, .. } => {
                let cores = std::thread::available_parallelism().map_or(2, usize::from);
                let readers = u32::try_from(cores)
                    .unwrap_or(2)
                    .clamp(2, SQLITE_READERS_MAX);
                SqlitePoolOptions::new()
                    .max_connections(readers)
                    .acquire_timeout(ACQUIRE_TIMEOUT)
                    .idle_timeout(None)
                    .max_lifetime(None)
                    .test_before_acquire(false)
                    .connect_with((**options).clone().pragma("query_only", "ON"))
                    .await
                    .map(DatabaseConnection::from)
                    .map_err(unavailable)
            }
            Self::Postgres {
                options,
                connections,
            } => postgres_pool(*connections)
                .connect_with((**options).clone())
                .await
                .map(DatabaseConnection::from)
                .map_err(unavailable),
        }
    }
}

/// A pool that asks a connection whether it lives only where it was idle for a while.
fn postgres_pool(connections: u32) -> PgPoolOptions {
    PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .test_before_acquire(false)
        .before_acquire(|connection, meta| {
            Box::pin(async move {
                if meta.idle_for > PING_AFTER_IDLE {
                    connection.ping().await?;
                }
                Ok(true)
            })
        })
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "the shape that map_err takes"
)]
fn unavailable(error: sea_orm::sqlx::Error) -> StoreError {
    StoreError::Unavailable(error.to_string())
}

/// When a commit reaches the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flush {
    /// Before it answers, as the store is set.
    Commit,
    /// With the next commit that waits, or when the engine sees fit.
    Later,
}

/// SQLite's one writing connection.
struct Writer {
    connection: Option<DatabaseConnection>,
    /// Set while a transaction is open. Found set by the next one, the last was cut off.
    open: bool,
}

/// A transaction under way.
pub(crate) struct Transaction {
    inner: DatabaseTransaction,
    /// The one moment that everything in this transaction happens at.
    pub(crate) now: Timestamp,
    effects: Mutex<Effects>,
}

/// A handle to a transaction, for the closure that works in it.
pub(crate) type Tx = Arc<Transaction>;

impl Transaction {
    /// What statements run on.
    pub(crate) fn db(&self) -> &DatabaseTransaction {
        &self.inner
    }

    fn effects(&self) -> std::sync::MutexGuard<'_, Effects> {
        self.effects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a publisher's credentials, or its row, change here.
    pub(crate) fn touches_credentials_of(&self, publisher: PublisherId) {
        let mut effects = self.effects();
        effects.credentials_of.push(publisher);
        effects.targets_of.insert(publisher.uuid());
    }

    /// Notes that something of a publisher's endpoints changes here.
    pub(crate) fn touches_endpoints_of(&self, publisher: Uuid) {
        self.effects().targets_of.insert(publisher);
    }

    /// Notes that deliveries to an endpoint can go out from now on, and have to be looked for.
    pub(crate) fn delivers_to(&self, publisher: Uuid, endpoint: Uuid) {
        self.effects().deliveries.look_for((publisher, endpoint));
    }

    /// Notes that deliveries are written, whose events say this.
    pub(crate) fn delivers(&self, rows: &[deliveries::Model], bodies: &Bodies) {
        self.effects().deliveries.wrote(rows, bodies);
    }

    /// Notes that a publisher may have runs to hand out that were not there before.
    pub(crate) fn readies_runs_of(&self, publisher: Uuid) {
        self.effects().runs_ready.insert(publisher);
    }

    /// Notes that a run changes here.
    pub(crate) fn changes_run(&self, run: Uuid) {
        self.effects().changed.insert(run);
    }

    /// Notes that events of a publisher are written here.
    pub(crate) fn tells_of(&self, publisher: Uuid) {
        self.effects().changed.insert(publisher);
    }

    /// Notes that a fan-out is written here that has to be spread.
    pub(crate) fn fans_out(&self) {
        self.effects().fan_outs = true;
    }

    /// Notes how many endpoints of a publisher listen.
    pub(crate) fn heard_by(&self, publisher: Uuid, endpoints: usize) {
        self.effects().listening.insert(publisher, endpoints);
    }

    /// Notes that messages about trains are written here.
    pub(crate) fn writes_notices(&self) {
        self.effects().notices = true;
    }

    /// Whose credentials change here.
    pub(crate) fn touched(&self) -> Vec<PublisherId> {
        self.effects().credentials_of.clone()
    }
}

/// What a commit brought about.
pub(crate) struct Committed<T> {
    pub(crate) value: T,
    pub(crate) effects: Effects,
    /// The moment before the commit began: nobody can have seen any of it earlier.
    pub(crate) since: Instant,
}

/// The dispatcher's connections.
struct Dispatch {
    load: DatabaseConnection,
    record: DatabaseConnection,
}

/// The connected store.
pub(crate) struct Db {
    target: Target,
    /// Reads; on PostgreSQL writes too.
    pool: DatabaseConnection,
    /// PostgreSQL only: the lane's own connection. In turn on all of the pool's, its large
    /// statements would be parsed and planned anew on each of them.
    lane: Option<DatabaseConnection>,
    /// PostgreSQL only: the dispatcher's own, for the same reason.
    dispatch: Option<Dispatch>,
    /// SQLite only.
    writer: Option<tokio::sync::Mutex<Writer>>,
    /// SQLite only: something was committed, and how many transactions were.
    committed: Notify,
    commits: AtomicU64,
    pub(crate) traffic: Traffic,
    clock: Arc<dyn Clock>,
}

impl Db {
    pub(crate) async fn connect(target: Target, clock: Arc<dyn Clock>) -> Result<Self> {
        // SQLite's writer goes first: it makes the file that the readers open.
        let writer = match &target {
            Target::Sqlite { .. } => Some(tokio::sync::Mutex::new(Writer {
                connection: Some(target.connect_one().await?),
                open: false,
            })),
            Target::Postgres { .. } => None,
        };
        let pool = target.connect_pool().await?;
        let (lane, dispatch) = match &target {
            Target::Sqlite { .. } => (None, None),
            Target::Postgres { options, .. } => {
                let some =
                    |connections| postgres_pool(connections).connect_lazy_with((**options).clone());
                let dispatch = Dispatch {
                    load: some(LOADING_CONNECTIONS).into(),
                    record: some(1).into(),
                };
                (Some(target.connect_one().await?), Some(dispatch))
            }
        };
        Ok(Self {
            target,
            pool,
            lane,
            dispatch,
            writer,
            committed: Notify::new(),
            commits: AtomicU64::new(0),
            traffic: Traffic::new(),
            clock,
        })
    }

    /// The pool that reads run on.
    pub(crate) fn read(&self) -> &DatabaseConnection {
        &self.pool
    }

    /// How many transactions of one publisher may be under way in the general write lane: SQLite has
    /// one writer, and a quarter of PostgreSQL's connections is enough for anybody.
    pub(crate) fn writers_a_publisher(&self) -> usize {
        match &self.target {
            Target::Sqlite { .. } => 1,
            Target::Postgres { connections, .. } => {
                usize::try_from(*connections / 4).map_or(1, |share| share.max(1))
            }
        }
    }

    /// What the dispatcher loads deliveries on.
    pub(crate) fn load(&self) -> &DatabaseConnection {
        self.dispatch.as_ref().map_or(&self.pool, |own| &own.load)
    }

    pub(crate) fn clock(&self) -> &dyn Clock {
        &*self.clock
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// How to reach the engine's notifications, where it has some and other processes may listen.
    pub(crate) fn notifies(&self) -> Option<PgConnectOptions> {
        match &self.target {
            Target::Sqlite { .. } => None,
            Target::Postgres { options, .. } => Some((**options).clone()),
        }
    }

    /// A connection of its own to SQLite, for checkpoints.
    pub(crate) async fn connect_aside(&self) -> Result<DatabaseConnection> {
        self.target.connect_one().await
    }

    /// Waits until something was committed to SQLite since the last call, or may have been.
    pub(crate) async fn committed(&self) {
        self.committed.notified().await;
    }

    /// How many transactions SQLite has committed, or may have.
    pub(crate) fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    pub(crate) fn backend(&self) -> DbBackend {
        self.pool.get_database_backend()
    }

    /// Runs `work` in a transaction of its own and commits it; on an error nothing is changed.
    ///
    /// `work` may run several times: a transaction that PostgreSQL gives up in favour of another
    /// starts anew. The future must not be dropped half-way (sqlx 0.9.0 loses PostgreSQL writes
    /// after a cancelled `begin`): callers run in a task of their own.
    pub(crate) async fn write<T, F, W>(&self, work: F) -> Result<Committed<T>>
    where
        F: Fn(Tx) -> W + Sync,
        W: Future<Output = Result<T>> + Send,
    {
        self.write_on(&self.pool, Flush::Commit, work).await
    }

    /// The same for removals of what is past its time, which may come back when the machine fails.
    pub(crate) async fn write_unflushed<T, F, W>(&self, work: F) -> Result<Committed<T>>
    where
        F: Fn(Tx) -> W + Sync,
        W: Future<Output = Result<T>> + Send,
    {
        self.write_on(&self.pool, Flush::Later, work).await
    }

    /// The same for the hot write lane, whose transactions come one after the other.
    pub(crate) async fn write_batch<T, F, W>(&self, work: F) -> Result<Committed<T>>
    where
        F: Fn(Tx) -> W + Sync,
        W: Future<Output = Result<T>> + Send,
    {
        let own = self.lane.as_ref().unwrap_or(&self.pool);
        self.write_on(own, Flush::Commit, work).await
    }

    /// The same for the dispatcher's outcomes, whose transactions come one after the other too.
    pub(crate) async fn write_outcomes<T, F, W>(&self, work: F) -> Result<Committed<T>>
    where
        F: Fn(Tx) -> W + Sync,
        W: Future<Output = Result<T>> + Send,
    {
        let own = self.dispatch.as_ref().map(|own| &own.record);
        let own = own.unwrap_or(&self.pool);
        self.write_on(own, Flush::Commit, work).await
    }

    async fn write_on<T, F, W>(
        &self,
        connection: &DatabaseConnection,
        flush: Flush,
        work: F,
    ) -> Result<Committed<T>>
    where
        F: Fn(Tx) -> W + Sync,
        W: Future<Output = Result<T>> + Send,
    {
        let _under_way = self.traffic.enter();
        let mut attempt = 0;
        loop {
            let result = if let Some(writer) = &self.writer {
                self.write_sqlite(writer, flush, &work).await
            } else {
                let tx = self.begin(connection, None).await?;
                if flush == Flush::Later {
                    let later = "SET LOCAL synchronous_commit = off";
                    tx.db().execute_unprepared(later).await?;
                }
                Self::run(tx, &work).await.0
            };
            match result {
                Err(StoreError::Conflict(_)) if attempt < CONFLICT_RETRIES => {
                    attempt += 1;
                    let wait_ms = f64::from(attempt * 4) * domain::random::jitter(0.5);
                    tokio::time::sleep(Duration::from_secs_f64(wait_ms / 1000.0)).await;
                }
                Err(StoreError::Conflict(text)) => return Err(StoreError::Unavailable(text)),
                other => return other,
            }
        }
    }

    /// On SQLite a failed write leaves sqlx's idea of the connection wrong: a later commit may
    /// report success although nothing was stored. So the connection is thrown away after any
    /// failure of the engine, and after a transaction that was cut off.
    async fn write_sqlite<T, F, W>(
        &self,
        writer: &tokio::sync::Mutex<Writer>,
        flush: Flush,
        work: &F,
    ) -> Result<Committed<T>>
    where
        F: Fn(Tx) -> W + Sync,
        W: Future<Output = Result<T>> + Send,
    {
        let mut writer = writer.lock().await;
        if writer.open {
            Self::discard(&mut writer);
        }
        if writer.connection.is_none() {
            writer.connection = Some(self.target.connect_one().await?);
        }
        let Some(connection) = writer.connection.clone() else {
            return Err(StoreError::Internal("the writer has no connection".into()));
        };
        // It can't be set within a transaction, and must not stay as it is for a removal.
        let eased =
            flush == Flush::Later && matches!(self.target, Target::Sqlite { full: true, .. });
        writer.open = true;
        let begin = async {
            if eased {
                let normal = "PRAGMA synchronous = NORMAL";
                connection.execute_unprepared(normal).await?;
            }
            self.begin(&connection, Some(SqliteTransactionMode::Immediate))
                .await
        };
        let (result, mut clean) = match begin.await {
            Ok(tx) => Self::run(tx, work).await,
            Err(error) => (Err(error), false),
        };
        if eased && clean {
            let full = connection.execute_unprepared("PRAGMA synchronous = FULL");
            clean = full.await.is_ok();
        }
        writer.open = false;
        if !clean {
            Self::discard(&mut writer);
        }
        drop(writer);
        self.commits.fetch_add(1, Ordering::Relaxed);
        self.committed.notify_one();
        result
    }

    fn discard(writer: &mut Writer) {
        writer.open = false;
        if let Some(old) = writer.connection.take() {
            tracing::warn!("the writing connection to SQLite is replaced after a failure");
            tokio::spawn(async move { old.close().await });
        }
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that opens transactions"
    )]
    async fn begin(
        &self,
        connection: &DatabaseConnection,
        mode: Option<SqliteTransactionMode>,
    ) -> Result<Tx> {
        let options = TransactionOptions {
            sqlite_transaction_mode: mode,
            ..Default::default()
        };
        let inner = connection.begin_with_options(options).await?;
        Ok(Arc::new(Transaction {
            inner,
            now: self.now(),
            effects: Mutex::default(),
        }))
    }

    /// Also tells whether the connection can be used again.
    async fn run<T, F, W>(tx: Tx, work: &F) -> (Result<Committed<T>>, bool)
    where
        F: Fn(Tx) -> W + Sync,
        W: Future<Output = Result<T>> + Send,
    {
        let result = work(Arc::clone(&tx)).await;
        let Some(tx) = Arc::into_inner(tx) else {
            let error = StoreError::Internal("a transaction outlived its closure".into());
            return (Err(error), false);
        };
        let effects = tx
            .effects
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(value) => {
                let since = Instant::now();
                let committed = Committed {
                    value,
                    effects,
                    since,
                };
                match tx.inner.commit().await {
                    Ok(()) => (Ok(committed), true),
                    Err(error) => (Err(error.into()), false),
                }
            }
            Err(error) => {
                let engine_failed = matches!(error, StoreError::Unavailable(_));
                let rolled_back = tx.inner.rollback().await.is_ok();
                (Err(error), rolled_back && !engine_failed)
            }
        }
    }

    pub(crate) async fn close(&self) {
        if let Some(writer) = &self.writer
            && let Some(connection) = writer.lock().await.connection.take()
            && let Err(error) = connection.close().await
        {
            tracing::warn!(%error, "the writing connection did not close cleanly");
        }
        let own = self
            .dispatch
            .iter()
            .flat_map(|own| [&own.load, &own.record]);
        for pool in [&self.pool].into_iter().chain(&self.lane).chain(own) {
            if let Err(error) = pool.clone().close().await {
                tracing::warn!(%error, "the connections did not close cleanly");
            }
        }
    }
}

#[cfg(test)]
mod tests;

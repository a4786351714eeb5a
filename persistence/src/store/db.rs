//! The connected database: pools, transactions, and the effects of a commit.

use std::{
    future::Future,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use domain::{
    Clock, Timestamp,
    id::{Id as _, PublisherId, UserId},
    progress::Progress,
};
use sea_orm::{ConnectionTrait as _, DatabaseConnection, DbBackend};
use tokio::{sync::Notify, time::timeout};
use uuid::Uuid;

mod readers;

use crate::store::{
    connections::{Connections, Work},
    database_config::DatabaseConfig,
    effects::{Bodies, Effects},
    entity::deliveries,
    error::{Result, StoreError, uncommitted},
    lines::{Line, Own, TooFew, open_all},
    pool::{Pool, Server},
    write_activity::WriteActivity,
};

/// How often a transaction is run again after a conflict with another one.
const CONFLICT_RETRIES: u32 = 8;
/// When a commit reaches the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flush {
    /// Before the commit returns, if the store is configured so.
    Commit,
    /// With the next flushed commit, or when the engine does it.
    Later,
}

/// SQLite's one writing connection.
struct Writer {
    connection: Option<Connections>,
    /// Set while a transaction is open. If the next transaction finds it set, the last one was cut
    /// off.
    open: bool,
}

/// An open transaction.
pub(crate) struct Transaction {
    inner: Work,
    /// The time at which everything in this transaction happens.
    pub(crate) now: Timestamp,
    effects: Mutex<Effects>,
    /// The person who stands behind this change: who is signed in, or who created the token.
    member: OnceLock<UserId>,
}

/// A handle to a transaction, for the closure that works in it.
pub(crate) type Tx = Arc<Transaction>;

impl Transaction {
    /// The connection for the transaction's statements.
    pub(crate) fn db(&self) -> &Work {
        &self.inner
    }

    fn effects(&self) -> std::sync::MutexGuard<'_, Effects> {
        self.effects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a publisher's credentials, or its row, change in this transaction.
    pub(crate) fn touches_credentials_of(&self, publisher: PublisherId) {
        let mut effects = self.effects();
        effects.credentials_of.push(publisher);
        effects.targets_of.insert(publisher.uuid());
    }

    /// Notes that something of a publisher's endpoints changes in this transaction.
    pub(crate) fn touches_endpoints_of(&self, publisher: Uuid) {
        self.effects().targets_of.insert(publisher);
    }

    /// Notes that deliveries to an endpoint may become sendable, and have to be looked up.
    pub(crate) fn delivers_to(&self, publisher: Uuid, endpoint: Uuid) {
        self.effects().deliveries.look_for((publisher, endpoint));
    }

    /// Notes that deliveries to an endpoint may be sent from now on, even if its receiver failed
    /// before.
    pub(crate) fn resumes(&self, publisher: Uuid, endpoint: Uuid) {
        let deliveries = &mut self.effects().deliveries;
        deliveries.look_for((publisher, endpoint));
        deliveries.resumed.insert((publisher, endpoint));
    }

    /// Notes that deliveries are written. `bodies` holds the bodies of their events.
    pub(crate) fn delivers(&self, rows: &[deliveries::Model], bodies: &Bodies) {
        self.effects().deliveries.wrote(rows, bodies);
    }

    /// Notes that a publisher may have new runs to hand out.
    pub(crate) fn readies_runs_of(&self, publisher: Uuid) {
        self.effects().runs_ready.insert(publisher);
    }

    /// Notes that a run changes in this transaction.
    pub(crate) fn changes_run(&self, run: Uuid) {
        self.effects().changed.insert(run);
    }

    /// Notes that events of a publisher are written in this transaction.
    pub(crate) fn tells_of(&self, publisher: Uuid) {
        self.effects().changed.insert(publisher);
    }

    /// Notes that a fan-out is written that has to be spread.
    pub(crate) fn fans_out(&self) {
        self.effects().fan_outs = true;
    }

    /// Notes how many endpoints of a publisher listen.
    pub(crate) fn heard_by(&self, publisher: Uuid, endpoints: usize) {
        self.effects().listening.insert(publisher, endpoints);
    }

    /// Notes that `bytes` more are stored for a publisher.
    pub(crate) fn stores(&self, publisher: Uuid, bytes: usize) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        *self.effects().stored.entry(publisher).or_default() += bytes;
    }

    /// Notes that `bytes` of a publisher are removed.
    pub(crate) fn removes(&self, publisher: Uuid, bytes: i64) {
        *self.effects().stored.entry(publisher).or_default() -= bytes;
    }

    /// Notes that messages about trains are written in this transaction.
    pub(crate) fn writes_notices(&self) {
        self.effects().notices = true;
    }

    /// Notes which person stands behind this change. Of two notes the first counts.
    pub(crate) fn made_by(&self, user: UserId) {
        self.member.get_or_init(|| user);
    }

    /// The member who makes this change, if a person does.
    pub(crate) fn member(&self) -> Option<UserId> {
        self.member.get().copied()
    }

    /// Notes that mails are written in this transaction.
    pub(crate) fn writes_mails(&self) {
        self.effects().mails = true;
    }

    /// The publishers whose credentials change in this transaction.
    pub(crate) fn touched(&self) -> Vec<PublisherId> {
        self.effects().credentials_of.clone()
    }
}

/// The result and the effects of a commit.
pub(crate) struct Committed<T> {
    pub(crate) value: T,
    pub(crate) effects: Effects,
    /// A time just before the commit: nobody can have seen the changes earlier.
    pub(crate) since: Instant,
}

/// The connected database.
pub(crate) struct Db {
    config: DatabaseConfig,
    /// For reads; on PostgreSQL for writes too.
    pool: Connections,
    /// SQLite only: readers for scans, which may take long.
    scans: Option<Connections>,
    /// SQLite only: how many steps of its virtual machine scans took.
    #[cfg_attr(not(test), expect(dead_code, reason = "tests read it"))]
    scan_steps: Arc<AtomicU64>,
    /// PostgreSQL only: connections that requests cannot take.
    own: Option<Own>,
    /// SQLite only: the writer.
    writer: Option<tokio::sync::Mutex<Writer>>,
    /// SQLite only: notified after a commit. The next field counts the commits.
    committed: Notify,
    commits: AtomicU64,
    pub(crate) activity: WriteActivity,
    progress: Progress,
    /// SQLite only: when the engine last failed to write.
    unwritten: Mutex<Option<Instant>>,
    clock: Arc<dyn Clock>,
}

impl Db {
    pub(crate) async fn connect(
        config: DatabaseConfig,
        clock: Arc<dyn Clock>,
    ) -> Result<Result<Self, TooFew>> {
        let (pool, own, writer) = match &config {
            DatabaseConfig::Sqlite { options, limit, .. } => {
                // The writer connects first: it creates the file that the readers open.
                let writer = Writer {
                    connection: Some(Connections::Sqlite(config.connect_one().await?)),
                    open: false,
                };
                let readers = readers::connect(options, *limit).await?;
                (readers, None, Some(tokio::sync::Mutex::new(writer)))
            }
            DatabaseConfig::Postgres {
                server,
                connections,
            } => {
                let (own, first) = Own::new(server);
                let pool = Pool::new(server, *connections, false);
                if let Err(few) = open_all(server, first, &pool).await {
                    return Ok(Err(few));
                }
                (Connections::Postgres(pool), Some(own), None)
            }
        };
        let scan_steps = Arc::new(AtomicU64::new(0));
        let scans = readers::connect_scans(&config, &scan_steps).await?;
        Ok(Ok(Self {
            config,
            pool,
            scans,
            scan_steps,
            own,
            writer,
            committed: Notify::new(),
            commits: AtomicU64::new(0),
            activity: WriteActivity::new(),
            progress: Progress::default(),
            unwritten: Mutex::default(),
            clock,
        }))
    }

    /// The connections for reads; on PostgreSQL for writes too.
    pub(crate) fn line(&self, line: Line) -> &Connections {
        match (&self.own, line) {
            (Some(own), Line::Work) => &own.work,
            (Some(own), Line::Load) => &own.load,
            (Some(own), Line::Watch) => &own.watch,
            _ => &self.pool,
        }
    }

    /// How many transactions of one publisher may be open in the general write lane: one on SQLite,
    /// which has one writer, and a quarter of the connections on PostgreSQL.
    pub(crate) fn writers_a_publisher(&self) -> usize {
        match &self.config {
            DatabaseConfig::Sqlite { .. } => 1,
            DatabaseConfig::Postgres { connections, .. } => {
                usize::try_from(*connections / 4).map_or(1, |share| share.max(1))
            }
        }
    }

    /// The limit for each answer of the database.
    pub(crate) const fn limit(&self) -> Duration {
        self.config.limit()
    }

    /// The connections for scans.
    pub(crate) fn scan(&self) -> &Connections {
        self.scans.as_ref().unwrap_or(&self.pool)
    }

    /// How many steps of SQLite's virtual machine scans took, in multiples of a thousand.
    #[cfg(test)]
    pub(crate) fn scan_steps(&self) -> u64 {
        self.scan_steps.load(Ordering::Relaxed)
    }

    /// How many scans may run at once: on SQLite one for each reader for scans, on PostgreSQL one
    /// for every two connections.
    pub(crate) fn scanners(&self) -> usize {
        let connections = match &self.config {
            DatabaseConfig::Sqlite { .. } => readers::count(),
            DatabaseConfig::Postgres { connections, .. } => connections / 2,
        };
        usize::try_from(connections).unwrap_or(1)
    }

    pub(crate) fn clock(&self) -> &dyn Clock {
        &*self.clock
    }

    /// See [`DatabaseConfig::stop_soon`].
    pub(crate) fn stop_soon(&self) {
        self.config.stop_soon();
    }

    pub(crate) const fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Whether SQLite failed to write within the last `time`.
    pub(crate) fn failed_to_write_within(&self, time: Duration) -> bool {
        let last = *self
            .unwritten
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        last.is_some_and(|at| at.elapsed() < time)
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// How to reach PostgreSQL's notifications, if other processes may listen.
    pub(crate) fn notifies(&self) -> Option<Server> {
        match &self.config {
            DatabaseConfig::Sqlite { .. } => None,
            DatabaseConfig::Postgres { server, .. } => Some((**server).clone()),
        }
    }

    /// A separate connection to SQLite, for checkpoints.
    pub(crate) async fn connect_aside(&self) -> Result<DatabaseConnection> {
        self.config.connect_one().await
    }

    /// Waits until something may have been committed to SQLite since the last call.
    pub(crate) async fn committed(&self) {
        self.committed.notified().await;
    }

    /// How many transactions SQLite may have committed. A commit that failed counts, too.
    pub(crate) fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    pub(crate) fn backend(&self) -> DbBackend {
        self.pool.get_database_backend()
    }

    /// Runs `work` in a transaction of its own and commits it. On an error nothing is changed.
    ///
    /// `work` may run several times: if PostgreSQL aborts a transaction in favour of another, it
    /// runs again. The future must not be dropped before it ends, or nobody learns the result:
    /// callers run it in a task of their own.
    pub(crate) async fn write<T, F, W>(&self, line: Line, work: F) -> Result<Committed<T>>
    where
        F: Fn(Tx) -> W + Sync,
        W: Future<Output = Result<T>> + Send,
    {
        self.write_on(self.line(line), Flush::Commit, work).await
    }

    /// Like [`Db::write`], for removals of expired rows. The commit is not flushed, so the rows may
    /// come back if the machine fails.
    pub(crate) async fn write_unflushed<T, F, W>(&self, line: Line, work: F) -> Result<Committed<T>>
    where
        F: Fn(Tx) -> W + Sync,
        W: Future<Output = Result<T>> + Send,
    {
        self.write_on(self.line(line), Flush::Later, work).await
    }

    /// Like [`Db::write`], on the connection of the write lane, which runs one transaction at a
    /// time.
    pub(crate) async fn write_batch<T, F, W>(&self, work: F) -> Result<Committed<T>>
    where
        F: Fn(Tx) -> W + Sync,
        W: Future<Output = Result<T>> + Send,
    {
        let own = self.own.as_ref().map_or(&self.pool, |own| &own.lane);
        self.write_on(own, Flush::Commit, work).await
    }

    /// Like [`Db::write`], on the connection for outcomes of deliveries, which runs one transaction
    /// at a time.
    pub(crate) async fn write_outcomes<T, F, W>(&self, work: F) -> Result<Committed<T>>
    where
        F: Fn(Tx) -> W + Sync,
        W: Future<Output = Result<T>> + Send,
    {
        let own = self.own.as_ref().map_or(&self.pool, |own| &own.record);
        self.write_on(own, Flush::Commit, work).await
    }

    async fn write_on<T, F, W>(
        &self,
        connections: &Connections,
        flush: Flush,
        work: F,
    ) -> Result<Committed<T>>
    where
        F: Fn(Tx) -> W + Sync,
        W: Future<Output = Result<T>> + Send,
    {
        let _active = self.activity.enter();
        let mut attempt = 0;
        loop {
            let result = if let Some(writer) = &self.writer {
                self.write_sqlite(writer, flush, &work).await
            } else {
                let tx = self.begin(connections).await?;
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

    /// After a failed write, sqlx has a wrong idea of SQLite's connection: a later commit may
    /// report success although nothing was stored. So the connection is replaced after any failure
    /// of the engine, and after a transaction that was cut off.
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
        let waited = timeout(self.limit(), writer.lock()).await;
        let mut writer = waited.map_err(|_| {
            let words = "SQLite's writing connection was not free in time";
            StoreError::Unavailable(words.into())
        })?;
        if writer.open {
            Self::discard(&mut writer);
        }
        if writer.connection.is_none() {
            writer.connection = Some(Connections::Sqlite(self.config.connect_one().await?));
        }
        let Some(connection) = writer.connection.clone() else {
            return Err(StoreError::Internal("the writer has no connection".into()));
        };
        // `synchronous` cannot be set within a transaction, and must be reset after a removal.
        let eased = flush == Flush::Later
            && matches!(self.config, DatabaseConfig::Sqlite { full: true, .. });
        writer.open = true;
        let begin = async {
            if eased {
                let normal = "PRAGMA synchronous = NORMAL";
                connection.execute_unprepared(normal).await?;
            }
            self.begin(&connection).await
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
            let mut unwritten = self
                .unwritten
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            *unwritten = Some(Instant::now());
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

    async fn begin(&self, connections: &Connections) -> Result<Tx> {
        Ok(Arc::new(Transaction {
            inner: connections.begin().await?,
            now: self.now(),
            effects: Mutex::default(),
            member: OnceLock::new(),
        }))
    }

    /// Runs one transaction. The second value tells whether the connection can be used again.
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
                    Err(error) => (Err(uncommitted(error)), false),
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
        let own = self.own.iter().flat_map(Own::all);
        for pool in [&self.pool].into_iter().chain(&self.scans).chain(own) {
            if let Err(error) = pool.close().await {
                tracing::warn!(%error, "the connections did not close cleanly");
            }
        }
    }
}

#[cfg(test)]
mod tests;

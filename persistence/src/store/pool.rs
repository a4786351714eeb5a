//! Connections to PostgreSQL. Each wait for a connection, and each wait for an answer on one, has
//! an end.
//!
//! sqlx's own pool can wait without an end: it pings a connection that comes back before it
//! releases the permit. If the answer never comes (a network path that drops packets sends neither
//! FIN nor RST), the permit is held for as long as the system retransmits, a quarter of an hour. It
//! also reuses a connection whose `begin` was cancelled, on which later writes are lost
//! (docs/adr/0031-every-wait-for-the-database-ends.md). Hence this pool. It has one rule: a
//! connection goes back only if its last answer came in full and did not announce its end. Any
//! other is dropped, which closes its socket at once.

use std::{
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use sea_orm::{
    ConnAcquireErr, DbErr, ExecResult, QueryResult, RuntimeErr, Statement,
    sqlx::{
        self, AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _, PgConnection,
        Postgres, Row as _, postgres::PgConnectOptions, query::Query,
    },
};
use sea_query_sqlx::SqlxValues;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{error::Elapsed, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::store::error::ends_its_connection;

/// How long a caller waits for a permit, and then for a new connection; a shorter limit for answers
/// shortens this, too.
const CHECKOUT_MAX: Duration = Duration::from_secs(5);
/// How long a stopping process waits for a new connection. It writes its remaining changes one
/// after the other, and if the server is gone, each of them must not take the whole wait.
const CONNECT_MAX_STOPPING: Duration = Duration::from_secs(1);
/// The first pause before a new connection is tried again.
const CONNECT_PAUSE: Duration = Duration::from_millis(20);
/// A connection that was idle for longer is pinged before it is used.
const PING_AFTER_IDLE: Duration = Duration::from_secs(5);
/// How long a ping may take.
const PING_MAX: Duration = Duration::from_secs(2);
/// A connection that was idle for longer is dropped: a firewall may have forgotten it.
const IDLE_MAX: Duration = Duration::from_mins(10);
/// No connection is used for longer, so that changes of the server's settings take effect.
const LIFE_MAX: Duration = Duration::from_mins(30);
/// How long closing a session may take.
const GOODBYE: Duration = Duration::from_secs(1);
/// PostgreSQL ends a transaction that is idle for so long, and releases its locks. Our transactions
/// wait for nothing but the store, so their process must be suspended or gone. Another process
/// takes over its work and must not find the rows locked. So this is shorter than
/// [`crate::PROCESS_EXPIRES_AFTER`].
const IDLE_IN_TRANSACTION: Duration = Duration::from_secs(5);

/// When a connection of this process was last found dead. All connections that have been idle since
/// before are replaced: a fault of the network or a change of the server concerns all of them.
#[derive(Clone, Default)]
pub(crate) struct LastFailure(Arc<Mutex<Option<Instant>>>);

impl LastFailure {
    fn record(&self) {
        *lock(&self.0) = Some(Instant::now());
    }

    fn concerns(&self, idle_since: Instant) -> bool {
        lock(&self.0).is_some_and(|at| idle_since <= at)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How to connect to the server, and how long to wait for it.
#[derive(Clone)]
pub(crate) struct Server {
    options: PgConnectOptions,
    /// The limit for one answer.
    limit: Duration,
    last_failure: LastFailure,
    stopping: CancellationToken,
}

impl Server {
    pub(crate) fn new(options: PgConnectOptions, limit: Duration) -> Self {
        Self {
            options,
            limit,
            last_failure: LastFailure::default(),
            stopping: CancellationToken::new(),
        }
    }

    /// From now on a new connection is waited for one second at most, since the process is about to
    /// stop. This also applies to waits that have begun.
    pub(crate) fn stop_soon(&self) {
        self.stopping.cancel();
    }

    pub(crate) const fn options(&self) -> &PgConnectOptions {
        &self.options
    }

    pub(crate) const fn limit(&self) -> Duration {
        self.limit
    }

    fn checkout_max(&self) -> Duration {
        self.limit.min(CHECKOUT_MAX)
    }

    /// The first statements of each session. The server ends a statement 10 % sooner than we give
    /// it up, so that a time-out on our side is a fault of the network. Keepalives let the server
    /// notice that we are gone: a dead session counts against its connection limits. (These are
    /// statements since poolers refuse most start-up parameters.)
    fn greeting(&self) -> String {
        format!(
            "SET statement_timeout = {}; SET idle_in_transaction_session_timeout = {}; \
             SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; \
             SET tcp_keepalives_count = 3; SHOW transaction_read_only",
            statement_limit(self.limit).as_millis(),
            IDLE_IN_TRANSACTION.as_millis(),
        )
    }

    /// Prepares a new session. A read-only one is refused: its server is a standby or a demoted
    /// primary, and new connections will soon reach the new primary.
    pub(crate) async fn greet(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        if self.set_up(connection).await? {
            return Err(read_only());
        }
        Ok(())
    }

    /// Sends the first statements to a new session, and returns whether it is read-only.
    pub(crate) async fn set_up(&self, connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
        let rows = sqlx::raw_sql(AssertSqlSafe(self.greeting())).fetch_all(connection);
        let read_only: String = match rows.await?.last() {
            Some(row) => row.try_get(0)?,
            None => return Err(sqlx::Error::RowNotFound),
        };
        Ok(read_only == "on")
    }

    /// Opens a new connection. While the server refuses connections, this is tried again until the
    /// limit.
    async fn connect(&self) -> Result<PgConnection, sqlx::Error> {
        let over = self.connect_wait_over();
        tokio::pin!(over);
        let mut pause = CONNECT_PAUSE;
        let mut last = late(self.checkout_max(), "a connection");
        loop {
            let attempt = async {
                let mut connection = self.options.connect().await?;
                self.greet(&mut connection).await?;
                Ok(connection)
            };
            tokio::select! {
                () = &mut over => return Err(last),
                attempted = attempt => match attempted {
                    Err(error) if passes(&error) => last = error,
                    done => return done,
                },
            }
            tokio::select! {
                () = &mut over => return Err(last),
                () = tokio::time::sleep(pause) => pause *= 2,
            }
        }
    }

    /// Ends when the limit for a new connection, counted from now, is over.
    async fn connect_wait_over(&self) {
        let begun = tokio::time::Instant::now();
        let stopping = async {
            self.stopping.cancelled().await;
            tokio::time::sleep_until(begun + CONNECT_MAX_STOPPING).await;
        };
        tokio::select! {
            () = tokio::time::sleep_until(begun + self.checkout_max()) => {}
            () = stopping => {}
        }
    }
}

/// The time after which the server itself ends a statement.
fn statement_limit(limit: Duration) -> Duration {
    limit * 9 / 10
}

fn failed(kind: io::ErrorKind, words: String) -> sqlx::Error {
    sqlx::Error::Io(io::Error::new(kind, words))
}

/// The error for a session that is read-only.
pub(crate) fn read_only() -> sqlx::Error {
    failed(
        io::ErrorKind::ReadOnlyFilesystem,
        "the server takes no writes: its sessions are read-only".to_owned(),
    )
}

fn late(limit: Duration, what: &str) -> sqlx::Error {
    let seconds = limit.as_secs_f64();
    failed(
        io::ErrorKind::TimedOut,
        format!("the database did not give {what} within {seconds} s"),
    )
}

/// Whether a server that refused a connection with this error may accept one soon.
fn passes(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(error) => matches!(
            error.kind(),
            io::ErrorKind::ConnectionRefused
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::ConnectionReset
        ),
        // too_many_connections, cannot_connect_now
        sqlx::Error::Database(error) => {
            matches!(error.code().as_deref(), Some("53300" | "57P03"))
        }
        _ => false,
    }
}

struct Idle {
    connection: PgConnection,
    made: Instant,
    since: Instant,
}

struct Shared {
    server: Server,
    size: u32,
    permits: Arc<Semaphore>,
    /// The connection that was used last is used next, so that few connections have most statements
    /// prepared.
    idle: Mutex<Vec<Idle>>,
    /// Whether connections are pinged before every use: with a lost one, a whole batch would fail.
    asked_always: bool,
    closed: AtomicBool,
}

/// A pool of connections to PostgreSQL. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Pool(Arc<Shared>);

impl Pool {
    pub(crate) fn new(server: &Server, size: u32, asked_always: bool) -> Self {
        Self(Arc::new(Shared {
            server: server.clone(),
            size,
            permits: Arc::new(Semaphore::new(usize::try_from(size).unwrap_or(1))),
            idle: Mutex::default(),
            asked_always,
            closed: AtomicBool::new(false),
        }))
    }

    /// The most connections that it opens.
    pub(crate) fn size(&self) -> u32 {
        self.0.size
    }

    /// Opens all connections.
    ///
    /// # Errors
    /// How many there are, and why there are no more.
    pub(crate) async fn fill(&self) -> Result<(), (u32, sqlx::Error)> {
        let mut opening = tokio::task::JoinSet::new();
        for _ in 0..self.0.size {
            let pool = self.clone();
            opening.spawn(async move {
                let permit = Arc::clone(&pool.0.permits).acquire_owned().await;
                let permit = permit.map_err(|_| sqlx::Error::PoolClosed)?;
                let connection = pool.0.server.connect().await?;
                Ok(pool.hold(connection, Instant::now(), permit))
            });
        }
        // No connection goes back before the last was opened.
        let (mut all, mut why) = (Vec::new(), None);
        while let Some(opened) = opening.join_next().await {
            match opened.unwrap_or(Err(sqlx::Error::WorkerCrashed)) {
                Ok(held) => all.push(held),
                Err(error) => why = Some(error),
            }
        }
        let had = u32::try_from(all.len()).unwrap_or(u32::MAX);
        why.map_or(Ok(()), |why| Err((had, why)))
    }

    fn hold(
        &self,
        connection: PgConnection,
        made: Instant,
        permit: OwnedSemaphorePermit,
    ) -> PooledConnection {
        PooledConnection {
            connection: Some(connection),
            made,
            sound: true,
            state: State::Proven,
            open: false,
            failed: false,
            pool: self.clone(),
            _permit: permit,
        }
    }

    /// A connection that is alive as far as this process knows.
    pub(crate) async fn checkout(&self) -> Result<PooledConnection, DbErr> {
        let shared = &self.0;
        let permits = Arc::clone(&shared.permits).acquire_owned();
        let permit = match timeout(shared.server.checkout_max(), permits).await {
            Ok(Ok(permit)) => permit,
            Ok(Err(_)) => return Err(DbErr::ConnectionAcquire(ConnAcquireErr::ConnectionClosed)),
            Err(Elapsed { .. }) => return Err(DbErr::ConnectionAcquire(ConnAcquireErr::Timeout)),
        };
        while let Some(mut idle) = self.pop() {
            let idle_for = idle.since.elapsed();
            if idle_for > IDLE_MAX
                || idle.made.elapsed() > LIFE_MAX
                || shared.server.last_failure.concerns(idle.since)
            {
                continue;
            }
            if shared.asked_always || idle_for > PING_AFTER_IDLE {
                let ping = timeout(PING_MAX.min(shared.server.limit), idle.connection.ping());
                if !matches!(ping.await, Ok(Ok(()))) {
                    shared.server.last_failure.record();
                    continue;
                }
            }
            let mut held = self.hold(idle.connection, idle.made, permit);
            held.state = State::Idle;
            return Ok(held);
        }
        let connection = shared.server.connect().await;
        let connection =
            connection.map_err(|error| DbErr::Conn(RuntimeErr::SqlxError(error.into())))?;
        Ok(self.hold(connection, Instant::now(), permit))
    }

    fn pop(&self) -> Option<Idle> {
        lock(&self.0.idle).pop()
    }

    /// Ends the idle sessions. Connections in use are closed when they come back.
    pub(crate) async fn close(&self) {
        self.0.closed.store(true, Ordering::SeqCst);
        self.0.permits.close();
        let idle = std::mem::take(&mut *lock(&self.0.idle));
        let goodbyes = async {
            for one in idle {
                // A dead connection is closed either way.
                let _ = one.connection.close().await;
            }
        };
        let _ = timeout(GOODBYE, goodbyes).await;
    }
}

/// Whether a connection is known to be alive.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// It is new, or has answered since it was taken.
    Proven,
    /// It was idle, and has not answered since.
    Idle,
    /// It was idle, and had been closed by the server.
    EndedIdle,
}

/// A connection in use.
pub(crate) struct PooledConnection {
    connection: Option<PgConnection>,
    made: Instant,
    /// Whether the last answer came in full and did not announce the connection's end.
    sound: bool,
    state: State,
    /// Whether a transaction is open, and whether a statement has failed in it.
    open: bool,
    failed: bool,
    pool: Pool,
    _permit: OwnedSemaphorePermit,
}

impl Drop for PooledConnection {
    fn drop(&mut self) {
        let shared = &self.pool.0;
        if let Some(connection) = self.connection.take()
            && self.sound
            && !self.open
            && !shared.closed.load(Ordering::SeqCst)
        {
            lock(&shared.idle).push(Idle {
                connection,
                made: self.made,
                since: Instant::now(),
            });
        }
    }
}

impl PooledConnection {
    /// The connection, for one request. It counts as broken until [`PooledConnection::came`] is
    /// called, so that a caller that is cancelled in between drops it.
    fn ask(&mut self) -> Result<&mut PgConnection, sqlx::Error> {
        self.sound = false;
        let gone = || failed(io::ErrorKind::NotConnected, "no connection".to_owned());
        self.connection.as_mut().ok_or_else(gone)
    }

    /// Takes in the answer, or that none came in time.
    fn came<T>(
        &mut self,
        limit: Duration,
        answer: Result<Result<T, sqlx::Error>, Elapsed>,
    ) -> Result<T, sqlx::Error> {
        let result = answer.unwrap_or_else(|_| Err(late(limit, "an answer")));
        self.sound = match &result {
            Ok(_) | Err(sqlx::Error::RowNotFound) => true,
            Err(sqlx::Error::Database(error)) => {
                !ends_its_connection(&error.code().unwrap_or_default())
            }
            Err(_) => false,
        };
        self.failed |= matches!(result, Err(sqlx::Error::Database(_)));
        let ended = match &result {
            Err(sqlx::Error::Io(error)) => error.kind() != io::ErrorKind::TimedOut,
            Err(sqlx::Error::Database(_)) => !self.sound,
            _ => false,
        };
        self.state = match self.state {
            State::Idle if ended => State::EndedIdle,
            _ => State::Proven,
        };
        if !self.sound {
            let all = matches!(
                result,
                Err(sqlx::Error::Database(_)
                    | sqlx::Error::Io(_)
                    | sqlx::Error::Tls(_)
                    | sqlx::Error::Protocol(_))
            );
            if all {
                self.pool.0.server.last_failure.record();
            }
            self.connection = None;
        }
        result
    }

    /// Whether it had been closed while it was idle. All connections that were idle then are
    /// replaced, so a read may be repeated on another one.
    pub(crate) const fn ended_idle(&self) -> bool {
        matches!(self.state, State::EndedIdle)
    }

    pub(crate) async fn begin(&mut self) -> Result<(), DbErr> {
        self.failed = false;
        self.execute_unprepared("BEGIN").await?;
        self.open = true;
        Ok(())
    }

    /// Commits. After an error it is unknown whether the changes were committed, unless a statement
    /// had failed: then the transaction is rolled back, since PostgreSQL would answer a commit of
    /// it with success.
    pub(crate) async fn commit(mut self) -> Result<(), DbErr> {
        if self.failed {
            self.rollback().await?;
            let words = "a statement of the transaction had failed".to_owned();
            return Err(DbErr::Custom(words));
        }
        self.execute_unprepared("COMMIT").await?;
        self.open = false;
        Ok(())
    }

    pub(crate) async fn rollback(mut self) -> Result<(), DbErr> {
        self.execute_unprepared("ROLLBACK").await?;
        self.open = false;
        Ok(())
    }

    /// Runs a statement under another limit. It runs in a transaction, so that a pooler does not
    /// carry the setting over to another session.
    pub(crate) async fn long(mut self, sql: &str, limit: Duration) -> Result<(), DbErr> {
        let server = statement_limit(limit).as_millis();
        self.begin().await?;
        self.execute_unprepared(&format!("SET LOCAL statement_timeout = {server}"))
            .await?;
        self.unprepared(sql, limit).await?;
        self.commit().await
    }

    async fn unprepared(&mut self, sql: &str, limit: Duration) -> Result<ExecResult, DbErr> {
        let asked = self.ask().map_err(exec)?;
        let answer = timeout(limit, asked.execute(AssertSqlSafe(sql.to_owned()))).await;
        self.came(limit, answer).map(Into::into).map_err(exec)
    }

    pub(crate) async fn execute_unprepared(&mut self, sql: &str) -> Result<ExecResult, DbErr> {
        self.unprepared(sql, self.pool.0.server.limit).await
    }

    pub(crate) async fn execute(&mut self, statement: Statement) -> Result<ExecResult, DbErr> {
        let (sql, values) = parts(statement);
        let limit = self.pool.0.server.limit;
        let asked = self.ask().map_err(exec)?;
        let answer = timeout(limit, prepared(&sql, values).execute(asked)).await;
        self.came(limit, answer).map(Into::into).map_err(exec)
    }

    pub(crate) async fn one(&mut self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        let (sql, values) = parts(statement);
        let limit = self.pool.0.server.limit;
        let asked = self.ask().map_err(query)?;
        let answer = timeout(limit, prepared(&sql, values).fetch_one(asked)).await;
        match self.came(limit, answer) {
            Ok(row) => Ok(Some(row.into())),
            Err(sqlx::Error::RowNotFound) => Ok(None),
            Err(error) => Err(query(error)),
        }
    }

    pub(crate) async fn all(&mut self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        let (sql, values) = parts(statement);
        let limit = self.pool.0.server.limit;
        let asked = self.ask().map_err(query)?;
        let answer = timeout(limit, prepared(&sql, values).fetch_all(asked)).await;
        let rows = self.came(limit, answer).map_err(query)?;
        Ok(rows.into_iter().map(Into::into).collect())
    }
}

fn exec(error: sqlx::Error) -> DbErr {
    DbErr::Exec(RuntimeErr::SqlxError(error.into()))
}

fn query(error: sqlx::Error) -> DbErr {
    DbErr::Query(RuntimeErr::SqlxError(error.into()))
}

fn parts(statement: Statement) -> (String, SqlxValues) {
    let values = statement.values.unwrap_or(sea_orm::Values(Vec::new()));
    (statement.sql, SqlxValues(values))
}

fn prepared(sql: &str, values: SqlxValues) -> Query<'_, Postgres, SqlxValues> {
    sqlx::query_with(AssertSqlSafe(sql), values)
}

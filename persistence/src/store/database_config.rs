//! Where the data is and how to connect to it, for both engines.

use std::{str::FromStr as _, time::Duration};

use sea_orm::{
    DatabaseConnection, DbErr,
    sqlx::{
        ConnectOptions as _,
        postgres::{PgConnectOptions, PgPoolOptions},
        sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
    },
};

use crate::store::{
    error::{Result, StoreError},
    pool::Server,
};

/// How long a caller waits for one of SQLite's connections; a shorter limit for answers shortens
/// this, too.
pub(crate) const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// The default limit for each answer of the database.
const WAIT: Duration = Duration::from_secs(10);
/// Prepared statements that a connection keeps. Some statements exist in sixteen lengths.
const STATEMENTS_KEPT: usize = 200;
/// SQLite's page cache for each connection; a negative number is in KiB.
const SQLITE_CACHE_KIB: &str = "-16384";
/// How much of the file SQLite may map, bytes.
const SQLITE_MMAP_BYTES: &str = "268435456";

/// Pages of the WAL (32 MiB) at which the commit itself writes them back. A writer that never
/// pauses leaves no moment in which all is written back and the WAL can restart.
const LOG_PAGES_MAX: &str = "8000";

/// Where the data is, and the options of its connections.
#[derive(Clone)]
pub(crate) enum DatabaseConfig {
    Sqlite {
        options: Box<SqliteConnectOptions>,
        /// Whether a commit waits for the disk.
        full: bool,
        limit: Duration,
    },
    Postgres {
        server: Box<Server>,
        connections: u32,
    },
}

impl DatabaseConfig {
    /// Parses a `sqlite://…` or `postgres://…` URL.
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
                .pragma("wal_autocheckpoint", LOG_PAGES_MAX)
                .statement_cache_capacity(STATEMENTS_KEPT)
                .disable_statement_logging();
            return Ok(Self::Sqlite {
                options: Box::new(options),
                full: synchronous_full,
                limit: WAIT,
            });
        }
        let options = PgConnectOptions::from_str(url)
            .map_err(wrong)?
            .application_name("stationmaster")
            // Poolers refuse this parameter, and the default is as precise since PostgreSQL 12.
            .extra_float_digits(None)
            .statement_cache_capacity(STATEMENTS_KEPT)
            .disable_statement_logging();
        Ok(Self::Postgres {
            server: Box::new(Server::new(options, WAIT)),
            connections,
        })
    }

    /// The same with another limit for each answer of the database.
    pub(crate) fn within(self, limit: Duration) -> Self {
        match self {
            Self::Sqlite { options, full, .. } => Self::Sqlite {
                options: Box::new(options.busy_timeout(limit.min(ACQUIRE_TIMEOUT))),
                full,
                limit,
            },
            Self::Postgres {
                server,
                connections,
            } => Self::Postgres {
                server: Box::new(Server::new(server.options().clone(), limit)),
                connections,
            },
        }
    }

    /// The limit for each answer of the database.
    pub(crate) const fn limit(&self) -> Duration {
        match self {
            Self::Sqlite { limit, .. } => *limit,
            Self::Postgres { server, .. } => server.limit(),
        }
    }

    /// Limits waiting to a second or less from now on, since the process is about to stop.
    pub(crate) fn stop_soon(&self) {
        if let Self::Postgres { server, .. } = self {
            server.stop_soon();
        }
    }

    /// Opens one connection, for migrations and for SQLite's writer.
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
            Self::Postgres { server, .. } => {
                let greeter = server.clone();
                PgPoolOptions::new()
                    .max_connections(1)
                    .acquire_timeout(ACQUIRE_TIMEOUT)
                    .after_connect(move |connection, _| {
                        let server = greeter.clone();
                        Box::pin(async move { server.greet(connection).await })
                    })
                    .connect_with(server.options().clone())
                    .await
                    .map(DatabaseConnection::from)
                    .map_err(unavailable)
            }
        }
    }
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "the shape that map_err takes"
)]
pub(crate) fn unavailable(error: sea_orm::sqlx::Error) -> StoreError {
    StoreError::Unavailable(error.to_string())
}

//! A common interface to both engines' connections.

use std::{pin::Pin, time::Duration};

use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, ExecResult,
    QueryResult, SqliteTransactionMode, Statement, TransactionOptions, TransactionTrait as _,
};
use tokio::sync::Mutex;

use crate::store::pool::{Pool, PooledConnection};

/// Connections, of which each statement takes one.
#[derive(Clone)]
pub(crate) enum Connections {
    Sqlite(DatabaseConnection),
    Postgres(Pool),
}

/// One connection with an open transaction.
pub(crate) enum Work {
    Sqlite(DatabaseTransaction),
    Postgres(Mutex<PooledConnection>),
}

impl Connections {
    /// Opens a transaction. The future must not be dropped before it ends: if `begin` is cancelled,
    /// sqlx 0.9.0 takes SQLite's connection for one without a transaction.
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that opens transactions"
    )]
    pub(crate) async fn begin(&self) -> Result<Work, DbErr> {
        match self {
            Self::Sqlite(pool) => {
                let options = TransactionOptions {
                    sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
                    ..Default::default()
                };
                Ok(Work::Sqlite(pool.begin_with_options(options).await?))
            }
            Self::Postgres(pool) => {
                let mut held = pool.checkout().await?;
                let mut begun = held.begin().await;
                if begun.is_err() && held.ended_idle() {
                    // Release the connection first: it may be the only one.
                    drop(held);
                    held = pool.checkout().await?;
                    begun = held.begin().await;
                }
                begun?;
                Ok(Work::Postgres(Mutex::new(held)))
            }
        }
    }

    /// Runs a statement that may take longer than others. PostgreSQL only.
    pub(crate) async fn execute_long(&self, sql: &str, limit: Duration) -> Result<(), DbErr> {
        match self {
            Self::Sqlite(pool) => pool.execute_unprepared(sql).await.map(|_| ()),
            Self::Postgres(pool) => pool.checkout().await?.long(sql, limit).await,
        }
    }

    pub(crate) async fn close(&self) -> Result<(), DbErr> {
        match self {
            Self::Sqlite(pool) => pool.clone().close().await,
            Self::Postgres(pool) => {
                pool.close().await;
                Ok(())
            }
        }
    }
}

impl Work {
    /// Commits the transaction. After an error it is unknown whether it was committed.
    pub(crate) async fn commit(self) -> Result<(), DbErr> {
        match self {
            Self::Sqlite(open) => open.commit().await,
            Self::Postgres(held) => held.into_inner().commit().await,
        }
    }

    /// Rolls the transaction back.
    pub(crate) async fn rollback(self) -> Result<(), DbErr> {
        match self {
            Self::Sqlite(open) => open.rollback().await,
            Self::Postgres(held) => held.into_inner().rollback().await,
        }
    }
}

/// Whether a statement changes nothing, and so may be sent twice.
fn reads(statement: &Statement) -> bool {
    statement.sql.starts_with("SELECT ")
}

type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, DbErr>> + Send + 'a>>;

/// Written by hand: `async_trait` would box each future once more than the engine does.
impl ConnectionTrait for Connections {
    fn get_database_backend(&self) -> DbBackend {
        match self {
            Self::Sqlite(_) => DbBackend::Sqlite,
            Self::Postgres(_) => DbBackend::Postgres,
        }
    }

    fn execute_raw<'a: 'r, 'r>(&'a self, statement: Statement) -> Answer<'r, ExecResult> {
        match self {
            Self::Sqlite(pool) => pool.execute_raw(statement),
            Self::Postgres(pool) => {
                Box::pin(async move { pool.checkout().await?.execute(statement).await })
            }
        }
    }

    fn execute_unprepared<'a: 'r, 'b: 'r, 'r>(&'a self, sql: &'b str) -> Answer<'r, ExecResult> {
        match self {
            Self::Sqlite(pool) => pool.execute_unprepared(sql),
            Self::Postgres(pool) => {
                Box::pin(async move { pool.checkout().await?.execute_unprepared(sql).await })
            }
        }
    }

    fn query_one_raw<'a: 'r, 'r>(&'a self, query: Statement) -> Answer<'r, Option<QueryResult>> {
        match self {
            Self::Sqlite(pool) => pool.query_one_raw(query),
            Self::Postgres(pool) => Box::pin(async move {
                let mut held = pool.checkout().await?;
                match held.one(query.clone()).await {
                    Err(_) if held.ended_idle() && reads(&query) => {
                        drop(held);
                        pool.checkout().await?.one(query).await
                    }
                    done => done,
                }
            }),
        }
    }

    fn query_all_raw<'a: 'r, 'r>(&'a self, query: Statement) -> Answer<'r, Vec<QueryResult>> {
        match self {
            Self::Sqlite(pool) => pool.query_all_raw(query),
            Self::Postgres(pool) => Box::pin(async move {
                let mut held = pool.checkout().await?;
                match held.all(query.clone()).await {
                    Err(_) if held.ended_idle() && reads(&query) => {
                        drop(held);
                        pool.checkout().await?.all(query).await
                    }
                    done => done,
                }
            }),
        }
    }
}

impl ConnectionTrait for Work {
    fn get_database_backend(&self) -> DbBackend {
        match self {
            Self::Sqlite(_) => DbBackend::Sqlite,
            Self::Postgres(_) => DbBackend::Postgres,
        }
    }

    fn execute_raw<'a: 'r, 'r>(&'a self, statement: Statement) -> Answer<'r, ExecResult> {
        match self {
            Self::Sqlite(open) => open.execute_raw(statement),
            Self::Postgres(held) => {
                Box::pin(async move { held.lock().await.execute(statement).await })
            }
        }
    }

    fn execute_unprepared<'a: 'r, 'b: 'r, 'r>(&'a self, sql: &'b str) -> Answer<'r, ExecResult> {
        match self {
            Self::Sqlite(open) => open.execute_unprepared(sql),
            Self::Postgres(held) => {
                Box::pin(async move { held.lock().await.execute_unprepared(sql).await })
            }
        }
    }

    fn query_one_raw<'a: 'r, 'r>(&'a self, query: Statement) -> Answer<'r, Option<QueryResult>> {
        match self {
            Self::Sqlite(open) => open.query_one_raw(query),
            Self::Postgres(held) => Box::pin(async move { held.lock().await.one(query).await }),
        }
    }

    fn query_all_raw<'a: 'r, 'r>(&'a self, query: Statement) -> Answer<'r, Vec<QueryResult>> {
        match self {
            Self::Sqlite(open) => open.query_all_raw(query),
            Self::Postgres(held) => Box::pin(async move { held.lock().await.all(query).await }),
        }
    }
}

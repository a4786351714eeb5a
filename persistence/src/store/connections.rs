//! The two engines behind one face: what statements run on.

use std::{pin::Pin, time::Duration};

use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, ExecResult,
    QueryResult, SqliteTransactionMode, Statement, TransactionOptions, TransactionTrait as _,
};
use tokio::sync::Mutex;

use crate::store::pool::{Pool, PooledConnection};

/// Some connections, of which each statement takes one.
#[derive(Clone)]
pub(crate) enum Connections {
    Sqlite(DatabaseConnection),
    Postgres(Pool),
}

/// One connection, on which a transaction is open.
pub(crate) enum Work {
    Sqlite(DatabaseTransaction),
    Postgres(Mutex<PooledConnection>),
}

impl Connections {
    /// Opens a transaction. The answer must not be dropped half-way: `begin` cancelled, sqlx 0.9.0
    /// takes SQLite's connection for one without a transaction.
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
                    // First its place: it may be the only one.
                    drop(held);
                    held = pool.checkout().await?;
                    begun = held.begin().await;
                }
                begun?;
                Ok(Work::Postgres(Mutex::new(held)))
            }
        }
    }

    /// A statement of PostgreSQL's that may take longer than others.
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
    /// Makes the transaction's changes stand. After a failure it is not known whether they do.
    pub(crate) async fn commit(self) -> Result<(), DbErr> {
        match self {
            Self::Sqlite(open) => open.commit().await,
            Self::Postgres(held) => held.into_inner().commit().await,
        }
    }

    /// Takes the transaction's changes back.
    pub(crate) async fn rollback(self) -> Result<(), DbErr> {
        match self {
            Self::Sqlite(open) => open.rollback().await,
            Self::Postgres(held) => held.into_inner().rollback().await,
        }
    }
}

/// Whether a statement changes nothing, and so may be asked twice.
fn reads(statement: &Statement) -> bool {
    statement.sql.starts_with("SELECT ")
}

type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, DbErr>> + Send + 'a>>;

/// Written out rather than with `async_trait`, whose box the engine's own would come on top of.
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

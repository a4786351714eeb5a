//! What a store call can answer besides its result.

use std::sync::Arc;

use domain::{Code, Problem, id::PipelineId, pipeline::Definition};
use sea_orm::{DbErr, RuntimeErr, sqlx};

/// A version of a pipeline. It never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptVersion {
    /// Of which pipeline.
    pub pipeline: PipelineId,
    /// Which version.
    pub version: i64,
    /// What the pipeline was then.
    pub definition: Arc<Definition>,
}

/// Why a store call did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The caller asked for something that can't be; nothing was changed.
    #[error(transparent)]
    Refused(#[from] Problem),
    /// The store can't be reached or can't write; nothing acknowledged was lost.
    #[error("the store is not available: {0}")]
    Unavailable(String),
    /// The store never said whether it made the change: it may have.
    #[error("the store did not say whether the change was made: {0}")]
    Uncertain(String),
    /// The engine gave up this transaction in favour of another; it is run again.
    #[error("the transaction lost against another one: {0}")]
    Conflict(String),
    /// The decision was made by another version of the pipeline than the one that it has now;
    /// nothing was changed.
    #[error("the pipeline has another version by now")]
    VersionChanged(Box<KeptVersion>),
    /// A defect of ours, or a damaged store.
    #[error("the store failed: {0}")]
    Internal(String),
}

impl StoreError {
    /// Whether the same may work later: the fault is neither the caller's nor a defect. After
    /// [`StoreError::Uncertain`] it may have been done already.
    #[must_use]
    pub const fn may_pass(&self) -> bool {
        match self {
            Self::Unavailable(_)
            | Self::Uncertain(_)
            | Self::Conflict(_)
            | Self::VersionChanged(_) => true,
            Self::Refused(_) | Self::Internal(_) => false,
        }
    }
}

impl From<Code> for StoreError {
    fn from(code: Code) -> Self {
        Self::Refused(code.into())
    }
}

impl From<StoreError> for Problem {
    /// As a caller meets it. What is no refusal is logged here, since the caller does not learn
    /// its cause.
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Refused(problem) => problem,
            StoreError::Unavailable(_)
            | StoreError::Conflict(_)
            | StoreError::VersionChanged(_) => {
                tracing::warn!(%error, "the store did not do what it was asked");
                let detail = "The store is not available; nothing was changed.";
                Self::new(Code::StoreUnavailable, detail).retry_after(1)
            }
            StoreError::Uncertain(_) => {
                tracing::warn!(%error, "the store did not say whether it did what it was asked");
                let detail = "The connection to the store was lost before it confirmed the change, \
                              which may have been made. Look, or repeat the request with its \
                              `Idempotency-Key`.";
                Self::new(Code::StoreUnavailable, detail).retry_after(1)
            }
            StoreError::Internal(_) => {
                tracing::error!(%error, "the store failed");
                Code::Internal.into()
            }
        }
    }
}

impl From<DbErr> for StoreError {
    fn from(error: DbErr) -> Self {
        let text = error.to_string();
        match &error {
            DbErr::ConnectionAcquire(_) => Self::Unavailable(text),
            DbErr::Conn(cause) | DbErr::Exec(cause) | DbErr::Query(cause) => classify(cause, text),
            _ => Self::Internal(text),
        }
    }
}

fn classify(cause: &RuntimeErr, text: String) -> StoreError {
    let RuntimeErr::SqlxError(cause) = cause else {
        return StoreError::Internal(text);
    };
    match &**cause {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed
        | sqlx::Error::Protocol(_) => StoreError::Unavailable(text),
        sqlx::Error::Database(database) => {
            let code = database.code().unwrap_or_default();
            let sqlite = database
                .try_downcast_ref::<sqlx::sqlite::SqliteError>()
                .is_some();
            if sqlite {
                classify_sqlite(&code, text)
            } else {
                classify_postgres(&code, text)
            }
        }
        _ => StoreError::Internal(text),
    }
}

/// SQLite result codes (sqlite.org/rescode.html); the primary code is the low byte.
fn classify_sqlite(code: &str, text: String) -> StoreError {
    match code.parse::<i32>().unwrap_or(0) & 0xff {
        // BUSY, LOCKED, NOMEM, READONLY, INTERRUPT (out of time), IOERR, FULL, CANTOPEN, PROTOCOL
        5 | 6 | 7 | 8 | 9 | 10 | 13 | 14 | 15 => StoreError::Unavailable(text),
        _ => StoreError::Internal(text),
    }
}

/// What a commit that failed means. Without an answer from the engine it may have been made.
pub(crate) fn uncommitted(error: DbErr) -> StoreError {
    let answered = match &error {
        DbErr::Exec(RuntimeErr::SqlxError(cause))
        | DbErr::Query(RuntimeErr::SqlxError(cause))
        | DbErr::Conn(RuntimeErr::SqlxError(cause)) => match &**cause {
            sqlx::Error::Database(error) => !ends_its_connection(&error.code().unwrap_or_default()),
            _ => false,
        },
        _ => true,
    };
    match StoreError::from(error) {
        StoreError::Unavailable(text) if !answered => StoreError::Uncertain(text),
        other => other,
    }
}

/// Whether a PostgreSQL session is over, or of no more use, once it has answered so: it is
/// read-only, in a transaction that is none of ours or that the server has ended, or about to be
/// closed by the server.
pub(crate) fn ends_its_connection(code: &str) -> bool {
    // read_only_sql_transaction, in_failed_sql_transaction, idle_in_transaction_session_timeout,
    // idle_session_timeout
    matches!(code, "25006" | "25P02" | "25P03" | "57P05")
        // admin_shutdown, crash_shutdown, cannot_connect_now, database_dropped
        || matches!(code, "57P01" | "57P02" | "57P03" | "57P04")
        // connection exceptions
        || code.starts_with("08")
}

/// SQLSTATE classes (PostgreSQL manual, appendix A).
fn classify_postgres(code: &str, text: String) -> StoreError {
    match code {
        // serialization_failure, deadlock_detected
        "40001" | "40P01" => StoreError::Conflict(text),
        // read_only_sql_transaction, idle_in_transaction_session_timeout, query_canceled
        // (statement timeout), lock_not_available
        "25006" | "25P03" | "57014" | "55P03" => StoreError::Unavailable(text),
        // connection exception, insufficient resources, operator intervention, system error
        _ if ["08", "53", "57", "58"]
            .iter()
            .any(|class| code.starts_with(class)) =>
        {
            StoreError::Unavailable(text)
        }
        _ => StoreError::Internal(text),
    }
}

/// Shorthand of this crate.
pub(crate) type Result<T, E = StoreError> = std::result::Result<T, E>;

/// A stored text that only we write does not parse: the store is damaged.
pub(crate) fn damaged(what: &str) -> StoreError {
    StoreError::Internal(format!("a stored {what} does not parse"))
}

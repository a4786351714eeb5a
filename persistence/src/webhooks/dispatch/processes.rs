//! Living processes: each has a row, which it renews.

use std::time::Duration;

use domain::Timestamp;
use sea_orm::{
    ActiveValue::Set, ColumnTrait as _, ConnectionTrait as _, DbBackend, EntityTrait as _,
    QueryFilter as _, QueryOrder as _, QuerySelect as _, sea_query::Expr,
};
use uuid::Uuid;

use crate::{
    store::{
        System,
        entity::processes,
        error::{Result, StoreError},
    },
    webhooks::Webhooks,
};

/// How long a process counts as alive after its last renewal. Longer than clocks may differ.
pub const PROCESS_EXPIRES_AFTER: Duration = Duration::from_secs(8);
/// How long rows of processes stay that ended without saying so.
const KEPT: Duration = Duration::from_hours(1);

/// A registration of this process. If it is renewed too late, it is over for good, and the process
/// registers again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProcessId(pub(super) Uuid);

/// The result of a renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewed {
    /// The registration holds, for [`PROCESS_EXPIRES_AFTER`] from the beginning of the renewal.
    Alive {
        /// When the first of the other processes counts as dead unless it renews.
        next_expiry: Option<Timestamp>,
    },
    /// The renewal came too late: another process may hold this process's endpoints.
    Expired,
}

impl Webhooks<System> {
    /// Registers this process, so that it may hold leases for [`PROCESS_EXPIRES_AFTER`] from now
    /// on.
    pub async fn register_process(&self) -> Result<ProcessId, StoreError> {
        let id = Uuid::from_bytes(domain::random::bytes());
        self.store
            .write(|tx| async move {
                processes::Entity::delete_many()
                    .filter(processes::Column::ExpiresAt.lt(tx.now.minus(KEPT).ms()))
                    .exec(tx.db())
                    .await?;
                let row = processes::ActiveModel {
                    id: Set(id),
                    started_at: Set(tx.now.ms()),
                    heartbeat_at: Set(tx.now.ms()),
                    expires_at: Set(tx.now.plus(PROCESS_EXPIRES_AFTER).ms()),
                };
                processes::Entity::insert(row)
                    .exec_without_returning(tx.db())
                    .await?;
                Ok(())
            })
            .await?;
        Ok(ProcessId(id))
    }

    /// Renews a registration.
    pub async fn renew_process(&self, process: ProcessId) -> Result<Renewed, StoreError> {
        use processes::Column;
        let renewed = self
            .store
            .write(|tx| async move {
                let done = processes::Entity::update_many()
                    .col_expr(Column::HeartbeatAt, Expr::value(tx.now.ms()))
                    .col_expr(
                        Column::ExpiresAt,
                        Expr::value(tx.now.plus(PROCESS_EXPIRES_AFTER).ms()),
                    )
                    .filter(Column::Id.eq(process.0))
                    .filter(Column::ExpiresAt.gt(tx.now.ms()))
                    .exec(tx.db())
                    .await?;
                Ok(done.rows_affected > 0)
            })
            .await?;
        if !renewed {
            return Ok(Renewed::Expired);
        }
        let next: Option<i64> = processes::Entity::find()
            .select_only()
            .column(Column::ExpiresAt)
            .filter(Column::Id.ne(process.0))
            .filter(Column::ExpiresAt.gt(self.store.now().ms()))
            .order_by_asc(Column::ExpiresAt)
            .into_tuple()
            .one(self.store.read())
            .await?;
        Ok(Renewed::Alive {
            next_expiry: next.map(Timestamp::from_ms),
        })
    }

    /// Ends a registration. Everything that the process holds is free at once.
    pub async fn end_process(&self, process: ProcessId) -> Result<(), StoreError> {
        self.store
            .write(|tx| async move {
                processes::Entity::delete_by_id(process.0)
                    .exec(tx.db())
                    .await?;
                Ok(())
            })
            .await
    }

    /// Frees everything that an earlier process held. Only for a process that has the store to
    /// itself and has not registered yet. On PostgreSQL, where other processes may run, it does
    /// nothing: registrations expire.
    pub async fn release_leases(&self) -> Result<(), StoreError> {
        if self.store.backend() != DbBackend::Sqlite {
            return Ok(());
        }
        self.store
            .write(|tx| async move {
                tx.db().execute_unprepared("DELETE FROM processes").await?;
                crate::trains::refresh::release_all(&tx).await
            })
            .await
    }
}

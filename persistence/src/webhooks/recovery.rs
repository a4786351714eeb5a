//! Sends pending deliveries now, since the publisher says that its receiver works again.
//!
//! Two things can delay a delivery: its due time, which is in its row, and a pause that the process
//! holding the endpoint keeps, because the receiver asked for it or the circuit breaker is open.
//! Both end here. The process that holds the endpoint is notified after the commit. A process that
//! takes the endpoint later finds no pause in the lease.

use sea_orm::{
    ColumnTrait as _, ConnectionTrait as _, EntityTrait as _, QueryFilter as _, sea_query::Expr,
};
use uuid::Uuid;

use crate::{
    store::{db::Tx, entity::deliveries, error::Result, sql::Sql},
    webhooks::health::forget_failures,
};

/// Ends the pauses of an endpoint, so that due deliveries are sent.
pub(crate) async fn resume(tx: &Tx, owner: Uuid, endpoint: Uuid) -> Result<()> {
    let mut sql = Sql::new("UPDATE dispatch_leases SET failures = 0, probe_at = NULL");
    sql.push(" WHERE publisher_id = ").bind(owner);
    sql.push(" AND endpoint_id = ").bind(endpoint);
    let statement = sql.statement(tx.db().get_database_backend());
    tx.db().execute_raw(statement).await?;
    tx.resumes(owner, endpoint);
    Ok(())
}

/// Makes deliveries due now that wait for a later attempt: all of an endpoint's, or only those of
/// some events. Returns how many.
pub(crate) async fn make_due(
    tx: &Tx,
    owner: Uuid,
    endpoint: Uuid,
    events: Option<&[Uuid]>,
) -> Result<u64> {
    use deliveries::Column;
    let mut waiting = deliveries::Entity::update_many()
        .col_expr(Column::NextAttemptAt, Expr::value(tx.now.ms()))
        .filter(Column::PublisherId.eq(owner))
        .filter(Column::EndpointId.eq(endpoint))
        .filter(Column::Status.eq("pending"))
        .filter(Column::NextAttemptAt.gt(tx.now.ms()));
    if let Some(events) = events {
        waiting = waiting.filter(Column::EventId.is_in(events.iter().copied()));
    }
    Ok(waiting.exec(tx.db()).await?.rows_affected)
}

/// Treats an endpoint as if it had never failed, and makes its waiting deliveries due. Returns how
/// many waited for a later attempt.
pub(crate) async fn recover(tx: &Tx, owner: Uuid, endpoint: Uuid) -> Result<u64> {
    forget_failures(tx, owner, endpoint).await?;
    let waited = make_due(tx, owner, endpoint, None).await?;
    resume(tx, owner, endpoint).await?;
    Ok(waited)
}

//! What waits for a receiver goes out now, since its publisher says that the receiver works again.
//!
//! Two things hold a delivery back: its own time, which stands in its row, and what the process
//! that holds its endpoint has learned from failures: a pause that the receiver asked for, or that
//! the breaker keeps. Both end here. Whoever holds the endpoint hears of it after the commit;
//! whoever takes it later finds nothing left of the pause in the lease.

use sea_orm::{
    ColumnTrait as _, ConnectionTrait as _, EntityTrait as _, QueryFilter as _, sea_query::Expr,
};
use uuid::Uuid;

use crate::{
    store::{db::Tx, entity::deliveries, error::Result, sql::Sql},
    webhooks::health::forget_failures,
};

/// Lets an endpoint's deliveries go out that are due, whatever its receiver did before.
pub(crate) async fn resume(tx: &Tx, owner: Uuid, endpoint: Uuid) -> Result<()> {
    let mut sql = Sql::new("UPDATE dispatch_leases SET failures = 0, probe_at = NULL");
    sql.push(" WHERE publisher_id = ").bind(owner);
    sql.push(" AND endpoint_id = ").bind(endpoint);
    let statement = sql.statement(tx.db().get_database_backend());
    tx.db().execute_raw(statement).await?;
    tx.resumes(owner, endpoint);
    Ok(())
}

/// Makes due now what waits for a later try: all of an endpoint's deliveries, or only those of
/// some events. Answers how many there were.
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

/// Lets an endpoint's deliveries flow again, as if it had never failed. Answers how many of them
/// waited for a later try.
pub(crate) async fn recover(tx: &Tx, owner: Uuid, endpoint: Uuid) -> Result<u64> {
    forget_failures(tx, owner, endpoint).await?;
    let waited = make_due(tx, owner, endpoint, None).await?;
    resume(tx, owner, endpoint).await?;
    Ok(waited)
}

//! What waits for a receiver goes out now, since its publisher says that the receiver works again.
//!
//! Two things hold a delivery back: its own time, which stands in its row, and what the process
//! that holds its endpoint has learned from failures: a pause that the receiver asked for, or that
//! the breaker keeps. Both end here. Whoever holds the endpoint hears of it after the commit;
//! whoever takes it later finds nothing left of the pause in the lease.

use domain::{audit::Action, id::EndpointId};
use sea_orm::{
    ColumnTrait as _, ConnectionTrait as _, EntityTrait as _, QueryFilter as _, sea_query::Expr,
};
use serde_json::json;
use uuid::Uuid;

use crate::{
    store::{
        Scoped,
        change::{Answer, Audited, Context, entry},
        db::Tx,
        entity::deliveries,
        error::{Result, StoreError},
        sql::Sql,
    },
    webhooks::{
        endpoint_rows::live_row,
        endpoints::{Endpoint, EndpointPatch, change},
        health::forget_failures,
        replays::{NewReplay, Replay, start_in},
    },
};

/// An endpoint that was enabled, and what follows from that.
#[derive(Clone, Debug)]
pub struct Enabled {
    /// The endpoint as it is now.
    pub endpoint: Endpoint,
    /// Deliveries that waited for a later time, and are due now.
    pub deliveries_due: u64,
    /// The replay that was asked for.
    pub replay: Option<Replay>,
}

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

impl Scoped {
    /// Lets deliveries to an endpoint flow again, as if it had never failed: those that waited for
    /// a later try are due now. Starts a replay if one is wanted. The same for one that is enabled
    /// already.
    pub async fn enable_endpoint<A>(
        &self,
        context: &Context,
        id: EndpointId,
        replay: Option<NewReplay>,
        render: A,
    ) -> Result<Answer, StoreError>
    where
        A: Fn(&Enabled) -> Answer + Send + Sync,
    {
        let (owner, replay) = (self.scope.uuid(), &replay);
        let work = |tx: Tx| async move {
            let row = live_row(&tx, owner, id).await?;
            let patch = EndpointPatch {
                enabled: Some(true),
                ..EndpointPatch::default()
            };
            let (mut lines, mut deliveries_due) = (Vec::new(), 0);
            if row.enabled {
                deliveries_due = recover(&tx, owner, row.id).await?;
            }
            if deliveries_due > 0 {
                let facts = json!({ "deliveries_due": deliveries_due });
                lines.push(entry(Action::EndpointEnabled, "endpoint", id, facts));
            }
            let changed = change(&self.store, &tx, owner, row.clone(), &patch).await?;
            lines.extend(changed.lines);
            let mut started = None;
            if let Some(new) = replay {
                let (replay, line) = start_in(&tx, &row, new).await?;
                started = Some(replay);
                lines.extend(line);
            }
            let audited = Audited::unchanged(Enabled {
                endpoint: changed.endpoint,
                deliveries_due: deliveries_due + changed.deliveries_due,
                replay: started,
            });
            let lines = lines.into_iter();
            Ok(lines.fold(audited, |audited, line| audited.and(&[owner], line)))
        };
        self.store.administer(context, owner, work, render).await
    }
}

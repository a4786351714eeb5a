//! Leases of endpoints: taken if no living process holds the endpoint, and given back with its
//! state.

use domain::Timestamp;
use sea_orm::{ConnectionTrait as _, QueryResult, Value};

use super::{processes::ProcessId, values::rows_of};
use crate::{
    store::{
        System,
        effects::EndpointKey,
        error::{Result, StoreError},
        sql::Sql,
    },
    webhooks::Webhooks,
};

/// An endpoint that only this process sends to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The endpoint.
    pub key: EndpointKey,
    /// The lease's number, with which outcomes are written.
    pub fence: i64,
    /// The state that the last holder left.
    pub state: Handover,
}

/// The state that one holder of an endpoint leaves to the next. A holder that died leaves the state
/// that it got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Handover {
    /// The tokens in the rate limit's bucket, in thousandths of a delivery, and the time of that
    /// count.
    pub tokens: Option<(i64, Timestamp)>,
    /// Consecutive failures.
    pub failures: u32,
    /// When the circuit breaker allows the next probe, if it is open.
    pub probe_at: Option<Timestamp>,
}

impl Lease {
    fn of_row(row: &QueryResult) -> Result<Self> {
        let tokens: Option<i64> = row.try_get("", "tokens_milli")?;
        let at: Option<i64> = row.try_get("", "tokens_at")?;
        let failures: i32 = row.try_get("", "failures")?;
        let probe_at: Option<i64> = row.try_get("", "probe_at")?;
        Ok(Self {
            key: EndpointKey::of_row(row)?,
            fence: row.try_get("", "fence")?,
            state: Handover {
                tokens: tokens.zip(at.map(Timestamp::from_ms)),
                failures: u32::try_from(failures).unwrap_or(0),
                probe_at: probe_at.map(Timestamp::from_ms),
            },
        })
    }

    fn row(&self) -> Vec<Value> {
        let [publisher, endpoint] = self.key.values();
        let (tokens, at) = self.state.tokens.unzip();
        vec![
            publisher,
            endpoint,
            self.fence.into(),
            tokens.into(),
            at.map(Timestamp::ms).into(),
            i32::try_from(self.state.failures)
                .unwrap_or(i32::MAX)
                .into(),
            self.state.probe_at.map(Timestamp::ms).into(),
        ]
    }
}

/// Takes endpoints that no living process holds. The rows are locked in the order of their keys, so
/// that two processes that want the same endpoints cannot deadlock.
fn take_sql(process: ProcessId, now: Timestamp, wanted: &[EndpointKey]) -> Sql {
    let mut sql = Sql::new(
        "INSERT INTO dispatch_leases (publisher_id, endpoint_id, process_id, fence, failures) \
         SELECT e.publisher_id, e.id, ",
    );
    sql.bind(process.0).push(
        ", 1, 0 FROM webhook_endpoints e JOIN publishers p ON p.id = e.publisher_id \
         WHERE e.enabled AND e.deleted_at IS NULL AND p.status = 'active' \
         AND EXISTS (SELECT 1 FROM processes me WHERE me.id = ",
    );
    sql.bind(process.0)
        .push(" AND me.expires_at > ")
        .bind(now.ms());
    sql.push(") AND (e.publisher_id, e.id) IN (")
        .values(rows_of(wanted));
    sql.push(
        ") ORDER BY e.publisher_id, e.id \
         ON CONFLICT (publisher_id, endpoint_id) DO UPDATE \
         SET process_id = excluded.process_id, fence = dispatch_leases.fence + 1 \
         WHERE dispatch_leases.process_id IS NULL \
         OR dispatch_leases.process_id = excluded.process_id \
         OR NOT EXISTS (SELECT 1 FROM processes other \
         WHERE other.id = dispatch_leases.process_id AND other.expires_at > ",
    );
    sql.bind(now.ms()).push(
        ") RETURNING publisher_id, endpoint_id, fence, tokens_milli, tokens_at, failures, probe_at",
    );
    sql
}

fn give_back_sql(process: ProcessId, leases: &[Lease]) -> Sql {
    let mut sql = Sql::new("WITH given (owner, target, claim, tokens, filled, failed, probe) AS (");
    sql.values(leases.iter().map(Lease::row)).push(
        ") UPDATE dispatch_leases SET process_id = NULL, tokens_milli = tokens, \
         tokens_at = filled, failures = failed, probe_at = probe FROM given \
         WHERE publisher_id = owner AND endpoint_id = target AND fence = claim AND process_id = ",
    );
    sql.bind(process.0);
    sql
}

impl Webhooks<System> {
    /// Takes those of the wanted endpoints that may be sent to and that no other living process
    /// holds. If this process holds one already, the lease gets a new number.
    pub async fn take_leases(
        &self,
        process: ProcessId,
        wanted: &[EndpointKey],
    ) -> Result<Vec<Lease>, StoreError> {
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let backend = self.store.backend();
        self.store
            .write(|tx| async move {
                let statement = take_sql(process, tx.now, wanted).statement(backend);
                let rows = tx.db().query_all_raw(statement).await?;
                rows.iter().map(Lease::of_row).collect()
            })
            .await
    }

    /// Gives endpoints back. A lease that was lost meanwhile does not change.
    pub async fn give_back_leases(
        &self,
        process: ProcessId,
        leases: &[Lease],
    ) -> Result<(), StoreError> {
        if leases.is_empty() {
            return Ok(());
        }
        let backend = self.store.backend();
        self.store
            .write(|tx| async move {
                let statement = give_back_sql(process, leases).statement(backend);
                tx.db().execute_raw(statement).await?;
                Ok(())
            })
            .await
    }
}

//! Outcomes of attempts, written many at a time.

use std::collections::{HashMap, HashSet};

use domain::{
    Timestamp,
    id::{DeliveryId, Id as _},
};
use sea_orm::{ConnectionTrait as _, Value};
use uuid::Uuid;

use super::values::{rows_of, whole};
use crate::{
    store::{
        System,
        db::Tx,
        effects::EndpointKey,
        entity::delivery_attempts,
        error::{Result, StoreError},
        sql::{self, Sql, padded},
    },
    webhooks::Webhooks,
    webhooks::health::{Try, note_outcomes},
};

/// Outcomes that one statement writes.
const RECORD_ROWS: usize = 256;

/// The outcome of one attempt.
#[derive(Clone, Debug)]
pub struct AttemptOutcome {
    /// The endpoint.
    pub key: EndpointKey,
    /// The number of the lease under which the attempt was made.
    pub fence: i64,
    /// The delivery.
    pub id: DeliveryId,
    /// The attempt's number, from 1.
    pub attempt: i32,
    /// When the attempt began.
    pub at: Timestamp,
    /// The answer's status, if one came.
    pub status_code: Option<u16>,
    /// The class of error; `None` for a success.
    pub error: Option<&'static str>,
    /// From the start of the attempt to the end of the answer, in milliseconds.
    pub latency_ms: u64,
    /// The beginning of the answer, with unsafe characters replaced.
    pub excerpt: Option<String>,
    /// The next state of the delivery.
    pub next: Next,
}

/// The next state of a delivery after an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The delivery arrived.
    Succeeded,
    /// The next attempt is made at this time.
    RetryAt(Timestamp),
    /// The receiver asked for a pause until this time. The delivery is tried again, and this
    /// attempt does not count.
    Throttled(Timestamp),
    /// This was the last attempt.
    Failed,
    /// The receiver is gone for good (410): no further attempt.
    Gone,
}

impl Next {
    const fn status(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::RetryAt(_) | Self::Throttled(_) => "pending",
            Self::Failed | Self::Gone => "failed",
        }
    }

    const fn due(self) -> Option<i64> {
        match self {
            Self::RetryAt(at) | Self::Throttled(at) => Some(at.ms()),
            Self::Succeeded | Self::Failed | Self::Gone => None,
        }
    }
}

/// Whether an outcome was recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordResult {
    /// The outcome was recorded.
    Recorded,
    /// The delivery was not pending any more: it was cancelled or removed.
    Settled,
    /// Another process holds the endpoint now.
    LeaseLost,
}

/// The statement that records outcomes whose lease and attempt are current.
pub(super) fn record_sql(outcomes: &[AttemptOutcome], now: Timestamp) -> Sql {
    let mut sql = Sql::new(
        "WITH outcome (owner, target, delivery, claim, becomes, due, ended, tries, slowed) AS (",
    );
    // Rows that are repeated to fill the statement up do not change a row twice.
    sql.values(padded(outcomes).into_iter().map(|outcome| {
        let [publisher, endpoint] = outcome.key.values();
        let due = outcome.next.due();
        vec![
            publisher,
            endpoint,
            Value::from(outcome.id.uuid()),
            Value::from(outcome.fence),
            Value::from(outcome.next.status()),
            Value::from(due),
            Value::from(if due.is_none() { Some(now.ms()) } else { None }),
            Value::from(outcome.attempt),
            Value::from(i32::from(matches!(outcome.next, Next::Throttled(_)))),
        ]
    }));
    // Leases are read first and separately, and deliveries by primary key alone. In one join, or
    // with a condition on the status, PostgreSQL may read all of a publisher's pending deliveries
    // for each outcome.
    sql.push(
        "), good AS MATERIALIZED (SELECT outcome.* FROM outcome JOIN dispatch_leases l \
         ON l.publisher_id = owner AND l.endpoint_id = target AND l.fence = claim) \
         UPDATE deliveries SET status = becomes, next_attempt_at = due, finished_at = ended, \
         attempts = tries, throttled = throttled + slowed FROM good WHERE publisher_id = owner AND id = delivery \
         AND finished_at IS NULL AND attempts = tries - 1 RETURNING publisher_id, id",
    );
    sql
}

fn attempt_row(outcome: &AttemptOutcome) -> delivery_attempts::Model {
    delivery_attempts::Model {
        publisher_id: outcome.key.publisher.uuid(),
        delivery_id: outcome.id.uuid(),
        number: outcome.attempt,
        at: outcome.at.ms(),
        status_code: outcome.status_code.map(i32::from),
        error: outcome.error.map(str::to_owned),
        latency_ms: whole(outcome.latency_ms),
        response_excerpt: outcome.excerpt.clone(),
    }
}

fn try_of(outcome: &AttemptOutcome) -> Try {
    Try {
        publisher: outcome.key.publisher.uuid(),
        endpoint: outcome.key.endpoint.uuid(),
        at: outcome.at,
        status_code: outcome.status_code,
        error: outcome.error,
        latency_ms: outcome.latency_ms,
    }
}

/// The current numbers of leases.
async fn fences(tx: &Tx, keys: &[EndpointKey]) -> Result<HashMap<EndpointKey, i64>> {
    let mut sql = Sql::new(
        "SELECT publisher_id, endpoint_id, fence FROM dispatch_leases \
         WHERE (publisher_id, endpoint_id) IN (",
    );
    sql.values(rows_of(keys)).push(")");
    let statement = sql.statement(tx.db().get_database_backend());
    let rows = tx.db().query_all_raw(statement).await?;
    rows.iter()
        .map(|row| Ok((EndpointKey::of_row(row)?, row.try_get("", "fence")?)))
        .collect()
}

/// The second value tells whether an endpoint is gone for good.
async fn record(tx: &Tx, part: &[AttemptOutcome]) -> Result<(Vec<RecordResult>, bool)> {
    let statement = record_sql(part, tx.now).statement(tx.db().get_database_backend());
    let mut counted: HashSet<(Uuid, Uuid)> = HashSet::with_capacity(part.len());
    for row in tx.db().query_all_raw(statement).await? {
        counted.insert((row.try_get("", "publisher_id")?, row.try_get("", "id")?));
    }
    let counts =
        |one: &AttemptOutcome| counted.contains(&(one.key.publisher.uuid(), one.id.uuid()));
    let rows: Vec<_> = part
        .iter()
        .filter(|one| counts(one))
        .map(attempt_row)
        .collect();
    sql::insert(tx.db(), rows, "").await?;
    let tries: Vec<Try> = part.iter().filter(|one| counts(one)).map(try_of).collect();
    let gone = note_outcomes(tx, &tries).await?;
    let lost = part.iter().filter(|one| !counts(one)).map(|one| one.key);
    let lost: Vec<EndpointKey> = lost.collect();
    let fences = if lost.is_empty() {
        HashMap::new()
    } else {
        fences(tx, &lost).await?
    };
    let result = |one: &AttemptOutcome| {
        if counts(one) {
            RecordResult::Recorded
        } else if fences.get(&one.key) == Some(&one.fence) {
            RecordResult::Settled
        } else {
            RecordResult::LeaseLost
        }
    };
    Ok((part.iter().map(result).collect(), gone))
}

impl Webhooks<System> {
    /// Records outcomes in one transaction, and returns for each whether it was recorded. The
    /// second value tells whether an endpoint is gone for good; then
    /// [`disable_gone_endpoints`](crate::Webhooks::disable_gone_endpoints) has to be called.
    /// `outcomes` may hold at most one outcome of each delivery.
    pub async fn record_outcomes(
        &self,
        outcomes: &[AttemptOutcome],
    ) -> Result<(Vec<RecordResult>, bool), StoreError> {
        self.store
            .write_outcomes(|tx| async move {
                let (mut results, mut any_gone) = (Vec::with_capacity(outcomes.len()), false);
                for part in outcomes.chunks(RECORD_ROWS) {
                    let (some, gone) = record(&tx, part).await?;
                    results.extend(some);
                    any_gone |= gone;
                }
                Ok((results, any_gone))
            })
            .await
    }
}

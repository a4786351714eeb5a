//! How tries ended, written many at a time.

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
    webhooks::health::{Try, note_outcomes},
};

/// Outcomes that one statement writes.
const RECORD_ROWS: usize = 256;

/// How one try ended.
#[derive(Clone, Debug)]
pub struct AttemptOutcome {
    /// Where it went.
    pub key: EndpointKey,
    /// The number of the lease under which it was made.
    pub fence: i64,
    /// Which delivery.
    pub id: DeliveryId,
    /// Which try, from 1.
    pub attempt: i32,
    /// When it began.
    pub at: Timestamp,
    /// The answer's status, if one came.
    pub status_code: Option<u16>,
    /// The class of error; `None` for a success.
    pub error: Option<&'static str>,
    /// From the start to the end of the answer.
    pub latency_ms: u64,
    /// The start of the answer, made safe.
    pub excerpt: Option<String>,
    /// What becomes of the delivery.
    pub next: Next,
}

/// What becomes of a delivery after a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It arrived.
    Succeeded,
    /// It is tried again then.
    RetryAt(Timestamp),
    /// The receiver asked for a pause until then. It is tried again, and this try does not count.
    Throttled(Timestamp),
    /// That was the last try.
    Failed,
    /// The receiver said that the endpoint is gone for good (410): no further try.
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

/// Whether an outcome counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordResult {
    /// It is written down.
    Recorded,
    /// The delivery did not wait for it any more: called off, or gone.
    Settled,
    /// The endpoint is another holder's by now.
    LeaseLost,
}

/// The statement that writes outcomes where lease and try are still theirs.
pub(super) fn record_sql(outcomes: &[AttemptOutcome], now: Timestamp) -> Sql {
    let mut sql = Sql::new(
        "WITH outcome (owner, target, delivery, claim, becomes, due, ended, tries, slowed) AS (",
    );
    // What is repeated to fill up changes its row no second time.
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
    // Leases are looked at first and apart, and deliveries by their key alone: as one join, and by
    // status, PostgreSQL may look through all that waits of a publisher for each outcome.
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

/// The present numbers of leases.
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

/// Also answers whether an endpoint said that it is gone for good.
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

impl System {
    /// Writes down how tries ended, all in one transaction, and says of each whether it counted;
    /// also whether an endpoint said that it is gone for good, which
    /// [`System::disable_gone_endpoints`] is to look at. Of one delivery at most one outcome may
    /// be given at a time.
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

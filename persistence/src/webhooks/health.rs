//! The health of endpoints: counts of attempts, written with every batch of outcomes, and their
//! consequences.
//!
//! Recording outcomes only writes the counts. The consequences (a warning, a disabled endpoint, an
//! event that it works again) are decided from them in separate transactions, so nothing is missed
//! if a process dies in between.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use domain::{
    Timestamp,
    audit::Action,
    event::OwnType,
    id::{EndpointId, Id as _},
};
use sea_orm::{
    ColumnTrait as _, ConnectionTrait, EntityTrait as _, QueryFilter as _, QueryOrder as _, Value,
    sea_query::Expr,
};
use serde_json::json;
use uuid::Uuid;

use crate::{
    store::{
        Scoped, System,
        change::{Audited, Context, audit_entry},
        db::Tx,
        entity::{endpoint_health, endpoint_stats},
        error::{Result, StoreError},
        sql::Sql,
        unreadable,
    },
    webhooks::Webhooks,
    webhooks::{
        endpoint_rows::{live_row, write_row},
        events::emit_beside,
    },
};

/// The span of one bucket, in milliseconds.
pub const BUCKET_MS: i64 = 5 * 60 * 1000;
/// How far back counts are shown.
const SHOWN: Duration = Duration::from_hours(24);
/// How long an endpoint fails before its publisher is warned.
const WARN_AFTER: Duration = Duration::from_hours(24);
/// Most endpoints that one call disables because they are gone.
const GONE_BATCH: u64 = 100;
/// The status of a receiver that is gone for good (RFC 9110 §15.5.11).
const GONE: u16 = 410;

/// The results of recent attempts at an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Failures since the last success.
    pub consecutive_failures: i32,
    /// When the first of these failures happened.
    pub failing_since: Option<Timestamp>,
    /// When an attempt last succeeded.
    pub last_success_at: Option<Timestamp>,
    /// When an attempt last failed.
    pub last_failure_at: Option<Timestamp>,
    /// The class of error of the last failure.
    pub last_error: Option<String>,
    /// The status of the answer at the last failure, if there was one.
    pub last_status_code: Option<i32>,
    /// Successful attempts of the last day.
    pub succeeded_day: i64,
    /// Failed attempts of the last day.
    pub failed_day: i64,
}

/// The attempts of five minutes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatsBucket {
    /// When the five minutes begin.
    pub at: Timestamp,
    /// How many attempts succeeded.
    pub succeeded: i64,
    /// How many attempts failed.
    pub failed: i64,
    /// The sum of all latencies, in milliseconds.
    pub latency_ms_sum: i64,
    /// The longest latency, in milliseconds.
    pub latency_ms_max: i64,
}

/// The consequences that were carried out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HealthActions {
    /// Endpoints that were disabled, because they were gone or had failed for too long.
    pub disabled: u64,
    /// Endpoints that fail, and whose publisher was warned.
    pub warned: u64,
    /// Endpoints that work again, and whose publisher was told.
    pub recovered: u64,
}

/// Publisher and endpoint.
type Key = (Uuid, Uuid);

/// One attempt, as far as the endpoint's health is concerned.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Try {
    pub(crate) publisher: Uuid,
    pub(crate) endpoint: Uuid,
    pub(crate) at: Timestamp,
    pub(crate) status_code: Option<u16>,
    /// The class of error; `None` for a success.
    pub(crate) error: Option<&'static str>,
    pub(crate) latency_ms: u64,
}

/// The sums of one endpoint in a batch of outcomes.
#[derive(Default)]
struct Noted {
    failures: i32,
    failing_since: Option<i64>,
    last_success_at: Option<i64>,
    last_failure_at: Option<i64>,
    last_error: Option<&'static str>,
    last_status_code: Option<i32>,
    gone_at: Option<i64>,
}

impl Noted {
    fn add(&mut self, outcome: &Try) {
        let at = outcome.at.ms();
        if outcome.error.is_none() {
            self.failures = 0;
            self.failing_since = None;
            self.last_success_at = self.last_success_at.max(Some(at));
            return;
        }
        self.failures += 1;
        self.failing_since.get_or_insert(at);
        self.last_failure_at = self.last_failure_at.max(Some(at));
        self.last_error = outcome.error;
        self.last_status_code = outcome.status_code.map(i32::from);
        if outcome.status_code == Some(GONE) {
            self.gone_at.get_or_insert(at);
        }
    }
}

/// Writes the counts of attempts in the transaction that records their outcomes, with two
/// statements for any number. Only outcomes that counted belong here. Returns whether an endpoint
/// is gone for good; then [`disable_gone_endpoints`](crate::Webhooks::disable_gone_endpoints) has to
/// be called.
pub(crate) async fn note_outcomes(tx: &Tx, tries: &[Try]) -> Result<bool> {
    if tries.is_empty() {
        return Ok(false);
    }
    let mut in_order: Vec<&Try> = tries.iter().collect();
    in_order.sort_by_key(|outcome| outcome.at);
    // Sorted by key, so that two transactions lock rows in the same order.
    let mut health: BTreeMap<Key, Noted> = BTreeMap::new();
    let mut buckets: BTreeMap<(Key, i64), StatsBucket> = BTreeMap::new();
    for outcome in in_order {
        let key = (outcome.publisher, outcome.endpoint);
        health.entry(key).or_default().add(outcome);
        let at = outcome.at.ms() - outcome.at.ms().rem_euclid(BUCKET_MS);
        let bucket = buckets.entry((key, at)).or_insert(StatsBucket {
            at: Timestamp::from_ms(at),
            succeeded: 0,
            failed: 0,
            latency_ms_sum: 0,
            latency_ms_max: 0,
        });
        let latency = i64::try_from(outcome.latency_ms).unwrap_or(i64::MAX);
        if outcome.error.is_none() {
            bucket.succeeded += 1;
        } else {
            bucket.failed += 1;
        }
        bucket.latency_ms_sum = bucket.latency_ms_sum.saturating_add(latency);
        bucket.latency_ms_max = bucket.latency_ms_max.max(latency);
    }
    let backend = tx.db().get_database_backend();
    let gone = health.values().any(|noted| noted.gone_at.is_some());
    for sql in [health_sql(&health), buckets_sql(&buckets)] {
        tx.db().execute_raw(sql.statement(backend)).await?;
    }
    Ok(gone)
}

fn health_sql(noted: &BTreeMap<Key, Noted>) -> Sql {
    let mut sql = Sql::new(
        "INSERT INTO endpoint_health AS h (publisher_id, endpoint_id, consecutive_failures, \
         failing_since, last_success_at, last_failure_at, last_error, last_status_code, gone_at) ",
    );
    sql.values(noted.iter().map(|((owner, endpoint), noted)| {
        vec![
            Value::from(*owner),
            Value::from(*endpoint),
            Value::from(noted.failures),
            Value::from(noted.failing_since),
            Value::from(noted.last_success_at),
            Value::from(noted.last_failure_at),
            Value::from(noted.last_error.map(str::to_owned)),
            Value::from(noted.last_status_code),
            Value::from(noted.gone_at),
        ]
    }));
    sql.push(
        " ON CONFLICT (publisher_id, endpoint_id) DO UPDATE SET \
         consecutive_failures = CASE WHEN excluded.last_success_at IS NULL \
         THEN h.consecutive_failures + excluded.consecutive_failures \
         ELSE excluded.consecutive_failures END, \
         failing_since = CASE WHEN excluded.last_success_at IS NULL \
         THEN COALESCE(h.failing_since, excluded.failing_since) \
         ELSE excluded.failing_since END, \
         last_success_at = COALESCE(excluded.last_success_at, h.last_success_at), \
         last_status_code = CASE WHEN excluded.last_failure_at IS NULL \
         THEN h.last_status_code ELSE excluded.last_status_code END, \
         last_failure_at = COALESCE(excluded.last_failure_at, h.last_failure_at), \
         last_error = COALESCE(excluded.last_error, h.last_error), \
         gone_at = COALESCE(h.gone_at, excluded.gone_at)",
    );
    sql
}

fn buckets_sql(buckets: &BTreeMap<(Key, i64), StatsBucket>) -> Sql {
    let mut sql = Sql::new(
        "INSERT INTO endpoint_stats AS s (publisher_id, endpoint_id, bucket, succeeded, failed, \
         latency_ms_sum, latency_ms_max) ",
    );
    sql.values(buckets.iter().map(|(((owner, endpoint), at), bucket)| {
        vec![
            Value::from(*owner),
            Value::from(*endpoint),
            Value::from(*at),
            Value::from(bucket.succeeded),
            Value::from(bucket.failed),
            Value::from(bucket.latency_ms_sum),
            Value::from(bucket.latency_ms_max),
        ]
    }));
    sql.push(
        " ON CONFLICT (publisher_id, endpoint_id, bucket) DO UPDATE SET \
         succeeded = s.succeeded + excluded.succeeded, failed = s.failed + excluded.failed, \
         latency_ms_sum = s.latency_ms_sum + excluded.latency_ms_sum, \
         latency_ms_max = CASE WHEN excluded.latency_ms_max > s.latency_ms_max \
         THEN excluded.latency_ms_max ELSE s.latency_ms_max END",
    );
    sql
}

/// The health of a publisher's endpoints. An endpoint without attempts has no row, and counts as
/// healthy.
pub(crate) async fn health_of<C: ConnectionTrait>(
    db: &C,
    owner: Uuid,
    endpoints: &[Uuid],
    now: Timestamp,
) -> Result<HashMap<Uuid, Health>> {
    let mut found = HashMap::new();
    if endpoints.is_empty() {
        return Ok(found);
    }
    let rows = endpoint_health::Entity::find()
        .filter(endpoint_health::Column::PublisherId.eq(owner))
        .filter(endpoint_health::Column::EndpointId.is_in(endpoints.iter().copied()))
        .all(db)
        .await?;
    for row in rows {
        let health = Health {
            consecutive_failures: row.consecutive_failures,
            failing_since: row.failing_since.map(Timestamp::from_ms),
            last_success_at: row.last_success_at.map(Timestamp::from_ms),
            last_failure_at: row.last_failure_at.map(Timestamp::from_ms),
            last_error: row.last_error,
            last_status_code: row.last_status_code,
            ..Health::default()
        };
        found.insert(row.endpoint_id, health);
    }
    let backend = db.get_database_backend();
    let mut sql = Sql::new(
        "SELECT endpoint_id, CAST(SUM(succeeded) AS BIGINT) AS succeeded, \
         CAST(SUM(failed) AS BIGINT) AS failed FROM endpoint_stats WHERE publisher_id = ",
    );
    sql.bind(owner)
        .push(" AND bucket > ")
        .bind(now.minus(SHOWN).ms())
        .push(" AND endpoint_id IN (")
        .bind_list(endpoints.iter().copied())
        .push(") GROUP BY endpoint_id");
    for row in db.query_all_raw(sql.statement(backend)).await? {
        let health: &mut Health = found.entry(row.try_get("", "endpoint_id")?).or_default();
        health.succeeded_day = row.try_get("", "succeeded")?;
        health.failed_day = row.try_get("", "failed")?;
    }
    Ok(found)
}

/// Forgets an endpoint's failures, so that it is tried again.
pub(crate) async fn forget_failures(tx: &Tx, owner: Uuid, endpoint: Uuid) -> Result<()> {
    use endpoint_health::Column;
    endpoint_health::Entity::update_many()
        .col_expr(Column::ConsecutiveFailures, Expr::value(0))
        .col_expr(Column::FailingSince, Expr::value(Option::<i64>::None))
        .col_expr(Column::WarnedAt, Expr::value(Option::<i64>::None))
        .col_expr(Column::GoneAt, Expr::value(Option::<i64>::None))
        .filter(Column::PublisherId.eq(owner))
        .filter(Column::EndpointId.eq(endpoint))
        .exec(tx.db())
        .await?;
    Ok(())
}

async fn row_of(tx: &Tx, (owner, endpoint): Key) -> Result<Option<endpoint_health::Model>> {
    let found = endpoint_health::Entity::find_by_id((owner, endpoint));
    Ok(found.one(tx.db()).await?)
}

fn time_text(ms: Option<i64>) -> Option<String> {
    ms.map(|ms| Timestamp::from_ms(ms).to_string())
}

impl Webhooks<Scoped> {
    /// How many attempts at an endpoint succeeded and failed in each five minutes of the last day,
    /// oldest first. Spans without attempts are left out.
    pub async fn endpoint_stats(&self, id: EndpointId) -> Result<Vec<StatsBucket>, StoreError> {
        use endpoint_stats::Column;
        let since = self.store.now().minus(SHOWN).ms();
        self.endpoint(id).await?;
        let rows = endpoint_stats::Entity::find()
            .filter(Column::PublisherId.eq(self.scope.uuid()))
            .filter(Column::EndpointId.eq(id.uuid()))
            .filter(Column::Bucket.gt(since))
            .order_by_asc(Column::Bucket)
            .all(self.store.read())
            .await?;
        let buckets = rows.into_iter().map(|row| StatsBucket {
            at: Timestamp::from_ms(row.bucket),
            succeeded: row.succeeded,
            failed: row.failed,
            latency_ms_sum: row.latency_ms_sum,
            latency_ms_max: row.latency_ms_max,
        });
        Ok(buckets.collect())
    }
}

/// If one endpoint cannot be read, the others are still handled.
fn alone((owner, endpoint): Key, settled: Result<bool>) -> Result<bool> {
    match settled {
        Err(error @ StoreError::Internal(_)) => {
            unreadable::report("endpoint", owner, endpoint, &error);
            Ok(false)
        }
        settled => settled,
    }
}

impl Webhooks<System> {
    /// Carries out the consequences, for at most `limit` endpoints of each kind. Disables endpoints
    /// that are gone, or of which every attempt failed for `disable_after`. Tells publishers of
    /// endpoints that have failed for a day, and of those that work again.
    pub async fn settle_endpoints(
        &self,
        disable_after: Duration,
        limit: u64,
    ) -> Result<HealthActions, StoreError> {
        let (now, mut settled) = (self.store.now(), HealthActions::default());
        settled.disabled = self.disable_gone_endpoints().await?;
        let dead = format!("h.failing_since <= {}", now.minus(disable_after).ms());
        for key in self.endpoints_where(&dead, limit).await? {
            let disabled = self.disable(key, "failing", Some(disable_after)).await;
            settled.disabled += u64::from(alone(key, disabled)?);
        }
        let failing = format!(
            "h.warned_at IS NULL AND h.failing_since <= {}",
            now.minus(WARN_AFTER).ms()
        );
        for key in self.endpoints_where(&failing, limit).await? {
            let warned = self.warn(key, disable_after).await;
            settled.warned += u64::from(alone(key, warned)?);
        }
        let well = "h.warned_at IS NOT NULL AND h.failing_since IS NULL";
        for key in self.endpoints_where(well, limit).await? {
            let told = self.tell_recovered(key).await;
            settled.recovered += u64::from(alone(key, told)?);
        }
        Ok(settled)
    }

    /// Disables endpoints that are gone for good. Returns how many.
    pub async fn disable_gone_endpoints(&self) -> Result<u64, StoreError> {
        let mut disabled = 0;
        for key in self
            .endpoints_where("h.gone_at IS NOT NULL", GONE_BATCH)
            .await?
        {
            disabled += u64::from(alone(key, self.disable(key, "gone", None).await)?);
        }
        Ok(disabled)
    }

    /// Enabled endpoints of active publishers whose health row, `h`, meets the condition.
    async fn endpoints_where(&self, condition: &str, limit: u64) -> Result<Vec<Key>> {
        let mut sql = Sql::new(
            "SELECT h.publisher_id, h.endpoint_id FROM endpoint_health h \
             JOIN webhook_endpoints e ON e.publisher_id = h.publisher_id AND e.id = h.endpoint_id \
             JOIN publishers p ON p.id = h.publisher_id \
             WHERE e.enabled AND e.deleted_at IS NULL AND p.status = 'active' AND ",
        );
        sql.push(condition)
            .push(" LIMIT ")
            .bind(i64::try_from(limit).unwrap_or(i64::MAX));
        let statement = sql.statement(self.store.backend());
        let rows = self.store.read().query_all_raw(statement).await?;
        rows.iter()
            .map(|row| {
                Ok((
                    row.try_get("", "publisher_id")?,
                    row.try_get("", "endpoint_id")?,
                ))
            })
            .collect()
    }

    /// Disables an endpoint if its row has not changed. Returns whether it did.
    async fn disable(
        &self,
        key: Key,
        reason: &'static str,
        after: Option<Duration>,
    ) -> Result<bool> {
        let (owner, id) = (key.0, EndpointId::from_uuid(key.1));
        let work = |tx: Tx| async move {
            let row = live_row(&tx, owner, id).await?;
            let health = row_of(&tx, key).await?;
            let cutoff = after.map(|after| tx.now.minus(after).ms());
            let health = health.filter(|health| {
                let dead = match cutoff {
                    Some(cutoff) => health.failing_since.is_some_and(|since| since <= cutoff),
                    None => health.gone_at.is_some(),
                };
                row.enabled && dead
            });
            let Some(health) = health else {
                return Ok(Audited::unchanged(false));
            };
            let row = crate::store::entity::webhook_endpoints::Model {
                enabled: false,
                disabled_reason: Some(reason.to_owned()),
                ..row
            };
            write_row(&tx, row).await?;
            forget_failures(&tx, owner, key.1).await?;
            let facts = json!({
                "reason": reason,
                "failing_since": time_text(health.failing_since),
                "last_error": health.last_error,
            });
            let data = json!({
                "endpoint_id": id.to_string(),
                "reason": reason,
                "failing_since": time_text(health.failing_since),
                "last_error": health.last_error,
            });
            emit_beside(&tx, key, OwnType::EndpointDisabled.as_str(), &data).await?;
            let entry = audit_entry(Action::EndpointDisabled, "endpoint", id, facts);
            Ok(Audited::new(true, owner, entry))
        };
        let context = Context::system("dispatcher");
        let done = std::sync::atomic::AtomicBool::new(false);
        let render = |disabled: &bool| {
            done.store(*disabled, std::sync::atomic::Ordering::Relaxed);
            crate::store::change::nothing()
        };
        match self.store.administer(&context, owner, work, render).await {
            Ok(_) => Ok(done.into_inner()),
            // The endpoint was deleted meanwhile.
            Err(StoreError::Refused(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Warns the publisher of a failing endpoint, unless it was warned before. Returns whether it
    /// did.
    async fn warn(&self, key: Key, disable_after: Duration) -> Result<bool> {
        use endpoint_health::Column;
        self.store
            .write(|tx| async move {
                let cutoff = tx.now.minus(WARN_AFTER).ms();
                let marked = endpoint_health::Entity::update_many()
                    .col_expr(Column::WarnedAt, Expr::value(tx.now.ms()))
                    .filter(Column::PublisherId.eq(key.0))
                    .filter(Column::EndpointId.eq(key.1))
                    .filter(Column::WarnedAt.is_null())
                    .filter(Column::FailingSince.lte(cutoff))
                    .exec(tx.db())
                    .await?;
                let health = row_of(&tx, key).await?;
                let Some(health) = health.filter(|_| marked.rows_affected == 1) else {
                    return Ok(false);
                };
                let since = Timestamp::from_ms(health.failing_since.unwrap_or(cutoff));
                let data = json!({
                    "endpoint_id": EndpointId::from_uuid(key.1).to_string(),
                    "failing_since": since.to_string(),
                    "last_error": health.last_error,
                    "disabled_after": since.plus(disable_after).to_string(),
                });
                emit_beside(&tx, key, OwnType::EndpointFailing.as_str(), &data).await?;
                Ok(true)
            })
            .await
    }

    async fn tell_recovered(&self, key: Key) -> Result<bool> {
        use endpoint_health::Column;
        self.store
            .write(|tx| async move {
                let cleared = endpoint_health::Entity::update_many()
                    .col_expr(Column::WarnedAt, Expr::value(Option::<i64>::None))
                    .filter(Column::PublisherId.eq(key.0))
                    .filter(Column::EndpointId.eq(key.1))
                    .filter(Column::WarnedAt.is_not_null())
                    .filter(Column::FailingSince.is_null())
                    .exec(tx.db())
                    .await?;
                if cleared.rows_affected == 0 {
                    return Ok(false);
                }
                let data = json!({ "endpoint_id": EndpointId::from_uuid(key.1).to_string() });
                emit_beside(&tx, key, OwnType::EndpointRecovered.as_str(), &data).await?;
                Ok(true)
            })
            .await
    }
}

#[cfg(test)]
mod tests;

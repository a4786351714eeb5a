//! Deliveries on their way out: claimed under a lease, recorded under the claim's number.
//!
//! A lease is `next_attempt_at` moved to the lease's end, so what a dead process held comes due
//! again by itself. Each claim counts `fence` up, and an outcome counts only while the number is
//! still its own: a late writer changes nothing.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use domain::{
    Timestamp,
    credential::CredentialKind,
    id::{DeliveryId, EndpointId, EventId, Id as _, PublisherId},
};
use sea_orm::{
    ActiveValue::Set,
    ColumnTrait as _, ConnectionTrait as _, DbBackend, EntityTrait as _, FromQueryResult,
    QueryFilter as _, QueryOrder as _, Value,
    sea_query::{Expr, ExprTrait as _},
};
use secrecy::SecretString;
use uuid::Uuid;

use crate::{
    Store,
    credentials::{live_at, open_secret},
    endpoint_secrets::OwnSecrets,
    entity::{credentials, deliveries, delivery_attempts},
    error::{Result, StoreError, damaged},
    health::{Try, note_outcomes},
    scope::System,
    sql::Sql,
};

/// Deliveries that may go out, as `d`. `CROSS JOIN` keeps SQLite from any other order than that
/// of the index on due times; PostgreSQL takes it for an ordinary join.
const DELIVERABLE: &str = "deliveries d \
    CROSS JOIN webhook_endpoints e CROSS JOIN publishers p \
    WHERE d.status = 'pending' \
    AND e.publisher_id = d.publisher_id AND e.id = d.endpoint_id \
    AND e.enabled AND e.deleted_at IS NULL \
    AND p.id = d.publisher_id AND p.status = 'active'";

/// The longest lease that a claim gets.
const LEASE_MAX: Duration = Duration::from_mins(5);
/// Outcomes that one statement writes.
const RECORD_ROWS: usize = 500;

/// A claimed delivery, with everything that its request needs.
#[derive(Clone)]
pub struct DueDelivery {
    /// Whose.
    pub publisher: PublisherId,
    /// Which.
    pub id: DeliveryId,
    /// Where to; what limits for each endpoint count by.
    pub endpoint: EndpointId,
    /// The claim's number; goes back with the outcome.
    pub fence: i64,
    /// What it tells of.
    pub event: EventId,
    /// The exact text to send and sign.
    pub body: String,
    /// Where to.
    pub url: String,
    /// The endpoint's own headers.
    pub headers: BTreeMap<String, String>,
    /// The newest live bearer, if the endpoint asks for it and there is one.
    pub bearer: Option<SecretString>,
    /// All live signing secrets, newest first.
    pub secrets: Vec<SecretString>,
    /// Which try this is, from 1.
    pub attempt: i32,
}

/// How one try ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Whose delivery.
    pub publisher: PublisherId,
    /// Which delivery.
    pub id: DeliveryId,
    /// The number of the claim under which it was tried.
    pub fence: i64,
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
    /// That was the last try.
    Failed,
}

impl Next {
    const fn status(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::RetryAt(_) => "pending",
            Self::Failed => "failed",
        }
    }

    fn due(self) -> Option<i64> {
        match self {
            Self::RetryAt(at) => Some(at.ms()),
            Self::Succeeded | Self::Failed => None,
        }
    }
}

/// A claim's row, as the claiming statement answers it.
struct Claim {
    endpoint: Uuid,
    fence: i64,
    attempts: i32,
}

/// What a request needs beside secrets.
#[derive(FromQueryResult)]
struct Parcel {
    publisher_id: Uuid,
    id: Uuid,
    event_id: Uuid,
    body: String,
    url: String,
    headers: String,
    send_bearer: bool,
}

/// A publisher's live secrets.
#[derive(Clone, Default)]
pub(crate) struct Secrets {
    /// Those that sign, newest first.
    pub(crate) signing: Vec<SecretString>,
    /// The newest bearer.
    pub(crate) bearer: Option<SecretString>,
}

/// Rows that another process claims at this moment are left to it. SQLite has one writer.
const fn lock_clause(backend: DbBackend) -> &'static str {
    match backend {
        DbBackend::Postgres => " FOR UPDATE OF d SKIP LOCKED",
        _ => "",
    }
}

fn without(sql: &mut Sql, endpoints: &[Uuid]) {
    if !endpoints.is_empty() {
        sql.push(" AND d.endpoint_id NOT IN (")
            .bind_list(endpoints.iter().copied())
            .push(")");
    }
}

/// The statement that claims. `busy` are the endpoints with deliveries under way, and how many.
fn claim_sql(
    backend: DbBackend,
    (now, lease_end): (Timestamp, Timestamp),
    limit: i64,
    per_endpoint: i64,
    busy: &[(Uuid, i64)],
) -> Sql {
    let full: Vec<Uuid> = busy
        .iter()
        .filter(|(_, n)| *n >= per_endpoint)
        .map(|(id, _)| *id)
        .collect();
    let mut sql = Sql::new(
        "WITH due AS MATERIALIZED (SELECT d.publisher_id, d.id, d.endpoint_id, d.next_attempt_at FROM ",
    );
    sql.push(DELIVERABLE)
        .push(" AND d.next_attempt_at <= ")
        .bind(now.ms());
    without(&mut sql, &full);
    sql.push(" ORDER BY d.next_attempt_at LIMIT ")
        .bind(limit)
        .push(lock_clause(backend));
    sql.push(
        "), ranked AS MATERIALIZED (SELECT publisher_id, id, endpoint_id, row_number() \
         OVER (PARTITION BY endpoint_id ORDER BY next_attempt_at) AS turn FROM due) \
         UPDATE deliveries SET fence = fence + 1, next_attempt_at = ",
    );
    sql.bind(lease_end.ms());
    sql.push(" WHERE (publisher_id, id) IN (SELECT publisher_id, id FROM ranked WHERE turn <= ");
    sql.bind(per_endpoint);
    let partly: Vec<_> = busy.iter().filter(|(_, n)| *n < per_endpoint).collect();
    if !partly.is_empty() {
        sql.push(" - CASE endpoint_id");
        for (id, n) in partly {
            sql.push(" WHEN ").bind(*id).push(" THEN ").bind(*n);
        }
        sql.push(" ELSE 0 END");
    }
    sql.push(") RETURNING publisher_id, id, endpoint_id, fence, attempts");
    sql
}

fn whole(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

impl System {
    /// Claims at most `limit` due deliveries for `lease` (5 minutes at most), the longest overdue
    /// first, and loads what they need.
    ///
    /// Of one endpoint at most `per_endpoint` are under way: `busy` says how many are already.
    /// So fewer than `limit` may come although more are due; none come only if no endpoint with
    /// room has any. A claimed delivery that was called off since is left out.
    pub async fn claim_deliveries(
        &self,
        limit: u64,
        lease: Duration,
        per_endpoint: u64,
        busy: &[(EndpointId, u64)],
    ) -> Result<Vec<DueDelivery>, StoreError> {
        let (limit, per_endpoint, backend) =
            (whole(limit), whole(per_endpoint), self.store.backend());
        let busy: Vec<(Uuid, i64)> = busy.iter().map(|(id, n)| (id.uuid(), whole(*n))).collect();
        let busy = busy.as_slice();
        let claims = self
            .store
            .write(|tx| async move {
                let times = (tx.now, tx.now.plus(lease.min(LEASE_MAX)));
                let sql = claim_sql(backend, times, limit, per_endpoint, busy);
                let rows = tx.db().query_all_raw(sql.statement(backend)).await?;
                let mut claims = HashMap::with_capacity(rows.len());
                for row in rows {
                    let key: (Uuid, Uuid) =
                        (row.try_get("", "publisher_id")?, row.try_get("", "id")?);
                    let claim = Claim {
                        endpoint: row.try_get("", "endpoint_id")?,
                        fence: row.try_get("", "fence")?,
                        attempts: row.try_get("", "attempts")?,
                    };
                    claims.insert(key, claim);
                }
                Ok(claims)
            })
            .await?;
        if claims.is_empty() {
            Ok(Vec::new())
        } else {
            self.load(claims).await
        }
    }

    /// Loads what the claimed deliveries need: one statement for bodies and endpoints, one for
    /// secrets. What fails here stays leased and comes due again at the lease's end.
    async fn load(&self, claims: HashMap<(Uuid, Uuid), Claim>) -> Result<Vec<DueDelivery>> {
        let mut sql = Sql::new(
            "SELECT d.publisher_id, d.id, d.event_id, v.body, e.url, e.headers, e.send_bearer \
             FROM deliveries d \
             JOIN events v ON v.publisher_id = d.publisher_id AND v.id = d.event_id \
             JOIN webhook_endpoints e ON e.publisher_id = d.publisher_id AND e.id = d.endpoint_id \
             WHERE d.status = 'pending' AND (d.publisher_id, d.id) IN (",
        );
        sql.values(
            claims
                .keys()
                .map(|(owner, id)| vec![Value::from(*owner), Value::from(*id)]),
        );
        sql.push(")");
        let mut parcels = Parcel::find_by_statement(sql.statement(self.store.backend()))
            .all(self.store.read())
            .await?;
        // Neither statement answers in an order; identifiers grow with time.
        parcels.sort_unstable_by_key(|parcel| parcel.id);
        let secrets = self.secrets_of(&parcels).await?;
        let endpoints = claims
            .iter()
            .map(|((owner, _), claim)| (*owner, claim.endpoint));
        let own = self.own_secrets(endpoints.collect()).await?;
        let mut out = Vec::with_capacity(parcels.len());
        for parcel in parcels {
            let claim = claims.get(&(parcel.publisher_id, parcel.id));
            let secrets = secrets.get(&parcel.publisher_id);
            if let (Some(claim), Some(secrets)) = (claim, secrets) {
                let own = own.get(&(parcel.publisher_id, claim.endpoint));
                out.push(parcel.due(claim, secrets, own)?);
            }
        }
        Ok(out)
    }

    /// The live secrets of all publishers at once. One whose secrets do not open is left out, so
    /// that it does not hold up the others.
    async fn secrets_of(&self, parcels: &[Parcel]) -> Result<HashMap<Uuid, Secrets>> {
        let mut owners: Vec<Uuid> = parcels.iter().map(|parcel| parcel.publisher_id).collect();
        owners.sort_unstable();
        owners.dedup();
        let rows = self.store.live_secrets(&owners).await?;
        let mut all = HashMap::with_capacity(owners.len());
        for owner in owners {
            let own = rows.iter().filter(|row| row.publisher_id == owner);
            match self.store.open_secrets(owner, own).await {
                Ok(secrets) => {
                    all.insert(owner, secrets);
                }
                Err(error @ StoreError::Unavailable(_)) => return Err(error),
                Err(error) => {
                    tracing::error!(publisher = %PublisherId::from_uuid(owner), %error, "a publisher's deliveries wait: its secrets do not open");
                }
            }
        }
        Ok(all)
    }

    /// Writes down how tries ended, all in one transaction. An outcome whose claim was lost to
    /// another one, or whose delivery was called off, changes nothing.
    ///
    /// Answers whether an endpoint said that it is gone: then
    /// [`System::disable_gone_endpoints`] is to be called.
    pub async fn record_outcomes(&self, outcomes: Vec<Outcome>) -> Result<bool, StoreError> {
        let (outcomes, backend) = (&outcomes, self.store.backend());
        self.store
            .write(|tx| async move {
                let mut noted = Vec::with_capacity(outcomes.len());
                for part in outcomes.chunks(RECORD_ROWS) {
                    let sql = record_sql(part, tx.now);
                    let mut counted = HashMap::with_capacity(part.len());
                    for row in tx.db().query_all_raw(sql.statement(backend)).await? {
                        let key: (Uuid, Uuid) =
                            (row.try_get("", "publisher_id")?, row.try_get("", "id")?);
                        let claim: (i64, Uuid) =
                            (row.try_get("", "fence")?, row.try_get("", "endpoint_id")?);
                        counted.insert(key, claim);
                    }
                    let mut rows = Vec::with_capacity(part.len());
                    for outcome in part {
                        let key = (outcome.publisher.uuid(), outcome.id.uuid());
                        let claim = counted.get(&key);
                        if let Some((_, endpoint)) =
                            claim.filter(|(fence, _)| *fence == outcome.fence)
                        {
                            rows.push(attempt_row(outcome));
                            noted.push(Try {
                                publisher: key.0,
                                endpoint: *endpoint,
                                at: outcome.at,
                                status_code: outcome.status_code,
                                error: outcome.error,
                                latency_ms: outcome.latency_ms,
                            });
                        }
                    }
                    if !rows.is_empty() {
                        delivery_attempts::Entity::insert_many(rows)
                            .exec_without_returning(tx.db())
                            .await?;
                    }
                }
                note_outcomes(&tx, &noted).await
            })
            .await
    }

    /// When the next delivery that may go out is due; in the past if one waits already. Those of
    /// the endpoints in `except` do not count.
    pub async fn next_due(&self, except: &[EndpointId]) -> Result<Option<Timestamp>, StoreError> {
        let mut sql = Sql::new("SELECT d.next_attempt_at FROM ");
        sql.push(DELIVERABLE);
        let except: Vec<Uuid> = except.iter().map(|id| id.uuid()).collect();
        without(&mut sql, &except);
        sql.push(" ORDER BY d.next_attempt_at LIMIT 1");
        let statement = sql.statement(self.store.backend());
        let row = self.store.read().query_one_raw(statement).await?;
        let at: Option<i64> = row
            .map(|row| row.try_get("", "next_attempt_at"))
            .transpose()?;
        Ok(at.map(Timestamp::from_ms))
    }

    /// Makes everything that an earlier process still held due at once; answers how much. For a
    /// process that has the store to itself and has claimed nothing yet: on PostgreSQL, where
    /// others may be at work, it does nothing, and leases run out by themselves.
    pub async fn release_leases(&self) -> Result<u64, StoreError> {
        use deliveries::Column;
        if self.store.backend() != DbBackend::Sqlite {
            return Ok(0);
        }
        self.store
            .write(|tx| async move {
                // A claim counts `fence` up and its outcome `attempts`. Once a lease was lost they
                // differ for good; then the time tells a lease from a longer wait for a retry.
                let done = deliveries::Entity::update_many()
                    .col_expr(Column::NextAttemptAt, tx.now.ms().into())
                    .filter(Column::Status.eq("pending"))
                    .filter(Column::NextAttemptAt.gt(tx.now.ms()))
                    .filter(Column::NextAttemptAt.lte(tx.now.plus(LEASE_MAX).ms()))
                    .filter(Expr::col(Column::Fence).gt(Expr::col(Column::Attempts)))
                    .exec(tx.db())
                    .await?;
                Ok(done.rows_affected)
            })
            .await
    }
}

impl Store {
    /// The live secrets of one publisher, opened.
    pub(crate) async fn secrets_of(&self, owner: Uuid) -> Result<Secrets> {
        let rows = self.live_secrets(&[owner]).await?;
        self.open_secrets(owner, rows.iter()).await
    }

    /// The sealed secrets of publishers that are live now, newest first.
    async fn live_secrets(&self, owners: &[Uuid]) -> Result<Vec<credentials::Model>> {
        let kinds = [
            CredentialKind::WebhookSigning,
            CredentialKind::SubcommandBearer,
        ];
        Ok(credentials::Entity::find()
            .filter(credentials::Column::PublisherId.is_in(owners.iter().copied()))
            .filter(credentials::Column::Kind.is_in(kinds.map(CredentialKind::as_str)))
            .filter(live_at(self.now()))
            .order_by_desc(credentials::Column::Id)
            .all(self.read())
            .await?)
    }

    async fn open_secrets(
        &self,
        owner: Uuid,
        rows: impl Iterator<Item = &credentials::Model> + Send,
    ) -> Result<Secrets> {
        let keys = self.inner.keys.of(self.read(), owner).await?;
        let mut secrets = Secrets::default();
        for row in rows {
            let secret = open_secret(&keys.data, row)?;
            if row.kind == CredentialKind::WebhookSigning.as_str() {
                secrets.signing.push(secret);
            } else if secrets.bearer.is_none() {
                secrets.bearer = Some(secret);
            }
        }
        Ok(secrets)
    }
}

impl Parcel {
    fn due(
        self,
        claim: &Claim,
        secrets: &Secrets,
        own: Option<&OwnSecrets>,
    ) -> Result<DueDelivery> {
        let headers = serde_json::from_str(&self.headers).map_err(|_| damaged("map of headers"))?;
        Ok(DueDelivery {
            publisher: PublisherId::from_uuid(self.publisher_id),
            id: DeliveryId::from_uuid(self.id),
            endpoint: EndpointId::from_uuid(claim.endpoint),
            fence: claim.fence,
            event: EventId::from_uuid(self.event_id),
            body: self.body,
            url: self.url,
            headers,
            bearer: if self.send_bearer {
                secrets.bearer.clone()
            } else {
                None
            },
            secrets: own.map_or(&secrets.signing, |own| &own.signing).clone(),
            attempt: claim.attempts.saturating_add(1),
        })
    }
}

/// The statement that writes outcomes, where the claim is still theirs.
fn record_sql(outcomes: &[Outcome], now: Timestamp) -> Sql {
    let mut sql =
        Sql::new("WITH outcome (owner, delivery, claim, becomes, due, ended, tries) AS (");
    sql.values(outcomes.iter().map(|outcome| {
        let due = outcome.next.due();
        vec![
            Value::from(outcome.publisher.uuid()),
            Value::from(outcome.id.uuid()),
            Value::from(outcome.fence),
            Value::from(outcome.next.status()),
            Value::from(due),
            Value::from(if due.is_none() { Some(now.ms()) } else { None }),
            Value::from(outcome.attempt),
        ]
    }));
    sql.push(
        ") UPDATE deliveries SET status = becomes, next_attempt_at = due, finished_at = ended, \
         attempts = tries FROM outcome \
         WHERE publisher_id = owner AND id = delivery AND fence = claim AND status = 'pending' \
         RETURNING publisher_id, id, fence, endpoint_id",
    );
    sql
}

fn attempt_row(outcome: &Outcome) -> delivery_attempts::ActiveModel {
    delivery_attempts::ActiveModel {
        publisher_id: Set(outcome.publisher.uuid()),
        delivery_id: Set(outcome.id.uuid()),
        number: Set(outcome.attempt),
        at: Set(outcome.at.ms()),
        status_code: Set(outcome.status_code.map(i32::from)),
        error: Set(outcome.error.map(str::to_owned)),
        latency_ms: Set(whole(outcome.latency_ms)),
        response_excerpt: Set(outcome.excerpt.clone()),
    }
}

#[cfg(test)]
mod tests;

//! Deliveries as their publisher sees them: their state, their attempts, and retries by hand.

use std::collections::HashMap;

use domain::{
    Code, Problem, Timestamp,
    audit::Action,
    id::{DeliveryId, EndpointId, EventId, Id as _},
};
use sea_orm::{
    ActiveValue::Set, ColumnTrait as _, ConnectionTrait, EntityTrait as _, QueryFilter as _,
    QueryOrder as _, QueryResult, QuerySelect as _, sea_query::LockType,
};
use serde_json::json;
use uuid::Uuid;

use crate::{
    store::{
        Scoped,
        change::{Answer, Audited, Context, audit_entry},
        db::Tx,
        entity::{deliveries, delivery_attempts, webhook_endpoints},
        error::{Result, StoreError, corrupt_row},
        page::{Page, PageRequest},
        sql::{Sql, by_primary_key, padded},
        walk::{Check, Path, Span, Walk},
    },
    webhooks::Webhooks,
    webhooks::recovery::resume,
};

/// Most attempts that are shown. A delivery has more only after many retries by hand.
const ATTEMPTS_SHOWN: u64 = 100;

/// One event on its way to one endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The delivery's identifier.
    pub id: DeliveryId,
    /// The event that is delivered.
    pub event_id: EventId,
    /// The endpoint to which it is delivered.
    pub endpoint_id: EndpointId,
    /// The event's type.
    pub event_type: String,
    /// `pending`, `succeeded`, `failed` or `cancelled`.
    pub status: String,
    /// How many attempts were made.
    pub attempts: i32,
    /// When the next attempt is due. In the past while an attempt runs, or while the delivery waits
    /// for its turn.
    pub next_attempt_at: Option<Timestamp>,
    /// When the delivery was written.
    pub created_at: Timestamp,
    /// When it stopped being pending.
    pub finished_at: Option<Timestamp>,
}

/// One HTTP request of a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The attempt's number, from 1.
    pub number: i32,
    /// When the attempt began.
    pub at: Timestamp,
    /// The status of the consumer's answer, if there was one.
    pub status_code: Option<i32>,
    /// The class of error; `None` for a success.
    pub error: Option<String>,
    /// How long the attempt took, in milliseconds.
    pub latency_ms: i64,
    /// The beginning of the body of the answer.
    pub response_excerpt: Option<String>,
}

/// Which deliveries a list contains.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeliveryFilter {
    /// Only deliveries to this endpoint.
    pub endpoint: Option<EndpointId>,
    /// Only deliveries of this event.
    pub event: Option<EventId>,
    /// Only deliveries in this state.
    pub status: Option<String>,
}

/// Whether deliveries in this state have an index of their own. Successful ones do not, since each
/// would need an entry. Pending ones are few or have another index.
fn was_not_made(status: &str) -> bool {
    matches!(status, "failed" | "cancelled")
}

impl DeliveryFilter {
    fn paths(&self) -> Vec<Path> {
        let mut paths = Vec::new();
        if let Some(event) = self.event {
            let value = [event.uuid().into()];
            paths.push(Path::by("deliveries_of_event", &["event_id"], value));
        }
        if let Some(endpoint) = self.endpoint {
            let value = [endpoint.uuid().into()];
            paths.push(Path::by("deliveries_by_endpoint", &["endpoint_id"], value));
        }
        if let Some(status) = self.status.as_deref().filter(|status| was_not_made(status)) {
            let path = Path::by("deliveries_not_made", &["status"], [status.into()]);
            paths.push(path.only("status IN ('failed', 'cancelled')"));
        }
        if paths.is_empty() {
            paths.push(Path::primary());
        }
        paths
    }

    fn wants(&self, row: &QueryResult) -> Result<bool> {
        let endpoint: Uuid = row.try_get("", "endpoint_id")?;
        let event: Uuid = row.try_get("", "event_id")?;
        let status: String = row.try_get("", "status")?;
        Ok(self.endpoint.is_none_or(|wanted| wanted.uuid() == endpoint)
            && self.event.is_none_or(|wanted| wanted.uuid() == event)
            && self.status.as_ref().is_none_or(|wanted| *wanted == status))
    }
}

fn delivery_of(row: deliveries::Model, event_type: String) -> Delivery {
    Delivery {
        id: DeliveryId::from_uuid(row.id),
        event_id: EventId::from_uuid(row.event_id),
        endpoint_id: EndpointId::from_uuid(row.endpoint_id),
        event_type,
        status: row.status,
        attempts: row.attempts,
        next_attempt_at: row.next_attempt_at.map(Timestamp::from_ms),
        created_at: Timestamp::from_ms(row.created_at),
        finished_at: row.finished_at.map(Timestamp::from_ms),
    }
}

fn attempt_of(row: delivery_attempts::Model) -> Attempt {
    Attempt {
        number: row.number,
        at: Timestamp::from_ms(row.at),
        status_code: row.status_code,
        error: row.error,
        latency_ms: row.latency_ms,
        response_excerpt: row.response_excerpt,
    }
}

/// The types of events by identifier.
async fn types_of<C: ConnectionTrait>(
    db: &C,
    publisher: Uuid,
    events: impl Iterator<Item = Uuid>,
) -> Result<HashMap<Uuid, String>> {
    let mut ids: Vec<Uuid> = events.collect();
    ids.sort_unstable();
    ids.dedup();
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let backend = db.get_database_backend();
    let mut sql = Sql::new("SELECT id, event_type FROM events");
    sql.push(&by_primary_key("events", backend));
    sql.push(" WHERE publisher_id = ").bind(publisher);
    sql.push(" AND id IN (").bind_list(padded(ids)).push(")");
    let rows = db.query_all_raw(sql.statement(backend)).await?;
    let pairs = rows
        .iter()
        .map(|row| Ok((row.try_get("", "id")?, row.try_get("", "event_type")?)));
    pairs.collect()
}

async fn with_type<C: ConnectionTrait>(db: &C, row: deliveries::Model) -> Result<Delivery> {
    let mut types = types_of(db, row.publisher_id, std::iter::once(row.event_id)).await?;
    let event_type = types
        .remove(&row.event_id)
        .ok_or_else(|| corrupt_row("delivery"))?;
    Ok(delivery_of(row, event_type))
}

/// Refuses a retry to an endpoint that gets no deliveries.
async fn check_endpoint(tx: &Tx, row: &deliveries::Model) -> Result<()> {
    let key = (row.publisher_id, row.endpoint_id);
    let endpoint = webhook_endpoints::Entity::find_by_id(key)
        .one(tx.db())
        .await?;
    let open = endpoint.is_some_and(|found| found.enabled && found.deleted_at.is_none());
    if open {
        Ok(())
    } else {
        Err(Code::EndpointDisabled.into())
    }
}

impl Webhooks<Scoped> {
    /// The publisher's deliveries, newest first.
    pub async fn deliveries(
        &self,
        filter: &DeliveryFilter,
        page: PageRequest<Uuid>,
    ) -> Result<Page<Delivery, Uuid>, StoreError> {
        use deliveries::Column;
        let owner = self.scope.uuid();
        let scan = self.store.scan(owner).await?;
        let db = scan.db();
        let paths = filter.paths();
        let wants = |row: &QueryResult| filter.wants(row);
        let said = paths.len() == 1 && filter.status.as_deref().is_none_or(was_not_made);
        let walk = Walk {
            check: (!said).then_some(Check {
                columns: &["endpoint_id", "event_id", "status"],
                wants: &wants,
            }),
            few: (filter.status.as_deref() == Some("pending"))
                .then_some(("deliveries_waiting", "status = 'pending'")),
            ..Walk::over("deliveries", owner, paths)
        };
        let found = walk.part(db, &page, Span::after(page.after)).await?;
        let rows = deliveries::Entity::find()
            .filter(Column::PublisherId.eq(owner))
            .filter(Column::Id.is_in(padded(found.keys.iter().copied())))
            .all(db)
            .await?;
        let types = types_of(db, owner, rows.iter().map(|row| row.event_id)).await?;
        Page::of_key_page(found, rows, |row| row.id).try_map(|row| {
            let event_type = types.get(&row.event_id).cloned();
            Ok(delivery_of(
                row,
                event_type.ok_or_else(|| corrupt_row("delivery"))?,
            ))
        })
    }

    /// One delivery with its attempts, oldest attempt first.
    pub async fn delivery(&self, id: DeliveryId) -> Result<(Delivery, Vec<Attempt>), StoreError> {
        use delivery_attempts::Column;
        let (db, owner) = (self.store.read(), self.scope.uuid());
        let row = deliveries::Entity::find_by_id((owner, id.uuid()))
            .one(db)
            .await?;
        let row = row.ok_or_else(Problem::not_found)?;
        let attempts = delivery_attempts::Entity::find()
            .filter(Column::PublisherId.eq(owner))
            .filter(Column::DeliveryId.eq(row.id))
            .order_by_desc(Column::Number)
            .limit(ATTEMPTS_SHOWN)
            .all(db)
            .await?;
        let attempts = attempts.into_iter().rev().map(attempt_of).collect();
        Ok((with_type(db, row).await?, attempts))
    }

    /// Makes a delivery due at once, even if it has ended. It also ends what blocks the endpoint's
    /// deliveries: a pause that the receiver asked for, and the circuit breaker's.
    pub async fn retry_delivery<A>(
        &self,
        context: &Context,
        id: DeliveryId,
        render: A,
    ) -> Result<Answer, StoreError>
    where
        A: Fn(&Delivery) -> Answer + Send + Sync,
    {
        let (store, owner) = (&self.store, self.scope.uuid());
        store
            .administer(
                context,
                owner,
                |tx| async move {
                    let row = deliveries::Entity::find_by_id((owner, id.uuid()))
                        .lock(LockType::NoKeyUpdate)
                        .one(tx.db())
                        .await?
                        .ok_or_else(Problem::not_found)?;
                    check_endpoint(&tx, &row).await?;
                    let row = deliveries::Entity::update(deliveries::ActiveModel {
                        publisher_id: Set(owner),
                        id: Set(row.id),
                        status: Set("pending".to_owned()),
                        next_attempt_at: Set(Some(tx.now.ms())),
                        finished_at: Set(None),
                        ..Default::default()
                    })
                    .exec(tx.db())
                    .await?;
                    resume(&tx, owner, row.endpoint_id).await?;
                    let delivery = with_type(tx.db(), row).await?;
                    let facts = json!({ "endpoint_id": delivery.endpoint_id.to_string() });
                    let entry = audit_entry(Action::DeliveryRetried, "delivery", id, facts);
                    Ok(Audited::new(delivery, owner, entry))
                },
                render,
            )
            .await
    }
}

//! Events, and the deliveries that each event starts.
//!
//! Both are written in the transaction of the change that they are about, and only inserted: no two
//! producers ever wait for the same row. There are two exceptions. For ordered endpoints, producers
//! take sequence numbers one after the other. And if there are many deliveries, only a fan-out is
//! written, from which the deliveries are written later (see [`crate::webhooks::fan_outs`]).

use std::collections::{BTreeSet, HashMap};

use domain::{
    Problem, Timestamp,
    event::{self, OwnType},
    id::{EventId, Id as _},
    run::RunStatus,
    slug::Slug,
};
use sea_orm::{
    ColumnTrait as _, EntityTrait as _, QueryFilter as _, QueryOrder as _, QueryResult, Select,
    sea_query::{Expr, ExprTrait as _},
};
use serde_json::Value;
use uuid::Uuid;

use crate::{
    store::{
        Scoped,
        db::Tx,
        entity::events,
        error::{Result, StoreError},
        page::{Page, PageRequest, bytes_of},
        sql, storage,
        walk::{Check, Path, Span, Walk, distinct},
    },
    webhooks::Webhooks,
    webhooks::{
        fan_outs::{self, Audience, Outgoing},
        listeners::{Listener, Listeners, listeners},
    },
};

/// An event as consumers get it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The event's identifier, and the `webhook-id` of its deliveries.
    pub id: EventId,
    /// Its type.
    pub event_type: String,
    /// The exact text that deliveries send and sign.
    pub body: String,
    /// When the event happened.
    pub created_at: Timestamp,
}

impl Event {
    pub(crate) fn of_row(row: events::Model) -> Self {
        Self {
            id: EventId::from_uuid(row.id),
            event_type: row.event_type,
            body: row.body,
            created_at: Timestamp::from_ms(row.created_at),
        }
    }
}

/// An event to write.
pub(crate) struct NewEvent<'a> {
    pub(crate) event_type: &'a str,
    /// The event's data, as JSON text.
    pub(crate) data: &'a str,
    /// The pipeline in which the event happened, if there was one.
    pub(crate) pipeline: Option<&'a str>,
}

fn event_row(tx: &Tx, publisher: Uuid, id: EventId, new: &NewEvent<'_>) -> events::Model {
    events::Model {
        publisher_id: publisher,
        id: id.uuid(),
        event_type: new.event_type.to_owned(),
        body: event::body(id, new.event_type, tx.now, new.data),
        created_at: tx.now.ms(),
        pipeline_slug: new.pipeline.map(str::to_owned),
        external_id: None,
    }
}

async fn insert_events(tx: &Tx, rows: &[events::Model]) -> Result<()> {
    for row in rows {
        tx.tells_of(row.publisher_id);
        tx.stores(row.publisher_id, storage::EVENT + row.body.len());
    }
    sql::insert(tx.db(), rows.to_vec(), "").await.map(drop)
}

/// Writes one event and a delivery for each endpoint that wants it.
pub(crate) async fn emit(
    tx: &Tx,
    publisher: Uuid,
    event_type: &str,
    data: &Value,
    pipeline: Option<&str>,
) -> Result<()> {
    let new = NewEvent {
        event_type,
        data: &data.to_string(),
        pipeline,
    };
    emit_all(tx, publisher, &[new]).await
}

/// Writes several events of one publisher; their identifiers sort in the order given.
pub(crate) async fn emit_all(tx: &Tx, publisher: Uuid, new: &[NewEvent<'_>]) -> Result<()> {
    let news: Vec<(Uuid, &NewEvent<'_>)> = new.iter().map(|new| (publisher, new)).collect();
    emit_many(tx, &news).await
}

/// Writes several events, each of its publisher; their identifiers sort in the order given.
pub(crate) async fn emit_many(tx: &Tx, news: &[(Uuid, &NewEvent<'_>)]) -> Result<()> {
    if news.is_empty() {
        return Ok(());
    }
    let mut ids: Vec<EventId> = news.iter().map(|_| EventId::generate(tx.now)).collect();
    ids.sort_unstable();
    let publishers = news.iter().map(|(publisher, _)| *publisher).collect();
    let listeners = listeners(tx, publishers).await?;
    let rows = news.iter().zip(ids);
    let rows = rows.map(|((publisher, new), id)| event_row(tx, *publisher, id, new));
    insert_and_deliver(tx, &listeners, rows.collect()).await
}

/// Inserts events, and a delivery of each for every listener that wants it.
async fn insert_and_deliver(
    tx: &Tx,
    listeners: &Listeners,
    rows: Vec<events::Model>,
) -> Result<()> {
    let mut audience = Audience::of(listeners);
    let outgoing = rows.iter().enumerate().map(|(call, event)| {
        let pipeline = event.pipeline_slug.as_deref();
        let to = audience.wanting(event.publisher_id, &event.event_type, pipeline);
        Outgoing { event, to, call }
    });
    let outgoing: Vec<Outgoing<'_>> = outgoing.collect();
    insert_events(tx, &rows).await?;
    fan_outs::deliver(tx, listeners, &outgoing).await
}

/// Writes an event about an endpoint, for the other endpoints that want it.
pub(crate) async fn emit_beside(
    tx: &Tx,
    (publisher, endpoint): (Uuid, Uuid),
    event_type: &str,
    data: &Value,
) -> Result<()> {
    let id = EventId::generate(tx.now);
    let new = NewEvent {
        event_type,
        data: &data.to_string(),
        pipeline: None,
    };
    let mut listeners = listeners(tx, BTreeSet::from([publisher])).await?;
    for some in listeners.values_mut() {
        some.retain(|to| to.endpoint != endpoint);
    }
    let event = event_row(tx, publisher, id, &new);
    insert_and_deliver(tx, &listeners, vec![event]).await
}

/// Writes an event for one endpoint, whatever its filters are.
pub(crate) async fn emit_to(
    tx: &Tx,
    (publisher, endpoint): (Uuid, Uuid),
    ordered: bool,
    event_type: &str,
    data: &Value,
) -> Result<Event> {
    let id = EventId::generate(tx.now);
    let new = NewEvent {
        event_type,
        data: &data.to_string(),
        pipeline: None,
    };
    let rows = [event_row(tx, publisher, id, &new)];
    insert_events(tx, &rows).await?;
    let only = Listener::alone(endpoint, ordered);
    let outgoing = rows.each_ref().map(|event| Outgoing {
        event,
        to: [0].into(),
        call: 0,
    });
    let listeners = HashMap::from([(publisher, vec![only])]);
    fan_outs::deliver(tx, &listeners, &outgoing).await?;
    let [row] = rows;
    Ok(Event::of_row(row))
}

impl Webhooks<Scoped> {
    /// The events that the scope reaches. A token that is limited to pipelines reaches events of
    /// those, and events of no pipeline.
    pub(crate) fn visible_events(&self) -> Select<events::Entity> {
        use events::Column;
        let query = events::Entity::find().filter(Column::PublisherId.eq(self.scope.uuid()));
        let Some(slugs) = self.scope.pipelines() else {
            return query;
        };
        let of_runs = RunStatus::ALL
            .into_iter()
            .map(|status| OwnType::of_run(status).as_str());
        let elsewhere = Column::PipelineSlug
            .is_null()
            // Events of runs that were written before events had a pipeline.
            .and(Column::EventType.is_not_in(of_runs));
        let here = Column::PipelineSlug.is_in(slugs.iter().map(Slug::as_str));
        query.filter(elsewhere.or(here))
    }

    /// Whether the scope reaches an event of this type and pipeline.
    pub(crate) fn sees_event(&self, event_type: &str, pipeline: Option<&str>) -> bool {
        let of_run = || {
            RunStatus::ALL
                .into_iter()
                .any(|status| OwnType::of_run(status).as_str() == event_type)
        };
        match pipeline {
            Some(slug) => self.scope.reaches(slug),
            None => self.scope.pipelines().is_none() || !of_run(),
        }
    }

    /// The publisher's events, newest first; only events of `event_type` if it is given.
    pub async fn events(
        &self,
        event_type: Option<&str>,
        page: PageRequest<Uuid>,
    ) -> Result<Page<Event, Uuid>, StoreError> {
        use events::Column;
        let owner = self.scope.uuid();
        let scan = self.store.scan(owner).await?;
        let db = scan.db();
        let mut paths = Vec::new();
        if let Some(event_type) = event_type {
            let value = [event_type.into()];
            paths.push(Path::by("events_by_type", &["event_type"], value));
        }
        if let Some(slugs) = self.scope.pipelines() {
            let mut values = distinct(slugs.iter().map(Slug::to_string));
            values.push(Option::<String>::None.into());
            paths.push(Path::by("events_by_pipeline", &["pipeline_slug"], values));
        }
        if paths.is_empty() {
            paths.push(Path::primary());
        }
        let wants = |row: &QueryResult| -> Result<bool> {
            let of: String = row.try_get("", "event_type")?;
            let pipeline: Option<String> = row.try_get("", "pipeline_slug")?;
            let asked = event_type.is_none_or(|wanted| wanted == of);
            Ok(asked && self.sees_event(&of, pipeline.as_deref()))
        };
        let limited = self.scope.pipelines().is_some();
        let walk = Walk {
            check: limited.then_some(Check {
                columns: &["event_type", "pipeline_slug"],
                wants: &wants,
            }),
            ..Walk::over("events", owner, paths)
        };
        let found = walk.part(db, &page, Span::after(page.after)).await?;
        let query = events::Entity::find()
            .filter(Column::PublisherId.eq(owner))
            .filter(Column::Id.is_in(sql::padded(found.keys.iter().copied())))
            .order_by_desc(Column::Id);
        let bytes = bytes_of(Expr::col(Column::Body));
        let size = |row: &events::Model| row.body.len();
        page.read_key_page(found, query, db, bytes, size, |row| row.id)
            .await?
            .try_map(|row| Ok(Event::of_row(row)))
    }

    /// Reads an event.
    pub async fn event(&self, id: EventId) -> Result<Event, StoreError> {
        let query = self
            .visible_events()
            .filter(events::Column::Id.eq(id.uuid()));
        let row = query.one(self.store.read()).await?;
        Ok(Event::of_row(row.ok_or_else(Problem::not_found)?))
    }
}

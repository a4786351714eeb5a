//! Events: what happened, as consumers get it, and as publishers tell of it.

mod publish;

use std::sync::Arc;

use poem_openapi::{
    Object, OpenApi,
    param::{Path, Query},
    types::Example,
};
use serde::Serialize;
use serde_json::{Value, json};

use domain::{
    Code, Problem, Timestamp,
    event::OwnType,
    id::{AccountId, EndpointId, EventId, Id as _, TokenId},
    limits::{PAYLOAD_BYTES, PUBLISH_BYTES},
    run::RunStatus,
};
use persistence::{Answer, Event, NewOwnEvent, Scope};

use crate::{
    auth::AdminOrRunner,
    common::{Ok, Tag, Time, parse_id},
    contract::{FAULTS_MAX, OperationDoc},
    cursor::{List, Listed},
    http::{ApiError, Body, RequestContext},
    idempotency::Idempotency,
    pipelines::schema::{Item, placed, too_long},
    runs::sample,
    shared::App,
    verbatim::Verbatim,
};

use publish::{NewEventBody, PublishBody, Published};

/// An event.
#[derive(Object, Serialize, Clone, Debug)]
#[oai(rename = "Event", example)]
pub struct EventView {
    /// `evt_…`, also the `webhook-id` of its deliveries: by it consumers know a repeat.
    id: String,
    /// Its type.
    r#type: String,
    /// When it happened.
    timestamp: Time,
    /// What happened; for a run's events `{"run": …}`, the run without its input.
    data: Verbatim,
}

impl EventView {
    /// An example of one of the service's own types.
    pub(crate) fn of_type(own: OwnType) -> Self {
        Self::sample(own.as_str(), example_data(own).into())
    }

    /// An example of any type.
    pub(crate) fn sample(event_type: &str, data: Verbatim) -> Self {
        Self {
            id: EventId::from_uuid(uuid::Uuid::nil()).to_string(),
            r#type: event_type.to_owned(),
            timestamp: Timestamp::from_ms(1_769_860_800_000).into(),
            data,
        }
    }
}

impl Example for EventView {
    fn example() -> Self {
        Self::of_type(OwnType::RunSucceeded)
    }
}

fn example_data(own: OwnType) -> Value {
    let run = |status| json!({ "run": sample(status).without_input().to_tree() });
    let endpoint = EndpointId::from_uuid(uuid::Uuid::nil()).to_string();
    match own {
        OwnType::RunCreated => run(RunStatus::Queued),
        OwnType::RunStarted => run(RunStatus::Running),
        OwnType::RunSucceeded => run(RunStatus::Succeeded),
        OwnType::RunFailed => run(RunStatus::Failed),
        OwnType::RunCancelled => run(RunStatus::Cancelled),
        OwnType::RunExpired => run(RunStatus::Expired),
        OwnType::TokenRotated | OwnType::TokenRevoked => {
            json!({ "id": TokenId::from_uuid(uuid::Uuid::nil()).to_string(), "kind": "admin" })
        }
        OwnType::EndpointDisabled => json!({
            "endpoint_id": endpoint,
            "reason": "failing",
            "failing_since": "2026-01-26T12:00:00.000Z",
            "last_error": "timeout",
        }),
        OwnType::EndpointFailing => json!({
            "endpoint_id": endpoint,
            "failing_since": "2026-01-30T12:00:00.000Z",
            "last_error": "timeout",
            "disabled_after": "2026-02-04T12:00:00.000Z",
        }),
        OwnType::AccountRefreshFailed => json!({
            "account_id": AccountId::from_uuid(uuid::Uuid::nil()).to_string(),
            "name": "team-one",
            "reason": "invalid_grant",
        }),
        OwnType::TrainExhausted => json!({
            "train": "chat",
            "available_at": "2026-01-31T12:05:00.000Z",
        }),
        OwnType::EndpointRecovered | OwnType::Test => json!({ "endpoint_id": endpoint }),
    }
}

/// The problems of these operations' own.
pub const DOCS: &[OperationDoc] = &[OperationDoc {
    operation_id: "publish_events",
    codes: &[Code::IdempotencyKeyReused],
}];

/// The operations on events.
pub struct Events {
    pub(crate) app: Arc<App>,
}

impl Events {
    /// Judges events by what the contract can't say: their types and sizes, and the schemas that
    /// their publisher has given for those types.
    async fn checked(
        &self,
        (request, scope): (&RequestContext, &Scope),
        bodies: Vec<NewEventBody>,
        listed: bool,
    ) -> Result<Vec<NewOwnEvent>, ApiError> {
        publish::check_types(&bodies, listed)?;
        let scoped = self.app.store.scoped(scope);
        let known = scoped.event_schemas().await?;
        let mut events = Vec::with_capacity(bodies.len());
        let mut faults = Vec::new();
        for (at, body) in bodies.into_iter().enumerate() {
            let data = body.data.0;
            if data.as_str().len() > PAYLOAD_BYTES {
                faults.push(placed(&publish::pointer(at, listed), too_long("data")));
            }
            events.push(NewOwnEvent {
                event_type: body.r#type.0,
                data,
                external_id: body.external_id,
                pipeline: body.pipeline,
            });
        }
        if !faults.is_empty() {
            faults.truncate(FAULTS_MAX);
            return Err(Problem::invalid(faults).into());
        }
        let mut items = Vec::new();
        for (at, event) in events.iter().enumerate() {
            if let Some(schema) = known.get(&event.event_type) {
                let pointer = publish::pointer(at, listed);
                items.push(Item::of_event(pointer, schema, &event.data));
            }
        }
        let check = self.app.schemas.check(scope.publisher(), &items);
        request.aside(check).await??;
        Ok(events)
    }
}

#[OpenApi(prefix_path = "/v1", tag = "Tag::Events")]
impl Events {
    /// Publish events
    ///
    /// One, or up to 1000 in `events`: all of them, or none and the faults of all. They are
    /// written in one transaction and happen in the order given; so are their deliveries, unless
    /// these are more than 128: then they follow over the next moments, and whatever becomes of
    /// the process. 1000000 of a publisher may wait like this; calls that would add some are then
    /// answered 429 `share_exceeded`. An
    /// `external_id` that one of the publisher's events has already writes nothing: that event is
    /// answered in its place, with 200 if it was asked for alone.
    #[oai(path = "/events", method = "post", operation_id = "publish_events")]
    async fn publish(
        &self,
        who: AdminOrRunner,
        request: &RequestContext,
        /// Makes repeats of the request harmless for 24 hours.
        #[oai(name = "Idempotency-Key")]
        key: Idempotency,
        body: Body<PublishBody, PUBLISH_BYTES>,
    ) -> Result<Published, ApiError> {
        let scope = &who.0.scope;
        let (bodies, listed) = body.0.events();
        let events = self.checked((request, scope), bodies, listed).await?;
        let key = key.of("publish_events", request);
        let context = self.app.context(request, who.0.actor(), key);
        let scoped = self.app.store.scoped(scope);
        let answer = scoped
            .publish(&context, events, listed, |published| {
                publish::answer(published, listed)
            })
            .await?;
        Ok(answer.into())
    }

    /// List events
    ///
    /// Newest first. A token that is limited to some pipelines sees what happened in those, and what
    /// happened in none. A part also ends at about 4 MiB.
    #[oai(path = "/events", method = "get", operation_id = "list_events")]
    async fn list(
        &self,
        who: AdminOrRunner,
        request: &RequestContext,
        /// Only events of exactly this type.
        #[oai(name = "type", validator(max_length = 128))]
        event_type: Query<Option<String>>,
        /// How many.
        #[oai(validator(minimum(value = "1"), maximum(value = "200")))]
        limit: Query<Option<u64>>,
        /// Where to go on: `next_cursor` of the part before.
        #[oai(validator(max_length = 200))]
        cursor: Query<Option<String>>,
    ) -> Result<Listed<EventView>, ApiError> {
        let scope = &who.0.scope;
        let list = List::begin(&self.app, request, Some(scope), limit.0, cursor.0).await?;
        let scoped = self.app.store.scoped(scope);
        let page = scoped.events(event_type.0.as_deref(), list.page()?).await?;
        Ok(list.written(page, |event, answer| answer.push_str(&event.body)))
    }

    /// Read an event
    #[oai(path = "/events/:id", method = "get", operation_id = "get_event")]
    async fn get(
        &self,
        who: AdminOrRunner,
        /// The event's identifier.
        #[oai(validator(max_length = 40))]
        id: Path<String>,
    ) -> Result<Ok<EventView>, ApiError> {
        let id = parse_id::<EventId>(&id.0)?;
        let event = self.app.store.scoped(&who.0.scope).event(id).await?;
        Ok(shown(200, &event).into())
    }
}

/// An event, shown by the very text that deliveries send.
pub(crate) fn shown(status: u16, event: &Event) -> Answer {
    Answer {
        status,
        body: event.body.clone(),
        etag: None,
        location: None,
        holds_secret: false,
        replayed: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::event;
    use poem_openapi::types::ToJSON as _;

    #[test]
    fn an_event_is_shown_as_it_is_delivered() {
        for own in OwnType::ALL {
            let at = Timestamp::from_ms(1_769_860_800_000);
            let id = EventId::from_uuid(uuid::Uuid::nil());
            let delivered = event::body(id, own.as_str(), at, &example_data(own).to_string());
            let described = EventView::of_type(own).to_json();
            assert_eq!(described, serde_json::from_str(&delivered).unwrap());
        }
    }
}

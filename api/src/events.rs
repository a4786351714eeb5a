//! Events: what happened, as consumers get it.

use std::sync::Arc;

use poem_openapi::{
    Object, OpenApi,
    param::{Path, Query},
    types::Example,
};
use serde_json::{Value, json};

use domain::{
    Timestamp,
    event::OwnType,
    id::{EndpointId, EventId, Id as _, TokenId},
    run::RunStatus,
};
use persistence::Event;

use crate::{
    auth::AdminOrRunner,
    common::{App, Ok, Tag, Time, parse_id},
    cursor::{List, Listed},
    http::{ApiError, RequestContext},
    runs::sample,
};

/// An event.
#[derive(Object, Clone, Debug)]
#[oai(rename = "Event", example)]
pub struct EventView {
    /// `evt_…`, also the `webhook-id` of its deliveries: by it consumers know a repeat.
    id: String,
    /// Its type.
    r#type: String,
    /// When it happened.
    timestamp: Time,
    /// What happened; for a run's events `{"run": …}`, the run without its input.
    data: Value,
}

impl From<&Event> for EventView {
    fn from(event: &Event) -> Self {
        // We wrote the body ourselves; what deliveries send is this text, not what is shown here.
        let mut body: Value = serde_json::from_str(&event.body).unwrap_or_default();
        Self {
            id: event.id.to_string(),
            r#type: event.event_type.clone(),
            timestamp: event.created_at.into(),
            data: body["data"].take(),
        }
    }
}

impl EventView {
    fn of_type(own: OwnType) -> Self {
        Self {
            id: EventId::from_uuid(uuid::Uuid::nil()).to_string(),
            r#type: own.as_str().to_owned(),
            timestamp: Timestamp::from_ms(1_769_860_800_000).into(),
            data: example_data(own),
        }
    }
}

impl Example for EventView {
    fn example() -> Self {
        Self::of_type(OwnType::RunSucceeded)
    }
}

fn example_data(own: OwnType) -> Value {
    let run = |status| json!({ "run": sample(status).without_input() });
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
        OwnType::EndpointDisabled => json!({ "endpoint_id": endpoint, "reason": "gone" }),
        OwnType::Test => json!({ "endpoint_id": endpoint }),
    }
}

const fn description(own: OwnType) -> &'static str {
    match own {
        OwnType::RunCreated => "A run was created.",
        OwnType::RunStarted => "A runner claimed a run.",
        OwnType::RunSucceeded => "A run finished well.",
        OwnType::RunFailed => "A run finished badly.",
        OwnType::RunCancelled => "A run was called off.",
        OwnType::RunExpired => "The tries of a run, or its time to live, ran out.",
        OwnType::TokenRotated => "Live credentials of a kind were replaced by a new one.",
        OwnType::TokenRevoked => "A credential was taken away.",
        OwnType::EndpointDisabled => "Nothing is delivered to an endpoint any more.",
        OwnType::Test => "Sent on request, to one endpoint.",
    }
}

/// A type of event that the service itself emits.
#[derive(Object, Clone, Debug)]
#[oai(example)]
pub struct EventType {
    /// The type.
    r#type: String,
    /// What it tells.
    description: String,
    /// A body as deliveries send it.
    example: EventView,
}

impl From<OwnType> for EventType {
    fn from(own: OwnType) -> Self {
        Self {
            r#type: own.as_str().to_owned(),
            description: description(own).to_owned(),
            example: EventView::of_type(own),
        }
    }
}

impl Example for EventType {
    fn example() -> Self {
        Self::from(OwnType::RunSucceeded)
    }
}

/// All types, on one page.
#[derive(Object, Clone, Debug)]
#[oai(example)]
pub struct EventTypes {
    /// The types.
    items: Vec<EventType>,
    /// Always null: there is no further page.
    #[oai(nullable)]
    next_cursor: Option<String>,
}

impl Example for EventTypes {
    fn example() -> Self {
        Self {
            items: vec![EventType::example()],
            next_cursor: None,
        }
    }
}

/// The operations on events.
pub struct Events {
    pub(crate) app: Arc<App>,
}

#[OpenApi(prefix_path = "/v1", tag = "Tag::Events")]
impl Events {
    /// List events
    ///
    /// Newest first. A token that is limited to some pipelines sees what happened in those, and what
    /// happened in none.
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
        Ok(list.answer(page, |event| EventView::from(&event)))
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
        Ok(Ok::show(&EventView::from(&event), None))
    }

    /// List event types
    ///
    /// The types that the service itself emits, each with an example.
    #[oai(
        path = "/event-types",
        method = "get",
        operation_id = "list_event_types"
    )]
    #[expect(clippy::unused_async, reason = "the macro wants handlers to be async")]
    async fn types(&self, _who: AdminOrRunner) -> Result<Ok<EventTypes>, ApiError> {
        let items = OwnType::ALL.into_iter().map(EventType::from).collect();
        Ok(Ok::show(
            &EventTypes {
                items,
                next_cursor: None,
            },
            None,
        ))
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
            let delivered = event::body(id, own.as_str(), at, &example_data(own));
            let event = Event {
                id,
                event_type: own.as_str().to_owned(),
                body: delivered.clone(),
                created_at: at,
            };
            let shown = EventView::from(&event).to_json();
            assert_eq!(shown, serde_json::from_str(&delivered).unwrap());
            assert_eq!(EventType::from(own).example.to_json(), shown);
        }
    }
}

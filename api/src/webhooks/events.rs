//! Events: what happened, as consumers get it, and as publishers tell of it.

mod publish;
pub(crate) mod views;

use std::sync::Arc;

use poem_openapi::{OpenApi, param::Query};

use domain::{
    Problem,
    id::EventId,
    limits::{PAYLOAD_BYTES, PUBLISH_BYTES},
    permission::{EventsPublish, EventsRead},
};
use persistence::{Answer, Event, NewOwnEvent, Scope};

use crate::{
    auth::Caller,
    schemas::{Item, placed, too_long},
    shared::{App, Idempotency, Listed, Ok, PageQuery, Path, Tag},
};
use web::{
    contract::FAULTS_MAX,
    http::{ApiError, Body, RequestContext},
};

use publish::{NewEventBody, PublishBody, Published};
use views::EventView;

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
        let known = scoped.webhooks().event_schemas().await?;
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

#[OpenApi(prefix_path = "/v1/events", tag = "Tag::Events")]
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
    #[oai(path = "/", method = "post", operation_id = "publish_events")]
    async fn publish(
        &self,
        who: Caller<EventsPublish>,
        key: Idempotency,
        body: Body<PublishBody, PUBLISH_BYTES>,
    ) -> Result<Published, ApiError> {
        let scope = who.scope();
        let (bodies, listed) = body.0.events();
        let events = self.checked((&who.request, scope), bodies, listed).await?;
        let context = who.context_with(key);
        let webhooks = who.scoped().webhooks();
        let answer = webhooks.publish(&context, events, listed, |published| {
            publish::answer(published, listed)
        });
        Ok(answer.await?.into())
    }

    /// List events
    ///
    /// Newest first. A token that is limited to some pipelines sees what happened in those, and what
    /// happened in none. A part also ends at about 4 MiB.
    #[oai(path = "/", method = "get", operation_id = "list_events")]
    async fn list(
        &self,
        who: Caller<EventsRead>,
        /// Only events of exactly this type.
        #[oai(name = "type", validator(max_length = 128))]
        event_type: Query<Option<String>>,
        page: PageQuery,
    ) -> Result<Listed<EventView>, ApiError> {
        let list = who.list(page).await?;
        let webhooks = who.scoped().webhooks();
        let page = webhooks
            .events(event_type.0.as_deref(), list.page()?)
            .await?;
        Ok(list.written(page, |event, answer| answer.push_str(&event.body)))
    }

    /// Get an event
    #[oai(path = "/:id", method = "get", operation_id = "get_event")]
    async fn get(
        &self,
        who: Caller<EventsRead>,
        Path(id): Path<EventId>,
    ) -> Result<Ok<EventView>, ApiError> {
        let event = who.scoped().webhooks().event(id).await?;
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

//! How publishers tell of events: one or a list, and what is answered.

use poem::{IntoResponse, Response};
use poem_openapi::{
    ApiResponse, Object,
    registry::{MetaResponses, MetaSchema, Registry},
    types::{ParseFromJSON, ParseResult, Type},
};
use serde_json::{Value, json};
use view_derive::Example;

use domain::{FaultCode, FieldError, Problem, event};
use persistence::{Answer, PublishedEvent};

use super::views::EventView;
use crate::{
    shared::{Verbatim, described, own_value, respond},
    webhooks::event_types::OwnTypeName,
};
use web::contract::FAULTS_MAX;

/// An event to publish.
#[derive(Object, Example, Clone, Debug)]
#[oai(
    rename = "NewEvent",
    example,
    deny_unknown_fields,
    skip_serializing_if_is_none
)]
pub struct NewEventBody {
    /// A type of the publisher's own: not one that begins with `run.` or `stationmaster.`.
    #[example(OwnTypeName("order.paid".into()))]
    pub(super) r#type: OwnTypeName,
    /// What happened: any JSON that the type's schema takes, at most 256 KiB, and 50 000 values where
    /// there is a schema. It is delivered as it came, to the byte.
    #[example(json!({"order": "A-1017"}))]
    pub(super) data: Verbatim,
    /// The caller's name for the event, unique within the publisher for as long as the event is
    /// kept.
    #[oai(validator(min_length = 1, max_length = 200))]
    #[example("order-A-1017-paid")]
    pub(super) external_id: Option<String>,
    /// The pipeline that it happened in; none if it is left out.
    #[oai(validator(min_length = 1, max_length = 63))]
    pub(super) pipeline: Option<String>,
}

/// Events to publish, all or none.
#[derive(Object, Example, Clone, Debug)]
#[oai(rename = "NewEvents", example, deny_unknown_fields)]
pub struct NewEventsBody {
    /// The events, in the order in which they happened.
    #[oai(validator(min_items = 1, max_items = 1000))]
    #[example([NewEventBody::example()])]
    events: Vec<NewEventBody>,
}

/// One event, or several.
#[derive(Clone, Debug)]
pub enum PublishBody {
    /// One.
    One(NewEventBody),
    /// Several.
    Several(NewEventsBody),
}

impl PublishBody {
    /// The events, and whether they came as a list.
    pub(super) fn events(self) -> (Vec<NewEventBody>, bool) {
        match self {
            Self::One(event) => (vec![event], false),
            Self::Several(list) => (list.events, true),
        }
    }
}

/// A schema of which one of two forms will do.
fn either<A: Type, B: Type>(registry: &mut Registry) -> MetaSchema {
    A::register(registry);
    B::register(registry);
    MetaSchema {
        any_of: vec![A::schema_ref(), B::schema_ref()],
        ..MetaSchema::ANY
    }
}

impl Type for PublishBody {
    own_value!("Publish");

    fn register(registry: &mut Registry) {
        registry.create_schema::<Self, _>("Publish".into(), either::<NewEventBody, NewEventsBody>);
    }
}

impl ParseFromJSON for PublishBody {
    fn parse_from_json(value: Option<Value>) -> ParseResult<Self> {
        use poem_openapi::types::ParseError;
        let listed = value
            .as_ref()
            .is_some_and(|value| !value["events"].is_null());
        if listed {
            let list = NewEventsBody::parse_from_json(value);
            return list.map(Self::Several).map_err(ParseError::propagate);
        }
        let event = NewEventBody::parse_from_json(value);
        event.map(Self::One).map_err(ParseError::propagate)
    }
}

/// Events that were published, in the order of the request.
#[derive(Object, Example, Clone, Debug)]
#[oai(example)]
pub struct PublishedEvents {
    /// The events.
    #[example([EventView::sample("order.paid", NewEventBody::example().data)])]
    items: Vec<EventView>,
}

/// What is answered: the event, or the list.
struct PublishedView;

impl Type for PublishedView {
    own_value!("Published");

    fn register(registry: &mut Registry) {
        registry.create_schema::<Self, _>("Published".into(), either::<EventView, PublishedEvents>);
    }
}

/// 202 with what was published, or 200 with the one event that was there already.
pub struct Published(Answer);

impl From<Answer> for Published {
    fn from(answer: Answer) -> Self {
        Self(answer)
    }
}

impl IntoResponse for Published {
    fn into_response(self) -> Response {
        respond(self.0)
    }
}

impl ApiResponse for Published {
    fn meta() -> MetaResponses {
        MetaResponses {
            responses: vec![described::<EventView>(200), described::<PublishedView>(202)],
        }
    }

    fn register(registry: &mut Registry) {
        EventView::register(registry);
        PublishedView::register(registry);
    }
}

/// The answer to a request that was done. An event is shown by the very text that deliveries send.
pub(super) fn answer(published: &[PublishedEvent], listed: bool) -> Answer {
    let repeat = !listed && published.iter().all(|one| one.existed);
    let texts: Vec<&str> = published
        .iter()
        .map(|one| one.event.body.as_str())
        .collect();
    let body = texts.join(",");
    let body = if listed {
        format!(r#"{{"items":[{body}]}}"#)
    } else {
        body
    };
    Answer::new(if repeat { 200 } else { 202 }, body)
}

/// Where an event stands in its request.
pub(super) fn pointer(at: usize, listed: bool) -> String {
    if listed {
        format!("/events/{at}")
    } else {
        String::new()
    }
}

/// Refuses types that are not a publisher's to publish.
pub(super) fn check_types(events: &[NewEventBody], listed: bool) -> Result<(), Problem> {
    let mut faults = Vec::new();
    for (at, body) in events.iter().enumerate() {
        if faults.len() < FAULTS_MAX && !event::is_publishable(&body.r#type.0) {
            let pointer = format!("{}/type", pointer(at, listed));
            let detail = "Types that begin with `run.` or `stationmaster.` are the service's own.";
            faults.push(FieldError::new(pointer, FaultCode::NotAllowed, detail));
        }
    }
    if faults.is_empty() {
        return Ok(());
    }
    Err(Problem::invalid(faults))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_of_a_list_are_told_where_they_are() {
        let contract = web::contract::Contract::new(crate::openapi_document()).unwrap();
        let faults_of = |body: Value| -> Vec<(String, String)> {
            let found = contract.faults("Publish", &body).unwrap().into_iter();
            found
                .map(|fault| (fault.pointer, fault.code.to_string()))
                .collect()
        };
        let good = json!({"type": "a.b", "data": 1});
        assert_eq!(faults_of(good.clone()), []);
        assert_eq!(faults_of(json!({"events": [good]})), []);
        let bad = json!({"type": "A", "data": 1, "x": 1});
        let mut found = faults_of(json!({"events": [good, bad, bad, bad]}));
        found.sort();
        let expected = (1..4).flat_map(|at| {
            [
                (format!("/events/{at}/type"), "pattern".to_owned()),
                (format!("/events/{at}/x"), "unknown_field".to_owned()),
            ]
        });
        assert_eq!(found, expected.collect::<Vec<_>>());
        assert_eq!(
            faults_of(json!({"type": "A", "data": 1})),
            [("/type".to_owned(), "pattern".to_owned())]
        );
        assert_eq!(
            faults_of(json!({"events": []})),
            [("/events".to_owned(), "too_short".to_owned())]
        );
    }
}

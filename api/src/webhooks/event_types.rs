//! Types of events: the service's own, and what publishers say of theirs.

use std::{collections::BTreeMap, sync::Arc};

use poem_openapi::{
    Object, OpenApi,
    registry::{MetaSchema, MetaSchemaRef},
    types::{ParseError, ParseFromJSON, ParseResult, ToJSON, Type},
};
use serde::Serialize;
use serde_json::{Value, json};
use view_derive::{Example, View};

use domain::{
    FaultCode, FieldError, JsonText, Problem,
    event::{MAX_TYPE_LEN, OwnType, TYPE_PATTERN, is_publishable},
    id::PublisherId,
    limits::EXAMPLE_BYTES,
    permission::{EventTypesRead, EventTypesWrite, EventsRead},
};
use persistence::{Answer, EventTypePut, PublishersType};

use crate::{
    auth::Caller,
    schemas::Schemas,
    shared::{
        App, IfMatch, NoContent, Ok, OkOrCreated, Path, PathValue, Tag, Text, Verbatim,
        answer_text, created, no_content, own_value,
    },
    webhooks::events::views::EventView,
};
use web::http::{ApiError, Body};

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
        OwnType::EndpointFailing => "Every try at an endpoint has failed for a day.",
        OwnType::EndpointRecovered => "An endpoint that was said to fail works again.",
        OwnType::AccountRefreshFailed => "An account can't be refreshed any more.",
        OwnType::TrainExhausted => "No account of a train is usable.",
        OwnType::Test => "Sent on request, to one endpoint.",
    }
}

/// A type of events.
#[derive(Object, View, Example, Serialize, Clone, Debug)]
#[oai(example)]
#[view(of = PublishersType)]
#[example(OwnType::RunSucceeded)]
pub struct EventType {
    /// The event type.
    #[view(field = event_type)]
    r#type: String,
    /// What it tells.
    #[oai(nullable)]
    description: Option<String>,
    /// A body as deliveries send it.
    #[oai(nullable)]
    #[view(from = example_of(of))]
    example: Option<EventView>,
    /// The JSON Schema that the data of every event of it fits; null for any.
    #[oai(nullable)]
    schema: Option<Value>,
    /// Whether the service itself emits it. The others are the publisher's own.
    #[view(from = false)]
    built_in: bool,
}

impl From<OwnType> for EventType {
    fn from(own: OwnType) -> Self {
        Self {
            r#type: own.as_str().to_owned(),
            description: Some(description(own).to_owned()),
            example: Some(EventView::of_type(own)),
            schema: None,
            built_in: true,
        }
    }
}

/// The example that a publisher gave of its event type.
fn example_of(described: &PublishersType) -> Option<EventView> {
    let data = Verbatim(described.example.clone()?);
    Some(EventView::sample(&described.event_type, data))
}

/// All types, on one page.
#[derive(Object, Example, Serialize, Clone, Debug)]
#[oai(example)]
pub struct EventTypes {
    /// The types: the service's own, then those that the publisher has described, by name.
    #[example([EventType::example()])]
    items: Vec<EventType>,
    /// Always null: there is no further page.
    #[oai(nullable)]
    next_cursor: Option<String>,
}

fn example_schema() -> BTreeMap<String, Value> {
    let members = [
        ("type", json!("object")),
        ("required", json!(["order"])),
        (
            "properties",
            json!({"order": {"type": "string", "maxLength": 40}}),
        ),
    ];
    members.map(|(name, value)| (name.to_owned(), value)).into()
}

/// What is to be said of a type. What is left out is said no more.
#[derive(Object, Example, Clone, Debug)]
#[oai(rename = "EventTypeDescription", example, deny_unknown_fields)]
pub struct EventTypeBody {
    /// What it tells, for people.
    #[oai(nullable, validator(max_length = 1000))]
    #[example("An order was paid.")]
    description: Option<String>,
    /// Data of such an event, at most 8 KiB; it must fit the schema.
    #[oai(nullable)]
    #[example(json!({"order": "A-1017"}))]
    example: Option<Verbatim>,
    /// JSON Schema that the data of every event of the type must fit from now on, by the rules of
    /// a pipeline's; null takes anything.
    #[oai(nullable, validator(max_properties = 1000))]
    #[example(example_schema())]
    schema: Option<BTreeMap<String, Value>>,
}

impl EventTypeBody {
    /// Checks what the contract can't say.
    async fn checked(
        self,
        schemas: &Schemas,
        publisher: PublisherId,
    ) -> Result<EventTypePut, Problem> {
        let schema: Option<Value> = self.schema.map(|members| members.into_iter().collect());
        let example = self.example.map(|example| example.0);
        let is_long = |example: &JsonText| example.as_str().len() > EXAMPLE_BYTES;
        let mut faults = Vec::new();
        if example.as_ref().is_some_and(is_long) {
            let detail = format!("`example` may have at most {EXAMPLE_BYTES} bytes of JSON.");
            faults.push(FieldError::new("/example", FaultCode::TooLong, detail));
        }
        let judged = example.clone().filter(|_| faults.is_empty());
        let schema_at = schema.iter().map(|schema| ("/schema", schema.clone()));
        let found = schemas.faults(
            publisher,
            schema_at.collect(),
            judged.map(|text| ("/example", text.into_string())),
        );
        faults.extend(found.await?);
        if !faults.is_empty() {
            return Err(Problem::invalid(faults));
        }
        Ok(EventTypePut {
            description: self.description,
            example,
            schema,
        })
    }
}

/// The name of a type of a publisher's own.
///
/// Its pattern is the contract's alone: a validator of the parser would compile it for every event.
#[derive(Clone, Debug)]
pub struct OwnTypeName(pub(crate) String);

impl OwnTypeName {
    fn checked(self) -> Result<String, Problem> {
        if is_publishable(&self.0) {
            return Ok(self.0);
        }
        let detail = format!(
            "A type of your own must match `{TYPE_PATTERN}`, have at most {MAX_TYPE_LEN} \
             characters, and not begin with `run.` or `stationmaster.`."
        );
        Err(Problem::parameter("/path/type", detail))
    }
}

impl Type for OwnTypeName {
    own_value!(
        "string_event_type",
        MetaSchema {
            pattern: Some(TYPE_PATTERN.to_owned()),
            max_length: Some(MAX_TYPE_LEN),
            ..MetaSchema::new("string")
        }
    );
}

impl PathValue for OwnTypeName {
    fn schema() -> MetaSchemaRef {
        Self::schema_ref()
    }

    fn of_path(text: &str) -> Option<Self> {
        Some(Self(text.to_owned()))
    }
}

impl ParseFromJSON for OwnTypeName {
    fn parse_from_json(value: Option<Value>) -> ParseResult<Self> {
        let text = String::parse_from_json(value);
        text.map(Self).map_err(ParseError::propagate)
    }
}

impl ToJSON for OwnTypeName {
    fn to_json(&self) -> Option<Value> {
        Some(Value::String(self.0.clone()))
    }
}

/// The operations on types of events.
pub struct EventTypesApi {
    pub(crate) app: Arc<App>,
}

#[OpenApi(prefix_path = "/v1/event-types", tag = "Tag::Events")]
impl EventTypesApi {
    /// List event types
    ///
    /// The types that the service itself emits, each with an example, and those that the
    /// publisher has described. Its schemas are shown one by one.
    #[oai(path = "/", method = "get", operation_id = "list_event_types")]
    async fn list(&self, who: Caller<EventsRead>) -> Result<Ok<EventTypes>, ApiError> {
        let described = who.scoped().webhooks().event_types().await?;
        let own = described.iter().map(|described| EventType {
            schema: None,
            ..EventType::from(described)
        });
        let items = OwnType::ALL.into_iter().map(EventType::from).chain(own);
        Ok(Ok::text(
            &EventTypes {
                items: items.collect(),
                next_cursor: None,
            },
            None,
        ))
    }

    /// Create or update an event type's description
    ///
    /// One of the publisher's own. Types need not be described to be published; those with a
    /// schema take only data that fits it. A change counts for whatever is published after the
    /// answer, on other processes after a second.
    #[oai(path = "/:type", method = "put", operation_id = "put_event_type")]
    async fn put(
        &self,
        who: Caller<EventTypesWrite>,
        /// The event type.
        Path(r#type): Path<OwnTypeName>,
        /// The revision that is to be replaced; `*` for any, but not for a type that is not
        /// described.
        if_match: IfMatch,
        body: Body<EventTypeBody>,
    ) -> Result<OkOrCreated<EventType>, ApiError> {
        let name = r#type.checked()?;
        let checked = body.0.checked(&self.app.schemas, who.publisher());
        let new = who.request.aside(checked).await??;
        let context = who.context();
        let webhooks = who.scoped().webhooks();
        let render = |(described, is_new): &(PublishersType, bool)| {
            if *is_new {
                created(shown(described), format!("/v1/event-types/{name}"))
            } else {
                shown(described)
            }
        };
        let put = webhooks.put_event_type(&context, &name, new, if_match.0, render);
        Ok(put.await?.into())
    }

    /// Get an event type
    #[oai(path = "/:type", method = "get", operation_id = "get_event_type")]
    async fn get(
        &self,
        who: Caller<EventTypesRead>,
        /// The event type.
        Path(r#type): Path<Text<128>>,
    ) -> Result<Ok<EventType>, ApiError> {
        let name = r#type.0;
        if let Some(own) = OwnType::ALL.into_iter().find(|own| own.as_str() == name) {
            return Ok(Ok::text(&EventType::from(own), None));
        }
        let described = who.scoped().webhooks().event_type(&name).await?;
        Ok(shown(&described).into())
    }

    /// Delete an event type's description
    ///
    /// Events of the type stay, and it may still be published.
    #[oai(path = "/:type", method = "delete", operation_id = "delete_event_type")]
    async fn delete(
        &self,
        who: Caller<EventTypesWrite>,
        /// The event type.
        Path(r#type): Path<Text<128>>,
        if_match: IfMatch,
    ) -> Result<NoContent, ApiError> {
        let context = who.context();
        let webhooks = who.scoped().webhooks();
        let name = r#type.0;
        let answer = webhooks.delete_event_type(&context, &name, if_match.0, |()| no_content());
        Ok(answer.await?.into())
    }
}

/// A publisher's type as it is now.
fn shown(described: &PublishersType) -> Answer {
    answer_text(200, &EventType::from(described)).revision(described.revision)
}

//! A small API that has one of everything, for the tests of this crate's shared parts.

use std::{borrow::Cow, collections::HashMap, time::Duration};

use poem::{Request, RequestBody};
use poem_openapi::{
    ApiExtractor, ApiExtractorType, ApiResponse, Enum, ExtractParamOptions, Object, OpenApi,
    OpenApiService, Tags, Union,
    param::{Path, Query},
    payload::Json,
    registry::{MetaSchema, MetaSchemaRef, MetaSecurityScheme, Registry},
    types::{Example, MaybeUndefined, ParseError, ParseFromJSON, ParseResult, ToJSON, Type},
};
use serde_json::Value;

use domain::{Code, Problem};

use crate::{
    contract::OperationDoc,
    http::{ApiError, Body, OptionalBody, Patch, RequestContext},
};

pub const OPERATIONS: &[OperationDoc] = &[OperationDoc {
    operation_id: "create_thing",
    codes: &[Code::QuotaExceeded],
}];

/// The document that this program publishes. A test of the crate that writes it compares the two.
pub fn published() -> Value {
    serde_json::from_str(include_str!("../../openapi/stationmaster.json")).unwrap()
}

pub fn service() -> OpenApiService<Sample, ()> {
    OpenApiService::new(Sample, "Sample", "1.0")
}

/// Stands for the real guards: only the documentation of who may.
macro_rules! guard {
    ($name:ident, $scheme:literal) => {
        pub struct $name;

        impl<'a> ApiExtractor<'a> for $name {
            const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::SecurityScheme];
            type ParamType = ();
            type ParamRawType = ();

            fn register(registry: &mut Registry) {
                registry.create_security_scheme(
                    $scheme,
                    MetaSecurityScheme {
                        ty: "http",
                        description: None,
                        name: None,
                        key_in: None,
                        scheme: Some("bearer"),
                        bearer_format: None,
                        flows: None,
                        openid_connect_url: None,
                    },
                );
            }

            fn security_schemes() -> Vec<&'static str> {
                vec![$scheme]
            }

            async fn from_request(
                _: &'a Request,
                _: &mut RequestBody,
                _: ExtractParamOptions<()>,
            ) -> poem::Result<Self> {
                Ok(Self)
            }
        }
    };
}

guard!(AdminOrRunner, "admin_or_runner");
guard!(Bootstrap, "bootstrap");

#[derive(Tags)]
enum Tag {
    /// Things of all sorts.
    Things,
}

#[derive(Enum, Clone, Copy)]
#[oai(rename_all = "snake_case")]
enum Colour {
    Red,
    Green,
}

#[derive(Object, Clone)]
struct Part {
    #[oai(validator(minimum(value = "1"), maximum(value = "5")))]
    weight: u8,
}

#[derive(Object, Clone)]
struct Limits {
    #[oai(validator(minimum(value = "0"), maximum(value = "100")))]
    low: i32,
}

#[derive(Object, Clone)]
struct Circle {
    radius: u32,
}

#[derive(Object, Clone)]
struct Square {
    #[oai(validator(minimum(value = "1")))]
    side: u32,
}

#[derive(Union, Clone)]
#[oai(discriminator_name = "kind")]
enum Shape {
    #[oai(mapping = "circle")]
    Circle(Circle),
    #[oai(mapping = "square")]
    Square(Square),
}

/// A thing to make.
#[derive(Object, Clone)]
#[oai(example, skip_serializing_if_is_none)]
pub struct NewThing {
    /// Its name in paths.
    #[oai(validator(pattern = "^[a-z0-9][a-z0-9-]{0,62}$"))]
    slug: String,
    /// Its name for people.
    #[oai(validator(min_length = 1, max_length = 100))]
    name: String,
    /// Anything to remember.
    #[oai(nullable, validator(max_length = 20))]
    note: Option<String>,
    #[oai(validator(minimum(value = "1"), maximum(value = "9")))]
    size: Option<u8>,
    count: Option<u32>,
    #[oai(validator(max_items = 3, unique_items, max_length = 10))]
    labels: Option<Vec<String>>,
    #[oai(validator(max_items = 40))]
    parts: Option<Vec<Part>>,
    colour: Option<Colour>,
    due: Option<Time>,
    #[oai(nullable)]
    limits: Option<Limits>,
    shape: Option<Shape>,
    #[oai(validator(max_properties = 3))]
    tags: Option<HashMap<String, bool>>,
    extra: Option<Value>,
}

impl Example for NewThing {
    fn example() -> Self {
        Self {
            slug: "nightly".into(),
            name: "Nightly".into(),
            note: None,
            size: Some(3),
            count: None,
            labels: None,
            parts: Some(vec![Part { weight: 1 }]),
            colour: Some(Colour::Red),
            due: None,
            limits: None,
            shape: None,
            tags: None,
            extra: None,
        }
    }
}

/// A time, as text: the least that a type of its own format needs.
#[derive(Clone)]
struct Time(String);

impl Type for Time {
    const IS_REQUIRED: bool = true;
    type RawValueType = Self;
    type RawElementValueType = Self;

    fn name() -> Cow<'static, str> {
        "time".into()
    }

    fn schema_ref() -> MetaSchemaRef {
        MetaSchemaRef::Inline(Box::new(MetaSchema::new_with_format("string", "date-time")))
    }

    fn as_raw_value(&self) -> Option<&Self> {
        Some(self)
    }

    fn raw_element_iter<'a>(&'a self) -> Box<dyn Iterator<Item = &'a Self> + 'a> {
        Box::new(self.as_raw_value().into_iter())
    }
}

impl ParseFromJSON for Time {
    fn parse_from_json(value: Option<Value>) -> ParseResult<Self> {
        String::parse_from_json(value)
            .map(Self)
            .map_err(ParseError::propagate)
    }
}

impl ToJSON for Time {
    fn to_json(&self) -> Option<Value> {
        self.0.to_json()
    }
}

/// A tenant to make.
#[derive(Object)]
#[oai(example)]
struct NewTenant {
    #[oai(validator(max_length = 20))]
    name: String,
}

impl Example for NewTenant {
    fn example() -> Self {
        Self {
            name: "acme".into(),
        }
    }
}

/// Small.
#[derive(Object)]
#[oai(example)]
struct Small {
    #[oai(validator(max_length = 1000))]
    note: Option<String>,
}

impl Example for Small {
    fn example() -> Self {
        Self {
            note: Some("x".into()),
        }
    }
}

#[derive(Object)]
#[oai(example)]
struct Rotate {
    #[oai(validator(minimum(value = "0"), maximum(value = "60")))]
    overlap_seconds: Option<u32>,
}

impl Example for Rotate {
    fn example() -> Self {
        Self {
            overlap_seconds: Some(5),
        }
    }
}

/// What to change.
#[derive(Object)]
#[oai(example)]
struct Change {
    #[oai(validator(max_length = 20))]
    name: Option<String>,
    #[oai(nullable, validator(max_length = 20))]
    note: MaybeUndefined<String>,
}

impl Example for Change {
    fn example() -> Self {
        Self {
            name: Some("x".into()),
            note: MaybeUndefined::Null,
        }
    }
}

#[derive(Object)]
#[oai(example)]
struct Changed {
    changes: String,
}

impl Example for Changed {
    fn example() -> Self {
        Self {
            changes: "note goes".into(),
        }
    }
}

#[derive(Object)]
struct Things {
    items: Vec<NewThing>,
    #[oai(nullable)]
    next_cursor: Option<String>,
}

#[derive(ApiResponse)]
enum Created {
    /// The thing.
    #[oai(status = 201)]
    Thing(Json<NewThing>, #[oai(header = "Location")] String),
}

pub struct Sample;

#[expect(clippy::unused_async, reason = "the macro wants handlers to be async")]
#[OpenApi(prefix_path = "/v1", tag = "Tag::Things")]
impl Sample {
    /// Answer
    #[oai(path = "/ping", method = "get", operation_id = "ping")]
    async fn ping(&self, context: &RequestContext) -> Json<Changed> {
        Json(Changed {
            changes: context.request_id().to_owned(),
        })
    }

    /// Take little
    #[oai(path = "/ping/small", method = "post", operation_id = "small")]
    async fn small(&self, _body: Body<Small, 256>) -> Json<Changed> {
        Json(Changed::example())
    }

    /// Make a thing
    #[oai(path = "/things", method = "post", operation_id = "create_thing")]
    async fn create(&self, _who: AdminOrRunner, body: Body<NewThing>) -> Result<Created, ApiError> {
        let location = format!("/v1/things/{}", body.0.slug);
        Ok(Created::Thing(Json(body.0), location))
    }

    /// List things
    #[oai(path = "/things", method = "get", operation_id = "list_things")]
    async fn list(
        &self,
        _who: AdminOrRunner,
        /// Page size.
        #[oai(validator(minimum(value = "1"), maximum(value = "200")))]
        limit: Query<Option<u64>>,
        /// Cursor: the `next_cursor` of the previous page.
        #[oai(validator(max_length = 500))]
        cursor: Query<Option<String>>,
    ) -> Result<Json<Things>, ApiError> {
        let _ = (limit, cursor);
        Ok(Json(Things {
            items: vec![NewThing::example()],
            next_cursor: None,
        }))
    }

    /// Read a thing
    #[oai(path = "/things/:slug", method = "get", operation_id = "get_thing")]
    async fn get(
        &self,
        _who: AdminOrRunner,
        /// Which.
        #[oai(validator(max_length = 63))]
        slug: Path<String>,
    ) -> Result<Json<NewThing>, ApiError> {
        match slug.0.as_str() {
            "panic" => panic!("as the test asked"),
            "slow" => tokio::time::sleep(Duration::from_hours(1)).await,
            "internal" => return Err(Code::Internal.into()),
            "missing" => return Err(Problem::not_found().into()),
            _ => {}
        }
        Ok(Json(NewThing::example()))
    }

    /// Change a thing
    #[oai(path = "/things/:slug", method = "patch", operation_id = "patch_thing")]
    async fn patch(
        &self,
        _who: AdminOrRunner,
        /// Which.
        #[oai(validator(max_length = 63))]
        slug: Path<String>,
        body: Patch<Change>,
    ) -> Result<Json<Changed>, ApiError> {
        let _ = (slug, body.0.name);
        let changes = match body.0.note {
            MaybeUndefined::Undefined => "note stays".to_owned(),
            MaybeUndefined::Null => "note goes".to_owned(),
            MaybeUndefined::Value(text) => format!("note is {text}"),
        };
        Ok(Json(Changed { changes }))
    }

    /// Rotate a thing
    #[oai(
        path = "/things/:slug/rotate",
        method = "post",
        operation_id = "rotate_thing"
    )]
    async fn rotate(
        &self,
        _who: AdminOrRunner,
        /// Which.
        #[oai(validator(max_length = 63))]
        slug: Path<String>,
        body: OptionalBody<Rotate>,
    ) -> Result<Json<Changed>, ApiError> {
        let _ = (slug, body.0.overlap_seconds);
        Ok(Json(Changed::example()))
    }

    /// Make a tenant
    #[oai(path = "/tenants", method = "post", operation_id = "create_tenant")]
    async fn tenant(
        &self,
        _who: Bootstrap,
        body: Body<NewTenant>,
    ) -> Result<Json<NewTenant>, ApiError> {
        Ok(Json(body.0))
    }
}

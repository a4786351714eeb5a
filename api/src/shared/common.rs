//! What every resource needs: answers, and the small types of the wire.

use std::marker::PhantomData;

use poem::{
    IntoResponse, Request, RequestBody, Response,
    http::{HeaderName, HeaderValue, StatusCode, header},
};
use poem_openapi::{
    ApiExtractor, ApiExtractorType, ApiResponse, ExtractParamOptions, Tags,
    registry::{
        MetaHeader, MetaMediaType, MetaParamIn, MetaResponse, MetaResponses, MetaSchema,
        MetaSchemaRef, Registry,
    },
    types::{
        Example, MaybeUndefined, ParseError, ParseFromJSON, ParseFromParameter, ParseResult,
        ToJSON, Type,
    },
};
use serde::{Serialize, Serializer};
use serde_json::Value;

use domain::{Problem, Timestamp};
use persistence::{Answer, Expected};

use crate::shared::own_value;
use web::http::ApiError;

/// The chapters of the reference.
#[derive(Clone, Copy, Tags)]
pub enum Tag {
    /// What the operator of the service does: publishers, their quotas, the operator's own log.
    Operator,
    /// What a publisher knows and changes of itself.
    Publisher,
    /// The four kinds of credential of a publisher.
    Credentials,
    /// Who changed what, in a log that shows tampering.
    Audit,
    /// Kinds of work.
    Pipelines,
    /// Pieces of work: started, claimed, finished.
    Runs,
    /// What happened, in the order in which it did.
    Events,
    /// Where events are delivered to.
    Webhooks,
    /// Upstream credentials, and the trains that lend them to gateways.
    Trains,
    /// How people sign in, and what they see and change of themselves.
    People,
    /// The people who work for a publisher, and those who are invited to.
    Members,
}

/// An answer with `value` as its body; [`Answer`] has methods for its `ETag`, its location, and
/// whether it holds a secret.
#[must_use]
pub fn answer<T: ToJSON>(status: u16, value: &T) -> Answer {
    Answer::new(status, value.to_json_string())
}

/// The same of what holds callers' own JSON: it is written as the text that it is, and no tree of
/// it is built.
#[must_use]
pub fn answer_text<T: Serialize>(status: u16, value: &T) -> Answer {
    // Strings, numbers and JSON that parsed are always written.
    Answer::new(status, serde_json::to_string(value).unwrap_or_default())
}

/// The answer that shows a thing, for one that was made just now and is found at `location`.
#[must_use]
pub fn created(shown: Answer, location: String) -> Answer {
    let new = Answer {
        status: 201,
        ..shown
    };
    new.at(location)
}

/// 204.
#[must_use]
pub fn no_content() -> Answer {
    Answer::new(204, String::new())
}

/// An answer as it goes out.
pub(crate) fn respond(answer: Answer) -> Response {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = Response::builder().status(status).finish();
    let headers = response.headers_mut();
    let mut insert = |name: HeaderName, value: String| {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(name, value);
        }
    };
    if let Some(revision) = answer.etag {
        insert(header::ETAG, format!("\"{revision}\""));
    }
    if let Some(location) = answer.location {
        insert(header::LOCATION, location);
    }
    if answer.replayed {
        insert(
            HeaderName::from_static("idempotent-replayed"),
            "true".to_owned(),
        );
    }
    if !answer.body.is_empty() {
        insert(header::CONTENT_TYPE, "application/json".to_owned());
        response.set_body(answer.body);
    }
    response
}

/// An [`Answer`] that the contract describes as a `T` with status `STATUS`, or `OR` unless that is 0.
pub struct Rendered<T, const STATUS: u16, const OR: u16 = 0>(Answer, PhantomData<fn() -> T>);

/// 200 with a `T`.
pub type Ok<T> = Rendered<T, 200>;
/// 201 with a `T`.
pub type Created<T> = Rendered<T, 201>;
/// 202 with a `T`.
pub type Accepted<T> = Rendered<T, 202>;
/// 200 or 201 with a `T`, as the [`Answer`] says: for what is made only if it isn't there.
pub type OkOrCreated<T> = Rendered<T, 200, 201>;

impl<T, const STATUS: u16, const OR: u16> From<Answer> for Rendered<T, STATUS, OR> {
    fn from(answer: Answer) -> Self {
        Self(answer, PhantomData)
    }
}

impl<T: ToJSON> Rendered<T, 200> {
    /// A thing as it is now, with its revision where it has one.
    #[must_use]
    pub fn show(value: &T, revision: Option<i64>) -> Self {
        answer(200, value).revision(revision).into()
    }
}

impl<T: Serialize> Rendered<T, 200> {
    /// The same of a thing that holds callers' own JSON.
    #[must_use]
    pub fn text(value: &T, revision: Option<i64>) -> Self {
        answer_text(200, value).revision(revision).into()
    }
}

impl<T, const STATUS: u16, const OR: u16> IntoResponse for Rendered<T, STATUS, OR> {
    fn into_response(self) -> Response {
        respond(self.0)
    }
}

impl<T: Type, const STATUS: u16, const OR: u16> ApiResponse for Rendered<T, STATUS, OR> {
    fn meta() -> MetaResponses {
        let statuses = [STATUS, OR].into_iter().filter(|status| *status != 0);
        MetaResponses {
            responses: statuses.map(described::<T>).collect(),
        }
    }

    fn register(registry: &mut Registry) {
        T::register(registry);
    }
}

pub(crate) fn described<T: Type>(status: u16) -> MetaResponse {
    let (description, headers) = match status {
        201 => ("Created.", vec![text_header("LOCATION")]),
        202 => ("Accepted.", Vec::new()),
        _ => ("OK.", Vec::new()),
    };
    MetaResponse {
        description,
        status: Some(status),
        status_range: None,
        content: vec![MetaMediaType {
            content_type: "application/json",
            schema: T::schema_ref(),
        }],
        headers,
    }
}

/// An optional header of text; what it means is said in the contract's own list.
pub(crate) fn text_header(name: &str) -> MetaHeader {
    MetaHeader {
        name: name.to_owned(),
        description: None,
        required: false,
        deprecated: false,
        schema: MetaSchemaRef::Inline(Box::new(MetaSchema::new("string"))),
    }
}

/// 204.
pub struct NoContent(Answer);

impl From<Answer> for NoContent {
    fn from(answer: Answer) -> Self {
        Self(answer)
    }
}

impl IntoResponse for NoContent {
    fn into_response(self) -> Response {
        respond(self.0)
    }
}

impl ApiResponse for NoContent {
    fn meta() -> MetaResponses {
        MetaResponses {
            responses: vec![MetaResponse {
                description: "No content.",
                status: Some(204),
                status_range: None,
                content: Vec::new(),
                headers: Vec::new(),
            }],
        }
    }

    fn register(_: &mut Registry) {}
}

/// A moment on the wire: RFC 3339, in answers always UTC with milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time(pub Timestamp);

impl From<Timestamp> for Time {
    fn from(at: Timestamp) -> Self {
        Self(at)
    }
}

impl From<Time> for Timestamp {
    fn from(time: Time) -> Self {
        time.0
    }
}

impl Time {
    /// The moment that examples show: 2026-01-31T12:00:00Z.
    pub const EXAMPLE: Self = Self(Timestamp::from_ms(1_769_860_800_000));
}

impl Example for Time {
    fn example() -> Self {
        Self::EXAMPLE
    }
}

impl Type for Time {
    own_value!(
        "string_date-time",
        MetaSchema::new_with_format("string", "date-time")
    );
}

impl ParseFromJSON for Time {
    fn parse_from_json(value: Option<Value>) -> ParseResult<Self> {
        let text = value.as_ref().and_then(Value::as_str).unwrap_or_default();
        Self::parse_from_parameter(text)
    }
}

impl ParseFromParameter for Time {
    fn parse_from_parameter(text: &str) -> ParseResult<Self> {
        Timestamp::parse(text)
            .map(Self)
            .ok_or_else(|| ParseError::custom("not an RFC 3339 time since 1970"))
    }
}

impl ToJSON for Time {
    fn to_json(&self) -> Option<Value> {
        Some(Value::String(self.0.to_string()))
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// The state that a caller expects, from `If-Match` (RFC 9110 §13.1.1).
///
/// One entity tag or `*` is taken; weak ones too, since proxies that
/// compress weaken ours. A tag that is none of ours matches nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IfMatch(pub Option<Expected>);

impl IfMatch {
    fn parse(values: &[&HeaderValue]) -> Result<Self, Problem> {
        let value = match values {
            [] => return Ok(Self(None)),
            [one] => one.to_str().unwrap_or_default().trim(),
            _ => "",
        };
        if value == "*" {
            return Ok(Self(Some(Expected::Any)));
        }
        let tag = value.strip_prefix("W/").unwrap_or(value);
        let inner = tag
            .strip_prefix('"')
            .and_then(|rest| rest.strip_suffix('"'))
            .filter(|inner| inner.len() <= 100 && !inner.contains('"'));
        match inner {
            // No row has a negative revision.
            Some(inner) => {
                let revision = revision_of(inner).unwrap_or(-1);
                Ok(Self(Some(Expected::Revision(revision))))
            }
            None => Err(Problem::parameter(
                "/header/If-Match",
                "`If-Match` takes one entity tag such as `\"3\"`, or `*`.",
            )),
        }
    }
}

fn revision_of(text: &str) -> Option<i64> {
    let canonical = text.bytes().all(|byte| byte.is_ascii_digit());
    canonical.then(|| text.parse().ok()).flatten()
}

impl<'a> ApiExtractor<'a> for IfMatch {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::Parameter];

    type ParamType = String;
    type ParamRawType = String;

    fn param_in() -> Option<MetaParamIn> {
        Some(MetaParamIn::Header)
    }

    fn param_schema_ref() -> Option<MetaSchemaRef> {
        let described = MetaSchema {
            title: Some("If-Match".to_owned()),
            description: Some("The expected revision (`ETag`)."),
            ..MetaSchema::ANY
        };
        Some(header_schema(100).merge(described))
    }

    async fn from_request(
        request: &'a Request,
        _: &mut RequestBody,
        _: ExtractParamOptions<String>,
    ) -> poem::Result<Self> {
        let values: Vec<_> = request.headers().get_all(header::IF_MATCH).iter().collect();
        Ok(Self::parse(&values).map_err(ApiError::from)?)
    }
}

/// A header of at most `max` characters.
pub(crate) fn header_schema(max: usize) -> MetaSchemaRef {
    MetaSchemaRef::Inline(Box::new(MetaSchema {
        max_length: Some(max),
        ..MetaSchema::new("string")
    }))
}

/// What a patch says of a member: nothing, that it goes, or what it is to be.
#[expect(clippy::option_option, reason = "as the store's patches have it")]
pub(crate) fn change<T>(member: MaybeUndefined<T>) -> Option<Option<T>> {
    match member {
        MaybeUndefined::Undefined => None,
        MaybeUndefined::Null => Some(None),
        MaybeUndefined::Value(value) => Some(Some(value)),
    }
}

#[cfg(test)]
mod tests {
    use domain::Code;

    use super::*;

    #[test]
    fn if_match_takes_one_tag() {
        let parse = |text: &'static str| IfMatch::parse(&[&HeaderValue::from_static(text)]);
        for (text, expected) in [
            ("\"3\"", Expected::Revision(3)),
            ("W/\"3\"", Expected::Revision(3)),
            ("*", Expected::Any),
            ("\"abc\"", Expected::Revision(-1)),
            ("\"+3\"", Expected::Revision(-1)),
            ("\"99999999999999999999\"", Expected::Revision(-1)),
        ] {
            assert_eq!(parse(text).unwrap(), IfMatch(Some(expected)), "{text}");
        }
        for text in ["", "3", "\"3", "\"1\", \"2\"", "W/3"] {
            assert_eq!(
                parse(text).unwrap_err().code,
                Code::InvalidParameter,
                "{text}"
            );
        }
        assert_eq!(IfMatch::parse(&[]).unwrap(), IfMatch(None));
    }

    #[tokio::test]
    async fn an_answer_has_its_headers() {
        let mut given = answer(201, &"x".to_owned())
            .revision(3)
            .at("/v1/x".to_owned())
            .holds_secret(true);
        given.replayed = true;
        let response = respond(given);
        assert_eq!(response.status(), 201);
        assert_eq!(response.header("etag"), Some("\"3\""));
        assert_eq!(response.header("location"), Some("/v1/x"));
        assert_eq!(response.header("idempotent-replayed"), Some("true"));
        assert_eq!(response.header("content-type"), Some("application/json"));
        assert_eq!(response.into_body().into_string().await.unwrap(), "\"x\"");
        let empty = respond(no_content());
        assert_eq!(
            (empty.status().as_u16(), empty.header("content-type")),
            (204, None)
        );
    }
}

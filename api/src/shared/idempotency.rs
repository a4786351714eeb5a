//! `Idempotency-Key`: the caller's wish that a change be made at most once.

use poem::{PathPattern, Request, RequestBody, http::HeaderValue};
use poem_openapi::{
    ApiExtractor, ApiExtractorType, ExtractParamOptions,
    registry::{MetaParamIn, MetaSchema, MetaSchemaRef},
};

use domain::{Code, Problem, limits::IDEMPOTENCY_KEY_CHARS};
use persistence::IdempotencyKey;

use crate::shared::common::header_schema;
use web::http::{ApiError, RequestContext, context::IDEMPOTENCY_KEY};

/// The key of a request, if it has one, and the operation that it is for.
#[derive(Clone, Debug)]
pub struct Idempotency(Option<Key>);

#[derive(Clone, Debug)]
struct Key {
    operation: String,
    text: String,
}

impl Idempotency {
    /// Binds the key to this request's content. To be called after the body was read, as in every
    /// handler.
    #[must_use]
    pub fn of(self, request: &RequestContext) -> Option<IdempotencyKey> {
        let Key { operation, text } = self.0?;
        Some(IdempotencyKey {
            operation,
            key: text,
            request_hash: request.hash(),
        })
    }
}

fn parse(values: &[&HeaderValue]) -> Result<Option<String>, Problem> {
    let text = match values {
        [] => return Ok(None),
        [one] => one.to_str().unwrap_or_default(),
        _ => "",
    };
    let visible = text.bytes().all(|byte| byte.is_ascii_graphic());
    if visible && (1..=IDEMPOTENCY_KEY_CHARS).contains(&text.len()) {
        return Ok(Some(text.to_owned()));
    }
    Err(Problem::parameter(
        "/header/Idempotency-Key",
        format!(
            "`Idempotency-Key` takes 1 to {IDEMPOTENCY_KEY_CHARS} visible ASCII characters, once."
        ),
    ))
}

/// The operation's id, as the contract has it.
fn operation_of(request: &Request) -> Result<String, ApiError> {
    let routes = RequestContext::of(request)?.contract().routes();
    let pattern = request.data::<PathPattern>();
    let operation = pattern
        .and_then(|pattern| routes.get(&pattern.0))
        .and_then(|route| route.operation(request.method()));
    operation.map(str::to_owned).ok_or_else(|| {
        tracing::error!("a request with a key reached an operation that the contract lacks");
        Code::Internal.into()
    })
}

impl<'a> ApiExtractor<'a> for Idempotency {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::Parameter];

    type ParamType = String;
    type ParamRawType = String;

    fn param_in() -> Option<MetaParamIn> {
        Some(MetaParamIn::Header)
    }

    fn param_schema_ref() -> Option<MetaSchemaRef> {
        let described = MetaSchema {
            title: Some("Idempotency-Key".to_owned()),
            description: Some("Makes repeats of the request harmless for 24 hours."),
            ..MetaSchema::ANY
        };
        Some(header_schema(IDEMPOTENCY_KEY_CHARS).merge(described))
    }

    async fn from_request(
        request: &'a Request,
        _: &mut RequestBody,
        _: ExtractParamOptions<String>,
    ) -> poem::Result<Self> {
        let values: Vec<_> = request.headers().get_all(IDEMPOTENCY_KEY).iter().collect();
        let key = match parse(&values).map_err(ApiError::from)? {
            Some(text) => Some(Key {
                operation: operation_of(request)?,
                text,
            }),
            None => None,
        };
        Ok(Self(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_short_visible_and_alone() {
        let parsed = |text: &str| parse(&[&HeaderValue::from_str(text).unwrap()]);
        assert_eq!(parsed("a-1:").unwrap().as_deref(), Some("a-1:"));
        assert!(parsed(&"x".repeat(200)).is_ok());
        for odd in ["", "a b", "\u{e9}", &"x".repeat(201)] {
            assert!(parsed(odd).is_err(), "{odd}");
        }
        let one = HeaderValue::from_static("a");
        assert!(parse(&[&one, &one]).is_err());
        assert_eq!(parse(&[]).unwrap(), None);
    }
}

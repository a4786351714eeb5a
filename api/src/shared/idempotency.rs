//! `Idempotency-Key`: the caller's wish that a change be made at most once.

use poem::{Request, RequestBody, http::HeaderValue};
use poem_openapi::{
    ApiExtractor, ApiExtractorType, ExtractParamOptions,
    registry::{MetaParamIn, MetaSchemaRef},
};

use domain::{Problem, limits::IDEMPOTENCY_KEY_CHARS};
use persistence::IdempotencyKey;

use crate::shared::common::header_schema;
use web::http::{ApiError, RequestContext, context::IDEMPOTENCY_KEY};

/// The key of a request, if it has one. Arguments of this type are named
/// `#[oai(name = "Idempotency-Key")]`.
#[derive(Clone, Debug)]
pub struct Idempotency(Option<String>);

impl Idempotency {
    /// Binds the key to an operation and to this request's content. To be called after the body
    /// was read, as in every handler.
    #[must_use]
    pub fn of(self, operation: &'static str, request: &RequestContext) -> Option<IdempotencyKey> {
        Some(IdempotencyKey {
            operation,
            key: self.0?,
            request_hash: request.hash(),
        })
    }

    fn parse(values: &[&HeaderValue]) -> Result<Self, Problem> {
        let text = match values {
            [] => return Ok(Self(None)),
            [one] => one.to_str().unwrap_or_default(),
            _ => "",
        };
        let visible = text.bytes().all(|byte| byte.is_ascii_graphic());
        if visible && (1..=IDEMPOTENCY_KEY_CHARS).contains(&text.len()) {
            return Ok(Self(Some(text.to_owned())));
        }
        Err(Problem::parameter(
            "/header/Idempotency-Key",
            format!(
                "`Idempotency-Key` takes 1 to {IDEMPOTENCY_KEY_CHARS} visible ASCII characters, once."
            ),
        ))
    }
}

impl<'a> ApiExtractor<'a> for Idempotency {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::Parameter];

    type ParamType = String;
    type ParamRawType = String;

    fn param_in() -> Option<MetaParamIn> {
        Some(MetaParamIn::Header)
    }

    fn param_schema_ref() -> Option<MetaSchemaRef> {
        Some(header_schema(IDEMPOTENCY_KEY_CHARS))
    }

    async fn from_request(
        request: &'a Request,
        _: &mut RequestBody,
        _: ExtractParamOptions<String>,
    ) -> poem::Result<Self> {
        let values: Vec<_> = request.headers().get_all(IDEMPOTENCY_KEY).iter().collect();
        Ok(Self::parse(&values).map_err(ApiError::from)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_short_visible_and_alone() {
        let parse = |text: &str| Idempotency::parse(&[&HeaderValue::from_str(text).unwrap()]);
        assert_eq!(
            parse("a-1:Ü".trim_end_matches('Ü')).unwrap().0.as_deref(),
            Some("a-1:")
        );
        assert!(parse(&"x".repeat(200)).is_ok());
        for odd in ["", "a b", "\u{e9}", &"x".repeat(201)] {
            assert!(parse(odd).is_err(), "{odd}");
        }
        let one = HeaderValue::from_static("a");
        assert!(Idempotency::parse(&[&one, &one]).is_err());
        assert_eq!(Idempotency::parse(&[]).unwrap().0, None);
    }
}

//! A request's body as it came: for what is passed on, and so is neither parsed nor judged.

use bytes::Bytes;
use poem::{Request, RequestBody};
use poem_openapi::{
    ApiExtractor, ApiExtractorType, ExtractParamOptions,
    registry::{MetaMediaType, MetaRequest, MetaSchema, MetaSchemaRef, Registry},
};
use serde_json::json;

use domain::{Code, Problem, limits};

use super::{
    body::{BODY_TIMEOUT, read},
    error::ApiError,
};

/// Any media type; JSON is named beside it because tools that try the contract out know it best.
const TYPES: [&str; 2] = ["application/json", "*/*"];
const SCHEMA: &str = "AnyBody";

/// A body of any type, or none, of at most 1 MiB.
#[derive(Clone, Debug)]
pub struct AnyBody(pub Bytes);

fn schema() -> MetaSchema {
    MetaSchema {
        description: Some("Passed on byte for byte and not looked at; at most 1 MiB."),
        example: Some(json!({"file": "2026-01-31.csv"})),
        ..MetaSchema::ANY
    }
}

impl<'a> ApiExtractor<'a> for AnyBody {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::RequestObject];
    const PARAM_IS_REQUIRED: bool = false;

    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        registry.create_schema::<Self, _>(SCHEMA.to_owned(), |_| schema());
    }

    fn request_meta() -> Option<MetaRequest> {
        let media = |content_type| MetaMediaType {
            content_type,
            schema: MetaSchemaRef::Reference(SCHEMA.to_owned()),
        };
        Some(MetaRequest {
            description: None,
            content: Vec::from(TYPES.map(media)),
            required: false,
        })
    }

    async fn from_request(
        request: &'a Request,
        body: &mut RequestBody,
        _: ExtractParamOptions<()>,
    ) -> poem::Result<Self> {
        let body = body.take().map_err(|_| ApiError::from(Code::Internal))?;
        let bytes = read(request, body, limits::BODY_BYTES, BODY_TIMEOUT).await;
        Ok(bytes
            .map(Self)
            .map_err(|problem: Problem| ApiError::from(problem))?)
    }
}

//! The parameters `limit` and `cursor` of a list.

use poem::{Request, RequestBody};
use poem_openapi::{
    ApiExtractor, ApiExtractorType, ExtractParamOptions,
    error::ParseParamError,
    param::Query,
    registry::{MetaParamIn, MetaSchema, MetaSchemaRef},
    types::{ParseFromParameter, Type},
};

use domain::limits::PAGE_MAX;

/// Longest cursor, characters: what the parameter's documentation says.
pub(crate) const CURSOR_CHARS: usize = 200;

/// Which part of a list is asked for, as it came.
///
/// One argument of an operation and two parameters of the document, where
/// [`complete`](web::contract::complete) takes the parts of its schema for parameters.
pub struct PageQuery {
    /// Most rows.
    pub limit: Option<u64>,
    /// The cursor of the previous page.
    pub cursor: Option<String>,
}

impl<'a> ApiExtractor<'a> for PageQuery {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::Parameter];

    type ParamType = String;
    type ParamRawType = String;

    fn param_in() -> Option<MetaParamIn> {
        Some(MetaParamIn::Query)
    }

    fn param_schema_ref() -> Option<MetaSchemaRef> {
        let limit = u64::schema_ref().merge(MetaSchema {
            title: Some("limit".to_owned()),
            minimum: Some(1.0),
            maximum: Some(f64::from(PAGE_MAX)),
            description: Some("Page size."),
            ..MetaSchema::ANY
        });
        let cursor = String::schema_ref().merge(MetaSchema {
            title: Some("cursor".to_owned()),
            max_length: Some(CURSOR_CHARS),
            description: Some("Cursor: the `next_cursor` of the previous page."),
            ..MetaSchema::ANY
        });
        Some(MetaSchemaRef::Inline(Box::new(MetaSchema {
            all_of: vec![limit, cursor],
            ..MetaSchema::ANY
        })))
    }

    async fn from_request(
        request: &'a Request,
        body: &mut RequestBody,
        _: ExtractParamOptions<String>,
    ) -> poem::Result<Self> {
        let limit = one::<u64>(request, body, "limit").await?;
        check(
            "limit",
            limit.is_none_or(|limit| (1..=PAGE_MAX.into()).contains(&limit)),
        )?;
        let cursor = one::<String>(request, body, "cursor").await?;
        let fits = |cursor: &String| cursor.chars().count() <= CURSOR_CHARS;
        check("cursor", cursor.as_ref().is_none_or(fits))?;
        Ok(Self { limit, cursor })
    }
}

fn check(name: &'static str, fits: bool) -> poem::Result<()> {
    if fits {
        return Ok(());
    }
    let reason = "out of bounds".to_owned();
    Err(ParseParamError { name, reason }.into())
}

async fn one<T: ParseFromParameter>(
    request: &Request,
    body: &mut RequestBody,
    name: &'static str,
) -> poem::Result<Option<T>> {
    let options = ExtractParamOptions {
        name,
        ignore_case: false,
        default_value: None,
        example_value: None,
        explode: true,
        style: None,
    };
    let found = <Query<Option<T>> as ApiExtractor>::from_request(request, body, options).await?;
    Ok(found.0)
}

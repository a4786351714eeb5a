//! The variables of a path: identifiers and slugs.

use poem::{Request, RequestBody};
use poem_openapi::{
    ApiExtractor, ApiExtractorType, ExtractParamOptions,
    registry::{MetaParamIn, MetaSchema, MetaSchemaRef, Registry},
};

use domain::{
    Problem, Slug,
    id::{
        AccountId, CredentialId, DeliveryId, EndpointId, EventId, Id as _, InvitationId,
        PublisherId, ReplayId, RunId, SecretId, SessionId, TokenId, UserId,
    },
};

use web::http::ApiError;

/// Longest identifier that the document allows, characters. Ours are shorter.
const ID_CHARS: usize = 40;
/// The same of publishers and tokens.
const LONG_ID_CHARS: usize = 64;
/// Longest slug, characters.
const SLUG_CHARS: usize = 63;

/// A variable of the path. A text that is no `T` names nothing, so it is answered 404.
///
/// poem-openapi recognizes a variable of the path by the name `Path` of this type.
pub struct Path<T>(pub T);

/// What may be a variable of a path.
pub trait PathValue: Sized {
    /// How the document describes it; the description becomes the parameter's.
    fn schema() -> MetaSchemaRef;

    /// The value that the text means.
    fn of_path(text: &str) -> Option<Self>;

    /// Registers what the schema refers to.
    fn register(_: &mut Registry) {}
}

impl<'a, T: PathValue> ApiExtractor<'a> for Path<T> {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::Parameter];
    const PARAM_IS_REQUIRED: bool = true;

    type ParamType = String;
    type ParamRawType = String;

    fn register(registry: &mut Registry) {
        T::register(registry);
    }

    fn param_in() -> Option<MetaParamIn> {
        Some(MetaParamIn::Path)
    }

    fn param_schema_ref() -> Option<MetaSchemaRef> {
        Some(T::schema())
    }

    async fn from_request(
        request: &'a Request,
        _: &mut RequestBody,
        options: ExtractParamOptions<String>,
    ) -> poem::Result<Self> {
        let text = request.raw_path_param(options.name);
        let value = text.and_then(T::of_path).map(Self);
        Ok(value.ok_or_else(|| ApiError::from(Problem::not_found()))?)
    }
}

/// A text of at most so many characters.
fn text(chars: usize, description: Option<&'static str>) -> MetaSchemaRef {
    MetaSchemaRef::Inline(Box::new(MetaSchema {
        max_length: Some(chars),
        description,
        ..MetaSchema::new("string")
    }))
}

macro_rules! identifiers {
    ($($id:ident, $description:literal, $chars:ident;)*) => {
        $(
            impl PathValue for $id {
                fn schema() -> MetaSchemaRef {
                    text($chars, Some($description))
                }

                fn of_path(text: &str) -> Option<Self> {
                    $id::parse(text)
                }
            }
        )*
    };
}

identifiers! {
    AccountId, "The account's identifier.", ID_CHARS;
    CredentialId, "The credential's identifier.", LONG_ID_CHARS;
    DeliveryId, "The delivery's identifier.", ID_CHARS;
    EndpointId, "The endpoint's identifier.", ID_CHARS;
    EventId, "The event's identifier.", ID_CHARS;
    InvitationId, "The invitation's identifier.", ID_CHARS;
    PublisherId, "The publisher's identifier.", LONG_ID_CHARS;
    ReplayId, "The replay's identifier.", ID_CHARS;
    RunId, "The run's identifier.", ID_CHARS;
    SecretId, "The secret's identifier.", ID_CHARS;
    SessionId, "The session's identifier.", ID_CHARS;
    TokenId, "The token's identifier.", LONG_ID_CHARS;
    UserId, "The person's identifier.", ID_CHARS;
}

/// Whose slug it is, the operation says.
impl PathValue for Slug {
    fn schema() -> MetaSchemaRef {
        text(SLUG_CHARS, None)
    }

    fn of_path(text: &str) -> Option<Self> {
        Self::parse(text)
    }
}

/// A name of at most `MAX` characters that is looked up as it is.
pub struct Text<const MAX: usize>(pub String);

impl<const MAX: usize> PathValue for Text<MAX> {
    fn schema() -> MetaSchemaRef {
        text(MAX, None)
    }

    fn of_path(text: &str) -> Option<Self> {
        (text.chars().count() <= MAX).then(|| Self(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_is_too_long_names_nothing() {
        assert!(Text::<3>::of_path("äöü").is_some());
        assert!(Text::<3>::of_path("abcd").is_none());
    }

    #[test]
    fn identifiers_fit_into_what_the_document_allows() {
        let longest = "pub_01h455vb4pex5vsknk084sn02q".len();
        assert!(longest <= ID_CHARS);
        assert!(Slug::parse(&"x".repeat(SLUG_CHARS)).is_some());
        assert!(Slug::parse(&"x".repeat(SLUG_CHARS + 1)).is_none());
    }
}

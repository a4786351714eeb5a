//! Lists of words in requests and answers: each is a schema of the document.

use poem_openapi::{
    registry::{MetaSchema, MetaSchemaRef, Registry},
    types::{ParseError, ParseFromJSON, ParseFromParameter, ParseResult, ToJSON, Type},
};
use serde::{Serialize, Serializer};
use serde_json::Value;

use domain::{
    account::CredentialType,
    credential::{CredentialKind, Source},
    lending::UseOutcome,
    people::Role,
    run::{RunStatus, TimelineEntryKind},
    signature::Signing,
    train::NoticeKind,
};
use persistence::PublisherStatus;

use crate::shared::{own_value, path::PathValue};

/// A list of words that [`domain::words!`] declares, with its schema.
pub trait Words: Copy + Send + Sync + 'static {
    /// The schema's name.
    const SCHEMA: &'static str;
    /// The schema's description.
    const DESCRIPTION: &'static str;
    /// Every word.
    const ALL: &'static [Self];

    /// The word.
    fn as_str(self) -> &'static str;
}

/// Gives schemas to lists of words: the list, the schema's name, and its description.
macro_rules! schemas_of_words {
    ($($words:ty, $schema:literal, $description:literal;)*) => {
        $(
            impl $crate::shared::Words for $words {
                const SCHEMA: &'static str = $schema;
                const DESCRIPTION: &'static str = $description;
                const ALL: &'static [Self] = &<$words>::ALL;

                fn as_str(self) -> &'static str {
                    <$words>::as_str(self)
                }
            }
        )*
    };
}

pub(crate) use schemas_of_words;

schemas_of_words! {
    CredentialKind, "CredentialKind", "A kind of credential.";
    CredentialType, "CredentialType", "What sort of credential an account holds.";
    NoticeKind, "TrainNotice", "What a train's people may be told.";
    PublisherStatus, "PublisherStatus", "Whether a publisher's tokens work.";
    Role, "Role", "What a member may do in a publisher. Each role may do all that those after it may.";
    RunStatus, "RunStatus", "Where a run stands.";
    Signing, "Signing", "What deliveries are signed by.";
    Source, "CredentialSource", "Where a credential came from.";
    TimelineEntryKind, "TimelineType", "What happened.";
    UseOutcome, "ReportOutcome", "How a request ended.";
}

/// A word of a list, in a request or an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Word<W>(pub W);

impl<W> From<W> for Word<W> {
    fn from(word: W) -> Self {
        Self(word)
    }
}

impl<W: Words> Word<W> {
    fn parse(text: &str) -> Option<Self> {
        let mut all = W::ALL.iter().copied();
        all.find(|word| word.as_str() == text).map(Self)
    }
}

impl<W: Words> Type for Word<W> {
    own_value!(W::SCHEMA);

    fn register(registry: &mut Registry) {
        registry.create_schema::<Self, _>(W::SCHEMA.to_owned(), |_| MetaSchema {
            description: Some(W::DESCRIPTION),
            enum_items: W::ALL.iter().map(|word| word.as_str().into()).collect(),
            ..MetaSchema::new("string")
        });
    }
}

impl<W: Words> ParseFromJSON for Word<W> {
    fn parse_from_json(value: Option<Value>) -> ParseResult<Self> {
        let value = value.unwrap_or_default();
        let word = value.as_str().and_then(Self::parse);
        word.ok_or_else(|| ParseError::expected_type(value))
    }
}

impl<W: Words> ParseFromParameter for Word<W> {
    fn parse_from_parameter(text: &str) -> ParseResult<Self> {
        Self::parse(text).ok_or_else(|| ParseError::custom("it is none of the words"))
    }
}

impl<W: Words> ToJSON for Word<W> {
    fn to_json(&self) -> Option<Value> {
        Some(self.0.as_str().into())
    }
}

impl<W: Words> Serialize for Word<W> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.as_str())
    }
}

impl<W: Words> PathValue for Word<W> {
    fn schema() -> MetaSchemaRef {
        Self::schema_ref()
    }

    fn of_path(text: &str) -> Option<Self> {
        Self::parse(text)
    }

    fn register(registry: &mut Registry) {
        <Self as Type>::register(registry);
    }
}

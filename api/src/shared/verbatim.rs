//! Callers' own JSON, as requests bring it and answers show it: text, from end to end.

use poem_openapi::{
    registry::MetaSchema,
    types::{ParseError, ParseFromJSON, ParseResult, ToJSON, Type},
};
use serde::Serialize;
use serde_json::Value;

use domain::JsonText;

use crate::shared::own_value;

/// Any JSON, kept as the text that it came as.
#[derive(Serialize, Clone, Debug, PartialEq, Eq)]
#[serde(transparent)]
pub struct Verbatim(pub(crate) JsonText);

impl From<JsonText> for Verbatim {
    fn from(text: JsonText) -> Self {
        Self(text)
    }
}

impl From<Value> for Verbatim {
    fn from(tree: Value) -> Self {
        Self(tree.into())
    }
}

impl Type for Verbatim {
    own_value!("any", MetaSchema::ANY);
}

impl ParseFromJSON for Verbatim {
    /// From its text, which stands in the body's place of it as a string
    /// ([`Shape`](web::http::json::Shape)).
    fn parse_from_json(value: Option<Value>) -> ParseResult<Self> {
        let text = match value {
            None | Some(Value::Null) => Some(JsonText::null()),
            Some(Value::String(text)) => JsonText::parse(text),
            Some(_) => None,
        };
        text.map(Self)
            .ok_or_else(|| ParseError::custom("not the text of a JSON value"))
    }
}

/// For examples and the document; answers are written by serde, without a tree.
impl ToJSON for Verbatim {
    fn to_json(&self) -> Option<Value> {
        Some(self.0.to_tree())
    }
}

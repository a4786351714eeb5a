//! Credentials that requests bring.

use poem_openapi::{
    registry::MetaSchema,
    types::{ParseError, ParseFromJSON, ParseResult, ToJSON, Type},
};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::Value;

use crate::shared::own_value;

/// Visible ASCII: what fits into a header, and into a form (RFC 6749, appendix A).
const PATTERN: &str = "^[!-~]+$";

/// A credential in a request's body, of `MIN` to `MAX` characters. `Debug` does not show it, and
/// it is wiped when it is dropped. No answer has one: it is written as JSON for examples alone.
#[derive(Clone, Debug)]
pub(crate) struct Sent<const MIN: usize, const MAX: usize>(pub(crate) SecretString);

/// For examples.
impl<const MIN: usize, const MAX: usize> From<&str> for Sent<MIN, MAX> {
    fn from(text: &str) -> Self {
        Self(SecretString::from(text))
    }
}

impl<const MIN: usize, const MAX: usize> Type for Sent<MIN, MAX> {
    own_value!(
        "string_password",
        MetaSchema {
            min_length: Some(MIN),
            max_length: Some(MAX),
            pattern: Some(PATTERN.to_owned()),
            write_only: true,
            ..MetaSchema::new_with_format("string", "password")
        }
    );
}

impl<const MIN: usize, const MAX: usize> ParseFromJSON for Sent<MIN, MAX> {
    fn parse_from_json(value: Option<Value>) -> ParseResult<Self> {
        match value {
            // The text itself moves along: no copy of it stays behind.
            Some(Value::String(text)) => Ok(Self(SecretString::from(text))),
            _ => Err(ParseError::custom("not a text")),
        }
    }
}

impl<const MIN: usize, const MAX: usize> ToJSON for Sent<MIN, MAX> {
    fn to_json(&self) -> Option<Value> {
        Some(Value::String(self.0.expose_secret().to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_nothing() {
        let value = Some(Value::from("sk-ant-1234567890"));
        let sent = Sent::<8, 100>::parse_from_json(value).unwrap();
        assert_eq!(sent.0.expose_secret(), "sk-ant-1234567890");
        assert!(!format!("{sent:?}").contains("1234"));
    }

    #[test]
    fn a_fault_repeats_nothing() {
        let error = Sent::<8, 100>::parse_from_json(Some(Value::from(1234))).unwrap_err();
        assert!(!error.message().contains("1234"));
    }
}

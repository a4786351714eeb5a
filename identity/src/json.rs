//! Strict JSON objects: UTF-8, and no member name twice in one object (RFC 7493 §2.3).
//!
//! Two readers of an object with a repeated name may each use another of its values. What is signed
//! must mean one thing.

use std::fmt;

use serde::{
    Deserialize,
    de::{Deserializer, Error, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value};

/// Reads a text that is one JSON object; `None` for any other text. The reader limits the depth
/// to 127 levels. The caller limits the length.
pub(crate) fn object(text: &[u8]) -> Option<Map<String, Value>> {
    match value(text)? {
        Value::Object(members) => Some(members),
        _ => None,
    }
}

/// Reads a text that is one JSON value.
pub(crate) fn value(text: &[u8]) -> Option<Value> {
    let Strict(value) = serde_json::from_slice(text).ok()?;
    Some(value)
}

struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        reader.deserialize_any(AnyValue).map(Self)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Strict(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some((name, Strict(value))) = members.next_entry::<String, _>()? {
            if object.insert(name, value).is_some() {
                return Err(A::Error::custom("a member name stands twice in one object"));
            }
        }
        Ok(object.into())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_name_that_stands_twice_is_refused_at_every_depth() {
        assert!(object(br#"{"a": 1, "b": {"a": [1.5, true, null, "x"]}}"#).is_some());
        for text in [
            r#"{"a": 1, "a": 1}"#,
            r#"{"a": 1, "\u0061": 2}"#,
            r#"{"b": [{"a": 1, "a": 2}]}"#,
            r#"{"a": 1} "#.repeat(2).as_str(),
            "[]",
            "",
            "{\"a\": \"\u{0}\"}",
            &format!("{{\"a\": {}", "[".repeat(10_000)),
            &format!("{}{}", "{\"a\":".repeat(200), "}".repeat(200)),
        ] {
            assert!(object(text.as_bytes()).is_none(), "{text}");
        }
        assert!(object(b"{\"a\": \"\xff\"}").is_none());
    }

    proptest! {
        #[test]
        fn what_is_accepted_is_what_the_usual_reader_reads(text in "[\\[\\]{}\":,a1 ]{0,12}") {
            if let Some(found) = value(text.as_bytes()) {
                prop_assert_eq!(found, serde_json::from_str::<Value>(&text).unwrap());
            }
        }
    }
}

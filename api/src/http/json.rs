//! Strict JSON: UTF-8, limited depth, no repeated member names (RFC 8259 §4, I-JSON RFC 7493 §2.3).

use std::fmt;

use serde::de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use domain::{Code, FieldError, Problem, limits::JSON_DEPTH};

use crate::contract::{FAULTS_MAX, child};

/// Parses one JSON value.
///
/// # Errors
/// `malformed_json` with line and column.
pub(crate) fn parse(bytes: &[u8]) -> Result<Value, Problem> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        Problem::new(
            Code::MalformedJson,
            format!(
                "The body is not UTF-8, from byte {} on.",
                error.valid_up_to()
            ),
        )
    })?;
    let mut reader = serde_json::Deserializer::from_str(text);
    Strict { depth: 0 }
        .deserialize(&mut reader)
        .and_then(|value| reader.end().map(|()| value))
        .map_err(|error| malformed(&error))
}

fn malformed(error: &serde_json::Error) -> Problem {
    // serde_json's syntax messages are fixed sentences and never quote the input.
    let full = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    let reason = full.strip_suffix(&place).unwrap_or(&full);
    Problem::new(
        Code::MalformedJson,
        format!(
            "Line {}, column {}: {reason}.",
            error.line(),
            error.column()
        ),
    )
}

#[derive(Clone, Copy)]
struct Strict {
    depth: usize,
}

impl Strict {
    fn deeper<E: de::Error>(self) -> Result<Self, E> {
        if self.depth == JSON_DEPTH {
            return Err(E::custom(format_args!(
                "nested more than {JSON_DEPTH} levels deep"
            )));
        }
        Ok(Self {
            depth: self.depth + 1,
        })
    }
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: de::Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut out = Vec::new();
        while let Some(item) = items.next_element_seed(inner)? {
            out.push(item);
        }
        Ok(Value::Array(out))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut out = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            if out.contains_key(&name) {
                return Err(de::Error::custom(
                    "a member name stands twice in one object",
                ));
            }
            let value = members.next_value_seed(inner)?;
            out.insert(name, value);
        }
        Ok(Value::Object(out))
    }
}

/// Adds a fault for each string or member name with a NUL in it: PostgreSQL can't store one.
pub(crate) fn nul_faults(value: &Value, faults: &mut Vec<FieldError>) {
    if holds_nul(value) {
        collect_nul("", value, faults);
    }
}

fn holds_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(items) => items.iter().any(holds_nul),
        Value::Object(members) => members
            .iter()
            .any(|(name, member)| name.contains('\0') || holds_nul(member)),
        _ => false,
    }
}

fn collect_nul(pointer: &str, value: &Value, faults: &mut Vec<FieldError>) {
    const DETAIL: &str = "The character U+0000 can't be stored.";
    if faults.len() >= FAULTS_MAX {
        return;
    }
    match value {
        Value::String(text) if text.contains('\0') => {
            faults.push(FieldError::new(pointer, "invalid", DETAIL));
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                if holds_nul(item) {
                    collect_nul(&format!("{pointer}/{index}"), item, faults);
                }
            }
        }
        Value::Object(members) => {
            for (name, member) in members {
                if name.contains('\0') {
                    faults.push(FieldError::new(
                        pointer,
                        "invalid",
                        "A member name holds U+0000, which can't be stored.",
                    ));
                } else {
                    collect_nul(&child(pointer, name), member, faults);
                }
            }
        }
        _ => {}
    }
}

/// Whether any number is written as a fraction without being one, such as `1.0` or `1e3`.
pub(crate) fn has_whole_floats(value: &Value) -> bool {
    match value {
        Value::Number(number) => whole(number).is_some(),
        Value::Array(items) => items.iter().any(has_whole_floats),
        Value::Object(members) => members.values().any(has_whole_floats),
        _ => false,
    }
}

/// The same value with such numbers as integers.
pub(crate) fn with_whole_numbers(mut value: Value) -> Value {
    fn rewrite(value: &mut Value) {
        match value {
            Value::Number(number) => {
                if let Some(integer) = whole(number) {
                    *number = integer.into();
                }
            }
            Value::Array(items) => items.iter_mut().for_each(rewrite),
            Value::Object(members) => members.values_mut().for_each(rewrite),
            _ => {}
        }
    }
    rewrite(&mut value);
    value
}

fn whole(number: &Number) -> Option<i64> {
    /// Integers up to here are exact as a 64-bit float (RFC 8259 §6).
    const EXACT: f64 = 9_007_199_254_740_991.0;
    let float = number.is_f64().then(|| number.as_f64())??;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "checked to be whole and within ±2^53"
    )]
    (float.fract() == 0.0 && float.abs() <= EXACT).then_some(float as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn refusal(text: &str) -> String {
        let problem = parse(text.as_bytes()).unwrap_err();
        assert_eq!(problem.code, Code::MalformedJson);
        problem.detail
    }

    #[test]
    fn says_where_it_stopped() {
        assert_eq!(refusal("{\n  \"a\" 1}"), "Line 2, column 7: expected `:`.");
        assert_eq!(
            refusal(r#"{"a":1,"a":2}"#),
            "Line 1, column 10: a member name stands twice in one object."
        );
        assert!(refusal("1 2").contains("trailing characters"));
        assert!(refusal("").contains("EOF"));
    }

    #[test]
    fn depth_is_limited_exactly() {
        let nest = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
        assert!(parse(nest(JSON_DEPTH).as_bytes()).is_ok());
        assert!(refusal(&nest(JSON_DEPTH + 1)).contains("more than 32 levels"));
        assert!(refusal(&"[".repeat(1_000_000)).contains("more than 32 levels"));
    }

    #[test]
    fn bytes_that_are_no_text_are_refused() {
        let problem = parse(b"{\"a\":\"\xff\"}").unwrap_err();
        assert_eq!(problem.detail, "The body is not UTF-8, from byte 6 on.");
    }

    proptest! {
        #[test]
        fn agrees_with_the_plain_parser(text in r#"[\[\]{}:,"a1.e \-tfn\\u0]{0,40}"#) {
            if let Ok(strict) = parse(text.as_bytes()) {
                let plain: Value = serde_json::from_str(&text).unwrap();
                prop_assert_eq!(strict, plain);
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }
    }
}

//! JSON of publishers, which is kept as text.
//!
//! A parsed tree would take up to a hundred times the memory, and could not reproduce every number
//! as it was written. One is built only to validate it by a JSON Schema.

use std::fmt;

use serde::{Serialize, Serializer};
use serde_json::{
    Value,
    value::{RawValue, to_raw_value},
};

/// The text of one JSON value, without white space around it. Inside, every byte is kept: digits,
/// escapes, white space, the order of members.
#[derive(Clone)]
pub struct JsonText(Box<RawValue>);

impl JsonText {
    /// Takes a text; `None` unless it is one JSON value.
    #[must_use]
    pub fn parse(text: String) -> Option<Self> {
        RawValue::from_string(text).ok().map(Self)
    }

    /// The same with a borrowed text, which is copied.
    #[must_use]
    pub fn parse_str(text: &str) -> Option<Self> {
        let raw: &RawValue = serde_json::from_str(text).ok()?;
        Some(Self(raw.to_owned()))
    }

    /// Serializes `value`, whose maps must have string keys.
    #[must_use]
    pub fn of(value: &impl Serialize) -> Self {
        to_raw_value(value).map_or_else(|_| Self::null(), Self)
    }

    /// `null`.
    #[must_use]
    pub fn null() -> Self {
        Self(RawValue::NULL.to_owned())
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.get()
    }

    /// The text, for serde.
    #[must_use]
    pub fn as_raw(&self) -> &RawValue {
        &self.0
    }

    /// The text, without a copy.
    #[must_use]
    pub fn into_string(self) -> String {
        Box::<str>::from(self.0).into()
    }

    /// The number of values in the text, including the outermost.
    #[must_use]
    pub fn values(&self) -> usize {
        let (mut values, mut in_string, mut escaped, mut opened) = (1, false, false, false);
        for byte in self.0.get().bytes() {
            if in_string {
                in_string = escaped || byte != b'"';
                escaped = !escaped && byte == b'\\';
                continue;
            }
            match byte {
                b' ' | b'\t' | b'\r' | b'\n' => continue,
                b',' => values += 1,
                // An array or object that is not empty has one more value than commas.
                b']' | b'}' => {}
                _ if opened => values += 1,
                _ => {}
            }
            in_string = byte == b'"';
            opened = matches!(byte, b'[' | b'{');
        }
        values
    }

    /// Parses the text into a tree, in which numbers may lose digits.
    #[must_use]
    pub fn to_tree(&self) -> Value {
        // The text is valid JSON. Parsing could only fail at numbers that no tree can hold, and
        // `parse` accepts none.
        serde_json::from_str(self.0.get()).unwrap_or_default()
    }
}

impl From<Value> for JsonText {
    fn from(tree: Value) -> Self {
        Self::of(&tree)
    }
}

impl fmt::Display for JsonText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for JsonText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl PartialEq for JsonText {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for JsonText {}

impl Serialize for JsonText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nodes(tree: &Value) -> usize {
        1 + match tree {
            Value::Array(items) => items.iter().map(nodes).sum(),
            Value::Object(members) => members.values().map(nodes).sum(),
            _ => 0,
        }
    }

    fn trees() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[\\[\\]{},\"\\\\a ]{0,6}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 60, 6, |inner| {
            let named = ("[\\[\\]{},\"\\\\a ]{0,4}", inner.clone());
            prop_oneof![
                prop::collection::vec(inner, 0..6).prop_map(Value::from),
                prop::collection::vec(named, 0..6)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn values_are_counted_without_a_tree(tree in trees()) {
            let counted = nodes(&tree);
            prop_assert_eq!(JsonText::of(&tree).values(), counted);
            let spread = JsonText::parse(format!("\n{tree:#} ")).unwrap();
            prop_assert_eq!(spread.values(), counted);
        }
    }

    #[test]
    fn a_text_is_kept_to_the_byte_but_for_what_is_around_it() {
        let inner = "{\"b\": 18446744073709551616,\t\"a\":\"\\u00e4\\/\", \"c\":-0.0e+1}";
        let text = JsonText::parse(format!(" \n{inner}\r\n")).unwrap();
        assert_eq!(text.as_str(), inner);
        assert_eq!(
            serde_json::to_string(&[&text]).unwrap(),
            format!("[{inner}]")
        );
        assert_eq!(text.into_string(), inner);
        for bad in ["", "{", "1 2", "{\"a\":}", "nul"] {
            assert!(JsonText::parse(bad.into()).is_none(), "{bad}");
        }
    }
}

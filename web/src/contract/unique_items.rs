//! `uniqueItems`, checked by ourselves in linear time.
//!
//! The library compares all items that hash alike, and a stranger can write thousands that do.

use std::{collections::HashSet, fmt::Write as _};

use jsonschema::{Keyword, ValidationError, paths::Location};
use serde_json::{Map, Number, Value};

/// `uniqueItems`, in time linear in the array's size.
struct UniqueItems;

/// Makes the keyword; for [`jsonschema::ValidationOptions::with_keyword`].
#[allow(
    clippy::unnecessary_wraps,
    reason = "the form that the library asks for"
)]
pub fn unique_items<'a>(
    _: &'a Map<String, Value>,
    wanted: &'a Value,
    _: Location,
) -> Result<Box<dyn for<'i> Keyword<'i>>, ValidationError<'a>> {
    Ok(if wanted == &Value::Bool(true) {
        Box::new(UniqueItems)
    } else {
        Box::new(Anything)
    })
}

impl<'i> Keyword<'i> for UniqueItems {
    fn validate(&self, instance: &'i Value) -> Result<(), ValidationError<'i>> {
        if are_unique(instance) {
            Ok(())
        } else {
            Err(ValidationError::custom("holds the same item twice"))
        }
    }

    fn is_valid(&self, instance: &'i Value) -> bool {
        are_unique(instance)
    }
}

/// `"uniqueItems": false` asks for nothing.
struct Anything;

impl<'i> Keyword<'i> for Anything {
    fn validate(&self, _: &'i Value) -> Result<(), ValidationError<'i>> {
        Ok(())
    }

    fn is_valid(&self, _: &'i Value) -> bool {
        true
    }
}

fn are_unique(instance: &Value) -> bool {
    let Value::Array(items) = instance else {
        return true;
    };
    // Keyed at random: nobody can choose items that hash alike.
    let mut seen = HashSet::with_capacity(items.len());
    items.iter().all(|item| {
        let mut text = String::new();
        write_canonical(item, &mut text);
        seen.insert(text)
    })
}

/// Writes a value so that two are the same text if, and only if, they are equal by JSON Schema.
fn write_canonical(value: &Value, text: &mut String) {
    match value {
        Value::Null => text.push('n'),
        Value::Bool(value) => text.push(if *value { 't' } else { 'f' }),
        Value::Number(number) => write_number(number, text),
        Value::String(value) => write_text(value, text),
        Value::Array(items) => {
            text.push('[');
            for item in items {
                write_canonical(item, text);
            }
            text.push(']');
        }
        Value::Object(members) => {
            // The order of members says nothing.
            let mut members: Vec<_> = members.iter().collect();
            members.sort_unstable_by_key(|(name, _)| *name);
            text.push('{');
            for (name, value) in members {
                write_text(name, text);
                write_canonical(value, text);
            }
            text.push('}');
        }
    }
}

fn write_text(value: &str, text: &mut String) {
    // With its length, so that it needs no escapes. Writing to a string never fails.
    let _ = write!(text, "s{}:{value}", value.len());
}

/// More than any whole number that is kept as one.
const WHOLE_BELOW: f64 = 2e19;

/// 1 and 1.0 are the same number.
fn write_number(number: &Number, text: &mut String) {
    let _ = match (number.as_i64(), number.as_u64(), number.as_f64()) {
        (Some(whole), _, _) => write!(text, "#{whole};"),
        (None, Some(whole), _) => write!(text, "#{whole};"),
        (None, None, Some(0.0)) => write!(text, "#0;"),
        // What a whole number may equal is written as one.
        (None, None, Some(float)) if float.fract() == 0.0 && float.abs() < WHOLE_BELOW => {
            write!(text, "#{float:.0};")
        }
        (None, None, Some(float)) => write!(text, "#x{:x};", float.to_bits()),
        (None, None, None) => write!(text, "#{number};"),
    };
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn canonical(value: &Value) -> String {
        let mut text = String::new();
        write_canonical(value, &mut text);
        text
    }

    #[test]
    fn equal_by_json_schema_is_equal_in_text() {
        for (one, other, equal) in [
            (json!(1), json!(1.0), true),
            (json!(0), json!(-0.0), true),
            (json!(1e3), json!(1000), true),
            (json!(18_446_744_073_709_551_615_u64), json!(-1), false),
            (
                json!(9_007_199_254_740_993_u64),
                json!(9_007_199_254_740_992_u64),
                false,
            ),
            (json!(1e15), json!(1_000_000_000_000_000_u64), true),
            (json!(1e300), json!(1e301), false),
            (json!({"a": 1, "b": [2]}), json!({"b": [2.0], "a": 1}), true),
            (json!(["s1:a"]), json!(["s1", "a"]), false),
            (json!([[]]), json!([[], []]), false),
            (json!("1"), json!(1), false),
            (json!(null), json!("n"), false),
            (json!({}), json!([]), false),
        ] {
            assert_eq!(canonical(&one) == canonical(&other), equal, "{one} {other}");
            let both = json!([one, other]);
            assert_eq!(are_unique(&both), !equal, "{both}");
        }
        assert!(are_unique(&json!({"a": 1})) && are_unique(&json!([])));
    }

    proptest! {
        #[test]
        fn as_the_library_says(items in prop::collection::vec(value(), 0..6)) {
            let library = jsonschema::options().build(&json!({"uniqueItems": true})).unwrap();
            let items = Value::Array(items);
            prop_assert_eq!(are_unique(&items), library.is_valid(&items));
        }
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (-2i64..3).prop_map(Value::from),
            (-2i32..3).prop_map(|n| Value::from(f64::from(n) / 2.0)),
            "[ab]{0,2}".prop_map(Value::from),
        ];
        leaf.prop_recursive(2, 6, 2, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                prop::collection::btree_map("[ab]", inner, 0..3)
                    .prop_map(|members| members.into_iter().collect()),
            ]
        })
    }
}

//! Schemas in words, for details of problems and for the reference.

use std::fmt::Write as _;

use serde_json::Value;

/// Longest list of allowed words that is spelt out.
const WORDS_MAX: usize = 24;

/// What a schema takes, such as "a string of 1 to 63 characters". References must be resolved.
pub(super) fn schema(schema: &Value) -> String {
    if let Some(words) = schema["enum"].as_array() {
        return one_of(words);
    }
    let name = type_name(schema);
    let (article, bounds) = match name.as_str() {
        "integer" => ("an ", range(schema, "minimum", "maximum", "")),
        "number" => ("a ", range(schema, "minimum", "maximum", "")),
        "string" => ("a ", range(schema, "minLength", "maxLength", " characters")),
        "array" => ("an ", range(schema, "minItems", "maxItems", " items")),
        "object" => (
            "an ",
            range(schema, "minProperties", "maxProperties", " members"),
        ),
        "boolean" => return "true or false".to_owned(),
        _ => return "a value of the documented form".to_owned(),
    };
    let mut words = format!("{article}{name}{bounds}");
    if let Some(format) = schema["format"].as_str().and_then(format_name) {
        let _ = write!(words, ", {format}");
    }
    if let Some(pattern) = schema["pattern"].as_str() {
        let _ = write!(words, ", matching `{pattern}`");
    }
    words
}

/// The schema's type, or its types but null.
pub(super) fn type_name(schema: &Value) -> String {
    match &schema["type"] {
        Value::String(name) => name.clone(),
        Value::Array(names) => {
            let names = names
                .iter()
                .filter_map(Value::as_str)
                .filter(|name| *name != "null");
            names.collect::<Vec<_>>().join(" or ")
        }
        _ => String::new(),
    }
}

/// "one of `a`, `b`".
pub(super) fn one_of(words: &[Value]) -> String {
    let listed: Vec<String> = words
        .iter()
        .take(WORDS_MAX)
        .map(|word| format!("`{}`", plain(word)))
        .collect();
    let more = if words.len() > WORDS_MAX { ", …" } else { "" };
    match listed.as_slice() {
        [only] => only.clone(),
        many => format!("one of {}{more}", many.join(", ")),
    }
}

fn plain(word: &Value) -> String {
    word.as_str()
        .map_or_else(|| word.to_string(), str::to_owned)
}

/// What a format asks for, in words; `None` for formats that only say how wide a number is.
pub(super) fn format_name(format: &str) -> Option<&'static str> {
    Some(match format {
        "date-time" => "an RFC 3339 time from 1970 on, such as `2026-01-31T12:00:00Z`",
        "uri" => "an absolute URL",
        "uuid" => "a UUID",
        "email" => "an e-mail address",
        _ => return None,
    })
}

fn range(schema: &Value, low: &str, high: &str, unit: &str) -> String {
    let preposition = if unit.is_empty() { "" } else { "of " };
    match (bound(schema, low), bound(schema, high)) {
        (Some(low), Some(high)) if low == high => format!(" {preposition}exactly {low}{unit}"),
        (Some(low), Some(high)) if unit.is_empty() => format!(" from {low} to {high}"),
        (Some(low), Some(high)) => format!(" of {low} to {high}{unit}"),
        (None, Some(high)) => format!(" {preposition}at most {high}{unit}"),
        (Some(low), None) => format!(" {preposition}at least {low}{unit}"),
        (None, None) => String::new(),
    }
}

fn bound(schema: &Value, keyword: &str) -> Option<String> {
    schema.get(keyword).map(Value::to_string)
}

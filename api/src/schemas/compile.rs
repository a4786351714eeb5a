//! From a schema to what evaluates it.

use jsonschema::{Draft, PatternOptions, Validator};
use serde_json::Value;

use domain::{FaultCode, FieldError};

use super::{
    cost::{self, Cost, Limits, Steps},
    pattern::{self, MATCHER_BYTES, PATTERN_BYTES},
};
use web::contract::unique_items;

/// Largest schema, bytes of JSON.
pub(crate) const SCHEMA_BYTES: usize = 64 * 1024;

/// A schema that passed [`compile`].
pub(super) struct Compiled {
    pub(super) validator: Validator,
    /// To learn whether a payload fits.
    pub(super) check: Steps,
    /// To learn why it does not, on top.
    pub(super) explain: Steps,
    /// What it takes, with all that it grows to when it is used.
    pub(super) bytes: u64,
}

/// Checks a schema and makes a validator of it.
pub(super) fn compile(schema: &Value, limits: Limits) -> Result<Compiled, Vec<FieldError>> {
    let one = |pointer: &str, code, detail: String| vec![FieldError::new(pointer, code, detail)];
    let text_bytes = schema.to_string().len();
    if text_bytes > SCHEMA_BYTES {
        let detail = format!("A schema may have at most {SCHEMA_BYTES} bytes of JSON.");
        return Err(one("", FaultCode::TooLong, detail));
    }
    let Some(draft) = draft_of(schema) else {
        let detail = "`$schema` must name draft 6, 7, 2019-09 or 2020-12, or be left out.".into();
        return Err(one("/$schema", FaultCode::NotAllowed, detail));
    };
    let Cost {
        check,
        explain,
        memory,
    } = cost::cost_of(schema, limits)?;
    if let Err(error) = jsonschema::meta::validate(schema) {
        let detail = "That is not valid JSON Schema: a keyword has a value that it does not take.";
        return Err(one(
            error.instance_path().as_str(),
            FaultCode::Invalid,
            detail.into(),
        ));
    }
    let validator = jsonschema::options()
        .with_draft(draft)
        .should_validate_formats(true)
        .should_ignore_unknown_formats(true)
        .with_pattern_options(
            PatternOptions::regex()
                .size_limit(2 * PATTERN_BYTES)
                .dfa_size_limit(MATCHER_BYTES),
        )
        .with_keyword("uniqueItems", unique_items)
        .with_format("regex", pattern::is_regex)
        .offline()
        .build(schema)
        .map_err(|error| {
            let detail = "The schema can't be used: a reference leads nowhere, or a pattern is too \
                large or uses look-around or back-references.";
            one(
                error.instance_path().as_str(),
                FaultCode::Invalid,
                detail.into(),
            )
        })?;
    Ok(Compiled {
        validator,
        check,
        explain,
        bytes: memory + 4 * text_bytes as u64,
    })
}

/// The dialect that a schema is written in; 2020-12 unless it says otherwise.
fn draft_of(schema: &Value) -> Option<Draft> {
    let Some(named) = schema.get("$schema") else {
        return Some(Draft::Draft202012);
    };
    let name = named.as_str()?.trim_end_matches('#');
    let name = name
        .strip_prefix("https://")
        .or_else(|| name.strip_prefix("http://"))?;
    Some(match name {
        "json-schema.org/draft-06/schema" => Draft::Draft6,
        "json-schema.org/draft-07/schema" => Draft::Draft7,
        "json-schema.org/draft/2019-09/schema" => Draft::Draft201909,
        "json-schema.org/draft/2020-12/schema" => Draft::Draft202012,
        _ => return None,
    })
}

//! Faults of a body, found by the contract's own schemas and told in our words.
//!
//! Nothing here quotes a value: it may be a secret. Member names are quoted, within limits.

use std::collections::{HashMap, HashSet};

use jsonschema::{
    Draft, JsonType, PatternOptions, ValidationError, Validator,
    error::{TypeKind, ValidationErrorKind as Kind},
};
use serde_json::{Map, Value, json};

use domain::{FaultCode, FieldError, Timestamp};

use super::{
    describe,
    fault_list::{FAULTS_MAX, Faults, child},
    schema::{operations, refer, reference, references_in},
    sizes::{Sizes, is_large},
    unique_items::unique_items,
};

/// A validator for each schema that is a request's body.
pub(super) fn validators(document: &Value) -> Result<HashMap<String, Validator>, String> {
    let mut names = HashSet::new();
    for (_, _, operation) in operations(document) {
        for media in operation["requestBody"]["content"]
            .as_object()
            .into_iter()
            .flatten()
        {
            names.extend(reference(&media.1["schema"]).map(str::to_owned));
        }
    }
    names
        .into_iter()
        .map(|name| {
            let validator = compile(&refer(&name), document)
                .map_err(|error| format!("the schema {name} does not compile: {error}"))?;
            Ok((name, validator))
        })
        .collect()
}

/// Compiles a schema that may refer to the document's. Only what it refers to goes with it: a
/// validator keeps a copy, and there is one for every kind of body.
pub(super) fn compile(
    schema: &Value,
    document: &Value,
) -> Result<Validator, ValidationError<'static>> {
    let schemas = &document["components"]["schemas"];
    let mut needed = Map::new();
    let mut names = references_in(schema);
    while let Some(name) = names.pop() {
        if let Some(found) = schemas.get(&name)
            && !needed.contains_key(&name)
        {
            names.extend(references_in(found));
            needed.insert(name, found.clone());
        }
    }
    let schema = json!({"allOf": [schema], "components": {"schemas": needed}});
    jsonschema::options()
        .with_draft(Draft::Draft202012)
        .should_validate_formats(true)
        .should_ignore_unknown_formats(true)
        // What we can keep, no more: nothing before 1970.
        .with_format("date-time", |text: &str| Timestamp::parse(text).is_some())
        // Linear in the input, whatever the pattern and the items.
        .with_pattern_options(PatternOptions::regex())
        .with_keyword("uniqueItems", unique_items)
        .build(&schema)
}

/// The faults of `value`, at most [`FAULTS_MAX`].
pub(super) fn of(validator: &Validator, value: &Value) -> Vec<FieldError> {
    let mut faults = Faults::of(value);
    if !validator.is_valid(value) {
        for error in validator.iter_errors(value) {
            faults.explain(&error);
            if faults.list.len() >= FAULTS_MAX {
                break;
            }
        }
        faults.list.truncate(FAULTS_MAX);
    }
    faults.list
}

/// The faults of a request's body by the schema called `name`, at most [`FAULTS_MAX`]. A large one
/// is refused for its sizes alone, if they are wrong.
pub(super) fn of_body(
    validator: &Validator,
    name: &str,
    document: &Value,
    body: &Value,
) -> Vec<FieldError> {
    if !is_large(body) {
        return of(validator, body);
    }
    if validator.is_valid(body) {
        return Vec::new();
    }
    let mut sizes = Sizes {
        document,
        faults: Faults::of(body),
        unclear: false,
    };
    sizes.judge(&document["components"]["schemas"][name], body, "");
    let mut faults = sizes.faults;
    if faults.list.is_empty() && sizes.unclear {
        faults.add(
            "",
            FaultCode::Invalid,
            "has faults, and too many values to look for them",
        );
    }
    if faults.list.is_empty() {
        return of(validator, body);
    }
    faults.list.truncate(FAULTS_MAX);
    faults.list
}

impl Faults<'_> {
    fn explain(&mut self, error: &ValidationError<'_>) {
        let at = error.instance_path().as_str();
        match error.kind() {
            Kind::Required { property } => {
                let name = property.as_str().unwrap_or_default();
                self.add(&child(at, name), FaultCode::Required, "is required");
            }
            Kind::AdditionalProperties { unexpected }
            | Kind::UnevaluatedProperties { unexpected } => {
                for name in unexpected.iter().take(FAULTS_MAX) {
                    self.add_unknown(at, name);
                }
            }
            // An object that takes no members at all is refused as a whole.
            Kind::FalseSchema => match self.body.pointer(at).and_then(Value::as_object) {
                Some(members) => {
                    members
                        .keys()
                        .take(FAULTS_MAX)
                        .for_each(|name| self.add_unknown(at, name));
                }
                None => self.add(at, FaultCode::UnknownField, "is not known here"),
            },
            Kind::AnyOf { context } | Kind::OneOfNotValid { context } => {
                self.explain_branches(at, context);
            }
            Kind::PropertyNames { error } => {
                let what = explain_one(error)
                    .map_or("is not an allowed name".to_owned(), |(_, what)| what);
                let code = explain_one(error).map_or(FaultCode::Invalid, |(code, _)| code);
                match error.instance().as_str() {
                    Some(name) => self.add(&child(at, name), code, &format!("as a name {what}")),
                    None => self.add(at, code, "has a member with a name that is not allowed"),
                }
            }
            _ => {
                let (code, what) = explain_one(error)
                    .unwrap_or((FaultCode::Invalid, "is not of the documented form".into()));
                self.add(at, code, &what);
            }
        }
    }

    /// Of several alternatives, explains the one that was most likely meant.
    fn explain_branches(&mut self, at: &str, branches: &[Vec<ValidationError<'static>>]) {
        if let Some((pointer, words)) = wrong_branch_word(branches, at) {
            let what = format!("must be {}", describe::one_of(&words));
            return self.add(&pointer, FaultCode::NotAllowed, &what);
        }
        let meant = branches
            .iter()
            .filter(|errors| !errors.is_empty())
            .min_by_key(|errors| (misses(errors, at), errors.len()));
        match meant {
            Some(errors) => errors.iter().for_each(|error| self.explain(error)),
            None => self.add(at, FaultCode::Invalid, "fits none of the documented forms"),
        }
    }
}

/// The member that tells the branches apart, and the words that it takes, when it fits none.
fn wrong_branch_word(
    branches: &[Vec<ValidationError<'static>>],
    at: &str,
) -> Option<(String, Vec<Value>)> {
    let word_of = |errors: &Vec<ValidationError<'static>>| {
        errors.iter().find_map(|error| {
            let path = error.instance_path().as_str();
            let direct = path.strip_prefix(at)?.matches('/').count() == 1;
            let words = match error.kind() {
                Kind::Enum { options } => options.as_array()?.clone(),
                Kind::Constant { expected_value } => vec![(**expected_value).clone()],
                _ => return None,
            };
            direct.then(|| (path.to_owned(), words))
        })
    };
    // A branch that is only for null has no such member.
    let objects = branches.iter().filter(|errors| {
        !errors
            .iter()
            .any(|e| matches!(e.kind(), Kind::Type { .. }) && e.instance_path().as_str() == at)
    });
    let found: Vec<_> = objects.map(word_of).collect::<Option<_>>()?;
    let pointer = found.first()?.0.clone();
    let same = found.iter().all(|(path, _)| *path == pointer);
    same.then(|| {
        (
            pointer,
            found.into_iter().flat_map(|(_, words)| words).collect(),
        )
    })
}

/// How many of the errors say that the branch is for something else altogether: another type,
/// another word in the member that tells the branches apart, or members that only others have.
fn misses(errors: &[ValidationError<'static>], at: &str) -> usize {
    let elsewhere = |error: &&ValidationError<'static>| {
        let path = error.instance_path().as_str();
        match error.kind() {
            Kind::Type { .. } | Kind::AdditionalProperties { .. } => path == at,
            Kind::Enum { .. } | Kind::Constant { .. } => path
                .strip_prefix(at)
                .is_some_and(|rest| rest.matches('/').count() <= 1),
            _ => false,
        }
    };
    errors.iter().filter(elsewhere).count()
}

/// Code and predicate of the errors that concern one value.
fn explain_one(error: &ValidationError<'_>) -> Option<(FaultCode, String)> {
    let at_least =
        |limit: &dyn std::fmt::Display, unit: &str| format!("must have at least {limit} {unit}");
    let at_most =
        |limit: &dyn std::fmt::Display, unit: &str| format!("may have at most {limit} {unit}");
    Some(match error.kind() {
        Kind::Type { kind } => {
            let found = found(error.instance());
            (
                FaultCode::Type,
                format!("must be {}, not {found}", wanted(kind)),
            )
        }
        Kind::MinLength { limit: 1 } => (FaultCode::TooShort, "must not be empty".to_owned()),
        Kind::MinLength { limit } => (FaultCode::TooShort, at_least(limit, "characters")),
        Kind::MaxLength { limit } => (FaultCode::TooLong, at_most(limit, "characters")),
        Kind::MinItems { limit } => (FaultCode::TooShort, at_least(limit, "items")),
        Kind::MaxItems { limit } => (FaultCode::TooLong, at_most(limit, "items")),
        Kind::AdditionalItems { limit } => (FaultCode::TooLong, at_most(limit, "items")),
        Kind::MinProperties { limit } => (FaultCode::TooShort, at_least(limit, "members")),
        Kind::MaxProperties { limit } => (FaultCode::TooLong, at_most(limit, "members")),
        Kind::Minimum { limit } => (FaultCode::TooSmall, format!("must be at least {limit}")),
        Kind::Maximum { limit } => (FaultCode::TooLarge, format!("may be at most {limit}")),
        Kind::ExclusiveMinimum { limit } => {
            (FaultCode::TooSmall, format!("must be more than {limit}"))
        }
        Kind::ExclusiveMaximum { limit } => {
            (FaultCode::TooLarge, format!("must be less than {limit}"))
        }
        Kind::Pattern { pattern } => (FaultCode::Pattern, format!("must match `{pattern}`")),
        Kind::Enum { options } => {
            let words = options.as_array().map_or(&[][..], Vec::as_slice);
            (
                FaultCode::NotAllowed,
                format!("must be {}", describe::one_of(words)),
            )
        }
        Kind::Constant { expected_value } => (
            FaultCode::NotAllowed,
            format!(
                "must be {}",
                describe::one_of(&[(**expected_value).clone()])
            ),
        ),
        // Checked by ourselves.
        Kind::Custom { keyword, .. } if keyword == "uniqueItems" => (
            FaultCode::Duplicate,
            "must not hold the same item twice".to_owned(),
        ),
        Kind::Format { format } => {
            let name = describe::format_name(format).unwrap_or("of the documented format");
            (FaultCode::Format, format!("must be {name}"))
        }
        _ => return None,
    })
}

fn wanted(kind: &TypeKind) -> String {
    let name = |kind: JsonType| match kind {
        JsonType::Array => "an array",
        JsonType::Boolean => "true or false",
        JsonType::Integer => "an integer",
        JsonType::Null => "null",
        JsonType::Number => "a number",
        JsonType::Object => "an object",
        JsonType::String => "a string",
    };
    match kind {
        TypeKind::Single(one) => name(*one).to_owned(),
        TypeKind::Multiple(several) => several.iter().map(name).collect::<Vec<_>>().join(" or "),
    }
}

fn found(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a number with a fraction",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(schema: &Value, value: &Value) -> Vec<(String, String)> {
        let validator = compile(schema, &json!({"components": {"schemas": {}}})).unwrap();
        let faults = of(&validator, value).into_iter();
        faults
            .map(|fault| (fault.pointer, fault.code.to_string()))
            .collect()
    }

    #[test]
    fn an_object_without_members_takes_none() {
        let schema = json!({"type": "object", "additionalProperties": false});
        let found = faults(&schema, &json!({"a": 1, "b": 2}));
        assert_eq!(
            found,
            [
                ("/a".into(), "unknown_field".into()),
                ("/b".into(), "unknown_field".into())
            ]
        );
        let empty = json!({"type": "object", "properties": {}, "additionalProperties": false});
        assert_eq!(
            faults(&empty, &json!({"a": 1})),
            [("/a".into(), "unknown_field".into())]
        );
    }

    #[test]
    fn a_closed_composition_names_its_unknown_members() {
        let schema = json!({"allOf": [{"type": "object", "properties": {"a": {}}}],
            "unevaluatedProperties": false});
        assert_eq!(
            faults(&schema, &json!({"a": 1, "z": 2})),
            [("/z".into(), "unknown_field".into())]
        );
    }

    #[test]
    fn names_can_be_wrong_too() {
        let schema = json!({"propertyNames": {"maxLength": 3}});
        assert_eq!(
            faults(&schema, &json!({"abcd": 1})),
            [("/abcd".into(), "too_long".into())]
        );
    }

    #[test]
    fn of_alternatives_the_likeliest_is_explained() {
        let schema = json!({"anyOf": [
            {"type": "null"},
            {"type": "array", "maxItems": 1},
            {"type": "object", "required": ["a"], "properties": {"a": {"type": "string"}}},
        ]});
        assert_eq!(
            faults(&schema, &json!({"a": 1})),
            [("/a".into(), "type".into())]
        );
        assert_eq!(
            faults(&schema, &json!([1, 2])),
            [(String::new(), "too_long".into())]
        );
    }
}

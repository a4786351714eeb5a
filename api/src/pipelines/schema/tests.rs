//! Schemas of strangers, and what they judge.

use super::*;
use domain::id::Id;
use serde_json::json;

fn refused(schema: &Value) -> Vec<(String, String)> {
    let found = faults("/input_schema", schema).into_iter();
    found
        .map(|fault| (fault.pointer, fault.code.into_owned()))
        .collect()
}

fn one(pointer: &str, code: &str) -> Vec<(String, String)> {
    vec![(format!("/input_schema{pointer}"), code.to_owned())]
}

#[test]
fn ordinary_schemas_are_taken() {
    for schema in [
        json!({}),
        json!({"type": "object", "properties": {"$ref": {"type": "string"}}}),
        json!({"$schema": "http://json-schema.org/draft-07/schema#",
            "definitions": {"a": {"type": "string"}},
            "properties": {"x": {"$ref": "#/definitions/a"}, "y": {"$ref": "#/definitions/a"}}}),
        json!({"$schema": "https://json-schema.org/draft/2020-12/schema",
            "$id": "https://example.com/input", "enum": [{"$ref": "https://example.com"}]}),
        json!({"patternProperties": {"^x-": true}, "items": {"pattern": "^[a-z]{1,100}$"}}),
    ] {
        assert_eq!(refused(&schema), [], "{schema}");
    }
}

#[test]
fn references_stay_within_the_schema() {
    for target in [
        "https://example.com/s.json",
        "file:///etc/passwd",
        "other.json",
        "#name",
    ] {
        let schema = json!({"properties": {"a/b": {"$ref": target}}});
        assert_eq!(
            refused(&schema),
            one("/properties/a~1b/$ref", "not_allowed"),
            "{target}"
        );
    }
    let nowhere = json!({"$ref": "#/$defs/a"});
    assert_eq!(refused(&nowhere), one("/$ref", "invalid"));
    let nested = json!({"items": {"$id": "https://example.com"}});
    assert_eq!(refused(&nested), one("/items/$id", "not_allowed"));
    let dynamic = json!({"items": {"$dynamicRef": "#x"}});
    assert_eq!(refused(&dynamic), one("/items/$dynamicRef", "not_allowed"));
}

#[test]
fn circles_are_refused() {
    for (schema, at) in [
        (json!({"$ref": "#"}), "/$ref"),
        (json!({"items": {"$ref": "#"}}), "/items/$ref"),
        (
            json!({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"not": {"$ref": "#/$defs/a"}}},
            "$ref": "#/$defs/a"}),
            "/$ref",
        ),
    ] {
        assert_eq!(refused(&schema), one(at, "not_allowed"), "{schema}");
    }
    let encoded = json!({"properties": {"a": {"$ref": "#/%70roperties/a"}}});
    assert_eq!(refused(&encoded), one("/properties/a/$ref", "not_allowed"));
}

#[test]
fn a_schema_that_unfolds_without_end_is_refused() {
    let mut definitions = Map::new();
    for level in 0..30 {
        let next = json!({"$ref": format!("#/$defs/l{}", level + 1)});
        definitions.insert(format!("l{level}"), json!({"allOf": [next, next]}));
    }
    definitions.insert("l30".into(), json!({"type": "string"}));
    let schema = json!({"$defs": definitions, "$ref": "#/$defs/l0"});
    assert_eq!(refused(&schema), one("/$ref", "too_long"));
}

#[test]
fn what_is_no_schema_is_refused_where_it_is_wrong() {
    let schema = json!({"properties": {"a": {"type": "text"}}});
    assert_eq!(refused(&schema), one("/properties/a/type", "invalid"));
    assert_eq!(
        refused(&json!({"$schema": "urn:x"})),
        one("/$schema", "not_allowed")
    );
    let look_around = json!({"properties": {"a": {"pattern": "^(?=a)"}}});
    assert_eq!(refused(&look_around).len(), 1);
    let heavy = json!({"pattern": "(\\pL{100}){100}"});
    assert_eq!(refused(&heavy).len(), 1);
    let many: Vec<Value> = (0..40)
        .map(|n| json!({"pattern": format!("{n}")}))
        .collect();
    assert_eq!(refused(&json!({"anyOf": many})), one("", "too_long"));
    let long = json!({"description": "x".repeat(SCHEMA_BYTES)});
    assert_eq!(refused(&long), one("", "too_long"));
}

async fn check(schema: &Value, payload: Value) -> Result<(), Problem> {
    let (schemas, version) = (Schemas::new(), (Id::from_uuid(Uuid::nil()), 1));
    let (back, verdict) = schemas
        .check(version, Side::Input, Some(schema), payload.clone().into())
        .await;
    assert_eq!(back, payload.clone().into());
    let now = schemas.check_now(version, Side::Input, Some(schema), &payload.into());
    assert_eq!(now, verdict);
    verdict
}

#[tokio::test]
async fn a_payload_is_judged_where_it_stands() {
    let schema = json!({"type": "object", "required": ["n"],
        "properties": {"n": {"type": "integer", "maximum": 3}}, "additionalProperties": false});
    check(&schema, json!({"n": 3})).await.unwrap();
    let problem = check(&schema, json!({"n": 4, "m": 1})).await.unwrap_err();
    let mut found: Vec<_> = problem
        .errors
        .iter()
        .map(|f| (f.pointer.as_str(), f.code.as_ref()))
        .collect();
    found.sort_unstable();
    assert_eq!(
        found,
        [("/input/m", "unknown_field"), ("/input/n", "too_large")]
    );
    let problem = check(&schema, json!(1)).await.unwrap_err();
    assert_eq!(problem.errors[0].pointer, "/input");
    assert_eq!(problem.detail, "`input` must be an object, not a number.");
}

#[tokio::test]
async fn payloads_are_bounded() {
    let problem = check(&json!({}), json!("x".repeat(PAYLOAD_BYTES)))
        .await
        .unwrap_err();
    assert_eq!(
        (problem.errors[0].pointer.as_str(), &*problem.errors[0].code),
        ("/input", "too_long")
    );
}

#[tokio::test]
async fn a_check_that_would_take_long_is_not_made() {
    let all: Vec<Value> = (0..1000).map(|_| json!({"type": "string"})).collect();
    let schema = json!({"items": {"allOf": all}});
    let problem = check(&schema, json!(vec![1; 100_000])).await.unwrap_err();
    assert_eq!(&*problem.errors[0].code, "too_large");
    let schema = json!({"items": {"type": "string"}});
    let problem = check(&schema, json!(vec![1; 100_000])).await.unwrap_err();
    assert_eq!(
        (problem.errors.len(), &*problem.errors[0].code),
        (1, "invalid")
    );
}

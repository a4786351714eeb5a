//! Schemas of strangers, and what they judge.

use super::*;
use domain::{Code, id::Id};
use serde_json::{Map, json};

use super::compile::SCHEMA_BYTES;

fn publisher() -> PublisherId {
    Id::from_uuid(Uuid::from_u128(1))
}

fn refused(schema: &Value) -> Vec<(String, String)> {
    let found = compile(schema, REGISTERED).err().into_iter().flatten();
    found
        .map(|fault| {
            let pointer = format!("/input_schema{}", fault.pointer);
            (pointer, fault.code.to_string())
        })
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
    let text = JsonText::of(&payload);
    let item = || [Item::of_run(version, Side::Input, schema, &text)];
    let verdict = schemas.check(publisher(), &item()).await;
    // Now that the schema is at hand, a small check is made at once, and says the same.
    if let Some(at_once) = schemas.check_at_once(&item()) {
        assert_eq!(at_once, verdict);
    }
    assert_eq!(schemas.check(publisher(), &item()).await, verdict);
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
        .map(|f| (f.pointer.as_str(), f.code.as_str()))
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

#[test]
fn payloads_are_bounded() {
    let of = |bytes| JsonText::of(&"x".repeat(bytes - 2));
    let problem = check_payload_bytes("input", &of(PAYLOAD_BYTES + 1)).unwrap_err();
    assert_eq!(
        (
            problem.errors[0].pointer.as_str(),
            problem.errors[0].code.as_str()
        ),
        ("/input", "too_long")
    );
    assert!(check_payload_bytes("input", &of(PAYLOAD_BYTES)).is_ok());
}

#[tokio::test]
async fn a_check_that_would_take_long_is_not_made() {
    let all: Vec<Value> = (0..1000).map(|_| json!({"type": "string"})).collect();
    let schema = json!({"items": {"allOf": all}});
    let problem = check(&schema, json!(vec![1; 40_000])).await.unwrap_err();
    assert_eq!(problem.errors[0].code.as_str(), "too_large");
    let schema =
        json!({"items": {"type": "string", "minLength": 1, "maxLength": 9, "pattern": "^a"}});
    let problem = check(&schema, json!(vec![1; 40_000])).await.unwrap_err();
    assert_eq!(
        (problem.errors.len(), problem.errors[0].code.as_str()),
        (1, "invalid")
    );
    let problem = check(&schema, json!(vec![1; PAYLOAD_VALUES]))
        .await
        .unwrap_err();
    assert_eq!(problem.errors[0].code.as_str(), "too_many_values");
}

#[tokio::test]
async fn small_checks_are_made_at_once_and_large_ones_elsewhere() {
    let (schemas, version) = (Schemas::new(), (Id::from_uuid(Uuid::nil()), 1));
    let schema =
        json!({"type": "object", "properties": {"day": {"type": "string", "format": "date"}}});
    let small = JsonText::of(&json!({"day": "2026-02-31"}));
    let item = [Item::of_run(version, Side::Output, &schema, &small)];
    assert!(schemas.check_at_once(&item).is_none(), "not compiled yet");
    let problem = schemas.check(publisher(), &item).await.unwrap_err();
    assert_eq!(problem.errors[0].pointer, "/output/day");
    assert!(schemas.check_at_once(&item).is_some());
    let large = JsonText::of(&vec![1; BYTES_INLINE_MAX / 2 + 1]);
    let item = [Item::of_run(version, Side::Output, &schema, &large)];
    assert!(schemas.check_at_once(&item).is_none());
}

#[tokio::test]
async fn a_schema_of_older_rules_is_evaluated_as_far_as_it_can_be() {
    let many: Vec<Value> = (0..2_500).map(|n| json!({"const": n})).collect();
    let costly = json!({"anyOf": many});
    assert_eq!(refused(&costly), one("", "too_long"));
    check(&costly, json!(2_499)).await.unwrap();
    let problem = check(&costly, json!(2_500)).await.unwrap_err();
    assert_eq!(problem.errors[0].pointer, "/input");
    let circle = json!({"items": {"$ref": "#"}});
    let problem = check(&circle, json!([])).await.unwrap_err();
    assert_eq!(
        (problem.code, problem.errors[0].pointer.as_str()),
        (Code::ValidationFailed, "/input")
    );
    assert!(
        problem
            .detail
            .contains("has to be registered anew: at `/items/$ref`"),
        "{}",
        problem.detail
    );
}

#[tokio::test]
async fn events_are_judged_together_each_where_it_stands() {
    let schemas = Schemas::new();
    let schema = TypeSchema {
        id: Uuid::nil(),
        revision: 1,
        schema: json!({"required": ["a"]}),
    };
    let texts = [json!({"a": 1}), json!({}), json!({})].map(|data| JsonText::of(&data));
    let items: Vec<Item<'_>> = (0..3)
        .map(|at| Item::of_event(format!("/events/{at}"), &schema, &texts[at]))
        .collect();
    let problem = schemas.check(publisher(), &items).await.unwrap_err();
    let found: Vec<_> = problem
        .errors
        .iter()
        .map(|fault| fault.pointer.as_str())
        .collect();
    assert_eq!(found, ["/events/1/data/a", "/events/2/data/a"]);
    assert_eq!(problem.errors[0].detail, "`events.1.data.a` is required.");
    let wide = TypeSchema {
        id: Uuid::nil(),
        revision: 2,
        schema: json!({"items": {"allOf": vec![true; 1_900]}}),
    };
    let long = JsonText::of(&vec![1; 5_001]);
    let items = [0, 1].map(|at| Item::of_event(format!("/events/{at}"), &wide, &long));
    let problem = schemas.check(publisher(), &items).await.unwrap_err();
    assert_eq!(
        (
            problem.errors[0].pointer.as_str(),
            problem.errors[0].code.as_str()
        ),
        ("/events", "too_large")
    );
}

#[tokio::test]
async fn what_is_registered_is_looked_at_with_its_example() {
    let schemas = Schemas::new();
    let fits = json!({"properties": {"n": {"maximum": 3}}});
    let ask = |schema: Value, example: &str| {
        let example = Some(("/example", example.to_owned()));
        schemas.faults(publisher(), vec![("/schema", schema)], example)
    };
    assert_eq!(ask(fits.clone(), r#"{"n":3}"#).await.unwrap(), []);
    let found = ask(fits, r#"{"n":4}"#).await.unwrap();
    assert_eq!(
        (found[0].pointer.as_str(), &*found[0].detail),
        ("/example/n", "`example.n` may be at most 3.")
    );
    let found = ask(json!({"not": 1}), "1").await.unwrap();
    assert_eq!(found[0].pointer, "/schema/not");
}

/// The schemas of the published document that `schema` refers to, and those that these do.
fn needed(document: &Value, schema: &Value, found: &mut Map<String, Value>) {
    match schema {
        Value::Array(items) => items.iter().for_each(|item| needed(document, item, found)),
        Value::Object(members) => {
            for (keyword, value) in members {
                let name = value.as_str().and_then(|to| to.rsplit('/').next());
                if let ("$ref", Some(name)) = (keyword.as_str(), name)
                    && !found.contains_key(name)
                {
                    let target = &document["components"]["schemas"][name];
                    found.insert(name.to_owned(), target.clone());
                    needed(document, target, found);
                }
                needed(document, value, found);
            }
        }
        _ => {}
    }
}

#[test]
fn no_body_of_our_own_operations_costs_much() {
    let document = crate::openapi_document();
    let operations = document["paths"].as_object().unwrap().values();
    let bodies: Vec<&Value> = operations
        .filter_map(Value::as_object)
        .flat_map(|methods| methods.values())
        .map(|operation| &operation["requestBody"]["content"]["application/json"]["schema"])
        .filter(|schema| schema.is_object())
        .collect();
    assert!(bodies.len() > 20, "{}", bodies.len());
    for body in bodies {
        let mut found = Map::new();
        needed(&document, body, &mut found);
        let whole = json!({"allOf": [body], "components": {"schemas": found}});
        let cost =
            cost::cost_of(&whole, cost::KEPT).unwrap_or_else(|faults| panic!("{body}: {faults:?}"));
        let steps = cost.check.of(1, 0);
        assert!(steps < 1_000, "{body}: {cost:?}");
    }
}

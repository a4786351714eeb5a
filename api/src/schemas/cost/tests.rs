//! Schemas that are taken and schemas that are not, each with the place that says why.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use jsonschema::{Keyword, ValidationError};
use proptest::prelude::*;
use serde_json::json;

use super::*;

fn cost(schema: &Value) -> Cost {
    cost_of(schema, REGISTERED).unwrap_or_else(|faults| panic!("{faults:?}: {schema}"))
}

/// Pointer and code of each fault.
fn refused(schema: &Value) -> Vec<(String, String)> {
    let faults = cost_of(schema, REGISTERED).expect_err("it is refused");
    let said = faults.into_iter();
    said.map(|fault| (fault.pointer, fault.code.to_string()))
        .collect()
}

/// Links of a chain: each looks at the next one as `link` says.
fn chain(links: usize, link: impl Fn(Value) -> Value, end: Value) -> Value {
    let mut defs = Map::new();
    for at in 0..links {
        let next = json!({"$ref": format!("#/$defs/a{}", at + 1)});
        defs.insert(format!("a{at}"), link(next));
    }
    defs.insert(format!("a{links}"), end);
    json!({"$ref": "#/$defs/a0", "$defs": defs})
}

#[test]
fn ordinary_schemas_are_cheap() {
    let order = json!({
        "type": "object",
        "required": ["id", "lines"],
        "properties": {
            "id": {"type": "string", "format": "uuid"},
            "email": {"type": "string", "format": "email", "maxLength": 200},
            "when": {"type": "string", "format": "date-time"},
            "lines": {"type": "array", "minItems": 1, "uniqueItems": true, "items": {"$ref": "#/$defs/line"}},
            "address": {"$ref": "#/$defs/address"},
            "billing": {"$ref": "#/$defs/address"},
        },
        "additionalProperties": false,
        "$defs": {
            "line": {"type": "object", "properties": {
                "sku": {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{1,10}$"},
                "count": {"type": "integer", "minimum": 1},
                "price": {"type": "number", "multipleOf": 0.01},
            }},
            "address": {"type": "object", "required": ["street"], "properties": {
                "street": {"type": "string"}, "country": {"enum": ["AT", "CH", "DE"]}}},
        },
    });
    let found = cost(&order);
    assert!(found.check.value < 100, "{found:?}");
    assert!(found.memory < 512 * 1024, "{found:?}");
    // One of several kinds, each closed against members that no part knows.
    let kinds: Vec<Value> = (0..12)
        .map(|kind| {
            json!({"allOf": [{"$ref": "#/$defs/base"}], "unevaluatedProperties": false,
            "properties": {"kind": {"const": kind}, "size": {"type": "integer"}}})
        })
        .collect();
    let events = json!({"oneOf": kinds, "$defs": {"base": {"type": "object",
        "required": ["id"], "properties": {"id": {"type": "string"}, "at": {"type": "string"}}}}});
    let found = cost(&events);
    assert!(found.check.value < 1_000, "{found:?}");
    let conditions = json!({"if": {"properties": {"country": {"const": "AT"}}},
        "then": {"properties": {"code": {"pattern": "^[0-9]{4}$"}}},
        "else": {"if": {"required": ["code"]}, "then": {"minProperties": 2}}});
    assert!(cost(&conditions).check.value < 50);
}

#[test]
fn a_chain_of_unevaluated_is_refused_long_before_it_freezes() {
    let any_of =
        |next: Value| json!({"anyOf": [next], "unevaluatedProperties": {"type": "integer"}});
    let all_of =
        |next: Value| json!({"allOf": [next], "unevaluatedProperties": {"type": "integer"}});
    let one_of = |next: Value| json!({"oneOf": [next, false], "unevaluatedItems": false});
    let if_then =
        |next: Value| json!({"if": next, "then": true, "unevaluatedItems": {"minimum": 0}});
    let depends = |next: Value| json!({"dependentSchemas": {"a": {"anyOf": [next]}}, "unevaluatedProperties": false});
    let contains = |next: Value| json!({"contains": {"contains": true, "allOf": [next]}, "unevaluatedItems": false});
    let below = |next: Value| json!({"properties": {"a": {"anyOf": [next]}}, "allOf": [{"properties": {"a": true}}], "unevaluatedProperties": {"anyOf": [true]}});
    for (name, link) in [
        ("anyOf", &any_of as &dyn Fn(Value) -> Value),
        ("allOf", &all_of),
        ("oneOf", &one_of),
        ("if", &if_then),
        ("dependentSchemas", &depends),
        ("contains", &contains),
    ] {
        let long = chain(40, link, json!({"type": "object"}));
        assert_eq!(
            refused(&long),
            [("/$ref".into(), "too_long".into())],
            "{name}"
        );
        let short = chain(2, link, json!({"type": "object"}));
        assert!(cost(&short).check.value < 400, "{name}: {:?}", cost(&short));
    }
    // Without a second look at the same value, length alone is cheap.
    assert!(cost(&chain(20, below, json!({}))).check.value < 1_000);
    let plain = |next: Value| json!({"anyOf": [next], "properties": {"a": {"type": "integer"}}});
    assert!(cost(&chain(40, plain, json!({}))).check.value < 500);
}

#[test]
fn the_place_that_is_too_much_is_named() {
    let many: Vec<Value> = (0..3_000).map(|n| json!({"const": n})).collect();
    let schema = json!({"properties": {"a/b": {"items": {"anyOf": many}}}});
    assert_eq!(
        refused(&schema),
        [("/properties/a~1b/items".into(), "too_long".into())]
    );
    let names: Vec<String> = (0..2_500).map(|n| format!("n{n}")).collect();
    let lists = json!({"a": names, "b": names});
    for keyword in ["dependentRequired", "dependencies"] {
        let schema = json!({"items": {keyword: lists}});
        let expected = [("/items".to_owned(), "too_long".to_owned())];
        assert_eq!(refused(&schema), expected, "{keyword}");
    }
    let marks: Vec<Value> = (0..200)
        .map(|n| json!({"anyOf": [{"required": ["a"]}, {"minProperties": n}], "unevaluatedProperties": false}))
        .collect();
    let schema = json!({"not": {"unevaluatedProperties": false, "allOf": marks}});
    assert_eq!(refused(&schema), [("/not".into(), "too_long".into())]);
}

#[test]
fn circles_hide_nowhere() {
    for (schema, at) in [
        (
            json!({"properties": {"a": {"$ref": "#"}}}),
            "/properties/a/$ref",
        ),
        // What stands in data is a schema when something refers to it.
        (
            json!({"$ref": "#/const", "const": {"items": {"$dynamicRef": "#"}}}),
            "/$ref",
        ),
        (
            json!({"$ref": "#/default", "default": {"$recursiveRef": "#"}}),
            "/$ref",
        ),
        (
            json!({"$ref": "#/x/y", "x": {"y": {"not": {"$ref": "#/x/y"}}}}),
            "/$ref",
        ),
        (
            json!({"$ref": "#/examples/0", "examples": [{"allOf": [{"$ref": "#/examples/0"}]}]}),
            "/$ref",
        ),
        // In another dialect, `#` leads elsewhere.
        (
            json!({"$defs": {"a": {"$schema": "http://json-schema.org/draft-04/schema#",
            "id": "http://example.com", "items": {"$ref": "#"}}}}),
            "/$defs/a/$schema",
        ),
        (
            json!({"$ref": "#/default", "default": {"$id": "https://example.com", "items": {"$ref": "#"}}}),
            "/$ref",
        ),
    ] {
        assert_eq!(
            refused(&schema),
            [(at.to_owned(), "not_allowed".to_owned())],
            "{schema}"
        );
    }
}

#[test]
fn patterns_are_refused_where_they_stand() {
    let many_states = "^[01]*1[01]{9000}$";
    for (schema, at, code) in [
        (
            json!({"items": {"pattern": many_states}}),
            "/items/pattern",
            "too_long",
        ),
        (
            json!({"patternProperties": {many_states: true}}),
            "/patternProperties/^[01]*1[01]{9000}$",
            "too_long",
        ),
        (
            json!({"properties": {"a": {"pattern": r"(a)\1"}}}),
            "/properties/a/pattern",
            "not_allowed",
        ),
        (
            json!({"patternProperties": {"(?=a)": true}}),
            "/patternProperties/(?=a)",
            "not_allowed",
        ),
        (
            json!({"$ref": "#/default", "default": {"pattern": "("}}),
            "/$ref",
            "not_allowed",
        ),
    ] {
        assert_eq!(
            refused(&schema),
            [(at.to_owned(), code.to_owned())],
            "{schema}"
        );
    }
    // Each is taken alone; together they are too much for a byte.
    let several: Vec<Value> = (0..4)
        .map(|n| json!({"pattern": format!("^[01]*1[01]{{{}}}$", 2_500 + n)}))
        .collect();
    assert_eq!(
        refused(&json!({"items": {"allOf": several}})),
        [("/items".into(), "too_long".into())]
    );
    cost(&several[0]);
}

#[test]
fn the_same_pattern_counts_wherever_it_is_matched() {
    let one = cost(&json!({"pattern": "^a"})).check.byte;
    let two = cost(&json!({"allOf": [{"pattern": "^a"}, {"pattern": "^a"}]}))
        .check
        .byte;
    assert_eq!(two, 2 * one);
    let names: Vec<Value> = (0..40).map(|_| json!({"pattern": "^a"})).collect();
    let schema = json!({"$ref": "#/default", "default": {"anyOf": names}});
    assert_eq!(cost(&schema).check.byte, 40);
}

#[test]
fn long_names_above_many_parts_take_memory() {
    let name = "n".repeat(20_000);
    let below: Map<String, Value> = (0..1_500)
        .map(|n| (format!("p{n}"), json!({"type": "string"})))
        .collect();
    let schema = json!({"properties": {name.clone(): {"properties": below}}});
    let found = refused(&schema);
    assert_eq!(found[0].1, "too_long");
    assert!(found[0].0.starts_with(&format!("/properties/{name}")));
}

#[test]
fn a_payload_costs_by_its_values_and_bytes() {
    let steps = Steps { value: 10, byte: 2 };
    assert_eq!(steps.of(5, 160), 10 * (5 + 10) + 320);
    let endless = Steps {
        value: u64::MAX,
        byte: u64::MAX,
    };
    assert_eq!(endless.of(2, 2), u64::MAX);
}

/// Counts how often the library comes past.
struct Probe(Arc<AtomicU64>);

impl<'i> Keyword<'i> for Probe {
    fn validate(&self, instance: &'i Value) -> Result<(), ValidationError<'i>> {
        assert!(self.is_valid(instance));
        Ok(())
    }

    fn is_valid(&self, _: &'i Value) -> bool {
        self.0.fetch_add(1, Ordering::Relaxed);
        true
    }
}

/// A schema that has the probe in every part, and refers to definitions from `from` on.
fn probed(from: usize, depth: u32) -> BoxedStrategy<Value> {
    let leaf = prop_oneof![
        Just(json!({"probe": 1})),
        Just(json!({"probe": 1, "type": "object"})),
        Just(json!({"probe": 1, "required": ["a"]})),
    ];
    let referred = (from..4).prop_map(|to| json!({"probe": 1, "$ref": format!("#/$defs/d{to}")}));
    if depth == 0 {
        return if from < 4 {
            prop_oneof![leaf, referred].boxed()
        } else {
            leaf.boxed()
        };
    }
    let below = move || probed(from, depth - 1);
    let several = prop::collection::vec(below(), 1..3);
    let word = prop_oneof![
        Just("if"),
        Just("then"),
        Just("else"),
        Just("not"),
        Just("contains"),
        Just("items"),
        Just("additionalProperties"),
        Just("unevaluatedProperties"),
        Just("unevaluatedItems"),
    ];
    let list = prop_oneof![
        Just("allOf"),
        Just("anyOf"),
        Just("oneOf"),
        Just("prefixItems")
    ];
    let named = prop_oneof![Just("properties"), Just("dependentSchemas")];
    let keyword = prop_oneof![
        (word, below()).prop_map(|(word, schema)| (word, schema)),
        (list, several).prop_map(|(list, schemas)| (list, json!(schemas))),
        (named, below(), below()).prop_map(|(named, a, b)| (named, json!({"a": a, "b": b}))),
    ];
    prop::collection::vec(keyword, 1..4)
        .prop_map(|keywords| {
            let mut schema = json!({"probe": 1});
            for (keyword, value) in keywords {
                schema[keyword] = value;
            }
            schema
        })
        .boxed()
}

fn payload() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![Just(json!(1)), Just(json!({"a": 1})), Just(json!([1, 2]))];
    leaf.prop_recursive(3, 20, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[abc]", inner, 0..4)
                .prop_map(|members| members.into_iter().collect()),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_check_takes_more_steps_than_were_counted(
        root in probed(0, 2),
        defs in (probed(1, 2), probed(2, 2), probed(3, 1), probed(4, 1)),
        payload in payload(),
    ) {
        let mut schema = root;
        schema["$defs"] = json!({"d0": defs.0, "d1": defs.1, "d2": defs.2, "d3": defs.3});
        let Ok(cost) = cost_of(&schema, REGISTERED) else {
            return Ok(());
        };
        let steps = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&steps);
        let validator = jsonschema::options()
            .with_keyword("probe", move |_, _, _| Ok(Box::new(Probe(Arc::clone(&counter)))))
            .build(&schema)
            .unwrap();
        let (values, bytes) = (kept_values(&payload), payload.to_string().len() as u64);
        let _ = validator.is_valid(&payload);
        let checked = steps.swap(0, Ordering::Relaxed);
        prop_assert!(checked <= cost.check.of(values, bytes), "{checked} {cost:?}");
        drop(validator.iter_errors(&payload).collect::<Vec<_>>());
        let explained = steps.load(Ordering::Relaxed);
        let most = cost.explain.of(values, bytes);
        prop_assert!(explained <= most, "{explained} {cost:?}");
    }
}

//! Schemas: from OpenAPI 3.0's dialect to JSON Schema 2020-12, which OpenAPI 3.1 speaks.

use std::collections::{BTreeMap, HashSet};

use serde_json::{Map, Value, json};

const REFERENCE: &str = "#/components/schemas/";

/// How many references are followed in a row.
const REFERENCES_MAX: usize = 8;

/// The schema that a reference means; the schema itself when it is none.
pub(super) fn resolve<'a>(schema: &'a Value, document: &'a Value) -> &'a Value {
    let mut schema = schema;
    for _ in 0..REFERENCES_MAX {
        let Some(name) = reference(schema) else { break };
        schema = &document["components"]["schemas"][name];
    }
    schema
}

/// The name that a reference refers to.
pub(super) fn reference(schema: &Value) -> Option<&str> {
    schema.get("$ref")?.as_str()?.strip_prefix(REFERENCE)
}

/// A reference to the schema called `name`.
pub(super) fn refer(name: &str) -> Value {
    json!({"$ref": format!("{REFERENCE}{name}")})
}

/// The same value with the members of every object in alphabetical order.
pub(super) fn sorted(value: Value) -> Value {
    match value {
        Value::Object(members) => {
            let ordered: BTreeMap<String, Value> = members
                .into_iter()
                .map(|(name, member)| (name, sorted(member)))
                .collect();
            Value::Object(Map::from_iter(ordered))
        }
        Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect()),
        other => other,
    }
}

/// Rewrites a schema and everything in it.
pub(super) fn modernise(schema: &mut Value) {
    let Some(members) = schema.as_object_mut() else {
        return;
    };
    unfold_patched_reference(members);
    each_child(members, &mut modernise);
    whole_bounds(members);
    exclusive_bounds(members);
    implied_bounds(members);
    if let Some(example) = members.remove("example") {
        members.insert("examples".to_owned(), json!([example]));
    }
    if members.remove("nullable") == Some(Value::Bool(true)) {
        allow_null(members);
    }
}

/// Calls `visit` for every schema directly within one.
pub(super) fn each_child(members: &mut Map<String, Value>, visit: &mut dyn FnMut(&mut Value)) {
    for (keyword, member) in members {
        match (keyword.as_str(), member) {
            ("items" | "additionalProperties" | "not" | "propertyNames", schema) => visit(schema),
            ("properties", Value::Object(properties)) => {
                properties.values_mut().for_each(&mut *visit);
            }
            ("allOf" | "anyOf" | "oneOf", Value::Array(schemas)) => {
                schemas.iter_mut().for_each(&mut *visit);
            }
            _ => {}
        }
    }
}

/// In 3.0 nothing may stand beside a reference, so poem-openapi writes
/// `{"allOf": [{"$ref"}, patch], …patch}`; in 3.1 it may: `{"$ref", …patch}`.
fn unfold_patched_reference(members: &mut Map<String, Value>) {
    let Some([target, patch]) = members
        .get("allOf")
        .and_then(Value::as_array)
        .map(Vec::as_slice)
    else {
        return;
    };
    let (Some(_), Some(patch)) = (reference(target), patch.as_object()) else {
        return;
    };
    let repeated = patch
        .iter()
        .all(|(name, value)| members.get(name) == Some(value));
    if repeated {
        let target = target["$ref"].clone();
        members.remove("allOf");
        members.insert("$ref".to_owned(), target);
    }
}

/// poem-openapi writes bounds as floats.
fn whole_bounds(members: &mut Map<String, Value>) {
    for keyword in ["minimum", "maximum", "multipleOf"] {
        if let Some(bound) = members.get_mut(keyword)
            && let Some(float) = bound.as_f64()
            && float.fract() == 0.0
            && float.abs() < 9.0e15
        {
            #[expect(
                clippy::cast_possible_truncation,
                reason = "checked to be whole and small"
            )]
            let whole = float as i64;
            *bound = json!(whole);
        }
    }
}

/// `exclusiveMinimum: true` becomes a bound of its own.
fn exclusive_bounds(members: &mut Map<String, Value>) {
    for (flag, bound) in [
        ("exclusiveMinimum", "minimum"),
        ("exclusiveMaximum", "maximum"),
    ] {
        match members.get(flag) {
            Some(Value::Bool(true)) => {
                if let Some(limit) = members.remove(bound) {
                    members.insert(flag.to_owned(), limit);
                }
            }
            Some(Value::Bool(false)) => {
                members.remove(flag);
            }
            _ => {}
        }
    }
}

/// The bounds that an integer's width implies, where no narrower ones are given.
fn implied_bounds(members: &mut Map<String, Value>) {
    let (low, high) = match members.get("format").and_then(Value::as_str) {
        Some("int8") => (json!(i8::MIN), json!(i8::MAX)),
        Some("int16") => (json!(i16::MIN), json!(i16::MAX)),
        Some("int32") => (json!(i32::MIN), json!(i32::MAX)),
        Some("uint8") => (json!(0), json!(u8::MAX)),
        Some("uint16") => (json!(0), json!(u16::MAX)),
        Some("uint32") => (json!(0), json!(u32::MAX)),
        Some("uint64") => (json!(0), Value::Null),
        _ => return,
    };
    if !members.contains_key("exclusiveMinimum") {
        members.entry("minimum").or_insert(low);
    }
    if !high.is_null() && !members.contains_key("exclusiveMaximum") {
        members.entry("maximum").or_insert(high);
    }
}

fn allow_null(members: &mut Map<String, Value>) {
    if let Some(target) = members.remove("$ref") {
        members.insert(
            "anyOf".to_owned(),
            json!([{"$ref": target}, {"type": "null"}]),
        );
        return;
    }
    if let Some(Value::Array(words)) = members.get_mut("enum")
        && !words.contains(&Value::Null)
    {
        words.push(Value::Null);
    }
    if let Some(name) = members.get("type").filter(|name| name.is_string()).cloned() {
        members.insert("type".to_owned(), json!([name, "null"]));
        return;
    }
    for keyword in ["anyOf", "oneOf"] {
        if let Some(Value::Array(branches)) = members.get_mut(keyword) {
            branches.push(json!({"type": "null"}));
        }
    }
}

/// Makes one object of each composition of plain objects, as poem-openapi writes the branches of a
/// union: a composition can be closed too, but then says less about what is wrong with a value.
pub(super) fn flatten(document: &mut Value) {
    let before = document.clone();
    let schemas = document["components"]["schemas"]
        .as_object_mut()
        .into_iter()
        .flatten();
    for (_, schema) in schemas {
        flatten_one(schema, &before);
    }
}

fn flatten_one(schema: &mut Value, document: &Value) {
    let Some(members) = schema.as_object_mut() else {
        return;
    };
    each_child(members, &mut |child| flatten_one(child, document));
    let Some(parts) = members.get("allOf").and_then(Value::as_array) else {
        return;
    };
    let parts: Vec<&Value> = parts.iter().map(|part| resolve(part, document)).collect();
    let plain = |part: &&Value| {
        let known = [
            "type",
            "title",
            "description",
            "required",
            "properties",
            "examples",
        ];
        part["type"] == "object"
            && part
                .as_object()
                .is_some_and(|m| m.keys().all(|k| known.contains(&k.as_str())))
    };
    if !parts.iter().all(plain) {
        return;
    }
    let (mut required, mut properties) = (Vec::new(), Map::new());
    for part in parts {
        required.extend(part["required"].as_array().into_iter().flatten().cloned());
        properties.extend(part["properties"].as_object().cloned().unwrap_or_default());
    }
    members.remove("allOf");
    members.insert("type".to_owned(), json!("object"));
    members.insert("required".to_owned(), Value::Array(required));
    members.insert("properties".to_owned(), Value::Object(properties));
}

/// Drops the schemas that nothing refers to any more.
pub(super) fn prune(document: &mut Value) {
    let mut pending = vec![
        document["paths"].clone(),
        document["components"]["headers"].clone(),
    ];
    let mut used = HashSet::new();
    while let Some(value) = pending.pop() {
        for name in references_in(&value) {
            if used.insert(name.clone()) {
                pending.push(document["components"]["schemas"][&name].clone());
            }
        }
    }
    if let Some(schemas) = document["components"]["schemas"].as_object_mut() {
        schemas.retain(|name, _| used.contains(name));
    }
}

pub(super) fn references_in(value: &Value) -> Vec<String> {
    match value {
        // A discriminator's mapping refers too, but only to what a branch refers to.
        Value::Object(members) => {
            let own = reference(value).map(str::to_owned);
            own.into_iter()
                .chain(members.values().flat_map(references_in))
                .collect()
        }
        Value::Array(items) => items.iter().flat_map(references_in).collect(),
        _ => Vec::new(),
    }
}

/// Refuses unknown members in every object that a request body can hold, as the server does.
pub(super) fn close_requests(document: &mut Value) {
    let mut pending = Vec::new();
    for operation in operations_mut(document) {
        for media in operation
            .get_mut("requestBody")
            .into_iter()
            .flat_map(contents_mut)
        {
            close(&mut media["schema"], false, &mut pending);
        }
    }
    let mut seen = HashSet::new();
    while let Some((name, composed)) = pending.pop() {
        if seen.insert(name.clone()) {
            close(
                &mut document["components"]["schemas"][&name],
                composed,
                &mut pending,
            );
        }
    }
}

/// `composed`: the schema is a part of an `allOf`, whose whole is closed instead.
fn close(schema: &mut Value, composed: bool, pending: &mut Vec<(String, bool)>) {
    if let Some(name) = reference(schema) {
        pending.push((name.to_owned(), composed));
    }
    let Some(members) = schema.as_object_mut() else {
        return;
    };
    let whole = members.contains_key("allOf");
    for keyword in ["allOf", "anyOf", "oneOf"] {
        if let Some(Value::Array(parts)) = members.get_mut(keyword) {
            for part in parts {
                close(part, composed || keyword == "allOf", pending);
            }
        }
    }
    if whole && !composed {
        members.insert("unevaluatedProperties".to_owned(), Value::Bool(false));
    } else if is_object(members) && !is_choice(members) && !composed {
        members
            .entry("additionalProperties")
            .or_insert(Value::Bool(false));
    }
    if let Some(Value::Object(properties)) = members.get_mut("properties") {
        properties
            .values_mut()
            .for_each(|property| close(property, false, pending));
    }
    for keyword in ["items", "additionalProperties"] {
        if let Some(inner) = members.get_mut(keyword) {
            close(inner, false, pending);
        }
    }
}

/// Whether the members are those of one of several branches, which are closed themselves.
fn is_choice(members: &Map<String, Value>) -> bool {
    members.contains_key("anyOf") || members.contains_key("oneOf")
}

fn is_object(members: &Map<String, Value>) -> bool {
    match members.get("type") {
        Some(Value::String(name)) => name == "object",
        Some(Value::Array(names)) => names.iter().any(|name| name == "object"),
        _ => false,
    }
}

/// Every operation of a document.
pub(super) fn operations_mut(document: &mut Value) -> impl Iterator<Item = &mut Value> {
    methods_mut(document).map(|(_, operation)| operation)
}

/// The same, each with its method.
pub(super) fn methods_mut(document: &mut Value) -> impl Iterator<Item = (&str, &mut Value)> {
    let paths = document["paths"]
        .as_object_mut()
        .into_iter()
        .flat_map(Map::values_mut);
    paths
        .filter_map(Value::as_object_mut)
        .flatten()
        .filter(|(_, operation)| operation.is_object())
        .map(|(method, operation)| (method.as_str(), operation))
}

/// Every operation with its path and method, sorted by both.
pub(super) fn operations(document: &Value) -> Vec<(&str, &str, &Value)> {
    let mut all = Vec::new();
    for (path, item) in document["paths"].as_object().into_iter().flatten() {
        for (method, operation) in item.as_object().into_iter().flatten() {
            all.push((path.as_str(), method.as_str(), operation));
        }
    }
    all.sort_by_key(|(path, method, _)| (*path, *method));
    all
}

/// The media of a body or an answer, if there are any.
pub(super) fn contents_mut(of: &mut Value) -> impl Iterator<Item = &mut Value> {
    of.get_mut("content")
        .and_then(Value::as_object_mut)
        .into_iter()
        .flat_map(Map::values_mut)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modern(mut schema: Value) -> Value {
        modernise(&mut schema);
        schema
    }

    #[test]
    fn null_becomes_a_type() {
        assert_eq!(
            modern(json!({"type": "string", "nullable": true})),
            json!({"type": ["string", "null"]})
        );
        assert_eq!(
            modern(json!({"type": "string", "nullable": true, "enum": ["a"]})),
            json!({"type": ["string", "null"], "enum": ["a", null]})
        );
        assert_eq!(
            modern(json!({"nullable": true})),
            json!({}),
            "anything includes null"
        );
    }

    #[test]
    fn a_patched_reference_is_unfolded() {
        let patch = json!({"description": "d", "nullable": true});
        let mut folded = patch.clone();
        folded["allOf"] = json!([{"$ref": "#/components/schemas/X"}, patch]);
        assert_eq!(
            modern(folded),
            json!({"anyOf": [{"$ref": "#/components/schemas/X"}, {"type": "null"}], "description": "d"})
        );
        let composition =
            json!({"allOf": [{"$ref": "#/components/schemas/X"}, {"type": "object"}]});
        assert_eq!(
            modern(composition.clone()),
            composition,
            "a real composition stays"
        );
    }

    #[test]
    fn bounds_are_whole_exclusive_and_implied() {
        assert_eq!(
            modern(json!({"type": "integer", "format": "uint32", "maximum": 200.0})),
            json!({"type": "integer", "format": "uint32", "minimum": 0, "maximum": 200})
        );
        assert_eq!(
            modern(json!({"type": "number", "minimum": 0.5, "exclusiveMinimum": true})),
            json!({"type": "number", "exclusiveMinimum": 0.5})
        );
    }

    #[test]
    fn objects_of_requests_are_closed_and_others_are_not() {
        let object = json!({"type": "object", "properties": {"a": {"type": "string"}}});
        let body = |name: &str| json!({"content": {"application/json": {"schema": refer(name)}}});
        let mut document = json!({
            "paths": {"/a": {"post": {"requestBody": body("In"), "responses": {"200": body("Out")}}}},
            "components": {"schemas": {
                "In": {"type": "object", "properties": {"list": {"type": "array", "items": refer("Inner")}}},
                "Inner": object, "Out": object,
                "Map": {"type": "object", "additionalProperties": {"type": "string"}},
            }},
        });
        close_requests(&mut document);
        let schemas = &document["components"]["schemas"];
        assert_eq!(schemas["In"]["additionalProperties"], json!(false));
        assert_eq!(schemas["Inner"]["additionalProperties"], json!(false));
        assert_eq!(schemas["Out"].get("additionalProperties"), None);
    }

    #[test]
    fn a_composition_of_plain_objects_becomes_one() {
        let mut document = json!({"components": {"schemas": {
            "A": {"type": "object", "required": ["a"], "properties": {"a": {"type": "null"}}},
            "B": {"allOf": [{"type": "object", "required": ["b"], "properties": {"b": {}}}, refer("A")]},
        }}});
        flatten(&mut document);
        assert_eq!(
            document["components"]["schemas"]["B"],
            json!({"type": "object", "required": ["b", "a"],
                "properties": {"b": {}, "a": {"type": "null"}}})
        );
    }

    #[test]
    fn a_composition_is_closed_as_a_whole() {
        let mut pending = Vec::new();
        let mut schema = json!({"allOf": [{"type": "object", "properties": {}}, refer("X")]});
        close(&mut schema, false, &mut pending);
        assert_eq!(schema["unevaluatedProperties"], json!(false));
        assert_eq!(schema["allOf"][0].get("additionalProperties"), None);
        assert_eq!(pending, [("X".to_owned(), true)]);
    }
}

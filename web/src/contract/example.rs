//! Examples: the ones that types carry, put together for the bodies that are made of them.

use serde_json::{Map, Value, json};

use super::schema::resolve;

/// Deepest schema that an example is put together for.
const DEPTH_MAX: usize = 12;

/// An example of a schema: its own, or one made of its parts' where those leave no choice.
/// `None` when a part has neither: then somebody must write one.
pub(super) fn of(schema: &Value, document: &Value) -> Option<Value> {
    derive(schema, document, DEPTH_MAX)
}

fn derive(schema: &Value, document: &Value, depth: usize) -> Option<Value> {
    let depth = depth.checked_sub(1)?;
    if let Some(example) = schema["examples"].get(0).or_else(|| schema.get("example")) {
        return Some(example.clone());
    }
    if schema.get("$ref").is_some() {
        return derive(resolve(schema, document), document, depth);
    }
    if let Some(value) = schema.get("const").or_else(|| schema["enum"].get(0)) {
        return Some(value.clone());
    }
    if let Some(branches) = schema["anyOf"]
        .as_array()
        .or_else(|| schema["oneOf"].as_array())
    {
        return branches
            .iter()
            .find_map(|branch| derive(branch, document, depth));
    }
    if let Some(parts) = schema["allOf"].as_array() {
        return merged(parts, document, depth);
    }
    match first_type(schema)? {
        "object" => object(schema, document, depth),
        "array" => derive(&schema["items"], document, depth).map(|item| json!([item])),
        "string" => match schema["format"].as_str().unwrap_or_default() {
            "date-time" => Some(json!("2026-01-31T12:00:00.000Z")),
            "uuid" => Some(json!("01890a5d-ac96-774b-bcce-b302099a8057")),
            _ => None,
        },
        "boolean" => Some(schema.get("default").cloned().unwrap_or(Value::Bool(false))),
        "integer" => schema
            .get("default")
            .or_else(|| schema.get("minimum"))
            .cloned(),
        _ => schema.get("default").cloned(),
    }
    .or_else(|| is_nullable(schema).then_some(Value::Null))
}

fn first_type(schema: &Value) -> Option<&str> {
    schema["type"]
        .as_str()
        .or_else(|| schema["type"].get(0)?.as_str())
}

fn is_nullable(schema: &Value) -> bool {
    schema["type"]
        .as_array()
        .is_some_and(|names| names.iter().any(|name| name == "null"))
}

fn merged(parts: &[Value], document: &Value, depth: usize) -> Option<Value> {
    let mut whole = Map::new();
    for part in parts {
        let Value::Object(members) = derive(part, document, depth)? else {
            return None;
        };
        whole.extend(members);
    }
    Some(Value::Object(whole))
}

/// Every required member, and of the others those that an example can be found for.
fn object(schema: &Value, document: &Value, depth: usize) -> Option<Value> {
    let required = |name: &str| {
        schema["required"]
            .as_array()
            .is_some_and(|names| names.iter().any(|n| n == name))
    };
    let mut members = Map::new();
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        match derive(property, document, depth) {
            Some(value) => {
                members.insert(name.clone(), value);
            }
            None if required(name) => return None,
            None => {}
        }
    }
    Some(Value::Object(members))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_put_together() {
        let document = json!({"components": {"schemas": {
            "Item": {"type": "object", "examples": [{"id": "x"}]},
        }}});
        let page = json!({"type": "object", "required": ["items"], "properties": {
            "items": {"type": "array", "items": {"$ref": "#/components/schemas/Item"}},
            "next_cursor": {"type": ["string", "null"]},
            "at": {"type": "string", "format": "date-time"},
            "free": {"type": "string"},
        }});
        assert_eq!(
            of(&page, &document).unwrap(),
            json!({"items": [{"id": "x"}], "next_cursor": null, "at": "2026-01-31T12:00:00.000Z"})
        );
    }

    #[test]
    fn a_free_text_must_be_exemplified_by_somebody() {
        let schema = json!({"type": "object", "required": ["name"],
            "properties": {"name": {"type": "string"}}});
        assert_eq!(of(&schema, &json!({})), None);
    }
}

//! Parameters that describe themselves, by the schema that their type has in the draft.

use serde_json::{Value, json};

/// Writes each parameter as the document has it. The title of a schema is the parameter's name, and
/// its description the parameter's unless the operation has one of its own. A composition of schemas
/// with titles is one parameter for each of them.
pub(super) fn spell_out(operation: &mut Value) {
    let Some(parameters) = operation
        .get_mut("parameters")
        .and_then(Value::as_array_mut)
    else {
        return;
    };
    let drafts = std::mem::take(parameters).into_iter();
    *parameters = drafts.flat_map(members).map(described).collect();
}

fn members(parameter: Value) -> Vec<Value> {
    let parts = parameter["schema"]["allOf"].as_array();
    let Some(parts) = parts.filter(|parts| parts.iter().all(|part| part["title"].is_string()))
    else {
        return vec![parameter];
    };
    let member =
        |schema: &Value| json!({"in": parameter["in"], "required": false, "schema": schema});
    parts.iter().map(member).collect()
}

fn described(mut parameter: Value) -> Value {
    let Some(schema) = parameter["schema"].as_object_mut() else {
        return parameter;
    };
    let (name, description) = (schema.remove("title"), schema.remove("description"));
    if let Some(name) = name {
        parameter["name"] = name;
    }
    if let Some(description) = description
        && parameter.get("description").is_none()
    {
        parameter["description"] = description;
    }
    parameter
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schema_names_and_describes_its_parameter() {
        let page = json!({"allOf": [
            {"title": "limit", "type": "integer", "description": "Page size."},
            {"title": "cursor", "type": "string"},
        ]});
        let mut operation = json!({"parameters": [
            {"name": "key", "in": "header", "required": false,
                "schema": {"type": "string", "title": "Key", "description": "Usual."}},
            {"name": "id", "in": "path", "required": true, "description": "Own.",
                "schema": {"type": "string", "description": "Usual."}},
            {"name": "page", "in": "query", "required": false, "schema": page},
        ]});
        spell_out(&mut operation);
        let expected = json!([
            {"name": "Key", "in": "header", "required": false, "description": "Usual.",
                "schema": {"type": "string"}},
            {"name": "id", "in": "path", "required": true, "description": "Own.",
                "schema": {"type": "string"}},
            {"name": "limit", "in": "query", "required": false, "description": "Page size.",
                "schema": {"type": "integer"}},
            {"name": "cursor", "in": "query", "required": false, "schema": {"type": "string"}},
        ]);
        assert_eq!(operation["parameters"], expected);
    }
}

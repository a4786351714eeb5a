//! Which problems an operation can answer, and how the document says so.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use domain::{Code, FaultCode, FieldError, Problem};

use crate::http::error::{self, PROBLEM_JSON};

use super::schema::refer;

/// The codes of one operation: its own and those that its parameters and its body imply.
pub(super) fn codes(operation: &Value, own: &[Code]) -> BTreeSet<Code> {
    let parameters = operation["parameters"]
        .as_array()
        .map_or(&[][..], Vec::as_slice);
    let has = |place: &str| parameters.iter().any(|parameter| parameter["in"] == place);
    let mut codes: BTreeSet<Code> = own.iter().copied().collect();
    codes.extend([Code::Internal, Code::Overloaded]);
    if has("path") {
        codes.insert(Code::NotFound);
    }
    if has("query") || has("header") {
        codes.insert(Code::InvalidParameter);
    }
    if parameters
        .iter()
        .any(|p| p["in"] == "query" && p["name"] == "cursor")
    {
        codes.insert(Code::InvalidCursor);
    }
    let takes = |name: &str| parameters.iter().any(|p| p["name"] == name);
    if takes("If-Match") {
        codes.insert(Code::PreconditionFailed);
    }
    if takes("Idempotency-Key") {
        codes.insert(Code::IdempotencyKeyReused);
    }
    if let Some(body) = operation.get("requestBody") {
        codes.extend([
            Code::MalformedJson,
            Code::RequestTimeout,
            Code::BodyTooLarge,
        ]);
        // A body of any type is passed on, not judged.
        if body["content"].get("*/*").is_none() {
            codes.extend([Code::UnsupportedMediaType, Code::ValidationFailed]);
        }
    }
    codes
}

/// Adds the answers for `codes` to an operation. What the operation says itself about a status stays.
pub(super) fn document(operation: &mut Value, codes: &BTreeSet<Code>) {
    let mut by_status: BTreeMap<u16, Vec<Code>> = BTreeMap::new();
    for code in codes {
        by_status.entry(code.status()).or_default().push(*code);
    }
    for (status, codes) in by_status {
        let answer = answer(&codes);
        match operation["responses"].get_mut(status.to_string()) {
            Some(own) => {
                own["content"][PROBLEM_JSON] = answer["content"][PROBLEM_JSON].clone();
            }
            None => operation["responses"][status.to_string()] = answer,
        }
    }
}

fn answer(codes: &[Code]) -> Value {
    let lines: Vec<String> = codes
        .iter()
        .map(|code| format!("`{code}`: {}.", code.title()))
        .collect();
    let examples: Map<String, Value> = codes
        .iter()
        .map(|code| {
            (
                code.to_string(),
                json!({"summary": code.title(), "value": example(*code)}),
            )
        })
        .collect();
    json!({
        "description": lines.join("\n\n"),
        "content": {PROBLEM_JSON: {"schema": refer("Problem"), "examples": examples}},
    })
}

fn example(code: Code) -> Value {
    let mut problem = match code {
        Code::NotFound => Problem::not_found(),
        Code::ValidationFailed => Problem::invalid(vec![
            FieldError::new(
                "/name",
                FaultCode::TooLong,
                "`name` may have at most 120 characters.",
            ),
            FieldError::new(
                "/nmae",
                FaultCode::UnknownField,
                "`nmae` is not known here.",
            ),
        ]),
        Code::InvalidParameter => {
            Problem::parameter("/query/limit", "`limit` takes an integer from 1 to 200.")
        }
        Code::MalformedJson => Problem::new(code, "Line 2, column 7: expected `:`."),
        Code::BodyTooLarge => Problem::new(code, "At most 1048576 bytes are taken."),
        _ => code.into(),
    };
    if matches!(code.status(), 429 | 503) {
        problem = problem.retry_after(1);
    }
    serde_json::from_slice(&error::body(&problem, "req_01h455vb4pex5vsknk084sn02q"))
        .expect("a problem's body is JSON")
}

/// The schemas `Problem` and `Fault`.
pub(super) fn schemas() -> [(&'static str, Value); 2] {
    let codes: Vec<&str> = Code::ALL.iter().map(|code| code.as_str()).collect();
    let problem = json!({
        "title": "Problem",
        "description": "What went wrong (RFC 9457). Programs branch on `code`; people read `title` and `detail`.",
        "type": "object",
        "required": ["type", "title", "status", "code", "detail", "request_id"],
        "properties": {
            "type": {"type": "string", "format": "uri-reference",
                "description": "Where the code is explained."},
            "title": {"type": "string", "description": "A short summary, the same for every problem of the code."},
            "status": {"type": "integer", "minimum": 400, "maximum": 599,
                "description": "The HTTP status."},
            "code": {"type": "string", "enum": codes, "description": "The stable code."},
            "detail": {"type": "string", "description": "What happened this time."},
            "errors": {"type": "array", "items": refer("Fault"),
                "description": "Each fault of the request, where there are any to name."},
            "request_id": {"type": "string",
                "description": "The request's identifier, which the operator's log has too."},
        },
    });
    let fault_codes: Vec<&str> = FaultCode::ALL.iter().map(|code| code.as_str()).collect();
    let fault = json!({
        "title": "Fault",
        "description": "One fault of a request.",
        "type": "object",
        "required": ["pointer", "code", "detail"],
        "properties": {
            "pointer": {"type": "string", "description":
                "JSON pointer into the body (RFC 6901), or `/query/NAME`, `/header/NAME`."},
            "code": {"type": "string", "enum": fault_codes, "description": "The stable word."},
            "detail": {"type": "string", "description": "A sentence."},
        },
    });
    [("Problem", problem), ("Fault", fault)]
}

//! From poem-openapi's draft to the document that we publish.

use serde_json::{Map, Value, json};

use domain::Code;

use super::{
    example, parameters, problems,
    schema::{
        close_requests, contents_mut, flatten, methods_mut, modernise, operations_mut, prune,
        sorted,
    },
    security::{self, Access},
};

/// What only people know of an operation.
#[derive(Clone, Copy, Debug)]
pub struct OperationDoc {
    /// Which operation.
    pub operation_id: &'static str,
    /// The problems of its own, beside those that its shape implies (see [`complete`]).
    pub codes: &'static [Code],
}

/// Completes a draft of OpenAPI 3.0 into the published document of OpenAPI 3.1.
///
/// The draft names an operation's permission as its security scheme; the document has the kinds of
/// token that hold it, and the session of people who do. Every operation gets the problems that its
/// shape implies: 500 and 503 always; 401, 403 and 429 with a credential; 404 with a variable in the
/// path; 400 with parameters or a body; 408, 413, 415 and 422 with a body.
///
/// # Panics
/// When the draft is no JSON, or `operations` names one that the draft has not: both are mistakes
/// in this program, found by its first test.
#[must_use]
pub fn complete(draft: &str, operations: &[OperationDoc]) -> Value {
    let mut document: Value = serde_json::from_str(draft).expect("poem-openapi writes JSON");
    document["openapi"] = json!("3.1.0");
    document["servers"] = json!([{"url": "/"}]);
    operations_mut(&mut document).for_each(parameters::spell_out);
    for_each_schema(&mut document, modernise);
    flatten(&mut document);
    let mut schemes = Vec::new();
    let mut undocumented: Vec<&str> = operations.iter().map(|doc| doc.operation_id).collect();
    for (method, operation) in methods_mut(&mut document) {
        let changes = !matches!(method, "get" | "head");
        plain_media_types(operation);
        drop_noise(operation);
        let access = security::spell_out(operation, changes, &mut schemes);
        let own = operations
            .iter()
            .find(|doc| operation["operationId"] == doc.operation_id);
        let mut codes = problems::codes(operation, own.map_or(&[], |doc| doc.codes));
        codes.extend(access.codes(changes));
        problems::document(operation, &codes);
        document_headers(operation, access);
        undocumented.retain(|id| operation["operationId"] != *id);
    }
    assert!(
        undocumented.is_empty(),
        "no such operations: {undocumented:?}"
    );
    for (name, schema) in problems::schemas() {
        document["components"]["schemas"][name] = schema;
    }
    document["components"]["headers"] = headers();
    document["components"]["securitySchemes"] = security::schemes(schemes);
    prune(&mut document);
    close_requests(&mut document);
    exemplify(&mut document);
    sorted(document)
}

fn for_each_schema(document: &mut Value, rewrite: fn(&mut Value)) {
    if let Some(schemas) = document["components"]["schemas"].as_object_mut() {
        schemas.values_mut().for_each(rewrite);
    }
    for operation in operations_mut(document) {
        let parameters = operation
            .get_mut("parameters")
            .and_then(Value::as_array_mut);
        for parameter in parameters.into_iter().flatten() {
            rewrite(&mut parameter["schema"]);
        }
        if let Some(body) = operation.get_mut("requestBody") {
            contents_mut(body).for_each(|media| rewrite(&mut media["schema"]));
        }
        for answer in members_mut(&mut operation["responses"]) {
            contents_mut(answer).for_each(|media| rewrite(&mut media["schema"]));
            let headers = answer.get_mut("headers").and_then(Value::as_object_mut);
            for header in headers.into_iter().flat_map(Map::values_mut) {
                rewrite(&mut header["schema"]);
            }
        }
    }
}

fn members_mut(value: &mut Value) -> impl Iterator<Item = &mut Value> {
    value.as_object_mut().into_iter().flat_map(Map::values_mut)
}

/// `application/json; charset=utf-8` → `application/json`: JSON has no charset (RFC 8259 §11).
fn plain_media_types(operation: &mut Value) {
    let rename = |of: &mut Value| {
        if let Some(content) = of.get_mut("content").and_then(Value::as_object_mut) {
            let plain = |name: String| name.split(';').next().unwrap_or_default().trim().to_owned();
            *content = std::mem::take(content)
                .into_iter()
                .map(|(k, v)| (plain(k), v))
                .collect();
        }
    };
    if let Some(body) = operation.get_mut("requestBody") {
        rename(body);
    }
    members_mut(&mut operation["responses"]).for_each(rename);
}

/// Members that only repeat the default.
fn drop_noise(operation: &mut Value) {
    let drop = |of: &mut Value| {
        if let Some(members) = of.as_object_mut() {
            members.retain(|name, value| match name.as_str() {
                "deprecated" => *value != json!(false),
                "explode" => *value != json!(true),
                _ => true,
            });
        }
    };
    if let Some(parameters) = operation
        .get_mut("parameters")
        .and_then(Value::as_array_mut)
    {
        parameters.iter_mut().for_each(drop);
    }
    for answer in members_mut(&mut operation["responses"]) {
        if answer["description"] == "" {
            answer["description"] = json!("OK.");
        }
        if let Some(headers) = answer.get_mut("headers") {
            members_mut(headers).for_each(drop);
        }
    }
}

/// The headers of answers, as components.
fn headers() -> Value {
    let text =
        |description: &str| json!({"description": description, "schema": {"type": "string"}});
    json!({
        "RequestId": text("The request's identifier: the caller's own `X-Request-Id` if it is 1 to 64 characters of `[A-Za-z0-9._-]`, else one of ours."),
        "RateLimit": text("What is left of the allowance, and the seconds until all of it is back: `\"publisher\";r=1999;t=1`. Absent where no limit applies."),
        "RateLimitPolicy": text("The allowance and its window in seconds: `\"publisher\";q=2000;w=2`. Absent where no limit applies."),
        "RetryAfter": {"description": "How long to wait, seconds.",
            "schema": {"type": "integer", "minimum": 1}},
        "WwwAuthenticate": text("`Bearer`."),
    })
}

fn document_headers(operation: &mut Value, access: Access) {
    let limited = access != Access::Public;
    let answers = operation["responses"].as_object_mut().into_iter().flatten();
    for (status, answer) in answers {
        let mut add = |name: &str, component: &str| {
            answer["headers"][name] = json!({"$ref": format!("#/components/headers/{component}")});
        };
        add("X-Request-Id", "RequestId");
        if limited && (status.starts_with('2') || status == "429") {
            add("RateLimit", "RateLimit");
            add("RateLimit-Policy", "RateLimitPolicy");
        }
        if status == "429" || status == "503" {
            add("Retry-After", "RetryAfter");
        }
        if status == "401" {
            add("WWW-Authenticate", "WwwAuthenticate");
        }
        spell_headers(&mut answer["headers"]);
    }
}

/// Headers of our own, as they are spelt, with what they mean.
const HEADERS: [(&str, &str); 13] = [
    ("ETag", "The thing's revision, for `If-Match`."),
    ("Location", "Where the new thing is."),
    (
        "Set-Cookie",
        "The cookies that the browser keeps, one header for each.",
    ),
    ("Link", "The next page, `rel=\"next\"` (RFC 8288)."),
    (
        "Idempotent-Replayed",
        "`true` when this is the stored answer to an earlier request with the same `Idempotency-Key`.",
    ),
    (
        "Authorization",
        "What goes upstream as `Authorization`; empty if the credential goes under another name.",
    ),
    (
        "X-Api-Key",
        "What goes upstream as `x-api-key`; empty if the credential goes under another name.",
    ),
    ("X-Stationmaster-Account", "The account, for the report."),
    (
        "X-Stationmaster-Provider",
        "Whose credential the account holds.",
    ),
    ("X-Stationmaster-Base-Url", "Where requests go."),
    (
        "X-Stationmaster-Credential-Header",
        "The name of the header that carries the credential, in lower case. The answer has it too.",
    ),
    (
        "X-Stationmaster-Credential",
        "The value of that header, for proxies that can't copy one whose name they don't know.",
    ),
    (
        "X-Envoy-Auth-Headers-To-Remove",
        "Those of `Authorization` and `x-api-key` that are empty, for Envoy.",
    ),
];

/// The draft has header names in capitals.
fn spell_headers(headers: &mut Value) {
    let Some(members) = headers.as_object_mut() else {
        return;
    };
    for (name, description) in HEADERS {
        let Some(own) = members
            .keys()
            .find(|own| own.eq_ignore_ascii_case(name))
            .cloned()
        else {
            continue;
        };
        if let Some(mut header) = members.remove(&own) {
            if header.get("description").is_none() {
                header["description"] = json!(description);
            }
            members.insert(name.to_owned(), header);
        }
    }
}

/// Puts an example beside each body that can have one.
fn exemplify(document: &mut Value) {
    let schemas = document.clone();
    for operation in operations_mut(document) {
        if let Some(body) = operation.get_mut("requestBody") {
            contents_mut(body).for_each(|media| add_example(media, &schemas));
        }
        for answer in members_mut(&mut operation["responses"]) {
            contents_mut(answer).for_each(|media| add_example(media, &schemas));
        }
    }
}

fn add_example(media: &mut Value, document: &Value) {
    if media.get("example").is_some() || media.get("examples").is_some() {
        return;
    }
    if let Some(example) = example::of(&media["schema"], document) {
        media["example"] = example;
    }
}

//! Wrong requests whose fault is not in what the body says: query, path, encoding, headers.

use serde_json::json;

use super::table::{Body, Case, Who, absent, get, invalid, refused};

pub fn queries() -> Vec<Case> {
    vec![
        get("a limit of none", "/v1/runs?limit=0", "/query/limit"),
        get("a limit too high", "/v1/runs?limit=201", "/query/limit"),
        get(
            "a limit in words",
            "/v1/pipelines?limit=all",
            "/query/limit",
        ),
        get(
            "a status that there is not",
            "/v1/runs?status=done",
            "/query/status",
        ),
        get(
            "a time that is none",
            "/v1/runs?since=yesterday",
            "/query/since",
        ),
        get(
            "a time before all times",
            "/v1/runs?since=1969-12-31T23:59:59Z",
            "/query/since",
        ),
        get(
            "a time before all times, in the log",
            "/v1/publishers/me/audit?until=1900-01-01T00:00:00Z",
            "/query/until",
        ),
        get(
            "an action that there is not",
            "/v1/publishers/me/audit?action=x",
            "/query/action",
        ),
        get(
            "a kind that there is not",
            "/v1/publishers/me/tokens?kind=root",
            "/query/kind",
        ),
        get(
            "a misspelt filter",
            "/v1/runs?stauts=failed",
            "/query/stauts",
        ),
        get(
            "a filter with a name in percent-encoding",
            "/v1/runs?stat%75s=queued&no%20such=1",
            "/query",
        ),
        get(
            "a parameter where there are none",
            "/v1/publishers/me?limit=1",
            "/query/limit",
        ),
        get("a value without a name", "/v1/events?=1", "/query"),
        get(
            "NUL in a filter",
            "/v1/runs?external_id=a%00b",
            "/query/external_id",
        ),
        refused(
            "a made-up cursor",
            "GET",
            "/v1/events?cursor=abc",
            Body::None,
            (400, "invalid_cursor", "-"),
        ),
    ]
}

pub fn paths() -> Vec<Case> {
    vec![
        absent("no such path", "GET", "/v1/nothing"),
        absent("no version", "GET", "/runs"),
        absent(
            "an upper-case identifier",
            "GET",
            "/v1/runs/RUN_01H455VB4PEX5VSKNK084SN02Q",
        ),
        absent("an identifier of another kind", "GET", "/v1/runs/{event}"),
        absent(
            "a bare UUID",
            "GET",
            "/v1/events/01890a5d-ac96-774b-bcce-b302099a8057",
        ),
        absent("a path upwards", "GET", "/v1/runs/..%2Fpublishers"),
        absent("NUL in a path", "GET", "/v1/runs/run%00"),
        absent(
            "no such delivery",
            "POST",
            "/v1/deliveries/dlv_01h455vb4pex5vsknk084sn02q/retry",
        ),
        refused(
            "no such method",
            "PUT",
            "/v1/runs/{run}",
            Body::Json(json!({})),
            (405, "method_not_allowed", "-"),
        ),
        refused(
            "no such method on a list",
            "DELETE",
            "/v1/events",
            Body::None,
            (405, "method_not_allowed", "-"),
        ),
    ]
}

const NEW_RUN: &str = "/v1/pipelines/nightly/runs";

pub fn bodies() -> Vec<Case> {
    let parts = [no_json(), other_types(), odd_values()];
    parts.into_iter().flatten().collect()
}

fn no_json() -> Vec<Case> {
    let malformed = |what, text: &str| {
        let body = Body::Text("application/json", text.to_owned());
        refused(what, "POST", NEW_RUN, body, (400, "malformed_json", "-")).by(Who::Runner)
    };
    let deep = format!("{{\"input\": {}{}}}", "[".repeat(40), "]".repeat(40));
    let large = format!("{{\"input\": \"{}\"}}", "x".repeat(1024 * 1024));
    vec![
        malformed("nothing", ""),
        malformed("half an object", "{\"input\": {"),
        malformed("two values", "{\"input\": {}} {}"),
        malformed("a comment", "{\"input\": {} /* no */}"),
        malformed("a comma too many", "{\"input\": {},}"),
        malformed("a number that is none", "{\"input\": NaN}"),
        malformed("a member twice", "{\"input\": 1, \"input\": 2}"),
        malformed(
            "a member twice, deep inside",
            "{\"input\": {\"a\": {\"b\": 1, \"b\": 2}}}",
        ),
        malformed("a lone surrogate", "{\"input\": \"\\ud800\"}"),
        malformed("40 levels", &deep),
        malformed("a number too large", "{\"input\": 1e999}"),
        malformed("a number without end", "{\"input\": Infinity}"),
        malformed("a number with a zero before it", "{\"input\": 01}"),
        malformed("half of another surrogate", "{\"input\": \"\\udc00\"}"),
        malformed("a bare line break in a string", "{\"input\": \"a\nb\"}"),
        malformed("a byte order mark", "\u{feff}{\"input\": {}}"),
        refused(
            "bytes that are no UTF-8",
            "POST",
            NEW_RUN,
            Body::Bytes(b"{\"input\": \"\xff\xfe\"}".to_vec()),
            (400, "malformed_json", "-"),
        )
        .by(Who::Runner),
        refused(
            "more than a mebibyte",
            "POST",
            NEW_RUN,
            Body::Text("application/json", large),
            (413, "body_too_large", "-"),
        )
        .by(Who::Runner),
    ]
}

fn other_types() -> Vec<Case> {
    let other_type = |what, content_type| {
        let body = Body::Text(content_type, "{\"input\": {}}".to_owned());
        refused(
            what,
            "POST",
            NEW_RUN,
            body,
            (415, "unsupported_media_type", "-"),
        )
        .by(Who::Runner)
    };
    vec![
        other_type("a form", "application/x-www-form-urlencoded"),
        other_type("plain text", "text/plain"),
        other_type("XML", "application/xml"),
        other_type(
            "JSON in another encoding",
            "application/json; charset=utf-16",
        ),
        other_type("JSON with a parameter", "application/json; version=1"),
        other_type("no type", ""),
        refused(
            "a packed body",
            "POST",
            NEW_RUN,
            Body::Text("application/json", "{\"input\": {}}".to_owned()),
            (415, "unsupported_media_type", "-"),
        )
        .by(Who::Runner)
        .header("content-encoding", "gzip"),
    ]
}

fn odd_values() -> Vec<Case> {
    vec![
        refused(
            "an integer of 21 digits",
            "POST",
            "/v1/runs/claim",
            Body::Text(
                "application/json",
                "{\"max\": 100000000000000000000}".into(),
            ),
            (422, "validation_failed", "/max"),
        )
        .by(Who::Runner),
        invalid(
            "a time before all times",
            "POST",
            "/v1/publishers/me/tokens/runner",
            json!({"expires_at": "1969-12-31T23:59:59Z"}),
            "/expires_at",
        ),
        invalid(
            "wrong items, as many as a body may have values",
            "POST",
            "/v1/webhook-endpoints",
            json!({"url": "https://example.com/", "event_types": vec![1; 19_000]}),
            "/event_types",
        ),
        invalid(
            "a quarter of a million items",
            "POST",
            "/v1/webhook-endpoints",
            json!({"url": "https://example.com/", "event_types": vec![1; 250_000]}),
            "",
        ),
    ]
}

pub fn headers() -> Vec<Case> {
    let run = |what, status: (u16, &'static str, &'static str)| {
        refused(
            what,
            "POST",
            NEW_RUN,
            Body::Json(json!({"input": {}})),
            status,
        )
        .by(Who::Runner)
    };
    let key = (400, "invalid_parameter", "/header/Idempotency-Key");
    let tag = (400, "invalid_parameter", "/header/If-Match");
    vec![
        run("an empty key", key).header("idempotency-key", ""),
        run("a key of 201 characters", key).header("idempotency-key", &"k".repeat(201)),
        run("a key with a space", key).header("idempotency-key", "a b"),
        run("a key that is not ASCII", key).header("idempotency-key", "schl\u{fc}ssel"),
        refused(
            "a tag without quotes",
            "DELETE",
            "/v1/webhook-endpoints/{endpoint}",
            Body::None,
            tag,
        )
        .header("if-match", "3"),
        refused(
            "two tags",
            "DELETE",
            "/v1/webhook-endpoints/{endpoint}",
            Body::None,
            tag,
        )
        .header("if-match", "\"1\", \"2\""),
        refused(
            "another revision",
            "DELETE",
            "/v1/webhook-endpoints/{endpoint}",
            Body::None,
            (412, "precondition_failed", "-"),
        )
        .header("if-match", "\"999\""),
        refused(
            "any revision of what is not there",
            "PUT",
            "/v1/pipelines/absent",
            Body::Json(json!({"display_name": "x"})),
            (412, "precondition_failed", "-"),
        )
        .header("if-match", "*"),
        refused(
            "a claim of another form",
            "POST",
            "/v1/runs/{run}/complete",
            Body::Json(json!({"output": {}})),
            (409, "claim_lost", "-"),
        )
        .by(Who::Runner)
        .header("x-stationmaster-claim", "mine"),
    ]
}

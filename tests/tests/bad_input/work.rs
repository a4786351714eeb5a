//! Wrong requests about pipelines, runs and endpoints.

use serde_json::{Value, json};

use super::table::{Body, Case, Who, invalid, refused};

pub fn pipelines() -> Vec<Case> {
    let put = |what, body: Value, pointer| {
        let mut whole = json!({"display_name": "x"});
        for (name, value) in body.as_object().unwrap() {
            whole[name] = value.clone();
        }
        invalid(what, "PUT", "/v1/pipelines/nightly", whole, pointer)
    };
    vec![
        invalid(
            "no name",
            "PUT",
            "/v1/pipelines/nightly",
            json!({}),
            "/display_name",
        ),
        put(
            "a lease of no time",
            json!({"lease_seconds": 0}),
            "/lease_seconds",
        ),
        put(
            "a lease without end",
            json!({"lease_seconds": 1e9}),
            "/lease_seconds",
        ),
        put("no attempt", json!({"max_attempts": 0}), "/max_attempts"),
        put(
            "a retention of no day",
            json!({"retention_days": 0}),
            "/retention_days",
        ),
        put(
            "a schema that is a string",
            json!({"input_schema": "any"}),
            "/input_schema",
        ),
        put(
            "a schema that is none",
            json!({"input_schema": {"type": 3}}),
            "/input_schema/type",
        ),
        put(
            "a schema that must be fetched",
            json!({"output_schema": {"$ref": "https://example.com/x"}}),
            "/output_schema/$ref",
        ),
        put(
            "a long description",
            json!({"description": "x".repeat(1001)}),
            "/description",
        ),
        put(
            "a subcommand without a URL",
            json!({"subcommands": {"a": {}}}),
            "/subcommands/a/url",
        ),
        put(
            "a subcommand with a wrong name",
            json!({"subcommands": {"A b": {"url": "https://example.com/"}}}),
            "/subcommands/A b",
        ),
        refused(
            "a subcommand at the metadata service",
            "PUT",
            "/v1/pipelines/nightly",
            Body::Json(
                json!({"display_name": "x", "subcommands": {"a": {"url": "http://169.254.169.254/"}}}),
            ),
            (422, "destination_refused", "/subcommands/a/url"),
        ),
        refused(
            "a new pipeline with a wrong slug",
            "PUT",
            "/v1/pipelines/Night",
            Body::Json(json!({"display_name": "x"})),
            (400, "invalid_parameter", "/path/slug"),
        ),
        refused(
            "a pipeline at work",
            "DELETE",
            "/v1/pipelines/nightly",
            Body::None,
            (409, "pipeline_in_use", "-"),
        ),
    ]
}

pub fn runs() -> Vec<Case> {
    let run = |what, body, pointer| {
        invalid(what, "POST", "/v1/pipelines/nightly/runs", body, pointer).by(Who::Runner)
    };
    let typed = |what, input: Value, pointer| {
        invalid(
            what,
            "POST",
            "/v1/pipelines/typed/runs",
            json!({"input": input}),
            pointer,
        )
        .by(Who::Runner)
    };
    let claim = |what, body, pointer| {
        invalid(what, "POST", "/v1/runs/claim", body, pointer).by(Who::Runner)
    };
    let end = |what, path, body, pointer| {
        invalid(what, "POST", path, body, pointer)
            .by(Who::Runner)
            .claim()
    };
    vec![
        run("no input", json!({}), "/input"),
        run(
            "a priority above its range",
            json!({"input": {}, "priority": 10}),
            "/priority",
        ),
        run(
            "a priority below its range",
            json!({"input": {}, "priority": -1}),
            "/priority",
        ),
        run(
            "an empty external id",
            json!({"input": {}, "external_id": ""}),
            "/external_id",
        ),
        run(
            "a long external id",
            json!({"input": {}, "external_id": "x".repeat(201)}),
            "/external_id",
        ),
        run(
            "a time that is none",
            json!({"input": {}, "not_before": 17}),
            "/not_before",
        ),
        run(
            "a claim in words",
            json!({"input": {}, "claim": "yes"}),
            "/claim",
        ),
        run(
            "an input of 300 KiB",
            json!({"input": {"x": "x".repeat(300_000)}}),
            "/input",
        ),
        run(
            "NUL in the input",
            json!({"input": {"a": ["\u{0}"]}}),
            "/input/a/0",
        ),
        run(
            "the publisher in the body",
            json!({"input": {}, "publisher_id": "{publisher}"}),
            "/publisher_id",
        ),
        typed("an input without what it needs", json!({}), "/input/day"),
        typed("an input of another type", json!([]), "/input"),
        typed(
            "a part too many",
            json!({"day": "x", "parts": [1, 2, 3]}),
            "/input/parts",
        ),
        claim("no run at all", json!({"max": 0}), "/max"),
        claim("too many runs", json!({"max": 101}), "/max"),
        claim("half a run", json!({"max": 0.5}), "/max"),
        claim("no pipeline", json!({"pipelines": []}), "/pipelines"),
        claim("a pattern", json!({"pipelines": ["%"]}), "/pipelines/0"),
        end("no output", "/v1/runs/{run}/complete", json!({}), "/output"),
        end("no error", "/v1/runs/{run}/fail", json!({}), "/error"),
        end(
            "an error without words",
            "/v1/runs/{run}/fail",
            json!({"error": {}}),
            "/error/message",
        ),
        end(
            "an error that is a text",
            "/v1/runs/{run}/fail",
            json!({"error": "no"}),
            "/error",
        ),
        refused(
            "no claim",
            "POST",
            "/v1/runs/{run}/complete",
            Body::Json(json!({"output": {}})),
            (400, "invalid_parameter", "/header/X-Stationmaster-Claim"),
        )
        .by(Who::Runner),
        refused(
            "a claim by an admin",
            "POST",
            "/v1/pipelines/nightly/runs",
            Body::Json(json!({"input": {}, "claim": true})),
            (422, "validation_failed", "/claim"),
        ),
    ]
}

pub fn endpoints() -> Vec<Case> {
    let patch = |what, body: Value, pointer| {
        invalid(
            what,
            "PATCH",
            "/v1/webhook-endpoints/{endpoint}",
            body,
            pointer,
        )
    };
    let new = |what, body: Value, pointer| {
        let mut whole = json!({"url": "https://example.com/hook", "event_types": ["*"]});
        for (name, value) in body.as_object().unwrap() {
            whole[name] = value.clone();
        }
        invalid(what, "POST", "/v1/webhook-endpoints", whole, pointer)
    };
    let header = |what, name: &str, value: &str, pointer| {
        new(what, json!({"headers": {name: value}}), pointer)
    };
    let at = |what, url: &str, code, pointer| {
        let body = json!({"url": url, "event_types": ["*"]});
        refused(
            what,
            "POST",
            "/v1/webhook-endpoints",
            Body::Json(body),
            (422, code, pointer),
        )
    };
    vec![
        new(
            "no rate at all",
            json!({"rate_limit_per_second": 0}),
            "/rate_limit_per_second",
        ),
        new("half of an order", json!({"ordered": "partly"}), "/ordered"),
        new(
            "a wait of more than a week",
            json!({"retry_schedule_seconds": [5, 604_801]}),
            "/retry_schedule_seconds/1",
        ),
        new(
            "too many waits",
            json!({"retry_schedule_seconds": vec![1; 33]}),
            "/retry_schedule_seconds",
        ),
        patch(
            "more under way than may be",
            json!({"max_in_flight": 101}),
            "/max_in_flight",
        ),
        patch(
            "an order that is nothing",
            json!({"ordered": null}),
            "/ordered",
        ),
        invalid(
            "no URL",
            "POST",
            "/v1/webhook-endpoints",
            json!({"event_types": ["*"]}),
            "/url",
        ),
        new("no event type", json!({"event_types": []}), "/event_types"),
        new(
            "an event type that is none",
            json!({"event_types": ["run.*", "Run"]}),
            "/event_types/1",
        ),
        new(
            "too many event types",
            json!({"event_types": (0..51).map(|n| format!("a{n}")).collect::<Vec<_>>()}),
            "/event_types",
        ),
        new(
            "a long description",
            json!({"description": "x".repeat(1001)}),
            "/description",
        ),
        new("a switch in words", json!({"enabled": "true"}), "/enabled"),
        header(
            "a line break in a header",
            "X-A",
            "a\r\nX-B: b",
            "/headers/X-A",
        ),
        header(
            "our own signature",
            "webhook-signature",
            "v1,x",
            "/headers/webhook-signature",
        ),
        header("the host", "Host", "example.org", "/headers/Host"),
        header(
            "the length",
            "Content-Length",
            "1",
            "/headers/Content-Length",
        ),
        header("a header without a name", "", "x", "/headers/"),
        at(
            "a URL that is none",
            "example",
            "destination_refused",
            "/url",
        ),
        at(
            "a URL without a host",
            "https:///hook",
            "destination_refused",
            "/url",
        ),
        at(
            "a host with an empty label",
            "https://a..b/",
            "destination_refused",
            "/url",
        ),
        at(
            "a host that is a hyphen",
            "https://-/",
            "destination_refused",
            "/url",
        ),
        at(
            "a file",
            "file:///etc/passwd",
            "destination_refused",
            "/url",
        ),
        at(
            "credentials in the URL",
            "https://u:p@example.com/",
            "destination_refused",
            "/url",
        ),
        at(
            "the metadata service",
            "http://169.254.169.254/latest",
            "destination_refused",
            "/url",
        ),
        at(
            "a URL of 3000 characters",
            &format!("https://example.com/{}", "x".repeat(3000)),
            "validation_failed",
            "/url",
        ),
        invalid(
            "a URL taken away",
            "PATCH",
            "/v1/webhook-endpoints/{endpoint}",
            json!({"url": null}),
            "/url",
        ),
        invalid(
            "another id",
            "PATCH",
            "/v1/webhook-endpoints/{endpoint}",
            json!({"id": "{endpoint}"}),
            "/id",
        ),
    ]
}

const ARCHIVE: &str = "/v1/runs/{run}/subcommands/archive";

pub fn subcommands() -> Vec<Case> {
    let call = |what, body, refusal| refused(what, "POST", ARCHIVE, body, refusal).by(Who::Runner);
    let large = Body::Bytes(vec![b'x'; 1024 * 1024 + 1]);
    vec![
        call(
            "a subcommand without the claim",
            Body::None,
            (400, "invalid_parameter", "/header/X-Stationmaster-Claim"),
        ),
        call(
            "a subcommand with another's claim",
            Body::None,
            (409, "claim_lost", "-"),
        )
        .header("x-stationmaster-claim", "stm_claim_x"),
        call(
            "a subcommand that the pipeline has not",
            Body::None,
            (404, "unknown_subcommand", "-"),
        )
        .claim(),
        call(
            "a subcommand's body of more than a mebibyte",
            large,
            (413, "body_too_large", "-"),
        )
        .claim(),
    ]
}

//! The table of wrong requests.

use serde_json::{Value, json};

use super::frame;

#[derive(Clone, Copy)]
pub enum Who {
    Admin,
    Runner,
    Operator,
}

pub enum Body {
    None,
    Json(Value),
    Text(&'static str, String),
    Bytes(Vec<u8>),
}

pub struct Case {
    pub what: &'static str,
    pub who: Who,
    pub method: &'static str,
    pub path: &'static str,
    pub headers: Vec<(&'static str, String)>,
    pub body: Body,
    pub status: u16,
    pub code: &'static str,
    /// Where the fault is; `-` where a problem of this code names no place.
    pub pointer: &'static str,
}

impl Case {
    pub fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    fn claim(self) -> Self {
        self.header("x-stationmaster-claim", "{claim}")
    }

    pub fn by(mut self, who: Who) -> Self {
        self.who = who;
        self
    }
}

/// A body of JSON with one fault.
pub fn invalid(
    what: &'static str,
    method: &'static str,
    path: &'static str,
    body: Value,
    pointer: &'static str,
) -> Case {
    refused(
        what,
        method,
        path,
        Body::Json(body),
        (422, "validation_failed", pointer),
    )
}

pub fn refused(
    what: &'static str,
    method: &'static str,
    path: &'static str,
    body: Body,
    (status, code, pointer): (u16, &'static str, &'static str),
) -> Case {
    Case {
        what,
        who: Who::Admin,
        method,
        path,
        headers: Vec::new(),
        body,
        status,
        code,
        pointer,
    }
}

pub fn get(what: &'static str, path: &'static str, pointer: &'static str) -> Case {
    refused(
        what,
        "GET",
        path,
        Body::None,
        (400, "invalid_parameter", pointer),
    )
}

pub fn absent(what: &'static str, method: &'static str, path: &'static str) -> Case {
    let body = if method == "GET" || method == "DELETE" {
        Body::None
    } else {
        Body::Json(json!({}))
    };
    refused(what, method, path, body, (404, "not_found", "-"))
}

/// Every case.
pub fn all() -> Vec<Case> {
    let parts = [
        publishers(),
        tokens(),
        pipelines(),
        runs(),
        endpoints(),
        frame::queries(),
        frame::paths(),
        frame::bodies(),
        frame::headers(),
    ];
    parts.into_iter().flatten().collect()
}

const PUBLISHERS: &str = "/v1/publishers";

fn publishers() -> Vec<Case> {
    let new =
        |what, body, pointer| invalid(what, "POST", PUBLISHERS, body, pointer).by(Who::Operator);
    let slug = |what, slug: &str| new(what, json!({"slug": slug, "display_name": "x"}), "/slug");
    vec![
        new("no slug", json!({"display_name": "x"}), "/slug"),
        new("no name", json!({"slug": "new"}), "/display_name"),
        new(
            "an empty name",
            json!({"slug": "new", "display_name": ""}),
            "/display_name",
        ),
        new(
            "a long name",
            json!({"slug": "new", "display_name": "x".repeat(121)}),
            "/display_name",
        ),
        new(
            "a name that is a number",
            json!({"slug": "new", "display_name": 7}),
            "/display_name",
        ),
        new(
            "a name that is null",
            json!({"slug": "new", "display_name": null}),
            "/display_name",
        ),
        new(
            "an unknown field",
            json!({"slug": "new", "display_name": "x", "a": 1}),
            "/a",
        ),
        new("an array", json!([]), ""),
        new("a string", json!("x"), ""),
        new("null", json!(null), ""),
        new(
            "NUL in a name",
            json!({"slug": "new", "display_name": "a\u{0}b"}),
            "/display_name",
        ),
        slug("an empty slug", ""),
        slug("an upper-case slug", "New"),
        slug("a slug with a slash", "a/b"),
        slug("a slug with a look-alike", "n\u{435}w"),
        slug("a slug that begins with a hyphen", "-new"),
        slug("a slug with a line break", "new\n"),
        slug("a slug of 64 characters", &"a".repeat(64)),
        slug("a slug of 10 000 characters", &"a".repeat(10_000)),
        refused(
            "a slug in use",
            "POST",
            PUBLISHERS,
            Body::Json(json!({"slug": "acme", "display_name": "x"})),
            (409, "slug_taken", "-"),
        )
        .by(Who::Operator),
        invalid(
            "a quota below its least",
            "PATCH",
            "/v1/publishers/{publisher}",
            json!({"quotas": {"credentials_per_kind": 0}}),
            "/quotas/credentials_per_kind",
        )
        .by(Who::Operator),
        invalid(
            "a quota with a fraction",
            "PATCH",
            "/v1/publishers/{publisher}",
            json!({"quotas": {"pipelines": 1.5}}),
            "/quotas/pipelines",
        )
        .by(Who::Operator),
        invalid(
            "an own quota",
            "PATCH",
            "/v1/publishers/me",
            json!({"quotas": {}}),
            "/quotas",
        ),
        invalid(
            "a name taken away",
            "PATCH",
            "/v1/publishers/me",
            json!({"display_name": null}),
            "/display_name",
        ),
    ]
}

fn tokens() -> Vec<Case> {
    let mint = |what, body, pointer| {
        invalid(
            what,
            "POST",
            "/v1/publishers/me/tokens/runner",
            body,
            pointer,
        )
    };
    vec![
        mint("an empty name", json!({"name": ""}), "/name"),
        mint(
            "a time that is none",
            json!({"expires_at": "tomorrow"}),
            "/expires_at",
        ),
        mint(
            "a day without a time",
            json!({"expires_at": "2030-01-01"}),
            "/expires_at",
        ),
        mint(
            "a day that there is not",
            json!({"expires_at": "2030-02-30T00:00:00Z"}),
            "/expires_at",
        ),
        mint(
            "a time that is over",
            json!({"expires_at": "2020-01-01T00:00:00Z"}),
            "/expires_at",
        ),
        mint("no pipeline at all", json!({"pipelines": []}), "/pipelines"),
        mint(
            "a pipeline twice",
            json!({"pipelines": ["a", "a"]}),
            "/pipelines",
        ),
        mint(
            "a pipeline that is no slug",
            json!({"pipelines": ["a", "B"]}),
            "/pipelines/1",
        ),
        mint("the kind in the body", json!({"kind": "admin"}), "/kind"),
        invalid(
            "pipelines for an admin",
            "POST",
            "/v1/publishers/me/tokens/admin",
            json!({"pipelines": ["nightly"]}),
            "/pipelines",
        ),
        invalid(
            "a negative overlap",
            "POST",
            "/v1/publishers/me/tokens/admin/rotate",
            json!({"overlap_seconds": -1}),
            "/overlap_seconds",
        ),
        invalid(
            "an overlap of more than a week",
            "POST",
            "/v1/publishers/me/tokens/admin/rotate",
            json!({"overlap_seconds": 604_801}),
            "/overlap_seconds",
        ),
        invalid(
            "an overlap in words",
            "POST",
            "/v1/publishers/me/tokens/runner/{runner}/rotate",
            json!({"overlap_seconds": "1h"}),
            "/overlap_seconds",
        ),
        absent(
            "a kind that there is not",
            "POST",
            "/v1/publishers/me/tokens/root",
        ),
        absent(
            "another kind's token",
            "DELETE",
            "/v1/publishers/me/tokens/runner/{admin}",
        ),
        refused(
            "the last admin token",
            "DELETE",
            "/v1/publishers/me/tokens/admin/{admin}",
            Body::None,
            (409, "last_admin_token", "-"),
        ),
    ]
}

fn pipelines() -> Vec<Case> {
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

const ARCHIVE: &str = "/v1/runs/{run}/subcommands/archive";

fn runs() -> Vec<Case> {
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
    let call =
        |what, path, body, refusal| refused(what, "POST", path, body, refusal).by(Who::Runner);
    let large = Body::Bytes(vec![b'x'; 1024 * 1024 + 1]);
    vec![
        call(
            "a subcommand without the claim",
            ARCHIVE,
            Body::Json(json!({})),
            (400, "invalid_parameter", "/header/X-Stationmaster-Claim"),
        ),
        call(
            "a subcommand with another's claim",
            ARCHIVE,
            Body::Json(json!({})),
            (409, "claim_lost", "-"),
        )
        .header("x-stationmaster-claim", "stm_claim_x"),
        call(
            "a subcommand that the pipeline has not",
            ARCHIVE,
            Body::Json(json!({})),
            (404, "unknown_subcommand", "-"),
        )
        .claim(),
        call(
            "a subcommand's body of more than a mebibyte",
            ARCHIVE,
            large,
            (413, "body_too_large", "-"),
        )
        .claim(),
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

fn endpoints() -> Vec<Case> {
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

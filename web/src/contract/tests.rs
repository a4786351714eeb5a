//! The contract of a small sample API, from the draft to the refusal of a body.

use std::sync::Arc;

use poem::Endpoint;
use serde_json::{Value, json};

use super::*;
use crate::{
    http::{StackOptions, wrap},
    probe::TestClient,
    sample::{self, OPERATIONS},
};
use domain::Code;

fn document() -> Value {
    complete(&sample::service().spec(), OPERATIONS)
}

#[test]
fn the_sample_is_complete() {
    assert_eq!(audit(&document()), Vec::<String>::new());
}

#[test]
fn it_is_deterministic_and_sorted() {
    let text_once = text(&document());
    assert_eq!(text_once, text(&document()));
    assert!(
        text_once.starts_with("{\n  \"components\": {"),
        "{}",
        &text_once[..60]
    );
    assert!(text_once.ends_with("}\n"));
}

#[test]
fn security_is_spelt_out() {
    let document = document();
    let of = |path: &str, method: &str| document["paths"][path][method]["security"].clone();
    assert_eq!(
        of("/v1/things", "post"),
        json!([
            {"admin": []},
            {"runner": []},
            {"session": [], "publisher": [], "csrf_token": []},
        ])
    );
    assert_eq!(
        of("/v1/tenants", "post"),
        json!([{"bootstrap": []}, {"session": [], "csrf_token": []}])
    );
    assert_eq!(of("/v1/ping", "get"), json!([]), "public");
    let schemes = document["components"]["securitySchemes"]
        .as_object()
        .unwrap();
    assert_eq!(
        schemes.keys().collect::<Vec<_>>(),
        [
            "admin",
            "bootstrap",
            "csrf_token",
            "publisher",
            "runner",
            "session"
        ]
    );
    assert_eq!(schemes["admin"]["scheme"], "bearer");
}

#[test]
fn every_operation_lists_its_problems() {
    let document = document();
    let codes = |path: &str, method: &str| {
        let mut all = Vec::new();
        for (status, answer) in document["paths"][path][method]["responses"]
            .as_object()
            .unwrap()
        {
            let examples = answer["content"]["application/problem+json"]["examples"].as_object();
            for (code, example) in examples.into_iter().flatten() {
                assert_eq!(example["value"]["status"].to_string(), *status);
                all.push(code.clone());
            }
        }
        all.sort();
        all
    };
    assert_eq!(codes("/v1/ping", "get"), ["internal", "overloaded"]);
    assert_eq!(
        codes("/v1/things/{slug}", "get"),
        [
            "internal",
            "invalid_parameter",
            "not_found",
            "overloaded",
            "publisher_required",
            "publisher_suspended",
            "rate_limited",
            "share_exceeded",
            "store_unavailable",
            "unauthenticated",
            "wrong_host",
            "wrong_token_kind",
        ]
    );
    let create = codes("/v1/things", "post");
    for code in [
        "malformed_json",
        "validation_failed",
        "body_too_large",
        "quota_exceeded",
    ] {
        assert!(create.iter().any(|c| c == code), "{code} in {create:?}");
    }
    assert!(!codes("/v1/tenants", "post").contains(&"publisher_suspended".to_owned()));
    assert!(codes("/v1/things", "get").contains(&"invalid_cursor".to_owned()));
}

#[test]
fn nullability_bounds_and_media_types_are_true() {
    let document = document();
    let thing = &document["components"]["schemas"]["NewThing"];
    assert_eq!(thing["additionalProperties"], json!(false));
    assert_eq!(
        thing["properties"]["note"]["type"],
        json!(["string", "null"])
    );
    assert_eq!(thing["properties"]["size"]["maximum"], json!(9));
    assert_eq!(thing["properties"]["count"]["maximum"], json!(u32::MAX));
    assert_eq!(document["openapi"], "3.1.0");
    let create = &document["paths"]["/v1/things"]["post"];
    let media: Vec<&String> = create["responses"]["201"]["content"]
        .as_object()
        .unwrap()
        .keys()
        .collect();
    assert_eq!(media, ["application/json"]);
    let headers = create["responses"]["201"]["headers"].as_object().unwrap();
    for name in ["Location", "RateLimit", "RateLimit-Policy", "X-Request-Id"] {
        assert!(headers.contains_key(name), "{name}");
    }
    assert!(
        !serde_json::to_string(&document)
            .unwrap()
            .contains("nullable")
    );
    assert_eq!(
        document["paths"]["/v1/ping"]["get"].get("requestBody"),
        None
    );
    let circle = document["components"]["schemas"].get("Circle");
    assert_eq!(circle, None, "only a branch of a union");
}

#[test]
fn the_problem_schema_knows_every_code() {
    let document = document();
    let listed = document["components"]["schemas"]["Problem"]["properties"]["code"]["enum"].clone();
    assert_eq!(listed.as_array().unwrap().len(), Code::ALL.len());
}

#[test]
fn the_audit_finds_what_is_missing() {
    let mut document = document();
    let create = &mut document["paths"]["/v1/things"]["post"];
    create["summary"] = json!("");
    create["responses"]["201"]["content"]["application/json"]
        .as_object_mut()
        .unwrap()
        .remove("example");
    create["requestBody"]["content"]["application/json"]["example"] = json!({"slug": "UP"});
    let name = &mut document["components"]["schemas"]["NewThing"]["properties"]["name"];
    name.as_object_mut().unwrap().remove("maxLength");
    let found = audit(&document).join("\n");
    for expected in [
        "create_thing: no summary",
        "create_thing: answer 201 application/json: no example",
        "create_thing: body application/json: the example is wrong at /slug",
        "create_thing: body/name: a string without maxLength",
    ] {
        assert!(found.contains(expected), "{expected} in\n{found}");
    }
}

#[test]
#[should_panic(expected = "no such operations")]
fn documenting_an_operation_that_is_none_is_a_mistake() {
    let unknown = OperationDoc {
        operation_id: "vanished",
        codes: &[],
    };
    let _ = complete(&sample::service().spec(), &[unknown]);
}

#[test]
fn the_pages_name_everything() {
    let document = document();
    let reference = reference_markdown(&document);
    for expected in [
        "### create_thing",
        "`POST /v1/things`",
        "Who may: admin or runner.",
        "| `limit` | query | an integer from 1 to 200 |",
        "| `note` | a string of at most 20 characters or null | optional. ",
        "| `parts[].weight` | an integer from 1 to 5 |",
        "422 `validation_failed`",
    ] {
        assert!(reference.contains(expected), "{expected} in\n{reference}");
    }
    let table = access_table_markdown(&document);
    assert!(
        table.contains("| `create_tenant` | `POST /v1/tenants` | – | yes | – |"),
        "{table}"
    );
    assert!(
        table.contains("| `create_thing` | `POST /v1/things` | yes | – | yes |"),
        "{table}"
    );
}

fn client() -> TestClient<impl Endpoint> {
    let contract = Arc::new(Contract::new(document()).unwrap());
    let stack = wrap(sample::service(), StackOptions::new(contract));
    TestClient::new(stack).default_header("host", "x")
}

async fn post(path: &'static str, body: impl Into<poem::Body>) -> (u16, Value) {
    let response = client()
        .post(path)
        .header("content-type", "application/json")
        .body(body.into())
        .send()
        .await;
    let status = response.0.status().as_u16();
    (status, response.0.into_body().into_json().await.unwrap())
}

/// `pointer code` of each fault, sorted.
fn faults(problem: &Value) -> Vec<String> {
    let mut all: Vec<String> = problem["errors"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|fault| {
            assert!(
                !fault["detail"].as_str().unwrap().contains("SECRET"),
                "{fault}"
            );
            format!(
                "{} {}",
                fault["pointer"].as_str().unwrap(),
                fault["code"].as_str().unwrap()
            )
        })
        .collect();
    all.sort();
    all
}

#[tokio::test]
async fn a_good_body_arrives() {
    let body = json!({"slug": "a", "name": "A", "size": 1, "labels": ["x"], "note": null,
        "parts": [{"weight": 1}], "colour": "red", "due": "2026-01-31T12:00:00Z",
        "limits": {"low": 1}, "shape": {"kind": "circle", "radius": 2}, "extra": {"anything": [1, 2.5, {"deep": null}]}});
    let (status, answer) = post("/v1/things", body.to_string()).await;
    assert_eq!((status, &answer["slug"]), (201, &json!("a")), "{answer}");
    assert_eq!(
        answer["extra"], body["extra"],
        "free JSON stays as it was sent"
    );
}

#[tokio::test]
async fn numbers_without_a_fraction_are_integers_however_written() {
    let (status, answer) = post(
        "/v1/things",
        r#"{"slug":"a","name":"A","size":1.0,"extra":1.0}"#,
    )
    .await;
    assert_eq!(status, 201, "{answer}");
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one table")]
async fn each_fault_has_its_pointer_and_code() {
    let ok = || json!({"slug": "a", "name": "A"});
    let with = |name: &str, value: Value| {
        let mut body = ok();
        body[name] = value;
        body
    };
    let long = "x".repeat(300);
    let cases: Vec<(Value, &[&str])> = vec![
        (json!({}), &["/name required", "/slug required"]),
        (json!({"slug": "a"}), &["/name required"]),
        (json!([]), &[" type"]),
        (json!("SECRET"), &[" type"]),
        (json!(null), &[" type"]),
        (json!(7), &[" type"]),
        (with("slug", json!(1)), &["/slug type"]),
        (with("slug", json!("SECRET UP")), &["/slug pattern"]),
        (with("slug", json!("")), &["/slug pattern"]),
        (with("slug", json!("a\n")), &["/slug pattern"]),
        (with("name", json!("")), &["/name too_short"]),
        (
            with("name", json!("SECRET".repeat(20))),
            &["/name too_long"],
        ),
        (with("name", Value::Null), &["/name type"]),
        (with("name", json!({"SECRET": 1})), &["/name type"]),
        (with("name", json!("a\u{0}b")), &["/name invalid"]),
        (with("note", json!(5)), &["/note type"]),
        (with("note", json!("SECRET".repeat(9))), &["/note too_long"]),
        (with("size", json!(0)), &["/size too_small"]),
        (with("size", json!(10)), &["/size too_large"]),
        (with("size", json!(1.5)), &["/size type"]),
        (with("size", json!("1")), &["/size type"]),
        (with("size", json!(true)), &["/size type"]),
        (with("count", json!(-1)), &["/count too_small"]),
        (
            with("count", json!(4_294_967_296_u64)),
            &["/count too_large"],
        ),
        (with("labels", json!("x")), &["/labels type"]),
        (with("labels", json!(["a", "a"])), &["/labels duplicate"]),
        (
            with("labels", json!(["a", "b", "c", "d"])),
            &["/labels too_long"],
        ),
        (with("labels", json!(["a", 1])), &["/labels/1 type"]),
        (
            with("labels", json!(["a", "SECRET-SECRET-SECRET"])),
            &["/labels/1 too_long"],
        ),
        (with("labels", json!([null])), &["/labels/0 type"]),
        (with("parts", json!([{}])), &["/parts/0/weight required"]),
        (
            with("parts", json!([{"weight": 1}, {"weight": 9}])),
            &["/parts/1/weight too_large"],
        ),
        (
            with("parts", json!([{"weight": 1, "w": 2}])),
            &["/parts/0/w unknown_field"],
        ),
        (with("parts", json!([3])), &["/parts/0 type"]),
        (with("colour", json!("SECRET")), &["/colour not_allowed"]),
        (
            with("colour", json!(1)),
            &["/colour not_allowed", "/colour type"],
        ),
        (with("due", json!("tomorrow")), &["/due format"]),
        (with("limits", json!({})), &["/limits/low required"]),
        (with("limits", json!({"low": "x"})), &["/limits/low type"]),
        (with("limits", json!(1)), &["/limits type"]),
        (
            with("limits", json!({"low": 1, "high": 2})),
            &["/limits/high unknown_field"],
        ),
        (
            with("shape", json!({"kind": "circle"})),
            &["/shape/radius required"],
        ),
        (
            with("shape", json!({"kind": "square", "side": 0})),
            &["/shape/side too_small"],
        ),
        (
            with("shape", json!({"kind": "SECRET"})),
            &["/shape/kind not_allowed"],
        ),
        (
            with("shape", json!({"kind": "circle", "radius": 1, "x": 1})),
            &["/shape/x unknown_field"],
        ),
        (
            with("unknown", json!("SECRET")),
            &["/unknown unknown_field"],
        ),
        (with("a/b~c", json!(1)), &["/a~1b~0c unknown_field"]),
        (with(&long, json!(1)), &[" unknown_field"]),
        (
            with("x\u{0}", json!(1)),
            &[" invalid", "/x\u{0} unknown_field"],
        ),
        (
            with("extra", json!({"deep": ["a\u{0}"]})),
            &["/extra/deep/0 invalid"],
        ),
        (with("tags", json!({"a": 1})), &["/tags/a type"]),
        (
            with("tags", json!({"a": true, "b": true, "c": true, "d": true})),
            &["/tags too_long"],
        ),
        (
            json!({"slug": 1, "size": 99, "labels": [1], "x": 1}),
            &[
                "/labels/0 type",
                "/name required",
                "/size too_large",
                "/slug type",
                "/x unknown_field",
            ],
        ),
    ];
    assert!(cases.len() >= 40);
    for (body, expected) in cases {
        let (status, problem) = post("/v1/things", body.to_string()).await;
        assert_eq!(
            (status, &problem["code"]),
            (422, &json!("validation_failed")),
            "{body}"
        );
        assert_eq!(faults(&problem), expected, "{body} → {problem:#}");
        assert!(problem["request_id"].as_str().unwrap().starts_with("req_"));
        assert!(!problem.to_string().contains("SECRET"), "{problem}");
    }
}

#[tokio::test]
async fn a_list_of_faults_ends_somewhere() {
    let body = json!({"slug": "a", "name": "A", "parts": vec![json!({}); 30]});
    let (_, problem) = post("/v1/things", body.to_string()).await;
    assert_eq!(problem["errors"].as_array().unwrap().len(), FAULTS_MAX);
}

#[tokio::test]
async fn a_fault_is_told_in_a_sentence() {
    let (_, problem) = post("/v1/things", r#"{"slug":"a","name":"A","size":10}"#).await;
    assert_eq!(problem["detail"], "`size` may be at most 9.");
    let (_, problem) = post(
        "/v1/things",
        r#"{"slug":"a","name":"A","parts":[{"weight":"x"}]}"#,
    )
    .await;
    assert_eq!(
        problem["detail"],
        "`parts.0.weight` must be an integer, not a string."
    );
    let (_, problem) = post("/v1/things", r#"{"slug":"a","name":"A","colour":"x"}"#).await;
    assert_eq!(problem["detail"], "`colour` must be one of `red`, `green`.");
}

#[tokio::test]
async fn what_is_no_json_is_refused_with_line_and_column() {
    let deep = format!("{{\"extra\":{}{}}}", "[".repeat(40), "]".repeat(40));
    let bodies: Vec<(&[u8], &str)> = vec![
        (b"", "A JSON body is needed; there is none."),
        (b"{", "Line 1, column 1: EOF while parsing an object."),
        (b"{\"slug\" \"a\"}", "Line 1, column 9: expected `:`."),
        (b"{\"slug\":\"a\",}", "Line 1, column 13: trailing comma."),
        (b"{'slug':1}", "Line 1, column 2: key must be a string."),
        (
            b"{\"slug\":\"a\"} x",
            "Line 1, column 14: trailing characters.",
        ),
        (
            b"{\"slug\":\"a\",\"slug\":\"b\"}",
            "a member name stands twice in one object.",
        ),
        (
            b"{\"slug\":\"a\xff\"}",
            "The body is not UTF-8, from byte 10 on.",
        ),
        (b"\xef\xbb\xbf{}", "Line 1, column 1: expected value."),
        (b"{\"slug\":\"\\ud800\"}", "Line 1, column 16:"),
        (b"{\"size\":1e999}", "number out of range."),
        (b"{\"size\":01}", "Line 1, column 10: invalid number."),
        (b"{\"size\":NaN}", "Line 1, column 9: expected value."),
        (deep.as_bytes(), "nested more than 32 levels deep."),
    ];
    for (body, expected) in bodies {
        let (status, problem) = post("/v1/things", body.to_vec()).await;
        let shown = String::from_utf8_lossy(body);
        assert_eq!(
            (status, &problem["code"]),
            (400, &json!("malformed_json")),
            "{shown}"
        );
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(expected), "{shown}: {detail}");
    }
}

#[tokio::test]
async fn the_content_type_is_checked() {
    let send = |content_type: Option<&'static str>| async move {
        let client = client();
        let mut request = client.post("/v1/things").body(r#"{"slug":"a","name":"A"}"#);
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        request.send().await.0.status().as_u16()
    };
    for good in [
        "application/json",
        "Application/JSON",
        "application/json; charset=utf-8",
        "application/json;charset=\"UTF-8\"",
        "application/json ;",
    ] {
        assert_eq!(send(Some(good)).await, 201, "{good}");
    }
    for bad in [
        "text/plain",
        "application/problem+json",
        "application/merge-patch+json",
        "application/json; charset=latin1",
        "application/json; boundary=x",
        "application/jsonx",
        "",
    ] {
        assert_eq!(send(Some(bad)).await, 415, "{bad}");
    }
    assert_eq!(send(None).await, 415);
}

#[tokio::test]
async fn a_body_may_be_so_large_whatever_it_says() {
    let big = format!(r#"{{"note":"{}"}}"#, "x".repeat(300));
    let send = |length: Option<&'static str>, body: poem::Body| async move {
        let client = client();
        let mut request = client
            .post("/v1/ping/small")
            .header("content-type", "application/json")
            .body(body);
        if let Some(length) = length {
            request = request.header("content-length", length);
        }
        let response = request.send().await.0;
        let status = response.status().as_u16();
        (
            status,
            response.into_body().into_json::<Value>().await.unwrap(),
        )
    };
    let pieces = || {
        let pieces: Vec<_> = big.as_bytes().chunks(50).map(<[u8]>::to_vec).collect();
        poem::Body::from_bytes_stream(futures_util::stream::iter(
            pieces.into_iter().map(Ok::<_, std::io::Error>),
        ))
    };
    for (length, body) in [
        (None, big.clone().into()),
        (Some("10"), big.clone().into()),
        (Some("999999"), "{}".into()),
        (None, pieces()),
    ] {
        let (status, problem) = send(length, body).await;
        assert_eq!((status, &problem["code"]), (413, &json!("body_too_large")));
        assert_eq!(problem["detail"], "At most 256 bytes are taken.");
    }
    let in_pieces = poem::Body::from_bytes_stream(futures_util::stream::iter(
        [&b"{\"no"[..], b"te\":", b"\"x\"}"].map(Ok::<_, std::io::Error>),
    ));
    assert_eq!(send(None, in_pieces).await.0, 200);
}

#[tokio::test]
async fn an_optional_body_may_be_absent() {
    let rotate = |content_type: Option<&'static str>, body: &'static str| async move {
        let client = client();
        let mut request = client.post("/v1/things/a/rotate").body(body);
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        request.send().await.0.status().as_u16()
    };
    let json = Some("application/json");
    assert_eq!(rotate(None, "").await, 200);
    assert_eq!(rotate(json, "").await, 200);
    assert_eq!(rotate(json, "{}").await, 200);
    assert_eq!(rotate(json, r#"{"overlap_seconds":5}"#).await, 200);
    assert_eq!(rotate(None, "{}").await, 415, "a body without a type");
    assert_eq!(rotate(Some("text/plain"), "").await, 415);
    assert_eq!(rotate(json, r#"{"overlap_seconds":-5}"#).await, 422);
    assert_eq!(rotate(json, "null").await, 422);
}

#[tokio::test]
async fn a_patch_tells_absent_from_null() {
    let patch = |content_type: &'static str, body: &'static str| async move {
        let response = client()
            .patch("/v1/things/a")
            .header("content-type", content_type)
            .body(body)
            .send()
            .await
            .0;
        (
            response.status().as_u16(),
            response.into_body().into_json::<Value>().await.unwrap(),
        )
    };
    let merge = "application/merge-patch+json";
    let changes = |answer: (u16, Value)| answer.1["changes"].as_str().map(str::to_owned);
    assert_eq!(changes(patch(merge, "{}").await).unwrap(), "note stays");
    assert_eq!(
        changes(patch(merge, r#"{"note":null}"#).await).unwrap(),
        "note goes"
    );
    assert_eq!(
        changes(patch("application/json", r#"{"note":"x"}"#).await).unwrap(),
        "note is x"
    );
    let (status, problem) = patch(merge, r#"{"name":null}"#).await;
    assert_eq!(
        (status, faults(&problem)),
        (422, vec!["/name type".to_owned()])
    );
}

//! Callers' own JSON, from the request to whoever is told of it: the same to the byte. And lists of
//! large ones, in pages that end by bytes.

use std::{collections::BTreeMap, time::Duration};

use proptest::{prelude::*, strategy::ValueTree as _, test_runner::TestRunner};
use serde_json::{Value, json};
use tests::{Answer, Consumer, Publisher, World, on_both_stores};

use crate::verifiers::verify;

on_both_stores!(
    what_is_sent_arrives_to_the_byte,
    a_name_that_stands_twice_is_refused_wherever_it_is,
    pages_of_large_rows_end_by_their_bytes,
    a_claim_of_large_runs_hands_out_fewer,
    a_payload_of_many_values_is_taken_unless_a_schema_judges_it,
);

/// Payloads that a story sends.
const PAYLOADS: usize = 10;

fn space() -> impl Strategy<Value = String> {
    prop_oneof![3 => Just(String::new()), 1 => "[ \t\r\n]{1,3}"]
}

/// Numbers of every form, within what a double reaches.
fn number() -> impl Strategy<Value = String> {
    prop_oneof![
        "-?(0|[1-9][0-9]{0,40})",
        "-?(0|[1-9][0-9]{0,20})\\.[0-9]{1,30}",
        "-?(0|[1-9][0-9]{0,9})(\\.[0-9]{1,9})?[eE][+-]?[0-9]{1,2}",
        Just("1e-400".to_owned()),
        Just("-0".to_owned()),
        Just("-0.0".to_owned()),
        Just("1.0".to_owned()),
        Just("18446744073709551616".to_owned()),
    ]
}

fn string() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        "[a-zA-Z0-9 äöß€漢\u{1f600}\u{2028}\u{feff}\u{7f}<>&'/-]{0,8}",
        "\\\\[\"\\\\/bfnrt]",
        "\\\\u00[1-9a-f][0-9A-Fa-f]",
        Just("\\ud83d\\ude00".to_owned()),
    ];
    prop::collection::vec(part, 0..4).prop_map(|parts| format!("\"{}\"", parts.concat()))
}

/// The text of any JSON, with white space wherever it may be.
fn payload() -> impl Strategy<Value = String> {
    let word = prop_oneof![Just("null"), Just("true"), Just("false")];
    let leaf = prop_oneof![number(), number(), string(), word.prop_map(str::to_owned)];
    leaf.prop_recursive(4, 40, 6, |inner| {
        let item = (space(), inner, space())
            .prop_map(|(a, value, b)| format!("{a}{value}{b}"))
            .boxed();
        // Names in no order, each with its own number.
        let member = (space(), any::<u16>(), space(), item.clone());
        let members = prop::collection::vec(member, 0..6).prop_map(|members| {
            let members = members.into_iter().enumerate();
            let text = members
                .map(|(at, (a, name, b, value))| format!("{a}\"k{name}\\u00e4{at}\"{b}:{value}"));
            format!("{{{}}}", text.collect::<Vec<_>>().join(","))
        });
        prop_oneof![
            prop::collection::vec(item, 0..6).prop_map(|items| format!("[{}]", items.join(","))),
            members,
        ]
    })
}

fn payloads() -> Vec<String> {
    let mut runner = TestRunner::default();
    let known = [
        "18446744073709551616".to_owned(),
        "{\"b\":1.10,\"a\":-0, \"n\":0.12345678901234567890,\r\n\t\"e\":1E5}".to_owned(),
    ];
    let made = std::iter::repeat_with(|| payload().new_tree(&mut runner).unwrap().current());
    known.into_iter().chain(made.take(PAYLOADS)).collect()
}

fn text_of(answer: &Answer) -> String {
    String::from_utf8(answer.body.to_vec()).unwrap()
}

fn assert_holds(whole: &str, name: &str, payload: &str) {
    let member = format!("\"{name}\":{payload}");
    assert!(whole.contains(&member), "{whole}\nhas not\n{member}");
}

async fn call(publisher: &Publisher, path: &str, claim: Option<&str>, body: String) -> Answer {
    let mut call = publisher.runner.post(path);
    if let Some(claim) = claim {
        call = call.claim(claim);
    }
    call.text("application/json", body).answer().await
}

/// The data of a stream's messages, up to the one that holds `last`.
async fn messages(stream: &mut reqwest::Response, last: &str) -> Vec<String> {
    let (mut text, mut messages) = (String::new(), Vec::new());
    loop {
        let chunk = tokio::time::timeout(Duration::from_secs(10), stream.chunk()).await;
        let chunk = chunk.expect("the stream is silent").unwrap();
        let chunk = chunk.expect("the stream ends too early");
        text.push_str(std::str::from_utf8(&chunk).unwrap());
        while let Some((message, rest)) = text.split_once("\n\n") {
            let lines = message
                .lines()
                .filter_map(|line| line.strip_prefix("data: "));
            let data = lines.collect::<Vec<_>>().join("\n");
            text = rest.to_owned();
            let found = data.contains(last);
            messages.push(data);
            if found {
                return messages;
            }
        }
    }
}

async fn what_is_sent_arrives_to_the_byte(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;
    let consumer = Consumer::start().await;
    publisher.endpoint(&consumer, &["*"]).await;
    let mut listener = publisher.admin.get("/v1/listen").open().await;
    assert_eq!(listener.status(), 200);
    let secret = publisher.secret("webhook_signing");
    let payloads = payloads();
    let mut events: BTreeMap<String, &str> = BTreeMap::new();
    let mut last = String::new();
    for payload in &payloads {
        let body = format!("{{\"type\":\"a.b\",\"data\": {payload}\n }}");
        let sent = call(&publisher, "/v1/events", None, body).await;
        assert_eq!(sent.status, 202, "{sent}");
        assert_holds(&text_of(&sent), "data", payload);
        let id = sent.text("/id");
        let read = publisher.admin.get(&format!("/v1/events/{id}"));
        assert_eq!(read.expect(200).await.body, sent.body);
        let delivered = consumer.find("the event", |one| one.id() == id).await;
        assert_eq!(delivered.body, sent.body);
        verify(&secret, &delivered).unwrap();
        last.clone_from(&id);
        events.insert(id, payload);
    }
    let several = payloads
        .iter()
        .map(|data| format!("{{\"data\":{data},\"type\":\"a.c\"}}"));
    let several = several.collect::<Vec<_>>().join(" , ");
    let body = format!("{{\"events\":[{several}]}}");
    let sent = call(&publisher, "/v1/events", None, body).await;
    assert_eq!(sent.status, 202, "{sent}");
    let listed = publisher.admin.get("/v1/events?type=a.b&limit=200");
    let listed = text_of(&listed.expect(200).await);
    for payload in &payloads {
        assert_holds(&text_of(&sent), "data", payload);
        assert_holds(&listed, "data", payload);
    }
    let heard = messages(&mut listener, &last).await;
    let mut bodies = 0;
    for message in heard {
        let message: Value = serde_json::from_str(&message).unwrap();
        if let Some(payload) = message["id"].as_str().and_then(|id| events.get(id)) {
            assert_holds(message["body"].as_str().unwrap(), "data", payload);
            bodies += 1;
        }
    }
    assert_eq!(bodies, payloads.len());
    for payload in &payloads {
        run_with(&publisher, &consumer, payload).await;
    }
}

/// A run that is given, reports and gives a payload, and one that fails with it.
async fn run_with(publisher: &Publisher, consumer: &Consumer, payload: &str) {
    let input = format!("{{\"input\":{payload}}}");
    let created = call(publisher, "/v1/pipelines/nightly/runs", None, input).await;
    assert_eq!(created.status, 201, "{created}");
    assert_holds(&text_of(&created), "input", payload);
    let run = format!("/v1/runs/{}", created.text("/id"));
    let mut stream = publisher.admin.get(&format!("{run}/stream")).open().await;
    let claimed = call(publisher, "/v1/runs/claim", None, String::from("{}")).await;
    assert_holds(&text_of(&claimed), "input", payload);
    let claim = claimed.text("/items/0/claim/token");
    let nothing = payload == "null";
    let report = format!("{{\"progress\" :{payload}}}");
    let kept = call(publisher, &format!("{run}/heartbeat"), Some(&claim), report).await;
    assert_eq!(kept.status, 200, "{kept}");
    let output = format!("{{\"output\":{payload}}}");
    let done = call(publisher, &format!("{run}/complete"), Some(&claim), output).await;
    assert_eq!(done.status, 200, "{done}");
    let read = text_of(&publisher.admin.get(&run).expect(200).await);
    for text in [&text_of(&done), &read] {
        assert_holds(text, "input", payload);
        assert_holds(text, "output", payload);
        if !nothing {
            assert_holds(text, "progress", payload);
        }
    }
    let id = created.text("/id");
    let told = consumer.find("the end", |one| {
        let body = std::str::from_utf8(&one.body).unwrap();
        body.contains("run.succeeded") && body.contains(&id)
    });
    assert_holds(
        std::str::from_utf8(&told.await.body).unwrap(),
        "output",
        payload,
    );
    let entries = messages(&mut stream, "\"type\":\"succeeded\"").await;
    let timeline = text_of(
        &publisher
            .admin
            .get(&format!("{run}/timeline"))
            .expect(200)
            .await,
    );
    if !nothing {
        assert_holds(&timeline, "progress", payload);
        // Server-sent events end their lines at carriage returns: in a stream each is a space.
        let streamed = payload.replace('\r', " ");
        let entry = entries.iter().find(|entry| entry.contains("progress\""));
        assert_holds(entry.unwrap(), "progress", &streamed);
    }

    let (run, claim) = publisher.claimed_run("nightly").await;
    let run = format!("/v1/runs/{run}");
    let error = format!("{{ \"more\":{payload}, \"message\": \"no\" }}");
    let body = format!("{{\"error\":{error}}}");
    let failed = call(publisher, &format!("{run}/fail"), Some(&claim), body).await;
    assert_eq!(failed.status, 200, "{failed}");
    assert_holds(&text_of(&failed), "error", &error);
    let timeline = publisher.admin.get(&format!("{run}/timeline"));
    assert_holds(&text_of(&timeline.expect(200).await), "error", &error);
}

async fn a_name_that_stands_twice_is_refused_wherever_it_is(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;
    let (run, claim) = publisher.claimed_run("nightly").await;
    let run = |what: &str| format!("/v1/runs/{run}/{what}");
    let twice = "[{\"a\":1,\"b\":{},\"\\u0061\":2}]";
    for (path, body) in [
        (
            "/v1/events".to_owned(),
            format!("{{\"type\":\"a.b\",\"data\":{twice}}}"),
        ),
        (
            "/v1/events".to_owned(),
            format!("{{\"events\":[{{\"type\":\"a.b\",\"data\":{twice}}}]}}"),
        ),
        (
            "/v1/pipelines/nightly/runs".to_owned(),
            format!("{{\"input\":{twice}}}"),
        ),
        (run("heartbeat"), format!("{{\"progress\":{twice}}}")),
        (run("complete"), format!("{{\"output\":{twice}}}")),
        (
            run("fail"),
            format!("{{\"error\":{{\"message\":\"x\",\"m\":{twice}}}}}"),
        ),
    ] {
        let answer = call(&publisher, &path, Some(&claim), body.clone()).await;
        assert_eq!(answer.status, 400, "{path}: {answer}");
        assert_eq!(answer["code"], "malformed_json", "{path}");
        let column = body.find("\\u0061").unwrap() + 7;
        let place = format!("Line 1, column {column}: a member name stands twice");
        assert!(
            answer.text("/detail").starts_with(&place),
            "{path}: {answer}"
        );
    }
}

/// A payload of so many bytes, of small values: as a tree it takes a hundred times as much.
fn small_values(bytes: usize) -> String {
    format!("[{}]", vec!["{\"\":0}"; bytes / 7].join(","))
}

/// Walks a list to its end: the items of each part.
async fn parts(publisher: &Publisher, path: &str) -> Vec<usize> {
    let (mut parts, mut cursor) = (Vec::new(), String::new());
    loop {
        let call = publisher.runner.get(&format!("{path}limit=200{cursor}"));
        let answer = call.expect(200).await;
        assert!(answer.body.len() < 5 << 20, "{} bytes", answer.body.len());
        parts.push(answer["items"].as_array().unwrap().len());
        match answer["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return parts,
        }
    }
}

async fn pages_of_large_rows_end_by_their_bytes(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;
    let large = small_values(250 * 1024);
    let event = format!("{{\"type\":\"a.b\",\"data\":{large}}}");
    let several = format!("{{\"events\":[{}]}}", vec![event; 12].join(","));
    for _ in 0..3 {
        let answer = call(&publisher, "/v1/events", None, several.clone()).await;
        assert_eq!(answer.status, 202);
    }
    let found = parts(&publisher, "/v1/events?type=a.b&").await;
    assert_eq!(found.iter().sum::<usize>(), 36);
    assert!(found.len() == 3 && found[0] == 16, "{found:?}");

    let (run, claim) = publisher.claimed_run("nightly").await;
    let run = format!("/v1/runs/{run}");
    let body = format!("{{\"output\":{large}}}");
    let done = call(&publisher, &format!("{run}/complete"), Some(&claim), body).await;
    assert_eq!(done.status, 200);
    for _ in 0..17 {
        let body = format!("{{\"input\":{large}}}");
        let created = call(&publisher, "/v1/pipelines/nightly/runs", None, body).await;
        assert_eq!(created.status, 201);
    }
    let found = parts(&publisher, "/v1/runs?").await;
    assert_eq!(found, [16, 2]);
}

async fn a_claim_of_large_runs_hands_out_fewer(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;
    let large = small_values(250 * 1024);
    for _ in 0..20 {
        let body = format!("{{\"input\":{large}}}");
        let created = call(&publisher, "/v1/pipelines/nightly/runs", None, body).await;
        assert_eq!(created.status, 201);
    }
    let mut handed = Vec::new();
    for _ in 0..3 {
        let body = String::from("{\"max\":100}");
        let claimed = call(&publisher, "/v1/runs/claim", None, body).await;
        assert_eq!(claimed.status, 200);
        handed.push(claimed["items"].as_array().unwrap().len());
    }
    assert_eq!(handed.iter().sum::<usize>(), 20, "{handed:?}");
    assert!(handed[0] == 17 && handed[2] == 0, "{handed:?}");
}

async fn a_payload_of_many_values_is_taken_unless_a_schema_judges_it(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;
    let list = |count: usize| format!("[{}]", vec!["1"; count].join(","));
    let (at_most, too_many) = (list(49_999), list(50_000));
    let create = async |input: &str| {
        let body = format!("{{\"input\":{input}}}");
        call(&publisher, "/v1/pipelines/nightly/runs", None, body).await
    };
    assert_eq!(create(&too_many).await.status, 201);
    let pipeline = json!({"display_name": "N", "input_schema": {"type": "array"}});
    let put = publisher
        .admin
        .put("/v1/pipelines/nightly")
        .header("if-match", "*");
    put.json(&pipeline).expect(200).await;
    assert_eq!(create(&at_most).await.status, 201);
    let refused = create(&too_many).await;
    assert_eq!(refused.status, 422, "{refused}");
    assert_eq!(refused["errors"][0]["code"], "too_many_values");
    assert_eq!(refused.pointers(), ["/input"]);
    // What is no payload has a limit of its own.
    let body = format!("{{\"display_name\":\"N\",\"input_schema\":{{\"x\":{too_many}}}}}");
    let put = publisher.admin.put("/v1/pipelines/other");
    let refused = put.text("application/json", body).answer().await;
    assert_eq!(refused["errors"][0]["code"], "too_many_values");
    assert_eq!(refused.pointers(), [""]);
}

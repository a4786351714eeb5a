//! Subcommands: a run's holder reaches its publisher's endpoint, and nobody else's, and nobody
//! else does.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use tests::{
    Answer, Call, Consumer, Delivery, Publisher, Reply, User, World, fingerprint, on_both_stores,
    tools::{absent, eventually},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};

use crate::{tokens::mint, verifiers::verify_call};
use headers::{OURS, SPOOFED};

mod headers;

on_both_stores!(
    a_call_carries_the_bearer_and_both_signatures,
    the_body_goes_through_byte_for_byte,
    headers_that_are_not_the_runners_stay_behind,
    during_a_rotation_the_newest_bearer_goes_and_both_secrets_sign,
    the_publishers_own_refusals_are_passed_on,
    an_endpoint_that_is_slow_or_drips_runs_out_of_time,
    an_answer_is_passed_on_up_to_a_mebibyte,
    an_endpoint_that_nobody_can_reach_is_told_of,
    a_destination_is_judged_again_when_it_is_called,
    an_unknown_name_lists_those_that_there_are,
    only_the_claim_of_the_very_run_will_do,
    a_limited_token_reaches_its_own_pipelines_alone,
    a_suspended_publisher_calls_nothing,
    connections_are_used_again,
    a_publisher_has_so_many_calls_under_way,
    a_bearer_that_an_endpoint_repeats_is_masked,
);

const LIMIT: Duration = Duration::from_secs(10);
const MEBIBYTE: usize = 1024 * 1024;

/// A publisher's claimed run whose pipeline has subcommands.
struct Held {
    publisher: Publisher,
    run: String,
    claim: String,
}

impl Held {
    /// Of a new publisher, with these subcommands.
    async fn new(publisher: Publisher, subcommands: &[(&str, &str, u32)]) -> Self {
        register(&publisher, "nightly", subcommands).await;
        let (run, claim) = publisher.claimed_run("nightly").await;
        Self {
            publisher,
            run,
            claim,
        }
    }

    fn call(&self, name: &str) -> Call {
        self.call_as(&self.publisher.runner, name)
    }

    fn call_as(&self, user: &User, name: &str) -> Call {
        user.post(&path(&self.run, name)).claim(&self.claim)
    }
}

fn path(run: &str, name: &str) -> String {
    format!("/v1/runs/{run}/subcommands/{name}")
}

async fn register(publisher: &Publisher, pipeline: &str, subcommands: &[(&str, &str, u32)]) {
    let subcommands: serde_json::Map<String, Value> = subcommands
        .iter()
        .map(|(name, url, timeout_ms)| {
            let subcommand = json!({"url": url, "timeout_ms": timeout_ms});
            ((*name).to_owned(), subcommand)
        })
        .collect();
    let body = json!({"display_name": "Nightly", "subcommands": subcommands});
    let path = format!("/v1/pipelines/{pipeline}");
    publisher.admin.put(&path).json(&body).expect(201).await;
}

fn bearer(delivery: &Delivery) -> &str {
    delivery
        .header("authorization")
        .strip_prefix("Bearer ")
        .unwrap()
}

/// What the run's timeline says of its calls.
async fn timeline(held: &Held) -> Vec<Value> {
    let path = format!("/v1/runs/{}/timeline", held.run);
    let entries = held.publisher.admin.all(&path).await;
    let calls = entries.iter().filter(|entry| entry["type"] == "subcommand");
    calls.map(|entry| entry["data"].clone()).collect()
}

fn with_body(status: u16, content_type: &str, body: impl Into<String>) -> Reply {
    Reply {
        headers: vec![("content-type", content_type.to_owned())],
        body: body.into(),
        ..Reply::status(status)
    }
}

/// The publisher answered, and nothing went wrong in between.
fn assert_answered(answer: &Answer, status: u16) {
    assert_eq!(answer["answered_by"], "publisher", "{answer}");
    assert_eq!(answer["status_code"], status, "{answer}");
    assert_eq!(answer["error"], Value::Null, "{answer}");
}

/// No answer came, for this reason.
fn assert_failed(answer: &Answer, error: &str) {
    assert_eq!(answer["answered_by"], "stationmaster", "{answer}");
    assert_eq!(answer["error"], error, "{answer}");
    for member in ["status_code", "body", "body_encoding"] {
        assert_eq!(answer[member], Value::Null, "{answer}");
    }
}

async fn a_call_carries_the_bearer_and_both_signatures(world: &World) {
    let server = world.start().await;
    let consumer = Consumer::start().await;
    let archived = with_body(200, "application/json", r#"{"archived": [1, 2.50]}"#);
    consumer.reply_always(archived);
    let publisher = server.publisher("acme").await;
    let held = Held::new(publisher, &[("archive", &consumer.url, 5000)]).await;
    // The endpoint would not get it.
    let queried = held.call("archive?path=/etc").json(&json!({}));
    queried.refused(400, "invalid_parameter").await;
    let answer = held
        .call("archive")
        .json(&json!({"file": "a.csv"}))
        .header("x-request-id", "a-request")
        .expect(200)
        .await;
    assert_answered(&answer, 200);
    assert_eq!(answer["body"], json!({"archived": [1, 2.5]}));
    assert_eq!(answer["body_encoding"], "json");
    assert_eq!(
        answer["headers"],
        json!({"content-type": "application/json", "retry-after": null})
    );
    assert!(answer["latency_ms"].is_u64(), "{answer}");

    let seen = consumer.seen();
    let [call] = seen.as_slice() else {
        panic!("one call, one request: {seen:?}");
    };
    assert_eq!(call.path, "/hook");
    assert_eq!(&call.body[..], br#"{"file":"a.csv"}"#);
    assert_eq!(bearer(call), held.publisher.secret("subcommand_bearer"));
    verify_call(&held.publisher.secret("webhook_signing"), call).unwrap();
    for (name, value) in [
        ("content-type", "application/json"),
        ("x-stationmaster-run", held.run.as_str()),
        ("x-stationmaster-subcommand", "archive"),
        ("x-stationmaster-attempt", "1"),
        ("x-request-id", "a-request"),
        ("accept-encoding", "identity"),
    ] {
        assert_eq!(call.header(name), value, "{name}");
    }
    assert_eq!(answer["id"], call.id());
    assert!(call.id().starts_with("call_"), "{}", call.id());
    held.call("archive").expect(200).await;
    assert_ne!(consumer.seen()[1].id(), call.id(), "each call has its own");
    let calls = timeline(&held).await;
    assert_eq!(calls.len(), 2, "{calls:?}");
    let expected = json!({
        "id": answer["id"],
        "name": "archive",
        "attempt": 1,
        "status_code": 200,
        "error": null,
        "latency_ms": answer["latency_ms"],
    });
    assert_eq!(calls[0], expected);
    let figures = server.metrics().await;
    let counted = r#"stationmaster_subcommand_calls_total{outcome="2xx"} 2"#;
    assert!(figures.contains(counted), "{figures}");
}

async fn the_body_goes_through_byte_for_byte(world: &World) {
    let server = world.start().await;
    let consumer = Consumer::start().await;
    let publisher = server.publisher("acme").await;
    let held = Held::new(publisher, &[("archive", &consumer.url, 5000)]).await;
    let secret = held.publisher.secret("webhook_signing");
    let large = vec![b'x'; MEBIBYTE];
    for (content_type, body) in [
        ("application/json", &b" {\"a\":1, \"a\":2} "[..]),
        ("application/json", b"{no json"),
        ("text/csv; charset=utf-16", b"\xff\xfea\0"),
        ("multipart/form-data; boundary=x", b"--x\r\n\r\n\0\r\n--x--"),
        ("application/octet-stream", &large),
        ("", b""),
    ] {
        let before = consumer.seen().len();
        let answer = held.call("archive").text(content_type, body);
        assert_answered(&answer.expect(200).await, 204);
        let call = &consumer.seen()[before];
        assert_eq!(call.header("content-type"), content_type);
        assert!(call.body == body, "{content_type}: the bytes differ");
        verify_call(&secret, call).unwrap();
    }
    let untyped = held.call("archive").text("", "abc");
    untyped.expect(200).await;
    let call = &consumer.seen()[6];
    assert_eq!(call.header("content-type"), "application/octet-stream");
    let too_large = held
        .call("archive")
        .text("text/plain", vec![b'x'; MEBIBYTE + 1]);
    too_large.refused(413, "body_too_large").await;
    assert_eq!(consumer.seen().len(), 7);
}

async fn headers_that_are_not_the_runners_stay_behind(world: &World) {
    let server = world.start().await;
    let consumer = Consumer::start().await;
    let publisher = server.publisher("acme").await;
    let held = Held::new(publisher, &[("archive", &consumer.url, 5000)]).await;
    let mut call = held.call("archive").json(&json!({}));
    for (name, value) in SPOOFED {
        call = call.header(name, value);
    }
    for (name, value) in OURS {
        call = call.header(name, value);
    }
    let passed = [
        ("accept", "text/csv"),
        ("idempotency-key", "once"),
        (
            "traceparent",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ),
        ("tracestate", "a=b"),
    ];
    for (name, value) in passed {
        call = call.header(name, value);
    }
    let call = call.header("connection", "accept-language, x-own");
    assert_answered(&call.expect(200).await, 204);

    let seen = consumer.seen();
    let [request] = seen.as_slice() else {
        panic!("one call, one request");
    };
    for (name, _) in SPOOFED {
        assert_eq!(request.header(name), "", "{name} got through");
    }
    for (name, value) in OURS {
        let found = request.headers.iter().filter(|(known, _)| known == name);
        assert_eq!(found.count(), 1, "{name} must be there once");
        assert_ne!(request.header(name), value, "{name} got through");
    }
    for (name, value) in passed {
        assert_eq!(request.header(name), value, "{name}");
    }
    assert_eq!(request.header("x-stationmaster-claim"), "");
    assert_eq!(bearer(request), held.publisher.secret("subcommand_bearer"));
    verify_call(&held.publisher.secret("webhook_signing"), request).unwrap();
}

async fn during_a_rotation_the_newest_bearer_goes_and_both_secrets_sign(world: &World) {
    let server = world.start().await;
    let consumer = Consumer::start().await;
    let publisher = server.publisher("acme").await;
    let held = Held::new(publisher, &[("archive", &consumer.url, 5000)]).await;
    let rotate = async |kind: &str| {
        let path = format!("/v1/publishers/me/tokens/{kind}/rotate");
        let call = held.publisher.admin.post(&path);
        let call = call.json(&json!({"overlap_seconds": 3600}));
        call.expect(200).await.text("/secret")
    };
    let (newer, signing) = (
        rotate("subcommand_bearer").await,
        rotate("webhook_signing").await,
    );
    held.call("archive")
        .text("text/plain", "x")
        .expect(200)
        .await;
    let call = &consumer.seen()[0];
    assert_eq!(bearer(call), newer);
    for secret in [&signing, &held.publisher.secret("webhook_signing")] {
        verify_call(secret, call).unwrap();
    }
    let own = call.header("x-stationmaster-signature");
    assert_eq!(own.matches("v1=").count(), 2, "{own}");
}

async fn the_publishers_own_refusals_are_passed_on(world: &World) {
    let server = world.start().await;
    let consumer = Consumer::start().await;
    let publisher = server.publisher("acme").await;
    let held = Held::new(publisher, &[("archive", &consumer.url, 5000)]).await;
    let mut later = with_body(503, "text/html", "<p>later</p>");
    later.headers.push(("retry-after", "120".to_owned()));
    later.headers.push(("set-cookie", "a=b".to_owned()));
    let mut elsewhere = Reply::status(302);
    elsewhere.headers.push(("location", consumer.url.clone()));
    consumer.reply_next([
        with_body(404, "application/problem+json", r#"{"code": "none"}"#),
        with_body(500, "text/plain", "a stack trace"),
        later,
        elsewhere,
        Reply::status(401),
    ]);
    let next = async || held.call("archive").expect(200).await;
    let missing = next().await;
    assert_answered(&missing, 404);
    assert_eq!(missing["body"], json!({"code": "none"}));
    let broken = next().await;
    assert_answered(&broken, 500);
    assert_eq!(
        (&broken["body"], &broken["body_encoding"]),
        (&json!("a stack trace"), &json!("text"))
    );
    let busy = next().await;
    assert_answered(&busy, 503);
    assert_eq!(
        busy["headers"],
        json!({"content-type": "text/html", "retry-after": "120"})
    );
    assert_eq!(busy.header("retry-after"), "", "it is not ours");
    assert_eq!(busy.header("set-cookie"), "");
    assert_answered(&next().await, 302);
    assert_answered(&next().await, 401);
    assert_eq!(consumer.seen().len(), 5, "nothing is followed or repeated");
}

/// An endpoint that speaks HTTP by hand; each connection is answered with the same bytes, in
/// pieces with pauses between. Gone when dropped.
struct ByHand {
    url: String,
    task: JoinHandle<()>,
}

impl ByHand {
    async fn start(pieces: &'static [&'static [u8]], pause: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut request = vec![0; 16 * 1024];
                    let _ = stream.read(&mut request).await;
                    for piece in pieces {
                        if stream.write_all(piece).await.is_err() {
                            return;
                        }
                        tokio::time::sleep(pause).await;
                    }
                });
            }
        });
        Self { url, task }
    }
}

impl Drop for ByHand {
    fn drop(&mut self) {
        self.task.abort();
    }
}

const DRIP: &[&[u8]] = &[
    b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n",
    b"x",
    b"x",
    b"x",
    b"x",
    b"x",
    b"x",
    b"x",
    b"x",
    b"x",
    b"x",
];
const BROKEN: &[&[u8]] = &[b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nx"];
const GARBAGE: &[&[u8]] = &[b"SSH-2.0-x\r\n\r\n"];
const PICTURE: &[&[u8]] =
    &[b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\ncontent-length: 4\r\n\r\n\x89PNG"];

async fn an_endpoint_that_is_slow_or_drips_runs_out_of_time(world: &World) {
    let server = world.start().await;
    let slow = Consumer::start().await;
    slow.reply_always(Reply {
        delay: Duration::from_secs(5),
        ..Reply::status(200)
    });
    let drip = ByHand::start(DRIP, Duration::from_millis(200)).await;
    let publisher = server.publisher("acme").await;
    let subcommands = [
        ("slow", slow.url.as_str(), 300),
        ("drip", drip.url.as_str(), 700),
    ];
    let held = Held::new(publisher, &subcommands).await;
    for (name, timeout_ms) in [("slow", 300), ("drip", 700)] {
        let answer = held.call(name).expect(200).await;
        assert_failed(&answer, "timeout");
        let latency_ms = answer["latency_ms"].as_u64().unwrap();
        assert!(
            (timeout_ms..timeout_ms + 4000).contains(&latency_ms),
            "{answer}"
        );
    }
    let calls = timeline(&held).await;
    assert_eq!(calls.len(), 2, "{calls:?}");
    for (call, name) in calls.iter().zip(["slow", "drip"]) {
        assert_eq!(call["name"], name);
        assert_eq!(call["error"], "timeout");
        assert_eq!(call["status_code"], Value::Null);
    }
    // The run goes on, whatever its tools do.
    held.publisher.complete(&held.run, &held.claim).await;
}

async fn an_answer_is_passed_on_up_to_a_mebibyte(world: &World) {
    let server = world.start().await;
    let consumer = Consumer::start().await;
    let publisher = server.publisher("acme").await;
    let held = Held::new(publisher, &[("archive", &consumer.url, 20_000)]).await;
    let text = |length: usize| with_body(200, "text/plain", "x".repeat(length));
    consumer.reply_next([text(MEBIBYTE), text(MEBIBYTE + 1), text(8 * MEBIBYTE)]);
    let whole = held.call("archive").expect(200).await;
    assert_answered(&whole, 200);
    assert_eq!(whole["body"].as_str().unwrap().len(), MEBIBYTE);
    for _ in 0..2 {
        let cut = held.call("archive").expect(200).await;
        assert_eq!(cut["answered_by"], "publisher", "{cut}");
        assert_eq!(cut["status_code"], 200, "{cut}");
        assert_eq!(cut["error"], "body_too_long", "{cut}");
        assert_eq!(cut["body"], Value::Null);
    }
    let picture = ByHand::start(PICTURE, Duration::ZERO).await;
    register(&held.publisher, "pictures", &[("draw", &picture.url, 5000)]).await;
    let (run, claim) = held.publisher.claimed_run("pictures").await;
    let call = held
        .publisher
        .runner
        .post(&path(&run, "draw"))
        .claim(&claim);
    let drawn = call.expect(200).await;
    assert_answered(&drawn, 200);
    assert_eq!(drawn["headers"]["content-type"], "image/png", "{drawn}");
    assert_eq!(
        (&drawn["body"], &drawn["body_encoding"]),
        (&json!("iVBORw=="), &json!("base64"))
    );
}

async fn an_endpoint_that_nobody_can_reach_is_told_of(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let broken = ByHand::start(BROKEN, Duration::ZERO).await;
    let garbage = ByHand::start(GARBAGE, Duration::ZERO).await;
    let subcommands = [
        ("closed", "http://127.0.0.1:1/", 2000),
        ("broken", broken.url.as_str(), 2000),
        ("garbage", garbage.url.as_str(), 2000),
    ];
    let held = Held::new(publisher, &subcommands).await;
    for (name, error) in [
        ("closed", "connect"),
        ("broken", "protocol"),
        ("garbage", "protocol"),
    ] {
        assert_failed(&held.call(name).expect(200).await, error);
    }
}

async fn a_destination_is_judged_again_when_it_is_called(world: &World) {
    let server = world.start().await;
    let consumer = Consumer::start().await;
    let publisher = server.publisher("acme").await;
    let held = Held::new(publisher, &[("archive", &consumer.url, 5000)]).await;
    held.call("archive").expect(200).await;
    // The operator narrows what may be called; the pipeline's versions stay as they are.
    let env = [("STATIONMASTER_ALLOWED_DESTINATIONS", "")];
    let _server = server.restart(&env).await;
    let answer = held.call("archive").expect(200).await;
    assert_failed(&answer, "destination_refused");
    assert_eq!(consumer.seen().len(), 1, "nothing was connected");
}

async fn an_unknown_name_lists_those_that_there_are(world: &World) {
    let server = world.start().await;
    let consumer = Consumer::start().await;
    let publisher = server.publisher("acme").await;
    let subcommands = [
        ("notify", consumer.url.as_str(), 5000),
        ("archive", consumer.url.as_str(), 5000),
    ];
    let held = Held::new(publisher, &subcommands).await;
    for name in ["none", "Archive", "archive%2F", "..%2Fcomplete"] {
        let answer = held.call(name).refused(404, "unknown_subcommand").await;
        let detail = answer.text("/detail");
        assert!(detail.ends_with(": `archive`, `notify`."), "{answer}");
    }
    let too_long = "x".repeat(64);
    held.call(&too_long).refused(404, "not_found").await;
    held.publisher.pipeline("bare").await;
    let (run, claim) = held.publisher.claimed_run("bare").await;
    let call = held
        .publisher
        .runner
        .post(&path(&run, "none"))
        .claim(&claim);
    let answer = call.refused(404, "unknown_subcommand").await;
    assert!(
        answer.text("/detail").contains("no subcommands"),
        "{answer}"
    );
    assert!(consumer.seen().is_empty());
}

async fn only_the_claim_of_the_very_run_will_do(world: &World) {
    let server = world.start().await;
    let consumer = Consumer::start().await;
    let subcommands = [("archive", consumer.url.as_str(), 5000)];
    let held = Held::new(server.publisher("acme").await, &subcommands).await;
    let stranger = Held::new(server.publisher("other").await, &subcommands).await;
    let (_, another) = held.publisher.claimed_run("nightly").await;
    for claim in ["", "nonsense", another.as_str(), stranger.claim.as_str()] {
        // Even a name that there is not tells nothing to whoever does not hold the run.
        for name in ["archive", "none"] {
            let call = held.call(name).header("x-stationmaster-claim", claim);
            call.refused(409, "claim_lost").await;
        }
    }
    let unclaimed = held.publisher.runner.post(&path(&held.run, "archive"));
    let answer = unclaimed.refused(400, "invalid_parameter").await;
    assert_eq!(answer.pointers(), ["/header/X-Stationmaster-Claim"]);

    // Another publisher's run is as if it were not there, also with its very claim.
    let same = |call: Call| call.header("x-request-id", "same").json(&json!({}));
    let foreign = same(held.call_as(&stranger.publisher.runner, "archive"));
    let foreign = foreign.refused(404, "not_found").await;
    let nowhere = path(&absent("run"), "archive");
    let nothing = same(stranger.publisher.runner.post(&nowhere).claim(&held.claim));
    let nothing = nothing.refused(404, "not_found").await;
    assert_eq!(fingerprint(&foreign), fingerprint(&nothing));

    let admin = held.call_as(&held.publisher.admin, "archive");
    admin.refused(403, "wrong_token_kind").await;
    held.publisher.complete(&held.run, &held.claim).await;
    held.call("archive").refused(409, "claim_lost").await;
    assert!(consumer.seen().is_empty(), "none of these went out");
}

async fn a_limited_token_reaches_its_own_pipelines_alone(world: &World) {
    let server = world.start().await;
    let consumer = Consumer::start().await;
    let publisher = server.publisher("acme").await;
    let held = Held::new(publisher, &[("archive", &consumer.url, 5000)]).await;
    held.publisher.pipeline("other").await;
    let limited = async |pipeline: &str| {
        let body = json!({"pipelines": [pipeline]});
        let (_, token) = mint(&held.publisher.admin, "runner", &body).await;
        server.user(&token)
    };
    let outside = held.call_as(&limited("other").await, "archive");
    let outside = outside.header("x-request-id", "same");
    let outside = outside.refused(404, "not_found").await;
    let nowhere = path(&absent("run"), "archive");
    let call = limited("other").await.post(&nowhere).claim(&held.claim);
    let nothing = call.header("x-request-id", "same");
    let nothing = nothing.refused(404, "not_found").await;
    assert_eq!(fingerprint(&outside), fingerprint(&nothing));
    let inside = held.call_as(&limited("nightly").await, "archive");
    assert_answered(&inside.expect(200).await, 204);
    assert_eq!(consumer.seen().len(), 1);
}

async fn a_suspended_publisher_calls_nothing(world: &World) {
    let server = world.start().await;
    let consumer = Consumer::start().await;
    let publisher = server.publisher("acme").await;
    let held = Held::new(publisher, &[("archive", &consumer.url, 5000)]).await;
    let operator = server.operator();
    let of_publisher = format!("/v1/publishers/{}", held.publisher.id);
    let suspend = operator.post(&format!("{of_publisher}/suspend"));
    suspend.expect(200).await;
    held.call("archive")
        .refused(403, "publisher_suspended")
        .await;
    assert!(consumer.seen().is_empty());
    let resume = operator.post(&format!("{of_publisher}/resume"));
    resume.json(&json!({})).expect(200).await;
    assert_answered(&held.call("archive").expect(200).await, 204);
}

async fn connections_are_used_again(world: &World) {
    let server = world.start().await;
    let consumer = Consumer::start().await;
    let accepted = Arc::new(AtomicUsize::new(0));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let target = consumer.url["http://".len()..].trim_end_matches("/hook");
    let (target, count) = (target.to_owned(), Arc::clone(&accepted));
    let wire = tokio::spawn(async move {
        while let Ok((mut inner, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            let mut outer = TcpStream::connect(&target).await.unwrap();
            tokio::spawn(async move { copy_bidirectional(&mut inner, &mut outer).await });
        }
    });
    let publisher = server.publisher("acme").await;
    let held = Held::new(publisher, &[("archive", &url, 5000)]).await;
    for _ in 0..20 {
        let call = held.call("archive").json(&json!({"file": "a.csv"}));
        assert_answered(&call.expect(200).await, 204);
    }
    assert_eq!(consumer.seen().len(), 20);
    assert_eq!(accepted.load(Ordering::SeqCst), 1, "one connection for all");
    wire.abort();
}

async fn a_publisher_has_so_many_calls_under_way(world: &World) {
    let server = world.start().await;
    let (slow, prompt) = (Consumer::start().await, Consumer::start().await);
    slow.hold_after(0);
    let busy = server.publisher("busy").await;
    let busy = Held::new(busy, &[("slow", &slow.url, 20_000)]).await;
    let other = server.publisher("other").await;
    let other = Held::new(other, &[("prompt", &prompt.url, 5000)]).await;
    let mut under_way = JoinSet::new();
    for _ in 0..64 {
        let call = busy.call("slow");
        under_way.spawn(async move { call.expect(200).await });
    }
    eventually("64 calls have arrived", LIMIT, async || {
        (slow.seen().len() == 64).then_some(())
    })
    .await;
    let refused = busy.call("slow").refused(429, "rate_limited").await;
    assert_eq!(refused.header("retry-after"), "1");
    assert_answered(&other.call("prompt").expect(200).await, 204);
    slow.release();
    while let Some(answer) = under_way.join_next().await {
        assert_answered(&answer.unwrap(), 204);
    }
    assert_eq!(slow.seen().len(), 64, "the refused one was not made");
    assert_answered(&busy.call("slow").expect(200).await, 204);
}

async fn a_bearer_that_an_endpoint_repeats_is_masked(world: &World) {
    let server = world.start().await;
    let consumer = Consumer::start().await;
    let publisher = server.publisher("acme").await;
    let secret = publisher.secret("subcommand_bearer");
    let echo = json!({"headers": {"authorization": format!("Bearer {secret}")}});
    consumer.reply_always(with_body(200, "application/json", echo.to_string()));
    let held = Held::new(publisher, &[("echo", &consumer.url, 5000)]).await;
    // The client itself fails when an answer repeats a credential.
    let answer = held.call("echo").expect(200).await;
    assert_eq!(
        answer["body"]["headers"]["authorization"],
        "Bearer [masked]"
    );
    assert_eq!(answer["body_encoding"], "json");
}

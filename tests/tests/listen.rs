//! Listening: what an endpoint would be sent, on a connection that a developer's machine opens.

use std::{
    fs::File,
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tests::{
    Consumer, Delivery, Publisher, Reply, Server, User, World, on_both_stores, on_postgres, tools,
};
use tokio::process::Child;

use crate::{tokens::mint, verifiers::verify};

on_both_stores!(
    a_listener_is_sent_what_an_endpoint_would_be,
    a_listener_ends_with_its_token_and_says_so,
    a_listener_misses_nothing_while_the_server_restarts,
    a_listener_says_what_its_consumer_answers,
    only_so_many_listen_at_once,
    a_stream_says_why_it_ends_and_can_be_resumed,
    who_stands_still_does_not_hold_up_a_stop,
    what_cannot_be_listened_to_is_said,
);
on_postgres!(a_listener_hears_of_what_happens_on_another_process);

const LIMIT: Duration = Duration::from_secs(20);

/// `stationmaster listen`, running.
struct Listening {
    child: Child,
    out: PathBuf,
    err: PathBuf,
    server: Server,
}

impl Listening {
    fn start(server: &Server, token: &str, arguments: &[&str]) -> Self {
        let home = server.site().home();
        let name = tools::word();
        let (out, err) = (
            home.join(format!("{name}.out")),
            home.join(format!("{name}.err")),
        );
        let child = server
            .site()
            .command(&[])
            .args(["listen", "--server", &server.url()])
            .args(arguments)
            .env("STATIONMASTER_TOKEN", token)
            .stdout(Stdio::from(File::create(&out).unwrap()))
            .stderr(Stdio::from(File::create(&err).unwrap()))
            .spawn()
            .unwrap();
        Self {
            child,
            out,
            err,
            server: server.clone(),
        }
    }

    async fn forwarding(
        publisher: &Publisher,
        server: &Server,
        to: &Consumer,
        types: &str,
    ) -> Self {
        let token = publisher.admin.token();
        let arguments = ["--forward", &to.url, "--event-types", types];
        let listening = Self::start(server, token, &arguments);
        listening.secret().await;
        listening
    }

    fn out(&self) -> String {
        std::fs::read_to_string(&self.out).unwrap()
    }

    fn err(&self) -> String {
        std::fs::read_to_string(&self.err).unwrap()
    }

    async fn secret(&self) -> String {
        tools::eventually("it listens", LIMIT, async || {
            assert!(
                self.err().is_empty() || self.err().starts_with("listening"),
                "{}",
                self.err()
            );
            let out = self.out();
            let line = out.lines().find_map(|l| l.strip_prefix("signing secret: "));
            line.map(str::to_owned)
        })
        .await
    }

    async fn says(&self, what: &str) {
        tools::eventually(what, LIMIT, async || {
            (self.out() + &self.err()).contains(what).then_some(())
        })
        .await;
    }

    /// Its exit code and what it said at the end; no credential may be in what it wrote.
    async fn end(&mut self) -> (Option<i32>, String) {
        let ended = tokio::time::timeout(LIMIT, self.child.wait()).await;
        let code = ended.expect("it goes on").unwrap().code();
        let all = self.out() + &self.err();
        let found = self.server.site().found_in(all.as_bytes());
        assert!(found.is_empty(), "it wrote {found:?}");
        (code, self.err())
    }

    async fn stop(&mut self) {
        let pid = i32::try_from(self.child.id().unwrap()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), Signal::TERM).unwrap();
        let (code, words) = self.end().await;
        assert_eq!(code, Some(0), "{words}");
    }
}

async fn publish(publisher: &Publisher, by: &User, event_type: &str, data: &Value) -> String {
    let body = json!({"type": event_type, "data": data});
    let by = by.with_token(publisher.runner.token());
    let call = by.post("/v1/events").json(&body);
    call.expect(202).await.text("/id")
}

fn ids(seen: &[Delivery]) -> Vec<String> {
    seen.iter()
        .map(|delivery| delivery.id().to_owned())
        .collect()
}

async fn a_listener_is_sent_what_an_endpoint_would_be(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let stranger = server.publisher("other").await;
    publisher.pipeline("nightly").await;
    let (there, here) = (Consumer::start().await, Consumer::start().await);
    let types = ["order.*", "run.succeeded", "stationmaster.*"];
    let endpoint = publisher.endpoint(&there, &types).await;
    publish(&publisher, &publisher.runner, "order.before", &json!(1)).await;
    let mut listening = Listening::forwarding(&publisher, &server, &here, &types.join(",")).await;
    let secret = listening.secret().await;

    let odd = json!({"text": "line\nbreak, \"quotes\", ünïcode \u{2028} and \\", "n": 1.5e3});
    let long = json!({"text": "x\n".repeat(60_000)});
    for data in [&odd, &long] {
        publish(&publisher, &publisher.runner, "order.paid", data).await;
        publish(&publisher, &publisher.runner, "stock.low", data).await;
        publish(&stranger, &stranger.runner, "order.paid", data).await;
    }
    let test = format!("/v1/webhook-endpoints/{endpoint}/test");
    publisher.admin.post(&test).expect(202).await;
    publisher.finished_run("nightly").await;
    let last = publish(&publisher, &publisher.runner, "order.last", &json!({})).await;
    let is_last = |delivery: &Delivery| delivery.id() == last;
    here.find("the last", is_last).await;
    let there = {
        there.find("the last", is_last).await;
        there.count(6).await
    };

    let here = here.count(4).await;
    let mut types: Vec<String> = here.iter().map(Delivery::event_type).collect();
    types.sort();
    assert_eq!(
        types,
        ["order.last", "order.paid", "order.paid", "run.succeeded"]
    );
    for delivery in &here {
        let same = there.iter().find(|other| other.id() == delivery.id());
        assert_eq!(same.unwrap().body, delivery.body, "the same bytes");
        assert_eq!(verify(&secret, delivery), Ok(()));
        let own = publisher.secret("webhook_signing");
        assert_eq!(verify(&own, delivery), Err("no_match"));
        assert_eq!(verify(&secret, same.unwrap()), Err("no_match"));
        assert_eq!(delivery.header("content-type"), "application/json");
        assert_eq!(delivery.header("authorization"), "");
    }
    let written = publisher.admin.all("/v1/deliveries").await;
    assert_eq!(written.len(), there.len(), "none for the listener");
    let listed = publisher.admin.all("/v1/webhook-endpoints").await;
    assert_eq!(listed.len(), 1);
    listening.stop().await;
}

async fn a_listener_ends_with_its_token_and_says_so(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let consumer = Consumer::start().await;
    let (id, token) = mint(&publisher.admin, "admin", &json!({"name": "laptop"})).await;
    let forward = ["--forward", consumer.url.as_str()];
    let mut first = Listening::start(&server, &token, &forward);
    let mut second = Listening::start(&server, publisher.admin.token(), &[]);
    assert_ne!(
        first.secret().await,
        second.secret().await,
        "each token's own"
    );

    let path = format!("/v1/publishers/me/tokens/admin/{id}");
    publisher.admin.delete(&path).expect(204).await;
    let late = publish(&publisher, &publisher.runner, "order.paid", &json!({})).await;
    let (code, words) = first.end().await;
    assert_eq!(code, Some(1));
    assert!(words.contains("The token is no longer good"), "{words}");
    second.says(&late).await;
    assert!(
        !ids(&consumer.seen()).contains(&late),
        "handed out too late"
    );
    let mut again = Listening::start(&server, &token, &[]);
    let (code, words) = again.end().await;
    assert_eq!(code, Some(1));
    assert!(words.contains("refused the token (401)"), "{words}");

    let operator = server.operator();
    let suspend = format!("/v1/publishers/{}/suspend", publisher.id);
    operator.post(&suspend).expect(200).await;
    let (code, words) = second.end().await;
    assert_eq!(code, Some(1));
    assert!(words.contains("The publisher is suspended"), "{words}");
}

async fn a_listener_misses_nothing_while_the_server_restarts(world: &World) {
    let address = tools::lasting_address();
    let settings = [("STATIONMASTER_LISTEN", address.as_str())];
    let server = world.start_with(&settings).await;
    let publisher = server.publisher("acme").await;
    let consumer = Consumer::start().await;
    let before = publish(&publisher, &publisher.runner, "order.before", &json!({})).await;
    let mut listening = Listening::forwarding(&publisher, &server, &consumer, "order.*").await;
    let secret = listening.secret().await;
    let mut wanted = Vec::new();
    for _ in 0..5 {
        wanted.push(publish(&publisher, &publisher.runner, "order.paid", &json!({})).await);
    }
    consumer.count(5).await;
    let begun = Instant::now();
    let server = server.restart(&settings).await;
    assert!(
        begun.elapsed() < Duration::from_secs(15),
        "it waited for its listener"
    );
    for _ in 0..5 {
        wanted.push(publish(&publisher, &publisher.runner, "order.paid", &json!({})).await);
    }
    consumer.count(10).await;
    // Killed it says nothing.
    server.kill().await;
    let server = server.site().start(&settings).await;
    for _ in 0..5 {
        wanted.push(publish(&publisher, &publisher.runner, "order.paid", &json!({})).await);
    }
    consumer.count(15).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let seen = consumer.seen();
    let mut found = ids(&seen);
    wanted.sort();
    found.sort();
    assert!(found.is_sorted_by(|a, b| a < b), "each once: {found:?}");
    // What was made shortly before the first connection may have been committed after it.
    found.retain(|id| *id != before);
    assert_eq!(found, wanted);
    for delivery in &seen {
        assert_eq!(verify(&secret, delivery), Ok(()), "one secret throughout");
    }
    assert_eq!(listening.out().matches("signing secret").count(), 1);
    assert_eq!(listening.err().matches("connected again").count(), 2);
    listening.stop().await;
    drop(server);
}

async fn a_listener_says_what_its_consumer_answers(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let consumer = Consumer::start().await;
    let elsewhere = Consumer::start().await;
    let mut redirect = Reply::status(307);
    redirect.headers.push(("location", elsewhere.url.clone()));
    consumer.reply_next([Reply::status(200), Reply::status(500), redirect]);
    let token = publisher.admin.token();
    let forward = ["--forward", consumer.url.as_str(), "--print"];
    let mut listening = Listening::start(&server, token, &forward);
    listening.secret().await;
    for status in [200, 500, 307] {
        let id = publish(
            &publisher,
            &publisher.runner,
            "order.paid",
            &json!({"to": status}),
        )
        .await;
        listening
            .says(&format!("order.paid  {id}  {status} in "))
            .await;
        listening.says(&format!(r#"{{"to":{status}}}"#)).await;
    }
    assert_eq!(elsewhere.seen().len(), 0, "redirects are not followed");
    assert_eq!(consumer.seen().len(), 3, "nothing is tried again");
    listening.stop().await;
    let nobody = ["--forward", "http://127.0.0.1:9/"];
    let mut listening = Listening::start(&server, token, &nobody);
    listening.secret().await;
    let id = publish(&publisher, &publisher.runner, "order.paid", &json!({})).await;
    listening
        .says(&format!("{id}  failed: no connection"))
        .await;
    listening.stop().await;
}

/// A stream that is being read.
struct Stream {
    response: reqwest::Response,
    text: String,
}

impl Stream {
    async fn open(user: &User, query: &str, after: Option<&str>) -> Self {
        let mut call = user.get(&format!("/v1/listen{query}"));
        if let Some(after) = after {
            call = call.header("last-event-id", after);
        }
        let response = call.open().await;
        assert_eq!(response.status(), 200);
        Self {
            response,
            text: String::new(),
        }
    }

    /// The next message: its name and its data; `None` at the end.
    async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            if let Some((message, rest)) = self.text.split_once("\n\n") {
                let field = |name: &str| {
                    let mut lines = message.lines();
                    lines.find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned()))
                };
                let found = field("data:").map(|data| {
                    let data: Value = serde_json::from_str(&data).unwrap();
                    assert_eq!(field("id:").as_deref(), data["place"].as_str(), "{message}");
                    (field("event:").unwrap(), data)
                });
                let rest = rest.to_owned();
                self.text = rest;
                if found.is_some() {
                    return found;
                }
                continue;
            }
            let chunk = tokio::time::timeout(LIMIT, self.response.chunk()).await;
            let bytes = chunk.expect("the stream is silent").unwrap()?;
            self.text.push_str(std::str::from_utf8(&bytes).unwrap());
        }
    }
}

async fn only_so_many_listen_at_once(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let mut streams = Vec::new();
    for _ in 0..10 {
        streams.push(Stream::open(&publisher.admin, "", None).await);
    }
    publisher
        .admin
        .get("/v1/listen")
        .refused(409, "quota_exceeded")
        .await;
    let mut one_more = Listening::start(&server, publisher.admin.token(), &[]);
    let (code, words) = one_more.end().await;
    assert_eq!(code, Some(1));
    assert!(words.contains("At most 10 listeners"), "{words}");
    let other = server.publisher("other").await;
    Stream::open(&other.admin, "", None).await;
    streams.pop();
    tools::eventually("there is a place again", LIMIT, async || {
        let call = publisher.admin.get("/v1/listen?seconds=1");
        (call.open().await.status() == 200).then_some(())
    })
    .await;
}

async fn a_stream_says_why_it_ends_and_can_be_resumed(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let mut stream = Stream::open(&publisher.admin, "?event_types=a,b.*", None).await;
    let (name, first) = stream.next().await.unwrap();
    assert_eq!(name, "listening");
    assert_eq!(first["event_types"], json!(["a", "b.*"]));
    let mut made = Vec::new();
    for event_type in ["a", "b", "b.c", "c"] {
        made.push(publish(&publisher, &publisher.runner, event_type, &json!({})).await);
    }
    let mut places = Vec::new();
    for wanted in [&made[0], &made[2]] {
        let (name, delivery) = stream.next().await.unwrap();
        assert_eq!(
            (name.as_str(), &delivery["id"]),
            ("delivery", &json!(wanted))
        );
        places.push(delivery["place"].as_str().unwrap().to_owned());
    }
    drop(stream);
    // What came shortly before comes again, but nothing from before the first stream.
    let last = made[3].clone();
    let places = [first["place"].as_str().unwrap(), &places[1], &last];
    for place in places {
        let mut stream = Stream::open(&publisher.admin, "?seconds=1", Some(place)).await;
        let (_, again) = stream.next().await.unwrap();
        assert_eq!(again["secret"], first["secret"]);
        let mut found = Vec::new();
        for _ in &made {
            let (_, delivery) = stream.next().await.unwrap();
            found.push(delivery["id"].as_str().unwrap().to_owned());
        }
        found.sort();
        made.sort();
        assert_eq!(found, made);
        let (name, end) = stream.next().await.unwrap();
        assert_eq!(
            (name.as_str(), &end["reason"]),
            ("end", &json!("time_over"))
        );
        assert!(stream.next().await.is_none());
    }
    let mut stream = Stream::open(&publisher.admin, "", None).await;
    stream.next().await.unwrap();
    server.terminate();
    let (name, end) = stream.next().await.unwrap();
    assert_eq!((name.as_str(), &end["reason"]), ("end", &json!("stopping")));
    let begun = Instant::now();
    assert!(server.wait().await.success());
    assert!(begun.elapsed() < Duration::from_secs(20));
}

async fn who_stands_still_does_not_hold_up_a_stop(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let mut stream = Stream::open(&publisher.admin, "", None).await;
    stream.next().await.unwrap();
    // More than the two ends of a connection keep.
    let data = json!("x".repeat(250_000));
    let one = json!({"type": "order.paid", "data": data});
    let events = json!({"events": vec![one; 15]});
    for _ in 0..4 {
        publisher
            .runner
            .post("/v1/events")
            .json(&events)
            .expect(202)
            .await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let begun = Instant::now();
    assert!(server.stop().await.success());
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "{:?}",
        begun.elapsed()
    );
}

async fn what_cannot_be_listened_to_is_said(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let consumer = Consumer::start().await;
    let root = consumer.url.replace("/hook", "");
    let wrong = ["--server", "http://127.0.0.1:9"];
    let other = ["--server", root.as_str()];
    let filter = ["--event-types", "Order"];
    let forward = ["--forward", "ftp://127.0.0.1/"];
    let runner = publisher.runner.token();
    for (token, arguments, wanted, words) in [
        (runner, &[][..], 1, "This takes an admin token"),
        ("x", &wrong, 1, "can't be reached"),
        ("x", &other, 1, "(204)"),
        ("x", &filter, 2, "--event-types takes"),
        ("x", &forward, 2, "--forward: the URL's scheme"),
        ("", &[], 2, "STATIONMASTER_TOKEN does not hold a credential"),
    ] {
        let mut command = server.site().command(&[]);
        let url = server.url();
        command.arg("listen");
        if !arguments.contains(&"--server") {
            command.args(["--server", &url]);
        }
        let output = command
            .args(arguments)
            .env("STATIONMASTER_TOKEN", token)
            .output();
        let output = tokio::time::timeout(LIMIT, output).await.unwrap().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(wanted), "{said}");
        assert!(said.contains(words), "{said}");
        assert!(!said.contains(runner), "{said}");
    }
}

async fn a_listener_hears_of_what_happens_on_another_process(world: &World) {
    let site = world.site().await;
    let (one, two) = (site.start(&[]).await, site.start_beside(&[]).await);
    let publisher = one.publisher("acme").await;
    let consumer = Consumer::start().await;
    let mut listening = Listening::forwarding(&publisher, &two, &consumer, "*").await;
    let mut wanted = Vec::new();
    let mut longest = Duration::ZERO;
    for _ in 0..20 {
        let begun = Instant::now();
        let id = publish(&publisher, &publisher.runner, "order.paid", &json!({})).await;
        consumer
            .find("it arrives", |delivery| delivery.id() == id)
            .await;
        longest = longest.max(begun.elapsed());
        wanted.push(id);
    }
    // Both at once: commits overtake each other.
    let mut asked = Vec::new();
    for at in 0..60 {
        let by = if at % 2 == 0 {
            publisher.runner.clone()
        } else {
            two.anon()
        };
        let publisher = publisher.clone();
        asked.push(tokio::spawn(async move {
            publish(&publisher, &by, "order.paid", &json!({"at": at})).await
        }));
    }
    for one in asked {
        wanted.push(one.await.unwrap());
    }
    let mut found = ids(&consumer.count(wanted.len()).await);
    found.sort();
    wanted.sort();
    assert_eq!(found, wanted);
    assert!(longest < Duration::from_secs(5), "{longest:?}");
    listening.stop().await;
}

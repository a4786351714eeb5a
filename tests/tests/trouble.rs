//! Trouble of our own: a row that can't be read, a clock that is set, no descriptors left. It hurts
//! nobody who has no part in it, and leaves nothing standing.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use serde_json::{Value, json};
use tests::{
    Consumer, Publisher, Reply, Server, User, World, on_both_stores, on_postgres, on_sqlite, tools,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

on_both_stores!(
    a_damaged_row_hurts_its_owner_alone,
    an_event_that_cannot_be_read_holds_up_no_other,
    a_clock_that_is_set_back_holds_nothing_up,
);

on_sqlite!(without_descriptors_no_delivery_is_given_up);

on_postgres!(
    a_cooldown_is_heard_by_a_process_that_was_left_alone,
    clocks_that_differ_share_the_work,
);

const LIMIT: Duration = Duration::from_secs(30);

async fn endpoint_of(publisher: &Publisher, url: &str, more: Value) -> String {
    let mut body = json!({"url": url, "event_types": ["a.*"]});
    for (name, value) in more.as_object().into_iter().flatten() {
        body[name] = value.clone();
    }
    let call = publisher.admin.post("/v1/webhook-endpoints").json(&body);
    call.expect(201).await.text("/id")
}

async fn publish(publisher: &Publisher, event_type: &str) -> String {
    let body = json!({"type": event_type, "data": {"n": 1}});
    let call = publisher.admin.post("/v1/events").json(&body);
    call.expect(202).await.text("/id")
}

async fn endpoint(admin: &User, id: &str) -> Value {
    let path = format!("/v1/webhook-endpoints/{id}");
    admin.get(&path).expect(200).await.json().clone()
}

/// The endpoint's first delivery with its attempts, once `done` holds of it.
async fn delivery_when(admin: &User, endpoint: &str, done: impl Fn(&Value) -> bool) -> Value {
    let list = format!("/v1/deliveries?endpoint={endpoint}&limit=1");
    tools::eventually("the delivery gets there", LIMIT, async || {
        let list = admin.get(&list).expect(200).await;
        let id = list["items"][0]["id"].as_str()?.to_owned();
        let one = admin.get(&format!("/v1/deliveries/{id}")).expect(200).await;
        done(one.json()).then(|| one.json().clone())
    })
    .await
}

async fn a_damaged_row_hurts_its_owner_alone(world: &World) {
    let server = world.start().await;
    let (acme, beta) = (
        server.publisher("acme").await,
        server.publisher("beta").await,
    );
    let site = server.site();
    site.tolerate("a stored row can't be read");
    let consumer = Consumer::start().await;
    let (secret, headers, filters) = (
        endpoint_of(&acme, &consumer.url, json!({})).await,
        endpoint_of(&acme, &consumer.url, json!({"description": "h"})).await,
        endpoint_of(&acme, &consumer.url, json!({"description": "f"})).await,
    );
    let path = format!("/v1/webhook-endpoints/{secret}/secrets");
    acme.admin.post(&path).json(&json!({})).expect(201).await;
    let other = Consumer::start().await;
    endpoint_of(&beta, &other.url, json!({})).await;
    let bytes = if site.database.is_some() {
        "'\\x00'"
    } else {
        "x'00'"
    };
    let damage = format!("UPDATE endpoint_secrets SET sealed = {bytes}");
    assert_eq!(site.execute(&damage).await, 1);
    for (column, text, of) in [("headers", "{", "h"), ("event_types", "[", "f")] {
        let damage =
            format!("UPDATE webhook_endpoints SET {column} = '{text}' WHERE description = '{of}'");
        assert_eq!(site.execute(&damage).await, 1);
    }

    publish(&acme, "a.b").await;
    publish(&beta, "a.b").await;
    other.event("a.b").await;
    // Those that can't be sent to say so, in a word.
    for id in [&secret, &headers] {
        let failed = |one: &Value| one["attempts"][0]["error"] == "endpoint_unreadable";
        delivery_when(&acme.admin, id, failed).await;
        let shown = endpoint(&acme.admin, id).await;
        assert_eq!(shown["health"]["state"], "unreadable", "{shown}");
    }
    let shown = endpoint(&acme.admin, &filters).await;
    assert_eq!(shown["health"]["state"], "unreadable", "{shown}");
    assert!(consumer.seen().is_empty(), "nothing went out unsigned");
    let figures = server.metrics().await;
    assert!(
        figures.contains("stationmaster_unreadable_rows_total{what=\"endpoint\"}"),
        "{figures}"
    );
    // Its owner mends it.
    let path = format!("/v1/webhook-endpoints/{filters}");
    let mended = json!({"event_types": ["a.*"]});
    acme.admin.patch(&path).json(&mended).expect(200).await;
    publish(&acme, "a.c").await;
    consumer.event("a.c").await;
}

async fn an_event_that_cannot_be_read_holds_up_no_other(world: &World) {
    let server = world.start().await;
    let beta = server.publisher("beta").await;
    let site = server.site();
    site.tolerate("a stored row can't be read");
    let spare = Consumer::start().await;
    spare.reply_next([Reply::status(500)]);
    let schedule = json!({"retry_schedule_seconds": [1]});
    let id = endpoint_of(&beta, &spare.url, schedule).await;
    publish(&beta, "a.d").await;
    spare.event("a.d").await;
    let damage = "UPDATE events SET body = '' WHERE event_type = 'a.d'";
    assert_eq!(site.execute(damage).await, 1);
    let failed = |one: &Value| one["attempts"][1]["error"] == "event_unreadable";
    delivery_when(&beta.admin, &id, failed).await;
    publish(&beta, "a.e").await;
    spare.event("a.e").await;
}

/// Answers 500 the first time and 204 after that, and never keeps a connection.
async fn closing_receiver() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let mut first = true;
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut seen = Vec::new();
            while !seen.windows(4).any(|four| four == b"\r\n\r\n") {
                if stream.read_buf(&mut seen).await.unwrap_or(0) == 0 {
                    break;
                }
            }
            let status = if first { "500 No" } else { "204 Yes" };
            first = false;
            let answer =
                format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            // The sender may have gone.
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    });
    url
}

/// Lets the server open nothing more, until this is dropped.
pub(crate) struct NoDescriptors(Pid, Rlimit);

impl NoDescriptors {
    pub(crate) fn of(server: &Server) -> Self {
        let pid = Pid::from_raw(i32::try_from(server.pid()).unwrap()).unwrap();
        let hard = getrlimit(Resource::Nofile).maximum;
        let none = Rlimit {
            current: Some(3),
            maximum: hard,
        };
        let before = prlimit(Some(pid), Resource::Nofile, none).unwrap();
        Self(pid, before)
    }
}

impl Drop for NoDescriptors {
    fn drop(&mut self) {
        let before = Rlimit {
            current: self.1.current,
            maximum: self.1.maximum,
        };
        let _ = prlimit(Some(self.0), Resource::Nofile, before);
    }
}

async fn without_descriptors_no_delivery_is_given_up(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    server.site().tolerate("no file descriptor");
    server.site().tolerate("Too many open files");
    server.site().tolerate("unable to open database file");
    let url = closing_receiver().await;
    let two_tries = json!({"retry_schedule_seconds": [2]});
    let id = endpoint_of(&publisher, &url, two_tries).await;
    publish(&publisher, "a.b").await;
    delivery_when(&publisher.admin, &id, |one| one["attempt_count"] == 1).await;
    let none = NoDescriptors::of(&server);
    // The last try is due, and can't be made.
    tools::eventually("a shortage is told of", LIMIT, async || {
        let told = server.log().into_iter().find(|line| {
            let text = line["message"].as_str().unwrap_or_default();
            text.contains("no file descriptor")
        });
        if told.is_none() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        told
    })
    .await;
    drop(none);
    let done = delivery_when(&publisher.admin, &id, |one| one["status"] != "pending").await;
    assert_eq!(done["status"], "succeeded", "{done}");
    assert_eq!(done["attempt_count"], 2, "{done}");
    let shown = endpoint(&publisher.admin, &id).await;
    assert_eq!(shown["health"]["state"], "healthy", "{shown}");
    let figures = server.metrics().await;
    assert!(figures.contains("stationmaster_own_shortages_total"));
}

/// The library that lets a process see another time.
fn faketime() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("STATIONMASTER_TEST_FAKETIME") {
        return Some(path.into());
    }
    let known = ["x86_64", "aarch64"]
        .map(|machine| format!("/usr/lib/{machine}-linux-gnu/faketime/libfaketime.so.1"));
    known
        .into_iter()
        .map(PathBuf::from)
        .find(|path| path.exists())
}

/// A server that sees the time of a file, which says how far it is off.
async fn at_the_time_of(world: &World, name: &str, offset: &str) -> Option<(Server, PathBuf)> {
    let Some(library) = faketime() else {
        tests::skip(name, "libfaketime is not installed");
        return None;
    };
    let site = world.site().await;
    let clock = site.home().join("clock");
    std::fs::write(&clock, offset).unwrap();
    let server = site.start(&settings(&library, &clock)).await;
    Some((server, clock))
}

fn settings<'a>(library: &'a Path, clock: &'a Path) -> [(&'a str, &'a str); 4] {
    [
        ("LD_PRELOAD", library.to_str().unwrap()),
        ("FAKETIME_TIMESTAMP_FILE", clock.to_str().unwrap()),
        ("FAKETIME_NO_CACHE", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
    ]
}

async fn finished_jobs(server: &Server) -> Value {
    let jobs = server.operator().get("/v1/jobs").expect(200).await;
    let items = jobs["items"].as_array().unwrap().clone();
    let found = items.into_iter().find(|job| job["name"] == "leases");
    found.map_or(Value::Null, |job| job["finished_at"].clone())
}

async fn a_clock_that_is_set_back_holds_nothing_up(world: &World) {
    let name = "a_clock_that_is_set_back_holds_nothing_up";
    let Some((server, clock)) = at_the_time_of(world, name, "+0").await else {
        return;
    };
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;
    let (run, claim) = publisher.claimed_run("nightly").await;
    let consumer = Consumer::start().await;
    consumer.reply_next([Reply::status(500)]);
    let waits = json!({"retry_schedule_seconds": [4], "ordered": true});
    let id = endpoint_of(&publisher, &consumer.url, waits).await;
    publish(&publisher, "a.b").await;
    delivery_when(&publisher.admin, &id, |one| one["attempt_count"] == 1).await;
    let before = finished_jobs(&server).await;
    std::fs::write(&clock, "-3600").unwrap();
    // Not an hour later.
    let done = delivery_when(&publisher.admin, &id, |one| one["status"] == "succeeded").await;
    assert_eq!(done["attempt_count"], 2, "{done}");
    publish(&publisher, "a.c").await;
    consumer.event("a.c").await;
    // What is held is held.
    let path = format!("/v1/runs/{run}/heartbeat");
    let call = publisher.runner.post(&path).claim(&claim).json(&json!({}));
    call.expect(200).await;
    tools::eventually("a job runs", LIMIT, async || {
        (finished_jobs(&server).await != before).then_some(())
    })
    .await;
    server.anon().get("/readyz").expect(200).await;
}

/// A minute apart, and each does its part: by the database's clock.
async fn clocks_that_differ_share_the_work(world: &World) {
    let name = "clocks_that_differ_share_the_work";
    let Some((one, _clock)) = at_the_time_of(world, name, "-60").await else {
        return;
    };
    let two = one.site().start_beside(&[]).await;
    let publisher = one.publisher("acme").await;
    let consumer = Consumer::start().await;
    endpoint_of(&publisher, &consumer.url, json!({})).await;
    for server in [&one, &two, &one, &two] {
        let call = server.user(publisher.admin.token());
        let body = json!({"type": "a.b", "data": {}});
        call.post("/v1/events").json(&body).expect(202).await;
    }
    let all = consumer.count(4).await;
    let mut times: Vec<domain::Timestamp> = all
        .iter()
        .map(|one| one.json()["timestamp"].as_str().map(str::to_owned).unwrap())
        .map(|text| domain::Timestamp::parse(&text).unwrap())
        .collect();
    times.sort();
    let apart = times[3].since(times[0]);
    assert!(apart < Duration::from_secs(30), "{apart:?}");
}

async fn a_cooldown_is_heard_by_a_process_that_was_left_alone(world: &World) {
    let site = world.site().await;
    let one = site.start(&[]).await;
    let two = site.start_beside(&[]).await;
    let publisher = one.publisher("acme").await;
    let (accounts, gateway) = crate::resolving::house(&publisher, &["one", "two"]).await;
    let there = two.user(gateway.token());
    // Asked once, so that its caches have had no reason to tidy up and count.
    let none = json!({});
    assert_eq!(crate::resolving::lent(&there, &none).await, accounts[0]);
    let more = json!({"retry_after": 600});
    crate::resolving::report(&gateway, &accounts[0], "rate_limited", more).await;
    tools::eventually("the other has heard", Duration::from_secs(5), async || {
        let lent = crate::resolving::lent(&there, &none).await;
        (lent == accounts[1]).then_some(())
    })
    .await;
}

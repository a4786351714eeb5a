//! SIGTERM in the midst of trouble: whatever hangs, the process ends within its half minute, and what
//! was acknowledged is there and goes on after the next start.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tests::{Consumer, Proxy, Publisher, Server, User, World, on_both_stores, on_postgres, tools};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinHandle,
};

use crate::{
    fan_outs, schemas,
    silence::{self, END, House, Load},
    trouble::NoDescriptors,
};

on_both_stores!(
    whatever_callers_and_receivers_hold_does_not_hold_up_a_stop,
    a_stop_while_all_is_busy_loses_nothing,
    a_stop_without_descriptors_loses_nothing,
);
on_postgres!(
    a_stop_with_a_store_in_trouble_loses_nothing,
    a_stop_without_a_database_waits_for_it_only_shortly,
);

const LIMIT: Duration = Duration::from_secs(30);

/// Stops it by one signal; answers whether it ended by itself with everything done.
async fn stop(server: &Server) -> bool {
    let since = Instant::now();
    server.terminate();
    let status = server.wait().await;
    assert!(since.elapsed() < END, "after {:?}", since.elapsed());
    status.success()
}

async fn endpoint(publisher: &Publisher, url: &str) -> String {
    let body = json!({
        "url": url, "event_types": ["a.*"], "retry_schedule_seconds": [1, 1, 1, 1, 1, 1],
    });
    let call = publisher.admin.post("/v1/webhook-endpoints").json(&body);
    call.expect(201).await.text("/id")
}

/// A receiver that begins to answer and never comes to an end, until it is told to.
struct Trickle {
    url: String,
    asked: Arc<AtomicUsize>,
    in_full: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Trickle {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let (asked, in_full) = (Arc::new(AtomicUsize::new(0)), Arc::default());
        let (count, full) = (Arc::clone(&asked), Arc::clone(&in_full));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (count, full) = (Arc::clone(&count), Arc::clone(&full));
                tokio::spawn(Self::answer(stream, count, full));
            }
        });
        Self {
            url,
            asked,
            in_full,
            task,
        }
    }

    async fn answer(mut stream: TcpStream, count: Arc<AtomicUsize>, full: Arc<AtomicBool>) {
        let mut seen = Vec::new();
        while !seen.windows(4).any(|four| four == b"\r\n\r\n") {
            if stream.read_buf(&mut seen).await.unwrap_or(0) == 0 {
                return;
            }
        }
        count.fetch_add(1, Ordering::SeqCst);
        let answer = b"HTTP/1.1 204 Yes\r\nconnection: close\r\n\r\n";
        if full.load(Ordering::SeqCst) {
            let _ = stream.write_all(answer).await;
            return;
        }
        // A byte of the head at a time: one for each second, so that it is longer than any wait.
        for byte in answer {
            if stream.write_all(&[*byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    async fn asked(&self, count: usize) {
        tools::eventually("the receiver is asked", LIMIT, async || {
            (self.asked.load(Ordering::SeqCst) >= count).then_some(())
        })
        .await;
    }
}

impl Drop for Trickle {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn address(server: &Server) -> std::net::SocketAddr {
    let url = server.url();
    url.trim_start_matches("http://").parse().unwrap()
}

/// A request whose body is asked for, and of which a part has come.
async fn unfinished(server: &Server, user: &User) -> TcpStream {
    let mut stream = TcpStream::connect(address(server)).await.unwrap();
    let head = format!(
        "POST /v1/events HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\
         content-type: application/json\r\ncontent-length: 4000\r\nexpect: 100-continue\r\n\r\n",
        user.token(),
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut word = [0; 12];
    stream.read_exact(&mut word).await.unwrap();
    assert_eq!(&word, b"HTTP/1.1 100");
    stream.write_all(b"{").await.unwrap();
    stream
}

/// A request whose answer has begun to come, and is not read.
async fn unread(server: &Server, user: &User) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(address(server)).await.unwrap();
    let head = format!(
        "GET /v1/events?limit=200 HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\r\n",
        user.token(),
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut word = [0; 12];
    stream.read_exact(&mut word).await.unwrap();
    assert_eq!(&word, b"HTTP/1.1 200");
    stream
}

/// What a stream has said so far, which is something.
async fn open(call: tests::Call) -> reqwest::Response {
    let mut response = call.open().await;
    assert_eq!(response.status(), 200);
    let first = response.chunk().await.unwrap();
    assert!(first.is_some_and(|first| !first.is_empty()));
    response
}

async fn whatever_callers_and_receivers_hold_does_not_hold_up_a_stop(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;
    publisher.pipeline("idle").await;
    let (mute, trickle) = (Consumer::start().await, Trickle::start().await);
    mute.hold_after(0);
    for url in [&mute.url, &trickle.url] {
        endpoint(&publisher, url).await;
    }
    let event = json!({"type": "a.b", "data": {"n": 1}});
    let event = publisher.admin.post("/v1/events").json(&event);
    let event = event.expect(202).await.text("/id");
    let large = json!({"type": "large", "data": "x".repeat(250_000)});
    let large = json!({"events": vec![large; 15]});
    let large = publisher.admin.post("/v1/events").json(&large);
    large.expect(202).await;
    let run = publisher.run("nightly").await;
    let path = format!("/v1/runs/{run}/stream");
    let streams = [
        open(publisher.runner.get(&path)).await,
        open(publisher.admin.get("/v1/listen")).await,
    ];
    let wait = json!({"wait_seconds": 60, "pipelines": ["idle"]});
    let claim = publisher.runner.post("/v1/runs/claim").json(&wait);
    let claim = tokio::spawn(async move { claim.answer().await });
    let mut unread = unread(&server, &publisher.admin).await;
    let unfinished = unfinished(&server, &publisher.admin).await;
    mute.count(1).await;
    trickle.asked(1).await;
    assert!(!claim.is_finished(), "it waits");
    assert!(stop(&server).await, "all of it was ended in good order");

    let claim = claim.await.unwrap();
    assert_eq!(
        (claim.status, &claim["items"]),
        (200, &json!([])),
        "{claim}"
    );
    let mut rest = Vec::new();
    let _ = unread.read_to_end(&mut rest).await;
    assert!(
        rest.len() < 15 * 250_000,
        "it was not read, and was given up"
    );
    drop((streams, unfinished));
    mute.release();
    trickle.in_full.store(true, Ordering::SeqCst);
    let (before, asked) = (mute.seen().len(), trickle.asked.load(Ordering::SeqCst));
    let _again = server.site().start(&[]).await;
    mute.count(before + 1).await;
    assert!(mute.seen().iter().all(|one| one.id() == event));
    trickle.asked(asked + 1).await;
    assert_eq!(publisher.admin.all("/v1/events?type=large").await.len(), 15);
    let path = format!("/v1/runs/{run}");
    publisher.runner.get(&path).expect(200).await;
    let path = format!("/v1/deliveries?event={event}&status=pending");
    tools::eventually("all is delivered", LIMIT, async || {
        let pending = publisher.admin.get(&path).expect(200).await;
        (pending["items"] == json!([])).then_some(())
    })
    .await;
}

/// Creates runs with inputs that are costly to check, until the server is gone; answers those that
/// were acknowledged.
fn checks(publisher: &Publisher, body: &Value) -> JoinHandle<Vec<String>> {
    let (runner, body) = (publisher.runner.clone(), body.clone());
    tokio::spawn(async move {
        let mut acknowledged = Vec::new();
        loop {
            let call = runner.post("/v1/pipelines/costly/runs").json(&body);
            match call.send().await {
                Ok(answer) if answer.status == 201 => acknowledged.push(answer.text("/id")),
                Ok(answer) => assert!([429, 503].contains(&answer.status), "{answer}"),
                Err(_) => return acknowledged,
            }
        }
    })
}

async fn a_stop_while_all_is_busy_loses_nothing(world: &World) {
    let mut server = world.start().await;
    let (acme, beta) = (
        server.publisher("acme").await,
        server.publisher("beta").await,
    );
    let (consumer, rest) = (Consumer::start().await, Consumer::start().await);
    fan_outs::endpoint(&acme, &consumer, &json!({})).await;
    fan_outs::crowd(&acme, &rest).await;
    let body = schemas::costly(&beta).await;
    let (mut events, mut runs, mut met) = (Vec::new(), Vec::new(), false);
    // Until a stop met it in the middle: some is written and some is not.
    while !met {
        let first = beta.runner.post("/v1/pipelines/costly/runs").json(&body);
        runs.push(first.expect(201).await.text("/id"));
        let checks = [checks(&beta, &body), checks(&beta, &body)];
        for _ in 0..3 {
            events.extend(fan_outs::publish(&acme, 100).await);
        }
        tools::eventually("it has begun", LIMIT, async || {
            let begun = server.site().count("fan_outs WHERE done > 0").await > 0;
            (begun || server.site().count("fan_outs").await == 0).then_some(())
        })
        .await;
        assert!(stop(&server).await, "all of it was ended in good order");
        for checks in checks {
            runs.extend(checks.await.unwrap());
        }
        met = server.site().count("fan_outs").await > 0;
        server = server.site().start(&[]).await;
    }
    fan_outs::spread(&server).await;
    let all = i64::try_from(events.len() * fan_outs::ENDPOINTS).unwrap();
    let pairs = "(SELECT DISTINCT event_id, endpoint_id FROM deliveries) pairs";
    assert_eq!(server.site().count("deliveries").await, all);
    assert_eq!(server.site().count(pairs).await, all, "each once");
    let there = beta.runner.all("/v1/runs").await;
    for id in runs {
        assert!(there.iter().any(|run| run["id"] == *id), "{id} is lost");
    }
    tools::eventually("all has arrived", LIMIT, async || {
        let seen = consumer.seen();
        let arrived = |id: &String| seen.iter().any(|one| one.id() == id);
        events.iter().all(arrived).then_some(())
    })
    .await;
}

async fn a_stop_without_descriptors_loses_nothing(world: &World) {
    let server = world.start().await;
    for words in [
        "descriptor",
        "open files",
        "unable to open database file",
        "store",
    ] {
        server.site().tolerate(words);
    }
    let publisher = server.publisher("acme").await;
    let consumer = Consumer::start().await;
    consumer.hold_after(0);
    endpoint(&publisher, &consumer.url).await;
    // On one connection, since there will be no other.
    let client = tests::keeping_client();
    let publish = async || {
        let body = json!({"type": "a.b", "data": {"n": 1}});
        let answer = client
            .post(format!("{}/v1/events", server.url()))
            .bearer_auth(publisher.admin.token())
            .header("content-type", "application/json")
            .body(body.to_string())
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 202);
        let answer: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
        answer["id"].as_str().unwrap().to_owned()
    };
    let first = publish().await;
    consumer.count(1).await;
    let none = NoDescriptors::of(&server);
    let second = publish().await;
    tools::eventually("a shortage is told of", LIMIT, async || {
        let told = server.log().into_iter().find(|line| {
            let text = line["message"].as_str().unwrap_or_default();
            text.contains("no file descriptor")
        });
        told.map(drop)
    })
    .await;
    let since = Instant::now();
    server.terminate();
    // What is under way has its descriptor, and ends well.
    consumer.release();
    assert!(server.wait().await.success());
    assert!(since.elapsed() < END, "after {:?}", since.elapsed());
    drop(none);
    assert_eq!(consumer.seen().len(), 1);
    let _again = server.site().start(&[]).await;
    let all = consumer.count(2).await;
    let ids: Vec<&str> = all.iter().map(tests::Delivery::id).collect();
    assert_eq!(ids, [first, second]);
}

/// Stops a server under load whose store is in trouble by then, ends the trouble, and starts again.
async fn stopped_in(
    mut house: House,
    trouble: impl AsyncFnOnce(&House),
    cure: impl AsyncFnOnce(&House),
) {
    let load = Load::start(&house.publisher);
    tools::eventually("it is busy", LIMIT, async || {
        (load.count() > 20).then_some(())
    })
    .await;
    trouble(&house).await;
    silence::is_seen(&house.server).await;
    load.server_ends();
    // With exit code 1, and what had not ended in the log, where the store can't be asked.
    stop(&house.server).await;
    cure(&house).await;
    let acknowledged = load.end().await;
    house.server = silence::start_again(&house).await;
    silence::all_goes_on(&house, &acknowledged).await;
    // While the path is there.
    assert!(stop(&house.server).await);
}

/// Side by side: such a stop takes nearly all of its half minute, since it goes on trying to write down
/// which deliveries were made, which else would be made again.
async fn a_stop_with_a_store_in_trouble_loses_nothing(world: &World) {
    tokio::join!(
        stopped_in(
            silence::house(world).await,
            async |house| house.wire.stall(),
            async |house| house.wire.pass(),
        ),
        stopped_in(
            silence::house(world).await,
            async |house| house.wire.swallow(),
            async |house| house.wire.pass(),
        ),
        stopped_in(
            silence::house(world).await,
            async |house| silence::take_no_writes(house, true).await,
            async |house| silence::take_no_writes(house, false).await,
        ),
    );
}

/// What is still to be written at the end is written one after the other: each of them must not
/// wait for the database as long as a request may.
async fn a_stop_without_a_database_waits_for_it_only_shortly(world: &World) {
    let site = world.site().await;
    site.tolerate("store");
    let real = site.database.as_ref().unwrap().url.clone();
    let mut wire = Proxy::to(&real).await;
    let url = wire.url(&real);
    let server = site
        .start(&[("STATIONMASTER_DATABASE_URL", url.as_str())])
        .await;
    // There is a last use of a token to be written down.
    server.publisher("acme").await;
    wire.cut().await;
    // Long enough for everything that asks it to be waiting.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let since = Instant::now();
    assert!(stop(&server).await);
    let took = since.elapsed();
    assert!(took < Duration::from_secs(12), "it took {took:?}");
}

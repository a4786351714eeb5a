//! What one publisher, or one address, takes of what everybody needs: its share, and no more.

use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use serde_json::json;
use tests::{Server, User, World, on_both_stores, tools};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

on_both_stores!(
    bodies_that_do_not_come_keep_nobody_from_work,
    bodies_that_stay_away_half_way_are_counted_for_their_publisher,
    who_waits_for_a_token_endpoint_keeps_nobody_from_work,
    silent_connections_give_way,
    many_connections_at_once_drop_nobodys,
    the_operator_is_not_locked_out_by_guesses,
    a_request_names_one_host,
);

const ME: &str = "/v1/publishers/me";
/// More than all requests that a process works on.
const MANY: usize = 1100;

/// This process may have as many files open as it may.
fn many_files() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let current = maximum;
    setrlimit(Resource::Nofile, Rlimit { current, maximum }).unwrap();
}

/// A connection that has sent this, and reads nothing.
async fn sent(server: &Server, bytes: &[u8]) -> TcpStream {
    let url = server.url();
    let address = url.trim_start_matches("http://").to_owned();
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream
}

fn head(user: &User, path: &str, length: usize) -> String {
    let token = user.token();
    format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\
         content-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    )
}

/// What comes back on a connection, up to the first line.
async fn status_of(stream: &mut TcpStream) -> String {
    let mut answer = vec![0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    String::from_utf8(answer).unwrap()
}

async fn bodies_that_do_not_come_keep_nobody_from_work(world: &World) {
    many_files();
    let server = world.start().await;
    let slow = server.publisher("slow").await;
    let other = server.publisher("other").await;
    let request = format!("{}{{", head(&slow.runner, "/v1/events", 4000));
    let mut held = Vec::new();
    for _ in 0..MANY {
        held.push(sent(&server, request.as_bytes()).await);
    }
    for _ in 0..3 {
        other.admin.get(ME).expect(200).await;
        slow.admin.get(ME).expect(200).await;
    }
    let event = json!({"events": [{"type": "a.b", "data": 1}]});
    other
        .runner
        .post("/v1/events")
        .json(&event)
        .expect(202)
        .await;
}

async fn bodies_that_stay_away_half_way_are_counted_for_their_publisher(world: &World) {
    const LENGTH: usize = 4 * 1024 * 1024;
    let server = world.start().await;
    let large = server.publisher("large").await;
    let other = server.publisher("other").await;
    let mut request = head(&large.runner, "/v1/events", LENGTH).into_bytes();
    request.resize(request.len() + LENGTH - 1000, b' ');
    let mut held = Vec::new();
    for _ in 0..8 {
        held.push(sent(&server, &request).await);
    }
    let event = json!({"events": [{"type": "a.b", "data": "x".repeat(64 * 1024)}]});
    other
        .runner
        .post("/v1/events")
        .json(&event)
        .expect(202)
        .await;
    large.admin.get(ME).expect(200).await;
    let refused = large.runner.post("/v1/events").json(&event);
    let refused = refused.refused(429, "share_exceeded").await;
    assert_eq!(refused.header("retry-after"), "1");
    assert!(
        refused.text("/detail").contains("bytes of bodies"),
        "{refused}"
    );
    // Whoever goes away gives everything back.
    drop(held);
    tools::eventually("room again", Duration::from_secs(10), async || {
        let answer = large.runner.post("/v1/events").json(&event).answer().await;
        (answer.status == 202).then_some(())
    })
    .await;
}

async fn who_waits_for_a_token_endpoint_keeps_nobody_from_work(world: &World) {
    many_files();
    let server = world.start().await;
    let waiting = server.publisher("waiting").await;
    let other = server.publisher("other").await;
    let pit = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/token", pit.local_addr().unwrap());
    let pit = tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((stream, _)) = pit.accept().await {
            kept.push(stream);
        }
    });
    let account = json!({
        "name": "a", "provider": "acme", "base_url": "https://api.example",
        "credential_type": "oauth",
        "oauth": {"access_token": "x".repeat(20), "refresh_token": "y".repeat(20),
            "expires_at": "2020-01-01T00:00:00Z", "token_url": url, "client_id": "c"},
    });
    let made = waiting.admin.post("/v1/accounts").json(&account);
    let id = made.expect(201).await.text("/id");
    waiting.train("t", &[&id]).await;
    let (_, gateway) = waiting.train_token("t").await;
    let refresh = format!("/v1/accounts/{id}/refresh");
    let requests = [
        head(&gateway, "/v1/resolve", 0),
        head(&waiting.admin, &refresh, 0),
        head(&waiting.admin, "/v1/accounts/refresh", 0),
    ];
    let mut held = JoinSet::new();
    for at in 0..MANY {
        let mut stream = sent(&server, requests[at % requests.len()].as_bytes()).await;
        held.spawn(async move { status_of(&mut stream).await });
    }
    // As many wait as may; the others are told that they are too many, and nobody else is.
    let refused = held.join_next().await.unwrap().unwrap();
    assert_eq!(refused, "HTTP/1.1 429");
    for _ in 0..3 {
        other.admin.get(ME).expect(200).await;
        waiting.admin.get(ME).expect(200).await;
    }
    held.abort_all();
    pit.abort();
}

async fn silent_connections_give_way(world: &World) {
    let site = world.site().await;
    let server = site
        .start_within(&["prlimit", "--nofile=256:256"], &[])
        .await;
    let publisher = server.publisher("acme").await;
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(sent(&server, b"").await);
    }
    // Sooner than silent connections are closed anyway.
    let begun = Instant::now();
    for _ in 0..3 {
        let alone = tests::keeping_client();
        let answer = alone
            .get(format!("{}{ME}", server.url()))
            .bearer_auth(publisher.admin.token())
            .send();
        assert_eq!(answer.await.unwrap().status(), 200);
    }
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
    let metrics = server.metrics().await;
    assert!(
        metrics.contains("http_connections_closed_for_room_total"),
        "{metrics}"
    );
}

/// While the process does not come to accept them, the system keeps them.
async fn many_connections_at_once_drop_nobodys(world: &World) {
    many_files();
    let kept = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
    let kept: usize = kept.trim().parse().unwrap();
    let files = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let files = usize::try_from(files).unwrap_or(usize::MAX);
    let many = 3000.min(kept).min(files - 500);
    let server = world.start().await;
    let address = server.url().trim_start_matches("http://").to_owned();
    server.signal(Signal::STOP);
    let mut opening = JoinSet::new();
    for _ in 0..many {
        let address = address.clone();
        opening.spawn(async move { TcpStream::connect(address).await });
    }
    let mut open = Vec::new();
    let all = async {
        while let Some(one) = opening.join_next().await {
            open.push(one.unwrap().unwrap());
        }
    };
    let all = tokio::time::timeout(Duration::from_secs(20), all).await;
    server.signal(Signal::CONT);
    assert!(all.is_ok(), "{} of {many}", open.len());
    drop(open);
    server.operator().get("/v1/publishers").expect(200).await;
}

async fn the_operator_is_not_locked_out_by_guesses(world: &World) {
    let settings = [("STATIONMASTER_BOOTSTRAP_RATE_PER_MINUTE", "1000")];
    let server = world.start_with(&settings).await;
    let publisher = server.publisher("acme").await;
    publisher.admin.get(ME).expect(200).await;
    let guess = || server.user(&"x".repeat(40)).get("/v1/publishers");
    for _ in 0..5 {
        guess().refused(401, "unauthenticated").await;
    }
    for _ in 0..3 {
        guess().refused(429, "rate_limited").await;
        server.operator().get("/v1/publishers").expect(200).await;
        let live = publisher.admin.get("/v1/publishers");
        live.refused(403, "wrong_token_kind").await;
    }
}

async fn a_request_names_one_host(world: &World) {
    let server = world.start().await;
    for hosts in ["", "host: a\r\nhost: a\r\n", "host: a\r\nhost: b\r\n"] {
        let request = format!("GET /healthz HTTP/1.1\r\n{hosts}connection: close\r\n\r\n");
        let answer = tools::raw(&server.url(), request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
        assert!(answer.contains("application/problem+json"), "{answer}");
        assert!(
            answer.contains("\"code\":\"invalid_parameter\""),
            "{answer}"
        );
    }
    let old = tools::raw(&server.url(), b"GET /healthz HTTP/1.0\r\n\r\n").await;
    assert!(old.starts_with("HTTP/1.0 200"), "{old}");
}

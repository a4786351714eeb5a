//! The client against real sockets on loopback, most of them hostile.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::VecDeque;
use std::future::Future;
use std::net::IpAddr;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use outbound::{
    Answer, Client, ClientLimits, DestinationRefusal, Failure, Method, Phase, Policy, Request,
    ResolveFailed, Resolver, SystemResolver,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{Instant, sleep, timeout};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

fn allowing(net: &str) -> Policy {
    Policy {
        allow_http: true,
        allowed: vec![net.parse().unwrap()],
        ..Policy::default()
    }
}

fn short() -> ClientLimits {
    ClientLimits {
        connect_timeout: Duration::from_millis(400),
        headers_timeout: Duration::from_millis(600),
        total_timeout: Duration::from_millis(900),
        ..ClientLimits::default()
    }
}

fn client() -> Client {
    Client::new(allowing("127.0.0.0/8"), short())
}

/// A server on a free port of 127.0.0.1 that counts its connections.
struct Server {
    port: u16,
    connections: Arc<AtomicUsize>,
}

impl Server {
    async fn start<F, Fut>(behave: F) -> Self
    where
        F: Fn(TcpStream) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let connections = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(behave(socket));
            }
        });
        Self { port, connections }
    }

    /// Answers every request on a connection with the same bytes.
    async fn answering(answer: &'static [u8]) -> Self {
        Self::start(move |mut socket| async move {
            while read_request(&mut socket).await.is_some() {
                if socket.write_all(answer).await.is_err() {
                    return;
                }
            }
        })
        .await
    }

    /// Answers once, then closes.
    async fn closing(answer: Vec<u8>) -> Self {
        Self::start(move |mut socket| {
            let answer = answer.clone();
            async move {
                read_request(&mut socket).await;
                let _ = socket.write_all(&answer).await;
            }
        })
        .await
    }

    fn url(&self, host: &str) -> String {
        format!("http://{host}:{}/hook", self.port)
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// One request as text; `None` when the peer closed.
async fn read_request(socket: &mut TcpStream) -> Option<String> {
    let mut seen = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let count = socket.read(&mut buffer).await.ok()?;
        if count == 0 {
            return None;
        }
        seen.extend_from_slice(&buffer[..count]);
        let text = String::from_utf8_lossy(&seen).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "))
                .map_or(0, |length| length.parse().unwrap());
            if body.len() >= length {
                return Some(text);
            }
        }
    }
}

/// Gives one answer a look-up, the last one for ever, and counts.
struct Scripted {
    answers: Mutex<VecDeque<Vec<IpAddr>>>,
    lookups: AtomicUsize,
}

impl Scripted {
    fn new(answers: &[&[&str]]) -> Arc<Self> {
        let parse = |answer: &&[&str]| answer.iter().map(|ip| ip.parse().unwrap()).collect();
        Arc::new(Self {
            answers: Mutex::new(answers.iter().map(parse).collect()),
            lookups: AtomicUsize::new(0),
        })
    }

    fn lookups(&self) -> usize {
        self.lookups.load(Ordering::SeqCst)
    }
}

impl Resolver for Scripted {
    fn addresses<'a>(&'a self, _name: &'a str) -> Answer<'a> {
        self.lookups.fetch_add(1, Ordering::SeqCst);
        let mut answers = self.answers.lock().unwrap();
        let answer = if answers.len() > 1 {
            answers.pop_front()
        } else {
            answers.front().cloned()
        };
        Box::pin(async move { answer.ok_or(ResolveFailed::NoAnswer) })
    }
}

async fn get(client: &Client, url: String) -> Result<outbound::Response, Failure> {
    client.send(Request::new(Method::GET, url, "")).await
}

#[tokio::test]
async fn an_answer_comes_back_and_the_request_is_only_what_was_asked() {
    let (tell, told) = tokio::sync::oneshot::channel();
    let tell = Mutex::new(Some(tell));
    let server = Server::start(move |mut socket| {
        let tell = tell.lock().unwrap().take();
        async move {
            let request = read_request(&mut socket).await.unwrap();
            let _ = tell.unwrap().send(request);
            let _ = socket
                .write_all(
                    b"HTTP/1.1 429 Slow\r\nretry-after: 17\r\ncontent-type: text/plain\r\n\
                      set-cookie: a=b\r\ncontent-length: 5\r\n\r\nlater",
                )
                .await;
        }
    })
    .await;
    let mut request = Request::post(server.url("127.0.0.1"), "{\"a\":1}");
    request.headers = vec![
        ("webhook-id".to_owned(), "evt_1".to_owned()),
        ("Authorization".to_owned(), "Bearer x".to_owned()),
    ];
    let answer = client().send(request).await.unwrap();
    assert_eq!(answer.status, 429);
    assert_eq!(answer.retry_after.as_deref(), Some("17"));
    assert_eq!(answer.content_type.as_deref(), Some("text/plain"));
    assert_eq!(answer.body_excerpt, b"later");
    assert!(!answer.truncated);
    let seen = told.await.unwrap();
    let (head, body) = seen.split_once("\r\n\r\n").unwrap();
    assert_eq!(body, "{\"a\":1}");
    let mut lines: Vec<_> = head.lines().collect();
    lines[1..].sort_unstable();
    let host = format!("host: 127.0.0.1:{}", server.port);
    let agent = format!("user-agent: Stationmaster/{}", env!("CARGO_PKG_VERSION"));
    assert_eq!(
        lines,
        [
            "POST /hook HTTP/1.1",
            "accept: */*",
            "authorization: Bearer x",
            "content-length: 7",
            &host,
            &agent,
            "webhook-id: evt_1",
        ]
    );
}

#[tokio::test]
async fn a_redirect_is_an_answer_and_is_not_followed() {
    let inner = Server::answering(OK).await;
    for status in [301, 302, 303, 307, 308] {
        let location = inner.url("127.0.0.1");
        let text =
            format!("HTTP/1.1 {status} Go\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n");
        let outer = Server::closing(text.into_bytes()).await;
        let answer = get(&client(), outer.url("127.0.0.1")).await.unwrap();
        assert_eq!(answer.status, status);
    }
    assert_eq!(inner.connections(), 0);
}

#[tokio::test]
async fn a_body_that_drips_runs_into_the_total_deadline() {
    let server = Server::start(|mut socket| async move {
        read_request(&mut socket).await;
        let head = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n";
        let _ = socket.write_all(head).await;
        while socket.write_all(b"x").await.is_ok() {
            sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    let started = Instant::now();
    let failure = get(&client(), server.url("127.0.0.1")).await.unwrap_err();
    assert_eq!(failure, Failure::Timeout(Phase::Body));
    assert!(started.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn headers_that_drip_or_never_come_run_into_the_headers_deadline() {
    let silent = Server::start(|socket| async move {
        sleep(Duration::from_secs(30)).await;
        drop(socket);
    })
    .await;
    let dripping = Server::start(|mut socket| async move {
        read_request(&mut socket).await;
        let _ = socket.write_all(b"HTTP/1.1 200 OK\r\n").await;
        while socket.write_all(b"a: b\r\n").await.is_ok() {
            sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    let hinting = Server::start(|mut socket| async move {
        read_request(&mut socket).await;
        while socket
            .write_all(b"HTTP/1.1 103 Early Hints\r\n\r\n")
            .await
            .is_ok()
        {
            sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    for server in [silent, dripping, hinting] {
        let failure = get(&client(), server.url("127.0.0.1")).await.unwrap_err();
        assert_eq!(failure, Failure::Timeout(Phase::Headers));
    }
}

#[tokio::test]
async fn a_request_may_bring_its_own_deadlines() {
    let server = Server::start(|mut socket| async move {
        read_request(&mut socket).await;
        sleep(Duration::from_millis(300)).await;
        let _ = socket.write_all(OK).await;
    })
    .await;
    let mut hasty = Request::post(server.url("127.0.0.1"), "");
    hasty.total_timeout = Some(Duration::from_millis(50));
    let failure = client().send(hasty).await.unwrap_err();
    assert_eq!(failure, Failure::Timeout(Phase::Headers));
    let mut patient = Request::post(server.url("127.0.0.1"), "");
    patient.headers_timeout = Some(Duration::from_secs(5));
    patient.total_timeout = Some(Duration::from_secs(5));
    assert_eq!(client().send(patient).await.unwrap().status, 200);
}

#[tokio::test]
async fn a_body_that_never_ends_is_cut_and_the_connection_dropped() {
    let (tell, told) = tokio::sync::oneshot::channel();
    let tell = Mutex::new(Some(tell));
    let server = Server::start(move |mut socket| {
        let tell = tell.lock().unwrap().take();
        async move {
            read_request(&mut socket).await;
            let head = b"HTTP/1.1 202 OK\r\ntransfer-encoding: chunked\r\n\r\n";
            let _ = socket.write_all(head).await;
            let chunk = format!("4000\r\n{}\r\n", "x".repeat(0x4000));
            while socket.write_all(chunk.as_bytes()).await.is_ok() {}
            let _ = tell.unwrap().send(());
        }
    })
    .await;
    let answer = get(&client(), server.url("127.0.0.1")).await.unwrap();
    assert_eq!(answer.status, 202);
    assert_eq!(answer.body_excerpt, [b'x'; 1024]);
    assert!(answer.truncated);
    let dropped = timeout(Duration::from_secs(5), told).await;
    assert!(dropped.is_ok(), "the server could go on writing");
}

#[tokio::test]
async fn more_of_a_body_is_kept_when_asked() {
    let mut text = b"HTTP/1.1 200 OK\r\ncontent-length: 300000\r\n\r\n".to_vec();
    text.resize(text.len() + 300_000, b'y');
    let server = Server::closing(text).await;
    let mut request = Request::new(Method::GET, server.url("127.0.0.1"), "");
    request.keep_bytes = 1024 * 1024;
    let answer = client().send(request.clone()).await.unwrap();
    assert_eq!(answer.body_excerpt.len(), 300_000);
    assert!(!answer.truncated);
    request.keep_bytes = 299_999;
    let answer = client().send(request).await.unwrap();
    assert_eq!(answer.body_excerpt.len(), 299_999);
    assert!(answer.truncated);
}

#[tokio::test]
async fn a_packed_body_stays_packed() {
    let server = Server::answering(
        b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 4\r\n\r\n\x1f\x8b\x08\x00",
    )
    .await;
    let answer = get(&client(), server.url("127.0.0.1")).await.unwrap();
    assert_eq!(answer.body_excerpt, b"\x1f\x8b\x08\x00");
}

#[tokio::test]
async fn an_answer_that_breaks_off_or_is_not_http_is_a_protocol_failure() {
    let answers: [&[u8]; 5] = [
        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 2",
        b"SSH-2.0-OpenSSH_9\r\n",
        b"",
    ];
    for text in answers {
        let server = Server::closing(text.to_vec()).await;
        let failure = get(&client(), server.url("127.0.0.1")).await.unwrap_err();
        assert_eq!(failure, Failure::Protocol, "{text:?}");
    }
}

#[tokio::test]
async fn a_connection_reset_in_the_middle_of_the_body_is_a_protocol_failure() {
    let server = Server::start(|mut socket| async move {
        let mut buffer = [0; 16];
        let _ = socket.read(&mut buffer).await;
        let head = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf";
        let _ = socket.write_all(head).await;
        sleep(Duration::from_millis(50)).await;
        // Closing with unread input makes the kernel send a reset.
    })
    .await;
    let request = Request::post(server.url("127.0.0.1"), vec![b'z'; 4000]);
    let failure = client().send(request).await.unwrap_err();
    assert_eq!(failure, Failure::Protocol);
}

#[tokio::test]
async fn a_closed_port_is_a_connect_failure() {
    // Bound, so that nobody else is given it, and not listened to.
    let bound = TcpSocket::new_v4().unwrap();
    bound.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let port = bound.local_addr().unwrap().port();
    let failure = get(&client(), format!("http://127.0.0.1:{port}/"))
        .await
        .unwrap_err();
    assert_eq!(failure, Failure::Connect);
}

#[tokio::test]
async fn ip_literals_are_refused_in_every_spelling_before_anything_is_connected() {
    let server = Server::answering(OK).await;
    let strict = Client::new(
        Policy {
            allow_http: true,
            ..Policy::default()
        },
        short(),
    );
    for host in [
        "127.0.0.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "127.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "localhost",
    ] {
        let failure = get(&strict, server.url(host)).await.unwrap_err();
        assert!(
            matches!(
                failure.refusal(),
                Some(DestinationRefusal::AddressRefused(_))
            ),
            "{host}: {failure}"
        );
        assert_eq!(failure.code(), "destination_refused");
    }
    assert_eq!(server.connections(), 0);
    let answer = get(&client(), server.url("2130706433")).await.unwrap();
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn a_name_that_mixes_allowed_and_refused_addresses_is_refused() {
    let server = Server::answering(OK).await;
    for answer in [
        &["127.0.0.1", "10.0.0.1"][..],
        &["10.0.0.1", "127.0.0.1"],
        &["127.0.0.1", "8.8.8.8", "::ffff:127.0.0.1"],
        &["127.0.0.1", "fe80::1"],
    ] {
        let resolver = Scripted::new(&[answer]);
        let client = Client::with_resolver(allowing("127.0.0.0/8"), short(), resolver);
        let failure = get(&client, server.url("mixed.example")).await.unwrap_err();
        // As a name that there is not: what exists inside is nobody's to learn.
        assert_eq!(failure, Failure::Dns, "{answer:?}");
    }
    assert_eq!(server.connections(), 0);
}

#[tokio::test]
async fn a_name_that_changes_after_the_first_connect_is_refused_at_the_next() {
    let text = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    let server = Server::closing(text.to_vec()).await;
    let resolver = Scripted::new(&[&["127.0.0.1"], &["127.0.0.2"]]);
    let client = Client::with_resolver(
        allowing("127.0.0.1/32"),
        short(),
        Arc::clone(&resolver) as _,
    );
    let url = server.url("rebinding.example");
    assert_eq!(get(&client, url.clone()).await.unwrap().status, 200);
    // One look-up served both the check and the connect: there is no gap to change the answer in.
    assert_eq!(resolver.lookups(), 1);
    let failure = get(&client, url).await.unwrap_err();
    assert_eq!(failure, Failure::Dns);
    assert_eq!((resolver.lookups(), server.connections()), (2, 1));
}

#[tokio::test]
async fn a_kept_connection_is_used_again_without_a_look_up() {
    let server = Server::answering(OK).await;
    let resolver = Scripted::new(&[&["127.0.0.1"], &["10.0.0.1"]]);
    let client =
        Client::with_resolver(allowing("127.0.0.0/8"), short(), Arc::clone(&resolver) as _);
    for _ in 0..3 {
        let answer = get(&client, server.url("kept.example")).await.unwrap();
        assert_eq!(answer.body_excerpt, b"ok");
    }
    assert_eq!((resolver.lookups(), server.connections()), (1, 1));
}

#[tokio::test]
async fn a_name_without_addresses_is_a_dns_failure() {
    for answers in [&[][..], &[&[][..]][..]] {
        let resolver = Scripted::new(answers);
        let client = Client::with_resolver(allowing("127.0.0.0/8"), short(), resolver);
        let failure = get(&client, "http://absent.example/".to_owned())
            .await
            .unwrap_err();
        assert_eq!(failure, Failure::Dns);
    }
}

#[tokio::test]
async fn a_name_server_that_never_answers_runs_into_the_connect_deadline() {
    struct Silent;
    impl Resolver for Silent {
        fn addresses<'a>(&'a self, _name: &'a str) -> Answer<'a> {
            Box::pin(std::future::pending())
        }
    }
    let client = Client::with_resolver(allowing("127.0.0.0/8"), short(), Arc::new(Silent));
    let failure = get(&client, "http://slow.example/".to_owned())
        .await
        .unwrap_err();
    assert_eq!(failure, Failure::Timeout(Phase::Connect));
}

#[tokio::test]
async fn headers_that_frame_or_inject_are_never_sent() {
    let server = Server::answering(OK).await;
    for (name, value) in [
        ("host", "inner"),
        ("Content-Length", "3"),
        ("transfer-encoding", "chunked"),
        ("x-a", "b\r\nx-c: d"),
        ("x a", "b"),
    ] {
        let mut request = Request::post(server.url("127.0.0.1"), "{}");
        request.headers = vec![(name.to_owned(), value.to_owned())];
        let failure = client().send(request).await.unwrap_err();
        assert_eq!(failure, Failure::RequestInvalid, "{name}");
    }
    assert_eq!(server.connections(), 0);
}

#[tokio::test]
async fn the_hosts_file_is_honoured() {
    let found = SystemResolver::new().addresses("localhost").await.unwrap();
    assert!(!found.is_empty());
    assert!(found.iter().all(IpAddr::is_loopback), "{found:?}");
    let server = Server::answering(OK).await;
    let policy = Policy {
        allowed: vec!["127.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()],
        ..allowing("127.0.0.0/8")
    };
    let client = Client::new(policy, short());
    let answer = get(&client, server.url("localhost")).await.unwrap();
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn debug_output_shows_no_header_body_or_path() {
    let mut request = Request::post("https://example.com/secret-path", "secret-body");
    request.headers = vec![("authorization".to_owned(), "secret-header".to_owned())];
    assert!(!format!("{request:?}").contains("secret"));
    let server = Server::answering(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nsecret").await;
    let answer = get(&client(), server.url("127.0.0.1")).await.unwrap();
    assert!(!format!("{answer:?}").contains("secret"));
}

const PROXY_CHILD: &str = "OUTBOUND_TEST_PROXY_CHILD";

/// Runs itself again with proxy variables that point to a closed port; only the child sends.
#[tokio::test]
async fn proxy_variables_are_ignored() {
    if std::env::var_os(PROXY_CHILD).is_some() {
        let server = Server::answering(OK).await;
        let answer = get(&client(), server.url("127.0.0.1")).await.unwrap();
        assert_eq!(answer.status, 200);
        return;
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "proxy_variables_are_ignored"]);
    child
        .env(PROXY_CHILD, "1")
        .env_remove("NO_PROXY")
        .env_remove("no_proxy");
    for name in [
        "http_proxy",
        "HTTP_PROXY",
        "https_proxy",
        "ALL_PROXY",
        "all_proxy",
    ] {
        child.env(name, "http://127.0.0.1:9");
    }
    let output = tokio::task::spawn_blocking(move || child.output().unwrap())
        .await
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// So long that none of these tests ends by a deadline.
fn patient() -> Client {
    let limits = ClientLimits {
        headers_timeout: Duration::from_mins(1),
        total_timeout: Duration::from_mins(1),
        ..ClientLimits::default()
    };
    Client::new(allowing("127.0.0.0/8"), limits)
}

#[tokio::test]
async fn interim_answers_without_end_are_a_protocol_failure() {
    for interim in [
        "HTTP/1.1 100 Continue\r\n\r\n",
        "HTTP/1.1 103 Early Hints\r\nlink: </a>; rel=preload\r\n\r\n",
    ] {
        let server = Server::start(move |mut stream| async move {
            let _ = stream.read(&mut [0; 4096]).await;
            let many = interim.repeat(100);
            while stream.write_all(many.as_bytes()).await.is_ok() {}
        })
        .await;
        let failure = get(&patient(), server.url("127.0.0.1")).await.unwrap_err();
        assert_eq!(failure, Failure::Protocol, "{interim}");
    }
}

#[tokio::test]
async fn some_interim_answers_and_a_long_body_are_as_good_as_any() {
    const BODY: usize = 4 * 1024 * 1024;
    let server = Server::start(|mut stream| async move {
        let _ = stream.read(&mut [0; 4096]).await;
        let interim = "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(20);
        let head = format!("{interim}HTTP/1.1 200 OK\r\ncontent-length: {BODY}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        for _ in 0..BODY / 4096 {
            stream.write_all(&[b'x'; 4096]).await.unwrap();
        }
    })
    .await;
    let mut request = Request::new(Method::GET, server.url("127.0.0.1"), Vec::new());
    request.keep_bytes = BODY;
    let answer = patient().send(request).await.unwrap();
    assert_eq!((answer.status, answer.truncated), (200, false));
    assert_eq!(answer.body_excerpt.len(), BODY);
}

use std::net::SocketAddr;

use poem::{Request, endpoint::make};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Notify,
    task::JoinHandle,
};

use super::*;

struct Running {
    address: SocketAddr,
    shutdown: CancellationToken,
    server: JoinHandle<io::Result<()>>,
    /// Told when a request that never ends has begun.
    stuck: Arc<Notify>,
}

async fn start(limits: ConnectionLimits) -> Running {
    let stuck = Arc::new(Notify::new());
    let begun = Arc::clone(&stuck);
    let app = make(move |request: Request| {
        let begun = Arc::clone(&begun);
        async move {
            if request.uri().path() == "/slow" {
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
            if request.uri().path() == "/stuck" {
                begun.notify_one();
                std::future::pending::<()>().await;
            }
            Response::builder().body(format!("{}\n", request.remote_addr()))
        }
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let server = tokio::spawn(serve(listener, app, limits, shutdown.clone()));
    Running {
        address,
        shutdown,
        server,
        stuck,
    }
}

async fn connect(running: &Running) -> TcpStream {
    TcpStream::connect(running.address).await.unwrap()
}

async fn ask(stream: &mut TcpStream, path: &str) {
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
}

/// Reads one answer with a body of one line; nothing when the connection was closed.
async fn answer(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    let mut byte = [0; 1];
    while stream.read(&mut byte).await.unwrap_or(0) == 1 {
        text.push(byte[0]);
        if text.ends_with(b"\n")
            && text.windows(4).any(|w| w == b"\r\n\r\n")
            && !text.ends_with(b"\r\n")
        {
            break;
        }
    }
    String::from_utf8(text).unwrap()
}

fn short() -> ConnectionLimits {
    ConnectionLimits {
        header_timeout: Duration::from_millis(200),
        ..ConnectionLimits::default()
    }
}

#[tokio::test]
async fn answers_several_requests_on_one_connection() {
    let running = start(ConnectionLimits::default()).await;
    let mut stream = connect(&running).await;
    for _ in 0..3 {
        ask(&mut stream, "/").await;
        let text = answer(&mut stream).await;
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
        assert!(
            text.contains("socket://127.0.0.1:"),
            "the peer is known: {text}"
        );
    }
}

#[tokio::test]
async fn a_dripping_head_is_cut_off() {
    let running = start(short()).await;
    let mut stream = connect(&running).await;
    stream.write_all(b"GET / HTTP/1.1\r\nhost:").await.unwrap();
    let begun = std::time::Instant::now();
    assert_eq!(answer(&mut stream).await, "");
    assert!(begun.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn a_silent_connection_is_closed() {
    let running = start(short()).await;
    let mut stream = connect(&running).await;
    assert_eq!(answer(&mut stream).await, "", "one that never spoke");
    let mut stream = connect(&running).await;
    ask(&mut stream, "/").await;
    assert!(answer(&mut stream).await.contains("200 OK"));
    assert_eq!(answer(&mut stream).await, "", "one that spoke once");
}

/// Sends bytes and reads until the connection is closed.
async fn exchange(running: &Running, bytes: &[u8]) -> String {
    let mut stream = connect(running).await;
    stream.write_all(bytes).await.unwrap();
    let mut text = Vec::new();
    let all = stream.read_to_end(&mut text);
    let limit = Duration::from_secs(5);
    tokio::time::timeout(limit, all).await.unwrap().unwrap();
    String::from_utf8(text).unwrap()
}

/// The problem that an answer holds.
fn problem(text: &str, status: u16) -> String {
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_default();
    assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{text:?}");
    assert!(
        head.contains("content-type: application/problem+json"),
        "{text:?}"
    );
    assert!(head.contains("connection: close"), "{text:?}");
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(body["status"], status);
    let id = format!("x-request-id: {}", body["request_id"].as_str().unwrap());
    assert!(head.contains(&id), "{text:?}");
    body["code"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_huge_head_is_refused() {
    let running = start(ConnectionLimits::default()).await;
    let long = "a".repeat(60_000);
    let huge = format!("GET / HTTP/1.1\r\nhost: x\r\nx-a: {long}\r\n\r\n");
    let many = format!(
        "GET / HTTP/1.1\r\nhost: x\r\n{}\r\n",
        "x-a: 1\r\n".repeat(200)
    );
    let path = format!("GET /{long} HTTP/1.1\r\nhost: x\r\n\r\n");
    for head in [huge, many, path] {
        let text = exchange(&running, head.as_bytes()).await;
        assert_eq!(problem(&text, 431), "head_too_large", "{head:.30}");
    }
}

#[tokio::test]
async fn what_is_no_request_is_refused_in_words() {
    let running = start(ConnectionLimits::default()).await;
    for head in [
        "GET / HTTP/1.1\r\nno colon\r\n\r\n",
        "GET / HTTP/1.1\r\nhost : x\r\n\r\n",
        "GET / HTTP/1.1\r\nh(o)st: x\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: x\r\nx-a: a\0b\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: x\r\n x-a: folded\r\n\r\n",
        "GET / HTTP/1.7\r\nhost: x\r\n\r\n",
        "GET / HTTPS/1.1\r\nhost: x\r\n\r\n",
        "GET /\r\nhost: x\r\n\r\n",
        "G(E)T / HTTP/1.1\r\nhost: x\r\n\r\n",
        "GET / a b HTTP/1.1\r\nhost: x\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1x\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        "POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip\r\n\r\n",
        "\u{16}\u{3}\u{1}\0\u{5}\u{1}\0\0\u{1}\u{3}\u{3}",
    ] {
        let text = exchange(&running, head.as_bytes()).await;
        assert_eq!(problem(&text, 400), "malformed_request", "{head:?}");
    }
    // After a request that was answered, too; and its answer is whole.
    let mut stream = connect(&running).await;
    ask(&mut stream, "/").await;
    assert!(answer(&mut stream).await.contains("200 OK"));
    stream.write_all(b"GET\r\n\r\n").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert_eq!(problem(&text, 400), "malformed_request");
}

#[tokio::test]
async fn an_answer_goes_out_whatever_follows_its_request() {
    let running = start(ConnectionLimits::default()).await;
    for after in [
        "\r\n",
        "GET /",
        "GET / HTTP/1.1\r\nhost: x\r\nx-a: ",
        "\0\0",
    ] {
        let mut stream = connect(&running).await;
        let request = format!("GET / HTTP/1.1\r\nhost: x\r\n\r\n{after}");
        stream.write_all(request.as_bytes()).await.unwrap();
        let soon = tokio::time::timeout(Duration::from_secs(2), answer(&mut stream));
        let text = soon.await.unwrap();
        assert!(
            text.contains("200 OK") && text.contains("127.0.0.1"),
            "{after:?}: {text:?}"
        );
    }
}

#[tokio::test]
async fn idle_connections_give_way_and_busy_ones_do_not() {
    let running = start(ConnectionLimits {
        open_max: 2,
        open_per_address: 2,
        room_timeout: Duration::from_mins(1),
        ..ConnectionLimits::default()
    })
    .await;
    let (mut busy, mut kept) = (connect(&running).await, connect(&running).await);
    ask(&mut busy, "/stuck").await;
    running.stuck.notified().await;
    ask(&mut kept, "/").await;
    assert!(answer(&mut kept).await.contains("200 OK"));
    for _ in 0..3 {
        let mut next = connect(&running).await;
        ask(&mut next, "/").await;
        assert_eq!(answer(&mut kept).await, "", "it gave way");
        assert!(answer(&mut next).await.contains("200 OK"));
        kept = next;
    }
    let waited = tokio::time::timeout(Duration::from_millis(50), answer(&mut busy)).await;
    assert!(waited.is_err(), "it is at work");
}

#[tokio::test]
async fn an_address_that_has_its_share_is_told_so() {
    let limits = ConnectionLimits {
        open_max: 9,
        open_per_address: 1,
        room_timeout: Duration::from_millis(50),
        ..ConnectionLimits::default()
    };
    let running = start(limits.clone()).await;
    let mut first = connect(&running).await;
    ask(&mut first, "/stuck").await;
    running.stuck.notified().await;
    let mut second = connect(&running).await;
    let mut refused = String::new();
    second.read_to_string(&mut refused).await.unwrap();
    assert!(refused.starts_with("HTTP/1.1 429 \r\n"), "{refused}");
    assert!(refused.contains("\"code\":\"share_exceeded\""), "{refused}");

    // The clients behind a proxy are many.
    let trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
    let running = start(ConnectionLimits {
        trusted_proxies,
        ..limits
    })
    .await;
    let mut first = connect(&running).await;
    ask(&mut first, "/stuck").await;
    let mut second = connect(&running).await;
    ask(&mut second, "/").await;
    assert!(answer(&mut second).await.contains("200 OK"));
}

#[tokio::test]
async fn shutdown_finishes_what_was_begun_and_closes_the_rest() {
    let running = start(ConnectionLimits::default()).await;
    let (mut busy, mut idle, mut silent) = (
        connect(&running).await,
        connect(&running).await,
        connect(&running).await,
    );
    ask(&mut idle, "/").await;
    assert!(answer(&mut idle).await.contains("200 OK"));
    ask(&mut busy, "/slow").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let begun = std::time::Instant::now();
    running.shutdown.cancel();
    assert!(answer(&mut busy).await.contains("200 OK"));
    assert_eq!(answer(&mut idle).await, "");
    assert_eq!(answer(&mut silent).await, "");
    running.server.await.unwrap().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(2));
    assert!(
        TcpStream::connect(running.address).await.is_err(),
        "nobody listens any more"
    );
}

#[tokio::test]
async fn shutdown_does_not_wait_for_ever() {
    let drain_timeout = Duration::from_millis(200);
    let running = start(ConnectionLimits {
        drain_timeout,
        ..ConnectionLimits::default()
    })
    .await;
    let mut stuck = connect(&running).await;
    ask(&mut stuck, "/stuck").await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    running.shutdown.cancel();
    running.server.await.unwrap().unwrap();
    assert_eq!(answer(&mut stuck).await, "");
}

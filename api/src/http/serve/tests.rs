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

#[tokio::test]
async fn a_huge_head_is_refused() {
    let running = start(ConnectionLimits::default()).await;
    let long = format!("x-a: {}\r\n", "a".repeat(20_000));
    for fields in [long, "x-a: 1\r\n".repeat(200)] {
        let mut stream = connect(&running).await;
        let head = format!("GET / HTTP/1.1\r\nhost: x\r\n{fields}\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let text = answer(&mut stream).await;
        assert!(text.starts_with("HTTP/1.1 431 "), "{text}");
    }
}

#[tokio::test]
async fn what_follows_a_request_does_not_keep_its_answer_back() {
    let running = start(ConnectionLimits::default()).await;
    for more in ["\r\n", "G", "GET / HTTP/1.1\r\nhost: x\r\n"] {
        let mut stream = connect(&running).await;
        let asked = format!("GET / HTTP/1.1\r\nhost: x\r\n\r\n{more}");
        stream.write_all(asked.as_bytes()).await.unwrap();
        let mut head = [0; 15];
        let read = stream.read_exact(&mut head);
        let read = tokio::time::timeout(Duration::from_secs(10), read).await;
        read.expect("the answer is kept back").unwrap();
        assert_eq!(&head, b"HTTP/1.1 200 OK", "{more:?}");
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

//! Receivers that misbehave, on real sockets: each attempt ends in time, with its error class, and
//! does not delay the deliveries of others.

use std::{
    collections::VecDeque,
    future::Future,
    net::{IpAddr, Ipv4Addr},
    sync::atomic::{AtomicUsize, Ordering},
};

use outbound::{ResolveFailed, Resolver};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::{ServerConfig, pki_types::PrivateKeyDer};
use tokio::net::TcpSocket;
use tokio_rustls::TlsAcceptor;

use super::*;

/// The most bytes that a receiver can send before its connection is closed: those that are read,
/// and those in the buffers of two sockets of this machine.
const LET_IN_MAX: usize = 32 * 1024 * 1024;

/// A server that runs `behave` on each connection after it has read the request.
async fn hostile<F, Fut>(behave: F) -> String
where
    F: Fn(TcpStream) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut seen = Vec::new();
            while !seen.windows(4).any(|four| four == b"\r\n\r\n") {
                if stream.read_buf(&mut seen).await.unwrap_or(0) == 0 {
                    break;
                }
            }
            tokio::spawn(behave(stream));
        }
    });
    url
}

/// Answers these bytes, and repeats the last ones as long as they are read; counts the repetitions.
async fn endless(
    head: &'static str,
    part: Vec<u8>,
    pause: Duration,
    count: &Arc<AtomicUsize>,
) -> String {
    let count = Arc::clone(count);
    hostile(move |mut stream| {
        let (part, count) = (part.clone(), Arc::clone(&count));
        async move {
            let mut sent = stream.write_all(head.as_bytes()).await;
            while sent.is_ok() {
                tokio::time::sleep(pause).await;
                sent = stream.write_all(&part).await;
                count.fetch_add(part.len(), Ordering::Relaxed);
            }
        }
    })
    .await
}

async fn answering(answer: String) -> String {
    hostile(move |mut stream| {
        let answer = answer.clone();
        async move {
            // The dispatcher may have closed the connection.
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    })
    .await
}

/// Sends first, and not TLS.
async fn without_tls() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/hook", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    url
}

const CHUNKED: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
const HUGE: &str = "HTTP/1.1 200 OK\r\ncontent-length: 1073741824\r\n\r\n";

/// Only the kernel accepts its connections.
async fn deaf() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let _listener = listener;
        std::future::pending::<()>().await;
    });
    url
}

/// Accepts nothing, and the queue of connections is full.
async fn crowded() -> String {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    let soon = Duration::from_millis(200);
    while let Ok(connected) = tokio::time::timeout(soon, TcpStream::connect(address)).await {
        waiting.push(connected.unwrap());
    }
    tokio::spawn(async move {
        let _all = (listener, waiting);
        std::future::pending::<()>().await;
    });
    format!("http://{address}/")
}

/// Accepts connections late.
async fn late(wait: Duration) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move {
        tokio::time::sleep(wait).await;
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await;
        }
    });
    url
}

/// Has a certificate of no trusted authority. (Expired certificates and those for other names are
/// tested in `outbound`, because they need an authority that the client trusts.)
async fn unknown() -> String {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            assert!(acceptor.accept(stream).await.is_err(), "it was trusted");
        }
    });
    url
}

/// Resets the connection in the middle of the body.
async fn resetting() -> String {
    hostile(|mut stream| async move {
        let head = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf";
        let _ = stream.write_all(head).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        stream.set_zero_linger().unwrap();
    })
    .await
}

fn headers(count: usize) -> String {
    (0..count).fold(String::new(), |all, at| all + &format!("x-h{at}: {at}\r\n"))
}

/// A receiver: its name, its URL, and the status and the error class that are recorded.
type Case = (&'static str, String, Option<i32>, Option<&'static str>);

/// Receivers that do not accept connections properly.
async fn at_the_door() -> Vec<Case> {
    let late = late(Duration::from_secs(2)).await;
    vec![
        ("has no TLS", without_tls().await, None, Some("tls")),
        ("is not trusted", unknown().await, None, Some("tls")),
        ("never accepts", deaf().await, None, Some("timeout")),
        ("has a full queue", crowded().await, None, Some("timeout")),
        ("accepts late", late, Some(204), None),
    ]
}

/// Receivers whose answers do not end. The bytes that they could send are counted.
async fn without_end(let_in: &Arc<AtomicUsize>) -> Vec<Case> {
    const HEAD: &str = "HTTP/1.1 200 OK\r\n";
    let (second, at_once) = (Duration::from_secs(1), Duration::ZERO);
    let small = b"4\r\nabcd\r\n".to_vec();
    let large = [b"1000\r\n".as_slice(), &[b'x'; 4096], b"\r\n"].concat();
    let drips = endless(CHUNKED, small, second, let_in).await;
    let drips_headers = endless(HEAD, b"a: b\r\n".to_vec(), second, let_in).await;
    let never_ends = endless(CHUNKED, large, at_once, let_in).await;
    let interim = b"HTTP/1.1 102 Processing\r\n\r\n".repeat(100);
    let interim = endless("", interim, at_once, let_in).await;
    let huge = endless(HUGE, vec![b'x'; 65_536], at_once, let_in).await;
    vec![
        ("drips", drips, Some(200), None),
        ("never comes to its answer", interim, None, Some("protocol")),
        ("drips headers", drips_headers, None, Some("timeout")),
        ("never ends", never_ends, Some(200), None),
        ("sends 1 GB", huge, Some(200), None),
    ]
}

/// Receivers whose answers are malformed.
async fn with_words() -> Vec<Case> {
    let plain = answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".into()).await;
    let moved = format!("HTTP/1.1 302 Found\r\nlocation: {plain}\r\ncontent-length: 0\r\n\r\n");
    let broken = answering("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf".into());
    // An empty SETTINGS frame (RFC 9113 §6.5).
    let http2 = answering("\0\0\0\x04\0\0\0\0\0".into());
    let mail = answering("220 mail.example ESMTP\r\n".into());
    let with = |count| answering(format!("HTTP/1.1 204 No Content\r\n{}\r\n", headers(count)));
    vec![
        ("breaks off in the body", broken.await, Some(200), None),
        ("resets in the body", resetting().await, Some(200), None),
        ("speaks HTTP/2 at once", http2.await, None, Some("protocol")),
        ("speaks something else", mail.await, None, Some("protocol")),
        (
            "redirects here",
            answering(moved).await,
            Some(302),
            Some("status"),
        ),
        ("sends 300 headers", with(300).await, Some(204), None),
        (
            "sends 10 000 headers",
            with(10_000).await,
            None,
            Some("protocol"),
        ),
    ]
}

#[tokio::test]
async fn whatever_a_receiver_does_the_attempt_ends_with_its_class() {
    let world = World::new("1h").await;
    let (dispatcher, stop) = world.start();
    let good = Receiver::start(vec![reply(204)]).await;
    let mut cases = Vec::new();
    let let_in = Arc::new(AtomicUsize::new(0));
    let mut receivers = without_end(&let_in).await;
    receivers.extend(at_the_door().await);
    receivers.extend(with_words().await);
    for (name, url, status, class) in receivers {
        let endpoint = world.endpoint(url, false).await;
        world.event(endpoint).await;
        cases.push((name, endpoint, status, class));
    }
    let prompt = world.endpoint(good.url(), false).await;
    world.event(prompt).await;
    world.until_status(prompt, "succeeded").await;
    for (name, endpoint, status, class) in cases {
        let tried = |all: &[Delivery]| all.iter().all(|one| one.attempts > 0);
        let all = world.until(endpoint, tried).await;
        let (delivery, attempts) = world.scoped.webhooks().delivery(all[0].id).await.unwrap();
        let [attempt] = attempts.as_slice() else {
            panic!("{name}: {attempts:?}")
        };
        let seen = (attempt.status_code, attempt.error.as_deref());
        assert_eq!(seen, (status, class), "{name}");
        assert!(attempt.latency_ms < 7000, "{name}: {attempt:?}");
        let kept = attempt.response_excerpt.as_ref().map_or(0, String::len);
        assert!(kept <= 1024, "{name} left {kept} bytes");
        let state = if class.is_none() {
            "succeeded"
        } else {
            "pending"
        };
        assert_eq!(delivery.status, state, "{name}");
    }
    let let_in = let_in.load(Ordering::Relaxed);
    assert!(let_in <= LET_IN_MAX, "{let_in} bytes were let in");
    end(world, dispatcher, stop).await;
}

/// Returns another address at each look-up, and the last one from then on.
struct Moving(Mutex<VecDeque<IpAddr>>);

impl Resolver for Moving {
    fn addresses<'a>(&'a self, _name: &'a str) -> outbound::Answer<'a> {
        let mut addresses = self.0.lock().unwrap();
        let next = addresses[0];
        if addresses.len() > 1 {
            addresses.pop_front();
        }
        Box::pin(async move { Ok(vec![next]) })
    }
}

#[tokio::test]
async fn a_name_that_moves_to_a_private_address_is_refused_there() {
    let world = World::new("1h").await;
    let receiver = Receiver::start(vec![reply(204)]).await;
    let path = [IpAddr::V4(Ipv4Addr::LOCALHOST), [10, 0, 0, 1].into()];
    let resolver = Arc::new(Moving(Mutex::new(path.into())));
    let client = Client::with_resolver(policy(), limits(), resolver);
    let (dispatcher, stop) = world.start_with(client);
    let url = format!("http://moving.example.test:{}/", receiver.address.port());
    let endpoint = world.endpoint(url, false).await;
    world.event(endpoint).await;
    world.until_status(endpoint, "succeeded").await;
    world.event(endpoint).await;
    let tried = |all: &[Delivery]| all.len() == 2 && all.iter().all(|one| one.attempts > 0);
    let all = world.until(endpoint, tried).await;
    let (_, attempts) = world.scoped.webhooks().delivery(all[0].id).await.unwrap();
    assert_eq!(attempts[0].error.as_deref(), Some("dns"));
    assert_eq!(receiver.received().len(), 1);
    end(world, dispatcher, stop).await;
}

/// A resolver that at first has no resources to query name servers.
struct Short(AtomicUsize);

impl Resolver for Short {
    fn addresses<'a>(&'a self, _name: &'a str) -> outbound::Answer<'a> {
        let left = self.0.load(Ordering::Relaxed);
        self.0.store(left.saturating_sub(1), Ordering::Relaxed);
        Box::pin(async move {
            if left > 0 {
                return Err(ResolveFailed::OwnShortage);
            }
            Ok(vec![IpAddr::V4(Ipv4Addr::LOCALHOST)])
        })
    }
}

#[tokio::test]
async fn what_this_process_is_short_of_is_no_attempt() {
    // A schedule with one try.
    let world = World::new("").await;
    let receiver = Receiver::start(vec![reply(204)]).await;
    let resolver = Arc::new(Short(AtomicUsize::new(2)));
    let client = Client::with_resolver(policy(), limits(), resolver);
    let (dispatcher, stop) = world.start_with(client);
    let url = format!("http://short.example.test:{}/", receiver.address.port());
    let endpoint = world.endpoint(url, false).await;
    world.event(endpoint).await;
    let (delivery, attempts) = world.until_status(endpoint, "succeeded").await;
    assert_eq!((delivery.attempts, attempts.len()), (1, 1), "{attempts:?}");
    assert_eq!(attempts[0].error, None);
    end(world, dispatcher, stop).await;
}

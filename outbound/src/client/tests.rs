//! TLS against real servers: the name is what is verified, the checked address what is dialled.

mod http2;
mod keep_alive;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

use super::{Client, ClientLimits, Request, Response};
use crate::{Answer, Failure, Policy, Resolver};

struct Loopback;

impl Resolver for Loopback {
    fn addresses<'a>(&'a self, _name: &'a str) -> Answer<'a> {
        Box::pin(async { Ok(vec![IpAddr::V4(Ipv4Addr::LOCALHOST)]) })
    }
}

struct Authority {
    root: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap().der().clone();
        let issuer = Issuer::new(params, key);
        Self { root, issuer }
    }

    fn server_config(&self, name: &str) -> ServerConfig {
        self.server_config_of(&CertificateParams::new(vec![name.to_owned()]).unwrap())
    }

    fn server_config_of(&self, params: &CertificateParams) -> ServerConfig {
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key)
            .unwrap()
    }

    fn client(&self) -> Client {
        self.client_within(ClientLimits::default())
    }

    fn client_within(&self, limits: ClientLimits) -> Client {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).unwrap();
        Client::build(policy(), limits, Arc::new(Loopback), roots)
    }
}

fn policy() -> Policy {
    Policy {
        allowed: vec!["127.0.0.0/8".parse().unwrap()],
        ..Policy::default()
    }
}

/// Answers one request; tells the port, and then the server name that the client asked for.
async fn serve_once(config: ServerConfig) -> (u16, oneshot::Receiver<Option<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (tell, told) = oneshot::channel();
    tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        let Ok(mut stream) = TlsAcceptor::from(Arc::new(config)).accept(socket).await else {
            return;
        };
        let asked = stream.get_ref().1.server_name().map(str::to_owned);
        let _ = tell.send(asked);
        let mut buffer = [0; 4096];
        let _ = stream.read(&mut buffer).await;
        let _ = stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            .await;
        let _ = stream.shutdown().await;
    });
    (port, told)
}

#[tokio::test]
async fn tls_is_verified_and_asked_for_by_name_while_the_checked_address_is_dialled() {
    let authority = Authority::new();
    let (port, asked) = serve_once(authority.server_config("hooks.example.test")).await;
    let url = format!("https://hooks.example.test:{port}/x");
    let answer = authority.client().send(Request::post(url, "{}")).await;
    assert_eq!(answer.unwrap().status, 200);
    assert_eq!(asked.await.unwrap().as_deref(), Some("hooks.example.test"));
}

/// A listener on a port of its own, and what speaks TLS with whoever comes.
async fn listen(config: ServerConfig) -> (TlsAcceptor, TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (TlsAcceptor::from(Arc::new(config)), listener, port)
}

/// Answers the first request of each connection, and ends each but the last of `ends` as the next
/// one comes; tells how many connections there were.
async fn closing(authority: &Authority, ends: usize) -> (String, Arc<AtomicUsize>) {
    let (acceptor, listener, port) = listen(authority.server_config("hooks.example.test")).await;
    let connections = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&connections);
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let number = count.fetch_add(1, Ordering::Relaxed);
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut stream = acceptor.accept(socket).await.unwrap();
                loop {
                    let mut buffer = [0; 4096];
                    if stream.read(&mut buffer).await.unwrap_or(0) == 0 {
                        return;
                    }
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                    stream.write_all(answer).await.unwrap();
                    stream.flush().await.unwrap();
                    if number < ends {
                        // The next request is read and nobody answers it.
                        let _ = stream.read(&mut buffer).await;
                        return;
                    }
                }
            });
        }
    });
    (format!("https://hooks.example.test:{port}/x"), connections)
}

#[tokio::test]
async fn a_notice_that_a_kept_connection_loses_is_sent_once_more() {
    let authority = Authority::new();
    let (url, connections) = closing(&authority, 1).await;
    let client = authority.client();
    for _ in 0..4 {
        let answer = client.send(Request::notice(&url, "{}")).await;
        assert_eq!(answer.unwrap().status, 200);
    }
    assert_eq!(connections.load(Ordering::Relaxed), 3);
    // What may not arrive twice is not.
    let (url, _) = closing(&authority, 1).await;
    let client = authority.client();
    assert_eq!(
        client.send(Request::post(&url, "{}")).await.unwrap().status,
        200
    );
    let lost = client.send(Request::post(&url, "{}")).await;
    assert_eq!(lost.unwrap_err(), Failure::Protocol);
    // Nor is anything sent for ever.
    let (url, connections) = closing(&authority, usize::MAX).await;
    let client = authority.client();
    for _ in 0..2 {
        let answer = client.send(Request::notice(&url, "{}")).await;
        assert_eq!(answer.unwrap().status, 200);
    }
    assert_eq!(connections.load(Ordering::Relaxed), 2);
}

/// Answers one request with these bytes, and ends TCP without a word of TLS.
async fn abrupt(authority: &Authority, answer: &'static [u8]) -> String {
    let (acceptor, listener, port) = listen(authority.server_config("hooks.example.test")).await;
    tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        let mut stream = acceptor.accept(socket).await.unwrap();
        let _ = stream.read(&mut [0; 4096]).await;
        let _ = stream.write_all(answer).await;
        let _ = stream.flush().await;
        let (mut socket, _) = stream.into_inner();
        let _ = socket.shutdown().await;
    });
    format!("https://hooks.example.test:{port}/x")
}

#[tokio::test]
async fn an_answer_that_is_whole_is_taken_however_its_connection_ends() {
    let authority = Authority::new();
    let answers: [&[u8]; 5] = [
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx-a: 1\r\n  2\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nx-a : 1\r\ncontent-length: 2\r\n\r\nok",
    ];
    for answer in answers {
        let url = abrupt(&authority, answer).await;
        let taken = authority.client().send(Request::post(url, "{}")).await;
        let taken = taken.map(|taken| (taken.status, taken.body_excerpt));
        let text = String::from_utf8_lossy(answer);
        assert_eq!(taken, Ok((200, b"ok".to_vec())), "{text}");
    }
    // What is cut short is none, but a status says all that a notice asks.
    let cut = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok";
    let url = abrupt(&authority, cut).await;
    let taken = authority.client().send(Request::post(url, "{}")).await;
    assert_eq!(taken.unwrap_err(), Failure::Protocol);
    let url = abrupt(&authority, cut).await;
    let taken = authority.client().send(Request::notice(url, "{}")).await;
    let taken = taken.unwrap();
    assert_eq!((taken.status, taken.truncated), (200, true));
    assert_eq!(taken.body_excerpt, b"ok");
}

#[tokio::test]
async fn a_certificate_for_another_name_is_a_tls_failure() {
    let authority = Authority::new();
    let (port, _) = serve_once(authority.server_config("other.example.test")).await;
    let url = format!("https://hooks.example.test:{port}/x");
    let answer = authority.client().send(Request::post(url, "{}")).await;
    assert_eq!(answer.unwrap_err(), Failure::Tls);
}

#[tokio::test]
async fn a_certificate_outside_of_its_time_is_a_tls_failure() {
    let authority = Authority::new();
    for (from, to) in [(2001, 2002), (2901, 2902)] {
        let mut params = CertificateParams::new(vec!["hooks.example.test".to_owned()]).unwrap();
        params.not_before = date_time_ymd(from, 1, 1);
        params.not_after = date_time_ymd(to, 1, 1);
        let (port, _) = serve_once(authority.server_config_of(&params)).await;
        let url = format!("https://hooks.example.test:{port}/x");
        let answer = authority.client().send(Request::post(url, "{}")).await;
        assert_eq!(answer.unwrap_err(), Failure::Tls, "{from} to {to}");
    }
}

#[tokio::test]
async fn an_unknown_authority_is_a_tls_failure() {
    let authority = Authority::new();
    let (port, _) = serve_once(authority.server_config("hooks.example.test")).await;
    let url = format!("https://hooks.example.test:{port}/x");
    let client = Client::with_resolver(policy(), ClientLimits::default(), Arc::new(Loopback));
    let answer = client.send(Request::post(url, "{}")).await;
    assert_eq!(answer.unwrap_err(), Failure::Tls);
}

#[tokio::test]
async fn a_peer_without_tls_is_a_tls_failure() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let _ = socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        let mut buffer = [0; 4096];
        let _ = socket.read(&mut buffer).await;
    });
    let url = format!("https://hooks.example.test:{port}/x");
    let answer = Authority::new()
        .client()
        .send(Request::post(url, "{}"))
        .await;
    assert_eq!(answer.unwrap_err(), Failure::Tls);
}

#[test]
fn a_wait_that_is_asked_for_is_seconds_or_a_date() {
    let now = 784_111_747_000;
    for (text, seconds) in [
        ("120", Some(120)),
        (" 7 ", Some(7)),
        ("0", Some(0)),
        ("99999999999999999999999", Some(u64::MAX)),
        ("Sun, 06 Nov 1994 08:49:37 GMT", Some(30)),
        ("Sunday, 06-Nov-94 08:49:37 GMT", Some(30)),
        ("Sun Nov  6 08:49:37 1994", Some(30)),
        ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
        ("", None),
        ("-1", None),
        ("1.5", None),
        ("soon", None),
    ] {
        let answer = Response {
            status: 429,
            retry_after: Some(text.to_owned()),
            content_type: None,
            body_excerpt: Vec::new(),
            truncated: false,
            latency_ms: 1,
        };
        let wait = seconds.map(Duration::from_secs);
        assert_eq!(answer.asked_wait(now), wait, "{text}");
    }
}

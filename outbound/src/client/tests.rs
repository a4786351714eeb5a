//! TLS against real servers: the name is what is verified, the checked address what is dialled.

mod http2;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
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

//! Servers that speak HTTP/2 and nothing else: those that do it well, and those that do not.

use std::{
    future::{Future, poll_fn},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use bytes::Bytes;
use h2::{Reason, server::SendResponse};
use http::Response;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::*;
use crate::Phase;

async fn listen_for_http2(authority: &Authority) -> (TlsAcceptor, TcpListener, u16) {
    let mut config = authority.server_config("hooks.example.test");
    config.alpn_protocols = vec![b"h2".to_vec()];
    listen(config).await
}

/// Does with one connection what it likes, once TLS is agreed upon.
async fn bare_server<F, Fut>(authority: &Authority, serve: F) -> String
where
    F: FnOnce(TlsStream<TcpStream>) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let (acceptor, listener, port) = listen_for_http2(authority).await;
    tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        let stream = acceptor.accept(socket).await;
        serve(stream.unwrap()).await;
    });
    format!("https://hooks.example.test:{port}/x")
}

/// Does with each request what it likes.
async fn server<F, Fut>(authority: &Authority, answer: F) -> String
where
    F: Fn(SendResponse<Bytes>) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    bare_server(authority, move |stream| async move {
        let mut connection = h2::server::handshake(stream).await.unwrap();
        while let Some(Ok((_, respond))) = connection.accept().await {
            tokio::spawn(answer(respond));
        }
    })
    .await
}

async fn send(authority: &Authority, url: String) -> Result<crate::Response, Failure> {
    let limits = ClientLimits {
        headers_timeout: Duration::from_millis(600),
        total_timeout: Duration::from_millis(1200),
        ..ClientLimits::default()
    };
    let client = authority.client_within(limits);
    client.send(Request::post(url, "{}")).await
}

#[tokio::test]
async fn a_server_that_speaks_only_http2_is_spoken_to() {
    let authority = Authority::new();
    let url = server(&authority, |mut respond| async move {
        let mut body = respond.send_response(Response::new(()), false).unwrap();
        body.send_data(Bytes::from_static(b"thanks"), true).unwrap();
    })
    .await;
    let answer = send(&authority, url).await.unwrap();
    assert_eq!(
        (answer.status, answer.body_excerpt),
        (200, b"thanks".to_vec())
    );
}

#[tokio::test]
async fn what_a_server_refuses_to_look_at_is_sent_again_at_once() {
    let authority = Authority::new();
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    let url = server(&authority, move |mut respond| {
        let asked = counter.fetch_add(1, Ordering::Relaxed);
        async move {
            if asked < 3 {
                respond.send_reset(Reason::REFUSED_STREAM);
            } else {
                respond.send_response(Response::new(()), true).unwrap();
            }
        }
    })
    .await;
    assert_eq!(send(&authority, url).await.unwrap().status, 200);
    assert_eq!(asked.load(Ordering::Relaxed), 4);
}

#[tokio::test]
async fn what_comes_as_a_connection_leaves_is_sent_on_another() {
    let authority = Authority::new();
    let (acceptor, listener, port) = listen_for_http2(&authority).await;
    let answered = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&answered);
    let (stop_reading, reading_stopped) = oneshot::channel();
    let (leave, left) = oneshot::channel::<()>();
    tokio::spawn(async move {
        let accept = async || {
            let (socket, _) = listener.accept().await.unwrap();
            let stream = acceptor.accept(socket).await.unwrap();
            h2::server::handshake(stream).await.unwrap()
        };
        let answer = |mut respond: SendResponse<Bytes>| {
            respond.send_response(Response::new(()), true).unwrap();
            count.fetch_add(1, Ordering::Relaxed);
        };
        let mut first = accept().await;
        let (_, respond) = first.accept().await.unwrap().unwrap();
        answer(respond);
        // Writes the answer; then nothing is read until the next request is on its way.
        let _ = tokio::time::timeout(Duration::from_millis(200), first.accept()).await;
        stop_reading.send(()).unwrap();
        left.await.unwrap();
        first.abrupt_shutdown(Reason::NO_ERROR);
        tokio::spawn(async move { while first.accept().await.is_some() {} });
        let mut second = accept().await;
        while let Some(Ok((_, respond))) = second.accept().await {
            answer(respond);
        }
    });
    let client = authority.client();
    let request = || Request::post(format!("https://hooks.example.test:{port}/x"), "{}");
    assert_eq!(client.send(request()).await.unwrap().status, 200);
    reading_stopped.await.unwrap();
    let sent = tokio::spawn({
        let (client, request) = (client.clone(), request());
        async move { client.send(request).await }
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    leave.send(()).unwrap();
    assert_eq!(sent.await.unwrap().unwrap().status, 200);
    assert_eq!(
        answered.load(Ordering::Relaxed),
        2,
        "each was looked at once"
    );
}

#[tokio::test]
async fn a_connection_that_is_dead_takes_no_new_request() {
    let authority = Authority::new();
    let (acceptor, listener, port) = listen_for_http2(&authority).await;
    tokio::spawn(async move {
        let mut kept = Vec::new();
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let stream = acceptor.accept(socket).await.unwrap();
            let mut connection = h2::server::handshake(stream).await.unwrap();
            if kept.is_empty() {
                // Takes a request, and is never heard of again.
                let _ = connection.accept().await;
                kept.push(connection);
                continue;
            }
            tokio::spawn(async move {
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    respond.send_response(Response::new(()), true).unwrap();
                }
            });
        }
    });
    let client = authority.client();
    let request = || Request::post(format!("https://hooks.example.test:{port}/x"), "{}");
    client.send(request()).await.unwrap_err();
    assert_eq!(client.send(request()).await.unwrap().status, 200);
}

#[tokio::test]
async fn a_body_that_never_ends_is_cut_by_the_window() {
    let authority = Authority::new();
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&sent);
    let url = server(&authority, move |mut respond| {
        let sent = Arc::clone(&counter);
        async move {
            let mut body = respond.send_response(Response::new(()), false).unwrap();
            loop {
                body.reserve_capacity(16_384);
                let Some(Ok(room)) = poll_fn(|context| body.poll_capacity(context)).await else {
                    return;
                };
                if body.send_data(vec![b'x'; room].into(), false).is_err() {
                    return;
                }
                sent.fetch_add(room, Ordering::Relaxed);
            }
        }
    })
    .await;
    let answer = send(&authority, url).await.unwrap();
    assert_eq!((answer.status, answer.truncated), (200, true));
    let sent = sent.load(Ordering::Relaxed);
    assert!(sent <= 256 * 1024, "{sent} bytes were let in");
}

#[tokio::test]
async fn what_breaks_off_or_breaks_the_rules_is_a_protocol_failure() {
    let authority = Authority::new();
    let reset = server(&authority, |mut respond| async move {
        respond.send_reset(Reason::REFUSED_STREAM);
    });
    let half = server(&authority, |mut respond| async move {
        let mut body = respond.send_response(Response::new(()), false).unwrap();
        body.send_data(Bytes::from_static(b"half"), false).unwrap();
        body.send_reset(Reason::INTERNAL_ERROR);
    });
    let headers = server(&authority, |mut respond| async move {
        let large = Response::builder().header("x-large", "y".repeat(100_000));
        let _ = respond.send_response(large.body(()).unwrap(), true);
    });
    let other = bare_server(&authority, |mut stream| async move {
        let _ = stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            .await;
        let _ = stream.flush().await;
        let _ = stream.read(&mut [0; 4096]).await;
    });
    for (name, url) in [
        ("resets the stream", reset.await),
        ("resets it in the body", half.await),
        ("sends very long headers", headers.await),
        ("speaks HTTP/1.1 after all", other.await),
    ] {
        let failure = send(&authority, url).await.unwrap_err();
        assert_eq!(failure, Failure::Protocol, "{name}");
    }
}

#[tokio::test]
async fn one_that_never_answers_runs_into_the_headers_deadline() {
    let authority = Authority::new();
    let silent = server(&authority, |respond| async move {
        let _respond = respond;
        std::future::pending::<()>().await;
    });
    let deaf = bare_server(&authority, |stream| async move {
        let _stream = stream;
        std::future::pending::<()>().await;
    });
    for url in [silent.await, deaf.await] {
        let failure = send(&authority, url).await.unwrap_err();
        assert_eq!(failure, Failure::Timeout(Phase::Headers));
    }
}

/// A frame of HTTP/2 of this type, on the connection itself.
fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, 0, 0, 0, 0, 0], payload].concat()
}

#[tokio::test]
async fn frames_without_end_that_carry_nothing_end_the_connection() {
    const SETTINGS: u8 = 4;
    const PING: u8 = 6;
    let authority = Authority::new();
    for (kind, payload) in [(PING, vec![0; 8]), (SETTINGS, Vec::new())] {
        let url = bare_server(&authority, move |stream| async move {
            let (mut read, mut write) = tokio::io::split(stream);
            // What it answers is taken, or it would stop to read.
            tokio::spawn(
                async move { while read.read(&mut [0; 4096]).await.is_ok_and(|n| n > 0) {} },
            );
            let mut sent = write.write_all(&frame(SETTINGS, &[])).await;
            let many = frame(kind, &payload).repeat(100);
            while sent.is_ok() {
                sent = write.write_all(&many).await;
            }
        })
        .await;
        let client = authority.client_within(ClientLimits {
            headers_timeout: Duration::from_mins(1),
            total_timeout: Duration::from_mins(1),
            ..ClientLimits::default()
        });
        let failure = client.send(Request::post(url, "{}")).await.unwrap_err();
        assert_eq!(failure, Failure::Protocol, "frames of type {kind}");
    }
}

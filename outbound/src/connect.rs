//! Connections: made to judged addresses within the connect deadline, and ended when a peer sends
//! more than anybody asked it for.
//!
//! A peer may send without end what is no answer: interim answers (1xx), frames of HTTP/2 that
//! carry nothing, a header block that goes on. Each costs us work, and no deadline of a request
//! stops it soon enough. So each connection has a credit of bytes, counted below TLS. It grows by
//! what a request was after: the head of an answer, and the bytes of a body once they were taken.
//! A peer that sends beyond it has broken off its answer.

use std::{
    error::Error,
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use http::Uri;
use hyper::rt;
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::{
    client::legacy::connect::{Connected, Connection, HttpConnector},
    rt::TokioIo,
};
use rustls::ClientConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::timeout,
};
use tower_service::Service;

use crate::{
    failure::{Failure, Phase},
    resolver::Guarded,
};

/// What a peer may send before the head of its first answer, bytes: the handshake and the head.
const FIRST_PLAIN: i64 = 128 * 1024;
/// The same with TLS, where it may be HTTP/2, whose answers may come at the same time: the window
/// of a connection besides.
const FIRST_TLS: i64 = 384 * 1024;
/// What the head of an answer brings.
const HEAD: i64 = 128 * 1024;
/// What each part of a body brings besides its length: how it was packed.
const PART: i64 = 64;
/// The most that is kept of what a peer did not use.
const MOST: i64 = 512 * 1024;

const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVE_TRIES: u32 = 3;

type BoxError = Box<dyn Error + Send + Sync>;
type Connecting<T> = Pin<Box<dyn Future<Output = Result<T, BoxError>> + Send>>;

/// How many more bytes a peer may send.
#[derive(Debug)]
pub(crate) struct Credit {
    left: AtomicI64,
    /// Whether the connection has brought an answer.
    answered: AtomicBool,
}

impl Credit {
    const fn of(bytes: i64) -> Self {
        Self {
            left: AtomicI64::new(bytes),
            answered: AtomicBool::new(false),
        }
    }

    /// The head of an answer has come.
    pub(crate) fn head(&self) {
        self.answered.store(true, Ordering::Relaxed);
        self.give(HEAD);
    }

    /// Whether the head of any answer has come.
    pub(crate) fn has_answered(&self) -> bool {
        self.answered.load(Ordering::Relaxed)
    }

    /// So many bytes of a body were taken.
    pub(crate) fn part(&self, bytes: usize) {
        let bytes = i64::try_from(bytes).unwrap_or(MOST);
        self.give(bytes + bytes / 8 + PART);
    }

    fn give(&self, bytes: i64) {
        let more = |left: i64| Some(left.saturating_add(bytes).min(MOST));
        // It always gives something.
        let _ = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
    }

    /// Whether so many bytes were within it.
    fn take(&self, bytes: usize) -> bool {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.left.fetch_sub(bytes, Ordering::Relaxed) >= bytes
    }
}

/// A TCP connection that ends once its peer has sent more than its credit.
#[derive(Debug)]
pub(crate) struct Counted {
    stream: TcpStream,
    credit: Arc<Credit>,
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        if !self.credit.take(buf.filled().len() - before) {
            return Poll::Ready(Err(io::Error::other(Failure::Protocol)));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl Connection for Counted {
    fn connected(&self) -> Connected {
        self.stream.connected().extra(Arc::clone(&self.credit))
    }
}

/// Makes counted connections.
#[derive(Clone)]
pub(crate) struct Counting(HttpConnector<Guarded>);

impl Service<Uri> for Counting {
    type Response = TokioIo<Counted>;
    type Error = BoxError;
    type Future = Connecting<Self::Response>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.0.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let first = if uri.scheme_str() == Some("http") {
            FIRST_PLAIN
        } else {
            FIRST_TLS
        };
        let connecting = self.0.call(uri);
        Box::pin(async move {
            let stream = connecting.await?.into_inner();
            let credit = Arc::new(Credit::of(first));
            Ok(TokioIo::new(Counted { stream, credit }))
        })
    }
}

/// The whole way to a connection, within the connect deadline.
#[derive(Clone)]
pub(crate) struct Connector {
    inner: HttpsConnector<Counting>,
    within: Duration,
}

impl Connector {
    pub(crate) fn new(resolver: Guarded, tls: ClientConfig, within: Duration) -> Self {
        let mut http = HttpConnector::new_with_resolver(resolver);
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_keepalive(Some(KEEPALIVE));
        http.set_keepalive_interval(Some(KEEPALIVE));
        http.set_keepalive_retries(Some(KEEPALIVE_TRIES));
        // Divided among the addresses of a name, so that one that is silent does not use it up.
        http.set_connect_timeout(Some(within));
        Self {
            inner: HttpsConnector::from((Counting(http), tls)),
            within,
        }
    }
}

/// A connection whose end is an end, even where TLS did not say goodbye (RFC 8446 §6.1): many servers
/// close so. What is cut short by it is noticed by HTTP's own lengths.
pub(crate) struct Ended(MaybeHttpsStream<TokioIo<Counted>>);

impl rt::Read for Ended {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        match ready!(Pin::new(&mut self.0).poll_read(cx, buf)) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Poll::Ready(Ok(())),
            read => Poll::Ready(read),
        }
    }
}

impl rt::Write for Ended {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }
}

impl Connection for Ended {
    fn connected(&self) -> Connected {
        self.0.connected()
    }
}

impl Service<Uri> for Connector {
    type Response = Ended;
    type Error = BoxError;
    type Future = Connecting<Self::Response>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (connecting, within) = (self.inner.call(uri), self.within);
        Box::pin(async move {
            match timeout(within, connecting).await {
                Ok(connected) => connected.map(Ended),
                Err(_) => Err(Failure::Timeout(Phase::Connect).into()),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credit_grows_by_what_was_asked_for_and_never_beyond_its_bound() {
        let credit = Credit::of(10);
        assert!(credit.take(10));
        assert!(!credit.take(1));
        credit.head();
        assert!(credit.take(100_000));
        for _ in 0..100 {
            credit.part(1_000_000);
        }
        assert!(credit.take(512 * 1024));
        assert!(!credit.take(1));
    }
}

//! Connections. They are made to checked addresses within the connect deadline, and end when a peer
//! sends more bytes than it should.
//!
//! A peer can send endless bytes that are no answer: interim answers (1xx), empty HTTP/2 frames,
//! a header block without end. They cost work, and no deadline of a request stops them soon enough.
//! So each connection has a credit of bytes, counted below TLS. The headers of an answer add to the
//! credit, and so does each part of a body when it is read. If a peer sends more than its credit,
//! the connection ends as if the peer had broken off its answer.
//!
//! A peer may say how long it keeps an unused connection (`Keep-Alive: timeout`, RFC 2068
//! §19.7.1.1). The client ends the connection a little sooner, so that no request is sent while the
//! peer closes it.

use std::{
    error::Error,
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    task::{Context, Poll, Waker, ready},
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
    time::{Instant, Sleep, sleep_until, timeout},
};
use tower_service::Service;

use crate::{
    failure::{Failure, Phase},
    resolver::Guarded,
};

/// The first credit without TLS, bytes: the headers of the first answer.
const FIRST_PLAIN: i64 = 128 * 1024;
/// The first credit with TLS, bytes. It includes the handshake and, for HTTP/2, the window of a
/// connection, because several answers may come at the same time.
const FIRST_TLS: i64 = 384 * 1024;
/// What the headers of an answer add, bytes.
const HEAD: i64 = 128 * 1024;
/// What each part of a body adds besides its length, bytes: its framing.
const PART: i64 = 64;
/// The largest credit, bytes.
const MOST: i64 = 512 * 1024;

/// How much sooner than the peer the client ends an unused connection.
const SOONER: Duration = Duration::from_secs(1);

const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVE_TRIES: u32 = 3;

type BoxError = Box<dyn Error + Send + Sync>;
type Connecting<T> = Pin<Box<dyn Future<Output = Result<T, BoxError>> + Send>>;

/// How many more bytes a peer may send, and when the connection ends unused.
#[derive(Debug)]
pub(crate) struct Credit {
    left: AtomicI64,
    /// Whether an answer has come on the connection.
    answered: AtomicBool,
    unused: Mutex<Unused>,
}

/// When an unused connection ends.
#[derive(Debug, Default)]
struct Unused {
    /// The number of writes, to tell whether a request followed an answer.
    writes: u64,
    /// How long the connection may be unused, as the peer said with an answer; and the number of
    /// writes at that time.
    allowed: Option<(Duration, u64)>,
    /// When the connection ends, unless something is written before that.
    ends: Option<Instant>,
    /// The reader, to be woken when `ends` is set.
    reader: Option<Waker>,
}

impl Credit {
    fn of(bytes: i64) -> Self {
        Self {
            left: AtomicI64::new(bytes),
            answered: AtomicBool::new(false),
            unused: Mutex::default(),
        }
    }

    fn unused(&self) -> MutexGuard<'_, Unused> {
        self.unused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what the peer said with an answer: it closes the connection after this time without
    /// use.
    pub(crate) fn closes_after(&self, unused_for: Duration) {
        let mut unused = self.unused();
        unused.allowed = Some((unused_for.saturating_sub(SOONER), unused.writes));
    }

    /// The answer was read to its end: the connection is unused from now on.
    pub(crate) fn answer_ended(&self) {
        let mut unused = self.unused();
        let Some((allowed, writes)) = unused.allowed.take() else {
            return;
        };
        // Otherwise the next request is already under way.
        if writes == unused.writes {
            unused.ends = Some(Instant::now() + allowed);
            if let Some(reader) = unused.reader.take() {
                reader.wake();
            }
        }
    }

    /// Something is written: the connection is in use.
    fn wrote(&self) {
        let mut unused = self.unused();
        unused.writes += 1;
        (unused.allowed, unused.ends) = (None, None);
    }

    /// When the unused connection ends; `None` while it is in use. Wakes `reader` once there is a
    /// time.
    fn ends(&self, reader: &Waker) -> Option<Instant> {
        let mut unused = self.unused();
        if unused.ends.is_none() {
            unused.reader = Some(reader.clone());
        }
        unused.ends
    }

    /// The headers of an answer have come.
    pub(crate) fn head(&self) {
        self.answered.store(true, Ordering::Relaxed);
        self.give(HEAD);
    }

    /// Whether the headers of any answer have come.
    pub(crate) fn has_answered(&self) -> bool {
        self.answered.load(Ordering::Relaxed)
    }

    /// `bytes` of a body were read.
    pub(crate) fn part(&self, bytes: usize) {
        let bytes = i64::try_from(bytes).unwrap_or(MOST);
        self.give(bytes + bytes / 8 + PART);
    }

    fn give(&self, bytes: i64) {
        let more = |left: i64| Some(left.saturating_add(bytes).min(MOST));
        // `more` always returns a value, so this never fails.
        let _ = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
    }

    /// Takes `bytes` off the credit; returns whether there were as many.
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
    /// Wakes the reader when the unused connection is to end.
    end: Option<Pin<Box<Sleep>>>,
}

impl Counted {
    /// Ready once the unused connection is to end.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(ends) = self.credit.ends(cx.waker()) else {
            return Poll::Pending;
        };
        let end = self.end.get_or_insert_with(|| Box::pin(sleep_until(ends)));
        if end.deadline() != ends {
            end.as_mut().reset(ends);
        }
        end.as_mut().poll(cx)
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        match Pin::new(&mut self.stream).poll_read(cx, buf) {
            Poll::Ready(read) => read?,
            // A read of no bytes means that the stream has ended.
            Poll::Pending => return self.poll_end(cx).map(Ok),
        }
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
        self.credit.wrote();
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
        self.credit.wrote();
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

/// Makes TCP connections whose bytes are counted.
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
            Ok(TokioIo::new(Counted {
                stream,
                credit,
                end: None,
            }))
        })
    }
}

/// Makes connections: resolves, connects and does the TLS handshake within the connect deadline.
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
        // The library divides this among the addresses of a name, so that a silent one does not use
        // it up.
        http.set_connect_timeout(Some(within));
        Self {
            inner: HttpsConnector::from((Counting(http), tls)),
            within,
        }
    }
}

/// A connection that may end without TLS's closing message (RFC 8446 §6.1), as many servers end
/// theirs. HTTP's own lengths show whether an answer was cut short.
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

//! Sends one request, and reads a bounded part of its answer.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER,
    USER_AGENT,
};
use http::{Method, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::RootCertStore;
use tokio::time::{Instant, timeout_at};

use crate::connect::{Connector, Credit};
use crate::failure::{Failure, Phase, find};
use crate::guard::{Destination, Policy};
use crate::headers::is_connection_header;
use crate::resolver::{Guarded, Resolver, SystemResolver};
use crate::{shortage, tls};

/// How much of an answer's body is kept, in bytes, unless a request asks otherwise.
pub const KEEP_BYTES_DEFAULT: usize = 1024;
/// How much of an answer's body is read, in bytes, unless configured otherwise.
pub const READ_BYTES_MAX_DEFAULT: usize = 64 * 1024;

const OURSELVES: &str = concat!("Stationmaster/", env!("CARGO_PKG_VERSION"));
/// `Retry-After` and `Content-Type` are dropped when longer than this, in bytes.
const ANSWER_HEADER_LEN_MAX: usize = 256;
/// How many bytes an HTTP/2 peer may send before they are read: on one stream, and on a connection.
const HTTP2_STREAM_WINDOW: u32 = 64 * 1024;
const HTTP2_CONNECTION_WINDOW: u32 = 256 * 1024;
const HTTP2_HEADER_LIST_BYTES_MAX: u32 = 32 * 1024;
/// An HTTP/2 connection with requests under way gets a ping after this time of silence. Without an
/// answer within the same time it is closed.
const HTTP2_PING_AFTER: Duration = Duration::from_secs(5);
/// How many headers an answer may have; their bytes have a limit of their own.
const HEADERS_MAX: usize = 512;
/// How often a request is sent again if the peer says that it has not processed it.
const UNPROCESSED_MAX: u32 = 8;
/// How many bytes of an HTTP/1.1 answer are buffered. The headers may not be longer.
const HTTP1_BUFFER_BYTES_MAX: usize = 64 * 1024;

/// The HTTP library's client, with guarded connections.
pub(crate) type Http = hyper_util::client::legacy::Client<Connector, Full<Bytes>>;
/// An answer whose body is not read yet.
pub(crate) type Answering = http::Response<Incoming>;

/// Limits for every request of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientLimits {
    /// The time for resolving the name, connecting and the TLS handshake together.
    pub connect_timeout: Duration,
    /// The time from the start to the last header of the answer.
    pub headers_timeout: Duration,
    /// The time from the start to the end of the body.
    pub total_timeout: Duration,
    /// How many bytes of a body are read at most, unless the request's `keep_bytes` is more.
    pub read_bytes_max: usize,
    /// Most idle connections that are kept for one scheme, host and port.
    pub idle_per_host_max: usize,
    /// An idle connection is closed after this.
    pub idle_timeout: Duration,
}

impl Default for ClientLimits {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            headers_timeout: Duration::from_secs(15),
            total_timeout: Duration::from_secs(20),
            read_bytes_max: READ_BYTES_MAX_DEFAULT,
            // As many as are usually under way to one host, which may have many endpoints. Requests
            // above that number need a new connection each (a sixth of a delivery's CPU time).
            idle_per_host_max: 64,
            idle_timeout: Duration::from_secs(30),
        }
    }
}

/// A request. Its `Debug` shows neither URL nor headers nor body.
#[derive(Clone)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// The URL. It is checked on every send, because the policy may have changed since it was
    /// stored.
    pub url: String,
    /// Headers in order. Custom ones must have passed [`crate::check_custom_header`] before.
    pub headers: Vec<(String, String)>,
    /// The body, sent as it is.
    pub body: Bytes,
    /// How many bytes of the answer's body to keep.
    pub keep_bytes: usize,
    /// Whether this is a notice: see [`Request::notice`].
    pub is_notice: bool,
    /// Replaces [`ClientLimits::headers_timeout`].
    pub headers_timeout: Option<Duration>,
    /// Replaces [`ClientLimits::total_timeout`].
    pub total_timeout: Option<Duration>,
}

impl Request {
    /// A request without headers, with the default limits.
    pub fn new(method: Method, url: impl Into<String>, body: impl Into<Bytes>) -> Self {
        Self {
            method,
            url: url.into(),
            headers: Vec::new(),
            body: body.into(),
            keep_bytes: KEEP_BYTES_DEFAULT,
            is_notice: false,
            headers_timeout: None,
            total_timeout: None,
        }
    }

    /// A `POST` request.
    pub fn post(url: impl Into<String>, body: impl Into<Bytes>) -> Self {
        Self::new(Method::POST, url, body)
    }

    /// A `POST` request that may arrive twice, and of whose answer only the status matters.
    ///
    /// If a kept connection ends before the answer, the request is sent once more on a new
    /// connection, although the receiver may have got it. A status counts even if the body after it
    /// breaks off or takes too long.
    pub fn notice(url: impl Into<String>, body: impl Into<Bytes>) -> Self {
        Self {
            is_notice: true,
            ..Self::post(url, body)
        }
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("method", &self.method)
            .field("headers_count", &self.headers.len())
            .field("body_bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

/// An answer, whatever its status. Its `Debug` does not show the body.
#[derive(Clone, PartialEq, Eq)]
pub struct Response {
    /// The HTTP status, 200 to 999; a redirect is an answer like any other.
    pub status: u16,
    /// `Retry-After` as sent: seconds or a date (RFC 9110 §10.2.3).
    pub retry_after: Option<String>,
    /// `Content-Type` as sent.
    pub content_type: Option<String>,
    /// The first bytes of the body, at most `keep_bytes`, as they were sent. Pass them through
    /// [`crate::safe_excerpt`] before you store or show them.
    pub body_excerpt: Vec<u8>,
    /// Whether the body was longer than the excerpt.
    pub truncated: bool,
    /// The time from the call to the end of reading, in milliseconds.
    pub latency_ms: u64,
}

impl Response {
    /// How long the answer asks to wait from `now_ms` on (Unix time, milliseconds): `Retry-After`
    /// in seconds, or as a date in any of HTTP's three forms (RFC 9110 §10.2.3). Zero for a past
    /// date; `None` if the header is missing or malformed. The wait has no upper limit.
    #[must_use]
    pub fn asked_wait(&self, now_ms: i64) -> Option<Duration> {
        asked_wait(self.retry_after.as_deref()?, now_ms)
    }
}

/// How long a `Retry-After` asks to wait; see [`Response::asked_wait`].
#[must_use]
pub fn asked_wait(retry_after: &str, now_ms: i64) -> Option<Duration> {
    let text = retry_after.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // A number that does not fit into 64 bits counts as the largest that does.
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    let at = httpdate::parse_http_date(text).ok()?;
    let now = UNIX_EPOCH + Duration::from_millis(u64::try_from(now_ms).unwrap_or(0));
    Some(at.duration_since(now).unwrap_or_default())
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Response")
            .field("status", &self.status)
            .field("body_excerpt_bytes", &self.body_excerpt.len())
            .field("truncated", &self.truncated)
            .field("latency_ms", &self.latency_ms)
            .finish_non_exhaustive()
    }
}

/// The guarded HTTP client. Clones share connections; create one for the whole process.
///
/// The address of a kept connection was checked when the connection was made. It is used again only
/// for the same scheme, host and port. If a name moves to an address that is not allowed, requests
/// still go to the old peer until the connection closes; the next connection is refused.
#[derive(Clone)]
pub struct Client {
    http: Http,
    /// The same, but with a new connection for each request.
    fresh: Http,
    policy: Arc<Policy>,
    limits: ClientLimits,
}

impl Client {
    /// A client that resolves names as this machine does.
    #[must_use]
    pub fn new(policy: Policy, limits: ClientLimits) -> Self {
        Self::with_resolver(policy, limits, Arc::new(SystemResolver::new()))
    }

    /// A client with another resolver. The guard checks its answers, too.
    #[must_use]
    pub fn with_resolver(
        policy: Policy,
        limits: ClientLimits,
        resolver: Arc<dyn Resolver>,
    ) -> Self {
        Self::build(policy, limits, resolver, tls::system_roots())
    }

    fn build(
        policy: Policy,
        limits: ClientLimits,
        resolver: Arc<dyn Resolver>,
        roots: RootCertStore,
    ) -> Self {
        let policy = Arc::new(policy);
        let guarded = Guarded {
            policy: Arc::clone(&policy),
            inner: resolver,
        };
        let connector = Connector::new(guarded, tls::config(roots), limits.connect_timeout);
        // This client follows no redirect, uses no proxy and keeps no cookie. It unpacks nothing,
        // so a decompression bomb does no harm. It replaces a kept connection that turns out to be
        // closed before anything was sent.
        let mut builder = hyper_util::client::legacy::Client::builder(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(limits.idle_timeout)
            .http1_max_buf_size(HTTP1_BUFFER_BYTES_MAX)
            // Some old servers send these forms, which are not ambiguous in an answer (RFC 9112
            // §5.1, §5.2).
            .http1_allow_obsolete_multiline_headers_in_responses(true)
            .http1_allow_spaces_after_header_name_in_responses(true)
            .http1_max_headers(HEADERS_MAX)
            .http2_initial_stream_window_size(HTTP2_STREAM_WINDOW)
            .http2_initial_connection_window_size(HTTP2_CONNECTION_WINDOW)
            .http2_max_header_list_size(HTTP2_HEADER_LIST_BYTES_MAX)
            .http2_keep_alive_interval(HTTP2_PING_AFTER)
            .http2_keep_alive_timeout(HTTP2_PING_AFTER);
        let fresh = builder.pool_max_idle_per_host(0).build(connector.clone());
        let http = builder
            .pool_max_idle_per_host(limits.idle_per_host_max)
            .build(connector);
        Self {
            http,
            fresh,
            policy,
            limits,
        }
    }

    /// The policy that this client enforces, so that a URL can be checked when it is stored.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    pub(crate) fn headers_timeout(&self, request: &Request) -> Duration {
        request
            .headers_timeout
            .unwrap_or(self.limits.headers_timeout)
    }

    /// Sends a prepared request and waits for the headers of its answer. A request that the peer
    /// has not processed is sent again at once. One that the peer may have processed is sent again
    /// once, and only if it may arrive twice.
    pub(crate) async fn head_of(
        &self,
        request: http::Request<Full<Bytes>>,
        may_arrive_twice: bool,
        until: Instant,
    ) -> Result<Answering, Failure> {
        let (mut client, mut unprocessed) = (&self.http, 0);
        let mut once_more = may_arrive_twice;
        loop {
            let sent = timeout_at(until, client.request(request.clone()));
            let sent = sent.await.map_err(|_| Failure::Timeout(Phase::Headers))?;
            let error = match sent {
                Ok(answer) => {
                    if let Some(credit) = credit_of(&answer) {
                        credit.head();
                        if let Some(timeout) = keep_alive_timeout(answer.headers()) {
                            credit.closes_after(timeout);
                        }
                    }
                    return Ok(answer);
                }
                Err(error) => error,
            };
            tracing::trace!(?error, "The HTTP library reported an error");
            if unprocessed < UNPROCESSED_MAX && is_unprocessed(&error) {
                unprocessed += 1;
            } else if once_more && was_reused(&error) && broke_off(&error) {
                once_more = false;
                client = &self.fresh;
            } else {
                return Err(Failure::of(&error, error.is_connect()));
            }
        }
    }

    /// Sends one request and reads a bounded part of the answer. Any status is an `Ok`.
    ///
    /// A body longer than the read limit is no failure: reading stops, the connection (HTTP/1.1) or
    /// stream (HTTP/2) is dropped, and the answer counts. A body that breaks off, or is not
    /// complete when the time is over, is a failure whatever the status, except for a
    /// [`Request::notice`].
    ///
    /// # Errors
    /// [`Failure`] if no complete answer came.
    pub async fn send(&self, request: Request) -> Result<Response, Failure> {
        let started = Instant::now();
        let destination = self.policy.check_url(&request.url)?;
        let total = request.total_timeout.unwrap_or(self.limits.total_timeout);
        let headers = self.headers_timeout(&request);
        let ends = started + total;
        let headers_end = ends.min(started + headers);
        let (keep_bytes, is_notice) = (request.keep_bytes, request.is_notice);
        let host = destination.host().to_owned();
        let outcome = async {
            let request = prepare(destination, request)?;
            let mut answer = self.head_of(request, is_notice, headers_end).await?;
            let mut body = Body::up_to(keep_bytes);
            let read_max = self.limits.read_bytes_max.max(keep_bytes);
            let read = timeout_at(ends, body.read(&mut answer, read_max))
                .await
                .unwrap_or(Err(Failure::Timeout(Phase::Body)));
            match read {
                Err(_) if is_notice => body.truncated = true,
                read => read?,
            }
            Ok(into_response(&answer, body, started))
        }
        .await;
        if outcome == Err(Failure::OwnShortage) {
            shortage::tell(&host);
        } else if let Err(failure) = &outcome {
            tracing::debug!(host, code = Failure::code(*failure), %failure, "A request failed");
        }
        outcome
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("policy", &self.policy)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

pub(crate) fn prepare(
    destination: Destination,
    request: Request,
) -> Result<http::Request<Full<Bytes>>, Failure> {
    let mut headers = HeaderMap::with_capacity(request.headers.len() + 2);
    for (name, value) in request.headers {
        let name = HeaderName::try_from(name.as_str()).map_err(|_| Failure::RequestInvalid)?;
        let mut value =
            HeaderValue::try_from(value.as_str()).map_err(|_| Failure::RequestInvalid)?;
        if is_connection_header(name.as_str()) {
            return Err(Failure::RequestInvalid);
        }
        // Keeps the value out of logs and of HTTP/2's compression table.
        value.set_sensitive(name == AUTHORIZATION);
        headers.append(name, value);
    }
    headers
        .entry(USER_AGENT)
        .or_insert(HeaderValue::from_static(OURSELVES));
    headers
        .entry(ACCEPT)
        .or_insert(HeaderValue::from_static("*/*"));
    let uri = destination.into_url();
    let uri = Uri::try_from(uri.as_str()).map_err(|_| Failure::RequestInvalid)?;
    let mut prepared = http::Request::new(Full::new(request.body));
    *prepared.method_mut() = request.method;
    *prepared.uri_mut() = uri;
    *prepared.headers_mut() = headers;
    Ok(prepared)
}

/// How long the peer keeps an unused connection, if its answer says so.
fn keep_alive_timeout(headers: &HeaderMap) -> Option<Duration> {
    let words = headers.get("keep-alive")?.to_str().ok()?;
    words.split(',').find_map(|word| {
        let (name, seconds) = word.split_once('=')?;
        let is_timeout = name.trim().eq_ignore_ascii_case("timeout");
        let seconds = is_timeout.then(|| seconds.trim().parse().ok())?;
        seconds.map(Duration::from_secs)
    })
}

fn credit_of(answer: &Answering) -> Option<Arc<Credit>> {
    answer.extensions().get::<Arc<Credit>>().cloned()
}

/// The next bytes of a body; `None` at its end. Trailers are left out.
pub(crate) async fn chunk(answer: &mut Answering) -> Result<Option<Bytes>, Failure> {
    loop {
        let Some(frame) = answer.body_mut().frame().await else {
            if let Some(credit) = credit_of(answer) {
                credit.answer_ended();
            }
            return Ok(None);
        };
        let frame = frame.map_err(|error| {
            tracing::trace!(?error, "The HTTP library reported an error");
            Failure::of(&error, false)
        })?;
        if let Ok(data) = frame.into_data() {
            if let Some(credit) = answer.extensions().get::<Arc<Credit>>() {
                credit.part(data.len());
            }
            return Ok(Some(data));
        }
    }
}

/// The part of an answer's body that is kept.
pub(crate) struct Body {
    pub(crate) kept: Vec<u8>,
    keep: usize,
    truncated: bool,
}

impl Body {
    /// An empty body that keeps at most `keep` bytes.
    pub(crate) const fn up_to(keep: usize) -> Self {
        Self {
            kept: Vec::new(),
            keep,
            truncated: false,
        }
    }

    /// Reads up to `read_max` bytes. Bytes that are not kept are read, too: an answer that is read
    /// to its end leaves the connection usable. After a failure, the bytes kept so far stay.
    pub(crate) async fn read(
        &mut self,
        answer: &mut Answering,
        read_max: usize,
    ) -> Result<(), Failure> {
        let mut read: usize = 0;
        while let Some(chunk) = chunk(answer).await? {
            let room = self.keep - self.kept.len();
            self.kept.extend_from_slice(&chunk[..chunk.len().min(room)]);
            read = read.saturating_add(chunk.len());
            self.truncated = read > self.kept.len();
            if read > read_max {
                break;
            }
        }
        Ok(())
    }
}

/// Whether the peer has certainly not processed the request: it refused the stream (RFC 9113 §8.7),
/// the stream comes after the last one that it accepts before an orderly close (§6.8), or the
/// request was never written.
fn is_unprocessed(error: &(dyn std::error::Error + 'static)) -> bool {
    if let Some(error) = find::<h2::Error>(error) {
        let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
        let leaving = error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR);
        return error.is_remote() && (refused || leaving);
    }
    find::<hyper::Error>(error).is_some_and(hyper::Error::is_canceled)
}

/// Whether an earlier answer had come on the connection.
fn was_reused(error: &hyper_util::client::legacy::Error) -> bool {
    let mut extras = http::Extensions::new();
    if let Some(connected) = error.connect_info() {
        connected.get_extras(&mut extras);
    }
    let credit = extras.get::<Arc<Credit>>();
    credit.is_some_and(|credit| credit.has_answered())
}

/// Whether the connection ended, in contrast to a peer that sent something invalid.
fn broke_off(error: &(dyn std::error::Error + 'static)) -> bool {
    if find::<Failure>(error).is_some() {
        return false;
    }
    let incomplete = find::<hyper::Error>(error).is_some_and(hyper::Error::is_incomplete_message);
    incomplete
        || find::<io::Error>(error).is_some_and(|error| {
            matches!(
                error.kind(),
                io::ErrorKind::ConnectionReset
                    | io::ErrorKind::ConnectionAborted
                    | io::ErrorKind::BrokenPipe
                    | io::ErrorKind::UnexpectedEof
            )
        })
}

fn into_response(answer: &Answering, body: Body, started: Instant) -> Response {
    let text = |name: HeaderName| {
        let value = answer.headers().get(name)?.to_str().ok()?;
        (value.len() <= ANSWER_HEADER_LEN_MAX).then(|| value.to_owned())
    };
    Response {
        status: answer.status().as_u16(),
        retry_after: text(RETRY_AFTER),
        content_type: text(CONTENT_TYPE),
        body_excerpt: body.kept,
        truncated: body.truncated,
        latency_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
    }
}

#[cfg(test)]
mod tests;

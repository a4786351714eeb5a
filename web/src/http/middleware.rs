//! The one middleware: everything that every request passes, in one struct, outermost first.
//!
//! 1. a request identifier, the client's address, and a place for them ([`RequestContext`]);
//! 2. the access log and the counters, by the route's pattern and never by path or query;
//! 3. the error mapper, so that whatever goes wrong is a problem with a code;
//! 4. the headers that every answer has;
//! 5. a time limit;
//! 6. the shield: work that waits for anything goes on in a task of its own, which neither a client
//!    that goes away nor the time limit can cancel. sqlx 0.9 loses writes on PostgreSQL after a
//!    `begin` that was cancelled half-way, so no request may ever be. Until its body has come, a
//!    request waits with its connection, and goes with it: nothing is begun by then. Work that is
//!    done without waiting needs no task: nothing can cancel it in between;
//! 7. shares ([`Shares`]): a place for work in progress, held by the task and not by the connection,
//!    and the bytes of bodies and answers. The guard says whose they are.

use std::{
    any::Any,
    panic::AssertUnwindSafe,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http_body_util::combinators::BoxBody;
use hyper::body::Body as _;
use ipnet::IpNet;
use poem::{
    Endpoint, IntoEndpoint, IntoResponse, PathPattern, Request, Response, Result,
    http::{HeaderValue, Method, header},
};
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use domain::{Code, Problem, permits::Permit};

use crate::contract::{Contract, Route};

use super::{
    address,
    context::{self, REQUEST_ID, RequestContext, RequestId},
    error::{self, ApiError},
    error_mapping::{self, Outcome},
    meters::Meters,
    share::{LARGE_ANSWER, Owner, Shares},
};

/// Paths that are logged quietly.
const HEALTH: [&str; 2] = ["/healthz", "/readyz"];

/// How a [`Stack`] behaves.
#[derive(Clone)]
pub struct StackOptions {
    /// The published contract.
    pub contract: Arc<Contract>,
    /// Proxies whose `X-Forwarded-For` counts.
    pub trusted_proxies: Vec<IpNet>,
    /// What requests count, and within which bounds.
    pub shares: Arc<Shares>,
    /// How long a caller waits at most. The work itself goes on to its end.
    pub time_limit: Duration,
    /// Where the work runs; wait for it at shutdown, after the connections.
    pub tasks: TaskTracker,
    /// How problems are shown to people.
    pub pages: Option<ProblemPages>,
}

/// Shows a problem; the text is the request's identifier.
pub type Render = fn(&Problem, &str) -> Response;

/// Problems as pages, for requests that people make with a browser.
#[derive(Clone, Copy)]
pub struct ProblemPages {
    /// Whether a request asks for a page.
    pub asks: fn(&Request) -> bool,
    /// The page of a problem.
    pub render: Render,
}

impl StackOptions {
    /// The defaults: 90 seconds, no proxies. (The longest wait that a request may ask for is 60
    /// seconds.)
    #[must_use]
    pub fn new(contract: Arc<Contract>) -> Self {
        Self {
            contract,
            trusted_proxies: Vec::new(),
            shares: Arc::default(),
            time_limit: Duration::from_secs(90),
            tasks: TaskTracker::new(),
            pages: None,
        }
    }
}

/// The routed application with all of the above around it. Never returns an error.
pub struct Stack<E> {
    app: Arc<E>,
    options: StackOptions,
    meters: Meters,
}

/// Wraps `app` into the stack. The recorder of metrics must be installed before the first request.
pub fn wrap<E>(app: E, options: StackOptions) -> Stack<E::Endpoint>
where
    E: IntoEndpoint,
    E::Endpoint: 'static,
{
    Stack {
        app: Arc::new(app.into_endpoint()),
        meters: Meters::new(options.contract.routes().len()),
        options,
    }
}

impl<E> Endpoint for Stack<E>
where
    E: Endpoint + 'static,
{
    type Output = Response;

    async fn call(&self, mut request: Request) -> Result<Response> {
        let started = Instant::now();
        let id = RequestId::of(request.headers());
        let address = address::of_request(&request, &self.options.trusted_proxies);
        let context = RequestContext::new(
            id.clone(),
            address,
            (
                Arc::clone(&self.options.contract),
                Arc::clone(&self.options.shares),
            ),
            &request,
        );
        request.set_data(context.clone());
        let _gone = context.gone().drop_guard();
        let method = request.method().clone();
        let path = request.uri().path();
        let health = HEALTH.contains(&path);
        let versioned = path.starts_with("/v1/");
        let pages = self.options.pages.filter(|pages| (pages.asks)(&request));
        let render = pages.map_or(error::render as Render, |pages| pages.render);

        let refusal =
            error_mapping::of_host(&request).or_else(|| error_mapping::of_uri(request.uri()));
        let result = match refusal {
            Some(problem) => Err(ApiError::from(problem).into()),
            None => self.work(request, &context).await,
        };
        let pattern = pattern(&result);
        let route = pattern
            .as_ref()
            .and_then(|p| self.options.contract.routes().get(&p.0));
        let mut response = answer(result, (route, &method), &id, render);
        if let Err(problem) = count_answer(&mut response, &context, &method).await {
            response = render(&problem, id.as_str());
        }
        complete(&mut response, &context, id.header(), versioned);

        let seen = Seen {
            method: &method,
            route,
            pattern: pattern.as_ref(),
            health,
        };
        self.record(
            &seen,
            response.status().as_u16(),
            started.elapsed(),
            id.as_str(),
        );
        Ok(response)
    }
}

impl<E> Stack<E>
where
    E: Endpoint + 'static,
{
    async fn work(&self, request: Request, context: &RequestContext) -> Result<Response> {
        let id = context.id();
        let app = Arc::clone(&self.app);
        let trace_id = context::trace_id(request.headers());
        let span = tracing::info_span!("request", request_id = id.as_str(), trace_id);
        let working = context.clone();
        let work = async move {
            let result = app.call(request).await.map(IntoResponse::into_response);
            working.end_work();
            result
        };
        let mut work = Box::pin(AssertUnwindSafe(work.instrument(span)).catch_unwind());
        let started = Instant::now();
        let here = std::future::poll_fn(|cx| match work.as_mut().poll(cx) {
            Poll::Pending if context.is_arriving() => Poll::Pending,
            poll => Poll::Ready(poll),
        });
        let result = match here.await {
            Poll::Ready(result) => result,
            Poll::Pending => {
                let task = self.options.tasks.spawn(work);
                let left = self.options.time_limit.saturating_sub(started.elapsed());
                match tokio::time::timeout(left, task).await {
                    Ok(Ok(result)) => result,
                    // The runtime is going away.
                    Ok(Err(_)) => return Err(ApiError::from(error_mapping::overloaded()).into()),
                    Err(_) => {
                        tracing::warn!(
                            request_id = id.as_str(),
                            "a request took too long; its work goes on"
                        );
                        return Err(ApiError::from(error_mapping::unfinished()).into());
                    }
                }
            }
        };
        result.unwrap_or_else(|payload| Err(ApiError::from(of_panic(&*payload, id)).into()))
    }

    fn record(&self, seen: &Seen<'_>, status: u16, took: Duration, request_id: &str) {
        let meter = self
            .meters
            .of(seen.route.map(Route::index), seen.method, status);
        meter.record(seen.label(), seen.method, status, took);
        let latency_ms = took.as_secs_f64() * 1000.0;
        let (method, route) = (seen.method.as_str(), seen.name());
        if seen.health {
            tracing::debug!(method, route, status, latency_ms, request_id, "answered");
        } else {
            tracing::info!(method, route, status, latency_ms, request_id, "answered");
        }
    }
}

/// Which request it was, in words that only we choose.
struct Seen<'a> {
    method: &'a Method,
    route: Option<&'a Route>,
    pattern: Option<&'a PathPattern>,
    health: bool,
}

impl Seen<'_> {
    /// For the log.
    fn name(&self) -> &str {
        match (self.route, self.pattern) {
            (Some(route), _) => route.path(),
            (None, Some(pattern)) => &pattern.0,
            (None, None) => "unmatched",
        }
    }

    /// For the counters: routes outside of the contract share one label.
    fn label(&self) -> &str {
        self.route.map_or("other", Route::path)
    }
}

fn pattern(result: &Result<Response>) -> Option<PathPattern> {
    match result {
        Ok(response) => response.data::<PathPattern>(),
        Err(error) => error.data::<PathPattern>(),
    }
    .cloned()
}

fn of_panic(payload: &(dyn Any + Send), id: &RequestId) -> Problem {
    metrics::counter!("http_panics_total").increment(1);
    let request_id = id.as_str();
    tracing::error!(
        request_id,
        panic = panic_text(payload),
        "a handler panicked"
    );
    Code::Internal.into()
}

fn panic_text(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

fn answer(
    result: Result<Response>,
    (route, method): (Option<&Route>, &Method),
    id: &RequestId,
    render: Render,
) -> Response {
    let problem = match result.map_err(|error| error_mapping::of_error(error, route, method)) {
        Err(Outcome::Problem(problem)) => problem,
        Ok(response) | Err(Outcome::Response(response)) => {
            match error_mapping::of_response(&response) {
                Some(problem) => problem,
                None => return response,
            }
        }
    };
    let mut response = render(&problem, id.as_str());
    if problem.code == Code::MethodNotAllowed {
        let allow = route.map_or(HeaderValue::from_static("GET, HEAD"), Route::allow);
        response.headers_mut().insert(header::ALLOW, allow);
    }
    response
}

/// Counts a large answer until its client has read it. One that nobody waits to hand over is worth
/// nothing, so that its room is waited for here, and only for a moment.
async fn count_answer(
    response: &mut Response,
    context: &RequestContext,
    method: &Method,
) -> std::result::Result<(), Problem> {
    let body = BoxBody::from(response.take_body());
    let length = body
        .size_hint()
        .exact()
        .and_then(|n| usize::try_from(n).ok());
    let Some(length) = length.filter(|length| *length >= LARGE_ANSWER) else {
        context.forget_answer();
        response.set_body(body);
        return Ok(());
    };
    let counted = context.answer_bytes(length).await.map_err(|problem| {
        if method.is_safe() {
            return problem;
        }
        let words = "The change was made, but there is no room for its answer: too many answers \
                     are not read yet.";
        Problem {
            detail: words.to_owned(),
            ..problem
        }
    })?;
    let bytes = poem::Body::from(body).into_bytes().await;
    let bytes = bytes.map_err(|_| Problem::from(Code::Internal))?;
    response.set_body(Bytes::from_owner(Unread {
        bytes,
        _counted: counted,
    }));
    Ok(())
}

/// An answer that somebody has yet to read, and what it counts.
struct Unread {
    bytes: Bytes,
    _counted: Option<Permit<Owner>>,
}

impl AsRef<[u8]> for Unread {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// The headers that every answer has.
fn complete(response: &mut Response, context: &RequestContext, id: HeaderValue, versioned: bool) {
    const JSON: HeaderValue = HeaderValue::from_static("application/json");
    let headers = response.headers_mut();
    headers.insert(REQUEST_ID, id);
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    if versioned && !headers.contains_key(header::CACHE_CONTROL) {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    // JSON has no charset parameter (RFC 8259 §11), and the contract names none.
    if let Some(value) = headers.get_mut(header::CONTENT_TYPE)
        && value.as_bytes() == b"application/json; charset=utf-8"
    {
        *value = JSON;
    }
    if let Some(state) = context.rate() {
        for (name, value) in state.headers() {
            headers.insert(name, value);
        }
    }
}

#[cfg(test)]
mod tests;

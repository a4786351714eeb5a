//! What is known of a request before anybody looks at it.

use std::{
    future::poll_fn,
    net::IpAddr,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::Poll,
};

use poem::{
    FromRequest, Request, RequestBody,
    http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header},
};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use crate::contract::Contract;
use domain::{Code, Problem, permits::Permit, random};

use super::{
    error::ApiError,
    limit::{RateState, Refusal},
    share::{self, Owner, Shares},
};

/// The header that carries a request's identifier, both ways.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longest identifier that is taken from a caller, characters.
pub const REQUEST_ID_CHARS: usize = 64;

/// The header by which a caller asks that something be done at most once.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Longest part of a `User-Agent` that is kept, characters.
const USER_AGENT_CHARS: usize = 200;

/// A request's identifier: the caller's own when it is sane, else `req_…`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(HeaderValue);

impl RequestId {
    /// Takes the caller's `X-Request-Id` if it is `[A-Za-z0-9._-]{1,64}`, else makes one.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Self {
        headers
            .get(REQUEST_ID)
            .filter(|value| is_sane(value.as_bytes()))
            .map_or_else(Self::generate, |value| Self(value.clone()))
    }

    pub(super) fn generate() -> Self {
        // Crockford's alphabet in lower case, as in all our identifiers.
        const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
        let mut text = *b"req_00000000000000000000000000";
        let mut rest = u128::from_be_bytes(random::plain_bytes());
        for slot in &mut text[4..] {
            *slot = ALPHABET[(rest & 31) as usize];
            rest >>= 5;
        }
        Self(HeaderValue::from_bytes(&text).unwrap_or(HeaderValue::from_static("req_unknown")))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }

    /// The header's value.
    #[must_use]
    pub fn header(&self) -> HeaderValue {
        self.0.clone()
    }
}

/// The trace that the caller's `traceparent` belongs to (W3C Trace Context 1, §3.2.2), for the log.
#[must_use]
pub fn trace_id(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get("traceparent")?.to_str().ok()?;
    let mut parts = value.split('-');
    let (version, trace) = (parts.next()?, parts.next()?);
    let hex = |text: &str| text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let valid = version.len() == 2
        && version != "ff"
        && trace.len() == 32
        && hex(version)
        && hex(trace)
        && trace.bytes().any(|b| b != b'0');
    valid.then_some(trace)
}

fn is_sane(text: &[u8]) -> bool {
    (1..=REQUEST_ID_CHARS).contains(&text.len())
        && text
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// What the stack knows of a request, shared with whoever handles it. Cheap to clone.
///
/// Handlers take it as `context: &RequestContext`.
#[derive(Clone)]
pub struct RequestContext(Arc<Inner>);

struct Inner {
    id: RequestId,
    address: IpAddr,
    contract: Arc<Contract>,
    method: Method,
    uri: Uri,
    user_agent: Option<HeaderValue>,
    hashes_body: bool,
    body_hash: OnceLock<[u8; 32]>,
    rate: OnceLock<RateState>,
    arriving: AtomicBool,
    gone: CancellationToken,
    shares: Arc<Shares>,
    counted: Mutex<Counted>,
}

/// What a request counts, and for whom.
#[derive(Default)]
struct Counted {
    owner: Option<Owner>,
    /// Its place among those at work.
    place: Option<Permit<Owner>>,
    /// The bytes of its body.
    body: Option<Permit<Owner>>,
    /// The bytes of its answer, as far as they are known before there is one.
    answer: Option<Permit<Owner>>,
}

impl RequestContext {
    /// For `request` from `address`, to be judged by `contract`.
    #[must_use]
    pub fn new(
        id: RequestId,
        address: IpAddr,
        (contract, shares): (Arc<Contract>, Arc<Shares>),
        request: &Request,
    ) -> Self {
        let headers = request.headers();
        Self(Arc::new(Inner {
            id,
            address,
            contract,
            method: request.method().clone(),
            uri: request.uri().clone(),
            user_agent: headers.get(header::USER_AGENT).cloned(),
            hashes_body: headers.contains_key(IDEMPOTENCY_KEY),
            body_hash: OnceLock::new(),
            rate: OnceLock::new(),
            arriving: AtomicBool::new(false),
            gone: CancellationToken::new(),
            shares,
            counted: Mutex::default(),
        }))
    }

    /// Cancelled when nobody waits for the answer any more: the caller hung up, or it came.
    #[must_use]
    pub fn gone(&self) -> CancellationToken {
        self.0.gone.clone()
    }

    fn counted(&self) -> MutexGuard<'_, Counted> {
        self.0
            .counted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Says whom the request counts for from now on, and waits for a place among those at work.
    /// Nothing of the work is to be begun before, but what it took to know whom.
    ///
    /// # Errors
    /// 429 when the owner has its share, 503 when there is no place at all.
    pub async fn enter(&self, owner: Owner) -> Result<(), ApiError> {
        {
            let mut counted = self.counted();
            counted.owner = Some(owner);
            counted.place = None;
        }
        let place = self.before_work(self.0.shares.work(owner, &self.0.gone));
        let place = place.await?;
        self.counted().place = Some(place);
        Ok(())
    }

    /// Waits for a place again, after the body has come.
    pub(super) async fn reenter(&self) -> Result<(), Problem> {
        let owner = self.counted().owner;
        let Some(owner) = owner else { return Ok(()) };
        let place = self.0.shares.work(owner, &self.0.gone).await?;
        self.counted().place = Some(place);
        Ok(())
    }

    /// Gives the place back: from now on the request waits rather than works.
    pub fn leave_place(&self) {
        // Not dropped under the lock: that serves whoever waits.
        let place = self.counted().place.take();
        drop(place);
    }

    /// Waits for something that is no work of its own and has bounds of its own: if it is not there
    /// at once, without the place, which the request waits for again afterwards.
    ///
    /// # Errors
    /// There is no place any more: 429 when the owner has its share, else 503.
    pub async fn aside<T>(&self, wait: impl Future<Output = T>) -> Result<T, Problem> {
        let mut asked = pin!(wait);
        let now = poll_fn(|task| Poll::Ready(asked.as_mut().poll(task))).await;
        if let Poll::Ready(done) = now {
            return Ok(done);
        }
        self.leave_place();
        let done = asked.await;
        self.reenter().await?;
        Ok(done)
    }

    /// The work is done: nothing of it counts any more but its answer.
    pub(super) fn end_work(&self) {
        let (place, body) = {
            let mut counted = self.counted();
            (counted.place.take(), counted.body.take())
        };
        drop((place, body));
    }

    /// Waits for something before anything of the work is begun: a client that goes away meanwhile
    /// takes its request along.
    async fn before_work<F: Future>(&self, wait: F) -> F::Output {
        self.note_arriving(true);
        let outcome = wait.await;
        self.note_arriving(false);
        outcome
    }

    /// Room for so many bytes of a body, in its turn.
    pub(super) async fn body_bytes(&self, amount: usize) -> Result<Option<Permit<Owner>>, Problem> {
        let owner = self.counted().owner;
        let Some(owner) = owner else { return Ok(None) };
        let permit = self.0.shares.bytes(owner, amount, &self.0.gone).await?;
        Ok(Some(permit))
    }

    /// Has `permit` count so many bytes of a body, now.
    pub(super) fn grow_body(
        &self,
        permit: &mut Option<Permit<Owner>>,
        amount: usize,
    ) -> Result<(), Problem> {
        let owner = self.counted().owner;
        let Some(owner) = owner else { return Ok(()) };
        match permit {
            None => *permit = Some(self.0.shares.bytes_now(owner, amount)?),
            Some(permit) => {
                let more = amount.saturating_sub(permit.amount());
                if more > 0 {
                    let grown = permit.try_grow(more);
                    grown.map_err(|full| share::no_bytes(owner, full))?;
                }
            }
        }
        Ok(())
    }

    /// Keeps what a body counts until the work is done.
    pub(super) fn keep_body(&self, permit: Option<Permit<Owner>>) {
        self.counted().body = permit;
    }

    /// Waits for room for an answer of so many bytes, before it is put together. What the answer
    /// does not need is given back when there is one.
    ///
    /// # Errors
    /// 429 when the owner has its share, 503 when there is no room at all.
    pub async fn reserve_answer(&self, amount: usize) -> Result<(), ApiError> {
        let mut asked = pin!(self.before_work(self.body_bytes(amount)));
        let now = poll_fn(|task| Poll::Ready(asked.as_mut().poll(task))).await;
        let permit = match now {
            Poll::Ready(permit) => permit?,
            Poll::Pending => {
                self.leave_place();
                let permit = asked.await?;
                self.before_work(self.reenter()).await?;
                permit
            }
        };
        self.counted().answer = permit;
        Ok(())
    }

    /// What an answer of so many bytes counts.
    pub(super) async fn answer_bytes(
        &self,
        amount: usize,
    ) -> Result<Option<Permit<Owner>>, Problem> {
        let reserved = self.counted().answer.take();
        match reserved {
            Some(mut permit) if permit.amount() >= amount => {
                permit.shrink_to(amount);
                Ok(Some(permit))
            }
            _ => {
                drop(reserved);
                self.body_bytes(amount).await
            }
        }
    }

    /// Nothing of the answer is counted.
    pub(super) fn forget_answer(&self) {
        let permit = self.counted().answer.take();
        drop(permit);
    }

    /// The context of a request that came through the stack.
    pub fn of(request: &Request) -> Result<&Self, ApiError> {
        request.data::<Self>().ok_or_else(|| {
            tracing::error!("a request reached a handler without passing the stack");
            Code::Internal.into()
        })
    }

    /// The request's identifier, to be sent back.
    pub(super) fn id(&self) -> &RequestId {
        &self.0.id
    }

    /// The request's identifier.
    #[must_use]
    pub fn request_id(&self) -> &str {
        self.0.id.as_str()
    }

    /// The client's address, as far as it can be trusted (see [`address`](super::address)).
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.0.address
    }

    /// The request's path and query.
    #[must_use]
    pub fn uri(&self) -> &Uri {
        &self.0.uri
    }

    /// The caller's program by its own words, shortened; characters but printable ASCII are left
    /// out.
    #[must_use]
    pub fn user_agent(&self) -> Option<String> {
        let value = self.0.user_agent.as_ref()?.as_bytes();
        let printable = value
            .iter()
            .filter(|byte| (b' '..=b'~').contains(byte))
            .take(USER_AGENT_CHARS);
        Some(printable.map(|byte| char::from(*byte)).collect())
    }

    /// Whether the request waits for its body or its turn: nothing of the work is begun then.
    pub(super) fn is_arriving(&self) -> bool {
        self.0.arriving.load(Relaxed)
    }

    /// Notes whether it does.
    pub(super) fn note_arriving(&self, arriving: bool) {
        // One task at a time looks at a request.
        self.0.arriving.store(arriving, Relaxed);
    }

    /// Notes the body as it was sent, where its hash will be asked for.
    pub(super) fn note_body(&self, bytes: &[u8]) {
        if self.0.hashes_body {
            let _ = self.0.body_hash.set(Sha256::digest(bytes).into());
        }
    }

    /// SHA-256 over method, path with query, and body: what makes two requests the same. Known
    /// after the body was read, and only of requests with an `Idempotency-Key`.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        let target = self
            .0
            .uri
            .path_and_query()
            .map_or("/", |target| target.as_str());
        let mut hash = Sha256::new();
        hash.update(self.0.method.as_str());
        hash.update(b"\n");
        hash.update(target);
        hash.update(b"\n");
        if let Some(body) = self.0.body_hash.get() {
            hash.update(body);
        }
        hash.finalize().into()
    }

    /// The published contract.
    #[must_use]
    pub fn contract(&self) -> &Contract {
        &self.0.contract
    }

    /// Notes what a rate limit says, whatever it says.
    ///
    /// # Errors
    /// Its refusal.
    pub fn admit(&self, verdict: Result<Option<RateState>, Refusal>) -> Result<(), ApiError> {
        match verdict {
            Ok(state) => {
                if let Some(state) = state {
                    self.note_rate(state);
                }
                Ok(())
            }
            Err(refusal) => {
                self.note_rate(refusal.state);
                Err((*refusal.problem).into())
            }
        }
    }

    /// Notes what is left of the caller's allowance; the answer will say so in its `RateLimit`
    /// headers. The first note stays.
    pub fn note_rate(&self, state: RateState) {
        // Whoever counts first counts for the whole request.
        let _ = self.0.rate.set(state);
    }

    /// What was noted.
    #[must_use]
    pub fn rate(&self) -> Option<&RateState> {
        self.0.rate.get()
    }
}

impl<'a> FromRequest<'a> for &'a RequestContext {
    async fn from_request(request: &'a Request, _: &mut RequestBody) -> poem::Result<Self> {
        Ok(RequestContext::of(request)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id_for(value: &'static str) -> String {
        let mut headers = HeaderMap::new();
        headers.insert(REQUEST_ID, HeaderValue::from_static(value));
        RequestId::of(&headers).as_str().to_owned()
    }

    #[test]
    fn a_sane_identifier_is_kept() {
        for sane in [
            "a",
            "A-1_b.c",
            "0123456789012345678901234567890123456789012345678901234567890123",
        ] {
            assert_eq!(id_for(sane), sane);
        }
    }

    #[test]
    fn a_trace_is_recognised() {
        let of = |value: &'static str| {
            let headers = HeaderMap::from_iter([(
                HeaderName::from_static("traceparent"),
                HeaderValue::from_static(value),
            )]);
            trace_id(&headers).map(str::to_owned)
        };
        let trace = "0af7651916cd43dd8448eb211c80319c";
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(of(parent).as_deref(), Some(trace));
        for odd in [
            "",
            "00",
            "00-x-y-z",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        ] {
            assert_eq!(of(odd), None, "{odd}");
        }
    }

    #[test]
    fn anything_else_is_replaced() {
        let long = "01234567890123456789012345678901234567890123456789012345678901234";
        for odd in ["", "a b", "a\"b", "a,b", long] {
            let made = id_for(odd);
            assert!(
                made.starts_with("req_") && made.len() == 30,
                "{odd} → {made}"
            );
        }
        assert_ne!(RequestId::generate(), RequestId::generate());
    }
}

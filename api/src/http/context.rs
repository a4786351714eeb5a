//! What is known of a request before anybody looks at it.

use std::{
    net::IpAddr,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use poem::{
    FromRequest, Request, RequestBody,
    http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header},
};
use sha2::{Digest as _, Sha256};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use crate::contract::Contract;
use domain::{Code, random};

use super::{
    error::ApiError,
    limit::{RateState, Refusal},
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

    fn generate() -> Self {
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
    place: Mutex<Option<OwnedSemaphorePermit>>,
}

impl RequestContext {
    /// For `request` from `address`, to be judged by `contract`.
    #[must_use]
    pub fn new(id: RequestId, address: IpAddr, contract: Arc<Contract>, request: &Request) -> Self {
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
            place: Mutex::default(),
        }))
    }

    /// Cancelled when nobody waits for the answer any more: the caller hung up, or it came.
    #[must_use]
    pub fn gone(&self) -> CancellationToken {
        self.0.gone.clone()
    }

    /// Keeps the request's place among those at work.
    pub(super) fn hold_place(&self, place: Option<OwnedSemaphorePermit>) {
        *self.0.place.lock().unwrap_or_else(PoisonError::into_inner) = place;
    }

    /// Gives the place back: from now on the request waits rather than works.
    pub fn leave_place(&self) {
        self.hold_place(None);
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

    /// Whether the request's body is being read: nothing of the work is begun then.
    pub(super) fn is_arriving(&self) -> bool {
        self.0.arriving.load(Relaxed)
    }

    /// Notes whether the body is being read.
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

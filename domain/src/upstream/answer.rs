//! Reads the answers of token endpoints.
//!
//! RFC 6749 has one form for a grant (§5.1) and one for an error (§5.2). Endpoints have variants of
//! both. Where refresh tokens rotate, a grant that is not understood is lost for good, so whatever
//! can be used of an answer is used. An answer that a grant is dead counts in whatever form it
//! comes.

use std::{collections::HashMap, time::Duration};

use secrecy::SecretString;
use serde_json::value::RawValue;
use zeroize::Zeroizing;

use crate::{Timestamp, limits::CREDENTIAL_CHARS, random};

use words::{Fault, fault_of};

mod words;

/// The shortest access token that is accepted, bytes: its last four are shown.
const TOKEN_BYTES_MIN: usize = 8;
/// The largest answer of a token endpoint that is read, bytes.
pub const ANSWER_BYTES: usize = 64 * 1024;
/// The life of a token if the answer does not say it (RFC 6749 §5.1 only recommends that it does).
const LIFE_DEFAULT: Duration = Duration::from_hours(1);
/// The longest and the shortest life of a token; others are clamped.
const LIFE_MAX: Duration = Duration::from_hours(365 * 24);
const LIFE_MIN: Duration = Duration::from_secs(1);
/// The waits between tries at an endpoint that fails: the first, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(2), Duration::from_mins(1));
/// The longest wait that an endpoint can ask for by `Retry-After`.
const RETRY_AFTER_MAX: Duration = Duration::from_hours(1);
/// Each wait varies by this share to either side, so that many accounts are not tried at once.
const SPREAD: f64 = 0.2;
/// Token types that need a proof with each request, and the type of a token that is no access token
/// (RFC 8693 §2.2.1). A token of any other type is sent as a bearer.
const NO_BEARERS: [&str; 5] = ["mac", "dpop", "pop", "hok", "n_a"];

/// What a token endpoint granted. `Debug` does not show the tokens.
#[derive(Clone, Debug)]
pub struct Grant {
    /// The new access token.
    pub access_token: SecretString,
    /// The new refresh token; `None` if the old one stays (RFC 6749 §6).
    pub refresh_token: Option<SecretString>,
    /// How long the access token lives, from the time of the request.
    pub life: Duration,
}

/// Why a token endpoint granted nothing.
#[derive(Clone, Debug)]
pub struct TokenError {
    /// What the error means for the account.
    pub kind: ErrorKind,
    /// The reason, one of a closed list of words.
    pub reason: &'static str,
    /// How long the endpoint asks to wait.
    pub retry_after: Option<Duration>,
    /// Whether the request may succeed with the client's secret in another place.
    pub other_place: bool,
    /// The new refresh token, if the answer had one but no usable access token.
    pub refresh_token: Option<SecretString>,
}

/// What an error means for the account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The grant is spent or revoked: only a new login helps.
    Spent,
    /// The endpoint refuses this client or request.
    Refused,
    /// Another try may succeed.
    Passing,
}

impl TokenError {
    /// An error that says nothing about the grant.
    #[must_use]
    pub const fn passing(reason: &'static str) -> Self {
        Self::of(ErrorKind::Passing, reason)
    }

    const fn of(kind: ErrorKind, reason: &'static str) -> Self {
        Self {
            kind,
            reason,
            retry_after: None,
            other_place: false,
            refresh_token: None,
        }
    }

    /// Whether the account can't be refreshed any more. A refused client may be repaired while the
    /// present access token works, so a refusal counts only once that token is expired.
    #[must_use]
    pub fn ends_account(&self, now: Timestamp, expires_at: Option<Timestamp>) -> bool {
        match self.kind {
            ErrorKind::Spent => true,
            ErrorKind::Refused => expires_at.is_none_or(|at| at <= now),
            ErrorKind::Passing => false,
        }
    }

    /// The wait before the next try, after `failures` errors in a row, this one included.
    #[must_use]
    pub fn wait(&self, failures: u32) -> Duration {
        let doubled = BACKOFF.0 * 2_u32.pow(failures.saturating_sub(1).min(10));
        let wait = doubled.min(BACKOFF.1).mul_f64(random::jitter(SPREAD));
        let asked = self.retry_after.unwrap_or_default().min(RETRY_AFTER_MAX);
        wait.max(asked)
    }

    /// The error of two requests with the client's secret in different places, of which the second
    /// failed with `second`. An error about the grant counts more than others, and so does the
    /// error of the request whose secret was in the place that the endpoint reads.
    #[must_use]
    pub fn or(self, second: Self) -> Self {
        let here = self.kind == ErrorKind::Spent
            || second.kind == ErrorKind::Refused && second.reason == "invalid_client";
        if here && second.kind != ErrorKind::Spent {
            self
        } else {
            second
        }
    }
}

/// Reads an answer of a token endpoint, whatever its `Content-Type`. The body may be the JSON of
/// RFC 6749 (§5.1, §5.2) or a form. An error may come with the status of a success.
///
/// # Errors
/// [`TokenError`] if the answer is no grant. It is [`ErrorKind::Passing`] for a 5xx, a 429, a
/// redirect, which is never followed, and an answer that has neither grant nor error.
pub fn read_answer(status: u16, body: &[u8]) -> Result<Grant, TokenError> {
    let found = Found::read(body);
    match status {
        200..300 => granted(status, &found),
        429 => Err(TokenError::passing("rate_limited")),
        400..500 => Err(refusal(status, &found)),
        500.. => Err(TokenError::passing("unavailable")),
        _ => Err(TokenError::passing("unexpected_status")),
    }
}

fn granted(status: u16, found: &Found) -> Result<Grant, TokenError> {
    let token_type = found.token_type.as_deref().unwrap_or_default();
    let sendable = !NO_BEARERS.contains(&token_type.to_ascii_lowercase().as_str());
    let access_token = found.access_token.as_ref().filter(|_| sendable);
    if let Some(access_token) = access_token.and_then(header_token) {
        return Ok(Grant {
            access_token,
            refresh_token: found.refresh_token(),
            life: life(found.expires_in),
        });
    }
    let error = if found.is_object || status == 200 {
        refusal(status, found)
    } else {
        TokenError::passing("unexpected_status")
    };
    Err(TokenError {
        refresh_token: found.refresh_token(),
        ..error
    })
}

/// The token, if it can be sent in a header. (RFC 6749 appendix A.12 allows spaces, headers do
/// not.)
fn header_token(text: &Zeroizing<String>) -> Option<SecretString> {
    let sane = (TOKEN_BYTES_MIN..=CREDENTIAL_CHARS).contains(&text.len());
    let sane = sane && text.bytes().all(|byte| byte.is_ascii_graphic());
    sane.then(|| SecretString::from(text.as_str().to_owned()))
}

/// The life of a token. Some endpoints write 0 or -1 for a token without an end; then it is
/// unknown.
fn life(seconds: Option<f64>) -> Duration {
    let (min, max) = (LIFE_MIN.as_secs_f64(), LIFE_MAX.as_secs_f64());
    match seconds {
        Some(seconds) if seconds > 0.0 => Duration::from_secs_f64(seconds.clamp(min, max)),
        _ => LIFE_DEFAULT,
    }
}

fn refusal(status: u16, found: &Found) -> TokenError {
    // Codes about the grant count most, then those of RFC 6749.
    let faults = found.codes.iter().map(|code| fault_of(code));
    let fault = faults.min().unwrap_or(Fault::Unknown);
    let (kind, reason) = match fault {
        Fault::Spent(reason) => (ErrorKind::Spent, reason),
        Fault::Passing(reason) => (ErrorKind::Passing, reason),
        Fault::Refused(reason) => (ErrorKind::Refused, reason),
        Fault::Unknown if found.has_code => (ErrorKind::Refused, "refused"),
        Fault::Unknown if status == 401 => (ErrorKind::Refused, "invalid_client"),
        Fault::Unknown => (ErrorKind::Passing, "malformed_answer"),
    };
    let other_place = match fault {
        // `invalid_grant` may also mean that the endpoint did not recognize the client.
        Fault::Spent(reason) => reason == "invalid_grant",
        Fault::Passing(_) => false,
        Fault::Refused(_) => true,
        Fault::Unknown => found.has_code || matches!(status, 400 | 401 | 403 | 422),
    };
    TokenError {
        other_place,
        ..TokenError::of(kind, reason)
    }
}

/// The members of an answer that count. Malformed members are left out.
#[derive(Default)]
struct Found {
    /// Whether the answer is JSON or a form at all.
    is_object: bool,
    access_token: Option<Zeroizing<String>>,
    refresh_token: Option<Zeroizing<String>>,
    token_type: Option<String>,
    expires_in: Option<f64>,
    /// All words that may be error codes.
    codes: Vec<String>,
    /// Whether one of them is in the member that RFC 6749 defines.
    has_code: bool,
}

impl Found {
    fn read(body: &[u8]) -> Self {
        let text = Zeroizing::new(String::from_utf8_lossy(body).into_owned());
        let text = text.trim_start_matches('\u{feff}').trim();
        match object_of(text) {
            Some(members) => Self::of_json(&members),
            None => form_of(text).map_or_else(Self::default, Self::of_form),
        }
    }

    fn of_json(members: &Object<'_>) -> Self {
        let text = |name: &str| members.get(name).and_then(|raw| text_of(raw));
        let mut codes = Vec::new();
        for name in CODES {
            if let Some(raw) = members.get(name) {
                codes_of(raw, 0, &mut codes);
            }
        }
        Self {
            is_object: true,
            access_token: text("access_token"),
            refresh_token: text("refresh_token"),
            token_type: text("token_type").map(|text| text.as_str().to_owned()),
            expires_in: members.get("expires_in").and_then(|raw| number_of(raw)),
            has_code: text("error").is_some_and(|code| !code.is_empty()),
            codes,
        }
    }

    fn of_form(mut members: HashMap<String, Zeroizing<String>>) -> Self {
        let mut taken = |name: &str| members.remove(name);
        let code = taken("error").filter(|code| !code.is_empty());
        Self {
            is_object: true,
            access_token: taken("access_token"),
            refresh_token: taken("refresh_token"),
            token_type: taken("token_type").map(|text| text.as_str().to_owned()),
            expires_in: taken("expires_in").and_then(|text| text.trim().parse().ok()),
            has_code: code.is_some(),
            codes: code.iter().map(|code| code.as_str().to_owned()).collect(),
        }
    }

    /// The refresh token. It is sent in a form, so it may be any text.
    fn refresh_token(&self) -> Option<SecretString> {
        let text = self.refresh_token.as_ref().filter(|text| !text.is_empty());
        text.map(|text| SecretString::from(text.as_str().to_owned()))
    }
}

/// The members of an answer, or of an error object in it, that may contain an error code.
const CODES: [&str; 8] = [
    "error",
    "errors",
    "code",
    "error_code",
    "errorCode",
    "errorType",
    "type",
    "status",
];
/// Error objects within error objects are read to this depth.
const CODES_DEEP: u8 = 3;
const CODES_MAX: usize = 50;

type Object<'a> = HashMap<String, &'a RawValue>;

fn object_of(text: &str) -> Option<Object<'_>> {
    serde_json::from_str(text).ok()
}

fn text_of(raw: &RawValue) -> Option<Zeroizing<String>> {
    serde_json::from_str(raw.get()).ok()
}

/// A number, or a text that is one. A number that is too large counts as infinite.
fn number_of(raw: &RawValue) -> Option<f64> {
    let text = text_of(raw).unwrap_or_else(|| Zeroizing::new(raw.get().to_owned()));
    text.trim().parse().ok()
}

/// Collects possible error codes: a text, or the texts in an object or a list.
fn codes_of(raw: &RawValue, depth: u8, codes: &mut Vec<String>) {
    if codes.len() >= CODES_MAX || depth > CODES_DEEP {
        return;
    }
    if let Some(text) = text_of(raw) {
        if !text.is_empty() {
            codes.push(text.as_str().to_owned());
        }
    } else if let Some(members) = object_of(raw.get()) {
        for raw in CODES.iter().filter_map(|name| members.get(*name)) {
            codes_of(raw, depth + 1, codes);
        }
    } else if let Ok(list) = serde_json::from_str::<Vec<&RawValue>>(raw.get()) {
        for raw in list {
            codes_of(raw, depth + 1, codes);
        }
    }
}

/// The members of a form; `None` if the text is no form.
fn form_of(text: &str) -> Option<HashMap<String, Zeroizing<String>>> {
    let none = |byte: u8| !byte.is_ascii_graphic() || b"<>\"{}".contains(&byte);
    if !text.contains('=') || text.bytes().any(none) {
        return None;
    }
    let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    let decoded = pairs.map(|(name, value)| (decoded(name).as_str().to_owned(), decoded(value)));
    Some(decoded.collect())
}

/// Decodes a text of a form.
fn decoded(text: &str) -> Zeroizing<String> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len()));
    let mut rest = text.as_bytes();
    while let [first, more @ ..] = rest {
        rest = more;
        let escaped = match (first, more) {
            (b'%', [high, low, ..]) => digit(*high).zip(digit(*low)),
            _ => None,
        };
        match (first, escaped) {
            (_, Some((high, low))) => {
                bytes.push(high << 4 | low);
                rest = &more[2..];
            }
            (b'+', None) => bytes.push(b' '),
            (other, None) => bytes.push(*other),
        }
    }
    Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned())
}

fn digit(byte: u8) -> Option<u8> {
    let digit = char::from(byte).to_digit(16)?;
    u8::try_from(digit).ok()
}

#[cfg(test)]
mod tests;

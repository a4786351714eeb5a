//! OAuth 2.0 as a client speaks it: what is sent to a token endpoint, what its answers mean, and
//! what follows from them (RFC 6749, RFC 7636).
//!
//! Nothing of an answer but its tokens leaves here: reasons are words of ours, so that no byte
//! that somebody else wrote reaches a log, an event or another caller.

use std::time::Duration;

use base64::{
    Engine as _, engine::general_purpose::STANDARD, engine::general_purpose::URL_SAFE_NO_PAD,
};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::{Timestamp, limits::CREDENTIAL_CHARS, random};

/// Shortest access token that is taken, bytes: its last four are shown.
const TOKEN_BYTES_MIN: usize = 8;
/// Largest answer of a token endpoint that is read, bytes.
pub const ANSWER_BYTES: usize = 64 * 1024;
/// How long a token lives whose answer does not say (RFC 6749 §5.1 only recommends that it does).
const LIFE_DEFAULT: Duration = Duration::from_hours(1);
/// No token is believed to live longer.
const LIFE_MAX: Duration = Duration::from_hours(365 * 24);
/// A token this near to its end is replaced before it is handed out.
const MARGIN: Duration = Duration::from_mins(1);
/// Waits between tries at an endpoint that gives no tokens: the first, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(2), Duration::from_mins(1));
/// No endpoint makes us wait longer by its `Retry-After`.
const RETRY_AFTER_MAX: Duration = Duration::from_hours(1);
/// Spread of waits, so that many accounts do not come back at once.
const SPREAD: f64 = 0.2;

/// What a token endpoint granted. Nothing of it shows in `Debug`.
#[derive(Clone, Debug)]
pub struct Grant {
    /// The new access token.
    pub access_token: SecretString,
    /// The refresh token to use from now on; none if the old one stays (RFC 6749 §6).
    pub refresh_token: Option<SecretString>,
    /// How long the access token lives from the request on.
    pub life: Duration,
}

/// Why a token endpoint granted nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenError {
    /// What it means for the account.
    pub kind: ErrorKind,
    /// One of a closed list of words.
    pub reason: &'static str,
    /// How long the endpoint asks to be left alone.
    pub retry_after: Option<Duration>,
}

/// What a failure means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The grant is spent or revoked: only a new login helps.
    Spent,
    /// The endpoint understood, and refuses this client or request.
    Refused,
    /// Another try may go better.
    Passing,
}

impl TokenError {
    /// A failure that says nothing about the grant.
    #[must_use]
    pub const fn passing(reason: &'static str) -> Self {
        Self {
            kind: ErrorKind::Passing,
            reason,
            retry_after: None,
        }
    }

    const fn refused(reason: &'static str) -> Self {
        Self {
            kind: ErrorKind::Refused,
            reason,
            retry_after: None,
        }
    }

    /// Whether the account can't be used any more. One that is only refused is used while its
    /// token lives; the client may be put right in time.
    #[must_use]
    pub fn ends_account(&self, now: Timestamp, expires_at: Option<Timestamp>) -> bool {
        match self.kind {
            ErrorKind::Spent => true,
            ErrorKind::Refused => expires_at.is_none_or(|at| at <= now),
            ErrorKind::Passing => false,
        }
    }

    /// How long to wait before the next try, when this was the `failures`-th in a row (from 1).
    #[must_use]
    pub fn wait(&self, failures: u32) -> Duration {
        let doubled = BACKOFF.0 * 2_u32.pow(failures.saturating_sub(1).min(10));
        let wait = doubled.min(BACKOFF.1).mul_f64(random::jitter(SPREAD));
        let asked = self.retry_after.unwrap_or_default().min(RETRY_AFTER_MAX);
        wait.max(asked)
    }
}

#[derive(Deserialize)]
struct Granted {
    access_token: Zeroizing<String>,
    #[serde(default)]
    token_type: Option<String>,
    #[serde(default)]
    refresh_token: Option<Zeroizing<String>>,
    #[serde(default)]
    expires_in: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Refused {
    error: String,
}

/// Reads a token endpoint's answer (RFC 6749 §5.1, §5.2).
///
/// # Errors
/// Why it is no grant. A 5xx, a 429, and whatever is not as the RFC has it are passing; so is a
/// redirect, which is never followed.
pub fn read_answer(status: u16, body: &[u8]) -> Result<Grant, TokenError> {
    match status {
        200 => granted(body).ok_or(TokenError::passing("malformed_answer")),
        429 => Err(TokenError::passing("rate_limited")),
        400..500 => Err(refusal(status, body)),
        500.. => Err(TokenError::passing("unavailable")),
        _ => Err(TokenError::passing("unexpected_status")),
    }
}

fn granted(body: &[u8]) -> Option<Grant> {
    let found: Granted = serde_json::from_slice(body).ok()?;
    let bearer = found.token_type.as_deref().unwrap_or("bearer");
    if !bearer.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let refresh_token = match &found.refresh_token {
        Some(text) if text.is_empty() => None,
        Some(text) => Some(token(text, 1)?),
        None => None,
    };
    Some(Grant {
        access_token: token(&found.access_token, TOKEN_BYTES_MIN)?,
        refresh_token,
        life: life(found.expires_in.as_ref())?,
    })
}

/// A token that can stand in a header (RFC 6749 appendix A.12 allows spaces; no header would).
fn token(text: &Zeroizing<String>, bytes_min: usize) -> Option<SecretString> {
    let sane = (bytes_min..=CREDENTIAL_CHARS).contains(&text.len());
    let sane = sane && text.bytes().all(|byte| byte.is_ascii_graphic());
    sane.then(|| SecretString::from(text.as_str().to_owned()))
}

/// Some endpoints write the number as a text.
fn life(seconds: Option<&serde_json::Value>) -> Option<Duration> {
    let seconds = match seconds {
        None | Some(serde_json::Value::Null) => return Some(LIFE_DEFAULT),
        Some(serde_json::Value::String(text)) => text.parse().ok()?,
        Some(number) => number.as_f64()?,
    };
    if !seconds.is_finite() || seconds < 1.0 {
        return None;
    }
    Some(Duration::from_secs_f64(seconds.min(LIFE_MAX.as_secs_f64())))
}

fn refusal(status: u16, body: &[u8]) -> TokenError {
    let error = serde_json::from_slice::<Refused>(body).ok();
    match error.as_ref().map(|found| found.error.as_str()) {
        Some("invalid_grant") => TokenError {
            kind: ErrorKind::Spent,
            reason: "invalid_grant",
            retry_after: None,
        },
        Some("invalid_client") => TokenError::refused("invalid_client"),
        Some("unauthorized_client") => TokenError::refused("unauthorized_client"),
        Some("invalid_request") => TokenError::refused("invalid_request"),
        Some("invalid_scope") => TokenError::refused("invalid_scope"),
        Some("unsupported_grant_type") => TokenError::refused("unsupported_grant_type"),
        // Codes that RFC 6749 §4.1.2.1 has for the other endpoint, and which some send here.
        Some("temporarily_unavailable" | "server_error") => TokenError::passing("unavailable"),
        Some(_) => TokenError::refused("refused"),
        None if status == 401 => TokenError::refused("invalid_client"),
        None => TokenError::passing("malformed_answer"),
    }
}

/// Whether a token is so near to its end that it is replaced before it is handed out: within its
/// last minute, or the last fifth of a life that is short. `since` is when it was had.
#[must_use]
pub fn ends_soon(now: Timestamp, since: Timestamp, expires_at: Timestamp) -> bool {
    let margin = MARGIN.min(expires_at.since(since) / 5);
    expires_at.minus(margin) <= now
}

/// How a client proves itself at a token endpoint (RFC 6749 §2.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// In the `Authorization` header, which every endpoint with secrets has to understand.
    Basic,
    /// In the body; also that of a client without a secret, which only says its name.
    Body,
}

/// What is asked of a token endpoint.
#[derive(Clone, Copy, Debug)]
pub enum Ask<'a> {
    /// A new access token (RFC 6749 §6).
    Refresh {
        /// The refresh token.
        token: &'a SecretString,
        /// What to ask for; none for what was granted first.
        scope: Option<&'a str>,
    },
    /// Tokens for a code (RFC 6749 §4.1.3, RFC 7636 §4.5).
    Code {
        /// The code.
        code: &'a SecretString,
        /// Where it was sent to.
        redirect_uri: &'a str,
        /// What the challenge was made of.
        verifier: &'a SecretString,
    },
}

/// A client of a token endpoint.
#[derive(Clone, Copy, Debug)]
pub struct Client<'a> {
    /// Its identifier.
    pub id: &'a str,
    /// Its secret, if it has one.
    pub secret: Option<&'a SecretString>,
}

impl Client<'_> {
    /// The form's text, and the `Authorization` header if there is to be one.
    #[must_use]
    pub fn request(
        &self,
        ask: Ask<'_>,
        auth: ClientAuth,
    ) -> (Zeroizing<String>, Option<SecretString>) {
        let mut form = Form::default();
        match ask {
            Ask::Refresh { token, scope } => {
                form.add("grant_type", "refresh_token");
                form.add("refresh_token", token.expose_secret());
                if let Some(scope) = scope {
                    form.add("scope", scope);
                }
            }
            Ask::Code {
                code,
                redirect_uri,
                verifier,
            } => {
                form.add("grant_type", "authorization_code");
                form.add("code", code.expose_secret());
                form.add("redirect_uri", redirect_uri);
                form.add("code_verifier", verifier.expose_secret());
            }
        }
        match (self.secret, auth) {
            (Some(secret), ClientAuth::Basic) => {
                let pair = Zeroizing::new(format!(
                    "{}:{}",
                    *encoded(self.id),
                    *encoded(secret.expose_secret())
                ));
                let header = SecretString::from(format!("Basic {}", STANDARD.encode(&*pair)));
                return (form.0, Some(header));
            }
            (Some(secret), ClientAuth::Body) => {
                form.add("client_id", self.id);
                form.add("client_secret", secret.expose_secret());
            }
            (None, _) => form.add("client_id", self.id),
        }
        (form.0, None)
    }
}

/// A text of `application/x-www-form-urlencoded`, wiped when it is dropped.
#[derive(Default)]
struct Form(Zeroizing<String>);

impl Form {
    fn add(&mut self, name: &str, value: &str) {
        if !self.0.is_empty() {
            self.0.push('&');
        }
        self.0.push_str(name);
        self.0.push('=');
        self.0.push_str(&encoded(value));
    }
}

/// Percent-encoding as forms have it (RFC 6749 appendix B).
fn encoded(text: &str) -> Zeroizing<String> {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let mut out = Zeroizing::new(String::with_capacity(text.len() * 3));
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'*' => {
                out.push(char::from(byte));
            }
            b' ' => out.push('+'),
            _ => {
                out.push('%');
                out.push(char::from(DIGITS[usize::from(byte >> 4)]));
                out.push(char::from(DIGITS[usize::from(byte & 15)]));
            }
        }
    }
    out
}

/// Where a person is sent to log in, and what it takes to finish.
pub struct LoginRequest {
    /// The authorization endpoint with all that it is asked.
    pub url: String,
    /// Comes back with the code; 256 bits.
    pub state: SecretString,
    /// Proves that whoever brings the code began the login (RFC 7636).
    pub verifier: SecretString,
}

impl LoginRequest {
    /// Asks for a code with `S256` (RFC 6749 §4.1.1, RFC 7636 §4.3). `authorize_url` may have a
    /// query, which stays.
    #[must_use]
    pub fn new(authorize_url: &str, client_id: &str, redirect_uri: &str, scopes: &str) -> Self {
        let state = random_text();
        let verifier = random_text();
        let mut query = Form::default();
        for (name, value) in [
            ("response_type", "code"),
            ("client_id", client_id),
            ("redirect_uri", redirect_uri),
            ("scope", scopes),
            ("state", state.expose_secret()),
            ("code_challenge", &challenge(&verifier)),
            ("code_challenge_method", "S256"),
        ] {
            if !value.is_empty() {
                query.add(name, value);
            }
        }
        let join = if authorize_url.contains('?') {
            '&'
        } else {
            '?'
        };
        Self {
            url: format!("{authorize_url}{join}{}", *query.0),
            state,
            verifier,
        }
    }
}

fn random_text() -> SecretString {
    SecretString::from(URL_SAFE_NO_PAD.encode(random::bytes::<32>()))
}

/// `BASE64URL(SHA256(verifier))` (RFC 7636 §4.2).
fn challenge(verifier: &SecretString) -> String {
    URL_SAFE_NO_PAD.encode(Sha256::digest(verifier.expose_secret().as_bytes()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn secret(text: &str) -> SecretString {
        SecretString::from(text.to_owned())
    }

    #[test]
    fn a_grant_is_read_with_its_defaults() {
        let grant =
            read_answer(200, br#"{"access_token":"access-1","token_type":"Bearer"}"#).unwrap();
        assert_eq!(grant.life, LIFE_DEFAULT);
        assert!(grant.refresh_token.is_none());
        let body = br#"{"access_token":"access-1","token_type":"bearer","expires_in":"60",
            "refresh_token":"r","scope":"a b","more":[1]}"#;
        let grant = read_answer(200, body).unwrap();
        assert_eq!(grant.life, Duration::from_mins(1));
        assert_eq!(grant.refresh_token.unwrap().expose_secret(), "r");
        let body = br#"{"access_token":"access-1","expires_in":1e300,"refresh_token":""}"#;
        let grant = read_answer(200, body).unwrap();
        assert_eq!(grant.life, LIFE_MAX);
        assert!(grant.refresh_token.is_none());
    }

    #[test]
    fn what_is_no_grant_is_passing() {
        for body in [
            "",
            "<html>",
            "{}",
            r#"{"access_token":""}"#,
            r#"{"access_token":"short"}"#,
            r#"{"access_token":"access 1"}"#,
            r#"{"access_token":"access\r\nx: y"}"#,
            r#"{"access_token":"access-1","token_type":"mac"}"#,
            r#"{"access_token":"access-1","expires_in":0}"#,
            r#"{"access_token":"access-1","expires_in":-5}"#,
            r#"{"access_token":"access-1","expires_in":"soon"}"#,
            r#"{"access_token":"access-1","refresh_token":"\n"}"#,
        ] {
            let error = read_answer(200, body.as_bytes()).unwrap_err();
            assert_eq!(error, TokenError::passing("malformed_answer"), "{body}");
        }
        let long = format!(
            r#"{{"access_token":"{}"}}"#,
            "a".repeat(CREDENTIAL_CHARS + 1)
        );
        assert!(read_answer(200, long.as_bytes()).is_err());
    }

    #[test]
    fn refusals_say_whether_a_login_is_needed() {
        let kind = |status, body: &str| {
            let error = read_answer(status, body.as_bytes()).unwrap_err();
            (error.kind, error.reason)
        };
        let spent = r#"{"error":"invalid_grant","error_description":"secret-looking"}"#;
        assert_eq!(kind(400, spent), (ErrorKind::Spent, "invalid_grant"));
        assert_eq!(kind(401, spent), (ErrorKind::Spent, "invalid_grant"));
        let client = r#"{"error":"invalid_client"}"#;
        assert_eq!(kind(401, client), (ErrorKind::Refused, "invalid_client"));
        assert_eq!(kind(401, ""), (ErrorKind::Refused, "invalid_client"));
        assert_eq!(
            kind(400, r#"{"error":"made_up"}"#),
            (ErrorKind::Refused, "refused")
        );
        assert_eq!(
            kind(400, "<html>"),
            (ErrorKind::Passing, "malformed_answer")
        );
        assert_eq!(
            kind(404, "not here"),
            (ErrorKind::Passing, "malformed_answer")
        );
        assert_eq!(kind(429, spent), (ErrorKind::Passing, "rate_limited"));
        assert_eq!(kind(503, spent), (ErrorKind::Passing, "unavailable"));
        assert_eq!(kind(302, ""), (ErrorKind::Passing, "unexpected_status"));
        assert_eq!(kind(204, ""), (ErrorKind::Passing, "unexpected_status"));
    }

    #[test]
    fn a_refused_client_ends_the_account_only_with_its_token() {
        let now = Timestamp::from_ms(10_000);
        let (past, future) = (Timestamp::from_ms(9_999), Timestamp::from_ms(10_001));
        let refused = TokenError::refused("invalid_client");
        assert!(!refused.ends_account(now, Some(future)));
        assert!(refused.ends_account(now, Some(past)));
        assert!(!TokenError::passing("unavailable").ends_account(now, Some(past)));
    }

    #[test]
    fn waits_grow_and_heed_the_endpoint() {
        let error = TokenError::passing("unavailable");
        assert!(error.wait(1) < Duration::from_secs(3));
        let longest = BACKOFF.1.mul_f64(1.0 + SPREAD);
        assert!(error.wait(u32::MAX) <= longest && error.wait(20) >= BACKOFF.1 / 2);
        let told = |seconds| TokenError {
            retry_after: Some(Duration::from_secs(seconds)),
            ..error.clone()
        };
        assert_eq!(told(600).wait(1), Duration::from_mins(10));
        assert_eq!(told(u64::MAX).wait(1), RETRY_AFTER_MAX);
    }

    #[test]
    fn a_short_life_is_not_always_near_its_end() {
        let at = |seconds: i64| Timestamp::from_ms(seconds * 1000);
        assert!(!ends_soon(at(3539), at(0), at(3600)));
        assert!(ends_soon(at(3540), at(0), at(3600)));
        assert!(!ends_soon(at(7), at(0), at(10)));
        assert!(ends_soon(at(8), at(0), at(10)));
        assert!(ends_soon(at(11), at(0), at(10)));
    }

    #[test]
    fn clients_prove_themselves_by_header_or_body() {
        let (token, key) = (secret("r/+ t"), secret("s:€"));
        let refresh = |scope| Ask::Refresh {
            token: &token,
            scope,
        };
        let client = Client {
            id: "a client",
            secret: Some(&key),
        };
        let (form, header) = client.request(refresh(None), ClientAuth::Basic);
        assert_eq!(*form, "grant_type=refresh_token&refresh_token=r%2F%2B+t");
        let header = header.unwrap();
        let pair = header.expose_secret().strip_prefix("Basic ").unwrap();
        assert_eq!(STANDARD.decode(pair).unwrap(), b"a+client:s%3A%E2%82%AC");

        let (form, header) = client.request(refresh(Some("a b")), ClientAuth::Body);
        assert!(header.is_none());
        assert!(form.ends_with("&scope=a+b&client_id=a+client&client_secret=s%3A%E2%82%AC"));

        let public = Client {
            id: "cli",
            secret: None,
        };
        let ask = Ask::Code {
            code: &secret("c"),
            redirect_uri: "http://127.0.0.1:1/cb",
            verifier: &secret("v"),
        };
        let (form, header) = public.request(ask, ClientAuth::Basic);
        assert!(header.is_none());
        assert_eq!(
            *form,
            "grant_type=authorization_code&code=c&redirect_uri=http%3A%2F%2F127.0.0.1%3A1%2Fcb\
             &code_verifier=v&client_id=cli"
        );
    }

    #[test]
    fn the_challenge_is_that_of_rfc_7636_appendix_b() {
        let verifier = secret("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk");
        assert_eq!(
            challenge(&verifier),
            "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
        );
    }

    #[test]
    fn a_login_asks_with_s256_and_keeps_the_query() {
        let login = LoginRequest::new(
            "https://x.example/auth?a=1",
            "id",
            "http://127.0.0.1/",
            "a b",
        );
        let start = "https://x.example/auth?a=1&response_type=code&client_id=id\
                     &redirect_uri=http%3A%2F%2F127.0.0.1%2F&scope=a+b&state=";
        assert!(login.url.starts_with(start), "{}", login.url);
        assert!(login.url.ends_with("&code_challenge_method=S256"));
        assert_eq!(login.state.expose_secret().len(), 43);
        assert!(!login.url.contains(login.verifier.expose_secret()));
        let bare = LoginRequest::new("https://x.example/auth", "id", "http://127.0.0.1/", "");
        assert!(bare.url.contains("/auth?response_type=code") && !bare.url.contains("scope"));
        assert_ne!(bare.state.expose_secret(), login.state.expose_secret());
    }

    proptest! {
        #[test]
        fn no_answer_breaks_the_reader(status in 100_u16..1000, body: Vec<u8>) {
            let _ = read_answer(status, &body);
        }

        #[test]
        fn forms_have_no_byte_that_means_something(text: String) {
            let form = encoded(&text);
            prop_assert!(form.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._*+%".contains(&b)));
        }
    }
}

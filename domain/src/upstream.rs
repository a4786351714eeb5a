//! OAuth 2.0 as a client uses it: requests to token endpoints, and what their answers mean
//! (RFC 6749, RFC 7636).
//!
//! Of an answer, only its tokens leave this module. Reasons are words of a closed list, so that
//! nothing that an upstream wrote reaches a log, an event or another caller.

use std::time::Duration;

use base64::{
    Engine as _, engine::general_purpose::STANDARD, engine::general_purpose::URL_SAFE_NO_PAD,
};
use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::{Timestamp, random};

pub use answer::{ANSWER_BYTES, ErrorKind, Grant, TokenError, read_answer};

mod answer;

/// A token that expires within this time is refreshed before it is lent.
const MARGIN: Duration = Duration::from_mins(1);
/// Whether a token expires so soon that it is refreshed before it is lent: within its last minute,
/// or within the last fifth of a shorter life. `since` is the time at which it was granted.
#[must_use]
pub fn ends_soon(now: Timestamp, since: Timestamp, expires_at: Timestamp) -> bool {
    let margin = MARGIN.min(expires_at.since(since) / 5);
    expires_at.minus(margin) <= now
}

/// How a client authenticates at a token endpoint (RFC 6749 §2.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// By the `Authorization` header, which every endpoint has to support.
    Basic,
    /// By the body. A client without a secret sends only its identifier there.
    Body,
}

/// A request to a token endpoint.
#[derive(Clone, Copy, Debug)]
pub enum TokenRequest<'a> {
    /// For a new access token (RFC 6749 §6).
    Refresh {
        /// The refresh token.
        token: &'a SecretString,
        /// The requested scope; `None` for the scope of the grant.
        scope: Option<&'a str>,
    },
    /// For tokens in exchange for a code (RFC 6749 §4.1.3, RFC 7636 §4.5).
    Code {
        /// The authorization code.
        code: &'a SecretString,
        /// The URL to which the code was sent.
        redirect_uri: &'a str,
        /// The text from which the challenge was made.
        verifier: &'a SecretString,
    },
}

/// The identifier and secret of a client at a token endpoint.
#[derive(Clone, Copy, Debug)]
pub struct ClientCredentials<'a> {
    /// The identifier.
    pub id: &'a str,
    /// The secret, if there is one.
    pub secret: Option<&'a SecretString>,
}

impl ClientCredentials<'_> {
    /// The body of a request, and the value of its `Authorization` header, if it has one.
    #[must_use]
    pub fn request(
        &self,
        ask: TokenRequest<'_>,
        auth: ClientAuth,
    ) -> (Zeroizing<String>, Option<SecretString>) {
        let mut form = Form::default();
        match ask {
            TokenRequest::Refresh { token, scope } => {
                form.add("grant_type", "refresh_token");
                form.add("refresh_token", token.expose_secret());
                if let Some(scope) = scope {
                    form.add("scope", scope);
                }
            }
            TokenRequest::Code {
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

/// A text in `application/x-www-form-urlencoded`, which is wiped when dropped.
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

/// Percent-encodes a text for a form (RFC 6749 appendix B).
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

/// The URL at which a person logs in, and what is needed to finish the login.
pub struct LoginRequest {
    /// The authorization endpoint with the query of the request.
    pub url: String,
    /// The state, which comes back with the code; 256 random bits.
    pub state: SecretString,
    /// The verifier, which proves that whoever presents the code began the login (RFC 7636).
    pub verifier: SecretString,
}

impl LoginRequest {
    /// A request for a code with `S256` (RFC 6749 §4.1.1, RFC 7636 §4.3). A query of
    /// `authorize_url` is kept.
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
        let refresh = |scope| TokenRequest::Refresh {
            token: &token,
            scope,
        };
        let client = ClientCredentials {
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

        let public = ClientCredentials {
            id: "cli",
            secret: None,
        };
        let ask = TokenRequest::Code {
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
        fn forms_have_no_byte_that_means_something(text: String) {
            let form = encoded(&text);
            prop_assert!(form.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._*+%".contains(&b)));
        }
    }
}

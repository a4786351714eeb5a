use std::collections::HashMap;

use outbound::{Client, ClientLimits, Policy};

use super::*;
use fake::{Fake, Reply};

mod fake;
mod github;
mod openid;

const REDIRECT_URI: &str = "https://stationmaster.example/sign-in/back";
const NOW: i64 = 1_800_000_000;

fn now() -> Timestamp {
    Timestamp::from_ms(NOW * 1000)
}

fn client() -> Client {
    Client::new(Policy::anywhere(), ClientLimits::default())
}

fn slug(name: &str) -> Slug {
    Slug::parse(name).unwrap()
}

fn secret(text: &str) -> SecretString {
    SecretString::from(text)
}

/// The parameters of a query or a form.
fn parameters(text: &str) -> HashMap<String, String> {
    let pairs = url::form_urlencoded::parse(text.as_bytes()).into_owned();
    let count = pairs.count();
    let found: HashMap<String, String> = url::form_urlencoded::parse(text.as_bytes())
        .into_owned()
        .collect();
    assert_eq!(found.len(), count, "a parameter twice: {text}");
    found
}

fn query_of(url: &str) -> HashMap<String, String> {
    parameters(url.split_once('?').unwrap().1)
}

/// What the browser comes back with.
fn code() -> Callback<'static> {
    Callback {
        code: Some("the-code"),
        ..Callback::default()
    }
}

/// What is kept of a sign-in that was begun.
fn pending<'a>(provider: &'a str, started: &'a Started) -> Pending<'a> {
    Pending {
        provider,
        redirect_uri: REDIRECT_URI,
        nonce: &started.nonce,
        pkce_verifier: &started.pkce_verifier,
    }
}

/// Every way in which an issuer may fail for a moment.
fn troubles(elsewhere: &str) -> Vec<Reply> {
    let mut troubles = vec![Reply::Huge, Reply::Hangup];
    for status in [500, 502, 503, 504, 429] {
        troubles.push(Reply::Json(
            status,
            serde_json::json!({"error": "access_denied"}),
        ));
    }
    for status in [301, 302, 303, 307, 308] {
        troubles.push(Reply::Redirect(status, elsewhere.to_owned()));
    }
    troubles
}

/// The limits of a server whose keys may be fetched again at once.
fn hasty() -> Pace {
    Pace {
        cool_down: Duration::ZERO,
        ..Pace::default()
    }
}

/// The limits of a server that waits half a second for an answer.
fn impatient() -> Pace {
    Pace {
        request_timeout: Duration::from_millis(500),
        ..Pace::default()
    }
}

#[test]
fn the_limits_are_ten_seconds() {
    let pace = Pace::default();
    assert_eq!(pace.request_timeout, Duration::from_secs(10));
    assert_eq!(pace.cool_down, Duration::from_secs(10));
}

#[test]
fn urls_are_https_or_on_this_machine() {
    for good in [
        "https://issuer.example",
        "https://issuer.example/realms/a?b=c",
        "http://127.0.0.1:8080",
        "http://[::1]:8080",
        "http://localhost",
        "http://idp.localhost",
    ] {
        assert!(trusted_url(good).is_some(), "{good}");
    }
    for bad in [
        "http://issuer.example",
        "http://localhost.example",
        "http://10.0.0.1",
        "ftp://localhost",
        "https://user@issuer.example",
        "https://issuer.example/#x",
        "issuer.example",
        "",
    ] {
        assert!(trusted_url(bad).is_none(), "{bad}");
    }
}

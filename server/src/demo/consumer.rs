//! A publisher's server, as a publisher would write it: it receives webhooks and answers a
//! subcommand. It uses only its two secrets and the published rules, so it must not use the signing
//! code of this program, which it checks.

use std::{io::BufRead as _, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use domain::clock::{Clock as _, SystemClock};
use hmac::{Hmac, KeyInit as _, Mac as _};
use poem::{
    Body, EndpointExt as _, Route, Server, handler,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    listener::TcpAcceptor,
    post,
    web::{Data, Json},
};
use serde_json::{Value, json};
use sha2::Sha256;
use subtle::ConstantTimeEq as _;
use tokio_util::sync::CancellationToken;

use crate::{failure::Failure, text::say};

/// How far the time of a signature may be from the present, in seconds, so that an old delivery
/// can't be replayed.
const TOLERANCE_S: i64 = 300;
/// The longest webhook that is read, bytes.
const BODY_BYTES_MAX: usize = 1024 * 1024;

/// The secrets of the publisher's server.
struct Secrets {
    signing: String,
    bearer: String,
}

/// Reads the signing secret and the subcommand bearer from two lines of standard input, listens
/// on a free port of this machine, and writes a line of JSON for each delivery, until standard
/// input closes.
///
/// # Errors
/// No secrets came, or no port is free.
pub async fn run() -> Result<(), Failure> {
    let failed = |what: &str| Failure::Failed(format!("the demo's consumer: {what}"));
    let read = || {
        let mut line = String::new();
        let read = std::io::stdin().lock().read_line(&mut line);
        read.map_err(|e| failed(&e.to_string()))?;
        match line.trim() {
            "" => Err(failed("standard input must begin with two secrets")),
            secret => Ok(secret.to_owned()),
        }
    };
    let secrets = Secrets {
        signing: read()?,
        bearer: read()?,
    };
    let io = |error: std::io::Error| failed(&error.to_string());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .map_err(io)?;
    let address = listener.local_addr().map_err(io)?;
    let app = Route::new()
        .at("/", post(receive))
        .at("/archive", post(archive))
        .data(Arc::new(secrets));
    say(&json!({"listening": format!("http://{address}/")}).to_string());
    Server::new_with_acceptor(TcpAcceptor::from_tokio(listener).map_err(io)?)
        .run_with_graceful_shutdown(app, input_closed().cancelled_owned(), None)
        .await
        .map_err(io)
}

/// Cancelled when standard input ends, because the process that started this one has ended.
fn input_closed() -> CancellationToken {
    let token = CancellationToken::new();
    let closed = token.clone();
    tokio::task::spawn_blocking(move || {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        closed.cancel();
    });
    token
}

#[handler]
async fn receive(headers: &HeaderMap, body: Body, secrets: Data<&Arc<Secrets>>) -> StatusCode {
    let Ok(body) = body.into_bytes_limit(BODY_BYTES_MAX).await else {
        return StatusCode::PAYLOAD_TOO_LARGE;
    };
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let problems = verify(
        &secrets.signing,
        &header,
        &body,
        SystemClock.now().seconds(),
    );
    let event: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let line = json!({
        "id": event.get("id"),
        "type": event.get("type"),
        "run": event.pointer("/data/run/id"),
        "problems": problems,
    });
    say(&line.to_string());
    if problems.is_empty() {
        StatusCode::NO_CONTENT
    } else {
        StatusCode::BAD_REQUEST
    }
}

/// The subcommand. It is done only for callers with the bearer, which only the server has.
#[handler]
async fn archive(
    headers: &HeaderMap,
    body: Body,
    secrets: Data<&Arc<Secrets>>,
) -> (StatusCode, Json<Value>) {
    let shown = headers
        .get(header::AUTHORIZATION)
        .map(HeaderValue::as_bytes);
    let expected = format!("Bearer {}", secrets.bearer);
    if !bool::from(expected.as_bytes().ct_eq(shown.unwrap_or_default())) {
        let answer = json!({"error": "wrong bearer"});
        return (StatusCode::UNAUTHORIZED, Json(answer));
    }
    let rows: Value = body.into_json().await.unwrap_or(Value::Null);
    let run = headers.get("x-stationmaster-run");
    let run = run.and_then(|value| value.to_str().ok());
    let answer = json!({"archived": rows["rows"], "for": run});
    (StatusCode::OK, Json(answer))
}

/// What is wrong with a delivery; empty if both signatures are genuine and recent.
fn verify<'a>(
    secret: &str,
    header: &dyn Fn(&str) -> Option<&'a str>,
    body: &[u8],
    now_s: i64,
) -> Vec<&'static str> {
    let mut problems = Vec::new();
    if !stationmaster(secret, header, body, now_s).unwrap_or(false) {
        problems.push("X-Stationmaster-Signature is not genuine");
    }
    if !standard(secret, header, body, now_s).unwrap_or(false) {
        problems.push("webhook-signature is not genuine");
    }
    problems
}

/// `t=<unix>,v1=<hex>[,v1=<hex>…]`: the code of `<t>.<body>`, keyed by the secret's whole text.
fn stationmaster<'a>(
    secret: &str,
    header: &dyn Fn(&str) -> Option<&'a str>,
    body: &[u8],
    now_s: i64,
) -> Option<bool> {
    let parts: Vec<(&str, &str)> = header("x-stationmaster-signature")?
        .split(',')
        .filter_map(|p| p.split_once('='))
        .collect();
    let (_, time) = parts.iter().find(|(name, _)| *name == "t")?;
    let codes = parts.iter().filter(|(name, _)| *name == "v1");
    let genuine = codes
        .filter_map(|(_, code)| hex::decode(code).ok())
        .any(|code| same_code(secret.as_bytes(), &[time.as_bytes(), b".", body], &code));
    Some(fresh(time, now_s)? && genuine)
}

/// Standard Webhooks 1.0.0: `v1,<base64>`, separated by spaces: the code of
/// `<id>.<timestamp>.<body>`, keyed by the bytes that the secret encodes.
fn standard<'a>(
    secret: &str,
    header: &dyn Fn(&str) -> Option<&'a str>,
    body: &[u8],
    now_s: i64,
) -> Option<bool> {
    let key = STANDARD.decode(secret.strip_prefix("whsec_")?).ok()?;
    let (id, time) = (header("webhook-id")?, header("webhook-timestamp")?);
    let signed = [id.as_bytes(), b".", time.as_bytes(), b".", body];
    let codes = header("webhook-signature")?
        .split(' ')
        .filter_map(|one| one.strip_prefix("v1,"));
    let genuine = codes
        .filter_map(|code| STANDARD.decode(code).ok())
        .any(|code| same_code(&key, &signed, &code));
    Some(fresh(time, now_s)? && genuine)
}

/// Whether `code` is the HMAC-SHA256 of the parts, compared in constant time.
fn same_code(key: &[u8], parts: &[&[u8]], code: &[u8]) -> bool {
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else {
        return false;
    };
    for part in parts {
        mac.update(part);
    }
    mac.verify_slice(code).is_ok()
}

fn fresh(time: &str, now_s: i64) -> Option<bool> {
    Some(now_s.abs_diff(time.parse().ok()?) <= TOLERANCE_S.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published example of Standard Webhooks.
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    const CODE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
    const BODY: &[u8] = br#"{"test": 2432232314}"#;
    const AT: i64 = 1_614_265_330;

    fn headers(name: &str) -> Option<&'static str> {
        match name {
            "webhook-id" => Some(ID),
            "webhook-timestamp" => Some("1614265330"),
            "webhook-signature" => Some(CODE),
            _ => None,
        }
    }

    #[test]
    fn the_published_example_is_genuine_and_nothing_else_is() {
        assert_eq!(standard(SECRET, &headers, BODY, AT), Some(true));
        assert_eq!(
            standard(SECRET, &headers, br#"{"test": 2432232315}"#, AT),
            Some(false)
        );
        assert_eq!(standard(SECRET, &headers, BODY, AT + 301), Some(false));
        assert_eq!(standard("whsec_AAAA", &headers, BODY, AT), Some(false));
    }

    #[test]
    fn a_delivery_needs_both_signatures() {
        let missing = verify(SECRET, &headers, BODY, AT);
        assert_eq!(missing, ["X-Stationmaster-Signature is not genuine"]);
        let code = {
            let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).unwrap();
            mac.update(b"1614265330.");
            mac.update(BODY);
            hex::encode(mac.finalize().into_bytes())
        };
        let ours: &str = Box::leak(format!("t=1614265330,v1=00,v1={code}").into_boxed_str());
        let both = |name: &str| match name {
            "x-stationmaster-signature" => Some(ours),
            other => headers(other),
        };
        assert!(verify(SECRET, &both, BODY, AT).is_empty());
        assert_eq!(verify(SECRET, &both, b"{}", AT).len(), 2);
    }
}

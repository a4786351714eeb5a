//! Verifies a Stationmaster delivery with the crates `hmac` 0.13, `sha2` 0.11 and `base64`.
//! Copy what you need; `main` is for tests; only `main` needs `serde_json`.
//!
//! Give [`verify_delivery`] the raw bytes of the body, before any JSON parser has touched them.
//! Answer 4xx when it refuses, and store `webhook-id` to detect repeats: retries and replays have
//! the same id.

use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

const TOLERANCE_S: i64 = 300;

/// Why a delivery was refused: `no_signature`, `malformed`, `too_old`, `too_new`, `no_match` or
/// `bad_secret`.
pub type Refused = &'static str;

/// Verifies every signature scheme that the delivery carries; at least one must be there.
/// `header` looks a header up by its lower-case name; `now` is in Unix seconds.
pub fn verify_delivery<'a>(
    secret: &str,
    header: impl Fn(&str) -> Option<&'a str>,
    body: &[u8],
    now: i64,
) -> Result<(), Refused> {
    let stationmaster = header("x-stationmaster-signature");
    let standard = ["webhook-id", "webhook-timestamp", "webhook-signature"].map(&header);
    if stationmaster.is_none() && standard.iter().all(Option::is_none) {
        return Err("no_signature");
    }
    if let Some(value) = stationmaster {
        verify_stationmaster(secret, value, body, now)?;
    }
    if standard.iter().any(Option::is_some) {
        let [Some(id), Some(time), Some(signatures)] = standard else {
            return Err("malformed");
        };
        verify_standard_webhooks(secret, id, time, signatures, body, now)?;
    }
    Ok(())
}

/// `X-Stationmaster-Signature: t=<unix>,v1=<hex>`; the key is the secret's whole text.
pub fn verify_stationmaster(
    secret: &str,
    header: &str,
    body: &[u8],
    now: i64,
) -> Result<(), Refused> {
    decoded_key(secret)?;
    let mut times = header.split(',').filter_map(|part| part.strip_prefix("t="));
    let (Some(time), None) = (times.next(), times.next()) else {
        return Err("malformed");
    };
    let signatures: Vec<_> = header
        .split(',')
        .filter_map(|part| part.strip_prefix("v1="))
        .map(from_hex)
        .collect();
    check_age(time, now)?;
    check_any(
        secret.as_bytes(),
        &[time.as_bytes(), b"."],
        body,
        &signatures,
    )
}

/// Standard Webhooks 1.0.0; the key is what the text after `whsec_` decodes to.
pub fn verify_standard_webhooks(
    secret: &str,
    id: &str,
    time: &str,
    header: &str,
    body: &[u8],
    now: i64,
) -> Result<(), Refused> {
    let key = decoded_key(secret)?;
    // The signed parts are joined by dots, so an id that contains a dot is refused.
    if id.contains('.') {
        return Err("malformed");
    }
    let signatures: Vec<_> = header
        .split(' ')
        .filter_map(|part| part.strip_prefix("v1,"))
        .map(|text| STANDARD.decode(text).ok())
        .collect();
    check_age(time, now)?;
    check_any(
        &key,
        &[id.as_bytes(), b".", time.as_bytes(), b"."],
        body,
        &signatures,
    )
}

/// One match is enough: while a secret rotates, the old and the new secret both sign.
/// `None` stands for a malformed signature.
fn check_any(
    key: &[u8],
    prefix: &[&[u8]],
    body: &[u8],
    signatures: &[Option<Vec<u8>>],
) -> Result<(), Refused> {
    if signatures.is_empty() {
        return Err("malformed");
    }
    let mut mac = Hmac::<Sha256>::new_from_slice(key).map_err(|_| "bad_secret")?;
    for part in prefix {
        mac.update(part);
    }
    mac.update(body);
    // verify_slice compares in constant time.
    let matches = |given: &Vec<u8>| mac.clone().verify_slice(given).is_ok();
    if signatures.iter().flatten().any(matches) {
        Ok(())
    } else {
        Err("no_match")
    }
}

fn check_age(time: &str, now: i64) -> Result<(), Refused> {
    if !(1..=12).contains(&time.len()) || !time.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("malformed");
    }
    let time: i64 = time.parse().map_err(|_| "malformed")?;
    if time < now - TOLERANCE_S {
        return Err("too_old");
    }
    if time > now + TOLERANCE_S {
        return Err("too_new");
    }
    Ok(())
}

fn decoded_key(secret: &str) -> Result<Vec<u8>, Refused> {
    let encoded = secret.strip_prefix("whsec_").ok_or("bad_secret")?;
    let key = STANDARD.decode(encoded).map_err(|_| "bad_secret")?;
    if key.len() < 24 {
        return Err("bad_secret");
    }
    Ok(key)
}

/// The secret that signs subcommand calls; use it to verify them.
pub fn subcommand_secret(secret: &str) -> Result<String, Refused> {
    let mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).map_err(|_| "bad_secret")?;
    let derived = mac.chain_update(b"stationmaster.subcommand.v1").finalize();
    Ok(format!("whsec_{}", STANDARD.encode(derived.into_bytes())))
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u32>> = text.chars().map(|digit| digit.to_digit(16)).collect();
    digits?
        .chunks(2)
        .map(|pair| match pair {
            [high, low] => u8::try_from(high * 16 + low).ok(),
            _ => None,
        })
        .collect()
}

/// For tests: reads `{"secret", "headers", "body_base64", "now", "subcommand"}` from standard input.
#[allow(
    dead_code,
    clippy::print_stdout,
    reason = "a test interface; unused where this file is a module"
)]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let case: serde_json::Value = serde_json::from_reader(std::io::stdin())?;
    let secret = case["secret"].as_str().ok_or("secret is missing")?;
    let body = STANDARD.decode(
        case["body_base64"]
            .as_str()
            .ok_or("body_base64 is missing")?,
    )?;
    let headers = case["headers"].as_object().ok_or("headers are missing")?;
    let header = |name: &str| {
        let found = headers
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.and_then(|(_, value)| value.as_str())
    };
    let now = match case["now"].as_i64() {
        Some(now) => now,
        None => i64::try_from(std::time::UNIX_EPOCH.elapsed()?.as_secs())?,
    };
    let derived = match case["subcommand"].as_bool() {
        Some(true) => subcommand_secret(secret)?,
        _ => secret.to_owned(),
    };
    match verify_delivery(&derived, header, &body, now) {
        Ok(()) => println!("ok"),
        Err(reason) => {
            println!("refused: {reason}");
            std::process::exit(1);
        }
    }
    Ok(())
}

//! What came of a call, for the runner: the publisher's answer in an envelope, or why there is none.

use aho_corasick::AhoCorasick;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use poem_openapi::{Enum, Object};
use serde::Serialize;
use serde_json::json;
use view_derive::Example;

use domain::{JsonText, id::CallId};
use outbound::{Failure, Response};
use persistence::CallRecord;

use crate::shared::{Verbatim, nil_id};

/// Stands where an endpoint repeated the bearer that it was sent.
const MASK: &str = "[masked]";

/// Who speaks in an envelope.
#[derive(Enum, Serialize, Clone, Copy, Debug, PartialEq, Eq)]
#[oai(rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum AnsweredBy {
    /// The publisher's endpoint: the status is its own, whatever it is.
    Publisher,
    /// This service, for an endpoint that gave no answer: `error` says why.
    Stationmaster,
}

/// How a body stands in an envelope.
#[derive(Enum, Serialize, Clone, Copy, Debug, PartialEq, Eq)]
#[oai(rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum BodyEncoding {
    /// As the JSON that it is: it was declared as JSON and parses.
    Json,
    /// As a string: it is UTF-8.
    Text,
    /// As a string of standard base64: it is anything else.
    Base64,
}

/// Why there is no answer, or not all of one.
#[derive(Enum, Serialize, Clone, Copy, Debug, PartialEq, Eq)]
#[oai(rename = "SubcommandError", rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum CallError {
    /// The host's name does not lead to an address that may be called.
    Dns,
    /// The URL, or the address in it, may not be called.
    DestinationRefused,
    /// No connection could be made.
    Connect,
    /// The TLS handshake failed.
    Tls,
    /// The subcommand's `timeout_ms` passed.
    Timeout,
    /// The answer broke off or was not HTTP.
    Protocol,
    /// A header can't be sent.
    RequestInvalid,
    /// The publisher answered, with more than 1 MiB.
    BodyTooLong,
    /// The publisher has no live `subcommand_bearer`; nothing was sent.
    NoSubcommandBearer,
    /// The publisher has no live `webhook_signing` secret; nothing was sent.
    NoSigningSecret,
}

impl CallError {
    /// The word, as the contract has it.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::DestinationRefused => "destination_refused",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Timeout => "timeout",
            Self::Protocol => "protocol",
            Self::RequestInvalid => "request_invalid",
            Self::BodyTooLong => "body_too_long",
            Self::NoSubcommandBearer => "no_subcommand_bearer",
            Self::NoSigningSecret => "no_signing_secret",
        }
    }
}

impl From<Failure> for CallError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Dns => Self::Dns,
            Failure::DestinationRefused(_) => Self::DestinationRefused,
            // A call that was not made has no envelope: whoever makes calls sees to that.
            Failure::Connect | Failure::OwnShortage => Self::Connect,
            Failure::Tls => Self::Tls,
            Failure::Timeout(_) => Self::Timeout,
            Failure::Protocol => Self::Protocol,
            Failure::RequestInvalid => Self::RequestInvalid,
        }
    }
}

/// Of the publisher's headers, those that a runner needs; null where it sent none.
#[derive(Object, Example, Serialize, Clone, Default)]
pub struct SubcommandHeaders {
    /// The body's type.
    #[oai(rename = "content-type", nullable)]
    #[serde(rename = "content-type")]
    #[example("application/json")]
    content_type: Option<String>,
    /// How long the publisher wants to be left alone: seconds, or an HTTP date.
    #[oai(rename = "retry-after", nullable)]
    #[serde(rename = "retry-after")]
    retry_after: Option<String>,
}

/// What came of a call.
#[derive(Object, Example, Serialize, Clone)]
#[oai(example)]
pub struct SubcommandAnswer {
    /// `call_…`; the endpoint was sent it as `webhook-id`.
    #[example(nil_id::<CallId>())]
    id: String,
    /// Who speaks.
    #[example(AnsweredBy::Publisher)]
    answered_by: AnsweredBy,
    /// The publisher's status; null if none came.
    #[oai(nullable, validator(minimum(value = "200"), maximum(value = "999")))]
    #[example(200)]
    status_code: Option<u16>,
    /// The publisher's headers.
    headers: SubcommandHeaders,
    /// The publisher's body, as `body_encoding` says.
    #[oai(nullable)]
    #[example(json!({"archived": 1}))]
    body: Option<Verbatim>,
    /// How `body` is to be read; null if there is none to read.
    #[oai(nullable)]
    #[example(BodyEncoding::Json)]
    body_encoding: Option<BodyEncoding>,
    /// Why there is no answer, or no body; null if all went well between us and the endpoint,
    /// whatever its status.
    #[oai(nullable)]
    error: Option<CallError>,
    /// From the start of the call to its end, milliseconds.
    #[oai(validator(minimum(value = "0")))]
    #[example(41)]
    latency_ms: u64,
}

impl SubcommandAnswer {
    /// The publisher's answer. `secrets` are the bearer and the signatures that the endpoint was
    /// sent: wherever it repeats one, the runner, who is not to know it, reads `[masked]`.
    pub(super) fn of_publisher(id: CallId, response: Response, secrets: &[&str]) -> Self {
        let mask = Mask::of(secrets);
        let mask_text = |text: Option<String>| text.map(|text| mask.text(&text));
        let headers = SubcommandHeaders {
            content_type: mask_text(response.content_type),
            retry_after: mask_text(response.retry_after),
        };
        let read = if response.truncated {
            None
        } else {
            let bytes = mask.bytes(response.body_excerpt);
            Some(encoded(bytes, headers.content_type.as_deref()))
        };
        Self {
            id: id.to_string(),
            answered_by: AnsweredBy::Publisher,
            status_code: Some(response.status),
            headers,
            error: read.is_none().then_some(CallError::BodyTooLong),
            body_encoding: read.as_ref().map(|(_, encoding)| *encoding),
            body: read.map(|(body, _)| body),
            latency_ms: response.latency_ms,
        }
    }

    /// For an endpoint that gave no answer.
    pub(super) fn of_failure(id: CallId, error: CallError, latency_ms: u64) -> Self {
        Self {
            id: id.to_string(),
            answered_by: AnsweredBy::Stationmaster,
            status_code: None,
            headers: SubcommandHeaders::default(),
            body: None,
            body_encoding: None,
            error: Some(error),
            latency_ms,
        }
    }

    /// The same for the run's timeline.
    pub(super) fn record<'a>(&self, (id, attempt): (CallId, i32), name: &'a str) -> CallRecord<'a> {
        CallRecord {
            id,
            name,
            attempt,
            status_code: self.status_code,
            error: self.error.map(CallError::as_str),
            latency_ms: self.latency_ms,
        }
    }

    /// How it ended, in a word for the counters: the class of error, or of status.
    pub(super) const fn outcome(&self) -> &'static str {
        match (self.error, self.status_code) {
            (Some(error), _) => error.as_str(),
            (None, Some(200..=299)) => "2xx",
            (None, Some(300..=399)) => "3xx",
            (None, Some(400..=499)) => "4xx",
            (None, _) => "5xx",
        }
    }

    /// Its JSON.
    pub(super) fn text(&self) -> String {
        // Strings, numbers and JSON that parsed always serialise.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// Hides what an endpoint repeats of what it was sent, in one pass whatever the number of secrets.
struct Mask(Option<AhoCorasick>);

impl Mask {
    /// Texts that are empty hide nothing.
    fn of(secrets: &[&str]) -> Self {
        let found = secrets.iter().filter(|secret| !secret.is_empty());
        // Too large an automaton is the only failure, and takes gigabytes of secrets.
        Self(AhoCorasick::new(found).ok())
    }

    fn text(&self, text: &str) -> String {
        let bytes = self.bytes(text.as_bytes().to_vec());
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn bytes(&self, bytes: Vec<u8>) -> Vec<u8> {
        match &self.0 {
            Some(secrets) if secrets.is_match(&bytes) => {
                let mut out = Vec::with_capacity(bytes.len());
                secrets.replace_all_with_bytes(&bytes, &mut out, |_, _, out| {
                    out.extend_from_slice(MASK.as_bytes());
                    true
                });
                out
            }
            Some(_) => bytes,
            None => Vec::new(),
        }
    }
}

fn string(text: &str) -> Verbatim {
    Verbatim(JsonText::of(&text))
}

fn encoded(bytes: Vec<u8>, content_type: Option<&str>) -> (Verbatim, BodyEncoding) {
    let text = match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let text = STANDARD.encode(error.as_bytes());
            return (string(&text), BodyEncoding::Base64);
        }
    };
    if content_type.is_some_and(is_json)
        && let Some(json) = JsonText::parse_str(&text)
    {
        return (Verbatim(json), BodyEncoding::Json);
    }
    (string(&text), BodyEncoding::Text)
}

/// `application/json`, or a type with the suffix `+json` (RFC 6839 §3.1).
fn is_json(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    let essence = essence.to_ascii_lowercase();
    essence == "application/json" || essence.ends_with("+json")
}

#[cfg(test)]
mod tests {
    use poem_openapi::types::{Example as _, ToJSON as _};
    use serde_json::Value;

    use super::*;

    const BEARER: &str = "stm_sub_0123456789";
    const SIGNATURE: &str = "g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";

    fn answer(content_type: Option<&str>, body: &[u8]) -> Value {
        let response = Response {
            status: 200,
            retry_after: None,
            content_type: content_type.map(str::to_owned),
            body_excerpt: body.to_vec(),
            truncated: false,
            latency_ms: 1,
        };
        let id = nil_id::<CallId>();
        let answer = SubcommandAnswer::of_publisher(id, response, &[BEARER, SIGNATURE]);
        serde_json::from_str(&answer.text()).unwrap()
    }

    #[test]
    fn what_is_sent_is_what_the_contract_describes() {
        let example = SubcommandAnswer::example();
        let sent: Value = serde_json::from_str(&example.text()).unwrap();
        assert_eq!(Some(sent), example.to_json());
        let none =
            SubcommandAnswer::of_failure(nil_id::<CallId>(), CallError::NoSubcommandBearer, 7);
        let sent: Value = serde_json::from_str(&none.text()).unwrap();
        assert_eq!(Some(&sent), none.to_json().as_ref());
        assert_eq!(sent["error"], none.outcome());
        assert_eq!(sent["answered_by"], "stationmaster");
        assert_eq!(sent["headers"]["retry-after"], Value::Null);
    }

    #[test]
    fn each_body_is_encoded_as_it_can_be() {
        for (content_type, body, shown, encoding) in [
            (
                Some("application/json"),
                &b" {\"a\": 1} "[..],
                json!({"a": 1}),
                "json",
            ),
            (
                Some("Application/Problem+JSON; charset=utf-8"),
                b"[]",
                json!([]),
                "json",
            ),
            (Some("application/json"), b"null", Value::Null, "json"),
            (
                Some("application/json"),
                b"{\"a\":",
                json!("{\"a\":"),
                "text",
            ),
            (Some("application/json"), b"", json!(""), "text"),
            (Some("application/jsonx"), b"{}", json!("{}"), "text"),
            (Some("text/plain"), "ä\0".as_bytes(), json!("ä\0"), "text"),
            (None, b"{}", json!("{}"), "text"),
            (Some("image/png"), b"\x89PNG", json!("iVBORw=="), "base64"),
            (
                Some("application/json"),
                b"\"\xff\"",
                json!("Iv8i"),
                "base64",
            ),
        ] {
            let answer = answer(content_type, body);
            assert_eq!(answer["body"], shown, "{content_type:?}");
            assert_eq!(answer["body_encoding"], encoding, "{content_type:?}");
            assert_eq!(answer["error"], Value::Null);
        }
    }

    #[test]
    fn json_is_passed_on_to_the_digit() {
        let body = br#"{"n": 1.10, "big": 123456789012345678901234567890, "n": 1e400}"#;
        let response = Response {
            status: 200,
            retry_after: None,
            content_type: Some("application/json".into()),
            body_excerpt: body.to_vec(),
            truncated: false,
            latency_ms: 1,
        };
        let id = nil_id::<CallId>();
        let text = SubcommandAnswer::of_publisher(id, response, &[BEARER, SIGNATURE]).text();
        assert!(text.contains(std::str::from_utf8(body).unwrap()), "{text}");
    }

    #[test]
    fn a_bearer_or_signature_that_comes_back_is_masked() {
        let echo = format!("{BEARER}{BEARER} and {BEARER}");
        let answer_text = answer(Some(&format!("text/{BEARER}")), echo.as_bytes());
        assert_eq!(answer_text["body"], "[masked][masked] and [masked]");
        assert_eq!(answer_text["headers"]["content-type"], "text/[masked]");
        let echo = format!("v1,{SIGNATURE} and {BEARER}");
        let answer_signature = answer(None, echo.as_bytes());
        assert_eq!(answer_signature["body"], "v1,[masked] and [masked]");
        let binary = [b"\xff", BEARER.as_bytes()].concat();
        let answer_binary = answer(None, &binary);
        assert_eq!(answer_binary["body"], STANDARD.encode(b"\xff[masked]"));
    }
}

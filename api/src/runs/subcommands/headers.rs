//! Which of a runner's headers reach the publisher's endpoint.
//!
//! A list of what passes, not of what is stopped: a header that nobody has thought of (another
//! proxy's way of saying who calls, a platform's of saying where) is then one that does not pass.
//! With it go all that frames the message or belongs to the connection (RFC 9110 §7.6.1), all
//! that says who asks, and all that only this service may say.

use poem::http::{HeaderMap, header};

use domain::Problem;

/// What describes the body, what is wanted back, and what correlates; nothing of it is trusted
/// here or changes how the call is made.
const PASSED: [&str; 7] = [
    "accept",
    "accept-language",
    "content-encoding",
    "content-language",
    "idempotency-key",
    "traceparent",
    "tracestate",
];
/// Longest value that passes, bytes.
const VALUE_BYTES_MAX: usize = 1024;
/// The type of a body that says none (RFC 9110 §8.3).
const UNKNOWN_TYPE: &str = "application/octet-stream";

/// The headers of a request with a body of `body_bytes` that are passed on, in lower case.
/// `Content-Type` is one of them, whatever it says; of the rest those on the list, unless
/// `Connection` names them, the value is not of visible ASCII, or it is longer than 1024 bytes.
///
/// # Errors
/// `invalid_parameter` when the body's type can't be told: it stands twice, or can't be passed on.
pub(super) fn passed(
    headers: &HeaderMap,
    body_bytes: usize,
) -> Result<Vec<(String, String)>, Problem> {
    let mut out = Vec::new();
    if let Some(content_type) = content_type(headers, body_bytes)? {
        out.push(("content-type".to_owned(), content_type));
    }
    for name in PASSED {
        if !is_of_connection(headers, name) {
            let values = headers.get_all(name).iter();
            let values = values.filter_map(|value| value.to_str().ok());
            out.extend(
                values
                    .filter(|value| fits(value))
                    .map(|value| (name.to_owned(), value.to_owned())),
            );
        }
    }
    Ok(out)
}

fn content_type(headers: &HeaderMap, body_bytes: usize) -> Result<Option<String>, Problem> {
    let mut values = headers.get_all(header::CONTENT_TYPE).iter();
    let Some(value) = values.next() else {
        return Ok((body_bytes > 0).then(|| UNKNOWN_TYPE.to_owned()));
    };
    match value.to_str() {
        Ok(text) if fits(text) && values.next().is_none() => Ok(Some(text.to_owned())),
        _ => Err(Problem::parameter(
            "/header/Content-Type",
            format!("`Content-Type` takes one media type of at most {VALUE_BYTES_MAX} bytes."),
        )),
    }
}

fn fits(value: &str) -> bool {
    (1..=VALUE_BYTES_MAX).contains(&value.len())
}

/// Whether the sender keeps this header to the connection that it came over.
fn is_of_connection(headers: &HeaderMap, name: &str) -> bool {
    let values = headers.get_all(header::CONNECTION).iter();
    let mut names = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    names.any(|named| named.trim().eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use poem::http::{HeaderName, HeaderValue};

    use super::*;

    fn map(pairs: &[(&'static str, &'static [u8])]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            let value = HeaderValue::from_bytes(value).unwrap();
            map.append(HeaderName::from_static(name), value);
        }
        map
    }

    fn names(pairs: &[(&'static str, &'static [u8])]) -> Vec<String> {
        let passed = passed(&map(pairs), 1).unwrap();
        passed.into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn only_what_is_listed_passes() {
        let all = [
            "accept",
            "accept-encoding",
            "authorization",
            "connection",
            "content-length",
            "cookie",
            "expect",
            "forwarded",
            "host",
            "keep-alive",
            "metadata-flavor",
            "proxy-authorization",
            "te",
            "traceparent",
            "trailer",
            "transfer-encoding",
            "upgrade",
            "user-agent",
            "via",
            "webhook-id",
            "x-anything",
            "x-forwarded-for",
            "x-real-ip",
            "x-stationmaster-claim",
            "x-stationmaster-run",
            "x-stationmaster-signature",
        ];
        let pairs = all.map(|name| (name, &b"x"[..]));
        assert_eq!(names(&pairs), ["content-type", "accept", "traceparent"]);
    }

    #[test]
    fn what_the_connection_names_stays_behind() {
        let pairs: [(&str, &[u8]); 4] = [
            ("connection", b"close, TraceParent"),
            ("connection", b"accept-language"),
            ("traceparent", b"00-x"),
            ("accept-language", b"de"),
        ];
        assert_eq!(names(&pairs), ["content-type"]);
    }

    #[test]
    fn every_value_of_a_list_passes_and_none_that_is_odd() {
        let long: &'static [u8] = Box::leak(vec![b'a'; 1025].into_boxed_slice());
        let pairs: [(&str, &[u8]); 5] = [
            ("accept", b"text/plain"),
            ("accept", b"text/html"),
            ("tracestate", b"\xff"),
            ("idempotency-key", long),
            ("accept-language", b""),
        ];
        assert_eq!(names(&pairs), ["content-type", "accept", "accept"]);
    }

    #[test]
    fn a_body_has_one_type() {
        let of = |pairs: &[(&'static str, &'static [u8])], bytes| {
            let passed = passed(&map(pairs), bytes);
            passed.map(|all| all.into_iter().next().map(|(_, value)| value))
        };
        let json: (&str, &[u8]) = ("content-type", b"application/json; charset=utf-8");
        assert_eq!(
            of(&[json], 1).unwrap().unwrap(),
            "application/json; charset=utf-8"
        );
        assert_eq!(of(&[], 1).unwrap().unwrap(), UNKNOWN_TYPE);
        assert_eq!(of(&[], 0).unwrap(), None);
        for odd in [&[json, json][..], &[("content-type", b"\xe9")]] {
            let problem = of(odd, 1).unwrap_err();
            assert_eq!(problem.errors[0].pointer, "/header/Content-Type");
        }
    }
}

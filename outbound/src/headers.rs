//! The rules for custom headers of deliveries, and for headers that carry credentials.

/// The longest name of a custom header, in bytes.
pub const HEADER_NAME_LEN_MAX: usize = 64;
/// The longest value of a custom header, in bytes.
pub const HEADER_VALUE_LEN_MAX: usize = 1024;

/// Why a custom header is refused. The list is closed; [`HeaderRefusal::code`] is part of the
/// contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum HeaderRefusal {
    /// The name is empty.
    #[error("the header has no name")]
    NameEmpty,
    /// The name is longer than [`HEADER_NAME_LEN_MAX`].
    #[error("the header's name is longer than {HEADER_NAME_LEN_MAX} bytes")]
    NameTooLong,
    /// The name has a character that RFC 9110 §5.6.2 does not allow in a `token`.
    #[error("the header's name has a character that is not allowed in a name")]
    NameInvalid,
    /// The value is longer than [`HEADER_VALUE_LEN_MAX`].
    #[error("the header's value is longer than {HEADER_VALUE_LEN_MAX} bytes")]
    ValueTooLong,
    /// The value has other characters than visible ASCII and inner spaces.
    #[error("the header's value may hold only visible ASCII characters and single-line spaces")]
    ValueInvalid,
    /// The header frames the message or controls the connection.
    #[error("the header belongs to the connection and can't be set")]
    ConnectionHeader,
    /// The header is set by this service, or is one that only a proxy or a platform sets.
    #[error("the header is reserved and can't be set")]
    Reserved,
}

impl HeaderRefusal {
    /// The stable code for problems.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::NameEmpty => "header_name_empty",
            Self::NameTooLong => "header_name_too_long",
            Self::NameInvalid => "header_name_invalid",
            Self::ValueTooLong => "header_value_too_long",
            Self::ValueInvalid => "header_value_invalid",
            Self::ConnectionHeader => "header_of_connection",
            Self::Reserved => "header_reserved",
        }
    }
}

/// Message framing and hop-by-hop fields (RFC 9110 §7.6.1). With them a publisher could smuggle
/// requests.
const CONNECTION: &[&str] = &[
    "connection",
    "content-length",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

const RESERVED: &[&str] = &[
    // Set by this service. The content headers also describe the body, which is signed as it is.
    "accept-encoding",
    "authorization",
    "content-encoding",
    "content-type",
    "cookie",
    "user-agent",
    // Set by proxies, to say who is calling.
    "forwarded",
    "via",
    "x-real-ip",
    // Unlock the metadata services of cloud platforms, if a request ever reached one.
    "metadata",
    "metadata-flavor",
];

const RESERVED_PREFIXES: &[&str] = &[
    "webhook-",
    "x-stationmaster-",
    "x-forwarded-",
    "x-aws-ec2-metadata-",
];

/// Checks a custom header of deliveries.
///
/// The case of the name does not matter. The value may be empty.
///
/// # Errors
/// The first rule that the header breaks.
pub fn check_custom_header(name: &str, value: &str) -> Result<(), HeaderRefusal> {
    if name.is_empty() {
        return Err(HeaderRefusal::NameEmpty);
    }
    if name.len() > HEADER_NAME_LEN_MAX {
        return Err(HeaderRefusal::NameTooLong);
    }
    if !name.bytes().all(is_token_byte) {
        return Err(HeaderRefusal::NameInvalid);
    }
    if value.len() > HEADER_VALUE_LEN_MAX {
        return Err(HeaderRefusal::ValueTooLong);
    }
    let visible = value.bytes().all(|b| matches!(b, b' '..=b'~'));
    if !visible || value.trim_matches(' ') != value {
        return Err(HeaderRefusal::ValueInvalid);
    }
    let name = name.to_ascii_lowercase();
    if is_connection_header(&name) {
        return Err(HeaderRefusal::ConnectionHeader);
    }
    let prefixed = RESERVED_PREFIXES.iter().any(|p| name.starts_with(p));
    if prefixed || RESERVED.contains(&name.as_str()) {
        return Err(HeaderRefusal::Reserved);
    }
    Ok(())
}

/// Checks the name of a header that carries a credential to an upstream. Allowed are the names of
/// custom headers and `authorization`, but no name that describes a body.
///
/// # Errors
/// The first rule that the name breaks.
pub fn check_credential_header(name: &str) -> Result<(), HeaderRefusal> {
    let plain = name.to_ascii_lowercase();
    if plain == "authorization" {
        return Ok(());
    }
    if plain.starts_with("content-") && !is_connection_header(&plain) {
        return Err(HeaderRefusal::Reserved);
    }
    check_custom_header(name, "")
}

/// Whether a header, by its lower-case name, frames the message or controls the connection.
pub(crate) fn is_connection_header(name: &str) -> bool {
    CONNECTION.contains(&name) || name.starts_with("proxy-")
}

/// RFC 9110 §5.6.2 `tchar`.
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::{HeaderRefusal, check_credential_header, check_custom_header};

    #[test]
    fn ordinary_headers_pass() {
        for (name, value) in [
            ("X-Api-Key", "abc 123"),
            ("X-Empty", ""),
            ("x_tenant.id", "~!@#"),
            ("Accept", "application/json"),
            ("X-Webhook-Source", "ours"),
        ] {
            assert_eq!(check_custom_header(name, value), Ok(()), "{name}");
        }
        assert_eq!(
            check_custom_header(&"n".repeat(64), &"v".repeat(1024)),
            Ok(())
        );
    }

    #[test]
    fn injection_is_refused() {
        for value in [
            "a\r\nHost: x",
            "a\nb",
            "a\rb",
            "a\0b",
            "a\tb",
            "\u{7f}",
            "é",
            " lead",
            "trail ",
        ] {
            let refused = Err(HeaderRefusal::ValueInvalid);
            assert_eq!(check_custom_header("x-a", value), refused, "{value:?}");
        }
        for name in ["x a", "x:a", "x\r\na", "x\0", "é", "(x)", "x/a"] {
            let refused = Err(HeaderRefusal::NameInvalid);
            assert_eq!(check_custom_header(name, "v"), refused, "{name:?}");
        }
    }

    #[test]
    fn connection_headers_are_refused_in_any_case() {
        for name in [
            "Host",
            "CONTENT-LENGTH",
            "Transfer-Encoding",
            "connection",
            "Keep-Alive",
            "TE",
            "Trailer",
            "Upgrade",
            "Expect",
            "Proxy-Authorization",
            "proxy-connection",
            "HTTP2-Settings",
        ] {
            let refused = Err(HeaderRefusal::ConnectionHeader);
            assert_eq!(check_custom_header(name, "v"), refused, "{name}");
        }
    }

    #[test]
    fn our_own_headers_are_refused_in_any_case() {
        for name in [
            "Authorization",
            "Cookie",
            "Content-Type",
            "Content-Encoding",
            "User-Agent",
            "Webhook-Signature",
            "webhook-id",
            "WEBHOOK-",
            "X-Stationmaster-Signature",
            "X-Forwarded-For",
            "Forwarded",
            "Metadata-Flavor",
            "X-aws-ec2-metadata-token",
        ] {
            let refused = Err(HeaderRefusal::Reserved);
            assert_eq!(check_custom_header(name, "v"), refused, "{name}");
        }
    }

    #[test]
    fn a_credential_goes_where_upstreams_read_it_and_nowhere_else() {
        for name in [
            "authorization",
            "Authorization",
            "x-api-key",
            "Api-Key",
            "x-goog-api-key",
        ] {
            assert_eq!(check_credential_header(name), Ok(()), "{name}");
        }
        for (name, refused) in [
            ("Host", HeaderRefusal::ConnectionHeader),
            ("content-length", HeaderRefusal::ConnectionHeader),
            ("Proxy-Authorization", HeaderRefusal::ConnectionHeader),
            ("Content-Language", HeaderRefusal::Reserved),
            ("Cookie", HeaderRefusal::Reserved),
            ("X-Stationmaster-Status", HeaderRefusal::Reserved),
            ("x-a\r\nhost", HeaderRefusal::NameInvalid),
            ("", HeaderRefusal::NameEmpty),
        ] {
            assert_eq!(check_credential_header(name), Err(refused), "{name:?}");
        }
    }

    #[test]
    fn lengths_are_bounded() {
        let long_name = check_custom_header(&"n".repeat(65), "v");
        assert_eq!(long_name, Err(HeaderRefusal::NameTooLong));
        let long_value = check_custom_header("n", &"v".repeat(1025));
        assert_eq!(long_value, Err(HeaderRefusal::ValueTooLong));
        assert_eq!(check_custom_header("", "v"), Err(HeaderRefusal::NameEmpty));
    }
}

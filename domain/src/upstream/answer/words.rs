//! The meanings of error codes of token endpoints: those of RFC 6749, and others that are in use.
//!
//! Only codes are read, never the texts for people beside them. Each code is turned into a word of
//! a closed list. An unknown code only means that the endpoint refuses.

/// The meaning of a code. Earlier variants count more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    /// The grant is dead.
    Spent(&'static str),
    /// Another try may succeed.
    Passing(&'static str),
    /// The client or the request is refused.
    Refused(&'static str),
    /// The code is unknown.
    Unknown,
}

/// Codes of a dead grant: that of RFC 6749 §5.2, and those that ask for a new login (`OpenID`
/// Connect Core §3.1.2.6) or say that the login was revoked.
const SPENT: [&str; 8] = [
    "invalidgrant",
    "grantexpired",
    "grantrevoked",
    "grantnotfound",
    "tokenrevoked",
    "interactionrequired",
    "loginrequired",
    "consentrequired",
];
/// Words that mean a dead grant in a code that names the refresh token.
const DEAD: [&str; 14] = [
    "invalid",
    "bad",
    "expired",
    "reuse",
    "used",
    "revoked",
    "unknown",
    "notfound",
    "consumed",
    "rotated",
    "malformed",
    "inactive",
    "incorrect",
    "wrong",
];
/// Words that mean an unknown client in a code that names the client.
const NOT_KNOWN: [&str; 7] = [
    "invalid",
    "bad",
    "unknown",
    "notfound",
    "incorrect",
    "wrong",
    "mismatch",
];
/// Words in codes of errors that pass.
const PASSING: [&str; 9] = [
    "unavailable",
    "servererror",
    "internalerror",
    "apierror",
    "timeout",
    "overloaded",
    "tryagain",
    "temporar",
    "maintenance",
];
const LIMITED: [&str; 4] = ["ratelimit", "toomanyrequests", "slowdown", "throttl"];

/// The meaning of a code. Neither its case nor the separators of its words matter.
pub(super) fn fault_of(code: &str) -> Fault {
    let letters = code.chars().filter(char::is_ascii_alphanumeric);
    let code: String = letters.map(|one| one.to_ascii_lowercase()).collect();
    let has = |parts: &[&str]| parts.iter().any(|part| code.contains(part));
    if code.contains("refreshtoken") && has(&["reuse", "used"]) {
        Fault::Spent("refresh_token_reused")
    } else if SPENT.contains(&code.as_str()) {
        Fault::Spent("invalid_grant")
    } else if code.contains("refreshtoken") && has(&DEAD) {
        Fault::Spent("invalid_refresh_token")
    } else if has(&LIMITED) {
        Fault::Passing("rate_limited")
    } else if has(&PASSING) {
        Fault::Passing("unavailable")
    } else {
        refused(&code)
    }
}

fn refused(code: &str) -> Fault {
    match code {
        "unauthorizedclient" => Fault::Refused("unauthorized_client"),
        "invalidrequest" => Fault::Refused("invalid_request"),
        "invalidscope" => Fault::Refused("invalid_scope"),
        "unsupportedgranttype" => Fault::Refused("unsupported_grant_type"),
        _ if code.contains("client") && NOT_KNOWN.iter().any(|part| code.contains(part)) => {
            Fault::Refused("invalid_client")
        }
        _ => Fault::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_grant_is_known_in_other_words() {
        for (code, reason) in [
            ("invalid_grant", "invalid_grant"),
            ("INVALID-GRANT", "invalid_grant"),
            ("interaction_required", "invalid_grant"),
            ("token_revoked", "invalid_grant"),
            ("refresh_token_reused", "refresh_token_reused"),
            ("RefreshTokenAlreadyUsed", "refresh_token_reused"),
            ("refresh_token_expired", "invalid_refresh_token"),
            ("refresh_token_invalidated", "invalid_refresh_token"),
            ("bad_refresh_token", "invalid_refresh_token"),
            ("BAD_REFRESH_TOKEN", "invalid_refresh_token"),
            ("invalid_refresh_token", "invalid_refresh_token"),
            ("refreshToken.notFound", "invalid_refresh_token"),
        ] {
            assert_eq!(fault_of(code), Fault::Spent(reason), "{code}");
        }
    }

    #[test]
    fn what_is_no_word_on_the_grant_spends_nothing() {
        for (code, fault) in [
            ("invalid_client", Fault::Refused("invalid_client")),
            (
                "incorrect_client_credentials",
                Fault::Refused("invalid_client"),
            ),
            ("bad_client_secret", Fault::Refused("invalid_client")),
            ("unauthorized_client", Fault::Refused("unauthorized_client")),
            ("invalid_request", Fault::Refused("invalid_request")),
            ("invalid_scope", Fault::Refused("invalid_scope")),
            (
                "unsupported_grant_type",
                Fault::Refused("unsupported_grant_type"),
            ),
            ("temporarily_unavailable", Fault::Passing("unavailable")),
            ("server_error", Fault::Passing("unavailable")),
            ("ratelimited", Fault::Passing("rate_limited")),
            ("invalid_grant_type", Fault::Unknown),
            ("refresh_token_missing", Fault::Unknown),
            ("access_denied", Fault::Unknown),
            ("invalid_request_error", Fault::Unknown),
            ("", Fault::Unknown),
            ("¿", Fault::Unknown),
        ] {
            assert_eq!(fault_of(code), fault, "{code}");
        }
    }

    #[test]
    fn what_is_told_of_the_grant_counts_most() {
        let mut faults = [
            Fault::Unknown,
            Fault::Refused("invalid_request"),
            Fault::Spent("invalid_grant"),
            Fault::Passing("unavailable"),
        ];
        faults.sort();
        assert_eq!(faults[0], Fault::Spent("invalid_grant"));
        assert_eq!(faults[3], Fault::Unknown);
    }
}

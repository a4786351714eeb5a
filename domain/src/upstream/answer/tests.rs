use proptest::prelude::*;
use secrecy::ExposeSecret as _;

use super::*;

fn read(status: u16, body: &str) -> (ErrorKind, &'static str) {
    let error = read_answer(status, body.as_bytes()).expect_err(body);
    (error.kind, error.reason)
}

#[test]
fn a_grant_is_read_with_its_defaults() {
    let grant = read_answer(200, br#"{"access_token":"access-1","token_type":"Bearer"}"#).unwrap();
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
fn a_grant_is_kept_whatever_else_is_odd() {
    let with = |more: &str| {
        format!(r#"{{"access_token":"access-1","refresh_token":"r-2"{more}}}"#).into_bytes()
    };
    let mut bodies = vec![
        (201, with("")),
        (200, [b"\xef\xbb\xbf".as_slice(), &with("")].concat()),
        (200, [b"\r\n ".as_slice(), &with("")].concat()),
        (200, with(",\"note\":\"\u{fffd}\"")),
        (
            200,
            [
                with("")[..1].to_vec(),
                b"\"n\":\"\xff\",".to_vec(),
                with("")[1..].to_vec(),
            ]
            .concat(),
        ),
        (
            202,
            b"token_type=bearer&access_token=access%2d1&refresh_token=r%2D2&expires_in=x".to_vec(),
        ),
    ];
    for more in [
        r#","expires_in":0"#,
        r#","expires_in":-1"#,
        r#","expires_in":"""#,
        r#","expires_in":"soon""#,
        r#","expires_in":null"#,
        r#","expires_in":true"#,
        r#","expires_in":{}"#,
        r#","expires_in":"NaN""#,
        r#","token_type":"BearerToken""#,
        r#","token_type":"user""#,
        r#","token_type":7"#,
        r#","error":null,"errors":[],"status":"ok""#,
        r#","scope":{"a":1e999}"#,
    ] {
        bodies.push((200, with(more)));
    }
    for (status, body) in bodies {
        let text = String::from_utf8_lossy(&body);
        let grant = read_answer(status, &body).unwrap_or_else(|error| panic!("{text} {error:?}"));
        assert_eq!(grant.access_token.expose_secret(), "access-1", "{text}");
        let refresh_token = grant.refresh_token.expect(&text);
        assert_eq!(refresh_token.expose_secret(), "r-2", "{text}");
        assert_eq!(grant.life, LIFE_DEFAULT, "{text}");
    }
    let lives = |text: &str| read_answer(200, &with(text)).unwrap().life;
    assert_eq!(lives(r#","expires_in":0.25"#), LIFE_MIN);
    assert_eq!(lives(r#","expires_in":1e999"#), LIFE_MAX);
    assert_eq!(lives(r#","expires_in":" 60 ""#), Duration::from_mins(1));
    // A form has room for every text.
    let body = br#"{"access_token":"access-1","refresh_token":"r \u00fc\n"}"#;
    let grant = read_answer(200, body).unwrap();
    assert_eq!(grant.refresh_token.unwrap().expose_secret(), "r \u{fc}\n");
}

#[test]
fn what_is_no_grant_is_passing_and_its_refresh_token_is_kept() {
    let malformed = (ErrorKind::Passing, "malformed_answer");
    let page = r#"<a href="?x&error=invalid_grant">"#;
    for body in ["", "<html>", page, "{}", "[]", "7", "a b=c"] {
        let error = read_answer(200, body.as_bytes()).expect_err(body);
        assert_eq!((error.kind, error.reason), malformed, "{body}");
        assert!(
            error.refresh_token.is_none() && !error.other_place,
            "{body}"
        );
    }
    let long = format!(r#""{}""#, "a".repeat(CREDENTIAL_CHARS + 1));
    for access_token in [
        "null",
        "7",
        r#""""#,
        r#""short""#,
        r#""access 1""#,
        r#""access\r\nx: y""#,
        &long,
    ] {
        let body = format!(r#"{{"access_token":{access_token},"refresh_token":"r-2"}}"#);
        let error = read_answer(200, body.as_bytes()).expect_err(&body);
        assert_eq!((error.kind, error.reason), malformed, "{body}");
        assert_eq!(error.refresh_token.expect(&body).expose_secret(), "r-2");
    }
    for token_type in NO_BEARERS {
        let body = format!(
            r#"{{"access_token":"access-1","token_type":"{}","refresh_token":"r-2"}}"#,
            token_type.to_ascii_uppercase()
        );
        let error = read_answer(200, body.as_bytes()).expect_err(&body);
        assert_eq!((error.kind, error.reason), malformed, "{body}");
        assert!(error.refresh_token.is_some(), "{body}");
    }
}

#[test]
fn a_dead_grant_is_seen_in_every_form() {
    let (spent, refresh_token) = (
        (ErrorKind::Spent, "invalid_grant"),
        (ErrorKind::Spent, "invalid_refresh_token"),
    );
    let reused = (ErrorKind::Spent, "refresh_token_reused");
    for (status, body, meaning) in [
        (
            400,
            r#"{"error":"invalid_grant","error_description":"secret-looking"}"#,
            spent,
        ),
        (401, r#"{"error":"invalid_grant"}"#, spent),
        (403, r#"{"error":"invalid_grant"}"#, spent),
        (200, r#"{"error":"invalid_grant"}"#, spent),
        (201, "\u{feff}{\"error\":\"invalid_grant\"}", spent),
        (200, "error=invalid_grant&error_description=a+b", spent),
        (400, "error_description=x&error=invalid%5Fgrant", spent),
        (
            200,
            r#"{"ok":false,"error":"invalid_refresh_token"}"#,
            refresh_token,
        ),
        (200, r#"{"error":"bad_refresh_token"}"#, refresh_token),
        (
            400,
            r#"{"status":"BAD_REFRESH_TOKEN","message":"x"}"#,
            refresh_token,
        ),
        (
            401,
            r#"{"error":{"type":"invalid_request_error","code":"refresh_token_reused"}}"#,
            reused,
        ),
        (
            400,
            r#"{"error":"invalid_request","code":"refresh_token_expired"}"#,
            refresh_token,
        ),
        (
            400,
            r#"{"errors":[{"errorType":"invalid_grant","message":"x"}]}"#,
            spent,
        ),
        (
            400,
            r#"{"error":{"errors":[{"code":"invalid_grant"}]}}"#,
            spent,
        ),
    ] {
        assert_eq!(read(status, body), meaning, "{status} {body}");
    }
}

#[test]
fn other_refusals_spend_nothing() {
    let spent = r#"{"error":"invalid_grant"}"#;
    let malformed = (ErrorKind::Passing, "malformed_answer");
    let client = (ErrorKind::Refused, "invalid_client");
    for (status, body, meaning) in [
        (401, r#"{"error":"invalid_client"}"#, client),
        (200, r#"{"error":"incorrect_client_credentials"}"#, client),
        (401, "", client),
        (400, r#"{"error":{"code":"invalid_client"}}"#, client),
        (
            400,
            r#"{"error":"made_up"}"#,
            (ErrorKind::Refused, "refused"),
        ),
        (
            400,
            r#"{"type":"error","error":{"type":"invalid_request_error"}}"#,
            malformed,
        ),
        (400, "<html>", malformed),
        (404, "not here", malformed),
        (429, spent, (ErrorKind::Passing, "rate_limited")),
        (
            400,
            r#"{"error":"slow_down"}"#,
            (ErrorKind::Passing, "rate_limited"),
        ),
        (
            200,
            r#"{"ok":false,"error":"ratelimited"}"#,
            (ErrorKind::Passing, "rate_limited"),
        ),
        (503, spent, (ErrorKind::Passing, "unavailable")),
        (302, "", (ErrorKind::Passing, "unexpected_status")),
        (302, spent, (ErrorKind::Passing, "unexpected_status")),
        (204, "", (ErrorKind::Passing, "unexpected_status")),
        // A text for people is no code.
        (
            400,
            r#"{"error":"x","error_description":"invalid_grant"}"#,
            (ErrorKind::Refused, "refused"),
        ),
    ] {
        assert_eq!(read(status, body), meaning, "{status} {body}");
    }
    let deep = format!(
        "{}\"invalid_grant\"{}",
        r#"{"error":"#.repeat(9000),
        "}".repeat(9000)
    );
    assert_eq!(read(400, &deep), malformed);
}

#[test]
fn a_refusal_may_be_about_the_place_of_the_secret_whatever_it_is_called() {
    let other_place = |status, body: &str| {
        read_answer(status, body.as_bytes())
            .unwrap_err()
            .other_place
    };
    for (status, body) in [
        (401, r#"{"error":"invalid_client"}"#),
        (401, r#"{"error":"access_denied"}"#),
        (400, r#"{"error":"invalid_request"}"#),
        (400, r#"{"error":"unauthorized_client"}"#),
        (400, r#"{"error":"invalid_grant"}"#),
        (200, r#"{"error":"incorrect_client_credentials"}"#),
        (401, "<html>"),
        (403, ""),
        (400, r#"{"error":{"type":"invalid_request_error"}}"#),
    ] {
        assert!(other_place(status, body), "{status} {body}");
    }
    for (status, body) in [
        (400, r#"{"error":"refresh_token_reused"}"#),
        (400, r#"{"error":"temporarily_unavailable"}"#),
        (429, ""),
        (503, ""),
        (404, ""),
        (200, "{}"),
    ] {
        assert!(!other_place(status, body), "{status} {body}");
    }
}

#[test]
fn of_two_refusals_the_one_that_knew_the_client_counts() {
    let error = |kind, reason| TokenError::of(kind, reason);
    let client = || error(ErrorKind::Refused, "invalid_client");
    let spent = || error(ErrorKind::Spent, "invalid_grant");
    let scope = || error(ErrorKind::Refused, "invalid_scope");
    let away = || TokenError::passing("timeout");
    for (first, second, reason) in [
        (client(), spent(), "invalid_grant"),
        (spent(), client(), "invalid_grant"),
        (spent(), away(), "invalid_grant"),
        (scope(), client(), "invalid_scope"),
        (client(), scope(), "invalid_scope"),
        (client(), away(), "timeout"),
        (client(), client(), "invalid_client"),
    ] {
        let words = format!("{} {}", first.reason, second.reason);
        assert_eq!(first.or(second).reason, reason, "{words}");
    }
}

#[test]
fn a_refused_client_ends_the_account_only_with_its_token() {
    let now = Timestamp::from_ms(10_000);
    let (past, future) = (Timestamp::from_ms(9_999), Timestamp::from_ms(10_001));
    let refused = TokenError::of(ErrorKind::Refused, "invalid_client");
    assert!(!refused.ends_account(now, Some(future)));
    assert!(refused.ends_account(now, Some(past)));
    assert!(!TokenError::passing("unavailable").ends_account(now, Some(past)));
    assert!(TokenError::of(ErrorKind::Spent, "x").ends_account(now, Some(future)));
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
fn forms_are_decoded_as_they_are_encoded() {
    for (text, plain) in [
        ("a+b", "a b"),
        ("%41%e2%82%ac", "A\u{20ac}"),
        ("100%", "100%"),
        ("%4", "%4"),
        ("%zz1", "%zz1"),
    ] {
        assert_eq!(decoded(text).as_str(), plain);
    }
}

proptest! {
    #[test]
    fn no_answer_breaks_the_reader(status in 100_u16..1000, body: Vec<u8>) {
        let _ = read_answer(status, &body);
    }

    #[test]
    fn no_form_breaks_the_reader(status in 200_u16..500, body in "[a-z_=&%+0-9]{0,200}") {
        let _ = read_answer(status, body.as_bytes());
    }

    #[test]
    fn every_text_comes_back_from_a_form(text: String) {
        let body = format!("access_token=access-1&refresh_token={}", *super::super::encoded(&text));
        let grant = read_answer(200, body.as_bytes()).unwrap();
        let read = grant.refresh_token.map(|one| one.expose_secret().to_owned());
        prop_assert_eq!(read.unwrap_or_default(), text);
    }
}

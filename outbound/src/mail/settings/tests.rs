use proptest::prelude::*;
use secrecy::ExposeSecret as _;

use super::*;

fn parsed(text: &str) -> SmtpSettings {
    text.parse()
        .unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn refused(text: &str) -> SmtpUrlError {
    match text.parse::<SmtpSettings>() {
        Ok(settings) => panic!("{text} was taken as {settings:?}"),
        Err(error) => error,
    }
}

#[test]
fn the_scheme_decides_tls_and_the_port() {
    let shape = |text| {
        let settings = parsed(text);
        (settings.host(), settings.port(), settings.tls())
    };
    let host = || "mail.example.com".to_owned();
    assert_eq!(
        shape("smtp://mail.example.com"),
        (host(), 587, TlsMode::StartTls)
    );
    assert_eq!(
        shape("smtps://Mail.Example.com/"),
        (host(), 465, TlsMode::Implicit)
    );
    assert_eq!(
        shape("smtp://mail.example.com:25"),
        (host(), 25, TlsMode::StartTls)
    );
    assert_eq!(
        shape("smtps://[2001:db8::1]:2465"),
        ("2001:db8::1".to_owned(), 2465, TlsMode::Implicit)
    );
    assert_eq!(
        shape("smtp://bücher.example"),
        ("xn--bcher-kva.example".to_owned(), 587, TlsMode::StartTls)
    );
}

#[test]
fn a_login_is_decoded() {
    let settings = parsed("smtps://mail%40example.com:p%2Fa+s%25s@mail.example.com");
    let login = settings.login.unwrap();
    assert_eq!(login.user, "mail@example.com");
    assert_eq!(login.password.expose_secret(), "p/a+s%s");
    assert!(parsed("smtps://mail.example.com").login.is_none());
}

#[test]
fn an_authority_is_a_path() {
    let settings = parsed("smtps://mail.example.com?ca=/etc/our%20ca.pem");
    assert_eq!(settings.authority(), Some(Path::new("/etc/our ca.pem")));
}

#[test]
fn mails_in_clear_stay_on_this_machine() {
    for host in [
        "localhost",
        "LOCALHOST:2525",
        "127.0.0.1",
        "127.8.0.1:25",
        "[::1]:25",
    ] {
        assert_eq!(
            parsed(&format!("smtp://{host}?tls=none")).tls(),
            TlsMode::Off
        );
    }
    for host in [
        "mail.example.com",
        "localhost.example.com",
        "10.0.0.1",
        "[::ffff:7f00:1]",
        "0.0.0.0",
        "128.0.0.1",
    ] {
        let error = refused(&format!("smtp://{host}?tls=none"));
        assert_eq!(error, SmtpUrlError::TlsOffElsewhere, "{host}");
    }
}

#[test]
fn a_refusal_names_what_is_wrong() {
    for (text, error) in [
        ("", SmtpUrlError::NotAUrl),
        ("mail.example.com", SmtpUrlError::NotAUrl),
        ("smtp://user:pass#word@host", SmtpUrlError::NotAUrl),
        ("http://mail.example.com", SmtpUrlError::Scheme),
        ("localhost:25", SmtpUrlError::Scheme),
        ("smtp://", SmtpUrlError::Host),
        ("smtp:mail.example.com", SmtpUrlError::Rest),
        ("smtp://a%20b", SmtpUrlError::Host),
        ("smtp://mail.example.com:0", SmtpUrlError::Port),
        ("smtp://mail.example.com/inbox", SmtpUrlError::Rest),
        ("smtp://mail.example.com#x", SmtpUrlError::Rest),
        ("smtp://host?user=x", SmtpUrlError::UnknownParameter),
        ("smtp://127.0.0.1?TLS=none", SmtpUrlError::UnknownParameter),
        (
            "smtp://127.0.0.1?tls=none&tls=none",
            SmtpUrlError::RepeatedParameter,
        ),
        ("smtps://host?ca=/a&ca=/b", SmtpUrlError::RepeatedParameter),
        ("smtp://127.0.0.1?tls=off", SmtpUrlError::TlsValue),
        ("smtp://127.0.0.1?tls=required", SmtpUrlError::TlsValue),
        ("smtps://127.0.0.1?tls=none", SmtpUrlError::TlsOffWithSmtps),
        ("smtps://host?ca=", SmtpUrlError::AuthorityPath),
        ("smtps://host?ca=ours.pem", SmtpUrlError::AuthorityPath),
        (
            "smtp://127.0.0.1?tls=none&ca=/a",
            SmtpUrlError::AuthorityWithoutTls,
        ),
        ("smtps://user@host", SmtpUrlError::HalfALogin),
        ("smtps://user:@host", SmtpUrlError::HalfALogin),
        ("smtps://:password@host", SmtpUrlError::HalfALogin),
        ("smtps://user:a%00b@host", SmtpUrlError::Login),
        ("smtps://us%0D%0Aer:a@host", SmtpUrlError::Login),
        ("smtps://user:%FF@host", SmtpUrlError::Login),
    ] {
        assert_eq!(refused(text), error, "{text}");
    }
}

#[test]
fn a_sender_is_an_address_with_or_without_a_name() {
    let name = |text: &str| {
        let from: MailFrom = text.parse().unwrap();
        assert_eq!(from.address.to_string(), "mail@example.com", "{text}");
        from.name
    };
    assert_eq!(name("mail@example.com"), None);
    assert_eq!(name(" <mail@example.com> "), None);
    assert_eq!(
        name("Example <mail@example.com>").as_deref(),
        Some("Example")
    );
    assert_eq!(
        name("\"Ex, Inc.\" <mail@example.com>").as_deref(),
        Some("Ex, Inc.")
    );
    assert_eq!(
        name("E\r\nBcc: x@example.com\u{202e}\0 <mail@example.com>").as_deref(),
        Some("E Bcc: x@example.com")
    );
    for text in [
        "",
        "Example",
        "mail@",
        "a b@example.com",
        "x <a@b.c> y",
        "a@b.c>",
    ] {
        assert_eq!(text.parse::<MailFrom>(), Err(MailFromError), "{text}");
    }
}

proptest! {
    /// Wherever the password stands, whatever is wrong with the URL.
    #[test]
    fn neither_an_error_nor_a_debug_text_shows_the_password(
        before in "[a-z/:@?#&=%]{0,6}",
        after in "[a-z0-9/:@?#&%]{0,12}",
        scheme in "(smtp|smtps|http)",
    ) {
        let text = format!("{scheme}://user:{before}hunter2SECRET{after}@127.0.0.1?tls=none");
        let shown = match text.parse::<SmtpSettings>() {
            Ok(settings) => format!("{settings:?}"),
            Err(error) => format!("{error} {error:?}"),
        };
        prop_assert!(!shown.to_lowercase().contains("secret"), "{}", shown);
    }

    #[test]
    fn no_text_makes_the_parsers_panic(text in "(smtps?://)?\\PC{0,40}") {
        let _ = text.parse::<SmtpSettings>();
        let _ = text.parse::<MailFrom>();
    }
}

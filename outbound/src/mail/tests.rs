//! What a mail looks like, without a server.

mod server;

use lettre::transport::smtp::extension::ClientId;
use proptest::prelude::*;

use super::{Mail, MailError, MailFrom, MailerError, message::build, one_line};
use crate::mail::{Mailer, SmtpSettings};

fn mail() -> Mail {
    Mail {
        to: "ann@example.net".to_owned(),
        subject: "Sign in".to_owned(),
        text: "Open https://stationmaster.example.com/in#stm_in_1\n".to_owned(),
        html: "<p>Open it.</p>".to_owned(),
        message_id: "mail_1".to_owned(),
    }
}

fn site() -> ClientId {
    ClientId::Domain("stationmaster.example.com".to_owned())
}

fn built(mail: &Mail, from: &str) -> Result<String, MailError> {
    let sendable = build(mail, &from.parse().unwrap(), &site())?;
    Ok(String::from_utf8(sendable.bytes).unwrap())
}

/// The lines of the head, with folded ones put together.
fn head(message: &str) -> Vec<String> {
    let (head, _) = message.split_once("\r\n\r\n").unwrap();
    let unfolded = head.replace("\r\n ", " ");
    unfolded.split("\r\n").map(str::to_owned).collect()
}

fn with_name<'a>(head: &'a [String], name: &str) -> Vec<&'a str> {
    let values = head.iter().filter_map(|line| line.split_once(": "));
    values
        .filter(|(known, _)| known.eq_ignore_ascii_case(name))
        .map(|(_, value)| value)
        .collect()
}

#[test]
fn a_mail_has_two_parts_and_says_that_a_machine_sent_it() {
    let message = built(&mail(), "Ours <mail@example.com>").unwrap();
    let head = head(&message);
    assert_eq!(with_name(&head, "From"), ["Ours <mail@example.com>"]);
    assert_eq!(with_name(&head, "To"), ["ann@example.net"]);
    assert_eq!(with_name(&head, "Subject"), ["Sign in"]);
    assert_eq!(with_name(&head, "Auto-Submitted"), ["auto-generated"]);
    assert_eq!(with_name(&head, "MIME-Version"), ["1.0"]);
    assert_eq!(with_name(&head, "Date").len(), 1);
    assert_eq!(
        with_name(&head, "Message-ID"),
        ["<mail_1@stationmaster.example.com>"]
    );
    let kind = with_name(&head, "Content-Type");
    assert!(kind[0].starts_with("multipart/alternative;"), "{kind:?}");
    let text = message.find("text/plain").unwrap();
    let html = message.find("text/html").unwrap();
    assert!(text < html, "the last part is the one that is shown");
}

#[test]
fn an_address_of_this_machine_makes_a_message_id_too() {
    for (host, right) in [
        ("127.0.0.1", "[127.0.0.1]"),
        ("[::1]", "[IPv6:::1]"),
        ("localhost", "localhost"),
    ] {
        let settings: SmtpSettings = "smtp://localhost?tls=none".parse().unwrap();
        let from = MailFrom::new("mail@example.com", None).unwrap();
        let mailer = Mailer::new(settings, from.clone(), host).unwrap();
        let bytes = build(&mail(), &from, &mailer.site).unwrap().bytes;
        let message = String::from_utf8(bytes).unwrap();
        assert!(message.contains(&format!("<mail_1@{right}>")), "{message}");
    }
}

#[test]
fn a_mailer_needs_a_host_and_certificates_that_exist() {
    let from = || MailFrom::new("mail@example.com", None).unwrap();
    let mailer = |url: &str, host: &str| Mailer::new(url.parse().unwrap(), from(), host).err();
    let bad_host = mailer("smtps://mail.example.com", "a b");
    assert!(matches!(bad_host, Some(MailerError::PublicHost)));
    let absent = mailer("smtps://mail.example.com?ca=/absent/ca.pem", "localhost");
    assert!(matches!(absent, Some(MailerError::AuthorityUnreadable(_))));
    for content in [
        "",
        "not PEM",
        "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    ] {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        let url = format!("smtps://mail.example.com?ca={}", file.path().display());
        let error = mailer(&url, "localhost");
        assert!(
            matches!(error, Some(MailerError::AuthorityInvalid)),
            "{content}: {error:?}"
        );
    }
}

#[test]
fn what_is_no_mail_is_refused_for_good() {
    let changes: [fn(&mut Mail); 8] = [
        |mail| mail.to = String::new(),
        |mail| mail.to = "ann".to_owned(),
        |mail| mail.to = "ann@example.net, eve@example.net".to_owned(),
        |mail| mail.to = "ann@example.net\r\nBcc: eve@example.net".to_owned(),
        |mail| mail.to = "\"a> <eve@example.net\"@example.net".to_owned(),
        |mail| mail.message_id = "a>\r\nBcc: eve@example.net".to_owned(),
        |mail| mail.message_id = "a..b".to_owned(),
        |mail| mail.html = "x".repeat(256 * 1024),
    ];
    for (at, change) in changes.into_iter().enumerate() {
        let mut mail = mail();
        change(&mut mail);
        let error = built(&mail, "mail@example.com").unwrap_err();
        assert!(matches!(error, MailError::Permanent(_)), "{at}: {error}");
    }
}

#[test]
fn a_debug_text_says_nothing_of_what_lets_people_in() {
    let shown = format!("{:?}", mail());
    assert!(shown.contains("mail_1"));
    assert!(
        !shown.contains("stm_in_1") && !shown.contains("ann@"),
        "{shown}"
    );
}

#[test]
fn one_line_is_one_line() {
    assert_eq!(one_line("  a\r\n\tb\u{0}\u{85}c\u{2028}d ", 20), "a b c d");
    assert_eq!(one_line("\u{202e}\u{200f}x\u{feff}", 20), "x");
    assert_eq!(one_line("Zoë Ⅻ 日本", 20), "Zoë Ⅻ 日本");
    assert_eq!(one_line("abcdef", 6), "abcdef");
    assert_eq!(one_line("abcdefg", 6), "abcde…");
    assert_eq!(one_line("a", 0), "…");
    assert_eq!(one_line("", 0), "");
}

/// Texts with what breaks headers, and texts of any characters.
fn hostile() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z\r\n\t\u{0}\u{7f}\u{202e}\u{2066}\u{2028}\"<>\\\\,;:@=?é日]{0,80}",
        "(x\r\nBcc: eve@example.net\r\n){1,3}",
        ".{0,200}",
        "[!-~]{0,400}",
    ]
}

proptest! {
    #[test]
    fn no_text_adds_a_header_or_makes_it_panic(
        to in prop_oneof![
            4 => Just("ann@example.net".to_owned()),
            1 => hostile(),
            1 => "[a-z.\"<>é]{1,9}@[a-z.é]{1,9}",
        ],
        name in hostile(),
        subject in hostile(),
        text in hostile(),
        html in hostile(),
        message_id in prop_oneof![4 => "[a-zA-Z0-9_-]{1,64}", 1 => hostile()],
    ) {
        let from = MailFrom::new("mail@example.com", Some(&name)).unwrap();
        let mail = Mail { to, subject, text, html, message_id };
        match build(&mail, &from, &site()) {
            Err(error) => prop_assert!(matches!(error, MailError::Permanent(_))),
            Ok(sendable) => {
                prop_assert_eq!(sendable.envelope.to().len(), 1);
                let message = String::from_utf8(sendable.bytes).unwrap();
                let head = head(&message);
                for line in &head {
                    prop_assert!(!line.contains(char::is_control), "{:?}", line);
                    prop_assert!(line.contains(": "), "{:?}", line);
                }
                prop_assert_eq!(head.len(), 8, "{:?}", head);
                prop_assert_eq!(with_name(&head, "To"), [mail.to.as_str()]);
                prop_assert!(with_name(&head, "Bcc").is_empty());
                prop_assert!(!message.replace("\r\n", "").contains(['\r', '\n', '\0']));
            }
        }
    }

    #[test]
    fn a_line_is_never_longer_than_said(text in ".{0,100}", chars_max in 1_usize..40) {
        let line = one_line(&text, chars_max);
        prop_assert!(line.chars().count() <= chars_max);
        prop_assert!(!line.contains(char::is_control));
        prop_assert_eq!(one_line(&line, chars_max), line.clone());
    }
}

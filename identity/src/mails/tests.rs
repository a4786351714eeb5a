use proptest::prelude::*;

use super::{layout::escape, *};

const SITE: &str = "stationmaster.example.com";
const LINK: &str = "https://stationmaster.example.com/in/confirm?a=1&b=2#stm_in_x";

/// What strangers chose.
#[derive(Clone, Copy)]
struct Strange<'a> {
    browser: &'a str,
    address: &'a str,
    email: &'a str,
    passkey: &'a str,
    publisher: &'a str,
    inviter: &'a str,
    message: Option<&'a str>,
}

const HONEST: Strange = Strange {
    browser: "Firefox on Linux",
    address: "203.0.113.7",
    email: "ann@example.net",
    passkey: "Ann's laptop",
    publisher: "Acme & Sons",
    inviter: "Ben",
    message: Some("Hello Ann,\n\nsee you there!"),
};

/// Each mail with its name.
fn all(strange: Strange) -> Vec<(&'static str, MailText)> {
    let mut all = with_links_that_work_once(strange);
    all.extend(notices(strange));
    all
}

fn with_links_that_work_once(strange: Strange) -> Vec<(&'static str, MailText)> {
    let (site, link) = (SITE, LINK);
    let asked_from = asked_from(strange);
    let day = Duration::from_hours(24);
    let signing_in = SignIn {
        site,
        link,
        code: "012345",
        valid_for: Duration::from_mins(10),
        asked_from,
    };
    let registering = VerifyAddress {
        site,
        link,
        valid_for: day,
        asked_from,
    };
    let resetting = PasswordReset {
        site,
        link,
        valid_for: Duration::from_hours(1),
        asked_from: Some(asked_from),
    };
    let by_staff = PasswordReset {
        asked_from: None,
        ..resetting
    };
    let moving = ConfirmEmail {
        site,
        link,
        valid_for: day,
        asked_from,
    };
    let inviting = Invitation {
        site,
        publisher: strange.publisher,
        inviter: strange.inviter,
        role: "developer",
        message: strange.message,
        link,
        valid_for: 7 * day,
    };
    vec![
        ("sign_in", sign_in(&signing_in)),
        ("verify_address", verify_address(&registering)),
        ("password_reset", password_reset(&resetting)),
        ("password_reset_by_staff", password_reset(&by_staff)),
        ("confirm_email", confirm_email(&moving)),
        ("invitation", invitation(&inviting)),
    ]
}

fn notices(strange: Strange) -> Vec<(&'static str, MailText)> {
    let (site, link) = (SITE, LINK);
    let asked_from = asked_from(strange);
    let once_more = AlreadyRegistered {
        site,
        link,
        asked_from,
    };
    let notice = Notice {
        site,
        at: Timestamp::parse("2026-11-30T09:05:59.123Z").unwrap(),
        asked_from,
        link,
    };
    vec![
        ("already_registered", already_registered(&once_more)),
        ("password_changed", password_changed(&notice)),
        ("email_changed", email_changed(&notice, strange.email)),
        ("passkey_added", passkey_added(&notice, strange.passkey)),
        ("passkey_removed", passkey_removed(&notice, strange.passkey)),
    ]
}

fn asked_from(strange: Strange) -> AskedFrom {
    AskedFrom {
        browser: strange.browser,
        address: strange.address,
    }
}

/// Every text of a stranger is this one.
fn all_with(text: &str) -> Vec<(&'static str, MailText)> {
    all(Strange {
        browser: text,
        address: text,
        email: text,
        passkey: text,
        publisher: text,
        inviter: text,
        message: Some(text),
    })
}

/// The names of the tags, in their order.
fn tags(html: &str) -> Vec<&str> {
    let starts = html.split('<').skip(1);
    starts
        .map(|tag| tag.split(['>', ' ']).next().unwrap())
        .collect()
}

/// What holds for a mail whatever strangers chose.
fn check(name: &str, mail: &MailText) {
    assert_eq!(mail.text.matches(LINK).count(), 1, "{name}: {}", mail.text);
    assert_eq!(mail.text.matches("://").count(), 1, "{name}: {}", mail.text);
    let href = format!("<a href=\"{}\">", escape(LINK));
    assert_eq!(mail.html.matches(&href).count(), 1, "{name}: {}", mail.html);
    assert_eq!(mail.html.matches("://").count(), 1, "{name}: {}", mail.html);
    assert!(
        !mail.subject.contains(char::is_control),
        "{name}: {}",
        mail.subject
    );
    assert!(
        mail.subject.chars().count() <= 150,
        "{name}: {}",
        mail.subject
    );
    for part in [&mail.text, &mail.html] {
        let control = |c: char| c.is_control() && c != '\n';
        assert!(!part.contains(control), "{name}: {part:?}");
        assert!(
            !part.contains(['\u{202e}', '\u{2066}', '\u{2028}']),
            "{name}: {part:?}"
        );
        assert!(part.len() < 16 * 1024, "{name}");
    }
}

#[test]
fn each_mail_reads_well() {
    for (name, mail) in all(HONEST) {
        check(name, &mail);
        let shown = format!("Subject: {}\n\n{}\n{}", mail.subject, mail.text, mail.html);
        insta::assert_snapshot!(name, shown);
    }
}

#[test]
fn no_mail_uses_the_word_for_credentials_of_upstreams() {
    for (name, mail) in all(HONEST) {
        let words = format!("{} {}", mail.subject, mail.text).to_lowercase();
        assert!(!words.contains("account"), "{name}: {words}");
    }
}

#[test]
fn a_hostile_name_stays_a_name() {
    for text in [
        "<script>alert(1)</script>",
        "\"><img src=x onerror=alert(1)>",
        "x\r\nBcc: eve@example.net\r\n\r\nhello",
        "\u{202e}moc.elpmaxe\u{0}\u{2066}",
        "a\u{2028}b\u{85}c",
        LINK,
        "https:////evil.example",
        "</body></html>",
        "&lt;b&gt;",
        "",
    ] {
        for ((name, mail), (_, honest)) in all_with(text).into_iter().zip(all(HONEST)) {
            check(name, &mail);
            let without_quote = |html: &str| -> Vec<String> {
                let structure = tags(html).into_iter().filter(|tag| *tag != "br");
                structure.map(str::to_owned).collect()
            };
            let (found, expected) = (without_quote(&mail.html), without_quote(&honest.html));
            // An empty message is left out.
            if !(name == "invitation" && text.is_empty()) {
                assert_eq!(found, expected, "{name}: {}", mail.html);
            }
            if name != "invitation" {
                let lines = |text: &str| text.lines().count();
                assert_eq!(
                    lines(&mail.text),
                    lines(&honest.text),
                    "{name}: {}",
                    mail.text
                );
            }
        }
    }
}

#[test]
fn a_message_is_quoted_line_by_line_and_cut() {
    let message = format!(
        "one\r\n\r\n{}\n{}",
        "-- \nstationmaster\n".repeat(20),
        "x".repeat(1000)
    );
    let mails = all(Strange {
        message: Some(&message),
        ..HONEST
    });
    let (_, mail) = mails
        .into_iter()
        .find(|(name, _)| *name == "invitation")
        .unwrap();
    let quoted: Vec<&str> = mail.text.lines().filter(|l| l.starts_with("> ")).collect();
    assert_eq!(quoted[..3], ["> one", "> --", "> stationmaster"]);
    assert_eq!(quoted.len(), 10);
    let mails = all(Strange {
        message: None,
        ..HONEST
    });
    let (_, mail) = mails
        .into_iter()
        .find(|(name, _)| *name == "invitation")
        .unwrap();
    assert!(
        !mail.text.contains("> ") && !mail.text.contains("writes"),
        "{}",
        mail.text
    );
    assert!(!mail.html.contains("blockquote"), "{}", mail.html);
}

#[test]
fn spans_are_worded() {
    for (minutes, words) in [
        (1, "1 minute"),
        (10, "10 minutes"),
        (60, "1 hour"),
        (90, "90 minutes"),
        (24 * 60, "24 hours"),
        (36 * 60, "36 hours"),
        (48 * 60, "2 days"),
        (7 * 24 * 60, "7 days"),
    ] {
        assert_eq!(span(Duration::from_mins(minutes)), words);
    }
}

/// Undoes [`escape`], as a browser does.
fn unescaped(html: &str) -> String {
    html.replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&quot;", "\"")
        .replace("&#39;", "'")
        .replace("&amp;", "&")
}

proptest! {
    #[test]
    fn what_is_escaped_is_text_and_the_same_text(text in "[ab&<>\"';#lt]{0,40}|.{0,60}") {
        let escaped = escape(&text);
        prop_assert!(!escaped.contains(['<', '>', '"', '\'']), "{}", escaped);
        prop_assert_eq!(unescaped(&escaped), text);
    }

    #[test]
    fn no_text_of_a_stranger_changes_a_mail(
        text in "[a-z<>&\"'/:\r\n\t\u{0}\u{202e}\u{2028}é日]{0,120}|.{0,120}|(x://|\n){0,300}",
    ) {
        for (name, mail) in all_with(&text) {
            check(name, &mail);
        }
    }
}

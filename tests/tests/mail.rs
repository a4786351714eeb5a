//! Mails, by the mailer alone, to a mail server that others wrote. No server of ours runs.

use outbound::mail::{Mail, MailError, MailFrom, Mailer};
use tests::SmtpSink;
use url::Url;

const ANN: &str = "ann@example.net";
/// Longer than a line of a mail may be, and with what quoted-printable encodes.
const LINK: &str = "https://stationmaster.example.com/sign-in/confirm#token=stm_in_0123456789abcdefghjkmnpqrstvwxyz0123456789abcdefghjkmnpqrstvwxyz&next=%2Fp%2Facme";

fn mailer(url: &Url) -> Mailer {
    let from = MailFrom::new("mail@example.com", Some("Zoë, Inc.")).unwrap();
    let mailer = Mailer::new(
        url.as_str().parse().unwrap(),
        from,
        "stationmaster.example.com",
    );
    mailer.unwrap()
}

fn mail(to: &str) -> Mail {
    Mail {
        to: to.to_owned(),
        subject: "Sign in – für Zoë\r\nBcc: eve@example.net".to_owned(),
        text: format!("Grüße.\nOpen this link:\n{LINK}\n.\n..\nFrom here on.\n"),
        html: format!("<p>Grüße. <a href=\"{LINK}\">Open it</a></p>"),
        message_id: "mail_1".to_owned(),
    }
}

async fn refused(url: &Url, to: &str) -> MailError {
    mailer(url).send(&mail(to)).await.unwrap_err()
}

#[tokio::test]
async fn a_mail_arrives_as_it_was_written() {
    let Some(sink) = SmtpSink::start("mail").await else {
        return;
    };
    for (at, url) in [&sink.starttls, &sink.tls, &sink.plain]
        .into_iter()
        .enumerate()
    {
        mailer(url).send(&mail(ANN)).await.unwrap();
        let got = sink.mail_to(ANN, at).await;
        assert_eq!(got.to, [ANN]);
        assert_eq!(got.subject, "Sign in – für Zoë Bcc: eve@example.net");
        assert_eq!(got.text, mail(ANN).text);
        assert_eq!(got.link(), LINK);
        assert_eq!(got.html.trim_end(), mail(ANN).html);
        assert_eq!(got.header("From"), ["\"Zoë, Inc.\" <mail@example.com>"]);
        assert_eq!(got.header("To"), [ANN]);
        assert_eq!(got.header("Bcc"), Vec::<&str>::new());
        assert_eq!(got.header("Auto-Submitted"), ["auto-generated"]);
        assert_eq!(
            got.header("Message-ID"),
            ["<mail_1@stationmaster.example.com>"]
        );
        let encrypted = *url != sink.plain;
        assert_eq!(got.tls, encrypted, "{url}");
        assert_eq!(got.auth.is_some(), encrypted, "{url}");
    }
    assert_eq!(sink.mails().len(), 3);
}

#[tokio::test]
async fn a_server_that_refuses_a_receiver_is_believed() {
    let Some(sink) = SmtpSink::start("mail").await else {
        return;
    };
    let said = "the mail was not taken: the mail server answered";
    assert_eq!(
        refused(&sink.tls, "bounce-550@example.net").await,
        MailError::Permanent(format!("{said} 550 5.1.1"))
    );
    assert_eq!(
        refused(&sink.tls, "busy-451@example.net").await,
        MailError::Passing(format!("{said} 451 4.1.1"))
    );
    let once = "busy-451-once@example.net";
    assert!(matches!(
        refused(&sink.tls, once).await,
        MailError::Passing(_)
    ));
    assert_eq!(sink.mails().len(), 0);
    mailer(&sink.tls).send(&mail(once)).await.unwrap();
    assert_eq!(sink.mail_to(once, 0).await.to, [once]);
}

#[tokio::test]
async fn a_login_that_is_wrong_or_missing_loses_no_mail() {
    let Some(sink) = SmtpSink::start("mail").await else {
        return;
    };
    for url in [&sink.starttls, &sink.tls] {
        let mut wrong = url.clone();
        wrong.set_password(Some("guessed")).unwrap();
        let error = refused(&wrong, ANN).await;
        let said = "logging in failed: the mail server answered 535 5.7.8";
        assert_eq!(error, MailError::Passing(said.to_owned()), "{wrong}");
        let mut missing = url.clone();
        missing.set_username("").unwrap();
        missing.set_password(None).unwrap();
        let error = refused(&missing, ANN).await;
        let said = "the mail was not taken: the mail server answered 530 5.7.0";
        assert_eq!(error, MailError::Passing(said.to_owned()), "{missing}");
    }
    assert_eq!(sink.mails().len(), 0);
}

#[tokio::test]
async fn an_authority_that_nobody_named_is_not_trusted() {
    let Some(sink) = SmtpSink::start("mail").await else {
        return;
    };
    for url in [&sink.starttls, &sink.tls] {
        let mut strange = url.clone();
        strange.set_query(None);
        let error = refused(&strange, ANN).await;
        assert!(matches!(error, MailError::Passing(_)), "{error}");
        assert!(error.to_string().contains("UnknownIssuer"), "{error}");
    }
    assert_eq!(sink.mails().len(), 0);
}

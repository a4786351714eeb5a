//! Against mail servers of our own, which behave as no honest one does.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::{ServerConfig, pki_types::PrivateKeyDer};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpSocket},
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;

use super::mail;
use crate::mail::{MailError, MailFrom, Mailer};

/// Long enough for any answer of a server in this process.
const PATIENT: Duration = Duration::from_mins(1);
/// For tests in which the server never answers.
const IMPATIENT: Duration = Duration::from_millis(300);

/// A server that gives fixed answers; an answer that is empty never comes.
struct FakeServer {
    port: u16,
    heard: Arc<Mutex<Vec<String>>>,
    _serving: JoinHandle<()>,
}

type Answers = HashMap<&'static str, &'static str>;

impl FakeServer {
    /// `answers` replaces what an obliging server would answer to `greeting`, `EHLO`, `AUTH`,
    /// `MAIL`, `RCPT`, `DATA`, `.` or `QUIT`.
    async fn start(answers: &[(&'static str, &'static str)], tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let heard = Arc::<Mutex<Vec<String>>>::default();
        let mut all: Answers = [
            ("greeting", "220 fake"),
            ("EHLO", "250-fake\r\n250 AUTH PLAIN"),
            ("AUTH", "235 welcome"),
            ("MAIL", "250 ok"),
            ("RCPT", "250 ok"),
            ("DATA", "354 go on"),
            (".", "250 taken"),
            ("QUIT", "221 bye"),
        ]
        .into();
        all.extend(answers.iter().copied());
        let log = Arc::clone(&heard);
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                match &tls {
                    None => talk(stream, &all, &log).await,
                    Some(tls) => {
                        if let Ok(stream) = tls.accept(stream).await {
                            talk(stream, &all, &log).await;
                        }
                    }
                }
            }
        });
        Self {
            port,
            heard,
            _serving: serving,
        }
    }

    fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap().clone()
    }

    fn plain(&self, login: &str, time_max: Duration) -> Mailer {
        let url = format!("smtp://{login}127.0.0.1:{}?tls=none", self.port);
        mailer(&url, time_max)
    }
}

async fn talk(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    answers: &Answers,
    heard: &Mutex<Vec<String>>,
) {
    let mut stream = BufReader::new(stream);
    let mut command = "greeting".to_owned();
    loop {
        match answers.get(command.as_str()) {
            Some(&"") => std::future::pending().await,
            Some(answer) => {
                let answer = format!("{answer}\r\n");
                let _ = stream.get_mut().write_all(answer.as_bytes()).await;
                let _ = stream.get_mut().flush().await;
            }
            None => panic!("a mailer sent {command}"),
        }
        let in_data = command == "DATA" && answers["DATA"].starts_with("354");
        let mut line = String::new();
        while stream.read_line(&mut line).await.is_ok_and(|read| read > 0) {
            if !in_data || line == ".\r\n" {
                break;
            }
            line.clear();
        }
        if line.is_empty() {
            return;
        }
        heard.lock().unwrap().push(line.trim_end().to_owned());
        command = line
            .split_whitespace()
            .next()
            .unwrap_or_default()
            .to_owned();
    }
}

fn mailer(url: &str, time_max: Duration) -> Mailer {
    let from = MailFrom::new("mail@example.com", Some("Ours")).unwrap();
    let mailer = Mailer::new(url.parse().unwrap(), from, "stationmaster.example.com");
    mailer.unwrap().with_time_max(time_max)
}

/// A certificate for a name, its PEM form in a file, and a server's side of it.
fn certificate(name: &str) -> (tempfile::NamedTempFile, TlsAcceptor) {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(vec![name.to_owned()]).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    let base64 = STANDARD.encode(cert.der());
    let pem = format!("-----BEGIN CERTIFICATE-----\n{base64}\n-----END CERTIFICATE-----\n");
    std::fs::write(file.path(), pem).unwrap();
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    (file, TlsAcceptor::from(Arc::new(config)))
}

fn passing(result: Result<(), MailError>) -> String {
    match result {
        Err(MailError::Passing(said)) => said,
        other => panic!("{other:?}"),
    }
}

fn permanent(result: Result<(), MailError>) -> String {
    match result {
        Err(MailError::Permanent(said)) => said,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_mail_is_handed_over_in_the_name_of_the_public_host() {
    let server = FakeServer::start(&[], None).await;
    let mailer = server.plain("user:pass@", PATIENT);
    // In a task, as whoever works through many mails sends them.
    let sent = tokio::spawn(async move { mailer.send(&mail()).await });
    sent.await.unwrap().unwrap();
    assert_eq!(
        server.heard(),
        [
            "EHLO stationmaster.example.com",
            "AUTH PLAIN AHVzZXIAcGFzcw==",
            "MAIL FROM:<mail@example.com>",
            "RCPT TO:<ann@example.net>",
            "DATA",
            ".",
            "QUIT",
        ]
    );
}

#[tokio::test]
async fn a_silent_server_does_not_hold_the_caller() {
    for silent in ["greeting", "EHLO", "AUTH", "MAIL", "RCPT", "DATA", "."] {
        let server = FakeServer::start(&[(silent, "")], None).await;
        let said = passing(server.plain("user:pass@", IMPATIENT).send(&mail()).await);
        assert_eq!(said, "the mail server took longer than 0.3 s for a mail");
    }
}

#[tokio::test]
async fn a_mail_that_was_taken_is_sent_though_the_server_falls_silent() {
    let server = FakeServer::start(&[("QUIT", "")], None).await;
    server.plain("", PATIENT).send(&mail()).await.unwrap();
}

#[tokio::test]
async fn a_refusal_is_for_good_and_a_deferral_passes() {
    for command in ["MAIL", "RCPT", "DATA", "."] {
        let server = FakeServer::start(&[(command, "550 5.1.1 no")], None).await;
        let said = permanent(server.plain("", PATIENT).send(&mail()).await);
        assert_eq!(
            said,
            "the mail was not taken: the mail server answered 550 5.1.1"
        );
        let server = FakeServer::start(&[(command, "451 later")], None).await;
        let said = passing(server.plain("", PATIENT).send(&mail()).await);
        assert_eq!(said, "the mail was not taken: the mail server answered 451");
    }
}

#[tokio::test]
async fn a_refusal_that_is_not_about_the_mail_passes() {
    for (command, answer, words) in [
        (
            "greeting",
            "554 no service",
            "connecting failed: the mail server answered 554",
        ),
        (
            "EHLO",
            "502 what",
            "connecting failed: the mail server answered 502",
        ),
        (
            "AUTH",
            "535 5.7.8 wrong",
            "logging in failed: the mail server answered 535 5.7.8",
        ),
        (
            "MAIL",
            "530 5.7.0 log in",
            "the mail was not taken: the mail server answered 530 5.7.0",
        ),
        (
            "EHLO",
            "250 fake",
            "logging in failed: the mail server lacks an extension that is needed",
        ),
        (
            "greeting",
            "SSH-2.0-x",
            "connecting failed: the mail server broke off, or did not speak SMTP",
        ),
    ] {
        let server = FakeServer::start(&[(command, answer)], None).await;
        let said = passing(server.plain("user:pass@", PATIENT).send(&mail()).await);
        assert_eq!(said, words);
    }
}

#[tokio::test]
async fn an_error_repeats_no_word_of_the_server() {
    let echo = "554 https://stationmaster.example.com/in#stm_in_1 for ann@example.net is spam";
    let server = FakeServer::start(&[(".", echo)], None).await;
    let said = permanent(server.plain("", PATIENT).send(&mail()).await);
    assert_eq!(said, "the mail was not taken: the mail server answered 554");
}

#[tokio::test]
async fn nobody_there_passes() {
    // Bound, so that nobody else gets the port; but not listening.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let port = socket.local_addr().unwrap().port();
    let mailer = mailer(&format!("smtp://127.0.0.1:{port}?tls=none"), PATIENT);
    let said = passing(mailer.send(&mail()).await);
    assert!(
        said.starts_with("connecting failed: Connection refused"),
        "{said}"
    );
}

#[tokio::test]
async fn nothing_is_sent_in_clear_when_starttls_is_stripped() {
    let server = FakeServer::start(&[], None).await;
    let mailer = mailer(
        &format!("smtp://user:pass@127.0.0.1:{}", server.port),
        PATIENT,
    );
    let said = passing(mailer.send(&mail()).await);
    assert!(said.contains("does not offer STARTTLS"), "{said}");
    assert_eq!(server.heard(), ["EHLO stationmaster.example.com"]);
}

/// Somebody on the way puts the answers of a whole mail behind the one to STARTTLS.
#[tokio::test]
async fn what_comes_in_clear_behind_starttls_is_no_answer() {
    let (file, tls) = certificate("127.0.0.1");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let forged = "220 go on\r\n250 x\r\n250 m\r\n250 r\r\n354 d\r\n250 taken\r\n221 bye\r\n";
    let serving = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = BufReader::new(stream);
        for (answer, asked) in [
            ("220 x\r\n", "EHLO stationmaster.example.com\r\n"),
            ("250-x\r\n250 STARTTLS\r\n", "STARTTLS\r\n"),
        ] {
            stream.get_mut().write_all(answer.as_bytes()).await.unwrap();
            let mut line = String::new();
            stream.read_line(&mut line).await.unwrap();
            assert_eq!(line, asked);
        }
        let stream = stream.get_mut();
        stream.write_all(forged.as_bytes()).await.unwrap();
        let _ = tls.accept(stream).await;
    });
    let url = format!("smtp://127.0.0.1:{port}?ca={}", file.path().display());
    let said = passing(mailer(&url, PATIENT).send(&mail()).await);
    assert_eq!(
        said,
        "STARTTLS failed: something came in clear behind the answer"
    );
    serving.await.unwrap();
}

#[tokio::test]
async fn a_server_is_known_by_its_authority_and_its_name() {
    let name = IpAddr::V4(Ipv4Addr::LOCALHOST).to_string();
    let (file, tls) = certificate(&name);
    let server = FakeServer::start(&[], Some(tls)).await;
    let url = format!("smtps://user:pass@127.0.0.1:{}", server.port);
    let said = passing(mailer(&url, PATIENT).send(&mail()).await);
    assert!(said.contains("UnknownIssuer"), "{said}");
    assert_eq!(server.heard(), Vec::<String>::new());
    let trusting = format!("{url}?ca={}", file.path().display());
    mailer(&trusting, PATIENT).send(&mail()).await.unwrap();

    let (file, tls) = certificate("mail.example.com");
    let server = FakeServer::start(&[], Some(tls)).await;
    let port = server.port;
    let url = format!(
        "smtps://user:pass@127.0.0.1:{port}?ca={}",
        file.path().display()
    );
    let said = passing(mailer(&url, PATIENT).send(&mail()).await);
    assert!(said.contains("not valid for name"), "{said}");
    assert_eq!(server.heard(), Vec::<String>::new());
}

//! A mail server that keeps the mails that it gets: `tests/programs/smtp_sink.py`.

use std::{path::PathBuf, process::Stdio, time::Duration};

use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};
use url::Url;

use crate::{tools, world::skip};

/// How long the program may take to start, and a mail to arrive.
const LIMIT: Duration = Duration::from_mins(1);

/// A mail as its receiver sees it: decoded by Python's `email` package.
#[derive(Clone, Debug)]
pub struct CapturedMail {
    /// The receivers of the envelope.
    pub to: Vec<String>,
    /// The subject.
    pub subject: String,
    /// The text part.
    pub text: String,
    /// The HTML part.
    pub html: String,
    /// The headers, in their order.
    pub headers: Vec<(String, String)>,
    /// Whether the connection was encrypted.
    pub tls: bool,
    /// The user who was logged in.
    pub auth: Option<String>,
}

impl CapturedMail {
    fn of(line: &str) -> Self {
        let mail: Value = serde_json::from_str(line).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let list = |value: &Value| value.as_array().unwrap().clone();
        let headers = list(&mail["headers"]);
        Self {
            to: list(&mail["to"]).iter().map(text).collect(),
            subject: text(&mail["subject"]),
            text: text(&mail["text"]),
            html: text(&mail["html"]),
            headers: headers.iter().map(|h| (text(&h[0]), text(&h[1]))).collect(),
            tls: mail["tls"].as_bool().unwrap(),
            auth: mail["auth"].as_str().map(str::to_owned),
        }
    }

    /// The values of a header.
    #[must_use]
    pub fn header(&self, name: &str) -> Vec<&str> {
        let of_name = |header: &&(String, String)| header.0.eq_ignore_ascii_case(name);
        let found = self.headers.iter().filter(of_name);
        found.map(|(_, value)| value.as_str()).collect()
    }

    /// The one link of the text part.
    #[must_use]
    pub fn link(&self) -> &str {
        let is_link = |word: &&str| word.starts_with("http://") || word.starts_with("https://");
        let links: Vec<&str> = self.text.split_whitespace().filter(is_link).collect();
        assert_eq!(links.len(), 1, "{}", self.text);
        links[0]
    }
}

/// The running mail server. It ends when this is dropped.
pub struct SmtpSink {
    /// A URL for `STATIONMASTER_SMTP_URL`: STARTTLS and a login.
    pub starttls: Url,
    /// The same with TLS from the first byte.
    pub tls: Url,
    /// The same in clear, without a login.
    pub plain: Url,
    mails: PathBuf,
    _home: TempDir,
    _child: Child,
}

impl SmtpSink {
    /// Starts it; `None`, after a skip, if what it needs is not installed.
    pub async fn start(test: &str) -> Option<Self> {
        if !Self::installed().await {
            let python = tools::python();
            let reason = format!(
                "{} has no aiosmtpd; scripts/test installs it",
                python.display()
            );
            skip(test, &reason);
            return None;
        }
        let home = tempfile::tempdir().unwrap();
        let mails = home.path().join("mails.jsonl");
        let mut child = Command::new(tools::python())
            .arg(tools::root().join("tests/programs/smtp_sink.py"))
            .arg(&mails)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = tokio::time::timeout(LIMIT, lines.next_line()).await;
        let line = line.unwrap().unwrap().expect("the mail server starts");
        let ready: Value = serde_json::from_str(&line).unwrap();
        let url = |scheme: &str, port: &str| {
            Url::parse(&format!("{scheme}://127.0.0.1:{}", ready[port])).unwrap()
        };
        let with_login = |mut url: Url| {
            url.set_username(ready["user"].as_str().unwrap()).unwrap();
            let password = ready["password"].as_str();
            url.set_password(password).unwrap();
            let authority = ready["ca"].as_str().unwrap();
            url.query_pairs_mut().append_pair("ca", authority);
            url
        };
        let mut plain = url("smtp", "plain");
        plain.set_query(Some("tls=none"));
        Some(Self {
            starttls: with_login(url("smtp", "starttls")),
            tls: with_login(url("smtps", "tls")),
            plain,
            mails,
            _home: home,
            _child: child,
        })
    }

    async fn installed() -> bool {
        let mut command = Command::new(tools::python());
        command
            .args(["-c", "import aiosmtpd"])
            .stderr(Stdio::null());
        command.status().await.is_ok_and(|status| status.success())
    }

    /// All mails that came, in their order.
    #[must_use]
    pub fn mails(&self) -> Vec<CapturedMail> {
        let written = std::fs::read_to_string(&self.mails).unwrap();
        let whole = written.split_inclusive('\n').filter(|l| l.ends_with('\n'));
        whole.map(CapturedMail::of).collect()
    }

    /// The mail to this address that comes after the first `after` mails to it.
    pub async fn mail_to(&self, address: &str, after: usize) -> CapturedMail {
        let what = format!("mail {} to {address}", after + 1);
        tools::eventually(&what, LIMIT, async || {
            let to_it = |mail: &CapturedMail| mail.to.iter().any(|to| to == address);
            self.mails().into_iter().filter(to_it).nth(after)
        })
        .await
    }
}

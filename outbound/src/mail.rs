//! Sends one mail over SMTP, to the server that the operator configured.
//!
//! A mail is never sent in clear over a network, whatever the server offers. Every mail has a
//! connection of its own, so one mail can't break another; mails are few.
//!
//! An error must never contain words of a mail, of the mail server or of the password: some servers
//! repeat the link that they refuse, and that link lets people in.

mod connection;
mod message;
mod settings;
mod text;

use std::{io, path::Path, sync::Arc, time::Duration};

use lettre::transport::smtp::{
    authentication::{Credentials, DEFAULT_MECHANISMS},
    client::AsyncSmtpConnection,
    extension::ClientId,
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use secrecy::ExposeSecret as _;
use tokio::time::timeout;
use url::Host;

use crate::{failure::find, tls};

pub use message::Mail;
pub use settings::{MailFrom, MailFromError, SmtpSettings, SmtpUrlError, TlsMode};
pub use text::one_line;

/// How long it may take to hand over one mail, from the connection to the server's last answer.
pub const SEND_TIME_MAX: Duration = Duration::from_secs(30);
/// How long the server may take to say goodbye, after it took the mail.
const QUIT_TIME_MAX: Duration = Duration::from_secs(1);

/// Why a mail was not sent. The texts are for the operator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MailError {
    /// The server refused this mail for good (a 5xx answer to the sender, the receiver or the
    /// content), or it is not a mail. Sending it again is no use.
    #[error("{0}")]
    Permanent(String),
    /// It may be sent later: a 4xx answer, no connection, no valid certificate, no answer in time,
    /// no STARTTLS.
    ///
    /// A login that the server refuses is one of these, though the answer is 5xx: it says nothing
    /// about the mail, and the operator can mend it. After a time limit the server may have taken
    /// the mail all the same; it then gets it twice, with the same Message-ID.
    #[error("{0}")]
    Passing(String),
}

/// Why no [`Mailer`] could be made.
#[derive(Debug, thiserror::Error)]
pub enum MailerError {
    /// The file of `?ca=` can't be read.
    #[error("the certificates in the file of ca can't be read: {0}")]
    AuthorityUnreadable(#[source] io::Error),
    /// The file of `?ca=` has no certificate, or a broken one.
    #[error("the file of ca must contain certificates in PEM form")]
    AuthorityInvalid,
    /// The public host is not a host.
    #[error("the public host must be a domain name or an IP address")]
    PublicHost,
}

/// Sends mails.
pub struct Mailer {
    settings: SmtpSettings,
    from: MailFrom,
    /// How this server introduces itself, and the right part of each Message-ID.
    site: ClientId,
    tls: Arc<ClientConfig>,
    time_max: Duration,
}

impl Mailer {
    /// A mailer for the server in the settings. `public_host` is the host of the public URL: this
    /// machine's own name is told to nobody. Reads the certificates of the machine and of `?ca=`.
    pub fn new(
        settings: SmtpSettings,
        from: MailFrom,
        public_host: &str,
    ) -> Result<Self, MailerError> {
        let site = match Host::parse(public_host).map_err(|_| MailerError::PublicHost)? {
            Host::Domain(name) => ClientId::Domain(name),
            Host::Ipv4(address) => ClientId::Ipv4(address),
            Host::Ipv6(address) => ClientId::Ipv6(address),
        };
        let mut roots = tls::system_roots();
        if let Some(path) = settings.authority() {
            add_authority(path, &mut roots)?;
        }
        let mut tls = tls::config(roots);
        tls.alpn_protocols.clear();
        Ok(Self {
            settings,
            from,
            site,
            tls: Arc::new(tls),
            time_max: SEND_TIME_MAX,
        })
    }

    /// The same with another limit than [`SEND_TIME_MAX`].
    #[must_use]
    pub fn with_time_max(mut self, time_max: Duration) -> Self {
        self.time_max = time_max;
        self
    }

    /// Hands one mail to the server.
    ///
    /// The whole of it is under one time limit of ours: the library's own limit covers the
    /// connection alone, so a server that stays silent would hold the caller for ever.
    pub async fn send(&self, mail: &Mail) -> Result<(), MailError> {
        let sendable = message::build(mail, &self.from, &self.site)?;
        let handed_over = timeout(self.time_max, async {
            let mut connection = self.connect().await?;
            let sent = connection.send(&sendable.envelope, &sendable.bytes).await;
            sent.map_err(|error| refusal(&error))?;
            Ok(connection)
        });
        let mut connection = handed_over.await.map_err(|_| {
            let seconds = self.time_max.as_secs_f32();
            MailError::Passing(format!(
                "the mail server took longer than {seconds} s for a mail"
            ))
        })??;
        // The mail is sent, whatever comes now.
        let _ = timeout(QUIT_TIME_MAX, connection.quit()).await;
        Ok(())
    }

    /// A connection that is encrypted and logged in, as the settings say.
    async fn connect(&self) -> Result<AsyncSmtpConnection, MailError> {
        let mut connection = connection::open(&self.settings, &self.site, &self.tls).await?;
        if let Some(login) = &self.settings.login {
            let password = login.password.expose_secret().to_owned();
            let credentials = Credentials::new(login.user.clone(), password);
            let logging_in = connection.auth(DEFAULT_MECHANISMS, &credentials);
            logging_in.await.map_err(|e| trouble("logging in", &e))?;
        }
        Ok(connection)
    }
}

fn add_authority(path: &Path, roots: &mut RootCertStore) -> Result<(), MailerError> {
    let pem = std::fs::read(path).map_err(MailerError::AuthorityUnreadable)?;
    let before = roots.len();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|_| MailerError::AuthorityInvalid)?;
        let added = roots.add(certificate);
        added.map_err(|_| MailerError::AuthorityInvalid)?;
    }
    if roots.len() == before {
        return Err(MailerError::AuthorityInvalid);
    }
    Ok(())
}

type SmtpError = lettre::transport::smtp::Error;

/// What an error before the mail itself means: nothing about the mail.
fn trouble(doing: &str, error: &SmtpError) -> MailError {
    MailError::Passing(format!("{doing} failed: {}", words(error)))
}

/// What an error while the mail is handed over means.
fn refusal(error: &SmtpError) -> MailError {
    let said = format!("the mail was not taken: {}", words(error));
    let status = error.status().map(|code| code.to_string());
    // RFC 4954 §6: a login is required, too weak, or needs encryption.
    let of_login = matches!(status.as_deref(), Some("530" | "534" | "535" | "538"));
    if error.is_permanent() && !of_login {
        MailError::Permanent(said)
    } else {
        MailError::Passing(said)
    }
}

/// What happened, without the words of the server: its code, the system's words for an I/O error, or
/// the reason why its certificate was refused.
fn words(error: &SmtpError) -> String {
    if let Some(status) = error.status() {
        return match enhanced_code(error) {
            Some(detail) => format!("the mail server answered {status} {detail}"),
            None => format!("the mail server answered {status}"),
        };
    }
    if let Some(io) = find::<io::Error>(error) {
        return words_of_io(io);
    }
    if error.is_client() {
        return "the mail server lacks an extension that is needed".to_owned();
    }
    "the mail server broke off, or did not speak SMTP".to_owned()
}

fn words_of_io(error: &io::Error) -> String {
    match find::<rustls::Error>(error) {
        Some(tls) => format!("TLS: {tls}"),
        None => error.to_string(),
    }
}

/// The enhanced status code at the start of the server's words (RFC 3463), such as `5.1.1`.
fn enhanced_code(error: &SmtpError) -> Option<String> {
    let said = std::error::Error::source(error)?.to_string();
    let code = said.split_whitespace().next()?;
    let numbers: Vec<&str> = code.split('.').collect();
    let is_number = |n: &&str| (1..=3).contains(&n.len()) && n.bytes().all(|b| b.is_ascii_digit());
    (numbers.len() == 3 && numbers.iter().all(is_number)).then(|| code.to_owned())
}

#[cfg(test)]
mod tests;

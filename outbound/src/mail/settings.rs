//! Where mails are handed over, and whom they come from, as the operator writes it.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use lettre::{Address, message::Mailbox};
use percent_encoding::percent_decode_str;
use secrecy::SecretString;
use url::{Host, Url};

use super::text::{address, one_line};

/// The port for mails with STARTTLS (RFC 6409).
const STARTTLS_PORT: u16 = 587;
/// The port for mails with TLS from the first byte (RFC 8314).
const TLS_PORT: u16 = 465;
/// How many characters the name of a sender has at most.
const NAME_CHARS_MAX: usize = 64;

/// How a connection to the mail server is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsMode {
    /// TLS from the first byte: `smtps://`.
    Implicit,
    /// The server must offer STARTTLS: `smtp://`.
    StartTls,
    /// None: `smtp://` with `?tls=none`, for a server on this machine.
    Off,
}

/// The user and password for the mail server.
#[derive(Clone)]
pub(super) struct Login {
    pub user: String,
    pub password: SecretString,
}

/// The mail server and how to talk to it, parsed from a URL such as
/// `smtps://user:password@mail.example.com`.
///
/// - `smtp://` requires STARTTLS (port 587 unless given), `smtps://` is TLS from the first byte
///   (port 465 unless given). A mail is never sent in clear because a server lacks STARTTLS.
/// - `?tls=none` is for a mail server on this machine, by a loopback address or `localhost`.
/// - `?ca=/path.pem` trusts the certificates in that file, beside those of the machine.
/// - User and password are percent-encoded, and come together or not at all.
#[derive(Clone)]
pub struct SmtpSettings {
    pub(super) host: Host,
    pub(super) port: u16,
    pub(super) tls: TlsMode,
    pub(super) login: Option<Login>,
    pub(super) authority: Option<PathBuf>,
}

/// The reason why a URL of a mail server is refused.
///
/// No text contains a part of the URL: a password that is not encoded can end up in any part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SmtpUrlError {
    /// It can't be parsed.
    #[error(
        "this is not a URL like smtp://user:password@host:587 (special characters of the user and the password are percent-encoded: / is %2F, # is %23, ? is %3F)"
    )]
    NotAUrl,
    /// The scheme is neither of the two.
    #[error("the scheme must be smtp (STARTTLS) or smtps (TLS from the first byte)")]
    Scheme,
    /// The host is missing or malformed.
    #[error("the host must be a domain name or an IP address")]
    Host,
    /// The port is zero.
    #[error("the port must be between 1 and 65535")]
    Port,
    /// It has a path or a fragment.
    #[error(
        "nothing but ?tls=none and ?ca=/path.pem may follow the host and port (in a password, / is %2F, # is %23, ? is %3F)"
    )]
    Rest,
    /// A parameter is unknown.
    #[error("the only parameters are tls and ca")]
    UnknownParameter,
    /// A parameter comes twice.
    #[error("a parameter comes twice")]
    RepeatedParameter,
    /// `tls` has another value than `none`.
    #[error("the only value of tls is none; without it, TLS is required")]
    TlsValue,
    /// `tls=none` contradicts the scheme.
    #[error("tls=none contradicts the scheme smtps")]
    TlsOffWithSmtps,
    /// `tls=none` for a server elsewhere.
    #[error("tls=none is allowed for localhost and loopback addresses only")]
    TlsOffElsewhere,
    /// `ca` is not an absolute path.
    #[error("ca must be the absolute path of a PEM file")]
    AuthorityPath,
    /// `ca` without TLS.
    #[error("ca has no effect with tls=none")]
    AuthorityWithoutTls,
    /// The user or the password is missing.
    #[error("a user and a password come together or not at all")]
    HalfALogin,
    /// The user or the password can't be decoded.
    #[error(
        "the user or the password is not percent-encoded UTF-8, or contains a control character"
    )]
    Login,
}

impl SmtpSettings {
    /// The host: a domain name in ASCII, or an IP address without brackets.
    #[must_use]
    pub fn host(&self) -> String {
        match &self.host {
            Host::Domain(name) => name.clone(),
            Host::Ipv4(address) => address.to_string(),
            Host::Ipv6(address) => address.to_string(),
        }
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// How the connection is protected.
    #[must_use]
    pub fn tls(&self) -> TlsMode {
        self.tls
    }

    /// The file with further certificate authorities.
    #[must_use]
    pub fn authority(&self) -> Option<&Path> {
        self.authority.as_deref()
    }
}

impl fmt::Debug for SmtpSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SmtpSettings")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("tls", &self.tls)
            .field("login", &self.login.as_ref().map(|_| "[masked]"))
            .field("authority", &self.authority)
            .finish()
    }
}

impl FromStr for SmtpSettings {
    type Err = SmtpUrlError;

    fn from_str(text: &str) -> Result<Self, SmtpUrlError> {
        let url = Url::parse(text).map_err(|_| SmtpUrlError::NotAUrl)?;
        let implicit = match url.scheme() {
            "smtp" => false,
            "smtps" => true,
            _ => return Err(SmtpUrlError::Scheme),
        };
        if !matches!(url.path(), "" | "/") || url.fragment().is_some() {
            return Err(SmtpUrlError::Rest);
        }
        // The library treats the host of a scheme that it does not know as any text.
        let host = Host::parse(url.host_str().unwrap_or_default());
        let host = host.map_err(|_| SmtpUrlError::Host)?;
        let parameters = Parameters::of(&url)?;
        let tls = match (implicit, parameters.tls_off) {
            (false, false) => TlsMode::StartTls,
            (true, false) => TlsMode::Implicit,
            (true, true) => return Err(SmtpUrlError::TlsOffWithSmtps),
            (false, true) if !is_loopback(&host) => return Err(SmtpUrlError::TlsOffElsewhere),
            (false, true) => TlsMode::Off,
        };
        if tls == TlsMode::Off && parameters.authority.is_some() {
            return Err(SmtpUrlError::AuthorityWithoutTls);
        }
        let default_port = if implicit { TLS_PORT } else { STARTTLS_PORT };
        let port = url.port().unwrap_or(default_port);
        if port == 0 {
            return Err(SmtpUrlError::Port);
        }
        Ok(Self {
            host,
            port,
            tls,
            login: login(&url)?,
            authority: parameters.authority,
        })
    }
}

#[derive(Default)]
struct Parameters {
    tls_off: bool,
    authority: Option<PathBuf>,
}

impl Parameters {
    fn of(url: &Url) -> Result<Self, SmtpUrlError> {
        let mut parameters = Self::default();
        for (name, value) in url.query_pairs() {
            let repeated = match &*name {
                "tls" if value == "none" => std::mem::replace(&mut parameters.tls_off, true),
                "tls" => return Err(SmtpUrlError::TlsValue),
                "ca" if value.starts_with('/') => parameters
                    .authority
                    .replace(PathBuf::from(&*value))
                    .is_some(),
                "ca" => return Err(SmtpUrlError::AuthorityPath),
                _ => return Err(SmtpUrlError::UnknownParameter),
            };
            if repeated {
                return Err(SmtpUrlError::RepeatedParameter);
            }
        }
        Ok(parameters)
    }
}

fn is_loopback(host: &Host) -> bool {
    match host {
        Host::Domain(name) => name == "localhost",
        Host::Ipv4(address) => address.is_loopback(),
        Host::Ipv6(address) => address.is_loopback(),
    }
}

fn login(url: &Url) -> Result<Option<Login>, SmtpUrlError> {
    match (url.username(), url.password().unwrap_or_default()) {
        ("", "") => Ok(None),
        ("", _) | (_, "") => Err(SmtpUrlError::HalfALogin),
        (user, password) => Ok(Some(Login {
            user: decoded(user)?,
            password: SecretString::from(decoded(password)?),
        })),
    }
}

/// A control character would end a field of `AUTH PLAIN`, or the command.
fn decoded(text: &str) -> Result<String, SmtpUrlError> {
    let text = percent_decode_str(text).decode_utf8();
    let text = text.map_err(|_| SmtpUrlError::Login)?;
    if text.contains(char::is_control) {
        return Err(SmtpUrlError::Login);
    }
    Ok(text.into_owned())
}

/// Whom the mails come from: an address, or `Name <address>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MailFrom {
    name: Option<String>,
    pub(super) address: Address,
}

/// The text is no sender of mails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this must be an address like mail@example.com, or a name and an address like Example <mail@example.com>"
)]
pub struct MailFromError;

impl MailFrom {
    /// A sender. Control characters and the like are taken from the name, which is cut to 64
    /// characters; an empty one is none.
    pub fn new(address_text: &str, name: Option<&str>) -> Result<Self, MailFromError> {
        let name = name
            .map(|name| one_line(name, NAME_CHARS_MAX))
            .filter(|name| !name.is_empty());
        let address = address(address_text).ok_or(MailFromError)?;
        Ok(Self { name, address })
    }

    pub(super) fn mailbox(&self) -> Mailbox {
        Mailbox::new(self.name.clone(), self.address.clone())
    }
}

impl FromStr for MailFrom {
    type Err = MailFromError;

    fn from_str(text: &str) -> Result<Self, MailFromError> {
        let text = text.trim();
        let Some(named) = text.strip_suffix('>') else {
            return Self::new(text, None);
        };
        let (name, address) = named.rsplit_once('<').ok_or(MailFromError)?;
        let name = name.trim();
        let quoted = name.strip_prefix('"').and_then(|n| n.strip_suffix('"'));
        Self::new(address, Some(quoted.unwrap_or(name)))
    }
}

#[cfg(test)]
mod tests;

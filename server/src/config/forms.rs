//! The forms of settings: how a text becomes a value, and the text that says which values are
//! right.

use std::{
    marker::PhantomData,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    str::FromStr as _,
};

use croner::parser::{CronParser, Seconds};
use domain::{
    retry::Schedule,
    seal::MasterKeys,
    token::{MAX_BEARER_LEN, MIN_FOREIGN_LEN},
};
use identity::Registration;
use ipnet::IpNet;
use outbound::mail::{MailFrom, SmtpSettings};
use secrecy::SecretString;
use tracing_subscriber::EnvFilter;
use url::{Host, Url};

use crate::text::shortened;

/// The form of one kind of setting.
pub trait Form {
    /// The type of the value.
    type Value;
    /// The values that the form takes, to follow the words "it takes".
    fn takes() -> String;
    /// Reads a text.
    ///
    /// # Errors
    /// What is wrong with the text, as a clause. The form of a secret must not repeat the text.
    fn read(text: &str) -> Result<Self::Value, String>;
}

fn not_understood(text: &str) -> String {
    if text.trim().is_empty() {
        "it is empty".to_owned()
    } else {
        format!("`{}` is not understood", shortened(text))
    }
}

/// Another form, or an empty text.
pub struct Maybe<F>(PhantomData<F>);

impl<F: Form> Form for Maybe<F> {
    type Value = Option<F::Value>;
    fn takes() -> String {
        format!("{}, or nothing", F::takes())
    }
    fn read(text: &str) -> Result<Self::Value, String> {
        if text.trim().is_empty() {
            Ok(None)
        } else {
            F::read(text).map(Some)
        }
    }
}

/// An address to listen on.
pub struct Address;

impl Form for Address {
    type Value = SocketAddr;
    fn takes() -> String {
        "an IP address and a port, such as 127.0.0.1:8080 or [::1]:8080".into()
    }
    fn read(text: &str) -> Result<SocketAddr, String> {
        text.trim().parse().map_err(|_| not_understood(text))
    }
}

/// A whole number from `MIN` to `MAX`.
pub struct Whole<const MIN: u32, const MAX: u32>;

impl<const MIN: u32, const MAX: u32> Form for Whole<MIN, MAX> {
    type Value = u32;
    fn takes() -> String {
        format!("a whole number from {MIN} to {MAX}")
    }
    fn read(text: &str) -> Result<u32, String> {
        let number: u64 = text.trim().parse().map_err(|_| not_understood(text))?;
        u32::try_from(number)
            .ok()
            .filter(|number| (MIN..=MAX).contains(number))
            .ok_or_else(|| format!("{number} is out of range"))
    }
}

/// True or false.
pub struct Switch;

impl Form for Switch {
    type Value = bool;
    fn takes() -> String {
        "true or false".into()
    }
    fn read(text: &str) -> Result<bool, String> {
        text.trim().parse().map_err(|_| not_understood(text))
    }
}

/// A path.
pub struct FilePath;

impl Form for FilePath {
    type Value = PathBuf;
    fn takes() -> String {
        "a path".into()
    }
    fn read(text: &str) -> Result<PathBuf, String> {
        if text.is_empty() || text.contains('\0') {
            return Err(not_understood(text));
        }
        Ok(PathBuf::from(text))
    }
}

/// The database engine, and where the database is.
#[derive(Clone, Debug)]
pub enum DatabaseUrl {
    /// SQLite, in this file.
    Sqlite(PathBuf),
    /// PostgreSQL. The URL may contain a password.
    Postgres(SecretString),
}

/// The form of [`DatabaseUrl`].
pub struct DatabaseLocation;

impl Form for DatabaseLocation {
    type Value = DatabaseUrl;
    fn takes() -> String {
        "sqlite://PATH (plain, without % or ?) or postgres://USER:PASSWORD@HOST:PORT/DATABASE"
            .into()
    }
    fn read(text: &str) -> Result<DatabaseUrl, String> {
        let text = text.trim();
        if let Some(path) = text.strip_prefix("sqlite://") {
            if path.is_empty() || path.contains(['%', '?', '#', '\0']) || path.contains(":memory:")
            {
                return Err("its path can't be used".into());
            }
            return Ok(DatabaseUrl::Sqlite(PathBuf::from(path)));
        }
        if !(text.starts_with("postgres://") || text.starts_with("postgresql://")) {
            return Err("it names neither SQLite nor PostgreSQL".into());
        }
        // The directory of a socket may be in a parameter instead of a host.
        let url = Url::parse(text).map_err(|error| format!("it is no URL ({error})"))?;
        let host = url.host_str().is_some_and(|host| !host.is_empty());
        if !host && !url.query_pairs().any(|(name, _)| name == "host") {
            return Err("it names no host".into());
        }
        Ok(DatabaseUrl::Postgres(SecretString::from(text)))
    }
}

/// Networks in CIDR form. A single address counts as a network.
pub struct Networks;

impl Form for Networks {
    type Value = Vec<IpNet>;
    fn takes() -> String {
        "networks separated by commas, such as 127.0.0.0/8,fd00::/8, or nothing".into()
    }
    fn read(text: &str) -> Result<Vec<IpNet>, String> {
        let parts = text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty());
        parts
            .map(|part| {
                let lone = |_| part.parse::<IpAddr>().map(IpNet::from);
                part.parse::<IpNet>()
                    .or_else(lone)
                    .map_err(|_| not_understood(part))
            })
            .collect()
    }
}

/// The waits between tries of a delivery.
pub struct Retries;

impl Form for Retries {
    type Value = Schedule;
    fn takes() -> String {
        "at most 32 waits separated by commas, each a whole number with ms, s, m, h or d and at most 7d; nothing means no second try".into()
    }
    fn read(text: &str) -> Result<Schedule, String> {
        Schedule::parse(text).map_err(|error| error.to_string())
    }
}

/// Accepts a token that fits into an `Authorization` header and is long enough.
fn foreign_token(text: &str) -> Result<SecretString, String> {
    if !text
        .bytes()
        .all(|byte| byte.is_ascii_graphic() && byte != b',')
    {
        return Err("it has a character that can't stand in a header".into());
    }
    if !(MIN_FOREIGN_LEN..=MAX_BEARER_LEN).contains(&text.len()) {
        return Err(format!("it has {} characters", text.len()));
    }
    Ok(SecretString::from(text))
}

/// The operator's tokens: one, or two while they rotate.
pub struct BootstrapTokens;

impl Form for BootstrapTokens {
    type Value = Vec<SecretString>;
    fn takes() -> String {
        format!(
            "a token of {MIN_FOREIGN_LEN} to {MAX_BEARER_LEN} visible ASCII characters, or two different ones separated by a comma"
        )
    }
    fn read(text: &str) -> Result<Vec<SecretString>, String> {
        let tokens: Vec<&str> = text.split(',').map(str::trim).collect();
        match tokens[..] {
            [one] => Ok(vec![foreign_token(one)?]),
            [one, two] if one != two => Ok(vec![foreign_token(one)?, foreign_token(two)?]),
            [_, _] => Err("both tokens are the same".into()),
            _ => Err("there are more than two tokens".into()),
        }
    }
}

/// A token that another system created.
pub struct LegacyToken;

impl Form for LegacyToken {
    type Value = SecretString;
    fn takes() -> String {
        format!(
            "a token of {MIN_FOREIGN_LEN} to {MAX_BEARER_LEN} visible ASCII characters without a comma, which does not begin with stm_"
        )
    }
    fn read(text: &str) -> Result<SecretString, String> {
        // A token with this prefix must have a checksum, or it is refused without a look-up.
        if text.trim().starts_with("stm_") {
            return Err("it begins with stm_".into());
        }
        foreign_token(text.trim())
    }
}

/// Master keys.
pub struct Keys;

impl Form for Keys {
    type Value = MasterKeys;
    fn takes() -> String {
        "keys as id:base64 of 32 bytes, separated by commas; all of them decrypt, and `keys rewrap` encrypts everything with the first"
            .into()
    }
    fn read(text: &str) -> Result<MasterKeys, String> {
        MasterKeys::parse(text).map_err(|error| error.to_string())
    }
}

/// The origin of the server for browsers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicUrl {
    /// Scheme, host and port, as browsers write them, without a slash at the end.
    pub origin: String,
    /// The host alone; an IPv6 address in brackets.
    pub host: String,
    /// Whether only this machine reaches the host.
    pub is_loopback: bool,
    /// Whether a slash at the end was removed.
    pub was_trimmed: bool,
}

impl PublicUrl {
    /// The origin of a server that listens on an address of this machine alone.
    #[must_use]
    pub fn of_loopback(address: SocketAddr) -> Option<Self> {
        Origin::read(&format!("http://{address}")).ok()
    }
}

/// The form of [`PublicUrl`].
pub struct Origin;

impl Form for Origin {
    type Value = PublicUrl;
    fn takes() -> String {
        "https:// and a host, or http:// and a loopback host, with a port or without, and nothing behind"
            .into()
    }
    fn read(text: &str) -> Result<PublicUrl, String> {
        let text = text.trim();
        let url = Url::parse(text).map_err(|error| format!("it is no URL ({error})"))?;
        // The parser forgives what a person did not mean, such as a missing slash.
        if !text
            .to_ascii_lowercase()
            .starts_with(&format!("{}://", url.scheme()))
        {
            return Err("no :// follows the scheme".into());
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("it has a user or a password".into());
        }
        if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
            return Err("it has a path, a query or a fragment".into());
        }
        let (host, is_loopback) = match url.host() {
            Some(Host::Domain(name)) => (name.to_owned(), name == "localhost"),
            Some(Host::Ipv4(address)) => (address.to_string(), address.is_loopback()),
            Some(Host::Ipv6(address)) => (format!("[{address}]"), address.is_loopback()),
            None => return Err("it names no host".into()),
        };
        match url.scheme() {
            "https" => {}
            "http" if is_loopback => {}
            "http" => return Err("without https, others can read what people send".into()),
            _ => return Err("it is neither https nor http".into()),
        }
        Ok(PublicUrl {
            origin: url.origin().ascii_serialization(),
            host,
            is_loopback,
            was_trimmed: text.ends_with('/'),
        })
    }
}

/// Who may become a user.
pub struct OpenOrClosed;

impl Form for OpenOrClosed {
    type Value = Registration;
    fn takes() -> String {
        "closed or open".into()
    }
    fn read(text: &str) -> Result<Registration, String> {
        match text.trim() {
            "closed" => Ok(Registration::Closed),
            "open" => Ok(Registration::Open),
            _ => Err(not_understood(text)),
        }
    }
}

/// On, which is true, or off.
pub struct OffOrOn;

impl Form for OffOrOn {
    type Value = bool;
    fn takes() -> String {
        "off or on".into()
    }
    fn read(text: &str) -> Result<bool, String> {
        match text.trim() {
            "off" => Ok(false),
            "on" => Ok(true),
            _ => Err(not_understood(text)),
        }
    }
}

/// The shortest session key, characters.
const SESSION_KEY_CHARS_MIN: usize = 32;

/// A key for the hashes of sessions.
pub struct SessionKey;

impl Form for SessionKey {
    type Value = SecretString;
    fn takes() -> String {
        format!(
            "a random text of at least {SESSION_KEY_CHARS_MIN} characters, such as `openssl rand -hex 32` prints"
        )
    }
    fn read(text: &str) -> Result<SecretString, String> {
        let text = text.trim();
        let count = text.chars().count();
        if count < SESSION_KEY_CHARS_MIN {
            return Err(format!("it has {count} characters"));
        }
        Ok(SecretString::from(text))
    }
}

/// The mail server. The URL contains a password.
pub struct SmtpServer;

impl Form for SmtpServer {
    type Value = SmtpSettings;
    fn takes() -> String {
        "smtp://USER:PASSWORD@HOST:PORT (STARTTLS), or smtps:// (TLS from the first byte), with the user and the password percent-encoded; `?ca=/path.pem` trusts further certificates, and `?tls=none` is for a mail server on this machine"
            .into()
    }
    fn read(text: &str) -> Result<SmtpSettings, String> {
        // No error of this parser contains a part of the text.
        text.trim()
            .parse()
            .map_err(|error: outbound::mail::SmtpUrlError| error.to_string())
    }
}

/// The sender of mails.
pub struct Sender;

impl Form for Sender {
    type Value = MailFrom;
    fn takes() -> String {
        "an address such as mail@example.com, or a name and an address such as Example <mail@example.com>"
            .into()
    }
    fn read(text: &str) -> Result<MailFrom, String> {
        text.trim()
            .parse()
            .map_err(|_: outbound::mail::MailFromError| not_understood(text))
    }
}

/// SQLite's `synchronous` setting; true for `full`.
pub struct SynchronousFull;

impl Form for SynchronousFull {
    type Value = bool;
    fn takes() -> String {
        "full or normal".into()
    }
    fn read(text: &str) -> Result<bool, String> {
        match text.trim() {
            "full" => Ok(true),
            "normal" => Ok(false),
            _ => Err(not_understood(text)),
        }
    }
}

/// When a job runs, in UTC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CronUtc(pub String);

/// The form of [`CronUtc`].
pub struct Cron;

impl Form for Cron {
    type Value = CronUtc;
    fn takes() -> String {
        "six cron fields in UTC: second minute hour day month weekday".into()
    }
    fn read(text: &str) -> Result<CronUtc, String> {
        // The same parser as the scheduler's, so that the scheduler accepts what passes here.
        let parser = CronParser::builder()
            .seconds(Seconds::Required)
            .dom_and_dow(true)
            .build();
        parser.parse(text).map_err(|error| {
            format!(
                "`{}` is not understood ({})",
                shortened(text),
                error.to_string().trim_end_matches('.')
            )
        })?;
        Ok(CronUtc(text.trim().to_owned()))
    }
}

/// A filter of log lines.
pub struct LogFilter;

impl Form for LogFilter {
    type Value = String;
    fn takes() -> String {
        "a level (error, warn, info, debug, trace, off), or target=level pairs separated by commas"
            .into()
    }
    fn read(text: &str) -> Result<String, String> {
        if text.trim().is_empty() {
            return Err(not_understood(text));
        }
        EnvFilter::from_str(text).map_err(|_| not_understood(text))?;
        Ok(text.trim().to_owned())
    }
}

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The form of [`LogFormat`].
pub struct LogLines;

impl Form for LogLines {
    type Value = LogFormat;
    fn takes() -> String {
        "text or json".into()
    }
    fn read(text: &str) -> Result<LogFormat, String> {
        match text.trim() {
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            _ => Err(not_understood(text)),
        }
    }
}

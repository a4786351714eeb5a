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
use ipnet::IpNet;
use secrecy::SecretString;
use tracing_subscriber::EnvFilter;
use url::Url;

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

//! The configuration: one table of settings, and everything that follows from it.
//!
//! The table in `config/table.rs` lists the settings. The typed [`Config`], its parsing from the
//! environment and from a TOML file, `docs/configuration.md`, `.env.example` and `serve
//! --print-config` all follow from that list, so none of them can lack a setting. An error never
//! contains the text of a secret.

mod docs;
mod forms;
mod table;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

pub use docs::{env_example, markdown, print};
pub use forms::{CronUtc, DatabaseUrl, LogFormat, PublicUrl};
pub use table::{Config, SETTINGS};

use crate::text;

/// The prefix of all names of settings.
pub const PREFIX: &str = "STATIONMASTER_";
/// The prefix of variables for the test scripts, which share their environment with the servers
/// that they start.
const TEST_PREFIX: &str = "STATIONMASTER_TEST_";
/// The variable that `stationmaster listen` reads. It is no setting, but often in the same
/// environment.
const TOKEN: &str = "STATIONMASTER_TOKEN";
/// The longest configuration file that is read, bytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Who may see a setting's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Secrecy {
    /// The operators of the server.
    Open,
    /// Nobody: shown as asterisks.
    Secret,
    /// The operators, except for the password in the URL.
    Url,
}

/// One row of the table of settings.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// The name in the environment and in the configuration file.
    pub name: &'static str,
    /// The heading of its section in the documentation.
    pub section: &'static str,
    /// The text that is read if none is given.
    pub default: &'static str,
    /// What the documentation says in place of an empty default.
    pub default_words: &'static str,
    /// Who may see the value.
    pub secrecy: Secrecy,
    /// What the setting does, in sentences.
    pub meaning: &'static str,
    /// The values that it takes, to follow the words "it takes".
    pub takes: fn() -> String,
}

/// The source of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SettingSource {
    /// The environment.
    Environment,
    /// The configuration file.
    File,
}

/// A text that was given for a setting.
struct Given {
    text: Zeroizing<String>,
    source: SettingSource,
}

/// The texts that were given, by name.
#[derive(Default)]
pub struct Values(BTreeMap<&'static str, Given>);

impl Values {
    /// The text for a setting: the given one, else the default.
    fn text<'a>(&'a self, setting: &'a Setting) -> &'a str {
        self.0
            .get(setting.name)
            .map_or(setting.default, |given| &given.text)
    }

    /// Where a setting's text came from; `None` when it is the default.
    #[must_use]
    pub fn source(&self, name: &str) -> Option<SettingSource> {
        self.0.get(name).map(|given| given.source)
    }

    /// Takes the settings out of an environment. Variables of other programs are ignored. An
    /// unknown name with the prefix of settings is an error.
    fn take_environment(
        &mut self,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
        faults: &mut Vec<SettingError>,
    ) {
        for (name, value) in variables {
            let name = name.to_string_lossy();
            if !name.starts_with(PREFIX) || name.starts_with(TEST_PREFIX) || name == TOKEN {
                continue;
            }
            let Some(setting) = find(&name) else {
                faults.push(SettingError::unknown(&name, "the environment"));
                continue;
            };
            match value.into_string() {
                Ok(text) => {
                    let text = Zeroizing::new(text);
                    self.0.insert(
                        setting.name,
                        Given {
                            text,
                            source: SettingSource::Environment,
                        },
                    );
                }
                Err(_) => faults.push(SettingError::new(setting.name, "its value is not UTF-8")),
            }
        }
    }

    fn take_file(&mut self, path: &Path, faults: &mut Vec<SettingError>) {
        let shown = path.display();
        let text = match read_bounded(path) {
            Ok(text) => text,
            Err(reason) => {
                faults.push(SettingError::new(
                    "--config",
                    format!("{shown} can't be read: {reason}"),
                ));
                return;
            }
        };
        let table: toml::Table = match text.parse() {
            Ok(table) => table,
            Err(error) => {
                // The full message of the parser quotes the line, which may contain a secret.
                let line = error
                    .span()
                    .map_or(1, |at| 1 + text[..at.start].matches('\n').count());
                let what = error.message();
                faults.push(SettingError::new(
                    "--config",
                    format!("{shown}, line {line}: {what}"),
                ));
                return;
            }
        };
        for (name, value) in &table {
            let Some(setting) = find(name) else {
                faults.push(SettingError::unknown(name, &format!("{shown}")));
                continue;
            };
            match plain_text(value) {
                Some(text) => {
                    let text = Zeroizing::new(text);
                    self.0.insert(setting.name, Given { text, source: SettingSource::File });
                }
                None => faults.push(SettingError::new(
                    setting.name,
                    format!("in {shown} it is neither a string, a whole number, true or false, nor a list of strings"),
                )),
            }
        }
    }
}

fn find(name: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.name == name)
}

fn read_bounded(path: &Path) -> Result<Zeroizing<String>, String> {
    let size = std::fs::metadata(path).map_err(|e| e.to_string())?.len();
    if size > FILE_BYTES_MAX {
        return Err(format!("it is longer than {FILE_BYTES_MAX} bytes"));
    }
    std::fs::read_to_string(path)
        .map(Zeroizing::new)
        .map_err(|e| e.to_string())
}

/// The text of a TOML value, as it would be in the environment.
fn plain_text(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Boolean(flag) => Some(flag.to_string()),
        toml::Value::Array(items) => {
            let items: Option<Vec<&str>> = items.iter().map(toml::Value::as_str).collect();
            Some(items?.join(","))
        }
        _ => None,
    }
}

/// One error in the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingError {
    /// The wrong setting or option.
    pub name: String,
    /// What is wrong, and what would be right. Contains no secret.
    pub what: String,
}

impl SettingError {
    fn new(name: impl Into<String>, what: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            what: what.into(),
        }
    }

    fn unknown(name: &str, place: &str) -> Self {
        let known = SETTINGS.iter().map(|setting| setting.name);
        let hint = text::nearest(name, known).map_or_else(
            || "`stationmaster config --docs` lists all".to_owned(),
            |nearest| format!("did you mean {nearest}?"),
        );
        // A name from a file may be any text, so it is shortened to keep the message on one line.
        let name = text::shortened(name);
        Self::new(
            name,
            format!("there is no such setting (found in {place}); {hint}"),
        )
    }
}

impl fmt::Display for SettingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.what)
    }
}

/// All errors in the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingErrors(pub Vec<SettingError>);

impl fmt::Display for SettingErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => write!(f, "the configuration has a fault:")?,
            count => write!(f, "the configuration has {count} faults:")?,
        }
        for fault in &self.0 {
            write!(f, "\n  {fault}")?;
        }
        Ok(())
    }
}

impl std::error::Error for SettingErrors {}

/// A checked configuration, and the texts from which it was read.
pub struct Loaded {
    /// The typed values.
    pub config: Config,
    /// The texts, to be shown.
    pub values: Values,
}

/// Reads the configuration. The file replaces defaults, and the environment replaces both.
///
/// # Errors
/// All errors: unknown names, values that do not parse, settings that contradict each other.
pub fn load(
    variables: impl IntoIterator<Item = (OsString, OsString)>,
    file: Option<&Path>,
) -> Result<Loaded, SettingErrors> {
    let mut faults = Vec::new();
    let mut values = Values::default();
    if let Some(path) = file {
        values.take_file(path, &mut faults);
    }
    values.take_environment(variables, &mut faults);
    let config = table::build(&values, &mut faults);
    if let Some(config) = &config {
        config.contradictions(&mut faults);
    }
    match config {
        Some(config) if faults.is_empty() => Ok(Loaded { config, values }),
        _ => Err(SettingErrors(faults)),
    }
}

impl Config {
    /// Checks the rules between settings. Only combinations that can never work are errors.
    fn contradictions(&self, faults: &mut Vec<SettingError>) {
        if self.master_keys.is_some() && self.master_keys_file.is_some() {
            faults.push(SettingError::new(
                "STATIONMASTER_MASTER_KEYS_FILE",
                "STATIONMASTER_MASTER_KEYS is given too; give one of the two",
            ));
        }
        if self.smtp_url.is_some() && self.mail_from.is_none() {
            faults.push(SettingError::new(
                "STATIONMASTER_MAIL_FROM",
                "it is missing, and STATIONMASTER_SMTP_URL is given: mails must say whom they come from",
            ));
        }
        if let (Some(legacy), Some(bootstrap)) = (&self.legacy_token, &self.bootstrap_tokens) {
            let legacy = domain::token::TokenHash::of_secret(legacy);
            let same = |token| domain::token::TokenHash::of_secret(token).matches(&legacy);
            if bootstrap.iter().any(same) {
                faults.push(SettingError::new(
                    "STATIONMASTER_LEGACY_TOKEN",
                    "it is also a bootstrap token; a publisher must not hold the operator's token",
                ));
            }
        }
    }

    /// The path of the SQLite file: the configured one (a relative path begins in the data
    /// directory), or `stationmaster.db` there. `None` with PostgreSQL.
    #[must_use]
    pub fn sqlite_path(&self) -> Option<PathBuf> {
        match &self.database_url {
            None => Some(self.data_dir.join("stationmaster.db")),
            Some(DatabaseUrl::Sqlite(path)) => Some(self.data_dir.join(path)),
            Some(DatabaseUrl::Postgres(_)) => None,
        }
    }
}

/// Reads bootstrap tokens from the text of a file, by the rules of the setting.
///
/// # Errors
/// What is wrong, and what would be right. Contains nothing of the text.
pub(crate) fn parse_bootstrap_tokens(text: &str) -> Result<Vec<secrecy::SecretString>, String> {
    use forms::{BootstrapTokens, Form as _};
    BootstrapTokens::read(text.trim())
        .map_err(|wrong| format!("{wrong}; it takes {}", BootstrapTokens::takes()))
}

#[cfg(test)]
mod tests;

//! `stationmaster doctor`: checks what a start needs, changes nothing, and prints one line for each
//! check. A check that depends on a failed one is left out.

use std::{
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use persistence::OWN_CONNECTIONS;
use secrecy::ExposeSecret as _;

use crate::{
    config::{self, Config},
    data_dir::{Credentials, Database, Survey},
    descriptors,
    failure::Failure,
    operate,
    text::say,
};

/// Prints the lines, and counts the failed checks.
#[derive(Default)]
struct Report {
    failed: usize,
}

impl Report {
    /// Prints the result of one check; returns its value if it passed.
    fn line<T>(&mut self, what: &str, found: Result<(T, String), String>) -> Option<T> {
        match found {
            Ok((value, words)) => {
                say(&format!("ok      {what}: {words}"));
                Some(value)
            }
            Err(words) => {
                self.failed += 1;
                say(&format!("FAILED  {what}: {words}"));
                None
            }
        }
    }
}

/// Checks the configuration, the data directory, the keys, and whether there are as many
/// connections and open files as a process needs.
///
/// # Errors
/// The number of failed checks; their results are on standard output.
pub async fn run(file: Option<&Path>) -> Result<(), Failure> {
    let mut report = Report::default();
    let loaded = config::load(std::env::vars_os(), file)
        .map(|loaded| (loaded.config, "every setting is valid".to_owned()))
        .map_err(|faults| faults.to_string());
    if let Some(config) = report.line("configuration", loaded) {
        if let Some(path) = file {
            report.line("configuration file", private(path, &config));
        }
        if let Some(survey) = report.line("data directory", survey(&config)) {
            report.line("keys", keys(&config, &survey));
            let database = &survey.database;
            if database.file.is_none() {
                report.line("connections", connections(&config, database).await);
            }
            let to_database = operate::database_connections(&config, database);
            let files = descriptors::told(config.max_connections.into(), to_database.into());
            report.line("open files", Ok(((), files)));
        }
    }
    match report.failed {
        0 => Ok(()),
        1 => Err(Failure::Failed("a check failed".into())),
        count => Err(Failure::Failed(format!("{count} checks failed"))),
    }
}

/// Checks that only its owner may read a configuration file with credentials.
fn private(path: &Path, config: &Config) -> Result<((), String), String> {
    let mode = std::fs::metadata(path)
        .map_err(|error| error.to_string())?
        .permissions()
        .mode();
    let holds = config.bootstrap_tokens.is_some()
        || config.master_keys.is_some()
        || config.legacy_token.is_some()
        || config.session_key.is_some()
        || config.smtp_url.is_some();
    if holds && mode & 0o077 != 0 {
        let path = path.display();
        return Err(format!(
            "{path} can be read by others (mode {:04o}) and credentials are configured; if this file contains them, run `chmod 600 {path}`",
            mode & 0o7777
        ));
    }
    Ok(((), format!("{} is fit to be read", path.display())))
}

fn survey(config: &Config) -> Result<(Survey, String), String> {
    let survey = Survey::of(config).map_err(|error| error.to_string())?;
    let place: PathBuf = std::path::absolute(&config.data_dir).unwrap_or(config.data_dir.clone());
    let place = place.display();
    let words = match (&survey.database.file, &survey.holder) {
        (None, _) => "not used with PostgreSQL".to_owned(),
        (_, Some(holder)) => format!("{place}, in use by {holder}"),
        _ if survey.fresh => format!("{place}, which the first start fills"),
        _ => format!("{place}, not in use now"),
    };
    Ok((survey, words))
}

/// Opens the connections that a start opens, and closes them again.
async fn connections(config: &Config, database: &Database) -> Result<((), String), String> {
    let limit = Duration::from_secs(u64::from(config.database_timeout_seconds));
    let requests = config.database_connections;
    let tried = persistence::try_connections(database.url.expose_secret(), requests, limit).await;
    let had = tried.map_err(|error| error.to_string())?;
    let words = format!(
        "a process needs {} to the database ({requests} for requests, {OWN_CONNECTIONS} of its own), and had {had}",
        operate::database_connections(config, database),
    );
    Ok(((), words))
}

fn keys(config: &Config, survey: &Survey) -> Result<((), String), String> {
    Credentials::check(config, &survey.database).map_err(|error| error.to_string())?;
    let words = if survey.fresh {
        "given, or made by the first start"
    } else {
        "master keys and bootstrap token can be read"
    };
    Ok(((), words.to_owned()))
}

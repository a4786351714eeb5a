//! Log lines, on standard error: for people on a terminal, as JSON objects everywhere else.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::config::{Config, LogFormat};

/// Log targets that only warn unless the operator's filter names them: they would log database
/// statements with their values.
const QUIET: &str = "sqlx=warn,sea_orm=warn,sea_orm_migration=warn,hyper=warn,h2=warn,rustls=warn";

/// Starts logging for this process.
///
/// # Errors
/// The filter does not parse (the configuration has checked it), or logging was already started.
pub fn start(config: &Config) -> Result<(), String> {
    // The last directive for a target counts, so the operator's filter comes last.
    let filter = EnvFilter::try_new(format!("{QUIET},{}", config.log))
        .map_err(|error| format!("STATIONMASTER_LOG: {error}"))?;
    let text_by_default = io::stderr().is_terminal();
    let json = config
        .log_format
        .map_or(!text_by_default, |format| format == LogFormat::Json);
    let registry = tracing_subscriber::registry().with(filter);
    let started = if json {
        let layer = fmt::layer()
            .json()
            .flatten_event(true)
            .with_writer(io::stderr);
        registry.with(layer).try_init()
    } else {
        let layer = fmt::layer()
            .with_ansi(text_by_default)
            .with_writer(io::stderr);
        registry.with(layer).try_init()
    };
    started.map_err(|error| format!("logging can't start: {error}"))
}

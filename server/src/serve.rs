//! `stationmaster serve`: opens everything in order, answers until a signal comes, and closes
//! everything in the opposite order.

use crate::{
    cli::Failure,
    config::Loaded,
    data_dir::{Credentials, Database},
    logging, metrics, signals,
};

/// Runs the server until the first SIGTERM or SIGINT.
///
/// # Errors
/// The first thing that is not as it must be, in words that say what to do.
pub async fn run(loaded: Loaded) -> Result<(), Failure> {
    let config = &loaded.config;
    logging::start(config).map_err(Failure::Failed)?;
    let failed = |error: &dyn std::fmt::Display| Failure::Failed(error.to_string());
    let _stop = signals::watch().map_err(|error| failed(&error))?;
    let database = Database::prepare(config).map_err(|error| failed(&error))?;
    let credentials = Credentials::prepare(config, &database).map_err(|error| failed(&error))?;
    if let Some((path, made)) = &credentials.token_file {
        let path = path.display();
        if *made {
            tracing::info!(%path, "A bootstrap token was made; it stands in this file");
        } else {
            tracing::info!(%path, "The bootstrap token stands in this file");
        }
    }
    let _metrics = metrics::bind(config, &loaded.values)
        .await
        .map_err(Failure::Failed)?;
    Err(Failure::Failed(
        "the store is not wired into this program yet".into(),
    ))
}

//! The commands that use the store without a server: `migrate` and `audit verify`.

use std::{sync::Arc, time::Duration};

use domain::{
    clock::SteadyClock,
    id::{Id as _, PublisherId},
    seal::MasterKeys,
};
use persistence::{OWN_CONNECTIONS, PageRequest, Store, StoreOptions, System, Verification};
use secrecy::ExposeSecret as _;

use crate::{
    config::{Config, Loaded},
    data_dir::{Credentials, Database},
    failure::Failure,
    text::say,
};

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::Failed(error.to_string())
}

/// The options with which the store is opened.
pub(crate) fn store_options(
    config: &Config,
    database: &Database,
    master_keys: MasterKeys,
    migrate: bool,
) -> StoreOptions {
    StoreOptions {
        database_url: database.url.expose_secret().to_owned(),
        master_keys,
        clock: Arc::new(SteadyClock::new()),
        max_connections: config.database_connections,
        sqlite_synchronous_full: config.sqlite_synchronous_full,
        write_batch_max: config.write_batch_max,
        database_timeout: Duration::from_secs(u64::from(config.database_timeout_seconds)),
        migrate,
    }
}

/// How many connections a process opens to PostgreSQL; none with SQLite, whose files are counted
/// elsewhere.
pub(crate) const fn database_connections(config: &Config, database: &Database) -> u32 {
    if database.file.is_some() {
        0
    } else {
        config.database_connections + OWN_CONNECTIONS
    }
}

/// Applies every missing migration.
///
/// # Errors
/// The database can't be reached, or a migration failed; then that one changed nothing.
pub async fn migrate(loaded: Loaded) -> Result<(), Failure> {
    let database = Database::prepare(&loaded.config).map_err(failed)?;
    let steps = persistence::migrate(database.url.expose_secret())
        .await
        .map_err(failed)?;
    say(&match steps {
        0 => "the schema is up to date".to_owned(),
        1 => "1 step was applied; the schema is up to date".to_owned(),
        many => format!("{many} steps were applied; the schema is up to date"),
    });
    Ok(())
}

/// Verifies the audit log of one publisher, or those of the operator and of all publishers.
///
/// # Errors
/// A log was changed, or can't be read.
pub async fn verify_audit(loaded: Loaded, publisher: Option<String>) -> Result<(), Failure> {
    let config = &loaded.config;
    let database = Database::prepare(config).map_err(failed)?;
    let credentials = Credentials::prepare(config, &database).map_err(failed)?;
    let store = Store::open(store_options(
        config,
        &database,
        credentials.master_keys,
        false,
    ))
    .await
    .map_err(failed)?;
    let result = verify(&store.system(), publisher).await;
    store.close().await;
    match result? {
        0 => Ok(()),
        1 => Err(failed("a log was changed")),
        many => Err(failed(format!("{many} logs were changed"))),
    }
}

async fn verify(system: &System, publisher: Option<String>) -> Result<u32, Failure> {
    if let Some(text) = publisher {
        let id = PublisherId::parse(&text)
            .ok_or_else(|| Failure::Usage(format!("{text:?} is not a publisher's identifier")))?;
        system.publishers().publisher(id).await.map_err(failed)?;
        let found = system
            .operations()
            .verify_audit(Some(id))
            .await
            .map_err(failed)?;
        return Ok(tell(&id.to_string(), &found));
    }
    let mut faults = tell(
        "operator",
        &system
            .operations()
            .verify_audit(None)
            .await
            .map_err(failed)?,
    );
    let mut after = None;
    loop {
        let page = system
            .publishers()
            .publishers(PageRequest { limit: 200, after })
            .await
            .map_err(failed)?;
        for one in &page.items {
            let whose = one.id.to_string();
            // A log that can't be read counts as a fault, and the others are still verified.
            faults += match system.operations().verify_audit(Some(one.id)).await {
                Ok(found) => tell(&whose, &found),
                Err(error) => {
                    say(&format!("FAULTY  {whose}: it can't be read: {error}"));
                    1
                }
            };
        }
        after = page.next;
        if after.is_none() {
            return Ok(faults);
        }
    }
}

/// Prints the result for one log; returns the number of faults.
fn tell(whose: &str, found: &Verification) -> u32 {
    let head = hex::encode(found.head.mac);
    match &found.fault {
        None => {
            say(&format!(
                "ok      {whose}: {} rows, head {} {head}",
                found.checked, found.head.seq
            ));
            0
        }
        Some(fault) => {
            say(&format!(
                "FAULTY  {whose}: {fault:?} after {} good rows",
                found.checked
            ));
            1
        }
    }
}

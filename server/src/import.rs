//! `stationmaster import`: accounts, trains and clients' keys from files.
//!
//! All files are read and judged before anything is written. Then each thing is brought to what
//! the files say, by itself, beside running servers: nothing here takes the lock of the data
//! directory. What is there already stays, so whatever breaks off is completed by the next run.
//! No credential is ever written to the output.

mod fault;
mod files;
mod format;
mod report;
mod secrets;

use std::{
    fs::{File, OpenOptions},
    io::{self, Seek as _, Write as _},
    path::PathBuf,
    time::Duration,
};

use api::operations::import::Judge;
use clap::{Args, Subcommand};
use domain::{Code, token::TokenHash};
use outbound::Policy;
use persistence::{Done, Import, ImportOutcome, Store, StoreError};
use zeroize::Zeroizing;

use crate::{
    config::{Config, Loaded},
    data_dir::{Credentials, Survey},
    failure::Failure,
    operate, text,
};
use files::Sources;
use format::Plan;
use report::{Kind, Report};

/// How often a step is tried that the store has no time for. SQLite by itself waits 5 s.
const TRIES: u32 = 6;
const BETWEEN_TRIES: Duration = Duration::from_secs(1);

/// What can be imported.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Upstream accounts, trains, and the keys that trains' clients have already
    Credentials(Options),
}

/// Options of `import credentials`.
#[derive(Debug, Args)]
pub struct Options {
    /// Where accounts.json, trains.json and client-keys.json are; docs/import.md says what they hold
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// Whose they become: a slug or an identifier
    #[arg(long, value_name = "SLUG_OR_ID")]
    publisher: String,
    /// Say what would be done, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Write the report as JSON to this file too; `-` writes it to standard output instead
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Does what is asked.
///
/// # Errors
/// Some things could not be imported ([`Failure::Failed`]), or nothing was tried at all, or the
/// store went away half-way ([`Failure::Fatal`]).
pub async fn run(loaded: Loaded, command: Command) -> Result<(), Failure> {
    let Command::Credentials(options) = command;
    let plan = plan(&loaded.config, &options)?;
    let mut sink = Sink::open(options.json.as_deref()).map_err(fatal)?;
    let present = Present::open(&loaded.config).await?;
    let report = present.import(&options, &plan).await;
    present.store.close().await;
    let (report, broken) = report?;
    sink.write(&report).map_err(fatal)?;
    if let Some(words) = broken {
        return Err(fatal(format!(
            "the import broke off: {words}. What the report lists is done; run it again for the rest"
        )));
    }
    match report.count(ImportOutcome::Failed) {
        0 => Ok(()),
        1 => Err(Failure::Failed("1 thing could not be imported".into())),
        many => Err(Failure::Failed(format!(
            "{many} things could not be imported"
        ))),
    }
}

fn fatal(error: impl std::fmt::Display) -> Failure {
    Failure::Fatal(error.to_string())
}

/// Reads and judges the files.
fn plan(config: &Config, options: &Options) -> Result<Plan, Failure> {
    let listed = |faults: Vec<fault::Fault>| fatal(fault::listed(&faults));
    let sources = Sources::read(&options.directory).map_err(listed)?;
    for warning in &sources.warnings {
        eprintln!("warning: {warning}");
    }
    let policy = Policy {
        allow_http: config.allow_http_destinations,
        allowed: config.allowed_destinations.clone(),
        ..Policy::default()
    };
    let contract = api::compiled_contract().map_err(fatal)?;
    let judge = Judge::new(&contract, policy).map_err(fatal)?;
    let environment = |name: &str| std::env::var(name).ok().map(Zeroizing::new);
    Plan::of(sources, &judge, &environment).map_err(listed)
}

/// A database that is there, and what may not be given away as a client's key.
struct Present {
    store: Store,
    reserved: Vec<TokenHash>,
}

impl Present {
    async fn open(config: &Config) -> Result<Self, Failure> {
        let survey = Survey::of(config).map_err(fatal)?;
        if survey.fresh {
            return Err(fatal(
                "there is no database here yet: start the server once and create the publisher",
            ));
        }
        let database = survey.database;
        let keys = Credentials::present_keys(config, &database).map_err(fatal)?;
        let tokens = Credentials::present_tokens(config, &database).map_err(fatal)?;
        let reserved = tokens.iter().chain(&config.legacy_token);
        let reserved = reserved.map(TokenHash::of_secret).collect();
        let options = operate::store_options(config, &database, keys, false);
        let store = Store::open(options).await.map_err(fatal)?;
        Ok(Self { store, reserved })
    }

    /// Imports everything, up to the first thing that the store has no answer for; then what it
    /// said, too.
    async fn import(
        &self,
        options: &Options,
        plan: &Plan,
    ) -> Result<(Report, Option<String>), Failure> {
        let system = self.store.system();
        let publisher = system.publisher_named(&options.publisher).await;
        let publisher = publisher.map_err(|error| match error {
            StoreError::Refused(problem) if problem.code == Code::NotFound => {
                let name = text::shortened(&options.publisher);
                fatal(format!("there is no publisher {name:?}"))
            }
            other => fatal(other),
        })?;
        let mut report = Report::new(publisher.clone(), options.dry_run);
        let mut import = system.import(&publisher, self.reserved.clone(), options.dry_run);
        let broken = bring(&mut import, plan, &mut report).await.err();
        Ok((report, broken.map(|error| error.to_string())))
    }
}

/// Accounts before the trains that lend them, and those before the keys of their clients.
async fn bring(import: &mut Import, plan: &Plan, report: &mut Report) -> Result<(), StoreError> {
    for (name, wish) in &plan.accounts {
        let done = patiently(async || import.account(wish).await).await?;
        report.add(Kind::Account, name, done);
    }
    for (name, wish) in &plan.trains {
        let done = patiently(async || import.train(wish).await).await?;
        report.add(Kind::Train, name, done);
    }
    for (name, wish) in &plan.client_keys {
        let done = patiently(async || import.client_key(wish).await).await?;
        report.add(Kind::ClientKey, name, done);
    }
    Ok(())
}

/// Tries again what the store had no time for.
async fn patiently(
    mut step: impl AsyncFnMut() -> Result<Done, StoreError>,
) -> Result<Done, StoreError> {
    let mut tries = 1;
    loop {
        match step().await {
            Err(error) if error.may_pass() && tries < TRIES => tries += 1,
            other => return other,
        }
        tokio::time::sleep(BETWEEN_TRIES).await;
    }
}

/// Where the report goes. A file is opened before anything is imported: afterwards it would be too
/// late to learn that it can't be written.
enum Sink {
    People,
    Programs,
    Both(File),
}

impl Sink {
    fn open(path: Option<&std::path::Path>) -> Result<Self, String> {
        let Some(path) = path else {
            return Ok(Self::People);
        };
        if crate::files::is_input(path) {
            return Ok(Self::Programs);
        }
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path);
        file.map(Self::Both)
            .map_err(|error| format!("{} can't be written: {error}", path.display()))
    }

    fn write(&mut self, report: &Report) -> io::Result<()> {
        match self {
            Self::People => text::put(&report.table()),
            Self::Programs => text::put(&report.json()),
            Self::Both(file) => {
                text::put(&report.table());
                file.set_len(0)?;
                file.rewind()?;
                file.write_all(report.json().as_bytes())?;
            }
        }
        Ok(())
    }
}

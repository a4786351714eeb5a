//! `stationmaster import`: imports accounts, trains and client keys from files.
//!
//! All files are read and checked before anything is written. Then each item is created or changed
//! in a transaction of its own. Servers may run meanwhile, because the import does not take the
//! lock of the data directory. Items that exist already are kept, so a repeated run completes an
//! import that was interrupted. No credential is ever written to the output.

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
use persistence::{Import, ImportOutcome, ImportResult, Store, StoreError};
use zeroize::Zeroizing;

use crate::{
    config::{Config, Loaded},
    data_dir::{Credentials, Survey},
    failure::Failure,
    operate, text,
};
use files::InputFiles;
use format::Plan;
use report::{Kind, Report};

/// How often a step is tried while the store is busy. SQLite itself waits 5 s each time.
const TRIES: u32 = 6;
const BETWEEN_TRIES: Duration = Duration::from_secs(1);

/// The subcommands of `import`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Import upstream accounts, trains, and the keys that clients of trains have already
    Credentials(ImportOptions),
}

/// Options of `import credentials`.
#[derive(Debug, Args)]
pub struct ImportOptions {
    /// The directory with accounts.json, trains.json and client-keys.json; see docs/import.md
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// The publisher that gets them: a slug or an identifier
    #[arg(long, value_name = "SLUG_OR_ID")]
    publisher: String,
    /// Print what would be done, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Write the report as JSON to this file, too; `-` writes it to standard output instead
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors [`Failure::Failed`] if some items could not be imported. [`Failure::Fatal`] if nothing
/// was tried, or the store failed half-way.
pub async fn run(loaded: Loaded, command: Command) -> Result<(), Failure> {
    let Command::Credentials(options) = command;
    let plan = plan(&loaded.config, &options)?;
    let mut sink = Sink::open(options.json.as_deref()).map_err(fatal)?;
    let opened = OpenStore::open(&loaded.config).await?;
    let report = opened.import(&options, &plan).await;
    opened.store.close().await;
    let (report, broken) = report?;
    sink.write(&report).map_err(fatal)?;
    if let Some(words) = broken {
        return Err(fatal(format!(
            "the import stopped: {words}. What the report lists is done; run the command again for the rest"
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

/// Reads and checks the files.
fn plan(config: &Config, options: &ImportOptions) -> Result<Plan, Failure> {
    let listed = |faults: Vec<fault::Fault>| fatal(fault::listed(&faults));
    let sources = InputFiles::read(&options.directory).map_err(listed)?;
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

/// The open store, and the hashes of the operator's tokens, which can't be keys of clients.
struct OpenStore {
    store: Store,
    reserved: Vec<TokenHash>,
}

impl OpenStore {
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

    /// Imports all items in order, until the store fails. Returns the report, and the error of the
    /// store, if there was one.
    async fn import(
        &self,
        options: &ImportOptions,
        plan: &Plan,
    ) -> Result<(Report, Option<String>), Failure> {
        let system = self.store.system();
        let publisher = system.trains().publisher_named(&options.publisher).await;
        let publisher = publisher.map_err(|error| match error {
            StoreError::Refused(problem) if problem.code == Code::NotFound => {
                let name = text::shortened(&options.publisher);
                fatal(format!("there is no publisher {name:?}"))
            }
            other => fatal(other),
        })?;
        let mut report = Report::new(publisher.clone(), options.dry_run);
        let mut import = system
            .trains()
            .import(&publisher, self.reserved.clone(), options.dry_run);
        let broken = bring(&mut import, plan, &mut report).await.err();
        Ok((report, broken.map(|error| error.to_string())))
    }
}

/// Imports accounts before the trains that lend them, and trains before the keys of their clients.
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

/// Runs a step, and repeats it while the store is busy.
async fn patiently(
    mut step: impl AsyncFnMut() -> Result<ImportResult, StoreError>,
) -> Result<ImportResult, StoreError> {
    let mut tries = 1;
    loop {
        match step().await {
            Err(error) if error.may_pass() && tries < TRIES => tries += 1,
            other => return other,
        }
        tokio::time::sleep(BETWEEN_TRIES).await;
    }
}

/// Where the report is written. A file is opened before the import, because it would be too late to
/// notice afterwards that it can't be written.
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

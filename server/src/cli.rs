//! The command line.
//!
//! Exit codes: 0 success, 1 failure, 2 wrong usage or configuration. For `keys status`, `keys
//! rewrap` and `import`, 1 means that the work was done but some things were wrong, and 2 that the
//! work was not done. Results go to standard output, everything else to standard error.

use std::{future::Future, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};

use crate::{
    accounts::{self, Accounts},
    config::{self, Loaded},
    demo, doctor,
    failure::Failure,
    import, keys, listen, operate, serve, sign, text, users,
};

/// A control plane for publishers: tokens, pipelines and runs, signed webhooks.
#[derive(Debug, Parser)]
#[command(name = "stationmaster", version, about, disable_help_subcommand = true)]
struct Cli {
    /// A TOML file of settings; the environment wins over it
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server (the default)
    Serve(Serve),
    /// Migrate the database to this version's schema
    Migrate,
    /// Print the API's OpenAPI document, or a page that is generated from it
    Openapi(Contract),
    /// Verify the audit logs
    #[command(subcommand)]
    Audit(Audit),
    /// Show and rotate the master keys, and rewrap what they encrypt
    #[command(subcommand)]
    Keys(keys::Command),
    /// Create, show and disable people, and print links with which they sign in
    Users(users::Users),
    /// Import accounts, trains and client keys from another service's files
    #[command(subcommand)]
    Import(import::Command),
    /// Print the files that are generated from the list of settings
    Config(Files),
    /// Check the configuration, the data directory and the keys, and report what was found
    Doctor,
    /// Receive events on this machine as an endpoint would, and forward them to a local URL
    Listen(listen::ListenOptions),
    /// Manage upstream accounts through a running server
    #[command(subcommand)]
    Accounts(Accounts),
    /// Sign a body, and print the headers of its delivery
    Sign(sign::Sign),
    /// Verify the signature of a delivery
    Verify(sign::Verify),
    /// Run a demo: a server, a publisher, a run, a verified webhook, a rotated token
    Demo {
        /// Keep the server running, and print its address, tokens and a sign-in link
        #[arg(long)]
        keep: bool,
    },
    /// The demo's consumer of webhooks; the secret comes on standard input
    #[command(hide = true)]
    DemoConsumer,
}

#[derive(Debug, Default, Args)]
struct Serve {
    /// Print the settings in force, without secrets, and exit
    #[arg(long)]
    print_config: bool,
    /// Migrate the schema first (SQLite always does)
    #[arg(long)]
    migrate: bool,
}

#[derive(Debug, Args)]
#[group(multiple = false)]
struct Contract {
    /// Print docs/reference.md instead
    #[arg(long)]
    reference: bool,
    /// Print docs/access.md instead
    #[arg(long)]
    access: bool,
}

#[derive(Debug, Subcommand)]
enum Audit {
    /// Verify that no row of a log was changed, moved or removed
    Verify {
        /// Only this publisher's log; without it the operator's and every publisher's
        #[arg(long, value_name = "ID")]
        publisher: Option<String>,
    },
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Files {
    /// Print docs/configuration.md
    #[arg(long)]
    docs: bool,
    /// Print .env.example
    #[arg(long)]
    env_example: bool,
}

/// Runs the command that the process's arguments name; returns the exit code.
#[must_use]
pub fn run() -> ExitCode {
    match dispatch(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(words) | Failure::Fatal(words)) => {
            eprintln!("error: {words}");
            ExitCode::from(2)
        }
        Err(Failure::Failed(words)) => {
            eprintln!("error: {words}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(cli: Cli) -> Result<(), Failure> {
    let load = || load(cli.config.as_deref());
    match cli.command.unwrap_or(Command::Serve(Serve::default())) {
        Command::Serve(options) => {
            let loaded = load()?;
            if options.print_config {
                text::put(&config::print(&loaded));
                return Ok(());
            }
            in_runtime(serve::run(loaded, options.migrate))
        }
        Command::Migrate => in_runtime(operate::migrate(load()?)),
        Command::Openapi(files) => {
            let out = if files.reference {
                api::reference_markdown()
            } else if files.access {
                api::access_markdown()
            } else {
                api::openapi_text()
            };
            text::put(&out);
            Ok(())
        }
        Command::Audit(Audit::Verify { publisher }) => {
            in_runtime(operate::verify_audit(load()?, publisher))
        }
        Command::Keys(command) => in_runtime(keys::run(load()?, command)),
        Command::Users(command) => in_runtime(users::run(load()?, command)),
        Command::Import(command) => in_runtime(import::run(load()?, command)),
        Command::Doctor => in_runtime(doctor::run(cli.config.as_deref())),
        Command::Config(files) => {
            let out = if files.docs {
                config::markdown()
            } else {
                config::env_example()
            };
            text::put(&out);
            Ok(())
        }
        Command::Listen(options) => in_runtime(listen::run(options)),
        Command::Accounts(command) => in_runtime(accounts::run(command)),
        Command::Sign(options) => sign::sign(&options),
        Command::Verify(options) => sign::verify(&options),
        Command::Demo { keep } => in_runtime(demo::run(keep)),
        Command::DemoConsumer => in_runtime(demo::consumer::run()),
    }
}

fn load(file: Option<&std::path::Path>) -> Result<Loaded, Failure> {
    config::load(std::env::vars_os(), file).map_err(|faults| Failure::Usage(faults.to_string()))
}

/// The longest wait at the end for blocking threads that are still running.
const BLOCKED_AT_MOST: std::time::Duration = std::time::Duration::from_secs(3);

fn in_runtime<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Failed(format!("the runtime can't start: {error}")))?;
    let done = runtime.block_on(work);
    // A thread that can't be stopped, such as the evaluation of a schema, must not delay the end.
    runtime.shutdown_timeout(BLOCKED_AT_MOST);
    done
}

//! `stationmaster accounts …`: manages upstream accounts through the API of a running server.
//!
//! Exit codes: 0 success, 1 refused or failed (`refresh-all`: any account failed), 2 wrong usage.

mod login;
mod remote;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::{
    failure::Failure,
    text::{say, shortened, table},
};

use remote::Remote;

/// The subcommands of `accounts`.
#[derive(Debug, Subcommand)]
pub enum Accounts {
    /// Log in at an upstream in a browser, and create an account with the tokens that it grants
    Login(login::Login),
    /// Show accounts: their health, their cooldowns, and when their tokens expire
    Status {
        /// Only this account, by id or by name
        account: Option<String>,
        /// The server and the admin token.
        #[command(flatten)]
        server_args: ServerArgs,
    },
    /// Replace the token of one OAuth account now
    Refresh {
        /// The account, by id or by name
        account: String,
        /// The server and the admin token.
        #[command(flatten)]
        server_args: ServerArgs,
    },
    /// Replace the tokens of all OAuth accounts now; exits with 1 if any failed
    RefreshAll {
        /// Only show what would be done
        #[arg(long)]
        dry_run: bool,
        /// The server and the admin token.
        #[command(flatten)]
        server_args: ServerArgs,
    },
}

/// The server, and the admin token for it.
#[derive(Debug, Args)]
pub struct ServerArgs {
    /// The URL of the server
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080")]
    server: String,
    /// The environment variable that holds an admin token
    #[arg(long, value_name = "NAME", default_value = "STATIONMASTER_TOKEN")]
    token_env: String,
    /// A file that holds an admin token, instead of the environment variable
    #[arg(long, value_name = "FILE", conflicts_with = "token_env")]
    token_file: Option<PathBuf>,
}

/// Runs one of the subcommands.
///
/// # Errors
/// The usage is wrong; the server refuses or can't be reached; an account could not be refreshed.
pub async fn run(command: Accounts) -> Result<(), Failure> {
    match command {
        Accounts::Login(options) => login::run(options).await,
        Accounts::Status {
            account,
            server_args,
        } => status(&Remote::new(&server_args)?, account).await,
        Accounts::Refresh {
            account,
            server_args,
        } => refresh(&Remote::new(&server_args)?, &account).await,
        Accounts::RefreshAll {
            dry_run,
            server_args,
        } => refresh_all(&Remote::new(&server_args)?, dry_run).await,
    }
}

async fn status(remote: &Remote, account: Option<String>) -> Result<(), Failure> {
    let found = match account {
        Some(account) => vec![remote.account(&account).await?],
        None => remote.accounts().await?,
    };
    if found.is_empty() {
        eprintln!("there are no accounts");
    }
    let mut rows = vec![["NAME", "ID", "TYPE", "HEALTH", "EXPIRES"].map(str::to_owned)];
    rows.extend(found.iter().map(row));
    table(&rows);
    Ok(())
}

fn row(account: &Value) -> [String; 5] {
    let text = |name: &str| shortened(account[name].as_str().unwrap_or("-"));
    let mut health = shortened(account["health"]["status"].as_str().unwrap_or("-"));
    if let Some(reason) = account["health"]["reason"].as_str() {
        health = format!("{health} ({})", shortened(reason));
    }
    if let Some(until) = account["health"]["lent_until"].as_str() {
        health = format!("{health}, lent until {}", shortened(until));
    }
    if account["enabled"] == false {
        health.push_str(", disabled");
    }
    if let Some(until) = account["cooldown"]["until"].as_str() {
        health = format!("{health}, cools down until {}", shortened(until));
    }
    [
        text("name"),
        text("id"),
        text("credential_type"),
        health,
        text("expires_at"),
    ]
}

async fn refresh(remote: &Remote, account: &str) -> Result<(), Failure> {
    let account = remote.account(account).await?;
    let id = account["id"].as_str().unwrap_or_default();
    let path = format!("/v1/accounts/{id}/refresh");
    let refreshed = remote.post(&path, None).await?;
    let name = shortened(refreshed["name"].as_str().unwrap_or_default());
    let until = shortened(refreshed["expires_at"].as_str().unwrap_or_default());
    say(&format!(
        "{name} was refreshed; its token lives until {until}"
    ));
    Ok(())
}

async fn refresh_all(remote: &Remote, dry_run: bool) -> Result<(), Failure> {
    let body = json!({ "dry_run": dry_run });
    let done = remote.post("/v1/accounts/refresh", Some(&body)).await?;
    let items = done["items"].as_array().cloned().unwrap_or_default();
    let mut rows = vec![["NAME", "ID", "OUTCOME", "REASON"].map(str::to_owned)];
    rows.extend(items.iter().map(|item| {
        ["name", "account_id", "outcome", "reason"]
            .map(|name| shortened(item[name].as_str().unwrap_or("-")))
    }));
    table(&rows);
    let failed = items.iter().filter(|item| item["outcome"] == "failed");
    match failed.count() {
        0 => Ok(()),
        count => Err(Failure::Failed(format!(
            "{count} accounts could not be refreshed"
        ))),
    }
}

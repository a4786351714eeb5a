//! A login at an upstream: the browser is redirected to a port of this machine (RFC 8252 §7.3).

use std::time::Duration;

use clap::Args;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use crate::{
    failure::Failure,
    files,
    text::{say, shortened},
};

use super::{ServerArgs, remote::Remote};

/// How long the server keeps an unfinished login.
const LOGIN_TIMEOUT: Duration = Duration::from_mins(10);
/// How long a browser may take to send the headers of a request, and how long these may be.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
const REQUEST_BYTES: u64 = 16 * 1024;
/// The path to which the browser is redirected.
const CALLBACK: &str = "/callback";

/// The options of `accounts login`.
#[derive(Debug, Args)]
pub struct Login {
    /// The name of the new account
    name: String,
    /// The provider, such as `anthropic`
    #[arg(long, value_name = "NAME")]
    provider: String,
    /// The URL at which people log in
    #[arg(long, value_name = "URL")]
    authorize_url: String,
    /// The token endpoint, which exchanges the code for tokens and refreshes them
    #[arg(long, value_name = "URL")]
    token_url: String,
    /// The identifier of the OAuth client at the upstream
    #[arg(long, value_name = "ID")]
    client_id: String,
    /// The environment variable that holds the client's secret, if it has one
    #[arg(long, value_name = "NAME")]
    client_secret_env: Option<String>,
    /// The scopes to request, separated by spaces
    #[arg(long, value_name = "SCOPES", default_value = "")]
    scopes: String,
    /// The base URL of the upstream's API; has a default for well-known providers
    #[arg(long, value_name = "URL")]
    base_url: Option<String>,
    /// The port on 127.0.0.1 to which the browser is redirected; 0 picks a free one
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    port: u16,
    #[command(flatten)]
    server_args: ServerArgs,
}

/// Begins a login, waits until the browser is redirected here, and finishes the login.
///
/// # Errors
/// The usage is wrong; the server or the upstream refuses; nobody logs in within the time.
pub async fn run(options: Login) -> Result<(), Failure> {
    let remote = Remote::new(&options.server_args)?;
    let client_secret = match &options.client_secret_env {
        Some(name) => Some(files::secret_of_env(name)?),
        None => None,
    };
    let failed = |error: std::io::Error| Failure::Failed(format!("127.0.0.1: {error}"));
    let listener = TcpListener::bind(("127.0.0.1", options.port)).await;
    let listener = listener.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;

    let mut body = json!({
        "name": options.name,
        "provider": options.provider,
        "authorize_url": options.authorize_url,
        "token_url": options.token_url,
        "client_id": options.client_id,
        "scopes": options.scopes,
        "redirect_uri": format!("http://{address}{CALLBACK}"),
    });
    if let Some(url) = &options.base_url {
        body["base_url"] = json!(url);
    }
    if let Some(secret) = &client_secret {
        body["client_secret"] = json!(secrecy::ExposeSecret::expose_secret(secret));
    }
    let begun = remote.post("/v1/accounts/oauth/start", Some(&body)).await?;
    let state = begun["state"].as_str().unwrap_or_default();
    say("open this address in a browser and log in:");
    say(begun["url"].as_str().unwrap_or_default());
    let code = timeout(LOGIN_TIMEOUT, come_back(&listener, state)).await;
    let code = code.map_err(|_| Failure::Failed("nobody logged in within 10 minutes".into()))??;
    let body = json!({ "state": state, "code": code });
    let made = remote
        .post("/v1/accounts/oauth/finish", Some(&body))
        .await?;
    let text = |name: &str| shortened(made[name].as_str().unwrap_or_default());
    say(&format!("account {} is {}", text("name"), text("id")));
    Ok(())
}

/// Waits for the request with the code; other requests get 404.
async fn come_back(listener: &TcpListener, state: &str) -> Result<String, Failure> {
    loop {
        let Ok((mut stream, _)) = listener.accept().await else {
            continue;
        };
        let line = timeout(REQUEST_TIMEOUT, first_line(&mut stream)).await;
        let answer = match line {
            Ok(Some(line)) => read(&line, state),
            _ => continue,
        };
        let (status, words) = match &answer {
            Callback::Code(_) => ("200 OK", "You are logged in. This window can be closed."),
            Callback::Refused(_) => ("200 OK", "The login failed. This window can be closed."),
            Callback::Stray => ("404 Not Found", "Nothing is here."),
        };
        let page = format!(
            "HTTP/1.1 {status}\r\ncontent-type: text/plain; charset=utf-8\r\nconnection: close\r\n\
             cache-control: no-store\r\nreferrer-policy: no-referrer\r\n\
             content-length: {}\r\n\r\n{words}",
            words.len()
        );
        // The login is done whether or not the browser reads the page.
        let _ = timeout(REQUEST_TIMEOUT, stream.write_all(page.as_bytes())).await;
        match answer {
            Callback::Code(code) => return Ok(code),
            Callback::Refused(error) => {
                let words = format!("the upstream refused the login: {}", shortened(&error));
                return Err(Failure::Failed(words));
            }
            Callback::Stray => {}
        }
    }
}

async fn first_line(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    let mut stream = stream.take(REQUEST_BYTES);
    // Reads all headers: closing a connection with unread bytes would reset it.
    while !bytes.ends_with(b"\r\n\r\n") {
        let mut some = [0; 1024];
        let count = stream
            .read(&mut some)
            .await
            .ok()
            .filter(|count| *count > 0)?;
        bytes.extend_from_slice(&some[..count]);
    }
    let text = String::from_utf8(bytes).ok()?;
    text.lines().next().map(str::to_owned)
}

/// What a request of the browser means.
#[derive(Debug, PartialEq, Eq)]
enum Callback {
    Code(String),
    Refused(String),
    Stray,
}

/// Reads the first line of a request. A request without the state of this login does not count:
/// another site may send a browser here, too (RFC 6749 §10.12).
fn read(line: &str, state: &str) -> Callback {
    let target = line
        .strip_prefix("GET ")
        .and_then(|rest| rest.split(' ').next());
    let Some((CALLBACK, query)) = target.and_then(|target| target.split_once('?')) else {
        return Callback::Stray;
    };
    let pairs: Vec<_> = url::form_urlencoded::parse(query.as_bytes()).collect();
    let one = |name: &str| {
        let mut found = pairs.iter().filter(|(known, _)| known == name);
        let first = found.next().map(|(_, value)| value.to_string());
        first.filter(|_| found.next().is_none())
    };
    if state.is_empty() || one("state").as_deref() != Some(state) {
        return Callback::Stray;
    }
    match (one("code"), one("error")) {
        (Some(code), None) if !code.is_empty() => Callback::Code(code),
        (_, error) => Callback::Refused(error.unwrap_or_else(|| "no code came".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_state_brings_a_code() {
        let line = |query: &str| format!("GET /callback?{query} HTTP/1.1");
        let code = Callback::Code("a b".to_owned());
        assert_eq!(read(&line("code=a+b&state=s&iss=x"), "s"), code);
        for stray in ["code=a", "code=a&state=t", "code=a&state=s&state=s", ""] {
            assert_eq!(read(&line(stray), "s"), Callback::Stray, "{stray}");
        }
        assert_eq!(read(&line("code=a&state="), ""), Callback::Stray);
        assert_eq!(read("GET /favicon.ico HTTP/1.1", "s"), Callback::Stray);
        assert_eq!(
            read("POST /callback?code=a&state=s HTTP/1.1", "s"),
            Callback::Stray
        );
        let denied = Callback::Refused("access_denied".to_owned());
        assert_eq!(read(&line("error=access_denied&state=s"), "s"), denied);
        assert!(matches!(read(&line("state=s"), "s"), Callback::Refused(_)));
    }
}

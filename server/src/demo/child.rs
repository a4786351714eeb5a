//! The demo's two child processes: the server and the consumer.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use crate::config::PREFIX;

/// The server's log, in the demo's directory.
pub(super) const LOG_FILE: &str = "server.log";
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// The time limit for a stop: a little longer than the server takes to finish its work.
const STOP_TIMEOUT: Duration = Duration::from_secs(35);

/// This program as a command, without the settings in the environment of the demo. It gets a
/// process group of its own, so that Ctrl-C in a terminal reaches only the demo, which stops its
/// children.
fn this_program() -> Result<Command, String> {
    let program = std::env::current_exe().map_err(|e| format!("this program is not found: {e}"))?;
    let mut command = Command::new(program);
    let ours = |name: &std::ffi::OsString| name.to_string_lossy().starts_with(PREFIX);
    for (name, _) in std::env::vars_os().filter(|(name, _)| ours(name)) {
        command.env_remove(name);
    }
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    Ok(command)
}

fn spawn(command: &mut Command) -> Result<(Child, Lines<BufReader<ChildStdout>>), String> {
    let mut child = command
        .spawn()
        .map_err(|e| format!("a process can't be started: {e}"))?;
    let stdout = child.stdout.take().ok_or("a process has no output")?;
    Ok((child, BufReader::new(stdout).lines()))
}

/// The next line that a child writes; an error if there is none.
async fn line(lines: &mut Lines<BufReader<ChildStdout>>, who: &str) -> Result<String, String> {
    match lines.next_line().await {
        Ok(Some(line)) => Ok(line),
        Ok(None) => Err(format!("{who} ended")),
        Err(error) => Err(format!("{who} can't be read: {error}")),
    }
}

/// The running server.
pub(super) struct Server {
    child: Child,
    /// Kept open, because a server that writes to a closed pipe fails.
    _lines: Lines<BufReader<ChildStdout>>,
    pub(super) url: String,
    pub(super) token_file: PathBuf,
}

impl Server {
    /// Starts a server on an empty data directory below `home` and a free port, which may deliver
    /// to this machine.
    pub(super) async fn start(home: &Path) -> Result<Self, String> {
        let data = home.join("data");
        let log = File::create(home.join(LOG_FILE)).map_err(|e| format!("the log: {e}"))?;
        let mut command = this_program()?;
        command
            .arg("serve")
            .current_dir(home)
            .env("STATIONMASTER_DATA_DIR", &data)
            .env("STATIONMASTER_LISTEN", "127.0.0.1:0")
            .env("STATIONMASTER_METRICS_LISTEN", "")
            .env("STATIONMASTER_ALLOW_HTTP_DESTINATIONS", "true")
            .env("STATIONMASTER_ALLOWED_DESTINATIONS", "127.0.0.0/8")
            .stderr(log);
        let (child, mut lines) = spawn(&mut command)?;
        let first = timeout(START_TIMEOUT, line(&mut lines, "the server")).await;
        let first = first.map_err(|_| "the server did not start in time".to_owned())??;
        let url = first
            .strip_prefix("listening on ")
            .ok_or_else(|| format!("the server's first line was: {first}"))?
            .to_owned();
        let token_file = data.join(crate::data_dir::TOKEN_FILE);
        Ok(Self {
            child,
            _lines: lines,
            url,
            token_file,
        })
    }

    /// Stops the server by SIGTERM, as a service manager does, and waits for its end.
    pub(super) async fn stop(mut self) -> Result<(), String> {
        let pid = self
            .child
            .id()
            .and_then(|id| rustix::process::Pid::from_raw(id.try_into().ok()?));
        let pid = pid.ok_or("the server ended by itself")?;
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)
            .map_err(|error| format!("the server can't be stopped: {error}"))?;
        match timeout(STOP_TIMEOUT, self.child.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(format!("the server did not stop cleanly: {status}")),
            Ok(Err(error)) => Err(format!("the server's end is unknown: {error}")),
            Err(_) => Err("the server did not stop in time".into()),
        }
    }
}

/// Creates a person who owns a publisher, with the command that an operator uses beside a running
/// server. Returns a link with which the person signs in.
pub(super) async fn create_owner(
    server: &Server,
    home: &Path,
    (email, name): (&str, &str),
    publisher: &str,
) -> Result<String, String> {
    let mut command = this_program()?;
    command
        .args(["users", "--json", "create", email, "--name", name])
        .args(["--owner-of", publisher])
        .current_dir(home)
        .env("STATIONMASTER_DATA_DIR", home.join("data"))
        .env("STATIONMASTER_PUBLIC_URL", &server.url)
        .stderr(Stdio::piped());
    let output = timeout(START_TIMEOUT, command.output()).await;
    let output = output
        .map_err(|_| "creating a person took too long".to_owned())?
        .map_err(|error| format!("a process can't be started: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("no person was created: {}", said.trim()));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    super::text_at(&parse(text.trim())?, "/sign_in_link")
}

/// The publisher's server, which receives webhooks and calls of a subcommand.
pub(super) struct Consumer {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    /// The consumer stops when this closes.
    stdin: ChildStdin,
    pub(super) url: String,
}

impl Consumer {
    /// Starts a consumer with these secrets. They are passed by standard input, because other users
    /// can read arguments and environments.
    pub(super) async fn start(signing: &str, bearer: &str) -> Result<Self, String> {
        let mut command = this_program()?;
        command
            .arg("demo-consumer")
            .stdin(Stdio::piped())
            .stderr(Stdio::inherit());
        let (mut child, mut lines) = spawn(&mut command)?;
        let mut stdin = child.stdin.take().ok_or("the consumer has no input")?;
        stdin
            .write_all(format!("{signing}\n{bearer}\n").as_bytes())
            .await
            .map_err(|error| format!("the consumer does not listen: {error}"))?;
        let first = timeout(START_TIMEOUT, line(&mut lines, "the consumer")).await;
        let first = first.map_err(|_| "the consumer did not start in time".to_owned())??;
        let url = super::text_at(&parse(&first)?, "/listening")?;
        Ok(Self {
            child,
            lines,
            stdin,
            url,
        })
    }

    /// The next delivery that the consumer received, with the result of the verification.
    pub(super) async fn next(&mut self) -> Result<Value, String> {
        parse(&line(&mut self.lines, "the consumer").await?)
    }

    /// Stops the consumer by closing its standard input.
    pub(super) async fn stop(mut self) -> Result<(), String> {
        drop(self.stdin);
        match timeout(STOP_TIMEOUT, self.child.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            _ => Err("the consumer did not stop cleanly".into()),
        }
    }
}

fn parse(line: &str) -> Result<Value, String> {
    serde_json::from_str(line).map_err(|error| format!("the consumer wrote {line:?}: {error}"))
}

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
/// A little more than the server takes to finish what is under way.
const STOP_TIMEOUT: Duration = Duration::from_secs(35);

/// This program as a command, without the settings of whoever runs the demo, and in a process
/// group of its own: Ctrl-C in a terminal reaches only the demo, which then stops its children.
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

/// The next line that a child writes, or what happened instead.
async fn line(lines: &mut Lines<BufReader<ChildStdout>>, who: &str) -> Result<String, String> {
    match lines.next_line().await {
        Ok(Some(line)) => Ok(line),
        Ok(None) => Err(format!("{who} ended")),
        Err(error) => Err(format!("{who} can't be heard: {error}")),
    }
}

/// The server.
pub(super) struct Server {
    child: Child,
    /// Held open: a server that writes to a closed pipe would fail.
    _lines: Lines<BufReader<ChildStdout>>,
    pub(super) url: String,
    pub(super) token_file: PathBuf,
}

impl Server {
    /// Starts one on an empty data directory below `home`, on a free port, allowed to deliver to
    /// this machine.
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

    /// Asks it to stop, as a service manager would, and waits for it.
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

/// The publisher's server: consumer of webhooks, and of a subcommand.
pub(super) struct Consumer {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    /// It stops when this closes.
    stdin: ChildStdin,
    pub(super) url: String,
}

impl Consumer {
    /// Starts one that knows these secrets, which go in through its standard input: arguments and
    /// environments can be seen by others.
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

    /// The next delivery that it took, with its verdict.
    pub(super) async fn next(&mut self) -> Result<Value, String> {
        parse(&line(&mut self.lines, "the consumer").await?)
    }

    /// Stops it by closing its standard input.
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

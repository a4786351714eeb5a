//! Server processes, and the sites that they run on: a data directory and a database.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{Arc, LazyLock, Mutex, RwLock},
    time::{Duration, Instant},
};

use domain::random;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection as _, SqliteConnection};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use base64::{Engine as _, engine::general_purpose::STANDARD};

use crate::{
    client::{BaseUrl, User},
    publisher::Publisher,
    store::Database,
    tools::{raw, root, word},
    vault::Vault,
};

/// How long a start may take on a busy machine.
const START_TIMEOUT: Duration = Duration::from_mins(1);
/// A little longer than the server waits for its work at a stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(40);
/// The files in the data directory whose purpose is to contain secrets.
const SECRET_FILES: [&str; 2] = ["bootstrap-token", "master-keys"];

/// The settings of tests: deliveries to this machine, no rate limits, a free port for metrics, JSON
/// logs, and few connections, because many servers share one PostgreSQL.
const SETTINGS: [(&str, &str); 9] = [
    ("STATIONMASTER_LISTEN", "127.0.0.1:0"),
    ("STATIONMASTER_METRICS_LISTEN", "127.0.0.1:0"),
    ("STATIONMASTER_ALLOW_HTTP_DESTINATIONS", "true"),
    ("STATIONMASTER_ALLOWED_DESTINATIONS", "127.0.0.0/8"),
    ("STATIONMASTER_RATE_LIMIT_PER_SECOND", "0"),
    ("STATIONMASTER_BOOTSTRAP_RATE_PER_MINUTE", "0"),
    ("STATIONMASTER_AUTH_FAILURES_PER_MINUTE", "0"),
    ("STATIONMASTER_LOG_FORMAT", "json"),
    ("STATIONMASTER_DATABASE_CONNECTIONS", "8"),
];

static BINARY: LazyLock<PathBuf> = LazyLock::new(|| {
    if let Some(path) = std::env::var_os("STATIONMASTER_TEST_BINARY") {
        return path.into();
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = std::process::Command::new(cargo)
        .args(["build", "--quiet", "--package", "server"])
        .current_dir(root())
        .status();
    assert!(
        built.is_ok_and(|status| status.success()),
        "the server does not build"
    );
    root().join("target/debug/stationmaster")
});

/// The program under test.
#[must_use]
pub(crate) fn binary() -> &'static Path {
    &BINARY
}

/// The program, without the settings in the environment of the tests. `wrapper` is a command that
/// replaces itself by the program (`prlimit …`), so that its process id is the server's.
pub(crate) fn command(data_dir: &Path, wrapper: &[&str]) -> Command {
    let mut command = match wrapper {
        [] => Command::new(binary()),
        [program, arguments @ ..] => {
            let mut command = Command::new(program);
            command.args(arguments).arg(binary());
            command
        }
    };
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("STATIONMASTER_") {
            command.env_remove(name);
        }
    }
    command
        .envs(SETTINGS)
        .env("STATIONMASTER_DATA_DIR", data_dir)
        .current_dir(data_dir.parent().unwrap())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

/// A place where a server can run, with everything that outlives its process.
pub struct Site {
    home: TempDir,
    /// `STATIONMASTER_DATA_DIR`.
    pub data_dir: PathBuf,
    /// With PostgreSQL.
    pub database: Option<Database>,
    pub(crate) vault: Arc<Vault>,
    /// The settings that PostgreSQL requires.
    given: Vec<(String, String)>,
    base_url: BaseUrl,
    logs: Mutex<Vec<PathBuf>>,
    running: Mutex<Vec<Arc<Process>>>,
    tolerated: Mutex<Vec<String>>,
}

struct Process {
    child: tokio::sync::Mutex<Child>,
    pid: u32,
}

/// A start that the server refused.
#[derive(Debug)]
pub struct Refused {
    /// Its exit code.
    pub code: Option<i32>,
    /// What it wrote to standard error.
    pub words: String,
}

impl Site {
    pub(crate) fn new(home: TempDir, database: Option<Database>, vault: Arc<Vault>) -> Self {
        let data_dir = home.path().join("data");
        let mut given = Vec::new();
        if let Some(database) = &database {
            let token = format!("test-bootstrap-{}{}", word(), word());
            let key = STANDARD.encode(random::bytes::<32>());
            vault.add(&token);
            vault.add(&key);
            given = vec![
                (
                    "STATIONMASTER_DATABASE_URL".to_owned(),
                    database.url.clone(),
                ),
                ("STATIONMASTER_BOOTSTRAP_TOKEN".to_owned(), token),
                ("STATIONMASTER_MASTER_KEYS".to_owned(), format!("k1:{key}")),
            ];
        }
        Self {
            home,
            data_dir,
            database,
            vault,
            given,
            base_url: Arc::new(RwLock::new(String::new())),
            logs: Mutex::default(),
            running: Mutex::default(),
            tolerated: Mutex::default(),
        }
    }

    /// Allows log lines of level ERROR with this text.
    pub fn tolerate(&self, text: &str) {
        self.tolerated.lock().unwrap().push(text.to_owned());
    }

    /// The directory that holds the data directory; for files of the test's own.
    #[must_use]
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// The program with the settings of this site, without arguments.
    #[must_use]
    pub fn command(&self, wrapper: &[&str]) -> Command {
        let mut command = command(&self.data_dir, wrapper);
        let given = self.given.iter();
        command.envs(given.map(|(name, value)| (name.as_str(), value.as_str())));
        command
    }

    /// Starts a server here. Users of an earlier server of this site send to the new one.
    pub async fn start(self: &Arc<Self>, env: &[(&str, &str)]) -> Server {
        self.start_within(&[], env).await
    }

    /// The same under a wrapper such as `prlimit`.
    pub async fn start_within(self: &Arc<Self>, wrapper: &[&str], env: &[(&str, &str)]) -> Server {
        let base_url = Arc::clone(&self.base_url);
        let server = self.launch(wrapper, env, base_url).await;
        server.unwrap_or_else(|refused| panic!("the server did not start: {refused:?}"))
    }

    /// Starts one more server on the same data, for users of its own.
    pub async fn start_beside(self: &Arc<Self>, env: &[(&str, &str)]) -> Server {
        let base_url = Arc::new(RwLock::new(String::new()));
        let server = self.launch(&[], env, base_url).await;
        server.unwrap_or_else(|refused| panic!("the server did not start: {refused:?}"))
    }

    /// Starts a server that must refuse to start.
    pub async fn refused(self: &Arc<Self>, env: &[(&str, &str)]) -> Refused {
        let base_url = Arc::new(RwLock::new(String::new()));
        match self.launch(&[], env, base_url).await {
            Ok(server) => panic!("the server started at {}", server.url()),
            Err(refused) => refused,
        }
    }

    async fn launch(
        self: &Arc<Self>,
        wrapper: &[&str],
        env: &[(&str, &str)],
        base_url: BaseUrl,
    ) -> Result<Server, Refused> {
        let number = self.logs.lock().unwrap().len() / 2 + 1;
        let out = self.home().join(format!("out-{number}.log"));
        let err = self.home().join(format!("err-{number}.log"));
        let mut command = self.command(wrapper);
        command.arg("serve").envs(env.iter().copied());
        command
            .stdout(File::create(&out).unwrap())
            .stderr(File::create(&err).unwrap());
        let mut child = command.spawn().unwrap();
        self.logs.lock().unwrap().extend([out.clone(), err.clone()]);
        let pid = child.id().unwrap();
        let url = match listening(&mut child, &out).await {
            Ok(url) => url,
            Err(code) => {
                let words = std::fs::read_to_string(&err).unwrap();
                return Err(Refused { code, words });
            }
        };
        url.clone_into(&mut base_url.write().unwrap());
        let process = Arc::new(Process {
            child: child.into(),
            pid,
        });
        self.running.lock().unwrap().push(Arc::clone(&process));
        let server = Server {
            site: Arc::clone(self),
            process,
            base_url,
            log: err,
        };
        if server.site.given.is_empty() {
            let token = std::fs::read_to_string(self.data_dir.join("bootstrap-token")).unwrap();
            self.vault.add(token.trim());
        }
        Ok(server)
    }

    fn bootstrap_token(&self) -> String {
        let name = "STATIONMASTER_BOOTSTRAP_TOKEN";
        let given = self.given.iter().find(|(known, _)| known == name);
        given.map_or_else(
            || {
                let path = self.data_dir.join("bootstrap-token");
                std::fs::read_to_string(path).unwrap().trim().to_owned()
            },
            |(_, token)| token.clone(),
        )
    }

    /// Stops all servers, and checks logs and database.
    pub(crate) async fn finish(&self) {
        let running: Vec<_> = self.running.lock().unwrap().drain(..).collect();
        for process in running {
            let status = process.stop().await;
            assert!(
                status.success(),
                "the server did not stop cleanly: {status}"
            );
        }
        let errors = self.unexpected_errors();
        assert!(
            errors.is_empty(),
            "the server logged errors:\n{}",
            errors.join("\n")
        );
        let leaks = self.leaks().await;
        assert!(
            leaks.is_empty(),
            "secrets were written:\n{}",
            leaks.join("\n")
        );
        if let Some(database) = &self.database {
            database.remove().await;
        }
    }

    /// Log lines of level ERROR, and of panics, that the test does not allow.
    fn unexpected_errors(&self) -> Vec<String> {
        let tolerated = self.tolerated.lock().unwrap();
        let logs = self.logs.lock().unwrap();
        let texts = logs
            .iter()
            .map(|path| std::fs::read_to_string(path).unwrap_or_default());
        texts
            .flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
            .filter(|line| line.contains("\"level\":\"ERROR\"") || line.contains("panicked at"))
            .filter(|line| !tolerated.iter().any(|text| line.contains(text)))
            .collect()
    }

    /// Runs a statement directly on the database; returns how many rows it changed.
    pub async fn execute(&self, statement: &str) -> u64 {
        let statement = AssertSqlSafe(statement.to_owned());
        if let Some(database) = &self.database {
            let mut connection = database.connect().await;
            let done = sqlx::query(statement).execute(&mut connection).await;
            done.unwrap().rows_affected()
        } else {
            let mut connection = self.file().await;
            let done = sqlx::query(statement)
                .execute(&mut connection)
                .await
                .unwrap();
            connection.close().await.unwrap();
            done.rows_affected()
        }
    }

    /// How many rows a table has; `from` may contain a condition.
    pub async fn count(&self, from: &str) -> i64 {
        let query = AssertSqlSafe(format!("SELECT count(*) FROM {from}"));
        if let Some(database) = &self.database {
            let mut connection = database.connect().await;
            let count = sqlx::query_scalar(query).fetch_one(&mut connection);
            count.await.unwrap()
        } else {
            let mut connection = self.file().await;
            let count = sqlx::query_scalar(query)
                .fetch_one(&mut connection)
                .await
                .unwrap();
            connection.close().await.unwrap();
            count
        }
    }

    /// The identifiers of a table's rows, as 32 hexadecimal digits; `from` may contain a condition.
    pub async fn ids(&self, from: &str) -> Vec<String> {
        if let Some(database) = &self.database {
            let query = format!("SELECT replace(id::text, '-', '') FROM {from}");
            let mut connection = database.connect().await;
            let ids = sqlx::query_scalar(AssertSqlSafe(query)).fetch_all(&mut connection);
            ids.await.unwrap()
        } else {
            let query = format!("SELECT lower(hex(id)) FROM {from}");
            let mut connection = self.file().await;
            let ids = sqlx::query_scalar(AssertSqlSafe(query))
                .fetch_all(&mut connection)
                .await
                .unwrap();
            connection.close().await.unwrap();
            ids
        }
    }

    /// The URL of the server's database.
    #[must_use]
    pub fn url(&self) -> String {
        if let Some(database) = &self.database {
            return database.url.clone();
        }
        let path = self.data_dir.join("stationmaster.db");
        format!("sqlite://{}", path.display())
    }

    async fn file(&self) -> SqliteConnection {
        SqliteConnection::connect(&self.url()).await.unwrap()
    }

    /// Adds this text to the secrets that must not be found.
    pub fn remember(&self, secret: &str) {
        self.vault.add(secret);
    }

    /// How many secrets the test has received here.
    #[must_use]
    pub fn secrets(&self) -> usize {
        self.vault.count()
    }

    /// The secrets in `bytes`.
    #[must_use]
    pub fn found_in(&self, bytes: &[u8]) -> Vec<String> {
        self.vault.found_in(bytes)
    }

    /// The secrets in logs and in the database, where none should be.
    pub async fn leaks(&self) -> Vec<String> {
        let mut places: Vec<(String, Vec<u8>)> = Vec::new();
        for log in self.logs.lock().unwrap().iter() {
            places.push((log.display().to_string(), std::fs::read(log).unwrap()));
        }
        if self.data_dir.is_dir() {
            for entry in std::fs::read_dir(&self.data_dir).unwrap() {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                if path.is_file() && !SECRET_FILES.contains(&name.as_str()) {
                    places.push((name, std::fs::read(path).unwrap()));
                }
            }
        }
        if let Some(database) = &self.database {
            places.push(("the database".to_owned(), database.dump().await));
        }
        let found = places.iter().flat_map(|(place, bytes)| {
            let found = self.vault.found_in(bytes).into_iter();
            found.map(move |what| format!("{place}: {what}"))
        });
        found.collect()
    }

    /// After a failure: ends all servers, and prints their last log lines.
    pub(crate) fn abandon(&self) {
        for process in self.running.lock().unwrap().drain(..) {
            process.signal(Signal::KILL);
        }
        for log in self.logs.lock().unwrap().iter() {
            let text = std::fs::read_to_string(log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let last = lines[lines.len().saturating_sub(30)..].join("\n");
            eprintln!("--- {} ---\n{last}", log.display());
        }
    }
}

/// Waits for the first line of output; the exit code if the process ends before.
async fn listening(child: &mut Child, out: &Path) -> Result<String, Option<i32>> {
    let end = Instant::now() + START_TIMEOUT;
    loop {
        let text = std::fs::read_to_string(out).unwrap();
        if let Some((line, _)) = text.split_once('\n') {
            let url = line.strip_prefix("listening on ");
            return Ok(url
                .unwrap_or_else(|| panic!("the first line is {line:?}"))
                .to_owned());
        }
        if let Some(status) = child.try_wait().unwrap() {
            return Err(status.code());
        }
        assert!(
            Instant::now() < end,
            "the server did not start within {START_TIMEOUT:?}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

impl Process {
    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid)
            .ok()
            .and_then(Pid::from_raw)
            .unwrap();
        // The process may have ended already; the caller notices that.
        let _ = kill_process(pid, signal);
    }

    async fn wait(&self) -> ExitStatus {
        let mut child = self.child.lock().await;
        let ended = tokio::time::timeout(STOP_TIMEOUT, child.wait()).await;
        ended.expect("the server did not end in time").unwrap()
    }

    async fn stop(&self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait().await
    }
}

/// A running server. It goes on when this is dropped; its world stops it.
#[derive(Clone)]
pub struct Server {
    site: Arc<Site>,
    process: Arc<Process>,
    base_url: BaseUrl,
    log: PathBuf,
}

impl Server {
    /// Where it listens: `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        self.base_url.read().unwrap().clone()
    }

    /// Its site.
    #[must_use]
    pub fn site(&self) -> &Arc<Site> {
        &self.site
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid
    }

    /// A user without a token.
    #[must_use]
    pub fn anon(&self) -> User {
        User::new(
            Arc::clone(&self.base_url),
            None,
            Arc::clone(&self.site.vault),
        )
    }

    /// A user with this token.
    #[must_use]
    pub fn user(&self, token: &str) -> User {
        self.anon().with_token(token)
    }

    /// A user with the bootstrap token.
    #[must_use]
    pub fn operator(&self) -> User {
        self.user(&self.site.bootstrap_token())
    }

    /// A new publisher.
    pub async fn publisher(&self, slug: &str) -> Publisher {
        Publisher::create(&self.operator(), slug).await
    }

    /// Its log, line by line.
    #[must_use]
    pub fn log(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.log).unwrap();
        text.lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// Its metrics.
    pub async fn metrics(&self) -> String {
        let address = self.log().iter().find_map(|line| {
            let ours = line["message"].as_str()?.contains("Metrics are served");
            ours.then(|| line["address"].as_str().map(str::to_owned))?
        });
        let address = address.expect("no line says where the figures are");
        let request = b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        raw(&address, request).await
    }

    /// Stops it by SIGTERM, and waits for its end.
    pub async fn stop(&self) -> ExitStatus {
        self.forget();
        self.process.stop().await
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Sends SIGTERM, and does not wait.
    pub fn terminate(&self) {
        self.process.signal(Signal::TERM);
    }

    /// Waits for its end.
    pub async fn wait(&self) -> ExitStatus {
        self.forget();
        self.process.wait().await
    }

    /// Kills it at once.
    pub async fn kill(&self) {
        self.forget();
        self.process.signal(Signal::KILL);
        self.process.wait().await;
    }

    /// Stops it and starts it again with the usual settings and these.
    pub async fn restart(&self, env: &[(&str, &str)]) -> Self {
        let status = self.stop().await;
        assert!(
            status.success(),
            "the server did not stop cleanly: {status}"
        );
        self.site.start(env).await
    }

    fn forget(&self) {
        let mut running = self.site.running.lock().unwrap();
        running.retain(|process| process.pid != self.process.pid);
    }
}
